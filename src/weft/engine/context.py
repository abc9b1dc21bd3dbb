"""What a body may ask of the call that it is."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from weft.errors import NotInRunError
from weft.executors.inside import inside

if TYPE_CHECKING:
    from weft.engine.call import Call

current: ContextVar[Call | None] = ContextVar("weft_call", default=None)


def current_call(what: str) -> Call:
    """The call whose body this is.

    Raises:
        NotInRunError: There is none; ``what`` names who asked.
    """
    call = current.get()
    if call is None:
        if inside.get() is not None:
            raise NotInRunError(
                f"{what} works in the process of the workflow only, and an executor runs this body in another one. "
                "Here call_id(), cancelled(), remaining(), a stream writer and a heartbeat can be used; do the rest "
                "in the workflow, and pass values"
            )
        raise NotInRunError(
            f"{what} works inside a run only: in the body of a task, node or entrypoint. A thread that a body "
            "starts by itself is outside, unless it runs in contextvars.copy_context()."
        )
    return call


def call_id() -> str:
    """The id of the call whose body this is: the same on every attempt and resume, an idempotency key.

    Raises:
        NotInRunError: Not called from a body.
    """
    there = inside.get()
    return there.call_id if there is not None else current_call("call_id()").id


def cancelled() -> bool:
    """Whether nobody waits for this body any more. A long sync body asks now and then, and returns.

    Raises:
        NotInRunError: Not called from a body.
    """
    if (there := inside.get()) is not None:
        return there.is_cancelled
    call = current_call("cancelled()")
    if call.run.clock.is_virtual:  # or a body that asks in a loop would hold up time
        call.run.clock.leave()
        call.run.clock.enter()
    return call.is_told_to_stop


def remaining() -> float | None:
    """Seconds until the deadline of this call or an ancestor's; None without one; never below 0.

    Raises:
        NotInRunError: Not called from a body.
    """
    there = inside.get()
    return there.remaining() if there is not None else current_call("remaining()").remaining()
