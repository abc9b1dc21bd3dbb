"""Sources of every kind, read as there is room, and results one by one."""

from __future__ import annotations

import asyncio
import collections
import gc
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from contextlib import aclosing, closing, contextmanager, suppress
from pathlib import Path

import pytest
from leftovers import eventually, nothing_left, within

import weft
from weft import (
    DefinitionError,
    Failed,
    InputError,
    Ok,
    ParallelExecutionError,
    ParallelTimeoutError,
    RetryPolicy,
    entrypoint,
    tolerate,
)
from weft.engine.feed import _AHEAD
from weft.testing import run as virtually
from weft.testing import virtual_clock

WINDOW = 64  # of a map whose width is at most 8


class Boom(Exception):
    pass


def double(x):
    return 2 * x


async def adouble(x):
    await asyncio.sleep(0)
    return 2 * x


def same(x):
    return x


# The faces: map, and the stream of a map; from sync code, from async code, and in both kinds of bodies


def by_map(step, items, **options):
    return weft.map(step, items, **options)


def by_amap(step, items, **options):
    return asyncio.run(weft.amap(step, items, **options))


def by_map_in_a_body(step, items, **options):
    @entrypoint()
    def flow(_):
        return weft.map(step, items, **options)

    return flow.invoke(None)


def by_amap_in_a_body(step, items, **options):
    @entrypoint()
    async def flow(_):
        return await weft.amap(step, items, **options)

    return asyncio.run(flow.ainvoke(None))


def look_at_all(results, look):
    found = []
    with closing(results):
        for result in results:
            found.append(result)
            if look is not None and look(result):
                break
    return found


async def alook_at_all(results, look):
    found = []
    async with aclosing(results):
        async for result in results:
            found.append(result)
            if look is not None and look(result):
                break
    return found


def by_stream(step, items, *, look=None, ordered=True, **options):
    return look_at_all(weft.map(step, **options).stream(items, ordered=ordered), look)


def by_astream(step, items, *, look=None, ordered=True, **options):
    async def main():
        found = await alook_at_all(weft.map(step, **options).astream(items, ordered=ordered), look)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found

    return asyncio.run(main())


def by_stream_in_a_body(step, items, *, look=None, ordered=True, **options):
    @entrypoint()
    def flow(_):
        return look_at_all(weft.map(step, **options).stream(items, ordered=ordered), look)

    return flow.invoke(None)


def by_astream_in_a_body(step, items, *, look=None, ordered=True, **options):
    @entrypoint()
    async def flow(_):
        return await alook_at_all(weft.map(step, **options).astream(items, ordered=ordered), look)

    return asyncio.run(flow.ainvoke(None))


STREAMS = [by_stream, by_astream, by_stream_in_a_body, by_astream_in_a_body]
MAPS = [by_map, by_amap, by_map_in_a_body, by_amap_in_a_body]


def limited(face):
    """The face, in a thread that the test waits for within reason, and with nothing left afterwards."""

    def call(*args, **options):
        with nothing_left():
            return within(20, lambda: face(*args, **options))

    return call


def faces(several):
    return {"params": several, "ids": [face.__name__ for face in several]}


@pytest.fixture(**faces(MAPS + STREAMS))
def mapped(request):
    """Gives a list of all results, in the order of the items."""
    return limited(request.param)


@pytest.fixture(**faces(STREAMS))
def streamed(request):
    return limited(request.param)


# Sources


class Shelf:
    """An iterable, and no iterator: it can be read again."""

    def __init__(self, count=5):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


class Once:
    """An iterator written by hand, which says nothing of how many there are."""

    def __init__(self, count=5):
        self.left = count
        self.count = count

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.count - self.left - 1


class OldSequence:
    """What ``for`` takes because it can be indexed from 0."""

    def __init__(self, count=5):
        self.count = count

    def __getitem__(self, place):
        if place >= self.count:
            raise IndexError(place)
        return place


class AsyncShelf:
    """An async iterable, and no iterator."""

    def __init__(self, count=5):
        self.count = count

    async def __aiter__(self):
        for number in range(self.count):
            await asyncio.sleep(0)
            yield number


class AsyncOnce:
    """An async iterator written by hand; it has no ``aclose``."""

    def __init__(self, count=5):
        self.left = count
        self.count = count

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.count - self.left - 1


def generated(count=5):
    yield from range(count)


async def agenerated(count=5):
    for number in range(count):
        yield number


