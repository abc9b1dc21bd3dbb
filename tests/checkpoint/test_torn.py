"""Files that were torn, flipped or only half written: a prefix of what was acknowledged, or a typed error.

What is done to files is in ``scripts/torn_images.py``, which does it 10,000 times; here it is done often enough to see
that each kind of damage happens, and what comes of it.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from faults import Statements
from killing import seeded
from msgspec import structs

from weft import CorruptDataError, RunStatus, SqliteSaver, StoreError, entrypoint, task
from weft.checkpoint import sql
from weft.checkpoint.base import OpenRun, Record, Write, all_records
from weft.testing.conformance import begin, record

ROOT = Path(__file__).parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # dataclasses look for it
    spec.loader.exec_module(found)
    return found


images = script("torn_images")

# --- Images -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tally():
    """Of 500 images, each kind of damage as often as every other."""
    found = images.torn(500, seeded("torn images"))
    print(*found.table(), sep="\n")
    return found


def test_no_damage_gives_a_wrong_value_or_a_raw_error(tally):
    assert tally.examples == []


def test_every_kind_of_damage_has_happened(tally):
    assert {kind for kind, _ in tally.counts} == {*images.KINDS}
    for outcome in ("whole", "error"):
        assert tally.of(outcome) > 20


def test_next_to_nothing_is_hidden(tally):
    """A page of an index that stands in another's place hides a run from those who ask for it by name."""
    assert tally.of("hidden") <= 5


def test_a_vanished_tail_is_noticed(tally):
    """A log that is cut or flipped ends there, and what is left is consistent: only a second place can tell."""
    by_chance = [kind for kind in images.KINDS if kind.startswith("log") and "another moment" not in kind]
    assert sum(tally.counts[kind, "older"] for kind in by_chance) == 0


