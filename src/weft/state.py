"""A thread as LangGraph shows one: snapshots, made of the runs and the saved values of the store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import dropwhile, islice
from typing import Any

from weft.checkpoint.base import Checkpointer, RunRow, ThreadState
from weft.core.outcome import HandedOut, without_shape
from weft.core.question import Interrupt
from weft.core.status import RunStatus
from weft.engine.recorder import load_run
from weft.types import PregelTask, StateSnapshot


class ThreadView:
    """One thread of one store, up to the snapshot with this mark, or all of it."""

    def __init__(self, store: Checkpointer, thread_id: str, *, mark: str | None = None) -> None:
        self._store = store
        self._thread_id = thread_id
        self._upto = mark

    def empty(self) -> StateSnapshot:
        """The snapshot of a thread that nothing was done in."""
        return StateSnapshot({}, (), self._config(None), None, None, None, (), ())

    def history(self, limit: int | None = None) -> Iterator[StateSnapshot]:
        """The snapshots, the newest first: of a finished run its end and its beginning."""
        found = self._history()
        if self._upto is not None:
            found = dropwhile(
                lambda snapshot: snapshot.config["configurable"]["checkpoint_id"] != self._upto, found
            )
        return islice(found, limit)

    def update(self, value: Any) -> Mapping[str, Any]:
        """Save a value that the next run sees as ``previous``; the config of the new snapshot."""
        self._store.save_state(
            self._thread_id, self._store.codec.encode(value, root="values"), created=time.time()
        )
        return self._config(self._store.states(self._thread_id, limit=1)[0].number)

    def _history(self) -> Iterator[StateSnapshot]:
        runs = self._store.runs(thread_id=self._thread_id, limit=1_000_000)
        states = self._store.states(self._thread_id, limit=1_000_000)
        updates = [state for state in states if state.run_id is None]
        moments: list[tuple[float, int, RunRow | ThreadState]] = []
        for run in runs:
            moments.append((run.created, 0, run))
            if run.status is RunStatus.FINISHED:
                moments.append((run.updated, 1, run))
        moments += [(state.created, 1, state) for state in updates]
        moments.sort(key=lambda moment: moment[:2], reverse=True)
        for index, (_, rank, what) in enumerate(moments):
            before = moments[index + 1][2] if index + 1 < len(moments) else None
            parent = self._config(_mark(before, moments[index + 1][1])) if before is not None else None
            yield self._snapshot(what, rank, len(moments) - 2 - index, parent, states)

    def _snapshot(
        self,
        what: RunRow | ThreadState,
        rank: int,
        step: int,
        parent: Mapping[str, Any] | None,
        states: list[ThreadState],
    ) -> StateSnapshot:
        decode = self._store.codec.decode
        config = self._config(_mark(what, rank))
        if isinstance(what, ThreadState):
            metadata = {"source": "update", "step": step, "parents": {}}
            return StateSnapshot(decode(what.value), (), config, metadata, _iso(what.created), parent, (), ())
        if rank:
            metadata = {"source": "loop", "step": step, "parents": {}, "run_id": what.run_id}
            value = self._output(what)
            return StateSnapshot(value, (), config, metadata, _iso(what.updated), parent, (), ())
        earlier = next((state for state in states if state.created <= what.created), None)
        questions = self._questions(what)
        task = PregelTask(
            what.run_id,
            what.workflow,
            ("__pregel_pull", what.workflow),
            self._error(what),
            questions,
            None,
            self._output(what),
        )
        metadata = {"source": "input", "step": step, "parents": {}, "run_id": what.run_id}
        return StateSnapshot(
            decode(earlier.value) if earlier is not None else None,
            (what.workflow,),
            config,
            metadata,
            _iso(what.created),
            parent,
            (task,),
            questions,
        )

    def _output(self, run: RunRow) -> Any:
        value = self._store.codec.decode(run.output) if run.output is not None else None
        value = without_shape(value)
        return None if isinstance(value, HandedOut) else value

    def _questions(self, run: RunRow) -> tuple[Interrupt, ...]:
        if run.status is RunStatus.FINISHED:
            return ()
        found = load_run(self._store, run.run_id).open_questions
        return tuple(Interrupt(self._store.codec.decode(record.value), key) for key, record in found.items())

    def _error(self, run: RunRow) -> str | None:
        if run.error is None:
            return None
        error = self._store.codec.decode_error(run.error)
        return repr(error) if error is not None else str(self._store.codec.describe(run.error))

    def _config(self, mark: object) -> Mapping[str, Any]:
        configurable: dict[str, Any] = {"thread_id": self._thread_id}
        if mark is not None:
            configurable |= {"checkpoint_ns": "", "checkpoint_id": str(mark)}
        return {"configurable": configurable}


def _mark(what: RunRow | ThreadState, rank: int) -> object:
    if isinstance(what, ThreadState):
        return what.number
    return f"{what.run_id}/{'end' if rank else 'start'}"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
