"""One use of a verb of a batch program: what becomes of the caller's ``shared``, and what is recorded of it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence, MutableSet
from typing import TYPE_CHECKING, Any

from weft.batch_runs import conductor_of, shape_of
from weft.engine.step import Step
from weft.errors import UsageError
from weft.runnable import Runnable, running_call

if TYPE_CHECKING:
    from weft.batch import BaseNode, Part
    from weft.batch_plain import PlainRun
    from weft.batch_runs import NodeRun, Walk
    from weft.checkpoint.base import Checkpointer
    from weft.core.timeout import TimeoutPolicy
    from weft.engine.call import Call
    from weft.engine.options import RunOptions
    from weft.engine.planned import PlannedCall
    from weft.engine.workflow import Workflow

_UNSET: Any = object()


class Use(Runnable):
    """The workflow of one run. Its value is a dict of ``action`` and ``shared``, of which the caller gets one."""

    def __init__(self, part: Part, *, gives_action: bool = False) -> None:
        self._part = part
        self._gives = "action" if gives_action else "shared"
        self._store: Checkpointer | None = None
        self._given: Any = _UNSET  # by the caller
        self._start: Any = _UNSET  # of a run that is resumed: `shared` as it was
        self.key = part.key
        self.checkpointer = part.checkpointer

    @functools.cached_property
    def step(self) -> Step:  # type: ignore[override]  # that of a call; of a run see `for_run`
        node = self._part.node
        return Step(
            functools.partial(_conduct, node),
            self.key,
            is_async=True,
            is_planned=True,
            timeout=node._weft_chosen().flow_timeout,
        )

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """Those of the node."""
        return self._part.parts()

    def functions(self) -> Iterator[Callable[..., Any]]:
        """Those of the node."""
        return self._part.functions()

    # The caller's `shared`

    adopts_input = True

    def for_run(self, input: Any, options: RunOptions) -> Workflow:
        """This is of one run alone; it remembers what the caller has given."""
        self._given, self._store = input, options.checkpointer
        node = self._part.node
        shape = "" if self._store is None else shape_of(node)
        self.step = _step_of_run(self.key, node._weft_chosen().flow_timeout, shape)
        return self

    def conduct(self, call: PlannedCall, shared: Any, params: Any) -> NodeRun | Walk | PlainRun:
        """Its node's conductor, in the run that this is of."""
        return conductor_of(self._part.node, _give_both, True, call, shared, params)

    def bind(self, input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``shared`` and the params: the caller's, or, where the caller gave none, the recorded ones."""
        if input is not self._given:
            return (input["shared"], input["params"]), {}
        shared = input if self._start is _UNSET else refill(input, self._start)
        return (shared, self._part.node.params), {}

    def recorded_input(self, input: Any) -> Any:
        """``shared`` at the start, and the params."""
        return {"shared": input, "params": self._part.node.params}

    def adopt(self, input: Any, recorded: Any) -> Any:
        """What the run has recorded: what the caller holds may be what an earlier life of the run has left in it."""
        given = self.recorded_input(input)
        if not isinstance(recorded, dict) or recorded.keys() != given.keys():
            return given
        assert self._store is not None
        codec = self._store.codec
        if codec.fingerprint(recorded["params"]) != codec.fingerprint(given["params"]):
            return {**recorded, "params": given["params"]}
        self._start = recorded["shared"]
        return recorded

    def recorded_value(self, value: Any) -> Any:
        """All of it: the caller gets only one of the two."""
        return value

    def recorded_output(self, value: Any, store: Checkpointer, run_id: str) -> Any:
        """The end of a finished run, which the caller's ``shared`` is filled with."""
        if self._start is _UNSET:
            return value  # the caller gave none
        return {**value, "shared": refill(self._given, value["shared"])}

    def split_output(self, value: Any) -> tuple[Any, Any]:
        """What the caller gets. A thread has nothing to save: ``shared`` is the caller's to keep."""
        return value[self._gives], None

    # In a body of a run

    def _join(self, call: Call, input: Any, options: Mapping[str, Any]) -> Any:
        self._given = input
        return super()._join(call, input, options)

    def _join_here(self, call: Call, input: Any, options: Mapping[str, Any]) -> Any:
        if self._gives == "action" and call.is_on_loop and _is_running(call.run.loop):
            raise UsageError(
                f"run() would block the loop that the body of {call.step.name!r} runs on; "
                f"write `await {self.key}.run_async(...)`"
            )
        return super()._join_here(call, input, options)[self._gives]

    async def ainvoke(self, input: Any, config: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run to the end on the running loop."""
        joins = running_call() is not None
        value = await super().ainvoke(input, config, **options)
        return value[self._gives] if joins else value


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


@functools.lru_cache(maxsize=256)  # to make a step takes longer than much of a small run
def _step_of_run(key: str, timeout: TimeoutPolicy | None, shape: str) -> Step:
    """The step of all runs of programs of this name and shape."""
    return Step(_conduct_run, key, is_async=True, is_planned=True, timeout=timeout, shape=shape)


def _conduct_run(call: PlannedCall, shared: Any, params: Any) -> NodeRun | Walk | PlainRun:
    use = call.run.workflow
    assert isinstance(use, Use)
    return use.conduct(call, shared, params)


def _conduct(node: BaseNode, call: PlannedCall, shared: Any, params: Any) -> NodeRun | Walk | PlainRun:
    # What it does to the caller's `shared` is done again by running it again, however it ends.
    call.is_recorded = False
    return conductor_of(node, _give_both, True, call, shared, params)


def _give_both(shared: Any, action: Any) -> Any:
    return {"action": action, "shared": shared}


def refill(target: Any, source: Any) -> Any:
    """Empty an object and fill it with what another of its kind holds; what cannot be filled is replaced.

    Gives the object that holds it now.
    """
    if isinstance(target, MutableMapping) and isinstance(source, Mapping):
        target.clear()
        target.update(source)
    elif isinstance(target, MutableSequence) and isinstance(source, MutableSequence):
        target[:] = source
    elif isinstance(target, MutableSet) and isinstance(source, MutableSet):
        target.clear()
        target |= source
    elif type(target) is type(source) and hasattr(target, "__dict__"):
        vars(target).clear()
        vars(target).update(vars(source))
    else:
        return source
    return target
