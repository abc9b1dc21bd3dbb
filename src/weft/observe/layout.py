"""Where boxes, arrows and labels go: by the layered layout ``dot`` of Graphviz.

It gets sizes only, never names. Boxes are rectangles to it, which it places without overlaps, and arrows are curves
that go around them. The label of an arrow is a box too, half way: Graphviz's own labels lie on boxes now and then,
and crash it together with groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot
from typing import Any

from weft.observe.graphviz import dot
from weft.observe.lettering import shortened, shown, text_width
from weft.observe.picture import Arrow, Box, Direction, Group, Picture, all_groups, check_choice

TEXT = 13.0  # the size of letters, in the unit of the drawing (a pixel)
SMALL = 11.0  # those of labels of arrows and headings of groups
SLANT = 10.0  # how far the sides of a router's hexagon reach out

_DIRECTIONS: dict[Direction, str] = {"down": "TB", "right": "LR"}
_WIDEST = 250.0  # of a text
_WIDEST_HEADING = 420.0
_HEIGHT = 38.0
NOTE = 15.0  # what each smaller line adds to that
_BADGE = 12.0  # and to the width, what says how it ended
_JOIN = 30.0
_ROOM = 5.0  # between a box and the arrows that pass by
_DOT = 14.0
_INCH = 72.0  # units to one of Graphviz, which has its sizes in inches

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle, by its middle, with what is written in it: a line, and smaller ones below."""

    x: float
    y: float
    width: float
    height: float
    text: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """The way of an arrow.

    Attributes:
        parts: What to draw, one after the other, with the label between: of each the first point, then three for each
            Bézier curve, two that pull and where it ends.
        tip: Where the arrow points to, a little after the last.
        label: Where its label is, if it has one.
    """

    parts: tuple[tuple[Point, ...], ...]
    tip: Point
    label: Frame | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of a picture is; y grows downwards. In the order of the picture.

    Attributes:
        width: Of it all.
        height: Of it all.
        boxes: One for each box.
        arrows: One for each arrow.
        groups: One for each group, with those inside others, the outer first; its text is its heading.
        starts: For each box where the workflow starts, the dot before it and the arrow from there.
    """

    width: float
    height: float
    boxes: tuple[Frame, ...]
    arrows: tuple[Curve, ...]
    groups: tuple[Frame, ...]
    starts: tuple[tuple[Frame, Curve], ...]


def is_round(box: Box) -> bool:
    """Whether its sides are half circles."""
    return box.is_end and box.kind in {"node", "anywhere"}


def is_meeting(box: Box) -> bool:
    """Whether it is a diamond, where branches begin or meet."""
    return box.kind in {"fork", "join"}


def place(picture: Picture, *, direction: Direction = "down") -> Layout:
    """Lay a picture out; the same picture is laid out the same.

    Raises:
        UsageError: pygraphviz is not installed, or could not do it.
    """
    check_choice("direction", direction, _DIRECTIONS)
    sketch = _Sketch(picture, direction)
    return _read(sketch, dot("\n".join(sketch.lines())))


class _Sketch:
    """A picture in Graphviz's language; whatever it is to place has a name by its number.

    ``b`` a box, ``s`` the dot before it where it starts, ``l`` the label of an arrow, ``a`` an arrow or the part of it
    before the label, ``z`` the part after that.
    """

    def __init__(self, picture: Picture, direction: Direction) -> None:
        self.picture = picture
        self.direction = direction
        self.boxes = [_box_frame(box) for box in picture.boxes]
        self.labels = [_label_frame(arrow.label) if arrow.label else None for arrow in picture.arrows]
        self.headings = [_heading_frame(group) for group in all_groups(picture.groups)]
        self.backwards = _backwards(picture)
        self.numbers = {box.id: number for number, box in enumerate(picture.boxes)}

    def lines(self) -> Iterator[str]:
        parents, homes = _homes(self.picture.groups)
        inside: dict[int | None, list[str]] = {}
        for number, box in enumerate(self.picture.boxes):
            inside.setdefault(homes.get(box.id), []).extend(self._box(number, box))
        for number, arrow in enumerate(self.picture.arrows):
            home = _common(homes.get(arrow.source), homes.get(arrow.destination), parents)
            inside.setdefault(home, []).extend(self._label(number))
        yield "digraph {"
        yield f"rankdir={_DIRECTIONS[self.direction]} nodesep=0.3 ranksep=0.4 pad=0"
        yield 'node [shape=box fixedsize=true label=""]'
        yield "edge [arrowsize=0.9]"
        yield from self._groups(inside)
        yield from inside.get(None, ())
        for number, arrow in enumerate(self.picture.arrows):
            yield from self._arrow(number, arrow)
        yield "}"

    def _groups(self, inside: Mapping[int | None, Sequence[str]]) -> Iterator[str]:
        number = 0
        pending: list[Group | None] = list(self.picture.groups[::-1])
        while pending:
            group = pending.pop()
            if group is None:
                yield "}"
                continue
            yield f"subgraph cluster_{number} {{"
            yield f"graph [margin=14 labeljust=l label={_table(self.headings[number])}]"
            # Graphviz leaves out what is empty
            yield from inside.get(
                number, () if group.groups else (f"e{number} [style=invis {_size(36, 8)}]",)
            )
            pending += [None, *group.groups[::-1]]
            number += 1

    def _box(self, number: int, box: Box) -> Iterator[str]:
        frame = self.boxes[number]
        shape = " shape=diamond" if is_meeting(box) else ""
        room = 0 if is_meeting(box) else 2 * _ROOM
        yield f"b{number} [{_size(frame.width + room, frame.height + room)}{shape}]"
        if box.is_start:
            yield f"s{number} [{_size(_DOT, _DOT)} shape=circle]"
            yield f"s{number} -> b{number} [id=s{number} weight=9]"

    def _label(self, number: int) -> Iterator[str]:
        frame = self.labels[number]
        if frame:
            yield f"l{number} [{_size(frame.width, frame.height)}]"

    def _arrow(self, number: int, arrow: Arrow) -> Iterator[str]:
        source, destination = f"b{self.numbers[arrow.source]}", f"b{self.numbers[arrow.destination]}"
        if number in self.backwards:
            yield from self._backward_arrow(number, source, destination)
        elif self.labels[number]:
            yield f"{source} -> l{number} [id=a{number} arrowhead=none]"
            yield f"l{number} -> {destination} [id=z{number}]"
        else:
            yield f"{source} -> {destination} [id=a{number}]"

    def _backward_arrow(self, number: int, source: str, destination: str) -> Iterator[str]:
        """Told the other way round: else Graphviz chooses itself what of a loop is above, groups before all else."""
        if self.labels[number]:
            yield f"l{number} -> {source} [id=a{number} dir=none]"
            yield f"{destination} -> l{number} [id=z{number} dir=back]"
        else:
            yield f"{destination} -> {source} [id=a{number} dir=back]"


def _backwards(picture: Picture) -> set[int]:
    """The arrows that lead back to where one has come from, going from the start; by their numbers."""
    ways: dict[str, list[tuple[int, str]]] = {box.id: [] for box in picture.boxes}
    for number, arrow in enumerate(picture.arrows):
        if arrow.source != arrow.destination:
            ways[arrow.source].append((number, arrow.destination))
    found: set[int] = set()
    seen: set[str] = set()
    above: set[str] = set()  # between the start and where it is looked at
    for first in sorted(picture.boxes, key=lambda box: not box.is_start):
        stack = [] if first.id in seen else [(first.id, iter(ways[first.id]))]
        while stack:
            here, rest = stack[-1]
            seen.add(here)
            above.add(here)
            number, there = next(rest, (-1, ""))
            if number < 0:
                above.discard(here)
                stack.pop()
            elif there in above:
                found.add(number)
            elif there not in seen:
                stack.append((there, iter(ways[there])))
    return found


def _homes(groups: Sequence[Group]) -> tuple[list[int | None], dict[str, int]]:
    """Of each group the one around it, and of each box the one it is in."""
    parents: list[int | None] = []
    homes: dict[str, int] = {}
    pending: list[tuple[Group, int | None]] = [(group, None) for group in reversed(groups)]
    while pending:
        group, parent = pending.pop()
        number = len(parents)
        parents.append(parent)
        homes.update(dict.fromkeys(group.members, number))
        pending += [(inner, number) for inner in group.groups[::-1]]
    return parents, homes


def _common(one: int | None, other: int | None, parents: Sequence[int | None]) -> int | None:
    """The innermost group that both are in; of two numbers the greater is never around the other."""
    while one != other:
        if one is None or other is None:
            return None
        one, other = (parents[one], other) if one > other else (one, parents[other])
    return one


def _read(sketch: _Sketch, placed: dict[str, Any]) -> Layout:
    left, low, right, high = _numbers(placed["bb"])
    flip = _Flip(left, high)
    things = {thing["name"]: thing for thing in placed.get("objects", ())}
    lines = {line["id"]: line for line in placed.get("edges", ())}

    def middle(name: str, frame: Frame) -> Frame:
        return _moved(frame, flip.point(things[name]["pos"]))

    boxes = tuple(middle(f"b{number}", frame) for number, frame in enumerate(sketch.boxes))
    outlines = {box.id: _Outline(box, frame) for box, frame in zip(sketch.picture.boxes, boxes, strict=True)}
    starts = []
    for number, box in enumerate(sketch.picture.boxes):
        if box.is_start:
            part, tip = _part(lines[f"s{number}"], flip)
            curve = _touching([part], tip, None, outlines[box.id])
            starts.append((middle(f"s{number}", Frame(0, 0, _DOT, _DOT)), curve))
    arrows = []
    for number, (arrow, label) in enumerate(zip(sketch.picture.arrows, sketch.labels, strict=True)):
        names = [f"a{number}", f"z{number}"] if label else [f"a{number}"]
        is_backward = number in sketch.backwards
        parts = [_part(lines[name], flip, is_backward=is_backward) for name in names]
        ends = outlines[arrow.source], outlines[arrow.destination]
        curve = _touching([points for points, _ in parts], parts[-1][1], *ends)
        arrows.append(replace(curve, label=middle(f"l{number}", label)) if label else curve)
    groups = (
        _group_frame(things[f"cluster_{number}"], heading, flip)
        for number, heading in enumerate(sketch.headings)
    )
    return Layout(right - left, high - low, boxes, tuple(arrows), tuple(groups), tuple(starts))


@dataclass(frozen=True, slots=True)
class _Flip:
    """From Graphviz's points, whose y grows upwards, to ours."""

    left: float
    high: float

    def point(self, written: str) -> Point:
        x, y = _numbers(written)
        return self.of(x, y)

    def of(self, x: float, y: float) -> Point:
        return x - self.left, self.high - y


