"""The store in a Postgres database: what every store does; and servers, connections, processes and damage."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from postgres import Server, address, fresh_schema, is_ours
from psycopg import sql as composing

from weft.checkpoint import postgres as postgres_module
from weft.checkpoint import postgres_sql as sql
from weft.checkpoint.base import Change, OpenRun, RecordKind, Write
from weft.checkpoint.codec import Codec
from weft.checkpoint.postgres import PostgresSaver
from weft.checkpoint.postgres_link import Link
from weft.core.status import RunStatus
from weft.errors import CorruptDataError, InputError, RunBusyError, StoreError
from weft.testing.conformance import (
    StoreConformance,
    begin,
    end,
    found,
    or_error,
    record,
    resume,
    values,
)


@pytest.fixture
def schema():
    with fresh_schema() as name:
        yield name


@pytest.fixture
def stores(schema):
    """Makes stores over one schema that are closed at the end."""
    made = []

    def make(at=None, **options):
        made.append(PostgresSaver(at or address(), **{"schema": schema} | options))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(stores):
    return stores()


@pytest.fixture
def admin(schema):
    """A connection of somebody else, who may do anything."""
    with psycopg.connect(address(), autocommit=True) as db:
        db.execute("SELECT set_config('search_path', %s, false)", [schema])
        yield db


class TestPostgresSaver(StoreConformance):
    @pytest.fixture
    def reopen(self, stores):
        return stores


class TestPooled(StoreConformance):
    """Behind a pooler each transaction may have another session: nothing of one must be needed in the next."""

    @pytest.fixture(autouse=True)
    def pooler(self, monkeypatch):
        transaction = Link._transaction

        def in_any_session(link, work):
            try:
                return transaction(link, work)
            finally:
                if link._db is not None:
                    link._db.execute("DISCARD ALL")

        monkeypatch.setattr(Link, "_transaction", in_any_session)

    @pytest.fixture
    def store(self, stores):
        return stores(pooled=True)

    @pytest.fixture
    def reopen(self, stores):
        return lambda **options: stores(pooled=True, **options)


def backends(admin, store=None, role=""):
    """The processes of the server that serve us, by what they call themselves."""
    pids = None
    if store is not None:
        links = (store._writer, store._reader, store._own)
        pids = [link._db.info.backend_pid for link in links if link._db is not None]
    rows = admin.execute(
        "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE %s "
        "AND (%s::int[] IS NULL OR pid = ANY(%s::int[]))",
        [f"weft {role}%", pids, pids],
    )
    return dict(rows.fetchall())


def cut(admin, store, role=""):
    """End the server's side of the connections of a store."""
    for pid in backends(admin, store, role):
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


# --- Connections ------------------------------------------------------------------------------------------


