"""The counts that progress is drawn from: runs by their workflow, in each its blocks and steps, as they are nested.

Events are taken on the loops of the runs; another thread looks, a row at a time. Nothing is kept of a call that has
ended, and no more rows than people could look through, so that a run of any length needs a page of memory.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from weft.core.limits import Capacity
from weft.core.outcome import Failed, Ok, TimedOut
from weft.engine import events
from weft.engine.block import Block
from weft.engine.call import Call
from weft.engine.context import current
from weft.engine.planned import PlannedCall
from weft.observe.progress_look import Line, Look
from weft.observe.progress_words import calls, duration, error_text, printable, retrying, waiting_for

_WINDOW = 20.0  # seconds that a rate is the mean of
_SAMPLE = 0.5  # seconds between two samples of it
_LONG = 2.0  # seconds: of a shorter wait before a retry nothing is said
_DEEPEST = 6  # what is nested deeper is counted there
_MOST_ROWS = 500  # of all runs
_OTHERS = "other steps"


class Stage(IntEnum):
    """Where a call stands that has not ended."""

    ASKED = 0
    QUEUED = 1
    RUNNING = 2
    RETRYING = 3
    WAITING = 4  # for an answer


@dataclass(eq=False)
class Row:
    """What has become of the calls of one step, or of one block, at one place of the nesting."""

    name: str
    depth: int = 0
    parent: Row | None = None
    rows: dict[str, Row] = field(default_factory=dict)  # by the name of their step
    total: int = 0  # calls that were asked for
    done: int = 0  # ended, in whatever way
    reused: int = 0  # of these, recorded or cached
    failed: int = 0
    cancelled: int = 0
    retries: int = 0
    has_begun: bool = False  # a call was worked on, and not only reused
    is_block: bool = False
    expected: int = 0  # branches of its blocks, or calls, that will come as far as is known
    open_sources: int = 0  # blocks of which nobody knows how many branches they will have
    live: list[int] = field(default_factory=lambda: [0] * len(Stage))
    waits: Counter[tuple[str, ...]] = field(default_factory=Counter)  # how many for which limits
    limits: dict[str, Capacity] = field(default_factory=dict)
    dues: dict[str, float] = field(default_factory=dict)  # when the calls that are retried go on
    error: BaseException | None = None  # the last one, until it is put into words
    error_words: str = ""
    samples: deque[tuple[float, int]] = field(default_factory=deque)  # when, and how many had been worked on

    def sample(self, now: float) -> None:
        """Note how far it is, for the rate."""
        if not self.has_begun:
            return
        if not self.samples or now - self.samples[-1][0] >= _SAMPLE:
            self.samples.append((now, self.done - self.reused))
        while len(self.samples) > 2 and now - self.samples[0][0] > _WINDOW:
            self.samples.popleft()

    def rate(self, now: float, total: int) -> float | None:
        """Calls a second, of those that are worked on; None when that is not known, or none is left."""
        if not self.samples or self.done >= total:
            return None
        since, before = self.samples[0]
        ended = self.done - self.reused - before
        return ended / (now - since) if ended > 0 and now > since else None

    def counted(self) -> Row:
        """Whose counts its line shows: of a block with branches of one kind, those of the branches."""
        return next(iter(self.rows.values())) if self.is_block and len(self.rows) == 1 else self

    def asks_for_more(self) -> bool:
        """Whether calls of it that go on, or are still to come, ask for who knows how many of those below."""
        if self.parent is None:
            return False  # a run's own body: what it has not asked for, nobody knows of
        come = max(self.total, self.parent.expected if self.parent.counted() is self else 0)
        return come > max(1, self.done + self.cancelled) or self.parent.asks_for_more()

    def next_retry(self, now: float) -> float | None:
        """Seconds to the next of the calls that are retried; None if that is not worth saying."""
        wait = min(self.dues.values(), default=now) - now
        return wait if wait >= _LONG else None


class Group:
    """The runs of one workflow."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.began = now
        self.ended = now
        self.active = 0
        self.statuses: Counter[str] = Counter()
        self.root = Row(name)
        self.put_aside: dict[str, Counter[Row]] = {}  # calls of suspended runs, which have not ended

    def elapsed(self, now: float) -> float:
        """Seconds that it has been running, or ran."""
        return (now if self.active else self.ended) - self.began

    def rows(self) -> list[Row]:
        """All of them, those that are nested after what they are nested in."""
        found: list[Row] = []
        stack = list(self.root.rows.values())[::-1]
        while stack:
            row = stack.pop()
            found.append(row)
            stack += list(row.rows.values())[::-1]
        return found

    def summary(self, now: float) -> str:
        """All that has become of it, in one line."""
        rows = [self.root, *self.rows()]
        parts = [calls(sum(row.done for row in rows))]
        counts = {
            "reused": sum(row.reused for row in rows),
            "failed": sum(row.failed for row in rows),
            "cancelled": sum(row.cancelled for row in rows),
            "retried": sum(row.retries for row in rows),
            "waiting": sum(row.live[Stage.WAITING] for row in rows),
        }
        parts += [f"{count} {what}" for what, count in counts.items() if count]
        return f"{self.name}: {self._ending()} after {duration(self.elapsed(now))}: {', '.join(parts)}"

    def _ending(self) -> str:
        if self.statuses.total() == 1 and not self.active:
            return self.status
        ended = [f"{count} {status}" for status, count in self.statuses.items()]
        return ", ".join([f"{self.statuses.total() + self.active} runs", *ended])

    @property
    def status(self) -> str:
        """How all of them ended, if that is one word."""
        return next(iter(self.statuses)) if len(self.statuses) == 1 and not self.active else ""


