"""Blocks against a model: every policy, in every style, with any durations and failures, at any width.

The model is a simulation of branches that knows nothing of the engine: who starts when, at which moment the outcome
is certain for the first time, and what it is. Time is virtual, so that moment is compared exactly.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weft
from weft import Cancelled, Failed, NotStarted, Ok, ParallelExecutionError, tolerate
from weft.testing import run, sleep, virtual_clock

GRACE = 1.0

#: How long a polite sync body sleeps before it looks whether it is cancelled. As a binary number it is exact, and no
#: multiple of it that matters is a sum of durations.
STEP = 375 / 1024

INPUT = 7


class Boom(Exception):
    """What branches raise."""


# The model


@dataclass(frozen=True)
class Branch:
    """What a branch is going to do."""

    seconds: float
    fails: bool
    is_async: bool
    is_polite: bool


@dataclass(frozen=True)
class Case:
    branches: tuple[Branch, ...]
    policy: tuple[str, Any]
    width: int | None

    @property
    def options(self) -> dict[str, Any]:
        kind, number = self.policy
        found: dict[str, Any] = {"max_concurrent": self.width, "optimization_enabled": False}
        if kind == "need":
            return {**found, "need": number}
        if kind in {"count", "ratio"}:
            return {**found, "on_error": tolerate(**{kind: number})}
        return {**found, "on_error": kind}

    @property
    def gives_outcomes(self) -> bool:
        return self.policy[0] not in {"fail_fast", "race"}


def certain(policy: tuple[str, Any], ok: int, failed: int, total: int | None) -> bool | None:
    """True: it has its result. False: it can never have it. None: that is open."""
    kind, number = policy
    ended = ok + failed
    if kind in {"need", "race"}:
        needed = number or 1
        if ok >= needed:
            return True
        return False if total is not None and failed > total - needed else None
    if kind == "fail_fast":
        too_many = failed > 0
    elif kind == "ratio":
        too_many = failed > number * (ended if total is None else total)
    else:
        too_many = kind == "count" and failed > number
    if too_many:
        return False
    return True if ended == total else None


@dataclass
class Expected:
    """What has to happen."""

    succeeds: bool = False
    decided: float = 0.0
    seen: float = 0.0  # when the block's outcome is there: sync bodies are waited for
    started: dict[int, float] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)  # by themselves, in this order


def expected(case: Case, *, is_lazy: bool) -> Expected:
    """``is_lazy``: how many branches there are is known when somebody has looked for one more in vain."""
    waiting = list(range(len(case.branches)))
    going: list[tuple[float, int]] = []
    found = Expected()
    total = None if is_lazy else len(waiting)
    ok = failed = 0
    now = 0.0
    while True:
        while case.width is None or len(going) < case.width:
            if not waiting:
                total = len(case.branches)
                break
            index = waiting.pop(0)
            found.started[index] = now
            heapq.heappush(going, (now + case.branches[index].seconds, index))
        verdict = certain(case.policy, ok, failed, total)
        if verdict is None:
            now, index = heapq.heappop(going)
            found.ended.append(index)
            failed += case.branches[index].fails
            ok += not case.branches[index].fails
            verdict = certain(case.policy, ok, failed, total)
        if verdict is not None:
            found.succeeds, found.decided = verdict, now
            found.seen = max([now, *(stops_at(case.branches[index], end, now) for end, index in going)])
            return found


def stops_at(branch: Branch, end: float, told: float) -> float:
    """When a running body is not waited for any more, that is told to stop."""
    if branch.is_async:
        return told
    if branch.is_polite:
        begun = end - branch.seconds
        end = min(end, begun + math.ceil((told - begun) / STEP) * STEP)
    return min(end, told + GRACE)


# What really happens


class Bodies:
    """The branches of a case, and what they have done."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.now: Callable[[], float] = lambda: 0.0
        self.started: dict[int, float] = {}
        self.stopped: set[int] = set()
        self.at_work: set[int] = set()
        self.most = 0

    @contextmanager
    def _working(self, index: int) -> Iterator[Branch]:
        assert index not in self.started
        self.started[index] = self.now()
        self.at_work.add(index)
        self.most = max(self.most, len(self.at_work))
        try:
            yield self.case.branches[index]
            if self.case.branches[index].fails:
                raise Boom(index)
        finally:
            self.at_work.remove(index)

    async def on_loop(self, index: int) -> str:
        with self._working(index) as branch:
            try:
                await asyncio.sleep(branch.seconds)
            except asyncio.CancelledError:
                self.stopped.add(index)
                raise
        return f"{index} of {INPUT}"

    def in_thread(self, index: int) -> str:
        with self._working(index) as branch:
            for seconds in pieces(branch):
                sleep(seconds)
                if weft.cancelled():
                    self.stopped.add(index)
                    break
        return f"{index} of {INPUT}"

    def node(self, index: int) -> Any:
        """The branch of a `parallel`."""
        if self.case.branches[index].is_async:

            async def body(value: int) -> str:
                return await self.on_loop(index)

        else:

            def body(value: int) -> Any:
                return self.in_thread(index)

        return weft.node(f"b{index}")(body)

    def for_items(self) -> Any:
        """What a `map` does with an item; all branches of the case are of one kind."""
        return weft.node("each")(self.on_loop if self.case.branches[0].is_async else self.in_thread)

    def parallel(self) -> Any:
        nodes = [self.node(index) for index in range(len(self.case.branches))]
        return weft.parallel(*nodes, **self.case.options)

    def map(self) -> Any:
        return weft.map(self.for_items(), **self.case.options)

    @property
    def items(self) -> list[int]:
        return list(range(len(self.case.branches)))


