"""Large graphs: no recursion, time and records that grow with the size, and many executions of one graph at once."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

from weft import Graph, InMemorySaver, SqliteSaver, node, router
from weft.testing import run

# Shapes


def step(name, **writes):
    async def body():
        return writes

    return node(name=name)(body)


def failing(name):
    async def body():
        raise KeyError(name)

    return node(name=name)(body)


def sleeping(name):
    async def body():
        await asyncio.sleep(1000)

    return node(name=name)(body)


def chain(size, make=step):
    made = Graph()
    for place in range(size):
        made.add_node(make(f"n{place}"), start=place == 0, end=place == size - 1)
    for place in range(size - 1):
        made.add_edge(f"n{place}", f"n{place + 1}")
    return made


def wide(size, make=step, **options):
    """A fork of one branch that does nothing, and so many others."""
    made = (
        Graph().add_node(step("s"), start=True).add_node(step("first")).add_node(step("e", end=1), end=True)
    )
    names = [f"n{place}" for place in range(size)]
    for name in names:
        made.add_node(make(name))
    made.add_parallel("s", ["first", *names], **options)
    return made.add_join(["first", *names], "e")


def nested(depth, inner, key="a{}"):
    """A graph in a graph in a graph; each writes something."""
    found = Graph(name="g0").add_node(inner, start=True, end=True)
    for level in range(1, depth):
        outer = Graph(name=f"g{level}").add_node(step("a", **{key.format(level): 1}), start=True)
        found = outer.add_node(found, end=True).add_edge("a", found)
    return found


def loop(turns, *, through_join=False):
    """Writes and state are both looked at in each turn."""
    made = Graph(max_steps=10**9, initial_state={"turns": [], "count": 0})

    @router(name="r")
    async def again(state, n=0):
        assert state["count"] == n
        if n == turns:
            return {"choice": "e"}
        return {"choices": ["a", "b"] if through_join else ["a"]}

    @node(name="a")
    async def turn(state, n=0):
        state["count"] += 1
        return {"n": n + 1}

    made.add_node(again, start=True).add_node(turn).add_node(step("b")).add_node(step("e"), end=True)
    made.add_parallel("r", ["a", "b", "e"])
    return made.add_join(["a", "b"], "r") if through_join else made.add_edge("a", "r").add_edge("b", "r")


# Size


@pytest.fixture(params=["plain", "memory", "sqlite"])
def options(request, tmp_path):
    """Of a run that may be recorded."""
    if request.param == "plain":
        yield {}
    elif request.param == "memory":
        yield {"checkpointer": InMemorySaver(), "run_id": "r"}
    else:
        with SqliteSaver(tmp_path / "runs.db") as saver:
            yield {"checkpointer": saver, "run_id": "r"}


def smaller(options, size, file_size):
    """A size at which a real file takes as long: one commit after the other."""
    return file_size if isinstance(options.get("checkpointer"), SqliteSaver) else size


def twice(make, options):
    """The result; the same from the record, if there is one."""
    found = asyncio.run(make().ainvoke({}, **options))
    if options:
        assert asyncio.run(make().ainvoke({}, **options)) == found
    return found


def test_a_long_chain(options):
    size = smaller(options, 10_000, 1_500)
    found = twice(lambda: chain(size, lambda name: step(name, **{name: 1})), options)
    assert len(found) == size


def test_a_long_chain_of_sync_nodes():
    def make(name):
        def body():
            return {name: 1}

        return node(name=name)(body)

    assert len(chain(5_000, make).invoke({})) == 5_000


def test_a_wide_fork(options):
    found = twice(lambda: wide(10_000, lambda name: step(name, **{name: 1})), options)
    assert len(found) == 10_001


def test_a_wide_fork_with_a_width_and_a_policy(options):
    fork = {"on_error": "collect", "max_concurrent": 50}
    found = twice(lambda: wide(5_000, lambda name: step(name, **{name: 1}), **fork), options)
    assert len(found) == 5_001


def test_graphs_in_graphs(options):
    found = twice(lambda: nested(1_000, step("inner", inner=1)), options)
    assert len(found) == 1_000


def test_graphs_in_graphs_that_fail_at_the_bottom():
    made = nested(1_000, failing("inner"))
    with pytest.raises(KeyError) as caught:
        run(lambda: made.ainvoke({}))
    shown = caught.traceback
    assert len(shown) < 50, "the traceback has a frame for each graph"


def test_graphs_in_graphs_that_are_out_of_time():
    made = nested(1_000, sleeping("inner"))

    async def main():
        with pytest.raises(TimeoutError):
            await made.ainvoke({}, timeout=5)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return asyncio.get_running_loop().time()

    assert run(main) == 5


@pytest.mark.parametrize("through_join", [False, True], ids=["", "join"])
def test_a_loop_of_many_turns(options, through_join):
    turns = smaller(options, 3_000 if options else 20_000, 300)
    made = loop(turns, through_join=through_join)
    assert asyncio.run(made.ainvoke({}, **options)) == {"n": turns}
    assert made.get_state() == {"turns": [], "count": turns}


@pytest.mark.slow
def test_a_loop_of_100_000_turns():
    made = loop(100_000)
    assert asyncio.run(made.ainvoke({})) == {"n": 100_000}


# Growth


def sprawling(turns):
    """A loop that leaves a branch behind in each turn, so that each fork is within all before it."""

    @router
    async def again(turn=0):
        return {"turn": turn + 1, "choices": ["again", "aside"] if turn < turns else ["aside"]}

    made = Graph(max_steps=turns + 10).add_node(step("s"), start=True).add_node(again)
    made.add_node(step("aside"), end=True)
    return made.add_router(["s"], again, ["again", "aside"], on_error="collect")


GROWING = {
    "a chain": chain,
    "a fork": wide,
    "a fork with a width": lambda size: wide(size, on_error="collect", max_concurrent=10),
    "a fork whose branches fail": lambda size: wide(size, failing, on_error="collect"),
    "a fork with a width whose branches fail": lambda size: wide(
        size, failing, on_error="collect", max_concurrent=10
    ),
    "a fork whose branches are dropped": lambda size: wide(size, sleeping, on_error="race"),
    "a fork with a width whose branches are dropped": lambda size: wide(
        size, sleeping, need=1, max_concurrent=10
    ),
    "graphs in graphs": lambda size: nested(size // 4, step("inner"), "a"),
    "a loop": loop,
    "a loop that leaves a branch behind in each turn": sprawling,
    "a loop through a join": lambda size: loop(size, through_join=True),
}


def seconds(make, size, *, is_durable):
    """Of processor time, without the collector: it would look through all that other tests have left."""
    made = make(size)
    options = {"checkpointer": InMemorySaver(), "run_id": "r"} if is_durable else {}
    gc.collect()
    gc.disable()
    try:
        begun = time.process_time()
        asyncio.run(made.ainvoke({}, **options))
        return time.process_time() - begun
    finally:
        gc.enable()


@pytest.mark.parametrize("is_durable", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("shape", GROWING)
def test_ten_times_as_many_take_about_ten_times_as_long(shape, is_durable):
    small = min(seconds(GROWING[shape], 400, is_durable=is_durable) for _ in range(3))
    large = min(seconds(GROWING[shape], 4_000, is_durable=is_durable) for _ in range(2))
    assert large < 30 * small  # a hundred times as long, if the time grew with the square


# Many executions of one graph


def mine(state, me):
    """Whether the state is this execution's alone."""
    assert set(state["seen"]) <= {me}, f"{me} sees {state}"
    state["seen"].append(me)
    state["inside"][f"{me}"] = state["inside"].get(f"{me}", 0) + 1
    assert set(state["inside"]) == {f"{me}"}


