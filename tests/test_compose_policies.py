"""What the policies of a block do: what it gives, what is started, what is stopped, and when it is decided.

Time is virtual, so durations are exact and order is certain. What should happen is worked out by a model that knows
nothing of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import threading
import time
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leftovers import eventually, nothing_left, within

import weft
from weft import (
    Cancelled,
    Failed,
    NotStarted,
    Ok,
    ParallelExecutionError,
    entrypoint,
    node,
    parallel,
    race,
    task,
    tolerate,
)
from weft.engine import events
from weft.testing import run, sleep, virtual_clock

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])
GRACE = 1.0


class Boom(Exception):
    pass


class Log:
    """What bodies have done, and when."""

    def __init__(self):
        self.started = {}
        self.ended = {}

    def branch(self, name, kind, seconds, *, fails=False):
        async def body(value):
            self.started[name] = asyncio.get_running_loop().time()
            try:
                await asyncio.sleep(seconds)
            finally:
                self.ended[name] = asyncio.get_running_loop().time()
            return self._end(name, fails, value)

        def sync_body(value):
            self.started[name] = self.clock()
            try:
                sleep(seconds)
            finally:
                self.ended[name] = self.clock()
            return self._end(name, fails, value)

        return node(name)(body if kind == "async" else sync_body)

    @staticmethod
    def _end(name, fails, value):
        if fails:
            raise Boom(name)
        return f"{name} of {value}"

    def clock(self):
        return 0.0


# A model: who starts when, and when the block is decided


@dataclass(frozen=True)
class Planned:
    name: str
    kind: str
    seconds: int
    fails: bool


def certain(policy, ok, failed, total):
    """What is certain: True it has its result, False it never will, None neither."""
    kind, number = policy
    if kind == "fail_fast":
        return False if failed else (True if ok == total else None)
    if kind == "collect":
        return True if ok + failed == total else None
    if kind == "count":
        return False if failed > number else (True if ok + failed == total else None)
    if kind == "ratio":
        return False if failed > number * total else (True if ok + failed == total else None)
    need = number if kind == "need" else 1
    if ok >= need:
        return True
    return False if total - failed < need else None


@dataclass
class Expected:
    verdict: bool
    decided: float
    ends: float
    started: dict
    done: dict  # name: failed?, of those that have ended by themselves


def expected(plan, policy, width):
    """Branches start in declared order as there is room; each moment's endings are taken one by one."""
    waiting, going, started, done = list(plan), [], {}, {}
    now, ok, failed = 0.0, 0, 0
    while True:
        while waiting and (width is None or len(going) < width):
            each = waiting.pop(0)
            started[each.name] = now
            heapq.heappush(going, (now + each.seconds, each.name, each))
        now, _, each = heapq.heappop(going)
        done[each.name] = each.fails
        ok, failed = ok + (not each.fails), failed + each.fails
        verdict = certain(policy, ok, failed, len(plan))
        if verdict is not None:
            grace = [min(end - now, GRACE) for end, _, other in going if other.kind == "sync"]
            return Expected(verdict, now, now + max(grace, default=0.0), started, done)


def options_of(policy):
    kind, number = policy
    if kind == "need":
        return {"need": number}
    if kind in ("count", "ratio"):
        return {"on_error": tolerate(**{kind: number})}
    return {"on_error": kind}


@st.composite
def scenarios(draw):
    count = draw(st.integers(1, 6))
    # No two sums of some of these are equal, so that no two branches ever end at one moment.
    lengths = draw(st.permutations([2**power for power in range(3, 3 + count)]))
    plan = [
        Planned(f"b{at}", draw(st.sampled_from(["sync", "async"])), lengths[at], draw(st.booleans()))
        for at in range(count)
    ]
    policy = draw(
        st.one_of(
            st.sampled_from([("fail_fast", None), ("collect", None), ("race", None)]),
            st.tuples(st.just("count"), st.integers(0, count)),
            st.tuples(st.just("ratio"), st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.7])),
            st.tuples(st.just("need"), st.integers(1, count)),
        )
    )
    width = draw(st.one_of(st.none(), st.integers(1, count + 1)))
    return plan, policy, width


