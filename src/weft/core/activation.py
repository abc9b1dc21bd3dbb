"""Which nodes of a graph run next: events in, decisions out.

An :class:`Activation` is one execution of a graph. It is told how each node that it wanted to run has ended, and
answers with what is to run now, or with the result. It knows no clock and starts nothing; it is a function of the
order in which it is told, so that telling it the same again leads to the same decisions.

What is under way are *tokens*, each at a node. A token that goes on in one direction stays on its *branch*; where it
goes on in several, each of them begins a branch of its own. A branch holds what was written on it since it began, and
what came before stands in those above it, which do not change meanwhile: nothing is copied along a chain, and a fork
shares what it does not write.

An *opening* is a join that waits, or may have to. It counts what is under way in its span (see
:mod:`weft.core.graph_plan`): tokens, and other openings to which something has come already. When nothing is left
it fires, with what has come, or is forgotten. What goes on behind a join is placed where the join was opened. If
from there its own sources can be reached again, firing opens it anew: a round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, Literal, NamedTuple, TypeAlias

from weft.core.checks import check_count
from weft.core.graph_plan import MAX_STEPS, GraphError, GraphPlan
from weft.errors import DefinitionError

Reducer = Callable[[Any, Any], Any]
"""What two branches wrote of one key, in the order in which they were completed, and what it is combined to."""

OnConflict: TypeAlias = Literal["last", "error"]


class MaxStepsError(GraphError):
    """More nodes ran one after the other than ``max_steps`` allows.

    Attributes:
        max_steps: The bound.
        loop: The nodes of the loop that it went round in; empty if there is none.
    """

    def __init__(self, max_steps: int, node: str, loop: Sequence[str]) -> None:
        where = f"{node!r} would be the next"
        if loop:
            where = f"{node!r} would be the next, in the loop {' -> '.join(map(repr, [*loop, loop[0]]))}"
        super().__init__(
            f"{max_steps} nodes have run one after the other and {where}; max_steps= allows more than {max_steps}"
        )
        self.max_steps = max_steps
        self.loop = tuple(loop)


class StuckError(GraphError):
    """Joins of a graph wait for each other, and nothing else is under way.

    Attributes:
        waiting: What waits for what, a sentence each.
    """

    def __init__(self, waiting: Sequence[str]) -> None:
        super().__init__("the graph can make no progress: " + "; ".join(waiting))
        self.waiting = tuple(waiting)


class ConflictError(GraphError):
    """Two branches wrote one key under ``on_conflict="error"``.

    Attributes:
        key: The key.
        nodes: The nodes that wrote it, in the order in which their branches were completed.
    """

    def __init__(self, key: Any, nodes: tuple[str, str]) -> None:
        one, other = nodes
        super().__init__(
            f"parallel branches have both written {key!r}: one in node {one!r}, the other in {other!r}; write "
            f"different keys, combine them with reducers={{{key!r}: ...}}, or let the last one win with "
            'on_conflict="last"'
        )
        self.key = key
        self.nodes = nodes


@dataclass(frozen=True, slots=True)
class Options:
    """How an execution of a graph goes.

    Attributes:
        max_steps: How many nodes may run one after the other; None for no bound where there is no loop, and
            :data:`~weft.core.graph_plan.MAX_STEPS` where there is one.
        reducers: By key, how what several branches wrote is combined.
        on_conflict: What happens where no reducer is given: the last to complete wins, or :class:`ConflictError`.

    Raises:
        DefinitionError: One of them can never work.
    """

    max_steps: int | None = None
    reducers: Mapping[str, Reducer] | None = None
    on_conflict: OnConflict = "last"

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            check_count("max_steps", self.max_steps)
        if self.on_conflict not in ("last", "error"):
            raise DefinitionError(f'on_conflict must be "last" or "error", not {self.on_conflict!r}')
        for key, reducer in (self.reducers or {}).items():
            if not callable(reducer):
                raise DefinitionError(f"the reducer of {key!r} must be a function of two values, not {reducer!r}")


class Fork(NamedTuple):
    """A place where one became several.

    Attributes:
        node: The node behind which it is.
        execution: Of that node.
        size: How many branches there are.
    """

    node: str
    execution: int
    size: int


class Branch:
    """What runs one after the other, with what it has written.

    Attributes:
        parent: The branch that it began on, which stands still while this one goes on; None for the first.
        fork: Where it began; None for the first branch, and for what goes on behind a join.
        index: Which branch of the fork it is.
        writes: What was written on it, by key.
    """

    __slots__ = (
        "_flow",
        "_is_own",
        "_live",
        "_uses",
        "depth",
        "fork",
        "index",
        "parent",
        "writers",
        "writes",
    )

    def __init__(self, parent: Branch | None, fork: Fork | None = None, index: int = 0) -> None:
        self.parent = parent
        self.fork = fork
        self.index = index
        self.depth = 0 if parent is None else parent.depth + 1
        self.writes: dict[Any, Any] = {}
        self.writers: dict[Any, str] = {}  # the node that wrote each key
        self._flow: dict[Any, Any] | None = None
        self._is_own = False  # whether the flow is a dict of its own
        self._uses = 0  # tokens, branches below, joins that hold something of it: it must not change else
        self._live = 0  # of these, what still goes on

    def __repr__(self) -> str:
        where = "" if self.fork is None else f" {self.index} of {self.fork.node!r}"
        return f"<Branch{where} at depth {self.depth}>"

    @property
    def flow(self) -> Mapping[Any, Any]:
        """All values here, by key; to be read only, and before the branch goes on."""
        pending = []
        branch = self
        while branch._flow is None:
            pending.append(branch)
            assert branch.parent is not None
            branch = branch.parent
        flow = branch._flow
        for branch in reversed(pending):
            branch._is_own = bool(branch.writes)
            branch._flow = flow = {**flow, **branch.writes} if branch.writes else flow
        return flow

    def is_within(self, other: Branch) -> bool:
        """Whether it is this branch or began on it."""
        branch: Branch | None = self
        while branch is not None and branch is not other:
            branch = branch.parent
        return branch is other

    def write(self, values: Mapping[Any, Any], writers: Mapping[Any, str]) -> None:
        if not values:
            return
        self.writes.update(values)
        self.writers.update(writers)
        if self._is_own:
            assert self._flow is not None
            self._flow.update(values)
        else:
            self._flow = None if self.parent is not None else {**self.flow, **values}
            self._is_own = self.parent is None


class Upstream(NamedTuple):
    """A node that led to another, and what it gave."""

    node: str
    output: Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """A node is to run.

    Attributes:
        execution: By which its end is told; counted from 0.
        node: Its name.
        flow: The values it may take, shared and to be read only; they hold until its end is told.
        upstream: What led here: nothing for the start, one node, or all that came to a join, by time of arrival.
        branch: The branch that it runs on.
        place: The same for the same way through the graph, whatever else happens and when: a digest.
    """

    execution: int
    node: str
    flow: Mapping[Any, Any]
    upstream: tuple[Upstream, ...]
    branch: Branch
    place: bytes


@dataclass(frozen=True, slots=True)
class BranchEnded:
    """Nothing of a branch of a fork goes on: all of it came to a join, ended or was lost."""

    branch: Branch


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing goes on.

    Attributes:
        result: The input, and what was written on all branches that ended, merged.
    """

    result: dict[Any, Any]


