"""Where a loop has nothing else to do, it commits by itself what a run waits for; else the journal's thread does."""

import asyncio
import gc
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from threading import get_ident

import pytest
from killing import seeded

from weft import (
    AsyncNode,
    Flow,
    InMemorySaver,
    OwnerLostError,
    RunStatus,
    SqliteSaver,
    StoreError,
    entrypoint,
    task,
)
from weft.checkpoint.base import Change, OpenRun, Record, RecordKind, Write
from weft.engine import journal
from weft.engine.inbox import Inbox, inbox_of


class Noting(SqliteSaver):
    """Notes which threads have committed; each commit does first what the test wants."""

    def __init__(self, path):
        super().__init__(path)
        self.threads = []
        self.do = lambda: None

    def commit(self, writes):
        self.threads.append(get_ident())
        return self.do() or super().commit(writes)


def let_the_writer_rest():
    """Wait until the thread of each journal, which has just opened a run, has nothing more to do."""
    for writer in journal._journals.values():
        while writer._writing and not writer._waits:
            time.sleep(0.0005)


@task
async def double(n):
    let_the_writer_rest()
    return 2 * n


@entrypoint()
async def chain(n):
    for _ in range(5):
        n = await double(n)
    return n


class Double(AsyncNode):
    async def exec_async(self, _):
        let_the_writer_rest()
        return 1

    async def post_async(self, shared, _, found):
        shared["n"] += found


def flow():
    first, second = Double(), Double()
    first >> second
    return Flow(first)


@pytest.fixture
def store(tmp_path):
    with Noting(tmp_path / "runs.db") as store:
        yield store


@pytest.mark.parametrize(
    ("workflow", "given", "commits"),
    [(chain, 1, 6), (double >> double, 1, 3), (flow(), {"n": 0}, 3)],
    ids=["tasks", "a sequence", "nodes"],
)
def test_a_run_that_is_alone_on_its_loop_is_committed_there(store, workflow, given, commits):
    asyncio.run(workflow.ainvoke(given, checkpointer=store, run_id="r"))
    assert store.threads == [get_ident()] * commits
    assert store.find("r").status is RunStatus.FINISHED


def test_a_sync_caller_does_not_commit_by_itself_but_its_loop_does(store):
    assert chain.invoke(1, run_id="r", checkpointer=store) == 32
    assert len({*store.threads}) == 1
    assert get_ident() not in store.threads


async def tick(ticks):
    while True:
        await asyncio.sleep(0.001)
        ticks.append(time.monotonic())


async def watch_a_socket():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        await asyncio.get_running_loop().sock_recv(ours, 1)


async def spin():
    while True:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "other", [lambda: tick([]), watch_a_socket, spin], ids=["a timer", "a socket", "turns"]
)
def test_a_loop_with_something_else_to_do_does_not_wait_for_the_disk(store, other):
    async def main():
        beside = asyncio.create_task(other())
        await asyncio.sleep(0)
        result = await chain.ainvoke(1, run_id="r", checkpointer=store)
        beside.cancel()
        return result

    assert asyncio.run(main()) == 32
    assert get_ident() not in store.threads
    assert len(store.threads) == 6


def test_a_timer_that_is_far_off_is_nothing_to_do(store):
    async def main():
        asyncio.get_running_loop().call_later(60, print)
        return await chain.ainvoke(1, run_id="r", checkpointer=store, timeout=60)

    assert asyncio.run(main()) == 32
    assert {*store.threads} == {get_ident()}


def test_what_nobody_waits_for_is_left_to_the_thread(store):
    assert asyncio.run(chain.ainvoke(1, run_id="r", checkpointer=store, durability="async")) == 32
    assert get_ident() not in store.threads[:-1]  # only the end of the run is waited for


def test_runs_beside_each_other_share_commits_in_the_thread(store):
    async def main():
        return await asyncio.gather(
            *[chain.ainvoke(1, run_id=f"r{n}", checkpointer=store) for n in range(20)]
        )

    assert asyncio.run(main()) == [32] * 20
    assert len(store.threads) < 60  # of 120 outcomes and ends
    assert store.threads.count(get_ident()) < 10  # of the last, perhaps


def test_a_disk_that_is_slow_is_left_to_the_thread(store, monkeypatch):
    monkeypatch.setattr(journal, "_SLOW_FOR", 60)
    store.do = lambda: time.sleep(2 * journal._BRIEF)
    assert asyncio.run(chain.ainvoke(1, run_id="r", checkpointer=store)) == 32
    assert [thread == get_ident() for thread in store.threads] == [True] + [False] * 5


