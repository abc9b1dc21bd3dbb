"""The hooks of a batch program, and whose turn it is.

What is recorded of a batch program is ``exec``. Everything else is glue (see :mod:`weft.engine.glue`): on a resume it
runs again, and does to ``shared`` what it did before. So hooks *take turns*: a program need not lock its ``shared``,
and a resume does the same again. The turn of a sync hook lasts until it ends, or waits for calls of its own; that of
an async hook until it first waits. Whose turn it is, is decided by what the hooks waited for: the outcomes of ``exec``,
in the order of their records.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import cached_property, partial
from heapq import heappop, heappush
from itertools import count, repeat
from operator import attrgetter
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from weft.engine.awaited import is_awaitable
from weft.engine.call import Call
from weft.engine.context import current
from weft.engine.crew import CrewedCall
from weft.engine.futures import LoopFuture
from weft.engine.glue import Glue, GlueCall, GlueStep, PlannedGlue
from weft.engine.limits import Limit
from weft.engine.states import ASKED, OVER, State
from weft.engine.step import Step, is_async_callable
from weft.errors import InputError

if TYPE_CHECKING:
    from weft.batch import BaseNode
    from weft.batch_plain import Plan
    from weft.core.timeout import TimeoutPolicy
    from weft.engine.execution import Execution
    from weft.engine.futures import Branch
    from weft.engine.planned import PlannedCall

#: What hooks are ordered by: the commit that made an outcome durable, and when that was asked for. Outcomes of this
#: life of the run come after all recorded ones, in the order in which they are seen.
Moment = tuple[float, float]

#: Before everything.
FIRST: Moment = (0.0, 0.0)


# What a node has

#: How many attempts of ``exec`` there were before this one.
retry_number: ContextVar[int] = ContextVar("weft_cur_retry", default=0)

MISSING: Any = object()

#: How an object says that it is copied in a way of its own.
_WAYS_OF_COPYING = frozenset(
    ("__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__", "__slots__")
)


def default(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a hook of a base class: it need not be called."""
    hook.__weft_default__ = hook  # type: ignore[attr-defined]  # itself: a wrapper takes the mark over, and is called
    return hook


class Hook(NamedTuple):
    """A hook that a node's own class defines: how it is spelled there, and whether it is async."""

    spelling: str
    is_async: bool


class Hooks:
    """What a class of nodes has for hooks: of each its own spelling, sync or async; None where it has none.

    Attributes:
        cls: The class.
        made_of: The hooks of all spellings that it had when this was made, which ``read`` reads.
        absent: The spellings that it had not.
        is_kept: Whether that says it all: they are functions, the same for each node.
        plan: How its nodes run where one call is enough, once that was asked.
    """

    __slots__ = (
        "absent",
        "cls",
        "exec",
        "exec_fallback",
        "is_kept",
        "made_of",
        "plan",
        "post",
        "prep",
        "read",
    )

    def __init__(self, node: BaseNode, *, are_own: bool = False) -> None:
        self.cls = cls = type(node)
        self.read: Callable[[type], tuple[Any, ...]] = attrgetter(*filter(partial(hasattr, cls), _SPELLINGS))
        self.made_of = self.read(cls)
        self.absent = [each for each in _SPELLINGS if not hasattr(cls, each)]
        are_functions = all(isinstance(each, FunctionType) for each in self.made_of)
        self.is_kept = are_functions and not are_own and not hasattr(cls, "__getattr__")
        self.plan: Plan | None = None
        self.prep = _hook(node, "prep")
        self.exec = _hook(node, "exec")
        self.exec_fallback = _hook(node, "exec_fallback")
        self.post = _hook(node, "post")

    @property
    def are_still_those(self) -> bool:
        """Whether nobody has changed the class since."""
        try:
            is_same = self.made_of == self.read(self.cls)
        except AttributeError:  # there is one less
            return False
        return is_same and not (self.absent and any(map(hasattr, repeat(self.cls), self.absent)))


_SPELLINGS = [
    name + suffix for name in ("prep", "exec", "exec_fallback", "post") for suffix in ("", "_async")
]
_ARE_HOOKS = frozenset(_SPELLINGS)


