"""The events of a run that are kept for slow and late readers."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft import entrypoint, task
from weft import run as run_module
from weft.engine.events import CallFinished, Event, EventsLost, RunFinished, RunStarted
from weft.engine.tape import Tape


def event(number):
    return Event(run_id="r", time=float(number))


@given(st.integers(1, 8), st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=60))
def test_each_reader_gets_all_or_is_told_what_it_missed(length, steps):
    """None: an event comes; a number: that reader reads."""
    tape, count = Tape(length), 0
    places, seen = [0] * 3, [0] * 3
    for step in [*steps, 0, 1, 2]:
        if step is None:
            tape.add(event(count))
            count += 1
            continue
        places[step], found = tape.read(places[step])
        if found and isinstance(found[0], EventsLost):
            assert found[0].count > 0
            seen[step] += found.pop(0).count
        assert [each.time for each in found] == [float(n) for n in range(seen[step], seen[step] + len(found))]
        assert len(found) <= length
        seen[step] += len(found)
        assert seen[step] == count


@task
def one(number):
    return number


@entrypoint()
def many(count):
    return sum(future.result() for future in [one(number) for number in range(count)])


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(run_module, "_KEPT", 20)


def test_who_comes_late_is_told_how_much_is_missing(short):
    run = many.submit(100)
    assert run.result() == 4950
    told = list(run.events())
    assert isinstance(told[0], EventsLost)
    assert told[0].count > 100
    assert isinstance(told[-1], RunFinished)
    assert len(told) == 21


def test_a_slow_reader_neither_slows_the_run_nor_misses_its_end(short):
    run = many.submit(200)
    told, lost = [], 0
    for each in run.events():
        time.sleep(0.001 if len(told) < 20 else 0)
        told.append(each)
        lost += each.count if isinstance(each, EventsLost) else 0
    assert isinstance(told[-1], RunFinished)
    ended = sum(isinstance(each, CallFinished) for each in told)
    assert lost > 0
    assert ended < 201


def test_nothing_is_missing_for_who_keeps_up():
    run = many.submit(300)
    told = list(run.events())
    assert isinstance(told[0], RunStarted)
    assert sum(isinstance(each, CallFinished) for each in told) == 301


def test_readers_on_a_loop_and_in_threads_at_once():
    run = many.submit(100)
    counts = []

    def read():
        counts.append(sum(1 for _ in run.events()))

    async def aread():
        counts.append(len([each async for each in run.aevents()]))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    asyncio.run(aread())
    for thread in threads:
        thread.join()
    assert len(set(counts)) == 1
