"""Run random trees of nested blocks on virtual time, and look whether what is promised of every tree holds.

    python scripts/block_trees.py --trees 10000 [--seed N] [--start K]
    python scripts/block_trees.py --only SEED         one tree again, with its description

A tree is blocks, maps, pipelines, sequences, loops, decisions and tasks that call all of these, with failures,
retries, timeouts, cancels, limits, widths, and bodies that do not care to be stopped. One number gives one tree and
one log. What is looked at, from inside the bodies and never in the engine's own books:

- it ends: nothing stands still, and nothing goes round without end;
- no width, limit or rate is ever exceeded, and all limits are free at the end;
- nothing is left but what `Run.given_up` lists, also where a body inside the tree has caught an error;
- nothing begins after the error is visible, and whoever goes on all the same is refused by the engine;
- nobody works past a deadline;
- the answer is the one that a reference interpreter gives, wherever time cannot change it;
- with a journal: a run that was cancelled, has failed, has crashed or was taken over, any number of times, gives the
  answer of one that was not, and what had finished does not run again.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import logging
import random
import re
import sys
import threading
import time
import traceback
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import weft
from weft import Failed, InMemorySaver, Limit, NodeTimeoutError, Ok, RetryPolicy, TimedOut
from weft.engine.call import Call
from weft.engine.context import current
from weft.engine.portal import stand_in
from weft.engine.states import State
from weft.testing import sleep

ALWAYS = 99  # attempts that fail
HEALS = 98  # it fails in every life of the run but the last
MOST_HEALS = 12  # lives after that, until all that failed has been tried again

#: Turns of the loop after which a tree is taken to go round without end.
MOST_ROUNDS = 50_000

#: Real seconds after which a run from sync code is taken to stand still.
PATIENCE = 10.0

#: Virtual seconds after which every body has come to its end, stopped or not.
LONG = 200.0


class Boom(Exception):  # noqa: N818 - it is no error of ours
    """What bodies raise."""

    def __init__(self, name: str, retry_after: float | None = None) -> None:
        super().__init__(name, retry_after)
        self.retry_after = retry_after


def digest(*parts: object) -> int:
    """A number that depends on all of these."""
    return zlib.crc32(repr(parts).encode())


# Trees


@dataclass(frozen=True)
class Body:
    """What all that has a body of its own may be given."""

    name: str
    is_async: bool = True
    naps: tuple[float, ...] = ()  # seconds; between two of them a sync body looks whether it is cancelled
    fails: int = 0  # attempts that fail
    picky: int = 100  # percent of the values with which they do
    attempts: int = 1
    wait: float = 0.0  # before the next attempt
    timeout: float | None = None
    total: float | None = None
    limits: tuple[int, ...] = ()
    stubborn: float = 0.0  # seconds for which it goes on when it is stopped
    last: str = "raise"  # what it does then, if it is async: or "return", "fail"
    pauses: float = 0.0  # its error asks for so many seconds without anybody on its limits


@dataclass(frozen=True)
class Leaf(Body):
    is_task: bool = True


@dataclass(frozen=True)
class Caller(Body):
    """A task whose body calls the parts."""

    parts: tuple[Any, ...] = ()
    way: str = "await"
    catches: bool = False


@dataclass(frozen=True)
class Block:
    name: str
    parts: tuple[Any, ...]
    policy: tuple[str, Any] = ("fail_fast", None)
    width: int | None = None
    optimize: bool = True
    timeout: float | None = None
    total: float | None = None
    attempts: int = 1


@dataclass(frozen=True)
class Each:
    """The same for every item. ``way`` is how it is written, ``source`` what the items come from."""

    name: str
    parts: tuple[Any, ...]  # several: stages of a pipeline
    count: int = 2
    way: str = "step"
    source: str = "list"
    policy: tuple[str, Any] = ("fail_fast", None)
    width: int | None = None
    optimize: bool = True
    timeout: float | None = None
    leaves: bool = False  # a stream after its first result


@dataclass(frozen=True)
class Row:
    name: str
    parts: tuple[Any, ...]
    timeout: float | None = None
    attempts: int = 1


@dataclass(frozen=True)
class Loop:
    """A sequence with a decision that goes back, or on."""

    name: str
    parts: tuple[Any, ...]  # the head, and what comes after it
    is_async: bool = True


@dataclass(frozen=True)
class Choice:
    name: str
    parts: tuple[Any, ...]
    is_async: bool = True


Tree = Leaf | Caller | Block | Each | Row | Loop | Choice


@dataclass(frozen=True)
class Life:
    """How one execution of a run goes: ``end`` says what interrupts it at the moment ``at``, if anything."""

    end: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class OneRun:
    tree: Tree
    entry: str = "submit"  # or "ainvoke", "invoke"
    root: str = ""  # or "async", "sync": in an entrypoint of that kind
    width: int | None = None
    limits: tuple[int, ...] = ()
    timeout: float | None = None
    durability: str = "sync"
    lives: tuple[Life, ...] = (Life(),)


@dataclass(frozen=True)
class Plan:
    """Everything that one number decides."""

    seed: int
    runs: tuple[OneRun, ...]
    limits: tuple[tuple[int | None, tuple[int, float] | None], ...]
    is_sync: bool  # how it is entered
    is_journaled: bool


# Drawing them


class Draw:
    """Draws a plan."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"block trees {seed}")
        self.seed = seed
        self.names = 0
        chance = self.rng.random
        self.is_journaled = chance() < 0.35
        self.has_time = chance() < (0.15 if self.is_journaled else 0.5)
        self.has_failures = chance() < 0.6
        self.has_stubborn = chance() < 0.4
        self.is_strict = chance() < 0.4  # nothing is caught, so every answer there is is the only one
        self.heals = self.is_journaled and self.is_strict and self.has_failures and chance() < 0.7
        self.exact = chance() < 0.6  # moments are likely to coincide
        self.limits = tuple(self.limit() for _ in range(self.rng.choice([0, 0, 1, 2, 3])))

    def plan(self) -> Plan:
        count = self.rng.choice([1, 1, 1, 2, 3]) if self.limits else self.rng.choice([1, 1, 1, 1, 2])
        is_sync = self.rng.random() < 0.25
        runs = tuple(self.run(is_sync=is_sync) for _ in range(count))
        return Plan(self.seed, runs, self.limits, is_sync, self.is_journaled)

    def limit(self) -> tuple[int | None, tuple[int, float] | None]:
        concurrent = self.rng.choice([1, 1, 2, 3, None])
        rate = (self.rng.randint(1, 3), self.rng.choice([0.5, 1.0, 3.0]))
        return concurrent, rate if concurrent is None or self.rng.random() < 0.2 else None

    def name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names}"

    def seconds(self) -> float:
        if self.exact:
            return self.rng.choice([0.0, 0.1, 0.5, 0.5, 1.0, 2.0])
        return self.rng.choice([self.rng.uniform(0, 0.1), self.rng.uniform(0, 1), self.rng.uniform(0, 4)])

    def some(self, chance: float, draw: Callable[[], Any]) -> Any:
        return draw() if self.rng.random() < chance else None

    def width(self) -> int | None:
        return self.some(0.6, lambda: self.rng.choice([1, 1, 2, 3]))

    def timeout(self, chance: float = 0.15) -> float | None:
        if not self.has_time:
            return None
        return self.some(chance, lambda: max(0.05, self.seconds()))

    def attempts(self) -> int:
        return self.some(0.15, lambda: 2) or 1

    def policy(self, count: int) -> tuple[str, Any]:
        if self.is_strict or self.rng.random() < 0.45:
            return "fail_fast", None
        kind = self.rng.choice(["collect", "count", "ratio", "need", "race"])
        number = {
            "count": self.rng.randint(0, count),
            "ratio": self.rng.choice([0.0, 0.25, 0.5, 0.7]),
            "need": self.rng.randint(1, count),
        }
        return kind, number.get(kind)

    def body(self, *, naps: int = 2) -> dict[str, Any]:
        rng = self.rng
        fails = 0
        if self.has_failures and rng.random() < 0.2:
            fails = HEALS if self.heals else rng.choice([1, 1, 2, ALWAYS])
        return {
            "is_async": rng.random() < 0.7,
            "naps": tuple(self.seconds() for _ in range(rng.randint(0, naps))),
            "fails": fails,
            "picky": rng.choice([100, 50, 20]),
            "attempts": rng.choice([1, 1, 1, 2, 3]),
            "wait": rng.choice([0.0, 0.5]),
            "timeout": self.timeout(),
            "total": self.timeout(0.05),
            "limits": tuple(at for at in range(len(self.limits)) if rng.random() < 0.4),
            "stubborn": rng.choice([0.3, 1.0, 3.0]) if self.has_stubborn and rng.random() < 0.3 else 0.0,
            "last": rng.choice(["raise", "raise", "return", "fail"]),
            "pauses": rng.choice([0.7, 2.0]) if rng.random() < 0.1 else 0.0,
        }

    def run(self, *, is_sync: bool) -> OneRun:
        rng = self.rng
        tree = self.tree(rng.choice([1, 2, 2, 3, 3, 4]), budget=[rng.choice([4, 8, 16, 24])])
        entry = rng.choice(["submit", "invoke"] if is_sync else ["submit", "ainvoke"])
        lives = [self.life() for _ in range(rng.choice([1, 1, 2, 3]))] if self.is_journaled else []
        if not self.is_journaled and entry != "invoke" and rng.random() < 0.25:
            lives = [replace(self.life(), end="cancel")]
        elif self.is_journaled and entry == "invoke":
            lives = [replace(each, end="crash") for each in lives]
        if self.is_journaled or not lives:
            lives.append(Life())
        keeps = not any(each.end in {"crash", "taken"} for each in lives)  # what is written at the exit
        return OneRun(
            tree=tree,
            entry=entry,
            root=rng.choice(["", "", "async", "sync"]),
            width=self.some(0.4, lambda: rng.randint(1, 3)),
            limits=tuple(at for at in range(len(self.limits)) if rng.random() < 0.1),
            timeout=self.timeout(0.3),
            durability=rng.choice(["sync", "sync", "async", "exit"] if keeps else ["sync", "sync", "async"]),
            lives=tuple(lives),
        )

    def life(self) -> Life:
        return Life(self.rng.choice(["cancel", "crash", "crash", "timeout", "taken"]), self.seconds() + 0.05)

    def tree(self, depth: int, budget: list[int]) -> Tree:
        budget[0] -= 1
        if depth == 0 or budget[0] <= 0:
            return self.leaf()
        kinds = [
            "leaf",
            "block",
            "block",
            "block",
            "each",
            "each",
            "row",
            "row",
            "loop",
            "choice",
            "caller",
            "caller",
        ]
        return getattr(self, self.rng.choice(kinds))(depth, budget)  # type: ignore[no-any-return]

    def parts(self, depth: int, budget: list[int], most: int = 4) -> tuple[Any, ...]:
        return tuple(self.tree(depth - 1, budget) for _ in range(self.rng.randint(1, most)))

    def leaf(self, *_: Any) -> Leaf:
        return Leaf(self.name("leaf"), **self.body(), is_task=self.rng.random() < 0.5)

    def caller(self, depth: int, budget: list[int]) -> Caller:
        body = self.body(naps=1)
        ways = ["await", "gather", "completed", "wait", "first", "group", "cancel"]
        if not body["is_async"]:
            ways = ["await", "completed", "wait", "first", "invoke"]
        return Caller(
            self.name("caller"),
            **{**body, "attempts": self.attempts()},
            parts=self.parts(depth, budget, 3),
            way=self.rng.choice(ways if not self.is_strict else ways[:3]),
            catches=not self.is_strict and self.rng.random() < 0.3,
        )

    def block(self, depth: int, budget: list[int]) -> Block:
        parts = self.parts(depth, budget)
        return Block(
            self.name("block"),
            parts,
            policy=self.policy(len(parts)),
            width=self.width(),
            optimize=self.rng.random() < 0.5,
            timeout=self.timeout(),
            total=self.timeout(0.05),
            attempts=self.attempts(),
        )

    def each(self, depth: int, budget: list[int]) -> Each:
        count = self.rng.randint(1, 4)
        is_pipeline = self.rng.random() < 0.2
        part = self.tree(depth - 1, budget)
        way = self.rng.choice(["step", "amap", "map", "stream", "astream"])
        sources = ["list", "generator"] if way in {"map", "stream"} else ["list", "generator", "async"]
        while is_pipeline and isinstance(part, Choice):
            part = self.leaf()
        leaves = way in {"stream", "astream"} and not self.has_failures and self.rng.random() < 0.3
        return Each(
            self.name("each"),
            (part, self.leaf()) if is_pipeline else (part,),
            count=count,
            way=way,
            source="list" if way == "step" else self.rng.choice(sources),
            policy=("fail_fast", None) if leaves else self.policy(count),
            width=self.width(),
            optimize=self.rng.random() < 0.5,
            timeout=self.timeout(),
            leaves=leaves,
        )

    def row(self, depth: int, budget: list[int]) -> Row:
        return Row(
            self.name("row"), self.parts(depth, budget), timeout=self.timeout(), attempts=self.attempts()
        )

    def loop(self, depth: int, budget: list[int]) -> Loop:
        head = self.caller(
            depth, budget
        )  # what it gives depends on what it gets, or the loop would have no end
        return Loop(self.name("loop"), (head, self.leaf()), is_async=self.rng.random() < 0.5)

    def choice(self, depth: int, budget: list[int]) -> Choice:
        return Choice(self.name("choice"), self.parts(depth, budget, 3), is_async=self.rng.random() < 0.5)