def pieces(branch: Branch) -> Iterator[float]:
    left = branch.seconds
    while branch.is_polite and left > STEP:
        yield STEP
        left -= STEP
    yield left


# Styles. Each gives what the block gave: a list of values or outcomes, a list of (index, result) for streams


async def parallel(bodies: Bodies) -> Any:
    return unnamed(await bodies.parallel().ainvoke(INPUT))


async def nested(bodies: Bodies) -> Any:
    """In a block, in a sequence, in a block."""
    outer = weft.parallel(weft.Sequence(bodies.parallel(), name="inner"), name="outer")
    try:
        return unnamed((await outer.ainvoke(INPUT))["inner"])
    except ParallelExecutionError as error:
        assert error.branch == "inner"
        inner = error.failures["inner"]
    raise inner


async def in_async_task(bodies: Bodies) -> Any:
    block = bodies.parallel()

    @weft.task
    async def body(value: int) -> Any:
        try:
            return unnamed(await block.ainvoke(value))
        finally:
            nothing_at_work(bodies)

    return await weft.entrypoint()(one_task(body)).ainvoke(INPUT)


async def in_sync_task(bodies: Bodies) -> Any:
    block = bodies.parallel()

    @weft.task
    def body(value: int) -> Any:
        try:
            return unnamed(block.invoke(value))
        finally:
            nothing_at_work(bodies)

    return await weft.entrypoint()(one_task(body)).ainvoke(INPUT)


def one_task(body: Any) -> Any:
    async def flow(value: int) -> Any:
        return await body(value)

    return flow


async def map_list(bodies: Bodies) -> Any:
    return await bodies.map().ainvoke(bodies.items)


async def map_generator(bodies: Bodies) -> Any:
    return await weft.amap(bodies.for_items(), (each for each in bodies.items), **bodies.case.options)


async def map_async_generator(bodies: Bodies) -> Any:
    return await weft.amap(bodies.for_items(), flow_of(bodies.items), **bodies.case.options)


async def map_in_sync_task(bodies: Bodies) -> Any:
    made = bodies.map()

    @weft.task
    def body(value: int) -> Any:
        return made.invoke(each for each in bodies.items)

    return await weft.entrypoint()(one_task(body)).ainvoke(INPUT)


async def stream_ordered(bodies: Bodies) -> Any:
    return await taken(bodies, bodies.map().astream(bodies.items))


async def stream_unordered(bodies: Bodies) -> Any:
    return await taken(bodies, bodies.map().astream(flow_of(bodies.items), ordered=False))


async def stream_in_sync_task(bodies: Bodies) -> Any:
    made = bodies.map()
    found: list[Any] = []

    @weft.task
    def body(value: int) -> Any:
        for each in made.stream((each for each in bodies.items), ordered=False):
            found.append(each)

    try:
        await weft.entrypoint()(one_task(body)).ainvoke(INPUT)
    except ParallelExecutionError as error:
        error.found = found  # type: ignore[attr-defined]
        raise
    return found


async def taken(bodies: Bodies, stream: AsyncIterator[Any]) -> list[Any]:
    found = []
    try:
        async for each in stream:
            found.append(each)
    except ParallelExecutionError as error:
        error.found = found  # type: ignore[attr-defined]
        raise
    return found


