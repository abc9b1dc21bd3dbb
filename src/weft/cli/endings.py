"""How a command can end: exit codes, and refusals in one sentence."""

from __future__ import annotations

from enum import IntEnum

from weft.errors import (
    AnswerError,
    CheckpointError,
    OwnerLostError,
    RunBusyError,
    RunMismatchError,
    RunNotFoundError,
    UnstorableError,
    WeftError,
)


class Code(IntEnum):
    """Exit codes."""

    FINISHED = 0
    FAILED = 1
    USAGE = 2  # click's own, too
    SUSPENDED = 3
    BUSY = 4
    STORE = 5
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it


EXIT_CODES = """\b
Exit codes:
  0    finished
  1    the run failed
  2    wrong usage: an option, a target, an input, an id or a file
  3    suspended: the run waits for answers
  4    busy: another process owns the run
  5    the store could not be read or written
  130  interrupted with Ctrl-C"""


class Refusal(Exception):  # noqa: N818 - nothing is broken, the command is told what it cannot have
    """A command that cannot be done; one sentence says why."""

    def __init__(self, message: str, code: Code = Code.USAGE) -> None:
        super().__init__(message)
        self.code = code


_NOT_THE_STORE = (AnswerError, RunMismatchError, RunNotFoundError, UnstorableError)


def code_of(error: WeftError) -> Code:
    """The exit code for an error that came before the run, or instead of it."""
    if isinstance(error, RunBusyError | OwnerLostError):
        return Code.BUSY
    if isinstance(error, CheckpointError) and not isinstance(error, _NOT_THE_STORE):
        return Code.STORE
    return Code.USAGE