def test_after_a_while_a_slow_disk_is_tried_again(store, monkeypatch):
    monkeypatch.setattr(journal, "_SLOW_FOR", 0.0)
    store.do = lambda: time.sleep(2 * journal._BRIEF)
    assert asyncio.run(chain.ainvoke(1, run_id="r", checkpointer=store)) == 32
    assert {*store.threads} == {get_ident()}


def test_who_is_writing_is_not_waited_for_on_the_loop(store):
    """Another process has the file for a while: the loop goes on meanwhile, and the run when that has ended."""
    late = []

    @task
    async def while_another_writes(n):
        other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        store.do = lambda: None if get_ident() == loops else in_thread.set()
        due = time.monotonic() + 0.06  # longer than what makes a loop busy
        asyncio.get_running_loop().call_at(
            asyncio.get_running_loop().time() + 0.06, lambda: late.append(time.monotonic() - due)
        )
        threading.Timer(0.3, lambda: (other.execute("ROLLBACK"), other.close())).start()
        return n + 1

    loops, in_thread = get_ident(), threading.Event()

    @entrypoint(checkpointer=store)
    async def workflow(n):
        return await while_another_writes(n)

    began = time.monotonic()
    assert asyncio.run(workflow.ainvoke(1, run_id="r")) == 2
    assert time.monotonic() - began > 0.25  # it did have to wait
    assert in_thread.is_set()
    assert late[0] < 0.15  # and the loop did not
    assert [record.value for _, record in store.records("r")] == [store.codec.encode(2)]


def test_a_commit_of_another_thread_is_not_waited_for_on_the_loop(store):
    """As above, where somebody in this process has the connection."""
    late = []

    @task
    async def while_another_writes(n):
        loop = asyncio.get_running_loop()
        assert store._writer.lock.acquire(blocking=False)
        due = loop.time() + 0.06
        loop.call_at(due, lambda: late.append(loop.time() - due))
        threading.Timer(0.3, store._writer.lock.release).start()
        return n + 1

    @entrypoint(checkpointer=store)
    async def workflow(n):
        return await while_another_writes(n)

    assert asyncio.run(workflow.ainvoke(1, run_id="r")) == 2
    assert late[0] < 0.15


def test_a_commit_on_the_loop_that_fails_fails_the_run_which_can_go_on(store):
    asked = []

    @task
    async def step(n):
        let_the_writer_rest()
        asked.append(n)
        return n + 1

    @entrypoint(checkpointer=store)
    async def workflow(n):
        return await step(await step(n))

    def broken():
        if len(store.threads) == 2:
            raise OSError("the disk is gone")

    store.do = broken
    with pytest.raises(StoreError, match="the disk is gone"):
        asyncio.run(workflow.ainvoke(1, run_id="r"))
    assert {*store.threads[:2]} == {get_ident()}
    assert asyncio.run(workflow.ainvoke(None, run_id="r")) == 3
    assert asked == [1, 2, 2]


def test_ctrl_c_in_a_commit_on_the_loop_leaves_the_loop_and_the_run_can_go_on(store):
    caught = []

    @entrypoint(checkpointer=store)
    async def workflow(n):
        return await double(await double(n))

    def interrupted():
        if len(store.threads) == 2:
            raise KeyboardInterrupt

    async def main():
        try:
            return await workflow.ainvoke(1, run_id="r")
        except Exception as error:
            caught.append(error)  # as a service does that survives a run that fails

    store.do = interrupted
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert {*store.threads[:2]} == {get_ident()}
    assert asyncio.run(workflow.ainvoke(None, run_id="r")) == 4


SERVICE = """
import asyncio, sys
from weft import SqliteSaver, entrypoint, task

@task
async def step(n):
    return n + 1

@entrypoint(checkpointer=SqliteSaver(sys.argv[1]))
async def chain(n):
    for _ in range(100):
        n = await step(n)
    return n

async def service():
    for number in range(10**6):
        if number == 1:
            print("ready", flush=True)
        try:
            await chain.ainvoke(0, run_id=f"r{number}")
        except Exception as error:
            print("survived", type(error).__name__, flush=True)

if sys.argv[2] == "a loop":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(service())
else:
    asyncio.run(service())
"""


@pytest.mark.parametrize("kind", ["a loop", "asyncio.run"])
def test_one_ctrl_c_ends_a_program_of_durable_chains(tmp_path, kind):
    """A real one, at moments of which most are in a commit."""
    rng = seeded("interrupts")
    for number in range(4):
        command = [sys.executable, "-c", SERVICE, str(tmp_path / f"{number}.db"), kind]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
            assert program.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 0.05))
            program.send_signal(signal.SIGINT)
            said, error = program.communicate(timeout=30)
        assert program.returncode
        assert "\nKeyboardInterrupt" in error
        assert "survived StoreError" not in said