# The reference: what a tree gives, as long as nothing is cut short


class Fails(Exception):  # noqa: N818 - as above
    """The tree fails."""


def goes_back(value: Any) -> bool:
    """Whether the decision of a loop goes back."""
    return digest("back", value) % 3 == 0


def chosen(tree: Choice, value: Any) -> Any:
    """What a decision takes."""
    return tree.parts[digest("choice", value) % len(tree.parts)]


def fails_with(body: Body, value: Any) -> int:
    """How many attempts fail with this value."""
    return body.fails if digest("fails", body.name, value) % 100 < body.picky else 0


def verdict(policy: tuple[str, Any], outcomes: list[Any]) -> Any:
    """What becomes of a block; an outcome is a value, or Fails."""
    kind, number = policy
    failed = sum(each is Fails for each in outcomes)
    most = {
        "fail_fast": 0,
        "collect": len(outcomes),
        "count": number,
        "ratio": (number or 0) * len(outcomes),
        "need": len(outcomes) - (number or 0),
        "race": len(outcomes) - 1,
    }[kind]
    if failed > most:
        raise Fails
    if kind in {"need", "race"}:
        return kind
    return [("bad",) if each is Fails else ("ok", each) for each in outcomes]


class Reference:
    """What a tree gives. ``heals``: as in the last life."""

    def __init__(self, *, heals: bool = True, ignore_failures: bool = False) -> None:
        self.heals = heals
        self.ignore_failures = ignore_failures
        self.asked: Counter[Any] = Counter()  # how often a leaf gets a value

    def __call__(self, tree: Tree, value: Any) -> Any:
        return getattr(self, type(tree).__name__.lower())(tree, value)

    def outcome(self, tree: Tree, value: Any) -> Any:
        try:
            return self(tree, value)
        except Fails:
            return Fails

    def end(self, body: Body, value: Any) -> None:
        fails = fails_with(body, value)
        if not self.ignore_failures and fails >= body.attempts and (fails != HEALS or not self.heals):
            raise Fails

    def leaf(self, tree: Leaf, value: Any) -> Any:
        self.asked[tree.name, digest(value)] += 1
        self.end(tree, value)
        return digest(tree.name, value)

    def caller(self, tree: Caller, value: Any) -> Any:
        outcomes = [self.outcome(part, digest(value, at)) for at, part in enumerate(tree.parts)]
        self.end(tree, value)
        if tree.way == "first":
            return digest(tree.name, value, "first")
        if tree.way == "cancel":
            outcomes[-1] = "cancelled"
        if Fails in outcomes and not tree.catches:
            raise Fails
        return digest(tree.name, value, ["caught" if each is Fails else each for each in outcomes])

    def block(self, tree: Block, value: Any) -> Any:
        outcomes = [self.outcome(part, value) for part in tree.parts]
        found = verdict(tree.policy, outcomes)
        if tree.policy[0] == "fail_fast":
            return {part.name: each for part, each in zip(tree.parts, outcomes, strict=True)}
        return found

    def each(self, tree: Each, value: Any) -> Any:
        stages = Row("", tree.parts)
        outcomes = [self.outcome(stages, item) for item in items_of(tree, value)]
        found = verdict(tree.policy, outcomes)
        if tree.leaves:
            return "left"
        return outcomes if tree.policy[0] == "fail_fast" else found

    def row(self, tree: Row, value: Any) -> Any:
        for part in tree.parts:
            value = self(part, value)
        return value

    def loop(self, tree: Loop, value: Any) -> Any:
        value = self(tree.parts[0], value)
        while goes_back(value):
            value = self(tree.parts[0], value)
        return self(tree.parts[1], value)

    def choice(self, tree: Choice, value: Any) -> Any:
        return self(chosen(tree, value), value)


