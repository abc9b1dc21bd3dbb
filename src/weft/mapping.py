"""One workflow for every item: ``map``, ``amap``, ``pipeline``, for lists and for sources without an end in sight."""

from __future__ import annotations

import asyncio
import functools
import queue
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from weft.checkpoint.base import RecordKind, all_records
from weft.compose import Decision, Walk
from weft.core.checks import check_count, check_name
from weft.core.identity import root_identity
from weft.core.limits import Capacity
from weft.core.outcome import Cancelled, Failed, HandedOut, NotStarted, Ok, ReadOnce, TimedOut, without_shape
from weft.core.sizing import ESTIMATED_MEMORY
from weft.engine.block import Block, BlockOptions, Start
from weft.engine.caller import Caller
from weft.engine.drive import start_on_loop, start_on_portal
from weft.engine.feed import feed_of, is_in_memory
from weft.engine.futures import AnyFuture, ThreadFuture
from weft.engine.recorder import OUTCOMES
from weft.engine.step import Step, step_options
from weft.errors import CorruptDataError, DefinitionError, InputError, UsageError
from weft.nodes import as_runnable
from weft.runnable import Runnable, may_wait_for, running_call, shape_of, shown

if TYPE_CHECKING:
    from weft.checkpoint.base import Checkpointer, Record
    from weft.checkpoint.codec import Codec
    from weft.engine.call import Call
    from weft.engine.caller import Reader
    from weft.engine.execution import Execution
    from weft.engine.planned import PlannedCall
    from weft.observe.sketch import Sketch

#: How many results of a stream may wait to be taken, or, in order, for one before them, for each branch at once.
_WINDOW = 8

#: The least of that, and what it is where the width is chosen.
_LEAST_WINDOW, _USUAL_WINDOW = 64, 1_024

#: How many items of a pipeline may be on their way at least, and for each place at a stage.
_ON_THE_WAY, _ON_THE_WAY_EACH = 1_000, 10

_NO_ITEMS: Any = object()


