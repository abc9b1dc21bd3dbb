"""What runs next in a graph: single cases as they are meant, and random ones against an interpreter that is slow."""

from __future__ import annotations

import functools
import gc
import operator
import random
import sys
from collections import Counter
from typing import NamedTuple

import pytest
from graph_making import graphs, plan_for, possible
from graph_reference import Graph, Reference, Stuck, TooManySteps, opener_of
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from weft.core.activation import (
    Activation,
    BranchEnded,
    Finished,
    Options,
    StateConflicts,
    split_choices,
)
from weft.core.dominators import immediate_dominators
from weft.core.graph_branches import Branch
from weft.core.graph_plan import GraphPlan, PlanJoin, PlanNode
from weft.core.state_merge import Conflict
from weft.errors import (
    ConflictError,
    DefinitionError,
    GraphCompileError,
    GraphError,
    MaxStepsError,
    StateConflictError,
    StuckError,
)

# Writing graphs


def plan_of(text, *joins, start="s", ends="e", routers="", blocks=""):
    """``"s>ab a>c"``: one letter a node, edges from one to several; ``"ab>c"`` in joins."""
    edges = [(part[0], to) for part in text.split() for to in part.split(">")[1]]
    pairs = [join.split(">") for join in joins]
    letters = [name for edge in edges for name in edge] + [
        name for pair in pairs for part in pair for name in part
    ]
    names = list(dict.fromkeys([start, *letters]))
    nodes = [PlanNode(name, name == start, name in ends, name in routers) for name in names]
    return GraphPlan(nodes, edges, [PlanJoin(tuple(sources), to) for sources, to in pairs], blocks=blocks)


class Run(NamedTuple):
    """What a decision says; the branch goes on."""

    execution: int
    node: str
    branch: Branch
    place: bytes
    upstream: tuple

    @classmethod
    def of(cls, branch):
        return cls(branch.execution, branch.node, branch, branch.place, branch.upstream)

    @property
    def flow(self):
        return self.branch.flow


def nodes_in(decisions):
    return [decision.node for decision in decisions if isinstance(decision, Branch)]


class Driver:
    """Tells an activation what nodes gave, one after the other, and keeps what it answers."""

    def __init__(self, plan, input=None, *, state=None, **options):
        self.plan = plan
        self.activation = Activation(plan, Options(**options), state=state)
        self.running = {}
        self.log = []
        self.runs = []
        self.branches = []
        self.conflicts = []
        self.result = self.state = None
        self._take(self.activation.begin(input or {}))

    def _take(self, decisions):
        for decision in decisions:
            if isinstance(decision, Branch):
                assert decision.execution == len(self.runs)
                self.runs.append(Run.of(decision))
                self.running[decision.execution] = self.runs[-1]
            elif isinstance(decision, BranchEnded):
                self.branches.append(decision.branch)
            elif isinstance(decision, StateConflicts):
                self.conflicts += decision.conflicts
            else:
                assert isinstance(decision, Finished)
                self.result, self.state = decision.result, decision.state

    def find(self, node):
        """The oldest execution of a node that runs."""
        return next(run for run in self.running.values() if run.node == node)

    def end(self, node, choices=None, **output):
        run = self.find(node) if isinstance(node, str) else node
        decisions = self.activation.ended(run.execution, output, choices)
        del self.running[run.execution]
        self.log.append(run.node)
        self._take(decisions)
        return nodes_in(decisions)

    def lose(self, node):
        run = self.find(node)
        del self.running[run.execution]
        decisions = self.activation.lost(run.execution)
        self._take(decisions)
        return nodes_in(decisions)


# Forks and joins


def test_without_a_join_a_node_runs_once_for_each_branch_that_comes():
    run = Driver(plan_of("s>ab a>e b>e"), {"in": 1})
    assert run.end("s") == ["a", "b"]
    assert run.end("b", b=2) == ["e"]
    assert run.end("a", a=1) == ["e"]
    assert [dict(each.flow) for each in run.running.values()] == [{"in": 1, "b": 2}, {"in": 1, "a": 1}]
    run.end("e")
    assert run.result is None
    run.end("e")
    assert run.result == {"in": 1, "a": 1, "b": 2}


def test_a_join_runs_its_destination_once_with_what_all_branches_wrote():
    run = Driver(plan_of("s>ab", "ab>e"), {"in": 1})
    run.end("s", x=0)
    assert run.end("b", b=2) == []
    assert run.end("a", a=1) == ["e"]
    assert dict(run.find("e").flow) == {"in": 1, "x": 0, "a": 1, "b": 2}
    assert [each.node for each in run.find("e").upstream] == ["b", "a"]
    assert run.end("e") == []
    assert run.result == {"in": 1, "x": 0, "a": 1, "b": 2}


def test_only_the_ends_of_watched_branches_are_told():
    plan = plan_of("s>ab a>pq", "pqb>e")

    def told(**options):
        activation, ended = Activation(plan, **options), []
        waiting = activation.begin({})
        while waiting:
            decision = waiting.pop(0)
            if isinstance(decision, Branch):
                waiting += activation.ended(decision.execution, {})
            elif isinstance(decision, BranchEnded):
                ended.append(f"{decision.branch.fork.node}{decision.branch.index}")
        return ended

    assert sorted(told()) == ["a0", "a1", "s0", "s1"]
    assert told(watched={"a"}) == ["a0", "a1"]
    assert told(watched=()) == []


def test_places_are_told_to_who_wants_them():
    plan = plan_of("s>ab", "ab>e")

    def places(**options):
        activation = Activation(plan, **options)
        (first,) = activation.begin({})
        return {first.place, *(run.place for run in activation.ended(0, {}))}

    assert len(places()) == 3
    assert places(has_places=False) == {b""}


def test_branches_of_different_length_are_waited_for():
    run = Driver(plan_of("s>abc b>p p>q", "aqc>e"))
    run.end("s")
    for node in "abcp":
        assert "e" not in run.end(node)
    assert run.end("q") == ["e"]


def test_a_fork_inside_a_branch_meets_in_the_join_outside():
    run = Driver(plan_of("s>ab a>pq", "pqb>e"))
    for node in "sabp":
        run.end(node, **{node: 1})
    assert run.end("q", q=1) == ["e"]
    assert dict(run.find("e").flow) == dict.fromkeys("sabpq", 1)


def test_nested_joins():
    run = Driver(plan_of("s>ab a>pq", "pq>c", "cb>e"))
    run.end("s")
    run.end("b")
    run.end("a")
    run.end("p")
    assert run.end("q") == ["c"]
    assert run.end("c") == ["e"]
    run.end("e")
    assert Counter(run.log) == Counter("sabpqce")


def test_a_branch_that_was_not_chosen_is_not_waited_for():
    run = Driver(plan_of("s>r r>abc", "abc>e", routers="r"))
    run.end("s")
    assert run.end("r", ["a", "c"]) == ["a", "c"]
    run.end("c")
    assert run.end("a") == ["e"]
    run.end("e")
    assert run.result == {}


