"""Threads that take turns: at most one of them works at any moment, and the loop does nothing meanwhile.

Whoever works holds the baton. The loop hands it to one body when it comes round, and waits until it is back: because
the body has ended, sleeps, or blocks on something that the loop will give it.

    start() ─► NEW ─► WANTING ─► (holds the baton) ─┬─► ended
                         ▲                          ├─► ASLEEP ── its time has come ──► WANTING
                         │                          └─► AWAY ──── woken, enter() ─────┐
                         └────────────────────────────────────────────────────────────┘

Nobody tells the loop that a thread which is away was woken, and it takes a moment until that thread runs. So the loop
looks whether the thread still waits: blocking in Python is ``threading.Condition.wait``, which has a lock for each
waiter and takes it off a list when it is woken. Before anything else goes on, who was woken has come back.
"""

from __future__ import annotations

import heapq
import queue
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from threading import get_ident
from types import FrameType
from typing import Any

from weft.engine.workers import Workers
from weft.errors import Stopped
from weft.testing.standstill import frames_now, where_thread

#: How many bodies have a thread at once; those that are away do not count. As with the real clock.
_AT_ONCE = 512

#: Real seconds between two looks at a thread that is on its way.
_LOOK = 0.0002

#: Real seconds for which the end of a clock waits for threads that it has woken.
_FAREWELL = 1.0

_WAIT = threading.Condition.wait.__code__

# Who may have a thread is decided by the baton, so the pool has no limit. All clocks share it: threads are reused.
_threads = Workers(limit=sys.maxsize)


class Here(threading.local):
    """What this thread is to a virtual clock."""

    body: Body | None = None
    sleep: Callable[[float], None] | None = None  # how it sleeps in virtual time


here = Here()


class Body:
    """A job that wants, has or had a thread."""

    __slots__ = ("baton", "job", "number", "thread", "turn")

    def __init__(self, baton: Baton, job: Callable[[], None], number: int) -> None:
        self.baton = baton
        self.job = job
        self.number = number
        self.thread: int | None = None
        self.turn = threading.Lock()  # released by the loop when it is this body's turn
        self.turn.acquire()


class _Blocked:
    """Where a thread that is away waits: on a condition, at most until a moment of virtual time."""

    __slots__ = ("condition", "until", "waiter")

    def __init__(self, condition: Any, waiter: Any, until: float | None) -> None:
        self.condition = condition
        self.waiter = waiter
        self.until = until

    @property
    def is_woken(self) -> bool:
        return self.waiter not in self.condition._waiters

    def wake(self) -> None:
        """Its time is over. Whoever waits with a timeout looks for itself what has become of it."""
        with self.condition:
            if not self.is_woken:
                self.condition._waiters.remove(self.waiter)
                self.waiter.release()


