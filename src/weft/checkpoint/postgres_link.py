"""Connections to a Postgres server: opened when they are needed, given up when they are lost, bounded in time."""

from __future__ import annotations

import math
import os
import struct
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Final, LiteralString, Self, TypeVar

from weft.checkpoint import postgres_sql as sql
from weft.errors import InputError, StoreError

try:
    import psycopg
    from psycopg import conninfo, pq
    from psycopg import sql as composing
    from psycopg.types.numeric import Int8BinaryDumper
except ImportError as error:
    raise ImportError(
        f"PostgresSaver needs psycopg 3 ({error}): install it with pip install 'weft[postgres]'"
    ) from error

T = TypeVar("T")

#: A connection.
Database = psycopg.Connection[Any]

#: Seconds that we wait longer for the server than it waits by itself, before its connection is given up.
_MARGIN = 5.0

#: The share of the time for a statement that it may wait for a lock: so the server can say that it was a lock.
_OF_LOCKS = 0.9

#: How often a transaction is tried that the server has rolled back only because of others.
_ATTEMPTS = 5

_ROLLED_BACK_FOR_OTHERS: Final = {"40001", "40P01"}  # serialization failure, deadlock

#: What to do when the server refuses a statement, by SQLSTATE. It has done nothing of the transaction then.
_ADVICE: Final = {
    "53100": "; free some space, then resume: what was committed is safe",
    "55P03": "; somebody has kept it locked for nearly {timeout:g} s: see pg_locks, then resume",
    "57014": "; the server did not do it within {timeout:g} s: see pg_stat_activity, then resume",
    "25006": "; this server cannot be written to: give the address of the primary, or see to "
    "default_transaction_read_only, then resume",
    "42501": "; let a role that may create the tables call `setup()` once, and grant this one their use",
    "3F000": "; the schema is gone: it is made anew with the next use",
    "42P01": "; a table of ours is gone: if all are, they are made anew with the next use; if others are there, "
    "put it back from a backup, or drop the schema with what is left in it",
    "42P07": "; the schema holds tables of another application: give another schema=; or, if they "
    "are of Weft, put their table weft_version back",
}
_REFUSED: Final = "; it was not done, and what was committed is safe: see to it, then resume"

#: Each of the servers' ways to end a session, by SQLSTATE: with what it was at, nobody knows how far it came.
_SESSION_ENDED: Final = {"57P01", "57P02"}
_UNKNOWN: Final = "; whether it was done is not known: resume the run, which finds what was committed"

# The reason is in the message only, and in the server's language: psycopg has no SQLSTATE of a failed attempt.
_NOT_CONNECTED: Final = (
    "; there is no connection, so nothing was done: see to host, port, database, user and password, and to how "
    "many connections the server allows (each store in use has up to three), then resume"
)

#: What a new session may be spared: it makes tables that are gone, and hears that the server may be written to again.
_SESSION_OUTDATED: Final = {"3F000", "42P01", "25006"}

# What a dumper of parameters raises when a value does not fit; nothing has been sent then.
MISFITS: Final = (OverflowError, ValueError, TypeError, struct.error)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the tables are, and how to get there."""

    params: dict[str, Any] = field(repr=False)  # of libpq
    schema: str
    timeout: float  # seconds for one statement, locks that it waits for included
    idle: float  # seconds for which a transaction may be forgotten by a process that has stopped
    pooled: bool = False  # a pooler gives each transaction another session

    @classmethod
    def checked(
        cls,
        address: str,
        *,
        schema: str,
        timeout: float,
        connect_timeout: float,
        idle: float,
        pooled: bool,
    ) -> Self:
        """An address that is one.

        Raises:
            InputError: What is wrong with it; without the address, which may hold a password.
        """
        if not isinstance(address, str) or not address or "\0" in address:
            raise InputError('PostgresSaver needs a URL ("postgresql://host/database") or a conninfo string')
        try:
            params: dict[str, Any] = conninfo.conninfo_to_dict(address)
        except (psycopg.ProgrammingError, UnicodeEncodeError):
            raise InputError(
                'PostgresSaver was given what is no URL ("postgresql://user@host:5432/database") and no conninfo '
                'string ("host=... dbname=..."); it is not shown here, as it may hold a password'
            ) from None
        timeout = _seconds("timeout", timeout)
        params.setdefault("connect_timeout", math.ceil(_seconds("connect_timeout", connect_timeout)))
        # A server whose machine is gone sends nothing, so the kernel must find out.
        for name, value in (
            *(
                ("keepalives", 1),
                ("keepalives_idle", 15),
                ("keepalives_interval", 5),
                ("keepalives_count", 3),
            ),
            ("tcp_user_timeout", math.ceil(timeout * 1000)),
        ):
            params.setdefault(name, value)
        return cls(params, _checked_schema(schema), timeout, idle, pooled)

    def named(self, role: str) -> Address:
        """The same, as pg_stat_activity shows it."""
        return replace(self, params={"application_name": f"weft {role}", **self.params})

    def __str__(self) -> str:
        """For messages: never with a password."""
        host, port = self.params.get("host", ""), self.params.get("port")
        where = f"{host}:{port}" if port else host
        return f"postgresql://{where}/{self.params.get('dbname', '')} (schema {self.schema!a})"

    def failure(self, error: Exception, doing: str) -> StoreError:
        """What went wrong, where, and what to do about it."""
        advice = _advice(error).format(timeout=self.timeout)
        primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        said = " ".join((primary or str(error)).split())  # what else the server says may show values
        return StoreError(f"cannot {doing} {self}: {said}{advice}")


class _NotConnected(psycopg.OperationalError):
    """An attempt to connect has failed."""


def _advice(error: Exception) -> str:
    if not isinstance(error, psycopg.Error):
        return ""  # a value that no column holds: its message says it all
    if isinstance(error, _NotConnected):
        return _NOT_CONNECTED
    if error.sqlstate in _SESSION_ENDED or (
        error.sqlstate is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    ):
        return _UNKNOWN
    return _ADVICE.get(error.sqlstate or "", _REFUSED)


def lock_key(*parts: bytes) -> int:
    """The number of an advisory lock for these names."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return int.from_bytes(digest.digest(), "big", signed=True)


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name} is a number of seconds above 0, not {value!r}")
    return float(value)


