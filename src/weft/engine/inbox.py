"""From any thread onto a loop, in order, with one wake-up for all that waits."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any
from weakref import WeakKeyDictionary, ref

from weft.engine.signals import ENDS_A_LOOP


class Inbox:
    """Calls posted to a loop, made on it in the order of posting. All runs of a loop share one.

    It does not keep the loop alive. Each is called in the context of whoever posted it, since it may come to code of
    the user's.
    """

    __slots__ = ("_items", "_loop", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._items: deque[tuple[Context, Callable[..., None], tuple[Any, ...]]] = deque()
        self._scheduled = False

    def post(self, fn: Callable[..., None], *args: Any) -> bool:
        """Have ``fn(*args)`` called on the loop; False when the loop is closed, so that nobody listens."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        self._items.append((copy_context(), fn, args))
        if self._scheduled:
            return True
        try:
            self._scheduled = True
            if _get_running_loop() is loop:
                loop.call_soon(self._drain)  # no need to wake what is awake
            else:
                loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            return False
        except BaseException:  # Ctrl-C in this very moment: perhaps it is scheduled, perhaps not
            self._scheduled = False
            raise
        return True

    def loop_rests(self, seconds: float) -> bool:
        """Whether the loop has nothing else to do now, no timer for so long, and nothing that it waits for.

        Nothing but what other threads post, that is; a loop that does not tell is taken to have more. To be asked on
        the loop.
        """
        loop: Any = self._loop()
        if self._items or loop is None:
            return False
        try:
            has_more = loop._ready or len(loop._selector.get_map()) > 1  # itself, to be woken
            return not (has_more or (loop._scheduled and loop._scheduled[0].when() < loop.time() + seconds))
        except AttributeError:  # there is no public way to ask
            return False

    def _drain(self) -> None:
        # Cleared first: who posts from now on schedules anew, so that nothing is left lying.
        self._scheduled = False
        for _ in range(len(self._items)):  # not what comes meanwhile: the loop has its turn between
            context, fn, args = self._items.popleft()
            try:
                context.run(fn, *args)
            except ENDS_A_LOOP:
                self._drain_soon()  # if the loop goes on after all, so does the rest
                raise
            except BaseException as error:  # also what is no Exception: the rest must not be left lying
                told = {"message": f"weft: {fn!r} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(told)

    def _drain_soon(self) -> None:
        if self._items and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._drain)


_inboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Inbox] = WeakKeyDictionary()


def inbox_of(loop: asyncio.AbstractEventLoop) -> Inbox:
    """The inbox of this loop."""
    # Made in one stroke, as threads may ask at the same time.
    return _inboxes.get(loop) or _inboxes.setdefault(loop, Inbox(loop))
