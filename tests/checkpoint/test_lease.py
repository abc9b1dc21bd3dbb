"""The beat of an owner and the lease that it has; and owners that are stopped, copied, forked and killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from killing import seeded
from postgres import address, fresh_schema
from repo_scripts import ROOT, SCRIPTS, run_script

from weft import RunBusyError, RunStatus, SqliteSaver, entrypoint, task
from weft.checkpoint import owner as owner_module
from weft.checkpoint.base import Write
from weft.checkpoint.memory import InMemorySaver
from weft.checkpoint.owner import Others, Pulse, checked_lease
from weft.checkpoint.postgres import PostgresSaver
from weft.engine import journal as journal_module
from weft.engine.journal import Book, journal_of
from weft.errors import InputError, StoreError, ThreadBusy
from weft.testing.conformance import begin, end, record, resume, retry_after, values


class Clock:
    """A monotonic clock that is set by hand."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(owner_module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture(params=["sqlite", "postgres"])
def stores(request, tmp_path):
    """Makes objects on one store of each kind."""
    made = []

    def keep(store):
        made.append(store)
        return store

    if request.param == "sqlite":
        yield lambda **options: keep(SqliteSaver(tmp_path / "runs.db", **options))
        for store in made:
            store.close()
    else:
        with fresh_schema() as schema:
            yield lambda **options: keep(PostgresSaver(address(), schema=schema, **options))
            for store in made:
                store.close()


# --- The books of an observer -----------------------------------------------------------------------------


def test_silence_is_counted_from_when_it_was_first_seen(clock):
    others = Others()
    assert others.patience("a", 7, 30.0) == 30.0
    clock.now += 29.0
    assert others.patience("a", 7, 30.0) == 1.0
    clock.now += 1.0
    assert others.patience("a", 7, 30.0) == 0.0
    clock.now += 100.0
    assert others.patience("a", 7, 30.0) == 0.0


def test_a_new_beat_begins_the_count_anew(clock):
    others = Others()
    others.patience("a", 7, 30.0)
    clock.now += 29.0
    assert others.patience("a", 8, 30.0) == 30.0
    clock.now += 29.0
    assert others.patience("a", 8, 30.0) == 1.0
    assert (
        others.patience("a", 7, 30.0) == 30.0
    )  # a server that lost its last moments goes back; that is news too


def test_owners_are_told_apart_and_forgotten_ones_begin_anew(clock):
    others = Others()
    others.patience("a", 7, 30.0)
    clock.now += 29.0
    assert others.patience("b", 7, 30.0) == 30.0
    others.forget("a")
    others.forget("never seen")
    assert others.patience("a", 7, 30.0) == 30.0
    clock.now += 29.0
    others.clear()
    assert others.patience("b", 7, 30.0) == 30.0


def test_while_nobody_could_write_nobody_was_silent(clock):
    others = Others()
    others.patience("a", 7, 30.0)
    clock.now += 40.0
    assert others.patience("a", 7, 30.0, blocked=35.0) == 25.0
    assert others.patience("a", 7, 30.0, blocked=1000.0) == 30.0


def test_an_owner_without_a_beat_is_waited_for_as_well(clock):
    others = Others()
    assert others.patience("a", None, 30.0) == 30.0
    clock.now += 30.0
    assert others.patience("a", None, 30.0) == 0.0


def test_what_an_observer_remembers_is_bounded(clock, monkeypatch):
    monkeypatch.setattr(owner_module, "_REMEMBERED", 10)
    others = Others()
    for number in range(100):
        others.patience("kept", 0, 30.0)
        others.patience(str(number), 0, 30.0)
    clock.now += 30.0
    assert others.patience("kept", 0, 30.0) == 0.0
    assert len(others._seen) == 10


def test_a_pulse_counts_up_and_is_due_now_and_then(clock):
    pulse = Pulse(8.0)
    assert pulse.is_due()
    assert pulse.next() == 1
    assert not pulse.is_due()
    clock.now += 0.99
    assert not pulse.is_due()
    clock.now += 0.01
    assert pulse.is_due()
    assert pulse.next() == 2
    pulse.stop()
    assert pulse.is_due()
    assert pulse.next() == 3


@pytest.mark.parametrize("lease", [0, -1, float("nan"), float("inf"), True, "30", None])
@pytest.mark.parametrize(
    "make", [lambda x: SqliteSaver("x.db", lease=x), lambda x: PostgresSaver("host=x", lease=x)]
)
def test_a_lease_that_is_no_time_is_refused(make, lease):
    with pytest.raises(InputError, match="lease"):
        make(lease)


