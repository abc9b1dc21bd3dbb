"""Visibility: recorded outcomes are shown in the recorded batches, and nothing new before the last of them."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from weft.core.visibility import Visibility


class Recorded(NamedTuple):
    """What a journal says of an outcome."""

    identity: bytes
    ordinal: int
    batch: int


def name(number):
    return bytes([number])


def recorded(batches):
    """Records of these batches of numbers; the ordinal of each is its number."""
    return [Recorded(name(n), n, b) for b, batch in enumerate(batches, 1) for n in batch]


@st.composite
def batch_lists(draw):
    """Batches of different numbers, and a permutation of all of them."""
    count = draw(st.integers(0, 10))
    numbers = draw(st.permutations(range(count)))
    batches, rest = [], list(numbers)
    while rest:
        size = draw(st.integers(1, len(rest)))
        batches.append(rest[:size])
        rest = rest[size:]
    return batches, draw(st.permutations(range(count)))


@given(batch_lists())
def test_whatever_the_order_of_asking_they_are_shown_as_recorded(drawn):
    batches, order = drawn
    seen, view = [], Visibility(recorded(batches))
    for number in order:
        assert view.ask(name(number))
        while batch := view.next_batch(stuck=False):
            seen.append(batch)
    assert seen == [[name(n) for n in batch] for batch in batches]
    assert not view.has_more
    assert not view.replaying
    assert view.unclaimed() == []


@given(batch_lists(), st.lists(st.integers(1, 3), min_size=1, max_size=6), st.randoms())
def test_nothing_new_is_shown_before_the_last_recorded_one(drawn, sizes, random):
    """New outcomes may be committed at any moment; they keep their own batches and order."""
    batches, order = drawn
    view, seen, fresh, number = Visibility(recorded(batches)), [], [], 100
    for size in sizes:
        fresh.append([name(number + i) for i in range(size)])
        number += size
    asking, committing = list(order), list(enumerate(fresh, 50))
    while asking or committing:
        if asking and (not committing or random.random() < 0.5):
            view.ask(name(asking.pop(0)))
        else:
            batch, identities = committing.pop(0)
            for identity in identities:
                view.commit(batch, identity)
        if random.random() < 0.5 and (shown := view.next_batch(stuck=False)):
            seen.append(shown)
    while shown := view.next_batch(stuck=False):
        seen.append(shown)
    assert [each for each in seen if each[0] < name(100)] == [[name(n) for n in batch] for batch in batches]
    assert [each for each in seen if each[0] >= name(100)] == fresh
    recorded_ends = max((i for i, each in enumerate(seen) if each[0] < name(100)), default=-1)
    assert all(each[0] < name(100) for each in seen[: recorded_ends + 1])


@given(batch_lists(), st.data())
def test_being_stuck_puts_aside_exactly_what_was_not_asked_for(drawn, data):
    batches, order = drawn
    asked = set(data.draw(st.sets(st.sampled_from(order)))) if order else set()
    view = Visibility(recorded(batches))
    for number in order:
        if number in asked:
            view.ask(name(number))
    view.commit(99, name(200))
    seen = []
    while shown := view.next_batch(stuck=True):
        seen.append(shown)
    expected = [[name(n) for n in batch if n in asked] for batch in batches]
    assert seen == [*[batch for batch in expected if batch], [name(200)]]
    assert {item.identity for item in view.unclaimed()} == {name(n) for n in order if n not in asked}
    for number in order:  # those that were put aside are shown at once when they are asked for after all
        if number not in asked:
            assert view.ask(name(number))
            assert view.replaying
            assert view.next_batch(stuck=False) == [name(number)]
    assert view.unclaimed() == []
    assert not view.has_more


def test_a_batch_waits_for_all_of_its_calls_and_later_batches_wait_for_it():
    view = Visibility(recorded([[0, 1], [2]]))
    view.ask(name(2))
    view.ask(name(1))
    assert view.next_batch(stuck=False) == []
    view.ask(name(0))
    assert view.next_batch(stuck=False) == [name(0), name(1)]
    assert view.next_batch(stuck=False) == [name(2)]
    assert view.next_batch(stuck=False) == []


def test_a_stuck_body_is_shown_one_batch_at_a_time():
    """It acts on each before it is known whether it asks for what the next one holds."""
    view = Visibility(recorded([[0, 5], [1], [2]]))
    view.ask(name(0))
    view.ask(name(2))
    assert view.next_batch(stuck=True) == [name(0)]
    view.ask(name(1))
    assert view.next_batch(stuck=False) == [name(1)]
    assert view.next_batch(stuck=False) == [name(2)]


def test_a_call_is_recorded_once():
    view = Visibility(recorded([[0]]))
    assert view.ask(name(0))
    assert not view.ask(name(0))
    assert not view.ask(name(1))


def test_a_call_contradicts_the_unclaimed_record_of_its_place():
    view = Visibility(recorded([[0, 1]]))
    assert view.contradicts(name(0), 0) is None
    assert view.contradicts(name(9), 0) == Recorded(name(0), 0, 1)
    assert view.contradicts(name(9), 7) is None
    view.ask(name(0))
    assert view.contradicts(name(9), 0) is None  # claimed by its own call, from another place
    assert view.contradicts(name(0), 1).identity == name(1)


def test_calls_that_are_asked_for_late_are_shown_in_the_recorded_order():
    """Code that was put in front of them has let their batches go by; who was first decides again."""
    view = Visibility(recorded([[0], [1, 2], [3]]))
    assert view.next_batch(stuck=True) == []
    for number in (3, 2, 0, 1):
        view.ask(name(number))
    assert view.next_batch(stuck=False) == [name(0)]
    assert view.next_batch(stuck=False) == [name(1), name(2)]
    assert view.next_batch(stuck=False) == [name(3)]


class Replay(RuleBasedStateMachine):
    """The model: a list of recorded batches, then a list of new ones; the front is all that can be shown."""

    @initialize(drawn=batch_lists())
    def begin(self, drawn):
        batches, self.order = drawn
        self.view = Visibility(recorded(batches))
        self.waiting = [list(batch) for batch in batches]
        self.batch_of = {number: at for at, batch in enumerate(batches) for number in batch}
        self.places = {number: at for at, number in enumerate(n for batch in batches for n in batch)}
        self.late, self.asked, self.new, self.next_new = set(), set(), [], 100

    def put_back(self, number):
        """With others of its batch that came late as well, in front of later batches."""
        mine = self.batch_of[number]
        same = [batch for batch in self.waiting if self.batch_of[batch[0]] == mine]
        if same:
            same[0][:] = sorted([*same[0], number], key=self.places.get)
        else:
            at = sum(self.batch_of[batch[0]] < mine for batch in self.waiting)
            self.waiting.insert(at, [number])

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def ask(self, data):
        number = data.draw(st.sampled_from(self.order))
        assert (self.view.ask(name(number)) is not None) == (number not in self.asked)
        if number in self.late:
            self.late.remove(number)
            self.put_back(number)
        self.asked.add(number)

    @rule(same=st.booleans())
    def commit(self, same):
        if not same or not self.new:
            self.new.append((self.next_new, []))
        batch, members = self.new[-1]
        self.view.commit(batch, name(self.next_new))
        members.append(self.next_new)
        self.next_new += 1

    @rule(stuck=st.booleans())
    def show(self, stuck):
        shown = self.view.next_batch(stuck=stuck)
        expected = []
        while self.waiting and not expected:
            if not stuck and not set(self.waiting[0]) <= self.asked:
                break
            batch = self.waiting.pop(0)
            expected = [n for n in batch if n in self.asked]
            self.late |= set(batch) - self.asked
        if not expected and not self.waiting and self.new:
            expected = self.new.pop(0)[1]
        assert shown == [name(n) for n in expected]

    @invariant()
    def says_what_is_left(self):
        assert self.view.replaying == bool(self.waiting)
        assert self.view.has_more == bool(self.waiting or self.new)
        assert {item.identity for item in self.view.unclaimed()} == {
            name(n) for n in set(self.order) - self.asked
        }


Replay.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestReplay = Replay.TestCase


def test_a_batch_is_looked_through_once_however_often_it_is_asked_for():
    """A body may be ready for the next batch after each of a thousand calls that it asks for."""
    hashed = 0

    class Name(bytes):
        __slots__ = ()

        def __hash__(self):
            nonlocal hashed
            hashed += 1
            return super().__hash__()

    names = [Name(n.to_bytes(2, "big")) for n in range(1_000)]
    view = Visibility([Recorded(each, n, 1) for n, each in enumerate(names)])
    for each in names:
        assert view.next_batch(stuck=False) == []
        view.ask(each)
    assert view.next_batch(stuck=False) == names
    assert hashed < 20 * len(names)
