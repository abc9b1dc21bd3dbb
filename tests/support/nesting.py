"""Random workflows in which the four styles nest in each other, what they must give, and lives of their runs.

    Leaf ... Walk    descriptions: plain data, from which everything else is made
    Draw             a random description from a number
    Model            what it gives: a slow evaluation, one thing after the other, that knows nothing of the engine
    World            what is outside of a run, and outlives it: which bodies have run, and how often
    Builder          the workflow of a description: new objects each time, as a new process has them
    Story            runs a description, as often as it must, and says what is wrong
    shrunk           a smaller description that goes wrong in the same way

What runs at the same time writes to different keys, and what is given depends on all that a body was given, so there
is one answer. What may come in any order (lists in the state of a graph behind a fork) is looked at sorted.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import re
import shutil
import threading
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import count as numbers
from typing import Any

from killing import Mortal, MortalFile

import weft
from weft import (
    Cancelled,
    Command,
    Failed,
    InMemorySaver,
    Limit,
    NotStarted,
    Ok,
    ParallelExecutionError,
    RetryPolicy,
    StoreError,
)
from weft.batch import as_node
from weft.checkpoint.base import RecordKind, all_records
from weft.compose import _Composed
from weft.engine.context import current
from weft.testing import run as run_virtual
from weft.testing import sleep, virtual_clock

ALWAYS = 99  # attempts that fail
NEVER = 1e6  # seconds: a timeout that is not reached
MOST_LIVES = 60  # beside one for each question
LONG = 20_000  # seconds, after which something stands still


#: How much text all that the bodies of one workflow are given may be.
BIGGEST = 100_000


class TooBig(Exception):  # noqa: N818 - it is no failure
    """A workflow would take long."""


class Boom(Exception):  # noqa: N818 - it is no error of ours
    """What bodies raise."""


def plain(value: Any) -> Any:
    """What a value is, in lists and numbers that can be compared and put into JSON."""
    if isinstance(value, Ok):
        return ["ok", plain(value.value)]
    if isinstance(value, Failed):
        return ["failed", said(value.error)]
    if isinstance(value, NotStarted | Cancelled):
        return ["not started" if isinstance(value, NotStarted) else "cancelled"]
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def said(error: BaseException) -> Any:
    """An error, as a value."""
    if isinstance(error, ParallelExecutionError):
        return ["several", {str(name): said(each) for name, each in error.failures.items()}]
    return [type(error).__name__, *map(str, error.args)]


def shown(value: Any) -> str:
    """A value as text: equal for equal values."""
    return json.dumps(plain(value), sort_keys=True)


def digest(name: str, value: Any) -> int:
    """A number that depends on both."""
    return zlib.crc32(f"{name} {shown(value)}".encode()) % 10**8


# Descriptions


@dataclass(frozen=True)
class Leaf:
    """A function that gives a number made of what it is given."""

    name: str
    form: str = "task"  # or node, function, entrypoint
    gives: str = "number"  # or dict, numbers, dicts
    is_async: bool = True
    fails: int = 0  # attempts that fail
    is_picky: bool = False  # they fail only for every second value
    attempts: int = 1
    limits: tuple[int, ...] = ()
    asks: bool = False  # a question, before it is done
    has_timeout: bool = False
    count: int = 2  # items, where it gives several
    has_equals: bool = False  # all items are equal


@dataclass(frozen=True)
class Body:
    """A function that calls the parts."""

    name: str
    parts: tuple[Any, ...] = ()
    form: str = "task"
    way: str = "chain"  # or fan (at once), twice (the same call again), many (other values, in any order), catch, map
    via: str = "invoke"  # or plain (as its style is called), stream
    is_async: bool = True
    fails: int = 0
    attempts: int = 1


@dataclass(frozen=True)
class Par:
    """A ``parallel``."""

    name: str
    parts: tuple[Any, ...] = ()
    policy: str = "fail_fast"  # or collect, tolerate, need, race
    width: int | None = None
    has_timeout: bool = False


@dataclass(frozen=True)
class Seq:
    """A ``Sequence``."""

    name: str
    parts: tuple[Any, ...] = ()
    is_bare: bool = False  # without a name of its own
    has_timeout: bool = False


@dataclass(frozen=True)
class Choose:
    """A decision for one of the parts."""

    name: str
    parts: tuple[Any, ...] = ()
    is_async: bool = True


@dataclass(frozen=True)
class Again:
    """A sequence that jumps back to its first step, which also counts how often."""

    name: str
    part: Any = None
    end: Any = None
    times: int = 2


@dataclass(frozen=True)
class Each:
    """A ``map``, or with several parts a ``pipeline``."""

    name: str
    parts: tuple[Any, ...] = ()
    policy: str = "fail_fast"  # or collect
    width: int | None = None


@dataclass(frozen=True)
class Reader:
    """A node of a graph that reads what stands on its branch, and gives a number under its name."""

    name: str
    inner: Any = None  # what it calls instead of making a number
    reads: tuple[str, ...] = ()  # by name; else all that is there
    takes_state: bool = False
    rewrites: str = ""  # a key from before, which it writes anew
    is_async: bool = True
    fails: int = 0
    attempts: int = 1
    asks: bool = False


@dataclass(frozen=True)
class Fork:
    """Branches of a graph behind one node, and the node where they meet."""

    name: str
    ways: tuple[tuple[Any, ...], ...] = ()
    policy: str = "fail_fast"  # or collect
    width: int | None = None
    is_chosen: bool = False  # a router takes some of them
    takes_state: bool = False


@dataclass(frozen=True)
class Round:
    """A part of a graph that is gone through several times."""

    name: str
    way: tuple[Any, ...] = ()
    times: int = 2


@dataclass(frozen=True)
class Net:
    """A ``Graph``."""

    name: str
    way: tuple[Any, ...] = ()
    takes_state: bool = False
    has_timeout: bool = False


@dataclass(frozen=True)
class Work:
    """A node of a flow."""

    name: str
    kind: str = "Node"
    inner: Any = None  # what exec calls instead of making a number
    items: int = 2
    fails: int = 0
    attempts: int = 1
    falls_back: bool = False
    collects: bool = False
    is_picky: bool = False
    width: int | None = None
    limits: tuple[int, ...] = ()
    asks: bool = False
    skips: bool = False  # the node behind it, after every second visit
    back: int = 0  # how many times it goes back to the first node of its flow


@dataclass(frozen=True)
class Walk:
    """A flow."""

    name: str
    way: tuple[Any, ...] = ()
    kind: str = "Flow"
    items: int = 2
    width: int | None = None
    has_timeout: bool = False
    is_shared: bool = False  # others write into the same `shared` meanwhile


#: The styles, for counting which is in which.
STYLE = {
    Leaf: "functional", Body: "functional", Par: "compose", Seq: "compose", Choose: "compose", Again: "compose",
    Each: "map", Reader: "graph", Fork: "graph", Round: "graph", Net: "graph", Work: "batch", Walk: "batch",
}  # fmt: skip


def style_of(spec: Any) -> str:
    """The style that it is written in; what is there only to make its input does not count."""
    if isinstance(spec, Seq) and len(spec.parts) == 2 and isinstance(spec.parts[1], Each | Net | Walk):
        return STYLE[type(spec.parts[1])]
    return STYLE[type(spec)]


def key_of(spec: Any) -> str:
    """What the parts round it call it."""
    return key_of(spec.parts[-1]) if isinstance(spec, Seq) and spec.is_bare else spec.name


def parts_of(spec: Any) -> Iterator[Any]:
    """What is directly in it."""
    for each in fields(spec):
        yield from _specs_in(getattr(spec, each.name))


def _specs_in(value: Any) -> Iterator[Any]:
    if is_dataclass(value):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _specs_in(each)


def all_in(spec: Any) -> Iterator[Any]:
    """It, and all that is in it."""
    stack = [spec]
    while stack:
        found = stack.pop()
        yield found
        stack += parts_of(found)


def result_of(spec: Any) -> str:
    """What kind of value it gives: number, dict, numbers, dicts or any."""
    if isinstance(spec, Leaf):
        return spec.gives
    if isinstance(spec, Seq):
        return result_of(spec.parts[-1])
    if isinstance(spec, Body) and spec.way == "chain":
        return result_of(spec.parts[-1])
    if isinstance(spec, Par):
        return "any" if spec.policy == "race" else "dict"
    return "dict" if isinstance(spec, Net | Walk) else "any"


@dataclass(frozen=True)
class Plan:
    """A description, and how it is run."""

    seed: int
    tree: Any
    entry: str = "ainvoke"
    given: Any = 7
    width: int | None = None
    has_timeout: bool = False
    store: str = ""  # or memory, sqlite
    durability: str = "sync"
    commits: tuple[int, ...] = ()  # how many each life is given before it is killed
    cancels: tuple[float, ...] = ()  # when a life is cancelled instead; 0: not


# A random one

LEAF_FORMS = ("task", "task", "node", "function", "entrypoint")
WORKS = ("Node", "BatchNode", "ParallelBatchNode", "AsyncNode", "AsyncBatchNode", "AsyncParallelBatchNode")
WALKS = (
    "Flow",
    "Flow",
    "AsyncFlow",
    "BatchFlow",
    "AsyncBatchFlow",
    "ParallelBatchFlow",
    "AsyncParallelBatchFlow",
)
ASYNC_ENTRIES = ("ainvoke", "astream", "asubmit", "own_async")
SYNC_ENTRIES = ("invoke", "stream", "submit", "own")


class Draw:
    """Draws descriptions. What it draws is small where it is deep."""

    def __init__(self, seed: int, *, asks: bool = False) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.count = 0
        self.asks = asks
        self.share = self.rng.choice([0.0, 0.1, 0.3])  # of what has an option

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def sometimes(self, share: float | None = None) -> bool:
        return self.rng.random() < (self.share if share is None else share)

    def plan(self, *, depth: int | None = None, store: str | None = None) -> Plan:
        """A whole one."""
        rng = self.rng
        depth = depth or (rng.choice([10, 30]) if rng.random() < 0.06 else rng.choice([2, 3, 3, 4]))
        is_deep = depth > 4
        takes = rng.choice(["number", "dict"])
        tree = self.part(takes, depth, is_thin=is_deep, is_top=True)
        store = rng.choice(["", "memory"]) if store is None else store
        lives = rng.choice([0, 1, 2, 5, 20]) if store else 0
        has_cancel = rng.random() < 0.25
        return Plan(
            self.seed,
            tree,
            entry=rng.choice(ASYNC_ENTRIES + SYNC_ENTRIES),
            given=7 if takes == "number" else {"in": 7},
            width=rng.choice([None, None, 1, 2, 5]),
            has_timeout=self.sometimes(0.2),
            store=store,
            durability=rng.choice(["sync", "sync", "async", "exit"]),
            commits=tuple(rng.choice([0, 1, 1, 2, 3, 5, 8, 13, 30]) for _ in range(lives)),
            cancels=tuple(rng.choice([0, 0, 0.2, 1, 3]) if has_cancel else 0 for _ in range(lives)),
        )

    def part(
        self, takes: str, depth: int, *, is_thin: bool = False, alone: bool = True, is_top: bool = False
    ) -> Any:
        """Something that takes such a value.

        Args:
            takes: The kind of value.
            depth: Of what may be in it.
            is_thin: Few parts, so that it may be deep.
            alone: Whether it never runs twice at once, so that it may keep something.
            is_top: Whether it is no leaf.
        """
        if depth <= 0 or not is_top and not is_thin and self.rng.random() < 0.12:
            return self.leaf()
        kinds = [
            self.body,
            self.par,
            self.seq,
            self.choose,
            self.each,
            self.net,
            self.net,
            self.walk,
            self.walk,
        ]
        if not is_thin:
            kinds += [self.again, self.par, self.body]
        kind = self.rng.choice(kinds)
        return kind(takes, _Deep(depth - 1, is_thin, alone))

    def parts(self, takes: str, deep: _Deep, least: int = 1, most: int = 3) -> tuple[Any, ...]:
        """Some, for the same value."""
        count = max(least, 1 if deep.is_thin and self.rng.random() < 0.8 else self.rng.randint(least, most))
        deepest = self.rng.randrange(count)
        return tuple(
            self.part(
                takes,
                deep.depth if not deep.is_thin or n == deepest else 0,
                is_thin=deep.is_thin,
                alone=deep.alone,
            )
            for n in range(count)
        )

    def chain(self, takes: str, deep: _Deep, most: int = 3) -> tuple[Any, ...]:
        """Some, one after the other."""
        count = 1 if deep.is_thin else self.rng.randint(1, most)
        found: list[Any] = []
        for _ in range(count):
            found.append(self.part(takes, deep.depth, is_thin=deep.is_thin, alone=deep.alone))
            takes = result_of(found[-1])
        return tuple(found)

    def leaf(self, **options: Any) -> Leaf:
        """A function."""
        rng = self.rng
        given: dict[str, Any] = {
            "form": rng.choice(LEAF_FORMS),
            "gives": rng.choice(["number", "number", "dict"]),
            "is_async": rng.random() < 0.6,
            "asks": self.asks and rng.random() < 0.15,
            **options,
        }
        if given["form"] in ("task", "node"):
            given["limits"] = tuple(sorted(rng.sample(range(3), rng.choice([0, 0, 1, 2]))))
            given["has_timeout"] = self.sometimes()
        if given["form"] != "function" and "fails" not in given and self.sometimes():
            given["attempts"] = rng.randint(2, 3)
            given["fails"] = rng.randint(1, given["attempts"] - 1)
        return Leaf(self.name("l"), **given)

    def failing(self, deep: _Deep) -> Any:
        """What always fails, in something that passes it on."""
        leaf = self.leaf(fails=ALWAYS, is_picky=self.sometimes(0.4), gives="number")
        if deep.depth <= 0:
            return leaf
        inner = _Deep(deep.depth - 1, deep.is_thin, deep.alone)
        kind = self.rng.choice(["leaf", "seq", "body", "par", "net", "walk"])
        if kind == "seq":
            return Seq(self.name("s"), (self.leaf(asks=False), self.failing(inner), self.leaf()))
        if kind == "body":
            form = self.rng.choice(LEAF_FORMS)
            return Body(self.name("b"), (self.failing(inner),), form=form, is_async=self.sometimes(0.5))
        if kind == "par":
            return Par(self.name("p"), (self.failing(inner),))
        if kind == "net":
            reader = Reader(self.name("r"), self.failing(inner), is_async=self.sometimes(0.5))
            return Seq(self.name("s"), (self.leaf(gives="dict"), Net(self.name("g"), (reader,))))
        if kind == "walk":
            work = Work(self.name("W"), self.rng.choice(["Node", "AsyncNode"]), self.failing(inner))
            return Seq(self.name("s"), (self.leaf(gives="dict"), Walk(self.name("F"), (work,))))
        return leaf

    def body(self, takes: str, deep: _Deep) -> Body:
        rng = self.rng
        way = rng.choice(["chain", "chain", "fan", "fan", "twice", "many", "catch", "map"])
        if way == "chain":
            parts = self.chain(takes, deep)
        elif way == "catch":
            parts = (self.failing(deep),)
        elif way == "fan":
            parts = self.parts(takes, deep)
        else:  # at once with itself, or nearly
            inner = _Deep(deep.depth, deep.is_thin, deep.alone and way == "twice")
            parts = (self.part(takes, inner.depth, is_thin=deep.is_thin, alone=inner.alone),)
        form = rng.choice(LEAF_FORMS)
        attempts = rng.choice([1, 1, 2]) if form != "function" and way != "catch" else 1
        via = rng.choice(["invoke", "plain", "stream"])
        return Body(
            self.name("b"), parts, form, way, via, is_async=rng.random() < 0.5,
            fails=attempts - 1, attempts=attempts,
        )  # fmt: skip

    def par(self, takes: str, deep: _Deep) -> Par:
        rng = self.rng
        policy = (
            "fail_fast"
            if deep.is_thin
            else rng.choice(["fail_fast"] * 4 + ["collect", "tolerate", "need", "race"])
        )
        width = rng.choice([None, None, 1, 2])
        parts = self.parts(takes, deep)
        if policy in ("collect", "tolerate", "race"):
            failing = tuple(self.failing(deep) for _ in range(rng.randint(1, 2)))
            if policy == "race":
                failing = tuple(self.leaf(fails=ALWAYS) for _ in failing)
                parts = parts[:1]
            found = [*parts, *failing]
            rng.shuffle(found)
            parts = tuple(found)
        width = 1 if policy == "need" else width
        return Par(self.name("p"), parts, policy, width, has_timeout=self.sometimes())

    def seq(self, takes: str, deep: _Deep) -> Seq:
        parts = self.chain(takes, deep)
        return Seq(self.name("s"), parts, is_bare=self.sometimes(0.3), has_timeout=self.sometimes())

    def choose(self, takes: str, deep: _Deep) -> Choose:
        return Choose(self.name("d"), self.parts(takes, deep, 1 if deep.is_thin else 2), self.sometimes(0.5))

    def again(self, takes: str, deep: _Deep) -> Again:
        part = self.part("any", deep.depth, is_thin=deep.is_thin, alone=deep.alone)
        return Again(self.name("a"), part, self.leaf(), self.rng.randint(1, 3))

    def each(self, takes: str, deep: _Deep) -> Seq:
        rng = self.rng
        gives = rng.choice(["numbers", "dicts"])
        items = self.leaf(gives=gives, count=rng.randint(0, 3), has_equals=self.sometimes(0.3))
        inner = _Deep(deep.depth, deep.is_thin, False)
        policy, item = "fail_fast", gives[:-1]
        if not deep.is_thin and self.sometimes(0.2):
            policy, parts = "collect", (self.failing(inner),)
        elif not deep.is_thin and self.sometimes(0.25):
            parts = self.chain(item, inner)
        else:
            parts = (self.part(item, inner.depth, is_thin=deep.is_thin, alone=False),)
        width = rng.choice([None, 1, 2])
        each = Each(self.name("m"), parts, policy, width)
        return Seq(self.name("s"), (items, each))

    # Graphs

    def net(self, takes: str, deep: _Deep) -> Any:
        has_state = deep.alone and self.sometimes(0.5)
        net = Net(self.name("g"), self.way(deep, has_state), has_state, self.sometimes())
        return net if takes == "dict" else Seq(self.name("s"), (self.leaf(gives="dict"), net))

    def way(
        self, deep: _Deep, has_state: bool, *, above: tuple[str, ...] = (), most: int = 3
    ) -> tuple[Any, ...]:
        """Nodes one after the other; ``above`` are keys that are there, and that this may write."""
        rng = self.rng
        found: list[Any] = []
        for _ in range(1 if deep.is_thin else rng.randint(1, most)):
            kind = rng.random()
            if kind < 0.35 or deep.depth <= 0:
                found.append(self.reader(deep, has_state, found, above))
            elif kind < 0.65:
                part = self.part("dict", deep.depth - 1, is_thin=deep.is_thin, alone=deep.alone)
                if isinstance(part, Leaf | Body) and part.form in ("node", "function"):
                    part = replace(part, form="task", fails=0, attempts=1) if part.fails < ALWAYS else part
                found.append(part)
            elif kind < 0.88:
                found.append(self.fork(deep, has_state, found))
            else:
                inner = _Deep(deep.depth - 1, deep.is_thin, deep.alone)
                found.append(Round(self.name("o"), self.way(inner, has_state, most=2), rng.randint(1, 3)))
        return tuple(found)

    def reader(self, deep: _Deep, has_state: bool, before: list[Any], above: tuple[str, ...]) -> Reader:
        rng = self.rng
        keys = [each.name for each in before if isinstance(each, Reader)]
        inner = None
        if deep.depth > 0 and self.sometimes(0.35 if not deep.is_thin else 0.9):
            inner = self.part("dict", deep.depth - 1, is_thin=deep.is_thin, alone=deep.alone)
        attempts = 1 if inner is not None else rng.choice([1, 1, 2])
        return Reader(
            self.name("r"), inner, tuple(rng.sample(keys, min(len(keys), rng.choice([0, 0, 1, 2])))),
            has_state and self.sometimes(0.6), rng.choice(above) if above and self.sometimes(0.4) else "",
            rng.random() < 0.6, attempts - 1, attempts, self.asks and inner is None and self.sometimes(0.1),
        )  # fmt: skip

    def fork(self, deep: _Deep, has_state: bool, before: list[Any]) -> Fork:
        rng = self.rng
        inner = _Deep(deep.depth - 1, deep.is_thin, deep.alone)
        keys = tuple(each.name for each in before if isinstance(each, Reader))
        ways = []
        for number in range(rng.randint(2, 3)):
            above = keys if number == 0 else ()  # one branch alone may write what was there before
            ways.append(
                self.way(
                    inner if not deep.is_thin or number == 0 else _Deep(0, True, deep.alone),
                    has_state,
                    above=above,
                    most=2,
                )
            )
        policy = "fail_fast"
        if not deep.is_thin and self.sometimes(0.25):
            policy, failing = "collect", self.failing(inner)
            ways.append((Reader(self.name("r"), failing, is_async=self.sometimes(0.5)),))
        return Fork(
            self.name("k"), tuple(ways), policy, rng.choice([None, None, 1, 2]),
            policy == "fail_fast" and self.sometimes(0.3), has_state and self.sometimes(0.5),
        )  # fmt: skip

    # Flows

    def walk(self, takes: str, deep: _Deep, *, is_shared: bool = False, is_inner: bool = False) -> Any:
        rng = self.rng
        kind = rng.choice(WALKS[:3] if deep.is_thin else WALKS)
        shares = is_shared or "Parallel" in kind
        inner = _Deep(deep.depth, deep.is_thin, deep.alone and not shares)
        way = tuple(self.stop(inner, shares) for _ in range(1 if deep.is_thin else rng.randint(1, 3)))
        width = rng.choice([None, 1, 2]) if "Parallel" in kind else None
        walk = Walk(self.name("F"), way, kind, rng.randint(0, 3), width, self.sometimes(), is_shared)
        return walk if takes == "dict" or is_inner else Seq(self.name("s"), (self.leaf(gives="dict"), walk))

    def stop(self, deep: _Deep, is_shared: bool) -> Any:
        """A node of a flow."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.45 or deep.depth <= 0 or is_shared and kind < 0.8:
            return self.work(deep)
        inner = _Deep(deep.depth - 1, deep.is_thin, deep.alone)
        if is_shared or kind < 0.6:
            return self.walk("dict", inner, is_shared=is_shared, is_inner=True)
        return self.part(
            "dict", rng.choice([inner.depth, deep.depth]), is_thin=deep.is_thin, alone=deep.alone
        )

    def work(self, deep: _Deep) -> Work:
        rng = self.rng
        kind = rng.choice(WORKS)
        options: dict[str, Any] = {"skips": self.sometimes(0.2), "back": rng.choice([0, 0, 0, 0, 1, 2])}
        if "Parallel" in kind:
            options["width"] = rng.choice([None, 1, 2])
        inner = None
        if deep.depth > 0 and self.sometimes(0.4 if not deep.is_thin else 0.9):
            alone = deep.alone and "Parallel" not in kind
            inner = self.part("dict", deep.depth - 1, is_thin=deep.is_thin, alone=alone)
        else:
            attempts = rng.randint(1, 3)
            collects = "Batch" in kind and self.sometimes(0.2)
            falls_back = self.sometimes(0.3)
            fails = rng.choice([0, ALWAYS]) if collects or falls_back else rng.randint(0, attempts - 1)
            options |= {"attempts": attempts, "collects": collects, "falls_back": falls_back, "fails": fails}
            options |= {"is_picky": self.sometimes(0.3), "asks": self.asks and self.sometimes(0.1)}
            options["limits"] = tuple(sorted(rng.sample(range(3), rng.choice([0, 0, 1]))))
        return Work(self.name("W"), kind, inner, rng.randint(0, 3), **options)