def shared():
    """A fork whose branches take the state, a loop through its join, sync and async nodes, a graph in the graph."""
    made = Graph(max_steps=100, initial_state={"seen": [], "inside": {}})

    @node
    async def begin(state, me):
        state |= {"seen": [], "inside": {}}  # else it goes on from what an execution before this one has left
        mine(state, me)
        return {"turn": 0}

    @router
    async def again(state, me, turn):
        mine(state, me)
        await asyncio.sleep(0)
        return {"choices": ["left", "right", "inner"] if turn < 3 else ["finish"]}

    @node
    async def left(state, me, turn):
        mine(state, me)
        await asyncio.sleep(0.001 * (me % 7))
        return {"turn": turn + 1, "left": me}

    @node
    def right(state, me):
        mine(state, me)
        return {"right": me}

    @node
    async def below(state, me):
        state["below"] = me
        await asyncio.sleep(0.001)
        assert state["below"] == me
        return {"below": me}

    @node
    def finish(state, me, left, right, below):
        mine(state, me)
        assert (left, right, below) == (me, me, me)
        return {"done": me}

    inner = Graph(name="inner", initial_state={"below": None}).add_node(below, start=True, end=True)
    made.add_node(begin, start=True).add_node(again).add_node(left).add_node(right).add_node(inner)
    made.add_node(finish, end=True).add_edge("begin", "again")
    made.add_parallel("again", ["left", "right", "inner", "finish"])
    return made.add_join(["left", "right", "inner"], "again")


def wanted(me):
    return {"me": me, "turn": 3, "left": me, "right": me, "below": me, "done": me}


def check_left(made):
    """The state is what one of them has left."""
    state = made.get_state()
    assert len(set(state["seen"])) == 1
    assert len(state["seen"]) == 1 + 4 + 3 * 2 + 1


@pytest.mark.parametrize("is_durable", [False, True], ids=["plain", "recorded"])
def test_100_executions_of_one_graph_at_once(is_durable):
    made, saver = shared(), InMemorySaver()

    def options(me):
        return {"checkpointer": saver, "run_id": f"r{me}"} if is_durable else {}

    async def main():
        return await asyncio.gather(*(made.ainvoke({"me": me}, **options(me)) for me in range(100)))

    assert asyncio.run(main()) == [wanted(me) for me in range(100)]
    check_left(made)


def test_100_executions_by_execute_many_and_map():
    for go in (
        lambda made, inputs: asyncio.run(made.execute_many(inputs, concurrency=100)),
        lambda made, inputs: made.map(inputs, max_concurrent=100),
    ):
        made = shared()
        assert go(made, [{"me": me} for me in range(100)]) == [wanted(me) for me in range(100)]
        check_left(made)


def test_executions_of_one_graph_in_many_threads():
    made, found = shared(), {}

    def work(numbers):
        for me in numbers:
            found[me] = made.invoke({"me": me})

    threads = [threading.Thread(target=work, args=(range(at, at + 10),)) for at in range(0, 100, 10)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == {me: wanted(me) for me in range(100)}
    check_left(made)
