"""The graph style: nodes, edges, routers, forks and joins. ``Graph``, ``@node``, ``@router``. After GraphAI.

A node is a function that reads from what stands on its branch by the names of its parameters, and returns a dict of
what it gives. Where several ways go on they are taken at the same time, each on a branch of its own; a join brings
branches together again. What runs next is decided by :mod:`weft.core.activation`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from weft.core.activation import Options
from weft.core.checks import check_count, check_name, check_seconds
from weft.core.graph_binding import CALLBACK, GraphBinding
from weft.core.graph_branches import OnConflict, Reducer
from weft.core.graph_plan import GraphPlan, PlanJoin, PlanNode, unknown_name
from weft.core.graph_state import plain
from weft.core.policy import FailFast
from weft.core.state_merge import StateReducer
from weft.engine.block import BlockOptions
from weft.engine.options import as_checkpointer
from weft.engine.step import Step, step_options
from weft.errors import (
    DefinitionError,
    GraphCompileError,
    GraphError,
    InputError,
    ParallelExecutionError,
    UsageError,
)
from weft.graph_callback import Callback, EventCallback, close_callback
from weft.graph_forks import ForkOptions
from weft.graph_nodes import Given, GraphNode
from weft.graph_run import GraphRun, Program, Result, side_of
from weft.graph_sides import BranchError, Side, SideEdge, reachable, side_plan
from weft.nodes import FunctionNode, as_runnable
from weft.runnable import Runnable, shape_of

if TYPE_CHECKING:
    from weft.engine.planned import PlannedCall
    from weft.observe.sketch import Sketch


class _Made(NamedTuple):
    """What is worked out of a graph before it runs."""

    program: Program
    step: Step
    computes: bool


class Graph(Runnable):
    """Nodes that are connected by edges; made step by step, each builder returns the graph.

    ::

        graph = Graph()
        graph.add_node(start).add_node(left).add_node(right).add_node(end)
        graph.add_parallel(start, [left, right])
        graph.add_join([left, right], end)
        result = await graph.execute({"query": "..."})

    Args:
        max_steps: How many nodes may run one after the other; without it there is no bound where there is no loop, and
            10,000 where there is one.
        initial_state: What the state is at first: a dict that nodes get as ``state``, and which lasts from one
            execution to the next. With a ``thread_id`` it is the thread's own, and a new thread begins with this.
        name: What results and errors call it.
        reducers: By key, how what several branches wrote is combined, of two values at a time; else the branch that
            was completed last wins.
        on_conflict: "error" refuses that two branches write one key without a reducer: :class:`ConflictError`.
        state_reducers: By key of the state, how what branches made of it is combined, of what it was at the fork, what
            is merged so far, and what the branch has. Else what was appended to lists is appended, keys of dicts
            are merged, and of what is left the branch that was completed last wins.
        on_state_conflict: "error" refuses that two branches change the same: :class:`StateConflictError`.
        timeout: Seconds for an execution.
        retry: How many attempts of a whole execution, a :class:`RetryPolicy`, or several.
        total: Seconds for all attempts together.
        checkpointer: Where executions are recorded unless a verb is given another.

    Attributes:
        nodes: What runs at each node, by name.
        state: What the state is between executions.
        branch_errors: What pipelines beside the way have raised in the execution that ended last.

    Raises:
        DefinitionError: An option that can never work.
    """

    def __init__(
        self,
        max_steps: int | None = None,
        initial_state: Mapping[Any, Any] | None = None,
        *,
        name: str = "graph",
        reducers: Mapping[str, Reducer] | None = None,
        on_conflict: OnConflict = "last",
        state_reducers: Mapping[str, StateReducer] | None = None,
        on_state_conflict: OnConflict = "last",
        timeout: Any = None,
        retry: Any = None,
        total: float | None = None,
        checkpointer: Any = None,
    ) -> None:
        self.key = check_name("Graph()", name)
        self.checkpointer = checkpointer
        self.nodes: dict[str, Runnable] = {}
        self.state: dict[Any, Any] = _checked_state(initial_state or {})
        self.given_state: dict[Any, Any] = plain(self.state)  # by the user: what a new thread begins with
        self._execution_options = Options(max_steps, reducers, on_conflict, state_reducers, on_state_conflict)
        self._step_options = step_options(timeout=timeout, total=total, retry=retry)
        self._given: list[Any] = []  # what add_node() was given
        self._names: dict[int, str] = {}  # by the id of that
        self._start: str | None = None
        self._ends: set[str] = set()
        self._edges: list[tuple[str, str]] = []
        self._joins: list[PlanJoin] = []
        self._forks: dict[str, ForkOptions] = {}
        self._sides: list[SideEdge] = []
        self.branch_errors: list[BranchError] = []
        self._callback_class: Callable[[], Any] = Callback
        self._made: _Made | None = None
        self._functions: _Functions | None = None
        self._is_part = False  # of another graph

    def __repr__(self) -> str:
        return f"<weft.Graph {self.key!r} of {len(self.nodes)} nodes>"

    # Being put together

    def add_node(self, node: Any, *, name: str | None = None, start: bool = False, end: bool = False) -> Self:
        """Add a node: a ``@node``, a ``@router``, a function, or any other workflow.

        A function reads by the names of its parameters. Any other workflow gets a dict of all that stands on its
        branch; if it gives a mapping, that is merged in, else what it gives, under its name.

        Args:
            node: What runs there.
            name: What the graph calls it; its own name unless told.
            start: Whether the graph begins there.
            end: Whether a branch ends there.

        Raises:
            GraphError: There is one of that name, or a second start.
        """
        part = as_runnable(node, where="add_node()")
        called = part.key if name is None else check_name("add_node()", name)
        if called in self.nodes:
            raise GraphError(
                f"the graph has a node named {called!r} already; give this one another name: add_node(..., name=...)"
            )
        known = part if isinstance(part, FunctionNode) else None
        if known is not None:
            self._refuse_callback(called, known)
        if start or (known is not None and known.is_start):
            self._refuse_second_start(called)
            self._start = called
        if end or (known is not None and known.is_end):
            self._ends.add(called)
        if isinstance(part, Graph):
            self._refuse_itself(part)
        self.nodes[called] = part
        self._given.append(node)  # held, so that no other object gets its id
        self._names.setdefault(id(node), called)
        self._names.setdefault(id(part), called)
        return self._changed()

    def _refuse_itself(self, part: Graph) -> None:
        part._is_part = True
        if self._is_part and any(inner is self for inner, _ in part._with_parts()):
            raise GraphError(
                f"graph {part.key!r} contains graph {self.key!r}, and cannot be a node of it; to run a graph again "
                "call it in a node: `await graph.execute(...)`"
            )

    def _refuse_second_start(self, name: str) -> None:
        if self._start is not None:
            raise GraphError(
                f"the graph begins at {self._start!r}, so that {name!r} cannot be a start node too: multiple start "
                "nodes are not possible, since an execution can begin at one only"
            )

    @staticmethod
    def _refuse_callback(name: str, part: FunctionNode[..., Any]) -> None:
        if CALLBACK in GraphBinding.of(part.func).special and not part.is_stream:
            raise GraphError(
                f"node {name!r} declares `callback`, which only a streaming node gets: @node(stream=True)"
            )

    def add_edge(self, source: Any, destination: Any) -> Self:
        """Have ``destination`` follow ``source``. Several edges from one node are taken at the same time.

        Args:
            source: A node of the graph, or its name.
            destination: As ``source``.

        Raises:
            GraphError: One of them is no node of the graph.
        """
        self._edges.append((self._name_of(source, "add_edge()"), self._name_of(destination, "add_edge()")))
        return self._changed()

    def add_parallel(
        self,
        source: Any,
        destinations: Iterable[Any],
        *,
        max_concurrent: int | None = None,
        timeout: float | None = None,
        on_error: Any = "fail_fast",
        need: int | None = None,
    ) -> Self:
        """Have several nodes follow one, at the same time; each begins a branch.

        The options are those of the fork: of all branches behind ``source``, each with all that is in it, to the join.

        Args:
            source: A node of the graph, or its name.
            destinations: Nodes or names.
            max_concurrent: How many branches at once, exactly; when one ends the next one begins. None for all.
            timeout: Seconds for all branches together: :class:`ParallelTimeoutError`.
            on_error: "fail_fast" (the first failure ends the execution), "collect" (a branch that fails comes to the
                join with a :class:`Failed` under the name of its first node), ``tolerate(...)`` (the same, while there
                are not more of them), or "race" (only the first that comes to the join counts). What the graph itself
                cannot do (a conflict, no way on, too many steps) ends the execution.
            need: How many branches are enough; the others are stopped.

        Raises:
            GraphError: Something that is no node of the graph, or other options than this fork has already.
            DefinitionError: An option that can never work.
        """
        name = self._name_of(source, "add_parallel()")
        found = self._names_of(destinations, "add_parallel()")
        self._set_fork(name, max_concurrent=max_concurrent, timeout=timeout, on_error=on_error, need=need)
        self._edges += [(name, destination) for destination in found]
        return self._changed()

    def add_router(
        self,
        sources: Iterable[Any],
        router: Any,
        destinations: Iterable[Any],
        *,
        max_concurrent: int | None = None,
        timeout: float | None = None,
        on_error: Any = "fail_fast",
        need: int | None = None,
    ) -> Self:
        """Have a router follow several nodes, and go on with one or several others.

        Args:
            sources: Nodes of the graph, or their names.
            router: A ``@router``, or its name.
            destinations: Where it may go.
            max_concurrent: Of the fork behind it, as its other options: see :meth:`add_parallel`.
            timeout: As there.
            on_error: As there.
            need: As there.

        Raises:
            GraphError: Something that is no node of the graph, or no router.
        """
        name = self._name_of(router, "add_router()")
        if not _is_router(self.nodes[name]):
            raise GraphError(
                f"{name!r} is no router, which says where to go on: put @router on it, not @node"
            )
        before = self._names_of(sources, "add_router()")
        after = self._names_of(destinations, "add_router()")
        self._set_fork(name, max_concurrent=max_concurrent, timeout=timeout, on_error=on_error, need=need)
        self._edges += [(source, name) for source in before] + [(name, found) for found in after]
        return self._changed()

    def add_join(self, sources: Iterable[Any], destination: Any) -> Self:
        """Bring branches together: ``destination`` runs once, with what all that come have written.

        It belongs to its opener: the nearest node that every path to its sources goes through. Each time that one
        runs the join is open once; it waits until nothing can come any more, however long the branches are.

        Args:
            sources: The nodes after which branches come together, or their names.
            destination: The node that goes on.

        Raises:
            GraphError: Something that is no node of the graph, or no sources.
        """
        names = tuple(self._names_of(sources, "add_join()"))
        if not names:
            raise GraphError("add_join() needs at least one source")
        self._joins.append(PlanJoin(names, self._name_of(destination, "add_join()")))
        return self._changed()

    def add_branch(
        self,
        source: Any,
        destination: Any,
        *,
        condition: Callable[[dict[Any, Any], dict[Any, Any]], Any] | None = None,
        wait: bool = True,
    ) -> Self:
        """Begin a pipeline beside the way: what happens *because* a node has run, and changes nothing of what follows.

        It gets what stands there, and goes along the edges from ``destination`` until there is none, or a node gives
        ``{"success": False}``. Nothing that it writes is merged. An error in it is kept in :attr:`branch_errors`, and
        nothing else fails. What it does to the state counts: at once, or, with ``wait=False``, at the end, whatever
        has become of the branch beside which it began.

        Args:
            source: The node behind which it begins; the way on from there is as if there were no pipeline.
            destination: The first node of the pipeline.
            condition: Says of the node's output and the state whether it begins; sync or async.
            wait: Whether the way on waits for it. The execution waits for all of them.

        Raises:
            GraphError: Something that is no node of the graph.
        """
        if condition is not None and not callable(condition):
            raise GraphError(
                f"the condition of a branch is a function of the output and the state, not {condition!r}"
            )
        called = "add_branch()"
        edge = SideEdge(self._name_of(source, called), self._name_of(destination, called), condition, wait)
        self._sides.append(edge)
        return self._changed()

    def set_start_node(self, node: Any) -> Self:
        """Begin at this node, whatever else is marked as start."""
        self._start = self._name_of(node, "set_start_node()")
        return self._changed()

    def set_end_node(self, node: Any) -> Self:
        """Have branches end at this node; several can be set."""
        self._ends.add(self._name_of(node, "set_end_node()"))
        return self._changed()

    def compile(self, *, strict: bool = False) -> Self:
        """Look for what can never work: nodes that cannot be reached, joins that cannot fire, ways that do not end.

        Args:
            strict: Refuse loops as well.

        Raises:
            GraphCompileError: There is such; it lists all of it.
        """
        program = self._program()
        if found := [*self._problems_of(program)]:
            raise GraphCompileError(*found)
        if strict and program.plan.has_loop:
            raise GraphCompileError(
                f"there is a loop, which strict=True refuses: {program.plan.shown_loop()}"
            )
        return self

    def _problems_of(self, program: Program) -> Iterator[str]:
        yield from program.plan.problems()
        for side in (side for sides in program.sides.values() for side in sides):
            yield from (f"beside {side.source!r}: {problem}" for problem in side.plan.problems())

    def _name_of(self, node: Any, builder: str) -> str:
        name = node if isinstance(node, str) else self._name_given_to(node) or _own_name(node, builder)
        if not self.nodes:
            raise GraphError(f"{builder} names {name!r}, and the graph has no nodes yet: add_node() adds one")
        if name not in self.nodes:
            raise GraphError(f"{builder} names {unknown_name(name, self.nodes)}; add_node() adds one")
        return name

    def _name_given_to(self, node: Any) -> str:
        return self._names.get(id(node), "")

    def _names_of(self, nodes: Any, builder: str) -> list[str]:
        if isinstance(nodes, str | Runnable) or not isinstance(nodes, Iterable):
            one = (
                f"; for one write [{nodes!r:.80}]"
                if isinstance(nodes, str | Runnable) or callable(nodes)
                else ""
            )
            raise GraphError(f"{builder} takes a list of nodes, not {nodes!r:.80}{one}")
        return [self._name_of(node, builder) for node in nodes]

    def _set_fork(self, name: str, *, timeout: float | None, **options: Any) -> None:
        if timeout is not None:
            check_seconds("timeout", timeout)
        block = BlockOptions.of(**options)
        made = ForkOptions(block.policy, block.max_concurrent, timeout)
        if made == ForkOptions(FailFast()):
            return
        if self._forks.setdefault(name, made) != made:
            raise GraphError(
                f"the fork behind {name!r} has other options already: all branches behind a node are one block"
            )

    def _changed(self) -> Self:
        self._made = self._functions = None
        return self

    # State

    def get_state(self, thread_id: str | None = None, *, checkpointer: Any = None) -> dict[Any, Any]:
        """What the state is between executions; with a thread, what its last run has left.

        Args:
            thread_id: The thread; its state is its own, and not what the graph holds.
            checkpointer: Where it is recorded, if that is not the graph's own.

        Raises:
            UsageError: There is a thread and no checkpointer.
        """
        if thread_id is None:
            return self.state
        store = as_checkpointer(self.checkpointer if checkpointer is None else checkpointer)
        if store is None:
            raise UsageError(
                f"the state of thread {thread_id!r} is in a checkpointer: give it, get_state(..., checkpointer=...)"
            )
        found = store.states(thread_id, limit=1)
        left = store.codec.decode(found[0].value) if found else None
        return left if isinstance(left, dict) else plain(self.given_state)

    def set_state(self, state: Mapping[Any, Any]) -> Self:
        """Begin the next execution with this state."""
        self.state, self.given_state = _checked_state(state), _checked_state(state)
        return self

    def update_state(self, values: Mapping[Any, Any]) -> Self:
        """Begin the next execution with these values in the state as well."""
        self.state.update(_checked_state(values))
        self.given_state.update(_checked_state(values))
        return self

    def reset_state(self) -> Self:
        """Begin the next execution with an empty state."""
        self.state, self.given_state = {}, {}
        return self

    def _keep_state(self, state: dict[Any, Any] | None) -> None:
        if state is not None:
            self.state = state

    # Being run

    async def execute(self, input: Mapping[Any, Any], callback: Any = None, **options: Any) -> dict[Any, Any]:
        """Run to the end, and return the input with all that was written; on the running loop.

        Args:
            input: The values that nodes find, by name.
            callback: What streaming nodes stream to; closed at the end.
            **options: Those of a run; see :class:`Runnable`.

        Raises:
            GraphError: A node or router did what it may not; it names the node.
            Exception: What a node raised.
        """
        given = input
        if callback is not None:
            _checked_callback(callback)
        try:
            if callback is not None:
                given = Given(self._checked(input))
                given.callback = callback
            found: dict[Any, Any] = await self.ainvoke(given, **options)
            return found
        finally:
            if callback is not None and not (isinstance(given, Given) and given.is_closed):
                await close_callback(callback)  # it did not even begin

    async def execute_many(
        self, inputs: Iterable[Mapping[Any, Any]], *, concurrency: int = 5, **options: Any
    ) -> list[Any]:
        """Run once for each input, at the same time, and return the results in the order of the inputs.

        Args:
            inputs: Any iterable or async iterable of inputs.
            concurrency: How many executions at once, exactly.
            **options: Those of :func:`weft.map` (``on_error``, ``need``, ``timeout``) and of a run.

        Raises:
            Exception: What the first execution that failed has raised, unless ``on_error`` says otherwise.
        """
        if isinstance(inputs, Mapping):
            raise InputError(
                "execute_many() takes several inputs, a list of dicts; for one there is execute()"
            )
        check_count("concurrency", concurrency)
        width = options.pop("max_concurrent", concurrency)
        try:
            found: list[Any] = await self.amap(inputs, max_concurrent=width, **options)
        except ParallelExecutionError as error:
            if options.get("on_error", "fail_fast") != "fail_fast" or options.get("need") is not None:
                raise
            first, branch = error.exceptions[0], error.branch
        else:
            return found
        with suppress(Exception):  # an error may refuse notes
            first.add_note(f"weft: in the execution for input {branch}")
        raise first

    def set_callback(self, callback_class: Callable[[], Any]) -> Self:
        """Have streaming nodes stream to one of this class where an execution is given no callback.

        Raises:
            GraphError: It cannot be called.
        """
        if not callable(callback_class):
            raise GraphError(
                f"set_callback() takes a class such as EventCallback, not {callback_class!r:.80}"
            )
        self._callback_class = callback_class
        return self

    def get_callback(self) -> Any:
        """A new callback, to be given to one execution."""
        return self._callback_class()

    # Pictures

    def sketch(self) -> Sketch:
        """Its nodes, edges, joins and choices.

        Raises:
            GraphCompileError: It cannot be drawn: it has no start, or something in it is unknown.
        """
        from weft.graph_picture import picture_of_plan, sketch_of_plan  # noqa: PLC0415 - only who looks at it needs it

        beside = [(edge.source, edge.destination) for edge in self._sides]
        plan = picture_of_plan(self._full_plan(), title=self.key, beside=beside)
        return sketch_of_plan(plan, self.nodes)

    def _full_plan(self) -> GraphPlan:
        nodes = self._plan_nodes()
        return GraphPlan(nodes, self._edges, self._joins, blocks=self._deciding_forks())

    def _plan_nodes(self) -> list[PlanNode]:
        return [
            PlanNode(name, name == self._start, name in self._ends, _is_router(part))
            for name, part in self.nodes.items()
        ]

    # As the engine sees it

    @property
    def step(self) -> Step:  # type: ignore[override]  # made when it is used: a graph can be changed until then
        return (self._made or self._compiled()).step

    @property
    def computes(self) -> bool:  # type: ignore[override]  # as above
        return (self._made or self._compiled()).computes

    def _program(self) -> Program:
        return self._compiled().program

    def _compiled(self) -> _Made:
        if self._made is None:
            self._make_parts()
            self._made = self._make()
        return self._made

    def _make(self) -> _Made:
        program = self._make_program()
        step = Step(
            functools.partial(self._conductor, program),
            self.key,
            is_async=True,
            is_planned=True,
            key=_input_of,
            recall=self._keep_state,
            shape=self._shape(program),
            **self._step_options,
        )
        computes = any(part.computes for part in self.nodes.values())
        return _Made(program, step, computes)

    def _make_parts(self) -> None:
        """Have the graphs inside made, the innermost first, so that a thousand in each other need no deep stack."""
        inside: list[tuple[Graph, str]] = []
        stack = [(self, "")]
        seen = {id(self)}
        while stack:
            graph, way = stack.pop()
            for name, part in graph.nodes.items():
                if isinstance(part, Graph) and id(part) not in seen:
                    seen.add(id(part))
                    inside.append((part, f"{way}node {name!r}: "))
                    stack.append(inside[-1])
        for graph, way in reversed(inside):
            if graph._made is None:
                try:
                    graph._made = graph._make()
                except GraphCompileError as error:
                    raise GraphCompileError(*(f"{way}{problem}" for problem in error.problems)) from None

    def _make_program(self) -> Program:
        nodes = self._plan_nodes()
        beside = self._only_beside(nodes)
        edges = [edge for edge in self._edges if edge[0] not in beside]
        joins = [join for join in self._joins if not beside.issuperset(join.sources)]
        forks = {name for name in self._deciding_forks() if name not in beside}
        plan = GraphPlan([node for node in nodes if node.name not in beside], edges, joins, blocks=forks)
        self._refuse_impossible_forks(plan)
        return self._program_of(plan, self._made_sides(nodes))

    def _deciding_forks(self) -> set[str]:
        """Those whose options matter even where there is only one branch."""
        return {name for name, fork in self._forks.items() if fork.may_fail or fork.timeout is not None}

    def _refuse_impossible_forks(self, plan: GraphPlan) -> None:
        for place, node in enumerate(plan.nodes):
            fork = self._forks.get(node.name)
            ways = plan.ways_on(place)
            if fork is None or node.is_router or not ways:
                continue  # how many a router chooses is known when it has
            try:
                fork.policy.check(len(ways))
            except DefinitionError as error:
                refused = f"the fork behind {node.name!r}: {error}"
            else:
                continue
            raise GraphCompileError(refused)

    def _program_of(self, plan: GraphPlan, sides: Mapping[str, tuple[Side, ...]]) -> Program:
        plan.prepare()
        made = {node.name: GraphNode(node.name, self.nodes[node.name], plan) for node in plan.nodes}
        takes_state = any(node.takes_state for node in made.values()) or any(
            side.takes_state for name in made for side in sides.get(name, ())
        )
        streams = any(isinstance(part, FunctionNode) and part.is_stream for part in self.nodes.values())
        return Program(plan, made, dict(self._forks), self._execution_options, takes_state, streams, sides)

    def _only_beside(self, nodes: list[PlanNode]) -> set[str]:
        """The nodes of pipelines beside the way, to which no other way leads."""
        if not self._sides or self._start is None:
            return set()
        on_the_way = reachable(nodes, self._edges, self._joins, self._start)
        found: set[str] = set()
        for side in self._sides:
            found |= reachable(nodes, self._edges, self._joins, side.destination)
        return found - on_the_way

    def _made_sides(self, nodes: list[PlanNode]) -> dict[str, tuple[Side, ...]]:
        """The pipelines by the node behind which they begin; each may have others beside it."""
        sides: dict[str, tuple[Side, ...]] = {}
        plans = {
            name: side_plan(nodes, self._edges, self._joins, name, blocks=self._deciding_forks())
            for name in {edge.destination for edge in self._sides}
        }
        for edge in self._sides:
            plan = plans[edge.destination]
            self._refuse_impossible_forks(plan)
            parts = {node.name: self.nodes[node.name] for node in plan.nodes}
            takes_state = any(GraphNode(name, part, plan).takes_state for name, part in parts.items())
            program = functools.cache(functools.partial(self._program_of, plan, sides))
            made = side_of(edge, plan, program, shape=shape_of("pipeline", parts), takes_state=takes_state)
            sides[edge.source] = (*sides.get(edge.source, ()), made)
        return sides

    def _shape(self, program: Program) -> str:
        joins = "; ".join(map(str, program.plan.joins))
        forks = "; ".join(f"{name}: {options.policy}" for name, options in self._forks.items())
        sides = [edge[:2] for edge in self._sides]
        marks = f"graph {self._start!r} {sorted(self._ends)} {program.plan.edges} {joins} {forks} {sides}"
        digest = blake2b(marks.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return shape_of(digest, self.nodes)

    def _conductor(self, program: Program, call: PlannedCall, given: Given) -> GraphRun:
        callback = given.callback
        if callback is None and program.streams:
            callback = self.get_callback()
            if isinstance(callback, EventCallback | Callback):
                callback.is_unread = True  # nobody else has it
        return GraphRun(program, call, given, self, callback)

    def bind(self, input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What an execution is given.

        Raises:
            InputError: The input is no mapping.
        """
        given = input if isinstance(input, Given) else Given(self._checked(input))
        return (given,), {}

    def _checked(self, input: Any) -> Mapping[Any, Any]:
        if not isinstance(input, dict | Mapping):  # the first is asked for the sake of speed
            raise InputError(
                f"{self.key!r} takes a dict whose keys are what its nodes read, not {input!r:.80}"
            )
        return input

    def bind_node(self, values: dict[Any, Any], callback: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As a node of another graph: only what it writes is merged there, and it streams to where that one does."""
        given = Given(values)
        given.callback, given.only_writes = callback, True
        return (given,), {}

    def split_output(self, value: Any) -> tuple[Any, Any]:
        """What the run returns, and what its thread keeps: the state."""
        return ({**value}, value.state) if isinstance(value, Result) else (value, value)

    def recorded_input(self, input: Any) -> Any:
        """The values that the execution begins with."""
        return {**input} if isinstance(input, Given) else input

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """Its nodes."""
        yield from ((f"node {name!r}", part) for name, part in self.nodes.items())

    def problems(self) -> Iterator[str]:
        """What can never work."""
        try:
            yield from self._problems_of(self._make_program())
        except GraphCompileError as error:
            yield from error.problems

    def functions(self) -> Iterator[Callable[..., Any]]:
        """Those of its nodes."""
        found = self.owner_of_functions()
        return super().functions() if found is None else iter(found.all)

    def owner_of_functions(self) -> _Functions | None:
        """They are looked for once, where none of its nodes can change."""
        if self._functions is None and all(part.is_fixed for part in self.nodes.values()):
            self._functions = _Functions(super().functions())
        return self._functions

    def own_function(self) -> Callable[..., Any]:
        """It has none but those of its nodes."""
        return Graph.execute


class _Functions:
    """The functions of a graph as it stands."""

    __slots__ = ("__weakref__", "all")

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self.all = tuple(functions)


def _is_router(part: Runnable) -> bool:
    return isinstance(part, FunctionNode) and part.is_router


def _own_name(node: Any, builder: str) -> str:
    found = getattr(node, "key", None) or getattr(node, "name", None) or getattr(node, "__name__", None)
    if isinstance(found, str):
        return found
    raise GraphError(
        f"{builder} takes nodes as they were given to add_node(), or their names, not {node!r:.80}"
    )


def _checked_callback(callback: Any) -> Any:
    for name in ("start_node", "end_node", "close"):
        if not callable(getattr(callback, name, None)):
            raise InputError(
                f"execute(callback=...) takes an EventCallback, a Callback or something that has start_node, end_node "
                f"and close as they have, not {callback!r:.80}"
            )
    return callback


def _checked_state(state: Mapping[Any, Any]) -> dict[Any, Any]:
    if not isinstance(state, Mapping):
        raise GraphError(f"the state of a graph is a dict, not {state!r:.80}")
    found: dict[Any, Any] = plain(dict(state))
    return found


def _input_of(given: Given) -> Any:
    return {**given}


__all__ = ["Graph"]