@dataclass(frozen=True)
class _Deep:
    """Where something is drawn."""

    depth: int
    is_thin: bool
    alone: bool


# What must come of it


class ModelFailed(Exception):  # noqa: N818 - it stands for an error
    """The workflow fails with this, in words."""

    def __init__(self, error: Any) -> None:
        super().__init__(error)
        self.error = error


class Model:
    """Evaluates a description in the most obvious way.

    Attributes:
        least: By body and what it is given: how often it must come to its end.
        most: How often it may.
        states: Of each graph, the state that it keeps.
    """

    def __init__(self) -> None:
        self.least: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.states: dict[str, Any] = {}
        self.maybe = False  # what is evaluated may be stopped at any time
        self.size = 0  # of all that bodies were given, as text

    def value(self, spec: Any, given: Any) -> Any:
        """What it gives."""
        return getattr(self, type(spec).__name__.lower())(spec, given)

    def done(self, name: str, given: Any) -> None:
        """A body has come to its end."""
        self.size += len(shown(given))
        if self.size > BIGGEST:
            raise TooBig
        self.most[f"{name} {shown(given)}"] += 1
        if not self.maybe:
            self.least[f"{name} {shown(given)}"] += 1

    def number(self, spec: Any, given: Any) -> int:
        """What a body that calls nothing makes of it."""
        number = digest(spec.name, given)
        if spec.fails >= spec.attempts and not (getattr(spec, "is_picky", False) and number % 2):
            raise ModelFailed(["Boom", spec.name])
        self.done(spec.name, given)
        return number + 1 if getattr(spec, "asks", False) else number

    def leaf(self, spec: Leaf, given: Any) -> Any:
        return made_of(spec, self.number(spec, given))

    def body(self, spec: Body, given: Any) -> Any:
        found = self.in_body(spec, given)
        self.done(spec.name, given)
        return found

    def in_body(self, spec: Body, given: Any) -> Any:
        if spec.way == "chain":
            for part in spec.parts:
                given = self.value(part, given)
            return given
        if spec.way == "fan":
            return [self.value(part, given) for part in spec.parts]
        if spec.way == "many":
            return [self.value(spec.parts[0], each) for each in many(given)]
        if spec.way == "catch":
            try:
                return [self.value(part, given) for part in spec.parts]
            except ModelFailed as failed:
                return ["caught", failed.error]
        return [self.value(spec.parts[0], given) for _ in range(2)]

    def par(self, spec: Par, given: Any) -> Any:
        if spec.policy == "race":
            return self.race(spec, given)
        outcomes = {}
        for part in spec.parts:
            if spec.policy == "need" and len(outcomes) == needed(spec):
                break
            outcomes[key_of(part)] = self.outcome(part, given)
        if spec.policy != "fail_fast":
            left = {key_of(part): ["not started"] for part in spec.parts}
            return left | outcomes
        return self.all_ok(outcomes)

    def outcome(self, part: Any, given: Any) -> Any:
        try:
            return ["ok", self.value(part, given)]
        except ModelFailed as failed:
            return ["failed", failed.error]

    def all_ok(self, outcomes: dict[Any, Any]) -> dict[Any, Any]:
        failed = {str(name): error for name, (kind, error) in outcomes.items() if kind == "failed"}
        if failed:
            raise ModelFailed(["several", failed])
        return {name: value for name, (_, value) in outcomes.items()}

    def race(self, spec: Par, given: Any) -> Any:
        [good] = [part for part in spec.parts if not (isinstance(part, Leaf) and part.fails >= ALWAYS)]
        return self.value(good, given)

    def seq(self, spec: Seq, given: Any) -> Any:
        for part in spec.parts:
            given = self.value(part, given)
        return given

    def choose(self, spec: Choose, given: Any) -> Any:
        self.done(spec.name, given)
        return self.value(spec.parts[digest(spec.name, given) % len(spec.parts)], given)

    def again(self, spec: Again, given: Any) -> Any:
        while True:
            left = left_of(spec, given)
            given = {key_of(spec.part): self.value(spec.part, given), f"{spec.name}left": left}
            self.done(spec.name, given)
            if left <= 0:
                return self.value(spec.end, given)

    def each(self, spec: Each, given: Any) -> Any:
        outcomes = {n: self.outcome(Seq("", spec.parts), item) for n, item in enumerate(given)}
        if spec.policy == "collect":
            return [*outcomes.values()]
        return [*self.all_ok(outcomes).values()]

    # Graphs

    def net(self, spec: Net, given: Any) -> dict[str, Any]:
        place = _Place(dict(given), fresh_state())
        if spec.takes_state:
            place.state = self.states.setdefault(spec.name, place.state)
        self.along(spec.way, place)
        self.stands(end_of(spec), place)
        return place.flow

    def along(self, way: tuple[Any, ...], place: _Place) -> None:
        for each in way:
            if isinstance(each, Reader):
                self.stands(each, place)
            elif isinstance(each, Fork):
                self.forks(each, place)
            elif isinstance(each, Round):
                self.rounds(each, place)
            else:
                found = self.value(each, dict(place.flow))
                new = found if isinstance(found, Mapping) else {key_of(each): found}
                place.flow |= {
                    name: value
                    for name, value in new.items()
                    if name not in place.flow or place.flow[name] != value
                }

    def stands(self, spec: Reader, place: _Place) -> int:
        given: Any = {name: place.flow[name] for name in spec.reads} if spec.reads else dict(place.flow)
        if spec.takes_state:
            given = {**given, "state of it": seen_state(place.state)}
        number = digest(spec.name, given)
        if spec.inner is not None:
            place.flow[spec.name] = self.value(spec.inner, given)
            self.done(spec.name, given)
        else:
            place.flow[spec.name] = number = self.number(spec, given)
        if spec.rewrites:
            place.flow[spec.rewrites] = digest(spec.rewrites, number)
        if spec.takes_state:
            note_state(place.state, spec.name, digest(spec.name, given))
        return number

    def forks(self, spec: Fork, place: _Place) -> None:
        number = self.stands(start_of(spec), place)
        chosen = chosen_of(spec, number) if spec.is_chosen else range(len(spec.ways))
        before, written, state = dict(place.flow), {}, place.state
        ends = []
        for way in (spec.ways[n] for n in chosen):
            branch = _Place(dict(before), _copied(state))
            try:
                self.along(way, branch)
            except ModelFailed as failed:
                assert spec.policy == "collect"
                written[name_of_first(way)] = ["failed", failed.error]
                continue
            written |= {
                name: value
                for name, value in branch.flow.items()
                if name not in before or before[name] != value
            }
            ends.append(branch.state)
        place.flow |= written
        _merge_states(state, _copied(state), ends)
        self.stands(join_of(spec), place)

    def rounds(self, spec: Round, place: _Place) -> None:
        start, router, end = round_of(spec)
        while True:
            self.stands(start, place)
            self.along(spec.way, place)
            self.stands(router, place)
            place.flow[f"{spec.name}#"] = count = place.flow.get(f"{spec.name}#", 0) + 1
            if count >= spec.times:
                break
        self.stands(end, place)

    # Flows

    def walk(self, spec: Walk, given: Any) -> dict[str, Any]:
        shared = dict(given)
        self.walks(spec, shared, {})
        return shared

    def walks(self, spec: Walk, shared: dict[str, Any], params: dict[str, Any]) -> None:
        if "Batch" not in spec.kind:
            self.goes(spec, shared, params)
            return
        for item in params_of(spec, shared, params):
            self.goes(spec, shared, {**params, **item})

    def goes(self, spec: Walk, shared: dict[str, Any], params: dict[str, Any]) -> None:
        is_shared = shares(spec)
        at = 0
        while at < len(spec.way):
            each = spec.way[at]
            at += 1
            if isinstance(each, Walk):
                self.walks(each, shared, params)
            elif isinstance(each, Work):
                self.works(each, shared, params, is_shared)
                at = next_of(spec, at - 1, shared, mark_of(each, params, is_shared))
            else:
                found = self.value(each, dict(shared))
                shared |= found if isinstance(found, Mapping) else {key_of(each): found}

    def works(self, spec: Work, shared: dict[str, Any], params: dict[str, Any], is_shared: bool) -> None:
        found = [self.item(spec, item) for item in items_of(spec, shared, params, is_shared)]
        keep(spec, shared, mark_of(spec, params, is_shared), found)

    def item(self, spec: Work, item: Any) -> Any:
        try:
            if spec.inner is None:
                value = self.number(spec, item)
            else:
                value = self.value(spec.inner, item)
                self.done(spec.name, item)
        except ModelFailed as failed:
            if spec.falls_back:
                self.done(f"{spec.name} fallback", item)
                value = ["fell", spec.name]
            elif spec.collects:
                return ["failed", failed.error]
            else:
                raise
        return ["ok", value] if spec.collects else value


