"""The loop on which sync callers' runs live: one daemon thread, begun at first use, remade after a fork."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from asyncio import _get_running_loop
from contextvars import ContextVar

logger = logging.getLogger("weft")

#: The loop that takes the place of ours in this context; for tests in virtual time.
stand_in: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("weft_stand_in", default=None)


class Portal:
    """A loop in a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop; begun when this process has none yet."""
        instead = stand_in.get()
        if instead is not None and instead is not _get_running_loop() and not instead.is_closed():
            return instead
        if self._pid != os.getpid():
            self._lock = threading.Lock() if self._pid else self._lock  # may be held by a thread that is gone
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._loop = self._begin()
                self._pid = os.getpid()
            return self._loop

    @staticmethod
    def _begin() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        ready = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(ready.set)
            while not loop.is_closed():
                try:
                    loop.run_forever()
                except BaseException:  # asyncio lets SystemExit of a user's own task through, and stops
                    logger.exception("a task of a workflow's own ended the loop; it goes on")

        threading.Thread(target=serve, name="weft-loop", daemon=True).start()
        ready.wait()
        return loop


#: The portal of this process. No thread is started before a sync caller needs it.
portal = Portal()