def items_of(tree: Each, value: Any) -> list[int]:
    """The items that a map makes of the value that it gets."""
    return [digest(tree.name, value, at) for at in range(tree.count)]


def tidy(policy: tuple[str, Any], found: Any) -> Any:
    """What a block gives, without what only time decides."""
    kind = policy[0]
    if kind == "race":
        return kind
    outcomes = list(found.values() if isinstance(found, dict) else found)
    if kind == "need":
        enough = sum(isinstance(each, Ok) for each in outcomes) >= policy[1]
        return kind if enough else f"too few: {outcomes}"
    assert all(isinstance(each, Ok | Failed | TimedOut) for each in outcomes), outcomes
    return [("ok", each.value) if isinstance(each, Ok) else ("bad",) for each in outcomes]


def walk(tree: Any) -> Iterator[Any]:
    """All parts of a tree, and itself."""
    yield tree
    for part in getattr(tree, "parts", ()):
        yield from walk(part)


# At work


@dataclass(eq=False)
class Work:
    """An attempt of a body, while it is at work."""

    call: Call
    name: str
    run: int
    limits: tuple[int, ...]
    thread: int
    deadline: float | None
    waits: bool = False
    lends: bool = False  # its slot: it goes on beside its children
    ended: float = 0.0

    @property
    def is_given_up(self) -> bool:
        return self.thread in self.call.abandoned

    @property
    def above(self) -> Iterator[Call]:
        """The calls round it, from the inside."""
        call = self.call.parent
        while call is not None:
            yield call
            call = call.parent


