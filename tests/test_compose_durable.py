"""Blocks, sequences and decisions that go on where they were: nothing finished runs again, nothing is decided anew.

What ran is counted outside of the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import Counter
from contextlib import suppress

import pytest
from killing import Program, kill_at_effect, seeded
from leftovers import nothing_left, within

import weft
from weft import (
    Command,
    Failed,
    InMemorySaver,
    NotStarted,
    Ok,
    ParallelExecutionError,
    ParallelTimeoutError,
    RunMismatchError,
    RunStatus,
    Sequence,
    StoreError,
    TimedOut,
    decision,
    entrypoint,
    interrupt,
    node,
    parallel,
    race,
    task,
    tolerate,
)
from weft.core.sizing import Resources
from weft.engine import events
from weft.testing import run, sleep

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


class Boom(Exception):
    pass


class World:
    """What bodies have done, and which of them are broken at the moment."""

    def __init__(self):
        self.ran = Counter()
        self.broken = set()
        self._lock = threading.Lock()

    def step(self, name, kind="sync", *, seconds=0.0, give=None, **options):
        def ended(value):
            with self._lock:
                self.ran[name] += 1
            if name in self.broken:
                raise Boom(name)
            return f"{name}({value})" if give is None else give

        async def body(value):
            await asyncio.sleep(seconds)
            return ended(value)

        def sync_body(value):
            time.sleep(seconds)
            return ended(value)

        return node(name=name, **options)(body if kind == "async" else sync_body)

    def forget(self):
        found, self.ran = dict(self.ran), Counter()
        return found


def go(workflow, value, saver, **options):
    return within(20, lambda: workflow.invoke(value, run_id="r", checkpointer=saver, **options))


def breaks(workflow, value, saver, error=(Boom, ParallelExecutionError), **options):
    with nothing_left(), pytest.raises(error) as caught:
        go(workflow, value, saver, **options)
    return caught.value


# What has finished


@KINDS
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_sequence_goes_on_at_the_step_that_failed(saver, kind, durability):
    world = World()
    flow = Sequence(*(world.step(name, kind) for name in "abcd"), name="flow")
    world.broken = {"c"}
    breaks(flow, 1, saver, durability=durability)
    assert world.forget() == {"a": 1, "b": 1, "c": 1}
    world.broken = set()
    assert go(flow, 1, saver, durability=durability) == "d(c(b(a(1))))"
    assert world.forget() == {"c": 1, "d": 1}
    assert go(flow, 1, saver) == "d(c(b(a(1))))"
    assert world.forget() == {}


@KINDS
def test_a_block_runs_only_the_branches_that_have_not_finished(saver, kind):
    world = World()
    block = parallel(*(world.step(name, kind) for name in "abcd"), max_concurrent=1)
    world.broken = {"c"}
    breaks(block, 1, saver)
    assert world.forget() == {"a": 1, "b": 1, "c": 1}
    world.broken = set()
    assert go(block, 1, saver) == {name: f"{name}(1)" for name in "abcd"}
    assert world.forget() == {"c": 1, "d": 1}


@KINDS
def test_what_is_nested_goes_on_at_every_depth(saver, kind):
    world = World()

    def make():
        s = lambda name: world.step(name, kind)
        inner = parallel(s("x"), s("y") >> s("z"), name="inner", max_concurrent=1)

        async def body(value):
            return await parallel(s("p"), s("q"), name="mine", max_concurrent=1)(value)

        return Sequence(
            s("a"), parallel(s("b"), inner, node("body")(body), max_concurrent=1), s("last"), name="flow"
        )

    flow = make()
    ran = []
    for broken in ("a", "y", "z", "q", "last"):
        world.broken = {broken}
        breaks(make() if broken != "y" else flow, 1, saver)
        ran.append(world.forget())
    world.broken = set()
    assert go(make(), 1, saver).startswith("last(")
    ran.append(world.forget())
    assert ran == [
        {"a": 1},
        {"a": 1, "b": 1, "x": 1, "y": 1},
        {"y": 1, "z": 1},
        {"z": 1, "p": 1, "q": 1},
        {"q": 1, "last": 1},
        {"last": 1},
    ]


def test_equal_names_in_different_blocks_are_different_calls(saver):
    """The same function under the same name with the same value: only the place tells them apart."""
    world = World()
    number = itertools.count()

    @node("leaf")
    def leaf(value):
        world.ran["leaf"] += 1
        return next(number)

    blocks = [parallel(leaf, name=f"b{n}") for n in range(3)]
    flow = parallel(*blocks, name="all", max_concurrent=1) >> world.step("last", give="end")
    world.broken = {"last"}
    breaks(flow, 1, saver)
    world.broken = set()
    seen = []
    flow = parallel(*blocks, name="all", max_concurrent=1) >> node("last")(seen.append)
    go(flow, 1, saver)
    assert world.ran["leaf"] == 3
    assert seen == [{f"b{n}": {"leaf": n} for n in range(3)}]


def test_equal_calls_of_one_block_in_a_loop_are_told_apart(saver):
    world = World()
    number = itertools.count()

    @node("count")
    def count(value):
        world.ran["count"] += 1
        return next(number)

    stop = [True]

    @entrypoint(checkpointer=saver)
    def outer(x):
        found = [parallel(count)(7)["count"] for _ in range(4)]
        if stop:
            raise Boom("stop")
        return found

    with pytest.raises(Boom):
        outer.invoke(1, run_id="o")
    stop.clear()
    assert outer.invoke(1, run_id="o") == [0, 1, 2, 3]
    assert world.ran["count"] == 4


def test_the_finished_run_of_another_input_or_workflow_is_refused(saver):
    go(parallel(World().step("a"), name="one"), 1, saver)
    with pytest.raises(RunMismatchError):
        go(parallel(World().step("a"), name="one"), 2, saver)
    with pytest.raises(RunMismatchError):
        go(parallel(World().step("a"), name="other"), 1, saver)


def test_an_edited_block_runs_what_is_new_and_keeps_the_rest(saver):
    world = World()
    a, b, c, d, bad = (world.step(name) for name in ["a", "b", "c", "d", "bad"])
    block = lambda *parts: parallel(*parts, name="block", max_concurrent=1)
    world.broken = {"bad"}
    breaks(block(a, b, c, bad), 1, saver)
    world.forget()
    breaks(block(c, d, a, bad), 1, saver)  # another order, one less, one more
    assert world.forget() == {"d": 1, "bad": 1}
    assert go(block(d, c, b, a), 1, saver) == {name: f"{name}(1)" for name in "dcba"}
    assert world.forget() == {}


def test_a_step_inserted_into_a_sequence_never_gets_anothers_result(saver):
    world = World()
    a, b, c, new = (world.step(name) for name in ["a", "b", "c", "new"])
    world.broken = {"c"}
    breaks(Sequence(a, b, c, name="flow"), 1, saver)
    world.broken = set()
    world.forget()
    assert go(Sequence(a, new, b, c, name="flow"), 1, saver) == "c(b(new(a(1))))"
    assert world.forget() == {"new": 1, "b": 1, "c": 1}  # b is asked something else now


def test_a_call_id_is_the_same_on_every_attempt_and_resume_and_no_others(saver):
    ids = {}

    def step(name):
        def body(value):
            ids.setdefault(name, []).append(weft.call_id())
            if name == "flaky" and len(ids[name]) % 3:
                raise Boom("no")
            return value

        retry = weft.RetryPolicy(initial_interval=0, jitter=False, max_attempts=2, retry_on=Boom)
        return node(name=name, retry=retry)(body)

    flow = step("first") >> parallel(step("flaky"), step("other"), max_concurrent=1)
    breaks(flow, 1, saver)
    go(flow, 1, saver)
    assert [len(found) for found in ids.values()] == [1, 3, 1]
    assert all(len(set(found)) == 1 for found in ids.values())
    assert len({found[0] for found in ids.values()}) == 3


def test_events_say_what_was_recorded(saver):
    world = World()
    flow = parallel(world.step("a"), world.step("b"), name="block", max_concurrent=1)
    world.broken = {"b"}
    breaks(flow, 1, saver)
    world.broken = set()
    handle = flow.submit(1, run_id="r", checkpointer=saver)
    handle.result(10)
    found = {
        event.step: event.recorded for event in handle.events() if isinstance(event, events.CallFinished)
    }
    assert found == {"a": True, "b": False, "block": False}
    started = [event for event in handle.events() if isinstance(event, events.RunStarted)]
    assert [(event.resumed, event.recorded) for event in started] == [(True, 1)]


# Failures


@KINDS
def test_failures_that_were_gone_on_from_are_replayed(saver, kind):
    """What collect has counted as a failure stays one, though it would succeed now."""
    world = World()
    block = parallel(world.step("bad", kind), world.step("good", kind), on_error="collect", name="block")
    seen = []

    @node("last")
    def last(value):
        seen.append({name: type(each).__name__ for name, each in value.items()})
        assert isinstance(value["bad"].error, Boom)
        assert value["bad"].error.args == ("bad",)
        if len(seen) == 1:
            raise Boom("last")
        return "end"

    flow = block >> last
    world.broken = {"bad"}
    breaks(flow, 1, saver)
    world.broken = set()
    assert world.forget() == {"bad": 1, "good": 1}
    assert go(flow, 1, saver) == "end"
    assert world.forget() == {}
    assert seen == [{"bad": "Failed", "good": "Ok"}] * 2


def test_the_outcomes_of_a_block_are_a_recorded_result(saver):
    world = World()
    world.broken = {"bad"}

    async def slow(value):
        await asyncio.sleep(60)

    def block():
        return parallel(
            world.step("bad"),
            world.step("good"),
            node(name="slow", timeout=0.02)(slow),
            on_error="collect",
        )

    first = go(block(), 1, saver)
    again = go(block(), 1, saver)
    assert list(again) == ["bad", "good", "slow"]
    assert isinstance(again["bad"], Failed)
    assert isinstance(again["bad"].error, Boom)
    assert again["good"] == first["good"] == Ok("good(1)")
    assert isinstance(again["slow"], TimedOut)
    assert isinstance(again["slow"].error, TimeoutError)
    assert world.forget() == {"bad": 1, "good": 1}


def test_outcomes_of_branches_that_were_not_needed_are_recorded_as_well(saver):
    async def slow(value):
        await asyncio.sleep(60)

    world = World()
    block = lambda: parallel(
        node("slow")(slow), world.step("good"), world.step("never"), need=1, max_concurrent=2
    )
    first = go(block(), 1, saver)
    again = go(block(), 1, saver)
    assert first == again
    assert type(again["slow"]).__name__ == "Cancelled"
    assert again["never"] == NotStarted()


@KINDS
def test_failures_in_the_error_that_ended_the_run_are_tried_again(saver, kind):
    world = World()
    block = parallel(
        world.step("a", kind),
        world.step("b", kind),
        world.step("c", kind),
        on_error=tolerate(count=1),
        max_concurrent=1,  # "b" has ended when "c" fails
        name="block",
    )
    world.broken = {"a", "c"}
    error = breaks(block, 1, saver)
    assert error.branches == ("a", "c")
    world.forget()
    world.broken = set()
    assert go(block, 1, saver) == {name: Ok(f"{name}(1)") for name in "abc"}
    assert world.forget() == {"a": 1, "c": 1}


def test_a_failure_that_the_body_took_up_is_not_tried_again(saver):
    world = World()
    stop = [True]

    @entrypoint(checkpointer=saver)
    async def outer(x):
        try:
            found = await parallel(world.step("bad"), world.step("good"), max_concurrent=1)(x)
        except ParallelExecutionError as error:
            found = f"{error.branch}: {error.__cause__}"
        found = await world.step("next").ainvoke(found)
        if stop:
            raise KeyError("stop")
        return found

    world.broken = {"bad"}
    with pytest.raises(KeyError):
        within(10, lambda: outer.invoke(1, run_id="o"))
    world.broken = set()
    stop.clear()
    assert world.forget() == {"bad": 1, "next": 1}
    assert within(10, lambda: outer.invoke(1, run_id="o")) == "next(bad: bad)"
    assert world.forget() == {}


def test_a_block_that_was_out_of_time_goes_on_with_what_it_has(saver):
    world = World()
    slow = [True]

    async def sometimes(value):
        await asyncio.sleep(60 if slow else 0)
        return "at last"

    block = parallel(world.step("quick"), node("slow")(sometimes), timeout=0.3, name="block")
    breaks(block, 1, saver, ParallelTimeoutError)
    slow.clear()
    assert go(block, 1, saver) == {"quick": "quick(1)", "slow": "at last"}
    assert world.forget() == {"quick": 1}


def test_a_cancelled_run_goes_on(saver):
    world = World()
    begun = threading.Event()

    async def held(value):
        if not begun.is_set():
            begun.set()
            await asyncio.sleep(60)
        return "held"

    flow = world.step("a") >> parallel(world.step("b"), node("held")(held), max_concurrent=1)
    handle = flow.submit(1, run_id="r", checkpointer=saver)
    assert begun.wait(5)
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        handle.result(5)
    assert handle.status == "cancelled"
    assert go(flow, 1, saver) == {"b": "b(a(1))", "held": "held"}
    assert world.forget() == {"a": 1, "b": 1}


@pytest.mark.parametrize("make", ["parallel", "Sequence"])
def test_an_attempt_of_a_whole_workflow_keeps_what_the_attempt_before_has_recorded(saver, make):
    world = World()
    left = [2]

    def bad(value):
        world.ran["bad"] += 1
        if left[0]:
            left[0] -= 1
            raise Boom("not yet")
        return "good at last"

    retry = weft.RetryPolicy(initial_interval=0, jitter=False, retry_on=Exception)
    parts = [world.step("good"), node("bad")(bad)]
    if make == "parallel":
        flow = parallel(*parts, retry=retry, max_concurrent=1)
        assert go(flow, 1, saver) == {"good": "good(1)", "bad": "good at last"}
    else:
        assert go(Sequence(*parts, retry=retry, name="flow"), 1, saver) == "good at last"
    assert world.forget() == {"good": 1, "bad": 3}


def test_a_run_that_is_stopped_while_it_looks_up_its_records_leaves_nothing():
    looked_up, go_on = threading.Event(), threading.Event()

    class Slow(InMemorySaver):
        instant = False

        def records(self, *args, **options):
            if retried:
                looked_up.set()
                go_on.wait(5)
            return super().records(*args, **options)

    retried = []

    def bad(value):
        retried.append(value)
        raise Boom("no")

    retry = weft.RetryPolicy(initial_interval=0, jitter=False, retry_on=Exception)

    async def main():
        flow = parallel(node("bad")(bad), retry=retry)
        handle = flow.submit(1, run_id="r", checkpointer=Slow())
        await asyncio.to_thread(looked_up.wait, 5)
        handle.cancel()
        asyncio.get_running_loop().call_later(0.02, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await handle
        await asyncio.sleep(0)
        return [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]

    try:
        assert asyncio.run(main()) == []
    finally:
        go_on.set()


def test_asking_without_a_checkpointer_is_an_error_of_the_branch():
    with pytest.raises(ParallelExecutionError, match="checkpointer") as caught:
        parallel(asking("a"), World().step("b"))(1)
    assert caught.value.branch == "a"


# Decisions of blocks


@KINDS
@pytest.mark.parametrize("winner", ["one", "two", "three"])
def test_a_race_is_won_by_the_same_again(saver, kind, winner):
    world = World()
    order = iter([winner])

    def branch(name, seconds):
        return world.step(name, kind, seconds=seconds)

    def flow(fast):
        racers = (branch(name, 0 if name == fast else 0.15) for name in ("one", "two", "three"))
        return Sequence(race(*racers, optimization_enabled=False), world.step("last"), name="flow")

    world.broken = {"last"}
    breaks(flow(next(order)), 1, saver)
    world.broken = set()
    other = "one" if winner != "one" else "two"
    assert go(flow(other), 1, saver) == f"last({winner}(1))"
    assert world.ran[winner] == 1


def test_need_is_met_by_the_same_again(saver):
    world = World()
    parts = [world.step(f"n{n}", "async", seconds=0.01 * n) for n in range(4)]
    late = [world.step(f"n{n}", "async", seconds=0.01 * (4 - n)) for n in range(4)]
    flow = lambda steps: Sequence(
        parallel(*steps, need=2, name="block"),
        node("names")(lambda value: [name for name, each in value.items() if isinstance(each, Ok)]),
        world.step("last"),
        name="flow",
    )
    world.broken = {"last"}
    breaks(flow(parts), 1, saver)
    world.broken = set()
    assert go(flow(late), 1, saver) == "last(['n0', 'n1'])"
    assert world.ran["n0"] == world.ran["n1"] == 1


@KINDS
def test_the_choice_of_a_decision_is_recorded(saver, kind):
    world = World()
    choices = iter(["left", "right", "right"])

    def choose(value):
        world.ran["choose"] += 1
        return next(choices)

    async def achoose(value):
        return choose(value)

    def flow():
        decide = decision("choose", branches=[world.step("left"), world.step("right")])
        return Sequence(
            world.step("first"),
            decide(choose if kind == "sync" else achoose),
            world.step("last"),
            name="flow",
        )

    world.broken = {"last"}
    breaks(flow(), 1, saver)
    breaks(flow(), 1, saver)
    world.broken = set()
    assert go(flow(), 1, saver) == "last(left(first(1)))"
    assert world.forget() == {"first": 1, "choose": 1, "left": 1, "last": 3}


def test_a_decision_that_returns_a_step_is_recorded_by_its_name(saver):
    world = World()
    left, right = world.step("left"), world.step("right")
    choices = iter([left, right])

    def flow():
        @decision(branches=[left, right])
        def choose(value):
            world.ran["choose"] += 1
            return next(choices)

        return Sequence(choose, world.step("last"), name="flow")

    world.broken = {"last"}
    breaks(flow(), 1, saver)
    world.broken = set()
    assert go(flow(), 1, saver) == "last(left(1))"
    assert world.forget() == {"choose": 1, "left": 1, "last": 2}


def test_a_loop_goes_on_in_the_round_in_which_it_was(saver):
    world = World()
    rounds = []
    stop = [True]

    @node("step")
    def step(value):
        rounds.append(value)
        if value == 3 and stop:
            stop.clear()
            raise Boom("in the fourth round")
        return value + 1

    @decision
    def again(value):
        world.ran["again"] += 1
        return "step" if value < 6 else "end"

    flow = Sequence(step, again, world.step("end"), name="flow")
    breaks(flow, 0, saver)
    assert rounds == [0, 1, 2, 3]
    assert world.forget() == {"again": 3}
    assert go(flow, 0, saver) == "end(6)"
    assert rounds == [0, 1, 2, 3, 3, 4, 5]
    assert world.forget() == {"again": 3, "end": 1}


def test_a_loop_of_equal_values_is_told_apart_by_its_rounds(saver):
    """Every round gives the same value to the same step: the first result must not stand for all of them."""
    given = iter(range(100))
    stop = [True]
    seen = []

    @node("poll")
    def poll():
        return next(given)

    @decision
    def ready(value):
        seen.append(value)
        return "done" if value == 4 else "poll"

    @node("done")
    def done(value):
        if stop:
            stop.clear()
            raise Boom("stop")
        return value

    flow = poll >> ready >> done
    breaks(flow, 0, saver)
    assert go(flow, 0, saver) == 4
    assert seen == [0, 1, 2, 3, 4]
    assert next(given) == 5


# Questions


def asking(name, kind="sync", log=None):
    def body(value):
        answer = interrupt(f"{name}?")
        if log is not None:
            log.append((name, answer))
        return f"{name}={answer}"

    async def abody(value):
        await asyncio.sleep(0)
        return body(value)

    return node(name)(body if kind == "sync" else abody)


def questions(found):
    return {each.value: each.id for each in found["__interrupt__"]}


@KINDS
def test_questions_in_branches_may_be_answered_in_any_order(saver, kind, monkeypatch):
    """More questions than cores: who waits for an answer needs none."""
    monkeypatch.setattr("weft.machine.resources", lambda: Resources(cores=2, memory=2**33))
    for number, order in enumerate(itertools.permutations("abc")):
        world = World()
        flow = Sequence(
            parallel(*(asking(name, kind) for name in "abc"), world.step("other", kind), name="block"),
            world.step("last", give="end"),
            name="flow",
        )
        options = {"checkpointer": saver, "thread_id": f"t{number}"}
        found = within(10, lambda: flow.invoke(1, **options))
        assert [each.value for each in found["__interrupt__"]] == ["a?", "b?", "c?"]
        for at, name in enumerate(order):
            ids = questions(found)
            assert set(ids) == {f"{each}?" for each in order[at:]}
            found = within(
                10, lambda: flow.invoke(Command(resume={ids[f"{name}?"]: name.upper()}), **options)
            )
        assert found == "end"
        assert world.forget() == {"other": 1, "last": 1}


def test_all_questions_may_be_answered_at_once(saver):
    block = parallel(asking("a"), asking("b", "async"), name="block")
    options = {"checkpointer": saver, "thread_id": "t"}
    found = block.invoke(1, **options)
    ids = questions(found)
    result = block.invoke(Command(resume={ids["a?"]: 1, ids["b?"]: 2}), **options)
    assert result == {"a": "a=1", "b": "b=2"}


def test_a_question_in_a_sequence_in_a_block(saver):
    world = World()
    flow = parallel(
        Sequence(world.step("before"), asking("q"), world.step("after"), name="flow"),
        world.step("other"),
        name="block",
    )
    options = {"checkpointer": saver, "thread_id": "t"}
    found = flow.invoke(1, **options)
    assert world.forget() == {"before": 1, "other": 1}
    assert list(questions(found)) == ["q?"]
    assert flow.invoke(Command(resume="yes"), **options) == {
        "flow": "after(q=yes)",
        "other": "other(1)",
    }
    assert world.forget() == {"after": 1}


@pytest.mark.parametrize("policy", ["fail_fast", "collect", "race", "tolerate", "need"])
def test_a_question_is_no_failure_for_any_policy(saver, policy):
    options = {
        "need": {"need": 2},
        "tolerate": {"on_error": tolerate(count=0)},
    }.get(policy, {"on_error": policy})
    block = parallel(asking("a"), asking("b"), name="block", **options)
    found = block.invoke(1, checkpointer=saver, thread_id="t")
    assert sorted(questions(found)) == ["a?", "b?"]
    answers = dict.fromkeys(questions(found).values(), "yes")
    value = block.invoke(Command(resume=answers), checkpointer=saver, thread_id="t")
    if policy == "race":
        assert value in ("a=yes", "b=yes")
    elif policy == "fail_fast":
        assert value == {"a": "a=yes", "b": "b=yes"}
    else:
        assert value == {"a": Ok("a=yes"), "b": Ok("b=yes")}


def test_a_race_is_not_held_up_by_a_question(saver):
    assert race(asking("a"), World().step("quick", seconds=0.02)).invoke(
        1, checkpointer=saver, thread_id="t"
    ) == ("quick(1)")


def test_a_failure_beside_a_question_fails_the_block(saver):
    world = World()
    world.broken = {"bad"}
    block = parallel(asking("a"), world.step("bad", seconds=0.03), name="block")
    breaks(block, 1, saver)
    world.broken = set()
    found = go(block, 1, saver)
    assert list(questions(found)) == ["a?"]
    assert go(block, Command(resume="yes"), saver) == {"a": "a=yes", "bad": "bad(1)"}


def test_a_decision_may_ask(saver):
    world = World()

    @decision(branches=[world.step("left"), world.step("right")])
    def choose(value):
        return interrupt("which way?")

    flow = world.step("first") >> choose >> world.step("last")
    options = {"checkpointer": saver, "thread_id": "t"}
    assert list(questions(flow.invoke(1, **options))) == ["which way?"]
    assert flow.invoke(Command(resume="right"), **options) == "last(right(first(1)))"
    assert world.forget() == {"first": 1, "right": 1, "last": 1}


def test_the_others_go_on_while_a_question_is_open_and_it_may_be_answered_meanwhile(saver):
    go_on = threading.Event()

    def slow(value):
        assert go_on.wait(10)
        return "slow"

    block = parallel(asking("a"), node("slow")(slow), optimization_enabled=False)
    handle = block.submit(1, checkpointer=saver, thread_id="t")
    question = next(event for event in handle.events() if isinstance(event, events.QuestionAsked))
    handle.answer({question.question_id: "now"})
    go_on.set()
    assert handle.result(10) == {"a": "a=now", "slow": "slow"}


def test_questions_with_a_width_of_one(saver):
    """An open question holds its place in the block, and none of the limits of the run."""
    block = parallel(asking("a"), asking("b"), asking("c"), name="block", optimization_enabled=False)
    options = {"checkpointer": saver, "thread_id": "t", "max_concurrent": 1}
    found = within(10, lambda: block.invoke(1, **options))
    ids = questions(found)
    assert sorted(ids) == ["a?", "b?", "c?"]
    value = within(10, lambda: block.invoke(Command(resume=dict.fromkeys(ids.values(), "x")), **options))
    assert value == {name: f"{name}=x" for name in "abc"}


def test_questions_in_a_block_of_width_one_come_one_after_the_other(saver):
    block = parallel(asking("a"), asking("b"), name="block", max_concurrent=1)
    options = {"checkpointer": saver, "thread_id": "t"}
    found = within(10, lambda: block.invoke(1, **options))
    assert list(questions(found)) == ["a?"]
    found = within(10, lambda: block.invoke(Command(resume=1), **options))
    assert list(questions(found)) == ["b?"]
    assert within(10, lambda: block.invoke(Command(resume=2), **options)) == {"a": "a=1", "b": "b=2"}


# Anything, at any moment


class Wild:
    """A random workflow whose leaves fail now and then; what it gives without failures is known."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.luck = random.Random(seed + 1)
        self.done = Counter()
        self.count = 0
        self.unlucky = 0.0

    def leaf(self):
        self.count += 1
        name = f"n{self.count}"
        seconds = self.rng.choice([0, 0, 1, 2])

        async def body(value):
            await asyncio.sleep(seconds)
            if self.luck.random() < self.unlucky:
                raise Boom(name)
            self.done[name] += 1
            return f"{name}({value!s:.30})"

        return node(name)(body)

    def grow(self, depth):
        if depth == 0 or self.rng.random() < 0.2:
            return self.leaf()
        parts = [self.grow(depth - 1) for _ in range(self.rng.randint(1, 3))]
        self.count += 1
        name = f"w{self.count}"
        kind = self.rng.random()
        if kind < 0.4:
            return Sequence(*parts, name=name)
        if kind < 0.6:
            inner = parts[0]

            async def body(value):
                return [await inner.ainvoke(value), await inner.ainvoke(value)]

            return node(name)(body)
        return parallel(*parts, name=name, max_concurrent=self.rng.choice([None, 1, 2]))


