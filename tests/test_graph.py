"""Graphs as their users see them: building, binding, merging, state, routers, joins.

Time is virtual where it matters who is first. What runs when is logged by the nodes themselves.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import json
import pickle
import threading
from types import MappingProxyType

import pytest
from leftovers import nothing_left, takes, timed, within

import weft
from weft import (
    Command,
    ConflictError,
    Failed,
    Flow,
    Graph,
    GraphCompileError,
    InMemorySaver,
    MaxStepsError,
    Node,
    Ok,
    RetryPolicy,
    Sequence,
    StateConflictError,
    entrypoint,
    interrupt,
    node,
    parallel,
    router,
    task,
)
from weft.engine import events
from weft.testing import run, sleep

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


def in_kind(kind, fn):
    """A plain function as it is, or as an async one with the same signature."""
    if kind == "sync":
        return fn

    @functools.wraps(fn)
    async def body(*args, **kwargs):
        await asyncio.sleep(0)
        return fn(*args, **kwargs)

    return body


def made(*paths, joins=(), nodes=(), **options):
    """A graph along paths like "start a end", which begins where the first one does.

    ``nodes`` are functions by name; others give nothing. Where nothing comes after, branches end. A join is
    written "a b > end".
    """
    nodes = dict(nodes)
    graph = Graph(**options)
    edges = [pair for path in paths for pair in zip(path.split(), path.split()[1:])]
    met = [join.split(" > ") for join in joins]
    names = dict.fromkeys(name for path in paths for name in path.split())
    names |= dict.fromkeys(name for sources, to in met for name in [*sources.split(), to])
    sources = {source for source, _ in edges} | {source for each, _ in met for source in each.split()}
    for name in names:
        part = nodes.pop(name, nothing)
        is_router = getattr(part, "is_router", False)
        graph.add_node(part, name=name, end=name not in sources and not is_router)
    assert not nodes
    graph.set_start_node(paths[0].split()[0])
    for source, to in edges:
        graph.add_edge(source, to)
    for each, to in met:
        graph.add_join(each.split(), to)
    return graph


async def nothing():
    return {}


def gives(seconds=0, **output):
    """A node that gives this after so many seconds."""

    async def body():
        await asyncio.sleep(seconds)
        return output

    return body


def chooses(*names, seconds=0, **output):
    """A router that takes these ways."""

    @router
    async def body():
        await asyncio.sleep(seconds)
        return {"choices": [*names], **output}

    return body


class Log:
    """Nodes that note when they began, and end after so many seconds."""

    def __init__(self):
        self.began = []

    def nodes(self, **seconds):
        return {name: self.node(name, wait) for name, wait in seconds.items()}

    def node(self, name, seconds=0, **output):
        async def body():
            self.began.append((name, asyncio.get_running_loop().time()))
            await asyncio.sleep(seconds)
            return {name: True, **output}

        return body

    def router(self, name, *rounds, seconds=0):
        """A router that takes these ways, others each time it runs."""
        left = list(rounds)

        @router
        async def body():
            self.began.append((name, asyncio.get_running_loop().time()))
            await asyncio.sleep(seconds)
            chosen = left.pop(0)
            return {"choice": chosen} if isinstance(chosen, str) else {"choices": chosen}

        return body

    @property
    def names(self):
        return [name for name, _ in self.began]

    def times(self, name):
        return [time for each, time in self.began if each == name]


def executed(graph, input=None, **options):
    """What an execution gives, in virtual time, with nothing left at its end."""
    return timed(lambda: graph.execute({} if input is None else input, **options))[0]


# Being built


@node(start=True)
async def start(input):
    return {"start": input}


@node
async def left(input):
    return {"left": 1}


@node
async def right(input):
    return {"right": 2}


@node(end=True)
async def end(left, right):
    return {"sum": left + right}


@router
async def ways(input):
    return {"choices": ["left", "right"]}


WHOLE = {"input": 0, "start": 0, "left": 1, "right": 2, "sum": 3}


@pytest.mark.parametrize(
    "meant",
    [lambda each: each, lambda each: each.name, lambda each: each()],
    ids=["by object", "by name", "by instance"],
)
def test_nodes_are_meant_by_object_and_by_name(meant):
    graph = Graph()
    for each in (start, left, right, end):
        assert graph.add_node(each) is graph
    assert graph.add_parallel(meant(start), [meant(left), meant(right)]) is graph
    assert graph.add_join([meant(left), meant(right)], meant(end)) is graph
    assert executed(graph, {"input": 0}) == WHOLE


@pytest.mark.parametrize(
    "meant",
    [lambda each: each, lambda each: each.name, lambda each: each()],
    ids=["by object", "by name", "by instance"],
)
def test_every_builder_gives_the_graph_back(meant):
    graph = Graph().add_node(start).add_node(left).add_node(right).add_node(end).add_node(ways)
    assert graph.add_router([meant(start)], meant(ways), [meant(left), meant(right)]) is graph
    assert graph.add_join([meant(left), meant(right)], meant(end)) is graph
    assert graph.set_start_node(meant(start)) is graph
    assert graph.set_end_node(meant(end)) is graph
    assert graph.set_state({}) is graph
    assert graph.update_state({}) is graph
    assert graph.reset_state() is graph
    assert graph.set_callback(weft.EventCallback) is graph
    assert graph.compile() is graph
    assert graph.compile(strict=True) is graph
    assert executed(graph, {"input": 0}) == WHOLE


def test_the_first_execution_finds_a_compiled_graph_worked_out():
    graph = Graph().add_node(start).add_node(left).add_node(right).add_node(end)
    graph.add_parallel(start, [left, right]).add_join([left, right], end)
    plan = graph.compile()._program().plan
    known = {*vars(plan)}
    executed(graph, {"input": 0})
    assert graph._program().plan is plan
    assert {*vars(plan)} == known


def test_what_a_node_is_can_be_asked():
    assert (start.name, start.is_start, start.is_end, start.is_router, start.is_stream) == (
        "start",
        True,
        False,
        False,
        False,
    )
    assert (end.name, end.is_end) == ("end", True)
    assert (ways.name, ways.is_router) == ("ways", True)
    assert node(name="other", stream=True)(lambda callback: {}).is_stream
    assert router("asked", start=True)(dict).is_start


@KINDS
def test_plain_functions_are_nodes(kind):
    def double(number):
        return {"number": number * 2}

    double = in_kind(kind, double)
    graph = Graph().add_node(double, start=True).add_node(double, name="again", end=True)
    graph.add_edge(double, "again")
    assert executed(graph, {"number": 3}) == {"number": 12}


def test_a_function_that_was_added_under_another_name_is_still_meant_by_itself():
    def double(number):
        return {"number": number * 2}

    graph = Graph().add_node(nothing, start=True).add_node(double, name="x", end=True)
    assert graph.add_edge(nothing, double).invoke({"number": 3}) == {"number": 6}


def test_one_node_under_two_names_is_two():
    @node
    async def add(number):
        return {"number": number + 1}

    graph = Graph().add_node(add, start=True).add_node(add, name="again", end=True).add_edge(add, "again")
    assert executed(graph, {"number": 0}) == {"number": 2}


def test_set_start_node_and_set_end_node():
    graph = made("a b c d", nodes=Log().nodes(a=0, b=0, c=0, d=0))
    graph.set_start_node("b").set_end_node("c")
    assert executed(graph) == {"b": True, "c": True}


def test_several_end_nodes():
    graph = made("start a b", "start c d", nodes=Log().nodes(a=0, b=0, c=0, d=0))
    assert executed(graph.set_end_node("a")) == {"a": True, "c": True, "d": True}


def test_an_edge_that_is_given_twice_is_one():
    log = Log()
    graph = made("start a end", "start a end", nodes=log.nodes(start=0, a=0, end=0))
    graph.add_parallel("start", ["a", "a"])
    executed(graph)
    assert log.names == ["start", "a", "end"]


def test_a_join_counts_as_the_edge_that_is_there_as_well():
    log = Log()
    graph = made("start a end", "start b end", joins=["a b > end"], nodes=log.nodes(start=0, a=0, b=0, end=0))
    executed(graph)
    assert log.names == ["start", "a", "b", "end"]


def test_a_graph_can_be_gone_on_with_between_executions():
    graph = made("a b", nodes=Log().nodes(a=0, b=0))
    assert executed(graph) == {"a": True, "b": True}
    graph.add_node(gives(more=1), name="more", end=True).add_edge("a", "more")
    assert executed(graph) == {"a": True, "b": True, "more": 1}


def test_what_is_added_during_an_execution_is_for_later_ones():
    async def adds():
        graph.add_node(gives(late=1), name="late", end=True).add_edge("a", "late")
        return {}

    graph = made("a b", nodes={"a": adds})
    assert executed(graph) == {}
    assert sorted(graph.nodes) == ["a", "b", "late"]
    graph.set_start_node("late")
    assert executed(graph) == {"late": 1}


def test_joins_count_as_ways_when_a_graph_is_compiled():
    graph = made("start a", "start b", joins=["a b > end"])
    assert graph.compile(strict=True) is graph


def test_a_graph_shows_itself():
    assert repr(made("a b", name="flow")) == "<weft.Graph 'flow' of 2 nodes>"


# Being executed


def verbs():
    async def execute(graph, given):
        return await graph.execute(given)

    async def ainvoke(graph, given):
        return await graph.ainvoke(given)

    async def submitted(graph, given):
        return await graph.submit(given)

    async def last_of_astream(graph, given):
        return [chunk async for chunk in graph.astream(given, stream_mode="values")][-1]

    async def in_a_notebook(graph, given):
        return graph.invoke(given)  # blocks the loop that runs, and needs none of it

    async def executed_in_a_body(graph, given):
        @entrypoint()
        async def outer(x):
            return await graph.execute(x)

        return await outer.ainvoke(given)

    def in_a_sync_body(graph, given):
        @task
        def inner(x):
            return graph.invoke(x)

        @entrypoint()
        def outer(x):
            return inner(x).result()

        return outer.invoke(given)

    return {
        "execute": lambda graph, given: asyncio.run(execute(graph, given)),
        "execute_many": lambda graph, given: asyncio.run(graph.execute_many([given]))[0],
        "invoke": lambda graph, given: graph.invoke(given),
        "ainvoke": lambda graph, given: asyncio.run(ainvoke(graph, given)),
        "invoke on a loop": lambda graph, given: asyncio.run(in_a_notebook(graph, given)),
        "stream": lambda graph, given: list(graph.stream(given, stream_mode="values"))[-1],
        "astream": lambda graph, given: asyncio.run(last_of_astream(graph, given)),
        "map": lambda graph, given: graph.map([given])[0],
        "submit": lambda graph, given: graph.submit(given).result(10),
        "submit on a loop": lambda graph, given: asyncio.run(submitted(graph, given)),
        "in an async body": lambda graph, given: asyncio.run(executed_in_a_body(graph, given)),
        "in a sync body": in_a_sync_body,
        "a branch": lambda graph, given: parallel(graph, lambda x: 0).invoke(given)[graph.key],
        "a step": lambda graph, given: (graph >> (lambda x: x)).invoke(given),
    }


@pytest.mark.parametrize("verb", verbs().values(), ids=verbs().keys())
@pytest.mark.parametrize("kinds", ["all sync", "all async", "mixed"])
def test_every_verb_gives_the_input_with_all_that_was_written(verb, kinds):
    def sync_node(number):
        return {"number": number + 1}

    def more(number):
        return {"more": number * 10}

    first = in_kind("async" if kinds == "all async" else "sync", sync_node)
    last = in_kind("sync" if kinds == "all sync" else "async", more)
    graph = Graph(initial_state={"kept": 1}).add_node(first, name="first", start=True)
    graph.add_node(last, name="last", end=True).add_edge("first", "last")
    given = {"number": 1, "untouched": [1]}
    with nothing_left():
        found = within(10, lambda: verb(graph, given))
    assert found == {"number": 2, "untouched": [1], "more": 20}
    assert given == {"number": 1, "untouched": [1]}  # the caller's own
    assert found is not given
    assert graph.get_state() == {"kept": 1}


def test_any_mapping_is_an_input():
    assert executed(made("a"), MappingProxyType({"x": 1})) == {"x": 1}


def test_values_are_handed_on_as_they_are():
    value = object()
    graph = made("a b", nodes={"a": lambda given: {"same": given}})
    assert executed(graph, {"given": value})["same"] is value


def test_keys_may_be_of_any_type():
    graph = made("a b", nodes={"a": lambda: {1: "one", None: 2}})
    assert executed(graph, {(1, 2): 3}) == {(1, 2): 3, 1: "one", None: 2}


def test_sync_nodes_run_at_the_same_time():
    barrier = threading.Barrier(2, timeout=10)

    def meets():
        return {"met": barrier.wait() >= 0}

    graph = made("start a", "start b", nodes={"a": meets, "b": meets})
    assert graph.invoke({}) == {"met": True}


def test_sync_and_async_nodes_overlap():
    def slow():
        sleep(2)
        return {"sync": 1}

    graph = made("start a", "start b", nodes={"a": slow, "b": gives(2, other=2)})
    with takes(2):
        assert graph.invoke({}) == {"sync": 1, "other": 2}


def test_a_chain_and_a_fork_take_the_time_they_must():
    log = Log()
    graph = made(
        "start a b end", "start c end", nodes=log.nodes(start=1, a=2, b=3, c=4, end=1)
    )  # each branch goes on by itself
    _, seconds = timed(lambda: graph.execute({}))
    assert seconds == 7
    assert log.times("end") == [5, 6]


# Several executions


def test_execute_many_gives_results_in_the_order_of_the_inputs():
    async def waits(number):
        await asyncio.sleep(10 - number)
        return {"square": number**2}

    graph = made("a", nodes={"a": waits})
    found, seconds = timed(lambda: graph.execute_many([{"number": n} for n in range(8)], concurrency=8))
    assert [each["square"] for each in found] == [n**2 for n in range(8)]
    assert seconds == 10


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 5), ({"concurrency": 3}, 3), ({"max_concurrent": 2}, 2), ({"concurrency": 99}, 12)],
)
def test_execute_many_runs_so_many_at_once(options, most):
    now, peak, ended = 0, 0, []

    async def counted(number):
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(1 + number % 2)
        now -= 1
        ended.append(number)
        return {}

    graph = made("a b", nodes={"b": counted})
    found, _ = timed(lambda: graph.execute_many([{"number": n} for n in range(12)], **options))
    assert peak == most
    assert len(found) == len(ended) == 12


def test_the_next_execution_begins_when_one_ends_not_when_all_have():
    async def waits(seconds):
        await asyncio.sleep(seconds)
        return {}

    inputs = [{"seconds": seconds} for seconds in (6, 1, 2, 3)]
    assert timed(lambda: made("a", nodes={"a": waits}).execute_many(inputs, concurrency=2))[1] == 6


def test_execute_many_takes_any_iterable():
    async def source():
        for number in range(3):
            yield {"number": number}

    graph = made("a")
    expected = [{"number": number} for number in range(3)]
    assert timed(lambda: graph.execute_many(source()))[0] == expected
    assert timed(lambda: graph.execute_many({"number": n} for n in range(3)))[0] == expected
    assert timed(lambda: graph.execute_many([]))[0] == []


def test_execute_many_raises_what_the_first_failure_raised_and_stops_the_others():
    ended = []

    async def fails(number):
        await asyncio.sleep(number)
        if number == 2:
            raise OSError("two")
        ended.append(number)
        return {}

    async def main():
        with pytest.raises(OSError, match="two") as caught:
            await made("a", nodes={"a": fails}).execute_many([{"number": n} for n in (3, 2, 1, 9)])
        assert any("'a'(number=2)" in note for note in caught.value.__notes__)

    assert timed(main)[1] == 2
    assert ended == [1]


def test_execute_many_can_give_outcomes():
    async def fails(number):
        if number == 1:
            raise OSError("one")
        return {}

    graph = made("a", nodes={"a": fails})
    found, _ = timed(lambda: graph.execute_many([{"number": 0}, {"number": 1}], on_error="collect"))
    assert found[0] == Ok({"number": 0})
    assert isinstance(found[1], Failed)
    assert isinstance(found[1].error, OSError)


# Binding

VALUES = {"x": 1, "y": 2, "z": 3}


class Methods:
    def __call__(self, x):
        return {"found": x}

    def method(self, x, y=9):
        return {"found": (x, y)}

    @classmethod
    def of_class(cls, x):
        return {"found": x}

    @staticmethod
    def static(x):
        return {"found": x}


class AsyncObject:
    """An object whose call is a coroutine, with the signature of a function."""

    def __init__(self, fn):
        self.fn = fn
        self.__signature__ = inspect.signature(fn)

    async def __call__(self, *args, **kwargs):
        return self.fn(*args, **kwargs)


def by_keyword(*, x, other=7):
    return {"found": (x, other)}


def by_position(x, /, y, other=7):
    return {"found": (x, y, other)}


def by_position_with_a_gap(other=7, x=8, /, y=9):
    return {"found": (other, x, y)}


def all_the_rest(x, **rest):
    return {"found": (x, rest)}


def ignores_positional(x, *args):
    return {"found": (x, args)}


def with_defaults(x=5, other=6):
    return {"found": (x, other)}


def reads_nothing():
    return {"found": None}


def three(a, x, y):
    return {"found": (a, x, y)}


@pytest.mark.parametrize("kind", ["sync", "async", "async object"])
@pytest.mark.parametrize(
    ("function", "found"),
    [
        (by_keyword, (1, 7)),
        (by_position, (1, 2, 7)),
        (by_position_with_a_gap, (7, 8, 2)),
        (all_the_rest, (1, {"y": 2, "z": 3})),
        (ignores_positional, (1, ())),
        (with_defaults, (1, 6)),
        (reads_nothing, None),
        (lambda x, y=0: {"found": (x, y)}, (1, 2)),
        (Methods(), 1),
        (Methods().method, (1, 2)),
        (Methods.of_class, 1),
        (Methods.static, 1),
        (functools.partial(three, 0), (0, 1, 2)),
        (functools.partial(three, a=0, y=5), (0, 1, 2)),  # given as a keyword it is a default
    ],
)
def test_a_node_gets_what_it_declares(function, found, kind):
    if kind == "async object":
        function = AsyncObject(function)
    elif kind == "async":
        function = in_kind("async", function)
    assert executed(made("a", nodes={"a": function}), VALUES)["found"] == found
    decorated = node(name="a")(function)
    assert executed(made("a", nodes={"a": decorated}), VALUES)["found"] == found


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_annotations_decide_nothing(future):
    code = f"""{future}
