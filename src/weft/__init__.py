"""Weft runs parallel workflows and does not lose their work.

The layers, the lower first; none imports a higher one:

    core         decides: identity, order, retry, slots. Pure
    checkpoint   keeps journals: the protocol, the codec, stores
    engine       acts: runs, calls, threads, cancellation, the journal
    observe      shows: streams, progress
    runnable     the verbs that everything has: invoke, ainvoke, stream, astream, submit
    functional   the functional style: task, entrypoint, interrupt

Names are imported when they are first used, so that ``import weft`` costs little.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.cache import Cache, CachePolicy, InMemoryCache
    from weft.checkpoint.base import Checkpointer, RunStatus
    from weft.checkpoint.codec import Codec
    from weft.checkpoint.memory import InMemorySaver
    from weft.checkpoint.memory import InMemorySaver as MemorySaver
    from weft.checkpoint.sqlite import SqliteSaver
    from weft.core.outcome import Cancelled, Failed, NotStarted, Ok, Outcome, Skipped, TimedOut
    from weft.core.question import Command, Interrupt
    from weft.core.retry import RetryPolicy
    from weft.core.timeout import TimeoutPolicy
    from weft.engine.context import call_id, cancelled, remaining
    from weft.errors import (
        AnswerError,
        CheckpointError,
        CorruptDataError,
        DefinitionError,
        DirectCallError,
        InputError,
        NodeTimeoutError,
        NotInRunError,
        OwnerLostError,
        ReplayMismatchError,
        RunBusyError,
        RunCancelledError,
        RunMismatchError,
        RunNotFoundError,
        StoreError,
        ThreadBusy,
        UnstorableError,
        UsageError,
        WeftError,
    )
    from weft.functional import (
        Entrypoint,
        Task,
        entrypoint,
        get_config,
        get_runtime,
        get_store,
        get_stream_writer,
        interrupt,
        task,
    )
    from weft.history import Runs, runs
    from weft.memory import BaseStore, InMemoryStore
    from weft.run import Run
    from weft.runnable import Runnable
    from weft.types import RunnableConfig, Runtime, StateSnapshot, StreamWriter

_HOME = {
    "weft.cache": ("Cache", "CachePolicy", "InMemoryCache"),
    "weft.checkpoint.base": ("Checkpointer", "RunStatus"),
    "weft.checkpoint.codec": ("Codec",),
    "weft.checkpoint.memory": ("InMemorySaver", "MemorySaver"),
    "weft.checkpoint.sqlite": ("SqliteSaver",),
    "weft.core.outcome": ("Cancelled", "Failed", "NotStarted", "Ok", "Outcome", "Skipped", "TimedOut"),
    "weft.core.question": ("Command", "Interrupt"),
    "weft.core.retry": ("RetryPolicy",),
    "weft.core.timeout": ("TimeoutPolicy",),
    "weft.engine.context": ("call_id", "cancelled", "remaining"),
    "weft.errors": (
        "AnswerError",
        "CheckpointError",
        "CorruptDataError",
        "DefinitionError",
        "DirectCallError",
        "InputError",
        "NodeTimeoutError",
        "NotInRunError",
        "OwnerLostError",
        "ReplayMismatchError",
        "RunBusyError",
        "RunCancelledError",
        "RunMismatchError",
        "RunNotFoundError",
        "StoreError",
        "ThreadBusy",
        "UnstorableError",
        "UsageError",
        "WeftError",
    ),
    "weft.functional": (
        "Entrypoint",
        "Task",
        "entrypoint",
        "get_config",
        "get_runtime",
        "get_store",
        "get_stream_writer",
        "interrupt",
        "task",
    ),
    "weft.memory": ("BaseStore", "InMemoryStore"),
    "weft.run": ("Run",),
    "weft.runnable": ("Runnable",),
    "weft.history": ("Runs", "runs"),
    "weft.types": ("RunnableConfig", "Runtime", "StateSnapshot", "StreamWriter"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_ALIASES = {"MemorySaver": "InMemorySaver"}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    value = getattr(import_module(module), _ALIASES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "AnswerError",
    "BaseStore",
    "Cache",
    "CachePolicy",
    "Cancelled",
    "CheckpointError",
    "Checkpointer",
    "Codec",
    "Command",
    "CorruptDataError",
    "DefinitionError",
    "DirectCallError",
    "Entrypoint",
    "Failed",
    "InMemoryCache",
    "InMemorySaver",
    "InMemoryStore",
    "InputError",
    "Interrupt",
    "MemorySaver",
    "NodeTimeoutError",
    "NotInRunError",
    "NotStarted",
    "Ok",
    "Outcome",
    "OwnerLostError",
    "ReplayMismatchError",
    "RetryPolicy",
    "Run",
    "RunBusyError",
    "RunCancelledError",
    "RunMismatchError",
    "RunNotFoundError",
    "RunStatus",
    "Runnable",
    "RunnableConfig",
    "Runs",
    "Runtime",
    "Skipped",
    "SqliteSaver",
    "StateSnapshot",
    "StoreError",
    "StreamWriter",
    "Task",
    "ThreadBusy",
    "TimedOut",
    "TimeoutPolicy",
    "UnstorableError",
    "UsageError",
    "WeftError",
    "call_id",
    "cancelled",
    "entrypoint",
    "get_config",
    "get_runtime",
    "get_store",
    "get_stream_writer",
    "interrupt",
    "remaining",
    "runs",
    "task",
]
