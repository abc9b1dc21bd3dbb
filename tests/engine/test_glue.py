"""Glue: calls of which nothing is recorded, which are seen at once, count in no limit and are told to nobody."""

from __future__ import annotations

import asyncio

import pytest

import weft
from weft import InMemorySaver, Limit, entrypoint, task
from weft.checkpoint.base import RecordKind
from weft.core.timeout import TimeoutPolicy
from weft.engine.context import current
from weft.engine.futures import Branch
from weft.engine.glue import GlueCall, GlueStep, PlannedGlue, start_glue
from weft.engine.step import Step
from weft.errors import StoreError
from weft.runnable import Runnable
from weft.testing import run


class Script:
    """A conductor that starts what its script says, one after the other: steps that are recorded, and glue."""

    is_serial = True
    is_looking = False
    may_start_more = False

    def __init__(self, call, steps):
        self.call = call
        self.steps = list(steps)
        self.values = []
        self.error = None
        self.is_waiting = False

    def note(self, branch, call):
        self.is_waiting = False
        self.error = self.error or call.error
        self.values.append(call.value)

    def advance(self):
        if self.error is not None:
            self.call.conclude(None, self.error)
        elif self.is_waiting:
            return
        elif not self.steps:
            self.call.conclude(self.values, None)
        else:
            self.is_waiting = True
            step, *args = self.steps.pop(0)
            if isinstance(step, GlueStep):
                start_glue(self.call, Branch(self.call, 0), step, tuple(args))
            else:
                self.call.start(Branch(self.call, 0), step, tuple(args), {})

    def close(self, then):
        then()

    def timeout_error(self, limit, elapsed):
        return None


class Program(Runnable):
    key = "program"

    def __init__(self, *steps):
        self.step = Step(lambda call, _: Script(call, steps), "program", is_async=True, is_planned=True)


def script(*steps, name="walk", **options):
    """A conductor in the glue."""
    return GlueStep(lambda call: Script(call, steps), name, is_async=True, is_planned=True, **options)


def glue(fn, name="glue", **options):
    return GlueStep(fn, name, is_async=asyncio.iscoroutinefunction(fn), **options)


def work(fn, name="work"):
    return Step(fn, name, is_async=asyncio.iscoroutinefunction(fn))


class Counting(InMemorySaver):
    """Counts its commits, and takes no more than it is told."""

    def __init__(self, most=10**6):
        super().__init__()
        self.commits = 0
        self.most = most

    def commit(self, writes):
        if self.commits >= self.most:
            raise StoreError("gone")
        self.commits += 1
        return super().commit(writes)


def recorded(saver):
    return [record.step for _, record in saver.records("r", limit=1000) if record.kind is RecordKind.OK]


async def same(value=1):
    await asyncio.sleep(0)
    return value


def test_it_gives_its_value_as_any_call_does():
    nested = script((glue(lambda: 1),), (work(same), 2), (glue(same), 3))
    assert Program((nested,), (glue(lambda: "end"),)).invoke(0) == [[1, 2, 3], "end"]


def test_what_it_is_asked_for_becomes_a_call_of_its_kind():
    seen = []

    def look():
        seen.append(type(current.get()))
        seen.append(type(current.get().parent))

    Program((script((glue(look),)),)).invoke(0)
    assert seen == [GlueCall, PlannedGlue]


def test_nothing_of_it_is_recorded_and_it_costs_no_commit():
    """Its value may be anything, and it runs again in each life, when what comes before it is there."""
    ran = []

    def opens():
        ran.append("glue")
        return lambda: "cannot be stored"

    async def breaks():
        raise RuntimeError

    steps = [(script((work(same), 1), (glue(opens),), (work(same), 2)),), (glue(opens),)]
    saver = Counting()
    with pytest.raises(RuntimeError):
        Program(*steps, (work(breaks, "breaks"),)).invoke(0, checkpointer=saver, run_id="r")
    assert recorded(saver) == ["work", "work"]
    assert saver.commits == 4  # one for each outcome, and for the end
    assert ran == ["glue"] * 2
    found = Program(*steps, (work(same, "breaks"), 3)).invoke
    with pytest.raises(weft.UnstorableError):  # the run's own value, of course
        found(0, checkpointer=saver, run_id="r")
    assert ran == ["glue"] * 4
    assert recorded(saver) == ["work", "work", "breaks"]


def test_it_is_never_taken_for_another_call():
    """That glue stands where a call was recorded is no mismatch: neither claims what is the other's."""
    saver = InMemorySaver()

    async def breaks():
        raise RuntimeError

    def invoke(*steps):
        return Program(*steps).invoke(0, checkpointer=saver, run_id="r", on_mismatch="error")

    with pytest.raises(RuntimeError):
        invoke((work(same), 1), (work(breaks, "breaks"),))
    assert invoke((glue(lambda: 0, "inserted"),), (glue(lambda: 0, "work"),), (work(same), 1)) == [0, 0, 1]
    assert recorded(saver) == ["work"]