@pytest.mark.parametrize("durability", ["sync", "async"])
def test_random_workflows_that_fail_at_random_lose_nothing_and_do_nothing_twice(durability):
    rng = seeded(f"wild, {durability}")
    for _ in range(40):
        seed = rng.randrange(2**32)
        plain = Wild(seed)
        workflow = plain.grow(3)
        wanted = run(lambda: workflow.ainvoke("x"), seed=seed)
        once = dict(plain.done)

        wild = Wild(seed)
        workflow = wild.grow(3)
        wild.unlucky = 0.25
        saver = InMemorySaver()
        resumes = 0
        while True:
            try:
                value = run(
                    lambda: workflow.ainvoke("x", run_id="r", checkpointer=saver, durability=durability),
                    seed=seed + resumes,
                )
                break
            except (Boom, ParallelExecutionError):
                resumes += 1
                assert resumes < 500
        assert value == wanted, f"seed {seed}"
        # Those that had ended when a sibling failed were cancelled siblings at worst: they may run again. None of
        # them had been seen by anybody.
        assert set(wild.done) == set(once)
        for name, count in once.items():
            assert wild.done[name] >= count, (seed, name)
        before = dict(wild.done)
        again = run(lambda: workflow.ainvoke("x", run_id="r", checkpointer=saver), seed=seed)
        assert again == wanted
        assert wild.done == before


