"""Feeds by themselves: where a block's branches come from."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.engine.feed import _AHEAD, NOTHING, Drawn, Known, Pulled, Streamed, feed_of, is_in_memory
from weft.errors import InputError


class Boom(Exception):
    pass


class FakeCall:
    """What a feed sees of the call of its block; what is posted is done when the test says so."""

    def __init__(self, loop=None, reader=None):
        self.id = "run/1"
        self.stopping = None
        self.step = SimpleNamespace(name="all of it")
        self.advanced = 0
        self.posted = []
        self.later = []
        self.own_reader = reader
        self.given_up = []
        self.run = SimpleNamespace(
            loop=loop or SimpleNamespace(call_later=self._call_later),
            post=lambda do, *args: self.posted.append((do, args)),
            grace=1.0,
            has_given_up=lambda call, why: self.given_up.append((call.step.name, call.id, why)),
            clock=SimpleNamespace(leave=lambda: None, enter=lambda: None),
        )

    def _call_later(self, after, do, *args):
        self.later.append((after, do))
        return SimpleNamespace(cancel=lambda: None)

    def advance_soon(self):
        self.advanced += 1

    def source_context(self):
        return copy_context()

    def reader_of_source(self):
        return self.own_reader

    def do_what_was_posted(self):
        while self.posted:
            do, args = self.posted.pop(0)
            do(*args)


class FakeReader:
    """A thread that reads, as the one of a caller or one of ours."""

    def __init__(self):
        self.threads = []
        self.rests = 0

    @contextmanager
    def resting(self):
        self.rests += 1
        yield
        self.rests -= 1

    def put(self, job):
        thread = threading.Thread(target=job, daemon=True)
        self.threads.append(thread)
        thread.start()

    @property
    def is_at_work(self):
        return any(thread.is_alive() for thread in self.threads)

    def join(self):
        for thread in self.threads:
            thread.join(10)
        assert not self.is_at_work


def pulled(source):
    reader = FakeReader()
    call = FakeCall(reader=reader)
    return Pulled(source, call, reader), call, reader


def quiet(read):
    """Wait until nothing more is read."""
    before = -1
    while before != (before := len(read)):
        time.sleep(0.02)


def counting(read, end=None):
    number = 0
    while end is None or number < end:
        read.append(number)
        yield number
        number += 1


# Which feed


@pytest.mark.parametrize(
    "source", [[], (), range(3), {1}, frozenset(), {}, {}.keys(), {}.values(), {}.items(), "a", b"a"]
)
def test_what_is_in_memory_is_known_to_be(source):
    assert is_in_memory(source)
    feed = feed_of(source, FakeCall())
    assert isinstance(feed, Known)
    assert feed.total == len(source)


@pytest.mark.parametrize("source", [iter([]), (x for x in ()), map(str, []), object(), None, 3])
def test_what_can_be_read_once_is_not_in_memory(source):
    assert not is_in_memory(source)


def test_the_kind_of_feed_follows_from_the_source_and_from_who_would_read_it():
    async def agen():
        yield 1

    async def main():
        call = FakeCall(loop=asyncio.get_running_loop())
        feed = feed_of(agen(), call)
        assert isinstance(feed, Streamed)
        done = asyncio.get_running_loop().create_future()
        feed.close(lambda: done.set_result(None))
        await done

    asyncio.run(main())
    assert isinstance(feed_of(iter([1]), FakeCall()), Drawn)
    assert isinstance(feed_of(iter([1]), FakeCall(reader=FakeReader())), Pulled)


@pytest.mark.parametrize("source", [None, 3, object(), len])
def test_what_is_no_iterable_is_refused_naming_the_block_and_the_value(source):
    with pytest.raises(InputError, match="'all of it'") as caught:
        feed_of(source, FakeCall())
    assert type(source).__name__ in str(caught.value)


# Known


@given(st.lists(st.integers()))
def test_known_items_come_in_order_and_then_nothing(items):
    feed = Known(items)
    assert feed.total == len(items)
    for item in items:
        assert not feed.is_over
        assert feed.next() == item
    assert feed.is_over
    assert feed.next() is NOTHING
    assert feed.next() is NOTHING


def test_closing_what_is_known_is_done_at_once():
    closed = []
    Known([1]).close(lambda: closed.append(1))
    assert closed == [1]


# Drawn


def test_drawn_is_read_only_when_asked_and_its_total_is_known_at_its_end():
    read = []
    feed = Drawn(counting(read, 2), FakeCall())
    assert (read, feed.total) == ([], None)
    assert feed.next() == 0
    assert read == [0]
    assert feed.next() == 1
    assert (feed.total, feed.is_over) == (None, False)
    assert feed.next() is NOTHING
    assert (feed.total, feed.is_over) == (2, True)
    assert feed.next() is NOTHING


def test_what_a_drawn_source_raises_has_a_note():
    def source():
        yield 1
        raise Boom

    feed = Drawn(source(), FakeCall())
    assert feed.next() == 1
    with pytest.raises(Boom) as caught:
        feed.next()
    assert caught.value.__notes__ == ["raised by the source of 'all of it'"]


def test_a_drawn_generator_runs_its_finally_when_it_is_closed():
    ended = []

    def source():
        try:
            yield 1
            yield 2
        finally:
            ended.append(1)

    feed = Drawn(source(), FakeCall())
    feed.next()
    feed.close(lambda: ended.append("then"))
    assert ended == [1, "then"]


# Pulled


@settings(max_examples=60, deadline=None)
@given(
    count=st.one_of(st.integers(0, 5), st.integers(60, 300)),
    fails=st.booleans(),
    rhythm=st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any),
)
def test_pulled_items_come_once_in_order_and_nothing_stands_still(count, fails, rhythm):
    """The block asks for as many as it has room for, and again only when it is told that there may be something."""
    read, given, errors = [], [], []

    def source():
        yield from counting(read, count)
        if fails:
            raise Boom

    feed, call, reader = pulled(source())
    room, told, deadline = itertools.cycle(rhythm), -1, time.monotonic() + 10
    is_hungry = False
    while not feed.is_over and not errors:
        assert time.monotonic() < deadline, "the block is never told"
        call.do_what_was_posted()
        if is_hungry and call.advanced == told:
            time.sleep(0)
            continue
        told, is_hungry = call.advanced, False
        for _ in range(next(room)):
            try:
                item = feed.next()
            except Boom as error:
                errors.append(error)
                break
            if item is NOTHING:
                is_hungry = True
                break
            given.append(item)
        assert len(read) - len(given) <= _AHEAD
    reader.join()
    assert given == read == list(range(count))
    if fails:
        assert [error.__notes__ for error in errors] == [["raised by the source of 'all of it'"]]
    else:
        assert feed.total == count


def test_pulled_is_read_by_one_thread_from_first_to_last():
    """So that what a source opens when it is first asked can be used to the end, and closed, where it was opened."""
    threads = []

    class Source:
        def __iter__(self):
            threads.append(threading.get_ident())
            try:
                for number in range(200):
                    threads.append(threading.get_ident())
                    yield number
            finally:
                threads.append(threading.get_ident())

    feed, call, reader = pulled(Source())
    given = []
    while not feed.is_over:
        call.do_what_was_posted()
        if (item := feed.next()) is not NOTHING:
            given.append(item)
    assert given == list(range(200))
    assert len(set(threads)) == len(reader.threads) == 1
    assert threading.get_ident() not in threads
    assert len(threads) == 202


def test_pulled_is_read_no_further_ahead_than_promised_and_goes_on_when_there_is_room():
    read = []
    feed, call, reader = pulled(counting(read))
    quiet(read)
    assert len(read) == _AHEAD
    assert reader.rests == 1  # a thread that waits is counted as one that waits
    for number in range(_AHEAD):
        assert feed.next() == number
    quiet(read)
    assert len(read) == 2 * _AHEAD
    feed.close(lambda: None)
    reader.join()
    assert len(read) == 2 * _AHEAD
    assert reader.rests == 0


@pytest.mark.parametrize("when", ["while it is read", "while it waits for room", "after its end"])
def test_closing_pulled_stops_the_reading_and_then_says_so(when):
    read, ended, reached = [], [], threading.Event()
    go_on = threading.Event()

    def source():
        try:
            for number in range(5 if when == "after its end" else 10**6):
                if when == "while it is read" and number == 5:
                    reached.set()
                    assert go_on.wait(10)
                read.append(number)
                yield number
        finally:
            ended.append("finally")

    feed, call, reader = pulled(source())
    if when == "while it is read":
        assert reached.wait(10)
    else:
        quiet(read)
    if when == "after its end":
        reader.join()
        call.do_what_was_posted()
    feed.close(lambda: ended.append("then"))
    go_on.set()
    reader.join()
    call.do_what_was_posted()
    assert ended == ["finally", "then"]
    assert len(read) == {"while it is read": 6, "while it waits for room": _AHEAD, "after its end": 5}[when]


def test_closing_a_source_that_blocks_waits_no_longer_than_the_grace():
    ended, go_on = [], threading.Event()

    def source():
        assert go_on.wait(10)
        yield 1

    feed, call, reader = pulled(source())
    feed.close(lambda: ended.append("then"))
    assert not ended
    ((after, give_up),) = call.later
    assert after == 1.0
    give_up()
    assert ended == ["then"]
    assert call.given_up == [("all of it", "run/1", "its source was still being read")]
    go_on.set()  # it comes back after all
    reader.join()
    call.do_what_was_posted()
    assert ended == ["then"]


# Streamed


def streaming(test):
    """A test in a loop, given a call on it."""

    def run():
        async def main():
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(test(FakeCall(loop=loop)), 10)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


async def go_round(times=5):
    for _ in range(times):
        await asyncio.sleep(0)


async def closed(feed):
    done = asyncio.get_running_loop().create_future()
    feed.close(lambda: done.set_result(None))
    await done


@streaming
async def test_streamed_reads_no_further_ahead_than_promised(call):
    read = []

    async def source():
        for number in range(10**6):
            read.append(number)
            yield number

    feed = Streamed(source(), call)
    await go_round()
    assert len(read) == _AHEAD
    assert [feed.next() for _ in range(_AHEAD)] == list(range(_AHEAD))
    assert feed.next() is NOTHING
    await go_round()
    assert len(read) == 2 * _AHEAD
    await closed(feed)
    assert len(read) == 2 * _AHEAD


@streaming
async def test_streamed_items_come_once_and_in_order_whatever_the_rhythm(call):
    async def source():
        for number in range(500):
            if number % 7 == 0:
                await asyncio.sleep(0)
            yield number

    feed, given = Streamed(source(), call), []
    while not feed.is_over:
        for _ in range(len(given) % 5 + 1):
            if (item := feed.next()) is not NOTHING:
                given.append(item)
        await asyncio.sleep(0)
    assert given == list(range(500))
    assert feed.total == 500


@streaming
async def test_streamed_gives_what_was_read_before_the_error(call):
    async def source():
        yield 1
        yield 2
        raise Boom

    feed = Streamed(source(), call)
    await go_round()
    assert not feed.is_over
    assert (feed.next(), feed.next()) == (1, 2)
    with pytest.raises(Boom) as caught:
        feed.next()
    assert caught.value.__notes__ == ["raised by the source of 'all of it'"]
    assert call.advanced


@pytest.mark.parametrize("at", ["a yield", "an await", "its end"])
def test_closing_streamed_runs_the_finally_of_a_generator(at):
    @streaming
    async def run(call):
        ended = []

        async def source():
            try:
                yield 1
                if at == "a yield":
                    while True:
                        yield 2
                elif at == "an await":
                    await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                ended.append("finally")

        feed = Streamed(source(), call)
        await go_round()
        await closed(feed)
        assert ended == ["finally"]

    run()


@streaming
async def test_closing_streamed_before_its_task_has_begun_ends_it(call):
    async def source():
        yield 1

    await closed(Streamed(source(), call))


variable = ContextVar("variable", default="outside")


@streaming
async def test_streamed_is_read_in_a_context_of_its_own(call):
    async def source():
        variable.set("source")
        yield variable.get()

    feed = Streamed(source(), call)
    await go_round()
    assert feed.next() == "source"
    assert variable.get() == "outside"
