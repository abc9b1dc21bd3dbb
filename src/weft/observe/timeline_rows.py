"""What is shown of a timeline, and in which words: the same for every way to draw it.

Up to some dozens of calls have a row each, with a name beside it. Up to some hundreds share lanes, where a call takes
the first that is free and what asks for others is a band around them. More are shown by step, as how many were at
work at a time; one by one only what decided, what failed and what took longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import accumulate, pairwise
from typing import Literal, TypeAlias

from weft.observe.lettering import shown
from weft.observe.timeline import (
    AT_WORK,
    BODY,
    Link,
    Piece,
    PieceKind,
    Span,
    SpanOutcome,
    Timeline,
    most_at_once,
)

Kind: TypeAlias = Literal["rows", "lanes", "steps"]

MOST_ROWS = 40
MOST_IN_LANES = 1_000
MOST_LANES = 64
MOST_STEPS = 12

_CUT = 0.03  # of the width, for a pause
_UNITS = ((1, (1, 2, 5, 10, 15, 30)), (60, (1, 2, 5, 10, 15, 30)), (3600, (1, 2, 3, 6, 12, 24)))
_A_MINUTE = 59.95  # what is shorter is written in seconds, with one digit
_ROUND = tuple(unit * step for unit, steps in _UNITS for step in steps)  # seconds


def kind_of(timeline: Timeline, most_rows: int = MOST_ROWS) -> Kind:
    """How its calls are shown."""
    count = len(timeline.spans)
    if count <= most_rows:
        return "rows"
    if count <= MOST_IN_LANES and lanes_of(timeline).lanes <= MOST_LANES:
        return "lanes"
    return "steps"


def lanes_of(timeline: Timeline) -> Arrangement:
    """Calls in shared lanes; where too many wait at a time, each is there only from its start."""
    found = arranged(timeline, shared=True)
    return found if found.lanes <= MOST_LANES else arranged(timeline, shared=True, waits=False)


# Where a time is


class Scale:
    """From seconds to a part of the width, from 0 to 1; a pause of the run takes little of it."""

    def __init__(self, timeline: Timeline) -> None:
        self.seconds = timeline.seconds
        self.pauses = timeline.pauses
        self._cut = min(_CUT, 0.3 / len(self.pauses)) if self.pauses else 0.0
        active = timeline.seconds - timeline.paused
        room = 1.0 - self._cut * len(self.pauses)
        self._rate = room / active if active > 0 else 0.0
        self._knots = [0.0, *(edge for pause in self.pauses for edge in pause), timeline.seconds]
        self._places = [0.0]
        for number, (start, end) in enumerate(pairwise(self._knots)):
            is_pause = number % 2 == 1
            self._places.append(self._places[-1] + (self._cut if is_pause else (end - start) * self._rate))

    def at(self, seconds: float) -> float:
        """Where it is."""
        if not self.pauses:
            place = seconds * self._rate
            return place if 0.0 <= place <= 1.0 else float(place > 0.0)
        for number, (start, end) in enumerate(pairwise(self._knots)):
            if seconds <= end:
                left, right = self._places[number : number + 2]
                part = (max(seconds, start) - start) / (end - start) if end > start else 0.0
                return left + part * (right - left)
        return 1.0

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Some round times and where they are: at most so many, but more where pauses are cut out."""
        if not self._rate:
            return [(0.0, "0")]
        step = _round_step(1 / self._rate / max(most, 1))
        found: list[tuple[float, str]] = []
        for place, (start, end) in list(zip(self._places, pairwise(self._knots), strict=False))[::2]:
            if start:  # where it went on after a pause
                found.append((place, clock_text(start)))
            number = -(-(start + step / 2 if start else 0.0) // step)
            while number * step <= end + 1e-9:
                found.append((self.at(number * step), tick_text(number * step, step)))
                number += 1
        return found


def _round_step(least: float) -> float:
    """The smallest round time that is not below this."""
    least *= 1 - 1e-9  # nor is one above it because of how numbers are rounded
    if least > _ROUND[-1]:
        return -(-least // 86400) * 86400.0
    if least > 1:
        return next(float(step) for step in _ROUND if step >= least)
    power = 1e-6
    while True:
        for digit in (1, 2, 5):
            if digit * power >= least:
                return digit * power
        power *= 10


def tick_text(seconds: float, step: float) -> str:
    """A time on the axis."""
    if seconds == 0:
        return "0"
    if step >= 1 and seconds >= 60:
        return clock_text(seconds)
    if step >= 1:
        return f"{seconds:.0f} s"
    if seconds >= 1 or step >= 0.1:
        digits = max(0, len(f"{step:.6f}".rstrip("0").partition(".")[2]))
        return f"{seconds:.{digits}f} s"
    digits = max(0, len(f"{step * 1000:.3f}".rstrip("0").partition(".")[2]))
    return f"{seconds * 1000:.{digits}f} ms"


def clock_text(seconds: float) -> str:
    """As "3:05", "2:10:00" or "3 d 2:10:00"; what is shorter, as by :func:`took`."""
    if seconds < _A_MINUTE:
        return took(seconds)
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days:,} d {hours}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def took(seconds: float) -> str:
    """How long something took, with three digits."""
    if seconds >= _A_MINUTE:
        return clock_text(seconds)
    if seconds >= 9.995:
        return f"{seconds:.1f} s"
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    if seconds >= 0.00995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds * 1000:.1f} ms" if seconds >= 0.00005 else "0 ms"


