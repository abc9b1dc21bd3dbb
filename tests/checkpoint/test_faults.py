"""Stores that fail: at every write of ten workflows, in every way, and real faults of files and disks.

Whatever fails, and wherever: the caller gets a typed error, nothing hangs or is left at work, the run can be gone on
with, what was acknowledged never runs again, and the answer is that of a run which nothing disturbed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from faults import METHODS, NEVER, SQLITE_ERRORS, Fault, Faulty, Plan, Statements, World, sqlite_error
from killing import Mortal
from leftovers import eventually, nothing_left, within
from msgspec import structs

import weft
from weft import (
    Command,
    Failed,
    Flow,
    Graph,
    InMemorySaver,
    Node,
    Ok,
    ParallelBatchNode,
    RetryPolicy,
    RunStatus,
    Sequence,
    SqliteSaver,
    StoreError,
    decision,
    entrypoint,
    interrupt,
    node,
    parallel,
    router,
    task,
    tolerate,
)
from weft.checkpoint.base import all_records
from weft.errors import CheckpointError

QUICK = RetryPolicy(initial_interval=0, jitter=False)


class Boom(Exception):
    pass


# --- Ten workflows of the four styles ---------------------------------------------------------------------
#
# Each is made anew for each life, and returns what the run gives. Its bodies tell the world what they do.


def bulky(world, options):
    """Functional, not one of the ten: one task after the other, with results that take a page each."""

    @task
    async def work(i):
        world.begins(f"work{i}")
        return str(i) * 4000

    @entrypoint()
    async def flow(n):
        total = 0
        for i in range(n):
            total += len(await work(i))
            world.uses(f"work{i}")
        return total

    return flow.invoke(8, **options)


def gathered(world, options):
    """Functional, on the loop: tasks at the same time, some of which are tried twice."""

    @task(retry_policy=QUICK)
    async def work(i):
        turn = world.begins(f"work{i}")
        await asyncio.sleep(0)
        if i % 3 == 0 and turn == 0:
            raise Boom(i)
        return i * i

    @entrypoint()
    async def flow(n):
        total = 0
        for start in range(0, n, 3):
            total += sum(await asyncio.gather(*(work(start + i) for i in range(3))))
            world.uses(*(f"work{start + i}" for i in range(3)))
        return total

    return flow.invoke(6, **options)


def threaded(world, options):
    """Functional, in threads: what comes first decides what is done next."""

    @task
    def work(i):
        world.begins(f"work{i}")
        return i

    @task
    def more(i, place):
        world.begins(f"more{i}")
        return 10 * i

    @entrypoint()
    def flow(n):
        total, futures = 0, [work(i) for i in range(n)]
        for place, future in enumerate(concurrent.futures.as_completed(futures)):
            i = future.result()
            world.uses(f"work{i}")
            world.chooses(f"place {place}", i)
            total += more(i, place).result()
        return total

    return flow.invoke(3, **options)


def asked(world, options):
    """Functional: questions of tasks that wait at the same time, then one of the body itself."""

    @task(retry_policy=QUICK)
    async def ask(i):
        if world.begins(f"ask{i}") == 0:
            raise Boom
        return i, interrupt(f"question {i}")

    @task
    async def work(i):
        world.begins(f"work{i}")
        return i

    @entrypoint()
    async def flow(n):
        first = await work(1)
        world.uses("work1")
        answers = await asyncio.gather(*(ask(i) for i in range(n)))
        last = interrupt("last")
        return [first, *answers, last, await work(2)]

    return answered(flow, 2, options)


def answered(flow, value, options):
    """What a workflow gives when all that it asks is answered."""
    result = flow.invoke(value, **options)
    while isinstance(result, dict) and "__interrupt__" in result:
        answers = {question.id: f"to {question.value}" for question in result["__interrupt__"]}
        result = flow.invoke(Command(resume=answers), **options)
    return result


def recovered(world, options):
    """Functional, in a thread of runs: failures that the body goes on from, tasks in tasks, and saved values."""

    @task
    async def bad(i):
        world.begins(f"bad{i}")
        raise Boom(i)

    @task
    async def work(i):
        world.begins(f"work{i}")
        return i

    @task
    async def outer(i):
        try:
            return await bad(i)
        except Boom:
            found = await work(i)
            world.uses(f"bad{i}", f"work{i}")
            return found

    @entrypoint()
    async def flow(i, *, previous=None):
        found = await outer(i)
        try:
            await bad(i + 10)
        except Boom:
            found += await work(i + 10)
            world.uses(f"bad{i + 10}")
        return entrypoint.final(value=[found, previous], save=[previous, found])

    return [flow.invoke(i, **{**options, "run_id": f"r{i}"}, thread_id="t") for i in (1, 2)]


def composed(world, options):
    """Compose: blocks in sequences in blocks, one that tolerates a failure, retries, a mapping in the middle."""

    def step(name, *after, fails=()):
        async def body(value):
            turn = world.begins(name)
            world.uses(*after)
            if turn in fails:
                raise Boom(name)
            return f"{name}({len(str(value))})"

        return node(name=name, retry=QUICK)(body)

    @node
    async def bad(value):
        world.begins("bad")
        raise Boom("bad")

    @node
    def shown(outcomes):
        return {
            key: repr(found.get()) if isinstance(found, Ok) else "failed" for key, found in outcomes.items()
        }

    block = parallel(
        step("b", "a"),
        step("c", "a") >> step("d", "c", fails=(0,)),
        bad,
        on_error=tolerate(count=1),
        name="block",
    )
    flow = (
        step("a", fails=(0,))
        >> block
        >> shown
        >> parallel(step("x"), step("y"), name="two")
        >> step("z", "x", "y")
    )
    return flow.invoke(1, **options)


def decided(world, options):
    """Compose: a decision that jumps back, and a race whose winner is named."""

    def racer(name):
        async def body(value):
            world.begins(f"{name}{value}")
            await asyncio.sleep(0)
            return {"winner": name, "value": value}

        return node(name=name)(body)

    @node
    async def judge(found: dict):
        world.begins(f"judge{found['value']}")
        world.uses(f"{found['winner']}{found['value']}")
        world.chooses(f"winner {found['value']}", found["winner"])
        return found["value"] + 1

    @decision
    async def enough(value):
        return "end" if value >= 3 else "race"

    @node
    async def end(value):
        world.begins("end")
        return value

    racing = parallel(racer("one"), racer("two"), on_error="race", name="race")
    return Sequence(racing, judge, enough, end, name="flow").invoke(1, **options)


def mapped(world, options):
    """A map with retries and failures that it tolerates, and one inside of each item."""

    @node(retry=QUICK)
    async def inner(x):
        if world.begins(f"inner{x}") == 0 and x % 2:
            raise Boom(x)
        return x

    @node
    async def outer(x):
        world.begins(f"outer{x}")
        if x == 2:
            raise Boom(x)
        found = await weft.amap(inner, [10 * x, 10 * x + 1])
        world.uses(f"inner{10 * x}", f"inner{10 * x + 1}")
        return sum(found)

    found = weft.map(outer, range(4), on_error=tolerate(count=1), **options)
    return [outcome.get() if isinstance(outcome, Ok) else "failed" for outcome in found]


def looping(world, options):
    """A graph: a loop through a fork and a join, state, a failure that is collected."""

    @router
    async def again(turn: int, turns: int):
        if turn:
            world.uses(f"fold{turn - 1}")
        return {"choices": ["left", "right", "bad"]} if turn < turns else {"choice": "finish"}

    @node(retry=QUICK)
    async def left(turn: int, state: dict):
        tries = world.begins(f"left{turn}")
        state["history"].append(f"left{turn}")
        if tries == 0:
            raise Boom
        return {"left": turn, "last": "left"}

    @node
    def right(turn: int, state: dict):
        world.begins(f"right{turn}")
        state["history"].append(f"right{turn}")
        return {"right": turn, "last": "right"}

    @node
    async def bad(turn: int):
        world.begins(f"bad{turn}")
        raise Boom(turn)

    @node
    async def fold(turn: int, total: int, left: int, right: int, bad: Failed, last: str, state: dict):
        world.begins(f"fold{turn}")
        world.uses(f"left{turn}", f"right{turn}")
        world.chooses(f"last {turn}", (last, tuple(state["history"])))
        state["history"].clear()
        state["turns"] = [*state.get("turns", []), turn]
        return {"total": total + left + right + bad.error.args[0], "turn": turn + 1}

    @node
    async def finish(state: dict):
        return {"seen": state["turns"]}

    graph = Graph(initial_state={"history": []})
    for part in (again, left, right, bad, fold, finish):
        graph.add_node(part, start=part is again, end=part is finish)
    graph.add_parallel("again", ["left", "right", "bad", "finish"], on_error="collect")
    graph.add_join(["left", "right", "bad"], "fold").add_edge("fold", "again")
    result = graph.invoke({"turn": 0, "turns": 2, "total": 0}, **options)
    return result["total"], result["seen"], graph.get_state()["turns"]


def batched(world, options):
    """A flow of batch nodes: a loop, items at the same time, one that is tried twice, ``shared``."""

    class Items(ParallelBatchNode):
        def prep(self, shared):
            return [shared["n"] * 10 + i for i in range(3)]

        def exec(self, item):
            if world.begins(f"item{item}") == 0 and item % 2:
                raise Boom(item)
            return item

        def post(self, shared, items, results):
            world.uses(*(f"item{item}" for item in items))
            shared["found"] = [*shared["found"], *results]

    class Turn(Node):
        def prep(self, shared):
            return shared["n"]

        def exec(self, n):
            world.begins(f"turn{n}")
            return n + 1

        def post(self, shared, n, more):
            world.uses(f"turn{n}")
            shared["n"] = more
            return "again" if more < 2 else "done"

    class Done(Node):
        def exec(self, _):
            world.begins("done")

    items, turn = Items(max_retries=2), Turn()
    items >> turn
    turn - "again" >> items
    turn - "done" >> Done()
    shared = {"n": 0, "found": []}
    Flow(items).run(shared, **options)
    return shared


def nested(world, options):
    """All four in each other, with a question in the innermost."""

    class Shout(Node):
        def prep(self, shared):
            return shared["text"]

        def exec(self, text):
            world.begins(f"shout {text}")
            return text.upper()

        def post(self, shared, text, loud):
            shared["loud"] = loud

    @task
    async def length(text: str):
        world.begins(f"length {text}")
        return len(text)

    @node
    async def asks(text: str):
        world.begins(f"asks {text}")
        return interrupt(text)

    @node(start=True)
    async def read(number: int):
        world.begins(f"read {number}")
        return {"text": f"letter {number}"}

    @node(end=True)
    async def file(text: str, loud: str, facts: dict):
        world.begins(f"file {text}")
        world.uses(f"length {text}", f"asks {text}", f"shout {text}")
        return {"line": f"{loud} {facts['length']} {facts['asks']}"}

    facts = Sequence(
        parallel(length, asks, name="both"), node("facts")(lambda both: {"facts": dict(both)}), name="f"
    )

    def letter():
        graph = Graph(name="letter")
        graph.add_node(read).add_node(facts).add_node(Flow(Shout()), name="shout").add_node(file)
        return graph.add_parallel(read, ["f", "shout"]).add_join(["f", "shout"], file)

    @entrypoint()
    async def post(numbers):
        found = await weft.amap(letter(), [{"number": number} for number in numbers])
        return [each["line"] for each in found]

    return answered(post, [1, 2], options)


WORKFLOWS = (gathered, threaded, asked, recovered, composed, decided, mapped, looping, batched, nested)
each_workflow = pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.__name__)


# --- Every N ----------------------------------------------------------------------------------------------


class Story:
    """A run in as many lives as it needs."""

    def __init__(self, workflow, store, **options):
        self.workflow = workflow
        self.store = store
        self.world = World(store)
        self.world.is_sync = "durability" not in options
        self.options = {"run_id": "r", "checkpointer": store, **options}
        self.failures = []

    def live(self):
        with nothing_left():
            return within(20, lambda: self.workflow(self.world, self.options))

    def answer(self, heal):
        """What it gives at last; ``heal()`` is called after each life that the store has ended."""
        while True:
            try:
                return self.live()
            except CheckpointError as error:
                assert type(error) is StoreError, repr(error)
                self.failures.append(error)
                assert len(self.failures) < 50
            heal()


#: What is given by a run that nothing disturbs.
ANSWERS = {}


def undisturbed(workflow):
    if workflow not in ANSWERS:
        store = Faulty(InMemorySaver())
        story = Story(workflow, store)
        ANSWERS[workflow] = story.live()
        assert story.world.wrong == []
        assert len(story.store.acknowledged) >= 4
    return ANSWERS[workflow]


def fails_at_every(workflow, places, plans_at, *, numbers=None, **options):
    """Have the Nth call fail, for N = 1, 2, ... or those told, until there is none; the last N less one."""
    for at in numbers or count(1):
        with places() as place:
            plans = place.store.plans = plans_at(at)
            story = Story(workflow, place.store, **options)
            found = story.answer(place.heal)
            told = f"{workflow.__name__}: {plans}"
            assert found == undisturbed(workflow), told
            assert story.world.wrong == [], told
            place.heal()
            assert story.live() == found, told  # finished: nothing runs
            assert all(row.status is RunStatus.FINISHED for row in place.store.inner.runs()), told
            if not plans[0].hits:
                assert not story.failures, told
                return at - 1
            assert story.failures, told
    raise AssertionError


class Place:
    """Where a store is that fails; it can be entered once."""

    def __init__(self, inner, *, instant):
        self.store = Faulty(inner, instant=instant)

    def heal(self):
        self.store.plans = ()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.store.close()


@pytest.fixture(params=["memory", "memory behind a thread", "sqlite"])
def places(request, quick_path):
    """Makes stores for one story each."""
    numbers = count()

    def make():
        if request.param == "sqlite":
            return Place(SqliteSaver(quick_path / f"{next(numbers)}.db"), instant=False)
        return Place(InMemorySaver(), instant=request.param == "memory")

    make.kind = request.param
    return make


@pytest.fixture
def quick_path(tmp_path):
    """A directory for files that need not outlive the power: in memory, where there is such."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def quiet(caplog):
    """That a run could not be released is logged, and meant here."""
    caplog.set_level(logging.CRITICAL, logger="weft")


