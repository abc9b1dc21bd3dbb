"""Saying who waits where, when virtual time cannot go on."""

from __future__ import annotations

import asyncio
import gc
import linecache
import sys
import sysconfig
from collections.abc import Iterable
from contextvars import Context
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from weft.errors import WeftError

#: How many tasks and threads a message lists.
_MOST = 20

_OURS = str(Path(__file__).resolve().parent.parent)
_STDLIB = sysconfig.get_path("stdlib")


class StandstillError(WeftError):
    """Virtual time could not go on: nothing could ever happen, or a thread worked for too long in real time."""


def list_of(lines: Iterable[str]) -> str:
    """These lines, one below the other; the first of them if there are very many."""
    found = [f"\n  {line}" for line in lines]
    more = f"\n  and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return "".join(found[:_MOST]) + more


def where_task(task: asyncio.Task[Any]) -> str:
    """The name of a task, and the line of the user's code at which it waits."""
    frames = [*_frames_of(task.get_coro())]
    return f"task {task.get_name()!r} waits at {_said(_innermost(reversed(frames)))}"


def frames_now() -> dict[int, FrameType]:
    """Where each thread is, by its ident.

    The garbage collector waits meanwhile: in older CPythons one that begins in the middle of it blocks the process for
    ever (their gh-106883).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()
    finally:
        if was_enabled:
            gc.enable()


def where_thread(thread: int | None) -> str:
    """The line of the user's code at which a thread is."""
    return _said(_innermost(_frames_outwards(frames_now().get(thread or 0))))


def name_of(fn: Any) -> str:
    """What a function is called, also where ``asyncio.to_thread`` has wrapped it."""
    while isinstance(fn, partial):
        is_in_context = isinstance(getattr(fn.func, "__self__", None), Context)
        fn = fn.args[0] if is_in_context and fn.args else fn.func
    return str(getattr(fn, "__qualname__", None) or repr(fn))


def _frames_of(awaited: Any) -> Iterable[FrameType]:
    """From the coroutine of a task inwards, as far as Python tells."""
    while awaited is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                break
        else:
            return
        awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)


def _frames_outwards(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _innermost(frames: Iterable[FrameType]) -> FrameType | None:
    """The innermost of these (given from the inside) that is a user's; else the innermost."""
    first = None
    for frame in frames:
        first = first or frame
        if _is_of_user(frame.f_code):
            return frame
    return first


def _is_of_user(code: CodeType) -> bool:
    name = code.co_filename
    if name.startswith((_OURS, "<frozen")):
        return False
    return not name.startswith(_STDLIB) or "site-packages" in name


def _said(frame: FrameType | None) -> str:
    if frame is None:
        return "an unknown place"
    code = frame.f_code
    line = linecache.getline(code.co_filename, frame.f_lineno).strip()
    text = f": {line}" if line else ""
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}{text}"
