"""What a resume would do, found out without doing it: which recorded results it takes, and which calls run again.

The workflow's own code runs as on a resume, over its recorded results; but no step begins, nothing is written, and
nobody loses the run. Where a step would begin, its call stays open as if it had asked a question, until nothing else
can go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import structs

from weft.checkpoint.base import Checkpointer, OpenRun, Record, RunRow, Write, all_records
from weft.checkpoint.owner import refuse_mismatch, run_not_found
from weft.core.identity import root_identity
from weft.core.status import RunStatus
from weft.engine.drive import start_on_portal
from weft.engine.options import RunOptions
from weft.engine.recorder import OUTCOMES
from weft.engine.rehearsal import Rehearsal
from weft.history import CallInfo, call_info

if TYPE_CHECKING:
    from weft.engine.call import Call
    from weft.runnable import Runnable


@dataclass(frozen=True, slots=True)
class CallToRun:
    """A call that a resume would run.

    Attributes:
        step: The name of its step.
        id: Its identity; ``weft.call_id()`` in its body is ``"<run id>:<id>"``.
        why: "new" (nothing is recorded of it), "failed" or "timed_out" (the workflow did not go on from that).
        error: How it failed, if it did.
    """

    step: str
    id: str
    why: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """What a resume would do.

    Attributes:
        run_id: The run.
        status: How it stands: "finished" needs no resume, and gives its recorded output.
        reused: Recorded calls whose results it takes, in the order in which they were recorded. What they have called
            in turn is not looked at.
        again: Calls that would run, in the order in which the program asks for them. What follows on them is not known.
        unmatched: Recorded calls that the program asked for once, and as it is now does not ask for.
        error: What the workflow's own code has raised on the way, if it has.
    """

    run_id: str
    status: str
    reused: tuple[CallInfo, ...] = ()
    again: tuple[CallToRun, ...] = ()
    unmatched: tuple[CallInfo, ...] = ()
    error: BaseException | None = None


def plan_of(store: Checkpointer, run_id: str, workflow: Runnable) -> ResumePlan:
    """What a resume of this run by this workflow would do.

    Raises:
        RunNotFoundError: There is no such run.
        RunMismatchError: It was recorded for another workflow.
    """
    workflow = workflow.as_part()
    row = store.find(run_id)
    if row is None:
        raise run_not_found(run_id)
    refuse_mismatch(row, OpenRun(run_id, workflow.step.name))
    records = list(all_records(store, run_id))
    if row.status is RunStatus.FINISHED:
        return ResumePlan(run_id, row.status.value, _infos(records, row, store))
    return _rehearsed(store, workflow, row, records)


def _rehearsed(store: Checkpointer, workflow: Runnable, row: RunRow, records: Sequence[Record]) -> ResumePlan:
    options = RunOptions(checkpointer=_Looking(store), run_id=row.run_id)
    run = start_on_portal(workflow, None, options)
    rehearsal = Rehearsal()
    run.rehearse(rehearsal)
    error = None
    run.begin()
    try:
        run.future.result()
    except Exception as raised:
        error = raised
    infos = _infos(records, row, store)
    taken = {identity.hex() for identity in rehearsal.taken}
    again = [_to_run(call, {info.id: info for info in infos}) for call in rehearsal.would_start]
    known = _below(records, taken | {call.id for call in again}) | {each.hex() for each in rehearsal.asked}
    return ResumePlan(
        row.run_id,
        row.status.value,
        tuple(info for info in infos if info.id in taken),
        tuple(again),
        tuple(info for info in infos if info.id not in known),
        error,
    )


def _to_run(call: Call, known: dict[str, CallInfo]) -> CallToRun:
    found = known.get(call.identity.hex())
    if found is None or found.outcome == "ok":
        return CallToRun(call.step.name, call.identity.hex(), "new")
    return CallToRun(call.step.name, call.identity.hex(), found.outcome, found.error)


def _infos(records: Iterable[Record], row: RunRow, store: Checkpointer) -> tuple[CallInfo, ...]:
    root = root_identity(row.workflow)
    last: dict[bytes, Record] = {}
    for record in records:
        if record.kind in OUTCOMES:
            last.pop(record.identity, None)  # a later outcome stands in its own place
            last[record.identity] = record
    return tuple(call_info(record, root, store.codec) for record in last.values())


def _below(records: Iterable[Record], ids: set[str]) -> set[str]:
    """The calls that others have made, which are taken or run again as a whole."""
    children: dict[str, list[str]] = {}
    for record in records:
        children.setdefault(record.parent.hex(), []).append(record.identity.hex())
    found: set[str] = set()
    stack = list(ids)
    while stack:
        new = [child for child in children.get(stack.pop(), ()) if child not in found]
        found.update(new)
        stack += new
    return found - ids


class _Looking:
    """A store in which everything can be read, and nothing changes."""

    instant = True

    def __init__(self, store: Checkpointer) -> None:
        self._store = store
        self.codec = store.codec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def open(self, request: OpenRun) -> RunRow:
        row = self._store.find(request.run_id)
        if row is None:
            raise run_not_found(request.run_id)
        refuse_mismatch(row, request)
        return structs.replace(row, status=RunStatus.RUNNING, fence=row.fence + 1)

    def commit(self, writes: Sequence[Write]) -> set[str]:
        return set()

    def release(self, run_id: str, fence: int) -> None:
        pass

    def beat(self) -> None:
        pass

    def add_answers(self, run_id: str, answers: Sequence[Record]) -> None:
        pass


__all__ = ["CallToRun", "ResumePlan", "plan_of"]
