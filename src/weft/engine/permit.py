"""What a call has of the limits that it needs.

A call takes all of them at once, lends them to its children while it waits for those, and has them again before it
sees the last of them. Calls that need no limit have no permit.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from weft.core.limits import Needs
from weft.engine import limits

if TYPE_CHECKING:
    from weft.engine.call import Call


class Permit:
    """The limits of one call; on the loop of its run, but for what :mod:`weft.engine.limits` tells it.

    Args:
        call: Whose it is; it is told by ``permitted`` when what it waited for is there.
        needs: All that it needs at once.
        gates: How many of these, at the end, are not lent: they are held to the end of the call.
    """

    __slots__ = (
        "_gates",
        "_lent",
        "_refused",
        "_waker",
        "begins",
        "call",
        "holds",
        "is_lending",
        "needs",
        "waits_for",
    )

    def __init__(self, call: Call, needs: Needs, gates: int) -> None:
        self.call = call
        self.needs = needs
        self.holds: Needs = ()
        self.is_lending = False
        self.waits_for: Needs | None = None
        self.begins = True  # whether it waits to begin an attempt, not to come back
        self._lent = needs[: len(needs) - gates]
        self._gates = needs[len(needs) - gates :]
        self._refused: list[Needs] = []  # grants on their way here that are not wanted any more
        self._waker: asyncio.TimerHandle | None = None  # where nothing but time is missing

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of its run."""
        return self.call.run.loop

    def ask(self, *, ahead: bool) -> bool:
        """Take everything, to begin an attempt: now, or (False) when it is there."""
        return self._ask(self.needs, ahead=ahead, begins=True)

    def ask_back(self) -> bool:
        """Take what was lent, to see the last child: now, or (False) when it is there."""
        return self._ask(self._lent, ahead=True, begins=False)

    def _ask(self, needs: Needs, *, ahead: bool, begins: bool) -> bool:
        self.waits_for, self.begins = needs, begins
        if not limits.acquire(self, needs, ahead=ahead, begins=begins):
            return False
        self._has(needs)
        return True

    def _has(self, needs: Needs) -> None:
        self.waits_for = None
        self.holds, self.is_lending = self.needs, False

    def granted(self) -> None:
        """What it waited for is there."""
        if self._refused:
            limits.release(self, self._refused.pop(0))
            return
        self._end_waker()
        self._has(self.needs)
        self.call.permitted()

    def lend(self) -> None:
        """The call waits for children, who need them now."""
        if self.holds and not self.is_lending and self._lent:
            self.holds, self.is_lending = self._gates, True
            limits.release(self, self._lent)

    def give_back(self) -> None:
        """The attempt is over."""
        holds, self.holds, self.is_lending = self.holds, (), False
        if holds:
            limits.release(self, holds)

    def leave(self) -> Needs:
        """What a body that was given up keeps until it ends: all that the world would see used twice."""
        kept = tuple(each for each in self.holds if each.is_kept)
        self.holds = tuple(each for each in self.holds if not each.is_kept)
        return kept

    def wait_no_longer(self) -> None:
        """Leave the queue, if it is in one."""
        needs, self.waits_for = self.waits_for, None
        if needs is None:
            return
        self._end_waker()
        if not limits.withdraw(self, needs, begins=self.begins):
            self._refused.append(needs)  # it was granted in this very moment

    def look_again_at(self, when: float) -> None:
        """It is first in line but for time."""
        if self.waits_for is None or (self._waker is not None and self._waker.when() <= when):
            return
        self._end_waker()
        self._waker = self.loop.call_at(when, self._look_again)

    def _look_again(self) -> None:
        self._waker = None
        if self.waits_for is not None:
            limits.look_again(self, self.waits_for)

    def _end_waker(self) -> None:
        if self._waker is not None:
            self._waker.cancel()
            self._waker = None
