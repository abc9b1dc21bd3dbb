"""``stream`` and ``astream``: what each mode yields, when, and what leaving one does."""

from __future__ import annotations

import asyncio
import threading

import pytest
from leftovers import eventually, nothing_left, takes, timed, within

import weft
from weft import (
    CachePolicy,
    Command,
    InMemoryCache,
    Interrupt,
    entrypoint,
    get_stream_writer,
    interrupt,
    task,
)
from weft.testing import sleep


@pytest.fixture(params=["stream", "astream"])
def chunks(request):
    """All chunks of a workflow, by the one face or the other."""

    def collect(wf, input, **options):
        if request.param == "stream":
            return within(5, lambda: list(wf.stream(input, **options)))

        async def main():
            return [chunk async for chunk in wf.astream(input, **options)]

        return within(5, lambda: asyncio.run(main()))

    return collect


@pytest.fixture(params=["sync", "async"])
def make(request, any_saver):
    """A workflow of two steps, one after the other, in either kind of body."""

    @task
    def add(x):
        get_stream_writer()({"add": x})
        return x + 1

    @task(name="renamed")
    async def other(x, writer):
        writer("other")
        return x * 5

    if request.param == "sync":

        @entrypoint(checkpointer=any_saver)
        def wf(x, writer):
            writer("begin")
            return [add(x).result(), other(x).result()]
    else:

        @entrypoint(checkpointer=any_saver)
        async def wf(x, writer):
            writer("begin")
            return [await add(x), await other(x)]

    return wf


class Boom(Exception):
    pass


UPDATES = [{"add": 2}, {"renamed": 5}, {"wf": [2, 5]}]
CUSTOM = ["begin", {"add": 1}, "other"]


def test_each_mode(make, chunks):
    def of(mode, **more):
        return chunks(make, 1, stream_mode=mode, thread_id=str(mode), **more)

    assert chunks(make, 1, thread_id="default") == UPDATES
    assert of("updates") == UPDATES
    assert of("values") == [[2, 5]]
    assert of("custom") == CUSTOM
    assert of(["updates"]) == [("updates", each) for each in UPDATES]
    both = of(["updates", "custom", "values"])
    assert [chunk for mode, chunk in both if mode == "updates"] == UPDATES
    assert [chunk for mode, chunk in both if mode == "custom"] == CUSTOM
    assert [chunk for mode, chunk in both if mode == "values"] == [[2, 5]]
    assert both.index(("custom", {"add": 1})) < both.index(("updates", {"add": 2}))


def test_invoke_takes_modes_too(make):
    assert make.invoke(1, stream_mode="updates", thread_id="u") == UPDATES
    assert make.invoke(1, stream_mode="values", thread_id="v") == [2, 5]
    assert make.invoke(1, stream_mode=["values"], thread_id="l") == [("values", [2, 5])]
    assert asyncio.run(make.ainvoke(1, stream_mode="custom", thread_id="c")) == CUSTOM


def test_the_tasks_mode_gives_a_start_and_an_end_of_each(make, chunks):
    found = chunks(make, 1, stream_mode="tasks", thread_id="t")
    starts = [each for each in found if "input" in each]
    ends = [each for each in found if "input" not in each]
    assert [each["name"] for each in starts] == ["wf", "add", "renamed"]
    assert starts[1]["input"] == ((1,), {})
    by_name = {each["name"]: each for each in ends}
    assert by_name["add"]["result"] == {"__return__": 2}
    assert by_name["add"]["error"] is None and by_name["add"]["interrupts"] == []
    assert {each["id"] for each in starts} == {each["id"] for each in ends}
    assert ends[-1]["name"] == "wf"
    assert len({each["id"] for each in starts}) == 3


def test_the_tasks_mode_shows_failures(any_saver, chunks):
    @task
    def bad():
        raise Boom("x")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        try:
            bad().result()
        except Boom:
            return 1

    found = chunks(wf, 1, stream_mode="tasks", thread_id="t")
    (end,) = [each for each in found if each["name"] == "bad" and "error" in each]
    assert isinstance(end["error"], Boom)
    assert end["result"] == {}


def test_none_is_shown(any_saver, chunks):
    @task
    def nothing():
        pass

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        nothing().result()

    assert chunks(wf, 1, thread_id="t") == [{"nothing": None}, {"wf": None}]
    assert chunks(wf, 1, thread_id="v", stream_mode="values") == [None]


def test_chunks_come_when_things_happen_and_in_that_order(any_saver):
    gates = [threading.Event() for _ in range(3)]

    @task
    def t(i):
        gates[i].wait(5)
        return i

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return [f.result() for f in [t(i) for i in range(3)]]

    stream = wf.stream(1, thread_id="t")
    gates[2].set()
    assert next(stream) == {"t": 2}  # while the others still run
    gates[0].set()
    assert next(stream) == {"t": 0}
    gates[1].set()
    assert list(stream) == [{"t": 1}, {"wf": [0, 1, 2]}]


def test_an_error_comes_after_the_chunks_so_far(any_saver):
    @task
    def good():
        return 1

    @task
    def bad():
        raise Boom("x")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        good().result()
        bad().result()

    async def main():
        seen = []
        with pytest.raises(Boom):
            async for chunk in wf.astream(1, thread_id="a"):
                seen.append(chunk)
        return seen

    seen = []
    with pytest.raises(Boom):
        for chunk in wf.stream(1, thread_id="t"):
            seen.append(chunk)
    assert seen == [{"good": 1}]
    assert asyncio.run(main()) == seen