def test_failures_of_one_step_at_a_time_never_repeat_a_finished_one():
    """As above, with one leaf at a time at work: then what ran is exactly what is wanted, once each."""
    rng = seeded("one at a time")
    for _ in range(25):
        seed = rng.randrange(2**32)
        plain = Wild(seed)
        workflow = plain.grow(3)
        wanted = run(lambda: workflow.ainvoke("x"), seed=seed)
        wild = Wild(seed)
        workflow = wild.grow(3)
        wild.unlucky = 0.3
        saver = InMemorySaver()
        for resumes in range(500):
            try:
                value = run(
                    lambda: workflow.ainvoke("x", run_id="r", checkpointer=saver, max_concurrent=1),
                    seed=resumes,
                )
                break
            except (Boom, ParallelExecutionError):
                continue
        assert value == wanted, f"seed {seed}"
        assert wild.done == plain.done, f"seed {seed}"


# Killed at every moment: a store that is gone after some commits


class Mortal(InMemorySaver):
    """Takes some commits and no more, until it is revived; what it has taken stays."""

    instant = False  # as a store on a disk: what is written behind the run may be lost

    def __init__(self):
        super().__init__()
        self.left = 0

    def commit(self, writes):
        time.sleep(0.0003)  # of real time, in which the loop goes on if it does not wait
        if not self.left:
            raise StoreError("gone")
        self.left -= 1
        return super().commit(writes)


