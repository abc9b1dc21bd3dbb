"""Retention: what a store forgets on its own, what it never does, and that it takes small steps."""

from __future__ import annotations

import sqlite3
import time
from contextlib import contextmanager

import pytest
from killing import seeded
from postgres import address, fresh_schema

from weft import InMemorySaver, InputError, Keep, PostgresSaver, SqliteSaver
from weft.checkpoint.base import Change, OpenRun, Record, RecordKind, Write, all_records
from weft.checkpoint.keep import Upkeep
from weft.core.status import RunStatus

DAY = 86_400.0
in_a_database = pytest.mark.parametrize("make", ["sqlite", "postgres"], indirect=True)
ENDINGS = [RunStatus.FINISHED, RunStatus.FAILED, RunStatus.CANCELLED]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def make(request, tmp_path):
    """Makes a store with such a `keep`; all of one test share what they hold, but for those in memory."""
    made = []

    def store(**limits):
        keep = Keep(**limits) if limits else None
        if request.param == "memory":
            found = InMemorySaver(keep=keep)
        elif request.param == "sqlite":
            found = SqliteSaver(tmp_path / "runs.db", keep=keep)
        else:
            found = PostgresSaver(address(), schema=schema(), keep=keep)
        made.append(found)
        return found

    def schema():
        if not hasattr(store, "schema"):
            store.context = fresh_schema()
            store.schema = store.context.__enter__()
        return store.schema

    store.kind = request.param
    yield store
    for each in made:
        each.close()
    if hasattr(store, "context"):
        store.context.__exit__(None, None, None)


def record(number, size=10):
    return Record(RecordKind.OK, number.to_bytes(16, "big"), step="s", value=b"x" * size, batch=number + 1)


def run_through(store, run_id, *, ending=RunStatus.FINISHED, records=1, size=10, thread_id=None):
    """A run from its beginning to an end; None: it stays open."""
    row = store.open(OpenRun(run_id, "w", thread_id=thread_id, input=b"in"))
    lines = [record(number, size) for number in range(records)]
    if ending is None:
        store.commit([Write(run_id, row.fence, lines)])
        return
    saved = b"saved " + run_id.encode() if thread_id is not None else None
    change = Change(ending, output=b"out" if ending is RunStatus.FINISHED else None, error=None, saved=saved)
    store.commit([Write(run_id, row.fence, lines, change)])


def ids(store):
    return {row.run_id for row in store.runs(limit=100_000)}


@pytest.fixture
def clock(monkeypatch):
    """The time of day, to be set."""

    class Clock:
        offset = 0.0

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + Clock.offset)
    return Clock


# By number


def test_the_last_ones_are_kept(make):
    store = make(last=5)
    for number in range(20):
        run_through(store, f"r{number}")
    assert ids(store) == {f"r{number}" for number in range(15, 20)}
    assert store.find("r3") is None
    assert store.find("r19") is not None


def test_nothing_is_forgotten_unless_told(make):
    store = make()
    for number in range(50):
        run_through(store, f"r{number}")
    assert len(ids(store)) == 50


def test_open_runs_are_never_forgotten(make):
    store = make(last=0, days=0, max_bytes=0)
    run_through(store, "running", ending=None)
    run_through(store, "suspended", ending=RunStatus.SUSPENDED)
    run_through(store, "abandoned", ending=None)
    store.release("abandoned", 1)
    for number in range(20):
        run_through(store, f"r{number}")
    assert ids(store) >= {"running", "suspended", "abandoned"}
    assert len(ids(store)) == 3
    row = store.open(OpenRun("suspended", "w"))
    assert [each.value for each in all_records(store, "suspended")] == [b"x" * 10]
    assert row.fence == 2


def test_who_goes_on_with_a_failed_run_keeps_it(make):
    store = make(last=1)
    run_through(store, "failed", ending=RunStatus.FAILED)
    row = store.open(OpenRun("failed", "w"))
    for number in range(5):
        run_through(store, f"r{number}")
    assert "failed" in ids(store)
    store.commit([Write("failed", row.fence, (), Change(RunStatus.FINISHED, output=b"out"))])
    assert ids(store) == {"failed"}, "it ended last"