def _part(line: dict[str, Any], flip: _Flip, *, is_backward: bool = False) -> tuple[list[Point], Point]:
    """The points of a line, and its tip; Graphviz has those of one that was told to it the other way round so too."""
    written = line["pos"].split()
    tip = flip.point(written.pop(0)[2:]) if written[0].startswith(("e,", "s,")) else None
    points = [flip.point(each) for each in written]
    if is_backward:
        points.reverse()
    return points, tip or points[-1]


class _Outline:
    """Where a box really ends: to Graphviz all but joins are rectangles, with room around them."""

    def __init__(self, box: Box, frame: Frame) -> None:
        self.frame = frame
        self.is_join = is_meeting(box)
        self.is_pointed = box.kind == "router"
        self.is_round = is_round(box)

    def holds(self, point: Point) -> bool:
        across, down = self.frame.width / 2, self.frame.height / 2
        x, y = abs(point[0] - self.frame.x), abs(point[1] - self.frame.y)
        if self.is_join:
            return True
        if self.is_pointed:
            across -= SLANT * y / down
        if self.is_round:
            return hypot(max(x - (across - down), 0.0), y) <= down
        return x <= across and y <= down

    def gap(self, point: Point, towards: Point) -> Point:
        """How far a line that ends here, with this direction, has to go on to come to the box."""
        inwards = _minus((self.frame.x, self.frame.y), point)  # for one that would only pass by
        for x, y in (towards, inwards):
            length = hypot(x, y) or 1.0
            for far in range(int(self.frame.height)):
                step = (x / length * far, y / length * far)
                if self.holds(_plus(point, step)):
                    return step
        return 0.0, 0.0