class World:
    """What goes on in one life of a plan, as its bodies see it."""

    def __init__(self, plan: Plan, number: int, finished: set[Any]) -> None:
        self.plan = plan
        self.number = number
        self.problems: list[str] = []
        self.log: list[tuple[float, str, str]] = []
        self.at_work: dict[Work, None] = {}
        self.limits = [Limit(f"limit{at}", concurrent=c, rate=r) for at, (c, r) in enumerate(plan.limits)]
        self.begun: list[list[float]] = [[] for _ in self.limits]
        self.timers: list[Any] = []  # of interruptions
        self.last_ended: deque[Work] = deque(maxlen=100)
        self.over: dict[int, float] = {}
        self.cut: dict[int, float] = {}
        self.executions: dict[int, Any] = {}
        self.finished = finished  # in earlier lives
        self.returned: list[tuple[Any, Call, float]] = []
        self.widths = {
            part.name: part.width
            for one in plan.runs
            for part in walk(one.tree)
            if isinstance(part, Block | Each) and part.width is not None and len(part.parts) > 0
        }
        self.pipelines = {
            stage.name: part.width
            for one in plan.runs
            for part in walk(one.tree)
            if isinstance(part, Each) and len(part.parts) > 1 and part.width is not None
            for stage in part.parts
        }
        self.now: Callable[[], float] = lambda: 0.0
        reference = Reference()
        for run, one in enumerate(plan.runs):
            reference.outcome(one.tree, one_value(run))
        self.asked = reference.asked

    def problem(self, text: str) -> None:
        self.problems.append(f"at {self.now():g} s: {text}")

    def note(self, what: str, name: str) -> None:
        self.log.append((self.now(), what, name))

    # What bodies say

    @contextmanager
    def working(self, body: Body, run: int, value: Any) -> Iterator[Work]:
        call = current.get()
        assert call is not None
        left = weft.remaining()
        deadline = None if left is None else self.now() + left
        work = Work(call, body.name, run, body.limits, threading.get_ident(), deadline)
        self.executions.setdefault(run, call.run)
        self.note("begins", body.name)
        if run in self.over and not work.is_given_up:
            self.problem(f"{body.name} begins, and run {run} was over at {self.over[run]:g} s")
        if (body.name, digest(value)) in self.finished:
            self.problem(f"{body.name} runs again with {value}: it had finished in an earlier life")
        for at in self.limits_of(work):
            self.begun[at].append(self.now())
        self.at_work[work] = None
        self.count()
        try:
            yield work
        finally:
            del self.at_work[work]
            work.ended = self.now()
            self.last_ended.append(work)
            self.note("ends", body.name)

    def limits_of(self, work: Work) -> set[int]:
        """What it counts in. For a run's own body those of the run do not count."""
        return (
            {*work.limits} if work.call.parent is None else {*work.limits, *self.plan.runs[work.run].limits}
        )

    def count(self) -> None:
        """Look at every limit there is."""
        working = [work for work in list(self.at_work) if not work.waits]
        for at, (most, rate) in enumerate(self.plan.limits):
            using = [work.name for work in working if at in self.limits_of(work)]
            if most is not None and len(using) > most:
                self.problem(f"limit{at} is {most}, and at work are {using}")
            if rate is not None:
                recent = [t for t in self.begun[at] if t > self.now() - rate[1] + 1e-9]
                if len(recent) > rate[0]:
                    self.problem(f"limit{at} is {rate}, and begun were {recent}")
        for run, one in enumerate(self.plan.runs):
            inside = [
                w.name for w in working if w.run == run and w.call.parent is not None and not w.is_given_up
            ]
            if one.width is not None and len(inside) > one.width:
                self.problem(f"run {run} has max_concurrent={one.width}, and at work are {inside}")
        self.count_branches()

    def count_branches(self) -> None:
        blocks: dict[Call, set[Call]] = {}
        stages: dict[tuple[Call, str], set[Call]] = {}
        for work in list(self.at_work):
            if work.is_given_up:
                continue
            chain = [work.call, *work.above]
            for branch, block in pairwise(chain):
                blocks.setdefault(block, set()).add(branch)
                if branch.step.name in self.pipelines and block.parent is not None:
                    stages.setdefault((block.parent, branch.step.name), set()).add(branch)
        for block, branches in blocks.items():
            width = self.widths.get(block.step.name.removesuffix("*"))
            is_block = block.step.is_planned and block.step.name.endswith("*")
            if width is not None and is_block and len(branches) > width:
                self.problem(
                    f"{block.step.name} has max_concurrent={width}, at work are {len(branches)} branches"
                )
        for (_, name), found in stages.items():
            if len(found) > self.pipelines[name]:
                self.problem(
                    f"stage {name} has a width of {self.pipelines[name]}, at work are {len(found)} items"
                )

    def returns(self, work: Work, body: Body, value: Any) -> None:
        """A leaf is about to return."""
        if isinstance(body, Leaf):
            self.returned.append(((body.name, digest(value)), work.call, self.now()))

    def check_deadline(self, work: Work) -> None:
        if work.deadline is not None and self.now() > work.deadline + 1e-6 and not work.is_given_up:
            self.problem(f"{work.name} works, and its deadline was at {work.deadline:g} s")

    @contextmanager
    def waiting(self, work: Work) -> Iterator[None]:
        """The body waits for its children. If it is stopped meanwhile it gets no slot for what it does then."""
        work.waits = True
        try:
            yield
        except Exception:
            work.waits = work.lends
            raise
        work.waits = work.lends

    def has_no_children(self, work: Work) -> None:
        """All that the body has begun has ended: so nobody below it is at work, and it has its slot."""
        if not work.call.is_told_to_stop:
            self.nobody_below(work.call)
            self.count()

    def nobody_below(self, call: Call) -> None:
        """All that the call has begun has ended."""
        if call.is_told_to_stop:
            return  # then a thread that waits is woken at once
        for other in list(self.at_work):
            if not other.is_given_up and any(each is call for each in other.above):
                self.problem(f"{other.name} is at work, and {call.step.name} has all outcomes")

    def refused(self, body: Body, error: BaseException | None) -> None:
        if error is None:
            self.problem(f"{body.name} was stopped, and could still call a task")

    def cut_short(self, run: int) -> None:
        """An interruption of this run begins."""
        self.cut.setdefault(run, self.now())

    # At the end

    def is_over(self, run: int) -> None:
        """The outcome of the run is visible."""
        self.over[run] = self.now()
        execution = self.executions.get(run)
        given_up = [body.step for body in execution.given_up] if execution is not None else []
        for work in list(self.at_work):
            if work.run == run and not (work.is_given_up and work.name in given_up):
                self.problem(f"run {run} is over, and {work.name} is at work; given up are {given_up}")

    def check_limits(self) -> None:
        # The loop may still have to hear of those that end at this very moment.
        held = [*self.at_work, *(work for work in self.last_ended if work.ended == self.now())]
        for at, limit in enumerate(self.limits):
            holding = [work.name for work in held if at in self.limits_of(work)]
            if limit.in_use > len(holding) or limit.waiting:
                self.problem(f"{limit!r}: in use {limit.in_use} by {holding}, waiting {limit.waiting}")

    def finished_now(self) -> set[Any]:
        """What had finished when the run was cut short."""
        found = set()
        for key, call, moment in self.returned:
            run = next(at for at in range(len(self.plan.runs)) if self._owns(at, key))
            is_in_time = moment < self.cut.get(run, float("inf"))
            if is_in_time and self.asked[key] <= 1 and call.stopping is None and call.state is State.OVER:
                found.add(key)
        return found

    def _owns(self, run: int, key: Any) -> bool:
        return any(getattr(part, "name", "") == key[0] for part in walk(self.plan.runs[run].tree))


# Making workflows of trees


