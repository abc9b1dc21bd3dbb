"""Every error that Weft raises, in one tree.

    WeftError
    ├── DefinitionError          (ValueError)    a step or workflow was declared wrongly
    ├── UsageError               (RuntimeError)  a right object used in the wrong place
    │   ├── NotInRunError                        a step was called outside a run
    │   └── DirectCallError      (TypeError)     something that has verbs was called like a function
    ├── InputError               (ValueError)    a run was given an argument it cannot use
    ├── GraphError               (ValueError)    something about a graph
    │   ├── GraphCompileError    (DefinitionError) a graph that can never work as it is
    │   ├── MaxStepsError                        more nodes ran one after the other than it allows
    │   ├── StuckError                           joins wait for each other
    │   ├── ConflictError                        parallel branches wrote one key, where that is refused
    │   └── StateConflictError                   or changed the same of the state
    ├── ParallelExecutionError   (ExceptionGroup) branches of a block failed
    ├── NodeTimeoutError         (TimeoutError)  a call took longer than its timeout
    │   └── ParallelTimeoutError                 a block did
    ├── RetryAfter                               raised by a body that knows when to be tried again
    ├── RunCancelledError                        the run was cancelled before it had a result
    ├── AnswerError              (ValueError)    an answer fits no open question
    ├── ExecutorError                            a body that an executor runs elsewhere
    │   ├── UnsendableError      (TypeError)     what cannot be sent to another process, or back
    │   ├── WorkerDiedError                      the process of the body has died
    │   └── RemoteError                          the body raised what cannot be raised here
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

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from weft.core.question import Interrupt


class WeftError(Exception):
    """The base of every error that Weft raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args), self.__dict__


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


class ParallelTimeoutError(NodeTimeoutError):
    """A block took longer than the timeout it was given.

    Attributes:
        unfinished: The branches that had begun and not ended, by name or, in a ``map``, by number.
    """

    def __init__(
        self, step: str, *, timeout: float, elapsed: float, unfinished: Sequence[str | int] = ()
    ) -> None:
        super().__init__(step, timeout=timeout, elapsed=elapsed)
        self.unfinished = tuple(unfinished)
        if self.unfinished:
            self.args = (f"{self.args[0]}; unfinished: {_listed(self.unfinished)}",)


class GraphError(WeftError, ValueError):
    """A graph was put together wrongly, or something in it did what it may not."""


class GraphCompileError(GraphError, DefinitionError):
    """A graph that can never work as it is.

    Attributes:
        problems: What is wrong, a sentence each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(_as_one(problems))
        self.problems = problems


class MaxStepsError(GraphError):
    """More nodes ran one after the other than ``max_steps`` allows.

    Attributes:
        max_steps: The bound.
        loop: The nodes of the loop that it went round in; empty if there is none.
    """

    def __init__(self, max_steps: int, node: str, loop: Sequence[str]) -> None:
        where = f"{node!r} would be the next"
        if loop:
            where = f"{node!r} would be the next, in the loop {' -> '.join(map(repr, [*loop, loop[0]]))}"
        super().__init__(
            f"{max_steps} nodes have run one after the other and {where}: as many as max_steps={max_steps} allows; "
            "give Graph(max_steps=...) more if it is meant"
        )
        self.max_steps = max_steps
        self.loop = tuple(loop)


class StuckError(GraphError):
    """Joins of a graph wait for each other, and nothing else is under way.

    Attributes:
        waiting: What waits for what, a sentence each.
    """

    def __init__(self, waiting: Sequence[str]) -> None:
        super().__init__("the graph can make no progress: " + "; ".join(waiting))
        self.waiting = tuple(waiting)


class ConflictError(GraphError):
    """Two branches wrote one key under ``on_conflict="error"``.

    Attributes:
        key: The key.
        nodes: The nodes that wrote it, in the order in which their branches were completed.
    """

    def __init__(self, key: Any, nodes: tuple[str, str]) -> None:
        one, other = nodes
        super().__init__(
            f"parallel branches have both written {key!r}: one in node {one!r}, the other in {other!r}; write "
            f"different keys, combine them with reducers={{{key!r}: ...}}, or let the last one win with "
            'on_conflict="last"'
        )
        self.key = key
        self.nodes = nodes


class StateConflictError(GraphError):
    """Two branches changed the same of the state under ``on_conflict="error"``.

    Attributes:
        path: The keys that lead there.
        branches: What the branches are called, in the order in which they came.
    """

    def __init__(self, path: tuple[Any, ...], branches: tuple[str, str]) -> None:
        where = "".join(f"[{key!r}]" for key in path)
        one, other = branches
        super().__init__(
            f"parallel branches have both changed state{where}: one in {one}, the other in {other}; change different "
            f"keys, append to a list, combine them with state_reducers={{{path[0]!r}: ...}}, or let the last one win "
            'with on_state_conflict="last"'
        )
        self.path = path
        self.branches = branches


def _as_one(problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} things are wrong:" + "".join(f"\n- {problem}" for problem in problems)


class ParallelExecutionError(WeftError, ExceptionGroup[Exception]):
    """Branches of a block failed, and its policy does not tolerate that. Its cause is the error of :attr:`branch`.

    An ``ExceptionGroup``: ``except*``, ``split`` and ``subgroup`` work on what the branches raised.

    Attributes:
        branch: The branch that leads: the first in declared order of those that failed; its name or, in a ``map``,
            the number of its item.
        branches: All that failed, in declared order, as ``exceptions`` is.
        reason: Why the block could not go on.
    """

    branches: tuple[str | int, ...]
    reason: str

    def __new__(cls, block: str, failures: Mapping[Any, Exception], reason: str = "") -> Self:
        """The error of this block, made of what its branches raised, in declared order."""
        branch, error = next(iter(failures.items()))
        more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        why = f" ({reason})" if reason else ""
        made = super().__new__(
            cls,
            f"branch {branch!r} of {block!r} failed: {_described(error)}{more}{why}",
            list(failures.values()),
        )
        made.branches = tuple(failures)
        made.reason = reason
        made.__cause__ = error
        return made

    def __init__(self, *_args: Any) -> None:
        """Everything is done by ``__new__``, as in every ``ExceptionGroup``."""

    def __str__(self) -> str:
        return self.message

    @property
    def branch(self) -> str | int:
        """The branch that leads."""
        return self.branches[0]

    @property
    def failures(self) -> dict[str | int, Exception]:
        """What each branch raised that failed."""
        return dict(zip(self.branches, self.exceptions, strict=True))

    def __repr__(self) -> str:
        """Short, and not as deep as blocks may be in each other, which has ended the interpreter's stack."""
        return f"{type(self).__name__}({self.message!r}, [{len(self.exceptions)} failures])"

    def derive(self, excs: Sequence[Exception]) -> ParallelExecutionError:  # type: ignore[override]
        """The same error for some of the failures; used by ``except*`` and ``split``."""
        return _rebuilt(self.message, list(excs), [self._name_of(error) for error in excs], self.reason)

    def _name_of(self, error: BaseException) -> str | int:
        for name, mine in zip(self.branches, self.exceptions, strict=True):
            if mine is error or (
                isinstance(mine, BaseExceptionGroup)
                and isinstance(error, BaseExceptionGroup)
                and _leaves(error) <= _leaves(mine)  # a part of a nested group
            ):
                return name
        return self.branch

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            _rebuilt,
            (self.message, list(self.exceptions), list(self.branches), self.reason),
            self.__dict__,
        )


