"""Runs a workflow for a command, and knows how that ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from weft.checkpoint.base import Checkpointer
from weft.cli.endings import Code, Refusal, code_of
from weft.engine.drive import run_here
from weft.engine.events import Event, Observer, RunStarted
from weft.engine.options import RunOptions
from weft.engine.where import leave_out_how_to_go_on
from weft.errors import OwnerLostError, RunBusyError, StoreError, WeftError
from weft.history import QuestionInfo, Runs
from weft.observe.progress import Progress
from weft.runnable import Runnable

#: Seconds between two attempts to have a run, at least.
_ASK_AGAIN = 0.2


@dataclass(frozen=True)
class Ending:
    """How a run ended, or was put aside."""

    run_id: str
    status: str
    code: Code
    value: Any = None
    error: BaseException | None = None
    questions: list[QuestionInfo] = field(default_factory=list)
    is_recorded: bool = False  # it had ended before, and nothing was run


def execute(
    workflow: Runnable,
    input: Any,
    store: Checkpointer,
    options: Mapping[str, Any],
    *,
    quiet: bool,
    wait: float = 0.0,
) -> Ending:
    """Run to the end. While somebody else owns the run, ask again for ``wait`` seconds.

    Raises:
        Refusal: The run could not begin.
    """
    parsed = RunOptions.of(None, {**options, "checkpointer": store})
    run_id = parsed.run_id or ""
    has_begun = _HasBegun()
    observers: list[Observer] = [has_begun]
    try:
        with ExitStack() as shown:
            if not quiet:
                observers.append(shown.enter_context(Progress()))
            value = _asked_again(
                lambda: run_here(workflow, input, parsed, observers), has_begun, seconds=wait
            )
    except KeyboardInterrupt as error:
        return Ending(run_id, "cancelled", Code.INTERRUPTED, error=error)
    except (StoreError, OwnerLostError) as error:
        raise Refusal(str(error), code_of(error)) from error
    except BaseException as error:  # whatever a body raises is how the run ended
        if isinstance(error, WeftError) and not has_begun.yes:
            raise Refusal(str(error), code_of(error)) from error
        leave_out_how_to_go_on(error)  # the command says it, as a command
        return Ending(run_id, _status(store, run_id), Code.FAILED, error=error)
    questions = _questions(store, run_id)
    if questions is not None:
        return Ending(run_id, "suspended", Code.SUSPENDED, questions=questions)
    return Ending(run_id, "finished", Code.FINISHED, value, is_recorded=not has_begun.yes)


def _asked_again(run: Callable[[], Any], has_begun: _HasBegun, *, seconds: float) -> Any:
    """Run, waiting for another owner to end, or to be silent for so long that it is taken for dead.

    It is one store object that has to ask again: how long an owner is silent, each of them measures by itself.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return run()
        except RunBusyError as error:
            left = deadline - time.monotonic()
            if has_begun.yes or left <= 0:
                raise
            time.sleep(min(left, max(error.retry_after or 0.0, _ASK_AGAIN)))


class _HasBegun:
    """An observer that knows whether what was raised came before the run or of it."""

    yes = False

    def __call__(self, event: Event) -> None:
        self.yes = self.yes or isinstance(event, RunStarted)


def _status(store: Checkpointer, run_id: str) -> str:
    with suppress(WeftError):  # what the run raised says more
        row = store.find(run_id)
        if row is not None:
            return row.status.value
    return "failed"


def _questions(store: Checkpointer, run_id: str) -> list[QuestionInfo] | None:
    """The open questions of a run that was put aside; None of one that was not."""
    info = Runs(store).show(run_id)
    return info.questions if info.status == "suspended" else None
