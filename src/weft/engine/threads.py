"""Blocking work of the engine itself, such as reading a journal, away from the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from weft.engine.clock import clock_of
from weft.engine.workers import engine_workers

T = TypeVar("T")


async def in_thread(
    fn: Callable[[], T], *, loop: asyncio.AbstractEventLoop, unwanted: Callable[[T], None] | None = None
) -> T:
    """What ``fn()`` gives, computed in a worker thread; ``unwanted`` is given it when nobody waits any more."""
    if clock_of(loop).is_virtual:
        return fn()  # nothing may be done behind the back of a loop whose time jumps
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            discard(value, error)
        elif error is None:
            future.set_result(value)  # type: ignore[arg-type]  # a value when there is no error
        else:
            future.set_exception(error)

    def discard(value: T | None, error: BaseException | None) -> None:
        if error is None and unwanted is not None:
            unwanted(value)  # type: ignore[arg-type]  # a value when there is no error

    def tell(value: T | None, error: BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(settle, value, error)
        except RuntimeError:  # the loop is closed
            discard(value, error)

    def job() -> None:
        try:
            value = fn()
        except BaseException as error:
            tell(None, error)
        else:
            tell(value, None)

    engine_workers.submit(job)
    return await future
