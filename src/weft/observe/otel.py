"""OpenTelemetry: a span for each run, each call and each attempt that may be followed by another.

    events ─► Tracing (one for any number of runs) ─► _Trace (of a run) ─► _Open (of a call) ─► spans

Parents are found by contextvars alone. The engine tells ``RunStarted``, ``CallAsked`` and ``CallStarted`` in the
context of the call they are about; that of a call is a copy of the context of whoever asked for it, on the loop and
from threads. So the current span there is the right parent, and a span that is made current there is the current one
in the body, and in what the body asks for.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from weft.core.outcome import Cancelled, Failed, Ok, Outcome, TimedOut
from weft.engine import events
from weft.engine.context import current
from weft.engine.where import Short, shown_input

try:
    from opentelemetry import context, trace
    from opentelemetry.trace import Span, SpanContext, Status, StatusCode
except ImportError as error:
    raise ImportError(
        "weft.observe.otel needs OpenTelemetry: install it with pip install 'weft[otel]'"
    ) from error

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

    from weft.engine.step import Step

    Attributes = Mapping[str, AttributeValue]

#: How many branches the span of a block links at most: those that came last. It is what SDKs keep of links.
_LINKS = 128

#: How many calls that have ended a join may come from: those that ended last.
_REMEMBERED = 4_096

#: How the notes begin that the engine puts on errors; they show what calls were given.
_OUR_NOTES = "weft: "


class Tracing:
    """An observer that makes spans: ``workflow.invoke(x, observers=[Tracing()])``. Any number of runs may share it.

    The span of a run is a child of the span that is current where the run is begun. While a body runs, the span of its
    call is the current one, on the loop and in threads, so that spans of its own and those of instrumented clients are
    children of that.

    What comes from the journal or a cache gets no span, as nothing ran, but an event on the span of who asked for it.

    Args:
        tracer_provider: Makes the tracer; the global one of OpenTelemetry unless told, also where that is set later.
        values: Whether to put in arguments and results, shortened. They may be secret, so they are left out unless
            this says so. What the message of an error says is put in always.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None, *, values: bool = False) -> None:
        self._tracer = trace.get_tracer("weft", _version(), tracer_provider)
        self._values = values
        self._traces: dict[str, _Trace] = {}

    def __call__(self, event: events.Event) -> None:
        """Take an event into account; on the loop of its run."""
        if isinstance(event, events.RunStarted):
            self._traces[event.run_id] = _Trace(self._tracer, event, has_values=self._values)
        elif isinstance(event, events.RunFinished):
            if (found := self._traces.pop(event.run_id, None)) is not None:
                found.finish(event)
        elif (found := self._traces.get(event.run_id)) is not None:
            found.take(event)


@dataclass(slots=True, eq=False)
class _Open:
    """A call that has not ended; the run's own body is the run itself.

    Attributes:
        parent: The nearest call round it that is told of; None for the run.
        asked_in: Whose current span is the parent of its own.
        asked_at: Nanoseconds since the epoch.
    """

    step: str
    call_id: str
    parent: _Open | None
    asked_in: Context
    asked_at: int
    function: str = ""
    may_retry: bool = False
    span: Span | None = None
    attempt_span: Span | None = None
    attempt: int = 0
    queued_at: float | None = None
    waited: float = 0.0
    below: int = 0  # calls that it has asked for and that have not ended
    failed_with: BaseException | None = None  # what was said already on the span of an attempt, or of a child
    branches: deque[tuple[SpanContext, str]] | None = None  # that have ended, each with how


