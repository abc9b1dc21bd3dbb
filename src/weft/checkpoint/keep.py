"""What a store keeps of runs that have ended, and for how long: retention.

The stores forget in small steps, as part of what they write anyway, so that nothing has to be started for it and
nobody waits for long. Here is what they go by; how they find what has to go is theirs.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from weft.checkpoint.base import Change, Record
from weft.core.status import RunStatus
from weft.errors import InputError

_DAY: Final = 86_400.0
_UNITS: Final = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000, "t": 1_000_000_000_000}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", re.IGNORECASE)

#: The statuses of a run that may be forgotten; of all others somebody waits for the end.
ENDED: Final = (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.CANCELLED)

#: Bytes that a record takes beside its value and the name of its step, about.
_OF_A_RECORD: Final = 100

#: How many runs are forgotten at most for each that has ended, so that a store with too many comes to have fewer.
STRIDE: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How many runs that have ended a store keeps, and for how long: it forgets the oldest on its own.

    Each limit holds by itself; what is left out is no limit. A run that is running, waits for an answer, or whose
    process has died is never forgotten. With a run goes all that it recorded and what it saved in its thread, but for
    the thread's newest value. A forgotten run's id is free: asked for again, it is a new run.

    Args:
        days: For how many days after its end a run is kept that has finished.
        failed_days: The same for one that has failed or was cancelled, and could be resumed; as ``days`` unless told.
        last: So many that have ended, those that ended last. It may be one in a hundred more for a while.
        max_bytes: How big the store may be: a number, or as ``"500 MB"`` or ``"2GB"`` (of 1,000 MB). Of a SQLite
            file its pages in use count, else what was recorded: values, inputs, results and errors.

    Raises:
        InputError: A limit is none.
    """

    days: float | None = None
    failed_days: float | None = None
    last: int | None = None
    max_bytes: int | str | None = None

    def __post_init__(self) -> None:
        for name in ("days", "failed_days"):
            _check_days(name, getattr(self, name))
        if self.last is not None and (
            isinstance(self.last, bool) or not isinstance(self.last, int) or self.last < 0
        ):
            raise InputError(f"last is how many ended runs are kept, 0 or more, not {self.last!r}")
        if self.max_bytes is not None:
            object.__setattr__(self, "max_bytes", _bytes(self.max_bytes))

    @property
    def most_bytes(self) -> float:
        """How big the store may be; infinity for no limit."""
        assert not isinstance(self.max_bytes, str)
        return math.inf if self.max_bytes is None else self.max_bytes

    def oldest(self, now: float) -> Mapping[RunStatus, float]:
        """By how a run has ended, the moment before which it must have, to be forgotten for its age."""
        failed_days = self.days if self.failed_days is None else self.failed_days
        days = dict.fromkeys(ENDED, failed_days) | {RunStatus.FINISHED: self.days}
        return {status: now - kept * _DAY for status, kept in days.items() if kept is not None}


def is_too_old(status: RunStatus, ended: float, oldest: Mapping[RunStatus, float]) -> bool:
    """Whether a run that has ended so, and then, is to be forgotten for its age; see :meth:`Keep.oldest`."""
    return ended < oldest.get(status, -math.inf)


class Upkeep:
    """What an object of a store remembers of what it has to forget; its caller sees to it that one thread uses it.

    To count what is there, or to add up its size, takes longer the more there is: it is done once in a while.
    """

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self._began = time.time() - time.monotonic()
        self._until_count = 0
        self._too_many = 0
        self._until_sum = 0.0
        self._too_big = 0.0

    def now(self) -> float:
        """The time by which ages are judged: a clock that is set forward meanwhile makes nothing older."""
        return min(time.time(), self._began + time.monotonic())

    def added(self, runs: int, size: int = 0) -> None:
        """So many runs have ended, and so many bytes were recorded."""
        self._until_count -= runs
        self._until_sum -= size

    def forgot(self, size: int = 0) -> None:
        """A run was forgotten of which so many bytes were recorded."""
        self._too_many = max(self._too_many - 1, 0)
        self._too_big = max(self._too_big - size, 0.0)

    @property
    def wants_count(self) -> bool:
        """Whether to count what has ended, up to :attr:`Keep.last`, and say it to :meth:`counted`."""
        return self.keep.last is not None and self._until_count <= 0

    def counted(self, ended: int) -> None:
        """So many runs that have ended are there."""
        assert self.keep.last is not None
        self._too_many = max(ended - self.keep.last, 0)
        self._until_count = 1 + self.keep.last // 100

    @property
    def has_too_much(self) -> bool:
        """Whether to forget the run that ended first, whenever that was."""
        return self._too_many > 0 or self._too_big > 0

    @property
    def wants_sum(self) -> bool:
        """Whether to add up what was recorded of all runs, and say it to :meth:`summed`."""
        return self.keep.max_bytes is not None and self._until_sum <= 0

    def summed(self, size: int) -> None:
        """So many bytes are recorded."""
        self._too_big = max(size - self.keep.most_bytes, 0.0)
        self._until_sum = self.keep.most_bytes / 100


def size_of(records: Iterable[Record]) -> int:
    """About how many bytes records take."""
    return sum(len(record.value or b"") + len(record.step) + _OF_A_RECORD for record in records)


def size_of_end(change: Change) -> int:
    """About how many bytes it takes how a run has ended."""
    return sum(len(data or b"") for data in (change.output, change.error, change.saved))


def checked_keep(keep: Keep | None) -> Keep | None:
    """What a store was given as its ``keep``.

    Raises:
        InputError: It is no :class:`Keep`.
    """
    if keep is not None and not isinstance(keep, Keep):
        raise InputError(f"keep is such as Keep(days=7, last=1000), not {keep!r}")
    return keep


def _check_days(name: str, days: float | None) -> None:
    if days is None:
        return
    if isinstance(days, bool) or not isinstance(days, int | float) or not days >= 0:
        raise InputError(f"{name} is a number of days, 0 or more, not {days!r}")


def _bytes(size: int | str) -> int:
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is not None:
        return int(float(found[1]) * _UNITS[found[2].lower()])
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InputError(f"max_bytes is a number of bytes, or such as '2GB', not {size!r}")
    return size