WAYS = {
    "refused once": {"fault": Fault.REFUSED},
    "refused from then on": {"fault": Fault.REFUSED, "lasts": True},
    "unsure once": {"fault": Fault.UNSURE},
    "unsure from then on": {"fault": Fault.UNSURE, "lasts": True},
}
each_way = pytest.mark.parametrize("way", WAYS)

#: How many calls have failed in all of the following tests, by method and way.
HIT = Counter()


@each_workflow
@each_way
def test_every_commit_fails(workflow, way, places):
    many = fails_at_every(workflow, places, lambda at: (Plan(at, **WAYS[way]),))
    assert many >= 3
    HIT["commit", places.kind, way] += many


@each_workflow
@pytest.mark.parametrize("durability", ["async", "exit"])
def test_every_commit_fails_that_is_made_behind_the_run_or_at_its_end(workflow, durability, places):
    """What was not acknowledged may run again, what was does not."""
    plans_at = lambda at: (Plan(at, lasts=at % 2 == 0, fault=Fault.UNSURE if at % 3 else Fault.REFUSED),)
    assert fails_at_every(workflow, places, plans_at, durability=durability) >= 1


@each_workflow
@each_way
def test_every_call_of_the_store_fails(workflow, way, places):
    struck = Counter()

    class Noting(Plan):
        def strikes(self, name):
            strikes = super().strikes(name)
            struck[name] += strikes
            return strikes

    fails_at_every(workflow, places, lambda at: (Noting(at, counts=METHODS, **WAYS[way]),))
    for name, times in struck.items():
        HIT[name, places.kind, way] += times


