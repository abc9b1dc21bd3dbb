"""Journals in this process's memory: for tests, and for runs that need not outlive the process."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec import structs

from weft.checkpoint.base import (
    Change,
    Checkpointer,
    OpenRun,
    Record,
    RunRow,
    ThreadState,
    Write,
    usual_codec,
)
from weft.checkpoint.keep import ENDED, Keep, Upkeep, checked_keep, is_too_old, size_of, size_of_end
from weft.checkpoint.owner import refuse_mismatch, run_busy, run_not_found, thread_busy, watch_forks
from weft.core.status import RunStatus
from weft.errors import CheckpointError, UnsendableError

if TYPE_CHECKING:
    from weft.checkpoint.codec import Codec


@dataclass(slots=True)
class _Run:
    """A run with its journal."""

    row: RunRow
    records: list[Record] = field(default_factory=list)
    owned: bool = False
    size: int = 0  # about how many bytes were recorded of it


class InMemorySaver(Checkpointer):
    """A checkpointer that keeps everything in memory, until it is deleted or the process ends.

    It is thread-safe. Whatever has been opened and has not ended is owned by somebody in this process, and
    stays so until a commit with a :class:`Change` or :meth:`release`.

    Args:
        codec: How values become bytes; the default knows the types that come with Python.
        keep: What it keeps of runs that have ended; everything, unless told.
    """

    instant = True  # the engine may call from anywhere, there is nothing to wait for
    lease = math.inf  # who has a run open is in this process, and alive as it is

    def __init__(self, codec: Codec | None = None, *, keep: Keep | None = None) -> None:
        self.codec = codec or usual_codec()
        self.keep = checked_keep(keep)
        self._upkeep = None if keep is None else Upkeep(keep)
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}  # in the order in which they were begun
        self._states: defaultdict[str, list[ThreadState]] = defaultdict(list)
        self._running: dict[str, str] = {}  # which run is going on in a thread
        self._ended: dict[RunStatus, dict[str, None]] = {status: {} for status in ENDED}  # as they ended
        self._size = 0  # about how many bytes were recorded
        watch_forks(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """It cannot be sent: what it holds is in this process alone."""
        raise UnsendableError(
            "an InMemorySaver keeps runs in this process alone, so no other can record in it: use a SqliteSaver on one "
            "machine, a PostgresSaver on several",
            where="the checkpointer",
        )

    def open_many(self, requests: Sequence[OpenRun]) -> list[RunRow | CheckpointError]:
        """Create each run, or take it over if nobody owns it; its row, or why it cannot be had."""
        with self._lock:
            return [self._opened(request) for request in requests]

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
            if self._upkeep is not None:
                self._forget_some(self._upkeep)
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
            self._grow(run, size_of(answers))

    def delete_run(self, run_id: str) -> bool:
        """Forget a run that nobody owns; whether there was one. What it saved in its thread stays."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return False
            if run.owned:
                raise run_busy(run_id)
            self._forget(run)
            return True

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread in which no run is going on, with its runs and saved values."""
        with self._lock:
            self._refuse_busy_thread(thread_id)
            for run in [run for run in self._runs.values() if run.row.thread_id == thread_id]:
                self._forget(run)
            self._states.pop(thread_id, None)

    def vacuum(self) -> None:
        """Do nothing: what is forgotten is gone."""

    def close(self) -> None:
        """Do nothing: memory is all there is, and it stays readable."""

    def before_fork(self) -> None:
        """Let no fork happen while another thread changes something."""
        self._lock.acquire()

    def after_fork(self, *, child: bool) -> None:
        """Go on; a child has a copy of its own."""
        self._lock.release()

    def _opened(self, request: OpenRun) -> RunRow | CheckpointError:
        try:
            return self._claim(request)
        except CheckpointError as error:
            return error

    def _claim(self, request: OpenRun) -> RunRow:
        run = self._runs.get(request.run_id)
        if run is None:
            return self._create(request)
        refuse_mismatch(run.row, request)
        if run.row.status is RunStatus.FINISHED:
            return run.row
        if run.owned:
            raise run_busy(request.run_id)
        self._refuse_busy_thread(run.row.thread_id)
        taken = structs.replace(run.row, status=RunStatus.RUNNING, fence=run.row.fence + 1)
        run.row = structs.replace(taken, updated=request.created or time.time())
        self._own(run)
        return taken

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
        self._grow(run, len(request.input))
        self._own(run)
        return row

    def _own(self, run: _Run) -> None:
        run.owned = True
        self._going_on(run)
        if run.row.thread_id is not None:
            self._running[run.row.thread_id] = run.row.run_id

    def _disown(self, run: _Run) -> None:
        run.owned = False
        if run.row.thread_id is not None:
            del self._running[run.row.thread_id]

    def _write(self, run: _Run, write: Write, now: float) -> None:
        run.records.extend(write.records)
        self._grow(run, size_of(write.records))
        batches = max((record.batch for record in write.records), default=0)
        run.row = structs.replace(run.row, updated=now, batches=max(run.row.batches, batches))
        if write.change is not None:
            self._change(run, write.change, now)

    def _change(self, run: _Run, change: Change, now: float) -> None:
        run.row = structs.replace(run.row, status=change.status, output=change.output, error=change.error)
        self._grow(run, size_of_end(change))
        if change.status is not RunStatus.RUNNING:
            self._disown(run)
        if change.status in self._ended:
            self._ended[change.status][run.row.run_id] = None
        if change.saved is not None and run.row.thread_id is not None:
            self._save(run.row.thread_id, change.saved, now, run.row.run_id)

    def _grow(self, run: _Run, size: int) -> None:
        run.size += size
        self._size += size

    def _going_on(self, run: _Run) -> None:
        for ended in self._ended.values():
            ended.pop(run.row.run_id, None)

    def _forget(self, run: _Run) -> None:
        del self._runs[run.row.run_id]
        self._going_on(run)
        self._size -= run.size

    def _forget_some(self, upkeep: Upkeep) -> None:
        """Forget what is not to be kept of runs that have ended."""
        keep, oldest = upkeep.keep, upkeep.keep.oldest(upkeep.now())
        while True:
            first = [self._runs[next(iter(ended))] for ended in self._ended.values() if ended]
            if not first:
                return
            count = sum(map(len, self._ended.values()))
            has_too_much = self._size > keep.most_bytes or (keep.last is not None and count > keep.last)
            first.sort(key=lambda run: run.row.updated)
            aged = (run for run in first if is_too_old(run.row.status, run.row.updated, oldest))
            run = first[0] if has_too_much else next(aged, None)
            if run is None:
                return
            self._forget(run)
            self._forget_states(run.row)

    def _forget_states(self, row: RunRow) -> None:
        """Up to what a run has saved, but for the last of its thread."""
        states = self._states.get(row.thread_id or "", [])
        saved = next((index for index, state in enumerate(states) if state.run_id == row.run_id), -1)
        del states[: min(saved + 1, len(states) - 1)]

    def _save(self, thread_id: str, value: bytes, created: float, run_id: str | None) -> None:
        states = self._states[thread_id]
        number = states[-1].number + 1 if states else 1
        states.append(ThreadState(thread_id, number, value, created, run_id))

    def _refuse_busy_thread(self, thread_id: str | None) -> None:
        if thread_id in self._running:
            raise thread_busy(thread_id, self._running[thread_id])
