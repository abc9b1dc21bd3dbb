"""LangGraph, graph API, with `Send` for a fan-out: https://docs.langchain.com/oss/python/langgraph/use-graph-api"""

from __future__ import annotations

import asyncio
import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from workloads import Job, Once

from contenders.langgraph_functional import _options, _saver

PACKAGES = ("langgraph", "langgraph-checkpoint-sqlite")
IMPORT = "from langgraph.graph import END, START, StateGraph"


class Value(TypedDict):
    x: int


class Found(TypedDict):
    found: Annotated[list[int], operator.add]


async def chain(job: Job) -> Once:
    """One node that goes to itself: a node for each of 1,000 steps costs more."""

    async def step(state: Value) -> dict[str, int]:
        return {"x": await job.body(state["x"])}

    graph = StateGraph(Value)
    graph.add_node("step", step)
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", lambda state: "step" if state["x"] < job.size else END, ["step", END])
    compiled = graph.compile(checkpointer=await _saver(job))

    async def once() -> int:
        given = _options(job)
        given["config"]["recursion_limit"] = job.size + 10
        return int((await compiled.ainvoke({"x": 0}, **given))["x"])

    return once


def _forked(job: Job, step: Any) -> Any:
    graph = StateGraph(Found)
    graph.add_node("step", step)
    graph.add_conditional_edges(START, lambda _: [Send("step", {"i": i}) for i in range(job.size)], ["step"])
    graph.add_edge("step", END)
    return graph


async def block(job: Job) -> Once:
    async def step(state: dict[str, int]) -> dict[str, list[int]]:
        return {"found": [await job.body(state["i"])]}

    compiled = _forked(job, step).compile(checkpointer=await _saver(job))

    async def once() -> list[int]:
        return list((await compiled.ainvoke({"found": []}, **_options(job, own=0)))["found"])

    return once


async def threads(job: Job) -> Once:
    def step(state: dict[str, int]) -> dict[str, list[int]]:
        return {"found": [job.body(state["i"])]}

    compiled = _forked(job, step).compile()

    async def once() -> list[int]:
        return list(
            (await asyncio.to_thread(compiled.invoke, {"found": []}, **_options(job, own=0)))["found"]
        )

    return once