@KINDS
@pytest.mark.parametrize("options", [{"on_error": "race"}, {"need": 1}], ids=["race", "need"])
@pytest.mark.parametrize("width", [None, 2])
def test_a_block_that_has_its_outcome_starts_nothing_before_it_says_so(kind, options, width):
    """Killed when the winner was recorded, and the block was not: it is decided by what is recorded alone."""
    begun = []

    def branch(name, seconds):
        async def body(value):
            begun.append(name)
            await asyncio.sleep(seconds)
            return name

        def sync_body(value):
            begun.append(name)
            sleep(seconds)
            return name

        return node(name)(body if kind == "async" else sync_body)

    saver = Mortal()
    seconds = iter([9, 3, 9, 9, 0, 0, 0, 0])  # on the resume all would be quick

    async def main():
        branches = [branch(name, next(seconds)) for name in ("a", "b", "c", "d")]
        block = parallel(*branches, max_concurrent=width, name="block", **options)
        return await block.ainvoke(1, run_id="r", checkpointer=saver)

    saver.left = 1
    with pytest.raises(StoreError):
        run(main)
    assert begun == (["a", "b", "c", "d"] if width is None else ["a", "b"])
    begun.clear()
    saver.left = 20
    found = run(main)
    assert begun == []
    assert found == "b" if "on_error" in options else found["b"] == Ok("b")


