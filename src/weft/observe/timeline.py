"""What happened when in a run, and why it took so long, before anybody draws it.

    events of a live run ──┐
                           ├─► Timeline (spans, critical path, what limits cost) ─► timeline_svg.py   SVG
    recorded calls ────────┘                                                     ├─► timeline_html.py  HTML
                                                                                 └─► timeline_text.py  terminal

All times of a timeline are seconds since its run began.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from weft.core.outcome import Cancelled, Failed, NotStarted, Ok, Outcome, Skipped, TimedOut
from weft.engine import events
from weft.engine.where import in_a_line
from weft.errors import InputError
from weft.observe.picture import Theme

if TYPE_CHECKING:
    from weft.observe.recorded import RecordedCall

PieceKind: TypeAlias = Literal["waiting", "running", "failed", "backoff", "earlier", "asking"]
"""What a call did for a while.

``waiting`` for its limits; ``running``; ``failed``, an attempt after which there was another; ``backoff``, between
attempts; ``earlier``, attempts of which only the end of the last is recorded; ``asking``, for an answer.
"""

SpanOutcome: TypeAlias = Literal["ok", "failed", "timed_out", "cancelled", "skipped", "not_started", "open"]
"""How a call ended; ``open`` if it had not when the timeline was made."""

BODY = ""  # the id that stands for the run's own body

AT_WORK = frozenset({"running", "failed"})
_LATE = 0.05  # a limit is free this long before an outcome, which is written first, is seen
_OWN_TIME = 0.005  # of the run's time: less than that of a body's own, between its calls, nobody waits for
_PAUSE = 60.0  # a gap of a recorded run is one between two of its lives if it is this long
_ERROR_LENGTH = 300
_LOOKED_AT = 8  # calls that ended about when a limit was free
_ANY = ""  # for calls of which no limit is known


class Piece(NamedTuple):
    """A while in the life of a call, in seconds since the run began."""

    kind: PieceKind
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Span:
    """A call, in time: seconds since the run began.

    Attributes:
        id: Its identity, as in :class:`weft.CallInfo`.
        step: The name of its step.
        parent: The id of the call that asked for it; "" for the run's own body, or if nothing is known of that call.
        asked: When the body asked for it.
        started: When its first attempt began; None if none did, or that is not recorded.
        ended: When its outcome was there; if it has none, when the timeline was made.
        outcome: How it ended.
        pieces: What it did in between, in order and without overlaps.
        attempts: How many there were.
        limits: Those it had to wait for.
        reused: "recorded" or "cached" if its outcome was taken from there and nothing ran; else "".
        error: How it failed, as ``"ValueError: what was wrong"``.
    """

    id: str
    step: str
    parent: str
    asked: float
    started: float | None
    ended: float
    outcome: SpanOutcome
    pieces: tuple[Piece, ...] = ()
    attempts: int = 1
    limits: tuple[str, ...] = ()
    reused: str = ""
    error: str | None = None

    @property
    def seconds(self) -> float:
        """From asking to the outcome."""
        return self.ended - self.asked

    @property
    def waited(self) -> float:
        """How long it waited for its limits."""
        return self.spent("waiting")

    @property
    def worked(self) -> float:
        """How long its attempts took, as far as they are recorded."""
        return self.spent("running") + self.spent("failed")

    @property
    def retries(self) -> tuple[float, ...]:
        """When attempts failed after which there was another, as far as that is recorded."""
        return tuple(piece.end for piece in self.pieces if piece.kind == "failed")

    @property
    def has_failed(self) -> bool:
        """Whether it ended with an error of its own."""
        return self.outcome in {"failed", "timed_out"}

    def spent(self, kind: PieceKind) -> float:
        """How long it did this in all."""
        return sum(piece.end - piece.start for piece in self.pieces if piece.kind == kind)


class Link(NamedTuple):
    """A piece of the critical path.

    Attributes:
        id: Of the call; "" for the run's own body.
        start: From when the end of the run depended on it.
        end: Until when.
        waiting: How much of that it waited for limits that nobody in the run gave free.
    """

    id: str
    start: float
    end: float
    waiting: float = 0.0

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class LimitCost:
    """What a limit cost. A call that waited for several counts for each.

    Attributes:
        name: Of the limit.
        seconds: That calls waited, in all.
        calls: How many waited.
        longest: The longest that one did.
        critical: How long calls of the critical path waited for it, counted once where several did. About so much
            sooner the run could have ended without it.
    """

    name: str
    seconds: float
    calls: int
    longest: float
    critical: float


@dataclass(frozen=True, repr=False)
class Timeline:
    """What happened when in a run; shown by itself in a notebook.

    Attributes:
        run_id: The run.
        workflow: The name of its workflow.
        status: How the run stands.
        began: When it began, in seconds since the epoch.
        seconds: How long it took, or has taken; with the pauses.
        spans: Its calls, in the order in which they were asked for.
        pauses: When nothing went on for long, since the run had stopped and was resumed: (from, to).
        is_recorded: Made of a journal, which has only calls that ended.
        lost: How many events nobody kept. What they told of is missing; what went on then begins where they end.
    """

    run_id: str
    workflow: str
    status: str
    began: float
    seconds: float
    spans: tuple[Span, ...]
    pauses: tuple[tuple[float, float], ...] = ()
    is_recorded: bool = False
    lost: int = 0

    @classmethod
    def of_events(cls, told: Iterable[events.Event], *, now: float | None = None) -> Timeline:
        """Of a run's events, from its start.

        Args:
            told: In their order. What is missing before or after is missing in the timeline, nothing more.
            now: In seconds since the epoch, until when calls that have not ended go; to the last event, unless told.
        """
        recorder = TimelineRecorder()
        for event in told:
            recorder(event)
        return recorder.timeline(now=now)

    @classmethod
    def of_calls(
        cls,
        calls: Iterable[RecordedCall],
        *,
        run_id: str,
        workflow: str,
        status: str,
        created: datetime,
        updated: datetime,
    ) -> Timeline:
        """Of what a run has recorded; see :class:`weft.RunInfo`."""
        known = [(call, *_times(call)) for call in calls if call.ended is not None]
        began = min([created.timestamp(), *(asked for _, asked, _, _ in known)])
        spans = _in_order([_recorded(began, *each) for each in known])
        last = max((span.ended for span in spans), default=0.0)
        seconds = last if status == "running" else max(last, _since(began, updated.timestamp()))
        return cls(run_id, workflow, status, began, seconds, spans, _pauses(spans, seconds), is_recorded=True)

    def __repr__(self) -> str:
        return f"<weft.Timeline of run {self.run_id!r}: {len(self.spans)} calls in {self.seconds:.3f} s>"

    @cached_property
    def by_id(self) -> Mapping[str, Span]:
        """The spans by their ids."""
        return {span.id: span for span in self.spans}

    @cached_property
    def parents(self) -> frozenset[str]:
        """The ids of the calls that asked for others, and of the body."""
        return frozenset(span.parent for span in self.spans) | {BODY}

    @cached_property
    def path(self) -> tuple[Link, ...]:
        """The chain of what decided when the run ended, the first first.

        It is found from the end backwards. A body's result waited for its call that ended last; that was asked for
        when the one before it had ended, and so on. What waited for a limit waited for the call of the run that ended
        just then, rather one of a step that has waited for it too; if there is none, for the limit itself.
        """
        return tuple(_Pathfinder(self).found())

    @cached_property
    def critical_path(self) -> tuple[str, ...]:
        """The ids of the calls on :attr:`path`, in order."""
        return tuple(dict.fromkeys(link.id for link in self.path if link.id != BODY))

    @cached_property
    def limits(self) -> Mapping[str, LimitCost]:
        """What each limit cost, by its name, the dearest first."""
        return _costs(self)

    @property
    def paused(self) -> float:
        """For how much of :attr:`seconds` the run had stopped."""
        return sum(end - start for start, end in self.pauses)

    @cached_property
    def work(self) -> float:
        """How long calls ran, in all; of those that asked for others only these count."""
        return sum(span.worked for span in self.spans if span.id not in self.parents)

    @cached_property
    def widest(self) -> int:
        """How many calls ran at the same time, at most; of those that asked for others only these count."""
        return most_at_once(
            (start, end)
            for span in self.spans
            if span.id not in self.parents
            for kind, start, end in span.pieces
            if kind in AT_WORK
        )

    @cached_property
    def outcomes(self) -> Mapping[str, int]:
        """How many calls ended how."""
        return Counter(span.outcome for span in self.spans)

    def svg(self, *, theme: Theme = "auto", width: int = 1000) -> str:
        """An SVG document by itself: no script, no font, nothing to load. The same timeline gives the same text.

        Args:
            theme: Its colours; "auto" follows who looks at it.
            width: In pixels, from 400.

        Raises:
            InputError: Another theme, or a smaller width.
        """
        from weft.observe.timeline_svg import svg  # noqa: PLC0415 - it draws what is defined here

        return svg(self, theme=theme, width=width)

    def html(self) -> str:
        """A page by itself, for any width; light or dark as who looks at it has it."""
        from weft.observe.timeline_html import page  # noqa: PLC0415 - see svg

        return page(self)

    def text(self, *, width: int = 100, colour: bool = False) -> str:
        """For a terminal, in at most 60 lines.

        Args:
            width: In columns; below 60 is taken for 60, above 200 for 200.
            colour: With colours; not where ``NO_COLOR`` is set.
        """
        from weft.observe.timeline_text import text  # noqa: PLC0415 - see svg

        return text(self, width=width, colour=colour and not os.environ.get("NO_COLOR"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file: ``.svg``, ``.html`` or ``.txt``.

        Raises:
            InputError: Another suffix.
        """
        path = Path(path)
        make = _FORMATS.get(path.suffix.lower())
        if make is None:
            known = ", ".join(_FORMATS)
            raise InputError(f"cannot draw to {str(path)!r}: its suffix has to be one of {known}")
        path.write_bytes(make(self).encode())

    def _repr_html_(self) -> str:
        from weft.observe.timeline_html import fragment  # noqa: PLC0415 - see svg

        return fragment(self)


