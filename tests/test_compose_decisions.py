"""Decisions: where they may go, what is run there and with what, and what is wrong with the rest."""

from __future__ import annotations

import asyncio
import enum
from typing import Literal

import pytest
from asking import ainvoke, in_async_body, in_sync_body, invoke
from leftovers import nothing_left, within

import weft
from weft import (
    DefinitionError,
    InputError,
    NodeTimeoutError,
    ParallelExecutionError,
    RetryPolicy,
    Sequence,
    UsageError,
    WeftError,
    decision,
    node,
    parallel,
    task,
)

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


class Boom(Exception):
    pass


def named(name):
    return node(name)(lambda value: f"{name}({value})")


A, B, C, D = (named(name) for name in "ABCD")


@node("global_node")
def found_by_its_own_name(value):
    return f"global({value})"


@task
def global_task(value):
    return f"task({value})"


global_block = parallel(A, B, name="global_block_key")


def choosing(choice, kind="sync", name="choose", **options):
    def body(value):
        return choice(value) if callable(choice) and not isinstance(choice, weft.Runnable) else choice

    async def abody(value):
        await asyncio.sleep(0)
        return body(value)

    return decision(name, **options)(body if kind == "sync" else abody)


def in_a_sequence(workflow, value):
    return Sequence(
        node("before")(lambda x: x), Sequence(workflow, name="inner"), node("after")(lambda x: x)
    )(value)


WAYS = pytest.mark.parametrize("way", [invoke, ainvoke, in_sync_body, in_async_body, in_a_sequence])


# Jumps


@KINDS
@WAYS
def test_a_jump_forward_goes_on_from_there(way, kind):
    flow = A >> choosing("C", kind) >> B >> C >> D
    assert way(flow, 1) == "D(C(A(1)))"


@KINDS
@WAYS
def test_a_jump_back_runs_what_is_between_again(way, kind):
    rounds = []

    @node("count")
    def count(value):
        rounds.append(value)
        return value + 1

    flow = (
        count
        >> node("add")(lambda value: value + 10)
        >> choosing(lambda value: "count" if value < 30 else "end", kind)
        >> node("end")(lambda value: -value)
    )
    assert way(flow, 0) == -33
    assert rounds == [0, 11, 22]


@KINDS
def test_a_jump_may_be_a_step_itself(kind):
    assert (A >> choosing(C, kind) >> B >> C >> D)(1) == "D(C(A(1)))"


def test_a_jump_to_a_block_a_sequence_or_a_decision_goes_by_their_names():
    block = parallel(A, B, name="block")
    inner = Sequence(A, B, name="inner")
    assert (choosing("block") >> C >> block)(1) == {"A": "A(1)", "B": "B(1)"}
    assert (choosing("inner") >> C >> inner)(1) == "B(A(1))"
    assert (choosing(block) >> C >> block)(1) == {"A": "A(1)", "B": "B(1)"}
    second = choosing("D", name="second")
    assert (choosing("second", name="first") >> C >> second >> B >> D)(1) == "D(1)"
    assert (choosing(second, name="first") >> C >> second >> B >> D)(1) == "D(1)"


def test_the_next_step_is_a_jump_like_any_other():
    assert (A >> choosing("B") >> B >> C)(1) == "C(B(A(1)))"


def test_the_last_step_of_all_may_be_a_decision():
    assert (A >> choosing("B", branches=[B]))(1) == "B(A(1))"


def test_the_first_of_equal_names_is_gone_to():
    seen = []
    first = node("same")(lambda value: seen.append("first") or value)
    second = node("same")(lambda value: seen.append("second") or value)
    assert Sequence(choosing("same"), B, first, second)(1) == 1
    assert seen == ["first", "second"]


def test_a_decision_may_choose_itself_until_it_is_sure():
    left = [3]

    @decision
    def choose(value):
        left[0] -= 1
        return "choose" if left[0] else "B"

    assert (choose >> A >> B)(1) == "B(1)"
    assert left == [0]


def test_a_sequence_is_not_changed_by_its_runs_and_serves_many_at_once():
    @decision
    async def choose(value):
        await asyncio.sleep(0.001 * (value % 3))
        return "A" if value % 2 else "B"

    flow = Sequence(choose, node("never")(lambda value: "never"), A, C, B, name="flow")

    async def main():
        return await asyncio.gather(*(flow.ainvoke(n) for n in range(30)))

    assert asyncio.run(main()) == [f"B(C(A({n})))" if n % 2 else f"B({n})" for n in range(30)]


def test_one_decision_may_be_in_several_sequences():
    choose = choosing("B")
    one, other = A >> choose >> B, choose >> C >> B >> D
    for _ in range(2):
        assert one(1) == "B(A(1))"
        assert other(1) == "D(B(1))"


