"""Postgres that fails: at every write and every statement of ten workflows, on its server, and on the way there.

Whatever fails, and wherever: the caller gets a typed error that says what to do and shows no password, nothing hangs
for longer than the timeouts, the run can be gone on with, what was acknowledged never runs again, the answer is that
of a run which nothing disturbed, and no connection is left open.

In places every few of the Nths are tried, from another one each time; WEFT_EVERY_N=1 tries all.
"""

from __future__ import annotations

import logging
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from random import Random

import psycopg
import pytest
from faults import METHODS, Faulty, Plan
from killing import seeded
from leftovers import eventually
from postgres import (
    Loss,
    Network,
    Server,
    Statements,
    Way,
    address,
    end_session,
    end_sessions,
    fresh_schema,
    is_ours,
)
from psycopg import sql as composing
from psycopg.conninfo import make_conninfo

from weft import OwnerLostError, RunStatus, StoreError, entrypoint, task
from weft.checkpoint import postgres, postgres_link
from weft.checkpoint.base import RecordKind, Write, all_records
from weft.checkpoint.postgres import PostgresSaver
from weft.testing.conformance import begin, record, resume

sys.path.insert(0, str(Path(__file__).parent))
from test_faults import (
    WAYS,
    Happening,
    Place,
    Story,
    asked,
    bulky,
    each_anew,
    each_way,
    each_workflow,
    fails_at_every,
    gathered,
    nested,
    recovered,
    undisturbed,
)

PASSWORD = "s3cret-word"


def every(stride, *, first=()):
    """1, 2, 3, ...: all, or each so many-th from a random one, after those that are to come first."""
    if os.environ.get("WEFT_EVERY_N"):
        return count(1)
    return chain(first, count(seeded("the first N").randrange(stride) + 1, stride))


#: A fault there lasts, and so the run fails; of random ones each may be one that is got over.
LASTS = (3,)


@pytest.fixture(autouse=True)
def quiet(caplog):
    """That a run could not be released is logged, and meant here."""
    caplog.set_level(logging.CRITICAL, logger="weft")


# --- A schema, and who uses it ----------------------------------------------------------------------------


class Schema:
    """A schema on a server: where stores are made that are all counted at the end."""

    def __init__(self, server, name):
        self.name = name
        self.server = server
        self.mark = f"faults {secrets.token_hex(4)}"
        self.admin = psycopg.connect(server, autocommit=True)
        self.admin.execute("SET client_min_messages = warning")
        self.address = make_conninfo(server, application_name=self.mark, password=PASSWORD)

    def store(self, at=None, **options):
        at = self.address if at is None else make_conninfo(at, password=PASSWORD)
        if options.pop("is_marked", True):
            at = make_conninfo(at, application_name=self.mark)
        return PostgresSaver(at, **{"schema": self.name, "timeout": 5, "connect_timeout": 2} | options)

    def do(self, statement, *args):
        """Something that somebody else does in it."""
        self.admin.execute("SELECT set_config('search_path', %s, false)", [self.name])
        names = [composing.Identifier(arg) for arg in args]
        return self.admin.execute(composing.SQL(statement).format(*names))

    def empty(self):
        named = "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'weft_version'"
        for (table,) in self.admin.execute(named, [self.name]).fetchall():
            self.do("DELETE FROM {}", table)

    def sessions(self):
        """The server's processes for our stores."""
        ours = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        return [pid for (pid,) in self.admin.execute(ours, [self.mark])]

    def all_are_gone(self):
        eventually(lambda: not self.sessions(), 5)

    def close(self):
        self.admin.close()


@contextmanager
def schema_on(server):
    with fresh_schema() as name:
        found = Schema(server, name)
        yield found
        found.all_are_gone()
        found.close()


@pytest.fixture(scope="module")
def shared():
    """One schema for many stories, one after the other."""
    with schema_on(address()) as found:
        with found.store() as first:
            first.setup()
        yield found


@pytest.fixture
def fresh():
    with schema_on(address()) as found:
        yield found


@pytest.fixture
def places(shared):
    """Makes stores for one story each."""

    def make():
        shared.empty()
        return Place(shared.store(), instant=False)

    make.kind = "postgres"
    return make


def tells(error, schema):
    """What a store says of a failure: where it was, what to do about it, and nothing secret."""
    assert type(error) is StoreError, repr(error)
    text = str(error)
    assert f"schema {schema.name!r}" in text
    while error is not None:
        assert PASSWORD not in repr(error) + str(error)
        error = error.__cause__ or error.__context__
    assert any(
        advice in text
        for advice in ("resume", "give ", "see to ", "call `setup()`", "made anew", "create the database")
    ), text
    return text