@pytest.mark.parametrize("nested", [False, True])
@given(scenarios())
@settings(max_examples=120, deadline=None)
def test_every_policy_is_what_a_model_says_it_is(nested, scenario):
    plan, policy, width = scenario
    model = expected(plan, policy, width)
    log = Log()
    block = parallel(
        *(log.branch(each.name, each.kind, each.seconds, fails=each.fails) for each in plan),
        max_concurrent=width,
        optimization_enabled=False,
        name="block",
        **options_of(policy),
    )
    whole = parallel(block, name="outer") if nested else block
    found = {}

    async def main():
        loop = asyncio.get_running_loop()
        log.clock = loop.time
        handle = whole.submit(7)
        try:
            found["value"] = await handle
        except ParallelExecutionError as error:
            found["error"] = error
        found["ended"] = loop.time()
        found["at_end"] = dict(log.ended)
        found["given_up"] = {body.step for body in handle.given_up}
        found["decided"] = [e for e in handle._tape.read(0)[1] if isinstance(e, events.BlockDecided)]

    run(main)
    assert log.started == model.started  # and nothing after the decision
    assert found["ended"] == model.ends
    decisions = [e for e in found["decided"] if e.step == "block"]
    assert [e.time - weft.testing.clock.EPOCH for e in decisions] == pytest.approx([model.decided])
    bad = {name for name, fails in model.done.items() if fails}
    assert (decisions[0].ok, decisions[0].failed) == (len(model.done) - len(bad), len(bad))
    running = [each for each in plan if each.name in model.started and each.name not in model.done]
    for each in running:
        if each.kind == "async":
            assert found["at_end"][each.name] == model.decided  # cancelled, and awaited
    late = {
        each.name
        for each in running
        if each.kind == "sync" and model.started[each.name] + each.seconds > model.decided + GRACE
    }
    assert found["given_up"] == late
    if not model.verdict:
        error = found["error"].failures["block"] if nested else found["error"]
        assert error.branches == tuple(each.name for each in plan if each.name in bad)
        assert [str(each) for each in error.exceptions] == list(error.branches)
        return
    value = found["value"]["block"] if nested else found["value"]
    if policy[0] == "race":
        winner = next(name for name, fails in model.done.items() if not fails)
        assert value == f"{winner} of 7"
    elif policy[0] == "fail_fast":
        assert list(value.items()) == [(each.name, f"{each.name} of 7") for each in plan]
    else:
        assert list(value) == [each.name for each in plan]
        for each in plan:
            outcome = value[each.name]
            if each.name in bad:
                assert isinstance(outcome, Failed)
                assert str(outcome.error) == each.name
            elif each.name in model.done:
                assert outcome == Ok(f"{each.name} of 7")
            elif each.name in model.started:
                assert isinstance(outcome, Cancelled)
            else:
                assert isinstance(outcome, NotStarted)


@pytest.mark.parametrize(
    "policy",
    [("fail_fast", None), ("collect", None), ("race", None), ("count", 1), ("ratio", 0.5), ("need", 2)],
    ids=lambda policy: policy[0],
)
def test_the_order_in_which_things_run_at_one_moment_changes_no_invariant(policy):
    """All end at the same moment; who is taken first is the seed's. What is said of them must agree all the same."""

    async def main():
        log = Log()
        log.clock = asyncio.get_running_loop().time
        kinds = ["async", "sync", "async", "sync", "async"]
        branches = [log.branch(f"b{at}", kind, 4, fails=at in (1, 2)) for at, kind in enumerate(kinds)]
        handle = parallel(*branches, optimization_enabled=False, **options_of(policy)).submit(7)
        value = error = None
        try:
            value = await handle
        except ParallelExecutionError as caught:
            error = caught
        assert asyncio.get_running_loop().time() == 4
        (decided,) = [each for each in handle._tape.read(0)[1] if isinstance(each, events.BlockDecided)]
        assert handle.given_up == []
        if error is not None:
            assert len(error.exceptions) == decided.failed
            assert list(error.branches) == sorted(error.branches)
        elif policy[0] in ("count", "ratio", "need", "collect"):
            assert sum(isinstance(each, Ok) for each in value.values()) == decided.ok
            assert sum(isinstance(each, Failed) for each in value.values()) == decided.failed
        return value is not None

    decisions = {run(main, seed=seed) for seed in range(25)}
    assert (
        decisions
        <= {
            "fail_fast": {False},
            "collect": {True},
            "race": {True},
            "count": {False},
            "ratio": {True},
            "need": {True},
        }[policy[0]]
    )


