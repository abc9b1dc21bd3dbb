"""Runs that are really killed, and go on."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import Program, kill_at_effect, seeded

ROOT = Path(__file__).parents[2]
HARNESS = ROOT / "scripts" / "kill_harness.py"


@pytest.mark.parametrize(
    "args",
    [("--kills", "105"), ("--kills", "200", "--flow", "racing", "--flow", "racing_threads")],
    ids=["all", "races"],
)
def test_kills_at_random_moments_lose_nothing_repeat_nothing_used_and_decide_races_again(
    args: tuple[str, ...],
):
    seed = seeded("kills").randrange(2**32)
    done = subprocess.run(
        [sys.executable, "-W", "error", HARNESS, *args, "--seed", str(seed)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "0 runs with violations" in done.stdout


def test_the_audit_sees_each_kind_of_violation():
    spec = importlib.util.spec_from_file_location("kill_harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    audit = harness.audit
    assert audit(["ran a", "used a", "ran b", "chose x 1", "chose x 1"]) == []
    assert audit(["ran a", "ran a", "used a"]) == []  # in flight when it was killed: that is allowed
    assert len(audit(["ran a", "used a", "ran a"])) == 1
    assert len(audit(["chose x 1", "chose x 2"])) == 1


PARALLEL = """
    import asyncio, os, sys, time
    from weft import SqliteSaver, entrypoint, task

    def effect(word):
        fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{word}\\n".encode()); os.close(fd)

    @task
    def step(i):
        effect(f"step{i}")
        time.sleep(0.02)
        return i * i

    @entrypoint(checkpointer=SqliteSaver("runs.db"))
    def flow(n):
        return sum(f.result() for f in [step(i) for i in range(n)])

    if __name__ == "__main__":
        print(flow.invoke(200, run_id="r", max_concurrent=20))
"""


def test_the_same_command_goes_on_at_once_after_kill_9(tmp_path: Path):
    """With a fresh interpreter each, as users have it. There is no lease to wait for."""
    program = Program(tmp_path, PARALLEL)
    assert kill_at_effect(program.start(), program.effects_path, 100)
    began = time.monotonic()
    done = program.run()
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sum(i * i for i in range(200)))
    effects = program.effects()
    assert len(effects) == 200
    assert sum(effects.values()) <= 200 + 100  # what was in flight, or waited for a commit, ran twice
    assert took < 5  # a lease would be longer


def test_a_finished_run_gives_its_recorded_output_and_runs_nothing(tmp_path: Path):
    program = Program(tmp_path, PARALLEL)
    first = program.run()
    before = program.effects()
    again = program.run()
    assert again.stdout == first.stdout
    assert program.effects() == before


def test_a_second_process_that_starts_the_run_meanwhile_is_told_so(tmp_path: Path):
    program = Program(tmp_path, PARALLEL)
    first = program.start()
    while not program.effects_path.exists() and first.poll() is None:
        time.sleep(0.005)
    second = program.run()
    assert second.returncode != 0
    assert "RunBusyError" in second.stderr
    assert "'r'" in second.stderr
    out, err = first.communicate(timeout=30)
    assert first.returncode == 0, err
    assert max(program.effects().values()) == 1


QUESTIONS = """
    import json, os, sys
    from weft import Command, SqliteSaver, entrypoint, interrupt, task

    def effect(word):
        fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{word}\\n".encode()); os.close(fd)

    @task
    def prepare(i):
        effect(f"prepare{i}")
        return i

    @task
    async def aprepare(i):
        effect(f"prepare{i}")
        return i

    @task
    def ask(i):
        return (prepare(i).result(), interrupt(f"question {i}"))

    @task
    async def aask(i):
        return (await aprepare(i), interrupt(f"question {i}"))

    saver = SqliteSaver("runs.db")

    @entrypoint(checkpointer=saver)
    def threads(n):
        return [f.result() for f in [ask(i) for i in range(n)]]

    @entrypoint(checkpointer=saver)
    async def loop(n):
        import asyncio
        return await asyncio.gather(*[aask(i) for i in range(n)])

    flow = {"threads": threads, "loop": loop}[sys.argv[1]]
    given = json.loads(sys.argv[2])
    result = flow.invoke(given if isinstance(given, int) else Command(resume=given), run_id="r")
    if isinstance(result, dict):
        result = {"open": {q.id: q.value for q in result["__interrupt__"]}}
    print(json.dumps(result))
"""


@pytest.mark.parametrize("kind", ["threads", "loop"])
def test_ten_questions_answered_one_by_one_in_any_order_by_separate_processes(tmp_path: Path, kind: str):
    draw = seeded("questions")
    program = Program(tmp_path, QUESTIONS)

    def run(given: object) -> object:
        done = program.run(kind, json.dumps(given))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    result = run(10)
    ids = {value: key for key, value in result["open"].items()}
    assert sorted(ids) == [f"question {i}" for i in range(10)]
    order = list(range(10))
    draw.shuffle(order)
    for left, i in zip(range(9, -1, -1), order, strict=True):
        result = run({ids[f"question {i}"]: f"answer {i}"})
        if left:
            assert len(result["open"]) == left
    assert result == [[i, f"answer {i}"] for i in range(10)]
    assert set(program.effects().values()) == {1}  # what was done before a question was done once


EDITED = """
    import asyncio, os, random, sys
    from weft import SqliteSaver, entrypoint, task

    @task
    async def square(i):
        await asyncio.sleep(0.001)
        return ("square", i)

    @task
    async def cube(i):
        await asyncio.sleep(0.001)
        return ("cube", i)

    @task
    def negate(i):
        return ("negate", i)

    STEPS = {"square": square, "cube": cube, "negate": negate}

    @entrypoint(checkpointer=SqliteSaver("runs.db"))
    async def flow(_):
        calls = [tuple(word.split(":")) for word in sys.argv[2].split(",")]
        results = []
        for start in range(0, len(calls), 3):
            group = calls[start:start + 3]
            got = await asyncio.gather(*[STEPS[name](int(i)) for name, i in group])
            for (name, i), value in zip(group, got):
                assert value == (name, int(i)), f"{name}({i}) got the result {value}"
            results += got
            if sys.argv[1] == "crash" and start + 3 >= len(calls) // 2:
                os._exit(9)
        return len(results)

    print(flow.invoke("go", run_id="r"))
"""


def test_edited_calls_never_get_the_result_of_another(tmp_path: Path):
    """Insert, delete, swap or re-argument calls between the crash and the resume."""
    draw = seeded("edits")
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        program = Program(folder, EDITED)
        calls = [f"{draw.choice(('square', 'cube', 'negate'))}:{draw.randrange(4)}" for _ in range(12)]
        assert program.run("crash", ",".join(calls)).returncode == 9
        edited = edit(calls, draw)
        done = program.run("go", ",".join(edited))
        assert done.returncode == 0, (calls, edited, done.stderr)
        assert done.stdout.strip() == str(len(edited))


def edit(calls: list[str], draw: random.Random) -> list[str]:
    calls = list(calls)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(calls))
        kind = draw.choice(("insert", "delete", "swap", "argument"))
        if kind == "insert":
            calls.insert(at, f"cube:{draw.randrange(9)}")
        elif kind == "delete" and len(calls) > 1:
            del calls[at]
        elif kind == "swap":
            other = draw.randrange(len(calls))
            calls[at], calls[other] = calls[other], calls[at]
        else:
            calls[at] = calls[at].split(":")[0] + f":{draw.randrange(9)}"
    return calls
