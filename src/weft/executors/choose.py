"""Which executor ``executor=`` means."""

from __future__ import annotations

import concurrent.futures
import functools
from typing import Any

from weft.errors import DefinitionError
from weft.executors.base import Executor


def executor_of(value: Any, *, is_async: bool, name: str) -> Executor | None:
    """The executor of a step; None for the loop and the threads of the engine.

    Args:
        value: What the user gave: ``"thread"``, ``"process"``, any ``concurrent.futures.Executor``, a
            ``ProcessExecutor``, ``DaskExecutor`` or ``RayExecutor``, a ``distributed.Client``, or None.
        is_async: Whether the step is an ``async def``.
        name: Of the step, for errors.

    Raises:
        DefinitionError: It is none of these, or cannot run such a function.
    """
    if value is None:
        return None
    if value == "thread":
        if is_async:
            raise DefinitionError(
                f"{name!r} is an async def, which runs on the loop: executor='thread' is for a def; leave it out"
            )
        return None
    if value == "process":
        return _processes()
    if isinstance(value, concurrent.futures.Executor):
        return _pool(value, is_async=is_async, name=name)
    if callable(getattr(value, "begin", None)):
        found: Executor = value
        return found
    if type(value).__module__.partition(".")[0] == "distributed":
        from weft.executors.dask import DaskExecutor  # noqa: PLC0415 - only for who has it

        return DaskExecutor(value)
    raise DefinitionError(
        f"executor of {name!r} must be 'thread', 'process', a concurrent.futures.Executor, a weft.ProcessExecutor, "
        f"weft.DaskExecutor or weft.RayExecutor, not {value!r:.100}"
    )


@functools.cache
def _processes() -> Executor:
    """The processes that all steps with ``executor="process"`` share."""
    from weft.executors.process import ProcessExecutor  # noqa: PLC0415 - only for who asks

    return ProcessExecutor()


def _pool(value: concurrent.futures.Executor, *, is_async: bool, name: str) -> Executor:
    from weft.executors.foreign import PoolExecutor, shares_memory  # noqa: PLC0415 - only for who has one

    if not shares_memory(value):
        import weft.executors.parcel  # noqa: F401, PLC0415 - what is missing for it is said here, not at a call
    elif is_async:
        raise DefinitionError(
            f"{name!r} is an async def, which runs on the loop: a ThreadPoolExecutor is for a def; leave it out"
        )
    return PoolExecutor(value)
