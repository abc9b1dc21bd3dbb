"""Runs that are really killed, and go on."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commit_points import Point
from killing import Program, kill_at_effect, seeded
from repo_scripts import SCRIPTS, run_script

from weft import InMemorySaver
from weft.checkpoint.base import OpenRun, Record, RecordKind, Write

HARNESS = SCRIPTS / "kill_harness.py"

CALL, OTHER = "0a" * 16, "0b" * 16


def harness(*args: object, patience: float = 110) -> subprocess.CompletedProcess[str]:
    """The kill harness, in an interpreter of its own: it forks, so it must have no threads."""
    return run_script("kill_harness.py", *args, patience=patience)


def seed_of(name: str) -> list[object]:
    return ["--seed", seeded(name).randrange(2**32)]


@pytest.mark.parametrize(
    "args",
    [("--kills", 40), ("--kills", 60, "--flow", "racing", "--flow", "racing_threads")],
    ids=["all", "races"],
)
def test_kills_at_random_moments_lose_nothing_repeat_nothing_used_and_decide_races_again(
    args: tuple[object, ...],
):
    done = harness("--store", "sqlite", *args, *seed_of("kills"))
    assert done.returncode == 0
    assert " 0 runs with violations" in done.stdout


@pytest.mark.parametrize(("store", "each"), [("sqlite", 10), ("postgres", 3)])
def test_kills_at_every_commit_point_lose_nothing_repeat_nothing_used_and_decide_races_again(
    store: str, each: int
):
    done = harness("--store", store, "--each", each, *seed_of("points"))
    assert done.returncode == 0
    assert " 0 runs with violations" in done.stdout
    for point in Point:
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(point.value)]
        assert int(line.split()[-1]) >= each


@pytest.mark.parametrize(
    ("plant", "args", "seen"),
    [
        ("lost", ("--point", "committed"), "was used, and is lost"),
        ("doubled", ("--point", "acknowledged", "--each", 6), "ran again after its result was used"),
        ("answer", ("--point", "acknowledged", "--flow", "gathered"), "the answer is "),
        ("order", ("--point", "acknowledged", "--flow", "racing"), " later"),
        ("missing", ("--point", "after_row"), "is missing though it was accepted"),
        ("hang", ("--point", "committed", "--each", 4, "--patience", 1.5), "a life hangs"),
    ],
)
def test_the_audit_sees_a_product_that_is_broken(plant: str, args: tuple[object, ...], seen: str):
    """In real runs that are really killed: the product does wrong, and the harness says so and fails."""
    done = harness("--store", "sqlite", "--plant", plant, "--each", 3, *args, *seed_of("plants"))
    assert done.returncode == 1
    assert seen in done.stdout
    assert " 0 runs with violations" not in done.stdout


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_the_audit_sees_what_a_weaker_durability_loses(store: str):
    """As above, without anything broken; and in a server, too."""
    done = harness(
        *("--store", store, "--durability", "async", "--point", "acknowledged", "--each", 12),
        *seed_of("async"),
    )
    assert done.returncode == 1
    assert "was used, and is lost" in done.stdout or "ran again after its result was used" in done.stdout


def test_a_point_that_is_never_hit_is_a_failure():
    """No branches come together in this workflow."""
    done = harness("--store", "sqlite", "--each", 1, "--point", "join", "--flow", "completed", "--seed", 1)
    assert done.returncode == 1
    assert "hit too seldom: sqlite: where branches have joined: 0 of 1" in done.stdout
    assert "0 runs with violations" in done.stdout


def loaded_harness():
    spec = importlib.util.spec_from_file_location("kill_harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["kill_harness"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("effects", "violations"),
    [
        (["ran a", "used a", "ran b", "chose x 1", "chose x 1"], []),
        (["ran a", "ran a", "used a"], []),  # in flight when it was killed: that is allowed
        (["ran a", "used a", "anew", "ran a", "used a"], []),  # nobody had the first run
        (["ran a", "used a", "ran a"], ["a ran again after its result was used"]),
        (["used a"], ["a was used and never ran"]),
        (["chose x 1", "chose x 2"], ["x: chose 1 first and 2 later"]),
        (["accepted r", "missing r"], ["run r is missing though it was accepted"]),
    ],
)
def test_what_the_audit_of_effects_sees(effects: list[str], violations: list[str]):
    assert loaded_harness().audit([line.split() for line in effects]) == violations


@pytest.mark.parametrize(
    ("effects", "violations"),
    [
        (["opened r", f"ran a r:{CALL} 10.0", "used a"], []),
        (["opened r", f"ran a r:{CALL} 9.0", f"ran a r:{CALL} 10.0"], []),  # the first was killed
        (["opened q"], ["run q is missing though it was accepted"]),
        (["accepted q"], ["run q is missing though it was accepted"]),
        (
            ["opened r", f"ran a r:{CALL} 10.0", f"ran a r:{CALL} 12.0"],
            ["a ran again after its result was recorded"],
        ),
        (["opened r", f"ran b r:{OTHER} 10.0"], []),  # at work, not used
        (["opened r", f"ran b r:{OTHER} 10.0", "used b"], ["the result of b was used, and is lost"]),
        (["opened r", f"ran b r:{OTHER} 10.0", "used b", "anew"], []),
    ],
)
def test_what_the_audit_of_a_store_sees(effects: list[str], violations: list[str]):
    store = stored(Record(RecordKind.OK, bytes.fromhex(CALL), step="a", started=9.0, ended=11.0))
    assert loaded_harness().audit_store(store, [line.split() for line in effects]) == violations


def test_the_audit_of_a_store_sees_what_is_recorded_twice():
    record = Record(RecordKind.OK, bytes.fromhex(CALL), step="a", started=9.0, ended=11.0)
    violations = loaded_harness().audit_store(stored(record, record), [["opened", "r"]])
    assert violations == [f"a (r:{CALL}) is recorded twice"]


def stored(*records: Record) -> InMemorySaver:
    store = InMemorySaver()
    row = store.open(OpenRun("r", "flow", input=b"0"))
    store.commit([Write("r", row.fence, records)])
    return store


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


HELD = """
    import os, time
    from weft import SqliteSaver, entrypoint, task

    @task
    def step():
        open(os.environ["EFFECTS"], "a").write("step\\n")
        while not os.path.exists("go"):
            time.sleep(0.005)

    @entrypoint(checkpointer=SqliteSaver("runs.db"))
    def flow(_):
        step().result()

    if __name__ == "__main__":
        flow.invoke("go", run_id="r")
"""


def test_a_second_process_that_starts_the_run_meanwhile_is_told_so(tmp_path: Path):
    program = Program(tmp_path, HELD)
    first = program.start()
    while not program.effects() and first.poll() is None:
        time.sleep(0.005)
    second = program.run()
    (tmp_path / "go").touch()
    out, err = first.communicate(timeout=30)
    assert first.returncode == 0, err
    assert second.returncode != 0
    assert "RunBusyError" in second.stderr
    assert "'r'" in second.stderr
    assert program.effects() == {"step": 1}


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
