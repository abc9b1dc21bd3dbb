"""Limits that calls of any number of runs, loops and threads share.

:mod:`weft.core.limits` decides who goes; this part guards it with a lock, tells those who may go on the loops of
their runs, and looks again when time has passed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from weft.core import limits as core
from weft.core.checks import check_count
from weft.core.limits import Capacity, Needs, Rate
from weft.errors import DefinitionError

if TYPE_CHECKING:
    from weft.engine.permit import Permit


class Limit:
    """How many calls may be at work at once, or begin in a period, over all steps and runs that are given it.

    Calls with an unfinished child do not count, so nesting cannot deadlock. An attempt counts in the rate when it
    begins. An error with a ``retry_after`` (seconds) pauses everybody on the limit for that long, once.

    Args:
        name: What events and errors call it.
        concurrent: How many at once; None for any number.
        rate: How many beginnings in any window of the period, for example ``"500/min"``, ``"10/s"``,
            ``"3/2s"`` or ``(500, 60.0)`` (seconds); None for any number.

    Raises:
        DefinitionError: A number that can never work, or neither of the two.
    """

    def __init__(self, name: str, *, concurrent: int | None = None, rate: Any = None) -> None:
        if not isinstance(name, str) or not name:
            raise DefinitionError(f"a Limit needs a name for events and errors, not {name!r}")
        if concurrent is None and rate is None:
            raise DefinitionError(f'Limit({name!r}) limits nothing: give it concurrent=10 or rate="500/min"')
        if concurrent is not None:
            check_count(f"concurrent of Limit({name!r})", concurrent)
        self.name = name
        self.concurrent = concurrent
        self.rate = None if rate is None else Rate.parse(rate)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._capacity = Capacity(self.name, concurrent=self.concurrent, rate=self.rate)

    def __repr__(self) -> str:
        parts = [repr(self.name)]
        if self.concurrent is not None:
            parts.append(f"concurrent={self.concurrent}")
        if self.rate is not None:
            parts.append(f"rate={self.rate.count}/{self.rate.period:g}s")
        return f"Limit({', '.join(parts)})"

    @property
    def capacity(self) -> Capacity:
        """What is left of it in this process."""
        if self._pid != os.getpid():
            self._begin_anew()  # who held it stayed in the parent process
        return self._capacity

    @property
    def in_use(self) -> int:
        """How many calls hold it now."""
        return self.capacity.in_use

    @property
    def waiting(self) -> int:
        """How many calls wait for it now."""
        return self.capacity.waiting


def limits_of(value: Any) -> tuple[Limit, ...]:
    """The limits that ``limit=`` was given: none, one or several.

    Raises:
        DefinitionError: It is something else.
    """
    if value is None:
        return ()
    found = tuple(value) if isinstance(value, Iterable) else (value,)
    for each in found:
        if not isinstance(each, Limit):
            raise DefinitionError(
                f'limit takes Limit("name", concurrent=..., rate=...) or several, not {each!r}'
            )
    return tuple(dict.fromkeys(found))


def needs_of(width: Capacity | None, limits: Iterable[Limit]) -> Needs:
    """Everything that a call needs at once."""
    own = () if width is None else (width,)
    return own + tuple([limit.capacity for limit in limits]) if limits else own


class _Guard:
    """The lock round all capacities of this process; a new one after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __call__(self) -> threading.Lock:
        """The lock."""
        if self._pid != os.getpid():
            self.__init__()  # type: ignore[misc]  # it may be held by a thread that is gone
        return self._lock


# A call takes several at once, so one lock serves all of them; it is held for a few dictionary operations.
_guard = _Guard()


def acquire(permit: Permit, needs: Needs, *, ahead: bool, begins: bool) -> bool:
    """Take these for the permit now (True), or queue it (False): it will be told by ``granted``."""
    with _guard():
        found = core.acquire(permit, needs, ahead=ahead, begins=begins, now=permit.loop.time())
    if found is True:
        return True
    width = permit.call.run.width  # which only those wait for who are on this very loop
    if needs != (width,):
        _forget_the_dead(needs, permit)
    if found is not False:
        permit.look_again_at(found)
    return False


def release(permit: Permit, needs: Needs) -> None:
    """Give these back."""
    with _guard():
        turn = core.release(needs, now=permit.loop.time())
    _tell(turn)


def withdraw(permit: Permit, needs: Needs, *, begins: bool) -> bool:
    """It waits no longer; False when it has been granted already, and will be told so."""
    with _guard():
        turn = core.withdraw(permit, needs, begins=begins, now=permit.loop.time())
    if turn is None:
        return False
    _tell(turn)
    return True


def look_again(permit: Permit, needs: Needs) -> None:
    """Time has passed, as it was told to wait for."""
    with _guard():
        turn = core.due(needs, now=permit.loop.time(), who=permit)
    _tell(turn)


def pause(limits: Iterable[Limit], *, now: float, seconds: float) -> None:
    """Nobody begins on these limits for so long from ``now``, in the time of a loop."""
    paused = tuple(limit.capacity for limit in limits)
    with _guard():
        for capacity in paused:
            capacity.pause(now + seconds)
        turn = core.due(paused, now=now)
    _tell(turn)


def _tell(turn: core.Turn[Permit]) -> None:
    for permit in turn.granted:
        permit.call.run.grant(permit)
    for permit, at in turn.later:
        if not permit.call.run.tell(permit.look_again_at, at):
            _forget_the_dead(permit.needs, permit)


def _forget_the_dead(needs: Needs, asker: Permit) -> None:
    """Who waits on a loop that was closed meanwhile will never go, and must not stand in front of others."""
    while (permit := _first_dead(needs)) is not None:
        waits_for = permit.waits_for or permit.needs
        with _guard():
            turn = core.withdraw(permit, waits_for, begins=permit.begins, now=asker.loop.time())
        if turn is None:
            return
        _tell(turn)


def _first_dead(needs: Needs) -> Permit | None:
    with _guard():
        firsts = [first for capacity in needs for first in capacity.first_in_line()]
    return next((permit for permit in firsts if permit.loop.is_closed()), None)