# --- Every N ----------------------------------------------------------------------------------------------

#: How many calls or statements have failed, by what and how.
HIT = Counter()


@each_workflow
@each_way
def test_every_commit_fails(workflow, way, places):
    def plans_at(at):
        HIT["commit", way] += 1
        return (Plan(at, **WAYS[way]),)

    fails_at_every(workflow, places, plans_at, numbers=every(5))


@each_workflow
@each_way
def test_every_call_of_the_store_fails(workflow, way, places):
    class Noting(Plan):
        def strikes(self, name):
            strikes = super().strikes(name)
            HIT[name, way] += strikes
            return strikes

    fails_at_every(workflow, places, lambda at: (Noting(at, counts=METHODS, **WAYS[way]),), numbers=every(17))


class Struck(Place):
    """A store in Postgres; which statements fail its plan says."""

    def __init__(self, schema, statements, *, anew, **options):
        super().__init__(schema.store(**options), instant=False)
        self.schema = schema
        self.statements = statements
        self.anew = anew  # whether a new process comes, or the old one goes on

    def heal(self):
        self.statements.heal()
        if self.anew:
            self.store.inner.close()
            self.store.inner = self.schema.store()

    def __exit__(self, *_):
        self.statements.heal()
        super().__exit__()


@pytest.fixture
def statements(monkeypatch):
    found = Statements()
    monkeypatch.setattr(postgres_link, "_Connection", found.connections())
    return found


def strike(workflow, schema, statements, plan, way, **options):
    """Have one statement fail, or all from then on; what went wrong, None when there were not so many."""
    code = CODES[plan.at % len(CODES)]
    # Behind a pooler another one could only tell by its lease that the first has ended.
    with Struck(schema, statements, anew=plan.at % 2 == 0 and not options, **options) as place:
        statements.plant(plan, way, code)
        story = Story(workflow, place.store)
        found = story.answer(place.heal)
        statements.heal()
        told = f"{workflow.__name__}: {plan} {way} {code} -> {story.failures}"
        assert found == undisturbed(workflow), told
        assert story.world.wrong == [], told
        assert story.live() == found, told
        rows = place.store.inner.runs()
        assert all(row.status is RunStatus.FINISHED for row in rows), told
        assert place.store.acknowledged <= identities(place.store.inner, rows), told
        assert len(schema.sessions()) <= 3 + bool(plan.hits), told  # one that was cut may be about to go
        assert len(story.failures) <= 1, told  # what is mended is no fault any more
        for error in story.failures:
            tells(error, schema)
        return story.failures if plan.hits else None


#: What a server refuses a statement for.
CODES = (
    "53100",  # disk full
    "53200",  # out of memory
    "55P03",  # lock not available
    "57014",  # statement timeout
    "25006",  # read-only
    "58030",  # I/O error
    "40P01",  # deadlock: done again, and so seldom an error
    "XX000",  # internal error
)


def identities(store, rows):
    """Of all that is on record; no result is there twice."""
    records = [record for row in rows for record in all_records(store, row.run_id)]
    results = Counter(record.identity for record in records if record.kind is RecordKind.OK)
    assert set(results.values()) <= {1}
    return {record.identity for record in records}


@each_workflow
@pytest.mark.parametrize("way", Way)
def test_every_transaction_fails_at_its_end(workflow, way, shared, statements):
    """Refused; lost before it was sent; done, with the answer lost."""
    for at in every(3):
        shared.empty()
        plan = Plan(at, lasts=at % 3 == 0, counts=frozenset({"commit"}))
        if strike(workflow, shared, statements, plan, way) is None:
            break
        HIT["a transaction", way.name] += 1


@each_workflow
@pytest.mark.parametrize("way", Way)
def test_every_statement_fails(workflow, way, shared, statements):
    """From the first, which makes a connection."""
    failed = 0
    for at in every(19, first=LASTS):
        shared.empty()
        plan = Plan(at, lasts=at % 3 == 0, counts=frozenset({"any"}))
        failures = strike(workflow, shared, statements, plan, way)
        if failures is None:
            break
        failed += bool(failures)
        HIT["a statement", way.name] += 1
    assert failed
    assert at > 20


@pytest.mark.parametrize("workflow", [asked, recovered])
@pytest.mark.parametrize("way", Way)
def test_every_statement_fails_behind_a_pooler(workflow, way, shared, statements):
    """There each commit is a transaction of several statements, and nobody holds a lock."""
    failed = 0
    for at in every(19, first=LASTS):
        shared.empty()
        plan = Plan(at, lasts=at % 3 == 0, counts=frozenset({"any"}))
        failures = strike(workflow, shared, statements, plan, way, pooled=True)
        if failures is None:
            break
        failed += bool(failures)
    assert failed


