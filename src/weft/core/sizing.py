"""How many branches of a block are in flight at once, where nobody said so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from weft.errors import DefinitionError

_KIB = 1024
_UNITS = ("KiB", "MiB", "GiB", "TiB")

#: Bytes that a branch is taken to need where its block does not say.
ESTIMATED_MEMORY = 50 * _KIB**2

#: How much of the available memory branches may take; the rest is for what else the process does.
MEMORY_SHARE = 0.7

#: Seconds that branches queue before more of them may compute; see :func:`grown`.
GROWTH_AFTER = 0.05

#: Sync bodies that run at once, as there are worker threads.
_MOST_COMPUTING = 512


@dataclass(frozen=True, slots=True)
class Resources:
    """What the machine has for this process, as its container allows.

    Attributes:
        cores: How many threads can compute at the same time, at least 1.
        memory: Bytes that are available now.
    """

    cores: int
    memory: int


@dataclass(frozen=True, slots=True)
class Size:
    """How wide a block is.

    Attributes:
        width: How many branches may be in flight; None for all of them.
        computing: How many of those whose body computes (is sync) may be; None for as many as ``width``.
        reason: What it was chosen for, for people.
    """

    width: int | None
    computing: int | None
    reason: str


def size_of(
    *,
    max_concurrent: int | None,
    optimize: bool,
    branches: int | None,
    computing: bool,
    resources: Callable[[], Resources],
    estimated_memory_per_node: int = ESTIMATED_MEMORY,
) -> Size:
    """The size of a block; the machine is asked only where the answer depends on it.

    Args:
        max_concurrent: What the block was given: exact, and nothing else counts. It has been checked.
        optimize: Whether to choose a size where none was given; if not, all branches start at once.
        branches: How many there are; None where that is not known yet.
        computing: Whether the body of any of them computes. Those that only wait need no core.
        resources: Gives what the machine has.
        estimated_memory_per_node: Bytes that a branch needs.

    Raises:
        DefinitionError: The estimate is no number of bytes.
    """
    estimate = check_estimate(estimated_memory_per_node)
    if max_concurrent is not None:
        return Size(max_concurrent, None, f"max_concurrent={max_concurrent}")
    if not optimize:
        return Size(None, None, "optimization_enabled=False: all branches at once")
    found = resources()
    room = int(found.memory * MEMORY_SHARE // estimate)
    width = max(1, room if branches is None else min(branches, room))
    at_once = max(1, min(found.cores, width)) if computing else None
    return Size(width, at_once, _reason(found, room, estimate))


def check_estimate(value: object) -> int:
    """A whole number of bytes, at least 1.

    Raises:
        DefinitionError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DefinitionError(
            f"estimated_memory_per_node must be a whole number of bytes, at least 1, not {value!r}; "
            f"50 MiB are {ESTIMATED_MEMORY}"
        )
    return value


def grown(computing: int, size: Size) -> int:
    """How many branches may compute after some have queued for :data:`GROWTH_AFTER`.

    Many sync bodies wait rather than compute, and how long they queue is all that tells. So: twice as many,
    never more than memory allows, never fewer than now.
    """
    most = _MOST_COMPUTING if size.width is None else min(size.width, _MOST_COMPUTING)
    return max(computing, min(2 * computing, most))


@lru_cache(maxsize=16)  # every block asks, and what there is, is read at most once a second
def _reason(found: Resources, room: int, estimate: int) -> str:
    cores = "1 core" if found.cores == 1 else f"{found.cores} cores"
    has = f"{cores}, {_bytes(found.memory)} available"
    if not room:
        return f"{has}: no room for a branch of {_bytes(estimate)}, so one at a time"
    branches = "1 branch" if room == 1 else f"{room} branches"
    return f"{has}: room for {branches} of {_bytes(estimate)} in {MEMORY_SHARE:.0%} of it"


def _bytes(count: int) -> str:
    if count < _KIB:
        return f"{count} B"
    amount = float(count)
    for unit in _UNITS:
        amount /= _KIB
        if amount < _KIB or unit == _UNITS[-1]:
            break
    return f"{amount:.1f}".removesuffix(".0") + f" {unit}"