KILLED = """
import os, signal, sys
from weft.testing.conformance import begin, record
from weft.checkpoint.base import Write
from weft.checkpoint.sqlite import SqliteSaver
store = SqliteSaver(sys.argv[1])
fence = begin(store)
for turn in range(5):
    store.commit([Write("r", fence, [record(turn)])])
if len(sys.argv) == 3:
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(tmp_path):
    """The store of a process that was killed after six commits; its log holds all of them."""
    path = tmp_path / "runs.db"
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert path.with_name("runs.db-wal").stat().st_size > 0
    return path


def test_after_a_kill_all_is_there(killed):
    with SqliteSaver(killed) as store:
        assert len(store.records("r")) == 5


def test_a_log_that_is_gone_after_a_kill_is_noticed_every_time(killed):
    killed.with_name("runs.db-wal").unlink()
    for _ in range(2):
        with SqliteSaver(killed) as store:
            with pytest.raises(CorruptDataError, match="6 commits of a process that has ended"):
                store.find("r")
            with pytest.raises(CorruptDataError, match="runs.db-owners"):
                begin(store)


def test_without_the_marks_one_goes_on_with_what_is_there(killed):
    killed.with_name("runs.db-wal").unlink()
    shutil.rmtree(killed.with_name("runs.db-owners"))
    with SqliteSaver(killed) as store:
        assert store.find("r") is None
        assert begin(store) == 1


def test_who_removes_the_file_begins_anew(killed):
    for end in ("", "-wal", "-shm"):
        killed.with_name(f"runs.db{end}").unlink()
    for _ in range(2):
        with SqliteSaver(killed) as store:
            assert store.find("r") is None
    with SqliteSaver(killed) as store:
        assert begin(store) == 1


def test_a_file_that_is_removed_under_a_living_owner_is_a_new_one(tmp_path):
    path = tmp_path / "runs.db"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, path, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        for end in ("", "-wal", "-shm"):
            path.with_name(f"runs.db{end}").unlink()
        with SqliteSaver(path) as store:
            assert begin(store) == 1
        process.kill()


def test_some_offsets_of_a_small_store():
    """All of them: ``scripts/torn_images.py --every-byte``."""
    found = images.at_every_byte(seeded("some offsets"), step=2003)
    print(*found.table(), sep="\n")
    assert found.examples == []
    assert len({kind for kind, _ in found.counts}) == 4


def test_when_the_power_fails_what_was_acknowledged_is_there():
    """Any of the sectors may be lost that were written since the last sync."""
    found = images.power_fails(150, seeded("power"))
    print(*found.table(), sep="\n")
    assert found.examples == []
    assert {kind for kind, _ in found.counts} == {*images.POWER}


def test_power_failures_would_show_commits_that_do_not_wait_for_the_disk():
    """As with synchronous=NORMAL, where a commit is on the disk when a later one has waited for it."""
    found = images.power_fails(40, seeded("power"), synced=4)
    assert found.of("older") > 20


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    return images.Story(
        tmp_path_factory.mktemp("story") / "runs.db", random.Random(1), runs=3, steps=3, most=60
    )


def test_the_judge_sees_each_kind_of_violation(story):
    """The checker of all this, with what it must not let pass."""
    truths, last = story.truths, len(story.truths) - 1
    whole, early = truths[last], truths[last // 2]
    judge = lambda found: images.judge(found, truths, last)
    run, thread = "run 0", "t0"
    doctored = lambda name, **changes: {**whole.runs, name: structs.replace(whole.runs[name], **changes)}
    position, line = whole.records[run][1]
    other = {
        **whole.records,
        run: [whole.records[run][0], (position, replace_record(line)), *whole.records[run][2:]],
    }
    hole = {**whole.records, run: whole.records[run][:1] + whole.records[run][2:]}
    assert judge(whole) == "whole"
    assert judge(early) == "older"
    assert judge(replace(whole, records={**whole.records, run: []})) == "hidden"
    assert (
        judge(replace(whole, runs={name: row for name, row in whole.runs.items() if name != run})) == "hidden"
    )
    assert judge(replace(whole, states={**whole.states, thread: []})) == "hidden"
    assert judge(replace(early, states=whole.states)) == "mixed"
    assert judge(replace(whole, records=other)) == "wrong"
    assert judge(replace(whole, records=hole)) == "wrong"
    assert judge(replace(whole, runs=doctored(run, output=b"other"))) == "wrong"
    assert judge(replace(whole, runs=doctored(run, status=RunStatus.RUNNING))) == "wrong"
    assert images.judge(whole, truths, last - 3) == "wrong"  # nobody knew that at the time
    assert images.is_violation("log: cut", "mixed")
    assert not images.is_violation("log: of another moment", "mixed")


def replace_record(line):
    return Record(line.kind, line.identity, line.parent, line.ordinal, line.step, line.value + b"!")


# --- Runs over torn files ---------------------------------------------------------------------------------


def test_a_run_goes_on_from_any_prefix(tmp_path):
    """What the log has lost runs again, what it has kept does not, and the answer is the same."""
    draw = seeded("prefixes")
    ran = []

    @task
    async def work(i):
        ran.append(i)
        return str(i) * 300

    @entrypoint()
    async def flow(n):
        return sum([len(await work(i)) for i in range(n)])

    path = tmp_path / "runs.db"
    with SqliteSaver(path) as store:
        whole = flow.invoke(8, run_id="r", checkpointer=store)
        for end in ("", "-wal"):
            subprocess.run(["cp", f"{path}{end}", tmp_path / f"image{end}"], check=True)
    log, lengths = (tmp_path / "image-wal").read_bytes(), set()
    for number in range(25):
        copy = tmp_path / f"{number}.db"
        shutil.copy(tmp_path / "image", copy)
        Path(f"{copy}-wal").write_bytes(log[: draw.randrange(len(log))])
        with SqliteSaver(copy) as store:
            row = store.find("r")
            done = 8 if row and row.output else len([*all_records(store, "r")])
            ran.clear()
            assert flow.invoke(8, run_id="r", checkpointer=store) == whole
            assert ran == [*range(done, 8)]
        lengths.add(done)
    assert len(lengths) > 4


def test_files_that_are_damaged_while_they_are_open(tmp_path):
    """What others overwrite is noticed when it is read: the log's own checksums are read only when it is opened."""
    draw = seeded("overwritten")
    outcomes = set()
    for number in range(60):
        path = tmp_path / f"{number}.db"
        with SqliteSaver(path, timeout=0.1) as store:
            fence = begin(store)
            truth = []
            for ordinal in range(6):
                line = record(ordinal, value=draw.randbytes(1500))
                store.commit([Write("r", fence, [line])])
                truth.append(line)
            end = draw.choice(["", "-wal"])
            size = Path(f"{path}{end}").stat().st_size
            overwrite(f"{path}{end}", draw.randrange(size), draw.randbytes(draw.choice([1, 600])))
            try:
                found = [line for _, line in store.records("r")]
            except (CorruptDataError, StoreError):
                outcomes.add("error")
            else:
                outcomes.add("whole")
                assert found == truth
    assert outcomes == {"whole", "error"}