class Builder:
    """Makes the workflow of one run."""

    def __init__(self, world: World, run: int, *, is_last: bool) -> None:
        self.world = world
        self.run = run
        self.is_last = is_last

    def __call__(self, tree: Tree) -> Any:
        return getattr(self, type(tree).__name__.lower())(tree)

    def parts(self, tree: Any) -> list[Any]:
        return [self(part) for part in tree.parts]

    # Bodies

    def options(self, body: Body) -> dict[str, Any]:
        limits = [self.world.limits[at] for at in body.limits]
        return {
            "name": body.name,
            "timeout": body.timeout,
            "total": body.total,
            "limit": limits or None,
        }

    def retry(self, body: Body) -> Any:
        if body.attempts == 1:
            return None
        return RetryPolicy(
            max_attempts=body.attempts, initial_interval=body.wait, jitter=False, retry_on=Exception
        )

    def task(self, body: Body, fn: Any) -> Any:
        return weft.task(**self.options(body), retry_policy=self.retry(body))(fn)

    def end(self, body: Body, value: Any) -> None:
        """A body comes to its end, and may fail."""
        call = current.get()
        assert call is not None
        fails = fails_with(body, value)
        if fails == HEALS:
            fails = 0 if self.is_last else ALWAYS
        if self.attempt_of(call) <= fails:
            raise Boom(body.name, body.pauses or None)

    @staticmethod
    def attempt_of(call: Call) -> int:
        return call.attempt

    def leaf(self, tree: Leaf) -> Any:
        fn = self.async_leaf(tree) if tree.is_async else self.sync_leaf(tree)
        if tree.is_task:
            return self.task(tree, fn)
        return weft.node(**self.options(tree), retry=self.retry(tree))(fn)

    def async_leaf(self, tree: Leaf) -> Any:
        async def body(value: Any, work: Work) -> Any:
            await self.nap(tree)
            self.world.check_deadline(work)
            self.end(tree, value)
            self.world.returns(work, tree, value)
            return digest(tree.name, value)

        return self.resisting(tree, body)

    def resisting(self, tree: Body, fn: Any) -> Any:
        """A body that comes to its end in its own way when it is stopped."""

        async def body(value: Any) -> Any:
            with self.world.working(tree, self.run, value) as work:
                try:
                    return await fn(value, work)
                except asyncio.CancelledError:
                    await self.resist(tree)
                    if tree.last == "fail":
                        raise Boom(tree.name) from None
                    if tree.last == "return":
                        return "stopped"
                    raise

        return body

    def sync_leaf(self, tree: Leaf) -> Any:
        def body(value: Any) -> Any:
            with self.world.working(tree, self.run, value) as work:
                self.nap_in_thread(tree)
                self.world.check_deadline(work)
                self.end(tree, value)
                self.world.returns(work, tree, value)
                return digest(tree.name, value)

        return body

    async def nap(self, tree: Body) -> None:
        for seconds in tree.naps:
            await asyncio.sleep(seconds)

    async def resist(self, tree: Body) -> None:
        """Swallow every cancellation for a while; nothing new can be begun meanwhile."""
        if not tree.stubborn:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + tree.stubborn
        while loop.time() < until - 1e-9:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(until - loop.time())
        try:
            self.probe()(0)
        except BaseException as error:
            self.world.refused(tree, error)
        else:
            self.world.refused(tree, None)

    def nap_in_thread(self, tree: Body) -> None:
        for seconds in tree.naps:
            sleep(seconds)
            if weft.cancelled():
                self.resist_in_thread(tree)
                return

    def resist_in_thread(self, tree: Body) -> None:
        sleep(tree.stubborn)
        try:
            self.probe()(0)
        except BaseException as error:
            self.world.refused(tree, error)
            raise
        self.world.refused(tree, None)

    def probe(self) -> Any:
        """A task that nobody can begin who was stopped."""

        async def probe(_value: Any) -> None:
            self.world.problem("a task was begun by a body that was stopped")

        return weft.task(probe)

    # Bodies that call

    def caller(self, tree: Caller) -> Any:
        parts = self.parts(tree)
        return self.task(
            tree, self.async_caller(tree, parts) if tree.is_async else self.sync_caller(tree, parts)
        )

    def async_caller(self, tree: Caller, parts: list[Any]) -> Any:
        world = self.world

        async def body(value: Any, work: Work) -> Any:
            await self.nap(tree)
            with world.waiting(work):
                found = await call(value, work)
            world.check_deadline(work)
            self.end(tree, value)
            return found

        async def call(value: Any, work: Work) -> Any:
            way = getattr(self, f"async_{tree.way}")
            values = [digest(value, at) for at in range(len(parts))]
            outcomes = await way(parts, values, work, tree.catches)
            if outcomes is None:
                return digest(tree.name, value, "first")
            return digest(tree.name, value, [self.result(each, tree.catches) for each in outcomes])

        return self.resisting(tree, body)

    @staticmethod
    def result(outcome: Any, catches: bool) -> Any:
        if not isinstance(outcome, BaseException):
            return outcome
        if not catches or not isinstance(outcome, Exception):
            raise outcome
        return "caught"

    @staticmethod
    def begin(part: Any, value: Any) -> Any:
        return part(value) if isinstance(part, weft.Task) else asyncio.ensure_future(part.ainvoke(value))

    async def async_await(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        found: list[Any] = []
        for part, value in zip(parts, values, strict=True):
            try:
                found.append(await part.ainvoke(value))
            except Exception as error:
                self.world.has_no_children(work)
                if not catches:
                    raise
                found.append(error)
            else:
                self.world.has_no_children(work)
        return found

    async def async_gather(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        begun = [self.begin(part, value) for part, value in zip(parts, values, strict=True)]
        found = await asyncio.gather(*begun, return_exceptions=catches)
        self.world.has_no_children(work)
        return found

    async def async_completed(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        begun = [self.begin(part, value) for part, value in zip(parts, values, strict=True)]
        for each in asyncio.as_completed(begun):
            try:
                await each
            except Exception:
                if not catches:
                    raise
        self.world.has_no_children(work)
        return [each.exception() or each.result() for each in begun]

    async def async_wait(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        begun = [self.begin(part, value) for part, value in zip(parts, values, strict=True)]
        await asyncio.wait(begun)
        self.world.has_no_children(work)
        return [each.exception() or each.result() for each in begun]

    async def async_group(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        async def one(part: Any, value: Any) -> Any:
            try:
                return await part.ainvoke(value)
            except Exception as error:
                if not catches:
                    raise
                return error

        async with asyncio.TaskGroup() as group:
            begun = [group.create_task(one(part, value)) for part, value in zip(parts, values, strict=True)]
        self.world.has_no_children(work)
        return [each.result() for each in begun]

    async def async_first(self, parts: Any, values: Any, work: Work, catches: bool) -> None:
        """The rest is left behind."""
        begun = [self.begin(part, value) for part, value in zip(parts, values, strict=True)]
        work.lends = True
        done, _ = await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            each.exception()

    async def async_cancel(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        begun = [self.begin(part, value) for part, value in zip(parts, values, strict=True)]
        await asyncio.sleep(0.2)
        begun[-1].cancel()
        await asyncio.wait(begun)
        self.world.has_no_children(work)
        if not begun[-1].cancelled():
            begun[-1].exception()
        return [*(each.exception() or each.result() for each in begun[:-1]), "cancelled"]

    def sync_caller(self, tree: Caller, parts: list[Any]) -> Any:
        world = self.world

        def body(value: Any) -> Any:
            with world.working(tree, self.run, value) as work:
                self.nap_in_thread(tree)
                try:
                    with world.waiting(work):
                        found = call(value, work)
                except Exception:
                    raise  # not being stopped
                except BaseException:
                    self.resist_in_thread(tree)
                    raise
                if not weft.cancelled():  # else it was woken, which is when its children have ended
                    world.check_deadline(work)
                self.end(tree, value)
                return found

        def call(value: Any, work: Work) -> Any:
            way = getattr(self, f"sync_{tree.way}")
            values = [digest(value, at) for at in range(len(parts))]
            outcomes = way(parts, values, work, tree.catches)
            if outcomes is None:
                return digest(tree.name, value, "first")
            return digest(tree.name, value, [self.result(each, tree.catches) for each in outcomes])

        return body

    @staticmethod
    def begin_in_thread(part: Any, value: Any) -> Any:
        if isinstance(part, weft.Task):
            return part(value)
        future: Any = concurrent.futures.Future()
        try:
            future.set_result(part.invoke(value))
        except Exception as error:
            future.set_exception(error)
        return future

    def sync_await(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        begun = [self.begin_in_thread(part, value) for part, value in zip(parts, values, strict=True)]
        found = [each.exception() or each.result() for each in begun]
        self.world.has_no_children(work)
        return found

    def sync_invoke(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        found: list[Any] = []
        for part, value in zip(parts, values, strict=True):
            try:
                found.append(part.invoke(value))
            except Exception as error:
                found.append(error)
            self.world.has_no_children(work)
        return found

    def sync_completed(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        begun = [self.begin_in_thread(part, value) for part, value in zip(parts, values, strict=True)]
        for each in concurrent.futures.as_completed(begun):
            each.exception()
        self.world.has_no_children(work)
        return [each.exception() or each.result() for each in begun]

    def sync_wait(self, parts: Any, values: Any, work: Work, catches: bool) -> list[Any]:
        begun = [self.begin_in_thread(part, value) for part, value in zip(parts, values, strict=True)]
        concurrent.futures.wait(begun)
        self.world.has_no_children(work)
        return [each.exception() or each.result() for each in begun]

    def sync_first(self, parts: Any, values: Any, work: Work, catches: bool) -> None:
        begun = [self.begin_in_thread(part, value) for part, value in zip(parts, values, strict=True)]
        work.lends = True
        concurrent.futures.wait(begun, return_when=concurrent.futures.FIRST_COMPLETED)

    # Blocks. The name of what a block is made of ends in "*": the part that it is of the tree may be more

    def policy(self, policy: tuple[str, Any]) -> dict[str, Any]:
        kind, number = policy
        if kind == "need":
            return {"need": number}
        if kind == "ratio":  # of a source whose length is not known it would depend on the order of ending
            return {"on_error": weft.tolerate(ratio=number, at_least=1_000)}
        return {"on_error": weft.tolerate(count=number) if kind == "count" else kind}

    def tidied(self, tree: Block | Each, part: Any) -> Any:
        if tree.policy[0] == "fail_fast":
            return weft.Sequence(part, name=tree.name)

        async def tidy_up(found: Any) -> Any:
            return tidy(tree.policy, found)

        return weft.Sequence(part, weft.node(f"tidy {tree.name}")(tidy_up), name=tree.name)

    def block(self, tree: Block) -> Any:
        made = weft.parallel(
            *self.parts(tree),
            name=f"{tree.name}*",
            max_concurrent=tree.width,
            optimization_enabled=tree.optimize,
            timeout=tree.timeout,
            total=tree.total,
            retry=self.plain_retry(tree.attempts),
            **self.policy(tree.policy),
        )
        return self.tidied(tree, made)

    def plain_retry(self, attempts: int) -> Any:
        if attempts == 1:
            return None
        return RetryPolicy(max_attempts=attempts, initial_interval=0.5, jitter=False, retry_on=Exception)

    def each(self, tree: Each) -> Any:
        parts = self.parts(tree)
        options: dict[str, Any] = {"timeout": tree.timeout, **self.policy(tree.policy)}
        if len(parts) > 1:
            made = weft.pipeline(None, *parts, name=f"{tree.name}|", max_concurrent=tree.width, **options)
        else:
            made = weft.map(
                parts[0],
                name=f"{tree.name}*",
                max_concurrent=tree.width,
                optimization_enabled=tree.optimize,
                **options,
            )
        return self.tidied(tree, self.written(tree, made))

    def written(self, tree: Each, made: Any) -> Any:
        if tree.way == "step":

            async def split(value: Any) -> Any:
                return items_of(tree, value)

            return weft.node(f"split {tree.name}")(split) >> made
        return weft.task(getattr(self, f"by_{tree.way}")(tree, made), name=f"write {tree.name}")

    def source(self, tree: Each, value: Any) -> Any:
        items = items_of(tree, value)
        if tree.source == "list":
            return items
        return (item for item in items) if tree.source == "generator" else self.flow(items)

    @staticmethod
    async def flow(items: list[int]) -> AsyncIterator[int]:
        for item in items:
            await asyncio.sleep(0.1)
            yield item

    def by_amap(self, tree: Each, made: Any) -> Any:
        async def body(value: Any) -> Any:
            with self.nothing_below():
                return await made.ainvoke(self.source(tree, value))

        return body

    def by_map(self, tree: Each, made: Any) -> Any:
        def body(value: Any) -> Any:
            with self.nothing_below():
                return made.invoke(self.source(tree, value))

        return body

    def by_stream(self, tree: Each, made: Any) -> Any:
        def body(value: Any) -> Any:
            with self.nothing_below():
                stream = made.stream(self.source(tree, value), ordered=False)
                with contextlib.closing(stream):
                    found = [next(stream)] if tree.leaves else list(stream)
            return "left" if tree.leaves else self.in_order(tree, found)

        return body

    def by_astream(self, tree: Each, made: Any) -> Any:
        async def body(value: Any) -> Any:
            with self.nothing_below():
                stream = made.astream(self.source(tree, value), ordered=False)
                async with contextlib.aclosing(stream):
                    found = [await anext(stream)] if tree.leaves else [each async for each in stream]
            return "left" if tree.leaves else self.in_order(tree, found)

        return body

    @contextmanager
    def nothing_below(self) -> Iterator[None]:
        """When this body has left what it waits for, nothing of that is at work, unless the body is being stopped."""
        call = current.get()
        assert call is not None
        try:
            yield
        finally:
            self.world.nobody_below(call)

    @staticmethod
    def in_order(tree: Each, found: list[tuple[int, Any]]) -> Any:
        values = [value for _, value in sorted(found, key=lambda each: each[0])]
        return values[0] if tree.policy[0] == "race" and values else values

    # What has steps one after the other

    def row(self, tree: Row) -> Any:
        return weft.Sequence(
            *self.parts(tree), name=tree.name, timeout=tree.timeout, retry=self.plain_retry(tree.attempts)
        )

    def loop(self, tree: Loop) -> Any:
        head, tail = self.parts(tree)

        def choose(value: Any) -> str:
            return str(head.key if goes_back(value) else tail.key)

        return weft.Sequence(
            head, self.decision(f"turn {tree.name}", choose, tree.is_async), tail, name=tree.name
        )

    def choice(self, tree: Choice) -> Any:
        def choose(value: Any) -> str:
            return str(chosen(tree, value).name)

        parts = {part.name: made for part, made in zip(tree.parts, self.parts(tree), strict=True)}
        return self.decision(tree.name, choose, tree.is_async, branches=parts)

    @staticmethod
    def decision(name: str, choose: Any, is_async: bool, **options: Any) -> Any:
        async def choose_on_loop(value: Any) -> Any:
            return choose(value)

        return weft.decision(name, **options)(choose_on_loop if is_async else choose)

    # The whole

    def whole(self, one: OneRun) -> Any:
        made = self(one.tree)
        if one.root == "async":

            @weft.entrypoint(name=f"run{self.run}")
            async def ep(value: Any) -> Any:
                return await made.ainvoke(value)

            return ep
        if one.root == "sync":

            @weft.entrypoint(name=f"run{self.run}")
            def sync_ep(value: Any) -> Any:
                return made.invoke(value)

            return sync_ep
        return made


# Running


class Stuck(BaseException):
    """The loop goes round and round."""


class Story:
    """All lives of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.problems: list[str] = []
        self.savers = [InMemorySaver() for _ in plan.runs]
        self.finished: set[Any] = set()
        self.outcomes: dict[int, Any] = {}
        self.logs: list[list[Any]] = []

    def tell(self) -> list[str]:
        """Run it; what was wrong."""
        lives = max(len(one.lives) for one in self.plan.runs)
        for number in range(lives):
            is_last = number == lives - 1
            self.live(number, is_last=is_last)
            if self.problems:
                return self.problems
        for _ in range(MOST_HEALS):
            if not self.has_failed_though_healed():
                break
            # A failure from which a body had gone on is given to it again, and once more tried when it has ended a run.
            self.live(lives, is_last=True)
        for run, one in enumerate(self.plan.runs):
            self.check_outcome(run, one)
        return self.problems

    def has_failed_though_healed(self) -> bool:
        """Whether a run has failed of what does not fail any more."""
        return any(
            isinstance(self.outcomes.get(run), Exception) and getattr(part, "fails", 0) == HEALS
            for run, one in enumerate(self.plan.runs)
            for part in walk(one.tree)
        )

    def life_of(self, one: OneRun, number: int, is_last: bool) -> Life:
        return one.lives[-1] if is_last else one.lives[min(number, len(one.lives) - 1)]

    def live(self, number: int, *, is_last: bool) -> None:
        world = World(self.plan, number, self.finished)
        try:
            (self.sync_life if self.plan.is_sync else self.async_life)(world, number, is_last)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            world.problem("".join(traceback.format_exception(error)))
        self.logs.append(world.log)
        self.problems += [f"life {number}, {each}" for each in world.problems]
        self.finished = self.finished | world.finished_now()

    # On a loop

    def async_life(self, world: World, number: int, is_last: bool) -> None:
        async def main() -> None:
            loop: Any = asyncio.get_running_loop()
            world.now = loop.time
            bound_rounds(loop)
            async with asyncio.TaskGroup() as group:
                for run, one in enumerate(self.plan.runs):
                    group.create_task(self.one(world, run, one, self.life_of(one, number, is_last), is_last))
            for _ in range(5):
                await asyncio.sleep(0)
            self.check_left(world, loop)
            await asyncio.sleep(LONG)
            check_end(world, loop)

        weft.testing.run(main(), seed=self.plan.seed)

    async def one(self, world: World, run: int, one: OneRun, life: Life, is_last: bool) -> None:
        workflow, options = (
            Builder(world, run, is_last=is_last).whole(one),
            self.options(world, run, one, life),
        )
        loop = asyncio.get_running_loop()
        if one.entry == "submit":
            handle = workflow.submit(one_value(run), **options)
            end: Callable[[], Any] = handle.cancel
        else:
            handle = asyncio.ensure_future(workflow.ainvoke(one_value(run), **options))
            end = handle.cancel
        timers = []
        if life.end:
            timers = [loop.call_later(life.at, self.interrupt, world, run, life, end)]
        try:
            found: Any = await handle
        except asyncio.CancelledError as error:
            found = error
            task = asyncio.current_task()
            assert task is not None
            if task.cancelling():
                raise
        except BaseException as error:
            found = error
        world.is_over(run)
        for timer in timers:
            timer.cancel()
        if one.entry == "submit" and handle.status != status_of(found):
            world.problem(f"run {run} has status {handle.status!r}, and it gave {found!r}")
        self.outcomes[run] = found

    def interrupt(self, world: World, run: int, life: Life, cancel: Callable[[], Any]) -> None:
        world.cut_short(run)
        if life.end == "crash":
            self.savers[run] = copied(self.savers[run])
            cancel()
        elif life.end == "taken":
            row = self.savers[run].find(f"run{run}")
            if row is not None:
                self.savers[run].release(row.run_id, row.fence)
        elif life.end == "cancel":
            cancel()

    def options(self, world: World, run: int, one: OneRun, life: Life) -> dict[str, Any]:
        options: dict[str, Any] = {"max_concurrent": one.width, "timeout": one.timeout}
        if one.limits:
            options["limit"] = [world.limits[at] for at in one.limits]
        if self.plan.is_journaled:
            options |= {"checkpointer": self.savers[run], "run_id": f"run{run}", "durability": one.durability}
            if life.end == "timeout":
                options["timeout"] = life.at
        return options

    def check_left(self, world: World, loop: Any) -> None:
        """Nothing is left but bodies that were given up."""
        mine = {asyncio.current_task(loop)}
        left = [task for task in asyncio.all_tasks(loop) if task not in mine]
        if left:
            world.problem(f"tasks are left: {left}")
        timers = [each for each in loop._scheduled if not each._cancelled and each not in world.timers]
        if timers:
            world.problem(f"timers are left: {timers}")
        world.check_limits()

    # From sync code

    def sync_life(self, world: World, number: int, is_last: bool) -> None:
        with weft.testing.virtual_clock(self.plan.seed) as clock:
            world.now = lambda: clock.now
            loop: Any = stand_in.get()
            bound_rounds(loop)
            threads = [
                threading.Thread(
                    target=self.sync_one, args=(world, run, one, number, is_last, loop), daemon=True
                )
                for run, one in enumerate(self.plan.runs)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
                if thread.is_alive():
                    where = "\n".join(loop.weft_clock.baton.where())
                    world.problem(f"a run from sync code does not end\n{where}")
                    return
            on_loop(loop, lambda: self.check_left(world, loop))
            sleep(LONG)
            on_loop(loop, lambda: check_end(world, loop))

    def sync_one(self, world: World, run: int, one: OneRun, number: int, is_last: bool, loop: Any) -> None:
        token = stand_in.set(loop)
        try:
            self.outcomes[run] = self.sync_outcome(world, run, one, number, is_last, loop)
        finally:
            stand_in.reset(token)
        world.is_over(run)

    def sync_outcome(self, world: World, run: int, one: OneRun, number: int, is_last: bool, loop: Any) -> Any:
        life = self.life_of(one, number, is_last)
        workflow, options = (
            Builder(world, run, is_last=is_last).whole(one),
            self.options(world, run, one, life),
        )
        if one.entry == "invoke":
            if life.end == "crash":
                loop.call_soon_threadsafe(self.set_timer, loop, world, run, life, lambda: None)
            try:
                return workflow.invoke(one_value(run), **options)
            except BaseException as error:
                return error
        handle = workflow.submit(one_value(run), **options)
        if life.end:
            loop.call_soon_threadsafe(self.set_timer, loop, world, run, life, handle.cancel)
        try:
            return handle.result()
        except BaseException as error:
            return error

    def set_timer(self, loop: Any, world: World, run: int, life: Life, cancel: Any) -> None:
        def due() -> None:
            if run not in world.over:
                self.interrupt(world, run, life, cancel)

        world.timers.append(loop.call_later(life.at, due))

    # What came of it

    def check_outcome(self, run: int, one: OneRun) -> None:
        found = self.outcomes.get(run, Fails)
        life = one.lives[-1]
        parts = list(walk(one.tree))
        has_time = one.timeout or any(
            getattr(part, "timeout", None) or getattr(part, "total", None) for part in parts
        )
        if any(each.end == "timeout" for each in one.lives):
            # With little time left a failure is not tried again, so the answer may be another, and that is recorded.
            has_time = has_time or any(getattr(part, "fails", 0) in {1, 2} for part in parts)
        expected = Reference().outcome(one.tree, one_value(run))
        is_cancel = isinstance(found, asyncio.CancelledError | concurrent.futures.CancelledError)
        if isinstance(found, BaseException):
            self.check_error(run, found, has_time=bool(has_time), may_cancel=life.end == "cancel")
            if not has_time and not is_cancel and expected is not Fails:
                self.problems.append(f"run {run} failed with {found!r} instead of giving {expected!r}")
        elif not has_time and found != expected:
            self.problems.append(f"run {run} gave {found!r}, not {expected!r}")
        elif has_time and is_strict(one.tree):
            expected = Reference(ignore_failures=True).outcome(one.tree, one_value(run))
            if found != expected:
                self.problems.append(
                    f"run {run} gave {found!r}, not {expected!r}, though nothing is caught in it"
                )

    def check_error(self, run: int, error: BaseException, *, has_time: bool, may_cancel: bool) -> None:
        for each in leaves_of(error):
            is_timeout = isinstance(each, NodeTimeoutError)
            is_cancel = isinstance(
                each, asyncio.CancelledError | concurrent.futures.CancelledError | weft.RunCancelledError
            )
            if isinstance(each, Boom) or (is_timeout and has_time) or (is_cancel and may_cancel):
                continue
            shown = "".join(traceback.format_exception(each))
            self.problems.append(f"run {run} raised what nobody raises here: {shown}")


def status_of(found: Any) -> str:
    if isinstance(found, asyncio.CancelledError | concurrent.futures.CancelledError):
        return "cancelled"
    return "failed" if isinstance(found, BaseException) else "finished"


def one_value(run: int) -> int:
    return 1000 + run


def is_strict(tree: Tree) -> bool:
    """Whether a failure anywhere is the failure of the whole."""
    for part in walk(tree):
        if isinstance(part, Block | Each) and part.policy[0] != "fail_fast":
            return False
        if isinstance(part, Caller) and (part.catches or part.way in {"first", "cancel"}):
            return False
    return True


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves_of(each)
    else:
        yield error


def copied(saver: InMemorySaver) -> InMemorySaver:
    """What is there after a crash: all that was committed, and nobody owns it."""
    made = InMemorySaver()
    for name, run in saver._runs.items():
        made._runs[name] = replace(run, records=list(run.records), owned=False)
    return made


def bound_rounds(loop: Any) -> None:
    """Have the loop stop when it goes round too often."""
    selector = loop._own_selector
    come_round, rounds = selector.come_round, 0

    def counted(timeout: float | None) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds > MOST_ROUNDS:
            raise Stuck(f"more than {MOST_ROUNDS} turns of the loop, at {loop.time():g} s")
        return come_round(timeout)

    selector.come_round = counted


def on_loop(loop: Any, do: Callable[[], None]) -> None:
    """Do it on the loop, and wait for that."""
    done: concurrent.futures.Future[None] = concurrent.futures.Future()

    def job() -> None:
        try:
            do()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    loop.call_soon_threadsafe(job)
    done.result(PATIENCE)


def check_end(world: World, loop: Any) -> None:
    """Long after: nothing at all is left."""
    for limit in world.limits:
        if limit.in_use or limit.waiting:
            world.problem(f"{limit!r} at the very end: {limit.in_use} in use, {limit.waiting} waiting")
    if world.at_work:
        world.problem(f"at work at the very end: {[work.name for work in world.at_work]}")
    if loop.weft_clock.baton.has_bodies:
        world.problem(f"threads at the very end: {loop.weft_clock.baton.where()}")


# Showing


def described(tree: Any, indent: int = 0) -> str:
    """A tree, one part a line."""
    default = type(tree)(name="", **({"parts": ()} if hasattr(tree, "parts") else {}))
    fields = [
        f"{name}={value!r}"
        for name, value in vars(tree).items()
        if name not in {"name", "parts"} and value != getattr(default, name)
    ]
    line = f"{'  ' * indent}{type(tree).__name__} {tree.name} {' '.join(fields)}"
    return "\n".join([line, *(described(part, indent + 1) for part in getattr(tree, "parts", ()))])


def description(plan: Plan) -> str:
    """A plan, for people."""
    code, journal = "sync" if plan.is_sync else "async", "with" if plan.is_journaled else "no"
    lines = [f"tree {plan.seed}: entered from {code} code, {journal} journal, limits {plan.limits}"]
    for run, one in enumerate(plan.runs):
        rest = {name: value for name, value in vars(one).items() if name != "tree"}
        lines += [f"run {run}: {rest}", described(one.tree, 1)]
    return "\n".join(lines)


def check(seed: int) -> tuple[list[str], Story]:
    """Run the tree of this number; what was wrong with it."""
    story = Story(Draw(seed).plan())
    return story.tell(), story


# Making a plan that fails smaller


def kind_of(problems: list[str]) -> str:
    """What is wrong, without what changes when the plan is made smaller."""
    if not problems:
        return ""
    last = problems[0].strip().splitlines()
    if "Traceback" in problems[0]:
        found = next((line for line in reversed(last) if re.match(r"[\w.]*(Error|Stuck)\b", line)), last[-1])
        return found.split(":")[0]
    text = problems[0].split(": ", 1)[-1]
    return re.sub(r"\d+|<.*>|\[.*\]", "", text)[:40]


def smaller_trees(tree: Any) -> Iterator[Any]:
    """Simpler ones in the place of this one."""
    parts = getattr(tree, "parts", ())
    yield from parts
    if not isinstance(tree, Leaf):
        yield Leaf(tree.name, naps=(0.5,))
    for at in range(len(parts)):
        rest = (*parts[:at], *parts[at + 1 :])
        if rest and not isinstance(tree, Loop):
            yield replace(tree, parts=rest)
    default = type(tree)(name="", **({"parts": ()} if hasattr(tree, "parts") else {}))
    for name, value in vars(tree).items():
        if name not in {"name", "parts"} and value != getattr(default, name):
            yield replace(tree, **{name: getattr(default, name)})
    if isinstance(tree, Each) and tree.count > 1:
        yield replace(tree, count=tree.count - 1)
    if isinstance(tree, Body) and len(tree.naps) > 1:
        yield replace(tree, naps=tree.naps[:1])
        yield replace(tree, naps=tree.naps[1:])
    for at in range(len(parts)):
        for part in smaller_trees(parts[at]):
            yield replace(tree, parts=(*parts[:at], part, *parts[at + 1 :]))


def smaller_runs(one: OneRun) -> Iterator[OneRun]:
    for at in range(len(one.lives) - 1):
        yield replace(one, lives=(*one.lives[:at], *one.lives[at + 1 :]))
    default = OneRun(tree=one.tree)
    for name, value in vars(one).items():
        if name not in {"tree", "lives"} and value != getattr(default, name):
            yield replace(one, **{name: getattr(default, name)})
    for tree in smaller_trees(one.tree):
        yield replace(one, tree=tree)


def smaller(plan: Plan) -> Iterator[Plan]:
    """Plans that are a little simpler."""
    runs = plan.runs
    for at in range(len(runs)):
        if len(runs) > 1:
            yield replace(plan, runs=(*runs[:at], *runs[at + 1 :]))
    if plan.is_journaled:
        yield replace(plan, is_journaled=False)
    if plan.is_sync:
        yield replace(plan, is_sync=False)
    for at in range(len(runs)):
        for one in smaller_runs(runs[at]):
            yield replace(plan, runs=(*runs[:at], one, *runs[at + 1 :]))


def shrunk(plan: Plan, kind: str, *, seconds: float = 60.0) -> Plan:
    """The smallest plan that was found in that time and fails in the same way."""
    until = time.monotonic() + seconds
    found = True
    while found:
        found = False
        for each in smaller(plan):
            if time.monotonic() > until:
                return plan
            with suppress(Exception):  # not every smaller plan can be built
                if kind_of(Story(each).tell()) == kind:
                    plan, found = each, True
                    break
    return plan


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trees", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="where the numbers of the trees begin")
    parser.add_argument("--start", type=int, default=0, help="how many trees to leave out")
    parser.add_argument("--only", type=int, default=None, help="the number of one tree")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which to stop")
    parser.add_argument("--most", type=int, default=10, help="failing trees after which to stop")
    parser.add_argument(
        "--shrink", action="store_true", help="with --only: look for a smaller plan that fails so"
    )
    options = parser.parse_args()
    for name in ("weft", "asyncio"):  # of errors that nobody takes, which some of these bodies do on purpose
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if options.only is not None:
        problems, story = check(options.only)
        if problems and options.shrink:
            story = Story(shrunk(story.plan, kind_of(problems)))
            problems = story.tell()
        print(description(story.plan))
        for number, log in enumerate(story.logs):
            print(
                f"life {number}:",
                *(f"  {moment:8.3f} {what:7} {name}" for moment, what, name in log),
                sep="\n",
            )
        print("outcomes:", story.outcomes)
        print(*problems or ["nothing wrong"], sep="\n")
        return bool(problems)
    first = options.seed if options.seed is not None else random.randrange(10**6) * 10**6
    print(
        f"trees {first + options.start} to {first + options.trees - 1}: --seed {first} --start {options.start}",
        flush=True,
    )
    began, failed, number = time.monotonic(), 0, options.start - 1
    for number in range(options.start, options.trees):
        problems, story = check(first + number)
        if problems:
            failed += 1
            print(
                f"\n{description(story.plan)}\n",
                *problems[:5],
                f"again: --only {first + number}\n",
                sep="\n",
                flush=True,
            )
            if failed >= options.most:
                break
        if number % 500 == 499:
            print(f"{number + 1} trees, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
        if time.monotonic() - began > options.seconds:
            break
    print(f"{number + 1 - options.start} trees, {failed} with violations")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
