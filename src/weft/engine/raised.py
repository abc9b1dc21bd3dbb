"""What a body raised, made fit for the user's eyes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from contextlib import suppress
from pathlib import Path
from reprlib import Repr
from types import TracebackType
from typing import Any

from weft.errors import Interrupted, WeftError


def without_our_frame(error: BaseException) -> BaseException:
    """The error without the frame of the engine that called the body: it says nothing to the user."""
    traceback = error.__traceback__
    return error if traceback is None else error.with_traceback(traceback.tb_next)


def without_engine_frames(error: BaseException) -> BaseException:
    """The error with the frames of the user's code alone, if it has any or says itself what was wrong.

    An error in which only the engine has a part keeps them all: it is a mistake of ours.
    """
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        if not _is_ours(traceback.tb_frame.f_code.co_filename):
            frames.append(traceback)
        traceback = traceback.tb_next
    if not frames and not isinstance(error, WeftError | asyncio.CancelledError):
        return error
    kept: TracebackType | None = None
    for frame in reversed(frames):
        kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return error.with_traceback(kept)


_OURS = (str(Path(__file__).parents[1]) + os.sep, str(Path(concurrent.futures.__file__).parent) + os.sep)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS)


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
