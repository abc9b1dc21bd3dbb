"""What became of a body elsewhere, in one piece: what it wrote and logged, and how it ended."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Any

from weft.errors import UnsendableError
from weft.executors.base import Listener, TimedOutThere
from weft.executors.parcel import RemoteTraceback, outcome_of, pack, pack_error, unpack


@dataclass(slots=True)
class Report:
    """All that a listener is told, for one that is far away.

    Attributes:
        step: Of the body.
        written: What the body wrote to the events of its run, each packed.
        logged: Its log records.
        outcome: What it returned or raised, packed.
        has_failed: Whether it raised.
        out_of_time: The limit that it passed and how long it took (seconds), and whether that was without a sign of
            life; None if it passed none.
        seconds: How long it took.
    """

    step: str
    written: list[bytes] = field(default_factory=list)
    logged: list[logging.LogRecord] = field(default_factory=list)
    outcome: bytes = b""
    has_failed: bool = False
    out_of_time: tuple[float, float, bool] | None = None
    seconds: float = 0.0

    def end(self, value: Any, error: BaseException | None) -> None:
        """Keep how it ended."""
        if error is None:
            try:
                self.outcome = pack(value, f"what {self.step!r} returned")
                return
            except UnsendableError as unsendable:
                error = unsendable
        # Where it was raised says more than where it passed by.
        text = error.__cause__.text if isinstance(error.__cause__, RemoteTraceback) else None
        self.outcome, self.has_failed = pack_error(error, text=text), True


class Reporter:
    """A listener that keeps a report."""

    def __init__(self, step: str) -> None:
        self.report = Report(step)
        self.done = threading.Event()
        self.signs = 0

    def begun(self) -> None:
        """The body is being called."""
        self.signs += 1

    def wrote(self, value: Any) -> None:
        """Keep what it wrote."""
        self.signs += 1
        self.report.written.append(pack(value, "what was written"))

    def logged(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.report.logged.append(record)

    def beat(self) -> None:
        """Count a sign of life."""
        self.signs += 1

    def ended(self, value: Any, error: BaseException | None) -> None:
        """Keep how it ended."""
        self.report.end(value, error)
        self.done.set()


def tell_report(report: Report, listener: Listener) -> None:
    """Tell a listener all of it."""
    for value in report.written:
        listener.wrote(unpack(value))
    for record in report.logged:
        listener.logged(record)
    if report.out_of_time is not None:
        limit, elapsed, idle = report.out_of_time
        listener.ended(None, TimedOutThere(limit, elapsed, idle=idle))
        return
    listener.ended(*outcome_of(report.outcome, has_failed=report.has_failed, step=report.step))
