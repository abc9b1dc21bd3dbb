"""Let processes fight for runs, and look whether any run was ever written by two.

    python scripts/owner_races.py races --count 1000 [--store sqlite] [--seed N]
    python scripts/owner_races.py zombies --count 100 [--store postgres]

A *race*: a process dies in the middle of a run, and eight others resume it at the same moment. A *zombie*: the
process that has a run is stopped (SIGSTOP) for longer than its lease, another takes the run over and finishes it, and
the first is woken up (SIGCONT). Runs, processes and stores are real; each step appends to a file what it does. The
audit reads that file and the store, never what the engine says:

- each step of a run is recorded once, and what is recorded never changes once the run is finished;
- a step that was recorded does not run again; one that was just at work when its process died or was taken for dead
  runs once more, and no other;
- whoever wanted the run has got its output or was told that it is busy or lost, and somebody has got the output.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from weft import (
    OwnerLostError,
    RunBusyError,
    RunStatus,
    SqliteSaver,
    StoreError,
    entrypoint,
    task,
)
from weft.checkpoint.base import Checkpointer, RecordKind, all_records

RACERS = 8
STEPS = 6
LEASE = 0.4
OUTPUT = str(sum(range(STEPS)))

#: How a process ends that has lost its run: told so, or with its transaction ended by the server, for which it stood
#: still too long in the middle of it (on Postgres; a run that had not begun then never does).
TOLD, CUT_OFF = 3, 4

Make = Callable[[], Checkpointer]


# --- What runs ----------------------------------------------------------------------------------------------


def note(*words: object) -> None:
    """One line, in one write, to the end of the effects file."""
    fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


@task
def step(run: str, number: int, seconds: float) -> int:
    # What a step is given is the same in every life; the environment says in which of them it dies.
    if os.environ.get("DIES") == run and number == STEPS // 2:
        os.kill(os.getpid(), signal.SIGKILL)
    note(run, number)
    time.sleep(seconds)
    return number


@entrypoint()
def flow(asked: dict[str, object]) -> int:
    run, seconds = str(asked["run"]), float(str(asked["seconds"]))
    return sum(step(run, number, seconds).result() for number in range(STEPS))


# --- Stores -------------------------------------------------------------------------------------------------


@contextmanager
def makers(name: str, folder: Path) -> Iterator[Make]:
    """Makes objects on one store, which is gone afterwards."""
    if name == "sqlite":
        yield lambda: SqliteSaver(folder / "runs.db", lease=LEASE, timeout=5.0)
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    from postgres import address, fresh_schema  # noqa: PLC0415 - starts a server if there is none

    from weft.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - needs psycopg

    server = address()  # started here, and not in each of the children
    with fresh_schema() as schema:
        yield lambda: PostgresSaver(server, schema=schema, lease=LEASE, timeout=20.0)


def audit(store: Checkpointer, run: str, effects: Counter[str], again: int) -> list[str]:
    """What is wrong with a run that should be finished, and of which ``again`` steps may have run twice."""
    row = store.find(run)
    if row is None or row.status is not RunStatus.FINISHED:
        return [f"{run} is not finished: {row and row.status}"]
    wrong = []
    if row.output is None or store.codec.decode(row.output) != sum(range(STEPS)):
        wrong.append(f"{run}: its output is {row.output!r}")
    recorded = Counter(line.identity for line in all_records(store, run) if line.kind is RecordKind.OK)
    doubled = [identity.hex() for identity, count in recorded.items() if count > 1]
    if doubled:
        wrong.append(f"{run}: recorded twice: {doubled}")
    counts = [effects[f"{run} {number}"] for number in range(STEPS)]
    if min(counts) < 1 or sum(counts) > STEPS + again:
        wrong.append(f"{run}: its steps ran {counts} times")
    return wrong


def effects() -> Counter[str]:
    path = Path(os.environ["EFFECTS"])
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


# --- Processes ----------------------------------------------------------------------------------------------


def forked(work: Callable[[], None]) -> int:
    """Do something in a child; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        os.write(2, f"child: {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


class Racer:
    """A process that resumes the runs that it is told to, and says what came of it."""

    def __init__(self, make: Make, others: list[Racer]) -> None:
        asked, self._ask = os.pipe()
        self._answer, answers = os.pipe()
        inherited = [fd for other in others for fd in (other._ask, other._answer)]

        def live() -> None:
            for fd in (self._ask, self._answer, *inherited):
                os.close(fd)
            store = make()
            with os.fdopen(asked) as lines:
                for line in lines:
                    os.write(answers, f"{self.resume(store, line.strip())}\n".encode())
            store.close()

        self.pid = forked(live)
        os.close(asked)
        os.close(answers)
        self._said = os.fdopen(self._answer)

    @staticmethod
    def resume(store: Checkpointer, run: str) -> str:
        try:
            return str(flow.invoke(None, run_id=run, checkpointer=store))
        except (RunBusyError, OwnerLostError) as error:
            return type(error).__name__

    def ask(self, run: str) -> None:
        os.write(self._ask, f"{run}\n".encode())

    def answer(self) -> str:
        return self._said.readline().strip()

    def end(self) -> int:
        os.close(self._ask)
        self._said.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def begin_and_die(make: Make, run: str) -> None:
    """A process begins a run, and dies in its middle."""

    def life() -> None:
        os.environ["DIES"] = run
        flow.invoke({"run": run, "seconds": 0.0}, run_id=run, checkpointer=make())

    status = os.waitpid(forked(life), 0)[1]
    assert os.WTERMSIG(status) == signal.SIGKILL


# --- Races --------------------------------------------------------------------------------------------------


def races(make: Make, count: int, draw: random.Random) -> tuple[int, list[str]]:
    """That many races; how many got "busy" in all, and what was wrong."""
    racers: list[Racer] = []
    for _ in range(RACERS):
        racers.append(Racer(make, racers))
    busy, unnoticed, wrong, won = 0, 0, [], Counter[int]()
    try:
        for number in range(count):
            run = f"r{number}"
            begin_and_die(make, run)
            order = draw.sample(racers, RACERS)
            answers = race(order, run)
            if set(answers) == {"RunBusyError"}:  # a server takes its time to notice that a process has died
                unnoticed += 1
                time.sleep(0.5)
                answers = race(order, run)
            busy += answers.count("RunBusyError")
            won[answers.count(OUTPUT)] += 1
            if set(answers) - {OUTPUT, "RunBusyError"} or OUTPUT not in answers:
                wrong.append(f"{run}: the racers got {answers}")
    finally:
        ends = [racer.end() for racer in racers]
    wrong += [f"a racer ended with {status}" for status in ends if status]
    store, done = make(), effects()
    for number in range(count):
        wrong += audit(store, f"r{number}", done, again=0)
    store.close()
    print(
        f"how many got the output: {dict(sorted(won.items()))}; {unnoticed} deaths noticed late", flush=True
    )
    return busy, wrong


def race(racers: list[Racer], run: str) -> list[str]:
    """All of them at once; what each got."""
    for racer in racers:
        racer.ask(run)
    return [racer.answer() for racer in racers]


# --- Zombies ------------------------------------------------------------------------------------------------


def zombie(make: Make, run: str, seconds: float) -> tuple[str, list[str]]:
    """Stop the owner of a run after a time, take the run over, wake the owner up; what happened, what was wrong."""

    def life() -> None:
        store = make()
        try:
            flow.invoke({"run": run, "seconds": 0.03}, run_id=run, checkpointer=store)
        except OwnerLostError:
            os._exit(TOLD)
        except StoreError as error:
            os.write(2, f"child: {error}\n".encode())
            os._exit(CUT_OFF)
        finally:
            store.close()

    pid = forked(life)
    time.sleep(seconds)
    os.kill(pid, signal.SIGSTOP)
    store = make()
    lost = (TOLD,) if isinstance(store, SqliteSaver) else (TOLD, CUT_OFF)
    try:
        happened = take_over(store, run, pid)
        if happened == "never begun":
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            is_cut_off = status == CUT_OFF and CUT_OFF in lost
            return happened, [] if is_cut_off else [f"{run}: its owner ended with {status} before it began"]
        before = list(all_records(store, run)), store.find(run)
        os.kill(pid, signal.SIGCONT)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        wrong = audit(store, run, effects(), again=1)
        if happened == "taken over":
            if (list(all_records(store, run)), store.find(run)) != before:
                wrong.append(f"{run}: something was written after it was finished")
            if status not in lost:
                wrong.append(f"{run}: its old owner ended with {status}, and not because it had lost the run")
        elif status:
            wrong.append(f"{run}: its owner ended with {status}, and nobody had taken the run")
    finally:
        store.close()
    return happened, wrong


def take_over(store: Checkpointer, run: str, pid: int) -> str:
    """Go on with a run whose owner is stopped, as soon as that is possible."""
    happened, pause = "taken over", 0.005
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            before = store.find(run)
        except StoreError:  # stopped while it opened the file
            before = None
        if before is None and has_ended(pid):
            return "never begun"
        if before is None:  # or before it had begun
            pause *= 1.2
            nudge(pid, pause)
            continue
        if before.status is RunStatus.FINISHED:
            return "finished before"
        try:
            flow.invoke(None, run_id=run, checkpointer=store)
        except RunBusyError as error:
            time.sleep(vars(error)["retry_after"] + 0.001)
        except StoreError:  # SQLite: stopped in the middle of a commit, it keeps the file locked
            nudge(pid, 0.005)
        else:
            return happened
    raise AssertionError(f"{run} could not be taken over in 60 s")


def has_ended(pid: int) -> bool:
    """Whether the process is over; it is still to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def nudge(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGCONT)
    time.sleep(seconds)
    os.kill(pid, signal.SIGSTOP)


def zombies(make: Make, count: int, draw: random.Random) -> tuple[Counter[str], list[str]]:
    """Until that many runs were taken over from the living dead; what happened, and what was wrong."""
    happened, wrong, number = Counter[str](), [], 0
    while happened["taken over"] < count and number < 3 * count + 10:
        what, errors = zombie(make, f"z{number}", draw.uniform(0.005, 0.18))
        happened[what] += 1
        wrong += errors
        number += 1
    return happened, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["races", "zombies"])
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--store", choices=["sqlite", "postgres"], action="append", help="default: both")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    bad = 0
    for name in args.store or ["sqlite", "postgres"]:
        with tempfile.TemporaryDirectory() as folder, makers(name, Path(folder)) as make:
            os.environ["EFFECTS"] = str(Path(folder) / "effects")
            began, draw = time.monotonic(), random.Random(args.seed)
            happened, wrong = (races if args.what == "races" else zombies)(make, args.count, draw)
            for line in wrong[:5]:
                print(f"{name}: {line}", flush=True)
            bad += len(wrong)
            seconds = time.monotonic() - began
            shown = f"{happened} busy" if args.what == "races" else dict(happened)
            print(
                f"{name}: {args.count} {args.what} in {seconds:.1f} s: {shown}, {len(wrong)} violations",
                flush=True,
            )
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
