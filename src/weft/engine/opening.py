"""Finding, claiming and reading the journal of a run that begins, or begins again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from weft.checkpoint.base import Checkpointer, OpenRun, RecordKind, RunRow, all_records
from weft.core.outcome import Composed
from weft.core.question import Command, match_answers
from weft.core.status import RunStatus
from weft.engine.journal import Opening, journal_of
from weft.engine.recorder import Loaded, answer_record, load_run
from weft.engine.threads import in_thread
from weft.errors import InputError, RunBusyError, RunMismatchError, RunNotFoundError, UnstorableError

if TYPE_CHECKING:
    from weft.engine.execution import Execution

T = TypeVar("T")


@dataclass
class Opened:
    """A run that this process may go on with, or the output of one that is finished."""

    row: RunRow
    loaded: Loaded = field(default_factory=Loaded)
    input: Any = None
    output: Any = None
    previous: Any = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.row.status is RunStatus.FINISHED

    @property
    def resumed(self) -> bool:
        """Whether somebody owned the run before."""
        return self.row.fence > 1


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked for: a run, and what to go on with once it is there."""

    request: OpenRun
    input: Any = None
    answers: dict[str, Any] = field(default_factory=dict)
    may_adopt: bool = False  # if the run is there with another input, that one is to be asked for

    @property
    def resumes(self) -> bool:
        """Whether the input is to be the recorded one."""
        return self.request.input is None


def open_run(run: Execution) -> None:
    """Own the run that the options and the input name; the run is told when that is done.

    It is :meth:`~weft.engine.execution.Execution.opened`, or
    :meth:`~weft.engine.execution.Execution.not_opened` with one of these errors:

    - CheckpointError: It cannot be had; see :meth:`weft.checkpoint.base.Checkpointer.open_many`.
    - AnswerError: The input answers no open question.
    - InputError: There is nothing to go on with.
    """
    store = run.options.checkpointer
    assert store is not None
    try:
        workflow = run.workflow
        store.codec.register_hints_of(workflow.functions, owner=workflow.owner_of_functions())
        if run.input is None or isinstance(run.input, Command):
            _in_a_task(run, _look_up_and_claim(run, store))
        else:
            _begin(run, store)
    except Exception as error:
        run.not_opened(error)


def _begin(run: Execution, store: Checkpointer) -> None:
    may_adopt = run.workflow.adopts_input and run.options.run_id is not None
    try:
        _claim(run, store, _to_begin(run, store, run.input, may_adopt=may_adopt))
    except (RunMismatchError, UnstorableError):
        if not may_adopt:
            raise
        _in_a_task(run, _look_up_and_claim(run, store))  # what an earlier life has left there may be anything


def _in_a_task(
    run: Execution, coroutine: Coroutine[Any, Any, None], unwanted: Callable[[], None] = lambda: None
) -> None:
    """Go on in a task; if that is cancelled before it has even begun, as at the end of a loop, the run ends so."""

    def ended(task: asyncio.Task[None]) -> None:
        if task.cancelled():  # what has begun says itself what has become of it
            run.not_opened(asyncio.CancelledError())
            unwanted()

    run.spawn(coroutine).add_done_callback(ended)


async def _look_up_and_claim(run: Execution, store: Checkpointer) -> None:
    try:
        _claim(run, store, await _off_the_loop(run, store, lambda: _wanted(run, store)))
    except (Exception, asyncio.CancelledError) as error:  # cancelled when the loop is being closed
        run.not_opened(error)


def _claim(run: Execution, store: Checkpointer, wanted: _Wanted) -> None:
    """Have the store open the run, by the journal with all others that are to be; no task waits for that."""
    claimed = partial(_claimed, run, store, wanted)
    if store.instant or run.clock.is_virtual:
        claimed(store.open(wanted.request), None)
    else:
        journal_of(store).open(
            Opening(
                store,
                wanted.request,
                run.loop,
                claimed,
                unwanted=partial(_let_go, store),
                is_wanted=lambda: run.outcome is None,
            )
        )