class Map(Runnable):
    """A workflow that takes items and runs another one for each; made by :func:`map`.

    ``invoke(items)`` gives a list in the order of the items; ``stream(items)`` gives each result when it is there, and
    needs no more memory for a million items than for a hundred.
    """

    computes = False  # it finds out by itself how many of its branches may

    def __init__(
        self,
        part: Runnable,
        *,
        options: BlockOptions,
        name: str | None = None,
        timeout: Any = None,
        retry: Any = None,
        total: float | None = None,
    ) -> None:
        self.part = part
        self.is_fixed = part.is_fixed
        self.options = options
        self.key = part.key if name is None else check_name("map()", name)
        self.step = Step(
            self._conductor,
            name or f"map({part.key})",
            is_async=True,
            is_planned=True,
            **step_options(timeout=timeout, total=total, retry=retry),
            key=_for_identity,
            shape=shape_of(f"map {options.policy}", {"item": part}),
        )

    def __repr__(self) -> str:
        return f"<weft.{self.step.name}>"

    def sketch(self) -> Sketch:
        """What runs for each item, in a frame that says so."""
        from weft.mapping_picture import sketch_of_map  # noqa: PLC0415 - only who looks at it needs it

        return sketch_of_map(self.step.name, self.part, self.options)

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """What runs for each item."""
        yield f"each item ({self.part.key!r})", self.part

    def recorded_input(self, input: Any) -> Any:
        """What a journal keeps of the items: all of them, or, if they can be read only once, that they are such."""
        return _for_identity(input)

    def recorded_output(self, value: Any, store: Checkpointer, run_id: str) -> Any:
        """The results of a finished run; of one that was streamed, those of its items."""
        if not isinstance(value, HandedOut):
            return value
        root, found, last = root_identity(self.step.name), dict(value.unrecorded), {}
        stale, failed = set(value.stale), set(value.failed)
        for record in all_records(store, run_id):
            if record.parent == root and record.kind in OUTCOMES and record.identity not in stale:
                last[record.identity] = record
        for record in last.values():
            if record.kind is RecordKind.OK or record.identity in failed:
                place = value.moved.get(record.identity, record.ordinal)
                found[place] = self._recorded_result(record, store.codec)
        return [found[index] for index in sorted(found)]

    def _recorded_result(self, record: Record, codec: Codec) -> Any:
        if record.kind is RecordKind.OK:
            value = without_shape(codec.decode(record.value))
            return Ok(value) if self.options.policy.gives_outcomes else value
        error = codec.decode_error(record.value)
        if error is None:
            error = CorruptDataError(f"item {record.ordinal} failed, and its error cannot be rebuilt here")
        return TimedOut(error) if record.kind is RecordKind.TIMED_OUT else Failed(error)

    def _conductor(self, call: PlannedCall, items: Any) -> Block:
        sink = None
        if isinstance(items, _Given):
            sink, call.reader, items = items.sink, items.reader, items.items
        if isinstance(items, ReadOnce):
            raise InputError(
                f"{self.step.name!r} was begun with items that could be read only once; pass them again to go on"
            )
        if sink is not None or not is_in_memory(items):
            call.is_recorded = False  # another time there may be other items; each of them is recorded
        if sink is not None or isinstance(items, Iterator | AsyncIterator):
            call.is_last = True  # what was read is gone, and what was given out cannot be taken back
        if sink is not None:
            sink.begin(call)
        return Block(call, self._style(), feed_of(items, call), self.options, sink)

    def _style(self) -> _MapStyle:
        return _MapStyle(self.part, self.part.step, self.step.name)

    def _join_here(self, call: Call, input: Any, options: Mapping[str, Any]) -> Any:
        if call.is_on_loop:
            raise UsageError(
                f"map() and invoke() would block the loop that the body of {call.step.name!r} runs on; write "
                f"`await weft.amap({self.part.key}, items)`"
            )
        has_timeout = self.step.timeout is not None or self.step.total is not None
        if (
            is_in_memory(input)
            or isinstance(input, AsyncIterable)
            or has_timeout
            or call.run.clock.is_virtual
        ):
            return super()._join_here(call, input, options)
        reader = Caller()  # a sync source of a sync body is read in the thread of that body
        future = self._join(call, _Given(input, reader=reader), options)
        assert isinstance(future, ThreadFuture)
        future.when_over(reader.end)
        with future.attended():
            reader.serve()
        return future.result()

    # Streams

    def stream(
        self, input: Any, config: Mapping[str, Any] | None = None, *, ordered: bool = True, **options: Any
    ) -> Iterator[Any]:
        """Yield the result of each item when it is there; leaving the iterator cancels the run.

        Args:
            input: The items: any iterable or async iterable; it is read as there is room. In sync code a sync one is
                read by a thread of its own, from first to last.
            config: Another spelling of the options.
            ordered: In the order of the items; if not, ``(index, result)`` as they are completed.
            **options: Those of a run; with ``stream_mode=`` the chunks of :meth:`Runnable.stream` instead.
        """
        if "stream_mode" in options:
            return super().stream(input, config, **options)
        results = _ThreadResults(self.options, ordered=ordered)
        if (call := running_call()) is not None:
            if call.is_on_loop:
                raise UsageError(
                    f"stream() would block the loop of this body; write `async for` on {self.key}.astream(...)"
                )
            return _stream_in_body(lambda: self._join(call, _Given(input, results), options), results)
        parsed = self._options(input, config, options)
        display = shown(parsed)
        run = start_on_portal(self, _Given(input, results), parsed, display.observers)
        return _stream_run(run, results, display)

    async def astream(
        self, input: Any, config: Mapping[str, Any] | None = None, *, ordered: bool = True, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """As :meth:`stream`, on the running loop."""
        if "stream_mode" in options:
            async with aclosing(super().astream(input, config, **options)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        results = _LoopResults(self.options, ordered=ordered)
        if (call := running_call()) is not None:
            future, run = self._join(call, _Given(input, results), options), None
        else:
            parsed = self._options(input, config, options)
            display = shown(parsed)
            run = start_on_loop(self, _Given(input, results), parsed, display.observers)
            display.until_end_of(run)
            future = run.future
        async with aclosing(results.serve(future, run)) as served:
            async for item in served:
                yield item


class _MapStyle:
    """What a block of ``map`` does with an item; see :class:`weft.engine.block.Style`."""

    is_mixed = False

    def __init__(self, part: Runnable, step: Step, name: str) -> None:
        self.step = step
        self.may_compute = part.computes
        self.is_light = step.is_light
        self._name = name
        self._bind = part.bind

    def start_of(self, item: Any) -> Start:
        args, kwargs = self._bind(item)
        return self.step, args, kwargs

    def fingerprint(self, call: PlannedCall, start: Start) -> bytes:
        assert call.run.recorder is not None
        return call.run.recorder.fingerprint(*start)

    def computes(self, item: Any) -> bool:
        return self.may_compute

    def name_of(self, index: int) -> int:
        return index

    def result(self, values: list[Any]) -> list[Any]:
        return values


def _for_identity(items: Any) -> Any:
    if isinstance(items, _Given):
        items = items.items
    if not is_in_memory(items):
        return ReadOnce()
    return items if isinstance(items, list | tuple | dict | str | bytes | set | frozenset) else list(items)


# The functions


def map(  # noqa: A001 - the word that everybody looks for
    step: Any,
    items: Any = _NO_ITEMS,
    /,
    *,
    max_concurrent: int | None = None,
    timeout: Any = None,
    on_error: Any = "fail_fast",
    need: int | None = None,
    name: str | None = None,
    retry: Any = None,
    total: float | None = None,
    executor: Any = None,
    optimization_enabled: bool = True,
    estimated_memory_per_node: int = ESTIMATED_MEMORY,
    **options: Any,
) -> Any:
    """Run ``step`` for every item, in parallel, and return the list of results in the order of the items.

    Without items it gives a workflow that takes them: ``map(fetch, max_concurrent=100).stream(urls)`` yields results
    with flat memory, and ``Sequence(load, map(clean), combine)`` has it as a step.

    Args:
        step: A node, task, function or other workflow; each item becomes its arguments.
        items: Any iterable or async iterable. One that can be read only once is read as there is room: in async code on
            the loop, in sync code by the thread that calls this, or, with a timeout, by one of its own.
        max_concurrent: How many items at once, exactly. None chooses by the cores (for sync steps) and the memory.
        timeout: Seconds for all of it: :class:`ParallelTimeoutError`.
        on_error: As in :func:`parallel`: "fail_fast", "collect", "race" or ``tolerate(...)``.
        need: How many successes are enough; the others are stopped. Gives outcomes.
        name: What results and errors call it.
        retry: How many attempts of the whole, a :class:`RetryPolicy`, or several.
        total: Seconds for all attempts together.
        executor: What runs each item, as ``"process"`` (see :func:`weft.task`): the body of a step, or the whole run of
            a workflow.
        optimization_enabled: Whether to choose a width where ``max_concurrent`` is None; if not, all start at once.
        estimated_memory_per_node: Bytes that an item is taken to need.
        **options: Those of a run: ``checkpointer, run_id, thread_id, durability, limit, progress`` (True shows how
            far it is, on stderr; a :class:`Progress` may be shared by several). With a checkpointer each item is
            recorded, and a resume runs only those that are missing.

    Raises:
        ParallelExecutionError: Items failed, and that is not tolerated; its branches are their numbers.
        DefinitionError: An option that can never work.
        UsageError: In an async body; it names ``amap``.
    """
    block = BlockOptions.of(
        max_concurrent=max_concurrent,
        on_error=on_error,
        need=need,
        optimization_enabled=optimization_enabled,
        estimated_memory_per_node=estimated_memory_per_node,
    )
    part = as_runnable(step, where="map()", executor=executor)
    made = Map(part, options=block, name=name, timeout=timeout, retry=retry, total=total)
    if items is not _NO_ITEMS:
        return made.invoke(items, **options)
    _refuse_run_options(options)
    return made


def _refuse_run_options(options: Mapping[str, Any]) -> None:
    if options:
        raise DefinitionError(
            f"{next(iter(options))!r} is an option of a run: pass it to a verb, with the items"
        )


async def amap(step: Any, items: Any, /, **options: Any) -> Any:
    """As :func:`map`, on the running loop; in an async body it joins the run."""
    block = {name: options.pop(name) for name in _BLOCK_OPTIONS & options.keys()}
    return await map(step, **block).ainvoke(items, **options)


_BLOCK_OPTIONS = frozenset(
    {
        "executor",
        "max_concurrent",
        "timeout",
        "on_error",
        "need",
        "name",
        "retry",
        "total",
        "optimization_enabled",
        "estimated_memory_per_node",
    }
)


# Pipelines


class Pipeline(Map):
    """Items that go through stages, each item as fast as it can; made by :func:`pipeline`."""

    def __init__(
        self, stages: list[Runnable], widths: Mapping[str, int], *, options: BlockOptions, **rest: Any
    ) -> None:
        super().__init__(stages[-1], options=options, **rest)
        self.stages = stages
        self.is_fixed = all(stage.is_fixed for stage in stages)
        self.widths = widths
        shape = shape_of(f"pipeline {options.policy}", {stage.key: stage for stage in stages})
        self.step = replace(self.step, shape=shape)

    def sketch(self) -> Sketch:
        """Its stages one after the other, in a frame that says what they are."""
        from weft.mapping_picture import sketch_of_pipeline  # noqa: PLC0415 - only who looks at it needs it

        return sketch_of_pipeline(self.step.name, self.stages, self.widths, self.options)

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """Its stages."""
        yield from ((f"stage {stage.key!r}", stage) for stage in self.stages)

    def _style(self) -> _MapStyle:
        parts = [self._gated(stage) for stage in self.stages]
        walk = functools.partial(Walk, parts, len(parts))
        step = Step(walk, self.key, is_async=True, is_planned=True, shape=self.step.shape)
        return _PipelineStyle(self.stages, step, self.step.name)

    def _gated(self, stage: Runnable) -> Runnable:
        """The stage with its width: that of this run, whatever other runs do."""
        width = self.widths.get(stage.key)
        if width is None:
            return stage
        return _Gated(stage, Capacity(stage.key, concurrent=width, is_gate=True))


class _Gated(Runnable):
    """A stage of which so many may be at work at once."""

    def __init__(self, stage: Runnable, width: Capacity) -> None:
        self._stage = stage
        self.key = stage.key
        self.computes = stage.computes
        self.step = replace(stage.step, gates=(width,))

    def bind_branch(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As of the stage."""
        return self._stage.bind_branch(value)


class _PipelineStyle(_MapStyle):
    def __init__(self, stages: list[Runnable], step: Step, name: str) -> None:
        super().__init__(stages[0], step, name)
        self.may_compute = any(stage.computes for stage in stages)

    def start_of(self, item: Any) -> Start:
        return self.step, (item,), {}


def pipeline(
    items: Any,
    /,
    *stages: Any,
    max_concurrent: int | Mapping[str, int] | None = None,
    timeout: Any = None,
    on_error: Any = "fail_fast",
    need: int | None = None,
    name: str | None = None,
    retry: Any = None,
    total: float | None = None,
    executor: Any = None,
    **options: Any,
) -> Any:
    """Send every item through all stages, without a barrier between them; returns the list of what the last one gave.

    An item enters a stage when it has left the one before and there is a place, whatever the other items do.

    Args:
        items: As in :func:`map`. None gives a workflow that takes them: ``pipeline(None, load, embed).stream(docs)``.
        *stages: Nodes, tasks, functions and other workflows; each takes what the one before gave.
        max_concurrent: How many items at once in each stage, or a dict of that by the name of the stage; None, or
            a stage that is left out: as many as come.
        timeout: Seconds for all of it.
        on_error: As in :func:`parallel`, for items.
        need: How many items are enough.
        name: What results and errors call it.
        retry: How many attempts of the whole, a :class:`RetryPolicy`, or several.
        total: Seconds for all attempts together.
        executor: What runs the stages that name none of their own; see :func:`map`.
        **options: Those of a run.

    Raises:
        ParallelExecutionError: Items failed, and that is not tolerated.
        DefinitionError: Stages of one name, or an option that can never work.
    """
    parts = [as_runnable(stage, where="pipeline()", executor=executor) for stage in stages]
    widths = _widths(parts, max_concurrent)
    on_the_way = max(_ON_THE_WAY, _ON_THE_WAY_EACH * sum(widths.values())) if widths else None
    block = BlockOptions.of(max_concurrent=on_the_way, on_error=on_error, need=need)
    made = Pipeline(
        parts, widths, options=block, name=name or "pipeline", timeout=timeout, retry=retry, total=total
    )
    if items is not None:
        return made.invoke(items, **options)
    _refuse_run_options(options)
    return made


def _widths(stages: list[Runnable], given: Any) -> dict[str, int]:
    if not stages:
        raise DefinitionError("pipeline() needs at least one stage, after the items")
    names = [stage.key for stage in stages]
    if len(set(names)) < len(names):
        raise DefinitionError(f"the stages of a pipeline need different names, not {', '.join(names)}")
    if any(isinstance(stage, Decision) for stage in stages):
        raise DefinitionError(
            "a decision is no stage of a pipeline; put it into a Sequence, and that into a stage"
        )
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, check_count("max_concurrent", given))
    for name, width in given.items():
        if name not in names:
            raise DefinitionError(f"max_concurrent names {name!r}; the stages are: {', '.join(names)}")
        check_count(f"max_concurrent of {name!r}", width)
    return dict(given)


# Results one by one


class _Given:
    """Items, with where their results go if those are wanted one by one, and the thread that reads them."""

    def __init__(self, items: Any, sink: _Results | None = None, reader: Reader | None = None) -> None:
        self.items = items
        self.sink = sink
        self.reader = reader

    def __repr__(self) -> str:
        return repr(self.items)


class _Results:
    """What a stream's consumer has still to take; see :class:`weft.engine.block.Sink`."""

    def __init__(self, options: BlockOptions, *, ordered: bool) -> None:
        width = options.max_concurrent
        self.window = _USUAL_WINDOW if width is None else max(_LEAST_WINDOW, _WINDOW * width)
        self.taken = 0
        self._ordered = ordered
        self._is_one = options.policy.gives_one
        self._early: dict[int, Any] = {}  # in order, those that wait for one before them
        self._next = 0
        self._call: PlannedCall | None = None

    def begin(self, call: PlannedCall) -> None:
        """The block that gives the results."""
        self._call = call

    def give(self, index: int, result: Any, *, at_once: bool = False) -> None:
        """A branch has ended."""
        if at_once or not self._ordered:
            self._hand_over(result if self._ordered else (index, result))
            return
        self._early[index] = result
        while self._next in self._early:
            self._hand_over(self._early.pop(self._next))
            self._next += 1

    def rest(self, output: Any) -> Iterable[Any]:
        """What is left to yield when the run, or the call, has ended with this output.

        Raises:
            UsageError: It was put aside: a question waits for its answer.
        """
        if isinstance(output, dict) and "__interrupt__" in output:
            raise UsageError(
                f"the run was put aside, since there are questions to answer: {output['__interrupt__']}; answer them "
                "by invoke(Command(resume=...)) with the same run_id, or by `weft answer`, and stream again"
            )
        if self._call is not None:  # in order, what waited for one that has no result
            return [self._early.pop(index) for index in sorted(self._early)]
        found = (
            [output]
            if self._is_one
            else [each for each in output if not isinstance(each, Cancelled | NotStarted)]
        )
        return found if self._ordered else enumerate(found)

    def _hand_over(self, result: Any) -> None:
        raise NotImplementedError

    def _took(self) -> None:
        self.taken += 1
        if self.taken % (self.window // 4) == 0 and self._call is not None:
            self._call.run.post(self._call.advance_soon)


_END: Any = object()


class _ThreadResults(_Results):
    """For a consumer in a thread."""

    def __init__(self, options: BlockOptions, *, ordered: bool) -> None:
        super().__init__(options, ordered=ordered)
        # Not a SimpleQueue, whose waiting a virtual clock cannot see.
        self._queue: queue.Queue[Any] = queue.Queue()

    def _hand_over(self, result: Any) -> None:
        self._queue.put(result)

    def serve(self, future: AnyFuture) -> Iterator[Any]:
        """Yield the results until the run, or the call in a run, has ended."""
        assert isinstance(future, ThreadFuture)
        future.when_over(lambda: self._queue.put(_END))
        while (item := self._get(future)) is not _END:
            self._took()
            yield item
        yield from self.rest(future.result())

    def finish(self) -> None:
        """Wait until it has ended; drop what it still gives."""
        while self._queue.get() is not _END:
            pass

    def _get(self, future: ThreadFuture) -> Any:
        with future.attended():
            return self._queue.get()


def _stream_run(run: Execution, results: _ThreadResults, display: shown) -> Iterator[Any]:
    with display:
        try:
            run.begin()
            yield from results.serve(run.future)
        finally:
            if not run.future.done():
                run.begin()  # an interrupt may have come in the middle of it
                run.post(run.cancel, "its stream was left")
                if may_wait_for(run):
                    results.finish()


def _stream_in_body(
    begin: Callable[[], AnyFuture | asyncio.Future[Any]], results: _ThreadResults
) -> Iterator[Any]:
    future = begin()
    assert isinstance(future, ThreadFuture)
    try:
        yield from results.serve(future)
    finally:
        if (call := future.call) is not None:
            call.run.post(call.stop_by_caller)  # not cancel(), which does not wait for what has begun
            if may_wait_for(call.run):
                with future.attended():
                    results.finish()


class _LoopResults(_Results):
    """For a consumer on the loop of the run."""

    def __init__(self, options: BlockOptions, *, ordered: bool) -> None:
        super().__init__(options, ordered=ordered)
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def _hand_over(self, result: Any) -> None:
        self._queue.put_nowait(result)

    async def serve(self, future: Any, run: Execution | None) -> AsyncGenerator[Any, None]:
        """Yield the results until the run, or the call in a run, has ended."""
        future.add_done_callback(lambda _: self._queue.put_nowait(_END))
        try:
            if run is not None:
                run.begin()
            while (item := await self._queue.get()) is not _END:
                self._took()
                yield item
            for item in self.rest(future.result()):
                yield item
        finally:
            future.forget()
            if not future.done():
                if run is None:
                    future.cancel()
                else:
                    run.cancel("its stream was left")
                while await self._queue.get() is not _END:
                    pass


__all__ = ["Map", "Pipeline", "amap", "map", "pipeline"]