Decision: TypeAlias = Run | BranchEnded | Finished


class Activation:
    """One execution of a graph.

    Args:
        plan: The graph.
        options: How it goes.
    """

    def __init__(self, plan: GraphPlan, options: Options | None = None) -> None:
        self._plan = plan
        self._options = options or Options()
        self._max_steps = self._options.max_steps
        if self._max_steps is None and plan.has_loop:
            self._max_steps = MAX_STEPS
        self._tokens: dict[int, _Token] = {}  # by execution
        self._begun = 0
        self._opened = 0
        self._waiting: dict[_Opening, None] = {}  # something has come to them
        self._ready: list[tuple[int, _Opening]] = []
        self._root = Branch(None)
        self._ended: list[Branch] = []
        self._decisions: list[Decision] = []
        self.is_finished = False

    def __repr__(self) -> str:
        return f"<Activation: {len(self._tokens)} running, {len(self._waiting)} joins waiting>"

    # What is told

    def begin(self, input: Mapping[Any, Any]) -> list[Decision]:
        """Run the start node, with this input."""
        self._root._flow, self._root._is_own = dict(input), True
        self._root._live = self._root._uses = 1
        opened = self._open(self._plan.opened_by.get(-1, ()), self._root, {}, _digest(b"begin"))
        self._enter(self._plan.start, _Way(self._root, opened, 0, (), _digest(b"start")))
        return self._decided()

    def ended(
        self, execution: int, output: Mapping[Any, Any], choices: Sequence[str] | None = None
    ) -> list[Decision]:
        """A node has given its output.

        Args:
            execution: Of what.
            output: What it wrote.
            choices: Where a router goes on, by name, none or several; None for what is no router.

        Raises:
            GraphError: The router may not go there, or the node has no way on; the execution still runs then.
            MaxStepsError: The next node would be one too many.
            ConflictError: Branches that meet now have written one key, under ``on_conflict="error"``.
            StuckError: Joins wait for each other, and for nothing else.
        """
        token = self._token(execution)
        ways = self._ways_on(token, choices)
        name = self._plan.nodes[token.node].name
        del self._tokens[execution]
        token.branch.write(output, dict.fromkeys(output, name))
        self._go_on(token, ways, (Upstream(name, output),))
        self._leave(token.openings)
        self._fire_what_can()
        return self._decided()

    def lost(self, execution: int) -> list[Decision]:
        """A node will give nothing and its branch does not go on, as if it had never been.

        Raises:
            StuckError: Joins wait for each other, and for nothing else.
        """
        token = self._token(execution)
        del self._tokens[execution]
        self._release(token.branch, is_live=True)
        self._leave(token.openings)
        self._fire_what_can()
        return self._decided()

    def _token(self, execution: int) -> _Token:
        token = self._tokens.get(execution)
        if token is None:
            state = "has ended already" if 0 <= execution < self._begun else "was never started"
            raise GraphError(f"execution {execution} {state}; running: {[*self._tokens]}")
        return token

    def _decided(self) -> list[Decision]:
        if not self._tokens and not self.is_finished:
            if self._waiting:
                raise StuckError(list(self._told_waits()))
            self.is_finished = True
            writes, _ = self._merged(self._root, self._ended)
            self._decisions.append(Finished({**self._root.flow, **writes}))
        decisions, self._decisions = self._decisions, []
        return decisions

    # Going on

    def _ways_on(self, token: _Token, choices: Sequence[str] | None) -> Sequence[int]:
        node = self._plan.nodes[token.node]
        if node.is_end:
            return ()
        if node.is_router:
            if choices is None:
                raise GraphError(f"router {node.name!r} has chosen nothing; an empty list of choices ends its branch")
            return self._plan.choose(token.node, choices)
        if choices is not None:
            raise GraphError(f"node {node.name!r} is no router and cannot choose; it chose {list(choices)!r}")
        ways = self._plan.ways_on(token.node)
        if not ways:
            raise GraphError(
                f"node {node.name!r} has ended and there is no way on from it: add an edge or a join, or make it an "
                "end node (end=True)"
            )
        return ways

    def _go_on(self, token: _Token, ways: Sequence[int], upstream: tuple[Upstream, ...]) -> None:
        branch = token.branch
        if not ways:
            self._ended.append(branch)
            self._end_token(branch)
        elif len(ways) == 1 and token.node not in self._plan.blocks:
            self._take(ways[0], _Way(branch, token.openings, token.steps, upstream, token.way_on(0)))
        else:
            self._fork(token, ways, upstream)

    def _fork(self, token: _Token, ways: Sequence[int], upstream: tuple[Upstream, ...]) -> None:
        above = token.branch
        fork = Fork(self._plan.nodes[token.node].name, token.execution, len(ways))
        above._uses += len(ways)
        above._live += len(ways)
        branches = [Branch(above, fork, index) for index in range(len(ways))]
        for branch in branches:
            branch._uses = branch._live = 1
        for way, branch in zip(ways, branches, strict=True):
            place = token.way_on(branch.index)
            self._take(way, _Way(branch, token.openings, token.steps, upstream, place))
        self._release(above, is_live=True)

    def _take(self, point: int, way: _Way) -> None:
        if self._plan.is_join(point):
            self._arrive(point, way)
        else:
            self._enter(point, way)

    def _enter(self, node: int, way: _Way) -> None:
        """A node is to run; what it opens is opened."""
        name = self._plan.nodes[node].name
        if way.steps == self._max_steps:
            raise MaxStepsError(way.steps, name, self._plan.loop_through(name))
        openings = way.openings
        span, opens = self._plan.spans[node], self._plan.opened_by.get(node)
        if opens or len(openings) != len(span):  # a token is counted by no others than these
            openings = {join: openings[join] for join in span}
            if opens:
                openings |= self._open(opens, way.branch, openings, way.place)
        for opening in openings.values():
            opening.under_way += 1
        execution = self._begun
        self._begun += 1
        self._tokens[execution] = _Token(execution, node, way.branch, openings, way.steps + 1, way.place)
        self._decisions.append(Run(execution, name, way.branch.flow, way.upstream, way.branch, way.place))

    # Joins

    def _open(
        self, joins: Sequence[int], branch: Branch, around: Mapping[int, _Opening], place: bytes
    ) -> dict[int, _Opening]:
        """Open joins, all of which see each other and what is open around them."""
        openings: dict[int, _Opening] = {}
        visible = {**around}
        for join in joins:
            openings[join] = visible[join] = _Opening(self._opened, join, branch, visible, place)
            self._opened += 1
        return openings

    def _arrive(self, join: int, way: _Way) -> None:
        opening = way.openings[join]
        if not opening.arrivals:
            self._hold(opening)
        opening.arrivals.append(way)
        self._end_token(way.branch)

    def _hold(self, opening: _Opening) -> None:
        """It will fire: others have to wait for what goes on behind it."""
        self._waiting[opening] = None
        opening.base._uses += 1
        opening.base._live += 1
        for join in self._plan.spans[opening.join]:
            known = opening.around[join]
            other = known.latest()
            if other is not known:  # a round later; what comes from here has not been there
                other.base = _nearest_common(other.base, opening.base)
            other.under_way += 1
            opening.holds[join] = other

    def _leave(self, openings: Mapping[int, _Opening]) -> None:
        for opening in openings.values():
            opening.under_way -= 1
            if not opening.under_way and opening.arrivals:
                heappush(self._ready, (opening.number, opening))

    def _fire_what_can(self) -> None:
        while self._ready:
            _, opening = heappop(self._ready)
            if opening.under_way == 0 and opening in self._waiting:
                self._fire(opening)

    def _fire(self, opening: _Opening) -> None:
        """Go on behind a join, in the place where it was opened, with what came to it."""
        del self._waiting[opening]
        plan, join, arrivals = self._plan, opening.join, opening.arrivals
        branch = self._join_branches(opening.base, [way.branch for way in arrivals])
        node = plan.destination_of(join)
        place = _digest(opening.place, b"join", join.to_bytes(4, "big"))
        opens = [*plan.opened_by.get(join, ())]
        if join in plan.spans[node]:
            opens.append(join)
        openings = {**opening.holds, **self._open(opens, branch, opening.holds, place)}
        opening.next = openings.get(join)
        upstream = tuple(each for way in arrivals for each in way.upstream)
        steps = max(way.steps for way in arrivals)
        self._enter(node, _Way(branch, openings, steps, upstream, place))
        self._leave(opening.holds)
        opening.close()

    def _told_waits(self) -> Iterator[str]:
        names = self._plan.name_of
        for opening in self._waiting:
            blocking = [other for other in self._waiting if opening in other.holds.values()]
            came = ", ".join(repr(each.node) for way in opening.arrivals for each in way.upstream)
            awaited = " and for ".join(names(other.join) for other in blocking)
            missing = [
                self._plan.nodes[place].name
                for place in self._plan.sources_of(opening.join)
                if self._plan.nodes[place].name not in {way.upstream[-1].node for way in opening.arrivals}
            ]
            also = f", which can lead to {' and '.join(map(repr, missing))}" if missing else ""
            yield f"{names(opening.join)} has what came from {came} and waits for {awaited}{also}"

    # Branches

    def _join_branches(self, base: Branch, arrived: Sequence[Branch]) -> Branch:
        """The branch to go on, with what was written on those that arrived."""
        writes, writers = self._merged(base, arrived)
        for branch in arrived:
            self._release(branch, is_live=False)
        branch = base
        if base._uses > 1:  # something else began here, and is not to see what is written now
            branch = Branch(base)
            branch._uses = branch._live = 1  # its place above is the one that the join held
        branch.write(writes, writers)
        return branch

    def _end_token(self, branch: Branch) -> None:
        """A token goes no further; what was written stays."""
        ended = branch
        while ended is not None:
            ended._live -= 1
            if ended._live:
                return
            if ended.fork is not None:
                self._decisions.append(BranchEnded(ended))
            if ended.parent is None:
                return
            ended = ended.parent

    def _release(self, branch: Branch, *, is_live: bool) -> None:
        """Let go of a branch, and of those above that nothing else is on."""
        if is_live:
            self._end_token(branch)
        released: Branch | None = branch
        while released is not None:
            released._uses -= 1
            if released._uses:
                return
            released = released.parent

    def _merged(self, base: Branch, arrived: Sequence[Branch]) -> tuple[dict[Any, Any], dict[Any, str]]:
        """What was written between a branch and those that came from it, in the order in which they arrived."""
        tree = _Tree.of(base, arrived)
        if self._options.on_conflict == "error":
            _refuse_conflicts(tree, self._options.reducers or {})
        writes: dict[Any, Any] = {}
        writers: dict[Any, str] = {}
        for branch in tree.order:
            writes.update(branch.writes)
            writers.update(branch.writers)
        if self._options.reducers:
            writes.update(_reduced(tree, self._options.reducers))
        return writes, writers


