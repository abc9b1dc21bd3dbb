"""Runs the bodies that conductors have started, without a task for each of those that never wait.

A body is begun by a *hand*: a task that takes one body after the other from those that are ready. Most of what a task
costs is being made and having its turn, so a thousand bodies that have nothing to wait for share one. The moment that
a body waits, the task is that body's own until it ends, and nothing else ever runs in it; all others that are ready
then get a task each, so that none of them waits for another (or, where the body waits for what it has begun itself,
one more hand, which may be enough for all of that). So whatever a body ties to its task while it is at work,
such as a timeout or a session, is tied to that body alone. (Only what one that never waits *leaves* tied to it, such as
a call that will cancel the task later, meets whoever has the task by then.)

Each body has a context of its own all the same, and the loop has its turn after so many bodies, or so much time.

A block of nothing but such bodies does not make a call for each of them beforehand: it stands in line as a *source*,
which a hand asks for the next call when it has the time to begin it. So a thousand of them need the memory of one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context
from functools import partial
from time import monotonic
from types import coroutine
from typing import TYPE_CHECKING, Any, Protocol

from weft.engine.call import Call
from weft.engine.futures import Hand
from weft.engine.raised import without_our_frame
from weft.engine.states import ASKED, RUNNING

if TYPE_CHECKING:
    from weft.engine.execution import Execution

#: How many bodies begin, and for how long (seconds), before the loop has its turn.
_IN_ONE_GO = 64
_AT_A_STRETCH = 0.0005

#: Where a run keeps its crew.
_KEPT = "engine: the crew"


class CrewedCall(Call):
    """A call that a conductor has started.

    An async body is begun by a hand of the crew; until then the call is as if only asked for.
    """

    is_ready = False  # and a hand is to take it
    waits_for_its_own = False  # where its body waits, it is most likely for calls that it has begun

    def _launch(self) -> None:
        if not self.step.is_async:
            super()._launch()
            return
        crew = crew_of(self.run)
        if crew.hand is None and self._is_followed_by_commit:
            super()._launch()
            return
        self.state = ASKED  # it may have been queued, and has what it waited for
        self.is_ready = True
        crew.ready.append(self)
        if crew.hand is None:
            crew.begin()

    @property
    def _is_followed_by_commit(self) -> bool:
        """Whether nothing else begins before its outcome is durable: a hand would have this body alone."""
        parent = self.parent
        return self.run.recorder is not None and self.is_recorded and parent is not None and parent.is_serial

    def give(self) -> CrewedCall | None:
        """Itself, unless it was stopped, and perhaps is over."""
        return self if self.is_ready and self.stopping is None else None

    def launch_alone(self) -> None:
        """Begin in a task of its own."""
        self.is_ready = False
        super()._launch()

    def prepare(self, hand: Hand) -> Context:
        """It begins in the task of this hand; its context."""
        self.is_ready = False
        self.state = RUNNING
        self.attempt += 1
        self.body = hand
        if not (self.run.is_plain and self.step.is_plain):  # it may be observed by now
            self._prepare_attempt()
        assert self.context is not None
        return self.context.copy()

    def has_begun_to_wait(self) -> None:
        """Its body waits for something, for the first time."""

    def _stop_body(self) -> None:
        if not self.is_ready:
            super()._stop_body()
        elif not self.told:
            self.told = True
            self.run.loop.call_soon(self._end_unbegun)  # when no hand is there for it any more

    def _end_unbegun(self) -> None:
        self.is_ready = False
        self._end_stopped()


class Source(Protocol):
    """Gives calls to begin, each when a hand has the time for it, so that none is made before it is needed."""

    def give(self) -> CrewedCall | None:
        """The next call, which its parent knows of; None when there is none, and this is to be asked no more."""


class Crew:
    """What begins the bodies of one run, in the order in which they are ready.

    Attributes:
        ready: The calls whose bodies are to begin, and what gives such calls.
        hand: Which is about to take what is ready; if there is none, :meth:`begin` makes one.
    """

    def __init__(self, run: Execution) -> None:
        run.kept[_KEPT] = self
        self._run = run
        self.ready: deque[CrewedCall | Source] = deque()
        self._context = Context()  # the hands' own, in which nothing of the user's runs
        self._time = run.loop.time if run.clock.is_virtual else monotonic  # which that of other loops is
        self.hand: Hand | None = None
        self._waits: CrewedCall | None = None  # whose body has just begun to, and has its hand for itself now
        self._is_second = False  # the hand was begun when the one before it was left to such a body

    def add(self, source: Source) -> None:
        """Have the bodies that it gives begun soon."""
        self.ready.append(source)
        if self.hand is None:
            self.begin()

    def begin(self) -> None:
        """Have what is ready begun soon."""
        self.hand = hand = Hand(self._work(), loop=self._run.loop, name="weft: bodies", context=self._context)
        hand.body = None
        hand.add_done_callback(self._hand_ended, context=self._context)

    def take_back(self, source: Source) -> None:
        """It gives nothing more; no hand is to wait for its turn because of it."""
        if source in self.ready:  # else it is just being asked
            self.ready.remove(source)

    def _hand_ended(self, hand: asyncio.Task[None]) -> None:
        """It was cancelled before it could even begin."""
        self.hand = None
        self._cancelled_from_outside()

    def _cancelled_from_outside(self) -> None:
        self._run.cancel("a task of the run was cancelled from outside, as at the end of its loop")

    async def _work(self) -> None:
        """The life of a hand."""
        hand = self.hand
        assert hand is not None
        hand.remove_done_callback(self._hand_ended)
        try:
            while (
                (waiting := self._begin_some(hand)) is None and self.ready and not _is_to_be_cancelled(hand)
            ):
                await _turn_of_the_loop()
                self._let_others_go_first()
        except asyncio.CancelledError:
            self._cancelled_from_outside()
            return
        except Exception as broken:  # a mistake of the engine must not leave a run hanging
            self._run.fail(broken)
            return
        finally:
            self.hand = None
            self._go_on_without_hand()
        if waiting is not None:
            await waiting

    def _let_others_go_first(self) -> None:
        """A source that has given for a while goes to the end of the line."""
        if self.ready and not isinstance(self.ready[0], CrewedCall):
            self.ready.rotate(-1)

    def _go_on_without_hand(self) -> None:
        """Nobody is to wait for the one that waits; but what it waits for itself may all be done by one more hand."""
        waits, self._waits = self._waits, None
        was_second, self._is_second = self._is_second, False
        if waits is not None and waits.waits_for_its_own and not was_second and self.ready:
            self._is_second = True
            self.begin()
            return
        while (call := self._next()) is not None:
            call.launch_alone()

    def _next(self) -> CrewedCall | None:
        ready = self.ready
        while ready:
            first = ready.popleft()
            call = first.give()
            if call is not None:
                if call is not first:
                    ready.appendleft(first)  # it may have more
                return call
        return None

    def _begin_some(self, hand: Hand) -> Awaitable[None] | None:
        """Begin bodies until one waits, whose rest is returned, or the loop should have its turn."""
        end, ready, is_cancelled = 0.0, self.ready, hand.cancelling
        for _ in range(_IN_ONE_GO):
            if (call := self._next()) is None:
                break
            context, body = call.prepare(hand), call._run_on_loop()
            try:
                waits_for = context.run(body.send, None)
            except StopIteration:
                # Cancelled by its own body, which is over: what comes next is not to be hit by that.
                if not ready or is_cancelled() or getattr(hand, "_must_cancel", False):
                    break
                now = self._time()
                end = end or now + _AT_A_STRETCH
                if now > end:
                    break
                continue
            self._waits, hand.body = call, body
            call.has_begun_to_wait()
            return _rest_of(body, context, waits_for)
        return None


def crew_of(run: Execution) -> Crew:
    """The crew of this run."""
    return run.kept.get(_KEPT) or Crew(run)


def _is_to_be_cancelled(hand: Hand) -> bool:
    """Whether its next wait is hit: before Python 3.13 also where the body has taken its ``cancel`` back."""
    return bool(hand.cancelling() or getattr(hand, "_must_cancel", False))


@coroutine
def _rest_of(body: Coroutine[Any, Any, None], context: Context, waits_for: Any) -> Generator[Any, Any, None]:
    """Go on with a body in its context, in the task that awaits this, until it ends."""
    while True:
        go_on = partial(body.send, None)  # and no error is held meanwhile
        try:
            yield waits_for
        except BaseException as error:
            go_on = partial(body.throw, without_our_frame(error))
        try:
            waits_for = context.run(go_on)
        except StopIteration:
            return


@coroutine
def _turn_of_the_loop() -> Generator[None, None, None]:
    yield
