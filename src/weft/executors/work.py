"""Calling a body in another process: in the context it brings, with what it may ask, and its log records sent home."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Any

from weft.executors.base import Body
from weft.executors.inside import Inside, forget_in_forks, inside

#: Context variables, with the values that they are to have.
Carried = tuple[tuple[ContextVar[Any], Any], ...]


def trace_headers() -> dict[str, str]:
    """The headers of the trace that this context is part of; none where nobody traces."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry import propagate  # noqa: PLC0415 - only where somebody uses it

    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def call_here(
    body: Body, *, variables: Carried, there: Inside, log: Callable[[logging.LogRecord], None]
) -> Any:
    """Call a body in a context of its own; what it returns to await is awaited."""
    return copy_context().run(_call, body, variables, there, log)


def _call(body: Body, variables: Carried, there: Inside, log: Callable[[logging.LogRecord], None]) -> Any:
    forget_in_forks(inside)  # which have no line to the workflow
    inside.set(there)
    for variable, value in variables:
        variable.set(value)
    with _sent_home(log, body.ticket.levels), _traced(body.ticket.trace):
        value = body.fn(*body.args, **body.kwargs)
        return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value


@contextlib.contextmanager
def _traced(headers: dict[str, str]) -> Iterator[None]:
    if not headers:
        yield
        return
    from opentelemetry import context, propagate  # noqa: PLC0415 - only where somebody uses it

    token = context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        context.detach(token)


class _Home(logging.Handler):
    """Sends the records of one body, and of nobody beside it.

    A thread that the body has begun by itself is not known to be of it, but where it is the only one at work.
    """

    def __init__(self, log: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._log = log
        self._there = inside.get()
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        there = inside.get()
        if there is self._there or (there is None and _homes == [self] and os.getpid() == self._pid):
            self._log(sendable(record))


_homes: list[_Home] = []


@contextlib.contextmanager
def _sent_home(log: Callable[[logging.LogRecord], None], levels: dict[str, int]) -> Iterator[None]:
    handler = _Home(log)
    before = {name: logging.getLogger(name).level for name in levels}
    _homes.append(handler)
    logging.root.addHandler(handler)
    _set_levels(levels)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        _homes.remove(handler)
        _set_levels(before)


def _set_levels(levels: dict[str, int]) -> None:
    for name, level in levels.items():
        logger = logging.getLogger(name)
        if logger.level != level:
            logger.setLevel(level)


def sendable(record: logging.LogRecord) -> logging.LogRecord:
    """A record of text alone, as for a queue between processes."""
    found = copy.copy(record)
    if found.exc_info and not found.exc_text:
        found.exc_text = logging.Formatter().formatException(found.exc_info)
    found.msg, found.args, found.exc_info = _message_of(record), None, None
    return found


def plain(record: logging.LogRecord) -> logging.LogRecord:
    """What every record has, without what an application hangs on its own."""
    found = logging.LogRecord("", 0, "", 0, "", None, None)
    vars(found).update({name: getattr(record, name) for name in vars(found)})
    return found


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (
        Exception
    ) as error:  # as of a handler of its own: a record that cannot be shown must not fail the body
        return f"{record.msg!s} (its arguments do not fit: {error!r})"
