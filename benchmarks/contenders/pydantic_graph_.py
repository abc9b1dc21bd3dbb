"""pydantic-graph, builder API: https://pydantic.dev/docs/ai/graph/graph/"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pydantic_graph import GraphBuilder, StepContext, reduce_list_append
from workloads import Job, Once, throttled

PACKAGES = ("pydantic-graph",)
IMPORT = "from pydantic_graph import GraphBuilder, StepContext"
UNSUPPORTED = {"durable": "it records nothing itself"}


async def chain(job: Job) -> Once:
    g: Any = GraphBuilder(input_type=int, output_type=int, auto_instrument=False)

    async def body(ctx: StepContext[None, None, int]) -> int:
        return int(await job.body(ctx.inputs))

    steps = [g.step(body, node_id=f"step {i}") for i in range(job.size)]
    for one, following in zip([g.start_node, *steps], [*steps, g.end_node], strict=True):
        g.add(g.edge_from(one).to(following))
    graph = g.build(validate_graph_structure=False)
    return lambda: graph.run(inputs=0)


async def block(job: Job) -> Once:
    """`map` over the input, and a join. It has no width: a semaphore."""
    g: Any = GraphBuilder(input_type=list[int], output_type=list[int], auto_instrument=False)
    body = throttled(job)

    @g.step
    async def step(ctx: StepContext[None, None, int]) -> int:
        return int(await body(ctx.inputs))

    collect = g.join(reduce_list_append, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).map().to(step),
        g.edge_from(step).to(collect),
        g.edge_from(collect).to(g.end_node),
    )
    graph = g.build()
    return lambda: graph.run(inputs=list(range(job.size)))


async def threads(job: Job) -> Once:
    """A sync body would block the loop, so it is handed to a pool of threads by hand."""
    pool, loop = ThreadPoolExecutor(job.width), asyncio.get_running_loop()

    async def body(i: int) -> int:
        return int(await loop.run_in_executor(pool, job.body, i))

    return await block(replace(job, body=body, width=None))
