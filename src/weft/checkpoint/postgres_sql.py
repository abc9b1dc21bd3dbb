"""Every statement that :class:`weft.PostgresSaver` runs. Values are parameters, always.

Tables are named without their schema: the connection's ``search_path`` leads to it, and to nothing else. Names are
stored as bytes, see ``rows.py``; as a name may be longer than what an index holds, indexes are over its hash. A
``seal`` is a checksum over its row.

What is relied on, everywhere: READ COMMITTED for what writes, so that each statement sees all that was committed
before it began, and one that waits for a row decides by what the row has become. Who needs more than one row locks
them in one order: the name of the run, the name of the thread, rows by their number.
"""

from __future__ import annotations

from typing import Final, LiteralString

# --- Sessions ---------------------------------------------------------------------------------------------

# With `local` true they hold for one transaction: behind a pooler there are no sessions.
# A commit waits for the disk whatever the server's default is. Temporary tables of others are no tables of ours.
# Nothing of ours reads a whole table: a plan that does was made while the table was small, and is kept too long.
SETTINGS: Final[LiteralString] = """
SELECT set_config('search_path', quote_ident(%(schema)s) || ', pg_temp', %(local)s),
       set_config('statement_timeout', %(statement)s, %(local)s),
       set_config('lock_timeout', %(lock)s, %(local)s),
       set_config('idle_in_transaction_session_timeout', %(idle)s, %(local)s),
       set_config('enable_seqscan', 'off', %(local)s),
       set_config('synchronous_commit',
                  CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'
                       ELSE current_setting('synchronous_commit') END, %(local)s)
"""
READ_COMMITTED: Final[LiteralString] = (
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"
)
HURRIED: Final[LiteralString] = (
    "SET synchronous_commit = off"  # what may be forgotten need not reach the disk
)

# Not READ WRITE: where the default is to read only, somebody has frozen the database, or it is a standby.
BEGIN_WRITING: Final[LiteralString] = "BEGIN ISOLATION LEVEL READ COMMITTED"
BEGIN_READING: Final[LiteralString] = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"  # one snapshot
COMMIT: Final[LiteralString] = "COMMIT"
ROLLBACK: Final[LiteralString] = "ROLLBACK"

LOCK_NAME: Final[LiteralString] = "SELECT pg_advisory_xact_lock(%(key)b)"
LOCK_NAMES: Final[LiteralString] = (
    "SELECT pg_advisory_xact_lock(key) FROM unnest(%(keys)b::bigint[]) AS names (key)"  # in the order that is given
)
TRY_TO_LOCK_NAME: Final[LiteralString] = "SELECT pg_try_advisory_xact_lock(%(key)b)"

# --- The schema: step n leads from version n-1 to n --------------------------------------------------------

# Asked of the tables of the catalogue: to_regclass() answers from a cache, which may not know yet what others did
# while we waited for them.
HAS_SCHEMA: Final[LiteralString] = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %(schema)s)"
HAS_VERSION: Final[LiteralString] = """
SELECT EXISTS (
    SELECT FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = %(schema)s AND relname = 'weft_version'
)
"""
VERSION: Final[LiteralString] = "SELECT max(version) FROM weft_version"
CREATE_SCHEMA: Final[LiteralString] = "CREATE SCHEMA {}"  # the only name that is no value
CREATE_VERSION: Final[LiteralString] = """
CREATE TABLE weft_version (
    version integer PRIMARY KEY,
    since timestamptz NOT NULL DEFAULT now()
)
"""
SET_VERSION: Final[LiteralString] = "INSERT INTO weft_version (version) VALUES (%(version)b)"

# Rows of `runs` change with every commit: space on their page lets them do it without touching an index.
_RUNS: Final[LiteralString] = """
CREATE TABLE runs (
    run bigint PRIMARY KEY,      -- grows: also the order in which runs were begun
    run_id bytea NOT NULL,
    thread_id bytea,
    workflow bytea NOT NULL,
    status smallint NOT NULL,
    owner text,                  -- who runs it; NULL: nobody
    fence bigint NOT NULL,       -- how many owners it has had
    position bigint NOT NULL,    -- of its last record
    batches bigint NOT NULL,
    size bigint NOT NULL,        -- about how many bytes were recorded of it
    created float8 NOT NULL,
    updated float8 NOT NULL,
    seal bigint NOT NULL
) WITH (fillfactor = 60)
"""
_RUN_NUMBERS: Final[LiteralString] = "CREATE SEQUENCE run_numbers OWNED BY runs.run"
_RUNS_BY_ID: Final[LiteralString] = "CREATE UNIQUE INDEX runs_by_id ON runs (sha256(run_id))"
_RUNS_OF_THREAD: Final[LiteralString] = """
CREATE INDEX runs_of_thread ON runs (sha256(thread_id), run) WHERE thread_id IS NOT NULL
"""
# The rule of one running run a thread, kept by the database itself.
_OWNED_RUN_OF_THREAD: Final[LiteralString] = """
CREATE UNIQUE INDEX owned_run_of_thread ON runs (sha256(thread_id))
    WHERE thread_id IS NOT NULL AND owner IS NOT NULL
"""