def test_it_counts_in_no_limit_but_its_own():
    """Neither in the width of the run, which the work below it needs, nor in a limit of the run."""
    both = Limit("both", concurrent=1)
    own = Limit("own", concurrent=1)

    async def looks():
        return both.in_use, own.in_use

    inner = script((glue(looks),), (work(looks),), (glue(looks, limits=(own,)),), (glue(looks),))
    found = Program((script((inner,)),)).invoke(0, max_concurrent=1, limit=both)
    assert found == [[[(0, 0), (1, 0), (0, 1), (0, 0)]]]


def test_observers_see_the_work():
    seen = []
    program = Program((script((work(same), 1), (glue(same), 2)),))
    for mode, chunk in program.stream(0, stream_mode=["tasks", "updates"]):
        seen.append((mode, chunk["name"] if mode == "tasks" else list(chunk)[0]))
    assert {name for _, name in seen} == {"work", "program"}
    assert not GlueCall.is_told_of


def test_its_timeout_is_its_own():
    async def sleeps():
        await asyncio.sleep(10)

    slow = script((work(sleeps),), timeout=TimeoutPolicy.of(1))

    async def main():
        with pytest.raises(weft.NodeTimeoutError, match="walk"):
            await Program((slow,)).ainvoke(0)
        return asyncio.get_running_loop().time()

    assert run(main) == 1


def test_stopping_reaches_through_it():
    cleaned = []

    async def sleeps():
        try:
            await asyncio.sleep(100)
        finally:
            cleaned.append("work")

    async def main():
        running = asyncio.create_task(Program((script((script((work(sleeps),)),)),)).ainvoke(0))
        await asyncio.sleep(1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    run(main)
    assert cleaned == ["work"]


@pytest.mark.parametrize("most", range(2, 8))
def test_failures_below_it_that_were_gone_on_from_are_not_tried_again(most):
    """However deep in the glue it was: who goes on after the glue has gone on from it."""
    ran = []

    async def fails(name):
        ran.append(name)
        raise ValueError(name)

    class Forgiving(Script):
        def note(self, branch, call):
            super().note(branch, call)
            self.error = None

    def forgiving(*steps):
        return GlueStep(lambda call: Forgiving(call, steps), "walk", is_async=True, is_planned=True)

    saver = Counting(most)
    steps = [(forgiving((forgiving((work(fails), "a")),)),), (work(same, "b"), 1), (work(same, "c"), 2)]
    for _ in range(20):
        try:
            found = Program(*steps).invoke(0, checkpointer=saver, run_id="r")
            break
        except StoreError:
            saver.most = saver.commits + most
    assert found == [[[None]], 1, 2]
    assert ran == ["a"]


def test_a_thousand_deep():
    nested = (work(same), 1)
    for _ in range(1_000):
        nested = (script(nested),)
    value = Program(nested).invoke(0)
    depth = 0
    while isinstance(value, list):
        value, depth = value[0], depth + 1
    assert (value, depth) == (1, 1_001)


# What is not recorded


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_call_that_is_not_recorded_costs_no_commit(durability):
    """A flow or a map over an iterator that a body runs: a run of short lives comes to its end all the same."""

    @task
    async def one(n):
        return n

    @entrypoint()
    async def main(count):
        return [await weft.amap(one, iter([n])) for n in range(count)]

    saver = Counting()
    assert main.invoke(5, checkpointer=saver, run_id="r", durability=durability) == [[n] for n in range(5)]
    assert saver.commits <= 6
    saver = Counting()
    for _ in range(20):
        saver.most = saver.commits + 1
        try:
            assert main.invoke(5, checkpointer=saver, run_id="r") == [[n] for n in range(5)]
            break
        except StoreError:
            continue
    else:
        raise AssertionError("it does not come to an end")


# What a style may say of a run


def test_a_run_has_an_object_of_its_own_and_a_place_to_keep_things():
    made = []

    class Mine(Runnable):
        key = "mine"

        def __init__(self):
            self.step = Step(self.body, "mine", is_async=True)
            made.append(self)

        def for_run(self, input, options):
            return Mine()

        async def body(self, value):
            call = current.get()
            call.run.kept["mine"] = value
            return call.run.workflow is self, call.run.kept

    mine = Mine()
    assert mine.invoke(5) == (True, {"mine": 5})
    assert mine.invoke(6) == (True, {"mine": 6})
    assert len(made) == 3


def test_what_is_recorded_may_be_more_than_what_is_returned():
    class Both(Program):
        def recorded_value(self, value):
            return {"whole": value}

        def recorded_output(self, value, store, run_id):
            return value["whole"]

        def split_output(self, value):
            return value[0], None

    saver = InMemorySaver()
    for _ in range(2):
        program = Both((work(same), 1), (work(same), 2))
        assert program.invoke(0, checkpointer=saver, run_id="r") == 1
    assert weft.runs(saver).show("r").output == {"whole": [1, 2]}
