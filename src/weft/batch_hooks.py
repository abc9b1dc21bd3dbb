"""What of a batch program is not recorded, and how it takes part in a run: hooks, and what walks from node to node.

What is recorded of a batch program is ``exec``. Everything else is *glue*: on a resume it runs again, and does to
``shared`` what it did before. So a call of the glue leaves no record, its outcome is seen at once, and it counts in
no limit. Hooks *take turns*, so that a program need not lock its ``shared``, and a resume does the same again: the turn
of a sync hook lasts until it ends, or waits for calls of its own; that of an async hook until it first waits. Whose
turn it is, is decided by what the hooks waited for: the outcomes of ``exec``, in the order of their records.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from weft.engine import events
from weft.engine.call import Call
from weft.engine.context import current
from weft.engine.limits import Limit, needs_of
from weft.engine.planned import PlannedCall
from weft.engine.states import State
from weft.engine.step import Step, is_async_callable

if TYPE_CHECKING:
    from weft.engine.execution import Execution
    from weft.engine.futures import Branch
    from weft.errors import Interrupted

#: What hooks are ordered by: the commit that made an outcome durable, and when that was asked for. Outcomes of this
#: life of the run come after all recorded ones, in the order in which they are seen.
Moment = tuple[float, float]

#: Before everything.
FIRST: Moment = (0.0, 0.0)

#: What observers are not told of glue: they see the steps.
_QUIET = frozenset(
    {events.CallAsked, events.CallQueued, events.CallStarted, events.CallRetrying, events.CallFinished}
)


class Seen:
    """The recorded moment after which something goes on that waited for outcomes."""

    __slots__ = ("latest",)

    def __init__(self) -> None:
        self.latest: Moment | None = None

    def note(self, call: Call) -> None:
        """An outcome that is waited for is there."""
        if isinstance(call, HookCall):
            return
        moment = call.seen.latest if isinstance(call, GlueCall) else _moment_of(call)
        if moment is not None:
            self.latest = moment if self.latest is None else max(self.latest, moment)


def _moment_of(call: Call) -> Moment:
    record = call.record
    return turns_of(call.run).moment() if record is None else (float(record.batch), record.ended)


class GlueStep(Step):
    """A step of which nothing is recorded."""

    __slots__ = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.is_planned:
            object.__setattr__(self, "is_plain", False)  # it may not begin before it is its turn


class _Glue(Call):
    """A call of the glue."""

    def _finish(self) -> None:
        self._end_total()
        self._become_visible()

    def _become_visible(self) -> None:
        parent = self.parent
        assert parent is not None
        if (above := parent.scope) is not None:
            above.calls.pop(self.identity, None)
            if self.scope is not None:
                # Who goes on after this call goes on from the failures in it.
                above.failures.update(self.scope.failures)
        super()._become_visible()

    def _tell(self, kind: type[events.CallEvent], **fields: Any) -> None:
        if kind not in _QUIET:
            super()._tell(kind, **fields)


class GlueCall(_Glue, PlannedCall):
    """A conductor in the glue: a node, a walk from node to node, an item that may fall back."""

    def __init__(
        self, run: Execution, parent: Call | None, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(run, parent, step, args, kwargs)
        self.seen = Seen()

    def start(
        self,
        branch: Branch,
        step: Step,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        identity: tuple[bytes, int] | None = None,
    ) -> None:
        """Start a call, of the glue too: a block does not know the difference."""
        if isinstance(step, GlueStep):
            start_glue(self, branch, step, args, identity=identity, moment=self.seen.latest)
        else:
            super().start(branch, step, args, kwargs, identity=identity)

    def branch_ended(self, branch: Branch, call: Call) -> None:
        """The outcome of a call that the conductor has started is visible."""
        self.seen.note(call)
        if call.record is not None and self.scope is not None:
            self.scope.failures.pop(call.identity, None)  # that it was gone on from is recorded as well
        super().branch_ended(branch, call)


class HookCall(_Glue):
    """A hook at work: ``prep`` or ``post``."""

    moment: Moment | None = None  # after which it begins; None: right after what ran before
    kept: Any = None  # what a hook in a thread gave

    def _admit(self) -> None:
        if self.state is not State.ASKED:
            return
        if self.stopping is not None:
            self._end_stopped()
            return
        if not turns_of(self.run).admits(self):
            return
        needs = needs_of(None, self.step.limits)
        if needs and not self._ask_permit(needs):
            return
        self._launch()

    def _has_children(self) -> None:
        turns_of(self.run).end(self)
        super()._has_children()

    def _finish(self) -> None:
        if self.error is None and not self.step.is_async and self.value is None:
            self.value = self.kept
        super()._finish()

    def _become_visible(self) -> None:
        turns_of(self.run).end(self)
        super()._become_visible()

    def _open_question(self, question: Interrupted) -> None:
        turns_of(self.run).end(self)
        super()._open_question(question)


def hook_step(hook: Callable[..., Any], name: str, run: Execution) -> GlueStep:
    """The step of a hook."""
    if is_async_callable(hook):
        return GlueStep(_on_loop(hook), name, is_async=True)
    return GlueStep(_in_thread(hook), name, is_async=False, limits=turns_of(run).limits)


def _on_loop(hook: Callable[..., Any]) -> Callable[..., Any]:
    async def body(*args: Any) -> Any:
        call = current.get()
        assert isinstance(call, HookCall)
        call.run.loop.call_soon(turns_of(call.run).end, call)  # when it has begun, and waits for something
        return await hook(*args)

    return body


def _in_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    def body(*args: Any) -> Any:
        found = hook(*args)
        call = current.get()
        assert isinstance(call, HookCall)
        if hasattr(type(found), "__await__"):
            call.run.post(turns_of(call.run).end, call)
            return found
        call.kept = found  # what a thread returns is encoded there, and this is not recorded
        return None

    return body


def start_glue(
    parent: PlannedCall,
    branch: Branch,
    step: GlueStep,
    args: tuple[Any, ...],
    *,
    identity: tuple[bytes, int] | None = None,
    moment: Moment | None = None,
) -> None:
    """Start a call of the glue; the conductor of ``parent`` is told when it has ended.

    Args:
        parent: Whose conductor this is.
        branch: What the conductor knows the call by.
        step: What to run: a conductor, or a hook.
        args: Its arguments.
        identity: Of the call, in a journaled run, where not its name alone tells it from its siblings.
        moment: The recorded moment after which it begins; None: right after what ran before.
    """
    call: GlueCall | HookCall
    if step.is_planned:
        call = GlueCall(parent.run, parent, step, args, {})
        call.seen.latest = moment
    else:
        call = HookCall(parent.run, parent, step, args, {})
        call.moment = moment
    branch.call = call
    call.future = branch
    call.context = parent.context
    if (recorder := parent.run.recorder) is not None:
        call.identity, call.ordinal = identity or parent.identify(step.name, b"")
        if parent.scope is not None and parent.scope.failures:
            # That failures were gone on from is written in time for the next outcome, but no hook waits for it: it
            # would take its turn later than on a resume.
            recorder.before_start(call, parent.scope, _nothing)
    call.begin(b"")


def _nothing() -> None:
    pass


# Turns


class Turns:
    """Lets the hooks of one run begin one after the other."""

    def __init__(self, run: Execution) -> None:
        #: For sync hooks: one that waits for its own calls lets others go on, and goes on itself when it may.
        self.limits = (Limit("sync hooks", concurrent=1),)
        self._loop = run.loop
        self._now = FIRST  # the moment of whose turn it is, or was
        self._arrivals = count()
        self._outcomes = count()
        self._waiting: list[tuple[Moment, int, HookCall]] = []
        self._at_work: HookCall | None = None
        self._will_look = False
        self._replays = run.recorder is not None and run.recorder.loaded.count > 0

    def moment(self) -> Moment:
        """The moment of an outcome that is seen now, and was not recorded before this life of the run."""
        return (math.inf, next(self._outcomes))

    def admits(self, hook: HookCall) -> bool:
        """Whether it is its turn; if not, it will be admitted when it is."""
        if hook is self._at_work:
            return True
        moment = self._now if hook.moment is None else hook.moment
        if self._at_work is None and not self._waiting and not self._replays:
            self._now, self._at_work = moment, hook
            return True
        heappush(self._waiting, (moment, next(self._arrivals), hook))
        self._look_soon()
        return False

    def end(self, hook: HookCall) -> None:
        """The turn of this hook is over, if it has it."""
        if hook is self._at_work:
            self._at_work = None
            self._look_soon()

    def _look_soon(self) -> None:
        if self._waiting and not self._will_look:
            self._will_look = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """It is the turn of who waited for the earliest outcome.

        Nothing earlier can come: no hook is at work, and recorded outcomes, which hooks may still have to wait for, are
        seen in the very turn of the loop in which they are asked for.
        """
        self._will_look = False
        if self._at_work is not None or not self._waiting:
            return
        moment, _, hook = heappop(self._waiting)
        if hook.state is not State.ASKED:  # stopped meanwhile
            self._look_soon()
            return
        self._replays = self._replays and moment[0] < math.inf
        self._now, self._at_work = moment, hook
        hook._admit()


# A run has no place of its own for what a style keeps of it.
_of_runs: WeakKeyDictionary[Execution, Turns] = WeakKeyDictionary()


def turns_of(run: Execution) -> Turns:
    """The turns of the hooks of this run."""
    found = _of_runs.get(run)
    if found is None:
        found = _of_runs[run] = Turns(run)
    return found