@in_a_database
def test_too_many_of_before_are_worked_off_a_few_at_a_time(make):
    before = make()
    for number in range(60):
        run_through(before, f"r{number}")
    before.close()
    store = make(last=10)
    counts = []
    for number in range(30):
        run_through(store, f"new{number}")
        counts.append(len(ids(store)))
    assert all(earlier - later <= 2 for earlier, later in zip(counts, counts[1:], strict=False))
    assert counts[-1] == 10


# By age and status


def test_by_age(make, clock):
    store = make(days=2, failed_days=10)
    for ending in ENDINGS:
        run_through(store, ending.value, ending=ending)
    store = store if make.kind == "memory" else make(days=2, failed_days=10)
    clock.offset = 3 * DAY
    store._upkeep._began += 3 * DAY  # three days have passed, and the clock was not set
    run_through(store, "later")
    assert ids(store) == {"failed", "cancelled", "later"}
    clock.offset = 11 * DAY
    store._upkeep._began += 8 * DAY
    run_through(store, "last")
    assert ids(store) == {"last"}


def test_failed_runs_are_kept_as_long_as_others_unless_told():
    oldest = Keep(days=3).oldest(10 * DAY)
    assert dict.fromkeys(ENDINGS, 7 * DAY) == oldest
    assert Keep(failed_days=1).oldest(0.0).keys() == {RunStatus.FAILED, RunStatus.CANCELLED}
    assert Keep(days=3, failed_days=float("inf")).oldest(0.0)[RunStatus.FAILED] == float("-inf")


def test_a_clock_that_is_set_forward_makes_nothing_older(make, clock):
    store = make(days=30)
    run_through(store, "r0")
    clock.offset = 3650 * DAY
    run_through(store, "r1")
    assert ids(store) == {"r0", "r1"}
    clock.offset = -3650 * DAY
    run_through(store, "r2")
    assert ids(store) == {"r0", "r1", "r2"}


# By size


def test_by_bytes(make):
    limit = 400_000
    store = make(max_bytes=limit)
    most = 0
    for number in range(100):
        run_through(store, f"r{number}", records=10, size=3_000)
        if make.kind == "sqlite":
            with sqlite3.connect(store.path) as db:
                pages, free, size = (
                    db.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("page_count", "freelist_count", "page_size")
                )
            most = max(most, (pages - free) * size)
            assert pages * size < limit + 100_000, "free pages are used again"
        else:
            most = max(most, len(ids(store)) * 31_000)
    assert most < limit + 50_000
    kept = sorted(int(run_id[1:]) for run_id in ids(store))
    assert kept == list(range(kept[0], 100)), "the oldest went first"
    assert 5 <= len(kept) <= 13


@in_a_database
def test_a_long_journal_goes_a_piece_at_a_time(make):
    store = make(last=0)
    run_through(store, "long", records=3_000)
    assert ids(store) == set(), "the run is forgotten at once"

    def left():
        with counting(store) as count:
            return count("records")

    counts = [left()]
    assert counts[0] > 1_000
    for number in range(40):
        run_through(store, f"r{number}")
        counts.append(left())
    assert counts[-1] == 0
    assert max(earlier - later for earlier, later in zip(counts, counts[1:], strict=False)) <= 250


def counting(store):
    """How many rows a table has, asked of the database itself."""

    @contextmanager
    def connection():
        if isinstance(store, SqliteSaver):
            db = sqlite3.connect(store.path)
            yield lambda table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            db.close()
        else:
            yield lambda table: store._reader.transact(
                lambda db: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            )

    return connection()


@in_a_database
def test_what_is_forgotten_leaves_nothing(make):
    store = make(last=0)
    for number in range(30):
        run_through(store, f"r{number}", records=5, ending=ENDINGS[number % 3])
    with counting(store) as count:
        left = {table: count(table) for table in ("runs", "inputs", "outcomes", "records", "remains")}
    assert not any(left.values()), left


@in_a_database
def test_several_objects_forget_in_one_store(make):
    stores = [make(last=10) for _ in range(3)]
    for number in range(60):
        run_through(stores[number % 3], f"r{number}", records=2)
    assert 10 <= len(ids(stores[0])) <= 13


