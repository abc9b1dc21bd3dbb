"""Forks of a graph that have options of a block: how many branches at once, for how long, and which may fail.

A branch of such a fork is an *arm*. The innermost one that something is on stands in the ``block`` of its branch, so
that nothing has to be searched for, however deep forks are in each other.

An arm that fails, or is not needed any more, is *ended*: what runs on it is stopped, and when all of it has, it comes
to the join of its fork with its failure alone, or is lost. The graph goes on from that, so where it is recorded, that
is too: until then what ran there counts as running, whenever it has stopped, in this life of the run or another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from weft.core.policy import FailFast, Policy, Verdict
from weft.errors import DefinitionError, GraphError, ParallelExecutionError, ParallelTimeoutError

if TYPE_CHECKING:
    import asyncio

    from weft.core.activation import Activation, Decision
    from weft.core.graph_branches import Branch, Fork
    from weft.graph_nodes import NodeCall


@dataclass(frozen=True, slots=True)
class ForkOptions:
    """How the branches behind a node are run.

    Attributes:
        policy: What their outcomes mean for the graph.
        max_concurrent: How many at once, exactly; None for all.
        timeout: Seconds for all of them; None for no end.
    """

    policy: Policy
    max_concurrent: int | None = None
    timeout: float | None = None

    @property
    def may_fail(self) -> bool:
        """Whether a branch may fail without the graph failing at once."""
        return not isinstance(self.policy, FailFast)


class Host(Protocol):
    """The execution of the graph, as its forks see it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the run."""

    @property
    def active(self) -> Activation:
        """What decides."""

    def start(self, branch: Branch) -> Iterable[Decision]:
        """Run the node of a branch."""

    def stop(self, running: NodeCall, reason: str, latest: float | None) -> bool:
        """Stop a node, by then at the latest; whether there is anything to wait for."""

    def fail(self, error: BaseException) -> None:
        """The graph has failed."""

    def recorded(self, fork: ForkRun) -> bool:
        """Whether it is recorded that this fork has run out of time; then that is told in its turn."""

    def record(self, fork: ForkRun) -> None:
        """Record that this fork has run out of time, and tell it when that is durable."""

    def expect_end(self, ending: Ending) -> None:
        """Something runs on an arm that is being ended; if it is recorded that it has stopped, have that told."""

    def record_end(self, ending: Ending) -> bool:
        """All that ran on an arm has stopped: whether that is told when it is durable, in its turn."""

    def soon(self, do: Callable[[], None]) -> None:
        """Do it in the run's turn."""

    def act(self, decisions: Iterable[Decision]) -> None:
        """Do what was decided outside of the graph's turn."""

    def storable(self, name: str, error: Exception) -> Any:
        """What stands for the failure of a branch of this name."""


@dataclass(eq=False, slots=True)
class Ending:
    """An arm that is being ended.

    Attributes:
        arm: Which one.
        error: Why it failed; None if it is not needed any more.
        alive: What still runs on it.
        stopped: What ran on it and has ended, but is still known as running on it.
        kept: The executions that have ended, of which the graph's core was not told yet.
        identity: Of the record that all has stopped, in a journaled run.
        is_recorded: Whether that is recorded, or is just being.
        is_told: Whether it is known that it is durable.
    """

    arm: Arm
    error: Exception | None = None
    alive: set[NodeCall] = field(default_factory=set)
    stopped: list[NodeCall] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    identity: tuple[bytes, int] | None = None
    is_recorded: bool = False
    is_told: bool = False

    @property
    def is_current(self) -> bool:
        """Whether nothing round it is being ended with all that is on it."""
        return self.arm.ending is self


#: What is on an arm where nothing is; never changed.
_NOTHING: dict[Any, None] = {}


