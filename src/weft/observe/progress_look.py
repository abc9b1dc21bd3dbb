"""What there is to see of runs at one moment, and which of it fits a screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from weft.observe.progress_words import per_second, time_left


@dataclass(frozen=True)
class Line:
    """A row as it is shown.

    Attributes:
        key: The row; the same from one look to the next.
        depth: How deep it is nested.
        name: Of the step or block.
        done: How many have ended.
        total: How many there are, or are known of.
        is_open: There will be more than ``total``, most likely: nobody knows how many.
        rate: A second.
        left: Seconds.
        parts: What else there is to say, the most important first: what kind of thing, and the words.
        error: What the last error says.
        interest: What is to be seen first has the most of it.
    """

    key: int
    depth: int
    name: str
    done: int
    total: int
    is_open: bool
    rate: float | None
    left: float | None
    parts: tuple[tuple[str, str], ...]
    error: str
    interest: tuple[int, ...]

    @property
    def count(self) -> str:
        """How many of how many."""
        return f"{self.done}/{self.total}{'+' if self.is_open else ''}"

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else 0.0

    def words(self) -> str:
        """All of it, in a line of text."""
        said = [f"{self.name} {self.count}", *(text for _, text in self.parts)]
        if self.rate is not None:
            said.append(per_second(self.rate))
        if self.left is not None:
            said.append(time_left(self.left))
        return ", ".join(said) + (f": {self.error}" if self.error else "")


@dataclass(frozen=True)
class Look:
    """The runs of one workflow as they are shown.

    Attributes:
        name: Of the workflow.
        elapsed: Seconds since the first began, or from then to the end of the last.
        is_over: None of them runs now.
        status: How they ended, where all ended in one way.
        runs: How many of how many have ended, where there are several.
        own: What there is to say of the runs' own bodies.
        lines: Its steps and blocks, from the outside to the inside.
        left_out: How many there were no lines for.
        left_out: How many there were no lines for.
    """

    name: str
    elapsed: float
    is_over: bool
    status: str
    runs: str
    own: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]
    left_out: int = 0

    @property
    def interest(self) -> tuple[Any, ...]:
        """As of a line."""
        return (not self.is_over, max((line.interest for line in self.lines), default=()))


def fitting(looks: list[Look], room: int) -> tuple[list[Look], int]:
    """What fits so many lines, the most interesting of it; and how many looks were left out.

    Each look takes a line for its name, one for each of its lines, and one that says that some are left out.
    """
    if sum(1 + len(look.lines) for look in looks) <= room:
        return looks, 0
    heads = max(1, room // 3)
    kept = (
        looks if len(looks) <= heads else sorted(looks, key=lambda look: look.interest, reverse=True)[:heads]
    )
    left_out = len(looks) - len(kept)
    room = max(1, room - 2 * len(kept) - bool(left_out))
    chosen = _chosen([line for look in kept for line in look.lines], room)
    return [_cut(look, chosen) for look in looks if look in kept], left_out


def _cut(look: Look, chosen: set[int]) -> Look:
    lines = tuple(line for line in look.lines if line.key in chosen)
    return replace(look, lines=lines, left_out=len(look.lines) - len(lines))


def _chosen(lines: list[Line], room: int) -> set[int]:
    """The keys of so many lines: the most interesting ones, with those that they are nested in as far as they fit."""
    places = sorted(range(len(lines)), key=lambda place: lines[place].interest, reverse=True)
    chosen: set[int] = set()
    for place in places:
        with_above = [key for key in (lines[place].key, *_above(lines, place)) if key not in chosen]
        if len(chosen) + len(with_above) <= room:
            chosen.update(with_above)
        elif len(chosen) < room:
            chosen.add(lines[place].key)
    return chosen


def _above(lines: list[Line], place: int) -> Iterator[int]:
    """The keys of what a line is nested in."""
    depth = lines[place].depth
    while depth > 0 and place > 0:
        place -= 1
        if lines[place].depth < depth:
            depth = lines[place].depth
            yield lines[place].key
