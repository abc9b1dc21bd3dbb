"""What a body of a journaled run sees of its calls, and when.

:class:`weft.core.visibility.Visibility` decides the order. This part finds out when the body is ready for the
next batch: a body in a thread, when it waits for something that it has not been shown; a body on the loop, when
the loop has gone round often enough for it to have acted on the last batch. Both count the same in the first
life of a run and in every resume, so a decision by order is made again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from weft.core.identity import Siblings
from weft.core.visibility import Visibility
from weft.engine.futures import Awaited, ThreadFuture, at_one_stroke, waits_only_for_calls

if TYPE_CHECKING:
    from weft.checkpoint.base import Record
    from weft.engine.call import Call

T = TypeVar("T")

#: How often the loop goes round at most between two batches. It is enough when nothing is ready to run any more:
#: then ``wait``, ``gather`` and whatever else the body is made of have returned, and the body has acted.
_ROUNDS = 64

#: Seconds without a new call after which a body on the loop is taken to ask for nothing more.
_STALL = 0.02

#: Seconds without a new call after which it is taken to ask for nothing more, whatever it seems to be doing.
_LONG_STALL = 1.0

#: How many waits with a timeout may follow each other before they count as one without.
_POLLS = 3


#: Never changed.
_NONE_COMING: deque[None] = deque()
_NO_FAILURES: OrderedDict[bytes, Call] = OrderedDict()
_NO_WAITS: Mapping[Awaited, bool] = {}


class Scope:
    """The calls of one body, by identity, and the order in which it sees their outcomes."""

    # What few need is a class attribute until it is set.
    coming: deque[None] = _NONE_COMING  # one for each call asked for by a thread, until the loop has it
    failures: OrderedDict[bytes, Call] = _NO_FAILURES  # shown, and not yet known to have been gone on from
    marks = 0  # of failures that are gone on from, on their way to the disk
    held: list[Callable[[], None]] | tuple[()] = ()  # calls that begin when they are there
    _stall: Any = None
    _stalled_at = (-1, 0.0)  # at which step, and since when
    _glanced: ThreadFuture | None = None  # what the body was told is not there yet
    _has_callbacks = False  # somebody is told of outcomes, whatever the body itself does
    _waits: Mapping[Awaited, bool] = _NO_WAITS  # of threads of the body, and whether only for a time
    _polled_at = -1  # at which step a wait with a timeout was last begun
    _polls_in_a_row = 0
    _edited = False  # the code asks for less than what is recorded

    def __init__(self, owner: Call, recorded: Sequence[Record]) -> None:
        self.owner = owner
        self.siblings = Siblings(owner.identity)
        self.order = Visibility(recorded)
        self.records = self.order.unasked  # what is recorded and was not asked for yet
        #: Whether nothing is recorded, has failed, or comes from other threads, so that a call has only to be added.
        self.is_simple = not recorded
        self.calls: dict[bytes, Call] = {}  # asked for and not yet shown
        self._asked_since = True  # since the last batch was shown
        self._steps = 0  # asked for or shown, so that a standstill is seen
        self._rounds = 0  # that the loop still has to go round
        self._owes_rounds = False  # unless the next outcome finds that the body goes in step
        self._alone = False  # the last batch was all that the body had asked for

    # What the engine tells

    def add(self, call: Call) -> None:
        """The body asks for this call, whose identity is set; whatever is recorded of it is not used."""
        self.calls[call.identity] = call
        self._asked_since = True
        self._steps += 1

    def ask(self, call: Call) -> Record | None:
        """The body asks for this call, whose identity is set; its record, if there is one."""
        self.add(call)
        record = self.order.ask(call.identity) if self.records else None
        if record is not None and self.owner.is_on_loop:
            self._begin_rounds()  # a body has never seen an outcome in the moment of asking
        return record

    def replay(self, call: Call) -> None:
        """A body on the loop asks for this call, which is recorded."""
        self.add(call)
        self.order.ask(call.identity)
        if self._rounds < _ROUNDS:
            self._begin_rounds()

    def pump(self) -> None:
        """Show the body what it is ready to see."""
        while self.order.has_more and self._is_ready:
            batch = self.order.next_batch(stuck=self._is_stuck)
            if not batch:
                if self.owner.is_running:
                    self._watch_for_stall()
                return
            self._show(batch)

    def body_waits(self) -> bool:
        """Whether the body waits for a call that it has not been shown."""
        if not self.owner.is_on_loop:
            return any(not what.is_there and not timed for what, timed in [*self._waits.items()])
        body = self.owner.body
        waits = any(call.future.is_awaited for call in self.owner.children)
        return waits and body is not None and waits_only_for_calls(body)

    def end(self) -> None:
        """The body has ended, and nobody looks any more whether it goes on."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def add_failures(self, failures: Mapping[bytes, Call]) -> None:
        """The body sees these."""
        self.is_simple = False
        if not self.failures:
            self.failures = OrderedDict()
        self.failures.update(failures)

    def hold(self, then: Callable[[], None]) -> None:
        """Have this done when all marks are on the disk."""
        if self.held:
            self.held.append(then)
        else:
            self.held = [then]

    # What the body's futures tell, from its thread

    def announce(self) -> None:
        """A call is on its way to the loop."""
        self.is_simple = False
        self._shared("coming", deque).append(None)

    def _shared(self, name: str, kind: type[T]) -> T:
        # In one stroke, as several threads may come at the same time.
        found: T = vars(self).setdefault(name, kind())
        return found

    def begin_wait(self, what: Awaited, *, timed: bool) -> None:
        """A thread is about to block until ``what`` is done, or (``timed``) for so long at most."""
        self._shared("_waits", dict)[what] = timed and not self._polls()
        self._tell()

    def _polls(self) -> bool:
        """Whether timed waits follow each other, and nothing is done between them: then they are one long wait."""
        if self._polled_at != self._steps:
            self._polled_at, self._polls_in_a_row = self._steps, 0
        self._polls_in_a_row += 1
        return self._polls_in_a_row > _POLLS

    def end_wait(self, what: Awaited) -> None:
        """It blocks no longer."""
        self._shared("_waits", dict).pop(what, None)

    def glance(self, future: ThreadFuture) -> None:
        """The body looked whether a call has ended and was told no; the next time the answer may differ."""
        self._glanced = future
        self._tell()

    def called_back(self) -> None:
        """Somebody wants to be called when an outcome is there."""
        self._has_callbacks = True
        self._tell()

    def _tell(self) -> None:
        # The owner of questions also wants to know when nothing but waiting is left.
        run = self.owner.run
        if self.order.has_more or run.has_questions:
            run.post(self._look)

    def _look(self) -> None:
        self.pump()
        self.owner.run.consider_suspending()

    # Being ready

    @property
    def _is_ready(self) -> bool:
        if not self.owner.is_running:
            return True
        if self.coming:
            return False  # it may wait already for what is still on its way here
        if not self.owner.is_on_loop:
            return self._has_glanced or self._thread_waits
        if self._owes_rounds and not self._goes_in_step:
            self._owes_rounds = False
            self._begin_rounds()
        return not self._rounds or self._goes_in_step

    @property
    def _goes_in_step(self) -> bool:
        """Whether the body has acted on what it saw, and now waits for one single call: a chain."""
        owner = self.owner
        if not (self._alone and self._asked_since and owner.pending == 1):
            return False
        return next(iter(owner.children)).future.is_awaited

    @property
    def _thread_waits(self) -> bool:
        return self._has_callbacks or any(not what.is_there for what in [*self._waits])

    @property
    def _is_stuck(self) -> bool:
        if not self.owner.is_running:
            return True
        return not self.owner.is_on_loop and any(not what.is_there for what in [*self._waits])

    @property
    def _has_glanced(self) -> bool:
        return self._glanced is not None and not self._glanced.is_there

    @property
    def _looks_stuck(self) -> bool:
        """Whether the body waits or polls; a thread that it started may do so for it."""
        return self._has_glanced or self._thread_waits or self.body_waits()

    def _show(self, batch: list[bytes]) -> None:
        self._glanced = None
        self._asked_since = False
        self._steps += 1
        if len(batch) == 1:
            if (only := self.calls.pop(batch[0], None)) is not None:  # else it was cancelled meanwhile
                only.show()
        else:
            self._show_together(batch)
        self._alone = not self.owner.pending
        if self.owner.is_on_loop and self.owner.is_running:
            # Nothing more can come before the body has asked for it; then is the time to look how far it is.
            self._owes_rounds = self._alone and not self.order.has_more
            if not self._owes_rounds:
                self._begin_rounds()

    def _show_together(self, batch: list[bytes]) -> None:
        found = [self.calls.pop(identity, None) for identity in reversed(batch)]
        calls = [call for call in found if call is not None]  # the others were cancelled meanwhile
        del found
        with at_one_stroke([call.future for call in calls]):
            while calls:
                calls.pop().show()  # and let go of it: a batch may be a hundred thousand

    def _begin_rounds(self) -> None:
        if not self._rounds:
            self.owner.run.loop.call_soon(self._round)
        self._rounds = _ROUNDS

    def _round(self) -> None:
        self._rounds -= 1
        loop = self.owner.run.loop
        is_busy = self.owner.is_running and getattr(loop, "_ready", True)  # else nobody acts any more
        if self._rounds and is_busy and not self._goes_in_step:
            loop.call_soon(self._round)
            return
        self._rounds = 0
        self.pump()

    # A body on the loop that asks for less than what is recorded

    def _watch_for_stall(self) -> None:
        if self._stall is None:
            delay = _STALL / 20 if self._edited else _STALL
            loop = self.owner.run.loop
            self._stall = loop.call_later(delay, self._stalled, self._steps)
            if self._stalled_at[0] != self._steps:
                self._stalled_at = self._steps, loop.time()

    def _stalled(self, steps: int) -> None:
        self._stall = None
        for_long = self.owner.run.loop.time() - self._stalled_at[1] > _LONG_STALL
        if not self.owner.is_running or not self.order.replaying:
            return
        if self._steps != steps or self._rounds or not (self._looks_stuck or for_long):
            self._watch_for_stall()
            return
        self._edited = True
        if batch := self.order.next_batch(stuck=True):
            self._show(batch)
        self.pump()
