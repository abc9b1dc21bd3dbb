"""Batch programs that go on where they were: what was computed is not computed again, and ``shared`` is what it was."""

from __future__ import annotations

import asyncio
import collections
import copy
import dataclasses
import itertools
import json
import random
import threading
import warnings
from collections import Counter

import pytest
from killing import Program, kill_at_effect, seeded
from leftovers import nothing_left, within

import weft
from weft import (
    AsyncNode,
    AsyncParallelBatchFlow,
    AsyncParallelBatchNode,
    BatchFlow,
    BatchNode,
    Command,
    CorruptDataError,
    Flow,
    InMemorySaver,
    InputError,
    Node,
    ParallelBatchNode,
    ReplayMismatchError,
    RunMismatchError,
    Sequence,
    UnstorableError,
    entrypoint,
    interrupt,
    task,
)
from weft.testing import run


class World:
    """What was computed, and what is broken at the moment."""

    def __init__(self):
        self.ran = []
        self.broken = set()
        self._lock = threading.Lock()

    def compute(self, *what):
        with self._lock:
            self.ran.append(what if len(what) > 1 else what[0])
        if what[0] in self.broken or what in self.broken:
            raise Boom(*what)
        return what[-1]

    def forget(self):
        found, self.ran = self.ran, []
        return found


class Boom(Exception):
    pass


@pytest.fixture
def world():
    return World()


def go(flow, shared, saver, **options):
    return within(20, lambda: flow.run(shared, run_id="r", checkpointer=saver, **options))


def breaks(flow, shared, saver, error=Boom, **options):
    with nothing_left(), pytest.raises(error) as caught:
        go(flow, shared, saver, **options)
    return caught.value


def step(world, name, *, is_async=False):
    """A node that computes, and notes it in ``shared``."""

    def prep(self, shared):
        shared["log"].append(f"prep {name}")
        return shared["n"]

    def post(self, shared, n, result):
        shared["n"] = n + 1
        shared["log"].append(f"post {name}")

    async def exec_async(self, n):
        return world.compute(name, n)

    hook = {"exec_async": exec_async} if is_async else {"exec": lambda self, n: world.compute(name, n)}
    return type(name, (AsyncNode if is_async else Node,), {"prep": prep, "post": post, **hook})()


def chain(*nodes):
    for first, second in zip(nodes, nodes[1:], strict=False):
        first >> second
    return Flow(nodes[0])


LOG = [f"{hook} {name}" for name in "abc" for hook in ("prep", "post")]


# Who is looked for


def test_a_new_run_is_not_looked_for_before_it_is_opened(world, saver, monkeypatch):
    def find(run_id):
        raise AssertionError(f"looked for {run_id}")

    monkeypatch.setattr(saver, "find", find)
    shared = {"n": 0, "log": []}
    go(chain(step(world, "a"), step(world, "b")), shared, saver)
    assert shared["n"] == 2


def test_what_an_earlier_life_left_in_shared_may_be_anything(world, saver):
    """It is emptied, and need not be storable; a run that is not there yet refuses it."""
    flow = chain(step(world, "a"), step(world, "b"))
    shared = {"n": 0, "log": []}
    world.broken = {"b"}
    breaks(flow, shared, saver)
    world.broken = set()
    shared["lock"] = threading.Lock()
    go(flow, shared, saver)
    assert shared == {"n": 2, "log": LOG[:4]}
    assert world.forget() == [("a", 0), ("b", 1), ("b", 1)]
    shared["lock"] = threading.Lock()
    go(flow, shared, saver)
    assert shared == {"n": 2, "log": LOG[:4]}
    with pytest.raises(UnstorableError, match="lock"):
        flow.run({"lock": threading.Lock()}, run_id="another", checkpointer=saver)


def test_a_shared_that_is_the_recorded_one_is_filled_too(world, saver):
    """The caller's own objects in it are replaced, whether the run is unfinished or finished."""
    flow = chain(step(world, "a"), step(world, "b"))
    world.broken = {"b"}
    breaks(flow, {"n": 0, "log": []}, saver)
    world.broken = set()
    for _ in range(2):
        shared = {"n": 0, "log": []}
        go(flow, shared, saver)
        assert shared == {"n": 2, "log": LOG[:4]}


