"""The store in a SQLite file: what every store does; and files, processes, crashes and damage."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from killing import seeded

from weft.checkpoint import sql, sqlite_rows
from weft.checkpoint.base import Change, OpenRun, RecordKind, Write
from weft.checkpoint.codec import Codec
from weft.checkpoint.sqlite import SqliteSaver
from weft.checkpoint.sqlite_link import Database
from weft.core.status import RunStatus
from weft.errors import (
    CheckpointError,
    CorruptDataError,
    InputError,
    RunBusyError,
    StoreError,
    ThreadBusy,
    WeftError,
)
from weft.testing.conformance import StoreConformance, begin, end, record, resume, values


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


@pytest.fixture
def stores(path):
    """Makes stores over one file that are closed at the end."""
    made = []

    def make(at=path, **options):
        made.append(SqliteSaver(at, **options))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(stores):
    return stores()


class TestSqliteSaver(StoreConformance):
    @pytest.fixture
    def reopen(self, stores):
        return stores


# --- Processes --------------------------------------------------------------------------------------------


class Child:
    """A process with a store of its own; it runs ``script``, prints lines and may be killed."""

    def __init__(self, path, script, *args):
        code = f"""
import os, signal, sys, time, threading
from weft.testing.conformance import begin, end, record, resume, values
from weft.checkpoint.base import *
from weft.checkpoint.sqlite import SqliteSaver
from weft.errors import *
store = SqliteSaver({str(path)!r})
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
{textwrap.dedent(script)}
store.close()
"""
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def line(self):
        return self.process.stdout.readline().strip()

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()
        self.process.communicate()

    def ended(self):
        """The rest of what it printed, when it has ended well."""
        out, _ = self.process.communicate()
        assert self.process.returncode == 0
        return out.split("\n")[:-1]


OWN_A_RUN = """
say(begin(store, "r", thread_id="t"))
sys.stdin.readline()
"""


def test_a_run_of_a_living_process_is_busy_and_so_is_its_thread(path, store):
    with Child(path, OWN_A_RUN) as child:
        assert child.line() == "1"
        for attempt in (
            lambda: begin(store, "r", thread_id="t"),
            lambda: resume(store, "r"),
            lambda: store.delete_run("r"),
        ):
            with pytest.raises(RunBusyError, match="'r'"):
                attempt()
        for attempt in (
            lambda: begin(store, "r2", thread_id="t"),
            lambda: store.delete_thread("t"),
            lambda: store.save_state("t", b"", created=1.0),
        ):
            with pytest.raises(ThreadBusy, match="'t'"):
                attempt()
        child.go_on()
        child.ended()
    assert resume(store, "r") == 2


def test_a_killed_owner_frees_its_run_at_once(path, store):
    with Child(path, OWN_A_RUN) as child:
        child.line()
        child.kill()
    before = time.monotonic()
    assert resume(store, "r") == 2
    assert time.monotonic() - before < 1
    assert len(list(path.parent.glob("*-owners/*"))) == 1


def test_a_killed_owner_frees_its_thread_at_once(path, store):
    with Child(path, OWN_A_RUN) as child:
        child.line()
        child.kill()
    begin(store, "r2", thread_id="t")
    with pytest.raises(ThreadBusy, match="'r2'"):
        resume(store, "r")


def test_a_stopped_owner_is_alive_and_goes_on(path, store):
    with Child(path, OWN_A_RUN + 'say(store.commit([Write("r", 1, [record()])]))') as child:
        child.line()
        child.signal(signal.SIGSTOP)
        with pytest.raises(RunBusyError):
            resume(store, "r")
        child.signal(signal.SIGCONT)
        child.go_on()
        assert child.ended() == ["set()"]
    assert values(store, "r") == [b"value"]


def test_an_owner_that_was_taken_over_writes_nothing_more_to_that_run(path, store):
    """1: A owns two runs. 2: its lock file is deleted. 3: B takes one over. 4: A commits to both."""
    script = """
    begin(store, "lost"), begin(store, "kept")
    say("ready")
    sys.stdin.readline()
    writes = [Write(id, 1, [record(value=b"A")], Change(RunStatus.FINISHED, b"A")) for id in ("lost", "kept")]
    say(store.commit(writes))
    """
    with Child(path, script) as child:
        child.line()
        for lock in path.parent.glob("*-owners/*"):
            lock.unlink()
        assert resume(store, "lost") == 2
        child.go_on()
        assert child.ended() == ["{'lost'}"]
    assert values(store, "lost") == []
    assert store.find("lost").status is RunStatus.RUNNING
    assert store.find("kept").output == b"A"
    assert store.commit([Write("lost", 2, [record(value=b"B")])]) == set()


def test_the_fence_of_another_object_is_no_ones(path, store, stores):
    """A run that was deleted and begun again has fence 1 again, but another owner."""
    begin(store, "r")
    assert stores().commit([Write("r", 1, [record()])]) == {"r"}
    other = stores()
    begin(other, "other")
    assert other.commit([Write("r", 1, [record()])]) == {"r"}


def test_of_many_processes_one_gets_a_dead_run(path, store):
    """1,000 races are run before a release; here 10, each for a run whose owner was killed."""
    script = """
    for line in sys.stdin:
        try:
            say(resume(store, line.strip()))
        except RunBusyError:
            say("busy")
    """
    with Child(path, "for n in range(10): begin(store, f'r{n}')\nsay('ready')\nsys.stdin.read()") as owner:
        owner.line()
        racers = [Child(path, script) for _ in range(4)]
        try:
            owner.kill()
            for number in range(10):
                for racer in racers:
                    racer.process.stdin.write(f"r{number}\n")
                    racer.process.stdin.flush()
                assert sorted(racer.line() for racer in racers) == ["2", "busy", "busy", "busy"]
        finally:
            for racer in racers:
                racer.kill()


def test_processes_and_threads_commit_at_once_and_nothing_is_lost(path, store):
    script = """
    def work(thread):
        id = f"{sys.argv[1]}.{thread}"
        fence = begin(store, id)
        for turn in range(10):
            assert not store.commit([Write(id, fence, [record(turn), record(turn)])])
        end(store, id, fence, output=b"out")
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    say("done")
    """
    children = [Child(path, script, number) for number in range(4)]
    assert [child.ended() for child in children] == [["done"]] * 4
    assert len(store.runs()) == 32
    for row in store.runs():
        assert row.output == b"out"
        assert [line.ordinal for _, line in store.records(row.run_id)] == [n // 2 for n in range(20)]


def test_what_was_acknowledged_outlives_a_kill(path, store):
    script = """
    fence = resume(store, "r")
    for turn in range(10**6):
        say("ack", turn) if not store.commit([Write("r", fence, [record(turn)])]) else say("refused")
    """
    store.release("r", begin(store, "r"))
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    acknowledged = 0
    for _ in range(5):
        with Child(path, script) as child:
            child.line()
            time.sleep(rng.uniform(0.0, 0.03))
            child.process.kill()
            out, _ = child.process.communicate()
        acknowledged += 1 + sum(line.startswith("ack") for line in out.split("\n")[:-1])
        assert "refused" not in out
        assert acknowledged <= store.records("r", after=acknowledged - 1)[0][0]
        acknowledged = len(values(store, "r"))
    fence = resume(store, "r")
    assert fence == 7
    assert store.commit([Write("r", fence, [record()])]) == set()


def test_eight_processes_create_files_at_once(path):
    """Without our own waiting, now and then one of them gets "database is locked" at once."""
    script = """
    for number in range(10):
        with SqliteSaver(f"{store.path}{number}") as other:
            say(begin(other, sys.argv[1]))
    """
    children = [Child(path, script, number) for number in range(8)]
    assert [child.ended() for child in children] == [["1"] * 10] * 8


def test_eight_processes_some_of_which_are_killed_lose_nothing_and_are_never_locked_out(path, store):
    """Every killed process is followed by another, which finishes what it has left."""
    script = """
    for number in range(10):
        id = f"{sys.argv[1]}.{number}"
        fence = begin(store, id)
        if store.find(id).status is RunStatus.FINISHED:
            continue
        for turn in range(len(values(store, id)), 3):
            assert not store.commit([Write(id, fence, [record(turn, batch=turn + 1)])])
        end(store, id, fence, output=id.encode())
    say("done")
    """
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    running = [(name, Child(path, script, name)) for name in range(8)]
    shots, deaths = 0, 0
    for name, process in running:
        if shots < 6:  # not until so many have died: those that follow the first have little to do
            time.sleep(rng.uniform(0.05, 0.3))
            process.kill()
            shots += 1
            deaths += process.process.returncode == -signal.SIGKILL
            running.append((name, Child(path, script, name)))
        else:
            assert process.ended() == ["done"]
    assert deaths > 0
    assert len(store.runs(limit=1000)) == 80
    for row in store.runs(limit=1000):
        assert (row.status, row.output) == (RunStatus.FINISHED, row.run_id.encode())
        assert [line.ordinal for _, line in store.records(row.run_id)] == [0, 1, 2]
    with store._reader as reader, reader.transaction() as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# --- Forks ------------------------------------------------------------------------------------------------


def test_a_forked_child_is_another_owner_with_connections_of_its_own(path, store):
    script = """
    fence = begin(store, "r")
    store.find("r")
    parent = store._writer._db, store._reader._db
    pid = os.fork()
    if pid == 0:
        assert store.commit([Write("r", fence, [record(value=b"child")])]) == {"r"}
        try:
            resume(store, "r")
        except RunBusyError:
            say("busy")
        begin(store, "of the child")
        assert store.find("of the child")
        assert store._writer._db is not parent[0] and store._reader._db is not parent[1]
        store.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert not store.commit([Write("r", fence, [record(value=b"parent")])])
    """
    with Child(path, script) as child:
        assert child.ended() == ["busy"]
    assert values(store, "r") == [b"parent"]
    assert resume(store, "of the child") == 2


def test_a_child_that_outlives_its_parent_does_not_keep_its_lock(path, store):
    script = """
    begin(store, "r")
    if os.fork() == 0:
        say("child", os.getpid())
        time.sleep(60)
    time.sleep(60)
    """
    with Child(path, script) as child:
        _, pid = child.line().split()
        try:
            with pytest.raises(RunBusyError):
                resume(store, "r")
            child.process.kill()
            child.process.wait()
            assert resume(store, "r") == 2
        finally:
            os.kill(int(pid), signal.SIGKILL)


def test_a_child_that_just_ends_takes_nothing_away(path, store):
    script = """
    begin(store, "r")
    if os.fork() == 0:
        sys.exit()
    os.wait()
    say("ready")
    sys.stdin.readline()
    """
    with Child(path, script) as child:
        child.line()
        with pytest.raises(RunBusyError):
            resume(store, "r")


def test_forking_while_threads_commit_leaves_the_child_able_to_use_the_store(path):
    script = """
    fences = {f"r{n}": begin(store, f"r{n}") for n in range(4)}
    stop = threading.Event()
    def work(id):
        while not stop.is_set():
            store.commit([Write(id, fences[id], [record()])])
            store.find(id)
    threads = [threading.Thread(target=work, args=(id,)) for id in fences]
    for thread in threads: thread.start()
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    for turn in range(20):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            begin(store, f"child {turn}")
            store.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads: thread.join()
    say("done")
    """
    with Child(path, script) as child:
        assert child.ended() == ["done"]


# --- Ownership in one process -----------------------------------------------------------------------------


def test_two_objects_in_one_process_are_two_owners(store, stores):
    begin(store, "r")
    other = stores()
    with pytest.raises(RunBusyError):
        resume(other, "r")
    store.close()
    assert resume(other, "r") == 2


def test_closing_frees_what_is_open_and_using_opens_again(store):
    fence = begin(store, "r")
    store.close()
    assert store.find("r").status is RunStatus.RUNNING
    assert store.commit([Write("r", fence, [record()])]) == {"r"}
    assert resume(store, "r") == 2


def test_a_run_is_free_in_this_process_though_its_release_could_not_be_written(store):
    fence = begin(store, "r", thread_id="t")
    store.save_state("other", b"", created=1.0)
    _cap_pages(store)
    with pytest.raises(StoreError):
        while True:
            store.commit([Write("r", fence, [record(value=b"x" * 5000)])])
    store._writer._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError):
        store.release("r", fence)
    store._writer._db.execute("PRAGMA query_only = OFF")
    assert begin(store, "r", thread_id="t") == fence + 1


def test_a_run_that_could_not_be_opened_is_not_busy(store, stores):
    store.release("r", begin(store, "r"))
    store._writer._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError):
        resume(store, "r")
    store._writer._db.execute("PRAGMA query_only = OFF")
    assert resume(store, "r") == 2


def test_an_owner_in_the_database_that_no_owner_can_have_is_dead(store, stores, path, tmp_path):
    """Names of lock files come from random ids only, never from what a doctored database says."""
    begin(store, "r")
    store.close()
    victim = tmp_path / "victim.lock"
    victim.touch()
    other = stores()
    with other._writer, other._writer.transaction() as db:
        sqlite_rows.change(db, sqlite_rows.load(db, "r")._replace(owner="../victim"))
    assert resume(other, "r") == 2
    assert victim.exists()


# --- Life -------------------------------------------------------------------------------------------------


def test_nothing_is_created_before_first_use(store, tmp_path):
    assert list(tmp_path.iterdir()) == []
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_after_closing_only_the_database_is_left(store, path, tmp_path):
    begin(store, "r")
    store.find("r")
    assert len(list(tmp_path.iterdir())) == 4
    store.close()
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_is_a_context_manager_sync_and_async(path):
    with SqliteSaver.from_conn_string(str(path)) as store:
        begin(store, "r")
    assert store._writer._db is None

    async def main():
        async with SqliteSaver.from_conn_string(str(path)) as store:
            assert resume(store, "r") == 2
        return store

    assert asyncio.run(main())._writer._db is None


def test_a_forgotten_store_closes_itself(path, tmp_path):
    begin(SqliteSaver(path), "r")
    gc.collect()
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_descriptor_is_left(path):
    def descriptors():
        return list(Path("/proc/self/fd").iterdir())

    with SqliteSaver(path) as store:  # SQLite keeps one for good
        begin(store, "warm up")
    before = descriptors()
    for number in range(5):
        with SqliteSaver(path) as store:
            begin(store, f"r{number}")
            store.runs()
    assert len(descriptors()) == len(before)


def test_closing_while_others_use_it_breaks_nothing(store):
    stop = threading.Event()

    def close():
        while not stop.is_set():
            store.close()

    closer = threading.Thread(target=close)
    closer.start()
    try:
        for number in range(50):
            begin(store, f"r{number}")
            assert store.find(f"r{number}")
            store.records(f"r{number}")
    finally:
        stop.set()
        closer.join()


def test_options(path):
    codec = Codec()
    store = SqliteSaver(path, codec=codec, timeout=0)
    assert store.codec is codec
    assert store.instant is False
    assert repr(store) == f"SqliteSaver({str(path)!r})"


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True])
def test_a_timeout_that_is_no_time_is_refused(path, timeout):
    with pytest.raises(InputError, match="timeout"):
        SqliteSaver(path, timeout=timeout)


def test_memory_is_another_store():
    with pytest.raises(InputError, match=r"InMemorySaver\(\)"):
        SqliteSaver(":memory:")
    with pytest.raises(InputError, match=r"InMemorySaver\(\)"):
        SqliteSaver.from_conn_string(":memory:")


@pytest.mark.parametrize("path", ["", "a\0b", b"bytes"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(InputError, match="path of a file"):
        SqliteSaver(path)


@pytest.mark.parametrize(
    "name", ["file:x.db?mode=ro", "100% 'sure' \";--.db", "é\N{SNAKE}.db", "-x.db", "a b?c#d.db"]
)
def test_any_file_name_will_do(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with SqliteSaver(name) as store:
        begin(store, "r")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_relative_path_stays_where_it_was_meant(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = SqliteSaver("runs.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with store:
        begin(store, "r")
    assert (tmp_path / "runs.db").exists()


def test_a_symlinked_path_and_the_real_one_share_their_owners(path, tmp_path, stores):
    (tmp_path / "link.db").symlink_to(path)
    begin(stores(), "r")
    with pytest.raises(RunBusyError):
        resume(stores(tmp_path / "link.db"), "r")


# --- Files ------------------------------------------------------------------------------------------------


def test_files_are_private_under_any_umask(path, store, tmp_path):
    umask = os.umask(0)
    try:
        begin(store, "r")
        store.find("r")
    finally:
        os.umask(umask)
    modes = {entry.name.rpartition("db")[2]: entry.stat().st_mode & 0o777 for entry in tmp_path.rglob("*")}
    lock = next(name for name in modes if name.endswith(".lock"))
    assert modes == {"": 0o600, "-wal": 0o600, "-shm": 0o600, "-owners": 0o700, lock: 0o600}


def test_a_planted_symlink_for_the_locks_is_refused(path, store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs.db-owners").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="owners"):
        begin(store, "r")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert store.find("r") is None


def test_every_commit_waits_for_the_disk(store):
    begin(store, "r")
    db = store._writer._db
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_schema_is_in_the_file_itself_not_in_the_wal(path, store):
    """A WAL that lost its end must not take the schema along."""
    begin(store, "r")
    copy = path.with_name("copy.db")
    subprocess.run(["cp", path, copy], check=True)  # in another process: closing a copy's file drops locks
    with SqliteSaver(copy) as other, sqlite3.connect(copy) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() > (5,)
        assert other.find("r") is None
    db.close()


def test_version_and_application_are_in_the_file(path, store):
    begin(store, "r")
    with sqlite3.connect(path) as db:
        assert db.execute(sql.INSPECT).fetchone()[:2] == (sql.APPLICATION, len(sql.STEPS))
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()


def test_the_directory_must_exist(tmp_path):
    with pytest.raises(StoreError, match="directory of .* does not exist; create it"):
        SqliteSaver(tmp_path / "no" / "runs.db").runs()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_no_database(tmp_path, stores):
    with pytest.raises(StoreError, match=f"cannot read {tmp_path}"):
        stores(tmp_path).runs()


@pytest.mark.parametrize("content", [b"text\n" * 9999, b"x", b"x" * 511, b"x" * 512])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path, store, content):
    path.write_bytes(content)
    for attempt in (lambda: begin(store, "r"), store.runs, lambda: store.records("r")):
        with pytest.raises(StoreError, match=str(path)):
            attempt()
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_an_empty_file_is_a_new_database(path, store):
    path.touch()
    assert begin(store, "r") == 1


def test_a_database_of_another_application_is_refused_and_left_alone(path, store):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE runs (precious)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another application; give another path"):
        begin(store, "r")
    assert path.read_bytes() == before


def test_a_database_that_only_looks_empty_is_refused(path, store):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(StoreError, match="another application"):
        begin(store, "r")


def test_a_database_of_a_newer_weft_is_refused(path, store):
    begin(store, "r")
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 1000")
    db.close()
    with pytest.raises(StoreError, match="newer version of Weft .*1000.* upgrade"):
        store.runs()


def test_a_failed_creation_is_begun_anew(path, store, monkeypatch):
    steps = sql.STEPS
    monkeypatch.setattr(sql, "STEPS", ((*steps[0][:3], "CREATE NONSENSE", *steps[0][3:]),))
    with pytest.raises(StoreError, match="NONSENSE"):
        begin(store, "r")
    monkeypatch.undo()
    assert begin(store, "r") == 1


def test_a_schema_is_brought_up_to_date_step_by_step(path, store, monkeypatch):
    begin(store, "r")
    store.close()
    more = ("CREATE TABLE extra (x)", "PRAGMA user_version = 2")
    monkeypatch.setattr(sql, "STEPS", (*sql.STEPS, more))
    assert store.find("r") is not None
    copy = path.with_name("copy.db")  # without the WAL, which must not be needed for the schema
    subprocess.run(["cp", path, copy], check=True)
    with sqlite3.connect(copy) as db:
        assert db.execute("SELECT count(*) FROM extra").fetchone() == (0,)
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
    db.close()
    store.close()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="newer"):
        store.find("r")


# --- When the store fails ---------------------------------------------------------------------------------


def _cap_pages(store):
    db = store._writer._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages + 5}")


def _lift_cap(store):
    store._writer._db.execute("PRAGMA max_page_count = 1000000000")


def test_a_full_disk_is_an_error_that_loses_nothing_acknowledged(store):
    fence = begin(store, "r")
    _cap_pages(store)
    acknowledged = 0
    with pytest.raises(StoreError, match="full; free some space") as caught:
        while True:
            store.commit([Write("r", fence, [record(acknowledged, value=b"x" * 3000)])])
            acknowledged += 1
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert acknowledged > 0
    assert len(values(store, "r")) == acknowledged
    _lift_cap(store)
    assert store.commit([Write("r", fence, [record(acknowledged)])]) == set()
    assert [line.ordinal for _, line in store.records("r")] == list(range(acknowledged + 1))


def test_a_commit_that_fails_in_its_middle_leaves_no_part_of_it(store):
    first, second = begin(store, "r1"), begin(store, "r2", thread_id="t")
    bad = record(3, value=None)
    with pytest.raises(StoreError):
        store.commit(
            [
                Write("r2", second, [record(1)], Change(RunStatus.FINISHED, b"out", saved=b"saved")),
                Write("r1", first, [record(2), bad]),
            ]
        )
    assert store.records("r1") == store.records("r2") == store.states("t") == []
    assert store.find("r2").status is RunStatus.RUNNING
    assert store.commit([Write("r1", first, [record()]), Write("r2", second, [record()])]) == set()


def test_a_file_size_limit_is_an_error_that_loses_nothing_acknowledged(path, store):
    script = """
    import resource
    fence = begin(store, "r")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    done = 0
    try:
        while True:
            store.commit([Write("r", fence, [record(done, value=b"x" * 3000)])])
            done += 1
    except StoreError as error:
        say(type(error.__cause__).__name__, done)
    assert len(values(store, "r")) == done
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert store.commit([Write("r", fence, [record(done)])]) == set()
    """
    with Child(path, script) as child:
        name, done = child.ended()[0].split()
    assert name == "OperationalError"
    assert [line.ordinal for _, line in store.records("r")] == list(range(int(done) + 1))


def test_a_read_only_file_is_an_error_and_can_still_be_read(path, store, tmp_path):
    """Written by us, read by a process that may not write (as another user when we are root)."""
    end(store, "r", begin(store, "r"), output=b"out")
    script = """
    if os.getuid() == 0:
        os.setuid(65534)
    assert store.find("r").output == b"out"
    for attempt in (
        lambda: begin(store, "new"),
        lambda: store.delete_run("r"),
        lambda: store.save_state("t", b"", created=1.0),
    ):
        try:
            attempt()
        except StoreError as error:
            say(error)
    """
    path.chmod(0o444)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    for companion in tmp_path.glob("runs.db-*"):
        companion.chmod(0o444 if companion.is_file() else 0o755)
    with Child(path, script) as child:
        lines = child.ended()
    locks, *others = lines
    assert "cannot keep a lock file in" in locks
    assert ["writable and resume" in line for line in others] == [True, True]
    assert store.find("r").output == b"out"


def test_a_database_locked_by_another_is_waited_for(path, stores):
    store = stores(timeout=30)
    begin(store, "r")
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, lambda: (other.execute("COMMIT"), other.close()))
    timer.start()
    before = time.monotonic()
    assert begin(store, "r2") == 1
    assert time.monotonic() - before > 0.1
    timer.join()


def test_a_database_locked_for_too_long_is_an_error(path, stores):
    store = stores(timeout=0.1)
    fence = begin(store, "r")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"locked.*0\.1 s: wait"):
        store.commit([Write("r", fence, [record()])])
    assert store.find("r") is not None
    other.close()
    assert store.commit([Write("r", fence, [record()])]) == set()


def test_turning_the_wal_on_waits_for_readers(path, store):
    begin(store, "r")
    store.close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN")
    other.execute("SELECT * FROM runs").fetchall()
    timer = threading.Timer(0.2, other.close)
    timer.start()
    assert store.find("r") is not None
    assert store._reader._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    timer.join()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_deleted_or_replaced_file_is_noticed(path, store, replaced):
    """SQLite itself would go on in the file that is no longer there."""
    fence = begin(store, "r")
    store.find("r")
    path.unlink()
    if replaced:
        with SqliteSaver(path) as other:
            begin(other, "new")
    for attempt in (lambda: store.commit([Write("r", fence, [record()])]), lambda: store.find("r")):
        with pytest.raises(StoreError, match="deleted or replaced"):
            attempt()
    assert store.commit([Write("r", fence, [record()])]) == {"r"}
    assert (store.find("new") is not None) == replaced


@pytest.mark.parametrize("companion", ["", "-wal", "-shm"])
def test_a_file_that_is_deleted_between_two_commits_is_noticed_whenever_that_is(tmp_path, companion):
    """The folder is asked for its last change, which is no news when it has just had another."""
    rng = seeded("deletions")
    for number in range(25):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        with SqliteSaver(folder / "runs.db") as store:
            fence = begin(store, "r")
            for _ in range(3):
                assert store.commit([Write("r", fence, [record()])]) == set()
                time.sleep(rng.choice([0, 0.0005, 0.003, 0.02, 0.12]))
            if rng.random() < 0.5:
                (folder / "other").touch()
                assert store.commit([Write("r", fence, [record()])]) == set()
            (folder / f"runs.db{companion}").unlink()
            with pytest.raises(StoreError, match="deleted or replaced"):
                store.commit([Write("r", fence, [record()])])


def test_a_folder_that_did_not_change_is_asked_once_a_commit(path, store, monkeypatch):
    """To ask for the log makes the next commit half as slow again, on a kernel that then dates it anew."""
    fence, asked = begin(store, "r"), []
    stat = os.stat
    time.sleep(0.15)
    store.commit([Write("r", fence, [record()])])
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(path) or stat(path, **options))
    for _ in range(3):
        store.commit([Write("r", fence, [record()])])
    assert asked == [str(Path(store.path).parent)] * 3


@pytest.mark.parametrize("seconds", [0.3, 5.0])
def test_where_only_whole_seconds_are_noted_a_folder_is_trusted_later(path, store, monkeypatch, seconds):
    fence, asked = begin(store, "r"), []
    stat, folder, changed = os.stat, str(Path(store.path).parent), 10**18

    class Coarse:
        st_dev, st_ino, st_mtime_ns, st_ctime_ns = 1, 2, changed, changed

    def of(path, **options):
        asked.append(path)
        return Coarse if path == folder else stat(path, **options)

    monkeypatch.setattr(os, "stat", of)
    monkeypatch.setattr(time, "time_ns", lambda: changed + int(seconds * 10**9))
    for _ in range(3):
        store.commit([Write("r", fence, [record()])])
    assert asked.count(folder) == 3
    assert asked.count(store.path) == (3 if seconds < 1 else 1)


def test_reads_do_not_wait_for_a_commit(store):
    fence = begin(store, "r")
    store.commit([Write("r", fence, [record(1)])])
    with store._writer, store._writer.transaction() as db:
        db.execute("UPDATE runs SET position = 0")
        with ThreadPoolExecutor(1) as pool:
            assert len(pool.submit(store.records, "r").result(timeout=10)) == 1
            assert pool.submit(store.find, "r").result(timeout=10).fence == fence
            assert pool.submit(store.runs).result(timeout=10)
            assert pool.submit(store.states, "t").result(timeout=10) == []
        db.rollback()
        db.execute("BEGIN")


def test_a_value_that_is_too_big_for_the_file_is_an_error(store):
    fence = begin(store, "r")
    with pytest.raises(StoreError):
        store.commit([Write("r", fence, [record(ordinal=2**64)])])
    assert values(store, "r") == []


# --- When the file is damaged -----------------------------------------------------------------------------


def _journal(path):
    """A closed database with a bit of everything; what is in it."""
    with SqliteSaver(path) as store:
        for run_id in ("r1", "r2"):
            fence = begin(store, run_id, thread_id="t")
            lines = [record(n, kind=kind, value=os.urandom(50)) for n, kind in enumerate(RecordKind)]
            store.commit(
                [Write(run_id, fence, lines * 3, Change(RunStatus.FINISHED, b"out", saved=b"saved"))]
            )
        return _everything(store)


def _everything(store):
    runs = store.runs()
    return runs, {row.run_id: store.records(row.run_id) for row in runs}, store.states("t")


def _flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_a_flipped_bit_gives_the_truth_or_an_error(path, tmp_path):
    """Nothing wrong, and no journal with holes.

    In a page of an index or in the head of a page, a flip can hide a whole run or saved value: SQLite then
    finds nothing, and nothing tells that from what was never there. It must stay the rare case it is.
    """
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    truth, errors, hidden = _journal(path), 0, 0
    runs, records, states = truth
    for number in range(300):
        copy = tmp_path / f"copy{number}.db"
        shutil.copy(path, copy)
        _flip(copy, rng)
        try:
            with SqliteSaver(copy, timeout=0.1) as store:
                found = _everything(store)
        except CheckpointError:
            errors += 1
            continue
        hidden += found != truth
        assert all(row in runs for row in found[0])
        assert all(lines in ([], records[run_id]) for run_id, lines in found[1].items())
        assert all(state in states for state in found[2])
    assert errors > 10
    assert hidden <= 9


def test_a_torn_wal_gives_a_prefix(path, tmp_path):
    """Cut or flipped at a random place, the log ends there: what is left is what was true at that time."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    with SqliteSaver(path) as store:
        fence = begin(store, "r")
        for number in range(20):
            store.commit([Write("r", fence, [record(number)])])
        image = tmp_path / "image.db"
        subprocess.run(["cp", path, image], check=True)
        subprocess.run(["cp", f"{path}-wal", f"{image}-wal"], check=True)
    wal, lengths = image.with_name("image.db-wal"), set()
    for number in range(100):
        copy = tmp_path / f"copy{number}.db"
        shutil.copy(image, copy)
        content = bytearray(wal.read_bytes())
        if number % 2:
            content = content[: rng.randrange(len(content))]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        copy.with_name(f"{copy.name}-wal").write_bytes(content)
        with SqliteSaver(copy) as store:
            lines = [line.ordinal for _, line in store.records("r")]
            assert lines == list(range(len(lines)))
            lengths.add(len(lines))
    assert len(lengths) > 5