@pytest.mark.parametrize("choices", [["a"], ["a", "a"], ["a", "b", "a"]])
def test_one_choice_and_equal_choices(choices):
    run = Driver(plan_of("s>ab", "ab>e", routers="s"))
    assert run.end("s", choices) == choices
    for name in choices[1:]:
        assert run.end(name) == []
    assert run.end(choices[0]) == ["e"]


def test_an_end_node_and_an_empty_choice_end_a_branch_early():
    run = Driver(plan_of("s>abc a>x b>y y>z", "yzc>e", ends="ex", routers="ab"))
    run.end("s")
    run.end("a", ["x"])
    run.end("c", c=1)
    assert run.end("b", []) == ["e"]  # x still runs, and cannot come to the join
    assert dict(run.find("e").flow) == {"c": 1}
    run.end("x", x=1)
    assert run.result is None
    run.end("e", e=1)
    assert run.result == {"c": 1, "e": 1, "x": 1}


def test_a_join_to_which_nothing_comes_does_not_fire():
    run = Driver(plan_of("s>ab a>x b>y", "xy>e", routers="ab"))
    run.end("s")
    run.end("a", [], a=1)
    run.end("b", [])
    assert run.log == list("sab")
    assert run.result == {"a": 1}


def test_a_join_leads_back_to_its_router():
    """The document's iterative pattern: the router runs twice, the tools once each."""
    run = Driver(plan_of("s>r r>abe", "ab>r", routers="r"))
    run.end("s")
    run.end("r", ["a", "b"])
    run.end("a", a=1)
    assert run.end("b", b=1) == ["r"]
    assert run.end("r", ["e"]) == ["e"]
    run.end("e")
    assert run.result == {"a": 1, "b": 1}
    assert Counter(run.log) == Counter("srrabe")


def test_each_execution_of_the_opener_opens_the_join_once():
    run = Driver(plan_of("s>xy x>o y>o o>ab", "ab>e"))
    for node in "sxy":
        run.end(node)
    run.end("o")
    run.end("o")
    a1, a2 = (each for each in run.runs if each.node == "a")
    b1, b2 = (each for each in run.runs if each.node == "b")
    assert run.end(a1) == run.end(b2) == []
    assert run.end(b1) == ["e"]
    assert run.end(a2) == ["e"]
    run.end("e")
    run.end("e")
    assert Counter(run.log) == Counter("sxyooababee")


def test_a_join_of_one_source_collects_all_its_executions():
    """It is what a user writes who wants the destination to run once."""
    run = Driver(plan_of("s>xy x>a y>a", "a>e"))
    for node in "sxya":
        assert "e" not in run.end(node)
    assert run.end("a") == ["e"]


def test_a_branch_that_goes_back_is_waited_for():
    run = Driver(plan_of("s>ab a>r r>ac", "cb>e", routers="r"))
    run.end("s")
    run.end("b")
    for _ in range(3):
        run.end("a")
        run.end("r", ["a"])
    run.end("a")
    run.end("r", ["c"])
    assert run.end("c") == ["e"]


def test_what_goes_on_behind_a_join_may_come_to_it_again():
    """A loop back into one branch: the join fires again, with what comes in that round."""
    run = Driver(plan_of("s>ab c>ae", "ab>c", routers="c"))
    run.end("s")
    run.end("a", a=1)
    assert run.end("b") == ["c"]
    assert run.end("c", ["a"]) == ["a"]
    assert run.end("a", a=2) == ["c"]
    run.end("c", ["e"])
    run.end("e")
    assert run.result == {"a": 2}


def test_two_joins_of_one_fork_fire_each_for_itself():
    run = Driver(plan_of("s>abcd", "ab>x", "cd>y", ends="xy"))
    run.end("s")
    run.end("a")
    assert run.end("b") == ["x"]
    run.end("c")
    assert run.end("d") == ["y"]


def test_a_source_of_two_joins_comes_to_both():
    run = Driver(plan_of("s>abc", "ab>x", "bc>y", ends="xy"))
    run.end("s")
    run.end("a")
    assert run.end("b") == ["x"]
    assert run.end("c") == ["y"]


def test_a_join_waits_for_another_that_leads_to_it():
    run = Driver(plan_of("s>abc", "ab>d", "dc>e"))
    run.end("s")
    run.end("c")
    run.end("a")
    assert run.end("b") == ["d"]
    assert run.end("d") == ["e"]


def test_an_edge_that_is_also_the_joins_is_the_joins():
    plan = plan_of("s>ab a>e b>e s>a", "ab>e", "ba>e")
    run = Driver(plan)
    assert run.end("s") == ["a", "b"]
    run.end("a")
    assert run.end("b") == ["e"]
    assert len(plan.joins) == 1


def test_a_lost_branch_is_as_if_it_had_never_been():
    run = Driver(plan_of("s>ab a>c", "cb>e"))
    run.end("s", s=1)
    run.end("a", a=1)
    run.end("b", b=1)
    assert run.lose("c") == ["e"]
    assert dict(run.find("e").flow) == {"s": 1, "b": 1}
    run.lose("e")
    assert run.result == {}


# Merging


def test_the_last_to_complete_wins_and_only_with_what_it_wrote():
    run = Driver(plan_of("s>abc", "abc>e"), {"x": 0, "y": 0})
    run.end("s")
    run.end("b", x="b")
    run.end("a", x="a", y="a")
    run.end("c")
    assert dict(run.find("e").flow) == {"x": "a", "y": "a"}


def test_what_a_branch_only_passed_on_does_not_come_back():
    """x is written before the inner fork, changed in one branch of it, and not touched in the other."""
    run = Driver(plan_of("s>ab a>pq", "pqb>e"))
    run.end("s")
    run.end("a", x="old")
    run.end("p", x="new")
    run.end("b")
    run.end("q")
    assert run.find("e").flow["x"] == "new"


def test_a_value_that_was_overwritten_behind_a_join_does_not_come_back():
    """a's value is changed behind the join; a branch that saw only the old one ends later."""
    run = Driver(plan_of("s>ab a>cl", "cb>d", ends="dl"))
    run.end("s")
    run.end("a", x="old")
    run.end("c", x="new")
    run.end("b")
    run.end("d")
    run.end("l", l=1)
    assert run.result == {"x": "new", "l": 1}


def test_a_branch_that_wrote_before_it_forked_counts_when_the_last_part_of_it_comes():
    run = Driver(plan_of("s>ab a>pq", "pqb>e"))
    run.end("s")
    run.end("a", x="a")
    run.end("p")
    run.end("b", x="b")
    run.end("q")
    assert run.find("e").flow["x"] == "a"


