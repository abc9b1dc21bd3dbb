"""Who writes to the events of a run waits while their reader is far behind, so that what is unread stays bounded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.engine.execution import Execution

#: Events that a stream may be behind before who writes to it has to wait.
MOST_UNREAD = 1_000

#: After how many values a thread looks whether it has to.
LOOK_AFTER = 100

_LOOK_AGAIN = 0.005


def let_the_reader_follow(run: Execution, is_over: Callable[[], bool]) -> None:
    """In a thread: wait until the reader is near, or until nobody needs what is written, as ``is_over`` says."""
    if run.unread is None or run.clock.is_virtual:  # in virtual time who reads may wait for this very body
        return
    told = threading.Event()
    if not run.post(told.set):
        return
    while not told.wait(_LOOK_AGAIN) and not is_over():
        pass  # until then, what was written is still on its way, and not counted
    while _is_far_behind(run) and not is_over():
        time.sleep(_LOOK_AGAIN)


async def until_the_reader_follows(run: Execution) -> None:
    """On the loop: wait until the reader is near."""
    while not run.clock.is_virtual and _is_far_behind(run):  # noqa: ASYNC110 - the reader may be of another thread
        await asyncio.sleep(_LOOK_AGAIN)


def _is_far_behind(run: Execution) -> bool:
    return run.unread is not None and run.unread() > MOST_UNREAD
