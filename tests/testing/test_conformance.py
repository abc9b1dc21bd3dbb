"""The conformance suite finds the mistakes that a store can make: each is planted once, and must be caught."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import replace

import pytest
from msgspec import structs

from weft import CheckpointError, InMemorySaver, RunStatus, SqliteSaver
from weft.checkpoint import sql
from weft.checkpoint.base import OpenRun, RunRow
from weft.checkpoint.owner import thread_busy
from weft.checkpoint.rows import to_bytes, to_run, to_text
from weft.testing.conformance import StoreConformance

# Each is a store that does one thing wrong.

MISTAKES: dict[str, tuple[type, str]] = {}


def caught_by(test: str) -> Callable[[type], type]:
    """The name of the test, or a part of it, that is there for this mistake."""

    def planted(store: type) -> type:
        MISTAKES[store.__name__] = store, test
        return store

    return planted


@caught_by("old_or_invented_fence")
class ForgetsTheFence(InMemorySaver):
    """Any owner may write for ever."""

    def commit(self, writes):
        current = [
            replace(write, fence=self._runs[write.run_id].row.fence) if write.run_id in self._runs else write
            for write in writes
        ]
        return super().commit(current)


@caught_by("a_group_is_one_commit")
class RefusesTheGroup(InMemorySaver):
    """One refused run takes the whole commit with it."""

    def commit(self, writes):
        for write in writes:
            run = self._runs.get(write.run_id)
            if run is None or not run.owned or run.row.fence != write.fence:
                return {each.run_id for each in writes}
        return super().commit(writes)


@caught_by("a_reader_sees_a_commit_as_a_whole")
class TearsCommits(InMemorySaver):
    """A commit is made in two parts, and readers come between them."""

    def commit(self, writes):
        refused = set()
        for write in writes:
            refused |= super().commit([replace(write, records=write.records[:1], change=None)])
            time.sleep(0.0005)
            refused |= super().commit([replace(write, records=write.records[1:])])
        return refused


@caught_by("the_order_is_that_of_writing")
class SortsRecords(InMemorySaver):
    """What was at work longest comes first."""

    def records(self, run_id, *, after=0, limit=1000):
        lines = super().records(run_id, limit=10**9)
        ordered = sorted((line for _, line in lines), key=lambda line: line.started)
        return [(place, line) for place, line in enumerate(ordered, 1) if place > after][: max(limit, 0)]


@caught_by("equal_records_are_kept")
class DropsEqualRecords(InMemorySaver):
    """A record that is there already is not written again."""

    def commit(self, writes):
        new = []
        for write in writes:
            there = self._runs[write.run_id].records if write.run_id in self._runs else []
            kept = []
            for line in write.records:
                if line not in there and line not in kept:
                    kept.append(line)
            new.append(replace(write, records=kept))
        return super().commit(new)


@caught_by("names_that_look_alike")
class NormalisesNames(InMemorySaver):
    """Names that look the same are the same."""

    def open_many(self, requests):
        def same(name):
            return None if name is None else unicodedata.normalize("NFC", name)

        return super().open_many(
            [replace(each, run_id=same(each.run_id), thread_id=same(each.thread_id)) for each in requests]
        )


@caught_by("names_that_look_alike")
class CutsNamesAtNul(InMemorySaver):
    """As C does."""

    def open_many(self, requests):
        return super().open_many([replace(each, run_id=each.run_id.split("\0")[0]) for each in requests])

    def find(self, run_id):
        return super().find(run_id.split("\0")[0])


@caught_by("names_that_look_alike")
class MatchesPrefixes(InMemorySaver):
    """LIKE 'name%'."""

    def states(self, thread_id, *, limit=100):
        found = [state for name in self._states if name.startswith(thread_id) for state in self._states[name]]
        return found[::-1][: max(limit, 0)]


@caught_by("in_the_order_of_their_beginning")
class IgnoresLimits(InMemorySaver):
    """All the runs there are."""

    def runs(self, *, thread_id=None, limit=100):
        return super().runs(thread_id=thread_id, limit=10**9)


@caught_by("a_deleted_run_is_gone")
class KeepsJournalsOfDeletedRuns(InMemorySaver):
    """A run that is begun again finds the records of the one before."""

    def delete_run(self, run_id):
        run = self._runs.get(run_id)
        deleted = super().delete_run(run_id)
        if deleted:
            self._left = {**getattr(self, "_left", {}), run_id: run.records}
        return deleted

    def open_many(self, requests):
        found = super().open_many(requests)
        for request in requests:
            if request.run_id in getattr(self, "_left", {}):
                self._runs[request.run_id].records = self._left.pop(request.run_id)
        return found


@caught_by("batches_is_the_highest")
class CountsTheLastBatch(InMemorySaver):
    """The last batch committed, not the highest."""

    def commit(self, writes):
        refused = super().commit(writes)
        for write in writes:
            if write.run_id not in refused and write.records:
                run = self._runs[write.run_id]
                run.row = replace(run.row, batches=write.records[-1].batch)
        return refused


@caught_by("a_finished_run_is_returned")
class ReopensFinishedRuns(InMemorySaver):
    """Who opens a finished run owns it."""

    def open_many(self, requests):
        for request in requests:
            run = self._runs.get(request.run_id)
            if run is not None and run.row.status is RunStatus.FINISHED:
                run.row = replace(run.row, status=RunStatus.FAILED)
        return super().open_many(requests)


@caught_by("is_refused_naming_both")
class ComparesNothing(InMemorySaver):
    """A run id is enough."""

    def open_many(self, requests):
        return super().open_many(
            [
                each if self.find(each.run_id) is None else OpenRun(each.run_id, "", created=each.created)
                for each in requests
            ]
        )


@caught_by("hinders_nobody")
class OpensAllOrNone(InMemorySaver):
    """One that is refused takes the whole group with it."""

    def open_many(self, requests):
        found = super().open_many(requests)
        refused = [each for each in found if isinstance(each, CheckpointError)]
        for row in found:
            if refused and isinstance(row, RunRow):
                self.release(row.run_id, row.fence)
        return refused[:1] * len(found) if refused else found


@caught_by("of_two_in_a_group_who_want_a_run")
class LooksAtTheGroupBeforeIt(SqliteSaver):
    """What is open is what was so before the group."""

    def _held_for(self, db, run):
        if run.fence == 1 and run.batches == 0:
            return 0.0
        return super()._held_for(db, run)


@caught_by("a_group_is_equal")
class OpensBackwards(InMemorySaver):
    """The last one that asks is the first one served."""

    def open_many(self, requests):
        return super().open_many(requests[::-1])[::-1]


@caught_by("a_group_is_there")
class OpensLater(SqliteSaver):
    """The last one of a group is written with the next one."""

    def open_many(self, requests):
        if len(requests) < 2:
            return super().open_many(requests)
        found = super().open_many(requests)
        self._writer._db.execute("DELETE FROM runs WHERE run = (SELECT max(run) FROM runs)")
        return found


@caught_by("a_thread_has_one_run")
class SharesThreads(InMemorySaver):
    """Two runs of a thread may go on side by side."""

    def _refuse_busy_thread(self, thread_id):
        pass

    def _disown(self, run):
        run.owned = False


@caught_by("answers_are_added")
class LosesAnswersOfOwnedRuns(InMemorySaver):
    """Answers are for those who wait."""

    def add_answers(self, run_id, answers):
        run = self._runs.get(run_id)
        if run is None or not run.owned:
            super().add_answers(run_id, answers)


@caught_by("ten_megabytes")
class TruncatesBigValues(InMemorySaver):
    """Nobody needs more than a megabyte."""

    def commit(self, writes):
        def cut(line):
            return structs.replace(line, value=line.value and line.value[: 2**20])

        return super().commit([replace(write, records=list(map(cut, write.records))) for write in writes])


@caught_by("outlives_the_object")
class LosesTheTailWhenClosed(SqliteSaver):
    """What was acknowledged last is gone with the object."""

    def close(self):
        if self._writer._db is not None:
            self._writer._db.execute("DELETE FROM records WHERE place = (SELECT max(place) FROM records)")
        super().close()


@caught_by("falls_silent_loses")
class NeverTakesOver(SqliteSaver):
    """A lock that is held is an owner that lives."""

    def _held_for(self, db, run):
        self._others.clear()
        return super()._held_for(db, run)


@caught_by("two_objects_are_two_owners")
class TakesOverAtOnce(SqliteSaver):
    """Whoever is silent just now is dead."""

    def _held_for(self, db, run):
        held = super()._held_for(db, run)
        return held if held == float("inf") else 0.0


@caught_by("the_time_of_day")
class TrustsTheTimeOfDay(SqliteSaver):
    """A lease that ends at a time of day."""

    def _held_for(self, db, run):
        held = super()._held_for(db, run)
        if held in {0.0, float("inf")}:
            return held
        return max(run.updated + 2.0 - time.time(), 0.0) if run.updated > 10 else held

    def commit(self, writes):
        return super().commit(writes)

    def open_many(self, requests):
        return super().open_many([replace(each, created=time.time()) for each in requests])


@caught_by("a_thread_that_went_on")
class LeavesTheZombieItsThread(SqliteSaver):
    """A silent owner is stepped over, and not shut out."""

    def _refuse_busy_thread(self, db, thread_id):
        for columns in db.execute(sql.OWNED_RUNS_OF_THREAD, (to_bytes(thread_id or "?"),)).fetchall():
            run = to_run(columns)
            if held := self._held_for(db, run):
                raise thread_busy(thread_id, to_text(run.run_id), held)


@caught_by("signs_of_life")
class NeverBeats(SqliteSaver):
    """Says nothing of itself after it has opened a run."""

    def _say_alive(self, db):
        if self._pulse._count == 0:
            super()._say_alive(db)


SUITE = """
import importlib.util
import pytest
from weft import InMemorySaver, SqliteSaver
from weft.testing.conformance import StoreConformance

