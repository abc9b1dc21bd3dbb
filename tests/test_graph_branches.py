"""Pipelines beside the way of a graph: what they get, that they change nothing but the state, and resumes."""

import asyncio

import pytest
from leftovers import nothing_left

from weft import BranchError, Command, Graph, GraphError, InMemorySaver, interrupt, node, router
from weft.testing import run, sleep, virtual_clock


def line(**options):
    """start, work, end, one after the other."""

    @node(start=True)
    async def start(input):
        return {"input": input}

    @node
    async def work(input):
        return {"success": True, "rows": [1, 2]}

    @node(end=True)
    async def end(input):
        return {"finished": True}

    graph = Graph(**options)
    graph.add_node(start).add_node(work).add_node(end)
    return graph.add_edge(start, work).add_edge(work, end)


GIVEN = {"input": {}}


@pytest.mark.parametrize("waits", [True, False])
def test_it_gets_what_stands_there_and_writes_nothing(waits):
    seen = []

    @node
    async def side(rows, upstream):
        seen.append((rows, upstream))
        return {"side": True, "rows": "others"}

    graph = line().add_node(side).add_branch("work", side, wait=waits)
    result = graph.compile(strict=True).invoke(GIVEN)
    assert result == {"input": {}, "success": True, "rows": [1, 2], "finished": True}
    assert seen == [([1, 2], {"node": "work", "output": {"success": True, "rows": [1, 2]}})]
    assert graph.branch_errors == []


def test_it_goes_along_its_edges_until_there_is_none_or_a_node_says_so():
    order = []

    def step(name, **output):
        async def body(upstream):
            order.append((name, upstream["node"]))
            return output

        return node(name)(body)

    graph = line().add_node(step("one")).add_node(step("two", success=False)).add_node(step("three"))
    graph.add_edge("one", "two").add_edge("two", "three").add_branch("work", "one")
    graph.invoke(GIVEN)
    assert order == [("one", "work"), ("two", "one")]


def test_a_condition_decides_sync_or_async_by_output_and_state():
    ran = []

    def step(name):
        async def body():
            ran.append(name)
            return {}

        return node(name)(body)

    async def has_rows(output, state):
        return output["rows"] == [1, 2] and state["wanted"]

    def never(output, state):
        return 0

    graph = line(initial_state={"wanted": True}).add_node(step("taken")).add_node(step("left"))
    graph.add_branch("work", "taken", condition=has_rows).add_branch("work", "left", condition=never)
    graph.invoke(GIVEN)
    assert ran == ["taken"]
    ran.clear()
    graph.set_state({"wanted": False}).invoke(GIVEN)
    assert ran == []


def test_an_error_is_kept_and_concerns_nothing_else():
    @node
    async def explodes():
        raise RuntimeError("boom")

    def bad(output, state):
        raise LookupError("no such")

    @node
    async def never():
        return {}

    graph = line().add_node(explodes).add_node(never)
    graph.add_branch("work", explodes).add_branch("end", never, condition=bad)
    with nothing_left():
        assert graph.invoke(GIVEN)["finished"]
    first, second = graph.branch_errors
    assert isinstance(first, BranchError)
    assert (first.source, first.destination, str(first.error)) == ("work", "explodes", "boom")
    assert (second.source, second.destination, type(second.error)) == ("end", "never", LookupError)
    graph.set_state({})
    assert line().invoke(GIVEN)["finished"]


def test_errors_are_those_of_the_execution_that_ended_last():
    fails = True

    @node
    async def side():
        if fails:
            raise RuntimeError("boom")
        return {}

    graph = line().add_node(side).add_branch("work", side)
    graph.invoke(GIVEN)
    assert len(graph.branch_errors) == 1
    fails = False
    graph.invoke(GIVEN)
    assert graph.branch_errors == []


@pytest.mark.parametrize(("waits", "ended"), [(True, 5), (False, 0)])
def test_the_way_on_waits_or_does_not_and_the_execution_always_does(waits, ended):
    async def main():
        loop = asyncio.get_running_loop()
        begun, times = loop.time(), {}

        @node
        async def slow():
            await asyncio.sleep(5)
            return {}

        @node(end=True)
        async def last():
            times["last"] = loop.time() - begun
            return {}

        graph = Graph().add_node(node(dict), name="first", start=True).add_node(slow).add_node(last)
        graph.add_edge("first", last).add_branch("first", slow, wait=waits)
        await graph.execute({})
        return times["last"], loop.time() - begun

    assert run(main) == (ended, 5)


@pytest.mark.parametrize("waits", [True, False])
def test_what_it_does_to_the_state_counts(waits):
    @node
    async def notes(state):
        state["log"].append("beside")
        state["seen"] = True
        return {}

    @node
    async def works(state):
        state["log"].append("work")
        return {}

    @node(end=True)
    async def last(state):
        state["log"].append("last")
        return {}

    graph = Graph(initial_state={"log": []}).add_node(works, start=True).add_node(last).add_node(notes)
    graph.add_edge(works, last).add_branch(works, notes, wait=waits)
    graph.invoke({})
    order = ["work", "beside", "last"] if waits else ["work", "last", "beside"]
    assert graph.get_state() == {"log": order, "seen": True}