def test_nothing_is_connected_before_first_use_and_nothing_is_left_after_closing(store, admin):
    assert not any(link.is_open for link in (store._writer, store._reader, store._own))
    begin(store)
    store.find("r")
    assert sorted(backends(admin, store).values()) == ["weft owner", "weft reader", "weft writer"]
    pids = list(backends(admin, store))
    store.close()
    deadline = time.monotonic() + 5
    while set(pids) & set(backends(admin)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_application_name_of_the_user_stays(stores, admin):
    store = stores(f"{address()} application_name='my app'")
    begin(store)
    assert store._writer._db.info.get_parameters()["application_name"] == "my app"


def test_a_connection_that_was_cut_between_two_commits_costs_nothing(store, admin):
    """The server was restarted, a firewall forgot us: nothing was on its way, so nothing is uncertain."""
    fence = begin(store)
    store.find("r")
    for number in range(3):
        cut(admin, store)
        assert store.commit([Write("r", fence, [record(number)])]) == set()
        assert [line.ordinal for _, line in store.records("r")] == list(range(number + 1))
    cut(admin, store)
    end(store, "r", fence, output=b"out")
    assert found(store).output == b"out"


def test_a_lock_whose_connection_was_cut_is_taken_again(store, stores, admin):
    fence = begin(store)
    cut(admin, store, "owner")
    assert store.commit([Write("r", fence, [record()])]) == set()
    with pytest.raises(RunBusyError):
        resume(stores())
    cut(admin, store, "owner")
    store._pulse.stop()  # it is time for a beat
    store.beat()
    with pytest.raises(RunBusyError):
        resume(stores())


def test_an_owner_whose_lock_was_lost_and_whose_run_was_taken_writes_nothing(store, stores, admin):
    fence = begin(store)
    cut(admin, store, "owner")
    other = stores()
    assert resume(other) == fence + 1
    assert store.commit([Write("r", fence, [record(value=b"old")])]) == {"r"}
    assert values(other, "r") == []


def test_a_commit_whose_connection_is_cut_in_its_middle_is_an_error_and_can_be_resumed(store, stores, admin):
    """Another holds the row, so that the commit waits, and is cut while it does."""
    fence = begin(store)
    with psycopg.connect(address()) as other:
        other.execute(
            composing.SQL("SELECT * FROM {}.runs FOR UPDATE").format(
                composing.Identifier(store._address.schema)
            )
        )
        with ThreadPoolExecutor(1) as pool:
            commit = pool.submit(store.commit, [Write("r", fence, [record()])])
            time.sleep(0.2)
            cut(admin, store, "writer")
            with pytest.raises(StoreError, match="resume the run|terminating connection"):
                commit.result(10)
        other.rollback()
    assert store.records("r") == []
    store.release("r", fence)
    fence = resume(store)
    assert store.commit([Write("r", fence, [record()])]) == set()
    assert values(store, "r") == [b"value"]


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_whose_answer_is_lost_is_never_sent_again(store, admin, monkeypatch, committed):
    fence = begin(store)
    execute, sent = psycopg.Connection.execute, []

    def lossy(db, statement, *args, **options):
        if statement != sql.COMMIT_WRITES:
            return execute(db, statement, *args, **options)
        sent.append(1)
        if committed:
            execute(db, statement, *args, **options)
        os.dup2(os.open(os.devnull, os.O_RDWR), db.pgconn.socket)  # the network is gone
        return execute(db, "SELECT 1")

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "execute", lossy)
        with pytest.raises(StoreError, match="whether it was done is not known"):
            store.commit([Write("r", fence, [record()], Change(RunStatus.FINISHED, b"out"))])
    assert sent == [1]
    store.release("r", fence)
    row = store.open(OpenRun("r", "flow"))
    if committed:
        assert (row.status, row.output, values(store, "r")) == (RunStatus.FINISHED, b"out", [b"value"])
    else:
        assert (row.status, row.fence, values(store, "r")) == (RunStatus.RUNNING, fence + 1, [])


def test_a_server_that_is_not_there_is_an_error_that_says_where():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        store = PostgresSaver(f"postgresql://me:s3cret@127.0.0.1:{port}/db", connect_timeout=2)
        with pytest.raises(StoreError, match=f"127.0.0.1:{port}/db") as caught:
            begin(store)
    assert "s3cret" not in str(caught.value)


def test_a_server_that_accepts_and_says_nothing_is_given_up():
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        store = PostgresSaver(f"host=127.0.0.1 port={mute.getsockname()[1]} user=me", connect_timeout=1)
        began = time.monotonic()
        with pytest.raises(StoreError, match="timeout"):
            store.find("r")
        assert time.monotonic() - began < 10


def test_a_server_that_stops_in_the_middle_is_given_up(stores, admin, monkeypatch):
    """SIGSTOP to the process that serves us: its machine answers, it does not."""
    monkeypatch.setattr("weft.checkpoint.postgres_link._MARGIN", 0.3)
    store = stores(timeout=0.3)
    fence = begin(store)
    (pid,) = backends(admin, store, "writer")
    if not is_ours():
        pytest.skip("the server is not ours to stop")
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StoreError, match="has not answered for"):
            store.commit([Write("r", fence, [record()])])
        assert time.monotonic() - began < 5
    finally:
        os.kill(pid, signal.SIGCONT)
    store.release("r", fence)
    deadline = time.monotonic() + 5
    while pid in backends(admin):  # it may have done it after all
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert resume(store) == fence + 1
    assert len(store.records("r")) in {0, 1}


