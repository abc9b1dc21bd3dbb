"""Calls that hold a program together, and of which nothing is recorded: *glue*.

What a style records is the work. What stands round it, such as what walks from one piece of work to the next, is
cheaper to do again than to record, and must be done again where it changes what the caller holds. So a call of the
glue

- has no record, costs no commit, and is never taken for another call on a resume;
- is seen by its parent at once, not in the order of records;
- counts in no limit but those of its own step, and in no width;
- is told to no observer: they see the work.

It is a call all the same: it has an identity (so the records below it have a place), an id, a context, a deadline and
timeouts of its own, it may ask questions, and it is stopped like any other. Only conductors start glue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weft.engine.call import Call
from weft.engine.crew import CrewedCall
from weft.engine.limits import needs_of
from weft.engine.planned import PlannedCall
from weft.engine.step import Step

if TYPE_CHECKING:
    from weft.core.limits import Needs
    from weft.engine.futures import Branch


class GlueStep(Step):
    """A step of which nothing is recorded."""

    __slots__ = ()

    def call_in(self, parent: PlannedCall, args: tuple[Any, ...]) -> Glue:
        """The call that it becomes; a style that has calls of its own overrides this."""
        return (PlannedGlue if self.is_planned else GlueCall)(parent.run, parent, self, args, {})


class Glue(Call):
    """What is common to calls of the glue."""

    is_recorded = False
    is_told_of = False

    def find_record(self, fingerprint: bytes) -> None:
        """There is none, so it begins."""
        recorder, parent = self.run.recorder, self.parent
        assert recorder is not None
        assert parent is not None
        if parent.scope is not None and parent.scope.failures:
            # That failures were gone on from is written in time for the next outcome, but no glue waits for it: in
            # another life of the run, where it is written already, it would begin earlier.
            recorder.before_start(self, parent.scope, _nothing)
        self._begin_total()
        self.admit()

    def needs(self) -> Needs:
        """Those of its own step."""
        return needs_of(None, self.step.limits)

    def finish(self) -> None:
        """The outcome is final, and seen at once."""
        self._end_total()
        if self.scope is not None:
            self.scope.end()
        self.become_visible()

    def become_visible(self) -> None:
        """Let the parent see the outcome. Who goes on after it goes on from the failures in it."""
        assert self.parent is not None
        above = self.parent.scope
        if above is not None and self.scope is not None and self.scope.failures:
            above.add_failures(self.scope.failures)
        self.make_way()
        super().become_visible()


class GlueCall(Glue, CrewedCall):
    """Glue that has a body."""


class PlannedGlue(Glue, PlannedCall):
    """Glue that has a conductor."""

    def start(
        self,
        branch: Branch,
        step: Step,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        identity: tuple[bytes, int] | None = None,
        latest: float | None = None,
        is_told: bool = True,
    ) -> None:
        """Start a call, of the glue too: a block that is glue does not know the difference."""
        if isinstance(step, GlueStep):
            start_glue(self, branch, step, args, identity=identity, latest=latest)
        else:
            PlannedCall.start(self, branch, step, args, kwargs, identity, latest, is_told=is_told)


def start_glue(
    parent: PlannedCall,
    branch: Branch,
    step: GlueStep,
    args: tuple[Any, ...],
    *,
    identity: tuple[bytes, int] | None = None,
    latest: float | None = None,
) -> None:
    """Start a call of the glue; the conductor of ``parent`` is told when it has ended.

    Args:
        parent: Whose conductor this is.
        branch: What the conductor knows the call by.
        step: What to run: a body or a conductor.
        args: Its arguments.
        identity: Of the call, in a journaled run, where not its name alone tells it from its siblings.
        latest: When it must have ended, in the loop's time; see :meth:`PlannedCall.start`.
    """
    call = step.call_in(parent, args)
    if parent.run.recorder is not None:
        call.identity, call.ordinal = identity or parent.identify(step.name, b"")
    parent.begin_child(branch, call, latest)


def _nothing() -> None:
    pass
