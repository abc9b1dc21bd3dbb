"""The compose style: workflows as values. ``parallel``, ``Sequence``, ``@decision``, ``@node``, ``a >> b``.

After Egregore's workflows. A step is an ordinary function; a value becomes its arguments by
:mod:`weft.core.binding`. What is composed is called with a value, and gives one.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from weft.core.binding import Binding
from weft.core.checks import check_count, check_name
from weft.core.choices import choices_of
from weft.core.sizing import ESTIMATED_MEMORY
from weft.engine.block import Block, BlockOptions, Start
from weft.engine.feed import Known
from weft.engine.futures import Branch
from weft.engine.step import Step, step_options
from weft.errors import DefinitionError, UsageError, WeftError
from weft.nodes import as_runnable
from weft.runnable import Runnable, running_call, shape_of

if TYPE_CHECKING:
    from weft.engine.call import Call
    from weft.engine.planned import PlannedCall
    from weft.observe.sketch import Sketch

#: How many steps a Sequence may take unless it is told otherwise: more is taken for a loop without an end.
MAX_STEPS = 10_000


# Blocks


class _Composed(Runnable):
    """What is called with a value."""

    def __call__(self, input: Any, **options: Any) -> Any:
        """Run with this value: as ``invoke``, or, in an async body, something to await."""
        call = running_call()
        if call is not None and call.is_on_loop:
            return self._join(call, input, options)
        return self.invoke(input, **options)


class Parallel(_Composed):
    """Branches that get the same value and run at the same time; made by :func:`parallel`.

    Its result is a dict of theirs, by name, in declared order.
    """

    computes = False  # it finds out by itself how many of its branches may

    def __init__(
        self,
        parts: list[Runnable],
        *,
        options: BlockOptions,
        name: str | None,
        timeout: Any,
        retry: Any,
        total: float | None,
    ) -> None:
        self.branches = {part.key: part for part in parts}
        if len(self.branches) < len(parts):
            raise DefinitionError(_equal_names([part.key for part in parts]))
        if not parts:
            raise DefinitionError("parallel() needs at least one branch")
        options.policy.check(len(parts))
        self.options = options
        self.key = "parallel" if name is None else check_name("parallel()", name)
        self.step = Step(
            self._conductor,
            self.key,
            is_async=True,
            is_planned=True,
            **step_options(timeout=timeout, total=total, retry=retry),
        )
        self.step = replace(self.step, shape=shape_of(f"parallel {options.policy}", self.branches))
        self._starts = tuple([_Start(key, part) for key, part in self.branches.items()])
        self.may_compute = any(start.computes for start in self._starts)
        self.is_fixed = all(part.is_fixed for part in parts)
        self.is_light = all(start.step.is_light for start in self._starts)

    def __repr__(self) -> str:
        return f"parallel({', '.join(self.branches)})"

    def _conductor(self, call: PlannedCall, value: Any) -> Block:
        return Block(call, _ParallelStyle(self, value), Known(self._starts), self.options)

    def sketch(self) -> Sketch:
        """Its branches side by side, between where they begin and where they meet."""
        from weft.compose_picture import sketch_of_parallel  # noqa: PLC0415 - only who looks at it needs it

        return sketch_of_parallel(self)

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """Its branches."""
        yield from ((f"branch {key!r}", branch) for key, branch in self.branches.items())

    def problems(self) -> Iterator[str]:
        """What can never work."""
        limit = self.step.timeout.run_timeout if self.step.timeout is not None else None
        for key, branch in self.branches.items():
            inner = branch.step.timeout.run_timeout if branch.step.timeout is not None else None
            if limit is not None and inner is not None and inner > limit:
                yield (
                    f"branch {key!r}: its timeout of {inner:g} s can never pass, since that of the block round it "
                    f"is {limit:g} s"
                )


class _Start:
    """A branch, ready to be started."""

    def __init__(self, key: str, part: Runnable) -> None:
        self.part = part
        self.step = part.step if part.step.name == key else replace(part.step, name=key)
        self.computes = part.computes


class _ParallelStyle:
    """What a block of ``parallel`` does with a branch; see :class:`weft.engine.block.Style`."""

    is_mixed = True

    def __init__(self, block: Parallel, value: Any) -> None:
        self._block = block
        self._value = value
        self._names = tuple(block.branches)
        self.may_compute = block.may_compute
        self.is_light = block.is_light

    def start_of(self, item: _Start) -> Start:
        args, kwargs = item.part.bind_branch(self._value)
        return item.step, args, kwargs

    def fingerprint(self, call: PlannedCall, start: Start) -> bytes:
        return b""  # names are unique, and what all of them get is part of the block's own identity

    def computes(self, item: _Start) -> bool:
        return item.computes

    def name_of(self, index: int) -> str:
        return self._names[index]

    def result(self, values: list[Any]) -> dict[str, Any]:
        return dict(zip(self._names, values, strict=True))


def parallel(
    *branches: Any,
    max_concurrent: int | None = None,
    timeout: Any = None,
    on_error: Any = "fail_fast",
    need: int | None = None,
    name: str | None = None,
    retry: Any = None,
    total: float | None = None,
    executor: Any = None,
    optimization_enabled: bool = True,
    estimated_memory_per_node: int = ESTIMATED_MEMORY,
) -> Parallel:
    """Branches that run at the same time on the same value: ``parallel(a, b)(value) == {"a": ..., "b": ...}``.

    Args:
        *branches: Nodes, tasks, functions and other workflows. The key of each is its own name if it was given one,
            else that of its last step.
        max_concurrent: How many at once, exactly; when one ends the next one starts. None chooses by the branches,
            the cores (for sync ones) and the memory available.
        timeout: Seconds for the block: :class:`ParallelTimeoutError`.
        on_error: "fail_fast" (the first failure stops the others: :class:`ParallelExecutionError`), "collect" (a dict
            of outcomes), "race" (the first value, alone), or ``tolerate(count=..., ratio=...)`` (a dict of outcomes).
        need: How many successes are enough; the others are stopped. Gives a dict of outcomes.
        name: What results and errors call the block.
        retry: How many attempts of the whole block, a :class:`RetryPolicy`, or several.
        total: Seconds for all attempts together.
        executor: What runs the branches that name none of their own, as ``"process"`` (see :func:`weft.task`): the body
            of a step, or the whole run of a workflow.
        optimization_enabled: Whether to choose a width where ``max_concurrent`` is None; if not, all start at once.
        estimated_memory_per_node: Bytes that a branch is taken to need.

    Raises:
        DefinitionError: Two branches of one name, or an option that can never work.
    """
    options = BlockOptions.of(
        max_concurrent=max_concurrent,
        on_error=on_error,
        need=need,
        optimization_enabled=optimization_enabled,
        estimated_memory_per_node=estimated_memory_per_node,
    )
    parts = [as_runnable(branch, where="parallel()", executor=executor) for branch in branches]
    return Parallel(parts, options=options, name=name, timeout=timeout, retry=retry, total=total)


def race(*branches: Any, name: str = "race", **options: Any) -> Parallel:
    """The value of the first branch that succeeds; the rest is stopped. :func:`parallel` with ``on_error="race"``."""
    return parallel(*branches, on_error="race", name=name, **options)


def _equal_names(keys: list[str]) -> str:
    twice = next(key for key in keys if keys.count(key) > 1)
    return (
        f"parallel() has {keys.count(twice)} branches named {twice!r}, and its result has one place for each name; "
        f'give them names: node("...")(function), parallel(..., name="...") or Sequence(..., name="...")'
    )


# Sequences


class Sequence(_Composed):
    """Steps one after the other, each given what the one before it gave. ``a >> b`` is another spelling.

    Args:
        *steps: Nodes, tasks, functions, decisions and other workflows. What ``>>`` made without a name becomes part of
            this one.
        name: What results and errors call it.
        max_steps: How many steps a run may take: more is taken for a loop of decisions without an end.
        timeout: Seconds for the whole of it.
        retry: How many attempts of the whole, a :class:`RetryPolicy`, or several.
        total: Seconds for all attempts together.

    Raises:
        DefinitionError: Something that is no step, or an option that can never work.
    """

    def __init__(
        self,
        *steps: Any,
        name: str | None = None,
        max_steps: int = MAX_STEPS,
        timeout: Any = None,
        retry: Any = None,
        total: float | None = None,
    ) -> None:
        parts = [part for step in steps for part in _flattened(as_runnable(step, where="Sequence()"))]
        if not parts:
            raise DefinitionError("Sequence() needs at least one step")
        self.steps = [part.within(parts) if isinstance(part, Decision) else part for part in parts]
        self.own_name = name
        self.max_steps = self._checked(max_steps, parts)
        self.key = parts[-1].key if name is None else check_name("Sequence()", name)
        self.step = Step(
            functools.partial(Walk, self.steps, self.max_steps),
            name or "sequence",  # not of its steps: an edit would make it another workflow, and end its runs
            is_async=True,
            is_planned=True,
            **step_options(timeout=timeout, total=total, retry=retry),
        )
        self.step = replace(
            self.step, shape=shape_of("sequence", {str(n): part for n, part in enumerate(parts)})
        )
        self._is_bare = name is None and max_steps == MAX_STEPS and self.step.is_plain
        self.computes = any(part.computes for part in parts)
        self.is_fixed = all(part.is_fixed for part in parts)

    @staticmethod
    def _checked(max_steps: int, parts: list[Runnable]) -> int:
        """How many steps a run may take; where nothing decides, all of them and no more."""
        check_count("max_steps", max_steps)
        if _decides(parts):
            return max_steps
        if max_steps < len(parts) and max_steps != MAX_STEPS:
            raise DefinitionError(f"max_steps={max_steps} can never do for a Sequence of {len(parts)} steps")
        return len(parts)

    def __repr__(self) -> str:
        name = "" if self.own_name is None else f"{self.own_name}: "
        return f"<weft.Sequence {name}{' >> '.join(part.key for part in self.steps)}>"

    @property
    def is_flat(self) -> bool:
        """Whether it is nothing but its steps, so that it may become part of another."""
        return self._is_bare

    def sketch(self) -> Sketch:
        """Its steps one after the other, and where its decisions lead."""
        from weft.compose_picture import sketch_of_sequence  # noqa: PLC0415 - as in parallel

        return sketch_of_sequence(self)

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """Its steps."""
        yield from ((f"step {place} ({step.key!r})", step) for place, step in enumerate(self.steps, 1))

    def problems(self) -> Iterator[str]:
        """What can never work."""
        yield from _ambiguous(self.steps)
        yield from _unreachable(self.steps)


def _decides(steps: list[Runnable]) -> bool:
    return any(isinstance(step, Decision) for step in steps)


def _flattened(part: Runnable) -> list[Runnable]:
    return list(part.steps) if isinstance(part, Sequence) and part.is_flat else [part]


class Walk:
    """The conductor of a sequence: one step at a time."""

    is_serial = True
    is_looking = False
    may_start_more = False

    def __init__(self, steps: list[Runnable], max_steps: int, call: PlannedCall, value: Any) -> None:
        self._steps = steps
        self._max_steps = max_steps
        self._call = call
        self._value = value
        self._next = 0
        self._taken = 0
        self._is_waiting = False
        self._deciding: Decision | None = None
        self._choice: Any = None
        self._error: BaseException | None = None

    def note(self, branch: Branch, call: Call) -> None:
        """The step has ended."""
        self._is_waiting = False
        if call.error is not None:
            self._error = call.error
        elif self._deciding is None:
            self._value = call.value
            self._next += 1
        else:
            self._choice = call.value

    def advance(self) -> None:
        """Start the next step, or conclude."""
        if self._error is not None:
            self._call.conclude(None, self._error)
        elif self._is_waiting:
            return
        elif self._deciding is not None:
            self._follow(self._deciding)
        elif self._next == len(self._steps):
            self._call.conclude(self._value, None)
        else:
            self._take(self._steps[self._next])

    def _take(self, part: Runnable) -> None:
        self._taken += 1
        if self._taken > self._max_steps:
            raise WeftError(
                f"{self._call.step.name!r} has taken {self._max_steps} steps and is at {part.key!r} again: its "
                "decisions form a loop without an end; max_steps= allows more"
            )
        if isinstance(part, Decision):
            self._deciding = part
            self._start(part.choose, part.bind_choice(self._value))
        else:
            self._start(part.step, part.bind_branch(self._value))

    def _start(self, step: Step, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self._is_waiting = True
        self._call.start(Branch(self._call, 0), step, *arguments)

    def _follow(self, decision: Decision) -> None:
        """Go where the decision says; what is there gets what the decision got."""
        self._deciding = None
        found = decision.resolve(self._choice)
        if isinstance(found, int):
            self._next = found
            self._call.advance_soon()
        else:
            self._start(found.step, found.bind_branch(self._value))

    def close(self, then: Callable[[], None]) -> None:
        """There is nothing to close."""
        then()

    def timeout_error(self, limit: float, elapsed: float) -> None:
        """The usual error will do."""


# Decisions

#: How many globals an error names.
_SHOWN = 5


class Decision(_Composed):
    """A step that says where to go on; made by :func:`decision`."""

    def __init__(self, choose: Step, branches: Mapping[str, Runnable]) -> None:
        self.choose = replace(choose, convert=self.name_of)
        self.branches = branches
        self.key = choose.name
        self.computes = not choose.is_async or any(branch.computes for branch in branches.values())
        self.is_fixed = all(branch.is_fixed for branch in branches.values())
        self._binding = Binding.of(choose.fn)
        self.among: list[Runnable] = []
        alone = functools.partial(Walk, [self], MAX_STEPS)
        self.step = Step(
            alone, choose.name, is_async=True, is_planned=True, shape=shape_of("decision", self.branches)
        )
        functools.update_wrapper(self, choose.fn, updated=())
        self.__name__ = choose.name

    def __repr__(self) -> str:
        return f"<weft.decision {self.key!r}>"

    @property
    def func(self) -> Callable[..., Any]:
        """The plain function."""
        return self.choose.fn

    def within(self, steps: list[Runnable]) -> Decision:
        """The same decision as a step of a sequence, to whose steps it can jump."""
        placed = copy.copy(self)
        placed.among = steps
        placed.choose = replace(self.choose, convert=placed.name_of)
        return placed

    def bind_choice(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the function that decides."""
        return self._binding.bind(value, step=self.key)

    def name_of(self, choice: Any) -> Any:
        """What it chose, by name if it has one here, so that it can be recorded."""
        if not isinstance(choice, Runnable):
            return choice
        chosen = choice.as_part()
        return next((name for name, part in self._named() if _is_same(part, chosen)), choice)

    def resolve(self, choice: Any) -> int | Runnable:
        """The place in the sequence to jump to, or what is to run in the decision's place.

        Raises:
            UsageError: The choice names nothing.
        """
        if isinstance(choice, Runnable):
            return choice.as_part()
        if not isinstance(choice, str):
            raise UsageError(
                f"decision {self.key!r} returned {choice!r:.80}; it must return the name of a step, or a step"
            )
        for place, part in enumerate(self.among):
            if part.key == choice:
                return place
        found = self.branches.get(choice) or _global_of(self.func, choice)
        if found is None:
            raise UsageError(
                f"decision {self.key!r} chose {choice!r}, which names nothing; there are: {self._known()}"
            )
        return found

    def _named(self) -> Iterator[tuple[str, Runnable]]:
        for part in self.among:
            yield part.key, part
        yield from self.branches.items()
        yield from _global_runnables(self.func)

    def _known(self) -> str:
        near = dict.fromkeys([*(part.key for part in self.among), *self.branches])
        seen = [name for name in dict.fromkeys(name for name, _ in self._named()) if name not in near]
        more = f" and {len(seen) - _SHOWN} more" if len(seen) > _SHOWN else ""
        return (
            ", ".join([*near, *seen[:_SHOWN]]) or "no steps, branches or globals that could be run"
        ) + more

    def problems(self) -> Iterator[str]:
        """What can never work."""
        for choice in self.choices or ():
            try:
                self.resolve(choice)
            except UsageError as error:
                yield str(error)

    def sketch(self) -> Sketch:
        """Itself, and what it can choose."""
        from weft.compose_picture import sketch_of_decision  # noqa: PLC0415 - as in parallel

        return sketch_of_decision(self)

    def parts(self) -> Iterator[tuple[str, Runnable]]:
        """What it can choose besides steps of its sequence."""
        yield from ((f"branch {name!r}", branch) for name, branch in self.branches.items())

    def own_function(self) -> Callable[..., Any]:
        """The function that decides."""
        return self.choose.fn

    @property
    def choices(self) -> frozenset[str] | None:
        """All that it can choose, where its annotation or its code says so; None where they do not."""
        return choices_of(self.func)


