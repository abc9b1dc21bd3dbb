"""How runs, records and saved values are read from a SQLite database and written to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b

from weft.checkpoint import rows, sql
from weft.checkpoint.base import Change, Record, RunRow, ThreadState
from weft.checkpoint.owner import shown
from weft.checkpoint.rows import (
    Clearing,
    Row,
    StoredRun,
    outcome_columns,
    packed,
    seal,
    sealed,
    time_of,
    to_bytes,
    to_run,
    to_run_row,
    to_text,
    unpacked,
    unsealed,
)
from weft.checkpoint.sharing import LEAST_RECORD
from weft.errors import CorruptDataError


def load(db: sqlite3.Connection, run_id: str) -> StoredRun | None:
    """The run, if there is one.

    Raises:
        CorruptDataError: There is one that cannot be found by its name any more.
    """
    name = to_bytes(run_id)
    columns = db.execute(sql.RUN, (name,)).fetchone()
    if columns is not None:
        return to_run(columns)
    if db.execute(sql.INPUT, (_hash(name),)).fetchone() is not None:
        raise CorruptDataError(
            f"the database is damaged: run {shown(run_id)} was recorded, but cannot be found by its name; "
            "put a backup in its place, or try `.recover` of sqlite3"
        )
    return None


def create(db: sqlite3.Connection, run: StoredRun, given: bytes) -> None:
    """Store a run that is new."""
    db.execute(sql.CREATE_RUN, sealed(run))
    db.execute(sql.CREATE_INPUT, sealed((_hash(run.run_id), run.key, given)))


def _hash(name: bytes) -> int:
    """63 bits, as a key of SQLite's has."""
    return int.from_bytes(blake2b(name, digest_size=8).digest()) >> 1


def advance(db: sqlite3.Connection, run: StoredRun) -> None:
    """Store a run that has more records."""
    db.execute(sql.ADVANCE_RUN, _advanced(run))


def change(db: sqlite3.Connection, run: StoredRun) -> None:
    """Store a run that has another status or owner."""
    db.execute(sql.CHANGE_RUN, _changed(run))


def update(db: sqlite3.Connection, was: StoredRun, run: StoredRun) -> bool:
    """Store a run that has more records, or has ended; whether it still was its owner's, and had no more records.

    If not, nothing is done.
    """
    known = (was.owner, was.fence, was.position)
    if (was.status, was.owner) == (run.status, run.owner):
        return db.execute(sql.ADVANCE_KNOWN_RUN, (*_advanced(run), *known)).rowcount == 1
    return db.execute(sql.CHANGE_KNOWN_RUN, (*_changed(run), *known)).rowcount == 1


def _advanced(run: StoredRun) -> Row:
    return (run.position, run.batches, run.size, run.updated, seal(run), run.key)


def _changed(run: StoredRun) -> Row:
    return (run.status, run.owner, run.fence, *_advanced(run))


def outcome_row(
    run: StoredRun, outcome: Change, values_of_run: Callable[[], Iterable[tuple[int, bytes]]]
) -> Row:
    """The row of how a run has ended."""
    return sealed(outcome_columns(run, outcome, values_of_run))


def values(db: sqlite3.Connection, run: StoredRun) -> Iterator[tuple[int, bytes]]:
    """The positions and values of those records of a run that a result may be put together of."""
    return db.execute(sql.VALUES, (_place(run, 0), _place(run, run.position), LEAST_RECORD))


def append_state(
    db: sqlite3.Connection, thread_id: bytes, value: bytes, created: float, run_id: bytes | None
) -> None:
    (number,) = db.execute(sql.NEXT_STATE, (thread_id,)).fetchone()
    db.execute(sql.APPEND_STATE, sealed((thread_id, number, value, time_of(created), run_id)))


def delete(db: sqlite3.Connection, run: StoredRun) -> None:
    """Forget a run and all of its records now."""
    _delete_rows(db, run)
    db.execute(sql.DELETE_RECORDS, {"run": run.key})


def forget(db: sqlite3.Connection, run: StoredRun) -> None:
    """Forget a run and what it saved; its records go later, by :func:`clear`."""
    _delete_rows(db, run)
    if run.position:
        db.execute(sql.ADD_REMAINS, (run.key,))
    if run.thread_id is not None:
        db.execute(sql.FORGET_STATES, {"thread_id": run.thread_id, "run_id": run.run_id})


_CLEARING = Clearing(sql.REMAINS, sql.CLEAR_REMAINS, sql.DELETE_REMAINS)


def clear(db: sqlite3.Connection, most: int) -> int:
    """Delete so many records of forgotten runs; how many there were."""
    return rows.clear(db.execute, _CLEARING, most)


def _delete_rows(db: sqlite3.Connection, run: StoredRun) -> None:
    for statement in sql.DELETE_RUN:
        db.execute(statement, {"run": run.key, "name": _hash(run.run_id)})


def row(db: sqlite3.Connection, run: StoredRun) -> RunRow:
    """The run as callers see it."""
    return to_run_row(
        run,
        _input(db, run),
        db.execute(sql.OUTCOME, (run.key,)).fetchone(),
        lambda positions: _values_at(db, run, positions),
    )


def _input(db: sqlite3.Connection, run: StoredRun) -> Row | None:
    columns: Row | None = db.execute(sql.INPUT, (_hash(run.run_id),)).fetchone()
    if columns is not None and columns[1] != run.key:
        raise CorruptDataError(
            f"the database is damaged: another run has the input of run {shown(to_text(run.run_id))}"
        )
    return columns


def _values_at(db: sqlite3.Connection, run: StoredRun, positions: Sequence[int]) -> dict[int, bytes]:
    found = ((at, db.execute(sql.VALUE, (_place(run, at),)).fetchone()) for at in positions)
    return {at: columns[0] for at, columns in found if columns is not None}


def _place(run: StoredRun, position: int) -> int:
    return (run.key << 32) + position


def record_rows(run: StoredRun, records: Iterable[Record]) -> Iterator[Row]:
    """The rows of records that follow what the run has."""
    for place, each in enumerate(records, _place(run, run.position + 1)):
        yield sealed((place, each.value, packed(each)))


def page(db: sqlite3.Connection, run: StoredRun, first: int, last: int) -> list[Row]:
    """The rows of the records after one position and up to another."""
    return db.execute(sql.PAGE_OF_RECORDS, (_place(run, first), _place(run, last))).fetchall()


def record(columns: Row) -> Record:
    _, value, about = unsealed(columns, "a record")
    return unpacked(about, value)


def state(columns: Row) -> ThreadState:
    thread_id, number, value, created, run_id = unsealed(columns, "a saved value")
    return ThreadState(
        to_text(thread_id), number, value, created, None if run_id is None else to_text(run_id)
    )
