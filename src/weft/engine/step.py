"""A named function with its options: what ``@task`` and ``@node`` make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import TYPE_CHECKING, Any

from weft.core.checks import check_seconds
from weft.core.limits import Needs
from weft.core.retry import RetryPolicy, transient
from weft.core.timeout import TimeoutPolicy
from weft.engine.limits import Limit, limits_of
from weft.errors import DefinitionError

if TYPE_CHECKING:
    from weft.executors.base import Executor


@dataclass(slots=True, weakref_slot=True, eq=False)
class Step:
    """A named function with its options; never changed, so that it may be shared by any number of runs.

    It is not frozen, as to make one would take five times as long, and some are made in runs. And it remembers which
    codec knows the types in its annotations, by its token, as the next run has most likely the same.
    """

    fn: Callable[..., Any]
    name: str
    is_async: bool
    retry: tuple[RetryPolicy, ...] = ()
    timeout: TimeoutPolicy | None = None
    cache: Any = None
    key: Callable[..., Any] | None = None
    inject: tuple[tuple[str, int], ...] = ()  # names, each with the position at which it may be given
    workflow: Any = None  # whose hooks its body and what is below it use; None: those of whoever called it
    total: float | None = None  # seconds that all attempts and waits may take together
    limits: tuple[Limit, ...] = ()
    gates: Needs = ()  # as limits, but held to the end of the call, whatever it has begun
    convert: Callable[[Any], Any] | None = None  # makes of a result what is recorded, or refuses it
    recall: Callable[[Any], None] | None = None  # told what was recorded beside a value that is used again
    shape: str = ""  # of a planned call: what it is made of; a record of another shape is not its own
    is_planned: bool = False  # `fn` gives the conductor of its calls; see weft.engine.planned
    executor: Executor | None = None  # that runs `fn`, for which the call waits on the loop
    body: Callable[..., Any] = field(init=False)  # what the engine calls
    is_light: bool = field(init=False)  # an async body with no options
    is_plain: bool = field(init=False)
    known_to: object = field(init=False, default=None)

    def __post_init__(self) -> None:
        plain = not (
            self.retry or self.timeout or self.cache or self.inject or self.total or self.limits or self.gates
        )
        self.is_plain = plain
        self.body = self.fn
        if self.executor is not None:
            from weft.engine.away import Away  # noqa: PLC0415 - steps of this process do without it

            self.body = Away(self.fn, self.executor)
            self.is_async = True
        self.is_light = self.is_async and plain and not self.is_planned

    @classmethod
    def of(
        cls, fn: Callable[..., Any], *, name: str | None = None, executor: Any = None, **options: Any
    ) -> Step:
        """The step of a function; its name unless told is the function's own.

        Raises:
            DefinitionError: It is no function, or ``executor`` names none that can run it.
        """
        if not callable(fn):
            raise DefinitionError(f"a step is made of a function, not of {fn!r}")
        step = cls(fn, name or name_of(fn), is_async_callable(fn), **options)
        return step if executor is None else step.run_by(executor)

    def run_by(self, executor: Any) -> Step:
        """The step with its body run by an executor, as the user has named it.

        Raises:
            DefinitionError: That is none, or cannot run this function.
        """
        from weft.executors.choose import executor_of  # noqa: PLC0415 - only for who has one

        is_async = is_async_callable(self.fn)
        chosen = executor_of(executor, is_async=is_async, name=self.name)
        return replace(self, executor=chosen, is_async=is_async)


def name_of(fn: Callable[..., Any]) -> str:
    """The name that a callable goes by: its own, that of what a partial wraps, or its class's."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", None)
    return name if isinstance(name, str) else type(fn).__name__


def is_async_callable(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: ``async def``, also behind a partial, a method or ``__call__``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(fn, "__code__", None)
    if isinstance(code, CodeType) and code.co_flags & inspect.CO_COROUTINE:
        return True  # most are, and this is asked for each use of a hook
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def step_options(
    *, timeout: Any = None, total: Any = None, retry: Any = None, limit: Any = None, executor: Any = None
) -> dict[str, Any]:
    """The fields of a step for the options that every style spells so, checked.

    Raises:
        DefinitionError: One of them can never work.
    """
    away = {} if executor is None else {"executor": executor}
    return {
        **away,
        "timeout": TimeoutPolicy.of(timeout),
        "total": None if total is None else check_seconds("total", total),
        "retry": retry_policies(retry),
        "limits": limits_of(limit),
    }


def retry_policies(value: Any) -> tuple[RetryPolicy, ...]:
    """The policies that ``retry=`` was given: none, a number of attempts at what is transient, one or several."""
    if value is None:
        return ()
    if isinstance(value, int) and not isinstance(value, bool):
        return (RetryPolicy(max_attempts=value, retry_on=transient),)
    policies = tuple(value) if isinstance(value, Iterable) else (value,)
    for policy in policies:
        if not isinstance(policy, RetryPolicy):
            raise DefinitionError(
                f"a retry is a number of attempts, a RetryPolicy(max_attempts=...) or several of these, not {policy!r}"
            )
    return policies
