"""How the code of a batch program that is not recorded takes part in a run: its hooks, and what walks from node to node.

What is recorded of a batch program is ``exec``. Everything else is *glue*: on a resume it runs again, and does to
``shared`` what it did before. So a call of the glue leaves no record, its outcome is seen at once, and it counts in
no limit. Two things are promised for hooks all the same:

- Sync hooks of one run never run at the same time, so that a program need not lock its ``shared``. One that waits for
  calls of its own lets others go on.
- On a resume hooks run in the order in which they ran at first, one by one, until there is nothing recorded left.
"""

from __future__ import annotations

import asyncio
import math
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from weft.engine import events
from weft.engine.call import Call
from weft.engine.limits import Limit, needs_of
from weft.engine.planned import PlannedCall
from weft.engine.states import State
from weft.engine.step import Step

if TYPE_CHECKING:
    from weft.core.question import Interrupt  # noqa: F401 - in a docstring
    from weft.engine.execution import Execution
    from weft.engine.futures import Branch
    from weft.errors import Interrupted

#: A moment of the first life of a run: which commit, and when the outcome was handed to it.
Moment = tuple[float, float]

#: Before everything, and after all that is recorded.
FIRST: Moment = (0.0, 0.0)
FRESH: Moment = (math.inf, 0.0)

#: Seconds for which a hook that runs again holds up those after it. One that waits for another hook must not do so
#: for ever.
_PATIENCE = 1.0

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
    return FRESH if record is None else (float(record.batch), record.ended)


class GlueStep(Step):
    """A step of which nothing is recorded."""

    __slots__ = ()


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
            start_glue(self, branch, step, args, identity=identity)
        else:
            super().start(branch, step, args, kwargs, identity=identity)

    def branch_ended(self, branch: Branch, call: Call) -> None:
        """The outcome of a call that the conductor has started is visible."""
        self.seen.note(call)
        super().branch_ended(branch, call)


class HookCall(_Glue):
    """A hook at work: ``prep`` or ``post``."""

    moment: Moment | None = None  # in the first life of the run, after which this hook began; None: at once

    def _admit(self) -> None:
        if self.state is not State.ASKED:
            return
        if self.stopping is not None:
            self._end_stopped()
            return
        hooks = hooks_of(self.run)
        if not hooks.order.is_over and not hooks.order.admits(self):
            return
        needs = needs_of(None, self.step.limits)
        if needs and not self._acquire(needs):
            return
        self._launch()

    def _become_visible(self) -> None:
        hooks_of(self.run).order.ended(self)
        super()._become_visible()

    def _open_question(self, question: Interrupted) -> None:
        hooks_of(self.run).order.ended(self)
        super()._open_question(question)


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
        moment: Of a hook: the recorded moment after which it begins; None: right after what ran before.
    """
    call: Call
    if step.is_planned:
        call = GlueCall(parent.run, parent, step, args, {})
    else:
        call = HookCall(parent.run, parent, step, args, {})
        call.moment = moment
    branch.call = call
    call.future = branch
    call.context = parent.context
    if parent.run.recorder is not None:
        call.identity, call.ordinal = identity or parent.identify(step.name, b"")
    call.begin(b"")


# What the hooks of one run share


class RunHooks:
    """What the hooks of one run share."""

    def __init__(self, run: Execution) -> None:
        self.limits = (Limit("sync hooks", concurrent=1),)
        self.order = HookOrder(run)


class HookOrder:
    """Lets hooks begin in the order of the first life of the run, as long as there are recorded outcomes.

    A hook runs after the outcome that it waited for, and outcomes were seen in the order of their records; or at
    once after the hook before it. So the hook with the earliest moment is next as soon as nothing is on its way that
    could ask for an earlier one: no other hook is at work, and the loop has had its turn. Recorded outcomes take none.
    """

    def __init__(self, run: Execution) -> None:
        self._run = run
        self._now = FIRST  # the moment up to which hooks have begun
        self._arrivals = count()
        self._waiting: list[tuple[Moment, int, HookCall]] = []
        self._working: dict[HookCall, asyncio.TimerHandle] = {}
        self._let_in: HookCall | None = None
        self._will_look = False
        self.is_over = run.recorder is None or not run.recorder.loaded.count

    def admits(self, hook: HookCall) -> bool:
        """Whether it may begin now; if not, it will be admitted again when its turn has come."""
        if hook is self._let_in:
            return True
        moment = self._now if hook.moment is None else hook.moment
        heappush(self._waiting, (moment, next(self._arrivals), hook))
        self._look_soon()
        return False

    def ended(self, hook: HookCall) -> None:
        """A hook has ended, or waits for an answer."""
        if (timer := self._working.pop(hook, None)) is not None:
            timer.cancel()
            self._look_soon()

    def _look_soon(self) -> None:
        if not self._will_look and not self.is_over:
            self._will_look = True
            self._run.loop.call_soon(self._look)

    def _look(self) -> None:
        self._will_look = False
        if self._working or not self._waiting:
            return
        moment, _, hook = heappop(self._waiting)
        if moment >= FRESH:  # nothing recorded can come any more, so this is where the first life ended
            self.is_over = True
            hook._admit()
            while self._waiting:
                heappop(self._waiting)[2]._admit()
            return
        if hook.state is not State.ASKED:  # stopped meanwhile
            self._look_soon()
            return
        self._now = max(self._now, moment)
        self._working[hook] = self._run.loop.call_later(_PATIENCE, self.ended, hook)
        self._let_in = hook
        hook._admit()
        self._let_in = None


# A run has no place of its own for what a style keeps of it.
_of_runs: WeakKeyDictionary[Execution, RunHooks] = WeakKeyDictionary()


def hooks_of(run: Execution) -> RunHooks:
    """What the hooks of this run share."""
    found = _of_runs.get(run)
    if found is None:
        found = _of_runs[run] = RunHooks(run)
    return found