# A step in the decision's place


@KINDS
@WAYS
def test_a_branch_runs_in_the_decisions_place_and_the_sequence_goes_on(way, kind):
    flow = A >> choosing("C", kind, branches=[B, C]) >> D
    assert way(flow, 1) == "D(C(A(1)))"


def test_branches_may_have_names_of_their_own():
    flow = A >> choosing(lambda value: "yes", branches={"yes": B, "no": C}) >> D
    assert flow(1) == "D(B(A(1)))"


def test_branches_may_be_functions_blocks_sequences_and_tasks():
    def double(value):
        return value * 2

    @task
    def half(value):
        return value / 2

    branches = [double, half, parallel(A, B, name="both"), Sequence(A, B, name="chain")]
    flow = lambda name: choosing(name, branches=branches) >> node("end")(lambda value: [value])
    assert flow("double")(4) == [8]
    assert flow("half")(4) == [2]
    assert flow("both")(4) == [{"A": "A(4)", "B": "B(4)"}]
    assert flow("chain")(4) == ["B(A(4))"]


def test_a_decision_may_be_a_branch_of_a_decision():
    inner = choosing("B", name="inner", branches=[B, C])
    assert (choosing("inner", branches=[inner, D]) >> A)(1) == "A(B(1))"


def test_a_step_object_that_is_nowhere_runs_in_the_decisions_place():
    assert (A >> choosing(lambda value: named("fresh")) >> D)(1) == "D(fresh(A(1)))"
    assert (A >> choosing(lambda value: B >> C) >> D)(1) == "D(C(B(A(1))))"


def test_globals_of_the_function_are_found_by_variable_and_by_name():
    @decision
    def by_variable(value):
        return "found_by_its_own_name"

    @decision
    def by_name(value):
        return "global_node"

    @decision
    def of_a_task(value):
        return "global_task"

    @decision
    def of_a_block(value):
        return "global_block_key"

    assert (by_variable >> D)(1) == "D(global(1))"
    assert (by_name >> D)(1) == "D(global(1))"
    assert (of_a_task >> D)(1) == "D(task(1))"
    assert (of_a_block >> node("a")(lambda value: value["A"]))(1) == "A(1)"


def test_what_is_global_when_it_runs_counts():
    names = {"weft": weft}
    exec(
        "@weft.decision\ndef choose(value):\n    return 'later'\n",
        names,
    )
    flow = names["choose"] >> D
    with pytest.raises(UsageError, match="'later'"):
        flow(1)
    names["later"] = A
    assert flow(1) == "D(A(1))"
    names["later"] = B
    assert flow(1) == "D(B(1))"


def test_a_step_goes_before_a_branch_and_a_branch_before_a_global():
    other = node("A")(lambda value: "branch")
    assert (choosing("A", branches=[other]) >> D >> A)(1) == "A(1)"
    assert (choosing("A", branches=[other]) >> D)(1) == "D(branch)"
    assert (choosing("A") >> D)(1) == "D(A(1))"


def test_the_chosen_gets_what_the_decision_got_and_not_what_it_returned():
    seen = []
    flow = choosing("look", branches={"look": node("look")(seen.append)})
    value = {"a": [1, 2]}
    flow(value)
    assert seen == [value]


# Alone, and in other places


@KINDS
@WAYS
def test_a_decision_runs_alone(way, kind):
    assert way(choosing("B", kind, branches=[A, B]), 1) == "B(1)"


@KINDS
@WAYS
def test_a_decision_is_a_branch_of_a_block(way, kind):
    block = parallel(choosing("B", kind, branches=[B, C]), D)
    assert way(block, 1) == {"choose": "B(1)", "D": "D(1)"}


def test_a_decision_has_the_verbs():
    choose = choosing("B", branches=[B])
    assert choose(1) == "B(1)"
    assert choose.submit(1).result(5) == "B(1)"
    assert choose.map([1, 2]) == ["B(1)", "B(2)"]
    assert {"B": "B(1)"} in list(choose.stream(1))
    assert choose.func(5) == "B"


def test_a_decision_binds_its_parameters_like_a_node():
    @decision(branches=[A, B])
    def choose(score: int, limit: int):
        return "A" if score > limit else "B"

    flow = choose >> D
    assert flow({"score": 2, "limit": 1}).startswith("D(A({")
    assert flow([1, 2]) == "D(B([1, 2]))"
    with pytest.raises(InputError, match="'choose'"):
        flow(7)


