"""A cache for results of steps: what was computed once need not be computed again, in whichever run.

A step says with a :class:`CachePolicy` that its results may be used again, and for how long; a :class:`Cache`
keeps them. It holds bytes that the codec made, so what comes out is a copy, and reading one runs no code. A
cache may forget at any time: only a journal remembers what a run has done.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from weft.core.checks import check_count, check_seconds
from weft.errors import InputError

Namespace: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """Lets the result of a step be used again for a later call of it with equal arguments.

    Attributes:
        key_func: Is given the arguments of a call; calls are equal when what it returns is. None: by the
            fingerprint of the arguments.
        ttl: For how many seconds a result may be used. None: until the cache forgets it.

    Raises:
        DefinitionError: ``ttl`` is no finite number above 0.
    """

    key_func: Callable[..., str | bytes] | None = None
    ttl: float | None = None

    def __post_init__(self) -> None:
        _check_ttl(self.ttl)


@runtime_checkable
class Cache(Protocol):
    """Keeps bytes under a namespace and a key, for a time. Every method may be called from any thread."""

    def get(self, namespace: Namespace, key: str) -> bytes | None:
        """The bytes, or None when they were never set, have expired or were forgotten."""
        ...

    def set(self, namespace: Namespace, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Keep ``value``, instead of what is there, for ``ttl`` seconds, or with None for ever."""
        ...

    def clear(self, namespaces: Iterable[Namespace] | None = None) -> None:
        """Forget all that is in these namespaces (not in those below them), or with None everything."""
        ...


class InMemoryCache:
    """A :class:`Cache` that lasts as long as the process.

    Args:
        max_entries: How many entries to keep: one more, and the one longest unused goes. None: all.
        clock: Seconds that never go backwards; for tests.

    Raises:
        DefinitionError: ``max_entries`` is no whole number of at least 1.
    """

    def __init__(
        self, *, max_entries: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if max_entries is not None:
            check_count("max_entries", max_entries)
        self._max_entries = max_entries
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[Namespace, str], _Entry] = OrderedDict()  # last used last
        self._sweep_at = _SMALLEST_SWEEP

    def get(self, namespace: Namespace, key: str) -> bytes | None:
        """The bytes, or None; this use keeps them from being the longest unused."""
        address = (namespace, key)
        with self._lock:
            entry = self._entries.get(address)
            if entry is None:
                return None
            if entry.expired(self._clock()):
                del self._entries[address]
                return None
            self._entries.move_to_end(address)
            return entry.value

    def set(self, namespace: Namespace, key: str, value: bytes, *, ttl: float | None = None) -> None:
        """Keep ``value`` for ``ttl`` seconds, or with None until it is the longest unused of too many.

        Raises:
            DefinitionError: ``ttl`` is no finite number above 0.
        """
        _check_ttl(ttl)
        with self._lock:
            expires = None if ttl is None else self._clock() + ttl
            self._entries[namespace, key] = _Entry(value, expires)
            self._entries.move_to_end((namespace, key))
            self._make_room()

    def clear(self, namespaces: Iterable[Namespace] | None = None) -> None:
        """Forget all that is in these namespaces (not in those below them), or with None everything.

        Raises:
            InputError: One namespace was given where several are asked for.
        """
        doomed = None if namespaces is None else _checked(namespaces)
        with self._lock:
            for address in list(self._entries):
                if doomed is None or address[0] in doomed:
                    del self._entries[address]

    def _make_room(self) -> None:
        """Let go of what has expired, each time the cache has doubled, and of what is too many."""
        if len(self._entries) >= self._sweep_at:
            now = self._clock()
            for address in [a for a, entry in self._entries.items() if entry.expired(now)]:
                del self._entries[address]
            self._sweep_at = max(2 * len(self._entries), _SMALLEST_SWEEP)
        if self._max_entries is not None and len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)


_SMALLEST_SWEEP = 64


@dataclass(frozen=True, slots=True)
class _Entry:
    value: bytes
    expires: float | None  # on the cache's clock

    def expired(self, now: float) -> bool:
        return self.expires is not None and now >= self.expires


def _check_ttl(ttl: float | None) -> None:
    if ttl is not None:
        check_seconds("ttl", ttl)


def _checked(namespaces: Iterable[object]) -> set[object]:
    chosen = list(namespaces)
    for namespace in chosen:
        if not isinstance(namespace, tuple):
            raise InputError(f"clear takes several namespaces, like [('a', 'b')]; {namespace!r} is none")
    return set(chosen)
