"""Journals in a Postgres database, shared by any number of processes and machines.

A store has up to three connections, each opened when it is first needed: one that writes, one that reads, and the
owner's own, which holds an advisory lock for as long as this object owns anything, and says that it is alive.

Everything that a decision rests on is checked in the transaction that acts on it. What is remembered of the runs that
are open in this object, so that a commit needs to read nothing, is compared there with what the database has.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, LiteralString, Self

from msgspec import structs

from weft.checkpoint import postgres_sql as sql
from weft.checkpoint.base import (
    Change,
    Checkpointer,
    OpenRun,
    Record,
    RunRow,
    ThreadState,
    Write,
    usual_codec,
)
from weft.checkpoint.closing import Closing
from weft.checkpoint.keep import ENDED, Keep, Upkeep, checked_keep, size_of_end
from weft.checkpoint.owner import (
    LEASE,
    Others,
    Pulse,
    checked_lease,
    refuse_mismatch,
    run_busy,
    run_not_found,
    shown,
    thread_busy,
    watch_forks,
)
from weft.checkpoint.postgres_link import MISFITS, Address, Database, Link, lock_key
from weft.checkpoint.postgres_upkeep import clear, tidy
from weft.checkpoint.postgres_upkeep import delete as delete_runs
from weft.checkpoint.rows import (
    STATUS_CODE,
    Row,
    StoredRun,
    after,
    new_row,
    new_run,
    outcome_columns,
    record_columns,
    seal,
    sealed,
    time_of,
    to_bytes,
    to_record,
    to_run,
    to_run_row,
    to_text,
    unsealed,
)
from weft.checkpoint.sent import sent
from weft.checkpoint.sharing import LEAST_RECORD
from weft.core.status import RunStatus
from weft.errors import CheckpointError, CorruptDataError, RunBusyError, StoreError

if TYPE_CHECKING:
    from weft.checkpoint.codec import Codec

#: A commit of more records or bytes than this sends its records in portions of this size, after all else.
_MANY_RECORDS = 2_000
_MANY_BYTES = 16 * 2**20

#: Records of forgotten runs that are deleted in one transaction when nobody waits for it.
_CLEARED_AT_ONCE = 5_000

#: Seconds that a server is given, one after the other, to notice that an owner has died.
_TO_NOTICE = (0.01, 0.04)

_MOST = 2**62  # a number of rows or a position that nothing reaches

_RUNNING: Final = STATUS_CODE[RunStatus.RUNNING]


class PostgresSaver(Closing, Checkpointer):
    """A checkpointer that keeps journals in a Postgres database.

    Any number of threads, processes and machines may use it at the same time, each process with an object of its own.
    A commit is on the server's disk when it returns. Nothing is connected or created before the first use; a closed
    object connects again when it is used, and so does one whose connection was lost. A commit whose answer was lost
    raises :class:`weft.StoreError`: it may have been done or not. It is not done again; the run is to be resumed, and
    finds what was committed. It is a context manager, sync and async, that closes.

    Behind a pooler that gives each transaction another session (pgbouncer in transaction mode), say ``pooled=True``.
    Locks of a session do not work there. With ``direct=``, an address past the pooler, the owner's own connection is
    made there, and all is as without one. Without it only the lease tells whether an owner is alive: the runs of one
    that was killed are free after ``lease`` seconds, and not at once.

    Args:
        conninfo: ``"postgresql://user@host:5432/database"``, or what libpq calls a conninfo string. What it leaves
            open comes from the environment (PGHOST, PGPASSWORD ...), as everywhere with Postgres.
        schema: The schema that the tables are in; it is created if need be.
        codec: How values become bytes; the default knows the types that come with Python.
        lease: After how many seconds of silence others may take over what this object has open. While it has
            something open, the engine sees to it that it :meth:`beats <beat>` every ``lease / 4`` seconds.
        timeout: For how many seconds the server may take for a statement, waiting for locks included.
        connect_timeout: For how many seconds to try to connect (rounded up to whole ones).
        pooled: The address is that of a pooler in transaction mode.
        direct: An address past that pooler, for the owner's own connection.
        keep: What it keeps of runs that have ended; everything, unless told. Each object forgets by its own, after
            a commit that ends runs.

    Raises:
        InputError: An argument is none of these.
        ImportError: psycopg is missing: ``pip install 'weft[postgres]'``.
    """

    instant = False  # a commit waits for the server and its disk

    def __init__(
        self,
        conninfo: str,
        *,
        schema: str = "weft",
        codec: Codec | None = None,
        lease: float = LEASE,
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        pooled: bool = False,
        direct: str | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.codec = codec or usual_codec()
        self.lease = checked_lease(lease)

        def address(of: str, seconds: float, *, pooled: bool) -> Address:
            return Address.checked(
                of,
                schema=schema,
                timeout=seconds,
                connect_timeout=connect_timeout,
                # A process that stops in the middle of a transaction must not keep its locks for longer than it is
                # taken to be alive; one that only pauses for a moment is not to be disturbed.
                idle=min(max(self.lease / 2, 2.0), 10.0),
                pooled=pooled,
            )

        self._address = address(conninfo, timeout, pooled=pooled)
        self._locks = direct is not None or not pooled
        self._writer = Link(self._address.named("writer"), sql.BEGIN_WRITING, "write to")
        self._reader = Link(self._address.named("reader"), sql.BEGIN_READING, "read")
        # A beat must come in time or not at all, and need not reach the disk.
        hurry = min(timeout, max(self.lease / 4, 1.0))
        own = address(conninfo if direct is None else direct, hurry, pooled=pooled and direct is None)
        self._own = Link(own.named("owner"), sql.BEGIN_WRITING, "write to", self._hold_lock)
        # The following are guarded by the writer's lock.
        self._owner: str | None = None
        self._pulse = Pulse(self.lease)
        self._others = Others()
        self._held: dict[str, _Held] = {}  # the runs that are open in this object
        self.keep = checked_keep(keep)
        self._upkeep = None if keep is None else Upkeep(keep)
        self._sent = sent(
            conninfo,
            schema=schema,
            lease=lease,
            timeout=timeout,
            connect_timeout=connect_timeout,
            pooled=pooled,
            direct=direct,
        )
        watch_forks(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process: a store of the same tables, opened there."""
        return self._sent(self)

    @classmethod
    def from_conn_string(cls, conninfo: str) -> Self:
        """The same as ``PostgresSaver(conninfo)``, by the name that users of LangGraph know."""
        return cls(conninfo)

    def setup(self) -> None:
        """Create the schema and its tables now, or bring them up to date.

        That is done with the first use anyway. Called by a role that may create tables, it lets others do without:
        they need ``USAGE`` of the schema, and to select, insert, update and delete in its tables and sequence.
        """
        self._writer.ensure()

    # --- Runs ---------------------------------------------------------------------------------------------

    def open_many(self, requests: Sequence[OpenRun]) -> list[RunRow | CheckpointError]:
        """Create each run, or take it over from nobody or a dead owner; its row, or why it cannot be had."""
        if not requests:
            return []
        found: list[RunRow | CheckpointError] = []

        def work(db: Database) -> None:
            self._undo_opening(found)  # in an attempt that was rolled back
            found.clear()
            self._open_all(db, requests, found)

        with self._writer as writer:
            if self._owner is not None:
                self._keep_lock()
            try:
                writer.transact(work)
            except BaseException:
                self._undo_opening(found)
                raise
        return found

    def open(self, request: OpenRun) -> RunRow:
        """The same for one run, whose error is raised.

        A server takes a moment to notice that a process has died, so a run whose owner seems to be alive is looked
        at again after that.
        """
        for pause in _TO_NOTICE:
            try:
                return super().open(request)
            except RunBusyError as error:
                if error.retry_after is None:  # it is this very object that has it
                    raise
            time.sleep(pause)  # others that use this object do not wait meanwhile
        return super().open(request)

    def commit(self, writes: Sequence[Write]) -> set[str]:
        """Make all writes durable in one transaction; the ids of runs whose fence was refused."""
        if not writes:
            return set()
        with self._writer as writer:
            draft = self._drafted(writes)
            if draft.runs:
                self._keep_lock()
                kept = self._commit(writer, draft, self._due_beat())
                if kept is None:  # somebody has added answers meanwhile
                    draft, kept = writer.transact(lambda db: self._commit_locked(db, writes))
                self._committed(draft, kept)
                self._forget_some(writer, draft)
        return draft.refused

    def beat(self) -> None:
        """Say that the owner of what this object has open is alive, unless that was said a moment ago.

        It also sees to it that the owner's lock is still held, and takes it again when its connection was lost.
        """
        if not self._held or not self._pulse.is_due():
            return
        owner = self._owner
        if owner is None:
            return
        with self._own if self._locks else self._writer as link:
            if self._owner == owner:  # else this was closed while we waited
                link.transact(lambda db: self._say_alive(db, owner))

    def release(self, run_id: str, fence: int) -> None:
        """Give a run up without changing what it is: it stays RUNNING, and anybody may take it over.

        In this process it is free even when the store cannot be written to.
        """
        with self._writer as writer:
            self._let_go(run_id, fence)
            owner = self._owner
            if owner is None:
                return

            def give_up(db: Database) -> None:
                run = _load(db, run_id)
                if run is not None and run.owner == owner and run.fence == fence:
                    _change(db, run._replace(owner=None))

            writer.transact(give_up)

    def find(self, run_id: str) -> RunRow | None:
        """The run, if there is one."""
        rows = self._whole_runs(sql.WHOLE_RUN, {"run_id": to_bytes(run_id)})
        return rows[0] if rows else None

    def runs(self, *, thread_id: str | None = None, limit: int = 100) -> list[RunRow]:
        """The newest runs first."""
        most = _count(limit)
        if thread_id is None:
            return self._whole_runs(sql.NEWEST_RUNS, {"limit": most})
        params = {"thread_id": to_bytes(thread_id), "limit": most}
        return self._whole_runs(sql.NEWEST_RUNS_OF_THREAD, params)

    def _whole_runs(self, statement: LiteralString, params: dict[str, Any]) -> list[RunRow]:
        rows = self._reader.single(statement, params)
        if not any(map(_is_apart, rows)):
            return [_whole(None, row)[1] for row in rows]
        return self._reader.transact(  # they are of one moment with the records
            lambda db: [_whole(db, row)[1] for row in db.execute(statement, params, binary=True).fetchall()]
        )

    def delete_run(self, run_id: str) -> bool:
        """Forget a run that no living owner runs; whether there was one.

        What it has saved in its thread stays.
        """

        def delete(db: Database) -> bool:
            self._lock_name(db, b"run", run_id)
            run = _load(db, run_id)
            if run is None:
                return False
            if held := self._held_for(db, run):
                raise run_busy(run_id, held)
            delete_runs(db, [run.key])
            return True

        with self._writer as writer:
            return writer.transact(delete)

    # --- Records ------------------------------------------------------------------------------------------

    def records(self, run_id: str, *, after: int = 0, limit: int = 1000) -> list[tuple[int, Record]]:
        """A page of the journal in the order of writing, each with its position; after a position."""

        def page(db: Database) -> tuple[int, int, list[Row]]:
            columns = db.execute(sql.RUN, {"run_id": to_bytes(run_id)}, binary=True).fetchone()
            if columns is None:
                return 0, 0, []
            run = to_run(columns)
            first = min(max(after, 0), run.position)
            last = min(first + max(limit, 0), run.position)
            params = {"run": run.key, "after": first, "last": last}
            return first, last, db.execute(sql.PAGE_OF_RECORDS, params, binary=True).fetchall()

        first, last, rows = self._reader.transact(page)
        if len(rows) != last - first:
            raise CorruptDataError(
                f"{self._address}: records of run {shown(run_id)} are missing from its journal"
            )
        return [(position, _record(row)) for position, row in enumerate(rows, first + 1)]

    def add_answers(self, run_id: str, answers: Sequence[Record]) -> None:
        """Add answers to a run whoever owns it."""
        records = [structs.replace(answer, batch=0) for answer in answers]

        def add(db: Database) -> None:
            run = _load(db, run_id)
            if run is None:
                raise run_not_found(run_id)
            if not records:
                return
            _append(db, _record_rows(run, records))
            _change(db, after(run, records, time.time()))

        with self._writer as writer:
            writer.transact(add)

    # --- Threads ------------------------------------------------------------------------------------------

    def states(self, thread_id: str, *, limit: int = 100) -> list[ThreadState]:
        """The saved values of a thread, the newest first."""
        params = {"thread_id": to_bytes(thread_id), "limit": _count(limit)}
        return [_state(row) for row in self._reader.single(sql.NEWEST_STATES, params)]

    def save_state(self, thread_id: str, value: bytes, *, created: float) -> None:
        """Add a saved value to a thread that no living owner runs."""

        def save(db: Database) -> None:
            self._lock_name(db, b"thread", thread_id)
            self._refuse_busy_thread(db, thread_id)
            name = to_bytes(thread_id)
            db.execute(sql.APPEND_STATE, sealed((name, _next_state(db, name), value, time_of(created), None)))

        with self._writer as writer:
            writer.transact(save)

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread that no living owner runs, with its runs and saved values."""

        def delete(db: Database) -> None:
            self._lock_name(db, b"thread", thread_id)
            self._refuse_busy_thread(db, thread_id)
            params = {"thread_id": to_bytes(thread_id)}
            rows = db.execute(sql.RUNS_OF_THREAD, params, binary=True).fetchall()
            delete_runs(db, [row[0] for row in rows])
            db.execute(sql.DELETE_STATES, params)

        with self._writer as writer:
            writer.transact(delete)

    # --- Life ---------------------------------------------------------------------------------------------

    def vacuum(self) -> None:
        """Make room of what was deleted for what comes. What stays in use of the disk is the server's to say."""
        while self._writer.transact(lambda db: clear(db, _CLEARED_AT_ONCE)):
            pass
        # On a connection of its own: it may wait for others, and runs go on meanwhile.
        Link(self._address.named("vacuum"), sql.BEGIN_WRITING, "vacuum").alone(sql.VACUUM)

    def close(self) -> None:
        """Close the connections. Runs that are still open in this object are free for others."""
        with self._writer as writer, self._own as own:
            self._held.clear()
            owner, self._owner = self._owner, None
            self._pulse.stop()
            link = own if self._locks else writer
            if owner is not None and link.is_open:
                with suppress(Exception):  # it is swept away later
                    link.transact(lambda db: db.execute(sql.DELETE_OWNER, {"owner": owner}))
            own.close()
            writer.close()
        with self._reader as reader:
            reader.close()

    def __repr__(self) -> str:
        return f"<PostgresSaver {self._address}>"

    def before_fork(self) -> None:
        """Let no fork happen while a thread is talking to the server."""
        for link in (self._writer, self._own, self._reader):
            link.lock.acquire()

    def after_fork(self, *, child: bool) -> None:
        """Go on. A child starts anew: connections, lock and runs are its parent's."""
        if child:
            for link in (self._writer, self._own, self._reader):
                link.forget()
            self._owner = None
            self._held.clear()
            self._pulse.stop()
        for link in (self._reader, self._own, self._writer):
            link.lock.release()

    # --- Opening, inside a transaction --------------------------------------------------------------------

    def _open_all(
        self, db: Database, requests: Sequence[OpenRun], found: list[RunRow | CheckpointError]
    ) -> None:
        """Open the runs one after the other; what is found is added as it is."""
        there = self._locked(db, requests)
        new = _New(db, expected=sum(request.run_id not in there for request in requests))
        for request in requests:
            try:
                found.append(self._opened(db, request, there.get(request.run_id), new))
            except StoreError:
                raise
            except CheckpointError as error:
                found.append(error)
        new.flush()

    def _locked(self, db: Database, requests: Sequence[OpenRun]) -> dict[str, Row]:
        """Let nobody else open or delete these runs, or others of their threads; the rows that are there."""
        run_ids = {request.run_id: to_bytes(request.run_id) for request in requests}
        self._lock_names(db, b"run", run_ids.values())
        rows = db.execute(sql.WHOLE_RUNS, {"run_ids": [*run_ids.values()]}, binary=True).fetchall()
        threads = {to_bytes(request.thread_id) for request in requests if request.thread_id is not None}
        threads.update(row[_THREAD] for row in rows if row[_THREAD] is not None)
        self._lock_names(db, b"thread", threads)
        return {to_text(row[_RUN_ID]): row for row in rows}

    def _opened(self, db: Database, request: OpenRun, columns: Row | None, new: _New) -> RunRow:
        if request.run_id in new.run_ids:
            new.flush()
            columns = _whole_run(db, request.run_id)
        return self._create(db, request, new) if columns is None else self._claim(db, request, columns, new)

    def _claim(self, db: Database, request: OpenRun, columns: Row, new: _New) -> RunRow:
        run, row = _whole(db, columns)
        refuse_mismatch(row, request)
        if row.status is RunStatus.FINISHED:
            return row
        locked = _load(db, request.run_id)
        if locked != run:  # its owner has written, or ended it, or its thread was deleted, while we waited
            return self._opened(db, request, _whole_run(db, request.run_id), new)
        if held := self._held_for(db, run):
            raise run_busy(row.run_id, held)
        new.flush_for(run.thread_id)
        self._refuse_busy_thread(db, row.thread_id, but=run.key)
        now = time_of(request.created or time.time())
        taken = run._replace(status=_RUNNING, owner=self._enter(db), fence=run.fence + 1, updated=now)
        _change(db, taken)
        self._held[row.run_id] = _Held.of(db, taken)
        return structs.replace(row, status=RunStatus.RUNNING, fence=taken.fence)

    def _create(self, db: Database, request: OpenRun, new: _New) -> RunRow:
        if request.input is None:
            raise run_not_found(request.run_id)
        if request.thread_id is not None:
            new.flush_for(to_bytes(request.thread_id))
        self._refuse_busy_thread(db, request.thread_id)
        run = new_run(request, request.input, new.number(), self._enter(db))
        new.add(run, request.input)
        self._held[request.run_id] = _Held.of(db, run)
        return new_row(request, request.input, run)

    def _undo_opening(self, found: Iterable[RunRow | CheckpointError]) -> None:
        for row in found:
            if isinstance(row, RunRow):
                self._let_go(row.run_id, row.fence)

    def _let_go(self, run_id: str, fence: int) -> None:
        held = self._held.get(run_id)
        if held is not None and held.run.fence == fence:
            del self._held[run_id]

    def _lock_names(self, db: Database, kind: bytes, names: Iterable[bytes]) -> None:
        """Let nobody else create, open or delete what has these names, until the end of the transaction."""
        keys = sorted(self._key_of_name(kind, name) for name in names)
        if keys:
            db.execute(sql.LOCK_NAMES, {"keys": keys})

    def _lock_name(self, db: Database, kind: bytes, name: str) -> None:
        """Let nobody else create, open or delete what has this name, until the end of the transaction."""
        db.execute(sql.LOCK_NAME, {"key": self._key_of_name(kind, to_bytes(name))})

    def _is_free(self, db: Database, run: StoredRun) -> bool:
        """Whether nobody has locked the name of a run; it is locked then."""
        key = self._key_of_name(b"run", run.run_id)
        return bool(_scalar(db.execute(sql.TRY_TO_LOCK_NAME, {"key": key}).fetchone()))

    def _key_of_name(self, kind: bytes, name: bytes) -> int:
        return lock_key(self._address.schema.encode(), kind, name)

    def _held_for(self, db: Database, run: StoredRun) -> float:
        """For how many seconds the run is its owner's at least; 0: nobody has it, or nobody alive."""
        if run.owner is None:
            return 0.0
        if run.owner == self._owner:
            held = self._held.get(to_text(run.run_id))
            return math.inf if held is not None and held.run.fence == run.fence else 0.0
        params = {"owner": run.owner, "key": _key_of(run.owner)}
        row = db.execute(sql.LOOK_AT_OWNER, params, binary=True).fetchone()
        assert row is not None  # one row, whatever is there
        is_free, *columns = row
        if is_free:
            self._others.forget(run.owner)
            return 0.0
        if columns[0] is None:
            return self._others.patience(run.owner, None, self.lease)
        _, _, _, beat, lease = unsealed(tuple(columns), "an owner")
        return self._others.patience(run.owner, beat, lease)

    def _refuse_busy_thread(self, db: Database, thread_id: str | None, but: int | None = None) -> None:
        """See to it that nobody writes to a run of this thread: a silent owner might wake up."""
        if thread_id is None:
            return
        params = {"thread_id": to_bytes(thread_id)}
        for columns in db.execute(sql.OWNED_RUNS_OF_THREAD, params, binary=True).fetchall():
            run = to_run(columns)
            if run.key == but:
                continue
            if held := self._held_for(db, run):
                raise thread_busy(thread_id, to_text(run.run_id), held)
            _change(db, run._replace(owner=None))

    # --- Being an owner -----------------------------------------------------------------------------------

    def _enter(self, db: Database) -> str:
        """Be an owner, and say so."""
        if self._owner is None:
            self._owner = secrets.token_hex(16)
            self._pulse.stop()
            self._keep_lock()
            db.execute(sql.SWEEP_OWNERS, {"owner": self._owner})
        if self._pulse.is_due():
            self._say_alive(db, self._owner)
        return self._owner

    def _keep_lock(self) -> None:
        """See to it that the owner's lock is held, as far as that can be told without asking the server."""
        if self._locks:
            self._own.ensure()

    def _hold_lock(self, db: Database) -> None:
        """The owner's own connection is new."""
        if not self._locks:
            return
        db.execute(sql.HURRIED)
        if self._owner is None:
            return
        key = {"key": _key_of(self._owner)}
        if not _scalar(db.execute(sql.TAKE_FREE_LOCK, key).fetchone()):
            # A connection that was lost here may be alive there for hours: the server was told nothing.
            db.execute(sql.END_FORMER_SESSION, key)
            db.execute(sql.TAKE_LOCK, key)

    def _say_alive(self, db: Database, owner: str) -> None:
        db.execute(sql.BEAT, dict(zip(_BEAT, self._next_beat(owner), strict=True)))

    def _next_beat(self, owner: str) -> Row:
        return sealed((owner, _key_of(owner), self._locks, self._pulse.next(), self.lease))

    def _due_beat(self) -> list[Row]:
        if self._owner is None or not self._pulse.is_due():
            return []
        return [self._next_beat(self._owner)]

    # --- Committing ---------------------------------------------------------------------------------------

    def _drafted(self, writes: Sequence[Write]) -> _Draft:
        try:
            return _Draft(self._held, writes, self._values)
        except MISFITS as error:  # a number that no column holds, or what is no value at all
            raise self._address.failure(error, "write to") from error

    def _values(self, run: StoredRun) -> list[tuple[int, bytes]]:
        params = {"run": run.key, "last": run.position, "least": LEAST_RECORD}
        return self._reader.single(sql.VALUES, params)

    def _commit(self, writer: Link, draft: _Draft, beats: list[Row]) -> set[int] | None:
        """Commit what is drafted: the runs whose fence was not refused, or None when a draft did not fit."""
        params = {"owner": self._owner, **draft.params(), **_columns("b", _BEAT, beats)}
        if draft.is_big:
            return writer.transact(lambda db: _commit_big(db, params, draft))
        params |= _columns("r", _RECORD, draft.records)
        return _kept(writer.single(sql.COMMIT_WRITES, params))

    def _commit_locked(self, db: Database, writes: Sequence[Write]) -> tuple[_Draft, set[int]]:
        """The same with the runs as they are, which nobody else can change meanwhile."""
        keys = [self._held[name].run.key for name in {write.run_id for write in writes} if name in self._held]
        rows = db.execute(sql.LOCKED_RUNS, {"runs": keys}, binary=True).fetchall()
        for run in map(to_run, rows):
            held = self._held.get(to_text(run.run_id))
            if held is not None and (run.owner, run.fence) == (self._owner, held.run.fence):
                held.run = run
        draft = self._drafted(writes)
        params = {"owner": self._owner, **draft.params(), **_columns("b", _BEAT, self._due_beat())}
        kept = _commit_big(db, params, draft)
        assert kept is not None  # the rows are locked
        return draft, kept

    def _committed(self, draft: _Draft, kept: set[int]) -> None:
        """What is in the database now is what was drafted, for the runs that were kept."""
        for run_id, new in draft.runs.items():
            if new.run.key not in kept:
                draft.refused.add(run_id)
                del self._held[run_id]
            elif new.run.owner is None:
                del self._held[run_id]
            else:
                self._held[run_id] = new

    def _forget_some(self, writer: Link, draft: _Draft) -> None:
        upkeep = self._upkeep
        if upkeep is None:
            return
        upkeep.added(draft.ended, draft.bytes)
        if draft.ended:
            with suppress(StoreError):  # what was to be written is; this is tried again with the next
                writer.transact(lambda db: tidy(db, upkeep, draft.ended, lambda run: self._is_free(db, run)))


