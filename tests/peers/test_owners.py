"""What went wrong elsewhere when several wanted one run, or one file. The numbers are the peers'."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from killing import Program

import weft
from weft import (
    InMemoryStore,
    OwnerLostError,
    RunBusyError,
    SqliteSaver,
    StoreError,
    ThreadBusy,
    entrypoint,
    task,
)
from weft.checkpoint.base import RecordKind, all_records


def recorded(store, run_id):
    """The values that another reader finds in a journal by now."""
    return [
        store.codec.decode(line.value) for line in all_records(store, run_id) if line.kind is RecordKind.OK
    ]


# Several that want one run


def test_langgraph_7213_work_that_takes_longer_than_any_lease_is_not_begun_twice(tmp_path):
    """There, and in Celery (#5935, #6236, #3270, #2599), work that took longer than a time-out of the queue was begun
    again while the first still ran."""
    ran, lease = [], 0.4
    with (
        SqliteSaver(tmp_path / "runs.db", lease=lease) as store,
        SqliteSaver(tmp_path / "runs.db", lease=lease) as other,
    ):
        gate = threading.Event()

        @task
        def long(x):
            ran.append(x)
            gate.wait(30)
            return x

        @entrypoint()
        def flow(x):
            return long(x).result()

        run = flow.submit(1, checkpointer=store, run_id="r", thread_id="t")
        until, refused = time.monotonic() + 4 * lease, 0
        while not ran:
            time.sleep(0.005)
        while time.monotonic() < until:
            with pytest.raises(RunBusyError):
                flow.invoke(None, checkpointer=other, run_id="r")
            with pytest.raises(ThreadBusy):
                flow.invoke(2, checkpointer=other, run_id="s", thread_id="t")
            refused += 1
            time.sleep(lease / 16)
        gate.set()
        assert run.result(10) == 1
        assert refused > 10
    assert ran == [1]


def race(count, work):
    """All at the same moment, each in a thread; what they gave, or how they failed."""
    barrier = threading.Barrier(count)

    def one(number):
        barrier.wait()
        try:
            return work(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_mastra_20443_of_those_who_resume_one_run_one_executes(tmp_path):
    """There, in deer-flow (#4415) and DBOS (#541), two who resumed or dequeued one run both ran it."""
    ran, lock, broken = Counter(), threading.Lock(), threading.Event()
    broken.set()

    @task
    def step(run, number):
        with lock:
            ran[run, number] += 1
        time.sleep(0.002)
        return number

    @entrypoint()
    def flow(run):
        found = [step(run, n).result() for n in range(3)]
        if broken.is_set():
            raise RuntimeError
        return found + [step(run, 3).result()]

    path = tmp_path / "runs.db"
    stores = [SqliteSaver(path) for _ in range(6)]
    try:
        for number in range(8):
            run_id = f"r{number}"
            broken.set()
            with pytest.raises(RuntimeError):
                flow.invoke(run_id, checkpointer=stores[0], run_id=run_id)
            broken.clear()
            ends = race(6, lambda n: flow.invoke(None, checkpointer=stores[n], run_id=run_id))
            assert [0, 1, 2, 3] in ends
            assert all(each == [0, 1, 2, 3] or isinstance(each, RunBusyError) for each in ends)
            assert [ran[run_id, n] for n in range(4)] == [1, 1, 1, 1]
    finally:
        for store in stores:
            store.close()


def test_langgraph_1_2_22_of_four_who_invoke_one_thread_one_runs_and_the_others_are_told(tmp_path):
    """There the step of one thread ran four times, and nobody was told."""
    ran, lock = [], threading.Lock()

    @task
    def step(x):
        with lock:
            ran.append(x)
        time.sleep(0.02)
        return x

    @entrypoint()
    def flow(x, previous=None):
        return [*(previous or []), step(x).result()]

    path = tmp_path / "runs.db"
    stores = [SqliteSaver(path) for _ in range(4)]
    try:
        ends = race(4, lambda n: flow.invoke(n, checkpointer=stores[n], thread_id="t"))
        done = [each for each in ends if isinstance(each, list)]
        assert all(isinstance(each, list | ThreadBusy) for each in ends)
        assert sorted(ran) == sorted(each[-1] for each in done)
        assert sorted(map(len, done)) == list(range(1, len(done) + 1))
    finally:
        for store in stores:
            store.close()


def test_dbos_812_who_loses_gets_an_error_of_ours_and_the_run_its_result(tmp_path):
    """There the loser of a race got the database's own error (#812, #818), and a lock that was met while looking
    made a run a failure for good (#761)."""

    @task
    def step(x):
        return x

    @entrypoint()
    def flow(x):
        return step(x).result()

    path = tmp_path / "runs.db"
    stores = [SqliteSaver(path) for _ in range(6)]
    try:
        for number in range(15):
            run_id, thread = f"r{number}", f"t{number}"
            ends = race(
                6,
                lambda n: flow.invoke(7, checkpointer=stores[n], run_id=run_id, thread_id=thread),
            )
            assert 7 in ends
            assert {type(each) for each in ends} <= {int, RunBusyError, ThreadBusy}
            assert flow.invoke(None, checkpointer=stores[-1], run_id=run_id) == 7
            assert weft.runs(stores[0]).show(run_id).status == "finished"
    finally:
        for store in stores:
            store.close()


def test_dbos_761_a_lock_met_while_looking_ends_no_run_for_good(tmp_path):
    """A database that another keeps locked is an error of ours; and afterwards the run can be had."""

    @entrypoint()
    def flow(x):
        return x + 1

    with SqliteSaver(tmp_path / "runs.db", timeout=0.05) as store:
        flow.invoke(1, checkpointer=store, run_id="before")
        other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(StoreError, match="locked"):
                flow.invoke(1, checkpointer=store, run_id="r")
        finally:
            other.rollback()
            other.close()
        assert flow.invoke(1, checkpointer=store, run_id="r") == 2


def test_langgraph_8136_many_on_one_file_wait_for_each_other_and_none_is_told_that_it_is_locked(tmp_path):
    """There, and in DBOS, "database is locked" reached users; a store took its own lock twice (#5234), lost what was
    popped (#3888), and a batch of writes got stuck (#5504)."""

    @task
    def step(n):
        return n

    @entrypoint()
    def flow(n):
        return sum(each.result() for each in [step(i) for i in range(n)])

    path = tmp_path / "runs.db"
    stores = [SqliteSaver(path) for _ in range(4)]
    try:

        def work(n):
            return [
                flow.invoke(8, checkpointer=stores[n % 4], run_id=f"{n}.{i}", thread_id=f"{n}", timeout=60)
                for i in range(6)
            ]

        assert race(12, work) == [[28] * 6] * 12
        assert len(weft.runs(stores[0]).list(limit=None)) == 72
        assert {info.status for info in weft.runs(stores[1])} == {"finished"}
    finally:
        for store in stores:
            store.close()


ELSEWHERE = """
    import sys
    from weft import SqliteSaver, entrypoint, task

    @task
    def step(n):
        return n

    @entrypoint(checkpointer=SqliteSaver("runs.db"))
    def flow(n):
        return sum(each.result() for each in [step(i) for i in range(n)])

    for i in range(15):
        assert flow.invoke(8, run_id=f"{sys.argv[1]}.{i}") == 28
"""


def test_langgraph_8136_nor_is_another_process(tmp_path):
    program = Program(tmp_path, ELSEWHERE)
    processes = [program.start(n) for n in range(4)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said


class Nosy(dict):
    """A value that looks into the store while it is copied there."""

    store: InMemoryStore

    def __deepcopy__(self, memo):
        self.store.search(("a",))
        return dict(self)


def test_langgraph_5234_a_store_that_is_used_while_it_is_used_does_not_wait_for_itself():
    store = InMemoryStore()
    Nosy.store = store
    done = threading.Event()

    def use():
        for n in range(50):
            store.put(("a", "b"), f"{n}", {"inner": Nosy(n=n)})
        done.set()

    threads = [threading.Thread(target=use, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done.is_set()
    assert len(store.search(("a",), limit=100)) == 50


# The lease


class Unheard(SqliteSaver):
    """Whose beats never arrive."""

    beats = 0

    def beat(self):
        self.beats += 1
        raise StoreError("no beat arrives")


def test_prefect_18839_a_beat_that_fails_ends_no_work(tmp_path):
    """There work that was done crashed when its lease could not be renewed; or went on for ever (#19068)."""
    with Unheard(tmp_path / "runs.db", lease=0.2) as store:

        @task
        def step(x):
            until = time.monotonic() + 10
            while store.beats < 3 and time.monotonic() < until:
                time.sleep(0.005)
            return x

        @entrypoint(checkpointer=store)
        def flow(x):
            return step(x).result()

        assert flow.invoke(5, run_id="r") == 5
        assert store.beats >= 3
        assert weft.runs(store).show("r").output == 5


def test_prefect_19068_work_whose_lease_is_lost_ends_and_records_nothing(tmp_path):
    """There it was left running; here it ends with a typed error as soon as it has something to record."""
    with (
        Unheard(tmp_path / "runs.db", lease=0.2) as store,
        SqliteSaver(tmp_path / "runs.db", lease=0.2) as other,
    ):
        begun, taken, ended = threading.Event(), threading.Event(), []

        @task
        async def step(x, who):
            if who == "first":
                begun.set()
                await asyncio.to_thread(taken.wait, 20)
            return who

        @task
        async def after(who):
            ended.append(f"after {who}")

        @task
        async def beside(who):
            try:
                await asyncio.sleep(0 if who == "second" else 60)
            finally:
                ended.append(f"beside {who}")

        owner = ["first"]

        @entrypoint()
        async def flow(x):
            who = owner[0]
            aside = beside(who)
            found = await step(x, who)
            await after(who)
            await aside
            return found

        run = flow.submit(1, checkpointer=store, run_id="r")
        assert begun.wait(10)
        until = time.monotonic() + 20
        owner[0] = "second"
        while time.monotonic() < until:
            try:
                assert flow.invoke(None, checkpointer=other, run_id="r") == "second"
                break
            except RunBusyError as error:
                time.sleep(min(error.retry_after or 0.05, 0.3))
        taken.set()
        with pytest.raises(OwnerLostError):
            run.result(20)
        assert "after first" not in ended
        assert ended.count("beside first") == 1
        assert recorded(other, "r").count("first") == 0
        assert weft.runs(other).show("r").output == "second"
