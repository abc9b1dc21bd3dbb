"""How progress is put into words: times, rates, counts, limits and errors."""

from __future__ import annotations

from weft.core.limits import Capacity
from weft.engine.where import without_secrets

_MOST_OF_A_MESSAGE = 2_000  # characters that are looked at; nobody sees more of a line than a line
_MOST_OF_AN_ERROR = 120


def printable(text: str) -> str:
    """The text without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def duration(seconds: float) -> str:
    """A time as people say it: "40 ms", "0.4 s", "12 s", "3:05", "2:10:00"."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def time_left(seconds: float) -> str:
    """How long something will take, no more exact than that is known."""
    return f"{_whole(seconds)} left"


def per_second(rate: float) -> str:
    """A rate, in seconds or in minutes."""
    if rate >= 10:
        return f"{rate:.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"


def calls(count: int) -> str:
    """So many calls."""
    return f"{count} call" if count == 1 else f"{count} calls"


def retrying(count: int, seconds: float | None) -> str:
    """How many will be tried again, and, if that is long, when the next of them is."""
    if seconds is None:
        return f"{count} retrying"
    return f"{count} retrying ({'' if count == 1 else 'the next '}in {_whole(seconds)})"


def waiting_for(count: int, limits: tuple[str, ...], known: dict[str, Capacity]) -> str:
    """How many wait for which limits: of those that they need, the ones that are full, as far as that is known."""
    verb = "waits" if count == 1 else "wait"
    if not limits:
        return f"{count} {verb} for a limit"
    named = [(name, known.get(name)) for name in limits]
    full = [(name, limit) for name, limit in named if limit is not None and _is_full(limit)]
    return f"{count} {verb} for {' and '.join(_limit(name, limit) for name, limit in full or named)}"


def error_text(error: BaseException) -> str:
    """What an error says, in a line, without secrets."""
    try:
        message = str(error)[:_MOST_OF_A_MESSAGE]
    except Exception:  # it is the user's, and may refuse
        message = ""
    text = " ".join(
        without_secrets(message).split()
    )  # before it is cut: what is left would not look like one
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    text = printable(text)
    return text if len(text) <= _MOST_OF_AN_ERROR else f"{text[: _MOST_OF_AN_ERROR - 1]}…"


def _whole(seconds: float) -> str:
    return duration(max(1, round(seconds))) if seconds >= 10 else f"{max(1, round(seconds))} s"


def _is_full(limit: Capacity) -> bool:
    return limit.concurrent is not None and limit.in_use >= limit.concurrent


def _limit(name: str, limit: Capacity | None) -> str:
    words = []
    if limit is not None and limit.concurrent is not None:
        words.append(f"{limit.concurrent} at once")
    if limit is not None and limit.rate is not None:
        words.append(f"{limit.rate.count} in {duration(limit.rate.period)}")
    size = f" ({', '.join(words)})" if words else ""
    return f"'{printable(name)}'{size}"