# --- Drafts of commits ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Held:
    """A run that is open in this object: its row, and the number of the next value that it saves."""

    run: StoredRun
    next_state: int = 1

    @classmethod
    def of(cls, db: Database, run: StoredRun) -> _Held:
        """A run that has just been opened; while it is open, nobody else saves a value in its thread."""
        return cls(run, 1 if run.thread_id is None else _next_state(db, run.thread_id))


class _New:
    """Runs that are created in one transaction, with few statements for many."""

    def __init__(self, db: Database, *, expected: int) -> None:
        self.run_ids: set[str] = set()
        self._threads: set[bytes | None] = set()  # of those that are not in the database yet
        self._db = db
        self._expected = expected
        self._numbers: list[int] = []  # the smallest one last
        self._rows: list[Row] = []

    def number(self) -> int:
        """The key of the next run."""
        if not self._numbers:
            rows = self._db.execute(sql.NEXT_RUNS, {"count": max(self._expected, 1)}, binary=True).fetchall()
            self._numbers = sorted((row[0] for row in rows), reverse=True)
            self._expected = 1
        return self._numbers.pop()

    def add(self, run: StoredRun, given: bytes) -> None:
        """Create this run."""
        self._rows.append((*sealed(run), given, seal((run.key, given))))
        self.run_ids.add(to_text(run.run_id))
        self._threads.add(run.thread_id)

    def flush_for(self, thread_id: bytes | None) -> None:
        """See to it that runs of this thread are there."""
        if thread_id is not None and thread_id in self._threads:
            self.flush()

    def flush(self) -> None:
        """See to it that they are there."""
        if self._rows:
            self._db.execute(sql.CREATE_RUNS, _columns("n", _NEW, self._rows))
        self._rows.clear()
        self._threads.clear()


