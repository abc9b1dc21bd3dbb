"""A timeline as sections of rows, bars and lines; whoever draws only has to put them on paper.

Where something is on the axis of time is a part of the width, from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from weft.observe.lettering import shown
from weft.observe.timeline import BODY, LimitCost, Link, Span, Timeline
from weft.observe.timeline_rows import (
    MOST_ROWS,
    MOST_STEPS,
    OUTCOMES,
    Kind,
    Row,
    Scale,
    Shown,
    StepLane,
    arranged,
    chosen,
    clock_text,
    counted,
    details,
    facts,
    kind_of,
    lanes_of,
    legend_of,
    look_of,
    name_of,
    notes,
    path_words,
    step_lanes,
    took,
    waiting_lane,
)

_MOST_PATH_WORDS = 4
_INKED = frozenset({"running", "bad", "cancelled"})  # bars that can be written on


class Bar(NamedTuple):
    """A piece of a call: how it is drawn, and from where to where."""

    look: str
    left: float
    right: float


@dataclass(frozen=True, slots=True)
class Item:
    """A call to draw.

    Attributes:
        label: Its name.
        note: How long it took.
        tip: All about it, for who points at it.
        left: Where it begins.
        right: Where it ends.
        bars: What it did, in order.
        critical: From where to where the end of the run depended on it.
        ending: How it ended, if not well.
        depth: How many calls are around it.
        lane: Which it is in.
        height: How many it takes.
        is_band: Whether others are in it.
    """

    label: str
    note: str
    tip: str
    left: float
    right: float
    bars: tuple[Bar, ...]
    critical: tuple[tuple[float, float], ...] = ()
    ending: str = ""
    depth: int = 0
    lane: int = 0
    height: int = 1
    is_band: bool = False

    @property
    def lettered(self) -> Bar:
        """Where there is most room for its name."""
        inked = [bar for bar in self.bars if bar.look in _INKED]
        if self.is_band or not inked:
            return Bar("", self.left, self.right)
        return max(inked, key=lambda bar: bar.right - bar.left)


@dataclass(frozen=True, slots=True)
class Rows:
    """Calls with their names, one below the other."""

    heading: str
    items: tuple[Item, ...]
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Lanes:
    """Calls that share lanes."""

    items: tuple[Item, ...]
    lanes: int
    heading: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Areas:
    """How many calls of each step were there at a time."""

    lanes: tuple[StepLane, ...]
    heading: str = ""
    remark: str = ""
    is_wide: bool = False  # it has no names


class Line(NamedTuple):
    """Something to read; with a part from 0 to 1 to be shown as a bar, if it has one."""

    name: str
    words: str
    part: float | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """What is told in words."""

    heading: str
    lines: tuple[Line, ...]
    remark: str = ""


Section: TypeAlias = Rows | Lanes | Areas | Lines


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that is shown of a timeline.

    Attributes:
        title: The workflow.
        status: Of the run.
        facts: About the run, in a few words each.
        notes: What a reader has to know, as sentences.
        kind: How the calls are shown.
        scale: Where a time is.
        legend: (look, words) for what is in it.
        sections: What to draw, from the top.
    """

    title: str
    status: str
    facts: tuple[str, ...]
    notes: tuple[str, ...]
    kind: Kind
    scale: Scale
    legend: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Most:
    """How much is shown where it is not all.

    Attributes:
        rows: Calls with a row each; where there are more, only some have one.
        bins: Parts of the width, for how many there were at a time.
        steps: Steps with a lane each.
        links: Parts of the critical path.
        failures: Ways to fail.
        longest: Calls that took longest.
        limits: Limits.
    """

    rows: int = MOST_ROWS
    bins: int = 240
    steps: int = MOST_STEPS
    links: int = 16
    failures: int = 8
    longest: int = 10
    limits: int = 8


def sheet_of(timeline: Timeline, most: Most, *, kind: Kind | None = None) -> Sheet:
    """Choose and arrange what is to be shown; as what, is found out unless told."""
    scale = Scale(timeline)
    kind = kind_of(timeline, most.rows) if kind is None else kind
    sections = _Maker(timeline, scale, most).sections(kind)
    return Sheet(
        shown(timeline.workflow),
        timeline.status,
        tuple(facts(timeline)),
        tuple(notes(timeline)),
        kind,
        scale,
        tuple(legend_of(timeline)),
        tuple(section for section in sections if not _is_empty(section)),
    )