def _checked_schema(schema: str) -> str:
    fits = isinstance(schema, str) and "\0" not in schema and not schema.startswith("pg_")
    try:
        fits = fits and 0 < len(schema.encode()) <= 63  # the server would cut a longer one off
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise InputError(f'schema is a name of 1 to 63 bytes that does not begin with "pg_", not {schema!r}')
    return schema


class _Connection(psycopg.Connection[Any]):
    """A connection that does not wait for ever for a server that has stopped."""

    patience = math.inf

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:  # its signature grows
        return super().wait(_bounded(gen, self.patience), *args, **options)


def _bounded(gen: Generator[Any, Any, T], patience: float) -> Generator[Any, Any, T]:
    deadline = time.monotonic() + patience
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= deadline:
                raise psycopg.OperationalError(f"the server has not answered for {patience:g} s")
            wanted = gen.send(ready)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


class Link:
    """A connection, opened when it is first used, and the lock that gives it to one thread at a time."""

    def __init__(
        self,
        address: Address,
        begin: LiteralString,
        doing: str,
        opened: Callable[[Database], None] | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self._address = address
        self._begin = begin
        self._doing = doing
        self._opened = opened
        self._db: _Connection | None = None

    def __enter__(self) -> Self:
        self.lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection; it may be lost."""
        return self._db is not None

    def ensure(self) -> None:
        """See to it that there is a connection."""
        with self.lock:
            try:
                self._usable()
            except psycopg.Error as error:
                raise self._failed(error) from error

    def transact(self, work: Callable[[Database], T]) -> T:
        """Do it in one transaction, committed at the end, rolled back on any error.

        When the server has rolled it back because of others, it is done again: then it is certain that nothing
        was. When the answer to a commit was lost, that is an error, and nothing is done again.
        """
        return self._certainly(lambda: self._transaction(work))

    def single(self, statement: LiteralString, params: dict[str, Any]) -> list[Any]:
        """Execute one statement, which is a transaction by itself; its rows."""
        if self._address.pooled:
            return self.transact(lambda db: db.execute(statement, params, binary=True).fetchall())
        return self._certainly(
            lambda: self._usable().execute(statement, params, prepare=True, binary=True).fetchall()
        )

    def alone(self, statement: LiteralString) -> None:
        """Execute what cannot be done in a transaction, however long it takes; ``{0}`` stands for the schema."""
        try:
            self._certainly(lambda: self._without_limit(statement))
        finally:
            self.close()  # whoever is next has limits again

    def _without_limit(self, statement: LiteralString) -> None:
        db = self._usable()
        db.patience = math.inf
        if not self._address.pooled:
            db.execute(sql.WITHOUT_LIMIT)
        db.execute(composing.SQL(statement).format(composing.Identifier(self._address.schema)))

    def _certainly(self, work: Callable[[], T]) -> T:
        with self.lock:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    return work()
                except (psycopg.Error, *MISFITS) as error:
                    code = getattr(error, "sqlstate", None)
                    if code not in _ROLLED_BACK_FOR_OTHERS or attempt == _ATTEMPTS:
                        raise self._failed(error) from error
            raise AssertionError  # the last attempt returns or raises

    def _transaction(self, work: Callable[[Database], T]) -> T:
        return self._in_transaction(self._usable(), self._begin, work)

    def _in_transaction(self, db: _Connection, begin: LiteralString, work: Callable[[_Connection], T]) -> T:
        try:
            db.execute(begin)
            if self._address.pooled:
                self._set_up(db, local=True)
            result = work(db)
            db.execute(sql.COMMIT)
        except BaseException:
            self._roll_back(db)
            raise
        return result

    def _roll_back(self, db: _Connection) -> None:
        try:
            if db.pgconn.transaction_status != pq.TransactionStatus.IDLE:
                db.execute(sql.ROLLBACK)
        except psycopg.Error:
            self.close()

    def _failed(self, error: Exception) -> StoreError:
        if self._db is not None:
            status = self._db.pgconn.transaction_status
            if status != pq.TransactionStatus.IDLE or getattr(error, "sqlstate", None) in _SESSION_OUTDATED:
                self.close()
        return self._address.failure(error, self._doing)

    # --- Opening and closing ------------------------------------------------------------------------------

    def _usable(self) -> _Connection:
        if self._db is not None and _is_lost(self._db):
            self.close()  # nothing has been sent yet, so nothing is uncertain
        if self._db is None:
            self._db = self._connect()
        return self._db

    def _connect(self) -> _Connection:
        options: dict[str, Any] = {"prepare_threshold": None} if self._address.pooled else {}
        try:
            db = _Connection.connect(**self._address.params, autocommit=True, **options)
        except psycopg.OperationalError as error:
            raise _NotConnected(str(error)) from error
        try:
            db.patience = self._address.timeout + _MARGIN
            db.adapters.register_dumper(
                int, Int8BinaryDumper
            )  # else each size of number is a statement of its own
            if not self._address.pooled:
                self._set_up(db, local=False)
                db.execute(sql.READ_COMMITTED)
            self._bring_up_to_date(db)
            if self._opened is not None:
                self._opened(db)
        except BaseException:
            db.close()
            raise
        return db

    def _set_up(self, db: _Connection, *, local: bool) -> None:
        timeout, idle = math.ceil(self._address.timeout * 1000), math.ceil(self._address.idle * 1000)
        lock = math.ceil(self._address.timeout * 1000 * _OF_LOCKS)
        settings = {"statement": f"{timeout}ms", "lock": f"{lock}ms", "idle": f"{idle}ms"}
        db.execute(sql.SETTINGS, {**settings, "schema": self._address.schema, "local": local})

    def close(self) -> None:
        """Let go of the connection."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def forget(self) -> None:
        """In a forked child: let go of the parent's connection without a word to the server.

        Closing it in the usual way would say good-bye in the parent's name; keeping it open would keep the parent's
        locks when the parent has died. So the child's copy of the socket is replaced by nothing.
        """
        db, self._db = self._db, None
        if db is None:
            return
        _left_alone.append(db)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(nothing, db.pgconn.socket, inheritable=False)
        except (OSError, psycopg.Error):
            pass  # it was lost before
        finally:
            os.close(nothing)

    # --- The schema ---------------------------------------------------------------------------------------

    def _bring_up_to_date(self, db: _Connection) -> None:
        if self._in_transaction(db, sql.BEGIN_READING, self._version) != len(sql.STEPS):
            self._in_transaction(db, sql.BEGIN_WRITING, self._migrate)

    def _migrate(self, db: _Connection) -> None:
        # Of many processes that do this at once, the others wait, and find it done.
        db.execute(sql.LOCK_NAME, {"key": lock_key(b"schema", self._address.schema.encode())})
        version = self._version(db)
        if not _one(db, sql.HAS_SCHEMA, schema=self._address.schema):
            name = composing.Identifier(self._address.schema)
            db.execute(composing.SQL(sql.CREATE_SCHEMA).format(name))
        if version == 0:
            db.execute(sql.CREATE_VERSION)
        for number, step in enumerate(sql.STEPS[version:], version + 1):
            for statement in step:
                db.execute(statement)
            db.execute(sql.SET_VERSION, {"version": number})

    def _version(self, db: _Connection) -> int:
        if not _one(db, sql.HAS_VERSION, schema=self._address.schema):
            return 0
        version = _one(db, sql.VERSION)
        if version is None:
            return 0
        if version > len(sql.STEPS):
            raise StoreError(
                f"{self._address} was written by a newer version of Weft (schema {version}; "
                f"this one knows {len(sql.STEPS)}); upgrade Weft"
            )
        return int(version)


def _one(db: _Connection, statement: LiteralString, **params: Any) -> Any:
    row = db.execute(statement, params).fetchone()
    return row[0] if row else None


def _is_lost(db: _Connection) -> bool:
    """Whether the server has hung up. A few microseconds: nothing is asked of it."""
    if db.closed:
        return True
    try:
        db.pgconn.consume_input()
        db.pgconn.is_busy()  # takes in what the server may have said as it went
        db.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return db.pgconn.status == pq.ConnStatus.BAD


_left_alone: list[_Connection] = []