def test_what_is_locked_by_others_is_waited_for_and_then_an_error(stores, admin):
    store = stores(timeout=0.3)
    fence = begin(store)
    with psycopg.connect(address()) as other:
        lock = composing.SQL("LOCK TABLE {}.runs").format(composing.Identifier(store._address.schema))
        other.execute(lock)
        with pytest.raises(StoreError, match=r"0\.3 s"):
            store.commit([Write("r", fence, [record()])])
        with pytest.raises(StoreError, match=r"0\.3 s"):
            store.find("r")
        other.rollback()
        other.execute(lock)
        timer = threading.Timer(0.1, other.rollback)
        timer.start()
        assert store.commit([Write("r", fence, [record()])]) == set()
        timer.join()


def test_a_process_that_forgets_its_transaction_does_not_keep_its_locks(stores):
    """Stopped between two statements of `open`, it would block the thread and the run for ever."""
    careless, other = stores(lease=1.0), stores()
    store_idle = careless._address.idle
    assert store_idle == 2.0
    release = threading.Event()

    def stuck(db):
        careless._lock_name(db, b"run", "r")
        release.wait(20)
        db.execute("SELECT 1")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(careless._writer.transact, stuck)
        time.sleep(0.1)
        began = time.monotonic()
        assert begin(other) == 1
        assert 1 < time.monotonic() - began < 10
        release.set()
        with pytest.raises(StoreError):
            waiting.result(10)


def test_a_deadlock_is_settled_and_done_again(store):
    tries = []

    def work(db):
        tries.append(1)
        if len(tries) < 3:
            raise psycopg.errors.DeadlockDetected("deadlock detected")
        return 7

    assert store._writer.transact(work) == 7
    assert len(tries) == 3


def test_a_deadlock_without_end_is_an_error(store):
    def work(db):
        raise psycopg.errors.SerializationFailure("could not serialize")

    with pytest.raises(StoreError, match="serialize"):
        store._writer.transact(work)


# --- Servers that die -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server():
    if not is_ours():
        pytest.skip("needs a server that may be ended")
    server = Server()
    yield server
    server.stop()


def test_a_server_that_is_restarted_loses_nothing_and_is_found_again(own_server):
    with PostgresSaver(own_server.address, schema="restarted") as store:
        fence = begin(store, thread_id="t")
        store.find("r")
        acknowledged = 0
        for _ in range(2):
            store.commit([Write("r", fence, [record(acknowledged)])])
            acknowledged += 1
            own_server.halt(signal.SIGINT)
            with pytest.raises(StoreError):
                store.commit([Write("r", fence, [record(99)])])
            own_server.start()
        assert [line.ordinal for _, line in store.records("r")] == list(range(acknowledged))
        assert store.commit([Write("r", fence, [record(acknowledged)])]) == set()


def test_while_a_server_is_down_every_call_is_a_typed_error(own_server):
    with PostgresSaver(own_server.address, schema="down") as store:
        fence = begin(store)
        own_server.halt(signal.SIGQUIT)
        try:
            for attempt in (
                lambda: store.commit([Write("r", fence, [record()])]),
                lambda: store.find("r"),
                lambda: store.records("r"),
                store.runs,
                lambda: store.states("t"),
                lambda: begin(store, "new"),
                lambda: store.release("r", fence),
                lambda: store.add_answers("r", [record()]),
                lambda: store.save_state("t", b"", created=1.0),
                lambda: store.delete_run("r"),
                lambda: store.delete_thread("t"),
                store.setup,
            ):
                with pytest.raises(StoreError):
                    attempt()
        finally:
            own_server.start()
        assert resume(store) == fence + 1


