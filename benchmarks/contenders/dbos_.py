"""DBOS, on SQLite: https://docs.dbos.dev/python/tutorials/workflow-tutorial"""

from __future__ import annotations

import asyncio
from typing import Any

from dbos import DBOS, DBOSConfig
from workloads import Job, Once, throttled

PACKAGES = ("dbos",)
IMPORT = "from dbos import DBOS, DBOSConfig"

#: There is no run of it without a database.
ALWAYS_DURABLE = True


def _launch(job: Job) -> None:
    config: DBOSConfig = {
        "name": "benchmark",
        "system_database_url": f"sqlite:///{job.database}",
        "log_level": "ERROR",
        "application_version": "1",
    }
    DBOS(config=config)
    DBOS.launch()
    job.stack.callback(DBOS.destroy)


async def chain(job: Job) -> Once:
    @DBOS.step()
    async def step(x: int) -> int:
        return int(await job.body(x))

    @DBOS.workflow()
    async def workflow(size: int) -> int:
        value = 0
        for _ in range(size):
            value = await step(value)
        return value

    _launch(job)
    return lambda: workflow(job.size)


async def block(job: Job) -> Once:
    """Steps as tasks, started in a fixed order, as its page on async says; for a width, a semaphore."""
    body = throttled(job)

    @DBOS.step()
    async def step(i: int) -> int:
        return int(await body(i))

    @DBOS.workflow()
    async def workflow(size: int) -> list[int]:
        return list(await asyncio.gather(*[asyncio.create_task(step(i)) for i in range(size)]))

    _launch(job)
    return lambda: workflow(job.size)


async def threads(job: Job) -> Once:
    """Sync steps in threads, for which a queue is its way: a workflow an item, so many at once."""

    @DBOS.step()
    def step(i: int) -> int:
        return int(job.body(i))

    @DBOS.workflow()
    def item(i: int) -> int:
        return step(i)

    @DBOS.workflow()
    def workflow(size: int) -> list[int]:
        handles = [DBOS.enqueue_workflow("items", item, i) for i in range(size)]
        return [handle.get_result() for handle in handles]

    _launch(job)
    await asyncio.to_thread(DBOS.register_queue, "items", concurrency=job.width, polling_interval_sec=0.01)

    async def once() -> Any:
        return await asyncio.to_thread(workflow, job.size)

    return once
