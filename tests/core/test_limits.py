"""Limits: never more than there is, all at once or nothing, in order, and nobody is forgotten or passed for ever."""

from __future__ import annotations

import random
import sys
from datetime import timedelta
from math import inf
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from weft.core import limits
from weft.core.limits import NOBODY, Capacity, Rate, acquire, due, release, withdraw
from weft.errors import DefinitionError

# Rates, as users write them


@pytest.mark.parametrize(
    ("written", "count", "period"),
    [
        ("500/min", 500, 60.0),
        ("10/s", 10, 1.0),
        ("1000/h", 1000, 3600.0),
        ("3/2s", 3, 2.0),
        ("3 / 2.5 s", 3, 2.5),
        (" 100/day ", 100, 86400.0),
        ("7/sec", 7, 1.0),
        ("7/second", 7, 1.0),
        ("7/10 seconds", 7, 10.0),
        ("7/minute", 7, 60.0),
        ("7/5 minutes", 7, 300.0),
        ("7/Hour", 7, 3600.0),
        ("7/d", 7, 86400.0),
        ("1/250ms", 1, 0.25),
        ((500, 60.0), 500, 60.0),
        ([500, 60], 500, 60.0),
        ((2, timedelta(minutes=1)), 2, 60.0),
        (Rate(4, 2), 4, 2.0),
    ],
)
def test_a_rate_is_read(written, count, period):
    assert Rate.parse(written) == Rate(count, period)
    assert type(Rate.parse(written).period) is float


@pytest.mark.parametrize(
    "written",
    [
        "", "500", "500/", "/min", "500/fortnight", "500 per min", "-5/s", "1.5/s", "5/-2s", "5/s/s", "٣/s", "1e3/s",
        "5/min extra", b"5/s", 500, 5.0, None, True, (5,), (5, 1, 1), {5: 1}, {5, 1},
    ],
)  # fmt: skip
def test_what_is_no_rate_is_refused_with_what_would_do(written):
    with pytest.raises(DefinitionError) as caught:
        Rate.parse(written)
    assert repr(written) in str(caught.value)
    assert '"500/min"' in str(caught.value)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("0/s", "count of a rate must be at least 1, not 0"),
        ("5/0s", "period of a rate must be a finite number of seconds greater than 0, not 0.0"),
        ((5.0, 1), "count of a rate must be a whole number"),
        ((True, 1), "count of a rate must be a whole number"),
        ((5, inf), "period of a rate"),
        ((5, "1"), "period of a rate"),
        ((5, timedelta()), "period of a rate"),
    ],
)
def test_numbers_that_can_never_work_are_refused(written, says):
    with pytest.raises(DefinitionError, match=says):
        Rate.parse(written)


@pytest.mark.parametrize("concurrent", [0, -1, True, 1.0, "3"])
def test_a_capacity_of_no_number_is_refused(concurrent):
    with pytest.raises(DefinitionError, match="concurrent must be"):
        Capacity("gpu", concurrent=concurrent)


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.sampled_from(["s", "min", "h", "day"]))
def test_what_is_written_is_what_is_meant(count, number, unit):
    seconds = {"s": 1, "min": 60, "h": 3600, "day": 86400}[unit]
    assert Rate.parse(f"{count}/{number}{unit}") == Rate(count, number * seconds)


# One capacity


def take(who, needs, *, ahead=False, begins=True, now=0.0):
    return acquire(who, needs, ahead=ahead, begins=begins, now=now)


def test_what_has_begun_goes_before_what_is_new():
    needs = (Capacity("run", concurrent=1),)
    assert take("a", needs) is True
    assert take("new", needs) is False
    assert take("newer", needs) is False
    assert take("child", needs, ahead=True) is False
    assert take("parent", needs, ahead=True, begins=False) is False
    assert (needs[0].in_use, needs[0].waiting) == (1, 4)
    assert [release(needs, now=0.0).granted for _ in range(5)] == [
        ("child",), ("parent",), ("new",), ("newer",), (),
    ]  # fmt: skip
    assert (needs[0].in_use, needs[0].waiting) == (0, 0)


def test_who_needs_nothing_goes():
    assert take("a", ()) is True
    assert release((), now=0.0) is NOBODY
    assert due((), now=0.0) is NOBODY
    assert withdraw("a", (), begins=True, now=0.0) is None


def test_any_number_at_once_where_none_is_given():
    needs = (Capacity("any"),)
    assert all(take(n, needs) is True for n in range(1000))
    assert needs[0].in_use == 1000


def test_giving_back_what_was_not_taken_is_noticed():
    with pytest.raises(AssertionError, match="'gpu': 0 of 2 in use"):
        release((Capacity("gpu", concurrent=2),), now=0.0)


