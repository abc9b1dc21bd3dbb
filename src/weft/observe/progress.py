"""Progress for people: a live view on a terminal, plain lines elsewhere; both on stderr.

    events ─► Tally (counts, by step name) ─► _Live or _Lines (a thread of its own, which reads the counts)

The loop of the run only ever counts; what writes to the terminal, and may have to wait for it, is another
thread.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from weft.core.outcome import Failed, Ok, TimedOut
from weft.engine import events
from weft.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_EVERY = 2.0  # seconds between two plain lines
_WINDOW = 20.0  # seconds that a rate is the mean of
_SAMPLE = 0.5  # seconds between two samples of it


class Progress:
    """Shows how a run is getting on; an observer, and a context manager for the time of the run.

    On a terminal that is a live view, which needs rich; anywhere else (a file, a pipe, ``CI``, ``NO_COLOR``,
    ``TERM=dumb``) it is a plain line now and then.

    Args:
        file: Where to; stderr unless told.
        live: Whether to draw; found out unless told.

    Raises:
        UsageError: A live view is asked for, but rich is not installed.
    """

    def __init__(self, file: TextIO | None = None, *, live: bool | None = None) -> None:
        file = sys.stderr if file is None else file  # which is None where it was closed before we began
        self._tally = Tally()
        is_live = file is not None and _is_live(file, live)
        self._view: _View = _Live(self._tally, file) if is_live else _Lines(self._tally, file)

    def __enter__(self) -> Self:
        self._view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._view.stop()

    def __call__(self, event: events.Event) -> None:
        """Take an event into account; never waits."""
        line = self._tally.take(event)
        if line:
            self._view.tell(line)


class _View(Protocol):
    def start(self) -> None: ...
    def tell(self, line: str) -> None: ...
    def stop(self) -> None: ...


# Counting


class _Stage(Enum):
    """Where a call stands that has not ended."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"


@dataclass
class StepCount:
    """What has become of the calls of one step."""

    name: str
    total: int = 0
    done: int = 0  # ended, in whatever way
    reused: int = 0  # of these, recorded or cached
    failed: int = 0
    cancelled: int = 0
    retries: int = 0
    has_begun: bool = False  # a call was worked on, and not only reused
    live: dict[_Stage, int] = field(default_factory=lambda: dict.fromkeys(_Stage, 0))
    samples: deque[tuple[float, int]] = field(default_factory=deque)  # when, and how many had been worked on

    def put_aside(self) -> None:
        """The run waits for answers: calls that were left for that have not ended."""
        self.live[_Stage.WAITING] += self.cancelled
        self.cancelled = 0

    def sample(self, now: float) -> None:
        """Note how far it is, for the rate."""
        if not self.has_begun:
            return
        if not self.samples or now - self.samples[-1][0] >= _SAMPLE:
            self.samples.append((now, self.done - self.reused))
        while len(self.samples) > 2 and now - self.samples[0][0] > _WINDOW:
            self.samples.popleft()

    def rate(self, now: float) -> float | None:
        """Calls a second, of those that are worked on; None when that is not known, or none is left."""
        if not self.samples or self.done == self.total:
            return None
        since, before = self.samples[0]
        ended = self.done - self.reused - before
        return ended / (now - since) if ended > 0 and now > since else None

    def seconds_left(self, now: float) -> float | None:
        """How long the calls that are known of will take at this rate."""
        rate = self.rate(now)
        return (self.total - self.done) / rate if rate else None

    def parts(self) -> Iterator[tuple[str, int]]:
        """What is worth saying of it, the most important first."""
        yield "failed", self.failed
        yield "waiting", self.live[_Stage.WAITING]
        yield "retrying", self.live[_Stage.RETRYING]
        yield "running", self.live[_Stage.RUNNING]
        yield "cancelled", self.cancelled
        yield "reused", self.reused


