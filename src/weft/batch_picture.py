"""How a node of a batch program looks, and a flow: its nodes, and the actions that lead from one to the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from weft.batch import DEFAULT_ACTION, BaseNode, Flow, Part
from weft.batch_hooks import hooks_of
from weft.batch_runs import key_of, nodes_of
from weft.compose_picture import said_of_block
from weft.observe.sketch import IN, OUT, Records, Sketch, Way
from weft.observe.sketch import Part as DrawnPart
from weft.runnable import called_in, drawn_part

if TYPE_CHECKING:
    from weft.observe.picture import BoxKind


def sketch_of_part(part: Part) -> Sketch:
    """A flow's nodes and the actions that lead from one to the other; of a node a box."""
    node, key = part.node, part.key
    if isinstance(node, Flow) and node.start_node is not None:
        nodes = nodes_of(node)
        drawn = tuple([_drawn(each) for each in nodes])
        return Sketch(key, key, note=_said(node), parts=drawn, ways=tuple(_ways(nodes)))
    kind: BoxKind = "block" if node._weft_is_batch else "node"
    records: Records = "nothing" if hooks_of(node).exec is None else "calls"
    return Sketch(key, key, kind, _said(node), calls=called_in(*part.own_functions()), records=records)


def _drawn(node: BaseNode) -> DrawnPart:
    part = node._weft_part
    if part is not None:
        return drawn_part(part)
    return DrawnPart(key_of(node), key_of(node), Part(node))


def _ways(nodes: list[BaseNode]) -> Iterator[Way]:
    """From node to node; an action that ends the flow leads out of it, as does a node without followers."""
    numbers = {id(node): number for number, node in enumerate(nodes)}
    yield Way(IN, 0)
    for number, node in enumerate(nodes):
        if not node.successors:
            yield Way(number, OUT)
        is_choice = len(node.successors) > 1 or DEFAULT_ACTION not in node.successors
        for action, follower in node.successors.items():
            label = "" if action == DEFAULT_ACTION and not is_choice else action
            destination = OUT if follower is None else numbers[id(follower)]
            yield Way(number, destination, label, "choice" if is_choice else "edge")


def _said(node: BaseNode) -> str:
    """What a drawing says of a node that runs for several items."""
    if not node._weft_is_batch:
        return ""
    return f"for each {'of its params' if node._weft_is_flow else 'item'}, {_at_once(node)}"


def _at_once(node: BaseNode) -> str:
    block = node._weft_chosen().block
    if node._weft_is_parallel and block.max_concurrent is None:
        return ", ".join(filter(None, ["all at once", said_of_block(block)]))
    return said_of_block(block)
