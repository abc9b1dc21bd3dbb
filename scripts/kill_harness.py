"""Kill real runs with SIGKILL, resume them, and look what they had done.

    python scripts/kill_harness.py --each 100 [--store sqlite] [--seed N] [--flow NAME ...] [--point NAME ...]
    python scripts/kill_harness.py --kills 1000

``--each`` kills so often at every named point: the process ends itself at a random passage of, say, the moment between
two statements of a commit; ``tests/support/commit_points.py`` says which points there are. ``--kills`` is for random
moments alone. Points that were hit fewer times than asked are a failure, as violations are.

A parent without threads forks a child for each life of a run, so that a thousand lives cost little. What a life does it
appends to a file: `ran STEP CALL TIME`, `used STEP` when the workflow has a step's result, `chose N WHAT` when it has
decided by the order of results or by a recorded value, `opened RUN` and `accepted RUN` when the engine and the caller
have the run. The audit reads that file and the rows in the store, never what the engine says of itself:

- the answer is that of a run that nobody killed, and asked again it is the same;
- a result that was used is in the store, and its step does not run again; nor does one that is recorded as done;
- what was decided is decided the same in every later life;
- who was given a run's id finds the run;
- nothing hangs.

``--plant NAME`` breaks the product on purpose, so that the audit has something to see; so does a ``--durability`` that
promises less.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import faulthandler
import json
import math
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from itertools import count, cycle
from pathlib import Path
from typing import Any, Literal

import weft
from weft import (
    AsyncNode,
    AsyncParallelBatchFlow,
    AsyncParallelBatchNode,
    CheckpointError,
    Failed,
    Flow,
    Graph,
    Node,
    ParallelBatchNode,
    RunBusyError,
    RunNotFoundError,
    RunStatus,
    Sequence,
    SqliteSaver,
    decision,
    entrypoint,
    node,
    parallel,
    race,
    router,
    task,
)
from weft.checkpoint.base import Checkpointer, Record, RecordKind, all_records

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from commit_points import Aim, Join, Point, passed, passes, put, watch
from killing import PLANTS

# --- What a life writes down ------------------------------------------------------------------------------


def note(*words: object) -> None:
    """One line, in one write, to the end of the effects file."""
    line = " ".join(map(str, words)) + "\n"
    fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)


def ran(step: str) -> None:
    """The effect of a step."""
    passes(Point.BODY)
    note("ran", step, weft.call_id(), repr(time.time()))
    passes(Point.EFFECT)


def used(*steps: str) -> None:
    """The workflow has the results of these steps."""
    for step in steps:
        note("used", step)
        passes(Point.ACKNOWLEDGED)


def joined(*steps: str) -> None:
    """What comes after branches is at work, and has the results of these."""
    passes(Point.JOIN)
    used(*steps)
    passes(Point.JOIN)


def chose(what: str, which: object) -> None:
    note("chose", what, which)


async def pause() -> None:
    await asyncio.sleep(random.random() * 0.002)


def pause_here() -> None:
    time.sleep(random.random() * 0.002)


# --- Functional -------------------------------------------------------------------------------------------


@task
async def work(i: int) -> int:
    ran(f"work{i}")
    await pause()
    return i * i


@task
def work_in_thread(i: int) -> int:
    ran(f"thread{i}")
    pause_here()
    return i * i


@task
async def pair(i: int) -> int:
    a, b = await asyncio.gather(work(i), work(i + 1000))
    joined(f"work{i}", f"work{i + 1000}")
    ran(f"pair{i}")
    return a + b


@task
async def failing(i: int) -> int:
    ran(f"failing{i}")
    await asyncio.sleep(random.random() * 0.001)
    raise KeyError(i)


@entrypoint()
async def gathered(n: int) -> int:
    total = 0
    for start in range(0, n, 20):
        numbers = range(start, start + 20)
        values = await asyncio.gather(*[work(i) for i in numbers])
        joined(*[f"work{i}" for i in numbers])
        total += sum(values)
    return total


@entrypoint()
async def completed(n: int) -> int:
    total = 0
    for future in asyncio.as_completed([work(i) for i in range(n)]):
        value = await future
        used(f"work{round(value**0.5)}")
        total += value
    return total


@entrypoint()
def threaded(n: int) -> int:
    total = 0
    futures = {work_in_thread(i): i for i in range(n)}
    for future in concurrent.futures.as_completed(futures):
        total += future.result()
        used(f"thread{futures[future]}")
    joined()
    return total


@entrypoint()
async def nested(n: int) -> int:
    values = await asyncio.gather(*[pair(i) for i in range(n // 3)])
    joined(*[f"pair{i}" for i in range(n // 3)])
    return sum(values)


@entrypoint()
async def racing(n: int) -> int:
    """Each round goes on with whoever comes first: the next arguments depend on the order of results."""
    total = 0
    for turn in range(n // 4):
        futures = {asyncio.ensure_future(work(turn * 10 + i)): i for i in range(4)}
        done, rest = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        chose(f"first{turn}", ",".join(sorted(str(futures[f]) for f in done)))
        for future in asyncio.as_completed(rest):
            value = await future
            chose(f"then{turn}.{value}", total)
            total += value % 7
        joined(*[f"work{turn * 10 + i}" for i in range(4)])
    return 0


@entrypoint()
def racing_threads(n: int) -> int:
    total = 0
    for turn in range(n // 8):
        futures = {work_in_thread(turn * 10 + i): i for i in range(4)}
        done, rest = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
        chose(f"first{turn}", ",".join(sorted(str(futures[f]) for f in done)))
        for future in concurrent.futures.as_completed(rest):
            value = future.result()
            chose(f"then{turn}.{value}", total)
            total += value % 7
        joined(*[f"thread{turn * 10 + i}" for i in range(4)])
    return 0


@entrypoint()
async def recovering(n: int) -> int:
    """Goes on from failures: each is caught, and something else is asked for because of it."""
    total = 0
    for i in range(n // 4):
        try:
            await failing(i)
        except KeyError:
            total += await work(i)
            joined(f"failing{i}", f"work{i}")
    return total


# --- Graph ------------------------------------------------------------------------------------------------


@router
async def again(turn: int, turns: int) -> dict[str, object]:
    if turn:
        used(f"fold{turn - 1}")
    return {"choices": ["left", "right", "bad", "opener"]} if turn < turns else {"choice": "finish"}


@node
async def left(turn: int, state: dict) -> dict[str, object]:
    ran(f"left{turn}")
    await pause()
    state["history"].append(f"left{turn}")
    return {"left": turn, "last": "left"}


@node
def right(turn: int, state: dict) -> dict[str, object]:
    ran(f"right{turn}")
    pause_here()
    state["history"].append(f"right{turn}")
    return {"right": turn * 2, "last": "right"}


@node
async def bad(turn: int) -> dict[str, object]:
    ran(f"bad{turn}")
    await asyncio.sleep(random.random() * 0.001)
    raise KeyError(turn)


@node
async def opener(turn: int, state: dict) -> dict[str, object]:
    ran(f"opener{turn}")
    state["history"].append(f"opener{turn}")
    return {}


def racer(name: str) -> Any:
    async def body(turn: int) -> dict[str, object]:
        used(f"opener{turn}")
        await asyncio.sleep(random.random() * 0.001)
        return {"winner": name, "last": name}

    return node(name=name)(body)


@node
async def after(turn: int, winner: str) -> dict[str, object]:
    passes(Point.JOIN)
    chose(f"winner{turn}", winner)
    await asyncio.sleep(random.random() * 0.001)
    return {}


@node
async def fold(
    turn: int, total: int, left: int, right: int, bad: Failed, last: str, winner: str, state: dict
) -> dict[str, object]:
    joined(*[f"{name}{turn}" for name in ("left", "right", "bad")])
    chose(f"winner{turn}", winner)
    chose(f"last{turn}", last)
    chose(f"order{turn}", ",".join(state["history"]))
    state["history"].clear()
    state["turns"] = [*state.get("turns", []), turn]
    ran(f"fold{turn}")
    failed = bad.error.args[0] if isinstance(bad.error, KeyError) else -1
    return {"total": total + left + right + failed, "turn": turn + 1}


@node
async def finish(state: dict) -> dict[str, object]:
    return {"turns seen": len(state["turns"])}


def looping_graph() -> Graph:
    """A loop through a join, behind which what was written last and in which order counts; a race in one branch."""
    graph = Graph(initial_state={"history": []})
    racers = [racer(name) for name in ("one", "two", "three")]
    for part in (again, left, right, bad, opener, *racers, after, fold, finish):
        graph.add_node(part, start=part is again, end=part is finish)
    graph.add_parallel("again", ["left", "right", "bad", "opener", "finish"], on_error="collect")
    graph.add_parallel("opener", ["one", "two", "three"], on_error="race")
    graph.add_join(["one", "two", "three"], "after").add_join(["left", "right", "bad", "after"], "fold")
    return graph.add_edge("fold", "again")


def graph_answer(graph: Graph, result: Any, thread: dict[str, Any]) -> object:
    turns = graph.get_state(**thread)["turns"]
    return [result["total"], result["turns seen"], turns == [*range(len(turns))]]


# --- Compose ----------------------------------------------------------------------------------------------


@node
async def begin(n: int) -> dict[str, Any]:
    ran("begin")
    return {"turn": 0, "turns": n // 8, "total": 0}


@node
async def quick(value: dict) -> int:
    used("begin", *[f"sum{turn}" for turn in range(value["turn"])])
    ran(f"quick{value['turn']}")
    await pause()
    return value["turn"]


@node
def slow(value: dict) -> int:
    ran(f"slow{value['turn']}")
    pause_here()
    return value["turn"] * 2


@node
async def first_half(value: dict) -> dict:
    ran(f"half{value['turn']}")
    return value


@node
def second_half(value: dict) -> str:
    """What is recorded is chance: it must stay what it was."""
    used(f"half{value['turn']}")
    ran(f"coin{value['turn']}")
    return os.urandom(4).hex()


@node
async def broken(value: dict) -> None:
    ran(f"broken{value['turn']}")
    await pause()
    raise KeyError(value["turn"])


def runner(name: str) -> Any:
    async def body(value: dict) -> str:
        await asyncio.sleep(random.random() * 0.001)
        return name

    return node(name=name)(body)


@node
def was(value: dict) -> dict:
    return value


@node("sum")
async def sum_up(found: dict) -> dict[str, Any]:
    value = found["was"].get()
    turn = value["turn"]
    joined(*[f"{name}{turn}" for name in ("quick", "slow", "coin", "broken")])
    chose(f"winner{turn}", found["winner"].get())
    chose(f"coin{turn}", found["halves"].get())
    ran(f"sum{turn}")
    failed = found["broken"].error.args[0]
    total = value["total"] + found["quick"].get() + found["slow"].get() + failed
    return {**value, "turn": turn + 1, "total": total}


@decision
def more(value: dict) -> Literal["spread", "end"]:
    return "spread" if value["turn"] < value["turns"] else "end"


@node("end")
def end(value: dict) -> int:
    return value["total"]


def looping_sequence() -> Sequence:
    """A block whose failures are collected, with a race in it, in a loop."""
    winner = race(*[runner(name) for name in ("one", "two", "three")], name="winner")
    halves = Sequence(first_half, second_half, name="halves")
    spread = parallel(
        *(quick, slow, halves, broken, winner, was),
        name="spread",
        on_error="collect",
        optimization_enabled=False,
    )
    return Sequence(begin, spread, sum_up, more, end, name="composed")


@node
def numbers(n: int) -> list[int]:
    ran("numbers")
    return list(range(n // 4))


@node
async def weigh(i: int) -> int:
    used("numbers")
    ran(f"weigh{i}")
    await pause()
    return i


@node
async def half(i: int) -> int:
    used(f"weigh{i}")
    ran(f"half{i}")
    await pause()
    return i


@node
def double(i: int) -> int:
    ran(f"double{i}")
    pause_here()
    return 2 * i


@node
def total(found: list[dict[str, int]]) -> int:
    joined(*[f"{name}{i}" for i in range(len(found)) for name in ("half", "double")])
    return sum(each["half"] + each["double"] for each in found)


def mapped() -> Sequence:
    """A map over blocks."""
    item = Sequence(weigh, parallel(half, double, optimization_enabled=False), name="item")
    return Sequence(numbers, weft.map(item, max_concurrent=6), total, name="mapped")


# --- Batch ------------------------------------------------------------------------------------------------


class Plan(Node):
    def prep(self, shared: dict) -> int:
        return shared["turn"]

    def exec(self, turn: int) -> list[int]:
        ran(f"plan{turn}")
        return [turn * 10 + i for i in range(5)]

    def post(self, shared: dict, turn: int, items: list[int]) -> None:
        used(f"plan{turn}")
        shared["items"] = items


class Squares(AsyncParallelBatchNode):
    async def prep_async(self, shared: dict) -> list[int]:
        return shared["items"]

    async def exec_async(self, i: int) -> int:
        ran(f"square{i}")
        await pause()
        return i * i

    async def post_async(self, shared: dict, items: list[int], squares: list[int]) -> None:
        joined(*[f"square{i}" for i in items])
        shared["total"] += sum(squares)


class Cubes(ParallelBatchNode):
    max_retries = 2

    def prep(self, shared: dict) -> list[int]:
        return shared["items"]

    def exec(self, i: int) -> int:
        ran(f"cube{i}")
        pause_here()
        if i % 5 == 3:
            raise KeyError(i)
        return i * i * i

    def exec_fallback(self, i: int, error: Exception) -> int:
        return -i

    def post(self, shared: dict, items: list[int], cubes: list[int]) -> None:
        joined(*[f"cube{i}" for i in items])
        shared["total"] += sum(cubes)


class Coin(Node):
    """How the flow goes on is chance, and must stay what it was; one way is as long as the other."""

    def prep(self, shared: dict) -> int:
        return shared["turn"]

    def exec(self, turn: int) -> str:
        ran(f"coin{turn}")
        return "heads" if os.urandom(1)[0] % 2 else "tails"

    def post(self, shared: dict, turn: int, coin: str) -> str:
        used(f"coin{turn}")
        chose(f"coin{turn}", coin)
        shared["turn"] = turn + 1
        return coin if turn + 1 < shared["turns"] else "done"


class Done(Node):
    def post(self, shared: dict, *_: object) -> None:
        passes(Point.JOIN)


def looping_flow() -> Flow:
    plan, other_plan, coin = Plan(), Plan(), Coin()
    squares = Squares()
    plan >> squares
    other_plan >> squares
    squares >> Cubes() >> coin
    coin - "heads" >> plan
    coin - "tails" >> other_plan
    coin - "done" >> Done()
    return Flow(plan)


class Load(AsyncNode):
    async def exec_async(self, _: object) -> int:
        ran(f"load{self.params['i']}")
        await pause()
        return self.params["i"] * 2

    async def post_async(self, shared: dict, _: object, loaded: int) -> None:
        used(f"load{self.params['i']}")
        shared["loaded"][self.params["i"]] = loaded


class Refine(AsyncNode):
    async def prep_async(self, shared: dict) -> int:
        return shared["loaded"][self.params["i"]]

    async def exec_async(self, loaded: int) -> int:
        ran(f"refine{self.params['i']}")
        await pause()
        return loaded + 1

    async def post_async(self, shared: dict, _: object, refined: int) -> None:
        used(f"refine{self.params['i']}")
        shared["refined"][self.params["i"]] = refined


class Files(AsyncParallelBatchFlow):
    async def prep_async(self, shared: dict) -> list[dict[str, int]]:
        return [{"i": i} for i in range(shared["n"])]

    async def post_async(self, shared: dict, *_: object) -> None:
        joined()
        shared["total"] = sum(shared["refined"].values())


def flow_of_files() -> Files:
    load = Load()
    load >> Refine()
    return Files(load, max_concurrent=8)


# --- All of them ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sort:
    """A sort of run: what runs, and what comes together in it. Each life has a workflow of its own."""

    style: str
    make: Callable[[], Any]
    input: Callable[[], Any]
    joins: tuple[Join, ...]
    #: Of the workflow, what it returned, and, if it ran in a thread, how to ask for that.
    answer: Callable[[Any, Any, dict[str, Any]], object] = lambda _workflow, result, _thread: result


def functional(flow: Any, n: int, *joins: Join) -> Sort:
    return Sort("functional", lambda: flow, lambda: n, joins)


def join(width: int, *steps: str, each: bool = False) -> Join:
    return Join(frozenset(steps), width, each)


SORTS = {
    "gathered": functional(gathered, 60, join(20, "work")),
    "completed": functional(completed, 60, join(60, "work")),
    "threaded": functional(threaded, 60, join(60, "work_in_thread")),
    "nested": functional(nested, 60, join(2, "work", each=True), join(20, "pair")),
    "racing": functional(racing, 40, join(4, "work")),
    "racing_threads": functional(racing_threads, 80, join(4, "work_in_thread")),
    "recovering": functional(recovering, 40, join(1, "work")),
    "graph": Sort(
        "graph",
        looping_graph,
        lambda: {"turn": 0, "turns": 6, "total": 0},
        (join(4, "left", "right", "bad", "after"),),
        graph_answer,
    ),
    "composed": Sort(
        "compose",
        looping_sequence,
        lambda: 48,
        (join(6, "quick", "slow", "halves", "broken", "winner", "was"),),
    ),
    "mapped": Sort("compose", mapped, lambda: 60, (join(2, "half", "double", each=True), join(15, "item"))),
    "flow": Sort(
        "batch",
        looping_flow,
        lambda: {"turn": 0, "turns": 4, "total": 0},
        (join(5, "Squares", each=True), join(5, "Cubes", each=True)),
        lambda _workflow, shared, _thread: [shared["turn"], shared["total"]],
    ),
    "files": Sort(
        "batch",
        flow_of_files,
        lambda: {"n": 20, "loaded": {}, "refined": {}},
        (join(20, "Refine"),),
        lambda _workflow, shared, _thread: shared["total"],
    ),
}

# --- Stores -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A place for journals: what makes a store there, and what else a process does for it first."""

    cls: type[Checkpointer]
    make: Callable[..., Checkpointer]
    prepare: Callable[[], None] = lambda: None


