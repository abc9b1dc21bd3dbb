"""What a journaled run has recorded, what it records, and what of that a resume uses."""

from __future__ import annotations

import asyncio
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from weft.checkpoint.base import Change, Checkpointer, Record, RecordKind, RunRow, all_records
from weft.core.identity import question_id
from weft.core.outcome import Composed
from weft.core.status import RunStatus
from weft.engine.inbox import Inbox
from weft.engine.journal import Book, Entry
from weft.engine.replay import RecordedCall
from weft.engine.scope import Scope
from weft.engine.threads import in_thread
from weft.errors import CorruptDataError, NodeTimeoutError, ReplayMismatchError, UnstorableError

if TYPE_CHECKING:
    from weft.checkpoint.codec import Codec
    from weft.engine.call import Call
    from weft.engine.step import Step

_FAILURES_LOOKED_AT = 64

#: The kinds of records that say how a call of a step ended.
OUTCOMES = {RecordKind.OK, RecordKind.FAILED, RecordKind.TIMED_OUT}

#: Those whose values are there, of which one is of a call that is no step of the user's.
_WELL = {RecordKind.OK, RecordKind.NOTED}
_ENDS = OUTCOMES | _WELL


@dataclass
class Loaded:
    """What a journal holds that a resume uses: outcomes by parent in order, questions, answers, what it remembers."""

    outcomes: dict[bytes, list[Record]] = field(default_factory=dict)
    questions: dict[str, Record] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    count: int = 0

    @property
    def open_questions(self) -> dict[str, Record]:
        """The questions that nobody has answered."""
        return {key: record for key, record in self.questions.items() if key not in self.answers}


@dataclass(frozen=True, slots=True)
class FailedCall:
    """A recorded failure that a workflow went on from, as ``retry=`` of a resume is asked about it.

    Attributes:
        step: The name of its step.
        id: Its identity; ``weft.call_id()`` in its body is ``"<run id>:<id>"``.
        error: What was raised.
        attempts: How many attempts there were.
    """

    step: str
    id: str
    error: BaseException
    attempts: int


#: Whether a failure that the workflow went on from is to be tried again.
RetryChoice = Callable[[FailedCall], bool]


def load_run(store: Checkpointer, run_id: str, retry: RetryChoice | None = None) -> Loaded:
    """What the journal of this run holds that a resume uses."""
    return load(run_id, all_records(store, run_id), store.codec, retry)


