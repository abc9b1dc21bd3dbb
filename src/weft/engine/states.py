"""Where a call stands, and why it is made to end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum

from weft.core.status import RunStatus
from weft.errors import Stopped, Suspended


class State(Enum):
    """Where a call stands."""

    ASKED = "asked"  # its record is being shown, or something has to be written before it starts
    QUEUED = "queued"  # waits for limits
    RUNNING = "running"  # its body is at work, or waits
    DRAINING = "draining"  # its body has ended, its children have not
    BACKING_OFF = "backing off"  # waits for its next attempt
    OPEN = "open"  # waits for an answer
    ENDED = "ended"  # its outcome is being made durable, or waits to be shown
    OVER = "over"


#: By themselves for who asks often: in Python 3.11 an attribute of an Enum takes four times as long as a global.
ASKED, QUEUED, RUNNING, DRAINING = State.ASKED, State.QUEUED, State.RUNNING, State.DRAINING
BACKING_OFF, OPEN, ENDED, OVER = State.BACKING_OFF, State.OPEN, State.ENDED, State.OVER


class StopKind(Enum):
    """Why a body is made to end."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    SUSPEND = "suspend"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a call is being stopped, and how long its sync bodies are waited for (seconds)."""

    kind: StopKind
    reason: str
    grace: float = 1.0

    def unwinding(self) -> BaseException:
        """What the body gets instead of a result."""
        return Suspended() if self.kind is StopKind.SUSPEND else Stopped(self.reason)


@dataclass(frozen=True, slots=True)
class GivenUpBody:
    """A sync body that outlived its call; its thread ends when it ends."""

    call_id: str
    step: str
    reason: str


def status_of(error: BaseException | None) -> RunStatus:
    """What a run has become that ended with this error, or without one."""
    if error is None:
        return RunStatus.FINISHED
    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
        return RunStatus.CANCELLED
    return RunStatus.FAILED
