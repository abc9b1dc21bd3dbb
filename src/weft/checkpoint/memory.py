"""Journals in this process's memory: for tests, and for runs that need not outlive the process."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from msgspec import structs

from weft.checkpoint.base import Change, OpenRun, Record, RunRow, RunStatus, ThreadState, Write
from weft.checkpoint.codec import Codec
from weft.checkpoint.owner import refuse_mismatch, run_busy, run_not_found, thread_busy, watch_forks


@dataclass(slots=True)
class _Run:
    """A run with its journal."""

    row: RunRow
    records: list[Record] = field(default_factory=list)
    owned: bool = False


class InMemorySaver:
    """A checkpointer that keeps everything in memory, until it is deleted or the process ends.

    It is thread-safe. Whatever has been opened and has not ended is owned by somebody in this process, and
    stays so until a commit with a :class:`Change` or :meth:`release`.

    Args:
        codec: How values become bytes; the default knows the types that come with Python.
    """

    instant = True  # the engine may call from anywhere, there is nothing to wait for
    lease = math.inf  # who has a run open is in this process, and alive as it is

    def __init__(self, codec: Codec | None = None) -> None:
        self.codec = codec or Codec()
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}  # in the order in which they were begun
        self._states: defaultdict[str, list[ThreadState]] = defaultdict(list)
        self._running: dict[str, str] = {}  # which run is going on in a thread
        watch_forks(self)

    def open(self, request: OpenRun) -> RunRow:
        """Create the run, or take over one that nobody owns."""
        with self._lock:
            run = self._runs.get(request.run_id)
            if run is None:
                return self._create(request)
            refuse_mismatch(run.row, request)
            if run.row.status is RunStatus.FINISHED:
                return run.row
            if run.owned:
                raise run_busy(request.run_id)
            self._refuse_busy_thread(run.row.thread_id)
            taken = replace(run.row, status=RunStatus.RUNNING, fence=run.row.fence + 1)
            run.row = replace(taken, updated=request.created or time.time())
            self._own(run)
            return taken

    def commit(self, writes: Sequence[Write]) -> set[str]:
        """Add records and changes; the ids of runs that have another owner by now, or none."""
        refused = set()
        with self._lock:
            now = time.time()
            for write in writes:
                run = self._runs.get(write.run_id)
                if run is None or not run.owned or run.row.fence != write.fence:
                    refused.add(write.run_id)
                else:
                    self._write(run, write, now)
        return refused

    def beat(self) -> None:
        """Do nothing: nobody waits for it."""

    def release(self, run_id: str, fence: int) -> None:
        """Give a run up without changing what it is: it stays RUNNING, and anybody may take it over."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is not None and run.owned and run.row.fence == fence:
                self._disown(run)

    def records(self, run_id: str, *, after: int = 0, limit: int = 1000) -> list[tuple[int, Record]]:
        """A page of the journal in the order of writing, each with its position; after a position."""
        after = max(after, 0)
        with self._lock:
            run = self._runs.get(run_id)
            page = run.records[after : after + max(limit, 0)] if run else []
        return list(enumerate(page, after + 1))

    def find(self, run_id: str) -> RunRow | None:
        """The run, if there is one."""
        with self._lock:
            run = self._runs.get(run_id)
            return run.row if run else None

    def runs(self, *, thread_id: str | None = None, limit: int = 100) -> list[RunRow]:
        """The newest runs first."""
        with self._lock:
            newest = (run.row for run in reversed(self._runs.values()))
            fitting = (row for row in newest if thread_id is None or row.thread_id == thread_id)
            return list(islice(fitting, max(limit, 0)))

    def states(self, thread_id: str, *, limit: int = 100) -> list[ThreadState]:
        """The saved values of a thread, the newest first."""
        with self._lock:
            return list(islice(reversed(self._states.get(thread_id, ())), max(limit, 0)))

    def save_state(self, thread_id: str, value: bytes, *, created: float) -> None:
        """Add a saved value to a thread in which no run is going on."""
        with self._lock:
            self._refuse_busy_thread(thread_id)
            self._save(thread_id, value, created, None)

    def add_answers(self, run_id: str, answers: Sequence[Record]) -> None:
        """Add answers to a run whoever owns it."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                raise run_not_found(run_id)
            run.records.extend(structs.replace(answer, batch=0) for answer in answers)

    def delete_run(self, run_id: str) -> bool:
        """Forget a run that nobody owns; whether there was one. What it saved in its thread stays."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return False
            if run.owned:
                raise run_busy(run_id)
            del self._runs[run_id]
            return True

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread in which no run is going on, with its runs and saved values."""
        with self._lock:
            self._refuse_busy_thread(thread_id)
            self._runs = {name: run for name, run in self._runs.items() if run.row.thread_id != thread_id}
            self._states.pop(thread_id, None)

    def close(self) -> None:
        """Do nothing: memory is all there is, and it stays readable."""

    def before_fork(self) -> None:
        """Let no fork happen while another thread changes something."""
        self._lock.acquire()

    def after_fork(self, *, child: bool) -> None:
        """Go on; a child has a copy of its own."""
        self._lock.release()

    def _create(self, request: OpenRun) -> RunRow:
        if request.input is None:
            raise run_not_found(request.run_id)
        self._refuse_busy_thread(request.thread_id)
        now = request.created or time.time()
        row = RunRow(
            run_id=request.run_id,
            workflow=request.workflow,
            status=RunStatus.RUNNING,
            thread_id=request.thread_id,
            input=request.input,
            created=now,
            updated=now,
            fence=1,
        )
        self._runs[request.run_id] = run = _Run(row)
        self._own(run)
        return row

    def _own(self, run: _Run) -> None:
        run.owned = True
        if run.row.thread_id is not None:
            self._running[run.row.thread_id] = run.row.run_id

    def _disown(self, run: _Run) -> None:
        run.owned = False
        if run.row.thread_id is not None:
            del self._running[run.row.thread_id]

    def _write(self, run: _Run, write: Write, now: float) -> None:
        run.records.extend(write.records)
        batches = max((record.batch for record in write.records), default=0)
        run.row = replace(run.row, updated=now, batches=max(run.row.batches, batches))
        if write.change is not None:
            self._change(run, write.change, now)

    def _change(self, run: _Run, change: Change, now: float) -> None:
        run.row = replace(run.row, status=change.status, output=change.output, error=change.error)
        if change.status is not RunStatus.RUNNING:
            self._disown(run)
        if change.saved is not None and run.row.thread_id is not None:
            self._save(run.row.thread_id, change.saved, now, run.row.run_id)

    def _save(self, thread_id: str, value: bytes, created: float, run_id: str | None) -> None:
        states = self._states[thread_id]
        states.append(ThreadState(thread_id, len(states) + 1, value, created, run_id))

    def _refuse_busy_thread(self, thread_id: str | None) -> None:
        if thread_id in self._running:
            raise thread_busy(thread_id, self._running[thread_id])
