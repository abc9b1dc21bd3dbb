"""Who a call is, so that a recorded result can only ever be handed to the call that it belongs to.

A call's identity is its parent's identity, the name of its step, the fingerprint of its arguments and its
number among equals. Position alone would hand the result of one call to another after an edit; content
alone could not tell two equal calls apart.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from struct import Struct, pack

_SIZE = 16

#: How many beginnings of digests are kept for each parent.
_HEADS = 1_000


@lru_cache(maxsize=64)
def root_identity(workflow: str) -> bytes:
    """The identity of a run's own body."""
    return _digest(b"run", workflow.encode("utf-8", "surrogatepass"))


def question_id(run_id: str, identity: bytes, number: int) -> str:
    """The id of the ``number``-th question (from 0) that the call of this identity asks in this run."""
    return _digest(
        b"question", run_id.encode("utf-8", "surrogatepass"), identity, number.to_bytes(4, "big")
    ).hex()


class Siblings:
    """Gives the calls of one parent their identities, in the order in which they are asked for."""

    __slots__ = ("_asked", "_equals", "_heads", "_parent")

    def __init__(self, parent: bytes) -> None:
        self._parent = parent
        self._asked = 0
        self._equals: dict[bytes, int] = {}
        self._heads: dict[tuple[str, int], blake2b] = {}  # by step and length of the fingerprint

    def next(self, step: str, fingerprint: bytes) -> tuple[bytes, int]:
        """The identity and the ordinal of the next call."""
        ordinal = self._asked
        self._asked += 1
        length = len(fingerprint)
        head = self._heads.get((step, length)) or self._head(step, length)
        digest = head.copy()
        digest.update(fingerprint)
        base = digest.digest()
        seen = self._equals.get(base, 0)
        self._equals[base] = seen + 1
        if seen:
            return _digest(b"equal", base, seen.to_bytes(8, "big")), ordinal
        return base, ordinal

    def aside(self, what: str, fingerprint: bytes) -> tuple[bytes, int]:
        """The identity of what the program has not asked for, so that it has no number among what it has."""
        asked = self._asked
        identity, _ = self.next(what, fingerprint)
        self._asked = asked
        return identity, -1

    def _head(self, step: str, length: int) -> blake2b:
        """``_digest(parent, step, fingerprint)`` as far as the fingerprint; few, as most lengths are equal."""
        name, parent = step.encode("utf-8", "surrogatepass"), self._parent
        head = blake2b(_three_lengths(len(parent), len(name), length) + parent + name, digest_size=_SIZE)
        if len(self._heads) < _HEADS:
            self._heads[step, length] = head
        return head


def _digest(*parts: bytes) -> bytes:
    # Lengths go in first: ("ab", "c") must never meet ("a", "bc").
    return blake2b(_lengths(*map(len, parts)) + b"".join(parts), digest_size=_SIZE).digest()


def _lengths(*lengths: int) -> bytes:
    return pack(f">{len(lengths)}Q", *lengths)


_three_lengths = Struct(">3Q").pack
