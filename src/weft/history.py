"""What a store holds: list runs, look into one, go on with it, answer its questions, delete it."""

from __future__ import annotations

import builtins
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any

from weft.checkpoint.base import Checkpointer, Record, RecordKind, RunRow, all_records
from weft.checkpoint.codec import Codec
from weft.checkpoint.keep import ENDED, Keep, is_too_old
from weft.checkpoint.wire import tag_of
from weft.core.identity import question_id, root_identity
from weft.core.outcome import Composed
from weft.core.status import RunStatus
from weft.engine.options import as_checkpointer
from weft.engine.recorder import OUTCOMES, answer_record
from weft.errors import AnswerError, InputError, RunBusyError, RunNotFoundError

if TYPE_CHECKING:
    from weft.observe.timeline import Timeline
    from weft.resume_plan import ResumePlan
    from weft.runnable import Runnable

_MOST_COMPARED = 1000  # the newest runs, among which the ids closest to a wrong one are looked for


@dataclass(frozen=True, slots=True)
class CallInfo:
    """A recorded call.

    Attributes:
        step: The name of its step.
        id: Its identity; ``weft.call_id()`` in its body is ``"<run id>:<id>"``.
        parent: The id of the call that asked for it; "" for the run's own body.
        outcome: "ok", "failed" or "timed_out".
        attempts: How many attempts there were.
        asked: When it began to wait for its limits, or else its first attempt; None if it is not known.
        limits: The limits that it had to wait for.
        started: When the last attempt began; None if it is not known.
        ended: When the outcome was recorded.
        value: What it returned, as plain data (see :meth:`weft.Codec.describe`).
        error: How it failed, as ``"ValueError: what was wrong"``; None unless it did.
    """

    step: str
    id: str
    parent: str
    outcome: str
    attempts: int
    started: datetime | None
    ended: datetime | None
    value: Any = None
    error: str | None = None
    asked: datetime | None = None
    limits: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """How long the last attempt took."""
        if self.started is None or self.ended is None:
            return None
        return (self.ended - self.started).total_seconds()


@dataclass(frozen=True, slots=True)
class QuestionInfo:
    """An open question.

    Attributes:
        id: By which it is answered.
        step: The step that asked.
        value: What was asked, as plain data.
        asked: When.
    """

    id: str
    step: str
    value: Any
    asked: datetime | None


@dataclass(frozen=True)
class RunInfo:
    """A run, as it was when it was looked at. Its calls and questions are read when they are first used.

    Attributes:
        id: The run.
        workflow: The name of its workflow.
        status: "running" (or its process died), "suspended", "finished", "failed" or "cancelled".
        thread_id: Its thread.
        created: When it began.
        updated: When something was last recorded.
        error: Why it failed, as ``"ValueError: what was wrong"``.
    """

    id: str
    workflow: str
    status: str
    thread_id: str | None
    created: datetime
    updated: datetime
    error: str | None = None
    _row: RunRow = field(repr=False, compare=False, kw_only=True)
    _store: Checkpointer = field(repr=False, compare=False, kw_only=True)

    @property
    def input(self) -> Any:
        """What the run was given, as plain data."""
        return self._store.codec.describe(self._row.input)

    @property
    def output(self) -> Any:
        """What a finished run returned, as plain data; None for others."""
        return None if self._row.output is None else _described(self._store.codec.describe(self._row.output))

    @property
    def calls(self) -> builtins.list[CallInfo]:
        """The recorded calls, in the order in which they were recorded; of each its last outcome."""
        return self._journal[0]

    @property
    def questions(self) -> builtins.list[QuestionInfo]:
        """The questions that nobody has answered."""
        return self._journal[1]

    def timeline(self) -> Timeline:
        """What happened when, what decided when the run ended, and what limits cost.

        A journal has only calls that ended; :meth:`weft.Run.timeline` has those too that go on.
        """
        from weft.observe.timeline import Timeline  # noqa: PLC0415 - only who looks at it needs it

        return Timeline.of_calls(
            self.calls,
            run_id=self.id,
            workflow=self.workflow,
            status=self.status,
            created=self.created,
            updated=self.updated,
        )

    @cached_property
    def _journal(self) -> tuple[builtins.list[CallInfo], builtins.list[QuestionInfo]]:
        return _read(all_records(self._store, self.id), self._row, self._store.codec)


