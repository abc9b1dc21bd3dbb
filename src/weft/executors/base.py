"""What an executor is: something that calls a function elsewhere and says what becomes of it.

The engine gives it a :class:`Body` and a :class:`Listener`, and keeps the :class:`Flight` to stop it by. What waits,
what is retried and what is recorded is the engine's; where and in which process the function is called is the
executor's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from weft.errors import DefinitionError


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a body may know of the call that it is.

    Attributes:
        call_id: The same on every attempt and resume.
        step: The name of its step.
        attempt: From 1.
        left: Seconds until its deadline; None without one.
        timeout: Seconds that the attempt may take from when it begins; None for ever.
        idle: Seconds that it may be without a sign of life.
        levels: What its loggers are set to, by their names; ``""`` is the root.
        trace: The headers of the trace that it is part of.
    """

    call_id: str
    step: str
    attempt: int = 1
    left: float | None = None
    timeout: float | None = None
    idle: float | None = None
    levels: dict[str, int] = field(default_factory=dict)
    trace: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """A function and its arguments, for a call."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ticket: Ticket


class Listener(Protocol):
    """Who is told what becomes of a body; from any thread, in this order: begun, signs of life, ended once."""

    def begun(self) -> None:
        """The function is being called. Not told by executors that time an attempt themselves."""
        ...

    def wrote(self, value: Any) -> None:
        """The body wrote a value to the events of its run."""
        ...

    def logged(self, record: logging.LogRecord) -> None:
        """A logger was told something in the body."""
        ...

    def beat(self) -> None:
        """The body gave a sign of life."""
        ...

    def ended(self, value: Any, error: BaseException | None) -> None:
        """It returned, raised, or its process is gone."""
        ...


class Flight(Protocol):
    """A body that was given to an executor."""

    def tell(self) -> None:
        """Nobody waits for it any more: ``weft.cancelled()`` says so in it, and if it has not begun, it never will."""
        ...

    def kill(self) -> bool:
        """End it now. False where that cannot be done: then it is left to itself."""
        ...


class Executor(Protocol):
    """Calls functions elsewhere; one object serves any number of steps and runs at once."""

    def begin(self, body: Body, listener: Listener) -> Flight:
        """Have the body's function called.

        Raises:
            UnsendableError: It, or an argument, cannot be sent.
        """
        ...


class TimedOutThere(Exception):  # noqa: N818 - how an executor that times attempts itself says so to the engine
    """The attempt took longer than its ticket allows."""

    def __init__(self, limit: float, elapsed: float, *, idle: bool = False) -> None:
        super().__init__(limit, elapsed)
        self.limit = limit
        self.elapsed = elapsed
        self.idle = idle


class Dropped(Exception):  # noqa: N818 - an end that nobody waits for
    """The body was never begun, or was ended, because nobody waits for it."""


def check_carry(carry: Iterable[ContextVar[Any]]) -> tuple[ContextVar[Any], ...]:
    """The context variables that an executor takes along.

    Raises:
        DefinitionError: One is something else.
    """
    found = tuple(carry) if isinstance(carry, Iterable) else (carry,)
    for each in found:
        if not isinstance(each, ContextVar):
            raise DefinitionError(f"carry takes ContextVar objects, as in carry=[request_id], not {each!r}")
    return found
