"""Small values that cross the surface: questions, commands, snapshots, policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypedDict, TypeVar

from weft.core.question import Command, Interrupt
from weft.core.retry import RetryPolicy
from weft.core.timeout import TimeoutPolicy
from weft.executors.inside import Absent

ContextT = TypeVar("ContextT")

StreamMode = Literal["updates", "values", "custom", "tasks"]
Durability = Literal["sync", "async", "exit"]


class StreamWriter(Protocol):
    """Writes values to the events of a run, and to its stream.

    In a ``def``, which runs in a thread, a call waits while more than 1,000 events of the run's stream are unread. An
    ``async def`` must not be held up in the middle: it awaits :meth:`drain` now and then.
    """

    def __call__(self, value: object, /) -> None:
        """Write a value."""
        ...

    async def drain(self) -> None:
        """Wait while more than 1,000 events of the run's stream are unread."""
        ...


class _Nowhere:
    """Where a runtime writes that belongs to no run."""

    def __call__(self, value: object, /) -> None:
        pass

    async def drain(self) -> None:
        pass


class RunnableConfig(TypedDict, total=False):
    """LangGraph's spelling of a run's options."""

    configurable: dict[str, object]  # not Any: that would make an overloaded decorator forget the signature
    max_concurrency: int | None
    tags: list[str]
    metadata: dict[str, object]
    run_name: str
    recursion_limit: int


class PregelTask(NamedTuple):
    """What an unfinished thread is at: its entrypoint, with the error or the questions that it ended with."""

    id: str
    name: str
    path: tuple[str, ...] = ()
    error: str | None = None
    interrupts: tuple[Interrupt, ...] = ()
    state: None = None
    result: Any = None


class StateSnapshot(NamedTuple):
    """A thread at one moment.

    Attributes:
        values: What the last finished run returned, or ``update_state`` was given; {} before the first.
        next: The entrypoint that a resume would go on with; empty when the last run is finished.
        config: What to pass to get this snapshot again.
        metadata: Where it comes from.
        created_at: ISO 8601, in UTC.
        parent_config: The snapshot before it.
        tasks: The unfinished entrypoint.
        interrupts: All open questions.
    """

    values: Any
    next: tuple[str, ...]
    config: Mapping[str, Any]
    metadata: Mapping[str, Any] | None
    created_at: str | None
    parent_config: Mapping[str, Any] | None
    tasks: tuple[PregelTask, ...]
    interrupts: tuple[Interrupt, ...]


@dataclass(frozen=True, slots=True)
class Runtime(Generic[ContextT]):
    """What a run gives to its bodies, injected as ``runtime``.

    Attributes:
        context: What ``invoke(context=...)`` was given.
        store: The long-term memory store of the entrypoint.
        stream_writer: Writes to the ``custom`` stream.
        previous: What the last run of the thread saved.
        heartbeat: A sign of life for an idle timeout.
        run_id: The run.
        thread_id: Its thread.
    """

    context: ContextT
    store: Any = None
    stream_writer: StreamWriter = field(default_factory=_Nowhere)
    previous: Any = None
    heartbeat: Callable[[], None] = field(default=lambda: None)
    run_id: str = ""
    thread_id: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """What a body in another process gets: all but the store, which stays with the workflow."""
        store = None if self.store is None else Absent("runtime.store")
        given = (self.context, store, self.stream_writer, self.previous, self.heartbeat)
        return Runtime, (*given, self.run_id, self.thread_id)


__all__ = [
    "Command",
    "Durability",
    "Interrupt",
    "PregelTask",
    "RetryPolicy",
    "RunnableConfig",
    "Runtime",
    "StateSnapshot",
    "StreamMode",
    "StreamWriter",
    "TimeoutPolicy",
]
