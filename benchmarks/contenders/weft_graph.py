"""Weft, the graph style: a node for each step, edges, a fork and a join."""

from __future__ import annotations

from typing import Any

from workloads import Job, Once

from contenders.weft_functional import options, saver
from weft import Graph, node

PACKAGES = ("weft",)
IMPORT = "from weft import Graph, SqliteSaver, node, router"


async def chain(job: Job) -> Once:
    async def step(x: int) -> dict[str, int]:
        return {"x": await job.body(x)}

    store, graph, last = saver(job), Graph(), job.size - 1
    for i in range(job.size):
        graph.add_node(node(name=f"step {i}", start=i == 0, end=i == last)(step))
    for i in range(last):
        graph.add_edge(f"step {i}", f"step {i + 1}")
    graph.compile()

    async def once() -> int:
        found = await graph.execute({"x": 0}, checkpointer=store, **options(job))
        return int(found["x"])

    return once


async def block(job: Job) -> Once:
    async def empty() -> dict[str, int]:
        return {}

    store, graph = saver(job), Graph()
    names = [f"branch {i}" for i in range(job.size)]
    graph.add_node(node(name="begin", start=True)(empty))
    for i, name in enumerate(names):
        graph.add_node(node(name=name)(_branch(job, i, name)))
    graph.add_node(node(name="end", end=True)(empty))
    graph.add_parallel("begin", names, **({"max_concurrent": job.width} if job.width else {}))
    graph.add_join(names, "end").compile()

    async def once() -> list[int]:
        run = {name: value for name, value in options(job).items() if name == "run_id"}
        found = await graph.execute({}, checkpointer=store, **run)
        return [found[name] for name in names]

    return once


def _branch(job: Job, i: int, name: str) -> Any:
    if job.body.__name__ == "block_a_thread":
        return lambda: {name: job.body(i)}

    async def branch() -> dict[str, int]:
        return {name: await job.body(i)}

    return branch


threads = block
