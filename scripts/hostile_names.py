"""Give names that other languages take for something else to everything that has a name, and see what comes back.

    python scripts/hostile_names.py names --count 10000 [--store memory|sqlite|postgres] [--seed N]
    python scripts/hostile_names.py tenants --count 10000 [--store ...] [--seed N]

*names*: each program makes a run whose id, thread, workflow, step, node, branch and cache key have such names, and
looks at it in every way there is: show, list, state, plan, fork, answer, delete; some names become files, URLs, schemas
and words of a command line too. Each name must come back exactly, or be refused with an error of ours. Meanwhile

- every statement that a store gives to its database must be one of those in its module of statements, letter by letter,
  and SQLite is told to refuse what those do not need;
- no file outside of the store's folder may be opened for writing, and no program begun.

*tenants*: random programs of two tenants with threads of such names work on one store, in turn or at the same time.
What each of them sees must be what it sees when it is alone, and never a word of the other's.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shlex
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote, unquote_to_bytes

import weft
from weft import (
    CachePolicy,
    Graph,
    InMemoryCache,
    InMemorySaver,
    InMemoryStore,
    InputError,
    RunNotFoundError,
    SqliteSaver,
    WeftError,
    entrypoint,
    interrupt,
    node,
    parallel,
    task,
)
from weft.checkpoint import sql
from weft.checkpoint.base import Checkpointer
from weft.checkpoint.url import from_url
from weft.testing.conformance import HOSTILE_NAMES, hostile_name

STORES = ("memory", "sqlite", "postgres")

#: Beside those of the conformance suite: what a shell, a terminal, a file system, a format or a person misreads.
MORE_NAMES = [
    "$.x') OR 1",
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    "--help",
    "-",
    "--checkpointer=sqlite:///pwned.db",
    "\x1b[2J\x1b]0;pwned\x07",
    "%(run_id)s %s %d {0} {run_id} {}",
    "file:pwned.db?mode=memory",
    "C:\\Windows\\System32",
    "\\\\server\\share",
    "aux.txt",
    "LPT1",
    "a/b",
    "/etc/passwd",
    "%2e%2e%2f",
    "%00",
    "~root",
    "a" * 255,
    "a" * 256,
    "p\N{CYRILLIC SMALL LETTER A}yload",
    "payload",
    "\N{KELVIN SIGN}",
    "K",
    "\N{FULLWIDTH SOLIDUS}etc",
    "\N{RIGHT-TO-LEFT OVERRIDE}dne",
    "\N{ZERO WIDTH SPACE}",
    " ",
    "a ",
    "a",
    "A",
    "ab",
    "a%",
    "a_",
    "__interrupt__",
    "__pregel_pull",
    "None",
    "0",
    "\udcff",
    "\udfff\ud800",
]


def names(draw: random.Random) -> Iterator[str]:
    """Each of the listed ones a few times, in between what chance gives. Those of a length cost time: they are few."""
    listed = [*HOSTILE_NAMES, *MORE_NAMES]
    while True:
        if draw.random() < 0.25:
            name = draw.choice(listed)
            if len(name) < 1000 or draw.random() < 0.2:
                yield name
        else:
            yield hostile_name(draw)


# --- The watch ----------------------------------------------------------------------------------------------


class Violations:
    """What was wrong."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, line: str) -> None:
        self.lines.append(line[:600])

    def expect(self, what: str, found: object, wanted: object) -> None:
        """They must be equal."""
        self.counts[what] += 1
        if found != wanted:
            self.add(f"{what}: found {ascii(found)[:250]}, wanted {ascii(wanted)[:250]}")


_PATHS = {
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.link": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
}
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class")


class Watch:
    """An audit hook: which files are opened for writing, made, moved or removed, and which programs begun."""

    def __init__(self) -> None:
        self.folders: tuple[str, ...] = ()
        self.violations: Violations | None = None
        self.seen = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.violations is None:
            return
        if event == "open":
            self._opened(args[0], args[2])
        elif event in _PATHS:
            for place in _PATHS[event]:
                self._written(event, args[place], -1 if event != "os.mkdir" else args[2])
        elif event.startswith(_NEVER):
            self.violations.add(f"{event} {args!r}")

    def _opened(self, path: object, flags: object) -> None:
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            self._written("open", path, -1)

    def _written(self, event: str, path: object, directory: object) -> None:
        self.seen += 1
        if not isinstance(path, str | bytes) or directory not in {-1, None}:
            return  # a file that is open, or in a directory that is
        name = os.path.realpath(os.fsdecode(path))
        inside = any(name.startswith(folder + os.sep) or name == folder for folder in self.folders)
        # The lock files are named in their directory, which is open: the hook is told their bare names.
        bare = os.sep not in os.fsdecode(path) and os.fsdecode(path).endswith(".lock")
        if not (inside or bare or name == os.devnull) and self.violations is not None:
            self.violations.add(f"{event} of {path!a} outside of the store's folder")

    @contextlib.contextmanager
    def on(self, violations: Violations, *folders: str) -> Iterator[None]:
        self.violations, self.folders = violations, tuple(map(os.path.realpath, folders))
        try:
            yield
        finally:
            self.violations = None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _strings(part)


