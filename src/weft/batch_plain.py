"""Nodes whose hooks are all async, in a run that records, limits and tells nothing: one call for all of a node.

Elsewhere each hook of a node is a call of its own (see :mod:`weft.batch_runs`): ``exec`` has its attempts and its
record, and sync hooks have their turns and their threads. Where none of that is asked for, the hooks are awaited one
after the other, by one body; where items are at work at the same time, it awaits a block of them. What a class has for
hooks is looked up once, and again when somebody has changed it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from weft.batch_hooks import (
    Hooks,
    PlainNodeCall,
    copied,
    give_back,
    hooks_of,
    listed,
    retry_number,
)
from weft.core.policy import FailFast
from weft.engine.block import Block, BlockOptions, Start
from weft.engine.context import current
from weft.engine.feed import Known
from weft.engine.futures import Branch
from weft.engine.step import Step
from weft.errors import ParallelExecutionError

if TYPE_CHECKING:
    from weft.batch import BaseNode
    from weft.engine.call import Call
    from weft.engine.planned import PlannedCall

#: Makes of the action that a node ended with, and of ``shared``, the value of the call.
Give = Callable[[Any, Any], Any]


# Plans


class Plan:
    """How the nodes of a class run where one call is enough.

    Attributes:
        is_enough: Whether one call is: all its hooks are async, and none stands in for another.
        prep: How it spells this hook; None if it has it not. So for ``exec`` and ``post``.
        step: That of the call.
    """

    def __init__(self, cls: type[BaseNode], hooks: Hooks) -> None:
        own = (hooks.prep, hooks.exec, hooks.post)
        takes_turns = cls._weft_is_batch is not cls._weft_is_parallel
        is_one = cls._weft_is_async and not cls._weft_is_flow and not takes_turns
        has_others = hooks.exec_fallback is not None or not all(hook is None or hook.is_async for hook in own)
        self.is_enough = is_one and not has_others
        self.prep, self.exec, self.post = (None if hook is None else hook.spelling for hook in own)
        self.step = Step(_run, cls.__name__, is_async=True)


def plan_of(node: BaseNode) -> Plan | None:
    """How this node runs where one call is enough for it; None where it is not."""
    hooks = hooks_of(node)
    if not hooks.is_kept:
        return None
    plan = hooks.plan
    if plan is None:
        plan = hooks.plan = Plan(type(node), hooks)
    return plan if plan.is_enough and _has_plain_exec(node) else None


def _has_plain_exec(node: BaseNode) -> bool:
    attempts = node.max_retries
    return node._weft_chosen().has_plain_exec and type(attempts) is int and attempts == 1 and node.wait == 0


def start_plain(
    parent: PlannedCall, plan: Plan, node: BaseNode, shared: Any, params: Any, *, is_own: bool = False
) -> None:
    """Start the one call of a node; its value is the action. One that ``is_own`` keeps what its hooks set on it."""
    call = PlainNodeCall(parent.run, parent, plan.step, (plan, node, shared, params, is_own), {})
    parent.begin_child(Branch(parent, 0), call)


class PlainRun:
    """The conductor of a node that is run by itself: of its one call."""

    is_serial = True
    is_looking = False
    may_start_more = False

    def __init__(
        self,
        plan: Plan,
        node: BaseNode,
        give: Give,
        is_own: bool,
        call: PlannedCall,
        shared: Any,
        params: Any,
    ) -> None:
        self._start: Callable[[], None] | None = partial(
            start_plain, call, plan, node, shared, params, is_own=is_own
        )
        self._give = give
        self._shared = shared
        self._call = call

    def note(self, branch: Branch, call: Call) -> None:
        """The node has ended."""
        value = self._give(self._shared, call.value) if call.error is None else None
        self._call.conclude(value, call.error)

    def advance(self) -> None:
        """Begin, if it has not."""
        start, self._start = self._start, None
        if start is not None:
            start()

    def close(self, then: Callable[[], None]) -> None:
        """There is nothing to close."""
        then()

    def timeout_error(self, limit: float, elapsed: float) -> None:
        """The usual error will do."""


# The body


async def _run(plan: Plan, node: BaseNode, shared: Any, params: Any, is_own: bool) -> Any:
    call = current.get()
    assert isinstance(call, PlainNodeCall)
    if retry_number.get():
        retry_number.set(0)  # that of a node round this one
    mine = copied(node)
    mine.params = params
    found = done = action = None
    try:
        if plan.prep is not None:
            found = await call.do("prep", getattr(mine, plan.prep), (shared,))
            if plan_of(mine) is not plan:
                # It has changed the node, and one call is not enough for the rest of that.
                return await _rest_of(call, plan, mine, shared, found)
        if mine._weft_is_batch:
            done = await _of_each(call, plan, mine, listed(plan.step.name, found))
        elif plan.exec is not None:
            done = await call.do("", getattr(mine, plan.exec), (found,))
        if plan.post is not None:
            action = await call.do("post", getattr(mine, plan.post), (shared, found, done))
    finally:
        if is_own:
            give_back(mine, node)
    return action


async def _rest_of(call: PlainNodeCall, plan: Plan, node: BaseNode, shared: Any, found: Any) -> Any:
    """What follows ``prep``, each hook in a call of its own; gives the action."""
    from weft.batch_runs import rest_of_node  # noqa: PLC0415 - it imports this

    conduct = partial(rest_of_node, node, found)
    return await call.conducted(Step(conduct, plan.step.name, is_async=True, is_planned=True), (shared,))


# Items


async def _of_each(call: PlainNodeCall, plan: Plan, node: BaseNode, items: list[Any]) -> Any:
    """What ``exec`` gives for each of these, or the outcomes, as the options of the node say."""
    if plan.exec is None or not items:
        return [None] * len(items)
    options, key = node._weft_chosen(), plan.step.name
    step = Step(getattr(node, plan.exec), key, is_async=True)
    conduct = partial(block_of, PlainItems(step), options.block)
    block = Step(conduct, key, is_async=True, is_planned=True, timeout=options.block_timeout)
    try:
        return await call.conducted(block, (items,))
    except ParallelExecutionError as failure:
        error = said_of_items(failure, key, options.block)
    raise error


def block_of(style: PlainItems, options: BlockOptions, call: PlannedCall, items: list[Any]) -> Block:
    """The conductor of the items of a node."""
    return Block(call, style, Known(items), options)


def said_of_items(error: ParallelExecutionError, key: str, options: BlockOptions) -> Exception:
    """What the user's code raised for the item that decided, where one is enough for that."""
    if not isinstance(options.policy, FailFast):
        return error
    first: Exception = error.exceptions[0]
    note_item(first, error.branch, key)
    return first


def note_item(error: BaseException, number: Any, key: str) -> None:
    """Say which item it was."""
    with suppress(Exception):  # an error may refuse notes
        error.add_note(f"weft: item {number} of {key!r}")


class PlainItems:
    """What a block does with the items of a node; see :class:`weft.engine.block.Style`."""

    is_mixed = may_compute = False
    is_light = True

    def __init__(self, step: Step) -> None:
        self._step = step

    def start_of(self, item: Any) -> Start:
        return self._step, (item,), {}

    def fingerprint(self, call: PlannedCall, start: Start) -> bytes:
        return b""  # nothing is recorded

    def computes(self, item: Any) -> bool:
        return False

    def name_of(self, index: int) -> int:
        return index

    def result(self, values: list[Any]) -> list[Any]:
        return values
