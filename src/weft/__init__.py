"""Weft runs parallel workflows and does not lose their work.

The layers, the lower first; none imports a higher one:

    core         decides: identity, order, binding, retry, policies, limits. Pure
    checkpoint   keeps journals: the protocol, the codec, stores
    engine       acts: runs, calls, threads, cancellation, the journal
    observe      shows: streams, progress
    runnable     the verbs that everything has: invoke, ainvoke, stream, astream, map, amap, submit
    functional   the functional style: task, entrypoint, interrupt
    nodes        functions as parts of workflows: node, router
    graph        the graph style: Graph and what it runs
    compose      the compose style: parallel, Sequence, decision
    batch        the batch style: Node, Flow and what is made of them
    mapping      one workflow for every item: map, pipeline
    testing      a clock whose time jumps

Names are imported when they are first used, so that ``import weft`` costs little.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.batch import (
        DEFAULT_ACTION,
        AsyncBatchFlow,
        AsyncBatchNode,
        AsyncFlow,
        AsyncNode,
        AsyncParallelBatchFlow,
        AsyncParallelBatchNode,
        BaseNode,
        BatchFlow,
        BatchNode,
        Flow,
        Node,
        ParallelBatchFlow,
        ParallelBatchNode,
    )
    from weft.cache import Cache, CachePolicy, InMemoryCache
    from weft.checkpoint.base import Checkpointer
    from weft.checkpoint.codec import Codec
    from weft.checkpoint.keep import Keep
    from weft.checkpoint.memory import InMemorySaver
    from weft.checkpoint.memory import InMemorySaver as MemorySaver
    from weft.checkpoint.postgres import PostgresSaver
    from weft.checkpoint.sqlite import SqliteSaver
    from weft.compose import Decision, Parallel, Sequence, decision, parallel, race
    from weft.core.outcome import Cancelled, Failed, NotStarted, Ok, Outcome, Skipped, TimedOut
    from weft.core.policy import Tolerate, tolerate
    from weft.core.question import Command, Interrupt
    from weft.core.retry import RetryPolicy, transient
    from weft.core.status import RunStatus
    from weft.core.timeout import TimeoutPolicy
    from weft.engine.context import call_id, cancelled, remaining
    from weft.engine.limits import Limit
    from weft.engine.recorder import FailedCall
    from weft.errors import (
        AnswerError,
        CheckpointError,
        ConflictError,
        CorruptDataError,
        DefinitionError,
        DirectCallError,
        ExecutorError,
        GraphCompileError,
        GraphError,
        InputError,
        MaxStepsError,
        NodeTimeoutError,
        NotInRunError,
        OwnerLostError,
        ParallelExecutionError,
        ParallelTimeoutError,
        RemoteError,
        ReplayMismatchError,
        RetryAfter,
        RunBusyError,
        RunCancelledError,
        RunMismatchError,
        RunNotFoundError,
        StateConflictError,
        StoreError,
        StuckError,
        ThreadBusy,
        UnsendableError,
        UnstorableError,
        UsageError,
        WeftError,
        WorkerDiedError,
    )
    from weft.executors.base import Executor
    from weft.executors.dask import DaskExecutor
    from weft.executors.process import ProcessExecutor
    from weft.executors.ray import RayExecutor
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
    from weft.graph import Graph
    from weft.graph_callback import Callback, EventCallback, GraphEvent, GraphEventType
    from weft.graph_run import BranchError
    from weft.history import Runs, runs
    from weft.mapping import Map, Pipeline, amap, map, pipeline  # noqa: A004 - the word that everybody looks for
    from weft.memory import BaseStore, InMemoryStore
    from weft.nodes import FunctionNode, node, router
    from weft.observe.progress import Progress
    from weft.observe.timeline import Timeline, TimelineRecorder
    from weft.resume_plan import CallToRun, ResumePlan
    from weft.run import Run
    from weft.runnable import Runnable
    from weft.types import RunnableConfig, Runtime, StateSnapshot, StreamWriter

_HOME = {
    "weft.batch": (
        "DEFAULT_ACTION",
        "AsyncBatchFlow",
        "AsyncBatchNode",
        "AsyncFlow",
        "AsyncNode",
        "AsyncParallelBatchFlow",
        "AsyncParallelBatchNode",
        "BaseNode",
        "BatchFlow",
        "BatchNode",
        "Flow",
        "Node",
        "ParallelBatchFlow",
        "ParallelBatchNode",
    ),
    "weft.cache": ("Cache", "CachePolicy", "InMemoryCache"),
    "weft.checkpoint.base": ("Checkpointer",),
    "weft.core.status": ("RunStatus",),
    "weft.checkpoint.codec": ("Codec",),
    "weft.checkpoint.keep": ("Keep",),
    "weft.checkpoint.memory": ("InMemorySaver", "MemorySaver"),
    "weft.checkpoint.postgres": ("PostgresSaver",),
    "weft.checkpoint.sqlite": ("SqliteSaver",),
    "weft.core.outcome": ("Cancelled", "Failed", "NotStarted", "Ok", "Outcome", "Skipped", "TimedOut"),
    "weft.compose": ("Decision", "Parallel", "Sequence", "decision", "parallel", "race"),
    "weft.nodes": ("FunctionNode", "node", "router"),
    "weft.core.policy": ("Tolerate", "tolerate"),
    "weft.core.question": ("Command", "Interrupt"),
    "weft.core.retry": ("RetryPolicy", "transient"),
    "weft.core.timeout": ("TimeoutPolicy",),
    "weft.engine.context": ("call_id", "cancelled", "remaining"),
    "weft.errors": (
        "ConflictError",
        "GraphCompileError",
        "GraphError",
        "MaxStepsError",
        "StateConflictError",
        "StuckError",
        "AnswerError",
        "CheckpointError",
        "CorruptDataError",
        "DefinitionError",
        "DirectCallError",
        "ExecutorError",
        "InputError",
        "NodeTimeoutError",
        "NotInRunError",
        "OwnerLostError",
        "ParallelExecutionError",
        "ParallelTimeoutError",
        "RemoteError",
        "ReplayMismatchError",
        "RetryAfter",
        "RunBusyError",
        "RunCancelledError",
        "RunMismatchError",
        "RunNotFoundError",
        "StoreError",
        "ThreadBusy",
        "UnsendableError",
        "UnstorableError",
        "UsageError",
        "WeftError",
        "WorkerDiedError",
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
    "weft.engine.limits": ("Limit",),
    "weft.executors.base": ("Executor",),
    "weft.executors.dask": ("DaskExecutor",),
    "weft.executors.process": ("ProcessExecutor",),
    "weft.executors.ray": ("RayExecutor",),
    "weft.engine.recorder": ("FailedCall",),
    "weft.mapping": ("Map", "Pipeline", "amap", "map", "pipeline"),
    "weft.memory": ("BaseStore", "InMemoryStore"),
    "weft.resume_plan": ("CallToRun", "ResumePlan"),
    "weft.observe.progress": ("Progress",),
    "weft.observe.timeline": ("Timeline", "TimelineRecorder"),
    "weft.run": ("Run",),
    "weft.runnable": ("Runnable",),
    "weft.graph": ("Graph",),
    "weft.graph_run": ("BranchError",),
    "weft.graph_callback": ("Callback", "EventCallback", "GraphEvent", "GraphEventType"),
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
    "DEFAULT_ACTION",
    "AnswerError",
    "AsyncBatchFlow",
    "AsyncBatchNode",
    "AsyncFlow",
    "AsyncNode",
    "AsyncParallelBatchFlow",
    "AsyncParallelBatchNode",
    "BaseNode",
    "BaseStore",
    "BatchFlow",
    "BatchNode",
    "BranchError",
    "Cache",
    "CachePolicy",
    "CallToRun",
    "Callback",
    "Cancelled",
    "CheckpointError",
    "Checkpointer",
    "Codec",
    "Command",
    "ConflictError",
    "CorruptDataError",
    "DaskExecutor",
    "Decision",
    "DefinitionError",
    "DirectCallError",
    "Entrypoint",
    "EventCallback",
    "Executor",
    "ExecutorError",
    "Failed",
    "FailedCall",
    "Flow",
    "FunctionNode",
    "Graph",
    "GraphCompileError",
    "GraphError",
    "GraphEvent",
    "GraphEventType",
    "InMemoryCache",
    "InMemorySaver",
    "InMemoryStore",
    "InputError",
    "Interrupt",
    "Keep",
    "Limit",
    "Map",
    "MaxStepsError",
    "MemorySaver",
    "Node",
    "NodeTimeoutError",
    "NotInRunError",
    "NotStarted",
    "Ok",
    "Outcome",
    "OwnerLostError",
    "Parallel",
    "ParallelBatchFlow",
    "ParallelBatchNode",
    "ParallelExecutionError",
    "ParallelTimeoutError",
    "Pipeline",
    "PostgresSaver",
    "ProcessExecutor",
    "Progress",
    "RayExecutor",
    "RemoteError",
    "ReplayMismatchError",
    "ResumePlan",
    "RetryAfter",
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
    "Sequence",
    "Skipped",
    "SqliteSaver",
    "StateConflictError",
    "StateSnapshot",
    "StoreError",
    "StreamWriter",
    "StuckError",
    "Task",
    "ThreadBusy",
    "TimedOut",
    "Timeline",
    "TimelineRecorder",
    "TimeoutPolicy",
    "Tolerate",
    "UnsendableError",
    "UnstorableError",
    "UsageError",
    "WeftError",
    "WorkerDiedError",
    "amap",
    "call_id",
    "cancelled",
    "decision",
    "entrypoint",
    "get_config",
    "get_runtime",
    "get_store",
    "get_stream_writer",
    "interrupt",
    "map",
    "node",
    "parallel",
    "pipeline",
    "race",
    "remaining",
    "router",
    "runs",
    "task",
    "tolerate",
    "transient",
]
