"""Nodes and flows: hooks, actions, params, ``shared``, and what they are to other styles."""

from __future__ import annotations

import asyncio
import dataclasses
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from leftovers import nothing_left, timed

import weft
from weft import (
    DEFAULT_ACTION,
    AsyncBatchFlow,
    AsyncBatchNode,
    AsyncFlow,
    AsyncNode,
    AsyncParallelBatchFlow,
    AsyncParallelBatchNode,
    BaseNode,
    BatchFlow,
    BatchNode,
    DefinitionError,
    Flow,
    InputError,
    Node,
    ParallelBatchFlow,
    ParallelBatchNode,
    Sequence,
    UsageError,
    entrypoint,
    node,
    parallel,
    task,
)
from weft.testing import run

EVERY_CLASS = [
    *(BaseNode, Node, BatchNode, ParallelBatchNode, AsyncNode, AsyncBatchNode, AsyncParallelBatchNode),
    *(Flow, BatchFlow, ParallelBatchFlow, AsyncFlow, AsyncBatchFlow, AsyncParallelBatchFlow),
]


class Add(Node):
    """Adds to ``n``."""

    def __init__(self, number=1, action=None):
        super().__init__()
        self.number = number
        self.action = action

    def prep(self, shared):
        return shared["n"]

    def exec(self, n):
        return n + self.number

    def post(self, shared, n, total):
        shared["n"] = total
        return self.action


class AsyncAdd(AsyncNode):
    async def prep_async(self, shared):
        return shared["n"]

    async def exec_async(self, n):
        await asyncio.sleep(0)
        return n + 1

    async def post_async(self, shared, n, total):
        shared["n"] = total


def chain(*nodes):
    for first, second in zip(nodes, nodes[1:], strict=False):
        first >> second
    return Flow(nodes[0])


def either(flow, shared, *, is_async):
    return run(lambda: flow.run_async(shared)) if is_async else flow.run(shared)


FACES = pytest.mark.parametrize("is_async", [False, True], ids=["run", "run_async"])


# Hooks


@FACES
def test_hooks_get_what_the_hook_before_gave(is_async):
    class Seen(Node):
        def prep(self, shared):
            shared["seen"].append("prep")
            return "prepared"

        def exec(self, prep_res):
            return [prep_res, "computed"]

        def post(self, shared, prep_res, exec_res):
            shared["seen"] += [prep_res, exec_res]
            return "action"

    shared = {"seen": []}
    assert either(Seen(), shared, is_async=is_async) == "action"
    assert shared["seen"] == ["prep", "prepared", ["prepared", "computed"]]


@FACES
@pytest.mark.parametrize("cls", [c for c in EVERY_CLASS if not issubclass(c, Flow)])
def test_a_node_without_hooks_does_nothing(cls, is_async):
    shared = {}
    with nothing_left():
        assert either(cls(), shared, is_async=is_async) is None
    assert shared == {}


@FACES
@pytest.mark.parametrize("cls", [Node, AsyncNode])
@pytest.mark.parametrize("spelling", ["sync", "async", "awaitable"])
def test_hooks_of_either_spelling_are_called_on_every_class(cls, spelling, is_async):
    """A flow of sync and async parts need not be an AsyncFlow, and a hook is not silently left out."""

    def prep(self, shared):
        return 1

    async def prep_async(self, shared):
        await asyncio.sleep(0)
        return 1

    def post(self, shared, prep_res, exec_res):
        shared["got"] = exec_res

    async def post_async(self, shared, prep_res, exec_res):
        await asyncio.sleep(0)
        shared["got"] = exec_res

    def exec_(self, x):
        return x + 1

    async def exec_async(self, x):
        await asyncio.sleep(0)
        return x + 1

    hooks = {
        "sync": {"prep": prep, "exec": exec_, "post": post},
        "async": {"prep_async": prep_async, "exec_async": exec_async, "post_async": post_async},
        "awaitable": {  # sync functions that give something to await
            "prep": prep_async,
            "exec": exec_async,
            "post": post_async,
        },
    }[spelling]
    made = type("Made", (cls,), hooks)
    shared = {}
    either(Flow(made()), shared, is_async=is_async)
    assert shared == {"got": 2}


def test_the_own_spelling_of_a_class_comes_first():
    class Both(AsyncNode):
        def exec(self, _):
            raise AssertionError

        async def exec_async(self, _):
            return "async"

        def post(self, shared, prep_res, exec_res):
            return exec_res

    class SyncBoth(Node):
        exec = lambda self, _: "sync"
        exec_async = Both.exec
        post = Both.post

    assert Both().run({}) == "async"
    assert SyncBoth().run({}) == "sync"


