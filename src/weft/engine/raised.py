"""What a body raised, made fit for the user's eyes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
from types import TracebackType

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


_OURS = tuple(package.__path__[0] + os.sep for package in (sys.modules["weft"], concurrent.futures))


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
