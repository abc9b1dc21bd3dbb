"""Random nestings of the four styles against a slow evaluation, killed at any commit and resumed by new objects.

A failure has a note with the number of its nesting: `python scripts/nestings.py --only NUMBER --shrink` looks for a
smaller one. WEFT_NESTING=number runs that one alone, WEFT_SEED=seed the same ones.
"""

from __future__ import annotations

import logging
import os
from collections import Counter

import pytest
from killing import seeded
from leftovers import nothing_left
from nesting import (
    ALWAYS,
    ASYNC_ENTRIES,
    SYNC_ENTRIES,
    Body,
    Choose,
    Each,
    Fork,
    Leaf,
    Model,
    Net,
    Par,
    Plan,
    Reader,
    Round,
    Seq,
    Story,
    Walk,
    Work,
    all_in,
    described,
    drawn,
    kind_of,
    parts_of,
    shown,
    shrunk,
    style_of,
    told,
)


@pytest.fixture(autouse=True)
def quiet(caplog):
    """What is logged of runs that were killed is not looked at."""
    caplog.set_level(logging.CRITICAL, logger="weft")
    caplog.set_level(logging.CRITICAL, logger="asyncio")


def seeds_of(name, count):
    rng = seeded(name)
    if alone := os.environ.get("WEFT_NESTING"):
        return [int(alone)]
    return [rng.randrange(2**32) for _ in range(count)]


def check(seed, path=None, **options):
    plan = drawn(seed, **options)
    problems, story = told(plan, path=path)
    if problems:
        how = " ".join(f"--{name} '{value}'" for name, value in options.items())
        error = AssertionError("\n".join(problems))
        error.add_note(f"python scripts/nestings.py --shrink {how} --only {seed}\n{described(plan.tree)}")
        raise error
    return plan, story


@pytest.mark.parametrize(("store", "count"), [("", 500), ("memory", 250), ("sqlite", 30)])
def test_a_nesting_gives_what_the_model_gives(store, count, tmp_path):
    """In virtual time; with a journal killed again and again, its questions answered in any order."""
    found = Counter()
    with nothing_left():
        for seed in seeds_of(f"nestings, {store or 'no journal'}", count):
            plan, story = check(seed, tmp_path / "runs.db", store=store)
            found.update(
                lives=story.lives, killed=story.killed, answers=story.questions, cancelled=story.cancelled
            )
            found.update(
                f"{style_of(part)} in {style_of(spec)}"
                for spec in all_in(plan.tree)
                for part in parts_of(spec)
            )
    print(found)
    styles = {"functional", "compose", "map", "graph", "batch"}
    if count > 100 and "WEFT_NESTING" not in os.environ:
        assert not [f"{a} in {b}" for a in styles for b in styles if not found[f"{a} in {b}"]]
    assert not store or found["killed"] or "WEFT_NESTING" in os.environ


def test_deep_nestings_give_what_the_model_gives():
    for seed in seeds_of("deep nestings", 40):
        check(seed, depth=30, store="memory")


@pytest.mark.parametrize("entries", [ASYNC_ENTRIES, SYNC_ENTRIES], ids=["async", "sync"])
def test_nestings_in_real_time(entries, tmp_path):
    """Threads that really meet, bodies that take no or next to no time."""
    rng = seeded("nestings in real time")
    with nothing_left():
        for number in range(40):
            seed = rng.randrange(2**32)
            plan = drawn(seed, store=rng.choice(["", "memory"]))
            if any(plan.cancels):
                continue
            plan = Plan(**{**vars(plan), "entry": entries[number % len(entries)]})
            problems, _ = told(plan, unit=0.0 if number % 2 else 0.0005)
            assert not problems, f"nesting {seed} in real time, number {number}: {problems}"


# What the tests above would notice


def leaf(name, **options):
    return Leaf(name, **{"gives": "dict", **options})


