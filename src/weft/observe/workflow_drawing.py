"""The picture of a workflow of any style, with all that is in it, and with what has become of it in a run.

Three steps: the sketches of a workflow and its parts are put together into a tree of *places*; the calls of a run go
to the places that they belong to; the places become boxes, frames and arrows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from weft.observe.picture import Arrow, ArrowKind, Box, BoxOutcome, Group, Picture
from weft.observe.run_calls import RunCall, RunCalls
from weft.observe.sketch import IN, OUT, Drawable, Part, Sketch, Way

#: Places in one picture; what would be more is drawn closed.
_MOST = 3_000

_TIMES = "\u00d7"  # the sign of multiplication
_FALLBACK = ".exec_fallback"  # the call that stands in for one of a batch node
_SLACK = 0.002  # seconds between what two clocks say of one moment


def picture_of(what: Drawable, run: RunCalls | None = None) -> Picture:
    """How a workflow looks; with a run, what has become of each step in it.

    A run tells of calls by the names of their steps and by who asked for them. What a workflow does not say of itself
    before it runs, such as what a body calls, is drawn from that.
    """
    tree = _Tree(what)
    if run is not None:
        _Matcher(tree, run).match()
    return _Painter(tree, run).picture()


# Places


@dataclass(eq=False, slots=True)
class _Place:
    """Somewhere in a workflow.

    Attributes:
        part: What stands there.
        sketch: How that looks.
        around: The place whose part it is, or which calls it.
        is_called: Whether that calls it from its code.
        is_guess: Whether only its name in that code says so.
        parts: What is in it: then it is a frame.
        callees: What it calls.
        calls: Those of a run that belong here.
        fell_back: How many of them have failed, and something stood in for them.
        alike: How many places there are that these calls may belong to.
    """

    part: Part
    sketch: Sketch
    around: _Place | None = None
    is_called: bool = False
    is_guess: bool = False
    parts: list[_Place] = field(default_factory=list)
    callees: list[_Place] = field(default_factory=list)
    calls: list[RunCall] = field(default_factory=list)
    fell_back: int = 0
    alike: int = 1

    @property
    def inner(self) -> list[_Place]:
        """All that is reached from here in one step."""
        return self.parts + self.callees

    def ways_up(self) -> Iterator[_Place]:
        """Itself and all that is around it, the innermost first."""
        place: _Place | None = self
        while place is not None:
            yield place
            place = place.around

    def all(self) -> Iterator[_Place]:
        """Itself and all that is in it or called by it, in the order of a reader."""
        stack = [self]
        while stack:
            place = stack.pop()
            yield place
            stack += place.inner[::-1]


class _Tree:
    """All places of a workflow."""

    def __init__(self, what: Drawable) -> None:
        self.count = 0
        self.known: dict[str, Part] = {}  # what may be called, by the names of steps
        self._called: set[Drawable] = set()  # what was called once is not drawn open again
        sketch = what.sketch()
        self.root = _Place(Part(sketch.label, sketch.step, what, sketch.kind), sketch)
        self._grow(self.root)

    def add(self, around: _Place, part: Part, *, is_called: bool, is_guess: bool = False) -> _Place:
        """A place more, with all that is in it."""
        place = _Place(part, _closed(part), around, is_called, is_guess)
        (around.callees if is_called else around.parts).append(place)
        self._grow(place)
        return place

    def _grow(self, top: _Place) -> None:
        stack = [top]
        while stack:
            place = stack.pop()
            self.count += 1
            what = place.part.what
            if what is None:
                continue
            self.known.setdefault(place.part.step, place.part)
            if self._is_to_be_closed(place, what):
                continue
            place.sketch = what.sketch()
            place.parts += [_Place(part, _closed(part), place) for part in place.sketch.parts]
            place.callees += [
                _Place(part, _closed(part), place, is_called=True, is_guess=True)
                for part in place.sketch.calls
            ]
            stack += place.inner[::-1]

    def _is_to_be_closed(self, place: _Place, what: Drawable) -> bool:
        if self.count > _MOST or any(
            above.part.what == what for above in place.ways_up() if above is not place
        ):
            return True
        if place.is_called:
            is_known = what in self._called
            self._called.add(what)
            return is_known and bool(what.sketch().calls)
        return False


def _closed(part: Part) -> Sketch:
    return Sketch(part.label, part.step, part.kind)


# Calls to places


class _Matcher:
    """Finds the place of each call of a run: below that of who asked, by the name of its step."""

    def __init__(self, tree: _Tree, run: RunCalls) -> None:
        self._tree = tree
        self._run = run
        self._below: dict[str, list[RunCall]] = defaultdict(list)
        for call in run.calls:
            self._below[call.parent].append(call)
        self._places: dict[str, _Place] = {}  # by the ids of calls
        self._pending: list[tuple[_Place, RunCall]] = []

    def match(self) -> None:
        self._put(self._tree.root, self._run.body)
        self._go_down()
        self._drop_wrong_guesses()
        self._match_orphans()
        self._drop_wrong_guesses()

    def _put(self, place: _Place, call: RunCall) -> None:
        place.calls.append(call)
        if self._places.setdefault(call.id, place) is place:
            self._pending.append((place, call))

    def _go_down(self) -> None:
        while self._pending:
            place, call = self._pending.pop()
            self._assign(place, self._below.pop(call.id, ()))

    def _assign(self, place: _Place, calls: Sequence[RunCall]) -> None:
        """The calls that one call at this place has asked for, in the order in which they began."""
        seen: Counter[str] = Counter()
        by_step = _by_step(place)
        for call in calls:
            fitting = by_step.get(call.step)
            if fitting:
                self._put_among(place, fitting, call, seen[call.step])
                seen[call.step] += 1
            elif (failed := call.step.removesuffix(_FALLBACK)) != call.step and failed in by_step:
                for each in by_step[failed]:
                    each.fell_back += call.outcome in {"ok", "reused"}
            elif self._is_between(place, call, by_step):
                self._places[call.id] = place
                self._assign(place, self._below.pop(call.id, ()))
            else:
                self._put(self._called(place, call.step), call)
                by_step = _by_step(place)

    def _put_among(self, place: _Place, fitting: Sequence[_Place], call: RunCall, number: int) -> None:
        if place.sketch.is_in_order or len(fitting) == 1:
            self._put(fitting[number % len(fitting)], call)
            return
        for each in fitting:
            each.alike = len(fitting)
            self._put(each, call)

    def _is_between(self, place: _Place, call: RunCall, by_step: Collection[str]) -> bool:
        """Whether it is a call that only holds the parts together, as that of an item of a pipeline."""
        inner = self._below.get(call.id)
        return bool(place.parts and inner) and all(each.step in by_step for each in inner or ())

    def _called(self, place: _Place, step: str) -> _Place:
        """A place for what could not be known before the run."""
        known = self._tree.known.get(step)
        part = Part(step, step) if known is None else Part(known.label, step, known.what, known.kind)
        return self._tree.add(place, part, is_called=True)

    def _match_orphans(self) -> None:
        """Nothing is recorded of what was stopped, and of what only goes from step to step."""
        holders: dict[str, list[_Place]] = defaultdict(list)
        for place in self._tree.root.all():
            for step in _by_step(place):
                holders[step].append(place)
        for parent in [parent for parent in self._below if parent not in self._places]:
            calls = self._below.pop(parent, [])
            if not calls:
                continue
            found = self._holders(parent, calls, holders)
            for place in found or [self._known_above(parent) or self._tree.root]:
                self._assign(place, calls)
            if len(found) > 1:
                for each in (each for place in found for each in place.inner):
                    each.alike = max(each.alike, len(found) if each.calls else 1)
            self._go_down()

    def _holders(
        self, parent: str, calls: Sequence[RunCall], holders: dict[str, list[_Place]]
    ) -> list[_Place]:
        """The places whose parts these calls may be, as few as can be told."""
        steps = {call.step.removesuffix(_FALLBACK) for call in calls}
        found = [place for place in holders.get(min(steps), ()) if steps <= _by_step(place).keys()]
        above = self._known_above(parent)
        tests: list[Callable[[_Place], bool]] = [
            lambda place: above is not None and any(each is above for each in place.ways_up()),
            lambda place: _was_at_work(place, calls),
        ]
        for test in tests:
            if len(found) > 1:
                found = [place for place in found if test(place)] or found
        return found

    def _known_above(self, call_id: str) -> _Place | None:
        """The ids of calls of which nothing is recorded begin with those of who asked."""
        while "/" in call_id:
            call_id = call_id.rpartition("/")[0]
            if call_id in self._places:
                return self._places[call_id]
        return None

    def _drop_wrong_guesses(self) -> None:
        """A step that the code names, and that was called in another way than by its name."""
        for place in [*self._tree.root.all()]:
            guesses = {each for each in place.callees if each.is_guess and not each.calls}
            if guesses:
                ran = {each.part.step for each in place.all() if each.calls}
                place.callees[:] = [
                    each for each in place.callees if each not in guesses or each.part.step not in ran
                ]


def _by_step(place: _Place) -> dict[str, list[_Place]]:
    found: dict[str, list[_Place]] = {}
    for each in place.inner:
        if each.part.step:
            found.setdefault(each.part.step, []).append(each)
    return found


def _was_at_work(place: _Place, calls: Sequence[RunCall]) -> bool:
    """Whether the innermost known call round this place was there while these were."""
    known = next((each for each in place.ways_up() if each.calls), None)
    if known is None:
        return False
    starts = [call.start for call in calls if call.start is not None]
    ends = [call.end for call in calls if call.end is not None]
    if not starts or not ends:
        return True
    return any(
        each.start is not None
        and each.start <= min(starts) + _SLACK
        and (each.outcome == "running" or each.end is None or each.end >= max(ends) - _SLACK)
        for each in known.calls
    )


# Places to boxes


class _Painter:
    def __init__(self, tree: _Tree, run: RunCalls | None) -> None:
        self._root = tree.root
        self._run = run
        self._places = [*tree.root.all()]
        self._ids = {place: str(number) for number, place in enumerate(self._places)}
        self._frames = {place for place in self._places if place.parts}
        if self._root in self._frames and run is None and not self._root.sketch.note:
            self._frames.discard(self._root)  # the picture is its frame
        self._active = _with_calls(self._places)
        self._order = {call.id: number for number, call in enumerate(run.calls if run else ())}

    def picture(self) -> Picture:
        root = self._root
        starts = set(self._ends(root, IN))
        ends = set(self._ends(root, OUT)) if root.parts else set()
        boxes = [self._box(place, starts, ends) for place in self._places if not place.parts]
        return Picture(tuple(boxes), tuple(self._arrows()), tuple(self._groups()), title=self._title())

    def _title(self) -> str:
        title = self._root.sketch.label
        run = self._run
        if run is None:
            return title
        title = f"{title}, run {run.id}: {run.status}"
        return f"{title}; its first {run.lost} events are not kept" if run.lost else title

    # Boxes and frames

    def _box(self, place: _Place, starts: Collection[_Place], ends: Collection[_Place]) -> Box:
        kind = place.part.kind if place.part.kind != "node" else place.sketch.kind
        label = place.part.label if place.around is not None else place.sketch.label
        outcome = self._outcome(place)
        said = self._said(place, outcome)
        return Box(
            self._ids[place],
            label,
            kind,
            is_start=place in starts,
            is_end=place.part.is_end or (place in ends and kind not in {"fork", "join", "anywhere"}),
            note="\n".join(filter(None, [place.sketch.note, said])),
            outcome=outcome,
            about=_details(place) if place is not self._root else "",
        )

    def _groups(self) -> Iterator[Group]:
        """The outermost frames, with all in them; the innermost are made first, as there may be a thousand."""
        members: dict[_Place | None, list[str]] = defaultdict(list)
        inner: dict[_Place | None, list[Group]] = defaultdict(list)
        for place in self._places:
            if not place.parts:
                members[self._frame_round(place)].append(self._ids[place])
        for place in reversed(self._places):
            if place in self._frames:
                made = self._group(place, members[place], inner[place][::-1])
                inner[self._frame_round(place)].append(made)
        yield from inner[None][::-1]

    def _group(self, place: _Place, members: Iterable[str], groups: Iterable[Group]) -> Group:
        outcome = self._outcome(place)
        said = self._said(place, outcome)
        label = place.part.label if place.around is not None else place.sketch.label
        heading = " · ".join(filter(None, [label, place.sketch.note, said]))
        return Group(heading, tuple(members), tuple(groups), outcome, _details(place))

    def _frame_round(self, place: _Place) -> _Place | None:
        return next((each for each in place.ways_up() if each is not place and each in self._frames), None)

    # Arrows

    def _arrows(self) -> Iterator[Arrow]:
        for place in self._places:
            if place.parts:
                times = _times(place, self._order)
                for number, way in enumerate(place.sketch.ways):
                    yield from self._way(place, way, times.get(number, 0))
            yield from self._calls_of(place)

    def _way(self, place: _Place, way: Way, times: int) -> Iterator[Arrow]:
        if IN in (way.source, way.destination) or OUT in (way.source, way.destination):
            return
        label = " · ".join(filter(None, [way.label, f"{times} {_TIMES}" if times > 1 else ""]))
        for source in self._ends(place.parts[way.source], OUT):
            for destination in self._ends(place.parts[way.destination], IN):
                yield self._arrow(source, destination, label, way.kind)

    def _calls_of(self, place: _Place) -> Iterator[Arrow]:
        source = _caller(place)
        for callee in place.callees:
            for destination in self._ends(callee, IN):
                if source is not None:
                    label = "may call" if self._run is None else ""
                    yield self._arrow(source, destination, label, "call")

    def _arrow(self, source: _Place, destination: _Place, label: str, kind: ArrowKind) -> Arrow:
        return Arrow(self._ids[source], self._ids[destination], label, kind)

    def _ends(self, place: _Place, side: int) -> list[_Place]:
        """The boxes by which one comes into a place, or out of it."""
        found: dict[_Place, None] = {}
        stack = [place]
        while stack:
            each = stack.pop()
            if not each.parts:
                found[each] = None
                continue
            ways = [way for way in each.sketch.ways if side in (way.source, way.destination)]
            numbers = [way.destination if side == IN else way.source for way in ways]
            stack += [each.parts[number] for number in numbers[::-1] if number >= 0]
        return [*found]

    # What has become of them

    def _outcome(self, place: _Place) -> BoxOutcome | None:
        if self._run is None or not (place.part.step or place is self._root):
            return None
        if place.sketch.records == "nothing":
            return None
        if place.calls:
            return _together(place)
        return None if place.parts and place in self._active else "never"

    def _said(self, place: _Place, outcome: BoxOutcome | None) -> str:
        if self._run is None:
            return place.sketch.unknown
        if outcome == "never":
            return "no result" if self._run.is_recorded else "never ran"
        if outcome is None:
            return "not recorded" if place.sketch.records == "nothing" else ""
        said = _result(place, outcome)
        if place is self._root and outcome == "running":
            said = said.replace("running", self._run.status, 1)
        return f"{said} in {place.alike} alike" if place.alike > 1 else said


def _with_calls(places: Sequence[_Place]) -> set[_Place]:
    """The places with calls in them, however deep."""
    found: set[_Place] = set()
    for place in reversed(places):
        if place.calls or place in found:
            found.add(place)
            if place.around is not None:
                found.add(place.around)
    return found


def _caller(place: _Place) -> _Place | None:
    """The box that what a place calls hangs on: in a frame, what may choose it."""
    if not place.parts:
        return place
    choosing = [each for each in place.parts if each.part.kind in {"anywhere", "router"} and not each.parts]
    return min(choosing, key=lambda each: each.part.kind, default=None)


def _times(place: _Place, order: Mapping[str, int]) -> dict[int, int]:
    """How often each way that is chosen was taken, by its number, where parts take turns."""
    if not place.sketch.is_in_order:
        return {}
    at = {each: number for number, each in enumerate(place.parts)}
    ran = [(order[call.id], number, call) for each, number in at.items() for call in each.calls]
    taken: Counter[tuple[int, int]] = Counter()
    last: dict[str, int] = {}
    for _, number, call in sorted(ran, key=itemgetter(0)):
        if call.parent in last:
            taken[last[call.parent], number] += 1
        last[call.parent] = number
    return {
        number: taken[way.source, way.destination]
        for number, way in enumerate(place.sketch.ways)
        if way.kind == "choice"
    }


#: Of several outcomes that is shown which comes first.
_GRAVE: tuple[BoxOutcome, ...] = ("failed", "timed_out", "running", "cancelled")

_WORDS: dict[BoxOutcome, str] = {
    "failed": "failed",
    "timed_out": "timed out",
    "cancelled": "cancelled",
    "running": "running",
    "reused": "reused",
}


def _counts(place: _Place) -> Counter[BoxOutcome]:
    """How its calls have ended; one that something stood in for went well."""
    counts = Counter(call.outcome for call in place.calls)
    rescued = min(place.fell_back, counts["failed"])
    counts["failed"] -= rescued
    counts["ok"] += rescued
    return +counts


def _together(place: _Place) -> BoxOutcome:
    counts = _counts(place)
    grave = next((outcome for outcome in _GRAVE if counts[outcome]), None)
    if grave is not None:
        return grave
    return "reused" if counts["reused"] == counts.total() else "ok"


def _result(place: _Place, outcome: BoxOutcome) -> str:
    """What is written beside a place that has calls."""
    counts, total = _counts(place), len(place.calls)
    words = [f"{counts[each]} {word}" for each, word in _WORDS.items() if counts[each]]
    is_timed = outcome != "reused" and any(call.seconds is not None for call in place.calls)
    time = shown_seconds(_busy(place.calls)) if is_timed else ""
    if total == 1:
        tries = place.calls[0].attempts
        said = [_WORDS.get(outcome, ""), f"{tries} attempts" if tries > 1 else ""]
    elif words and words[0].split(" ", 1)[0] != str(total):
        said = [f"{words[0].replace(' ', f' of {total} ', 1)}", *words[1:]]
    else:
        said = [f"{total} {_TIMES}", _WORDS.get(outcome, "")]
    fell_back = f"{place.fell_back} fell back" if place.fell_back else ""
    return ", ".join(filter(None, [*said, fell_back, time]))


def _busy(calls: Sequence[RunCall]) -> float:
    """For how many seconds at least one of them was there."""
    whiles = [(call.start or 0.0, (call.start or 0.0) + (call.seconds or 0.0)) for call in calls]
    total, reached = 0.0, float("-inf")
    for start, end in sorted(whiles):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def _details(place: _Place) -> str:
    """What is said of the calls of a place when one points at it."""
    calls = place.calls
    if not calls:
        return ""
    spent = [call.seconds for call in calls if call.seconds is not None]
    tries = sum(call.attempts for call in calls) - len(calls)
    said = [f"{len(calls)} {'call' if len(calls) == 1 else 'calls'}"]
    if spent:
        together = f" together, the longest {shown_seconds(max(spent))}" if len(spent) > 1 else ""
        said.append(f"{shown_seconds(sum(spent))}{together}")
    if tries:
        said.append(f"{tries} {'attempt' if tries == 1 else 'attempts'} more")
    errors = Counter(call.error for call in calls if call.error)
    said += [
        f"{error} ({count} {_TIMES})" if count > 1 else error for error, count in errors.most_common(_ERRORS)
    ]
    if len(errors) > _ERRORS:
        said.append(f"and {len(errors) - _ERRORS} other errors")
    return "; ".join(said)


_ERRORS = 3  # that are named


def shown_seconds(seconds: float) -> str:
    """A time, for people."""
    if seconds < 0.0005:
        return "<1 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


__all__ = ["picture_of", "shown_seconds"]
