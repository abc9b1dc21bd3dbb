"""What ends in the same turn of the loop is committed and shown together, and nobody goes round for nothing."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from weft import InMemorySaver, entrypoint, task
from weft.checkpoint.base import RecordKind, Write
from weft.engine.scope import Scope


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test, run on a loop of its own."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


class Counting(InMemorySaver):
    """Notes how many outcomes each commit has."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[int] = []

    def commit(self, writes: Sequence[Write]) -> set[str]:
        outcomes = [r for write in writes for r in write.records if r.kind is RecordKind.OK]
        if outcomes:
            self.commits.append(len(outcomes))
        return super().commit(writes)


@task
async def double(n: int) -> int:
    return 2 * n


@task
async def later(n: int) -> int:
    for _ in range(n):
        await asyncio.sleep(0)
    return n


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@on_a_loop
async def test_a_fan_out_is_one_commit_and_one_batch(durability: str) -> None:
    saver = Counting()

    @entrypoint(checkpointer=saver)
    async def workflow(size: int) -> list[int]:
        return list(await asyncio.gather(*[double(n) for n in range(size)]))

    assert await workflow.ainvoke(300, run_id="r", durability=durability) == [2 * n for n in range(300)]
    assert saver.commits == [300]
    batches = {record.batch for _, record in saver.records("r") if record.kind is RecordKind.OK}
    assert len(batches) == 1


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@on_a_loop
async def test_what_ends_in_different_turns_is_seen_in_the_order_of_ending(durability: str) -> None:
    saver = Counting()
    seen: list[int] = []

    @entrypoint(checkpointer=saver)
    async def workflow(_: int) -> list[int]:
        calls = [later(n) for n in (30, 10, 20, 0)]
        for next_one in asyncio.as_completed(calls):
            seen.append(await next_one)
        return seen

    await workflow.ainvoke(0, run_id="r", durability=durability)
    assert seen == [0, 10, 20, 30]
    if durability == "sync":
        assert saver.commits == [1, 1, 1, 1]


@on_a_loop
async def test_sync_bodies_that_have_ended_meanwhile_are_committed_together() -> None:
    """Their threads tell the loop one by one; it takes up what there is."""
    saver = Counting()

    @task
    def one(n: int) -> int:
        return n

    @entrypoint(checkpointer=saver)
    async def workflow(size: int) -> int:
        calls = [one(n) for n in range(size)]
        until = asyncio.get_running_loop().time() + 0.2
        while asyncio.get_running_loop().time() < until:
            pass  # the loop has no turn until the threads have ended
        return len(await asyncio.gather(*calls))

    assert await workflow.ainvoke(20, run_id="r") == 20
    assert sum(saver.commits) == 20
    assert len(saver.commits) < 10


def counted_rounds(monkeypatch: pytest.MonkeyPatch) -> Counter[Scope]:
    """How often the loop went round for each body, from now on."""
    rounds: Counter[Scope] = Counter()
    go_round = Scope._round

    def counted(self: Scope) -> None:
        rounds[self] += 1
        go_round(self)

    monkeypatch.setattr(Scope, "_round", counted)
    return rounds


@on_a_loop
async def test_nothing_goes_round_for_a_body_that_awaits_one_call_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = counted_rounds(monkeypatch)

    @entrypoint(checkpointer=InMemorySaver())
    async def workflow(n: int) -> int:
        for _ in range(5):
            n = await double(n)
        return n

    assert await workflow.ainvoke(1, run_id="r") == 32
    assert not rounds


@pytest.mark.parametrize("turns", [1, 3, 10])
def test_a_body_that_takes_its_time_after_an_outcome_sees_the_next_as_late_in_every_life(turns: int) -> None:
    saver, lives = InMemorySaver(), 0

    @task
    async def crash() -> None:
        if lives == 1:
            raise ConnectionError

    @entrypoint(checkpointer=saver)
    async def workflow(n: int) -> tuple[bool, int]:
        n = await double(n)
        other = double(n)
        for _ in range(turns):
            await asyncio.sleep(0)
        was_there = other.done()
        await crash()
        return was_there, await other

    seen = []
    for lives in (1, 2):  # noqa: B007 - the task reads it
        try:
            seen.append(workflow.invoke(1, run_id="r"))
        except ConnectionError:
            assert lives == 1
    assert seen == [(False, 4)]
    assert asyncio.run(workflow.ainvoke(1, run_id="another")) == (False, 4)


@on_a_loop
async def test_nothing_goes_round_for_a_body_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = counted_rounds(monkeypatch)

    @entrypoint(checkpointer=InMemorySaver())
    async def workflow(n: int) -> int:
        later(20)  # so that what is shown first is not all that the body has asked for
        return await double(n)

    async def keep_the_loop_busy() -> None:
        while True:
            await asyncio.sleep(0)

    busy = asyncio.ensure_future(keep_the_loop_busy())
    try:
        assert await workflow.ainvoke(1, run_id="r") == 2
        for _ in range(100):
            await asyncio.sleep(0)
    finally:
        busy.cancel()
    assert 0 < max(rounds.values()) < 10
