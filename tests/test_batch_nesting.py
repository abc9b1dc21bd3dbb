"""Batch programs in other workflows and other workflows in them: in one run, and killed at every commit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from leftovers import nothing_left, within

import weft
from weft import (
    AsyncNode,
    AsyncParallelBatchFlow,
    AsyncParallelBatchNode,
    BatchFlow,
    BatchNode,
    Command,
    Flow,
    InMemorySaver,
    InputError,
    Limit,
    Node,
    Ok,
    ParallelBatchNode,
    ParallelExecutionError,
    Sequence,
    SqliteSaver,
    UsageError,
    decision,
    entrypoint,
    interrupt,
    node,
    parallel,
    task,
)
from weft import (
    map as weft_map,
)
from weft.checkpoint.base import RecordKind
from weft.errors import StoreError

RAN = Counter()


def work(name, value):
    """What is computed, and counted."""
    RAN[name] += 1
    return value


def chain(*nodes):
    """A flow; what is no node becomes one."""
    first = Start()
    last = first
    for each in nodes:
        last = last >> each
    return Flow(first)


class Start(Node):
    def post(self, shared, prep_res, exec_res):
        shared.setdefault("n", 1)


class Add(Node):
    def prep(self, shared):
        return shared["n"]

    def exec(self, n):
        return work("Add", n + 1)

    def post(self, shared, n, total):
        shared["n"] = total


class AsyncAdd(AsyncNode):
    async def prep_async(self, shared):
        return shared["n"]

    async def exec_async(self, n):
        await asyncio.sleep(0)
        return work("AsyncAdd", n + 10)

    async def post_async(self, shared, n, total):
        shared["n"] = total


class Squares(BatchNode):
    def prep(self, shared):
        return range(shared["n"])

    def exec(self, i):
        return work(f"square {i}", i * i)

    def post(self, shared, items, squares):
        shared["squares"] = squares


class AsyncSquares(AsyncParallelBatchNode):
    async def prep_async(self, shared):
        return range(shared["n"])

    async def exec_async(self, i):
        return work(f"square {i}", i * i)

    async def post_async(self, shared, items, squares):
        shared["squares"] = squares


class Twice(BatchFlow):
    def prep(self, shared):
        return [{"i": 0}, {"i": 1}]


class AtOnce(AsyncParallelBatchFlow):
    async def prep_async(self, shared):
        return [{"i": 0}, {"i": 1}]


class Puts(AsyncNode):
    async def exec_async(self, _):
        return work(f"put {self.params['i']}", self.params["i"])

    async def post_async(self, shared, prep_res, exec_res):
        shared[f"put {exec_res}"] = exec_res


@task
def triple(shared):
    return work("triple", shared["n"] * 3)


@task
async def double(shared):
    return work("double", shared["n"] * 2)


@node
def merged(shared):
    shared["n"] = "its own copy"
    return work("merged", {"n": -1, "new": True})


@node("renamed")
async def async_merged(n: int):
    return work("renamed", {"m": n + 1})


@entrypoint()
def body(shared):
    return {"body": triple(shared).result() + double(shared).result()}


@entrypoint()
async def async_body(shared):
    return sum(await asyncio.gather(triple(shared), double(shared)))


@decision
def which(shared):
    return "triple" if work("which", shared["n"]) else "double"


@node
def length(key: str):
    return work(f"length {key}", len(key))


# Each with what becomes of {"n": 1}.
IN_A_FLOW = {
    "task": (lambda: triple, {"n": 2, "triple": 3}),
    "async task": (lambda: double, {"n": 2, "double": 2}),
    "function": (lambda: lambda shared: {"f": work("f", 1)}, {"n": 2, "f": 1}),
    "node": (lambda: merged, {"n": 0, "new": True}),
    "async node": (lambda: async_merged, {"n": 2, "m": 2}),
    "entrypoint": (lambda: body, {"n": 2, "body": 5}),
    "async entrypoint": (lambda: async_body, {"n": 2, "async_body": 5}),
    "parallel": (lambda: parallel(triple, double), {"n": 2, "triple": 3, "double": 2}),
    "parallel, collecting": (
        lambda: parallel(triple, on_error="collect"),
        {"n": 2, "triple": Ok(3)},
    ),
    "race": (lambda: weft.race(double, name="first"), {"n": 2, "first": 2}),
    "sequence": (lambda: Sequence(triple, lambda x: work("more", x + 1), name="seq"), {"n": 2, "seq": 4}),
    "decision": (lambda: Sequence(which, name="chosen"), {"n": 2, "chosen": 3}),
    "map": (lambda: weft_map(length), {"n": 2, "length": [1]}),
    "flow": (lambda: Flow(AsyncAdd()), {"n": 12}),
    "flow in a sequence": (lambda: Sequence(lambda shared: {"n": 5}, Flow(AsyncAdd())), {"n": 16}),
    "flow in a parallel": (
        lambda: parallel(Flow(AsyncAdd()), double, name="both"),
        {"n": 2, "Flow": {"n": 11}, "double": 2},
    ),
    "flows in a map": (
        lambda: Sequence(lambda shared: [{"n": 1}, {"n": 2}], weft_map(chain(Add(), double)), name="mapped"),
        {"n": 2, "mapped": [{"n": 2, "double": 4}, {"n": 3, "double": 6}]},
    ),
    "batch flow": (lambda: Twice(Puts()), {"n": 2, "put 0": 0, "put 1": 1}),
    "parallel batch flow of others": (
        lambda: AtOnce(chain(Puts(), parallel(triple, double))),
        {"n": 2, "put 0": 0, "put 1": 1, "triple": 3, "double": 2},
    ),
}


def in_a_flow(name):
    make, expected = IN_A_FLOW[name]

    def use(is_async, options):
        shared = {"n": 1}
        flow = chain(make(), Add())
        if is_async:
            assert asyncio.run(flow.run_async(shared, **options)) is None
        else:
            assert flow.run(shared, **options) is None
        return shared

    return use, expected


def runs(workflow, given):
    def use(is_async, options):
        return (
            asyncio.run(workflow().ainvoke(given, **options))
            if is_async
            else workflow().invoke(given, **options)
        )

    return use


def small():
    return chain(Add(), AsyncAdd())


# Bodies, sync and async, of every kind, that run a flow in every way.


def sync_body(make):
    @make
    def outer(n):
        first, second = {"n": n}, {"n": n + 1}
        assert small().run(first) is None
        return [first, small().invoke(second), chain(double).invoke({"n": n})["double"]]

    return outer


def async_body_of(make):
    @make
    async def outer(n):
        first, second = {"n": n}, {"n": n + 1}
        assert await small().run_async(first) is None
        return [first, await small().ainvoke(second), (await chain(double).ainvoke({"n": n}))["double"]]

    return outer


def gathers(make):
    @make
    async def outer(n):
        return await asyncio.gather(*(small().ainvoke({"n": n + i}) for i in range(3)))

    return outer


BODY = [{"n": 12}, {"n": 13}, 2]

IN_OTHERS = {
    "entrypoint": (runs(lambda: sync_body(entrypoint()), 1), BODY),
    "async entrypoint": (runs(lambda: async_body_of(entrypoint()), 1), BODY),
    "task": (runs(lambda: sync_body(task), 1), BODY),
    "async task": (runs(lambda: async_body_of(task), 1), BODY),
    "node": (runs(lambda: sync_body(node), 1), BODY),
    "async node": (runs(lambda: async_body_of(node), 1), BODY),
    "node of a parallel": (runs(lambda: parallel(async_body_of(node)), 1), {"outer": BODY}),
    "gathered": (runs(lambda: gathers(entrypoint()), 1), [{"n": 12}, {"n": 13}, {"n": 14}]),
    "parallel": (
        runs(lambda: parallel(small(), Add(), Squares(), max_concurrent=2), {"n": 3}),
        {"Flow": {"n": 14}, "Add": {"n": 4}, "Squares": {"n": 3, "squares": [0, 1, 4]}},
    ),
    "sequence": (
        runs(lambda: Sequence(lambda n: {"n": n}, small(), AsyncSquares(), lambda s: sum(s["squares"])), 1),
        sum(i * i for i in range(12)),
    ),
    "map of nodes": (
        runs(lambda: weft_map(Add(), max_concurrent=2), [{"n": 1}, {"n": 2}]),
        [{"n": 2}, {"n": 3}],
    ),
    "map of flows": (
        runs(lambda: weft_map(small()), [{"n": 1}, {"n": 1}, {"n": 2}]),
        [{"n": 12}, {"n": 12}, {"n": 13}],
    ),
    "parallel of sequences of flows of parallels": (
        runs(lambda: parallel(Sequence(chain(parallel(triple, small()), Add()), name="s")), {"n": 1}),
        {"s": {"n": 2, "triple": 3, "Flow": {"n": 12}}},
    ),
}

CASES = {**{f"flow of {name}": in_a_flow(name) for name in IN_A_FLOW}, **IN_OTHERS}

FACES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
EVERY_CASE = pytest.mark.parametrize("name", CASES)


@EVERY_CASE
@FACES
def test_every_nesting(name, is_async):
    use, expected = CASES[name]
    with nothing_left():
        assert within(20, lambda: use(is_async, {})) == expected


class Mortal(SqliteSaver):
    """Takes so many commits, and then no more, as if it had been killed."""

    left = 10**9
    taken = 0

    def commit(self, writes):
        if self.left <= 0:
            raise StoreError("gone")
        self.left -= 1
        self.taken += 1
        return super().commit(writes)


def recorded_twice(saver):
    found = Counter(r.identity for _, r in saver.records("r", limit=10**6) if r.kind is RecordKind.OK)
    return [identity for identity, times in found.items() if times > 1]


@EVERY_CASE
@FACES
def test_every_nesting_killed_at_every_commit(name, is_async, tmp_path):
    """However many commits a life of the run is given: what they hold is not computed again."""
    use, expected = CASES[name]
    with Mortal(tmp_path / "whole.db") as saver:
        RAN.clear()
        assert within(20, lambda: use(is_async, {"checkpointer": saver, "run_id": "r"})) == expected
        commits, once = saver.taken, Counter(RAN)
        assert within(20, lambda: use(is_async, {"checkpointer": saver, "run_id": "r"})) == expected
        assert once == RAN, "a finished run was run again"
    for at in range(min(commits, 12)):
        with Mortal(tmp_path / f"{at}.db") as saver:
            options = {"checkpointer": saver, "run_id": "r"}
            saver.left = at
            RAN.clear()
            with nothing_left(), suppress(StoreError):
                within(20, lambda options=options: use(is_async, options))
            saver.left = 10**9
            before = len(saver.records("r", limit=10**6))
            with nothing_left():
                assert within(20, lambda options=options: use(is_async, options)) == expected
            assert before <= len(saver.records("r", limit=10**6))
            assert not recorded_twice(saver)
            assert set(RAN) == set(once)


@EVERY_CASE
@FACES
def test_every_nesting_with_a_life_of_one_commit_each(name, is_async, tmp_path):
    """Progress is made in each life, so it comes to an end, and all of it was computed once or was not recorded."""
    use, expected = CASES[name]
    with Mortal(tmp_path / "runs.db") as saver:
        for _ in range(300):
            saver.left = 1
            with suppress(StoreError):
                found = within(20, lambda: use(is_async, {"checkpointer": saver, "run_id": "r"}))
                break
        else:
            raise AssertionError("it does not come to an end")
        assert found == expected
        assert not recorded_twice(saver)


# One run


def test_what_is_nested_is_of_the_outer_run():
    """One run id, one journal, one event stream; an inner checkpointer is not touched."""
    ids, inner = [], InMemorySaver()

    @task
    def tells(shared):
        ids.append(weft.call_id().partition(":")[0])
        return {}

    @entrypoint(checkpointer=inner)
    def enters(shared):
        return {"inner": Flow(tells, checkpointer=inner).invoke({})}

    class Runs(Node):
        def post(self, shared, prep_res, exec_res):
            Flow(tells).run({}, checkpointer=inner, thread_id="ignored")

    flow = chain(tells, enters, Flow(tells, checkpointer=inner), parallel(tells, name="p"), Runs())
    outer = InMemorySaver()
    shared = {}
    flow.run(shared, checkpointer=outer, run_id="outer")
    assert ids == ["outer"] * 5
    assert inner.runs() == []
    assert [row.run_id for row in outer.runs()] == ["outer"]
    assert shared == {"n": 1, "inner": {}, "tells": {}}
    assert [name for chunk in chain(double, Add()).stream({}) for name in chunk] == ["double", "Add", "Flow"]


@pytest.mark.parametrize("verb", ["run", "invoke"])
def test_a_run_id_of_what_is_nested_is_an_error(verb):
    @task
    def begins(_):
        return getattr(small(), verb)({"n": 1}, run_id="mine")

    @entrypoint()
    async def begins_too(_):
        return await getattr(small(), {"run": "run_async", "invoke": "ainvoke"}[verb])({}, run_id="mine")

    with pytest.raises(InputError, match="joins the run that it is called in, which has its own run_id"):
        begins.invoke(0)
    with pytest.raises(InputError, match="which has its own run_id"):
        begins_too.invoke(0)


def test_a_limit_and_a_width_reach_into_what_is_nested():
    at_once, most, lock = set(), [], threading.Lock()

    def busy(name):
        with lock:
            at_once.add(name)
            most.append(len(at_once))
        threading.Event().wait(0.002)
        with lock:
            at_once.discard(name)
        return name

    def program(**options):
        class Items(ParallelBatchNode):
            max_concurrent = 4

            def prep(self, shared):
                return range(4)

            def exec(self, i):
                return busy(("item", i))

        @task(**options)
        def each(n):
            return busy(("task", n))

        nodes = Sequence(lambda shared: range(4), weft_map(each, max_concurrent=4), name="mapped")
        tasks = Sequence(chain(nodes), name="tasks")
        return parallel(chain(Items(**options)), tasks, name="outer", optimization_enabled=False)

    program()({"n": 1})
    assert max(most) > 2
    most.clear()
    program().invoke({"n": 1}, max_concurrent=2)
    assert max(most) == 2
    most.clear()
    program(limit=Limit("two", concurrent=2))({"n": 1})
    assert max(most) == 2


def test_a_runnable_gets_a_copy_of_shared_and_a_batch_node_gets_shared():
    shared, seen = {"n": 1}, []

    class Sees(Node):
        def post(self, shared, prep_res, exec_res):
            seen.append(shared)

    @node
    def spoils(given):
        given["spoiled"] = True

    def look(given):
        seen.append(given)
        return {}

    chain(spoils, look, Flow(Sees()), Sees()).run(shared)
    assert shared == {"n": 1, "spoils": None}
    assert [each is shared for each in seen] == [False, True, True]


def test_the_action_of_what_is_no_node_is_the_default():
    first = Start()
    (first >> task(name="says")(lambda shared: "other")) - "other" >> Add()
    shared = {}
    with pytest.warns(UserWarning, match="Flow ends: 'None' not found"):
        assert Flow(first).run(shared) is None
    assert shared == {"n": 1, "says": "other"}


def test_an_error_comes_out_as_its_style_raises_it():
    def fails(shared):
        raise KeyError("x")

    with pytest.raises(KeyError):
        chain(fails).run({})
    with pytest.raises(KeyError):
        Sequence(chain(fails), Add())({})
    with pytest.raises(ParallelExecutionError) as caught:
        chain(parallel(node("fails")(fails))).run({})
    assert caught.value.branch == "fails"
    with pytest.raises(ParallelExecutionError) as caught:
        parallel(chain(fails))({})
    assert (caught.value.branch, type(caught.value.failures["Flow"])) == ("Flow", KeyError)


def test_in_an_async_body_a_sync_verb_is_refused():
    @node
    async def outer(n):
        with pytest.raises(UsageError, match=r"await Flow\.run_async"):
            small().run({"n": n})
        with pytest.raises(UsageError, match=r"await Flow\.ainvoke"):
            small().invoke({"n": n})
        return n

    assert parallel(outer)(1) == {"outer": 1}


def test_a_node_before_and_after_other_things():
    assert isinstance(Add() >> double, weft.BaseNode)
    for made in (double >> Add(), (lambda n: {"n": n}) >> Add(), parallel(double) >> Add()):
        assert isinstance(made, Sequence)
    assert Sequence(lambda n: {"n": n}, Add(), lambda shared: shared["n"])(1) == 2


# Nobody's attributes


TAKEN = """bind bind_branch parts problems functions own_function own_functions step key computes memory node name
    context_schema context_of provide validate for_thread recorded_input recorded_output recorded_value
    split_output suspended look_up keep seen shape result call stream astream map amap submit""".split()


class Own(Node):
    """A user's class that has used up all the names."""

    def prep(self, shared):
        assert all(getattr(self, name) == "mine" for name in TAKEN)
        return shared["n"]

    def exec(self, n):
        assert all(getattr(self, name) == "mine" for name in TAKEN)
        return n + 1

    def post(self, shared, n, total):
        shared["n"] = total


