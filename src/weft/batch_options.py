"""The options of a batch node or flow: keywords when it is made, or attributes of its class."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.core.checks import check_count, check_seconds
from weft.core.retry import RetryPolicy
from weft.core.timeout import TimeoutPolicy
from weft.engine.block import BlockOptions
from weft.engine.limits import Limit, limits_of
from weft.engine.options import as_checkpointer
from weft.engine.step import retry_policies
from weft.errors import DefinitionError

#: What each kind takes. A timeout is that of an attempt where there is one step, and of the whole where there are more.
_ANY = ("checkpointer", "timeout")
_STEP = ("total", "limit", "retry", "key", "executor")
_SEVERAL = ("on_error", "need")
_AT_ONCE = ("max_concurrent", "optimization_enabled", "estimated_memory_per_node")

#: Options that are no attribute of the class: what is a function there is a method.
_KEYWORDS_ONLY = ("key",)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a class of nodes is.

    Attributes:
        name: Of the class.
        is_flow: Whether it runs nodes.
        is_batch: Whether its ``prep`` gives items.
        is_parallel: Whether these are at work at the same time.
    """

    name: str
    is_flow: bool
    is_batch: bool
    is_parallel: bool

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that it takes."""
        found = list(_ANY)
        if not self.is_flow:
            found += _STEP
        if self.is_batch:
            found += _SEVERAL
            if not self.is_flow:
                found.append("attempt_timeout")
        if self.is_parallel:
            found += _AT_ONCE
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Options:
    """How a node runs; see the keywords of :class:`weft.batch.Node`.

    Attributes:
        attempt_timeout: Of one attempt of ``exec``.
        flow_timeout: Of a run of a flow.
        block_timeout: Of all items together.
        total: Seconds for all attempts of ``exec`` for an item.
        limits: Which ``exec`` counts in.
        retry: When a failed attempt is followed by another; None: by ``max_retries`` and ``wait``.
        key: Computes what stands for an item in the identity of its call.
        executor: What runs ``exec``, as the user has named it; None: the loop and the threads of the engine.
        block: How several items run.
        is_block: Whether a block is needed for that: one after the other until one fails needs none.
        checkpointer: Where runs are recorded unless the run is told otherwise.
        has_plain_exec: Whether none of these asks for more than that ``exec`` is called.
    """

    attempt_timeout: TimeoutPolicy | None
    flow_timeout: TimeoutPolicy | None
    block_timeout: TimeoutPolicy | None
    total: float | None
    limits: tuple[Limit, ...]
    retry: tuple[RetryPolicy, ...] | None
    key: Callable[..., Any] | None
    executor: Any
    block: BlockOptions
    is_block: bool
    checkpointer: Any
    has_plain_exec: bool = field(init=False)

    def __post_init__(self) -> None:
        asked = (self.total, self.retry, self.executor)
        asks = self.attempt_timeout or self.limits or any(option is not None for option in asked)
        object.__setattr__(self, "has_plain_exec", not asks)

    @classmethod
    def of(cls, kind: Kind, given: Mapping[str, Any]) -> Options:
        """The options, checked.

        Raises:
            DefinitionError: One that this kind does not take, or that can never work.
        """
        for name in given:
            if name not in kind.options:
                raise DefinitionError(_unknown(kind, name))
        timeout = TimeoutPolicy.of(given.get("timeout"))
        several = {name: given[name] for name in _SEVERAL if name in given}
        at_once = {name: given[name] for name in _AT_ONCE if name in given}
        if not kind.is_parallel:
            at_once = {"max_concurrent": 1}
        total, retry = given.get("total"), given.get("retry")
        return cls(
            attempt_timeout=TimeoutPolicy.of(given.get("attempt_timeout")) if kind.is_batch else timeout,
            flow_timeout=timeout if kind.is_flow and not kind.is_batch else None,
            block_timeout=timeout if kind.is_batch else None,
            total=None if total is None else check_seconds("total", total),
            limits=limits_of(given.get("limit")),
            retry=None if retry is None else retry_policies(retry),
            key=given.get("key"),
            executor=given.get("executor"),
            block=BlockOptions.of(**several, **at_once),
            is_block=kind.is_parallel or (kind.is_batch and bool(several or timeout)),
            checkpointer=as_checkpointer(given.get("checkpointer")),
        )

    def retry_of(self, node: Any) -> tuple[RetryPolicy, ...]:
        """The policies of this node.

        Raises:
            DefinitionError: Somebody has set ``max_retries`` or ``wait`` to something that can never work.
        """
        if self.retry is not None:
            return self.retry
        attempts, wait = check_retries(node.max_retries), check_wait(node.wait)
        if attempts == 1:
            return ()
        return (
            RetryPolicy(
                initial_interval=wait,
                backoff_factor=1.0,
                max_interval=wait,
                max_attempts=attempts,
                jitter=False,
                retry_on=Exception,
            ),
        )


def check_retries(value: Any) -> int:
    """How many attempts there are: ``max_retries`` counts the first."""
    try:
        return check_count("max_retries", value)
    except DefinitionError:
        raise DefinitionError(
            f"max_retries counts all attempts, the first included, so it must be a whole number of at least 1, "
            f"not {value!r}"
        ) from None


def check_wait(value: Any) -> float:
    """Seconds between two attempts."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DefinitionError(f"wait must be a number of seconds of at least 0, not {value!r}")
    return float(value)


def of_class(cls: type, kind: Kind) -> dict[str, Any]:
    """The options that the attributes of a class give. Methods and properties of these names are the user's own."""
    found = {}
    for name in kind.options:
        value = inspect.getattr_static(cls, name, None)
        if value is None or name in _KEYWORDS_ONLY or inspect.isroutine(value):
            continue
        if not inspect.isdatadescriptor(value):
            found[name] = value
    return found


def _unknown(kind: Kind, name: str) -> str:
    known = ", ".join(kind.options)
    if name in _AT_ONCE and kind.is_batch:
        hint = f"; a Parallel{'BatchFlow' if kind.is_flow else 'BatchNode'} runs its items at the same time"
    else:
        hint = ""
    return f"{kind.name} takes no option {name!r}; it takes: {known}{hint}"
