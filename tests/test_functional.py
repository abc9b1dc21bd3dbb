"""The functional style: binding, futures of both kinds, errors, cancellation, what is left behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import gc
import logging
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from leftovers import eventually, nothing_left, takes, timed, within

import weft
from weft import (
    BaseStore,
    DefinitionError,
    DirectCallError,
    InMemorySaver,
    InMemoryStore,
    InputError,
    NotInRunError,
    RunnableConfig,
    Runtime,
    StreamWriter,
    UnstorableError,
    UsageError,
    entrypoint,
    task,
)
from weft.testing import sleep, virtual_clock
from weft.testing.clock import EPOCH


def now():
    """The time of the running loop."""
    return asyncio.get_running_loop().time()


def thread(saver, name="t"):
    return {"thread_id": name} if saver is not None else {}


class Boom(Exception):
    pass


@task
def add(a, b=0):
    return a + b


@task
async def aadd(a, b=0):
    await asyncio.sleep(0)
    return a + b


# Binding


def test_the_first_parameter_is_the_input_whatever_its_type_and_name():
    for value in (0, "", {}, [], (1, 2), {"a": 1}, 2.5, b"x"):

        @entrypoint()
        def wf(config):
            return config

        assert wf.invoke(value) == value


def test_star_args_get_the_input():
    @entrypoint()
    def wf(*args):
        return args

    assert wf.invoke(5) == (5,)


def test_everything_injectable_is_injected_by_name():
    store = InMemoryStore()

    @task
    def inside(x, *, config, previous, runtime, store, writer):
        return (
            config["configurable"]["thread_id"],
            previous,
            runtime.context,
            store is not None,
            callable(writer),
        )

    @entrypoint(store=store, checkpointer=InMemorySaver())
    def wf(x, config, previous, runtime, store, writer):
        return (
            inside(x).result(),
            config["configurable"]["thread_id"],
            previous,
            runtime.context,
            callable(writer),
        )

    expected = (("t", None, "ctx", True, True), "t", None, "ctx", True)
    assert wf.invoke(1, thread_id="t", context="ctx") == expected


@pytest.mark.parametrize("is_async", [False, True])
def test_annotations_that_are_injected(is_async):
    def body(
        x: int,
        config: RunnableConfig,
        runtime: Runtime,
        writer: StreamWriter,
        store: BaseStore | None,
        previous: Any = "default",
    ):
        return config["metadata"], runtime.store is store, store, previous, callable(writer)

    async def abody(
        x: int,
        config: RunnableConfig | None,
        runtime: Runtime[Any],
        writer: StreamWriter,
        store: BaseStore,
        previous: int = 5,
    ):
        return config["metadata"], runtime.store is store, store, previous, callable(writer)

    wf = entrypoint()(abody if is_async else body)
    given = {"metadata": {"k": 1}}
    found = asyncio.run(wf.ainvoke(1, given)) if is_async else wf.invoke(1, given)
    assert found == ({"k": 1}, True, None, None, True)


def test_an_argument_that_was_passed_wins_over_injection():
    @task
    def t(x, writer=None, config=None):
        return x, writer, config is not None

    @entrypoint()
    def wf(x):
        return t(x, writer="mine").result()

    assert wf.invoke(1) == (1, "mine", True)


def test_an_argument_passed_by_position_wins_over_injection_too():
    """LangGraph says "multiple values for argument"."""

    @task
    def t(x, writer):
        return x, writer

    @task
    def only(config):
        return config

    @entrypoint()
    def wf(x):
        return t(x, "mine").result(), only("c").result()

    assert wf.invoke(1) == ((1, "mine"), "c")


def test_names_that_are_not_annotated_for_injection_are_the_users_own():
    @task
    def t(x, config: dict, store: str = "s", writer: Any = "w"):
        return config, store, writer

    @entrypoint()
    def wf(x):
        return t(x, {"mine": 1}).result()

    assert wf.invoke(1) == ({"mine": 1}, "s", "w")


def test_a_context_schema_makes_the_context_of_a_mapping():
    @dataclass
    class Ctx:
        user: str

    @task
    def who(*, runtime: Runtime):
        return runtime.context.user

    @entrypoint(context_schema=Ctx)
    def wf(x, runtime: Runtime):
        return who().result(), runtime.context.user

    assert wf.invoke(1, context={"user": "bob"}) == ("bob", "bob")
    assert wf.invoke(1, context=Ctx("eve")) == ("eve", "eve")
    with pytest.raises(TypeError, match="zzz"):
        within(3, lambda: wf.invoke(1, context={"zzz": 1}))


def test_the_accessors_give_what_is_injected():
    store = InMemoryStore()

    @task
    def t(config, runtime):
        return (
            weft.get_store() is runtime.store,
            weft.get_config()["configurable"]["mine"] == config["configurable"]["mine"],
            weft.get_runtime().run_id == runtime.run_id,
            callable(weft.get_stream_writer()),
        )

    @entrypoint(store=store)
    def wf(x):
        return t().result()

    assert wf.invoke(1, {"configurable": {"mine": 3}}) == (True, True, True, True)


def test_the_accessors_outside_a_run_say_so():
    for fn in (weft.get_config, weft.get_store, weft.get_runtime, weft.get_stream_writer, weft.call_id):
        with pytest.raises(NotInRunError, match=fn.__name__):
            fn()
    for fn in (weft.cancelled, weft.remaining, lambda: weft.interrupt(1)):
        with pytest.raises(RuntimeError, match="run"):
            fn()


def test_a_nested_entrypoint_gets_its_own_store():
    inner_store = InMemoryStore()

    @entrypoint(store=inner_store)
    def inner(x, store):
        return store is inner_store

    @entrypoint(store=InMemoryStore())
    def outer(x):
        return inner.invoke(x)

    assert outer.invoke(1) is True


def test_a_nested_entrypoint_uses_its_own_cache():
    ran = []

    @task(cache_policy=weft.CachePolicy())
    def t(x):
        ran.append(x)
        return x

    @entrypoint(cache=weft.InMemoryCache())
    def inner(x):
        return t(x).result()

    @entrypoint()
    def outer(x):
        return [inner.invoke(x), inner.invoke(x)]

    assert outer.invoke(1) == [1, 1]
    assert ran == [1]


# What is declared wrongly


def test_wrong_declarations_are_refused_where_they_are_made():
    with pytest.raises(ValueError, match="at least one parameter"):

        @entrypoint()
        def nothing():
            return 1

    with pytest.raises(NotImplementedError, match="gen"):

        @entrypoint()
        def gen(x):
            yield x

    with pytest.raises(NotImplementedError, match="agen"):

        @entrypoint()
        async def agen(x):
            yield x

    with pytest.raises(DefinitionError, match="parentheses"):

        @entrypoint
        def bare(x):
            return x

    for bad in (5, "name", None.__class__, object()):
        if not callable(bad):
            with pytest.raises(DefinitionError):
                task(bad)
    with pytest.raises(TypeError):
        task(foo=1)
    with pytest.raises(DefinitionError):
        task(retry_policy=[5])
    with pytest.raises(InputError, match="checkpointer"):
        entrypoint(checkpointer=5)


@pytest.mark.parametrize("bad", [0, -1, True, float("nan"), float("inf"), "1", []])
def test_a_timeout_that_can_never_work_is_refused_at_definition(bad):
    with pytest.raises(DefinitionError):
        task(timeout=bad)
    with pytest.raises(DefinitionError):
        entrypoint(timeout=bad)


def test_calls_in_the_wrong_place_name_what_to_write():
    with pytest.raises(NotInRunError, match=r"add\.invoke.*add\.func"):
        add(1)
    with pytest.raises(NotInRunError):
        aadd(1)

    @entrypoint()
    def wf(x):
        return x

    with pytest.raises(DirectCallError, match=r"wf\.invoke"):
        wf(1)
    with pytest.raises(TypeError):
        wf(1)


def test_invoke_in_an_async_body_names_ainvoke():
    @entrypoint()
    def inner(x):
        return x

    @entrypoint()
    async def wf(x):
        return inner.invoke(x)

    with pytest.raises(UsageError, match=r"inner\.ainvoke"):
        asyncio.run(wf.ainvoke(1))
    with pytest.raises(UsageError, match=r"inner\.ainvoke"):
        wf.invoke(1)


def test_submit_in_a_body_is_refused():
    @entrypoint()
    def inner(x):
        return x

    @entrypoint()
    def wf(x):
        inner.submit(x)

    with pytest.raises(UsageError, match="submit"):
        wf.invoke(1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"max_concurrent": -1}, "max_concurrent"),
        ({"max_concurrent": True}, "max_concurrent"),
        ({"max_concurrent": 2.0}, "max_concurrent"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"durability": "often"}, "often"),
        ({"thread": "t"}, "thread"),
        ({"thread_id": 5}, "thread_id"),
        ({"thread_id": ""}, "thread_id"),
        ({"run_id": "r"}, "checkpointer"),
        ({"on_mismatch": "maybe"}, "maybe"),
        ({"config": 5}, "config"),
        ({"config": {"max_concurrency": 0}}, "max_concurrent"),
        ({"checkpointer": 5}, "checkpointer"),
        ({"checkpointer": InMemorySaver()}, "thread_id"),
    ],
)
def test_options_of_a_run_that_cannot_be(options, match):
    ran = []

    @entrypoint()
    def wf(x):
        ran.append(x)

    with pytest.raises(ValueError, match=match):
        wf.invoke(1, **options)
    with pytest.raises(ValueError, match=match):
        asyncio.run(wf.ainvoke(1, **options))
    with pytest.raises(ValueError, match=match):
        list(wf.stream(1, **options))
    with pytest.raises(ValueError, match=match):
        wf.submit(1, **options)
    assert ran == []


def test_an_unknown_stream_mode_is_refused_at_once():
    @entrypoint()
    def wf(x):
        return x

    with pytest.raises(InputError, match="nope"):
        wf.stream(1, stream_mode="nope")
    with pytest.raises(InputError, match="nope"):
        list(wf.stream(1, stream_mode=["updates", "nope"]))


# Futures


def test_sync_bodies_get_concurrent_futures(any_saver):
    @entrypoint(checkpointer=any_saver)
    def wf(x):
        one, two, three = add(x, 1), add(x, 2), aadd(x, 3)
        assert all(isinstance(f, concurrent.futures.Future) for f in (one, two, three))
        done, rest = concurrent.futures.wait([one, two, three], timeout=5)
        assert not rest
        assert one.done() and one.exception() is None and not one.cancelled()
        seen = []
        one.add_done_callback(lambda f: seen.append(f.result()))
        return sorted(f.result() for f in done), seen

    assert wf.invoke(10, **thread(any_saver)) == ([11, 12, 13], [11])


def test_async_bodies_get_asyncio_futures(any_saver):
    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        one, two = add(x, 1), aadd(x, 2)
        assert isinstance(one, asyncio.Future) and isinstance(two, asyncio.Future)
        with pytest.raises(asyncio.InvalidStateError):
            one.result()
        seen = []
        two.add_done_callback(lambda f: seen.append(f.result()))
        done, rest = await asyncio.wait([one, two])
        assert not rest
        await asyncio.sleep(0)
        return sorted(f.result() for f in done), seen

    assert asyncio.run(wf.ainvoke(10, **thread(any_saver))) == ([11, 12], [12])


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "thread", "loop"])
def test_every_mixture_of_sync_and_async_works_from_everywhere(any_saver, way):
    """DESIGN 3: from a script, a thread, inside a running loop; sync in async and the other way round."""

    @task
    def sync_outer(x):
        return add(x, 1).result() + aadd(x, 2).result()

    @task
    async def async_outer(x):
        return await add(x, 1) + await aadd(x, 2)

    @entrypoint(checkpointer=any_saver)
    def sync_wf(x):
        return sync_outer(x).result(), async_outer(x).result()

    @entrypoint(checkpointer=any_saver)
    async def async_wf(x):
        return tuple(await asyncio.gather(sync_outer(x), async_outer(x)))

    def run(wf, name):
        if way == "invoke":
            return wf.invoke(1, **thread(any_saver, name))
        if way == "ainvoke":
            return asyncio.run(wf.ainvoke(1, **thread(any_saver, name)))
        if way == "thread":
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                return pool.submit(wf.invoke, 1, **thread(any_saver, name)).result()

        async def main():
            return wf.invoke(1, **thread(any_saver, name))

        return asyncio.run(main())

    with nothing_left():
        assert run(sync_wf, "s") == (5, 5)
        assert run(async_wf, "a") == (5, 5)


def test_a_sync_task_of_an_async_run_invokes_a_workflow(any_saver):
    @entrypoint()
    async def inner(x):
        return await aadd(x, 1)

    @task
    def t(x):
        return inner.invoke(x)

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        return await t(x)

    assert asyncio.run(wf.ainvoke(1, **thread(any_saver))) == 2


def test_tasks_start_when_called_not_when_waited_for(any_saver):
    started = threading.Event()

    @task
    def t():
        started.set()

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        future = t()
        assert started.wait(5)
        return future.result()

    assert wf.invoke(1, **thread(any_saver)) is None


@pytest.mark.parametrize("is_async", [False, True])
def test_tasks_overlap(any_saver, is_async):
    barrier = threading.Barrier(16)

    @task
    def t(x):
        barrier.wait(5)
        return x

    if is_async:

        @entrypoint(checkpointer=any_saver)
        async def wf(n):
            return await asyncio.gather(*[t(i) for i in range(n)])

        found = asyncio.run(wf.ainvoke(16, **thread(any_saver)))
    else:

        @entrypoint(checkpointer=any_saver)
        def wf(n):
            return [f.result() for f in [t(i) for i in range(n)]]

        found = wf.invoke(16, **thread(any_saver))
    assert found == list(range(16))


def test_as_completed_gives_them_as_they_end(any_saver):
    gates = [threading.Event() for _ in range(3)]

    @task
    def t(i):
        gates[i].wait(5)
        return i

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        futures = [t(i) for i in range(3)]
        seen = []
        gates[2].set()
        for future in concurrent.futures.as_completed(futures):
            seen.append(future.result())
            if len(seen) < 3:
                gates[2 - len(seen)].set()
        return seen

    assert wf.invoke(1, **thread(any_saver)) == [2, 1, 0]


def test_async_as_completed_gives_them_as_they_end(any_saver):
    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        gates = [asyncio.Event() for _ in range(3)]

        @task
        async def t(i):
            await gates[i].wait()
            return i

        futures = [t(i) for i in range(3)]
        seen = []
        gates[2].set()
        for future in asyncio.as_completed(futures):
            seen.append(await future)
            if len(seen) < 3:
                gates[2 - len(seen)].set()
        return seen

    assert asyncio.run(wf.ainvoke(1, **thread(any_saver))) == [2, 1, 0]


def test_waiting_for_a_result_may_time_out_and_be_tried_again(any_saver):
    @task
    def t():
        sleep(10)
        return 1

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        future = t()
        with pytest.raises(TimeoutError):
            future.result(timeout=2)
        assert clock.now == 2
        with pytest.raises(TimeoutError):
            future.exception(timeout=0)
        with pytest.raises(TimeoutError):
            future.exception(timeout=1)
        assert clock.now == 3
        assert not concurrent.futures.wait([future], timeout=3).done
        assert clock.now == 6
        assert not future.done()
        return future.result(timeout=5)

    with takes(10) as clock:
        assert wf.invoke(1, **thread(any_saver)) == 1


def test_as_completed_may_time_out_and_be_tried_again(any_saver):
    gate = threading.Event()

    @task
    def t():
        gate.wait(5)
        return 1

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        future = t()
        with pytest.raises(TimeoutError):
            list(concurrent.futures.as_completed([future], timeout=0.01))
        assert not future.done()
        gate.set()
        return future.result(timeout=5)

    assert wf.invoke(1, **thread(any_saver)) == 1


def test_a_body_may_look_with_done_until_it_is_there(any_saver):
    @entrypoint(checkpointer=any_saver)
    def wf(x):
        future = add(x, 1)
        deadline = time.monotonic() + 3
        while not future.done():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return future.result()

    assert wf.invoke(1, **thread(any_saver)) == 2


def test_an_async_body_may_look_with_done_until_it_is_there(any_saver):
    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        future = add(x, 1)
        deadline = time.monotonic() + 3
        while not future.done():
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        return future.result()

    assert asyncio.run(wf.ainvoke(1, **thread(any_saver))) == 2


def test_done_callbacks_are_called_with_the_outcome(any_saver):
    @entrypoint(checkpointer=any_saver)
    def wf(x):
        seen, all_seen = [], threading.Event()

        def note(future):
            seen.append(future.exception() or future.result())
            if len(seen) == 2:
                all_seen.set()

        @task
        def bad():
            raise Boom("no")

        add(x, 1).add_done_callback(note)
        bad().add_done_callback(note)
        assert all_seen.wait(3)
        return sorted(map(str, seen))

    assert within(8, lambda: wf.invoke(1, **thread(any_saver))) == ["2", "no"]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_awaitable_that_a_body_returns_is_awaited(any_saver, is_async):
    """LangGraph's own docstring example gives back a future object."""

    @task
    def sync_gives_coroutine(x):
        async def later():
            return x + 1

        return later()

    @task
    async def gives_future(x):
        return aadd(x, 1)

    @task
    def sync_gives_future(x):
        return add(x, 1)

    if is_async:

        @entrypoint(checkpointer=any_saver)
        async def wf(x):
            return asyncio.gather(sync_gives_coroutine(x), gives_future(x), sync_gives_future(x))

        found = asyncio.run(wf.ainvoke(1, **thread(any_saver)))
        assert wf.invoke(1, **thread(any_saver, "t2")) == [2, 2, 2]
    else:

        @entrypoint(checkpointer=any_saver)
        def one(x):
            return sync_gives_coroutine(x)

        @entrypoint(checkpointer=any_saver)
        def two(x):
            return gives_future(x)

        @entrypoint(checkpointer=any_saver)
        def three(x):
            return sync_gives_future(x)

        found = [wf.invoke(1, **thread(any_saver, str(n))) for n, wf in enumerate([one, two, three])]
    assert found == [2, 2, 2]


