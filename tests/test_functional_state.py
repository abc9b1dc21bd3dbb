"""What a checkpointer keeps: resuming, run ids, threads, ``previous``, snapshots, durability."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from dataclasses import dataclass
from datetime import datetime

import pytest
from leftovers import nothing_left, takes, within

import weft
from weft import (
    Command,
    InMemorySaver,
    InputError,
    RetryPolicy,
    RunBusyError,
    RunMismatchError,
    RunNotFoundError,
    SqliteSaver,
    ThreadBusy,
    UsageError,
    entrypoint,
    interrupt,
    task,
)
from weft.checkpoint.base import RecordKind
from weft.testing import sleep

KINDS = ["memory", "sqlite"]


def config(thread_id="t", **more):
    return {"configurable": {"thread_id": thread_id, **more}}


class Boom(Exception):
    pass


class Odd(Exception):
    """Cannot be made again from its args alone."""

    def __init__(self, what, *, code):
        super().__init__(what)
        self.code = code


# Resuming


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_resume_runs_only_what_is_not_recorded(saver, durability, is_async):
    ran, broken = [], [True]

    @task
    def step(i):
        ran.append(i)
        if i == 2 and broken:
            raise Boom("x")
        return i

    @task
    async def astep(i):
        return step.func(i)

    if is_async:

        @entrypoint(checkpointer=saver)
        async def wf(n):
            before = [await astep(0), await astep(1)]
            return before + [await astep(i) for i in range(2, n)]
    else:

        @entrypoint(checkpointer=saver)
        def wf(n):
            before = [step(0).result(), step(1).result()]
            return before + [step(i).result() for i in range(2, n)]

    with pytest.raises(Boom):
        wf.invoke(4, config(), durability=durability)
    broken.clear()
    assert wf.invoke(None, config(), durability=durability) == [0, 1, 2, 3]
    assert ran == [0, 1, 2, 2, 3]
    assert wf.invoke(None, config(), durability=durability) == [0, 1, 2, 3]
    assert ran == [0, 1, 2, 2, 3]


def test_a_resume_sees_what_was_returned_and_not_what_became_of_it(saver):
    """The result that the first run changed in place is recorded as it was returned."""
    broken = [True]

    @task
    def make():
        return {"items": [1]}

    @task
    async def amake():
        return [1]

    @entrypoint(checkpointer=saver)
    def wf(x):
        found, also = make().result(), amake().result()
        found["items"].append(2)
        found["new"] = True
        also.append(2)
        if broken:
            raise Boom("x")
        return found, also

    with pytest.raises(Boom):
        wf.invoke(1, config())
    broken.clear()
    assert wf.invoke(None, config()) == ({"items": [1, 2], "new": True}, [1, 2])


def test_two_readers_of_a_recorded_result_do_not_share_it(saver):
    broken = [True]

    @task
    def make(i):
        return [i]

    @entrypoint(checkpointer=saver)
    def wf(x):
        one, two = make(1).result(), make(1).result()
        one.append("changed")
        if broken:
            raise Boom("x")
        return one, two

    with pytest.raises(Boom):
        wf.invoke(1, config())
    broken.clear()
    assert wf.invoke(None, config()) == ([1, "changed"], [1])


def test_a_recorded_output_is_a_copy_each_time(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return {"x": [x]}

    wf.invoke(1, run_id="r")["x"].append("changed")
    wf.invoke(1, run_id="r")["x"].append("changed")
    assert wf.invoke(None, run_id="r") == {"x": [1]}


def test_an_input_is_recorded_as_it_was_given(saver):
    broken = [True]

    @entrypoint(checkpointer=saver)
    def wf(items):
        items.append("seen")
        if broken:
            raise Boom("x")
        return items

    with pytest.raises(Boom):
        wf.invoke([1], config())
    broken.clear()
    assert wf.invoke(None, config()) == [1, "seen"]


def test_what_is_stored_keeps_its_type(saver):
    """LangGraph gives lists for tuples."""

    @dataclass
    class Point:
        x: int
        y: tuple[int, ...]

    broken = [True]

    @task
    def make() -> Point:
        return Point(1, (2, 3))

    @entrypoint(checkpointer=saver)
    def wf(x) -> tuple[Point, set[int]]:
        found = make().result()
        if broken:
            raise Boom("x")
        return found, {1, 2}

    with pytest.raises(Boom):
        wf.invoke((1,), config())
    broken.clear()
    assert wf.invoke(None, config()) == (Point(1, (2, 3)), {1, 2})
    assert wf.get_state(config()).values == (Point(1, (2, 3)), {1, 2})


def test_an_edit_between_runs_never_gives_a_result_to_another_call(saver):
    ran, version = [], [1]

    @task
    def step(i):
        ran.append(i)
        return i * 10

    @task
    def other(i):
        ran.append(("other", i))
        return i * 100

    @entrypoint(checkpointer=saver)
    def wf(x):
        if version == [1]:
            calls = [step(1), step(2), step(3)]
        else:
            calls = [step(7), step(3), other(1), step(1)]
        found = [call.result() for call in calls]
        if version == [1]:
            raise Boom("x")
        return found

    with pytest.raises(Boom):
        wf.invoke(1, config())
    assert sorted(ran) == [1, 2, 3]
    ran.clear()
    version[0] = 2
    assert wf.invoke(None, config()) == [70, 30, 100, 10]
    assert sorted(map(str, ran)) == ["('other', 1)", "7"]


def test_a_mismatch_can_be_refused_naming_both(saver):
    version = [1]

    @task
    def step(i):
        return i

    @task
    def other(i):
        return i

    @entrypoint(checkpointer=saver)
    def wf(x):
        found = (step if version == [1] else other)(1).result()
        raise Boom(found)

    with pytest.raises(Boom):
        wf.invoke(1, config())
    version[0] = 2
    with pytest.raises(weft.ReplayMismatchError, match=r"(?s)'other'.*'step'"):
        wf.invoke(None, config(), on_mismatch="error")
    with pytest.raises(Boom):
        wf.invoke(None, config())


def test_arguments_that_cannot_be_encoded_count_by_position_with_one_warning_a_step(saver):
    class Opaque:
        pass

    ran, broken = [], [True]

    @task
    def step(thing, i):
        ran.append(i)
        return i

    @entrypoint(checkpointer=saver)
    def wf(x):
        found = [step(Opaque(), i).result() for i in range(3)]
        if broken:
            raise Boom("x")
        return found

    with pytest.warns(UserWarning, match="step") as caught, pytest.raises(Boom):
        wf.invoke(1, config())
    assert len(caught) == 1
    broken.clear()
    with pytest.warns(UserWarning, match="step"):
        assert wf.invoke(None, config()) == [0, 1, 2]
    assert ran == [0, 1, 2]


def test_a_key_stands_for_the_arguments(saver):
    class Client:
        pass

    ran, broken = [], [True]

    @task(key=lambda client, i: i)
    def step(client, i):
        ran.append(i)
        return i

    @entrypoint(checkpointer=saver)
    def wf(x):
        order = (0, 1, 2) if broken else (2, 1, 0)
        found = [step(Client(), i).result() for i in order]
        if broken:
            raise Boom("x")
        return found

    with pytest.raises(Boom):
        wf.invoke(1, config())
    broken.clear()
    assert wf.invoke(None, config()) == [2, 1, 0]
    assert ran == [0, 1, 2]


# Failures on replay


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failure_that_the_workflow_went_on_from_is_replayed(saver, is_async):
    ran, broken = [], [True]

    @task
    def bad():
        ran.append("bad")
        error = Odd("w", code=3)
        error.add_note("a note")
        raise error

    @task
    def fallback(code):
        ran.append("fallback")
        return code

    if is_async:

        @entrypoint(checkpointer=saver)
        async def wf(x):
            try:
                await bad()
            except Odd as error:
                found = (
                    type(error) is Odd,
                    error.args,
                    "a note" in error.__notes__,
                    await fallback(error.code),
                )
            if broken:
                raise Boom("x")
            return found
    else:

        @entrypoint(checkpointer=saver)
        def wf(x):
            try:
                bad().result()
            except Odd as error:
                found = (
                    type(error) is Odd,
                    error.args,
                    "a note" in error.__notes__,
                    fallback(error.code).result(),
                )
            if broken:
                raise Boom("x")
            return found

    with pytest.raises(Boom):
        wf.invoke(1, config())
    broken.clear()
    assert wf.invoke(None, config()) == (True, ("w",), True, 3)
    assert ran == ["bad", "fallback"]


def test_a_failure_in_the_error_that_ended_the_run_is_tried_again(saver):
    ran = []

    @task
    def bad():
        ran.append("bad")
        if len([r for r in ran if r == "bad"]) == 1:
            raise KeyError("k")
        return "good"

    @task
    def note():
        ran.append("note")

    @entrypoint(checkpointer=saver)
    def wf(x):
        try:
            return bad().result()
        except KeyError as error:
            note().result()
            raise Boom("x") from error

    with pytest.raises(Boom):
        wf.invoke(1, config())
    assert wf.invoke(None, config()) == "good"
    assert ran == ["bad", "note", "bad"]


def test_a_failure_that_nobody_received_is_tried_again(saver):
    ran, broken = [], [True]

    @task
    def bad():
        ran.append(1)
        if broken:
            raise KeyError("k")
        return 1

    @entrypoint(checkpointer=saver)
    def wf(x):
        future = bad()
        while not future.done():
            sleep(1)
        if broken:
            raise Boom("x")
        return future.result()

    with takes(1), pytest.raises(Boom):
        wf.invoke(1, config())
    broken.clear()
    with takes(1):
        assert wf.invoke(None, config()) == 1
    assert len(ran) == 2


def test_an_exception_group_of_what_failed_is_tried_again(saver):
    ran, broken = [], [True]

    @task
    async def step(i):
        ran.append(i)
        if broken and i:
            raise Boom(i)
        return i

    @entrypoint(checkpointer=saver)
    async def wf(x):
        found = await asyncio.gather(*[step(i) for i in range(3)], return_exceptions=True)
        if failed := [each for each in found if isinstance(each, Exception)]:
            raise ExceptionGroup("some failed", failed)
        return found

    with pytest.raises(ExceptionGroup):
        wf.invoke(1, config())
    broken.clear()
    assert wf.invoke(None, config()) == [0, 1, 2]
    assert sorted(ran) == [0, 1, 1, 2, 2]


def test_what_was_cancelled_is_run_again(saver):
    ran, broken = [], [True]

    @task
    async def slow(i):
        ran.append(i)
        if broken:
            await asyncio.sleep(30)
        return i

    @task
    async def bad():
        await asyncio.sleep(1)
        if broken:
            raise Boom("x")

    @entrypoint(checkpointer=saver)
    async def wf(x):
        return (await asyncio.gather(slow(1), bad()))[0]

    with takes(1), pytest.raises(Boom):
        wf.invoke(1, config())
    broken.clear()
    with takes(1):
        assert wf.invoke(None, config()) == 1
    assert ran == [1, 1]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_an_entrypoint_that_is_tried_again_runs_finished_tasks_once(saver, durability):
    """Its docstring says so; LangGraph runs them again."""
    ran, attempts = [], []

    @task
    def step(i):
        ran.append(i)
        return i

    @task
    def outer(i):
        return step(i * 10).result()

    @entrypoint(checkpointer=saver, retry_policy=RetryPolicy(initial_interval=0, jitter=False, retry_on=Boom))
    def wf(x):
        found = step(1).result(), outer(2).result()
        attempts.append(1)
        if len(attempts) < 3:
            raise Boom("x")
        return found

    assert within(5, lambda: wf.invoke(1, config(), durability=durability)) == (1, 20)
    assert ran == [1, 20]
    assert len(attempts) == 3


@pytest.mark.parametrize("is_async", [False, True])
def test_a_recorded_call_may_be_cancelled(saver, is_async):
    """It is neither run again nor shown, and the rest goes on."""
    ran, broken = [], [True]

    @task
    def step(i):
        ran.append(i)
        return i

    if is_async:

        @entrypoint(checkpointer=saver)
        async def wf(x):
            futures = [step(i) for i in range(3)]
            if broken:
                await asyncio.gather(*futures)
                raise Boom("x")
            futures[1].cancel()
            return [await futures[0], await futures[2], await step(3)]
    else:

        @entrypoint(checkpointer=saver)
        def wf(x):
            futures = [step(i) for i in range(3)]
            if broken:
                concurrent.futures.wait(futures)
                raise Boom("x")
            futures[1].cancel()
            return [futures[0].result(), futures[2].result(), step(3).result()]

    with pytest.raises(Boom):
        wf.invoke(1, config())
    broken.clear()
    with nothing_left():
        assert within(5, lambda: wf.invoke(None, config())) == [0, 2, 3]
    assert sorted(ran) == [0, 1, 2, 3]


def test_less_is_asked_for_on_resume(saver):
    """Calls were deleted from the code: their records are put aside and hold nothing up."""
    ran, broken = [], [True]

    @task
    def step(i):
        ran.append(i)
        return i

    @entrypoint(checkpointer=saver)
    async def awf(n):
        found = await asyncio.gather(*[step(i) for i in (range(6) if broken else (1, 4, 7))])
        if broken:
            raise Boom("x")
        return found

    @entrypoint(checkpointer=saver)
    def wf(n):
        found = [f.result() for f in [step(i) for i in (range(6) if broken else (1, 4, 7))]]
        if broken:
            raise Boom("x")
        return found

    for name, each in (("s", wf), ("a", awf)):
        broken[:] = [True]
        with pytest.raises(Boom):
            each.invoke(1, config(name))
        broken.clear()
        assert within(5, lambda: each.invoke(None, config(name))) == [1, 4, 7]
    assert sorted(ran) == sorted([*range(6), 7] * 2)


# Races decide the same again


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_race_is_decided_the_same_again(saver, is_async, durability):
    broken = [True]

    @task
    def runner(i):
        time.sleep(0.001 * ((i * 7) % 5))
        return i

    if is_async:

        @entrypoint(checkpointer=saver)
        async def wf(x):
            seen = []
            for each in asyncio.as_completed([runner(i) for i in range(8)]):
                seen.append(await each)
            if broken:
                broken[:] = [seen]
                raise Boom("x")
            return seen
    else:

        @entrypoint(checkpointer=saver)
        def wf(x):
            rest, seen = {runner(i) for i in range(8)}, []
            while rest:
                done, rest = concurrent.futures.wait(rest, return_when="FIRST_COMPLETED")
                seen.append(sorted(f.result() for f in done))
            if broken:
                broken[:] = [seen]
                raise Boom("x")
            return seen

    with pytest.raises(Boom):
        wf.invoke(1, config(), durability=durability)
    seen = broken.pop()
    assert wf.invoke(None, config(), durability=durability) == seen


def test_a_race_behind_several_layers_is_decided_the_same_again(saver):
    """Between two batches the body has the time to act, also through gather in a task in wait."""
    broken = [True]

    @task
    async def runner(i):
        if broken:
            await asyncio.sleep(i)
        return i

    async def layer(future):
        return (await asyncio.gather(future))[0]

    @entrypoint(checkpointer=saver)
    async def wf(x):
        rest, seen = {asyncio.ensure_future(layer(runner(i))) for i in range(4)}, []
        while rest:
            done, rest = await asyncio.wait(rest, return_when="FIRST_COMPLETED")
            seen.append(sorted(f.result() for f in done))
        if broken:
            raise Boom(seen)
        return seen

    with takes(3), pytest.raises(Boom) as caught:
        wf.invoke(1, config())
    broken.clear()
    assert caught.value.args[0] == [[0], [1], [2], [3]]
    with takes(0):
        assert wf.invoke(None, config()) == [[0], [1], [2], [3]]


def test_the_first_to_complete_is_the_first_again(saver):
    broken, gates = [True], [threading.Event() for _ in range(3)]

    @task
    def runner(i):
        gates[i].wait(5)
        return i

    @entrypoint(checkpointer=saver)
    def wf(x):
        rest, seen = {runner(i) for i in range(3)}, []
        order = iter([2, 0, 1])
        while rest:
            gates[next(order)].set()
            done, rest = concurrent.futures.wait(rest, return_when="FIRST_COMPLETED")
            seen.append(sorted(f.result() for f in done))
        if broken:
            raise Boom(seen)
        return seen

    with pytest.raises(Boom) as caught:
        wf.invoke(1, config())
    broken.clear()
    assert caught.value.args[0] == [[2], [0], [1]]
    assert wf.invoke(None, config()) == [[2], [0], [1]]


# call_id


def test_call_ids_are_the_same_on_every_attempt_and_resume_and_tell_calls_apart(saver):
    ids = {}

    @task(retry_policy=RetryPolicy(initial_interval=0, jitter=False, retry_on=Boom))
    def flaky(i):
        ids.setdefault(i, []).append(weft.call_id())
        if len(ids[i]) < 4:
            raise Boom("x")
        return i

    @task
    async def asked(i):
        ids.setdefault(("asked", i), []).append(weft.call_id())
        return interrupt(i)

    @entrypoint(checkpointer=saver)
    def wf(x):
        ids.setdefault("body", []).append(weft.call_id())
        question = asked(1)
        found = [f.result() for f in [flaky(1), flaky(2)]]
        return found, question.result()

    for _ in range(2):
        try:
            wf.invoke(1 if not ids else None, config())
        except Boom:
            pass
    wf.invoke(Command(resume="R"), config())
    assert [len(v) > 1 for v in ids.values()] == [True] * 4
    assert all(len(set(found)) == 1 for found in ids.values())
    assert len({found[0] for found in ids.values()}) == 4


def test_call_ids_of_two_runs_differ(saver):
    @task
    def t():
        return weft.call_id()

    @entrypoint(checkpointer=saver)
    def wf(x):
        return t().result(), t().result()

    found = [*wf.invoke(1, config()), *wf.invoke(1, config())]
    assert len(set(found)) == 4


def test_call_ids_without_a_checkpointer_are_stable_over_attempts():
    seen = []

    @task(retry_policy=RetryPolicy(initial_interval=0, jitter=False, retry_on=Boom))
    async def flaky():
        seen.append(weft.call_id())
        if len(seen) < 3:
            raise Boom("x")

    @entrypoint()
    async def wf(x):
        await flaky()
        return weft.call_id()

    body = wf.invoke(1)
    assert len(set(seen)) == 1
    assert seen[0] != body
    assert wf.invoke(1) != body


# Run ids


def test_a_run_id_is_an_idempotency_key(saver):
    ran = []

    @entrypoint(checkpointer=saver)
    def wf(x):
        ran.append(x)
        return len(ran)

    assert [wf.invoke({"a": 1}, run_id="r") for _ in range(3)] == [1, 1, 1]
    assert wf.invoke(None, run_id="r") == 1
    assert asyncio.run(wf.ainvoke({"a": 1}, {"configurable": {"run_id": "r"}})) == 1
    assert list(wf.stream({"a": 1}, run_id="r", stream_mode="values")) == [1]
    assert wf.submit({"a": 1}, run_id="r").result(5) == 1
    assert len(ran) == 1


def test_a_run_id_resumes_an_unfinished_run_with_the_same_input_or_none(saver):
    ran = []

    @task
    def step(i):
        ran.append(i)
        return i

    @entrypoint(checkpointer=saver)
    def wf(x):
        found = step(x).result()
        if len(ran) < 10:
            ran.extend([0] * 4)
            raise Boom("x")
        return found

    for given in (5, 5, None):
        if len(ran) < 10:
            with pytest.raises(Boom):
                wf.invoke(given, run_id="r")
    assert wf.invoke(5, run_id="r") == 5
    assert ran.count(5) == 1


def test_a_run_id_of_something_else_is_refused_naming_both(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return x

    @entrypoint(checkpointer=saver)
    def other(x):
        return x

    wf.invoke(1, run_id="r", thread_id="t")
    with pytest.raises(RunMismatchError, match="input"):
        wf.invoke(2, run_id="r", thread_id="t")
    with pytest.raises(RunMismatchError, match=r"(?s)wf.*other|other.*wf"):
        other.invoke(1, run_id="r", thread_id="t")
    with pytest.raises(RunMismatchError, match="u"):
        wf.invoke(1, run_id="r", thread_id="u")
    with pytest.raises(RunMismatchError):
        other.invoke(None, run_id="r", thread_id="t")
    assert wf.invoke(1, run_id="r", thread_id="t") == 1


def test_none_and_a_run_id_that_is_not_there(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return x

    with pytest.raises(RunNotFoundError, match="nope"):
        wf.invoke(None, run_id="nope")
    with pytest.raises(RunNotFoundError, match="nope"):
        wf.invoke(Command(resume=1), run_id="nope")


def test_a_run_that_is_going_on_is_busy(saver):
    begun, gate = threading.Event(), threading.Event()

    @entrypoint(checkpointer=saver)
    def wf(x):
        begun.set()
        gate.wait(5)
        return x

    run = wf.submit(1, run_id="r")
    try:
        assert begun.wait(5)
        with pytest.raises(RunBusyError, match="'r'"):
            wf.invoke(1, run_id="r")
        with pytest.raises(RunBusyError, match="'r'"):
            wf.invoke(None, run_id="r")
    finally:
        gate.set()
    assert run.result(5) == 1
    assert run.id == "r"


# Threads


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "submit"])
def test_a_thread_has_one_running_run(saver, way):
    begun, gate, ran = threading.Event(), threading.Event(), []

    @entrypoint(checkpointer=saver)
    def wf(x):
        ran.append(x)
        begun.set()
        gate.wait(5)
        return x

    run = wf.submit(1, thread_id="t")
    try:
        assert begun.wait(5)
        with pytest.raises(ThreadBusy, match="'t'"):
            if way == "invoke":
                wf.invoke(2, thread_id="t")
            elif way == "ainvoke":
                asyncio.run(wf.ainvoke(2, thread_id="t"))
            elif way == "stream":
                list(wf.stream(2, thread_id="t"))
            else:
                wf.submit(2, thread_id="t").result(5)
        with pytest.raises(RunBusyError):
            wf.invoke(None, thread_id="t")
        assert wf.func is not None and ran == [1]
    finally:
        gate.set()
    assert run.result(5) == 1
    assert wf.invoke(2, thread_id="t") == 2


def test_two_concurrent_invokes_of_one_thread_are_never_both_run(saver):
    """In LangGraph both run and one update is lost."""
    inside, most, lock = 0, [0], threading.Lock()

    @entrypoint(checkpointer=saver)
    def wf(x, previous):
        nonlocal inside
        with lock:
            inside += 1
            most.append(inside)
        time.sleep(0.005)
        with lock:
            inside -= 1
        return (previous or 0) + x

    def one():
        try:
            return wf.invoke(1, thread_id="t")
        except ThreadBusy:
            return None

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [f.result() for f in [pool.submit(one) for _ in range(12)]]
    done = sorted(each for each in found if each is not None)
    assert max(most) == 1
    assert done == list(range(1, len(done) + 1))
    assert wf.get_state(thread_id="t").values == len(done)


def test_a_thread_is_free_after_every_kind_of_end(saver):
    @entrypoint(checkpointer=saver)
    async def wf(x):
        if x == "fail":
            raise Boom("x")
        if x == "exit":
            raise SystemExit(1)
        if x == "ask":
            return interrupt("q")
        if x == "unstorable":
            return object()
        if x == "long":
            await asyncio.sleep(30)
        return x

    for given, error in [("fail", Boom), ("exit", SystemExit), ("unstorable", TypeError)]:
        with pytest.raises(error):
            within(5, lambda: wf.invoke(given, thread_id="t"))
    wf.invoke("ask", thread_id="t")
    with takes(20), pytest.raises(TimeoutError):
        within(5, lambda: wf.invoke("long", thread_id="t", timeout=20))
    run = wf.submit("long", thread_id="t")
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        within(5, lambda: run.result(5))
    with pytest.raises(Boom):
        within(5, lambda: list(wf.stream("fail", thread_id="t")))
    assert within(5, lambda: wf.invoke(1, thread_id="t")) == 1


def test_threads_are_separate(saver):
    @entrypoint(checkpointer=saver)
    def wf(x, previous):
        return [*(previous or []), x]

    assert wf.invoke(1, config("a")) == [1]
    assert wf.invoke(2, config("b")) == [2]
    assert wf.invoke(3, config("a")) == [1, 3]
    assert wf.invoke(4, thread_id="b") == [2, 4]
    assert wf.invoke(5, config(7)) == [5]
    assert wf.invoke(6, thread_id="7") == [5, 6]


# previous and final


def test_previous_is_what_the_last_finished_run_saved(saver):
    @entrypoint(checkpointer=saver)
    def wf(x, *, previous=None):
        if x == "fail":
            raise Boom("x")
        if x == "ask":
            interrupt("q")
        if x == "final":
            return entrypoint.final(value=previous, save="saved")
        return previous

    assert wf.invoke(1, config()) is None
    assert wf.invoke("final", config()) is None
    assert wf.invoke(2, config()) == "saved"
    assert wf.invoke("final", config()) == "saved"
    with pytest.raises(Boom):
        wf.invoke("fail", config())
    assert "__interrupt__" in wf.invoke("ask", config())
    assert wf.invoke(3, config()) == "saved"


def test_previous_of_a_resumed_run_is_what_it_was_at_first(saver):
    broken = [True]

    @entrypoint(checkpointer=saver)
    def wf(x, previous):
        if x == "fail" and broken:
            raise Boom("x")
        return entrypoint.final(value=previous, save=x)

    wf.invoke("one", thread_id="t")
    with pytest.raises(Boom):
        wf.invoke("fail", run_id="r", thread_id="t")
    wf.invoke("two", thread_id="t")
    broken.clear()
    assert wf.invoke(None, run_id="r", thread_id="t") == "one"


def test_previous_is_none_without_a_checkpointer():
    @entrypoint()
    def wf(x, previous):
        return previous

    assert wf.invoke(1) is None
    assert wf.invoke(1, thread_id="t") is None


def test_final_on_its_own():
    @entrypoint()
    def wf(x) -> entrypoint.final[int, str]:
        return entrypoint.final(value=x, save="s")

    @entrypoint()
    async def awf(x):
        return entrypoint.final(value=x, save="s")

    assert wf.invoke(1) == 1
    assert asyncio.run(awf.ainvoke(1)) == 1
    assert list(wf.stream(1)) == [{"wf": 1}]
    with pytest.raises(TypeError):
        entrypoint.final(1, 2)
    with pytest.raises(TypeError):
        entrypoint.final(value=1)


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_final_of_a_nested_entrypoint_gives_its_value(how):
    for saver in (None, InMemorySaver()):

        @entrypoint()
        def inner(x):
            return entrypoint.final(value=x, save="s")

        @entrypoint(checkpointer=saver)
        def wf(x):
            return inner.invoke(x)

        @entrypoint(checkpointer=saver)
        async def awf(x):
            return await inner.ainvoke(x)

        assert (wf if how == "invoke" else awf).invoke(1, thread_id="t") == 1


def test_a_saved_value_that_cannot_be_stored_fails_the_run(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return entrypoint.final(value=1, save={"a": object()})

    with pytest.raises(TypeError, match=r"saved\['a'\]"):
        wf.invoke(1, config())
    assert wf.get_state(config()).next == ("wf",)


# Nesting


def test_nested_entrypoints_join_the_run(saver):
    ran, broken = [], [True]

    @task
    def step(i):
        ran.append(i)
        return i

    @entrypoint(checkpointer=InMemorySaver())
    def inner(x):
        return step(x).result() + 1

    @entrypoint(checkpointer=saver)
    def wf(x):
        found = inner.invoke(x, config("inner thread")), inner.invoke(x + 1)
        if broken:
            raise Boom("x")
        return found

    with pytest.raises(Boom):
        wf.invoke(1, config())
    broken.clear()
    assert wf.invoke(None, config()) == (2, 3)
    assert ran == [1, 2]
    with pytest.raises(UsageError):
        entrypoint()(lambda x: x).get_state(config())
    assert inner.get_state(config("inner thread")).values == {}


@pytest.mark.parametrize("options", [{"run_id": "x"}, {"max_concurrent": 2}, {"wrong": 1}])
def test_options_that_a_nested_run_cannot_have(options):
    @entrypoint()
    def inner(x):
        return x

    @entrypoint()
    def wf(x):
        return inner.invoke(x, **options)

    with pytest.raises(InputError, match=next(iter(options))):
        wf.invoke(1)


def test_a_nested_run_can_have_a_timeout():
    @entrypoint()
    async def inner(x):
        await asyncio.sleep(30)

    @entrypoint()
    def wf(x):
        return inner.invoke(x, timeout=20)

    with takes(20), pytest.raises(TimeoutError):
        within(5, lambda: wf.invoke(1))


# Snapshots


def test_a_thread_that_was_never_run(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return x

    state = wf.get_state(config())
    assert (state.values, state.next, state.tasks, state.interrupts) == ({}, (), (), ())
    assert state.created_at is None
    assert list(wf.get_state_history(config())) == []


def test_snapshots_of_finished_runs(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return entrypoint.final(value={"x": x}, save="saved")

    wf.invoke(1, config())
    wf.invoke(2, config())
    state = wf.get_state(config())
    assert state.values == {"x": 2}  # what was returned, not what was saved
    assert state.next == ()
    assert state.metadata["source"] == "loop"
    assert datetime.fromisoformat(state.created_at).tzinfo is not None
    history = list(wf.get_state_history(config()))
    assert [each.metadata["source"] for each in history] == ["loop", "input", "loop", "input"]
    assert [each.metadata["step"] for each in history] == [2, 1, 0, -1]
    assert [each.next for each in history] == [(), ("wf",), (), ("wf",)]
    assert history[0] == state
    assert [each.parent_config for each in history] == [*[each.config for each in history[1:]], None]
    assert list(wf.get_state_history(config(), limit=2)) == history[:2]
    assert asyncio.run(wf.aget_state(config())) == state

    async def collect():
        return [each async for each in wf.aget_state_history(config())]

    assert asyncio.run(collect()) == history


def test_the_config_of_a_snapshot_gets_it_again(saver):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return x

    wf.invoke(1, config())
    wf.update_state(config(), "updated")
    wf.invoke(2, config())
    history = list(wf.get_state_history(config()))
    assert len(history) == 5
    for snapshot in history:
        assert wf.get_state(snapshot.config) == snapshot


def test_the_snapshot_of_a_failed_run(saver):
    @task
    def bad(x):
        if x == 2:
            raise ValueError("boom 2")
        return x

    @entrypoint(checkpointer=saver)
    def wf(x):
        return bad(x).result()

    with pytest.raises(ValueError, match="boom"):
        wf.invoke(2, config())
    state = wf.get_state(config())
    assert state.values is None
    assert state.next == ("wf",)
    assert [(each.name, each.error, each.interrupts) for each in state.tasks] == [
        ("wf", "ValueError('boom 2')", ())
    ]
    wf.invoke(1, config())
    assert wf.get_state(config()).next == ()
    with pytest.raises(ValueError, match="boom"):
        wf.invoke(2, config())
    assert wf.get_state(config()).values == 1


def test_update_state_replaces_what_the_next_run_sees(saver):
    @entrypoint(checkpointer=saver)
    def wf(x, previous):
        return previous

    assert wf.update_state(config(), {"a": 1})["configurable"]["thread_id"] == "t"
    assert wf.get_state(config()).values == {"a": 1}
    assert wf.get_state(config()).metadata["source"] == "update"
    assert wf.invoke(1, config()) == {"a": 1}
    wf.update_state(config(), [2])
    wf.update_state(config(), None)
    assert wf.invoke(1, config()) is None
    asyncio.run(wf.aupdate_state(config(), "async"))
    assert wf.invoke(1, thread_id="t") == "async"
    with pytest.raises(TypeError, match="values"):
        wf.update_state(config(), object())


def test_update_state_with_final_saves_what_it_says(saver):
    """A thread holds one saved value; LangGraph shows the returned one until the next run."""

    @entrypoint(checkpointer=saver)
    def wf(x, previous):
        return previous

    wf.update_state(config(), entrypoint.final(value="V", save="S"))
    assert wf.get_state(config()).values == "S"
    assert wf.invoke(1, config()) == "S"


def test_update_state_on_a_thread_that_waits_for_an_answer(saver):
    """In LangGraph an answer given afterwards answers the first question of the next run."""

    @entrypoint(checkpointer=saver)
    def wf(x, previous):
        return previous, interrupt(f"q{x}")

    wf.invoke(1, config())
    wf.update_state(config(), "U")
    assert wf.get_state(config()).values == "U"
    found = wf.invoke(2, config())
    assert found["__interrupt__"][0].value == "q2"
    assert wf.invoke(Command(resume="R"), config()) == ("U", "R")


def test_a_thread_that_is_running_is_not_updated(saver):
    begun, gate = threading.Event(), threading.Event()

    @entrypoint(checkpointer=saver)
    def wf(x, previous):
        begun.set()
        gate.wait(5)
        return x

    run = wf.submit(1, thread_id="t")
    try:
        assert begun.wait(5)
        with pytest.raises(ThreadBusy):
            wf.update_state(config(), "U")
        assert wf.get_state(config()).next == ("wf",)
    finally:
        gate.set()
    run.result(5)


def test_state_without_a_checkpointer_or_a_thread(saver):
    @entrypoint()
    def bare(x):
        return x

    @entrypoint(checkpointer=saver)
    def wf(x):
        return x

    for call in (lambda: bare.get_state(config()), lambda: bare.update_state(config(), 1)):
        with pytest.raises((UsageError, InputError), match="checkpointer"):
            call()
    for call in (
        lambda: wf.get_state({}),
        wf.get_state,
        lambda: wf.get_state({"configurable": {}}),
        lambda: list(wf.get_state_history({})),
        lambda: wf.update_state({}, 1),
        lambda: wf.get_state({"configurable": {"run_id": "r"}}),
    ):
        with pytest.raises((UsageError, InputError), match="thread_id"):
            call()


def test_a_checkpointer_can_be_given_to_the_run_and_as_a_url(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    ran = []

    @entrypoint()
    def wf(x, previous=None):
        ran.append(x)
        return x

    assert wf.invoke(1, checkpointer=url, run_id="r") == 1
    assert wf.invoke(1, checkpointer=url, run_id="r") == 1
    assert ran == [1]

    @entrypoint(checkpointer=url)
    def other(x, previous=None):
        return previous, x

    assert other.invoke(1, thread_id="t") == (None, 1)
    assert other.invoke(2, thread_id="t") == ((None, 1), 2)


def test_another_connection_goes_on_with_a_run(tmp_path):
    ran, broken = [], [True]

    @task
    def step(i):
        ran.append(i)
        return i

    def build(saver):
        @entrypoint(checkpointer=saver)
        def wf(x):
            found = [f.result() for f in [step(i) for i in range(x)]]
            if broken:
                raise Boom("x")
            return found

        return wf

    with SqliteSaver(tmp_path / "runs.db") as saver, pytest.raises(Boom):
        build(saver).invoke(3, config())
    broken.clear()
    with SqliteSaver(tmp_path / "runs.db") as saver:
        assert build(saver).invoke(None, config()) == [0, 1, 2]
    assert sorted(ran) == [0, 1, 2]


# Durability


class Spy(InMemorySaver):
    """Counts the commits, and what each holds."""

    def __init__(self):
        super().__init__()
        self.commits = []

    def commit(self, writes):
        self.commits.append([record.step for write in writes for record in write.records])
        return super().commit(writes)


def test_what_each_durability_commits():
    @task
    def step(i):
        return i

    def commits(durability):
        spy = Spy()

        @entrypoint(checkpointer=spy)
        def wf(x):
            step(1).result()
            seen.append(len(spy.commits))
            step(2).result()
            seen.append(len(spy.commits))
            return 1

        seen = []
        assert wf.invoke(1, thread_id="t", durability=durability) == 1
        return seen, [each for commit in spy.commits for each in commit], len(spy.commits)

    seen, records, _ = commits("sync")
    assert seen == [1, 2]  # durable before it is visible
    assert records == ["step", "step"]
    assert commits("async")[1] == ["step", "step"]
    assert commits("exit") == ([0, 0], ["step", "step"], 1)


def test_a_store_that_fails_ends_the_run_with_its_error():
    class Full(InMemorySaver):
        def commit(self, writes):
            raise weft.StoreError("disk full")

    @task
    def step(i):
        return i

    @entrypoint(checkpointer=Full())
    def wf(x):
        try:
            step(1).result()
        except Exception:
            return "swallowed"

    with nothing_left(), pytest.raises(weft.StoreError, match="disk full"):
        within(5, lambda: wf.invoke(1, thread_id="t"))


def test_nothing_begins_before_it_is_durable_that_a_failure_was_gone_on_from():
    """Not only the first call after it: the others know of the failure too."""
    begun, at_commit = [], []

    class Slow(InMemorySaver):
        instant = False

        def commit(self, writes):
            kinds = {record.kind for write in writes for record in write.records}
            if RecordKind.WENT_ON in kinds:
                time.sleep(0.05)
                at_commit.append(list(begun))
            return super().commit(writes)

    @task
    async def fails():
        raise ValueError

    @task
    async def after(number):
        begun.append(number)

    @entrypoint(checkpointer=Slow())
    async def flow(_):
        try:
            await fails()
        except ValueError:
            await asyncio.gather(*[after(number) for number in range(5)])
        return begun

    assert asyncio.run(flow.ainvoke(1, run_id="r")) == list(range(5))
    assert at_commit == [[]]
