"""The batch style: nodes with ``prep``, ``exec`` and ``post``, and flows that go from node to node. After PocketFlow.

A node reads from ``shared`` in ``prep``, computes in ``exec``, writes to ``shared`` in ``post``, and ends with an
action, by which its flow goes on. What is recorded, retried and limited is ``exec``, for each item; ``prep`` and
``post`` run again when a run is resumed, so they must be repeatable.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, ClassVar

from weft.batch_hooks import Hooks, default, hooks_of, is_plain_object, retry_number
from weft.batch_options import Kind, Options, check_retries, check_wait, of_class
from weft.batch_runs import (
    conductor_of,
    give_shared,
    key_of,
    needs_core,
    nodes_of,
    shape_of,
)
from weft.batch_shared import Use
from weft.engine.step import Step
from weft.errors import InputError
from weft.nodes import as_runnable
from weft.runnable import Runnable

if TYPE_CHECKING:
    from weft.engine.options import RunOptions
    from weft.engine.workflow import Workflow
    from weft.observe.sketch import Sketch
    from weft.run import Run

#: The action of a node that ends with none.
DEFAULT_ACTION = "default"

_NOTHING: Any = object()


class Part(Runnable):
    """A node as other styles see it: something that takes the mapping which is its ``shared``, and gives it back.

    A node's class is its user's, who may give its attributes any names; this one's are ours.
    """

    def __init__(self, node: BaseNode) -> None:
        self.node = node
        self.key = key_of(node)
        self.checkpointer = node._weft_chosen().checkpointer

    def __repr__(self) -> str:
        return f"<weft.Part {self.node!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and other.node is self.node

    def __hash__(self) -> int:
        return id(self.node)

    @functools.cached_property
    def step(self) -> Step:  # type: ignore[override]  # made when it is used: until then, nodes are put together
        conduct = functools.partial(conductor_of, self.node, give_shared, False)
        return Step(
            lambda call, shared: conduct(call, shared, self.node.params),
            self.key,
            is_async=True,
            is_planned=True,
            timeout=self.node._weft_chosen().flow_timeout,
            shape=shape_of(self.node),
        )

    @property
    def computes(self) -> bool:  # type: ignore[override]  # as above
        return not self.node._weft_is_parallel and needs_core(self.node)

    def for_run(self, input: Any, options: RunOptions) -> Workflow:
        """A run remembers what the caller's ``shared`` was."""
        return Use(self).for_run(input, options)

    def bind(self, input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A copy: an item of a map may be there twice, and is what it was if the map is tried again."""
        return (copy.copy(input),), {}

    def sketch(self) -> Sketch:
        """A flow's nodes and the actions that lead from one to the other; of a node a box."""
        from weft.batch_picture import sketch_of_part  # noqa: PLC0415 - only who looks at it needs it

        return sketch_of_part(self)

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """The nodes of a flow, and what a node wraps."""
        if isinstance(self.node, Flow):
            yield from ((f"node {key_of(node)!r}", Part(node)) for node in nodes_of(self.node))
        elif self.node._weft_part is not None:
            yield f"{self.key!r}", self.node._weft_part

    def problems(self) -> Iterator[str]:
        """What can never work."""
        if isinstance(self.node, Flow) and self.node.start_node is None:
            yield f"{self.key} has no node to start with"

    def own_functions(self) -> Iterator[Callable[..., Any]]:
        """The functions that compute."""
        hooks = hooks_of(self.node)
        found = (hooks.exec, hooks.exec_fallback)
        yield from (getattr(self.node, hook.spelling) for hook in found if hook is not None)


class _CurRetry:
    """How many attempts of ``exec`` there were before this one: of the call that asks, so no two items share it."""

    def __get__(self, node: BaseNode | None, owner: type) -> Any:
        return self if node is None else retry_number.get()


# Nodes


class BaseNode(Runnable):
    """What nodes and flows are: a thing with hooks, and successors by action.

    Attributes:
        params: What a flow gives to its nodes; read in hooks.
        successors: The nodes that follow, by the action that leads there.
    """

    params: dict[str, Any]
    successors: dict[str, Any]

    max_retries: int = 1
    wait: float = 0

    _weft_part: Runnable | None = None
    _weft_is_async: ClassVar[bool] = False
    _weft_is_flow: ClassVar[bool] = False
    _weft_is_batch: ClassVar[bool] = False
    _weft_is_parallel: ClassVar[bool] = False
    _weft_defaults: ClassVar[Options]
    _weft_is_plain_object: ClassVar[bool] = True
    _weft_hooks: ClassVar[Hooks | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kind = cls._weft_kind()
        cls._weft_defaults = Options.of(kind, of_class(cls, kind))
        cls._weft_is_plain_object = is_plain_object(cls, BaseNode)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A node that works even if its class does not call ``super().__init__()``."""
        made = super().__new__(cls)
        made.params = {}
        made.successors = {}
        return made

    def __init__(self, **options: Any) -> None:
        if options:
            kind = self._weft_kind()
            vars(self)["_weft_mine"] = Options.of(kind, {**of_class(type(self), kind), **options})

    def __repr__(self) -> str:
        return f"<weft.{type(self).__name__}>"

    @classmethod
    def _weft_kind(cls) -> Kind:
        return Kind(cls.__name__, cls._weft_is_flow, cls._weft_is_batch, cls._weft_is_parallel)

    def _weft_chosen(self) -> Options:
        found: Options = vars(self).get("_weft_mine") or type(self)._weft_defaults
        return found

    # Hooks

    @default
    def prep(self, shared: Any) -> Any:
        """Read from ``shared``; what it returns is what ``exec`` gets, or in a batch node the items."""

    @default
    def exec(self, prep_res: Any) -> Any:
        """Compute, without ``shared``. It is recorded, and may only return."""

    @default
    def post(self, shared: Any, prep_res: Any, exec_res: Any) -> Any:
        """Write to ``shared``; what it returns is the action that the flow goes on by."""

    # Being put together

    def set_params(self, params: dict[str, Any]) -> None:
        """What hooks find in ``self.params`` when this is run by itself; in a flow they find the flow's."""
        self.params = params

    def next(self, node: Any, action: str = DEFAULT_ACTION) -> Any:
        """Have ``node`` follow when this ends with ``action``; returns it, so that calls can be chained.

        None ends the flow there. A task, a function or another workflow becomes a node that gets ``shared``.
        """
        return self._weft_follow(node, action)

    def __rshift__(self, other: Any) -> Any:
        """``a >> b``: b follows a. Gives b."""
        return self._weft_follow(other, DEFAULT_ACTION)

    def _weft_follow(self, node: Any, action: str) -> Any:
        follower = as_node(node)
        if action in self.successors:
            warnings.warn(f"Overwriting successor for action '{action}'", stacklevel=3)
        self.successors[action] = follower
        return follower

    def __sub__(self, action: str) -> _Transition:
        """``a - "action" >> b``: b follows a when it ends with that action."""
        if isinstance(action, str):
            return _Transition(self, action)
        raise TypeError(f"Action must be a string, not {action!r:.80}")

    # Being run

    def run(self, shared: Any = _NOTHING, **options: Any) -> Any:
        """Run to the end, and return the action that it ends with; for sync code.

        Args:
            shared: What the hooks read and write: one object for all of them, never copied.
            **options: Those of a run; see :class:`Runnable`. With a checkpointer ``shared`` is recorded at the start
                and at the end. A resume empties it and fills it as it was at the start, then what is not
                recorded runs again; a finished run fills it as it was at the end.
        """
        shared = _shared(shared, options)
        self._weft_warn()
        return Use(Part(self), gives_action=True).invoke(shared, **options)

    async def run_async(self, shared: Any = _NOTHING, **options: Any) -> Any:
        """As :meth:`run`, on the running loop."""
        shared = _shared(shared, options)
        self._weft_warn()
        return await Use(Part(self), gives_action=True).ainvoke(shared, **options)

    def _run(self, shared: Any) -> Any:
        return Use(Part(self), gives_action=True).invoke(shared)

    async def _run_async(self, shared: Any) -> Any:
        return await Use(Part(self), gives_action=True).ainvoke(shared)

    def _weft_warn(self) -> None:
        if self.successors:
            warnings.warn("Node won't run successors. Use Flow.", stacklevel=3)

    def invoke(self, input: Any, config: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run to the end, and return ``shared``; for sync code."""
        self._weft_warn()
        return Use(Part(self)).invoke(input, config, **options)

    async def ainvoke(self, input: Any, config: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """As :meth:`invoke`, on the running loop."""
        self._weft_warn()
        return await Use(Part(self)).ainvoke(input, config, **options)

    def stream(
        self, input: Any, config: Mapping[str, Any] | None = None, *, stream_mode: Any = None, **options: Any
    ) -> Iterator[Any]:
        """Run, and yield what happens; see :meth:`Runnable.stream`."""
        return Use(Part(self)).stream(input, config, stream_mode=stream_mode, **options)

    def astream(
        self, input: Any, config: Mapping[str, Any] | None = None, *, stream_mode: Any = None, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """As :meth:`stream`, on the running loop."""
        return Use(Part(self)).astream(input, config, stream_mode=stream_mode, **options)

    def submit(self, input: Any, config: Mapping[str, Any] | None = None, **options: Any) -> Run[Any]:
        """Begin a run and return its handle at once; see :meth:`Runnable.submit`."""
        return Use(Part(self)).submit(input, config, **options)

    # As a part of a workflow

    def as_part(self) -> Runnable:
        """What takes its place in another workflow."""
        return Part(self)

    def for_run(self, input: Any, options: RunOptions) -> Workflow:
        """What takes its place in a run."""
        return Part(self).for_run(input, options)

    def functions(self) -> Iterator[Callable[..., Any]]:
        """The functions that compute, of all nodes in it."""
        return Part(self).functions()

    def validate(self) -> None:
        """Look, without running anything, for what can never work; see :meth:`Runnable.validate`."""
        Part(self).validate()


class _Transition:
    """``a - "action"``, which ``>>`` completes."""

    def __init__(self, source: BaseNode, action: str) -> None:
        self._source = source
        self._action = action

    def __rshift__(self, target: Any) -> Any:
        return self._source._weft_follow(target, self._action)


def _shared(given: Any, options: dict[str, Any]) -> Any:
    if given is not _NOTHING:
        return given
    if "shared_storage" in options:  # its name in older versions of PocketFlow
        return options.pop("shared_storage")
    raise TypeError("run() needs `shared`: an object for the hooks to read and write, such as {}")


class Node(BaseNode):
    """A step of a flow: ``prep``, then ``exec``, which is tried again when it fails, then ``post``.

    Args:
        max_retries: How many attempts of ``exec`` there are, the first included.
        wait: Seconds between two attempts.
        **options: ``timeout`` (seconds for an attempt), ``total`` (for all of them), ``limit`` (a :class:`Limit`, or
            several), ``retry`` (a :class:`RetryPolicy`, or several, in place of ``max_retries`` and ``wait``),
            ``key`` (computes from what ``exec`` gets what stands for it in the call's identity) and
            ``checkpointer``. All but ``key`` may be attributes of the class instead.
    """

    #: How many attempts of ``exec`` there were before this one, from 0; for each item, also in ``exec_fallback``.
    cur_retry: Any = _CurRetry()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_retries(cls.max_retries)
        check_wait(cls.wait)

    def __init__(self, max_retries: int | None = None, wait: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        if max_retries is not None:
            self.max_retries = check_retries(max_retries)
        if wait is not None:
            check_wait(wait)
            self.wait = wait

    @default
    def exec_fallback(self, prep_res: Any, exc: Exception) -> Any:
        """What ``exec`` gives when its last attempt has failed; raises the error unless told otherwise."""
        raise exc


class BatchNode(Node):
    """A node whose ``prep`` gives items; ``exec`` is called for each, one after the other, ``post`` gets the list.

    Args:
        max_retries: As in :class:`Node`, for each item.
        wait: As in :class:`Node`.
        **options: Those of :class:`Node`, where ``timeout`` is that of all items together and ``attempt_timeout``
            that of one attempt; ``on_error`` and ``need`` as in :func:`parallel`.
    """

    _weft_is_batch = True


class ParallelBatchNode(BatchNode):
    """As :class:`BatchNode`, but the items are at work at the same time, in threads.

    Args:
        max_retries: As in :class:`Node`, for each item.
        wait: As in :class:`Node`.
        **options: Those of :class:`BatchNode`, and ``max_concurrent``, ``optimization_enabled`` and
            ``estimated_memory_per_node`` as in :func:`parallel`.
    """

    _weft_is_parallel = True


class AsyncNode(Node):
    """A :class:`Node` whose hooks are ``async``: ``prep_async``, ``exec_async``, ``post_async``.

    And ``exec_fallback_async``. Where only the sync spelling of a hook is there, that is called, in a thread.
    """

    _weft_is_async = True

    @default
    async def prep_async(self, shared: Any) -> Any:
        """As :meth:`BaseNode.prep`."""

    @default
    async def exec_async(self, prep_res: Any) -> Any:
        """As :meth:`BaseNode.exec`."""

    @default
    async def exec_fallback_async(self, prep_res: Any, exc: Exception) -> Any:
        """As :meth:`Node.exec_fallback`."""
        raise exc

    @default
    async def post_async(self, shared: Any, prep_res: Any, exec_res: Any) -> Any:
        """As :meth:`BaseNode.post`."""


class AsyncBatchNode(AsyncNode, BatchNode):
    """A :class:`BatchNode` whose hooks are ``async``: one item after the other."""


class AsyncParallelBatchNode(AsyncNode, ParallelBatchNode):
    """A :class:`BatchNode` whose hooks are ``async``, and whose items are at work at the same time.

    ``AsyncParallelBatchNode(max_retries=3, wait=1, max_concurrent=10)``: ten at once, when one ends the next begins,
    and each is tried three times by itself.
    """


# Flows


class Flow(BaseNode):
    """Runs nodes, sync and async ones: from its start, on by the action that each ends with. A flow is a node itself.

    Args:
        start: The first node.
        **options: ``timeout`` (seconds for all of it) and ``checkpointer``; attributes of the class as well.
    """

    start_node: BaseNode | None = None
    _weft_is_flow = True

    def __init__(self, start: Any = None, **options: Any) -> None:
        BaseNode.__init__(self, **options)
        self.start_node = as_node(start)

    def start(self, start: Any) -> Any:
        """Set the first node; returns it, so that calls can be chained."""
        self.start_node = as_node(start)
        return self.start_node

    def get_next_node(self, curr: BaseNode, action: Any) -> BaseNode | None:
        """The node that follows when ``curr`` has ended with this action; None where the flow ends.

        An action that leads nowhere ends the flow with a warning, if others lead somewhere.
        """
        name = action or DEFAULT_ACTION
        if isinstance(name, str) and name in curr.successors:
            found: BaseNode | None = curr.successors[name]
            return found
        if curr.successors:
            shown = f"'{action}'" if isinstance(action, str | None) else f"{action!r:.80} (no string)"
            warnings.warn(f"Flow ends: {shown} not found in {list(curr.successors)}", stacklevel=2)
        return None

    @default
    def post(self, shared: Any, prep_res: Any, exec_res: Any) -> Any:
        """As :meth:`BaseNode.post`; ``exec_res`` is the last action, which is the flow's own unless told otherwise."""
        return exec_res


class BatchFlow(Flow):
    """A flow whose ``prep`` gives a list of params; its nodes run for each of them, one after the other.

    Nodes find them in ``self.params``, with those of the flow itself. ``post`` gets None, or with ``on_error`` or
    ``need`` the outcomes.

    Args:
        start: The first node.
        **options: Those of :class:`Flow`; ``on_error`` and ``need`` as in :func:`parallel`.
    """

    _weft_is_batch = True


class ParallelBatchFlow(BatchFlow):
    """As :class:`BatchFlow`, but the runs of its nodes are at work at the same time.

    Args:
        start: The first node.
        **options: Those of :class:`BatchFlow`, and ``max_concurrent``, ``optimization_enabled`` and
            ``estimated_memory_per_node`` as in :func:`parallel`.
    """

    _weft_is_parallel = True


class AsyncFlow(Flow, AsyncNode):
    """A :class:`Flow` whose own hooks are ``async``."""

    @default
    async def post_async(self, shared: Any, prep_res: Any, exec_res: Any) -> Any:
        """As :meth:`Flow.post`."""
        return exec_res


class AsyncBatchFlow(AsyncFlow, BatchFlow):
    """A :class:`BatchFlow` whose own hooks are ``async``."""


class AsyncParallelBatchFlow(AsyncFlow, ParallelBatchFlow):
    """A :class:`ParallelBatchFlow` whose own hooks are ``async``."""


# What is no node, as one


class RunnableNode(BaseNode):
    """A task, function or other workflow as a node: it gets a copy of ``shared``, and its result goes into ``shared``.

    A mapping is merged in, anything else is stored under the name of what gave it. The action is the default.
    """

    def __init__(self, part: Runnable) -> None:
        super().__init__()
        self._weft_part = part

    def __repr__(self) -> str:
        return f"<weft.RunnableNode {self._weft_part!r}>"

    # Async, as they take no time that a thread would be worth.

    async def prep_async(self, shared: Any) -> Any:
        """A copy, so that nobody sees what it does with it."""
        return copy.copy(shared)

    async def post_async(self, shared: Any, prep_res: Any, exec_res: Any) -> None:
        """Put the result into ``shared``."""
        if not isinstance(shared, MutableMapping):
            raise InputError(
                f"the result of {key_of(self)!r} goes into `shared`, which must be a dict for that, not "
                f"{type(shared).__name__}"
            )
        shared.update(exec_res if isinstance(exec_res, Mapping) else {key_of(self): exec_res})


def as_node(value: Any) -> BaseNode | None:
    """A node from what users write: a node, None, or anything that can be a part of a workflow."""
    if value is None or isinstance(value, BaseNode):
        return value
    return RunnableNode(as_runnable(value, where="a flow"))


BaseNode._weft_defaults = Options.of(BaseNode._weft_kind(), {})


__all__ = [
    "DEFAULT_ACTION",
    "AsyncBatchFlow",
    "AsyncBatchNode",
    "AsyncFlow",
    "AsyncNode",
    "AsyncParallelBatchFlow",
    "AsyncParallelBatchNode",
    "BaseNode",
    "BatchFlow",
    "BatchNode",
    "Flow",
    "Node",
    "ParallelBatchFlow",
    "ParallelBatchNode",
]
