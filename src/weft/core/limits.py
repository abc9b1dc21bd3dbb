"""How many calls may be at work at once, and how many may begin in a period.

What counts is calls *without an unfinished child*: a call gives back what it holds when it makes a child and
has it again before its last child's outcome reaches it. A call takes all that it needs at once or nothing, so
nobody holds one thing while he waits for another, and nesting cannot deadlock.

Waiters that need the same stand in one *lane*, in the order of arrival. Among the first of all lanes those go
first who continue what has begun, then the older ones; somebody who lacks nothing is not held up by somebody in
front of him who does. The price of that is that the one who needs much can be passed again and again. So who is
first in his lane and has lost the last of something to somebody behind him more than :data:`PATIENCE` times is
*insistent*: one of each thing that he needs is kept for him as it becomes free, what is slowest to come first.
This cannot deadlock: keeping binds only those behind, and the order has no circles, so there is always a
first whom nothing is kept from. He goes when those who hold his things have ended, and they wait for nobody here,
but for the holders of a *gate*: they keep it while their children work. So nothing is kept for somebody while a
gate that he needs is full: those children may be behind him and need it.

Nothing here knows a clock or a lock: ``now`` is given, in seconds of a clock that does not go back, and calls
that share a capacity must not overlap. A ``now`` that is behind the last one seen by more than :data:`LAG` means
another clock (tests with virtual time): what was noted by the old one, beginnings and pauses, is forgotten. One
that is behind by less is taken for the last one seen: event loops of several threads may tell the time of when
their turn began, and the promise of a rate must not hang on that.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any, Generic, TypeVar

from weft.core.checks import check_count, check_span
from weft.errors import DefinitionError

T = TypeVar("T")

PATIENCE = 64
"""How often the first of a lane lets others behind him take the last of what he needs."""

LAG = 1.0
"""How far, in seconds, one who tells the time may be behind another on the same clock."""

_UNITS = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
_SPELLING = re.compile(
    r"\s*([0-9]{1,15})\s*/\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)?\s*([a-z]+)\s*", re.IGNORECASE
)

# Places in the line are numbers. Those of new starts begin where those of what has begun never come.
_arrivals = count()
_NEW_STARTS = 1 << 62


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``count`` beginnings in any window of ``period`` seconds.

    Raises:
        DefinitionError: ``count`` is no whole number of at least 1, or ``period`` no finite time above 0.
    """

    count: int
    period: float

    def __post_init__(self) -> None:
        check_count("the count of a rate", self.count)
        object.__setattr__(self, "period", check_span("the period of a rate", self.period))

    @classmethod
    def parse(cls, value: object) -> Rate:
        """A rate as users write it: ``"500/min"``, ``"3/2s"``, a pair ``(500, 60.0)`` or a rate.

        Raises:
            DefinitionError: It is none of these.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, tuple | list) and len(value) == 2:
            return cls(value[0], value[1])
        found = _SPELLING.fullmatch(value) if isinstance(value, str) else None
        unit = _UNITS.get(found[3].lower()) if found else None
        if found is None or unit is None:
            raise DefinitionError(
                f'a rate must be written like "500/min", "10/s" or "3/2s" (units: ms, s, min, h, day), '
                f"or as a pair of a count and seconds like (500, 60.0), not {value!r}"
            )
        return cls(int(found[1]), float(found[2] or 1) * unit)


class Capacity:
    """What one limit has left: so many at once, so many begun in a period, and a pause that a provider asked for.

    Attributes:
        name: What it is called in messages.
        concurrent: How many may hold it at once; None for any number.
        rate: How many may begin in a period; None for any number.
        is_gate: Whether who holds it does so to his end, also while he waits for his children.
        is_kept: Whether a body that was given up keeps it until it ends, since the world still sees it at work.
        in_use: How many hold it now.
        waiting: How many wait who need it, perhaps among other things.
        paused_until: No attempt begins before this moment.
    """

    __slots__ = (
        "_begun",
        "_insistent",
        "_lanes",
        "_most",
        "_noted",
        "concurrent",
        "in_use",
        "is_gate",
        "is_kept",
        "name",
        "paused_until",
        "rate",
        "waiting",
    )

    def __init__(
        self,
        name: str,
        *,
        concurrent: int | None = None,
        rate: Rate | None = None,
        is_gate: bool = False,
        is_kept: bool = True,
    ) -> None:
        self.name = name
        self.concurrent = concurrent
        self.rate = rate
        self.is_gate = is_gate
        self.is_kept = is_kept
        self.in_use = 0
        self.waiting = 0
        self.paused_until = -inf
        self._most = inf if concurrent is None else check_count("concurrent", concurrent)
        self._begun: deque[float] = deque()
        self._noted = -inf
        self._lanes: dict[_Key, _Lane] = {}
        self._insistent: dict[_Lane, None] = {}

    def __repr__(self) -> str:
        of = "" if self.concurrent is None else f" of {self.concurrent}"
        return f"<Capacity {self.name!r}: {self.in_use}{of} in use, {self.waiting} waiting>"

    def pause(self, until: float) -> None:
        """Let no attempt begin before ``until``, or before a later moment that was asked for earlier.

        Call :func:`due` then: what was kept for somebody who now has to wait may be of use to others.
        """
        self.paused_until = max(self.paused_until, until)

    def first_in_line(self) -> list[Any]:
        """Who is first in each of the lanes of those who need it."""
        return [next(iter(lane.waiters)) for lane in self._lanes.values()]

    def _opens(self, now: float, kept: int = 0) -> float:
        """The moment from which an attempt may begin and still leave ``kept`` beginnings to others."""
        now = self._see(now)
        if self.rate is None:
            return self.paused_until
        begun, period = self._begun, self.rate.period
        while begun and begun[0] + period <= now:
            begun.popleft()
        too_many = len(begun) - self.rate.count + kept
        if too_many < 0:
            return self.paused_until
        if kept >= self.rate.count:
            return inf
        return max(self.paused_until, begun[too_many] + period)

    def _see(self, now: float) -> float:
        """Note the time, which is never earlier than it was; or that this is another clock."""
        if now >= self._noted:
            self._noted = now
        elif now < self._noted - LAG:
            # What the old clock told means nothing, and who waited for that must be looked at.
            self._noted = now
            self._begun.clear()
            self.paused_until = -inf
            for lane in self._lanes.values():
                lane.told = -inf
        return self._noted

    def _gave_its_last(self, *, begins: bool) -> bool:
        """Whether the one who was just let go took the last place, or the last beginning."""
        if self.in_use >= self._most:
            return True
        return begins and self.rate is not None and len(self._begun) >= self.rate.count

    def _kept(self, place: int, now: float) -> tuple[int, int]:
        """How many beginnings, and how many places, are kept for those in front of ``place``."""
        beginnings = places = 0
        for lane in self._insistent:
            if lane.place < place:
                kept_beginnings, kept_places = lane.kept(now)
                beginnings += self in kept_beginnings
                places += self in kept_places
        return beginnings, places


Needs = tuple[Capacity, ...]
"""All that a call needs at once. No duplicates; calls that need the same should name it in the same order."""

_Key = tuple[Needs, bool, bool]
_Line = list[tuple[int, "_Lane"]]


@dataclass(slots=True)  # not frozen: one is made at every hand-over, and it costs half
class Turn(Generic[T]):
    """What came of a change.

    Attributes:
        granted: Who holds what they need from now on, in the order in which they should go on.
        later: Who is first in their lane and lacks only time, and the moment at which to call :func:`due` for
            them. Told once, and again when they ask: so each needs one timer, for the earliest moment told.
    """

    granted: tuple[T, ...] = ()
    later: tuple[tuple[T, float], ...] = ()


NOBODY: Turn[Any] = Turn()
"""Nothing came of it."""


class _Lane:
    """Those who wait for the same, in order, and how the first of them is doing. Never empty while it is known."""

    __slots__ = (
        "_slowest",
        "begins",
        "insists",
        "key",
        "needs",
        "passed",
        "passed_by",
        "place",
        "told",
        "waiters",
    )

    def __init__(self, key: _Key, place: int) -> None:
        self.key = key
        self.needs, self.begins, _ = key
        self.waiters: OrderedDict[Any, int] = OrderedDict()  # quick to leave, also in the middle
        self._slowest: tuple[Needs, Needs, Needs] | None = None
        self._set_first(place)

    def _set_first(self, place: int) -> None:
        self.place = place
        self.told = inf  # the moment at which somebody will ask again
        self.passed = 0
        self.passed_by = -1
        self.insists = False

    def add(self, who: Any, place: int) -> None:
        if not self.waiters:
            for capacity in self.needs:
                capacity._lanes[self.key] = self
        self.waiters[who] = place
        for capacity in self.needs:
            capacity.waiting += 1

    def remove(self, who: Any) -> None:
        place = self.waiters.pop(who)
        for capacity in self.needs:
            capacity.waiting -= 1
        if place == self.place:
            self._next_is_first()

    def _next_is_first(self) -> None:
        if self.insists:
            for capacity in self.needs:
                del capacity._insistent[self]
        if self.waiters:
            self._set_first(next(iter(self.waiters.values())))
            return
        for capacity in self.needs:
            del capacity._lanes[self.key]

    def lost_to(self, place: int) -> None:
        """The last of something went to ``place``, which is behind."""
        if place == self.passed_by:
            return  # several things at once are one loss
        self.passed_by = place
        self.passed += 1
        if self.passed <= PATIENCE or self.insists:
            return
        self.insists = True
        for capacity in self.needs:
            capacity._insistent[self] = None

    def kept(self, now: float) -> tuple[Needs, Needs]:
        """Beginnings of these and places in those are kept, for the first, who insists.

        One thing is kept only when all that come slower are there, gates before times before other places: else
        a place would stand empty until tomorrow because a rate has its next beginning then, or for as long as the
        only GPU is busy. What is kept is not lost to somebody behind, so it is kept until all is there.
        """
        gates, by_period, by_size = self._slowest_first()
        if any(gate.in_use >= gate._most for gate in gates):
            return (), ()
        for n, capacity in enumerate(by_period):
            if capacity._opens(now) > now:
                return by_period[: n + 1], gates
        for n, capacity in enumerate(by_size):
            if capacity.in_use >= capacity._most:
                return by_period, gates + by_size[: n + 1]
        return by_period, gates + by_size

    def _slowest_first(self) -> tuple[Needs, Needs, Needs]:
        if self._slowest is None:
            gates = tuple(capacity for capacity in self.needs if capacity.is_gate)
            timed = self.needs if self.begins else ()
            by_period = sorted(timed, key=lambda capacity: capacity.rate.period if capacity.rate else 0)[::-1]
            others = (capacity for capacity in self.needs if not capacity.is_gate)
            self._slowest = (
                gates,
                tuple(by_period),
                tuple(sorted(others, key=lambda capacity: capacity._most)),
            )
        return self._slowest


def acquire(who: Hashable, needs: Needs, *, ahead: bool, begins: bool, now: float) -> bool | float:
    """Take all of ``needs`` for ``who``, or queue him.

    Args:
        who: Who is named in the :class:`Turn` that grants it later.
        needs: What to take.
        ahead: Whether he goes before those of whom this is not said: he continues what has begun.
        begins: Whether an attempt begins: it counts in the rates and waits for pauses. A parent that comes
            back from waiting for its children begins nothing.
        now: The time.

    Returns:
        True: taken. Otherwise he is queued, and it is False when somebody has to release or withdraw first, or
        the moment at which to call :func:`due` with his needs. That may be ``now``, and a moment may be 0.0: ask
        whether it ``is False``.
    """
    for capacity in needs:
        if (
            capacity._lanes
            or capacity.in_use >= capacity._most
            or (begins and capacity._opens(now) > now)  # last: it costs most
        ):
            return _take_or_queue(who, (needs, begins, ahead), now)
    _take(needs, begins=begins, now=now)
    return True


def release(needs: Needs, *, now: float) -> Turn[Any]:
    """Give ``needs`` back; who goes now."""
    waited_for = False
    for capacity in needs:
        assert capacity.in_use > 0, f"{capacity!r} was given back more often than it was taken"
        capacity.in_use -= 1
        if capacity._lanes:
            waited_for = True
    if not waited_for:
        return NOBODY
    lane = _lane_of_successors(needs)
    if lane is None:
        return due(needs, now=now)
    who = next(iter(lane.waiters))
    lane.remove(who)
    _take(needs, begins=lane.begins, now=now)
    return Turn((who,))


def _lane_of_successors(needs: Needs) -> _Lane | None:
    """The only lane of those who wait for any of ``needs``, where they wait for all of it, and not for time.

    Whoever gives that back hands it over to the first of them: then all is as before, when nobody could go.
    """
    found: _Lane | None = None
    for capacity in needs:
        if len(capacity._lanes) != 1 or capacity.rate is not None or capacity.paused_until != -inf:
            return None
        if found is None:
            (found,) = capacity._lanes.values()
    return found if found is not None and found.needs == needs and not found.insists else None


def due(needs: Needs, *, now: float, who: Hashable = None) -> Turn[Any]:
    """Who goes now of those who wait for any of ``needs``: a pause was set, or the moment told to ``who`` has come.

    The timer of ``who`` is spent: if he still lacks only time he is told another moment, whatever he was told before.
    """
    for capacity in needs:
        capacity._see(now)
    line = _line(needs)
    if who is not None:
        for _, lane in line:
            if who == next(iter(lane.waiters)):
                lane.told = -inf
    if any(capacity._insistent for capacity in needs):
        line += _set_free_by(needs, -1)
    return _serve(line, now)


def withdraw(who: Hashable, needs: Needs, *, begins: bool, now: float) -> Turn[Any] | None:
    """Take ``who`` out of the queue; who goes now instead, or None if he was not in it."""
    lane = _lane_of(who, needs, begins=begins)
    if lane is None:
        return None
    if lane.waiters[who] != lane.place:
        lane.remove(who)
        return NOBODY
    held_up_others = lane.insists
    lane.remove(who)
    if held_up_others:
        return due(needs, now=now)
    return _serve([(lane.place, lane)], now)  # if he lacks only time, the next is told when


def _lane_of(who: Hashable, needs: Needs, *, begins: bool) -> _Lane | None:
    if not needs:
        return None
    for ahead in (True, False):
        lane = needs[0]._lanes.get((needs, begins, ahead))
        if lane is not None and who in lane.waiters:
            return lane
    return None


def _take(needs: Needs, *, begins: bool, now: float) -> None:
    for capacity in needs:
        capacity.in_use += 1
        if begins and capacity.rate is not None:
            capacity._begun.append(max(now, capacity._noted))


def _take_or_queue(who: Hashable, key: _Key, now: float) -> bool | float:
    needs, begins, ahead = key
    for capacity in needs:
        capacity._see(now)
    place = next(_arrivals) + (0 if ahead else _NEW_STARTS)
    lane = needs[0]._lanes.get(key)
    if lane is not None:
        if who not in lane.waiters:
            lane.add(who, place)
        return now if lane.told <= now else False
    when = _obstacle(needs, place, begins=begins, now=now)
    if when <= now:
        if not _others_may_go(needs, place, now):
            _take(needs, begins=begins, now=now)
            _note_losses(needs, place, begins=begins)
            return True
        when = now
    lane = _Lane(key, place)
    lane.add(who, place)
    if when == inf:
        return False
    lane.told = when
    return when


def _others_may_go(needs: Needs, place: int, now: float) -> bool:
    """Whether somebody in front may go, unknown to him, or others if who insists loses something to ``place``."""
    for capacity in needs:
        if any(lane.place > place for lane in capacity._insistent):
            return True
        if any(lane.told <= now and lane.place < place for lane in capacity._lanes.values()):
            return True
    return False


def _obstacle(needs: Needs, place: int, *, begins: bool, now: float) -> float:
    """The moment at which to look again: not after ``now`` if nothing is missing, infinite if it is not to be known."""
    when = -inf
    insistent = False
    for capacity in needs:
        if capacity.in_use >= capacity._most:
            return inf
        if begins and (opens := capacity._opens(now)) > when:
            when = opens
        if capacity._insistent:
            insistent = True
    if when > now or not insistent:
        return when
    return _obstacle_of_kept(needs, place, begins=begins, now=now)


def _obstacle_of_kept(needs: Needs, place: int, *, begins: bool, now: float) -> float:
    """As :func:`_obstacle`, where nothing is missing but what is kept for those in front."""
    when = -inf
    for capacity in needs:
        beginnings, places = capacity._kept(place, now)
        if capacity.in_use + places >= capacity._most:
            return inf
        if begins:
            when = max(when, capacity._opens(now, beginnings))
    return when


def _note_losses(needs: Needs, place: int, *, begins: bool) -> None:
    for capacity in needs:
        if capacity._lanes and capacity._gave_its_last(begins=begins):
            for lane in capacity._lanes.values():
                if lane.place < place:
                    lane.lost_to(place)


def _line(needs: Iterable[Capacity]) -> _Line:
    return [(lane.place, lane) for capacity in needs for lane in capacity._lanes.values()]


def _serve(line: _Line, now: float) -> Turn[Any]:
    """Let go who can of the first in these lanes and of those whom that sets free, in the order of the line."""
    granted: list[Any] = []
    later: dict[_Lane, tuple[Any, float]] = {}
    heapify(line)  # places are unique, so lanes are never compared
    while line:
        place, lane = heappop(line)
        if place != lane.place or not lane.waiters or (line and line[0][0] == place):
            continue  # gone, or named twice
        who = next(iter(lane.waiters))
        when = _obstacle(lane.needs, place, begins=lane.begins, now=now)
        if when > now:
            if when < lane.told or lane.told <= now:
                lane.told = when
                if when < inf:
                    later[lane] = who, when
            continue
        if sooner := _may_go_before(lane, now):
            for entry in (*sooner, (place, lane)):
                heappush(line, entry)
            continue
        lane.remove(who)
        later.pop(lane, None)
        _take(lane.needs, begins=lane.begins, now=now)
        _note_losses(lane.needs, place, begins=lane.begins)
        granted.append(who)
        if lane.waiters:
            heappush(line, (lane.place, lane))
        for entry in _set_free_by(lane.needs, place):
            heappush(line, entry)
    return Turn(tuple(granted), tuple(later.values())) if granted or later else NOBODY


def _may_go_before(lane: _Lane, now: float) -> _Line:
    """Who stands in front, and whose time has come although nobody has asked yet."""
    return [entry for entry in _line(lane.needs) if entry[1].told <= now and entry[0] < lane.place]


def _set_free_by(needs: Needs, place: int) -> _Line:
    """Who may go because somebody who insists, behind ``place``, lost one of ``needs``, and so keeps less now."""
    affected = {
        other
        for capacity in needs
        for lane in capacity._insistent
        if lane.place > place
        for other in lane.needs
    }
    return _line(affected) if affected else []