def test_a_hook_that_is_set_on_the_object_is_used():
    made = Add()
    made.post = lambda shared, prep_res, exec_res: f"was {exec_res}"
    assert made.run({"n": 1}) == "was 2"
    assert Flow(made).run({"n": 1}) == "was 2"


def test_hooks_may_call_those_of_the_base_class():
    class Polite(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            assert await super().prep_async(shared) is None
            return [1]

        async def exec_async(self, item):
            assert await super().exec_async(item) is None
            raise ValueError(item)

        async def exec_fallback_async(self, item, error):
            return await super().exec_fallback_async(item, error)

    class PoliteFlow(AsyncFlow):
        async def post_async(self, shared, prep_res, exec_res):
            return await super().post_async(shared, prep_res, exec_res)

    with pytest.raises(ValueError):
        Polite().run({})
    assert PoliteFlow(Add(action="x")).run({"n": 0}) == "x"


def test_a_class_that_does_not_call_its_base_works():
    @dataclasses.dataclass
    class Declared(Node):
        step: int = 5  # a name that nodes have for other styles

        def post(self, shared, prep_res, exec_res):
            shared["step"] = self.step

    shared = {}
    Declared() >> Add()
    Flow(Declared(7)).run(shared)
    assert shared == {"step": 7}


@pytest.mark.parametrize("name", ["key", "step", "computes", "memory", "parts", "bind", "functions", "map"])
def test_attributes_of_a_node_may_have_any_name(name, saver):
    class Mine(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return [getattr(self, name)]

        async def exec_async(self, item):
            return item

        async def post_async(self, shared, prep_res, exec_res):
            return exec_res[0]

    made = Mine()
    setattr(made, name, "mine")
    assert made.run({}) == "mine"
    assert Flow(made).run({}, checkpointer=saver, run_id="r") == "mine"


# Batch nodes


BATCH = [BatchNode, ParallelBatchNode, AsyncBatchNode, AsyncParallelBatchNode]


def batch(cls, items, exec_=lambda item: item * 2, **options):
    class Made(cls):
        def prep(self, shared):
            return items() if callable(items) else items

        def post(self, shared, prep_res, exec_res):
            shared["out"] = exec_res

    async def exec_async(self, item):
        await asyncio.sleep(1 / (item + 1))
        return exec_(item)

    if issubclass(cls, AsyncNode):
        Made.exec_async = exec_async
    else:
        Made.exec = lambda self, item: exec_(item)
    return Made(**options)


@FACES
@pytest.mark.parametrize("cls", BATCH)
@pytest.mark.parametrize(
    "items",
    [[1, 2, 3], (1, 2, 3), lambda: iter([1, 2, 3]), {1: "a", 2: "b", 3: "c"}, range(1, 4)],
    ids=["list", "tuple", "iterator", "dict", "range"],
)
def test_post_gets_the_results_in_the_order_of_the_items(cls, items, is_async):
    shared = {}
    with weft.testing.virtual_clock() if not is_async else nothing_left():
        either(batch(cls, items), shared, is_async=is_async)
    assert shared["out"] == [2, 4, 6]


@pytest.mark.parametrize("cls", BATCH)
@pytest.mark.parametrize("items", [None, [], ()])
def test_no_items_are_an_empty_list(cls, items):
    shared = {}
    batch(cls, items).run(shared)
    assert shared["out"] == []


@pytest.mark.parametrize("cls", BATCH)
def test_what_is_no_list_of_items_is_an_error_that_names_the_node(cls):
    with pytest.raises(InputError, match=r"Made\.prep must give a list of items .* not 5"):
        batch(cls, 5).run({})


@pytest.mark.parametrize("cls", BATCH)
def test_a_batch_node_without_exec_gives_as_many_nones(cls):
    class Made(cls):
        def prep(self, shared):
            return [1, 2]

        def post(self, shared, prep_res, exec_res):
            return repr(exec_res)

    assert Made().run({}) == "[None, None]"


@pytest.mark.parametrize("cls", BATCH)
def test_items_overlap_where_the_class_says_so(cls):
    made = (
        batch(cls, [1, 1, 1, 1], optimization_enabled=False) if cls._weft_is_parallel else batch(cls, [1] * 4)
    )
    if not issubclass(cls, AsyncNode):
        together = threading.Barrier(4, timeout=5)
        made = batch(ParallelBatchNode, [1] * 4, lambda _: together.wait(), optimization_enabled=False)
        made.run({})
        return
    _, seconds = timed(lambda: made.run_async({}))
    assert seconds == (0.5 if cls._weft_is_parallel else 2)


# Being put together


def test_operators_give_what_follows():
    a, b, c = Add(), Add(), Add()
    assert (a >> b) is b
    assert (a - "x" >> c) is c
    assert a.next(c, "y") is c
    assert a.successors == {DEFAULT_ACTION: b, "x": c, "y": c}
    flow = Flow()
    assert flow.start(a) is a
    assert flow.start_node is a


def test_an_action_is_a_string():
    with pytest.raises(TypeError, match="Action must be a string, not 5"):
        Add() - 5


def test_an_overwritten_successor_is_said():
    a = Add()
    a >> Add()
    with pytest.warns(UserWarning, match="Overwriting successor for action 'default'") as caught:
        a >> Add()
    assert caught[0].filename == __file__


def test_successors_of_what_is_run_by_itself_are_said():
    a = Add()
    a >> Add(100)
    shared = {"n": 0}
    for verb in (a.run, a.invoke):
        with pytest.warns(UserWarning, match=r"Node won't run successors\. Use Flow\.") as caught:
            verb(shared)
        assert caught[0].filename == __file__
    assert shared == {"n": 2}


@pytest.mark.parametrize("cls", [c for c in EVERY_CLASS if issubclass(c, Flow)])
def test_a_flow_without_a_start_is_an_error(cls):
    if cls._weft_is_batch:
        cls = type(cls.__name__, (cls,), {"prep": lambda self, shared: [{}]})
    with pytest.raises(DefinitionError, match=rf"{cls.__name__} has no node to start with: write"):
        cls().run({})
    with pytest.raises(DefinitionError, match="has no node to start with"):
        cls().validate()
    with pytest.raises(DefinitionError, match=r"node 'Flow': Flow has no node to start with"):
        Flow(Flow()).validate()


def test_what_is_no_part_of_a_workflow_is_refused():
    with pytest.raises(DefinitionError, match="a flow takes nodes, tasks, functions .* not int"):
        Add() >> 5
    with pytest.raises(DefinitionError, match="not str"):
        Flow("start")


# Flows


@FACES
@pytest.mark.parametrize("cls", [Flow, AsyncFlow])
def test_a_flow_takes_sync_and_async_nodes(cls, is_async):
    shared = {"n": 0}
    first = Add()
    first >> AsyncAdd() >> Add(action="done")
    assert either(cls(first), shared, is_async=is_async) == "done"
    assert shared == {"n": 3}


@pytest.mark.parametrize("action", [None, "", "default"])
def test_no_action_is_the_default(action):
    shared = {"n": 0}
    chain(Add(action=action), Add()).run(shared)
    assert shared == {"n": 2}


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("nope", r"Flow ends: 'nope' not found in \['default'\]"),
        (5, r"Flow ends: 5 \(no string\) not found in \['default'\]"),
        ({"a": []}, r"Flow ends: \{'a': \[\]\} \(no string\) not found"),
    ],
)
def test_an_unknown_action_ends_the_flow_with_a_warning(action, said):
    shared = {"n": 0}
    with pytest.warns(UserWarning, match=said):
        assert chain(Add(action=action), Add()).run(shared) == action
    assert shared == {"n": 1}


