"""The static shape of a graph: nodes, edges and joins, what is wrong with them, and what a run of it must know.

A *point* of a graph is a node or a join; an edge to a join is an edge from one of its sources. Points are numbered:
first the nodes as they were added, then the joins.

A join belongs to its *opener*: the nearest point that every path to its sources goes through before it comes to
them. Each time the opener is passed the join is opened, and what comes from there meets in it, once. A source is not
its own opener: if two branches run one source each for itself, the join behind it is to bring these two together.
What comes after the join has nothing of what was opened between the opener and the join, for there it was several;
so when openers are looked for, a join follows what comes before its sources. In terms of dominators: the opener of a
join is its immediate dominator where each edge from a source to it is replaced by edges from what leads to the source.

The *span* of a join are the points from which a source can be reached without passing its opener, which would open
it anew, and without passing the join itself. While something is under way at one of them, the join has to wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from weft.core.dominators import immediate_dominators
from weft.errors import GraphCompileError, GraphError

MAX_STEPS = 10_000
"""How many nodes may run one after the other in a graph with a loop, unless it says otherwise."""

_START = -1  # the opener that is passed once, before the start node


@dataclass(frozen=True, slots=True)
class PlanNode:
    """A node, as far as it matters for what runs next.

    Attributes:
        name: By which edges, joins and choices mean it.
        is_start: Whether an execution begins here.
        is_end: Whether a branch that gets here ends after it.
        is_router: Whether it chooses where to go on; others go wherever they have an edge to.
    """

    name: str
    is_start: bool = False
    is_end: bool = False
    is_router: bool = False


@dataclass(frozen=True, slots=True)
class PlanJoin:
    """Sources that are brought together: the destination runs once, with what all of them gave."""

    sources: tuple[str, ...]
    destination: str

    def __str__(self) -> str:
        return f"the join [{', '.join(map(repr, self.sources))}] -> {self.destination!r}"


class GraphPlan:
    """A graph that can be run: every name in it is known, and it has one start.

    An edge that is given twice, or both as an edge and by a join, is one edge (of the join).

    Args:
        nodes: The nodes; the order is that of messages.
        edges: From name to name; the order of those of one node is that of its branches.
        joins: What is brought together.
        blocks: Nodes whose ways on are a block with options of its own, so that they fork even if only one is taken.

    Raises:
        GraphCompileError: A name that is unknown or given twice, no start node or two, a join of nothing.
    """

    def __init__(
        self,
        nodes: Iterable[PlanNode],
        edges: Iterable[tuple[str, str]] = (),
        joins: Iterable[PlanJoin] = (),
        *,
        blocks: Collection[str] = (),
    ) -> None:
        self.nodes = tuple(nodes)
        edges, given = tuple(dict.fromkeys(edges)), tuple(joins)
        self.number = {node.name: place for place, node in enumerate(self.nodes)}
        wrong = [*_wrong_nodes(self.nodes), *_wrong_edges(self.number, edges)]
        wrong += _wrong_joins(self.number, given)
        wrong += [
            f"the block at {unknown_name(name, self.number)}" for name in blocks if name not in self.number
        ]
        if wrong:
            raise GraphCompileError(*wrong)
        self.joins = _distinct(given)
        self.blocks = frozenset(self.number[name] for name in blocks)
        self.start = next(place for place, node in enumerate(self.nodes) if node.is_start)
        self.destinations = [self.number[join.destination] for join in self.joins]
        self.sources = [[self.number[name] for name in join.sources] for join in self.joins]
        self.edges = edges
        self.ways = self._linked(edges)  # by node, of those that go wherever they have an edge to

    def __repr__(self) -> str:
        return f"<GraphPlan of {len(self.nodes)} nodes and {len(self.joins)} joins>"

    def prepare(self) -> None:
        """Work out all that an execution asks, which is once for all of them."""
        _ = self.onward, self.opened_by, self.spans, self.has_loop

    # Points

    def name_of(self, point: int) -> str:
        """What messages call a point."""
        return str(self.join_at(point)) if self.is_join(point) else repr(self.nodes[point].name)

    def is_join(self, point: int) -> bool:
        return point >= len(self.nodes)

    def join_at(self, point: int) -> PlanJoin:
        return self.joins[point - len(self.nodes)]

    def destination_of(self, point: int) -> int:
        """The node behind a join."""
        return self.destinations[point - len(self.nodes)]

    def sources_of(self, point: int) -> list[int]:
        """The nodes before a join."""
        return self.sources[point - len(self.nodes)]

    @cached_property
    def marks(self) -> list[bytes]:
        """What tells points from each other by name, in this graph and in one that was edited: a digest of each."""
        names = [f"node {node.name}" for node in self.nodes] + [str(join) for join in self.joins]
        return [blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest() for name in names]

    @property
    def join_points(self) -> range:
        return range(len(self.nodes), len(self.nodes) + len(self.joins))

    def ways_on(self, point: int) -> Sequence[int]:
        """The points that can come next, in the order of the branches."""
        if self.is_join(point):
            return (self.destination_of(point),)
        node = self.nodes[point]
        if node.is_end:
            return ()
        if self.goes_anywhere(point):
            return range(len(self.nodes))
        return self.ways[point]

    @cached_property
    def onward(self) -> list[Sequence[int] | None]:
        """By node, where it goes on in any case; None where it chooses, or has no way on and is no end."""
        return [
            () if node.is_end else None if node.is_router or not ways else ways
            for node, ways in zip(self.nodes, self.ways, strict=True)
        ]

    def goes_anywhere(self, point: int) -> bool:
        """Whether it is a router without edges, which may choose any node."""
        return self.nodes[point].is_router and not self.ways[point]

    def _linked(self, edges: Iterable[tuple[str, str]]) -> list[tuple[int, ...]]:
        joined = {
            (source, join.destination) for join in self.joins for source in join.sources
        }  # such an edge would run the destination once more, which the join is there to prevent
        ways: list[list[int]] = [[] for _ in self.nodes]
        for source, destination in edges:
            if (source, destination) not in joined:
                ways[self.number[source]].append(self.number[destination])
        for point in self.join_points:
            for place in self.sources_of(point):
                ways[place].append(point)
        # Of tuples of numbers, unlike of lists, the garbage collector need not look at a single one.
        return [tuple(each) for each in ways]

    # Choices

    def choose(self, point: int, choices: Sequence[str]) -> list[int]:
        """The points that these choices of a router mean.

        Raises:
            GraphError: It may not go there.
        """
        chosen = []
        for choice in choices:
            ways = self._named_ways(point).get(choice)
            if ways is None:
                raise GraphError(self._cannot_choose(point, choice))
            chosen += ways
        return chosen

    def shown_ways(self, router: str) -> str:
        """The nodes to which a router can go, for people."""
        return _listed(self._named_ways(self.number[router]))

    def _named_ways(self, point: int) -> dict[str, list[int]]:
        named = self._choices.get(point)
        if named is None:
            named = {}
            for way in self.ways_on(point):
                node = self.destination_of(way) if self.is_join(way) else way
                named.setdefault(self.nodes[node].name, []).append(way)
            self._choices[point] = named  # when it is whole: other threads may look meanwhile
        return named

    @cached_property
    def _choices(self) -> dict[int, dict[str, list[int]]]:
        return {}

    def _cannot_choose(self, point: int, choice: object) -> str:
        router, possible = self.nodes[point].name, self._named_ways(point)
        if not isinstance(choice, str):
            return f"router {router!r} chose {choice!r}, which is no name of a node; it can go to {_listed(possible)}"
        if choice in self.number:
            return (
                f"router {router!r} chose {choice!r}, to which it has no edge; it can go to {_listed(possible)}; "
                f"or add_edge({router!r}, {choice!r})"
            )
        return f"router {router!r} chose {unknown_name(choice, possible, 'it can go to')}"

    # Joins

    @cached_property
    def opened_by(self) -> dict[int, list[int]]:
        """The joins that each point opens; by -1 those that are opened once, before the start node."""
        opened: dict[int, list[int]] = {}
        for join, opener in self._openers.items():
            opened.setdefault(opener, []).append(join)
        return opened

    def opener_of(self, join: int) -> int:
        """The point that opens a join; -1 for the execution itself."""
        return self._openers.get(join, _START)

    @cached_property
    def _openers(self) -> dict[int, int]:
        if not self.joins:
            return {}
        # A second point stands before each source, and that one is what its joins follow.
        count = len(self.nodes) + len(self.joins)
        sources = {place for point in self.join_points for place in self.sources_of(point)}
        before = {place: count + offset for offset, place in enumerate(sorted(sources))}
        root = count + len(before)
        ways: list[list[int]] = [[] for _ in range(root + 1)]
        for point in range(count):
            ways[point] = [before.get(way, way) for way in self.ways_on(point) if not self.is_join(way)]
        for place, point in before.items():
            ways[point] = [place, *(way for way in self.ways_on(place) if self.is_join(way))]
        ways[root] = [before.get(self.start, self.start)]
        found = immediate_dominators(ways, root)
        openers = {}
        for join in self.join_points:
            opener = found[join]
            while count <= opener < root:
                opener = found[opener]
            if opener >= 0:  # else it can never fire, and problems() says so
                openers[join] = _START if opener == root else self._block_round(opener, found)
        return openers

    def _block_round(self, opener: int, dominators: Sequence[int]) -> int:
        """The block to whose only branch the opener belongs, which opens the join in its stead; else the opener.

        A block with two branches stands nearest before their join by itself; one with a single branch is no less one.
        """
        point = opener
        while 0 <= point < len(self.nodes) and len(self.ways_on(point)) == 1:
            if point in self.blocks:
                return point
            point = dominators[point]
            while len(self.nodes) + len(self.joins) <= point < len(dominators) - 1:
                point = dominators[point]  # a point that stands before a source
        return opener

    @cached_property
    def spans(self) -> list[tuple[int, ...]]:
        """By point, the joins that have to wait while something is under way there, but for those it opens."""
        spans: list[list[int]] = [[] for _ in range(len(self.nodes) + len(self.joins))]
        ways_in = self._ways_in() if self._openers else []
        for join, opener in self._openers.items():
            for point in _leading_to(ways_in, ways_in[join], {join, opener}):
                spans[point].append(join)
        known: dict[tuple[int, ...], tuple[int, ...]] = {}  # equal ones are one object
        return [known.setdefault(tuple(span), tuple(span)) for span in spans]

    def _ways_in(self) -> list[list[int]]:
        """By point, those from which one comes there."""
        ways: list[list[int]] = [[] for _ in range(len(self.nodes) + len(self.joins))]
        for point in sorted(self._reachable):
            for after in self.ways_on(point):
                ways[after].append(point)
        return ways

    @cached_property
    def _reachable(self) -> frozenset[int]:
        seen, stack = {self.start}, [self.start]
        while stack:
            new = [way for way in self.ways_on(stack.pop()) if way not in seen]
            seen.update(new)
            stack += new
        return frozenset(seen)

    # Loops

    @cached_property
    def has_loop(self) -> bool:
        """Whether some node can run again after itself."""
        return self._find_loop(lambda point: True) is not None

    def loop_through(self, name: str) -> list[str]:
        """The nodes of a shortest loop through this one, which comes first; none if there is none."""
        start = self.number[name]
        came: dict[int, int] = {}
        queue = deque([start])
        while queue and start not in came:
            point = queue.popleft()
            for way in self.ways_on(point):
                if way not in came:
                    came[way] = point
                    queue.append(way)
        if start not in came:
            return []
        loop, point = [start], came[start]
        while point != start:
            loop.append(point)
            point = came[point]
        return [self.nodes[each].name for each in [start, *loop[:0:-1]] if not self.is_join(each)]

    def shown_loop(self) -> str:
        """One of the loops, for people; empty if there is none."""
        return self._shown(self._find_loop(lambda point: True) or [])

    def _shown(self, loop: Sequence[int]) -> str:
        names = [self.nodes[point].name for point in loop if not self.is_join(point)]
        return " -> ".join(map(repr, [*names, *names[:1]]))

    def _find_loop(self, may_pass: Callable[[int], bool]) -> list[int] | None:
        """A loop among some of the points that can be reached."""
        done: set[int] = set()
        for root in sorted(self._reachable):
            if root in done or not may_pass(root):
                continue
            path, on_path = [root], {root: 0}
            pending = [iter(self.ways_on(root))]
            while pending:
                way = next(pending[-1], None)
                if way is None:
                    pending.pop()
                    point = path.pop()
                    del on_path[point]
                    done.add(point)
                elif way in on_path:
                    return path[on_path[way] :]
                elif way not in done and may_pass(way):
                    on_path[way] = len(path)
                    path.append(way)
                    pending.append(iter(self.ways_on(way)))
        return None

    # Checking

    def check(self) -> None:
        """Refuse what can never work.

        Raises:
            GraphCompileError: Everything that is wrong, in one error.
        """
        problems = list(self.problems())
        if problems:
            raise GraphCompileError(*problems)

    def problems(self) -> Iterator[str]:
        """What can be run and yet is wrong somewhere, a sentence each."""
        yield from self._unreachable()
        yield from self._without_way_on()
        yield from self._never_taken()
        yield from self._never_ending()

    def _unreachable(self) -> Iterator[str]:
        lost = [node.name for place, node in enumerate(self.nodes) if place not in self._reachable]
        if lost:
            start = self.nodes[self.start].name
            yield f"no path leads from the start {start!r} to {_listed(lost)}"

    def _without_way_on(self) -> Iterator[str]:
        for place, node in enumerate(self.nodes):
            if not node.is_end and not node.is_router and not self.ways[place]:
                yield f"node {node.name!r} has no way on: add an edge or a join, or make it an end node (end=True)"

    def _never_taken(self) -> Iterator[str]:
        for place, node in enumerate(self.nodes):
            for way in self.ways[place] if node.is_end else ():
                to = self.name_of(way)
                yield f"{node.name!r} is an end node, so that no branch goes on from there to {to}"
        for point in self.join_points:
            if point not in self._reachable:
                yield f"{self.join_at(point)} can never fire: no branch can come to it from any of its sources"

    def _never_ending(self) -> Iterator[str]:
        loop = self._find_loop(lambda point: self.is_join(point) or not self.nodes[point].is_router)
        if loop is not None:
            shown = self._shown(loop)
            yield f"the loop {shown} can never end: nothing in it is a router, which could choose to leave it"


def _leading_to(
    ways_in: Sequence[Sequence[int]], targets: Iterable[int], but: Collection[int]
) -> Iterator[int]:
    """The targets and all from where they can be reached without passing certain points."""
    seen = {*targets}.difference(but)
    stack = list(seen)
    while stack:
        point = stack.pop()
        yield point
        for before in ways_in[point]:
            if before not in seen and before not in but:
                seen.add(before)
                stack.append(before)


# What is wrong with the names


def _wrong_nodes(nodes: Sequence[PlanNode]) -> Iterator[str]:
    names = [node.name for node in nodes]
    if not names:
        yield "the graph has no nodes: add_node() adds one"
        return
    if len(set(names)) < len(names):
        yield from (f"two nodes are named {name!r}" for name in _repeated(names))
    starts = [node.name for node in nodes if node.is_start]
    if not starts:
        yield f"the graph has no start node: give one of {_listed(names)} start=True, or call set_start_node()"
    if len(starts) > 1:
        yield f"the graph has {len(starts)} start nodes, {_listed(starts)}: an execution can begin at one only"


def _wrong_edges(known: Collection[str], edges: Iterable[tuple[str, str]]) -> Iterator[str]:
    for source, destination in edges:
        for name in dict.fromkeys((source, destination)):
            if name not in known:
                yield f"the edge {source!r} -> {destination!r} names {unknown_name(name, known)}"


def _wrong_joins(known: Collection[str], joins: Iterable[PlanJoin]) -> Iterator[str]:
    for join in joins:
        if not join.sources:
            yield f"{join} has no sources, so that it could never fire"
        for name in _repeated(join.sources):
            yield f"{join} names the source {name!r} twice"
        for name in dict.fromkeys((*join.sources, join.destination)):
            if name not in known:
                yield f"{join} names {unknown_name(name, known)}"


def _distinct(joins: Iterable[PlanJoin]) -> tuple[PlanJoin, ...]:
    """Without those that say the same as one before."""
    found: dict[object, PlanJoin] = {}
    for join in joins:
        found.setdefault((frozenset(join.sources), join.destination), join)
    return tuple(found.values())


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return list(dict.fromkeys(name for name in names if name in seen or seen.add(name)))  # type: ignore[func-returns-value]


def unknown_name(name: object, known: Collection[str], these: str = "the nodes are") -> str:
    """That a name is none of those known, for people, with the one that may have been meant."""
    from difflib import get_close_matches  # noqa: PLC0415 - only for a mistake

    close = get_close_matches(name, known, 1) if isinstance(name, str) else []
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{name!r}, which is no node; {hint}{these} {_listed(known)}"


def _listed(names: Collection[str], *, most: int = 12) -> str:
    shown = ", ".join(repr(name) for name, _ in zip(names, range(most), strict=False))
    if len(names) > most:
        shown += f" and {len(names) - most} more"
    return shown or "nowhere"
