"""What a body raised, made fit for the user's eyes."""

from __future__ import annotations

from contextlib import suppress
from reprlib import Repr
from typing import Any

from weft.errors import Interrupted


def without_our_frame(error: BaseException) -> BaseException:
    """The error without the frame of the engine that called the body: it says nothing to the user."""
    traceback = error.__traceback__
    return error if traceback is None else error.with_traceback(traceback.tb_next)


def signal_in(error: BaseException) -> BaseException:
    """The question that a task group has wrapped in its group, if it has; otherwise the error itself."""
    if isinstance(error, BaseExceptionGroup):
        stack: list[BaseException] = [error]
        while stack:
            part = stack.pop()
            if isinstance(part, Interrupted):
                return part
            if isinstance(part, BaseExceptionGroup):
                stack.extend(part.exceptions)
    return error


def say_where(
    error: BaseException, step: str, call_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Note on an error which call raised it, and with which input, unless a call below has said so."""
    if not isinstance(error, Exception):
        return
    with suppress(Exception):  # an error may refuse notes, and an argument may refuse to be shown
        if any(note.startswith(_NOTE) for note in _notes(error)):
            return
        error.add_note(f"{_NOTE}{step!r}{_shortened(args, kwargs)}, call {call_id}")


_NOTE = "weft: raised by "


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _shortened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    short = Repr()
    short.maxstring = short.maxother = 60
    short.maxtuple = short.maxlist = short.maxdict = 4
    given = [short.repr(value) for value in args] + [
        f"{name}={short.repr(value)}" for name, value in kwargs.items()
    ]
    return f"({', '.join(given)})"