class Arm:
    """One branch of a fork with options.

    Attributes:
        fork: Its fork.
        branch: The branch.
        name: What errors call it: its first node, with its number where two begin with the same.
        first: Its first node, while that waits for room.
        has_begun: Whether it was given room, or shall never have it.
        is_in_flight: Whether it takes room.
        has_ended: Whether nothing of it goes on.
        is_dropped: Whether it is not needed any more.
        failure: With what it has failed.
        ending: How it is being ended, or one round it.
        running: What runs on it, but for what runs on arms inside that can be ended by themselves.
        forks: The forks on it, but for those on such arms.
    """

    __slots__ = (
        "branch",
        "ending",
        "failure",
        "first",
        "fork",
        "forks",
        "has_begun",
        "has_ended",
        "is_dropped",
        "is_in_flight",
        "name",
        "running",
    )

    def __init__(self, fork: ForkRun, branch: Branch, name: str) -> None:
        self.fork = fork
        self.branch = branch
        self.name = name
        self.first: Branch | None = None
        self.has_begun = self.is_in_flight = self.has_ended = self.is_dropped = False
        self.failure: Exception | None = None
        self.ending: Ending | None = None if fork.outer is None else fork.outer.ending
        self.running: dict[NodeCall, None] = _NOTHING
        self.forks: dict[ForkRun, None] = _NOTHING

    @property
    def keeper(self) -> Arm | None:
        """The innermost arm that can be ended by itself: it, or one round it."""
        return self if self.fork.options.may_fail else self.fork.keeper

    def take_first(self) -> list[int]:
        """The execution that would begin it, if that waits for room, which it shall not have."""
        self.has_begun = True
        branch, self.first = self.first, None
        return [] if branch is None else [branch.execution]


