"""Forgetting a little after each commit to a Postgres database that ended runs: see :class:`weft.Keep`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from weft.checkpoint import postgres_sql as sql
from weft.checkpoint import rows
from weft.checkpoint.keep import ENDED, STRIDE, Upkeep, is_too_old
from weft.checkpoint.postgres_link import Database
from weft.checkpoint.rows import STATUS, STATUS_CODE, Clearing, StoredRun, to_run
from weft.core.status import RunStatus
from weft.errors import CorruptDataError

#: Records of forgotten runs that are deleted in one transaction, for each run that has ended.
_AT_ONCE = 200


def tidy(db: Database, upkeep: Upkeep, ended: int, is_free: Callable[[StoredRun], bool]) -> None:
    """Forget some of what is not to be kept, in a transaction of its own, after so many runs have ended.

    Args:
        db: Where.
        upkeep: What is to be kept.
        ended: How many runs have ended.
        is_free: Whether nobody is just looking at a run to open it; if so, nobody can until the end of this.
    """
    if upkeep.wants_count:
        upkeep.counted(_one(db.execute(sql.COUNT_ENDED).fetchone()))
    if upkeep.wants_sum:
        upkeep.summed(_one(db.execute(sql.SUM_SIZES).fetchone()))
    oldest = upkeep.keep.oldest(upkeep.now())
    for run in _first_ended(db, oldest, upkeep, STRIDE * ended):
        is_old = is_too_old(STATUS[run.status], run.updated, oldest)
        if (is_old or upkeep.has_too_much) and is_free(run):
            _forget(db, run)
            upkeep.forgot(run.size)
    clear(db, _AT_ONCE * ended)


_CLEARING = Clearing(sql.REMAINS, sql.CLEAR_REMAINS, sql.DELETE_REMAINS)


def clear(db: Database, most: int) -> int:
    """Delete so many records of forgotten runs; how many there were."""
    return rows.clear(db.execute, _CLEARING, most)


def delete(db: Database, keys: list[int]) -> None:
    """Delete runs and all of their records now."""
    _delete_rows(db, keys)
    db.execute(sql.DELETE_RECORDS, {"runs": keys})


def _delete_rows(db: Database, keys: list[int]) -> None:
    for statement in sql.DELETE_RUNS:
        db.execute(statement, {"runs": keys})


def _forget(db: Database, run: StoredRun) -> None:
    """Delete a run and what it saved; its records go later, by :func:`clear`."""
    _delete_rows(db, [run.key])
    if run.position:
        db.execute(sql.ADD_REMAINS, {"run": run.key})
    if run.thread_id is not None:
        db.execute(sql.FORGET_STATES, {"thread_id": run.thread_id, "run_id": run.run_id})


def _first_ended(
    db: Database, oldest: Mapping[RunStatus, float], upkeep: Upkeep, limit: int
) -> list[StoredRun]:
    """The runs that ended first, so many of those that may have to go."""
    found = []
    for status in ENDED:
        before = math.inf if upkeep.has_too_much else oldest.get(status)
        if before is None:
            continue
        params = {"status": STATUS_CODE[status], "before": before, "limit": limit}
        for columns in db.execute(sql.FIRST_ENDED, params, binary=True).fetchall():
            try:
                found.append(to_run(columns))
            except CorruptDataError:
                continue  # who looks at that run is told; nobody who writes another one
    return sorted(found, key=lambda run: run.updated)[:limit]


def _one(row: tuple[Any, ...] | None) -> int:
    assert row is not None  # the statement gives one whatever is there
    return int(row[0])