def _touching(
    parts: Sequence[list[Point]], tip: Point, source: _Outline | None, destination: _Outline
) -> Curve:
    """The arrow, a little longer where it would end before the box."""
    first, last = parts[0], parts[-1]
    if source:
        back = source.gap(first[0], _minus(first[0], first[1]))
        first[:2] = [_plus(point, back) for point in first[:2]]
    on = destination.gap(tip, _minus(tip, last[-1]))
    last[-2:] = [_plus(point, on) for point in last[-2:]]
    return Curve(tuple(map(tuple, parts)), _plus(tip, on))


def _plus(one: Point, other: Point) -> Point:
    return one[0] + other[0], one[1] + other[1]


def _minus(one: Point, other: Point) -> Point:
    return one[0] - other[0], one[1] - other[1]


def _group_frame(cluster: dict[str, Any], heading: Frame, flip: _Flip) -> Frame:
    left, low, right, high = _numbers(cluster["bb"])
    x, y = flip.of((left + right) / 2, (low + high) / 2)
    return Frame(x, y, right - left, high - low, heading.text)


def _box_frame(box: Box) -> Frame:
    if is_meeting(box):
        return Frame(0, 0, _JOIN, _JOIN, "+")
    text = shortened(shown(box.label), _WIDEST, size=TEXT)
    notes = tuple([shortened(shown(line), _WIDEST, size=SMALL) for line in box.note.split("\n") if line])
    sides = 2 * SLANT if box.kind in {"router", "runnable"} else 0.0
    borders = 8.0 if box.is_end else 0.0
    badge = 2 * _BADGE if box.outcome else 0.0
    lines = [text_width(line, size=SMALL) for line in notes]
    widest = max([text_width(text, size=TEXT) + badge, *lines])
    width = max(widest + 26 + sides + borders, 64.0)
    return Frame(0, 0, width, _HEIGHT + borders + NOTE * len(notes), text, notes)


def _label_frame(label: str) -> Frame:
    text = shortened(shown(label), _WIDEST, size=SMALL)
    return Frame(0, 0, text_width(text, size=SMALL) + 8, SMALL + 7, text)


def _heading_frame(group: Group) -> Frame:
    text = shortened(shown(group.label), _WIDEST_HEADING, size=SMALL)
    badge = 2 * _BADGE if group.outcome else 0.0
    return Frame(0, 0, text_width(text, size=SMALL) + 8 + badge, SMALL + 7, text)


def _moved(frame: Frame, to: Point) -> Frame:
    return replace(frame, x=to[0], y=to[1])


def _numbers(written: str) -> Sequence[float]:
    return [float(number) for number in written.split(",")]


def _size(width: float, height: float) -> str:
    return f"width={width / _INCH:.4f} height={height / _INCH:.4f}"


def _table(frame: Frame) -> str:
    """A label of just this size with nothing in it."""
    size = f'WIDTH="{frame.width:.0f}" HEIGHT="{frame.height:.0f}"'
    return f'<<TABLE BORDER="0" FIXEDSIZE="TRUE" {size}><TR><TD></TD></TR></TABLE>>'
