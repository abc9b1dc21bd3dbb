"""Whole runs of a workflow in other processes and on other machines, each with an engine of its own."""

from __future__ import annotations

import concurrent.futures
import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from weft.core.retry import RetryPolicy
from weft.engine.context import call_id, remaining
from weft.engine.step import Step
from weft.errors import DefinitionError, RunBusyError, UsageError, WorkerDiedError
from weft.runnable import Runnable

if TYPE_CHECKING:
    from weft.checkpoint.base import Checkpointer
    from weft.engine.call import Call

#: Seconds between two looks whether a run that another process seems to be at can be had.
_LOOK_AGAIN = 0.5

#: What is lost goes on elsewhere. A run that ends its process each time is given up.
_WHEN_LOST = RetryPolicy(max_attempts=3, initial_interval=0.1, retry_on=WorkerDiedError)


class Elsewhere(Runnable):
    """A workflow whose runs, as parts of another, are done by an executor.

    Such a run has limits, events and a journal of its own, in the store of the run that it is part of: when the
    process that does it is lost, the executor begins it again elsewhere, and it goes on from what is recorded.
    """

    computes = False  # here it only waits

    def __init__(self, part: Runnable, executor: Any) -> None:
        part = part.as_part()
        if executor == "thread" or isinstance(executor, concurrent.futures.ThreadPoolExecutor):
            raise DefinitionError(
                f"{part.key!r} is a workflow, which brings threads of its own: executor={executor!r:.60} is for "
                "functions; leave it out"
            )
        self.part = part
        self.key = part.key
        self.step = Step.of(
            _RunThere(part),
            name=part.step.name,
            executor=executor,
            inject=(("store", 1), ("context", 2)),
            retry=(_WHEN_LOST,),
            workflow=self,
        )

    def __repr__(self) -> str:
        return f"<{self.part!r} elsewhere>"

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """The workflow."""
        yield "elsewhere", self.part

    def provide(self, name: str, call: Call) -> Any:
        """The store and the context of the run that it is part of."""
        options = call.run.options
        return options.checkpointer if name == "store" else options.context


class _RunThere:
    """Runs a workflow in whatever process it is called; sent as bytes that are made, and read, once."""

    def __init__(self, part: Runnable) -> None:
        self._part = part
        self.__name__ = part.step.name

    def __call__(self, input: Any, store: Checkpointer | None, context: Any) -> Any:
        return _run(self._part, input, store, context)

    def __reduce__(self) -> tuple[Any, ...]:
        return _run_of, (self._sent,)

    @functools.cached_property
    def _sent(self) -> bytes:
        from weft.executors.parcel import pack  # noqa: PLC0415 - it needs cloudpickle

        return pack(self._part, f"the workflow {self._part.key}")


@functools.lru_cache(maxsize=16)
def _run_of(sent: bytes) -> _RunThere:
    from weft.executors.parcel import unpack  # noqa: PLC0415 - as above

    return _RunThere(unpack(sent))


def _run(part: Runnable, input: Any, store: Checkpointer | None, context: Any) -> Any:
    """A run of the workflow in this process; one that was lost elsewhere goes on here."""
    options: dict[str, Any] = {"timeout": remaining() or None}
    if store is not None:
        options |= {"checkpointer": store, "run_id": call_id()}
    if context is not None:
        options["context"] = context
    while True:
        try:
            value = part.invoke(input, **options)
        except RunBusyError as error:
            left = remaining()
            if error.run_id != call_id() or (left is not None and left <= _LOOK_AGAIN):
                raise
            # The process that was lost has not been found dead yet.
            time.sleep(_LOOK_AGAIN)
            continue
        if isinstance(value, dict) and "__interrupt__" in value:
            raise UsageError(
                f"{part.key!r} asks a question, which nobody can answer where an executor runs it; ask it in the "
                "workflow that has this one as a part"
            )
        return value
