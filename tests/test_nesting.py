"""Every style in every style: what is handed over, what comes back, and that it is one run, whatever is in what."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

import pytest
from killing import Mortal, seeded
from leftovers import nothing_left, within
from nesting import recorded

import weft
from weft import (
    AsyncNode,
    AsyncParallelBatchNode,
    BatchFlow,
    Command,
    Flow,
    Graph,
    InMemorySaver,
    InputError,
    Node,
    NodeTimeoutError,
    ParallelBatchFlow,
    ParallelBatchNode,
    ParallelExecutionError,
    ParallelTimeoutError,
    Sequence,
    SqliteSaver,
    StoreError,
    decision,
    entrypoint,
    interrupt,
    node,
    parallel,
    pipeline,
    race,
    router,
    task,
)
from weft.testing import run, sleep, virtual_clock

GIVEN = {"n": 3}


class World:
    """What the effects of a workflow are written to; it outlives the lives of a run."""

    def __init__(self):
        self.ran = Counter()
        self.ids = {}
        self.durable = set()
        self.does = lambda name, value: value

    def effect(self, name, value):
        mine = weft.call_id()
        assert mine not in self.durable, f"{name} runs again, though its outcome was recorded"
        self.ids.setdefault(name, set()).add(mine)
        self.ran[name] += 1
        return self.does(name, value)


class Refuses(InMemorySaver):
    """Nothing may use it."""

    def open_many(self, requests):
        raise AssertionError("an inner checkpointer was used")


# What is nested: made new for each run, takes {"n": 3}, does one effect named "e"


def a_task(world):
    @task
    def triple(n: int):
        return world.effect("e", 3 * n)

    return triple


def an_async_task(world):
    @task
    async def triple(n: int):
        return world.effect("e", 3 * n)

    return triple


def a_node(world):
    @node
    def more(n: int):
        return world.effect("e", {"m": n + 1})

    return more


def an_async_node(world):
    @node("renamed")
    async def more(n: int):
        return world.effect("e", {"m": n + 1})

    return more


def a_function(world):
    def plain(n: int):
        return world.effect("e", {"m": n + 1})

    return plain


def an_entrypoint(world):
    @entrypoint(checkpointer=Refuses())
    def program(given):
        return [a_task(world)(given["n"]).result()]

    return program


def an_async_entrypoint(world):
    @entrypoint(checkpointer=Refuses())
    async def program(given):
        return await asyncio.gather(an_async_task(world)(given["n"]))

    return program


def a_parallel(world):
    return parallel(a_task(world), one, name="both")


def one(given):
    return 1


def a_race(world):
    return race(an_async_task(world))


def a_sequence(world):
    return Sequence(a_task(world), lambda n: n + 1, name="steps")


def a_decision(world):
    @decision(branches={"a": a_task(world), "b": len})
    def choose(given):
        return "a"

    return Sequence(choose, name="chosen")


def a_map(world):
    return Sequence(lambda given: [given["n"]], weft.map(a_task(world)), name="mapped")


def a_pipeline(world):
    stages = pipeline(None, a_task(world), lambda n: n + 1, max_concurrent=1, name="staged")
    return Sequence(lambda given: [given["n"]], stages)


def a_graph(world):
    @node(start=True)
    def first(n):
        return {"m": world.effect("e", n + 1)}

    @node
    def left(m):
        return {"left": m}

    @node
    def right(state):
        state["right"] += 1
        return {"right": state["right"]}

    @node(end=True)
    def last(left, right):
        return {"sum": left + right}

    graph = Graph(name="forked", initial_state={"right": 0}, checkpointer=Refuses())
    graph.add_node(first).add_node(left).add_node(right).add_node(last)
    return graph.add_parallel(first, [left, right]).add_join([left, right], last)


def a_loop(world):
    @router(start=True)
    def around(n, rounds=0):
        return {"rounds": rounds + 1, "choice": "around" if rounds < 2 else "done"}

    @node(end=True)
    def done(rounds):
        return {"done": world.effect("e", rounds)}

    graph = Graph(name="loop").add_node(around).add_node(done)
    return graph.add_router([], around, [around, done])


class Hooks:
    def prep(self, shared):
        return shared["n"]

    def post(self, shared, prep_res, exec_res):
        shared["out"] = exec_res


class AsyncHooks:
    async def prep_async(self, shared):
        return shared["n"]

    async def post_async(self, shared, prep_res, exec_res):
        shared["out"] = exec_res


def batch_class(world, *bases, items=False):
    def exec_(self, n):
        return world.effect("e", n + 1)

    async def exec_async(self, n):
        return world.effect("e", n + 1)

    hooks = {"exec_async": exec_async} if AsyncHooks in bases else {"exec": exec_}
    if items:
        hooks["prep"] = lambda self, shared: [shared["n"]]
    return type("Works", bases, hooks)()


def a_batch_node(world):
    return batch_class(world, Hooks, Node)


def an_async_batch_node(world):
    return batch_class(world, AsyncHooks, AsyncNode)


def a_node_of_items(world):
    return batch_class(world, Hooks, ParallelBatchNode, items=True)


def a_flow(world):
    return Flow(batch_class(world, Hooks, Node), checkpointer=Refuses())


def a_flow_of_tasks(world):
    return type("Program", (Flow,), {})(a_task(world))


def a_batch_flow(world):
    class Puts(Node):
        def exec(self, _):
            return world.effect("e", self.params["i"])

        def post(self, shared, prep_res, exec_res):
            shared["put"] = exec_res

    class Runs(ParallelBatchFlow):
        def prep(self, shared):
            return [{"i": shared["n"]}]

    return Runs(Puts())


FORKED = {"m": 4, "left": 4, "right": 1, "sum": 5}

#: What is nested, its name, what it makes of GIVEN, and whether that is merged into what is there.
INNER = {
    "task": (a_task, "triple", 9),
    "async task": (an_async_task, "triple", 9),
    "node": (a_node, "more", {"m": 4}),
    "async node": (an_async_node, "renamed", {"m": 4}),
    "function": (a_function, "plain", {"m": 4}),
    "entrypoint": (an_entrypoint, "program", [9]),
    "async entrypoint": (an_async_entrypoint, "program", [9]),
    "parallel": (a_parallel, "both", {"triple": 9, "one": 1}),
    "race": (a_race, "race", 9),
    "sequence": (a_sequence, "steps", 10),
    "decision": (a_decision, "chosen", 9),
    "map": (a_map, "mapped", [9]),
    "pipeline": (a_pipeline, "staged", [10]),
    "graph": (a_graph, "forked", {**GIVEN, **FORKED}),
    "loop": (a_loop, "loop", {**GIVEN, "rounds": 3, "done": 3}),
    "batch node": (a_batch_node, "Works", {**GIVEN, "out": 4}),
    "async batch node": (an_async_batch_node, "Works", {**GIVEN, "out": 4}),
    "node of items": (a_node_of_items, "Works", {**GIVEN, "out": [4]}),
    "flow": (a_flow, "Flow", {**GIVEN, "out": 4}),
    "flow of tasks": (a_flow_of_tasks, "Program", {**GIVEN, "triple": 9}),
    "batch flow": (a_batch_flow, "Runs", {**GIVEN, "put": 3}),
}


# What they are nested in: given the part, the workflow; given its name and value, the result


def verbs_of(part):
    """A function in a body is what `Sequence` makes of it."""
    return part if hasattr(part, "invoke") else Sequence(part, name="of a function")


def sync_body(make):
    def nest(part):
        part = verbs_of(part)

        @make
        def outer(given):
            return ["in", part.invoke(dict(given))]

        return outer

    return nest


def async_body(make):
    def nest(part):
        part = verbs_of(part)

        @make
        async def outer(given):
            return ["in", await part.ainvoke(dict(given))]

        return outer

    return nest


def futures(part):
    part = verbs_of(part)

    @task
    def inside(given):
        return part.invoke(given)

    @entrypoint()
    def outer(given):
        return ["in", inside(dict(given)).result()]

    return outer


def gathered(part):
    part = verbs_of(part)

    @entrypoint()
    async def outer(given):
        return ["in", *await asyncio.gather(part.ainvoke(dict(given)))]

    return outer


def streamed(part):
    part = verbs_of(part)

    @entrypoint()
    async def outer(given):
        [chunk] = [chunk async for chunk in part.astream(dict(given), stream_mode="updates")]
        return ["in", *chunk.values()]

    return outer


def chosen(part):
    @decision(branches={"it": part})
    def choose(given):
        return "it"

    return Sequence(choose)


def jumped_to(part):
    @decision
    def choose(given):
        return "there"

    return Sequence(choose, lambda given: 1 / 0, Sequence(part, name="there"))


def graph_of(part):
    return (
        Graph().add_node(node(start=True)(begin)).add_node(part, name="it", end=True).add_edge("begin", "it")
    )


def begin():
    return {"begun": 1}


def fork_of(part):
    graph = Graph(name="outer").add_node(node(start=True)(begin)).add_node(part, name="it")
    graph.add_node(node(name="other")(lambda n: {"other": n})).add_node(node(end=True)(finish))
    return graph.add_parallel("begin", ["it", "other"]).add_join(["it", "other"], "finish")


def finish(other):
    return {"finished": other}


def written(name, value):
    """What a node of a graph has given."""
    return {**GIVEN, **(value if isinstance(value, Mapping) else {"it": value})}


def flow_of(part):
    return Flow(part)


def flow_behind(part):
    class First(Node):
        pass

    first = First()
    first >> part
    return Flow(first)


def in_shared(name, value):
    return {**GIVEN, **(value if isinstance(value, Mapping) else {name: value})}


def exec_of(part):
    part = verbs_of(part)

    class Calls(Node):
        def prep(self, shared):
            return dict(shared)

        def exec(self, given):
            return part.invoke(given)

        def post(self, shared, prep_res, exec_res):
            shared["found"] = exec_res

    return Calls()


def async_exec_of(part):
    part = verbs_of(part)

    class Calls(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return [dict(shared)]

        async def exec_async(self, given):
            return await part.ainvoke(given)

        async def post_async(self, shared, prep_res, exec_res):
            shared["found"] = exec_res[0]

    return Flow(Calls())


def batch_flow_of(part):
    class Once(BatchFlow):
        def prep(self, shared):
            return [{}]

    return Once(part)


def found(name, value):
    return {**GIVEN, "found": value}


def itself(name, value):
    return value


def inside(name, value):
    return ["in", value]


#: What nests it, the result for its name and its value, and what it is given.
OUTER = {
    "sync task": (sync_body(task), inside, [GIVEN]),
    "async task": (async_body(task), inside, [GIVEN]),
    "sync entrypoint": (sync_body(entrypoint()), inside, GIVEN),
    "async entrypoint": (async_body(entrypoint()), inside, GIVEN),
    "sync node": (sync_body(node), inside, GIVEN),
    "async node": (async_body(node), inside, GIVEN),
    "a future of a task": (futures, inside, GIVEN),
    "gather": (gathered, inside, GIVEN),
    "stream": (streamed, inside, GIVEN),
    "parallel": (lambda part: parallel(part, name="outer"), lambda name, value: {name: value}, GIVEN),
    "race": (lambda part: race(part, name="outer"), itself, GIVEN),
    "sequence": (
        lambda part: Sequence(part, lambda value: [value], name="outer"),
        lambda _, value: [value],
        GIVEN,
    ),
    "later in a sequence": (lambda part: Sequence(dict, part, name="outer"), itself, GIVEN),
    "decision": (chosen, itself, GIVEN),
    "jump": (jumped_to, itself, GIVEN),
    "map": (lambda part: weft.map(part, name="outer"), lambda _, value: [value], [GIVEN]),
    "pipeline": (lambda part: pipeline(None, dict, part, name="outer"), lambda _, value: [value], [GIVEN]),
    "graph": (graph_of, lambda name, value: {"begun": 1, **written(name, value)}, GIVEN),
    "fork": (
        fork_of,
        lambda name, value: {"begun": 1, "other": 3, "finished": 3, **written(name, value)},
        GIVEN,
    ),
    "flow": (flow_of, in_shared, GIVEN),
    "later in a flow": (flow_behind, in_shared, GIVEN),
    "exec": (exec_of, found, GIVEN),
    "exec of an item": (async_exec_of, found, GIVEN),
    "batch flow": (batch_flow_of, in_shared, GIVEN),
}

EVERY_OUTER = pytest.mark.parametrize("outer", OUTER)
EVERY_INNER = pytest.mark.parametrize("inner", INNER)


def with_each(test):
    """The test for everything that can be nested, one after the other: thousands of tests would take their time."""

    @functools.wraps(test)
    def tested(outer):
        for inner in INNER:
            try:
                test(outer, inner)
            except BaseException as error:
                error.add_note(f"{inner} in {outer}")
                raise

    del tested.__wrapped__  # whose parameters are others
    return EVERY_OUTER(tested)


FACES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def nested(outer, inner, world):
    """The workflow, what it is given, and what it gives."""
    nest, result, given = OUTER[outer]
    make, name, value = INNER[inner]
    if "task" in outer and isinstance(given, list):
        given = GIVEN
    return nest(make(world)), fresh(given), result(name, value)


def fresh(given):
    """What a flow works on is that of its caller."""
    return [dict(each) for each in given] if isinstance(given, list) else dict(given)


def use(workflow, given, *, is_async, **options):
    if not is_async:
        return workflow.invoke(given, **options)

    async def main():
        try:
            return await workflow.ainvoke(given, **options)
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(main())


@with_each
def test_what_it_is_given_and_what_it_gives(outer, inner):
    for is_async in (False, True):
        world = World()
        workflow, given, expected = nested(outer, inner, world)
        assert within(20, lambda: use(workflow, given, is_async=is_async)) == expected
        assert world.ran == {"e": 1}


@EVERY_INNER
@FACES
def test_nothing_is_left_at_work(inner, is_async):
    with nothing_left():
        for outer in OUTER:
            workflow, given, expected = nested(outer, inner, World())
            assert within(20, lambda: use(workflow, given, is_async=is_async)) == expected  # noqa: B023


@with_each
def test_a_life_of_one_commit_each(outer, inner):
    """Each life has new objects. What is recorded never runs again, under one call id; no inner journal is touched."""
    world, saver = World(), Mortal()
    for life in range(60):
        saver.left = 1
        if saver.find("r"):
            world.durable |= recorded(saver)
        workflow, given, expected = nested(outer, inner, world)
        with suppress(StoreError):
            found = within(
                20, lambda: use(workflow, given, is_async=life % 2, checkpointer=saver, run_id="r")
            )  # noqa: B023
            break
    else:
        raise AssertionError("it does not come to an end")
    assert found == expected
    assert len(world.ids["e"]) == 1
    ran = Counter(world.ran)
    workflow, given, expected = nested(outer, inner, world)
    saver.left = 10
    assert use(workflow, given, is_async=False, checkpointer=saver, run_id="r") == expected
    assert world.ran == ran
    assert [row.run_id for row in saver.runs()] == ["r"]


# Of one run


@pytest.mark.parametrize("inner", [*INNER])
@pytest.mark.parametrize("make", [task, entrypoint(), node], ids=["task", "entrypoint", "node"])
def test_a_run_id_inside_is_refused_and_a_checkpointer_and_thread_inside_are_ignored(inner, make):
    part = verbs_of(INNER[inner][0](World()))

    @make
    def outer(given):
        part.invoke(dict(given), checkpointer=Refuses(), thread_id="t", durability="exit")
        return part.invoke(dict(given), run_id="mine")

    @make
    async def async_outer(given):
        await part.ainvoke(dict(given), checkpointer=Refuses(), thread_id="t")
        return await part.ainvoke(dict(given), run_id="mine")

    for each in (outer, async_outer):
        with pytest.raises(InputError, match="joins the run that it is called in, which has its own run_id"):
            each.invoke(dict(GIVEN))


@with_each
def test_a_deadline_round_it_is_inherited(outer, inner):
    """What it waits for is left when the time of what is round it is over, in whatever it is."""
    world, left = World(), []
    world.does = lambda name, value: left.append(weft.remaining()) or value
    workflow, given, expected = nested(outer, inner, world)
    with virtual_clock():
        assert workflow.invoke(given, timeout=50) == expected
    assert left == [50]


class Slow(World):
    """Its effect takes longer than anybody waits."""

    async def wait(self):
        self.began = asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(1000)
        finally:
            self.ended = asyncio.get_running_loop().time()


def slow_task(world):
    @task
    async def triple(n: int):
        await world.wait()

    return triple


SLOW = {
    "task": slow_task,
    "graph": lambda world: Graph().add_node(slow_task(world), start=True, end=True),
    "flow": lambda world: Flow(slow_task(world)),
    "parallel": lambda world: parallel(slow_task(world)),
    "sequence": lambda world: Sequence(slow_task(world), name="s"),
    "map": lambda world: Sequence(lambda given: [given], weft.map(slow_task(world)), name="m"),
}


@EVERY_OUTER
@pytest.mark.parametrize("inner", SLOW)
def test_it_is_stopped_at_the_deadline_and_waited_for(outer, inner):
    world = Slow()
    workflow = OUTER[outer][0](SLOW[inner](world))
    given = GIVEN if "task" in outer else fresh(OUTER[outer][2])
    with virtual_clock() as clock, nothing_left(), pytest.raises((NodeTimeoutError, ParallelTimeoutError)):
        workflow.invoke(given, timeout=5)
    assert (world.began, world.ended, clock.now) == (0, 5, 5)


# Errors


class Boom(Exception):
    pass


@with_each
def test_an_error_names_the_call_and_every_block_that_it_went_through(outer, inner):
    for is_async in (False, True):
        check_error(outer, inner, is_async)


def check_error(outer, inner, is_async):
    world = World()

    def fails(name, value):
        raise Boom(name)

    world.does = fails
    workflow, given, _ = nested(outer, inner, world)
    with pytest.raises((Boom, ParallelExecutionError)) as caught:
        use(workflow, given, is_async=is_async)
    error, blocks = caught.value, []
    while isinstance(error, ParallelExecutionError):
        blocks.append(str(error))
        assert error.failures == {error.branch: error.__cause__}
        [error] = error.exceptions
    assert type(error) is Boom
    assert len(blocks) == BLOCKS_ROUND.get(outer, 0) + BLOCKS_IN.get(inner, 0)
    for text in blocks:
        assert "Boom: e" in text, "what is at the bottom is told at the top"
    [note] = [note for note in error.__notes__ if note.startswith("weft: raised by")]
    assert ", call " in note


#: How many blocks there are to pass an error on.
BLOCKS_ROUND = {"parallel": 1, "race": 1, "map": 1, "pipeline": 1}
BLOCKS_IN = {"parallel": 1, "race": 1, "map": 1, "pipeline": 1}


# Questions


def asks(name):
    @task(name=name)
    def ask(given):
        first = interrupt(f"{name} 1")
        return [first, interrupt(f"{name} 2")] if name.endswith("twice") else first

    return ask


def deep(part):
    """A task in a node of a graph in a flow in a parallel in a map."""

    @node(start=True, end=True)
    async def stands(n):
        return {"answer": await part(n)}

    return Graph(name=f"graph of {part.name if hasattr(part, 'name') else part.key}").add_node(stands)


class Asked(Flow):
    pass


def questions(*names):
    made = [type(f"Flow{n}", (Flow,), {})(deep(asks(name))) for n, name in enumerate(names)]
    return Sequence(lambda given: [given], weft.map(parallel(*made)), name="program")


def answers_of(given):
    return {flow: found["answer"] for flow, found in given[0].items()}


@pytest.mark.parametrize("order", ["one by one", "the other way round", "together"])
@FACES
def test_questions_deep_inside_two_at_a_time(order, is_async, tmp_path):
    """Each life has new objects and a new connection."""

    def life(given):
        with SqliteSaver(tmp_path / "runs.db") as saver:
            return use(questions("left", "right"), given, is_async=is_async, checkpointer=saver, run_id="r")

    asked = life({"n": 1})["__interrupt__"]
    assert sorted(each.value for each in asked) == ["left 1", "right 1"]
    ids = {each.value.split()[0]: each.id for each in asked}
    assert len({*ids.values()}) == 2
    if order == "together":
        found = life(Command(resume={asked: name.upper() for name, asked in ids.items()}))
    else:
        first, second = ["left", "right"] if order == "one by one" else ["right", "left"]
        [still] = life(Command(resume={ids[first]: first.upper()}))["__interrupt__"]
        assert still.id == ids[second]
        found = life(Command(resume=second.upper()))
    assert answers_of(found) == {"Flow0": "LEFT", "Flow1": "RIGHT"}


NAMES = [f"q{n} twice" if n % 2 else f"q{n}" for n in range(10)]


def test_ten_branches_half_of_which_ask_twice_answered_in_any_order():
    rng = seeded("questions in any order")
    for _ in range(5):
        saver, given, seen = InMemorySaver(), {"n": 1}, []
        while True:
            found = run(lambda: questions(*NAMES).ainvoke(given, checkpointer=saver, run_id="r"))  # noqa: B023
            if not (isinstance(found, dict) and "__interrupt__" in found):
                break
            open_now = found["__interrupt__"]
            some = rng.sample([*open_now], rng.randint(1, len(open_now)))
            seen += [each.id for each in some]
            given = Command(resume={each.id: f"{each.value}!" for each in some})
        assert len(seen) == len({*seen}) == 15
        wanted = {
            f"Flow{n}": [f"{name} 1!", f"{name} 2!"] if n % 2 else f"{name} 1!"
            for n, name in enumerate(NAMES)
        }
        assert answers_of(found) == wanted


@with_each
def test_a_question_inside_is_answered_by_another_process(outer, inner):
    """The one who asks goes on with the answer; what was done before is not done again."""
    world, saver = World(), InMemorySaver()
    world.does = lambda name, value: value if interrupt("may I?") == "yes" else None
    workflow, given, expected = nested(outer, inner, world)
    found = within(20, lambda: use(workflow, given, is_async=False, checkpointer=saver, run_id="r"))
    [question] = found["__interrupt__"]
    assert question.value == "may I?"
    workflow, _, _ = nested(outer, inner, world)
    found = within(
        20, lambda: use(workflow, Command(resume="yes"), is_async=True, checkpointer=saver, run_id="r")
    )
    assert found == expected
    assert len(world.ids["e"]) == 1


# What stays what it was


def test_what_a_flow_in_a_graph_only_passes_on_was_not_written_by_it():
    """On a resume the values are others than before, since they were read from the journal; that is no change.

    1. `n` is there before the fork. One branch writes it anew, the other runs two flows, which pass it on.
    2. The run dies after the first flow; on the resume that one is recorded.
    3. The second flow is completed last. What counts is what the branch of the other has written.
    """
    is_down = True

    class Adds(AsyncNode):
        async def exec_async(self, _):
            await asyncio.sleep(1)

        async def post_async(self, shared, prep_res, exec_res):
            shared["a"] = 1

    class Breaks(Adds):
        async def exec_async(self, _):
            await asyncio.sleep(3)
            if is_down:
                raise Boom

    def graph():
        flows = Sequence(Flow(Adds()), Flow(Breaks()), name="flows")
        made = Graph().add_node(node(name="first", start=True)(lambda: {"n": ["old", 1000]}))
        made.add_node(flows).add_node(node(name="anew")(lambda n: {"n": ["new", 2000]}))
        made.add_node(node(name="last", end=True)(lambda n: {"found": n}))
        return made.add_parallel("first", ["flows", "anew"]).add_join(["flows", "anew"], "last")

    saver = InMemorySaver()
    with pytest.raises(Boom):
        run(lambda: graph().ainvoke({}, checkpointer=saver, run_id="r"))
    is_down = False
    assert run(lambda: graph().ainvoke({}))["found"] == ["new", 2000]
    assert run(lambda: graph().ainvoke({}, checkpointer=saver, run_id="r"))["found"] == ["new", 2000]


@pytest.mark.parametrize("way", ["direct", "task", "parallel", "sequence", "map", "flow", "graph"])
def test_the_state_of_a_graph_that_runs_twice_is_there_after_a_crash_between(way):
    """Its first execution is in something that is recorded as a whole, so on the resume nobody asks for it."""
    is_down = True

    def program():
        @node(start=True, end=True)
        def stands(state):
            state["history"].append("x")
            return {"count": len(state["history"])}

        graph = Graph(name="graph", initial_state={"history": []}).add_node(stands)

        @task
        def once(given):
            return graph.invoke(given)["count"]

        @task
        def check():
            if is_down:
                raise Boom

        ways = {
            "direct": lambda given: graph.invoke(given)["count"],
            "task": lambda given: once(given).result(),
            "parallel": lambda given: parallel(graph)(given)["graph"]["count"],
            "sequence": lambda given: Sequence(graph, name="s")(given)["count"],
            "map": lambda given: weft.map(graph, [given])[0]["count"],
            "flow": lambda given: parallel(Flow(graph))(given)["Flow"]["count"],
            "graph": lambda given: (
                Graph(name="o").add_node(graph, start=True, end=True).invoke(given)["count"]
            ),
        }

        @entrypoint()
        def body(_):
            first = ways[way]({"i": 1})
            check().result()
            return first, ways[way]({"i": 2})

        return body

    saver = InMemorySaver()
    with pytest.raises(Boom):
        program().invoke(0, checkpointer=saver, run_id="r")
    is_down = False
    assert program().invoke(0) == (1, 2)
    assert program().invoke(0, checkpointer=saver, run_id="r") == (1, 2)


@pytest.mark.parametrize(
    "stage", ["graph", "flow", "batch node", "parallel", "sequence", "map", "entrypoint"]
)
def test_every_kind_can_be_a_stage_of_a_pipeline_with_a_width(stage):
    world = World()
    make, _, value = INNER[stage]
    second = {**value, "right": 2, "sum": 6} if stage == "graph" else value  # the state lasts
    assert pipeline([dict(GIVEN)] * 2, dict, make(world), max_concurrent=1) == [value, second]


def test_a_part_of_the_state_can_be_handed_to_what_is_called_in_the_body():
    """It is the same to the journal as a list of that content."""
    ran = []

    @task
    def count(history):
        ran.append([*history])
        return history

    @node(start=True, end=True)
    async def stands(state):
        state["history"].append("x")
        first = await count(state["history"])
        state["history"].append("y")
        both = await parallel(count, name="p").ainvoke(state["history"])
        return {"first": first, "both": both}

    saver = InMemorySaver()
    for _ in range(2):
        graph = Graph(initial_state={"history": []}).add_node(stands)
        found = asyncio.run(graph.execute({}, checkpointer=saver, run_id="r"))
        assert found["both"]["count"] == ["x", "y"]
    assert ran == [["x"], ["x", "y"]]


def test_a_question_in_an_exec_that_has_a_fallback():
    class Asks(Node):
        def exec(self, _):
            return interrupt("q")

        def exec_fallback(self, _, error):
            return "fell"

        def post(self, shared, prep_res, exec_res):
            shared["found"] = exec_res

    saver, shared = InMemorySaver(), {}
    within(20, lambda: parallel(Flow(Asks()))({}, checkpointer=saver, run_id="r"))
    found = parallel(Flow(Asks())).invoke(Command(resume="yes"), checkpointer=saver, run_id="r")
    assert found["Flow"] == {"found": "yes"}
    assert shared == {}


# A thousand in each other


def in_a_body(part, number):
    @task(name=f"body{number}")
    async def body(given):
        return await part.ainvoke(dict(given))

    return body


def in_a_sync_body(part, number):
    @task(name=f"body{number}")
    def body(given):
        return part.invoke(dict(given))

    return body


def in_a_parallel(part, number):
    return Sequence(
        parallel(part, name="p"), lambda found: [*found.values()][0], name=f"of a parallel {number}"
    )


def in_a_map(part, number):
    return Sequence(
        lambda given: [given], weft.map(part, name="m"), lambda found: found[0], name=f"of a map {number}"
    )


def in_a_graph(part, number):
    return Graph(name=f"graph{number}").add_node(part, name="it", start=True, end=True)


def in_a_flow(part, number):
    return type(f"Flow{number}", (Flow,), {})(part)


def in_an_exec(part, number):
    class Calls(AsyncNode):
        async def prep_async(self, shared):
            return dict(shared)

        async def exec_async(self, given):
            return await part.ainvoke(given)

        async def post_async(self, shared, prep_res, exec_res):
            shared.update(exec_res)

    return Calls()


STYLES = [in_a_body, in_a_graph, in_a_parallel, in_a_flow, in_a_map, in_an_exec]


def tower(height, styles=STYLES):
    @task
    async def leaf(given):
        await asyncio.sleep(1)
        return {"n": given["n"] + 1}

    part = leaf
    for number, nest in zip(range(height), itertools.cycle(styles)):
        part = nest(part, number)
    return part


@pytest.mark.parametrize("is_recorded", [False, True], ids=["plain", "recorded"])
def test_a_thousand_deep(is_recorded):
    options = {"checkpointer": InMemorySaver(), "run_id": "r"} if is_recorded else {}
    for _ in range(2):
        workflow = tower(1_000)
        assert run(lambda: workflow.ainvoke({"n": 1}, **options))["n"] == 2  # noqa: B023
    workflow.validate()


def test_a_hundred_sync_bodies_deep():
    with virtual_clock():
        assert tower(300, [in_a_sync_body, in_a_graph, in_a_flow]).invoke({"n": 1})["n"] == 2


def failing_tower(height):
    @task
    def fails(given):
        raise Boom("deep")

    part = fails
    for number, nest in zip(range(height), itertools.cycle(STYLES)):
        part = nest(part, number)
    return part


def test_a_failure_a_thousand_deep():
    with pytest.raises(ParallelExecutionError) as caught:
        within(30, lambda: run(lambda: failing_tower(1_000).ainvoke({"n": 1})))
    error = caught.value
    while isinstance(error, ParallelExecutionError):
        [error] = error.exceptions
    assert type(error) is Boom


def test_a_failure_a_thousand_deep_can_be_shown():
    """asyncio.run() shows the task, and breaks what comes after it if that fails."""
    with pytest.raises(ParallelExecutionError) as caught:
        within(30, lambda: run(lambda: failing_tower(3_000).ainvoke({"n": 1})))
    assert "Boom: deep" in str(caught.value)
    assert len(repr(caught.value)) < 1_000


def test_a_run_that_is_out_of_time_a_thousand_deep():
    with pytest.raises((NodeTimeoutError, ParallelTimeoutError)):
        within(30, lambda: run(lambda: tower(1_000).ainvoke({"n": 1}, timeout=0.5)))


def test_time_is_linear_in_the_depth():
    def seconds(height):
        workflow = tower(height)
        began = time.process_time()
        run(lambda: workflow.ainvoke({"n": 1}))
        return time.process_time() - began

    few = min(seconds(150) for _ in range(3))
    many = min(seconds(1_500) for _ in range(2))
    print(f"150 deep: {few:.3f} s, 1,500 deep: {many:.3f} s")
    assert many < 30 * few


def test_sync_sleepers_at_every_depth_end_together():
    """Bodies that wait for others do not count, so all leaves sleep at once though the run has a width."""

    @task
    def naps(given):
        sleep(1)
        return given["n"]

    part = parallel(*(node(name=f"b{n}")(lambda given: naps({"n": 1}).result()) for n in range(4)))
    with virtual_clock() as clock:
        assert part.invoke({"n": 1}, max_concurrent=4) == {f"b{n}": 1 for n in range(4)}
        assert clock.now == 1


def test_a_graph_that_grows_in_a_sequence_brings_its_types():
    """After a first run of the sequence, whose own step stays what it was."""

    @dataclasses.dataclass
    class Doc:
        n: int

    @node(start=True)
    def first(x):
        return {"x": x}

    @node(end=True)
    def last(x):
        return {"z": x}

    def late(x, doc=None):
        return {"y": doc.n}

    late.__annotations__["doc"] = Doc
    graph = Graph().add_node(first).add_node(last).add_edge(first, last)
    both = node("same")(lambda given: given) >> graph
    saver = InMemorySaver()
    both.invoke({"x": 1}, run_id="1", checkpointer=saver)
    grown = node("late", end=True)(late)
    graph.add_node(grown).add_edge(first, grown)
    found = both.invoke({"x": 1, "doc": Doc(2)}, run_id="2", checkpointer=saver)
    assert found["y"] == 2