@pytest.mark.parametrize("way", Way)
def test_every_statement_fails_that_makes_the_tables(way, fresh, statements):
    for at in every(4):
        fresh.do("DROP SCHEMA IF EXISTS {} CASCADE", fresh.name)
        plan = Plan(at, lasts=at % 3 == 0, counts=frozenset({"any"}))
        if strike(gathered, fresh, statements, plan, way) is None:
            break
        HIT["making tables", way.name] += 1
    assert at > 40


def test_all_kinds_of_failures_have_been_tried():
    """A fault that the tests above cannot cause is not covered by them."""
    print(sum(HIT.values()), dict(HIT))
    wanted = {("commit", way) for way in WAYS}
    wanted |= {(what, way.name) for what in ("a transaction", "a statement", "making tables") for way in Way}
    if os.environ.get("WEFT_EVERY_N"):
        wanted |= {(name, way) for name in METHODS - {"runs", "release"} for way in WAYS}
    if len({what for what, _ in HIT}) < 4:
        pytest.skip("only together with all of the tests above")
    assert wanted <= {key for key, times in HIT.items() if times}


# --- Faults of the server ---------------------------------------------------------------------------------


class Real:
    """A run on a real server, and what went wrong with it."""

    def __init__(self, schema, at=None, workflow=bulky, **options):
        self.schema = schema
        self.workflow = workflow
        self.renew = lambda: schema.store(at, **options)
        self.store = Faulty(self.renew(), instant=False)
        self.story = Story(workflow, self.store)

    def fails(self, *wanted, seconds=10):
        """A life that the fault ends, in time: what the error says."""
        began = time.monotonic()
        with pytest.raises(StoreError) as caught:
            self.story.live()
        assert time.monotonic() - began < seconds
        text = tells(caught.value, self.schema)
        print(text)
        for part in wanted:
            assert part in text, text
        return text

    def begins(self):
        """A first life that ends after a few commits, without a fault of the server."""
        self.store.plans = (Plan(4),)
        with pytest.raises(StoreError, match="planted"):
            self.story.live()
        self.store.plans = ()

    def recovers(self, *, anew=False):
        """The fault is gone: the answer is right, and nothing that was acknowledged ran again."""
        self.store.plans = ()
        if anew:
            self.store.inner.close()
            self.store.inner = self.renew()
        assert self.story.live() == undisturbed(self.workflow)
        assert self.story.world.wrong == []
        inner = self.store.inner
        assert self.store.acknowledged <= identities(inner, [inner.find("r")])

    def after_commits(self, number, do):
        """Have something happen after that many commits, before the next."""
        self.store.plans = (Happening(number + 1, do),)


@pytest.fixture
def real(fresh):
    """Makes stores in a new schema."""
    made = []

    def make(at=None, schema=fresh, **options):
        made.append(Real(schema, at, **options))
        return made[-1]

    make.schema = fresh
    yield make
    for each in made:
        each.store.close()


@pytest.fixture(scope="module")
def own_server():
    if not is_ours():
        pytest.skip("needs a server that may be ended")
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def on_own(own_server):
    """A schema on a server that may be ended."""
    found = Schema(own_server.address, f"weft_{secrets.token_hex(8)}")
    yield found
    found.close()
    after = Schema(own_server.address, found.name)
    after.mark = found.mark
    after.all_are_gone()
    after.do("DROP SCHEMA IF EXISTS {} CASCADE", found.name)
    after.close()


def test_sessions_are_ended_at_random_moments(shared):
    """By an administrator who ends any of ours, all the time."""
    random = seeded("who and when")
    over, ended, failures = threading.Event(), [], 0

    def end_some():
        with psycopg.connect(shared.server, autocommit=True) as admin:
            while not over.wait(random.random() * 0.03):
                of_ours = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
                pids = [pid for (pid,) in admin.execute(of_ours, [shared.mark])]
                if pids:
                    ended.append(admin.execute("SELECT pg_terminate_backend(%s)", [random.choice(pids)]))

    thread = threading.Thread(target=end_some)
    thread.start()
    try:
        for workflow in (bulky, nested, recovered, gathered) * 5:
            shared.empty()
            with Place(shared.store(), instant=False) as place:
                story = Story(workflow, place.store)
                assert story.answer(place.heal) == undisturbed(workflow)
                assert story.world.wrong == []
                for error in story.failures:
                    tells(error, shared)
                failures += len(story.failures)
    finally:
        over.set()
        thread.join()
    print(len(ended), "ended,", failures, "failures")
    assert ended