def test_reducers_combine_what_branches_wrote_each_write_once():
    run = Driver(plan_of("s>ab a>pq", "pqb>e"), {"x": 100}, reducers={"x": operator.add})
    run.end("s")
    run.end("a", x=1)
    run.end("p")
    run.end("b", x=10)
    run.end("q")
    assert run.find("e").flow["x"] == 11


def test_reducers_get_what_came_first_first():
    run = Driver(plan_of("s>abc", "abc>e"), reducers={"x": operator.add})
    run.end("s")
    for node in "cab":
        run.end(node, x=node)
    assert run.find("e").flow["x"] == "cab"


def test_a_failing_reducer_says_which_it_is():
    run = Driver(plan_of("s>ab", "ab>e"), reducers={"x": operator.add})
    run.end("s")
    run.end("a", x=1)
    with pytest.raises(TypeError) as caught:
        run.end("b", x="b")
    assert caught.value.__notes__ == ["raised by the reducer of 'x', for what 'b' wrote"]


def test_conflicts_can_be_refused():
    run = Driver(plan_of("s>ab", "ab>e"), on_conflict="error", reducers={"ok": max})
    run.end("s", x=0)
    run.end("b", x=1, ok=1)
    with pytest.raises(ConflictError, match="both written 'x': one in node 'b', the other in 'a'") as caught:
        run.end("a", x=1, ok=2)
    assert (caught.value.key, caught.value.nodes) == ("x", ("b", "a"))


@pytest.mark.parametrize(("key", "names"), [("x", ("a", "b")), ("y", ("p", "b"))])
def test_a_conflict_names_who_has_written_it_of_all_nodes_on_a_branch(key, names):
    run = Driver(plan_of("s>ab a>p p>q", "qb>c", ends="c"), on_conflict="error")
    run.end("s")
    run.end("a", x=1)
    run.end("p", y=1)
    run.end("q", z=1)
    with pytest.raises(ConflictError) as caught:
        run.end("b", **{key: 2})
    assert (caught.value.key, caught.value.nodes) == (key, names)


def test_who_has_written_last_on_a_branch_is_named():
    run = Driver(plan_of("s>ab a>p", "pb>c", ends="c"), on_conflict="error")
    run.end("s")
    run.end("a", x=1, y=1)
    run.end("p", x=2)
    with pytest.raises(ConflictError) as caught:
        run.end("b", x=3)
    assert caught.value.nodes == ("p", "b")


def test_a_branch_may_overwrite_what_was_before_the_fork():
    run = Driver(plan_of("s>ab a>p", "pb>c", ends="c"), {"x": 0}, on_conflict="error")
    run.end("s", x=1)
    run.end("a", x=2)
    run.end("p", x=3)
    run.end("b")
    run.end("c", x=4)
    assert run.result == {"x": 4}


def test_branches_without_a_join_conflict_at_the_end():
    run = Driver(plan_of("s>ab", ends="ab"), on_conflict="error")
    run.end("s")
    run.end("a", x=1)
    with pytest.raises(ConflictError):
        run.end("b", x=2)


def test_no_branch_sees_what_another_wrote():
    run = Driver(plan_of("s>ab a>c b>d", "cd>e"), {"in": 0})
    run.end("s")
    run.end("a", a=1)
    assert dict(run.find("b").flow) == {"in": 0}
    run.end("b", b=1)
    assert dict(run.find("c").flow) == {"in": 0, "a": 1}
    assert dict(run.find("d").flow) == {"in": 0, "b": 1}


def test_the_input_is_not_changed():
    given_input = {"x": 0}
    run = Driver(plan_of("s>e"), given_input)
    run.end("s", x=1)
    run.end("e", y=1)
    assert given_input == {"x": 0}


# State


def note(run, text=None, **values):
    """What a node does that gets the state."""
    state = run.branch.state.state
    state["history"].append(text or run.node)
    state.update(values)


def test_the_state_meets_where_branches_meet():
    """The document's example: isolated, and both entries arrive."""
    run = Driver(plan_of("s>ab", "ab>e"), state={"history": []})
    note(run.find("s"))
    run.end("s")
    a, b = run.find("a"), run.find("b")
    note(b)
    note(a)
    assert b.branch.state.state == {"history": ["s", "b"]}
    run.end("b")
    run.end("a")
    assert run.find("e").branch.state.state == {"history": ["s", "b", "a"]}
    note(run.find("e"))
    run.end("e")
    assert run.state == {"history": ["s", "b", "a", "e"]}


def test_without_a_join_the_state_meets_at_the_end():
    run = Driver(plan_of("s>ab a>e b>e"), state={"history": []})
    for node in ("s", "a", "e", "b", "e"):
        note(run.find(node))
        run.end(node)
    assert run.state == {"history": ["s", "a", "e", "b", "e"]}


def test_what_was_appended_stands_in_the_order_in_which_nodes_were_completed():
    """The document's example without a join: not branch by branch."""
    run = Driver(plan_of("s>ab a>e b>e"), state={})
    run.find("s").branch.state.state["history"] = ["s"]
    run.end("s")
    for node in ("a", "b", "e", "e"):
        note(run.find(node))
        run.end(node)
    assert run.state == {"history": ["s", "a", "b", "e", "e"]}


def test_when_a_node_was_completed_counts_and_not_when_it_appended():
    run = Driver(plan_of("s>ab", "ab>e"), state={"history": []})
    run.end("s")
    for node in "ab":
        note(run.find(node))
        run.find(node).branch.state.take()
    run.end("b")
    run.end("a")
    assert run.find("e").branch.state.state == {"history": ["b", "a"]}


@pytest.mark.parametrize("order", ["asxpyqcdze", "axspqycdze", "asxpyqczde"])
def test_what_was_appended_stays_in_order_through_nested_forks_and_joins(order):
    """One branch forks again and joins; the other goes on meanwhile, and what comes last joins them."""
    run = Driver(plan_of("o>ax a>s s>pq x>y y>z c>d", "pq>c", "dz>e", start="o"), state={"history": []})
    run.end("o")
    for node in order:
        note(run.find(node))
        run.end(node)
    assert run.state == {"history": [*order]}


def test_a_branch_sees_what_was_appended_in_the_order_in_which_it_will_stand():
    run = Driver(plan_of("s>abl a>p b>q", "pq>c", ends="cl"), state={"history": []})
    seen = []
    for node in "sablqpc":
        seen = [*run.find(node).branch.state.state["history"]]
        note(run.find(node))
        run.end(node)
    assert seen == [*"sabqp"]
    assert run.state == {"history": [*"sablqpc"]}


def test_a_branch_that_fails_leaves_nothing_but_what_it_gives_instead():
    run = Driver(plan_of("s>ab a>c b>d", "cd>e", blocks="s"), state={"history": []})
    run.end("s")
    branch = run.find("b").branch
    for node in "abdc":
        each = run.find(node)
        note(each)
        if node == "d":
            del run.running[each.execution]
            run._take(run.activation.cut_off({branch: [each.execution]}, fails=True))
            run._take(run.activation.failed([each.execution], branch, {"b": "failed"}))
        else:
            run.end(each)
    assert run.find("e").branch.state.state == {"history": [*"ac"]}
    assert dict(run.find("e").flow) == {"b": "failed"}


