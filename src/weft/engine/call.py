"""One use of a step in a run, from being asked for to its outcome.

    ASKED ─ recorded? ─────────────────────────────────────────────────────► shown
      │ no
    QUEUED (limits) ─► RUNNING ─► DRAINING (its own children end) ─► settled ─► ENDED ─► shown
                          ▲                                             │
                          └───────────── BACKING_OFF ◄──────────────────┘

    OPEN: the body asked a question and was left; an answer makes it QUEUED again.

Everything here happens on the loop of the run, but for the bodies of sync steps. Each transition is one small
method. A call whose run has no journal, limits or observers, and whose step has no options, takes the short way:
one task, one future, no timer.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import _get_running_loop
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from inspect import CORO_CREATED, getcoroutinestate
from threading import get_ident
from typing import TYPE_CHECKING, Any

from weft.core.limits import Needs
from weft.core.outcome import Cancelled, Failed, Ok, Outcome, TimedOut
from weft.core.question import Interrupt
from weft.core.retry import next_delay, retry_after
from weft.engine import limits
from weft.engine.awaited import is_awaitable
from weft.engine.context import current
from weft.engine.futures import AnyFuture, LoopFuture, Reply, ThreadFuture
from weft.engine.permit import Permit
from weft.engine.raised import signal_in, without_our_frame
from weft.engine.scope import Scope
from weft.engine.states import (
    ASKED,
    BACKING_OFF,
    DRAINING,
    ENDED,
    OPEN,
    OVER,
    QUEUED,
    RUNNING,
    State,
    Stop,
    StopKind,
)
from weft.engine.watch import AttemptWatch
from weft.engine.where import say_where
from weft.engine.workers import workers
from weft.errors import Interrupted, NodeTimeoutError, Stopped, Suspended, Unwind, UsageError, WeftError

if TYPE_CHECKING:
    from weft.checkpoint.base import Record
    from weft.engine.execution import Execution
    from weft.engine.rehearsal import Rehearsal
    from weft.engine.step import Step
    from weft.engine.workflow import Workflow


logger = logging.getLogger("weft")


class Call:
    """One use of a step. What few calls need is a class attribute until it is set."""

    run: Execution
    scope_type: type[Scope] = Scope
    takes_turns = False  # something other than limits says when it may begin: `may_begin`
    is_serial = False  # it has one child at a time, and does nothing else
    alone: bool | None = None  # whether nothing is at work beside it, when somebody has looked; see _is_alone
    record: Record | None = None  # the recorded outcome that is to be shown
    scope: Scope | None = None  # in a journaled run, what its body has asked for
    payload: bytes | None = None  # the value, encoded by the thread that made it
    aside: Any = None  # what is recorded beside the value, and not part of it
    waited_for: tuple[str, ...] = ()  # the limits
    stopping: Stop | None = None
    told = False  # its body was told to stop
    timed_out = False  # the current attempt
    own_timeout: Stop | None = None  # which it is being stopped by
    thread = 0  # the ident of the thread of its body
    abandoned: dict[int, Needs] = {}  # noqa: RUF012 - never changed: threads of bodies given up, what they hold
    cached = False
    is_recorded = True  # its outcome is; if not, only those of its children are
    is_told_of = True  # observers are told when it begins and ends: it is a step of the user's
    permit: Permit | None = None  # its limits, if it needs any
    arrival: Call | None = None  # its last child, whose outcome waits until it has a slot again
    failed_child: BaseException | None = None  # what the last of its children that failed has raised
    failed_with: BaseException | None = None  # the attempt before
    children: dict[Call, None] = {}  # noqa: RUF012 - never changed: asked for, and their outcome not shown yet
    held = 0  # children that have ended, but were not shown yet
    asks: str | None = None  # the id of the question that this attempt ended with
    is_asking = False  # it has asked, and what its body had begun goes on
    was_answered = False  # meanwhile
    questions = 0  # asked by this attempt
    timer: asyncio.TimerHandle | None = None  # of the back-off or the grace
    watch: AttemptWatch | None = None  # the timeouts of the attempt
    total: asyncio.TimerHandle | None = None  # of all attempts and waits together
    latest: float | None = None  # when that is, or the part of its parent that it is in; in the loop's time
    is_last = False  # whatever becomes of this attempt, there is no other
    deadline: float | None = None  # in the loop's time
    counts_as_left = False  # its thread waits for children, and is not counted as a worker

    def __init__(
        self, run: Execution, parent: Call | None, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.run = run
        self.parent = parent
        self.step = step
        self.args = args
        self.kwargs = kwargs
        self.state: State = ASKED
        self.future: Reply = None  # type: ignore[assignment]  # set by whoever asks
        self.pending = 0  # how many those are
        self.asked = 0
        self.ordinal = 0
        # What most calls get later is set here too: what is first set when many calls are there has no room in them,
        # and then CPython makes a dict for each.
        self.identity = b""
        self.context: Context | None = None  # of whoever asked, kept when the body starts later
        self.started = 0.0
        self.asked_at = 0.0  # when it began to wait for its limits, or else its first attempt
        self.attempt = 0
        self.body: asyncio.Task[None] | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_held = False  # its outcome is durable and waits to be shown

    # Being asked for

    def ask(
        self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AnyFuture | asyncio.Future[Any]:
        """This body asks for a call; its future, of the kind that fits where the body runs."""
        if self.stopping is not None or self.state is not RUNNING or self.abandoned:
            self._may_not_ask_now(step)
        run = self.run
        kind: type[Call] = run.planned if step.is_planned else Call
        loop = _get_running_loop()
        if loop is run.loop and (self.step.is_async or self.body is not None):
            if run.recorder is None:
                call = kind(run, self, step, args, kwargs)
            else:
                call = run.recorder.call_of(kind, self, step, args, kwargs)
            call.future = future = LoopFuture(loop=loop)
            future.call = call
            try:
                needs_no_more = step.is_plain and self.permit is None
                if needs_no_more and (run.is_plain or (run.is_bare and self.adds_to_record(call))):
                    call._join_parent(self)
                    call._launch()
                else:
                    call.begin(b"")
            except BaseException:  # the stack or the memory has come to its end in the middle of it
                if call in self.children:
                    loop.call_soon(call.stop_by_caller)
                raise
            return future
        return self._ask_from_thread(kind(run, self, step, args, kwargs), loop)

    def _may_not_ask_now(self, step: Step) -> None:
        if self.stopping is not None or self.is_in_abandoned_thread:
            raise self.unwinding()
        if self.state is not RUNNING:
            raise UsageError(
                f"{self.step.name!r} has ended; something that it left running asks for {step.name!r}"
            )

    def _ask_from_thread(
        self, call: Call, loop: asyncio.AbstractEventLoop | None
    ) -> AnyFuture | asyncio.Future[Any]:
        run = self.run
        call.future = future = ThreadFuture(call)
        call.context = copy_context()
        fingerprint = b""
        if run.recorder is not None:
            fingerprint = run.recorder.fingerprint(call.step, call.args, call.kwargs)
            scope = run.recorder.scope_of(self)
            scope.announce()
            future.watch(scope, run.clock)
        elif run.clock.is_virtual:
            future.watch(None, run.clock)
        run.post(call.begin, fingerprint)
        if loop is not None and self.is_on_loop:
            return asyncio.wrap_future(future, loop=loop)
        return future

    def begin(self, fingerprint: bytes) -> None:
        """Become a child of the parent, and start as soon as nothing stands in the way."""
        parent, run = self.parent, self.run
        assert parent is not None
        self._join_parent(parent)
        if parent.stopping is not None:
            self.stopping = parent.stopping
            self._end_stopped()
            return
        if run.is_plain and parent.permit is None:
            if not parent.step.is_async:
                parent._has_children()
            if self.step.is_plain and not self.takes_turns:
                self._launch()
            else:
                self._begin_total()
                self.admit()
            return
        if parent.arrival is not None:
            parent._deliver_arrival()
        if run.recorder is not None:
            self.find_record(fingerprint)
        else:
            if run.audience is not None:
                run.audience.asked(self)
            self._begin_total()
            self.admit()
        if parent.pending and (parent.permit is not None or not parent.step.is_planned):
            parent._has_children()  # after the child has queued, so that its slot goes to the child

    def adds_to_record(self, call: Call) -> bool:
        """In a journaled run: whether the call has only to be added to what this one has asked for, which is done."""
        scope = self.scope
        if scope is None or not scope.is_simple:
            return False
        if call.is_recorded:
            scope.add(call)
        return True

    def _join_parent(self, parent: Call) -> None:
        parent.pending += 1
        if not parent.children:
            parent.children = {}  # in the order of asking, in which they are stopped
        parent.children[self] = None
        parent.asked += 1
        if not self.identity:  # else its conductor has counted
            self.ordinal = parent.asked
        if self.latest is not None:
            self.deadline = self._inherited_deadline
        elif parent.deadline is not None:
            self.deadline = parent.deadline
        if parent.watch is not None:
            parent.watch.touch()

    def find_record(self, fingerprint: bytes) -> None:
        """In a journaled run: become its recorded outcome, or, if there is none, begin."""
        recorder = self.run.recorder
        assert recorder is not None
        assert self.parent is not None
        scope = recorder.scope_of(self.parent)
        if not self.identity:
            self.identity, self.ordinal = scope.siblings.next(self.step.name, fingerprint)
        if scope.coming:
            scope.coming.popleft()
        if self.run.rehearsal is not None:
            self.run.rehearsal.asked.add(self.identity)
        if self.run.audience is not None:
            self.run.audience.asked(self)
        try:
            record = recorder.claim(self, scope)
        except WeftError as error:
            scope.calls.pop(self.identity, None)
            self.error = error
            self.become_visible()
            return
        if record is not None:
            self.record = record
            scope.pump()
            return
        if self.step.total is not None:
            self._begin_total()
        if scope.failures or scope.marks:
            self._keep_context()
            recorder.before_start(self, scope, self.admit)
        else:
            self.admit()
        if scope.order.has_more and not scope.coming and not self.parent.is_on_loop:
            scope.pump()  # the body may have begun to wait while this call was on its way here

    def _keep_context(self) -> None:
        if self.context is None:
            self.context = copy_context()

    def admit(self) -> None:
        """Begin, unless something stands in the way: then as soon as that is gone."""
        if self.state is not ASKED:
            return  # cancelled while something was written or read for it
        if self.stopping is not None:
            self._end_stopped()
            return
        if self.step.cache is not None and self._take_from_cache():
            return
        if self.takes_turns and not self.may_begin():
            return
        run, step = self.run, self.step
        if run.rehearsal is not None and self._is_only_rehearsed(run.rehearsal):
            return
        if run._own_needs or step.limits or step.gates:
            needs = self.needs()
            if needs and not self._ask_permit(needs):
                return
        self._launch()

    def _is_only_rehearsed(self, rehearsal: Rehearsal) -> bool:
        """Where no step is to begin: stay open, as one that has asked, so that the run ends when nothing goes on."""
        if self.parent is None or self.step.is_planned or not (self.is_recorded and self.is_told_of):
            return False  # it is no step
        rehearsal.would_start.append(self)
        self.state = OPEN
        self.asks = self.id
        self.run.questions[self.id] = (self, Interrupt(None, self.id))
        self.parent.child_opened()
        self.run.consider_suspending()
        return True

    def may_begin(self) -> bool:
        """Whether its turn has come; who says no has it admitted again."""
        return True

    def needs(self) -> Needs:
        """The limits that it counts in while it is at work."""
        return self.run.needs_of(self)

    def make_way(self) -> None:
        """It waits, for calls of its own or for an answer, so that others may have their turn."""

    def _ask_permit(self, needs: Needs) -> bool:
        self._keep_context()
        if self.permit is None:
            self.permit = Permit(self, needs, len(self.step.gates))
        self.state = QUEUED
        # A child of a call at work goes before new starts: what has begun is finished first.
        if self.permit.ask(ahead=self.parent is not None and self.parent.parent is not None):
            return True
        self.asked_at = self.asked_at or self.run.clock.wall()
        self.waited_for = tuple([each.name for each in needs])
        if self.run.audience is not None:
            self.run.audience.queued(self)
        return False

    def permitted(self) -> None:
        """This call has the limits that it waited for: to start, or to see its last child."""
        if (child := self._take_arrival()) is not None:
            child._deliver()
        elif self.state is QUEUED:
            self._launch()
        elif self.permit is not None:
            self.permit.give_back()

    def _take_from_cache(self) -> bool:
        try:
            found, value = self.workflow.look_up(self)
        except Exception as error:  # of a key function or a cache of the user's
            self.error = error
            self.finish()
            return True
        if found:
            self.cached = True
            self.value = value
            self.finish()
        return found

    def _has_children(self) -> None:
        """A child was asked for: limits are for those who work."""
        self.make_way()
        if self.permit is not None:
            self.permit.lend()
        if not self.step.is_async and not self.counts_as_left and self.state is RUNNING:
            self.counts_as_left = True
            workers.leave()

    def _deliver_arrival(self) -> None:
        """Its last child need not wait for a slot of this call any more: it is not the last, or the body is over."""
        if (child := self._take_arrival()) is not None:
            if self.permit is not None:
                self.permit.wait_no_longer()
            child._deliver()

    def _take_arrival(self) -> Call | None:
        child, self.arrival = self.arrival, None
        if child is not None:
            self.held -= 1
        return child

    def _has_no_children(self) -> None:
        if self.counts_as_left:
            self.counts_as_left = False
            workers.come_back()

    # The body

    def _launch(self) -> None:
        step, run = self.step, self.run
        self.state = RUNNING
        self.attempt += 1
        if not (run.is_plain and step.is_plain):
            self._prepare_attempt()
        if not step.is_async:
            self._launch_in_thread()
        elif self.context is None:
            # Not by the loop's factory, which may be eager: outcomes are seen in an order, and the stack has an end.
            self.body = asyncio.Task(self._run_on_loop(), loop=run.loop, name=step.name)
        else:
            context = self.context.copy()
            self.body = asyncio.Task(self._run_on_loop(), loop=run.loop, name=step.name, context=context)

    def _prepare_attempt(self) -> None:
        if self.questions or self.told:
            self.questions, self.told = 0, False
        self.started = self.run.clock.wall()
        self.asked_at = self.asked_at or self.started
        if self.context is None and (self.step.retry or self.run.recorder is not None):
            self.context = copy_context()  # it may begin again, at an answer
        if self.run.recorder is not None and not self.step.is_async:
            self.run.recorder.scope_of(self)  # made here, so that its thread never has to
        if self.step.timeout is not None and self.step.is_async and self.step.executor is None:
            self.begin_watch(self.attempt)  # a thread, or a process, has to be there first
        if self.run.audience is not None:
            self.run.audience.started(self)

    def begin_watch(self, attempt: int) -> None:
        """The body of this attempt begins: its timeouts count from now on."""
        policy = self.step.timeout
        assert policy is not None
        if self.state is not RUNNING or attempt != self.attempt or self.stopping is not None:
            return
        if policy.run_timeout is not None and self.step.is_async:  # else it was set by the thread
            self._set_deadline(policy.run_timeout)
        self.watch = AttemptWatch(policy, self.run.loop, self.out_of_time)

    def _set_deadline(self, seconds: float) -> None:
        inherited = self._inherited_deadline
        own = self.run.loop.time() + seconds
        self.deadline = own if inherited is None else min(own, inherited)

    @property
    def _inherited_deadline(self) -> float | None:
        inherited = self.run.deadline if self.parent is None else self.parent.deadline
        if self.latest is None:
            return inherited
        return self.latest if inherited is None else min(inherited, self.latest)

    def _begin_total(self) -> None:
        seconds = self.step.total
        if seconds is None:
            return
        end = self.run.loop.time() + seconds
        self.latest = end if self.latest is None else min(end, self.latest)
        self.deadline = self._inherited_deadline
        self.total = self.run.loop.call_at(end, self._total_passed, seconds)

    def _end_total(self) -> None:
        if self.total is not None:
            self.total.cancel()
            self.total = None

    def _total_passed(self, seconds: float) -> None:
        self.is_last = True
        self.out_of_time(seconds, seconds, idle=False)

    async def _run_on_loop(self) -> None:
        current.set(self)
        step, value, error = self.step, None, None
        try:
            kwargs = self.run.inject(self) if step.inject else self.kwargs
            value = await step.body(*self.args, **kwargs)
            if is_awaitable(value):
                value = await value
            if step.convert is not None:
                value = step.convert(value)
        except BaseException as caught:  # it becomes the outcome; SystemExit must not reach the loop
            error = without_our_frame(caught)
            if isinstance(caught, asyncio.CancelledError):
                self._cancelled_from_outside()
        self._conclude(value, error)

    def _cancelled_from_outside(self) -> None:
        """Somebody else has cancelled the task of the body, as the end of a loop does with all: so ends the run."""
        task = asyncio.current_task()
        if not self.told and task is not None and task.cancelling():
            self.told = True
            self.run.cancel("a task of the run was cancelled from outside, as at the end of its loop")

    def _conclude(self, value: Any, error: BaseException | None) -> None:
        try:
            step, is_plain = self.step, self.run.is_plain
            if (
                error is None
                and step.is_plain
                and not self.pending
                and self.stopping is None
                and (step.workflow is None or self.parent is None)
                and (is_plain or (self.permit is None and self.timer is None))
            ):  # nothing has to be waited for, stopped or given back
                self.body = None
                self.value = value
                if is_plain:
                    self.become_visible()
                else:
                    self.finish()
            else:
                self._body_ended(value, error)
        except Exception as broken:  # a mistake of the engine must not leave a run hanging
            self.run.fail(broken)

    def _launch_in_thread(self) -> None:
        context = self.context.copy() if self.context is not None else copy_context()
        attempt, run = self.attempt, self.run
        self.thread = 0

        def job() -> None:
            context.run(self._run_in_thread, attempt)

        if run.caller is not None and self._is_alone and not run.clock.is_virtual:
            run.caller.put(job)
            return
        try:
            run.clock.start_thread(job)
        except RuntimeError as error:  # the system has no thread to give
            self._body_ended(None, error)

    @property
    def _is_alone(self) -> bool:
        """Whether a sync caller can lend it his thread: nothing else is at work, and nobody may give it up."""
        if self.run.options.timeout is not None:
            return False
        below: list[Call] = []
        call, found = self, self.alone
        while found is None:
            below.append(call)
            if call.step.timeout or call.step.total:
                found = False
            elif call.parent is None:
                found = True
            elif not call.parent.is_serial:
                found = False
            else:
                call = call.parent
                found = call.alone
        for each in below:
            each.alone = found
        return found

    def _run_in_thread(self, attempt: int) -> None:
        if attempt != self.attempt or self.state is not RUNNING:
            return  # it had no thread until nobody wanted it any more
        current.set(self)
        self.thread = get_ident()
        step, run = self.step, self.run
        if step.timeout is not None:
            if step.timeout.run_timeout is not None:
                self._set_deadline(step.timeout.run_timeout)
            run.post(self.begin_watch, attempt)
        value, error, payload, then = None, None, None, False
        try:
            if self.stopping is None:
                kwargs = run.inject(self) if step.inject else self.kwargs
                value = step.fn(*self.args, **kwargs)
                while isinstance(value, ThreadFuture):
                    value = value.result()
                then = is_awaitable(value)
                if step.convert is not None and not then:
                    value = step.convert(value)
                if run.recorder is not None and self.is_recorded and not then:
                    payload = run.recorder.encode(self, value)  # here, beside the loop
        except BaseException as caught:
            error = without_our_frame(caught)
        thread = get_ident()
        self._free(thread)
        end = partial(self._await_result, copy_context()) if then else self._thread_ended
        if run.post(end, thread, attempt, value, error, payload):
            return
        if self.permit is not None and self.thread == thread:
            self.permit.give_back()  # the loop is gone, and what it held is for others

    def _thread_ended(
        self, thread: int, attempt: int, value: Any, error: BaseException | None, payload: bytes | None
    ) -> None:
        if self._is_wanted(thread, attempt):
            self.payload = payload
            self._conclude(value, error)

    def _await_result(self, context: Context, thread: int, attempt: int, value: Any, *_nothing: None) -> None:
        """A sync body returned something to await: that is done on the loop, in its stead and its context."""
        if self._is_wanted(thread, attempt):
            self.body = asyncio.Task(self._finish_on_loop(value), loop=self.run.loop, context=context)

    def _is_wanted(self, thread: int, attempt: int) -> bool:
        """Whether the outcome of the body in this thread is still that of the call; not if it was given up."""
        self._free(thread)  # it was given up in the very moment in which it ended
        return self.state is RUNNING and attempt == self.attempt

    def _free(self, thread: int) -> None:
        """The body in this thread has ended: if it was given up, what it kept is for others; from any thread."""
        held = self.abandoned.pop(thread, ())
        if held and self.permit is not None:
            limits.release(self.permit, held)

    async def _finish_on_loop(self, value: Any) -> None:
        current.set(self)
        result, error = None, None
        try:
            result = await value
            if self.step.convert is not None:
                result = self.step.convert(result)
        except BaseException as caught:
            error = without_our_frame(caught)
        self._conclude(result, error)

    # Its end

    def _body_ended(self, value: Any, error: BaseException | None) -> None:
        self.body = None
        if error is not None and (self.step.limits or self.run.limits) and not self.step.is_planned:
            self._heed_pause(error)  # before anybody gets what it holds
        if self.counts_as_left:
            self._has_no_children()
        if self.pending and error is None and self.stopping is None and not self.step.is_planned:
            self._clear_timer()  # what it left behind belongs to the attempt, whose timeout goes on
        elif self.timer is not None or self.watch is not None:
            self._clear_timers()
        if self.permit is not None:
            self.permit.lend()
        if self.stopping is not None:
            self._note_cleanup(error)
            self.state = DRAINING
            self.after_child()
            return
        if self.step.workflow is not None and self.parent is not None:
            value, _ = self.step.workflow.split_output(value)
        self.value, self.error = value, error
        if error is not None:
            self.error = error = signal_in(error)
            say_where(error, self)
        if not self.pending:
            self._settle()
            return
        self._drain(error)

    def _note_cleanup(self, error: BaseException | None) -> None:
        """The body was told to stop and failed at that: nobody takes the error, so at least it is said."""
        if isinstance(error, Exception):
            logger.info(
                "run %s: %r failed while it was being stopped: %r", self.run.id, self.step.name, error
            )

    def _drain(self, error: BaseException | None) -> None:
        """The body left calls behind: they end first. After a failure nobody needs them."""
        self.state = DRAINING
        self._deliver_arrival()
        if isinstance(error, Interrupted):
            # What it has begun goes on meanwhile.
            self.run.question_opened(self, error.interrupt, error.number)
            self.is_asking = True
        elif error is not None:
            self._stop_children(Stop(StopKind.CANCEL, f"{self.step.name!r} failed", self.run.grace))
        for child in tuple(self.children):
            child.parent_left()
        if self.scope is not None:
            self.scope.pump()  # what it did not wait for is shown all the same
        self.run.consider_suspending()

    def parent_left(self) -> None:
        """The body that asked for this call has ended without waiting for it."""

    def after_child(self) -> None:
        """A child has ended, or its outcome was shown; called by the run, one call after the other."""
        if self.pending > self.held:
            return
        if self.stopping is None:
            if self.state is DRAINING and not self.pending:
                self._settle()
        elif self.state is DRAINING:
            self._end_stopped()
        elif self.state is not OVER:
            self._stop_body()

    def _settle(self) -> None:
        """The attempt has ended, with all that it began."""
        if self.watch is not None:
            self._clear_timers()
        if self.permit is not None:
            self.permit.give_back()
        if self.deadline is not None:
            self.deadline = self._inherited_deadline
        error = self.error
        if error is None:
            self.finish()
            return
        if isinstance(error, Interrupted):
            self._open_question(error)
            return
        if self.step.retry and not self.is_last and not isinstance(error, Unwind):
            delay = self._delay_after(error)
            if delay is not None and self._may_wait(delay):
                self._back_off(delay, error)
                return
        self.finish()

    def _heed_pause(self, error: BaseException) -> None:
        """The provider has said when to come back: that is for everybody on its limit."""
        seconds = retry_after(error)
        if seconds is not None and self.failed_child is not error:
            now = self.run.loop.time()
            limits.pause((*self.step.limits, *self.run.limits), now=now, seconds=seconds)

    def _delay_after(self, error: BaseException) -> float | None:
        try:
            return next_delay(self.step.retry, error, attempt=self.attempt, draw=self.run.clock.draw)
        except Exception as broken:  # a retry_on of the user's
            with suppress(Exception):  # the error may refuse to be shown
                broken.add_note(f"raised by the retry_on of {self.step.name!r} when asked about {error!r}")
            self.error = broken
            return None

    def _may_wait(self, delay: float) -> bool:
        left = self.remaining()
        return left is None or delay < left

    def _back_off(self, delay: float, error: BaseException) -> None:
        self.state = BACKING_OFF
        self.told = False
        if self.run.audience is not None:
            self.run.audience.retrying(self, delay, error)
        self.timer = self.run.loop.call_later(delay, self._try_again)

    def _try_again(self) -> None:
        self.timer = None
        self.failed_with = self.error
        self.value = self.error = self.payload = self.aside = self.asks = None
        self.timed_out = False
        self.asked = 0
        self.state = ASKED
        recorder = self.run.recorder
        if recorder is None or self.scope is None:
            self.admit()
            return
        recorder.renew_scope(self, self.admit)

    def finish(self) -> None:
        """The outcome is final: it is recorded, and then seen."""
        if self.total is not None:
            self._end_total()
        if self.scope is not None:
            self.scope.end()
        if self.step.cache is not None and self.error is None and not self.cached:
            self._keep_in_cache()
        recorder = self.run.recorder
        if recorder is not None:
            self.state = ENDED
            recorder.record(self)
            return
        self.become_visible()

    def _keep_in_cache(self) -> None:
        try:
            self.workflow.keep(self)
        except Exception:  # the value is there all the same
            logger.warning(
                "run %s: the result of %r could not be cached", self.run.id, self.step.name, exc_info=True
            )

    def recorded_in(self, batch: int) -> None:
        """The outcome is durable, or was found to be unstorable (``error`` says so)."""
        if self.state is not ENDED:
            return  # the journal failed meanwhile, and the call was let go
        parent = self.parent
        if parent is None:
            self.become_visible()  # the run records what became of it, and needs the payload
            return
        if self.payload is not None:
            self.payload = None
        if self.stopping is not None:
            self.become_visible()
            return
        scope = parent.scope
        assert scope is not None
        parent.held += 1
        scope.order.commit(batch, self.identity)
        self.run.to_pump(scope)
        self.is_held = True
        if parent.stopping is not None:
            self.run.soon(parent.after_child)

    def show(self) -> None:
        """The turn of this call has come: its body's parent sees the outcome."""
        record, recorder = self.record, self.run.recorder
        parent = self.parent
        assert parent is not None
        assert recorder is not None
        if record is not None:
            self.value, self.error = recorder.read(self, record)
            if self.run.rehearsal is not None:
                self.run.rehearsal.taken.add(self.identity)
            elif self.step.recall is not None and self.error is None:
                self.step.recall(self.aside)
        else:
            parent.held -= 1
            self.is_held = False
            # What is recorded the body has gone on from before; of what is new that is yet to be seen.
            if self.error is not None or (not self.is_recorded and self._holds_failures):
                assert parent.scope is not None
                parent.scope.add_failures({self.identity: self})
        self.become_visible()

    @property
    def _holds_failures(self) -> bool:
        """Whether some of what it has begun failed, of which it is made again: who goes on goes on from that."""
        return self.scope is not None and bool(self.scope.failures)

    def become_visible(self) -> None:
        """Let the parent see the outcome, unless it is being stopped."""
        parent = self.parent
        if parent is None:
            self.state = OVER
            self.run.root_ended()
            return
        if parent.stopping is not None:
            self._drop()
            return
        permit = parent.permit
        if permit is not None and permit.is_lending and parent.waits_to_return and parent.pending == 1:
            self._return_to_parent(parent, permit)
            return
        self._deliver()

    def _return_to_parent(self, parent: Call, permit: Permit) -> None:
        parent.arrival = self
        parent.held += 1
        self.state = ENDED
        if permit.ask_back():
            parent.permitted()

    @property
    def waits_to_return(self) -> bool:
        """Whether its body goes on at a child's outcome, so that it must count again before it sees the last."""
        return self.state is RUNNING

    def _deliver(self) -> None:
        parent = self.parent
        assert parent is not None
        if parent.stopping is not None:
            self._drop()
            return
        self.state = OVER
        parent.children.pop(self, None)
        parent.pending -= 1
        if parent.counts_as_left and not parent.pending:
            parent._has_no_children()
        if parent.watch is not None:
            parent.watch.touch()
        run = self.run
        if not run.is_plain and (run.audience is not None or run.questions):
            self._note_delivery()
        if self.error is None:
            self.future.settle(self.value, None)
        else:
            self._deliver_error(parent, self.error)
        if parent.state is DRAINING:
            run.soon(parent.after_child)
        if self.scope is not None and not self._holds_failures:
            self.forget_its_work()

    def _deliver_error(self, parent: Call, error: BaseException) -> None:
        unread = parent.state is DRAINING and not parent.step.is_planned
        self.future.settle(self.value, error)
        parent.failed_child = error
        if unread:
            self._note_unread(error)

    def forget_its_work(self) -> None:
        """It is over, and nobody asks any more how it came to its outcome: it is not to keep itself alive by that."""
        self.scope = None

    def _note_delivery(self) -> None:
        if self.run.audience is not None:
            self.run.audience.finished(self, self.outcome)
        if self.run.has_questions:
            self.run.consider_suspending()

    def _note_unread(self, error: BaseException) -> None:
        """The body had ended before this call failed: nobody takes the error, so at least it is said."""
        self.future.forget()
        if isinstance(error, Exception):
            logger.warning(
                "run %s: %r failed after its caller had ended: %r", self.run.id, self.step.name, error
            )

    @property
    def outcome(self) -> Outcome[Any]:
        """How it ended."""
        if self.error is None:
            return Ok(self.value)
        if isinstance(self.error, asyncio.CancelledError | Unwind):
            return Cancelled(self.stopping.reason if self.stopping is not None else str(self.error))
        if self.timed_out:
            return TimedOut(self.error)
        return Failed(self.error)

    # Questions

    def _open_question(self, question: Interrupted) -> None:
        self.state = OPEN
        self.make_way()
        if self.parent is not None:
            self.parent.child_opened()
        self.value = self.error = None
        if not self.is_asking:
            self.run.question_opened(self, question.interrupt, question.number)
            return
        self.is_asking = False
        if question.interrupt.id in self.run.questions:
            self.run.consider_suspending()
        elif self.was_answered:
            self.answered()

    def child_opened(self) -> None:
        """A child waits for an answer, and does nothing meanwhile."""

    @property
    def is_open(self) -> bool:
        """Whether it waits for an answer."""
        return self.state is OPEN

    def answered(self) -> None:
        """A question of this open call was answered: its body runs again from the top."""
        self.was_answered = self.state is not OPEN
        if self.was_answered:
            return  # what the body has begun goes on; then
        self.attempt -= 1  # it is the same attempt that goes on
        self._try_again()

    # Being stopped

    def stop(self, why: Stop) -> None:
        """Stop this call and all below it, leaves first: a body is stopped when its children have ended."""
        found: list[Call] = []
        stack = [self]
        while stack:
            call = stack.pop()
            if call.state is not OVER and call._may_be_stopped(why):
                call.stopping = why
                if call.own_timeout is not why:
                    call.own_timeout = None
                found.append(call)
            stack.extend(call.children)
        for call in reversed(found):
            has_ended = call.stopping is not why  # meanwhile, with its children
            if not has_ended and call.pending == call.held:
                call._stop_body()

    def _may_be_stopped(self, why: Stop) -> bool:
        """Whether this is a reason beyond the one it is being stopped for."""
        if self.stopping is None or self.stopping is self.own_timeout:
            return True
        return self.stopping.kind is StopKind.SUSPEND and why.kind is not StopKind.SUSPEND

    def stop_by_caller(self) -> None:
        """Whoever asked for this call does not want it any more."""
        if self.state is not OVER:
            self.stop(Stop(StopKind.CANCEL, "cancelled by the body that asked for it", self.run.grace))

    def _stop_children(self, why: Stop) -> None:
        for child in tuple(self.children):
            child.stop(why)

    def _stop_body(self) -> None:
        why = self.stopping
        assert why is not None
        if self.has_ended or (self.parent is None and self.run.is_opening):
            return
        if self.state is not RUNNING:
            if not self.told:
                self._end_stopped()
            return
        if self.told:
            self._begin_grace(why)  # it was only being put aside until now
            return
        self.told = True
        if self.body is not None:
            self._cancel_body(self.body, why.reason)
            self._drop_children(why)  # tasks that the body waits for may wait for them
        else:
            self._wake_thread(why)
            self._begin_grace(why)

    def _begin_grace(self, why: Stop) -> None:
        """A sync body that was told to stop is waited for so long. One that is put aside has nothing to hurry for."""
        if self.timer is None and self.body is None and why.kind is not StopKind.SUSPEND:
            left = self.remaining()
            grace = why.grace if left is None else min(why.grace, left)
            self.timer = self.run.loop.call_later(grace, self._give_up)

    def _cancel_body(self, body: asyncio.Task[None], reason: str) -> None:
        state = getcoroutinestate(body.get_coro())  # type: ignore[arg-type]  # it is ours
        body.cancel(reason)
        if state == CORO_CREATED or body.done():
            # It will not even begin, or somebody else has seen to that, so it cannot say that it has ended.
            body.add_done_callback(lambda _: self._conclude(None, asyncio.CancelledError(reason)))
        else:
            self._insist()

    def _insist(self) -> None:
        """A body that swallows its cancellation is cancelled again."""
        if self.timer is not None:
            self.timer.cancel()
        if self.body is not None and not self.body.done():
            self.timer = self.run.loop.call_later(max(self.run.grace, 0.05), self._cancel_again)

    def _cancel_again(self) -> None:
        self.timer = None
        if self.body is not None:
            self.body.cancel()
            self._insist()

    def _wake_thread(self, why: Stop) -> None:
        """What the body's thread waits for, if it waits, is replaced by the signal to unwind."""
        for child in self.children:
            child.future.settle(None, why.unwinding())

    def _give_up(self) -> None:
        """Leave a sync body to itself. Its thread is a daemon; its outcome and its next call are refused."""
        self.timer = None
        if self.state is not RUNNING:
            return
        if self.thread:  # else its body never began, and will not
            self._leave_thread()
            self.left_to_itself()
        self._wake_thread(self.stopping or Stop(StopKind.TIMEOUT, "timed out"))
        self.state = DRAINING
        self._clear_timers()
        if self.permit is not None:
            self.permit.give_back()
        self.after_child()

    def left_to_itself(self) -> None:
        """Its body, here or where an executor has it, cannot be ended: it is left to itself."""
        reason = self.stopping.reason if self.stopping is not None else "timed out"
        self.run.has_given_up(self, reason)
        if self.run.audience is not None:
            self.run.audience.given_up(self)

    def _leave_thread(self) -> None:
        """The body keeps what the world must not see used twice; only the width of its run goes to others."""
        if not self.abandoned:
            self.abandoned = {}
        self.abandoned[self.thread] = () if self.permit is None else self.permit.leave()

    def _end_stopped(self) -> None:
        """It was stopped and has ended. No record is made: it has no outcome that a resume could use."""
        why = self.stopping
        assert why is not None
        if why.kind is not StopKind.SUSPEND and self.run.questions:
            self.run.withdraw_questions(self)
        self._withdraw()
        if why is self.own_timeout:
            self.stopping = self.own_timeout = None
            self._forget_children()
            self._settle()
            return
        self._end_total()
        if self.scope is not None:
            self.scope.end()
        if why.kind is StopKind.SUSPEND:
            self.error = Suspended()
        elif not isinstance(self.error, Unwind | asyncio.CancelledError):
            self.error = asyncio.CancelledError(why.reason)
        if self.parent is not None and self.parent.scope is not None:
            self.parent.scope.calls.pop(self.identity, None)
        self._forget_children()
        self.become_visible()

    def _forget_children(self) -> None:
        why = self.stopping or self.own_timeout or Stop(StopKind.CANCEL, f"{self.step.name!r} has ended")
        self._drop_children(why)
        self.children = {}
        self.pending = self.held = 0
        self._has_no_children()

    def _drop_children(self, why: Stop) -> None:
        for child in tuple(self.children):
            child.future.drop(why)

    def _drop(self) -> None:
        """The parent is being stopped: nobody sees the outcome."""
        parent = self.parent
        assert parent is not None
        self.state = OVER
        parent.held += 1
        is_put_aside = self.stopping is not None and self.stopping.kind is StopKind.SUSPEND
        if self.run.audience is not None and not is_put_aside:
            self.run.audience.finished(self, self.outcome)
        if parent.told and parent.stopping is not None:
            self.future.drop(parent.stopping)  # asked for after the body was woken
        self.future.forget()
        self.run.soon(parent.after_child)

    def _withdraw(self) -> None:
        self._clear_timers()
        self._take_arrival()
        if self.permit is not None:
            self.permit.wait_no_longer()
            self.permit.give_back()

    def _clear_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _clear_timers(self) -> None:
        self._clear_timer()
        if self.watch is not None:
            self.watch.end()
            self.watch = None

    # Time

    def remaining(self) -> float | None:
        """Seconds until the deadline; None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - self.run.loop.time())

    def heartbeat(self) -> None:
        """A sign of life that the body itself gives, from any thread."""
        if self.watch is not None:
            self.watch.heartbeat()

    def out_of_time(self, limit: float, elapsed: float, idle: bool) -> None:
        """The attempt has taken too long. On the loop it is cancelled; a thread is given up at once."""
        if self.state is OVER or self.stopping is not None:
            return
        in_thread = self.state is RUNNING and self.body is None and not self.step.is_planned
        self._clear_timers()
        self.timed_out = True
        self.value = None
        self.error = self._timeout_error(limit, elapsed, idle=idle, given_up=in_thread)
        say_where(self.error, self)
        self.own_timeout = why = Stop(StopKind.TIMEOUT, f"{self.step.name!r} is out of time", grace=0.0)
        if not in_thread:
            self.stop(why)
            return
        self.stopping = why
        self.told = True
        self._stop_children(why)
        self._give_up()

    def _timeout_error(self, limit: float, elapsed: float, *, idle: bool, given_up: bool) -> NodeTimeoutError:
        return NodeTimeoutError(self.step.name, timeout=limit, elapsed=elapsed, idle=idle, given_up=given_up)

    # What it tells

    @property
    def id(self) -> str:
        """The id of this call: the same on every attempt and resume."""
        if self.identity:
            return f"{self.run.id}:{self.identity.hex()}"
        return "/".join([self.run.id, *map(str, self.path)])

    @property
    def is_on_loop(self) -> bool:
        """Whether its body is at work on the loop of the run, not in a thread."""
        return self.step.is_async or self.body is not None

    @property
    def workflow(self) -> Workflow:
        """Whose hooks this call uses: those of the nearest entrypoint round it."""
        call: Call | None = self
        while call is not None:
            if call.step.workflow is not None:
                found: Workflow = call.step.workflow
                return found
            call = call.parent
        return self.run.workflow

    @property
    def path(self) -> list[int]:
        """Its place in the program: the number of each ancestor, and its own, among what their parents asked for."""
        found: list[int] = []
        call = self
        while call.parent is not None:
            found.append(call.ordinal)
            call = call.parent
        return found[::-1]

    @property
    def is_running(self) -> bool:
        """Whether its body is at work or waits."""
        return self.state is RUNNING

    @property
    def has_ended(self) -> bool:
        """Whether its outcome is final, though perhaps not shown yet."""
        return self.state is ENDED or self.state is OVER

    @property
    def is_told_to_stop(self) -> bool:
        """Whether nobody waits for its body any more."""
        call: Call | None = self
        while call is not None:
            if call.stopping is not None or call.is_in_abandoned_thread:
                return True
            call = call.parent
        return False

    def refusal(self, verb: str) -> BaseException:
        """What something gets that the body has left running, and that begins anew when the body has ended."""
        if self.is_in_abandoned_thread or (self.thread == get_ident() and self.stopping is not None):
            return self.unwinding()
        if isinstance(self.error, asyncio.CancelledError | Unwind) or self.stopping is not None:
            return asyncio.CancelledError(f"{self.step.name!r} was stopped")
        return UsageError(
            f"{self.step.name!r} has ended; something that it left running asks for {verb}. What is to outlive a body "
            "and its run needs a context of its own: contextvars.Context().run(...)"
        )

    @property
    def is_in_abandoned_thread(self) -> bool:
        """Whether this thread is that of a body of this call which was given up."""
        return bool(self.abandoned) and get_ident() in self.abandoned

    def unwinding(self) -> BaseException:
        """What a body that is being stopped gets from whatever it asks of us."""
        if self.stopping is not None and self.stopping.kind is StopKind.SUSPEND:
            return Suspended()
        if self.step.is_async:
            return asyncio.CancelledError(f"{self.step.name!r} is being stopped")
        return Stopped(f"nobody waits for {self.step.name!r} any more")

    def tell_user_event(self, value: Any) -> None:
        """Something that the body wrote; on the loop."""
        if self.watch is not None:
            self.watch.touch()
        if self.run.audience is not None and self.run.outcome is None:
            self.run.audience.wrote(self, value)