@each_anew
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restarted", "crashed"])
@pytest.mark.parametrize("commits", [0, 1, 3, 8])
def test_the_server_is_gone_and_comes_back(how, commits, anew, own_server, on_own, real):
    mine = real(schema=on_own)
    mine.after_commits(commits, lambda: own_server.halt(how))
    try:
        mine.fails("resume", "nothing was done")
    finally:
        own_server.start()
    mine.recovers(anew=anew)


def test_the_server_crashes_again_and_again(own_server, on_own):
    """At any moment of whatever; runs go on in the meantime, or are gone on with."""
    random = seeded("when it crashes")
    over, crashes, failures, lives = threading.Event(), 0, 0, 0
    answers = []

    def work():
        nonlocal failures, lives
        while not over.is_set():
            lives += 1
            with Place(on_own.store(), instant=False) as place:
                story = Story((bulky, nested)[lives % 2], place.store, run_id=f"r{lives}")
                answers.append((story.answer(lambda: time.sleep(0.05)), undisturbed(story.workflow)))
                answers.append((story.world.wrong, []))
                failures += len(story.failures)

    for workflow in (bulky, nested):
        undisturbed(workflow)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for crashes in range(1, 9):
            time.sleep(random.random() * 0.3)
            own_server.halt(signal.SIGQUIT)
            time.sleep(random.random() * 0.1)
            own_server.start()
    finally:
        over.set()
        thread.join()
    print(crashes, "crashes,", failures, "failures,", lives, "runs")
    assert failures
    assert all(found == wanted for found, wanted in answers)


#: Roles that cannot connect, what they lack, and what gives it to them.
LOCKED_OUT = {
    "wrong password": ("LOGIN PASSWORD 'another'", f"ALTER ROLE {{}} PASSWORD '{PASSWORD}'"),
    "no password": ("LOGIN", f"ALTER ROLE {{}} PASSWORD '{PASSWORD}'"),
    "may not log in": (f"NOLOGIN PASSWORD '{PASSWORD}'", "ALTER ROLE {} LOGIN"),
    "no connection": (f"LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 0", "ALTER ROLE {} CONNECTION LIMIT 3"),
    "one connection": (f"LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 1", "ALTER ROLE {} CONNECTION LIMIT 3"),
}


@each_anew
@pytest.mark.parametrize("lack", LOCKED_OUT)
def test_a_role_that_cannot_connect(lack, anew, own_server, on_own, real):
    options, mend = LOCKED_OUT[lack]
    role = f"role_{secrets.token_hex(4)}"
    on_own.do(f"CREATE ROLE {{}} {options}", role)
    on_own.do("GRANT CREATE ON DATABASE postgres TO {}", role)
    own_server.demand_passwords(role)
    eventually(lambda: cannot_connect(own_server.address, role))
    mine = real(make_conninfo(own_server.address, user=role), on_own)
    mine.fails("nothing was done", "user and password", "how many connections")
    on_own.do(mend, role)
    mine.recovers(anew=anew)
    mine.store.close()
    on_own.do("DROP OWNED BY {}", role)
    on_own.do("DROP ROLE {}", role)


def cannot_connect(server, role):
    """Whether the server has heard that this role needs a password."""
    try:
        psycopg.connect(make_conninfo(server, user=role, password="none of all")).close()
    except psycopg.OperationalError:
        return True
    return False


@pytest.mark.parametrize(
    "where",
    [
        "dbname=there_is_none",
        "host=/there/is/none",
        "host=127.0.0.1 port=1",
        "host=there-is-none.invalid",
        "port=1",
        "user=there_is_none",
    ],
)
def test_an_address_that_leads_nowhere(where, fresh):
    given = psycopg.conninfo.conninfo_to_dict(where)
    mine = Real(fresh, make_conninfo(fresh.server, **given))
    mine.fails("nothing was done", "see to host, port, database")
    mine.store.close()


