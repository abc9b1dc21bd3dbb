"""Slots: never more than there are, and a fair queue in two classes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from weft.core.slots import Slots


class Model(RuleBasedStateMachine):
    """Holders are counted; the queue is two plain lists, the first served before the second."""

    @initialize(capacity=st.integers(1, 4))
    def begin(self, capacity):
        self.slots = Slots(capacity)
        self.holders, self.first, self.then, self.next = [], [], [], 0

    @rule(ahead=st.booleans())
    def acquire(self, ahead):
        who, self.next = self.next, self.next + 1
        free = len(self.holders) < self.slots.capacity
        got = self.slots.acquire(who, ahead=ahead)
        assert got == free  # nobody waits while a slot is free
        if got:
            self.holders.append(who)
        else:
            (self.first if ahead else self.then).append(who)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data):
        self.holders.remove(data.draw(st.sampled_from(self.holders)))
        expected = self.first.pop(0) if self.first else self.then.pop(0) if self.then else None
        assert self.slots.release() == expected
        if expected is not None:
            self.holders.append(expected)

    @precondition(lambda self: self.first or self.then)
    @rule(data=st.data())
    def withdraw(self, data):
        who = data.draw(st.sampled_from(self.first + self.then))
        assert self.slots.withdraw(who)
        assert not self.slots.withdraw(who)
        (self.first if who in self.first else self.then).remove(who)

    @rule()
    def withdraw_somebody_else(self):
        assert not self.slots.withdraw(-1)
        for who in self.holders:
            assert not self.slots.withdraw(who)

    @invariant()
    def counts(self):
        assert len(self.holders) <= self.slots.capacity
        assert self.slots.in_use == len(self.holders)
        assert self.slots.waiting == len(self.first) + len(self.then)

    def teardown(self):
        if not hasattr(self, "slots"):
            return
        while self.holders:
            self.holders.pop()
            if (who := self.slots.release()) is not None:
                self.holders.append(who)
        assert (self.slots.in_use, self.slots.waiting) == (0, 0)


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSlots = Model.TestCase


def test_what_has_begun_goes_before_what_is_new():
    slots = Slots(1)
    assert slots.acquire("a", ahead=False)
    assert not slots.acquire("new", ahead=False)
    assert not slots.acquire("child", ahead=True)
    assert not slots.acquire("parent", ahead=True)
    assert [slots.release() for _ in range(4)] == ["child", "parent", "new", None]
    assert slots.in_use == 0


def test_a_free_slot_is_nobodys_while_somebody_waits():
    """Who comes later never overtakes a waiter of its own class."""
    slots = Slots(1)
    slots.acquire("a", ahead=False)
    slots.acquire("b", ahead=False)
    assert slots.release() == "b"
    assert not slots.acquire("c", ahead=True)
