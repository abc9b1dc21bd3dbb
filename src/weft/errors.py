"""Every error that Weft raises, in one tree.

    WeftError
    ├── DefinitionError          (ValueError)    a step or workflow was declared wrongly
    ├── UsageError               (RuntimeError)  a right object used in the wrong place
    │   ├── NotInRunError                        a step was called outside a run
    │   └── DirectCallError      (TypeError)     something that has verbs was called like a function
    ├── InputError               (ValueError)    a run was given an argument it cannot use
    ├── NodeTimeoutError         (TimeoutError)  a call took longer than its timeout
    ├── RunCancelledError                        the run was cancelled before it had a result
    ├── AnswerError              (ValueError)    an answer fits no open question
    └── CheckpointError                          the journal
        ├── UnstorableError      (TypeError)     a value that cannot be recorded
        ├── CorruptDataError                     recorded bytes that no value was ever encoded to
        ├── StoreError                           the store failed: disk full, locked, gone
        ├── RunNotFoundError     (LookupError)   no such run
        ├── RunMismatchError                     a run id that belongs to another workflow or input
        ├── ReplayMismatchError                  the code asks for other calls than those recorded
        ├── RunBusyError                         the run has a living owner
        │   └── ThreadBusy                       another run of the thread has one
        └── OwnerLostError                       another owner took this run over

Signals that unwind a body without being its failure derive from ``BaseException``, so that no ``except
Exception`` of a user and no retry policy sees them:

    Unwind
    ├── Interrupted       the body asked a question that has no answer yet
    ├── Suspended         the body waits for such a call; the run is being put aside
    └── Stopped           nobody waits for the body any more: cancelled, or out of time
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.core.question import Interrupt


class WeftError(Exception):
    """The base of every error that Weft raises."""


class DefinitionError(WeftError, ValueError):
    """A step, block or workflow was declared in a way that can never work."""


class UsageError(WeftError, RuntimeError):
    """A right object was used in the wrong place, for example ``invoke`` inside an async body."""


class NotInRunError(UsageError):
    """A step was called where no run is going on."""


class DirectCallError(UsageError, TypeError):
    """Something that is run by its verbs was called like a function."""


class InputError(WeftError, ValueError):
    """A run was given an option or input that it cannot use."""


class NodeTimeoutError(WeftError, TimeoutError):
    """A call took longer than the timeout it was given.

    It is retried by the default policy when the body was async. A sync body that timed out may still be
    running (it is listed in ``Run.given_up``), so it is retried only by a policy that names
    ``TimeoutError``.

    Attributes:
        step: The name of the step.
        timeout: The limit, in seconds.
        elapsed: The time since the attempt began, in seconds.
        idle: Whether it was the limit without a sign of life.
        given_up: Whether a sync body was left running in its thread.
    """

    def __init__(
        self, step: str, *, timeout: float, elapsed: float, idle: bool = False, given_up: bool = False
    ) -> None:
        what = "gave no sign of life for its idle timeout" if idle else "took longer than its timeout"
        left = "; its thread could not be stopped and was given up" if given_up else ""
        super().__init__(f"{step!r} {what} of {timeout:g} s{left}")
        self.step = step
        self.timeout = timeout
        self.elapsed = elapsed
        self.idle = idle
        self.given_up = given_up


class RunCancelledError(WeftError):
    """The run was cancelled before it had a result."""


class AnswerError(WeftError, ValueError):
    """An answer was given that fits no open question of the run."""


class CheckpointError(WeftError):
    """Something about the journal of a run."""


class UnstorableError(CheckpointError, TypeError):
    """A value cannot be recorded; raised where it was returned, with the path to it.

    Attributes:
        path: Where in the value, for example ``result['items'][3].client``.
        reason: What is wrong there, and what to do.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class CorruptDataError(CheckpointError):
    """Recorded bytes that no value was ever encoded to, or a type that this program does not know."""


class StoreError(CheckpointError):
    """The store could not read or write: disk full, locked for too long, read-only, gone."""


class RunNotFoundError(CheckpointError, LookupError):
    """The store has no run of that id."""


class RunMismatchError(CheckpointError):
    """A ``run_id`` that was recorded for another workflow or another input."""


class ReplayMismatchError(CheckpointError):
    """On resume the code asked for another call than the recorded one, under ``on_mismatch="error"``."""


class RunBusyError(CheckpointError):
    """The run is owned by a process that is still alive."""


class ThreadBusy(RunBusyError):  # noqa: N818 - the design names it so
    """Another run of the same thread is still going on."""


class OwnerLostError(CheckpointError):
    """Another owner has taken this run over; nothing more is recorded by this one."""


class Unwind(BaseException):
    """Leaves a body without being its failure."""


class Interrupted(Unwind):
    """The body asked a question that has no answer yet."""

    def __init__(self, interrupt: Interrupt, number: int) -> None:
        super().__init__(interrupt)
        self.interrupt = interrupt
        self.number = number  # of the questions of its body


class Suspended(Unwind):
    """The run is being put aside until a question is answered."""


class Stopped(Unwind):
    """Nobody waits for this body any more: it was cancelled, or is out of time."""