@pytest.mark.parametrize("is_async", [False, True])
def test_leaving_a_stream_cancels_its_run(any_saver, is_async):
    ran, stopped = [], threading.Event()

    @task
    def first():
        return 1

    @task
    def slow():
        ran.append("slow")
        while not weft.cancelled():
            sleep(0.002)
        stopped.set()

    @task
    def never():
        ran.append("never")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        first().result()
        slow().result()
        never().result()

    async def main():
        stream = wf.astream(1, thread_id="t")
        async for _ in stream:
            break
        await asyncio.sleep(1.001)
        assert ran == ["slow"]
        await stream.aclose()

    if is_async:
        assert within(5, lambda: timed(main)) == (None, pytest.approx(1.002))
        assert stopped.is_set()
    else:
        with nothing_left():
            stream = wf.stream(1, thread_id="t")
            assert next(stream) == {"first": 1}
            within(5, stream.close)
            assert stopped.is_set() or "slow" not in ran
    assert "never" not in ran


def test_a_task_that_is_cancelled_while_it_reads_a_stream(any_saver):
    log = []

    @task
    async def slow():
        try:
            await asyncio.sleep(30)
        finally:
            log.append("ended")

    @entrypoint(checkpointer=any_saver)
    async def wf(x, writer):
        writer("begun")
        await slow()

    async def main():
        seen = asyncio.Event()

        async def read():
            async for _ in wf.astream(1, thread_id="t", stream_mode="custom"):
                seen.set()

        reader = asyncio.create_task(read())
        await seen.wait()
        await asyncio.sleep(1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert log == ["ended"]

    assert within(5, lambda: timed(main)) == (None, 1)


def test_a_stream_that_nobody_reads_runs_nothing():
    ran = []

    @entrypoint()
    def wf(x):
        ran.append(x)

    with takes(60):
        stream = wf.stream(1)
        sleep(60)
        assert ran == []
        assert list(stream) == [{"wf": None}]
        assert ran == [1]


def test_a_sync_stream_inside_a_running_loop():
    @task
    async def t(x):
        return x

    @entrypoint()
    async def wf(x):
        return await t(x)

    async def main():
        return list(wf.stream(1))

    assert asyncio.run(main()) == [{"t": 1}, {"wf": 1}]


def test_a_question_is_shown_at_once_and_the_rest_goes_on(any_saver, chunks):
    if any_saver is None:
        return

    gate = threading.Event()

    @task
    def slow():
        gate.wait(5)
        return 1

    @task
    def ask():
        return interrupt("q")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        one, question = slow(), ask()
        return one.result(), question.result()

    stream = wf.stream(1, thread_id="t")
    first = next(stream)
    assert list(first) == ["__interrupt__"]
    (question,) = first["__interrupt__"]
    assert isinstance(question, Interrupt) and question.value == "q"
    gate.set()
    assert within(5, lambda: list(stream)) == [{"slow": 1}]
    assert chunks(wf, None, thread_id="t", stream_mode="values") == [first]
    assert chunks(wf, Command(resume={question.id: "R"}), thread_id="t") == [{"ask": "R"}, {"wf": (1, "R")}]


def test_each_of_several_questions_is_shown_once(any_saver, chunks):
    if any_saver is None:
        return

    @task
    def ask(i):
        return interrupt(i)

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return [f.result() for f in [ask(i) for i in range(3)]]

    found = chunks(wf, 1, thread_id="t")
    assert sorted(q.value for chunk in found for q in chunk["__interrupt__"]) == [0, 1, 2]


def test_recorded_calls_are_not_shown_again(any_saver, chunks):
    if any_saver is None:
        return
    broken = [True]

    @task
    def step(i):
        return i

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        found = [step(1).result()]
        if broken:
            raise Boom("x")
        return found + [step(2).result()]

    with pytest.raises(Boom):
        chunks(wf, 1, thread_id="t")
    broken.clear()
    assert chunks(wf, None, thread_id="t") == [{"step": 2}, {"wf": [1, 2]}]
    assert chunks(wf, None, thread_id="t", stream_mode="values") == [[1, 2]]  # finished


def test_cached_calls_say_so(any_saver, chunks):
    @task(cache_policy=CachePolicy())
    def cached(x):
        return x

    @entrypoint(checkpointer=any_saver, cache=InMemoryCache())
    def wf(x):
        return cached(x).result()

    assert chunks(wf, 1, thread_id="a") == [{"cached": 1}, {"wf": 1}]
    assert chunks(wf, 1, thread_id="b") == [{"cached": 1, "__metadata__": {"cached": True}}, {"wf": 1}]


def test_writers_of_deep_and_nested_bodies_reach_the_stream(any_saver, chunks):
    @task
    def leaf(writer):
        writer("leaf")

    @task
    def middle():
        leaf().result()
        get_stream_writer()("middle")

    @entrypoint()
    def inner(x, writer):
        writer("inner")
        return x

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        middle().result()
        return inner.invoke(x)

    assert chunks(wf, 1, thread_id="t", stream_mode="custom") == ["leaf", "middle", "inner"]


def test_a_reader_that_raises_ends_the_run_too(any_saver):
    @task
    async def slow():
        await asyncio.sleep(30)

    @entrypoint(checkpointer=any_saver)
    async def wf(x, writer):
        writer(1)
        await slow()

    def read():
        for _ in wf.stream(1, thread_id="t", stream_mode="custom"):
            raise Boom("reader")

    with nothing_left():
        with pytest.raises(Boom, match="reader"):
            within(5, read)
        if any_saver is not None:
            eventually(lambda: any_saver.runs(thread_id="t")[0].status.value == "cancelled")
