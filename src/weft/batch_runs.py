"""What happens in a run of a batch program: the conductors of its nodes and flows.

    NodeRun          prep, then the work, then post; of a node, and of a flow, whose work is to walk
      ├── ItemRun        exec, and what takes its place when it has failed for good
      ├── Block          several of these at once (see weft.engine.block)
      └── Walk           from node to node by their actions, each a NodeRun

A walk conducts its nodes itself: only a flow in it is a call of its own. A node is copied for each of its runs, so
what its hooks keep on ``self`` is that run's alone.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from weft.batch_hooks import (
    MISSING,
    Hook,
    NodeCall,
    NodeStep,
    Seen,
    copied,
    give_back,
    hook_step,
    hooks_of,
    listed,
    retry_number,
)
from weft.batch_plain import (
    Give,
    PlainItems,
    PlainRun,
    block_of,
    note_item,
    plan_of,
    said_of_items,
    start_plain,
)
from weft.engine.awaited import is_awaitable
from weft.engine.block import Start
from weft.engine.context import current
from weft.engine.futures import Branch
from weft.engine.glue import GlueStep, start_glue
from weft.engine.step import Step, is_async_callable
from weft.errors import DefinitionError, InputError, ParallelExecutionError

if TYPE_CHECKING:
    from weft.batch import BaseNode, Flow
    from weft.batch_options import Options
    from weft.checkpoint.codec import Codec
    from weft.engine.call import Call
    from weft.engine.planned import PlannedCall
    from weft.runnable import Runnable

# What a node is made of


def key_of(node: BaseNode) -> str:
    """What results and errors call a node: its class, or what it wraps."""
    part: Runnable | None = node._weft_part
    return type(node).__name__ if part is None else part.key


def nodes_of(flow: Flow) -> list[BaseNode]:
    """The nodes that a flow can reach, the start first, each once; not those of flows in it."""
    start = flow.start_node
    found = [] if start is None else [start]
    seen = {id(node) for node in found}
    for node in found:  # which grows meanwhile
        for successor in node.successors.values():
            if successor is not None and id(successor) not in seen:
                seen.add(id(successor))
                found.append(successor)
    return found


def all_nodes_of(
    top: BaseNode, *, enter: Callable[[BaseNode], bool] = lambda flow: True
) -> Iterator[BaseNode]:
    """The node, and where it is a flow all that it can reach, however deep; each once.

    ``enter`` says whose nodes are looked at, of the flows in it.
    """
    stack, seen = [top], {id(top)}
    while stack:
        node = stack.pop()
        yield node
        is_entered = node._weft_is_flow and (node is top or enter(node))
        inner = nodes_of(node) if is_entered else []  # type: ignore[arg-type]  # as it says
        fresh = [each for each in inner if id(each) not in seen]
        seen.update(id(each) for each in fresh)
        stack += reversed(fresh)


def shape_of(node: BaseNode) -> str:
    """What tells one program from another: its nodes by their names, and the ways between them."""
    parts = list(all_nodes_of(node))
    numbers = {id(part): number for number, part in enumerate(parts)}
    lines = []
    for part in parts:
        ways = {} if part is node else part.successors
        drawn = [f"{action}>{numbers.get(id(target), '')}" for action, target in ways.items()]
        start = numbers.get(id(part.start_node), "") if part._weft_is_flow else ""  # type: ignore[attr-defined]
        inner = "" if part._weft_part is None else part._weft_part.step.shape
        lines.append(f"{key_of(part)} {inner} {start} {' '.join(sorted(drawn))}")
    return blake2b("\n".join(lines).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def places_of(flow: Flow) -> dict[int, int]:
    """Which of the flow's nodes of one name each is, by id."""
    counts: dict[str, int] = {}
    places = {}
    for node in nodes_of(flow):
        key = key_of(node)
        places[id(node)] = counts[key] = counts.get(key, -1) + 1
    return places


# One run of a node


def conductor_of(
    node: BaseNode, give: Give, is_own: bool, call: PlannedCall, shared: Any, params: Any
) -> NodeRun | Walk | PlainRun:
    """What conducts a run of a node or a flow: a flow without hooks is its walk alone."""
    if _only_walks(node):
        mine: Flow = copied(node)  # type: ignore[assignment]  # as it says
        mine.params = params
        original: Flow | None = node if is_own else None  # type: ignore[assignment]
        return Walk(mine, call, shared, dict(params), give=give, original=original)
    if call.run.is_plain and (plan := plan_of(node)) is not None:
        return PlainRun(plan, node, give, is_own, call, shared, params)

    def conclude(action: Any, error: BaseException | None) -> None:
        call.conclude(give(shared, action) if error is None else None, error)

    return NodeRun(node, call, shared, params, conclude, is_own=is_own)


