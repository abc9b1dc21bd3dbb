"""The observers of a run, and what each of its calls tells them. A run that nobody observes does without all this."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from weft.core.outcome import Outcome
from weft.core.question import Interrupt
from weft.engine import events
from weft.engine.context import current

if TYPE_CHECKING:
    from weft.core.state_merge import Conflict
    from weft.core.status import RunStatus
    from weft.engine.call import Call
    from weft.engine.execution import Execution

logger = logging.getLogger("weft")


class Audience:
    """Who is told what happens in a run, on its loop."""

    def __init__(self, run: Execution) -> None:
        self._run = run
        self._observers: tuple[events.Observer, ...] = ()

    def add(self, observer: events.Observer) -> None:
        """Tell this one too, from now on."""
        self._observers += (observer,)

    def run_started(self, *, resumed: bool, recorded: int) -> None:
        """In a context that what the observers set there is seen by the run's body."""
        run = self._run
        name, now = run.workflow.step.name, run.clock.wall()
        run._keep_context().run(
            self._emit,
            events.RunStarted(run_id=run.id, time=now, workflow=name, resumed=resumed, recorded=recorded),
        )

    def run_finished(self, status: RunStatus, outcome: Outcome[Any]) -> None:
        """The end of the run, or that it was put aside."""
        run = self._run
        self._emit(
            events.RunFinished(run_id=run.id, time=run.clock.wall(), status=status.value, outcome=outcome)
        )

    def asked(self, call: Call) -> None:
        """In a context of the call's own, in which observers may set what its body, and what that asks for, sees."""
        if call.is_told_of:
            call.context = copy_context() if call.context is None else call.context.copy()
            self._tell_within(call, events.CallAsked, {})

    def queued(self, call: Call) -> None:
        """It waits for its limits."""
        if call.is_told_of:
            self._tell(call, events.CallQueued, limits=call.waited_for)

    def started(self, call: Call) -> None:
        """An attempt begins; told in the context of its body."""
        if call.is_told_of:
            told = {"attempt": call.attempt, "args": call.args, "kwargs": call.kwargs}
            self._tell_within(call, events.CallStarted, told)

    def retrying(self, call: Call, delay: float, error: BaseException) -> None:
        """Another attempt follows, after so many seconds."""
        if call.is_told_of:
            self._tell(call, events.CallRetrying, attempt=call.attempt, delay=delay, error=error)

    def finished(self, call: Call, outcome: Outcome[Any]) -> None:
        """How it ended."""
        if call.is_told_of:
            self._tell(
                call,
                events.CallFinished,
                outcome=outcome,
                recorded=call.record is not None,
                cached=call.cached,
                attempts=call.attempt,
            )

    def given_up(self, call: Call) -> None:
        """Its body was left to itself."""
        self._tell(call, events.CallGivenUp)

    def wrote(self, call: Call, value: Any) -> None:
        """What its body wrote."""
        self._tell(call, events.UserEvent, value=value)

    def question_asked(self, call: Call, question: Interrupt) -> None:
        """Its body asked a question."""
        self._tell(call, events.QuestionAsked, question_id=question.id, value=question.value)

    def mismatched(self, call: Call, recorded_step: str) -> None:
        """The code asks here for another call than the recorded one."""
        self._tell(call, events.CallMismatch, recorded_step=recorded_step)

    def sized(self, block: Call, *, width: int | None, computing: int | None, reason: str) -> None:
        """How many of its branches may be in flight."""
        self._tell(block, events.BlockSized, width=width, computing=computing, reason=reason)

    def decided(self, block: Call, *, reason: str, ok: int, failed: int, total: int | None) -> None:
        """It needs no more outcomes."""
        self._tell(block, events.BlockDecided, reason=reason, ok=ok, failed=failed, total=total)

    def joined(self, call: Call, branches: tuple[str, ...]) -> None:
        """It goes on from what several branches have brought."""
        self._tell(call, events.BranchesJoined, branches=branches)

    def conflicted(self, graph: Call, conflict: Conflict) -> None:
        """Branches of it that met had changed the same of its state."""
        self._tell(graph, events.StateConflict, path=conflict.path, branches=conflict.branches)

    def _tell_within(self, call: Call, kind: type[events.CallEvent], fields: Mapping[str, Any]) -> None:
        call._keep_context()
        assert call.context is not None
        call.context.run(self._tell_as_current, call, kind, fields)

    def _tell_as_current(self, call: Call, kind: type[events.CallEvent], fields: Mapping[str, Any]) -> None:
        before = current.set(call)
        try:
            self._tell(call, kind, **fields)
        finally:
            current.reset(before)

    def _tell(self, call: Call, kind: type[events.CallEvent], **fields: Any) -> None:
        run, parent = self._run, call.parent
        self._emit(
            kind(
                run_id=run.id,
                time=run.clock.wall(),
                call_id=call.id,
                step=call.step.name,
                parent_id=parent.id if parent is not None else "",
                **fields,
            )
        )

    def _emit(self, event: events.Event) -> None:
        """Tell all. One that fails is left out from then on; the run goes on."""
        for observer in self._observers:
            try:
                observer(event)
            except BaseException:  # also SystemExit: what only looks on must not end the loop
                logger.exception(
                    "run %s: observer %r failed, and is told nothing more", self._run.id, observer
                )
                self._observers = tuple([each for each in self._observers if each is not observer])