def test_a_way_to_nowhere_ends_the_flow_without_a_warning():
    first = Add(action="end")
    first - "end" >> None
    first >> Add()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Flow(first).run({"n": 0}) == "end"


def test_a_loop():
    class Until(AsyncAdd):
        async def post_async(self, shared, n, total):
            shared["n"] = total
            return "again" if total < 100 else "done"

    node_ = Until()
    node_ - "again" >> node_
    node_ - "done" >> Add(action="end")
    shared = {"n": 0}
    assert Flow(node_).run(shared) == "end"
    assert shared == {"n": 101}


def test_a_user_may_choose_the_next_node():
    class Skips(Flow):
        def get_next_node(self, curr, action):
            found = super().get_next_node(curr, action)
            return super().get_next_node(found, None) if found is not None else None

    shared = {"n": 0}
    first = Add(1)
    first >> Add(10) >> Add(100)
    Skips(first).run(shared)
    assert shared == {"n": 101}


def test_a_flow_is_a_node_whose_action_is_its_last_one():
    inner = chain(Add(1), Add(2, action="inner done"))
    inner - "inner done" >> Add(10, action="outer done")
    inner >> Add(100)
    shared = {"n": 0}
    assert Flow(inner).run(shared) == "outer done"
    assert shared == {"n": 13}