class Runs:
    """The runs of a store; made by :func:`runs`. To iterate gives all of them, the newest first."""

    def __init__(self, store: Checkpointer) -> None:
        self.store = store

    def __repr__(self) -> str:
        return f"<weft.Runs of {self.store!r}>"

    def __iter__(self) -> Iterator[RunInfo]:
        return iter(self.list(limit=None))

    def list(
        self, *, thread_id: str | None = None, status: str | RunStatus | None = None, limit: int | None = 100
    ) -> builtins.list[RunInfo]:
        """The newest runs first.

        Args:
            thread_id: Only those of this thread.
            status: Only those that stand so: "running", "suspended", "finished", "failed" or "cancelled".
            limit: At most so many; None for all.

        Raises:
            InputError: There is no such status.
        """
        wanted = None if status is None else _status(status)
        most = sys.maxsize if limit is None else limit
        rows = self._newest(thread_id, wanted, most)
        return [_info(row, self.store) for row in rows[:most]]

    def show(self, run_id: str) -> RunInfo:
        """A run with its recorded calls and its open questions.

        Raises:
            RunNotFoundError: There is none; the message names the closest ids.
        """
        info = _info(self._find(run_id), self.store)
        assert info._journal is not None  # read now: what is shown is of one moment
        return info

    def follow(
        self, run_id: str, *, last: int | None = None, every: float = 0.5
    ) -> Iterator[CallInfo | QuestionInfo]:
        """What a run records, while it does, whoever runs it: its calls as they end, and its questions.

        It ends when the run has, or is put aside. A run whose process has died goes on for ever here, until somebody
        resumes it to its end.

        Args:
            run_id: The run.
            last: So many of those that are there already, the last ones; all unless told.
            every: Seconds between two looks.

        Raises:
            RunNotFoundError: There is none, or it was deleted meanwhile.
        """
        row = self._find(run_id)
        position, left_out = 0, last
        while True:
            is_over = row.status is not RunStatus.RUNNING  # looked at before what it had recorded until then
            position, found = _told(self.store, row, position)
            yield from found if left_out is None else found[len(found) - min(left_out, len(found)) :]
            left_out = None
            if is_over:
                return
            time.sleep(every)
            row = self._find(run_id)

    def resume(self, run_id: str, workflow: Runnable, **options: Any) -> Any:
        """Go on with a run, and return its result; see :meth:`weft.Runnable.invoke`.

        With ``retry="failed"`` the failures that the workflow went on from are tried again too; with a function, those
        of which it says so (it is given a :class:`weft.FailedCall`). Without, a resume replays them.

        Raises:
            RunNotFoundError: There is none; the message names the closest ids.
            RunBusyError: Somebody else runs it.
            RunMismatchError: It was recorded for another workflow.
        """
        self._find(run_id)
        return workflow.invoke(None, run_id=run_id, checkpointer=self.store, **options)

    def plan(self, run_id: str, workflow: Runnable) -> ResumePlan:
        """What a resume would do: which recorded results it takes, which calls run again, which records fit nothing.

        The workflow's own code between its steps runs for that, over the recorded results; no step begins, nothing is
        written, and whoever owns the run keeps it.

        Raises:
            RunNotFoundError: There is none; the message names the closest ids.
            RunMismatchError: It was recorded for another workflow.
        """
        from weft.resume_plan import plan_of  # noqa: PLC0415 - only who plans needs it

        self._find(run_id)
        return plan_of(self.store, run_id, workflow)

    def fork(
        self,
        run_id: str,
        *,
        at: str | None = None,
        values: Mapping[str, Any] | None = None,
        again: Iterable[str] = (),
        new_id: str | None = None,
        thread_id: str | None = None,
    ) -> str:
        """Record a new run that begins in the middle of this one; :meth:`resume` goes on with it. Gives its id.

        Args:
            run_id: Of a run however it stands; it stays as it is.
            at: The id of a call: what was recorded up to that goes into the new run, and nothing after it. All, unless
                told.
            values: By the ids of calls, what they are to have returned instead.
            again: The ids of calls that are to run again.
            new_id: The id of the new run.
            thread_id: Its thread; none unless told.

        Raises:
            RunNotFoundError: There is none; the message names the closest ids.
            InputError: It has recorded no such call.
            UnstorableError: A value cannot be recorded.
        """
        from weft.fork import Cut, fork_run  # noqa: PLC0415 - as above

        self._find(run_id)
        cut = Cut(
            None if at is None else _identity(at),
            {_identity(key): value for key, value in (values or {}).items()},
            frozenset(map(_identity, again)),
        )
        return fork_run(self.store, run_id, cut, new_id=new_id, thread_id=thread_id)

    def answer(self, run_id: str, answers: Mapping[str, Any]) -> None:
        """Answer open questions by their ids. Whoever owns the run takes the answers up; else a resume does.

        Raises:
            RunNotFoundError: There is no such run; the message names the closest ids.
            AnswerError: An id is not that of an open question; the message lists those that are.
            UnstorableError: An answer cannot be recorded.
        """
        open_ids = [question.id for question in self.show(run_id).questions]
        wrong = [key for key in answers if key not in open_ids]
        if wrong or not answers:
            what = (
                f"no open question of run {run_id!r} has the id {wrong[0]!r}"
                if wrong
                else "no answer was given"
            )
            raise AnswerError(f"{what}; {_listed(open_ids)}")
        encode = self.store.codec.encode
        self.store.add_answers(
            run_id, [answer_record(key, encode(v, root="answer")) for key, v in answers.items()]
        )

    def delete(self, run_id: str) -> None:
        """Forget a run that is not going on.

        Raises:
            RunNotFoundError: There is none; the message names the closest ids.
            RunBusyError: Its owner is alive.
        """
        if not self.store.delete_run(run_id):
            raise self._not_found(run_id)

    def prune(self, keep: Keep) -> int:
        """Forget now, all at once, what these limits do not keep of the runs that have ended; how many that were.

        A store that was given a ``keep`` does that by itself, in small steps.

        Raises:
            InputError: ``max_bytes`` is set: how big the store is, only itself can tell.
        """
        if keep.max_bytes is not None:
            raise InputError(
                "prune() goes by days, failed_days and last; for max_bytes give the store itself a keep"
            )
        oldest = keep.oldest(time.time())
        ended = [row for row in self.store.runs(limit=sys.maxsize) if row.status in ENDED]
        ended.sort(key=lambda row: -row.updated)
        doomed = [
            row.run_id
            for place, row in enumerate(ended)
            if is_too_old(row.status, row.updated, oldest) or (keep.last is not None and place >= keep.last)
        ]
        return sum(self._is_deleted(run_id) for run_id in doomed)

    def vacuum(self) -> None:
        """Give back the room of what was deleted, as far as the store can; a SQLite file is written anew for it."""
        self.store.vacuum()

    def _is_deleted(self, run_id: str) -> bool:
        try:
            return self.store.delete_run(run_id)
        except RunBusyError:  # somebody has gone on with it meanwhile
            return False

    def _newest(self, thread_id: str | None, status: RunStatus | None, most: int) -> builtins.list[RunRow]:
        """Stores know no status filter: ask for more until there are enough."""
        limit = most
        while True:
            rows = self.store.runs(thread_id=thread_id, limit=limit)
            found = [row for row in rows if status in (None, row.status)]
            if len(found) >= most or len(rows) < limit:
                return found
            limit *= 4

    def _find(self, run_id: str) -> RunRow:
        row = self.store.find(run_id)
        if row is None:
            raise self._not_found(run_id)
        return row

    def _not_found(self, run_id: str) -> RunNotFoundError:
        ids = [row.run_id for row in self.store.runs(limit=_MOST_COMPARED)]
        if not ids:
            return RunNotFoundError(f"there is no run {run_id!r}: the store has no runs")
        close = closest(run_id, ids)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "none has an id like it"
        return RunNotFoundError(f"there is no run {run_id!r}; {hint}")