# --- The schema -------------------------------------------------------------------------------------------


def test_the_schema_is_created_by_many_processes_at_once(schema):
    script = f"""
    from weft.checkpoint.postgres import PostgresSaver
    from weft.testing.conformance import begin
    import sys
    sys.stdin.readline()
    with PostgresSaver({address()!r}, schema={schema!r}) as store:
        print(begin(store, sys.argv[1]))
    """
    children = [child(script, number) for number in range(6)]
    for process in children:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in children] == ["1\n"] * 6


def child(script, *args):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize(
    "name",
    [
        "Weft",
        "sch\u00e9ma",
        "a b",
        'a"b',
        "a'b",
        "select",
        "x" * 63,
        "; DROP TABLE runs; --",
        "%s",
        "{}",
        "\\",
    ],
)
def test_any_schema_name_is_one(name):
    name = name[:40] + random.choice("abcdef")
    with PostgresSaver(address(), schema=name) as store:
        begin(store)
        with psycopg.connect(address(), autocommit=True) as db:
            drop = composing.SQL("DROP SCHEMA {} CASCADE").format(composing.Identifier(name))
            db.execute("SET client_min_messages = warning")
            store.close()
            db.execute(drop)


@pytest.mark.parametrize("name", ["", "pg_mine", "x" * 64, "\u00e9" * 32, "a\0b", "\ud800", None, 7])
def test_what_is_no_schema_name_is_refused(name):
    with pytest.raises(InputError, match="schema"):
        PostgresSaver("host=x", schema=name)


def test_two_schemas_are_two_stores(stores):
    with fresh_schema() as other_schema:
        one, other = stores(), stores(schema=other_schema)
        begin(one, "r", thread_id="t")
        assert other.find("r") is None
        assert begin(other, "r", thread_id="t") == 1
        assert other.commit([Write("r", 1, [record()])]) == set()
        assert one.records("r") == []
        other.close()


def test_a_schema_of_a_newer_weft_is_refused(store, admin):
    begin(store)
    store.close()
    admin.execute("INSERT INTO weft_version (version) VALUES (1000)")
    with pytest.raises(StoreError, match=r"newer version of Weft .*1000.*upgrade"):
        store.runs()


def test_a_schema_is_brought_up_to_date_step_by_step(store, admin, monkeypatch):
    begin(store)
    store.close()
    monkeypatch.setattr(sql, "STEPS", (*sql.STEPS, ("CREATE TABLE extra (x integer)",)))
    assert store.find("r") is not None
    assert admin.execute("SELECT count(*) FROM extra").fetchone() == (0,)
    assert admin.execute("SELECT version FROM weft_version ORDER BY 1").fetchall() == [(1,), (2,)]


def test_a_step_that_fails_leaves_nothing_and_is_done_again(store, admin, monkeypatch):
    steps = sql.STEPS
    with monkeypatch.context() as patch:
        patch.setattr(sql, "STEPS", ((*steps[0][:3], "CREATE NONSENSE", *steps[0][3:]),))
        with pytest.raises(StoreError, match="NONSENSE"):
            begin(store)
    assert begin(store) == 1


def test_tables_of_another_application_are_refused_and_left_alone(store, admin, schema):
    admin.execute(composing.SQL("CREATE SCHEMA {}").format(composing.Identifier(schema)))
    admin.execute("CREATE TABLE runs (precious text)")
    with pytest.raises(StoreError, match="another application: give another schema"):
        begin(store)
    assert admin.execute("SELECT count(*) FROM runs").fetchone() == (0,)


def test_a_schema_that_was_dropped_is_an_error_once_and_then_made_anew(store, admin, schema):
    fence = begin(store)
    store.find("r")
    admin.execute("SET client_min_messages = warning")
    admin.execute(composing.SQL("DROP SCHEMA {} CASCADE").format(composing.Identifier(schema)))
    for attempt in (lambda: store.commit([Write("r", fence, [record()])]), lambda: store.find("r")):
        with pytest.raises(StoreError, match="made anew"):
            attempt()
    assert store.find("r") is None
    assert begin(store) == 1


