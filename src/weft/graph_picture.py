"""The picture of a graph: its nodes, edges, joins and choices as boxes and arrows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from weft.core.graph_plan import GraphPlan
from weft.observe.picture import Arrow, ArrowKind, Box, BoxKind, Picture
from weft.observe.sketch import IN, OUT, Drawable, Part, Sketch, Way


def picture_of_plan(
    plan: GraphPlan,
    *,
    kinds: Mapping[str, BoxKind] | None = None,
    title: str = "graph",
    beside: Iterable[tuple[str, str]] = (),
) -> Picture:
    """How a graph looks; it need not be without mistakes.

    A join is a box of its own between its sources and its destination. A router without edges, which may choose any
    node, has one arrow, to a box that says so. What follows an end node is left out, since it is never run.

    Args:
        plan: What is in the graph.
        kinds: By name, what nodes are that are more than a step, such as ``{"report": "runnable"}``.
        title: What the picture is of.
        beside: From node to node, where pipelines begin that are beside the way.
    """
    boxes = [*_nodes(plan, kinds or {}), *_joins(plan), *_anywhere(plan)]
    branches = [
        Arrow(box_id(plan.number[source]), box_id(plan.number[destination]), label="beside", kind="choice")
        for source, destination in beside
    ]
    return Picture(tuple(boxes), (*_arrows(plan), *branches), title=title)


def sketch_of_plan(picture: Picture, nodes: Mapping[str, Drawable]) -> Sketch:
    """The same, as a place for the pictures of what is at the nodes."""
    numbers = {box.id: number for number, box in enumerate(picture.boxes)}
    parts = [_part(box, nodes) for box in picture.boxes]
    ways = [Way(IN, numbers[box.id]) for box in picture.boxes if box.is_start]
    ways += [
        Way(numbers[arrow.source], numbers[arrow.destination], arrow.label, arrow.kind)
        for arrow in picture.arrows
    ]
    ways += [Way(numbers[box.id], OUT) for box in picture.boxes if box.is_end]
    return Sketch(picture.title, picture.title, parts=tuple(parts), ways=tuple(ways))


def _part(box: Box, nodes: Mapping[str, Drawable]) -> Part:
    if box.kind in {"join", "anywhere"}:
        return Part(box.label, kind=box.kind)
    return Part(box.label, box.label, nodes[box.label], box.kind)


def box_id(point: int) -> str:
    """The id of the box of a node or a join, by its number in the plan."""
    return str(point)


def _nodes(plan: GraphPlan, kinds: Mapping[str, BoxKind]) -> Iterator[Box]:
    for point, node in enumerate(plan.nodes):
        kind = "router" if node.is_router else kinds.get(node.name, "node")
        yield Box(box_id(point), node.name, kind, is_start=node.is_start, is_end=node.is_end)


def _joins(plan: GraphPlan) -> Iterator[Box]:
    for point in plan.join_points:
        join = plan.join_at(point)
        yield Box(box_id(point), f"{', '.join(join.sources)} meet before {join.destination}", "join")


def _anywhere(plan: GraphPlan) -> Iterator[Box]:
    for point in range(len(plan.nodes)):
        if _chooses_anywhere(plan, point):
            yield Box(_anywhere_id(point), "any node", "anywhere")


def _arrows(plan: GraphPlan) -> Iterator[Arrow]:
    for point in [*range(len(plan.nodes)), *plan.join_points]:
        if _chooses_anywhere(plan, point):
            yield Arrow(box_id(point), _anywhere_id(point), kind="choice")
            continue
        for way in plan.ways_on(point):
            yield Arrow(box_id(point), box_id(way), kind=_kind(plan, point, way))


def _kind(plan: GraphPlan, point: int, way: int) -> ArrowKind:
    if not plan.is_join(point) and plan.nodes[point].is_router:
        return "choice"
    return "join" if plan.is_join(point) or plan.is_join(way) else "edge"


def _chooses_anywhere(plan: GraphPlan, point: int) -> bool:
    return not plan.is_join(point) and not plan.nodes[point].is_end and plan.goes_anywhere(point)


def _anywhere_id(point: int) -> str:
    return f"anywhere after {point}"
