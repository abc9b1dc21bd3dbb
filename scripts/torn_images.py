"""Tear and flip images of a SQLite store, open them, and look what is left.

    python scripts/torn_images.py --images 10000 [--seed N] [--kind NAME ...]
    python scripts/torn_images.py --every-byte          cut and flip a small store at every offset (takes minutes)
    python scripts/torn_images.py --power 1000          lose writes that the disk had not been told to keep

A store is filled, and all that it has acknowledged is noted after each commit. What lies on the disk at that moment
(the database and its write-ahead log, as a kill would leave them) is an image. Images are damaged in each of several
ways, opened with a fresh SqliteSaver, read whole, and one run of each is gone on with. What may come of it:

    whole    all that was acknowledged
    older    all that had been acknowledged at an earlier moment, and nothing of later: the tail has vanished
    error    a typed error (CheckpointError)
    mixed    as older, but not all runs and threads are as they were at the same moment
    hidden   something is missing that was there at any such moment, and nothing says so
    wrong    a value that nobody wrote, or a run with records of another moment
    raw      any other exception

When the power fails in the middle of a commit, any of the sectors may be lost that were written since the last sync;
what had been acknowledged before must all be there.

`wrong` and `raw` are violations; so is `mixed`, but where the two files are of different moments to begin with.
`hidden` and `older` are counted; see `--most-hidden`.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from weft import RunStatus, SqliteSaver
from weft.checkpoint.base import Change, OpenRun, Record, RecordKind, RunRow, ThreadState, Write
from weft.errors import CheckpointError

# --- What was acknowledged --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """Everything in a store at one moment."""

    runs: dict[str, RunRow]
    records: dict[str, list[tuple[int, Record]]]
    states: dict[str, list[ThreadState]]


@dataclass(frozen=True)
class Image:
    """What lies on the disk: the database, its log and the locks of owners; what was acknowledged by then."""

    db: bytes
    wal: bytes
    locks: dict[str, bytes]
    moment: int  # index into the truths


THREADS = ("t0", "t1")


def everything(store: SqliteSaver, names: Sequence[str]) -> Truth:
    """All that a store shows: what it lists, and what it finds of those that it does not list."""
    runs = {row.run_id: row for row in store.runs(limit=10**6)}
    for name in names:
        row = store.find(name)
        if row is not None and runs.setdefault(name, row) != row:
            raise AssertionError(f"{name} is listed as {runs[name]} and found as {row}")
    return Truth(
        runs,
        {name: store.records(name, limit=10**6) for name in names},
        {thread: store.states(thread, limit=10**6) for thread in THREADS},
    )


class Story:
    """A store that is filled, and what it was at each moment."""

    def __init__(
        self, path: Path, draw: random.Random, *, runs: int, steps: int, most: int, page: int = 4096
    ) -> None:
        self.path = path
        self.draw = draw
        self.names = [f"run {number}" for number in range(runs)]
        self.truths: list[Truth] = []
        self.images: list[Image] = []
        self.most = most  # bytes of a value
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA page_size = {page}")
        db.execute("VACUUM")
        db.close()
        with SqliteSaver(path) as store:
            self._take(store)
            for number, name in enumerate(self.names):
                self._run(store, number, name, steps)
            image = self._copied()
        self.images.append(Image(self.path.read_bytes(), b"", {}, image.moment))  # closed: there is no log

    def _run(self, store: SqliteSaver, number: int, name: str, steps: int) -> None:
        draw = self.draw
        thread = THREADS[number % 3] if number % 3 < 2 else None
        fence = store.open(
            OpenRun(name, "flow", thread, draw.randbytes(draw.randrange(50)), 1.0 + number)
        ).fence
        self._take(store)
        for step in range(steps):
            records = [self._record(step) for _ in range(draw.randrange(1, 4))]
            last = step == steps - 1 and number % 4 != 3
            change = (
                Change(RunStatus.FINISHED, draw.randbytes(20), saved=draw.randbytes(20)) if last else None
            )
            store.commit([Write(name, fence, records, change)])
            self._take(store)
        if number % 4 == 3:
            store.release(name, fence)
            self._take(store)
        if number % 5 == 4:  # the log begins anew, over what it held before
            with sqlite3.connect(self.path) as db:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            db.close()

    def _record(self, step: int) -> Record:
        draw = self.draw
        size = draw.randrange(self.most if draw.random() < 0.1 else 60)
        return Record(
            draw.choice([*RecordKind]),
            draw.randbytes(16),
            draw.randbytes(16),
            step,
            "step",
            draw.randbytes(size),
            1,
            2.0,
            3.0,
            step,
        )

    def _take(self, store: SqliteSaver) -> None:
        self.truths.append(everything(store, self.names))
        self.images.append(self._copied())

    def _copied(self) -> Image:
        """The files as they are now, by another process: to close a copied file lets go of the locks on it."""
        with tempfile.TemporaryDirectory() as name:
            subprocess.run(["cp", self.path, f"{self.path}-wal", name], check=True)
            db, wal = (Path(name, self.path.name + end).read_bytes() for end in ("", "-wal"))
        locks = {lock.name: lock.read_bytes() for lock in Path(f"{self.path}-owners").glob("*")}
        return Image(db, wal, locks, len(self.truths) - 1)


# --- What happens to images -------------------------------------------------------------------------------

Files = tuple[bytes | None, bytes | None]  # the database and its log; None: there is none
Damage = Callable[[Image, random.Random, Story], Files]

SECTOR = 512


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _flipped(content: bytes, draw: random.Random, at: int | None = None) -> bytes:
    place = draw.randrange(len(content)) if at is None else at
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


def _with_sector(
    content: bytes, draw: random.Random, new: Callable[[int, int], bytes], size: int = SECTOR
) -> bytes:
    """One sector is another; ``new(start, length)`` gives what is there."""
    start = draw.randrange(-(-len(content) // size)) * size
    length = min(size, len(content) - start)
    found = new(start, length)[:length]
    return content[:start] + found + content[start + len(found) :]


def _other(story: Story, image: Image, draw: random.Random) -> Image:
    """An image of an earlier moment."""
    return draw.choice(
        [each for each in story.images if each.moment <= image.moment and each is not image] or [image]
    )


def _part_of(content: bytes) -> Callable[[int, int], bytes]:
    return lambda at, length: content[at : at + length]


def page_size(db: bytes) -> int:
    """Of a database, in bytes."""
    (size,) = struct.unpack(">H", db[16:18])
    return 65536 if size == 1 else size


KINDS: dict[str, Damage] = {
    "log: cut": lambda it, draw, _: (it.db, _cut(it.wal, draw)),
    "log: a bit flipped": lambda it, draw, _: (it.db, _flipped(it.wal, draw)),
    "log: several bits flipped": lambda it, draw, _: (
        it.db,
        _flipped(_flipped(_flipped(it.wal, draw), draw), draw),
    ),
    "log: its head flipped": lambda it, draw, _: (it.db, _flipped(it.wal, draw, draw.randrange(32))),
    "log: zeros to its end": lambda it, draw, _: (
        it.db,
        (cut := _cut(it.wal, draw)) + bytes(len(it.wal) - len(cut)),
    ),
    "log: a sector of zeros": lambda it, draw, _: (it.db, _with_sector(it.wal, draw, lambda _, n: bytes(n))),
    "log: a sector of noise": lambda it, draw, _: (
        it.db,
        _with_sector(it.wal, draw, lambda _, n: draw.randbytes(n)),
    ),
    "log: a sector of another moment": lambda it, draw, story: (
        it.db,
        _with_sector(it.wal, draw, _part_of(_other(story, it, draw).wal)),
    ),
    "log: gone": lambda it, draw, _: (it.db, None),
    "log: of another moment": lambda it, draw, story: (it.db, _other(story, it, draw).wal),
    "file: cut": lambda it, draw, _: (_cut(it.db, draw), it.wal),
    "file: a bit flipped": lambda it, draw, _: (_flipped(it.db, draw), it.wal),
    "file: a sector of zeros": lambda it, draw, _: (_with_sector(it.db, draw, lambda _, n: bytes(n)), it.wal),
    "file: a sector of noise": lambda it, draw, _: (
        _with_sector(it.db, draw, lambda _, n: draw.randbytes(n)),
        it.wal,
    ),
    "file: a page of another moment": lambda it, draw, story: (
        _with_sector(it.db, draw, _part_of(_other(story, it, draw).db), page_size(it.db)),
        it.wal,
    ),
    "file: a page in another's place": lambda it, draw, _: (
        _with_sector(
            it.db,
            draw,
            lambda _, n: it.db[(at := draw.randrange(len(it.db) // n) * n) : at + n],
            page_size(it.db),
        ),
        it.wal,
    ),
    "file: of another moment": lambda it, draw, story: (_other(story, it, draw).db, it.wal),
    "file: empty": lambda it, draw, _: (b"", it.wal),
    "file: gone": lambda it, draw, _: (None, it.wal),
}

# --- What comes of it -------------------------------------------------------------------------------------

OUTCOMES = ("whole", "older", "error", "mixed", "hidden", "wrong", "raw")
VIOLATIONS = {"wrong", "raw"}


def judge(found: Truth, truths: Sequence[Truth], moment: int) -> str:
    """What a store has shown, by what was acknowledged."""
    if found == truths[moment]:
        return "whole"
    if found in truths[:moment]:
        return "older"
    known = truths[: moment + 1]
    if any(_is_part(found, truth) for truth in known):
        return "hidden"
    runs = all(any(_same_run(found, truth, name) for truth in known) for name in found.records)
    states = all(
        any(found.states[thread] == truth.states[thread] for truth in known) for thread in found.states
    )
    return "mixed" if runs and states else "wrong"


def _is_part(found: Truth, truth: Truth) -> bool:
    """Whether all that is shown is true at one moment, though something may be missing."""
    return (
        all(truth.runs.get(name) == row for name, row in found.runs.items())
        and all(not records or truth.records.get(name) == records for name, records in found.records.items())
        and all(
            all(state in truth.states[thread] for state in states) for thread, states in found.states.items()
        )
    )


def _same_run(found: Truth, truth: Truth, name: str) -> bool:
    return (
        _plain(found.runs.get(name)) == _plain(truth.runs.get(name))
        and found.records[name] == truth.records[name]
    )


def _plain(row: RunRow | None) -> RunRow | None:
    """The row without how the run has once ended, where it goes on: nobody looks at that."""
    return structs.replace(row, output=None, error=None) if row and row.status is RunStatus.RUNNING else row


def opened(folder: Path, files: Files, image: Image, story: Story, go_on: str) -> tuple[str, str]:
    """What comes of an image that is read whole, and of a run that is gone on with: the outcome, and the error."""
    path = folder / "runs.db"
    places = path, Path(f"{path}-wal")
    for content, place in zip(files, places, strict=True):
        if content is not None:
            place.write_bytes(content)
    if image.locks:
        Path(f"{path}-owners").mkdir(mode=0o700)
    for name, content in image.locks.items():
        Path(f"{path}-owners", name).write_bytes(content)
    outcome = "error", ""
    try:
        with SqliteSaver(path, timeout=0.1) as store:
            with suppress(CheckpointError):
                outcome = judge(everything(store, story.names), story.truths, image.moment), ""
            with suppress(CheckpointError):
                _go_on(store, go_on)
    except CheckpointError as error:
        return "error", str(error)
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    finally:
        for place in [*folder.iterdir()]:
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    return outcome


def _go_on(store: SqliteSaver, name: str) -> None:
    """Whoever can read such a store may write to it: what is written is there."""
    row = store.open(OpenRun(name, "", None, None))
    if row.status is not RunStatus.FINISHED:
        before = len(store.records(name, limit=10**6))
        store.commit([Write(name, row.fence, [Record(RecordKind.OK, bytes(16), value=b"more")])])
        assert [record.value for _, record in store.records(name, after=before)] == [b"more"]


@dataclass
class Tally:
    """What came of images, by kind of damage."""

    counts: Counter[tuple[str, str]]
    examples: list[str]

    def of(self, *outcomes: str) -> int:
        return sum(times for (_, outcome), times in self.counts.items() if outcome in outcomes)

    def table(self) -> Iterator[str]:
        yield f"{'':34}" + "".join(f"{outcome:>8}" for outcome in OUTCOMES)
        for kind in dict.fromkeys(kind for kind, _ in self.counts):
            yield f"{kind:34}" + "".join(f"{self.counts[kind, outcome]:8}" for outcome in OUTCOMES)
        yield f"{'in all':34}" + "".join(f"{self.of(outcome):8}" for outcome in OUTCOMES)


def stories(folder: Path, draw: random.Random) -> list[Story]:
    """A small one, whose files are a few pages; and a bigger one, with pages of every kind."""
    for name in ("small", "big"):
        (folder / name).mkdir()
    return [
        Story(folder / "small" / "runs.db", draw, runs=3, steps=3, most=60),
        Story(folder / "big" / "runs.db", draw, runs=40, steps=3, most=20_000),
    ]


def torn(images: int, draw: random.Random, kinds: Sequence[str] = ()) -> Tally:
    """Damage so many images, each kind as often as every other."""
    tally = Tally(Counter(), [])
    with tempfile.TemporaryDirectory(dir=_quick()) as name:
        folder = Path(name)
        told = stories(folder, draw)
        (folder / "image").mkdir()
        for number in range(images):
            kind = (kinds or [*KINDS])[number % len(kinds or KINDS)]
            story = draw.choice(told)
            choice = (
                [image for image in story.images if image.wal] if kind.startswith("log") else story.images
            )
            image = draw.choice(choice)
            files = KINDS[kind](image, draw, story)
            _count(tally, kind, opened(folder / "image", files, image, story, draw.choice(story.names)))
    return tally


def at_every_byte(draw: random.Random, *, step: int = 1) -> Tally:
    """Cut and flip the last image of a small store, hot and closed, at every offset, or at every ``step``-th."""
    tally = Tally(Counter(), [])
    with tempfile.TemporaryDirectory(dir=_quick()) as name:
        folder = Path(name)
        (folder / "image").mkdir()
        story = Story(folder / "runs.db", draw, runs=2, steps=2, most=60, page=512)
        hot, closed = story.images[-2:]
        plans = [
            ("log: cut", hot, True),
            ("log: flipped", hot, True),
            ("file: cut", closed, False),
            ("file: flipped", closed, False),
        ]
        for kind, image, in_log in plans:
            content = image.wal if in_log else image.db
            for at in range(draw.randrange(step), len(content), step):
                torn = content[:at] if "cut" in kind else _flipped(content, draw, at)
                files = (image.db, torn) if in_log else (torn, None)
                _count(tally, kind, opened(folder / "image", files, image, story, draw.choice(story.names)))
    return tally


# --- When the power fails ---------------------------------------------------------------------------------


def _mixed(old: bytes, new: bytes, draw: random.Random) -> bytes:
    """What is on the disk when some of the sectors that make ``new`` of ``old`` were not written."""
    kept = draw.choice([0.1, 0.5, 0.9])
    in_order, reached = draw.random() < 0.3, draw.randrange(max(len(new), 1))
    found = bytearray()
    for at in range(0, len(new), SECTOR):
        is_written = at < reached if in_order else draw.random() < kept
        sector = new[at : at + SECTOR]
        before = old[at : at + SECTOR]
        found += sector if is_written else before + bytes(len(sector) - len(before))
    if draw.random() < 0.3:  # nor that the file has grown
        del found[max(len(old), draw.randrange(len(found) + 1)) :]
    return bytes(found)


#: Of what is written, when the power fails: the log in a commit; the file, at a checkpoint; the log that begins anew.
POWER = ("in a commit", "at a checkpoint", "where the log begins anew")


def without_power(before: Image, after: Image, draw: random.Random) -> tuple[str, Files]:
    """What may be on the disk if the power fails between two commits that follow each other."""
    begins_anew = before.wal[:32] != after.wal[:32]
    if before.db != after.db and draw.random() < 0.5:
        log = before.wal if begins_anew else after.wal  # was synced before a page was written to the file
        return POWER[1], (_mixed(before.db, after.db, draw), log)
    if (
        begins_anew
    ):  # when all that was in it had been synced in the file; its head is synced before the rest is written
        with_head = after.wal[:32] + before.wal[32:]
        return POWER[2], (after.db, draw.choice([before.wal, with_head, _mixed(with_head, after.wal, draw)]))
    return POWER[0], (before.db, _mixed(before.wal, after.wal, draw))


def power_fails(images: int, draw: random.Random, *, synced: int = 1) -> Tally:
    """Have the power fail so often. ``synced``: every how manieth commit waits for the disk (1 is what we promise)."""
    tally = Tally(Counter(), [])
    with tempfile.TemporaryDirectory(dir=_quick()) as name:
        folder = Path(name)
        told = stories(folder, draw)
        (folder / "image").mkdir()
        for _ in range(images):
            story = draw.choice(told)
            hot = [image for image in story.images if image.wal]
            numbers = range(synced, len(hot))
            if draw.random() < 0.5:  # those are few
                numbers = [
                    number for number in numbers if hot[number].db != hot[number - synced].db
                ] or numbers
            number = draw.choice(numbers)
            before, acknowledged, after = hot[number - synced], hot[number - 1], hot[number]
            kind, files = without_power(before, after, draw)
            kept = Image(*files, {}, after.moment)
            outcome = opened(folder / "image", files, kept, story, draw.choice(story.names))
            if outcome[0] == "older" and story.truths[acknowledged.moment] == _found(
                folder / "again", files, story
            ):
                outcome = "whole", ""
            tally.counts[kind, outcome[0]] += 1
            if outcome[0] != "whole":
                tally.examples.append(f"{kind}: {outcome[0]}: {outcome[1]}")
    return tally


def _found(folder: Path, files: Files, story: Story) -> Truth:
    folder.mkdir()
    try:
        for content, end in zip(files, ("", "-wal"), strict=True):
            (folder / f"runs.db{end}").write_bytes(content or b"")
        with SqliteSaver(folder / "runs.db") as store:
            return everything(store, story.names)
    finally:
        shutil.rmtree(folder)


def _count(tally: Tally, kind: str, outcome: tuple[str, str]) -> None:
    tally.counts[kind, outcome[0]] += 1
    if is_violation(kind, outcome[0]):
        tally.examples.append(f"{kind}: {outcome[0]}: {outcome[1]}")


def is_violation(kind: str, outcome: str) -> bool:
    """Whether that must not come of such damage."""
    return outcome in VIOLATIONS or (outcome == "mixed" and not kind.endswith("moment"))


def _quick() -> str | None:
    """Where files need not outlive the power, if there is such."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--kind", action="append", choices=[*KINDS], help="only these")
    parser.add_argument("--every-byte", action="store_true")
    parser.add_argument("--power", type=int, default=0, help="how often the power fails")
    parser.add_argument(
        "--most-hidden", type=float, default=0.005, help="the share of images that may hide something"
    )
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    draw, began = random.Random(args.seed), time.monotonic()
    if args.power:
        tally, kinds = power_fails(args.power, draw), {*POWER}
    elif args.every_byte:
        tally, kinds = at_every_byte(draw), set()
    else:
        tally, kinds = torn(args.images, draw, args.kind or ()), {*(args.kind or KINDS)}
    print(*tally.table(), *tally.examples[:10], sep="\n")
    images = tally.of(*OUTCOMES)
    print(f"{images} images in {time.monotonic() - began:.0f} s; {len(tally.examples)} violations")
    missing = kinds - {kind for kind, _ in tally.counts}
    if missing:
        print("never happened:", *sorted(missing))
    bad = tally.examples or missing or tally.of("hidden") > images * args.most_hidden
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
