"""How long the bodies of each step take, and so how many are sent in one piece."""

from __future__ import annotations


class Pace:
    """What was seen lately of each step.

    Args:
        at_once: Seconds of work that are sent in one piece.
    """

    def __init__(self, at_once: float) -> None:
        self._at_once = at_once
        self._seconds: dict[str, float] = {}

    def note(self, step: str, seconds: float) -> None:
        """A body of this step took so long."""
        self._seconds[step] = 0.5 * self._seconds.get(step, seconds) + 0.5 * seconds

    def fitting(self, step: str) -> int:
        """How many bodies of this step are that much work; 0 where nothing is known, or where one is more."""
        seconds = self._seconds.get(step)
        return 0 if seconds is None else int(self._at_once / max(seconds, 1e-6))