def test_names_of_decisions():
    @decision
    def plain(value):
        return "A"

    assert plain.key == "plain"
    assert plain.__name__ == "plain"
    assert decision("other")(plain.func).key == "other"
    assert decision()(plain.func).key == "plain"
    assert "plain" in repr(plain)


# What goes wrong


@pytest.mark.parametrize("choice", ["nowhere", "", "a"])
@WAYS
def test_a_name_that_is_none_is_an_error_that_lists_what_there_is(way, choice):
    flow = A >> choosing(choice, branches=[B]) >> C
    with pytest.raises(UsageError) as caught:
        way(flow, 1)
    text = str(caught.value)
    for part in ("'choose'", repr(choice), "A", "B", "C"):
        assert part in text


@pytest.mark.parametrize("choice", [None, 3, True, ["A"], {"A": 1}, b"A", lambda value: value])
def test_what_is_neither_name_nor_step_is_an_error(choice):
    flow = A >> decision("choose")(lambda value: choice) >> C
    with pytest.raises(UsageError, match="'choose'.*must return the name of a step"):
        flow(1)


def test_a_str_enum_is_a_name():
    class Way(enum.StrEnum):
        LEFT = "A"

    assert (choosing(lambda value: Way.LEFT) >> C >> A)(1) == "A(1)"


@KINDS
def test_an_error_of_the_decision_is_that_of_the_sequence(kind):
    def fail(value):
        raise Boom("cannot decide")

    with nothing_left(), pytest.raises(Boom, match="cannot decide"):
        (A >> choosing(fail, kind) >> B)(1)
    with pytest.raises(ParallelExecutionError) as caught:
        parallel(A >> choosing(fail, kind), B)(1)
    assert caught.value.branch == "choose"


def test_a_loop_without_an_end_is_an_error_that_names_it():
    flow = Sequence(A, choosing("A"), name="loop", max_steps=50)
    with nothing_left(), pytest.raises(WeftError) as caught:
        within(10, lambda: flow(1))
    for part in ("'loop'", "50", "max_steps", "loop"):
        assert part in str(caught.value)


def test_without_being_told_a_loop_ends_after_ten_thousand_steps():
    ran = [0]

    @node("count")
    async def count(value):
        ran[0] += 1
        return value

    @decision
    async def choose(value):
        return "count"

    with pytest.raises(WeftError, match="10000"):
        within(60, lambda: Sequence(count, choose, name="loop")(1))
    assert ran == [5000]


def test_exactly_as_many_steps_as_are_allowed():
    flow = lambda most: Sequence(
        node("count")(lambda value: value + 1),
        choosing(lambda value: "count" if value < 3 else "end"),
        node("end")(lambda value: value),
        name="flow",
        max_steps=most,
    )
    assert flow(7)(0) == 3
    with pytest.raises(WeftError, match="6 steps"):
        flow(6)(0)


def test_a_sequence_without_a_decision_is_as_long_as_it_is():
    async def plus(value):
        return value + 1

    assert within(60, lambda: Sequence(*[plus] * 10_001)(0)) == 10_001


def test_a_decision_that_takes_too_long():
    @decision(timeout=0.02, branches=[B])
    async def choose(value):
        await asyncio.sleep(60)

    with nothing_left(), pytest.raises(NodeTimeoutError, match="'choose'"):
        within(5, lambda: (A >> choose)(1))


def test_a_decision_is_tried_again():
    tries = []

    @decision(retry=RetryPolicy(initial_interval=0, jitter=False, retry_on=Boom), branches=[B, C])
    def choose(value):
        tries.append(value)
        if len(tries) < 3:
            raise Boom("not yet")
        return "B"

    assert (A >> choose)(1) == "B(A(1))"
    assert tries == ["A(1)"] * 3


def test_a_decision_counts_in_its_limit():
    limit = weft.Limit("l", concurrent=1)
    now = [0, 0]

    @decision(limit=limit, branches=[B])
    async def choose(value):
        now[0] += 1
        now[1] = max(now)
        await asyncio.sleep(0.002)
        now[0] -= 1
        return "B"

    parallel(*(Sequence(choose, name=f"s{n}") for n in range(5)))(1)
    assert now == [0, 1]
    assert (limit.in_use, limit.waiting) == (0, 0)


@pytest.mark.parametrize("branches", [3, "A", A, [A, A], [A, 3], {"a": 3}, [None]])
def test_branches_that_are_none_are_refused(branches):
    with pytest.raises(DefinitionError):
        decision(branches=branches)(lambda value: "A")


# validate()


def problems(workflow):
    with pytest.raises(DefinitionError) as caught:
        workflow.validate()
    return str(caught.value)


