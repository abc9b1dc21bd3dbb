"""Blocking work of the engine itself, such as reading a journal, away from the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from weft.engine.workers import workers

T = TypeVar("T")


async def in_thread(fn: Callable[[], T], *, loop: asyncio.AbstractEventLoop) -> T:
    """What ``fn()`` gives, computed in a worker thread."""
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)  # type: ignore[arg-type]  # a value when there is no error
        else:
            future.set_exception(error)

    def tell(value: T | None, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, value, error)

    def job() -> None:
        try:
            value = fn()
        except BaseException as error:
            tell(None, error)
        else:
            tell(value, None)

    workers.submit(job)
    return await future
