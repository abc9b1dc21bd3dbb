"""How long an attempt may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.core.checks import check_span
from weft.errors import DefinitionError


@dataclass(frozen=True)
class TimeoutPolicy:
    """How long one attempt of a call may take.

    Attributes:
        run_timeout: Seconds (or a ``timedelta``) from its start; waiting for limits is not counted.
        idle_timeout: Seconds (or a ``timedelta``) without a sign of life: something written, a child asked for or
            ended.
        refresh_on: "auto" as said; "heartbeat" for ``runtime.heartbeat()`` alone.
    """

    run_timeout: float | None = None
    idle_timeout: float | None = None
    refresh_on: str = "auto"

    def __post_init__(self) -> None:
        for name in ("run_timeout", "idle_timeout"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_span(name, value))
        if self.refresh_on not in {"auto", "heartbeat"}:
            raise DefinitionError(f'refresh_on must be "auto" or "heartbeat", not {self.refresh_on!r}')

    @classmethod
    def of(cls, value: Any) -> TimeoutPolicy | None:
        """A policy from what users write: seconds, a ``timedelta``, a policy or None."""
        if value is None or isinstance(value, cls):
            return value
        return cls(run_timeout=check_span("timeout", value))