def test_asking_twice_is_waiting_once():
    needs = (Capacity("gpu", concurrent=1),)
    take("a", needs)
    assert take("b", needs) is False
    assert take("b", needs) is False
    assert needs[0].waiting == 1
    assert release(needs, now=0.0).granted == ("b",)
    assert release(needs, now=0.0) is NOBODY


def test_a_rate_is_a_sliding_window():
    """Not a bucket that is filled at the full minute: two at 0.9 leave nothing for 1.1."""
    needs = (Capacity("api", rate=Rate(2, 1.0)),)
    assert take("a", needs, now=0.5) is True
    assert take("b", needs, now=0.9) is True
    assert take("c", needs, now=1.1) == 1.5
    assert take("d", needs, now=1.1) is False  # not the first: c is told
    turn = due(needs, now=1.5)
    assert (turn.granted, turn.later) == (("c",), (("d", 1.9),))
    assert due(needs, now=1.7) is NOBODY  # told once
    assert due(needs, now=1.9).granted == ("d",)


def test_giving_back_does_not_undo_a_beginning():
    needs = (Capacity("api", concurrent=5, rate=Rate(1, 10.0)),)
    take("a", needs)
    release(needs, now=1.0)
    assert take("b", needs, now=2.0) == 10.0


def test_who_comes_back_begins_nothing():
    """A parent that waited for its children is not held up by rate or pause, and does not use the rate up."""
    needs = (Capacity("api", concurrent=2, rate=Rate(1, 10.0)),)
    needs[0].pause(5.0)
    assert take("parent", needs, ahead=True, begins=False) is True
    assert take("a", needs, now=5.0) is True
    assert take("b", needs, now=6.0, begins=False) is False
    assert release(needs, now=6.0).granted == ("b",)


def test_who_waits_for_time_does_not_hold_up_who_comes_back():
    needs = (Capacity("api", concurrent=1, rate=Rate(1, 10.0)),)
    take("a", needs)
    release(needs, now=1.0)
    assert take("b", needs, now=1.0, ahead=True) == 10.0
    assert take("parent", needs, now=2.0, ahead=True, begins=False) is True


def test_a_pause_holds_up_everybody_once():
    """Ten errors that ask for the same pause are one pause; a shorter one later changes nothing."""
    needs = (Capacity("api", concurrent=9),)
    for _ in range(10):
        needs[0].pause(30.0)
    needs[0].pause(20.0)
    assert take("a", needs, now=1.0) == 30.0
    assert due(needs, now=20.0) is NOBODY
    assert due(needs, now=30.0).granted == ("a",)


def test_who_asks_is_told_though_he_was_told_before():
    """1. Both have a timer for 10. 2. That of b fires: c is told 20. 3. That of c fires before c hears of it."""
    api, gpu = Capacity("api", rate=Rate(1, 10.0)), Capacity("gpu", concurrent=9)
    take("a", (api,))
    assert take("b", (api,), now=1.0) == 10.0
    assert take("c", (api, gpu), now=1.0) == 10.0
    assert due((api,), now=10.0, who="b").later == (("c", 20.0),)
    assert due((api, gpu), now=10.0) is NOBODY
    assert due((api, gpu), now=10.0, who="c").later == (("c", 20.0),)


def test_a_pause_that_is_prolonged_is_told_anew():
    needs = (Capacity("api"),)
    needs[0].pause(30.0)
    assert take("a", needs, now=1.0) == 30.0
    needs[0].pause(40.0)
    assert due(needs, now=2.0) is NOBODY  # who was told 30 asks then
    assert due(needs, now=30.0).later == (("a", 40.0),)
    assert due(needs, now=40.0).granted == ("a",)


def test_the_next_is_told_when_the_one_who_was_leaves():
    needs = (Capacity("api", rate=Rate(1, 10.0)),)
    take("a", needs)
    assert take("b", needs, now=1.0) == 10.0
    assert take("c", needs, now=1.0) is False
    assert take("d", needs, now=1.0) is False
    assert withdraw("c", needs, begins=True, now=2.0) is NOBODY
    assert withdraw("c", needs, begins=True, now=2.0) is None
    assert withdraw("b", needs, begins=False, now=2.0) is None  # he waits for something else
    assert withdraw("b", needs, begins=True, now=3.0).later == (("d", 10.0),)
    assert due(needs, now=10.0).granted == ("d",)


def test_who_comes_when_the_time_has_come_does_not_slip_in_first():
    """The timer of the one who waits is a little late; the newcomer asks in that very moment."""
    api, gpu = Capacity("api", rate=Rate(1, 10.0)), Capacity("gpu", concurrent=1)
    take("a", (api,))
    assert take("b", (api,), now=1.0) == 10.0
    assert take("c", (api, gpu), now=10.5) == 10.5
    turn = due((api, gpu), now=10.5)
    assert (turn.granted, turn.later) == (("b",), (("c", 20.5),))


