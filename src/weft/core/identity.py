"""Who a call is, so that a recorded result can only ever be handed to the call that it belongs to.

A call's identity is its parent's identity, the name of its step, the fingerprint of its arguments and its
number among equals. Position alone would hand the result of one call to another after an edit; content
alone could not tell two equal calls apart.
"""

from __future__ import annotations

from hashlib import blake2b

_SIZE = 16


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

    __slots__ = ("_asked", "_equals", "_parent", "_prefixes")

    def __init__(self, parent: bytes) -> None:
        self._parent = parent
        self._asked = 0
        self._equals: dict[bytes, int] = {}
        self._prefixes: dict[str, tuple[bytes, bytes]] = {}  # of each step's digests: lengths, and content

    def next(self, step: str, fingerprint: bytes) -> tuple[bytes, int]:
        """The identity and the ordinal of the next call."""
        ordinal = self._asked
        self._asked += 1
        lengths, content = self._prefixes.get(step) or self._prefix(step)
        whole = b"".join((lengths, len(fingerprint).to_bytes(8, "big"), content, fingerprint))
        base = blake2b(whole, digest_size=_SIZE).digest()
        seen = self._equals.get(base, 0)
        self._equals[base] = seen + 1
        if seen:
            return _digest(b"equal", base, seen.to_bytes(8, "big")), ordinal
        return base, ordinal

    def _prefix(self, step: str) -> tuple[bytes, bytes]:
        """The beginning of ``_digest(parent, step, ...)``, made once for all calls of the step."""
        name = step.encode("utf-8", "surrogatepass")
        lengths = len(self._parent).to_bytes(8, "big") + len(name).to_bytes(8, "big")
        found = self._prefixes[step] = lengths, self._parent + name
        return found


def _digest(*parts: bytes) -> bytes:
    # Lengths go in first: ("ab", "c") must never meet ("a", "bc").
    head = b"".join(len(part).to_bytes(8, "big") for part in parts)
    return blake2b(head + b"".join(parts), digest_size=_SIZE).digest()