def _claimed(
    run: Execution, store: Checkpointer, wanted: _Wanted, row: RunRow | None, error: Exception | None
) -> None:
    if row is None:
        assert error is not None
        if run.outcome is not None:
            return
        if isinstance(error, RunBusyError) and error.retry_after is not None:
            _in_a_task(run, _claim_patiently(run, store, wanted))
        elif isinstance(error, RunMismatchError) and wanted.may_adopt:
            _in_a_task(run, _look_up_and_claim(run, store))
        else:
            run.not_opened(error)
    elif run.outcome is not None:  # it was not waited for
        _let_go(store, row)
    elif row.fence == 1 and row.status is RunStatus.RUNNING and row.thread_id is None:
        _go_on(run, store, Opened(row, input=wanted.input))  # there is nothing to be read
    else:
        _in_a_task(run, _read_and_go_on(run, store, wanted, row), unwanted=partial(_let_go, store, row))


async def _claim_patiently(run: Execution, store: Checkpointer, wanted: _Wanted) -> None:
    """The store may need a moment to notice that the owner has died, in which the others are not to wait."""
    try:
        row = await in_thread(
            lambda: store.open(wanted.request), loop=run.loop, unwanted=lambda row: _let_go(store, row)
        )
    except (Exception, asyncio.CancelledError) as error:
        run.not_opened(error)
    else:
        _claimed(run, store, wanted, row, None)


async def _read_and_go_on(run: Execution, store: Checkpointer, wanted: _Wanted, row: RunRow) -> None:
    try:
        opened = await _read_off_the_loop(run, store, wanted, row)
    except (Exception, asyncio.CancelledError) as error:
        run.not_opened(error)
    else:
        _go_on(run, store, opened)


def _go_on(run: Execution, store: Checkpointer, opened: Opened) -> None:
    if run.outcome is not None:  # it was not waited for
        _let_go(store, opened.row)
        return
    try:
        run.opened(opened)
    except Exception as broken:
        is_ours = run.recorder is None
        run.not_started(broken)
        if is_ours:
            _let_go(store, opened.row)


async def _read_off_the_loop(run: Execution, store: Checkpointer, wanted: _Wanted, row: RunRow) -> Opened:
    try:
        return await _off_the_loop(
            run, store, lambda: _read(run, store, wanted, row), unwanted=lambda it: _let_go(store, it.row)
        )
    except RuntimeError:  # there is no thread to be had, perhaps
        _let_go(store, row)
        raise


async def new_answers(run: Execution) -> dict[str, Any]:
    """Answers that somebody else has put into the store, by question id, as they are recorded."""
    store = run.options.checkpointer
    recorder = run.recorder
    assert store is not None
    assert recorder is not None
    known = recorder.loaded.answers

    def read() -> dict[str, Any]:
        records = all_records(store, run.id)
        return {r.step: r.value for r in records if r.kind is RecordKind.ANSWER and r.step not in known}

    return await _off_the_loop(run, store, read)


def _let_go(store: Checkpointer, row: RunRow) -> None:
    """The run was opened for a caller that is gone."""
    if row.status is RunStatus.RUNNING:
        store.release(row.run_id, row.fence)


async def _off_the_loop(
    run: Execution, store: Checkpointer, work: Callable[[], T], unwanted: Callable[[T], None] | None = None
) -> T:
    return work() if store.instant else await in_thread(work, loop=run.loop, unwanted=unwanted)


def _wanted(run: Execution, store: Checkpointer) -> _Wanted:
    value = run.input
    if value is None or isinstance(value, Command):
        return _to_go_on_with(run, store, value)
    run_id = run.options.run_id
    assert run_id is not None  # else there is nothing to adopt
    row = store.find(run_id)
    if row is None or row.workflow != run.workflow.step.name:
        return _to_begin(run, store, value)
    return _to_begin(run, store, value, recorded=row.input)


