"""Results that hold what their run has recorded already, stored as pieces of those records.

A workflow that gathers what its steps returned (a map, a block, a graph with a state) ends with a result that is as
big as all of them together. A store would have each value twice. So a big result is compared with the run's records:
where a stretch of its bytes stands in a record too, only the place is stored.

It is the encoded bytes that are compared, so that nothing is said here of what they mean; and what is put together
again is checked against the checksum of what was taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final
from zlib import crc32

import msgspec

from weft.errors import CorruptDataError

#: A result of fewer bytes is stored as it is, and a record of fewer is not looked for in it.
LEAST_RESULT: Final = 8_192
LEAST_RECORD: Final = 128

_PROBE: Final = 32  # bytes of a record that are looked for; if they are there, more is
_STARTS: Final = tuple(
    range(0, 132, 6)
)  # where they are taken from: what is shared may have a head of its own
_FAR: Final = 2**20  # bytes between what is looked for and where the one before it was found
_EFFORT: Final = 24  # how often the whole result may be searched, and so many bytes more
_EFFORT_ANYWAY: Final = 64 * 2**20
_EFFORT_OF_ONE: Final = 1_024  # what it takes to look at all, in bytes that are searched in that time
_WORTH: Final = 0.75  # what is stored instead must be smaller than this part of the result

ValuesAt = Callable[[Sequence[int]], Mapping[int, bytes]]

_encode = msgspec.msgpack.Encoder().encode


class _Pieces(msgspec.Struct, array_like=True, frozen=True):
    """A result taken apart."""

    check: int
    pieces: list[bytes | tuple[int, int, int]]  # bytes, or the position of a record, a start and a length


_decode = msgspec.msgpack.Decoder(_Pieces).decode


def taken_apart(result: bytes, records: Iterable[tuple[int, bytes]]) -> bytes | None:
    """What is to be stored instead of a result; None: the result itself.

    Args:
        result: Its bytes.
        records: The positions and values of the run's records.
    """
    if len(result) < LEAST_RESULT:
        return None
    pieces: list[bytes | tuple[int, int, int]] = []
    done = 0
    for start, length, position, at in _stretches(result, records):
        if start > done:
            pieces.append(result[done:start])
        pieces.append((position, at, length))
        done = start + length
    pieces.append(result[done:])
    stored = _encode(_Pieces(crc32(result), pieces))
    return stored if len(stored) < _WORTH * len(result) else None


def put_together(stored: bytes, values_at: ValuesAt) -> bytes:
    """The result of which this was stored.

    Args:
        stored: What :func:`taken_apart` gave.
        values_at: The values of the records at these positions.

    Raises:
        CorruptDataError: It does not come out as it was.
    """
    try:
        apart = _decode(stored)
    except msgspec.MsgspecError as error:
        raise CorruptDataError("the result of a run is damaged in the database") from error
    values = values_at(sorted({piece[0] for piece in apart.pieces if not isinstance(piece, bytes)}))
    whole = b"".join(
        piece if isinstance(piece, bytes) else values.get(piece[0], b"")[piece[1] : piece[1] + piece[2]]
        for piece in apart.pieces
    )
    if crc32(whole) != apart.check:
        raise CorruptDataError(
            "the result of a run is damaged in the database: it is not what its records say"
        )
    return whole


def _stretches(result: bytes, records: Iterable[tuple[int, bytes]]) -> list[tuple[int, int, int, int]]:
    """Stretches of a result that stand in records: where, how long, in which record, and where in that.

    They are mostly there in the order in which they were recorded, so each is looked for behind the one before.
    """
    found = []
    search = _Search(result)
    for position, value in records:
        if len(value) < LEAST_RECORD:
            continue
        if search.effort < 0:
            break
        stretch = search.longest(value)
        if stretch is not None:
            found.append((stretch[0], stretch[1], position, stretch[2]))
    return _apart(sorted(found))


def _apart(stretches: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Those that do not overlap with one before them."""
    kept: list[tuple[int, int, int, int]] = []
    done = 0
    for stretch in stretches:
        if stretch[0] >= done:
            kept.append(stretch)
            done = stretch[0] + stretch[1]
    return kept


class _Search:
    """Looks for values in a result."""

    def __init__(self, result: bytes) -> None:
        self.effort = _EFFORT * len(result) + _EFFORT_ANYWAY  # bytes that may still be searched
        self._result = result
        self._behind = 0
        self._starts = _STARTS

    def longest(self, value: bytes) -> tuple[int, int, int] | None:
        """Where a value, or most of it, stands: the place, the length, and where in the value it begins."""
        for start in self._starts:
            place = self._find(value[start : start + _PROBE])
            if place < 0:
                continue
            before = _common_end(self._result[max(place - start, 0) : place], value[:start])
            behind = _common(self._result[place : place + len(value) - start], value[start:])
            if 2 * (before + behind) < len(value):
                continue
            if start != self._starts[0]:  # the next one begins like this one, most likely
                self._starts = (start, *(other for other in _STARTS if other != start))
            self._behind = place + behind
            return place - before, before + behind, start - before
        return None

    def _find(self, probe: bytes) -> int:
        here = self._behind
        self.effort -= _EFFORT_OF_ONE
        place = self._result.find(probe, here, here + _FAR)
        self.effort -= min(_FAR, len(self._result) - here) if place < 0 else place - here
        if place >= 0:
            return place
        self.effort -= min(_FAR, here)
        return self._result.find(probe, max(here - _FAR, 0), here)


def _common(one: bytes, other: bytes) -> int:
    """With how many bytes both begin."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_end(one: bytes, other: bytes) -> int:
    """With how many bytes both end."""
    return _common(one[::-1], other[::-1])