SOURCES = {
    "list": lambda n: list(range(n)),
    "tuple": lambda n: tuple(range(n)),
    "range": range,
    "set": lambda n: set(range(n)),
    "frozenset": lambda n: frozenset(range(n)),
    "dict": lambda n: dict.fromkeys(range(n), "value"),
    "keys": lambda n: dict.fromkeys(range(n)).keys(),
    "values": lambda n: {str(k): k for k in range(n)}.values(),
    "deque": lambda n: collections.deque(range(n)),
    "bytes": lambda n: bytes(range(n)),
    "bytearray": lambda n: bytearray(range(n)),
    "UserList": lambda n: collections.UserList(range(n)),
    "OrderedDict": lambda n: collections.OrderedDict.fromkeys(range(n)),
    "ordered keys": lambda n: collections.OrderedDict.fromkeys(range(n)).keys(),
    "generator": generated,
    "iterator": lambda n: iter(list(range(n))),
    "sentinel": lambda n: iter(lambda left=iter(range(n)): next(left, None), None),
    "zip": lambda n: (pair[0] for pair in zip(range(n), range(n), strict=True)),
    "iterable": Shelf,
    "iterator by hand": Once,
    "old sequence": OldSequence,
    "async generator": agenerated,
    "async iterable": AsyncShelf,
    "async iterator by hand": AsyncOnce,
}


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_all_its_items_once(mapped, kind, count):
    assert mapped(double, SOURCES[kind](count)) == [2 * x for x in range(count)]


@pytest.mark.parametrize("kind", ["generator", "async generator", "list"])
def test_a_source_of_more_items_than_any_window_is_read_to_the_end(mapped, kind):
    assert mapped(adouble, SOURCES[kind](1000), max_concurrent=7) == [2 * x for x in range(1000)]


def test_a_string_is_its_characters_and_a_dict_view_its_pairs(mapped):
    assert mapped(same, "abc") == ["a", "b", "c"]
    assert mapped(lambda key, value: f"{key}{value}", {"a": 1, "b": 2}.items()) == ["a1", "b2"]


def test_an_open_file_gives_its_lines(mapped, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"line {n}\n" for n in range(200)))
    with path.open() as lines:
        assert mapped(str.strip, lines, max_concurrent=3) == [f"line {n}" for n in range(200)]
        assert lines.tell() == path.stat().st_size if not lines.closed else True


def test_what_is_both_kinds_of_iterable_is_read_as_the_async_one(mapped):
    class Both(AsyncShelf):
        def __iter__(self):
            raise AssertionError("read as a sync iterable")

    assert mapped(double, Both(3)) == [0, 2, 4]


def test_a_list_that_changes_meanwhile_ends_the_map_all_the_same(mapped):
    items = list(range(50))

    def clear(x):
        items.clear()
        return x

    try:
        found = mapped(clear, items, max_concurrent=2)
    except RuntimeError as error:
        assert "changed" in str(error)
    else:
        assert found == list(range(50))


def test_a_list_that_iterates_in_its_own_way_gives_what_it_iterates(mapped):
    """Its length says nothing then."""

    class Odd(list):
        def __iter__(self):
            return iter([7, 8, 9])

    assert mapped(double, Odd([1])) == [14, 16, 18]


# Sources in sources


def test_a_map_of_maps_over_lazy_sources_ends(mapped):
    """More outer items than are read ahead: no thread may wait for room that only another source's thread can make."""
    items = (collections.UserList([n, n]) for n in range(3 * _AHEAD))
    found = mapped(weft.map(adouble), items, max_concurrent=3)
    assert found == [[2 * n, 2 * n] for n in range(3 * _AHEAD)]


def test_lazy_sources_side_by_side_are_read_side_by_side():
    """The one is read to its end only when the other has given something."""
    reached = threading.Event()

    class First:
        def __iter__(self):
            yield 1
            assert reached.wait(5), "the other source was not read"
            yield 2

    class Second:
        def __iter__(self):
            reached.set()
            yield 3

    block = weft.parallel(
        weft.Sequence(lambda _: First(), weft.map(double), name="first"),
        weft.Sequence(lambda _: Second(), weft.map(double), name="second"),
    )
    with nothing_left():
        assert within(10, lambda: block(0)) == {"first": [2, 4], "second": [6]}


def paging(count):
    for number in range(count):
        yield weft.map(double, [number])[0]


async def apaging(count):
    for number in range(count):
        yield (await weft.amap(double, [number]))[0]


@pytest.mark.parametrize("width", [None, 1, 2])
@pytest.mark.parametrize("source", [paging, apaging])
def test_a_source_may_use_the_run_that_reads_it(source, width):
    """As one that pages through an API with steps of its own: whatever the width, it gets its turn."""

    @entrypoint()
    def flow(count):
        return weft.map(double, source(count)), list(weft.map(double).stream(source(count)))

    @entrypoint()
    async def aflow(count):
        listed = await weft.amap(double, apaging(count))
        return listed, [each async for each in weft.map(double).astream(apaging(count))]

    expected = [4 * number for number in range(100)]
    with nothing_left():
        assert within(5, lambda: flow.invoke(100, max_concurrent=width)) == (expected, expected)
        found = within(5, lambda: asyncio.run(aflow.ainvoke(100, max_concurrent=width)))
        assert found == (expected, expected)