def statements_of(module: object) -> set[str]:
    """Every statement that a module names."""
    return {text for value in vars(module).values() for text in _strings(value)}


#: What SQLite is asked whether it may: the action, and on what.
Asked = tuple[int, str | None, str | None]


#: What is asked besides: SQLite's own look at what a new file holds, and the end of what has failed.
_BY_ITSELF: set[Asked] = {
    (sqlite3.SQLITE_PRAGMA, "table_list", None),
    (sqlite3.SQLITE_TRANSACTION, "ROLLBACK", None),
}


@cache
def expected() -> frozenset[Asked]:
    """What SQLite asks when it is given our statements: what our module needs, and nothing else.

    They are only prepared, as far as they have parameters; some need tables that others make, so there are rounds.
    """
    asked: set[Asked] = set()

    def note(action: int, one: str | None, two: str | None, *_: str | None) -> int:
        asked.add((action, one, two))
        return sqlite3.SQLITE_OK

    with contextlib.closing(sqlite3.Connection(":memory:", isolation_level=None)) as db:
        db.set_authorizer(note)
        before = -1
        while before != len(asked):
            before = len(asked)
            for statement in sorted(statements_of(sql)):
                with contextlib.suppress(sqlite3.Error):
                    db.execute(statement)
                if db.in_transaction:
                    db.rollback()
    return frozenset(asked | _BY_ITSELF)


class _Guarded(sqlite3.Connection):
    """Runs what it knows, and nothing else."""

    known = statements_of(sql)
    violations: Violations | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.set_authorizer(self._authorize)

    def _authorize(self, action: int, one: str | None, two: str | None, *_: str | None) -> int:
        if (action, one, two) in expected():
            return sqlite3.SQLITE_OK
        if self.violations is not None:
            self.violations.add(f"SQLite was asked for {action} {one!r} {two!r}")
        return sqlite3.SQLITE_DENY

    def _check(self, statement: str) -> None:
        if self.violations is not None:
            self.violations.counts["statements"] += 1
            if statement not in self.known:
                self.violations.add(f"a statement that is not in sql.py: {ascii(statement)[:200]}")
                raise sqlite3.DatabaseError("not a statement of ours")

    def execute(self, statement: str, *params: Any) -> sqlite3.Cursor:
        self._check(statement)
        return super().execute(statement, *params)

    def executemany(self, statement: str, *params: Any) -> sqlite3.Cursor:
        self._check(statement)
        return super().executemany(statement, *params)

    def executescript(self, script: str) -> sqlite3.Cursor:
        self._check(script)
        return super().executescript(script)


@contextlib.contextmanager
def guarded_sqlite(violations: Violations) -> Iterator[None]:
    """All connections to SQLite files are guarded."""
    connect = sqlite3.connect

    def guarded(path: str, **options: Any) -> sqlite3.Connection:
        return connect(path, factory=_Guarded, **options)

    with (
        patch.object(_Guarded, "violations", violations),
        patch.object(sqlite3, "connect", guarded),
    ):
        yield


@contextlib.contextmanager
def guarded_postgres(violations: Violations) -> Iterator[None]:
    """All statements that psycopg is given are known ones."""
    import psycopg  # noqa: PLC0415 - only who has Postgres has it

    from weft.checkpoint import postgres_sql  # noqa: PLC0415 - the same

    known = statements_of(postgres_sql)
    known_bytes = {statement.encode() for statement in known}

    def check(query: object) -> None:
        violations.counts["statements"] += 1
        if isinstance(query, psycopg.sql.Composed):  # it quotes; the only one creates a schema
            if "CREATE SCHEMA" in query.as_string(None):
                return
        elif query in known or query in known_bytes:
            return
        violations.add(f"a statement that is not in postgres_sql.py: {ascii(query)[:200]}")
        raise psycopg.ProgrammingError("not a statement of ours")

    def guard(name: str) -> Callable[..., Any]:
        method = getattr(psycopg.Cursor, name)

        def guarded(cursor: Any, query: object, *args: Any, **options: Any) -> Any:
            check(query)
            return method(cursor, query, *args, **options)

        return guarded

    with contextlib.ExitStack() as stack:
        for name in ("execute", "executemany", "copy", "stream"):
            stack.enter_context(patch.object(psycopg.Cursor, name, guard(name)))
        yield


# --- Stores -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def store_in(name: str, folder: Path, violations: Violations) -> Iterator[Checkpointer]:
    """A store whose statements are watched."""
    if name == "memory":
        yield InMemorySaver()
        return
    if name == "sqlite":
        with guarded_sqlite(violations), SqliteSaver(folder / "runs.db") as store:
            yield store
        return
    _support()
    from postgres import address, fresh_schema  # noqa: PLC0415 - starts a server if there is none

    from weft.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - needs psycopg

    server = address()
    with (
        fresh_schema() as schema,
        guarded_postgres(violations),
        PostgresSaver(server, schema=schema) as store,
    ):
        yield store