class _Token:
    """A node that runs."""

    __slots__ = ("branch", "execution", "node", "openings", "place", "steps")

    def __init__(
        self,
        execution: int,
        node: int,
        branch: Branch,
        openings: Mapping[int, _Opening],
        steps: int,
        place: bytes,
    ) -> None:
        self.execution = execution
        self.node = node
        self.branch = branch
        self.openings = openings  # those that count it, by join
        self.steps = steps
        self.place = place

    def way_on(self, index: int) -> bytes:
        """The place that a way on from here leads to."""
        return _digest(self.place, b"way", index.to_bytes(4, "big"))


class _Way(NamedTuple):
    """What goes along an edge."""

    branch: Branch
    openings: Mapping[int, _Opening]
    steps: int
    upstream: tuple[Upstream, ...]
    place: bytes


class _Opening:
    """A join that was opened, until it fires."""

    __slots__ = (
        "around",
        "arrivals",
        "base",
        "holds",
        "join",
        "next",
        "number",
        "place",
        "under_way",
    )

    def __init__(
        self, number: int, join: int, base: Branch, around: Mapping[int, _Opening], place: bytes
    ) -> None:
        self.number = number
        self.join = join
        self.base = base  # the branch on which it was opened
        self.around = around  # what else was open there, by join
        self.place = place
        self.under_way = 0  # how much may still come to it
        self.arrivals: list[_Way] = []
        self.holds: dict[int, _Opening] = {}  # those that wait for what will go on behind it, by join
        self.next: _Opening | None = None  # the round that began when it fired

    def latest(self) -> _Opening:
        """It, or the last of the rounds that began with it."""
        opening = self
        while opening.next is not None:
            opening = opening.next
        return opening

    def close(self) -> None:
        """Let go of everything that nobody asks for any more."""
        self.around, self.holds, self.arrivals = {}, {}, []