_NEW: Final = (*StoredRun._fields, "seal", "input", "input_seal")
_RUN_ID, _THREAD = StoredRun._fields.index("run_id"), StoredRun._fields.index("thread_id")
_WRITE: Final = (
    *("run", "fence", "was_at", "was_sealed", "status", "owned"),
    *("position", "batches", "size", "updated", "seal"),
)
_RECORD: Final = (
    *("run", "position", "kind", "identity", "parent", "ordinal", "step", "value", "attempts", "started"),
    *("ended", "batch", "asked", "limits", "seal"),
)
_POSITION, _VALUE = _RECORD.index("position"), _RECORD.index("value")
_Values = Callable[[StoredRun], list[tuple[int, bytes]]]
_OUTCOME: Final = ("run", "status", "output", "error", "is_apart", "seal")
_SAVED: Final = ("run", "thread_id", "number", "value", "created", "run_id", "seal")
_BEAT: Final = ("owner", "key", "locks", "beat", "lease", "seal")


class _Draft:
    """The rows that a commit writes, worked out from what is known of the runs."""

    def __init__(self, held: dict[str, _Held], writes: Sequence[Write], values: _Values) -> None:
        self._values = values
        self.runs: dict[str, _Held] = {}  # as they will be
        self.refused: set[str] = set()
        self.records: list[Row] = []
        self._was: dict[str, StoredRun] = {}
        self._outcomes: dict[int, Row] = {}
        self._saved: list[Row] = []
        self.ended = 0  # runs
        self.bytes = 0
        now = time.time()
        for write in writes:
            run_id = write.run_id
            known = self.runs.get(run_id) or held.get(run_id)
            if known is None or known.run.owner is None or known.run.fence != write.fence:
                self.refused.add(run_id)
                continue
            self._was.setdefault(run_id, known.run)
            self.runs[run_id] = self._after(known, write, now)

    def _after(self, known: _Held, write: Write, now: float) -> _Held:
        self.records += _record_rows(known.run, write.records)
        self.bytes += sum(len(record.value or b"") for record in write.records)
        run = after(known.run, write.records, now, write.change)
        if write.change is None:
            return _Held(run, known.next_state)
        return self._changed(_Held(run, known.next_state), write.change)

    def _changed(self, known: _Held, change: Change) -> _Held:
        run = known.run
        self._outcomes[run.key] = sealed(outcome_columns(run, change, lambda: self._all_values(run)))
        self.ended += change.status in ENDED
        self.bytes += size_of_end(change)
        if change.saved is None or run.thread_id is None:
            return _Held(run, known.next_state)
        state = (run.thread_id, known.next_state, change.saved, run.updated, run.run_id)
        self._saved.append((run.key, *sealed(state)))
        return _Held(run, known.next_state + 1)

    def _all_values(self, run: StoredRun) -> list[tuple[int, bytes]]:
        """The values of the run's records, those of this commit among them."""
        here = [(row[_POSITION], row[_VALUE]) for row in self.records if row[0] == run.key]
        return [*self._values(run), *here]

    @property
    def is_big(self) -> bool:
        """Whether its records are better sent in portions."""
        return len(self.records) > _MANY_RECORDS or self.bytes > _MANY_BYTES

    def params(self) -> dict[str, list[Any]]:
        """Of the statement, but for records and beats."""
        rows = []
        for run_id, held in self.runs.items():
            was, run = self._was[run_id], held.run
            owned = run.owner is not None
            checked = (run.key, run.fence, was.position, seal(was))
            grown = (run.position, run.batches, run.size, run.updated, seal(run))
            rows.append((*checked, run.status, owned, *grown))
        columns = dict(zip(_WRITE, _transposed(rows, len(_WRITE)), strict=True))
        outcomes = _columns("o", _OUTCOME, list(self._outcomes.values()))
        return {**columns, **outcomes, **_columns("s", _SAVED, self._saved)}