def _only_walks(node: BaseNode) -> bool:
    if not node._weft_is_flow or node._weft_is_batch:
        return False
    hooks = hooks_of(node)
    return hooks.prep is None and hooks.post is None and node.start_node is not None  # type: ignore[attr-defined]


class NodeRun:
    """The conductor of a node, or of a flow: ``prep``, the work for each item, ``post``.

    Args:
        node: Which.
        call: The call that is conducted: the node's own, or that of the flow which has come to it.
        shared: What its hooks read and write.
        params: What they find in ``self.params``.
        conclude: Given the action, or the error.
        seen: What ``call`` has seen, where others see to that as well.
        mark: What tells its calls from those of other nodes in the same call.
        is_own: Whether it was run by itself, and keeps what its hooks set on it.
    """

    is_serial = True
    is_looking = False
    may_start_more = False

    def __init__(
        self,
        node: BaseNode,
        call: PlannedCall,
        shared: Any,
        params: Any,
        conclude: Callable[[Any, BaseException | None], None],
        *,
        seen: Seen | None = None,
        mark: bytes = b"",
        is_own: bool = False,
    ) -> None:
        self._original = node if is_own else None
        self._node = mine = copied(node)
        mine.params = params
        self._concluded = conclude
        self._mark = mark
        self._call = call
        self._shared = shared
        self._key = key_of(node)
        self._options = node._weft_chosen()
        self._work: _Work | None = None  # made when prep has run, which may still change the node
        self.seen = seen or _seen_of(call)
        self._found: Any = None  # what prep gave
        self._items: list[Any] = []
        self._values: list[Any] = []
        self._is_waiting = False
        self._is_in_block = False
        self._error: BaseException | None = None
        self._next: Callable[[], None] = self._prepare
        self._take: Callable[[Any], None] = self._prepared

    # What the engine tells

    def note(self, branch: Branch, call: Call) -> None:
        """What it waited for has ended."""
        self._is_waiting = False
        if not isinstance(self._call, NodeCall):
            self.seen.note(call)
        if call.error is None:
            self._take(call.value)
        else:
            self._error = self._said(call.error)

    def advance(self) -> None:
        """Go on, or conclude."""
        if self._error is not None:
            self._conclude(None, self._error)
        elif not self._is_waiting:
            self._next()

    def close(self, then: Callable[[], None]) -> None:
        """There is nothing to close."""
        then()

    def timeout_error(self, limit: float, elapsed: float) -> None:
        """The usual error will do."""

    # The three parts

    def _prepare(self) -> None:
        self._take = self._prepared
        found = hooks_of(self._node).prep
        if found is None:
            self._prepared(self._read(None))
            self._next()
            return
        hook = getattr(self._node, found.spelling)
        if self._node._weft_is_batch:  # where prep runs, as an iterator may read more
            hook = _then(hook, self._read, is_async=found.is_async)
        self._start_hook("prep", hook, (self._shared,), is_async=found.is_async)

    def go_on_behind_prep(self, node: BaseNode, found: Any) -> None:
        """``prep`` has run, on this very node."""
        self._node = node
        self._prepared(found)

    def _read(self, found: Any) -> _Read:
        return _read(self._key, self._node, found)

    def _prepared(self, found: Any) -> None:
        self._found, self._items = found if type(found) is _Read else self._read(found)
        self._work = _work_of(self._key, self._node, self._shared, self._options, self._call)
        self._values = []
        self._next, self._take = self._go_on, self._values.append

    def _go_on(self) -> None:
        """The next item, or all of them, or what follows."""
        assert self._work is not None
        if self._work.start_of is None:
            self._values = [None] * len(self._items)
        elif self._options.is_block and self._items:
            self._take = self._worked
            self._start_block(self._work)
            return
        if len(self._values) < len(self._items):
            self._start_item(self._work, self._items[len(self._values)])
        else:
            self._worked(self._values)
            self._next()

    def _worked(self, values: Any) -> None:
        self._values = values
        self._is_in_block = False
        self._next, self._take = self._complete, self._completed

    def _complete(self) -> None:
        assert self._work is not None
        result = self._work.result(self._values)
        found = hooks_of(self._node).post
        if found is None:
            has_action = self._node._weft_is_flow and not self._node._weft_is_batch
            self._conclude(result if has_action else None, None)
        else:
            hook = getattr(self._node, found.spelling)
            self._start_hook("post", hook, (self._shared, self._found, result), is_async=found.is_async)

    def _completed(self, action: Any) -> None:
        self._next = functools.partial(self._conclude, action, None)

    def _conclude(self, action: Any, error: BaseException | None) -> None:
        if self._original is not None:
            give_back(self._node, self._original)
        self._next, self._take = _nothing_more, _nothing_more  # it does not keep itself alive
        self._concluded(action, error)

    # Starting

    def _start_hook(
        self, name: str, hook: Callable[..., Any], args: tuple[Any, ...], *, is_async: bool
    ) -> None:
        self._is_waiting = True
        step = hook_step(hook, f"{self._key}.{name}", self._call.run, is_async=is_async)
        start_glue(self._call, Branch(self._call, 0), step, args, identity=self._identify(step.name))

    def _start_item(self, work: _Work, item: Any) -> None:
        self._is_waiting = True
        assert work.start_of is not None
        step, args, kwargs = start = work.start_of(item)
        branch, identity = Branch(self._call, len(self._values)), None
        if self._call.run.recorder is not None:
            identity = self._identify(step.name, work.fingerprint(self._call, start))
        if isinstance(step, GlueStep):
            start_glue(self._call, branch, step, args, identity=identity)
        else:
            self._call.start(branch, step, args, kwargs, identity)

    def _start_block(self, work: _Work) -> None:
        self._is_waiting = self._is_in_block = True
        conduct = functools.partial(block_of, _Items(work), self._options.block)
        step = NodeStep.conducted(conduct, self._key, timeout=self._options.block_timeout)
        identity = self._identify(self._key)
        start_glue(self._call, Branch(self._call, 0), step, (self._items,), identity=identity)

    def _identify(self, name: str, fingerprint: bytes = b"") -> tuple[bytes, int] | None:
        """The identity of the next call, in a journaled run."""
        if self._call.run.recorder is None:
            return None
        return self._call.identify(name, self._mark + fingerprint)

    def _said(self, error: BaseException) -> BaseException:
        """What the user's code raised, with the number of the item."""
        if self._is_in_block:
            if isinstance(error, ParallelExecutionError):
                return said_of_items(error, self._key, self._options.block)
        elif self._node._weft_is_batch and self._take == self._values.append:
            note_item(error, len(self._values), self._key)
        return error


