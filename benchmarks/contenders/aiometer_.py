"""aiometer: https://github.com/florimondmanca/aiometer"""

from __future__ import annotations

import functools

import aiometer
import anyio.to_thread
from workloads import Job, Once

PACKAGES = ("aiometer",)
IMPORT = "import aiometer"
UNSUPPORTED = {
    "durable": "it records nothing",
    "chain": "it runs things beside each other, not one after the other",
}


async def block(job: Job) -> Once:
    async def once() -> list[int]:
        branches = [functools.partial(job.body, i) for i in range(job.size)]
        return list(await aiometer.run_all(branches, max_at_once=job.width))

    return once


async def threads(job: Job) -> Once:
    """Async functions only, so each hands its body to anyio's threads by itself."""
    limiter = anyio.CapacityLimiter(job.width or job.size)

    async def body(i: int) -> int:
        return int(await anyio.to_thread.run_sync(job.body, i, limiter=limiter))

    async def once() -> list[int]:
        branches = [functools.partial(body, i) for i in range(job.size)]
        return list(await aiometer.run_all(branches))

    return once
