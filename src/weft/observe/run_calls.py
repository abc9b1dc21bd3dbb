"""What a drawing says of a run: its calls, from its events or from what it has recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weft.core.outcome import Cancelled, Failed, NotStarted, Ok, Skipped, TimedOut
from weft.engine import events
from weft.engine.where import in_a_line
from weft.observe.picture import BoxOutcome

if TYPE_CHECKING:
    from weft.observe.recorded import RecordedCall, RecordedRun

#: The id that stands for the run's own body.
BODY = ""


@dataclass(slots=True)
class RunCall:
    """A call of a run.

    Attributes:
        id: Its id; "" for the run's own body.
        step: The name of its step.
        parent: The id of the call that asked for it.
        outcome: How it has ended, or "running".
        seconds: How long it took; None if that is not known.
        start: When it began, in seconds since some moment; None if that is not known.
        attempts: How many there were.
        error: How it failed, for people.
    """

    id: str
    step: str
    parent: str
    outcome: BoxOutcome
    seconds: float | None = None
    start: float | None = None
    attempts: int = 1
    error: str = ""

    @property
    def end(self) -> float | None:
        """When it ended."""
        return None if self.start is None or self.seconds is None else self.start + self.seconds


@dataclass(frozen=True, slots=True)
class RunCalls:
    """All that is known of the calls of a run, in the order in which they began.

    Attributes:
        id: Of the run.
        workflow: Its workflow.
        status: How it stands.
        calls: Its calls; the run's own body is none of them.
        body: The call of its own body.
        is_recorded: It comes from a journal: only what has ended is there, and nothing of what was cancelled.
        lost: How many events were not kept.
    """

    id: str
    workflow: str
    status: str
    calls: Sequence[RunCall]
    body: RunCall
    is_recorded: bool
    lost: int = 0


_STATUS: dict[str, BoxOutcome] = {"finished": "ok", "failed": "failed", "cancelled": "cancelled"}


def of_journal(run: RecordedRun) -> RunCalls:
    """What a journal tells of a run."""
    calls = [_recorded(call) for call in run.calls]
    calls.sort(key=lambda call: call.start or 0.0)  # stable: what began at one moment as it was recorded
    body = RunCall(
        BODY,
        run.workflow,
        BODY,
        _STATUS.get(run.status, "running"),
        *_while(calls),
        error=run.error or "",
    )
    return RunCalls(run.id, run.workflow, run.status, calls, body, is_recorded=True)


def _while(calls: Sequence[RunCall]) -> tuple[float | None, float | None]:
    """How long a run was at work that has made these, and from when on: what it did before and after is not known."""
    starts = [call.start for call in calls if call.start is not None]
    ends = [call.end for call in calls if call.end is not None]
    return (max(ends) - min(starts), min(starts)) if ends else (None, None)


_RECORDED: dict[str, BoxOutcome] = {"ok": "ok", "failed": "failed", "timed_out": "timed_out"}


def _recorded(call: RecordedCall) -> RunCall:
    begun = call.started or call.ended
    start = None if begun is None else begun.timestamp()
    seconds = None if begun is None or call.ended is None else (call.ended - begun).total_seconds()
    outcome = _RECORDED.get(call.outcome, "ok")
    return RunCall(call.id, call.step, call.parent, outcome, seconds, start, call.attempts, call.error or "")


_OUTCOMES: dict[type, BoxOutcome] = {
    Ok: "ok",
    Failed: "failed",
    TimedOut: "timed_out",
    Cancelled: "cancelled",
    Skipped: "cancelled",
    NotStarted: "never",
}


def of_events(found: Iterable[events.Event], *, now: float) -> RunCalls:
    """What the events of a run tell that goes on, or has ended in this process; ``now`` is in seconds since 1970."""
    calls: dict[str, RunCall] = {}
    run_id, workflow, status, lost = "", "", "running", 0
    root: str | None = None
    last = 0.0
    for event in found:
        run_id, last = event.run_id, max(last, event.time)
        if isinstance(event, events.RunStarted):
            workflow = event.workflow
        elif isinstance(event, events.RunFinished):
            status = event.status
        elif isinstance(event, events.EventsLost):
            lost += event.count
        elif isinstance(event, events.CallEvent) and type(event) in events.LIFE_OF_A_CALL:
            if not event.parent_id:
                root = event.call_id
            _tell(calls, event)
    until = last if status in _STATUS else max(last, now)
    for call in calls.values():
        if call.seconds is None and call.start is not None:
            call.seconds = max(until - call.start, 0.0)
        call.parent = BODY if call.parent == root else call.parent
    body = calls.pop(root, None) if root is not None else None
    body = body or RunCall(BODY, workflow, BODY, _STATUS.get(status, "running"))
    body.id = body.parent = BODY
    body.outcome = "cancelled" if status == "cancelled" else body.outcome
    # What began and did not end has, if its run has, been given up with it.
    if status in _STATUS:
        for call in calls.values():
            call.outcome = "cancelled" if call.outcome == "running" else call.outcome
    inner = [call for call in calls.values() if call.outcome != "never"]
    return RunCalls(run_id, workflow or body.step, status, inner, body, is_recorded=False, lost=lost)


def _tell(calls: dict[str, RunCall], event: events.CallEvent) -> None:
    call = calls.get(event.call_id)
    if call is None:
        call = RunCall(event.call_id, event.step, event.parent_id, "running", start=event.time)
        calls[event.call_id] = call
    if isinstance(event, events.CallStarted):
        call.outcome = "running"
        if event.attempt <= 1:
            call.start = event.time
    elif isinstance(event, events.CallFinished):
        outcome = event.outcome
        call.outcome = _OUTCOMES.get(type(outcome), "ok")
        if call.outcome == "ok" and (event.recorded or event.cached):
            call.outcome = "reused"
        call.seconds = max(event.time - (call.start or event.time), 0.0)
        call.attempts = event.attempts
        if isinstance(outcome, Failed | TimedOut):
            call.error = in_a_line(outcome.error)


__all__ = ["BODY", "RunCall", "RunCalls", "of_events", "of_journal"]