def test_a_sync_entrypoint_returning_a_coroutine_that_calls_tasks(any_saver):
    @entrypoint(checkpointer=any_saver)
    def wf(x):
        async def later():
            first = await aadd(x, 1)
            return await add(first, 1)

        return later()

    assert within(5, lambda: wf.invoke(1, **thread(any_saver))) == 3
    assert within(5, lambda: asyncio.run(wf.ainvoke(1, **thread(any_saver, "t2")))) == 3


@pytest.mark.parametrize("is_async", [False, True])
def test_unread_futures_are_waited_for(any_saver, is_async):
    ended = []

    @task
    def slow():
        sleep(50)
        ended.append("sync")

    @task
    async def aslow():
        await asyncio.sleep(60)
        ended.append("async")

    if is_async:

        @entrypoint(checkpointer=any_saver)
        async def wf(x):
            slow()
            aslow()
            return "ok"
    else:

        @entrypoint(checkpointer=any_saver)
        def wf(x):
            slow()
            aslow()
            return "ok"

    with takes(60):
        assert wf.invoke(1, **thread(any_saver)) == "ok"
        assert ended == ["sync", "async"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failure_that_nobody_reads_does_not_fail_the_run(any_saver, is_async, caplog):
    """As in LangGraph; but it is said in the log, once, and not by asyncio."""

    @task
    def bad():
        sleep(2)
        raise Boom("unread")

    @task
    async def abad():
        await asyncio.sleep(2)
        raise Boom("unread")

    if is_async:

        @entrypoint(checkpointer=any_saver)
        async def wf(x):
            bad(), abad()
            return "ok"
    else:

        @entrypoint(checkpointer=any_saver)
        def wf(x):
            bad(), abad()
            return "ok"

    with caplog.at_level(logging.WARNING):
        assert timed(lambda: wf.ainvoke(1, **thread(any_saver))) == ("ok", 2)
        gc.collect()
    assert [r.name for r in caplog.records] == ["weft", "weft"]


# Errors


@pytest.mark.parametrize("is_async", [False, True])
def test_errors_come_unwrapped_and_the_same_object(is_async):
    error = Boom("mine")

    @task
    def bad():
        raise error

    @task
    async def abad():
        raise error

    if is_async:

        @entrypoint()
        async def wf(kind):
            with pytest.raises(Boom) as caught:
                await (bad() if kind == "sync" else abad())
            assert caught.value is error
            await (bad() if kind == "sync" else abad())
    else:

        @entrypoint()
        def wf(kind):
            future = bad() if kind == "sync" else abad()
            assert future.exception() is error
            future.result()

    for kind in ("sync", "async"):
        with pytest.raises(Boom) as caught:
            wf.invoke(kind)
        assert caught.value is error


def test_an_error_says_which_call_raised_it(any_saver):
    """DESIGN 6, Errors: the original, with a note naming the call and its input."""

    @task
    def fetch(url):
        raise Boom("down")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return fetch("http://example").result()

    with pytest.raises(Boom) as caught:
        wf.invoke(1, **thread(any_saver))
    notes = "\n".join(getattr(caught.value, "__notes__", []))
    assert "fetch" in notes
    assert "http://example" in notes


def test_the_traceback_shows_the_users_lines_and_not_the_engines():
    @task
    def bad():
        raise Boom("x")

    @entrypoint()
    def wf(x):
        return bad().result()

    with pytest.raises(Boom) as caught:
        wf.invoke(1)
    names = [entry.name for entry in caught.traceback]
    assert "bad" in names
    assert "wf" in names
    assert "_run_in_thread" not in names


def test_async_siblings_are_cancelled_at_once_and_awaited(any_saver):
    log = []

    @task
    async def slow():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            log.append(("cancelled", now()))
            await asyncio.sleep(0.5)
            log.append(("cleaned", now()))
            raise

    @task
    async def bad():
        await asyncio.sleep(1)
        raise Boom("x")

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        await asyncio.gather(slow(), bad())

    async def main():
        with pytest.raises(Boom):
            await wf.ainvoke(1, **thread(any_saver))

    assert timed(main) == (None, 1.5)
    assert log == [("cancelled", 1), ("cleaned", 1.5)]


def test_sync_siblings_are_told_and_waited_for(any_saver):
    log = []

    @task
    def slow():
        while not weft.cancelled():
            sleep(0.25)
        log.append(clock.now)
        sleep(0.5)
        log.append(clock.now)

    @task
    def bad():
        sleep(1.125)
        raise Boom("x")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        other = slow()
        bad().result()
        other.result()

    with takes(1.75) as clock:
        with pytest.raises(Boom):
            within(5, lambda: wf.invoke(1, **thread(any_saver)))
        assert log == [1.25, 1.75]


@pytest.mark.parametrize(("options", "ended"), [({}, 1), ({"grace": 3}, 3), ({"grace": 0}, 0)])
def test_sync_siblings_that_do_not_listen_are_given_up_after_the_grace(any_saver, options, ended):
    @task
    def deaf():
        sleep(50)
        weft.call_id()
        add(1)

    @task
    def bad():
        raise Boom("x")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        deaf()
        bad().result()

    with takes(50):
        run = wf.submit(1, **options, **thread(any_saver))
        with pytest.raises(Boom):
            run.result(5)
        assert list(run.events())[-1].time - EPOCH == ended
        assert [left.step for left in run.given_up] == ["deaf"]


def test_the_next_call_of_a_body_that_was_given_up_raises(any_saver):
    begun, gate, raised = threading.Event(), threading.Event(), []

    @task
    def deaf():
        begun.set()
        gate.wait(5)
        try:
            add(1)
        except BaseException as error:
            raised.append(error)
            raise

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        deaf()
        assert begun.wait(3)
        raise Boom("x")

    with nothing_left():
        with pytest.raises(Boom):
            wf.invoke(1, grace=0.02, **thread(any_saver))
        gate.set()
        eventually(lambda: bool(raised))
    assert not isinstance(raised[0], Exception)  # no `except Exception` may swallow it


def test_a_failed_body_does_not_start_what_was_queued(any_saver):
    ran = []

    @task
    def t(i):
        ran.append((i, clock.now))
        sleep(1)
        if i == 0:
            raise Boom("x")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        futures = [t(i) for i in range(50)]
        for future in futures:
            future.result()

    with virtual_clock() as clock, nothing_left(), pytest.raises(Boom):
        wf.invoke(1, max_concurrent=2, **thread(any_saver))
    assert ran[:2] == [(0, 0), (1, 0)]
    assert len(ran) <= 4, "what had a slot before the body knew of the failure"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["sync task", "async task", "sync body", "async body"])