def test_a_new_run_of_a_thread_works_on_the_callers_own_objects(world, saver):
    log = []
    shared = {"n": 0, "log": log}
    go(chain(step(world, "a"), step(world, "b")), shared, saver, thread_id="t")
    assert shared["log"] is log
    assert log == LOG[:4]


def test_two_programs_of_one_shape_have_the_types_of_their_own_functions():
    """Of equal names, in nodes of the same classes."""

    @dataclasses.dataclass
    class First:
        n: int

    @dataclasses.dataclass
    class Second:
        n: int

    def program(cls):
        def work(doc):
            return doc.n

        work.__annotations__["doc"] = cls
        node = Node()
        node.prep = lambda shared: shared["doc"]
        node.exec = work
        return Flow(node)

    saver = InMemorySaver()
    for cls in (First, Second):
        shared = {"doc": cls(1)}
        program(cls).run(shared, run_id=cls.__name__, checkpointer=saver)
        assert shared == {"doc": cls(1)}


def test_a_run_whose_start_cannot_be_read_any_more_is_not_kept_from_others(world, saver, monkeypatch):
    flow = chain(step(world, "a"), step(world, "b"))
    world.broken = {"b"}
    breaks(flow, {"n": 0, "log": []}, saver)
    decode = type(saver.codec).decode

    def unreadable(codec, data):
        found = decode(codec, data)
        if isinstance(found, dict) and "shared" in found:
            raise CorruptDataError("damaged")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(type(saver.codec), "decode", unreadable)
        for _ in range(2):
            breaks(flow, {"n": 0, "log": []}, saver, CorruptDataError)
    world.broken = set()
    shared = {"n": 0, "log": []}
    go(flow, shared, saver)
    assert shared["n"] == 2


# What has been computed


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("broken", ["a", "b", "c"])
def test_a_flow_goes_on_at_the_node_that_failed(world, saver, is_async, durability, broken):
    flow = chain(*(step(world, name, is_async=is_async) for name in "abc"))
    shared = {"n": 0, "log": []}
    world.broken = {broken}
    breaks(flow, shared, saver, durability=durability)
    done = "abc"[: "abc".index(broken) + 1]
    assert [name for name, _ in world.forget()] == list(done)
    world.broken = set()
    go(flow, shared, saver, durability=durability)
    assert [name for name, _ in world.forget()] == list("abc")[len(done) - 1 :]
    assert shared == {"n": 3, "log": LOG}
    go(flow, shared, saver)
    assert world.forget() == []
    assert shared == {"n": 3, "log": LOG}


class Items(BatchNode):
    def prep(self, shared):
        return shared["items"]

    def exec(self, item):
        return self.world.compute("item", item)

    def post(self, shared, prep_res, exec_res):
        shared["out"] = exec_res


class AsyncItems(AsyncParallelBatchNode):
    prep = Items.prep
    post = Items.post

    async def exec_async(self, item):
        await asyncio.sleep(0.001 * (item == 2))  # who breaks ends last
        return self.world.compute("item", item)


class ThreadItems(ParallelBatchNode):
    prep = Items.prep
    exec = Items.exec
    post = Items.post


@pytest.mark.parametrize("cls", [Items, ThreadItems, AsyncItems])
@pytest.mark.parametrize("falls_back", [False, True])
@pytest.mark.parametrize("width", [1, None])
def test_only_items_that_are_missing_are_computed(world, saver, cls, falls_back, width):
    if falls_back:

        class cls(cls):  # noqa: N801 - the same class, with a fallback
            def exec_fallback(self, item, error):
                raise error

    options = {"max_concurrent": width} if cls._weft_is_parallel and width else {}
    made = cls(**options)
    made.world = world
    world.broken = {("item", 2)}
    shared = {"items": [0, 1, 2, 3]}
    breaks(made, shared, saver)
    first = world.forget()
    assert ("item", 2) in first
    world.broken = set()
    go(made, shared, saver)
    again = world.forget()
    assert ("item", 2) in again
    if width or cls is Items:
        assert (first, again) == ([("item", n) for n in (0, 1, 2)], [("item", n) for n in (2, 3)])
    assert shared["out"] == [0, 1, 2, 3]