def test_a_flow_has_hooks_too():
    class Mine(Flow):
        def prep(self, shared):
            shared["n"] = 5
            return "prepared"

        def post(self, shared, prep_res, exec_res):
            return f"{prep_res}, {exec_res}"

    shared = {}
    assert Mine(Add(action="last")).run(shared) == "prepared, last"
    assert shared == {"n": 6}


# Params


class Tells(Node):
    def post(self, shared, prep_res, exec_res):
        shared.append(dict(self.params))


def test_a_flow_gives_its_params_to_its_nodes():
    """They replace those of the node; those of a plain flow inside count no more than a node's."""
    one, two = Tells(), Tells()
    two.set_params({"own": 2})
    inner = Flow(two)
    inner.set_params({"inner": 1})
    one >> inner
    flow = Flow(one)
    shared = []
    flow.run(shared)
    flow.set_params({"a": 1})
    flow.run(shared)
    assert shared == [{}, {}, {"a": 1}, {"a": 1}]
    assert (two.params, inner.params) == ({"own": 2}, {"inner": 1})


def test_prep_of_a_flow_may_still_change_the_flow():
    class Late(Flow):
        def prep(self, shared):
            self.set_params({"late": 1})
            self.start(Tells())

    class LateRuns(BatchFlow):
        def prep(self, shared):
            self.params["late"] = 2
            return [{"i": 1}]

    shared = []
    Flow(Late()).run(shared)
    Flow(LateRuns(Tells())).run(shared)
    assert shared == [{"late": 1}, {"late": 2, "i": 1}]


def test_params_that_a_node_changes_are_those_of_its_run():
    class Changes(Tells):
        def prep(self, shared):
            self.params["more"] = 1

    flow = Flow(Changes())
    flow.set_params({"own": 1})
    shared = []
    for _ in range(2):
        flow.run(shared)
    assert flow.params == {"own": 1}
    assert shared == [{"own": 1, "more": 1}] * 2


def test_params_of_a_node_that_is_run_by_itself():
    made, shared = Tells(), []
    made.set_params({"own": 2})
    made.run(shared)
    assert shared == [{"own": 2}]


FLOWS = [BatchFlow, ParallelBatchFlow, AsyncBatchFlow, AsyncParallelBatchFlow]


@FACES
@pytest.mark.parametrize("cls", FLOWS)
def test_a_batch_flow_runs_once_for_each_of_its_params(cls, is_async):
    class Made(cls):
        def prep(self, shared):
            return [{"i": i} for i in range(3)]

        def post(self, shared, prep_res, exec_res):
            shared.append((prep_res, exec_res))

    start = Tells()
    flow = Made(start)
    flow.set_params({"i": "own", "base": 1})
    shared = []
    assert either(flow, shared, is_async=is_async) is None
    assert sorted(shared[:3], key=lambda params: params["i"]) == [{"i": i, "base": 1} for i in range(3)]
    assert shared[3:] == [([{"i": 0}, {"i": 1}, {"i": 2}], None)]
    assert start.params == {}


def test_params_of_batch_flows_inside_each_other_are_merged():
    class Outer(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"dir": d} for d in "ab"]

    class Inner(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"file": f"{self.params['dir']}{n}"} for n in range(2)]

    shared = []
    Outer(Inner(Tells())).run(shared)
    assert sorted(found["dir"] + found["file"] for found in shared) == ["aa0", "aa1", "bb0", "bb1"]


def test_params_that_are_no_dicts_are_an_error_that_names_the_flow():
    class Wrong(BatchFlow):
        def prep(self, shared):
            return [{}, "x"]

    with pytest.raises(InputError, match=r"Wrong\.prep must give a list of dicts.* number 1 is 'x'"):
        Wrong(Tells()).run([])


# Whose data is whose


def test_nodes_of_a_flow_are_copied_for_each_run():
    class Counts(Node):
        count = 0

        def prep(self, shared):
            self.count += 1

        def exec(self, _):
            self.count += 1

        def post(self, shared, prep_res, exec_res):
            shared["count"] = self.count

    made, shared = Counts(), {}
    for _ in range(2):
        Flow(made).run(shared)
        assert (shared, made.count) == ({"count": 2}, 0)


