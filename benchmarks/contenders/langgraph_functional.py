"""LangGraph, functional API: https://docs.langchain.com/oss/python/langgraph/functional-api"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.func import entrypoint, task
from workloads import Job, Once

PACKAGES = ("langgraph", "langgraph-checkpoint-sqlite")
IMPORT = "from langgraph.func import entrypoint, task"


async def _saver(job: Job) -> Any:
    if not job.database:
        return None
    return await job.stack.enter_async_context(AsyncSqliteSaver.from_conn_string(str(job.database)))


def _options(job: Job, own: int = 1) -> dict[str, Any]:
    """`durability="sync"` is the one of its modes that waits for the store; without a store it means nothing.

    The entrypoint itself takes ``own`` place of the width.
    """
    config: dict[str, Any] = {"configurable": {"thread_id": uuid.uuid4().hex}}
    if job.width and job.width < job.size:
        config["max_concurrency"] = job.width + own
    return {"config": config} | ({"durability": "sync"} if job.database else {})


async def chain(job: Job) -> Once:
    step = task(job.body)

    @entrypoint(checkpointer=await _saver(job))
    async def workflow(size: int) -> int:
        value = 0
        for _ in range(size):
            value = await step(value)
        return value

    return lambda: workflow.ainvoke(job.size, **_options(job))


async def block(job: Job) -> Once:
    step = task(job.body)

    @entrypoint(checkpointer=await _saver(job))
    async def workflow(size: int) -> list[int]:
        return list(await asyncio.gather(*[step(i) for i in range(size)]))

    return lambda: workflow.ainvoke(job.size, **_options(job))


async def threads(job: Job) -> Once:
    """Sync tasks in a sync entrypoint; called in a thread, so that the loop is free."""
    step = task(job.body)

    @entrypoint()
    def workflow(size: int) -> list[int]:
        return [future.result() for future in [step(i) for i in range(size)]]

    return lambda: asyncio.to_thread(workflow.invoke, job.size, **_options(job))