def test_equal_items_and_equal_nodes_are_told_apart(world, saver):
    """Each of the same class, with the same item."""

    class Same(Node):
        def exec(self, _):
            return world.compute(len(world.ran))

        def post(self, shared, prep_res, exec_res):
            shared["out"].append(exec_res)

    class Twice(BatchFlow):
        def prep(self, shared):
            return [{}, {}]

    class Last(Node):
        def exec(self, _):
            world.compute("last")

    flow = chain(Twice(chain(Same(), Same())), Last())
    shared = {"out": []}
    world.broken = {"last"}
    breaks(flow, shared, saver)
    assert shared == {"out": [0, 1, 2, 3]}
    world.broken = set()
    go(flow, shared, saver)
    assert shared == {"out": [0, 1, 2, 3]}
    assert world.ran[5:] == ["last"]


def test_a_loop_goes_on_at_its_turn(world, saver):
    class Turn(Node):
        def prep(self, shared):
            return shared["n"]

        def exec(self, n):
            return world.compute(n)

        def post(self, shared, n, _):
            shared["n"] = n + 1
            return "again" if n < 9 else "end"

    turn = Turn()
    turn - "again" >> turn
    turn - "end" >> None
    world.broken = {5}
    shared = {"n": 0}
    breaks(Flow(turn), shared, saver)
    world.broken = set()
    assert go(Flow(turn), shared, saver) == "end"
    assert world.ran == [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert shared == {"n": 10}


def test_failures_that_were_gone_on_from_are_not_tried_again(world, saver):
    """Neither those that a policy took, nor those that a fallback took the place of."""

    class Collects(AsyncItems):
        on_error = "collect"

        def post(self, shared, prep_res, exec_res):
            shared["out"] = [type(each).__name__ for each in exec_res]

    class Falls(BatchNode):
        prep = Items.prep
        post = lambda self, shared, prep_res, exec_res: shared.update(fell=exec_res)

        def exec(self, item):
            return world.compute("item", item)

        def exec_fallback(self, item, error):
            return world.compute("fallback", item)

    class Last(Node):
        def exec(self, _):
            world.compute("last")

    collects = Collects()
    collects.world = world
    flow = chain(collects, Falls(), Last())
    world.broken = {("item", 1), ("item", 3), "last"}
    shared = {"items": [0, 1, 2, 3]}
    breaks(flow, shared, saver)
    world.forget()
    world.broken = set()
    go(flow, shared, saver)
    assert world.forget() == ["last"]
    assert shared["out"] == ["Ok", "Failed", "Ok", "Failed"]
    assert shared["fell"] == [0, 1, 2, 3]


def test_failures_of_collected_runs_are_not_tried_again(world, saver):
    class Runs(AsyncParallelBatchFlow):
        on_error = "collect"

        async def prep_async(self, shared):
            return [{"i": i} for i in range(4)]

        async def post_async(self, shared, prep_res, exec_res):
            shared["out"] = [type(each).__name__ for each in exec_res]

    class One(AsyncNode):
        async def exec_async(self, _):
            return world.compute("one", self.params["i"])

    flow = chain(Runs(Flow(One())), step(world, "last"))
    world.broken = {("one", 1), ("one", 3), "last"}
    shared = {"n": 0, "log": []}
    breaks(flow, shared, saver)
    assert len(world.forget()) == 5
    world.broken = set()
    go(flow, shared, saver)
    assert world.forget() == [("last", 0)]
    assert shared["out"] == ["Ok", "Failed", "Ok", "Failed"]


def test_an_inserted_node_costs_nothing_but_itself(world, saver):
    world.broken = {"c"}
    shared = {"n": 0, "log": []}
    breaks(chain(*(step(world, name) for name in "abc")), shared, saver)
    world.forget()
    world.broken = set()

    class New(Node):
        def exec(self, _):
            world.compute("new")

    go(chain(step(world, "a"), New(), step(world, "b"), step(world, "c")), shared, saver)
    assert world.forget() == ["new", ("c", 2)]
    assert shared == {"n": 3, "log": LOG}


def test_a_node_never_gets_what_another_of_its_class_has_computed(world, saver):
    """The program is edited, and goes another way with the same item."""

    class Says(Node):
        def __init__(self, word):
            super().__init__()
            self.word = word

        def exec(self, _):
            return world.compute("says", self.word)

        def post(self, shared, prep_res, exec_res):
            shared["said"] = exec_res

    def flow(action):
        start, last = type("Start", (Node,), {"post": lambda *_: action})(), step(world, "last")
        start - "left" >> Says("left") >> last
        start - "right" >> Says("right") >> last
        return Flow(start)

    world.broken = {"last"}
    shared = {"n": 0, "log": []}
    breaks(flow("left"), shared, saver)
    world.broken = set()
    go(flow("right"), shared, saver)
    assert shared["said"] == "right"


def test_another_argument_is_computed_again(world, saver):
    world.broken = {"c"}
    shared = {"n": 0, "log": []}
    breaks(chain(*(step(world, name) for name in "abc")), shared, saver)
    world.forget()
    world.broken = set()

    class Changed(Node):
        def post(self, shared, prep_res, exec_res):
            shared["n"] = 10

    go(chain(step(world, "a"), Changed(), step(world, "b"), step(world, "c")), shared, saver)
    assert world.forget() == [("b", 10), ("c", 11)]


# Who ran before whom


def test_hooks_that_wait_for_a_turn_of_the_loop_begin_again_in_the_same_order(saver):
    """The turn of a hook that waits ends in the next turn of the loop, not before."""
    turns, broken = {0: 0, 1: 3, 2: 0}, True

    class Waits(AsyncNode):
        async def prep_async(self, shared):
            await asyncio.sleep(0)
            return self.params["i"]

        async def exec_async(self, i):
            for _ in range(turns[i]):
                await asyncio.sleep(0)
            if i == 0 and broken:
                await asyncio.sleep(0.02)
                raise Boom(i)
            return i

        async def post_async(self, shared, i, _):
            shared["seen"].append(i)

    class Runs(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"i": i} for i in range(3)]

    seen = []
    for _ in range(2):
        shared = {"seen": []}
        with pytest.raises(Boom):
            asyncio.run(Runs(Waits()).run_async(shared, run_id="r", checkpointer=saver))
        seen.append(shared["seen"])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("seed", range(10))