def runs(store: Any) -> Runs:
    """The runs of a store: to list, show, resume, answer and delete them.

    Args:
        store: A checkpointer, or its URL such as ``sqlite:///runs.db``.

    Raises:
        InputError: It is none of these.
    """
    checkpointer = as_checkpointer(store)
    if checkpointer is None:
        raise InputError(f"runs() needs a checkpointer or a URL such as 'sqlite:///runs.db', not {store!r}")
    return Runs(checkpointer)


def closest(name: str, names: Iterable[str]) -> builtins.list[str]:
    """At most three of the names that somebody may have meant: those it begins, then those it resembles."""
    names = builtins.list(names)
    begun = [known for known in names if name and known.startswith(name)]
    alike = [known for known in get_close_matches(name, names) if known not in begun]
    return (begun + alike)[:3]


def _info(row: RunRow, store: Checkpointer) -> RunInfo:
    return RunInfo(
        row.run_id,
        row.workflow,
        row.status.value,
        row.thread_id,
        _moment(row.created) or _EPOCH,
        _moment(row.updated) or _EPOCH,
        _summary(row.error, store.codec) if row.error is not None else None,
        _row=row,
        _store=store,
    )


def _read(
    records: Iterable[Record], row: RunRow, codec: Codec
) -> tuple[builtins.list[CallInfo], builtins.list[QuestionInfo]]:
    """The calls and the open questions that a journal tells of."""
    root = root_identity(row.workflow)
    calls: dict[bytes, Record] = {}
    questions: dict[str, Record] = {}
    answered: set[str] = set()
    for record in records:
        if record.kind in OUTCOMES:
            calls.pop(record.identity, None)  # a later outcome stands in its own place
            calls[record.identity] = record
        elif record.kind is RecordKind.QUESTION:
            questions[question_id(row.run_id, record.identity, record.ordinal)] = record
        elif record.kind is RecordKind.WITHDRAWN:
            questions.pop(question_id(row.run_id, record.identity, record.ordinal), None)
        elif record.kind is RecordKind.ANSWER:
            answered.add(record.step)
    if row.status is RunStatus.FINISHED:
        questions.clear()  # nobody waits for an answer any more
    return (
        [call_info(record, root, codec) for record in calls.values()],
        [_question(key, record, codec) for key, record in questions.items() if key not in answered],
    )


