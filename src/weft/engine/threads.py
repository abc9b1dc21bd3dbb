"""Blocking work of the engine itself, such as reading a journal, away from the loop; and the way back onto it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from weft.engine.clock import clock_of
from weft.engine.signals import ENDS_A_LOOP
from weft.engine.workers import engine_workers

T = TypeVar("T")

#: A function and its arguments, to be called on a loop.
News = tuple[Callable[..., None], Sequence[Any]]


def tell(loop: asyncio.AbstractEventLoop, news: Iterable[News]) -> bool:
    """Make all these calls on the loop, which is woken once for them; False when it is closed: nobody listens."""
    try:
        loop.call_soon_threadsafe(_make, loop, news)
    except RuntimeError:
        return False
    return True


def _make(loop: asyncio.AbstractEventLoop, news: Iterable[News]) -> None:
    rest = iter(news)
    for fn, args in rest:
        try:
            fn(*args)
        except ENDS_A_LOOP:
            loop.call_soon(_make, loop, rest)  # if the loop goes on after all
            raise
        except BaseException as error:  # also what is no Exception: the rest must not be left lying
            loop.call_exception_handler({"message": f"weft: {fn!r} failed", "exception": error})


class Delivery(Generic[T]):
    """What another thread finds out, on its way to who awaits it on a loop.

    Args:
        loop: The loop.
        unwanted: Is given the value when nobody awaits it any more.
    """

    __slots__ = ("_future", "_unwanted", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, unwanted: Callable[[T], None] | None = None) -> None:
        self.loop = loop
        self._future: asyncio.Future[T] = loop.create_future()
        self._unwanted = unwanted

    @property
    def is_left(self) -> bool:
        """Whether nobody awaits it any more; from any thread."""
        return self._future.done()

    async def received(self) -> T:
        """The value, or the error raised; to be awaited once."""
        try:
            return await self._future
        except asyncio.CancelledError:
            future = self._future
            if not future.cancelled() and future.exception() is None:  # in the moment in which it came
                self.discard(future.result(), None)
            raise

    def settle(self, value: T | None, error: BaseException | None) -> None:
        """Hand it over; on the loop."""
        if self._future.done():
            self.discard(value, error)
        elif error is None:
            self._future.set_result(value)  # type: ignore[arg-type]  # a value when there is no error
        else:
            self._future.set_exception(error)

    def discard(self, value: T | None, error: BaseException | None) -> None:
        """Nobody awaits it."""
        if error is None and self._unwanted is not None:
            self._unwanted(value)  # type: ignore[arg-type]  # a value when there is no error


def deliver(delivery: Delivery[T], value: T | None, error: BaseException | None) -> None:
    """Hand over what was found out, from any thread: a value, or an error."""
    # Its loop may be closed, and may be so soon where nobody waits any more.
    if delivery.is_left or not tell(delivery.loop, [(delivery.settle, (value, error))]):
        delivery.discard(value, error)


async def in_thread(
    fn: Callable[[], T], *, loop: asyncio.AbstractEventLoop, unwanted: Callable[[T], None] | None = None
) -> T:
    """What ``fn()`` gives, computed in a worker thread; ``unwanted`` is given it when nobody waits any more."""
    if clock_of(loop).is_virtual:
        return fn()  # nothing may be done behind the back of a loop whose time jumps
    delivery: Delivery[T] = Delivery(loop, unwanted)

    def job() -> None:
        try:
            value = fn()
        except BaseException as error:
            deliver(delivery, None, error)
        else:
            deliver(delivery, value, None)

    engine_workers.submit(job)
    return await delivery.received()
