"""What a store tells of its runs, and what can be done with them."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from weft import (
    AnswerError,
    InMemorySaver,
    InputError,
    RunMismatchError,
    RunNotFoundError,
    RunStatus,
    SqliteSaver,
    UnstorableError,
    call_id,
    entrypoint,
    interrupt,
    task,
)
from weft.history import Runs, closest, runs


class Broken(Exception):
    pass


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    if request.param == "memory":
        yield InMemorySaver()
    else:
        with SqliteSaver(tmp_path / "runs.db") as saver:
            yield saver


ids = {}


@task
def leaf(x):
    ids[x] = call_id()
    return x * 2


@task
def inner(x):
    return leaf(x).result() + 1


@task
def fail(x):
    raise Broken(f"no {x}")


@entrypoint()
def nested(x):
    return inner(x).result()


@entrypoint()
def failing(x):
    leaf(x).result()
    return fail(x).result()


@task
def ask(what):
    return interrupt(what)


@entrypoint()
def asking(words):
    return [answer.result() for answer in [ask(word) for word in words]]


def test_runs_takes_a_store_or_its_url(tmp_path):
    assert runs(f"sqlite:///{tmp_path}/a.db").list() == []
    with pytest.raises(InputError, match="needs a checkpointer"):
        runs(None)
    with pytest.raises(InputError):
        runs(3)


def test_the_newest_run_comes_first(store):
    for number in range(5):
        nested.invoke(number, run_id=f"r{number}", checkpointer=store)
    assert [info.id for info in runs(store)] == ["r4", "r3", "r2", "r1", "r0"]
    assert [info.id for info in runs(store).list(limit=2)] == ["r4", "r3"]


def test_runs_are_chosen_by_status_and_thread(store):
    nested.invoke(1, run_id="good", thread_id="t", checkpointer=store)
    for number in range(9):
        with pytest.raises(Broken):
            failing.invoke(number, run_id=f"bad{number}", checkpointer=store)
    found = runs(store)
    assert [info.id for info in found.list(status="finished", limit=1)] == ["good"], (
        "however many others are newer"
    )
    assert [info.id for info in found.list(status=RunStatus.FAILED, limit=2)] == ["bad8", "bad7"]
    assert [info.id for info in found.list(thread_id="t")] == ["good"]
    with pytest.raises(InputError, match="no status 'done'; there are: running, suspended"):
        found.list(status="done")


def test_a_run_says_what_it_is(store):
    before = datetime.now(UTC)
    with pytest.raises(Broken):
        failing.invoke(3, run_id="r", thread_id="t", checkpointer=store)
    info = runs(store).show("r")
    assert (info.workflow, info.status, info.thread_id, info.error) == (
        "failing",
        "failed",
        "t",
        "Broken: no 3",
    )
    assert before <= info.created <= info.updated
    assert (info.input, info.output) == (3, None)
    assert "checkpointer" not in repr(info).lower()


def test_calls_are_listed_as_recorded_with_their_parents(store):
    nested.invoke(5, run_id="r", checkpointer=store)
    info = runs(store).show("r")
    child, parent = info.calls
    assert (child.step, child.value, child.outcome, child.attempts) == ("leaf", 10, "ok", 1)
    assert (parent.step, parent.value, parent.parent) == ("inner", 11, "")
    assert child.parent == parent.id
    assert ids[5] == f"r:{child.id}"
    assert child.seconds >= 0
    assert info.output == 11


def test_a_failed_call_has_its_error(store):
    with pytest.raises(Broken):
        failing.invoke(3, run_id="r", checkpointer=store)
    ok, failed = runs(store).show("r").calls
    assert (ok.step, ok.error) == ("leaf", None)
    assert (failed.step, failed.outcome, failed.error, failed.value) == (
        "fail",
        "failed",
        "Broken: no 3",
        None,
    )


def test_a_call_that_was_run_again_is_listed_once(store):
    for _ in range(2):
        with pytest.raises(Broken):
            failing.invoke(3, run_id="r", checkpointer=store)
    assert [call.step for call in runs(store).show("r").calls] == ["leaf", "fail"]


def test_questions_are_answered_one_by_one_and_the_run_goes_on(store):
    asking.invoke(["a", "b"], run_id="r", checkpointer=store)
    found = runs(store)
    questions = {question.value: question for question in found.show("r").questions}
    assert set(questions) == {"a", "b"}
    assert questions["a"].step == "ask"
    found.answer("r", {questions["b"].id: 2})
    assert [question.value for question in found.show("r").questions] == ["a"]
    found.answer("r", {questions["a"].id: {"x": 1}})
    assert found.show("r").questions == []
    assert found.resume("r", asking) == [{"x": 1}, 2]
    assert found.show("r").status == "finished"


def test_an_answer_that_fits_nothing_lists_what_is_open(store):
    asking.invoke(["a"], run_id="r", checkpointer=store)
    found = runs(store)
    (question,) = found.show("r").questions
    with pytest.raises(
        AnswerError, match=f"no open question of run 'r' has the id 'nope'; open are: {question.id}"
    ):
        found.answer("r", {"nope": 1, question.id: 2})
    with pytest.raises(AnswerError, match="no answer was given"):
        found.answer("r", {})
    with pytest.raises(UnstorableError):
        found.answer("r", {question.id: object()})
    assert found.show("r").questions == [question], "nothing was recorded"
    found.answer("r", {question.id: 1})
    with pytest.raises(AnswerError, match="none is open"):
        found.answer("r", {question.id: 1})


def test_resume_runs_only_what_is_not_recorded(store):
    effects = []

    @task
    def effect(x):
        effects.append(x)
        if x == 2 and len(effects) < 3:
            raise Broken
        return x

    @entrypoint()
    def flow(_):
        return [effect(1).result(), effect(2).result()]

    with pytest.raises(Broken):
        flow.invoke(0, run_id="r", checkpointer=store)
    assert runs(store).resume("r", flow) == [1, 2]
    assert effects == [1, 2, 2]


def test_resume_wants_the_same_workflow(store):
    asking.invoke(["a"], run_id="r", checkpointer=store)
    with pytest.raises(RunMismatchError, match="asking.*nested"):
        runs(store).resume("r", nested)


def test_a_deleted_run_is_gone(store):
    nested.invoke(1, run_id="r", checkpointer=store)
    runs(store).delete("r")
    assert runs(store).list() == []
    with pytest.raises(RunNotFoundError, match="the store has no runs"):
        runs(store).delete("r")


@pytest.mark.parametrize(
    "act",
    [
        lambda found: found.show("digets"),
        lambda found: found.resume("digets", nested),
        lambda found: found.answer("digets", {"x": 1}),
        lambda found: found.delete("digets"),
    ],
)
def test_a_wrong_id_names_the_closest(store, act):
    for name in ("digest", "other"):
        nested.invoke(1, run_id=name, checkpointer=store)
    with pytest.raises(RunNotFoundError, match=r"no run 'digets'; did you mean 'digest'\?"):
        act(runs(store))


def test_closest_begins_with_what_was_typed():
    assert closest("ab", ["xab", "abcdefghij", "abc"]) == ["abcdefghij", "abc", "xab"]
    assert closest("", ["a"]) == []


def test_values_of_types_that_are_not_known_are_shown_all_the_same(tmp_path):
    @dataclass
    class Doc:
        name: str

    @task
    def make() -> Doc:
        return Doc("x")

    @entrypoint()
    def flow(_):
        return make().result().name

    path = tmp_path / "a.db"
    with SqliteSaver(path) as store:
        flow.invoke(1, run_id="r", checkpointer=store)
    with SqliteSaver(path) as other:  # a new codec, which knows none of our types
        (call,) = Runs(other).show("r").calls
    assert call.value["name"] == "x"
    assert call.value["$type"].endswith("Doc")
