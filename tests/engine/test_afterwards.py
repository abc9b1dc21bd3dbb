"""A run that is over leaves nothing to the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref

import pytest

import weft
from weft import AsyncNode, AsyncParallelBatchNode, Flow, Sequence, node, parallel
from weft.engine.context import current


class Holder:
    """Something of the user's that a run has held."""

    run = None


async def note(holder):
    holder.run = weakref.ref(current.get().run)
    return holder


class Reads(AsyncNode):
    async def prep_async(self, shared):
        return shared["holder"]

    async def exec_async(self, holder):
        await note(holder)


class Items(AsyncParallelBatchNode):
    async def prep_async(self, shared):
        return [shared["holder"]] * 3

    async def exec_async(self, holder):
        await note(holder)


def flow_of(*nodes):
    for one, following in itertools.pairwise(nodes):
        one >> following
    return Flow(nodes[0])


STEP = node("step")(note)

RUNS = {
    "task": lambda: weft.entrypoint()(note).ainvoke,
    "sequence": lambda: Sequence(STEP, STEP).ainvoke,
    "parallel": lambda: parallel(STEP, Sequence(note, note, name="two")).ainvoke,
    "map": lambda: lambda holder: weft.amap(STEP, [holder] * 3),
    "flow": lambda: lambda holder: flow_of(Reads(), Reads(), Items()).ainvoke({"holder": holder}),
    "batch": lambda: lambda holder: Items().ainvoke({"holder": holder}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_over_is_freed_at_once(name):
    invoke = RUNS[name]()

    async def main():
        holder = Holder()
        await invoke(holder)
        await asyncio.sleep(0)
        return holder.run()

    asyncio.run(main())  # what is kept from one run to the next is made
    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(main()) is None
    finally:
        gc.enable()
