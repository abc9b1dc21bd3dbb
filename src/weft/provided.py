"""What a run gives to the bodies in it, in every style: its config, the writer of its stream, and so on."""

from __future__ import annotations

import asyncio
import threading
import time
from asyncio import _get_running_loop
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from weft.executors import inside
from weft.types import Runtime, StreamWriter

if TYPE_CHECKING:
    from weft.engine.call import Call
    from weft.runnable import Runnable


def _config(workflow: Runnable, call: Call) -> Mapping[str, Any]:
    run = call.run
    given = run.options.config
    configurable = {**(given.get("configurable") or {}), "thread_id": run.thread_id, "run_id": run.id}
    return {"metadata": {}, "tags": [], **given, "configurable": configurable}


class _Writer:
    """Writes to the events of a run; see :class:`weft.StreamWriter`."""

    __slots__ = ("_call", "_count")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._count = 0

    def __call__(self, value: object, /) -> None:
        call = self._call
        call.run.tell(call.tell_user_event, value)
        self._count += 1
        if not self._count % _AT_ONCE and _get_running_loop() is None:
            self._let_the_reader_follow()

    def __reduce__(self) -> tuple[Any, ...]:
        return (inside.Writer, ())  # a body in another process has the like

    def _let_the_reader_follow(self) -> None:
        run, told = self._call.run, threading.Event()
        if (
            run.unread is None or run.clock.is_virtual
        ):  # in virtual time who reads may wait for this very body
            return
        if not run.post(told.set):
            return
        while not told.wait(_LOOK_AGAIN) and not self._call.is_told_to_stop:
            pass  # until then, what was written is still on its way, and not counted
        while self._is_ahead and not self._call.is_told_to_stop:
            time.sleep(_LOOK_AGAIN)

    async def drain(self) -> None:
        while self._is_ahead:  # noqa: ASYNC110 - the reader may be of another thread
            await asyncio.sleep(_LOOK_AGAIN)

    @property
    def _is_ahead(self) -> bool:
        run = self._call.run
        return run.unread is not None and run.unread() > MOST_UNREAD and not run.clock.is_virtual


#: Events that a stream may be behind before who writes to it has to wait, and seconds between two looks.
MOST_UNREAD = 1_000
_AT_ONCE = 100  # written by a thread before it looks
_LOOK_AGAIN = 0.005


def _writer(workflow: Runnable, call: Call) -> StreamWriter:
    return _Writer(call)


class _Heartbeat:
    """A sign of life of a body; see :class:`weft.Runtime`."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __call__(self) -> None:
        self._call.heartbeat()

    def __reduce__(self) -> tuple[Any, ...]:
        return (inside.Heartbeat, ())


def _runtime(workflow: Runnable, call: Call) -> Runtime[Any]:
    run = call.run
    return Runtime(
        context=workflow.context_of(run.options.context),
        store=workflow.memory,
        stream_writer=_writer(workflow, call),
        previous=run.previous,
        heartbeat=_Heartbeat(call),
        run_id=run.id,
        thread_id=run.thread_id,
    )


#: By name: what gives it to a body, from the workflow that the body belongs to and its call.
PROVIDERS: Mapping[str, Callable[[Runnable, Call], Any]] = {
    "config": _config,
    "previous": lambda _workflow, call: call.run.previous,
    "runtime": _runtime,
    "store": lambda workflow, _call: workflow.memory,
    "writer": _writer,
}
