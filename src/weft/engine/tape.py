"""The events of a run, kept for whoever reads them at their own pace: the last ones, and how many came before."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from weft.engine.events import Event, EventsLost


class Tape:
    """The last events of a run. Written by the run, which never waits; read by any number of threads and tasks.

    Each reader has a place of its own. One that is so far behind that what it should read next is not kept any more
    is told how much it has missed, and goes on with the oldest there is.

    Args:
        length: How many events are kept.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._events: deque[Event] = deque()
        self._dropped = 0  # how many there were before the first that is kept
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], object]] = []

    def add(self, event: Event) -> None:
        """Keep an event, and wake who waits for it."""
        with self._lock:
            self._events.append(event)
            if len(self._events) > self._length:
                self._events.popleft()
                self._dropped += 1
            for wake in self._wakers:
                wake()

    def read(self, place: int) -> tuple[int, list[Event]]:
        """What has come after so many events, and the place behind it."""
        with self._lock:
            lost = max(self._dropped - place, 0)
            found = list(islice(self._events, max(place - self._dropped, 0), None))
            place = self._dropped + len(self._events)
        if lost:
            before = found[0]  # something is kept whenever something was dropped
            found.insert(0, EventsLost(run_id=before.run_id, time=before.time, count=lost))
        return place, found

    @contextmanager
    def waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """Call this with each event from now on, on the thread of the run: it must not wait."""
        with self._lock:
            self._wakers.append(wake)
        try:
            yield
        finally:
            with self._lock:
                self._wakers.remove(wake)
