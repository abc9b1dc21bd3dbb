"""Every statement that :class:`weft.SqliteSaver` runs. Values are parameters, always.

Names (of runs, threads, workflows and steps) are stored as their UTF-8 bytes: every string is a legal name,
a lone surrogate and a NUL included, and comparing them is comparing bytes. Codes of statuses and kinds are
in ``rows.py``. A ``seal`` is a checksum over its row; it turns a flipped bit into an error.
"""

from __future__ import annotations

from typing import Final, LiteralString

# --- The file ---------------------------------------------------------------------------------------------

APPLICATION: Final = 0x57656674  # "Weft", at byte 68 of the file: how `file` and we recognise our databases

# One statement is one snapshot: an answer put together from several could mix two moments.
INSPECT: Final[LiteralString] = """
SELECT (SELECT application_id FROM pragma_application_id),
       (SELECT user_version FROM pragma_user_version),
       (SELECT count(*) FROM sqlite_master)
"""

# Every commit waits for the disk: in WAL mode, NORMAL may lose the last ones when the power fails.
SYNCHRONOUS: Final[LiteralString] = "PRAGMA synchronous = FULL"
WAL: Final[LiteralString] = "PRAGMA journal_mode = WAL"
CHECKPOINT: Final[LiteralString] = "PRAGMA wal_checkpoint(TRUNCATE)"

# Into the file that is open, wherever it is now; what is at the path is not touched.
MOVE_LOG: Final[LiteralString] = "PRAGMA wal_checkpoint(PASSIVE)"

# Nothing that a doctored schema brings along is run.
UNTRUSTED_SCHEMA: Final[LiteralString] = "PRAGMA trusted_schema = OFF"
CHECK_CELLS: Final[LiteralString] = "PRAGMA cell_size_check = ON"

# The writing connection asks again by itself, see `wait_for`.
DO_NOT_WAIT: Final[LiteralString] = "PRAGMA busy_timeout = 0"

BEGIN_READING: Final[LiteralString] = "BEGIN"
BEGIN_WRITING: Final[LiteralString] = "BEGIN IMMEDIATE"  # waits for its turn here, never in the middle
COMMIT: Final[LiteralString] = "COMMIT"

# --- The schema: step n leads from version n-1 to n --------------------------------------------------------

_RUNS: Final[LiteralString] = """
CREATE TABLE runs (
    run INTEGER PRIMARY KEY,     -- grows: also the order in which runs were begun
    run_id BLOB NOT NULL UNIQUE,
    thread_id BLOB,
    workflow BLOB NOT NULL,
    status INTEGER NOT NULL,
    owner TEXT,                  -- who runs it; NULL: nobody
    fence INTEGER NOT NULL,      -- how many owners it has had
    position INTEGER NOT NULL,   -- of its last record
    batches INTEGER NOT NULL,
    size INTEGER NOT NULL,       -- about how many bytes were recorded of it
    created REAL NOT NULL,
    updated REAL NOT NULL,
    seal INTEGER NOT NULL
)
"""

_RUNS_OF_THREAD: Final[LiteralString] = """
CREATE INDEX runs_of_thread ON runs (thread_id, run) WHERE thread_id IS NOT NULL
"""

_OWNED_RUNS_OF_THREAD: Final[LiteralString] = """
CREATE INDEX owned_runs_of_thread ON runs (thread_id) WHERE owner IS NOT NULL
"""

# In the order in which they may be forgotten; a running run is not in it, so that its commits need not write it.
# A condition of three codes, `IN (3, 4, 5)`, has SQLite make a table for each row that is written: twice the time.
_ENDED_RUNS: Final[LiteralString] = """
CREATE INDEX ended_runs ON runs (status, updated) WHERE status >= 3
"""

# What is long and seldom changes is kept apart from `runs`, whose rows change with every commit. And its key is
# made of the run's name: where a damaged page hides a run from who looks for that name, it is still here.
_INPUTS: Final[LiteralString] = """
CREATE TABLE inputs (
    name INTEGER PRIMARY KEY,    -- a hash of the run's id
    run INTEGER NOT NULL,
    input BLOB NOT NULL,
    seal INTEGER NOT NULL
)
"""

_OUTCOMES: Final[LiteralString] = """
CREATE TABLE outcomes (          -- how a run ended, the last time it did
    run INTEGER PRIMARY KEY,
    status INTEGER NOT NULL,
    output BLOB,
    error BLOB,
    is_apart INTEGER NOT NULL,   -- whether the output is pieces of records
    seal INTEGER NOT NULL
)
"""

