"""How a call ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from weft.errors import RunCancelledError, WeftError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ok(Generic[T]):
    """The call returned ``value``."""

    value: T

    def get(self) -> T:
        """The value."""
        return self.value


class _Bad:
    __slots__ = ()

    def get(self) -> Any:
        """Raise what happened."""
        raise self.as_error()

    def as_error(self) -> BaseException:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Failed(_Bad):
    """The call raised ``error``."""

    error: BaseException

    def as_error(self) -> BaseException:
        return self.error


@dataclass(frozen=True, slots=True)
class TimedOut(_Bad):
    """The call took longer than it was given; ``error`` says how long that was."""

    error: BaseException

    def as_error(self) -> BaseException:
        return self.error


@dataclass(frozen=True, slots=True)
class Cancelled(_Bad):
    """The call was stopped while it ran or waited, because nobody needed it any more."""

    reason: str = ""

    def as_error(self) -> BaseException:
        return RunCancelledError(self.reason or "cancelled")


@dataclass(frozen=True, slots=True)
class Skipped(_Bad):
    """The call was not needed, by a decision of the workflow."""

    reason: str = ""

    def as_error(self) -> BaseException:
        return WeftError(f"skipped: {self.reason}" if self.reason else "skipped")


@dataclass(frozen=True, slots=True)
class NotStarted(_Bad):
    """The call had not been started when its block was decided."""

    def as_error(self) -> BaseException:
        return RunCancelledError("not started")


@dataclass(frozen=True, slots=True)
class HandedOut:
    """Stands in a journal for results that were handed out one by one; each has its own record.

    Attributes:
        unrecorded: Failures, by the number of the item, of those that never became a call.
        moved: The numbers that items have now, by identity, where they are recorded with others.
        stale: The identities of recorded items that the source did not give any more.
        failed: The identities of items whose failure was handed out.
    """

    unrecorded: dict[int, Any] = field(default_factory=dict)
    moved: dict[bytes, int] = field(default_factory=dict)
    stale: list[bytes] = field(default_factory=list)
    failed: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Composed:
    """The recorded value of a call, with more than that.

    Attributes:
        shape: Of the block, sequence or graph that gave it: another shape gives another value. "" for a body.
        value: The value.
        aside: What was recorded beside it, such as the changes of a graph's state.
    """

    shape: str
    value: Any
    aside: Any = None


@dataclass(frozen=True, slots=True)
class ReadOnce:
    """Stands in a journal for the items of a source that can be read only once."""


def without_shape(value: Any) -> Any:
    """A recorded value as users know it."""
    return value.value if isinstance(value, Composed) else value


Outcome = Ok[T] | Failed | TimedOut | Cancelled | Skipped | NotStarted