@each_workflow
def test_a_run_whose_release_fails_as_well_can_be_gone_on_with(workflow, places):
    """A store lets go of a run where it cannot write that down either, or nobody in the process could have it again."""
    both = lambda at: (Plan(at), Plan(1, lasts=True, counts=frozenset({"release"})))
    assert fails_at_every(workflow, places, both) >= 3


def test_every_method_has_failed_in_every_way():
    """A fault that the tests above cannot cause is not covered by them."""
    if len({name for name, *_ in HIT}) <= 1:
        pytest.skip("only together with the tests above")
    kinds, ways = {kind for _, kind, _ in HIT}, {way for *_, way in HIT}
    wanted = {(name, kind, way) for name in METHODS - {"runs", "release"} for kind in kinds for way in ways}
    assert wanted <= {key for key, times in HIT.items() if times}
    print(sum(HIT.values()), "calls failed")


class Forgetful(InMemorySaver):
    """Acknowledges all, and keeps no results."""

    def commit(self, writes):
        return super().commit([structs.replace(write, records=()) for write in writes])


def test_a_store_that_forgets_what_it_has_acknowledged_would_show():
    story = Story(gathered, Faulty(Forgetful()))
    story.store.plans = (Plan(3),)
    story.answer(heal=lambda: setattr(story.store, "plans", ()))
    assert any("runs again" in wrong for wrong in story.world.wrong)


