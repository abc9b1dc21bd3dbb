"""Kill real runs with SIGKILL at random moments, resume them, and look what they had done.

    python scripts/kill_harness.py --kills 1000 [--seed N] [--flow NAME ...]

A parent without threads forks a child for each life of a run, so that a thousand lives cost seconds. What a
life does it appends to a file: `ran STEP`, `used STEP` when the workflow has a step's result, `chose N WHAT`
when it has decided by the order of results. The audit reads that file, never the engine's own books:

- the answer is that of a run that nobody killed;
- no step runs again once its result was used;
- what was decided is decided the same in every later life.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from weft import Failed, Graph, SqliteSaver, entrypoint, node, router, task

STEPS = 200


def note(*words: object) -> None:
    """One line, in one write, to the end of the effects file."""
    line = " ".join(map(str, words)) + "\n"
    fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)


@task
async def work(i: int) -> int:
    note("ran", f"work{i}")
    await asyncio.sleep(random.random() * 0.002)
    return i * i


@task
def work_in_thread(i: int) -> int:
    note("ran", f"thread{i}")
    time.sleep(random.random() * 0.002)
    return i * i


@task
async def pair(i: int) -> int:
    a, b = await asyncio.gather(work(i), work(i + 1000))
    note("used", f"work{i}")
    note("used", f"work{i + 1000}")
    note("ran", f"pair{i}")
    return a + b


@task
async def failing(i: int) -> int:
    note("ran", f"failing{i}")
    await asyncio.sleep(random.random() * 0.001)
    raise KeyError(i)


@entrypoint()
async def gathered(n: int) -> int:
    total = 0
    for start in range(0, n, 20):
        for i, value in enumerate(await asyncio.gather(*[work(j) for j in range(start, start + 20)])):
            note("used", f"work{start + i}")
            total += value
    return total


@entrypoint()
async def completed(n: int) -> int:
    total = 0
    for future in asyncio.as_completed([work(i) for i in range(n)]):
        value = await future
        note("used", f"work{round(value**0.5)}")
        total += value
    return total


@entrypoint()
def threaded(n: int) -> int:
    total = 0
    futures = {work_in_thread(i): i for i in range(n)}
    for future in concurrent.futures.as_completed(futures):
        total += future.result()
        note("used", f"thread{futures[future]}")
    return total


@entrypoint()
async def nested(n: int) -> int:
    values = await asyncio.gather(*[pair(i) for i in range(n // 3)])
    for i in range(n // 3):
        note("used", f"pair{i}")
    return sum(values)


@entrypoint()
async def racing(n: int) -> int:
    """Each round goes on with whoever comes first: the next arguments depend on the order of results."""
    total = 0
    for turn in range(n // 4):
        futures = {asyncio.ensure_future(work(turn * 10 + i)): i for i in range(4)}
        done, rest = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        note("chose", f"first{turn}", ",".join(sorted(str(futures[f]) for f in done)))
        for future in asyncio.as_completed(rest):
            value = await future
            note("chose", f"then{turn}.{value}", total)
            total += value % 7
    return 0


@entrypoint()
def racing_threads(n: int) -> int:
    total = 0
    for turn in range(n // 8):
        futures = {work_in_thread(turn * 10 + i): i for i in range(4)}
        done, rest = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
        note("chose", f"first{turn}", ",".join(sorted(str(futures[f]) for f in done)))
        for future in concurrent.futures.as_completed(rest):
            value = future.result()
            note("chose", f"then{turn}.{value}", total)
            total += value % 7
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
            note("used", f"failing{i}")
            note("used", f"work{i}")
    return total


@router
async def again(turn: int, turns: int) -> dict[str, object]:
    if turn:
        note("used", f"fold{turn - 1}")
    return {"choices": ["left", "right", "bad", "opener"]} if turn < turns else {"choice": "finish"}


@node
async def left(turn: int, state: dict) -> dict[str, object]:
    note("ran", f"left{turn}")
    await asyncio.sleep(random.random() * 0.002)
    state["history"].append(f"left{turn}")
    return {"left": turn, "last": "left"}


@node
def right(turn: int, state: dict) -> dict[str, object]:
    note("ran", f"right{turn}")
    time.sleep(random.random() * 0.002)
    state["history"].append(f"right{turn}")
    return {"right": turn * 2, "last": "right"}


@node
async def bad(turn: int) -> dict[str, object]:
    note("ran", f"bad{turn}")
    await asyncio.sleep(random.random() * 0.001)
    raise KeyError(turn)


@node
async def opener(turn: int, state: dict) -> dict[str, object]:
    note("ran", f"opener{turn}")
    state["history"].append(f"opener{turn}")
    return {}


def racer(name: str) -> object:
    async def body(turn: int) -> dict[str, object]:
        note("used", f"opener{turn}")
        await asyncio.sleep(random.random() * 0.001)
        return {"winner": name, "last": name}

    return node(name=name)(body)


@node
async def after(turn: int, winner: str) -> dict[str, object]:
    note("chose", f"winner{turn}", winner)
    await asyncio.sleep(random.random() * 0.001)
    return {}


@node
async def fold(
    turn: int, total: int, left: int, right: int, bad: Failed, last: str, winner: str, state: dict
) -> dict[str, object]:
    for name in ("left", "right", "bad"):
        note("used", f"{name}{turn}")
    note("chose", f"winner{turn}", winner)
    note("chose", f"last{turn}", last)
    note("chose", f"order{turn}", ",".join(state["history"]))
    state["history"].clear()
    state["turns"] = [*state.get("turns", []), turn]
    note("ran", f"fold{turn}")
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


class GraphFlow:
    """As an entrypoint: a number in, a number out. Each life has a graph of its own."""

    name = "graph"

    def invoke(self, n: int, **options: object) -> list[object]:
        graph = looping_graph()
        result = graph.invoke({"turn": 0, "turns": n // 8, "total": 0}, **options)
        return [result["total"], result["turns seen"], graph.get_state()["turns"] == [*range(n // 8)]]


FLOWS = {
    flow.name: flow
    for flow in (gathered, completed, threaded, nested, racing, racing_threads, recovering, GraphFlow())
}


def life(flow: str, folder: Path) -> None:
    """One life of the run, in this process, to its end."""
    saver = SqliteSaver(folder / "runs.db")
    answer = FLOWS[flow].invoke(STEPS, checkpointer=saver, run_id="run", max_concurrent=16)
    (folder / "answer.json").write_text(json.dumps(answer))


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked child; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        sys.stderr.write(f"child: {type(error).__name__}: {error}\n")
        os._exit(1)
    os._exit(0)


def kill_after(seconds: float, pid: int) -> bool:
    """SIGKILL a child after a time; whether it was still alive."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def audit(lines: list[str]) -> list[str]:
    """What the effects of all lives of a run violate."""
    used: set[str] = set()
    chosen: dict[str, str] = {}
    violations = []
    for line in lines:
        kind, what, *rest = line.split()
        if kind == "ran" and what in used:
            violations.append(f"{what} ran again after its result was used")
        elif kind == "used":
            used.add(what)
        elif kind == "chose" and chosen.setdefault(what, rest[0]) != rest[0]:
            violations.append(f"{what}: chose {chosen[what]} first and {rest[0]} later")
    return violations


