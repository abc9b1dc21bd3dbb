"""A body that an executor runs elsewhere: to the engine the async body of its call, which waits for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from weft.engine.context import current
from weft.engine.reader import LOOK_AFTER, let_the_reader_follow
from weft.errors import ExecutorError
from weft.executors.base import Body, Dropped, Executor, Flight, Ticket, TimedOutThere
from weft.executors.work import trace_headers

if TYPE_CHECKING:
    from weft.engine.call import Call


class Away:
    """Calls a function through an executor."""

    def __init__(self, fn: Callable[..., Any], executor: Executor) -> None:
        self._fn = fn
        self._executor = executor

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives there."""
        call = current.get()
        assert call is not None
        landing = _Landing(call)
        flight = self._executor.begin(Body(self._fn, args, kwargs, _ticket_of(call)), landing)
        landing.hold_time(self._fn)
        try:
            return await asyncio.shield(landing.future)
        except asyncio.CancelledError:
            await _bring_down(call, flight, landing)
            raise
        finally:
            landing.is_left = True


def _ticket_of(call: Call) -> Ticket:
    timeout = call.step.timeout
    return Ticket(
        call.id,
        call.step.name,
        call.attempt,
        call.remaining(),
        timeout.run_timeout if timeout is not None else None,
        timeout.idle_timeout if timeout is not None else None,
        _levels(),
        trace_headers(),
    )


def _levels() -> dict[str, int]:
    """The levels that loggers were set to, by name."""
    # Emptied by logging whenever a level is set, so what is in it says that none was since.
    cache: dict[Any, Any] = getattr(logging.root, "_cache", {})
    known: dict[str, int] | None = cache.get(_LEVELS)
    if known is None:
        known = {
            name: each.level
            for name, each in list(logging.root.manager.loggerDict.items())
            if isinstance(each, logging.Logger) and each.level
        }
        known[""] = logging.root.level
        cache[_LEVELS] = known
    return known


_LEVELS = "the levels that Weft has seen"


async def _bring_down(call: Call, flight: Flight, landing: _Landing) -> None:
    """Nobody waits for the body: it is told so, and when its grace is over, it is ended or left to itself."""
    future = landing.future
    if future.done():  # it was the body that raised a CancelledError
        return
    landing.let_time_go()
    flight.tell()
    stop = call.stopping
    grace = call.run.grace if stop is None else stop.grace
    left = call.remaining()
    await _wait(future, grace if left is None else min(grace, left))
    if not future.done():
        if flight.kill():
            landing.hold_time(flight.kill)
            await _wait(future, None)
        else:
            landing.give_up()
    if future.done() and not future.cancelled():
        future.exception()  # nobody else takes it


async def _wait(future: asyncio.Future[Any], seconds: float | None) -> None:
    """Until it is done or the time is over, however often the body's task is cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    while not future.done():
        left = None if end is None else end - loop.time()
        if left is not None and left <= 0:
            return
        try:
            await asyncio.wait({future}, timeout=left)
        except asyncio.CancelledError:
            continue


class _Landing:
    """Takes what is told of a body, from any thread, to its call.

    Attributes:
        future: How it ended; on the loop.
        is_left: Whether its call has gone on without it, so that nobody is to hear of it.
    """

    _numbers = itertools.count(1)

    def __init__(self, call: Call) -> None:
        self._call = call
        self._attempt = call.attempt
        self._context = copy_context()
        self._written = 0
        self._kept = 0  # under what its call keeps limits for it, when it was given up
        self._has_ended = False
        self._time: concurrent.futures.Future[None] | None = None  # stands still until this is done
        self.future: asyncio.Future[Any] = call.run.loop.create_future()
        self.is_left = False

    def begun(self) -> None:
        if self._call.step.timeout is not None:
            self._call.run.post(self._call.begin_watch, self._attempt)

    def wrote(self, value: Any) -> None:
        if self.is_left:
            return
        self._call.run.post(self._call.tell_user_event, value)
        self._written += 1
        if not self._written % LOOK_AFTER:  # what is not read yet waits in the process, not here
            let_the_reader_follow(self._call.run, self._is_over)

    def logged(self, record: logging.LogRecord) -> None:
        found = logging.getLogger(record.name)
        if found.isEnabledFor(record.levelno):
            self._context.copy().run(found.handle, record)

    def beat(self) -> None:
        if not self.is_left:
            self._call.heartbeat()

    def ended(self, value: Any, error: BaseException | None) -> None:
        self._has_ended = True
        run = self._call.run
        if isinstance(error, TimedOutThere):
            run.post(self._call.out_of_time, error.limit, error.elapsed, error.idle)
        run.post(self._settle, value, error)
        self.let_time_go()
        if self._kept:
            self._call._free(self._kept)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(value)
        elif isinstance(error, StopIteration):
            self.future.set_exception(RuntimeError(f"the body raised {error!r}"))
        elif isinstance(error, Dropped) and self._call.stopping is None:
            self.future.set_exception(
                ExecutorError("the executor has dropped the body, as one does that is shut down")
            )
        else:
            self.future.set_exception(error)

    def _is_over(self) -> bool:
        return (
            self._has_ended or self.is_left or self._call.is_told_to_stop or self._call.run.loop.is_closed()
        )

    def give_up(self) -> None:
        """Leave the body to itself. It keeps what the world must not see used twice until it ends."""
        call, number = self._call, -next(self._numbers)  # no thread has such an ident
        if not call.abandoned:
            call.abandoned = {}
        call.abandoned[number] = () if call.permit is None else call.permit.leave()
        self._kept = number
        if self._has_ended:  # in this very moment
            call._free(number)
        call.left_to_itself()

    # Virtual time, which stands still while the body is at work

    def hold_time(self, what: Callable[..., Any]) -> None:
        """Have it stand still until the body has ended."""
        run = self._call.run
        if run.clock.is_virtual and self._time is None:
            self._time = concurrent.futures.Future()
            run.loop.run_in_executor(_Holding(self._time), what)
            if self._has_ended:  # in this very moment
                self.let_time_go()

    def let_time_go(self) -> None:
        """It need not wait for the body any more."""
        held, self._time = self._time, None
        if held is not None:
            with contextlib.suppress(
                concurrent.futures.InvalidStateError
            ):  # somebody else has, in this moment
                held.set_result(None)


class _Holding(concurrent.futures.Executor):
    """To a virtual loop, somebody who works until this future is done."""

    def __init__(self, future: concurrent.futures.Future[None]) -> None:
        self._future = future

    def submit(self, *_args: Any, **_kwargs: Any) -> concurrent.futures.Future[Any]:
        """The future."""
        return self._future
