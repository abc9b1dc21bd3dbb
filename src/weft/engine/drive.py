"""The faces of the engine: a run for a sync caller, and a run for a caller on a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from weft.engine.caller import Caller
from weft.engine.clock import clock_of
from weft.engine.execution import Execution
from weft.engine.futures import LoopFuture
from weft.engine.portal import portal
from weft.errors import UsageError

if TYPE_CHECKING:
    from weft.engine.events import Observer
    from weft.engine.options import RunOptions
    from weft.engine.workflow import Workflow


def run_here(workflow: Workflow, input: Any, options: RunOptions, observers: Sequence[Observer] = ()) -> Any:
    """Run to the end on our own loop; a sync body of the run itself uses this thread.

    Ctrl-C cancels the run, waits for what it has begun, and is raised again.
    """
    _refuse_own_loop()
    caller = Caller()
    run = Execution(workflow, input, options, loop=portal.loop, caller=caller, observers=observers)
    run.future.add_done_callback(lambda _: caller.end())
    try:
        run.begin()
        caller.serve()
    except BaseException:
        run.begin()  # the interrupt may have come in the middle of it
        run.post(run.cancel, "interrupted")
        caller.serve()
        raise
    return run.future.result()


def run_on_loop(
    workflow: Workflow, input: Any, options: RunOptions, observers: Sequence[Observer] = ()
) -> LoopFuture:
    """Begin a run on the caller's loop; what is returned is done when the run has ended.

    Cancelling that cancels the run, and waits for what it has begun.
    """
    run = start_on_loop(workflow, input, options, observers)
    assert isinstance(run.future, LoopFuture)
    run.start()
    return run.future


def start_on_loop(
    workflow: Workflow, input: Any, options: RunOptions, observers: Sequence[Observer] = ()
) -> Execution:
    """A run on the running loop, not started yet."""
    return Execution(workflow, input, options, loop=asyncio.get_running_loop(), observers=observers)


def start_on_portal(
    workflow: Workflow, input: Any, options: RunOptions, observers: Sequence[Observer] = ()
) -> Execution:
    """A run on our own loop, not started yet; nobody's thread is lent to it."""
    _refuse_own_loop()
    return Execution(workflow, input, options, loop=portal.loop, threaded=True, observers=observers)


def _refuse_own_loop() -> None:
    """What runs on our own loop, such as a source that an async workflow reads, must not block it for all runs."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return
    if running is portal.loop or clock_of(running).is_virtual:
        raise UsageError(
            "invoke(), stream() and submit() would block the loop on which this very code runs, and the run needs it; "
            "write `await ...ainvoke(...)`, or have that code run in a thread"
        )
