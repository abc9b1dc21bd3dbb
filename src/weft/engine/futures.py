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
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures._base import FINISHED, _AsCompletedWaiter
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from weft.errors import Unwind

if TYPE_CHECKING:
    from weft.engine.call import Call
    from weft.engine.clock import Clock
    from weft.engine.planned import PlannedCall
    from weft.engine.scope import Scope
    from weft.engine.states import Stop


logger = logging.getLogger("weft")


class LoopFuture(asyncio.Future[Any]):
    """The future of a call, for the loop of its run."""

    __slots__ = ("call", "was_awaited")

    call: Call | None  # set by whoever makes it: an ``__init__`` of its own would take as long again

    def cancel(self, msg: Any | None = None) -> bool:
        """Stop the call and what it has begun; this future is cancelled when all of that has ended."""
        if self.done():
            return False
        call = self.call
        if call is not None and call.parent is None and call.run.cancel_at_end():
            return True  # the end of the run is being recorded; then
        if call is None or call.has_ended:
            return super().cancel(msg)
        call.stop_by_caller()
        return True

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Give it its value or its error; too late when it was cancelled."""
        self.call = None
        if self.done():
            return
        self.was_awaited = bool(self._callbacks)
        if error is None:
            self.set_result(value)
        elif isinstance(error, asyncio.CancelledError):
            super().cancel()
        elif isinstance(
            error, StopIteration
        ):  # a future cannot hold one: it would end the generator that awaits
            wrapped = RuntimeError(f"the body raised {error!r}")
            wrapped.__cause__ = error
            self.set_exception(wrapped)
        else:
            self.set_exception(error)

    @property
    def was_received(self) -> bool:
        """Whether somebody took the outcome."""
        return self.done() and (self.cancelled() or self.was_awaited or not self._log_traceback)

    @property
    def is_awaited(self) -> bool:
        """Whether something waits for it."""
        return bool(self._callbacks)

    def drop(self, why: Stop) -> None:
        """Nobody wants the outcome: who still waits for it is cancelled."""
        self.call = None
        if not super().cancel():
            self.forget()

    def forget(self) -> None:
        """Nobody need be told that an error was not received."""
        self._log_traceback = False


class ThreadFuture(concurrent.futures.Future[Any]):
    """The future of a call, for code that runs in a thread."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call: Call | None = call
        self.was_received = False
        self._has_callbacks = False
        self.stroke: list[tuple[ThreadFuture, Any, BaseException | None]] | None = None

    def watch(self, scope: Scope | None, clock: Clock) -> None:
        """Tell the scope and the clock when somebody waits: by ``result`` here, by ``wait`` through its waiters."""
        self._waiters = _Waiters(scope, clock, self._waiters)

    def result(self, timeout: float | None = None) -> Any:
        """The value of the call, waiting for it for at most ``timeout`` seconds.

        Raises:
            TimeoutError: It has not ended in that time.
            Exception: What the call raised.
        """
        scope = self._attend(timeout)
        try:
            return super().result(timeout)
        finally:
            self._leave(scope)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None; waits for at most ``timeout`` seconds."""
        scope = self._attend(timeout)
        try:
            error = super().exception(timeout)
        finally:
            self._leave(scope)
        if isinstance(error, Unwind):
            raise error
        return error

    def when_over(self, do: Callable[[], object]) -> None:
        """Have the engine's own ``do()`` called when the outcome is there: no sign that the body is ready for it."""
        super().add_done_callback(lambda _: do())

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        """Have ``fn(self)`` called when the outcome is there."""

        def call(future: concurrent.futures.Future[Any]) -> None:
            try:
                fn(future)
            except BaseException:  # result() raises what is no Exception to a body that is stopped
                logger.exception("a callback of a call's future failed")

        super().add_done_callback(call)
        self._has_callbacks = True
        if not super().done() and (scope := self._scope) is not None:
            scope.called_back()

    def done(self) -> bool:
        """Whether the outcome is there."""
        if super().done():
            return True
        if (scope := self._scope) is not None:
            scope.glance(self)
        return False

    def running(self) -> bool:
        """Whether the call is being executed."""
        call = self.call
        return call is not None and call.is_running

    def cancel(self) -> bool:
        """Ask for the call to be stopped; True when that was in time."""
        call = self.call
        if call is None or self.cancelled() or not super().cancel():
            return self.cancelled()
        with suppress(RuntimeError):  # another thread has cancelled it in this moment
            self.set_running_or_notify_cancel()
        call.run.post(call.stop_by_caller)
        return True

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Give it its value or its error; too late when it was cancelled."""
        self.call = None
        if self.stroke is not None:
            self.stroke.append((self, value, error))
            return
        with self._condition:
            settled = self._set(value, error)
        if settled:
            self._invoke_callbacks()  # type: ignore[attr-defined]  # as set_result does

    def _set(self, value: Any, error: BaseException | None) -> bool:
        """As ``set_result`` and ``set_exception``, but without calling back; the caller has the lock."""
        if super().done():
            return False  # cancelled by its owner in this very moment
        self._result, self._exception = value, error
        self._state = FINISHED
        for waiter in self._waiters:
            if error is None:
                waiter.add_result(self)
            else:
                waiter.add_exception(self)
        self._condition.notify_all()
        return True

    @property
    def is_there(self) -> bool:
        """Whether its outcome is there; unlike :meth:`done` it is asked by the engine, not by the body."""
        return super().done()

    @property
    def is_awaited(self) -> bool:
        """Whether somebody is called back by it, as a loop is that it was wrapped for."""
        return self._has_callbacks

    def drop(self, why: Stop) -> None:
        """Nobody wants the outcome: who still waits for it is to unwind."""
        self.settle(None, why.unwinding())

    def forget(self) -> None:
        """Nothing to be told about an error that nobody received."""

    @property
    def _scope(self) -> Scope | None:
        call = self.call
        parent = call.parent if call is not None else None
        return parent.scope if parent is not None else None

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Meanwhile this thread waits for the call in a way of its own, as :meth:`result` would."""
        told = self._attend(None)
        try:
            yield
        finally:
            self._leave(told)

    def _attend(self, timeout: float | None) -> tuple[Scope | None, Clock | None]:
        call = self.call
        if super().done() or call is None:
            return None, None
        if (scope := self._scope) is not None:
            scope.begin_wait(self, timed=timeout is not None)
        clock = call.run.clock
        clock.leave()
        return scope, clock

    def _leave(self, told: tuple[Scope | None, Clock | None]) -> None:
        self.was_received = super().done()
        scope, clock = told
        if clock is not None:
            clock.enter()
        if scope is not None:
            scope.end_wait(self)