def test_results_that_are_seen_too_early_would_show():
    slow = Mortal(10**6, pause=0.02)
    story = Story(gathered, Faulty(slow, instant=False), durability="async")
    story.world.is_sync = True
    story.live()
    assert any("before it was acknowledged" in wrong for wrong in story.world.wrong)


def test_other_decisions_would_show():
    world = World(Faulty(InMemorySaver()))
    world.chooses("place 1", "a")
    world.chooses("place 1", "a")
    assert world.wrong == []
    world.chooses("place 1", "b")
    assert len(world.wrong) == 1


# --- Every statement that SQLite is given -----------------------------------------------------------------


class Statement(Place):
    """A store in a file; which statements fail its plan says."""

    def __init__(self, path, statements, *, anew):
        super().__init__(SqliteSaver(path, timeout=0.02), instant=False)
        self.path = path
        self.statements = statements
        self.anew = anew  # whether a new process comes, or the old one goes on

    def heal(self):
        self.statements.plan = NEVER
        if self.anew:
            self.store.inner.close()
            self.store.inner = SqliteSaver(self.path)


@pytest.fixture
def statements(monkeypatch):
    found = Statements()
    monkeypatch.setattr(sqlite3, "connect", found.connect)
    return found


def strike(workflow, statements, folder, plan):
    """Have one statement fail; whether there was one."""
    with Statement(
        folder / f"{plan.at}-{plan.fault}-{id(plan)}.db", statements, anew=plan.at % 2 == 0
    ) as place:
        statements.plan = plan
        story = Story(workflow, place.store)
        found = story.answer(place.heal)
        place.heal()
        told = f"{workflow.__name__}: {plan} -> {story.failures}"
        assert found == undisturbed(workflow), told
        assert story.world.wrong == [], told
        assert story.live() == found, told
        assert all(row.status is RunStatus.FINISHED for row in place.store.inner.runs()), told
        for error in story.failures:
            assert str(place.path) in str(error), told
            assert isinstance(error.__cause__, sqlite3.Error), told
        return plan.hits > 0


