"""What a checkpointer is: the protocol, and the rows that cross it.

A checkpointer keeps the journals of runs. The protocol is small and synchronous: the engine calls
:meth:`Checkpointer.commit` and :meth:`Checkpointer.open_many` from one writer thread with everything that waits at
that moment, so that a store is one short class. Reads may come from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from msgspec import Struct

from weft.core.status import RunStatus
from weft.errors import CheckpointError

if TYPE_CHECKING:
    from weft.checkpoint.codec import Codec


# What crosses the protocol are structs of msgspec's: they are made for each call, at a tenth of what frozen dataclasses
# cost.


class RecordKind(Enum):
    """What a line of a journal says."""

    __hash__ = object.__hash__  # that of Enum is written in Python, and each record is looked up by its kind

    OK = "ok"  # a call returned; value: what
    FAILED = "failed"  # a call raised; value: the error
    TIMED_OUT = "timed_out"  # a call was out of time; value: the error
    WENT_ON = "went_on"  # the failure of this identity was received, and its parent went on from it
    RETRY = "retry"  # the failure of this identity is not to be replayed
    QUESTION = "question"  # a body asked; value: the question
    ANSWER = "answer"  # somebody answered; value: the answer
    WITHDRAWN = "withdrawn"  # nobody need answer this question any more
    NOTED = "noted"  # something is so, from which a conductor goes on, in this order; value: what
    KEPT = "kept"  # what a run remembers under the name in `step`, of which the last counts; value: what


class Record(Struct, frozen=True, gc=False):
    """One line of a journal. ``identity`` is 16 bytes; ``parent`` is b"" for the run's own body."""

    kind: RecordKind
    identity: bytes
    parent: bytes = b""
    ordinal: int = 0
    step: str = ""
    value: bytes = b""
    attempts: int = 1
    started: float = 0.0  # seconds since the epoch
    ended: float = 0.0
    batch: int = 0  # which commit of the run made it visible; given by the journal
    asked: float = 0.0  # when the call was asked for, in seconds since the epoch
    limits: tuple[str, ...] = ()  # that it had to wait for, by name; a NUL in a name may part it in two


class RunRow(Struct, frozen=True):
    """What a store knows of a run."""

    run_id: str
    workflow: str
    status: RunStatus
    thread_id: str | None = None
    input: bytes = b""
    output: bytes | None = None
    error: bytes | None = None
    created: float = 0.0  # seconds since the epoch
    updated: float = 0.0
    fence: int = 0  # grows with every owner
    batches: int = 0  # the last batch committed


class Change(Struct, frozen=True):
    """What becomes of a run itself in a commit. A status other than RUNNING ends its ownership."""

    status: RunStatus
    output: bytes | None = None
    error: bytes | None = None
    saved: bytes | None = None  # the thread's next `previous`


class Write(Struct, frozen=True):
    """What one run adds in one commit; refused as a whole when ``fence`` is no longer the run's."""

    run_id: str
    fence: int
    records: Sequence[Record] = ()
    change: Change | None = None


class ThreadState(Struct, frozen=True):
    """A saved value of a thread: what the next run sees as ``previous``."""

    thread_id: str
    number: int  # grows within the thread
    value: bytes
    created: float
    run_id: str | None = None  # None: by update_state


class OpenRun(Struct, frozen=True):
    """A request to own a run. ``input`` None asks for a run that exists."""

    run_id: str
    workflow: str
    thread_id: str | None = None
    input: bytes | None = None
    created: float = 0.0