class Postgres:
    """One server for all; mostly one schema for all, too, in which each run has an id of its own."""

    #: How a commit is sent: as one statement; as several in a transaction; the records apart from the rest.
    variants = ("plain", "pooled", "copied")

    def __init__(self, stack: ExitStack) -> None:
        from postgres import address, fresh_schema  # noqa: PLC0415 - starts a server if there is none

        self._server = address()  # started here, and not in each of the children
        self._fresh_schema = fresh_schema
        self._schema = stack.enter_context(fresh_schema())

    @contextmanager
    def place(self, folder: Path, variant: str, *, is_new: bool) -> Iterator[Place]:
        from weft.checkpoint import postgres  # noqa: PLC0415 - needs psycopg

        more: dict[str, Any] = {"pooled": True, "direct": self._server} if variant == "pooled" else {}

        def send_records_apart() -> None:
            if variant == "copied":
                put(postgres, "_MANY_RECORDS", -1)

        def place(schema: str) -> Place:
            def make(**options: Any) -> Checkpointer:
                return postgres.PostgresSaver(self._server, schema=schema, timeout=20.0, **more, **options)

            return Place(postgres.PostgresSaver, make, send_records_apart)

        if not is_new:
            yield place(self._schema)
            return
        with self._fresh_schema() as schema:
            yield place(schema)