def test_who_is_freed_when_the_time_has_come_does_not_slip_in_first():
    api, gpu = Capacity("api", rate=Rate(1, 10.0)), Capacity("gpu", concurrent=1)
    take("a", (api,))
    take("busy", (gpu,))
    assert take("b", (api,), now=1.0) == 10.0
    assert take("c", (api, gpu), now=2.0) is False
    turn = release((gpu,), now=10.5)
    assert (turn.granted, turn.later) == (("b",), (("c", 20.5),))


def test_another_clock_forgets_what_the_old_one_noted():
    needs = (Capacity("api", rate=Rate(1, 1000.0)),)
    take("a", needs, now=500.0)
    needs[0].pause(5000.0)
    assert take("b", needs, now=501.0) == 5000.0
    assert take("c", needs, now=7.0) == 7.0  # b may go: ask at once
    assert due(needs, now=7.0).granted == ("b",)
    assert due(needs, now=1007.0).granted == ("c",)


def test_a_loop_that_is_late_is_not_another_clock():
    """Two threads note the time, the later one asks first: the window still holds."""
    needs = (Capacity("api", rate=Rate(2, 10.0)),)
    assert take("a", needs, now=5.0) is True
    assert take("b", needs, now=4.5) is True
    assert take("c", needs, now=4.6) == 15.0
    assert due(needs, now=14.9) is NOBODY  # b counts as begun at 5.0, when it really did
    assert due(needs, now=15.0).granted == ("c",)
    assert due(needs, now=25.0) is NOBODY
    assert take("d", needs, now=24.9) is True  # it is 25.0
    assert take("e", needs, now=24.9) is True


def test_a_beginning_is_not_noted_earlier_than_it_was():
    needs = (Capacity("api", rate=Rate(1, 10.0)),)
    assert due(needs, now=5.0) is NOBODY
    assert take("a", needs, now=4.5) is True
    assert take("b", needs, now=5.0) == 15.0


# Several capacities


def test_all_at_once_or_nothing():
    a, b = Capacity("a", concurrent=1), Capacity("b", concurrent=1)
    take("holder", (b,))
    assert take("both", (a, b)) is False
    assert (a.in_use, a.waiting, b.in_use, b.waiting) == (0, 1, 1, 1)
    assert take("only a", (a,)) is True  # not held up by who waits for b
    assert release((b,), now=0.0) is NOBODY
    assert release((a,), now=0.0).granted == ("both",)
    assert (a.in_use, a.waiting, b.in_use, b.waiting) == (1, 0, 1, 0)


def test_one_release_can_let_several_go():
    a, b = Capacity("a", concurrent=2), Capacity("b", concurrent=1)
    take("holder", (a, b))
    take("other", (a,))
    take("young", (b,))
    take("old", (a,))
    assert release((a, b), now=0.0).granted == ("young", "old")


def test_the_order_of_arrival_holds_between_lanes():
    a, b = Capacity("a", concurrent=1), Capacity("b")
    take("holder", (a,))
    for n in range(6):
        take(n, (a,) if n % 2 else (a, b))
    assert [release((a,), now=0.0).granted for _ in range(6)] == [(n,) for n in range(6)]


# Being passed


def alternate(a, b, young, *, times):
    """Never both free at once: one of the young takes a before b is given back, and b before a is.

    How often a young one went before somebody who needs both did.
    """
    take("holder of a", (a,))
    take("holder of b", (b,))
    assert take("old", (a, b)) is False
    for n in range(times):
        mine = (a, b)[n % 2]
        assert take(young + n, (mine,)) is not True
        turn = release((mine,), now=0.0)
        if "old" in turn.granted:
            return n
        if not turn.granted:
            # It is kept for old. He goes when the other is free too.
            assert release(((a, b)[(n + 1) % 2],), now=0.0).granted == ("old",)
            return n
    return times


@pytest.mark.parametrize("size", [1, 3])
def test_nobody_is_passed_without_end(size):
    a, b = Capacity("a", concurrent=size), Capacity("b", concurrent=size)
    for n in range(size - 1):
        take(-n, (a, b))
    assert limits.PATIENCE == 64
    assert 64 <= alternate(a, b, 1000, times=1000) <= 66


def test_without_insistence_somebody_would_be(monkeypatch):
    """The scenario above is one that starves: else it would prove nothing."""
    monkeypatch.setattr(limits, "PATIENCE", inf)
    a, b = Capacity("a", concurrent=1), Capacity("b", concurrent=1)
    assert alternate(a, b, 1000, times=1000) == 1000


def make_insistent(monkeypatch, who, needs, taken):
    """Let ``who`` wait for ``needs`` and be passed in ``taken``, which is free, once too often."""
    monkeypatch.setattr(limits, "PATIENCE", 0)
    assert take(who, needs) is not True
    assert take("passes", taken) is True