# In the order in which they may be forgotten.
_ENDED_RUNS: Final[LiteralString] = """
CREATE INDEX ended_runs ON runs (status, updated) WHERE status IN (3, 4, 5)
"""
# Runs that are forgotten, but for their records: those are many, and go a few at a time.
_REMAINS: Final[LiteralString] = "CREATE TABLE remains (run bigint PRIMARY KEY)"

_INPUTS: Final[LiteralString] = """
CREATE TABLE inputs (run bigint PRIMARY KEY, input bytea NOT NULL, seal bigint NOT NULL)
"""
_OUTCOMES: Final[LiteralString] = """
CREATE TABLE outcomes (          -- how a run ended, the last time it did
    run bigint PRIMARY KEY,
    status smallint NOT NULL,
    output bytea,
    error bytea,
    is_apart smallint NOT NULL,  -- whether the output is pieces of records
    seal bigint NOT NULL
)
"""
_RECORDS: Final[LiteralString] = """
CREATE TABLE records (
    run bigint NOT NULL,
    position bigint NOT NULL,
    kind smallint NOT NULL,
    identity bytea NOT NULL,
    parent bytea NOT NULL,
    ordinal bigint NOT NULL,
    step bytea NOT NULL,
    value bytea NOT NULL,
    attempts bigint NOT NULL,
    started float8 NOT NULL,
    ended float8 NOT NULL,
    batch bigint NOT NULL,
    asked float8 NOT NULL,
    limits bytea,                -- that it had to wait for; NULL: none
    seal bigint NOT NULL,
    PRIMARY KEY (run, position)
)
"""
_STATES: Final[LiteralString] = """
CREATE TABLE states (
    thread_id bytea NOT NULL,
    number bigint NOT NULL,
    value bytea NOT NULL,
    created float8 NOT NULL,
    run_id bytea,
    seal bigint NOT NULL
)
"""
_STATES_OF_THREAD: Final[LiteralString] = """
CREATE UNIQUE INDEX states_of_thread ON states (sha256(thread_id), number)
"""
_OWNERS: Final[LiteralString] = """
CREATE TABLE owners (
    owner text PRIMARY KEY,
    key bigint NOT NULL,         -- of the advisory lock that it holds
    locks boolean NOT NULL,      -- whether it holds one
    beat bigint NOT NULL,
    lease float8 NOT NULL,       -- for how many seconds of silence it is still taken to be alive
    seal bigint NOT NULL
) WITH (fillfactor = 60)
"""

STEPS: Final[tuple[tuple[LiteralString, ...], ...]] = (
    (
        _RUNS,
        _RUN_NUMBERS,
        _RUNS_BY_ID,
        _RUNS_OF_THREAD,
        _OWNED_RUN_OF_THREAD,
        _ENDED_RUNS,
        _REMAINS,
        _INPUTS,
        _OUTCOMES,
        _RECORDS,
        _STATES,
        _STATES_OF_THREAD,
        _OWNERS,
    ),
)

# --- Owners -----------------------------------------------------------------------------------------------

TAKE_LOCK: Final[LiteralString] = "SELECT pg_advisory_lock(%(key)b)"
TAKE_FREE_LOCK: Final[LiteralString] = "SELECT pg_try_advisory_lock(%(key)b)"

# Who has an owner's lock to himself is that owner: others only ever share it, for a moment.
END_FORMER_SESSION: Final[LiteralString] = """
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND objsubid = 1 AND pid <> pg_backend_pid()
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) | objid::bigint = %(key)b
"""

