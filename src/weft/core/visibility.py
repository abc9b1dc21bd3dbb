"""When the outcomes of one parent's calls become visible to its body, and in which order.

Outcomes become visible in batches, a batch being what one commit made durable. A body may decide by that
order (``as_completed``, ``wait(FIRST_COMPLETED)``), so a resume must show it the recorded outcomes in the
same batches and the same order, and nothing new before the last of them.

:class:`Visibility` is that decision alone. The engine tells it what was asked for and what was committed,
and asks it for the next batch each time the body is ready to see one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

#: Batches by number: none, in most cases. Never changed.
_NONE: deque[tuple[int, list[bytes]]] = deque()


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

    __slots__ = ("_batches", "_by_ordinal", "_fresh", "_late", "_looked_at", "_recorded", "unasked")

    def __init__(self, recorded: Sequence[AnyRecorded] = ()) -> None:
        self._recorded = recorded  # in the order of showing
        self.unasked: dict[bytes, AnyRecorded] = {}  # those that nothing has asked for
        self._batches = _NONE  # recorded and not yet shown, by number
        if recorded:
            self.unasked.update((item.identity, item) for item in recorded)
            self._batches = deque(
                (number, [item.identity for item in items])
                for number, items in groupby(recorded, attrgetter("batch"))
            )
        self._looked_at = 0  # so many of the first batch are known to have been asked for
        self._fresh = _NONE  # committed in this life of the run
        self._late: dict[bytes, int] = {}  # those whose batch went by without them: their place in it
        self._by_ordinal: dict[int, bytes] | None = None  # made when code that has changed needs it

    def ask(self, identity: bytes) -> AnyRecorded | None:
        """The body asks for this call; what is recorded of it (and was not asked for before)."""
        item = self.unasked.pop(identity, None)
        if item is not None and identity in self._late:
            self._put_back(identity, item.batch)
        return item

    def _put_back(self, identity: bytes, number: int) -> None:
        """Asked for when its batch had gone by: next to be shown, with others of the kind in the recorded order."""
        self._looked_at = 0
        for at, (other, batch) in enumerate(self._batches):
            if other == number:
                batch.append(identity)
                batch.sort(key=self._late.__getitem__)
                return
            if other > number:
                self._batches.insert(at, (number, [identity]))
                return
        self._batches.append((number, [identity]))

    def commit(self, batch: int, identity: bytes) -> None:
        """A new outcome is durable, in this commit of the run."""
        if self._fresh and self._fresh[-1][0] == batch:
            self._fresh[-1][1].append(identity)
            return
        if self._fresh is _NONE:
            self._fresh = deque()
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
                shown = [identity for identity in batch if identity not in self.unasked]
                self._late.update((each, place) for place, each in enumerate(batch) if each in self.unasked)
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
            if batch[at] in self.unasked:
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
        return not self.unasked

    def contradicts(self, identity: bytes, ordinal: int) -> AnyRecorded | None:
        """The recorded call at this ordinal, if it is another one that nobody has asked for."""
        if self.all_asked:
            return None
        if self._by_ordinal is None:
            self._by_ordinal = {item.ordinal: item.identity for item in self._recorded}
        there = self._by_ordinal.get(ordinal)
        if there is None or there == identity:
            return None
        return self.unasked.get(there)

    def unclaimed(self) -> list[AnyRecorded]:
        """Recorded outcomes that nothing has asked for."""
        return [*self.unasked.values()]