def test_the_lease_is_thirty_seconds_by_default():
    assert SqliteSaver("x.db").lease == PostgresSaver("host=x").lease == checked_lease(30) == 30.0
    assert InMemorySaver().lease == float("inf")


# --- Stores -----------------------------------------------------------------------------------------------


def test_a_long_observation_takes_no_time(stores, clock):
    """The whole of it on a clock of our own: look, look again, a beat, look, silence, take over."""
    owner, other = stores(lease=30.0), stores(lease=30.0)
    begin(owner)

    def busy():
        with pytest.raises(RunBusyError) as caught:
            resume(other)
        return retry_after(caught.value)

    assert busy() == pytest.approx(30.0)
    for _ in range(20):
        clock.now += 29.9
        owner.beat()
        assert busy() == pytest.approx(30.0)
    clock.now += 29.9
    assert busy() == pytest.approx(0.1)
    clock.now += 0.2
    assert resume(other) == 2
    clock.now += 3600.0
    owner.beat()
    assert owner.commit([Write("r", 1, [record()])]) == {"r"}


def test_a_beat_writes_nothing_when_nothing_is_open(stores, clock):
    store, other = stores(), stores()

    def beats():
        if isinstance(store, SqliteSaver):
            with other._reader as reader, reader.transaction() as db:
                return db.execute("SELECT beat FROM owners").fetchall()
        return other._reader.single("SELECT beat FROM owners", {})

    store.beat()
    assert beats() == []
    fence = begin(store)
    assert beats() == [(1,)]
    store.beat()
    assert beats() == [(1,)]  # that was said a moment ago
    clock.now += 10.0
    store.beat()
    assert beats() == [(2,)]
    clock.now += 10.0
    assert store.commit([Write("r", fence, [record()])]) == set()
    assert beats() == [(3,)]
    end(store, "r", fence)
    last = beats()
    clock.now += 10.0
    store.beat()
    assert beats() == last


def test_a_refused_run_is_open_no_more_and_needs_no_beats(stores, clock):
    store, other = stores(), stores()
    fence = begin(store)
    assert pytest.raises(RunBusyError, resume, other)
    clock.now += 31.0
    assert resume(other) == 2
    assert store.commit([Write("r", fence, [record()])]) == {"r"}
    assert store._held == {}


def test_the_dead_are_swept_away_when_somebody_enters(stores):
    for number in range(3):
        store = stores()
        begin(store, f"r{number}")
        if isinstance(store, SqliteSaver):
            store.close()  # leaves its row
        else:
            store._own.close()  # as a crash does: its lock is free, its row is there
            store._owner = None
    last = stores()
    begin(last, "last")
    if isinstance(last, SqliteSaver):
        with last._reader as reader, reader.transaction() as db:
            assert len(db.execute("SELECT * FROM owners").fetchall()) == 1
    else:
        deadline = time.monotonic() + 5
        while len(last._reader.single("SELECT owner FROM owners", {})) > 1:
            assert time.monotonic() < deadline
            with last._writer as writer:
                writer.transact(
                    lambda db: db.execute(
                        "DELETE FROM owners WHERE owner <> %(o)s AND locks AND pg_try_advisory_xact_lock_shared(key)",
                        {"o": last._owner},
                    )
                )


def test_a_copied_database_has_no_owners(tmp_path):
    """Whoever runs the original does not run the copy."""
    with SqliteSaver(tmp_path / "runs.db") as store, SqliteSaver(tmp_path / "copy.db") as copy:
        fence = begin(store)
        for suffix in ("", "-wal"):
            subprocess.run(["cp", tmp_path / f"runs.db{suffix}", tmp_path / f"copy.db{suffix}"], check=True)
        shutil.copytree(tmp_path / "runs.db-owners", tmp_path / "copy.db-owners")
        (tmp_path / "copy.db-owners").chmod(0o700)
        assert resume(copy) == fence + 1
        assert store.commit([Write("r", fence, [record()])]) == set()
        assert values(copy, "r") == []


def test_an_owner_whose_lock_file_was_deleted_is_shut_out_and_not_doubled(tmp_path):
    with SqliteSaver(tmp_path / "runs.db") as store, SqliteSaver(tmp_path / "runs.db") as other:
        fence = begin(store, thread_id="t")
        for path in (tmp_path / "runs.db-owners").iterdir():
            path.unlink()
        assert resume(other) == fence + 1
        store.beat()
        assert store.commit([Write("r", fence, [record()])]) == {"r"}
        with pytest.raises(RunBusyError):
            resume(store)


