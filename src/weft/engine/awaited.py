"""Whether what a body has returned is to be awaited."""

from __future__ import annotations

from types import NoneType
from typing import Any

#: Types of most results. To ask a type for an attribute that it lacks takes longer than all else at the end of a body.
_PLAIN = frozenset((NoneType, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset))


def is_awaitable(value: Any) -> bool:
    """Whether it can be awaited."""
    kind = type(value)
    try:
        if kind in _PLAIN:
            return False
    except TypeError:  # a metaclass with an __eq__ and no __hash__
        pass
    return hasattr(kind, "__await__")
