"""Forks of a graph that have options of a block: how many branches at once, for how long, and which may fail.

A branch that fails, or is not needed any more, is *ended*: what runs on it is stopped, and when all of it has, it comes
to the join of its fork with its failure alone, or is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from weft.core.policy import FailFast, Policy, Verdict
from weft.errors import DefinitionError, GraphError, ParallelExecutionError, ParallelTimeoutError

if TYPE_CHECKING:
    import asyncio

    from weft.core.activation import Activation, Decision, Run
    from weft.core.branches import Branch, Fork


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

    def start(self, run: Run) -> Iterable[Decision]:
        """Run a node."""

    def stop(self, execution: int, reason: str, latest: float | None) -> bool:
        """Stop a node, by then at the latest; whether there is anything to wait for."""

    def fail(self, error: BaseException) -> None:
        """The graph has failed."""

    def recorded(self, fork: ForkRun) -> bool:
        """Whether it is recorded that this fork has run out of time; then that is told in its turn."""

    def record(self, fork: ForkRun) -> None:
        """Record that this fork has run out of time, and tell it when that is durable."""

    def soon(self, do: Callable[[], None]) -> None:
        """Do it in the run's turn."""

    def act(self, decisions: Iterable[Decision]) -> None:
        """Do what was decided outside of the graph's turn."""

    def storable(self, name: str, error: Exception) -> Any:
        """What stands for the failure of a branch of this name."""


@dataclass(eq=False, slots=True)
class Ending:
    """A branch that is being ended.

    Attributes:
        fork: Its fork.
        branch: The branch.
        error: Why it failed; None if it is not needed any more.
        alive: The executions on it that still run.
        kept: Those that have ended, of which the graph's core was not told yet.
    """

    fork: ForkRun
    branch: Branch
    error: Exception | None = None
    alive: set[int] = field(default_factory=set)
    kept: list[int] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Inside:
    """What is on one branch of a fork, however deep."""

    executions: dict[int, None] = field(default_factory=dict)  # that have begun, and their end was not told
    forks: dict[ForkRun, None] = field(default_factory=dict)


class _Place(NamedTuple):
    """A branch of a fork with options."""

    fork: ForkRun
    branch: Branch

    @property
    def inside(self) -> _Inside:
        return self.fork.inside[self.branch.index]