@each_workflow
@pytest.mark.parametrize("fault", Fault)
def test_every_transaction_of_sqlite_fails_at_its_end(workflow, fault, statements, quick_path):
    """A COMMIT that raises, with nothing written or all; the connection rolls back what there is."""
    for at in count(1):
        code, text = list(SQLITE_ERRORS.values())[at % len(SQLITE_ERRORS)]
        plan = Plan(at, fault, at % 3 == 0, frozenset({"commit"}), partial(sqlite_error, code, text))
        if not strike(workflow, statements, quick_path, plan):
            break
    assert at > 5


@each_workflow
def test_every_statement_of_sqlite_fails(workflow, statements, quick_path):
    """From the first, which opens the file: its creation is begun anew, too."""
    for at in count(1):
        code, text = list(SQLITE_ERRORS.values())[at // 2 % len(SQLITE_ERRORS)]
        fault = Fault.UNSURE if at % 5 == 0 else Fault.REFUSED
        plan = Plan(at, fault, at % 3 == 0, frozenset({"any"}), partial(sqlite_error, code, text))
        found = strike(workflow, statements, quick_path, plan)
        if not found and sum(statements.texts.values()) < at:
            break
        statements.texts.clear()
    print(at)
    assert at > 60


@pytest.mark.parametrize("verb", ["find", "save_state"])
def test_ctrl_c_when_a_transaction_has_just_begun(verb, tmp_path, monkeypatch):
    """Else the store would never begin another one, and one that writes would lock out all others."""
    begun = iter([True])

    class Interrupted(sqlite3.Connection):
        def execute(self, statement, *parameters):
            found = super().execute(statement, *parameters)
            if statement.startswith("BEGIN") and self.armed and next(begun, False):
                raise KeyboardInterrupt
            return found

        armed = False

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Interrupted))
    with SqliteSaver(tmp_path / "runs.db") as store, SqliteSaver(tmp_path / "runs.db", timeout=0.1) as other:
        call = {
            "find": lambda: store.find("r"),
            "save_state": lambda: store.save_state("t", b"", created=1.0),
        }[verb]
        call()
        Interrupted.armed = True
        with pytest.raises(KeyboardInterrupt):
            call()
        other.save_state("t2", b"", created=1.0)
        call()


# --- Faults of files and disks ----------------------------------------------------------------------------


class Real:
    """A run on a real file, and what went wrong with it."""

    def __init__(self, path, workflow=bulky):
        self.path = path
        self.workflow = workflow
        self.store = Faulty(SqliteSaver(path, timeout=0.1), instant=False)
        self.story = Story(workflow, self.store)

    def fails(self, *wanted):
        """A life that the fault ends: what the error says."""
        with pytest.raises(StoreError) as caught:
            self.story.live()
        assert type(caught.value) is StoreError
        text = str(caught.value)
        assert str(self.path) in text
        for part in wanted:
            assert part in text, text
        return text

    def recovers(self, *, anew=False):
        """The fault is gone: the answer is right, and nothing that was acknowledged ran again."""
        if anew:
            self.store.inner.close()
            self.store.inner = SqliteSaver(self.path)
        assert self.story.live() == undisturbed(self.workflow)
        assert self.story.world.wrong == []
        found = {record.identity for record in all_records(self.store.inner, "r")}
        assert self.store.acknowledged <= found

    def after_commits(self, number, do):
        """Have something happen after that many commits, before the next."""
        self.store.plans = (Happening(number + 1, do),)


class Happening(Plan):
    """What happens just before a call, which then takes place."""

    def __init__(self, at, do):
        super().__init__(at)
        self.do = do

    def strikes(self, name):
        if super().strikes(name):
            self.do()
        return False


@pytest.fixture
def real(tmp_path):
    made = []

    def make(path=None, workflow=bulky):
        made.append(Real(path or tmp_path / "runs.db", workflow))
        return made[-1]

    yield make
    for each in made:
        each.store.close()


each_anew = pytest.mark.parametrize("anew", [False, True], ids=["same object", "another object"])


