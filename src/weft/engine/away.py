"""A body that an executor runs elsewhere: to the engine the async body of its call, which waits for it."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from weft.engine.context import current
from weft.executors.base import Body, Executor, Flight, Ticket, TimedOutThere
from weft.executors.work import trace_headers

if TYPE_CHECKING:
    from weft.engine.call import Call

#: Seconds for which the levels of the loggers are taken to be as they were.
_BELIEVED = 1.0


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
        try:
            return await asyncio.shield(landing.future)
        except asyncio.CancelledError:
            await _bring_down(call, flight, landing.future)
            raise


def _ticket_of(call: Call) -> Ticket:
    timeout = call.step.timeout
    return Ticket(
        call.id,
        call.step.name,
        call.attempt,
        call.remaining(),
        timeout.run_timeout if timeout is not None else None,
        timeout.idle_timeout if timeout is not None else None,
        _levels(int(time.monotonic() / _BELIEVED)),
        trace_headers(),
    )


@functools.lru_cache(maxsize=1)
def _levels(_now: int) -> dict[str, int]:
    """The levels that loggers were set to, by name."""
    known = {
        name: each.level
        for name, each in list(logging.root.manager.loggerDict.items())
        if isinstance(each, logging.Logger) and each.level
    }
    return {"": logging.root.level, **known}


async def _bring_down(call: Call, flight: Flight, future: asyncio.Future[Any]) -> None:
    """Nobody waits for the body: it is told so, and when its grace is over, it is ended or left to itself."""
    flight.tell()
    if not call.timed_out:
        left = call.remaining()
        grace = call.run.grace
        await _wait(future, grace if left is None else min(grace, left))
    if not future.done():
        if flight.kill():
            await _wait(future, None)
        else:
            call.given_up_elsewhere()
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
    """Takes what is told of a body, from any thread, to its call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._attempt = call.attempt
        self._context = copy_context()
        self.future: asyncio.Future[Any] = call.run.loop.create_future()

    def begun(self) -> None:
        if self._call.step.timeout is not None:
            self._call.run.post(self._call.begin_watch, self._attempt)

    def wrote(self, value: Any) -> None:
        self._call.run.post(self._call.tell_user_event, value)

    def logged(self, record: logging.LogRecord) -> None:
        found = logging.getLogger(record.name)
        if found.isEnabledFor(record.levelno):
            self._context.copy().run(found.handle, record)

    def beat(self) -> None:
        self._call.heartbeat()

    def ended(self, value: Any, error: BaseException | None) -> None:
        if isinstance(error, TimedOutThere):
            self._call.run.post(self._call.out_of_time, error.limit, error.elapsed, error.idle)
        self._call.run.post(self._settle, value, error)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(value)
        elif isinstance(error, StopIteration):
            self.future.set_exception(RuntimeError(f"the body raised {error!r}"))
        else:
            self.future.set_exception(error)