def test_the_digest_stands_for_the_order_too():
    """What runs behind the join sees another list, though each branch did the same."""
    digests = {}
    for order in ("sabcd", "sbacd", "sabdc"):
        run = Driver(plan_of("s>ab a>c b>d", "cd>e"), state={"history": []})
        for node in order:
            state = run.find(node).branch.state
            note(run.find(node))
            state.record(repr(state.take()).encode())
            run.end(node)
        digests[order] = run.find("e").branch.state.digest
    assert len({*digests.values()}) == 3


def test_what_came_through_a_join_counts_once():
    """a is seen by the branch that ends outside of the join, and by what goes on behind it."""
    run = Driver(plan_of("s>ab a>cl", "cb>d", ends="dl"), state={"history": []})
    for node in "sacbdl":
        note(run.find(node))
        run.end(node)
    assert run.state == {"history": ["s", "a", "c", "b", "d", "l"]}


def test_conflicts_of_the_state_are_told():
    run = Driver(plan_of("s>ab", "ab>e"), state={"history": []})
    run.end("s")
    note(run.find("a"), n=1)
    run.end("a")
    note(run.find("b"), n=2)
    run.end("b")
    assert run.conflicts == [
        Conflict(("n",), ("the branch that ended with 'a'", "the branch that ended with 'b'"))
    ]
    assert run.find("e").branch.state.state["n"] == 2


def test_conflicts_of_the_state_can_be_refused_or_reduced():
    for options in (
        {"on_state_conflict": "error"},
        {"state_reducers": {"n": lambda at_fork, merged, mine: merged + mine}},
    ):
        run = Driver(plan_of("s>ab", "ab>e"), state={"history": []}, **options)
        run.end("s")
        note(run.find("a"), n=1)
        run.end("a")
        note(run.find("b"), n=2)
        if "on_state_conflict" in options:
            with pytest.raises(
                StateConflictError, match=r"state\['n'\]: one in the branch that ended with 'a'"
            ):
                run.end("b")
        else:
            run.end("b")
            assert run.find("e").branch.state.state["n"] == 3


def test_only_a_branch_that_asks_has_a_copy():
    run = Driver(plan_of("s>ab", "ab>e"), state={"history": [], "thing": Driver})
    run.end("s")
    a, b = run.find("a").branch, run.find("b").branch
    assert a.state.state["thing"] is Driver
    run.end("a")
    run.end("b")
    assert b._state is None
    assert run.find("e").branch.state.state == {"history": [], "thing": Driver}


def test_the_state_that_was_given_is_not_changed():
    given_state = {"history": []}
    run = Driver(plan_of("s>e"), state=given_state)
    note(run.find("s"))
    run.end("s")
    run.end("e")
    assert given_state == {"history": []}
    assert run.state == {"history": ["s"]}


def test_a_lost_branch_leaves_nothing_in_the_state():
    run = Driver(plan_of("s>ab", "ab>e"), state={"history": []})
    run.end("s")
    note(run.find("a"))
    run.lose("a")
    run.end("b")
    run.end("e")
    assert run.state == {"history": []}


def test_there_is_no_state_unless_one_is_given():
    run = Driver(plan_of("s>e"))
    with pytest.raises(GraphError, match="begun without a state"):
        run.find("s").branch.state  # noqa: B018 - it is a property
    run.end("s")
    run.end("e")
    assert run.state is None


# Forks as blocks


def test_branches_say_when_nothing_of_them_goes_on():
    run = Driver(plan_of("s>ab a>pq p>x", "xqb>e"))
    run.end("s")
    a, b = (run.find(name).branch for name in "ab")
    assert (a.fork.node, a.fork.execution, a.fork.size, a.index, b.index) == ("s", 0, 2, 0, 1)
    run.end("b")
    assert run.branches == [b]
    run.end("a")
    inner = run.find("q").branch
    assert inner.is_within(a)
    assert not inner.is_within(b)
    run.end("q")
    assert run.branches == [b, inner]
    run.end("p")
    run.end("x")
    assert run.branches[2].fork.node == "a"
    assert run.branches[3:] == [a]


def test_a_join_inside_a_branch_does_not_end_it():
    run = Driver(plan_of("s>ab a>pq", "pq>c", "cb>e"))
    for node in "sapq":
        run.end(node)
    c = run.find("c").branch
    assert {branch.fork.node for branch in run.branches} == {"a"}
    run.end("c")
    assert run.branches[-1].fork.node == "s"
    assert c.is_within(run.branches[-1])


def test_a_lost_branch_has_ended_too():
    run = Driver(plan_of("s>ab", "ab>e"))
    run.end("s")
    branch = run.find("a").branch
    run.lose("a")
    assert run.branches == [branch]


def test_a_block_forks_even_if_one_way_is_taken():
    run = Driver(plan_of("s>ab", "ab>e", routers="s", blocks="s"))
    run.end("s", ["a"])
    branch = run.find("a").branch
    assert (branch.fork.node, branch.fork.size) == ("s", 1)
    run.end("a", x=1)
    assert run.branches == [branch]
    assert dict(run.find("e").flow) == {"x": 1}


# Places


def test_places_do_not_depend_on_the_order():
    plan = plan_of("s>ab a>pq b>x", "pq>c", "cx>e")
    found = set()
    for order in ("sabpqxce", "sbxaqpce", "sabxpqce"):
        run = Driver(plan)
        for node in order:
            run.end(node)
        found.add(frozenset((each.node, each.place) for each in run.runs))
        places = {each.node: each.place for each in run.runs}
        assert places["b"] == places["x"] != places["a"]  # one after the other on one branch
    assert len(found) == 1
    assert len(next(iter(found))) == 8


# Steps


def test_max_steps_counts_along_one_path():
    run = Driver(plan_of("s>ab", "ab>e"), max_steps=3)
    for node in "sabe":
        run.end(node)
    assert run.result == {}


def test_max_steps_names_the_loop():
    run = Driver(plan_of("s>r r>abe", "ab>r", routers="r"), max_steps=4)
    run.end("s")
    run.end("r", ["a", "b"])
    run.end("a")
    run.end("b")
    with pytest.raises(
        MaxStepsError, match=r"4 nodes .* 'a' would be the next, in the loop 'a' -> 'r' -> 'a'"
    ):
        run.end("r", ["a"])


def test_a_loop_has_a_bound_by_itself_and_a_chain_has_none():
    loop = Driver(plan_of("s>r r>se", routers="r"))
    with pytest.raises(MaxStepsError) as caught:
        while True:
            loop.end("s")
            loop.end("r", ["s"])
    assert len(loop.runs) == caught.value.max_steps == 10_000
    assert caught.value.loop == ("s", "r")


