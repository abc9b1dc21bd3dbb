"""Random programs of nodes and flows against a slow interpreter, and killed at any record again and again.

A program is described by data. The classes below do what the description says, through the engine; the interpreter
does it in the most obvious way, one thing after the other. What runs at the same time writes to different keys, so the
answer is one and the same; in which order hooks ran is kept apart, for what is promised of that.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft import (
    AsyncBatchFlow,
    AsyncBatchNode,
    AsyncFlow,
    AsyncNode,
    AsyncParallelBatchFlow,
    AsyncParallelBatchNode,
    BatchFlow,
    BatchNode,
    Flow,
    InMemorySaver,
    Node,
    Ok,
    ParallelBatchNode,
    StoreError,
)
from weft.checkpoint.base import RecordKind
from weft.testing import run

# Programs


@dataclass
class Leaf:
    """A node."""

    name: str
    kind: type
    items: int  # of a batch node
    fails: int  # attempts that fail, of each item
    attempts: int
    falls_back: bool
    collects: bool  # outcomes, so that items may fail
    actions: list[str | None]  # one for each visit, and then nothing
    ways: dict[str, Leaf | Tree] = field(default_factory=dict)

    @property
    def is_batch(self):
        return issubclass(self.kind, BatchNode)


@dataclass
class Tree:
    """A flow."""

    name: str
    kind: type
    items: int  # runs of a batch flow
    start: Leaf | Tree
    actions: list[str | None]
    ways: dict[str, Leaf | Tree] = field(default_factory=dict)

    @property
    def is_batch(self):
        return issubclass(self.kind, BatchFlow)


LEAVES = [Node, BatchNode, ParallelBatchNode, AsyncNode, AsyncBatchNode, AsyncParallelBatchNode]
TREES = [Flow, BatchFlow, AsyncFlow, AsyncBatchFlow, AsyncParallelBatchFlow]
ACTIONS = [None, "default", "a", "b"]


def program(draw: random.Random, *, depth: int = 2, name: str = "f") -> Tree:
    """A random flow. Loops end: a node knows an action for each of its first visits only."""
    nodes: list[Leaf | Tree] = []
    for number in range(draw.randint(1, 4)):
        own = f"{name}.{number}"
        actions = [draw.choice(ACTIONS) for _ in range(draw.randint(0, 3))]
        if depth and draw.random() < 0.35:
            inner = program(draw, depth=depth - 1, name=own)
            inner.actions = actions
            nodes.append(inner)
            continue
        attempts = draw.randint(1, 3)
        kind, falls_back = draw.choice(LEAVES), draw.random() < 0.4
        collects = issubclass(kind, BatchNode) and draw.random() < 0.3
        fails = draw.randint(0, attempts if falls_back or collects else attempts - 1)
        nodes.append(Leaf(own, kind, draw.randint(0, 3), fails, attempts, falls_back, collects, actions))
    for node in nodes:
        for action in ("default", "a", "b"):
            if draw.random() < 0.6:
                node.ways[action] = draw.choice(nodes)
    return Tree(name, draw.choice(TREES), draw.randint(0, 3), nodes[0], [])


# What both do


def visit(shared, name, path):
    """How often this node was here before, on this path."""
    key = f"{path}:{name}"
    count = shared["visits"].get(key, 0)
    shared["visits"][key] = count + 1
    return count


def action_of(spec, count):
    return spec.actions[count] if count < len(spec.actions) else "end"


def item_of(name, path, count, number):
    return f"{path}:{name}:{count}:{number}"


# The slow interpreter


class Interpreter:
    def __init__(self):
        self.shared = {"visits": {}, "log": {}}

    def log(self, path, *entry):
        self.shared["log"].setdefault(path, []).append(list(entry))

    def value_of(self, spec, item):
        if spec.fails < spec.attempts:
            return item + "!"
        return item + "?" if spec.falls_back else "failed"

    def leaf(self, spec, path):
        count = visit(self.shared, spec.name, path)
        self.log(path, "prep", spec.name)
        items = [item_of(spec.name, path, count, n) for n in range(spec.items if spec.is_batch else 1)]
        values = [self.value_of(spec, item) for item in items]
        self.log(path, "post", spec.name, values if spec.is_batch else values[0])
        return action_of(spec, count)

    def tree(self, spec, path):
        count = visit(self.shared, spec.name, path)
        self.log(path, "prep", spec.name)
        paths = [f"{path}/{spec.name}{count}{n}" for n in range(spec.items)] if spec.is_batch else [path]
        for inner in paths:
            self.walk(spec.start, inner)
        self.log(path, "post", spec.name, None)
        return action_of(spec, count)

    def walk(self, spec, path):
        while spec is not None:
            action = (self.leaf if isinstance(spec, Leaf) else self.tree)(spec, path)
            spec = spec.ways.get(action or "default")


# The same through the engine


class World:
    """What is outside of the engine: which items were computed, and how often each has failed."""

    def __init__(self):
        self.done = Counter()
        self.failed = Counter()

    def attempt(self, spec, item):
        if self.failed[item] < spec.fails or spec.fails >= spec.attempts:
            self.failed[item] += 1
            raise ValueError(item)
        self.done[item] += 1
        return item + "!"


class Hooks:
    """What nodes and flows share: hooks that write down that they ran."""

    def begin(self, shared):
        path, spec = self.params["path"], self.spec
        self.count = visit(shared, spec.name, path)
        shared["log"].setdefault(path, []).append(["prep", spec.name])
        shared["order"].append(["prep", spec.name, path])
        return path

    def end(self, shared, values):
        path, spec = self.params["path"], self.spec
        shared["log"].setdefault(path, []).append(["post", spec.name, values][: 3 + isinstance(spec, Leaf)])
        shared["order"].append(["post", spec.name, path])
        return action_of(spec, self.count)


class LeafHooks(Hooks):
    def prep(self, shared):
        path, spec = self.begin(shared), self.spec
        items = [item_of(spec.name, path, self.count, n) for n in range(spec.items if spec.is_batch else 1)]
        return items if spec.is_batch else items[0]

    def exec(self, item):
        assert self.cur_retry <= self.world.failed[item]
        return self.world.attempt(self.spec, item)

    def post(self, shared, found, values):
        if self.spec.collects:
            values = [each.value if isinstance(each, Ok) else "failed" for each in values]
        return self.end(shared, values)


class TreeHooks(Hooks):
    def prep(self, shared):
        path, spec = self.begin(shared), self.spec
        return [{"path": f"{path}/{spec.name}{self.count}{n}"} for n in range(spec.items)]

    def post(self, shared, found, result):
        return self.end(shared, None)


def async_spelling(hooks):
    """The hooks as ``async``, exec with a wait in it."""

    async def prep_async(self, shared):
        return hooks.prep(self, shared)

    async def exec_async(self, item):
        await asyncio.sleep(self.delays.random())
        return hooks.exec(self, item)

    async def post_async(self, shared, found, result):
        return hooks.post(self, shared, found, result)

    names = {"prep_async": prep_async, "post_async": post_async}
    return {**names, "exec_async": exec_async} if hooks is LeafHooks else names


async def falls_async(self, item, error):
    return item + "?"


def falls(self, item, error):
    assert self.cur_retry == self.spec.attempts - 1
    return item + "?"


def build(tree: Tree, world: World, delays: random.Random):
    """The program as objects."""
    made: dict[str, object] = {}

    def make(spec):
        if spec.name in made:
            return made[spec.name]
        is_async = issubclass(spec.kind, AsyncNode)
        hooks = LeafHooks if isinstance(spec, Leaf) else TreeHooks
        names = dict(async_spelling(hooks)) if is_async else {}
        if isinstance(spec, Leaf):
            if spec.falls_back:
                names.update({"exec_fallback_async": falls_async} if is_async else {"exec_fallback": falls})
            options = {"on_error": "collect"} if spec.collects else {}
            bases = (spec.kind, Hooks) if is_async else (hooks, spec.kind)
            node = type("Leaf", bases, names)(max_retries=spec.attempts, wait=0.1, **options)
        else:
            node = type("Tree", (spec.kind, Hooks) if is_async else (hooks, spec.kind), names)()
        made[spec.name] = node
        node.spec, node.world, node.delays = spec, world, delays
        if isinstance(spec, Tree):
            node.start_node = make(spec.start)
        for action, target in spec.ways.items():
            node.successors[action] = make(target)
        return node

    flow = make(tree)
    flow.set_params({"path": "p"})
    return flow


def fresh():
    return {"visits": {}, "log": {}, "order": []}


def expected(tree):
    interpreter = Interpreter()
    interpreter.tree(tree, "p")
    return interpreter.shared


SEEDS = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(SEEDS, SEEDS)
@pytest.mark.filterwarnings("ignore:Flow ends")
def test_a_program_does_what_the_interpreter_does(seed, timing):
    tree = program(random.Random(seed))
    shared = fresh()
    world = World()
    flow = build(tree, world, random.Random(timing))
    run(lambda: flow.run_async(shared), seed=timing)
    wanted = expected(tree)
    assert {name: shared[name] for name in wanted} == wanted
    assert not [item for item, times in world.done.items() if times != 1]


class Mortal(InMemorySaver):
    """Takes some commits and no more, until it is revived; what it has taken stays."""

    def __init__(self):
        super().__init__()
        self.left = 0
        self.taken = 0

    def commit(self, writes):
        if not self.left:
            raise StoreError("gone")
        self.left -= 1
        return super().commit(writes)


@settings(max_examples=60, deadline=None)
@given(SEEDS, SEEDS)
@pytest.mark.filterwarnings("ignore:Flow ends")
def test_a_program_that_is_killed_again_and_again_gives_the_same_and_computes_nothing_twice(seed, timing):
    tree = program(random.Random(seed))
    chance, saver, world = random.Random(timing), Mortal(), World()
    shared = fresh()
    before: list[object] = []
    for life in range(400):
        flow = build(tree, world, chance)
        saver.left = chance.choice([1, 2, 3, 5, 8, 13, 30])
        with suppress(StoreError):
            run(lambda: flow.run_async(shared, run_id="r", checkpointer=saver), seed=timing + life)
            break
        begun = shared["order"]
        common = min(len(begun), len(before))
        assert begun[:common] == before[:common], "hooks ran in another order than in the life before"
        before = max(begun, before, key=len)[:]
        if chance.random() < 0.5:
            shared = {"rubbish": 1}
    else:
        raise AssertionError("it does not come to an end")
    wanted = expected(tree)
    assert {name: shared[name] for name in wanted} == wanted
    assert shared["order"][: len(before)] == before
    values = Counter(r.identity for _, r in saver.records("r", limit=10**6) if r.kind is RecordKind.OK)
    assert set(values.values()) <= {1}, "something that was recorded was computed again"
    again = fresh()
    done = Counter(world.done)
    run(lambda: flow.run_async(again, run_id="r", checkpointer=saver))
    assert again == shared
    assert world.done == done