#: Where a call is counted that has not ended, and the limits that it waits for.
_Place = tuple[Row, Stage, tuple[str, ...]]


class _Run:
    """A run that goes on."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.calls: dict[str, _Place] = {}
        self.cancelled: Counter[Row] = Counter()
        self.blocks: set[str] = set()
        self.unsized: set[str] = set()  # blocks of which a branch is still to be seen
        self.open: dict[str, Row] = {}  # blocks of which nobody knows how many branches they will have


class Tally:
    """Counts the events of runs. Taken on their loops, looked at from another thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.lock = threading.Lock()  # held for a few lines of arithmetic only
        self.groups: dict[str, Group] = {}
        self.changes = 0
        self._runs: dict[str, _Run] = {}
        self._rows = 0
        self._takers: Mapping[type[events.Event], Callable[[_Run, Any], str | None]] = {
            events.CallAsked: self._asked,
            events.CallQueued: self._queued,
            events.CallStarted: self._started,
            events.CallRetrying: self._retrying,
            events.QuestionAsked: self._question,
            events.CallFinished: self._finished,
            events.BlockSized: self._sized,
            events.BlockDecided: self._decided,
            events.RunFinished: self._run_finished,
        }

    def take(self, event: events.Event) -> str | None:
        """Count an event; a line to tell if it is worth one."""
        taker = self._takers.get(type(event))
        if taker is None:
            return self._run_started(event) if isinstance(event, events.RunStarted) else None
        run = self._runs.get(event.run_id)
        if run is None:
            return None  # its beginning was not seen
        with self.lock:
            self.changes += 1
            return taker(run, event)

    # Runs

    def _run_started(self, event: events.RunStarted) -> str:
        name, now = printable(event.workflow), self.clock()
        with self.lock:
            self.changes += 1
            group = self.groups.get(name)
            if group is None:
                group = self.groups[name] = Group(name, now)
            group.active += 1
            self._runs[event.run_id] = _Run(group)
            for row, count in group.put_aside.pop(event.run_id, {}).items():
                row.live[Stage.WAITING] -= count  # they are asked for again
                row.total -= count
        return f"{name}: goes on, {calls(event.recorded)} recorded" if event.resumed else f"{name}: begins"

    def _run_finished(self, run: _Run, event: events.RunFinished) -> None:
        group = run.group
        for call_id in list(run.calls):  # told nothing more, such as what was left behind
            self._leave(run, call_id).cancelled += 1
        for row in run.open.values():
            row.open_sources -= 1
        if event.status == "suspended":
            group.put_aside[event.run_id] = run.cancelled
            for row, count in run.cancelled.items():
                row.cancelled -= count
                row.live[Stage.WAITING] += count
        del self._runs[event.run_id]
        group.active -= 1
        group.statuses[event.status] += 1
        group.ended = self.clock()

    # Calls

    def _asked(self, run: _Run, event: events.CallAsked) -> None:
        row = self._move(run, event, Stage.ASKED)
        if not row.limits:
            row.limits = _limits_of(event)
        if event.parent_id in run.unsized:
            self._size(run, event, row)

    def _queued(self, run: _Run, event: events.CallQueued) -> None:
        self._move(run, event, Stage.QUEUED, event.limits)

    def _started(self, run: _Run, event: events.CallStarted) -> str | None:
        row = self._move(run, event, Stage.RUNNING)
        if row.has_begun:
            return None
        row.has_begun = True
        if row is run.group.root:
            return None
        row.sample(self.clock())
        return f"{row.name}: started"

    def _retrying(self, run: _Run, event: events.CallRetrying) -> None:
        row = self._move(run, event, Stage.RETRYING)
        row.retries += 1
        row.error = event.error
        row.dues[event.call_id] = self.clock() + event.delay

    def _question(self, run: _Run, event: events.QuestionAsked) -> str:
        return f"{self._move(run, event, Stage.WAITING).name}: waits for an answer"

    def _finished(self, run: _Run, event: events.CallFinished) -> None:
        if event.call_id not in run.calls:
            self._move(run, event, Stage.ASKED)  # it was stopped before it was noticed
        row = run.calls[event.call_id][0]
        row.sample(self.clock())
        self._leave(run, event.call_id)
        self._forget_block(run, event.call_id)
        outcome = event.outcome
        if not event.parent_id:
            return  # how the run's own body ended is said of the run
        if not isinstance(outcome, Ok | Failed | TimedOut):
            row.cancelled += 1
            run.cancelled[row] += 1
            return
        row.done += 1
        if event.recorded or event.cached:
            row.reused += 1
        if isinstance(outcome, Failed | TimedOut):
            row.failed += 1
            row.error = outcome.error

    def _move(self, run: _Run, event: events.CallEvent, to: Stage, limits: tuple[str, ...] = ()) -> Row:
        """The call enters a stage; one that is new counts from now on."""
        call_id = event.call_id
        known = run.calls.get(call_id)
        if known is None:
            row = self._row_of(run, event)
            row.total += 1
        else:
            row = self._leave(run, call_id)
        run.calls[call_id] = (row, to, limits)
        row.live[to] += 1
        if to is Stage.QUEUED:
            row.waits[limits] += 1
        return row

    def _leave(self, run: _Run, call_id: str) -> Row:
        """The call leaves the stage it is in."""
        row, stage, limits = run.calls.pop(call_id)
        row.live[stage] -= 1
        if stage is Stage.QUEUED:
            row.waits[limits] -= 1
            if not row.waits[limits]:
                del row.waits[limits]
        elif stage is Stage.RETRYING:
            row.dues.pop(call_id, None)
        return row

    def _row_of(self, run: _Run, event: events.CallEvent) -> Row:
        root = run.group.root
        if not event.parent_id:
            return root
        asked_by = run.calls.get(event.parent_id)  # what holds a program together is not told of
        above = root if asked_by is None else asked_by[0]
        if above.depth >= _DEEPEST:
            assert above.parent is not None
            above = above.parent
        row = above.rows.get(event.step)
        return self._new_row(above, event.step) if row is None else row

    def _new_row(self, above: Row, step: str) -> Row:
        if self._rows >= _MOST_ROWS:
            while above.parent is not None:
                above = above.parent
            step = _OTHERS
            if step in above.rows:
                return above.rows[step]
        self._rows += 1
        row = above.rows[step] = Row(printable(step), above.depth + 1, above)
        return row

    # Blocks

    def _sized(self, run: _Run, event: events.BlockSized) -> None:
        if event.call_id in run.blocks:
            return  # it has grown
        run.blocks.add(event.call_id)
        run.unsized.add(event.call_id)
        if (known := run.calls.get(event.call_id)) is not None:
            known[0].is_block = True

    def _size(self, run: _Run, event: events.CallAsked, row: Row) -> None:
        """The first branch of a block: now it can be seen how many there are."""
        block_id = event.parent_id
        run.unsized.discard(block_id)
        known = run.calls.get(block_id)
        owner = row if known is None else known[0]  # of a block that is not told of, the row of its branches
        call = _call_of(event)
        if call is None:
            return
        total = _total_of(call.parent)
        if total is not None:
            owner.expected += total
        else:
            owner.open_sources += 1
            run.open[block_id] = owner

    def _decided(self, run: _Run, event: events.BlockDecided) -> None:
        owner = run.open.get(event.call_id)
        if owner is not None:
            owner.expected += event.ok + event.failed if event.total is None else event.total
        self._forget_block(run, event.call_id)

    def _forget_block(self, run: _Run, call_id: str) -> None:
        if call_id not in run.blocks:
            return
        run.blocks.discard(call_id)
        run.unsized.discard(call_id)
        owner = run.open.pop(call_id, None)
        if owner is not None:
            owner.open_sources -= 1

    # Looking

    def look(self) -> list[Look]:
        """All that is to be shown, now; the lock is held for a row at a time."""
        with self.lock:
            groups = list(self.groups.values())
        return [self._look_at(group) for group in groups]

    def summaries(self) -> list[tuple[str, str]]:
        """Each group of runs in one line, with how its runs ended."""
        now = self.clock()
        with self.lock:
            return [(group.summary(now), group.status) for group in self.groups.values() if group.statuses]

    def _look_at(self, group: Group) -> Look:
        now = self.clock()
        with self.lock:
            rows = group.rows()
            ended, active, status = group.statuses.total(), group.active, group.status
            elapsed = group.elapsed(now)
            own = tuple(_parts(group.root, now, is_over=not active, is_root=True))
        lines = []
        for number, (row, depth, source) in enumerate(_shown(group.root, rows)):
            with self.lock:
                lines.append(_line(row, source, now, depth=depth, number=number, is_over=not active))
        runs = f"{ended}/{ended + active} runs" if ended + active > 1 else ""
        return Look(group.name, elapsed, not active, status, runs, own, tuple(lines))


