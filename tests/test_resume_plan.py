"""What a resume would do is said without doing it, and a run can be begun in the middle of another."""

import pytest

import weft
from weft import (
    Flow,
    Graph,
    InMemorySaver,
    InputError,
    Node,
    RunMismatchError,
    RunNotFoundError,
    SqliteSaver,
    entrypoint,
    interrupt,
    node,
    parallel,
    task,
)


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    if request.param == "memory":
        yield InMemorySaver()
        return
    with SqliteSaver(tmp_path / "runs.db") as saver:
        yield saver


class Effects(list):
    """What ran; while ``fails`` names a step it fails."""

    fails = ""

    def task(self, name):
        def body(value):
            self.append((name, value))
            if name == self.fails:
                raise ValueError("broken")
            return value + 1

        return task(name=name)(body)


@pytest.fixture
def ran():
    return Effects()


def steps(calls):
    return [call.step for call in calls]


def two_and_one(ran):
    first, last = ran.task("first"), ran.task("last")

    @entrypoint()
    def flow(count):
        found = sum(each.result() for each in [first(n) for n in range(count)])
        return last(found).result()

    return flow


def begun(ran, store, workflow, given=2):
    with pytest.raises(ValueError, match="broken"):
        workflow.invoke(given, checkpointer=store, run_id="r")
    before = list(ran)
    ran.clear()
    return before


def test_nothing_runs_and_nothing_changes(ran, store):
    ran.fails = "last"
    flow = two_and_one(ran)
    assert len(begun(ran, store, flow)) == 3
    before = store.find("r"), store.records("r")
    plan = weft.runs(store).plan("r", flow)
    assert (steps(plan.reused), steps(plan.again), steps(plan.unmatched)) == (
        ["first", "first"],
        ["last"],
        [],
    )
    assert (plan.status, plan.error) == ("failed", None)
    assert (plan.again[0].why, plan.again[0].error) == ("failed", "ValueError: broken")
    assert [call.value for call in plan.reused] == [1, 2]
    assert ran == []
    assert (store.find("r"), store.records("r")) == before
    ran.fails = ""
    assert flow.invoke(None, checkpointer=store, run_id="r") == 4
    assert ran == [("last", 3)]


def test_what_an_edit_leaves_over_and_adds_is_said(ran, store):
    ran.fails = "last"
    begun(ran, store, two_and_one(ran))
    first, other = ran.task("first"), ran.task("other")

    @entrypoint()
    def flow(count):
        return other(first(0).result() + 10).result()

    plan = weft.runs(store).plan("r", flow)
    assert steps(plan.reused) == ["first"]
    assert [(call.step, call.why) for call in plan.again] == [("other", "new")]
    assert sorted(steps(plan.unmatched)) == ["first", "last"]
    assert ran == []


def test_a_finished_run_needs_nothing(ran, store):
    flow = two_and_one(ran)
    flow.invoke(2, checkpointer=store, run_id="r")
    plan = weft.runs(store).plan("r", flow)
    assert plan.status == "finished"
    assert (len(plan.reused), plan.again, plan.unmatched) == (3, (), ())


def test_a_run_that_somebody_owns_can_be_planned_and_stays_theirs(ran, store):
    flow = two_and_one(ran)
    store.open(weft.checkpoint.base.OpenRun("r", "flow", None, store.codec.encode(2)))
    plan = weft.runs(store).plan("r", flow)
    assert steps(plan.again) == ["first", "first"]
    with pytest.raises(weft.RunBusyError):
        flow.invoke(None, checkpointer=store, run_id="r")


def test_what_the_code_between_raises_is_part_of_the_plan(ran, store):
    ran.fails = "last"
    begun(ran, store, two_and_one(ran))

    @entrypoint()
    def flow(count):
        raise LookupError("the program is wrong now")

    plan = weft.runs(store).plan("r", flow)
    assert isinstance(plan.error, LookupError)
    assert len(plan.unmatched) == 3


def test_blocks_graphs_maps_and_flows_can_be_planned(ran, store):
    ran.fails = "bad"
    good, bad = ran.task("good"), ran.task("bad")

    class Stage(Node):
        def prep(self, shared):
            return shared["n"]

        def exec(self, n):
            ran.append(("stage", n))
            return n + 1

        def post(self, shared, prep_res, exec_res):
            shared["n"] = exec_res

    @node(start=True)
    def look(n, state):
        ran.append(("look", n))
        state["looked"] = True
        return {"n": n + 1}

    @node(end=True)
    def close(n):
        return {"done": bad(n).result()}

    graph = Graph(name="g").add_node(look).add_node(close).add_edge(look, close)

    @entrypoint()
    def flow(n):
        shared = {"n": n}
        Flow(Stage()).run(shared)
        parallel(good, node("again")(lambda value: value))(shared["n"])
        weft.map(good, [1, 2])
        return graph.invoke({"n": shared["n"]})

    begun(ran, store, flow, 5)
    plan = weft.runs(store).plan("r", flow)
    assert ran == []
    assert steps(plan.again) == ["close"]
    assert plan.unmatched == ()
    assert "look" in steps(plan.reused)
    assert "Stage" in steps(plan.reused)


def test_an_open_question_is_no_reason_to_wait(store):
    @entrypoint()
    def flow(_):
        return interrupt("go on?")

    flow.invoke(1, checkpointer=store, run_id="r")
    plan = weft.runs(store).plan("r", flow)
    assert (plan.status, plan.again, plan.error) == ("suspended", (), None)


