"""Prefect, with the server it starts for itself: https://docs.prefect.io/v3/how-to-guides/workflows/run-work-concurrently"""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import replace

# Settings are read when it is imported. Its database goes where nothing of the user is.
_home = tempfile.TemporaryDirectory()
os.environ.setdefault("PREFECT_HOME", _home.name)
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from prefect import flow, task  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402
from workloads import Job, Once, throttled  # noqa: E402

PACKAGES = ("prefect",)
IMPORT = "from prefect import flow, task"
UNSUPPORTED = {
    "durable": "results are stored where asked for, but a run is not resumed from them",
    "memory": "its branches wait for its server too",
}


async def chain(job: Job) -> Once:
    step = task(job.body)

    @flow
    async def workflow(size: int) -> int:
        value = 0
        for _ in range(size):
            value = await step(value)
        return value

    return lambda: workflow(job.size)


async def block(job: Job) -> Once:
    step = throttled(replace(job, body=task(job.body)))

    @flow
    async def workflow(size: int) -> list[int]:
        return list(await asyncio.gather(*[step(i) for i in range(size)]))

    return lambda: workflow(job.size)


async def threads(job: Job) -> Once:
    step = task(job.body)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=job.width or job.size))
    def workflow(size: int) -> list[int]:
        return list(step.map(range(size)).result())

    return lambda: asyncio.to_thread(workflow, job.size)