class Tally:
    """Counts a run's events. Taken on one thread, looked at from another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.lock = threading.Lock()  # held for a few lines of arithmetic only
        self.workflow = ""
        self.steps: dict[str, StepCount] = {}
        self.began: float | None = None
        self.status: str | None = None  # how it ended
        self.ended = 0.0
        self.changes = 0
        self._stages: dict[str, tuple[StepCount, _Stage]] = {}
        self._takers: Mapping[type[events.Event], Callable[[Any], str | None]] = {
            events.RunStarted: self._run_started,
            events.CallAsked: self._asked,
            events.CallStarted: self._started,
            events.CallRetrying: self._retrying,
            events.QuestionAsked: self._question,
            events.CallFinished: self._finished,
            events.RunFinished: self._run_finished,
        }

    def take(self, event: events.Event) -> str | None:
        """Count an event; a line to tell if it is worth one."""
        taker = self._takers.get(type(event))
        if taker is None:
            return None
        with self.lock:
            self.changes += 1
            return taker(event)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, or from then to its end."""
        if self.began is None:
            return 0.0
        return (self.clock() if self.status is None else self.ended) - self.began

    def _run_started(self, event: events.RunStarted) -> str:
        self.began = self.clock()
        self.workflow = printable(event.workflow)
        if not event.resumed:
            return f"{self.workflow}: begins"
        return f"{self.workflow}: goes on, {_calls(event.recorded)} recorded"

    def _asked(self, event: events.CallAsked) -> None:
        self._move(event, _Stage.QUEUED)

    def _started(self, event: events.CallStarted) -> str | None:
        if not event.parent_id and event.call_id not in self._stages:
            return None  # the run's own body is of interest only when it asks something
        self._move(event, _Stage.RUNNING)
        step = self._step(event)
        if step.has_begun:
            return None
        step.has_begun = True
        step.sample(self.clock())
        return f"{step.name}: started"

    def _retrying(self, event: events.CallRetrying) -> None:
        if event.parent_id:
            self._move(event, _Stage.RETRYING)
            self._step(event).retries += 1

    def _question(self, event: events.QuestionAsked) -> str:
        self._move(event, _Stage.WAITING)
        return f"{printable(event.step)}: waits for an answer"

    def _finished(self, event: events.CallFinished) -> None:
        if not event.parent_id and event.call_id not in self._stages:
            return
        step = self._step(event)
        step.sample(self.clock())
        self._leave(event.call_id, step)
        if not isinstance(event.outcome, Ok | Failed | TimedOut):
            step.cancelled += 1
            return
        step.done += 1
        if event.recorded or event.cached:
            step.reused += 1
        if isinstance(event.outcome, Failed | TimedOut):
            step.failed += 1

    def _run_finished(self, event: events.RunFinished) -> None:
        self.status = event.status
        self.ended = self.clock()
        if event.status == "suspended":
            for step in self.steps.values():
                step.put_aside()

    def _step(self, event: events.CallEvent) -> StepCount:
        step = self.steps.get(event.step)
        if step is None:
            step = self.steps[event.step] = StepCount(printable(event.step))
        return step

    def _move(self, event: events.CallEvent, to: _Stage) -> None:
        step = self._step(event)
        self._leave(event.call_id, step)
        self._stages[event.call_id] = step, to
        step.live[to] += 1

    def _leave(self, call_id: str, step: StepCount) -> None:
        """The call leaves the stage it is in; one that is new counts from now on."""
        known = self._stages.pop(call_id, None)
        if known is None:
            step.total += 1
        else:
            step.live[known[1]] -= 1

    def summary(self) -> str | None:
        """The whole run in one line; None when there was none."""
        if self.began is None or self.status is None:
            return None
        steps = self.steps.values()
        parts = [_calls(sum(step.done for step in steps))]
        counts = {
            "reused": sum(step.reused for step in steps),
            "failed": sum(step.failed for step in steps),
            "cancelled": sum(step.cancelled for step in steps),
            "retried": sum(step.retries for step in steps),
            "waiting": sum(step.live[_Stage.WAITING] for step in steps),
        }
        parts += [f"{count} {what}" for what, count in counts.items() if count]
        return f"{self.workflow}: {self.status} after {duration(self.elapsed)}: {', '.join(parts)}"


# Plain lines


class _Lines:
    """One line when something begins, one every two seconds while something changes, one at the end."""

    def __init__(self, tally: Tally, file: TextIO | None) -> None:
        self._tally = tally
        self._file = file
        self._told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="weft-progress", daemon=True)
        self._seen = 0
        self._last: dict[str, str] = {}

    def start(self) -> None:
        self._thread.start()

    def tell(self, line: str) -> None:
        self._told.put(line)

    def stop(self) -> None:
        self._told.put(None)
        self._thread.join()

    def _write(self) -> None:
        due = time.monotonic() + _EVERY
        while True:
            try:
                line = self._told.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                self._print(self._news())
                due = time.monotonic() + _EVERY
                continue
            if line is None:
                self._print(self._tally.summary())
                return
            self._print(line)

    def _news(self) -> str | None:
        """The steps that something has changed for since the last line."""
        tally = self._tally
        with tally.lock:
            if tally.changes == self._seen:
                return None
            self._seen = tally.changes
            lines = {name: _in_words(step, tally.clock()) for name, step in tally.steps.items()}
        news = [line for name, line in lines.items() if self._last.get(name) != line]
        self._last = lines
        return "; ".join(news) or None

    def _print(self, line: str | None) -> None:
        if line is None or self._file is None:
            return
        try:
            self._file.write(f"{line}\n")
            self._file.flush()
        except (OSError, ValueError):  # nobody reads it any more, and the run goes on without
            self._file = None


def _in_words(step: StepCount, now: float) -> str:
    step.sample(now)
    parts = [f"{step.name} {step.done}/{step.total}"]
    parts += [f"{count} {what}" for what, count in step.parts() if count]
    rate, left = step.rate(now), step.seconds_left(now)
    if rate is not None:
        parts.append(_per_second(rate))
    if left is not None:
        parts.append(_left(left))
    return ", ".join(parts)


# The live view

_STYLES = {"failed": "red", "waiting": "yellow", "retrying": "yellow", "running": "cyan"}

#: Two live views at a time would draw over each other: whoever comes second writes lines.
_one_at_a_time = threading.Lock()


