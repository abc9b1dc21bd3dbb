"""A run in which no step begins: what it would do is noted instead; see :mod:`weft.resume_plan`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.engine.call import Call


@dataclass(slots=True)
class Rehearsal:
    """What a resume would do.

    Attributes:
        asked: The identities of the calls that the program has asked for.
        taken: Of those, the ones whose recorded outcome it has taken.
        would_start: Those that would have begun, in the order in which they were asked for.
    """

    asked: set[bytes] = field(default_factory=set)
    taken: set[bytes] = field(default_factory=set)
    would_start: list[Call] = field(default_factory=list)