@dataclass
class _Place:
    """What stands on a branch of a graph."""

    flow: dict[str, Any]
    state: dict[str, Any]


# What the model and the bodies have in common


def made_of(spec: Leaf, number: int) -> Any:
    """What a leaf gives."""
    several = [number if spec.has_equals else number + n for n in range(spec.count)]
    return {
        "number": number,
        "dict": {spec.name: number},
        "numbers": several,
        "dicts": [{spec.name: each} for each in several],
    }[spec.gives]


def many(given: Any) -> list[Any]:
    """Several values, made of one."""
    return [{**given, "at": n} if isinstance(given, Mapping) else [given, n] for n in range(3)]


def left_of(spec: Again, given: Any) -> int:
    """How often it goes round yet, after this time."""
    return (given.get(f"{spec.name}left", spec.times) if isinstance(given, Mapping) else spec.times) - 1


def needed(spec: Par) -> int:
    return max(1, len(spec.parts) - 1)


def fresh_state() -> dict[str, Any]:
    return {"list": [], "of": {}, "deep": {"list": []}}


def seen_state(state: Mapping[str, Any]) -> Any:
    """The state, in what order ever it came to be."""
    return [sorted(state["list"]), dict(sorted(state["of"].items())), sorted(state["deep"]["list"])]