class _Live:
    """A line a step, drawn again ten times a second by rich's thread."""

    def __init__(self, tally: Tally, file: TextIO) -> None:
        try:
            from rich.console import Console  # noqa: PLC0415 - an extra, and only needed on a terminal
        except ImportError as error:
            raise UsageError('a live progress display needs rich: pip install "weft[cli]"') from error
        self._tally = tally
        self._file = file
        self._console = Console(file=file, force_terminal=True, highlight=False)
        self._live: Any = None
        self._instead: _Lines | None = None

    def start(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - see above

        if not _one_at_a_time.acquire(blocking=False):
            self._instead = _Lines(self._tally, self._file)
            self._instead.start()
            return
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=10,
            # What bodies print goes above the view, unless it goes to a file or a pipe.
            redirect_stdout=sys.stdout.isatty(),
        )
        with suppress(OSError):
            self._live.start()

    def tell(self, line: str) -> None:
        if self._instead is not None:
            self._instead.tell(line)

    def stop(self) -> None:
        if self._instead is not None:
            self._instead.stop()
            return
        with suppress(OSError):  # the terminal is gone
            self._live.stop()
            summary = self._tally.summary()
            if summary is not None:
                self._console.print(summary, style=_style(self._tally.status), markup=False, soft_wrap=True)
        _one_at_a_time.release()

    def _draw(self) -> RenderableType:
        from rich.console import Group  # noqa: PLC0415 - see above
        from rich.text import Text  # noqa: PLC0415 - see above

        tally = self._tally
        with tally.lock:
            head = Text(f"{tally.workflow}  {duration(tally.elapsed)}", style="bold", no_wrap=True)
            table = self._table(list(tally.steps.values()), tally.clock(), is_over=tally.status is not None)
        if tally.began is None:
            return Group()
        return table if tally.status is not None else Group(head, table)

    def _table(self, steps: list[StepCount], now: float, *, is_over: bool) -> Table:
        from rich.progress_bar import ProgressBar  # noqa: PLC0415 - see above
        from rich.table import Table  # noqa: PLC0415 - see above
        from rich.text import Text  # noqa: PLC0415 - see above

        table = Table.grid(padding=(0, 1), pad_edge=False, expand=True)
        table.add_column(no_wrap=True, max_width=max(12, self._console.width // 4), overflow="ellipsis")
        table.add_column(width=min(max((self._console.width - 58) // 2, 8), 30))
        for min_width in (0, 0 if is_over else 5, 0 if is_over else 9):  # so that nothing jumps
            table.add_column(no_wrap=True, justify="right", min_width=min_width)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)  # what is left of the line
        shown = _that_fit(steps, self._console.height - 3)
        for step in shown:
            step.sample(now)
            rate, left = (None, None) if is_over else (step.rate(now), step.seconds_left(now))
            table.add_row(
                Text(step.name),
                ProgressBar(total=max(step.total, 1), completed=step.done, finished_style="green"),
                f"{step.done}/{step.total}",
                _per_second(rate) if rate is not None else "",
                _left(left) if left is not None else "",
                Text(", ").join(
                    Text(f"{count} {what}", style=_STYLES.get(what, "dim"))
                    for what, count in step.parts()
                    if count
                ),
            )
        if len(shown) < len(steps):
            table.add_row(Text(f"and {len(steps) - len(shown)} more", style="dim"))
        return table


def _coloured(what: str, count: int) -> Text:
    from rich.text import Text  # noqa: PLC0415 - see above

    return Text(f"{count} {what}", style=_STYLES.get(what, "dim"))


def _that_fit(steps: list[StepCount], lines: int) -> list[StepCount]:
    """Those that are not done, and the newest of those that are, in their order."""
    if len(steps) <= max(lines, 1):
        return steps
    by_interest = sorted(range(len(steps)), key=lambda i: (steps[i].done < steps[i].total, i), reverse=True)
    return [steps[i] for i in sorted(by_interest[: max(lines - 1, 1)])]


def _style(status: str | None) -> str:
    return {"finished": "green", "suspended": "yellow"}.get(status or "", "red")


def _is_live(file: TextIO, live: bool | None) -> bool:
    if live is not None:
        return live
    env = os.environ
    if env.get("NO_COLOR") or env.get("CI", "").lower() not in {"", "0", "false"}:
        return False
    if env.get("TERM", "").lower() in {"dumb", "unknown"}:
        return False
    with suppress(ValueError):  # it is closed
        return file.isatty()
    return False


# Words


def printable(text: str) -> str:
    """The text without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def duration(seconds: float) -> str:
    """A time as people say it: "40 ms", "0.4 s", "12 s", "3:05", "2:10:00"."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _left(seconds: float) -> str:
    whole = max(1, round(seconds))  # no more exact than it is
    return f"{whole} s left" if whole < 60 else f"{duration(whole)} left"


def _per_second(rate: float) -> str:
    if rate >= 10:
        return f"{rate:.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"


def _calls(count: int) -> str:
    return f"{count} call" if count == 1 else f"{count} calls"


__all__ = ["Progress", "Tally", "duration", "printable"]