def test_random_lives_under_all_limits(make):
    """Whatever is done in whatever order: what is open stays whole, and what has ended stays within the limits."""
    chance = seeded("WEFT_KEEP_SEED")
    store = make(last=8, max_bytes=1_000_000)
    opened: dict[str, int] = {}
    for number in range(150):
        run_id = f"r{number}"
        records = chance.randrange(0, 30)
        ending = chance.choice([*ENDINGS, RunStatus.SUSPENDED, None])
        run_through(store, run_id, ending=ending, records=records, size=chance.randrange(2_000))
        if ending in (None, RunStatus.SUSPENDED):
            opened[run_id] = records
            if ending is None:
                store.release(run_id, 1)
        if len(opened) > 5:
            run_id = chance.choice(list(opened))
            row = store.open(OpenRun(run_id, "w"))
            assert len(list(all_records(store, run_id))) == opened.pop(run_id)
            store.commit([Write(run_id, row.fence, (), Change(chance.choice(ENDINGS)))])
    assert ids(store) >= set(opened)
    assert len(ids(store)) - len(opened) <= 8
    for run_id, records in opened.items():
        assert len(list(all_records(store, run_id))) == records


# What is asked for


@pytest.mark.parametrize(
    ("given", "size"), [(5, 5), ("2GB", 2_000_000_000), ("500 MB", 500_000_000), ("1.5k", 1_500), ("7", 7)]
)
def test_sizes(given, size):
    assert Keep(max_bytes=given).max_bytes == size


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"days": -1}, "days"),
        ({"days": "7"}, "days"),
        ({"failed_days": float("nan")}, "failed_days"),
        ({"last": -1}, "last"),
        ({"last": 1.5}, "last"),
        ({"last": True}, "last"),
        ({"max_bytes": "much"}, "'2GB'"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"max_bytes": "2 GiB"}, "max_bytes"),
    ],
)
def test_what_is_no_limit_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        Keep(**wrong)


def test_what_is_no_keep_is_refused(tmp_path):
    for make in (lambda: InMemorySaver(keep=7), lambda: SqliteSaver(tmp_path / "x.db", keep={"days": 7})):
        with pytest.raises(InputError, match="Keep\\(days=7"):
            make()


def test_counting_is_seldom():
    upkeep = Upkeep(Keep(last=1000))
    counted = 0
    for _ in range(1000):
        upkeep.added(1)
        if upkeep.wants_count:
            upkeep.counted(0)
            counted += 1
    assert counted < 110


@pytest.mark.parametrize(
    "wrong", [{"days": True}, {"failed_days": False}, {"max_bytes": True}, {"max_bytes": 1.0}]
)
def test_what_is_yes_or_no_is_no_limit(wrong):
    """``True`` would count as one day or byte, and everything would be forgotten."""
    with pytest.raises(InputError, match=next(iter(wrong))):
        Keep(**wrong)


def test_adding_up_is_seldom():
    """Not before a hundredth of what is kept has been recorded since, and only under a limit."""
    upkeep = Upkeep(Keep(max_bytes=1_000))
    assert upkeep.wants_sum
    upkeep.summed(int(upkeep.keep.most_bytes))
    assert not upkeep.has_too_much
    assert not upkeep.wants_sum
    upkeep.added(1, 9)
    assert not upkeep.wants_sum
    upkeep.added(1, 1)
    assert upkeep.wants_sum
    upkeep.summed(int(upkeep.keep.most_bytes) + 5)
    assert upkeep.has_too_much
    upkeep.forgot(4)
    assert upkeep.has_too_much
    upkeep.forgot(1)
    assert not upkeep.has_too_much
    assert not Upkeep(Keep(last=1)).wants_sum
    assert not Upkeep(Keep(max_bytes=1)).wants_count


@pytest.mark.parametrize(
    ("unit", "size"), [("", 1), ("b", 1), ("k", 10**3), ("MB", 10**6), ("gb", 10**9), ("T", 10**12)]
)
def test_units_are_thousands(unit, size):
    assert Keep(max_bytes=f" 3 {unit} ").max_bytes == 3 * size


def test_runs_are_counted_again_after_a_hundredth_of_what_is_kept():
    upkeep = Upkeep(Keep(last=200))
    assert upkeep.wants_count
    upkeep.counted(203)
    assert upkeep.has_too_much
    for _ in range(3):
        assert upkeep.has_too_much
        upkeep.forgot()
    assert not upkeep.has_too_much
    for _ in range(3):
        assert not upkeep.wants_count
        upkeep.added(1)
    assert upkeep.wants_count