class Sqlite:
    """A file for each run, in its folder."""

    variants = ("plain",)

    def __init__(self, _: ExitStack) -> None:
        pass

    @contextmanager
    def place(self, folder: Path, variant: str, *, is_new: bool) -> Iterator[Place]:
        def make(**options: Any) -> Checkpointer:
            return SqliteSaver(folder / "runs.db", **options)

        yield Place(SqliteSaver, make)


STORES = {"sqlite": Sqlite, "postgres": Postgres}

# --- Lives ------------------------------------------------------------------------------------------------

#: The lease of a life that is to end at its renewal: so short that one falls between two commits.
SHORT_LEASE = 0.008


class End(Enum):
    """How a life ended."""

    DONE = "done"
    KILLED = "killed"
    FAILED = "failed"
    HUNG = "hung"


@dataclass
class Story:
    """A run, from its beginning to its end, in however many lives."""

    sort: Sort
    place: Place
    folder: Path
    run_id: str
    by_thread: bool = False  # the caller names a thread, and is given the run's id
    plant: Callable[[], None] = lambda: None
    durability: str = "sync"
    patience: float = 60.0  # seconds

    def effects(self) -> list[list[str]]:
        path = self.folder / "effects"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def accepted(self) -> str | None:
        """The id of the run that its caller has, if it has one."""
        found = [words[1] for words in self.effects() if words[0] == "accepted"]
        return found[-1] if found else None