def test_hooks_run_again_in_the_order_in_which_they_ran_at_first(world, saver, seed):
    """Else what depends on it (here: on how many were there before) would be computed again, with other arguments."""
    rng = seeded("order") if seed == 0 else random.Random(seed)
    delays = [rng.random() for _ in range(20)]

    class Runs(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"i": i} for i in range(10)]

    class First(AsyncNode):
        async def exec_async(self, _):
            await asyncio.sleep(delays[self.params["i"]])

        def post(self, shared, prep_res, exec_res):
            shared["seen"].append(self.params["i"])

    class Second(AsyncNode):
        def prep(self, shared):
            return list(shared["seen"])

        async def exec_async(self, seen):
            await asyncio.sleep(delays[10 + self.params["i"]])
            return world.compute("second", self.params["i"], tuple(seen))

        async def post_async(self, shared, prep_res, exec_res):
            shared["seen"].append(10 + self.params["i"])

    class Last(Node):
        def exec(self, _):
            world.compute("last")

    flow = chain(Runs(chain(First(), Second())), Last())
    shared = {"seen": []}
    world.broken = {"last"}

    def main():
        return run(lambda: flow.run_async(shared, run_id="r", checkpointer=saver), seed=seed)

    with pytest.raises(Boom):
        main()
    assert len(world.forget()) == 11
    before = list(shared["seen"])
    world.broken = set()
    delays[:] = [1.0] * 20
    main()
    assert world.forget() == ["last"]
    assert shared["seen"] == before


# Shared


@dataclasses.dataclass
class Board:
    items: list = dataclasses.field(default_factory=list)
    note: str = ""


