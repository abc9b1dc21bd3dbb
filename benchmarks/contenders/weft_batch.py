"""Weft, the batch style: nodes in a flow, and a batch node whose items are at work at the same time."""

from __future__ import annotations

import itertools
from typing import Any

from workloads import Job, Once

from contenders.weft_functional import options, saver
from weft import AsyncNode, AsyncParallelBatchNode, Flow, ParallelBatchNode

PACKAGES = ("weft",)
IMPORT = "from weft import AsyncNode, AsyncParallelBatchNode, Flow, SqliteSaver"


async def chain(job: Job) -> Once:
    class Step(AsyncNode):
        async def prep_async(self, shared: dict[str, int]) -> int:
            return shared["x"]

        async def exec_async(self, x: int) -> int:
            return int(await job.body(x))

        async def post_async(self, shared: dict[str, int], _: int, x: int) -> None:
            shared["x"] = x

    steps, store = [Step() for _ in range(job.size)], saver(job)
    for one, following in itertools.pairwise(steps):
        one >> following
    flow = Flow(steps[0])

    async def once() -> int:
        shared = {"x": 0}
        await flow.ainvoke(shared, checkpointer=store, **options(job))
        return shared["x"]

    return once


async def block(job: Job) -> Once:
    class Items(AsyncParallelBatchNode):
        async def prep_async(self, shared: dict[str, Any]) -> range:
            return range(job.size)

        async def exec_async(self, i: int) -> int:
            return int(await job.body(i))

        async def post_async(self, shared: dict[str, Any], _: range, found: list[int]) -> None:
            shared["found"] = found

    return _run(job, Items(**_width(job)))


async def threads(job: Job) -> Once:
    class Items(ParallelBatchNode):
        def prep(self, shared: dict[str, Any]) -> range:
            return range(job.size)

        def exec(self, i: int) -> int:
            return int(job.body(i))

        def post(self, shared: dict[str, Any], _: range, found: list[int]) -> None:
            shared["found"] = found

    return _run(job, Items(**_width(job)))


def _width(job: Job) -> dict[str, Any]:
    return {"max_concurrent": job.width} if job.width else {}


def _run(job: Job, items: Any) -> Once:
    store = saver(job)

    async def once() -> list[int]:
        shared: dict[str, Any] = {}
        run = {name: value for name, value in options(job).items() if name == "run_id"}
        await items.ainvoke(shared, checkpointer=store, **run)
        return list(shared["found"])

    return once
