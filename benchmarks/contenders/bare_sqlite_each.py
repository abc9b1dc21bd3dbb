"""Bare SQLite with a commit for each branch, on the spot: what a fan-out costs without grouping."""

from __future__ import annotations

import asyncio

from grouped_sqlite import open_sqlite
from workloads import Job, Once

PACKAGES = ()
UNSUPPORTED = dict.fromkeys(
    ("chain", "fanout", "wait", "memory", "runs", "durable-chain", "durable-runs"), "see sqlite"
)


async def block(job: Job) -> Once:
    assert job.database
    db = open_sqlite(job.database)

    async def branch(i: int) -> int:
        value: int = await job.body(i)
        db.execute("INSERT INTO results (value) VALUES (?)", (b"%d" % value,))
        return value

    return lambda: asyncio.gather(*[asyncio.create_task(branch(i)) for i in range(job.size)])