@overload
def decision(func: Callable[..., Any], /) -> Decision: ...
@overload
def decision(
    name: str | None = None,
    /,
    *,
    branches: Any = None,
    timeout: Any = None,
    total: float | None = None,
    retry: Any = None,
    limit: Any = None,
) -> Callable[[Callable[..., Any]], Decision]: ...
def decision(
    func: Any = None,
    /,
    *,
    branches: Any = None,
    timeout: Any = None,
    total: float | None = None,
    retry: Any = None,
    limit: Any = None,
) -> Any:
    """Make a step that chooses: its function returns a name or a step, which gets what the decision got.

    A step of the Sequence is a jump: it goes on from there, back too. One of ``branches``, or of the globals of the
    function when it runs, runs in the decision's place, and the Sequence goes on after it.

    Args:
        func: The function, or the name.
        branches: What can be chosen besides: a list of parts of a workflow, or a dict of them by name.
        timeout: Of one attempt to decide, in seconds.
        total: Seconds for all attempts to decide.
        retry: How many attempts, a :class:`RetryPolicy`, or several.
        limit: A :class:`Limit`, or several.

    Raises:
        DefinitionError: What is decorated is no function, or an option can never work.
    """
    name = check_name("a decision", func) if isinstance(func, str) else None
    named = _named_branches(branches)
    options = step_options(timeout=timeout, total=total, retry=retry, limit=limit)

    def decorate(fn: Callable[..., Any]) -> Decision:
        if not callable(fn) or isinstance(fn, Runnable):
            raise DefinitionError(f"@decision is put on a function, not on {fn!r}")
        return Decision(Step.of(fn, name=name, **options), named)

    return decorate if func is None or name is not None else decorate(func)


