"""Progress for people: a live view on a terminal, a table in a notebook, plain lines elsewhere; on stderr.

    events ─► Tally (counts, as blocks and steps are nested) ─► a view (a thread of its own, which reads the counts)

The loop of a run only ever counts; what writes, and may have to wait for whoever reads, is another thread.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import importlib.util
import os
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol, Self, TextIO

from weft.engine import events
from weft.errors import InputError, UsageError
from weft.observe.progress_lines import LinesView
from weft.observe.progress_notebook import NotebookView, is_notebook
from weft.observe.progress_tally import Tally
from weft.observe.progress_words import duration, printable

_PATIENCE = (
    1.0  # seconds that the end of a run waits for whoever reads; nobody, most likely, if it takes longer
)
_LAST_PATIENCE = 0.5  # and the end of the process

_views: set[_View] = set()  # that have something to write
_views_lock = threading.Lock()


class Progress:
    """Shows how runs are getting on: ``invoke(..., progress=Progress())``, for one run or for several.

    On a terminal that is a live view, which needs rich; in a notebook it is a table below the cell; anywhere else (a
    file, a pipe, ``CI``, ``NO_COLOR``, ``TERM=dumb``, or without rich) it is a plain line now and then. It never
    slows a run, nor breaks it.

    ``progress=True`` is one of these for each run. One that is given to several runs adds those of a workflow up; as
    a context manager it lasts for all runs that are begun within.

    Args:
        file: Where to; stderr unless told.
        live: Whether to draw on it; found out unless told.

    Raises:
        UsageError: A live view is asked for, but rich is not installed.
    """

    def __init__(self, file: TextIO | None = None, *, live: bool | None = None) -> None:
        if live and not _has_rich():
            raise UsageError('a live progress display needs rich: pip install "weft[cli]"')
        self._file = file
        self._live = live
        self._lock = threading.Lock()
        self._users = 0
        self._tally: Tally | None = None
        self._view: _View | None = None

    def __enter__(self) -> Self:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._tally = Tally()
                self._view = self._started(self._tally)
        return self

    def __exit__(self, *exc: object) -> None:
        over = self.leave()
        if over is not None:
            concurrent.futures.wait([over], timeout=_PATIENCE)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        over = self.leave()
        if over is not None:
            await asyncio.wait([asyncio.wrap_future(over)], timeout=_PATIENCE)

    def leave(self) -> Future[None] | None:
        """As the end of a ``with``, without waiting; the last one out gets what is done when all is written."""
        with self._lock:
            self._users -= 1
            if self._users or self._view is None:
                return None
            view, self._view = self._view, None
        return view.stop()

    def __call__(self, event: events.Event) -> None:
        """Take an event into account; never waits."""
        tally, view = self._tally, self._view
        if tally is None or view is None:
            return  # nobody looks
        line = tally.take(event)
        if line:
            view.tell(line)

    def _started(self, tally: Tally) -> _View:
        view = self._chosen(tally)
        try:
            view.start()
        except Exception:
            if self._live:
                raise
            return _NoView()  # a machine without threads, a notebook without a display
        _keep(view)
        return view

    def _chosen(self, tally: Tally) -> _View:
        if self._file is None and self._live is None and is_notebook():
            return NotebookView(tally)
        file = sys.stderr if self._file is None else self._file  # which is None where it was closed before
        if file is None or not _is_live(file, self._live):
            return LinesView(tally, file)
        from weft.observe.progress_live import LiveView  # noqa: PLC0415 - only needed on a terminal

        return LiveView(tally, file)


def progress_of(value: Any) -> Progress:
    """The display that ``progress=`` asks for.

    Raises:
        InputError: It is neither True nor a Progress.
    """
    if value is True:
        return Progress()
    if isinstance(value, Progress):
        return value
    raise InputError(f"progress must be True, False or a Progress, not {value!r:.80}")


class _View(Protocol):
    over: Future[None]

    def start(self) -> None: ...
    def tell(self, line: str) -> None: ...
    def stop(self) -> Future[None]: ...


class _NoView:
    def __init__(self) -> None:
        self.over: Future[None] = Future()
        self.over.set_result(None)

    def start(self) -> None: ...
    def tell(self, line: str) -> None: ...
    def stop(self) -> Future[None]:
        return self.over


def _keep(view: _View) -> None:
    """Have the process give it the time to write its last lines, and to give the cursor back."""
    _prepare_for_the_end()
    with _views_lock:
        _views.add(view)
    view.over.add_done_callback(lambda _: _views.discard(view))


@functools.cache
def _prepare_for_the_end() -> None:
    atexit.register(_end_all)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_views.clear)  # the threads that write stayed in the parent


def _end_all() -> None:
    with _views_lock:
        left = list(_views)
        _views.clear()
    concurrent.futures.wait([view.stop() for view in left], timeout=_LAST_PATIENCE)


def _is_live(file: TextIO, live: bool | None) -> bool:
    if live is not None:
        return live
    env = os.environ
    if env.get("NO_COLOR") or env.get("CI", "").lower() not in {"", "0", "false"}:
        return False
    if env.get("TERM", "").lower() in {"dumb", "unknown"}:
        return False
    with suppress(ValueError):  # it is closed
        return file.isatty() and _has_rich()
    return False


def _has_rich() -> bool:
    try:
        return importlib.util.find_spec("rich.console") is not None
    except (ImportError, ValueError):
        return False


__all__ = ["Progress", "Tally", "duration", "printable", "progress_of"]