def hooks_of(node: BaseNode) -> Hooks:
    """The hooks of a node: those of its class, which are looked up once, and again when somebody has changed them."""
    if not _ARE_HOOKS.isdisjoint(vars(node)):  # somebody has set one on the node itself
        return Hooks(node, are_own=True)
    cls = type(node)
    found: Hooks | None = cls._weft_hooks
    if found is None or found.cls is not cls or not found.are_still_those:
        found = Hooks(node)
        if found.is_kept:
            cls._weft_hooks = found
    return found


def _hook(node: BaseNode, name: str) -> Hook | None:
    spellings = (f"{name}_async", name) if node._weft_is_async else (name, f"{name}_async")
    for spelling in spellings:
        hook = getattr(node, spelling, None)
        function = getattr(hook, "__func__", hook)
        if hook is not None and getattr(function, "__weft_default__", None) is not function:
            return Hook(spelling, is_async_callable(hook))
    return None


def is_plain_object(cls: type, base: type) -> bool:
    """Whether an object of a class below ``base`` is what is in its ``__dict__``, and is copied with that."""
    own = [each for each in cls.__mro__ if each not in base.__mro__ and each is not Generic]
    return all(_WAYS_OF_COPYING.isdisjoint(vars(each)) for each in own)


def copied(node: BaseNode) -> BaseNode:
    """A copy of a node, as ``copy.copy`` makes it."""
    cls = type(node)
    if not cls._weft_is_plain_object:
        return copy.copy(node)
    mine: BaseNode = object.__new__(cls)
    vars(mine).update(vars(node))
    return mine


def give_back(mine: BaseNode, original: BaseNode) -> None:
    """A node that was run by itself keeps what its hooks have set on it, as users of ``node.run`` expect."""
    before = vars(original)
    changed = {name: value for name, value in vars(mine).items() if value is not before.get(name, MISSING)}
    changed.pop("params", None)  # those of a run that is resumed are the run's
    before.update(changed)


def listed(key: str, found: Any) -> list[Any]:
    """The items that ``prep`` gave."""
    if found is None:
        return []
    if not isinstance(found, Iterable):
        raise InputError(f"{key}.prep must give a list of items (or None for none), not {found!r:.80}")
    return list(found)


# What was seen


class Seen:
    """The recorded moment after which something goes on that waited for outcomes."""

    __slots__ = ("latest",)

    def __init__(self, latest: Moment | None = None) -> None:
        self.latest = latest  # None: it goes on right after what ran before

    def note(self, call: Call) -> None:
        """An outcome that is waited for is there. Where nothing is recorded, hooks go as they come."""
        if call.run.is_plain or isinstance(call, _ARE_NO_OUTCOMES):
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

    def call_in(self, parent: PlannedCall, args: tuple[Any, ...]) -> Glue:
        """A call that waits for its turn."""
        return HookCall(parent, self, args)


class HookCall(GlueCall):
    """A hook at work."""

    takes_turns = True

    def __init__(self, parent: PlannedCall, step: Step, args: tuple[Any, ...]) -> None:
        super().__init__(parent.run, parent, step, args, {})
        self.moment = seen_by(parent).latest  # after which it begins

    def adds_to_record(self, call: Call) -> bool:
        """Its turn is over first."""
        return False

    def may_begin(self) -> bool:
        """Whether it is its turn."""
        return turns_of(self.run).admits(self)

    def make_way(self) -> None:
        """Its turn is over."""
        turns_of(self.run).end(self)

    def launch_alone(self) -> None:
        """Begin in a task of its own, and have the turn until that waits for something."""
        super().launch_alone()
        self.run.loop.call_soon(self.make_way)

    def has_begun_to_wait(self) -> None:
        """Its turn is over in the next turn of the loop."""
        self.run.loop.call_soon(self.make_way)


def hook_step(hook: Callable[..., Any], name: str, run: Execution, *, is_async: bool) -> HookStep:
    """The step of a hook."""
    if is_async:
        return HookStep(hook, name, is_async=True)
    return HookStep(_in_thread(hook), name, is_async=False, limits=turns_of(run).limits)


def _in_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    def body(*args: Any) -> Any:
        found = hook(*args)
        if is_awaitable(found):
            call = current.get()
            assert isinstance(call, HookCall)
            call.run.post(call.make_way)
        return found

    return body


