"""Weft, the compose style: `Sequence` and `parallel`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from workloads import Job, Once

from contenders.weft_functional import options, saver
from weft import Sequence, SqliteSaver, node, parallel

PACKAGES = ("weft",)
IMPORT = "from weft import Sequence, SqliteSaver, node, parallel"


async def chain(job: Job) -> Once:
    step, store = node("step")(job.body), saver(job)
    steps = Sequence(*[step] * job.size)
    return lambda: steps.ainvoke(0, checkpointer=store, **options(job))


async def block(job: Job) -> Once:
    store = saver(job)
    blocks = parallel(*_branches(job), **({"max_concurrent": job.width} if job.width else {}))

    async def once() -> Iterable[int]:
        run = {name: value for name, value in options(job).items() if name == "run_id"}
        found: dict[str, int] = await blocks.ainvoke(0, checkpointer=store, **run)
        return found.values()

    return once


def _branches(job: Job) -> list[Any]:
    return [node(f"branch {i}")(_with(job, i)) for i in range(job.size)]


def _with(job: Job, i: int) -> Any:
    """A branch of its own: all branches get the same value, so the number comes from here."""
    if job.body.__name__ == "block_a_thread":
        return lambda _: job.body(i)

    async def branch(_: int) -> int:
        return await job.body(i)

    return branch


threads = block


async def resume(job: Job) -> float:
    """Seconds to resume a sequence of a block of recorded branches and a step that failed."""
    is_down = True

    def end(found: dict[str, int]) -> int:
        if is_down:
            raise InterruptedError
        return len(found)

    branches = _branches(job)

    def workflow() -> Any:
        return Sequence(parallel(*branches), end)

    for run_id in ("warm-up", "run"):
        with suppress(InterruptedError):
            await workflow().ainvoke(0, checkpointer=SqliteSaver(job.database), run_id=run_id)
    is_down = False
    await workflow().ainvoke(None, checkpointer=SqliteSaver(job.database), run_id="warm-up")
    resumed, begun = workflow(), time.perf_counter()
    assert await resumed.ainvoke(None, checkpointer=SqliteSaver(job.database), run_id="run") == job.size
    return time.perf_counter() - begun
