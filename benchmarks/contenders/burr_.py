"""Burr: https://burr.apache.org/concepts/parallelism/"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from burr.core import ApplicationBuilder, State, action
from burr.core.parallelism import MapStates
from burr.integrations.persisters.b_aiosqlite import AsyncSQLitePersister
from workloads import Job, Once, throttled

PACKAGES = ("burr",)
IMPORT = "from burr.core import ApplicationBuilder, State, action"


async def _persister(job: Job) -> Any:
    if not job.database:
        return None
    made = await job.stack.enter_async_context(AsyncSQLitePersister.from_values(db_path=str(job.database)))
    await made.initialize()
    return made


async def chain(job: Job) -> Once:
    """One action, and a transition from it to itself."""
    persister = await _persister(job)

    @action(reads=["x"], writes=["x"])
    async def step(state: State) -> State:
        return state.update(x=await job.body(state["x"]))

    @action(reads=["x"], writes=[])
    async def end(state: State) -> State:
        return state

    from burr.core import expr  # noqa: PLC0415 - beside its use

    async def once() -> int:
        builder = (
            ApplicationBuilder()
            .with_actions(step=step, end=end)
            .with_transitions(("step", "step", expr(f"x < {job.size}")), ("step", "end"))
            .with_state(x=0)
            .with_entrypoint("step")
            .with_identifiers(app_id=uuid.uuid4().hex)
        )
        if persister is not None:
            builder = builder.with_state_persister(persister)
        app = await builder.abuild()
        _, _, state = await app.arun(halt_before=["end"])
        return int(state["x"])

    return once


async def block(job: Job) -> Once:
    """`MapStates`; with asyncio it has no width: a semaphore."""
    persister, body = await _persister(job), throttled(job)

    @action(reads=["i"], writes=["found"])
    async def step(state: State) -> State:
        return state.update(found=await body(state["i"]))

    class Items(MapStates):
        def is_async(self) -> bool:
            return True

        def action(self, state: State, inputs: dict[str, Any]) -> Any:
            return step

        async def states(self, state: State, context: Any, inputs: dict[str, Any]) -> AsyncIterator[State]:
            for i in range(job.size):
                yield state.update(i=i)

        async def reduce(self, state: State, states: AsyncIterator[State]) -> State:
            return state.update(all=[each["found"] async for each in states])

        @property
        def reads(self) -> list[str]:
            return []

        @property
        def writes(self) -> list[str]:
            return ["all"]

    async def once() -> list[int]:
        builder = _with_items(Items())
        if persister is not None:
            builder = builder.with_state_persister(persister)
        app = await builder.abuild()
        _, _, state = await app.arun(halt_after=["items"])
        return list(state["all"])

    return once


def _with_items(items: Any) -> Any:
    return (
        ApplicationBuilder()
        .with_actions(items=items)
        .with_transitions()
        .with_state(all=[])
        .with_entrypoint("items")
        .with_identifiers(app_id=uuid.uuid4().hex)
    )


async def threads(job: Job) -> Once:
    """Sync, in its executor of threads; called in a thread, so that the loop is free."""

    @action(reads=["i"], writes=["found"])
    def step(state: State) -> State:
        return state.update(found=job.body(state["i"]))

    class Items(MapStates):
        def action(self, state: State, inputs: dict[str, Any]) -> Any:
            return step

        def states(self, state: State, context: Any, inputs: dict[str, Any]) -> Iterator[State]:
            for i in range(job.size):
                yield state.update(i=i)

        def reduce(self, state: State, states: Iterator[State]) -> State:
            return state.update(all=[each["found"] for each in states])

        @property
        def reads(self) -> list[str]:
            return []

        @property
        def writes(self) -> list[str]:
            return ["all"]

    def run() -> list[int]:
        builder = _with_items(Items()).with_parallel_executor(lambda: ThreadPoolExecutor(job.width))
        _, _, state = builder.build().run(halt_after=["items"])
        return list(state["all"])

    return lambda: asyncio.to_thread(run)
