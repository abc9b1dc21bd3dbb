"""What a number given as an option must be; the message says what was given and what would do."""

from __future__ import annotations

import math

from weft.errors import DefinitionError


def check_count(name: str, value: object) -> int:
    """A whole number of at least 1.

    Raises:
        DefinitionError: It is not one; True and 2.0 are none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise DefinitionError(f"{name} must be a whole number of at least 1, not {value!r}")
    if value < 1:
        raise DefinitionError(f"{name} must be at least 1, not {value!r}; leave it out for no limit")
    return value


def check_name(what: str, value: object) -> str:
    """A string that is not empty.

    Raises:
        DefinitionError: It is not one.
    """
    if not isinstance(value, str) or not value:
        raise DefinitionError(f"the name of {what} must be a string that is not empty, not {value!r}")
    return value


def check_seconds(name: str, value: object) -> float:
    """A time span in seconds, above 0 and finite.

    Raises:
        DefinitionError: It is not one; NaN, infinity and True are none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DefinitionError(f"{name} must be a number of seconds, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not seconds > 0 or math.isinf(seconds):
        raise DefinitionError(f"{name} must be a finite number of seconds greater than 0, not {value!r}")
    return seconds


def check_span(name: str, value: object) -> float:
    """As :func:`check_seconds`, of a number or a ``timedelta``."""
    spell = getattr(value, "total_seconds", None)
    return check_seconds(name, spell() if callable(spell) else value)
