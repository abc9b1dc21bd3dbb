"""Making outcomes and openings durable: everything that waits goes into one commit.

A store that needs the disk has one writer thread, shared by all runs that use it. While it commits, more comes
together for the next commit, so that a thousand outcomes cost a handful of them; so do a thousand runs that begin.
Where the store needs nothing (``instant``), or time is virtual, the run itself writes.

Where a loop has nothing else to do, and nobody else is writing, what a run waits for is committed on the spot, by
stores that can (see :class:`~weft.checkpoint.base.Checkpointer`): to wake a thread, and to be woken by it, would take
as long again.

The same thread says that the owner of the runs is alive (:meth:`weft.checkpoint.base.Checkpointer.beat`), also while
there is nothing to write. What waits to be written is written first.
"""

from __future__ import annotations

import asyncio
import copy
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from msgspec.structs import replace

from weft.checkpoint.base import Change, Checkpointer, OpenRun, Record, RunRow, Write
from weft.core.status import RunStatus
from weft.engine.signals import handlers_may_raise, raise_again
from weft.engine.threads import News, tell
from weft.errors import CheckpointError, OwnerLostError, StoreError

if TYPE_CHECKING:
    from weft.engine.inbox import Inbox

#: Seconds for which an idle writer keeps its thread.
_KEEP = 10.0

#: How often in a lease a writer says that the owner is alive.
_BEATS = 4

#: A loop that has nothing to do for so long (seconds) may be kept by a commit.
_REST = 0.05

#: If one has taken longer than that, the disk is slow: then the thread does it, for so long.
_BRIEF, _SLOW_FOR = 0.02, 1.0


class Life:
    """What the open books of a store hold on to: for as long as there is one, the owner is said to be alive."""

    __slots__ = ("__weakref__", "store")

    def __init__(self, store: Checkpointer) -> None:
        self.store = store


@dataclass(slots=True, eq=False)
class Book:
    """What a run has open in a store: its ownership, and where its journal stands."""

    store: Checkpointer
    run_id: str
    fence: int
    batch: int
    inbox: Inbox
    shown: Callable[[], None]  # called on the run's loop when all of a batch has been told
    failed: Callable[[Exception], None]  # told there when nothing more can be written
    at_once: bool = False  # written by the run itself, not by the writer's thread
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    closed: bool = False
    waiting: int = 0  # entries that are not known to be durable; counted on the run's loop
    journal: Journal = field(init=False)
    commit_at_once: Callable[[Sequence[Write]], set[str] | None] | None = field(init=False, default=None)
    may_be_interrupted: bool | None = None  # in a commit on its loop, by a signal; None: nobody has looked
    life: Life | None = None

    def __post_init__(self) -> None:
        self.journal = journal_of(self.store)
        if hasattr(type(self.store), "commit_at_once"):  # one of its own, not of what it wraps
            store: Any = self.store
            self.commit_at_once = store.commit_at_once
        if not self.at_once:
            self.life = self.journal.keep_alive(self.store)

    def close(self) -> None:
        """Nothing more is written in it."""
        self.closed = True
        self.life = None

    def fail(self, error: CheckpointError) -> None:
        """Nothing more can be written in it, which the run is told."""
        self.close()
        self.inbox.post(self.failed, error)

    def forget(self) -> None:
        """The run has ended, and is told nothing more."""
        self.shown = self.failed = _nothing


@dataclass(slots=True, eq=False)
class Entry:
    """A record to be written, and what to do, with its batch number, once it is durable."""

    book: Book
    record: Record | None
    done: Callable[[int], None] | None = None
    change: Change | None = None
    batch: int = 0  # given already: the outcome was shown before it is durable


@dataclass(slots=True, eq=False)
class Opening:
    """A run to be opened, and who is told, on a loop: its row, or why it cannot be had.

    If that loop is gone, ``unwanted`` is given the row.
    """

    store: Checkpointer
    request: OpenRun
    loop: asyncio.AbstractEventLoop
    claimed: Callable[[RunRow | None, Exception | None], None]
    unwanted: Callable[[RunRow], None]
    is_wanted: Callable[[], bool]


