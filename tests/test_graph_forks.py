"""Forks with options against a model that works out by hand what starts when and what becomes of it; virtual time.

A fork here is an opener, branches of steps and of further forks, and a join. All durations are different, so that no
two things happen at once which are not cause and effect.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from graph_making import shown
from killing import seeded

from weft import (
    Graph,
    InMemorySaver,
    ParallelExecutionError,
    ParallelTimeoutError,
    WeftError,
    node,
    router,
    tolerate,
)
from weft.testing import run, sleep

# What they look like


class Boom(Exception):
    pass


@dataclass
class Step:
    name: str
    seconds: float
    fails: bool = False
    is_sync: bool = False


@dataclass
class Fork:
    """Each branch begins with a step."""

    opener: Step
    branches: list[list[Step | Fork]]
    join: Step
    policy: str = "fail_fast"
    count: int = 0  # that the policy tolerates or needs
    width: int | None = None
    timeout: float | None = None

    @property
    def options(self):
        found = {"max_concurrent": self.width, "timeout": self.timeout}
        if self.policy == "need":
            return {**found, "need": self.count}
        return {**found, "on_error": tolerate(count=self.count) if self.policy == "tolerate" else self.policy}


POLICIES = ["fail_fast", "collect", "tolerate", "need", "race"]


def fork_of(luck, name, depth, unlucky, *, stops=True):
    """A random fork, with others in it; of one that never stops anything, half of the steps are sync."""

    def step(own):
        is_sync = not stops and luck.random() < 0.5
        return Step(own, 0.1 + luck.random(), luck.random() < unlucky, is_sync)

    branches = []
    for number in range(luck.randint(2, 4)):
        own = f"{name}.{number}"
        items = [step(f"{own}a")]
        for place in range(luck.choice([0, 0, 1, 2])):
            if depth and luck.random() < 0.6:
                items.append(fork_of(luck, f"{own}f{place}", depth - 1, unlucky, stops=stops))
            else:
                items.append(step(f"{own}s{place}"))
        branches.append(items)
    policy = luck.choice(POLICIES) if stops else "collect"
    count = luck.randint(1, len(branches)) if policy == "need" else luck.randint(0, 2)
    opener, join = step(f"{name}<"), step(f"{name}>")
    width = luck.choice([None, None, 1, 2, 3])
    timeout = luck.choice([None, None, None, 1.0, 2.0, 4.0]) if stops else None
    if timeout is not None:
        timeout += luck.random()
    return Fork(opener, branches, join, policy, count, width, timeout)


# The model


@dataclass
class Came:
    """What has become of something: when, what it wrote or why not, and when each step in it was started."""

    at: float
    writes: dict = field(default_factory=dict)
    error: BaseException | None = None
    starts: list = field(default_factory=list)


def steps_came(items, at):
    """A branch, which nobody stops, and which begins now."""
    came = Came(at)
    for item in items:
        parts = [item] if isinstance(item, Step) else [item.opener, item, item.join]
        for part in parts:
            if isinstance(part, Fork):
                inner = fork_came(part, came.at)
                came.starts += inner.starts
            else:
                came.starts.append((came.at, part.name))
                inner = Came(
                    came.at + part.seconds, {f"{part.name}!": 1}, Boom(part.name) if part.fails else None
                )
            came.at, came.error = inner.at, inner.error
            if came.error is not None:
                return came
            came.writes |= inner.writes
    return came


def fork_came(fork, at):
    """The branches of a fork, from when its opener has ended."""
    waiting, running, ended = [*enumerate(fork.branches)], [], {}
    latest = at + fork.timeout if fork.timeout is not None else float("inf")
    begun = {}
    now = at
    while waiting or running:
        while waiting and (fork.width is None or len(running) < fork.width):
            number, items = waiting.pop(0)
            begun[number] = steps_came(items, now)
            heapq.heappush(running, (begun[number].at, number))
        now, number = heapq.heappop(running)
        if now > latest:
            return stopped(
                begun, latest, ParallelTimeoutError("the fork", timeout=0, elapsed=0, unfinished=[])
            )
        ended[number] = begun[number]
        failed = {n: each for n, each in ended.items() if each.error is not None}
        oks, total = len(ended) - len(failed), len(fork.branches)
        if fork.policy == "fail_fast" and failed:
            return stopped(begun, now, ended[number].error)
        most = {"tolerate": fork.count, "need": total - fork.count, "race": total - 1}.get(fork.policy, total)
        if len(failed) > most:
            names = {fork.branches[n][0].name: each.error for n, each in sorted(failed.items())}
            return stopped(begun, now, ParallelExecutionError("the fork", names))
        if (fork.policy, oks) in (("need", fork.count), ("race", 1)):
            break
    came = stopped(begun, now)
    for n, each in ended.items():
        if each.error is None:
            came.writes |= each.writes
        elif fork.policy != "race":
            came.writes[fork.branches[n][0].name] = repr(told(each.error))
    return came


def stopped(begun, at, error=None):
    """Nothing in it starts from now on."""
    starts = [start for each in begun.values() for start in each.starts if start[0] < at]
    return Came(at, {}, error, starts)


def told(error):
    """An error as what can be compared."""
    if isinstance(error, ParallelExecutionError):
        return ("failed", {name: told(each) for name, each in error.failures.items()})
    if isinstance(error, ParallelTimeoutError):
        return ("out of time",)
    return (type(error).__name__, str(error))


# The same on the engine


class World:
    """What steps have done."""

    def __init__(self):
        self.starts = []
        self.running = Counter()

    @contextmanager
    def at_work(self, step):
        self.starts.append((self.loop.time(), step.name))
        self.running[step.name] += 1
        try:
            yield
            if step.fails:
                raise Boom(step.name)
        finally:
            self.running[step.name] -= 1

    def node(self, step):
        async def body():
            with self.at_work(step):
                await asyncio.sleep(step.seconds)
            return {f"{step.name}!": 1}

        def sync_body():
            with self.at_work(step):
                sleep(step.seconds)
            return {f"{step.name}!": 1}

        return node(name=step.name)(sync_body if step.is_sync else body)

    def graph(self, fork):
        made = Graph()
        made.add_node(self.node(fork.opener), start=True)
        self._add_fork(made, fork)
        return made.set_end_node(fork.join.name)

    def _add_fork(self, made, fork):
        """All but its opener, which is there."""
        firsts, lasts = [], []
        for items in fork.branches:
            made.add_node(self.node(items[0]))
            last = items[0].name
            firsts.append(last)
            for item in items[1:]:
                first = item if isinstance(item, Step) else item.opener
                made.add_node(self.node(first)).add_edge(last, first.name)
                last = first.name
                if isinstance(item, Fork):
                    self._add_fork(made, item)
                    last = item.join.name
            lasts.append(last)
        made.add_node(self.node(fork.join)).add_join(lasts, fork.join.name)
        made.add_parallel(fork.opener.name, firsts, **fork.options)


def compared(writes):
    return {
        key: repr(told(value.error)) if hasattr(value, "error") else value for key, value in writes.items()
    }


def drawn(seed, *, stops=True):
    luck = random.Random(seed)
    return fork_of(luck, "f", 2, luck.choice([0, 0.15]), stops=stops)


def check(seed, *, stops=True, **options):
    fork = drawn(seed, stops=stops)
    world = World()
    made = world.graph(fork)
    made.compile()

    async def main():
        world.loop = asyncio.get_running_loop()
        result = error = None
        try:
            result = await made.ainvoke({}, **options)
        except (Boom, ParallelExecutionError, ParallelTimeoutError) as raised:
            error = raised
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result, error, world.loop.time()

    result, error, now = run(main, seed=seed)
    wanted = steps_came([fork], 0.0)
    assert not +world.running, "left running"
    assert [name for _, name in sorted(world.starts)] == [name for _, name in sorted(wanted.starts)]
    assert [at for at, _ in sorted(world.starts)] == pytest.approx([at for at, _ in sorted(wanted.starts)])
    assert now == pytest.approx(wanted.at)
    assert (error and told(error)) == (wanted.error and told(wanted.error))
    if wanted.error is None:
        assert compared(result) == wanted.writes
    return type(wanted.error).__name__, fork.policy


KINDS = {
    "async": (800, {}),
    "async, recorded": (400, {"is_durable": True}),
    "sync and async": (300, {"stops": False}),
    "sync and async, recorded": (150, {"stops": False, "is_durable": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_random_forks_do_what_the_model_says(kind):
    rng = seeded(f"forks, {kind}")
    count, options = KINDS[kind]
    stops = options.get("stops", True)
    ends = Counter()
    alone = os.environ.get("WEFT_GRAPH")
    for _ in range(1 if alone else count):
        seed = int(alone or rng.randrange(2**32))
        store = {"checkpointer": InMemorySaver(), "run_id": "r"} if options.get("is_durable") else {}
        try:
            ends[check(seed, stops=stops, **store)] += 1
        except BaseException as error:
            error.add_note(f"WEFT_GRAPH={seed} {drawn(seed, stops=stops)}")
            raise
    print(ends)
    assert alone or len(ends) > 10 * stops


# Cases


def step(name, seconds=0.0, *, fails=False):
    async def body():
        await asyncio.sleep(seconds)
        if fails:
            raise Boom(name)
        return {f"{name}!": 1}

    return node(name=name)(body)


def graph_of(*nodes, joins=()):
    """The first is the start, the last is the end."""
    made = Graph()
    for part in nodes:
        made.add_node(part, start=part is nodes[0], end=part is nodes[-1])
    return made


def test_more_needed_than_there_are():
    made = graph_of(step("s"), step("a"), step("e"))
    made.add_parallel("s", ["a"], need=2).add_join(["a"], "e")
    with pytest.raises(WeftError) as caught:
        run(lambda: made.ainvoke({}))
    for word in ("'s'", "2", "1"):
        assert word in str(caught.value)


@pytest.mark.parametrize("count", [1, 2])
def test_a_fork_of_one_branch(count):
    """A list of branches may happen to have one in it: it goes as with two."""
    firsts, lasts = [f"a{n}" for n in range(count)], [f"b{n}" for n in range(count)]
    made = graph_of(
        step("s"),
        step("a0", 1, fails=True),
        *map(step, firsts[1:]),
        *(step(name, 1) for name in lasts),
        step("e", 5),
    )
    made.add_parallel("s", firsts, on_error="collect", timeout=3)
    for first, last in zip(firsts, lasts, strict=True):
        made.add_edge(first, last)
    made.add_join(lasts, "e").compile()
    result = run(lambda: made.ainvoke({}))
    assert shown(result)["a0"] == "Boom('a0')"
    assert (result["s!"], result["e!"]) == (1, 1)


@pytest.mark.parametrize("options", [{"timeout": 50}, {"on_error": "race"}], ids=["timeout", "race"])
def test_what_has_arrived_of_a_branch_that_fails_later_does_not_count(options):
    """Also when the branch goes on in a fork with options that a router has taken one way of."""

    @router(name="r")
    async def r():
        return {"choices": ["c"]}

    made = graph_of(*(step(name, 1) for name in "soxbcd"), step("boom", 9, fails=True), step("j", 1))
    made.add_node(r)
    made.add_parallel("s", ["b", "o"], on_error="collect")
    made.add_router(["b"], r, ["c", "x"], **options)
    made.add_parallel("c", ["d", "boom"])
    made.add_join(["d", "boom", "o", "x"], "j").compile()
    result = run(lambda: made.ainvoke({}))
    assert "d!" not in result
    assert (result["o!"], result["j!"]) == (1, 1)