def test_a_role_that_may_only_use_the_tables_can(store, admin, schema):
    store.setup()
    role = f"role_{schema}"
    ident, owner = composing.Identifier(schema), composing.Identifier(role)
    admin.execute(composing.SQL("CREATE ROLE {} LOGIN").format(owner))
    try:
        for grant in (
            "GRANT USAGE ON SCHEMA {} TO {}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {}",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {} TO {}",
        ):
            admin.execute(composing.SQL(grant).format(ident, owner))
        with PostgresSaver(psycopg.conninfo.make_conninfo(address(), user=role), schema=schema) as other:
            end(other, "r", begin(other, thread_id="t"), saved=b"s")
            other.delete_thread("t")
        with (
            PostgresSaver(psycopg.conninfo.make_conninfo(address(), user=role), schema=f"{schema}x") as other,
            pytest.raises(StoreError, match=r"setup\(\)"),
        ):
            begin(other)
    finally:
        admin.execute(composing.SQL("DROP OWNED BY {}; DROP ROLE {}").format(owner, owner))


def test_the_server_s_defaults_do_not_weaken_a_commit(store, admin):
    """A server, database or role may have asynchronous commits, or another isolation, as its default."""
    weak = "-c synchronous_commit=off -c default_transaction_isolation=serializable"
    with PostgresSaver(psycopg.conninfo.make_conninfo(address(), options=weak), schema="weak") as other:
        begin(other)
        for setting, value in (("synchronous_commit", "on"), ("transaction_isolation", "read committed")):
            shown = other._writer._db.execute(composing.SQL("SHOW {}").format(composing.Identifier(setting)))
            assert shown.fetchone() == (value,)
        assert other._own._db.execute("SHOW synchronous_commit").fetchone() == ("off",)
    admin.execute("SET client_min_messages = warning; DROP SCHEMA weak CASCADE")


# --- Processes and forks ----------------------------------------------------------------------------------


def test_a_killed_owner_frees_its_run_at_once(store, schema):
    script = f"""
    import os, signal
    from weft.checkpoint.postgres import PostgresSaver
    from weft.testing.conformance import begin
    store = PostgresSaver({address()!r}, schema={schema!r})
    print(begin(store, "r", thread_id="t"), flush=True)
    signal.pause()
    """
    process = child(script)
    assert process.stdout.readline() == "1\n"
    with pytest.raises(RunBusyError):
        resume(store)
    process.kill()
    process.communicate()
    began = time.monotonic()
    while or_error(lambda: resume(store), RunBusyError) is RunBusyError:
        assert time.monotonic() - began < 2
    assert found(store).fence == 2


