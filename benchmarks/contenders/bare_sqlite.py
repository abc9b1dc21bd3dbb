"""Bare SQLite, `synchronous=FULL`: the least that makes a result durable before somebody sees it.

Beside each other, a writer thread commits together whatever waits; one after the other, a commit each on the spot.
One narrow table, no identity, no resume.
"""

from __future__ import annotations

import asyncio

from grouped_sqlite import GroupedSqlite, open_sqlite
from workloads import Job, Once

PACKAGES = ()
IMPORT = "import asyncio, sqlite3"
UNSUPPORTED = dict.fromkeys(("chain", "fanout", "wait", "memory", "runs"), "bare asyncio is the limit there")


async def block(job: Job) -> Once:
    assert job.database
    store = GroupedSqlite(job.database)

    async def branch(i: int) -> int:
        value: int = await job.body(i)
        await store.durable(b"%d" % value)
        return value

    return lambda: asyncio.gather(*[asyncio.create_task(branch(i)) for i in range(job.size)])


async def chain(job: Job) -> Once:
    """A commit each; a chain of three, of which many run at once, shares them."""
    assert job.database
    if job.size == 3:
        return _shared(job, GroupedSqlite(job.database))
    db = open_sqlite(job.database)

    async def once() -> int:
        value = 0
        for _ in range(job.size):
            value = await asyncio.create_task(job.body(value))
            db.execute("INSERT INTO results (value) VALUES (?)", (b"%d" % value,))
        return value

    return once


def _shared(job: Job, store: GroupedSqlite) -> Once:
    async def once() -> int:
        value = 0
        for _ in range(job.size):
            value = await asyncio.create_task(job.body(value))
            await store.durable(b"%d" % value)
        return value

    return once
