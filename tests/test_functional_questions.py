"""Questions: ``interrupt``, ``Command(resume=...)``, one or many, in any order and any kind of body."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import itertools
import threading
import time

import pytest
from leftovers import nothing_left, takes, within

import weft
from weft import (
    AnswerError,
    Command,
    InMemorySaver,
    InputError,
    Interrupt,
    RetryPolicy,
    UnstorableError,
    UsageError,
    entrypoint,
    interrupt,
    task,
)
from weft.engine.recorder import answer_record
from weft.testing import sleep, virtual_clock


def asked(result):
    """The questions of a run that was put aside, by value."""
    assert isinstance(result, dict) and list(result) == ["__interrupt__"], result
    assert all(isinstance(question, Interrupt) for question in result["__interrupt__"])
    return {question.value: question.id for question in result["__interrupt__"]}


def about(seconds):
    """A run looks now and then whether it only waits for answers: it is put aside a moment later."""
    return pytest.approx(seconds, abs=0.1)


@task
def ask(what):
    return what, interrupt(what)


@task
async def aask(what):
    return what, interrupt(what)


@task
def add(a, b=0):
    return a + b


@pytest.mark.parametrize("where", ["sync body", "async body", "sync task", "async task"])
def test_one_question(saver, where):
    before = []

    if where == "sync body":

        @entrypoint(checkpointer=saver)
        def wf(x):
            before.append(x)
            return x, interrupt("name?")
    elif where == "async body":

        @entrypoint(checkpointer=saver)
        async def wf(x):
            before.append(x)
            return x, interrupt("name?")
    elif where == "sync task":

        @entrypoint(checkpointer=saver)
        def wf(x):
            before.append(x)
            return x, ask("name?").result()[1]
    else:

        @entrypoint(checkpointer=saver)
        async def wf(x):
            before.append(x)
            return x, (await aask("name?"))[1]

    with nothing_left():
        first = within(5, lambda: wf.invoke(1, thread_id="t"))
        assert list(asked(first)) == ["name?"]
        state = wf.get_state(thread_id="t")
        assert state.next == ("wf",)
        assert [question.value for question in state.interrupts] == ["name?"]
        assert state.tasks[0].interrupts == state.interrupts
        assert within(5, lambda: wf.invoke(None, thread_id="t")) == first  # asked again, with the same id
        assert within(5, lambda: wf.invoke(Command(resume="Bob"), thread_id="t")) == (1, "Bob")
    assert before == [1, 1, 1]
    assert wf.get_state(thread_id="t").interrupts == ()
    assert wf.get_state(thread_id="t").next == ()


@pytest.mark.parametrize("answer", [0, "", False, [], {}, {"a": 1}, {"answer": "yes"}, (1, 2)])
def test_any_value_but_none_is_an_answer(saver, answer):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return [interrupt("q")]

    wf.invoke(1, thread_id="t")
    assert wf.invoke(Command(resume=answer), thread_id="t") == [answer]


def test_a_command_without_an_answer_goes_on_like_none(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return interrupt("q")

    first = wf.invoke(1, thread_id="t")
    assert wf.invoke(Command(), thread_id="t") == first
    assert wf.invoke(Command(resume=None), thread_id="t") == first
    assert wf.invoke(Command(resume=1), thread_id="t") == 1


def test_questions_one_after_another_each_have_their_own_answer(saver):
    """A plain answer is not sticky, and a stale id answers nothing: both go wrong in LangGraph."""

    @entrypoint(checkpointer=saver)
    def wf(x):
        return [interrupt("q1"), interrupt("q2"), interrupt("q3")]

    (one,) = asked(wf.invoke(1, thread_id="t")).items()
    (two,) = asked(wf.invoke(Command(resume="A"), thread_id="t")).items()
    assert (one[0], two[0]) == ("q1", "q2")
    assert asked(wf.invoke(None, thread_id="t")) == dict([two])
    with pytest.raises(AnswerError, match=one[1]):
        wf.invoke(Command(resume={one[1]: "late"}), thread_id="t")
    assert "q3" in asked(wf.invoke(Command(resume={two[1]: "B"}), thread_id="t"))
    assert wf.invoke(Command(resume="C"), thread_id="t") == ["A", "B", "C"]


@pytest.mark.parametrize("is_async", [False, True])
def test_questions_in_a_loop_until_the_answer_is_right(saver, is_async):
    def good(answer):
        return isinstance(answer, int) and answer > 0

    if is_async:

        @entrypoint(checkpointer=saver)
        async def wf(x):
            question = "age?"
            while not good(answer := interrupt(question)):
                question = f"not {answer!r}; age?"
            return answer
    else:

        @entrypoint(checkpointer=saver)
        def wf(x):
            question = "age?"
            while not good(answer := interrupt(question)):
                question = f"not {answer!r}; age?"
            return answer

    assert list(asked(wf.invoke(1, thread_id="t"))) == ["age?"]
    assert list(asked(wf.invoke(Command(resume="x"), thread_id="t"))) == ["not 'x'; age?"]
    assert list(asked(wf.invoke(Command(resume=-1), thread_id="t"))) == ["not -1; age?"]
    assert wf.invoke(Command(resume=5), thread_id="t") == 5


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("is_async", [False, True])
def test_several_at_once_are_all_shown_and_answered_in_any_order(saver, order, is_async):
    """LangGraph shows one of them only."""
    if is_async:

        @entrypoint(checkpointer=saver)
        async def wf(n):
            return await asyncio.gather(*[aask(i) for i in range(n)])
    else:

        @entrypoint(checkpointer=saver)
        def wf(n):
            return [f.result() for f in [ask(i) for i in range(n)]]

    with nothing_left():
        ids = asked(within(5, lambda: wf.invoke(3, thread_id="t")))
        assert sorted(ids) == [0, 1, 2]
        assert {question.id for question in wf.get_state(thread_id="t").interrupts} == set(ids.values())
        for number, which in enumerate(order):
            found = within(5, lambda: wf.invoke(Command(resume={ids[which]: f"A{which}"}), thread_id="t"))
            if number < 2:
                assert asked(found) == {i: ids[i] for i in order[number + 1 :]}
        assert found == [(0, "A0"), (1, "A1"), (2, "A2")]


def test_several_answered_by_one_command(saver):
    @entrypoint(checkpointer=saver)
    def wf(n):
        return [f.result() for f in [ask(i) for i in range(n)]]

    ids = asked(wf.invoke(4, thread_id="t"))
    assert asked(wf.invoke(Command(resume={ids[0]: "a", ids[2]: "c"}), thread_id="t")) == {
        1: ids[1],
        3: ids[3],
    }
    assert wf.invoke(Command(resume={ids[1]: "b", ids[3]: "d"}), thread_id="t") == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
        (3, "d"),
    ]


def test_an_answer_that_fits_nothing_is_an_error_that_lists_what_is_open(saver):
    @entrypoint(checkpointer=saver)
    def wf(n):
        return [f.result() for f in [ask(i) for i in range(n)]]

    ids = asked(wf.invoke(2, thread_id="t"))
    for wrong in ("plain", {"f" * 32: 1}, {ids[0]: 1, "f" * 32: 2}):
        with pytest.raises(AnswerError, match=ids[1]):
            wf.invoke(Command(resume=wrong), thread_id="t")
    assert asked(wf.invoke(None, thread_id="t")) == ids  # nothing was answered, and the run is free


def test_commands_where_there_is_nothing_to_answer(saver):
    ran = []

    @entrypoint(checkpointer=saver)
    def wf(x):
        ran.append(x)
        if x == "bad" and len(ran) == 1:
            raise ValueError("x")
        return x

    with pytest.raises(InputError, match="'t'"):
        wf.invoke(Command(resume=1), thread_id="t")
    with pytest.raises(InputError, match="'t'"):
        wf.invoke(None, thread_id="t")
    with pytest.raises(ValueError, match="x"):
        wf.invoke("bad", thread_id="t")
    with pytest.raises(AnswerError, match="None"):
        wf.invoke(Command(resume=1), thread_id="t")
    assert wf.invoke(None, thread_id="t") == "bad"
    assert wf.invoke(Command(resume=1), thread_id="t") == "bad"  # finished: the recorded output
    assert len(ran) == 2


def test_without_a_checkpointer_nobody_could_answer():
    @entrypoint()
    def wf(x):
        return interrupt("q")

    with pytest.raises(UsageError, match="checkpointer"):
        wf.invoke(1)


def test_a_command_without_a_checkpointer_is_no_input():
    ran = []

    @entrypoint()
    def wf(x):
        ran.append(x)

    for run in (
        lambda: wf.invoke(Command(resume=1)),
        lambda: asyncio.run(wf.ainvoke(Command(resume=1))),
        lambda: list(wf.stream(Command(resume=1))),
    ):
        with pytest.raises((UsageError, InputError), match="checkpointer"):
            run()
    assert ran == []


def test_a_question_that_cannot_be_stored_is_refused_where_it_is_asked(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        try:
            interrupt({"client": object()})
        except UnstorableError as error:
            return error.path

    assert wf.invoke(1, thread_id="t") == "question['client']"


def test_an_answer_that_cannot_be_stored_is_refused_and_the_question_stays(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return interrupt("q")

    first = wf.invoke(1, thread_id="t")
    with pytest.raises(UnstorableError, match="answer"):
        wf.invoke(Command(resume=object()), thread_id="t")
    assert wf.invoke(None, thread_id="t") == first
    assert wf.invoke(Command(resume=1), thread_id="t") == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_no_except_exception_and_no_policy_sees_a_question(saver, is_async):
    attempts = []
    policy = RetryPolicy(initial_interval=0, jitter=False, retry_on=Exception)

    @task(retry_policy=policy)
    def t():
        attempts.append(1)
        try:
            return interrupt("q")
        except Exception:
            return "swallowed"

    @task(retry_policy=policy)
    async def at():
        attempts.append(1)
        try:
            return interrupt("q")
        except Exception:
            return "swallowed"

    if is_async:

        @entrypoint(checkpointer=saver, retry_policy=policy)
        async def wf(x):
            try:
                return (await asyncio.gather(at(), return_exceptions=True))[0]
            except Exception:
                return "swallowed"
    else:

        @entrypoint(checkpointer=saver, retry_policy=policy)
        def wf(x):
            try:
                return t().result()
            except Exception:
                return "swallowed"

    assert list(asked(within(5, lambda: wf.invoke(1, thread_id="t")))) == ["q"]
    assert len(attempts) == 1
    assert within(5, lambda: wf.invoke(Command(resume="R"), thread_id="t")) == "R"
    assert len(attempts) == 2


def test_a_task_that_is_retried_after_its_question_keeps_the_answer(saver):
    tries = []

    @task(retry_policy=RetryPolicy(initial_interval=0, jitter=False, retry_on=KeyError))
    def t():
        answer = interrupt("q")
        tries.append(answer)
        if len(tries) < 3:
            raise KeyError("again")
        return answer, interrupt("q2")

    @entrypoint(checkpointer=saver)
    def wf(x):
        return t().result()

    wf.invoke(1, thread_id="t")
    assert list(asked(wf.invoke(Command(resume="R"), thread_id="t"))) == ["q2"]
    assert tries == ["R"] * 3
    assert wf.invoke(Command(resume="S"), thread_id="t") == ("R", "S")


def test_everything_else_goes_on_and_is_not_run_again(saver):
    ran = []

    @task
    def slow(i):
        sleep(30)
        ran.append(i)
        return i

    @task
    def after(i):
        ran.append(i)
        return slow(i * 10).result()

    @entrypoint(checkpointer=saver)
    def wf(x):
        question, one, two = ask("q"), slow(1), after(2)
        return question.result(), one.result(), two.result()

    with takes(about(30)):
        asked(wf.invoke(1, thread_id="t"))
        assert sorted(ran) == [1, 2, 20]
    with takes(0):
        assert wf.invoke(Command(resume="R"), thread_id="t") == (("q", "R"), 1, 20)
    assert sorted(ran) == [1, 2, 20]


def test_what_was_done_before_a_question_in_a_task_is_not_done_again(saver):
    ran = []

    @task
    def step(i):
        ran.append(i)
        return i

    @task
    def outer():
        first = step(1).result()
        answer = interrupt("q")
        return first, answer, step(2).result()

    @entrypoint(checkpointer=saver)
    def wf(x):
        before = step(0).result()
        found = outer().result()
        return before, found, interrupt("last")

    assert list(asked(wf.invoke(1, thread_id="t"))) == ["q"]
    assert list(asked(wf.invoke(Command(resume="R"), thread_id="t"))) == ["last"]
    assert wf.invoke(Command(resume="S"), thread_id="t") == (0, (1, "R", 2), "S")
    assert ran == [0, 1, 2]


@pytest.mark.parametrize("is_async", [False, True])
def test_questions_of_nested_entrypoints_and_of_tasks_of_tasks(saver, is_async):
    @entrypoint()
    def inner(x):
        return interrupt(f"inner {x}")

    @entrypoint()
    async def ainner(x):
        return interrupt(f"ainner {x}")

    @task
    def outer(x):
        return inner.invoke(x), ask("deep").result()

    @task
    async def aouter(x):
        return await ainner.ainvoke(x), await aask("deep")

    if is_async:

        @entrypoint(checkpointer=saver)
        async def wf(x):
            return await asyncio.gather(aouter(x), ainner.ainvoke(x + 1))
    else:

        @entrypoint(checkpointer=saver)
        def wf(x):
            future = outer(x)
            return [inner.invoke(x + 1), future.result()]

    with nothing_left():
        found, rounds = within(5, lambda: wf.invoke(1, thread_id="t")), 0
        while "__interrupt__" in found:
            ids = asked(found)
            value = min(ids)
            found = within(5, lambda: wf.invoke(Command(resume={ids[value]: value.upper()}), thread_id="t"))
            rounds += 1
            assert rounds < 10
    assert rounds == 3
    assert ("deep", "DEEP") in (found[0] if is_async else found[1])


def test_a_question_and_one_of_the_body_itself_at_once(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        future = ask("task")
        return interrupt("body"), future.result()

    ids = asked(wf.invoke(1, thread_id="t"))
    assert sorted(ids) == ["body", "task"]
    assert asked(wf.invoke(Command(resume={ids["body"]: "B"}), thread_id="t")) == {"task": ids["task"]}
    assert wf.invoke(Command(resume="T"), thread_id="t") == ("B", ("task", "T"))


def test_a_question_that_nobody_reads_keeps_the_run_open(saver):
    """In LangGraph the run finishes and the question vanishes."""

    @entrypoint(checkpointer=saver)
    def wf(x):
        ask("q")
        return "done"

    assert list(asked(within(5, lambda: wf.invoke(1, thread_id="t")))) == ["q"]
    assert within(5, lambda: wf.invoke(Command(resume="R"), thread_id="t")) == "done"


@pytest.mark.parametrize("wait", ["wait", "as_completed", "first"])
def test_however_a_sync_body_waits_it_is_put_aside(saver, wait):
    @entrypoint(checkpointer=saver)
    def wf(x):
        futures = [ask(0), ask(1)]
        if wait == "wait":
            concurrent.futures.wait(futures)
        elif wait == "as_completed":
            list(concurrent.futures.as_completed(futures))
        else:
            concurrent.futures.wait(futures, return_when="FIRST_COMPLETED")
        return [f.result() for f in futures]

    ids = asked(within(5, lambda: wf.invoke(1, thread_id="t")))
    found = within(5, lambda: wf.invoke(Command(resume={ids[1]: "b"}), thread_id="t"))
    assert asked(found) == {0: ids[0]}
    assert within(5, lambda: wf.invoke(Command(resume="a"), thread_id="t")) == [(0, "a"), (1, "b")]


def test_a_sync_body_that_polls_with_a_timeout_is_put_aside(saver):
    polls = []

    @entrypoint(checkpointer=saver)
    def wf(x):
        futures = [ask(0), ask(1)]
        while not concurrent.futures.wait(futures, timeout=10, return_when="FIRST_COMPLETED").done:
            polls.append(clock.now)
        return [f.result() for f in futures]

    with virtual_clock() as clock:
        ids = asked(within(5, lambda: wf.invoke(1, thread_id="t")))
        assert polls in ([10, 20, 30], [10, 20, 30, 40]), "after a few they count as one that waits for ever"
        assert clock.now == about(polls[-1])
        found = within(5, lambda: wf.invoke(Command(resume={ids[1]: "b"}), thread_id="t"))
        assert asked(found) == {0: ids[0]}
        assert within(5, lambda: wf.invoke(Command(resume="a"), thread_id="t")) == [(0, "a"), (1, "b")]
        assert clock.now == about(polls[-1])


@pytest.mark.parametrize("wait", ["wait", "as_completed", "wait_for", "task group", "helper"])
def test_however_an_async_body_waits_it_is_put_aside(saver, wait):
    @entrypoint(checkpointer=saver)
    async def wf(x):
        futures = [aask(0), aask(1)]
        if wait == "wait":
            await asyncio.wait(futures)
        elif wait == "as_completed":
            for each in asyncio.as_completed(futures):
                await each
        elif wait == "wait_for":
            await asyncio.wait_for(asyncio.gather(*futures), 30)
        elif wait == "task group":

            async def get(future):
                return await future

            async with asyncio.TaskGroup() as group:
                for future in futures:
                    group.create_task(get(future))
        else:

            async def get_all():
                return await asyncio.gather(*futures)

            await asyncio.create_task(get_all())
        return await asyncio.gather(*futures)

    async def run(value):
        found = await wf.ainvoke(value, thread_id="t")
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found

    ids = asked(within(5, lambda: asyncio.run(run(1))))
    found = within(5, lambda: asyncio.run(run(Command(resume={ids[1]: "b"}))))
    assert asked(found) == {0: ids[0]}
    assert within(5, lambda: asyncio.run(run(Command(resume="a")))) == [(0, "a"), (1, "b")]


def test_a_question_in_a_helper_of_the_body(saver):
    """``interrupt`` in a coroutine of the body's own, run by gather or by a task group."""

    @entrypoint(checkpointer=saver)
    async def gathered(x):
        async def helper():
            return interrupt("h")

        return await asyncio.gather(helper())

    @entrypoint(checkpointer=saver)
    async def grouped(x):
        async def helper():
            return interrupt("h")

        async with asyncio.TaskGroup() as group:
            found = group.create_task(helper())
        return [found.result()]

    @entrypoint(checkpointer=saver)
    def pooled(x):
        context = contextvars.copy_context()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return [pool.submit(context.run, interrupt, "h").result()]

    for name, wf in (("g", gathered), ("p", pooled), ("t", grouped)):
        assert list(asked(within(5, lambda: wf.invoke(1, thread_id=name)))) == ["h"], name
        assert within(5, lambda: wf.invoke(Command(resume="R"), thread_id=name)) == ["R"], name