def overwrite(path, at, content):
    """By another process: to close a file here lets go of the locks on it."""
    code = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR), bytes.fromhex(sys.argv[3]), int(sys.argv[2]))"
    subprocess.run([sys.executable, "-S", "-c", code, path, str(at), content.hex()], check=True)


# --- Indexes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["owners", "runs"])
def test_an_owner_that_is_no_text_is_noticed(table, tmp_path):
    """It is what a file that was cut shows in the place of a page that is gone."""
    path = tmp_path / "runs.db"
    with SqliteSaver(path) as store:
        begin(store)
    db = sqlite3.connect(path)
    if table == "owners":
        db.execute("INSERT INTO owners VALUES (x'00', 1, 1.0, 0)")
    else:
        db.execute("UPDATE runs SET owner = x'00'")
    db.commit()
    db.close()
    with SqliteSaver(path) as store, pytest.raises(CorruptDataError):
        store.open(OpenRun("r", ""))


def test_a_run_that_the_index_has_lost_is_noticed(tmp_path):
    """Else it is begun a second time, and all that it did is done again."""
    path = tmp_path / "runs.db"
    with SqliteSaver(path) as store:
        for number in range(20):
            store.release(f"run {number}", begin(store, f"run {number}"))
    forget_in_index(path, b"run 7")
    with SqliteSaver(path) as store:
        with pytest.raises(CorruptDataError):
            store.find("run 7")
        with pytest.raises(CorruptDataError):
            begin(store, "run 7")


def forget_in_index(path, name):
    """Take one cell out of the page of the index over names: what a flipped bit in the page's head can do."""
    db = sqlite3.connect(path)
    (root,) = db.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_runs_1'"
    ).fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    content = bytearray(path.read_bytes())
    page = memoryview(content)[(root - 1) * size : root * size]
    assert page[0] == 10  # a leaf of an index
    (cells,) = struct.unpack(">H", page[3:5])
    places = list(struct.unpack(f">{cells}H", page[8 : 8 + 2 * cells]))
    (lost,) = (place for place in places if bytes(page[place:]).find(name) in range(8))
    places.remove(lost)
    page[3:5] = struct.pack(">H", cells - 1)
    page[8 : 8 + 2 * (cells - 1)] = struct.pack(f">{cells - 1}H", *places)
    page.release()
    path.write_bytes(content)


# --- Waiting for the disk ---------------------------------------------------------------------------------


@pytest.fixture
def statements(monkeypatch):
    found = Statements()
    monkeypatch.setattr(sqlite3, "connect", found.connect)
    return found


def durable(db):
    """Whether commits of this connection wait for the disk."""
    # 1 is NORMAL, which in this mode may lose the last commits when the power fails
    return (
        db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        and db.execute("PRAGMA synchronous").fetchone()[0] >= 2
    )