# The lock is tried for together with others who do the same, and kept to the end of the transaction at most: two
# who look at the same dead owner at the same moment must both see that it is dead.
LOOK_AT_OWNER: Final[LiteralString] = """
SELECT CASE WHEN owners.locks IS NOT FALSE THEN pg_try_advisory_xact_lock_shared(%(key)b) ELSE false END,
       owners.owner, owners.key, owners.locks, owners.beat, owners.lease, owners.seal
FROM (SELECT) AS one LEFT JOIN owners ON owners.owner = %(owner)b
"""
SWEEP_OWNERS: Final[LiteralString] = """
DELETE FROM owners WHERE owner <> %(owner)b AND locks AND pg_try_advisory_xact_lock_shared(key)
"""
BEAT: Final[LiteralString] = """
INSERT INTO owners (owner, key, locks, beat, lease, seal)
VALUES (%(owner)b, %(key)b, %(locks)b, %(beat)b, %(lease)b, %(seal)b)
ON CONFLICT (owner) DO UPDATE SET beat = excluded.beat, seal = excluded.seal
"""
DELETE_OWNER: Final[LiteralString] = "DELETE FROM owners WHERE owner = %(owner)b"

# --- Runs -------------------------------------------------------------------------------------------------

_RUN_COLUMNS: Final[LiteralString] = """
SELECT runs.run, runs.run_id, runs.thread_id, runs.workflow, runs.status, runs.owner, runs.fence,
       runs.position, runs.batches, runs.size, runs.created, runs.updated, runs.seal"""
_RUN: Final[LiteralString] = _RUN_COLUMNS + " FROM runs "
_WHOLE_RUN: Final[LiteralString] = (
    _RUN_COLUMNS
    + """,
       inputs.run, inputs.input, inputs.seal,
       outcomes.run, outcomes.status, outcomes.output, outcomes.error, outcomes.is_apart, outcomes.seal
FROM runs LEFT JOIN inputs ON inputs.run = runs.run LEFT JOIN outcomes ON outcomes.run = runs.run """
)
_OF_THREAD: Final[LiteralString] = " sha256(runs.thread_id) = sha256(%(thread_id)b) "

RUN: Final[LiteralString] = _RUN + "WHERE sha256(run_id) = sha256(%(run_id)b)"
LOCKED_RUN: Final[LiteralString] = RUN + " FOR UPDATE"
LOCKED_RUNS: Final[LiteralString] = _RUN + "WHERE run = ANY(%(runs)b) ORDER BY run FOR UPDATE"
WHOLE_RUN: Final[LiteralString] = _WHOLE_RUN + "WHERE sha256(runs.run_id) = sha256(%(run_id)b)"
WHOLE_RUNS: Final[LiteralString] = (
    _WHOLE_RUN  # noqa: S608 - of literals only
    + "WHERE sha256(runs.run_id) IN (SELECT sha256(name) FROM unnest(%(run_ids)b::bytea[]) AS name)"
)
NEWEST_RUNS: Final[LiteralString] = _WHOLE_RUN + "ORDER BY runs.run DESC LIMIT %(limit)b"
NEWEST_RUNS_OF_THREAD: Final[LiteralString] = (
    _WHOLE_RUN + "WHERE" + _OF_THREAD + "ORDER BY runs.run DESC LIMIT %(limit)b"
)
OWNED_RUNS_OF_THREAD: Final[LiteralString] = (
    _RUN + "WHERE" + _OF_THREAD + "AND owner IS NOT NULL ORDER BY run FOR UPDATE"
)
RUNS_OF_THREAD: Final[LiteralString] = _RUN + "WHERE" + _OF_THREAD + "ORDER BY run FOR UPDATE"

NEXT_RUNS: Final[LiteralString] = "SELECT nextval('run_numbers') FROM generate_series(1, %(count)b)"
CREATE_RUNS: Final[LiteralString] = """
WITH new AS (
    SELECT * FROM unnest(
        %(n_key)b::bigint[], %(n_run_id)b::bytea[], %(n_thread_id)b::bytea[], %(n_workflow)b::bytea[],
        %(n_status)b::smallint[], %(n_owner)b::text[], %(n_fence)b::bigint[], %(n_position)b::bigint[],
        %(n_batches)b::bigint[], %(n_size)b::bigint[], %(n_created)b::float8[], %(n_updated)b::float8[],
        %(n_seal)b::bigint[], %(n_input)b::bytea[], %(n_input_seal)b::bigint[]
    ) AS new (run, run_id, thread_id, workflow, status, owner, fence, position, batches, size, created, updated, seal,
              input, input_seal)
),
given AS (
    INSERT INTO inputs (run, input, seal) SELECT run, input, input_seal FROM new
)
INSERT INTO runs
    (run, run_id, thread_id, workflow, status, owner, fence, position, batches, size, created, updated, seal)
SELECT run, run_id, thread_id, workflow, status, owner, fence, position, batches, size, created, updated, seal FROM new
"""
CHANGE_RUN: Final[LiteralString] = """
UPDATE runs SET status = %(status)b, owner = %(owner)b, fence = %(fence)b, position = %(position)b,
                size = %(size)b, updated = %(updated)b, seal = %(seal)b
WHERE run = %(run)b
"""

