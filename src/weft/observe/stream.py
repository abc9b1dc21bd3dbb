"""The chunks of ``stream`` and ``astream``, made of a run's events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from weft.core.outcome import Ok
from weft.core.question import Interrupt
from weft.engine import events
from weft.errors import InputError

_Chunks = Iterator[Any]


def _updates(event: events.Event, name: str) -> _Chunks:
    if isinstance(event, events.CallFinished):
        if event.parent_id and isinstance(event.outcome, Ok) and not event.recorded:
            chunk = {event.step: event.outcome.value}
            yield {**chunk, "__metadata__": {"cached": True}} if event.cached else chunk
    elif isinstance(event, events.QuestionAsked):
        yield {"__interrupt__": (Interrupt(event.value, event.question_id),)}
    elif (
        isinstance(event, events.RunFinished) and event.status == "finished" and isinstance(event.outcome, Ok)
    ):
        yield {name: event.outcome.value}


def _values(event: events.Event, name: str) -> _Chunks:
    if isinstance(event, events.QuestionAsked):
        yield {"__interrupt__": (Interrupt(event.value, event.question_id),)}
    elif (
        isinstance(event, events.RunFinished) and event.status == "finished" and isinstance(event.outcome, Ok)
    ):
        yield event.outcome.value


def _custom(event: events.Event, name: str) -> _Chunks:
    if isinstance(event, events.UserEvent):
        yield event.value


def _tasks(event: events.Event, name: str) -> _Chunks:
    if isinstance(event, events.CallStarted):
        yield {"id": event.call_id, "name": event.step, "input": (event.args, event.kwargs), "triggers": ()}
    elif isinstance(event, events.CallFinished):
        ok = isinstance(event.outcome, Ok)
        yield {
            "id": event.call_id,
            "name": event.step,
            "error": None if ok else event.outcome.as_error(),  # type: ignore[union-attr]  # only Ok has none
            "result": {"__return__": event.outcome.value} if isinstance(event.outcome, Ok) else {},
            "interrupts": [],
        }
    elif isinstance(event, events.QuestionAsked):
        question = {"value": event.value, "id": event.question_id}
        yield {"id": event.call_id, "name": event.step, "error": None, "result": {}, "interrupts": [question]}


_MODES: Mapping[str, Callable[[events.Event, str], _Chunks]] = {
    "updates": _updates,
    "values": _values,
    "custom": _custom,
    "tasks": _tasks,
}


class Chunker:
    """Turns events into the chunks of one mode, or into ``(mode, chunk)`` pairs of several."""

    def __init__(self, modes: str | Sequence[str], name: str) -> None:
        self._pairs = not isinstance(modes, str)
        self._modes = [modes] if isinstance(modes, str) else list(modes)
        self._name = name
        for mode in self._modes:
            if mode not in _MODES:
                raise InputError(f"unknown stream_mode {mode!r}; there are: {', '.join(_MODES)}")

    def __call__(self, event: events.Event) -> Iterator[Any]:
        """The chunks that come of an event."""
        for mode in self._modes:
            for chunk in _MODES[mode](event, self._name):
                yield (mode, chunk) if self._pairs else chunk