def rest_of_node(node: BaseNode, found: Any, call: PlannedCall, shared: Any) -> NodeRun:
    """The conductor of what follows ``prep``, which has changed the node and given this; the node is no copy."""
    run = NodeRun(node, call, shared, node.params, call.conclude)
    run.go_on_behind_prep(node, found)
    return run


def _seen_of(call: PlannedCall) -> Seen:
    """What the call has seen; one of another kind does not know that, so its conductor notes it."""
    return call.seen if isinstance(call, NodeCall) else Seen()


def _nothing_more(*_: object) -> None:
    """A node that has concluded is told nothing."""


def give_action(shared: Any, action: Any) -> Any:
    """For a flow, which goes on by it."""
    return action


def give_shared(shared: Any, action: Any) -> Any:
    """For other styles, whose parts give values."""
    return shared


# The work


class _Read(NamedTuple):
    """What ``prep`` gave, and the items in it."""

    found: Any
    items: list[Any]


class _Work(NamedTuple):
    """What a node does between its hooks."""

    start_of: Callable[[Any], Start] | None  # the call that an item becomes; None: there is nothing to do
    result: Callable[[list[Any]], Any]  # what post is given
    fingerprint: Callable[[PlannedCall, Start], bytes]
    computes: bool


def _work_of(key: str, node: BaseNode, shared: Any, options: Options, call: PlannedCall) -> _Work:
    if node._weft_is_flow:
        return _flow_work(key, node, shared, options, call)  # type: ignore[arg-type]  # as it says
    return _node_work(key, node, options, call)


