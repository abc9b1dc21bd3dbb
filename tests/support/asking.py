"""Ways of asking a composed workflow for its value."""

from __future__ import annotations

import asyncio

from weft import entrypoint


def invoke(workflow, value):
    return workflow.invoke(value)


def ainvoke(workflow, value):
    async def main():
        return await workflow.ainvoke(value)

    return asyncio.run(main())


def in_sync_body(workflow, value):
    @entrypoint()
    def outer(x):
        return workflow(x)

    return outer.invoke(value)


def in_async_body(workflow, value):
    @entrypoint()
    async def outer(x):
        return await workflow(x)

    return outer.invoke(value)