def live(story: Story, aim: Aim | None, seed: float) -> None:
    """One life of the run, in this process, to its end."""
    random.seed(seed)
    os.environ["EFFECTS"] = str(story.folder / "effects")
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    story.place.prepare()
    story.plant()
    watch(story.place.cls, lambda run: note("opened", run), aim, story.sort.joins)
    lease = {"lease": SHORT_LEASE} if aim is not None and aim.point is Point.BEAT else {}
    workflow, store = story.sort.make(), story.place.make(**lease)
    result = until_free(lambda: go_on(story, workflow, store))
    thread = {"thread_id": story.run_id, "checkpointer": store} if story.by_thread else {}
    answer = story.sort.answer(workflow, result, thread)
    (story.folder / "answer.json").write_text(json.dumps(answer))
    (story.folder / "passed.json").write_text(json.dumps(passed()))


def go_on(story: Story, workflow: Any, store: Checkpointer) -> Any:
    """Begin the run, or go on with it, as its caller does."""
    options: dict[str, Any] = {"checkpointer": store, "max_concurrent": 16, "durability": story.durability}
    if not story.by_thread:
        return workflow.invoke(story.sort.input(), run_id=story.run_id, **options)
    accepted = story.accepted()
    if accepted is not None:
        try:
            return workflow.invoke(None, run_id=accepted, **options)
        except RunNotFoundError:
            note("missing", accepted)
            raise
    note("anew")
    run = workflow.submit(story.sort.input(), thread_id=story.run_id, **options)
    next(iter(run.events()))
    if run.id:  # else it could not be opened
        note("accepted", run.id)
    return run.result()