@pytest.mark.parametrize(
    ("damage", "read"),
    [
        ("UPDATE records SET value = x'00' WHERE place & 0xff = 3", lambda store: store.records("r1")),
        ("UPDATE records SET about = x'90' WHERE place & 0xff = 1", lambda store: store.records("r1")),
        ("DELETE FROM records WHERE place & 0xff = 3", lambda store: store.records("r1")),
        ("DELETE FROM records WHERE place & 0xff = 21", lambda store: store.records("r1")),
        ("UPDATE records SET place = place + 100 WHERE place & 0xff = 21", lambda store: store.records("r1")),
        ("UPDATE runs SET position = 20", lambda store: store.records("r1")),
        ("UPDATE runs SET status = 1", lambda store: store.find("r1")),
        ("UPDATE runs SET fence = 'x'", lambda store: store.commit([Write("r1", 1)])),
        ("UPDATE inputs SET input = x'00'", lambda store: store.find("r1")),
        ("DELETE FROM inputs", lambda store: store.runs()),
        ("UPDATE outcomes SET output = x'00'", lambda store: store.find("r1")),
        ("DELETE FROM outcomes", lambda store: store.open(OpenRun("r1", "flow"))),
        ("UPDATE states SET value = x'00'", lambda store: store.states("t")),
        ("UPDATE states SET number = number + 1 WHERE number = 2", lambda store: store.states("t")),
    ],
)
def test_a_doctored_row_is_noticed(path, store, damage, read):
    _journal(path)
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    with pytest.raises(CorruptDataError):
        read(store)