def _named_branches(branches: Any) -> dict[str, Runnable]:
    if branches is None:
        return {}
    if isinstance(branches, Mapping):
        return {name: as_runnable(part, where="branches=") for name, part in branches.items()}
    if not isinstance(branches, Iterable) or isinstance(branches, str | Runnable):
        raise DefinitionError(
            f"branches must be a list of parts of a workflow, or a dict by name, not {branches!r}"
        )
    parts = [as_runnable(part, where="branches=") for part in branches]
    found = {part.key: part for part in parts}
    if len(found) < len(parts):
        raise DefinitionError(f"branches has equal names: {', '.join(part.key for part in parts)}")
    return found


def _is_same(part: Runnable, value: Runnable) -> bool:
    return part == value or (
        isinstance(part, Decision) and isinstance(value, Decision) and part.func is value.func
    )


def _global_of(fn: Callable[..., Any], name: str) -> Runnable | None:
    return next((part for found, part in _global_runnables(fn) if found == name), None)


def _global_runnables(fn: Callable[..., Any]) -> Iterator[tuple[str, Runnable]]:
    """What the function sees: by the name of the variable, then by its own."""
    seen = getattr(inspect.unwrap(fn), "__globals__", {})
    parts = [(name, value.as_part()) for name, value in list(seen.items()) if isinstance(value, Runnable)]
    yield from parts
    yield from ((part.key, part) for _, part in parts)


