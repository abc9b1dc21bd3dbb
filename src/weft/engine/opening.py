"""Finding, claiming and reading the journal of a run that begins, or begins again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from weft.checkpoint.base import Checkpointer, OpenRun, RecordKind, RunRow, RunStatus, all_records
from weft.core.outcome import Composed
from weft.core.question import Command, match_answers
from weft.engine.recorder import Loaded, answer_record, load_run
from weft.engine.threads import in_thread
from weft.errors import InputError, RunMismatchError, RunNotFoundError

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


async def open_run(run: Execution) -> Opened:
    """Own the run that the options and the input name.

    Raises:
        CheckpointError: It cannot be had; see :meth:`weft.checkpoint.base.Checkpointer.open`.
        AnswerError: The input answers no open question.
        InputError: There is nothing to go on with.
    """
    store = run.options.checkpointer
    assert store is not None
    opened = await _off_the_loop(
        run, store, lambda: _open(run, store), unwanted=lambda it: _let_go(store, it)
    )
    run.input = opened.input
    return opened


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


def _let_go(store: Checkpointer, opened: Opened) -> None:
    """The run was opened for a caller that is gone, with its loop."""
    if not opened.is_finished:
        store.release(opened.row.run_id, opened.row.fence)


async def _off_the_loop(
    run: Execution, store: Checkpointer, work: Callable[[], T], unwanted: Callable[[T], None] | None = None
) -> T:
    return work() if store.instant else await in_thread(work, loop=run.loop, unwanted=unwanted)


def _open(run: Execution, store: Checkpointer) -> Opened:
    value, workflow = run.input, run.workflow
    for fn in workflow.functions():
        store.codec.register_hints(fn)
    resuming = value is None or isinstance(value, Command)
    answers: dict[str, Any] = {}
    if resuming:
        run_id = run.options.run_id or _last_run(store, run.options.thread_id)
        if isinstance(value, Command) and value.resume is not None:
            answers = _answers(store, run_id, value)
        request = OpenRun(run_id, workflow.step.name, run.options.thread_id, None)
    else:
        data = store.codec.encode(workflow.recorded_input(value), root="input")
        run_id = run.options.run_id or run.clock.new_id()
        request = OpenRun(run_id, workflow.step.name, run.options.thread_id, data, run.clock.wall())
    row = store.open(request)
    if row.status is RunStatus.FINISHED:
        output = store.codec.decode(row.output) if row.output is not None else None
        if isinstance(output, Composed):
            if output.shape != workflow.step.shape:
                raise RunMismatchError(
                    f"run {run_id!r} was finished by another {workflow.step.name!r}: its parts have changed since; "
                    "begin a new run with another run_id"
                )
            if workflow.step.recall is not None:
                workflow.step.recall(output.aside)
            output = output.value
        return Opened(row, input=value, output=workflow.recorded_output(output, store, run_id))
    try:
        if answers:
            records = [answer_record(key, store.codec.encode(v, root="answer")) for key, v in answers.items()]
            store.add_answers(run_id, records)
        loaded = load_run(store, run_id, run.options.retry) if row.fence > 1 else Loaded()
        if resuming:
            value = store.codec.decode(row.input)
        return Opened(row, loaded, value, previous=_previous(store, row))
    except BaseException:
        store.release(run_id, row.fence)
        raise


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
    if row.thread_id is None:
        return None
    for state in store.states(row.thread_id):
        # A run that is resumed sees what it saw at first, whatever the thread has saved since.
        if row.fence == 1 or state.created <= row.created:
            return store.codec.decode(state.value)
    return None