class ForkRun:
    """The arms of one passing of such a fork.

    Attributes:
        options: How they are run.
        fork: Where they began.
        outer: The arm on which that is.
        keeper: The innermost arm round it that can be ended by itself.
        started: When, in the loop's time.
        latest: When all arms must have ended; None for no end.
        until: The earliest such moment, of this fork and those round it.
        refusal: Why so many branches can never do, if so.
        arms: Those that are known, by number.
        timer: Of the timeout.
        identity: Of the record that it has run out of time, in a journaled run.
    """

    def __init__(self, options: ForkOptions, fork: Fork, outer: Arm | None, started: float) -> None:
        self.options = options
        self.fork = fork
        self.outer = outer
        self.keeper = None if outer is None else outer.keeper
        self.started = started
        self.latest = None if options.timeout is None else started + options.timeout
        self.until: float | None = self.latest
        if outer is not None and outer.fork.until is not None:
            self.until = min(outer.fork.until, outer.fork.until if self.latest is None else self.latest)
        self.refusal = self._refusal()
        self.arms: list[Arm | None] = [None] * fork.size
        self.timer: asyncio.TimerHandle | None = None
        self.identity: tuple[bytes, int] | None = None
        self._known: set[str] = set()
        self._waiting: deque[Arm] = deque()
        self._in_flight = 0
        self._ok = 0
        self._failed = 0
        self._ended = 0
        self._is_decided = False

    def _refusal(self) -> GraphError | None:
        try:
            self.options.policy.check(self.fork.size)
        except DefinitionError as error:
            return GraphError(f"the fork behind {self.fork.node!r}: {error}")
        return None

    # Beginning

    def enter(self, branch: Branch, node: str | None) -> Arm:
        """Know an arm, by its first node, if it has one."""
        name = node
        if name is None or name in self._known:
            name = f"{node or ''}#{branch.index}"
        self._known.add(node or name)
        arm = self.arms[branch.index] = Arm(self, branch, name)
        return arm

    @property
    def has_room(self) -> bool:
        """Whether one more arm may begin."""
        width = self.options.max_concurrent
        return width is None or self._in_flight < width

    def wait(self, arm: Arm, first: Branch) -> None:
        """An arm begins when there is room for it."""
        arm.first = first
        self._waiting.append(arm)

    def begin(self, arm: Arm) -> None:
        """An arm is in flight."""
        arm.has_begun = arm.is_in_flight = True
        self._in_flight += 1

    def begin_next(self) -> Iterator[Branch]:
        """Begin the arms for which there is room now."""
        while self._waiting and self.has_room:
            arm = self._waiting.popleft()
            first, arm.first = arm.first, None
            if first is not None:
                self.begin(arm)
                yield first

    def take_waiting(self) -> list[int]:
        """The executions that wait for room and shall not have it."""
        waiting, self._waiting = self._waiting, deque()
        return [execution for arm in waiting for execution in arm.take_first()]

    # Outcomes

    def fail(self, arm: Arm, error: Exception) -> bool:
        """An arm has failed; whether with it the fork has, since it can have no result any more."""
        self._failed += arm.failure is None
        arm.failure = error
        if self._is_decided:
            return False
        self._is_decided = self._verdict is Verdict.FAILED
        return self._is_decided

    def end(self, arm: Arm) -> Verdict:
        """An arm has ended; what that means for the fork."""
        self._in_flight -= arm.is_in_flight
        self._ended += 1
        arm.has_ended, arm.is_in_flight = True, False
        arm.running = arm.forks = _NOTHING
        if arm.is_dropped or self._is_decided:
            return Verdict.GO_ON
        self._ok += arm.failure is None
        verdict = self._verdict
        self._is_decided = verdict is not Verdict.GO_ON
        return verdict

    @property
    def _verdict(self) -> Verdict:
        return self.options.policy.verdict(self._ok, self._failed, self.fork.size)

    @property
    def needs_no_more(self) -> bool:
        """Whether it is decided, so that an arm which has not begun is not needed."""
        return self._is_decided and self._verdict is Verdict.DONE

    @property
    def is_over(self) -> bool:
        """Whether all arms have ended."""
        return self._ended == self.fork.size

    @property
    def rest(self) -> list[Arm]:
        """The arms that have not ended."""
        return [arm for arm in self.arms if arm is not None and not arm.has_ended]

    @property
    def reason(self) -> str:
        """For people: why it is decided."""
        return self.options.policy.reason(self._ok, self._failed, self.fork.size)

    def failure(self) -> ParallelExecutionError:
        """What the graph fails with, if it can have no result."""
        failures = {arm.name: arm.failure for arm in self.arms if arm is not None and arm.failure is not None}
        return ParallelExecutionError(self._name, failures, self.reason)

    def overdue(self, now: float) -> dict[str, Any]:
        """What a timeout says, as data: a resume has to say the same."""
        return {"elapsed": now - self.started, "unfinished": [arm.name for arm in self.rest if arm.has_begun]}

    def timeout_error(self, overdue: Mapping[str, Any]) -> ParallelTimeoutError:
        """What the graph fails with, if the branches take too long."""
        assert self.options.timeout is not None
        return ParallelTimeoutError(self._name, timeout=self.options.timeout, **overdue)

    @property
    def _name(self) -> str:
        return f"the fork behind {self.fork.node}"


