"""Random workflows, nested in every way, under limits, with failures, timeouts, questions and cancels.

Whatever happens: the run ends, no limit is ever exceeded, nothing is left, and a resume goes on to a result.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from killing import seeded
from leftovers import eventually, nothing_left

from weft import (
    Command,
    InMemorySaver,
    Limit,
    ParallelExecutionError,
    RetryPolicy,
    Sequence,
    decision,
    interrupt,
    node,
    parallel,
    tolerate,
)
from weft.testing import run, sleep


class Boom(Exception):
    pass


class Gauge:
    """How many bodies are at work at once."""

    def __init__(self):
        self.most = self.now = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1


class Tree:
    """Grows a random workflow.

    Attributes:
        rng: Decides what it looks like.
        luck: Decides what its bodies do.
        unlucky: How often they fail.
    """

    def __init__(self, seed, *, unit=1.0, asks=0.0):
        self.rng = random.Random(seed)
        self.luck = random.Random(seed + 1)
        self.unit = unit  # seconds
        self.asks = asks  # how many of the leaves ask a question
        self.unlucky = self.rng.choice([0, 0, 0.1, 0.3])
        self.limits = [Limit("one", concurrent=1), Limit("two", concurrent=2), Limit("three", concurrent=3)]
        self.gauges = {each: Gauge() for each in self.limits}
        self.all = Gauge()
        self.count = 0

    @property
    def is_idle(self):
        return self.all.now == 0 and all((each.in_use, each.waiting) == (0, 0) for each in self.limits)

    def check_limits(self):
        for limit, gauge in self.gauges.items():
            assert gauge.most <= limit.concurrent, limit

    def name(self):
        self.count += 1
        return f"n{self.count}"

    @contextmanager
    def at_work(self, limits):
        gauges = [self.gauges[each].counted() for each in limits]
        for each in gauges:
            each.__enter__()
        try:
            with self.all.counted():
                yield
        finally:
            for each in gauges:
                each.__exit__(None, None, None)

    def some_limits(self, *counts):
        return self.rng.sample(self.limits, self.rng.choice(counts))

    def sometimes(self, share, **options):
        return options if self.rng.random() < share else {}

    def retry(self, *kinds):
        return RetryPolicy(initial_interval=self.unit, jitter=False, max_attempts=2, retry_on=kinds)

    def leaf(self):
        limits = self.some_limits(0, 1, 1, 2, 3)
        seconds = self.rng.choice([0, 1, 1, 2, 5]) * self.unit
        asks = self.rng.random() < self.asks
        name = self.name()

        def ended():
            if asks:
                interrupt(f"{name}?")
            if self.luck.random() < self.unlucky:
                raise Boom(name)
            return name

        async def body(value):
            with self.at_work(limits):
                await asyncio.sleep(seconds)
            return ended()

        def sync_body(value):
            with self.at_work(limits):
                sleep(seconds)
            return ended()

        options = {
            **self.sometimes(0.2, retry=self.retry(Boom)),
            **self.sometimes(0.1, timeout=1.5 * self.unit),
            **self.sometimes(0.1, total=2.5 * self.unit),
        }
        return node(name=name, limit=limits, **options)(self.rng.choice([body, sync_body]))

    def caller(self, depth):
        """A body under a limit that runs a workflow inside itself: it has to give its slot back meanwhile."""
        inner = self.grow(depth - 1)

        async def body(value):
            return await inner.ainvoke(value)

        def sync_body(value):
            return inner.invoke(value)

        return node(name=self.name(), limit=self.some_limits(0, 1, 2))(self.rng.choice([body, sync_body]))

    def chooser(self, parts):
        names = [f"p{at}" for at in range(len(parts))]
        choose = decision(self.name(), branches=dict(zip(names, parts, strict=True)))
        return choose(lambda value: self.luck.choice(names))

    def grow(self, depth):
        if depth == 0 or self.rng.random() < 0.15:
            return self.leaf()
        kind = self.rng.random()
        if kind < 0.25:
            return self.caller(depth)
        parts = [self.grow(depth - 1) for _ in range(self.rng.randint(1, 4))]
        options = {
            "name": self.name(),
            **self.sometimes(0.12, timeout=self.rng.choice([2, 10]) * self.unit),
            **self.sometimes(0.12, retry=self.retry(Exception)),
            **self.sometimes(0.08, total=6 * self.unit),
        }
        if kind < 0.33:
            return Sequence(self.chooser(parts), **options)
        if kind < 0.5:
            return Sequence(*parts, **options)
        policy = self.rng.choice(
            [
                {},
                {},
                {"on_error": "collect"},
                {"on_error": "race"},
                {"on_error": tolerate(ratio=0.5)},
                {"need": 1},
            ]
        )
        return parallel(*parts, max_concurrent=self.rng.choice([None, None, 1, 2, 3]), **policy, **options)


@contextmanager
def naming(seed):
    try:
        yield
    except BaseException as error:
        error.add_note(f"the tree of seed {seed}")
        raise


@pytest.mark.parametrize("ends", ["by itself", "cancelled", "out of time"])
def test_every_run_ends_under_its_limits_and_leaves_nothing(ends):
    rng = seeded(f"trees that end {ends}")
    for _ in range(60):
        seed = rng.randrange(2**32)
        with naming(seed):
            one_run(seed, ends)


def one_run(seed, ends):
    tree = Tree(seed)
    workflow = tree.grow(4)
    width = tree.rng.choice([None, 1, 2, 4])
    timeout = tree.rng.choice([0.5, 1.5, 4]) if ends == "out of time" else None

    async def main():
        handle = workflow.submit(1, max_concurrent=width, timeout=timeout)
        if ends == "cancelled":
            await asyncio.sleep(tree.rng.choice([0, 0.5, 1, 3]))
            handle.cancel("enough")
        with suppress(Exception, asyncio.CancelledError):
            await handle
        assert handle.status in {"finished", "failed", "cancelled"}
        if not handle.given_up:
            await nothing_of(tree)
        await asyncio.sleep(20)  # for what was given up
        assert tree.is_idle
        return bool(handle.given_up)

    given_up = run(main, seed=seed)
    tree.check_limits()
    if width is not None and not given_up:  # what is given up keeps its Limit, but not the width of its run
        assert tree.all.most <= width


async def nothing_of(tree):
    assert tree.is_idle
    await asyncio.sleep(0)  # for tasks that were cancelled before they began
    assert [each for each in asyncio.all_tasks() if each is not asyncio.current_task()] == []


def test_runs_of_many_threads_and_loops_share_the_limits_of_a_tree():
    """In real time, so that threads and loops really meet."""
    rng = seeded("shared trees")
    for _ in range(6):
        seed = rng.randrange(2**32)
        tree = Tree(seed, unit=0.001)
        workflow = tree.grow(3)

        def from_sync(number):
            with suppress(Exception):
                workflow.invoke(number, grace=0.02)

        def from_a_loop(number):
            async def main():
                async with asyncio.TaskGroup() as group:
                    for _ in range(3):
                        group.create_task(quietly(workflow.ainvoke(number, grace=0.02)))

            asyncio.run(main())

        def cancelled(number):
            handle = workflow.submit(number, grace=0.02)
            time.sleep(0.001 * number)
            handle.cancel()
            with suppress(Exception, asyncio.CancelledError):
                handle.result(20)

        kinds = [from_sync, from_a_loop, cancelled, from_sync]
        threads = [threading.Thread(target=kinds[n % 4], args=(n,)) for n in range(8)]
        with naming(seed), nothing_left():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive(), "it hangs"
            eventually(lambda: tree.is_idle)
            tree.check_limits()


async def quietly(awaitable):
    with suppress(Exception):
        await awaitable


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_what_fails_asks_or_is_cancelled_is_resumed_until_it_ends(durability):
    rng = seeded(f"resumed trees, {durability}")
    finished = 0
    for _ in range(30):
        seed = rng.randrange(2**32)
        with naming(seed):
            finished += resumed_until_it_ends(seed, durability)
    assert finished > 10


def resumed_until_it_ends(seed, durability):
    """Whether it has finished: with some timeouts it cannot."""
    tree = Tree(seed, asks=random.Random(seed).choice([0, 0.2]))
    workflow = tree.grow(4)
    rng = random.Random(seed + 2)
    options = {
        "run_id": "r",
        "checkpointer": InMemorySaver(),
        "max_concurrent": rng.choice([None, None, 1, 2, 4]),
        "durability": durability,
    }
    given = 1
    for attempt in range(25):

        async def main():
            handle = workflow.submit(given, **options)
            if rng.random() < 0.15:
                await asyncio.sleep(rng.choice([0, 0.5, 1, 3]))
                handle.cancel()
            value = error = None
            try:
                value = await handle
            except (Exception, asyncio.CancelledError) as caught:
                error = caught
            if not handle.given_up:
                await nothing_of(tree)
            await asyncio.sleep(20)
            assert tree.is_idle
            return handle.status, value, error

        status, value, error = run(main, seed=seed + attempt)
        tree.check_limits()
        if status == "finished":
            again = run(lambda: workflow.ainvoke(1, **options))
            assert repr(again) == repr(value)
            return True
        given = 1
        if status == "suspended":
            questions = value["__interrupt__"]
            some = rng.sample(questions, rng.randint(1, len(questions)))
            given = Command(resume={each.id: "yes" for each in some})
        else:
            assert isinstance(error, Boom | ParallelExecutionError | TimeoutError | asyncio.CancelledError)
            tree.unlucky *= 0.7
    return False
