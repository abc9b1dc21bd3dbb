"""``submit`` and the handle that it gives."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time

import pytest
from leftovers import nothing_left, timed, within

import weft
from weft import Failed, Ok, UsageError, entrypoint, task
from weft.checkpoint.base import RecordKind, all_records
from weft.engine import events
from weft.testing import sleep


class Boom(Exception):
    pass


@task
def add(a, b=0):
    return a + b


def test_a_run_beside_sync_code(any_saver):
    gate = threading.Event()

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        gate.wait(5)
        return add(x, 1).result()

    run = wf.submit(1, thread_id="t")
    assert run.status == "running"
    with pytest.raises(TimeoutError):
        run.result(timeout=0.02)
    gate.set()
    assert run.result(timeout=5) == 2
    assert run.result() == 2
    assert run.status == "finished"
    assert run.id and run.id in repr(run)
    assert run.given_up == [] and run.questions == []


def test_a_run_beside_async_code(any_saver):
    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        await asyncio.sleep(10)
        return await add(x, 1)

    async def main():
        run = wf.submit(1, thread_id="t")
        with pytest.raises(UsageError, match="await"):
            run.result()
        with pytest.raises(UsageError, match="aevents"):
            list(run.events())
        assert await run == 2
        assert await run == 2
        assert run.result() == 2
        assert run.status == "finished"

    assert within(5, lambda: timed(main)) == (None, 10)


def test_a_run_of_our_own_loop_can_be_awaited(any_saver):
    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return add(x, 1).result()

    run = wf.submit(1, thread_id="t")

    async def main():
        return await run

    assert within(5, lambda: asyncio.run(main())) == 2


def test_a_failed_run(any_saver):
    error = Boom("x")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        raise error

    run = wf.submit(1, thread_id="t")
    for _ in range(2):
        with pytest.raises(Boom) as caught:
            run.result(5)
        assert caught.value is error
    assert run.status == "failed"

    async def main():
        with pytest.raises(Boom):
            await wf.submit(1, thread_id="u")

    asyncio.run(main())


def test_a_failed_run_that_nobody_asks_about_is_not_in_asyncios_log(any_saver, caplog):
    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        raise Boom("x")

    async def main():
        run = wf.submit(1, thread_id="t")
        assert run.status == "running"
        await asyncio.sleep(1)
        assert run.status == "failed"
        with pytest.raises(Boom):
            await run

    assert timed(main) == (None, 1)
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("where", ["sync", "async"])
def test_cancelling_a_run(any_saver, where):
    begun, stopped = threading.Event(), []

    @task
    def slow():
        begun.set()
        while not weft.cancelled():
            sleep(0.002)
        stopped.append("sync")

    @task
    async def aslow():
        try:
            await asyncio.sleep(30)
        finally:
            stopped.append("async")

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        await asyncio.gather(aslow(), slow())

    async def main():
        run = wf.submit(1, thread_id="t")
        await asyncio.sleep(1.001)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        return run

    def sync():
        run = wf.submit(1, thread_id="t")
        assert begun.wait(5)
        run.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            run.result(5)
        return run

    with nothing_left():
        if where == "async":
            run, seconds = within(5, lambda: timed(main))
            assert seconds == pytest.approx(1.002)
        else:
            run = within(5, sync)
        assert sorted(stopped) == ["async", "sync"]
        assert run.status == "cancelled"
        run.cancel()  # once more: nothing


@pytest.mark.parametrize("pause", [0, 0.0005, 0.002])
def test_cancelling_a_run_that_has_hardly_begun(any_saver, pause):
    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        await asyncio.sleep(30)

    @entrypoint(checkpointer=any_saver)
    def quick(x):
        return x

    with nothing_left():
        for _ in range(3):
            run = wf.submit(1, thread_id="t")
            time.sleep(pause)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                within(5, lambda: run.result(5))
        assert within(5, lambda: quick.invoke(1, thread_id="t")) == 1


def test_cancelling_and_a_resume(any_saver):
    if any_saver is None:
        return
    ran, begun = [], threading.Event()

    @task
    async def step(i):
        ran.append(i)
        if i == 2 and ran.count(2) == 1:
            begun.set()
            await asyncio.sleep(30)
        return i

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        return await step(1), await step(2)

    run = wf.submit(1, thread_id="t")
    assert begun.wait(5)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        run.result(5)
    assert wf.invoke(None, thread_id="t") == (1, 2)
    assert ran == [1, 2, 2]


def test_events_are_ordered_and_complete_whenever_they_are_asked_for(any_saver):
    @entrypoint(checkpointer=any_saver)
    def wf(x, writer):
        writer("mine")
        return add(x, 1).result()

    run = wf.submit(1, thread_id="t")
    during = within(5, lambda: list(run.events()))
    after = within(5, lambda: list(run.events()))
    assert during == after
    kinds = [type(event) for event in after]
    assert kinds[0] is events.RunStarted
    assert kinds[-1] is events.RunFinished
    assert {event.run_id for event in after} == {run.id}
    of_add = [type(e) for e in after if isinstance(e, events.CallEvent) and e.step == "add"]
    assert of_add == [events.CallAsked, events.CallStarted, events.CallFinished]
    assert [e.value for e in after if isinstance(e, events.UserEvent)] == ["mine"]
    times = [event.time for event in after]
    assert times == sorted(times)

    async def main():
        mine = wf.submit(1, thread_id="u")
        return [type(event) async for event in mine.aevents()]

    assert within(5, lambda: asyncio.run(main())) == kinds


def test_two_listeners_each_get_every_event_once(any_saver):
    gate = threading.Event()

    @entrypoint(checkpointer=any_saver)
    def wf(n):
        gate.wait(5)
        return [f.result() for f in [add(i) for i in range(n)]]

    run = wf.submit(50, thread_id="t")
    found = [[], []]

    def listen(which):
        found[which].extend(run.events())

    listeners = [threading.Thread(target=listen, args=(i,)) for i in range(2)]
    for each in listeners:
        each.start()
    gate.set()
    for each in listeners:
        each.join(5)
    assert found[0] == found[1] == list(run.events())
    assert len(found[0]) == len({id(event) for event in found[0]})


def test_outcomes_of_a_run(any_saver):
    @task
    def bad():
        raise Boom("x")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        first = add(x, 1).result()
        bad().exception()
        return first

    run = wf.submit(1, thread_id="t")
    assert run.result(5) == 2
    one, two = run.outcomes
    assert one == Ok(2)
    assert isinstance(two, Failed) and isinstance(two.error, Boom)
    assert one.get() == 2
    with pytest.raises(Boom):
        two.get()


def test_a_run_that_cannot_be_opened_fails(any_saver):
    if any_saver is None:
        return

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return x

    run = wf.submit(None, run_id="nope")
    with pytest.raises(weft.RunNotFoundError):
        within(5, lambda: run.result(5))
    assert run.status == "failed"
    assert isinstance(within(5, lambda: list(run.events()))[-1], events.RunFinished)


def test_answering_where_nothing_is_asked(any_saver):
    gate = threading.Event()

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        gate.wait(5)
        return x

    run = wf.submit(1, thread_id="t")
    with pytest.raises(weft.AnswerError):
        within(3, lambda: run.answer({"x": 1}))
    with pytest.raises(weft.AnswerError):
        within(3, run.answer)
    gate.set()
    assert run.result(5) == 1
    with pytest.raises(weft.AnswerError):
        within(3, lambda: run.answer({"x": 1}))


def test_a_given_up_body_is_listed(any_saver):
    gate = threading.Event()

    begun = threading.Event()

    @task
    def deaf():
        begun.set()
        gate.wait(5)

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        await deaf()

    with nothing_left():
        run = wf.submit(1, thread_id="t", grace=0.02)
        assert begun.wait(5)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            within(5, lambda: run.result(5))
        assert [(left.step, bool(left.reason), bool(left.call_id)) for left in run.given_up] == [
            ("deaf", True, True)
        ]
        gate.set()


def test_many_runs_at_once(any_saver):
    @task
    async def aadd(x):
        await asyncio.sleep(0)
        return x + 1

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        return sum(await asyncio.gather(*[aadd(x) for _ in range(5)]))

    async def main():
        return await asyncio.gather(*[wf.ainvoke(i, thread_id=str(i)) for i in range(30)])

    expected = [5 * (i + 1) for i in range(30)]
    with nothing_left():
        assert within(10, lambda: asyncio.run(main())) == expected
        runs = [wf.submit(i, thread_id=f"s{i}") for i in range(30)]
        assert [run.result(5) for run in runs] == expected


def test_a_call_asked_for_in_the_moment_of_cancelling(any_saver):
    """1. the loop is busy, 2. the run is cancelled, 3. the body, not knowing, asks for a call and waits for it."""
    blocked, go = threading.Event(), threading.Event()

    @task
    async def block():
        blocked.set()
        time.sleep(0.05)

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        block()
        assert go.wait(5)
        return add(x, 1).result()

    with nothing_left():
        run = wf.submit(1, thread_id="t")
        assert blocked.wait(5)
        begun = time.monotonic()
        run.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            within(5, lambda: run.result(5))
        assert time.monotonic() - begun < 0.5
        assert run.given_up == []


def test_that_a_failure_was_gone_on_from_is_recorded_once_and_not_in_every_life(saver):
    """Each time it would be waited for; a store that takes few commits a life would never come to an end."""
    lives = []

    @task
    def bad():
        raise KeyError("declined")

    @task
    def good(x):
        return x

    @entrypoint(checkpointer=saver)
    def wf(x):
        with contextlib.suppress(KeyError):
            bad().result()
        good(len(lives)).result()  # begins anew in each life, after the failure
        if len(lives) < 3:
            raise OSError("not yet")
        return x

    for _ in range(3):
        with pytest.raises(OSError, match="not yet"):
            wf.invoke(1 if not lives else None, run_id="r")
        lives.append(1)
    assert wf.invoke(None, run_id="r") == 1
    kinds = [record.kind for record in all_records(saver, "r")]
    assert kinds.count(RecordKind.WENT_ON) == 1