def test_finally_blocks_run_when_a_body_is_put_aside(saver):
    log = []

    @task
    def outer():
        try:
            return ask("q").result()
        finally:
            log.append("sync")

    @task
    async def aouter():
        try:
            return await aask("aq")
        finally:
            log.append("async")

    @entrypoint(checkpointer=saver)
    def wf(x):
        return [f.result() for f in (outer(), aouter())]

    wf.invoke(1, thread_id="t")
    assert sorted(log) == ["async", "sync"]


def test_bodies_that_are_put_aside_are_not_told_to_stop_as_failures(saver):
    """Neither ``except Exception`` nor a fallback after it may run when a run is put aside."""
    log = []

    @task
    def outer():
        try:
            return ask("q").result()
        except Exception as error:
            log.append(error)
            return "fallback"

    @task
    async def aouter():
        try:
            return await aask("aq")
        except Exception as error:
            log.append(error)
            return "fallback"

    @entrypoint(checkpointer=saver)
    def wf(x):
        futures = [outer(), aouter()]
        try:
            return [f.result() for f in futures]
        except Exception as error:
            log.append(error)

    ids = asked(wf.invoke(1, thread_id="t"))
    assert sorted(ids) == ["aq", "q"]
    assert log == []
    found = wf.invoke(Command(resume={ids["q"]: 1, ids["aq"]: 2}), thread_id="t")
    assert found == [("q", 1), ("aq", 2)]