# Standing still


def test_joins_that_wait_for_each_other_are_named():
    run = Driver(plan_of("s>ab", "ay>x", "xb>y", ends="e"))
    run.end("s")
    run.end("a")
    with pytest.raises(StuckError) as caught:
        run.end("b")
    first, second = "the join ['a', 'y'] -> 'x'", "the join ['x', 'b'] -> 'y'"
    assert caught.value.waiting == (
        f"{first} has what came from 'a' and waits for {second}, which can lead to 'y'",
        f"{second} has what came from 'b' and waits for {first}, which can lead to 'x'",
    )


# Routers


def test_a_router_without_edges_may_go_anywhere():
    run = Driver(plan_of("s>r a>r b>r", ends="e", routers="r", start="s"))
    run.end("s")
    run.end("r", ["a", "b"])
    run.end("a")
    assert run.end("b") == ["r"]
    assert run.end("r", ["s"]) == ["s"]


def test_a_router_that_is_a_source_takes_the_join_by_its_destination():
    run = Driver(plan_of("s>ra r>b b>e", "ra>e", routers="r"))
    run.end("s")
    run.end("a")
    assert run.end("r", ["e"]) == ["e"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            ["c"],
            "router 'r' chose 'c', to which it has no edge; it can go to 'aa', 'b'; or add_edge('r', 'c')",
        ),
        (["ab"], "router 'r' chose 'ab', which is no node; did you mean 'b'? it can go to 'aa', 'b'"),
        ([3], "router 'r' chose 3, which is no name of a node; it can go to 'aa', 'b'"),
        (None, "router 'r' has chosen nothing; an empty list of choices ends its branch"),
    ],
)
def test_a_router_that_cannot_go_there(choices, message):
    nodes = [
        PlanNode("r", is_start=True, is_router=True),
        *(PlanNode(name, is_end=True) for name in ("aa", "b", "c")),
    ]
    plan = GraphPlan(nodes, [("r", "aa"), ("r", "b")])
    run = Driver(plan)
    with pytest.raises(GraphError) as caught:
        run.end("r", choices)
    assert str(caught.value) == message
    assert run.end("r", ["b"]) == ["b"]  # it still runs, and may be tried again


@pytest.mark.parametrize(
    ("output", "choices", "rest"),
    [
        ({"choice": "a", "x": 1}, ["a"], {"x": 1}),
        ({"choices": ["a", "a"]}, ["a", "a"], {}),
        ({"choices": (), "x": 1}, [], {"x": 1}),
    ],
)
def test_choices_are_split_from_the_rest(output, choices, rest):
    assert split_choices("r", output) == (choices, rest)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            {},
            "router 'r' gave neither 'choice' (the name of a node) nor 'choices' (a list of names), but an empty dict",
        ),
        ({"chose": 1}, "nor 'choices' (a list of names), but a dict with 'chose'"),
        ({"choice": None}, "the 'choice' of router 'r' must be the name of a node, not None"),
        ({"choices": "ab"}, "the 'choices' of router 'r' must be a list of names of nodes, not 'ab'"),
        ({"choices": ["a", 1]}, "must be a list of names of nodes, not ['a', 1]"),
        ({"choices": {"a"}}, "must be a list of names of nodes, not {'a'}"),
        (
            {"choice": "a", "choices": []},
            "router 'r' gave both 'choice' and 'choices'; it must give one of them",
        ),
    ],
)
def test_choices_of_the_wrong_kind(output, message):
    with pytest.raises(GraphError) as caught:
        split_choices("r", output)
    assert message in str(caught.value)


# Using it wrongly


def test_a_node_without_a_way_on_is_an_error():
    run = Driver(plan_of("s>ab", ends="b"))
    run.end("s")
    with pytest.raises(
        GraphError, match="node 'a' has ended and there is no way on from it: add an edge or a join"
    ):
        run.end("a")


def test_what_is_no_router_cannot_choose():
    run = Driver(plan_of("s>e"))
    with pytest.raises(GraphError, match="node 's' is no router and cannot choose; it chose \\['e'\\]"):
        run.end("s", ["e"])


def test_an_execution_ends_once():
    run = Driver(plan_of("s>e"))
    run.end("s")
    with pytest.raises(GraphError, match="execution 0 has ended already; running: \\[1\\]"):
        run.activation.ended(0, {})
    with pytest.raises(GraphError, match="execution 7 was never started"):
        run.activation.lost(7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"max_steps": True}, "max_steps must be a whole number"),
        ({"on_conflict": "first"}, 'on_conflict must be "last" or "error", not \'first\''),
        ({"on_state_conflict": None}, 'on_state_conflict must be "last" or "error", not None'),
        ({"reducers": {"x": 3}}, "the reducer of 'x' must be a function of two values, not 3"),
        ({"state_reducers": {"x": 3}}, "the reducer of 'x' must be a function of three values, not 3"),
    ],
)
def test_options_that_can_never_work(options, message):
    with pytest.raises(DefinitionError) as caught:
        Options(**options)
    assert message in str(caught.value)


# Bad graphs


def bad(nodes, edges=(), joins=(), *, check=True):
    with pytest.raises(GraphCompileError) as caught:
        plan = GraphPlan(nodes, edges, [PlanJoin(*join) for join in joins])
        assert check
        plan.check()
    return caught.value.problems


S, A, B, E = PlanNode("s", is_start=True), PlanNode("a"), PlanNode("b"), PlanNode("e", is_end=True)
R = PlanNode("r", is_router=True)


