"""LlamaIndex Workflows: https://developers.llamaindex.ai/python/framework/understanding/workflows/concurrent_execution/"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent
from workloads import Job, Once

PACKAGES = ("llama-index-workflows",)
IMPORT = "from workflows import Workflow, step"
UNSUPPORTED = {"durable": "its contexts are stored by the program, not after each step"}


class Item(Event):
    i: int


class Done(Event):
    i: int


async def chain(job: Job) -> Once:
    """One step that gives itself the next event, as in its page on loops."""

    class Chain(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            return Item(i=0)

        @step
        async def go(self, ev: Item) -> Item | StopEvent:
            value = await job.body(ev.i)
            return Item(i=value) if value < job.size else StopEvent(result=value)

    workflow = Chain(timeout=None)

    async def once() -> Any:
        return await workflow.run()

    return once


async def block(job: Job) -> Once:
    class Fan(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(i=i) for i in range(job.size)]

        @step(num_workers=job.width or job.size)
        async def work(self, ev: Item) -> Done:
            return Done(i=await job.body(ev.i))

        @step
        async def end(self, events: list[Done]) -> StopEvent:
            return StopEvent(result=[event.i for event in events])

    workflow = Fan(timeout=None)

    async def once() -> Any:
        return await workflow.run()

    return once


async def threads(job: Job) -> Once:
    """Sync steps run in the loop's default pool, which is made as wide as is asked for."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(job.width))

    class Fan(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(i=i) for i in range(job.size)]

        @step(num_workers=job.width or job.size)
        def work(self, ev: Item) -> Done:
            return Done(i=job.body(ev.i))

        @step
        async def end(self, events: list[Done]) -> StopEvent:
            return StopEvent(result=[event.i for event in events])

    workflow = Fan(timeout=None)

    async def once() -> Any:
        return await workflow.run()

    return once
