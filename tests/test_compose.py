"""The compose style: how workflows are put together, what flows through them, and how they are asked to run."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import math
import operator
import threading
import weakref

import pytest
from leftovers import nothing_left, within

import weft
from weft import (
    DefinitionError,
    FunctionNode,
    Parallel,
    ParallelExecutionError,
    Sequence,
    decision,
    entrypoint,
    node,
    parallel,
    race,
    task,
)
from weft.core.sizing import ESTIMATED_MEMORY, GROWTH_AFTER, MEMORY_SHARE, Resources
from weft.engine import events
from weft.testing import sleep, virtual_clock

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


def named(name, kind="sync"):
    def body(value):
        return f"{name}({value})"

    async def abody(value):
        await asyncio.sleep(0)
        return body(value)

    return node(name)(body if kind == "sync" else abody)


A, B, C, D = (named(name) for name in "ABCD")


def double(value):
    return value * 2


async def adouble(value):
    return value * 2


# Sequences


def keys(flow):
    return [step.key for step in flow.steps]


def test_the_arrow_makes_a_sequence_of_anything_that_runs():
    @task
    def fetch(value):
        return value + 1

    @entrypoint()
    def sub(value):
        return value * 10

    flow = A >> double >> adouble >> fetch.func >> parallel(B, C) >> D
    assert isinstance(flow, Sequence)
    assert keys(flow) == ["A", "double", "adouble", "fetch", "parallel", "D"]
    assert (node("one")(lambda value: 1) >> fetch >> sub >> fetch)(0) == 21


def test_functions_may_be_on_either_side():
    assert (double >> A)(1) == "A(2)"
    assert (A >> double)(1) == "A(1)A(1)"
    assert (double >> A >> double)(1) == "A(2)A(2)"
    assert (adouble >> A >> adouble)(1) == "A(2)A(2)"
    assert (functools.partial(operator.add, 1) >> A)(1) == "A(2)"
    assert (len >> A)([1, 2]) == "A(2)"
    assert (A >> str.upper)("x") == "A(X)"
    assert (A >> (lambda value: value[0]))(1) == "A"


def test_methods_and_callable_objects_are_steps():
    class Adder:
        def __init__(self, amount):
            self.amount = amount

        def add(self, value):
            return value + self.amount

        async def slowly(self, value):
            return value + self.amount

        def __call__(self, value):
            return value - self.amount

    adder = Adder(5)
    flow = Sequence(adder.add, adder.slowly, adder)
    assert keys(flow) == ["add", "slowly", "Adder"]
    assert flow(1) == 6


def test_arrows_are_flat_and_named_sequences_are_one_step():
    assert keys((A >> B) >> (C >> D)) == ["A", "B", "C", "D"]
    assert keys(Sequence(A, Sequence(B, C), D)) == ["A", "B", "C", "D"]
    inner = Sequence(B, C, name="inner")
    assert keys(A >> inner >> D) == ["A", "inner", "D"]
    assert (A >> inner >> D)(1) == "D(C(B(A(1))))"
    for kept in (
        Sequence(B, C, max_steps=5),
        Sequence(B, C, timeout=5),
        Sequence(B, C, retry=2),
        Sequence(B, C, total=3),
    ):
        assert keys(A >> kept >> D) == ["A", "C", "D"]


def test_an_arrow_leaves_its_sides_as_they_were():
    first, second = A >> B, C >> D
    third = first >> second
    assert (keys(first), keys(second), keys(third)) == (["A", "B"], ["C", "D"], ["A", "B", "C", "D"])
    assert first(1) == "B(A(1))"


def test_a_long_sequence_needs_no_deep_stack():
    async def plus(value):
        return value + 1

    steps = [plus] * 3000
    assert within(60, lambda: Sequence(*steps)(0)) == 3000
    flow = node("first")(plus)
    for n in range(300):
        flow = flow >> plus
    assert flow(0) == 301


def test_a_thousand_blocks_in_each_other_need_no_deep_stack():
    flow = node("leaf")(lambda value: value)
    for n in range(1000):
        flow = parallel(flow, name=f"b{n}") if n % 2 else Sequence(flow, name=f"s{n}")
    with nothing_left():
        found = within(60, lambda: flow(7))
    depth = 0
    while isinstance(found, dict):
        (found,) = found.values()
        depth += 1
    assert (found, depth) == (7, 500)


def test_a_failure_under_a_thousand_blocks_reaches_the_top():
    def bad(value):
        raise ValueError("deep")

    flow = node("leaf")(bad)
    for n in range(300):
        flow = Sequence(flow, name=f"s{n}")
    with nothing_left(), pytest.raises(ValueError, match="deep"):
        within(60, lambda: flow(7))


def test_none_is_a_value_like_any_other():
    flow = node("nothing")(lambda value: None) >> node("look")(lambda value: value is None)
    assert flow(1) is True
    assert parallel(node("nothing")(lambda value: None), A)(1) == {"nothing": None, "A": "A(1)"}
    assert (A >> double)(None) == "A(None)A(None)"


def test_names_of_a_sequence():
    assert (A >> B).key == "B"
    assert Sequence(A, B, name="flow").key == "flow"
    assert "A >> B" in repr(A >> B)
    assert "flow" in repr(Sequence(A, B, name="flow"))


# Blocks


def test_a_branchs_key_is_its_own_name_else_that_of_its_last_step():
    @task
    def fetch(value):
        return 1

    @entrypoint()
    def sub(value):
        return 2

    block = parallel(
        A,
        double,
        B >> C,
        Sequence(A, B, name="flow"),
        parallel(A, B, name="inner"),
        parallel(A),
        race(A, B),
        fetch,
        sub,
        node("given")(double),
        decision("choose", branches=[D])(lambda value: "D"),
    )
    wanted = ["A", "double", "C", "flow", "inner", "parallel", "race", "fetch", "sub", "given", "choose"]
    assert list(block.branches) == wanted
    assert list(block(1)) == wanted
    assert block(1)["choose"] == "D(1)"


def test_a_list_of_branches_made_by_a_comprehension():
    block = parallel(*[node(f"n{n}")(lambda value, n=n: value + n) for n in range(200)])
    assert block(1) == {f"n{n}": 1 + n for n in range(200)}


@KINDS
def test_results_are_in_declared_order_whatever_ends_first(kind):
    def branch(n):
        async def body(value):
            await asyncio.sleep(10 - n)
            return n

        def sync_body(value):
            sleep(10 - n)
            return n

        return node(f"n{n}")(body if kind == "async" else sync_body)

    with virtual_clock() as clock:
        found = parallel(*(branch(n) for n in range(10)), optimization_enabled=False)(1)
        assert clock.now == 10
    assert list(found.items()) == [(f"n{n}", n) for n in range(10)]


def test_tasks_and_entrypoints_are_branches_and_steps():
    @task(retry_policy=weft.RetryPolicy(max_attempts=2))
    async def fetch(value):
        return value + 1

    @task
    def collect(value):
        return sum(value.values())

    @entrypoint()
    async def sub(value):
        return await fetch(value) * 10

    @entrypoint()
    def last(value):
        return fetch(value).result()

    flow = fetch >> parallel(fetch, sub) >> collect >> last
    with nothing_left():
        assert flow(1) == 3 + 30 + 1
        assert asyncio.run(as_coroutine(flow.ainvoke(1))) == 34


async def as_coroutine(awaitable):
    return await awaitable


def test_what_returns_something_to_await_is_awaited():
    async def later(value):
        await asyncio.sleep(0.001)
        return value + 1

    def sync(value):
        return later(value)

    assert (node("x")(sync) >> node("y")(sync))(1) == 3
    assert parallel(node("x")(sync))(1) == {"x": 2}


def test_every_branch_gets_the_very_value():
    """It is not copied: who changes it, changes it for all."""
    value = object()
    seen = []
    parallel(*(node(f"n{n}")(seen.append) for n in range(3)))(value)
    assert seen == [value] * 3


def test_parameters_are_taken_from_mappings_and_lists():
    def one(a: int):
        return ("one", a)

    def whole(data: dict):
        return ("whole", data)

    def untyped(data):
        return ("untyped", data)

    def two(a, b=5):
        return ("two", a if isinstance(a, int) else "whole", b)

    def pair(a, b):
        return ("pair", a, b)

    def keywords(*, a, b):
        return ("keywords", a, b)

    def nothing():
        return "nothing"

    given = {"a": 1, "b": 2}
    found = parallel(one, whole, untyped, two, pair, keywords, nothing)(given)
    assert found == {
        "one": ("one", 1),
        "whole": ("whole", given),
        "untyped": ("untyped", given),
        "two": ("two", "whole", 5),
        "pair": ("pair", 1, 2),
        "keywords": ("keywords", 1, 2),
        "nothing": "nothing",
    }
    assert (node("x")(lambda value: [1, 2]) >> pair)(0) == ("pair", 1, 2)


def test_a_block_given_a_dict_of_blocks_hands_each_on_by_name():
    """The dict of one block is what the next binds its parameters from."""

    def left(value):
        return value + 1

    def right(value):
        return value * 10

    def combine(left, right):
        return left + right

    assert (parallel(left, right) >> combine)(3) == 34


# node


def test_the_ways_of_making_a_node():
    @node
    def plain(value):
        return value

    @node("given")
    def first(value):
        return value

    @node(name="keyword", timeout=5, retry=2)
    def second(value):
        return value

    third = node("lambda")(lambda value: value)
    fourth = node()(plain.func)
    assert [each.key for each in (plain, first, second, third, fourth)] == [
        "plain",
        "given",
        "keyword",
        "lambda",
        "plain",
    ]
    assert all(isinstance(each, FunctionNode) for each in (plain, first, second, third, fourth))
    assert all(each.invoke(4) == 4 for each in (plain, first, second, third, fourth))


def test_a_node_called_with_arguments_is_its_function_and_without_is_itself():
    ran = []

    @node("x")
    def add(a, b=1):
        ran.append((a, b))
        return a + b

    assert add(1) == 2
    assert add(1, b=4) == 5
    assert add() is add
    assert ran == [(1, 1), (1, 4)]
    assert add.func(2) == 3
    assert add.__name__ == "x"
    assert add.__wrapped__ is add.func
    with pytest.raises(TypeError):
        add(1, 2, 3)


def test_a_node_keeps_the_docstring_and_is_no_other_than_before():
    @node
    def documented(value):
        """What it does."""

    assert documented.__doc__ == "What it does."
    assert documented.__module__ == __name__


def test_nodes_run_in_a_body_are_part_of_its_run():
    ids = []

    @node
    def inner(value):
        ids.append(weft.call_id())
        return value

    @entrypoint()
    def outer(value):
        inner.invoke(value)
        inner.invoke(value)
        return weft.call_id()

    whole = outer.invoke(1)
    assert len(set(ids)) == 2
    assert all(each.startswith(whole) for each in ids)


# Ways of asking


def ways():
    async def ainvoke(flow, value):
        return await flow.ainvoke(value)

    async def submitted(flow, value):
        return await flow.submit(value)

    async def streamed(flow, value):
        return [chunk async for chunk in flow.astream(value)][-1]

    def in_thread(flow, value):
        found = []
        thread = threading.Thread(target=lambda: found.append(flow.invoke(value)))
        thread.start()
        thread.join(10)
        return found[0]

    def in_task_of_async_entrypoint(flow, value):
        @task
        def inner(x):
            return flow(x)

        @entrypoint()
        async def outer(x):
            return await inner(x)

        return outer.invoke(value)

    def in_sync_entrypoint(flow, value):
        @entrypoint()
        def outer(x):
            return flow(x)

        return outer.invoke(value)

    def awaited_in_async_entrypoint(flow, value):
        @entrypoint()
        async def outer(x):
            return await flow(x)

        return outer.invoke(value)

    def gathered_in_async_entrypoint(flow, value):
        @entrypoint()
        async def outer(x):
            first, second = await asyncio.gather(flow(x), flow.ainvoke(x))
            assert first == second
            return first

        return outer.invoke(value)

    return {
        "call": lambda flow, value: flow(value),
        "invoke": lambda flow, value: flow.invoke(value),
        "ainvoke": lambda flow, value: asyncio.run(ainvoke(flow, value)),
        "submit": lambda flow, value: flow.submit(value).result(10),
        "submit on a loop": lambda flow, value: asyncio.run(submitted(flow, value)),
        "map": lambda flow, value: flow.map([value])[0],
        "thread": in_thread,
        "sync entrypoint": in_sync_entrypoint,
        "async entrypoint": awaited_in_async_entrypoint,
        "gather": gathered_in_async_entrypoint,
        "task": in_task_of_async_entrypoint,
        "branch": lambda flow, value: next(iter(parallel(flow)(value).values())),
        "step": lambda flow, value: Sequence(lambda x: x, flow)(value),
    }


@pytest.mark.parametrize("way", ways().values(), ids=ways())
@KINDS
def test_every_way_of_asking_gives_the_same(way, kind):
    a, b, c, d = (named(name, kind) for name in "ABCD")
    flow = a >> parallel(b, c >> d, parallel(a, b, name="inner")) >> node("end")(list)
    wanted = ["B", "D", "inner"]
    with nothing_left():
        assert within(10, lambda: way(flow, 1)) == wanted


def test_a_call_in_a_running_loop_outside_a_run_works_like_invoke():
    async def main():
        return (A >> B)(1)

    assert asyncio.run(main()) == "B(A(1))"


def test_streams_tell_each_step_as_it_ends():
    flow = A >> parallel(B, C, name="block", max_concurrent=1) >> node("end")(lambda value: "end")
    chunks = list(flow.stream(1))
    assert chunks[:3] == [{"A": "A(1)"}, {"B": "B(A(1))"}, {"C": "C(A(1))"}]
    assert {"block": {"B": "B(A(1))", "C": "C(A(1))"}} in chunks
    assert {"end": "end"} in chunks


def test_map_runs_a_workflow_for_every_item():
    flow = parallel(A, B >> C)
    assert flow.map(range(3)) == [{"A": f"A({n})", "C": f"C(B({n}))"} for n in range(3)]


def test_sync_steps_of_a_sync_caller_run_in_its_thread():
    """So that what is bound to a thread, such as a database connection, can be used by them."""
    threads = []
    (double >> node("look")(lambda value: threads.append(threading.get_ident())) >> A)(1)
    assert threads == [threading.get_ident()]


# Contexts


VARIABLE = contextvars.ContextVar("variable", default="unset")


@KINDS
def test_each_branch_has_a_copy_of_the_callers_context(kind):
    seen = {}

    def branch(name):
        def body(value):
            before = VARIABLE.get()
            VARIABLE.set(name)
            seen[name] = before
            return VARIABLE.get()

        async def abody(value):
            found = body(value)
            await asyncio.sleep(0)
            assert VARIABLE.get() == name
            return found

        return node(name)(abody if kind == "async" else body)

    flow = (
        branch("first")
        >> parallel(branch("a"), branch("b") >> branch("c"), parallel(branch("d"), name="in"), name="block")
        >> branch("last")
    )

    def from_sync():
        VARIABLE.set("caller")
        flow(1)
        return VARIABLE.get()

    async def from_a_loop():
        VARIABLE.set("caller")
        await flow.ainvoke(1)
        return VARIABLE.get()

    for ask in (from_sync, lambda: asyncio.run(from_a_loop())):
        seen.clear()
        assert contextvars.copy_context().run(ask) == "caller"
        assert seen == dict.fromkeys(["first", "a", "b", "c", "d", "last"], "caller")


@KINDS
def test_a_block_in_a_body_sees_what_the_body_has_set(kind):
    seen = []

    @node
    def look(value):
        seen.append(VARIABLE.get())

    block = parallel(look, node("other")(look.func))

    def body(value):
        VARIABLE.set("body")
        block(value)

    async def abody(value):
        VARIABLE.set("body")
        await block(value)

    Sequence(node("body")(abody if kind == "async" else body), node("after")(look.func))(1)
    assert seen == ["body", "body", "unset"]


def test_a_retry_begins_with_the_callers_context_again():
    seen = []

    @node(retry=weft.RetryPolicy(initial_interval=0, jitter=False, retry_on=Exception))
    async def flaky(value):
        seen.append(VARIABLE.get())
        VARIABLE.set("changed")
        if len(seen) < 3:
            raise ValueError("again")

    parallel(flaky)(1)
    assert seen == ["unset"] * 3


# Events


def told(flow, value=1, **options):
    handle = flow.submit(value, **options)
    handle.result(10)
    return list(handle.events())


def test_what_happens_is_told_in_order():
    flow = Sequence(A, parallel(B, C, name="block", max_concurrent=1), name="flow")
    found = [
        (type(event).__name__, getattr(event, "step", ""))
        for event in told(flow)
        if not isinstance(event, events.CallAsked)
    ]
    assert found == [
        ("RunStarted", ""),
        ("CallStarted", "flow"),
        ("CallStarted", "A"),
        ("CallFinished", "A"),
        ("CallStarted", "block"),
        ("BlockSized", "block"),
        ("CallStarted", "B"),
        ("CallFinished", "B"),
        ("CallStarted", "C"),
        ("CallFinished", "C"),
        ("BlockDecided", "block"),
        ("CallFinished", "block"),
        ("CallFinished", "flow"),
        ("RunFinished", ""),
    ]


def test_parents_are_told_and_ids_are_unique():
    found = told(Sequence(A, parallel(B, parallel(C, name="inner"), name="block"), name="flow"))
    started = {event.step: event for event in found if isinstance(event, events.CallStarted)}
    parents = {name: event.parent_id for name, event in started.items()}
    ids = {name: event.call_id for name, event in started.items()}
    assert len(set(ids.values())) == 6
    assert parents == {
        "flow": "",
        "A": ids["flow"],
        "block": ids["flow"],
        "B": ids["block"],
        "inner": ids["block"],
        "C": ids["inner"],
    }


def test_a_decided_block_says_why():
    async def slow(value):
        await asyncio.sleep(60)

    (decided,) = [
        event for event in told(parallel(A, B, slow, need=2)) if isinstance(event, events.BlockDecided)
    ]
    assert (decided.ok, decided.failed, decided.total) == (2, 0, 3)
    assert decided.reason == "2 branches succeeded; 2 needed"


def test_a_branch_that_waits_for_the_runs_width_says_so():
    queued = [
        (event.step, event.limits)
        for event in told(parallel(A, B, C, max_concurrent=3), max_concurrent=1)
        if isinstance(event, events.CallQueued)
    ]
    assert queued == [("B", ("max_concurrent",)), ("C", ("max_concurrent",))]


def test_a_branch_that_was_stopped_is_told_as_cancelled():
    async def slow(value):
        await asyncio.sleep(60)

    finished = [
        event
        for event in told(race(slow, A))
        if isinstance(event, events.CallFinished) and event.step == "slow"
    ]
    assert [type(event.outcome).__name__ for event in finished] == ["Cancelled"]


# Sizing


@pytest.fixture
def machine(monkeypatch):
    """The cores, and the branches that memory has room for, of the machine that all believe to have."""

    def has(cores, room):
        memory = math.ceil(room * ESTIMATED_MEMORY / MEMORY_SHARE)
        monkeypatch.setattr("weft.machine.resources", lambda: Resources(cores, memory))

    return has


def sized(block, value=1):
    return [
        (event.width, event.computing) for event in told(block, value) if isinstance(event, events.BlockSized)
    ]


def quick(count, kind="sync"):
    return [named(f"n{n}", kind) for n in range(count)]


@pytest.mark.parametrize(
    ("cores", "room", "branches", "wanted"),
    [(4, 100, 8, (8, 4)), (4, 3, 8, (3, 3)), (4, 100, 2, (2, 2)), (1, 100, 8, (8, 1)), (8, 0, 5, (1, 1))],
)
def test_the_width_is_of_branches_cores_and_memory(machine, cores, room, branches, wanted):
    machine(cores, room)
    assert sized(parallel(*quick(branches)))[0] == wanted


def test_async_branches_need_no_core(machine):
    machine(cores=1, room=100)
    begun = []

    async def waits(value):
        begun.append(value)
        while len(begun) < 20:
            await asyncio.sleep(0.001)

    within(10, lambda: parallel(*(node(f"n{n}")(waits) for n in range(20)))(1))


def test_an_explicit_width_is_exact_and_asks_no_machine(monkeypatch):
    def never():
        raise AssertionError("was asked")

    monkeypatch.setattr("weft.machine.resources", never)
    assert sized(parallel(*quick(5), max_concurrent=3)) == [(3, None)]
    assert sized(parallel(*quick(5), max_concurrent=3, optimization_enabled=False)) == [(3, None)]
    assert sized(parallel(*quick(5), optimization_enabled=False)) == [(None, None)]


def test_the_estimate_counts(machine):
    machine(cores=8, room=8)
    assert sized(parallel(*quick(8), estimated_memory_per_node=4 * ESTIMATED_MEMORY))[0] == (2, 2)
    assert sized(parallel(*quick(8), estimated_memory_per_node=ESTIMATED_MEMORY // 2))[0] == (8, 8)


def test_in_a_mixed_block_async_branches_pass_sync_ones_that_wait_for_a_core():
    started = {}

    def waits(name):
        def body(value):
            started[name] = clock.now
            sleep(10)

        return node(name)(body)

    def passes(name):
        async def body(value):
            started[name] = clock.now
            await asyncio.sleep(10)

        return node(name)(body)

    with virtual_clock(cores=1) as clock:
        block = parallel(waits("s1"), waits("s2"), waits("s3"), passes("a1"), passes("a2"))
        found = list(block(1))
    assert found == ["s1", "s2", "s3", "a1", "a2"]
    assert started["s1"] == started["a1"] == started["a2"] == 0
    assert started["s2"] == pytest.approx(GROWTH_AFTER)


@pytest.mark.parametrize(("cores", "count", "wanted"), [(1, 8, [1, 2, 4, 8]), (2, 7, [2, 4, 7]), (3, 3, [3])])
def test_a_block_of_bodies_that_wait_doubles_while_branches_queue(cores, count, wanted):
    def waits(n):
        return node(f"n{n}")(lambda value: sleep(10))

    def main():
        with virtual_clock(cores=cores) as clock:
            handle = parallel(*(waits(n) for n in range(count))).submit(1)
            handle.result()
            assert clock.now == pytest.approx(10 + GROWTH_AFTER * (len(wanted) - 1))
            return [event for event in handle.events() if isinstance(event, events.BlockSized)]

    found = within(20, main)
    assert [event.computing for event in found] == wanted
    assert {event.width for event in found} == {count}
    assert found[0].reason
    assert all("queue" in event.reason for event in found[1:])


def test_a_block_never_grows_beyond_its_memory():
    def waits(n):
        return node(f"n{n}")(lambda value: sleep(1))

    with virtual_clock(cores=1, memory=math.ceil(3 * ESTIMATED_MEMORY / MEMORY_SHARE)) as clock:
        handle = parallel(*(waits(n) for n in range(9))).submit(1)
        handle.result()
        found = [event for event in handle.events() if isinstance(event, events.BlockSized)]
        assert clock.now < 4
    assert [(event.width, event.computing) for event in found][-1] == (3, 3)
    assert max(event.computing for event in found) == 3


def test_what_computes_quickly_does_not_grow():
    with virtual_clock(cores=2) as clock:
        handle = parallel(*(node(f"n{n}")(lambda value: sleep(0.01)) for n in range(8))).submit(1)
        handle.result()
        found = [event for event in handle.events() if isinstance(event, events.BlockSized)]
        assert clock.now == pytest.approx(0.04)
    assert [event.computing for event in found] == [2]


def test_sequences_with_a_sync_step_compute_and_nested_blocks_do_not(machine):
    """A nested block chooses for itself how many of its branches compute."""
    machine(cores=1, room=100)
    inner = [parallel(named("x", "async"), name=f"b{n}") for n in range(4)]
    block = parallel(*inner)
    (size,) = sized(block)[:1]
    assert size[0] == 4
    assert [part.computes for part in block.branches.values()] == [False] * 4
    assert (A >> named("x", "async")).computes
    assert not (named("x", "async") >> named("y", "async")).computes


def test_a_size_says_why(machine):
    machine(cores=3, room=7)
    (first, *_) = [event for event in told(parallel(*quick(9))) if isinstance(event, events.BlockSized)]
    for part in ("3 cores", "7 branches", "50 MiB", "70%"):
        assert part in first.reason


# Built and left


def test_building_runs_nothing_and_workflows_can_be_shared_by_threads():
    ran = []
    flow = node("x")(ran.append) >> parallel(A, B)
    assert ran == []
    results = []
    threads = [threading.Thread(target=lambda: results.append(flow(1))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [{"A": "A(None)", "B": "B(None)"}] * 10
    assert ran == [1] * 10


def test_a_workflow_keeps_nothing_of_its_runs():
    class Value:
        pass

    block = parallel(node("x")(lambda value: None), node("y")(lambda value: None), max_concurrent=2)
    kept = []
    for _ in range(300):
        value = Value()
        kept.append(weakref.ref(value))
        block(value)
        del value
    gc.collect()
    assert sum(each() is not None for each in kept) <= 2  # a thread may still have the last one


def test_results_and_errors_of_nested_blocks_are_by_name_all_the_way():
    def bad(value):
        raise ValueError("no")

    flow = parallel(parallel(A, bad, name="inner", on_error="collect"), parallel(A, bad, name="strict"))
    with pytest.raises(ParallelExecutionError) as caught:
        flow(1)
    assert caught.value.branch == "strict"
    assert caught.value.failures["strict"].branch == "bad"


@pytest.mark.parametrize(
    "flow", [A, parallel(A), A >> B, race(A, B)], ids=["node", "parallel", "Sequence", "race"]
)
def test_workflows_have_a_representation(flow):
    assert repr(flow)
    assert "object at" not in repr(flow)


def test_a_race_is_a_block_with_a_name_of_its_own():
    assert isinstance(race(A, B), Parallel)
    assert race(A, B).key == "race"
    assert race(A, B, name="first").key == "first"
    assert race(A)(1) == "A(1)"
    with pytest.raises(DefinitionError):
        race()
    with pytest.raises(TypeError):
        race(A, on_error="collect")


def test_step_names_may_be_any_text():
    names = ["a b", "ä", "", "x" * 500, "a/b", "a.b", "{x}", "%s", "\\n", "'quoted'"]
    block = parallel(*(node(name)(lambda value: value) for name in names if name))
    assert list(block(1)) == [name for name in names if name]
