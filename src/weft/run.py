"""The handle of a run that goes on beside its caller."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from weft.core.outcome import Outcome
from weft.core.question import Interrupt
from weft.engine.events import CallFinished, Event, RunFinished
from weft.engine.execution import Execution
from weft.engine.futures import LoopFuture, ThreadFuture
from weft.engine.states import GivenUpBody
from weft.engine.tape import Tape
from weft.errors import AnswerError, UsageError

if TYPE_CHECKING:
    from weft.observe.timeline import Timeline

T = TypeVar("T")


class Run(Generic[T]):
    """A run that was submitted.

    On a loop, ``await run`` gives its result; elsewhere ``run.result()`` does.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._tape = Tape(_KEPT)
        self._outcomes: list[Outcome[Any]] = []
        execution.observe(self._note)

    def __repr__(self) -> str:
        return f"<weft.Run {self.id} of {self._execution.workflow.step.name!r}: {self.status}>"

    @property
    def id(self) -> str:
        """The run's id; "" until its journal is open."""
        return self._execution.id

    @property
    def status(self) -> str:
        """One of "running", "suspended", "finished", "failed" and "cancelled"."""
        return self._execution.status.value

    @property
    def questions(self) -> list[Interrupt]:
        """The questions that are open now."""
        return [*self._execution.interrupts] or [
            question for _, question in self._execution.questions.values()
        ]

    @property
    def given_up(self) -> list[GivenUpBody]:
        """Sync bodies that could not be stopped and were left to themselves."""
        return list(self._execution.given_up)

    @property
    def outcomes(self) -> list[Outcome[Any]]:
        """How the calls of the run's own body have ended, in the order in which they became visible."""
        return list(self._outcomes)

    def result(self, timeout: float | None = None) -> T:
        """What the run returns; waits for at most ``timeout`` seconds.

        Raises:
            TimeoutError: It has not ended in that time.
            UsageError: It runs on the loop of this very thread: ``await`` it.
            Exception: What the run raised.
        """
        future = self._execution.future
        if isinstance(future, ThreadFuture):
            return future.result(timeout)  # type: ignore[no-any-return]  # the workflow's own type
        if not future.done():
            raise UsageError("this run goes on in the event loop that you would block: write `await run`")
        return future.result()  # type: ignore[no-any-return]  # the workflow's own type

    def __await__(self) -> Generator[Any, None, T]:
        future = self._execution.future
        if isinstance(future, LoopFuture):
            return future.__await__()
        return asyncio.wrap_future(future).__await__()

    def cancel(self, reason: str = "cancelled") -> None:
        """Stop the run and all that it has begun; it ends with ``CancelledError``. From any thread."""
        self._execution.post(self._execution.cancel, reason)

    def answer(self, answers: Mapping[str, Any] | None = None, /, **by_id: Any) -> None:
        """Answer open questions, by their ids, while the run goes on.

        Raises:
            AnswerError: Such a question is not open.
        """
        given = {**(answers or {}), **by_id}
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        execution = self._execution
        if _running_loop() is execution.loop:
            refused: list[BaseException | None] = []
            execution.answer(given, refused.append)
            _raise(refused[0] if refused else None)
            return
        if execution.outcome is not None or not execution.post(execution.answer, given, done.put):
            raise AnswerError(f"run {self.id!r} goes on no longer; answer it with Command(resume=...)")
        _raise(done.get())

    def events(self) -> Iterator[Event]:
        """Every event so far and to come, until the run has ended; see :mod:`weft.engine.events`.

        Of what nobody has read yet the last 10,000 are kept. Who is further behind, or comes later, is told by an
        :class:`~weft.engine.events.EventsLost` how many are missing. The run waits for no reader.

        Raises:
            UsageError: The run goes on in the loop of this very thread: use :meth:`aevents`.
        """
        if _running_loop() is self._execution.loop:
            raise UsageError(
                "this run goes on in the event loop that you would block: use `async for` on aevents()"
            )
        news = threading.Event()
        place = 0
        with self._tape.waking(news.set):
            while True:
                news.clear()
                place, found = self._tape.read(place)
                yield from found
                if _has_ended(found):
                    return
                news.wait()

    async def aevents(self) -> AsyncIterator[Event]:
        """As :meth:`events`, on a loop."""
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # who listened has left, and its loop with it
                loop.call_soon_threadsafe(news.set)

        place = 0
        with self._tape.waking(wake):
            while True:
                news.clear()
                place, found = self._tape.read(place)
                for event in found:
                    yield event
                if _has_ended(found):
                    return
                await news.wait()

    def so_far(self) -> tuple[list[Event], float]:
        """The events that are kept until now, as by :meth:`events`, and what time it is for the run."""
        return self._tape.read(0)[1], self._execution.clock.wall()

    def timeline(self) -> Timeline:
        """What has happened when until now, what decided when the run ended, and what limits cost.

        It is made of the events that are kept, as by :meth:`events`; what was lost is counted in it. For a longer run
        see :meth:`weft.RunInfo.timeline`.
        """
        from weft.observe.timeline import Timeline  # noqa: PLC0415 - only who looks at it needs it

        told, now = self.so_far()
        return Timeline.of_events(told, now=now)

    def _note(self, event: Event) -> None:
        if isinstance(event, CallFinished) and event.parent_id == self._execution.root.id:
            self._outcomes.append(event.outcome)
        self._tape.add(event)


#: Events that are kept for who reads them later.
_KEPT = 10_000


def _has_ended(found: Sequence[Event]) -> bool:
    return bool(found) and isinstance(found[-1], RunFinished)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error
