"""Observers: what they are told, and that neither a slow nor a failing one is noticed by the run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading
import time

import pytest

import weft.events
from weft import Flow, Graph, Node, RunCancelledError, StreamWriter, entrypoint, node, parallel, task
from weft.events import Background, CallFinished, Event, EventsLost, RunFinished, RunStarted, UserEvent


@task
def one(number, writer=None):
    return number


@entrypoint()
def many(count):
    return sum(future.result() for future in [one(number) for number in range(count)])


@node(name="only", start=True, end=True)
def only(query):
    return {"found": query}


class Step(Node):
    def exec(self, prep_res):
        return 1


@pytest.mark.parametrize(
    ("workflow", "given"),
    [
        (many, 3),
        (parallel(one, name="block"), 1),
        (Graph().add_node(only).compile(), {"query": 1}),
        (Flow(start=Step()), {}),
    ],
    ids=["functional", "compose", "graph", "batch"],
)
def test_every_style_tells_one_ordered_stream(workflow, given):
    told: list[Event] = []
    workflow.invoke(given, observers=[told.append])
    assert isinstance(told[0], RunStarted)
    assert isinstance(told[-1], RunFinished)
    assert any(isinstance(event, CallFinished) and event.parent_id for event in told)
    assert len({event.run_id for event in told}) == 1
    assert [event.time for event in told] == sorted(event.time for event in told)


@pytest.mark.parametrize(
    "name", [name for name in weft.events.__all__ if name not in ("Observer", "Background")]
)
def test_events_are_frozen_dataclasses_with_a_documented_meaning(name):
    kind = getattr(weft.events, name)
    assert issubclass(kind, Event)
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert kind.__doc__


def test_one_that_raises_is_told_nothing_more_and_the_run_goes_on(caplog):
    told = []

    def failing(event):
        told.append(event)
        raise SystemExit(3)

    assert many.invoke(5, observers=[failing]) == 10
    assert len(told) == 1
    assert "failing" in caplog.text


def test_a_slow_one_in_the_background_slows_nothing_and_is_told_all(caplog):
    told, may_go_on = [], threading.Event()

    def slow(event):
        may_go_on.wait()
        told.append(event)

    with Background(slow) as observer:
        assert many.invoke(100, observers=[observer]) == 4950
        assert told == []
        may_go_on.set()
    assert isinstance(told[-1], RunFinished)
    assert sum(isinstance(event, CallFinished) for event in told) == 101
    assert not any(thread.name == "weft-observer" for thread in threading.enumerate())


def test_what_waits_for_it_is_bounded():
    told, may_go_on = [], threading.Event()

    def slow(event):
        may_go_on.wait()
        told.append(event)

    with Background(slow, length=50) as observer:
        many.invoke(300, observers=[observer])
        may_go_on.set()
    lost = sum(event.count for event in told if isinstance(event, EventsLost))
    assert lost > 500
    assert len(told) < 120
    assert isinstance(told[-1], RunFinished)


def test_one_that_raises_in_the_background_is_told_nothing_more(caplog):
    def failing(event):
        raise KeyError("no")

    with Background(failing) as observer:
        assert many.invoke(5, observers=[observer]) == 10
    assert "told nothing more" in caplog.text


def test_several_runs_at_once_share_one_in_the_background():
    told = []
    with Background(told.append) as observer:
        threads = [threading.Thread(target=lambda: many.invoke(20, observers=[observer])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(isinstance(event, RunFinished) for event in told) == 4
    assert sum(isinstance(event, CallFinished) for event in told) == 84


def test_what_a_body_writes_is_told_in_its_order():
    @task
    def talk(count, writer):
        for number in range(count):
            writer(number)
            time.sleep(0)

    @entrypoint()
    def flow(count):
        return talk(count).result()

    told = []
    flow.invoke(50, observers=[told.append])
    assert [event.value for event in told if isinstance(event, UserEvent)] == list(range(50))


@pytest.mark.parametrize("wrong", [print, [3], "show", {"a": 1}])
def test_what_is_no_list_of_observers_is_refused(wrong):
    with pytest.raises(weft.InputError, match="observer"):
        many.invoke(1, observers=wrong)


def test_the_events_end_though_a_body_that_was_given_up_still_writes():
    over = threading.Event()

    @task
    def talks(writer: StreamWriter):
        while not over.wait(0.001):
            writer("x")

    @entrypoint()
    def workflow(_):
        return talks().result()

    run = workflow.submit(1, grace=0.01)
    next(event for event in run.events() if isinstance(event, UserEvent))
    run.cancel()
    with pytest.raises((RunCancelledError, asyncio.CancelledError, concurrent.futures.CancelledError)):
        run.result(10)
    time.sleep(0.1)  # in which it writes on
    found = []
    reader = threading.Thread(target=lambda: found.extend(run.events()), daemon=True)
    reader.start()
    reader.join(10)
    over.set()
    assert isinstance(found[-1], RunFinished)
    assert not reader.is_alive()
