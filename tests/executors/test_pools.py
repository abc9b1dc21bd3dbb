"""Any ``concurrent.futures.Executor``, as it is."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import harmful
import pytest
import things
from harmful import until
from noting import noted

import weft
from weft import DefinitionError, ExecutorError, Limit, NodeTimeoutError, UnsendableError
from weft.executors.foreign import PoolExecutor

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, thread_name_prefix="mine") as found:
        yield found


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as found:
        yield found


@pytest.fixture(params=["threads", "pool"])
def either(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def far(executor: Any, fn: Any, **options: Any) -> Any:
    return weft.task(executor=executor, **options)(fn)


# Both


def test_results_and_errors(either: Any) -> None:
    assert weft.map(far(either, harmful.double)).invoke(range(100)) == [2 * x for x in range(100)]
    fail = far(either, things.fail)
    for kind in ("odd", "holding", "exit", "interrupt", "group", "disk"):
        expected = things.make(kind)
        with pytest.raises(type(expected)) as caught:
            fail.invoke(kind)
        assert type(caught.value) is type(expected)
    with pytest.raises(RuntimeError, match="StopIteration"):
        fail.invoke("stop")
    assert far(either, harmful.double).invoke(4) == 8


def test_a_body_knows_its_call(either: Any, caplog: pytest.LogCaptureFixture) -> None:
    def body(x: int, writer: weft.StreamWriter) -> Any:
        writer(x)
        weft.get_stream_writer()(x + 1)
        logging.getLogger("pools").warning("asked %s", x)
        return weft.call_id(), weft.remaining(), weft.cancelled()

    step = far(either, body)

    @weft.entrypoint()
    def workflow(x: int) -> Any:
        return step(x).result()

    run = workflow.submit(4, timeout=60)
    call_id, left, cancelled = run.result()
    events = list(run.events())
    assert call_id in {e.call_id for e in events if type(e).__name__ == "CallStarted"}
    assert 0 < left <= 60
    assert cancelled is False
    assert [e.value for e in events if type(e).__name__ == "UserEvent"] == [4, 5]
    assert [r.getMessage() for r in caplog.records if r.name == "pools"] == ["asked 4"]
    kinds = [type(e).__name__ for e in events if getattr(e, "call_id", "") == call_id]
    assert kinds == ["CallAsked", "CallStarted", "UserEvent", "UserEvent", "CallFinished"]


def test_what_waits_in_the_pool_never_begins_when_nobody_waits(either: Any, log: str) -> None:
    step = far(either, harmful.counted)

    @weft.entrypoint()
    async def workflow(_: None) -> None:
        calls = [asyncio.ensure_future(step(log, x, 0.3)) for x in range(30)]
        await calls[0]
        raise KeyError("now")

    with pytest.raises(KeyError):
        workflow.invoke(None)
    either.submit(os.getpid).result()
    time.sleep(0.4)
    assert len(noted(log)) <= 8, "what was at work, and what a process pool hands out ahead"


def test_a_pool_that_is_shut_down(log: str) -> None:
    pool = ThreadPoolExecutor(1)
    step = far(pool, harmful.counted)

    @weft.entrypoint()
    def workflow(_: None) -> list[BaseException | None]:
        calls = [step(log, x, 0.2) for x in range(3)]
        until(lambda: pool._work_queue.qsize() == 2)
        pool.shutdown(wait=False, cancel_futures=True)
        return [call.exception() for call in calls]

    errors = workflow.invoke(None)
    assert all(type(error) is ExecutorError and "shut down" in str(error) for error in errors[1:])
    with pytest.raises(RuntimeError, match="shutdown"):
        step.invoke({"log": log, "x": 1})


# Threads


def test_threads_share_memory_and_context(threads: ThreadPoolExecutor) -> None:
    lock, seen = threading.Lock(), []

    def body(x: Any) -> Any:
        with lock:
            seen.append((threading.current_thread().name[:4], tenant.get()))
        tenant.set("changed")
        return x

    step, thing = far(threads, body), object()

    @weft.entrypoint()
    def workflow(_: None) -> Any:
        tenant.set("me")
        found = step(thing).result()
        assert tenant.get() == "me"
        step(1).result()
        return found is thing

    assert workflow.invoke(None) is True
    assert seen == [("mine", "me")] * 2


def test_bodies_in_threads_of_a_pool_may_call_tasks(threads: ThreadPoolExecutor) -> None:
    @weft.task
    def inner(x: int) -> int:
        return x + 1

    step = far(threads, lambda x: inner(x).result() * 10, name="outer")
    assert weft.map(step).invoke([1, 2]) == [20, 30]


def test_what_cannot_be_ended_is_given_up_and_keeps_its_limit(threads: ThreadPoolExecutor) -> None:
    limit, go = Limit("scarce", concurrent=1), threading.Event()
    seen: list[Any] = []

    def body(x: int) -> int:
        if x == 0:
            go.wait(20)
            seen.append("the first is over")
            return 0
        seen.append("the second begins")
        return x

    step = far(threads, body, timeout=0.2, limit=limit)

    @weft.entrypoint()
    def workflow(_: None) -> Any:
        first = step(0)
        error = first.exception()
        second = step(1)
        with pytest.raises(concurrent.futures.TimeoutError):
            second.result(timeout=0.3)
        go.set()
        return error, second.result()

    run = workflow.submit(None)
    error, value = run.result()
    assert isinstance(error, NodeTimeoutError)
    assert value == 1
    assert seen == ["the first is over", "the second begins"]
    assert [each.step for each in run.given_up] == ["body"]


# Processes


def test_processes_get_what_can_be_sent(pool: ProcessPoolExecutor) -> None:
    local = 5
    assert far(pool, lambda x: x + local, name="closure").invoke(1) == 6
    assert far(pool, harmful.pid).invoke(None) != os.getpid()

    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    assert far(pool, later).invoke(1) == 2
    with pytest.raises(UnsendableError) as caught:
        far(pool, harmful.double).invoke(things.Client())
    assert caught.value.where == "the argument x.session['deep'][1]"
    with pytest.raises(UnsendableError, match="what 'gives' returned"):
        far(pool, lambda x: threading.Lock(), name="gives").invoke(1)


def test_variables_are_carried_by_name(pool: ProcessPoolExecutor) -> None:
    def body(_: None) -> int:
        return things.number.get()

    step = far(PoolExecutor(pool, carry=[things.number]), body)
    things.number.set(6)
    assert step.invoke(None) == 6


def test_a_pool_that_breaks_says_so() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as broken:
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            far(broken, harmful.exits, name="exits").invoke({})


def test_nobody_else_is_an_executor() -> None:
    for wrong in ("processes", 3, object()):
        with pytest.raises(DefinitionError, match="executor of 'double' must be"):
            weft.task(executor=wrong)(harmful.double)


def test_an_async_body_is_not_for_threads() -> None:
    async def body(x: int) -> int:
        return x

    for wrong in ("thread", ThreadPoolExecutor(1)):
        with pytest.raises(DefinitionError, match="'body' is an async def"):
            weft.task(executor=wrong)(body)
