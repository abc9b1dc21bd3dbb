"""Pipelines that begin beside the way of a graph, and never write into it: ``Graph.add_branch``. After GraphAI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from weft.core.activation import Options, StateConflicts
from weft.core.graph_branches import Upstream
from weft.core.graph_plan import GraphPlan, PlanJoin, PlanNode
from weft.core.graph_state import Change, StateBranch, plain
from weft.core.state_merge import Part, merge
from weft.engine.futures import Branch
from weft.engine.step import Step
from weft.errors import GraphError
from weft.graph_nodes import Given, NodeCall, Start

if TYPE_CHECKING:
    from weft.engine.call import Call
    from weft.engine.planned import PlannedCall
    from weft.engine.states import Stop

#: How many pipelines may be beside each other.
_DEEPEST = 100


class SideEdge(NamedTuple):
    """What a user has said of one."""

    source: str
    destination: str
    condition: Callable[[dict[Any, Any], dict[Any, Any]], Any] | None
    waits: bool


@dataclass(frozen=True, slots=True)
class Side:
    """A pipeline that begins beside the way on from a node; see :meth:`weft.graph.Graph.add_branch`.

    Attributes:
        source: The node.
        destination: The first of the pipeline.
        step: Runs it.
        waits: Whether the way on waits for it.
        takes_state: Whether it, or its condition, gets the state.
        plan: Its nodes and ways.
    """

    source: str
    destination: str
    step: Step
    waits: bool
    takes_state: bool
    plan: GraphPlan


@dataclass(frozen=True, slots=True)
class BranchError:
    """A pipeline beside the way has failed, which concerns nothing else.

    Attributes:
        source: The node behind which it began.
        destination: Its first node.
        error: What was raised.
    """

    source: str
    destination: str
    error: Exception


class SideCall(Branch):
    """A pipeline beside the way, as a call that the graph has started."""

    __slots__ = ("branch", "side", "state")

    def __init__(
        self, owner: PlannedCall, side: Side, beside: NodeCall, state: Mapping[Any, Any] | None
    ) -> None:
        super().__init__(owner, beside.index)
        self.side = side
        self.branch = beside.branch  # that of the node behind which it begins
        self.state = state  # what it begins with


@dataclass(eq=False, slots=True)
class Waiting:
    """A node that has ended, and whose way on waits for pipelines beside it."""

    running: NodeCall
    output: Mapping[Any, Any]
    choices: Sequence[str] | None
    left: int = 0
    changes: list[tuple[Mapping[Any, Any], Change]] = field(default_factory=list)


class SideHost(Protocol):
    """The execution of the graph, as the pipelines beside it see it."""

    def ask_in_turn(self, asked: SideCall, start: Start, state: StateBranch | None) -> None:
        """Make it a call, on a resume not before its turn."""

    def stop_call(self, asked: SideCall, why: Stop) -> bool:
        """Stop a call, or have it not begin; whether there is anything to wait for."""

    def tell_conflicts(self, decision: StateConflicts) -> None:
        """Branches that met had changed the same of the state."""


class Sides:
    """What goes on beside the way of one execution.

    Attributes:
        running: The pipelines that have not ended.
        errors: What they have raised.
    """

    def __init__(
        self,
        host: SideHost,
        sides: Mapping[str, Iterable[Side]],
        call: PlannedCall,
        given: Given,
        callback: Any,
        options: Options,
    ) -> None:
        self._host = host
        self._sides = sides  # by the node behind which they begin
        self._call = call
        self._callback = callback
        self._depth = given.depth
        self._options = options
        self._codec = None if call.run.recorder is None else call.run.recorder.codec
        self.running: dict[SideCall, None] = {}
        self.errors: list[BranchError] = [] if given.branch_errors is None else given.branch_errors
        self._waiting: dict[int, Waiting] = {}  # by execution
        self._late: list[tuple[Mapping[Any, Any], Change]] = []

    def begin(self, waiting: Waiting) -> bool:
        """Begin those behind a node that has ended; whether the way on waits for any of them."""
        running, output = waiting.running, waiting.output
        sides = self._sides.get(running.node.name, ())
        if sides and self._depth == _DEEPEST:
            raise GraphError(
                f"pipelines are {_DEEPEST} deep beside each other at {running.node.name!r}: add_branch() leads back to "
                "where it began"
            )
        branch = running.branch
        for side in sides:
            state = branch.state if side.takes_state else None
            given = Given({**branch.flow, **output})
            given.callback, given.only_writes = self._callback, True
            given.upstream = (Upstream(running.node.name, output),)
            given.state = None if state is None else plain({**state.state})
            given.branch_errors, given.depth = self.errors, self._depth + 1
            asked = SideCall(self._call, side, running, given.state)
            self.running[asked] = None
            waiting.left += side.waits
            self._host.ask_in_turn(asked, (side.step, (given,), {}), state)
        if waiting.left:
            self._waiting[running.index] = waiting
        return bool(waiting.left)

    def ended(self, asked: SideCall, call: Call) -> Waiting | None:
        """A pipeline has ended; the node whose way on need not wait any more, if that was the last it waited for."""
        del self.running[asked]
        side, error = asked.side, call.error
        if isinstance(error, Exception):
            self.errors.append(BranchError(side.source, side.destination, error))
        elif error is not None and not isinstance(error, asyncio.CancelledError):
            return None  # with it the graph ends
        elif call.aside is not None:
            changes = self._waiting[asked.index].changes if side.waits else self._late
            changes.append((asked.state or {}, call.aside))
        return self._with_one_less(asked) if side.waits else None

    def _with_one_less(self, asked: SideCall) -> Waiting | None:
        waiting = self._waiting.get(asked.index)
        if waiting is None:
            return None
        waiting.left -= 1
        return None if waiting.left else self._waiting.pop(asked.index)

    def are_awaited(self, running: NodeCall) -> bool:
        """Whether the way on from there waits for some."""
        return running.index in self._waiting

    def stop(self, running: NodeCall, why: Stop) -> bool:
        """Stop those that the way on from there waits for; whether there is anything to wait for."""
        for asked in [each for each in self.running if each.index == running.index and each.side.waits]:
            if not self._host.stop_call(asked, why):
                del self.running[asked]
                self._waiting[running.index].left -= 1
        if self._waiting[running.index].left:
            return True
        del self._waiting[running.index]
        return False

    # What they do to the state

    def take_changes(self, waiting: Waiting) -> None:
        """Those for which the way on has waited have ended: what they did counts there."""
        if not waiting.changes:
            return
        state = waiting.running.branch.state
        met = state.copy()
        self._merge(met, waiting.changes)
        state.apply(met.all_changes())
        if self._codec is not None:
            state.record(b"beside")

    def with_late_changes(self, state: dict[Any, Any]) -> dict[Any, Any]:
        """The state at the end, with what those did to theirs for which nothing has waited."""
        if not self._late:
            return state
        target = StateBranch(state)
        self._merge(target, self._late)
        found: dict[Any, Any] = plain(target.state)
        return found

    def _merge(self, target: StateBranch, changes: Sequence[tuple[Mapping[Any, Any], Change]]) -> None:
        """Do to a state what pipelines did to theirs, which all began with it: they are branches that meet."""
        parts = []
        for number, (before, change) in enumerate(changes, 1):
            part = StateBranch(before)
            part.begin()
            part.apply(change)
            if self._codec is not None:
                part.record(self._codec.fingerprint(change) or b"")
            parts.append(Part(f"pipeline {number} beside the way", part, lambda _: False))
        options = self._options
        conflicts = merge(
            target, parts, reducers=options.state_reducers, on_conflict=options.on_state_conflict
        )
        if conflicts:
            self._host.tell_conflicts(StateConflicts(tuple(conflicts)))


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


__all__ = ["BranchError", "Side", "SideCall", "SideEdge", "Sides", "Waiting", "reachable", "side_plan"]
