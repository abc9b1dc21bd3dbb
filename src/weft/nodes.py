"""Functions as parts of workflows: ``@node``, and what everything that takes parts makes of what it is given."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

from weft.core.binding import Binding
from weft.core.checks import check_name
from weft.engine.step import Step, step_options
from weft.errors import DefinitionError
from weft.runnable import Runnable

P = ParamSpec("P")
T = TypeVar("T")


class Place(NamedTuple):
    """What a node is in a graph."""

    is_start: bool = False
    is_end: bool = False
    is_router: bool = False
    is_stream: bool = False


class FunctionNode(Runnable, Generic[P, T]):
    """A function with a name and options, for workflows to use; made by :func:`node` and :func:`router`.

    Attributes:
        is_start: Whether a graph begins with it.
        is_end: Whether a branch of a graph ends with it.
        is_router: Whether it says where a graph goes on.
        is_stream: Whether it gets ``callback``, to stream while it runs.
    """

    is_fixed = True
    is_start = is_end = is_router = is_stream = False

    def __init__(self, step: Step, place: Place = Place()) -> None:  # noqa: B008 - it is immutable
        self.step = step
        self.key = step.name
        self.is_start, self.is_end, self.is_router, self.is_stream = place
        self.computes = not step.is_async
        self._binding = Binding.of(step.fn)
        functools.update_wrapper(self, step.fn, updated=())
        self.__name__ = step.name

    def __repr__(self) -> str:
        return f"<weft.{'router' if self.is_router else 'node'} {self.step.name!r}>"

    @property
    def name(self) -> str:
        """What results, errors and the edges of a graph call it."""
        return self.step.name

    @overload
    def __call__(self) -> FunctionNode[P, T]: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """With arguments the plain function, of which nothing is recorded; with none the node itself."""
        return self.step.fn(*args, **kwargs) if args or kwargs else self

    @property
    def func(self) -> Callable[P, T]:
        """The plain function."""
        return self.step.fn

    def run_by(self, executor: Any) -> Runnable:
        """The same with its body run by an executor, unless it has one of its own."""
        if self.step.executor is not None:
            return self
        place = Place(self.is_start, self.is_end, self.is_router, self.is_stream)
        return FunctionNode(self.step.run_by(executor), place)

    def bind(self, input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function for an input or an item."""
        return self._binding.bind_item(input, step=self.step.name)

    def bind_branch(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function for a value that is handed on."""
        return self._binding.bind(value, step=self.step.name)


class NodeOptions(TypedDict, total=False):
    """The options of a node that are given by keyword; see :func:`node`."""

    start: bool
    end: bool
    stream: bool
    timeout: Any
    total: float | None
    retry: Any
    limit: Any
    executor: Any
    key: Callable[..., Any] | None


class NodeDecorator(Protocol):
    """What ``@node(...)`` with options is put on."""

    @overload
    def __call__(self, func: Callable[P, Awaitable[T]], /) -> FunctionNode[P, Awaitable[T]]: ...
    @overload
    def __call__(self, func: Callable[P, T], /) -> FunctionNode[P, T]: ...


@overload
def node(func: Callable[P, T], /) -> FunctionNode[P, T]: ...
@overload
def node(name: str | None = None, /, **options: Unpack[NodeOptions]) -> NodeDecorator: ...
@overload
def node(*, name: str, **options: Unpack[NodeOptions]) -> NodeDecorator: ...
def node(
    func: Any = None,
    /,
    *,
    name: str | None = None,
    start: bool = False,
    end: bool = False,
    stream: bool = False,
    **options: Any,
) -> Any:
    """Make a step of a function: ``@node``, ``@node("name")``, ``@node(name=..., ...)``, ``node("x")(lambda v: ...)``.

    Args:
        func: The function, or the name.
        name: What results and errors call it; the function's name unless told.
        start: In a :class:`Graph`: whether it begins there.
        end: In a graph: whether a branch ends there.
        stream: In a graph: whether it gets ``callback``, to stream to while it runs.
        **options: ``timeout`` (of one attempt: seconds, a ``timedelta`` or a :class:`TimeoutPolicy`; waiting for limits
            is not counted), ``total`` (seconds for all attempts and waits together), ``retry`` (how many attempts, a
            :class:`RetryPolicy`, or several; the first that covers an error decides), ``limit`` (a :class:`Limit`, or
            several), ``executor`` (where the body runs, as ``"process"``) and ``key`` (computes from the arguments what
            stands for them in the call's identity); see :func:`weft.task`.

    Raises:
        DefinitionError: What is decorated is no function, or an option can never work.
    """
    return _decorator("node", func, name, Place(start, end, False, stream), options)


@overload
def router(func: Callable[P, T], /) -> FunctionNode[P, T]: ...
@overload
def router(name: str | None = None, /, **options: Unpack[NodeOptions]) -> NodeDecorator: ...
@overload
def router(*, name: str, **options: Unpack[NodeOptions]) -> NodeDecorator: ...
def router(
    func: Any = None,
    /,
    *,
    name: str | None = None,
    start: bool = False,
    end: bool = False,
    stream: bool = False,
    **options: Any,
) -> Any:
    """Make a node that says where a :class:`Graph` goes on: it returns a dict with ``choice`` or ``choices``.

    ``{"choice": "name"}`` goes on with one node, ``{"choices": ["a", "b"]}`` with several at the same time, and
    ``{"choices": []}`` ends the branch. What else is in the dict is merged like that of any node.

    Args:
        func: The function, or the name.
        name: What results and errors call it; the function's name unless told.
        start: Whether the graph begins there.
        end: Not for a router: one that goes no further gives ``{"choices": []}``.
        stream: Whether it gets ``callback``, to stream to while it runs.
        **options: Those of :func:`node`.

    Raises:
        DefinitionError: What is decorated is no function, or an option can never work.
    """
    if end:
        raise DefinitionError(
            "a router is no end node; one that goes no further returns {'choices': []}, and what comes last is a node"
        )
    return _decorator("router", func, name, Place(start, False, True, stream), options)


_OPTIONS = frozenset({"timeout", "total", "retry", "limit", "executor", "key"})


def _decorator(kind: str, func: Any, name: str | None, place: Place, options: dict[str, Any]) -> Any:
    if unknown := sorted(options.keys() - _OPTIONS):
        raise DefinitionError(
            f"@{kind} has no option {unknown[0]!r}; it takes name, start, end, stream, {', '.join(sorted(_OPTIONS))}"
        )
    if isinstance(func, str):
        if name is not None:
            raise DefinitionError(f"{kind}({func!r}, name={name!r}) has two names; leave one of them out")
        func, name = None, func
    if name is not None:
        check_name(f"a {kind}", name)
    key = options.pop("key", None)
    fields = {**step_options(**options), "key": key}

    def decorate(fn: Callable[..., Any]) -> FunctionNode[..., Any]:
        if not callable(fn) or isinstance(fn, Runnable):
            raise DefinitionError(f"@{kind} is put on a function, not on {fn!r}")
        return FunctionNode(Step.of(fn, name=name, **fields), place)

    return decorate if func is None else decorate(func)


def as_runnable(value: Any, *, where: str, executor: Any = None) -> Runnable:
    """A part of a workflow from what users write: anything with verbs, or a plain function.

    Args:
        value: That.
        where: Who takes it, for the error.
        executor: What runs it, if it names none of its own; None: the loop and the threads of the engine.

    Raises:
        DefinitionError: It is neither, or the executor is none for it.
    """
    if executor is not None:
        return as_runnable(value, where=where).run_by(executor)
    if isinstance(value, Runnable):
        return value.as_part()
    if callable(value) and not (isinstance(value, type) and issubclass(value, Runnable)):
        return FunctionNode(Step.of(value))
    raise DefinitionError(
        f"{where} takes nodes, tasks, functions and other workflows, not {type(value).__name__}: {value!r:.80}"
    )


__all__ = ["FunctionNode", "Place", "as_runnable", "node", "router"]