async def flow_of(items: list[int]) -> AsyncIterator[int]:
    for item in items:
        yield item


def unnamed(found: Any) -> Any:
    """The result of a `parallel` without its keys, which are in declared order."""
    if not isinstance(found, dict):
        return found
    numbers = [int(name.removeprefix("b")) for name in found]
    assert numbers == sorted(numbers)
    return list(found.values())


def nothing_at_work(bodies: Bodies) -> None:
    """When a body sees the outcome of a block, what the block has begun has ended, or was given up."""
    for index in bodies.at_work:
        branch = bodies.case.branches[index]
        assert not branch.is_async
        assert bodies.started[index] + branch.seconds >= bodies.now()


PARALLEL = [parallel, nested, in_async_task, in_sync_task]
MAPS = [map_list, map_generator, map_async_generator, map_in_sync_task]
STREAMS = [stream_ordered, stream_unordered, stream_in_sync_task]


# The cases


@st.composite
def cases(draw: Any, *, is_mixed: bool) -> Case:
    """``is_mixed``: sync and async branches in one block."""
    count = draw(st.integers(1, 6))
    # No two sums of some of these are equal, so no two branches end at one moment.
    lengths = draw(st.permutations([2.0**power / 8 for power in range(count + 2)]))
    kind = draw(st.booleans())
    branches = tuple(
        Branch(
            lengths[at],
            fails=draw(st.booleans()),
            is_async=draw(st.booleans()) if is_mixed else kind,
            is_polite=draw(st.booleans()),
        )
        for at in range(count)
    )
    policy = draw(
        st.one_of(
            st.sampled_from([("fail_fast", None), ("collect", None), ("race", None)]),
            st.tuples(st.just("count"), st.integers(0, count)),
            st.tuples(st.just("ratio"), st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.7])),
            st.tuples(st.just("need"), st.integers(1, count)),
        )
    )
    return Case(branches, policy, draw(st.one_of(st.none(), st.integers(1, 4))))


@dataclass
class Found:
    value: Any = None
    error: ParallelExecutionError | None = None
    seen: float = 0.0


def really(case: Case, style: Any) -> tuple[Bodies, Found]:
    """Run it, and look that nothing is left."""
    bodies, found = Bodies(case), Found()

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        bodies.now = loop.time
        try:
            found.value = await style(bodies)
        except ParallelExecutionError as error:
            found.error = error
        found.seen = loop.time()
        began = dict(bodies.started)
        assert not any(case.branches[index].is_async for index in bodies.at_work)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.sleep(100)
        assert bodies.started == began  # nothing starts after the decision
        assert not bodies.at_work
        assert not loop.weft_clock.baton.has_bodies

    run(main())
    return bodies, found


def check(case: Case, model: Expected, bodies: Bodies, found: Found) -> None:
    """Everything but the value of a success."""
    assert bodies.started == model.started
    assert found.seen == model.seen
    assert bodies.most <= (case.width or len(case.branches))
    running = {index for index in model.started if index not in model.ended}
    assert bodies.stopped >= {index for index in running if case.branches[index].is_async}
    late = {i for i in running if model.started[i] + case.branches[i].seconds > model.decided + STEP}
    assert bodies.stopped >= {index for index in late if case.branches[index].is_polite}
    assert bodies.stopped <= running
    assert (found.error is None) == model.succeeds
    if found.error is not None:
        bad = sorted(index for index in model.ended if case.branches[index].fails)
        names = [int(str(name).removeprefix("b")) for name in found.error.branches]
        assert names == bad
        assert [each.args for each in found.error.exceptions] == [(index,) for index in bad]
        assert found.error.__cause__ is found.error.exceptions[0]


def right_outcome(case: Case, model: Expected, index: int, outcome: Any) -> bool:
    if index not in model.started:
        return isinstance(outcome, NotStarted)
    if index not in model.ended:
        return isinstance(outcome, Cancelled)
    if case.branches[index].fails:
        return isinstance(outcome, Failed) and outcome.error.args == (index,)
    return bool(outcome == Ok(f"{index} of {INPUT}"))


def values_of(case: Case, model: Expected) -> list[str]:
    """What succeeded, in order of time."""
    return [f"{index} of {INPUT}" for index in model.ended if not case.branches[index].fails]