@KINDS
@pytest.mark.parametrize("options", [{"on_error": "race"}, {"need": 1}], ids=["race", "need"])
def test_a_recorded_winner_goes_before_a_branch_that_is_new(kind, options):
    """Even where the new one is declared first and only one may run at a time."""
    world = World()
    saver = Mortal()
    old, new = world.step("old", kind), world.step("new", kind)

    def go_on(*branches):
        block = parallel(*branches, max_concurrent=1, name="block", **options)
        return run(lambda: block.ainvoke(1, run_id="r", checkpointer=saver))

    saver.left = 1
    with pytest.raises(StoreError):
        go_on(old)
    assert world.forget() == {"old": 1}
    saver.left = 20
    found = go_on(new, old)
    assert world.forget() == {}
    if "need" in options:
        assert found == {"new": NotStarted(), "old": Ok("old(1)")}
    else:
        assert found == "old(1)"


class Seen:
    """A random workflow in which every result is new, so that a step that is run again with another value is seen."""

    def __init__(self, seed, unit):
        self.unit = unit  # seconds
        self.rng = random.Random(seed)
        self.luck = random.Random(seed + 1)
        self.given = {}
        self.ran = Counter()
        self.count = 0

    def leaf(self):
        self.count += 1
        name = f"n{self.count}"

        async def body(value):
            self.given.setdefault(name, set()).add(str(value))
            await asyncio.sleep(self.luck.choice([0, 1, 2, 3]) * self.unit)
            self.ran[name] += 1
            if name.endswith("7"):
                raise Boom(f"{name}.{self.ran[name]}")
            return f"{name}.{self.ran[name]}"

        def sync_body(value):
            self.given.setdefault(name, set()).add(str(value))
            sleep(self.luck.choice([0, 1, 2, 3]) * self.unit)
            self.ran[name] += 1
            return f"{name}.{self.ran[name]}"

        return node(name)(self.rng.choice([body, sync_body]))

    def grow(self, depth):
        if depth == 0:
            return self.leaf()
        kind = self.rng.random()
        parts = [self.grow(depth - 1) for _ in range(self.rng.randint(2, 3))]
        self.count += 1
        name = f"w{self.count}"
        if kind < 0.4:
            return Sequence(*parts, name=name)
        if kind < 0.6:
            inner, follow = parts[:2]

            async def body(value):
                try:
                    found = await inner.ainvoke(value)
                except (Boom, ParallelExecutionError) as error:
                    found = f"{error!s:.40}"
                return await follow.ainvoke(found)

            return node(name)(body)
        if kind < 0.7:
            choose = decision(name, branches=dict(enumerate_names(parts)))
            return choose(lambda value: self.luck.choice(["p0", "p1"]))
        policy = self.rng.choice(
            [{}, {"on_error": "race"}, {"on_error": "collect"}, {"need": 1}, {"on_error": tolerate(count=1)}]
        )
        return parallel(*parts, name=name, max_concurrent=self.rng.choice([None, 1, 2]), **policy)


