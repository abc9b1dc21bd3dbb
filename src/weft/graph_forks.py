"""A fork of a graph that has options of a block: how many of its branches at once, for how long, and which may fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weft.core.policy import FailFast, Policy, Verdict
from weft.errors import DefinitionError, GraphError, ParallelExecutionError

if TYPE_CHECKING:
    import asyncio

    from weft.core.activation import Run
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


@dataclass(eq=False, slots=True)
class ForkRun:
    """The branches of one passing of such a fork.

    Attributes:
        options: How they are run.
        fork: Where they began.
        base: The branch on which they did.
        started: When, in the loop's time.
        latest: When all branches must have ended; None for no end.
        waiting: Those that wait for room, each with its first node.
        branches: Each branch, by its number.
        names: What errors call each branch: its first node.
        in_flight: Those that have begun and not ended.
        failures: Of those that failed, the error.
        dropped: Those that are not needed any more.
        is_decided: Whether what becomes of the fork is certain.
    """

    options: ForkOptions
    fork: Fork
    base: Branch
    started: float
    latest: float | None = None
    waiting: deque[Run] = field(default_factory=deque)
    branches: dict[int, Branch] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    in_flight: set[int] = field(default_factory=set)
    failures: dict[int, Exception] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    is_decided: bool = False
    timer: asyncio.TimerHandle | None = None
    _begun: set[int] = field(default_factory=set)
    _ok: int = 0
    _ended: set[int] = field(default_factory=set)

    def admits(self, run: Run) -> bool:
        """Whether the execution may begin now; one that begins a branch may have to wait for room."""
        index = run.branch.index
        if index in self._begun:
            return True
        self._name(index, run.node)
        self.branches[index] = run.branch
        width = self.options.max_concurrent
        if width is not None and len(self.in_flight) >= width:
            self.waiting.append(run)
            return False
        self.begin(index)
        return True

    def begin(self, index: int) -> None:
        """A branch is in flight."""
        self._begun.add(index)
        self.in_flight.add(index)

    def _name(self, index: int, node: str) -> None:
        """By the first node; by the number as well, where two begin with the same."""
        self.names[index] = f"{node}#{index}" if node in self.names.values() else node

    def next(self) -> Iterator[Run]:
        """The branches for which there is room now."""
        width = self.options.max_concurrent
        while self.waiting and (width is None or len(self.in_flight) < width):
            run = self.waiting.popleft()
            self.begin(run.branch.index)
            yield run

    def take_waiting(self, which: Callable[[Run], bool]) -> list[Run]:
        """Branches that wait for room and shall not have it."""
        taken = [run for run in self.waiting if which(run)]
        self.waiting = deque(run for run in self.waiting if run not in taken)
        self._begun.update(run.branch.index for run in taken)
        return taken

    def fail(self, index: int, error: Exception) -> bool:
        """A branch has failed; whether with it the fork has, since it can have no result any more."""
        self.failures[index] = error
        if self.is_decided:
            return False
        self.is_decided = self._verdict is Verdict.FAILED
        return self.is_decided

    @property
    def _verdict(self) -> Verdict:
        return self.options.policy.verdict(self._ok, len(self.failures), self.fork.size)

    @property
    def refusal(self) -> GraphError | None:
        """Why so many branches can never do, if so."""
        try:
            self.options.policy.check(self.fork.size)
        except DefinitionError as error:
            return GraphError(f"the fork behind {self.fork.node!r}: {error}")
        return None

    def end(self, index: int) -> Verdict:
        """A branch has ended; what that means for the fork."""
        self.in_flight.discard(index)
        self._ended.add(index)
        if index in self.dropped:
            return Verdict.GO_ON
        self._ok += index not in self.failures
        if self.is_decided:
            return Verdict.GO_ON
        verdict = self._verdict
        self.is_decided = verdict is not Verdict.GO_ON
        return verdict

    @property
    def is_over(self) -> bool:
        """Whether all branches have ended."""
        return len(self._ended) == self.fork.size

    @property
    def reason(self) -> str:
        """For people: why it is decided."""
        return self.options.policy.reason(self._ok, len(self.failures), self.fork.size)

    def failure(self) -> ParallelExecutionError:
        """What the graph fails with, if it can have no result."""
        failures = {self.names[index]: self.failures[index] for index in sorted(self.failures)}
        return ParallelExecutionError(f"the fork behind {self.fork.node}", failures, self.reason)

    @property
    def unfinished(self) -> set[int]:
        """The branches that have not ended; some may wait for room."""
        return self.branches.keys() - self._ended


@dataclass(eq=False, slots=True)
class Ending:
    """A branch of a fork that is being stopped, while the graph goes on.

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
