"""What every store does: a test class to derive from, with a ``store`` fixture."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from weft.checkpoint.base import (
    Change,
    Checkpointer,
    OpenRun,
    Record,
    RecordKind,
    RunStatus,
    Write,
    all_records,
)
from weft.checkpoint.codec import Codec
from weft.errors import RunBusyError, RunMismatchError, RunNotFoundError, ThreadBusy

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


def record(number: int = 0, *, batch: int = 1, value: bytes = b"value", **changes) -> Record:
    columns = {
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
    }
    return Record(**(columns | changes))


def begin(
    store: Checkpointer, run_id: str = "r", *, thread_id: str | None = None, created: float = 1.0
) -> int:
    """Create a run, or go on with it; its fence."""
    return store.open(OpenRun(run_id, "flow", thread_id, b"input", created)).fence


def resume(store: Checkpointer, run_id: str = "r", workflow: str = "") -> int:
    return store.open(OpenRun(run_id, workflow)).fence


def end(
    store: Checkpointer, run_id: str, fence: int, status: RunStatus = RunStatus.FINISHED, **values
) -> None:
    assert store.commit([Write(run_id, fence, change=Change(status, **values))]) == set()


def values(store: Checkpointer, run_id: str) -> list[bytes]:
    return [line.value for line in all_records(store, run_id)]


class StoreConformance:
    """Derive from this and give it a fixture ``store``."""

    # --- open -------------------------------------------------------------------------------------------

    def test_is_a_checkpointer_with_a_codec(self, store):
        assert isinstance(store, Checkpointer)
        assert isinstance(store.codec, Codec)

    def test_a_new_run_is_running_and_can_be_found(self, store):
        row = store.open(OpenRun("r", "flow", "t", b"in", 12.5))
        assert (row.run_id, row.workflow, row.thread_id, row.input) == ("r", "flow", "t", b"in")
        assert (row.status, row.fence, row.batches) == (RunStatus.RUNNING, 1, 0)
        assert (row.output, row.error, row.created, row.updated) == (None, None, 12.5, 12.5)
        assert store.find("r") == row

    def test_a_run_without_a_time_gets_the_present_one(self, store):
        row = store.open(OpenRun("r", "flow", None, b""))
        assert row.created > 1.7e9

    def test_resuming_an_unknown_run_is_an_error_and_creates_nothing(self, store):
        with pytest.raises(RunNotFoundError, match="'r'"):
            resume(store)
        assert store.find("r") is None
        assert store.runs() == []

    def test_an_open_run_is_busy_and_stays_its_owners(self, store):
        fence = begin(store)
        with pytest.raises(RunBusyError, match="'r'"):
            begin(store)
        with pytest.raises(RunBusyError):
            resume(store)
        assert store.commit([Write("r", fence, [record()])]) == set()

    @pytest.mark.parametrize("status", [RunStatus.SUSPENDED, RunStatus.FAILED, RunStatus.CANCELLED])
    def test_an_ended_run_is_reopened_with_a_higher_fence(self, store, status):
        end(store, "r", begin(store), status, error=b"oops")
        row = resume_row = store.open(OpenRun("r", "flow"))
        assert (row.status, row.fence, row.error) == (RunStatus.RUNNING, 2, b"oops")
        assert store.find("r").status is RunStatus.RUNNING
        with pytest.raises(RunBusyError):
            resume(store)
        assert store.commit([Write("r", resume_row.fence, [record()])]) == set()

    def test_the_row_of_a_reopened_run_is_the_one_from_before(self, store):
        fence = begin(store)
        store.commit([Write("r", fence, [record(batch=7)], Change(RunStatus.SUSPENDED))])
        before = store.find("r")
        row = store.open(OpenRun("r", "flow", created=99.0))
        assert (row.updated, row.created, row.batches) == (before.updated, before.created, 7)
        assert store.find("r").updated == 99.0

    def test_a_finished_run_is_returned_as_it_is_and_nobody_owns_it(self, store):
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
    def test_another_workflow_thread_or_input_is_refused_naming_both(self, store, request_, said, status):
        fence = begin(store, thread_id="t")
        if status:
            end(store, "r", fence, status)
        before = store.find("r")
        with pytest.raises(RunMismatchError) as caught:
            store.open(request_)
        assert all(part in str(caught.value) for part in ["'r'", *said])
        assert "INPUT" not in str(caught.value)
        assert store.find("r") == before

    def test_a_request_that_says_nothing_fits_every_run(self, store):
        end(store, "r", begin(store, thread_id="t"), RunStatus.FAILED)
        assert store.open(OpenRun("r", "")).thread_id == "t"

    def test_the_same_request_again_fits(self, store):
        end(store, "r", begin(store, thread_id="t"), RunStatus.FAILED)
        assert begin(store, thread_id="t") == 2

    def test_a_thread_has_one_run_at_a_time(self, store):
        fence = begin(store, "r1", thread_id="t")
        with pytest.raises(ThreadBusy, match="'r1'"):
            begin(store, "r2", thread_id="t")
        assert store.find("r2") is None
        begin(store, "elsewhere", thread_id="other")
        begin(store, "nowhere")
        begin(store, "nowhere too")
        end(store, "r1", fence)
        begin(store, "r2", thread_id="t")

    def test_an_ended_run_is_not_reopened_while_its_thread_is_busy(self, store):
        end(store, "r1", begin(store, "r1", thread_id="t"), RunStatus.SUSPENDED)
        begin(store, "r2", thread_id="t")
        with pytest.raises(ThreadBusy, match="'r2'"):
            resume(store, "r1")
        assert store.find("r1").status is RunStatus.SUSPENDED

    def test_a_finished_run_can_be_read_while_its_thread_is_busy(self, store):
        end(store, "r1", begin(store, "r1", thread_id="t"), output=b"out")
        begin(store, "r2", thread_id="t")
        assert store.open(OpenRun("r1", "flow")).output == b"out"

    def test_of_many_who_want_a_run_one_gets_it(self, store):
        for number in range(20):
            run_id = f"r{number}"
            barrier = threading.Barrier(8)

            def attempt(_, run_id=run_id, barrier=barrier):
                barrier.wait()
                try:
                    return begin(store, run_id)
                except RunBusyError:
                    return None

            with ThreadPoolExecutor(8) as pool:
                fences = list(pool.map(attempt, range(8)))
            assert sorted(map(str, fences)) == ["1", *["None"] * 7]

    # --- commit -----------------------------------------------------------------------------------------

    def test_records_come_back_as_they_were(self, store):
        fence = begin(store)
        given = [
            record(n, kind=kind, parent=b"p" * 16, step="Ünï\ud800\0", value=bytes(range(256)), batch=n)
            for n, kind in enumerate(RecordKind)
        ]
        store.commit([Write("r", fence, given)])
        assert [line for _, line in store.records("r")] == given
        assert list(all_records(store, "r")) == given

    def test_integers_for_times_are_times(self, store):
        fence = begin(store)
        store.commit([Write("r", fence, [record(started=1, ended=2)])])
        assert next(all_records(store, "r")).ended == 2.0

    def test_positions_grow_over_commits_from_1(self, store):
        fence = begin(store)
        store.commit([Write("r", fence, [record(1), record(2)])])
        store.commit([Write("r", fence, [record(3)])])
        assert [(place, line.ordinal) for place, line in store.records("r")] == [(1, 1), (2, 2), (3, 3)]

    def test_a_commit_may_hold_several_writes_of_a_run(self, store):
        fence = begin(store)
        store.commit(
            [
                Write("r", fence, [record(1)]),
                Write("r", fence, [record(2)], Change(RunStatus.FINISHED, b"out")),
                Write("r", fence, [record(3)]),
            ]
        )
        assert [line.ordinal for _, line in store.records("r")] == [1, 2]

    def test_the_journal_is_read_in_pages(self, store):
        fence = begin(store)
        store.commit([Write("r", fence, [record(n) for n in range(1, 26)])])
        assert [place for place, _ in store.records("r", limit=10)] == list(range(1, 11))
        assert [place for place, _ in store.records("r", after=20, limit=10)] == list(range(21, 26))
        assert store.records("r", after=25) == []
        assert store.records("r", after=10**30) == []
        assert store.records("r", limit=0) == store.records("r", limit=-1) == []
        assert len(store.records("r", after=-5, limit=10**30)) == 25
        assert store.records("unknown") == []

    def test_batches_is_the_highest_batch_committed(self, store):
        fence = begin(store)
        store.commit([Write("r", fence, [record(batch=3), record(batch=5), record(batch=4)])])
        assert store.find("r").batches == 5
        store.commit([Write("r", fence, [record(batch=2)])])
        assert store.find("r").batches == 5

    def test_an_empty_commit_is_one(self, store):
        assert store.commit([]) == set()
        assert store.commit([Write("r", begin(store))]) == set()

    def test_a_change_ends_the_run_and_its_ownership(self, store):
        fence = begin(store)
        store.commit([Write("r", fence, [record()], Change(RunStatus.FAILED, error=b"oops"))])
        row = store.find("r")
        assert (row.status, row.output, row.error) == (RunStatus.FAILED, None, b"oops")
        assert store.commit([Write("r", fence, [record()])]) == {"r"}
        assert values(store, "r") == [b"value"]

    def test_a_change_replaces_the_outcome_before(self, store):
        end(store, "r", begin(store), RunStatus.FAILED, error=b"oops")
        end(store, "r", resume(store), output=b"out")
        row = store.find("r")
        assert (row.status, row.output, row.error) == (RunStatus.FINISHED, b"out", None)

    def test_a_change_to_running_keeps_the_owner(self, store):
        fence = begin(store, thread_id="t")
        store.commit([Write("r", fence, change=Change(RunStatus.RUNNING, saved=b"half"))])
        with pytest.raises(RunBusyError):
            resume(store)
        assert store.commit([Write("r", fence, [record()])]) == set()
        assert [state.value for state in store.states("t")] == [b"half"]

    def test_an_old_or_invented_fence_is_refused_and_other_runs_are_not(self, store):
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
        assert store.find("r").status is RunStatus.RUNNING
        assert store.find("unknown") is None

    def test_many_threads_commit_at_once_and_nothing_is_lost(self, store):
        def work(worker):
            fence = begin(store, f"r{worker}")
            for turn in range(25):
                assert not store.commit([Write(f"r{worker}", fence, [record(turn), record(turn)])])
                assert len(store.records(f"r{worker}")) == 2 * turn + 2

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        for worker in range(8):
            assert [line.ordinal for line in all_records(store, f"r{worker}")] == [n // 2 for n in range(50)]

    # --- release ----------------------------------------------------------------------------------------

    def test_a_released_run_is_running_and_free(self, store):
        fence = begin(store, thread_id="t")
        store.release("r", fence)
        assert store.find("r").status is RunStatus.RUNNING
        assert store.commit([Write("r", fence, [record()])]) == {"r"}
        begin(store, "next", thread_id="t")
        with pytest.raises(ThreadBusy):
            resume(store)

    def test_only_the_present_owner_can_release(self, store):
        store.release("unknown", 1)
        old = begin(store)
        store.release("r", old)
        new = resume(store)
        store.release("r", old)
        with pytest.raises(RunBusyError):
            resume(store)
        store.release("r", new)
        assert resume(store) == new + 1

    def test_releasing_an_ended_run_changes_nothing(self, store):
        fence = begin(store, thread_id="t")
        end(store, "r", fence)
        begin(store, "next", thread_id="t")
        store.release("r", fence)
        with pytest.raises(ThreadBusy):
            begin(store, "third", thread_id="t")

    # --- answers ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("owned", [True, False])
    def test_answers_are_added_whoever_owns_the_run(self, store, owned):
        fence = begin(store)
        store.commit([Write("r", fence, [record(1, batch=3)])])
        if not owned:
            end(store, "r", fence, RunStatus.SUSPENDED)
        store.add_answers("r", [record(2, kind=RecordKind.ANSWER, batch=9)])
        if owned:
            assert store.commit([Write("r", fence, [record(3, batch=4)])]) == set()
        ordinals = [(place, line.ordinal, line.batch) for place, line in store.records("r")]
        assert ordinals == [(1, 1, 3), (2, 2, 0), (3, 3, 4)][: 2 + owned]
        assert store.find("r").batches == 3 + owned

    def test_an_answer_to_nobody_is_an_error(self, store):
        with pytest.raises(RunNotFoundError, match="'r'"):
            store.add_answers("r", [record()])

    # --- threads ----------------------------------------------------------------------------------------

    def test_saved_values_of_a_thread_the_newest_first(self, store):
        store.save_state("t", b"by hand", created=5)
        end(store, "r", begin(store, thread_id="t"), saved=b"by a run")
        store.save_state("other", b"other", created=6.0)
        newest, oldest = store.states("t")
        assert (oldest.thread_id, oldest.number, oldest.value) == ("t", 1, b"by hand")
        assert (oldest.created, oldest.run_id) == (5.0, None)
        assert (newest.number, newest.value, newest.run_id) == (2, b"by a run", "r")
        assert store.states("t", limit=1) == [newest]
        assert store.states("t", limit=0) == store.states("unknown") == []

    def test_what_a_run_without_a_thread_saves_is_saved_nowhere(self, store):
        end(store, "r", begin(store), saved=b"value")
        assert store.states("") == store.states("None") == []

    def test_no_value_is_saved_beside_a_run(self, store):
        fence = begin(store, thread_id="t")
        with pytest.raises(ThreadBusy):
            store.save_state("t", b"value", created=1.0)
        end(store, "r", fence)
        store.save_state("t", b"value", created=1.0)

    # --- lists and deletion -----------------------------------------------------------------------------

    def test_runs_are_listed_in_the_order_of_their_beginning(self, store):
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

    def test_a_deleted_run_is_gone_with_its_journal(self, store):
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

    def test_the_newest_run_can_be_deleted_and_begun_again(self, store):
        fence = begin(store)
        store.commit([Write("r", fence, [record()], Change(RunStatus.FINISHED, b"old"))])
        store.delete_run("r")
        assert begin(store, "new") == 1
        assert store.records("new") == []
        assert store.find("new").output is None

    def test_an_owned_run_is_not_deleted(self, store):
        fence = begin(store)
        with pytest.raises(RunBusyError):
            store.delete_run("r")
        store.release("r", fence)
        assert store.delete_run("r")

    def test_a_deleted_thread_is_gone_with_runs_and_values(self, store):
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

    def test_any_string_is_a_name_and_no_two_are_mixed_up(self, store):
        for number, name in enumerate(HOSTILE_NAMES):
            row = store.open(OpenRun(name, name, name, str(number).encode()))
            assert (row.run_id, row.workflow, row.thread_id) == (name, name, name)
            store.commit(
                [Write(name, 1, [record(number, step=name)], Change(RunStatus.FINISHED, saved=b"s"))]
            )
        assert [row.run_id for row in store.runs()] == HOSTILE_NAMES[::-1]
        for number, name in enumerate(HOSTILE_NAMES):
            assert store.find(name).input == str(number).encode()
            assert [(line.ordinal, line.step) for _, line in store.records(name)] == [(number, name)]
            assert [row.run_id for row in store.runs(thread_id=name)] == [name]
            assert [state.thread_id for state in store.states(name)] == [name]
        for number, name in enumerate(HOSTILE_NAMES, 1):
            assert store.delete_run(name)
            store.delete_thread(name)
            assert len(store.runs()) == len(HOSTILE_NAMES) - number

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_errors_show_names_escaped_and_short(self, store, name):
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

    def test_a_big_value_comes_back(self, store):
        fence = begin(store)
        big = bytes(range(256)) * 40_000
        store.commit([Write("r", fence, [record(value=big)], Change(RunStatus.FINISHED, big, big, big))])
        assert values(store, "r") == [big]
        assert store.find("r").output == big

    def test_closing_twice_is_closing(self, store):
        begin(store)
        store.close()
        store.close()