def test_a_place_that_is_kept_is_one_place(monkeypatch):
    """Who insists on one of ten does not bring the other nine to a stop."""
    a, b = Capacity("a", concurrent=10), Capacity("b", concurrent=20)
    for n in range(10):
        take(f"a{n}", (a,))
    for n in range(19):
        take(f"b{n}", (b,))
    make_insistent(monkeypatch, "old", (b, a), (b,))
    for _ in range(20):
        assert release((b,), now=0.0) is NOBODY
    # a, the smaller one, is not there yet: nothing of b is kept
    for n in range(20):
        assert take(f"young{n}", (b,)) is True
    release((b,), now=0.0)
    release((b,), now=0.0)
    assert release((a,), now=0.0).granted == ("old",)
    assert take("young", (a,)) is False


def test_what_is_slowest_to_come_is_kept_first(monkeypatch):
    """A busy gpu keeps no place of the run empty, for however long it is busy; but it is next, and then all is kept."""
    run, gpu = Capacity("run", concurrent=2), Capacity("gpu", concurrent=1)
    take("long", (gpu,))
    take("other", (run,))
    make_insistent(monkeypatch, "old", (run, gpu), (run,))
    for _ in range(100):
        assert release((run,), now=0.0) is NOBODY
        assert take("quick", (run,)) is True
    assert release((gpu,), now=0.0) is NOBODY
    assert take("young", (gpu,)) is False
    assert take("younger", (run,)) is False
    assert release((run,), now=0.0).granted == ("old",)
    assert release((run,), now=0.0).granted == ("younger",)


@pytest.mark.parametrize("rate", [None, Rate(1, 1.0)])
def test_the_children_of_who_is_in_the_gate_are_not_held_up_by_who_waits_before_it(monkeypatch, rate):
    """1. parent is in the gate and waits for its children. 2. old waits for run and gate, and is passed by a child.

    3. Were run kept for old, the next child would wait for old, old for parent, and parent for its child.
    """
    run, gate = Capacity("run", concurrent=1, rate=rate), Capacity("gate", concurrent=1, is_gate=True)
    monkeypatch.setattr(limits, "PATIENCE", 0)
    assert take("parent", (run, gate), ahead=True) is True
    release((run,), now=0.5)  # it makes a child
    assert take("old", (run, gate), ahead=True, now=1.0) is False
    for n in range(1, 5):
        assert take(n, (run,), ahead=True, now=float(n)) is True
        release((run,), now=n + 0.5)
    assert take("parent", (run,), ahead=True, begins=False, now=4.6) is True
    release((run,), now=4.7)
    assert release((gate,), now=5.0).granted == ("old",)


def test_who_waits_for_tomorrow_keeps_no_place_until_then(monkeypatch):
    day, gpu = Capacity("day", rate=Rate(1, 1000.0)), Capacity("gpu", concurrent=1)
    take("first", (day,))
    make_insistent(monkeypatch, "old", (day, gpu), (gpu,))
    release((gpu,), now=1.0)
    assert take("young", (gpu,), now=2.0) is True
    assert take("younger", (gpu,), now=999.0) is False
    assert due((day, gpu), now=1000.0) is NOBODY  # his day has come, and the gpu is next
    assert take("youngest", (day,), now=1001.0) is False
    assert release((gpu,), now=1002.0).granted == ("old",)


def test_what_somebody_in_front_takes_sets_free_what_was_kept_behind_it(monkeypatch):
    """Nobody gave a place of the gpu back, and yet who waits for it goes: it is of no use to old before tomorrow."""
    other, day = Capacity("other", concurrent=1), Capacity("day", rate=Rate(1, 1000.0))
    gpu, disk = Capacity("gpu", concurrent=1), Capacity("disk", concurrent=2)
    take("holder", (other,))
    take("holder", (gpu,))
    take("holder", (disk,))
    make_insistent(monkeypatch, "old", (day, gpu, disk), (disk,))
    assert take("first", (other, day), ahead=True) is False
    assert release((gpu,), now=0.0) is NOBODY
    assert take("young", (gpu,)) is False
    turn = release((other,), now=1.0)
    assert (turn.granted, turn.later) == (("first", "young"), ())


def test_a_pause_gives_free_what_was_kept(monkeypatch):
    a, b = Capacity("a", concurrent=1), Capacity("b", concurrent=2)
    take("holder", (b,))
    take("holder", (a,))
    make_insistent(monkeypatch, "old", (a, b), (b,))
    assert release((a,), now=0.0) is NOBODY
    assert take("young", (a,)) is False  # kept for old
    a.pause(60.0)
    assert due((a,), now=1.0).later == (("young", 60.0),)
    b.pause(60.0)
    assert (
        take("parent", (a,), begins=False, now=1.0) is True
    )  # a paused old keeps nothing from those who may go
    assert withdraw("old", (a, b), begins=True, now=2.0) is NOBODY