@pytest.mark.parametrize(
    ("start", "put"),
    [
        ({"a": [1]}, lambda shared, value: shared.__setitem__("b", value)),
        (collections.OrderedDict(a=[1]), lambda shared, value: shared.__setitem__("b", value)),
        ([1], lambda shared, value: shared.append(value)),
        ({1}, lambda shared, value: shared.add(value)),
        (Board([1]), lambda shared, value: shared.items.append(value)),
    ],
    ids=["dict", "OrderedDict", "list", "set", "dataclass"],
)
@pytest.mark.parametrize("left", ["as it was left", "rubbish"])
def test_the_callers_object_is_filled_with_the_start_and_the_end(world, saver, start, put, left):
    class Puts(Node):
        def post(self, shared, prep_res, exec_res):
            put(shared, "put")

    class Breaks(Node):
        def exec(self, _):
            world.compute("x")

    saver.codec.register(Board)
    flow = chain(Puts(), Breaks())
    expected = copy.deepcopy(start)
    put(expected, "put")
    world.broken = {"x"}
    shared = copy.deepcopy(start)
    breaks(flow, shared, saver)
    if left == "rubbish":
        put(shared, "rubbish")
    world.broken = set()
    go(flow, shared, saver)
    assert shared == expected
    put(shared, "rubbish")
    go(flow, shared, saver)
    assert shared == expected
    assert flow.invoke(shared, run_id="r", checkpointer=saver) is shared


def test_a_new_run_leaves_the_callers_objects_alone(saver):
    inner = []
    shared = {"inner": inner}

    class Puts(Node):
        def post(self, shared, prep_res, exec_res):
            assert shared["inner"] is inner

    go(Puts(), shared, saver)
    assert shared["inner"] is inner


def test_none_goes_on_with_what_is_recorded(world, saver):
    class Runs(Flow):
        def post(self, shared, prep_res, exec_res):
            return shared["n"]

    def flow():
        first = step(world, "a")
        first >> step(world, "b")
        return Runs(first)

    world.broken = {"b"}
    breaks(flow(), {"n": 0, "log": []}, saver)
    world.broken = set()
    assert go(flow(), None, saver) == 2
    assert go(flow(), None, saver) == 2
    assert flow().invoke(None, run_id="r", checkpointer=saver)["n"] == 2
    assert weft.runs(saver).resume("r", flow())["n"] == 2
    assert [name for name, _ in world.ran] == ["a", "b", "b"]


def test_a_thread_has_many_runs(world, saver):
    flow = chain(step(world, "a"), step(world, "b"))
    for _ in range(2):
        shared = {"n": 0, "log": []}
        flow.run(shared, thread_id="t", checkpointer=saver)
        assert shared["n"] == 2
    world.broken = {"b"}
    with pytest.raises(Boom):
        flow.run({"n": 10, "log": []}, thread_id="t", checkpointer=saver)
    world.forget()
    world.broken = set()
    assert flow.invoke(None, thread_id="t", checkpointer=saver)["n"] == 12
    assert world.ran == [("b", 11)]


def test_the_action_of_a_finished_run(saver):
    class Ends(Node):
        def post(self, shared, prep_res, exec_res):
            return "the end"

    for _ in range(2):
        assert go(Flow(Ends()), {}, saver) == "the end"


def test_a_checkpointer_of_the_definition(world, saver):
    flow = Flow(step(world, "a"), checkpointer=saver)
    shared = {"n": 0, "log": []}
    for _ in range(2):
        flow.run(shared, run_id="r")
    assert (len(world.ran), shared["n"]) == (1, 1)
    with pytest.raises(InputError, match="thread_id"):
        flow.run(shared)


def test_other_params_are_another_input(world, saver):
    flow = Flow(step(world, "a"))
    flow.set_params({"file": "one"})
    go(flow, {"n": 0, "log": []}, saver)
    flow.set_params({"file": "two"})
    with pytest.raises(RunMismatchError, match="input"):
        go(flow, {"n": 0, "log": []}, saver)


