"""What becomes of what a block's branches give: kept for one result, or handed out one by one."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any, Protocol

from weft.core.outcome import Cancelled, HandedOut, NotStarted, Ok, Outcome
from weft.core.policy import Policy

#: How many failures of a stream are kept for the error that ends it.
_KEPT_FAILURES = 100

_MISSING: Any = object()


class Sink(Protocol):
    """Takes what branches give, one by one."""

    #: How many more branches may have begun than results were taken.
    window: int

    #: How many results were taken.
    taken: int

    def give(self, index: int, result: Any, *, at_once: bool = False) -> None:
        """A branch has ended; in the order of ending. ``at_once``: it is the only result."""


class Results(Protocol):
    """What a block tells of its branches, by number."""

    #: Those that failed, or some of them.
    failures: dict[int, Outcome[Any]]

    @property
    def is_full(self) -> bool:
        """Whether nothing may begin until something was taken."""

    def begin(self, index: int) -> None:
        """A branch begins, or has failed before it could."""

    def moved(self, index: int, identity: bytes) -> None:
        """A branch is recorded with another number than it has now."""

    def succeeded(self, index: int, value: Any) -> None:
        """A branch has given a value."""

    def failed(self, index: int, outcome: Outcome[Any], identity: bytes | None) -> None:
        """A branch has not; ``identity`` in a journaled run, None if it never became a call."""

    def all(self, shape: Callable[[list[Any]], Any], *, count: int | None, unfinished: Container[int]) -> Any:
        """The value of the block.

        Args:
            shape: Makes it of the values, or the outcomes, in the order of the branches.
            count: How many branches there are; None if that is not known.
            unfinished: Those that have begun, and are not waited for.
        """


class Collected:
    """Results that are kept until the block has its own."""

    is_full = False

    def __init__(self, policy: Policy) -> None:
        self.failures: dict[int, Outcome[Any]] = {}
        self._policy = policy
        self._values: list[Any] = []

    def begin(self, index: int) -> None:
        """Make room for its value."""
        values = self._values
        if index == len(values):
            values.append(_MISSING)
        elif index > len(values):  # those that are recorded begin first
            values.extend([_MISSING] * (index + 1 - len(values)))

    def moved(self, index: int, identity: bytes) -> None:
        """All that counts is where it is now."""

    def succeeded(self, index: int, value: Any) -> None:
        """Keep the value."""
        self._values[index] = value

    def failed(self, index: int, outcome: Outcome[Any], identity: bytes | None) -> None:
        """Keep the outcome."""
        self.failures[index] = outcome

    def all(self, shape: Callable[[list[Any]], Any], *, count: int | None, unfinished: Container[int]) -> Any:
        """The values, the outcomes, or the winner."""
        if self._policy.gives_outcomes:
            branches = range(len(self._values) if count is None else count)
            return shape([self._outcome(index, unfinished) for index in branches])
        values = [value for value in self._values if value is not _MISSING]
        return values[0] if self._policy.gives_one else shape(values)

    def _outcome(self, index: int, unfinished: Container[int]) -> Outcome[Any]:
        if index in self.failures:
            return self.failures[index]
        if index < len(self._values) and self._values[index] is not _MISSING:
            return Ok(self._values[index])
        return Cancelled("not needed any more") if index in unfinished else NotStarted()


class HandedOver:
    """Results that are given to a sink; what is kept of them is what a journal has not by itself.

    Args:
        policy: That of the block.
        sink: Who takes them.
        stale: Gives the identities of recorded items that did not come again.
    """

    def __init__(self, policy: Policy, sink: Sink, stale: Callable[[], Iterable[bytes]]) -> None:
        self.failures: dict[int, Outcome[Any]] = {}
        self._policy = policy
        self._sink = sink
        self._stale = stale
        self._given_or_open = 0  # begun, and neither taken nor ended with nothing to take
        self._winner: Any = None
        self._unrecorded: dict[int, Outcome[Any]] = {}
        self._moved: dict[bytes, int] = {}
        self._failed: list[bytes] = []

    @property
    def is_full(self) -> bool:
        """Whether nothing may begin until something was taken."""
        return self._given_or_open - self._sink.taken >= self._sink.window

    def begin(self, index: int) -> None:
        """It may have something to take."""
        self._given_or_open += 1

    def moved(self, index: int, identity: bytes) -> None:
        """Its record has the number that it had."""
        self._moved[identity] = index

    def succeeded(self, index: int, value: Any) -> None:
        """Give the value."""
        policy, self._winner = self._policy, value
        self._sink.give(index, Ok(value) if policy.gives_outcomes else value, at_once=policy.gives_one)

    def failed(self, index: int, outcome: Outcome[Any], identity: bytes | None) -> None:
        """Give the outcome, if outcomes are wanted."""
        if len(self.failures) < _KEPT_FAILURES:
            self.failures[index] = outcome
        if identity is None:
            self._unrecorded[index] = outcome
        if not self._policy.gives_outcomes:
            self._given_or_open -= 1
            return
        if identity:
            self._failed.append(identity)
        self._sink.give(index, outcome)

    def all(self, shape: Callable[[list[Any]], Any], *, count: int | None, unfinished: Container[int]) -> Any:
        """What stands for them in a journal, or the winner."""
        if self._policy.gives_one:
            return self._winner
        return HandedOut(self._unrecorded, self._moved, [*self._stale()], self._failed)