DELETE_RUNS: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM runs WHERE run = ANY(%(runs)b)",
    "DELETE FROM inputs WHERE run = ANY(%(runs)b)",
    "DELETE FROM outcomes WHERE run = ANY(%(runs)b)",
)
DELETE_RECORDS: Final[LiteralString] = "DELETE FROM records WHERE run = ANY(%(runs)b)"

# --- Retention --------------------------------------------------------------------------------------------

COUNT_ENDED: Final[LiteralString] = "SELECT count(*) FROM runs WHERE status IN (3, 4, 5)"
SUM_SIZES: Final[LiteralString] = "SELECT coalesce(sum(size), 0)::bigint FROM runs"
# Not those that somebody is just opening, deleting or forgetting.
FIRST_ENDED: Final[LiteralString] = (
    _RUN
    + """WHERE status = %(status)b AND status IN (3, 4, 5) AND updated < %(before)b AND owner IS NULL
ORDER BY updated LIMIT %(limit)b FOR UPDATE SKIP LOCKED
"""
)
# Up to what the run has saved, but for the last of all.
FORGET_STATES: Final[LiteralString] = """
DELETE FROM states WHERE sha256(thread_id) = sha256(%(thread_id)b)
    AND number <= (
        SELECT number FROM states WHERE sha256(thread_id) = sha256(%(thread_id)b) AND run_id = %(run_id)b
        ORDER BY number LIMIT 1
    )
    AND number < (SELECT max(number) FROM states WHERE sha256(thread_id) = sha256(%(thread_id)b))
"""
ADD_REMAINS: Final[LiteralString] = "INSERT INTO remains (run) VALUES (%(run)b)"
REMAINS: Final[LiteralString] = "SELECT run FROM remains ORDER BY run LIMIT 1 FOR UPDATE SKIP LOCKED"
CLEAR_REMAINS: Final[LiteralString] = """
DELETE FROM records WHERE run = %(run)b AND position IN (
    SELECT position FROM records WHERE run = %(run)b ORDER BY position LIMIT %(most)b
)
"""
DELETE_REMAINS: Final[LiteralString] = "DELETE FROM remains WHERE run = %(run)b"

WITHOUT_LIMIT: Final[LiteralString] = "SET statement_timeout = 0; SET lock_timeout = 0"
VACUUM: Final[LiteralString] = (
    "VACUUM {0}.runs, {0}.inputs, {0}.outcomes, {0}.records, {0}.states, {0}.owners, {0}.remains"
)

# --- Commits ----------------------------------------------------------------------------------------------

_NEW_RECORDS: Final[LiteralString] = """
    INSERT INTO records
        (run, position, kind, identity, parent, ordinal, step, value, attempts, started, ended, batch, asked, limits,
         seal)
    SELECT r.* FROM unnest(
        %(r_run)b::bigint[], %(r_position)b::bigint[], %(r_kind)b::smallint[], %(r_identity)b::bytea[],
        %(r_parent)b::bytea[], %(r_ordinal)b::bigint[], %(r_step)b::bytea[], %(r_value)b::bytea[],
        %(r_attempts)b::bigint[], %(r_started)b::float8[], %(r_ended)b::float8[], %(r_batch)b::bigint[],
        %(r_asked)b::float8[], %(r_limits)b::bytea[], %(r_seal)b::bigint[]
    ) AS r (run, position, kind, identity, parent, ordinal, step, value, attempts, started, ended, batch, asked, limits,
            seal)
"""

# Not COPY: a client that falls silent in the middle of one keeps its locks, for none of the server's timeouts counts
# there. While the server waits for a statement or a part of it, they do.
APPEND_RECORDS: Final[LiteralString] = _NEW_RECORDS