def _support() -> None:
    path = str(Path(__file__).parents[1] / "tests" / "support")
    if path not in sys.path:
        sys.path.insert(0, path)


# --- Names of runs and of what is in them -------------------------------------------------------------------


class Named:
    """Programs whose parts have such names, on one store; keeps what should be there by now."""

    def __init__(self, store: Checkpointer, violations: Violations) -> None:
        self.store = store
        self.runs = weft.runs(store)
        self.wrong = violations
        self.expect = violations.expect
        self.there: dict[str, tuple[str, str]] = {}  # by run id: workflow and thread
        self.said: dict[str, Any] = {}  # by thread: what its last run returned
        self.cache = InMemoryCache()
        self.cached: dict[tuple[str, str], int] = {}  # by step and key
        self.memory = InMemoryStore()
        self.remembered: dict[tuple[str, str], int] = {}
        self.refused: Counter[str] = Counter()

    def program(self, draw: random.Random, pool: Iterator[str], number: int) -> int:
        """One program; how many names it has used."""
        run_id, thread, step, in_graph, branch, key, workflow = used = [next(pool) for _ in range(7)]
        if run_id in self.there:
            run_id += f" {number}"
        if not self._possible(run_id, thread, step, in_graph, branch):
            return len(used)
        asks = draw.random() < 0.2
        flow = self._flow(step, in_graph, branch, key, workflow, asks)
        hit = self.cached.setdefault((step, key), number)
        wanted = {"cached": hit, "graph": number, "branches": {branch: number, branch + "'": number}}
        found = flow.invoke(number, run_id=run_id, thread_id=thread)
        if asks:
            self._answer(run_id, found)
            found = self.runs.resume(run_id, flow)
            wanted["said"] = run_id
        self.expect("a result", found, wanted)
        self.there[run_id] = (flow.name, thread)
        self.said[thread] = wanted
        self._look(flow, run_id, thread, {step, in_graph, branch, branch + "'"})
        self._remember(thread, key, number)
        if draw.random() < 0.2:
            self._fork(draw, flow, run_id, next(pool), thread, wanted)
        if draw.random() < 0.15:
            self._delete(run_id)
        return len(used)

    def _possible(self, run_id: str, thread: str, step: str, in_graph: str, branch: str) -> bool:
        """Empty names are refused where they are given, and nothing begins."""
        if not run_id:
            self._refuses(lambda: plain.invoke(1, checkpointer=self.store, run_id=run_id))
        if not thread:
            self._refuses(lambda: plain.invoke(1, checkpointer=self.store, thread_id=thread))
        if not in_graph:
            self._refuses(lambda: Graph().add_node(node(name=in_graph)(give_dict)))
        return all((run_id, thread, step, in_graph, branch))

    def _refuses(self, attempt: Callable[[], object]) -> None:
        try:
            attempt()
        except WeftError as error:
            self.refused[type(error).__name__] += 1
        else:
            self.wrong.add("a name that is empty or taken was not refused")

    def _flow(self, step: str, in_graph: str, branch: str, key: str, workflow: str, asks: bool) -> Any:
        once = task(name=step, cache_policy=CachePolicy(key_func=lambda _: key))(give)
        graph = Graph().add_node(node(name=in_graph, start=True, end=True)(give_dict))
        block = parallel(task(name=branch)(give), task(name=branch + "'")(give), name="block")

        def body(number: int) -> dict[str, Any]:
            found = {
                "cached": once(number).result(),
                "graph": graph.invoke({"number": number})["found"],
                "branches": block(number),
            }
            return {**found, "said": interrupt("who?")} if asks else found

        body.__name__ = workflow or "flow"
        return entrypoint(checkpointer=self.store, cache=self.cache)(body)

    def _answer(self, run_id: str, found: Any) -> None:
        (question,) = self.runs.show(run_id).questions
        self.expect("a question", [each.id for each in found["__interrupt__"]], [question.id])
        self.runs.answer(run_id, {question.id: run_id})

    def _look(self, flow: Any, run_id: str, thread: str, steps: set[str]) -> None:
        info = self.runs.show(run_id)
        self.expect("an id", info.id, run_id)
        self.expect("a thread", info.thread_id, thread)
        self.expect("a workflow", info.workflow, flow.name)
        self.expect("steps", steps - {call.step for call in info.calls}, set())
        self.expect("a plan", self.runs.plan(run_id, flow).again, ())
        mine = [each for each, (_, of) in reversed(self.there.items()) if of == thread]
        self.expect(
            "runs of a thread", [each.id for each in self.runs.list(thread_id=thread, limit=None)], mine
        )
        self.expect("a state", flow.get_state(thread_id=thread).values, self.said[thread])
        for near in (run_id + "\0", run_id[:-1], run_id + " ", run_id.swapcase(), run_id + "%", f"%{run_id}"):
            if near not in self.there:
                self.expect("a neighbour", near and self.store.find(near), near and None)
        for near in (thread + "\0", thread[:-1], thread + "%", "%", "_", "*", "?*"):
            if near and near not in self.said:
                self.expect(
                    "a neighbouring thread",
                    (self.store.runs(thread_id=near), self.store.states(near)),
                    ([], []),
                )

    def _remember(self, label: str, key: str, number: int) -> None:
        try:
            self.memory.put((label, "notes"), key, {"number": number, key: number})
        except InputError:
            self.refused["a label"] += 1
            self.expect("a refused label", "." in label or not label, True)
            return
        self.remembered[label, key] = number
        item = self.memory.get((label, "notes"), key)
        self.expect(
            "an item",
            item and (item.namespace, item.key, item.value["number"]),
            ((label, "notes"), key, number),
        )
        found = self.memory.search((label,), limit=10**6)
        self.expect("a search", {each.namespace for each in found}, {(label, "notes")})
        self.expect("what is below", len(found), sum(each == label for each, _ in self.remembered))
        asked = self.memory.search((label,), filter={key: {"$eq": number}}, limit=10**6)
        self.expect("a filter", [each.key for each in asked if each.value["number"] == number], [key])
        if label[:-1] and "." not in label[:-1]:
            short = self.memory.search((label[:-1],), limit=10**6)
            self.expect("a prefix", {each.namespace[0] for each in short} <= {label[:-1]}, True)

    def _journal(self, run_id: str) -> list[Any]:
        return [record for _, record in self.store.records(run_id)]

    def _fork(self, draw: random.Random, flow: Any, run_id: str, name: str, thread: str, wanted: Any) -> None:
        taken = draw.choice([run_id, *self.there])
        before = self._journal(taken)
        self._refuses(lambda: self.runs.fork(run_id, new_id=taken))
        self.expect("a run whose id was wanted for a fork", self._journal(taken), before)
        if not name or name in self.there:
            return
        self.runs.fork(run_id, new_id=name, thread_id=thread)
        self.there[name] = (flow.name, thread)
        self.expect("a fork", self.runs.resume(name, flow), wanted)

    def _delete(self, run_id: str) -> None:
        self.runs.delete(run_id)
        del self.there[run_id]
        try:
            self.runs.show(run_id)
        except RunNotFoundError:
            pass
        else:
            self.wrong.add(f"{run_id!a} was deleted, and is there")

    def at_the_end(self) -> None:
        """All that should be there is there, with its names, and nothing else."""
        found = {info.id: (info.workflow, info.thread_id) for info in self.runs}
        self.expect("all runs", found, self.there)
        for (step, key), number in self.cached.items():
            space = (give.__module__, give.__qualname__, step)
            kept = self.cache.get(space, key)
            if step and kept is not None:
                self.expect("a cached value", self.store.codec.decode(kept), number)