@runtime_checkable
class Checkpointer(Protocol):
    """Keeps the journals of runs. Every method may raise :class:`weft.StoreError`.

    A store whose commits are brief may have another method, ``commit_at_once(writes)``: as :meth:`commit`, but where it
    would have to wait for others that are writing, it does nothing and returns None. It is called on the loop of a
    run, where that has nothing else to do.
    """

    codec: Codec
    instant: bool  # a commit takes no time worth a thread of its own
    lease: float  # seconds of silence after which others take over what this object has open; see `beat`

    def open_many(self, requests: Sequence[OpenRun]) -> list[RunRow | CheckpointError]:
        """Open runs in one transaction, with the same result as one after the other: for each its row, or an error.

        A run is created, or taken over from nobody or a dead owner, with a higher ``fence``. A FINISHED run is
        returned as it is, without an owner. Who gets an error owns nothing, and nothing changed; the others have
        what they asked for. The row is that from before the call, but for ``fence`` and ``status``, so that the
        caller can compare workflow and input. What is opened is durable when this returns. When it raises, nobody
        owns anything.

        Returns:
            In the order of the requests a row or one of these errors:

            - RunBusyError: Its owner is alive, or nobody can tell yet. Its ``retry_after`` is the number of seconds
              after which another call of this object can tell whether that owner has gone silent; None when
              waiting tells nothing, as it is this very object that has the run open.
            - ThreadBusy: Another run of the thread has such an owner.
            - RunNotFoundError: There is no such run and ``request.input`` is None.
            - RunMismatchError: The run was recorded for another workflow, thread or input.
            - CorruptDataError: What is stored of it is damaged.
        """
        ...

    def open(self, request: OpenRun) -> RunRow:
        """The same for one run, whose error is raised.

        Where a store needs a moment to notice that an owner has died, this waits for that; `open_many` never does.
        A store that derives from this class has it.
        """
        (found,) = self.open_many([request])
        if isinstance(found, CheckpointError):
            raise found
        return found

    def commit(self, writes: Sequence[Write]) -> set[str]:
        """Make all writes durable in one transaction; the ids of runs whose fence was refused."""
        ...

    def beat(self) -> None:
        """Say that the owner of what this object has open is alive; cheap, and nothing when nothing is open.

        It is called at least every ``lease / 4`` seconds by the one who has runs open. Others take a run over when
        its owner has ended, at once, or when it has not beaten for its ``lease`` by their own monotonic clock. A
        commit may count as a beat. An ``instant`` store need do nothing.
        """
        ...

    def release(self, run_id: str, fence: int) -> None:
        """Own the run no longer, without saying how it ended; done by an owner that cannot go on.

        Also when it raises: in this process the run is then free, and for others when this owner ends.
        """
        ...

    def records(self, run_id: str, *, after: int = 0, limit: int = 1000) -> list[tuple[int, Record]]:
        """A page of the journal in the order of writing, each with its position; after a position."""
        ...

    def find(self, run_id: str) -> RunRow | None:
        """The run, if there is one."""
        ...

    def runs(self, *, thread_id: str | None = None, limit: int = 100) -> list[RunRow]:
        """The newest runs first."""
        ...

    def states(self, thread_id: str, *, limit: int = 100) -> list[ThreadState]:
        """The saved values of a thread, the newest first."""
        ...

    def save_state(self, thread_id: str, value: bytes, *, created: float) -> None:
        """Add a saved value to a thread that no living owner runs."""
        ...

    def add_answers(self, run_id: str, answers: Sequence[Record]) -> None:
        """Add answers to a run whoever owns it."""
        ...

    def delete_run(self, run_id: str) -> bool:
        """Forget a run that no living owner runs; whether there was one."""
        ...

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread with its runs and saved values."""
        ...

    def vacuum(self) -> None:
        """Give back the room of what was deleted, as far as the store can; nothing else changes."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def all_records(store: Checkpointer, run_id: str) -> Iterator[Record]:
    """The whole journal of a run, read page by page."""
    position = 0
    while page := store.records(run_id, after=position):
        for position, record in page:  # noqa: B007 - the last position is where the next page begins
            yield record


def usual_codec() -> Codec:
    """The codec of a store that was given none."""
    from weft.checkpoint.codec import Codec  # noqa: PLC0415 - it takes long, and what only imports a store has none

    return Codec()