@each_anew
@pytest.mark.parametrize("commits", [0, 1, 4])
@pytest.mark.parametrize(
    ("right", "table"), [("INSERT", "records"), ("UPDATE", "runs"), ("ALL", "runs"), ("INSERT", "owners")]
)
def test_a_right_is_taken_away(right, table, commits, anew, fresh, real):
    with fresh.store() as first:
        first.setup()
    role = f"role_{secrets.token_hex(4)}"
    fresh.do("CREATE ROLE {} LOGIN", role)
    try:
        fresh.do("GRANT USAGE ON SCHEMA {} TO {}", fresh.name, role)
        fresh.do("GRANT ALL ON ALL TABLES IN SCHEMA {} TO {}", fresh.name, role)
        fresh.do("GRANT ALL ON ALL SEQUENCES IN SCHEMA {} TO {}", fresh.name, role)
        mine = real(make_conninfo(fresh.server, user=role))
        mine.after_commits(commits, lambda: fresh.do(f"REVOKE {right} ON {{}} FROM {{}}", table, role))
        mine.fails("permission denied", "grant this one their use")
        fresh.do("GRANT ALL ON ALL TABLES IN SCHEMA {} TO {}", fresh.name, role)
        mine.recovers(anew=anew)
        mine.store.close()
    finally:
        fresh.do("DROP OWNED BY {}", role)
        fresh.do("DROP ROLE {}", role)


#: What another session may keep locked.
LOCKS = {
    "the run": "SELECT FROM runs FOR UPDATE",
    "the table of runs": "LOCK TABLE runs",
    "the table of records": "LOCK TABLE records",
    "all": "LOCK TABLE runs, inputs, outcomes, records, states, owners, weft_version",
}


@each_anew
@pytest.mark.parametrize("what", LOCKS)
@pytest.mark.parametrize("commits", [None, 0, 3])
def test_another_session_keeps_it_locked(what, commits, anew, fresh, real):
    """From before the run is opened, if there is one to lock; or from a moment within it."""
    mine = real(timeout=0.3, lease=2)
    with psycopg.connect(fresh.server) as other:
        other.execute("SELECT set_config('search_path', %s, false)", [fresh.name])
        other.commit()
        if commits is None:
            mine.begins()
            other.execute(LOCKS[what])
        else:
            mine.after_commits(commits, lambda: other.execute(LOCKS[what]))
        mine.fails("kept it locked for nearly 0.3 s: see pg_locks, then resume", seconds=5)
        other.rollback()
    mine.recovers(anew=anew)