def test_two_rates_that_never_open_together_do_not_starve_who_needs_both():
    """Each is used up by others in the moment it opens, half a period apart."""
    a, b = Capacity("a", rate=Rate(1, 10.0)), Capacity("b", rate=Rate(1, 10.0))
    take("a0", (a,), now=0.0)
    take("b0", (b,), now=5.0)
    alarms = {"old": (take("old", (a, b), now=5.0), (a, b))}
    for n in range(200):
        for each in ((a,), (b,)):
            when = take(("young", n, each[0].name), each, now=5.0)
            if when is not False:
                alarms["young", n, each[0].name] = when, each
    passed = 0
    while True:
        who = min(alarms, key=lambda each: alarms[each][0])
        now, needs = alarms.pop(who)
        turn = due(needs, now=now)
        if "old" in turn.granted:
            break
        passed += len(turn.granted)
        for told, when in turn.later:
            assert when > now
            alarms[told] = when, {"a": (a,), "b": (b,)}[told[2]] if told != "old" else (a, b)
    assert 60 <= passed <= 68


def test_who_is_new_does_not_hold_up_what_has_begun(monkeypatch):
    """Else ten thousand new starts that insist would all begin before one of them ends."""
    run = Capacity("run", concurrent=1)
    monkeypatch.setattr(limits, "PATIENCE", 0)
    take("a", (run,))
    take("new", (run,))
    for n in range(100):
        assert take(n, (run,), ahead=True) is False
        assert release((run,), now=0.0).granted == (n,)
    assert release((run,), now=0.0).granted == ("new",)


def test_what_was_kept_for_one_who_leaves_is_for_the_others(monkeypatch):
    a, b = Capacity("a", concurrent=1), Capacity("b", concurrent=2)
    take("holder", (b,))
    take("holder", (a,))
    make_insistent(monkeypatch, "old", (a, b), (b,))
    release((a,), now=0.0)
    assert take("young", (a,)) is False
    assert withdraw("old", (a, b), begins=True, now=0.0).granted == ("young",)
    assert not a._insistent
    assert not b._insistent


# Against a model


class Waiter:
    def __init__(self, who, needs, ahead, begins):
        self.who, self.needs, self.ahead, self.begins = who, needs, ahead, begins
        self.passed = 0

    @property
    def lane(self):
        return self.needs, self.ahead, self.begins


class Books:
    """What a capacity should have, kept the slow way: nothing is dropped, everything is counted anew."""

    def __init__(self, number, concurrent, rate, is_gate=False):
        self.number, self.concurrent, self.rate, self.is_gate = number, concurrent, rate, is_gate
        self.held, self.begun, self.paused_until = 0, [], -inf

    def has_place(self, kept=0):
        return self.concurrent is None or self.held + kept < self.concurrent

    def has_time(self, now, kept=0):
        if self.paused_until > now:
            return False
        return (
            self.rate is None or sum(t + self.rate.period > now for t in self.begun) + kept < self.rate.count
        )

    def moments(self):
        return [self.paused_until, *(t + self.rate.period for t in self.begun if self.rate)]


class Model:
    """A list of those who wait, gone through from the front again and again until nobody can go."""

    def __init__(self, books):
        self.books = books
        self.line = []  # in the order in which they should go

    def add(self, waiter):
        behind = (n for n, each in enumerate(self.line) if waiter.ahead and not each.ahead)
        self.line.insert(next(behind, len(self.line)), waiter)

    def is_first(self, waiter):
        return next(each for each in self.line if each.lane == waiter.lane) is waiter

    def kept(self, waiter, now):
        """Numbers of the capacities of which (a beginning, a place) is kept for him."""
        if not self.is_first(waiter) or waiter.passed <= limits.PATIENCE:
            return [], []
        mine = [self.books[n] for n in waiter.needs]
        if any(book.is_gate and not book.has_place() for book in mine):
            return [], []
        beginnings, places = [], [book.number for book in mine if book.is_gate]
        if waiter.begins:
            # those of the same period as the implementation happens to have them: the last named first
            for book in sorted(mine, key=lambda book: book.rate.period if book.rate else 0)[::-1]:
                beginnings.append(book.number)
                if not book.has_time(now):
                    return beginnings, places
        others = [book for book in mine if not book.is_gate]
        for book in sorted(others, key=lambda book: book.concurrent or inf):
            places.append(book.number)
            if not book.has_place():
                break
        return beginnings, places

    def may_go(self, waiter, now):
        in_front = [self.kept(each, now) for each in self.line[: self.line.index(waiter)]]
        for n in waiter.needs:
            if not self.books[n].has_place(sum(n in places for _, places in in_front)):
                return False
            if waiter.begins and not self.books[n].has_time(now, sum(n in begun for begun, _ in in_front)):
                return False
        return self.is_first(waiter)

    def go(self, waiter, now):
        for n in waiter.needs:
            self.books[n].held += 1
            if waiter.begins:
                self.books[n].begun.append(now)
        exhausted = {n for n in waiter.needs if self.gave_its_last(n, waiter, now)}
        behind = False
        firsts = [each for each in self.line if each is not waiter and self.is_first_without(each, waiter)]
        for each in self.line:
            behind = behind or each is waiter
            if not behind and each in firsts and exhausted & set(each.needs):
                each.passed += 1
        self.line.remove(waiter)

    def is_first_without(self, each, gone):
        return next(other for other in self.line if other.lane == each.lane and other is not gone) is each

    def gave_its_last(self, n, waiter, now):
        book = self.books[n]
        unpaused = Books(n, None, book.rate)
        unpaused.begun = book.begun
        return not book.has_place() or (waiter.begins and not unpaused.has_time(now))

    def settle(self, now):
        granted = []
        while (waiter := next((each for each in self.line if self.may_go(each, now)), None)) is not None:
            self.go(waiter, now)
            granted.append(waiter)
        return granted