class Baton:
    """Lets the bodies of one loop take turns.

    Args:
        now: Tells the virtual time.
        order: Draws whose turn it is; None for the order of asking.
        patience: Real seconds after which a body that does not give the baton back goes on without it; None: never.
        complain: Told about such a body.
        wake: Wakes the loop up if it waits; from any thread.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float],
        order: random.Random | None,
        patience: float | None,
        complain: Callable[[str], None],
        wake: Callable[[], None],
    ) -> None:
        self._now = now
        self._order = order
        self._patience = patience
        self._complain = complain
        self._wake_loop = wake
        self._lock = threading.Lock()
        self._count = 0  # of bodies ever started
        self._new: deque[Body] = deque()
        self._wanting: list[Body] = []
        self._asleep: list[tuple[float, int, Body]] = []
        self._away: dict[Body, _Blocked | None] = {}  # None: on its way, from or to where it blocks
        self._lost: set[Body] = set()  # away, and nobody can see where
        self._come: list[Body] = []  # they were away; not in an order that repeats
        self._bodies: set[Body] = set()  # that have a thread
        self._working = 0  # of those, the ones that are not away
        self._holder: Body | None = None
        self._back: queue.SimpleQueue[Body | None] = queue.SimpleQueue()  # None: the loop is interrupted
        self._arrivals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting_in = 0  # the thread in which the loop waits for the baton
        self._is_closed = False
        self._gone = threading.Condition(self._lock)

    # What bodies do

    def start(self, job: Callable[[], None]) -> None:
        """Have a job done by a thread, when it is its turn."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the virtual clock has ended, and starts no thread any more")
            self._count += 1
            self._new.append(Body(self, job, self._count))
        self._wake_loop()

    def leave(self, body: Body) -> None:
        """Its thread is about to block on a condition until the loop has done something."""
        with self._lock:
            self._stop_if_closed()
            if body in self._away:
                return
            self._away[body] = None
            self._working -= 1
            self._give_back(body)

    def enter(self, body: Body) -> None:
        """It blocks no longer; returns when it is its turn."""
        with self._lock:
            if body not in self._away:
                return
            del self._away[body]
            self._lost.discard(body)
            self._working += 1
            self._stop_if_closed()
            self._come.append(body)
        self._arrivals.put(None)
        self._wait_for_turn(body)

    def sleep(self, body: Body, seconds: float) -> None:
        """Return after so many seconds of virtual time, when it is its turn."""
        with self._lock:
            self._stop_if_closed()
            heapq.heappush(self._asleep, (self._now() + seconds, body.number, body))
            self._give_back(body)
        self._wait_for_turn(body)

    def _wait_for_turn(self, body: Body) -> None:
        self._wake_loop()
        body.turn.acquire()
        self._stop_if_closed()

    def _stop_if_closed(self) -> None:
        if self._is_closed:
            raise Stopped("the virtual clock has ended, so nobody waits for this body any more")

    def _work(self, body: Body) -> None:
        body.thread = get_ident()
        here.body, here.sleep = body, partial(self.sleep, body)
        try:
            body.job()
        finally:
            here.body = here.sleep = None
            with self._lock:
                self._bodies.discard(body)
                self._working -= 1
                self._give_back(body)
                self._gone.notify_all()

    def _give_back(self, body: Body) -> None:
        if self._holder is body:  # else it goes on without
            self._holder = None
            self._back.put(body)

    # What the loop does

    def go_round(self, *, busy: bool) -> None:
        """Let one body work, if one wants to, until it gives the baton back. ``busy``: the loop also has work."""
        if not self._bodies and not self._new:
            return
        self._wait_for_arrivals()  # of those whom the last turn of the loop has woken
        with self._lock:
            self._admit()
            body = self._next(busy=busy)
        if body is not None:
            self._hand_to(body)
            self._wait_for_arrivals()  # if it is away now, it may wait for a time

    @property
    def is_wanted(self) -> bool:
        """Whether a body wants to work."""
        return bool(self._wanting or self._come or (self._new and self._working < _AT_ONCE))

    @property
    def next_moment(self) -> float | None:
        """The virtual time at which a body wants to go on, if one waits for a time."""
        with self._lock:
            found = [where.until for where in self._away.values() if where is not None]
        moments = [until for until in found if until is not None]
        if self._asleep:
            moments.append(self._asleep[0][0])
        return min(moments, default=None)

    def interrupt(self) -> None:
        """If this very thread waits for the baton, a signal has come in: then the loop goes on without it."""
        if self._waiting_in == get_ident():
            self._back.put(None)

    def where(self) -> list[str]:
        """Where the threads of bodies are, in words."""
        with self._lock:
            found = sorted(self._bodies, key=lambda body: body.number)
        return [f"a body in a thread is at {where_thread(body.thread)}" for body in found]

    @property
    def has_bodies(self) -> bool:
        """Whether a body has not ended."""
        return bool(self._bodies or self._new)

    def close(self) -> None:
        """Nobody gets a turn any more: bodies that sleep or block are stopped, those that are new never begin."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._holder = None
            waiting = {*self._wanting, *self._come, *(body for _, _, body in self._asleep)}
            waiting = {body for body in waiting if body.thread is not None}
            blocked = {body: where for body, where in self._away.items() if where is not None}
            self._new.clear()
            for body in waiting:
                body.turn.release()
        for where in blocked.values():
            where.wake()
        with self._lock:
            self._gone.wait_for(lambda: not {*waiting, *blocked} & self._bodies, timeout=_FAREWELL)

    def _admit(self) -> None:
        """Who may work from now on wants to."""
        now = self._now()
        while self._asleep and self._asleep[0][0] <= now:
            self._wanting.append(heapq.heappop(self._asleep)[2])
        self._wanting += sorted(self._come, key=lambda body: body.number)
        self._come.clear()
        while self._new and self._working < _AT_ONCE:
            body = self._new.popleft()
            self._working += 1
            self._bodies.add(body)
            self._wanting.append(body)

    def _next(self, *, busy: bool) -> Body | None:
        if not self._wanting:
            return None
        if self._order is None:
            return self._wanting.pop(0)
        drawn = self._order.randrange(len(self._wanting) + busy)
        return self._wanting.pop(drawn) if drawn < len(self._wanting) else None

    def _hand_to(self, body: Body) -> None:
        while not self._back.empty():
            self._back.get_nowait()
        self._waiting_in = get_ident()
        try:
            self._holder = body
            if body.thread is not None:
                body.turn.release()
            else:
                _threads.submit(partial(self._work, body))
            self._back.get(timeout=self._patience)
        except queue.Empty:
            self._complain(
                f"a body has worked for {self._patience:g} s of real time, in which virtual time stood still; it "
                f"goes on beside the loop from here, so what happens may not happen again. It is at "
                f"{where_thread(body.thread)}. If it waits for something that takes virtual time, let it use "
                "weft.testing.sleep() or a call of the run; if it works for long, give the clock more patience="
            )
        finally:
            self._waiting_in = 0
            with self._lock:
                if self._holder is body:
                    self._holder = None

    def _wait_for_arrivals(self) -> None:
        """Wait, for real, until every body that is away is seen to be blocked, or has come back."""
        began = None
        while self._away:
            with self._lock:
                moving = self._moving()
            if not moving:
                return
            if began is None:
                began = time.monotonic()
            elif self._patience is not None and time.monotonic() - began > self._patience:
                self._lose(moving)
                return
            try:
                self._arrivals.get(timeout=_LOOK)
            except queue.Empty:
                continue

    def _moving(self) -> list[Body]:
        """Who is on its way: to where it blocks, or from there."""
        now = self._now()
        if None in self._away.values():
            self._look_for_the_blocked(now)
        found = []
        for body, where in self._away.items():
            if where is not None and where.until is not None and where.until <= now:
                where.wake()
            if where is None or where.is_woken:
                self._away[body] = None  # it comes back, or blocks again
                if body not in self._lost:
                    found.append(body)
        return found

    def _look_for_the_blocked(self, now: float) -> None:
        frames = frames_now()
        for body in [body for body, where in self._away.items() if where is None]:
            self._away[body] = _blocked_at(frames.get(body.thread or 0), now)

    def _lose(self, moving: list[Body]) -> None:
        self._lost.update(moving)
        for body in moving:
            self._complain(
                f"a body was to block until the loop has done something, and did not in {self._patience:g} s; it is "
                f"at {where_thread(body.thread)}"
            )


def _blocked_at(frame: FrameType | None, now: float) -> _Blocked | None:
    """Where the thread of this frame waits, if it waits for a condition."""
    if frame is None or frame.f_code is not _WAIT:
        return None
    names = frame.f_locals
    condition, waiter, timeout = names["self"], names.get("waiter"), names.get("timeout")
    if waiter is None or waiter not in condition._waiters:
        return None
    return _Blocked(condition, waiter, None if timeout is None else now + timeout)
