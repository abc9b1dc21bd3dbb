"""Random graphs on the engine, in virtual time: each does what a slow interpreter does, in whatever order things end.

A failure has a note with the seed of its graph; WEFT_GRAPH=seed runs that one alone, WEFT_SEED=seed the same ones.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from graph_making import (
    CutOff,
    Ended,
    Graph,
    Orderly,
    World,
    build,
    check_against_reference,
    graph_of,
    kinds_for,
    naming,
    seeds_of,
    watching,
)
from killing import seeded

from weft.errors import MaxStepsError, StuckError
from weft.testing import run, virtual_clock


def chained(earlier, later):
    """A reducer whose result tells in which order, and how often."""
    return (*_listed(earlier), *_listed(later))


def _listed(value):
    return value if isinstance(value, tuple) else (value,)


async def alone(made, given):
    """The result; nothing of it is left on the loop."""
    try:
        return await made.ainvoke(given)
    finally:
        assert asyncio.all_tasks() == {asyncio.current_task()}


def run_one(seed, *, sync=0.25, is_sync_call=False, has_ties=False):
    """How it ended, and the reference that was told the same."""
    luck = random.Random(seed)
    graph = graph_of(luck)
    with naming(seed, graph), watching() as watched:
        kinds = kinds_for(graph, luck, sync=sync)
        reducers = luck.choice([None, {"k0": chained}])
        world = World(luck, has_ties=has_ties)
        made = build(graph, world, kinds, reducers=reducers)
        result = error = None
        try:
            if is_sync_call:
                with virtual_clock(seed):
                    result = made.invoke({"in": 0})
            else:
                result = run(lambda: alone(made, {"in": 0}), seed=seed)
        except (StuckError, MaxStepsError, CutOff) as raised:
            error = raised
            assert made.get_state() == {"noted": []}, "the state was given back by what has failed"
        [activation] = watched
        ended = Ended({"in": 0}, result, made.get_state()["noted"], error)
        reference = check_against_reference(graph, world, kinds, activation, ended, reducers=reducers)
        return type(error).__name__, reference


KINDS = {
    "async and sync nodes": {},
    "several ends at one moment": {"has_ties": True},
    "a sync call": {"is_sync_call": True, "sync": 0.5},
}


@pytest.mark.parametrize(("kind", "count"), [*zip(KINDS, [2000, 500, 300], strict=True)])
def test_random_graphs_do_as_the_reference(kind, count):
    found = Counter()
    for seed in seeds_of(f"random graphs, {kind}", count):
        ended, reference = run_one(seed, **KINDS[kind])
        found[ended] += 1
        found["joins fired"] += len(reference.fired)
        found["executions"] += reference.executions
    print(found)


# One result, whatever the order


SHAPES = {
    "nested forks that meet in joins of their own": Graph(
        tuple("sabpqxcde"),
        (("s", "a"), ("s", "b"), ("a", "p"), ("a", "q"), ("b", "x"), ("x", "d"), ("c", "d")),
        ((("p", "q"), "c"), (("c", "d"), "e")),
        frozenset("e"),
    ),
    "uneven branches, two joins of one fork": Graph(
        tuple("sabcdpqxye"),
        (("s", "a"), ("s", "b"), ("s", "c"), ("s", "d"), ("a", "p"), ("p", "q")),
        ((("q", "b"), "x"), (("c", "d"), "y"), (("x", "y"), "e")),
        frozenset("e"),
    ),
    "a loop through a join": Graph(
        tuple("srabce"),
        (("s", "r"), ("r", "a"), ("r", "b"), ("r", "c"), ("r", "e")),
        ((("a", "b", "c"), "r"),),
        frozenset("e"),
        frozenset("r"),
    ),
    "no joins": Graph(
        tuple("sabce"),
        (("s", "a"), ("s", "b"), ("a", "c"), ("b", "c"), ("a", "e"), ("c", "e")),
        (),
        frozenset("e"),
    ),
}


def in_order_of(graph, seed, order, kinds):
    """What a graph gives whose nodes take other times, and how it ended; None if it has gone on for too long."""
    with watching() as watched:
        world = Orderly(random.Random(order), has_ties=order % 2 == 0)
        world.seed, world.watched = seed, watched
        made = build(graph, world, kinds)
        try:
            result = run(lambda: alone(made, {"in": 0}), seed=order)
        except (StuckError, MaxStepsError, CutOff) as error:
            return type(error), None, None
        ran = Counter(watched[0].labels[mine] for mine in world.begun)
        noted = Counter(watched[0].labels[mine] for mine in made.get_state()["noted"])
        return result, ran, noted


@pytest.mark.parametrize("shape", SHAPES)
def test_one_result_in_a_thousand_orders(shape):
    """No two branches write one key; what a node gives depends on where it runs."""
    rng = seeded(shape)
    seed = rng.randrange(2**32)
    graph = SHAPES[shape]
    kinds = kinds_for(graph, random.Random(seed), sync=0)
    wanted = in_order_of(graph, seed, 0, kinds)
    assert wanted[1] is not None
    for order in range(1, 1000):
        with naming(seed, "order", order):
            assert in_order_of(graph, seed, order, kinds) == wanted


def test_random_graphs_give_one_result_in_each_order():
    orders = 0
    for seed in seeds_of("orders of random graphs", 150):
        graph = graph_of(random.Random(seed))
        kinds = kinds_for(graph, random.Random(seed), sync=0.1)
        with naming(seed, graph):
            wanted = in_order_of(graph, seed, 0, kinds)
            if wanted[1] is None:
                continue
            for order in range(1, 25):
                assert in_order_of(graph, seed, order, kinds) == wanted, order
                orders += 1
    print(f"{orders} orders")
