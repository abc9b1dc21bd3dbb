"""What a body in another process may ask of the call that it is."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from weft.errors import NotInRunError


class Inside:
    """The call, as far as its body's process knows it."""

    __slots__ = ("_ends_at", "_heartbeat", "_write", "call_id", "step", "told")

    def __init__(
        self,
        call_id: str,
        step: str,
        left: float | None,
        *,
        write: Callable[[Any], None],
        heartbeat: Callable[[], None],
    ) -> None:
        self.call_id = call_id
        self.step = step
        self.told = False
        self._ends_at = None if left is None else time.monotonic() + left
        self._write = write
        self._heartbeat = heartbeat

    def remaining(self) -> float | None:
        """Seconds until the deadline; None without one; never below 0."""
        return None if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for this body any more."""
        return self.told or self.remaining() == 0.0

    def write(self, value: Any) -> None:
        """Send a value to the events of the run."""
        self._write(value)

    def heartbeat(self) -> None:
        """Give a sign of life."""
        self._heartbeat()


inside: ContextVar[Inside | None] = ContextVar("weft_inside", default=None)


@functools.cache
def forget_in_forks(variable: ContextVar[Any]) -> None:
    """A process that a body forks is outside of the call and of the run: there the variable is None."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: variable.set(None))


class Writer:
    """The stream writer of a body in another process."""

    __slots__ = ()

    def __call__(self, value: object, /) -> None:
        """Write a value."""
        _here("the stream writer").write(value)

    async def drain(self) -> None:
        """Nothing to wait for: what was written is on its way."""


class Heartbeat:
    """The heartbeat of a body in another process."""

    __slots__ = ()

    def __call__(self) -> None:
        """Give a sign of life."""
        _here("heartbeat()").heartbeat()


class Absent:
    """Stands for what stays in the process of the workflow; using it says so."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __reduce__(self) -> tuple[Any, ...]:
        return (Absent, (self._what,))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotInRunError(
            f"{self._what} stays in the process of the workflow, so {self._what}.{name} cannot be used in a body that "
            "an executor runs elsewhere; read what it needs before, in the workflow, and pass it as an argument"
        )


def _here(what: str) -> Inside:
    found = inside.get()
    if found is None:
        raise NotInRunError(f"{what} works inside a body only, and only while it runs")
    return found
