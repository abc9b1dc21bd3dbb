"""Making outcomes durable: everything that waits goes into one commit.

A store that needs the disk has one writer thread, shared by all runs that use it. While it commits, more comes
together for the next commit, so that a thousand outcomes cost a handful of them. Where the store needs nothing
(``instant``), or time is virtual, the run itself writes.

The same thread says that the owner of the runs is alive (:meth:`weft.checkpoint.base.Checkpointer.beat`), also while
there is nothing to write. What waits to be written is written first.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

from msgspec.structs import replace

from weft.checkpoint.base import Change, Checkpointer, Record, RunStatus, Write
from weft.errors import CheckpointError, OwnerLostError, StoreError

if TYPE_CHECKING:
    from weft.engine.inbox import Inbox

#: Seconds for which an idle writer keeps its thread.
_KEEP = 10.0

#: How often in a lease a writer says that the owner is alive.
_BEATS = 4


@dataclass(slots=True, eq=False, weakref_slot=True)
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
    closed: bool = False
    waiting: int = 0  # entries that are not known to be durable; counted on the run's loop

    def __post_init__(self) -> None:
        if not self.at_once:
            journal_of(self.store).keep_alive(self)


@dataclass(slots=True, eq=False)
class Entry:
    """A record to be written, and what to do, with its batch number, once it is durable."""

    book: Book
    record: Record | None
    done: Callable[[int], None] | None = None
    change: Change | None = None
    batch: int = 0  # given already: the outcome was shown before it is durable


class Journal:
    """The writer of one store, which it does not keep alive: the books of its runs do."""

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._entries: deque[Entry] = deque()
        self._open: WeakSet[Book] = WeakSet()  # whose owner is to be heard of
        self._wake = threading.Condition()
        self._writing = False
        self._beat_at = 0.0  # when the owner is to be heard of next, on the monotonic clock
        self._pid = os.getpid()

    def add(self, *entries: Entry) -> None:
        """Have entries written; their ``done`` is called on the loop of their run when they are durable."""
        entries[0].book.waiting += len(entries)
        if entries[0].book.at_once:
            self._commit(list(entries))
            return
        self._stay_in_this_process()
        with self._wake:
            self._entries.extend(entries)
            if self._writing:
                self._wake.notify()
                return
            try:
                self._start()
            except RuntimeError as error:
                waiting = list(self._entries)
                self._entries.clear()
                for book in {entry.book for entry in waiting}:
                    _give_up(book, _unexpected(error))

    def keep_alive(self, book: Book) -> None:
        """Say again and again that the owner of this book is alive, until it is closed."""
        self._stay_in_this_process()
        with self._wake:
            self._open.add(book)
            if self._writing:
                self._wake.notify()
                return
            self._beat_at = time.monotonic() + book.store.lease / _BEATS  # opening the run was a beat
            with suppress(RuntimeError):  # no thread to be had: the first entry will say so
                self._start()

    def _stay_in_this_process(self) -> None:
        if self._pid != os.getpid():
            self._begin_anew()  # the writer stayed in the parent process

    def _start(self) -> None:
        threading.Thread(target=self._write, name="weft-journal", daemon=True).start()
        self._writing = True

    def _write(self) -> None:
        idle_until = time.monotonic() + _KEEP
        while True:
            with self._wake:
                if not self._entries:
                    until = min(self._beat_at, time.monotonic() + _KEEP) if self._open else idle_until
                    self._wake.wait(max(until - time.monotonic(), 0.0))
                entries = list(self._entries)
                self._entries.clear()
                if not entries and not self._open and time.monotonic() >= idle_until:
                    self._writing = False
                    return
            if entries:
                self._commit(entries)
                idle_until = time.monotonic() + _KEEP
            del entries  # what they hold must not live until the next commit
            if time.monotonic() >= self._beat_at:
                self._beat()

    def _beat(self) -> None:
        with self._wake:
            closed = [book for book in self._open if book.closed]
            self._open.difference_update(closed)
            book = next(iter(self._open), None)
        if book is None:
            return
        self._beat_at = time.monotonic() + book.store.lease / _BEATS
        # A beat that fails does no harm: if the store is gone the next commit says so, and if others take the
        # runs over meanwhile, they are right to.
        with suppress(Exception):
            book.store.beat()

    def _commit(self, entries: list[Entry]) -> None:
        groups: dict[Book, list[Entry]] = {}
        for entry in entries:
            if not entry.book.closed:
                groups.setdefault(entry.book, []).append(entry)
        if not groups:
            return
        store = entries[0].book.store
        try:
            refused = store.commit([_write_of(book, group) for book, group in groups.items()])
        except Exception as error:  # whatever a store raises, the runs must hear of it
            self._forget(groups)
            for book in groups:
                _give_up(book, error if isinstance(error, CheckpointError) else _unexpected(error))
            return
        self._forget(book for book, group in groups.items() if book.run_id in refused or _ends(group))
        for book, group in groups.items():
            if book.run_id in refused:
                _give_up(book, OwnerLostError(f"run {book.run_id!r} was taken over by another owner"))
            else:
                book.inbox.post(_tell, book.batch, group)

    def _forget(self, books: Iterable[Book]) -> None:
        """Nothing is open in them any more."""
        with self._wake:
            self._open.difference_update(books)


def _ends(group: list[Entry]) -> bool:
    return any(entry.change and entry.change.status is not RunStatus.RUNNING for entry in group)


def _write_of(book: Book, group: list[Entry]) -> Write:
    if any(not entry.batch for entry in group):
        book.batch += 1
    records = [replace(e.record, batch=e.batch or book.batch) for e in group if e.record is not None]
    change = next((entry.change for entry in group if entry.change is not None), None)
    return Write(book.run_id, book.fence, records, change)


def _tell(batch: int, group: list[Entry]) -> None:
    group[0].book.waiting -= len(group)
    for entry in group:
        if entry.done is not None:
            entry.done(entry.batch or batch)
    group[0].book.shown()


def _give_up(book: Book, error: Exception) -> None:
    book.closed = True
    book.inbox.post(book.failed, error)


def _unexpected(error: Exception) -> StoreError:
    wrapped = StoreError(f"the store failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


# One writer for each store, however many runs and loops use it; it goes when the store goes.
_journals: WeakKeyDictionary[Checkpointer, Journal] = WeakKeyDictionary()
_journals_lock = threading.Lock()


def journal_of(store: Checkpointer) -> Journal:
    """The writer of this store."""
    with _journals_lock:
        journal = _journals.get(store)
        if journal is None:
            journal = _journals[store] = Journal()
        return journal