# Merging


class _Tree(NamedTuple):
    """The branches between one and those that came from it.

    A branch that has forked counts as one of the branches of the fork it is in itself: it is complete when the last
    of what came from it is. Inside it the order is found in the same way.
    """

    order: list[Branch]  # each before those that began on it, and those of one fork as they were completed
    below: dict[Branch, list[Branch]]  # in the order of completion

    @classmethod
    def of(cls, base: Branch, arrived: Sequence[Branch]) -> _Tree:
        below: dict[Branch, list[Branch]] = {base: []}
        for last in reversed(arrived):  # so that each branch is met first from what completes it
            branch = last
            while branch not in below:
                below[branch] = []
                assert branch.parent is not None
                is_known = branch.parent in below
                below.setdefault(branch.parent, []).append(branch)
                if is_known:
                    break
                below_parent = below.pop(branch.parent)
                branch = branch.parent
                below[branch] = below_parent
        return cls([], below)


def _reduced(tree: _Tree, reducers: Mapping[str, Reducer]) -> dict[Any, Any]:
    raise NotImplementedError


def _refuse_conflicts(tree: _Tree, reduced: Collection[str]) -> None:
    raise NotImplementedError


def _nearest_common(one: Branch, other: Branch) -> Branch:
    """The lowest branch that both began on."""
    while one is not other:
        if one.depth >= other.depth:
            assert one.parent is not None
            one = one.parent
        else:
            assert other.parent is not None
            other = other.parent
    return one


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"\0".join(parts), digest_size=16).digest()