def test_a_failure_beside_a_question_wins(saver):
    """The body received an error: the run failed, and a resume asks again."""
    tries = []

    @task
    def bad():
        sleep(10)
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("x")
        return "good"

    @entrypoint(checkpointer=saver)
    def wf(x):
        question = ask("q")
        return bad().result(), question.result()

    with takes(10), pytest.raises(ValueError, match="x"):
        within(5, lambda: wf.invoke(1, thread_id="t"))
    with takes(about(10)):
        ids = asked(within(5, lambda: wf.invoke(None, thread_id="t")))
    assert within(5, lambda: wf.invoke(Command(resume={ids["q"]: "R"}), thread_id="t")) == (
        "good",
        ("q", "R"),
    )


def test_a_new_input_drops_the_question(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return x, interrupt(f"q{x}"), weft.get_runtime().previous

    assert list(asked(wf.invoke(1, thread_id="t"))) == ["q1"]
    assert list(asked(wf.invoke(2, thread_id="t"))) == ["q2"]
    assert wf.invoke(Command(resume="R"), thread_id="t") == (2, "R", None)


def test_the_same_question_of_two_runs_has_two_ids(saver):
    """Otherwise an answer to the one would be accepted for the other."""

    @entrypoint(checkpointer=saver)
    def wf(x):
        return interrupt("q")

    one = asked(wf.invoke(1, thread_id="t"))["q"]
    assert asked(wf.invoke(None, thread_id="t"))["q"] == one
    wf.invoke(Command(resume=1), thread_id="t")
    assert asked(wf.invoke(1, thread_id="t"))["q"] != one
    assert asked(wf.invoke(1, thread_id="other"))["q"] != one


def test_answers_of_equal_questions_by_run_id(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return [f.result() for f in (ask("same"), ask("same"))]

    found = wf.invoke(1, run_id="r")
    ids = [question.id for question in found["__interrupt__"]]
    assert len(set(ids)) == 2
    assert wf.invoke(Command(resume={ids[0]: "a", ids[1]: "b"}), run_id="r") in (
        [("same", "a"), ("same", "b")],
        [("same", "b"), ("same", "a")],
    )


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("is_async", [False, True])
def test_questions_under_every_durability(saver, durability, is_async):
    ran = []

    @task
    def step(i):
        ran.append(i)
        return i

    if is_async:

        @entrypoint(checkpointer=saver)
        async def wf(x):
            one = await step(1)
            answer = await asyncio.gather(aask("q"), aask("q2"))
            return one, answer, await step(2)
    else:

        @entrypoint(checkpointer=saver)
        def wf(x):
            one = step(1).result()
            answer = [f.result() for f in (ask("q"), ask("q2"))]
            return one, answer, step(2).result()

    ids = asked(within(5, lambda: wf.invoke(1, thread_id="t", durability=durability)))
    answers = Command(resume={ids["q"]: "R"})
    assert "q2" in asked(within(5, lambda: wf.invoke(answers, thread_id="t", durability=durability)))
    found = within(5, lambda: wf.invoke(Command(resume="S"), thread_id="t", durability=durability))
    assert found == (1, [("q", "R"), ("q2", "S")], 2)
    assert ran == [1, 2]


@pytest.mark.parametrize("width", [1, 2])
def test_questions_give_their_slots_back(saver, width):
    @task
    def outer(i):
        return ask(i).result()

    @entrypoint(checkpointer=saver)
    def wf(n):
        return [f.result() for f in [*[outer(i) for i in range(n)], add(1, 1)]]

    ids = asked(within(5, lambda: wf.invoke(4, thread_id="t", max_concurrent=width)))
    assert sorted(ids) == [0, 1, 2, 3]
    found = within(
        5,
        lambda: wf.invoke(
            Command(resume=dict.fromkeys(ids.values(), "R")), thread_id="t", max_concurrent=width
        ),
    )
    assert found == [(0, "R"), (1, "R"), (2, "R"), (3, "R"), 2]


def test_cancelling_a_call_that_asked(saver):
    """Its question is nobody's any more; the run goes on without it."""

    @entrypoint(checkpointer=saver)
    async def wf(x):
        future = aask("q")
        await add(1)
        future.cancel()
        try:
            await future
        except asyncio.CancelledError:
            return "cancelled"

    assert within(5, lambda: asyncio.run(wf.ainvoke(1, thread_id="t"))) == "cancelled"


def test_a_live_owner_takes_up_answers(saver):
    """``Run.answer`` while something else still runs: the run is never put aside."""
    gate, asked_twice = threading.Event(), []

    @task
    def busy():
        gate.wait(5)
        return "busy"

    @task
    def twice():
        asked_twice.append(1)
        return interrupt("one"), interrupt("two")

    @entrypoint(checkpointer=saver)
    def wf(x):
        return [f.result() for f in (busy(), twice())]

    run = wf.submit(1, thread_id="t")

    def answer(value):
        deadline = time.monotonic() + 3
        while not run.questions:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        (question,) = run.questions
        assert question.value == value
        run.answer({question.id: value.upper()})

    within(5, lambda: answer("one"))
    with pytest.raises(AnswerError):
        within(3, lambda: run.answer({"f" * 32: 1}))
    within(5, lambda: answer("two"))
    gate.set()
    assert within(5, lambda: run.result(5)) == ["busy", ("ONE", "TWO")]
    assert len(asked_twice) == 3


def test_answering_a_run_that_is_put_aside_or_over_is_an_error(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return interrupt("q")

    run = wf.submit(1, thread_id="t")
    (question,) = within(5, lambda: run.result(5))["__interrupt__"]
    assert run.status == "suspended"
    assert run.questions == [question]
    with pytest.raises(AnswerError):
        within(3, lambda: run.answer({question.id: 1}))
    assert within(5, lambda: wf.invoke(Command(resume=1), thread_id="t")) == 1


def test_answers_put_into_the_store_meanwhile_are_taken_up(saver):
    """Another process may answer while the owner still has other work."""
    gate, answered = threading.Event(), threading.Event()

    @task
    def busy():
        answered.wait(5)
        return 1

    @entrypoint(checkpointer=saver)
    def wf(x):
        return [f.result() for f in (ask("q"), busy())]

    run = wf.submit(1, thread_id="t")
    deadline = time.monotonic() + 3
    while not run.questions:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    (question,) = run.questions
    saver.add_answers(run.id, [answer_record(question.id, saver.codec.encode("R"))])
    answered.set()
    assert within(5, lambda: run.result(5)) == [("q", "R"), 1]
    gate.set()


def test_a_question_asked_in_a_timeout_stops_the_clock(saver):
    """DESIGN 6: deadlines stand still meanwhile."""

    @task(timeout=10)
    def t():
        return interrupt("q")

    @entrypoint(checkpointer=saver, timeout=30)
    def wf(x):
        return t().result()

    with takes(about(1000)):
        asked(wf.invoke(1, thread_id="t"))
        sleep(1000)
        assert wf.invoke(Command(resume="R"), thread_id="t") == "R"


def test_other_work_of_the_body_is_done_before_it_is_put_aside(saver):
    """A body that works while a helper of its own waits for the answer is not only waiting."""
    done = []

    @entrypoint(checkpointer=saver)
    async def wf(x):
        async def own_work():
            await asyncio.sleep(5)
            done.append("worked")

        found = await asyncio.gather(aask("q"), own_work())
        return found[0]

    with takes(about(5)):
        asked(within(5, lambda: wf.invoke(1, thread_id="t")))
    assert done == ["worked"]


def test_a_question_that_is_still_being_written_is_shown_too():
    """The disk is slow: the first question is durable, the second is not yet, and nothing else is left to do."""

    class SlowDisk(InMemorySaver):
        instant = False

        def commit(self, writes):
            time.sleep(0.03)
            return super().commit(writes)

    @task
    async def later(what):
        await asyncio.sleep(0.01)
        return interrupt(what)

    @entrypoint(checkpointer=SlowDisk())
    async def wf(x):
        return await asyncio.gather(aask("q1"), later("q2"))

    assert sorted(asked(within(5, lambda: wf.invoke(1, thread_id="t")))) == ["q1", "q2"]
    assert [question.value for question in wf.get_state(thread_id="t").interrupts] == ["q1", "q2"]


# However a body waits for what asks


async def waits_by_wait(call):
    done, _ = await asyncio.wait([call])
    return done.pop().result()


async def waits_by_as_completed(call):
    (first,) = asyncio.as_completed([call])
    return await first


async def waits_by_wait_for(call):
    return await asyncio.wait_for(call, 10)


async def waits_by_a_group(call):
    async def take():
        return await call

    async with asyncio.TaskGroup() as group:
        task = group.create_task(take())
    return task.result()


async def waits_by_a_queue(call):
    queue = asyncio.Queue()
    call.add_done_callback(queue.put_nowait)
    return (await queue.get()).result()


@pytest.mark.parametrize(
    "way", [waits_by_wait, waits_by_as_completed, waits_by_wait_for, waits_by_a_group, waits_by_a_queue]
)
@pytest.mark.parametrize("style", ["parallel", "map", "graph"])
def test_a_body_in_a_block_or_a_graph_may_wait_in_any_way_for_what_asks(style, way):
    @task
    async def asks(value):
        return interrupt(value)

    async def body(value):
        return {"answer": await way(asks(str(value)))}

    first, value = weft.node("first", start=True, end=True)(body), 1
    if style == "parallel":
        workflow = weft.parallel(first, weft.node("other")(lambda value: value))
    elif style == "map":

        @entrypoint()
        async def workflow(value):
            return {"first": (await weft.amap(first, [value]))[0]}
    else:
        graph = weft.Graph().add_node(first).compile()
        workflow, value = weft.Sequence(graph, lambda found: {"first": found}), {"value": 1}
    options = {"run_id": "r", "checkpointer": InMemorySaver(), "timeout": 20}
    assert [question.value for question in workflow.invoke(value, **options)["__interrupt__"]] == ["1"]
    assert workflow.invoke(weft.Command(resume="yes"), **options)["first"]["answer"] == "yes"
