"""Bare asyncio, a task each: what a library that names and cancels its steps cannot do without."""

from __future__ import annotations

import asyncio
import queue
import threading

from workloads import Job, Once

PACKAGES = ()
IMPORT = "import asyncio"
UNSUPPORTED = {"durable": "it records nothing"}


async def chain(job: Job) -> Once:
    async def once() -> int:
        value = 0
        for _ in range(job.size):
            value = await asyncio.create_task(job.body(value))
        return value

    return once


async def block(job: Job) -> Once:
    body = job.body
    if job.width is None or job.width >= job.size:
        return lambda: asyncio.gather(*[asyncio.create_task(body(i)) for i in range(job.size)])
    room = asyncio.Semaphore(job.width)

    async def branch(i: int) -> int:
        async with room:
            return await body(i)

    return lambda: asyncio.gather(*[asyncio.create_task(branch(i)) for i in range(job.size)])


async def threads(job: Job) -> Once:
    """Threads of one's own, that settle a future on the loop."""
    jobs: queue.SimpleQueue[tuple[asyncio.Future[int], int]] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()

    def work() -> None:
        while True:
            done, i = jobs.get()
            loop.call_soon_threadsafe(done.set_result, job.body(i))

    for _ in range(job.width or job.size):
        threading.Thread(target=work, daemon=True).start()

    async def once() -> list[int]:
        waiting = [loop.create_future() for _ in range(job.size)]
        for i, done in enumerate(waiting):
            jobs.put((done, i))
        return list(await asyncio.gather(*waiting))

    return once
