"""The hooks of a batch program, and whose turn it is.

What is recorded of a batch program is ``exec``. Everything else is glue (see :mod:`weft.engine.glue`): on a resume it
runs again, and does to ``shared`` what it did before. So hooks *take turns*: a program need not lock its ``shared``,
and a resume does the same again. The turn of a sync hook lasts until it ends, or waits for calls of its own; that of
an async hook until it first waits. Whose turn it is, is decided by what the hooks waited for: the outcomes of ``exec``,
in the order of their records.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any

from weft.engine.call import Call
from weft.engine.context import current
from weft.engine.glue import Glue, GlueCall, GlueStep, PlannedGlue
from weft.engine.limits import Limit
from weft.engine.states import State
from weft.engine.step import Step, is_async_callable

if TYPE_CHECKING:
    from weft.core.timeout import TimeoutPolicy
    from weft.engine.execution import Execution
    from weft.engine.futures import Branch
    from weft.engine.planned import PlannedCall

#: What hooks are ordered by: the commit that made an outcome durable, and when that was asked for. Outcomes of this
#: life of the run come after all recorded ones, in the order in which they are seen.
Moment = tuple[float, float]

#: Before everything.
FIRST: Moment = (0.0, 0.0)


# What was seen


class Seen:
    """The recorded moment after which something goes on that waited for outcomes."""

    __slots__ = ("latest",)

    def __init__(self, latest: Moment | None = None) -> None:
        self.latest = latest  # None: it goes on right after what ran before

    def note(self, call: Call) -> None:
        """An outcome that is waited for is there."""
        if isinstance(call, HookCall):
            return
        moment = call.seen.latest if isinstance(call, NodeCall) else _moment_of(call)
        if moment is not None:
            self.latest = moment if self.latest is None else max(self.latest, moment)


def _moment_of(call: Call) -> Moment:
    record = call.record
    return turns_of(call.run).moment() if record is None else (float(record.batch), record.ended)


def seen_by(call: PlannedCall) -> Seen:
    """What the conductor of this call, a node's or one in a node, has seen."""
    if isinstance(call, NodeCall):
        return call.seen
    found: Seen = call.conductor.seen  # type: ignore[union-attr]  # only a node is begun by others
    return found


class NodeStep(GlueStep):
    """A conductor of a batch program: a node, a walk from node to node, an item that may fall back."""

    __slots__ = ()

    @classmethod
    def conducted(
        cls, conduct: Callable[..., Any], name: str, *, timeout: TimeoutPolicy | None = None
    ) -> NodeStep:
        """The step whose calls have the conductor that ``conduct(call, *args)`` gives."""
        return cls(conduct, name, is_async=True, is_planned=True, timeout=timeout)

    def call_in(self, parent: PlannedCall, args: tuple[Any, ...]) -> Glue:
        """A call that knows what it has seen."""
        return NodeCall(parent, self, args)


class NodeCall(PlannedGlue):
    """A conductor at work, with what it has seen."""

    def __init__(self, parent: PlannedCall, step: Step, args: tuple[Any, ...]) -> None:
        super().__init__(parent.run, parent, step, args, {})
        self.seen = Seen(seen_by(parent).latest)

    def branch_ended(self, branch: Branch, call: Call) -> None:
        """The outcome of a call that the conductor has started is visible."""
        self.seen.note(call)
        super().branch_ended(branch, call)


# Hooks


class HookStep(GlueStep):
    """A hook: ``prep`` or ``post``."""

    __slots__ = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "is_plain", False)  # it may not begin before it is its turn

    def call_in(self, parent: PlannedCall, args: tuple[Any, ...]) -> Glue:
        """A call that waits for its turn."""
        return HookCall(parent, self, args)


class HookCall(GlueCall):
    """A hook at work."""

    def __init__(self, parent: PlannedCall, step: Step, args: tuple[Any, ...]) -> None:
        super().__init__(parent.run, parent, step, args, {})
        self.moment = seen_by(parent).latest  # after which it begins

    def may_begin(self) -> bool:
        """Whether it is its turn."""
        return turns_of(self.run).admits(self)

    def make_way(self) -> None:
        """Its turn is over."""
        turns_of(self.run).end(self)


def hook_step(hook: Callable[..., Any], name: str, run: Execution) -> HookStep:
    """The step of a hook."""
    if is_async_callable(hook):
        return HookStep(_on_loop(hook), name, is_async=True)
    return HookStep(_in_thread(hook), name, is_async=False, limits=turns_of(run).limits)


def _on_loop(hook: Callable[..., Any]) -> Callable[..., Any]:
    async def body(*args: Any) -> Any:
        call = current.get()
        assert isinstance(call, HookCall)
        call.run.loop.call_soon(call.make_way)  # when it has begun, and waits for something
        return await hook(*args)

    return body


def _in_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    def body(*args: Any) -> Any:
        found = hook(*args)
        if hasattr(type(found), "__await__"):
            call = current.get()
            assert isinstance(call, HookCall)
            call.run.post(call.make_way)
        return found

    return body


# Turns


class Turns:
    """Lets the hooks of one run begin one after the other."""

    def __init__(self, run: Execution) -> None:
        #: For sync hooks: one that waits for its own calls lets others go on, and goes on itself when it may.
        self.limits = (Limit("sync hooks", concurrent=1),)
        self.limits[0].capacity.is_kept = False  # one that was given up must not stop the others
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
        hook.admit()


#: Where a run keeps its turns.
_KEPT = "batch: the turns of hooks"


def turns_of(run: Execution) -> Turns:
    """The turns of the hooks of this run."""
    found: Turns | None = run.kept.get(_KEPT)
    if found is None:
        found = run.kept[_KEPT] = Turns(run)
    return found
