"""A call that has a conductor where others have a body: it starts other calls, and makes its outcome of theirs.

A body is code of the user, which runs on the loop or in a thread, and waits. A conductor is code of ours, which
is told of each outcome and says at once what is to start next, or how the call ends. So it needs no task, no
thread and no future, and a thousand of them may be nested in each other. Blocks, sequences and graphs are
conductors; identity, limits, deadlines, stopping and the journal are those of any call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Protocol

from weft.engine.call import Call
from weft.engine.crew import CrewedCall
from weft.engine.futures import Branch, ThreadFuture
from weft.engine.scope import Scope
from weft.engine.states import RUNNING, Stop, StopKind
from weft.engine.workers import workers
from weft.errors import NodeTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from weft.core.limits import Needs
    from weft.engine.caller import Reader
    from weft.engine.clock import Clock
    from weft.engine.execution import Execution
    from weft.engine.step import Step


class Conductor(Protocol):
    """What decides in a planned call. Everything happens on the loop of the run, and nothing may block."""

    def note(self, branch: Branch, call: Call) -> None:
        """A call that was started has ended; :meth:`advance` follows, perhaps after several of these."""

    def advance(self) -> None:
        """Start what is to start now, or conclude."""

    def close(self, then: Callable[[], None]) -> None:
        """Let go of what is not a call, such as a source that is being read; ``then`` when that is done."""

    #: Whether it has one call at a time.
    is_serial: bool

    @property
    def is_looking(self) -> bool:
        """Whether it still looks for recorded calls, so that nothing of those it has asked for is shown out of turn."""

    @property
    def may_start_more(self) -> bool:
        """Whether something other than an outcome, such as a source, may make it start another call."""

    def timeout_error(self, limit: float, elapsed: float) -> NodeTimeoutError | None:
        """What its timeout is raised as; None for the usual error."""


class PlannedCall(Call):
    """A call with a conductor, which ``step.fn(call, *args)`` gives."""

    conductor: Conductor | None = None
    reader: Reader | None = None  # a thread that waits for this call, and can read its source meanwhile
    concluded = False  # it starts nothing more
    waits_to_return = False  # what a conductor does at an outcome takes no time, and need not count
    will_advance = False  # its conductor is about to act
    rests = False  # its conductor has nothing to do at the outcome that it was told of last

    def __init__(
        self, run: Execution, parent: Call | None, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(run, parent, step, args, kwargs)
        self.context: Context = copy_context()

    @property
    def scope_type(self) -> type[Scope]:  # type: ignore[override]  # a class below
        """What its scope is made of."""
        return PlannedScope

    # The conductor

    def _launch(self) -> None:
        self.state = RUNNING
        self.attempt += 1
        self.concluded = False
        self.is_serial = False
        if not (self.run.is_plain and self.step.is_plain):
            self._prepare_attempt()
        self.run.soon(self._begin_conducting)

    def _begin_conducting(self) -> None:
        if self.state is not RUNNING or self.told:
            return
        if self.run.recorder is not None:
            self.run.recorder.scope_of(self)  # which says whether anything is recorded
        try:
            self.conductor = self.step.fn(self, *self.args, **self.kwargs)
        except BaseException as error:  # it becomes the outcome, as that of any body
            self.concluded = True
            self._conclude(None, error)
            return
        self.is_serial = self.conductor.is_serial
        self._advance()

    def advance_soon(self) -> None:
        """Have the conductor look what is to be done, in this turn of the loop."""
        if not self.will_advance:
            self.will_advance = True
            self.run.soon(self._advance)

    def _deliver(self) -> None:
        super()._deliver()
        self.conductor = None

    def forget_its_work(self) -> None:
        """It is over, and its conductor with it."""
        super().forget_its_work()
        self.conductor = None

    def _advance(self) -> None:
        self.will_advance = False
        if self.concluded or self.stopping is not None or self.state is not RUNNING:
            return
        assert self.conductor is not None
        try:
            self.conductor.advance()
            if self.permit is not None and not self.pending:
                self.permit.lend()  # it waits for a source, and does nothing that should count
        except BaseException as error:  # what a user's key function or iterator raises ends the call
            self.conclude(None, error)

    def parent_left(self) -> None:
        """Nobody takes the results any more, if it gives them one by one."""
        self.advance_soon()

    def branch_ended(self, branch: Branch, call: Call) -> None:
        """The outcome of a call that the conductor has started is visible."""
        if self.concluded or self.stopping is not None or self.conductor is None:
            return
        try:
            self.conductor.note(branch, call)
        except BaseException as error:  # as in _advance
            self.conclude(None, error)
            return
        if not (self.will_advance or self.rests):
            self.will_advance = True
            self.run.soon(self._advance)

    def child_opened(self) -> None:
        """A call that waits for an answer may leave its place to another."""
        self.advance_soon()

    def source_context(self) -> Context:
        """A context of its own for what reads a source."""
        return self.context.copy()

    def reader_of_source(self) -> Reader | None:
        """The thread that reads a sync iterable which this call was given; None for the loop itself."""
        if self.reader is not None and not self.run.clock.is_virtual:
            return self.reader
        call: Call = self
        while call.parent is not None and call.parent.step.is_planned:
            call = call.parent
        run = self.run
        if call.parent is not None:
            return None if call.parent.step.is_async else _Worker(run.clock)
        if run.caller is not None and not run.clock.is_virtual and self.parent is None and self._is_alone:
            return (
                run.caller
            )  # for one source, that of the outermost, where no timeout would have to wait for it
        return _Worker(run.clock) if isinstance(run.future, ThreadFuture) else None

    # What a conductor does

    def identify(self, name: str, fingerprint: bytes) -> tuple[bytes, int]:
        """The identity and the ordinal of the next call, in a journaled run; in the order of the program."""
        assert self.run.recorder is not None
        return self.run.recorder.scope_of(self).siblings.next(name, fingerprint)

    def identify_aside(self, what: str, fingerprint: bytes) -> tuple[bytes, int]:
        """As :meth:`identify`, for what is recorded and is no call of the program."""
        assert self.run.recorder is not None
        return self.run.recorder.scope_of(self).siblings.aside(what, fingerprint)

    def recorded_at(self, identity: bytes) -> int | None:
        """The ordinal with which the outcome of this call is recorded; None if it is not."""
        record = self.scope.records.get(identity) if self.scope is not None else None
        return None if record is None else record.ordinal

    def start(
        self,
        branch: Branch,
        step: Step,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        identity: tuple[bytes, int] | None = None,
        latest: float | None = None,
        *,
        is_told: bool = True,
    ) -> None:
        """Start a call; the conductor is told when it has ended.

        Args:
            branch: By which it is told.
            step: What to call.
            args: With what.
            kwargs: With what, by name.
            identity: From :meth:`identify`, where not the arguments alone tell it from others.
            latest: When it must have ended, in the loop's time: its deadline, which the conductor sees to.
            is_told: Whether observers are told of it, and limits count it; not if it is no step of the user's.
        """
        run = self.run
        kind: type[Call] = (PlannedCall if step.is_planned else CrewedCall) if is_told else UntoldCall
        if run.recorder is None:
            call = kind(run, self, step, args, kwargs)
        else:
            call = run.recorder.call_of(kind, self, step, args, kwargs, identity)
        self.begin_child(branch, call, latest)

    def begin_child(self, branch: Branch, call: Call, latest: float | None = None) -> None:
        """Have the call of a branch begin, at once where nothing that `begin` looks for stands in the way."""
        run = self.run
        branch.call = call
        call.future = branch
        call.context = self.context
        if (
            latest is None
            and call.step.is_plain
            and self.permit is None
            and self.stopping is None
            and (run.is_plain or (run.is_bare and self.adds_to_record(call)))
        ):
            call._join_parent(self)
            if not call.takes_turns or call.may_begin():
                call._launch()
            return
        call.latest = latest
        call.begin(b"")

    def conclude(self, value: Any, error: BaseException | None, *, reason: str = "") -> None:
        """End with this value or error; what still goes on is stopped, and waited for."""
        if self.concluded:
            return
        self.concluded = True
        if self.step.convert is not None and error is None:
            try:
                value = self.step.convert(value)
            except Exception as refused:
                value, error = None, refused
        if self.pending:
            why = reason or f"{self.step.name!r} has what it needs"
            self._stop_children(Stop(StopKind.CANCEL, why, self.run.grace))
        self._close(value, error)

    def _close(self, value: Any, error: BaseException | None) -> None:
        if self.conductor is None:
            self._conclude(value, error)
        else:
            self.conductor.close(lambda: self._conclude(value, error))

    # Being stopped

    def _stop_body(self) -> None:
        if self.has_ended or self.state is not RUNNING:
            super()._stop_body()
            return
        if self.told:
            return
        self.told = True
        if not self.concluded:  # else it is being closed already
            self.concluded = True
            assert self.stopping is not None
            self._close(None, asyncio.CancelledError(self.stopping.reason))

    def _timeout_error(self, limit: float, elapsed: float, *, idle: bool, given_up: bool) -> NodeTimeoutError:
        if self.conductor is not None and (error := self.conductor.timeout_error(limit, elapsed)) is not None:
            return error
        return super()._timeout_error(limit, elapsed, idle=idle, given_up=given_up)


class UntoldCall(Call):
    """A call that a conductor makes to have something recorded: it is no step of the user's."""

    is_told_of = False

    def needs(self) -> Needs:
        """It does nothing that should wait, or have others wait."""
        return ()


