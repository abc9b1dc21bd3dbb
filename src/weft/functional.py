"""The functional style: tasks, entrypoints, futures, questions. After LangGraph's functional API.

A program is an ordinary function, the entrypoint, that calls tasks. A task call gives a future at once, so that
parallel is what is called before it is waited for. With a checkpointer the entrypoint runs again from its first
line when the run is resumed, and tasks that have ended give what they gave before.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from weft.core.binding import Binding
from weft.core.question import Interrupt
from weft.core.retry import RetryPolicy
from weft.core.timeout import TimeoutPolicy
from weft.engine.call import Call
from weft.engine.context import current, current_call
from weft.engine.options import RunOptions, as_checkpointer
from weft.engine.step import Step, name_of, retry_policies, step_options
from weft.errors import (
    CorruptDataError,
    DefinitionError,
    DirectCallError,
    InputError,
    Interrupted,
    NotInRunError,
    UsageError,
)
from weft.executors.inside import Writer, inside
from weft.provided import PROVIDERS
from weft.runnable import Runnable
from weft.types import Runtime, StateSnapshot, StreamWriter

if TYPE_CHECKING:
    import concurrent.futures

    from weft.cache import Cache, CachePolicy
    from weft.checkpoint.codec import Codec
    from weft.memory import BaseStore
    from weft.observe.sketch import Sketch
    from weft.state import ThreadView

logger = logging.getLogger("weft")

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")
In = TypeVar("In")
Out = TypeVar("Out")

if TYPE_CHECKING:

    class TaskFuture(concurrent.futures.Future[T]):
        """What a task call gives: in an async body something to await, elsewhere a concurrent future."""

        def __await__(self) -> Generator[Any, None, T]: ...

    class TaskDecorator(Protocol):
        """What ``@task(...)`` with options is put on."""

        @overload
        def __call__(self, func: Callable[P, Awaitable[T]], /) -> Task[P, T]: ...
        @overload
        def __call__(self, func: Callable[P, T], /) -> Task[P, T]: ...


class _Functional(Runnable):
    """What tasks and entrypoints share: the cache."""

    is_fixed = True
    cache: Cache | None = None

    def look_up(self, call: Call) -> tuple[bool, Any]:
        """Whether the cache has a value for this call, and the value."""
        if self.cache is None:
            return False, None
        found = self.cache.get(_namespace(call.step), _cache_key(call))
        if found is None:
            return False, None
        try:
            return True, _codec(call).decode(found)
        except CorruptDataError as error:  # of another version of its type, perhaps
            logger.warning(
                "a cached result of %r cannot be read, and is made anew: %s", call.step.name, error
            )
            return False, None

    def keep(self, call: Call) -> None:
        """Put the value of this call into the cache."""
        if self.cache is not None:
            policy: CachePolicy = call.step.cache
            self.cache.set(
                _namespace(call.step), _cache_key(call), _codec(call).encode(call.value), ttl=policy.ttl
            )


# Tasks


class Task(_Functional, Generic[P, T]):
    """A function whose calls are recorded, retried and run in parallel; made by :func:`task`."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.key = step.name
        self.computes = not step.is_async
        functools.update_wrapper(self, step.fn, updated=())
        self.__name__ = step.name

    def __repr__(self) -> str:
        return f"<weft.task {self.step.name!r}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Begin a call, and return its future at once.

        Raises:
            NotInRunError: Not in the body of a run.
        """
        call = current.get()
        if call is None:
            if inside.get() is not None:
                current_call(f"task {self.step.name!r}")
            raise NotInRunError(
                f"task {self.step.name!r} was called outside a run. Call it in an entrypoint or in another task; to "
                f"run it by itself write {self.step.name}.invoke(...), to call the plain function "
                f"{self.step.name}.func(...)"
            )
        return call.ask(self.step, args, kwargs)  # type: ignore[return-value]  # one of the two kinds

    def __get__(self, instance: object, owner: type | None = None) -> Task[..., T]:
        """A task that is declared in a class is bound like a method; ``self`` is no part of a call's identity."""
        if instance is None:
            return self
        return Task(replace(self.step, fn=self.step.fn.__get__(instance, owner)))

    def run_by(self, executor: Any) -> Runnable:
        """The same with its body run by an executor, unless it has one of its own."""
        return self if self.step.executor is not None else Task(self.step.run_by(executor))

    @property
    def func(self) -> Callable[P, Any]:
        """The plain function."""
        return self.step.fn

    def bind(self, input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function for an input or an item."""
        return self._binding.bind_item(input, step=self.step.name)

    def bind_branch(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function for a value that is handed on."""
        return self._binding.bind(value, step=self.step.name)

    @functools.cached_property
    def _binding(self) -> Binding:
        return Binding.of(self.step.fn, injected=[name for name, _ in self.step.inject])

    @property
    def retry_policy(self) -> tuple[RetryPolicy, ...]:
        """When and how often a failed attempt is followed by another."""
        return self.step.retry

    @property
    def cache_policy(self) -> CachePolicy | None:
        """How results are cached, if they are."""
        return self.step.cache  # type: ignore[no-any-return]  # a step does not know what a style caches by

    @property
    def timeout(self) -> TimeoutPolicy | None:
        """How long an attempt may take."""
        return self.step.timeout

    def clear_cache(self, cache: Cache) -> None:
        """Forget the cached results of this task."""
        cache.clear([_namespace(self.step)])

    async def aclear_cache(self, cache: Cache) -> None:
        """As :meth:`clear_cache`."""
        self.clear_cache(cache)


@overload
def task(func: Callable[P, Awaitable[T]], /) -> Task[P, T]: ...
@overload
def task(func: Callable[P, T], /) -> Task[P, T]: ...
@overload
def task(
    func: None = None,
    /,
    *,
    name: str | None = None,
    retry_policy: RetryPolicy
    | Iterator[RetryPolicy]
    | list[RetryPolicy]
    | tuple[RetryPolicy, ...]
    | None = None,
    cache_policy: CachePolicy | None = None,
    timeout: Any = None,
    total: float | None = None,
    limit: Any = None,
    executor: Any = None,
    key: Callable[..., Any] | None = None,
) -> TaskDecorator: ...
def task(
    func: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry_policy: Any = None,
    cache_policy: CachePolicy | None = None,
    timeout: Any = None,
    total: float | None = None,
    limit: Any = None,
    executor: Any = None,
    key: Callable[..., Any] | None = None,
) -> Any:
    """Make a task of a function: its calls are recorded, retried, limited, and run in parallel.

    Args:
        func: An ``async def``, which runs on the loop, or a plain function, which runs in a thread.
        name: What the task is called in streams and records; the function's name unless told.
        retry_policy: One or several; the first that covers an error decides.
        cache_policy: Keep results in the entrypoint's ``cache=``.
        timeout: Of one attempt: seconds, a ``timedelta`` or a :class:`TimeoutPolicy`. A sync body that is out of
            time is given up: its call fails on time, its thread is listed in ``Run.given_up``.
        total: Seconds for all attempts and waits of a call together.
        limit: A :class:`Limit`, or several.
        executor: Where the body runs, if not on the loop or in our threads: ``"process"``, a
            :class:`ProcessExecutor`, :class:`DaskExecutor` or :class:`RayExecutor`, or any
            ``concurrent.futures.Executor``.
        key: Computes from the arguments what stands for them in the call's identity, for arguments that cannot be
            encoded, or that change without meaning anything.

    Raises:
        DefinitionError: What is decorated is no function, or an option can never work.
    """
    options = step_options(timeout=timeout, total=total, retry=retry_policy, limit=limit, executor=executor)

    def decorate(fn: Callable[..., Any]) -> Task[..., Any]:
        if not callable(fn):
            raise DefinitionError(f"@task is put on a function, not on {fn!r}")
        step = Step.of(
            fn,
            name=name,
            cache=cache_policy,
            key=key,
            inject=_injected(fn, skip=0),
            **options,
        )
        return Task(step)

    return decorate if func is None else decorate(func)


# Entrypoints


@dataclass(frozen=True, kw_only=True)
class Final(Generic[T, S]):
    """Return one value from an entrypoint, and save another as the thread's next ``previous``."""

    value: T
    save: S


class Entrypoint(_Functional, Generic[In, Out]):
    """A workflow; made by :class:`entrypoint`. It is run by its verbs, not called."""

    def __init__(self, step: Step, options: entrypoint) -> None:
        self.step = replace(step, workflow=self)
        self.checkpointer = options.checkpointer
        self.store = self.memory = options.store
        self.cache = options.cache
        self.context_schema = options.context_schema
        functools.update_wrapper(self, step.fn, updated=())
        self.__name__ = self.name = self.key = step.name
        self.computes = not step.is_async

    def __repr__(self) -> str:
        return f"<weft.entrypoint {self.name!r}>"

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """An entrypoint is not called.

        Raises:
            DirectCallError: Always; it names the verbs.
        """
        raise DirectCallError(
            f"entrypoint {self.name!r} is not called like a function; write {self.name}.invoke(...) or "
            f"`await {self.name}.ainvoke(...)`"
        )

    if TYPE_CHECKING:

        def invoke(self, input: In | Any, config: Mapping[str, Any] | None = None, **options: Any) -> Out: ...

        async def ainvoke(
            self, input: In | Any, config: Mapping[str, Any] | None = None, **options: Any
        ) -> Out: ...

    @property
    def func(self) -> Callable[..., Any]:
        """The plain function."""
        return self.step.fn

    def split_output(self, value: Any) -> tuple[Any, Any]:
        """What the run returns, and what its thread saves as ``previous``."""
        return (value.value, value.save) if isinstance(value, Final) else (value, value)

    def sketch(self) -> Sketch:
        """A box of its own, and what its code names: what it calls, and how often, only a run can tell."""
        return replace(super().sketch(), kind="runnable", unknown="a run shows what it calls")

    # The thread's state; see weft.state

    def get_state(
        self, config: Mapping[str, Any] | None = None, *, thread_id: str | None = None
    ) -> StateSnapshot:
        """Where the thread stands: the last value, open questions, the error of a failed run."""
        return (
            next(self.get_state_history(config, thread_id=thread_id, limit=1), None)
            or self._thread(config, thread_id).empty()
        )

    def get_state_history(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        thread_id: str | None = None,
        limit: int | None = None,
    ) -> Iterator[StateSnapshot]:
        """The thread's snapshots, the newest first."""
        return self._thread(config, thread_id).history(limit)

    def update_state(
        self, config: Mapping[str, Any] | None, values: Any, *, thread_id: str | None = None
    ) -> Mapping[str, Any]:
        """Set what the thread's next run sees as ``previous``; returns the config of the new snapshot."""
        return self._thread(config, thread_id).update(self.split_output(values)[1])

    async def aget_state(
        self, config: Mapping[str, Any] | None = None, *, thread_id: str | None = None
    ) -> StateSnapshot:
        """As :meth:`get_state`."""
        return self.get_state(config, thread_id=thread_id)

    async def aget_state_history(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        thread_id: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[StateSnapshot]:
        """As :meth:`get_state_history`."""
        for snapshot in self.get_state_history(config, thread_id=thread_id, limit=limit):
            yield snapshot

    async def aupdate_state(
        self, config: Mapping[str, Any] | None, values: Any, *, thread_id: str | None = None
    ) -> Mapping[str, Any]:
        """As :meth:`update_state`."""
        return self.update_state(config, values, thread_id=thread_id)

    def _thread(self, config: Mapping[str, Any] | None, thread_id: str | None) -> ThreadView:
        from weft.state import ThreadView  # noqa: PLC0415 - most programs never look at a thread's state

        options = RunOptions.of(config, {"thread_id": thread_id, "checkpointer": self.checkpointer})
        if options.checkpointer is None:
            raise UsageError(f"entrypoint {self.name!r} has no checkpointer, so there is no state to look at")
        if options.thread_id is None:
            raise InputError("the state is that of a thread: pass thread_id=...")
        options.checkpointer.codec.register_hints(self.step.fn)
        mark = (options.config.get("configurable") or {}).get("checkpoint_id")
        return ThreadView(options.checkpointer, options.thread_id, mark=mark)


class entrypoint:  # noqa: N801 - a decorator, spelled as in LangGraph
    """Make a workflow of a function whose first parameter is the input.

    Args:
        checkpointer: Where runs are recorded: an object or a URL such as ``sqlite:///runs.db``.
        store: Long-term memory, injected as ``store``.
        cache: Where tasks with a ``cache_policy`` keep results.
        context_schema: The class of ``invoke(context=...)``.
        cache_policy: Cache whole runs by their input.
        retry_policy: Try the body again; tasks that have ended are not run again if there is a checkpointer.
        timeout: Of one attempt of the body: seconds, a ``timedelta`` or a :class:`TimeoutPolicy`.
        name: What the workflow is called; the function's name unless told.
    """

    final: TypeAlias = Final  # noqa: PYI042 - spelled as in LangGraph

    def __init__(
        self,
        checkpointer: Any = None,
        store: BaseStore | None = None,
        cache: Cache | None = None,
        context_schema: type | None = None,
        cache_policy: CachePolicy | None = None,
        retry_policy: Any = None,
        timeout: Any = None,
        *,
        name: str | None = None,
    ) -> None:
        if inspect.isfunction(checkpointer):
            raise DefinitionError(f"write @entrypoint() with parentheses on {checkpointer.__name__!r}")
        self.checkpointer = as_checkpointer(checkpointer)
        self.store = store
        self.cache = cache
        self.context_schema = context_schema
        self._cache_policy = cache_policy
        self._retry = retry_policies(retry_policy)
        self._timeout = TimeoutPolicy.of(timeout)
        self._name = name

    @overload
    def __call__(
        self, func: Callable[Concatenate[In, ...], Awaitable[Final[Out, Any]]], /
    ) -> Entrypoint[In, Out]: ...
    @overload
    def __call__(self, func: Callable[Concatenate[In, ...], Awaitable[Out]], /) -> Entrypoint[In, Out]: ...
    @overload
    def __call__(self, func: Callable[Concatenate[In, ...], Final[Out, Any]], /) -> Entrypoint[In, Out]: ...
    @overload
    def __call__(self, func: Callable[Concatenate[In, ...], Out], /) -> Entrypoint[In, Out]: ...
    def __call__(self, func: Callable[..., Any], /) -> Entrypoint[Any, Any]:
        """The workflow.

        Raises:
            DefinitionError: The function has no parameter for the input.
            NotImplementedError: It is a generator.
        """
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise NotImplementedError(
                f"entrypoint {name_of(func)!r} is a generator; return a value, and write to the stream with `writer`"
            )
        if not inspect.signature(func).parameters:
            raise DefinitionError(
                f"entrypoint {name_of(func)!r} must have at least one parameter: the first one is its input"
            )
        step = Step.of(
            func,
            name=self._name,
            retry=self._retry,
            timeout=self._timeout,
            cache=self._cache_policy,
            inject=_injected(func, skip=1),
        )
        return Entrypoint(step, self)


# Questions


def interrupt(value: Any) -> Any:
    """Ask somebody: leaves the body until the question is answered, then returns the answer.

    The call is left and its future stays open; everything else goes on. When only such calls and those that
    wait for them remain, the run is put aside, and ``invoke`` returns ``{"__interrupt__": [Interrupt, ...]}``.
    ``invoke(Command(resume=answer), ...)`` goes on with it, in any process. The body then runs again from its
    first line, so what it does before the question is better done in tasks.

    Raises:
        UsageError: The run has no checkpointer, so that nobody could ever answer.
        UnstorableError: The question cannot be recorded.
    """
    call = current_call("interrupt()")
    recorder = call.run.recorder
    if recorder is None:
        raise UsageError(
            "interrupt() needs a run with a checkpointer: the answer may come when this process is gone"
        )
    recorder.codec.encode(value, root="question")
    number = call.questions
    call.questions += 1
    answered, answer = recorder.answer_of(call, number)
    if answered:
        return answer
    raise Interrupted(Interrupt(value, recorder.question_id(call, number)), number)


# What bodies may ask for


def get_config() -> Mapping[str, Any]:
    """The run's ``config``."""
    return _of_this_call("config", "get_config()")  # type: ignore[no-any-return]  # see PROVIDERS


def get_store() -> BaseStore | None:
    """The long-term memory of the entrypoint."""
    return _of_this_call("store", "get_store()")  # type: ignore[no-any-return]  # see PROVIDERS


def get_stream_writer() -> StreamWriter:
    """What writes to the run's ``custom`` stream."""
    if inside.get() is not None:
        return Writer()
    return _of_this_call("writer", "get_stream_writer()")  # type: ignore[no-any-return]  # see PROVIDERS


def get_runtime() -> Runtime[Any]:
    """Everything that the run gives to its bodies."""
    return _of_this_call("runtime", "get_runtime()")  # type: ignore[no-any-return]  # see PROVIDERS


def _of_this_call(name: str, what: str) -> Any:
    call = current_call(what)
    return call.workflow.provide(name, call)


#: With which annotation a parameter of that name is injected; without one it always is.
_ANNOTATED = {"config": "RunnableConfig", "store": "BaseStore", "writer": "StreamWriter"}


def _injected(fn: Callable[..., Any], *, skip: int) -> tuple[tuple[str, int], ...]:
    """The parameters that are injected by name, leaving out the first ``skip``, which are the input."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())[skip:]
    except (TypeError, ValueError):  # a builtin without a signature
        return ()
    return tuple(
        (p.name, position if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD else sys.maxsize)
        for position, p in enumerate(parameters, skip)
        if p.name in PROVIDERS and p.kind in _BY_NAME and _fits(p)
    )


_BY_NAME = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


def _fits(parameter: inspect.Parameter) -> bool:
    expected, annotation = _ANNOTATED.get(parameter.name), parameter.annotation
    if expected is None or annotation is inspect.Parameter.empty or annotation == StreamWriter:
        return True
    return expected in (annotation if isinstance(annotation, str) else f"{annotation!r}")


def _namespace(step: Step) -> tuple[str, ...]:
    fn = step.fn
    return (getattr(fn, "__module__", "") or "", getattr(fn, "__qualname__", "") or "", step.name)


def _cache_key(call: Call) -> str:
    policy: CachePolicy = call.step.cache
    if policy.key_func is not None:
        key = policy.key_func(*call.args, **call.kwargs)
        return key.hex() if isinstance(key, bytes) else str(key)
    found = _codec(call).fingerprint(call.args, call.kwargs)
    if found is None:
        raise UsageError(
            f"the arguments of {call.step.name!r} cannot be encoded, so they cannot be looked up in a cache; give its "
            "CachePolicy a key_func="
        )
    return found.hex()


def _codec(call: Call) -> Codec:
    if call.run.recorder is not None:
        return call.run.recorder.codec
    from weft.checkpoint.codec import Codec  # noqa: PLC0415 - msgspec is not imported for plain runs

    codec = Codec()
    codec.register_hints(call.step.fn)
    return codec


__all__ = [
    "Entrypoint",
    "Final",
    "Task",
    "entrypoint",
    "get_config",
    "get_runtime",
    "get_store",
    "get_stream_writer",
    "interrupt",
    "task",
]