def test_a_forked_child_is_another_owner_and_does_not_hang_up_for_its_parent(store):
    fence = begin(store)
    store.find("r")
    parents = [link._db.info.backend_pid for link in (store._writer, store._reader, store._own)]
    pid = os.fork()
    if pid == 0:
        try:
            ok = store.commit([Write("r", fence, [record(value=b"child")])]) == {"r"}
            ok = ok and or_error(lambda: resume(store), RunBusyError) is RunBusyError
            ok = ok and begin(store, "of the child") == 1 and store.find("of the child") is not None
            mine = [link._db.info.backend_pid for link in (store._writer, store._reader, store._own)]
            store.close()
            gc.collect()
            os._exit(0 if ok and not set(mine) & set(parents) else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.commit([Write("r", fence, [record(value=b"parent")])]) == set()
    assert [link._db.info.backend_pid for link in (store._writer, store._reader, store._own)] == parents
    assert values(store, "r") == [b"parent"]
    assert resume(store, "of the child") == 2


def test_a_child_that_outlives_its_parent_does_not_keep_its_lock(store, schema):
    """Two processes with one socket: the server hears that the parent is gone only when both have let go."""
    script = f"""
    import os, signal
    from weft.checkpoint.postgres import PostgresSaver
    from weft.testing.conformance import begin
    store = PostgresSaver({address()!r}, schema={schema!r})
    begin(store, "r")
    pid = os.fork()
    if pid:
        print(pid, flush=True)
    signal.pause()
    """
    process = child(script)
    grandchild = int(process.stdout.readline())
    try:
        with pytest.raises(RunBusyError):
            resume(store)
        process.kill()
        process.wait()
        began = time.monotonic()
        while or_error(lambda: resume(store), RunBusyError) is RunBusyError:
            assert time.monotonic() - began < 2
    finally:
        os.kill(grandchild, signal.SIGKILL)
        process.communicate()


def test_forking_while_threads_commit_leaves_the_child_able_to_use_the_store(store):
    fences = {f"r{n}": begin(store, f"r{n}") for n in range(3)}
    stop = threading.Event()

    def work(run_id):
        while not stop.is_set():
            store.commit([Write(run_id, fences[run_id], [record()])])
            store.find(run_id)

    threads = [threading.Thread(target=work, args=(run_id,)) for run_id in fences]
    for thread in threads:
        thread.start()
    try:
        for turn in range(5):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                try:
                    begin(store, f"child {turn}")
                    store.close()
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# --- Poolers ----------------------------------------------------------------------------------------------


def test_past_a_pooler_the_lock_is_held_and_a_dead_owner_is_known_at_once(stores, admin):
    owner, other = stores(pooled=True, direct=address()), stores(pooled=True)
    begin(owner)
    with pytest.raises(RunBusyError):
        resume(other)
    cut(admin, owner, "owner")
    assert resume(other) == 2


def test_without_a_direct_address_only_the_lease_tells(stores, admin):
    owner, other = stores(pooled=True, lease=0.5), stores(pooled=True)
    begin(owner)
    assert not owner._own.is_open
    cut(admin, owner)
    with pytest.raises(RunBusyError):
        resume(other)
    time.sleep(0.6)
    assert resume(other) == 2


def test_behind_a_pooler_nothing_is_prepared(stores):
    store = stores(pooled=True)
    fence = begin(store)
    for number in range(10):
        store.commit([Write("r", fence, [record(number)])])
        store.find("r")
    assert store._writer._db.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


# --- Vacuum -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
def test_a_vacuum_may_take_longer_than_any_statement_and_finds_its_tables_in_any_session(
    stores, schema, admin, pooled
):
    store = stores(pooled=pooled, timeout=0.3)
    fence = begin(store)
    if pooled:
        store._writer._db.execute("DISCARD ALL")

    with psycopg.connect(address()) as another, ThreadPoolExecutor(1) as pool:
        lock = composing.SQL(
            "LOCK TABLE {}.records IN SHARE UPDATE EXCLUSIVE MODE"
        )  # as another vacuum would
        another.execute(lock.format(composing.Identifier(schema)))
        done = pool.submit(store.vacuum)
        waits_for_a_lock(admin, "VACUUM")
        for number in range(10):  # runs go on meanwhile
            store.commit([Write("r", fence, [record(number)])])
            time.sleep(0.05)
        assert not done.done()
        another.rollback()
        done.result(20)
    deadline = time.monotonic() + 20
    while backends(admin, role="vacuum"):  # the server notices a moment later that we have gone
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waits_for_a_lock(admin, what):
    asks = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
    deadline = time.monotonic() + 20
    while admin.execute(asks, [f"{what}%"]).fetchone() == (0,):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- Commits ----------------------------------------------------------------------------------------------


def statements(monkeypatch):
    """What is sent to the server from now on."""
    execute, sent = psycopg.Connection.execute, []

    def noted(db, statement, *args, **options):
        sent.append(statement)
        return execute(db, statement, *args, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", noted)
    return sent


@pytest.mark.parametrize("runs", [1, 10, 100])
def test_a_commit_of_many_runs_is_one_statement(store, monkeypatch, runs):
    fences = {f"r{n}": begin(store, f"r{n}", thread_id=f"t{n}") for n in range(runs)}
    sent = statements(monkeypatch)
    change = Change(RunStatus.FINISHED, b"out", saved=b"saved")
    assert store.commit([Write(i, f, [record(), record()]) for i, f in fences.items()]) == set()
    assert store.commit([Write(i, f, [record()], change) for i, f in fences.items()]) == set()
    assert sent == [sql.COMMIT_WRITES] * 2


def test_answers_that_come_between_cost_one_more_look_and_lose_nothing(store, stores, monkeypatch):
    fence = begin(store)
    stores().add_answers("r", [record(0, kind=RecordKind.ANSWER)])
    sent = statements(monkeypatch)
    assert store.commit([Write("r", fence, [record(1)]), Write("unknown", 1)]) == {"unknown"}
    assert sent.count(sql.COMMIT_WRITES) == 2
    assert store.commit([Write("r", fence, [record(2)])]) == set()
    assert sent.count(sql.COMMIT_WRITES) == 3
    assert [line.ordinal for _, line in store.records("r")] == [0, 1, 2]


@pytest.mark.parametrize("many", ["records", "bytes"])
def test_a_big_commit_goes_in_portions_and_is_one_transaction_all_the_same(store, monkeypatch, many):
    monkeypatch.setattr(postgres_module, "_MANY_RECORDS" if many == "records" else "_MANY_BYTES", 5)
    good, lost = begin(store, "good"), begin(store, "lost")
    store.release("lost", lost)
    resume(store, "lost")
    lines = [record(n, value=bytes([n])) for n in range(10)]
    appended = []
    append = postgres_module._append
    monkeypatch.setattr(postgres_module, "_append", lambda db, rows: (appended.append(1), append(db, rows)))
    writes = [Write("good", good, lines, Change(RunStatus.FINISHED, b"out")), Write("lost", lost, lines)]
    assert store.commit(writes) == {"lost"}
    assert appended == [1]
    assert [line.ordinal for _, line in store.records("good")] == list(range(10))
    assert store.records("lost") == []

    def failing(db, rows):
        append(db, rows)
        raise psycopg.errors.DiskFull("no space")

    again = begin(store, "again")
    monkeypatch.setattr(postgres_module, "_append", failing)
    with pytest.raises(StoreError, match="no space"):
        store.commit([Write("again", again, lines, Change(RunStatus.FINISHED))])
    assert store.records("again") == []
    assert found(store, "again").status is RunStatus.RUNNING


def test_records_are_written_at_twenty_thousand_a_second(store):
    """Figures: `benchmarks`; here a bound that a slow machine keeps too."""
    fence = begin(store)
    lines = [record(n, value=b"x" * 100) for n in range(1000)]
    store.commit([Write("r", fence, lines)])
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        store.commit([Write("r", fence, lines)])
        best = max(best, len(lines) / (time.perf_counter() - began))
    assert best > 20_000


def test_a_plan_made_while_the_tables_were_empty_is_not_slow_when_they_are_full(store, admin):
    """A prepared statement keeps its plan: one that reads the whole table would be kept too."""
    fence = begin(store)
    for number in range(20):
        store.commit([Write("r", fence, [record(number)])])
    admin.execute(
        "INSERT INTO runs SELECT i + 1000000, ('x' || i)::bytea, NULL, 'f', 1, NULL, 1, 0, 0, 0, 0, 0, 0 "
        "FROM generate_series(1, 100000) AS i"
    )
    best = 1.0
    for number in range(20):
        began = time.perf_counter()
        store.commit([Write("r", fence, [record(number)])])
        best = min(best, time.perf_counter() - began)
    assert best < 0.004


# --- Damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "read"),
    [
        ("UPDATE records SET value = '\\x00' WHERE position = 3", lambda store: store.records("r1")),
        ("UPDATE records SET kind = 2 WHERE position = 1", lambda store: store.records("r1")),
        ("DELETE FROM records WHERE position = 3", lambda store: store.records("r1")),
        ("DELETE FROM records WHERE position = 8", lambda store: store.records("r1")),
        ("UPDATE records SET position = 100 WHERE position = 8", lambda store: store.records("r1")),
        ("UPDATE runs SET position = 7", lambda store: store.records("r1")),
        ("UPDATE runs SET status = 1", lambda store: store.find("r1")),
        ("UPDATE inputs SET input = '\\x00'", lambda store: store.find("r1")),
        ("DELETE FROM inputs", lambda store: store.runs()),
        ("UPDATE outcomes SET output = '\\x00'", lambda store: store.find("r1")),
        ("DELETE FROM outcomes", lambda store: store.open(OpenRun("r1", "flow"))),
        ("UPDATE states SET value = '\\x00'", lambda store: store.states("t")),
        ("UPDATE states SET number = number + 1", lambda store: store.states("t")),
        ("UPDATE runs SET position = 7", lambda store: store.commit([Write("open", 1, [record()])])),
        ("UPDATE runs SET seal = 0", lambda store: store.commit([Write("open", 1, [record()])])),
    ],
)
def test_a_doctored_row_is_noticed(store, admin, damage, read):
    lines = [record(n, kind=kind) for n, kind in enumerate(RecordKind)]
    store.commit(
        [
            Write(
                "r1", begin(store, "r1", thread_id="t"), lines, Change(RunStatus.FINISHED, b"out", saved=b"s")
            )
        ]
    )
    begin(store, "open")
    admin.execute(damage)
    with pytest.raises(CorruptDataError):
        read(store)


def test_what_the_server_says_of_a_row_is_not_in_the_error(store):
    """It would show the values of somebody's run."""
    fence = begin(store)
    with pytest.raises(StoreError) as caught:
        store.commit([Write("r", fence, [record(value=b"s3cret"), record(step="s3cret", value=None)])])
    assert "s3cret" not in str(caught.value)
    assert b"s3cret".hex() not in str(caught.value)


# --- Life -------------------------------------------------------------------------------------------------


def test_a_store_is_a_context_manager_sync_and_async(schema):
    with PostgresSaver(address(), schema=schema) as store:
        begin(store)
    assert not store._writer.is_open

    async def main():
        async with PostgresSaver(address(), schema=schema) as store:
            assert resume(store) == 2
        return store

    assert not asyncio.run(main())._writer.is_open


def test_a_forgotten_store_closes_itself(schema, admin):
    store = PostgresSaver(address(), schema=schema)
    begin(store)
    pids = list(backends(admin, store))
    del store
    gc.collect()
    deadline = time.monotonic() + 5
    while set(pids) & set(backends(admin)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_options():
    codec = Codec()
    store = PostgresSaver("postgresql://me:s3cret@host:5433/db", codec=codec, schema="s", lease=7)
    assert (store.codec, store.instant, store.lease) == (codec, False, 7.0)
    assert repr(store) == "<PostgresSaver postgresql://host:5433/db (schema 's')>"
    assert "s3cret" not in repr(store._address)
    assert PostgresSaver.from_conn_string("host=x").lease == 30.0


@pytest.mark.parametrize(
    "conninfo", ["", "a\0b", b"host=x", None, "no conninfo s3cret", "postgresql://[s3cret"]
)
def test_what_is_no_address_is_refused_without_showing_it(conninfo):
    with pytest.raises(InputError, match="postgresql://") as caught:
        PostgresSaver(conninfo)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["timeout", "connect_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_time_that_is_none_is_refused(name, value):
    with pytest.raises(InputError, match=name):
        PostgresSaver("host=x", **{name: value})


def test_closing_while_others_use_it_breaks_nothing(store):
    stop = threading.Event()

    def close():
        while not stop.is_set():
            store.close()

    closer = threading.Thread(target=close)
    closer.start()
    try:
        for number in range(20):
            begin(store, f"r{number}")
            assert store.find(f"r{number}")
            store.records(f"r{number}")
    finally:
        stop.set()
        closer.join()
