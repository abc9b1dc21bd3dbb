"""When the outcomes of one parent's calls become visible to its body, and in which order.

Outcomes become visible in batches, a batch being what one commit made durable. A body may decide by that
order (``as_completed``, ``wait(FIRST_COMPLETED)``), so a resume must show it the recorded outcomes in the
same batches and the same order, and nothing new before the last of them.

:class:`Visibility` is that decision alone. The engine tells it what was asked for and what was committed,
and asks it for the next batch each time the body is ready to see one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import Generic, Protocol, TypeVar


class Recorded(Protocol):
    """A recorded outcome of a call, as far as its order is concerned."""

    @property
    def identity(self) -> bytes:
        """Whose outcome it is."""

    @property
    def ordinal(self) -> int:
        """The number of the call among those of its parent."""

    @property
    def batch(self) -> int:
        """The commit that made it visible."""


AnyRecorded = TypeVar("AnyRecorded", bound=Recorded)


class Visibility(Generic[AnyRecorded]):
    """The recorded and the new outcomes of one parent's calls, by identity."""

    __slots__ = ("_asked", "_batches", "_by_ordinal", "_fresh", "_late", "_looked_at", "_places", "recorded")

    def __init__(self, recorded: Iterable[AnyRecorded] = ()) -> None:
        self.recorded = {item.identity: item for item in recorded}  # in the order of showing
        self._batches: deque[tuple[int, list[bytes]]] = deque(  # recorded and not yet shown, by number
            (number, [item.identity for item in items])
            for number, items in groupby(self.recorded.values(), attrgetter("batch"))
        )
        self._looked_at = 0  # so many of the first batch are known to have been asked for
        self._fresh: deque[tuple[int, list[bytes]]] = deque()  # committed in this life of the run
        self._asked: set[bytes] = set()  # recorded calls that were asked for
        self._late: set[bytes] = set()  # recorded calls whose batch went by without them
        # Made when code that has changed needs them:
        self._by_ordinal: dict[int, bytes] | None = None
        self._places: dict[bytes, int] | None = None  # in the recorded order

    def ask(self, identity: bytes) -> bool:
        """The body asks for this call; whether its outcome is recorded (and was not asked for before)."""
        if identity not in self.recorded or identity in self._asked:
            return False
        self._asked.add(identity)
        if self._late and identity in self._late:
            self._late.discard(identity)
            self._put_back(identity)
        return True

    def _put_back(self, identity: bytes) -> None:
        """Asked for when its batch had gone by: next to be shown, with others of the kind in the recorded order."""
        if self._places is None:
            self._places = {each: place for place, each in enumerate(self.recorded)}
        self._looked_at = 0
        number = self.recorded[identity].batch
        for at, (other, batch) in enumerate(self._batches):
            if other == number:
                batch.append(identity)
                batch.sort(key=self._places.__getitem__)
                return
            if other > number:
                self._batches.insert(at, (number, [identity]))
                return
        self._batches.append((number, [identity]))

    def commit(self, batch: int, identity: bytes) -> None:
        """A new outcome is durable, in this commit of the run."""
        if self._fresh and self._fresh[-1][0] == batch:
            self._fresh[-1][1].append(identity)
        else:
            self._fresh.append((batch, [identity]))

    def next_batch(self, *, stuck: bool) -> list[bytes]:
        """The identities to show now, in order; empty: nothing yet.

        Args:
            stuck: Whether the body can ask for nothing more before it sees something. Recorded calls that it
                did not ask for until then belong to code that has changed: they are put aside, and shown at
                once should they be asked for later.
        """
        while self._batches:
            batch = self._batches[0][1]
            if self._all_asked_of(batch):
                shown = batch
            elif stuck:
                shown = [identity for identity in batch if identity in self._asked]
                self._late.update(identity for identity in batch if identity not in self._asked)
            else:
                return []
            self._batches.popleft()
            self._looked_at = 0
            if shown:
                return shown
        return self._fresh.popleft()[1] if self._fresh else []

    def _all_asked_of(self, batch: list[bytes]) -> bool:
        """Whether all of the first batch was asked for; what was is looked at once, however often it is asked."""
        for at in range(self._looked_at, len(batch)):
            if batch[at] not in self._asked:
                self._looked_at = at
                return False
        return True

    @property
    def has_more(self) -> bool:
        """Whether anything is left to show."""
        return bool(self._batches or self._fresh)

    @property
    def replaying(self) -> bool:
        """Whether recorded outcomes are left to show."""
        return bool(self._batches)

    @property
    def all_asked(self) -> bool:
        """Whether every recorded call has been asked for."""
        return len(self._asked) == len(self.recorded)

    def contradicts(self, identity: bytes, ordinal: int) -> AnyRecorded | None:
        """The recorded call at this ordinal, if it is another one that nobody has asked for."""
        if self.all_asked:
            return None
        if self._by_ordinal is None:
            self._by_ordinal = {item.ordinal: item.identity for item in self.recorded.values()}
        there = self._by_ordinal.get(ordinal)
        if there is None or there == identity or there in self._asked:
            return None
        return self.recorded[there]

    def unclaimed(self) -> list[AnyRecorded]:
        """Recorded outcomes that nothing has asked for."""
        return [item for identity, item in self.recorded.items() if identity not in self._asked]
