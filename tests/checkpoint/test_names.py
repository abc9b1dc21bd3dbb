"""Names are data, in every store and wherever they go; and nobody reads what is another's."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from killing import seeded
from postgres import address
from repo_scripts import ROOT, SCRIPTS, run_script

from weft import InMemoryCache, InMemorySaver, InMemoryStore, SqliteSaver
from weft.checkpoint import sql
from weft.checkpoint.base import OpenRun

SCRIPT = SCRIPTS / "hostile_names.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("hostile_names", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("store", ["memory", "sqlite", "postgres"])
def test_hostile_names_come_back_or_are_refused(store):
    """As ids of runs and threads, of workflows, steps, nodes and branches, keys of caches and memories, and of forks;
    in the files, URLs and schemas of stores, and on the command line. No database is given a statement but ours."""
    if store == "postgres":
        address()  # the script uses the same server
    seed = seeded("names").randrange(2**32)
    done = run_script("hostile_names.py", "names", "--count", "500", "--store", store, "--seed", str(seed))
    assert done.returncode == 0
    assert f"{store}: 0 violations" in done.stdout
    looked = {what: int(count) for what, count in re.findall(r"'([a-z ]+)': (\d+)", done.stdout)}
    everywhere = {
        "a result",
        "an id",
        "a plan",
        "a fork",
        "a question",
        "a neighbour",
        "all runs",
        "a search",
    }
    by_store = {
        "memory": {"a url"},
        "sqlite": {"statements", "a file", "a url", "what is shown", "a command to paste"},
        "postgres": {"statements", "a schema"},
    }
    assert min(looked[what] for what in everywhere | by_store[store]) > 0


@pytest.mark.parametrize(("store", "count"), [("memory", 150), ("sqlite", 60), ("postgres", 60)])
def test_of_two_threads_nobody_reads_what_is_the_others(store, count):
    """Whatever a tenant reads and lists is what it would see if it were alone, in turn with another or beside it."""
    if store == "postgres":
        address()
    seed = seeded("tenants").randrange(2**32)
    done = run_script(
        "hostile_names.py", "tenants", "--count", str(count), "--store", store, "--seed", str(seed)
    )
    assert done.returncode == 0
    assert f"{store}: 0 violations" in done.stdout
    assert "'at once'" in done.stdout
    assert "'in turn'" in done.stdout


# What the script would see


class Pasted(SqliteSaver):
    """Looks a run up as the careless do."""

    def find(self, run_id):
        with self._reader as reader, reader.transaction() as db:
            db.execute(f"SELECT run FROM runs WHERE run_id = '{run_id}'")
        return super().find(run_id)


class Folded(InMemorySaver):
    """Takes names that look alike for one."""

    def open_many(self, requests):
        return super().open_many([OpenRun(each.run_id.lower(), *_rest(each)) for each in requests])


def _rest(request):
    return request.workflow, request.thread_id, request.input, request.created


class Prefixed(InMemorySaver):
    """Looks for threads with LIKE."""

    def runs(self, *, thread_id=None, limit=100):
        rows = super().runs(limit=10**6)
        return [row for row in rows if thread_id is None or (row.thread_id or "").startswith(thread_id)][
            :limit
        ]


class Shared(InMemorySaver):
    """Forgets whose saved values they are."""

    def states(self, thread_id, *, limit=100):
        found = [state for states in self._states.values() for state in states]
        return sorted(found, key=lambda state: -state.created)[:limit]


def found_by(script, what, name, store, monkeypatch, tmp_path):
    """What the script says of a store that is broken."""

    @contextlib.contextmanager
    def broken(_name, folder, violations):
        with contextlib.ExitStack() as stack:
            if name == "sqlite":
                stack.enter_context(script.guarded_sqlite(violations))
            yield store(folder / "runs.db") if name == "sqlite" else store()

    class NoWatch:
        on = staticmethod(lambda *_: contextlib.nullcontext())

    monkeypatch.setattr(script, "store_in", broken)
    monkeypatch.setattr(script, "the_watch", NoWatch)
    wrong = script.Violations()
    work = script.hostile if what == "names" else script.tenants
    with contextlib.suppress(Exception):  # whatever else it breaks
        work(name, tmp_path, 60, random.Random(7), wrong)
    return wrong.lines


@pytest.mark.parametrize(
    ("what", "name", "store", "said"),
    [
        ("names", "sqlite", Pasted, "a statement that is not in sql.py"),
        ("names", "memory", Prefixed, "thread"),
        ("names", "memory", Shared, "a neighbouring thread"),
        ("tenants", "memory", Folded, "what a tenant sees"),
        ("tenants", "memory", Prefixed, "what a tenant sees"),
        ("tenants", "memory", Shared, "has seen"),
    ],
)
def test_the_script_sees_a_store_that_is_broken(script, what, name, store, said, monkeypatch, tmp_path):
    assert any(said in line for line in found_by(script, what, name, store, monkeypatch, tmp_path))


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE runs",
        "ATTACH DATABASE 'other.db' AS other",
        "SELECT name FROM pragma_database_list",
        "PRAGMA writable_schema = ON",
        "SELECT randomblob(9)",
        "CREATE TABLE pwned (x)",
        "CREATE TRIGGER pwned AFTER INSERT ON runs BEGIN SELECT 1; END",
        "CREATE VIEW pwned AS SELECT * FROM runs",
        "ALTER TABLE runs RENAME TO pwned",
        "SELECT * FROM runs WHERE run_id = '' UNION SELECT hex(run_id), 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 FROM runs",
    ],
)
def test_what_statements_of_ours_never_need_sqlite_is_told_to_refuse(script, tmp_path, statement):
    wrong = script.Violations()
    with script.guarded_sqlite(wrong):
        with SqliteSaver(tmp_path / "runs.db") as store:
            store.open(OpenRun("r", "flow", None, b""))
            db = store._writer._db
            assert wrong.lines == []
            with pytest.raises(sqlite3.DatabaseError, match="not authorized|prohibited"):
                sqlite3.Connection.execute(db, statement)  # past the list of known statements
    assert any("SQLite was asked for" in line for line in wrong.lines)


def test_all_statements_of_ours_are_known(script):
    """The list is made of the module itself: one that is built at run time is not in it."""
    assert sql.RUN in script.statements_of(sql)
    assert set(sql.DELETE_RUN) <= script.statements_of(sql)
    assert f"{sql.RUN} OR 1" not in script.statements_of(sql)


def test_the_watch_sees_files_and_programs(tmp_path):
    """In a process of its own, because an audit hook stays for ever."""
    inside, beside = tmp_path / "store", tmp_path / "beside"
    inside.mkdir()
    beside.mkdir()
    code = f"""