def note_state(state: Any, name: str, number: int) -> None:
    """Change it."""
    state["list"].append(number)
    state["of"][name] = [number, len(state["list"])]
    state["deep"]["list"].append(name)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def _merge_states(state: dict[str, Any], before: dict[str, Any], ends: list[dict[str, Any]]) -> None:
    for end in ends:
        state["list"] += end["list"][len(before["list"]) :]
        state["deep"]["list"] += end["deep"]["list"][len(before["deep"]["list"]) :]
        state["of"] |= {name: value for name, value in end["of"].items() if before["of"].get(name) != value}


def end_of(spec: Net) -> Reader:
    return Reader(f"{spec.name}end", takes_state=spec.takes_state)


def start_of(spec: Fork) -> Reader:
    return Reader(f"{spec.name}start", takes_state=spec.takes_state)


def join_of(spec: Fork) -> Reader:
    return Reader(f"{spec.name}join", takes_state=spec.takes_state, is_async=False)


def round_of(spec: Round) -> tuple[Reader, Reader, Reader]:
    return tuple(Reader(f"{spec.name}{each}") for each in ("start", "router", "end"))  # type: ignore[return-value]


def chosen_of(spec: Fork, number: int) -> list[int]:
    """Which of its ways a router takes: at least one."""
    found = [n for n in range(len(spec.ways)) if number >> n & 1]
    return found or [number % len(spec.ways)]


def name_of_first(way: tuple[Any, ...]) -> str:
    """The node that such a way begins with."""
    first = way[0]
    if isinstance(first, Fork):
        return f"{first.name}start"
    return f"{first.name}start" if isinstance(first, Round) else key_of(first)


def shares(spec: Walk) -> bool:
    """Whether what is in it has its `shared` not to itself."""
    return spec.is_shared or "Parallel" in spec.kind