class ForkRun:
    """The branches of one passing of such a fork.

    Attributes:
        options: How they are run.
        fork: Where they began.
        base: The branch on which they did.
        started: When, in the loop's time.
        latest: When all branches must have ended; None for no end.
        waiting: Those that wait for room, each with its first node.
        names: What errors call each branch: its first node.
        inside: What is on each branch, by its number.
        endings: The branches that are being ended.
        timer: Of the timeout.
        identity: Of the record that it has run out of time, in a journaled run.
    """

    def __init__(self, options: ForkOptions, fork: Fork, base: Branch, started: float) -> None:
        self.options = options
        self.fork = fork
        self.base = base
        self.started = started
        self.latest = None if options.timeout is None else started + options.timeout
        self.waiting: deque[Run] = deque()
        self.names: dict[int, str] = {}
        self.inside: dict[int, _Inside] = {}
        self.endings: dict[int, Ending] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.identity: tuple[bytes, int] | None = None
        self._branches: dict[int, Branch] = {}
        self._known: set[str] = set()
        self._begun: set[int] = set()
        self._in_flight: set[int] = set()
        self._failures: dict[int, Exception] = {}
        self._dropped: set[int] = set()
        self._is_decided = False
        self._ok = 0
        self._ended: set[int] = set()

    # Beginning

    def enter(self, branch: Branch, node: str) -> None:
        """Know a branch, by its first node; by its number as well, where two begin with the same."""
        index = branch.index
        if index in self._branches:
            return
        self._branches[index] = branch
        self.inside[index] = _Inside()
        self.names[index] = f"{node}#{index}" if node in self._known else node
        self._known.add(node)

    def admit(self, run: Run) -> bool:
        """Let an execution begin, unless it is to begin a branch for which there is no room yet: then it waits."""
        index = run.branch.index
        if index in self._begun:
            return True
        if not self._has_room:
            self.waiting.append(run)
            return False
        self.begin(index)
        return True

    def has_begun(self, index: int) -> bool:
        """Whether a branch is, or was, in flight."""
        return index in self._begun

    @property
    def _has_room(self) -> bool:
        width = self.options.max_concurrent
        return width is None or len(self._in_flight) < width

    def begin(self, index: int) -> None:
        """A branch is in flight."""
        self._begun.add(index)
        self._in_flight.add(index)

    def begin_next(self) -> Iterator[Run]:
        """Begin the branches for which there is room now."""
        while self.waiting and self._has_room:
            run = self.waiting.popleft()
            self.begin(run.branch.index)
            yield run

    def take_waiting(self) -> list[int]:
        """The executions that wait for room and shall not have it."""
        taken, self.waiting = self.waiting, deque()
        self._begun.update(run.branch.index for run in taken)
        return [run.execution for run in taken]

    def take_waiting_of(self, branch: Branch) -> list[int]:
        """The execution that would begin a branch, if it waits for room and shall not have it."""
        if branch.index in self._begun:
            return []
        self._begun.add(branch.index)
        taken = [run for run in self.waiting if run.branch is branch]
        for run in taken:
            self.waiting.remove(run)
        return [run.execution for run in taken]

    @property
    def refusal(self) -> GraphError | None:
        """Why so many branches can never do, if so."""
        try:
            self.options.policy.check(self.fork.size)
        except DefinitionError as error:
            return GraphError(f"the fork behind {self.fork.node!r}: {error}")
        return None

    # Outcomes

    def fail(self, index: int, error: Exception) -> bool:
        """A branch has failed; whether with it the fork has, since it can have no result any more."""
        self._failures[index] = error
        if self._is_decided:
            return False
        self._is_decided = self._verdict is Verdict.FAILED
        return self._is_decided

    def end(self, index: int) -> Verdict:
        """A branch has ended; what that means for the fork."""
        self._in_flight.discard(index)
        self._ended.add(index)
        self.endings.pop(index, None)
        self.inside.pop(index, None)
        if index in self._dropped or self._is_decided:
            return Verdict.GO_ON
        self._ok += index not in self._failures
        verdict = self._verdict
        self._is_decided = verdict is not Verdict.GO_ON
        return verdict

    @property
    def _verdict(self) -> Verdict:
        return self.options.policy.verdict(self._ok, len(self._failures), self.fork.size)

    @property
    def needs_no_more(self) -> bool:
        """Whether it is decided, so that a branch which has not begun is not needed."""
        return self._is_decided and self._verdict is Verdict.DONE

    def drop(self, index: int) -> None:
        """A branch is not needed any more."""
        self._dropped.add(index)

    @property
    def is_over(self) -> bool:
        """Whether all branches have ended."""
        return len(self._ended) == self.fork.size

    def drop_rest(self) -> list[Branch]:
        """The branches that have not ended, and are not needed any more."""
        rest = sorted(self._branches.keys() - self._ended)
        self._dropped.update(rest)
        return [self._branches[index] for index in rest]

    @property
    def reason(self) -> str:
        """For people: why it is decided."""
        return self.options.policy.reason(self._ok, len(self._failures), self.fork.size)

    def failure(self) -> ParallelExecutionError:
        """What the graph fails with, if it can have no result."""
        failures = {self.names[index]: self._failures[index] for index in sorted(self._failures)}
        return ParallelExecutionError(self._name, failures, self.reason)

    def overdue(self, now: float) -> dict[str, Any]:
        """What a timeout says, as data: a resume has to say the same."""
        unfinished = [self.names[index] for index in sorted(self._begun - self._ended)]
        return {"elapsed": now - self.started, "unfinished": unfinished}

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
        self._places: dict[int, list[_Place]] = {}  # by execution, the branches that it is on

    # Beginning

    def admit(self, run: Run) -> Iterable[Decision] | None:
        """What follows where an execution may not begin, or not yet; None: it may."""
        fork = self._own(run.branch)
        if fork is not None:
            fork.enter(run.branch, run.node)
        if self.ending_of(run.branch) is not None:
            return self._host.active.lost(run.execution)
        if fork is None:
            return None
        if (refusal := fork.refusal) is not None:
            return self._fail_at(fork.base, refusal, [run.execution])
        if fork.needs_no_more and not fork.has_begun(run.branch.index):
            fork.drop(run.branch.index)
            return self._host.active.lost(run.execution)
        return None if fork.admit(run) else ()

    def _own(self, branch: Branch) -> ForkRun | None:
        """The fork with options in which this is one of the branches."""
        fork = branch.fork
        if fork is None:
            return None
        known = self._runs.get(fork.execution)
        if known is None and (options := self._options.get(fork.node)) is not None:
            assert branch.parent is not None
            loop = self._host.loop
            known = self._runs[fork.execution] = ForkRun(options, fork, branch.parent, loop.time())
            for place in self._around(branch.parent):
                place.inside.forks[known] = None
            if known.latest is not None and not self._host.recorded(known):
                # In the run's turn: what it stops may end at once, and be told of in the middle of it.
                known.timer = loop.call_at(known.latest, self._host.soon, partial(self._out_of_time, known))
        return known

    def _around(self, branch: Branch) -> Iterator[_Place]:
        """The branches of such forks that this one is on, the innermost first."""
        inner: Branch | None = branch
        while inner is not None:
            fork = self._runs.get(inner.fork.execution) if inner.fork is not None else None
            if fork is not None and inner.index in fork.inside:
                yield _Place(fork, inner)
            inner = inner.parent

    def began(self, execution: int, branch: Branch) -> None:
        """An execution has begun."""
        places = self._places[execution] = [*self._around(branch)]
        for place in places:
            place.inside.executions[execution] = None

    def left(self, execution: int) -> None:
        """It has ended."""
        for place in self._places.pop(execution, ()):
            inside = place.fork.inside.get(place.branch.index)
            if inside is not None:
                inside.executions.pop(execution, None)

    def deadline_on(self, branch: Branch) -> float | None:
        """When the earliest of the forks round this branch must have ended, in the loop's time."""
        ends = [place.fork.latest for place in self._around(branch) if place.fork.latest is not None]
        return min(ends, default=None)

    def close(self) -> None:
        """Let go of the timers."""
        for fork in self._runs.values():
            if fork.timer is not None:
                fork.timer.cancel()

    # Ending

    def ending_of(self, branch: Branch) -> Ending | None:
        """The branch that is being ended and that this one is on."""
        for fork, around in self._around(branch):
            if (ending := fork.endings.get(around.index)) is not None:
                return ending
        return None

    def failed(self, execution: int, branch: Branch, error: Exception) -> Iterable[Decision]:
        """A node has failed: the branch that may fail has, or else the graph."""
        return self._fail_at(branch, error, [execution])

    def stopped(self, ending: Ending, execution: int) -> Iterable[Decision]:
        """An execution on a branch that is being ended has ended."""
        ending.alive.discard(execution)
        ending.kept.append(execution)
        return () if ending.alive else self._all_stopped(ending)

    def branch_ended(self, branch: Branch) -> Iterable[Decision]:
        """Nothing of a branch goes on."""
        fork = self._own(branch)
        if fork is None:
            return ()
        fork.enter(branch, f"#{branch.index}")
        decisions: list[Decision] = []
        if fork.end(branch.index) is Verdict.DONE and not fork.is_over:
            for rest in fork.drop_rest():
                if rest.index not in fork.endings:
                    decisions += self._end_branch(Ending(fork, rest), fork.reason)
        if fork.is_over:
            self._forget(fork)
            return decisions
        for run in fork.begin_next():
            decisions += self._host.start(run)
        return decisions

    def _forget(self, fork: ForkRun) -> None:
        if fork.timer is not None:
            fork.timer.cancel()
        self._runs.pop(fork.fork.execution, None)
        for place in self._around(fork.base):
            place.inside.forks.pop(fork, None)

    def _out_of_time(self, fork: ForkRun) -> None:
        if fork.needs_no_more:
            return  # what is left of it is being stopped
        if fork.identity is not None and any(
            place.fork.options.may_fail for place in self._around(fork.base)
        ):
            self._host.record(fork)  # the graph goes on from it, so a resume has to do the same
        else:
            self.out_of_time(fork, fork.overdue(self._host.loop.time()))

    def out_of_time(self, fork: ForkRun, overdue: Mapping[str, Any]) -> None:
        """The branches of a fork have taken too long, and that is durable where it matters."""
        if fork.is_over or self._runs.get(fork.fork.execution) is not fork:
            return
        error = fork.timeout_error(overdue)
        self._host.act(self._fail_at(fork.base, error))

    def _fail_at(self, branch: Branch, error: Exception, kept: Iterable[int] = ()) -> Iterable[Decision]:
        """What stands on this branch has failed: so has the branch round it that may fail, or the graph."""
        while True:
            place = next((each for each in self._around(branch) if each.fork.options.may_fail), None)
            if place is None:
                self._host.fail(error)
                return ()
            fork, victim = place
            if self.ending_of(victim) is not None:
                return ()
            if not fork.fail(victim.index, error):
                reason = f"branch {fork.names[victim.index]!r} has failed"
                return self._end_branch(Ending(fork, victim, error), reason, kept)
            branch, error = fork.base, fork.failure()

    def _end_branch(self, ending: Ending, reason: str, kept: Iterable[int] = ()) -> Iterable[Decision]:
        """Stop what runs on a branch; when all of it has ended, the branch comes to its join, or is lost."""
        fork, branch = ending.fork, ending.branch
        inside = fork.inside[branch.index]
        ending.kept += kept
        for execution in ending.kept:
            self.left(execution)
        ending.kept += fork.take_waiting_of(branch)
        for inner in [*inside.forks]:
            ending.kept += inner.take_waiting()
            for other in inner.endings.values():
                ending.kept += other.kept
                other.kept = []
            inner.endings.clear()
        fork.endings[branch.index] = ending
        decisions = self._host.active.cut_off(
            branch, [*ending.kept, *inside.executions], fails=self._gives_instead(ending)
        )
        latest = fork.latest if ending.error is None else None
        ending.alive.update(inside.executions)  # before any is stopped: one may end at that
        for execution in [*inside.executions]:
            if not self._host.stop(execution, reason, latest):
                ending.alive.discard(execution)
                self.left(execution)
                ending.kept.append(execution)
        if not ending.alive and ending.kept:
            decisions += self._all_stopped(ending)
        return (
            decisions  # with neither, what began there is still on its way to be admitted, and is lost then
        )

    @staticmethod
    def _gives_instead(ending: Ending) -> bool:
        return ending.error is not None and ending.fork.options.policy.gives_outcomes

    def _all_stopped(self, ending: Ending) -> Iterable[Decision]:
        """Nothing runs on the branch any more."""
        active, fork = self._host.active, ending.fork
        if not self._gives_instead(ending):
            return [decision for execution in ending.kept for decision in active.lost(execution)]
        assert ending.error is not None
        name = fork.names[ending.branch.index]
        outcome = self._host.storable(name, ending.error)
        return active.failed(ending.kept, ending.branch, {name: outcome})
