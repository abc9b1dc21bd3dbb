"""What a body holds of a call that it asked for: native futures of both kinds.

On the run's loop that is an ``asyncio.Future``, elsewhere a ``concurrent.futures.Future``, so that ``gather``,
``wait``, ``as_completed`` and ``result`` are the standard library's own. Ours differ in three things: cancelling
one stops the call with everything below it; a body that is being unwound gets that instead of a result; and the
engine learns when a body begins to wait, because outcomes become visible only while somebody looks
(see :mod:`weft.core.visibility`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.engine.call import Call
    from weft.engine.scope import Scope


class LoopFuture(asyncio.Future[Any]):
    """The future of a call, for the loop of its run."""

    __slots__ = ("call",)

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.call: Call | None = call

    def cancel(self, msg: Any | None = None) -> bool:
        """Stop the call and what it has begun; this future is cancelled when all of that has ended."""
        if self.done():
            return False
        call = self.call
        if call is None or call.is_over or call.stopping is not None:
            return super().cancel(msg)
        call.stop_by_caller()
        return True

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Give it its value or its error; too late when it was cancelled."""
        self.call = None
        if self.done():
            return
        if error is None:
            self.set_result(value)
        elif isinstance(error, asyncio.CancelledError):
            super().cancel()
        else:
            self.set_exception(error)

    @property
    def was_received(self) -> bool:
        """Whether somebody took the outcome."""
        return self.done() and not (not self.cancelled() and self._log_traceback)

    @property
    def is_awaited(self) -> bool:
        """Whether something waits for it."""
        return bool(self._callbacks)

    def forget(self) -> None:
        """Nobody need be told that an error was not received."""
        self._log_traceback = False


class ThreadFuture(concurrent.futures.Future[Any]):
    """The future of a call, for code that runs in a thread."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call: Call | None = call
        self.was_received = False
        self._blocked = 0

    def watch(self, scope: Scope) -> None:
        """Tell the scope when somebody begins to wait: by ``result`` here, by ``wait`` through its waiters."""
        self._waiters = _Waiters(scope, self._waiters)

    def result(self, timeout: float | None = None) -> Any:
        """The value of the call, waiting for it for at most ``timeout`` seconds.

        Raises:
            TimeoutError: It has not ended in that time.
            Exception: What the call raised.
        """
        self._attend()
        try:
            return super().result(timeout)
        finally:
            self._leave()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None; waits for at most ``timeout`` seconds."""
        self._attend()
        try:
            return super().exception(timeout)
        finally:
            self._leave()

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        """Have ``fn(self)`` called when the outcome is there."""
        super().add_done_callback(fn)
        if not super().done() and (scope := self._scope) is not None:
            scope.called_back()

    def done(self) -> bool:
        """Whether the outcome is there."""
        if super().done():
            return True
        if (scope := self._scope) is not None:
            scope.glance()
        return False

    def running(self) -> bool:
        """Whether the call is being executed."""
        call = self.call
        return call is not None and call.is_running

    def cancel(self) -> bool:
        """Ask for the call to be stopped; True when that was in time."""
        call = self.call
        if call is None or not super().cancel():
            return self.cancelled()
        self.set_running_or_notify_cancel()
        call.run.post(call.stop_by_caller)
        return True

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Give it its value or its error; too late when it was cancelled."""
        self.call = None
        if super().done():
            return
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except concurrent.futures.InvalidStateError:
            return  # cancelled by its owner in this very moment

    @property
    def is_awaited(self) -> bool:
        """Whether something waits for it."""
        return bool(self._blocked or self._done_callbacks or any(not w.event.is_set() for w in [*self._waiters]))

    def forget(self) -> None:
        """Nothing to be told about an error that nobody received."""

    @property
    def _scope(self) -> Scope | None:
        call = self.call
        parent = call.parent if call is not None else None
        return parent.scope if parent is not None else None

    def _attend(self) -> None:
        if super().done():
            self.was_received = True
            return
        self._blocked += 1
        if (scope := self._scope) is not None:
            scope.begin_wait(self)

    def _leave(self) -> None:
        if self._blocked:
            self._blocked -= 1
            self.was_received = super().done()


class _Waiters(list[Any]):
    """The standard library's list of who waits for a future, which tells a scope of each.

    ``concurrent.futures.wait`` and ``as_completed`` put a waiter into every future's ``_waiters`` and take it out
    when they have seen that future. There is no public way to learn of either.
    """

    def __init__(self, scope: Scope, items: list[Any]) -> None:
        super().__init__(items)
        self._scope = scope

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        self._scope.begin_wait(waiter)

    def remove(self, waiter: Any) -> None:
        super().remove(waiter)
        self._scope.end_wait(waiter)


AnyFuture = LoopFuture | ThreadFuture
