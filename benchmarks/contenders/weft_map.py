"""Weft, `map`: one step for many items."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from workloads import Job, Once

import weft
from contenders.weft_functional import options, saver

PACKAGES = ("weft",)
IMPORT = "import weft; weft.map, weft.SqliteSaver"
UNSUPPORTED = {"chain": "its items do not follow each other: see compose"}

#: So many workers take the items; only they hold memory.
WORKERS = 100


async def block(job: Job) -> Once:
    step, store = weft.node("step")(job.body), saver(job)
    return lambda: weft.amap(step, range(job.size), checkpointer=store, **options(job))


threads = block


async def resume(job: Job) -> float:
    """Seconds to resume a map of recorded items and one that failed."""
    is_down = True

    async def body(i: int) -> int:
        if is_down and i == job.size:
            raise InterruptedError
        return int(await job.body(i))

    step = weft.node("step")(body)

    async def run(run_id: str) -> Any:
        store = weft.SqliteSaver(job.database)
        return await weft.amap(
            step, range(job.size + 1), checkpointer=store, run_id=run_id, max_concurrent=1000
        )

    for run_id in ("warm-up", "run"):
        with suppress(weft.ParallelExecutionError):
            await run(run_id)
    is_down = False
    await run("warm-up")
    begun = time.perf_counter()
    assert len(await run("run")) == job.size + 1
    return time.perf_counter() - begun
