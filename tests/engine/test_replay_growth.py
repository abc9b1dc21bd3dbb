"""A resume takes each recorded outcome up once, however many there are."""

from __future__ import annotations

import pytest

import weft
from weft import InMemorySaver, ParallelExecutionError
from weft.engine.planned import PlannedScope


def test_a_block_looks_for_what_can_be_shown_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, is_down = 0, True
    show_next = PlannedScope._show_next

    def counted(self: PlannedScope) -> None:
        nonlocal looks
        looks += 1
        show_next(self)

    @weft.node("step")
    async def step(n: int) -> int:
        if is_down and n == 999:
            raise InterruptedError
        return n

    saver = InMemorySaver()
    with pytest.raises(ParallelExecutionError):
        weft.map(step, range(1_000), checkpointer=saver, run_id="r", max_concurrent=10)
    is_down = False
    monkeypatch.setattr(PlannedScope, "_show_next", counted)
    found = weft.map(step, range(1_000), checkpointer=saver, run_id="r", max_concurrent=10)
    assert found == list(range(1_000))
    assert looks < 3_000
