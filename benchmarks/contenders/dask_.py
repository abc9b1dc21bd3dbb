"""Dask, a cluster in this process: https://docs.dask.org/en/stable/futures.html"""

from __future__ import annotations

from typing import Any

from distributed import Client, LocalCluster
from workloads import Job, Once

PACKAGES = ("distributed",)
IMPORT = "from distributed import Client"
UNSUPPORTED = {
    "durable": "it records nothing that outlives its scheduler",
    "memory": "bodies are sent to workers, and cannot wait for an event of the caller",
}


async def _client(job: Job) -> Any:
    cluster = await job.stack.enter_async_context(
        LocalCluster(
            n_workers=1,
            threads_per_worker=job.width or 2,
            processes=False,
            dashboard_address=None,
            asynchronous=True,
        )
    )
    return await job.stack.enter_async_context(Client(cluster, asynchronous=True))


async def chain(job: Job) -> Once:
    client = await _client(job)

    async def once() -> Any:
        future: Any = 0
        for _ in range(job.size):
            future = client.submit(job.body, future, pure=False)
        return await future

    return once


async def block(job: Job) -> Once:
    client = await _client(job)

    async def once() -> Any:
        return await client.gather(client.map(job.body, range(job.size), pure=False))

    return once


threads = block