def counted(count: int, what: str = "call") -> str:
    """As "1 call" or "10,000 calls"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


# Rows and lanes


@dataclass(frozen=True, slots=True)
class Row:
    """A call in its place.

    Attributes:
        span: The call.
        lane: Its own, from 0 at the top.
        height: In lanes, with those of the calls it asked for.
        depth: How many calls are around it.
    """

    span: Span
    lane: int
    height: int
    depth: int


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Calls in their places, those around others before them."""

    rows: tuple[Row, ...]
    lanes: int
    waits: bool = True


def arranged(timeline: Timeline, *, shared: bool, waits: bool = True) -> Arrangement:
    """Put every call in the first lane that is free, or with ``shared=False`` in one of its own.

    With ``waits=False`` calls are there from when their waiting for limits is over.
    """
    children: dict[str, list[Span]] = {}
    for span in timeline.spans:
        children.setdefault(span.parent, []).append(span)
    order = _outer_first(children)
    heights: dict[str, int] = {}
    offsets: dict[str, int] = {}

    def stack(siblings: Sequence[Span]) -> int:
        if not waits:
            siblings = sorted(siblings, key=waited_until)
        return _stacked(siblings, heights, offsets, shared=shared, waits=waits)

    for span, _ in reversed(order):
        heights[span.id] = 1 + stack(children.get(span.id, ()))
    lanes = stack(children.get(BODY, ()))
    tops = {BODY: -1}
    rows = []
    for span, depth in order:
        tops[span.id] = tops[span.parent] + 1 + offsets[span.id]
        rows.append(Row(span, tops[span.id], heights[span.id], depth))
    return Arrangement(tuple(rows), lanes, waits)


def waited_until(span: Span) -> float:
    """When its first waiting for limits was over."""
    return span.pieces[0].end if span.pieces and span.pieces[0].kind == "waiting" else span.asked


def _outer_first(children: Mapping[str, Sequence[Span]]) -> list[tuple[Span, int]]:
    """Every call with its depth, before those that it asked for."""
    order: list[tuple[Span, int]] = []
    pending = [(span, 0) for span in reversed(children.get(BODY, ()))]
    while pending:
        span, depth = pending.pop()
        order.append((span, depth))
        pending += [(child, depth + 1) for child in reversed(children.get(span.id, ()))]
    return order