def test_another_program_is_refused(world, saver):
    go(Flow(step(world, "a")), {"n": 0, "log": []}, saver)
    with pytest.raises(RunMismatchError, match="parts have changed"):
        go(Flow(step(world, "b")), {"n": 0, "log": []}, saver)
    with pytest.raises(RunMismatchError):
        go(step(world, "a"), {"n": 0, "log": []}, saver)


# What cannot be stored


def test_what_cannot_be_stored_is_refused_with_the_path(saver):
    lock = threading.Lock()

    class Puts(Node):
        def post(self, shared, prep_res, exec_res):
            shared["lock"] = lock

    class Gives(Node):
        def exec(self, _):
            return [lock]

    assert "['lock']" in str(breaks(Puts(), {"lock": lock}, saver, UnstorableError))
    assert "['shared']['lock']" in str(breaks(Puts(), {}, saver, UnstorableError))
    error = breaks(Flow(Gives()), {}, InMemorySaver(), UnstorableError)
    assert "result[0]: is a lock" in str(error)


def test_hooks_may_give_what_cannot_be_stored(saver):
    """Only what exec gives, and shared at its ends, must be."""

    class Opens(Node):
        def prep(self, shared):
            shared["lock"] = threading.Lock()
            return shared["lock"]

        def post(self, shared, lock, exec_res):
            assert shared.pop("lock") is lock

    go(Flow(Opens()), {}, saver)
    with pytest.warns(UserWarning, match="cannot be encoded"):  # what exec gets is part of its identity

        class Uses(Opens):
            def exec(self, lock):
                return lock.locked()

        Uses().run({}, run_id="q", checkpointer=saver)


@pytest.mark.parametrize("is_async", [False, True])
def test_exec_that_sets_attributes_is_warned_of(saver, is_async):
    class Sets(Node):
        def exec(self, _):
            self.found = 1

    class AsyncSets(AsyncNode):
        async def exec_async(self, _):
            self.found = 1

    made = (AsyncSets if is_async else Sets)()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.run({})  # without a journal nothing is lost
    with pytest.warns(
        UserWarning, match=r"Sets\.exec sets self\.found, which is lost when the run is resumed"
    ):
        type(made)().run({}, run_id="r", checkpointer=saver)


# Inside of others, and others inside


def test_in_an_entrypoint(world, saver):
    @task
    def last():
        return world.compute("last")

    @entrypoint()
    def main(n):
        shared = {"n": n, "log": []}
        chain(step(world, "a"), step(world, "b")).run(shared)
        last().result()
        return shared["n"]

    world.broken = {"b"}
    with pytest.raises(Boom):
        main.invoke(1, run_id="r", checkpointer=saver)
    assert world.forget() == [("a", 1), ("b", 2)]
    world.broken = {"last"}
    with pytest.raises(Boom):
        main.invoke(1, run_id="r", checkpointer=saver)
    assert world.forget() == [("b", 2), "last"]
    world.broken = set()
    assert main.invoke(1, run_id="r", checkpointer=saver) == 3
    assert world.forget() == ["last"]


def test_in_a_body_two_flows_may_share_what_they_work_on(world, saver):
    class Puts(AsyncNode):
        async def exec_async(self, _):
            await asyncio.sleep(self.params["after"])
            return world.compute("puts", self.params["after"])

        async def post_async(self, shared, prep_res, exec_res):
            shared.append(exec_res)

    def flow(after):
        made = Puts()
        made.set_params({"after": after})
        return made

    @entrypoint()
    async def main(_):
        shared = []
        await asyncio.gather(flow(0.02).run_async(shared), flow(0.01).run_async(shared))
        world.compute("body")
        return shared

    world.broken = {"body"}
    with pytest.raises(Boom):
        main.invoke(1, run_id="r", checkpointer=saver)
    world.forget()
    world.broken = set()
    assert main.invoke(1, run_id="r", checkpointer=saver) == [0.01, 0.02]
    assert world.forget() == ["body"]


