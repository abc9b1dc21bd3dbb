"""What went wrong elsewhere with limits, time and failures of what runs at once. The numbers are those of the peers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter

import pytest
from leftovers import eventually, nothing_left, own_tasks, takes, within

import weft
from weft import (
    AsyncNode,
    AsyncParallelBatchFlow,
    AsyncParallelBatchNode,
    BatchNode,
    Flow,
    Graph,
    InMemorySaver,
    Limit,
    Node,
    NodeTimeoutError,
    ParallelBatchNode,
    ParallelExecutionError,
    RetryPolicy,
    StateConflictError,
    decision,
    entrypoint,
    node,
    parallel,
    router,
    task,
)
from weft.engine import events
from weft.testing import sleep


class Boom(Exception):
    pass


class Peak:
    """How many are inside at once, at most."""

    def __init__(self):
        self.lock = threading.Lock()
        self.now = self.most = self.entered = 0

    def __enter__(self):
        with self.lock:
            self.now += 1
            self.entered += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_):
        with self.lock:
            self.now -= 1


# Slots


def fails(x):
    raise Boom


def too_long(x):
    until = time.monotonic() + 10
    while time.monotonic() < until and not weft.cancelled():
        time.sleep(0.002)


async def too_long_async(x):
    await asyncio.sleep(10)


async def fails_async(x):
    raise Boom


def leaves(x):
    raise SystemExit(3)


ENDS = {
    "failure": (fails, {}),
    "async failure": (fails_async, {}),
    "timeout": (too_long, {"timeout": 0.03}),
    "async timeout": (too_long_async, {"timeout": 0.03}),
    "total": (too_long, {"total": 0.03}),
    "system exit": (leaves, {}),
    "retries": (
        fails,
        {"retry_policy": RetryPolicy(max_attempts=3, initial_interval=0, jitter=False, retry_on=Boom)},
    ),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("whose", ["limit", "run"])
def test_prefect_7752_a_slot_comes_back_however_its_call_ends(end, whose):
    """A slot was kept after a timeout, a cancellation or a crash (#8566, #9895, #7203, infrahub #9856), and later runs
    waited for it for ever."""
    body, options = ENDS[end]
    limit = Limit("one", concurrent=1)
    bad = task(name="bad", limit=limit if whose == "limit" else None, **options)(body)
    good = task(name="good", limit=limit if whose == "limit" else None)(lambda x: x)

    @entrypoint()
    def flow(x):
        found = []
        for n in range(3):
            try:
                bad(n).result()
            except BaseException as error:
                found.append(type(error))
            found.append(good(n).result())
        return found

    with nothing_left():
        options = {} if whose == "limit" else {"max_concurrent": 1}
        found = within(20, lambda: flow.invoke(1, **options))
        assert found[1::2] == [0, 1, 2]
        assert within(10, lambda: good.invoke(7)) == 7


@pytest.mark.parametrize("body", [too_long, too_long_async])
def test_prefect_8566_a_slot_comes_back_when_its_run_is_cancelled(body):
    limit = Limit("one", concurrent=1)
    begun = threading.Event()

    if body is too_long:

        def works(x):
            begun.set()
            too_long(x)
    else:

        async def works(x):
            begun.set()
            await too_long_async(x)

    held, free = task(limit=limit)(works), task(limit=limit)(lambda x: x)
    with nothing_left():
        for n in range(3):
            begun.clear()
            run, waiting = held.submit(1), None
            assert begun.wait(10)
            waiting = free.submit(n)  # in the queue behind it
            run.cancel()
            assert waiting.result(10) == n
            with pytest.raises(asyncio.CancelledError):
                run.result(10)


# Widths


async def enters(peak, x):
    with peak:
        await asyncio.sleep(1)
    return x


def widths(width, peak):
    """Every way to say how many at once, over ten."""
    ten = list(range(10))

    class InNode(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return ten

        async def exec_async(self, item):
            return await enters(peak, item)

    class InFlow(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"i": i} for i in ten]

    class Inner(AsyncNode):
        async def exec_async(self, _):
            await enters(peak, 1)

    class Threads(ParallelBatchNode):
        def prep(self, shared):
            return ten

        def exec(self, item):
            with peak:
                sleep(1)

    one = task(name="one")(lambda x: enters(peak, x))

    @task(name="limited", limit=Limit("l", concurrent=width))
    async def limited(x):
        return await enters(peak, x)

    @entrypoint()
    async def calls(_):
        return await asyncio.gather(*[one(i) for i in ten])

    @entrypoint()
    async def calls_limited(_):
        return await asyncio.gather(*[limited(i) for i in ten])

    block = {f"b{i}": node(f"b{i}")(lambda x: enters(peak, x)) for i in ten}
    in_graph = Graph().add_node(node(name="s", start=True)(dict))
    branches = [node(name=f"n{i}", end=True)(lambda x: _in_graph(peak, x)) for i in ten]
    for each in branches:
        in_graph.add_node(each)
    in_graph.add_parallel("s", branches, max_concurrent=width)
    many = Graph().add_node(node(name="only", start=True, end=True)(lambda x: _in_graph(peak, x)))
    return {
        "parallel": lambda: parallel(*block.values(), max_concurrent=width)(1),
        "map": lambda: weft.map(one, ten, max_concurrent=width),
        "map of a task": lambda: one.map(ten, max_concurrent=width),
        "fork": lambda: in_graph.invoke({"x": 1}),
        "map of a graph": lambda: many.map([{"x": x} for x in ten], max_concurrent=width),
        "batch node": lambda: InNode(max_concurrent=width).run({}),
        "batch flow": lambda: InFlow(Inner(), max_concurrent=width).run({}),
        "batch node in threads": lambda: Threads(max_concurrent=width).run({}),
        "run": lambda: calls.invoke(1, max_concurrent=width),
        "config": lambda: calls.invoke(1, {"max_concurrency": width}),
        "limit": lambda: calls_limited.invoke(1),
    }


async def _in_graph(peak, x):
    await enters(peak, x)
    return {}


@pytest.mark.parametrize("width", [1, 3, 10])
@pytest.mark.parametrize("way", widths(1, Peak()))
def test_mofa_527_a_width_that_can_be_given_is_kept(way, width):
    """There `max_parallelism` was stored and documented, and nobody read it. A width is exact: so many and no more."""
    peak = Peak()
    rounds = -(-10 // width)
    with takes(rounds):
        widths(width, peak)[way]()
    assert (peak.most, peak.entered) == (width, 10)


# Time


def test_prefect_15760_a_time_limit_on_sync_work_is_kept():
    """There work with a limit of four hours ran for nine (#15760, #18133, #10926, #18542)."""
    go, begun = threading.Event(), threading.Event()

    @task(timeout=0.05)
    def deaf(x):
        begun.set()
        go.wait(30)

    @entrypoint()
    def flow(x):
        return deaf(x).result()

    run = flow.submit(1)
    began = time.monotonic()
    with pytest.raises(NodeTimeoutError, match="'deaf'"):
        run.result(10)
    assert time.monotonic() - began < 5
    assert begun.is_set()
    assert [each.step for each in run.given_up] == ["deaf"]  # and what still works is told
    go.set()


def timeouts(held, limit):
    """Everywhere a limit of time can be put, on sync work that takes longer."""

    class InNode(Node):
        def exec(self, _):
            held()

    class InBatch(BatchNode):
        def prep(self, shared):
            return [1]

        def exec(self, _):
            held()

    class Fallback(Node):
        def exec(self, _):
            raise Boom

        def exec_fallback(self, prep_res, exc):
            held()

    def works(x):
        held()

    @router(name="way", start=True, timeout=limit)
    def way(x):
        held()

    @decision(timeout=limit)
    def decides(x):
        held()

    @entrypoint()
    def body(x):
        held()

    slow = node(name="n", start=True, end=True, timeout=limit)(works)
    choosing = Graph().add_node(way).add_node(node(name="end", end=True)(dict))
    return {
        "task": lambda: task(timeout=limit)(works).submit(1),
        "total": lambda: task(total=limit)(works).submit(1),
        "run": lambda: body.submit(1, timeout=limit),
        "node": lambda: Graph().add_node(slow).submit({"x": 1}),
        "router": lambda: choosing.submit({"x": 1}),
        "decision": lambda: (decides >> node("a")(lambda x: x)).submit(1),
        "branch": lambda: parallel(node("b", timeout=limit)(works)).submit(1),
        "block": lambda: parallel(node("b")(works), timeout=limit).submit(1),
        "exec": lambda: InNode(timeout=limit).submit({}),
        "exec of an item": lambda: InBatch(attempt_timeout=limit).submit({}),
        "all items": lambda: InBatch(timeout=limit).submit({}),
        "exec_fallback": lambda: Fallback(timeout=limit).submit({}),
        "flow": lambda: Flow(InNode(), timeout=limit).submit({}),
    }


@pytest.mark.parametrize("where", timeouts(None, 1))
def test_langgraph_8842_a_time_limit_holds_wherever_it_can_be_put(where):
    """There it was dropped for the functions that handle errors; in Prefect for sync work."""
    go = threading.Event()
    run = timeouts(lambda: go.wait(15), 0.05)[where]()
    began = time.monotonic()
    try:
        with pytest.raises((TimeoutError, ParallelExecutionError)) as caught:
            run.result(30)
        assert time.monotonic() - began < 8
        assert isinstance(caught.value, TimeoutError) or isinstance(caught.value.__cause__, TimeoutError)
        assert len(run.given_up) == 1
    finally:
        go.set()


# Failures


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("saved", [True, False])
def test_pocketflow_fd5817f_each_parallel_item_has_attempts_of_its_own(is_async, saved):
    """There one counter was shared by all items: after the first had failed, the second had one attempt of three."""
    attempts = Counter()
    lock = threading.Lock()

    def fails_twice(item):
        with lock:
            attempts[item] += 1
            if attempts[item] < 3:
                raise Boom(item)
        return item * 10

    class Async(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return [1, 2, 3, 4]

        async def exec_async(self, item):
            await asyncio.sleep(0)
            return fails_twice(item)

        async def post_async(self, shared, prep_res, exec_res):
            shared["out"] = exec_res

    class Sync(ParallelBatchNode):
        def prep(self, shared):
            return [1, 2, 3, 4]

        def exec(self, item):
            return fails_twice(item)

        def post(self, shared, prep_res, exec_res):
            shared["out"] = exec_res

    shared = {}
    options = {"checkpointer": InMemorySaver(), "run_id": "r"} if saved else {}
    (Async if is_async else Sync)(max_retries=3).run(shared, **options)
    assert shared["out"] == [10, 20, 30, 40]
    assert attempts == {1: 3, 2: 3, 3: 3, 4: 3}


def blocks(effects, siblings):
    """A first branch that fails once the others have begun, in every style; those would note it if they went on."""

    async def goes_on(n):
        siblings[n].set()
        try:
            await asyncio.sleep(0.2)
        finally:
            effects.append(f"end {n}")
        effects.append(f"effect {n}")

    async def breaks():
        while not all(each.is_set() for each in siblings.values()):
            await asyncio.sleep(0.001)
        raise Boom

    async def item(n):
        await (goes_on(n) if n else breaks())
        return {}

    class Batch(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return [0, 1, 2]

        async def exec_async(self, n):
            return await item(n)

    @task
    async def one(n):
        return await item(n)

    @entrypoint()
    async def calls(_):
        await asyncio.gather(*[one(n) for n in range(3)])

    graph = Graph().add_node(node(name="s", start=True)(dict))
    nodes = [node(name=f"n{n}", end=True)(_bound(item, n)) for n in range(3)]
    for each in nodes:
        graph.add_node(each)
    graph.add_parallel("s", nodes)
    return {
        "parallel": lambda: parallel(
            *[node(f"b{n}")(_bound_to(item, n)) for n in range(3)], optimization_enabled=False
        )(1),
        "map": lambda: weft.map(one, [0, 1, 2], max_concurrent=3),
        "batch": lambda: Batch().run({}),
        "graph": lambda: graph.invoke({"x": 1}),
        "functional": lambda: calls.invoke(1),
    }


def _bound(fn, n):
    async def body(x):
        return await fn(n)

    return body


def _bound_to(fn, n):
    async def body(value):
        return await fn(n)

    return body


@pytest.mark.parametrize("style", blocks([], {}))
def test_pocketflow_0_0_3_when_a_failure_is_seen_nothing_goes_on(style):
    """There, and in GraphAI 0.0.12, the first failure returned while the others went on with their side effects."""
    effects, siblings = [], {1: threading.Event(), 2: threading.Event()}
    with nothing_left():
        with pytest.raises((Boom, ParallelExecutionError)):
            within(10, blocks(effects, siblings)[style])
        assert sorted(effects) == ["end 1", "end 2"]
    time.sleep(0.25)  # for longer than they would have taken
    assert sorted(effects) == ["end 1", "end 2"]


@pytest.mark.parametrize("way", ["map", "stream", "batch"])
def test_graphai_0_0_12_of_five_thousand_items_so_many_are_in_flight_as_was_said(way):
    """There, and in PocketFlow, five thousand items were five thousand calls in flight."""
    peak = Peak()

    @task
    async def one(x):
        with peak:
            await asyncio.sleep(0)
        return x

    class Batch(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return range(5_000)

        async def exec_async(self, x):
            with peak:
                await asyncio.sleep(0)
            return x

        async def post_async(self, shared, prep_res, exec_res):
            shared["out"] = exec_res

    if way == "map":
        found = weft.map(one, range(5_000), max_concurrent=8)
    elif way == "stream":
        found = list(weft.map(one, max_concurrent=8).stream(range(5_000)))
    else:
        shared = {}
        Batch(max_concurrent=8).run(shared)
        found = shared["out"]
    assert list(found) == list(range(5_000))
    assert peak.most == 8


def two_writers(**options):
    async def adds(state):
        state["n"] = state["n"] + 1
        await asyncio.sleep(0)
        return {}

    graph = Graph(initial_state={"n": 0}, **options).add_node(node(name="s", start=True)(dict))
    for name in ("a", "b"):
        graph.add_node(node(name=name, end=True)(adds))
    return graph.add_parallel("s", ["a", "b"])


def test_graphai_0_0_12_two_increments_at_once_make_two_or_are_told():
    """There two branches that each added one made one of it, silently; so did the same key of two results."""
    graph = two_writers(state_reducers={"n": lambda at_fork, merged, mine: merged + mine - at_fork})
    graph.invoke({})
    assert graph.get_state() == {"n": 2}

    async def told():
        run = two_writers().submit({})
        await run
        return [event async for event in run.aevents() if isinstance(event, events.StateConflict)]

    (conflict,) = asyncio.run(told())
    assert conflict.path == ("n",)
    with pytest.raises(StateConflictError, match="'n'"):
        two_writers(on_state_conflict="error").invoke({})


def test_graphai_0_0_12_runs_at_once_do_not_see_each_others_state():
    """There the runs of one graph shared one state. Here it lasts from one execution to the next, and no longer: what
    runs at once has a copy each."""

    async def fills(state, x):
        state["mine"] = x
        await asyncio.sleep(0.001)
        return {"found": state["mine"], "all": sorted(state)}

    graph = Graph().add_node(node(name="only", start=True, end=True)(fills))
    found = asyncio.run(graph.execute_many([{"x": x} for x in range(50)], concurrency=50))
    assert [each["found"] for each in found] == list(range(50))
    assert {tuple(each["all"]) for each in found} == {("mine",)}


def test_langgraph_1_2_22_a_sync_sibling_is_told_and_a_failure_shows_at_once():
    """There a failure was shown when the sync branch beside it had ended by itself, 1.5 s later."""
    begun, told = threading.Event(), []

    def listens(x):
        begun.set()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if weft.cancelled():
                told.append(x)
                return
            time.sleep(0.002)

    def breaks(x):
        begun.wait(10)
        raise Boom

    began = time.monotonic()
    with nothing_left(), pytest.raises(ParallelExecutionError):
        parallel(node("a")(listens), node("b")(breaks), optimization_enabled=False)(1)
    assert time.monotonic() - began < 1
    assert told == [1]


def test_langgraph_1_2_22_nor_does_one_that_does_not_listen_hold_it_up():
    go, begun = threading.Event(), threading.Event()

    def deaf(x):
        begun.set()
        go.wait(30)

    def breaks(x):
        begun.wait(10)
        raise Boom

    run = parallel(node("a")(deaf), node("b")(breaks), optimization_enabled=False).submit(1, grace=0.05)
    began = time.monotonic()
    with pytest.raises(ParallelExecutionError):
        run.result(20)
    assert time.monotonic() - began < 5
    assert [each.step for each in run.given_up] == ["a"]
    go.set()


def test_langgraph_6167_no_task_that_waits_is_left_on_the_loop():
    """There a task that waited for others was left behind on the caller's loop."""

    @task
    async def one(n):
        await asyncio.sleep(0 if n else 30)
        return n

    @entrypoint(checkpointer=InMemorySaver())
    async def flow(how):
        calls = [one(n) for n in range(3)]
        if how == "fails":
            raise Boom
        return await asyncio.gather(*calls)

    async def main():
        with pytest.raises(Boom):
            await flow.ainvoke("fails", thread_id="b")
        with pytest.raises(TimeoutError):
            await flow.ainvoke("waits", thread_id="c", timeout=0.02)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flow.ainvoke("waits", thread_id="d"), 0.02)
        async with contextlib.aclosing(flow.astream("waits", thread_id="e")) as stream:
            async for _ in stream:
                break
        return asyncio.all_tasks() - {asyncio.current_task()}

    before = own_tasks()
    assert asyncio.run(main()) == set()
    eventually(lambda: own_tasks() <= before)
