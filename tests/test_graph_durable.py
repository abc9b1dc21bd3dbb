"""Graphs that go on where they were: nothing that was seen is taken back, runs again or is decided anew.

What ran is counted outside of the engine. A failure has a note with the seed of its graph; WEFT_GRAPH=seed runs that
one alone, WEFT_SEED=seed the same ones.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import pytest
from graph_making import (
    Boom,
    CutOff,
    Kind,
    Lives,
    build,
    forks_for,
    forks_in_forks,
    graph_of,
    kinds_for,
    naming,
    seeds_of,
    shown,
    watching,
)
from graph_reference import Reference
from killing import Mortal, MortalFile

import weft
from weft import Graph, InMemorySaver, RunStatus, StoreError, node
from weft.checkpoint.base import all_records
from weft.errors import GraphError, MaxStepsError, ParallelExecutionError, StuckError
from weft.testing import run

# Killed at any record, again and again


@pytest.fixture(params=["memory", "sqlite"])
def mortals(request, tmp_path):
    """Makes stores that die; sqlite in a file each."""
    made = []

    def make():
        if request.param == "memory":
            return Mortal()
        made.append(MortalFile(tmp_path / f"{len(made)}.db"))
        return made[-1]

    make.are_quick = request.param == "memory"
    yield make
    for saver in made:
        saver.close()


SHAPES = ["any", "any, forks with options", "forks in forks"]


#: Graphs with options at their forks in which something was wrong once.
@pytest.mark.parametrize("seed", [2107912353, 3057817374, 4092060515, 470603942, 873526968, 1581442870])
def test_a_graph_in_which_something_was_wrong_once(seed):
    story = Story(seed, Mortal(), shape="any, forks with options")
    found = story.whole()
    if found is not None:
        story.check_finished(*found)


def first_of_two(lives, **options):
    """A graph that goes on with the first of two branches; its end fails in the first life."""

    @node(start=True)
    async def begin():
        return {}

    @node
    async def quick():
        await asyncio.sleep(0.01)
        return {"won": 1}

    @node
    async def slow():
        await asyncio.sleep(0.1)
        return {"lost": 1}

    @node(end=True)
    async def end():
        if not lives:
            lives.append(1)
            raise ConnectionError
        return {}

    graph = Graph()
    for part in (begin, quick, slow, end):
        graph.add_node(part)
    graph.add_parallel("begin", ["quick", "slow"], **options)
    return graph.add_join(["quick", "slow"], "end").compile()


def test_it_is_recorded_that_a_branch_has_stopped_which_is_no_call_of_a_step():
    saver, graph = InMemorySaver(), first_of_two([1], need=1)
    assert graph.invoke({}, checkpointer=saver, run_id="r") == {"won": 1}
    assert [(record.kind.value, record.step) for record in all_records(saver, "r")] == [
        ("ok", "begin"),
        ("ok", "quick"),
        ("noted", "stopped"),
        ("ok", "end"),
    ]
    assert [call.step for call in weft.runs(saver).show("r").calls] == ["begin", "quick", "end"]


@pytest.mark.parametrize("on_mismatch", ["rerun", "error"])
def test_options_of_a_fork_may_change_between_lives(on_mismatch):
    saver, lives = InMemorySaver(), []
    with pytest.raises(ConnectionError):
        first_of_two(lives).invoke({}, checkpointer=saver, run_id="r")
    edited = first_of_two(lives, need=1)
    found = edited.invoke({}, checkpointer=saver, run_id="r", on_mismatch=on_mismatch, timeout=10)
    assert found["won"] == 1


class DiesAtStopped(InMemorySaver):
    """Dies when it is to keep that a branch has stopped."""

    is_mortal = True

    def commit(self, writes):
        if self.is_mortal and any(record.step == "stopped" for write in writes for record in write.records):
            raise OSError("dead")
        return super().commit(writes)


def test_the_plan_of_a_run_killed_before_a_branch_had_stopped_shows_the_steps_alone():
    saver, graph = DiesAtStopped(), first_of_two([1], need=1)
    with pytest.raises(StoreError):
        graph.invoke({}, checkpointer=saver, run_id="r")
    saver.is_mortal = False
    plan = weft.runs(saver).plan("r", graph)
    assert [call.step for call in plan.reused] == ["begin", "quick"]
    assert [call.step for call in plan.again] == ["end"]
    assert graph.invoke(None, checkpointer=saver, run_id="r") == {"won": 1}


def told_of(watched):
    """What the activation was told, in order, in words that hold in every life."""
    if not watched:
        return []
    return [(watched[0].labels[mine], output, choices) for mine, output, choices in watched[0].told]


class Story:
    """One run of a random graph, in as many lives as it needs."""

    def __init__(self, seed, saver, *, shape="any", is_virtual=True, **options):
        self.luck = luck = random.Random(seed)
        if shape == "forks in forks":
            self.graph, self.forks = forks_in_forks(luck)
        else:
            self.graph = graph_of(luck)
            self.forks = forks_for(self.graph, luck) if shape == "any, forks with options" else {}
        self.kinds = kinds_for(self.graph, luck, sync=0.2)
        self.unlucky = luck.choice([0, 0, 0.05, 0.15])
        self.world = Lives(
            luck,
            unlucky=self.unlucky,
            unit=1.0 if is_virtual else 0.0005,
            has_ids=luck.random() < 0.5,
        )
        self.saver = saver
        self.options = options  # of each run
        self.seed = seed
        self.is_virtual = is_virtual
        self.lives = 0
        self.before = []

    def live(self):
        """One life; its result, or None where it was killed or has failed; the state."""
        self.lives += 1
        made = build(
            self.graph, self.world, self.kinds, state={"noted": [f"life {self.lives}"]}, forks=self.forks
        )
        result = error = None
        with watching() as watched:
            self.world.watched = watched
            try:
                main = lambda: made.ainvoke({"in": 0}, run_id="r", checkpointer=self.saver, **self.options)
                result = run(main, seed=self.seed + self.lives) if self.is_virtual else asyncio.run(main())
            except (StoreError, Boom, ParallelExecutionError) as raised:
                error = raised
        if self.world.is_cut_off:
            raise CutOff
        told = told_of(watched)
        common = min(len(told), len(self.before))
        assert told[:common] == self.before[:common], "it saw other things than in a life before"
        assert not self.world.wrong, self.world.wrong
        self.before = max(told, self.before, key=len)
        self.world.durable |= {label for label, _, _ in told}
        if watched:
            self.consider_failures(watched[0], told, error)
        self.watched = watched
        takes_state = any(self.kinds[name].takes_state for name in self.graph.nodes)
        return result and shown(result), made.get_state() if takes_state else {"noted": [0]}

    def consider_failures(self, watched, told, error):
        """Tried again is what has ended the run, and after a kill a failure after which nothing was asked for."""
        ended_it = isinstance(error, Boom | ParallelExecutionError)
        seen = self.world.seen
        again = [
            at
            for at, begun in watched.failures.items()
            if ended_it or not any(watched.labels[mine] in seen for mine in range(begun, len(watched.runs)))
        ]
        if not again or (len(told) < len(self.before) and not ended_it):
            return
        first = min(again)
        self.before = told[:first]
        begun = {watched.labels[mine] for mine in range(watched.failures[first])}
        self.world.forget(self.before, begun)

    def whole(self):
        """The result and the state, after all lives; None if the graph cannot come to an end."""
        while self.lives < 300:
            self.saver.left = self.luck.choice([1, 1, 2, 3, 5, 8, 13, 30])
            if self.lives > 20:
                self.world.unlucky = 0
            try:
                result, state = self.live()
            except (StuckError, MaxStepsError, CutOff):
                return None
            if result is not None:
                return result, state
        raise AssertionError("it does not come to an end")

    def edit(self):
        """Change the graph; what was done."""
        self.graph, what = edited(self.graph, self.luck)
        self.kinds = {"new": Kind(takes_state=True), **self.kinds}
        self.before = []
        self.world.seen, self.world.durable = {}, set()
        self.at_edit = self.world.given
        return what

    def recalled(self):
        """How many outputs were used that are from before the edit."""
        return sum(output["id"] <= self.at_edit for _, output, _ in self.watched[0].told)

    def check_by_reference(self, result, state):
        """What it has seen leads to what it gave; nothing it has seen was computed for something else."""
        reference = Reference(self.graph, max_steps=30)
        started = {each.execution: each for each in reference.begin({"in": 0})}
        ids = {}
        for mine, output, choices in self.watched[0].told:
            this = started[mine]
            takes_state = self.kinds[this.node].takes_state
            if self.world.has_ids:
                ids[mine] = output["id"]
                computed_for = self.world.computed_for[output["id"]]
                assert (computed_for.node, computed_for.flow) == (this.node, this.flow)
                noted = [ids[each] for each in this.branch.history()] if takes_state else None
                assert (computed_for.noted or [0])[1:] == (noted or [])
            started |= {
                each.execution: each for each in reference.end(mine, output, choices, notes=takes_state)
            }
        assert reference.result == result
        if self.world.has_ids:
            assert state["noted"][1:] == [ids[each] for each in reference.history]
        assert len(state["noted"]) == 1 + len(reference.history)

    def check_finished(self, result, state):
        """Invoked once more, it gives the same and runs nothing."""
        self.saver.left = 30
        ran = Counter(self.world.ran)
        assert self.live() == (result, state)
        assert self.world.ran == ran


@pytest.mark.parametrize("shape", SHAPES)
def test_random_graphs_that_are_killed_again_and_again(mortals, shape):
    lives = finished = 0
    for seed in seeds_of("killed graphs", 200 if mortals.are_quick else 60):
        story = Story(seed, mortals(), shape=shape)
        with naming(seed, story.graph, story.forks):
            found = story.whole()
            lives += story.lives
            if found is None:
                continue
            finished += 1
            if shape == "any":
                story.check_by_reference(*found)
            story.check_finished(*found)
    print(f"{lives} lives, {finished} came to their end")


@pytest.mark.parametrize("shape", SHAPES)
def test_while_something_is_written_the_rest_goes_on(shape):
    """In real time: a graph that did not wait for what is written would show it."""
    for seed in seeds_of("killed graphs in real time", 40):
        story = Story(seed, Mortal(pause=0.0003), shape=shape, is_virtual=False)
        with naming(seed, story.graph, story.forks):
            if (found := story.whole()) is not None:
                story.check_finished(*found)


def test_the_test_before_would_see_a_result_that_can_be_taken_back():
    """The same search with a durability that does not promise it."""
    with pytest.raises(AssertionError, match="saw other things|has seen|runs again"):
        for seed in seeds_of("killed, and nothing promised", 300):
            Story(seed, Mortal(pause=0.001), is_virtual=False, durability="async").whole()


# Edited between two lives


def edited(graph, luck):
    """A graph with one thing more or less, and what was done."""
    edges = [*graph.edges]
    what = luck.choice(["insert", "remove", "add", "unjoin"])
    if what == "insert" and edges:
        source, destination = edge = luck.choice(edges)
        at = edges.index(edge)
        edges[at : at + 1] = [(source, "new"), ("new", destination)]
        return replace(graph, nodes=(*graph.nodes, "new"), edges=tuple(edges)), f"insert into {edge}"
    if what == "remove":
        several = [edge for edge in edges if sum(edge[0] == other[0] for other in edges) > 1]
        if several:
            edges.remove(gone := luck.choice(several))
            return replace(graph, edges=tuple(edges)), f"remove {gone}"
    if what == "unjoin" and graph.joins:
        gone = luck.choice(graph.joins)
        left = tuple(join for join in graph.joins if join != gone)
        new = tuple((source, gone[1]) for source in gone[0] if source not in graph.ends)
        return replace(graph, joins=left, edges=tuple(dict.fromkeys((*edges, *new)))), f"unjoin {gone}"
    source = luck.choice([name for name in graph.nodes if name not in graph.ends])
    new = (source, luck.choice(graph.nodes[1:]))
    return replace(graph, edges=tuple(dict.fromkeys((*edges, new)))), f"add {new}"


def test_a_graph_that_was_edited_never_takes_a_result_for_another():
    ends = Counter()
    for seed in seeds_of("edited graphs", 250):
        story = Story(seed, Mortal())
        story.world.has_ids = True
        story.world.unlucky = 0
        story.saver.left = story.luck.randint(1, 12)
        with naming(seed, story.graph):
            with suppress(StuckError, MaxStepsError, CutOff):
                story.live()
            if story.saver.find("r") is None or story.saver.find("r").status is not RunStatus.RUNNING:
                ends["had ended"] += 1
                continue
            records = len(story.saver.records("r"))
            what = story.edit()
            with naming(seed, what):
                try:
                    found = story.whole()
                except GraphError as error:
                    assert "to which it has no edge" in str(error)
                    ends["chose what is gone"] += 1
                    continue
                if found is None:
                    ends["has no end"] += 1
                    continue
                ends["finished"] += 1
                ends["records at the edit"] += records
                ends["recalled"] += story.recalled()
                story.check_by_reference(*found)
                story.check_finished(*found)
    print(ends)
    assert ends["recalled"]


# Cases


class Once:
    """Steps that count how often they have run, and give something new each time."""

    def __init__(self):
        self.ran = Counter()
        self.broken = set()

    def step(self, name, seconds=0, writes=None, notes=False):
        def ended():
            self.ran[name] += 1
            if name in self.broken:
                raise Boom(name)
            return {} if writes is None else {writes: f"{name} {self.ran[name]}"}

        async def stateful(state):
            await asyncio.sleep(seconds)
            state["history"].append(name)
            return ended() | ({f"{name} saw": [*state["history"]]} if writes else {})

        async def body():
            await asyncio.sleep(seconds)
            return ended()

        return node(name=name)(stateful if notes else body)

    def forget(self):
        found, self.ran = dict(self.ran), Counter()
        return found


def made_of(*nodes, state=None):
    """The first is the start, the last is the end."""
    made = Graph(initial_state={"history": []} if state is None else state)
    for each in nodes:
        made.add_node(each, start=each is nodes[0], end=each is nodes[-1])
    return made


def go(made, saver):
    return run(lambda: made.ainvoke({"in": 0}, run_id="r", checkpointer=saver))


def breaks(made, saver):
    with pytest.raises(Boom):
        go(made, saver)


def test_a_graph_goes_on_with_the_state_that_was_recorded(saver):
    once = Once()

    def graph(state):
        made = made_of(
            once.step("s", notes=True), once.step("a", notes=True), once.step("e", notes=True), state=state
        )
        return made.add_edge("s", "a").add_edge("a", "e")

    once.broken = {"a"}
    breaks(graph({"history": ["first"]}), saver)
    assert once.forget() == {"s": 1, "a": 1}
    once.broken = set()
    second = graph({"history": ["second"], "more": 1})
    assert go(second, saver) == {"in": 0}
    assert once.forget() == {"a": 1, "e": 1}
    assert second.get_state() == {"history": ["first", "s", "a", "e"]}
    third = graph({"history": ["third"]})
    assert go(third, saver) == {"in": 0}
    assert third.get_state() == second.get_state()
    assert once.forget() == {}


def test_an_inserted_node_that_only_changes_the_state_has_those_behind_it_run_again(saver):
    """What they were given is the same, but for the state."""
    once = Once()

    def graph(*between):
        ways = ["s", *between, "a", "e"]
        made = made_of(*(once.step(name, notes=True, writes="a" if name == "a" else None) for name in ways))
        for source, destination in zip(ways, ways[1:], strict=False):
            made.add_edge(source, destination)
        return made

    once.broken = {"e"}
    breaks(graph(), saver)
    once.broken, _ = set(), once.forget()
    found = go(graph("new"), saver)
    assert once.forget() == {"new": 1, "a": 1, "e": 1}
    assert found["a saw"] == ["s", "new", "a"]


def test_a_node_that_runs_on_two_branches_has_not_the_result_of_the_other_one(saver):
    """Both are given the same; the branch on which it has ended is taken away."""
    once = Once()

    def graph(*names):
        made = made_of(
            once.step("s"),
            *(once.step(name, 5 * at) for at, name in enumerate(names)),
            once.step("x", 1, "x"),
        )
        for name in names:
            made.add_edge(name, "x")
        return made.add_parallel("s", names)

    once.broken = {"b"}
    breaks(graph("a", "b"), saver)
    assert once.forget() == {"s": 1, "a": 1, "x": 1, "b": 1}
    once.broken = set()
    assert go(graph("b", "c"), saver)["x"] == "x 2"
    assert once.forget() == {"b": 1, "c": 1, "x": 2}


def test_a_branch_that_is_removed_before_others_leaves_them_what_they_have(saver):
    once = Once()

    def graph(*names):
        made = made_of(
            once.step("s"),
            *(once.step(name, writes=name) for name in names),
            *(once.step(f"{name}2", writes=f"{name}2") for name in names),
            once.step("e"),
        )
        for name in names:
            made.add_edge(name, f"{name}2")
        return made.add_parallel("s", names).add_join([f"{name}2" for name in names], "e")

    once.broken = {"e"}
    breaks(graph("a", "b", "c"), saver)
    once.broken, _ = set(), once.forget()
    assert go(graph("b", "c"), saver) == {"in": 0, "b": "b 1", "b2": "b2 1", "c": "c 1", "c2": "c2 1"}
    assert once.forget() == {"e": 1}


@pytest.mark.parametrize("options", [{"on_error": "race"}, {"need": 1}], ids=["race", "need"])
@pytest.mark.parametrize("width", [None, 1, 2])
def test_who_has_won_a_race_has_won_it_for_good(saver, options, width):
    once = Once()

    def graph(*seconds):
        names = [f"n{at}" for at in range(len(seconds))]
        made = made_of(
            once.step("s"),
            *(once.step(name, at, "winner") for name, at in zip(names, seconds, strict=True)),
            once.step("e"),
        )
        made.add_parallel("s", names, max_concurrent=width, **options)
        return made.add_join(names, "e")

    once.broken = {"e"}
    breaks(graph(3, 2, 1), saver)
    winner = {None: "n2", 1: "n0", 2: "n1"}[width]
    assert once.forget() == {"s": 1, winner: 1, "e": 1}
    once.broken = set()
    assert go(graph(1, 1, 1), saver)["winner"] == f"{winner} 1"
    assert once.forget() == {"e": 1}


def test_what_was_collected_stays_collected(saver):
    once = Once()

    def graph():
        made = made_of(once.step("s"), once.step("a"), once.step("b", writes="b"), once.step("e"))
        return made.add_parallel("s", ["a", "b"], on_error="collect").add_join(["a", "b"], "e")

    once.broken = {"a", "e"}
    breaks(graph(), saver)
    assert once.forget() == {"s": 1, "a": 1, "b": 1, "e": 1}
    once.broken = set()
    assert shown(go(graph(), saver)) == {"in": 0, "a": "Boom('a')", "b": "b 1"}
    assert once.forget() == {"e": 1}


def test_outcomes_are_seen_in_the_order_of_before_though_one_is_asked_for_later(saver):
    """b2 is asked for only when b was seen; c, which ended later than b2, has been asked for long since."""
    once = Once()

    def graph(*, is_slow):
        made = made_of(
            once.step("s"),
            once.step("b", is_slow),
            once.step("b2", is_slow, "x"),
            once.step("c", 3 * is_slow, "x"),
            once.step("e"),
        )
        made.add_parallel("s", ["b", "c"]).add_edge("b", "b2")
        return made.add_join(["b2", "c"], "e")

    once.broken = {"e"}
    breaks(graph(is_slow=True), saver)
    once.broken = set()
    assert go(graph(is_slow=False), saver)["x"] == "c 1"
