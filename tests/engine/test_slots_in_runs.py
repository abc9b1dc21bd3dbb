"""Limits hold and nesting never deadlocks, whatever way a parent waits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from leftovers import takes, timed

from weft import InMemorySaver, entrypoint, task


class Gauge:
    """Counts what is at work, in the bodies themselves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.peak = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.peak = max(self.peak, self.now)

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self.now -= 1


def by_result(futures: list[Any]) -> int:
    return sum(f.result() for f in futures)


def by_wait(futures: list[Any]) -> int:
    done, rest = concurrent.futures.wait(futures)
    assert not rest
    return sum(f.result() for f in done)


def by_first(futures: list[Any]) -> int:
    total, rest = 0, set(futures)
    while rest:
        done, rest = concurrent.futures.wait(rest, return_when=concurrent.futures.FIRST_COMPLETED)
        total += sum(f.result() for f in done)
    return total


def by_completed(futures: list[Any]) -> int:
    return sum(f.result() for f in concurrent.futures.as_completed(futures))


async def by_await(futures: list[Any]) -> int:
    return sum([await f for f in futures])


async def by_gather(futures: list[Any]) -> int:
    return sum(await asyncio.gather(*futures))


async def by_async_wait(futures: list[Any]) -> int:
    done, _ = await asyncio.wait(futures)
    return sum(f.result() for f in done)


async def by_async_completed(futures: list[Any]) -> int:
    return sum([await f for f in asyncio.as_completed(futures)])


async def by_group(futures: list[Any]) -> int:
    async def one(future: Any) -> int:
        return await future

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(f)) for f in futures]
    return sum(t.result() for t in tasks)


SYNC_WAYS = [by_result, by_wait, by_first, by_completed]
ASYNC_WAYS = [by_await, by_gather, by_async_wait, by_async_completed, by_group]


def sync_program(wait: Callable[[list[Any]], int], gauge: Gauge, pause: float) -> Any:
    @task
    def leaf(i: int) -> int:
        with gauge:
            time.sleep(pause)
            return i

    @task
    def parent(i: int) -> int:
        with gauge:
            time.sleep(pause)
        total = wait([leaf(i), leaf(i + 1), leaf(i + 2)])
        with gauge:
            return total

    @entrypoint()
    def flow(n: int) -> int:
        return sum(f.result() for f in [parent(i) for i in range(n)])

    return flow


def async_program(wait: Callable[[list[Any]], Any], gauge: Gauge, pause: float) -> Any:
    @task
    async def leaf(i: int) -> int:
        with gauge:
            await asyncio.sleep(pause)
            return i

    @task
    async def parent(i: int) -> int:
        with gauge:
            await asyncio.sleep(pause)
        total = await wait([leaf(i), leaf(i + 1), leaf(i + 2)])
        with gauge:
            await asyncio.sleep(0)
            return total

    @entrypoint()
    async def flow(n: int) -> int:
        return sum(await asyncio.gather(*[parent(i) for i in range(n)]))

    return flow


def expected(n: int) -> int:
    return sum(3 * i + 3 for i in range(n))


@pytest.mark.parametrize("journal", [False, True], ids=["plain", "journal"])
@pytest.mark.parametrize("wait", SYNC_WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("width", [1, 2])
def test_a_thread_that_waits_gives_its_slot_back(wait: Any, width: int, journal: bool):
    """It would deadlock if it did not: every slot is held by a parent, and no child can start."""
    gauge = Gauge()
    options = {"checkpointer": InMemorySaver(), "run_id": "r"} if journal else {}
    flow = sync_program(wait, gauge, 0.0005)
    assert flow.invoke(6, max_concurrent=width, **options) == expected(6)
    assert gauge.peak <= width


@pytest.mark.parametrize("journal", [False, True], ids=["plain", "journal"])
@pytest.mark.parametrize("wait", ASYNC_WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("width", [1, 2])
def test_a_task_that_waits_gives_its_slot_back(wait: Any, width: int, journal: bool):
    gauge = Gauge()
    options = {"checkpointer": InMemorySaver(), "run_id": "r"} if journal else {}
    flow = async_program(wait, gauge, 1)
    with takes(24 / width):  # 6 parents and 18 leaves, and no slot is ever idle
        assert flow.invoke(6, max_concurrent=width, **options) == expected(6)
    assert gauge.peak == width


@pytest.mark.parametrize("width", [1, 2, 8])
@pytest.mark.parametrize("make", [sync_program, async_program], ids=["sync", "async"])
def test_200_parents_of_3_children_each(make: Any, width: int):
    gauge = Gauge()
    wait = by_gather if make is async_program else by_result
    assert make(wait, gauge, 0.0).invoke(200, {"max_concurrency": width}) == expected(200)
    assert gauge.peak <= width


def test_64_sync_tasks_overlap():
    """None waits for a small pool."""

    @task
    def sleep(i: int) -> int:
        time.sleep(0.2)
        return i

    @entrypoint()
    def flow(n: int) -> list[int]:
        return [f.result() for f in [sleep(i) for i in range(n)]]

    began = time.monotonic()
    assert flow.invoke(64) == list(range(64))
    assert time.monotonic() - began < 64 * 0.2 / 6  # six threads would need that long


def test_more_sync_parents_than_threads_may_work_at_once_do_not_deadlock():
    @task
    def leaf(i: int) -> int:
        return i

    @task
    def parent(i: int) -> int:
        return leaf(i).result() + leaf(i).result()

    @entrypoint()
    def flow(n: int) -> int:
        return sum(f.result() for f in [parent(i) for i in range(n)])

    assert flow.invoke(700) == 2 * sum(range(700))


def test_a_thousand_levels_of_tasks():
    @task
    async def down(n: int) -> int:
        return 0 if n == 0 else 1 + await down(n - 1)

    @entrypoint()
    async def flow(n: int) -> int:
        return await down(n)

    assert flow.invoke(1000) == 1000
    assert flow.invoke(1000, max_concurrent=1) == 1000


def test_a_thousand_levels_of_tasks_are_cancelled_leaves_first():
    ended: list[int] = []

    @task
    async def down(n: int) -> int:
        try:
            return await (asyncio.sleep(60) if n == 0 else down(n - 1))
        finally:
            ended.append(n)

    @entrypoint()
    async def flow(n: int) -> int:
        return await down(n)

    async def main() -> None:
        running = asyncio.ensure_future(flow.ainvoke(1000))
        await asyncio.sleep(1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    assert timed(main) == (None, 1)
    assert ended == list(range(1001))