@each_anew
@pytest.mark.parametrize("workflow", [bulky, asked])
def test_the_disk_is_full_at_every_page(workflow, anew, quick_path, monkeypatch):
    connect, limit, hits = sqlite3.connect, 10**6, 0

    def limited(*args, **options):
        db = connect(*args, **options)
        db.execute(f"PRAGMA max_page_count = {limit}")
        return db

    monkeypatch.setattr(sqlite3, "connect", limited)
    for pages in count(1):
        limit = pages
        mine = Real(quick_path / f"{pages}.db", workflow)
        try:
            found = mine.story.live()
        except StoreError as error:
            assert "full; free some space, then resume" in str(error)
            hits += 1
        else:
            assert found == undisturbed(workflow)
            mine.store.close()
            break
        limit = 10**6
        for db in (mine.store.inner._writer._db, mine.store.inner._reader._db):
            if db is not None:
                db.execute(f"PRAGMA max_page_count = {limit}")
        mine.recovers(anew=anew)
        mine.store.close()
    assert hits >= 9


CHILD = """
import gc, os, sys, resource
sys.path[:0] = {paths!r}
import logging
logging.getLogger("weft").setLevel(logging.CRITICAL)
from test_faults import *
folder = Path({folder!r})
"""


def in_child(folder, script):
    """Run a script in a process of its own; what it printed."""
    here = Path(__file__)
    paths = [str(here.parent), str(here.parents[1] / "support"), *filter(None, sys.path)]
    code = CHILD.format(paths=paths, folder=str(folder)) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_file_may_not_grow_beyond_any_size(quick_path):
    """Short writes and I/O errors of the system itself: in the file, in its WAL, in what its connections share."""
    script = """
    sizes = [*range(0, 130_000, 1009), *range(130_000, 300_000, 7001)]
    hits = 0
    for size in sizes:
        mine = Real(folder / f"{size}.db")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            mine.story.live()
        except StoreError as error:
            hits += 1
            assert "what was committed is safe" in str(error), error
            assert str(mine.path) in str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        mine.recovers(anew=size % 2 == 0)
        mine.store.close()
    print(hits, "of", len(sizes))
    """
    (line,) = in_child(quick_path, script)
    hits, _, many = line.split()
    assert 20 < int(hits) < int(many)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 512 KiB."""
    if os.getuid() or not shutil.which("mount"):
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "tiny"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@each_anew
@pytest.mark.parametrize("left", [0, 4096, 40_960, 81_920, 98_304])
def test_a_disk_that_is_really_full(left, anew, tiny_disk, real):
    mine = real(tiny_disk / "runs.db")
    filler = tiny_disk / "filler"
    filler.write_bytes(b"x" * (512 * 1024 - left))
    text = mine.fails()
    assert "free some space" in text or "disk and its quota" in text or "No space left" in text
    filler.unlink()
    mine.recovers(anew=anew)


@each_anew
def test_a_disk_that_fills_up_in_the_middle(anew, tiny_disk, real):
    mine = real(tiny_disk / "runs.db")
    mine.after_commits(1, lambda: fill(tiny_disk / "filler"))
    with mine.story.store.inner:  # is there, and has its WAL
        mine.fails()
        (tiny_disk / "filler").unlink()
        mine.recovers(anew=anew)


def fill(path):
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


NOBODY = 65534


def as_somebody(folder, script):
    """As :func:`in_child`, as a user for whom permissions count."""
    if os.getuid():
        return in_child(folder, script)
    with tempfile.TemporaryDirectory() as name:  # one that others may enter
        warm = (
            "Real(folder / 'warm.db').recovers()  # imports what an ordinary user might not be able to read"
        )
        Path(name).chmod(0o777)
        Path(name, "own").mkdir()
        os.chown(Path(name, "own"), NOBODY, NOBODY)
        become = f"os.setuid({NOBODY}); folder /= 'own'"
        return in_child(Path(name), f"{warm}\n{become}\n{textwrap.dedent(script)}")


#: What is done, how it is undone, and what to do by the error's text.
PERMISSIONS = {
    "the file is read-only": ("mine.path.chmod(0o400)", "mine.path.chmod(0o600)", "writable"),
    "the file is unreadable": ("mine.path.chmod(0)", "mine.path.chmod(0o600)", "writable"),
    "the directory is read-only": ("folder.chmod(0o500)", "folder.chmod(0o700)", "writable"),
    "the directory is closed": ("folder.chmod(0)", "folder.chmod(0o700)", "writable"),
    "the directory of locks is closed": (
        "locks = Path(f'{mine.path}-owners'); locks.mkdir(exist_ok=True); locks.chmod(0)",
        "locks.chmod(0o700)",
        "directory of yours",
    ),
}


@pytest.mark.parametrize("what", PERMISSIONS)
def test_permission_is_missing_when_it_is_opened(what, tmp_path):
    fault, mend, wanted = PERMISSIONS[what]
    script = """
    mine = Real(folder / "runs.db")
    mine.store.plans = (Plan(2),)
    try:
        mine.story.live()
    except StoreError:
        mine.store.plans = ()
        mine.store.close()
    %s
    print(mine.fails())
    %s
    mine.recovers(anew=True)
    """
    (says,) = as_somebody(tmp_path, script % (fault, mend))
    print(says)
    assert wanted in says


@pytest.mark.parametrize("what", PERMISSIONS)
def test_permission_is_taken_away_in_the_middle(what, tmp_path):
    """What is open stays open: the run may well come to its end."""
    fault, mend, wanted = PERMISSIONS[what]
    script = """
    mine = Real(folder / "runs.db")
    def take():
        global locks
        %s
    mine.after_commits(1, take)
    try:
        assert mine.story.live() == undisturbed(bulky)
    except StoreError as error:
        print(error)
    %s
    mine.recovers()
    mine.recovers(anew=True)
    """
    lines = as_somebody(tmp_path, script % (fault, mend))
    print(lines)
    for line in lines:
        assert wanted in line


def hold(path):
    """Another process that keeps the file locked until it is killed."""
    code = f"""
