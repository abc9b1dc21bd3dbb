"""Bare SQLite with `synchronous=FULL`: the least that makes a result durable before somebody sees it.

One narrow table, no identity, no resume.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path


class GroupedSqlite:
    """A writer thread that commits together whatever waits."""

    def __init__(self, path: Path) -> None:
        self._db = open_sqlite(path)
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


def open_sqlite(path: Path) -> sqlite3.Connection:
    """A connection of which each statement by itself is a commit."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE IF NOT EXISTS results (place INTEGER PRIMARY KEY, value BLOB NOT NULL)")
    return db
