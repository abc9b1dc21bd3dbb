"""What an error says of where it was raised: which call, on the way from which others, with which input, and again how.

An error leaves as it was raised, of its own class and with its own traceback. What is known about it stands in its
notes, which every traceback shows: one of the call that raised it, and where a run leaves a journal behind, one that
says how to go on.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import islice
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from weft.engine.call import Call
    from weft.engine.execution import Execution

_RAISED: Final = "weft: raised by "
_AGAIN: Final = "weft: to go on with "
_MOST_ON_THE_WAY: Final = 8  # calls that are named; of more, the first and the last

_HIDDEN_NAMES: Final = (
    r"api_?key|access_?key|private_?key|token$|secret|passw|passphrase|credential|authorization|cookie"
)
# In what a value says of itself: fields of such a name, keys and tokens by their look, passwords in addresses.
_HIDDEN_TEXTS: Final = r"""(?x)
    (?P<field> ['"]? \w* (?: api_?key | access_?key | private_?key | token | secret | passw\w* | authorization )
        ['"]? \s* [=:] \s* ) (?: '[^']*'? | "[^"]*"? | b'[^']*'? )
    | (?P<bearer> \b bearer \s+ ) [^\s'",)]+
    | \b (?: sk | pk | rk | ghp | gho | xox[abp] | AKIA ) [-_]? [A-Za-z0-9_-]{12,}
    | (?P<address> :// [^/\s:@'"]* : ) [^/\s@'"]+ (?= @ )
    """
_HIDDEN: Final = "***"


def say_where(error: BaseException, call: Call) -> None:
    """Note on an error which call raised it, and with which input, unless a call below has said so."""
    if not isinstance(error, Exception):
        return
    with suppress(Exception):  # an error may refuse notes, and an argument may refuse to be shown
        if any(note.startswith(_RAISED) for note in _notes(error)):
            return
        given = shown_input(call.step.fn, call.args, call.kwargs)
        attempt = f", attempt {call.attempt}" if call.attempt > 1 else ""
        error.add_note(f"{_RAISED}{call.step.name!r}{given}{attempt}, call {call.id}{_way_to(call)}")


def say_how_to_go_on(error: BaseException, run: Execution) -> None:
    """Note on the error that ends a recorded run how to go on with it."""
    store = run.options.checkpointer
    if not isinstance(error, Exception) or store is None or run.recorder is None:
        return
    with suppress(Exception):  # as above
        if any(note.startswith(_AGAIN) for note in _notes(error)):
            return
        error.add_note(
            f"{_AGAIN}run {run.id!r} of {run.workflow.step.name!r}, without what is recorded being done again: "
            f"invoke(None, run_id={run.id!r}, checkpointer={store!r})"
        )


def leave_out_how_to_go_on(error: BaseException) -> None:
    """Take the note of :func:`say_how_to_go_on` off an error."""
    notes = _notes(error)
    if notes:
        notes[:] = [note for note in notes if not note.startswith(_AGAIN)]


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _way_to(call: Call) -> str:
    """The calls on the way to one that is deeper down than right below the run's own body."""
    names = [repr(each.step.name) for each in _upwards(call)][::-1]
    if len(names) <= 2:  # the run and the call, which the note names anyway
        return ""
    if len(names) > _MOST_ON_THE_WAY:
        left_out = len(names) - _MOST_ON_THE_WAY + 1
        names[2 : 2 + left_out] = [f"... {left_out} more ..."]
    return f"\n      on the way {' > '.join(names)}"


def _upwards(call: Call) -> Iterator[Call]:
    at: Call | None = call
    while at is not None:
        yield at
        at = at.parent


def in_a_line(error: BaseException) -> str:
    """As ``"ValueError: what was wrong"``; the class alone where it says nothing."""
    name = type(error).__name__
    try:
        message = str(error)
    except Exception:  # whose __str__ is the user's
        return name
    return f"{name}: {message}" if message else name


# Inputs


def shown_input(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """What a call was given, as far as that fits a line and is nobody's secret."""
    names = _positional(function)
    short = Short()
    given = [short.of(names[place] if place < len(names) else "", value) for place, value in enumerate(args)]
    given += [f"{name}={short.of(name, value)}" for name, value in kwargs.items()]
    return f"({', '.join(given)})"


def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of what is given by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C, most likely
        return ()
    by_position = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return tuple(each.name for each in parameters if each.kind in by_position)


class Short(Repr):
    """Short texts of values, without secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxtuple = self.maxlist = self.maxdict = 4

    def of(self, name: str, value: Any) -> str:
        """A value that was given by this name."""
        if _pattern(_HIDDEN_NAMES).search(name) and isinstance(value, str | bytes):
            return _HIDDEN
        return self.repr(value)

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(without_secrets(x), level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        shown = [
            f"{self.repr1(key, level - 1)}: {self._item(key, value, level - 1)}"
            for key, value in islice(x.items(), self.maxdict)
        ]
        return f"{{{', '.join(shown + ['...'] * (len(x) > self.maxdict))}}}"

    def repr_instance(self, x: Any, level: int) -> str:
        text = without_secrets(repr(x))  # before it is cut: what is left of a secret would not look like one
        if len(text) <= self.maxother:
            return text
        half = (self.maxother - 3) // 2
        return f"{text[:half]}...{text[len(text) - half :]}"

    def _item(self, key: Any, value: Any, level: int) -> str:
        if isinstance(key, str) and isinstance(value, str | bytes) and _pattern(_HIDDEN_NAMES).search(key):
            return _HIDDEN
        return self.repr1(value, level)


def without_secrets(text: str) -> str:
    return _pattern(_HIDDEN_TEXTS).sub(
        lambda found: (found["field"] or found["bearer"] or found["address"] or "") + _HIDDEN, text
    )


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    """Compiled when the first error needs it, and not when a program starts."""
    return re.compile(pattern, re.IGNORECASE)
