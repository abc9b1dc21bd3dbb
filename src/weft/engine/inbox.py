"""From any thread onto a loop, in order, with one wake-up for all that waits."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable
from typing import Any


class Inbox:
    """Calls posted from threads, made on the loop in the order of posting."""

    __slots__ = ("_items", "_loop", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._scheduled = False

    def post(self, fn: Callable[..., None], *args: Any) -> bool:
        """Have ``fn(*args)`` called on the loop; False when the loop is closed, so that nobody listens."""
        if self._loop.is_closed():
            return False
        self._items.append((fn, args))
        if self._scheduled:
            return True
        try:
            self._scheduled = True
            if _get_running_loop() is self._loop:
                self._loop.call_soon(self._drain)  # no need to wake what is awake
            else:
                self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            return False
        except BaseException:  # Ctrl-C in this very moment: perhaps it is scheduled, perhaps not
            self._scheduled = False
            raise
        return True

    def _drain(self) -> None:
        # Cleared first: who posts from now on schedules anew, so that nothing is left lying.
        self._scheduled = False
        while self._items:
            fn, args = self._items.popleft()
            try:
                fn(*args)
            except BaseException as error:  # also what is no Exception: the rest must not be left lying
                self._loop.call_exception_handler({"message": f"weft: {fn!r} failed", "exception": error})