def enumerate_names(parts):
    return ((f"p{at}", part) for at, part in enumerate(parts))


def killed_again_and_again(seed, *, is_virtual, **options):
    """How often it had to be resumed; every step has seen one value only."""
    rng = random.Random(seed)
    whole = Seen(seed, unit=1 if is_virtual else 0.0003)
    workflow = whole.grow(3) >> whole.leaf() >> whole.leaf()
    saver = Mortal()
    for attempt in range(200):
        saver.left = rng.choice([1, 1, 2, 2, 3, 5, 20])

        async def main():
            await workflow.ainvoke("x", run_id="r", checkpointer=saver, **options)

        with suppress(StoreError, Boom, ParallelExecutionError):
            if is_virtual:
                run(main, seed=seed + attempt)
            else:
                asyncio.run(main())
        for name, values in whole.given.items():
            assert len(values) == 1, (name, values)
        if saver.find("r").status is not RunStatus.RUNNING:
            return attempt
    raise AssertionError("it never ends")


@pytest.mark.parametrize("is_virtual", [True, False], ids=["virtual time", "real time"])
def test_whatever_moment_it_is_killed_in_no_step_ever_sees_another_value_than_before(is_virtual):
    """What was given to a step once was durable, and so is every decision on the way there.

    In virtual time a commit takes none, and one seed gives one order. In real time the loop goes on meanwhile.
    """
    rng = seeded("killed at every commit")
    resumed = 0
    for _ in range(60 if is_virtual else 25):
        seed = rng.randrange(2**32)
        try:
            resumed += killed_again_and_again(seed, is_virtual=is_virtual)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert resumed > 50