# Nodes that are one call


class PlainNodeCall(CrewedCall):
    """A node whose hooks one body awaits one after the other; see :mod:`weft.batch_plain`.

    To whoever asks it is the hook that is at work: that has an id of its own, and its name and input stand in errors.
    """

    is_recorded = False  # nor is anything else in its run
    is_told_of = False
    waits_for_its_own = True
    doing: tuple[str, Callable[..., Any], tuple[Any, ...]] | None = (
        None  # the hook: its name, what it is, its input
    )
    place = 0  # of the hook, among what the body has asked for

    @property
    def path(self) -> list[int]:
        """Its place in the program, with that of the hook in it."""
        return [*super().path, self.place]

    async def do(self, name: str, hook: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Await a hook, and what it has begun."""
        self.asked = self.place = self.asked + 1
        self.doing = name, hook, args
        if name and (turns := self.run.kept.get(_KEPT)) is not None and not turns.is_free:
            await turns.come()
        value = await hook(*args)
        if is_awaitable(value):
            value = await value
        if self.pending:
            await self._end_of_children()
        return value

    async def conducted(self, step: Step, args: tuple[Any, ...]) -> Any:
        """Await a call of the glue that has a conductor."""
        call = PlannedGlue(self.run, self, step, args, {})
        call.future = future = LoopFuture(loop=self.run.loop)
        future.call = call
        call.begin(b"")
        return await future

    async def _end_of_children(self) -> None:
        while self.pending:
            futures = [child.future for child in self.children]
            await asyncio.wait(futures)  # type: ignore[type-var]  # a body on the loop has LoopFutures
            for future in futures:
                future.forget()

    def _conclude(self, value: Any, error: BaseException | None) -> None:
        if error is not None and self.doing is not None:
            name, hook, self.args = self.doing
            key = f"{self.step.name}.{name}" if name else self.step.name
            self.step = Step(hook, key, is_async=True)
        super()._conclude(value, error)


#: What hooks do not go by.
_ARE_NO_OUTCOMES = (HookCall, PlainNodeCall)


# Turns


class Guest:
    """Somebody who waits for a turn without being a call."""

    def __init__(self, turns: Turns, loop: asyncio.AbstractEventLoop) -> None:
        self.state: State = ASKED
        self.is_there = loop.create_future()
        self._turns = turns
        self._loop = loop

    def admit(self) -> None:
        """It is its turn, until it first waits."""
        if not self.is_there.done():
            self.is_there.set_result(None)
        self._loop.call_soon(self._turns.end, self)


class Turns:
    """Lets the hooks of one run begin one after the other."""

    def __init__(self, run: Execution) -> None:
        self._loop = run.loop
        self._now = FIRST  # the moment of whose turn it is, or was
        self._arrivals = count()
        self._outcomes = count()
        self._waiting: list[tuple[Moment, int, HookCall | Guest]] = []
        self._at_work: HookCall | Guest | None = None
        self._will_look = False
        self._replays = run.recorder is not None and run.recorder.loaded.count > 0

    @cached_property
    def limits(self) -> tuple[Limit]:
        """For sync hooks: one that waits for its own calls lets others go on, and goes on itself when it may."""
        limit = Limit("sync hooks", concurrent=1)
        limit.capacity.is_kept = False  # one that was given up must not stop the others
        return (limit,)

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

    @property
    def is_free(self) -> bool:
        """Whether nobody has the turn, or waits for it."""
        return self._at_work is None and not self._waiting

    async def come(self) -> None:
        """Wait for a turn, in a run that is not recorded; it lasts until whoever awaits this waits again."""
        guest = Guest(self, self._loop)
        heappush(self._waiting, (self._now, next(self._arrivals), guest))
        self._look_soon()
        try:
            await guest.is_there
        finally:
            guest.state = OVER

    def end(self, hook: HookCall | Guest) -> None:
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

        Where hooks do not wait themselves, nothing earlier can come: none is at work, and recorded outcomes, which they
        may still have to wait for, are seen in the very turn of the loop in which they are asked for.
        """
        self._will_look = False
        if self._at_work is not None or not self._waiting:
            return
        moment, _, hook = heappop(self._waiting)
        if hook.state is not ASKED:  # stopped meanwhile
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