class WatchedEvent(threading.Event):
    """An event that tells a scope when a thread is about to block for it."""

    def __init__(self, scope: Scope | None, clock: Clock, *, insists: bool) -> None:
        super().__init__()
        self._scope = scope
        self._clock = clock
        self._insists = insists  # it would wait again when real time is left, whatever virtual time says

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, for at most ``timeout`` seconds."""
        if self._scope is not None:
            self._scope.begin_wait(self, timed=timeout is not None)
        self._clock.leave()
        try:
            in_time = super().wait(timeout) and self.is_set()  # virtual time wakes it without setting it
        finally:
            self._clock.enter()
            if self._scope is not None:
                self._scope.end_wait(self)
        if self._insists and not in_time and self._clock.is_virtual:
            raise TimeoutError
        return in_time

    @property
    def is_there(self) -> bool:
        """Whether the thread need not block any more."""
        return self.is_set()


class _Waiters(list[Any]):
    """The standard library's list of who waits for a future, each made to wait for an event of ours.

    ``concurrent.futures.wait`` and ``as_completed`` put an object into every future's ``_waiters`` and block for its
    ``event``. There is no public way to learn that they do.
    """

    def __init__(self, scope: Scope | None, clock: Clock, items: list[Any]) -> None:
        super().__init__(items)
        self._scope = scope
        self._clock = clock

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        if not isinstance(waiter.event, WatchedEvent):
            waiter.event = WatchedEvent(
                self._scope, self._clock, insists=isinstance(waiter, _AsCompletedWaiter)
            )


class Branch:
    """What a conductor holds of a call that it has started: told at once, and never waited for by a body."""

    __slots__ = ("call", "index", "owner")

    #: A conductor takes every outcome, and waits for nothing else.
    was_received = is_awaited = True

    def __init__(self, owner: PlannedCall, index: int) -> None:
        self.owner = owner
        self.index = index
        self.call: Call | None = None

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Tell the conductor how the call ended."""
        call, self.call = self.call, None
        if call is not None:
            self.owner.branch_ended(self, call)

    def drop(self, why: Stop) -> None:
        """Nobody wants the outcome."""
        self.call = None

    def forget(self) -> None:
        """Nothing to be told about an error that nobody received."""