def test_the_test_before_would_see_a_result_that_can_be_taken_back():
    """The same search with a durability that does not promise it."""
    rng = seeded("killed, and nothing promised")
    with pytest.raises(AssertionError, match="n"):
        for _ in range(200):
            killed_again_and_again(rng.randrange(2**32), is_virtual=False, durability="async")


# Killed


KILLED = """
    import asyncio, os, sys, time
    from weft import Sequence, SqliteSaver, decision, node, parallel, race

    def effect(word):
        fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{word}\\n".encode()); os.close(fd)

    def step(name, seconds=0.01):
        async def body(value):
            await asyncio.sleep(seconds)
            effect(name)
            return value + 1
        return node(name)(body)

    def sync_step(name):
        def body(value):
            time.sleep(0.01)
            effect(name)
            return value + 1
        return node(name)(body)

    def racer(name):
        async def body(value):
            await asyncio.sleep(0.01)
            effect(name)
            return name
        return node(name)(body)

    @node("total")
    def total(value):
        effect("total")
        return sum(value.values())

    @decision
    def again(value):
        effect(f"again{value}")
        return "block" if value < 600 else "choose"

    @node("choose")
    async def choose(value):
        winner = await race(*(racer(f"racer{n}") for n in range(3)))(value)
        effect(f"won_{winner}")
        await step("after").ainvoke(value)
        effect(f"still_{winner}")
        return value, winner

    block = parallel(
        *(step(f"a{n}") for n in range(8)),
        *(sync_step(f"s{n}") >> step(f"t{n}") for n in range(4)),
        name="block", max_concurrent=4,
    )
    flow = Sequence(block, total, again, choose, name="flow")

    if __name__ == "__main__":
        print(flow.invoke(1, run_id="r", checkpointer=SqliteSaver("runs.db")))
"""