def _rebuilt(
    message: str, exceptions: list[Exception], branches: list[str | int], reason: str
) -> ParallelExecutionError:
    made = ExceptionGroup.__new__(ParallelExecutionError, message, exceptions)
    made.branches = tuple(branches)
    made.reason = reason
    made.__cause__ = made.exceptions[0]
    return made


def _leaves(group: BaseExceptionGroup[BaseException]) -> set[int]:
    found: set[int] = set()
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        else:
            found.add(id(error))
    return found


class RetryAfter(WeftError):  # noqa: N818 - it is named for what it asks
    """Raised by a body that knows when it is worth trying again; pauses everybody on the limits of its step.

    Attributes:
        retry_after: Seconds from now.
    """

    def __init__(self, retry_after: float, message: str = "") -> None:
        super().__init__(message or f"to be tried again in {retry_after:g} s")
        self.retry_after = retry_after


class RunCancelledError(WeftError):
    """The run was cancelled before it had a result."""


class AnswerError(WeftError, ValueError):
    """An answer was given that fits no open question of the run."""


class ExecutorError(WeftError):
    """Something about a body that an executor runs elsewhere."""


class UnsendableError(ExecutorError, TypeError):
    """A function, an argument or a result cannot be sent to another process.

    Attributes:
        where: The path to it, such as ``the argument client.session`` or ``the variable lock``.
    """

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message, where)
        self.where = where

    def __str__(self) -> str:
        return str(self.args[0])


class WorkerDiedError(ExecutorError):
    """The process in which the body ran has died: killed, out of memory, or by the body itself.

    Attributes:
        exitcode: As of :mod:`subprocess`: the signal, negative, or the code; None where nobody can know.
    """

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        super().__init__(message, exitcode)
        self.exitcode = exitcode

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteError(ExecutorError):
    """The body raised an error in another process that cannot be raised here; the message is what it said."""


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
    """The run is owned by a process that is still alive.

    Attributes:
        run_id: Which run.
        retry_after: Seconds from now after which the same store object can tell whether that owner has gone silent;
            None where waiting tells nothing.
    """

    run_id = ""
    retry_after: float | None = None


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


def _restored(cls: type[WeftError], args: tuple[Any, ...]) -> WeftError:
    """An error as it was pickled, whatever its class takes to make one."""
    made = cls.__new__(cls, *args)
    made.args = args
    return made


def _described(error: BaseException) -> str:
    while isinstance(error, ParallelExecutionError):
        error = error.exceptions[0]  # the one that leads: blocks in blocks would name each other without end
    try:
        text = str(error)
    except Exception:  # an error of a user's may refuse to be shown
        text = "<its text cannot be shown>"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _listed(names: Sequence[object], *, most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