def test_where_a_handler_of_a_signal_may_raise_nothing_is_committed_on_the_loop(store):
    before = signal.signal(signal.SIGUSR1, lambda *_: None)  # nobody can tell that it raises nothing
    try:
        assert asyncio.run(chain.ainvoke(1, run_id="r", checkpointer=store)) == 32
        assert get_ident() not in store.threads
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert asyncio.run(chain.ainvoke(1, run_id="again", checkpointer=store)) == 32
    assert get_ident() in store.threads


def test_a_loop_in_another_thread_is_interrupted_by_nobody(store):
    def main():
        asyncio.run(chain.ainvoke(1, run_id="r", checkpointer=store))

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        thread = threading.Thread(target=main)
        thread.start()
        thread.join(20)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert {*store.threads} == {thread.ident}


def test_a_task_keeps_no_codec_alive_that_nobody_uses(tmp_path):
    with SqliteSaver(tmp_path / "runs.db") as store:
        assert asyncio.run(chain.ainvoke(1, run_id="r", checkpointer=store)) == 32
    codec = weakref.ref(store.codec)
    del store
    gc.collect()
    assert codec() is None


def test_a_store_that_wraps_another_sees_every_commit(tmp_path):
    class Wrapper:
        def __init__(self, inner):
            self.inner, self.commits = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def commit(self, writes):
            self.commits += 1
            return self.inner.commit(writes)

    with SqliteSaver(tmp_path / "runs.db") as inner:
        wrapper = Wrapper(inner)
        assert asyncio.run(chain.ainvoke(1, run_id="r", checkpointer=wrapper)) == 32
    assert wrapper.commits == 6


def test_a_run_that_was_taken_over_hears_of_it_in_a_commit_on_the_loop(store):
    store.do = lambda: {"r"}
    with pytest.raises(OwnerLostError):
        asyncio.run(chain.ainvoke(1, run_id="r", checkpointer=store))
    assert store.threads == [get_ident()]


def test_a_store_that_cannot_is_never_asked_to(tmp_path):
    class Slow(InMemorySaver):
        instant = False

        def commit(self, writes):
            threads.append(get_ident())
            return super().commit(writes)

    threads = []
    assert asyncio.run(chain.ainvoke(1, run_id="r", checkpointer=Slow())) == 32
    assert get_ident() not in threads


def test_what_is_committed_at_once_is_there_and_what_cannot_be_has_done_nothing(tmp_path):
    with SqliteSaver(tmp_path / "runs.db") as store, SqliteSaver(tmp_path / "runs.db") as other:
        fence = store.open(OpenRun("r", "flow", input=b"in")).fence
        first = Record(RecordKind.OK, b"a" * 16, step="a", value=b"1", batch=1)
        assert store.commit_at_once([Write("r", fence, [first])]) == set()
        assert store.commit_at_once([Write("r", fence + 1, [first])]) == {"r"}
        with other._writer as link, link.transaction():
            assert store.commit_at_once([Write("r", fence, [first])]) is None
        with store._writer:
            assert store.commit_at_once([Write("r", fence, [first])]) is None
        assert [record.value for _, record in store.records("r")] == [b"1"]
        end = Change(RunStatus.FINISHED, output=b"out")
        assert store.commit_at_once([Write("r", fence, [], end)]) == set()
        assert store.find("r").output == b"out"


def test_a_loop_rests_when_nothing_is_to_be_done_on_it_soon():
    async def main():
        loop = asyncio.get_running_loop()
        inbox = inbox_of(loop)
        found = {"nothing": inbox.loop_rests(0.05)}
        soon = loop.call_later(0.01, print)
        found["a timer soon"] = inbox.loop_rests(0.05)
        soon.cancel()
        await asyncio.sleep(0.02)
        loop.call_later(10, print)
        found["a timer later"] = inbox.loop_rests(0.05)
        loop.call_soon(int)
        found["a callback"] = inbox.loop_rests(0.05)
        await asyncio.sleep(0)
        inbox.post(int)
        found["something posted"] = inbox.loop_rests(0.05)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ours, theirs = socket.socketpair()
        loop.add_reader(ours, int)
        found["a socket"] = inbox.loop_rests(0.05)
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
        found["nothing again"] = inbox.loop_rests(0.05)
        return found

    assert asyncio.run(main()) == {
        "nothing": True,
        "a timer soon": False,
        "a timer later": True,
        "a callback": False,
        "something posted": False,
        "a socket": False,
        "nothing again": True,
    }


def test_a_loop_that_does_not_tell_what_it_has_to_do_is_taken_to_have_something():
    class Other:
        def time(self):
            return 0.0

    loop = Other()  # of which the inbox does not keep hold
    assert not Inbox(loop).loop_rests(0.05)