import sqlite3, time
db = sqlite3.connect({str(path)!r}, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    return holder


@each_anew
@pytest.mark.parametrize("commits", [0, 1, 2])
def test_another_process_keeps_it_locked(anew, commits, tmp_path, real):
    mine, holders = real(), []
    lock = lambda: holders.append(hold(mine.path))
    if commits:
        mine.after_commits(commits, lock)
    else:
        mine.store.find("r")
        lock()
    try:
        mine.fails("another process has kept it locked for 0.1 s: wait for it, or end it")
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()
    mine.recovers(anew=anew)


GONE = {
    "deleted": lambda path: path.unlink(),
    "an empty file in its place": lambda path: (
        path.write_bytes(b"") if path.rename(path.with_name("old")) else None
    ),
    "a directory in its place": lambda path: path.mkdir() if path.rename(path.with_name("old")) else None,
    "its directory is gone": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
}


@pytest.mark.parametrize("how", [*GONE][1:])
@pytest.mark.parametrize("commits", [1, 2])
def test_it_is_moved_away_under_us_and_put_back(how, commits, tmp_path, real):
    folder = tmp_path / "folder"
    folder.mkdir()
    mine = real(folder / "runs.db")
    mine.after_commits(commits, lambda: GONE[how](mine.path))
    mine.fails("was deleted or replaced while it was in use")
    if how == "its directory is gone":
        (tmp_path / "elsewhere").rename(folder)
    else:
        mine.path.rmdir() if mine.path.is_dir() else mine.path.unlink()
        (folder / "old").rename(mine.path)
    mine.recovers(anew=True)


def test_it_is_deleted_under_us(real):
    """What was in it is gone; nobody is told that it is there, and a run of that name begins anew."""
    mine = real()
    mine.after_commits(1, mine.path.unlink)
    mine.fails("was deleted or replaced while it was in use; what is written now would be lost")
    with pytest.raises(weft.RunNotFoundError):
        gathered_again(mine, None)
    mine.store.acknowledged.clear()
    assert mine.story.live() == undisturbed(bulky)


def gathered_again(mine, value):
    @entrypoint()
    async def flow(n):
        raise AssertionError

    return flow.invoke(value, **mine.story.options)


@pytest.mark.parametrize("companion", ["-wal", "-shm"])
def test_a_companion_of_the_file_is_deleted_under_us(companion, real):
    """SQLite goes on in the deleted one: what it acknowledges then is nowhere when the process is killed."""
    mine = real()
    mine.after_commits(1, lambda: Path(f"{mine.path}{companion}").unlink())
    mine.fails("was deleted or replaced while it was in use")
    mine.recovers(anew=True)


@pytest.mark.parametrize(
    "place", ["a directory", "a file that is no database", "a socket", "a name too long"]
)
def test_what_is_no_file_of_ours_is_refused_with_advice(place, tmp_path, real):
    path = tmp_path / ("x" * 300 if place == "a name too long" else "runs.db")
    if place == "a directory":
        path.mkdir()
    elif place == "a file that is no database":
        path.write_text("a letter\n" * 1000)
    elif place == "a socket":
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(tmp_path):
            made.bind("runs.db")
    text = real(path).fails()
    print(text)
    if place != "a name too long":
        assert re.search("must be a file|give the path|give another path", text)


def test_there_are_no_file_descriptors_left(quick_path):
    script = """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mine = Real(folder / "warm.db")
    mine.recovers()
    free = os.dup(0); os.close(free)
    hits = 0
    many = 25
    for more in range(many):
        mine = Real(folder / f"{more}.db")
        gc.collect()  # an error holds what it came through, and so a store, until then
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
        try:
            mine.story.live()
        except StoreError as error:
            hits += 1
            print(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        mine.recovers(anew=more % 2 == 0)
    assert 3 < hits < many, hits
    """
    lines = in_child(quick_path, script)
    print(*lines, sep="\n")
    assert lines


# --- Other ways to a store --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError("raw"), ValueError("raw"), sqlite3.OperationalError("raw"), KeyError()]
)
def test_a_store_that_raises_what_it_should_not_is_a_store_error(error, places):
    """Somebody else's store may raise anything from a commit: it comes as what it is, a failure of the store."""
    with places() as place:
        place.store.plans = (Plan(2, error=lambda: error),)
        story = Story(gathered, place.store)
        with pytest.raises(StoreError) as caught:
            story.live()
        assert caught.value.__cause__ is error
        place.heal()
        assert story.live() == undisturbed(gathered)
        assert story.world.wrong == []