@pytest.mark.parametrize(
    ("nodes", "edges", "joins", "problem"),
    [
        ([], [], [], "the graph has no nodes: add_node() adds one"),
        ([A, E], [], [], "the graph has no start node: give one of 'a', 'e' start=True, or call set_start_node()"),
        ([S, PlanNode("t", is_start=True)], [], [], "2 start nodes, 's', 't': an execution can begin at one only"),
        ([S, A, A], [], [], "two nodes are named 'a'"),
        ([S, E], [("s", "ee")], [], "'s' -> 'ee' names 'ee', which is no node; did you mean 'e'? the nodes are 's'"),
        ([S, E], [], [(("s", "q"), "e")], "['s', 'q'] -> 'e' names 'q', which is no node; the nodes are 's', 'e'"),
        ([S, E], [], [((), "e")], "the join [] -> 'e' has no sources, so that it could never fire"),
        ([S, E], [], [(("s", "s"), "e")], "the join ['s', 's'] -> 'e' names the source 's' twice"),
        ([S, A, E], [("s", "e"), ("a", "e")], [], "no path leads from the start 's' to 'a'"),
        ([S, A, E], [("s", "a"), ("s", "e")], [], "node 'a' has no way on: add an edge or a join, or make it an end"),
        ([S, A, B, E], [("s", "e"), ("a", "e"), ("b", "e")], [(("a", "b"), "e")], "-> 'e' can never fire: no branch"),
        ([S, E], [("s", "e"), ("e", "s")], [], "'e' is an end node, so that no branch goes on from there to 's'"),
        ([S, A, E], [("s", "a"), ("a", "s"), ("a", "e")], [], "the loop 's' -> 'a' -> 's' can never end: nothing"),
        ([S, A, B], [("s", "a")], [(("a",), "s")], "the loop 's' -> 'a' -> 's' can never end"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_graph(nodes, edges, joins, problem):
    assert any(problem in found for found in bad(nodes, edges, joins))


def test_all_that_is_wrong_is_said_at_once():
    problems = bad([A, A, E], [("x", "y")], [(("z",), "e")])
    assert len(problems) == 5
    with pytest.raises(GraphCompileError, match=r"(?s)5 things are wrong:\n- .*\n- .*\n- .*\n- .*\n- "):
        GraphPlan([A, A, E], [("x", "y")], [PlanJoin(("z",), "e")])


def test_a_good_graph_has_no_problems():
    plan_of("s>r r>abe", "ab>r", routers="r").check()
    plan_of("s>ab", "ab>e").check()  # of which the document's own system says that its end cannot be reached


def test_what_can_run_need_not_be_perfect():
    plan = GraphPlan([S, A, E], [("s", "e"), ("a", "e")])
    run = Driver(plan)
    run.end("s")
    run.end("e")
    assert run.result == {}


# Random graphs


def both(graph, seed, *, reducers=None, loses=0.03, most=60):
    """Tell the activation and the reference the same, in a random order; how it ended, and both."""
    print(f"{graph} seed={seed}")
    rng, plan = random.Random(seed), plan_for(graph)
    one = Activation(plan, Options(max_steps=30, reducers=reducers), state=noted([]))
    other = Reference(graph, max_steps=30, reducers=reducers)
    decisions, started, running = one.begin({"in": 0}), other.begin({"in": 0}), {}
    for turn in range(most):
        runs = [Run.of(each) for each in decisions if isinstance(each, Branch)]
        shown = [(each.execution, each.node, dict(each.flow), tuple(each.upstream)) for each in runs]
        assert shown == [tuple(each)[:4] for each in started]
        running |= {run.execution: (run, each.branch) for run, each in zip(runs, started, strict=True)}
        assert not any(isinstance(each, StateConflicts) for each in decisions)
        if not running:
            assert one.is_finished
            assert decisions[-1] == Finished(other.result, noted(other.history))
            return "finished", one, other
        run, branch = running.pop(rng.choice(sorted(running)))
        notes = {}
        if rng.random() < 0.5:  # nodes that do not ask for the state have no copy of it
            notes = {"notes": True}
            assert run.branch.state.state == noted(branch.history())
            note_in_all(run.branch.state.state, run.execution)
        if rng.random() < loses:
            told, told_here, told_there = [run.execution], one.lost, other.lose
        else:
            told = [run.execution, *_outcome(plan, run, rng, may_go_on=turn < most // 2)]
            told_here, told_there = one.ended, functools.partial(other.end, **notes)
        try:
            started, ended = told_there(*told), None
        except (Stuck, TooManySteps) as error:
            ended = type(error)
        try:
            decisions = told_here(*told)
        except (StuckError, MaxStepsError) as error:
            assert ended is {StuckError: Stuck, MaxStepsError: TooManySteps}[type(error)]
            return ended.__name__, one, other
        assert ended is None
    return "cut off", one, other


def noted(items):
    """The state that :func:`note_in_all` makes: a list that was there, one that is made when needed, one in a dict."""
    return {"noted": items, **({"made": items, "in": {"made": items}} if items else {})}


def note_in_all(state, item):
    state["noted"].append(item)
    state.setdefault("made", []).append(item)
    state["in"] = state.get("in", {})
    state["in"].setdefault("made", []).append(item)


def _outcome(plan, run, rng, *, may_go_on):
    output = {f"k{rng.randint(0, 3)}": run.execution for _ in range(rng.randint(0, 2))}
    if not plan.nodes[plan.number[run.node]].is_router:
        return output, None
    ways = possible(plan, run.node) if may_go_on else []
    return output, [rng.choice(ways) for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3]))] if ways else []


def chained(earlier, later):
    """A reducer whose result tells in which order, and how often."""
    return (*_listed(earlier), *_listed(later))


def _listed(value):
    return value if isinstance(value, tuple) else (value,)


@settings(max_examples=2_500, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 2**32), st.sampled_from([None, {"k0": chained}]))
@example(  # a value from before the join, a branch that ends outside it, and a join opened before the start
    Graph(
        ("n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7"),
        (("n0", "n2"), ("n1", "n2"), ("n2", "n3"), ("n2", "n5"), ("n3", "n5"), ("n4", "n5"), ("n6", "n7")),
        ((("n1", "n5"), "n4"), (("n0",), "n1")),
        frozenset({"n3", "n4", "n7"}),
        frozenset({"n0"}),
    ),
    1670,
    None,
)
@example(  # what comes to a later round of a join began where an earlier one was opened
    Graph(
        ("n0", "n1", "n2", "n3"),
        (("n0", "n2"), ("n0", "n1"), ("n1", "n2"), ("n2", "n3")),
        ((("n0", "n3"), "n1"), (("n0", "n1", "n2"), "n0")),
        frozenset({"n3"}),
        frozenset({"n0"}),
    ),
    19221,
    None,
)
def test_random_graphs_do_as_the_reference(graph, seed, reducers):
    ended, _, reference = both(graph, seed, reducers=reducers)
    event(ended)
    event(f"{min(3, len(reference.fired))} joins fired")
    counts = Counter((opening.join, opening.trail[-1]) for opening in reference.fired)
    assert set(counts.values()) <= {1}  # once for each passing of its opener, or each round


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 2**32))
def test_the_order_changes_nothing_where_no_two_branches_write_one_key(graph, seed):
    """What a router chooses depends on how often it ran in its place; each execution writes under a key of its own."""
    found, plan = set(), plan_for(graph)
    for order in range(4):
        rng = random.Random(f"{seed} {order}")
        run, times = Driver(plan, max_steps=12), Counter()
        try:
            while run.running and len(run.runs) < 150:
                each = rng.choice(sorted(run.running.values(), key=lambda each: each.execution))
                times[each.node, each.place] += 1
                label = f"{each.place.hex()} {each.node} {times[each.node, each.place]}"
                chooser, choices = random.Random(f"{seed}{label}"), None
                if each.node in graph.routers:
                    ways = possible(plan, each.node) or [None]
                    choices = [chooser.choice(ways) for _ in range(chooser.choice([0, 1, 1, 2])) if ways[0]]
                run.end(each, choices, **{label: each.node})
        except (StuckError, MaxStepsError):
            return
        if run.running:
            return
        nodes = frozenset(Counter((each.node, each.place) for each in run.runs).items())
        found.add((nodes, frozenset(run.result.items())))
    assert len(found) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 2**32))
