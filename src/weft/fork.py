"""A new run that begins in the middle of another: what was recorded up to a call, with other values where one likes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from weft.checkpoint.base import Checkpointer, OpenRun, Record, RecordKind, Write, all_records
from weft.checkpoint.codec import Codec
from weft.core.identity import question_id
from weft.core.outcome import Composed
from weft.core.status import RunStatus
from weft.engine.recorder import OUTCOMES, ancestors
from weft.errors import InputError, RunMismatchError, RunNotFoundError

#: What is said of how calls ended; the rest is questions and answers.
_OF_OUTCOMES = OUTCOMES | {RecordKind.WENT_ON, RecordKind.RETRY}

#: Records in one commit.
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Cut:
    """What of a journal goes into a fork.

    Attributes:
        at: The identity of the call up to which it goes, that included; None for all of it.
        values: By identity, what calls are to have returned instead.
        without: The identities of calls that are to run again.
    """

    at: bytes | None = None
    values: Mapping[bytes, Any] | None = None
    without: frozenset[bytes] = frozenset()


def fork_run(store: Checkpointer, run_id: str, cut: Cut, *, new_id: str | None, thread_id: str | None) -> str:
    """Record a new run; its id.

    Raises:
        RunNotFoundError: There is no such run.
        InputError: The cut names a call that it has not recorded.
        UnstorableError: A value cannot be recorded.
        RunMismatchError: There is a run of the new id.
    """
    row = store.find(run_id)
    if row is None:
        raise RunNotFoundError(f"there is no run {run_id!r}")
    journal = list(all_records(store, run_id))
    _refuse_unknown(run_id, journal, cut)
    _refuse_failed_blocks(journal, cut)
    named = new_id or uuid.uuid4().hex
    records = list(_renamed(_kept(journal, cut, store.codec), run_id, named))
    taken = RunMismatchError(f"there is a run {named!r} already; give the fork an id of its own, or none")
    if store.find(named) is not None:
        raise taken
    opened = store.open(OpenRun(named, row.workflow, thread_id, row.input, time.time()))
    try:
        if (opened.fence, opened.status) != (1, RunStatus.RUNNING):  # begun by another between these lines
            raise taken
        for first in range(0, len(records), _PAGE):
            store.commit([Write(named, opened.fence, records[first : first + _PAGE])])
    finally:
        store.release(named, opened.fence)
    return named


def _refuse_unknown(run_id: str, journal: Sequence[Record], cut: Cut) -> None:
    known = {record.identity for record in journal if record.kind in OUTCOMES}
    named = [*([cut.at] if cut.at is not None else []), *(cut.values or ()), *cut.without]
    for identity in named:
        if identity not in known:
            raise InputError(
                f"run {run_id!r} has recorded no call {identity.hex()!r}; `weft show {run_id}` lists those it has"
            )


def _refuse_failed_blocks(journal: Sequence[Record], cut: Cut) -> None:
    parents = {record.parent for record in journal}
    failed = [record for record in journal if record.kind in OUTCOMES - {RecordKind.OK}]
    for record in failed:
        if record.identity in (cut.values or {}) and record.identity in parents:
            raise InputError(
                f"{record.step!r} has failed, and is made of other calls: give values for those of them that failed"
            )


def _kept(journal: Sequence[Record], cut: Cut, codec: Codec) -> Iterator[Record]:
    values = cut.values or {}
    parents = {record.identity: record.parent for record in journal if record.kind in OUTCOMES}
    # What stands as a whole for a call that is to be another would hide it.
    hidden = {above for identity in {*values, *cut.without} for above in ancestors(identity, parents)}
    if cut.at is not None:
        hidden |= {*ancestors(cut.at, parents)}
    ends = [at for at, record in enumerate(journal) if record.identity == cut.at and record.kind in OUTCOMES]
    last = ends[-1] if ends else None
    for record in journal if last is None else journal[: last + 1]:
        is_outcome = record.kind in _OF_OUTCOMES
        if is_outcome and (record.identity in hidden or record.identity in cut.without):
            continue
        if is_outcome and record.identity in values:
            if record.kind in OUTCOMES:
                yield replace(
                    record, kind=RecordKind.OK, value=_encoded(record, values[record.identity], codec)
                )
            continue
        yield record


def _encoded(record: Record, value: Any, codec: Codec) -> bytes:
    found = codec.decode(record.value) if record.kind is RecordKind.OK else None
    if isinstance(found, Composed):
        value = Composed(found.shape, value, found.aside)
    return codec.encode(value, root=f"the value of {record.step!r}")


def _renamed(records: Iterable[Record], run_id: str, new_id: str) -> Iterator[Record]:
    """Answers name their questions by the run."""
    keys: dict[str, str] = {}
    for record in records:
        if record.kind is RecordKind.QUESTION:
            old = question_id(run_id, record.identity, record.ordinal)
            keys[old] = question_id(new_id, record.identity, record.ordinal)
        if record.kind is not RecordKind.ANSWER:
            yield record
        elif record.step in keys:
            yield replace(record, step=keys[record.step], identity=bytes.fromhex(keys[record.step]))


__all__ = ["Cut", "fork_run"]