class Forks:
    """The forks with options of one execution."""

    def __init__(self, host: Host, options: Mapping[str, ForkOptions]) -> None:
        self._host = host
        self._options = options
        self._runs: dict[int, ForkRun] = {}  # by the execution behind which they are
        self._stopped: set[NodeCall] = set()  # and still known as running

    # Beginning

    def started(self, branch: Branch) -> Iterable[Decision]:
        """Run the node of a branch, if it may run, or have it wait until it may; what follows."""
        arm = self._arm_of(branch, branch.node)
        if self.ending_of(branch) is not None:
            return self._host.active.lost(branch.execution)
        if arm is None or arm.has_begun:
            return self._host.start(branch)
        fork = arm.fork
        if fork.refusal is not None:
            return self._fail_at(fork.keeper, fork.refusal, [branch.execution])
        if fork.needs_no_more:
            arm.is_dropped = True
            return self._host.active.lost(branch.execution)
        if not fork.has_room:
            fork.wait(arm, branch)
            return ()
        fork.begin(arm)
        return self._host.start(branch)

    def _arm_of(self, branch: Branch, node: str | None) -> Arm | None:
        """The arm that this branch is, if its fork has options."""
        arm: Arm | None = branch.block
        if arm is not None and arm.branch is branch:
            return arm
        fork = branch.fork
        if fork is None or not fork.is_watched:
            return None
        known = self._runs.get(fork.execution) or self._new(fork, arm)
        arm = branch.block = known.enter(branch, node)
        return arm

    def _new(self, fork: Fork, outer: Arm | None) -> ForkRun:
        loop = self._host.loop
        known = ForkRun(self._options[fork.node], fork, outer, loop.time())
        self._runs[fork.execution] = known
        if known.keeper is not None:
            known.keeper.forks = known.keeper.forks or {}
            known.keeper.forks[known] = None
        if known.latest is not None and not self._host.recorded(known):
            # In the run's turn: what it stops may end at once, and be told of in the middle of it.
            known.timer = loop.call_at(known.latest, self._host.soon, partial(self._out_of_time, known))
        return known

    def began(self, running: NodeCall) -> None:
        """A node runs."""
        keeper = _keeper_of(running.branch)
        if keeper is not None:
            keeper.running = keeper.running or {}
            keeper.running[running] = None

    def left(self, running: NodeCall) -> None:
        """It has ended."""
        keeper = _keeper_of(running.branch)
        if keeper is not None:
            keeper.running.pop(running, None)

    def deadline_on(self, branch: Branch) -> float | None:
        """When the earliest of the forks round this branch must have ended, in the loop's time."""
        arm: Arm | None = branch.block
        return None if arm is None else arm.fork.until

    def close(self) -> None:
        """Let go of the timers."""
        for fork in self._runs.values():
            if fork.timer is not None:
                fork.timer.cancel()

    # Ending

    def ending_of(self, branch: Branch) -> Ending | None:
        """How the arm is being ended that this branch is on, if one of those round it is."""
        arm: Arm | None = branch.block
        return None if arm is None else arm.ending

    def failed(self, running: NodeCall, error: Exception) -> Iterable[Decision]:
        """A node has failed: the arm that may fail has, or else the graph."""
        self.left(running)
        return self._fail_at(_keeper_of(running.branch), error, [running.index])

    def stopped(self, ending: Ending, running: NodeCall) -> Iterable[Decision]:
        """What ran on an arm that is being ended has ended."""
        self._note_stopped(ending, running)
        return () if ending.alive else self._tell_end(ending)

    def _note_stopped(self, ending: Ending, running: NodeCall) -> None:
        ending.alive.discard(running)
        ending.stopped.append(running)
        self._stopped.add(running)

    def _tell_end(self, ending: Ending) -> Iterable[Decision]:
        """Nothing is at work on the arm any more; go on from that, as soon as it is durable."""
        if not ending.is_told and self._host.record_end(ending):
            return ()
        return self._all_stopped(ending)

    def end_told(self, ending: Ending) -> Iterable[Decision]:
        """That all has stopped which ran on an arm is durable, and it is its turn."""
        ending.is_told = True
        if not ending.is_current or ending.alive:
            return ()
        return self._all_stopped(ending)

    def branch_ended(self, branch: Branch) -> Iterable[Decision]:
        """Nothing of a branch goes on."""
        arm = self._arm_of(branch, None)
        assert arm is not None
        fork = arm.fork
        decisions: list[Decision] = []
        if fork.end(arm) is Verdict.DONE and not fork.is_over:
            rest = fork.rest
            for other in rest:
                other.is_dropped = True
            endings = [Ending(other) for other in rest if other.ending is None]
            decisions += self._end_arms(endings, fork.reason)
        if fork.is_over:
            self._forget(fork)
            return decisions
        for first in fork.begin_next():
            decisions += self._host.start(first)
        return decisions

    def _forget(self, fork: ForkRun) -> None:
        if fork.timer is not None:
            fork.timer.cancel()
        self._runs.pop(fork.fork.execution, None)
        if fork.keeper is not None:
            fork.keeper.forks.pop(fork, None)
        for arm in fork.arms:
            if arm is not None:
                arm.branch.block = fork.outer  # so that they do not hold each other

    def _out_of_time(self, fork: ForkRun) -> None:
        if fork.needs_no_more:
            return  # what is left of it is being stopped
        if fork.identity is not None and fork.keeper is not None:
            self._host.record(fork)  # the graph goes on from it, so a resume has to do the same
        else:
            self.out_of_time(fork, fork.overdue(self._host.loop.time()))

    def out_of_time(self, fork: ForkRun, overdue: Mapping[str, Any]) -> None:
        """The arms of a fork have taken too long, and that is durable where it matters."""
        if fork.is_over or self._runs.get(fork.fork.execution) is not fork:
            return
        error = fork.timeout_error(overdue)
        self._host.act(self._fail_at(fork.keeper, error))

    def _fail_at(self, arm: Arm | None, error: Exception, kept: Iterable[int] = ()) -> Iterable[Decision]:
        """What stands on this arm has failed: so has it, or what is round it, or the graph."""
        while arm is not None:
            if arm.ending is not None:
                return ()
            fork = arm.fork
            if not fork.fail(arm, error):
                ending = Ending(arm, error, kept=[*kept])
                return self._end_arms([ending], f"branch {arm.name!r} has failed")
            arm, error = fork.keeper, fork.failure()
        self._host.fail(error)
        return ()

    def _end_arms(self, endings: Sequence[Ending], reason: str) -> Iterable[Decision]:
        """Stop what runs on these arms; when all of it has ended, an arm comes to its join, or is lost."""
        if not endings:
            return ()
        running = {ending: _taken_over(ending) for ending in endings}
        decisions = self._host.active.cut_off(
            {
                ending.arm.branch: [*ending.kept, *(each.index for each in found)]
                for ending, found in running.items()
            },
            fails=_gives_instead(endings[0]),
        )
        for ending, found in running.items():
            decisions += self._stop(ending, found, reason)
        return decisions

    def _stop(self, ending: Ending, running: Sequence[NodeCall], reason: str) -> Iterable[Decision]:
        if not running:
            # With nothing kept, what began there is still on its way to be admitted, and is lost then.
            return self._all_stopped(ending) if ending.kept else ()
        latest = ending.arm.fork.latest if ending.error is None else None
        self._host.expect_end(ending)
        ending.alive.update(running)  # before any is stopped: one may end at that
        for each in running:
            if each in self._stopped or not self._host.stop(each, reason, latest):
                self._note_stopped(ending, each)
        return () if ending.alive else self._tell_end(ending)

    def _all_stopped(self, ending: Ending) -> Iterable[Decision]:
        """Nothing runs on the arm any more."""
        active, arm = self._host.active, ending.arm
        for each in ending.stopped:
            self.left(each)
            self._stopped.discard(each)
            ending.kept.append(each.index)
        kept, ending.stopped, ending.kept = ending.kept, [], []
        if not _gives_instead(ending):
            return [decision for execution in kept for decision in active.lost(execution)]
        assert ending.error is not None
        outcome = self._host.storable(arm.name, ending.error)
        return active.failed(kept, arm.branch, {arm.name: outcome})


def _keeper_of(branch: Branch) -> Arm | None:
    arm: Arm | None = branch.block
    return None if arm is None else arm.keeper


def _taken_over(ending: Ending) -> list[NodeCall]:
    """Have all that is on an arm ended with it, however deep; what runs there, as it began."""
    ending.kept += ending.arm.take_first()
    running: list[NodeCall] = []
    stack = [ending.arm]
    while stack:
        arm = stack.pop()
        if arm.ending is not None:
            ending.kept += arm.ending.kept
            arm.ending.kept = []
        arm.ending = ending
        running += arm.running
        for inner in arm.forks:
            ending.kept += inner.take_waiting()
            stack += inner.rest
    return sorted(running, key=lambda each: each.index)


def _gives_instead(ending: Ending) -> bool:
    return ending.error is not None and ending.arm.fork.options.policy.gives_outcomes