spec = importlib.util.spec_from_file_location("planted", {here!r})
planted = importlib.util.module_from_spec(spec)
spec.loader.exec_module(planted)
Store = planted.{name}

class TestIt(StoreConformance):
    tenant_programs = 20

    @pytest.fixture
    def make(self, tmp_path):
        if issubclass(Store, SqliteSaver):
            return lambda **options: Store(tmp_path / "runs.db", timeout=5, **options)
        return Store

    @pytest.fixture
    def store(self, make):
        store = make()
        yield store
        store.close()

    @pytest.fixture
    def reopen(self, make):
        return make if issubclass(Store, SqliteSaver) else None
"""


def run_suite(folder, name, only):
    (folder / "test_it.py").write_text(SUITE.format(here=__file__, name=name))
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", folder, "-k", only]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, folder],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_caught(name, tmp_path):
    _, test = MISTAKES[name]
    done = run_suite(tmp_path, name, test)
    assert done.returncode == 1, done.stdout + done.stderr
    assert " failed" in done.stdout
    assert " error" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("base", ["InMemorySaver", "SqliteSaver"])
def test_the_same_store_without_a_mistake_passes_the_same_tests(base, tmp_path):
    """What fails above is the mistake, and not how it is planted."""
    tests = {test for store, test in MISTAKES.values() if base in str(store.__mro__)}
    done = run_suite(tmp_path, base, " or ".join(tests))
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_enough_of_both():
    tests = 0
    for name, fn in inspect.getmembers(StoreConformance, inspect.isfunction):
        if name.startswith("test_"):
            marks = [mark for mark in getattr(fn, "pytestmark", []) if mark.name == "parametrize"]
            cases = 1
            for mark in marks:
                cases *= len(list(mark.args[1]))
            tests += cases
    assert tests >= 150
    assert len(MISTAKES) >= 10