def params_of(spec: Walk, shared: Mapping[str, Any], params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What its prep gives: of what it can see that does not change meanwhile."""
    number = digest(spec.name, params if spec.is_shared else [shared, params])
    return [{spec.name: number + n} for n in range(spec.items)]


def mark_of(spec: Work, params: Mapping[str, Any], is_shared: bool) -> str:
    """The key under which it writes."""
    return f"{spec.name} {digest('', params)}" if is_shared else spec.name


def items_of(spec: Work, shared: Mapping[str, Any], params: Mapping[str, Any], is_shared: bool) -> list[Any]:
    """What its exec is given, one by one."""
    whole = {"params": dict(params), "count": shared.get(f"{mark_of(spec, params, is_shared)}#", 0)}
    if not is_shared:
        whole |= shared
    if "Batch" not in spec.kind:
        return [whole]
    return [{"item": n // 2, "of": digest(spec.name, whole)} for n in range(spec.items)]


def keep(spec: Work, shared: Any, mark: str, values: list[Any]) -> None:
    """What its post does."""
    shared[mark] = values if "Batch" in spec.kind else values[0]
    shared[f"{mark}#"] = shared.get(f"{mark}#", 0) + 1


def action_of(spec: Work, shared: Mapping[str, Any], mark: str) -> str | None:
    count = shared[f"{mark}#"]
    if count <= spec.back:
        return "back"
    return "skip" if spec.skips and count % 2 else None


def next_of(spec: Walk, at: int, shared: Mapping[str, Any], mark: str) -> int:
    action = action_of(spec.way[at], shared, mark)
    return 0 if action == "back" else at + 2 if action == "skip" else at + 1


# What is outside


class World:
    """What outlives the lives of a run.

    Attributes:
        done: By body and what it was given: how often it came to its end.
        ended: The calls that came to their end in this life.
        durable: Calls whose outcome was recorded before this life.
        failed: By call: the attempts that have failed.
        problems: What is wrong, in words.
    """

    def __init__(self, seed: int, *, unit: float = 1.0) -> None:
        self.luck = random.Random(seed)
        self.unit = unit
        self.done: Counter[str] = Counter()
        self.durable: set[str] = set()
        self.failed: Counter[str] = Counter()
        self.problems: list[str] = []
        self.lock = threading.Lock()
        self.life = 0

    def naps(self) -> float:
        # Less than the grace of a run, after which a sync body is given up and counts no longer.
        return self.unit * self.luck.choice([0, 0.1, 0.5, 0.9]) if self.unit else 0.0

    def problem(self, text: str) -> None:
        with self.lock:
            self.problems.append(text)

    def begins(self, name: str) -> str:
        """A body begins; its call."""
        mine = weft.call_id()
        if mine in self.durable:
            self.problem(f"{name} runs again, though its outcome was recorded (life {self.life})")
        return mine

    def must_fail(self, spec: Any, mine: str, number: int) -> bool:
        """Whether this attempt fails."""
        if getattr(spec, "is_picky", False) and number % 2:
            return False
        with self.lock:
            if spec.fails < spec.attempts and self.failed[mine] >= spec.fails:
                return False
            self.failed[mine] += 1
        return spec.fails > 0

    def ends(self, name: str, given: Any) -> None:
        with self.lock:
            self.done[f"{name} {shown(given)}"] += 1


class Gauges:
    """How many are at work at once, in one life."""

    def __init__(self, world: World, width: int | None, limits: list[Limit]) -> None:
        self.world = world
        self.width = width
        self.limits = limits
        self.blocks: dict[str, int] = {}  # by the name of a block, its width
        self.now = 0
        self.of_limit: Counter[int] = Counter()
        self.of_block: Counter[tuple[int, int]] = Counter()

    @contextmanager
    def at_work(self, name: str, limits: tuple[int, ...]) -> Iterator[None]:
        places = self.places()
        with self.world.lock:
            self.now += 1
            self.of_limit.update(limits)
            self.of_block.update(places)
            found = self.exceeded(places)
        for each in found:
            self.world.problem(f"{name}: {each}")
        try:
            yield
        finally:
            with self.world.lock:
                self.now -= 1
                self.of_limit.subtract(limits)
                self.of_block.subtract(places)

    def places(self) -> dict[tuple[int, int], int]:
        """In which branches of which blocks this is."""
        found = {}
        call = current.get()
        while call is not None and call.parent is not None:
            if call.parent.step.name in self.blocks:
                found[(id(call.parent), id(call))] = 1
            call = call.parent
        return found

    def exceeded(self, places: Mapping[tuple[int, int], int]) -> Iterator[str]:
        if self.width is not None and self.now > self.width:
            yield f"{self.now} at work in a run of width {self.width}"
        for number, count in self.of_limit.items():
            if count > self.limits[number].concurrent:
                yield f"{count} at work under {self.limits[number]!r}"
        for block in {block for block, _ in places}:
            count = sum(1 for (other, _), n in self.of_block.items() if other == block and n > 0)
            width = self.width_of(block)
            if width is not None and count > width:
                yield f"{count} branches at work in a block of width {width}"

    def width_of(self, block: int) -> int | None:
        call = current.get()
        while call is not None:
            if id(call) == block:
                return self.blocks[call.step.name]
            call = call.parent
        return None


# The workflow


def signature(reads: tuple[str, ...], takes_state: bool) -> inspect.Signature:
    """The parameters of a node of a graph."""
    kinds = inspect.Parameter
    found = [kinds(name, kinds.KEYWORD_ONLY) for name in reads]
    if takes_state:
        found.append(kinds("state", kinds.KEYWORD_ONLY))
    if not reads:
        found.append(kinds("flow", kinds.VAR_KEYWORD))
    return inspect.Signature(found)


class Builder:
    """Makes the objects."""

    def __init__(self, world: World, gauges: Gauges) -> None:
        self.world = world
        self.gauges = gauges

    def make(self, spec: Any) -> Any:
        """The workflow of a description."""
        return getattr(self, type(spec).__name__.lower())(spec)

    # Functions

    def effect(self, spec: Any, given: Any) -> Callable[[], int]:
        """What a body that calls nothing does, after it was at work."""
        world, number = self.world, digest(spec.name, given)
        mine = world.begins(spec.name)

        def ended() -> int:
            if world.must_fail(spec, mine, number):
                raise Boom(spec.name)
            is_answered = spec.asks and weft.interrupt(f"{spec.name}?") == f"{spec.name}!"
            world.ends(spec.name, given)
            return number + is_answered

        return ended

    async def work(self, spec: Any, given: Any) -> int:
        ended = self.effect(spec, given)
        with self.gauges.at_work(spec.name, getattr(spec, "limits", ())):
            await asyncio.sleep(self.world.naps())
        return ended()

    def sync_work(self, spec: Any, given: Any) -> int:
        ended = self.effect(spec, given)
        with self.gauges.at_work(spec.name, getattr(spec, "limits", ())):
            sleep(self.world.naps())
        return ended()

    def leaf(self, spec: Leaf) -> Any:
        async def body(value):
            return made_of(spec, await self.work(spec, value))

        def sync_body(value):
            return made_of(spec, self.sync_work(spec, value))

        return self.function(spec, body if spec.is_async else sync_body)

    def function(self, spec: Any, fn: Any) -> Any:
        """The function in its form."""
        fn.__name__ = fn.__qualname__ = spec.name
        retry = RetryPolicy(
            max_attempts=spec.attempts, initial_interval=self.world.unit, jitter=False, retry_on=Boom
        )
        limits = [self.gauges.limits[n] for n in getattr(spec, "limits", ())]
        timeout = NEVER if getattr(spec, "has_timeout", False) else None
        if spec.form == "function":
            return fn
        if spec.form == "entrypoint":
            return weft.entrypoint(retry_policy=retry, timeout=timeout, checkpointer=UNUSED)(fn)
        if spec.form == "task":
            return weft.task(retry_policy=retry, limit=limits, timeout=timeout)(fn)
        return weft.node(retry=retry, limit=limits, timeout=timeout)(fn)

    def body(self, spec: Body) -> Any:
        parts = [self.as_workflow(part) for part in spec.parts]
        calls = _Calls(spec, parts, self.world)

        def begins(value):
            mine = self.world.begins(spec.name)
            if self.world.must_fail(spec, mine, 0):
                raise Boom(spec.name)

        async def body(value):
            begins(value)
            found = await calls.all(value)
            self.world.ends(spec.name, value)
            return found

        def sync_body(value):
            begins(value)
            found = calls.sync_all(value)
            self.world.ends(spec.name, value)
            return found

        return self.function(spec, body if spec.is_async else sync_body)

    def as_workflow(self, spec: Any) -> Any:
        """Something with verbs: a bare function has none."""
        made = self.make(spec)
        return weft.Sequence(made, name=f"of {spec.name}") if inspect.isfunction(made) else made

    # Composed

    def par(self, spec: Par) -> Any:
        options: dict[str, Any] = {"name": spec.name, "max_concurrent": spec.width}
        if spec.width is not None:
            self.gauges.blocks[spec.name] = spec.width
        if spec.policy == "need":
            options["need"] = needed(spec)
        elif spec.policy == "tolerate":
            options["on_error"] = weft.tolerate(count=len(spec.parts))
        else:
            options["on_error"] = spec.policy
        if spec.has_timeout:
            options["timeout"] = NEVER
        return weft.parallel(*map(self.make, spec.parts), **options)

    def seq(self, spec: Seq) -> Any:
        options: dict[str, Any] = {} if spec.is_bare else {"name": spec.name}
        if spec.has_timeout:
            options["timeout"] = NEVER
        return weft.Sequence(*map(self.make, spec.parts), **options)

    def choose(self, spec: Choose) -> Any:
        parts = {f"way {n}": self.make(part) for n, part in enumerate(spec.parts)}

        def chosen(value):
            self.world.begins(spec.name)
            self.world.ends(spec.name, value)
            return f"way {digest(spec.name, value) % len(spec.parts)}"

        return weft.Sequence(self.decides(spec.name, chosen, parts, is_async=spec.is_async), name=spec.name)

    def decides(self, name: str, choose: Callable[[Any], str], branches: Any, *, is_async: bool) -> Any:
        async def body(value):
            await asyncio.sleep(self.world.naps())
            return choose(value)

        return weft.decision(f"{name}?", branches=branches)(body if is_async else choose)

    def again(self, spec: Again) -> Any:
        first = f"{spec.name}first"

        def chosen(value):
            self.world.begins(spec.name)
            self.world.ends(spec.name, value)
            return key_of(spec.end) if value[f"{spec.name}left"] <= 0 else first

        left = weft.node(name=f"{spec.name}left")(lambda value: left_of(spec, value))
        choose = self.decides(spec.name, chosen, None, is_async=False)
        both = weft.parallel(self.make(spec.part), left, name=first)
        return weft.Sequence(both, choose, self.make(spec.end), name=spec.name)

    def each(self, spec: Each) -> Any:
        parts = [self.make(part) for part in spec.parts]
        options: dict[str, Any] = {"max_concurrent": spec.width, "on_error": spec.policy, "name": spec.name}
        if len(parts) > 1:
            return weft.pipeline(None, *parts, **options)
        if spec.width is not None:
            self.gauges.blocks[spec.name] = spec.width
        return weft.map(parts[0], **options)

    # Graphs

    def net(self, spec: Net) -> Any:
        graph = weft.Graph(
            name=spec.name,
            initial_state=fresh_state() if spec.takes_state else None,
            timeout=NEVER if spec.has_timeout else None,
        )
        last = self.add_way(graph, (*spec.way, end_of(spec)), None)
        return graph.set_end_node(last)

    def add_way(self, graph: Any, way: tuple[Any, ...], before: str | None) -> str:
        """Add nodes one after the other; gives the last."""
        for each in way:
            if isinstance(each, Fork):
                before = self.add_fork(graph, each, before)
            elif isinstance(each, Round):
                before = self.add_round(graph, each, before)
            elif isinstance(each, Reader):
                before = self.add(graph, self.reader(each), each.name, before)
            else:
                before = self.add(graph, self.make(each), key_of(each), before)
        assert before is not None
        return before

    def add(self, graph: Any, part: Any, name: str, before: str | None) -> str:
        graph.add_node(part, name=name, start=not graph.nodes)
        if before is not None:
            graph.add_edge(before, name)
        return name

    def reader(self, spec: Reader, then: Any = None) -> Any:
        """A node; what else it gives is made of its number and of what it was given."""
        inner = None if spec.inner is None else self.as_workflow(spec.inner)

        def begins(given):
            state = given.pop("state", None)
            seen = {**given, "state of it": seen_state(state)} if spec.takes_state else given
            number = digest(spec.name, seen)
            if spec.takes_state:
                note_state(state, spec.name, number)  # before it fails, which must undo it
            if inner is not None:
                self.world.begins(spec.name)
            return seen, number

        def ends(seen, number, value):
            if inner is None:
                number = value
            else:
                self.world.ends(spec.name, seen)
            found = {spec.name: value}
            if spec.rewrites:
                found[spec.rewrites] = digest(spec.rewrites, number)
            return found if then is None else {**found, **then(number, seen)}

        async def body(**given):
            seen, number = begins(given)
            value = await (self.work(spec, seen) if inner is None else inner.ainvoke(_own(inner, seen)))
            return ends(seen, number, value)

        def sync_body(**given):
            seen, number = begins(given)
            value = self.sync_work(spec, seen) if inner is None else inner.invoke(_own(inner, seen))
            return ends(seen, number, value)

        fn: Any = body if spec.is_async else sync_body
        fn.__signature__ = signature(spec.reads, spec.takes_state)
        retry = RetryPolicy(
            max_attempts=spec.attempts, initial_interval=self.world.unit, jitter=False, retry_on=Boom
        )
        return (weft.node if then is None else weft.router)(name=spec.name, retry=retry)(fn)

    def add_fork(self, graph: Any, spec: Fork, before: str | None) -> str:
        firsts = [name_of_first(way) for way in spec.ways]

        def choices(number, seen):
            return {"choices": [firsts[n] for n in chosen_of(spec, number)]}

        start = start_of(spec)
        self.add(graph, self.reader(start, choices if spec.is_chosen else None), start.name, before)
        lasts = [self.add_way(graph, way, None) for way in spec.ways]
        options = {"max_concurrent": spec.width, "on_error": spec.policy}
        if spec.is_chosen:
            graph.add_router([], start.name, firsts, **options)
        else:
            graph.add_parallel(start.name, firsts, **options)
        join = join_of(spec)
        graph.add_node(self.reader(join), name=join.name).add_join(lasts, join.name)
        return join.name

    def add_round(self, graph: Any, spec: Round, before: str | None) -> str:
        start, router, end = round_of(spec)

        def choice(number, seen):
            count = seen.get(f"{spec.name}#", 0) + 1
            return {f"{spec.name}#": count, "choice": start.name if count < spec.times else end.name}

        self.add(graph, self.reader(start), start.name, before)
        last = self.add_way(graph, spec.way, start.name)
        self.add(graph, self.reader(router, choice), router.name, last)
        graph.add_node(self.reader(end), name=end.name)
        graph.add_router([], router.name, [start.name, end.name])
        return end.name

    # Flows

    def walk(self, spec: Walk) -> Any:
        return self.flow(spec, shares(spec))

    def flow(self, spec: Walk, is_shared: bool) -> Any:
        nodes = [self.stop(each, is_shared) for each in spec.way]
        start = nodes[0]
        options: dict[str, Any] = {"timeout": NEVER} if spec.has_timeout else {}
        if spec.width is not None:
            options["max_concurrent"] = spec.width
            self.gauges.blocks[spec.name] = spec.width
        hooks: dict[str, Any] = {}
        if "Batch" in spec.kind:

            def prep(node, shared):
                return params_of(spec, shared, node.params)

            async def prep_async(node, shared):
                return params_of(spec, shared, node.params)

            hooks = {"prep_async": prep_async} if spec.kind.startswith("Async") else {"prep": prep}
        made = type(spec.name, (getattr(weft, spec.kind),), hooks)(start, **options)
        for at, (node, each) in enumerate(zip(nodes, spec.way, strict=True)):
            following = [*nodes[at + 1 :], None, None]
            node.next(following[0])
            if isinstance(each, Work):
                node.next(following[1], "skip")
                node.next(nodes[0], "back")
            elif isinstance(each, Walk):
                node.next(following[0], "skip")  # the action of its last node is its own
        return made

    def stop(self, spec: Any, is_shared: bool) -> Any:
        if isinstance(spec, Work):
            return self.node(spec, is_shared)
        if isinstance(spec, Walk):
            return self.flow(spec, shares(spec))
        return as_node(self.make(spec))

    def node(self, spec: Work, is_shared: bool) -> Any:
        inner = None if spec.inner is None else self.as_workflow(spec.inner)
        is_async, world = spec.kind.startswith("Async"), self.world

        def prep(node, shared):
            found = items_of(spec, shared, node.params, is_shared)
            return found if "Batch" in spec.kind else found[0]

        def exec_(node, item):
            if inner is None:
                return self.sync_work(spec, item)
            world.begins(spec.name)
            found = inner.invoke(_own(inner, item))
            world.ends(spec.name, item)
            return found

        def exec_fallback(node, item, error):
            world.ends(f"{spec.name} fallback", item)
            return ["fell", *map(str, error.args)]

        def post(node, shared, found, values):
            mark = mark_of(spec, node.params, is_shared)
            keep(spec, shared, mark, values if "Batch" in spec.kind else [values])
            return action_of(spec, shared, mark)

        async def prep_async(node, shared):
            return prep(node, shared)

        async def exec_async(node, item):
            if inner is None:
                return await self.work(spec, item)
            world.begins(spec.name)
            found = await inner.ainvoke(_own(inner, item))
            world.ends(spec.name, item)
            return found

        async def exec_fallback_async(node, item, error):
            return exec_fallback(node, item, error)

        async def post_async(node, shared, found, values):
            return post(node, shared, found, values)

        hooks: dict[str, Any] = {"prep": prep, "exec": exec_, "post": post}
        if spec.falls_back:
            hooks["exec_fallback"] = exec_fallback
        if is_async:
            hooks = {"prep_async": prep_async, "exec_async": exec_async, "post_async": post_async}
            if spec.falls_back:
                hooks["exec_fallback_async"] = exec_fallback_async
        options: dict[str, Any] = {"max_retries": spec.attempts, "wait": self.world.unit / 2}
        options["limit"] = [self.gauges.limits[n] for n in spec.limits]
        if spec.collects:
            options["on_error"] = "collect"
        if spec.width is not None:
            options["max_concurrent"] = spec.width
            self.gauges.blocks[spec.name] = spec.width
        return type(spec.name, (getattr(weft, spec.kind),), hooks)(**options)


class _Refuses(InMemorySaver):
    """What nothing inside of a run may touch."""

    def open_many(self, requests: Any) -> Any:
        raise AssertionError("an inner checkpointer was used")


UNUSED = _Refuses()


class _Calls:
    """How a body calls its parts."""

    def __init__(self, spec: Body, parts: list[Any], world: World) -> None:
        self.spec = spec
        self.parts = parts
        self.world = world

    # In an async body

    async def all(self, value: Any) -> Any:
        spec, parts = self.spec, self.parts
        if spec.way == "chain":
            for part in parts:
                value = await self.one(part, value)
            return value
        if spec.way == "fan":
            return await asyncio.gather(*(self.one(part, value) for part in parts))
        if spec.way == "map":
            return await weft.amap(parts[0], [value, value])
        if spec.way == "many":
            return await asyncio.gather(*(self.later(parts[0], each) for each in many(value)))
        if spec.way == "twice":
            return [await self.one(parts[0], value), await self.one(parts[0], value)]
        try:
            return [await self.one(part, value) for part in parts]
        except (Boom, ParallelExecutionError) as error:
            return ["caught", said(error)]

    async def later(self, part: Any, value: Any) -> Any:
        await asyncio.sleep(self.world.naps())
        return await self.one(part, value)

    async def one(self, part: Any, value: Any) -> Any:
        via = self.spec.via
        if via == "stream" and not isinstance(part, weft.Map):
            [chunk] = [chunk async for chunk in part.astream(_own(part, value))]
            [found] = chunk.values()
            return found
        if via == "plain":
            if isinstance(part, weft.Graph):
                return await part.execute(value)
            if isinstance(part, weft.Flow):
                shared = dict(value)
                await part.run_async(shared)
                return shared
            if isinstance(part, weft.Task | _Composed):
                return await part(value)
        return await part.ainvoke(_own(part, value))

    # In a sync one

    def sync_all(self, value: Any) -> Any:
        spec, parts = self.spec, self.parts
        if spec.way == "chain":
            for part in parts:
                value = self.sync_one(part, value)
            return value
        if spec.way == "fan":
            futures = [self.begun(number, part, value) for number, part in enumerate(parts)]
            wait(futures)
            return [future.result() for future in futures]
        if spec.way == "map":
            return weft.map(parts[0], [value, value])
        if spec.way == "many":
            begun = [(number, each) for number, each in enumerate(many(value))]
            self.world.luck.shuffle(begun)
            futures = {number: self.begun(0, parts[0], each) for number, each in begun}
            return [futures[number].result() for number in sorted(futures)]
        if spec.way == "twice":
            return [self.sync_one(parts[0], value), self.sync_one(parts[0], value)]
        try:
            return [self.sync_one(part, value) for part in parts]
        except (Boom, ParallelExecutionError) as error:
            return ["caught", said(error)]

    def begun(self, number: int, part: Any, value: Any) -> Any:
        if isinstance(part, weft.Task):
            return part(value)
        return weft.task(name=f"{self.spec.name} {number}")(lambda value: self.sync_one(part, value))(value)

    def sync_one(self, part: Any, value: Any) -> Any:
        via = self.spec.via
        if via == "stream" and not isinstance(part, weft.Map):
            [chunk] = part.stream(_own(part, value))
            [found] = chunk.values()
            return found
        if via == "plain":
            if isinstance(part, weft.Flow):
                shared = dict(value)
                part.run(shared)
                return shared
            if isinstance(part, _Composed):
                return part(value)
            if isinstance(part, weft.Task):
                return part(value).result()
        return part.invoke(_own(part, value))


def _own(part: Any, value: Any) -> Any:
    """A flow that is called works on what it is given."""
    return dict(value) if isinstance(part, weft.Flow) else value


# Lives


@dataclass
class Story:
    """One description from its first life to its last."""

    plan: Plan
    unit: float = 1.0
    path: Any = None  # where a database may be, made new for each story
    lives: int = 0
    questions: int = 0
    killed: int = 0
    cancelled: int = 0
    result: Any = None
    stores: list[Any] = field(default_factory=list)

    def tell(self) -> list[str]:
        """Run it; what was wrong."""
        self.world = World(self.plan.seed, unit=self.unit)
        self.model = Model()
        expected = self.model.value(self.plan.tree, self.plan.given)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = self.live()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self.world.problem(f"raised: {''.join(traceback.format_exception(error))}")
            return self.world.problems
        finally:
            for store in self.stores:
                store.close()
        self.result = found
        if shown(found) != shown(expected):
            self.world.problem(f"gave another answer: {shown(found)}\n  instead of {shown(expected)}")
        self.check_effects()
        self.check_state()
        return self.world.problems

    def live(self) -> Any:
        """All lives; what the last one gives."""
        plan = self.plan
        if not plan.store:
            return self.once(None, plan.given)
        self.memory = Mortal()
        given: Any = plan.given
        number = -1
        while (number := number + 1) < MOST_LIVES + self.questions:
            self.world.life = number
            store = self.opened()
            is_mortal = number < len(plan.commits)
            store.left = plan.commits[number] if is_mortal else 10**9
            cancel = plan.cancels[number] if is_mortal else 0
            self.world.durable |= recorded(store)
            try:
                found = self.once(store, given, cancel)
            except StoreError:
                self.killed += 1
                if not is_mortal:
                    raise
                given = plan.given
                continue
            except asyncio.CancelledError:
                if not cancel:
                    raise
                self.cancelled += 1
                given = plan.given
                continue
            if isinstance(found, dict) and "__interrupt__" in found:
                questions = found["__interrupt__"]
                some = self.world.luck.sample([*questions], self.world.luck.randint(1, len(questions)))
                self.questions += len(some)
                given = Command(resume={each.id: each.value[:-1] + "!" for each in some})
                continue
            self.check_again(store, found)
            return found
        raise AssertionError("it does not come to an end")

    def opened(self) -> Any:
        if self.plan.store == "memory":
            return self.memory
        self.stores.append(MortalFile(self.path))
        return self.stores[-1]

    def check_again(self, store: Any, found: Any) -> None:
        """A finished run gives the same again, and nothing runs."""
        store.left = 10**9
        before = Counter(self.world.done)
        again = self.once(store, self.plan.given)
        if shown(again) != shown(found):
            self.world.problem(
                f"a finished run gives something else: {shown(again)}\n instead of {shown(found)}"
            )
        if self.world.done != before:
            self.world.problem(f"a finished run has run again: {self.world.done - before}")
        twice = [name for name, times in counted(store).items() if times > 1]
        if twice:
            self.world.problem(f"was recorded twice: {twice}")

    def once(self, store: Any, given: Any, cancel: float = 0) -> Any:
        """One life."""
        plan, self.lives = self.plan, self.lives + 1
        limits = [Limit(f"limit {n}", concurrent=n + 1) for n in range(3)]
        gauges = Gauges(self.world, plan.width, limits)
        self.workflow = workflow = Builder(self.world, gauges).make(plan.tree)
        if inspect.isfunction(workflow):
            workflow = weft.Sequence(workflow)
        if isinstance(workflow, weft.Entrypoint):
            workflow.checkpointer = None  # that is the outer one's
        options: dict[str, Any] = {"max_concurrent": plan.width}
        if plan.has_timeout:
            options["timeout"] = NEVER
        if store is not None:
            options |= {"checkpointer": store, "run_id": "r", "durability": plan.durability}
        elif plan.store == "":
            options.pop("durability", None)
        if isinstance(given, dict):
            given = dict(given)
        life = Life(workflow, given, options, self.entry(given, cancel), cancel)
        found = life.virtual(plan.seed + self.lives) if self.unit else life.real()
        for limit in limits:
            if limit.in_use or limit.waiting:
                self.world.problem(f"{limit!r} is not free at the end")
        return found

    def entry(self, given: Any, cancel: float) -> str:
        if cancel:
            return "asubmit"
        if isinstance(given, Command):
            return "ainvoke" if self.plan.entry in ASYNC_ENTRIES else "invoke"
        return self.plan.entry

    def check_effects(self) -> None:
        """Each body has come to its end as often as it must."""
        done, least, most = self.world.done, self.model.least, self.model.most
        if missing := {name: (done[name], times) for name, times in least.items() if done[name] < times}:
            self.world.problem(f"ran too seldom: {_first(missing)}")
        if unknown := [name for name in done if name not in most]:
            self.world.problem(f"should not have run: {unknown[:3]}")
        if not self.killed and not self.cancelled:
            if often := {name: (done[name], times) for name, times in most.items() if done[name] > times}:
                self.world.problem(f"ran too often: {_first(often)}")

    def check_state(self) -> None:
        """A graph that was run has the state that it must have."""
        tree = self.plan.tree
        if isinstance(tree, Net) and tree.takes_state:
            found, wanted = seen_state(self.workflow.get_state()), seen_state(self.model.states[tree.name])
            if shown(found) != shown(wanted):
                self.world.problem(f"the state is {shown(found)}\n  instead of {shown(wanted)}")


def _first(found: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name[:150]}: {times[0]} times, not {times[1]}" for name, times in [*found.items()][:3]
    )


def counted(store: Any) -> Counter[str]:
    """The recorded outcomes of calls, by id."""
    if not store.find("r"):
        return Counter()
    return Counter(
        f"r:{each.identity.hex()}" for each in all_records(store, "r") if each.kind is RecordKind.OK
    )


def recorded(store: Any) -> set[str]:
    """The calls whose outcome is recorded."""
    return set(counted(store))


@dataclass
class Life:
    """One use of a verb."""

    workflow: Any
    given: Any
    options: dict[str, Any]
    entry: str
    cancel: float = 0

    def virtual(self, seed: int) -> Any:
        if self.entry in ASYNC_ENTRIES:
            return run_virtual(self.watched, seed=seed)
        with virtual_clock(seed):
            return self.sync()

    def real(self) -> Any:
        return asyncio.run(self.watched()) if self.entry in ASYNC_ENTRIES else self.sync()

    async def watched(self) -> Any:
        """What it gives; nothing of it is left on the loop."""
        try:
            async with asyncio.timeout(LONG):
                return await self.on_loop()
        except TimeoutError as error:
            raise AssertionError(f"it does not end in {LONG} s") from error
        finally:
            await asyncio.sleep(0)  # for tasks that were cancelled before they began
            left = asyncio.all_tasks() - {asyncio.current_task()}
            # After an error, the rest of an `asyncio.gather` in a body goes on: those tasks are the body's own.
            left = {task for task in left if task.get_coro().__qualname__ != _Calls.later.__qualname__}
            if left:
                raise AssertionError(f"tasks are left: {left}")

    async def on_loop(self) -> Any:
        workflow, given, options = self.workflow, self.given, self.options
        if self.entry == "ainvoke":
            return await workflow.ainvoke(given, **options)
        if self.entry == "astream" and not isinstance(workflow, weft.Map):
            return _of_chunks([chunk async for chunk in workflow.astream(given, **options)])
        if self.entry == "own_async":
            return await self.own_on_loop()
        handle = workflow.submit(given, **options)
        if self.cancel:
            asyncio.get_running_loop().call_later(self.cancel, handle.cancel)
        try:
            return await handle
        finally:
            if handle.status not in {"finished", "failed", "cancelled", "suspended"}:
                raise AssertionError(f"it has ended and is {handle.status}")

    async def own_on_loop(self) -> Any:
        workflow, given, options = self.workflow, self.given, self.options
        if isinstance(workflow, weft.Flow):
            found = await workflow.run_async(given, **options)
            return found if isinstance(found, dict) else given
        if isinstance(workflow, weft.Graph):
            return await workflow.execute(given, **options)
        return await workflow.ainvoke(given, **options)

    def sync(self) -> Any:
        workflow, given, options = self.workflow, self.given, self.options
        if self.entry == "stream" and not isinstance(workflow, weft.Map):
            return _of_chunks([*workflow.stream(given, **options)])
        if self.entry == "submit":
            return workflow.submit(given, **options).result()
        if self.entry == "own" and isinstance(workflow, weft.Flow):
            found = workflow.run(given, **options)
            return found if isinstance(found, dict) else given
        return workflow.invoke(given, **options)


def _of_chunks(chunks: list[dict[str, Any]]) -> Any:
    """What the run gave, of all that was streamed."""
    questions = [each for chunk in chunks for each in chunk.get("__interrupt__", ())]
    if questions:
        return {"__interrupt__": questions}
    [value] = chunks[-1].values()
    return value


# For people, and smaller


def described(spec: Any, indent: int = 0) -> str:
    """A description, one part a line."""
    default = type(spec)(name="")
    options = [
        f"{each.name}={getattr(spec, each.name)!r}"
        for each in fields(spec)
        if each.name != "name"
        and not [*_specs_in(getattr(spec, each.name))]
        and getattr(spec, each.name) != getattr(default, each.name)
    ]
    lines = [f"{'  ' * indent}{type(spec).__name__} {spec.name} {' '.join(options)}".rstrip()]
    for each in fields(spec):
        value = getattr(spec, each.name)
        if each.name == "ways":
            for way in value:
                lines.append(f"{'  ' * (indent + 1)}way")
                lines += [described(part, indent + 2) for part in way]
        else:
            lines += [described(part, indent + 1) for part in _specs_in(value)]
    return "\n".join(lines)


def description(plan: Plan) -> str:
    rest = {each.name: getattr(plan, each.name) for each in fields(plan) if each.name != "tree"}
    return f"{rest}\n{described(plan.tree)}"


def kind_of(problems: list[str]) -> str:
    """What is wrong, without what changes when the plan is made smaller."""
    if not problems:
        return ""
    if problems[0].startswith("raised"):
        lines = problems[0].strip().splitlines()
        found = [line.strip(" |") for line in lines if re.match(r"[ |]*[\w.]*(Error|Boom|Warning)\b", line)]
        return found[-1].split(":")[0] if found else lines[-1]
    return re.sub(r"\d+", "", problems[0].split(":")[0])[:40]


def smaller_specs(spec: Any) -> Iterator[Any]:
    """Simpler ones in its place."""
    if isinstance(spec, Par | Seq | Body | Choose | Each | Again):
        yield from parts_of(spec)
    if not isinstance(spec, Leaf | Reader | Work | Fork | Round):
        gives = result_of(spec)
        yield Leaf(f"{spec.name}", gives=gives if gives != "any" else "number")
    default = type(spec)(name="")
    for each in fields(spec):
        value = getattr(spec, each.name)
        inner = [*_specs_in(value)]
        if not inner:
            if each.name != "name" and value != getattr(default, each.name):
                yield replace(spec, **{each.name: getattr(default, each.name)})
        elif is_dataclass(value):
            if each.name == "inner":
                yield replace(spec, inner=None)
            for part in smaller_specs(value):
                yield replace(spec, **{each.name: part})
        else:
            yield from (replace(spec, **{each.name: found}) for found in _smaller_tuples(value))


def _smaller_tuples(value: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    for at, part in enumerate(value):
        before, after = value[:at], value[at + 1 :]
        if before or after:
            yield (*before, *after)
        if isinstance(part, tuple):
            for found in _smaller_tuples(part):
                yield (*before, found, *after)
            continue
        if isinstance(part, Fork):
            for way in part.ways:
                yield (*before, *way, *after)
        if isinstance(part, Round):
            yield (*before, *part.way, *after)
        for found in smaller_specs(part):
            yield (*before, found, *after)


def smaller(plan: Plan) -> Iterator[Plan]:
    """Plans that are a little simpler."""
    default = Plan(plan.seed, plan.tree)
    for each in fields(plan):
        if each.name not in {"seed", "tree", "given", "store", "commits", "cancels"} and (
            getattr(plan, each.name) != getattr(default, each.name)
        ):
            yield replace(plan, **{each.name: getattr(default, each.name)})
    if plan.store:
        yield replace(plan, store="", commits=(), cancels=())
        yield replace(plan, store="memory")
    for at in range(len(plan.commits)):
        commits = (*plan.commits[:at], *plan.commits[at + 1 :])
        yield replace(plan, commits=commits, cancels=(*plan.cancels[:at], *plan.cancels[at + 1 :]))
    if any(plan.cancels):
        yield replace(plan, cancels=(0,) * len(plan.cancels))
    for tree in smaller_specs(plan.tree):
        yield replace(plan, tree=tree)


def told(plan: Plan, *, unit: float = 1.0, path: Any = None) -> tuple[list[str], Story]:
    """The story of a plan: what was wrong, and the rest."""
    if path is not None:
        for each in path.parent.glob(f"{path.name}*"):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    story = Story(plan, unit=unit, path=path)
    return story.tell(), story


def shrunk(plan: Plan, kind: str, *, seconds: float = 60.0, path: Any = None) -> Plan:
    """The smallest plan found in that time that goes wrong in the same way."""
    until = time.monotonic() + seconds
    found = True
    while found:
        found = False
        for each in smaller(plan):
            if time.monotonic() > until:
                return plan
            with suppress(Exception):  # not every smaller plan can be built
                if kind_of(told(each, path=path)[0]) == kind:
                    plan, found = each, True
                    break
    return plan


def drawn(seed: int, **options: Any) -> Plan:
    """The plan of a number: the first that is not too big."""
    asks = random.Random(seed).random() < 0.4
    for again in numbers():
        plan = replace(Draw(seed + again * 2**40, asks=asks).plan(**options), seed=seed)
        if not plan.store:
            plan = _without_questions(plan)  # which may make it bigger
        with suppress(TooBig):
            Model().value(plan.tree, plan.given)
            break
    return plan


def _without_questions(plan: Plan) -> Plan:
    return replace(plan, tree=_quiet(plan.tree))


def _quiet(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_quiet(each) for each in value)
    if not is_dataclass(value):
        return value
    changed = {each.name: _quiet(getattr(value, each.name)) for each in fields(value)}
    return replace(value, **({**changed, "asks": False} if "asks" in changed else changed))  # type: ignore[type-var]


__all__ = ["Builder", "Draw", "Model", "Plan", "Story", "described", "description", "drawn", "shrunk", "told"]