def test_the_same_told_again_leads_to_the_same(graph, seed):
    """A resume tells the recorded outcomes in the recorded order, with the changes of the state."""
    rng, plan, told = random.Random(seed), plan_for(graph), []
    first, again = (Driver(plan, max_steps=12, state=noted([])) for _ in range(2))
    try:
        while first.running and len(first.runs) < 100:
            run = rng.choice(sorted(first.running.values(), key=lambda run: run.execution))
            output, choices = _outcome(plan, run, rng, may_go_on=len(told) < 20)
            if rng.random() < 0.7:
                note_in_all(run.branch.state.state, run.execution)
            change = run.branch.state.take()
            run.branch.state.record(repr(change).encode())
            told.append((run.execution, choices, output, change))
            first.end(run, choices, **output)
    except (StuckError, MaxStepsError):
        return
    for execution, choices, output, change in told:
        run = again.running[execution]
        run.branch.state.apply(change)
        run.branch.state.record(repr(change).encode())
        again.end(run, choices, **output)
    shown = [
        [
            (each.execution, each.node, each.place, dict(each.flow), each.branch.state.digest)
            for each in run.runs
        ]
        for run in (first, again)
    ]
    assert shown[0] == shown[1]
    assert (first.result, first.state) == (again.result, again.state)


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_openers_are_what_their_definition_says(graph):
    plan = plan_for(graph)
    for number in range(len(graph.joins)):
        point = len(graph.nodes) + number
        expected = opener_of(graph, number)
        if expected is None:
            assert point not in plan._openers
        else:
            assert plan.opener_of(point) == (
                -1 if expected == "" else plan.number.get(expected, _point(plan, expected))
            )


def _point(plan, join):
    return len(plan.nodes) + join if isinstance(join, int) else None


@settings(max_examples=500, deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.tuples(*[st.integers(0, n - 1)] * 2)))
    )
)
def test_dominators_are_what_cannot_be_avoided(drawn):
    count, edges = drawn
    ways = [[after for before, after in sorted(edges) if before == vertex] for vertex in range(count)]

    def reached(without):
        seen, todo = set(), [0]
        while todo:
            vertex = todo.pop()
            if vertex != without and vertex not in seen:
                seen.add(vertex)
                todo += ways[vertex]
        return seen

    above = {
        vertex: {other for other in range(count) if other != vertex and vertex not in reached(other)}
        for vertex in reached(None)
    }
    found = immediate_dominators(ways, 0)
    for vertex in range(count):
        if vertex not in above:
            assert found[vertex] == -1
        elif vertex == 0:
            assert found[vertex] == 0
        else:
            assert found[vertex] in above[vertex]
            assert above[vertex] == above[found[vertex]] | {found[vertex]}


# Size


def test_what_is_worked_out_of_a_plan_is_worked_out_before_the_first_execution():
    plan = plan_of("s>ab a>c c>ae", "eb>z", ends="z", routers="c")
    plan.prepare()
    known = {*vars(plan)}
    run = Driver(plan)
    for node, choices in (("s", None), ("a", None), ("c", ["a"]), ("a", None), ("c", ["e"]), ("b", None)):
        run.end(node, choices)
    run.end("e")
    run.end("z")
    assert run.result == {}
    assert {*vars(plan)} - known <= {"marks", "_choices"}  # of those who choose, and of those who want places


def test_the_garbage_collector_need_not_look_at_the_ways_of_a_plan():
    plan = plan_of("s>ab", "ab>e")
    gc.collect()
    assert not any(map(gc.is_tracked, plan.ways))


def walk(plan, output, choices=lambda run: None, input=None, **options):
    """All nodes, each as soon as it may; how many ran, and the result."""
    activation, count = Activation(plan, Options(**options)), 0
    pending = activation.begin(input or {})
    for decision in pending:
        if isinstance(decision, Finished):
            return count, decision.result
        if isinstance(decision, Branch):
            count += 1
            pending += activation.ended(decision.execution, output(decision), choices(decision))
    raise AssertionError("it did not finish")


def chain(size):
    names = [f"n{place}" for place in range(size)]
    nodes = [PlanNode(name, place == 0, place == size - 1) for place, name in enumerate(names)]
    return GraphPlan(nodes, zip(names, names[1:], strict=False))


def wide(size):
    names = [f"n{place}" for place in range(size)]
    nodes = [S, E, *map(PlanNode, names)]
    return GraphPlan(nodes, [("s", name) for name in names], [PlanJoin(tuple(names), "e")])


def ladder(size):
    """Each node of a chain comes to the join too."""
    names = [f"n{place}" for place in range(size)]
    nodes = [PlanNode(name, place == 0) for place, name in enumerate(names)]
    return GraphPlan([*nodes, E], zip(names, names[1:], strict=False), [PlanJoin(tuple(names), "e")])


def test_a_chain_of_10_000():
    plan = chain(10_000)
    plan.check()
    count, result = walk(plan, lambda run: {run.node: 1})
    assert count == len(result) == 10_000


@pytest.mark.parametrize("shape", [wide, ladder])
def test_a_fork_of_10_000(shape):
    plan = shape(10_000)
    plan.check()
    count, result = walk(plan, lambda run: {run.node: 1, "last": run.node}, reducers={"n": max})
    assert count == 10_001 + (shape is wide)
    assert len(result) == count + 1


def test_100_000_turns_of_a_loop():
    turns = 100_000
    plan = plan_of("s>r r>ae a>r", routers="r")
    count, result = walk(
        plan,
        lambda run: {"n": run.flow.get("n", 0) + 1} if run.node == "a" else {},
        lambda run: (["a"] if run.flow.get("n", 0) < turns else ["e"]) if run.node == "r" else None,
        max_steps=10**9,
    )
    assert count == 2 * turns + 3
    assert result == {"n": turns}


def test_many_turns_of_a_loop_that_note_something_in_the_state():
    turns = 20_000
    run = Driver(plan_of("s>r r>ae a>r", routers="r"), state={"history": []}, max_steps=10**9)
    run.end("s")
    state = run.find("r").branch.state
    for turn in range(turns):
        run.end("r", ["a"])
        assert run.find("a").branch.state is state
        state.state["history"].append(turn)
        assert state.take() == {"history": ("app", [turn], {})}
        run.end("a")
    run.end("r", ["e"])
    run.end("e")
    assert run.state == {"history": [*range(turns)]}
    assert len(state.state["history"]._came) < 5  # when they came is kept by turn


def test_many_turns_of_two_loops_that_append_to_one_list():
    turns = 20_000
    plan = plan_of("s>pq p>ax a>p q>by b>q", "xy>e", routers="pq")
    run = Driver(plan, state={"history": []}, max_steps=10**9)
    run.end("s")
    for turn in range(turns):
        for router, node in ("pa", "qb"):
            run.end(router, [node])
            run.find(node).branch.state.state["history"].append((node, turn))
            run.end(node)
    for router, node in ("px", "qy"):
        run.end(router, [node])
        run.end(node)
    run.end("e")
    assert run.state == {"history": [(node, turn) for turn in range(turns) for node in "ab"]}


