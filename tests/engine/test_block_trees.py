"""Random trees of nested blocks on virtual time; see scripts/block_trees.py for what is looked at."""

from __future__ import annotations

import importlib.util
import random
import sys
from typing import Any

import pytest
from repo_scripts import SCRIPTS, run_script

from weft.core.policy import FailFast, Verdict
from weft.engine import limits
from weft.engine.block import Block as EngineBlock
from weft.engine.call import Call
from weft.engine.execution import Execution
from weft.engine.planned import PlannedCall
from weft.engine.recorder import Recorder

SCRIPT = SCRIPTS / "block_trees.py"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("block_trees", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["block_trees"] = module  # its dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


trees = script()
Block, Caller, Each, Leaf, Life, Loop, OneRun, Plan, Row = (
    trees.Block, trees.Caller, trees.Each, trees.Leaf, trees.Life, trees.Loop, trees.OneRun, trees.Plan, trees.Row
)  # fmt: skip


@pytest.mark.slow
def test_random_trees_keep_every_promise():
    seed = random.randrange(10**12)
    done = run_script("block_trees.py", "--trees", 100_000, "--seconds", 10, "--seed", seed, patience=100)
    assert done.returncode == 0
    assert ", 0 with violations" in done.stdout


def plan(
    tree: Any, *, limits: Any = (), is_journaled: bool = False, is_sync: bool = False, **options: Any
) -> Any:
    lives = options.pop("lives", (Life(),))
    one = OneRun(tree, lives=lives, **options)
    return Plan(seed=1, runs=(one,), limits=limits, is_sync=is_sync, is_journaled=is_journaled)


#: The smallest trees in which something was wrong once.
ONCE_WRONG = {
    "a timeout of a body that has left calls behind": plan(
        Caller("a", way="first", timeout=2.0, parts=(Leaf("b"), Leaf("c", naps=(3.0,)))),
    ),
    "a run that is taken over waits for its bodies": plan(
        Block("a", (Row("r", (Leaf("b", naps=(0.97,)),)), Leaf("c", naps=(0.7, 0.9), stubborn=1.0))),
        is_journaled=True,
        durability="async",
        lives=(Life("taken", 0.78), Life()),
    ),
    "cancelled while it is stopped by its timeout": plan(
        Caller("a", stubborn=3.0, parts=(Leaf("b", naps=(2.0,)),)),
        entry="ainvoke",
        timeout=0.5,
        lives=(Life("cancel", 1.05),),
    ),
    "cancelled in a TaskGroup": plan(
        Caller("a", way="group", parts=(Leaf("b", fails=1), Leaf("c", is_async=False, naps=(0.5,)))),
        lives=(Life("cancel", 0.05),),
    ),
    "left behind when it is cancelled": plan(
        Caller("a", way="first", parts=(Leaf("b"), Leaf("c", naps=(3.0,), is_task=False))),
        lives=(Life("cancel", 1.0),),
    ),
    "out of time in a thread while a child is queued": plan(
        Block(
            "a",
            (
                Leaf("b", naps=(0.1,), limits=(0,)),
                Caller("c", is_async=False, timeout=0.1, parts=(Leaf("d", limits=(0,)),)),
                Caller("e", is_async=False, parts=(Leaf("f", naps=(2.0,)),)),
                Leaf("g", naps=(0.5,), limits=(0,)),
            ),
        ),
        limits=((2, None),),
    ),
    "out of time in a thread while a child waits for the rate": plan(
        Each(
            "a",
            (Caller("b", is_async=False, timeout=0.5, limits=(0,), parts=(Leaf("c", limits=(0,)), Leaf("d"))),),
            policy=("race", None),
        ),
        limits=((None, (1, 3.0)),),
    ),
    "a parent comes back to a limit with a rate": plan(
        Each("a", (Row("b", (Leaf("c", naps=(0.5,), limits=(1,)), Leaf("d", limits=(0, 1)))),), count=3, width=1),
        limits=((3, (1, 1.0)), (2, (3, 3.0))),
    ),
    "taken over while a retry reads the journal": plan(
        Block("a", (Leaf("b", naps=(1.0,)), Leaf("c", is_async=False, fails=2, attempts=3, wait=0.5)), width=1),
        is_journaled=True,
        lives=(Life("taken", 2.05), Life()),
    ),
    "the source of a map that is out of time": plan(
        Each("a", (Leaf("b"),), count=4, way="astream", source="async", timeout=0.05),
    ),
    "a sync body reads its source": plan(
        Each("a", (Leaf("b", naps=(1.0,)),), count=3, way="map", source="generator"),
    ),
    "a sync body leaves a stream": plan(
        Each("a", (Leaf("b", naps=(1.0,)),), count=3, way="stream", leaves=True),
    ),
    "stopped while it waits to come back to a limit": plan(
        Block(
            "a",
            (
                Caller("b", limits=(0,), parts=(Leaf("c", naps=(0.1,)),)),
                Leaf("d", is_async=False, naps=(2.0,), limits=(0,)),
            ),
        ),
        limits=((1, None),),
        lives=(Life("cancel", 0.55),),
    ),
    "a record of a call that has a total": plan(
        Block("a", (Leaf("b", total=1.0), Leaf("c", naps=(2.0,), timeout=0.1)), attempts=2),
        is_journaled=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_what_was_wrong_once(name: str):
    story = trees.Story(ONCE_WRONG[name])
    assert story.tell() == [], trees.description(story.plan)


def nothing(*_args: Any, **_options: Any) -> Any:
    return None


def first_problem(first: int, most: int = 400) -> str:
    for seed in range(first, first + most):
        problems, _ = trees.check(seed)
        if problems:
            return str(problems[0])
    return ""


BROKEN = {
    "widths and limits that nobody looks at": (Execution, "needs_of", lambda self, call: ()),
    "limits that are not given back": (limits, "release", nothing),
    "a block that does not stop the others": (PlannedCall, "_stop_children", nothing),
    "a block without a width": (EngineBlock, "_has_room", True),
    "a body that is not told to stop": (Call, "_cancel_body", lambda self, body, reason: self._body_ended(None, None)),
    "no retry": (Call, "_delay_after", nothing),
    "a policy that takes failures for successes": (FailFast, "verdict", lambda self, ok, failed, total: (
        Verdict.DONE if ok + failed == total else Verdict.GO_ON
    )),
    "a journal that forgets": (Recorder, "claim", nothing),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_the_script_sees_when_something_is_broken(name: str, monkeypatch: pytest.MonkeyPatch):
    owner, attribute, instead = BROKEN[name]
    monkeypatch.setattr(trees, "PATIENCE", 1.0)
    monkeypatch.setattr(trees, "MOST_ROUNDS", 5_000)
    monkeypatch.setattr(owner, attribute, instead)
    assert first_problem(10_000)


def test_the_same_number_gives_the_same_log():
    for seed in range(20, 40):
        stories = [trees.check(seed)[1] for _ in range(2)]
        if not stories[0].plan.is_sync:
            assert stories[0].logs == stories[1].logs