def test_a_process_id_that_is_given_out_again_owns_nothing(stores):
    """Ids are random: the same process is another owner with another object, and nothing is told by its number."""
    first, second = stores(), stores()
    begin(first, "r1"), begin(second, "r2")
    ids = {first._owner.id if isinstance(first, SqliteSaver) else first._owner}
    ids.add(second._owner.id if isinstance(second, SqliteSaver) else second._owner)
    assert len(ids) == 2
    assert not any(str(os.getpid()) == each for each in ids)


def test_a_beat_waits_only_so_long_for_others_that_write(tmp_path, clock):

    with SqliteSaver(tmp_path / "runs.db", lease=1.0, timeout=60.0) as store:
        fence = begin(store)
        clock.now += 10.0
        other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        real, began = time.perf_counter(), clock.now
        ticking = threading.Thread(target=_tick, args=(clock, began + 5.0), daemon=True)
        ticking.start()
        with pytest.raises(StoreError, match="locked"):
            store.beat()
        assert time.perf_counter() - real < 5.0
        other.close()
        clock.now += 10.0
        ticking.join()
        store.beat()
        assert store.commit([Write("r", fence, [record()])]) == set()


def _tick(clock, until):
    while clock.now < until:
        time.sleep(0.01)
        clock.now += 0.05


def test_a_store_that_was_locked_for_longer_than_the_lease_kills_nobody(tmp_path):
    """A: owner. B holds the lock for two leases. C, which has seen A before, comes first when it is free."""

    with SqliteSaver(tmp_path / "runs.db", lease=0.4) as a, SqliteSaver(tmp_path / "runs.db", lease=0.4) as c:
        begin(a)
        assert pytest.raises(RunBusyError, resume, c)
        b = sqlite3.connect(tmp_path / "runs.db", isolation_level=None, check_same_thread=False)
        b.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.8, b.close)
        timer.start()
        with pytest.raises(RunBusyError) as caught:
            resume(c)
        assert retry_after(caught.value) > 0.1
        timer.join()
        assert a.commit([Write("r", 1, [record()])]) == set()


