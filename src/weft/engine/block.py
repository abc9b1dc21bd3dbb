"""A block: runs branches in parallel and collects their outcomes, under one set of options for every style.

What it decides is in :mod:`weft.core`: the policy whether it has its result, the size how many branches are in
flight. On a resume it first takes what is recorded, in the recorded order, and decides on that; only then does it
start anything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from weft.core.checks import check_count
from weft.core.outcome import Cancelled, Failed, Outcome, TimedOut
from weft.core.policy import Policy, Verdict, policy_of
from weft.core.sizing import ESTIMATED_MEMORY, GROWTH_AFTER, Size, check_estimate, grown, size_of
from weft.engine.crew import CrewedCall, crew_of
from weft.engine.feed import NOTHING, Feed, Known
from weft.engine.futures import Branch
from weft.engine.results import Collected, HandedOver, Results, Sink
from weft.errors import (
    DefinitionError,
    InputError,
    NodeTimeoutError,
    ParallelExecutionError,
    ParallelTimeoutError,
    RunCancelledError,
    UnstorableError,
)

if TYPE_CHECKING:
    from contextvars import Context

    from weft.engine.call import Call
    from weft.engine.planned import PlannedCall
    from weft.engine.step import Step

#: How many items that are not recorded are held back, on a resume, while the recorded ones are looked for.
_HELD_BACK = 10_000


#: How many branches of a source without a known end are started in one go.
_IN_ONE_GO = 64


@dataclass(frozen=True, slots=True)
class BlockOptions:
    """How a block runs its branches; the same for every style.

    Attributes:
        policy: What the outcomes of the branches mean for the block.
        max_concurrent: How many branches at once, exactly; None to choose.
        optimize: Whether to choose by cores and memory where ``max_concurrent`` is None; if not, all at once.
        memory_per_node: Bytes that a branch is taken to need.
    """

    policy: Policy
    max_concurrent: int | None = None
    optimize: bool = True
    memory_per_node: int = ESTIMATED_MEMORY

    @classmethod
    def of(
        cls,
        *,
        max_concurrent: int | None = None,
        on_error: Any = "fail_fast",
        need: int | None = None,
        optimization_enabled: bool = True,
        estimated_memory_per_node: int = ESTIMATED_MEMORY,
    ) -> BlockOptions:
        """The options as users spell them, checked; the same words in every style.

        Raises:
            DefinitionError: One of them can never work.
        """
        if max_concurrent is not None:
            check_count("max_concurrent", max_concurrent)
        return cls(
            policy_of(on_error, need),
            max_concurrent,
            optimization_enabled,
            check_estimate(estimated_memory_per_node),
        )


#: What to start for an item: the step, and its arguments by position and by name.
Start = tuple["Step", tuple[Any, ...], dict[str, Any]]


class Style(Protocol):
    """What ``parallel``, ``map`` and other users of a block differ in."""

    #: Whether any branch may compute.
    may_compute: bool

    #: Whether every branch is an async body with no options, which a hand of the crew can begin.
    is_light: bool

    #: Whether some branches may compute and others not.
    is_mixed: bool

    def start_of(self, item: Any) -> Start:
        """The call that an item becomes.

        Raises:
            Exception: It cannot become one; the branch has failed with that.
        """

    def fingerprint(self, call: PlannedCall, start: Start) -> bytes:
        """What tells the branch from others of its name, in a journaled run."""

    def computes(self, item: Any) -> bool:
        """Whether the branch has a sync body, which needs a core."""

    def name_of(self, index: int) -> str | int:
        """What errors call a branch."""

    def result(self, values: list[Any]) -> Any:
        """The block's value, of those of its branches or of their outcomes."""


#: A branch that is not started yet: its number, its item and, where they are known, what to start as which call.
_Waiting = tuple[int, Any, Start | None, tuple[bytes, int] | None]


