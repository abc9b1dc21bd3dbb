"""Forgetting a little with each write to a SQLite database: see :class:`weft.Keep`."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from weft.checkpoint import sql
from weft.checkpoint import sqlite_rows as stored
from weft.checkpoint.keep import ENDED, STRIDE, Upkeep, is_too_old
from weft.checkpoint.rows import STATUS, STATUS_CODE, StoredRun, to_run
from weft.core.status import RunStatus
from weft.errors import CorruptDataError

#: Records that are deleted at a time; how often at most, and how often while the file is too big.
_AT_ONCE = 100
_ROUNDS = 2
_HURRIED_ROUNDS = 50


def tidy(db: sqlite3.Connection, upkeep: Upkeep, ended: int) -> None:
    """Forget some of what is not to be kept, in a transaction that writes and in which so many runs have ended."""
    if ended:
        _forget_old(db, upkeep, ended)
    for turn in range(_HURRIED_ROUNDS):
        is_too_big = _is_too_big(db, upkeep)
        if turn >= _ROUNDS and not is_too_big:
            return
        if stored.clear(db, _AT_ONCE):
            continue
        if not is_too_big or not _forget_next(db, {}, has_too_much=True):
            return


def _forget_old(db: sqlite3.Connection, upkeep: Upkeep, ended: int) -> None:
    """Forget those that are too old, or too many."""
    upkeep.added(ended)
    if upkeep.wants_count:
        upkeep.counted(db.execute(sql.COUNT_ENDED).fetchone()[0])
    oldest = upkeep.keep.oldest(upkeep.now())
    for _ in range(STRIDE * ended):
        if not _forget_next(db, oldest, has_too_much=upkeep.has_too_much):
            return
        upkeep.forgot()


def _is_too_big(db: sqlite3.Connection, upkeep: Upkeep) -> bool:
    if upkeep.keep.max_bytes is None:
        return False
    (size,) = db.execute(sql.PAGES_IN_USE).fetchone()
    return bool(size > upkeep.keep.most_bytes)


def _forget_next(db: sqlite3.Connection, oldest: Mapping[RunStatus, float], *, has_too_much: bool) -> bool:
    """Forget the run that ended first of those that may go; whether there was one."""
    for run in _first_ended(db):
        if has_too_much or is_too_old(STATUS[run.status], run.updated, oldest):
            stored.forget(db, run)
            return True
    return False


def _first_ended(db: sqlite3.Connection) -> list[StoredRun]:
    """Of each way to end the run that did so first, those that did it before the others at the beginning."""
    found = []
    for status in ENDED:
        columns = db.execute(sql.FIRST_ENDED, (STATUS_CODE[status],)).fetchone()
        try:
            found += [to_run(columns)] if columns else []
        except CorruptDataError:
            continue  # who looks at that run is told; nobody who writes another one
    return sorted(found, key=lambda run: run.updated)