def _told(
    store: Checkpointer, row: RunRow, position: int
) -> tuple[int, builtins.list[CallInfo | QuestionInfo]]:
    """The calls and questions that a journal tells of after a position, and how far it goes."""
    root, codec = root_identity(row.workflow), store.codec
    found: list[CallInfo | QuestionInfo] = []
    while page := store.records(row.run_id, after=position):
        for _, record in page:
            if record.kind in OUTCOMES:
                found.append(call_info(record, root, codec))
            elif record.kind is RecordKind.QUESTION:
                key = question_id(row.run_id, record.identity, record.ordinal)
                found.append(_question(key, record, codec))
        position = page[-1][0]
    return position, found


def call_info(record: Record, root: bytes, codec: Codec) -> CallInfo:
    """A recorded outcome, for people."""
    ok = record.kind is RecordKind.OK
    return CallInfo(
        record.step,
        record.identity.hex(),
        "" if record.parent == root else record.parent.hex(),
        record.kind.value,
        record.attempts,
        _moment(record.started),
        _moment(record.ended),
        _described(codec.describe(record.value)) if ok else None,
        None if ok else _summary(record.value, codec),
        _moment(record.asked),
        record.limits,
    )


def _question(key: str, record: Record, codec: Codec) -> QuestionInfo:
    return QuestionInfo(key, record.step, codec.describe(record.value), _moment(record.ended))


def _described(value: object) -> object:
    """A result for display; of a block or sequence without what is recorded of its shape."""
    if isinstance(value, dict) and value.get("$type") == tag_of(Composed):
        return value["value"]
    return value


def _summary(data: bytes, codec: Codec) -> str:
    """An error in one line: its class, without the module, and its message."""
    described = codec.describe(data)
    if not (isinstance(described, dict) and "$error" in described):
        return repr(described)
    name = str(described["$error"]).rpartition(":")[2]
    message = str(described["message"])
    return f"{name}: {message}" if message else name


def _status(value: str | RunStatus) -> RunStatus:
    try:
        return RunStatus(value)
    except ValueError:
        raise InputError(
            f"there is no status {value!r}; there are: {', '.join(s.value for s in RunStatus)}"
        ) from None


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


_EPOCH = datetime.fromtimestamp(0, UTC)


def _identity(call_id: str) -> bytes:
    try:
        return bytes.fromhex(call_id.rpartition(":")[2])
    except ValueError:
        raise InputError(
            f"{call_id!r} is no id of a call; RunInfo.calls and `weft show` have those"
        ) from None


def _listed(ids: builtins.list[str]) -> str:
    return f"open are: {', '.join(ids)}" if ids else "none is open"


__all__ = ["CallInfo", "QuestionInfo", "RunInfo", "Runs", "call_info", "closest", "runs"]