def _stacked(
    spans: Iterable[Span],
    heights: Mapping[str, int],
    offsets: dict[str, int],
    *,
    shared: bool,
    waits: bool,
) -> int:
    """Place siblings; how many lanes that takes."""
    free_at: list[float] = []
    for span in spans:
        height = heights[span.id]
        top = (
            _first_free(free_at, span.asked if waits else waited_until(span), height)
            if shared
            else len(free_at)
        )
        free_at += [0.0] * (top + height - len(free_at))
        free_at[top : top + height] = [max(span.ended, span.asked)] * height
        offsets[span.id] = top
    return len(free_at)


def _first_free(free_at: Sequence[float], at: float, height: int) -> int:
    top = 0
    for lane, free in enumerate(free_at):
        if free > at:
            top = lane + 1
        elif lane - top + 1 == height:
            break
    return top


# By step


@dataclass(frozen=True, slots=True)
class StepLane:
    """The calls of a step, or of all that have no lane of their own.

    Attributes:
        name: Of the step.
        calls: How many.
        running: How many were at work, on average over each bin of the width.
        waiting: How many waited for limits or between attempts, in the same way.
        failures: In which bins calls failed.
        seconds: That its calls were at work, in all.
        failed: How many failed.
        retried: How many had more than one attempt.
        most_running: How many were at work at one moment, at most.
        most_waiting: How many waited at one moment, at most.
        is_band: Whether all of them asked for others.
    """

    name: str
    calls: int
    running: tuple[float, ...]
    waiting: tuple[float, ...]
    failures: tuple[int, ...]
    seconds: float
    failed: int
    retried: int
    most_running: int
    most_waiting: int
    is_band: bool = False


def step_lanes(timeline: Timeline, bins: int, *, most: int = MOST_STEPS) -> list[StepLane]:
    """A lane for each step, in the order in which they were first asked for; the lesser ones together in the last."""
    by_step: dict[str, list[Span]] = {}
    for span in timeline.spans:
        by_step.setdefault(span.step, []).append(span)
    kept = list(by_step)
    if len(by_step) > most:
        dear = set(nlargest(most - 1, by_step, key=lambda step: sum(span.seconds for span in by_step[step])))
        kept = [step for step in by_step if step in dear]
    scale = Scale(timeline)
    lanes = [_lane(timeline, shown(step), by_step.pop(step), scale, bins) for step in kept]
    if by_step:
        rest = [span for spans in by_step.values() for span in spans]
        lanes.append(_lane(timeline, counted(len(by_step), "other step"), rest, scale, bins))
    return lanes


def lane_words(lane: StepLane) -> list[str]:
    """How many calls there were and how they fared, in a few words each."""
    words = [counted(lane.calls)]
    words += [f"{lane.failed:,} failed"] if lane.failed else []
    return words + ([f"{lane.retried:,} retried"] if lane.retried else [])


def waiting_lane(timeline: Timeline, bins: int) -> StepLane:
    """All that waited for limits, and nothing else."""
    waited = [span for span in timeline.spans if span.limits]
    whiles = [(p.start, p.end) for span in waited for p in span.pieces if p.kind == "waiting"]
    levels = _levels(whiles, Scale(timeline), bins)
    return StepLane("", len(waited), (0.0,) * bins, levels, (), 0.0, 0, 0, 0, most_at_once(whiles))


def _lane(timeline: Timeline, name: str, spans: Sequence[Span], scale: Scale, bins: int) -> StepLane:
    worked: list[tuple[float, float]] = []
    waited: list[tuple[float, float]] = []
    for span in spans:
        for kind, start, end in span.pieces:
            (worked if kind in AT_WORK else waited).append((start, end))
    failed = [span for span in spans if span.has_failed]
    return StepLane(
        name,
        len(spans),
        _levels(worked, scale, bins),
        _levels(waited, scale, bins),
        tuple(sorted({min(int(scale.at(span.ended) * bins), bins - 1) for span in failed})),
        sum(end - start for start, end in worked),
        len(failed),
        sum(span.attempts > 1 for span in spans),
        most_at_once(worked),
        most_at_once(waited),
        all(span.id in timeline.parents for span in spans),
    )


