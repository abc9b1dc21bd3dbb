"""On a resume a recorded call is no more than its record, and still a call: it is seen, cancelled and told as one."""

from __future__ import annotations

import asyncio
import functools
import gc
import weakref
from dataclasses import dataclass

import pytest

from weft import InMemorySaver, entrypoint, task
from weft.engine import events
from weft.engine.context import current

WHOLE = 3


def in_a_loop(test):
    """Run an async test in a loop of its own."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


@dataclass
class Thing:
    number: int


@task
async def double(thing: Thing) -> int:
    return thing.number * 2


def a_workflow(store, body):
    """A workflow whose first run records some calls and fails, and whose second goes on with ``body``."""
    is_first = True

    @entrypoint(checkpointer=store)
    async def workflow(number: int):
        nonlocal is_first
        if is_first:
            is_first = False
            await asyncio.gather(*[double(Thing(n)) for n in range(number)])
            raise InterruptedError
        return await body(number)

    return workflow


async def resumed(body):
    workflow = a_workflow(InMemorySaver(), body)
    with pytest.raises(InterruptedError):
        await workflow.ainvoke(WHOLE, run_id="r")
    return await workflow.ainvoke(None, run_id="r")


@in_a_loop
async def test_its_arguments_are_not_kept():
    async def body(number):
        things = [Thing(n) for n in range(number)]
        futures = [double(thing) for thing in things]
        left = [weakref.ref(thing) for thing in things]
        del things
        gc.collect()
        return [each() for each in left], await asyncio.gather(*futures)

    assert await resumed(body) == ([None] * WHOLE, [0, 2, 4])


@in_a_loop
async def test_it_is_let_go_of_when_it_was_seen():
    async def body(number):
        futures = [double(Thing(n)) for n in range(number)]
        calls = [weakref.ref(future.call) for future in futures]
        await asyncio.gather(*futures)
        return [call() for call in calls]

    assert await resumed(body) == [None] * WHOLE


@in_a_loop
async def test_one_that_is_cancelled_before_it_is_seen_is_not_seen():
    async def body(number):
        futures = [double(Thing(n)) for n in range(number)]
        assert futures[1].cancel()
        return await asyncio.gather(*futures, return_exceptions=True)

    first, second, third = await resumed(body)
    assert (first, third) == (0, 4)
    assert isinstance(second, asyncio.CancelledError)


@in_a_loop
async def test_who_looks_on_from_the_middle_is_told_that_it_ended():
    told = []

    async def body(number):
        futures = [double(Thing(n)) for n in range(number)]
        call = current.get()
        call.run.observe(told.append)
        return await asyncio.gather(*futures)

    assert await resumed(body) == [0, 2, 4]
    ends = [event for event in told if isinstance(event, events.CallFinished) and event.step == "double"]
    assert [event.outcome.value for event in ends] == [0, 2, 4]
    assert all(event.recorded for event in ends)


@in_a_loop
async def test_a_body_that_is_stopped_while_they_wait_is_stopped():
    """The recorded calls have no body that could be stopped; the run ends all the same, and goes on later."""
    began = asyncio.Event()

    async def body(number):
        futures = [
            double(Thing(n)) for n in range(number - 1)
        ]  # the last is missing, so the batch waits for it
        began.set()
        return await asyncio.gather(*futures)

    workflow = a_workflow(InMemorySaver(), body)
    with pytest.raises(InterruptedError):
        await workflow.ainvoke(WHOLE, run_id="r")
    run = asyncio.ensure_future(workflow.ainvoke(None, run_id="r"))
    await began.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await workflow.ainvoke(None, run_id="r") == [0, 2]