def test_in_a_loop_it_begins_each_time_and_the_loop_goes_on():
    logged = []

    @router(start=True)
    async def brain(turns=0):
        return {"turns": turns + 1, "choice": "tool" if turns < 3 else "done"}

    @node
    async def tool(turns):
        return {}

    @node
    async def log(turns, upstream):
        logged.append((turns, upstream["node"]))
        return {}

    @node(end=True)
    async def done():
        return {}

    graph = Graph().add_node(brain).add_node(tool).add_node(log).add_node(done)
    graph.add_router([tool], brain, [tool, done]).add_branch(tool, log).compile()
    assert graph.invoke({})["turns"] == 4
    assert logged == [(1, "tool"), (2, "tool"), (3, "tool")]


def test_pipelines_fork_join_and_have_others_beside_them():
    ran = []

    def step(name):
        async def body(**values):
            ran.append(name)
            return {name: True}

        return node(name)(body)

    graph = line()
    for name in ("first", "left", "right", "both", "nested"):
        graph.add_node(step(name))
    graph.add_parallel("first", ["left", "right"]).add_join(["left", "right"], "both")
    graph.add_branch("work", "first").add_branch("left", "nested")
    assert "both" not in graph.compile().invoke(GIVEN)
    assert ran[0] == "first"
    assert ran[-1] == "both"
    assert sorted(ran[1:-1]) == ["left", "nested", "right"]


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("dies", ["side", "after", "last"])
def test_a_resume_runs_nothing_again_that_was_recorded(waits, dies):
    """Killed in the pipeline, behind it, and at the end."""
    ran, alive = [], False

    def step(name, **options):
        async def body(state):
            if name == dies and not alive:
                raise KeyboardInterrupt
            ran.append(name)
            state.setdefault("log", []).append(name)
            return {name: True}

        return node(name, **options)(body)

    def made():
        graph = Graph()
        for each in (step("first", start=True), step("side"), step("after"), step("last", end=True)):
            graph.add_node(each)
        return (
            graph.add_edge("first", "last").add_branch("first", "side", wait=waits).add_edge("side", "after")
        )

    store = InMemorySaver()
    with pytest.raises(KeyboardInterrupt):
        made().invoke({}, checkpointer=store, run_id="r")
    alive = True
    graph = made()
    assert graph.invoke({}, checkpointer=store, run_id="r") == {"first": True, "last": True}
    assert sorted(ran) == ["after", "first", "last", "side"]
    assert sorted(graph.get_state()["log"]) == ["after", "first", "last", "side"]


def test_a_pipeline_can_ask():
    @node
    def asks():
        answers.append(interrupt("file it?"))
        return {}

    answers, store = [], InMemorySaver()
    graph = line().add_node(asks).add_branch("work", asks)
    asked = graph.invoke(GIVEN, checkpointer=store, thread_id="t")
    assert [question.value for question in asked["__interrupt__"]] == ["file it?"]
    assert graph.invoke(Command(resume="yes"), checkpointer=store, thread_id="t")["finished"]
    assert answers == ["yes"]


def test_a_branch_of_a_fork_that_fails_stops_what_is_beside_it():
    ended = []

    @node
    async def beside():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("stopped")
        return {}

    def step(name, seconds=0.0, fails=False, **options):
        async def body():
            await asyncio.sleep(seconds)
            if fails:
                raise ValueError(name)
            return {name: True}

        return node(name, **options)(body)

    async def main():
        graph = Graph().add_node(beside)
        for each in (
            step("s", start=True),
            step("a"),
            step("x", 1, fails=True),
            step("y"),
            step("b"),
            step("e", end=True),
        ):
            graph.add_node(each)
        graph.add_parallel("s", ["a", "b"], on_error="collect").add_parallel("a", ["x", "y"])
        graph.add_branch("y", beside).add_join(["x", "y"], "e").add_join(["b"], "e")
        return await graph.execute({})

    result = run(main)
    assert ended == ["stopped"]
    assert result["b"] is True
    assert "y" not in result


def test_what_can_never_be_a_branch_is_refused():
    graph = line()
    with pytest.raises(GraphError, match=r"add_branch\(\) names 'nowhere', which is no node"):
        graph.add_branch("work", "nowhere")
    with pytest.raises(GraphError, match="condition of a branch is a function"):
        graph.add_branch("work", "end", condition=True)


def test_without_waiting_for_real_time():
    with virtual_clock() as clock:
        graph = line()

        @node
        def side():
            sleep(30)
            return {}

        graph.add_node(side).add_branch("work", side, wait=False)
        assert graph.invoke(GIVEN)["finished"]
        assert clock.now >= 30