def test_a_stream_ends_with_the_error_of_the_store(places):
    @task
    async def work(i):
        return i

    @entrypoint()
    async def flow(n):
        return sum([await work(i) for i in range(n)])

    for at in range(1, 5):
        with places() as place:
            place.store.plans = (Plan(at, lasts=True),)
            with nothing_left(), pytest.raises(StoreError, match="planted"):
                within(20, lambda: list(flow.stream(3, run_id="r", checkpointer=place.store)))
            place.heal()
            assert flow.invoke(3, run_id="r", checkpointer=place.store) == 3


def test_a_map_that_streams_ends_with_the_error_of_the_store(places):
    """What was given before it was acknowledged, and is given again without running."""
    ran = Counter()

    @node
    async def work(x):
        ran[x] += 1
        return x

    for at in range(1, 8):
        ran.clear()
        with places() as place:
            place.store.plans = (Plan(at, lasts=True),)
            given = []
            stream = lambda: weft.map(work, max_concurrent=1).stream(
                range(5), run_id="r", checkpointer=place.store
            )
            with nothing_left(), contextlib.suppress(StoreError):
                within(20, lambda: given.extend(stream()))
            place.heal()
            before = dict(ran)
            assert list(stream()) == [0, 1, 2, 3, 4]
            assert all(ran[x] == before[x] for x in given)


@pytest.mark.parametrize("fault", Fault)
def test_an_answer_to_a_living_run_that_cannot_be_recorded(fault, places):
    """Who answers is told; the run ends with the same error, and goes on from what the store has."""

    @task
    async def ask(i):
        return interrupt(i)

    @task
    async def slow():
        await asyncio.sleep(30)

    @entrypoint()
    async def flow(_):
        waiting = asyncio.ensure_future(slow())
        found = await ask(1)
        waiting.cancel()
        return found

    with places() as place:
        with nothing_left():
            run = flow.submit(0, run_id="r", checkpointer=place.store)
            eventually(lambda: run.questions)
            place.store.plans = (Plan(1, fault, lasts=True),)
            with pytest.raises(StoreError, match="planted"):
                run.answer({run.questions[0].id: "yes"})
            with pytest.raises(StoreError, match="planted"):
                run.result(timeout=10)
        place.heal()
        again = flow.submit(0, run_id="r", checkpointer=place.store)
        if fault is Fault.REFUSED:
            eventually(lambda: again.questions)
            again.answer({again.questions[0].id: "yes"})
        assert again.result(timeout=10) == "yes"


#: What is done to a store without a run: what of it is called, and how.
VERBS = {
    "list": ("runs", lambda runs, flow: runs.list()),
    "show": ("records", lambda runs, flow: runs.show("r")),
    "plan": ("records", lambda runs, flow: runs.plan("r", flow)),
    "resume": ("open", lambda runs, flow: runs.resume("r", flow)),
    "answer": ("add_answers", lambda runs, flow: runs.answer("r", {runs.show("r").questions[0].id: 1})),
    "delete": ("delete_run", lambda runs, flow: runs.delete("r")),
    "get_state": ("states", lambda runs, flow: flow.get_state(thread_id="t", checkpointer=runs.store)),
    "fork": ("records", lambda runs, flow: runs.fork("r", new_id="new")),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_passes_the_error_of_the_store_on(verb, places):
    @entrypoint()
    def flow(_):
        return interrupt("what?")

    method, call = VERBS[verb]
    with places() as place:
        if verb == "get_state":
            flow = entrypoint(checkpointer=place.store)(flow.func)
            call = lambda runs, flow: flow.get_state(thread_id="t")
        flow.invoke(0, run_id="r", thread_id="t", checkpointer=place.store)
        place.store.plans = (Plan(1, counts=frozenset({method}), lasts=True),)
        with nothing_left(), pytest.raises(StoreError, match="planted"):
            within(20, lambda: call(weft.runs(place.store), flow))
        place.heal()
        assert place.store.find("r").status is RunStatus.SUSPENDED
        call(weft.runs(place.store), flow)