def test_a_sequence_of_blocks_goes_on_after_kill_9(tmp_path):
    program = Program(tmp_path, KILLED)
    whole = program.run()
    assert whole.returncode == 0, whole.stderr
    wanted = program.effects()
    value = whole.stdout.split(",")[0]
    program.forget()
    rng = seeded("kills of a sequence")
    kills = 0
    for _ in range(3):
        at = rng.randrange(1, sum(wanted.values()))
        kills += kill_at_effect(program.start(), program.effects_path, at)
    done = program.run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(",")[0] == value
    effects = program.effects()
    for name, count in wanted.items():
        if not name.startswith(("racer", "won", "still")):
            assert count <= effects[name] <= count + kills, name  # only what was in flight ran twice
    winner = {name.removeprefix("won_") for name in effects if name.startswith("won")}
    assert len(winner) == 1 or kills
    still = {name.removeprefix("still_") for name in effects if name.startswith("still")}
    assert len(still) == 1  # what was seen and recorded after is what was seen at the end
    assert winner >= still
    again = program.run()
    assert again.stdout == done.stdout
    assert program.effects() == effects


def test_a_task_in_a_block_in_a_task(saver):
    """Every style in every other, with one thing broken at a time."""
    world = World()

    @task
    async def inner(value):
        return (await world.step("leaf", "async").ainvoke(value)).upper()

    @entrypoint()
    def sub(value):
        return inner(value).result()

    @task
    def outer(value):
        return parallel(sub, world.step("other"), name="block", max_concurrent=1)(value)

    @entrypoint(checkpointer=saver)
    def whole(value):
        return world.step("last", give="end").invoke(outer(value).result())

    ran = []
    for broken in ("leaf", "other", "last"):
        world.broken = {broken}
        with pytest.raises((Boom, ParallelExecutionError)):
            within(10, lambda: whole.invoke(1, run_id="w"))
        ran.append(world.forget())
    world.broken = set()
    assert within(10, lambda: whole.invoke(1, run_id="w")) == "end"
    ran.append(world.forget())
    assert ran == [{"leaf": 1}, {"leaf": 1, "other": 1}, {"other": 1, "last": 1}, {"last": 1}]