@pytest.mark.parametrize("fails", [False, True])
def test_a_node_that_is_run_by_itself_keeps_what_it_sets_on_itself(fails):
    class Counts(Node):
        count = 0

        def exec(self, _):
            self.count += 1
            if fails:
                raise ValueError

    made = Counts(max_retries=3)
    try:
        made.run({})
    except ValueError:
        assert fails
    assert made.count == (3 if fails else 1)


@FACES
def test_runs_of_one_flow_at_the_same_time_see_nothing_of_each_other(is_async):
    """Neither params, nor what hooks keep on ``self``, nor how often another has been retried."""

    class First(AsyncNode):
        async def prep_async(self, shared):
            self.mine = shared["run"]
            return shared["run"]

        async def exec_async(self, run_):
            await asyncio.sleep(0.01 * (run_ % 7))
            if self.cur_retry < run_ % 3:
                raise ValueError(run_)
            return self.cur_retry

        async def post_async(self, shared, run_, retries):
            assert self.mine == run_
            shared["retries"] = retries
            shared["params"] = self.params["i"]

    class Each(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            self.mine = shared["run"]
            return [{"i": shared["run"]}]

        async def post_async(self, shared, prep_res, exec_res):
            assert self.mine == shared["run"]

    flow = Each(First(max_retries=3))
    runs = [{"run": n} for n in range(100)]

    async def main():
        await asyncio.gather(*(flow.run_async(shared) for shared in runs))

    if is_async:
        run(main)
    else:
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(flow.run, runs))
    assert runs == [{"run": n, "retries": n % 3, "params": n} for n in range(100)]


def test_shared_is_one_object_for_all():
    class Same(Node):
        def prep(self, shared):
            shared.append(shared)

        def post(self, shared, prep_res, exec_res):
            assert all(each is shared for each in shared)

    class Four(BatchFlow):
        def prep(self, shared):
            return [{}] * 4

    shared = []
    assert Four(chain(Same(), Same())).invoke(shared) is shared
    assert len(shared) == 8


@pytest.mark.parametrize("checkpointed", [False, True])
def test_sync_hooks_of_a_run_never_run_at_the_same_time_and_exec_does(checkpointed, saver):
    at_work = threading.Lock()
    together = threading.Barrier(4, timeout=10)

    def alone(self, *_):
        assert at_work.acquire(blocking=False), "another hook is at work"
        time.sleep(0.002)
        at_work.release()

    class Mine(Node):
        prep = alone
        post = alone

        def exec(self, _):
            together.wait()

    class Four(AsyncParallelBatchFlow):
        prep = lambda self, shared: alone(self) or [{"n": n} for n in range(4)]
        post = alone

    options = {"checkpointer": saver, "run_id": "r"} if checkpointed else {}
    Four(chain(Mine(), Mine()), optimization_enabled=False).run({}, **options)


@FACES
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_sync_hook_sees_no_async_hook_change_shared(is_async, checkpointed):
    """Not even in the middle of going through it; as if both ran on one loop."""
    at_work = []

    class Mixed(AsyncNode):
        def prep(self, shared):
            at_work.append("prep")
            found = [time.sleep(0.0001) for _ in shared]
            assert at_work.pop() == "prep"
            return found

        async def exec_async(self, found):
            await asyncio.sleep(0)

        async def post_async(self, shared, prep_res, exec_res):
            assert not at_work
            shared[len(shared)] = 1
            await asyncio.sleep(0)

    class Many(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"i": i} for i in range(50)]

    shared = {}
    flow = Many(chain(Mixed(), Mixed()), optimization_enabled=False)
    options = {"checkpointer": weft.InMemorySaver(), "run_id": "r"} if checkpointed else {}
    if is_async:
        asyncio.run(flow.run_async(shared, **options))
    else:
        flow.run(shared, **options)
    assert len(shared) == 100


def test_an_async_hook_may_wait_for_another():
    class Takes(AsyncNode):
        async def prep_async(self, shared):
            return await shared.get()

    class Puts(AsyncNode):
        async def post_async(self, shared, prep_res, exec_res):
            await shared.put(1)

    class Chooses(Node):
        def post(self, shared, prep_res, exec_res):
            return self.params["action"]

    class Both(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"action": "takes"}, {"action": "puts"}]

    start = Chooses()
    start - "takes" >> Takes()
    start - "puts" >> Puts()

    async def main():
        await Both(start).run_async(asyncio.Queue())

    timed(main)


