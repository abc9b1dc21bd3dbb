"""Another loop than asyncio's own: what a caller brings is used as it is."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

import weft
from weft import AsyncFlow, AsyncNode, Graph, NodeTimeoutError, SqliteSaver, node, parallel

uvloop = pytest.importorskip("uvloop")


def on_uvloop(coroutine):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert type(runner.get_loop()).__module__.startswith("uvloop")
        return runner.run(coroutine)


@weft.task
async def add(x, y):
    await asyncio.sleep(0)
    return x + y


@weft.task
def add_in_thread(x, y):
    assert threading.current_thread() is not threading.main_thread()
    return x + y


@weft.entrypoint()
async def total(n):
    found = await asyncio.gather(*(add(i, 1) for i in range(n)), *(add_in_thread(i, 1) for i in range(n)))
    return sum(found)


def test_tasks_on_the_loop_and_in_threads():
    assert on_uvloop(total.ainvoke(100)) == 2 * sum(range(1, 101))


def test_what_is_recorded_is_there_for_the_next_run(db):
    tries = []

    @weft.entrypoint()
    async def workflow(n):
        found = await asyncio.gather(*(add(i, 1) for i in range(n)))
        tries.append(n)
        if len(tries) == 1:
            raise ValueError("first")
        return found

    async def main():
        with SqliteSaver(db) as saver:
            with pytest.raises(ValueError, match="first"):
                await workflow.ainvoke(50, checkpointer=saver, run_id="r")
            run = workflow.submit(None, checkpointer=saver, run_id="r")
            return await run, [event async for event in run.aevents()]

    found, events = on_uvloop(main())
    assert found == list(range(1, 51))
    assert sum(getattr(event, "recorded", False) is True for event in events) == 50


def test_blocks_maps_flows_and_graphs():
    @node
    async def double(value):
        await asyncio.sleep(0.001)
        return value * 2

    class Note(AsyncNode):
        async def exec_async(self, prep_res):
            await asyncio.sleep(0)
            return 1

        async def post_async(self, shared, prep_res, exec_res):
            shared["noted"] = exec_res

    @node(start=True)
    async def begin(value):
        return {"value": value + 1}

    @node(end=True)
    async def end(value):
        return {"result": value * 10}

    async def main():
        shared = {}
        await AsyncFlow(start=Note()).run_async(shared)
        graph = Graph().add_node(begin).add_node(end).add_edge(begin, end)
        return (
            await weft.amap(double, range(200), max_concurrent=20),
            await parallel(double, add_one).ainvoke(1),
            (await graph.ainvoke({"value": 1}))["result"],
            shared,
        )

    async def add_one(value):
        return value + 1

    assert on_uvloop(main()) == ([2 * i for i in range(200)], {"double": 2, "add_one": 2}, 20, {"noted": 1})


def test_a_timeout_and_a_cancellation():
    ended = []

    @weft.task(timeout=0.02)
    async def slow():
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("slow")

    @weft.entrypoint()
    async def out_of_time(_):
        await slow()

    @weft.entrypoint()
    async def waits(_):
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("waits")

    async def main():
        with pytest.raises(NodeTimeoutError):
            await out_of_time.ainvoke(None)
        run = asyncio.ensure_future(waits.ainvoke(None))
        await asyncio.sleep(0.02)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    began = time.monotonic()
    on_uvloop(main())
    assert ended == ["slow", "waits"]
    assert time.monotonic() - began < 10
