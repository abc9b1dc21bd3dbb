"""Where a run stands."""

from __future__ import annotations

from enum import Enum


class RunStatus(Enum):
    """Where a run stands."""

    __hash__ = object.__hash__  # that of Enum is written in Python, and it is looked up often

    RUNNING = "running"  # has an owner, or had one that died
    SUSPENDED = "suspended"  # waits for answers; has no owner
    FINISHED = "finished"  # has an output
    FAILED = "failed"  # ended with an error; may be resumed
    CANCELLED = "cancelled"  # was stopped on request; may be resumed
