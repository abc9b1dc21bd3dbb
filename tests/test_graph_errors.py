"""What goes wrong with a graph is said clearly: what, where, with which value, and what was possible."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import subprocess
import sys
import textwrap
import traceback

import pytest
from leftovers import nothing_left, timed, within

import weft
from weft import (
    ConflictError,
    DefinitionError,
    Graph,
    GraphCompileError,
    GraphError,
    InMemorySaver,
    InputError,
    MaxStepsError,
    ParallelExecutionError,
    ParallelTimeoutError,
    StateConflictError,
    StuckError,
    UnstorableError,
    WeftError,
    node,
    parallel,
    router,
    tolerate,
)

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@node(start=True)
async def begin(input):
    return {}


@node
async def a(input):
    return {"a": 1}


@node
def b(input):
    return {"b": 1}


@node(end=True)
async def end(input):
    return {}


@router
async def chooser(input):
    return input


GIVEN = {"input": {}}


def graph_of(*nodes, **options):
    graph = Graph(**options)
    for each in nodes:
        graph.add_node(each)
    return graph


def chain(*nodes, **options):
    """These, one after the other."""
    graph = graph_of(*nodes, **options).set_start_node(nodes[0]).set_end_node(nodes[-1])
    for one, other in zip(nodes, nodes[1:], strict=False):
        graph.add_edge(one, other)
    return graph


def in_kind(kind, fn, **options):
    """A node that gives what the function gives, or raises what it raises."""

    async def body(input):
        await asyncio.sleep(0)
        return fn(input)

    def sync_body(input):
        return fn(input)

    return node(name="x", **options)(body if kind == "async" else sync_body)


# Being built

UNKNOWN = "which is no node; the nodes are 'begin', 'a', 'b'; add_node() adds one"


def three():
    return graph_of(begin, a, b)


WRONG_TO_BUILD = {
    "an unknown name": (lambda: three().add_edge("a", "zzz"), f"add_edge() names 'zzz', {UNKNOWN}"),
    "an unknown source": (lambda: three().add_edge("zzz", "a"), f"add_edge() names 'zzz', {UNKNOWN}"),
    "an unknown node": (lambda: three().add_edge(a, end), f"add_edge() names 'end', {UNKNOWN}"),
    "a misspelt name": (
        lambda: three().add_edge("a", "begni"),
        (
            "add_edge() names 'begni', which is no node; did you mean 'begin'? the nodes are 'begin', 'a', 'b'; "
            "add_node() adds one"
        ),
    ),
    "a fork to an unknown node": (
        lambda: three().add_parallel(a, [b, end]),
        f"add_parallel() names 'end', {UNKNOWN}",
    ),
    "a fork from an unknown node": (
        lambda: three().add_parallel(end, [a, b]),
        f"add_parallel() names 'end', {UNKNOWN}",
    ),
    "a join of an unknown node": (
        lambda: three().add_join([a, "zzz"], b),
        f"add_join() names 'zzz', {UNKNOWN}",
    ),
    "a join to an unknown node": (
        lambda: three().add_join([a, b], end),
        f"add_join() names 'end', {UNKNOWN}",
    ),
    "an unknown router": (
        lambda: three().add_router([a], chooser, [b]),
        f"add_router() names 'chooser', {UNKNOWN}",
    ),
    "a router behind an unknown node": (
        lambda: three().add_node(chooser).add_router(["zzz"], chooser, [b]),
        "add_router() names 'zzz', which is no node; the nodes are 'begin', 'a', 'b', 'chooser'; add_node() adds one",
    ),
    "a router to an unknown node": (
        lambda: three().add_node(chooser).add_router([a], chooser, ["zzz"]),
        "add_router() names 'zzz', which is no node; the nodes are 'begin', 'a', 'b', 'chooser'; add_node() adds one",
    ),
    "an unknown start": (lambda: three().set_start_node("zzz"), f"set_start_node() names 'zzz', {UNKNOWN}"),
    "an unknown end": (lambda: three().set_end_node(end), f"set_end_node() names 'end', {UNKNOWN}"),
    "an edge in a graph of nothing": (
        lambda: Graph().add_edge("a", "b"),
        "add_edge() names 'a', and the graph has no nodes yet: add_node() adds one",
    ),
    "many nodes": (
        lambda: graph_of(*(node(name=f"n{i}")(a.func) for i in range(30))).add_edge("n1", "zzz"),
        (
            "add_edge() names 'zzz', which is no node; the nodes are "
            f"{', '.join(repr(f'n{i}') for i in range(12))} and 18 more; add_node() adds one"
        ),
    ),
    "two starts": (
        lambda: graph_of(begin, node(name="other", start=True)(a.func)),
        (
            "the graph begins at 'begin', so that 'other' cannot be a start node too: multiple start nodes are not "
            "possible, since an execution can begin at one only"
        ),
    ),
    "a second start by option": (
        lambda: graph_of(begin).add_node(a, start=True),
        (
            "the graph begins at 'begin', so that 'a' cannot be a start node too: multiple start nodes are not "
            "possible, since an execution can begin at one only"
        ),
    ),
    "two nodes of one name": (
        lambda: graph_of(a, a),
        "the graph has a node named 'a' already; give this one another name: add_node(..., name=...)",
    ),
    "another node of one name": (
        lambda: graph_of(a, node(name="a")(b.func)),
        "the graph has a node named 'a' already; give this one another name: add_node(..., name=...)",
    ),
    "a callback in a node that does not stream": (
        lambda: graph_of(node(name="x")(lambda callback: {})),
        "node 'x' declares `callback`, which only a streaming node gets: @node(stream=True)",
    ),
    "a node as a router": (
        lambda: three().add_router([begin], a, [b]),
        "'a' is no router, which says where to go on: put @router on it, not @node",
    ),
    "a join of nothing": (lambda: three().add_join([], a), "add_join() needs at least one source"),
    "a name as several": (
        lambda: three().add_parallel(begin, "a"),
        "add_parallel() takes a list of nodes, not 'a'; for one write ['a']",
    ),
    "a node as several": (
        lambda: three().add_parallel(begin, a),
        "add_parallel() takes a list of nodes, not <weft.node 'a'>; for one write [<weft.node 'a'>]",
    ),
    "a name as several sources": (
        lambda: three().add_join("a", b),
        "add_join() takes a list of nodes, not 'a'; for one write ['a']",
    ),
    "other options of one fork": (
        lambda: three().add_parallel(begin, [a], max_concurrent=1).add_parallel(begin, [b], max_concurrent=2),
        "the fork behind 'begin' has other options already: all branches behind a node are one block",
    ),
    "a state that is no dict": (
        lambda: Graph(initial_state=[1]),
        "the state of a graph is a dict, not [1]",
    ),
    "to set a state that is no dict": (
        lambda: Graph().set_state(None),
        "the state of a graph is a dict, not None",
    ),
    "to update a state with no dict": (
        lambda: Graph().update_state([("a", 1)]),
        "the state of a graph is a dict, not [('a', 1)]",
    ),
    "a callback that cannot be made": (
        lambda: Graph().set_callback(3),
        "set_callback() takes a class such as EventCallback, not 3",
    ),
}


@pytest.mark.parametrize(("build", "says"), WRONG_TO_BUILD.values(), ids=WRONG_TO_BUILD.keys())
def test_what_is_built_wrongly_is_refused_at_once(build, says):
    with pytest.raises(GraphError) as caught:
        build()
    assert str(caught.value) == says
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, WeftError)
    assert len(traceback.format_tb(caught.value.__traceback__)) <= 7


def test_what_is_refused_leaves_the_graph_as_it_was():
    graph = chain(begin, a, end)
    for build in (
        lambda: graph.add_edge(a, "zzz"),
        lambda: graph.add_parallel(a, [begin, "zzz"]),
        lambda: graph.add_parallel(a, [end, begin], max_concurrent=0),
        lambda: graph.add_join([a, "zzz"], end),
        lambda: graph.add_node(a),
        lambda: graph.add_node(b, start=True),
        lambda: graph.set_start_node("zzz"),
    ):
        with pytest.raises(WeftError):
            build()
    assert [*graph.nodes] == ["begin", "a", "end"]
    assert graph.compile(strict=True) is graph
    assert graph.invoke(GIVEN) == {"input": {}, "a": 1}


@pytest.mark.parametrize("wrong", [3, None, [b], {}, 1.5])
def test_what_is_no_node_cannot_be_meant(wrong):
    with pytest.raises(GraphError) as caught:
        three().add_edge(a, wrong)
    assert repr(wrong) in str(caught.value)
    assert "name" in str(caught.value)


@pytest.mark.parametrize("wrong", [3, None, "a", Graph, [], {}])
def test_what_is_no_node_cannot_be_added(wrong):
    with pytest.raises(DefinitionError) as caught:
        Graph().add_node(wrong)
    assert str(caught.value) == (
        f"add_node() takes nodes, tasks, functions and other workflows, not {type(wrong).__name__}: {wrong!r}"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"max_steps": -1}, "max_steps must be at least 1, not -1"),
        ({"max_steps": True}, "max_steps must be a whole number of at least 1, not True"),
        ({"max_steps": 1.5}, "max_steps must be a whole number of at least 1, not 1.5"),
        ({"max_steps": math.nan}, "max_steps must be a whole number of at least 1, not nan"),
        ({"max_steps": "10"}, "max_steps must be a whole number of at least 1, not '10'"),
        ({"name": ""}, "the name of Graph() must be a string that is not empty, not ''"),
        ({"name": 3}, "the name of Graph() must be a string that is not empty, not 3"),
        ({"reducers": {"k": 3}}, "the reducer of 'k' must be a function of two values, not 3"),
        ({"reducers": ["k"]}, "reducers are a dict of functions of two values, by key, not ['k']"),
        ({"state_reducers": {"k": 3}}, "the reducer of 'k' must be a function of three values, not 3"),
        ({"on_conflict": "raise"}, 'on_conflict must be "last" or "error", not \'raise\''),
        ({"on_state_conflict": None}, 'on_state_conflict must be "last" or "error", not None'),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"total": 0}, "total"),
        ({"retry": "often"}, "a retry is a number of attempts, a RetryPolicy(max_attempts=...) or several"),
    ],
    ids=str,
)
def test_options_of_a_graph_that_can_never_work(options, says):
    with pytest.raises(DefinitionError) as caught:
        Graph(**options)
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_concurrent": 0}, "max_concurrent must be at least 1, not 0"),
        ({"max_concurrent": -2}, "max_concurrent must be at least 1, not -2"),
        ({"max_concurrent": True}, "max_concurrent must be a whole number of at least 1, not True"),
        ({"max_concurrent": math.nan}, "max_concurrent must be a whole number of at least 1, not nan"),
        ({"timeout": 0}, "timeout must be a finite number of seconds greater than 0, not 0"),
        ({"timeout": math.inf}, "timeout must be a finite number of seconds greater than 0, not inf"),
        ({"timeout": "2"}, "timeout must be a number of seconds, not '2'"),
        ({"on_error": "ignore"}, 'on_error must be "fail_fast", "collect", "race", tolerate('),
        ({"on_error": None}, 'on_error must be "fail_fast", "collect", "race", tolerate('),
        ({"need": 0}, "need must be a whole number of at least 1, not 0"),
        (
            {"need": 1, "on_error": "collect"},
            "need=1 and on_error='collect' are two policies: leave one of them out",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("builder", ["add_parallel", "add_router"])
def test_options_of_a_fork_that_can_never_work(builder, options, says):
    graph = three().add_node(chooser)
    with pytest.raises(DefinitionError) as caught:
        if builder == "add_parallel":
            graph.add_parallel(begin, [a, b], **options)
        else:
            graph.add_router([begin], chooser, [a, b], **options)
    assert str(caught.value).startswith(says)


def test_a_misspelt_option_of_a_fork_names_the_builder():
    with pytest.raises(TypeError, match="add_router.*max_concurent"):
        three().add_node(chooser).add_router([begin], chooser, [a], max_concurent=1)
    with pytest.raises(TypeError, match="add_parallel.*max_concurent"):
        three().add_parallel(begin, [a], max_concurent=1)


@pytest.mark.parametrize("wrong", [{"strat": True}, {"ends": True}, {"retries": 3}])
@pytest.mark.parametrize("decorator", [node, router])
def test_a_misspelt_option_of_a_node(decorator, wrong):
    with pytest.raises(DefinitionError) as caught:
        decorator(**wrong)
    assert repr(next(iter(wrong))) in str(caught.value)
    assert "start" in str(caught.value)
    assert "retry" in str(caught.value)


def test_a_router_is_no_end():
    with pytest.raises(DefinitionError, match="'choices': \\[\\]"):
        router(end=True)


# Being compiled


def other_loop():
    return graph_of(begin, a, b).add_edge(begin, a).add_edge(a, b).add_edge(b, a)


WRONG_TO_COMPILE = {
    "nothing": (Graph, ["the graph has no nodes: add_node() adds one"]),
    "no start": (
        lambda: graph_of(a, end).add_edge(a, end),
        ["the graph has no start node: give one of 'a', 'end' start=True, or call set_start_node()"],
    ),
    "a node that is not reached": (
        lambda: graph_of(begin, end, a).add_edge(begin, end).add_edge(a, end),
        ["no path leads from the start 'begin' to 'a'"],
    ),
    "no end": (
        lambda: graph_of(begin),
        ["node 'begin' has no way on: add an edge or a join, or make it an end node (end=True)"],
    ),
    "a node without a way on": (
        lambda: graph_of(begin, a, end).add_parallel(begin, [a, end]),
        ["node 'a' has no way on: add an edge or a join, or make it an end node (end=True)"],
    ),
    "an edge behind an end": (
        lambda: chain(begin, end).add_node(a).add_edge(end, a).set_end_node(a),
        [
            "no path leads from the start 'begin' to 'a'",
            "'end' is an end node, so that no branch goes on from there to 'a'",
        ],
    ),
    "a join that can never fire": (
        lambda: chain(begin, end).add_node(a).add_node(b).add_join([a, b], end),
        [
            "no path leads from the start 'begin' to 'a', 'b'",
            "the join ['a', 'b'] -> 'end' can never fire: no branch can come to it from any of its sources",
        ],
    ),
    "a join of ends": (
        lambda: (
            graph_of(begin, a, b, end)
            .add_parallel(begin, [a, b])
            .set_end_node(a)
            .set_end_node(b)
            .add_join([a, b], end)
        ),
        [
            "no path leads from the start 'begin' to 'end'",
            "'a' is an end node, so that no branch goes on from there to the join ['a', 'b'] -> 'end'",
            "'b' is an end node, so that no branch goes on from there to the join ['a', 'b'] -> 'end'",
            "the join ['a', 'b'] -> 'end' can never fire: no branch can come to it from any of its sources",
        ],
    ),
    "a source that is named twice": (
        lambda: graph_of(begin, a, end).add_edge(begin, a).add_join([a, a], end),
        ["the join ['a', 'a'] -> 'end' names the source 'a' twice"],
    ),
    "a loop that cannot be left": (
        other_loop,
        [
            "the loop 'a' -> 'b' -> 'a' can never end: nothing in it is a router, which could choose to leave it"
        ],
    ),
}


@pytest.mark.parametrize(("build", "says"), WRONG_TO_COMPILE.values(), ids=WRONG_TO_COMPILE.keys())
def test_what_can_never_work_is_refused_by_compile(build, says):
    with pytest.raises(GraphCompileError) as caught:
        build().compile()
    assert [*caught.value.problems] == says
    if len(says) == 1:
        assert str(caught.value) == says[0]
    else:
        assert str(caught.value) == "".join(
            [f"{len(says)} things are wrong:", *(f"\n- {each}" for each in says)]
        )


@pytest.mark.parametrize(("build", "says"), WRONG_TO_COMPILE.values(), ids=WRONG_TO_COMPILE.keys())
@pytest.mark.parametrize("place", ["itself", "a branch", "a step", "a node"])
def test_validate_says_the_same_also_of_what_it_is_a_part_of(place, build, says):
    around = {
        "itself": lambda graph: graph,
        "a branch": lambda graph: parallel(graph, b, name="block"),
        "a step": lambda graph: graph >> b,
        "a node": lambda graph: Graph(name="outer").add_node(graph, name="inner", start=True, end=True),
    }
    with pytest.raises(DefinitionError) as caught:
        around[place](build()).validate()
    for each in says:
        assert each.removeprefix("the graph ") in str(caught.value)
    assert ("inner" in str(caught.value)) == (place == "a node")  # which one it is


def test_a_graph_that_contains_itself():
    """It would never come to an end, and nothing could be said of it without one."""
    graph = Graph(name="outer").add_node(begin)
    with pytest.raises(GraphError, match="'outer'"):
        within(
            5, lambda: graph.add_node(graph, name="itself", end=True).add_edge(begin, "itself").invoke(GIVEN)
        )
    one = Graph(name="one").add_node(begin)
    other = Graph(name="other").add_node(one, start=True, end=True)
    with pytest.raises(GraphError, match="'one'|'other'"):
        within(5, lambda: one.add_node(other, end=True).add_edge(begin, other).compile())


def test_a_graph_may_call_itself():
    async def again(n):
        return await graph.execute({"n": n - 1})

    chooses = router(name="chooses")(lambda n: {"choice": "again" if n else "stop"})
    graph = Graph().add_node(chooses, start=True).add_node(again, end=True)
    graph.add_node(lambda n: {"end": n}, name="stop", end=True).add_parallel(chooses, ["again", "stop"])
    assert executed(graph, {"n": 30}) == {"n": 0, "end": 0}


def test_a_strict_graph_has_no_loop():
    graph = graph_of(begin, chooser, a, end).add_edge(begin, chooser)
    graph.add_router([a], chooser, [a, end]).compile()
    with pytest.raises(GraphCompileError) as caught:
        graph.compile(strict=True)
    assert str(caught.value) == "there is a loop, which strict=True refuses: 'chooser' -> 'a' -> 'chooser'"


@pytest.mark.parametrize("name", ["nothing", "no start"])
def test_what_cannot_even_begin_is_refused_by_every_verb(name):
    graph = WRONG_TO_COMPILE[name][0]()
    (says,) = WRONG_TO_COMPILE[name][1]

    async def execute():
        await graph.execute(GIVEN)

    async def astream():
        return [chunk async for chunk in graph.astream(GIVEN)]

    async def many():
        await graph.execute_many([GIVEN])

    for verb in (
        lambda: graph.invoke(GIVEN),
        lambda: asyncio.run(execute()),
        lambda: asyncio.run(astream()),
        lambda: asyncio.run(many()),
        lambda: list(graph.stream(GIVEN)),
        lambda: graph.submit(GIVEN).result(5),
        lambda: graph.map([GIVEN]),
    ):
        with nothing_left(), pytest.raises(GraphCompileError) as caught:
            within(10, verb)
        assert str(caught.value) == says


# Being run


def executed(graph, given=None, **options):
    return timed(lambda: graph.execute(GIVEN if given is None else given, **options))[0]


def notes_of(error):
    return getattr(error, "__notes__", [])


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (None, "nothing (None)"),
        ([1], "list: [1]"),
        ("text", "str: 'text'"),
        (3, "int: 3"),
        ({1}, "set: {1}"),
        ("x" * 500, "str: 'xxx"),
    ],
    ids=str,
)
@KINDS
def test_a_node_that_gives_no_dict(kind, output, got):
    with pytest.raises(GraphError) as caught:
        executed(chain(begin, in_kind(kind, lambda _: output)))
    text = str(caught.value)
    assert text.startswith(
        "node 'x' must return a dict of what it gives to the nodes after it ({} for nothing); expected dictionary "
        f"output, got {got}"
    )
    assert len(text) < 250
    assert notes_of(caught.value)[0].startswith("weft: raised by 'x'(input={}), call ")


R = "router 'chooser'"
NEITHER = f"{R} gave neither 'choice' (the name of a node) nor 'choices' (a list of names), but"
NO_DICT = f"{R} must return a dict with 'choice' (the name of a node) or 'choices' (a list of names)"
BOTH = f"{R} gave both 'choice' and 'choices'; it must give one of them"
NO_EDGE = (
    f"{R} chose 'begin', to which it has no edge; it can go to 'a', 'end'; or add_edge('chooser', 'begin')"
)
NO_NODE = "which is no node; it can go to 'a', 'end'"
NO_LIST = f"the 'choices' of {R} must be a list of names of nodes, not"


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({}, f"{NEITHER} an empty dict"),
        ({"x": 1}, f"{NEITHER} a dict with 'x'"),
        (None, f"{NO_DICT}; expected dictionary output, got nothing (None)"),
        ("end", f"{NO_DICT}; expected dictionary output, got str: 'end'"),
        ({"choice": "zzz"}, f"{R} chose 'zzz', {NO_NODE}"),
        ({"choice": ""}, f"{R} chose '', {NO_NODE}"),
        (
            {"choice": "edn"},
            f"{R} chose 'edn', which is no node; did you mean 'end'? it can go to 'a', 'end'",
        ),
        ({"choices": ["a", "zzz"]}, f"{R} chose 'zzz', {NO_NODE}"),
        ({"choice": "begin"}, NO_EDGE),
        ({"choice": 3}, f"the 'choice' of {R} must be the name of a node, not 3"),
        ({"choice": None}, f"the 'choice' of {R} must be the name of a node, not None"),
        ({"choice": ["end"]}, f"the 'choice' of {R} must be the name of a node, not ['end']"),
        ({"choices": "end"}, f"{NO_LIST} 'end'"),
        ({"choices": ["a", 3]}, f"{NO_LIST} ['a', 3]"),
        ({"choices": None}, f"{NO_LIST} None"),
        ({"choices": {"a": 1}}, f"{NO_LIST} {{'a': 1}}"),
        ({"choice": "a", "choices": ["end"]}, BOTH),
    ],
    ids=str,
)
def test_a_router_that_says_nothing_possible(chosen, says):
    graph = chain(begin, chooser, a, end).add_edge(chooser, end)
    with nothing_left(), pytest.raises(GraphError) as caught:
        executed(graph, {"input": chosen})
    text = str(caught.value)
    assert text.startswith(says)
    assert says == BOTH or "it can go to 'a', 'end'" in text  # what was possible
    assert notes_of(caught.value)[0].startswith("weft: raised by 'chooser'(input=")


def test_a_router_without_edges_can_go_to_any_node():
    with pytest.raises(GraphError) as caught:
        executed(graph_of(begin, chooser, end).add_edge(begin, chooser), {"input": {"choice": "zzz"}})
    assert (
        str(caught.value)
        == "router 'chooser' chose 'zzz', which is no node; it can go to 'begin', 'chooser', 'end'"
    )


@pytest.mark.parametrize(
    ("function", "what", "it"),
    [
        (lambda query: {}, "parameter 'query'", "it"),
        (lambda query, top, /, *, limit=3, other: {}, "parameters 'query', 'top', 'other'", "them"),
        (lambda query, limit, state, upstream, more=1: {}, "parameter 'query'", "it"),
    ],
)
def test_a_parameter_that_nothing_has_given(function, what, it):
    with pytest.raises(InputError) as caught:
        executed(chain(begin, node(name="x")(function)), {"input": 1, "limit": 2})
    assert str(caught.value) == (
        f"node 'x' is missing the required {what}: neither the input nor a node before it has given {it}; "
        "there is 'input', 'limit'"
    )


def test_the_start_without_its_input():
    with pytest.raises(InputError) as caught:
        executed(chain(begin, end), {})
    assert str(caught.value) == (
        "node 'begin' is missing the required parameter 'input': neither the input nor a node before it has given it; "
        "there is nothing"
    )


def test_a_node_that_has_no_way_on():
    with pytest.raises(GraphError) as caught:
        executed(graph_of(begin, a).add_edge(begin, a))
    assert str(caught.value) == (
        "node 'a' has ended and there is no way on from it: add an edge or a join, or make it an end node (end=True)"
    )


@pytest.mark.parametrize("wrong", [None, [1], "hello", 3, {1}], ids=repr)
def test_an_input_that_is_no_dict(wrong):
    graph = chain(begin, end, name="flow")

    async def execute():
        await graph.execute(wrong)

    async def many():
        await graph.execute_many([GIVEN, wrong])

    async def submitted():
        await graph.submit(wrong)

    for verb in (
        lambda: graph.invoke(wrong),
        lambda: asyncio.run(execute()),
        lambda: asyncio.run(many()),
        lambda: asyncio.run(submitted()),
        lambda: list(graph.stream(wrong)),
    ):
        with nothing_left(), pytest.raises(InputError) as caught:
            within(10, verb)
        assert str(caught.value) == f"'flow' takes a dict whose keys are what its nodes read, not {wrong!r}"


def test_a_chain_that_is_too_long():
    with pytest.raises(MaxStepsError) as caught:
        executed(chain(begin, a, b, end, max_steps=2))
    assert str(caught.value).startswith("2 nodes have run one after the other and 'b' would be the next")
    assert "max_steps" in str(caught.value)
    assert "loop" not in str(caught.value)
    assert (caught.value.max_steps, caught.value.loop) == (2, ())


def test_a_loop_that_goes_round_too_often_is_named():
    graph = graph_of(begin, chooser, a, end, max_steps=7).add_edge(begin, chooser)
    graph.add_router([a], chooser, [a, end])
    with pytest.raises(MaxStepsError) as caught:
        executed(graph, {"input": {"choice": "a"}})
    # begin, and three times chooser and a
    assert str(caught.value).startswith(
        "7 nodes have run one after the other and 'chooser' would be the next, in the loop "
        "'chooser' -> 'a' -> 'chooser'"
    )
    assert caught.value.loop == ("chooser", "a")


def test_a_loop_that_nothing_can_leave_has_a_bound():
    with pytest.raises(MaxStepsError) as caught:
        other_loop().invoke(GIVEN)
    assert caught.value.max_steps == 10_000
    assert "'b' would be the next, in the loop 'b' -> 'a' -> 'b'" in str(caught.value)
    assert "10000" in str(caught.value)


def test_joins_that_wait_for_each_other_say_so():
    graph = graph_of(begin, a, b, node(name="x")(dict), node(name="y")(dict))
    graph.add_parallel(begin, [a, b]).add_join([a, "y"], "x").add_join(["x", b], "y")
    with nothing_left(), pytest.raises(StuckError) as caught:
        executed(graph)
    assert str(caught.value) == (
        "the graph can make no progress: the join ['a', 'y'] -> 'x' has what came from 'a' and waits for the join "
        "['x', 'b'] -> 'y', which can lead to 'y'; the join ['x', 'b'] -> 'y' has what came from 'b' and waits for the "
        "join ['a', 'y'] -> 'x', which can lead to 'x'"
    )
    assert len(caught.value.waiting) == 2
    with pytest.raises(GraphCompileError, match="'x' -> 'y' -> 'x' can never end"):
        graph.compile()


def fork_of(*branches, **options):
    graph = graph_of(begin, *branches, end).add_parallel(begin, branches, **options)
    return graph.add_join(branches, end)


def fails(name, seconds=0):
    @node(name=name)
    async def body():
        await asyncio.sleep(seconds)
        raise OSError(f"no {name}")

    return body


@pytest.mark.parametrize(
    ("options", "more", "why"),
    [
        ({"on_error": tolerate(count=1)}, 1, "2 of 3 branches failed; 1 is tolerated"),
        ({"on_error": "race"}, 2, "3 of 3 branches failed; 1 must succeed"),
        ({"need": 2}, 1, "2 of 3 branches failed; 2 must succeed"),
    ],
    ids=["tolerate", "race", "need"],
)
def test_a_fork_that_can_have_no_result(options, more, why):
    with nothing_left(), pytest.raises(ParallelExecutionError) as caught:
        executed(fork_of(fails("x", 1), fails("y", 2), fails("z", 3), **options))
    assert str(caught.value) == (
        f"branch 'x' of 'the fork behind begin' failed: OSError: no x, and {more} more ({why})"
    )
    assert caught.value.branches == ("x", "y", "z")[: more + 1]
    assert str(caught.value.__cause__) == "no x"
    assert all("weft: raised by" in notes_of(each)[0] for each in caught.value.exceptions)


def test_a_fork_that_is_out_of_time():
    @node(name="x")
    async def slow():
        await asyncio.sleep(50)

    with nothing_left(), pytest.raises(ParallelTimeoutError) as caught:
        executed(fork_of(slow, a, timeout=2))
    assert str(caught.value) == (
        "'the fork behind begin' took longer than its timeout of 2 s; unfinished: 'x'"
    )
    assert (caught.value.timeout, caught.value.elapsed) == (2, 2)


def test_more_branches_are_needed_than_there_are():
    for use in (lambda: fork_of(a, b, need=3).compile(), lambda: fork_of(a, b, need=3).invoke(GIVEN)):
        with pytest.raises(GraphCompileError) as caught:
            within(10, use)
        assert str(caught.value).startswith("the fork behind 'begin': need=3 of 2 branches can never be")
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_more_branches_are_needed_than_a_router_has_chosen():
    graph = graph_of(begin, chooser, a, b, end).add_join([a, b], end)
    graph.add_router([begin], chooser, [a, b], need=2)
    assert executed(graph, {"input": {"choices": ["a", "b"]}})["a"] == 1
    with nothing_left(), pytest.raises(GraphError) as caught:
        executed(graph, {"input": {"choices": ["a"]}})
    assert str(caught.value).startswith("the fork behind 'chooser': need=2 of 1 branch can never be")


def writes(name, **output):
    @node(name=name)
    async def body(state):
        state.update(output)
        return output

    return body


def test_two_writers_of_one_key():
    graph = graph_of(begin, writes("one", k=1), writes("other", k=2), end, on_conflict="error")
    graph.add_parallel(begin, ["one", "other"]).add_join(["one", "other"], end)
    with pytest.raises(ConflictError) as caught:
        executed(graph)
    assert str(caught.value) == (
        "parallel branches have both written 'k': one in node 'one', the other in 'other'; write different keys, "
        "combine them with reducers={'k': ...}, or let the last one win with on_conflict=\"last\""
    )


def test_two_writers_of_one_key_of_the_state():
    graph = graph_of(begin, writes("one", k=1), writes("other", k=2), end, on_state_conflict="error")
    graph.add_parallel(begin, ["one", "other"]).add_join(["one", "other"], end)
    with pytest.raises(StateConflictError) as caught:
        executed(graph)
    assert "'k'" in str(caught.value)
    assert "'one'" in str(caught.value)
    assert "'other'" in str(caught.value)
    assert "state_reducers" in str(caught.value)
    assert 'on_state_conflict="last"' in str(caught.value)


def test_a_reducer_that_fails_says_of_which_key():
    def fails(old, new):
        raise OSError("no")

    graph = graph_of(begin, writes("one", k=1), writes("other", k=2), end, reducers={"k": fails})
    graph.add_parallel(begin, ["one", "other"]).add_join(["one", "other"], end)
    with nothing_left(), pytest.raises(OSError, match="no") as caught:
        executed(graph)
    assert any("the reducer of 'k'" in note and "'other'" in note for note in notes_of(caught.value))


@KINDS
@pytest.mark.parametrize("verb", ["invoke", "execute", "execute_many", "stream", "submit"])
def test_what_a_node_raises_is_raised_as_it_is_with_a_note(kind, verb):
    class Own(Exception):
        pass

    cause = KeyError("cause")
    error = Own("it broke", 3)

    def fails(input):
        raise error from cause

    graph = chain(begin, in_kind(kind, fails), end)

    async def execute():
        await graph.execute(GIVEN)

    async def many():
        await graph.execute_many([GIVEN])

    verbs = {
        "invoke": lambda: graph.invoke(GIVEN),
        "execute": lambda: asyncio.run(execute()),
        "execute_many": lambda: asyncio.run(many()),
        "stream": lambda: list(graph.stream(GIVEN)),
        "submit": lambda: graph.submit(GIVEN).result(5),
    }
    with nothing_left(), pytest.raises(Own) as caught:
        within(10, verbs[verb])
    assert caught.value is error
    assert caught.value.__cause__ is cause
    note, *more = notes_of(error)
    assert note.startswith("weft: raised by 'x'(input={}), call ")
    assert more == (["weft: in the execution for input 0"] if verb == "execute_many" else [])


def test_a_long_input_is_shown_shortly():
    def fails(input):
        raise OSError("no")

    with pytest.raises(OSError) as caught:
        executed(chain(begin, in_kind("sync", fails)), {"input": {"text": "x" * 10_000}})
    assert len(notes_of(caught.value)[0]) < 300


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_leaves_a_program_leaves_the_graph(error):
    def fails(input):
        raise error

    with nothing_left(), pytest.raises(error):
        within(10, lambda: chain(begin, in_kind("sync", fails), end).invoke(GIVEN))


def test_an_output_that_cannot_be_recorded_names_the_way_to_it():
    graph = chain(begin, in_kind("async", lambda _: {"deep": [1, {"lock": object()}]}), end)
    assert "deep" in executed(graph)  # it is only refused where it is recorded
    with pytest.raises(UnstorableError) as caught:
        executed(graph, checkpointer=InMemorySaver(), run_id="r")
    assert "['deep'][1]['lock']" in str(caught.value)
    assert "'x'" in notes_of(caught.value)[0]


def test_a_state_that_cannot_be_recorded_names_the_way_to_it():
    @node(name="x")
    async def body(state):
        state["deep"] = {"lock": object()}
        return {}

    graph = chain(begin, body)
    executed(graph)
    with pytest.raises(UnstorableError) as caught:
        executed(graph.reset_state(), checkpointer=InMemorySaver(), run_id="r")
    assert "lock" in str(caught.value)


def test_a_graph_is_no_function():
    with pytest.raises(TypeError, match="callable|invoke"):
        chain(begin, end)(GIVEN)


@pytest.mark.parametrize(
    ("concurrency", "says"), [(0, "at least 1, not 0"), ("x", "not 'x'"), (True, "not True")]
)
def test_how_many_executions_at_once(concurrency, says):
    async def many():
        await chain(begin, end).execute_many([GIVEN], concurrency=concurrency)

    with pytest.raises(DefinitionError, match=says):
        asyncio.run(many())


def test_several_inputs_are_no_dict():
    async def many(inputs):
        await chain(begin, end).execute_many(inputs)

    with pytest.raises(InputError, match="execute_many.*several inputs"):
        asyncio.run(many(GIVEN))
    with pytest.raises(InputError, match="takes an iterable"):
        asyncio.run(many(3))


def test_an_option_that_no_run_has():
    with pytest.raises(InputError, match="unknown option 'retries'; a run takes: checkpointer, "):
        chain(begin, end).invoke(GIVEN, retries=3)


# As objects


@pytest.mark.parametrize(
    "fails",
    [
        lambda: executed(chain(begin, a, b, end, max_steps=2)),
        lambda: Graph().compile(),
        lambda: WRONG_TO_COMPILE["a join of ends"][0]().compile(),
        lambda: three().add_edge(a, "zzz"),
        lambda: executed(chain(begin, end), {}),
    ],
    ids=["max steps", "compile", "several problems", "builder", "parameter"],
)
def test_errors_can_be_pickled_and_copied(fails):
    with pytest.raises(WeftError) as caught:
        fails()
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert type(again) is type(caught.value)
        assert str(again) == str(caught.value)
        assert vars(again) == vars(caught.value)


# As a person sees it


def test_tracebacks_are_of_the_users_code():
    """Of ours are at most the verb that was called and what hands its error on."""
    script = """
    import asyncio, sys, traceback
    from weft import Graph, node

    @node(start=True)
    def begin(input):
        return {"y": input["nope"]}

    @node(end=True)
    async def end(y):
        return {}

    graph = Graph().add_node(begin).add_node(end).add_edge(begin, end)
    given = {"input": {}}

    async def execute():
        await graph.execute(given)

    async def many():
        await graph.execute_many([given])

    for verb in (lambda: graph.invoke(given), lambda: asyncio.run(execute()), lambda: asyncio.run(many())):
        try:
            verb()
        except KeyError as error:
            frames = traceback.extract_tb(error.__traceback__)
            print(*[frame.name for frame in frames if "/weft/" in frame.filename], "|", frames[-1].name)
    print(flush=True)
    graph.invoke(given)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split("\n")[:3] == ["invoke | begin", "execute | begin", "execute_many | begin"]
    lines = done.stderr.strip().split("\n")
    assert lines[0].startswith("Traceback")
    assert lines[-2] == "KeyError: 'nope'"
    assert lines[-1].startswith("weft: raised by 'begin'(input={}), call ")
    assert len([line for line in lines if line.startswith("  File")]) == 3
    assert done.stderr.count("Traceback") == 1


def test_nothing_is_logged_beside_the_error(caplog, capsys):
    def fails(input):
        raise OSError("no")

    graph = graph_of(begin, in_kind("sync", fails), a, end).add_parallel(begin, ["x", a])
    graph.add_join(["x", a], end)
    with pytest.raises(OSError):
        graph.invoke(GIVEN)
    with pytest.raises(InputError):
        graph.invoke(3)
    with pytest.raises(GraphCompileError):
        Graph().invoke(GIVEN)
    assert caplog.records == []
    assert capsys.readouterr() == ("", "")


def test_every_error_of_a_graph_is_public():
    for name in (
        "GraphError",
        "GraphCompileError",
        "MaxStepsError",
        "StuckError",
        "ConflictError",
        "StateConflictError",
    ):
        assert issubclass(getattr(weft, name), GraphError)
