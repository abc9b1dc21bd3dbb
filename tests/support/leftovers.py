"""What a run may not leave behind, and tests that may hang without taking the others with them."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from weft.engine.portal import portal
from weft.engine.workers import workers

T = TypeVar("T")


def busy_workers() -> set[int]:
    """The idents of our worker threads that are not waiting for a job."""
    ours = {t.ident for t in threading.enumerate() if t.name.startswith("weft-worker")}
    busy = set()
    for ident, top in sys._current_frames().items():
        if ident not in ours:
            continue
        names: set[str] = set()
        frame: FrameType | None = top
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        if "_wait_for_job" not in names:
            busy.add(ident)
    return busy


def own_tasks() -> int:
    """How many asyncio tasks are on the loop that sync callers share."""
    found: list[int] = []
    done = threading.Event()

    def count() -> None:
        found.append(len(asyncio.all_tasks(portal.loop)))
        done.set()

    portal.loop.call_soon_threadsafe(count)
    assert done.wait(5), "the loop of sync callers is blocked"
    return found[0]


@contextmanager
def nothing_left(given_up: int = 0) -> Iterator[None]:
    """Nothing is at work afterwards that was not before: no task of the loop, no thread, no worker counted."""
    before_busy, before_count, before_tasks = busy_workers(), workers._working, own_tasks()
    yield
    deadline = time.monotonic() + 1
    while True:
        left = busy_workers() - before_busy
        state = (len(left), workers._working - before_count, own_tasks() - before_tasks)
        if state[0] <= given_up and state[1] <= given_up and state[2] <= 0:
            return
        assert time.monotonic() < deadline, f"left: {state[0]} threads, {state[1]} counted, {state[2]} tasks"
        time.sleep(0.005)


def within(seconds: float, fn: Callable[[], T]) -> T:
    """What ``fn()`` gives or raises, from a thread of its own; an error when it does not end in that time."""
    out: list[tuple[bool, object]] = []

    def work() -> None:
        try:
            out.append((True, fn()))
        except BaseException as error:
            out.append((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not out:
        raise AssertionError(f"did not end in {seconds} s")
    ok, value = out[0]
    if ok:
        return value  # type: ignore[return-value]
    raise value  # type: ignore[misc]


def eventually(check: Callable[[], bool], seconds: float = 2) -> None:
    """Wait until ``check()`` holds."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it never became true"
        time.sleep(0.002)