def give(value: int) -> int:
    return value


def give_dict(number: int) -> dict[str, int]:
    return {"found": number}


@entrypoint()
def plain(value: object) -> object:
    return value


# --- Names of files, URLs and schemas -----------------------------------------------------------------------


def file_names(folder: Path, pool: Iterator[str], count: int, wrong: Violations) -> Counter[str]:
    """Files of such names, by path and by URL: that very file, or an error of ours and no file at all."""
    ends: Counter[str] = Counter()
    for number in range(count):
        name = next(pool).replace("/", "")
        place = folder / str(number)
        place.mkdir()
        makers: list[Callable[[], Checkpointer]] = [
            partial(SqliteSaver, os.path.join(place, name)),  # noqa: PTH118 - as users write it
        ]
        if (on_disk := _bytes_of(name)) is not None:
            makers.append(partial(from_url, f"sqlite:///{place}/{quote(on_disk, safe='')}"))
        for make in makers:
            ends[_one_file(make, place, name, wrong)] += 1
        for url in (
            f"sqlite:///{name}",
            f"sqlite://{name}",
            f"sqlite:///runs.db?{name}",
            f"sqlite:///runs.db?timeout={name}",
            f"{name}:///x",
            f"postgresql://{name}",
            f"postgresql://host/db?schema={name}&{name}=1",
            f"memory:{name}",
            name,
        ):
            ends[_one_url(url, wrong)] += 1
    return ends


