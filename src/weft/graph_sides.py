"""Pipelines that begin beside the way of a graph, and never write into it: ``Graph.add_branch``. After GraphAI."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from weft.core.graph_plan import GraphPlan, PlanJoin, PlanNode
from weft.engine.futures import Branch
from weft.engine.step import Step
from weft.graph_nodes import Given, NodeCall
from weft.graph_run import GraphRun, Holder, Program, Side

if TYPE_CHECKING:
    from weft.core.activation import Finished
    from weft.engine.call import Call
    from weft.engine.planned import PlannedCall


class SideEdge(NamedTuple):
    """What a user has said of one."""

    source: str
    destination: str
    condition: Callable[[dict[Any, Any], dict[Any, Any]], Any] | None
    waits: bool


def side_plan(
    plan_nodes: Iterable[PlanNode],
    edges: Sequence[tuple[str, str]],
    joins: Sequence[PlanJoin],
    start: str,
    *,
    blocks: Collection[str] = (),
) -> GraphPlan:
    """What can be reached from the first node of a pipeline, which ends wherever there is no way on."""
    by_name = {node.name: node for node in plan_nodes}
    reached = reachable(by_name.values(), edges, joins, start)
    inside = [edge for edge in edges if edge[0] in reached]
    meeting = [join for join in joins if reached.intersection(join.sources)]
    goes_on = {source for source, _ in inside} | {source for join in meeting for source in join.sources}
    nodes = [
        PlanNode(name, name == start, node.is_end or not (name in goes_on or node.is_router), node.is_router)
        for name, node in by_name.items()
        if name in reached
    ]
    known = {node.name for node in nodes}
    meeting = [
        PlanJoin(tuple(name for name in join.sources if name in known), join.destination) for join in meeting
    ]
    return GraphPlan(nodes, inside, meeting, blocks=known.intersection(blocks))


def reachable(
    nodes: Iterable[PlanNode], edges: Iterable[tuple[str, str]], joins: Iterable[PlanJoin], start: str
) -> set[str]:
    """The nodes that a way leads to from this one, which is one of them."""
    after: dict[str, list[str]] = {}
    for source, destination in edges:
        after.setdefault(source, []).append(destination)
    for join in joins:
        for source in join.sources:
            after.setdefault(source, []).append(join.destination)
    for node in nodes:
        if node.is_router and node.name not in after:
            after[node.name] = [other.name for other in nodes]
    seen, stack = {start}, [start]
    while stack:
        new = [name for name in after.get(stack.pop(), ()) if name not in seen]
        seen.update(new)
        stack += new
    return seen


def side_of(
    edge: SideEdge, plan: GraphPlan, program: Callable[[], Program], *, shape: str, takes_state: bool
) -> Side:
    """The pipeline as the graph runs it."""
    condition = None
    if edge.condition is not None:
        condition = Step.of(edge.condition, name=f"{edge.source} to {edge.destination}?", convert=bool)
    step = Step(
        functools.partial(_conductor, program, condition),
        f"{edge.source} to {edge.destination}",
        is_async=True,
        is_planned=True,
        key=_flow_of,
        shape=shape,
    )
    return Side(edge.source, edge.destination, step, edge.waits, takes_state or condition is not None, plan)


def _flow_of(given: Given) -> Any:
    return {**given}


def _conductor(
    program: Callable[[], Program], condition: Step | None, call: PlannedCall, given: Given
) -> SideRun:
    return SideRun(program(), call, given, condition)


class _Own:
    """What a pipeline has of its own; what it leaves is taken by the graph."""

    def __init__(self, state: Mapping[Any, Any] | None) -> None:
        self.state = self.given_state = dict(state or {})
        self.branch_errors: list[Any] = []  # which are in those of the graph as well


class SideRun(GraphRun):
    """The conductor of a pipeline: first its condition, if it has one."""

    def __init__(self, program: Program, call: PlannedCall, given: Given, condition: Step | None) -> None:
        self._own: Holder = _Own(given.state)
        super().__init__(program, call, given, self._own, given.callback)
        self._condition = condition

    def _begin(self) -> None:
        if self._condition is None:
            self._activate_own()
            return
        output = dict(self._given.upstream[-1].output)
        self._call.start(Branch(self._call, 0), self._condition, (output, self._own.state), {})

    def _preface_ended(self, call: Call) -> None:
        if call.error is not None:
            self._error = call.error
        elif call.value:
            self._activate_own()
        else:
            self._call.conclude(None, None)

    def _activate_own(self) -> None:
        self._activate(self._own.state if self._program.takes_state else None)

    def _go_on(self, running: NodeCall, output: Mapping[Any, Any], choices: Sequence[str] | None) -> None:
        goes_on = output.get("success") is not False
        self._leave(running)
        self._do(self.active.ended(running.run.execution, output, choices, goes_on=goes_on))

    def _end(self, finished: Finished) -> None:
        if finished.state is not None:
            self._call.aside = self.active.change() or None
        self._call.conclude(None, None)


__all__ = ["SideEdge", "SideRun", "reachable", "side_of", "side_plan"]
