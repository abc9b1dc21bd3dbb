"""What happens in a run, as one ordered stream of facts. Everything that shows a run is made of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weft.core.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run.

    Attributes:
        run_id: The run.
        time: Seconds since the epoch.
    """

    run_id: str
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The run begins, or begins again (``resumed``); ``recorded`` outcomes will not be computed again."""

    workflow: str
    resumed: bool = False
    recorded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEvent(Event):
    """Something that happened to a call.

    Attributes:
        call_id: The same on every attempt and resume.
        step: The name of its step.
        parent_id: The call that asked for it; "" for the run's own body.
    """

    call_id: str
    step: str
    parent_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAsked(CallEvent):
    """A body asked for the call; it may have to wait for limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallQueued(CallEvent):
    """The call has to wait for at least one of its limits, named here."""

    limits: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(CallEvent):
    """An attempt begins."""

    attempt: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRetrying(CallEvent):
    """An attempt failed; another follows after ``delay`` seconds."""

    attempt: int
    delay: float
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFinished(CallEvent):
    """The outcome of the call is visible to the body that asked.

    Attributes:
        outcome: How it ended.
        recorded: It comes from the journal; nothing ran.
        cached: It comes from the cache; nothing ran.
        attempts: How many attempts there were.
    """

    outcome: Outcome[Any]
    recorded: bool = False
    cached: bool = False
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSized(CallEvent):
    """How many branches of a block may be in flight, and why.

    Attributes:
        width: Of all branches; None for all at once.
        computing: Of those with a sync body, which computes; None for as many as ``width``.
        reason: For people.
    """

    width: int | None
    computing: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDecided(CallEvent):
    """A block needs no more outcomes, or cannot have its result any more: what is left of it is stopped.

    Attributes:
        reason: For people.
        ok: How many branches have a value.
        failed: How many ended in another way.
        total: How many there are; None while that is not known.
    """

    reason: str
    ok: int
    failed: int
    total: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConflict(CallEvent):
    """Branches of a graph that met had changed the same of its state, and the later one has won.

    Attributes:
        path: The keys that lead there.
        branches: What the branches are called; the second one won.
    """

    path: tuple[Any, ...]
    branches: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchesJoined(CallEvent):
    """A node of a graph goes on from what several branches have brought to it.

    Attributes:
        branches: The ids of the calls that came last on each of them, by time of arrival; "" for what was no call.
    """

    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallGivenUp(CallEvent):
    """A sync body that could not be stopped was left to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAsked(CallEvent):
    """A body asked a question; the call stays open until it is answered."""

    question_id: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CallMismatch(CallEvent):
    """On resume the code asked for another call than the one recorded at that place (``recorded_step``)."""

    recorded_step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UserEvent(CallEvent):
    """What a body wrote with its ``writer``."""

    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """The run ended, or was put aside until its questions are answered."""

    status: str
    outcome: Outcome[Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsLost(Event):
    """Told to a reader that was too slow, or came too late: so many events are not kept any more."""

    count: int


#: What is told of every call that stands for a step of the user's.
LIFE_OF_A_CALL: frozenset[type[CallEvent]] = frozenset(
    {CallAsked, CallQueued, CallStarted, CallRetrying, CallFinished}
)

Observer = Callable[[Event], None]