class World:
    """Does what an engine does: it asks again at the moments that it was told, and at no other."""

    def __init__(self, kinds):
        self.capacities = [
            Capacity(str(n), concurrent=c, rate=r, is_gate=g) for n, (c, r, g) in enumerate(kinds)
        ]
        self.model = Model([Books(n, c, r, g) for n, (c, r, g) in enumerate(kinds)])
        self.now, self.next = 0.0, 0
        self.waiting, self.holding, self.alarms = {}, {}, {}

    def real(self, waiter):
        return tuple(self.capacities[n] for n in waiter.needs)

    def check(self, granted):
        """What the real one granted is what the model grants, and in the order of the line within each lane."""
        expected = self.model.settle(self.now)
        assert sorted(granted) == sorted(each.who for each in expected)
        for lane in {each.lane for each in expected}:
            mine = [each.who for each in expected if each.lane == lane]
            assert [who for who in granted if who in mine] == mine
        for waiter in expected:
            self.holding[waiter.who] = waiter
            self.waiting.pop(waiter.who, None)
            self.alarms.pop(waiter.who, None)
        self.check_books()

    def check_books(self):
        for n, capacity in enumerate(self.capacities):
            book = self.model.books[n]
            assert capacity.in_use == book.held == sum(n in each.needs for each in self.holding.values())
            assert capacity.waiting == sum(n in each.needs for each in self.waiting.values())
            assert capacity.concurrent is None or capacity.in_use <= capacity.concurrent
            if book.rate:
                for begun, later in zip(book.begun, book.begun[book.rate.count :]):
                    assert begun + book.rate.period <= later

    def note(self, turn):
        assert len(set(turn.granted)) == len(turn.granted)
        for who, when in turn.later:
            assert who not in turn.granted
            assert self.now < when < inf
            self.alarms[who] = when
        for who in turn.granted:
            self.alarms.pop(who, None)
        return list(turn.granted)

    def ring(self):
        """Those whose time has come ask, in one: in turn, it would depend on the turn who has been passed how often."""
        granted = []
        while ready := [who for who, when in self.alarms.items() if when <= self.now]:
            needs = dict.fromkeys(capacity for who in ready for capacity in self.real(self.waiting[who]))
            for who in ready:
                del self.alarms[who]
            granted += self.note(due(tuple(needs), now=self.now, who=ready[-1]))
        return granted

    def acquire(self, needs, *, ahead, begins):
        waiter = Waiter(self.next, needs, ahead, begins)
        self.next += 1
        self.waiting[waiter.who] = waiter
        self.model.add(waiter)
        got = acquire(waiter.who, self.real(waiter), ahead=ahead, begins=begins, now=self.now)
        if got is True:
            self.check([waiter.who])
            return
        if got is not False:
            assert self.now <= got < inf
            self.alarms[waiter.who] = got
        self.check(self.ring())

    def release(self, who):
        waiter = self.holding.pop(who)
        for n in waiter.needs:
            self.model.books[n].held -= 1
        assert withdraw(who, self.real(waiter), begins=waiter.begins, now=self.now) is None
        self.check(self.note(release(self.real(waiter), now=self.now)))

    def withdraw(self, who):
        waiter = self.waiting.pop(who)
        self.alarms.pop(who, None)
        self.model.line.remove(waiter)
        turn = withdraw(who, self.real(waiter), begins=waiter.begins, now=self.now)
        assert turn is not None
        self.check(self.note(turn))
        assert withdraw(who, self.real(waiter), begins=waiter.begins, now=self.now) is None

    def pause(self, n, seconds):
        self.capacities[n].pause(self.now + seconds)
        self.model.books[n].paused_until = max(self.model.books[n].paused_until, self.now + seconds)
        self.check(self.note(due((self.capacities[n],), now=self.now)))

    def pass_time(self, seconds):
        """Stops at every moment at which anything could change, asked for or not."""
        until = self.now + seconds
        moments = {moment for book in self.model.books for moment in book.moments()}
        while True:
            upcoming = moments | set(self.alarms.values()) | {until}
            self.now = min(moment for moment in upcoming if moment > self.now or moment == until)
            self.check(self.ring())
            if self.now >= until:
                return

    def ask_for_no_reason(self, n):
        assert due((self.capacities[n],), now=self.now) is NOBODY

    def start_another_clock(self):
        assert due(tuple(self.capacities), now=self.now) is NOBODY  # all have seen how late it was
        self.now = 0.0
        self.alarms.clear()
        for book in self.model.books:
            book.begun, book.paused_until = [], -inf
        self.check(self.note(due(tuple(self.capacities), now=0.0)))

    def wind_up(self):
        """Everybody who waits goes, and nothing is left."""
        for _ in range(10_000):
            if not self.holding and not self.waiting:
                break
            for who in sorted(self.holding):
                self.release(who)
            self.pass_time(30.0)
        assert not self.waiting, "somebody waits though nobody holds anything"
        for capacity in self.capacities:
            assert (capacity.in_use, capacity.waiting) == (0, 0)
            assert not capacity._lanes
            assert not capacity._insistent
            assert len(capacity._begun) <= (capacity.rate.count if capacity.rate else 0)


