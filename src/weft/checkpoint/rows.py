"""What the stores in databases have in common: how names, statuses and kinds are stored, and seals.

Names (of runs, threads, workflows and steps) are stored as their UTF-8 bytes: every string is a legal name, a lone
surrogate and a NUL included, and comparing them is comparing bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, LiteralString, NamedTuple
from zlib import crc32

import msgspec

from weft.checkpoint.base import Change, OpenRun, Record, RecordKind, RunRow
from weft.checkpoint.keep import size_of, size_of_end
from weft.checkpoint.owner import shown
from weft.checkpoint.sharing import LEAST_RESULT, ValuesAt, put_together, taken_apart
from weft.core.status import RunStatus
from weft.errors import CorruptDataError

# Codes in databases: never change one, only add.
STATUS_CODE: Final = {
    RunStatus.RUNNING: 1,
    RunStatus.SUSPENDED: 2,
    RunStatus.FINISHED: 3,
    RunStatus.FAILED: 4,
    RunStatus.CANCELLED: 5,
}
KIND_CODE: Final = {
    RecordKind.OK: 1,
    RecordKind.FAILED: 2,
    RecordKind.TIMED_OUT: 3,
    RecordKind.WENT_ON: 4,
    RecordKind.RETRY: 5,
    RecordKind.QUESTION: 6,
    RecordKind.ANSWER: 7,
    RecordKind.WITHDRAWN: 8,
    RecordKind.KEPT: 9,
    RecordKind.NOTED: 10,
}
STATUS: Final = {code: status for status, code in STATUS_CODE.items()}
KIND: Final = {code: kind for kind, code in KIND_CODE.items()}

Row = tuple[Any, ...]  # a row of a database: its columns are named by the statement


class StoredRun(NamedTuple):
    """A row of `runs`, as it is stored."""

    key: int
    run_id: bytes
    thread_id: bytes | None
    workflow: bytes
    status: int
    owner: str | None
    fence: int
    position: int
    batches: int
    size: int  # about how many bytes were recorded of it
    created: float
    updated: float


def to_bytes(name: str) -> bytes:
    """A name as it is stored."""
    return name.encode("utf-8", "surrogatepass")


def to_text(name: bytes) -> str:
    """A stored name as it was given."""
    return name.decode("utf-8", "surrogatepass")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


def seal(row: Row) -> int:
    """A checksum over the columns of a row, its key among them: a damaged or doctored row is noticed."""
    return crc32(_encode(row))


def sealed(row: Row) -> Row:
    """The row with its seal as the last column."""
    return (*row, seal(row))


def unsealed(columns: Row | None, what: str) -> Row:
    """The columns before the seal.

    Raises:
        CorruptDataError: They are not what was written, or not there.
    """
    if columns is not None:
        written = columns[:-1]
        if seal(written) == columns[-1]:
            return written
    raise CorruptDataError(f"{what} is damaged in the database: it is not what was written")


def time_of(seconds: float) -> float:
    """A time as it is stored: not every database keeps the sign of a zero, and the seal would miss it."""
    return float(seconds) + 0.0


def to_run(columns: Row) -> StoredRun:
    """A run from its columns and their seal."""
    return StoredRun._make(unsealed(columns, "a run"))


def new_run(request: OpenRun, given: bytes, key: int, owner: str) -> StoredRun:
    """A run that is created for its first owner, with its input."""
    now = time_of(request.created or time.time())
    return StoredRun(
        key=key,
        run_id=to_bytes(request.run_id),
        thread_id=None if request.thread_id is None else to_bytes(request.thread_id),
        workflow=to_bytes(request.workflow),
        status=STATUS_CODE[RunStatus.RUNNING],
        owner=owner,
        fence=1,
        position=0,
        batches=0,
        size=len(given),
        created=now,
        updated=now,
    )


def new_row(request: OpenRun, given: bytes, run: StoredRun) -> RunRow:
    """The same as callers see it."""
    return RunRow(
        run_id=request.run_id,
        workflow=request.workflow,
        status=RunStatus.RUNNING,
        thread_id=request.thread_id,
        input=given,
        created=run.created,
        updated=run.updated,
        fence=run.fence,
    )


def to_run_row(run: StoredRun, stored_input: Row | None, outcome: Row | None, values_at: ValuesAt) -> RunRow:
    """The run as callers see it, from the sealed rows of its input and, once it has ended, its outcome.

    Args:
        run: The run.
        stored_input: The row of its input.
        outcome: The row of its outcome.
        values_at: The values of its records, of which its result may be put together.
    """
    *_, data = unsealed(stored_input, "the input of a run")
    _, ended_as, output, error, is_apart = (
        unsealed(outcome, "the outcome of a run") if outcome else (None,) * 5
    )
    if run.status not in {STATUS_CODE[RunStatus.RUNNING], ended_as}:
        raise CorruptDataError(f"run {shown(to_text(run.run_id))} has ended, but its outcome is not recorded")
    if is_apart:
        output = put_together(output, values_at)
    return RunRow(
        run_id=to_text(run.run_id),
        workflow=to_text(run.workflow),
        status=STATUS[run.status],
        thread_id=None if run.thread_id is None else to_text(run.thread_id),
        input=data,
        output=output,
        error=error,
        created=run.created,
        updated=run.updated,
        fence=run.fence,
        batches=run.batches,
    )


def _names(limits: tuple[str, ...]) -> bytes | None:
    return to_bytes("\0".join(limits)) if limits else None


def _limits(names: bytes) -> tuple[str, ...]:
    return tuple(to_text(names).split("\0"))


def record_columns(record: Record) -> Row:
    """What is stored of a record, but for its place."""
    return (
        KIND_CODE[record.kind],
        record.identity,
        record.parent,
        record.ordinal,
        to_bytes(record.step),
        record.value,
        record.attempts,
        time_of(record.started),
        time_of(record.ended),
        record.batch,
        time_of(record.asked),
        _names(record.limits),
    )


def to_record(columns: Row) -> Record:
    """The record that such columns are."""
    kind, identity, parent, ordinal, step, value, attempts, started, ended, batch, asked, limits = columns
    return Record(
        kind=KIND[kind],
        identity=identity,
        parent=parent,
        ordinal=ordinal,
        step=to_text(step),
        value=value,
        attempts=attempts,
        started=started,
        ended=ended,
        batch=batch,
        asked=asked,
        limits=() if limits is None else _limits(limits),
    )


def packed(record: Record) -> bytes:
    """All of a record but its value and its place, as one column."""
    return _encode(
        (
            KIND_CODE[record.kind],
            record.identity,
            record.parent,
            record.ordinal,
            to_bytes(record.step),
            record.attempts,
            record.started,
            record.ended,
            record.batch,
            record.asked,
            _names(record.limits),
        )
    )


def unpacked(about: bytes, value: bytes) -> Record:
    """The record of which this was packed, with this value."""
    kind, identity, parent, ordinal, step, attempts, started, ended, batch, asked, limits = _decode(about)
    # By position, as a journal may have a million of these.
    return Record(
        KIND[kind],
        identity,
        parent,
        ordinal,
        to_text(step),
        value,
        attempts,
        started,
        ended,
        batch,
        asked,
        () if limits is None else _limits(limits),
    )


def after(run: StoredRun, records: Sequence[Record], now: float, change: Change | None = None) -> StoredRun:
    """A run that has these records too, and of which then this has become, if anything."""
    key, run_id, thread_id, workflow, status, owner, fence, position, batches, size, created, _ = run
    for record in records:
        batches = max(batches, record.batch)
    size += size_of(records)
    if change is not None:
        size += size_of_end(change)
        status = STATUS_CODE[change.status]
        owner = owner if change.status is RunStatus.RUNNING else None
    # By position: `_replace` takes three times as long, and this is done for every run in every commit.
    return StoredRun(
        *(key, run_id, thread_id, workflow, status, owner, fence),
        *(position + len(records), batches, size, created, now),
    )


def outcome_columns(run: StoredRun, change: Change, values: Callable[[], Iterable[tuple[int, bytes]]]) -> Row:
    """What is stored of how a run has ended, but for the seal.

    Args:
        run: The run.
        change: How it ended.
        values: The positions and values of its records, of which a big result is stored as pieces.
    """
    output, is_apart = change.output, False
    if output is not None and len(output) >= LEAST_RESULT:
        pieces = taken_apart(output, values())
        if pieces is not None:
            output, is_apart = pieces, True
    return (run.key, STATUS_CODE[change.status], output, change.error, int(is_apart))


class Clearing(NamedTuple):
    """The statements by which records of forgotten runs are deleted.

    Attributes:
        first: The key of such a run.
        some: Deletes at ``most`` so many records of ``run``.
        end: There is nothing left of ``run``.
    """

    first: LiteralString
    some: LiteralString
    end: LiteralString


def clear(execute: Callable[[LiteralString, dict[str, int]], Any], statements: Clearing, most: int) -> int:
    """Delete so many records of forgotten runs; how many there were."""
    deleted = 0
    while deleted < most and (found := execute(statements.first, {}).fetchone()) is not None:
        run, wanted = found[0], most - deleted
        gone = int(execute(statements.some, {"run": run, "most": wanted}).rowcount)
        deleted += gone
        if gone < wanted:
            execute(statements.end, {"run": run})
    return deleted