def test_exits_of_bodies_reach_the_caller_and_no_loop(any_saver, kind, where):
    @task
    def sync_task():
        raise kind("bye")

    @task
    async def async_task():
        raise kind("bye")

    @entrypoint(checkpointer=any_saver)
    def sync_wf(x):
        if where == "sync body":
            raise kind("bye")
        return (sync_task() if where == "sync task" else async_task()).result()

    @entrypoint(checkpointer=any_saver)
    async def async_wf(x):
        if where == "async body":
            raise kind("bye")
        return await (sync_task() if where == "sync task" else async_task())

    @entrypoint()
    def fine(x):
        return x

    with nothing_left():
        for n, wf in enumerate([sync_wf, async_wf]):
            if where.endswith("body") and where.startswith("sync") != (wf is sync_wf):
                continue
            with pytest.raises(kind):
                within(5, lambda: wf.invoke(1, **thread(any_saver, str(n))))
            assert within(5, lambda: fine.invoke(7)) == 7


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_exits_of_tasks_can_be_caught_by_an_async_body(kind):
    @task
    async def bad():
        raise kind("bye")

    @task
    def sync_bad():
        raise kind("bye")

    @entrypoint()
    async def wf(x):
        seen = 0
        for t in (bad, sync_bad):
            try:
                await t()
            except kind:
                seen += 1
        return seen

    assert asyncio.run(wf.ainvoke(1)) == 2


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit])
@pytest.mark.parametrize("where", ["sync task", "async task", "sync body", "async body"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_iteration_signals_raised_by_bodies_are_errors_and_hang_nothing(any_saver, kind, where, way):
    """asyncio refuses StopIteration as the exception of a future."""

    @task
    def sync_task():
        raise kind("x")

    @task
    async def async_task():
        raise kind("x")

    if where == "sync body":

        @entrypoint(checkpointer=any_saver)
        def wf(x):
            raise kind("x")
    elif where == "async body":

        @entrypoint(checkpointer=any_saver)
        async def wf(x):
            raise kind("x")
    else:

        @entrypoint(checkpointer=any_saver)
        async def wf(x):
            return await (sync_task() if where == "sync task" else async_task())

    def run():
        if way == "invoke":
            return wf.invoke(1, **thread(any_saver))
        return asyncio.run(asyncio.wait_for(wf.ainvoke(1, **thread(any_saver)), 2))

    with pytest.raises((RuntimeError, kind)) as caught:
        within(4, run)
    assert not isinstance(caught.value, AssertionError)


@pytest.mark.parametrize("where", ["sync task", "async task", "sync body", "async body"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_body_that_raises_cancelled_error_ends_its_call(any_saver, where, way):
    @task
    def sync_task():
        raise asyncio.CancelledError("by itself")

    @task
    async def async_task():
        raise asyncio.CancelledError("by itself")

    if where == "sync body":

        @entrypoint(checkpointer=any_saver)
        def wf(x):
            raise asyncio.CancelledError("by itself")
    elif where == "async body":

        @entrypoint(checkpointer=any_saver)
        async def wf(x):
            raise asyncio.CancelledError("by itself")
    else:

        @entrypoint(checkpointer=any_saver)
        async def wf(x):
            try:
                return await (sync_task() if where == "sync task" else async_task())
            except asyncio.CancelledError:
                return "caught"

    def run():
        if way == "invoke":
            return wf.invoke(1, **thread(any_saver))
        return asyncio.run(wf.ainvoke(1, **thread(any_saver)))

    with nothing_left():
        if where.endswith("body"):
            with pytest.raises(asyncio.CancelledError):
                within(4, run)
        else:
            assert within(4, run) == "caught"


# What users' hooks do wrong


@pytest.mark.parametrize("is_async", [False, True])
def test_a_key_function_that_raises_fails_its_call_and_hangs_nothing(tmp_path, is_async):
    def key(x):
        raise Boom("key")

    @task(key=key)
    def t(x):
        return x

    saver = InMemorySaver()
    if is_async:

        @entrypoint(checkpointer=saver)
        async def wf(x):
            try:
                return await t(x)
            except Boom:
                return "caught", await aadd(x, 1)
    else:

        @entrypoint(checkpointer=saver)
        def wf(x):
            try:
                return t(x).result()
            except Boom:
                return "caught", add(x, 1).result()

    with nothing_left():
        assert within(4, lambda: wf.invoke(1, thread_id="t")) == ("caught", 2)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_retry_on_that_raises_fails_its_call_and_hangs_nothing(any_saver, is_async):
    def retry_on(error):
        raise Boom("retry_on")

    @task(retry_policy=weft.RetryPolicy(retry_on=retry_on))
    def t(x):
        raise ValueError("first")

    @task(retry_policy=weft.RetryPolicy(retry_on=retry_on))
    async def at(x):
        raise ValueError("first")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return (at if is_async else t)(x).result()

    with nothing_left(), pytest.raises((Boom, ValueError)):
        within(4, lambda: wf.invoke(1, **thread(any_saver)))


@pytest.mark.parametrize("where", ["key", "get", "set"])
def test_a_cache_that_raises_does_not_hang_the_run(any_saver, where):
    class Bad:
        def get(self, namespace, key):
            if where == "get":
                raise Boom("cache")

        def set(self, namespace, key, value, *, ttl=None):
            if where == "set":
                raise Boom("cache")

        def clear(self, namespaces=None):
            pass

    def key(x):
        if where == "key":
            raise Boom("cache")
        return "k"

    @task(cache_policy=weft.CachePolicy(key_func=key))
    async def t(x):
        return x

    @entrypoint(cache=Bad(), checkpointer=any_saver)
    async def wf(x):
        try:
            return await t(x)
        except Boom:
            return x

    with nothing_left():
        assert within(4, lambda: wf.invoke(1, **thread(any_saver))) == 1


def test_a_done_callback_that_raises_hurts_nobody(any_saver, caplog):
    @entrypoint(checkpointer=any_saver)
    def wf(x):
        future = add(x, 1)
        future.add_done_callback(lambda _: 1 / 0)
        return future.result()

    assert within(4, lambda: wf.invoke(1, **thread(any_saver))) == 2


def test_a_warning_that_is_an_error_hangs_nothing():
    """Under ``-W error`` the warning about arguments that cannot be encoded is raised where the task is called."""

    class Opaque:
        pass

    @task
    async def t(x):
        return 1

    @entrypoint(checkpointer=InMemorySaver())
    async def wf(x):
        try:
            return await t(Opaque())
        except UserWarning:
            return "warned"

    with nothing_left():
        assert within(4, lambda: wf.invoke(1, thread_id="t")) == "warned"


# Being cancelled


def test_cancelling_an_asyncio_future_cancels_the_call_and_all_below_it(any_saver):
    log = []

    @task
    async def leaf():
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.5)
            log.append("leaf")

    @task
    async def parent():
        try:
            await leaf()
        finally:
            await asyncio.sleep(0.5)
            log.append("parent")

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        future = parent()
        await asyncio.sleep(1)
        assert future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        assert future.cancelled()
        assert log == ["leaf", "parent"]
        assert now() == 2
        return await aadd(x, 1)

    assert within(5, lambda: timed(lambda: wf.ainvoke(1, **thread(any_saver)))) == (2, 2)


@pytest.mark.parametrize("how", ["timeout", "wait_for"])
def test_asyncio_timeouts_cancel_calls(any_saver, how):
    log = []

    @task
    async def slow():
        try:
            await asyncio.sleep(30)
        finally:
            log.append("ended")

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        with pytest.raises(TimeoutError):
            if how == "timeout":
                async with asyncio.timeout(2):
                    await slow()
            else:
                await asyncio.wait_for(slow(), 2)
        assert log == ["ended"]
        assert now() == 2
        return await aadd(x, 1)

    assert within(5, lambda: timed(lambda: wf.ainvoke(1, **thread(any_saver)))) == (2, 2)


def test_cancelling_a_concurrent_future_cancels_the_call(any_saver):
    stopped = []

    @task
    def slow():
        while not weft.cancelled():
            sleep(0.25)
        stopped.append(clock.now)

    @task
    async def aslow():
        try:
            await asyncio.sleep(30)
        finally:
            stopped.append(now())

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        one, two = slow(), aslow()
        sleep(1.125)
        assert one.cancel() and two.cancel()
        assert one.cancelled() and one.done()
        with pytest.raises(concurrent.futures.CancelledError):
            two.result()
        ended = add(x, 1)
        assert ended.result() == 2
        assert not ended.cancel()
        return 2

    with takes(1.25) as clock:
        assert within(5, lambda: wf.invoke(1, **thread(any_saver))) == 2
        assert stopped == [1.125, 1.25]


def test_cancelling_a_call_that_waits_for_its_turn(any_saver):
    ran = []

    @task
    async def t(i):
        ran.append((i, now()))
        await asyncio.sleep(1)
        return i

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        futures = [t(i) for i in range(4)]
        await futures[0]
        futures[3].cancel()
        return [type(each).__name__ for each in await asyncio.gather(*futures, return_exceptions=True)]

    found = within(5, lambda: timed(lambda: wf.ainvoke(1, max_concurrent=1, **thread(any_saver))))
    assert found == (["int", "int", "int", "CancelledError"], 3)
    assert ran == [(0, 0), (1, 1), (2, 2)]


def test_cancelling_a_call_in_the_moment_of_asking(any_saver):
    """Its body has no task yet, or one that has never run."""
    ran = []

    @task
    async def t(i):
        ran.append(i)

    @task
    def st(i):
        ran.append(i)

    @entrypoint(checkpointer=any_saver)
    async def wf(rounds):
        for kind in (t, st):
            future = kind(rounds)
            for _ in range(rounds):
                await asyncio.sleep(0)
            future.cancel()
            try:
                await future
            except asyncio.CancelledError:
                pass
        return await aadd(rounds, 1)

    with nothing_left():
        for rounds in range(5):
            found = within(3, lambda: asyncio.run(wf.ainvoke(rounds, **thread(any_saver, str(rounds)))))
            assert found == rounds + 1


def test_a_wait_for_that_is_out_of_time_at_once(any_saver):
    @task
    async def t():
        await asyncio.sleep(30)

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        for limit in (0, 0.000001):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(t(), limit)
        return 1

    with nothing_left():
        assert within(3, lambda: asyncio.run(wf.ainvoke(1, **thread(any_saver)))) == 1


def test_a_task_that_fails_at_once_stops_siblings_that_have_not_begun(any_saver):
    @task
    async def bad():
        raise Boom("x")

    @task
    async def t(i):
        await asyncio.sleep(30)

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        t(1), t(2)
        first = bad()
        t(3)
        aadd(1), add(1)
        await first

    @entrypoint(checkpointer=any_saver)
    async def itself(x):
        t(1), add(1)
        raise Boom("x")

    with nothing_left():
        for n, each in enumerate([wf, itself]):
            with pytest.raises(Boom):
                within(3, lambda: each.invoke(1, **thread(any_saver, str(n))))


@pytest.mark.parametrize("body", ["sync", "async"])
def test_cancelling_ainvoke_ends_everything_before_it_returns(any_saver, body):
    log = []

    @task
    def slow():
        while not weft.cancelled():
            sleep(0.25)
        sleep(0.25)
        log.append("sync")

    @task
    async def aslow():
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.25)
            log.append("async")

    if body == "sync":

        @entrypoint(checkpointer=any_saver)
        def wf(x):
            concurrent.futures.wait([slow(), aslow()])
    else:

        @entrypoint(checkpointer=any_saver)
        async def wf(x):
            await asyncio.gather(slow(), aslow())

    async def main():
        running = asyncio.create_task(wf.ainvoke(1, **thread(any_saver)))
        await asyncio.sleep(1.125)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert log == ["async", "sync"]

    assert within(5, lambda: timed(main)) == (None, 1.5)


@pytest.mark.parametrize("pause", [0, 0.001, 0.005])
def test_cancelling_ainvoke_before_it_has_begun(any_saver, pause):
    ran = []

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        ran.append(x)
        await asyncio.sleep(30)

    @entrypoint(checkpointer=any_saver)
    async def quick(x):
        return x

    async def main():
        running = asyncio.create_task(wf.ainvoke(1, **thread(any_saver)))
        await asyncio.sleep(pause)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return await quick.ainvoke(5, **thread(any_saver))  # the thread is free again

    with nothing_left():
        assert within(5, lambda: asyncio.run(main())) == 5


def test_a_timeout_round_ainvoke(any_saver):
    @task
    def slow():
        while not weft.cancelled():
            sleep(0.5)

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        await slow()

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.25):
                await wf.ainvoke(1, **thread(any_saver))

    assert within(5, lambda: timed(main)) == (None, 5.5)


def test_a_body_that_swallows_its_cancellation_is_still_ended(any_saver):
    @task
    async def stubborn():
        for _ in range(3):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                pass

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        stubborn()
        await asyncio.sleep(1)
        raise Boom("x")

    with takes(1 + 2 * 2), pytest.raises(Boom):  # cancelled three times, a grace apart
        within(5, lambda: wf.invoke(1, grace=2, **thread(any_saver)))


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
@pytest.mark.parametrize("body", ["sync", "async", "stream"])
def test_control_c_ends_everything_and_is_raised(any_saver, body):
    """The main thread runs the body, or waits for the loop that does."""
    log, begun = [], threading.Barrier(2)

    started = threading.Event()

    @task
    def slow():
        started.wait(5)
        begun.wait(5)
        while not weft.cancelled():
            time.sleep(0.002)
        log.append("sync")

    @task
    async def aslow():
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            log.append("async")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        concurrent.futures.wait([aslow(), slow()])

    @entrypoint(checkpointer=any_saver)
    async def awf(x):
        await asyncio.gather(aslow(), slow())

    def press():
        begun.wait(5)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    presser = threading.Thread(target=press)
    with nothing_left():
        presser.start()
        with pytest.raises(KeyboardInterrupt):
            if body == "stream":
                list(wf.stream(1, **thread(any_saver)))
            else:
                (wf if body == "sync" else awf).invoke(1, **thread(any_saver))
        presser.join()
        assert sorted(log) == ["async", "sync"]
    if any_saver is not None:
        assert any_saver.runs(thread_id="t")[0].status.value == "cancelled"


# What can be a task


class Thing:
    def __init__(self, base):
        self.base = base

    def plain(self, x):
        return self.base + x

    async def aplain(self, x):
        return self.base + x

    @task
    def declared(self, x):
        return self.base + x

    @task
    async def adeclared(self, x):
        return self.base + x

    @staticmethod
    def static(x):
        return x

    @classmethod
    def klass(cls, x):
        return cls.__name__, x

    def __call__(self, x):
        return self.base * x


class AsyncThing:
    async def __call__(self, x):
        return x + 1


def test_all_that_can_be_called_can_be_a_task(any_saver):
    thing = Thing(10)
    tasks = [
        task(thing.plain),
        task(thing.aplain),
        thing.declared,
        thing.adeclared,
        task(Thing.static),
        task(Thing.klass),
        task(thing),
        task(AsyncThing()),
        task(functools.partial(thing.plain)),
        task(functools.partial(thing.aplain)),
        task(lambda x: x),
        task(name="named")(lambda x: -x),
        task(abs),
        task(functools.partial(pow, 2)),
    ]

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return [f.result() for f in [t(x) for t in tasks]]

    @entrypoint(checkpointer=any_saver)
    async def awf(x):
        return await asyncio.gather(*[t(x) for t in tasks])

    expected = [11, 11, 11, 11, 1, ("Thing", 1), 10, 2, 11, 11, 1, -1, 1, 2]
    assert within(5, lambda: wf.invoke(1, **thread(any_saver))) == expected
    assert within(5, lambda: awf.invoke(1, **thread(any_saver, "t2"))) == expected
    assert [t.__name__ for t in tasks] == [
        "plain",
        "aplain",
        "declared",
        "adeclared",
        "static",
        "klass",
        "Thing",
        "AsyncThing",
        "plain",
        "aplain",
        "<lambda>",
        "named",
        "abs",
        "pow",
    ]


def test_methods_of_two_objects_do_not_share_a_task():
    one, two = Thing(1), Thing(2)

    @entrypoint()
    def wf(x):
        return one.declared(x).result(), two.declared(x).result()

    assert wf.invoke(10) == (11, 12)


def test_entrypoints_of_methods_partials_and_lambdas():
    thing = Thing(10)
    assert entrypoint()(thing.plain).invoke(1) == 11
    assert entrypoint()(functools.partial(thing.plain)).invoke(1) == 11
    assert entrypoint()(lambda x: x).invoke(1) == 1
    assert entrypoint()(thing).invoke(2) == 20
    assert asyncio.run(entrypoint()(AsyncThing()).ainvoke(1)) == 2


def test_a_task_keeps_what_its_function_says_of_itself():
    @task(name="other")
    def documented(x: int) -> int:
        """What it does."""
        return x

    assert documented.__doc__ == "What it does."
    assert documented.__wrapped__(3) == 3
    assert documented.func(3) == 3
    assert documented.__name__ == "other"
    assert documented.func.__name__ == "documented"  # LangGraph renames the function
    assert repr(documented) == "<weft.task 'other'>"


def test_a_task_can_be_run_by_itself(any_saver):
    options = {"checkpointer": any_saver, **thread(any_saver)}
    assert add.invoke(1, **options) == 1
    assert asyncio.run(aadd.ainvoke(1)) == 1


def test_arguments_of_tasks_are_ordinary(any_saver):
    @task
    def t(a, /, b, *rest, c, d=4, **more):
        return a, b, rest, c, d, more

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return t(1, 2, 3, c=5, e=6).result()

    assert wf.invoke(0, **thread(any_saver)) == (1, 2, (3,), 5, 4, {"e": 6})


def test_wrong_arguments_of_a_task_are_a_type_error(any_saver):
    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return add(1, 2, 3).result()

    with pytest.raises(TypeError, match="add"):
        within(4, lambda: wf.invoke(0, **thread(any_saver)))


def test_recursion_of_tasks(any_saver):
    @task
    def fib(n):
        if n < 2:
            return n
        one, two = fib(n - 1), fib(n - 2)
        return one.result() + two.result()

    @entrypoint(checkpointer=any_saver)
    def wf(n):
        return fib(n).result()

    with nothing_left():
        assert within(20, lambda: wf.invoke(8, max_concurrent=2, **thread(any_saver))) == 21


# Limits


@pytest.mark.parametrize("spelling", ["max_concurrent", "max_concurrency"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_width_is_exact_and_nesting_never_blocks(any_saver, spelling, is_async):
    lock, at_work, most = threading.Lock(), 0, 0

    def enter():
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)

    def leave():
        nonlocal at_work
        with lock:
            at_work -= 1

    @task
    def leaf(i, j):
        enter()
        sleep(1)
        leave()
        return j

    @task
    async def aleaf(i, j):
        enter()
        await asyncio.sleep(1)
        leave()
        return j

    @task
    def parent(i):
        return sum(f.result() for f in concurrent.futures.wait([leaf(i, j) for j in range(3)]).done)

    @task
    async def aparent(i):
        return sum(await asyncio.gather(*[aleaf(i, j) for j in range(3)]))

    @entrypoint(checkpointer=any_saver)
    async def wf(n):
        return sum(await asyncio.gather(*[(aparent if is_async else parent)(i) for i in range(n)]))

    for width in (1, 2, 5):
        most = 0
        options = (
            {"max_concurrent": width}
            if spelling == "max_concurrent"
            else {"config": {"max_concurrency": width}}
        )
        with takes(-(-36 // width)):  # no slot is ever idle
            assert within(20, lambda: wf.invoke(12, **options, **thread(any_saver, str(width)))) == 36
        assert most == width
        assert at_work == 0


@pytest.mark.parametrize("wait", ["await", "gather", "wait", "as_completed", "wait_for", "shield"])
def test_however_an_async_parent_waits_it_gives_its_slot(any_saver, wait):
    @task
    async def leaf(x):
        await asyncio.sleep(0)
        return x

    @task
    async def parent(x):
        future = leaf(x)
        if wait == "await":
            return await future
        if wait == "gather":
            return (await asyncio.gather(future))[0]
        if wait == "wait":
            done, _ = await asyncio.wait([future])
            return done.pop().result()
        if wait == "wait_for":
            return await asyncio.wait_for(future, 5)
        if wait == "shield":
            return await asyncio.shield(future)
        (each,) = asyncio.as_completed([future])
        return await each

    @entrypoint(checkpointer=any_saver)
    async def wf(n):
        return await asyncio.gather(*[parent(i) for i in range(n)])

    assert within(5, lambda: wf.invoke(5, max_concurrent=1, **thread(any_saver))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("wait", ["result", "wait", "as_completed", "poll", "callback"])
def test_however_a_sync_parent_waits_it_gives_its_slot(any_saver, wait):
    @task
    def parent(x):
        future = add(x)
        if wait == "result":
            return future.result()
        if wait == "wait":
            return concurrent.futures.wait([future]).done.pop().result()
        if wait == "poll":
            while not future.done():
                time.sleep(0.001)
            return future.result()
        if wait == "callback":
            called = threading.Event()
            future.add_done_callback(lambda _: called.set())
            assert called.wait(3)
            return future.result()
        return next(concurrent.futures.as_completed([future])).result()

    @entrypoint(checkpointer=any_saver)
    def wf(n):
        return [f.result() for f in [parent(i) for i in range(n)]]

    assert within(10, lambda: wf.invoke(5, max_concurrent=1, **thread(any_saver))) == [0, 1, 2, 3, 4]


def test_slots_come_back_after_failures_timeouts_and_cancels(any_saver):
    @task(timeout=2)
    async def slow():
        await asyncio.sleep(30)

    @task(timeout=2)
    def deaf():
        sleep(6)

    @task
    def bad():
        raise Boom("x")

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        for t in (slow, deaf, bad):
            with pytest.raises((Boom, TimeoutError)):
                await t()
        cancelled = slow()
        await asyncio.sleep(0)
        cancelled.cancel()
        return await asyncio.gather(*[aadd(i) for i in range(5)]), now()

    with takes(8):
        found = within(5, lambda: wf.invoke(1, max_concurrent=1, **thread(any_saver)))
        assert found == ([0, 1, 2, 3, 4], 4)


# Context variables

VAR: contextvars.ContextVar[str] = contextvars.ContextVar("VAR", default="unset")


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "invoke of async"])
def test_context_variables_flow_in_and_do_not_leak_out(any_saver, way):
    @task
    def read_and_set():
        seen = VAR.get()
        VAR.set("task")
        return seen

    @task
    async def aread_and_set():
        seen = VAR.get()
        VAR.set("atask")
        await asyncio.sleep(0)
        return seen, VAR.get()

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        seen = VAR.get()
        VAR.set("body")
        inside = read_and_set().result(), aread_and_set().result()
        return seen, *inside, VAR.get()

    @entrypoint(checkpointer=any_saver)
    async def awf(x):
        seen = VAR.get()
        VAR.set("body")
        inside = await read_and_set(), await aread_and_set()
        return seen, *inside, VAR.get()

    VAR.set("outside")
    expected = ("outside", "body", ("body", "atask"), "body")

    async def main():
        found = await awf.ainvoke(1, **thread(any_saver))
        return found, VAR.get()

    if way == "invoke":
        assert wf.invoke(1, **thread(any_saver)) == expected
    elif way == "invoke of async":
        assert awf.invoke(1, **thread(any_saver)) == expected
    else:
        assert asyncio.run(main()) == (expected, "outside")
    assert VAR.get() == "outside"


@pytest.mark.parametrize("is_async", [False, True])
def test_each_attempt_has_the_context_of_the_asking(any_saver, is_async):
    seen = []

    def flaky():
        seen.append(VAR.get())
        VAR.set("dirty")
        if len(seen) < 3:
            raise Boom("x")

    async def aflaky():
        flaky()

    policy = weft.RetryPolicy(initial_interval=0, jitter=False, retry_on=Boom)
    t = task(retry_policy=policy)(aflaky if is_async else flaky)

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        VAR.set("body")
        await t()

    wf.invoke(1, max_concurrent=1, **thread(any_saver))
    assert seen == ["body"] * 3


# What a user holds after a run


def test_a_thousand_tasks_leave_nothing(any_saver):
    @entrypoint(checkpointer=any_saver)
    async def wf(n):
        return sum(await asyncio.gather(*[aadd(i) for i in range(n)]))

    with nothing_left():
        assert wf.invoke(1000, **thread(any_saver)) == sum(range(1000))


def test_a_body_cannot_ask_after_it_has_ended(any_saver):
    """Something that it left running would be a call of nobody."""
    seen = []

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        async def later():
            await asyncio.sleep(2)
            try:
                aadd(1)
            except BaseException as error:
                seen.append(error)

        seen.append(asyncio.create_task(later()))
        return 1

    async def main():
        assert await wf.ainvoke(1, **thread(any_saver)) == 1
        assert now() == 0
        await seen[0]

    assert timed(main) == (None, 2)
    assert isinstance(seen[1], UsageError)


def test_unstorable_results_are_refused_with_the_path(any_saver):
    if any_saver is None:
        return

    @task
    def bad():
        return {"items": [1, {"client": object()}]}

    @task
    async def abad():
        return {"items": [1, {"client": object()}]}

    @entrypoint(checkpointer=any_saver)
    def wf(which):
        return (bad if which else abad)().result()

    @entrypoint(checkpointer=any_saver)
    def itself(x):
        return [threading.Lock()]

    for which in (0, 1):
        with pytest.raises(UnstorableError, match=r"result\['items'\]\[1\]\['client'\]"):
            wf.invoke(which, thread_id=str(which))
    with pytest.raises(TypeError, match=r"result\[0\]"):
        itself.invoke(1, thread_id="x")
    with pytest.raises(UnstorableError, match="input"):
        itself.invoke(object(), thread_id="y")
    assert itself.get_state(thread_id="x").next == ("itself",)


def test_an_unstorable_result_can_be_caught(any_saver):
    if any_saver is None:
        return

    @task
    def bad():
        return object()

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        try:
            return bad().result()
        except TypeError:
            return add(x, 1).result()

    assert wf.invoke(1, thread_id="t") == 2


def test_mapping_like_configs_are_accepted():
    class Config(Mapping):
        def __init__(self, **kw):
            self.kw = kw

        def __getitem__(self, key):
            return self.kw[key]

        def __iter__(self):
            return iter(self.kw)

        def __len__(self):
            return len(self.kw)

    @entrypoint(checkpointer=InMemorySaver())
    def wf(x, config):
        return config["configurable"]["thread_id"]

    assert wf.invoke(1, Config(configurable={"thread_id": 5})) == "5"


def test_what_is_injected_is_no_part_of_an_input():
    @task
    def noted(x: int, writer: weft.StreamWriter, *, config: weft.RunnableConfig) -> int:
        writer(x)
        return x + len(config["tags"])

    assert noted.invoke(3) == 3
    assert list(noted.stream(3, stream_mode="custom")) == [3]
    assert weft.map(noted).invoke([1, 2]) == [1, 2]
