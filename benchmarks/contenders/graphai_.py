"""GraphAI (graphai-lib): https://github.com/aurelio-labs/graphai"""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from graphai import Graph, node
from workloads import Job, Once

PACKAGES = ("graphai-lib",)
IMPORT = "from graphai import Graph, node, router"
UNSUPPORTED = {"durable": "it records nothing"}


async def chain(job: Job) -> Once:
    graph, last = Graph(max_steps=job.size + 10), job.size - 1

    async def step(x: int) -> dict[str, int]:
        return {"x": await job.body(x)}

    nodes = [node(step, name=f"step{i}", start=i == 0, end=i == last) for i in range(job.size)]
    for each in nodes:
        graph.add_node(each)
    for one, following in itertools.pairwise(nodes):
        graph.add_edge(one, following)
    graph.compile()

    async def once() -> int:
        return int((await graph.execute({"x": 0}))["x"])

    return once


async def block(job: Job) -> Once:
    """A fork of a node for each branch; with a width, `execute_many` of a graph of one node."""
    return await (_many(job) if job.width and job.width < job.size else _fork(job))


async def _many(job: Job) -> Once:
    async def step(i: int) -> dict[str, int]:
        return {"found": await job.body(i)}

    graph = Graph()
    graph.add_node(node(step, name="step", start=True, end=True))
    graph.compile()

    async def once() -> list[int]:
        inputs = [{"i": i} for i in range(job.size)]
        return [
            found["found"] for found in await graph.execute_many(inputs, concurrency=job.width or job.size)
        ]

    return once


async def _fork(job: Job) -> Once:
    async def empty() -> dict[str, int]:
        return {}

    graph = Graph()
    begin, end = node(empty, name="begin", start=True), node(empty, name="end", end=True)
    branches = [node(_branch(job, i), name=f"branch{i}") for i in range(job.size)]
    for each in (begin, *branches, end):
        graph.add_node(each)
    graph.add_parallel(begin, branches)
    graph.add_join(branches, end)
    graph.add_edge(branches[0], end)  # `compile` does not see that a join leads there
    graph.compile()

    async def once() -> list[int]:
        found = await graph.execute({})
        return [found[f"r{i}"] for i in range(job.size)]

    return once


def _branch(job: Job, i: int) -> Any:
    async def branch() -> dict[str, int]:
        return {f"r{i}": await job.body(i)}

    return branch


async def threads(job: Job) -> Once:
    """Nodes are async, so each hands its body to a pool of threads by itself."""
    pool, loop = ThreadPoolExecutor(job.width), asyncio.get_running_loop()

    def body(i: int) -> Any:
        return loop.run_in_executor(pool, job.body, i)

    return await _many(replace(job, body=body, width=job.size))