def test_in_a_sequence_and_a_map(world, saver):
    class Twice(Node):
        def prep(self, shared):
            return shared["n"]

        def exec(self, n):
            return world.compute("twice", n) * 2

        def post(self, shared, prep_res, exec_res):
            shared["n"] = exec_res

    flow = Sequence(
        lambda n: [{"n": n}, {"n": n + 1}],
        weft.map(Flow(Twice()), max_concurrent=1),
        lambda found: world.compute("sum", sum(s["n"] for s in found)),
    )
    world.broken = {"sum", ("twice", 4)}
    with pytest.raises(weft.ParallelExecutionError):
        flow.invoke(3, run_id="r", checkpointer=saver)
    world.broken = {"sum"}
    with pytest.raises(Boom):
        flow.invoke(3, run_id="r", checkpointer=saver)
    world.broken = set()
    assert flow.invoke(3, run_id="r", checkpointer=saver) == 14
    assert Counter(world.ran) == {("twice", 3): 1, ("twice", 4): 2, ("sum", 14): 2}


def test_other_workflows_in_a_flow(world, saver):
    @task
    async def one(n):
        return world.compute("one", n)

    @task
    def two(n):
        return world.compute("two", n + 1)

    first = step(world, "a")
    first >> Sequence(lambda shared: shared["n"], weft.parallel(one, two)) >> step(world, "last")
    world.broken = {"two"}
    shared = {"n": 0, "log": []}
    breaks(Flow(first), shared, saver, (Boom, weft.ParallelExecutionError))
    world.broken = {"last"}
    breaks(Flow(first), shared, saver)
    world.broken = set()
    go(Flow(first), shared, saver)
    assert Counter(world.ran) == {("a", 0): 1, ("one", 1): 1, ("two", 2): 2, ("last", 1): 2}
    assert (shared["one"], shared["two"]) == (1, 2)


def test_tasks_of_a_hook_are_not_run_again(world, saver):
    """A hook runs again, but what it calls is recorded as anywhere."""

    @task
    def fetch(n):
        return world.compute("fetch", n)

    class Fetches(Node):
        def prep(self, shared):
            return fetch(1).result() + fetch(2).result()

        def exec(self, n):
            return world.compute("exec", n)

        def post(self, shared, prep_res, exec_res):
            shared["out"] = exec_res

    world.broken = {"exec"}
    shared = {}
    breaks(Flow(Fetches()), shared, saver)
    world.broken = set()
    go(Flow(Fetches()), shared, saver)
    assert world.ran == [("fetch", 1), ("fetch", 2), ("exec", 3), ("exec", 3)]
    assert shared == {"out": 3}


@pytest.mark.parametrize("where", ["prep", "exec", "post"])
def test_a_hook_may_ask_a_question(world, saver, where):
    class Asks(Node):
        def prep(self, shared):
            return interrupt("prep?") if where == "prep" else "-"

        def exec(self, found):
            world.compute("exec")
            return found + (interrupt("exec?") if where == "exec" else "-")

        def post(self, shared, prep_res, exec_res):
            shared["out"] = exec_res + (interrupt("post?") if where == "post" else "-")

    class Runs(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{}]

    flow = Runs(chain(step(world, "a"), Asks(), step(world, "b")))
    shared = {"n": 0, "log": []}
    found = go(flow, shared, saver)
    assert [question.value for question in found["__interrupt__"]] == [f"{where}?"]
    assert go(flow, Command(resume="!"), saver) is None
    shared = {}
    go(flow, shared, saver)
    assert shared["out"] == {"prep": "!--", "exec": "-!-", "post": "--!"}[where]
    assert Counter(world.ran)["exec"] == (2 if where == "exec" else 1)
    assert [each for each in world.ran if each != "exec"] == [("a", 0), ("b", 1)]


def test_others_go_on_while_a_hook_waits_for_an_answer(world, saver):
    class Asks(Node):
        def prep(self, shared):
            if self.params["i"] == 1:
                interrupt("?")
            shared["log"].append(self.params["i"])

    class Runs(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"i": i} for i in range(4)]

    class Computes(Node):
        """What each needs is its own: which items begin before others have ended is a matter of cores and of time."""

        def prep(self, shared):
            return self.params["i"]

        def exec(self, i):
            return world.compute("a", i)

    flow = Runs(chain(Asks(), Computes()))
    shared = {"log": []}
    assert "__interrupt__" in go(flow, shared, saver)
    assert sorted(world.forget()) == [("a", 0), ("a", 2), ("a", 3)]
    go(flow, Command(resume=0), saver)
    assert world.forget() == [("a", 1)]


