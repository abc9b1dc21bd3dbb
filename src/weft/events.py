"""What happens in a run, as events: their classes, and an observer that is never waited for.

``workflow.invoke(x, observers=[observer])`` tells a function every event of a run, in their order. It is called on
the loop of the run, so it must be quick; one that raises is left out from then on. What takes its time, such as
writing to a file or sending somewhere, is given to a :class:`Background`.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from weft.engine.events import (
    BlockDecided,
    BlockSized,
    BranchesJoined,
    CallAsked,
    CallEvent,
    CallFinished,
    CallGivenUp,
    CallMismatch,
    CallQueued,
    CallRetrying,
    CallStarted,
    Event,
    EventsLost,
    Observer,
    QuestionAsked,
    RunFinished,
    RunStarted,
    StateConflict,
    UserEvent,
)
from weft.engine.tape import Tape

logger = logging.getLogger("weft")


class Background:
    """An observer that takes its time: events wait for it, and no run does.

    It is called in a thread of its own, in the order of the events, for any number of runs::

        with Background(send) as observer:
            workflow.invoke(x, observers=[observer])

    Leaving the block waits until all has been told. One that raises is told nothing more.

    Args:
        observer: Told every event.
        length: How many events wait at most; of more the oldest are left out, and it is told an
            :class:`EventsLost` in their place.
    """

    def __init__(self, observer: Observer, *, length: int = 10_000) -> None:
        self._observer = observer
        self._tape = Tape(length)
        self._news = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._tell, name="weft-observer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._news.set()
        self._thread.join()

    def __call__(self, event: Event) -> None:
        """Keep an event for the observer; never waits."""
        self._tape.add(event)
        self._news.set()

    def _tell(self) -> None:
        place = 0
        while True:
            is_last = self._is_closed
            self._news.clear()
            place, found = self._tape.read(place)
            try:
                for event in found:
                    self._observer(event)
            except BaseException:  # also SystemExit: it would only end this thread
                logger.exception("observer %r failed, and is told nothing more", self._observer)
                return
            if is_last:
                return
            if not self._is_closed:
                self._news.wait()


__all__ = [
    "Background",
    "BlockDecided",
    "BlockSized",
    "BranchesJoined",
    "CallAsked",
    "CallEvent",
    "CallFinished",
    "CallGivenUp",
    "CallMismatch",
    "CallQueued",
    "CallRetrying",
    "CallStarted",
    "Event",
    "EventsLost",
    "Observer",
    "QuestionAsked",
    "RunFinished",
    "RunStarted",
    "StateConflict",
    "UserEvent",
]