def _node_work(key: str, node: BaseNode, options: Options, call: PlannedCall) -> _Work:
    hooks = hooks_of(node)
    start_of: Callable[[Any], Start] | None = None
    computes = False
    recorded = _whole_fingerprint
    if node._weft_part is not None:
        start_of = functools.partial(_start_of_part, node._weft_part)
        computes = node._weft_part.computes
    elif hooks.exec is not None:
        step = _exec_step(key, node, hooks.exec, options, call)
        computes = not step.is_async
        if hooks.exec_fallback is None:
            start_of = functools.partial(_start_of_exec, step)
        else:
            fallback = getattr(node, hooks.exec_fallback.spelling)
            falling = NodeStep.conducted(functools.partial(ItemRun, step, fallback), key)
            start_of = functools.partial(_start_of_exec, falling)
            recorded = functools.partial(_item_fingerprint, step)
    return _Work(start_of, _all_of if node._weft_is_batch else _only_of, recorded, computes)


def _flow_work(key: str, flow: Flow, shared: Any, options: Options, call: PlannedCall) -> _Work:
    if flow.start_node is None:
        raise DefinitionError(f"{key} has no node to start with: write {key}(start=node) or .start(node)")
    step = NodeStep.conducted(functools.partial(Walk, flow), key)
    start_of = functools.partial(_start_of_walk, step, shared)
    if not flow._weft_is_batch:
        return _Work(start_of, _only_of, _params_fingerprint, computes=False)
    result = _all_of if options.block.policy.gives_outcomes else _nothing_of
    computes = options.is_block and needs_core(flow)
    return _Work(start_of, result, _params_fingerprint, computes)


def needs_core(node: BaseNode) -> bool:
    """Whether running it has a sync body compute; not counting what chooses its own width."""
    inner = all_nodes_of(node, enter=_takes_turns)
    return any(_takes_turns(each) and _computes(each) for each in inner)


def _takes_turns(node: BaseNode) -> bool:
    return not node._weft_is_parallel


def _computes(node: BaseNode) -> bool:
    if node._weft_part is not None:
        return node._weft_part.computes
    hook = hooks_of(node).exec
    return hook is not None and not hook.is_async


def _exec_step(key: str, node: BaseNode, found: Hook, options: Options, call: PlannedCall) -> Step:
    hook = getattr(node, found.spelling)
    if options.executor is None:
        watched = hook if call.run.recorder is None else _watched(key, node, hook, is_async=found.is_async)
        body: Callable[..., Any] = _Counted(hook, watched)
    else:
        body = hook  # on a copy of the node, where nobody could see what it counts or sets
    step = Step(
        body,
        key,
        is_async=found.is_async,
        retry=options.retry_of(node),
        timeout=options.attempt_timeout,
        total=options.total,
        limits=options.limits,
        key=options.key,
    )
    return step if options.executor is None else step.run_by(options.executor)


def _start_of_exec(step: Step, item: Any) -> Start:
    return step, (item,), {}


def _start_of_part(part: Runnable, value: Any) -> Start:
    return part.step, *part.bind_branch(value)


def _start_of_walk(step: Step, shared: Any, params: Any) -> Start:
    return step, (shared, params), {}


def _read(key: str, node: BaseNode, found: Any) -> _Read:
    """What the items of a node are, from what its ``prep`` gave; where ``prep`` ran, as an iterator may read more."""
    if not node._weft_is_flow:
        return _Read(found, listed(key, found) if node._weft_is_batch else [found])
    if not node._weft_is_batch:
        return _Read(found, [dict(node.params)])
    items = listed(key, found)
    for place, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise InputError(
                f"{key}.prep must give a list of dicts, the params of each run; number {place} is {item!r:.80}"
            )
    return _Read(items if found is None else found, [{**node.params, **item} for item in items])


def _only_of(values: list[Any]) -> Any:
    return values[0]


def _all_of(values: list[Any]) -> Any:
    return values


def _nothing_of(values: list[Any]) -> Any:
    return None


def _whole_fingerprint(call: PlannedCall, start: Start) -> bytes:
    assert call.run.recorder is not None
    return call.run.recorder.fingerprint(*start)


def _item_fingerprint(step: Step, call: PlannedCall, start: Start) -> bytes:
    assert call.run.recorder is not None
    return call.run.recorder.fingerprint(step, start[1], {})