def _levels(whiles: Iterable[tuple[float, float]], scale: Scale, bins: int) -> tuple[float, ...]:
    """How many there were, on average over equal parts of the width; as cheap for long whiles as for short ones."""
    parts = [0.0] * (bins + 1)  # the last is for what is at the very end
    changes = [0] * (bins + 2)
    at = scale.at
    for start, end in whiles:
        left, right = at(start) * bins, at(end) * bins
        first, last = int(left), int(right)
        if first == last:
            parts[first] += right - left
            continue
        parts[first] += first + 1 - left
        parts[last] += right - last
        changes[first + 1] += 1
        changes[last] -= 1
    return tuple(part + whole for part, whole in zip(parts[:bins], accumulate(changes), strict=False))


# What is worth showing one by one


@dataclass(frozen=True, slots=True)
class Shown:
    """Some of many.

    Attributes:
        links: Of the critical path, in order.
        links_left: How many of it are left out.
        seconds_left: How long these are.
        failures: The most frequent ways to fail: an example, and how many there are.
        failures_left: How many failed calls are in none of these.
        longest: The calls that took longest, without waiting for limits, the longest first.
    """

    links: tuple[Link, ...]
    links_left: int
    seconds_left: float
    failures: tuple[tuple[Span, int], ...]
    failures_left: int
    longest: tuple[Span, ...]


def chosen(timeline: Timeline, *, links: int = 20, failures: int = 10, longest: int = 10) -> Shown:
    """What is worth showing, at most so many of each."""
    path = timeline.path
    kept = path
    if len(path) > links:
        dear = nlargest(links, range(len(path)), key=lambda place: path[place].seconds)
        kept = tuple(path[place] for place in sorted(dear))
    failed = [span for span in timeline.spans if span.has_failed and span.id not in timeline.parents]
    failed = failed or [span for span in timeline.spans if span.has_failed]
    ways = Counter((span.step, span.error) for span in failed)
    examples: dict[tuple[str, str | None], Span] = {}
    for span in failed:
        examples.setdefault((span.step, span.error), span)
    frequent = ways.most_common(failures)
    leaves = [span for span in timeline.spans if span.id not in timeline.parents and not span.reused]
    return Shown(
        kept,
        len(path) - len(kept),
        sum(link.seconds for link in path) - sum(link.seconds for link in kept),
        tuple((examples[way], count) for way, count in frequent),
        len(failed) - sum(count for _, count in frequent),
        tuple(nlargest(longest, leaves, key=lambda span: span.seconds - span.waited)),
    )


# Words

OUTCOMES = {
    "ok": "ok",
    "failed": "failed",
    "timed_out": "timed out",
    "cancelled": "cancelled",
    "skipped": "skipped",
    "not_started": "not started",
    "open": "not ended",
}

LEGEND: Sequence[tuple[str, str]] = (
    ("running", "runs"),
    ("waiting", "waits to begin"),
    ("backoff", "waits to try again"),
    ("earlier", "earlier attempts"),
    ("asking", "waits for an answer"),
    ("bad", "failed"),
    ("cancelled", "cancelled"),
    ("reused", "reused, nothing ran"),
    ("critical", "critical path"),
)


def legend_of(timeline: Timeline) -> list[tuple[str, str]]:
    """The parts of the legend that something in the picture needs."""
    kinds = {(piece.kind, span.outcome) for span in timeline.spans for piece in span.pieces}
    seen: set[str] = {_look(kind, outcome) for kind, outcome in kinds}
    if timeline.path:
        seen.add("critical")
    if any(span.reused for span in timeline.spans):
        seen.add("reused")
    return [(look, words) for look, words in LEGEND if look in seen]


def look_of(span: Span, piece: Piece) -> str:
    """How a piece is drawn."""
    return _look(piece.kind, span.outcome if piece is span.pieces[-1] else "ok")


def _look(kind: PieceKind, outcome: SpanOutcome) -> str:
    """How the last piece of a call is drawn that ended so."""
    if kind == "failed":
        return "bad"
    if kind != "running":
        return kind
    return {"failed": "bad", "timed_out": "bad", "cancelled": "cancelled", "skipped": "cancelled"}.get(
        outcome, "running"
    )