def test_hooks_of_a_sync_run_use_the_thread_of_the_caller():
    """What belongs to a thread, such as a connection to SQLite, can be made in one hook and used in another."""
    mine = threading.get_ident()

    class Here(BatchNode):
        def prep(self, shared):
            assert threading.get_ident() == mine
            return [1, 2]

        def exec(self, item):
            assert threading.get_ident() == mine

        def exec_fallback(self, item, error):
            raise error

        def post(self, shared, prep_res, exec_res):
            assert threading.get_ident() == mine

    class Runs(BatchFlow):
        def prep(self, shared):
            assert threading.get_ident() == mine
            return [{}, {}]

    Runs(Flow(Here())).run({})


def test_a_sync_hook_may_run_a_flow_of_its_own():
    class Outer(Node):
        def prep(self, shared):
            inner = {"n": shared["n"]}
            Flow(Add(10)).run(inner)
            return inner["n"]

        def post(self, shared, prep_res, exec_res):
            shared["n"] = prep_res

    class Two(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{}, {}]

    shared = {"n": 1}
    Flow(Outer()).run(shared)
    assert shared == {"n": 11}
    with nothing_left():
        Two(Outer()).run(shared)


def test_the_hooks_of_an_async_node_run_on_the_loop_of_the_caller():
    class Mine(AsyncNode):
        async def prep_async(self, shared):
            shared["loops"] = [asyncio.get_running_loop()]

        async def exec_async(self, _):
            return asyncio.get_running_loop()

        async def post_async(self, shared, prep_res, exec_res):
            shared["loops"] += [exec_res, asyncio.get_running_loop()]

    async def main():
        shared = {}
        await Flow(Mine()).run_async(shared)
        assert set(shared["loops"]) == {asyncio.get_running_loop()}

    asyncio.run(main())


# Errors


@pytest.mark.parametrize("hook", ["prep", "exec", "post"])
def test_an_error_is_the_users_own_and_names_the_node_and_its_input(hook):
    def breaks(self, *args):
        raise ValueError("mine")

    made = type("Breaks", (Add,), {hook: breaks})
    with nothing_left(), pytest.raises(ValueError, match="^mine") as caught:
        chain(Add(), made()).run({"n": 41})
    name = {"prep": "Breaks.prep", "exec": "Breaks", "post": "Breaks.post"}[hook]
    assert caught.value.__notes__[0].startswith(f"weft: raised by '{name}'(")
    assert "42" in caught.value.__notes__[0]


@pytest.mark.parametrize("cls", BATCH)
def test_an_error_names_the_item(cls):
    def exec_(item):
        if item == 3:
            raise ValueError("no")
        return item

    with nothing_left(), pytest.raises(ValueError, match="^no") as caught:
        with weft.testing.virtual_clock():
            batch(cls, [1, 2, 3], exec_).run({})
    assert [note.partition(", call")[0] for note in caught.value.__notes__] == [
        "weft: raised by 'Made'(3)",
        "weft: item 2 of 'Made'",
    ]


def test_of_several_errors_the_first_in_the_order_of_the_items_is_raised():
    def exec_(item):
        raise ValueError(item)

    made = batch(AsyncParallelBatchNode, [1, 2, 2, 2], exec_)
    with pytest.raises(ValueError) as caught:
        run(lambda: made.run_async({}))
    assert caught.value.args == (2,)
    assert "weft: item 1 of 'Made'" in caught.value.__notes__


