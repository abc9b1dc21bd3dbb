"""A store that goes along with a run to another process: opened again there, once for all runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

#: How many stores a process has open that came to it so.
_MOST = 8


def sent(address: str, **options: Any) -> Callable[[Any], tuple[Any, ...]]:
    """What gives, for a store at this address with these options, what its ``__reduce__`` is to give.

    Its codec goes along as the types that it knows; which old runs are dropped is for the process that it comes from.
    """

    def reduced(store: Any) -> tuple[Any, ...]:
        return _opened, (type(store), address, store.codec.known_types(), tuple(sorted(options.items())))

    return reduced


@functools.lru_cache(maxsize=_MOST)
def _opened(cls: type, address: str, types: tuple[type, ...], options: tuple[tuple[str, Any], ...]) -> Any:
    from weft.checkpoint.codec import Codec  # noqa: PLC0415 - only where a store has come to

    return cls(address, codec=Codec(types), **dict(options))