# All writes of many runs in one statement, which is one transaction and one round trip.
#
# `mine` is the fence: it locks the rows that are still this owner's, in one order. Where somebody is just taking a
# run over, it waits, and then goes by what the row has become; from there on nobody can take one over before this
# has committed. Runs that are not in it are refused, and the others go on.
#
# The caller has worked out the new rows (positions, seals) from the rows as it knows them. Somebody else may add
# answers, which moves the position: then nothing at all is done, and the caller looks and asks again.
COMMIT_WRITES: Final[LiteralString] = (
    """
WITH
w AS (
    SELECT * FROM unnest(
        %(run)b::bigint[], %(fence)b::bigint[], %(was_at)b::bigint[], %(was_sealed)b::bigint[],
        %(status)b::smallint[], %(owned)b::boolean[], %(position)b::bigint[], %(batches)b::bigint[],
        %(size)b::bigint[], %(updated)b::float8[], %(seal)b::bigint[]
    ) AS w (run, fence, was_at, was_sealed, status, owned, position, batches, size, updated, seal)
),
mine AS (
    SELECT runs.run, runs.position = w.was_at AND runs.seal = w.was_sealed AS fits
    FROM runs JOIN w ON w.run = runs.run
    WHERE runs.run = ANY(%(run)b::bigint[]) AND runs.owner = %(owner)b AND runs.fence = w.fence
    ORDER BY runs.run FOR UPDATE OF runs
),
ready AS (
    SELECT bool_and(fits) AS all_fit FROM mine
),
changed AS (
    UPDATE runs SET
        status = w.status, owner = CASE WHEN w.owned THEN runs.owner END, position = w.position,
        batches = w.batches, size = w.size, updated = w.updated, seal = w.seal
    FROM w, mine, ready
    WHERE runs.run = ANY(%(run)b::bigint[]) AND runs.run = w.run AND mine.run = w.run AND ready.all_fit
    RETURNING runs.run
),
appended AS (
"""  # noqa: S608 - of literals only
    + _NEW_RECORDS
    + """
    WHERE r.run IN (SELECT run FROM changed)
),
outcome AS (
    INSERT INTO outcomes (run, status, output, error, is_apart, seal)
    SELECT o.* FROM unnest(
        %(o_run)b::bigint[], %(o_status)b::smallint[], %(o_output)b::bytea[], %(o_error)b::bytea[],
        %(o_is_apart)b::smallint[], %(o_seal)b::bigint[]
    ) AS o (run, status, output, error, is_apart, seal)
    WHERE o.run IN (SELECT run FROM changed)
    ON CONFLICT (run) DO UPDATE SET
        status = excluded.status, output = excluded.output, error = excluded.error,
        is_apart = excluded.is_apart, seal = excluded.seal
),
saved AS (
    INSERT INTO states (thread_id, number, value, created, run_id, seal)
    SELECT s.thread_id, s.number, s.value, s.created, s.run_id, s.seal FROM unnest(
        %(s_run)b::bigint[], %(s_thread_id)b::bytea[], %(s_number)b::bigint[], %(s_value)b::bytea[],
        %(s_created)b::float8[], %(s_run_id)b::bytea[], %(s_seal)b::bigint[]
    ) AS s (run, thread_id, number, value, created, run_id, seal)
    WHERE s.run IN (SELECT run FROM changed)
),
beaten AS (
    INSERT INTO owners (owner, key, locks, beat, lease, seal)
    SELECT b.* FROM unnest(
        %(b_owner)b::text[], %(b_key)b::bigint[], %(b_locks)b::boolean[], %(b_beat)b::bigint[],
        %(b_lease)b::float8[], %(b_seal)b::bigint[]
    ) AS b (owner, key, locks, beat, lease, seal)
    ON CONFLICT (owner) DO UPDATE SET beat = excluded.beat, seal = excluded.seal
)
SELECT mine.run, ready.all_fit FROM mine, ready
"""
)

# --- Records ----------------------------------------------------------------------------------------------

PAGE_OF_RECORDS: Final[LiteralString] = """
SELECT run, position, kind, identity, parent, ordinal, step, value, attempts, started, ended, batch, asked, limits, seal
FROM records WHERE run = %(run)b AND position > %(after)b AND position <= %(last)b ORDER BY position
"""

# For results that are put together of them.
VALUES: Final[LiteralString] = """
SELECT position, value FROM records
WHERE run = %(run)b AND position <= %(last)b AND length(value) >= %(least)b ORDER BY position
"""
VALUES_AT: Final[LiteralString] = """
SELECT position, value FROM records WHERE run = %(run)b AND position = ANY(%(positions)b::bigint[])
"""

# --- Saved values of threads ------------------------------------------------------------------------------

NEXT_STATE: Final[LiteralString] = """
SELECT coalesce(max(number), 0) + 1 FROM states WHERE sha256(thread_id) = sha256(%(thread_id)b)
"""
APPEND_STATE: Final[LiteralString] = """
INSERT INTO states (thread_id, number, value, created, run_id, seal) VALUES (%b, %b, %b, %b, %b, %b)
"""
NEWEST_STATES: Final[LiteralString] = """
SELECT thread_id, number, value, created, run_id, seal
FROM states WHERE sha256(thread_id) = sha256(%(thread_id)b) ORDER BY number DESC LIMIT %(limit)b
"""
DELETE_STATES: Final[LiteralString] = "DELETE FROM states WHERE sha256(thread_id) = sha256(%(thread_id)b)"
