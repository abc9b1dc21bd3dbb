"""Bare SQLite, `synchronous=FULL`: the least that makes a result durable before somebody sees it.

Beside each other, a writer thread commits together whatever waits; one after the other, a commit each on the spot.
One narrow table, no identity, no resume.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

from workloads import Job, Once

PACKAGES = ()
IMPORT = "import asyncio, sqlite3"
UNSUPPORTED = dict.fromkeys(("chain", "fanout", "wait", "memory", "runs"), "bare asyncio is the limit there")


class Grouped:
    """A writer thread that commits together whatever waits."""

    def __init__(self, path: Path) -> None:
        self._db = connect(path)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[asyncio.Future[None], bytes]] = []
        self._wake = threading.Semaphore(0)
        threading.Thread(target=self._write, daemon=True).start()

    def durable(self, value: bytes) -> asyncio.Future[None]:
        done = self._loop.create_future()
        self._waiting.append((done, value))
        if len(self._waiting) == 1:
            self._wake.release()
        return done

    def _write(self) -> None:
        while True:
            self._wake.acquire()
            entries, self._waiting = self._waiting, []
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO results (value) VALUES (?)", [(value,) for _, value in entries])
            self._db.execute("COMMIT")
            self._loop.call_soon_threadsafe(self._tell, entries)

    @staticmethod
    def _tell(entries: list[tuple[asyncio.Future[None], bytes]]) -> None:
        for done, _ in entries:
            done.set_result(None)


def connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE IF NOT EXISTS results (place INTEGER PRIMARY KEY, value BLOB NOT NULL)")
    return db


async def block(job: Job) -> Once:
    assert job.database
    store = Grouped(job.database)

    async def branch(i: int) -> int:
        value: int = await job.body(i)
        await store.durable(b"%d" % value)
        return value

    return lambda: asyncio.gather(*[asyncio.create_task(branch(i)) for i in range(job.size)])


async def chain(job: Job) -> Once:
    """A commit each; a chain of three, of which many run at once, shares them."""
    assert job.database
    if job.size == 3:
        return _shared(job, Grouped(job.database))
    db = connect(job.database)

    async def once() -> int:
        value = 0
        for _ in range(job.size):
            value = await asyncio.create_task(job.body(value))
            db.execute("INSERT INTO results (value) VALUES (?)", (b"%d" % value,))
        return value

    return once


def _shared(job: Job, store: Grouped) -> Once:
    async def once() -> int:
        value = 0
        for _ in range(job.size):
            value = await asyncio.create_task(job.body(value))
            await store.durable(b"%d" % value)
        return value

    return once