_FORMATS: Mapping[str, Callable[[Timeline], str]] = {
    ".svg": Timeline.svg,
    ".html": Timeline.html,
    ".htm": Timeline.html,
    ".txt": Timeline.text,
}


def most_at_once(whiles: Iterable[tuple[float, float]]) -> int:
    """How many of these (from, to) there are at one moment, at most."""
    real = [(start, end) for start, end in whiles if end > start]
    starts, ends = sorted([start for start, _ in real]), sorted([end for _, end in real])
    most = over = 0
    for begun, start in enumerate(starts, 1):
        while ends[over] <= start:  # at one moment those that end come first
            over += 1
        most = max(most, begun - over)
    return most


# From events


@dataclass(slots=True)
class _Call:
    """A call whose events are still coming; times are since the epoch."""

    id: str
    step: str
    parent: str
    asked: float
    kind: PieceKind  # what it does
    since: float
    started: float | None = None
    ended: float | None = None
    outcome: SpanOutcome = "open"
    pieces: list[Piece] = field(default_factory=list)
    attempts: int = 0
    limits: tuple[str, ...] = ()
    reused: str = ""
    error: str | None = None

    def turn(self, kind: PieceKind, at: float, *, was: PieceKind | None = None) -> None:
        """From now on it does that; ``was`` is what has become of what it did until now."""
        at = max(at, self.since)  # clocks may be set back
        if at > self.since:
            self.pieces.append(Piece(was or self.kind, self.since, at))
        self.kind, self.since = kind, at


