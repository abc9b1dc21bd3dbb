"""Weft, the functional style: an entrypoint that calls tasks."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from typing import Any

from workloads import Job, Once

from weft import SqliteSaver, entrypoint, task

PACKAGES = ("weft",)
IMPORT = "from weft import SqliteSaver, entrypoint, task"


def options(job: Job) -> dict[str, Any]:
    """What a run of a job is told."""
    found: dict[str, Any] = {} if job.width is None else {"max_concurrent": job.width}
    return found | ({"run_id": uuid.uuid4().hex} if job.database else {})


def saver(job: Job) -> SqliteSaver | None:
    return SqliteSaver(job.database) if job.database else None


async def chain(job: Job) -> Once:
    step = task(job.body)

    @entrypoint(checkpointer=saver(job))
    async def workflow(size: int) -> int:
        value = 0
        for _ in range(size):
            value = await step(value)
        return value

    return lambda: workflow.ainvoke(job.size, **options(job))


async def block(job: Job) -> Once:
    step = task(job.body)

    @entrypoint(checkpointer=saver(job))
    async def workflow(size: int) -> list[int]:
        return list(await asyncio.gather(*[step(i) for i in range(size)]))

    return lambda: workflow.ainvoke(job.size, **options(job))


threads = block


async def resume(job: Job) -> float:
    """Seconds to resume a fan-out of recorded calls."""
    assert job.database
    step, is_down = task(job.body), True

    def workflow() -> Any:
        @entrypoint(checkpointer=SqliteSaver(job.database))
        async def workflow(size: int) -> int:
            found = await asyncio.gather(*[step(i) for i in range(size)])
            if is_down:
                raise InterruptedError
            return len(found)

        return workflow

    for run_id in ("warm-up", "run"):
        with suppress(InterruptedError):
            await workflow().ainvoke(job.size, run_id=run_id)
    is_down = False
    await workflow().ainvoke(None, run_id="warm-up")
    resumed, begun = workflow(), time.perf_counter()
    assert await resumed.ainvoke(None, run_id="run") == job.size
    return time.perf_counter() - begun