# One integer as the key makes for the quickest append: 15 % less than (run, position) WITHOUT ROWID at
# 50 bytes a value, 35 % less at 2,000. And what no statement asks for is one column: ten more of them take as long
# as all the rest of writing a record, and of reading it.
_RECORDS: Final[LiteralString] = """
CREATE TABLE records (
    place INTEGER PRIMARY KEY,   -- run * 2^32 + position
    value BLOB NOT NULL,
    about BLOB NOT NULL,         -- what it is the value of: a list in MessagePack, see `packed` in rows.py
    seal INTEGER NOT NULL
)
"""

_STATES: Final[LiteralString] = """
CREATE TABLE states (
    thread_id BLOB NOT NULL,
    number INTEGER NOT NULL,
    value BLOB NOT NULL,
    created REAL NOT NULL,
    run_id BLOB,
    seal INTEGER NOT NULL,
    PRIMARY KEY (thread_id, number)
) WITHOUT ROWID
"""

# Runs that are forgotten, but for their records: those are many, and go a few at a time.
_REMAINS: Final[LiteralString] = "CREATE TABLE remains (run INTEGER PRIMARY KEY)"

_MARK: Final[LiteralString] = "PRAGMA application_id = 0x57656674"
_VERSION_1: Final[LiteralString] = "PRAGMA user_version = 1"

# An owner counts its beat up; for how many seconds of silence it is still taken to be alive is its lease.
_OWNERS: Final[LiteralString] = """
CREATE TABLE owners (
    owner TEXT PRIMARY KEY,
    beat INTEGER NOT NULL,
    lease REAL NOT NULL,
    seal INTEGER NOT NULL
) WITHOUT ROWID
"""

STEPS: Final[tuple[tuple[LiteralString, ...], ...]] = (
    (
        _RUNS,
        _RUNS_OF_THREAD,
        _OWNED_RUNS_OF_THREAD,
        _ENDED_RUNS,
        _INPUTS,
        _OUTCOMES,
        _RECORDS,
        _STATES,
        _REMAINS,
        _OWNERS,
        _MARK,
        _VERSION_1,
    ),
)

# --- Runs -------------------------------------------------------------------------------------------------

_RUN: Final[LiteralString] = """
SELECT run, run_id, thread_id, workflow, status, owner, fence, position, batches, size, created, updated, seal
FROM runs
"""

RUN: Final[LiteralString] = _RUN + "WHERE run_id = ?"
NEWEST_RUNS: Final[LiteralString] = _RUN + "ORDER BY run DESC LIMIT ?"
NEWEST_RUNS_OF_THREAD: Final[LiteralString] = _RUN + "WHERE thread_id = ? ORDER BY run DESC LIMIT ?"
OWNED_RUNS_OF_THREAD: Final[LiteralString] = _RUN + "WHERE thread_id = ? AND owner IS NOT NULL"
RUNS_OF_THREAD: Final[LiteralString] = _RUN + "WHERE thread_id = ?"

# Keys are not left to SQLite because the seal covers them. Records of a forgotten run may still be there.
NEXT_RUN: Final[LiteralString] = """
SELECT max(coalesce((SELECT max(run) FROM runs), 0), coalesce((SELECT max(run) FROM remains), 0)) + 1
"""

