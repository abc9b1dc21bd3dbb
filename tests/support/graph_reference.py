"""A slow interpreter of graphs, written to be read: what it does is taken to be right.

It says the rules as they are, and keeps nothing up to date. Each token knows its whole *trail*, every point that it
has passed with the number of the event; whether a join may fire is found by searching, for everything that is under
way, all paths that it could still take. Nothing is shared with :mod:`weft.core`: a graph is given as plain names.

The rules:

- A node that ends leads along each of its edges, a router along those that it chose; several ways are a fork.
- An edge that a join has too is the join's.
- The opener of a join is the nearest point (node or join) that all paths to its sources go through before they reach
  them. What goes on behind a join has the trail of the opener; so for this question, a join follows whatever comes
  before its sources.
- A token at a join comes to the opening that its trail names: the last passing of the opener, or of the join itself.
- An opening fires when something has come and nothing under way can still come to it. Of several that may, the one
  that was opened first.
- What came brings, for each key, the last value written on its way since the opening. A value that is brought several
  times counts once, where it is brought last. One that was seen by the writer of another one that came does not count.
  The last one wins, or a reducer combines them in this order.
- What was appended to a list in the state stands, wherever it is seen, in the order in which the nodes that appended it
  were completed: not branch by branch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Graph:
    """Nodes in order, the first one is the start; edges and joins as pairs of names."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    joins: tuple[tuple[tuple[str, ...], str], ...] = ()
    ends: frozenset[str] = frozenset()
    routers: frozenset[str] = frozenset()


class Event(NamedTuple):
    """A point that was passed; joins are points of their own, named by their number."""

    point: Any
    number: int


class Note(NamedTuple):
    """What an execution has appended, and as which it was completed."""

    number: int
    execution: int


@dataclass(eq=False)
class Branch:
    """Where values were written."""

    parent: Branch | None
    writes: dict[str, Any] = field(default_factory=dict)
    homes: dict[str, Branch] = field(default_factory=dict)  # where each value was written, if not here
    joined: tuple[Branch, ...] = ()
    noted: set[Note] = field(default_factory=set)  # what its executions have appended to a list in the state

    def above(self):
        """It and all that it began on, upwards."""
        return [self, *(self.parent.above() if self.parent else ())]

    def __post_init__(self):
        before = [each for each in (self.parent, *self.joined) if each is not None]
        self.seen = {*before}.union(*(each.seen for each in before))  # all whose values could be seen here
        self.inherited = set().union(
            *(each.all_noted() for each in before)
        )  # nobody goes on where somebody began

    def all_noted(self):
        return self.inherited | self.noted

    def history(self):
        """The list in the state, as it is seen here."""
        return [note.execution for note in sorted(self.all_noted())]

    def home(self, key):
        return self.homes.get(key, self)

    def flow(self):
        return {**(self.parent.flow() if self.parent else {}), **self.writes}


@dataclass(eq=False)
class Token:
    """What is under way at a point, or waits at a join."""

    trail: tuple[Event, ...]
    branch: Branch
    steps: int
    upstream: tuple[tuple[str, dict], ...]

    @property
    def point(self):
        return self.trail[-1].point


@dataclass(eq=False)
class Opening:
    """A passing of an opener, as far as one join is concerned; ``trail`` up to there."""

    join: int
    trail: tuple[Event, ...]
    base: Branch
    order: tuple
    came: list[Token] = field(default_factory=list)
    next_round: Opening | None = None
    has_fired: bool = False


def last_round(opening):
    return opening if opening.next_round is None else last_round(opening.next_round)


class Started(NamedTuple):
    """A node that is to run now."""

    execution: int
    node: str
    flow: dict
    upstream: tuple
    branch: Branch


class Stuck(Exception):
    """Joins wait for each other."""


class TooManySteps(Exception):
    """A path is longer than it may be."""