class TimelineRecorder:
    """An observer that keeps of a run what its timeline needs, however many events there are.

    Taken on one thread, looked at from any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for a few lines, and while a timeline is made
        self._lost = 0
        self._run_id = self._workflow = ""
        self._status = "running"
        self._began: float | None = None
        self._last = 0.0
        self._calls: dict[str, _Call] = {}
        self._takers: Mapping[type[events.Event], Callable[[Any], None]] = {
            events.RunStarted: self._run_started,
            events.CallAsked: self._asked,
            events.CallQueued: self._queued,
            events.CallStarted: self._started,
            events.CallRetrying: self._retrying,
            events.QuestionAsked: self._question,
            events.CallFinished: self._finished,
            events.RunFinished: self._run_finished,
            events.EventsLost: self._events_lost,
        }

    def __call__(self, event: events.Event) -> None:
        """Take an event into account; never waits for long."""
        taker = self._takers.get(type(event))
        if taker is None:
            return
        with self._lock:
            if self._began is None:
                self._began = event.time
                self._run_id = event.run_id
            self._last = max(self._last, event.time)
            taker(event)

    def timeline(self, *, now: float | None = None) -> Timeline:
        """What has happened until now; see :meth:`Timeline.of_events`."""
        with self._lock:
            return self._timeline(now)

    def _timeline(self, now: float | None) -> Timeline:
        began = self._began or 0.0
        until = max(self._last, now or 0.0) if self._status == "running" else self._last
        # The run's own body is the run, unless it is all that there is.
        calls = [call for call in self._calls.values() if call.parent] or list(self._calls.values())
        spans = _in_order([self._span(call, began, until) for call in calls])
        seconds = _since(began, until)
        return Timeline(self._run_id, self._workflow, self._status, began, seconds, spans, lost=self._lost)

    def _span(self, call: _Call, began: float, until: float) -> Span:
        if call.ended is None:
            call = replace(call, pieces=[*call.pieces])
            call.turn(call.kind, until)
        return Span(
            self._short(call.id),
            call.step,
            self._short(call.parent),
            _since(began, call.asked),
            None if call.started is None else _since(began, call.started),
            _since(began, until if call.ended is None else call.ended),
            call.outcome,
            tuple(
                [Piece(kind, _since(began, start), _since(began, end)) for kind, start, end in call.pieces]
            ),
            max(call.attempts, 1),
            call.limits,
            call.reused,
            call.error,
        )

    def _short(self, call_id: str) -> str:
        """As in the journal, where ids are without that of the run."""
        return call_id.removeprefix(f"{self._run_id}:")

    def _run_started(self, event: events.RunStarted) -> None:
        self._workflow = event.workflow
        self._status = "running"

    def _run_finished(self, event: events.RunFinished) -> None:
        self._status = event.status

    def _events_lost(self, event: events.EventsLost) -> None:
        self._lost += event.count

    def _asked(self, event: events.CallEvent) -> None:
        self._call(event)

    def _queued(self, event: events.CallQueued) -> None:
        call = self._call(event)
        call.turn("waiting", event.time)
        if call.limits != event.limits:
            call.limits = tuple(dict.fromkeys(call.limits + event.limits))

    def _started(self, event: events.CallStarted) -> None:
        call = self._call(event)
        call.turn("running", event.time)
        call.attempts = event.attempt
        if call.started is None:
            call.started = event.time

    def _retrying(self, event: events.CallRetrying) -> None:
        self._call(event).turn("backoff", event.time, was="failed")

    def _question(self, event: events.QuestionAsked) -> None:
        self._call(event).turn("asking", event.time)

    def _finished(self, event: events.CallFinished) -> None:
        call = self._call(event)
        call.turn(call.kind, event.time)
        call.ended = call.since
        call.attempts = event.attempts
        call.outcome = _OUTCOMES[type(event.outcome)]
        call.error = _told(event.outcome)
        if event.recorded or event.cached:
            call.reused = "recorded" if event.recorded else "cached"
            call.pieces.clear()

    def _call(self, event: events.CallEvent) -> _Call:
        call = self._calls.get(event.call_id)
        if call is None:
            kind: PieceKind = "waiting"
            since = event.time
            if self._lost and not isinstance(
                event, _FIRST
            ):  # it went on when the first of the events was kept
                kind, since = "running", self._began or since
            call = _Call(event.call_id, event.step, event.parent_id, since, kind, since)
            self._calls[event.call_id] = call
        return call


_FIRST = (events.CallAsked, events.CallQueued, events.CallStarted)


def _since(began: float, time: float) -> float:
    """To a microsecond: more a number of seconds since the epoch cannot say."""
    return max(round(time - began, 6), 0.0)


_OUTCOMES: Mapping[type[Outcome[Any]], SpanOutcome] = {
    Ok: "ok",
    Failed: "failed",
    TimedOut: "timed_out",
    Cancelled: "cancelled",
    Skipped: "skipped",
    NotStarted: "not_started",
}


def _told(outcome: Outcome[Any]) -> str | None:
    if isinstance(outcome, Cancelled | Skipped):
        return outcome.reason or None
    if not isinstance(outcome, Failed | TimedOut):
        return None
    return _cut(in_a_line(outcome.error))


def _cut(text: str) -> str:
    return text if len(text) <= _ERROR_LENGTH else text[: _ERROR_LENGTH - 1] + "…"


# From a journal


def _times(call: RecordedCall) -> tuple[float, float | None, float]:
    """When it was asked for, its last attempt began, and it ended, since the epoch and in this order."""
    assert call.ended is not None
    ended = call.ended.timestamp()
    started = None if call.started is None else min(call.started.timestamp(), ended)
    begun = ended if started is None else started
    return begun if call.asked is None else min(call.asked.timestamp(), begun), started, ended


def _recorded(began: float, call: RecordedCall, asked: float, started: float | None, ended: float) -> Span:
    from_, to = _since(began, asked), _since(began, ended)
    last = from_ if started is None else _since(began, started)
    pieces = []
    if last > from_:
        pieces.append(Piece("waiting" if call.attempts <= 1 else "earlier", from_, last))
    if to > last:
        pieces.append(Piece("running", last, to))
    return Span(
        call.id,
        call.step,
        call.parent,
        from_,
        last if started is not None and call.attempts <= 1 else None,
        to,
        _RECORDED.get(call.outcome, "ok"),
        tuple(pieces),
        call.attempts,
        tuple(call.limits),
        error=None if call.error is None else _cut(call.error),
    )


_RECORDED: Mapping[str, SpanOutcome] = {"ok": "ok", "failed": "failed", "timed_out": "timed_out"}


def _in_order(spans: list[Span]) -> tuple[Span, ...]:
    """As they were asked for; a parent that nothing is known of is the run's body."""
    known = {span.id for span in spans}
    spans.sort(key=lambda span: span.asked)  # stable: at one moment, as they came
    return tuple(
        [
            span if span.parent in known else replace(span, parent=BODY) if span.parent else span
            for span in spans
        ]
    )