def _params_fingerprint(call: PlannedCall, start: Start) -> bytes:
    """Walks differ in their params; those that are equal, or cannot be encoded, in their order."""
    assert call.run.recorder is not None
    params = start[1][1]
    return (call.run.recorder.codec.fingerprint(params) or b"") if params else b""


class _Items(PlainItems):
    """As it says, where they may be recorded, tried again, and anything at all."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self.may_compute = work.computes
        self.is_light = False

    def start_of(self, item: Any) -> Start:
        assert self._work.start_of is not None
        return self._work.start_of(item)

    def fingerprint(self, call: PlannedCall, start: Start) -> bytes:
        return self._work.fingerprint(call, start)

    def computes(self, item: Any) -> bool:
        return self.may_compute


# One item


class ItemRun:
    """The conductor of an item whose node has a fallback: ``exec``, and if it fails for good ``exec_fallback``."""

    is_serial = True
    is_looking = False
    may_start_more = False

    def __init__(self, step: Step, fallback: Callable[..., Any], call: PlannedCall, item: Any) -> None:
        self._step = step
        self._fallback = fallback
        self._call = call
        self._item = item
        self._ended: Call | None = None
        self._is_waiting = self._has_fallen = False

    def note(self, branch: Branch, call: Call) -> None:
        """``exec`` has ended, or what took its place."""
        self._ended = call

    def advance(self) -> None:
        """Begin, fall back, or conclude."""
        ended, self._ended = self._ended, None
        if ended is None:
            if not self._is_waiting:
                self._is_waiting = True
                self._call.start(Branch(self._call, 0), self._step, (self._item,), {})
        elif self._has_fallen or not isinstance(ended.error, Exception):
            self._call.conclude(ended.value, ended.error)
        else:
            self._has_fallen = True
            self._fall_back(ended.error, ended.attempt)

    def _fall_back(self, error: Exception, attempts: int) -> None:
        hook, name = self._fallback, f"{self._step.name}.exec_fallback"
        # A limit of time is one for whatever stands for an attempt, not only for those that went well.
        limit = self._step.timeout
        step = Step(_Counted(hook, hook, attempts), name, is_async=is_async_callable(hook), timeout=limit)
        # An error may hold anything, so it is no part of the call's identity; there is only one here anyway.
        identity = self._call.identify(name, b"") if self._call.run.recorder is not None else None
        self._call.start(Branch(self._call, 1), step, (self._item, error), {}, identity=identity)

    def close(self, then: Callable[[], None]) -> None:
        """There is nothing to close."""
        then()

    def timeout_error(self, limit: float, elapsed: float) -> None:
        """The usual error will do."""


# From node to node


class Walk:
    """The conductor of a flow's nodes: one after the other, by the actions that they end with."""

    is_serial = True
    is_looking = False
    may_start_more = False

    def __init__(
        self,
        flow: Flow,
        call: PlannedCall,
        shared: Any,
        params: Any,
        *,
        give: Give = give_action,
        original: Flow | None = None,
    ) -> None:
        self._flow = flow
        self._give = give
        self._original = original  # which keeps what is set on the flow
        self.seen = _seen_of(call)
        self._places: Mapping[int, int] = {} if call.run.recorder is None else places_of(flow)
        self._call = call
        self._shared = shared
        self._params = params
        self._node: BaseNode | None = flow.start_node
        self._at_work: NodeRun | None = None  # of the node, unless that is a call
        self._is_waiting = False  # for such a call
        self._action: Any = None
        self._error: BaseException | None = None

    def note(self, branch: Branch, call: Call) -> None:
        """A node has ended that is a call, or what another waited for."""
        try:
            if self._at_work is not None:
                self._at_work.note(branch, call)
                return
            self._is_waiting = False
            if not isinstance(self._call, NodeCall):
                self.seen.note(call)
            self._node_ended(call.value, call.error)
        except BaseException as error:  # of the user's, who is to find on the flow what was set on it
            self._error = error

    def advance(self) -> None:
        """Run the node, and the next when it has ended; or conclude."""
        try:
            while self._error is None and self._node is not None:
                if self._is_waiting or (self._at_work is None and not self._begin(self._node)):
                    return
                assert self._at_work is not None
                self._at_work.advance()
                if self._at_work is not None:
                    return
        except BaseException as error:  # as above
            self._error = error
        value = self._give(self._shared, self._action) if self._error is None else None
        if self._original is not None:
            give_back(self._flow, self._original)
        self._call.conclude(value, self._error)

    def _begin(self, node: BaseNode) -> bool:
        """Begin a node; whether it is conducted here."""
        call, mark = self._call, b""
        if call.run.is_plain and (plan := plan_of(node)) is not None:
            self._is_waiting = True
            start_plain(call, plan, node, self._shared, self._params)
            return False
        if call.run.recorder is not None:
            mark = self._mark(call.run.recorder.codec, node)
        if node._weft_is_flow:
            self._is_waiting = True
            self._begin_flow(node, mark)
            return False
        self._at_work = NodeRun(
            node, call, self._shared, self._params, self._node_ended, seen=self.seen, mark=mark
        )
        return True

    def _begin_flow(self, flow: BaseNode, mark: bytes) -> None:
        call, key = self._call, key_of(flow)
        conduct = functools.partial(conductor_of, flow, give_action, False)
        step = NodeStep.conducted(conduct, key, timeout=flow._weft_chosen().flow_timeout)
        identity = None if call.run.recorder is None else call.identify(key, mark)
        start_glue(call, Branch(call, 0), step, (self._shared, self._params), identity=identity)

    def _node_ended(self, action: Any, error: BaseException | None) -> None:
        self._at_work = None
        self._error = error
        if error is None:
            assert self._node is not None
            self._action = action
            self._node = self._flow.get_next_node(self._node, action)

    def _mark(self, codec: Codec, node: BaseNode) -> bytes:
        """What tells the calls of a node from those of others: which of one name it is, and the params."""
        place = self._places.get(id(node), 0)
        if self._params:
            return codec.fingerprint(place, self._params) or b""
        return place.to_bytes(4, "big") if place else b""

    def close(self, then: Callable[[], None]) -> None:
        """There is nothing to close."""
        then()

    def timeout_error(self, limit: float, elapsed: float) -> None:
        """The usual error will do."""