import os, random, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
from hostile_names import Violations, the_watch
wrong = Violations()
with the_watch().on(wrong, {str(inside)!r}):
    open({str(inside / "file")!r}, "w").close()
    open(random.__file__).close()
assert wrong.lines == [], wrong.lines
for act in (
    lambda: open("file", "w").close(),
    lambda: os.mkdir("directory"),
    lambda: os.rename({str(inside / "file")!r}, "moved"),
    lambda: os.symlink("x", "link"),
    lambda: os.system("true"),
):
    before = len(wrong.lines)
    with the_watch().on(wrong, {str(inside)!r}):
        act()
    assert len(wrong.lines) > before, act
print("ok")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=beside,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.stdout.strip() == "ok", done.stderr


# Prefixes

LABELS = st.sampled_from(["a", "ab", "a%", "a_", "%", "A", "a\0", "b", "\ud800", "*"])
SPACES = st.lists(LABELS, min_size=1, max_size=3).map(tuple)


@given(spaces=st.sets(SPACES, max_size=8), prefix=st.lists(LABELS, max_size=3).map(tuple))
def test_a_prefix_matches_whole_labels_only(spaces, prefix):
    """``("a",)`` never matches ``("ab",)``; only in `list_namespaces` the label "*" stands for any other."""
    store = InMemoryStore()
    for space in spaces:
        store.put(space, "k", {"space": list(space)})
    below = {space for space in spaces if space[: len(prefix)] == prefix}
    assert {item.namespace for item in store.search(prefix, limit=100)} == below

    def fits(space):
        return len(space) >= len(prefix) and all(
            want in ("*", label) for want, label in zip(prefix, space, strict=False)
        )

    listed = store.list_namespaces(prefix=prefix)
    assert listed == sorted(space for space in spaces if fits(space))


@given(spaces=st.sets(SPACES, max_size=8), doomed=SPACES)
def test_a_cache_forgets_a_namespace_and_no_other(spaces, doomed):
    cache = InMemoryCache()
    for space in spaces:
        cache.set(space, "k", b"v")
    cache.clear([doomed])
    assert {space for space in spaces if cache.get(space, "k")} == spaces - {doomed}