def test_a_choice_that_names_nothing_is_found_without_running():
    @decision
    def choose(value):
        if value:
            return "A"
        return "misspelt"

    text = problems(choose >> A)
    assert "'misspelt'" in text
    assert "'choose'" in text


def test_a_choice_of_its_annotation_is_found():
    @decision
    def choose(value) -> Literal["A", "misspelt"]:
        return value

    assert "'misspelt'" in problems(A >> choose >> B)


def test_both_arms_of_a_conditional_are_looked_at():
    @decision
    def choose(value):
        return "A" if value else "misspelt"

    assert "'misspelt'" in problems(A >> choose >> B)


def test_a_step_that_cannot_be_reached_is_found():
    @decision
    def choose(value):
        return "C"

    text = problems(A >> choose >> B >> C)
    assert "'B'" in text
    assert "never be reached" in text
    assert text.count("\n  - ") == 1


def test_a_name_that_several_steps_have_is_found_where_it_can_be_jumped_to():
    @decision
    def choose(value):
        return "A" if value else "D"

    text = problems(Sequence(choose, A, B, A, D))
    assert "2 steps are named 'A'" in text
    Sequence(choose, A, B, B, D).validate()


def test_a_timeout_that_can_never_pass_is_found():
    slow = node(name="slow", timeout=10)(lambda value: value)
    text = problems(parallel(slow, A, timeout=5))
    assert "'slow'" in text
    assert "10 s" in text
    assert "5 s" in text


def test_all_problems_are_told_at_once_and_where_they_are():
    @decision
    def choose(value):
        return "misspelt"

    @decision
    def other(value):
        return "C"

    slow = node(name="slow", timeout=10)(lambda value: value)
    flow = Sequence(
        parallel(Sequence(choose, A, name="one"), slow, timeout=5, name="block"), other, B, C, name="flow"
    )
    text = problems(flow)
    for part in ("'flow'", "'misspelt'", "'slow'", "'B'", "'one'", "'block'"):
        assert part in text, part
    assert text.count("\n  - ") >= 3


def test_problems_inside_branches_of_a_decision_are_found():
    slow = node(name="slow", timeout=10)(lambda value: value)
    choose = choosing(lambda value: "inner", branches=[parallel(slow, timeout=1, name="inner")])
    assert "'slow'" in problems(A >> choose)


def good_flows():
    @decision
    def by_name(value):
        if value == 1:
            return "A"
        if value == 2:
            return found_by_its_own_name
        return "global_node"

    @decision
    def computed(value):
        return value["where"]

    @decision
    def mixed(value):
        return "A" if value else computed(value)

    @decision
    def loops(value) -> Literal["A", "D"]:
        return "A"

    @decision
    def nested(value):
        def inner():
            return "not a choice"

        class Local:
            def method(self):
                return "nor this"

        found = (lambda each: "nor that") if value else None
        return "D" if found else "A"

    @decision
    async def waits(value):
        await asyncio.sleep(0)
        return "D"

    @decision(branches={"yes": B, "no": C})
    def named(value):
        return "yes" if value else "no"

    class Chooser:
        def __call__(self, value):
            return "D"

    return {
        "nothing special": A >> B >> parallel(C, D),
        "by name": Sequence(by_name, B, A, D),
        "computed": A >> computed >> B,
        "mixed": Sequence(mixed, B, A),
        "loop": Sequence(A, loops, D),
        "inner functions": Sequence(nested, A, D),
        "async": Sequence(A, waits, D),
        "named": A >> named >> D,
        "lambda": Sequence(A, decision("choose")(lambda value: "D"), D),
        "callable": Sequence(A, decision("choose")(Chooser()), D),
        "equal names": Sequence(A, B, A, B),
        "timeouts": parallel(node(name="quick", timeout=1)(lambda value: value), timeout=5),
        "equal timeouts": parallel(node(name="quick", timeout=5)(lambda value: value), timeout=5),
        "alone": choosing("B", branches=[B]),
        "task": parallel(global_task, A),
        "node": A,
        "block of a block": parallel(parallel(A, B, name="x"), parallel(A, B, name="y"), timeout=3),
        "global block": Sequence(decision("choose")(lambda value: "global_block"), D),
    }


@pytest.mark.parametrize("name", good_flows())
def test_good_workflows_have_no_problems(name):
    good_flows()[name].validate()


def test_looking_for_problems_runs_nothing():
    ran = []

    @decision
    def choose(value):
        ran.append(value)
        return "A"

    (node("x")(ran.append) >> choose >> A).validate()
    assert ran == []


def test_an_annotation_that_cannot_be_resolved_says_nothing():
    def choose(value):
        return "A"

    choose.__annotations__["return"] = "NoSuchType"
    Sequence(decision(choose), A).validate()