class Reference:
    """One execution of a graph."""

    def __init__(self, graph, *, max_steps=None, reducers=None):
        self.graph = graph
        self.max_steps = max_steps
        self.reducers = reducers or {}
        self.events = 0
        self.executions = 0
        self.completed = 0
        self.running: dict[int, Token] = {}
        self.openings: list[Opening] = []
        self.ended: list[Branch] = []
        self.started: list[Started] = []
        self.result = None
        self.fired: list[Opening] = []
        self.openers = {join: opener_of(graph, join) for join in range(len(graph.joins))}

    # What happens

    def begin(self, input):
        self.input = Branch(None, dict(input))
        start, first = Event("", 0), Branch(self.input)
        self._open((start,), first)
        self._run(self.graph.nodes[0], Token((start,), first, 0, ()))
        return self._said()

    def end(self, execution, output, choices=None, *, notes=False):
        token = self.running.pop(execution)
        self.completed += 1
        if notes:
            token.branch.noted.add(Note(self.completed, execution))
        node = token.point
        token.branch.writes.update(output)
        for key in output:
            token.branch.homes.pop(key, None)
        ways = (
            [way for way in ways_on(self.graph, node) if choices is None]
            if node not in self.graph.ends
            else []
        )
        for choice in choices or ():
            if node not in self.graph.ends:
                ways += [way for way in ways_on(self.graph, node) if name_behind(self.graph, way) == choice]
        if not ways:
            self.ended.append(token.branch)
        for way in ways:
            branch = Branch(token.branch) if len(ways) > 1 else token.branch
            moved = Token(token.trail, branch, token.steps, ((node, output),))
            if isinstance(way, int):
                self._opening_for(way, token.trail).came.append(moved)
            else:
                self._run(way, moved)
        self._fire_what_can()
        return self._said()

    def lose(self, execution):
        del self.running[execution]
        self._fire_what_can()
        return self._said()

    def _said(self):
        if not self.running and self.result is None:
            if self._waiting():
                raise Stuck
            self.history = Branch(self.input, joined=tuple(self.ended)).history()
            self.result = {**self.input.flow(), **self._merged(what_counts(self.input, self.ended))}
        started, self.started = self.started, []
        return started

    # Running and opening

    def _run(self, node, token):
        if token.steps == self.max_steps:
            raise TooManySteps
        trail = (*token.trail, self._event(node))
        self._open(trail, token.branch)
        self.running[self.executions] = Token(trail, token.branch, token.steps + 1, ())
        self.started.append(Started(self.executions, node, token.branch.flow(), token.upstream, token.branch))
        self.executions += 1

    def _event(self, point):
        self.events += 1
        return Event(point, self.events)

    def _open(self, trail, branch):
        """The joins that the last point of a trail opens."""
        for join, opener in self.openers.items():
            here = trail[-1].point
            if here == opener or here == join:
                order = (trail[-1].number, here == join, join)
                self.openings.append(Opening(join, trail, branch, order))

    def _opening_for(self, join, trail):
        """The opening of a join that a trail leads to; None if the trail has not passed the opener."""
        for event in reversed(trail):
            for opening in self.openings:
                if opening.join == join and opening.trail[-1] == event:
                    return last_round(opening)
        return None

    # Firing

    def _waiting(self):
        return [opening for opening in self.openings if opening.came and not opening.has_fired]

    def _fire_what_can(self):
        while free := [opening for opening in self._waiting() if not self._is_awaiting(opening)]:
            self._fire(min(free, key=lambda opening: opening.order))

    def _is_awaiting(self, opening):
        under_way = [(token.point, token.trail) for token in self.running.values()]
        under_way += [(other.join, other.trail) for other in self._waiting() if other is not opening]
        return any(
            self._opening_for(opening.join, trail) is opening and self._can_come(point, opening.join)
            for point, trail in under_way
        )

    def _can_come(self, point, join):
        """Whether a path leads from here to a source, without passing the opener or the join itself."""
        barred = {join, self.openers[join]}
        if isinstance(point, int) and point in barred:
            return False
        seen, todo = set(), [point]
        while todo:
            here = todo.pop()
            if here in seen:
                continue
            seen.add(here)
            if join in ways_on(self.graph, here):
                return True
            todo += [way for way in ways_on(self.graph, here) if way not in barred]
        return False

    def _fire(self, opening):
        opening.has_fired = True
        self.fired.append(opening)
        branches = [token.branch for token in opening.came]
        shared = [
            branch for branch in opening.base.above() if all(branch in each.above() for each in branches)
        ]
        branch = Branch(shared[0], joined=tuple(branches))
        brought = what_counts(shared[0], branches)
        branch.writes = self._merged(brought)
        branch.homes = {key: values[0].home for key, values in brought.items() if len(values) == 1}
        trail = (*opening.trail, self._event(opening.join))
        before = len(self.openings)
        self._open(trail, branch)
        opening.next_round = next((new for new in self.openings[before:] if new.join == opening.join), None)
        upstream = tuple(each for token in opening.came for each in token.upstream)
        steps = max(token.steps for token in opening.came)
        self._run(self.graph.joins[opening.join][1], Token(trail, branch, steps, upstream))

    # Merging

    def _merged(self, brought):
        merged = {}
        for key, values in brought.items():
            merged[key] = values[-1].value
            if key in self.reducers:
                merged[key] = functools.reduce(self.reducers[key], [each.value for each in values])
        return merged


