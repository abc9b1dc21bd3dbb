"""PocketFlow: https://the-pocket.github.io/PocketFlow/"""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pocketflow import AsyncFlow, AsyncNode, AsyncParallelBatchNode
from workloads import Job, Once, throttled

PACKAGES = ("pocketflow",)
IMPORT = "from pocketflow import AsyncFlow, AsyncNode, AsyncParallelBatchNode"
UNSUPPORTED = {"durable": "it records nothing"}


async def chain(job: Job) -> Once:
    class Step(AsyncNode):
        async def prep_async(self, shared: dict[str, int]) -> int:
            return shared["x"]

        async def exec_async(self, x: int) -> int:
            return int(await job.body(x))

        async def post_async(self, shared: dict[str, int], _: int, x: int) -> None:
            shared["x"] = x

    steps = [Step() for _ in range(job.size)]
    for one, following in itertools.pairwise(steps):
        one >> following
    flow = AsyncFlow(steps[0])

    async def once() -> int:
        shared = {"x": 0}
        await flow.run_async(shared)
        return shared["x"]

    return once


async def block(job: Job) -> Once:
    """It has no width: its documentation says to throttle with a semaphore."""
    body = throttled(job)

    class Items(AsyncParallelBatchNode):
        async def prep_async(self, shared: dict[str, Any]) -> range:
            return range(job.size)

        async def exec_async(self, i: int) -> int:
            return int(await body(i))

        async def post_async(self, shared: dict[str, Any], _: range, found: list[int]) -> None:
            shared["found"] = found

    items = Items()

    async def once() -> list[int]:
        shared: dict[str, Any] = {}
        await items.run_async(shared)
        return list(shared["found"])

    return once


async def threads(job: Job) -> Once:
    """A sync body would block the loop, so it is handed to a pool of threads by hand."""
    pool, loop = ThreadPoolExecutor(job.width), asyncio.get_running_loop()

    async def body(i: int) -> int:
        return int(await loop.run_in_executor(pool, job.body, i))

    return await block(replace(job, body=body, width=None))