def every_way_to_a_connection(path, statements):
    """Use a store in each way that opens a connection; whether all of them wait for the disk."""
    found = []
    look = lambda: found.extend(
        durable(db) for db in (store._writer._db, store._reader._db) if db is not None
    )
    with SqliteSaver(path) as store:
        store.find("r")
        look()
        fence = begin(store)
        look()
        store.commit([Write("r", fence, [record()])])
        store.records("r")
        store.save_state("t", b"", created=1.0)
        look()
        store.close()
        store.runs()  # opens again
        begin(store, "r2")
        look()
        moved = path.with_name("moved")
        path.rename(moved)
        with pytest.raises(StoreError):
            store.find("r")
        with pytest.raises(StoreError):
            store.save_state("t", b"", created=1.0)
        moved.rename(path)
        store.find("r")
        store.save_state("t", b"", created=1.0)
        look()
    assert len(found) == 10 - 1
    assert len(statements.made) >= 6
    return all(found)


def test_every_connection_waits_for_the_disk(tmp_path, statements):
    assert every_way_to_a_connection(tmp_path / "runs.db", statements)
    told = [text for text in statements.texts if "synchronous" in text.lower() and "=" in text]
    assert told == [sql.SYNCHRONOUS]
    assert statements.texts[sql.SYNCHRONOUS] == len(statements.made)


def test_a_connection_that_does_not_wait_would_show(tmp_path, statements, monkeypatch):
    monkeypatch.setattr(sql, "SYNCHRONOUS", "PRAGMA synchronous = NORMAL")
    assert not every_way_to_a_connection(tmp_path / "runs.db", statements)


COMMITS = """
import os, sys
from weft.checkpoint import sql
from weft.checkpoint.sqlite import SqliteSaver
from weft.checkpoint.base import OpenRun, Record, RecordKind, Write
if sys.argv[2:]:
    sql.SYNCHRONOUS = sys.argv[2]
store = SqliteSaver(sys.argv[1])
fence = store.open(OpenRun("r", "flow", None, b"", 1.0)).fence
os.write(1, b"acknowledged\\n")
for number in range(30):
    store.commit([Write("r", fence, [Record(RecordKind.OK, bytes(16), value=bytes(60_000))])])
    os.write(1, b"acknowledged\\n")
store.close()
os.write(1, b"acknowledged\\n")
"""


def unsynced(trace):
    """How often something was acknowledged while writes to the store had not been synced; how often in all."""
    dirty, bad, many = set(), 0, 0
    for line in trace.splitlines():
        call = re.search(r"\b(pwrite64|write|fdatasync|fsync)\(\d+<([^>]*)>", line)
        if call is None:
            continue
        name, path = call.groups()
        if '"acknowledged' in line:
            many, bad = many + 1, bad + bool(dirty)
        elif path.endswith((".db", ".db-wal")):
            dirty.discard(path) if "sync" in name else dirty.add(path)
    return bad, many


@pytest.mark.skipif(not shutil.which("strace"), reason="strace shows what the system was asked for")
@pytest.mark.parametrize("planted", [None, "PRAGMA synchronous = NORMAL"])
def test_what_is_acknowledged_was_synced(planted, tmp_path):
    """By the calls of the system: the log in each commit, the file where the log is emptied into it."""
    log = tmp_path / "trace"
    path = tmp_path / "runs.db"
    program = [sys.executable, "-c", COMMITS, path, *([planted] if planted else [])]
    trace = ["strace", "-f", "-y", "-qq", "-e", "trace=pwrite64,write,fdatasync,fsync", "-s", "20", "-o", log]
    done = subprocess.run([*trace, *program], capture_output=True, text=True, check=False, env={**os.environ})
    if done.returncode and "ptrace" in done.stderr.lower():
        pytest.skip("processes may not be traced here")
    assert done.returncode == 0, done.stderr
    bad, many = unsynced(log.read_text())
    assert many == 32
    assert bad > 20 if planted else bad == 0