AnyFuture = LoopFuture | ThreadFuture

#: Where the outcome of a call goes.
Reply = LoopFuture | ThreadFuture | Branch

#: What a thread may block for.
Awaited = ThreadFuture | WatchedEvent


class Hand(asyncio.Task[None]):
    """A task that goes on with the body of a call, which is not its own coroutine; see :mod:`weft.engine.crew`."""

    __slots__ = ("body",)  # else each that waits has a dict

    body: Coroutine[Any, Any, None] | None


def waits_only_for_calls(task: asyncio.Task[Any]) -> bool:
    """Whether a task on the loop waits for calls alone: by ``await``, through ``gather``, or through tasks that do.

    ``wait``, ``as_completed`` and task groups do not tell what they wait for; there the answer is yes.
    """
    stack: list[Any] = [task]
    while stack:
        waited = stack.pop()
        if isinstance(waited, asyncio.Task):
            if waited.done():
                continue
            if (then := waited._fut_waiter) is None:  # type: ignore[attr-defined]  # there is no public way
                return False  # it is about to run
            if type(then) is asyncio.Future and not _collects(waited, then):
                return False  # it sleeps, or waits for the world
            stack.append(then)
        elif not isinstance(waited, LoopFuture):
            stack.extend(getattr(waited, "_children", ()))
    return True


#: Where asyncio waits for futures given to it by way of a future of its own.
_COLLECTORS = frozenset({"locks.py", "queues.py", "tasks.py", "taskgroups.py"})


def _collects(task: asyncio.Task[Any], waited: asyncio.Future[Any]) -> bool:
    """Whether what the task is at, innermost, is one of asyncio's own ways of waiting for something else."""
    inner: Any = task.body if isinstance(task, Hand) else task.get_coro()
    while (then := getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)) is not None:
        if not (hasattr(then, "cr_code") or hasattr(then, "ag_code")):
            break
        inner = then
    code = getattr(inner, "cr_code", None) or getattr(inner, "ag_code", None)
    if code is None:
        return False
    folder, _, name = code.co_filename.rpartition(os.sep)
    if folder.endswith("asyncio") and name in _COLLECTORS:
        return bool(code.co_name != "sleep")
    return any(
        getattr(callback, "__qualname__", "").startswith("shield.") for callback, _ in waited._callbacks or ()
    )


@contextmanager
def at_one_stroke(futures: Sequence[Reply]) -> Iterator[None]:
    """Settle several futures so that a thread which waits for the first of them sees all of them settled.

    The order of taking their locks is that of ``concurrent.futures.wait``, so that neither blocks the other; and
    nothing of the user is called while they are held.
    """
    together = [future for future in futures if isinstance(future, ThreadFuture)]
    if len(together) < 2:
        yield
        return
    stroke: list[tuple[ThreadFuture, Any, BaseException | None]] = []
    for future in together:
        future.stroke = stroke
    try:
        yield
    finally:
        for future in together:
            future.stroke = None
        with ExitStack() as stack:
            for future in sorted({each for each, _, _ in stroke}, key=id):
                stack.enter_context(future._condition)
            settled = [future for future, value, error in stroke if future._set(value, error)]
        for future in settled:
            future._invoke_callbacks()  # type: ignore[attr-defined]  # as set_result does
