"""What a run gives to the bodies in it, in every style: its config, the writer of its stream, and so on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from weft.types import Runtime, StreamWriter

if TYPE_CHECKING:
    from weft.engine.call import Call
    from weft.runnable import Runnable


def _config(workflow: Runnable, call: Call) -> Mapping[str, Any]:
    run = call.run
    given = run.options.config
    configurable = {**(given.get("configurable") or {}), "thread_id": run.thread_id, "run_id": run.id}
    return {"metadata": {}, "tags": [], **given, "configurable": configurable}


def _writer(workflow: Runnable, call: Call) -> StreamWriter:
    run = call.run

    def write(value: Any) -> None:
        run.tell(call.tell_user_event, value)

    return write


def _runtime(workflow: Runnable, call: Call) -> Runtime[Any]:
    run = call.run
    return Runtime(
        context=workflow.context_of(run.options.context),
        store=workflow.memory,
        stream_writer=_writer(workflow, call),
        previous=run.previous,
        heartbeat=call.heartbeat,
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
