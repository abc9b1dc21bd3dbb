"""One run at work: the tree of its calls, and what they share."""

from __future__ import annotations

import asyncio
import logging
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

from weft.core.identity import root_identity
from weft.core.limits import Capacity, Needs
from weft.core.outcome import Failed, HandedOut, Ok, Outcome
from weft.core.question import Interrupt
from weft.core.status import RunStatus
from weft.engine import limits
from weft.engine.call import Call
from weft.engine.clock import clock_of
from weft.engine.context import current
from weft.engine.futures import AnyFuture, LoopFuture, ThreadFuture
from weft.engine.inbox import Inbox, inbox_of
from weft.engine.limits import needs_of
from weft.engine.permit import Permit
from weft.engine.planned import PlannedCall
from weft.engine.states import GivenUpBody, State, Stop, StopKind, status_of
from weft.engine.where import say_how_to_go_on
from weft.errors import AnswerError, Suspended
from weft.executors.inside import forget_in_forks

if TYPE_CHECKING:
    from weft.engine.audience import Audience
    from weft.engine.caller import Caller
    from weft.engine.events import Observer
    from weft.engine.opening import Opened
    from weft.engine.options import RunOptions
    from weft.engine.recorder import Recorder
    from weft.engine.rehearsal import Rehearsal
    from weft.engine.scope import Scope
    from weft.engine.workflow import Workflow

logger = logging.getLogger("weft")

#: Seconds between two looks whether nothing but questions is left: first, and at most.
_LOOK, _LOOK_MAX = 0.002, 0.1