def _bytes_of(name: str) -> bytes | None:
    """How a file of this name is called on the disk, if there can be one."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return None


def _one_file(make: Callable[[], Checkpointer], place: Path, name: str, wrong: Violations) -> str:
    try:
        with contextlib.closing(make()) as store:
            plain.invoke(name, checkpointer=store, run_id="r")
            wrong.expect("a value in a file", weft.runs(store).show("r").output, name)
    except WeftError as error:
        end = type(error).__name__
    except Exception as error:
        wrong.add(f"the path {name!a}: {type(error).__name__}: {error}")
        end = "raw"
    else:
        end = "made"
    left = {os.fsencode(each.name): each.stat().st_size for each in place.iterdir()}
    if end == "made":
        wrong.expect("a file", [*left], [_bytes_of(name)])
    elif left != {_bytes_of(name): 0}:  # there was no room in the name for that of the log
        wrong.expect("what a refused file leaves", left, {})
    for each in place.iterdir():
        each.unlink()
    return f"file: {end}"


def _one_url(url: str, wrong: Violations) -> str:
    """A URL of anything names a store, or is refused; nothing is opened by that."""
    wrong.counts["a url"] += 1
    try:
        store = from_url(url)
    except InputError:
        return "url: refused"
    except Exception as error:
        wrong.add(f"the URL {url!a}: {type(error).__name__}: {error}")
        return "url: raw"
    scheme, said, path = url.partition(":///")
    if said and scheme == "sqlite" and not {*path} & {*"?#"}:
        meant = os.path.realpath(os.fsdecode(unquote_to_bytes(path)))
        wrong.expect("the file of a url", getattr(store, "path", None), meant)
    return "url: taken"


def schema_names(pool: Iterator[str], count: int, wrong: Violations) -> Counter[str]:
    """Schemas of such names in Postgres: that very schema, or an error of ours and none at all."""
    _support()
    import psycopg  # noqa: PLC0415 - only who has Postgres has it
    from postgres import address, drop_schema  # noqa: PLC0415 - starts a server if there is none

    from weft.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - needs psycopg

    ends: Counter[str] = Counter()
    with psycopg.connect(address(), autocommit=True) as admin:

        def schemas() -> set[str]:
            return {name for (name,) in admin.execute("SELECT nspname::text FROM pg_namespace").fetchall()}

        for _ in range(count):
            name, before = next(pool), schemas()
            if name in before:
                continue
            try:
                with PostgresSaver(address(), schema=name) as store:
                    plain.invoke(name, checkpointer=store, run_id="r")
                    wrong.expect("a value in a schema", weft.runs(store).show("r").output, name)
            except WeftError as error:
                ends[f"schema: {type(error).__name__}"] += 1
                wrong.expect("what a refused schema leaves", schemas(), before)
            except Exception as error:
                wrong.add(f"the schema {name!a}: {type(error).__name__}: {error}")
            else:
                ends["schema: made"] += 1
                wrong.expect("a schema", schemas() - before, {name})
            for made in schemas() - before:
                drop_schema(made)
    return ends


# --- Names on a command line --------------------------------------------------------------------------------

_TARGET = """
from weft import entrypoint, interrupt, task

@task
def step(given):
    return given

@entrypoint()
def echo(given):
    return step(given).result()

@entrypoint()
def asks(given):
    return interrupt(given)