def _shown(root: Row, rows: list[Row]) -> Iterator[tuple[Row, int, Row]]:
    """The rows that have a line of their own, how deep, and which row knows how many calls are to be expected.

    A block with branches of one kind and these branches have one line.
    """
    within = {root: 0}  # how deep the rows below are
    hidden = {root}
    for row in rows:
        above = row.parent
        assert above is not None
        is_of_block = above.counted() is row
        depth = within[row] = within[above]
        if is_of_block and above not in hidden:
            hidden.add(row)
            continue
        within[row] += 1
        yield row, depth, above if is_of_block else row


def _line(row: Row, source: Row, now: float, *, depth: int, number: int, is_over: bool) -> Line:
    counted = row.counted()
    counted.sample(now)
    done, total = counted.done, counted.total
    assert row.parent is not None
    is_open = (bool(source.open_sources) or row.parent.asks_for_more()) and not is_over
    if source is not row or counted is not row or not row.is_block:
        total = max(total, source.expected)
        if not counted.is_block:
            total = max(total, counted.expected)
            is_open = is_open or (bool(counted.open_sources) and not is_over)
    else:  # branches of several kinds, or none yet
        branches = list(row.rows.values())
        done = sum(branch.done for branch in branches)
        total = max(row.expected, sum(branch.total for branch in branches))
    rate = None if is_over or done != counted.done else counted.rate(now, total + is_open)
    parts = tuple(_parts(counted, now, is_over=is_over))
    if counted is not row:
        parts += tuple(_block_parts(row, counted, now))
    has_error = (counted.failed or counted.live[Stage.RETRYING]) and not _is_told_below(counted)
    interest = (
        counted.failed,
        *(counted.live[stage] for stage in (Stage.WAITING, Stage.RETRYING, Stage.QUEUED)),
    )
    is_done = done >= total and not is_open
    return Line(
        key=id(row),
        depth=depth,
        name=row.name,
        done=done,
        total=total,
        is_open=is_open,
        rate=rate,
        left=(total - done) / rate if rate and not is_open else None,
        parts=parts,
        error=_error_of(counted) if has_error else "",
        interest=(
            *(int(count > 0) for count in interest),
            int(not is_done),
            int(counted.live[Stage.RUNNING] > 0),
            number,
        ),
    )