async def body(input: dict, number: "int", later: "Unknown" = None, *, text: str = "t"):
    return {{"found": (input, number, later, text)}}
"""
    names = {}
    exec(compile(code, "<nodes>", "exec", dont_inherit=True), names)
    graph = made("a", nodes={"a": names["body"]})
    assert executed(graph, {"input": 5, "number": "no int"})["found"] == (5, "no int", None, "t")


@pytest.mark.parametrize(
    "body",
    [
        lambda state: {"found": dict(state)},
        lambda *, state: {"found": dict(state)},
        lambda state=None: {"found": dict(state)},
        lambda x, state, **rest: {"found": dict(state), "more": sorted(rest)},
    ],
    ids=["plain", "keyword", "default", "beside others"],
)
@KINDS
def test_state_is_the_graphs_whatever_stands_in_the_flow(kind, body):
    graph = made("a", nodes={"a": in_kind(kind, body)}, initial_state={"s": 1})
    found = executed(graph, {"x": 1, "y": 2, "state": "a value", "upstream": 3})
    assert found["found"] == {"s": 1}
    assert found["state"] == "a value"  # the caller's, and nothing to do with it
    assert found.get("more") in (None, ["upstream", "y"])


def test_upstream_is_the_node_before_and_what_it_gave():
    seen = {}

    def reader(name):
        async def body(upstream):
            seen[name] = upstream
            return {name: 1}

        return body

    executed(made("a b c", nodes={name: reader(name) for name in "abc"}), {"x": 1})
    assert seen == {
        "a": None,
        "b": {"node": "a", "output": {"a": 1}},
        "c": {"node": "b", "output": {"b": 1}},
    }


def test_upstream_of_the_start_is_its_default():
    graph = made("a", nodes={"a": lambda upstream="none": {"found": upstream}})
    assert executed(graph)["found"] == "none"


def test_upstream_behind_a_router_has_no_choices():
    graph = made("a b", nodes={"a": chooses("b", more=1), "b": lambda upstream: {"found": upstream}})
    assert executed(graph) == {"more": 1, "found": {"node": "a", "output": {"more": 1}}}


def test_upstream_behind_a_join_is_who_came_last():
    graph = made(
        "start a",
        "start b",
        joins=["a b > end"],
        nodes={"a": gives(2, a=1), "b": gives(1, b=1), "end": lambda upstream: {"found": upstream}},
    )
    assert executed(graph)["found"] == {"node": "a", "output": {"a": 1}}


def test_upstream_is_no_part_of_the_result():
    assert executed(made("a b", nodes={"b": lambda upstream: {}})) == {}


def test_what_a_node_does_to_what_came_before_is_not_seen_by_the_branch_beside_it():
    async def changes(upstream):
        upstream["output"]["a"] = "spoiled"
        return {}

    async def looks(upstream):
        await asyncio.sleep(1)
        return {"found": upstream["output"]}

    graph = made("x b", "x c", nodes={"x": gives(a=1), "b": changes, "c": looks})
    assert executed(graph) == {"a": 1, "found": {"a": 1}}


def test_methods_take_state_as_functions_do():
    class Agent:
        def __init__(self):
            self.turns = 0

        @staticmethod
        def first(state):
            state["n"] = 1
            return {}

        async def second(self, state, x=4):
            self.turns += 1
            state["n"] += x
            return {}

    agent = Agent()
    graph = made("a b", nodes={"a": agent.first, "b": agent.second})
    executed(graph)
    assert (agent.turns, graph.get_state()) == (1, {"n": 5})


# Merging


@pytest.mark.parametrize("joins", [[], ["a b > end"]], ids=["without a join", "with a join"])
@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_last_to_complete_wins(order, joins):
    slow, fast = order
    nodes = {slow: gives(2, k=slow, slow=1), fast: gives(1, k=fast, fast=1)}
    graph = made("start a", "start b", joins=joins, nodes=nodes)
    assert executed(graph) == {"k": slow, "slow": 1, "fast": 1}


def test_who_completes_last_counts_not_who_wrote_last():
    """The branch of a is completed last though the value in it is the older one."""
    nodes = {"a": gives(1, k="a"), "more": gives(3), "b": gives(2, k="b")}
    assert executed(made("start a more", "start b", nodes=nodes)) == {"k": "a"}


def test_a_branch_that_did_not_touch_a_value_does_not_bring_its_old_one():
    nodes = {"a": gives(1, x="new"), "b": gives(2, y=1)}
    for joins in ([], ["a b > end"]):
        graph = made("start a", "start b", joins=joins, nodes=nodes)
        assert executed(graph, {"x": "old"}) == {"x": "new", "y": 1}


def test_branches_do_not_see_each_other():
    async def looks(seconds, name, **flow):
        await asyncio.sleep(seconds)
        return {name: sorted(flow)}

    graph = made(
        "start a b",
        "start c d",
        nodes={
            "a": gives(1, a=1),
            "b": functools.partial(looks, 1, "b"),
            "c": gives(1, c=1),
            "d": functools.partial(looks, 2, "d"),
        },
    )
    found = executed(graph, {"x": 0})
    assert found["b"] == ["a", "x"]
    assert found["d"] == ["c", "x"]


def test_reducers_combine_in_the_order_of_completion():
    nodes = {name: gives(seconds, k=[name]) for name, seconds in {"a": 3, "b": 1, "c": 2}.items()}
    for joins in ([], ["a b c > end"]):
        graph = made(
            "s a", "s b", "s c", joins=joins, nodes=nodes, reducers={"k": lambda old, new: old + new}
        )
        assert executed(graph) == {"k": ["b", "c", "a"]}
        assert executed(graph, {"k": ["before"]}) == {"k": ["b", "c", "a"]}  # which no branch wrote


def test_a_reducer_is_not_asked_where_one_branch_wrote():
    def never(old, new):
        raise AssertionError

    graph = made("s a a2", "s b", nodes={"a": gives(k=1), "a2": gives(k=2)}, reducers={"k": never})
    assert executed(graph, {"k": 0}) == {"k": 2}


def test_reducers_in_nested_forks_count_each_value_once():
    nodes = {name: gives(k=1) for name in ("a", "b", "c")}
    graph = made(
        "s m",
        "s c",
        "m a",
        "m b",
        joins=["a b > j", "j c > end"],
        nodes=nodes,
        reducers={"k": lambda old, new: old + new},
    )
    assert executed(graph) == {"k": 3}


def test_a_value_that_was_seen_and_overwritten_does_not_count_any_more():
    """The branch of c began with what a wrote; b saw nothing of it."""
    nodes = {"a": gives(k=1), "c": gives(1, k=10), "b": gives(2, k=100)}
    for joins in ([], ["c b > end"]):
        options = {"joins": joins, "nodes": nodes, "reducers": {"k": lambda old, new: old + new}}
        assert executed(made("s a c", "a d", "s b", **options)) == {"k": 110}
    graph = made("s a c", "a d", "s e", nodes={"a": gives(k=1), "c": gives(1, k=10)}, on_conflict="error")
    assert executed(graph) == {"k": 10}


def test_conflicts_can_be_refused():
    nodes = {"a": gives(1, k=1, a=1), "b": gives(2, k=1)}
    graph = made("s a", "s b", joins=["a b > end"], nodes=nodes, on_conflict="error")
    with pytest.raises(ConflictError) as caught:
        executed(graph)
    assert caught.value.key == "k"
    assert caught.value.nodes == ("a", "b")
    graph = made("s a", "s b", nodes=nodes, on_conflict="error", reducers={"k": lambda old, new: old + new})
    assert executed(graph) == {"k": 2, "a": 1}


def test_what_was_seen_and_written_anew_is_no_conflict():
    nodes = {"a": gives(k=1), "b": gives(other=1), "end": gives(k=2)}
    graph = made("s a", "s b", joins=["a b > end"], nodes=nodes, on_conflict="error")
    assert executed(graph, {"k": 0}) == {"k": 2, "other": 1}


# State


@node(name="add")
async def append(state, x=0):
    state.setdefault("seen", []).append(x)
    return {}


def test_state_lasts_from_one_execution_to_the_next():
    graph = made("a", nodes={"a": append})
    for x in range(3):
        executed(graph, {"x": x})
    assert graph.get_state() == {"seen": [0, 1, 2]}
    assert executed(graph.reset_state(), {"x": 9}) == {"x": 9}  # the state is no part of the result
    assert graph.get_state() == {"seen": [9]}
    executed(graph.set_state({"seen": [7], "other": 1}), {"x": 8})
    assert graph.get_state() == {"seen": [7, 8], "other": 1}
    executed(graph.update_state({"seen": []}), {"x": 8})
    assert graph.get_state() == {"seen": [8], "other": 1}


def test_the_initial_state_is_the_callers_own():
    mine = {"seen": [], "deep": {"list": []}}
    graph = made("a", nodes={"a": append}, initial_state=mine)
    executed(graph)
    other = made("a", nodes={"a": append}, initial_state=mine)
    assert mine == {"seen": [], "deep": {"list": []}}
    assert graph.get_state()["seen"] == [0]
    assert other.get_state()["seen"] == []
    given = {"seen": []}
    executed(graph.set_state(given))
    for change in (graph.set_state, graph.reset_state().update_state):
        change(given)
        graph.get_state()["seen"].append("by hand")
    assert given == {"seen": []}


def test_what_is_got_and_changed_by_hand_is_what_the_next_execution_begins_with():
    graph = made("a", nodes={"a": append})
    graph.get_state()["seen"] = ["mine"]
    executed(graph)
    assert graph.get_state() == {"seen": ["mine", 0]}


@KINDS
def test_a_failed_execution_changes_no_state(kind):
    def fails(x):
        if x:
            raise OSError("no")
        return {}

    graph = made("a b", nodes={"a": append, "b": in_kind(kind, fails)})
    with pytest.raises(OSError):
        executed(graph, {"x": 1})
    assert graph.get_state() == {}
    executed(graph, {"x": 0})
    assert graph.get_state() == {"seen": [0]}


def test_executions_at_the_same_time_do_not_see_each_others_state():
    async def fills(state, x):
        state["mine"] = x
        state.setdefault("all", []).append(x)
        await asyncio.sleep(1)
        assert (state["mine"], state["all"]) == (x, [x])
        return {"found": state["mine"]}

    graph = made("a b", nodes={"a": fills, "b": lambda state: {"later": state["mine"]}})
    found, _ = timed(lambda: graph.execute_many([{"x": x} for x in range(20)], concurrency=20))
    assert [(each["found"], each["later"]) for each in found] == [(x, x) for x in range(20)]
    assert graph.get_state() == {"mine": 19, "all": [19]}  # the last that ended


@KINDS
def test_a_retry_undoes_what_the_attempt_did_to_the_state(kind):
    attempts = []

    def flaky(state):
        assert state == {"seen": [0], "deep": {"n": 1}}
        state["seen"].append("half")
        state["deep"]["n"] += 1
        state["new"] = 1
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("again")
        return {}

    flaky = node(name="b", retry=5)(in_kind(kind, flaky))
    graph = made("a b", nodes={"a": append, "b": flaky}, initial_state={"deep": {"n": 1}})
    executed(graph)
    assert len(attempts) == 3
    assert graph.get_state() == {"seen": [0, "half"], "deep": {"n": 2}, "new": 1}


def test_branches_have_a_state_each_and_what_they_did_is_merged():
    async def fills(name, seconds, state):
        state["list"].append(name)
        state["dict"][name] = seconds
        state["last"] = name
        await asyncio.sleep(seconds)
        assert state["list"] == ["s", name]
        assert list(state["dict"]) == [name]
        return {}

    graph = made(
        "s a",
        "s b",
        joins=["a b > end"],
        nodes={
            "a": functools.partial(fills, "a", 2),
            "b": functools.partial(fills, "b", 1),
            "end": lambda state: {"at_end": dict(state)},
        },
        initial_state={"list": ["s"], "dict": {}},
    )
    expected = {"list": ["s", "b", "a"], "dict": {"b": 1, "a": 2}, "last": "a"}
    assert executed(graph)["at_end"] == expected
    assert graph.get_state() == expected


def test_what_two_branches_did_to_the_same_of_the_state_is_told():
    async def sets(value, seconds, state):
        await asyncio.sleep(seconds)
        state["k"] = value
        return {}

    nodes = {"a": functools.partial(sets, 1, 2), "b": functools.partial(sets, 2, 1)}

    async def main():
        handle = made("s a", "s b", nodes=nodes).submit({})
        await handle
        return [event async for event in handle.aevents() if isinstance(event, events.StateConflict)]

    (conflict,), _ = timed(main)
    assert conflict.path == ("k",)
    graph = made("s a", "s b", nodes=nodes, on_state_conflict="error")
    with pytest.raises(StateConflictError, match="'k'"):
        executed(graph)
    assert graph.get_state() == {}


def test_state_reducers():
    async def adds(number, state):
        await asyncio.sleep(number)
        state["n"] += number
        return {}

    graph = made(
        "s a",
        "s b",
        nodes={"a": functools.partial(adds, 1), "b": functools.partial(adds, 2)},
        initial_state={"n": 10},
        state_reducers={"n": lambda at_fork, merged, mine: merged + mine - at_fork},
    )
    executed(graph)
    assert graph.get_state() == {"n": 13}


def test_a_state_that_is_given_back_as_output_is_a_copy():
    graph = made("a b", nodes={"a": lambda state: {"kept": state}, "b": append}, initial_state={"seen": []})
    found = executed(graph, {"x": 1})
    assert found["kept"] == {"seen": []}
    assert type(found["kept"]) is dict
    assert graph.get_state() == {"seen": [1]}


def test_an_attempt_that_was_given_up_does_nothing_to_the_state_any_more():
    attempts = iter(range(9))

    @node(name="a", timeout=4, retry=RetryPolicy(max_attempts=3, retry_on=TimeoutError, jitter=False))
    def slow(state):
        attempt = next(attempts)
        sleep(
            6 if attempt == 0 else 3
        )  # the first one is given up while the second runs, and wakes in its midst
        state["seen"].append(attempt)
        state[attempt] = True
        return {}

    async def main():
        graph = made("a", nodes={"a": slow}, initial_state={"seen": []})
        await graph.execute({})
        return graph.get_state()

    assert run(main) == {"seen": [1], 1: True}


def test_a_state_can_be_used_as_any_dict():
    async def uses(state):
        assert isinstance(state, dict) and isinstance(state["a"], list)
        assert state == {"a": [1, {"b": 2}]}
        assert json.loads(json.dumps(state)) == state
        assert type(copy.deepcopy(state)) is dict
        assert pickle.loads(pickle.dumps(state)) == state
        assert {**state} | {"x": 1} == {"a": [1, {"b": 2}], "x": 1}
        assert state["a"] + [3] == [1, {"b": 2}, 3]
        assert sorted(state) == ["a"]
        assert state.pop("none", 3) == 3
        state["a"][1]["b"] += 1
        state["a"] += [4]
        state.setdefault("new", {})["deep"] = (1, 2)
        del state["a"][0]
        return {}

    graph = made("a", nodes={"a": uses}, initial_state={"a": [1, {"b": 2}]})
    executed(graph)
    assert graph.get_state() == {"a": [{"b": 3}, 4], "new": {"deep": (1, 2)}}
    assert type(graph.get_state()["a"]) is list


def test_a_state_that_a_node_keeps_is_not_the_graphs():
    kept = []

    async def keeps(state):
        state["list"] = [1]
        kept.append(state)
        return {}

    graph = made("a", nodes={"a": keeps})
    executed(graph)
    kept[0]["list"].append("late")
    kept[0]["late"] = 1
    assert graph.get_state() == {"list": [1]}


def test_a_graph_in_a_graph_has_a_state_of_its_own():
    async def counts(state):
        state["n"] += 1
        return {"n": state["n"]}

    inner = made("x", nodes={"x": counts}, initial_state={"n": 0}, name="inner")
    outer = made("inner a", nodes={"inner": inner, "a": counts}, initial_state={"n": 100})
    assert executed(outer) == {"n": 101}
    assert executed(outer) == {"n": 102}
    assert (inner.get_state(), outer.get_state()) == ({"n": 2}, {"n": 102})


# Other workflows as nodes


class Doubled(Node):
    def prep(self, shared):
        return shared["x"]

    def exec(self, x):
        return x * 2

    def post(self, shared, x, result):
        shared["double"] = result


def others():
    @task
    def of_a_task(values):
        return {"double": values["x"] * 2}

    @entrypoint()
    async def of_an_entrypoint(values):
        return {"double": values["x"] * 2}

    return {
        "a task": of_a_task,
        "an entrypoint": of_an_entrypoint,
        "a graph": made("double", nodes={"double": lambda x: {"double": x * 2}}),
        "a block": parallel(node("double")(lambda values: values["x"] * 2), name="block"),
        "a sequence": Sequence(lambda values: values["x"], lambda x: {"double": x * 2}),
        "a batch node": Doubled(),
        "a flow": Flow(Doubled()),
    }


@pytest.mark.parametrize("other", others().values(), ids=others().keys())
def test_any_workflow_is_a_node(other):
    """It gets all values, and the mapping that it gives is merged, its keys like those of a node."""
    graph = Graph().add_node(nothing, start=True).add_node(other, name="other")
    graph.add_node(lambda double: {"seen": double}, name="last", end=True)
    graph.add_edge(nothing, other).add_edge(other, "last")
    given = {"x": 4}
    assert executed(graph, given) == {"x": 4, "double": 8, "seen": 8}
    assert given == {"x": 4}


def test_a_workflow_that_gives_its_values_back_writes_only_what_it_has_changed():
    """Else the old x that it hands on would win, as it is completed last."""

    @task
    async def slow(values):
        await asyncio.sleep(2)
        return {**values, "mine": 1}

    for joins in ([], ["a b > end"]):
        graph = made(
            "s a", "s b", joins=joins, nodes={"a": slow, "b": gives(1, x="new")}, on_conflict="error"
        )
        assert executed(graph, {"x": "old"}) == {"x": "new", "mine": 1}


@pytest.mark.parametrize("other", ["a task", "a batch node"])
def test_a_workflow_that_changes_its_values_changes_its_own(other):
    @task
    def changes(values):
        values["double"] = values["x"] * 2
        return values

    async def looks(**flow):
        return {"seen": sorted(flow)}

    part = {"a task": changes, "a batch node": Doubled()}[other]
    graph = made("s a", "s wait b", nodes={"a": part, "wait": gives(1), "b": looks})
    given = {"x": 1}
    assert executed(graph, given) == {"x": 1, "double": 2, "seen": ["x"]}
    assert given == {"x": 1}


def test_what_is_no_mapping_stands_under_the_name_of_the_node():
    graph = made("a", nodes={"a": Sequence(lambda values: [values["x"]])})
    assert executed(graph, {"x": 1}) == {"x": 1, "a": [1]}


@KINDS
def test_a_node_can_ask(kind):
    """The branch beside it goes on; the answer comes with the next life, in which nothing that has ended runs again."""
    ran = []

    def asks(state):
        state["asked"] = state.get("asked", 0) + 1
        return {"answer": interrupt("sure?")}

    def other(state):
        ran.append("other")
        state["other"] = 1
        return {"other": 1}

    graph = made(
        "s a", "s b", joins=["a b > end"], nodes={"a": in_kind(kind, asks), "b": in_kind(kind, other)}
    )
    saver = InMemorySaver()
    found = graph.invoke({}, thread_id="t", checkpointer=saver)
    (question,) = found["__interrupt__"]
    assert question.value == "sure?"
    assert graph.get_state() == {}
    assert graph.invoke(Command(resume="yes"), thread_id="t", checkpointer=saver) == {
        "answer": "yes",
        "other": 1,
    }
    assert graph.get_state("t", checkpointer=saver) == {"asked": 1, "other": 1}
    assert graph.get_state() == {}  # the thread's is its own
    assert ran == ["other"]


# Routers


@KINDS
def test_a_router_takes_one_way(kind):
    log = Log()
    chooser = router(in_kind(kind, lambda which: {"choice": which, "seen": which}))
    graph = made("r a", "r b", nodes={"r": chooser, **log.nodes(a=0, b=0)})
    assert executed(graph, {"which": "b"}) == {"which": "b", "seen": "b", "b": True}
    assert log.names == ["b"]


@pytest.mark.parametrize("chosen", [["a", "b"], ("b", "a"), ["c"], ["a", "b", "c"]])
def test_a_router_takes_several_ways_at_the_same_time(chosen):
    log = Log()
    graph = made("s r a", "r b", "r c", nodes={"r": chooses(*chosen), **log.nodes(a=1, b=1, c=1)})
    found, seconds = timed(lambda: graph.execute({}))
    assert seconds == 1
    assert found == dict.fromkeys(chosen, True)
    assert log.names == [*chosen]  # which begin in the order in which they were chosen


def test_an_empty_choice_ends_the_branch():
    log = Log()
    graph = made("s r a", nodes={"r": chooses(more=1), **log.nodes(a=0)})
    assert executed(graph) == {"more": 1}
    assert log.names == []
    graph = made("s r a", "s b", nodes={"r": chooses(more=1), **log.nodes(a=0, b=1)})
    assert executed(graph) == {"more": 1, "b": True}


def test_one_name_several_times_runs_several_times():
    count = iter(range(9))

    async def tool():
        number = next(count)
        await asyncio.sleep([3, 3, 1][number])
        return {f"tool{number}": True, "last": number}

    ends = Log()
    graph = made(
        "r tool end", nodes={"r": chooses("tool", "tool", "tool"), "tool": tool, **ends.nodes(end=0)}
    )
    found, seconds = timed(lambda: graph.execute({}))
    assert seconds == 3
    assert found == {"tool0": True, "tool1": True, "tool2": True, "last": 1, "end": True}
    assert ends.times("end") == [1, 3, 3]


def test_a_router_without_edges_goes_anywhere():
    log = Log()
    graph = Graph().add_node(chooses("b"), name="r", start=True)
    for name in "ab":
        graph.add_node(log.node(name), name=name, end=True)
    assert executed(graph.compile()) == {"b": True}


def test_the_keys_of_routers_are_for_the_graph_alone():
    async def looks(**flow):
        return {"seen": sorted(flow)}

    graph = made("r a", nodes={"r": chooses("a", more=1), "a": looks})
    assert executed(graph, {"x": 1}) == {"x": 1, "more": 1, "seen": ["more", "x"]}


def test_values_called_choice_are_the_users_own_where_no_router_gave_them():
    graph = made("a r b", nodes={"a": gives(choice="mine", choices=[1]), "r": chooses("b")})
    assert executed(graph) == {"choice": "mine", "choices": [1]}


def test_a_router_reads_state_and_changes_it():
    @router
    async def turns(state):
        state["n"] = state.get("n", 0) + 1
        return {"choice": "tool" if state["n"] < 4 else "end"}

    log = Log()
    graph = made("start r tool r", "r end", nodes={"r": turns, **log.nodes(tool=1, end=0)})
    executed(graph)
    assert log.names == ["tool", "tool", "tool", "end"]
    assert graph.get_state() == {"n": 4}


def test_a_router_can_be_the_start():
    graph = Graph().add_node(router(start=True, name="r")(lambda: {"choice": "a"}))
    assert executed(graph.add_node(gives(a=1), name="a", end=True).add_edge("r", "a")) == {"a": 1}


# Joins


def test_a_join_waits_for_branches_of_any_length():
    log = Log()
    graph = made(
        "s a b c",
        "s d",
        joins=["c d > end"],
        nodes=log.nodes(s=0, a=1, b=1, c=1, d=5, end=0),
    )
    found, seconds = timed(lambda: graph.execute({}))
    assert found == dict.fromkeys(["s", "a", "b", "c", "d", "end"], True)
    assert seconds == 5
    assert log.times("end") == [5]


def test_what_stands_before_a_join_is_in_the_flow_behind_it():
    graph = made(
        "s a",
        "s b",
        joins=["a b > end"],
        nodes={
            "s": gives(s=1),
            "a": gives(2, a=2, s="a"),
            "b": lambda s: {"b": s},
            "end": lambda s, a, b: {"found": (s, a, b)},
        },
    )
    assert executed(graph)["found"] == ("a", 2, 1)


def test_nested_joins():
    log = Log()
    graph = made(
        "s m",
        "s d",
        "m a",
        "m b c",
        joins=["a c > inner", "inner d > end"],
        nodes=log.nodes(s=0, m=1, a=1, b=1, c=1, d=2, inner=1, end=0),
    )
    executed(graph)
    assert log.times("inner") == [3]
    assert log.times("end") == [4]


def test_two_joins_of_one_fork():
    log = Log()
    graph = made(
        "s a",
        "s b",
        "s c",
        "s d",
        joins=["a b > left", "c d > right", "left right > end"],
        nodes=log.nodes(a=1, b=2, c=3, d=4, left=1, right=1, end=0),
    )
    executed(graph)
    assert [log.times(name) for name in ("left", "right", "end")] == [[2], [4], [5]]


def test_the_same_source_in_two_joins():
    log = Log()
    graph = made(
        "s a",
        "s b",
        "s c",
        joins=["a b > left", "a c > right"],
        nodes=log.nodes(a=1, b=2, c=3, left=0, right=0),
    )
    executed(graph)
    assert (log.times("left"), log.times("right")) == ([2], [3])


@pytest.mark.parametrize(
    ("chosen", "fires"), [(["a"], [1]), (["a", "b"], [2]), (["c"], []), (["a", "c"], [3]), ([], [])]
)
def test_a_join_fires_with_what_came_and_not_at_all_with_nothing(chosen, fires):
    """What is on its way somewhere else can still come to the join: only then it is waited for."""
    log = Log()
    nodes = {"r": chooses(*chosen), "c": Log().router("c", ["out"], seconds=3), **log.nodes(a=1, b=2, end=0)}
    graph = made("s r a", "r b", "r c", "c b", "c out", joins=["a b > end"], nodes=nodes)
    found = executed(graph)
    assert log.times("end") == fires
    assert set(found) == {*chosen, *(["end"] if fires else [])} - {"c"}


def test_a_join_does_not_wait_for_what_can_never_come():
    log = Log()
    graph = made("s a", "s b", "s c", joins=["a b > end"], nodes=log.nodes(a=1, b=2, c=50, end=0))
    _, seconds = timed(lambda: graph.execute({}))
    assert log.times("end") == [2]
    assert seconds == 50


def test_a_join_that_is_come_to_without_a_fork():
    log = Log()
    executed(made("s a", joins=["a > b", "b > end"], nodes=log.nodes(s=1, a=1, b=1, end=0)))
    assert log.began == [("s", 0), ("a", 1), ("b", 2), ("end", 3)]


def test_a_branch_that_loops_on_its_way_to_a_join():
    log = Log()
    graph = made(
        "s r",
        "r again r",
        "r a",
        "s b",
        joins=["a b > end"],
        nodes={
            "r": log.router("r", "again", "again", "a", seconds=1),
            **log.nodes(again=1, a=1, b=1, end=0),
        },
    )
    executed(graph)
    assert log.times("r") == [0, 2, 4]
    assert log.times("end") == [6]


def test_a_branch_that_ends_early():
    log = Log()
    graph = made("s a stop", "s b", "s c", joins=["b c > end"], nodes=log.nodes(a=1, stop=5, b=1, c=2, end=1))
    found, seconds = timed(lambda: graph.execute({}))
    assert log.times("end") == [2]
    assert seconds == 6
    assert found == dict.fromkeys(["a", "stop", "b", "c", "end"], True)


@pytest.mark.parametrize("rounds", [1, 3, 20])
def test_a_join_that_leads_back_is_one_for_each_round(rounds):
    log = Log()
    chooser = log.router("r", *([["a", "b"]] * rounds), "end")
    graph = made(
        "s r a", "r b", "r end", joins=["a b > r"], nodes={"r": chooser, **log.nodes(a=1, b=2, end=0)}
    )
    executed(graph)
    assert log.times("r") == [2 * n for n in range(rounds + 1)]
    assert len(log.times("a")) == len(log.times("b")) == rounds
    assert log.times("end") == [2 * rounds]


@pytest.mark.parametrize(("chosen", "times"), [(["a", "a", "a"], 3), (["a", "b", "a", "b", "a"], 5)])
def test_one_name_several_times_before_a_join_that_leads_back(chosen, times):
    log = Log()
    nodes = {"r": log.router("r", chosen, "end"), **log.nodes(a=3, b=1, end=0)}
    graph = made("s r a", "r b", "r end", joins=["a b > r"], nodes=nodes)
    executed(graph)
    assert len(log.names) == times + 3
    assert log.times("r") == [0, 3]
    assert log.times("end") == [3]


def test_a_join_of_which_a_source_is_not_chosen():
    log = Log()
    chooser = log.router("r", ["a", "b"], "end")
    graph = made(
        "s r a",
        "r b",
        "r c",
        "r end",
        joins=["a b c > r"],
        nodes={"r": chooser, **log.nodes(a=1, b=1, c=1, end=0)},
    )
    found = executed(graph)
    assert found == {"a": True, "b": True, "end": True}
    assert log.times("end") == [1]


def test_a_fork_after_a_join_after_a_fork():
    log = Log()
    graph = made(
        "s a",
        "s b",
        "mid c",
        "mid d",
        joins=["a b > mid", "c d > end"],
        nodes=log.nodes(a=1, b=2, mid=1, c=1, d=3, end=0),
    )
    executed(graph)
    assert log.times("mid") == [2]
    assert log.times("end") == [6]


def test_a_join_in_each_branch_of_a_fork_that_is_opened_once_for_each():
    """Both branches of the outer fork go through the same inner one; each has a join of its own."""
    log = Log()
    graph = made(
        "s x fork",
        "s y fork",
        "fork a",
        "fork b",
        joins=["a b > j"],
        nodes=log.nodes(x=1, y=10, fork=0, a=1, b=2, j=0),
    )
    executed(graph)
    assert log.times("fork") == [1, 10]
    assert log.times("j") == [3, 12]


# How many steps


@pytest.mark.parametrize(("length", "is_too_long"), [(10, False), (11, True)])
def test_max_steps_counts_what_runs_one_after_the_other(length, is_too_long):
    log = Log()
    names = [f"n{i}" for i in range(length)]
    graph = made(" ".join(names), nodes={name: log.node(name) for name in names}, max_steps=10)
    if is_too_long:
        with pytest.raises(MaxStepsError) as caught:
            executed(graph)
        assert caught.value.max_steps == 10
        assert caught.value.loop == ()
    else:
        executed(graph)
    assert log.names == names[:10]


def test_max_steps_counts_the_longest_way_and_not_all_nodes():
    names = [f"b{i}" for i in range(50)]
    graph = made(*(f"s {name}" for name in names), joins=[f"{' '.join(names)} > end"], max_steps=3)
    assert executed(graph) == {}


@pytest.mark.parametrize(("max_steps", "is_enough"), [(4, False), (5, True)])
def test_max_steps_behind_a_join_counts_the_longest_way_to_it(max_steps, is_enough):
    graph = made("s a b c", "s d", joins=["c d > end"], max_steps=max_steps)
    if is_enough:
        assert executed(graph) == {}
        return
    with pytest.raises(MaxStepsError, match="'end' would be the next"):
        executed(graph)


@pytest.mark.parametrize(("max_steps", "routed"), [(5, 2), (6, 3)])
def test_max_steps_bounds_a_loop_that_goes_through_a_join(max_steps, routed):
    log = Log()
    nodes = {"r": log.router("r", *[["a", "b"]] * 99), **log.nodes(a=0, b=0)}
    graph = made("s r a", "r b", "r end", joins=["a b > r"], nodes=nodes, max_steps=max_steps)
    with pytest.raises(MaxStepsError) as caught:
        executed(graph)
    assert caught.value.max_steps == max_steps
    assert len(log.times("r")) == routed


def test_a_loop_of_a_router_and_its_tool():
    """Nodes begin: start, llm, tool, llm, tool, llm, end."""

    def loop(max_steps, turns):
        calls = []

        @router
        async def llm(x):
            calls.append("llm")
            return {"choice": "tool" if x < turns else "end", "x": x}

        async def tool(x):
            calls.append("tool")
            return {"x": x + 1}

        graph = Graph(max_steps=max_steps).add_node(gives(x=0), name="start", start=True)
        graph.add_node(llm).add_node(tool).add_node(nothing, name="end", end=True).add_edge("start", llm)
        return graph.add_router(sources=[tool], router=llm, destinations=[tool, "end"]).compile(), calls

    graph, calls = loop(7, 2)
    assert executed(graph) == {"x": 2}
    assert calls == ["llm", "tool", "llm", "tool", "llm"]
    graph, calls = loop(5, 1000)
    with pytest.raises(MaxStepsError) as caught:
        executed(graph)
    assert caught.value.loop == ("llm", "tool")
    assert len(calls) == 4
    graph, calls = loop(None, 30)  # three times as long as any default of a handful
    assert executed(graph) == {"x": 30}


def test_a_loop_has_a_bound_of_its_own_and_a_chain_has_none():
    assert executed(made(" ".join(f"n{i}" for i in range(10_001)))) == {}

    @router
    async def spin():
        return {"choice": "spin"}

    graph = made("spin end", nodes={"spin": spin}).add_edge("spin", "spin")
    with pytest.raises(MaxStepsError) as caught:
        graph.invoke({})
    assert caught.value.max_steps == 10_000
    assert caught.value.loop == ("spin",)


def test_a_loop_that_is_strictly_refused():
    graph = made("s r a r", "r end", nodes={"r": chooses("end")})
    assert graph.compile() is graph
    with pytest.raises(GraphCompileError, match="'r' -> 'a' -> 'r'"):
        graph.compile(strict=True)


# Orders


@pytest.mark.parametrize("seed", range(20))
def test_what_ends_at_one_moment_is_merged_in_some_order_and_all_of_it(seed):
    nodes = {name: gives(1, k=[name]) for name in "abcd"}
    graph = made(
        *(f"s {name}" for name in "abcd"), joins=["a b c d > end"], nodes=nodes, reducers={"k": list.__add__}
    )
    found = run(lambda: graph.execute({}), seed=seed)
    assert sorted(found["k"]) == ["a", "b", "c", "d"]
