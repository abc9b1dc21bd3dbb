"""What a graph runs at a node: a function that reads what it declares, or any other workflow, as one execution."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from weft.core.activation import split_choices
from weft.core.graph_binding import CALLBACK, STATE, UPSTREAM, GraphBinding
from weft.core.graph_state import plain
from weft.engine.awaited import is_awaitable
from weft.engine.context import current
from weft.engine.futures import Branch
from weft.engine.step import Step, is_async_callable
from weft.errors import GraphError, UsageError
from weft.nodes import FunctionNode

if TYPE_CHECKING:
    from weft.core.graph_branches import Branch as GraphBranch
    from weft.core.graph_branches import Upstream
    from weft.core.graph_plan import GraphPlan
    from weft.core.graph_state import StateBranch
    from weft.engine.planned import PlannedCall
    from weft.runnable import Runnable


class Given(dict[Any, Any]):
    """The values that an execution of a graph begins with, and what else it is given, which is nothing at first.

    Attributes:
        callback: What streaming nodes stream to; None for one of the graph's own.
        only_writes: Whether the result is what was written, without the input: what it is merged into has that.
        upstream: What led to the first node.
        state: What the state is at first, if not what the graph holds.
        branch_errors: Where those of pipelines beside a pipeline go.
        depth: How many pipelines this one is beside.
        is_closed: Whether the callback was closed.
    """

    callback: Any = None
    only_writes = False
    upstream: tuple[Upstream, ...] = ()
    state: Mapping[Any, Any] | None = None
    branch_errors: list[Any] | None = None
    depth = 0
    is_closed = False


#: The call that an execution becomes: of which step, with what, and with what by name.
Start: TypeAlias = tuple[Step, tuple[Any, ...], dict[str, Any]]


class NodeCall(Branch):
    """One execution of a node, as a call that the graph has started."""

    __slots__ = ("branch", "callback", "node")

    def __init__(self, owner: PlannedCall, node: GraphNode, branch: GraphBranch, callback: Any) -> None:
        self.owner = owner
        self.index = branch.execution
        self.call = None
        self.node = node
        self.branch = branch
        self.callback = callback

    @property
    def state(self) -> StateBranch | None:
        """The state of the graph as its branch sees it, if the node gets it."""
        return self.branch.state if self.node.takes_state else None

    def special(self) -> dict[str, Any]:
        """What the body gets beside values; called as an attempt begins, so one before it is undone."""
        found: dict[str, Any] = {}
        if (state := self.state) is not None:
            state.undo()
            found[STATE] = state.state
        if CALLBACK in self.node.binding.special:
            found[CALLBACK] = self.callback
        return found


#: What is given by name to a node that reads nothing; one for all that wait, and never changed.
_NO_NAMES: dict[str, Any] = {}

#: What a node may give; what they all give first, since to ask for the other takes longer.
_MAPPINGS = (dict, Mapping)


class GraphNode:
    """A node of a graph, ready to be run any number of times at once.

    Attributes:
        name: What the graph calls it.
        part: What was added to the graph.
        takes_state: Whether it gets the graph's state.
    """

    __slots__ = (
        "_own_step",
        "_plan",
        "_reads",
        "_takes_upstream",
        "binding",
        "is_router",
        "name",
        "part",
        "takes_state",
    )

    def __init__(self, name: str, part: Runnable, plan: GraphPlan) -> None:
        self.name = name
        self.part = part
        self.is_router = isinstance(part, FunctionNode) and part.is_router
        self.binding = GraphBinding.of(part.func) if isinstance(part, FunctionNode) else GraphBinding()
        self.takes_state = STATE in self.binding.special
        self._takes_upstream = UPSTREAM in self.binding.special
        self._reads = self.binding.reads or self._takes_upstream
        self._plan = plan
        self._own_step = self._step_of(part) if isinstance(part, FunctionNode) else None

    def start_of(self, branch: GraphBranch, callback: Any) -> Start:
        """The call that its execution on a branch becomes.

        Raises:
            InputError: A required parameter is not there, or the part cannot take these values.
        """
        if self._own_step is not None:
            if not self._reads:
                return self._own_step, (), _NO_NAMES
            args, kwargs = self.binding.bind(branch.flow, self.name)
            if self._takes_upstream:
                kwargs |= self._upstream(branch)
            return self._own_step, args, kwargs
        flow = branch.flow
        args, kwargs = self.part.bind_node({**flow}, callback)
        step = replace(self.part.step, name=self.name, convert=partial(_written, self.name, flow))
        return step, args, kwargs

    @property
    def _ways(self) -> str | None:
        """Where a router can go, for people."""
        return self._plan.shown_ways(self.name) if self.is_router else None

    def _check_choices(self, output: Mapping[Any, Any]) -> None:
        try:
            choices, _ = split_choices(self.name, output)
        except GraphError as error:
            raise GraphError(f"{error}; it can go to {self._ways}") from None
        self._plan.choose(self._plan.number[self.name], choices)

    def _upstream(self, branch: GraphBranch) -> dict[str, Any]:
        if branch.came:
            node, output, _ = branch.came[-1]
            return {UPSTREAM: {"node": node, "output": dict(output)}}
        return {} if UPSTREAM in self.binding.optional else {UPSTREAM: None}

    def _step_of(self, part: FunctionNode[..., Any]) -> Step:
        step = part.step
        fn: Callable[..., Any] = step.fn
        if self.binding.special & {STATE, CALLBACK} or part.is_stream:
            fn = _prepared(fn)
        return replace(step, name=self.name, fn=fn, convert=self._taken)

    def _taken(self, output: Any) -> Any:
        """What a body gave, as the graph takes it; what it changed of the state is recorded beside it."""
        if not isinstance(output, _MAPPINGS):
            raise GraphError(_no_dict(self.name, output, ways=self._ways))
        if self.is_router:
            self._check_choices(output)
        if not self.takes_state:
            return output
        call = current.get()
        assert call is not None
        running = call.future
        assert isinstance(running, NodeCall)
        assert running.state is not None
        output = plain(dict(output))  # it may have parts of the state in it, which go on changing
        call.aside = running.state.take() or None
        return output


def _no_dict(name: str, output: Any, *, ways: str | None) -> str:
    what = "nothing (None)" if output is None else f"{type(output).__name__}: {output!r:.80}"
    if ways is not None:
        return (
            f"router {name!r} must return a dict with 'choice' (the name of a node) or 'choices' (a list of names); "
            f"expected dictionary output, got {what}; it can go to {ways}"
        )
    return (
        f"node {name!r} must return a dict of what it gives to the nodes after it ({{}} for nothing); "
        f"expected dictionary output, got {what}"
    )


def _written(name: str, flow: Mapping[Any, Any], result: Any) -> dict[Any, Any]:
    """What a workflow that is a node has written: the keys it gave anew; of a result that is no mapping, itself."""
    if not isinstance(result, Mapping):
        return {name: result}
    return {key: value for key, value in result.items() if key not in flow or not _is_same(flow[key], value)}


def _is_same(before: Any, after: Any) -> bool:
    """Whether a value was only handed on: what comes out of a journal is a copy."""
    if before is after:
        return True
    try:
        return type(before) is type(after) and bool(before == after)
    except Exception:  # arrays, for example, cannot say
        return False


# Bodies that get more than values


def _prepared(fn: Callable[..., Any]) -> Callable[..., Any]:
    if is_async_callable(fn):

        async def on_loop(*args: Any, **kwargs: Any) -> Any:
            running = _running()
            await _streams(running, "start_node")
            output = await fn(*args, **kwargs, **running.special())
            await _streams(running, "end_node")
            return output

        on_loop.__wrapped__ = fn  # type: ignore[attr-defined]  # whose annotations name what may be stored
        return on_loop

    def here(*args: Any, **kwargs: Any) -> Any:
        running = _running()
        _now(_streams(running, "start_node"))
        output = fn(*args, **kwargs, **running.special())
        if is_awaitable(output):
            return _awaited(running, output)
        _now(_streams(running, "end_node"))
        return output

    here.__wrapped__ = fn  # type: ignore[attr-defined]  # as above
    return here


async def _awaited(running: NodeCall, output: Any) -> Any:
    found = await output
    await _streams(running, "end_node")
    return found


def _running() -> NodeCall:
    call = current.get()
    assert call is not None
    assert isinstance(call.future, NodeCall)
    return call.future


async def _streams(running: NodeCall, what: str) -> None:
    part = running.node.part
    if isinstance(part, FunctionNode) and part.is_stream:
        await getattr(running.callback, what)(node_name=running.node.name)


def _now(coroutine: Coroutine[Any, Any, None]) -> None:
    """Do at once what in a thread cannot be waited for."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise UsageError("a callback whose start_node or end_node waits for something needs nodes that are async")


__all__ = ["Given", "GraphNode", "NodeCall", "Start"]
