"""Ray, on this machine: https://docs.ray.io/en/latest/ray-core/tasks.html"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from workloads import Job, Once, cores

PACKAGES = ("ray",)
IMPORT = "import ray"
UNSUPPORTED = {
    "durable": "its tasks are not recorded (Ray Workflows is no longer part of it)",
    "memory": "bodies run in other processes",
    "wait": "its tasks are sync; async bodies are for actors",
    "threads": "a task has a process, not a thread",
}


async def _remote(job: Job) -> Any:
    ray.init(num_cpus=cores(), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    job.stack.callback(ray.shutdown)

    @ray.remote
    def step(i: int) -> int:
        return i + 1

    return step


async def chain(job: Job) -> Once:
    step = await _remote(job)

    async def once() -> Any:
        value: Any = 0
        for _ in range(job.size):
            value = step.remote(value)
        return await asyncio.to_thread(ray.get, value)

    return once


async def block(job: Job) -> Once:
    step = await _remote(job)

    async def once() -> Any:
        return await asyncio.to_thread(ray.get, [step.remote(i) for i in range(job.size)])

    return once