def test_a_server_that_is_slow(fresh, real):
    """A trigger that sleeps stands for it."""
    mine = real(timeout=0.3, lease=2)
    mine.store.inner.setup()
    fresh.do(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(5); RETURN NEW; END $$"
    )
    fresh.do("CREATE TRIGGER slow BEFORE INSERT ON records FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    mine.fails("did not do it within 0.3 s: see pg_stat_activity", seconds=4)
    fresh.do("DROP TRIGGER slow ON records")
    mine.recovers()


@each_anew
@pytest.mark.parametrize("commits", [None, 0, 3])
def test_a_database_is_frozen(commits, anew, own_server, on_own, real):
    """As some hosts do when its disk is nearly full: by its default. Sessions that are new hear of it."""
    mine = real(schema=on_own)

    def freeze():
        on_own.do("ALTER DATABASE postgres SET default_transaction_read_only = on")
        end_sessions(on_own.admin, on_own.sessions())
        inner = mine.store.inner  # a session that is gone may take a moment to hang up
        made = [link._db for link in (inner._writer, inner._reader, inner._own) if link._db is not None]
        eventually(lambda: all(map(postgres_link._is_lost, made)))

    if commits is None:
        freeze()
    else:
        mine.after_commits(commits, freeze)
    try:
        mine.fails("read-only transaction", "see to default_transaction_read_only")
    finally:
        on_own.do("ALTER DATABASE postgres RESET default_transaction_read_only")
    mine.recovers(anew=anew)


def test_a_standby_is_read_and_not_written(own_server, on_own, real):
    """An address that led to the primary, before a failover."""
    mine = real(schema=on_own)
    mine.begins()
    mine.store.close()
    on_own.admin.close()
    standby = Server(standby_of=own_server)
    try:
        on_own.admin = psycopg.connect(own_server.address, autocommit=True)
        there = Real(on_own, standby.address)
        assert there.store.inner.find("r").status is RunStatus.RUNNING
        there.fails("give the address of the primary")
        with pytest.raises(StoreError, match="give the address of the primary"):
            there.store.inner.save_state("t", b"", created=1.0)
        there.store.close()
    finally:
        standby.stop()
    mine.recovers(anew=True)


def without(table, mine):
    """Whatever is tried while a table is away is an error, and no empty one is put in its place."""
    for _ in range(2):
        mine.fails("does not exist", "put it back from a backup")
        mine.store.plans = ()
    mine.schema.do("ALTER TABLE away RENAME TO {}", table)


@each_anew
@pytest.mark.parametrize("table", ["runs", "records", "outcomes"])
@pytest.mark.parametrize("commits", [0, 1, 4])
def test_a_table_is_taken_away_and_put_back(table, commits, anew, fresh, real):
    mine = real()
    mine.after_commits(commits, lambda: fresh.do("ALTER TABLE {} RENAME TO away", table))
    without(table, mine)
    mine.recovers(anew=anew)


@each_anew
@pytest.mark.parametrize("table", ["runs", "inputs", "outcomes", "records", "owners"])
def test_a_table_is_away_when_a_run_is_to_be_gone_on_with(table, anew, fresh, real):
    mine = real()
    mine.begins()
    mine.store.close()
    fresh.do("ALTER TABLE {} RENAME TO away", table)
    without(table, mine)
    mine.recovers(anew=anew)


@pytest.mark.parametrize("commits", [0, 1, 4])
def test_the_schema_is_dropped(commits, fresh, real):
    """What was in it is gone; nobody is told that it is there, and a run of that name begins anew."""
    mine = real()
    mine.after_commits(commits, lambda: fresh.do("DROP SCHEMA {} CASCADE", fresh.name))
    mine.fails("does not exist", "made anew with the next use")
    assert mine.store.inner.find("r") is None
    mine.store.plans = ()
    mine.store.acknowledged.clear()
    assert mine.story.live() == undisturbed(bulky)


# --- Its disk ---------------------------------------------------------------------------------------------


def heavy(world, options):
    """Tasks whose results are large, and stay so."""

    @task
    async def work(i):
        world.begins(f"work{i}")
        return Random(i).randbytes(200_000)

    @entrypoint()
    async def flow(n):
        total = 0
        for i in range(n):
            total += sum(await work(i))
            world.uses(f"work{i}")
        return total

    return flow.invoke(8, **options)


@pytest.fixture
def tiny_disk():
    """Makes file systems of a size that the server may use."""
    if os.getuid() or not shutil.which("mount"):
        pytest.skip("only root may mount a small file system")
    folders = []

    def make(size):
        folder = Path("/tmp", f"weft-tiny-{secrets.token_hex(4)}")
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", folder]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            folder.rmdir()
            pytest.skip("a small file system cannot be mounted here")
        folders.append(folder)
        return folder

    yield make
    for folder in folders:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def fill(folder):
    """Leave not a byte."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return


@each_anew
@pytest.mark.parametrize("commits", [None, 0, 1, 3, 6])
def test_the_disk_of_the_tables_is_full(commits, anew, own_server, on_own, real, tiny_disk):
    """A tablespace on a small file system: the server's own files are elsewhere, so that it goes on."""
    folder = tiny_disk("4m")
    space = f"space_{secrets.token_hex(4)}"
    where = folder / "space"
    where.mkdir()
    os.chown(where, 65534, 65534)
    on_own.do(f"CREATE TABLESPACE {{}} LOCATION '{where}'", space)
    mine = real(
        make_conninfo(own_server.address, options=f"-c default_tablespace={space}"), on_own, workflow=heavy
    )
    try:
        if commits is None:
            fill(folder)
        else:
            mine.store.inner.setup()
            mine.after_commits(commits, lambda: fill(folder))
        mine.fails("No space left on device", "free some space, then resume")
        (folder / "filler").unlink()
        mine.recovers(anew=anew)
    finally:
        mine.store.close()
        on_own.do("DROP SCHEMA IF EXISTS {} CASCADE", on_own.name)
        on_own.do("DROP TABLESPACE {}", space)


@each_anew
def test_the_server_may_not_make_a_file_larger(anew, own_server, on_own, real):
    """An I/O error of its own, which needs no root."""
    mine = real(schema=on_own, workflow=heavy)
    mine.begins()
    own_server.largest = 2**20  # as large as a part of its log is here
    own_server.halt()
    own_server.start()
    try:
        mine.fails("could not extend file", "what was committed is safe")
    finally:
        own_server.largest = resource.RLIM_INFINITY
        own_server.halt()
        own_server.start()
    mine.recovers(anew=anew)


def fill_log(folder, server):
    """Leave no room, and have the server write to its log until it gives up."""
    fill(folder)
    with pytest.raises(psycopg.OperationalError), psycopg.connect(server.address, autocommit=True) as other:
        for _ in range(100):
            other.execute("SELECT pg_logical_emit_message(true, '', repeat('x', 500000))")


@pytest.mark.parametrize("commits", [1, 5])
def test_the_disk_of_the_server_is_full(commits, tiny_disk):
    """Its log cannot be written: it gives up, cannot start, and is started when there is room."""
    if not is_ours():
        pytest.skip("needs a server of its own")
    folder = tiny_disk("96m")
    server = Server(within=folder, durable=True)
    schema = Schema(server.address, "weft")
    mine = Real(schema, workflow=heavy)
    try:
        mine.after_commits(commits, lambda: fill_log(folder, server))
        mine.fails("resume", seconds=20)
        schema.close()
        eventually(lambda: server.process.poll() is not None, 20)
        (folder / "filler").unlink()
        server.start()
        mine.recovers(anew=commits == 1)
    finally:
        mine.store.close()
        server.stop()


# --- The way there ----------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    """How long stores wait here for a network that has fallen silent, in seconds."""
    monkeypatch.setattr(postgres_link, "_MARGIN", 0.2)
    return {"timeout": 0.8, "lease": 4}


@pytest.fixture
def network(shared):
    with Network(shared.server) as found:
        yield found
    shared.all_are_gone()


#: The losses after which one side is told nothing, so that time has to tell.
SILENT = {Loss.LOST, Loss.DEAF, Loss.FORGOTTEN}


@pytest.mark.parametrize("loss", [loss for loss in Loss if loss is not Loss.DELAYED])
@pytest.mark.parametrize("workflow", [gathered, nested])
def test_every_request_is_lost_on_the_way(workflow, loss, shared, impatient, network):
    """The making of a connection is one, and so is each round trip."""
    failed = 0
    for at in every(31 if loss in SILENT else 13, first=LASTS):
        shared.empty()
        mine = Real(shared, network.address, workflow, **impatient)
        plan = Plan(at, lasts=at % 3 == 0, counts=frozenset({"any"}))
        network.plant(plan, loss)
        began = time.monotonic()
        found = mine.story.answer(network.heal)
        failures = mine.story.failures
        network.heal()
        told = f"{loss} {at}: {failures}"
        assert found == undisturbed(workflow), told
        assert mine.story.world.wrong == [], told
        assert mine.story.live() == found, told
        assert time.monotonic() - began < 12, told
        # A session that the server keeps has its locks until it has been idle in a transaction for too long.
        assert len(failures) <= (4 if loss in SILENT else 1), told
        for error in failures:
            tells(error, shared)
        inner = mine.store.inner
        assert mine.store.acknowledged <= identities(inner, inner.runs()), told
        mine.store.close()
        if not plan.hits:
            break
        failed += bool(failures)
    assert failed
    print(workflow.__name__, loss.name, at, failed)


@pytest.mark.parametrize("verb", ["answers", "a big commit"])
def test_who_falls_silent_in_a_transaction_does_not_keep_its_locks(verb, shared, impatient, monkeypatch):
    """Whatever request of it is lost. Within a COPY the server would wait for the rest for ever, with all locks."""
    monkeypatch.setattr(postgres, "_MANY_RECORDS", 2)
    lines = [record(number, kind=RecordKind.ANSWER) for number in range(4)]
    for at in count(1):
        shared.empty()
        with Network(shared.server) as network, shared.store() as other:
            store = shared.store(network.address, **impatient)
            fence = begin(store)
            network.plant(Plan(at, counts=frozenset({"any"})), Loss.LOST)
            plan = network.plan
            try:
                store.add_answers("r", lines) if verb == "answers" else store.commit(
                    [Write("r", fence, lines)]
                )
            except StoreError as error:
                tells(error, shared)
            network.heal()
            other.add_answers("r", [record(9, kind=RecordKind.ANSWER)])  # before its 5 s are over
            assert [line.ordinal for _, line in other.records("r")][-1] == 9
            store.close()
        if not plan.hits:
            break
    assert at > 5


# --- Who has lost its lock --------------------------------------------------------------------------------


class Rivals:
    """Two owners of one workflow's runs; the second takes over what the first had when it lost its lock."""

    def __init__(self, schema, workflow, first, second):
        self.schema = schema
        self.first, self.second = (Faulty(store, instant=False) for store in (first, second))
        self.old, self.new = Story(workflow, self.first), Story(workflow, self.second)
        self.workflow = workflow
        self.took_over = False

    def take_over(self):
        """The second goes on with what the first has, to the end."""
        self.second.acknowledged |= self.first.acknowledged
        for noted in ("ran", "_identities", "_chosen"):
            getattr(self.new.world, noted).update(getattr(self.old.world, noted))
        assert self.new.live() == undisturbed(self.workflow)
        assert self.new.world.wrong == []
        self.took_over = True
        self.before = self.content()

    def content(self):
        rows = [self.schema.do("SELECT * FROM {} ORDER BY 1, 2", table).fetchall() for table in WRITTEN]
        return dict(zip(WRITTEN, rows, strict=True))

    def close(self):
        self.first.close()
        self.second.close()


#: The tables that a run writes to; `owners` is what somebody says of himself.
WRITTEN = ("runs", "inputs", "outcomes", "records", "states")


@each_workflow
def test_whose_lock_was_lost_before_any_commit_writes_nothing_more(workflow, shared):
    """Its connection is cut, another takes over and ends the run, and then the first one's commit comes."""
    for at in every(4):
        shared.empty()
        rivals = Rivals(shared, workflow, shared.store(), shared.store())

        def lose(rivals=rivals):
            end_session(rivals.first.inner._own._db)
            rivals.take_over()

        rivals.first.plans = (Happening(at, lose),)
        try:
            rivals.old.live()
        except OwnerLostError:
            assert rivals.took_over
            assert rivals.content() == rivals.before
        else:
            assert not rivals.took_over
            break
        finally:
            rivals.close()
    assert at > 3


@pytest.mark.parametrize("workflow", [bulky, nested])
def test_a_commit_that_comes_late_writes_nothing(workflow, shared, network):
    """It was on its way for so long that another has taken the run over and ended it."""
    for at in every(3):
        shared.empty()
        first = shared.store(network.address, is_marked=False)
        rivals = Rivals(shared, workflow, first, shared.store())
        # Planted in the commit itself: what opens the run comes through.
        plant = lambda: network.plant(Plan(1, counts=frozenset({"any"})), Loss.DELAYED, only="weft writer")
        rivals.first.plans = (Happening(at, plant),)
        thread = threading.Thread(target=lambda: outcomes.append(outcome(rivals.old.live)))
        outcomes = []
        thread.start()
        while thread.is_alive() and not network.reached.wait(0.01):
            pass
        if not network.reached.is_set():
            rivals.close()
            break
        end_session(first._own._db)
        rivals.take_over()
        network.release()
        thread.join(20)
        assert outcomes == [OwnerLostError]
        assert rivals.content() == rivals.before
        rivals.close()
        network.heal()
        network.reached.clear()
    assert at > 3


def outcome(fn):
    try:
        return fn()
    except Exception as error:
        return type(error)


def test_in_one_commit_a_run_that_was_lost_does_not_harm_one_that_somebody_has_answered(shared):
    """The answer has moved the first one's journal, so that the rows are read again, and those of the other too."""
    shared.empty()
    with shared.store() as first, shared.store() as second:
        answered, lost = begin(first, "answered"), begin(first, "lost")
        end_session(first._own._db)
        second.add_answers("answered", [record(kind=RecordKind.ANSWER)])
        assert resume(second, "lost") == lost + 1
        writes = [Write("answered", answered, [record(1)]), Write("lost", lost, [record(1)])]
        assert first.commit(writes) == {"lost"}
        assert [len(second.records(run_id)) for run_id in ("answered", "lost")] == [2, 0]
        assert first.commit(writes) == {"lost"}


@each_anew
def test_whose_session_the_server_keeps_gets_its_lock_again(anew, shared, network):
    """The network forgets a connection, and only we hear of it: the server's session has the lock, for hours."""
    shared.empty()
    mine = Real(shared, network.address, is_marked=False)

    def forget():
        network.plant(Plan(1, counts=frozenset({"any"})), Loss.FORGOTTEN, only="weft owner")
        mine.store.inner._pulse.stop()  # it is time for a beat
        with pytest.raises(StoreError):
            mine.store.inner.beat()
        assert network.reached.is_set()

    mine.after_commits(3, forget)
    began = time.monotonic()
    assert mine.story.live() == undisturbed(bulky)
    assert time.monotonic() - began < 3
    mine.recovers(anew=anew)
    mine.store.close()


def test_a_beat_that_meets_a_close_connects_nobody(shared):
    """1. a beat is due, and waits for the owner's connection; 2. the store is closed; 3. the beat has its turn."""
    shared.empty()
    store = shared.store()
    begin(store)
    store._pulse.stop()  # it is time for one
    beat = threading.Thread(target=store.beat)
    with store._own:
        beat.start()
        eventually(lambda: {"__enter__", "_certainly"} & names_on_the_stack(beat))
        store.close()
    beat.join()
    assert not store._own.is_open
    shared.all_are_gone()
    assert shared.do("SELECT owner FROM owners").fetchall() == []


def names_on_the_stack(thread):
    frame, names = sys._current_frames().get(thread.ident), set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return names