class Journal:
    """The writer of one store, which it does not keep alive: the books of its runs do."""

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._entries: deque[Entry] = deque()
        self._openings: deque[Opening] = deque()
        self._life: ref[Life] | None = None  # of the owner of what is open, which is to be heard of
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._writing = False
        self._waits = False  # for something to write
        self._slow_until = 0.0  # on the monotonic clock
        self._beat_at = 0.0  # when the owner is to be heard of next, on the monotonic clock
        self._pid = os.getpid()

    def add(self, *entries: Entry) -> None:
        """Have the entries of a run written; their ``done`` is called on its loop when they are durable."""
        book = entries[0].book
        book.waiting += len(entries)
        if book.at_once:
            self._commit(list(entries))
            return
        self._stay_in_this_process()
        is_waited_for = entries[-1].done is not None
        if is_waited_for and self._may_commit_here(book) and self._commit_here(book, entries):
            return
        with self._lock:
            self._entries.extend(entries)
            try:
                self._see_to_it()
            except RuntimeError as error:
                waiting = list(self._entries)
                self._entries.clear()
                for book in {entry.book for entry in waiting}:
                    book.fail(_of_its_own(error))

    def open(self, opening: Opening) -> None:
        """Have a run opened, with all others that are to be by then."""
        self._stay_in_this_process()
        with self._lock:
            self._see_to_it()
            self._openings.append(opening)

    def keep_alive(self, store: Checkpointer) -> Life:
        """Say again and again that the owner of what is open is alive, until nobody holds what this returns."""
        self._stay_in_this_process()
        with self._lock:
            life = self._life() if self._life is not None else None
            if life is not None and self._writing:
                return life  # it wakes for the beat of the others
            if life is None:
                life = Life(store)
                self._life = ref(life)
            self._beat_at = time.monotonic() + store.lease / _BEATS  # opening the run was a beat
            with suppress(RuntimeError):  # no thread to be had: the first entry will say so
                self._see_to_it()
            return life

    def _stay_in_this_process(self) -> None:
        if self._pid != os.getpid():
            self._begin_anew()  # the writer stayed in the parent process

    def _see_to_it(self) -> None:
        """Have the writer look what there is to do; the lock is held."""
        if not self._writing:
            threading.Thread(target=self._write, name="weft-journal", daemon=True).start()
            self._writing = True
        elif self._waits:
            self._waits = False
            self._wake.notify()

    def _write(self) -> None:
        idle_until = time.monotonic() + _KEEP
        while True:
            with self._lock:
                if not self._entries and not self._openings:
                    until = min(self._beat_at, time.monotonic() + _KEEP) if self._has_life else idle_until
                    self._waits = True
                    self._wake.wait(max(until - time.monotonic(), 0.0))
                    self._waits = False
                entries, openings = [*self._entries], [*self._openings]
                self._entries.clear()
                self._openings.clear()
                if not entries and not openings and not self._has_life and time.monotonic() >= idle_until:
                    self._writing = False
                    return
            if entries or openings:
                if entries:
                    self._commit(entries)
                if openings:
                    _open_all(openings)
                idle_until = time.monotonic() + _KEEP
            del entries, openings  # what they hold must not live until the next commit
            if time.monotonic() >= self._beat_at:
                self._beat()

    @property
    def _has_life(self) -> bool:
        return self._life is not None and self._life() is not None

    def _beat(self) -> None:
        life = self._life() if self._life is not None else None
        if life is None:
            return
        self._beat_at = time.monotonic() + life.store.lease / _BEATS
        # A beat that fails does no harm: if the store is gone the next commit says so, and if others take the
        # runs over meanwhile, they are right to.
        with suppress(Exception):
            life.store.beat()

    def _may_commit_here(self, book: Book) -> bool:
        """Whether nobody would have to wait for a commit on the loop of this run, and it for nobody."""
        return (
            book.commit_at_once is not None
            and self._waits
            and not (self._entries or self._openings or book.closed)
            and time.monotonic() >= self._slow_until
            and book.inbox.loop_rests(_REST)
            and not self._may_be_interrupted(book)
        )

    @staticmethod
    def _may_be_interrupted(book: Book) -> bool:
        if book.may_be_interrupted is None:
            book.may_be_interrupted = handlers_may_raise()
        return book.may_be_interrupted

    def _commit_here(self, book: Book, entries: Sequence[Entry]) -> bool:
        """Commit on the spot; False, and nothing was done, if somebody else is writing."""
        assert book.commit_at_once is not None
        batch, began = book.batch, time.monotonic()
        write = _write_of(book, entries)
        try:
            refused = book.commit_at_once([write])
        except BaseException as error:  # Ctrl-C too: nobody knows what is on the disk
            book.fail(_of_its_own(error))
            if not isinstance(error, Exception):
                book.loop.call_soon(raise_again, error)
            return True
        if refused is None:
            book.batch = batch
            return False
        ended = time.monotonic()
        if ended - began > _BRIEF:
            self._slow_until = ended + _SLOW_FOR
        if refused:
            book.fail(_lost(book))
            return True
        if _ends(write):
            book.life = None
        _tell(book.batch, entries)
        return True

    def _commit(self, entries: list[Entry]) -> None:
        groups: dict[Book, list[Entry]] = {}
        for entry in entries:
            if not entry.book.closed:
                groups.setdefault(entry.book, []).append(entry)
        if not groups:
            return
        store = entries[0].book.store
        told = _Told()
        writes = [_write_of(book, group) for book, group in groups.items()]
        try:
            refused = store.commit(writes)
        except Exception as error:  # whatever a store raises, the runs must hear of it
            for book in groups:
                told.failed(book, _of_its_own(error))
        else:
            for write, (book, group) in zip(writes, groups.items(), strict=True):
                if book.run_id in refused:
                    told.failed(book, _lost(book))
                    continue
                if _ends(write):
                    book.life = None
                told.add(book, _tell, book.batch, group)
        told.send()


