"""What a run may not leave behind, and tests that may hang without taking the others with them."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from weft.engine.portal import portal, stand_in
from weft.engine.workers import workers
from weft.testing import VirtualClock, VirtualLoop, baton, run, virtual_clock

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


def counted_workers() -> int:
    """How many jobs have a thread, in real time and in virtual."""
    return workers._working + baton._threads._working


def own_tasks() -> int:
    """How many asyncio tasks are on the loop that sync callers share, under a virtual clock on its loop."""
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
    before_busy, before_count, before_tasks = busy_workers(), counted_workers(), own_tasks()
    yield
    deadline = time.monotonic() + 1
    while True:
        left = busy_workers() - before_busy
        state = (len(left), counted_workers() - before_count, own_tasks() - before_tasks)
        if state[0] <= given_up and state[1] <= given_up and state[2] <= 0:
            return
        assert time.monotonic() < deadline, f"left: {state[0]} threads, {state[1]} counted, {state[2]} tasks"
        time.sleep(0.005)


@contextmanager
def takes(seconds: float) -> Iterator[VirtualClock]:
    """Sync code in virtual time, which leaves nothing at work and takes exactly so long.

    Something that it leaves asleep does not stay: time jumps to its end. That shows in the time that it all took.
    """
    with virtual_clock() as clock:
        with nothing_left():
            yield clock
        assert clock.now == seconds, f"it took {clock.now} s"


def timed(main: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, float]:
    """What ``main()`` gives in virtual time, and how long it took; no task and no thread is at work afterwards."""

    async def watched() -> tuple[T, float]:
        result = await main()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not loop.weft_clock.baton.has_bodies
        return result, loop.time()

    return run(watched)


def within(seconds: float, fn: Callable[[], T]) -> T:
    """What ``fn()`` gives or raises, from a thread of its own; an error when it does not end in that real time.

    Under a virtual clock, ``fn`` is too.
    """
    out: list[tuple[bool, object]] = []
    loop = stand_in.get()

    def work() -> None:
        stand_in.set(loop)
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
