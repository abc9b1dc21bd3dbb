"""Nodes whose hooks are all async, in a run that records, limits and tells nothing: one call for all of a node.

Elsewhere each hook of a node is a call of its own (see :mod:`weft.batch_runs`): ``exec`` has its attempts and its
record, and sync hooks have their turns and their threads. Where none of that is asked for, the hooks are awaited one
after the other, by one body. What a class has for hooks is looked up once, and again when somebody has changed it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from weft.batch_hooks import PlainNodeCall, copied, hook_of, retry_number, spelling_of
from weft.engine.context import current
from weft.engine.step import Step, is_async_callable

if TYPE_CHECKING:
    from weft.batch import BaseNode
    from weft.engine.futures import Branch
    from weft.engine.planned import PlannedCall


# Plans

_SPELLINGS = (
    "prep",
    "prep_async",
    "exec",
    "exec_async",
    "exec_fallback",
    "exec_fallback_async",
    "post",
    "post_async",
)
_hooks_of: Callable[[type], tuple[Any, ...]] = attrgetter(*_SPELLINGS)
_ARE_HOOKS = frozenset(_SPELLINGS)


class Plan:
    """How the nodes of a class run where one call is enough.

    Attributes:
        cls: The class.
        hooks: The hooks of all spellings that it had when this was made.
        is_enough: Whether one call is: all its hooks are async, and none stands in for another.
        prep: What it calls this hook; None if it has it not. So for ``exec`` and ``post``.
        step: That of the call.
    """

    def __init__(self, node: BaseNode) -> None:
        self.cls = cls = type(node)
        self.hooks = _hooks_of(cls)
        self.prep, self.exec, self.post = (spelling_of(node, name) for name in ("prep", "exec", "post"))
        own = [
            getattr(node, spelling) for spelling in (self.prep, self.exec, self.post) if spelling is not None
        ]
        self.is_enough = hook_of(node, "exec_fallback") is None and all(
            is_async_callable(hook) for hook in own
        )
        self.step = Step(_run, cls.__name__, is_async=True)


def plan_of(node: BaseNode) -> Plan | None:
    """How this node runs where one call is enough for it; None where it is not."""
    cls = type(node)
    if not (_ARE_HOOKS.isdisjoint(vars(node)) and _has_plain_exec(node)):
        return None
    plan: Plan | None = cls._weft_plan
    if plan is None or plan.cls is not cls or plan.hooks != _hooks_of(cls):
        if not cls._weft_is_async or cls._weft_is_flow or cls._weft_is_batch:
            return None
        plan = cls._weft_plan = Plan(node)
    return plan if plan.is_enough else None


def _has_plain_exec(node: BaseNode) -> bool:
    attempts = node.max_retries
    return node._weft_chosen().has_plain_exec and type(attempts) is int and attempts == 1 and node.wait == 0


def start_plain(
    parent: PlannedCall, branch: Branch, plan: Plan, node: BaseNode, shared: Any, params: Any
) -> None:
    """Start the one call of a node; its value is the action."""
    call = PlainNodeCall(parent.run, parent, plan.step, (plan, node, shared, params), {})
    branch.call = call
    call.future = branch
    call.context = parent.context
    call.begin(b"")


async def _run(plan: Plan, node: BaseNode, shared: Any, params: Any) -> Any:
    call = current.get()
    assert isinstance(call, PlainNodeCall)
    if retry_number.get():
        retry_number.set(0)  # that of a node round this one
    mine = copied(node)
    mine.params = params
    found = done = action = None
    if plan.prep is not None:
        found = await call.do("prep", getattr(mine, plan.prep), (shared,))
    if plan.exec is not None:
        done = await call.do("", getattr(mine, plan.exec), (found,))
    if plan.post is not None:
        action = await call.do("post", getattr(mine, plan.post), (shared, found, done))
    return action