# Killed


SCRIPT = """
    import os, sys, json, time, random
    from weft import SqliteSaver
    from weft import *

    def effect(name):
        with open(os.environ["EFFECTS"], "a") as log:
            log.write(name + "\\n")

    class Load(AsyncNode):
        async def prep_async(self, shared):
            return self.params["file"]

        async def exec_async(self, file):
            time.sleep(random.random() * 0.004)
            effect(f"load-{file}")
            return f"text of {file}"

        async def post_async(self, shared, file, text):
            shared["order"].append(file)
            shared[file] = [text]

    class Parts(AsyncParallelBatchNode):
        max_concurrent = 2

        async def prep_async(self, shared):
            return [f"{self.params['file']}.{n}" for n in range(3)]

        async def exec_async(self, part):
            time.sleep(random.random() * 0.004)
            effect(f"part-{part}")
            return part.upper()

        async def post_async(self, shared, parts, found):
            shared[self.params["file"]] += found

    class Count(Node):
        def prep(self, shared):
            return len(shared["order"])

        def exec(self, count):
            effect(f"count-{self.params['file']}-of-{count}")
            return count

        def post(self, shared, _, count):
            shared["counts"].append(count)

    class Files(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"file": f"f{n}"} for n in range(5)]

    start = Load()
    start >> Parts() >> Count()
    shared = {"order": [], "counts": []}
    with SqliteSaver("runs.db") as saver:
        Files(start).run(shared, run_id="r", checkpointer=saver)
    print(json.dumps(shared, sort_keys=True))
"""


def test_a_program_that_is_killed_goes_on(tmp_path):
    """Whatever had an outcome on the disk is not done again; at most what was at work when it was killed."""
    rng = seeded("kill")
    program = Program(tmp_path, SCRIPT)
    kills = 0
    at = 0
    while kills < 6:
        at += rng.randint(1, 6)
        if not kill_at_effect(program.start(), program.effects_path, at):
            break
        kills += 1
    finished = program.run()
    assert finished.returncode == 0, finished.stderr
    shared = json.loads(finished.stdout)
    files = [f"f{n}" for n in range(5)]
    assert sorted(shared["order"]) == files
    assert len(shared["counts"]) == 5
    for file in files:
        assert shared[file] == [f"text of {file}", *(f"{file.upper()}.{n}" for n in range(3))]
    effects = program.effects()
    assert {name.partition("-of-")[0] for name in effects} == {
        *(f"load-{file}" for file in files),
        *(f"part-{file}.{n}" for file in files for n in range(3)),
        *(f"count-{file}" for file in files),
    }
    counted = Counter(name.partition("-of-")[0] for name in effects.elements())
    again = sum(times - 1 for times in counted.values())
    assert again <= kills * 11, counted  # five loads or counts, and two parts of each
    before = program.effects()
    assert json.loads(program.run().stdout) == shared
    assert program.effects() == before


def test_a_node_that_was_put_into_a_flow_runs_alone_or_is_refused(saver):
    """A flow counts the calls of its nodes: of the edited one, the second is another than what is recorded."""
    ran, is_down = [], True

    def named(name):
        class Step(Node):
            def exec(self, _):
                if is_down and name == "C":
                    raise InterruptedError
                ran.append(name)

        Step.__name__ = Step.__qualname__ = name
        return Step()

    def flow(names):
        nodes = [named(name) for name in names]
        for one, following in itertools.pairwise(nodes):
            one >> following
        return Flow(nodes[0])

    with pytest.raises(InterruptedError):
        flow("ABC").run({}, checkpointer=saver, run_id="r")
    is_down = False
    with pytest.raises(ReplayMismatchError, match="is 'X' now, but 'B'"):
        flow("AXBC").run({}, checkpointer=saver, run_id="r", on_mismatch="error")
    ran.clear()
    flow("AXBC").run({}, checkpointer=saver, run_id="r")
    assert ran == ["X", "C"]