def test_streams_can_be_sources_of_maps_and_streams(mapped):
    inner = weft.map(adouble, max_concurrent=3).stream(iter(range(300)))
    assert mapped(adouble, inner, max_concurrent=3) == [4 * x for x in range(300)]


def test_async_streams_can_be_sources():
    async def main():
        return await weft.amap(adouble, weft.map(adouble).astream(agenerated(300)))

    assert asyncio.run(main()) == [4 * x for x in range(300)]


@pytest.mark.parametrize("width", [None, 1])
def test_two_streams_of_a_body_can_be_read_in_turns(width):
    """The one ends, the other is endless and is left."""

    @entrypoint()
    def flow(_):
        both = zip(
            weft.map(double).stream(range(200)), weft.map(adouble).stream(itertools.count()), strict=False
        )
        return [a == b for a, b in both]

    with nothing_left():
        assert within(10, lambda: flow.invoke(0, max_concurrent=width)) == [True] * 200


def test_a_body_can_go_on_after_a_map_or_a_stream_of_its_has_failed():
    async def work(x):
        if x == 3:
            raise Boom(x)
        return x

    @entrypoint()
    def flow(_):
        taken = []
        with suppress(ParallelExecutionError):
            weft.map(work, iter(range(100)), max_concurrent=2)
        with suppress(ParallelExecutionError):
            taken.extend(weft.map(work, max_concurrent=1).stream(itertools.count()))
        with suppress(ParallelExecutionError):
            for result in weft.map(work, max_concurrent=1).stream(itertools.count()):
                taken.append(result)
        return taken, weft.map(double, [1])

    with nothing_left():
        assert within(10, lambda: flow.invoke(0)) == ([0, 1, 2, 0, 1, 2], [2])


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_the_source_of_a_step_that_is_out_of_time_was_closed(is_async, is_stream):
    """The map is stopped by the call around it, whose thread, if it has one, comes back."""
    counted = Counted()

    async def slow(x):
        await asyncio.sleep(60)

    made = weft.map(slow, max_concurrent=2)

    def body(_):
        return list(made.stream(counted.sync())) if is_stream else made.invoke(counted.sync())

    async def abody(_):
        if is_stream:
            return [each async for each in made.astream(counted.waiting())]
        return await made.ainvoke(counted.waiting())

    inner = weft.task(timeout=0.1)(abody if is_async else body)

    @entrypoint()
    def flow(_):
        return inner(0).result()

    with nothing_left(), pytest.raises(weft.NodeTimeoutError):
        within(10, lambda: flow.invoke(0))
    eventually(lambda: counted.closed == 1)


# Retries of the whole


def failing_once(at):
    tries = []

    async def work(x):
        tries.append(x)
        if x == at and tries.count(x) == 1:
            raise Boom(x)
        return x

    return work


AGAIN = RetryPolicy(max_attempts=3, retry_on=ParallelExecutionError, initial_interval=0, jitter=False)


@pytest.mark.parametrize("kind", ["list", "iterable", "iterator", "generator", "async generator"])
def test_a_retry_of_the_whole_never_leaves_items_out(mapped, kind):
    """What can be read once cannot be tried again as a whole; saying so is right, a shorter list is not."""
    try:
        found = mapped(failing_once(2), SOURCES[kind](5), retry=AGAIN, max_concurrent=1)
    except (ParallelExecutionError, InputError, DefinitionError):
        pass
    else:
        assert found == list(range(5))


@pytest.mark.parametrize("ordered", [True, False])
def test_a_retry_of_the_whole_never_gives_a_result_twice(streamed, ordered):
    seen = []
    with suppress(ParallelExecutionError, InputError, DefinitionError, weft.UsageError):
        streamed(failing_once(2), range(5), look=seen.append, ordered=ordered, retry=AGAIN, max_concurrent=1)
    expected = list(range(5)) if ordered else list(zip(range(5), range(5), strict=True))
    assert seen == expected[: len(seen)]
    assert len(seen) in (0, 2, 5)


# Sources that raise


def raising_after(count, error):
    def source():
        yield from range(count)
        raise error

    return source()


def araising_after(count, error):
    async def source():
        for number in range(count):
            yield number
        raise error

    return source()


RAISING = {"sync": raising_after, "async": araising_after}


@pytest.mark.parametrize("kind", RAISING)
@pytest.mark.parametrize("options", [{}, {"on_error": "collect"}, {"on_error": tolerate(count=3)}], ids=str)
def test_what_a_source_raises_is_raised_as_it_is_and_stops_what_is_in_flight(mapped, kind, options):
    """Whatever the policy: an item that never came is no outcome."""
    begun, ended = [], []

    async def work(x):
        begun.append(x)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(x)

    error = Boom("broken source")
    with pytest.raises(Boom) as caught:
        mapped(work, RAISING[kind](3, error), max_concurrent=10, name="all of it", **options)
    assert caught.value is error
    assert any("source of 'all of it'" in note for note in error.__notes__)
    assert sorted(begun) == sorted(ended)