class Brought(NamedTuple):
    """A value, and the branch where it was written."""

    value: Any
    home: Branch


def what_counts(base, came):
    """By key the values that count of those that these branches bring, in order."""
    brought = {}
    for branch in came:
        on_the_way = branch.above()[: branch.above().index(base)]
        for key in dict.fromkeys(key for each in on_the_way for key in each.writes):
            holder = next(each for each in on_the_way if key in each.writes)
            brought.setdefault(key, []).append(Brought(holder.writes[key], holder.home(key)))
    return {key: without_overwritten(values) for key, values in brought.items()}


def without_overwritten(values):
    homes = [each.home for each in values]
    return [
        each
        for place, each in enumerate(values)
        if each.home not in homes[place + 1 :] and not any(each.home in home.seen for home in homes)
    ]


# The shape of a graph


def ways_on(graph, point):
    """Edges first, then joins, each in the given order."""
    if isinstance(point, int):
        return [graph.joins[point][1]]
    if point in graph.ends:
        return []
    joins = [join for join, (sources, _) in enumerate(graph.joins) if point in sources]
    joined = {graph.joins[join][1] for join in joins}
    edges = [to for source, to in dict.fromkeys(graph.edges) if source == point and to not in joined]
    return edges + joins if edges or joins or point not in graph.routers else list(graph.nodes)


def name_behind(graph, way):
    return graph.joins[way][1] if isinstance(way, int) else way


def reachable(edges, start, without=None):
    seen, todo = set(), [start]
    while todo:
        here = todo.pop()
        if here != without and here not in seen:
            seen.add(here)
            todo += edges[here]
    return seen


def opener_of(graph, join):
    """The nearest point that all paths to what precedes the sources of a join go through; "" is the execution."""
    points = ["", *graph.nodes, *range(len(graph.joins))]
    edges = {point: ways_on(graph, point) for point in points if point != ""}
    edges[""] = [graph.nodes[0]]
    paths = {point: [way for way in ways if not isinstance(way, int)] for point, ways in edges.items()}
    for point, ways in edges.items():
        for node in ways:
            if node in graph.nodes:
                paths[point] += [way for way in edges[node] if isinstance(way, int)]
    if join not in reachable(paths, ""):
        return None
    needed = [point for point in points if point != join and join not in reachable(paths, "", without=point)]
    return max(
        needed, key=lambda point: sum(point not in reachable(paths, "", without=other) for other in needed)
    )
