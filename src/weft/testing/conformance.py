"""What every checkpointer does, as a test class: derive from it, give it a fixture ``store``, and run pytest.

    import pytest
    from weft.testing.conformance import StoreConformance

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self, tmp_path):
            with MyStore(tmp_path / "runs") as store:
                yield store

        @pytest.fixture
        def reopen(self, tmp_path):
            return lambda **options: MyStore(tmp_path / "runs", **options)

``reopen`` makes another object on what ``store`` keeps, as another process would; it takes ``lease=`` (seconds). Leave
it out when a second object cannot see what the first one keeps: what needs one is skipped then.

Everything here follows from :class:`weft.checkpoint.base.Checkpointer`; the names of the tests and their docstrings say
what is promised. Each random test prints its seed, and ``WEFT_SEED=...`` runs the same again. For messages that show
the values, put ``pytest.register_assert_rewrite("weft.testing.conformance")`` into your ``conftest.py``.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest

from weft.checkpoint.base import (
    Change,
    Checkpointer,
    OpenRun,
    Record,
    RecordKind,
    RunRow,
    Write,
    all_records,
)
from weft.checkpoint.codec import Codec
from weft.checkpoint.memory import InMemorySaver
from weft.core.status import RunStatus
from weft.errors import (
    CheckpointError,
    RunBusyError,
    RunMismatchError,
    RunNotFoundError,
    StoreError,
    ThreadBusy,
)

Reopen = Callable[..., Checkpointer]

T = TypeVar("T")

HOSTILE_NAMES = [
    "",
    "'; DROP TABLE runs; --",
    '"quoted" `ticks` [brackets]',
    "nul\0in the middle",
    "nul",
    "../../etc/passwd",
    "%",
    "_",
    "CON",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "e\N{COMBINING ACUTE ACCENT}",  # looks the same, is another name
    "\ud800 lone surrogate",
    "\N{SNAKE}",
    "line\nfeed",
    "x" * 65_536,
    "x" * 65_535 + "y",
]

#: How a run ends that may be gone on with.
UNFINISHED = [RunStatus.SUSPENDED, RunStatus.FAILED, RunStatus.CANCELLED]

#: Seconds: the lease of the owners that fall silent here. Long enough for a slow machine to beat in between.
SHORT = 0.6


def record(number: int = 0, *, batch: int = 1, value: bytes = b"value", **changes: Any) -> Record:
    """A line of a journal."""
    columns: dict[str, Any] = {
        "kind": RecordKind.OK,
        "identity": number.to_bytes(16, "big"),
        "parent": b"",
        "ordinal": number,
        "step": "fetch",
        "value": value,
        "attempts": 2,
        "started": 1.25,
        "ended": 2.5,
        "batch": batch,
        "asked": 0.75,
        "limits": ("all", "calls\n of \ud800"),
    }
    return Record(**(columns | changes))


def begin(
    store: Checkpointer, run_id: str = "r", *, thread_id: str | None = None, created: float = 1.0
) -> int:
    """Create a run, or go on with it; its fence."""
    return store.open(OpenRun(run_id, "flow", thread_id, b"input", created)).fence


def resume(store: Checkpointer, run_id: str = "r", workflow: str = "") -> int:
    """Go on with a run; its fence."""
    return store.open(OpenRun(run_id, workflow)).fence


def end(
    store: Checkpointer, run_id: str, fence: int, status: RunStatus = RunStatus.FINISHED, **values: Any
) -> None:
    """Say how a run ended."""
    assert store.commit([Write(run_id, fence, change=Change(status, **values))]) == set()


def values(store: Checkpointer, run_id: str) -> list[bytes]:
    """The values in a journal."""
    return [line.value for line in all_records(store, run_id)]


def found(store: Checkpointer, run_id: str = "r") -> RunRow:
    """A run that is there."""
    row = store.find(run_id)
    assert row is not None, f"there is no run {run_id!r}"
    return row


def outline(found: RunRow | CheckpointError) -> tuple[Any, ...]:
    """What became of a request, as far as every store must say the same."""
    if isinstance(found, CheckpointError):
        return (type(found), str(found))
    return found.run_id, found.status, found.fence, found.input, found.output


def _random_request(rng: random.Random) -> OpenRun:
    """One for a few runs and threads, so that they meet."""
    run_id = f"r{rng.randrange(6)}"
    thread_id = rng.choice([None, "t1", "t2"])
    return OpenRun(
        run_id, rng.choice(["flow", "flow", "flow", "other"]), thread_id, rng.choice([None, b"", b""]), 1.0
    )


def retry_after(error: RunBusyError) -> Any:
    """Seconds after which one can tell; None: waiting tells nothing."""
    return error.retry_after


def seeded(name: str) -> random.Random:
    """A generator whose seed is printed; ``WEFT_SEED`` runs the same again."""
    seed = int(os.environ.get("WEFT_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    print(f"{name}: WEFT_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    return random.Random(seed)


def at_once(work: Iterable[Callable[[], T]]) -> list[T]:
    """Call all of them in threads that start at the same moment; what they gave."""
    calls = list(work)
    barrier = threading.Barrier(len(calls))

    def call(fn: Callable[[], T]) -> T:
        barrier.wait()
        return fn()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def or_error(fn: Callable[[], T], *errors: type[Exception]) -> T | type[Exception]:
    """What it gives, or the type of what it raises, if that is one of these."""
    try:
        return fn()
    except errors as error:
        return type(error)


def hostile_name(draw: random.Random) -> str:
    """A name that some language or file system takes for something else."""
    alphabet = draw.choice(
        [
            "'\"`;-- ()[]{}$%_\\/.:*?|&<>=!#@~^",
            "\0\x01\x1b\x7f\r\n\t\x85\u2028",
            "\ud800\udbff\udc00\udfff",
            "e\u0301\u00e9\u0130\u0131\u017f\u212a\u200b\u202e\ufeff\U0001f40d\U0010ffff",
            "aA0",
        ]
    )
    name = "".join(draw.choice(alphabet) for _ in range(draw.choice([0, 1, 1, 2, 3, 5, 8, 30])))
    return draw.choice(["", "r", "' OR 1=1 --", "../", "nul", "$.x') OR 1", "%s", "{0}", "\\x00"]) + name


class Unreliable:
    """A store whose replies get lost: call number ``at`` of ``method`` fails, before or after it is done."""

    def __init__(self, store: Checkpointer, method: str, at: int, *, done: bool) -> None:
        self._store, self._method, self._at, self._done = store, method, at, done
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name != self._method:
            return method

        def unreliable(*args: Any, **options: Any) -> Any:
            self._at -= 1
            if self._at != -1:
                return method(*args, **options)
            self.failed = True
            if self._done:
                method(*args, **options)
            raise StoreError("the reply was lost")

        return unreliable


def drive(store: Any, run_id: str, steps: int) -> None:
    """What an engine does: open, look what is recorded, do the rest, and begin again when the store fails."""
    for _ in range(3):
        try:
            row = store.open(OpenRun(run_id, "flow", "t", b"input", 1.0))
        except StoreError:
            continue
        if row.status is RunStatus.FINISHED:
            return
        try:
            done = {line.ordinal for line in all_records(store, run_id)}
            for number in range(steps):
                if number not in done:
                    assert not store.commit([Write(run_id, row.fence, [record(number, batch=number + 1)])])
            assert not store.commit(
                [Write(run_id, row.fence, change=Change(RunStatus.FINISHED, b"out", saved=b"s"))]
            )
        except StoreError:
            store.release(run_id, row.fence)
        else:
            return
    raise AssertionError(f"run {run_id!r} was not finished in three attempts")


class StoreConformance:
    """Derive from this and give it a fixture ``store``, and ``reopen`` if there can be a second object."""

    #: How many random programs of two tenants are run.
    tenant_programs = 200

    @pytest.fixture
    def reopen(self) -> Reopen | None:
        """Makes another object on what ``store`` keeps; None: there can be none."""
        return None

    @pytest.fixture
    def another(self, reopen: Reopen | None) -> Iterator[Reopen]:
        """The same, for the tests that need it; what it has made is closed in the end."""
        if reopen is None:
            pytest.skip("a second object cannot see what the first one keeps")
        made: list[Checkpointer] = []

        def make(**options: Any) -> Checkpointer:
            made.append(reopen(**options))
            return made[-1]

        yield make
        for store in made:
            store.close()

    # --- open -------------------------------------------------------------------------------------------

    def test_is_a_checkpointer_with_a_codec(self, store: Checkpointer) -> None:
        assert isinstance(store, Checkpointer)
        assert isinstance(store.codec, Codec)

    def test_a_new_run_is_running_and_can_be_found(self, store: Checkpointer) -> None:
        row = store.open(OpenRun("r", "flow", "t", b"in", 12.5))
        assert (row.run_id, row.workflow, row.thread_id, row.input) == ("r", "flow", "t", b"in")
        assert (row.status, row.fence, row.batches) == (RunStatus.RUNNING, 1, 0)
        assert (row.output, row.error, row.created, row.updated) == (None, None, 12.5, 12.5)
        assert store.find("r") == row

    def test_a_run_without_a_time_gets_the_present_one(self, store: Checkpointer) -> None:
        row = store.open(OpenRun("r", "flow", None, b""))
        assert row.created > 1.7e9

    def test_resuming_an_unknown_run_is_an_error_and_creates_nothing(self, store: Checkpointer) -> None:
        with pytest.raises(RunNotFoundError, match="'r'"):
            resume(store)
        assert store.find("r") is None
        assert store.runs() == []

    def test_an_open_run_is_busy_and_stays_its_owners(self, store: Checkpointer) -> None:
        fence = begin(store)
        with pytest.raises(RunBusyError, match="'r'"):
            begin(store)
        with pytest.raises(RunBusyError):
            resume(store)
        assert store.commit([Write("r", fence, [record()])]) == set()

    @pytest.mark.parametrize("status", UNFINISHED)
    def test_an_ended_run_is_reopened_with_a_higher_fence(self, store: Checkpointer, status: Any) -> None:
        end(store, "r", begin(store), status, error=b"oops")
        row = resume_row = store.open(OpenRun("r", "flow"))
        assert (row.status, row.fence, row.error) == (RunStatus.RUNNING, 2, b"oops")
        assert found(store).status is RunStatus.RUNNING
        with pytest.raises(RunBusyError):
            resume(store)
        assert store.commit([Write("r", resume_row.fence, [record()])]) == set()

    def test_the_row_of_a_reopened_run_is_the_one_from_before(self, store: Checkpointer) -> None:
        fence = begin(store)
        store.commit([Write("r", fence, [record(batch=7)], Change(RunStatus.SUSPENDED))])
        before = found(store)
        row = store.open(OpenRun("r", "flow", created=99.0))
        assert (row.updated, row.created, row.batches) == (before.updated, before.created, 7)
        assert found(store).updated == 99.0

    def test_a_finished_run_is_returned_as_it_is_and_nobody_owns_it(self, store: Checkpointer) -> None:
        end(store, "r", begin(store), output=b"out")
        first, second = store.open(OpenRun("r", "flow", None, b"input")), store.open(OpenRun("r", ""))
        assert first == second == store.find("r")
        assert (first.status, first.output, first.fence) == (RunStatus.FINISHED, b"out", 1)
        assert store.delete_run("r")

    @pytest.mark.parametrize(
        ("request_", "said"),
        [
            (OpenRun("r", "other", "t", b"input"), ["'flow'", "'other'"]),
            (OpenRun("r", "other"), ["'flow'", "'other'"]),
            (OpenRun("r", "flow", "other", b"input"), ["'t'", "'other'"]),
            (OpenRun("r", "flow", "t", b"INPUT"), ["input #"]),
            (OpenRun("r", "flow", "t", b""), ["input #"]),
        ],
    )
    @pytest.mark.parametrize("status", [None, RunStatus.FINISHED, RunStatus.FAILED])
    def test_another_workflow_thread_or_input_is_refused_naming_both(
        self, store: Checkpointer, request_: OpenRun, said: list[str], status: Any
    ) -> None:
        fence = begin(store, thread_id="t")
        if status:
            end(store, "r", fence, status)
        before = found(store)
        with pytest.raises(RunMismatchError) as caught:
            store.open(request_)
        assert all(part in str(caught.value) for part in ["'r'", *said])
        assert "INPUT" not in str(caught.value)
        assert store.find("r") == before

    def test_a_request_that_says_nothing_fits_every_run(self, store: Checkpointer) -> None:
        end(store, "r", begin(store, thread_id="t"), RunStatus.FAILED)
        assert store.open(OpenRun("r", "")).thread_id == "t"

    def test_the_same_request_again_fits(self, store: Checkpointer) -> None:
        end(store, "r", begin(store, thread_id="t"), RunStatus.FAILED)
        assert begin(store, thread_id="t") == 2

    def test_a_thread_has_one_run_at_a_time(self, store: Checkpointer) -> None:
        fence = begin(store, "r1", thread_id="t")
        with pytest.raises(ThreadBusy, match="'r1'"):
            begin(store, "r2", thread_id="t")
        assert store.find("r2") is None
        begin(store, "elsewhere", thread_id="other")
        begin(store, "nowhere")
        begin(store, "nowhere too")
        end(store, "r1", fence)
        begin(store, "r2", thread_id="t")

    def test_an_ended_run_is_not_reopened_while_its_thread_is_busy(self, store: Checkpointer) -> None:
        end(store, "r1", begin(store, "r1", thread_id="t"), RunStatus.SUSPENDED)
        begin(store, "r2", thread_id="t")
        with pytest.raises(ThreadBusy, match="'r2'"):
            resume(store, "r1")
        assert found(store, "r1").status is RunStatus.SUSPENDED

    def test_a_finished_run_can_be_read_while_its_thread_is_busy(self, store: Checkpointer) -> None:
        end(store, "r1", begin(store, "r1", thread_id="t"), output=b"out")
        begin(store, "r2", thread_id="t")
        assert store.open(OpenRun("r1", "flow")).output == b"out"

    def test_of_many_who_want_a_run_one_gets_it(self, store: Checkpointer) -> None:
        for number in range(20):
            run_id = f"r{number}"
            barrier = threading.Barrier(8)

            def attempt(_: int, run_id: str = run_id, barrier: threading.Barrier = barrier) -> int | None:
                barrier.wait()
                try:
                    return begin(store, run_id)
                except RunBusyError:
                    return None

            with ThreadPoolExecutor(8) as pool:
                fences = list(pool.map(attempt, range(8)))
            assert sorted(map(str, fences)) == ["1", *["None"] * 7]

    # --- open_many --------------------------------------------------------------------------------------

    def test_many_are_opened_at_once_each_as_it_would_be_alone(self, store: Checkpointer) -> None:
        end(store, "finished", begin(store, "finished"), output=b"out")
        end(store, "failed", begin(store, "failed", thread_id="t"), RunStatus.FAILED)
        rows = store.open_many(
            [
                OpenRun("new", "flow", None, b"1", 5.0),
                OpenRun("finished", "flow"),
                OpenRun("newer", "flow", "t2", b"2", 6.0),
                OpenRun("failed", "flow"),
            ]
        )
        assert [outline(row) for row in rows] == [
            ("new", RunStatus.RUNNING, 1, b"1", None),
            ("finished", RunStatus.FINISHED, 1, b"input", b"out"),
            ("newer", RunStatus.RUNNING, 1, b"2", None),
            ("failed", RunStatus.RUNNING, 2, b"input", None),
        ]
        assert [row.run_id for row in store.runs()] == ["newer", "new", "failed", "finished"]
        assert store.find("new") == rows[0]
        assert store.find("newer") == rows[2]
        fences = {"new": 1, "newer": 1, "failed": 2}
        assert store.commit([Write(name, fence, [record()]) for name, fence in fences.items()]) == set()

    def test_to_open_nothing_is_fine(self, store: Checkpointer) -> None:
        assert store.open_many([]) == []

    def test_who_is_refused_in_a_group_owns_nothing_and_hinders_nobody(self, store: Checkpointer) -> None:
        begin(store, "busy", thread_id="t")
        end(store, "other", begin(store, "other"), RunStatus.FAILED)
        before = found(store, "other")
        refused = {
            "busy": (OpenRun("busy", "flow"), RunBusyError),
            "second of t": (OpenRun("second of t", "flow", "t", b""), ThreadBusy),
            "unknown": (OpenRun("unknown", "flow"), RunNotFoundError),
            "other": (OpenRun("other", "another flow"), RunMismatchError),
        }
        requests = [OpenRun("first", "flow", None, b"")]
        for name, (request, _) in refused.items():
            requests += [request, OpenRun(f"after {name}", "flow", None, b"")]
        for request, got in zip(requests, store.open_many(requests), strict=True):
            if request.run_id in refused:
                assert type(got) is refused[request.run_id][1]
            else:
                assert isinstance(got, RunRow)
                assert store.commit([Write(request.run_id, got.fence, [record()])]) == set()
        assert store.find("second of t") is None
        assert store.find("unknown") is None
        assert found(store, "other") == before
        assert resume(store, "other") == 2

    def test_of_two_in_a_group_who_want_a_run_the_first_gets_it(self, store: Checkpointer) -> None:
        first, second, third = store.open_many([OpenRun("r", "flow", None, b"input")] * 3)
        assert outline(first) == ("r", RunStatus.RUNNING, 1, b"input", None)
        for error in (second, third):
            assert type(error) is RunBusyError
            assert retry_after(error) is None
        assert store.commit([Write("r", 1, [record()])]) == set()
        end(store, "r", 1, RunStatus.SUSPENDED)
        again, refused = store.open_many([OpenRun("r", "flow"), OpenRun("r", "flow", None, b"input")])
        assert outline(again)[1:3] == (RunStatus.RUNNING, 2)
        assert type(refused) is RunBusyError

    def test_of_two_in_a_group_who_want_a_thread_the_first_gets_it(self, store: Checkpointer) -> None:
        end(store, "old", begin(store, "old", thread_id="t"), RunStatus.FAILED)
        new, old, elsewhere = store.open_many(
            [
                OpenRun("new", "flow", "t", b""),
                OpenRun("old", "flow"),
                OpenRun("elsewhere", "flow", "t2", b""),
            ]
        )
        assert isinstance(new, RunRow)
        assert type(old) is ThreadBusy
        assert "'new'" in str(old)
        assert isinstance(elsewhere, RunRow)
        end(store, "new", 1)
        old, newer = store.open_many([OpenRun("old", "flow"), OpenRun("newer", "flow", "t", b"")])
        assert isinstance(old, RunRow)
        assert type(newer) is ThreadBusy
        assert "'old'" in str(newer)
        assert store.find("newer") is None

    def test_a_group_is_equal_to_one_after_the_other(self, store: Checkpointer) -> None:
        """Held against a store in memory that is asked for each alone."""
        rng = seeded("groups of openings")
        model = InMemorySaver()
        for _ in range(60):
            requests = [_random_request(rng) for _ in range(rng.randint(1, 8))]
            got = store.open_many(requests)
            expected = [model.open_many([request])[0] for request in requests]
            assert [outline(row) for row in got] == [outline(row) for row in expected], requests
            ends = [row for row in expected if isinstance(row, RunRow) and row.status is RunStatus.RUNNING]
            for row in rng.sample(ends, rng.randint(0, len(ends))):
                change = Change(rng.choice([RunStatus.FINISHED, *UNFINISHED, RunStatus.FAILED]), b"out")
                assert store.commit([Write(row.run_id, row.fence, change=change)]) == set()
                assert model.commit([Write(row.run_id, row.fence, change=change)]) == set()
            assert [row.run_id for row in store.runs()] == [row.run_id for row in model.runs()]
            if rng.random() < 0.3:
                for row in model.runs():
                    store.release(row.run_id, row.fence)
                    model.release(row.run_id, row.fence)

    def test_a_group_is_there_when_it_is_open(self, store: Checkpointer, another: Reopen) -> None:
        names = [f"r{number}" for number in range(50)]
        store.open_many([OpenRun(name, "flow", name, b"input") for name in names])
        other = another()
        assert {row.run_id for row in other.runs()} == {*names}
        for error in other.open_many([OpenRun(name, "flow") for name in names]):
            assert type(error) is RunBusyError
            assert retry_after(error) is not None

    def test_groups_of_several_objects_do_not_lock_each_other_out(
        self, store: Checkpointer, another: Reopen
    ) -> None:
        """Each wants the same runs and threads in another order, and one gets each of them."""
        requests = [OpenRun(f"r{number}", "flow", f"t{number}", b"") for number in range(12)]
        stores = [store, another(), another()]
        barrier = threading.Barrier(len(stores))

        def attempt(number: int) -> list[str]:
            mine = random.Random(number).sample(requests, len(requests))
            barrier.wait()
            got = stores[number].open_many(mine)
            return [row.run_id for row in got if isinstance(row, RunRow)]

        with ThreadPoolExecutor(len(stores)) as pool:
            opened = [name for names in pool.map(attempt, range(len(stores))) for name in names]
        assert sorted(opened) == sorted(request.run_id for request in requests)

    # --- commit -----------------------------------------------------------------------------------------

    def test_records_come_back_as_they_were(self, store: Checkpointer) -> None:
        fence = begin(store)
        given = [
            record(n, kind=kind, parent=b"p" * 16, step="Ünï\ud800\0", value=bytes(range(256)), batch=n)
            for n, kind in enumerate(RecordKind)
        ]
        store.commit([Write("r", fence, given)])
        assert [line for _, line in store.records("r")] == given
        assert list(all_records(store, "r")) == given

    def test_integers_for_times_are_times(self, store: Checkpointer) -> None:
        fence = begin(store)
        store.commit([Write("r", fence, [record(started=1, ended=2)])])
        assert next(all_records(store, "r")).ended == 2.0

    def test_positions_grow_over_commits_from_1(self, store: Checkpointer) -> None:
        fence = begin(store)
        store.commit([Write("r", fence, [record(1), record(2)])])
        store.commit([Write("r", fence, [record(3)])])
        assert [(place, line.ordinal) for place, line in store.records("r")] == [(1, 1), (2, 2), (3, 3)]

    def test_a_commit_may_hold_several_writes_of_a_run(self, store: Checkpointer) -> None:
        fence = begin(store)
        store.commit(
            [
                Write("r", fence, [record(1)]),
                Write("r", fence, [record(2)], Change(RunStatus.FINISHED, b"out")),
                Write("r", fence, [record(3)]),
            ]
        )
        assert [line.ordinal for _, line in store.records("r")] == [1, 2]

    def test_the_journal_is_read_in_pages(self, store: Checkpointer) -> None:
        fence = begin(store)
        store.commit([Write("r", fence, [record(n) for n in range(1, 26)])])
        assert [place for place, _ in store.records("r", limit=10)] == list(range(1, 11))
        assert [place for place, _ in store.records("r", after=20, limit=10)] == list(range(21, 26))
        assert store.records("r", after=25) == []
        assert store.records("r", after=10**30) == []
        assert store.records("r", limit=0) == store.records("r", limit=-1) == []
        assert len(store.records("r", after=-5, limit=10**30)) == 25
        assert store.records("unknown") == []

    def test_batches_is_the_highest_batch_committed(self, store: Checkpointer) -> None:
        fence = begin(store)
        store.commit([Write("r", fence, [record(batch=3), record(batch=5), record(batch=4)])])
        assert found(store).batches == 5
        store.commit([Write("r", fence, [record(batch=2)])])
        assert found(store).batches == 5

    def test_an_empty_commit_is_one(self, store: Checkpointer) -> None:
        assert store.commit([]) == set()
        assert store.commit([Write("r", begin(store))]) == set()

    def test_a_change_ends_the_run_and_its_ownership(self, store: Checkpointer) -> None:
        fence = begin(store)
        store.commit([Write("r", fence, [record()], Change(RunStatus.FAILED, error=b"oops"))])
        row = found(store)
        assert (row.status, row.output, row.error) == (RunStatus.FAILED, None, b"oops")
        assert store.commit([Write("r", fence, [record()])]) == {"r"}
        assert values(store, "r") == [b"value"]

    def test_a_change_replaces_the_outcome_before(self, store: Checkpointer) -> None:
        end(store, "r", begin(store), RunStatus.FAILED, error=b"oops")
        end(store, "r", resume(store), output=b"out")
        row = found(store)
        assert (row.status, row.output, row.error) == (RunStatus.FINISHED, b"out", None)

    def test_a_change_to_running_keeps_the_owner(self, store: Checkpointer) -> None:
        fence = begin(store, thread_id="t")
        store.commit([Write("r", fence, change=Change(RunStatus.RUNNING, saved=b"half"))])
        with pytest.raises(RunBusyError):
            resume(store)
        assert store.commit([Write("r", fence, [record()])]) == set()
        assert [state.value for state in store.states("t")] == [b"half"]

    def test_an_old_or_invented_fence_is_refused_and_other_runs_are_not(self, store: Checkpointer) -> None:
        old = begin(store)
        store.release("r", old)
        new = resume(store)
        other = begin(store, "other")
        writes = [
            Write("r", old, [record(1, value=b"zombie")], Change(RunStatus.FINISHED, b"zombie")),
            Write("other", other, [record(2)]),
            Write("unknown", 1, [record(3)]),
        ]
        assert store.commit(writes) == {"r", "unknown"}
        assert store.commit([Write("r", new + 1, [record(4)])]) == {"r"}
        assert values(store, "r") == []
        assert values(store, "other") == [b"value"]
        assert found(store).status is RunStatus.RUNNING
        assert store.find("unknown") is None

    def test_many_threads_commit_at_once_and_nothing_is_lost(self, store: Checkpointer) -> None:
        def work(worker: int) -> None:
            fence = begin(store, f"r{worker}")
            for turn in range(25):
                assert not store.commit([Write(f"r{worker}", fence, [record(turn), record(turn)])])
                assert len(store.records(f"r{worker}")) == 2 * turn + 2

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        for worker in range(8):
            assert [line.ordinal for line in all_records(store, f"r{worker}")] == [n // 2 for n in range(50)]

    def test_a_commit_at_once_is_a_commit_or_nothing(self, store: Checkpointer) -> None:
        """Of stores that have ``commit_at_once``: where somebody else is writing, it has done nothing."""
        commit_at_once: Callable[[list[Write]], set[str] | None] | None = getattr(
            store, "commit_at_once", None
        )
        if commit_at_once is None:
            pytest.skip("this store commits in the journal's thread only")
        begin(store)
        assert commit_at_once([Write("r", 100, [record()])]) == {"r"}
        assert values(store, "r") == []

        def work(worker: int) -> None:
            fence = begin(store, f"r{worker}")
            for turn in range(25):
                write = Write(f"r{worker}", fence, [record(turn), record(turn)])
                while (refused := commit_at_once([write])) is None:
                    assert len(store.records(f"r{worker}")) == 2 * turn
                assert refused == set()
                assert len(store.records(f"r{worker}")) == 2 * turn + 2

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        for worker in range(8):
            assert [line.ordinal for line in all_records(store, f"r{worker}")] == [n // 2 for n in range(50)]

    # --- release ----------------------------------------------------------------------------------------

    def test_a_released_run_is_running_and_free(self, store: Checkpointer) -> None:
        fence = begin(store, thread_id="t")
        store.release("r", fence)
        assert found(store).status is RunStatus.RUNNING
        assert store.commit([Write("r", fence, [record()])]) == {"r"}
        begin(store, "next", thread_id="t")
        with pytest.raises(ThreadBusy):
            resume(store)

    def test_only_the_present_owner_can_release(self, store: Checkpointer) -> None:
        store.release("unknown", 1)
        old = begin(store)
        store.release("r", old)
        new = resume(store)
        store.release("r", old)
        with pytest.raises(RunBusyError):
            resume(store)
        store.release("r", new)
        assert resume(store) == new + 1

    def test_releasing_an_ended_run_changes_nothing(self, store: Checkpointer) -> None:
        fence = begin(store, thread_id="t")
        end(store, "r", fence)
        begin(store, "next", thread_id="t")
        store.release("r", fence)
        with pytest.raises(ThreadBusy):
            begin(store, "third", thread_id="t")

    # --- answers ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("owned", [True, False])
    def test_answers_are_added_whoever_owns_the_run(self, store: Checkpointer, owned: bool) -> None:
        fence = begin(store)
        store.commit([Write("r", fence, [record(1, batch=3)])])
        if not owned:
            end(store, "r", fence, RunStatus.SUSPENDED)
        store.add_answers("r", [record(2, kind=RecordKind.ANSWER, batch=9)])
        if owned:
            assert store.commit([Write("r", fence, [record(3, batch=4)])]) == set()
        ordinals = [(place, line.ordinal, line.batch) for place, line in store.records("r")]
        assert ordinals == [(1, 1, 3), (2, 2, 0), (3, 3, 4)][: 2 + owned]
        assert found(store).batches == 3 + owned

    def test_an_answer_to_nobody_is_an_error(self, store: Checkpointer) -> None:
        with pytest.raises(RunNotFoundError, match="'r'"):
            store.add_answers("r", [record()])

    # --- threads ----------------------------------------------------------------------------------------

    def test_saved_values_of_a_thread_the_newest_first(self, store: Checkpointer) -> None:
        store.save_state("t", b"by hand", created=5)
        end(store, "r", begin(store, thread_id="t"), saved=b"by a run")
        store.save_state("other", b"other", created=6.0)
        newest, oldest = store.states("t")
        assert (oldest.thread_id, oldest.number, oldest.value) == ("t", 1, b"by hand")
        assert (oldest.created, oldest.run_id) == (5.0, None)
        assert (newest.number, newest.value, newest.run_id) == (2, b"by a run", "r")
        assert store.states("t", limit=1) == [newest]
        assert store.states("t", limit=0) == store.states("unknown") == []

    def test_what_a_run_without_a_thread_saves_is_saved_nowhere(self, store: Checkpointer) -> None:
        end(store, "r", begin(store), saved=b"value")
        assert store.states("") == store.states("None") == []

    def test_no_value_is_saved_beside_a_run(self, store: Checkpointer) -> None:
        fence = begin(store, thread_id="t")
        with pytest.raises(ThreadBusy):
            store.save_state("t", b"value", created=1.0)
        end(store, "r", fence)
        store.save_state("t", b"value", created=1.0)

    # --- lists and deletion -----------------------------------------------------------------------------

    def test_runs_are_listed_in_the_order_of_their_beginning(self, store: Checkpointer) -> None:
        """The clock may go back; the order does not."""
        for number in range(5):
            begin(store, f"r{number}", thread_id=f"t{number}", created=100.0 - number)
        fence = begin(store, "with others", thread_id="t")
        end(store, "with others", fence)
        begin(store, "r5", thread_id="t")
        assert [row.run_id for row in store.runs()] == ["r5", "with others", "r4", "r3", "r2", "r1", "r0"]
        assert [row.run_id for row in store.runs(limit=2)] == ["r5", "with others"]
        assert [row.run_id for row in store.runs(thread_id="t")] == ["r5", "with others"]
        assert [row.run_id for row in store.runs(thread_id="t", limit=1)] == ["r5"]
        assert store.runs(limit=0) == store.runs(limit=-1) == store.runs(thread_id="unknown") == []

    def test_a_deleted_run_is_gone_with_its_journal(self, store: Checkpointer) -> None:
        for run_id in ("before", "r", "after"):
            fence = begin(store, run_id, thread_id="t")
            store.commit([Write(run_id, fence, [record()], Change(RunStatus.FINISHED, saved=b"saved"))])
        assert store.delete_run("r") is True
        assert store.delete_run("r") is False
        assert store.find("r") is None
        assert store.records("r") == []
        assert values(store, "before") == values(store, "after") == [b"value"]
        assert [state.run_id for state in store.states("t")] == ["after", "r", "before"]
        assert begin(store, "r") == 1
        assert store.records("r") == []

    def test_the_newest_run_can_be_deleted_and_begun_again(self, store: Checkpointer) -> None:
        fence = begin(store)
        store.commit([Write("r", fence, [record()], Change(RunStatus.FINISHED, b"old"))])
        store.delete_run("r")
        assert begin(store, "new") == 1
        assert store.records("new") == []
        assert found(store, "new").output is None

    def test_an_owned_run_is_not_deleted(self, store: Checkpointer) -> None:
        fence = begin(store)
        with pytest.raises(RunBusyError):
            store.delete_run("r")
        store.release("r", fence)
        assert store.delete_run("r")

    def test_a_deleted_thread_is_gone_with_runs_and_values(self, store: Checkpointer) -> None:
        fence = begin(store, "r1", thread_id="t")
        with pytest.raises(ThreadBusy):
            store.delete_thread("t")
        end(store, "r1", fence, saved=b"value")
        store.release("r2", begin(store, "r2", thread_id="t"))
        end(store, "other", begin(store, "other", thread_id="t "), saved=b"value")
        store.delete_thread("t")
        store.delete_thread("unknown")
        assert [row.run_id for row in store.runs()] == ["other"]
        assert store.states("t") == []
        assert len(store.states("t ")) == 1

    # --- names ------------------------------------------------------------------------------------------

    def test_any_string_is_a_name_and_no_two_are_mixed_up(self, store: Checkpointer) -> None:
        for number, name in enumerate(HOSTILE_NAMES):
            row = store.open(OpenRun(name, name, name, str(number).encode()))
            assert (row.run_id, row.workflow, row.thread_id) == (name, name, name)
            store.commit(
                [Write(name, 1, [record(number, step=name)], Change(RunStatus.FINISHED, saved=b"s"))]
            )
        assert [row.run_id for row in store.runs()] == HOSTILE_NAMES[::-1]
        for number, name in enumerate(HOSTILE_NAMES):
            assert found(store, name).input == str(number).encode()
            assert [(line.ordinal, line.step) for _, line in store.records(name)] == [(number, name)]
            assert [row.run_id for row in store.runs(thread_id=name)] == [name]
            assert [state.thread_id for state in store.states(name)] == [name]
        for number, name in enumerate(HOSTILE_NAMES, 1):
            assert store.delete_run(name)
            store.delete_thread(name)
            assert len(store.runs()) == len(HOSTILE_NAMES) - number

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_errors_show_names_escaped_and_short(self, store: Checkpointer, name: str) -> None:
        begin(store, name, thread_id=name)
        for attempt in (
            lambda: begin(store, name, thread_id=name),
            lambda: begin(store, "other", thread_id=name),
            lambda: store.open(OpenRun(name, name + "?", name + "!", b"?")),
            lambda: resume(store, name + "unknown"),
        ):
            with pytest.raises((RunBusyError, RunMismatchError, RunNotFoundError)) as caught:
                attempt()
            message = str(caught.value)
            assert message.isascii()
            assert message.isprintable()
            assert len(message) < 700

    def test_a_big_value_comes_back(self, store: Checkpointer) -> None:
        fence = begin(store)
        big = bytes(range(256)) * 40_000
        store.commit([Write("r", fence, [record(value=big)], Change(RunStatus.FINISHED, big, big, big))])
        assert values(store, "r") == [big]
        assert found(store).output == big

    def test_closing_twice_is_closing(self, store: Checkpointer) -> None:
        begin(store)
        store.close()
        store.close()

    # --- More of open -----------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "input_", [b"", b"\0", b"x" * 10**7, bytes(range(256))], ids=["empty", "nul", "big", "all"]
    )
    def test_an_input_comes_back(self, store: Checkpointer, input_: bytes) -> None:
        store.open(OpenRun("r", "flow", None, input_))
        assert found(store).input == input_
        store.release("r", 1)
        assert resume(store) == 2
        with pytest.raises(RunMismatchError):
            store.open(OpenRun("r", "flow", None, input_ + b"!"))

    def test_fences_grow_with_every_owner(self, store: Checkpointer) -> None:
        begin(store)
        for fence in range(1, 20):
            assert found(store).fence == fence
            store.release("r", fence)
            assert resume(store) == fence + 1

    @pytest.mark.parametrize("status", UNFINISHED)
    @pytest.mark.parametrize("thread_id", [None, "", "t"])
    def test_every_end_but_finished_can_be_gone_on_with(
        self, store: Checkpointer, status: Any, thread_id: str | None
    ) -> None:
        fence = begin(store, thread_id=thread_id)
        store.commit([Write("r", fence, [record(1)], Change(status, b"out", b"error", b"saved"))])
        row = found(store)
        assert (row.status, row.output, row.error, row.thread_id) == (status, b"out", b"error", thread_id)
        again = begin(store, thread_id=thread_id)
        store.commit([Write("r", again, [record(2)])])
        assert [line.ordinal for line in all_records(store, "r")] == [1, 2]
        assert len(store.states(thread_id or "")) == (thread_id is not None)

    def test_an_empty_thread_id_is_a_thread(self, store: Checkpointer) -> None:
        begin(store, "r1", thread_id="")
        begin(store, "r2")
        with pytest.raises(ThreadBusy):
            begin(store, "r3", thread_id="")
        assert [row.run_id for row in store.runs(thread_id="")] == ["r1"]

    def test_what_is_busy_in_this_object_says_that_waiting_tells_nothing(self, store: Checkpointer) -> None:
        begin(store, thread_id="t")
        for attempt in (
            lambda: resume(store),
            lambda: store.delete_run("r"),
            lambda: store.delete_thread("t"),
        ):
            with pytest.raises(RunBusyError) as caught:
                attempt()
            assert retry_after(caught.value) is None

    def test_a_request_that_failed_leaves_nothing_owned(self, store: Checkpointer) -> None:
        begin(store, "r1", thread_id="t")
        with pytest.raises(ThreadBusy):
            begin(store, "r2", thread_id="t")
        with pytest.raises(RunMismatchError):
            store.open(OpenRun("r1", "other"))
        store.release("r1", 1)
        assert begin(store, "r2", thread_id="t") == 1

    def test_the_time_of_beginning_stays(self, store: Checkpointer) -> None:
        fence = begin(store, created=5.0)
        store.commit([Write("r", fence, [record()])])
        store.release("r", fence)
        store.open(OpenRun("r", "flow", created=77.0))
        assert found(store).created == 5.0

    # --- Grouped commits --------------------------------------------------------------------------------

    @pytest.mark.parametrize("count", [2, 10, 100])
    def test_a_group_is_one_commit_and_the_refused_are_left_out(
        self, store: Checkpointer, count: int
    ) -> None:
        """Every third run was taken over; the others lose nothing by being in a commit with them."""
        fences = {f"r{n}": begin(store, f"r{n}", thread_id=f"t{n}") for n in range(count)}
        lost = {f"r{n}" for n in range(0, count, 3)}
        for run_id in lost:
            store.release(run_id, 1)
            resume(store, run_id)
        writes = [
            Write(run_id, fence, [record(n), record(n + 1)], Change(RunStatus.FINISHED, b"out", saved=b"s"))
            for n, (run_id, fence) in enumerate(fences.items())
        ]
        assert store.commit(writes) == lost
        for n, run_id in enumerate(fences):
            row = found(store, run_id)
            if run_id in lost:
                assert (row.status, row.fence, values(store, run_id)) == (RunStatus.RUNNING, 2, [])
                assert store.states(f"t{n}") == []
            else:
                assert (row.status, row.output) == (RunStatus.FINISHED, b"out")
                assert [line.ordinal for line in all_records(store, run_id)] == [n, n + 1]
                assert [state.run_id for state in store.states(f"t{n}")] == [run_id]

    def test_writes_of_several_runs_may_be_mixed(self, store: Checkpointer) -> None:
        for run_id in "abc":
            begin(store, run_id)
        store.commit([Write("abc"[n % 3], 1, [record(n)]) for n in range(30)])
        for place, run_id in enumerate("abc"):
            assert [line.ordinal for _, line in store.records(run_id)] == list(range(place, 30, 3))

    def test_what_follows_an_end_in_a_commit_is_refused_and_says_so(self, store: Checkpointer) -> None:
        fence = begin(store)
        writes = [
            Write("r", fence, [record(1)], Change(RunStatus.SUSPENDED)),
            Write("r", fence, [record(2)], Change(RunStatus.FINISHED, b"wrong")),
        ]
        assert store.commit(writes) == {"r"}
        assert found(store).status is RunStatus.SUSPENDED
        assert [line.ordinal for line in all_records(store, "r")] == [1]

    @pytest.mark.parametrize(
        "bad", [{"value": None}, {"ordinal": 2**64}, {"identity": None}, {"batch": -(2**64)}]
    )
    def test_a_commit_that_raises_has_done_nothing(self, store: Checkpointer, bad: dict[str, Any]) -> None:
        """A store may take values that are none, or refuse them; but then the whole commit."""
        begin(store, "good", thread_id="t"), begin(store, "bad")
        writes = [
            Write("good", 1, [record(1)], Change(RunStatus.FINISHED, b"out", saved=b"saved")),
            Write("bad", 1, [record(2), record(3, **bad)]),
        ]
        try:
            store.commit(writes)
        except Exception as error:
            assert isinstance(error, CheckpointError)  # noqa: PT017 - it may also raise nothing
            assert store.records("good") == store.records("bad") == []
            assert store.states("t") == []
            assert found(store, "good").status is RunStatus.RUNNING
            assert store.commit([Write("good", 1, [record()]), Write("bad", 1, [record()])]) == set()

    def test_a_commit_of_thousands_of_records_is_one(self, store: Checkpointer) -> None:
        begin(store), begin(store, "other")
        many = [record(n, value=str(n).encode(), batch=1 + n // 100) for n in range(5_000)]
        assert store.commit([Write("r", 1, many), Write("other", 9, many), Write("unknown", 1, many)]) == {
            "other",
            "unknown",
        }
        assert list(all_records(store, "r")) == many
        assert store.records("other") == []
        assert found(store).batches == 50

    # --- Ordering and paging ----------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 99, 100, 101, 1000])
    def test_pages_of_any_size_put_together_are_the_journal(self, store: Checkpointer, size: int) -> None:
        begin(store), begin(store, "other")
        for first in range(0, 100, 10):
            store.commit(
                [Write("r", 1, [record(n) for n in range(first, first + 10)]), Write("other", 1, [record()])]
            )
        read, position = [], 0
        while page := store.records("r", after=position, limit=size):
            assert len(page) <= size
            assert [place for place, _ in page] == list(range(position + 1, position + 1 + len(page)))
            read += [line.ordinal for _, line in page]
            position = page[-1][0]
        assert read == list(range(100))

    def test_reading_goes_on_where_it_was_while_the_journal_grows(self, store: Checkpointer) -> None:
        begin(store)
        read, position = [], 0
        for number in range(10):
            store.commit([Write("r", 1, [record(number)])])
            page = store.records("r", after=position)
            position = page[-1][0]
            read += [line.ordinal for _, line in page]
        assert read == list(range(10))

    def test_the_order_is_that_of_writing_whatever_the_records_say(self, store: Checkpointer) -> None:
        draw = seeded("order")
        begin(store)
        given = []
        for _ in range(20):
            lines = [
                record(
                    draw.randrange(50),
                    batch=draw.randrange(1, 50),
                    started=draw.uniform(-1e9, 1e9),
                    ended=draw.uniform(-1e9, 1e9),
                    value=draw.randbytes(3),
                    step=draw.choice("abc"),
                )
                for _ in range(draw.randrange(5))
            ]
            store.commit([Write("r", 1, lines)])
            given += lines
        assert list(all_records(store, "r")) == given

    def test_equal_records_are_kept_each(self, store: Checkpointer) -> None:
        begin(store)
        for _ in range(3):
            store.commit([Write("r", 1, [record(7), record(7)])])
        assert list(all_records(store, "r")) == [record(7)] * 6

    def test_answers_keep_their_place_among_the_records(self, store: Checkpointer) -> None:
        begin(store)
        for number in range(0, 30, 3):
            store.commit([Write("r", 1, [record(number), record(number + 1)])])
            store.add_answers("r", [record(number + 2, kind=RecordKind.ANSWER)])
        assert [line.ordinal for line in all_records(store, "r")] == list(range(30))
        assert [line.batch for line in all_records(store, "r")] == [1, 1, 0] * 10

    def test_no_answers_are_none(self, store: Checkpointer) -> None:
        fence = begin(store)
        store.add_answers("r", [])
        assert store.records("r") == []
        assert store.commit([Write("r", fence, [record()])]) == set()

    def test_a_finished_run_can_be_answered_and_stays_finished(self, store: Checkpointer) -> None:
        end(store, "r", begin(store), output=b"out")
        store.add_answers("r", [record(kind=RecordKind.ANSWER)])
        row = found(store)
        assert (row.status, row.output, len(store.records("r"))) == (RunStatus.FINISHED, b"out", 1)

    @pytest.mark.parametrize("number", [0, 1, -1, 2**31, 2**53 + 1, 2**62])
    def test_numbers_come_back(self, store: Checkpointer, number: int) -> None:
        begin(store)
        given = record(ordinal=number, attempts=abs(number) % 2**31, batch=abs(number))
        store.commit([Write("r", 1, [given])])
        assert next(all_records(store, "r")) == given

    @pytest.mark.parametrize("seconds", [0.0, 1e-9, 1.1, 1.7e9 + 1 / 3, -5.5, 1e300, float("inf")])
    def test_times_come_back(self, store: Checkpointer, seconds: float) -> None:
        begin(store, created=1.0 / 3)
        given = record(started=seconds, ended=-seconds)
        store.commit([Write("r", 1, [given])])
        assert next(all_records(store, "r")) == given
        assert found(store).created == 1.0 / 3

    # --- Values -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("where", ["value", "output", "error", "saved", "input", "answer", "state"])
    def test_ten_megabytes_come_back(self, store: Checkpointer, where: str) -> None:
        big = seeded("big").randbytes(10 * 2**20)
        store.open(OpenRun("r", "flow", "t", big if where == "input" else b"", 1.0))
        store.commit([Write("r", 1, [record(value=big if where == "value" else b"")])])
        if where == "answer":
            store.add_answers("r", [record(value=big)])
        texts: dict[str, Any] = {
            name: big if where == name else b"small" for name in ("output", "error", "saved")
        }
        end(store, "r", 1, **texts)
        if where == "state":
            store.save_state("t", big, created=1.0)
        row = found(store)
        assert row.input == (big if where == "input" else b"")
        assert (row.output, row.error) == (texts["output"], texts["error"])
        assert store.states("t")[0].value == (big if where == "state" else texts["saved"])
        assert values(store, "r")[-1] == (big if where in {"value", "answer"} else b"")

    def test_many_big_values_in_one_commit(self, store: Checkpointer) -> None:
        begin(store)
        lines = [record(n, value=bytes([n]) * 2**20) for n in range(30)]
        store.commit([Write("r", 1, lines)])
        assert [(line.ordinal, line.value[:1], len(line.value)) for line in all_records(store, "r")] == [
            (n, bytes([n]), 2**20) for n in range(30)
        ]

    @pytest.mark.parametrize("output", [None, b""])
    @pytest.mark.parametrize("error", [None, b""])
    def test_nothing_and_empty_are_told_apart(
        self, store: Checkpointer, output: bytes | None, error: bytes | None
    ) -> None:
        end(store, "r", begin(store), output=output, error=error)
        row = found(store)
        assert (row.output, row.error) == (output, error)

    # --- States -----------------------------------------------------------------------------------------

    def test_states_are_numbered_without_gaps(self, store: Checkpointer) -> None:
        for number in range(1, 31):
            if number % 3:
                store.save_state("t", str(number).encode(), created=float(-number))
            else:
                run_id = f"r{number}"
                end(store, run_id, begin(store, run_id, thread_id="t"), saved=str(number).encode())
        states = store.states("t")
        assert [state.number for state in states] == list(range(30, 0, -1))
        assert [state.value for state in states] == [str(n).encode() for n in range(30, 0, -1)]
        assert [state.run_id for state in states if state.number % 3 == 0] == [
            f"r{n}" for n in range(30, 0, -3)
        ]
        assert [state.number for state in store.states("t", limit=4)] == [30, 29, 28, 27]

    def test_a_run_may_save_more_than_once(self, store: Checkpointer) -> None:
        fence = begin(store, thread_id="t")
        for number in range(3):
            store.commit([Write("r", fence, change=Change(RunStatus.RUNNING, saved=bytes([number])))])
        store.commit(
            [
                Write("r", fence, change=Change(RunStatus.RUNNING, saved=b"a")),
                Write("r", fence, change=Change(RunStatus.FINISHED, saved=b"b")),
            ]
        )
        assert [state.value for state in store.states("t")] == [b"b", b"a", b"\2", b"\1", b"\0"]

    def test_a_refused_run_saves_nothing(self, store: Checkpointer) -> None:
        fence = begin(store, thread_id="t")
        store.release("r", fence)
        resume(store)
        assert store.commit([Write("r", fence, change=Change(RunStatus.FINISHED, saved=b"zombie"))]) == {"r"}
        assert store.states("t") == []

    def test_states_outlive_their_run(self, store: Checkpointer) -> None:
        end(store, "r", begin(store, thread_id="t"), saved=b"value")
        store.delete_run("r")
        assert [(state.value, state.run_id) for state in store.states("t")] == [(b"value", "r")]
        end(store, "r", begin(store, thread_id="t"), saved=b"again")
        assert [state.value for state in store.states("t")] == [b"again", b"value"]

    def test_a_thread_that_was_deleted_begins_anew(self, store: Checkpointer) -> None:
        end(store, "r", begin(store, thread_id="t"), saved=b"old")
        store.delete_thread("t")
        assert store.find("r") is None
        assert store.records("r") == []
        end(store, "r", begin(store, thread_id="t"), saved=b"new")
        assert [state.value for state in store.states("t")] == [b"new"]

    # --- Names ------------------------------------------------------------------------------------------

    def test_ten_thousand_hostile_names_are_kept_apart(self, store: Checkpointer) -> None:
        """2,500 runs with four names each: all come back, none reaches another's rows, nothing else happens."""
        draw = seeded("names")
        names: set[str] = set()
        while len(names) < 10_000:
            names.add(hostile_name(draw) + (draw.choice(["", str(len(names))]) if len(names) > 2_000 else ""))
        quads = list(zip(*[iter(sorted(names))] * 4, strict=True))
        for run_id, workflow, thread_id, _ in quads:
            store.open(OpenRun(run_id, workflow, thread_id, run_id.encode("utf-8", "surrogatepass")))
        for first in range(0, len(quads), 500):
            writes = [
                Write(run_id, 1, [record(n, step=step)], Change(RunStatus.FINISHED, saved=b"s"))
                for n, (run_id, _, _, step) in enumerate(quads[first : first + 500], first)
            ]
            assert store.commit(writes) == set()
        assert [row.run_id for row in store.runs(limit=10**6)] == [run_id for run_id, *_ in reversed(quads)]
        for n, (run_id, workflow, thread_id, step) in enumerate(quads):
            row = found(store, run_id)
            assert (row.workflow, row.thread_id) == (workflow, thread_id)
            assert row.input == run_id.encode("utf-8", "surrogatepass")
            assert [(line.ordinal, line.step) for _, line in store.records(run_id)] == [(n, step)]
        for run_id, workflow, thread_id, step in quads[::25]:
            assert [row.run_id for row in store.runs(thread_id=thread_id)] == [run_id]
            assert [state.run_id for state in store.states(thread_id)] == [run_id]
            for unused in (workflow, step, run_id + "\0", thread_id[:-1] + "\0"):
                assert store.find(unused) is None or unused in {each[0] for each in quads}

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("t", "tt"),
            ("t", "t\0"),
            ("t", "T"),
            ("t", "t "),
            ("t%", "tx"),
            ("t_", "tx"),
            ("\u00e9", "e\u0301"),
        ],
    )
    def test_names_that_look_alike_are_two(self, store: Checkpointer, one: str, other: str) -> None:
        end(store, one, begin(store, one, thread_id=one), saved=b"one")
        end(store, other, begin(store, other, thread_id=other), saved=b"other")
        assert [row.run_id for row in store.runs(thread_id=one)] == [one]
        assert [state.value for state in store.states(one)] == [b"one"]
        store.delete_thread(one)
        assert store.find(one) is None
        assert [row.run_id for row in store.runs()] == [other]
        assert [state.value for state in store.states(other)] == [b"other"]

    # --- Tenants ----------------------------------------------------------------------------------------

    def test_two_tenants_see_only_what_they_did_themselves(self, store: Checkpointer) -> None:
        """Random programs of two tenants in turn; each must see what it would see with a store of its own."""
        draw = seeded("tenants")
        for number in range(self.tenant_programs):
            alone = {tenant: InMemorySaver() for tenant in ("a", "a\0b")}
            for _ in range(draw.randrange(5, 25)):
                tenant = draw.choice(list(alone))
                operation = _operation(draw, f"{tenant}{number}")
                assert operation(store) == operation(alone[tenant])
            for tenant, memory in alone.items():
                for name in _tenant_names(f"{tenant}{number}"):
                    for look in (_look_at_run, _look_at_thread):
                        assert look(store, name) == look(memory, name)

    # --- Lost replies -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
    @pytest.mark.parametrize("at", range(7))
    def test_a_commit_whose_reply_is_lost_is_found_or_done_again(
        self, store: Checkpointer, at: int, done: bool
    ) -> None:
        """Committed, but reported as failed, or failed: who opens the run again finds out, and nothing is doubled."""
        unreliable = Unreliable(store, "commit", at, done=done)
        drive(unreliable, "r", 6)
        assert unreliable.failed
        assert [line.ordinal for line in all_records(store, "r")] == list(range(6))
        assert (found(store).status, found(store).output) == (RunStatus.FINISHED, b"out")
        assert [state.value for state in store.states("t")] == [b"s"]

    def test_an_open_whose_reply_is_lost_leaves_the_run_to_be_opened_after_closing(
        self, store: Checkpointer, another: Reopen
    ) -> None:
        store.open(OpenRun("r", "flow", "t", b"input", 1.0))  # and nobody heard the answer
        store.close()
        drive(another(), "r", 3)
        assert [line.ordinal for line in all_records(store, "r")] == [0, 1, 2]

    # --- Races ------------------------------------------------------------------------------------------

    def test_of_many_who_want_a_thread_one_gets_it(self, store: Checkpointer) -> None:
        for number in range(10):
            thread_id = f"t{number}"
            attempts = [partial(begin, store, f"{thread_id}r{n}", thread_id=thread_id) for n in range(6)]
            got = at_once(partial(or_error, attempt, ThreadBusy) for attempt in attempts)
            assert sorted(map(str, got)) == ["1", *[str(ThreadBusy)] * 5]
            assert len(store.runs(thread_id=thread_id)) == 1

    def test_of_many_who_go_on_with_a_run_one_gets_it_and_only_it_writes(self, store: Checkpointer) -> None:
        def go_on(run_id: str, number: int) -> set[str]:
            fence = resume(store, run_id)
            change = Change(RunStatus.FINISHED, bytes([number]))
            return store.commit([Write(run_id, fence, [record(number)], change)])

        for number in range(10):
            run_id = f"r{number}"
            store.release(run_id, begin(store, run_id))
            attempts = [partial(go_on, run_id, n) for n in range(6)]
            got = at_once(partial(or_error, attempt, RunBusyError) for attempt in attempts)
            assert set() in got
            assert len(store.records(run_id)) == 1
            assert found(store, run_id).output == bytes([store.records(run_id)[0][1].ordinal])

    def test_answers_and_commits_at_once_lose_nothing(self, store: Checkpointer) -> None:
        begin(store)

        def commit() -> None:
            for n in range(25):
                assert store.commit([Write("r", 1, [record(n), record(n)])]) == set()

        def answer(who: int) -> None:
            for n in range(25):
                store.add_answers("r", [record(100 * who + n, kind=RecordKind.ANSWER)])

        at_once([commit, lambda: answer(1), lambda: answer(2)])
        lines = store.records("r", limit=1000)
        assert [place for place, _ in lines] == list(range(1, 101))
        by_writer = defaultdict(list)
        for _, line in lines:
            by_writer[line.ordinal // 100].append(line.ordinal % 100)
        assert by_writer == {0: [n // 2 for n in range(50)], 1: list(range(25)), 2: list(range(25))}

    def test_values_saved_at_once_get_numbers_of_their_own(self, store: Checkpointer) -> None:
        at_once(partial(store.save_state, "t", bytes([n]), created=1.0) for n in range(12))
        states = store.states("t")
        assert [state.number for state in states] == list(range(12, 0, -1))
        assert {state.value for state in states} == {bytes([n]) for n in range(12)}

    def test_a_reader_sees_a_commit_as_a_whole(self, store: Checkpointer) -> None:
        """Both runs and all records of a commit, or nothing of it."""
        begin(store, "a"), begin(store, "b")
        stop = threading.Event()
        torn = []

        def read() -> None:
            while not stop.is_set():
                second, first = len(store.records("b", limit=10**6)), len(store.records("a", limit=10**6))
                if second % 5 or first % 5 or first < second:  # what was read later is not older
                    torn.append((first, second))

        thread = threading.Thread(target=read)
        thread.start()
        try:
            for _ in range(40):
                store.commit([Write("a", 1, [record()] * 5), Write("b", 1, [record()] * 5)])
        finally:
            stop.set()
            thread.join()
        assert torn == []
        assert len(store.records("a")) == 200

    def test_deleting_and_beginning_at_once_breaks_nothing(self, store: Checkpointer) -> None:
        def delete() -> None:
            for _ in range(20):
                or_error(lambda: store.delete_run("r"), RunBusyError)
                or_error(lambda: store.delete_thread("t"), ThreadBusy)

        def use() -> None:
            for _ in range(20):
                fence = or_error(lambda: begin(store, thread_id="t"), RunBusyError)
                if isinstance(fence, int):
                    assert store.commit([Write("r", fence, [record()], Change(RunStatus.FAILED))]) == set()

        at_once([delete, use, use])
        if store.find("r") is not None:
            assert len(store.records("r")) >= 0
        store.delete_thread("t")
        assert begin(store, thread_id="t") == 1
        assert store.records("r") == []

    # --- A second object --------------------------------------------------------------------------------

    def test_another_object_sees_all_of_it(self, store: Checkpointer, another: Reopen) -> None:
        other = another()
        fence = begin(store, thread_id="t")
        store.commit([Write("r", fence, [record(n, kind=kind) for n, kind in enumerate(RecordKind)])])
        assert other.find("r") == store.find("r")
        assert other.records("r") == store.records("r")
        end(store, "r", fence, output=b"out", error=b"error", saved=b"saved")
        assert other.runs() == store.runs()
        assert other.runs(thread_id="t") == store.runs(thread_id="t")
        assert other.states("t") == store.states("t")

    def test_what_was_committed_outlives_the_object(self, store: Checkpointer, another: Reopen) -> None:
        fence = begin(store, thread_id="t")
        store.commit([Write("r", fence, [record(1)], Change(RunStatus.SUSPENDED, saved=b"saved"))])
        everything = (store.runs(), store.records("r"), store.states("t"))
        store.close()
        other = another()
        assert (other.runs(), other.records("r"), other.states("t")) == everything
        assert resume(other) == 2

    def test_two_objects_are_two_owners(self, store: Checkpointer, another: Reopen) -> None:
        other = another()
        fence = begin(store, thread_id="t")
        for attempt in (
            lambda: resume(other),
            lambda: other.delete_run("r"),
            lambda: begin(other, "r2", thread_id="t"),
            lambda: other.save_state("t", b"", created=1.0),
            lambda: other.delete_thread("t"),
        ):
            with pytest.raises(RunBusyError) as caught:
                attempt()
            assert 0 < retry_after(caught.value) <= store.lease + 1e-6
        assert other.commit([Write("r", fence, [record()])]) == {"r"}
        other.release("r", fence)
        assert store.commit([Write("r", fence, [record()])]) == set()

    def test_what_a_closed_object_had_open_is_free_at_once(
        self, store: Checkpointer, another: Reopen
    ) -> None:
        fence = begin(store, thread_id="t")
        store.close()
        other = another()
        assert resume(other) == fence + 1
        assert store.commit([Write("r", fence, [record()])]) == {"r"}
        with pytest.raises(RunBusyError):
            resume(store)

    def test_a_released_run_is_free_for_another_object(self, store: Checkpointer, another: Reopen) -> None:
        other = another()
        store.release("r", begin(store))
        assert resume(other) == 2
        store.release("r", 1)
        store.release("r", 2)
        assert other.commit([Write("r", 2, [record()])]) == set()

    def test_a_run_that_was_deleted_and_begun_again_is_another(
        self, store: Checkpointer, another: Reopen
    ) -> None:
        """Its fence is 1 again, but not the fence of the one that had it before."""
        other = another()
        store.release("r", begin(store))
        other.delete_run("r")
        assert begin(other) == 1
        assert store.commit([Write("r", 1, [record(value=b"old")])]) == {"r"}
        assert values(other, "r") == []

    def test_answers_of_another_object_reach_the_owner_who_goes_on(
        self, store: Checkpointer, another: Reopen
    ) -> None:
        other = another()
        fence = begin(store)
        for n in range(5):
            other.add_answers("r", [record(2 * n, kind=RecordKind.ANSWER)])
            assert store.commit([Write("r", fence, [record(2 * n + 1)])]) == set()
        assert [line.ordinal for _, line in store.records("r")] == list(range(10))
        end(store, "r", fence)

    def test_of_many_objects_one_gets_a_run(self, store: Checkpointer, another: Reopen) -> None:
        objects = [store, *(another() for _ in range(4))]
        for number in range(5):
            run_id = f"r{number}"
            store.release(run_id, begin(store, run_id))
            got = at_once(partial(or_error, partial(resume, each, run_id), RunBusyError) for each in objects)
            assert sorted(map(str, got)) == ["2", *[str(RunBusyError)] * 4]

    def test_objects_that_are_made_at_once_on_nothing_yet_all_work(self, another: Reopen) -> None:
        objects = [another() for _ in range(6)]
        fences = at_once(partial(begin, each, f"r{n}", thread_id=f"t{n}") for n, each in enumerate(objects))
        assert fences == [1] * 6
        assert len(objects[0].runs()) == 6

    # --- The lease --------------------------------------------------------------------------------------

    def test_beating_is_allowed_at_any_time(self, store: Checkpointer) -> None:
        store.beat()
        fence = begin(store)
        store.beat()
        store.beat()
        end(store, "r", fence)
        store.beat()
        store.close()
        store.beat()

    def test_a_lease_is_a_number_of_seconds(self, store: Checkpointer) -> None:
        assert store.lease > 0

    def test_an_owner_that_falls_silent_loses_its_run_after_its_lease(self, another: Reopen) -> None:
        """And whoever has only just come cannot tell, however long the owner has been silent."""
        silent, other = another(lease=SHORT), another(lease=SHORT)
        fence = begin(silent, thread_id="t")
        time.sleep(2 * SHORT)
        with pytest.raises(RunBusyError) as caught:
            resume(other)
        assert 0 < retry_after(caught.value) <= SHORT + 1e-6
        time.sleep(retry_after(caught.value) + 0.01)
        assert resume(other) == fence + 1
        assert silent.commit([Write("r", fence, [record(value=b"zombie")], Change(RunStatus.FINISHED))]) == {
            "r"
        }
        silent.release("r", fence)
        with pytest.raises(RunBusyError):
            resume(silent)
        assert other.commit([Write("r", fence + 1, [record(value=b"other")])]) == set()
        assert values(other, "r") == [b"other"]

    def test_the_lease_that_counts_is_that_of_the_owner(self, another: Reopen) -> None:
        """An observer in a hurry does not take from one who has said that it may be silent for long."""
        patient, hasty = another(lease=30.0), another(lease=SHORT / 4)
        begin(patient)
        for _ in range(3):
            with pytest.raises(RunBusyError) as caught:
                resume(hasty)
            assert retry_after(caught.value) > SHORT
            time.sleep(SHORT / 2)
        assert patient.commit([Write("r", 1, [record()])]) == set()

    @pytest.mark.parametrize("sign", ["beat", "commit"])
    def test_an_owner_that_gives_signs_of_life_keeps_its_run(self, another: Reopen, sign: str) -> None:
        owner, other = another(lease=SHORT), another(lease=SHORT)
        fence = begin(owner)
        until = time.monotonic() + 4 * SHORT
        while time.monotonic() < until:
            if sign == "beat":
                owner.beat()
            else:
                assert owner.commit([Write("r", fence, [record()])]) == set()
            with pytest.raises(RunBusyError):
                resume(other)
            time.sleep(SHORT / 8)
        assert owner.commit([Write("r", fence, [record()])]) == set()

    @pytest.mark.parametrize("years", [10, -10])
    def test_the_time_of_day_changes_nothing(
        self, another: Reopen, monkeypatch: pytest.MonkeyPatch, years: int
    ) -> None:
        """Forwards, nobody is taken for dead; backwards, nobody is waited for any longer."""
        lease = 3 * SHORT  # a slow machine must not take that long for what follows
        owner, other = another(lease=lease), another(lease=lease)
        begin(owner)
        with pytest.raises(RunBusyError):
            resume(other)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + years * 365 * 86_400)
        with pytest.raises(RunBusyError) as caught:
            resume(other)
        assert 0 < retry_after(caught.value) <= lease + 1e-6
        assert owner.commit([Write("r", 1, [record()])]) == set()
        with pytest.raises(RunBusyError) as caught:
            resume(other)
        assert 0 < retry_after(caught.value) <= lease + 1e-6
        time.sleep(lease + 0.05)
        assert or_error(lambda: resume(other), RunBusyError) == 2

    @pytest.mark.parametrize("act", ["begin", "save_state", "delete_run", "delete_thread"])
    def test_a_silent_owner_that_wakes_up_writes_nothing_to_a_thread_that_went_on(
        self, another: Reopen, act: str
    ) -> None:
        silent, other = another(lease=SHORT), another(lease=SHORT)
        fence = begin(silent, "r1", thread_id="t")
        acts: dict[str, Callable[[], object]] = {
            "begin": lambda: begin(other, "r2", thread_id="t"),
            "save_state": lambda: other.save_state("t", b"by hand", created=1.0),
            "delete_run": lambda: other.delete_run("r1"),
            "delete_thread": lambda: other.delete_thread("t"),
        }
        with pytest.raises(RunBusyError) as caught:
            acts[act]()
        assert isinstance(caught.value, RunBusyError if act == "delete_run" else ThreadBusy)
        time.sleep(retry_after(caught.value) + 0.01)
        acts[act]()
        write = Write("r1", fence, [record(value=b"zombie")], Change(RunStatus.FINISHED, saved=b"zombie"))
        assert silent.commit([write]) == {"r1"}
        assert values(other, "r1") == []
        assert [state.value for state in other.states("t")] == ([b"by hand"] if act == "save_state" else [])

    def test_a_silent_owner_that_wakes_up_keeps_what_nobody_wanted(self, another: Reopen) -> None:
        silent, other = another(lease=SHORT), another(lease=SHORT)
        lost, kept = begin(silent, "lost"), begin(silent, "kept")
        assert or_error(lambda: resume(other, "lost"), RunBusyError) is RunBusyError
        time.sleep(SHORT + 0.05)
        assert resume(other, "lost") == 2
        assert silent.commit([Write("lost", lost, [record(1)]), Write("kept", kept, [record(2)])]) == {"lost"}
        silent.beat()
        assert or_error(lambda: resume(other, "kept"), RunBusyError) is RunBusyError
        assert values(other, "lost") == []
        assert values(other, "kept") == [b"value"]


# --- Programs of tenants ------------------------------------------------------------------------------------


def _tenant_names(tenant: str) -> list[str]:
    return [tenant, f"{tenant}%", f"{tenant}x"]


def _operation(draw: random.Random, tenant: str) -> Callable[[Checkpointer], Any]:
    """Something that a tenant does; what it gives does not depend on what others do."""
    name, other = draw.choice(_tenant_names(tenant)), draw.choice(_tenant_names(tenant))
    fence, number = draw.choice([1, 1, 1, 2, 3]), draw.randrange(100)
    status = draw.choice(list(RunStatus))
    limit = draw.choice([0, 1, 2, 100])
    return draw.choice(
        [
            lambda store: _outcome(lambda: begin(store, name, thread_id=other, created=float(number + 1))),
            lambda store: _outcome(lambda: resume(store, name)),
            lambda store: _outcome(lambda: store.commit([Write(name, fence, [record(number)])])),
            lambda store: _outcome(
                lambda: store.commit([Write(name, fence, [record(number)], Change(status, b"o", saved=b"s"))])
            ),
            lambda store: _outcome(lambda: store.release(name, fence)),
            lambda store: _outcome(lambda: store.add_answers(name, [record(number)])),
            lambda store: _outcome(lambda: store.save_state(name, b"v", created=float(number + 1))),
            lambda store: _outcome(lambda: store.delete_run(name)),
            lambda store: _outcome(lambda: store.delete_thread(name)),
            lambda store: store.records(name, after=number % 3, limit=limit),
            lambda store: [row.run_id for row in store.runs(thread_id=name, limit=limit)],
            lambda store: [(state.number, state.value) for state in store.states(name, limit=limit)],
        ]
    )


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except CheckpointError as error:
        return type(error)


def _look_at_run(store: Checkpointer, name: str) -> Any:
    row = store.find(name)
    if row is None:
        return None
    said = (row.run_id, row.workflow, row.status, row.thread_id, row.input, row.output, row.error)
    return said, row.created, row.fence, row.batches, store.records(name)


def _look_at_thread(store: Checkpointer, name: str) -> Any:
    states = [(state.number, state.value, state.run_id) for state in store.states(name)]
    return [row.run_id for row in store.runs(thread_id=name)], states