"""


def typed(*words: str) -> tuple[int, str, str]:
    """What a command does, in this process: its exit code, what it prints, and what it says."""
    from weft.cli.commands import run_command  # noqa: PLC0415 - needs the extra "cli"

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(words)
    return code, out.getvalue(), err.getvalue()


def typed_names(folder: Path, pool: Iterator[str], count: int, wrong: Violations) -> Counter[str]:
    """Runs of such names, by hand: the commands do with them what they do with others."""
    ends: Counter[str] = Counter()
    (folder / "flows.py").write_text(_TARGET)
    target, url = f"{folder}/flows.py:", f"sqlite:///{folder}/typed.db"
    store = ("--checkpointer", url)
    used: set[str] = set()
    for number in range(count):
        run_id, thread = next(pool), next(pool)
        code, out, err = typed(
            "run", target + "echo", "--input", str(number), "--run-id", run_id, "--thread-id", thread, *store
        )
        if not run_id or not thread or run_id in used:
            _refused(f"run {run_id!a} {thread!a}", code, err, wrong)
            ends["typed: refused"] += 1
            continue
        used.add(run_id)
        ends["typed: run"] += 1
        wrong.expect("the result of a command", (code, out), (0, f"{number}\n"))
        _says_nothing_odd("run", err, wrong)
        _look_at(run_id, thread, store, wrong)
        _ask(f"{run_id}?{number}", target, store, wrong)
        if number % 3 == 0:
            code, _, err = typed("runs", "--delete", run_id, *store)
            wrong.expect("the end of a deletion", code, 0)
            _says_nothing_odd("runs --delete", err, wrong)
            code, _, err = typed("show", *store, "--", run_id)
            _refused(f"show {run_id!a}", code, err, wrong)
            used.discard(run_id)
    return ends


def _look_at(run_id: str, thread: str, store: Iterable[str], wrong: Violations) -> None:
    code, out, err = typed("show", "--json", *store, "--", run_id)
    shown = json.loads(out) if code == 0 else {"run_id": err}
    wrong.expect("what is shown", [shown["run_id"], shown.get("thread_id")], _in_json([run_id, thread]))
    code, out, err = typed("runs", "--json", "--thread-id", thread, *store)
    newest = json.loads(out)[0] if code == 0 else {"run_id": err}
    wrong.expect("the newest of a thread", newest["run_id"], _in_json(run_id))
    for words in (("show", *store, "--", run_id), ("runs", "--thread-id", thread, *store)):
        code, out, err = typed(*words)
        wrong.expect("the end of a look", code, 0)
        _says_nothing_odd(words[0], out + err, wrong)


def _in_json(value: Any) -> Any:
    """As JSON gives it back: it knows two halves of a character only as the whole one."""
    return json.loads(json.dumps(value))


def _ask(run_id: str, target: str, store: Iterable[str], wrong: Violations) -> None:
    """A question: what is said about going on can be pasted into a shell."""
    code, _, err = typed("run", target + "asks", "--input", '"who?"', "--run-id", run_id, *store)
    wrong.expect("the end of a question", code, 3)
    _says_nothing_odd("run with a question", err, wrong)
    _can_be_pasted("run", run_id, err, wrong)
    code, out, _ = typed("show", "--json", *store, "--", run_id)
    (question,) = json.loads(out)["questions"]
    code, out, err = typed("plan", *store, "--", run_id, target + "asks")
    wrong.expect("the end of a plan", code, 0)
    _says_nothing_odd("plan", out + err, wrong)
    code, _, err = typed("answer", *store, "--", run_id, f"{question['id']}=1")
    wrong.expect("the end of an answer", code, 0)
    _says_nothing_odd("answer", err, wrong)
    _can_be_pasted("answer", run_id, err, wrong)
    code, out, err = typed("resume", *store, "--", run_id, target + "asks")
    wrong.expect("what a resumed run gives", (code, out), (0, "1\n"))


def _can_be_pasted(command: str, run_id: str, said: str, wrong: Violations) -> None:
    """Whatever of ours begins with `weft resume` names the run as one word of a shell, if a terminal can show it."""
    if not run_id.isprintable() or len(run_id) > 1000:
        return
    for line in said.splitlines():
        _, found, rest = line.partition("weft resume ")
        if not found:
            continue
        wrong.counts["a command to paste"] += 1
        try:
            words = shlex.split(rest)
        except ValueError:
            words = []
        if run_id not in words:
            wrong.add(f"{command} says {line!a}, which a shell does not take for run {run_id!a}")
        if run_id.startswith("-") and (words or [""])[0] == run_id:
            wrong.add(f"{command} says {line!a}, in which the run is an option")


def _refused(what: str, code: int, err: str, wrong: Violations) -> None:
    wrong.expect(f"a refusal of {what[:60]}", (code != 0, err.count("\n") <= 2), (True, True))
    _says_nothing_odd(what, err, wrong)


def _says_nothing_odd(command: str, text: str, wrong: Violations) -> None:
    """Nothing that a terminal would obey."""
    wrong.counts["what is said"] += 1
    odd = sorted({each for each in text if not each.isprintable()} - {"\n"})
    if odd:
        wrong.add(f"{command} prints {odd!a} as it is: {text!a}")


# --- Tenants ------------------------------------------------------------------------------------------------

#: What makes another name of a name, that a store could take for the same, or for something below it.
_NEAR: list[Callable[[str], str]] = [
    lambda name: name + "%",
    lambda name: name + "_",
    lambda name: name + "\0",
    lambda name: name + " ",
    lambda name: name + "/x",
    lambda name: name + "'--",
    lambda name: name[:-1],
    lambda name: name.swapcase(),
    lambda name: "%" + name,
    lambda name: name.replace("a", "\N{CYRILLIC SMALL LETTER A}"),
]


@task
def doubled(text: str) -> str:
    return text + text


@task
def failing(text: str) -> str:
    raise ValueError(text)


@task
def asking(text: str) -> Any:
    return interrupt(text)


@entrypoint()
def talk(given: dict[str, Any], *, previous: Any) -> dict[str, Any]:
    """What a conversation does: it sees what it has said before, and works, fails or asks."""
    said = [*(previous or {}).get("said", [])][-3:]
    work = {"works": doubled, "fails": failing, "asks": asking}[given["does"]]
    return {"said": [*said, given["text"]], "now": work(given["text"]).result()}


class Tenant:
    """Who works on a store, with names of its own: it notes all that it sees there."""

    def __init__(self, word: str, ids: list[str], threads: list[str]) -> None:
        self.word = word  # is in all that it writes
        self.ids = ids
        self.threads = threads

    def operations(self, draw: random.Random) -> list[Callable[[Checkpointer, InMemoryStore], Any]]:
        """What it is going to do; the same whatever it sees."""
        return [self._operation(draw, number) for number in range(draw.randrange(4, 10))]

    def _operation(self, draw: random.Random, number: int) -> Callable[[Checkpointer, InMemoryStore], Any]:
        which = draw.randrange(len(self.ids))
        run_id, other_id = self.ids[which], draw.choice(self.ids)
        # Most often the thread that the run belongs to; another is refused.
        thread = self.threads[which] if draw.random() < 0.9 else draw.choice(self.threads)
        other = draw.choice(self.threads)
        does = draw.choice(["works", "works", "fails", "asks"])
        given = {"does": does, "text": f"{self.word} {number}"}
        runs, limit = weft.runs, draw.choice([1, 2, 100])
        options = {"run_id": run_id, "thread_id": thread}
        config = {"configurable": {"thread_id": thread}}
        return draw.choice(
            [
                lambda store, _: talk.invoke(given, checkpointer=store, **options),
                lambda store, _: talk.invoke(given, checkpointer=store, **options),
                lambda store, _: talk.invoke(None, checkpointer=store, **options),
                lambda store, _: list(talk.stream(given, checkpointer=store, **options)),
                lambda store, _: self._answers(store, run_id, given),
                lambda store, _: runs(store).resume(run_id, talk),
                lambda store, _: self._state(store, thread),
                lambda store, _: self._history(store, thread, limit),
                lambda store, _: self._update(store, config, given),
                lambda store, _: [i.id for i in runs(store).list(thread_id=thread, limit=limit)],
                lambda store, _: [i.id for i in runs(store).list(thread_id=thread, status="failed")],
                lambda store, _: self._shown(store, run_id),
                lambda store, _: self._planned(store, run_id),
                lambda store, _: runs(store).fork(run_id, new_id=other_id, thread_id=other),
                lambda store, _: runs(store).delete(run_id),
                lambda store, _: store.delete_thread(thread),
                lambda store, _: [(s.number, s.value, s.run_id) for s in store.states(thread, limit=limit)],
                lambda store, _: store.records(run_id, limit=limit) and len(store.records(run_id)),
                lambda _, memory: memory.put((thread, "x"), other_id, given),
                lambda _, memory: memory.put((thread,), other, given),
                lambda _, memory: [(i.key, i.value) for i in memory.search((thread,), limit=limit)],
                lambda _, memory: [i.key for i in memory.search((thread,), filter={"text": given["text"]})],
                lambda _, memory: memory.list_namespaces(prefix=(thread,)),
                lambda _, memory: memory.delete((thread, "x"), other_id),
            ]
        )

    def look(self, store: Checkpointer, memory: InMemoryStore) -> list[Any]:
        """All that it can see in the end."""
        seen: list[Any] = [_outcome(self._shown, store, run_id) for run_id in self.ids]
        for thread in self.threads:
            seen.append(_outcome(self._history, store, thread, 100))
            seen.append([info.id for info in weft.runs(store).list(thread_id=thread)])
            seen.append(_outcome(_remembered, memory, thread))
        return seen

    def _answers(self, store: Checkpointer, run_id: str, answer: Any) -> Any:
        runs = weft.runs(store)
        questions = runs.show(run_id).questions
        runs.answer(run_id, {question.id: answer for question in questions})
        return [(question.id, question.value) for question in questions]

    def _state(self, store: Checkpointer, thread: str) -> Any:
        return _snapshot(bound(store).get_state(thread_id=thread))

    def _history(self, store: Checkpointer, thread: str, limit: int) -> Any:
        return [_snapshot(each) for each in bound(store).get_state_history(thread_id=thread, limit=limit)]

    def _update(self, store: Checkpointer, config: dict[str, Any], given: dict[str, Any]) -> Any:
        return bound(store).update_state(config, {"said": [given["text"]]})

    def _shown(self, store: Checkpointer, run_id: str) -> Any:
        info = weft.runs(store).show(run_id)
        calls = [(call.step, call.id, call.outcome, call.value, call.error) for call in info.calls]
        said = (info.id, info.workflow, info.status, info.thread_id, info.input, info.output, info.error)
        return said, calls, [(question.id, question.value) for question in info.questions]

    def _planned(self, store: Checkpointer, run_id: str) -> Any:
        plan = weft.runs(store).plan(run_id, talk)
        return (
            plan.status,
            [call.value for call in plan.reused],
            [call.id for call in plan.again],
            repr(plan.error),
        )


def bound(store: Checkpointer) -> Any:
    """The conversation over this store."""
    return entrypoint(checkpointer=store)(talk.func)


def _remembered(memory: InMemoryStore, thread: str) -> Any:
    return [(item.namespace, item.key, item.value) for item in memory.search((thread,), limit=100)]


def _snapshot(snapshot: Any) -> Any:
    asked = [(each.id, each.value) for each in snapshot.interrupts]
    return snapshot.values, snapshot.next, snapshot.config, snapshot.parent_config, asked, snapshot.metadata


def _outcome(work: Callable[..., Any], *args: Any) -> Any:
    """What it gives, or how it fails. Messages of our errors are for whoever owns the store."""
    try:
        return work(*args)
    except WeftError as error:
        return type(error).__name__
    except ValueError as error:  # of the step that fails
        return repr(error)


def tenants(name: str, folder: Path, count: int, draw: random.Random, wrong: Violations) -> Counter[str]:
    """Programs of two, together and alone."""
    happened: Counter[str] = Counter()
    pool = names(draw)
    with store_in(name, folder, wrong) as store, ThreadPoolExecutor(2) as threads:
        memory = InMemoryStore()
        for number in range(count):
            pair = _pair(draw, pool, number)
            programs = [each.operations(draw) for each in pair]
            together = draw.random() < 0.3
            seen = (
                _at_once(pair, programs, store, memory, threads)
                if together
                else _in_turn(draw, pair, programs, store, memory)
            )
            happened["at once" if together else "in turn"] += 1
            for tenant, other, program, found in zip(pair, pair[::-1], programs, seen, strict=True):
                alone, own = InMemorySaver(), InMemoryStore()
                wanted = [*(_outcome(step, alone, own) for step in program), *tenant.look(alone, own)]
                wrong.expect("what a tenant sees", found, wanted)
                wrong.counts["operations"] += len(program)
                happened["refused"] += sum(isinstance(each, str) for each in found[: len(program)])
                if other.word in repr(found):
                    wrong.add(f"{tenant.word} has seen {other.word}: {found!a}")
    return happened


def _pair(draw: random.Random, pool: Iterator[str], number: int) -> tuple[Tenant, Tenant]:
    """Two, whose names resemble each other and are all different."""
    taken: set[str] = set()

    def fresh(name: str) -> str:
        while not name or name in taken:
            name += draw.choice("xX%_.")
        taken.add(name)
        return name

    found: list[list[str]] = [[], [], [], []]
    stem = f"<{number}>{next(pool)[:200]}a"  # of no other pair, whatever is added or taken away
    for places in ((0, 1), (2, 3)):
        for place in (*places, *places):
            found[place].append(fresh(draw.choice(_NEAR)(stem)))
    return Tenant("alpha", found[0], found[2]), Tenant("omega", found[1], found[3])


def _in_turn(
    draw: random.Random, pair: Any, programs: Any, store: Checkpointer, memory: InMemoryStore
) -> list[Any]:
    """One operation after another, of both in some order."""
    turns = [which for which, program in enumerate(programs) for _ in program]
    draw.shuffle(turns)
    left, seen = [deque(program) for program in programs], ([], [])
    for which in turns:
        step = left[which].popleft()
        seen[which].append(_outcome(step, store, memory))
    return [[*found, *tenant.look(store, memory)] for tenant, found in zip(pair, seen, strict=True)]


def _at_once(
    pair: Any, programs: Any, store: Checkpointer, memory: InMemoryStore, threads: ThreadPoolExecutor
) -> list[Any]:
    """Each in a thread of its own, at the same time."""
    barrier = threading.Barrier(2)

    def work(tenant: Tenant, program: Any) -> list[Any]:
        barrier.wait()
        found = [_outcome(step, store, memory) for step in program]
        return [*found, *tenant.look(store, memory)]

    return list(threads.map(work, pair, programs))


# --- All of it ----------------------------------------------------------------------------------------------


@cache
def the_watch() -> Watch:
    """There is one: an audit hook is never taken away again."""
    return Watch()


def hostile(name: str, folder: Path, count: int, draw: random.Random, wrong: Violations) -> Counter[str]:
    """That many names, most of them in runs on one store."""
    pool, happened, used = names(draw), Counter[str](), 0
    in_runs = count * 7 // 10
    with store_in(name, folder, wrong) as store, the_watch().on(wrong, str(folder)):
        programs = Named(store, wrong)
        while used < in_runs:
            used += programs.program(draw, pool, used)
        programs.at_the_end()
        happened["in runs"] = used
        happened.update(programs.refused)
    if name == "postgres":
        few = max(count // 100, 3)
        happened += schema_names(pool, few, wrong)
        used += few
    if name == "sqlite":
        files = folder / "files"
        files.mkdir()
        with guarded_sqlite(wrong), the_watch().on(wrong, str(folder)):
            happened += file_names(files, pool, count // 10, wrong)
            happened += typed_names(folder, pool, count // 20, wrong)
        used += count // 10 + count // 20 * 2
    while used < count:  # what the memory store alone has no place for
        used += 1
        _one_url(f"sqlite:///{next(pool)}", wrong)
    happened["names"] = used
    return happened


def main() -> int:
    sys.dont_write_bytecode = True  # a module that is imported late is no file that a name has made
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["names", "tenants"])
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--store", choices=STORES, action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    bad = 0
    for name in args.store or STORES:
        wrong, began = Violations(), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            work = hostile if args.what == "names" else tenants
            happened = work(name, Path(folder), args.count, random.Random(args.seed), wrong)
        for line in wrong.lines[:20]:
            print(f"{name}: {line}", flush=True)
        bad += len(wrong.lines)
        seconds = time.monotonic() - began
        print(f"{name}: {args.count} {args.what} in {seconds:.1f} s: {dict(happened)}", flush=True)
        print(f"{name}: looked at {dict(wrong.counts)}", flush=True)
        print(f"{name}: {len(wrong.lines)} violations", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