def _columns(prefix: str, names: tuple[str, ...], rows: list[Row]) -> dict[str, list[Any]]:
    """Rows as parameters, one list for each column."""
    columns = _transposed(rows, len(names))
    return {f"{prefix}_{name}": column for name, column in zip(names, columns, strict=True)}


def _transposed(rows: list[Row], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _kept(rows: list[Row]) -> set[int] | None:
    """The answer to a commit: the runs that were still ours, unless nothing was done as not all of them fitted."""
    return {run for run, _ in rows} if all(fits for _, fits in rows) else None


def _commit_big(db: Database, params: dict[str, Any], draft: _Draft) -> set[int] | None:
    """In a transaction: the same as the one statement does, with the records after it."""
    statement = db.execute(sql.COMMIT_WRITES, {**params, **_columns("r", _RECORD, [])}, binary=True)
    kept = _kept(statement.fetchall())
    if kept is not None:
        _append(db, (row for row in draft.records if row[0] in kept))
    return kept


# --- Reading and writing rows -----------------------------------------------------------------------------


def _load(db: Database, run_id: str) -> StoredRun | None:
    """The run, which nobody else changes until the end of the transaction."""
    columns = db.execute(sql.LOCKED_RUN, {"run_id": to_bytes(run_id)}, binary=True).fetchone()
    return to_run(columns) if columns else None


def _whole_run(db: Database, run_id: str) -> Row | None:
    columns: Row | None = db.execute(sql.WHOLE_RUN, {"run_id": to_bytes(run_id)}, binary=True).fetchone()
    return columns


def _is_apart(columns: Row) -> bool:
    """Whether the result of a whole run is to be put together of its records."""
    return bool(columns[-2])


def _no_values(_positions: Sequence[int]) -> dict[int, bytes]:
    return {}


def _whole(db: Database | None, columns: Row) -> tuple[StoredRun, RunRow]:
    """A run with its input and outcome; without a database, one whose result is not to be put together."""
    width = len(StoredRun._fields) + 1
    run, stored_input, outcome = columns[:width], columns[width : width + 3], columns[width + 3 :]
    loaded = to_run(run)
    row = to_run_row(
        loaded,
        None if stored_input[0] is None else stored_input,
        None if outcome[0] is None else outcome,
        _no_values if db is None else lambda positions: _values_at(db, loaded, positions),
    )
    return loaded, row


def _values_at(db: Database, run: StoredRun, positions: Sequence[int]) -> dict[int, bytes]:
    params = {"run": run.key, "positions": list(positions)}
    return dict(db.execute(sql.VALUES_AT, params, binary=True).fetchall())


def _change(db: Database, run: StoredRun) -> None:
    db.execute(
        sql.CHANGE_RUN,
        {
            "run": run.key,
            "status": run.status,
            "owner": run.owner,
            "fence": run.fence,
            "position": run.position,
            "size": run.size,
            "updated": run.updated,
            "seal": seal(run),
        },
    )


def _record_rows(run: StoredRun, records: Iterable[Record]) -> list[Row]:
    """The rows of records that follow what the run has."""
    return [
        sealed((run.key, position, *record_columns(record)))
        for position, record in enumerate(records, run.position + 1)
    ]


def _append(db: Database, rows: Iterable[Row]) -> None:
    """Add rows to the records, so many at a time."""
    for portion in _portions(rows):
        db.execute(sql.APPEND_RECORDS, _columns("r", _RECORD, portion))


def _portions(rows: Iterable[Row]) -> Iterator[list[Row]]:
    portion: list[Row] = []
    size = 0
    for row in rows:
        portion.append(row)
        size += len(row[_VALUE] or b"")
        if len(portion) >= _MANY_RECORDS or size >= _MANY_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _record(columns: Row) -> Record:
    return to_record(unsealed(columns, "a record")[2:])


def _state(columns: Row) -> ThreadState:
    thread_id, number, value, created, run_id = unsealed(columns, "a saved value")
    return ThreadState(
        to_text(thread_id), number, value, created, None if run_id is None else to_text(run_id)
    )


def _next_state(db: Database, thread_id: bytes) -> int:
    return _scalar(db.execute(sql.NEXT_STATE, {"thread_id": thread_id}).fetchone())


def _scalar(row: Row | None) -> int:
    assert row is not None  # the statement gives one whatever is there
    return int(row[0])


def _key_of(owner: str) -> int:
    return lock_key(b"owner", owner.encode())


def _count(limit: int) -> int:
    return min(max(limit, 0), _MOST)