class Block:
    """The conductor of a block."""

    is_serial = False

    def __init__(
        self, call: PlannedCall, style: Style, feed: Feed, options: BlockOptions, sink: Sink | None = None
    ) -> None:
        self._call = call
        self._style = style
        self._feed = feed
        self._options = options
        self._results: Results = (
            Collected(options.policy)
            if sink is None
            else HandedOver(options.policy, sink, self._stale_records)
        )
        self._ok = self._not_ok = 0
        self._begun = 0
        self._have_all_begun = False
        self._is_giving = False  # to the crew, which asks for the next branch when it has the time for it
        self._context: Context | None = None  # for the user's code then, of which a hand's own has nothing
        self._started: set[int] = set()  # and not ended
        self._computing: dict[int, Branch] = {}
        self._passed_by: deque[_Waiting] = deque()  # they compute, and no core is left
        self._held_back: deque[_Waiting] = deque()  # not recorded, while recorded ones are looked for
        self._error: BaseException | None = None  # ends the block whatever its policy is
        self._size: Size | None = None
        self._width: int | None = None  # of the size
        self._computing_width: int | None = None
        self._growth: asyncio.TimerHandle | None = None
        self._recalls = self.is_looking = call.scope is not None and call.scope.order.replaying
        if feed.total:
            try:
                options.policy.check(feed.total)
            except DefinitionError as error:  # how many items there are was no part of the definition
                raise InputError(str(error)) from None

    # What the engine tells

    def note(self, branch: Branch, call: Call) -> None:
        """A branch has ended."""
        index = branch.index
        self._started.discard(index)
        if self._computing:
            self._computing.pop(index, None)
        error = call.error
        if error is None:
            self._ok += 1
            self._results.succeeded(index, call.value)
            if self._have_all_begun or self._is_giving:
                verdict = self._options.policy.verdict(self._ok, self._not_ok, self._feed.total)
                self._call.rests = verdict is Verdict.GO_ON
            else:
                self._call.rests = False
            return
        self._call.rests = False
        if isinstance(error, Exception | asyncio.CancelledError):
            self._failed(index, _outcome_of(call), call.identity)
        elif self._error is None:
            self._error = error
            with suppress(Exception):  # an error may refuse notes
                error.add_note(f"raised by branch {self._name(index)!r} of {self._call.step.name!r}")

    def advance(self) -> None:
        """Decide, or start what there is room for."""
        self._error = self._error or self._feed.interrupt
        if self._results.is_full and self._error is None and self._is_left:
            self._error = RunCancelledError(f"nobody takes the results of {self._call.step.name!r} any more")
        if self._error is not None:
            self._call.conclude(None, self._error)
            return
        verdict = self._verdict()
        if verdict is not Verdict.GO_ON:
            self._decide(verdict)
        elif self._recalls:
            self._recall()
        else:
            self._fill()

    def _verdict(self) -> Verdict:
        return self._options.policy.verdict(self._ok, self._not_ok, self._feed.total)

    @property
    def may_start_more(self) -> bool:
        """Whether its source, or who takes its results, may make it start another branch."""
        if self._call.concluded:
            return False
        if self._results.is_full:
            return True
        return self._feed.total is None and self._has_room

    def close(self, then: Callable[[], None]) -> None:
        """Stop growing, and reading."""
        if self._growth is not None:
            self._growth.cancel()
        if self._is_giving:
            self._is_giving = False
            crew_of(self._call.run).take_back(self)
        self._feed.close(then)

    def timeout_error(self, limit: float, elapsed: float) -> NodeTimeoutError:
        """The error of a block that is out of time."""
        names = [self._name(index) for index in sorted(self._started)]
        return ParallelTimeoutError(self._call.step.name, timeout=limit, elapsed=elapsed, unfinished=names)

    # Outcomes

    def _failed(self, index: int, outcome: Outcome[Any], identity: bytes | None) -> None:
        self._not_ok += 1
        if self._options.policy.gives_outcomes and self._call.run.recorder is not None:
            outcome = self._storable(index, outcome)
        self._results.failed(index, outcome, identity)

    def _storable(self, index: int, outcome: Outcome[Any]) -> Outcome[Any]:
        """The outcome, or one that says so where it could not be recorded as part of the block's own result."""
        assert self._call.run.recorder is not None
        try:
            self._call.run.recorder.codec.encode(outcome)
        except UnstorableError as refused:
            error = UnstorableError(f"the failure of branch {self._name(index)!r}", refused.reason)
            error.__cause__ = getattr(outcome, "error", None)
            return Failed(error)
        return outcome

    def _decide(self, verdict: Verdict) -> None:
        ok, failed, total = self._ok, self._not_ok, self._feed.total
        audience = self._call.run.audience
        if verdict is Verdict.DONE and not self._call.pending and audience is None:
            reason = ""  # for nobody
        else:
            reason = self._options.policy.reason(ok, failed, total)
        if audience is not None:
            audience.decided(self._call, reason=reason, ok=ok, failed=failed, total=total)
        if verdict is Verdict.FAILED:
            self._call.conclude(None, self._failure(reason), reason=reason)
        else:
            value = self._results.all(self._style.result, count=total, unfinished=self._started)
            self._call.conclude(value, None, reason=reason)

    def _failure(self, reason: str) -> Exception:
        found = self._results.failures
        if not found:
            return InputError(f"{self._call.step.name!r} cannot have its result: {reason}")
        failures = {self._name(index): _error_of(found[index]) for index in sorted(found)}
        return ParallelExecutionError(self._call.step.name, failures, reason)

    def _stale_records(self) -> list[bytes]:
        scope = self._call.scope
        return [] if scope is None else [item.identity for item in scope.order.unclaimed()]

    def _name(self, index: int) -> str | int:
        return self._style.name_of(index)

    # Starting

    def _fill(self) -> None:
        feed, was_known = self._feed, self._feed.total is not None
        if was_known and feed.is_over and not self._passed_by and not self._held_back:
            self._have_all_begun = self._error is None
            return
        if self._may_give:
            self._give_to_crew()
            return
        started = 0
        while self._has_room and (waiting := self._next()) is not None:
            self._start(waiting)
            started += 1
            if started == _IN_ONE_GO and feed.total is None:
                self._call.run.loop.call_soon(self._call.advance_soon)  # others are to have their turn
                break
        if self._passed_by and self._growth is None:
            self._growth = self._call.run.loop.call_later(GROWTH_AFTER, self._grow)
        if not was_known and feed.total is not None:
            self._call.advance_soon()  # perhaps the last has ended already

    @property
    def _may_give(self) -> bool:
        """Whether the crew may begin branches, when it has the time: nothing else is to know of them before."""
        call = self._call
        is_light = self._style.is_light and isinstance(self._feed, Known)
        return is_light and call.run.is_plain and call.permit is None and call.watch is None

    def _give_to_crew(self) -> None:
        if not self._is_giving and self._has_room:
            self._is_giving = True
            if self._context is None:
                self._context = self._call.source_context()
            crew_of(self._call.run).add(self)

    def give(self) -> CrewedCall | None:
        """The next branch, begun as a child of the block, for the crew."""
        try:
            given = self._give()
        except BaseException as error:  # as in PlannedCall._advance
            self._call.conclude(None, error)
            given = None
        self._is_giving = given is not None
        return given

    def _give(self) -> CrewedCall | None:
        call = self._call
        while not call.concluded and call.stopping is None and self._has_room:
            if not call.run.is_plain:
                call.advance_soon()  # somebody looks on, and is to be told of the others
                return None
            if (item := self._feed.next()) is NOTHING:  # nothing is held back where nothing is recorded
                self._have_all_begun = True
                return None
            index = self._begun
            self._begun = index + 1
            if (start := self._start_of(index, item, self._context)) is not None:
                self._started.add(index)
                branch = Branch(call, index)
                branch.call = given = CrewedCall(call.run, call, *start)
                given.future = branch
                given.context = call.context
                given._join_parent(call)
                return given
        return None

    def _start_of(self, index: int, item: Any, context: Context | None = None) -> Start | None:
        """What to start for an item that begins; None if it has failed with that."""
        self._results.begin(index)
        try:
            if context is not None:
                return context.run(self._style.start_of, item)
            return self._style.start_of(item)
        except Exception as error:
            self._failed(index, Failed(error), None)
            self._call.advance_soon()
            return None

    @property
    def _is_left(self) -> bool:
        """Whether the body that takes the results has ended, so that there will never be room for more."""
        parent = self._call.parent
        return parent is not None and not parent.is_running

    @property
    def _has_room(self) -> bool:
        if self._results.is_full:
            return False
        if self._size is None:
            self._choose_size()
        return self._width is None or len(self._started) < self._width

    def _next(self) -> _Waiting | None:
        if not self._style.may_compute:
            return self._held_back.popleft() if self._held_back else self._read()
        may_compute = self._may_compute
        if may_compute and self._passed_by:
            return self._passed_by.popleft()
        if self._passed_by and not self._style.is_mixed:
            return None  # the others are like it
        while (waiting := self._held_back.popleft() if self._held_back else self._read()) is not None:
            if may_compute or not self._style.computes(waiting[1]):
                return waiting
            self._passed_by.append(waiting)
            if not self._style.is_mixed:
                return None
        return None

    def _read(self) -> _Waiting | None:
        item = self._feed.next()
        if item is NOTHING:
            return None
        self._begun += 1
        return self._begun - 1, item, None, None

    def _start(self, waiting: _Waiting) -> None:
        index, item, start, identity = waiting
        if start is not None:
            self._results.begin(index)
        elif (start := self._start_of(index, item)) is None:
            return
        if identity is None and self._call.run.recorder is not None:
            identity = self._identify(start)
        self._started.add(index)
        branch = Branch(self._call, index)
        if self._style.may_compute and self._style.computes(item):
            self._computing[index] = branch
        step, args, kwargs = start
        self._call.start(branch, step, args, kwargs, identity=identity)

    def _identify(self, start: Start) -> tuple[bytes, int]:
        return self._call.identify(start[0].name, self._style.fingerprint(self._call, start))

    # Size

    def _choose_size(self) -> None:
        self._size = self._chosen_size()
        self._width = self._size.width
        self._computing_width = self._size.computing
        self._tell_size(self._size.reason)

    def _chosen_size(self) -> Size:
        options = self._options
        return size_of(
            max_concurrent=options.max_concurrent,
            optimize=options.optimize,
            branches=self._feed.total,
            computing=True,
            resources=self._call.run.clock.resources,
            estimated_memory_per_node=options.memory_per_node,
        )

    @property
    def _may_compute(self) -> bool:
        width = self._computing_width
        if width is None or len(self._computing) < width:
            return True
        at_work = [
            branch for branch in self._computing.values() if branch.call and self._is_busy(branch.call)
        ]
        return len(at_work) < width  # who waits for an answer needs no core

    def _is_busy(self, call: Call) -> bool:
        run = self._call.run
        return not call.is_open and not (run.only_waits and not run.is_busy(call))

    def _grow(self) -> None:
        self._growth = None
        width = self._computing_width
        if not self._passed_by or width is None or self._call.concluded:
            return
        assert self._size is not None
        self._computing_width = grown(width, self._size)
        if self._computing_width > width:
            self._tell_size(f"branches queue for {GROWTH_AFTER:g} s: from {width} computing at once")
            self._call.advance_soon()

    def _tell_size(self, reason: str) -> None:
        if (audience := self._call.run.audience) is not None:
            assert self._size is not None
            audience.sized(self._call, width=self._size.width, computing=self._computing_width, reason=reason)

    # What is recorded

    def _recall(self) -> None:
        """Ask for every recorded branch, and for nothing else, until all of them have been seen."""
        scope = self._call.scope
        assert scope is not None
        order = scope.order
        while self.is_looking:
            if order.all_asked or len(self._held_back) >= _HELD_BACK:
                self.is_looking = False
            elif (waiting := self._read()) is not None:
                self._recall_one(waiting)
            elif self._feed.total is None:
                return  # the source will give more
            else:
                self.is_looking = False
        if order.replaying:
            scope.pump()
            return
        self._recalls = False
        self._call.advance_soon()

    def _recall_one(self, waiting: _Waiting) -> None:
        place, item, _, _ = waiting
        try:
            start = self._style.start_of(item)
        except Exception as error:
            self._results.begin(place)
            self._failed(place, Failed(error), None)
            return
        identity = self._identify(start)
        found = place, item, start, identity
        if (recorded := self._call.recorded_at(identity[0])) is not None:
            if recorded != place:
                self._results.moved(place, identity[0])
            self._start(found)
        else:
            self._held_back.append(found)


def _outcome_of(call: Call) -> Outcome[Any]:
    outcome = call.outcome
    if isinstance(outcome, Cancelled):
        return Failed(RunCancelledError(f"{call.step.name!r} was cancelled: {outcome.reason or 'by itself'}"))
    return outcome


def _error_of(outcome: Outcome[Any]) -> Exception:
    assert isinstance(outcome, Failed | TimedOut)
    assert isinstance(outcome.error, Exception)
    return outcome.error