def _nothing(*_: object) -> None:
    pass


def _write_of(book: Book, group: Sequence[Entry]) -> Write:
    number = book.batch + 1
    records, change = [], None
    for entry in group:
        if not entry.batch:
            book.batch = number
        if entry.record is not None:
            records.append(replace(entry.record, batch=entry.batch or number))
        change = change or entry.change
    return Write(book.run_id, book.fence, records, change)


def _lost(book: Book) -> OwnerLostError:
    return OwnerLostError(f"run {book.run_id!r} was taken over by another owner")


def _ends(write: Write) -> bool:
    return write.change is not None and write.change.status is not RunStatus.RUNNING


def _tell(batch: int, group: Sequence[Entry]) -> None:
    group[0].book.waiting -= len(group)
    for entry in group:
        if entry.done is not None:
            entry.done(entry.batch or batch)
    group[0].book.shown()


def _open_all(openings: list[Opening]) -> None:
    """Open the runs together, and hand each to who waits for it."""
    found: list[RunRow | CheckpointError]
    try:
        found = openings[0].store.open_many([opening.request for opening in openings])
    except Exception as error:
        found = [_of_its_own(error) for _ in openings]
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Opening, RunRow | CheckpointError]]] = {}
    for opening, row in zip(openings, found, strict=True):
        if opening.is_wanted():
            by_loop.setdefault(opening.loop, []).append((opening, row))
        else:  # its loop may be closed before it looks again
            _drop(opening, row)
    for loop, opened in by_loop.items():
        if not tell(loop, [(_hand_over, each) for each in opened]):
            for opening, row in opened:
                _drop(opening, row)


def _drop(opening: Opening, row: RunRow | CheckpointError) -> None:
    if isinstance(row, RunRow):
        with suppress(Exception):  # nobody is there to be told, and the writer has others to serve
            opening.unwanted(row)


def _hand_over(opening: Opening, row: RunRow | CheckpointError) -> None:
    if isinstance(row, RunRow):
        opening.claimed(row, None)
    else:
        opening.claimed(None, row)


class _Told:
    """What the runs are told of a commit; those of one loop with one wake-up."""

    def __init__(self) -> None:
        self._news: dict[asyncio.AbstractEventLoop, list[News]] = {}

    def add(self, book: Book, fn: Callable[..., None], *args: Any) -> None:
        if book.at_once:
            book.inbox.post(fn, *args)
        else:
            self._news.setdefault(book.loop, []).append((fn, args))

    def failed(self, book: Book, error: CheckpointError) -> None:
        book.close()
        self.add(book, book.failed, error)

    def send(self) -> None:
        for loop, news in self._news.items():
            tell(loop, news)


def _of_its_own(error: BaseException) -> CheckpointError:
    """What one run is told of an error that many have: each notes on it how to go on."""
    if not isinstance(error, CheckpointError):
        wrapped = StoreError(f"the store failed: {type(error).__name__}: {error}")
        wrapped.__cause__ = error
        return wrapped
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)


# One writer for each store, however many runs and loops use it; it goes when the store goes.
_journals: WeakKeyDictionary[Checkpointer, Journal] = WeakKeyDictionary()
_journals_lock = threading.Lock()


def journal_of(store: Checkpointer) -> Journal:
    """The writer of this store."""
    journal = _journals.get(store)
    if journal is None:
        with _journals_lock:  # two would be two writers
            journal = _journals.setdefault(store, Journal())
    return journal