def name_of(timeline: Timeline, link: Link) -> str:
    """What a part of the critical path is called."""
    if link.id != BODY:
        return shown(timeline.by_id[link.id].step)
    is_pause = any(link.start <= start and end <= link.end for start, end in timeline.pauses)
    return "stopped" if is_pause else "between calls"


def facts(timeline: Timeline) -> list[str]:
    """The run in a few words each, without its status."""
    return list(_facts(timeline))


def _facts(timeline: Timeline) -> Iterator[str]:
    outcomes = timeline.outcomes
    yield took(timeline.seconds)
    yield counted(len(timeline.spans))
    for outcome in ("failed", "timed_out", "cancelled", "open"):
        if outcomes.get(outcome):
            yield f"{outcomes[outcome]:,} {OUTCOMES[outcome]}"
    if retried := sum(span.attempts > 1 for span in timeline.spans):
        yield f"{retried:,} retried"
    if reused := sum(bool(span.reused) for span in timeline.spans):
        yield f"{reused:,} reused"
    if timeline.spans:
        yield f"at most {timeline.widest:,} at once"
        yield f"{took(timeline.work)} of work"
    if timeline.pauses:
        yield f"stopped for {clock_text(timeline.paused)}"


def notes(timeline: Timeline) -> Iterator[str]:
    """What a reader has to know."""
    if timeline.is_recorded and timeline.status != "finished":
        yield "Only calls that ended are recorded; those that were open are not shown."
    if timeline.lost:
        yield f"{counted(timeline.lost, 'event')} were not kept; what they told of is missing."
    if not timeline.spans:
        yield "Nothing is known of any call."


def story(span: Span) -> str:
    """A call in a few words: what it waited for, how long it ran, how it ended."""
    return ", ".join(_parts(span))


def _parts(span: Span) -> Iterator[str]:
    if span.reused:
        yield f"{span.reused}, nothing ran"
    if span.waited >= 0.00005:
        limits = f" for {', '.join(map(shown, span.limits))}" if span.limits else ""
        yield f"waited {took(span.waited)}{limits}"
    yield from _whiles(span)
    if span.attempts > 1:
        yield f"{span.attempts} attempts"
    if span.outcome != "ok":
        yield OUTCOMES[span.outcome]


def _whiles(span: Span) -> Iterator[str]:
    words: Mapping[PieceKind, str] = {
        "running": "ran",
        "failed": "ran in vain for",
        "backoff": "waited between attempts for",
        "earlier": "earlier attempts took",
        "asking": "asked for",
    }
    for kind, word in words.items():
        spent = span.spent(kind)
        if spent > 0:
            yield f"{word} {took(spent)}"


def details(span: Span) -> str:
    """All about a call, in some lines."""
    lines = [
        f"{shown(span.step)} ({shown(span.id)})",
        f"from {took(span.asked)} to {took(span.ended)}: {story(span)}",
    ]
    if span.error:
        lines.append(shown(span.error))
    return "\n".join(lines)


def path_words(timeline: Timeline) -> list[tuple[str, int, float]]:
    """The critical path by steps: name, how many calls, how long; the longest first."""
    seconds: Counter[str] = Counter()
    ids: dict[str, set[str]] = {}
    for link in timeline.path:
        name = name_of(timeline, link)
        seconds[name] += link.seconds  # type: ignore[assignment]  # a Counter adds floats as well
        ids.setdefault(name, set()).add(link.id)
    return [(name, len(ids[name]), spent) for name, spent in seconds.most_common()]


__all__ = [
    "LEGEND",
    "MOST_ROWS",
    "MOST_STEPS",
    "Arrangement",
    "Kind",
    "Row",
    "Scale",
    "Shown",
    "StepLane",
    "arranged",
    "chosen",
    "counted",
    "details",
    "facts",
    "kind_of",
    "lane_words",
    "lanes_of",
    "legend_of",
    "look_of",
    "name_of",
    "notes",
    "path_words",
    "step_lanes",
    "story",
    "took",
    "waited_until",
    "waiting_lane",
]