def ancestors(identity: bytes, parents: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """The calls that a call was made by, the nearest first."""
    above = parents.get(identity)
    while above is not None:
        yield above
        above = parents.get(above)


def load(run_id: str, records: Iterable[Record], codec: Codec, retry: RetryChoice | None = None) -> Loaded:
    """Sort a journal.

    A failure counts only if the workflow went on from it, it is not in the error that ended the run, this program
    knows its class, and ``retry`` does not say that it is to be tried again; otherwise its call runs again.
    """
    loaded = Loaded()
    outcomes: dict[bytes, Record] = {}
    gone_on: set[bytes] = set()
    for record in records:
        if record.kind is RecordKind.OK or record.kind in _ENDS:  # most are; an enum's hash is dear
            if record.identity in outcomes:
                del outcomes[record.identity]  # a later outcome stands in its own place
                gone_on.discard(record.identity)
            outcomes[record.identity] = record
        elif record.kind is RecordKind.WENT_ON:
            gone_on.add(record.identity)
        elif record.kind is RecordKind.RETRY:
            gone_on.discard(record.identity)
        elif record.kind is RecordKind.QUESTION:
            loaded.questions[question_id(run_id, record.identity, record.ordinal)] = record
        elif record.kind is RecordKind.WITHDRAWN:
            loaded.questions.pop(question_id(run_id, record.identity, record.ordinal), None)
        elif record.kind is RecordKind.ANSWER:
            loaded.answers[record.step] = record.value
        elif record.kind is RecordKind.KEPT:
            loaded.kept[record.step] = record.value
    if retry is not None:
        _take_away_retried(outcomes, gone_on, codec, retry)
    by_parent: defaultdict[bytes, list[Record]] = defaultdict(list)
    for record in outcomes.values():
        if record.kind in _WELL or (record.identity in gone_on and codec.decode_error(record.value)):
            by_parent[record.parent].append(record)
            loaded.count += 1
    loaded.outcomes = dict(by_parent)
    return loaded


def _take_away_retried(
    outcomes: dict[bytes, Record], gone_on: set[bytes], codec: Codec, retry: RetryChoice
) -> None:
    parents = {record.identity: record.parent for record in outcomes.values()}
    for record in [*outcomes.values()]:
        error = None if record.kind in _WELL else codec.decode_error(record.value)
        if error is None:
            continue
        if retry(FailedCall(record.step, record.identity.hex(), error, record.attempts)):
            gone_on.discard(record.identity)
            for above in ancestors(
                record.identity, parents
            ):  # what is recorded of it as a whole has the failure in it
                outcomes.pop(above, None)


class Recorder:
    """The journal of one run, as its calls see it. What few runs need is a class attribute until it is set."""

    _gone_on: list[tuple[BaseException, bytes]] | tuple[()] = ()  # failures that the workflow went on from
    _renewals = _renewed = 0  # how often a body ran again; the last whose reading is used
    _renewals_at_work: frozenset[asyncio.Task[None]] = frozenset()
    _awaited: frozenset[asyncio.Future[bool]] = frozenset()  # that something is written
    _outbox: list[Entry] | tuple[()] = ()  # what has come together in this turn of the loop
    _warned: frozenset[str] = frozenset()

    def __init__(
        self,
        store: Checkpointer,
        row: RunRow,
        loaded: Loaded,
        *,
        inbox: Inbox,
        durability: str,
        on_mismatch: str,
        shown: Callable[[], None],
        failed: Callable[[Exception], None],
        at_once: bool = False,
    ) -> None:
        self.store = store
        self.codec = store.codec
        self._knows = store.codec.token
        self.row = row
        self.loaded = loaded
        self._book = Book(
            store, row.run_id, row.fence, row.batches, inbox, shown, failed, at_once=store.instant or at_once
        )
        self._journal = self._book.journal
        self._waits = durability == "sync"
        self._kept: list[Entry] | None = [] if durability == "exit" else None
        self._on_mismatch = on_mismatch

    # Identity

    def fingerprint(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """What the arguments are, for the call's identity; b"" when they cannot be encoded."""
        if step.known_to is not self._knows:
            self.learn_types(step)
        if not args and not kwargs and step.key is None:
            return b"p"
        if step.key is not None:
            mark, found = b"k", self.codec.fingerprint(step.key(*args, **kwargs))
        elif kwargs:
            mark, found = b"n", self.codec.fingerprint(args, kwargs)
        else:
            mark, found = b"p", self.codec.fingerprint(*args)
        if found is not None:
            return mark + found  # so that f((1,), {"a": 2}) is not f(1, a=2)
        if step.name not in self._warned:
            self._warned |= {step.name}
            warnings.warn(
                f"the arguments of {step.name!r} cannot be encoded, so a resume tells its calls apart by their "
                "order alone; give the step a key= function, or register the types with the checkpointer's codec",
                stacklevel=_levels_to_user(),
            )
        return b""

    def learn_types(self, step: Step) -> None:
        """The types in a step's annotations may be stored. A conductor's are ours."""
        if not step.is_planned:
            self.codec.register_hints(step.fn)
        step.known_to = self._knows

    def scope_of(self, call: Call) -> Scope:
        """What this call's body has asked for."""
        if call.scope is None:
            call.scope = call.scope_type(call, self.loaded.outcomes.pop(call.identity, ()))
        return call.scope

    def call_of(
        self,
        kind: type[Call],
        parent: Call,
        step: Step,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        identity: tuple[bytes, int] | None = None,
    ) -> Call:
        """The call that a body on the loop, or a conductor, asks for; where it is recorded, no more than its record.

        Args:
            kind: What it is if it is not recorded.
            parent: Who asks.
            step: For what.
            args: With what.
            kwargs: With what, by name.
            identity: Its identity and ordinal, where they are known.
        """
        scope = parent.scope or self.scope_of(parent)
        if identity is None:
            identity = scope.siblings.next(step.name, self.fingerprint(step, args, kwargs))
        # A conductor may have been made of other parts; and who is told of a call is told all of it.
        record = scope.records.get(identity[0])
        if record is None or step.is_planned or not kind.is_told_of or parent.run.audience is not None:
            call = kind(parent.run, parent, step, args, kwargs)
        else:
            call = RecordedCall(parent, step, record)
        call.identity, call.ordinal = identity
        return call

    def claim(self, call: Call, scope: Scope) -> Record | None:
        """The recorded outcome of this call, if there is one.

        Raises:
            ReplayMismatchError: At its place another call is recorded, and that is to be an error.
        """
        if call.step.is_planned and not self._has_shape(call, call.identity):
            scope.add(call)
            return None
        record = scope.ask(call)
        if record is None and scope.records:
            self._look_for_mismatch(call, scope)
        return record

    def _look_for_mismatch(self, call: Call, scope: Scope) -> None:
        other = scope.order.contradicts(call.identity, call.ordinal) if call.is_told_of else None
        if other is None:
            return
        if call.run.audience is not None:
            call.run.audience.mismatched(call, other.step)
        if self._on_mismatch == "error":
            raise ReplayMismatchError(
                f"call {call.ordinal + 1} of {scope.owner.step.name!r} is {call.step.name!r} now, but "
                f"{other.step!r} with other arguments or of another name is recorded there; resume with "
                'on_mismatch="rerun" to run what does not match again'
            )

    def before_start(self, call: Call, scope: Scope, then: Callable[[], None]) -> None:
        """Go on with ``then`` once it is durable that the body went on from the failures it has received."""
        entries = self._went_on(scope)
        if not entries and not scope.marks:
            then()
            return
        scope.hold(then)  # also behind what others wait for: the body has received the same
        if entries:
            scope.marks += 1
            entries[-1].done = lambda _batch: self._marked(scope)
            self._add(*entries)

    @staticmethod
    def _marked(scope: Scope) -> None:
        scope.marks -= 1
        if scope.marks:
            return
        held, scope.held = scope.held, ()
        for then in held:
            then()

    def put_aside(self, scope: Scope) -> None:
        """The run is put aside: what the body has received by now, it has gone on from."""
        for _ in range(0, len(scope.failures), _FAILURES_LOOKED_AT):
            if entries := self._went_on(scope):
                self._add(*entries)

    def _went_on(self, scope: Scope) -> list[Entry]:
        entries = []
        for failure in self._failures_in(self._received(scope)):
            assert failure.error is not None
            self._go_on_from(failure.error, failure.identity)
            record = Record(RecordKind.WENT_ON, failure.identity, scope.owner.identity, failure.ordinal)
            entries.append(Entry(self._book, record))
        return entries

    def _go_on_from(self, failure: BaseException, identity: bytes) -> None:
        if not self._gone_on:
            self._gone_on = []
        self._gone_on.append((failure, identity))

    @staticmethod
    def _failures_in(received: list[Call]) -> Iterator[Call]:
        """Those that are recorded: a call that is not fails again if what has failed in it does."""
        stack = received[::-1]
        while stack:
            call = stack.pop()
            if call.is_recorded:
                yield call
            elif call.scope is not None:
                stack += list(call.scope.failures.values())[::-1]

    @staticmethod
    def _received(scope: Scope) -> list[Call]:
        """Failures that the body has taken. A few at each call, so that thousands that it never takes cost little."""
        received = []
        for _ in range(min(len(scope.failures), _FAILURES_LOOKED_AT)):
            identity, failure = scope.failures.popitem(last=False)
            if failure.future.was_received:
                received.append(failure)
            else:
                scope.failures[identity] = failure
        return received

    # What a run remembers

    def keep(self, name: str, value: Any) -> None:
        """Have the run remember this under a name, in every later life too; durable with the next outcome.

        Raises:
            UnstorableError: It cannot be recorded.
        """
        data = self.codec.encode(value, root=name)
        if self.loaded.kept.get(name) == data:
            return
        self.loaded.kept[name] = data
        identity = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self._add(Entry(self._book, Record(RecordKind.KEPT, identity, step=name, value=data)))

    def remembered(self, name: str, default: Any) -> Any:
        """What the run remembers under a name."""
        data = self.loaded.kept.get(name)
        return default if data is None else self.codec.decode(data)

    # Outcomes

    def encode(self, call: Call, value: Any) -> bytes:
        """The value as it is recorded.

        Raises:
            UnstorableError: It cannot be.
        """
        if call.step.workflow is not None:
            value, _ = call.step.workflow.split_output(value)
        return self._encode(call, value)

    def _encode(self, call: Call, value: Any) -> bytes:
        if call.step.is_planned or call.aside is not None:  # a resume has to know more
            value = Composed(call.step.shape, value, call.aside)
        try:
            return self.codec.encode(value)
        except UnstorableError as error:
            raise _without_wrapper(error) from None

    def encode_output(self, root: Call, value: Any) -> bytes:
        """The output of the run as it is recorded.

        Raises:
            UnstorableError: It cannot be.
        """
        return self._encode(root, value)

    def _has_shape(self, call: Call, identity: bytes) -> bool:
        """Whether what is recorded of a planned call comes from one that is made of the same."""
        scope = call.parent.scope if call.parent is not None else None
        record = scope.records.get(identity) if scope is not None else None
        if record is None or record.kind is not RecordKind.OK:
            return True
        try:
            found = self.codec.decode(record.value)
        except CorruptDataError:
            return True  # which is said where it is read
        return isinstance(found, Composed) and found.shape == call.step.shape

    def record(self, call: Call) -> None:
        """Make the outcome of this call durable; it is told when that is so."""
        if call.parent is None:
            call.recorded_in(0)  # what becomes of the run is written by the run
            return
        if call.step.known_to is not self._knows:
            self.learn_types(call.step)
        record = self._record_of(call) if call.is_recorded else None
        if not call.is_recorded:
            self._pass_by(call)
        elif record is None:
            call.recorded_in(0)
            self._book.shown()
        else:
            self._add(Entry(self._book, record, call.recorded_in))

    def _pass_by(self, call: Call) -> None:
        """Nothing is written of it. It is seen after what is being written, but needs no commit of its own.

        Else a run whose lives are short would spend them on commits of nothing, and never come to its end.
        """
        book = self._book
        if self._outbox or (book.waiting and self._waits):
            self._add(Entry(book, None, call.recorded_in))
            return
        book.inbox.post(call.recorded_in, book.batch)
        book.inbox.post(book.shown)

    def _record_of(self, call: Call) -> Record | None:
        assert call.parent is not None
        kind, value = RecordKind.OK if call.is_told_of else RecordKind.NOTED, call.payload
        if call.error is None and value is None:
            try:
                value = self._encode(call, call.value)
            except UnstorableError as error:
                error.add_note(f"returned by {call.step.name!r}, call {call.id}")
                call.value, call.error = None, error
        if call.error is not None:
            if not isinstance(call.error, Exception):
                return None
            kind = RecordKind.TIMED_OUT if isinstance(call.error, NodeTimeoutError) else RecordKind.FAILED
            value = self.codec.encode_error(call.error)
        return Record(
            kind,
            call.identity,
            call.parent.identity,
            call.ordinal,
            call.step.name,
            value or b"",
            call.attempt,
            call.started,
            call.run.clock.wall(),
            asked=call.asked_at,
            limits=call.waited_for,
        )

    def read(self, call: Call, record: Record) -> tuple[Any, BaseException | None]:
        """The recorded value or error of this call."""
        if call.step.known_to is not self._knows:
            self.learn_types(call.step)
        call.attempt = record.attempts
        if record.kind not in _WELL:
            failure = self.codec.decode_error(record.value)
            assert failure is not None  # or load() had left it out
            self._go_on_from(failure, record.identity)
            return None, failure
        try:
            found = self.codec.decode(record.value)
        except CorruptDataError as error:
            error.add_note(f"in the recorded result of {call.step.name!r}, call {call.id}")
            return None, error
        if not isinstance(found, Composed):
            return found, None
        call.aside = found.aside
        return found.value, None

    def renew_scope(self, call: Call, then: Callable[[], None]) -> None:
        """The body of this call will run again from the top; what its calls have recorded stays recorded."""
        retry = [Entry(self._book, self._retry(identity)) for identity in self._in_error(call.failed_with)]
        if retry:
            self._add(*retry)

        self._renewals += 1
        number = self._renewals

        def work() -> Loaded:
            kept = [replace(e.record, batch=e.batch) for e in self._kept or () if e.record is not None]
            return load(self.row.run_id, [*all_records(self.store, self.row.run_id), *kept], self.codec)

        async def renew() -> None:
            try:
                if not await self._written():
                    return  # the journal failed, and the run with it
                loaded = await in_thread(work, loop=call.run.loop)
            except Exception as error:
                call.run.fail(error)
                return
            if call.scope is not None:
                call.scope.end()
            call.scope = call.scope_type(call, loaded.outcomes.pop(call.identity, ()))
            if number > self._renewed:  # one that began later knows more
                self._renewed, self.loaded.outcomes = number, loaded.outcomes
            then()

        task = call.run.spawn(renew())
        self._renewals_at_work |= {task}
        task.add_done_callback(self._renewal_ended)

    def _renewal_ended(self, task: asyncio.Task[None]) -> None:
        self._renewals_at_work -= {task}

    async def _written(self) -> bool:
        """Wait until what was shown before it was durable is durable, or kept for the end; False if it never is."""
        self._hand_over()
        if self._kept is not None:
            return True
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._awaited |= {written}
        done = partial(_resolve, written, True)
        self._journal.add(Entry(self._book, None, lambda _batch: done(), batch=self._book.batch))
        try:
            return await written
        finally:
            self._awaited -= {written}

    def end(self) -> None:
        """The run is over: nobody needs what is still being read."""
        for task in self._renewals_at_work:
            task.cancel()
        self._book.forget()

    def journal_failed(self) -> None:
        """Nothing more will be written: who waits for that waits in vain."""
        for written in self._awaited:
            _resolve(written, value=False)

    # Questions

    def question(self, call: Call, number: int, value: Any, done: Callable[[], None]) -> None:
        """Record a question; ``done`` when it is durable."""
        key = self.question_id(call, number)
        if key in self.loaded.questions:
            done()
            return
        parent = call.parent.identity if call.parent is not None else b""
        record = Record(
            RecordKind.QUESTION,
            call.identity,
            parent,
            number,
            call.step.name,
            self.codec.encode(value, root="question"),
            ended=call.run.clock.wall(),
        )
        self.loaded.questions[key] = record
        self._add(Entry(self._book, record, lambda _batch: done()))

    def question_id(self, call: Call, number: int) -> str:
        """The id of the ``number``-th question of this call."""
        return question_id(self.row.run_id, call.identity, number)

    def answer_of(self, call: Call, number: int) -> tuple[bool, Any]:
        """Whether this question has been answered, and how."""
        found = self.loaded.answers.get(self.question_id(call, number))
        if found is None:
            return False, None
        return True, self.codec.decode(found)

    def add_answers(self, values: dict[str, Any], done: Callable[[], None]) -> None:
        """Record answers; ``done`` when they are durable."""
        encoded = {key: self.codec.encode(value, root="answer") for key, value in values.items()}
        entries = [Entry(self._book, answer_record(key, data)) for key, data in encoded.items()]

        def durable(_batch: int) -> None:
            self.loaded.answers.update(encoded)
            done()

        entries[-1].done = durable
        self._add(*entries)

    # The run's end

    def close(
        self,
        status: RunStatus,
        done: Callable[[], None],
        *,
        output: bytes | None,
        saved: bytes | None,
        error: BaseException | None,
        open_questions: Collection[str] | None = None,
    ) -> None:
        """Record how the run ended, and own it no longer; ``done`` when that is durable."""
        data = self.codec.encode_error(error) if isinstance(error, Exception) else None
        change = Change(status, output, data, saved)
        entries = []
        if open_questions is not None and self.loaded.questions:
            stale = [r for k, r in self.loaded.open_questions.items() if k not in open_questions]
            entries += [Entry(self._book, withdrawn_record(record)) for record in stale]
        entries += [Entry(self._book, self._retry(identity)) for identity in self._in_error(error)]
        entries.append(Entry(self._book, None, lambda _batch: done(), change))
        self._hand_over()
        if self._kept is not None:
            entries = [*self._kept, *entries]
            self._kept = None
        self._journal.add(*entries)

    def release(self) -> None:
        """Own the run no longer, whatever state it is in."""
        self._book.close()
        self.store.release(self.row.run_id, self.row.fence)

    def _retry(self, identity: bytes) -> Record:
        return Record(RecordKind.RETRY, identity)

    def _in_error(self, error: BaseException | None) -> list[bytes]:
        """The failures that the workflow had gone on from and that are in the error which ended it all the same."""
        if error is None or not self._gone_on:
            return []
        inside = {id(part) for part in parts_of(error)}
        return [identity for failure, identity in self._gone_on if id(failure) in inside]

    def _add(self, *entries: Entry) -> None:
        """Have this written with all else that comes in this turn of the loop, in the order of coming."""
        if self._outbox:
            self._outbox += entries
        else:
            self._book.inbox.post(self._hand_over)
            self._outbox = [*entries]

    def _hand_over(self) -> None:
        """Have the journal write what has come together."""
        entries, self._outbox = self._outbox, ()
        if not entries:
            return
        if self._waits:
            self._journal.add(*entries)
            return
        # Shown before it is durable: what has come together is a batch, in the order of coming.
        self._book.batch = batch = self._book.batch + 1
        told = [entry.done for entry in entries if entry.done is not None]
        for entry in entries:
            entry.batch, entry.done = batch, None
        if self._kept is not None:
            self._kept.extend(entries)
        else:
            self._journal.add(*entries)
        for done in told:
            done(batch)
        self._book.shown()


def _without_wrapper(error: UnstorableError) -> UnstorableError:
    """The error with the path that the user knows: a recorded block is wrapped."""
    path = error.path.replace("result.value", "result", 1)
    if path.startswith("result.aside"):  # a change of a graph's state: by key, how it was changed and to what
        path = "state" + re.sub(r"(\[[^][]*\])\[1\]", r"\1", path.removeprefix("result.aside"))
    return UnstorableError(path, error.reason)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


def _levels_to_user() -> int:
    """How far up the first frame is that is not ours: where the user called the task."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("weft."):
        frame, level = frame.f_back, level + 1
    return level


def answer_record(key: str, value: bytes) -> Record:
    """The record of an answer to the question of this id."""
    return Record(RecordKind.ANSWER, bytes.fromhex(key), step=key, value=value, ended=time.time())


def withdrawn_record(question: Record) -> Record:
    """The record that nobody need answer this question any more: the code does not ask it, or its call was stopped."""
    return replace(question, kind=RecordKind.WITHDRAWN, value=b"", ended=time.time())


def parts_of(error: BaseException) -> Iterable[BaseException]:
    """An error with its causes, contexts and, for a group, its members."""
    seen: set[int] = set()
    stack: list[BaseException | None] = [error]
    while stack:
        part = stack.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        stack += [part.__cause__, part.__context__]
        if isinstance(part, BaseExceptionGroup):
            stack += part.exceptions