class _Worker:
    """A worker thread as the reader of a source."""

    def __init__(self, clock: Clock) -> None:
        self.put = clock.start_thread

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Meanwhile the thread waits, and others may work."""
        workers.leave()
        try:
            yield
        finally:
            workers.come_back()


class PlannedScope(Scope):
    """What a conductor sees and when: it acts at once, so it is always ready, and waits for nothing but calls."""

    will_show = False  # it is about to look what can be shown

    def replay(self, call: Call) -> None:
        """It asks for this call, which is recorded."""
        super().replay(call)
        self.pump()

    def pump(self) -> None:
        """Show the next batch, have the conductor act on the whole of it, and so on."""
        if not self.will_show:
            self.will_show = True
            self.owner.run.soon(self._show_next)

    def _show_next(self) -> None:
        if self._planned.will_advance:
            # It acts first on what it has seen: it may ask for what is to be shown next.
            self.owner.run.soon(self._show_next)
            return
        self.will_show = False
        if not self.order.has_more:
            return
        batch = self.order.next_batch(stuck=self._is_stuck)
        if batch:
            self._show(batch)
            self.pump()
        else:
            self._planned.advance_soon()  # what was recorded is not asked for any more

    def body_waits(self) -> bool:
        """Whether nothing but an outcome can make it go on."""
        conductor = self._planned.conductor
        return conductor is not None and not conductor.may_start_more

    @property
    def _is_stuck(self) -> bool:
        conductor = self._planned.conductor
        return not self.owner.is_running or conductor is None or not conductor.is_looking

    @property
    def _planned(self) -> PlannedCall:
        assert isinstance(self.owner, PlannedCall)
        return self.owner

    def _begin_rounds(self) -> None:
        """A conductor has acted on what it saw before anything else can happen."""