def _pauses(spans: Sequence[Span], seconds: float) -> tuple[tuple[float, float], ...]:
    """The gaps between the lives of a run: long ones, that take more of the time than all that went on."""
    gaps: list[tuple[float, float]] = []
    reached = 0.0
    for span in spans:
        if span.asked - reached >= _PAUSE:
            gaps.append((reached, span.asked))
        reached = max(reached, span.ended)
    if seconds - reached >= _PAUSE:
        gaps.append((reached, seconds))
    gaps.sort(key=lambda gap: gap[0] - gap[1])
    active = seconds - sum(end - start for start, end in gaps)
    return tuple(sorted(gap for gap in gaps if gap[1] - gap[0] > active / 2))


# What decided when the run ended


class _Pathfinder:
    """Goes from the end of a run to its beginning, always to what had to end first."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._spans = timeline.by_id
        self._children: dict[str, list[Span]] = {}  # by their end; those behind us are taken off
        for span in sorted(timeline.spans, key=lambda span: span.ended):
            self._children.setdefault(span.parent, []).append(span)
        self._entered: set[str] = set()
        self._holders = _Holders(timeline)
        self._links: list[Link] = []
        self._least = timeline.seconds * _OWN_TIME

    def found(self) -> Iterable[Link]:
        here: str | None = BODY
        at = self._timeline.seconds
        while here is not None:
            here, at = self._step(here, at)
        return reversed(self._links)

    def _step(self, here: str, at: float) -> tuple[str | None, float]:
        """One step back from a call (or the body) at a time when it was at work."""
        child = self._last_child(here, at)
        if child is not None:
            self._note(here, child.ended, at)
            self._entered.add(child.id)
            return child.id, child.ended
        if here == BODY:
            self._note(BODY, 0.0, at)
            return None, 0.0
        return self._leave(self._spans[here], at)

    def _leave(self, span: Span, at: float) -> tuple[str, float]:
        """Back before its first attempt, to what it waited for."""
        wait = next((piece for piece in span.pieces if piece.kind == "waiting"), None)
        if not span.limits or wait is None or wait.start > at:
            self._note(span.id, span.asked, at)
            return span.parent, min(span.asked, at)
        free = min(wait.end, at)
        holder = self._holders.before(span, free, self._entered)
        if holder is None:
            self._note(span.id, span.asked, at, free - wait.start)
            return span.parent, min(span.asked, at)
        self._note(span.id, free, at)
        self._entered.add(holder.id)
        return holder.id, min(holder.ended, free)

    def _last_child(self, of: str, at: float) -> Span | None:
        children = self._children.get(of)
        while children:
            if children[-1].ended > at or children[-1].id in self._entered:
                children.pop()  # time only goes back, so it will not be asked for again
                continue
            return children[-1]
        return None

    def _note(self, span_id: str, start: float, end: float, waiting: float = 0.0) -> None:
        is_leaf = span_id not in self._timeline.parents
        if end > start if is_leaf else end - start > self._least:
            self._links.append(Link(span_id, start, end, waiting))


class _Holders:
    """Finds whose end let a call begin that waited for a limit."""

    def __init__(self, timeline: Timeline) -> None:
        limits_of: dict[str, set[str]] = {}
        for span in timeline.spans:
            if span.limits:
                limits_of.setdefault(span.step, set()).update(span.limits)
        by_limit: dict[str, list[Span]] = {_ANY: []}
        for span in sorted(timeline.spans, key=lambda span: span.ended) if limits_of else ():
            if span.reused:
                continue
            for limit in limits_of.get(span.step, ()):
                by_limit.setdefault(limit, []).append(span)
            if span.id not in timeline.parents:
                by_limit[_ANY].append(span)
        self._by_limit = by_limit
        self._ends = {limit: [span.ended for span in spans] for limit, spans in by_limit.items()}

    def before(self, waiting: Span, free: float, entered: set[str]) -> Span | None:
        """The one that ended nearest to when the limit was free, and worked while this one waited."""
        found = [each for limit in waiting.limits for each in self._near(limit, waiting, free, entered)]
        if (
            not found
        ):  # of calls that never waited nobody knows in which limits they count: the moment has to fit
            others = self._near(_ANY, waiting, free, entered)
            found = [span for span in others if free - span.ended <= _LATE]
        return min(found, key=lambda span: abs(span.ended - free), default=None)

    def _near(self, limit: str, waiting: Span, free: float, entered: set[str]) -> Iterable[Span]:
        spans, ends = self._by_limit.get(limit, []), self._ends.get(limit, [])
        place = bisect_right(ends, free)
        fits = (span for span in spans[max(place - _LOOKED_AT, 0) : place] if span.ended > waiting.asked)
        late = (span for span in spans[place : place + _LOOKED_AT] if span.ended <= free + _LATE)
        for span in (*fits, *late):
            begun = span.pieces[0].end if span.pieces and span.pieces[0].kind == "waiting" else span.asked
            if span.id != waiting.id and span.id not in entered and begun < free:
                yield span


def _costs(timeline: Timeline) -> Mapping[str, LimitCost]:
    critical = set(timeline.critical_path)
    waits: dict[str, list[float]] = {}
    whiles: dict[str, list[tuple[float, float]]] = {}  # in which calls of the critical path waited
    for span in timeline.spans:
        if not span.limits:
            continue
        on_path = (
            [(p.start, p.end) for p in span.pieces if p.kind == "waiting"] if span.id in critical else []
        )
        for limit in span.limits:
            waits.setdefault(limit, []).append(span.waited)
            whiles.setdefault(limit, []).extend(on_path)
    costs = [
        LimitCost(name, sum(each), len(each), max(each), _covered(whiles[name]))
        for name, each in waits.items()
    ]
    costs.sort(key=lambda cost: (-cost.seconds, cost.name))
    return {cost.name: cost for cost in costs}


def _covered(whiles: list[tuple[float, float]]) -> float:
    """How long they are together, what they share counted once."""
    total = reached = 0.0
    for start, end in sorted(whiles):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


__all__ = [
    "AT_WORK",
    "BODY",
    "LimitCost",
    "Link",
    "Piece",
    "PieceKind",
    "Span",
    "SpanOutcome",
    "Timeline",
    "TimelineRecorder",
    "most_at_once",
]