EVERYTHING = Seq(
    "s",
    (
        leaf("l1", form="node"),
        Net(
            "g",
            (
                Reader("r1", takes_state=True, fails=1, attempts=2),
                Fork("k", ((Reader("r2", takes_state=True, rewrites="r1"),), (leaf("l2"), Reader("r3")))),
                Round("o", (Walk("F", (Work("W", "BatchNode", leaf("l3"), back=1), leaf("l4"))),), 2),
            ),
            takes_state=True,
        ),
        Par("p", (leaf("l5"), Choose("d", (leaf("l6"), leaf("l7"))), leaf("l8", fails=ALWAYS)), "collect"),
        Body(
            "b",
            (Seq("t", (leaf("l9", gives="numbers"), Each("m", (leaf("l10", gives="number"),)))),),
            way="fan",
        ),
    ),
)


class TestTheModel:
    """Its answer written out by hand for something of everything."""

    def test_order_and_counts(self):
        model = Model()
        value = model.value(EVERYTHING, 7)
        assert [len(each) for each in value] == [2]
        assert model.least == model.most
        names = Counter(key.split()[0] for key, times in model.most.items() for _ in range(times))
        assert names == {
            "l1": 1, "r1": 1, "kstart": 1, "r2": 1, "l2": 1, "r3": 1, "kjoin": 1, "ostart": 2, "orouter": 2, "oend": 1,
            "W": 6, "l3": 6, "l4": 2, "gend": 1, "l5": 1, "d": 1, **dict.fromkeys([*names.keys() & {"l6", "l7"}], 1),
            "l9": 1, "l10": 2, "b": 1,
        }  # fmt: skip

    def test_it_depends_on_what_is_given_and_on_nothing_else(self):
        first, again, other = (shown(Model().value(EVERYTHING, given)) for given in (7, 7, 8))
        assert first == again != other


BROKEN = {
    "an effect that runs twice": (
        "ran too often",
        lambda story: story.world.done.update(dict.fromkeys(story.world.done, 1)),
    ),
    "an effect that is lost": ("ran too seldom", lambda story: story.world.done.clear()),
    "an answer that is another": ("gave another answer", lambda story: None),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_it_is_noticed(broken):
    """The story of something that went wrong, by hand."""
    kind, spoil = BROKEN[broken]

    class Spoiled(Story):
        def live(self):
            found = super().live()
            spoil(self)
            return found if "answer" not in broken else [found]

    problems = Spoiled(Plan(1, EVERYTHING)).tell()
    assert any(each.startswith(kind) for each in problems)


def test_a_run_again_of_what_was_recorded_is_noticed():
    class Forgets(Story):
        """Its store loses what it was given, but says that it has it."""

        def opened(self):
            store = super().opened()
            if self.world.life == 1:
                from nesting import recorded  # noqa: PLC0415

                self.world.durable |= recorded(store)
                self.memory = type(store)()
                return self.memory
            return store

    problems = Forgets(Plan(1, EVERYTHING, store="memory", commits=(6,), cancels=(0,))).tell()
    assert any("runs again" in each for each in problems)


def test_a_smaller_plan_is_found():
    """Of a plan that fails since a leaf in it does."""

    class Breaks(Exception):
        pass

    plan = Plan(1, Seq("s", (leaf("l1"), EVERYTHING, leaf("l2", fails=ALWAYS, gives="number"))))
    try:
        problems, _ = told(plan)
    except Exception as error:  # the model says that it fails
        problems = [f"raised: {type(error).__name__}"]
    assert problems
    asked = Plan(
        2, Par("p", (leaf("l1"), Seq("s", (leaf("l2", asks=True), leaf("l3"))), leaf("l4"))), entry="invoke"
    )
    problems, _ = told(asked)  # a question without a checkpointer is an error
    found = shrunk(asked, kind_of(problems), seconds=5)
    assert [type(each) for each in all_in(found.tree)] == [Leaf]
    assert found.tree.asks
