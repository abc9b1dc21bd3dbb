"""Which point of a directed graph every path to another goes through: the dominator tree.

By Lengauer and Tarjan, in the version with path compression: almost linear, and nothing recurses, so that a chain
of 10,000 nodes and a fork of 10,000 are as cheap as they look. (The iteration that is simpler to write walks up the
tree for each edge, which is quadratic for a ladder.)
"""

from __future__ import annotations

from collections.abc import Sequence


def immediate_dominators(ways_on: Sequence[Sequence[int]], start: int) -> list[int]:
    """For each vertex the nearest other one that every path from ``start`` to it goes through.

    Args:
        ways_on: The successors of each vertex.
        start: Where all paths begin; it is its own dominator.

    Returns:
        The dominator by vertex; -1 for those that no path reaches.
    """
    order, parent = _depth_first(ways_on, start)
    number = [-1] * len(ways_on)
    for place, vertex in enumerate(order):
        number[vertex] = place
    ways_in: list[list[int]] = [[] for _ in order]
    for vertex in order:
        for after in ways_on[vertex]:
            ways_in[number[after]].append(number[vertex])
    found = _by_number(ways_in, [number[before] for before in parent])
    result = [-1] * len(ways_on)
    for place, vertex in enumerate(order):
        result[vertex] = order[found[place]]
    return result


def _depth_first(ways_on: Sequence[Sequence[int]], start: int) -> tuple[list[int], list[int]]:
    """The vertices as a depth-first search enters them, and from where it entered each."""
    order: list[int] = []
    parent: list[int] = []
    seen = [False] * len(ways_on)
    stack = [(start, start)]
    while stack:
        vertex, before = stack.pop()
        if seen[vertex]:
            continue
        seen[vertex] = True
        order.append(vertex)
        parent.append(before)
        stack.extend((after, vertex) for after in reversed(ways_on[vertex]) if not seen[after])
    return order, parent


def _by_number(ways_in: list[list[int]], parent: list[int]) -> list[int]:
    """The dominators of vertices that are numbered in depth-first order."""
    count = len(ways_in)
    semi, dominator = list(range(count)), [0] * count
    forest = _Forest(semi)
    bucket: list[list[int]] = [[] for _ in range(count)]
    for vertex in range(count - 1, 0, -1):
        for before in ways_in[vertex]:
            semi[vertex] = min(semi[vertex], semi[forest.least(before)])
        bucket[semi[vertex]].append(vertex)
        above = parent[vertex]
        forest.link(above, vertex)
        for waiting in bucket[above]:
            least = forest.least(waiting)
            dominator[waiting] = least if semi[least] < semi[waiting] else above
        bucket[above].clear()
    for vertex in range(1, count):
        if dominator[vertex] != semi[vertex]:
            dominator[vertex] = dominator[dominator[vertex]]
    return dominator


class _Forest:
    """The part of the search tree that has been looked at, with compressed paths."""

    def __init__(self, semi: list[int]) -> None:
        self._semi = semi
        self._above = [-1] * len(semi)
        self._label = list(range(len(semi)))

    def link(self, above: int, vertex: int) -> None:
        self._above[vertex] = above

    def least(self, vertex: int) -> int:
        """The vertex with the least semidominator on the way up to the root of its tree, that apart."""
        above, label, semi = self._above, self._label, self._semi
        if above[vertex] < 0:
            return vertex
        path = []
        while above[above[vertex]] >= 0:
            path.append(vertex)
            vertex = above[vertex]
        root = above[vertex]
        best = label[vertex]
        for lower in reversed(path):
            if semi[best] < semi[label[lower]]:
                label[lower] = best
            best = label[lower]
            above[lower] = root
        return best