def until_free(work: Callable[[], Any]) -> Any:
    """A server takes its time to notice that a process has died; a file's lock is gone with it."""
    for _ in range(100):
        try:
            return work()
        except RunBusyError as error:
            note("busy", type(error).__name__)
            time.sleep(0.02)
    return work()


def in_child(work: Callable[[], None]) -> tuple[int, int]:
    """Do something in a forked child; its pid, and a pipe that is at its end when the child is."""
    ended, alive = os.pipe()
    pid = os.fork()
    if pid:
        os.close(alive)
        return pid, ended
    try:
        os.close(ended)
        work()
    except BaseException as error:
        os.write(2, f"child: {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def lived(story: Story, aim: Aim | None, seed: float) -> End:
    """One life of the run, in a child; how it ended."""
    pid, ended = in_child(lambda: live(story, aim, seed))
    at_random = aim is not None and aim.point is Point.RANDOM
    in_time, _, _ = select.select([ended], [], [], aim.delay if at_random else story.patience)
    if not in_time and not at_random:
        os.kill(pid, signal.SIGUSR1)  # it says where it is
        time.sleep(0.3)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    os.close(ended)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not in_time and not at_random:
        return End.HUNG
    if status == -signal.SIGKILL:
        return End.KILLED
    return End.FAILED if status else End.DONE


# --- The audit --------------------------------------------------------------------------------------------


def audit(effects: list[list[str]]) -> list[str]:
    """What the effects of all lives of a run violate by themselves."""
    seen: set[str] = set()
    done: set[str] = set()
    chosen: dict[str, str] = {}
    violations = []
    for kind, *words in effects:
        if kind == "ran":
            seen.add(words[0])
            if words[0] in done:
                violations.append(f"{words[0]} ran again after its result was used")
        elif kind == "used":
            done.add(words[0])
            if words[0] not in seen:
                violations.append(f"{words[0]} was used and never ran")
        elif kind == "chose" and chosen.setdefault(words[0], words[1]) != words[1]:
            violations.append(f"{words[0]}: chose {chosen[words[0]]} first and {words[1]} later")
        elif kind == "missing":
            violations.append(f"run {words[0]} is missing though it was accepted")
        elif kind == "anew":  # nobody has the run that was begun before
            seen, done, chosen = set(), set(), {}
    return violations


def current(effects: list[list[str]]) -> list[list[str]]:
    """The effects of the run that its caller has."""
    begun = max((place for place, words in enumerate(effects) if words[0] == "anew"), default=-1)
    return effects[begun + 1 :]


def audit_store(store: Checkpointer, effects: list[list[str]]) -> list[str]:
    """What is wrong with the rows in the store, beside the effects of what has been killed, or is done."""
    mine = current(effects)
    records: dict[str, list[Record]] = {}  # by call
    for run in {words[1] for words in mine if words[0] == "opened"}:
        for record in all_records(store, run):
            records.setdefault(f"{run}:{record.identity.hex()}", []).append(record)
    return [
        *missing_runs(store, effects),
        *lost_results(mine, records),
        *recorded_twice(records),
        *ran_though_recorded(mine, records),
    ]


def missing_runs(store: Checkpointer, effects: list[list[str]]) -> list[str]:
    accepted = {words[1] for words in effects if words[0] in ("opened", "accepted")}
    return [
        f"run {run} is missing though it was accepted" for run in sorted(accepted) if store.find(run) is None
    ]


def lost_results(effects: list[list[str]], records: dict[str, list[Record]]) -> list[str]:
    calls = {words[1]: words[2] for words in effects if words[0] == "ran"}
    kinds = {RecordKind.OK, RecordKind.FAILED}
    recorded = {call for call, found in records.items() if any(record.kind in kinds for record in found)}
    needed = dict.fromkeys(words[1] for words in effects if words[0] == "used")
    return [
        f"the result of {step} was used, and is lost"
        for step in needed
        if step in calls and calls[step] not in recorded
    ]


def recorded_twice(records: dict[str, list[Record]]) -> list[str]:
    return [
        f"{found[0].step} ({call}) is recorded twice"
        for call, found in records.items()
        if sum(record.kind is RecordKind.OK for record in found) > 1
    ]


def ran_though_recorded(effects: list[list[str]], records: dict[str, list[Record]]) -> list[str]:
    ended = {
        call: min(ends)
        for call, found in records.items()
        if (ends := [record.ended for record in found if record.kind is RecordKind.OK])
    }
    return [
        f"{words[1]} ran again after its result was recorded"
        for words in effects
        if words[0] == "ran" and float(words[3]) > ended.get(words[2], math.inf)
    ]


def audit_end(store: Checkpointer, story: Story, expected: object) -> list[str]:
    """What is wrong with a run that should be finished."""
    runs = [words[1] for words in current(story.effects()) if words[0] == "opened"]
    row = store.find(runs[-1]) if runs else None
    violations = audit_store(store, story.effects())
    if row is None or row.status is not RunStatus.FINISHED:
        violations.append(f"the run is not finished: {row and row.status}")
    answer = story.folder / "answer.json"
    given = json.loads(answer.read_text()) if answer.exists() else None
    if given != expected:
        violations.append(f"the answer is {given}, not {expected}")
    return violations


def look(story: Story, audit: Callable[[Checkpointer], list[str]]) -> list[str]:
    """What an audit sees in the story's store, as a process sees it that comes anew."""
    store = story.place.make()
    try:
        return audit(store)
    except CheckpointError as error:
        return [f"the store cannot be read: {error}"]
    finally:
        store.close()


# --- Trials -----------------------------------------------------------------------------------------------


#: Points that any run may pass, though one that nobody disturbs does not count them.
_ANYWHERE = {Point.RANDOM, Point.BEAT}


@dataclass
class Undisturbed:
    """What a run is like that nobody kills."""

    answer: object
    seconds: float
    passed: dict[str, int]


@dataclass
class Figures:
    """What happened in one store."""

    points: Counter[Point] = field(default_factory=Counter)
    sorts: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    late: int = 0  # deaths that a server noticed late
    bad: int = 0


class Harness:
    """Kills runs on one store until every point was hit as often as is asked."""

    def __init__(self, name: str, args: argparse.Namespace, stack: ExitStack) -> None:
        self._store = STORES[name](stack)
        self._name = name
        self._args = args
        self._draw = random.Random(f"{args.seed}/{name}")
        self._numbers = count(1)
        self._plant = PLANTS.get(args.plant, lambda: None)
        self.undisturbed = cache(self._undisturbed)
        self.figures = Figures()
        self.wanted = Counter(dict.fromkeys(args.points, args.each))
        if args.kills:
            self.wanted = Counter({Point.RANDOM: args.kills})

    def run(self) -> None:
        """Until all is hit, or it is clear that it will never be."""
        turns = self._turns()
        for _ in range(50 + 10 * self.wanted.total()):
            if not self.short():
                return
            self._trial(next(turns))

    def _turns(self) -> Iterator[str]:
        """The sorts of runs in turn: as many of each style."""
        chosen = self._args.flow or sorted(SORTS)
        styles: dict[str, list[str]] = {}
        for name in chosen:
            styles.setdefault(SORTS[name].style, []).append(name)
        within = [cycle(names) for names in styles.values()]
        for names in cycle(within):
            yield next(names)

    def short(self) -> list[Point]:
        """The points that were hit fewer times than is asked."""
        return [point for point, wanted in self.wanted.items() if self.figures.points[point] < wanted]

    @contextmanager
    def _story(self, name: str, variant: str, *, is_new: bool = False) -> Iterator[Story]:
        run_id = f"{self._args.seed}-{next(self._numbers)}"
        with (
            tempfile.TemporaryDirectory(prefix="weft-kill-") as folder,
            self._store.place(Path(folder), variant, is_new=is_new) as place,
        ):
            story = Story(SORTS[name], place, Path(folder), run_id)
            story.durability, story.patience = self._args.durability, self._args.patience
            yield story

    def _undisturbed(self, name: str, variant: str) -> Undisturbed:
        with self._story(name, variant) as story:
            began = time.monotonic()
            if lived(story, None, 0.5) is not End.DONE:
                raise SystemExit(f"{name}: the run that nobody killed failed")
            seconds = time.monotonic() - began
            answer, passages = (
                json.loads((story.folder / file).read_text()) for file in ("answer.json", "passed.json")
            )
            return Undisturbed(answer, seconds, passages)

    def _trial(self, name: str) -> None:
        """A run that is killed one to three times, looked at, resumed, and looked at again."""
        draw = self._draw
        variant = draw.choice(self._store.variants)
        usual = self.undisturbed(name, variant)
        points = [point for point in self.short() if point in _ANYWHERE or usual.passed.get(point.name)]
        if not points:  # this one passes none of them
            return
        aims = [self._aim(draw.choice(points), usual) for _ in range(draw.choice((1, 1, 2, 3)))]
        is_new = any(aim.point is Point.OPENING for aim in aims) and draw.random() < 0.3
        with self._story(name, variant, is_new=is_new) as story:
            story.by_thread, story.plant = draw.random() < 0.5, self._plant
            violations = self._kill(story, aims, name)
            if not violations:
                violations = self._finish(story, usual.answer, asks_again=draw.random() < 0.25)
            if violations:
                violations += self._look(story)
            violations += audit(story.effects())
            violations = list(dict.fromkeys(violations))
            late = sum(words[0] == "busy" for words in story.effects())
            if late and self._name == "sqlite":
                violations.append("the run of a process that was killed was not free at once")
            self.figures.late += late
        self.figures.runs += 1
        self.figures.bad += bool(violations)
        if violations:
            how = ", ".join(f"{aim.point.name.lower()}:{aim.passage}:{aim.delay:.4f}" for aim in aims)
            mode = " by thread" if story.by_thread else ""
            print(
                f"{self._name} {variant}: {name}{mode} killed at {how}:",
                *violations[:3],
                sep="\n  ",
                flush=True,
            )

    def _aim(self, point: Point, usual: Undisturbed) -> Aim:
        if point is Point.RANDOM:
            return Aim(point, delay=self._draw.random() * usual.seconds)
        # With a lease so short there are more; who opens a new schema passes more.
        most = {Point.BEAT: 12, Point.OPENING: 25}.get(point, usual.passed.get(point.name, 1))
        return Aim(point, self._draw.randint(1, most), self._draw.random() ** 3 * 0.002)

    def _kill(self, story: Story, aims: list[Aim], name: str) -> list[str]:
        for aim in aims:
            end = lived(story, aim, self._draw.random())
            if end is End.KILLED:
                self.figures.points[aim.point] += 1
                self.figures.sorts[name] += 1
                # Seldom in a file: who looks at it puts its log in order, which is for the next life to do.
                if self._name != "sqlite" or self._draw.random() < 0.4:
                    violations = self._look(story)
                    if violations:
                        return violations
            elif end is not End.DONE:
                return [_told(end, story)]
        return []

    def _look(self, story: Story) -> list[str]:
        return look(story, lambda store: audit_store(store, story.effects()))

    def _finish(self, story: Story, expected: object, *, asks_again: bool) -> list[str]:
        (story.folder / "answer.json").unlink(missing_ok=True)
        if (end := lived(story, None, self._draw.random())) is not End.DONE:
            return [_told(end, story)]
        if asks_again:
            (story.folder / "answer.json").unlink()
            before = story.effects()
            if (end := lived(story, None, self._draw.random())) is not End.DONE:
                return [f"asked again, {_told(end, story)}"]
            more = [words for words in story.effects()[len(before) :] if words[0] == "ran"]
            if more:
                return [f"the finished run ran again: {more[0]}"]
        return look(story, lambda store: audit_end(store, story, expected))


def _told(end: End, story: Story) -> str:
    if end is End.HUNG:
        return f"a life hangs: it has not ended in {story.patience:g} s"
    return f"a life {end.value}"


# --- The figures ------------------------------------------------------------------------------------------


def table(found: dict[str, Figures], points: list[Point]) -> str:
    """Kills per point and store, and per sort of run and store."""
    lines = [_line("kills", found)]
    lines += [_line(point.value, [figures.points[point] for figures in found.values()]) for point in points]
    lines += [_line("in all", [figures.points.total() for figures in found.values()]), ""]
    for name, sort in SORTS.items():
        if any(figures.sorts[name] for figures in found.values()):
            label = f"{sort.style}: {name}"
            lines.append(_line(label, [figures.sorts[name] for figures in found.values()]))
    lines += ["", _line("runs", [figures.runs for figures in found.values()])]
    lines.append(_line("deaths noticed late", [figures.late for figures in found.values()]))
    lines.append(_line("runs with violations", [figures.bad for figures in found.values()]))
    return "\n".join(lines)


def _line(label: str, cells: Any) -> str:
    return f"{label:<42}" + "".join(f"{cell:>10}" for cell in cells)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=10, help="how many SIGKILLs at each point and store")
    parser.add_argument("--kills", type=int, help="instead: how many at random moments, in each store")
    parser.add_argument("--store", action="append", choices=list(STORES), help="default: both")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--flow", action="append", choices=sorted(SORTS), help="only these")
    names = [point.name.lower() for point in Point]
    parser.add_argument("--point", action="append", choices=names, help="only these")
    parser.add_argument(
        "--plant", choices=sorted(PLANTS), help="break the product so, in every life but the oracle's"
    )
    parser.add_argument(
        "--durability", choices=["sync", "async", "exit"], default="sync", help="what may be lost"
    )
    parser.add_argument("--patience", type=float, default=60.0, help="seconds after which a life hangs")
    args = parser.parse_args()
    args.points = [point for point in Point if args.point is None or point.name.lower() in args.point]
    args.store = args.store or list(STORES)
    return args


def main() -> int:
    args = parsed()
    print(f"seed {args.seed}", flush=True)
    found: dict[str, Figures] = {}
    short = []
    with ExitStack() as stack:
        for name in args.store:
            began = time.monotonic()
            harness = Harness(name, args, stack)
            harness.run()
            found[name] = harness.figures
            short += [
                f"{name}: {point.value}: {harness.figures.points[point]} of {harness.wanted[point]}"
                for point in harness.short()
            ]
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    print(table(found, [Point.RANDOM] if args.kills else args.points))
    for line in short:
        print(f"hit too seldom: {line}")
    bad = sum(figures.bad for figures in found.values())
    print(f"{sum(figures.points.total() for figures in found.values())} kills, {bad} runs with violations")
    return 1 if bad or short else 0


if __name__ == "__main__":
    raise SystemExit(main())