# Looking for what can never work


def _ambiguous(steps: list[Runnable]) -> Iterator[str]:
    """Names that a decision may jump to and that several steps have."""
    names = [step.key for step in steps]
    chosen = {choice for step in steps if isinstance(step, Decision) for choice in step.choices or names}
    for name in dict.fromkeys(names):
        if names.count(name) > 1 and name in chosen:
            yield f"{names.count(name)} steps are named {name!r}, and a decision may jump to it: name them differently"


def _unreachable(steps: list[Runnable]) -> Iterator[str]:
    reached: set[int] = set()
    stack, ends = [0], False
    while stack:
        place = stack.pop()
        if place == len(steps):
            ends = True
        if place in reached or place >= len(steps):
            continue
        reached.add(place)
        stack += _ways_on(steps, place)
    if not ends:
        yield "it can never end: its decisions only lead back"
    for place, step in enumerate(steps):
        if place not in reached:
            yield f"step {place + 1} ({step.key!r}) can never be reached: a decision before it always goes elsewhere"


def _ways_on(steps: list[Runnable], place: int) -> list[int]:
    step = steps[place]
    if not isinstance(step, Decision):
        return [place + 1]
    if step.choices is None:
        return list(range(len(steps) + 1))
    ways = []
    for choice in step.choices:
        try:
            found = step.resolve(choice)
        except UsageError:
            continue
        ways.append(found if isinstance(found, int) else place + 1)
    return ways


__all__ = [
    "Decision",
    "Parallel",
    "Sequence",
    "decision",
    "parallel",
    "race",
]