def test_every_error_is_one_of_ours():
    assert issubclass(StoreError, WeftError)
    assert issubclass(CorruptDataError, CheckpointError)


def test_advice_for_what_python_cannot_quote():
    file = Database("x.db", 1.0)
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    assert "damaged" in str(file.failure(error, "read"))


def test_a_process_that_is_stopped_while_it_opens_the_file_is_not_waited_for_without_end(tmp_path):
    stopped = SqliteSaver(tmp_path / "runs.db")
    database = Database(stopped.path, 60.0)
    with database._one_at_a_time():
        other = SqliteSaver(tmp_path / "runs.db", timeout=0.2)
        with pytest.raises(
            StoreError, match=r"another process has been opening .* 0\.2 s; wait for it, or end it"
        ):
            other.find("r")
    assert other.find("r") is None
    other.close()


@pytest.mark.parametrize("size", [1, 100, 511])
def test_a_file_too_short_for_a_database_is_not_written_over(path, store, size):
    """SQLite takes a file without a whole header for an empty one."""
    path.write_bytes(b"x" * size)
    with pytest.raises(StoreError, match="is no database; give another path"):
        begin(store)
    assert path.read_bytes() == b"x" * size


def test_companions_get_the_mode_of_the_file(stores, tmp_path):
    """Those made while the file was read-only would stay so."""
    keeper = stores()
    end(keeper, "r", begin(keeper, "r"), output=b"out")
    companions = [tmp_path / "runs.db-wal", tmp_path / "runs.db-shm"]
    for each in companions:
        each.chmod(0o444)
    assert stores().find("r").output == b"out"
    assert [each.stat().st_mode & 0o777 for each in companions] == [0o600, 0o600]


@pytest.mark.parametrize("end", ["wal", "shm"])
def test_what_a_planted_link_leads_to_keeps_its_mode(path, stores, tmp_path, end):
    """A link in the place of a companion could open any file to others."""
    secret = tmp_path / "secret"
    secret.touch(0o400)
    (tmp_path / f"runs.db-{end}").symlink_to(secret)
    with contextlib.suppress(WeftError):
        begin(stores())
    assert secret.stat().st_mode & 0o777 == 0o400


def test_a_run_that_saves_nothing_changes_nothing_of_its_thread(store):
    end(store, "r1", begin(store, "r1", thread_id="t"), saved=b"value")
    end(store, "r2", begin(store, "r2", thread_id="t"))
    assert [state.value for state in store.states("t")] == [b"value"]