def _is_told_below(row: Row) -> bool:
    return any(below.failed for below in row.rows.values())


def _parts(row: Row, now: float, *, is_over: bool, is_root: bool = False) -> Iterator[tuple[str, str]]:
    """What is worth saying of it, the most important first."""
    live = row.live
    if row.failed:
        yield "failed", f"{row.failed} failed"
    if live[Stage.WAITING]:
        yield "waiting", f"{live[Stage.WAITING]} waiting"
    if live[Stage.RETRYING]:
        yield "retrying", retrying(live[Stage.RETRYING], row.next_retry(now))
    for limits, count in row.waits.most_common(2):
        yield "queued", waiting_for(count, limits, row.limits)
    if live[Stage.RUNNING] and not is_root:
        yield "running", f"{live[Stage.RUNNING]} running"
    if row.cancelled:
        yield "cancelled", f"{row.cancelled} cancelled"
    if row.reused:
        yield "reused", f"{row.reused} reused"
    if row.retries and is_over:
        yield "retried", f"{row.retries} retried"


def _block_parts(block: Row, branches: Row, now: float) -> Iterator[tuple[str, str]]:
    """What a block has to say that its branches do not."""
    if block.live[Stage.RETRYING]:
        yield "retrying", f"of the whole {retrying(block.live[Stage.RETRYING], block.next_retry(now))}"
    if block.failed and not branches.failed:
        yield "failed", f"the whole failed {block.failed} times" if block.failed > 1 else "the whole failed"


def _error_of(row: Row) -> str:
    """The last error in words; the error itself, and all that it holds, is let go of."""
    if row.error is not None:
        error, row.error = row.error, None
        row.error_words = error_text(error)
    return row.error_words


# What the engine knows, and the events do not say


def _call_of(event: events.CallEvent) -> Call | None:
    """The call that an event is about, if it is told in the call's own context."""
    call = current.get()
    return call if call is not None and call.id == event.call_id else None


def _limits_of(event: events.CallAsked) -> dict[str, Capacity]:
    call = _call_of(event)
    return {} if call is None else {limit.name: limit for limit in call.needs()}


def _total_of(call: Call | None) -> int | None:
    """How many branches a block has, if that is known."""
    if isinstance(call, PlannedCall) and isinstance(call.conductor, Block):
        return call.conductor._feed.total
    return None
