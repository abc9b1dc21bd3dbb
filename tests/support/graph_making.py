"""Random graphs: what they look like, nodes for them that do random things in random times, and who watches.

A graph is described by plain names (:class:`graph_reference.Graph`). :func:`build` makes one that runs. What its nodes
see and give is kept in a :class:`World`; what the activation was told, and what it wanted to run, in :func:`watching`.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

from graph_reference import Graph, Reference, Stuck, TooManySteps
from hypothesis import strategies as st
from killing import seeded

import weft
from weft import RetryPolicy, node, router
from weft.core.activation import Activation, Finished
from weft.core.graph_branches import Branch
from weft.core.graph_plan import GraphPlan, PlanJoin, PlanNode
from weft.engine.context import current
from weft.errors import MaxStepsError, StuckError
from weft.graph_forks import Forks
from weft.testing import sleep

# Seeds


def seeds_of(name, count):
    """The seeds of so many graphs, or the one that is asked for."""
    rng = seeded(name)
    if alone := os.environ.get("WEFT_GRAPH"):
        return [int(alone)]
    return [rng.randrange(2**32) for _ in range(count)]


@contextmanager
def naming(seed, *what):
    """What is raised says with which seed the same is run again."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"WEFT_GRAPH={seed} {' '.join(map(str, what))}")
        raise


# What they look like


def graphs():
    """Half of them evenly spread, the others easy to make smaller."""
    return st.one_of(st.integers(0, 2**32).map(random.Random), st.randoms(use_true_random=False)).map(
        graph_of
    )


def graph_of(numbers):
    """Mostly forwards, with routers that may go back, joins of all kinds, and some nonsense."""
    count, chance = numbers.randint(2, 9), numbers.random
    names = [f"n{place}" for place in range(count)]
    ends = {name for name in names[1:] if chance() < 0.15} | {names[-1]}
    routers = {name for name in names if chance() < 0.35}
    edges = []
    for place, name in enumerate(names[:-1]):
        for _ in range(numbers.choice([1, 1, 2, 2, 3])):
            is_back = chance() < (0.35 if name in routers else 0.02)
            low, high = (0, count - 1) if is_back else (place + 1, min(count - 1, place + 4))
            edges.append((name, names[numbers.randint(low, high)]))
    joins = {}
    for _ in range(numbers.choice([0, 1, 1, 2, 2, 3])):
        sources = sorted({numbers.randrange(count) for _ in range(numbers.randint(1, 3))})
        low = min(sources[-1] + 1, count - 1) if chance() < 0.8 else 0
        pair = tuple(names[place] for place in sources), names[numbers.randint(low, count - 1)]
        joins.setdefault(pair)
    return Graph(tuple(names), tuple(dict.fromkeys(edges)), tuple(joins), frozenset(ends), frozenset(routers))


def plan_for(graph):
    nodes = [
        PlanNode(name, place == 0, name in graph.ends, name in graph.routers)
        for place, name in enumerate(graph.nodes)
    ]
    return GraphPlan(nodes, graph.edges, [PlanJoin(*join) for join in graph.joins])


def possible(plan, name):
    """The nodes that a router can choose."""
    point = plan.number[name]
    ways = [plan.destination_of(way) if plan.is_join(way) else way for way in plan.ways_on(point)]
    return sorted({plan.nodes[way].name for way in ways})


def forks_in_forks(luck, depth=2):
    """A graph in which each fork has a join of its own, in which some branches have forks again; and their options."""
    nodes, edges, joins, options = [], [], [], {}

    def step(*before):
        nodes.append(f"n{len(nodes)}")
        edges.extend((each, nodes[-1]) for each in before)
        return nodes[-1]

    def fork(opener, depth):
        """Its join."""
        options[opener] = fork_options(luck)
        lasts = []
        for _ in range(luck.randint(2, 3)):
            last = step(opener)
            for _ in range(luck.choice([0, 1, 1, 2])):
                last = step(last)
                if depth and luck.random() < 0.5:
                    last = fork(last, depth - 1)
            lasts.append(last)
        joins.append((tuple(lasts), step()))
        return joins[-1][1]

    last = fork(step(), depth)
    return Graph(tuple(nodes), tuple(edges), tuple(joins), frozenset({last})), options


# Who watches


class Label(NamedTuple):
    """An execution, whatever else happens and when: one node runs in one place one time after the other."""

    node: str
    place: str
    time: int


