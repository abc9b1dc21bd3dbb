"""How many calls may be at work at once.

What counts is calls *without an unfinished child*: a call gives its slot back when it makes a child and has
one again before its last child's outcome reaches it. So nesting cannot deadlock, whatever way a parent waits.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Slots(Generic[T]):
    """A number of slots and the two queues of those who wait for one.

    Parents that return and children of working calls go before new starts: what has begun is finished first.
    """

    __slots__ = ("_first", "_free", "_then", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = capacity
        # Ordered, and quick to leave: a thousand who wait may be cancelled at once.
        self._first: OrderedDict[T, None] = OrderedDict()
        self._then: OrderedDict[T, None] = OrderedDict()

    @property
    def in_use(self) -> int:
        """How many slots are held."""
        return self.capacity - self._free

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._first) + len(self._then)

    def acquire(self, who: T, *, ahead: bool) -> bool:
        """Take a slot now (True), or be queued (False): :meth:`release` will name ``who`` later."""
        if self._free and not self._first and (ahead or not self._then):
            self._free -= 1
            return True
        (self._first if ahead else self._then)[who] = None
        return False

    def release(self) -> T | None:
        """Give a slot back; who holds it from now on, if somebody waited."""
        if self._first:
            return self._first.popitem(last=False)[0]
        if self._then:
            return self._then.popitem(last=False)[0]
        self._free += 1
        return None

    def withdraw(self, who: T) -> bool:
        """Leave the queue; whether ``who`` was in it."""
        for queue in (self._first, self._then):
            if who in queue:
                del queue[who]
                return True
        return False