@pytest.mark.parametrize("where", ["__iter__", "__next__", "__aiter__", "__anext__"])
def test_the_error_of_a_source_says_whose_it_was_wherever_it_was_raised(mapped, where):
    def fail(self):
        raise Boom(where)

    body = {where: fail}
    if where in {"__next__", "__anext__"}:
        body["__iter__" if where == "__next__" else "__aiter__"] = lambda self: self
    source = type("Broken", (), body)()
    with pytest.raises(Boom) as caught:
        mapped(double, source, name="all of it")
    assert any("source of 'all of it'" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("kind", RAISING)
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
def test_a_base_exception_of_a_source_does_not_leave_anything_behind(mapped, kind, error):
    with pytest.raises(type(error)):
        mapped(adouble, RAISING[kind](3, error), max_concurrent=10)


def test_stop_iteration_out_of_a_hand_written_async_iterator_is_an_error_not_the_end(mapped):
    class Wrong(AsyncOnce):
        async def __anext__(self):
            if self.left == 2:
                raise KeyError("not the end")
            return await super().__anext__()

    with pytest.raises(KeyError, match="not the end"):
        mapped(double, Wrong())


def test_the_results_before_the_error_of_a_source_were_yielded(streamed):
    """In order, and all that were there before the source went on."""
    taken = threading.Event()

    async def source():
        for number in range(5):
            yield number
        while not taken.is_set():
            await asyncio.sleep(0.001)
        raise Boom

    found = []

    def look(result):
        found.append(result)
        if len(found) == 5:
            taken.set()

    with pytest.raises(Boom):
        streamed(double, source(), look=look)
    assert found == [0, 2, 4, 6, 8]


# Which thread reads, and when


@pytest.mark.parametrize("in_a_body", [False, True])
@pytest.mark.parametrize("is_iterator", [False, True])
@pytest.mark.parametrize("is_stream", [False, True])
def test_one_thread_reads_a_sync_source_and_for_map_it_is_that_of_the_caller(
    in_a_body, is_stream, is_iterator
):
    """That of a stream takes results meanwhile, so the source has another one, from its first to its last item."""
    threads, own = set(), set()

    class Source:
        def __iter__(self):
            try:
                for number in range(300):
                    threads.add(threading.get_ident())
                    yield number
            finally:
                threads.add(threading.get_ident())

    def main(_=None):
        own.add(threading.get_ident())
        source = iter(Source()) if is_iterator else Source()
        made = weft.map(same, max_concurrent=4)
        return list(made.stream(source)) if is_stream else made.invoke(source)

    call = entrypoint()(main) if in_a_body else None
    with nothing_left():
        found = within(20, lambda: call.invoke(0) if in_a_body else main())
    assert found == list(range(300))
    assert len(threads) == 1
    assert (threads == own) is not is_stream


@contextmanager
def table(count=200):
    """A connection that refuses to be used by any thread but the one that made it."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(count)])
        yield connection


ROWS = [(n,) for n in range(200)]
SELECT = "SELECT x FROM t ORDER BY x"


def test_a_cursor_of_sqlite_can_be_mapped_by_the_code_that_made_it():
    with table() as connection:
        assert weft.map(same, connection.execute(SELECT)) == ROWS
        assert weft.map(same, connection.execute(SELECT), max_concurrent=3) == ROWS
        assert asyncio.run(weft.amap(same, connection.execute(SELECT))) == ROWS
        assert weft.pipeline(connection.execute(SELECT), same, same_again) == ROWS


def same_again(x):
    return x


@pytest.mark.parametrize("face", [by_map, by_map_in_a_body, by_stream, by_stream_in_a_body])
def test_a_timeout_does_not_wait_for_a_sync_source_that_blocks(face):
    go_on = threading.Event()

    def source():
        yield 1
        go_on.wait(10)
        yield 2

    try:
        with pytest.raises(ParallelTimeoutError):
            within(5, lambda: face(double, source(), timeout=0.05))
    finally:
        go_on.set()


def test_a_source_that_does_not_block_is_closed_at_a_timeout_and_not_given_up():
    """Its thread waits for room, and leaves as soon as it has its turn."""

    async def slow(x):
        await asyncio.sleep(60)

    made = weft.map(slow, max_concurrent=2, timeout=0.01)
    for _ in range(20):
        counted = Counted()
        run = made.submit(counted.sync())
        with pytest.raises(ParallelTimeoutError):
            within(5, run.result)
        assert (counted.closed, run.given_up) == (1, [])


def test_a_source_that_could_not_be_stopped_is_listed_as_given_up():
    go_on = threading.Event()

    def source():
        yield 1
        go_on.wait(10)
        yield 2

    run = weft.map(double, need=1, name="all of it").submit(source(), grace=0.02)
    assert within(5, run.result) == [Ok(2)]
    assert [body.step for body in run.given_up] == ["all of it"]
    with nothing_left():
        go_on.set()


@pytest.mark.parametrize("in_async_program", [False, True])
def test_a_cursor_of_sqlite_can_be_mapped_by_the_body_that_made_it(in_async_program):
    @entrypoint()
    def flow(_):
        with table() as connection:
            return weft.map(same, connection.execute(SELECT))

    call = (lambda: asyncio.run(flow.ainvoke(0))) if in_async_program else (lambda: flow.invoke(0))
    with nothing_left():
        assert within(10, call) == ROWS


def test_a_source_that_opens_its_own_connection_can_be_streamed(streamed):
    def rows():
        with table() as connection:
            yield from connection.execute(SELECT)

    assert streamed(same, rows()) == ROWS
    assert streamed(same, rows(), look=lambda result: result == (5,)) == ROWS[:6]  # and is closed there


class Counted:
    """Endless sync and async sources that say how far they were read, and whether they were closed."""

    def __init__(self, end=None):
        self.read = 0
        self.closed = 0
        self.end = end

    def sync(self):
        try:
            while self.end is None or self.read < self.end:
                self.read += 1
                yield self.read
        finally:
            self.closed += 1

    async def waiting(self):
        try:
            while self.end is None or self.read < self.end:
                self.read += 1
                await asyncio.sleep(0)
                yield self.read
        finally:
            await asyncio.sleep(0)
            self.closed += 1

    async def ready(self):
        try:
            while self.end is None or self.read < self.end:
                self.read += 1
                yield self.read
        finally:
            self.closed += 1


KINDS = ["sync", "waiting", "ready"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("face", MAPS, ids=[face.__name__ for face in MAPS])
def test_a_source_is_not_read_further_ahead_than_promised(face, kind):
    """So a source that is expensive, or endless, is not drained for items that wait."""
    counted, begun, too_far = Counted(500), [], []

    async def work(x):
        begun.append(x)
        if counted.read > len(begun) + 3 + _AHEAD:  # three have been started, perhaps not begun
            too_far.append((counted.read, len(begun)))
        if len(begun) == 3:
            await asyncio.sleep(0.05)  # for a source that is read on all the same
        return x

    found = limited(face)(work, getattr(counted, kind)(), max_concurrent=3)
    assert found == list(range(1, 501))
    assert not too_far


def test_in_an_async_program_a_sync_source_is_read_item_by_item():
    counted, begun = Counted(100), []

    async def work(x):
        begun.append(x)
        assert counted.read <= len(begun) + 3
        await asyncio.sleep(1)

    virtually(weft.amap(work, counted.sync(), max_concurrent=3))
    assert len(begun) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_decided_block_reads_no_further_and_its_source_was_closed(mapped, kind):
    """Its ``finally`` has run when the map has ended, as that of an item has."""
    counted = Counted()
    source = getattr(counted, kind)()
    mapped(adouble, source, need=3, max_concurrent=2)
    read, closed = counted.read, counted.closed
    assert read <= 5 + WINDOW + _AHEAD
    assert closed == 1
    eventually(lambda: counted.read == read)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["fails", "times out"])
def test_the_source_of_a_map_that_fails_was_closed(mapped, kind, ending):
    counted = Counted()

    async def work(x):
        if x == 5 and ending == "fails":
            raise Boom
        if x >= 5:
            await asyncio.sleep(60)
        return x

    options = {"timeout": 0.1} if ending == "times out" else {}
    with pytest.raises((ParallelExecutionError, ParallelTimeoutError)):
        mapped(work, getattr(counted, kind)(), max_concurrent=3, **options)
    assert counted.closed == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_source_of_a_stream_that_is_left_was_closed(streamed, kind):
    counted = Counted()
    found = streamed(adouble, getattr(counted, kind)(), look=lambda result: result == 6)
    assert found == [2, 4, 6]
    assert counted.closed == 1


def test_an_async_source_that_is_waiting_when_the_block_is_decided_is_told(mapped):
    ended = []

    async def source():
        yield 1
        yield 2
        try:
            await asyncio.sleep(60)
            yield 3
        finally:
            await asyncio.sleep(0.01)
            ended.append("source")

    found = mapped(double, source(), need=2)
    assert [each.value for each in found if isinstance(each, Ok)] == [2, 4]
    assert ended == ["source"]


def test_an_async_source_that_swallows_being_told_is_told_again():
    tries = []

    async def source():
        yield 1
        while len(tries) < 3:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                tries.append(1)

    async def main():
        await weft.amap(double, source(), need=1)
        return asyncio.get_running_loop().time()

    assert virtually(main()) < 60
    assert len(tries) == 3


def test_an_async_source_has_the_time_to_clean_up():
    """Being told again is for those who swallow it, not for those who are at it."""
    ended = []

    async def source():
        yield 1
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.9)
            ended.append("source")

    virtually(weft.amap(double, source(), need=1))
    assert ended == ["source"]


def test_what_an_async_source_raises_while_it_is_closed_is_not_lost_in_the_loop(mapped):
    """The block has its result; nothing may reach the loop's handler, or end the program."""

    async def source():
        yield 1
        try:
            await asyncio.sleep(60)
        finally:
            raise Boom("while closing")

    found = mapped(double, source(), need=1)
    assert found == [Ok(2)]
    gc.collect()


# Slow sources


@pytest.mark.parametrize("face", MAPS, ids=[face.__name__ for face in MAPS])
def test_items_run_before_an_async_source_goes_on(face):
    ran = threading.Event()

    async def source():
        yield 1
        while not ran.is_set():
            await asyncio.sleep(0.001)
        yield 2

    def work(x):
        ran.set()
        return x

    assert limited(face)(work, source()) == [1, 2]


@pytest.mark.parametrize("face", [by_map, by_map_in_a_body])
def test_items_run_before_a_sync_source_that_blocks_goes_on(face):
    ran = threading.Event()

    def source():
        yield 1
        assert ran.wait(5)
        yield 2

    def work(x):
        ran.set()
        return x

    assert limited(face)(work, source()) == [1, 2]


@pytest.mark.parametrize("ordered", [True, False])
def test_results_are_there_before_an_async_source_goes_on(streamed, ordered):
    """As when results feed the source: a crawler."""
    taken = []

    async def source():
        for number in range(4):
            while len(taken) < number:
                await asyncio.sleep(0.001)
            yield number

    def look(result):
        taken.append(result)

    expected = [0, 2, 4, 6]
    found = streamed(double, source(), look=look, ordered=ordered)
    assert found == (expected if ordered else list(enumerate(expected)))


@pytest.mark.parametrize("face", [by_stream, by_stream_in_a_body], ids=["code", "body"])
def test_results_are_there_before_a_sync_source_that_blocks_goes_on(face):
    taken = threading.Event()

    def source():
        yield 1
        assert taken.wait(5), "the source was asked for more before there was the result"
        yield 2

    def look(result):
        taken.set()

    assert limited(face)(double, source(), look=look) == [2, 4]


def test_a_blocked_async_source_does_not_hold_up_the_end_of_what_is_there():
    async def source():
        yield 1
        await asyncio.sleep(100)
        yield 2

    async def main():
        loop, found = asyncio.get_running_loop(), []
        async for result in weft.map(adouble).astream(source()):
            found.append((loop.time(), result))
        return found

    assert virtually(main()) == [(0, 2), (100, 4)]


# Streams


def test_an_ordered_stream_yields_in_input_order_and_the_other_as_they_end():
    async def work(x):
        await asyncio.sleep(x)
        return -x

    async def main(**options):
        return [each async for each in weft.map(work, max_concurrent=5).astream([3, 1, 2, 4, 0.5], **options)]

    assert virtually(main()) == [-3, -1, -2, -4, -0.5]
    assert virtually(main(ordered=False)) == [(4, -0.5), (1, -1), (2, -2), (0, -3), (3, -4)]


def test_under_a_virtual_clock_a_sync_stream_yields_as_they_end():
    def work(x):
        weft.testing.sleep(x)
        return x

    with virtual_clock():
        assert list(weft.map(work, max_concurrent=3).stream([3, 1, 2], ordered=False)) == [
            (1, 1),
            (2, 2),
            (0, 3),
        ]


@pytest.mark.parametrize("kind", ["list", "sync", "waiting", "ready"])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_slow_consumer_holds_the_items_up(streamed, kind, ordered):
    """No more begin than the window, and no more are read than that and the read-ahead."""
    counted, begun, seen = Counted(400), [], []
    items = range(1, 401) if kind == "list" else getattr(counted, kind)()

    async def work(x):
        begun.append(x)
        return x

    def look(result):
        seen.append(result)
        if len(seen) in (1, 50):
            before = -1
            while before != (before := len(begun)):  # until nothing more begins
                threading.Event().wait(0.02)
        # What was taken counts in strides, so that the loop is not woken for each.
        assert len(begun) <= len(seen) + WINDOW
        assert counted.read <= len(seen) + WINDOW + _AHEAD

    found = streamed(work, items, look=look, ordered=ordered, max_concurrent=4)
    assert [each if ordered else each[1] for each in sorted(found)] == list(range(1, 401))


def test_one_slow_item_holds_up_an_ordered_stream_at_the_window():
    begun = []

    async def work(x):
        begun.append(x)
        await asyncio.sleep(1000 if x == 0 else 1)
        return x

    async def main():
        found = []
        async with aclosing(weft.map(work, max_concurrent=4).astream(itertools.count())) as results:
            async for result in results:
                if not found:
                    assert len(begun) == WINDOW
                found.append(result)
                if len(found) == 200:
                    break
        assert found == list(range(200))

    virtually(main())


def test_a_wide_map_has_a_window_that_keeps_it_busy():
    most = now = 0

    async def work(x):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(1)
        now -= 1

    async def main():
        async for _ in weft.map(work, max_concurrent=200).astream(range(1000)):
            pass
        return asyncio.get_running_loop().time()

    assert virtually(main()) == pytest.approx(5)
    assert most == 200


@pytest.mark.parametrize("step", [double, adouble])
@pytest.mark.parametrize("after", [1, 3, 70])
def test_leaving_a_stream_early_stops_what_it_began_and_waits_for_it(streamed, step, after):
    begun, ended = [], []

    async def work(x):
        begun.append(x)
        try:
            if x >= after:
                await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(x)
        return step(x) if step is double else await step(x)

    found = streamed(work, itertools.count(), look=lambda result: result == 2 * (after - 1), max_concurrent=5)
    assert found == [2 * x for x in range(after)]
    assert sorted(begun) == sorted(ended)


def test_leaving_a_stream_in_a_sync_body_waits_before_the_body_goes_on():
    """Else the body closes a file, or ends, under items that still use it."""
    ended = []

    async def work(x):
        if x == 0:
            return x
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            ended.append(x)

    @entrypoint()
    def flow(_):
        with closing(weft.map(work, max_concurrent=3).stream(range(3))) as results:
            next(results)
        return sorted(ended)

    assert within(10, lambda: flow.invoke(None)) == [1, 2]


def test_a_stream_that_is_left_with_break_alone_stops_too():
    async def work(x):
        await asyncio.sleep(0)
        return x

    def main():
        for result in weft.map(work).stream(itertools.count()):
            if result == 3:
                break

    async def amain():
        async for result in weft.map(work).astream(itertools.count()):
            if result == 3:
                break
        for _ in range(20):  # the loop closes it when the garbage collector has found it
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with nothing_left():
        within(10, main)
        within(10, lambda: asyncio.run(amain()))


def test_a_stream_that_nobody_begins_to_read_does_not_hold_up_its_body():
    @entrypoint()
    def flow(_):
        weft.map(double).stream(range(5000))
        return "done"

    with nothing_left():
        assert within(5, lambda: flow.invoke(None)) == "done"


def test_a_stream_that_a_body_keeps_half_read_ends_with_the_body():
    kept = []

    @entrypoint()
    def flow(_):
        kept.append(weft.map(double, max_concurrent=2).stream(itertools.count()))
        return next(kept[0])

    @entrypoint()
    async def aflow(_):
        kept.append(weft.map(double, max_concurrent=2).astream(itertools.count()))
        return await anext(kept[-1])

    with nothing_left():
        assert within(5, lambda: flow.invoke(None)) == 0
        assert within(5, lambda: asyncio.run(aflow.ainvoke(None))) == 0


def test_a_stream_that_is_never_read_does_not_begin_a_run():
    begun = []
    results = weft.map(begun.append).stream([1, 2])
    results.close()
    assert begun == []


@pytest.mark.parametrize("width", [1, 5])
def test_the_results_before_a_failed_item_are_yielded_before_the_error(streamed, width):
    async def work(x):
        if x == 4:
            for _ in range(50):  # the ones before it end first
                await asyncio.sleep(0)
            raise Boom(x)
        return x

    found = []
    with pytest.raises(ParallelExecutionError) as caught:
        streamed(work, range(100), look=found.append, max_concurrent=width)
    assert found == [0, 1, 2, 3]
    assert caught.value.branch == 4


def test_a_stream_of_outcomes_has_the_failures_in_their_places(streamed):
    def work(x):
        if x % 3 == 0:
            raise Boom(x)
        return x

    found = streamed(work, range(7), on_error="collect")
    assert [type(each) for each in found] == [Failed, Ok, Ok, Failed, Ok, Ok, Failed]
    assert [each.value for each in found if isinstance(each, Ok)] == [1, 2, 4, 5]


@pytest.mark.parametrize("lazy", [False, True])
def test_a_stream_that_tolerates_ends_at_the_failure_too_many(streamed, lazy):
    def work(x):
        if x in (2, 5, 8):
            raise Boom(x)
        return x

    items = (x for x in range(1000)) if lazy else range(1000)
    found = []
    with pytest.raises(ParallelExecutionError) as caught:
        streamed(work, items, look=found.append, on_error=tolerate(count=2), max_concurrent=1)
    assert caught.value.branches == (2, 5, 8)
    assert [type(each) for each in found[:8]] == [Ok, Ok, Failed, Ok, Ok, Failed, Ok, Ok]


def test_a_ratio_over_a_lazy_source_counts_what_has_ended_from_at_least_on(streamed):
    """1 of 1 is more than half, and is not judged; 3 of 5 is."""

    def work(x):
        if x in (0, 2, 4):
            raise Boom(x)
        return x

    seen = []
    with pytest.raises(ParallelExecutionError) as caught:
        streamed(
            work,
            (x for x in range(1000)),
            look=seen.append,
            on_error=tolerate(ratio=0.5, at_least=4),
            max_concurrent=1,
        )
    assert caught.value.branches == (0, 2, 4)
    assert len(seen) >= 4


def test_a_stream_with_need_ends_when_there_are_enough(streamed):
    found = streamed(adouble, itertools.count(), need=3, max_concurrent=1)
    assert found == [Ok(0), Ok(2), Ok(4)]


def test_a_stream_of_a_race_yields_the_winner(streamed):
    def work(x):
        if x < 3:
            raise Boom(x)
        return x

    assert streamed(work, itertools.count(), on_error="race", max_concurrent=1) == [3]


def test_the_timeout_of_a_stream_is_raised_after_its_results(streamed):
    async def work(x):
        if x >= 3:
            await asyncio.sleep(60)
        return x

    found = []
    with pytest.raises(ParallelTimeoutError):
        streamed(work, range(100), look=found.append, timeout=0.2, max_concurrent=5)
    assert found == [0, 1, 2]


def test_with_stream_mode_it_gives_chunks_as_everything_does():
    made = weft.map(double, name="doubled")
    chunks = list(made.stream([1, 2], stream_mode="updates"))
    assert chunks == [{"double": 2}, {"double": 4}, {"doubled": [2, 4]}]

    async def main():
        return [chunk async for chunk in made.astream(iter([1, 2]), stream_mode="values")]

    assert asyncio.run(main()) == [[2, 4]]


def test_stream_in_an_async_body_is_refused_and_names_astream():
    @entrypoint()
    async def flow(_):
        return list(weft.map(double).stream([1, 2]))

    with pytest.raises(weft.UsageError, match="astream"):
        asyncio.run(flow.ainvoke(None))


def test_what_cannot_be_iterated_is_refused_by_streams(streamed):
    with pytest.raises(InputError, match="'map\\(double\\)'.*iterable.*NoneType"):
        streamed(double, None)


def test_the_note_of_an_error_shows_the_items_and_nothing_of_ours(streamed):
    def fail(x):
        raise Boom

    with pytest.raises(ParallelExecutionError) as caught:
        streamed(fail, [1, 2, 3])
    assert not any("_Streaming" in note for note in getattr(caught.value, "__notes__", ()))


# Memory


class Big:
    alive = weakref.WeakSet()

    def __init__(self, number):
        self.number = number
        Big.alive.add(self)


class BigError(Exception):
    def __init__(self, number):
        super().__init__(number)
        self.big = Big(number)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("ending", ["ok", "fails", "fails, all tolerated"])
def test_a_stream_keeps_nothing_of_the_items_that_were_taken(ordered, ending):
    """Items, results and errors: what is alive is bounded by the window, for a million as for a hundred."""

    async def work(item):
        if ending != "ok":
            raise BigError(item.number)
        return Big(item.number)

    most = 0
    seen = 0

    def look(result):
        nonlocal most, seen
        seen += 1
        if seen % 250 == 0:
            gc.collect()
            most = max(most, len(Big.alive))

    policy = {"ok": "fail_fast", "fails": "collect"}.get(ending, tolerate(count=10_000))
    items = (Big(number) for number in range(1000))

    async def drained():
        results = weft.map(work, max_concurrent=4, on_error=policy).astream(items, ordered=ordered)
        async with aclosing(results):
            async for result in results:
                look(result)
                del result

    Big.alive.clear()
    within(20, lambda: asyncio.run(drained()))
    assert seen == 1000
    assert most <= 3 * (WINDOW + _AHEAD)


# Ctrl-C


@pytest.mark.parametrize("face", [by_map, by_stream])
def test_ctrl_c_while_a_source_blocks_stops_the_map(face):
    """For map the main thread reads, and that is where Python raises it; for a stream it waits for results."""
    begun, ended, go_on = [], [], threading.Event()

    async def work(x):
        begun.append(x)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(x)

    def source():
        yield 1
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        go_on.wait(0.5)
        yield 2

    with nothing_left(), pytest.raises(KeyboardInterrupt):
        face(work, source())
    assert sorted(begun) == sorted(ended)
    assert 1 in ended


def test_ctrl_c_while_a_stream_is_waited_for_stops_it():
    ended = []

    async def work(x):
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(x)

    with nothing_left(), pytest.raises(KeyboardInterrupt):
        list(weft.map(work, max_concurrent=1).stream(itertools.count()))
    assert ended == [0]


# The measurement


def test_the_measurement_of_a_million_items_can_be_made_of_a_few():
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "million.py"
    command = [sys.executable, str(script), "--items", "3000", "--only", "stream;list"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["stream", "list"]
    assert all(row[1] == "3,000" and 50 <= int(row[-1]) <= 100 for row in rows)


def test_sources_are_what_their_names_say():
    assert isinstance(Shelf(), Iterable)
    assert not isinstance(OldSequence(), Iterable)
    assert list(OldSequence(2)) == [0, 1]