CREATE_RUN: Final[LiteralString] = """
INSERT INTO runs
    (run, run_id, thread_id, workflow, status, owner, fence, position, batches, size, created, updated, seal)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

# Two statements, because naming `owner` makes SQLite write the index over it as well.
ADVANCE_RUN: Final[LiteralString] = """
UPDATE runs SET position = ?, batches = ?, size = ?, updated = ?, seal = ? WHERE run = ?
"""
CHANGE_RUN: Final[LiteralString] = """
UPDATE runs SET status = ?, owner = ?, fence = ?, position = ?, batches = ?, size = ?, updated = ?, seal = ?
WHERE run = ?
"""

# The fence; and that nobody has added answers meanwhile, for the caller has worked out the new row from the old one.
_AS_KNOWN: Final[LiteralString] = "AND owner IS ? AND fence = ? AND position = ?"
ADVANCE_KNOWN_RUN: Final[LiteralString] = ADVANCE_RUN + _AS_KNOWN
CHANGE_KNOWN_RUN: Final[LiteralString] = CHANGE_RUN + _AS_KNOWN

CREATE_INPUT: Final[LiteralString] = "INSERT INTO inputs (name, run, input, seal) VALUES (?, ?, ?, ?)"
INPUT: Final[LiteralString] = "SELECT name, run, input, seal FROM inputs WHERE name = ?"

SET_OUTCOME: Final[LiteralString] = """
INSERT OR REPLACE INTO outcomes (run, status, output, error, is_apart, seal) VALUES (?, ?, ?, ?, ?, ?)
"""
OUTCOME: Final[LiteralString] = (
    "SELECT run, status, output, error, is_apart, seal FROM outcomes WHERE run = ?"
)

DELETE_RUN: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM runs WHERE run = :run",
    "DELETE FROM inputs WHERE name = :name",
    "DELETE FROM outcomes WHERE run = :run",
)
DELETE_RECORDS: Final[LiteralString] = (
    "DELETE FROM records WHERE place >= :run << 32 AND place < (:run + 1) << 32"
)

# --- Retention --------------------------------------------------------------------------------------------

COUNT_ENDED: Final[LiteralString] = "SELECT count(*) FROM runs WHERE status >= 3"
FIRST_ENDED: Final[LiteralString] = (
    _RUN + "INDEXED BY ended_runs WHERE status = ? AND status >= 3 ORDER BY updated LIMIT 1"
)
PAGES_IN_USE: Final[LiteralString] = """
SELECT (page_count - freelist_count) * page_size
FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""

# Up to what the run has saved, but for the last of all.
FORGET_STATES: Final[LiteralString] = """
DELETE FROM states WHERE thread_id = :thread_id
    AND number <= (SELECT number FROM states WHERE thread_id = :thread_id AND run_id = :run_id ORDER BY number LIMIT 1)
    AND number < (SELECT max(number) FROM states WHERE thread_id = :thread_id)
"""

ADD_REMAINS: Final[LiteralString] = "INSERT INTO remains (run) VALUES (?)"
REMAINS: Final[LiteralString] = "SELECT run FROM remains LIMIT 1"
CLEAR_REMAINS: Final[LiteralString] = """
DELETE FROM records WHERE place IN (
    SELECT place FROM records WHERE place >= :run << 32 AND place < (:run + 1) << 32 LIMIT :most
)
"""
DELETE_REMAINS: Final[LiteralString] = "DELETE FROM remains WHERE run = :run"

VACUUM: Final[LiteralString] = "VACUUM"

# --- Owners -----------------------------------------------------------------------------------------------

OWNER: Final[LiteralString] = "SELECT owner, beat, lease, seal FROM owners WHERE owner = ?"
OWNERS: Final[LiteralString] = "SELECT owner, beat, lease, seal FROM owners"
BEAT: Final[LiteralString] = "INSERT OR REPLACE INTO owners (owner, beat, lease, seal) VALUES (?, ?, ?, ?)"
DELETE_OWNER: Final[LiteralString] = "DELETE FROM owners WHERE owner = ?"

# --- Records ----------------------------------------------------------------------------------------------

APPEND_RECORD: Final[LiteralString] = """
INSERT INTO records (place, value, about, seal) VALUES (?, ?, ?, ?)
"""

PAGE_OF_RECORDS: Final[LiteralString] = """
SELECT place, value, about, seal FROM records WHERE place > ? AND place <= ? ORDER BY place
"""

# For results that are put together of them.
VALUES: Final[LiteralString] = """
SELECT place & 0xFFFFFFFF, value FROM records WHERE place > ? AND place <= ? AND length(value) >= ? ORDER BY place
"""
VALUE: Final[LiteralString] = "SELECT value FROM records WHERE place = ?"

# --- Saved values of threads ------------------------------------------------------------------------------

NEXT_STATE: Final[LiteralString] = "SELECT coalesce(max(number), 0) + 1 FROM states WHERE thread_id = ?"

APPEND_STATE: Final[LiteralString] = """
INSERT INTO states (thread_id, number, value, created, run_id, seal) VALUES (?, ?, ?, ?, ?, ?)
"""

NEWEST_STATES: Final[LiteralString] = """
SELECT thread_id, number, value, created, run_id, seal
FROM states WHERE thread_id = ? ORDER BY number DESC LIMIT ?
"""

DELETE_STATES: Final[LiteralString] = "DELETE FROM states WHERE thread_id = ?"
