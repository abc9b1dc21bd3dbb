"""What a run gives to the bodies in it, in every style: its config, the writer of its stream, and so on."""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from weft.engine.reader import LOOK_AFTER, let_the_reader_follow, until_the_reader_follows
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
        if not self._count % LOOK_AFTER and _get_running_loop() is None:
            let_the_reader_follow(call.run, lambda: call.is_told_to_stop)

    def __reduce__(self) -> tuple[Any, ...]:
        return (inside.Writer, ())  # a body in another process has the like

    async def drain(self) -> None:
        await until_the_reader_follows(self._call.run)


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