COUNTS = st.none() | st.integers(1, 3)
RATES = st.none() | st.builds(Rate, st.integers(1, 3), st.sampled_from([1.0, 2.5, 10.0, 0.3]))
KINDS = st.tuples(COUNTS, RATES, st.sampled_from([False, False, True]))
STEPS = st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0, 2.5, 5.0, 30.0])


class Limits(RuleBasedStateMachine):
    @initialize(kinds=st.lists(KINDS, min_size=1, max_size=4), patience=st.integers(0, 3))
    def begin(self, kinds, patience):
        self.usual, limits.PATIENCE = limits.PATIENCE, patience
        self.world = World(kinds)
        self.numbers = st.sampled_from(range(len(kinds)))

    @rule(data=st.data(), ahead=st.booleans(), begins=st.sampled_from([True, True, False]))
    def acquire(self, data, ahead, begins):
        needs = data.draw(st.lists(self.numbers, unique=True, max_size=3))
        self.world.acquire(tuple(needs), ahead=ahead, begins=begins)

    @precondition(lambda self: self.world.holding)
    @rule(data=st.data())
    def release(self, data):
        self.world.release(data.draw(st.sampled_from(sorted(self.world.holding))))

    @precondition(lambda self: self.world.waiting)
    @rule(data=st.data())
    def withdraw(self, data):
        self.world.withdraw(data.draw(st.sampled_from(sorted(self.world.waiting))))

    @rule(data=st.data(), seconds=STEPS)
    def pause(self, data, seconds):
        self.world.pause(data.draw(self.numbers), seconds)

    @rule(seconds=STEPS)
    def pass_time(self, seconds):
        self.world.pass_time(seconds)

    @rule(data=st.data())
    def ask_for_no_reason(self, data):
        self.world.ask_for_no_reason(data.draw(self.numbers))

    @precondition(lambda self: self.world.now > 2)
    @rule()
    def start_another_clock(self):
        self.world.start_another_clock()

    def teardown(self):
        if not hasattr(self, "world"):
            return
        try:
            self.world.wind_up()
        finally:
            limits.PATIENCE = self.usual


Limits.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestLimits = Limits.TestCase


def random_kind(draw):
    rate = Rate(draw.randint(1, 3), draw.choice([1.0, 2.5, 10.0, 0.3])) if draw.random() < 0.5 else None
    return draw.choice([None, 1, 1, 2, 3]), rate, draw.random() < 0.15


def random_step(world, draw):
    n = draw.randrange(len(world.capacities))
    what = draw.random()
    if what < 0.40:
        needs = draw.sample(range(len(world.capacities)), draw.randint(1, min(3, len(world.capacities))))
        world.acquire(tuple(needs), ahead=draw.random() < 0.25, begins=draw.random() < 0.75)
    elif what < 0.70 and world.holding:
        world.release(draw.choice(sorted(world.holding)))
    elif what < 0.76 and world.waiting:
        world.withdraw(draw.choice(sorted(world.waiting)))
    elif what < 0.80:
        world.pause(n, draw.choice([0.1, 0.3, 1.0, 5.0]))
    elif what < 0.98:
        world.pass_time(draw.choice([0.0, 0.1, 0.3, 0.3, 0.7, 1.0, 2.5]))
    elif what < 0.99:
        world.ask_for_no_reason(n)
    elif world.now > 2:
        world.start_another_clock()