class _Trace:
    """The spans of one run. Everything happens on the loop of the run."""

    def __init__(self, tracer: trace.Tracer, event: events.RunStarted, *, has_values: bool) -> None:
        self._tracer = tracer
        self._has_values = has_values
        self._ended: dict[str, SpanContext] = {}
        self._run_id = event.run_id
        self._key = context.create_key("weft")  # of the call, in the contexts below it
        self._calls: dict[str, _Open] = {}
        self._takers: Mapping[type[events.Event], Callable[[Any], None]] = {
            events.CallAsked: self._asked,
            events.CallQueued: self._queued,
            events.CallStarted: self._started,
            events.CallRetrying: self._retrying,
            events.CallFinished: self._finished,
            events.BlockSized: self._block_sized,
            events.BlockDecided: self._block_decided,
            events.StateConflict: self._state_conflict,
            events.BranchesJoined: self._branches_joined,
            events.CallGivenUp: self._given_up,
            events.QuestionAsked: self._question_asked,
            events.CallMismatch: self._mismatch,
        }
        now = _nanoseconds(event.time)
        self._root = root = _Open(event.workflow, "", None, context.get_current(), now)
        root.span = self._tracer.start_span(
            event.workflow,
            context=root.asked_in,
            start_time=now,
            attributes={
                "weft.run.id": event.run_id,
                "weft.step": event.workflow,
                "weft.run.resumed": event.resumed,
                "weft.run.recorded": event.recorded,
            },
        )
        self._make_current(root, root.span)

    def take(self, event: events.Event) -> None:
        """Take an event of this run into account."""
        taker = self._takers.get(type(event))
        if taker is not None:
            taker(event)

    def finish(self, event: events.RunFinished) -> None:
        """The run has ended: so do all spans."""
        root = self._root
        now = _nanoseconds(event.time)
        self._end_below(root, "suspended" if event.status == "suspended" else "cancelled", now)
        root.failed_with = None  # an error that leaves the run is said on its span too
        assert root.span is not None
        root.span.set_attribute("weft.run.status", event.status)
        if event.outcome is None or event.status == "suspended":
            self._end(root, event.status, now)
        elif event.status == "cancelled":
            self._end(root, "cancelled", now)
        else:
            self._end_with(root, event.outcome, now)
        self._calls.clear()

    # The life of a call

    def _asked(self, event: events.CallAsked) -> None:
        found = context.get_current()
        parent = context.get_value(self._key, found)
        above = parent if isinstance(parent, _Open) else self._root
        call = _Open(event.step, event.call_id, above, found, _nanoseconds(event.time))
        _describe(call)
        above.below += 1
        self._calls[event.call_id] = call

    def _queued(self, event: events.CallQueued) -> None:
        if (call := self._call(event)) is None:
            return
        call.queued_at = event.time
        self._add_event(call, "weft.limits.queued", event, {"weft.limits": event.limits})

    def _started(self, event: events.CallStarted) -> None:
        if (call := self._call(event)) is None:
            return
        span = self._span_of(call)
        if call is self._root:
            _describe(call)
            self._describe_run(span)
        if call.queued_at is not None:
            self._end_wait(call, event)
        if event.attempt == call.attempt:
            self._add_event(call, "weft.question.answered", event, {})  # the same attempt goes on
        elif call.may_retry:
            call.attempt_span = self._tracer.start_span(
                f"{call.step} attempt",
                context=trace.set_span_in_context(span, call.asked_in),
                start_time=_nanoseconds(event.time),
                attributes={"weft.step": call.step, "weft.attempt": event.attempt},
            )
        call.attempt = event.attempt
        if self._has_values and span.is_recording():
            span.set_attribute("weft.arguments", _shown_arguments(event))
        self._make_current(call, call.attempt_span or span)

    def _describe_run(self, span: Span) -> None:
        """Say of the run what is said of every call, and its thread."""
        span.set_attributes(_attributes_of(self._root, self._run_id))
        found = current.get()
        if found is not None and found.run.thread_id is not None:
            span.set_attribute("weft.thread.id", found.run.thread_id)

    def _end_wait(self, call: _Open, event: events.CallStarted) -> None:
        assert call.queued_at is not None
        waited = max(0.0, event.time - call.queued_at)
        call.queued_at = None
        call.waited += waited
        self._add_event(call, "weft.limits.granted", event, {"weft.limits.waited": waited})
        self._span_of(call).set_attribute("weft.limits.waited", call.waited)

    def _retrying(self, event: events.CallRetrying) -> None:
        if (call := self._call(event)) is None:
            return
        now = _nanoseconds(event.time)
        self._end_below(call, "cancelled", now)
        self._end_attempt(call, Failed(event.error), now)
        call.branches = call.branches and deque(maxlen=_LINKS)
        attributes: Attributes = {
            "weft.attempt": event.attempt,
            "weft.retry.delay": event.delay,
            "error.type": _name_of(type(event.error)),
        }
        self._add_event(call, "weft.retry", event, attributes)

    def _finished(self, event: events.CallFinished) -> None:
        call = self._call(event)
        if call is None:
            return
        if call is self._root:
            return  # its span ends with the run
        now = _nanoseconds(event.time)
        self._end_below(call, "cancelled", now)
        self._forget(call)
        parent, outcome = call.parent, _kind(event.outcome)
        assert parent is not None
        if call.span is None and (event.recorded or event.cached):
            attributes = {"weft.step": call.step, "weft.call.id": call.call_id, "weft.outcome": outcome}
            self._add_event(parent, "weft.recorded" if event.recorded else "weft.cached", event, attributes)
            return
        span = self._span_of(call)
        if span.is_recording() and event.attempts > 1:
            span.set_attribute("weft.attempts", event.attempts)
        self._end_with(call, event.outcome, now)
        self._ended[call.call_id] = span.get_span_context()
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        if isinstance(event.outcome, Failed | TimedOut):
            parent.failed_with = event.outcome.error
        if parent.branches is not None:
            parent.branches.append((span.get_span_context(), outcome))

    # What else is told of it

    def _block_sized(self, event: events.BlockSized) -> None:
        if (call := self._call(event)) is None:
            return
        if call.branches is None:
            call.branches = deque(maxlen=_LINKS)
        span = self._innermost(call)
        if event.width is not None:
            span.set_attribute("weft.block.width", event.width)
        if event.computing is not None:
            span.set_attribute("weft.block.computing", event.computing)

    def _block_decided(self, event: events.BlockDecided) -> None:
        if (call := self._call(event)) is None:
            return
        span = self._innermost(call)
        if not span.is_recording():
            return
        counts = {"weft.block.ok": event.ok, "weft.block.failed": event.failed}
        if event.total is not None:
            counts["weft.block.total"] = event.total
        span.set_attributes(counts)
        self._add_event(call, "weft.block.decided", event, {"weft.reason": event.reason})
        for branch, outcome in call.branches or ():
            span.add_link(branch, {"weft.outcome": outcome})

    def _branches_joined(self, event: events.BranchesJoined) -> None:
        if (call := self._call(event)) is None or event.call_id not in self._calls:
            return
        for branch in event.branches[-_LINKS:]:
            if (ended := self._ended.get(branch)) is not None:
                self._span_of(call).add_link(ended)

    def _state_conflict(self, event: events.StateConflict) -> None:
        attributes = {"weft.state.path": [str(key) for key in event.path], "weft.branches": event.branches}
        self._note(event, "weft.state.conflict", attributes)

    def _given_up(self, event: events.CallGivenUp) -> None:
        self._note(event, "weft.given_up", {})

    def _question_asked(self, event: events.QuestionAsked) -> None:
        attributes = {"weft.question.id": event.question_id}
        if self._has_values:
            attributes["weft.question"] = _shown(event.value)
        self._note(event, "weft.question", attributes)

    def _mismatch(self, event: events.CallMismatch) -> None:
        self._note(event, "weft.mismatch", {"weft.recorded.step": event.recorded_step})

    def _note(self, event: events.CallEvent, name: str, attributes: Attributes) -> None:
        if (call := self._call(event)) is not None:
            self._add_event(call, name, event, attributes)

    # Spans

    def _call(self, event: events.CallEvent) -> _Open | None:
        """The call that the event is about; None for what is no step of the user's."""
        if not event.parent_id and event.call_id not in self._calls:
            self._root.call_id = event.call_id
            self._calls[event.call_id] = self._root
        return self._calls.get(event.call_id)

    def _span_of(self, call: _Open) -> Span:
        """Its span: one that is not recorded gets it as late as this, when something is to be said of it."""
        if call.span is None:
            call.span = self._tracer.start_span(
                call.step,
                context=call.asked_in,
                start_time=call.asked_at,
                attributes=_attributes_of(call, self._run_id),
            )
        return call.span

    def _innermost(self, call: _Open) -> Span:
        return call.attempt_span or self._span_of(call)

    def _make_current(self, call: _Open, span: Span) -> None:
        # Never detached: this is a context of the call's own, and goes with it.
        inside = trace.set_span_in_context(span, call.asked_in)
        context.attach(context.set_value(self._key, call, inside))

    def _add_event(self, call: _Open, name: str, event: events.Event, attributes: Attributes) -> None:
        span = self._span_of(call)
        if span.is_recording():
            span.add_event(name, attributes, _nanoseconds(event.time))

    def _end_attempt(self, call: _Open, outcome: Outcome[Any], now: int) -> None:
        span, call.attempt_span = call.attempt_span, None
        if span is not None:
            self._say_outcome(call, span, outcome, now)
            span.end(now)

    def _end_with(self, call: _Open, outcome: Outcome[Any], now: int) -> None:
        self._end_attempt(call, outcome, now)
        span = self._span_of(call)
        self._say_outcome(call, span, outcome, now)
        if self._has_values and isinstance(outcome, Ok) and span.is_recording():
            span.set_attribute("weft.result", _shown(outcome.value))
        span.end(now)

    def _end_below(self, call: _Open, how: str, now: int) -> None:
        """End what nobody told the end of: it was put aside, or let go when the journal had failed."""
        if not call.below:
            return
        inside: dict[_Open, None] = {call: None}
        for (
            each
        ) in self._calls.values():  # in the order of asking, so that a parent comes before its children
            if each.parent is not None and each.parent in inside:
                inside[each] = None
        for each in reversed([*inside][1:]):
            self._forget(each)
            self._end(each, how, now)

    def _forget(self, call: _Open) -> None:
        del self._calls[call.call_id]
        if call.parent is not None:
            call.parent.below -= 1

    def _end(self, call: _Open, how: str, now: int) -> None:
        for span in (call.attempt_span, call.span):
            if span is not None:
                span.set_attribute("weft.outcome", how)
                span.end(now)
        call.attempt_span = None

    def _say_outcome(self, call: _Open, span: Span, outcome: Outcome[Any], now: int) -> None:
        if not span.is_recording():
            return
        span.set_attribute("weft.outcome", _kind(outcome))
        if isinstance(outcome, Cancelled) and outcome.reason:
            span.set_attribute("weft.reason", outcome.reason)
        if not isinstance(outcome, Failed | TimedOut):
            return
        error = outcome.error
        name, message = _name_of(type(error)), _message_of(error)
        span.set_attribute("error.type", name)
        span.set_status(Status(StatusCode.ERROR, f"{name}: {message}" if message else name))
        if call.failed_with is error:
            return  # said where it was raised
        call.failed_with = error
        said = {"exception.type": name, "exception.message": message}
        said["exception.stacktrace"] = _stack_of(error, has_values=self._has_values)
        span.add_event("exception", said, now)