def _to_go_on_with(run: Execution, store: Checkpointer, value: Command | None) -> _Wanted:
    run_id = run.options.run_id or _last_run(store, run.options.thread_id)
    answers = _answers(store, run_id, value) if value is not None and value.resume is not None else {}
    return _Wanted(OpenRun(run_id, run.workflow.step.name, run.options.thread_id, None), value, answers)


def _to_begin(
    run: Execution, store: Checkpointer, value: Any, *, recorded: bytes | None = None, may_adopt: bool = False
) -> _Wanted:
    workflow = run.workflow
    kept = workflow.recorded_input(value) if recorded is None else _adopt(run, store, value, recorded)
    data = store.codec.encode(kept, root="input")
    run_id = run.options.run_id or run.clock.new_id()
    request = OpenRun(run_id, workflow.step.name, run.options.thread_id, data, run.clock.wall())
    return _Wanted(request, value, may_adopt=may_adopt)


def _adopt(run: Execution, store: Checkpointer, value: Any, recorded: bytes) -> Any:
    return run.workflow.adopt(value, store.codec.decode(recorded))


def _read(run: Execution, store: Checkpointer, wanted: _Wanted, row: RunRow) -> Opened:
    """What is recorded of a run that is there."""
    if row.status is RunStatus.FINISHED:
        if wanted.may_adopt:
            _adopt(run, store, wanted.input, row.input)
        return Opened(row, input=wanted.input, output=_output(run, store, row))
    try:
        if wanted.may_adopt and row.fence > 1:
            _adopt(run, store, wanted.input, row.input)
        if wanted.answers:
            encoded = {key: store.codec.encode(v, root="answer") for key, v in wanted.answers.items()}
            store.add_answers(row.run_id, [answer_record(key, data) for key, data in encoded.items()])
        loaded = load_run(store, row.run_id, run.options.retry) if row.fence > 1 else Loaded()
        value = store.codec.decode(row.input) if wanted.resumes else wanted.input
        return Opened(row, loaded, value, previous=_previous(store, row))
    except BaseException:
        store.release(row.run_id, row.fence)
        raise


def _output(run: Execution, store: Checkpointer, row: RunRow) -> Any:
    step = run.workflow.step
    output = store.codec.decode(row.output) if row.output is not None else None
    if isinstance(output, Composed):
        if output.shape != step.shape:
            raise RunMismatchError(
                f"run {row.run_id!r} was finished by another {step.name!r}: its parts have changed since; "
                "begin a new run with another run_id"
            )
        if step.recall is not None:
            step.recall(output.aside)
        output = output.value
    return run.workflow.recorded_output(output, store, row.run_id)


def _last_run(store: Checkpointer, thread_id: str | None) -> str:
    assert thread_id is not None  # the options have seen to that
    rows = store.runs(thread_id=thread_id, limit=1)
    if not rows:
        raise InputError(
            f"thread {thread_id!r} has no run to go on with: None and Command(resume=...) go on with one; "
            "pass an input to begin"
        )
    return rows[0].run_id


def _answers(store: Checkpointer, run_id: str, command: Command) -> dict[str, Any]:
    row = store.find(run_id)
    if row is None:
        raise RunNotFoundError(f"there is no run {run_id!r} to answer")
    if row.status is RunStatus.FINISHED:
        return {}
    return match_answers(command.resume, load_run(store, run_id).open_questions)


def _previous(store: Checkpointer, row: RunRow) -> Any:
    """What the thread had saved when the run began; one that is resumed sees that, whatever was saved since."""
    if row.thread_id is None:
        return None
    if row.fence == 1:
        states = store.states(row.thread_id, limit=1)
    else:
        states = [state for state in store.states(row.thread_id) if state.created <= row.created]
    return store.codec.decode(states[0].value) if states else None