def test_siblings_of_a_failure_are_stopped_and_waited_for():
    ended = []

    class Mine(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return [0, 1, 2]

        async def exec_async(self, item):
            try:
                await asyncio.sleep(1 if item == 1 else 1000)
                raise ValueError(item)
            finally:
                await asyncio.sleep(0.5)
                ended.append(item)

    async def main():
        with pytest.raises(ValueError):
            await Flow(Mine()).run_async({})
        assert sorted(ended) == [0, 1, 2]

    _, seconds = timed(main)
    assert seconds == 2


@pytest.mark.parametrize("where", ["prep_async", "exec_async", "post_async"])
def test_cancelling_a_run_stops_what_it_is_at(where):
    ended = []

    async def waits(self, *_):
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(where)

    made = type("Waits", (AsyncNode,), {where: waits})

    async def main():
        mine = asyncio.ensure_future(Flow(Flow(made())).run_async({}))
        await asyncio.sleep(1)
        mine.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mine
        assert ended == [where]

    timed(main)


def test_run_needs_shared():
    with pytest.raises(TypeError, match="run.. needs `shared`"):
        Add().run()


# Verbs


def test_every_verb():
    def flow():
        return chain(Add(), AsyncAdd())

    async def main():
        assert await flow().ainvoke({"n": 0}) == {"n": 2}
        assert await flow().run_async(shared={"n": 0}) is None
        assert await flow().submit({"n": 0}) == {"n": 2}
        assert [c async for c in flow().astream({"n": 0}, stream_mode="values")] == [{"n": 2}]
        assert await flow().amap([{"n": 0}, {"n": 1}]) == [{"n": 2}, {"n": 3}]

    asyncio.run(main())
    assert flow().invoke({"n": 0}) == {"n": 2}
    assert flow().run(shared={"n": 0}) is None
    assert flow().run(shared_storage={"n": 0}) is None
    assert flow().submit({"n": 0}).result() == {"n": 2}
    assert flow().map([{"n": 0}, {"n": 1}]) == [{"n": 2}, {"n": 3}]
    assert list(flow().stream({"n": 0}, stream_mode="values")) == [{"n": 2}]
    with pytest.raises(InputError, match="unknown option 'nonsense'"):
        flow().run({"n": 0}, nonsense=1)


def test_a_stream_shows_what_was_computed():
    made = batch(AsyncParallelBatchNode, [3, 1])
    shared = {"n": 0}
    chunks = list(chain(Add(), made).stream(shared))
    assert chunks == [{"Add": 1}, {"Made": 6}, {"Made": 2}, {"Flow": {"n": 1, "out": [6, 2]}}]


def test_leaving_a_stream_stops_the_run():
    class Waits(AsyncNode):
        async def exec_async(self, _):
            await asyncio.sleep(1000)

    with nothing_left():
        chunks = chain(Add(), Waits()).stream({"n": 0})
        assert next(chunks) == {"Add": 1}
        chunks.close()


def test_the_width_of_a_run_counts_exec_alone():
    at_once = most = 0

    class Counts(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return range(6)

        async def exec_async(self, item):
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(1)
            at_once -= 1

    class Twice(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{}, {}]

    _, seconds = timed(lambda: Twice(chain(Counts(), Add())).run_async({"n": 0}, max_concurrent=3))
    assert (most, seconds) == (3, 4)


# In other styles, and others in this one


def test_a_flow_is_a_part_of_every_other_style():
    inner = chain(Add(), AsyncAdd())
    assert Sequence(lambda n: {"n": n}, inner, lambda shared: shared["n"])(5) == 7
    assert (node("start")(lambda n: {"n": n}) >> inner)(5) == {"n": 7}
    found = parallel(inner, node("other")(lambda shared: shared["n"]))({"n": 1})
    assert found == {"Flow": {"n": 3}, "other": 1}
    assert weft.map(inner, [{"n": 1}, {"n": 2}]) == [{"n": 3}, {"n": 4}]


def test_branches_do_not_share_what_they_are_handed():
    class Plus(Add):
        pass

    given = {"n": 1}
    assert parallel(Add(1), Plus(10))(given) == {"Add": {"n": 2}, "Plus": {"n": 11}}
    assert given == {"n": 1}


def test_in_a_sync_body_a_flow_joins_the_run():
    seen = []

    class Ids(Node):
        def exec(self, _):
            seen.append(weft.call_id().partition("/")[0])

    @task
    def inner():
        shared = {"n": 1}
        return chain(Add(), Ids()).run(shared), shared, Add().invoke({"n": 5})

    @entrypoint()
    def main(_):
        seen.append(weft.call_id())
        return inner().result()

    assert main.invoke(0) == (None, {"n": 2}, {"n": 6})
    assert seen[0] == seen[1]


def test_in_an_async_body_a_flow_is_awaited():
    @entrypoint()
    async def main(_):
        shared = {"n": 1}
        with pytest.raises(UsageError, match=r"write `await Add\.run_async\(\.\.\.\)`"):
            Add().run(shared)
        with pytest.raises(UsageError, match=r"ainvoke"):
            Add().invoke(shared)
        await asyncio.gather(AsyncAdd().run_async(shared), Add(10).run_async({"n": 1}))
        return await AsyncAdd().ainvoke(shared)

    assert main.invoke(0) == {"n": 3}


@task
def triple(shared):
    return shared["n"] * 3


@node("merged")
async def merges(shared):
    shared["n"] = "its own copy"
    return {"n": -1, "new": True}


def test_other_things_are_nodes_that_get_shared():
    first = Add()
    first >> triple >> merges >> (lambda shared: {"last": shared["triple"]}) >> Add()
    shared = {"n": 1}
    assert Flow(first).run(shared) is None
    assert shared == {"n": 0, "triple": 6, "new": True, "last": 6}


def test_other_workflows_are_nodes():
    start = Add()
    (
        start
        >> parallel(triple, node("same")(lambda shared: shared["n"]))
        >> Sequence(triple, lambda x: x + 1, name="seq")
    )
    shared = {"n": 1}
    Flow(start).run(shared)
    assert shared == {"n": 2, "triple": 6, "same": 2, "seq": 7}
    again = Flow(triple)
    assert again.invoke({"n": 1}) == {"n": 1, "triple": 3}


def test_a_result_needs_a_shared_that_it_can_be_put_into():
    with pytest.raises(InputError, match=r"the result of 'triple' goes into `shared`.* not list"):
        Flow(task(name="triple")(lambda shared: 1)).run([])


def test_a_plain_function_before_a_node_makes_a_sequence():
    made = task(lambda n: {"n": n}) >> Add()
    assert isinstance(made, Sequence)
    assert made(1) == {"n": 2}


# Size


@pytest.mark.parametrize("kind", [Add, AsyncAdd])
def test_a_chain_of_10_000_nodes(kind):
    shared = {"n": 0}
    chain(*(kind() for _ in range(10_000))).run(shared)
    assert shared == {"n": 10_000}


def test_100_000_turns_of_a_loop():
    class Turn(AsyncNode):
        async def post_async(self, shared, prep_res, exec_res):
            shared["n"] += 1
            return "again" if shared["n"] < 100_000 else "end"

    turn = Turn()
    turn - "again" >> turn
    turn - "end" >> None
    shared = {"n": 0}
    Flow(turn).run(shared)
    assert shared == {"n": 100_000}


@FACES
def test_flows_nested_1_000_deep(is_async):
    flow = Add(action="deep")
    for _ in range(1_000):
        flow = Flow(flow)
    shared = {"n": 0}
    assert either(flow, shared, is_async=is_async) == "deep"
    assert shared == {"n": 1}


def test_10_000_items_and_10_000_runs_at_once():
    class Runs(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"i": i} for i in range(10_000)]

    class Puts(AsyncNode):
        async def exec_async(self, _):
            await asyncio.sleep(1)
            return self.params["i"]

        async def post_async(self, shared, prep_res, exec_res):
            shared["got"].append(exec_res)

    shared = {"got": []}
    _, seconds = timed(lambda: Runs(Puts(), optimization_enabled=False).run_async(shared))
    assert seconds == 1
    assert sorted(shared["got"]) == list(range(10_000))
    made = batch(AsyncParallelBatchNode, [0] * 10_000, optimization_enabled=False)
    _, seconds = timed(lambda: made.run_async(shared))
    assert seconds == 1
    assert shared["out"] == [0] * 10_000


def test_a_node_can_be_pickled():
    again = pickle.loads(pickle.dumps(chain(Add(1), Add(2))))
    assert again.invoke({"n": 0}) == {"n": 3}


def test_hooks_may_come_from_a_class_that_stands_behind_node():
    class Hooks:
        async def prep_async(self, shared):
            return 1

        async def exec_async(self, found):
            raise ValueError(found)

        async def exec_fallback_async(self, found, error):
            return found + 1

        async def post_async(self, shared, found, done):
            shared["done"] = done

    class Sync(Node, Hooks):
        pass

    shared = {}
    asyncio.run(Flow(Sync()).run_async(shared))
    assert shared == {"done": 2}


def test_hooks_that_each_node_finds_for_itself_are_not_taken_for_those_of_its_class():
    class Found(Node):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def __getattr__(self, name):
            if name == "post_async" and self.__dict__.get("value"):
                return lambda shared, found, done: shared.update(done=self.value)
            raise AttributeError(name)

    for value, expected in ((None, {}), (1, {"done": 1}), (None, {}), (2, {"done": 2})):
        shared = {}
        asyncio.run(Flow(Found(value)).run_async(shared))
        assert shared == expected