def test_what_cannot_be_planned(ran, store):
    with pytest.raises(RunNotFoundError, match="'nope'"):
        weft.runs(store).plan("nope", two_and_one(ran))
    two_and_one(ran).invoke(1, checkpointer=store, run_id="r")

    @entrypoint()
    def other(_):
        return 1

    with pytest.raises(RunMismatchError):
        weft.runs(store).plan("r", other)


# Forks


def call(store, step, number=0, run_id="r"):
    return [each for each in weft.runs(store).show(run_id).calls if each.step == step][number]


def test_a_fork_goes_on_from_a_call_with_another_value(ran, store):
    flow = two_and_one(ran)
    assert flow.invoke(2, checkpointer=store, run_id="r") == 4
    ran.clear()
    runs = weft.runs(store)
    first = call(store, "first", 1)
    name = runs.fork("r", at=first.id, values={first.id: 100})
    assert runs.resume(name, flow) == 102
    assert ran == [("last", 101)]
    assert runs.show("r").output == 4
    assert runs.show(name).output == 102


def test_a_fork_of_all_of_a_finished_run_runs_what_is_named_again(ran, store):
    flow = two_and_one(ran)
    flow.invoke(2, checkpointer=store, run_id="r")
    ran.clear()
    runs = weft.runs(store)
    name = runs.fork("r", again=[call(store, "last").id], new_id="second")
    assert name == "second"
    assert runs.resume("second", flow) == 4
    assert ran == [("last", 3)]


def test_what_stands_for_a_whole_block_does_not_hide_a_call_in_it(ran, store):
    good, other = ran.task("good"), ran.task("other")
    both = parallel(good, other)

    @entrypoint()
    def flow(n):
        return both(n)

    assert flow.invoke(1, checkpointer=store, run_id="r") == {"good": 2, "other": 2}
    ran.clear()
    runs = weft.runs(store)
    name = runs.fork("r", values={call(store, "good").id: 50})
    assert runs.resume(name, flow) == {"good": 50, "other": 2}
    assert ran == []


def test_answers_go_along(ran, store):
    last = ran.task("last")

    @entrypoint()
    def flow(_):
        return last(interrupt("how many?")).result()

    flow.invoke(1, checkpointer=store, run_id="r")
    assert flow.invoke(weft.Command(resume=5), checkpointer=store, run_id="r") == 6
    ran.clear()
    runs = weft.runs(store)
    name = runs.fork("r", again=[call(store, "last").id])
    assert runs.resume(name, flow) == 6
    assert ran == [("last", 5)]


def test_what_cannot_be_forked(ran, store):
    two_and_one(ran).invoke(1, checkpointer=store, run_id="r")
    runs = weft.runs(store)
    with pytest.raises(RunNotFoundError, match="'nope'"):
        runs.fork("nope")
    with pytest.raises(InputError, match="has recorded no call 'abcd'"):
        runs.fork("r", at="abcd")
    with pytest.raises(InputError, match="'what' is no id of a call"):
        runs.fork("r", again=["what"])
    with pytest.raises(weft.UnstorableError, match="the value of 'last'"):
        runs.fork("r", values={call(store, "last").id: object()}, new_id="third")
    assert store.find("third") is None


# What the workflow went on from, tried again


@pytest.mark.parametrize(
    ("retry", "again"),
    [
        (None, []),
        ("failed", [("first", 1), ("first", 2)]),
        (lambda failure: failure.step == "first" and "1" in str(failure.error), [("first", 1)]),
    ],
)
def test_a_resume_can_try_again_what_the_workflow_went_on_from(store, retry, again):
    ran = Effects()

    def body(value):
        ran.append(("first", value))
        if ran.fails:
            raise ValueError(f"no {value}")
        return value * 10

    first, last = task(name="first")(body), ran.task("last")

    @entrypoint()
    def flow(numbers):
        found = []
        for number in numbers:
            try:
                found.append(first(number).result())
            except ValueError:
                found.append(None)
        return [*found, last(0).result()]

    ran.fails = "last"
    begun(ran, store, flow, [1, 2])
    ran.fails = ""
    result = weft.runs(store).resume("r", flow, retry=retry)
    assert ran == [*again, ("last", 0)]
    assert result == [*(n * 10 if ("first", n) in again else None for n in (1, 2)), 1]


def test_a_failure_inside_a_block_that_is_recorded_as_a_whole_is_tried_again(ran, store):
    good, bad, last = ran.task("good"), ran.task("bad"), ran.task("last")
    both = parallel(good, bad, on_error="collect")

    @entrypoint()
    def flow(n):
        found = both(n)
        return last(sum(each.value for each in found.values() if isinstance(each, weft.Ok))).result()

    ran.fails = "bad"
    assert flow.invoke(1, checkpointer=store, run_id="done") == 3
    ran.clear()

    runs = weft.runs(store)
    name = runs.fork("done", again=[call(store, "last", run_id="done").id])
    ran.fails = ""
    assert runs.resume(name, flow, retry="failed") == 5
    assert ran == [("bad", 1), ("last", 4)]


def test_what_retry_cannot_be(ran, store):
    with pytest.raises(InputError, match='retry must be "failed" or a function'):
        two_and_one(ran).invoke(1, checkpointer=store, run_id="r", retry="all")