class OwnOfClass(Own):
    locals().update(dict.fromkeys(TAKEN, "mine"))


def own(how):
    made = OwnOfClass() if how == "class" else Own()
    for name in TAKEN if how == "object" else ():
        setattr(made, name, "mine")
    return made


OWN = {
    "run": lambda made, options: made.run(shared := {"n": 1}, **options) or shared,
    "invoke": lambda made, options: made.invoke({"n": 1}, **options),
    "flow": lambda made, options: Flow(made).invoke({"n": 1}, **options),
    "parallel": lambda made, options: parallel(made).invoke({"n": 1}, **options)[type(made).__name__],
    "sequence": lambda made, options: (node("f")(lambda n: {"n": n}) >> made).invoke(1, **options),
    "map": lambda made, options: weft_map(made, [{"n": 1}], **options)[0],
    "pipeline": lambda made, options: weft.pipeline([{"n": 1}], made, **options)[0],
    "decision": lambda made, options: Sequence(decision(branches={"way": made})(lambda shared: "way")).invoke(
        {"n": 1}, **options
    ),
    "task": lambda made, options: entrypoint()(lambda _: made.invoke({"n": 1})).invoke(0, **options),
    "validate": lambda made, options: parallel(Flow(made)).validate() or {"n": 2},
}


