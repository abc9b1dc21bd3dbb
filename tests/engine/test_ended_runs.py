"""A run that has ended is gone: nothing of it waits for the garbage collector."""

import asyncio
import gc
from contextlib import suppress

import pytest

import weft
from weft import AsyncFlow, AsyncNode, AsyncParallelBatchNode, Graph, Sequence, entrypoint, node, task
from weft.engine.call import Call
from weft.engine.execution import Execution


async def double(x):
    return 2 * x


@entrypoint()
async def functional(x):
    return await asyncio.gather(*[task(double)(x) for _ in range(3)])


@entrypoint()
async def failing(x):
    await task(double)(x)
    raise ValueError(x)


@entrypoint()
def in_a_thread(x):
    return [task(double)(x).result() for _ in range(3)]


def graph():
    found = Graph()
    for name, options in {"a": {"start": True}, "b": {}, "c": {"end": True}}.items():
        found.add_node(node(name=name, **options)(one_more))
    return found.add_edge("a", "b").add_edge("b", "c").compile()


async def one_more(x):
    return {"x": x + 1}


class Items(AsyncParallelBatchNode):
    async def prep_async(self, shared):
        return range(3)

    async def exec_async(self, item):
        return item

    async def post_async(self, shared, items, found):
        shared["found"] = found


class Last(AsyncNode):
    async def exec_async(self, item):
        return item

    async def exec_fallback_async(self, item, error):
        return None


def flow():
    first = Items()
    first >> Last()
    return AsyncFlow(first)


WAYS = {
    "functional": lambda **options: functional.ainvoke(1, **options),
    "failing": lambda **options: failing.ainvoke(1, **options),
    "in a thread": lambda **options: in_a_thread.ainvoke(1, **options),
    "graph": lambda **options: graph().execute({"x": 1}, **options),
    "compose": lambda **options: Sequence(weft.parallel(double, one_more), len).ainvoke(1, **options),
    "map": lambda **options: weft.amap(node("double")(double), range(3), **options),
    "batch": lambda **options: flow().ainvoke({}, **options),
}


@pytest.fixture
def no_search():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left():
    return [each for each in gc.get_objects() if issubclass(type(each), Execution | Call)]


@pytest.mark.parametrize("store", ["none", "memory", "sqlite"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("no_search")
def test_a_run_that_has_ended_is_freed_at_once(tmp_path, way, store):
    kept = {"memory": weft.InMemorySaver, "sqlite": lambda: weft.SqliteSaver(tmp_path / "runs.db")}
    options = {"checkpointer": kept[store](), "run_id": "r"} if store in kept else {}

    async def main():
        before = left()
        with suppress(ValueError):
            await WAYS[way](**options)
        for _ in range(200):  # a worker thread, or the journal's, may just be letting go of it
            if len(left()) == len(before):
                return []
            await asyncio.sleep(0.01)
        return [each for each in left() if not any(each is known for known in before)]

    assert asyncio.run(main()) == []