class _Maker:
    def __init__(self, timeline: Timeline, scale: Scale, most: Most) -> None:
        self._timeline = timeline
        self._at = scale.at
        self._most = most
        self._links: dict[str, list[Link]] = {}
        for link in timeline.path:
            self._links.setdefault(link.id, []).append(link)

    def sections(self, kind: Kind) -> Iterator[Section]:
        most = self._most
        some = chosen(self._timeline, links=most.links, failures=most.failures, longest=most.longest)
        if kind == "rows":
            yield self._rows()
        else:
            yield from self._lanes() if kind == "lanes" else [self._areas()]
            yield self._path(some)
            yield self._longest(some.longest)
        yield self._failures(some)
        yield self._limits()

    def _rows(self) -> Rows:
        rows = arranged(self._timeline, shared=False).rows
        words = self._path_in_words()
        return Rows("", tuple(map(self._placed, rows)), f"Critical path: {words}" if words else "")

    def _lanes(self) -> Iterator[Section]:
        found = lanes_of(self._timeline)
        if found.waits:
            items = [self._placed(row) for row in found.rows]
            yield Lanes(tuple(items), found.lanes)
            return
        yield Lanes(tuple(_without_wait(self._placed(row)) for row in found.rows), found.lanes)
        lane = waiting_lane(self._timeline, self._most.bins)
        words = f"{counted(lane.calls)} waited for limits, at most {lane.most_waiting:,} at a time"
        yield Areas((lane,), remark=words, is_wide=True)

    def _placed(self, row: Row) -> Item:
        return replace(self.item(row.span), depth=row.depth, lane=row.lane, height=row.height)

    def _areas(self) -> Areas:
        lanes = tuple(step_lanes(self._timeline, self._most.bins, most=self._most.steps))
        return Areas(lanes, "How many ran at a time", "and, in grey below, how many waited")

    def _path(self, some: Shown) -> Rows:
        items = tuple(self._link_item(link) for link in some.links)
        words = self._path_in_words()
        if some.links_left:
            words += f". These are the {len(items)} longest of {len(items) + some.links_left:,} parts"
        return Rows("Critical path", items, words)

    def _path_in_words(self) -> str:
        words = path_words(self._timeline)
        found = [
            f"{name} {took(seconds)}" + (f" ({counted(count)})" if count > 1 else "")
            for name, count, seconds in words[:_MOST_PATH_WORDS]
        ]
        rest = sum(seconds for _, _, seconds in words[_MOST_PATH_WORDS:])
        return " · ".join([*found, *([f"others {took(rest)}"] if rest else [])])

    def _longest(self, spans: Iterable[Span]) -> Rows:
        items = (replace(self.item(span), note=took(span.seconds - span.waited)) for span in spans)
        return Rows("Longest", tuple(map(_without_wait, items)), "without their waiting for limits")

    def _failures(self, some: Shown) -> Lines:
        lines = [
            Line(
                shown(span.step) + (f" \N{MULTIPLICATION SIGN}{count:,}" if count > 1 else ""),
                f"{shown(span.error) if span.error else OUTCOMES[span.outcome]}, at {took(span.ended)}"
                + (" for the first time" if count > 1 else ""),
            )
            for span, count in some.failures
        ]
        remark = f"and {counted(some.failures_left)} more" if some.failures_left else ""
        return Lines("Failures", tuple(lines), remark)

    def _limits(self) -> Lines:
        costs = self._timeline.limits
        dearest = max((cost.seconds for cost in costs.values()), default=0.0)
        lines = [
            Line(shown(cost.name), _cost_words(cost), cost.seconds / dearest if dearest else 0.0)
            for cost in list(costs.values())[: self._most.limits]
        ]
        left = len(costs) - len(lines)
        return Lines("Limits", tuple(lines), f"and {counted(left, 'limit')} more" if left > 0 else "")

    def item(self, span: Span) -> Item:
        at = self._at
        bars = [Bar(look_of(span, piece), at(piece.start), at(piece.end)) for piece in span.pieces]
        if span.reused:
            bars.append(Bar("reused", at(span.asked), at(span.ended)))
        elif not bars:
            bars.append(Bar("bad" if span.has_failed else "running", at(span.asked), at(span.ended)))
        return Item(
            shown(span.step),
            took(span.seconds),
            details(span),
            at(span.asked),
            at(span.ended),
            tuple(bars),
            tuple((at(link.start), at(link.end)) for link in self._links.get(span.id, ())),
            ending="" if span.outcome == "ok" else OUTCOMES[span.outcome],
            is_band=span.id in self._timeline.parents,
        )

    def _link_item(self, link: Link) -> Item:
        at = self._at
        if link.id != BODY:
            item = self.item(self._timeline.by_id[link.id])
            left, right = at(link.start), at(link.end)
            bars = tuple(
                Bar(bar.look, max(bar.left, left), min(bar.right, right))
                for bar in item.bars
                if bar.right > left and bar.left < right
            )
            note = took(link.seconds)
            return replace(item, note=note, left=left, right=right, bars=bars, critical=((left, right),))
        name = name_of(self._timeline, link)
        tip = f"{name}\nfrom {took(link.start)} to {took(link.end)}: the workflow's own code, or nothing"
        ends = (at(link.start), at(link.end))
        return Item(name, clock_text(link.seconds), tip, *ends, (), (ends,))


def _without_wait(item: Item) -> Item:
    """From its start on."""
    if len(item.bars) < 2 or item.bars[0].look != "waiting":
        return item
    left = item.bars[0].right
    critical = tuple((max(start, left), end) for start, end in item.critical if end > left)
    return replace(item, left=left, bars=item.bars[1:], critical=critical)


def _cost_words(cost: LimitCost) -> str:
    words = f"{counted(cost.calls)} waited {took(cost.seconds)} in all, one for {took(cost.longest)}"
    return f"{words}; that held the run up for about {took(cost.critical)}" if cost.critical else words


def _is_empty(section: Section) -> bool:
    match section:
        case Rows(items=items) | Lanes(items=items):
            return not items
        case Areas(lanes=lanes):
            return not lanes
        case Lines(lines=lines):
            return not lines


__all__ = ["Areas", "Bar", "Item", "Lanes", "Line", "Lines", "Rows", "Section", "Sheet", "sheet_of"]