def check_value(case: Case, model: Expected, found: Any, *, is_lazy: bool) -> None:
    if case.policy[0] == "race":
        assert found == values_of(case, model)[0]
    elif case.policy[0] == "fail_fast":
        assert found == [f"{index} of {INPUT}" for index in range(len(case.branches))]
    else:
        # Of a source that is not read to its end nobody knows how many items are left.
        assert len(found) == len(case.branches) or (is_lazy and len(found) >= len(model.started))
        assert all(right_outcome(case, model, index, each) for index, each in enumerate(found))


@pytest.mark.parametrize("style", PARALLEL)
@given(cases(is_mixed=True))
@settings(max_examples=100, deadline=None)
def test_parallel_does_what_the_model_says(style: Any, case: Case):
    model = expected(case, is_lazy=False)
    bodies, found = really(case, style)
    check(case, model, bodies, found)
    if found.error is None:
        check_value(case, model, found.value, is_lazy=False)


@pytest.mark.parametrize("style", MAPS)
@given(cases(is_mixed=False))
@settings(max_examples=100, deadline=None)
def test_map_does_what_the_model_says(style: Any, case: Case):
    model = expected(case, is_lazy=style is map_generator)  # the others read ahead
    bodies, found = really(case, style)
    check(case, model, bodies, found)
    if found.error is None:
        check_value(case, model, found.value, is_lazy=style is not map_list)


@pytest.mark.parametrize("style", STREAMS)
@given(cases(is_mixed=False))
@settings(max_examples=100, deadline=None)
def test_streams_give_what_the_model_says(style: Any, case: Case):
    model = expected(case, is_lazy=False)
    bodies, found = really(case, style)
    check(case, model, bodies, found)
    results = found.value if found.error is None else found.error.found  # type: ignore[attr-defined]
    given_ = [i for i in model.ended if case.gives_outcomes or not case.branches[i].fails]
    if style is not stream_ordered:
        assert [index for index, _ in results] == given_
        results = [result for _, result in results]
    elif found.error is None:
        given_ = given_ if case.policy[0] == "race" else sorted(given_)
    else:  # what waited for one before it, which has no result, is not given
        given_ = [at for at in range(len(case.branches)) if set(range(at + 1)) <= set(given_)]
    assert len(results) == len(given_)
    for index, result in zip(given_, results, strict=True):
        if case.gives_outcomes:
            assert right_outcome(case, model, index, result)
        else:
            assert result == f"{index} of {INPUT}"


@pytest.mark.parametrize("style", ["parallel", "map", "stream"])
@given(cases(is_mixed=False))
@settings(max_examples=60, deadline=None)
def test_from_sync_code_too(style: str, case: Case):
    model = expected(case, is_lazy=False)
    bodies = Bodies(case)
    value = error = None
    with virtual_clock() as clock:
        bodies.now = lambda: clock.now
        try:
            if style == "parallel":
                value = unnamed(bodies.parallel().invoke(INPUT))
            elif style == "map":
                value = bodies.map().invoke(bodies.items)
            else:
                value = list(bodies.map().stream(bodies.items, ordered=False))
        except ParallelExecutionError as caught:
            error = caught
        began = dict(bodies.started)
        sleep(100)
        assert not bodies.at_work
    assert began == bodies.started == model.started
    assert bodies.most <= (case.width or len(case.branches))
    assert (error is None) == model.succeeds
    if error is not None:
        bad = sorted(index for index in model.ended if case.branches[index].fails)
        assert [each.args for each in error.exceptions] == [(index,) for index in bad]
    elif style != "stream":
        check_value(case, model, value, is_lazy=False)


def test_the_model_itself():
    """Three at once, the second fails at 2 s; of a block that needs two the fourth is never started."""
    lengths = (4.0, 2.0, 1.0, 0.5)
    branches = tuple(Branch(each, each == 2.0, True, False) for each in lengths)
    found = expected(Case(branches, ("fail_fast", None), 2), is_lazy=False)
    assert (found.succeeds, found.decided, found.started) == (False, 2.0, {0: 0.0, 1: 0.0})
    found = expected(Case(branches, ("need", 2), 3), is_lazy=False)
    assert (found.succeeds, found.decided) == (True, 1.5)
    assert (found.started, found.ended) == ({0: 0.0, 1: 0.0, 2: 0.0, 3: 1.0}, [2, 3])
    found = expected(Case(branches, ("collect", None), 1), is_lazy=True)
    assert (found.succeeds, found.decided, found.ended) == (True, 7.5, [0, 1, 2, 3])
    slow = Branch(8.0, False, False, False)
    found = expected(Case((*branches[:2], slow), ("fail_fast", None), None), is_lazy=False)
    assert (found.decided, found.seen) == (2.0, 3.0)