# With the real clock, and in every way of asking for it


def ways():
    async def awaited(workflow, value):
        return await workflow.ainvoke(value)

    async def on_a_loop(workflow, value):
        return await workflow.submit(value)

    def in_sync_body(workflow, value):
        @entrypoint()
        def outer(x):
            return workflow.invoke(x)

        return outer.invoke(value)

    def called_in_sync_body(workflow, value):
        @task
        def inner(x):
            return workflow(x)

        @entrypoint()
        def outer(x):
            return inner(x).result()

        return outer.invoke(value)

    def in_async_body(workflow, value):
        @entrypoint()
        async def outer(x):
            return await workflow.ainvoke(x)

        return outer.invoke(value)

    def called_in_async_body(workflow, value):
        @task
        async def inner(x):
            return await workflow(x)

        @entrypoint()
        async def outer(x):
            return await inner(x)

        return asyncio.run(outer.ainvoke(value))

    def in_a_sequence(workflow, value):
        return ((lambda x: x) >> workflow >> (lambda x: x)).invoke(value)

    return {
        "invoke": lambda workflow, value: workflow.invoke(value),
        "call": lambda workflow, value: workflow(value),
        "ainvoke": lambda workflow, value: asyncio.run(awaited(workflow, value)),
        "submit": lambda workflow, value: workflow.submit(value).result(10),
        "submit on a loop": lambda workflow, value: asyncio.run(on_a_loop(workflow, value)),
        "sync body": in_sync_body,
        "called in a sync body": called_in_sync_body,
        "async body": in_async_body,
        "called in an async body": called_in_async_body,
        "sequence": in_a_sequence,
    }


WAYS = ways()


def way_param():
    return pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


class Held:
    """Branches that go on until they are stopped, and say how they left."""

    def __init__(self, count, kind):
        self.left = []
        self.kind = kind
        self._all = threading.Barrier(count, timeout=10)

    def forever(self, name):
        async def body(value):
            self._arrived()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)  # a finally block may take its time
                self.left.append(name)

        def sync_body(value):
            self._arrived()
            while not weft.cancelled():
                time.sleep(0.001)
            self.left.append(name)

        return node(name)(body if self.kind == "async" else sync_body)

    def last(self, name, do):
        """A sync branch that waits until all others are there."""

        def body(value):
            self._all.wait()
            return do()

        return node(name)(body)

    def _arrived(self):
        # An async branch may not block the loop: a thread waits in its stead.
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self):
        with contextlib.suppress(threading.BrokenBarrierError):
            self._all.wait()


def boom():
    raise Boom("no")


@KINDS
@way_param()
def test_the_first_failure_stops_the_others_and_all_have_left_before_it_is_seen(way, kind):
    held = Held(3, kind)
    block = parallel(held.forever("a"), held.last("bad", boom), held.forever("c"), optimization_enabled=False)
    with nothing_left():
        with pytest.raises(ParallelExecutionError) as caught:
            within(10, lambda: way(block, 1))
        assert sorted(held.left) == ["a", "c"]
    assert caught.value.branch == "bad"
    assert isinstance(caught.value.__cause__, Boom)


@KINDS
@way_param()
def test_the_first_success_of_a_race_stops_the_others(way, kind):
    held = Held(3, kind)
    block = race(
        held.forever("a"), held.last("good", lambda: "won"), held.forever("c"), optimization_enabled=False
    )
    with nothing_left():
        assert within(10, lambda: way(block, 1)) == "won"
        assert sorted(held.left) == ["a", "c"]


@KINDS
@way_param()
def test_need_gives_the_outcomes_of_all_and_stops_those_not_needed(way, kind):
    held = Held(3, kind)
    block = parallel(
        held.forever("a"),
        node("quick")(lambda x: x),
        held.last("second", lambda: 2),
        held.forever("d"),
        need=2,
        optimization_enabled=False,
    )
    with nothing_left():
        value = within(10, lambda: way(block, 1))
        assert sorted(held.left) == ["a", "d"]
    assert list(value) == ["a", "quick", "second", "d"]
    assert isinstance(value["a"], Cancelled)
    assert isinstance(value["d"], Cancelled)
    assert (value["quick"], value["second"]) == (Ok(1), Ok(2))


