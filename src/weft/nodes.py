"""Functions as parts of workflows: ``@node``, and what everything that takes parts makes of what it is given."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from weft.core.binding import Binding
from weft.core.checks import check_name
from weft.engine.step import Step, step_options
from weft.errors import DefinitionError
from weft.runnable import Runnable

P = ParamSpec("P")
T = TypeVar("T")


class FunctionNode(Runnable, Generic[P, T]):
    """A function with a name and options, for workflows to use; made by :func:`node`."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.key = step.name
        self.computes = not step.is_async
        self._binding = Binding.of(step.fn)
        functools.update_wrapper(self, step.fn, updated=())
        self.__name__ = step.name

    def __repr__(self) -> str:
        return f"<weft.node {self.step.name!r}>"

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

    def bind(self, input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function for an input or an item."""
        return self._binding.bind_item(input, step=self.step.name)

    def bind_branch(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function for a value that is handed on."""
        return self._binding.bind(value, step=self.step.name)


class NodeDecorator(Protocol):
    """What ``@node(...)`` with options is put on."""

    @overload
    def __call__(self, func: Callable[P, Awaitable[T]], /) -> FunctionNode[P, Awaitable[T]]: ...
    @overload
    def __call__(self, func: Callable[P, T], /) -> FunctionNode[P, T]: ...


@overload
def node(func: Callable[P, T], /) -> FunctionNode[P, T]: ...
@overload
def node(
    name: str | None = None,
    /,
    *,
    timeout: Any = None,
    total: float | None = None,
    retry: Any = None,
    limit: Any = None,
    key: Callable[..., Any] | None = None,
) -> NodeDecorator: ...
@overload
def node(
    *,
    name: str,
    timeout: Any = None,
    total: float | None = None,
    retry: Any = None,
    limit: Any = None,
    key: Callable[..., Any] | None = None,
) -> NodeDecorator: ...
def node(
    func: Any = None,
    /,
    *,
    name: str | None = None,
    timeout: Any = None,
    total: float | None = None,
    retry: Any = None,
    limit: Any = None,
    key: Callable[..., Any] | None = None,
) -> Any:
    """Make a step of a function: ``@node``, ``@node("name")``, ``@node(name=..., ...)``, ``node("x")(lambda v: ...)``.

    Args:
        func: The function, or the name.
        name: What results and errors call it; the function's name unless told.
        timeout: Of one attempt: seconds, a ``timedelta`` or a :class:`TimeoutPolicy`; waiting for limits is not
            counted.
        total: Seconds for all attempts and waits together.
        retry: How many attempts, a :class:`RetryPolicy`, or several; the first that covers an error decides.
        limit: A :class:`Limit`, or several.
        key: Computes from the arguments what stands for them in the call's identity; see :func:`weft.task`.

    Raises:
        DefinitionError: What is decorated is no function, or an option can never work.
    """
    if isinstance(func, str):
        if name is not None:
            raise DefinitionError(f"node({func!r}, name={name!r}) has two names; leave one of them out")
        func, name = None, func
    if name is not None:
        check_name("a node", name)
    options = {**step_options(timeout=timeout, total=total, retry=retry, limit=limit), "key": key}

    def decorate(fn: Callable[..., Any]) -> FunctionNode[..., Any]:
        if not callable(fn) or isinstance(fn, Runnable):
            raise DefinitionError(f"@node is put on a function, not on {fn!r}")
        return FunctionNode(Step.of(fn, name=name, **options))

    return decorate if func is None else decorate(func)


def as_runnable(value: Any, *, where: str) -> Runnable:
    """A part of a workflow from what users write: anything with verbs, or a plain function.

    Raises:
        DefinitionError: It is neither.
    """
    if isinstance(value, Runnable):
        return value.as_part()
    if callable(value) and not (isinstance(value, type) and issubclass(value, Runnable)):
        return FunctionNode(Step.of(value))
    raise DefinitionError(
        f"{where} takes nodes, tasks, functions and other workflows, not {type(value).__name__}: {value!r:.80}"
    )


__all__ = ["FunctionNode", "as_runnable", "node"]