@pytest.mark.parametrize("how", ["class", "object"])
@pytest.mark.parametrize("style", OWN)
def test_a_users_class_may_have_attributes_of_any_name(style, how, any_saver):
    options = {} if any_saver is None else {"checkpointer": any_saver, "run_id": "r"}
    made = own(how)
    for _ in range(2 if any_saver else 1):
        assert OWN[style](made, options) == {"n": 2}


# Size


def deep(depth, wrap, node):
    for _ in range(depth):
        node = wrap(node)
    return node


WRAPS = {
    "flow": Flow,
    "batch flow": type("One", (BatchFlow,), {"prep": lambda self, shared: [{}]}),
    "sequence": lambda inner: Flow(Sequence(inner, name="s")),
    "parallel": lambda inner: Flow(
        Sequence(parallel(inner, name="p"), lambda found: found["Flow"], name="s")
    ),
    "map": lambda inner: Flow(Sequence(lambda s: [s], weft_map(inner), lambda found: found[0], name="s")),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("journaled", [False, True])
def test_nested_300_deep(wrap, journaled, tmp_path):
    flow = deep(300, WRAPS[wrap], Flow(AsyncAdd()))
    shared = {"n": 1}
    with SqliteSaver(tmp_path / "runs.db") as saver:
        options = {"checkpointer": saver, "run_id": "r"} if journaled else {}
        within(20, lambda: flow.run(shared, **options))
    assert shared == {"n": 11}


def test_looking_at_flows_nested_10_000_deep():
    flow = deep(10_000, Flow, Add())
    assert [fn.__name__ for fn in flow.functions()] == ["exec"]
    flow.validate()
    part = flow.as_part()
    assert part.computes
    assert part.step.shape == deep(10_000, Flow, Add()).as_part().step.shape
    assert part.step.shape != deep(10_000, Flow, AsyncAdd()).as_part().step.shape


def test_a_problem_says_where_it_is():
    where = "node 'Flow': node 'parallel': 'parallel': branch 'Flow': Flow has no node to start with"
    with pytest.raises(weft.DefinitionError, match=where):
        chain(Flow(parallel(Flow()))).validate()


def test_a_loop_keeps_nothing_of_its_turns(tmp_path):
    """Each turn runs a copy of its node; what is remembered of ``exec`` for its annotations is remembered once."""
    alive = weakref.WeakSet()

    class Turn(AsyncNode):
        async def prep_async(self, shared):
            alive.add(self)
            shared["most"] = max(shared["most"], len(alive))
            return shared["n"]

        async def exec_async(self, n: int) -> int:
            return n + 1

        async def exec_fallback_async(self, n, error):
            raise error

        async def post_async(self, shared, n, total):
            shared["n"] = total
            return "again" if total < 2_000 else "end"

    turn = Turn()
    turn - "again" >> turn
    turn - "end" >> None
    with SqliteSaver(tmp_path / "runs.db") as saver:
        shared = {"n": 0, "most": 0}
        Flow(turn).run(shared, checkpointer=saver, run_id="r", durability="exit")
    assert shared["n"] == 2_000
    assert shared["most"] < 1_000


# A flow that a body runs is run again on a resume, and does the same again


class Boom(Exception):
    pass


BROKEN = set()


def breakable(name, value=None):
    work(name, None)
    if name in BROKEN:
        raise Boom(name)
    return value


@task
def last(value):
    return breakable("last", value)


@task
def instead():
    return work("instead", None)


class Fragile(Node):
    def exec(self, _):
        return breakable("fragile")


class Some(AsyncParallelBatchNode):
    async def prep_async(self, shared):
        return [0, 1, 2]

    async def exec_async(self, i):
        return breakable(f"some {i}", i)

    async def post_async(self, shared, items, outcomes):
        shared["some"] = [type(each).__name__ for each in outcomes]


@task
def some(i):
    return breakable(f"some {i}", i)


@entrypoint()
def catches(_):
    shared = {}
    try:
        chain(Add(), Fragile()).run(shared)
    except Boom:
        instead().result()
    return last(shared["n"]).result()


@entrypoint()
async def catches_async(_):
    shared = {}
    try:
        await chain(Add(), Fragile()).run_async(shared)
    except Boom:
        await instead()
    return await last(shared["n"])


@entrypoint()
def collects(_):
    shared = Flow(Some(on_error="collect")).invoke({})
    return last(shared["some"]).result()


@entrypoint()
async def collects_async(_):
    shared = await Flow(Some(on_error="collect")).ainvoke({})
    return await last(shared["some"])


@entrypoint()
async def collects_of_an_iterator(_):
    found = await weft.amap(some, iter([0, 1, 2]), on_error="collect")
    return await last([type(each).__name__ for each in found])


@pytest.mark.parametrize(
    ("main", "broken", "expected"),
    [
        (catches, "fragile", 2),
        (catches_async, "fragile", 2),
        (collects, "some 1", ["Ok", "Failed", "Ok"]),
        (collects_async, "some 1", ["Ok", "Failed", "Ok"]),
        (collects_of_an_iterator, "some 1", ["Ok", "Failed", "Ok"]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_what_a_body_has_gone_on_from_is_gone_on_from_again(main, broken, expected, durability, saver):
    """A failure in the flow is not tried again, and what the flow did to ``shared`` before it is done again."""
    options = {"checkpointer": saver, "run_id": "r", "durability": durability}
    RAN.clear()
    BROKEN.update({broken, "last"})
    try:
        with pytest.raises(Boom):
            main.invoke(0, **options)
    finally:
        BROKEN.clear()
    assert RAN[broken] == 1
    RAN.clear()
    assert main.invoke(0, **options) == expected
    assert dict(RAN) == {"last": 1}


def test_a_failure_that_ended_the_run_is_tried_again(saver):
    """Though the body caught it first, and raised it again."""

    @entrypoint()
    def main(_):
        shared = {}
        try:
            chain(Add(), Fragile()).run(shared)
        except Boom:
            instead().result()
            raise
        return shared["n"]

    RAN.clear()
    BROKEN.add("fragile")
    try:
        with pytest.raises(Boom):
            main.invoke(0, checkpointer=saver, run_id="r")
    finally:
        BROKEN.clear()
    assert main.invoke(0, checkpointer=saver, run_id="r") == 2
    assert dict(RAN) == {"Add": 1, "fragile": 2, "instead": 1}


@pytest.mark.parametrize("is_async", [False, True])
def test_a_question_in_what_is_nested(is_async, saver):
    @task
    def asks(shared):
        return {"answer": interrupt("well?") + str(work("asks", shared["n"]))}

    nested = chain(Add(), Sequence(parallel(Flow(asks), double, name="p"), lambda p: p["Flow"]), Add())

    @entrypoint()
    def main(_):
        return [nested.invoke({})["answer"], chain(asks).invoke({})["answer"]]

    @entrypoint()
    async def amain(_):
        return [(await nested.ainvoke({}))["answer"], (await chain(asks).ainvoke({}))["answer"]]

    options = {"checkpointer": saver, "run_id": "r"}
    RAN.clear()
    outer = amain if is_async else main
    assert [each.value for each in outer.invoke(0, **options)["__interrupt__"]] == ["well?"]
    assert [each.value for each in outer.invoke(Command(resume="a"), **options)["__interrupt__"]] == ["well?"]
    assert outer.invoke(Command(resume="b"), **options) == ["a2", "b1"]
    assert RAN == {"Add": 2, "asks": 2, "double": 1}


# Many runs of one object


class Attempted(AsyncNode):
    """Fails as often as its run says, and keeps something on itself."""

    async def prep_async(self, shared):
        self.mine = shared["run"]
        return shared["run"]

    async def exec_async(self, number):
        await asyncio.sleep(0.001 * (number % 5))
        if self.cur_retry < number % 3:
            raise Boom(number)
        return self.cur_retry

    async def post_async(self, shared, number, retries):
        assert self.mine == number
        shared["retries"] = retries


class Blocking(Node):
    """The same, in threads."""

    def prep(self, shared):
        self.mine = shared["run"]
        return shared["run"]

    def exec(self, number):
        if self.cur_retry < number % 2:
            raise Boom(number)
        return self.cur_retry

    def post(self, shared, number, retries):
        assert self.mine == number
        shared["more retries"] = retries
        shared["params"] = self.params["run"]


class Numbered(BatchFlow):
    def prep(self, shared):
        self.mine = shared["run"]
        return [{"run": shared["run"]}]

    def post(self, shared, prep_res, exec_res):
        assert self.mine == shared["run"]
        return f"ends {self.mine}"


@FACES
def test_100_runs_of_one_object_see_nothing_of_each_other(is_async, any_saver):
    first = Attempted(max_retries=3)
    first >> parallel(Flow(Attempted(max_retries=3)), name="p") >> Blocking(max_retries=2)
    flow = Numbered(first)
    shareds = [{"run": n} for n in range(100)]

    def options(n):
        return {} if any_saver is None else {"checkpointer": any_saver, "run_id": f"r{n}"}

    async def main():
        return await asyncio.gather(
            *(flow.run_async(shared, **options(n)) for n, shared in enumerate(shareds))
        )

    if is_async:
        actions = asyncio.run(main())
    else:
        with ThreadPoolExecutor(100) as pool:
            actions = list(pool.map(lambda n: flow.run(shareds[n], **options(n)), range(100)))
    assert actions == [f"ends {n}" for n in range(100)]
    for n, shared in enumerate(shareds):
        kept = {"run": n, "retries": n % 3, "more retries": n % 2, "params": n}
        assert {name: shared[name] for name in kept} == kept
        assert shared["Flow"] == {"run": n, "retries": n % 3}
    assert first.params == {}
    assert not hasattr(first, "mine")


# The command line

FLOWS = """
from weft import Flow, Node


class Add(Node):
    step = "mine"

    def prep(self, shared):
        return shared["n"]

    def exec(self, n):
        print("add", n)
        if n == 2 and not shut:
            raise ValueError("not yet")
        return n + 1

    def post(self, shared, n, total):
        shared["n"] = total
        return "done"


import os

shut = os.path.exists("shut")
first = Add()
first - "done" >> Add()
flow = Flow(first)
alone = Add()
"""


def test_the_command_line_runs_and_resumes_a_flow(tmp_path):
    (tmp_path / "flows.py").write_text(FLOWS)

    def cli(*args):
        words = [sys.executable, "-m", "weft.cli", *args, "--checkpointer", "sqlite:///runs.db"]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)

    assert cli("run", "flows:alone", "-i", '{"n": 5}', "-q").stdout == 'add 5\n{"n": 6}\n'
    broken = cli("run", "flows.py:flow", "-i", '{"n": 1}', "--run-id", "r", "-q")
    assert (broken.returncode != 0, broken.stdout) == (True, "add 1\nadd 2\n")
    assert "not yet" in broken.stderr
    (tmp_path / "shut").touch()
    assert cli("resume", "r", "flows.py:flow", "-q").stdout == 'add 2\n{"n": 3}\n'
    assert cli("run", "flows.py:flow", "-i", '{"n": 1}', "--run-id", "r", "-q").stdout == '{"n": 3}\n'


class Mul(Add):
    def exec(self, n):
        return work("Mul", n * 10)


MUL = Mul()

CHOOSERS = {
    "the name of a global": lambda: decision("d")(lambda shared: "MUL"),
    "its key": lambda: decision("d")(lambda shared: "Mul"),
    "the object": lambda: decision("d")(lambda shared: MUL),
    "a branch by name": lambda: decision("d", branches=[MUL])(lambda shared: "Mul"),
    "a branch as object": lambda: decision("d", branches={"way": MUL})(lambda shared: MUL),
}


@pytest.mark.parametrize("how", CHOOSERS)
def test_a_decision_may_choose_a_node(how, any_saver):
    options = {} if any_saver is None else {"checkpointer": any_saver, "run_id": "r"}
    for _ in range(2 if any_saver else 1):
        assert Sequence(CHOOSERS[how](), Add()).invoke({"n": 1}, **options) == {"n": 11}


def test_a_decision_may_jump_to_a_node(any_saver):
    options = {} if any_saver is None else {"checkpointer": any_saver, "run_id": "r"}
    add = Add()
    assert Sequence(decision("d")(lambda shared: add), Mul(), add).invoke({"n": 1}, **options) == {"n": 2}