# Hooks, wrapped


def _then(hook: Callable[..., Any], then: Callable[[Any], Any], *, is_async: bool) -> Callable[..., Any]:
    """The hook, and what is made of its result where it ran."""
    if is_async:

        async def on_loop(*args: Any) -> Any:
            return then(await hook(*args))

        return on_loop

    def here(*args: Any) -> Any:
        found = hook(*args)
        return _then_await(found, then) if is_awaitable(found) else then(found)

    return here


async def _then_await(found: Awaitable[Any], then: Callable[[Any], Any]) -> Any:
    return then(await found)


class _Counted:
    """A hook that can read ``cur_retry``: of this attempt, or of the last of so many."""

    def __init__(
        self, hook: Callable[..., Any], body: Callable[..., Any], attempts: int | None = None
    ) -> None:
        #: Whose annotations name what may be stored, and by which these are known: one for all runs of the node.
        self.__func__ = getattr(hook, "__func__", hook)
        self._body = body
        self._attempts = attempts

    def __call__(self, *args: Any) -> Any:
        attempts = self._attempts
        if attempts is None:
            call = current.get()
            assert call is not None
            attempts = call.attempt
        retry_number.set(attempts - 1)
        return self._body(*args)


def _watched(key: str, node: BaseNode, hook: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    """``exec`` in a run that is recorded, with a warning if it sets attributes of the node."""
    if is_async:

        async def on_loop(item: Any) -> Any:
            before = dict(vars(node))
            try:
                return await hook(item)
            finally:
                _warn_of_changes(key, before, node)

        return on_loop

    def here(item: Any) -> Any:
        before = dict(vars(node))
        try:
            return hook(item)
        finally:
            _warn_of_changes(key, before, node)

    return here


def _warn_of_changes(key: str, before: Mapping[str, Any], node: BaseNode) -> None:
    now = vars(node)
    if len(now) == len(before) and all(map(operator.is_, now.values(), before.values())):
        return  # as nearly always
    for name, value in list(now.items()):
        if before.get(name, MISSING) is not value:
            warnings.warn(
                f"{key}.exec sets self.{name}, which is lost when the run is resumed and exec is not run again; "
                "return it, and keep it in post",
                stacklevel=2,
            )
            return


__all__ = [
    "all_nodes_of",
    "conductor_of",
    "give_action",
    "give_shared",
    "key_of",
    "needs_core",
    "nodes_of",
    "shape_of",
]