class Execution:
    """A run. All of it happens on ``loop``; other threads reach it through :meth:`post`."""

    #: Whether nothing in it is at work but waiting for answers, and it is about to be put aside.
    only_waits = False

    #: Where no step is to begin: what would.
    rehearsal: Rehearsal | None = None
    unread: Callable[[], int] | None = (
        None  # how many events the reader of its stream is behind, if there is one
    )

    #: Its own body, until it has an outcome.
    root: Call

    # How it begins, until something is set.
    previous: Any = None
    recorder: Recorder | None = None
    status = RunStatus.RUNNING
    outcome: Outcome[Any] | None = None
    is_opening = True
    audience: Audience | None = None  # who observes it
    given_up: Sequence[GivenUpBody] = ()
    _to_pump: list[Scope] | tuple[()] = ()
    _failure: BaseException | None = None
    _looking: asyncio.TimerHandle | None = None
    _look_after = _LOOK
    _suspending = False
    interrupts: Sequence[Interrupt] = ()
    _spawned: frozenset[asyncio.Task[None]] = frozenset()
    _soon: deque[Callable[[], None]] | None = None
    _has_begun = False
    _begun_in: Context | None = None
    _is_draining = False
    _cancel_at_end = False
    _guard: asyncio.Task[None] | None = None
    _over: asyncio.Future[None] | None = None
    _deadline: asyncio.TimerHandle | None = None
    deadline: float | None = None  # in the loop's time

    def __init__(
        self,
        workflow: Workflow,
        input: Any,
        options: RunOptions,
        *,
        loop: asyncio.AbstractEventLoop,
        caller: Caller | None = None,
        threaded: bool = False,
        observers: Sequence[Observer] = (),
    ) -> None:
        forget_in_forks(current)  # whose loop and calls stay in the parent
        self.workflow = workflow = workflow.for_run(input, options)
        self.options = options
        self.loop = loop
        self.clock = clock_of(loop)
        self.caller = caller
        self._id = options.run_id or ""
        self.thread_id = options.thread_id
        self.grace = options.grace
        width = options.max_concurrent
        self.width = (
            Capacity("max_concurrent", concurrent=width, is_kept=False) if width is not None else None
        )
        self.limits = options.limits
        self._width_needs: Needs = () if self.width is None else (self.width,)
        self._own_needs = needs_of(self.width, self.limits) if self.limits else self._width_needs
        #: What a style keeps for as long as the run lasts, by a name of its own.
        self.kept: dict[str, Any] = {}
        self.questions: dict[str, tuple[Call, Interrupt]] = {}
        #: Whether its calls need nothing but, perhaps, to be recorded; and whether they need not even that.
        self.is_bare = not self._own_needs
        self.is_plain = self.is_bare and options.checkpointer is None
        self._answering: dict[str, Callable[[BaseException | None], None]] = {}
        self.input = input
        call_type = PlannedCall if workflow.step.is_planned else Call
        self.root = call_type(self, None, workflow.step, (), {})
        self.future: AnyFuture = (
            ThreadFuture(self.root) if threaded or caller is not None else LoopFuture(loop=loop)
        )
        self.future.call = self.root
        self.root.future = self.future
        for observer in (*options.observers, *observers):
            self.observe(observer)

    # Its life

    @property
    def id(self) -> str:
        """The run's id; of a run without a journal one that is made when somebody asks."""
        if not self._id and self.options.checkpointer is None:
            # In one stroke, as bodies in threads may ask at the same time.
            self._id = vars(self).setdefault("_made_id", self.clock.new_id())
        return self._id

    def rehearse(self, rehearsal: Rehearsal) -> None:
        """Have no step begin, and tell this which would."""
        self.rehearsal = rehearsal
        self.is_bare = self.is_plain = False

    def observe(self, observer: Observer) -> None:
        """Have every event from now on; called on the loop, and must not block."""
        if self.audience is None:
            from weft.engine.audience import Audience  # noqa: PLC0415 - only of runs that somebody observes

            self.audience = Audience(self)
            self.is_bare = self.is_plain = False
        self.audience.add(observer)

    @property
    def inbox(self) -> Inbox:
        """That of its loop."""
        return inbox_of(self.loop)

    def post(self, fn: Callable[..., None], *args: Any) -> bool:
        """Have ``fn(*args)`` called on the loop, from any thread; False when it is closed, so that nobody listens."""
        return inbox_of(self.loop).post(fn, *args)

    def begin(self) -> None:
        """Have the run started on its loop, from any thread; once, however often this is called."""
        if self._begun_in is None:
            self._begun_in = copy_context()
        self.post(self.start)

    def end_with_loop(self) -> None:
        """Nobody on its loop waits for it, so closing that would not cancel it: let it end the run all the same."""
        self._guard = self.spawn(self._end_with_loop())
        self._guard.add_done_callback(self._guarded)

    def start(self) -> None:
        """Open the journal, if there is one, and start the body; on the loop. The future has what happens."""
        if self._has_begun or self.outcome is not None:
            return
        self._has_begun = True
        if self._guard is not None and self._guard.cancelling():  # its loop has come to its end before
            self.not_opened(asyncio.CancelledError())
            return
        if self.root.context is None:
            self.root.context = self._begun_in
        try:
            self._open()
        except Exception as error:
            self.not_started(error)

    def _open(self) -> None:
        if self.options.checkpointer is None:
            self._tell_start()
            self._start_body()
            return
        from weft.engine.opening import open_run  # noqa: PLC0415 - runs without a journal do without it

        self._keep_context()
        open_run(self)

    def _keep_context(self) -> Context:
        """That of the run's body: of whoever begins the run, whatever comes between."""
        root = self.root
        if root.context is None:
            root.context = copy_context()
        return root.context

    def not_opened(self, error: BaseException) -> None:
        """The journal could not be opened, or is not waited for."""
        self._end(None, error, status_of(error))

    def not_started(self, error: Exception) -> None:
        """The memory, or the stack, has come to its end in the middle of it: nobody may wait for ever."""
        self.is_opening = False
        self.fail(error)

    def opened(self, opened: Opened) -> None:
        """The journal is open, or has the output already: go on."""
        self._id = opened.row.run_id
        self.thread_id = opened.row.thread_id
        self.previous = opened.previous
        self.input = opened.input
        if opened.is_finished:
            self._end(opened.output, None, RunStatus.FINISHED)
            return
        from weft.engine.recorder import Recorder  # noqa: PLC0415 - runs without a journal do without it

        assert self.options.checkpointer is not None
        self.recorder = Recorder(
            self.options.checkpointer,
            opened.row,
            opened.loaded,
            inbox=self.inbox,
            durability=self.options.durability,
            on_mismatch=self.options.on_mismatch,
            shown=self._pump,
            failed=self.fail,
            at_once=self.clock.is_virtual,
        )
        self.root.identity = root_identity(self.workflow.step.name)
        self._tell_start(resumed=opened.resumed, recorded=opened.loaded.count)
        self._start_body()

    def _start_body(self) -> None:
        self.is_opening = False
        if self.root.stopping is not None:  # cancelled while the journal was being opened
            self.root._end_stopped()
            return
        try:
            self.root.args, self.root.kwargs = self.workflow.bind(self.input)
        except Exception as error:
            self.root.is_last = True
            self.root._conclude(None, error)
            return
        if self.options.timeout is not None:
            self._set_deadline(self.options.timeout)
        self.root._begin_total()
        self.root.admit()

    def has_given_up(self, call: Call, why: str) -> None:
        """The body of this call, or what it reads, is left to itself."""
        self.given_up = [*self.given_up, GivenUpBody(call.id, call.step.name, why)]

    async def _end_with_loop(self) -> None:
        """A task that says when the loop is being closed though no body is at work, so that the run is let go."""
        while self.outcome is None:
            self._over = self.loop.create_future()
            try:
                await self._over
            except asyncio.CancelledError as error:
                if self.is_opening:
                    self.not_opened(error)  # the loop does not wait for the store
                else:
                    self.cancel("its loop is being closed")

    def _guarded(self, guard: asyncio.Task[None]) -> None:
        if not guard.cancelled() or self.outcome is not None:
            return
        # It was cancelled before it had even begun.
        if self.is_opening:
            self.not_opened(asyncio.CancelledError())
        else:
            self.cancel("its loop is being closed")

    def _tell_start(self, *, resumed: bool = False, recorded: int = 0) -> None:
        if self.audience is not None:
            self.audience.run_started(resumed=resumed, recorded=recorded)

    def _set_deadline(self, timeout: float) -> None:
        self.deadline = self.root.deadline = self.loop.time() + timeout
        self._deadline = self.loop.call_later(timeout, self.root.out_of_time, timeout, timeout, False)

    def root_ended(self) -> None:
        """The run's own body has ended, with all that it began."""
        root = self.root
        error = self._failure or root.error
        if self.recorder is None:
            self._end(root.value, error, status_of(error))
            return
        if isinstance(error, Suspended):
            self._close(RunStatus.SUSPENDED, None)
        elif self._failure is not None:
            self.spawn(self._release())
        else:
            self._close(status_of(error), error)

    def _close(self, status: RunStatus, error: BaseException | None) -> None:
        recorder, root = self.recorder, self.root
        assert recorder is not None
        output = saved = None
        if status is RunStatus.FINISHED:
            value, save = self.split_output(root.value)
            try:
                # A body in a thread has encoded it there already.
                output = root.payload
                if output is None:
                    output = recorder.encode_output(root, self.workflow.recorded_value(root.value))
                saved = self._encoded_state(output, value, save)
            except Exception as refused:
                root.value, error, status = None, refused, RunStatus.FAILED
        shown = Suspended() if status is RunStatus.SUSPENDED else error
        recorder.close(
            status,
            lambda: self._end(root.value, shown, status),
            output=output,
            saved=saved,
            error=error,
            open_questions=self.questions.keys(),
        )

    def _encoded_state(self, output: bytes, value: Any, save: Any) -> bytes | None:
        """What the thread's next run sees as ``previous``."""
        assert self.recorder is not None
        if isinstance(save, HandedOut):
            return None
        if save is value and not self.root.step.is_planned:
            return output
        return self.recorder.codec.encode(save, root="saved")

    async def _release(self) -> None:
        """Nothing more can be written: let go of the run, so that it can be resumed."""
        from weft.engine.threads import in_thread  # noqa: PLC0415 - only where a store has failed

        assert self.recorder is not None
        try:
            await in_thread(self.recorder.release, loop=self.loop)
        except (Exception, asyncio.CancelledError) as error:  # of the store, or when the loop is closed
            logger.warning("run %s: could not be released: %r", self.id, error)
        self._end(None, self._failure, RunStatus.FAILED)

    def soon(self, do: Callable[[], None]) -> None:
        """Do it in this turn of the loop, one thing after the other, so that a thousand levels need no deep stack."""
        soon = self._soon
        if soon is None:
            soon = self._soon = deque()
        soon.append(do)
        if self._is_draining:
            return
        self._is_draining = True
        try:
            while soon:
                soon.popleft()()
        finally:
            self._is_draining = False

    def grant(self, permit: Permit) -> None:
        """A call of this run has the limits that it waited for; from any thread."""
        if not self.tell(self.soon, permit.granted):
            # Its loop is closed: nobody there can use them.
            limits.release(permit, permit.waits_for or permit.needs)

    def tell(self, do: Callable[..., None], *args: Any) -> bool:
        """Do it on the loop of this run: at once, if this is its thread. False when the loop is closed."""
        if _get_running_loop() is self.loop:
            do(*args)
            return True
        return self.post(do, *args)

    def to_pump(self, scope: Scope) -> None:
        """Something was committed for this scope; it is shown when all of that commit is known."""
        if not self._to_pump:
            self._to_pump = [scope]
        elif self._to_pump[-1] is not scope:
            self._to_pump.append(scope)

    def _pump(self) -> None:
        scopes, self._to_pump = self._to_pump, ()
        for scope in scopes:
            scope.pump()

    def fail(self, error: Exception) -> None:
        """The run cannot go on: nothing more can be recorded."""
        if self.outcome is not None:
            return
        if self._failure is None:
            self._failure = error
        self._refuse_answers(self._failure)
        if self.recorder is not None:
            self.recorder.journal_failed()
        if self.root.state is State.OVER:
            self.spawn(self._release())
            return
        waiting = self._let_go()
        self.root.stop(Stop(StopKind.CANCEL, "the journal failed", self.grace))
        for call in reversed(waiting):  # those that were being stopped already
            if call.state is State.ASKED and call.stopping is not None:
                call._end_stopped()

    def _let_go(self) -> list[Call]:
        """Calls that wait for a commit that will never come are as if only asked for; which those are."""
        found = []
        stack = [self.root]
        while stack:
            call = stack.pop()
            stack.extend(call.children)
            if call.state is State.ENDED and call.parent is not None and call.parent.scope is not None:
                call.parent.scope.calls.pop(call.identity, None)
                call.parent.held -= call.is_held
                call.is_held = False
                call.state = State.ASKED
                found.append(call)
        return found

    def cancel(self, reason: str = "cancelled") -> None:
        """Stop everything, leaves first; the run ends when all has ended or was given up."""
        if self.outcome is None:
            self.root.stop(Stop(StopKind.CANCEL, reason, self.grace))

    def cancel_at_end(self) -> bool:
        """If how the run ended is just being recorded, have its caller cancelled when that is done."""
        if self.outcome is None and self.root.state is State.OVER:
            self._cancel_at_end = True
        return self._cancel_at_end

    def _end(self, value: Any, error: BaseException | None, status: RunStatus) -> None:
        if self.outcome is not None:
            return
        self._refuse_answers(None)
        if self.recorder is not None:
            self.recorder.end()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self.status = status
        if isinstance(error, Suspended):
            self.interrupts = self._in_order_of_asking()
            value, error = self.workflow.suspended(self), None
            self.outcome = Ok(value)
        elif error is None:
            value, _ = self.split_output(value)
            self.outcome = Ok(value)
        else:
            self.outcome = Failed(error)
        if self.audience is not None:
            if self.root.attempt and status is not RunStatus.SUSPENDED:
                self.audience.finished(self.root, self.outcome)
            self.audience.run_finished(status, self.outcome)
        if error is not None:
            say_how_to_go_on(error, self)
        error = asyncio.CancelledError() if self._cancel_at_end else error
        # Its body knows the run, and who holds the run needs its body no more: else each run would be garbage that
        # only a search finds.
        self.root.forget_its_work()
        del self.root
        self.kept = {}
        if self._guard is None or self._guard.done():
            self.future.settle(value, error)
            return
        self._guard.add_done_callback(lambda _: self.future.settle(value, error))
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _in_order_of_asking(self) -> list[Interrupt]:
        """The open questions in the order of the program, not of time."""
        return [question for _, question in sorted(self.questions.values(), key=lambda found: found[0].path)]

    def split_output(self, value: Any) -> tuple[Any, Any]:
        """What the run returns, and what the thread's next run sees as ``previous``."""
        return self.workflow.split_output(value)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine of the engine's own."""
        task = self.loop.create_task(coroutine)
        self._spawned |= {task}  # the loop itself does not hold it
        task.add_done_callback(self._spawned_ended)
        return task

    def _spawned_ended(self, task: asyncio.Task[None]) -> None:
        self._spawned -= {task}

    # What calls ask of it

    #: The class of calls that have a conductor instead of a body.
    planned = PlannedCall

    def needs_of(self, call: Call) -> Needs:
        """The limits that a call needs before it starts; for the run's own body those of its step, not of the run."""
        step = call.step
        if call.parent is None:
            return needs_of(None, step.limits)
        if step.is_planned:
            return self._width_needs + step.gates  # it does nothing that a provider would see
        if not step.limits:
            return self._own_needs + step.gates
        return needs_of(self.width, dict.fromkeys((*self.limits, *step.limits))) + step.gates

    def inject(self, call: Call) -> dict[str, Any]:
        """The arguments of a call, with those that its step has injected by name."""
        given = len(call.args)
        missing = [name for name, at in call.step.inject if name not in call.kwargs and at >= given]
        return {**{name: call.workflow.provide(name, call) for name in missing}, **call.kwargs}

    # Questions

    @property
    def has_questions(self) -> bool:
        """Whether a body has asked something and was not answered."""
        return bool(self.questions)

    def question_opened(self, call: Call, question: Interrupt, number: int) -> None:
        """A body was left at a question."""
        recorder = self.recorder
        assert recorder is not None

        call.asks = question.id

        def durable() -> None:
            if call.state in {State.OPEN, State.DRAINING}:
                self.questions[question.id] = (call, question)
                if self.audience is not None:
                    self.audience.question_asked(call, question)
                self.consider_suspending()

        recorder.question(call, number, question.value, durable)

    def answer(self, answers: dict[str, Any], done: Callable[[BaseException | None], None]) -> None:
        """Answer open questions of this living run; their bodies go on."""
        recorder = self.recorder
        if self.outcome is not None or self._suspending:
            done(
                AnswerError(
                    f"run {self.id!r} goes on no longer; answer it with Command(resume=...), which resumes it"
                )
            )
            return
        unknown = [key for key in answers if key not in self.questions or key in self._answering]
        if recorder is None or unknown or not answers:
            done(AnswerError(f"no open question has the id {unknown}; open are: {sorted(self.questions)}"))
            return

        def durable() -> None:
            for key in answers:
                self._answering.pop(key, None)
            self._take_up(answers)
            done(None)

        try:
            recorder.add_answers(answers, durable)
        except Exception as error:
            done(error)
        else:
            self._answering.update(dict.fromkeys(answers, done))

    def _refuse_answers(self, error: BaseException | None) -> None:
        """Whoever waits for an answer to be durable waits in vain."""
        if not self._answering:
            return
        waiting = set(self._answering.values())
        self._answering.clear()
        for done in waiting:  # these only pass the error on
            done(error or AnswerError(f"run {self.id!r} ended before the answer was recorded"))

    def _take_up(self, answers: dict[str, Any]) -> None:
        for key in answers:
            if (found := self.questions.pop(key, None)) is not None:
                found[0].answered()

    def withdraw_questions(self, call: Call) -> None:
        """This call was stopped: nobody need answer what it asked."""
        for key in [key for key, (asker, _) in self.questions.items() if asker is call]:
            del self.questions[key]

    def _note_received(self) -> None:
        assert self.recorder is not None
        stack = [self.root]
        while stack:
            call = stack.pop()
            stack.extend(call.children)
            if call.scope is not None and call.scope.failures:
                self.recorder.put_aside(call.scope)

    def consider_suspending(self) -> None:
        """Look soon whether nothing but open questions, and bodies that wait for them, is left."""
        if not self.questions or self._suspending:
            return
        self._look_after = _LOOK
        if self._looking is not None:
            self._looking.cancel()
        self._looking = self.loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        self._looking = None
        if not self.questions or self._suspending or self.outcome is not None:
            return
        if self.is_busy(self.root):
            self._look_after = min(self._look_after * 2, _LOOK_MAX)
            self._looking = self.loop.call_later(self._look_after, self._look)
            return
        if self._has_more_to_start():
            self.consider_suspending()
            return
        self.spawn(self._suspend())

    def _has_more_to_start(self) -> bool:
        """Whether a block begins another branch, now that those at work only wait for answers."""
        before = self._asked()
        self.only_waits = True
        stack = [self.root]
        while stack:
            call = stack.pop()
            stack.extend(call.children)
            call.child_opened()
        self.only_waits = False
        return self._asked() > before

    def _asked(self) -> int:
        found = 0
        stack = [self.root]
        while stack:
            call = stack.pop()
            stack.extend(call.children)
            found += call.asked
        return found

    def _waits_here(self, permit: Permit) -> bool:
        """Whether it waits for what calls of this run alone hold: then it is they who are busy, or not."""
        return all(need.is_gate or need is self.width for need in permit.waits_for or ())

    def is_busy(self, call: Call) -> bool:
        """Whether a call, or one below it, does anything but wait for answers."""
        stack = [call]
        while stack:
            call = stack.pop()
            if call.state is State.RUNNING:
                if call.scope is None or not call.scope.body_waits() or call.scope.order.has_more:
                    return True
            elif call.state is State.QUEUED:
                if call.permit is None or not self._waits_here(call.permit):
                    return True
            elif call.state not in {State.OPEN, State.DRAINING}:
                return True
            elif call.asks is not None and call.asks not in self.questions:
                return True  # its question is being written
            stack.extend(call.children)
        return False

    async def _suspend(self) -> None:
        """Put the run aside, unless somebody has answered through the store meanwhile."""
        from weft.engine.opening import new_answers  # noqa: PLC0415 - only where questions are asked

        try:
            answers = await new_answers(self)
        except Exception as error:
            self.fail(error)
            return
        if self.outcome is not None:
            return
        known = {key: value for key, value in answers.items() if key in self.questions}
        if known:
            assert self.recorder is not None
            self.recorder.loaded.answers.update(known)
            self._take_up(known)
        if known or not self.questions or self._answering or self.is_busy(self.root):
            self.consider_suspending()  # something has gone on while the store was looked at
            return
        self._suspending = True
        self._note_received()
        self.root.stop(Stop(StopKind.SUSPEND, "waits for answers", self.grace))