class Watched(Activation):
    """An activation that keeps what it was told, and what it wanted to run."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "has_places": True})  # by which labels are told apart
        self.told = []  # executions with their output and choices, in order
        self.failures = {}  # places in what was told where nodes have failed, and how many had begun then
        self.runs = {}  # by execution
        self.labels = {}
        self.finished = None
        self._times = Counter()

    def begin(self, *args):
        return self._keep(super().begin(*args))

    def ended(self, execution, output, choices=None, **options):
        self.told.append((execution, dict(output), choices))
        return self._keep(super().ended(execution, output, choices, **options))

    def lost(self, execution):
        return self._keep(super().lost(execution))

    def failed(self, executions, branch, output):
        self.note_failure()
        self.told.append((executions[0], shown(output), None))
        return self._keep(super().failed(executions, branch, output))

    def note_failure(self):
        """A node has failed, or the branch that it is on."""
        self.failures.setdefault(len(self.told), len(self.runs))

    def _keep(self, decisions):
        for each in decisions:
            if isinstance(each, Branch):
                assert each.execution not in self.runs
                self.runs[each.execution] = each
                self._times[each.node, each.place] += 1
                time = self._times[each.node, each.place]
                self.labels[each.execution] = Label(each.node, each.place.hex(), time)
            elif isinstance(each, Finished):
                assert self.finished is None
                self.finished = each
        return decisions


@contextmanager
def watching():
    """The activations of all graphs that begin to run in this block."""
    made = []

    def watched(*args, **options):
        made.append(Watched(*args, **options))
        return made[-1]

    failed = Forks.failed

    def noted(self, running, error):
        self._host.active.note_failure()  # of a fork that needs it no more, nothing comes of it
        return failed(self, running, error)

    with mock.patch("weft.graph_run.Activation", watched), mock.patch.object(Forks, "failed", noted):
        yield made


def execution():
    """Which execution of its graph this body is."""
    return current.get().future.index


# Nodes that do random things


class CutOff(Exception):
    """It has gone on for long enough."""


class Boom(Exception):
    """What nodes raise that fail."""


@dataclass(frozen=True)
class Kind:
    """What a node is like."""

    is_async: bool = True
    takes_state: bool = False
    fails: int = 0  # attempts, before one does not


class Begun(NamedTuple):
    """What a body has seen."""

    node: str
    flow: dict
    upstream: tuple | None
    noted: list | None


@dataclass(eq=False)
class World:
    """Decides what nodes do, and keeps what they have seen and given.

    Attributes:
        luck: Decides.
        may_go_on: After how many executions routers choose nothing any more.
        most: After how many it is cut off.
        has_ties: Whether nodes may end at the same moment.
    """

    luck: random.Random
    may_go_on: int = 30
    most: int = 120
    has_ties: bool = False
    begun: dict[int, Begun] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    attempts: Counter = field(default_factory=Counter)

    def seconds(self):
        return self.luck.choice([0, 0, 1, 1, 2, 5]) if self.has_ties else 0.001 + self.luck.random()

    def begin(self, name, kind, flow, upstream, state):
        """A body has begun; which execution it is."""
        mine = execution()
        self.attempts[mine] += 1
        led = None if upstream is None else (upstream["node"], upstream["output"])
        seen = Begun(name, flow, led, [*state["noted"]] if kind.takes_state else None)
        assert self.begun.setdefault(mine, seen) == seen, "another attempt sees something else"
        assert mine not in self.ended, f"execution {mine} runs again"
        if len(self.begun) > self.most:
            raise CutOff
        return mine

    def end(self, mine, kind, ways, state):
        """What it gives."""
        if kind.takes_state:
            state["noted"].append(mine)
        if self.attempts[mine] <= kind.fails:
            raise Boom(f"attempt {self.attempts[mine]}")
        output = self.output(mine, ways)
        self.ended.append(mine)
        return output

    def output(self, mine, ways):
        output: dict[str, Any] = {f"k{self.luck.randint(0, 3)}": mine for _ in range(self.luck.randint(0, 2))}
        if ways is not None:
            output |= self.choice(ways if len(self.ended) < self.may_go_on else [])
        return output

    def choice(self, ways):
        if len(ways) > 0 and self.luck.random() < 0.3:
            return {"choice": self.luck.choice(ways)}
        count = self.luck.choice([0, 1, 1, 1, 2, 2, 3]) if ways else 0
        return {"choices": [self.luck.choice(ways) for _ in range(count)]}


class Orderly(World):
    """What a node gives depends on the place where it runs, and each writes under a key of its own.

    Attributes:
        seed: Decides what routers choose.
        watched: The activation, alone in a list.
    """

    seed: int = 0
    watched: list[Watched] = []

    def output(self, mine, ways):
        label = self.watched[0].labels[mine]
        output: dict[str, Any] = {" ".join(map(str, label)): label.node}
        if ways is not None:
            chooser = random.Random(f"{self.seed} {label}")
            choices = [chooser.choice(ways) for _ in range(chooser.choice([0, 1, 1, 2, 2])) if ways]
            output["choices"] = choices if label.time < 4 else []
        return output


@dataclass(eq=False)
class Lives:
    """What nodes do and see in all lives of one run. Whatever they give is new, so that it shows when one runs again.

    Attributes:
        luck: Decides what they do, anew in each life.
        unlucky: How often they fail.
        unit: Seconds.
        watched: The activation of this life, alone in a list.
        seen: What each execution has seen, in whichever life.
        durable: Those of which the graph has seen the output.
        ran: How often each has run to its end.
        may_go_on: After how many routers choose nothing any more.
        most: After how many executions it is cut off.
        has_ids: Whether each output is told from all others, so that it can be said for what it was computed.
        computed_for: By id, the node and what it had seen.
    """

    luck: random.Random
    unlucky: float = 0.0
    has_ids: bool = False
    computed_for: dict[int, Begun] = field(default_factory=dict)
    unit: float = 1.0
    watched: list[Watched] = field(default_factory=list)
    seen: dict[Label, Begun] = field(default_factory=dict)
    durable: set[Label] = field(default_factory=set)
    ran: Counter = field(default_factory=Counter)
    given: int = 0
    may_go_on: int = 30
    most: int = 100
    wrong: list[str] = field(default_factory=list)
    is_cut_off: bool = False

    def seconds(self):
        return self.unit * (0.001 + self.luck.random())

    def forget(self, told, begun):
        """What is tried again may go otherwise: only what was told before it, and what had begun then, counts."""
        self.durable &= {label for label, _, _ in told}
        self.seen = {label: seen for label, seen in self.seen.items() if label in begun}

    def begin(self, name, kind, flow, upstream, state):
        label = self.watched[0].labels[execution()]
        led = None if upstream is None else (upstream["node"], shown(upstream["output"]))
        seen = Begun(name, shown(flow), led, [*state["noted"]] if kind.takes_state else None)
        if self.seen.setdefault(label, seen) != seen:
            self.wrong.append(f"{label} has seen {self.seen[label]} once, and now {seen}")
        if label in self.durable:
            self.wrong.append(f"{label} runs again")
        if len(self.seen) > self.most:
            self.is_cut_off = True
            raise CutOff
        return label

    def end(self, label, kind, ways, state):
        self.given += 1
        if kind.takes_state:
            state["noted"].append(self.given)
        if self.luck.random() < self.unlucky:
            raise Boom(f"{label.node} {self.given}")
        self.ran[label] += 1
        output: dict[str, Any] = {
            f"k{self.luck.randint(0, 3)}": self.given for _ in range(self.luck.randint(0, 2))
        }
        if self.has_ids:
            output["id"] = self.given
            self.computed_for[self.given] = self.seen[label]
        if ways is not None:
            may_go_on = len(self.seen) < self.may_go_on
            count = self.luck.choice([0, 1, 1, 1, 2, 2, 3]) if may_go_on and ways else 0
            output["choices"] = [self.luck.choice(ways) for _ in range(count)]
        return output


def shown(flow):
    """The values, with failures as what can be compared."""
    return {
        key: f"{value.error!r}" if isinstance(value, weft.Failed) else value for key, value in flow.items()
    }


def kinds_for(graph, luck, *, sync=0.25):
    """What each node is like."""
    return {
        name: Kind(luck.random() >= sync, luck.random() < 0.5, luck.choice([0, 0, 0, 0, 0, 1]))
        for name in graph.nodes
    }


RETRY = RetryPolicy(max_attempts=2, initial_interval=0.1, jitter=False, retry_on=(Boom,))


def forks_for(graph, luck):
    """Options for some of the forks."""
    return {name: fork_options(luck) for name in graph.nodes if luck.random() < 0.5}


def fork_options(luck):
    options: dict[str, Any] = {}
    kind = luck.choice(["fail_fast", "collect", "race", "tolerate", "need"])
    if kind == "need":
        options["need"] = 1  # of a fork that may be of one branch
    elif kind == "tolerate":
        options["on_error"] = weft.tolerate(count=luck.choice([0, 1, 2]))
    else:
        options["on_error"] = kind
    if luck.random() < 0.5:
        options["max_concurrent"] = luck.choice([1, 2])
    return options


def build(graph, world, kinds, *, state=None, forks=None, **options):
    """The graph, with nodes that do in this world what their kinds say."""
    made = weft.Graph(30, {"noted": []} if state is None else state, **options)
    plan = plan_for(graph)
    for place, name in enumerate(graph.nodes):
        ways = possible(plan, name) if name in graph.routers else None
        body = body_of(world, name, kinds[name], ways)
        part = (node if ways is None else router)(name=name, retry=RETRY)(body)
        made.add_node(part, start=place == 0, end=name in graph.ends)
    for source, destination in graph.edges:
        made.add_edge(source, destination)
    for sources, destination in graph.joins:
        made.add_join(sources, destination)
    for name, block in (forks or {}).items():
        made.add_parallel(name, [], **block)
    return made


def body_of(world, name, kind, ways):
    async def stateful(upstream, state, **flow):
        mine = world.begin(name, kind, flow, upstream, state)
        await asyncio.sleep(world.seconds())
        return world.end(mine, kind, ways, state)

    async def stateless(upstream, **flow):
        mine = world.begin(name, kind, flow, upstream, None)
        await asyncio.sleep(world.seconds())
        return world.end(mine, kind, ways, None)

    def sync_stateful(upstream, state, **flow):
        mine = world.begin(name, kind, flow, upstream, state)
        sleep(world.seconds())
        return world.end(mine, kind, ways, state)

    def sync_stateless(upstream, **flow):
        mine = world.begin(name, kind, flow, upstream, None)
        sleep(world.seconds())
        return world.end(mine, kind, ways, None)

    if kind.takes_state:
        return stateful if kind.is_async else sync_stateful
    return stateless if kind.is_async else sync_stateless


# Against the reference


ENDS = {StuckError: Stuck, MaxStepsError: TooManySteps, CutOff: CutOff, type(None): type(None)}


class Ended(NamedTuple):
    """How an execution of a graph has ended: what it was given, and what it gave."""

    input: dict
    result: dict | None
    state: list
    error: BaseException | None


def check_against_reference(graph, world, kinds, watched, ended, *, reducers=None):
    """What was run is what the reference runs that is told the same in the same order, and ends as it does."""
    reference = Reference(graph, max_steps=30, reducers=reducers)
    wanted = {}
    stopped = None
    for number in range(len(watched.told) + 1):
        try:
            if number == 0:
                started = reference.begin(ended.input)
            else:
                mine, output, choices = watched.told[number - 1]
                assert mine in wanted
                started = reference.end(mine, output, choices, notes=kinds[wanted[mine].node].takes_state)
        except (Stuck, TooManySteps) as raised:
            assert number == len(watched.told), "it went on where the reference does not"
            stopped = raised
            break
        for each in started:
            noted = each.branch.history() if kinds[each.node].takes_state else None
            led = each.upstream[-1] if each.upstream else None
            wanted[each.execution] = Begun(each.node, each.flow, led, noted)
    if not isinstance(ended.error, CutOff):
        assert ENDS[type(ended.error)] is type(stopped)
    told = [mine for mine, _, _ in watched.told]
    if not world.has_ties:
        assert told == world.ended[: len(told)]
    elif ended.error is None:
        assert sorted(told) == sorted(world.ended)
    assert {mine: wanted[mine] for mine in world.begun if mine in wanted} == world.begun
    counts = Counter((opening.join, opening.trail[-1]) for opening in reference.fired)
    assert set(counts.values()) <= {1}, "a join has fired twice for one opening"
    if ended.error is None:
        assert world.begun == wanted, "something was silently not run"
        assert sorted(world.ended) == sorted(wanted)
        assert (ended.result, ended.state) == (reference.result, reference.history)
    return reference