def test_a_forked_child_beats_for_nobody(stores):
    store = stores(lease=0.3)
    begin(store)
    pid = os.fork()
    if pid == 0:
        try:
            time.sleep(0.1)
            store.beat()
            ok = store._held == {} and store.commit([Write("r", 1, [record()])]) == {"r"}
            os._exit(0 if ok else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.commit([Write("r", 1, [record()])]) == set()


# --- The writer's thread ----------------------------------------------------------------------------------


def flows(seconds):
    @task
    def quiet():
        time.sleep(seconds)
        return 1

    @entrypoint()
    def flow(x):
        return quiet().result()

    return flow


def test_a_run_that_is_long_silent_is_kept_alive(stores):
    """Nothing is recorded for three leases, also not before the first step's end; the run stays its owner's."""
    owner, other = stores(lease=0.8), stores(lease=0.8)
    result = []
    thread = threading.Thread(
        target=lambda: result.append(flows(2.5).invoke(1, run_id="r", thread_id="t", checkpointer=owner))
    )
    thread.start()
    while other.find("r") is None:
        time.sleep(0.01)
    busy = 0
    while thread.is_alive():
        try:
            begin(other, "r2", thread_id="t")
        except ThreadBusy:
            busy += 1
        else:
            break
        time.sleep(0.02)
    thread.join()
    assert result == [1]
    assert busy > 10
    assert other.find("r").status is RunStatus.FINISHED
    assert other.find("r").fence == 1


def test_without_beats_it_would_be_taken_over(stores, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(journal_module.Journal, "_beat", lambda self: None)
    owner, other = stores(lease=0.3), stores(lease=0.3)
    failed = []

    def work():
        try:
            flows(1.2).invoke(1, run_id="r", checkpointer=owner)
        except Exception as error:
            failed.append(type(error).__name__)

    thread = threading.Thread(target=work)
    thread.start()
    while other.find("r") is None:
        time.sleep(0.01)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert resume(other, "r") == 2
            break
        except RunBusyError as error:
            time.sleep(retry_after(error))
    thread.join()
    assert failed == ["OwnerLostError"]


class Counting(InMemorySaver):
    """Takes note of when it is beaten and written to."""

    instant = False
    lease = 0.2

    def __init__(self):
        super().__init__()
        self.beats = []
        self.commits = 0
        self.broken = False

    def beat(self):
        self.beats.append(time.monotonic())
        if self.broken:
            raise StoreError("no")

    def commit(self, writes):
        self.commits += 1
        return super().commit(writes)


class Inbox:
    def post(self, fn, *args):
        fn(*args)


def book(store, run_id="r", **options):
    return Book(
        store,
        run_id,
        begin(store, run_id),
        0,
        Inbox(),
        lambda: None,
        lambda error: None,
        loop=None,
        **options,
    )


def beats_no_more(store, seconds):
    """Whether no beat comes that was not on its way."""
    time.sleep(seconds)
    before = len(store.beats)
    time.sleep(0.3)
    return len(store.beats) == before


def test_the_writer_beats_four_times_a_lease_while_a_book_is_open():
    store = Counting()
    open_book = book(store)
    time.sleep(1.0)
    beats = len(store.beats)
    assert 5 <= beats <= 20
    open_book.close()
    assert beats_no_more(store, 0.15)


def test_the_writer_beats_until_the_last_book_is_closed():
    store = Counting()
    first, second = book(store, "a"), book(store, "b")
    first.close()
    time.sleep(0.1)
    before = len(store.beats)
    time.sleep(0.4)
    assert len(store.beats) > before
    second.close()
    assert beats_no_more(store, 0.15)


def test_a_book_that_nobody_holds_any_more_needs_no_beats():
    store = Counting()
    held = book(store)
    del held
    assert beats_no_more(store, 0.15)


def test_a_beat_that_fails_is_tried_again_and_hurts_nobody():
    store = Counting()
    store.broken = True
    result = flows(0.3).invoke(1, run_id="r", checkpointer=store)
    assert result == 1
    assert len(store.beats) > 2


def test_a_finished_run_needs_no_beats():
    store = Counting()
    assert flows(0.0).invoke(1, run_id="r", checkpointer=store) == 1
    assert beats_no_more(store, 0.1)


def test_a_suspended_or_failed_run_needs_no_beats():
    store = Counting()

    @entrypoint()
    def fails(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails.invoke(1, run_id="r", checkpointer=store)
    assert beats_no_more(store, 0.1)


def test_instant_stores_and_books_of_virtual_time_need_no_beats():
    store = Counting()
    open_book = book(store, at_once=True)
    time.sleep(0.3)
    assert store.beats == []
    assert not open_book.closed
    assert not journal_of(store)._writing


def test_a_lease_without_end_does_not_break_the_writer():
    store = Counting()
    store.lease = float("inf")
    assert flows(0.05).invoke(1, run_id="r", checkpointer=store) == 1
    assert store.beats == []


def test_many_runs_of_one_store_share_their_beats():
    store = Counting()

    @task
    async def wait():
        await asyncio.sleep(0.5)

    @entrypoint()
    async def flow(x):
        await wait()

    async def main():
        await asyncio.gather(*(flow.ainvoke(n, run_id=str(n), checkpointer=store) for n in range(50)))

    asyncio.run(main())
    assert 2 <= len(store.beats) <= 20


# --- Real processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["races", "zombies"])
@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_processes_that_fight_for_runs_never_write_a_run_twice(what, store):
    """100 races and 5 zombies on each store here; `scripts/owner_races.py` has no end."""
    count = {"races": "100", "zombies": "5"}[what]
    seed = seeded(what).randrange(2**32)
    if store == "postgres":
        address()
    done = run_script("owner_races.py", what, "--count", count, "--store", store, "--seed", seed)
    assert done.returncode == 0
    assert ", 0 violations" in done.stdout
    if what == "zombies":
        assert "'taken over': 5" in done.stdout


@pytest.mark.parametrize("planted", ["_owns=lambda *_: True", "_held_for=lambda *_: 0.0"])
def test_the_audit_of_zombies_sees_a_store_that_lets_two_write(planted, tmp_path):
    """The first: fences are not checked. The second alone is no harm: whoever is robbed writes nothing more."""
    code = f"""
import runpy, sys
from weft import SqliteSaver
SqliteSaver.{planted}
sys.argv = ["owner_races.py", "zombies", "--count", "2", "--store", "sqlite"]
runpy.run_path({str(SCRIPTS / "owner_races.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    print(done.stdout, done.stderr)
    is_harm = planted.startswith("_owns")
    assert done.returncode == int(is_harm)
    assert (", 0 violations" in done.stdout) != is_harm
    assert ("after it was finished" in done.stdout) == is_harm
