"""The verbs that everything has that can run."""

from __future__ import annotations

import asyncio
import os
import queue
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from collections.abc import Sequence as Several
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from weft.core.question import Command
from weft.core.timeout import TimeoutPolicy
from weft.engine.call import Call
from weft.engine.context import current
from weft.engine.drive import run_here, run_on_loop, start_on_loop, start_on_portal
from weft.engine.futures import AnyFuture, ThreadFuture
from weft.engine.options import RunOptions
from weft.engine.raised import without_engine_frames
from weft.engine.step import Step
from weft.engine.workflow import Workflow
from weft.errors import DefinitionError, InputError, UsageError, WeftError

if TYPE_CHECKING:
    from weft.compose import Sequence
    from weft.engine.events import Event, Observer
    from weft.engine.execution import Execution
    from weft.observe.picture import Direction, Picture
    from weft.observe.progress import Progress
    from weft.observe.recorded import RecordedRun
    from weft.observe.run_calls import RunCalls
    from weft.observe.sketch import Part, Sketch
    from weft.observe.stream import Chunker
    from weft.run import Run

_INNER_OPTIONS = {"timeout"}
_IGNORED_INSIDE = {"checkpointer", "durability", "context", "config", "thread_id", "progress", "observers"}


class Runnable(Workflow):
    """Something that takes one value and gives one.

    Called in the body of a run, every verb joins that run. The options of a run are keywords of every verb:
    ``checkpointer, run_id, thread_id, durability, max_concurrent, timeout`` (seconds), ``progress, observers,
    on_mismatch``;
    ``config={"configurable": {"thread_id": ...}, "max_concurrency": ...}`` is another spelling.
    """

    checkpointer: Any = None

    #: What results and errors call it where it is a part of something.
    key: str

    #: Whether it has a sync body, which needs a core; not counting what chooses its own width.
    computes: bool = False

    #: Long-term memory, and the class of ``invoke(context=...)``, where the style has them.
    memory: Any = None
    context_schema: type | None = None

    # The verbs

    def invoke(self, input: Any, config: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run to the end and return the result; for sync code.

        Raises:
            UsageError: In an async body; it names ``ainvoke``.
            Exception: What the run raised.
        """
        mode = options.pop("stream_mode", None)
        if mode not in (None, "values"):
            return list(self.stream(input, config, stream_mode=mode, **options))
        if (call := running_call()) is not None:
            return self._join_here(call, input, options)
        return self._run_here(input, self._options(input, config, options))

    async def ainvoke(self, input: Any, config: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run to the end and return the result; on the running loop.

        Cancelling it cancels the run and waits for all that it has begun.
        """
        mode = options.pop("stream_mode", None)
        if mode not in (None, "values"):
            return [chunk async for chunk in self.astream(input, config, stream_mode=mode, **options)]
        if (call := running_call()) is not None:
            future = self._join(call, input, options)
            return await (asyncio.wrap_future(future) if isinstance(future, ThreadFuture) else future)
        parsed = self._options(input, config, options)
        try:
            if not parsed.progress:
                return await run_on_loop(self, input, parsed)
            async with shown(parsed) as observers:
                return await run_on_loop(self, input, parsed, observers)
        except BaseException as error:
            without_engine_frames(error)
            raise

    def stream(
        self,
        input: Any,
        config: Mapping[str, Any] | None = None,
        *,
        stream_mode: str | Several[str] | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Run, and yield what happens; leaving the iterator cancels the run.

        Args:
            input: What the run is given.
            config: Another spelling of the options.
            stream_mode: "updates" (default; ``{step: value}`` as each call ends), "values", "custom" (what bodies
                wrote), "tasks" (starts and ends), or a list of these, which gives ``(mode, chunk)`` pairs.
            **options: Those of a run.
        """
        chunker = self._chunker(stream_mode)
        if (call := running_call()) is not None:
            result = self._join_here(call, input, options)
            return iter([{self.step.name: result}])
        return self._stream(input, self._options(input, config, options), chunker)

    def _chunker(self, modes: str | Several[str] | None) -> Chunker:
        from weft.observe.stream import Chunker  # noqa: PLC0415 - only of runs that somebody observes

        return Chunker(modes or "updates", self.step.name)

    def _stream(self, input: Any, options: RunOptions, chunker: Chunker) -> Iterator[Any]:
        with shown(options) as observers:
            yield from self._stream_to(observers, input, options, chunker)

    def _stream_to(
        self, observers: list[Observer], input: Any, options: RunOptions, chunker: Chunker
    ) -> Iterator[Any]:
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        run = start_on_portal(self, input, options, [*observers, events.put])
        run.unread = events.qsize
        run.future.add_done_callback(lambda _: events.put(None))
        try:
            run.begin()
            while (event := events.get()) is not None:
                yield from chunker(event)
            run.future.result()
        finally:
            if not run.future.done():
                run.begin()  # an interrupt may have come in the middle of it
                run.post(run.cancel, "its stream was left")
                while may_wait_for(run) and events.get() is not None:
                    pass

    async def astream(
        self,
        input: Any,
        config: Mapping[str, Any] | None = None,
        *,
        stream_mode: str | Several[str] | None = None,
        **options: Any,
    ) -> AsyncGenerator[Any, None]:
        """As :meth:`stream`, on the running loop."""
        chunker = self._chunker(stream_mode)
        if running_call() is not None:
            yield {self.step.name: await self.ainvoke(input, config, **options)}
            return
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        parsed = self._options(input, config, options)
        display = shown(parsed)
        run = start_on_loop(self, input, parsed, [*display.observers, events.put_nowait])
        run.unread = events.qsize
        display.until_end_of(run)
        run.future.add_done_callback(lambda _: events.put_nowait(None))
        run.begin()
        try:
            while (event := await events.get()) is not None:
                for chunk in chunker(event):
                    yield chunk
            run.future.result()
        finally:
            run.future.forget()
            if not run.future.done():
                run.cancel("its stream was left")
                while await events.get() is not None:
                    pass

    def submit(self, input: Any, config: Mapping[str, Any] | None = None, **options: Any) -> Run[Any]:
        """Begin a run and return its handle at once: on the running loop, or beside sync code."""
        from weft.run import Run  # noqa: PLC0415 - its events are not imported for runs that nobody looks at

        if running_call() is not None:
            raise UsageError(
                "submit() begins a run of its own; in a body call or invoke what is to join its run"
            )
        parsed = self._options(input, config, options)
        display = shown(parsed)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            run = start_on_portal(self, input, parsed, display.observers)
            handle: Run[Any] = Run(run)
            display.until_end_of(run)
            run.begin()
            return handle
        run = start_on_loop(self, input, parsed, display.observers)
        display.until_end_of(run)
        run.end_with_loop()
        assert run.loop is loop
        handle = Run(run)
        run.begin()
        return handle

    def map(self, *items: Any, **options: Any) -> Any:
        """Run this for every item, in parallel: ``f.map(items)`` is ``weft.map(f, items)``, which see."""
        from weft.mapping import map as map_  # noqa: PLC0415 - it builds on what is here

        return map_(self, *items, **options)

    async def amap(self, items: Any, /, **options: Any) -> Any:
        """As :meth:`map`, on the running loop."""
        from weft.mapping import amap  # noqa: PLC0415 - as above

        return await amap(self, items, **options)

    # What its bodies may have

    def provide(self, name: str, call: Call) -> Any:
        """The value of ``config``, ``previous``, ``runtime``, ``store`` or ``writer`` for a body."""
        from weft.provided import PROVIDERS  # noqa: PLC0415 - most bodies ask for none of it

        return PROVIDERS[name](self, call)

    def context_of(self, given: Any) -> Any:
        """The run's context, made of a mapping where the workflow has a schema for it."""
        if self.context_schema is not None and isinstance(given, Mapping):
            return self.context_schema(**given)
        return given

    # As a part of a workflow

    def as_part(self) -> Runnable:
        """What takes its place in another workflow: itself, where its attributes are not the user's own."""
        return self

    def run_by(self, executor: Any) -> Runnable:
        """The same with its body run by an executor; of a workflow, with its runs done there as a whole.

        Raises:
            DefinitionError: That is no executor, or none for this.
        """
        from weft.elsewhere import Elsewhere  # noqa: PLC0415 - only who has an executor needs it

        return Elsewhere(self, executor)

    def bind_branch(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of its step for a value that is handed on; see :mod:`weft.core.binding`."""
        return self.bind(value)

    def bind_node(self, values: dict[Any, Any], callback: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of its step where it is a node of a graph: a dict of its own, and what such nodes stream to."""
        return self.bind_branch(values)

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """What it is made of, each with what errors call it."""
        return iter(())

    def problems(self) -> Iterator[str]:
        """What can never work in itself, not in its parts, each as a sentence for people."""
        return iter(())

    def functions(self) -> Iterator[Callable[..., Any]]:
        """The functions of its steps, and of those of its parts: their annotations name what may be stored."""
        for part, _ in self._with_parts():
            yield from part.own_functions()

    def own_functions(self) -> Iterator[Callable[..., Any]]:
        """The functions of its own steps."""
        yield self.own_function()

    def own_function(self) -> Callable[..., Any]:
        """The function of its step."""
        return self.step.fn

    def _with_parts(self) -> Iterator[tuple[Runnable, _Way]]:
        """Itself and all that it is made of, however deep, each with the way to it."""
        stack: list[tuple[Runnable, _Way]] = [(self, None)]
        seen: set[Runnable] = set()
        while stack:
            part, way = stack.pop()
            if part in seen:
                continue
            seen.add(part)
            yield part, way
            stack += [(inner, (way, name)) for name, inner in part.parts()][::-1]

    def validate(self) -> None:
        """Look, without running anything, for what can never work.

        Raises:
            DefinitionError: There is something; it lists all of it.
        """
        found = [f"{_said(way)}{problem}" for part, way in self._with_parts() for problem in part.problems()]
        if found:
            listed = "".join(f"\n  - {problem}" for problem in found)
            raise DefinitionError(f"{self.step.name!r} cannot work as it is:{listed}")

    def __rshift__(self, other: Any) -> Sequence:
        """``a >> b``: first a, then b with what a gave."""
        from weft.compose import Sequence  # noqa: PLC0415 - what is composed can be composed again

        return Sequence(self, other)

    def __rrshift__(self, other: Any) -> Sequence:
        """As :meth:`__rshift__`, where the left side is a plain function."""
        from weft.compose import Sequence  # noqa: PLC0415 - as above

        return Sequence(other, self)

    # Pictures

    def picture(self, *, run: Run[Any] | RecordedRun | None = None) -> Picture:
        """What it looks like, with all that is in it, for Mermaid, SVG and PNG; notebooks show it by itself.

        Args:
            run: What has become of each step in this run of it: what ``submit`` gave, or, of a run that was recorded,
                ``weft.runs(store).show(run_id)``. It is drawn as it stands now.

        Raises:
            InputError: It is no run, or one of another workflow.
        """
        from weft.observe.workflow_drawing import picture_of  # noqa: PLC0415 - only who draws needs it

        part = self.as_part()
        return picture_of(part, None if run is None else _calls_of(run, part))

    def visualize(
        self, *, save_path: str | os.PathLike[str] | None = None, run: Run[Any] | RecordedRun | None = None
    ) -> Picture | None:
        """Draw it: into a file, or shown in a notebook; elsewhere the picture is returned.

        Args:
            save_path: Where to: a name that ends with .svg, .png, .mmd or .md.
            run: As of :meth:`picture`.

        Raises:
            InputError: The name ends with something else, or that is no run of this.
            UsageError: SVG and PNG need the extra: ``pip install 'weft[draw]'``.
        """
        from weft.observe.picture import show  # noqa: PLC0415 - as in picture

        return show(self.picture(run=run), save_path=save_path)

    def mermaid(self, *, run: Run[Any] | RecordedRun | None = None, direction: Direction = "down") -> str:
        """The picture as a Mermaid flowchart, which many editors and hosts draw; it needs nothing but Weft."""
        return self.picture(run=run).mermaid(direction=direction)

    def sketch(self) -> Sketch:
        """How it looks, but not its parts: those say that themselves. A function is a box, and what it may call."""
        from weft.observe.sketch import Sketch  # noqa: PLC0415 - as in picture

        step = self.step
        return Sketch(self.key, step.name, calls=called_in(*self.own_functions()))

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        try:
            drawn = self.as_part().picture()._repr_mimebundle_()
        except WeftError:  # it is not finished; whoever wants to know why calls picture()
            drawn = {}
        return {**drawn, "text/plain": repr(self)}

    # How a verb is done

    def _run_here(self, input: Any, options: RunOptions) -> Any:
        with shown(options) as observers:
            try:
                return run_here(self, input, options, observers)
            except BaseException as error:
                without_engine_frames(error)
                raise

    def _options(
        self, input: Any, config: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> RunOptions:
        parsed = RunOptions.of(config, options, default=self.checkpointer)
        if isinstance(input, Command) and parsed.checkpointer is None:
            raise UsageError("Command(resume=...) goes on with a recorded run, so it needs a checkpointer")
        return parsed

    def _join_here(self, call: Call, input: Any, options: Mapping[str, Any]) -> Any:
        if call.is_on_loop and _on(call.run.loop):
            raise UsageError(
                f"invoke() would block the loop that the body of {call.step.name!r} runs on; "
                f"write `await {self.key}.ainvoke(...)`"
            )
        future = self._join(call, input, options)
        assert isinstance(future, ThreadFuture)
        return future.result()

    def _join(self, call: Call, input: Any, options: Mapping[str, Any]) -> AnyFuture | asyncio.Future[Any]:
        return call.ask(self._inner_step(options), *self.bind(input))

    def _inner_step(self, options: Mapping[str, Any]) -> Step:
        given = {
            name: value
            for name, value in options.items()
            if value is not None and name not in _IGNORED_INSIDE
        }
        if not given:
            return self.step
        for name in given:
            if name not in _INNER_OPTIONS:
                raise InputError(
                    f"{self.step.name!r} joins the run that it is called in, which has its own {name}"
                )
        return replace(self.step, timeout=TimeoutPolicy.of(given["timeout"]))


def shape_of(kind: str, parts: Mapping[str, Runnable]) -> str:
    """What tells a workflow from another whose recorded value is not its own: its parts, by name, and theirs."""
    inner = ", ".join(f"{name}: {part.step.name} {part.step.shape}" for name, part in parts.items())
    return blake2b(f"{kind}({inner})".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def drawn_part(part: Runnable, *, label: str | None = None, step: str | None = None) -> Part:
    """A part of a workflow as it is drawn."""
    from weft.observe.sketch import Part  # noqa: PLC0415 - as in picture

    return Part(part.key if label is None else label, part.step.name if step is None else step, part)


def called_in(*functions: Callable[..., Any]) -> tuple[Part, ...]:
    """What the code of these functions names that can run."""
    from weft.observe.sketch import named_in_code  # noqa: PLC0415 - as in picture

    found: dict[str, Part] = {}
    for fn in functions:
        for value in named_in_code(fn):
            if isinstance(value, Runnable):
                part = drawn_part(value.as_part())
                found.setdefault(part.step, part)
    return tuple(found.values())


def _calls_of(run: Any, part: Runnable) -> RunCalls:
    """What a run tells of its calls."""
    # As in picture.
    from weft.observe.run_calls import of_events, of_journal  # noqa: PLC0415
    from weft.run import Run  # noqa: PLC0415

    if isinstance(run, Run):
        found, now = run.so_far()
        calls = of_events(found, now=now)
    elif hasattr(run, "calls") and hasattr(run, "workflow"):
        calls = of_journal(run)
    else:
        raise InputError(
            f"run={run!r:.80}: it has to be what submit() gave, or a recorded run, weft.runs(store).show(run_id)"
        )
    if calls.workflow not in {"", part.step.name}:
        raise InputError(
            f"run {calls.id!r} is one of {calls.workflow!r}, and cannot be drawn into {part.step.name!r}"
        )
    return calls


#: How a part is reached: the way to what it is a part of, and what that calls it.
_Way = tuple["_Way", str] | None


def _said(way: _Way) -> str:
    names: list[str] = []
    while way is not None:
        way, name = way
        names.append(f"{name}: ")
    return "".join(reversed(names))


def may_wait_for(run: Execution) -> bool:
    """Whether this thread may wait for the run: not its own loop, on which a lost iterator may be collected."""
    return not _on(run.loop)


def running_call() -> Call | None:
    """The call whose body this is, if there is one: what is run here joins its run.

    Raises:
        UsageError: The body has ended: nothing may begin behind the back of who has seen its outcome.
    """
    call = current.get()
    if call is None or (call.is_running and not call.is_in_abandoned_thread):
        return call
    raise call.refusal("a run")


class shown:  # noqa: N801 - used like a function
    """Observers of a run that shows its progress, for the time of the run."""

    def __init__(self, options: RunOptions) -> None:
        self._progress: Progress | None = None
        if options.progress:
            from weft.observe.progress import progress_of  # noqa: PLC0415 - few runs need it

            self._progress = progress_of(options.progress)

    @property
    def observers(self) -> list[Observer]:
        """What the run is to tell."""
        return [] if self._progress is None else [self._progress]

    def __enter__(self) -> list[Observer]:
        if self._progress is not None:
            self._progress.__enter__()
        return self.observers

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.__exit__()

    async def __aenter__(self) -> list[Observer]:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        if self._progress is not None:
            await self._progress.__aexit__()

    def until_end_of(self, run: Execution) -> None:
        """For the time of a run that nobody waits for here."""
        if (progress := self._progress) is not None:
            progress.__enter__()
            run.future.add_done_callback(lambda _: progress.leave())


def _on(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