@pytest.mark.parametrize("block", range(4))
def test_long_scripts_do_as_the_model_says(block, monkeypatch):
    """Longer ones than the machine above makes, so that several insist at once."""
    for seed in range(block * 40, block * 40 + 40):
        print("seed", seed)
        draw = random.Random(seed)
        monkeypatch.setattr(limits, "PATIENCE", draw.randint(0, 3))
        world = World([random_kind(draw) for _ in range(draw.randint(1, 4))])
        for _ in range(150):
            random_step(world, draw)
        world.wind_up()


# An engine that is late, and a crowd


@pytest.mark.parametrize("seed", range(6))
def test_a_crowd_is_served_in_full_and_within_the_limits(seed):
    """Timers fire late and out of order, holders end at random, and more come all the time."""
    print("seed", seed)
    draw = random.Random(seed)
    kinds = [(1, None), (2, Rate(3, 2.0)), (None, Rate(2, 1.0)), (4, Rate(5, 7.0)), (6, None)]
    capacities = [Capacity(str(n), concurrent=c, rate=r) for n, (c, r) in enumerate(kinds)]
    begun = {capacity: [] for capacity in capacities}
    holding, waiting, alarms, since, now = {}, {}, {}, {}, 0.0
    longest = 0

    def went(whos):
        for who in whos:
            holding[who] = needs, begins = waiting.pop(who)[:2]
            for capacity in needs:
                if begins:
                    begun[capacity].append(now)

    def tell(turn):
        went(turn.granted)
        alarms.update(turn.later)

    for step in range(6000):
        now += draw.random() * 0.5
        if step < 4000 and len(waiting) < 40:
            needs, begins = tuple(draw.sample(capacities, draw.randint(1, 3))), draw.random() < 0.8
            waiting[step], since[step] = (needs, begins), step
            got = acquire(step, needs, ahead=draw.random() < 0.1, begins=begins, now=now)
            if got is True:
                went([step])
            elif got is not False:
                alarms[step] = got
        for who in [each for each in holding if draw.random() < 0.4]:
            tell(release(holding.pop(who)[0], now=now))
        for who in [each for each, when in alarms.items() if when <= now and draw.random() < 0.7]:
            del alarms[who]  # perhaps it was told a later moment while its timer fired
            if who in waiting:
                tell(due(waiting[who][0], now=now, who=who))
        longest = max([longest, *(step - since[who] for who in waiting)])
    assert not waiting, "served in the end, every one"
    assert longest < 2500
    for capacity in capacities:
        assert capacity.in_use == sum(capacity in needs for needs, _ in holding.values())
        if capacity.rate:
            times = begun[capacity]
            assert all(a + capacity.rate.period <= b for a, b in zip(times, times[capacity.rate.count :]))


# Size


def serve_two_lanes(size):
    a, b = Capacity("a", concurrent=2), Capacity("b", concurrent=10)
    take("x", (a,))
    take("y", (a,))
    for n in range(size):
        take(n, (a,))
        take(-1 - n, (a, b))
    served = []
    for _ in range(2 * size):
        served += release((a,), now=0.0).granted  # what else they hold is of no interest here
        if b.in_use == 10:
            b.in_use = 0
    assert sorted(served) == list(range(-size, size))


def leave_two_lanes(size):
    a, b = Capacity("a", concurrent=1), Capacity("b", concurrent=10)
    take("x", (a,))
    for n in range(size):
        take(n, (a,))
        take(-1 - n, (a, b))
    for n in range(size):
        withdraw(n, (a,), begins=True, now=0.0)
        withdraw(n - size, (a, b), begins=True, now=0.0)  # from the end
    assert (a.waiting, b.waiting) == (0, 0)


def calls_in(work, size):
    """How many functions are called, built-in ones too."""
    calls = 0

    def count(frame, event, _):
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work(size)
    finally:
        sys.setprofile(before)
    return calls


def seconds_of(work, size):
    start = process_time()
    work(size)
    return process_time() - start


@pytest.mark.parametrize("work", [serve_two_lanes, leave_two_lanes])
def test_a_long_line_costs_nothing_more(work):
    """A linear cost: what is counted, and what only the clock sees (a dict that is emptied from its front)."""
    assert calls_in(work, 2000) < 11 * calls_in(work, 200)
    small = min(seconds_of(work, 1250) for _ in range(3))
    assert seconds_of(work, 20_000) < 4 * 16 * small  # 16 times the work; squared, it would be 256 times