@way_param()
def test_collect_gives_an_outcome_for_each_and_stops_nobody(way):
    async def slow(value):
        await asyncio.sleep(0.01)
        return value

    def bad(value):
        raise Boom("no")

    async def worse(value):
        raise ValueError("no")

    value = within(10, lambda: way(parallel(bad, slow, worse, on_error="collect"), 7))
    assert list(value) == ["bad", "slow", "worse"]
    assert isinstance(value["bad"].error, Boom)
    assert value["slow"] == Ok(7)
    assert isinstance(value["worse"].error, ValueError)
    with pytest.raises(Boom):
        value["bad"].get()


@way_param()
def test_too_many_failures_for_what_is_tolerated_name_all_of_them(way):
    block = parallel(
        node("a")(lambda x: boom()),
        node("b")(lambda x: x),
        node("c")(lambda x: boom()),
        on_error=tolerate(count=1),
        max_concurrent=1,
    )
    with pytest.raises(ParallelExecutionError) as caught:
        within(10, lambda: way(block, 1))
    assert caught.value.branches == ("a", "c")
    assert "1 is tolerated" in str(caught.value)


@way_param()
def test_blocks_in_blocks_each_have_their_own_policy(way):
    inner = parallel(
        node("bad")(lambda x: boom()), node("good")(lambda x: x), on_error="collect", name="inner"
    )
    value = within(10, lambda: way(parallel(inner, node("other")(lambda x: -x)), 3))
    assert value["other"] == -3
    assert isinstance(value["inner"]["bad"], Failed)
    assert value["inner"]["good"] == Ok(3)


def test_a_block_that_is_decided_stops_everything_below_it():
    """Branches are blocks and sequences, three deep; the innermost bodies have left when the error is there."""
    held = Held(5, "async")
    deep = parallel(
        (lambda x: x) >> held.forever("a"),
        parallel(held.forever("b"), held.forever("c"), name="inner", optimization_enabled=False),
        name="deep",
        optimization_enabled=False,
    )
    whole = parallel(deep >> held.forever("never"), held.last("bad", boom), held.forever("d"))
    with nothing_left(), pytest.raises(ParallelExecutionError):
        within(10, lambda: whole(1))
    assert sorted(held.left) == ["a", "b", "c", "d"]


def test_nothing_starts_after_the_decision():
    started = []

    def bad(value):
        time.sleep(0.02)
        raise Boom("no")

    def later(name):
        return node(name)(lambda value: started.append(name))

    with pytest.raises(ParallelExecutionError):
        parallel(bad, *(later(f"l{n}") for n in range(20)), max_concurrent=1)(1)
    with pytest.raises(ParallelExecutionError):
        parallel(
            bad,
            *((lambda x: time.sleep(0.05)) >> later(f"s{n}") for n in range(5)),
            optimization_enabled=False,
        )(1)
    time.sleep(0.08)
    assert started == []


def test_a_sync_branch_that_does_not_listen_is_given_up_after_the_grace():
    release = threading.Event()
    outcome = []

    def deaf(value):
        release.wait(10)
        outcome.append("ended")
        return "too late"

    block = parallel(deaf, node("bad")(lambda x: boom()), optimization_enabled=False)
    try:
        with nothing_left(given_up=1):
            handle = block.submit(1, grace=0.1)
            began = time.monotonic()
            with pytest.raises(ParallelExecutionError):
                handle.result(5)
            assert 0.09 <= time.monotonic() - began < 1
        assert [body.step for body in handle.given_up] == ["deaf"]
        assert outcome == []
        kinds = [type(event) for event in handle.events()]
        assert events.CallGivenUp in kinds
    finally:
        release.set()
    eventually(lambda: outcome == ["ended"])


def test_what_a_given_up_branch_asks_for_next_is_refused():
    go, seen = threading.Event(), []

    @task
    def more():
        seen.append("ran")

    def deaf(value):
        go.wait(10)
        assert weft.cancelled()
        try:
            more()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    with pytest.raises(ParallelExecutionError):
        parallel(deaf, node("bad")(lambda x: boom()), optimization_enabled=False).submit(
            1, grace=0.01
        ).result(5)
    go.set()
    eventually(lambda: bool(seen))
    assert seen == ["Stopped"]