def depth_of(branch):
    """How many branches began on each other on the way to this one."""
    return 0 if branch.parent is None else 1 + depth_of(branch.parent)


def test_a_loop_through_a_join_keeps_nothing():
    """What it holds at the end is what it held after ten turns."""
    plan = plan_of("s>r r>abe", "ab>r", routers="r")
    run, depths = Driver(plan, max_steps=10**9), set()
    run.end("s")
    for turn in range(2_000):
        run.end("r", ["a", "b"], turn=turn)
        run.end("a", a=turn)
        run.end("b", b=turn)
        branch = run.find("r").branch
        depths.add((depth_of(branch), len(branch.joined), len(run.activation._waiting)))
        run.log.clear()
        run.runs[:] = [None] * len(run.runs)
    assert depths == {(1, 0, 0)}


def test_a_loop_that_leaves_a_branch_behind_each_time():
    """Such branches nest; nothing may recurse."""
    turns = 3_000
    plan = plan_of("s>r r>ale a>r", ends="le", routers="r")
    count, result = walk(
        plan,
        lambda run: (
            {"n": run.flow.get("n", 0) + 1, "last": run.execution} if run.node == "a" else {run.node: 1}
        ),
        lambda run: (["a", "l"] if run.flow.get("n", 0) < turns else ["e"]) if run.node == "r" else None,
    )
    assert count == 3 * turns + 3
    assert result["n"] == turns


def calls(shape, size):
    """How many functions are called; unlike seconds they are the same whatever else the machine does."""
    count = 0

    def tick(_frame, event, _arg):
        nonlocal count
        count += event in {"call", "c_call"}

    plan = shape(size)
    before = sys.getprofile()
    sys.setprofile(tick)
    try:
        walk(plan, lambda run: {"x": run.execution})
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("shape", [chain, wide, ladder])
def test_ten_times_as_many_take_about_ten_times_as_many_calls(shape):
    assert calls(shape, 3_000) < 12 * calls(shape, 300)


# Branches that fail


def fail(run, branch, *nodes):
    """The branch is cut off with these still running, and gives ``{"failed": 1}``; the nodes that run then."""
    running = [run.find(node).execution for node in nodes]
    for execution in running:
        del run.running[execution]
    run._take(run.activation.cut_off({branch: running}, fails=True))
    known = len(run.runs)
    run._take(run.activation.failed(running, branch, {"failed": 1}))
    return [each.node for each in run.runs[known:]]


def test_a_branch_that_fails_comes_to_the_join_of_its_own_fork():
    """Also if one further out could be reached, and was opened before or after it."""
    run = Driver(plan_of("s>tx t>ab", "ab>c", "abx>e", ends="ec", blocks="t"))
    run.end("s")
    run.end("t")
    branch = run.find("a").branch
    run.end("b")
    assert fail(run, branch, "a") == ["c"]
    assert dict(run.find("c").flow) == {"failed": 1}
    assert run.end("x", x=1) == ["e"]
    assert dict(run.find("e").flow) == {"x": 1}


def test_a_branch_that_fails_comes_to_the_join_that_was_opened_last():
    """Its own fork has opened none."""
    run = Driver(plan_of("s>tx t>uy u>ab", "ax>e", "ay>f", ends="efb", blocks="u"))
    for node in "stu":
        run.end(node)
    run.end("y", y=1)
    assert fail(run, run.find("a").branch, "a") == ["f"]
    assert dict(run.find("f").flow) == {"failed": 1, "y": 1}
    assert run.end("x", x=1) == ["e"]
    assert dict(run.find("e").flow) == {"x": 1}


def test_a_branch_that_fails_comes_to_no_join_that_can_no_more_be_reached():
    """Part of it had come to one that its fork has not opened; what runs cannot: it ends where it is."""
    run = Driver(plan_of("s>tx t>ab a>pq", "px>e", ends="ebq", blocks="t"))
    run.end("s")
    run.end("t")
    branch = run.find("a").branch
    run.end("a")
    run.end("p", p=1)
    assert fail(run, branch, "q") == []
    assert run.end("x", x=1) == ["e"]
    assert dict(run.find("e").flow) == {"x": 1}
    run.end("b")
    run.end("e")
    assert run.result == {"x": 1, "failed": 1}


def test_a_branch_that_fails_comes_to_the_join_to_which_part_of_it_had_come():
    """If its own fork has opened it, also if nothing that runs could reach it; and what had come does not count."""
    run = Driver(plan_of("t>ab a>pq", "pb>e", start="t", ends="eq", blocks="t"))
    run.end("t")
    branch = run.find("a").branch
    run.end("a")
    run.end("p", p=1)
    assert fail(run, branch, "q") == []
    assert run.end("b", b=1) == ["e"]
    assert dict(run.find("e").flow) == {"failed": 1, "b": 1}


# What is kept


@pytest.mark.parametrize("blocks", ["", "r"])
def test_a_fork_of_one_way_that_comes_back_does_not_nest(blocks):
    """However often it is taken, also where its one branch counts as a block."""
    run, depths = Driver(plan_of("s>r r>ae a>r", routers="r", blocks=blocks), max_steps=10**9), set()
    run.end("s")
    for turn in range(100):
        run.end("r", ["a"])
        run.end("a", turn=turn)
        depths.add(depth_of(run.find("r").branch))
    assert len(depths) == 1
    run.end("r", ["e"])
    run.end("e")
    assert run.result == {"turn": 99}


@pytest.mark.parametrize(
    ("plan", "turn"),
    [
        (plan_of("s>r r>abe", "ab>r", routers="r"), "rab"),
        (plan_of("s>r r>abe b>pq", "pq>c", "ac>r", routers="r"), "rabpqc"),
        (plan_of("s>r r>abe b>pq", "pqa>r", routers="r"), "rabpq"),
    ],
)
def test_loops_through_joins_keep_no_joins(plan, turn):
    run, kept = Driver(plan, max_steps=10**9), []
    run.end("s")
    for number in range(60):
        for node in turn:
            run.end(node, ["a", "b"] if node == "r" else None)
        run.log.clear()
        run.runs[:] = [None] * len(run.runs)
        if number % 20 == 19:
            gc.collect()
            kept.append(sum(type(each).__name__ == "_Opening" for each in gc.get_objects()))
    assert len(set(kept)) == 1


def test_options_need_not_be_given():
    activation = Activation(plan_of("s>e"))
    (begun,) = activation.begin({"in": 1})
    (last,) = activation.ended(begun.execution, {}, None)
    (finished,) = activation.ended(last.execution, {"out": 2}, None)
    assert finished.result == {"in": 1, "out": 2}