def _version() -> str | None:
    try:
        return version("weft")
    except PackageNotFoundError:  # run from its source
        return None


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _kind(outcome: Outcome[Any]) -> str:
    return {Ok: "ok", TimedOut: "timed_out", Cancelled: "cancelled"}.get(type(outcome), "failed")


def _describe(call: _Open) -> None:
    """Note what only the step knows; told of it, the call is the current one."""
    found = current.get()
    if found is None:
        return
    call.may_retry = bool(found.step.retry)
    call.function = "" if found.step.is_planned else _function_of(found.step)


def _attributes_of(call: _Open, run_id: str) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "weft.run.id": run_id,
        "weft.call.id": call.call_id,
        "weft.step": call.step,
    }
    if call.function:
        attributes["code.function.name"] = call.function
    return attributes


def _function_of(step: Step) -> str:
    """The full name of the user's function; "" where it is ours, or has none."""
    fn = step.fn
    while isinstance(fn, partial):
        fn = fn.func
    name, module = getattr(fn, "__qualname__", None), getattr(fn, "__module__", None)
    if not isinstance(name, str) or not isinstance(module, str) or module.startswith("weft."):
        return ""
    return f"{module}.{name}"


def _name_of(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # it is of a class of the user's
        return "<an error that refuses to be shown>"


def _stack_of(error: BaseException, *, has_values: bool) -> str:
    """The traceback; without our notes unless told, as they show the arguments of calls."""
    try:
        found = traceback.TracebackException.from_exception(error, compact=True)
        if not has_values:
            _drop_notes(found)
        return "".join(found.format())
    except Exception:  # as in _message_of
        return ""


def _drop_notes(error: traceback.TracebackException) -> None:
    stack = [error]
    while stack:
        found = stack.pop()
        notes = getattr(found, "__notes__", None)
        if isinstance(notes, list | tuple):
            found.__notes__ = [note for note in notes if not str(note).startswith(_OUR_NOTES)]
        inner = (found.__cause__, found.__context__, *(found.exceptions or ()))
        stack += [each for each in inner if each is not None]


def _shown(value: Any) -> str:
    try:
        return Short().of("", value)
    except Exception:  # as in _message_of
        return f"<a {type(value).__name__} that refuses to be shown>"


def _shown_arguments(event: events.CallStarted) -> str:
    found = current.get()
    try:
        return shown_input(found.step.fn, event.args, event.kwargs) if found is not None else ""
    except Exception:  # as in _message_of
        return "<an argument refuses to be shown>"