def trial(flow: str, expected: object, span: float, draw: random.Random) -> tuple[int, list[str]]:
    """Run, kill at random moments, resume to the end, audit; how often it was killed, and the violations."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EFFECTS"] = str(folder / "effects")
        kills = 0
        for _ in range(draw.choice((1, 1, 2, 3))):
            if kill_after(draw.random() * span, in_child(lambda: life(flow, folder))):
                kills += 1
        _, status = os.waitpid(in_child(lambda: life(flow, folder)), 0)
        effects = folder / "effects"
        violations = audit(effects.read_text().splitlines() if effects.exists() else [])
        if status:
            violations.append(f"the last life ended with status {status}")
        elif (answer := json.loads((folder / "answer.json").read_text())) != expected:
            violations.append(f"the answer is {answer}, not {expected}")
        return kills, violations


def uninterrupted(flow: str) -> tuple[object, float]:
    """The answer of a run that nobody kills, and how long it takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EFFECTS"] = str(folder / "effects")
        began = time.monotonic()
        _, status = os.waitpid(in_child(lambda: life(flow, folder)), 0)
        if status:
            raise SystemExit(f"{flow}: the uninterrupted run failed")
        return json.loads((folder / "answer.json").read_text()), time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how many SIGKILLs in all")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--flow", action="append", choices=sorted(FLOWS), help="only these")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    flows = args.flow or sorted(FLOWS)
    print(f"seed {args.seed}", flush=True)
    bad = total = 0
    for flow in flows:
        expected, span = uninterrupted(flow)
        kills = trials = 0
        while kills < args.kills / len(flows):
            killed, violations = trial(flow, expected, span, draw)
            kills, trials = kills + killed, trials + 1
            for violation in violations[:3]:
                print(f"{flow}: {violation}", flush=True)
            bad += bool(violations)
        total += kills
        print(f"{flow}: {kills} kills in {trials} runs of {span * 1000:.0f} ms", flush=True)
    print(f"{total} kills, {bad} runs with violations")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
