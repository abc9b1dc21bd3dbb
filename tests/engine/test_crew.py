"""Bodies that never wait share a task; one that has waited has it to itself, and no context is ever shared."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import traceback
from collections import Counter
from contextvars import ContextVar

import pytest

import weft
from weft import AsyncParallelBatchNode, Sequence, node, parallel
from weft.engine import events
from weft.engine.context import current

seen: ContextVar[str] = ContextVar("seen", default="nothing")


def in_a_loop(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def tasks_of(found):
    """The body of a step that notes its task, after so many turns of the loop."""

    async def body(turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        found.append(asyncio.current_task())
        return turns

    return body


def test_bodies_that_never_wait_share_a_task():
    found = []
    in_a_loop(weft.amap(node("step")(tasks_of(found)), [0] * 10))
    assert len(found) == 10
    assert len(set(found)) == 1


@pytest.mark.parametrize("waits", [False, True])
def test_the_items_of_a_batch_node_share_a_task_unless_they_wait(waits):
    tasks, at_work, most = [], 0, 0

    class Items(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return range(20)

        async def exec_async(self, item):
            nonlocal at_work, most
            tasks.append(asyncio.current_task())
            at_work += 1
            most = max(most, at_work)
            if waits:
                await asyncio.sleep(0.01)
            at_work -= 1

    asyncio.run(Items().run_async({}))
    assert len(set(tasks)) == (20 if waits else 1)
    assert most == (20 if waits else 1)


def test_a_body_that_waits_has_its_task_to_itself():
    found = []
    in_a_loop(weft.amap(node("step")(tasks_of(found)), [1] * 10))
    assert len(set(found)) == 10


def test_what_comes_after_one_that_has_waited_has_another_task():
    found = []
    note = tasks_of(found)

    async def first(value):
        return await note(1)

    async def second(value):
        return await note(0)

    in_a_loop(Sequence(first, second).ainvoke(0))
    assert found[0] is not found[1]


def test_all_are_at_work_when_one_waits():
    width, here = 50, []

    async def body(i):
        here.append(i)
        async with asyncio.timeout(10):
            while len(here) < width:
                await asyncio.sleep(0)
        return i

    assert in_a_loop(weft.amap(node("step")(body), range(width), max_concurrent=width)) == list(range(width))


@pytest.mark.parametrize("waits", [False, True])
def test_each_body_has_a_context_of_its_own(waits):
    async def body(i):
        before = seen.get()
        seen.set(f"by {i}")
        if waits:
            await asyncio.sleep(0)
        assert seen.get() == f"by {i}"
        return before

    async def main():
        seen.set("outside")
        return await weft.amap(node("step")(body), range(5))

    assert in_a_loop(main()) == ["outside"] * 5


def test_a_body_that_cancels_its_own_task_does_not_hit_the_next():
    async def body(i):
        if i == 0:
            asyncio.current_task().cancel()
            return "has ended before it was hit"
        await asyncio.sleep(0)
        return i

    found = in_a_loop(weft.amap(node("step")(body), range(3)))
    assert found == ["has ended before it was hit", 1, 2]


def test_bodies_that_never_wait_leave_the_loop_its_turn():
    turns, done = [], []

    async def body(i):
        done.append(i)
        return i

    async def watch():
        while len(done) < 1000:
            turns.append(len(done))
            await asyncio.sleep(0)

    async def main():
        watching = asyncio.create_task(watch())
        await Sequence(*[node(f"step {i}")(body) for i in range(1000)]).ainvoke(0)
        await watching

    in_a_loop(main())
    assert len(set(turns)) >= 10


def test_no_body_begins_after_one_has_failed():
    begun = []

    async def body(i):
        begun.append(i)
        if i == 3:
            raise ValueError(i)

    async def main():
        with pytest.raises(weft.ParallelExecutionError):
            await weft.amap(node("step")(body), range(100))
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert all("wait_for" in repr(task) or "main" in repr(task) for task in in_a_loop(main()))
    assert begun == [0, 1, 2, 3]


def test_no_task_is_left_when_what_has_not_begun_is_stopped():
    async def main():
        run = weft.map(node("step")(tasks_of([])), max_concurrent=10).submit([0] * 10)
        run.cancel()  # when they are ready, and nobody has begun them
        with pytest.raises(asyncio.CancelledError):
            await run
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_what_waits_for_a_limit_begins_when_it_may():
    one = weft.Limit("one", concurrent=1)
    at_once = [0, 0]

    async def body(i):
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0)
        at_once[0] -= 1
        return i

    assert in_a_loop(weft.amap(node("step", limit=one)(body), range(5))) == list(range(5))
    assert at_once == [0, 1]


def test_an_attempt_after_another_begins_as_the_first_did():
    attempts = []

    async def body(i):
        attempts.append(i)
        if len(attempts) < 3:
            raise ConnectionError
        return i

    retry = weft.RetryPolicy(max_attempts=3, initial_interval=0.0, retry_on=ConnectionError)
    assert in_a_loop(weft.amap(node("step", retry=retry)(body), [7])) == [7]
    assert attempts == [7, 7, 7]


def test_a_body_is_cancelled_where_it_waits():
    ended = []

    async def waits(value):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("waits")

    async def fails(value):
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(weft.ParallelExecutionError):
        in_a_loop(parallel(waits, fails).ainvoke(0))
    assert ended == ["waits"]


def test_a_body_that_takes_its_cancel_back_does_not_hit_the_next():
    async def body(i):
        if i == 0:
            asyncio.current_task().cancel()
            asyncio.current_task().uncancel()
        else:
            await asyncio.sleep(0)
        return i

    assert in_a_loop(weft.amap(node("step")(body), range(3))) == [0, 1, 2]


def test_what_is_out_of_time_before_it_begins_never_begins():
    """Its end is not taken back by its turn, which comes later."""
    begun = []

    def step(i, **options):
        async def body(_):
            begun.append(i)
            time.sleep(0.002)
            return i

        return node(f"step {i}", **options)(body)

    slow, hurried = [step(i) for i in range(30)], [step(i, total=0.01) for i in range(30, 33)]
    found = in_a_loop(parallel(*slow, *hurried, step(33), on_error="collect").ainvoke(0))
    in_time = [isinstance(outcome, weft.Ok) for outcome in found.values()]
    assert in_time == [True] * 30 + [False] * 3 + [True]
    assert begun == [*range(30), 33]


def test_a_task_cancelled_from_outside_before_any_body_began_ends_the_run():
    async def main():
        mapping = asyncio.ensure_future(weft.amap(node("step")(tasks_of([])), [0] * 10))
        mine = {asyncio.current_task(), mapping}
        while not (others := asyncio.all_tasks() - mine):
            await asyncio.sleep(0)
        for task in others:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(mapping), 5)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_call_whose_task_was_cancelled_before_it_began_can_be_stopped():
    call = weft.task(tasks_of([]))

    @weft.entrypoint()
    async def workflow(_):
        before = asyncio.all_tasks()
        asked = call(0)
        for new in asyncio.all_tasks() - before:
            new.cancel()
        await asyncio.sleep(0)
        raise ValueError(asked)

    with pytest.raises(ValueError):
        in_a_loop(workflow.ainvoke(0))


def test_the_frames_of_a_body_that_has_waited_are_its_own():
    async def fails():
        await asyncio.sleep(0)
        raise ValueError("no")

    async def body(_):
        await asyncio.gather(fails())

    with pytest.raises(weft.ParallelExecutionError) as caught:
        in_a_loop(weft.amap(node("step")(body), [0]))
    frames = traceback.extract_tb(caught.value.failures[0].__traceback__)
    assert [frame.name for frame in frames] == ["body", "fails"]


def test_an_error_that_a_body_has_handled_is_not_held_while_it_waits():
    class Handled(Exception):
        pass

    async def fails():
        await asyncio.sleep(0)
        raise Handled

    async def body(_):
        with contextlib.suppress(Handled):
            await asyncio.ensure_future(fails())
        asyncio.get_running_loop().call_soon(look)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def look():
        gc.collect()  # what holds only itself is not held by us
        held.extend(each for each in gc.get_objects() if type(each) is Handled)
        has_looked.append(True)

    held, has_looked = [], []
    in_a_loop(weft.amap(node("step")(body), [0]))
    assert has_looked
    assert not held


def test_a_body_that_begins_after_somebody_looks_is_told_of():
    told = Counter()

    async def body(i):
        if i == 10:
            current.get().run.observe(lambda event: told.update([type(event)]))
        return i

    in_a_loop(weft.amap(node("step")(body), range(50)))
    assert told[events.CallStarted] == 39


# Blocks that give their calls when a hand has the time


def test_a_call_is_made_when_a_hand_can_begin_it():
    asked = []

    async def body(i):
        asked.append(current.get().parent.asked)

    in_a_loop(weft.amap(node("step")(body), range(100)))
    assert asked == list(range(1, 101))


@pytest.mark.parametrize("width", [1, 3])
def test_no_more_are_at_work_than_the_block_may_have(width):
    at_work = [0, 0]

    async def body(i):
        at_work[0] += 1
        at_work[1] = max(at_work)
        for _ in range(i % 3):
            await asyncio.sleep(0)
        at_work[0] -= 1
        return i

    found = in_a_loop(weft.amap(node("step")(body), range(30), max_concurrent=width))
    assert found == list(range(30))
    assert at_work == [0, width]


def test_a_long_block_lets_others_go_on_meanwhile():
    begun, seen = [], []

    async def item(i):
        begun.append(i)

    async def look(value):
        seen.append(len(begun))
        return value

    many = weft.map(node("item")(item), name="many")
    steps = Sequence(*[node(f"look {i}")(look) for i in range(5)], name="steps")
    in_a_loop(parallel(Sequence(lambda _: range(5000), many, name="first"), steps).ainvoke(0))
    assert seen[-1] < len(begun) == 5000


def test_an_item_that_cannot_become_a_call_fails_alone():
    async def body(a, b):
        return a + b

    async def main():
        return await weft.amap(node("step")(body), [(1, 2), (1,), (3, 4)], on_error="collect")

    first, second, third = in_a_loop(main())
    assert (first, third) == (weft.Ok(3), weft.Ok(7))
    assert isinstance(second.error, weft.InputError)


def test_what_had_not_begun_when_the_block_was_decided_never_does():
    begun = []

    async def body(i):
        begun.append(i)
        return i

    found = in_a_loop(weft.amap(node("step")(body), range(5), need=2))
    assert begun == [0, 1]
    assert found == [weft.Ok(0), weft.Ok(1), *[weft.NotStarted()] * 3]


def test_a_run_that_is_cancelled_by_a_body_begins_no_other_and_leaves_no_task():
    begun = []

    async def body(i):
        begun.append(i)
        if i == 3:
            current.get().run.cancel()
            await asyncio.sleep(60)

    async def main():
        with pytest.raises(asyncio.CancelledError):
            await weft.map(node("step")(body)).submit(range(100))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert begun == [0, 1, 2, 3]


def test_calls_of_a_body_end_with_it_though_it_has_not_waited():
    ended = []

    @weft.task
    async def inner(i):
        await asyncio.sleep(0)
        ended.append(i)

    async def body(i):
        inner(i)
        return i

    assert in_a_loop(weft.amap(node("step")(body), range(5))) == list(range(5))
    assert sorted(ended) == list(range(5))