def test_the_deciding_failure_is_not_logged_as_one_that_nobody_saw(caplog):
    async def forever(value):
        await asyncio.sleep(60)

    async def bad(value):
        await asyncio.sleep(0.01)
        raise Boom("no")

    with caplog.at_level(logging.WARNING, logger="weft"), pytest.raises(ParallelExecutionError):
        parallel(forever, bad)(1)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_race_that_nobody_wins_has_all_the_errors():
    with pytest.raises(ParallelExecutionError) as caught:
        race(node("a")(lambda x: boom()), node("b")(lambda x: 1 / 0))(1)
    assert caught.value.branches == ("a", "b")
    assert "'race'" in str(caught.value)


def test_a_branch_that_cannot_be_bound_is_a_failed_branch():
    """It is an error of that branch alone, and one that a policy may tolerate."""

    def two(a, b):
        return a + b

    value = parallel(two, node("one")(lambda x: x), on_error="collect")(5)
    assert value["one"] == Ok(5)
    assert isinstance(value["two"].error, weft.InputError)
    assert "'two'" in str(value["two"].error)
    with pytest.raises(ParallelExecutionError) as caught:
        parallel(two, node("one")(lambda x: x))(5)
    assert caught.value.branch == "two"


def test_a_policy_object_serves_any_number_of_blocks():
    policy = tolerate(count=1)
    blocks = [
        parallel(node("a")(lambda x: boom()), node("b")(lambda x: x), on_error=policy) for _ in range(3)
    ]
    for block in blocks * 2:
        assert isinstance(block(1)["a"], Failed)


def test_one_block_may_run_many_times_at_once():
    async def echo(value):
        await asyncio.sleep(0.001 * (value % 5))
        return value

    block = parallel(echo, node("double")(lambda x: 2 * x), max_concurrent=1)

    async def main():
        return await asyncio.gather(*(block.ainvoke(n) for n in range(50)))

    assert asyncio.run(main()) == [{"echo": n, "double": 2 * n} for n in range(50)]


# Width


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@KINDS
def test_the_width_is_exact_and_the_next_starts_when_one_ends(width, kind):
    """List scheduling: with a barrier between batches, or a width that is lent, the end would be another moment."""
    lengths = [5, 1, 4, 1, 3, 2, 6, 1]
    log = Log()
    plan = [Planned(f"b{at}", kind, seconds, fails=False) for at, seconds in enumerate(lengths)]
    ends = [0] * width
    starts = {}
    for each in plan:
        free = min(range(width), key=ends.__getitem__)
        starts[each.name] = ends[free]
        ends[free] += each.seconds

    async def main():
        log.clock = asyncio.get_running_loop().time
        branches = [log.branch(each.name, kind, each.seconds) for each in plan]
        await parallel(*branches, max_concurrent=width).ainvoke(1)
        return log.clock()

    assert run(main) == max(ends)
    assert log.started == starts


@KINDS
def test_a_branch_counts_with_everything_in_it(kind):
    """A slot of a block is never lent: not while its branch waits for children, nor between its steps."""
    log = Log()
    now, most = [0], [0]

    def counted(name):
        async def enter(value):
            now[0] += 1
            most[0] = max(most[0], now[0])
            return value

        async def leave(value):
            now[0] -= 1
            return value

        inner = parallel(log.branch(f"{name}1", kind, 1), log.branch(f"{name}2", kind, 2), name="in")
        return weft.Sequence(enter, inner, log.branch(f"{name}3", kind, 1), leave, name=name)

    async def main():
        log.clock = asyncio.get_running_loop().time
        block = parallel(*(counted(f"n{at}") for at in range(6)), max_concurrent=2)
        await block.ainvoke(1)
        return log.clock()

    assert run(main) == 9  # three rounds of 2 + 1
    assert most == [2]


def test_sync_programs_have_the_same_times():
    log = Log()
    with virtual_clock() as clock:
        log.clock = lambda: clock.now
        block = parallel(
            log.branch("a", "sync", 4),
            log.branch("b", "async", 1),
            log.branch("c", "sync", 2),
            max_concurrent=2,
        )
        assert list(block(1)) == ["a", "b", "c"]
        assert clock.now == 4
    assert log.started == {"a": 0, "b": 0, "c": 1}
