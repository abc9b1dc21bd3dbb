"""Bodies in processes: what they give, and that what ends one of them ends its own call alone."""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import harmful
import noting
import psutil
import pytest
import things
from harmful import nothing_is_left, runs, until
from killing import Program
from noting import noted

import weft
from weft import (
    DefinitionError,
    ExecutorError,
    NodeTimeoutError,
    ProcessExecutor,
    UsageError,
    WorkerDiedError,
)
from weft.executors import process as process_module
from weft.executors.base import Body, Ticket

request_id: ContextVar[str] = ContextVar("request_id")


def far(executor: Any, fn: Any, **options: Any) -> Any:
    return weft.task(executor=executor, **options)(fn)


# What ends a process


@pytest.mark.parametrize("how", sorted(harmful.ENDINGS))
def test_what_ends_a_process_ends_one_call(how: str, log: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Those before, beside and after it on the same executor are right, and each is run once."""
    with nothing_is_left(), ProcessExecutor(2) as executor:
        counted, end = far(executor, harmful.counted), far(executor, harmful.end_by)

        @weft.entrypoint()
        def workflow(_: None) -> tuple[list[int], list[BaseException | None]]:
            calls, bad = [], []
            for x in range(90):
                calls.append(counted(log, x))
                if x % 30 == 15:
                    bad.append(end(how))
            return [call.result() for call in calls], [call.exception() for call in bad]

        values, errors = workflow.invoke(None)
        assert values == [x * x for x in range(90)]
        assert Counter(noted(log)) == Counter(map(str, range(90)))
        assert len(errors) == 3
        for error in errors:
            assert isinstance(error, WorkerDiedError), error
            assert harmful.ENDINGS[how][1] in str(error)
            assert "while the body ran in it" in str(error)
        capfd.readouterr()


def test_a_crash_in_the_middle_of_a_chunk(log: str) -> None:
    """Bodies of one step are given to a worker several at a time: only the one that crashes fails."""
    with ProcessExecutor(1) as executor:

        def body(x: int) -> int:
            noting.note(log, x)
            if x in crashing:
                harmful.is_killed()
            return x * x

        crashing: set[int] = set()
        warm = far(executor, body, name="body")
        weft.map(warm).invoke(range(1000, 1030))  # how long they take is known now
        crashing |= {5, 77, 78, 150}
        step = far(executor, body, name="body")
        found = weft.map(step, on_error="collect").invoke(range(200))
    for x, outcome in enumerate(found):
        if x in crashing:
            assert isinstance(outcome.error, WorkerDiedError)
        else:
            assert outcome.value == x * x
    assert Counter(noted(log))["77"] == 1
    assert Counter(noted(log)) == Counter(map(str, [*range(1000, 1030), *range(200)]))


def test_memory_that_is_not_allowed_is_an_error_of_the_body(log: str) -> None:
    with ProcessExecutor(1, memory="300MB") as executor:

        def greedy(size: int) -> int:
            kept = bytearray(size)
            return len(kept) + os.getpid() * 0

        step = far(executor, greedy)
        before = far(executor, harmful.pid).invoke(None)
        assert step.invoke(50_000_000) == 50_000_000
        with pytest.raises(MemoryError):
            step.invoke(600_000_000)

        def creeping(_: None) -> None:
            kept = []
            while True:
                kept.append(bytearray(1_000_000))

        with pytest.raises(MemoryError):
            far(executor, creeping).invoke(None)
        assert far(executor, harmful.pid).invoke(None) == before, "the process lives on"


def test_an_idle_worker_that_is_killed_is_replaced(log: str) -> None:
    with ProcessExecutor(1) as executor:
        pid = far(executor, harmful.pid)
        seen = set()
        for _ in range(4):
            found = pid.invoke(None)
            assert found not in seen
            seen.add(found)
            os.kill(found, signal.SIGKILL)
            if len(seen) % 2:  # also where nobody has seen yet that it is dead
                until(lambda: not runs(found))


def test_a_worker_is_killed_from_outside_in_the_middle(log: str) -> None:
    with ProcessExecutor(2) as executor:
        counted, pid = far(executor, harmful.counted), far(executor, harmful.pid)

        @weft.entrypoint()
        def workflow(_: None) -> list[Any]:
            victim = pid(None).result()
            calls = [counted(log, x, 0.002) for x in range(300)]
            until(lambda: len(noted(log)) > 30)
            os.kill(victim, signal.SIGKILL)
            return [call.exception() or call.result() for call in calls]

        found = workflow.invoke(None)
    failed = [x for x, value in enumerate(found) if isinstance(value, WorkerDiedError)]
    assert len(failed) <= 1, "the one at work"
    assert all(found[x] == x * x for x in range(300) if x not in failed)
    often = Counter(noted(log))
    assert all(often[str(x)] == 1 for x in range(300) if x not in failed)


def test_a_fork_of_a_body_is_outside_of_its_call(processes: ProcessExecutor, log: str) -> None:
    """It comes to the end of the body too, and must not say so; nor do records and writes of it reach the run."""

    def body(log: str) -> str:

        child = harmful.fork()
        who = "parent" if child else "child"
        logging.getLogger("forks").warning(who)
        try:
            weft.call_id()
            inside = "in"
        except weft.NotInRunError:
            inside = "out"
        noting.note(log, f"{who}-{inside}")
        if child:
            assert os.waitpid(child, 0)[1] == 0
        return who

    for _ in range(5):
        assert far(processes, body).invoke(log) == "parent"
    assert sorted(noted(log)) == ["child-out"] * 5 + ["parent-in"] * 5


def test_a_body_may_use_processes_of_its_own(processes: ProcessExecutor) -> None:
    def body(n: int) -> list[int]:

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, range(-n, 0))

    assert far(processes, body).invoke(4) == [4, 3, 2, 1]


def test_a_body_may_run_a_workflow_of_its_own(processes: ProcessExecutor) -> None:
    def body(n: int) -> list[int]:
        inner = weft.task(executor="process")(harmful.double)
        return weft.map(inner).invoke(range(n))

    assert far(processes, body).invoke(3) == [0, 2, 4]


# What never ends


@pytest.mark.parametrize("how", sorted(harmful.ENDLESS))
def test_a_timeout_frees_the_core(how: str, log: str) -> None:
    with ProcessExecutor(1) as executor:
        double = far(executor, harmful.double)
        double.invoke(1)  # so that the process is there
        step = far(executor, harmful.work_for_ever, timeout=0.1)

        @weft.entrypoint()
        def workflow(_: None) -> BaseException | None:
            call = step(how, log)
            until(lambda: noted(log))
            began = time.monotonic()
            error = call.exception()
            assert not runs(int(noted(log)[0])), "when the call has ended, so has the process"
            assert time.monotonic() - began < 1.5
            return error

        error = workflow.invoke(None)
        assert isinstance(error, NodeTimeoutError)
        assert not error.given_up
        assert double.invoke(4) == 8


def test_what_waits_for_a_process_is_not_out_of_time() -> None:
    with ProcessExecutor(1) as executor:
        step = far(executor, harmful.pid_after, timeout=0.5)
        step.invoke(0.0)
        assert len(set(weft.map(step).invoke([0.15] * 6))) == 1


def test_what_has_to_be_imported_is_not_out_of_time(log: str) -> None:
    """Or a body that needs much would never come to an end: each attempt is in a new process."""
    with ProcessExecutor(1) as executor:
        step = far(executor, lambda slow: slow, name="body", timeout=0.3)
        step.invoke(1)
        assert step.invoke(things.Slow(0.6)) == 0.6

        async def main() -> None:
            run = step.submit(things.Slow(600))
            await asyncio.sleep(0.1)
            run.cancel()
            with pytest.raises((asyncio.CancelledError, weft.RunCancelledError)):
                await run

        asyncio.run(main())
        assert step.invoke(2) == 2, "its process is ended if it does not answer"


def test_remaining_counts_the_time_for_which_it_waited() -> None:
    with ProcessExecutor(1) as executor:

        def left(seconds: float) -> Any:
            found = weft.remaining()
            time.sleep(seconds)
            return found

        plain, limited = far(executor, left, name="plain"), far(executor, left, name="limited", timeout=3)
        assert plain.invoke(0.0) is None
        assert 2 < limited.invoke(0.0) <= 3

        @weft.entrypoint()
        def workflow(_: None) -> list[float]:
            calls = [plain(0.2), far(executor, left, name="other")(0.0), limited(0.0)]
            return [call.result() for call in calls]

        first, second, third = workflow.invoke(None, timeout=30)
        assert 25 < first <= 30
        assert second <= first - 0.19
        assert third <= 3


def test_a_body_that_takes_long_does_not_hold_up_others(log: str) -> None:
    """Bodies of its step were short, so several were given to one process; one of them waits for the others."""
    with ProcessExecutor(2) as executor:

        def body(x: int) -> int:
            if x == 30:
                harmful.until(lambda: len(noting.noted(log)) == 60)
            elif x < 1000:
                noting.note(log, x)
            return x

        step = far(executor, body)
        weft.map(step).invoke(range(1000, 1100))
        assert weft.map(step).invoke(range(61)) == list(range(61))
    assert Counter(noted(log)) == Counter(str(x) for x in range(61) if x != 30)


# Being cancelled


async def cancelled_when(run: Any, check: Any) -> None:
    while not check():
        await asyncio.sleep(0.005)
    run.cancel()
    with pytest.raises((asyncio.CancelledError, weft.RunCancelledError)):
        await run


@pytest.mark.parametrize("how", ["spin", "native"])
def test_a_cancelled_run_ends_its_bodies(how: str, log: str) -> None:
    with nothing_is_left(), ProcessExecutor(2) as executor:
        step = far(executor, harmful.work_for_ever)

        @weft.entrypoint()
        async def workflow(_: None) -> None:
            await asyncio.gather(*[step(how, log) for _ in range(6)])

        run: Any = None

        async def main() -> float:
            nonlocal run
            run = workflow.submit(None)
            await cancelled_when(run, lambda: len(noted(log)) == 2)
            return 0.0

        asyncio.run(main())
        assert len(noted(log)) == 2, "who has not begun never does"
        assert not any(runs(int(pid)) for pid in noted(log))
        assert run.given_up == []


def test_a_body_sees_that_nobody_waits_and_has_its_grace(processes: ProcessExecutor, log: str) -> None:
    def body(log: str) -> str:
        noting.note(log, "began")
        harmful.until(weft.cancelled)
        noting.note(log, "told")
        return "dropped"

    step = far(processes, body)
    pid = far(processes, harmful.pid)

    @weft.entrypoint()
    async def workflow(_: None) -> None:
        await step(log)

    before = set(weft.map(pid).invoke(range(20)))
    asyncio.run(_main(workflow, log))
    assert noted(log) == ["began", "told"]
    after = set(weft.map(pid).invoke(range(20)))
    assert before & after, "who ends in time is not killed"


def test_one_that_is_told_in_the_moment_in_which_it_begins() -> None:
    """Either it never begins, or its process is ended: it is not left at work with nobody who waits for it."""

    class Deaf:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    with ProcessExecutor(1) as executor:
        double = far(executor, harmful.double)
        for i in range(40):
            assert double.invoke(i) == 2 * i
            job = executor.begin(Body(harmful.spins, (), {}, Ticket("id", "spins")), Deaf())
            if i % 2:
                until(lambda: job.is_sent)
            job.kill()


async def _main(workflow: Any, log: str) -> None:
    await cancelled_when(workflow.submit(None), lambda: noted(log))


def test_cancelling_a_thousand_that_wait_is_quick(log: str) -> None:
    with ProcessExecutor(1) as executor:
        step = far(executor, harmful.work_for_ever)

        @weft.entrypoint()
        async def workflow(_: None) -> None:
            await asyncio.gather(*[step("native", log) for _ in range(3000)])

        async def main() -> float:
            run = workflow.submit(None)
            while not noted(log):
                await asyncio.sleep(0.005)
            began = time.process_time()
            run.cancel()
            with pytest.raises((asyncio.CancelledError, weft.RunCancelledError)):
                await run
            return time.process_time() - began

        assert asyncio.run(main()) < 5
    assert len(noted(log)) == 1


def test_one_that_fails_ends_its_siblings_also_in_one_chunk(log: str) -> None:
    """A native loop holds the interpreter of its process: it is ended, and what was given to it with it never began."""
    with ProcessExecutor(1) as executor:

        def body(x: int) -> int:
            if x < 1000:
                noting.note(log, x)
                harmful.spins_in_native_code()
            return x

        step = far(executor, body)
        weft.map(step).invoke(range(1000, 1100))

        @weft.entrypoint()
        async def workflow(_: None) -> None:
            for x in range(50):
                step(x)
            while not noted(log):
                await asyncio.sleep(0.005)
            raise KeyError("now")

        with pytest.raises(KeyError):
            workflow.invoke(None)
        assert len(noted(log)) == 1
        assert step.invoke(2000) == 2000


# How many, and for how long


def test_never_more_than_max_workers(log: str) -> None:
    def body(log: str) -> int:
        noting.note(log, f"+{os.getpid()}")
        time.sleep(0.02)
        noting.note(log, f"-{os.getpid()}")
        return os.getpid()

    with ProcessExecutor(3) as executor:
        step = far(executor, body)
        assert len(set(weft.map(step).invoke([log] * 40))) == 3
        assert len(executor._workers) == 3
    now, most = 0, 0
    for line in noted(log):
        now += 1 if line[0] == "+" else -1
        most = max(most, now)
    assert most == 3


def test_two_that_come_at_once_do_not_share_one_worker(log: str) -> None:
    """A worker that was woken for the one still counts as idle when the other comes."""

    def body(both: int) -> int:
        noting.note(log, os.getpid())
        harmful.until(lambda: len(set(noting.noted(log))) == both)
        return both

    with ProcessExecutor(2) as executor:
        far(executor, harmful.double).invoke(1)  # one is there and waits
        assert len(executor._workers) == 1
        assert weft.map(far(executor, body)).invoke([2, 2]) == [2, 2]


def test_workers_without_work_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_KEEP", 0.05)
    with nothing_is_left():
        executor = ProcessExecutor(2)
        pid = far(executor, harmful.pid)
        first = pid.invoke(None)
        until(lambda: not executor._workers)
        assert not runs(first)
        assert pid.invoke(None) != first
        until(lambda: not executor._workers)


def test_what_bodies_leave_to_the_end_of_their_process_is_done(log: str) -> None:
    def body(log: str) -> None:

        atexit.register(noting.note, log, "left")

    for _ in range(3):  # there is a second for it, which a busy machine may not give
        with ProcessExecutor(1) as executor:
            far(executor, body).invoke(log)
        if noted(log):
            break
    assert noted(log) == ["left"]


def test_closing_ends_what_is_at_work_and_what_waits(log: str) -> None:
    with nothing_is_left():
        executor = ProcessExecutor(1)
        step = far(executor, harmful.work_for_ever)

        @weft.entrypoint()
        def workflow(_: None) -> list[BaseException | None]:
            calls = [step("native", log) for _ in range(3)]
            until(lambda: noted(log))
            executor.close()
            return [call.exception() for call in calls]

        errors = workflow.invoke(None)
        assert all(type(error) is ExecutorError and "closed" in str(error) for error in errors)
        executor.close()
        with pytest.raises(UsageError, match="is closed"):
            step.invoke({"how": "spin", "log": log})


def test_two_executors_at_once_and_many_threads() -> None:
    with ProcessExecutor(1) as one, ProcessExecutor(1) as other, ThreadPoolExecutor(6) as threads:
        steps = [far(one, harmful.pid, name="one"), far(other, harmful.pid, name="other")]

        def work(i: int) -> int:
            if i % 3:
                return steps[i % 2].invoke(None)
            return asyncio.run(steps[i % 2].ainvoke(None))

        found = list(threads.map(work, range(60)))
        assert len(set(found[::2])) == len(set(found[1::2])) == 1
        assert found[0] != found[1]


def test_it_can_be_sent() -> None:
    carry = [harmful_variable]
    found = pickle.loads(pickle.dumps(ProcessExecutor(3, memory="1GB", carry=carry)))
    assert (found.max_workers, found.memory, list(found.carry)) == (3, 10**9, carry)


harmful_variable: ContextVar[int] = ContextVar("harmful_variable")
harmful.variable = harmful_variable  # type: ignore[attr-defined]  # found there by its name


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "2 PB", "GB", "-1GB", "nan"])
def test_what_can_never_work_is_refused(size: Any) -> None:
    with pytest.raises(DefinitionError):
        ProcessExecutor(memory=size)
    if not isinstance(size, str):
        with pytest.raises(DefinitionError):
            ProcessExecutor(size)


def test_only_variables_are_carried() -> None:
    with pytest.raises(DefinitionError, match="ContextVar"):
        ProcessExecutor(carry=["request_id"])  # type: ignore[list-item]


# Much of it


def test_ten_thousand_small_ones_and_a_large_one(processes: ProcessExecutor) -> None:
    double = far(processes, harmful.double)
    assert weft.map(double).invoke(range(10_000)) == [2 * x for x in range(10_000)]
    large = os.urandom(1 << 20) * 100
    echo = far(processes, lambda data: data, name="echo")
    assert echo.invoke(large) == large


def test_a_body_whose_argument_is_on_its_way_can_be_cancelled() -> None:
    with ProcessExecutor(1) as executor:
        step = far(executor, len, name="long")

        async def main() -> None:
            run = step.submit(b"x" * (50 << 20))
            await asyncio.sleep(0)
            run.cancel()
            with pytest.raises((asyncio.CancelledError, weft.RunCancelledError)):
                await run

        asyncio.run(main())
        assert step.invoke(b"abc") == 3


# The end of the program

PROGRAM = """
    import os, sys, time
    sys.path.insert(0, {here!r})
    import harmful, noting, weft

    executor = weft.ProcessExecutor(2)
    how, log = sys.argv[1:3]

    @weft.task(executor=executor)
    def begin(log, how):
        harmful.starts_another(log, how)

    @weft.entrypoint()
    def workflow(_):
        calls = [begin(log, how) for _ in range(2)]
        return [call.result() for call in calls]

    try:
        workflow.invoke(None)
    finally:
        noting.note(log, "left")
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path, PROGRAM.format(here=str(Path(harmful.__file__).parent)))


def _all_gone(log: str) -> bool:
    return not any(runs(int(pid)) for pid in noted(log) if pid.isdigit())


@pytest.mark.parametrize("how", ["spin", "native", "released"])
def test_the_death_of_the_workflow_ends_workers_and_what_they_started(
    how: str, program: Program, log: str
) -> None:
    process = program.start(how, log)
    until(lambda: len(noted(log)) == 4)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 5
    process.kill()
    process.communicate()
    until(lambda: _all_gone(log) and not any(runs(child.pid) for child in children), 5)


def test_ctrl_c_ends_them_too(program: Program, log: str) -> None:

    process = subprocess.Popen(
        [sys.executable, str(program.path), "native", log], stderr=subprocess.PIPE, start_new_session=True
    )
    until(lambda: len(noted(log)) == 4)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole group
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in err
    assert noted(log)[-1] == "left"
    until(lambda: _all_gone(log), 5)


def test_the_end_of_the_interpreter_leaves_nothing(program: Program, log: str) -> None:
    result = program.run("nothing", log)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(noted(log)) == 5
    until(lambda: _all_gone(log), 5)


def test_a_crashed_body_leaves_nothing_that_it_started(log: str) -> None:
    with ProcessExecutor(1) as executor:
        with pytest.raises(WorkerDiedError):
            far(executor, harmful.starts_another).invoke({"log": log, "how": "kill"})
        until(lambda: len(noted(log)) == 2 and _all_gone(log), 5)


def test_a_fork_of_the_workflow_has_workers_of_its_own(tmp_path: Path, log: str) -> None:
    program = Program(
        tmp_path,
        """
        import os, sys
        sys.path.insert(0, sys.argv[1])
        import harmful, noting, weft

        executor = weft.ProcessExecutor(1)
        pid = weft.task(executor=executor)(harmful.pid)

        first = pid.invoke(None)
        child = harmful.fork()
        if not child:
            with executor:
                assert pid.invoke(None) != first
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert pid.invoke(None) == first, "it has ended the workers of its parent"
        print("well")
        """,
    )
    result = program.run(Path(harmful.__file__).parent)
    assert (result.returncode, result.stdout, result.stderr) == (0, "well\n", "")


def test_a_process_that_the_workflow_has_forked_holds_up_nothing(tmp_path: Path, log: str) -> None:
    """It has all descriptors, so that the end of a pipe or a socket is not seen by itself."""
    program = Program(
        tmp_path,
        """
        import os, signal, sys, time
        sys.path.insert(0, sys.argv[1])
        import harmful, noting, weft

        executor = weft.ProcessExecutor(1)
        pid = weft.task(executor=executor)(harmful.pid)
        pid.invoke(None)
        child = harmful.fork()
        if not child:
            time.sleep(600)
            os._exit(0)
        began = time.monotonic()
        executor.close()
        print(time.monotonic() - began < 1.9)
        if sys.argv[2] == "close":
            os.kill(child, signal.SIGKILL)
            sys.exit()
        spin = weft.task(executor="process")(harmful.work_for_ever)
        noting.note(sys.argv[2], child)
        spin.invoke({"how": "native", "log": sys.argv[2]})
        """,
    )
    here = Path(harmful.__file__).parent
    result = program.run(here, "close")
    assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")
    process = program.start(here, log)
    until(lambda: len(noted(log)) == 2)
    child, worker = map(int, noted(log))
    wardens = [p for p in psutil.Process(process.pid).children() if p.pid not in (child, worker)]
    process.kill()
    process.wait()
    try:
        until(lambda: not runs(worker) and not any(runs(each.pid) for each in wardens), 5)
    finally:
        os.kill(child, signal.SIGKILL)
    process.communicate()


def test_what_a_body_prints_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    program = Program(
        tmp_path,
        """
        import weft

        import os
        import weft

        executor = weft.ProcessExecutor(1)

        @weft.task(executor=executor)
        def say(x):
            print("said", x)

        @weft.task(executor=executor)
        def leave(x):
            os._exit(1)

        say.invoke(1)
        try:
            leave.invoke(2)  # what is printed is not kept until the process ends in order
        except weft.WorkerDiedError:
            pass
        say.invoke(3)
        """,
    )
    assert program.run().stdout == "said 1\nsaid 3\n"


def test_nothing_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with nothing_is_left(), ProcessExecutor(1) as executor:
        with pytest.raises(WorkerDiedError, match="no process could be started"):
            far(executor, harmful.double).invoke(1)


def test_a_worker_that_never_begins(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process_module, "_BOOT", "import sys; sys.exit(5)")
    with nothing_is_left(), ProcessExecutor(1) as executor:
        with pytest.raises(WorkerDiedError, match="code 5 before it began"):
            far(executor, harmful.double).invoke(1)


def test_its_threads_outlive_a_listener_that_fails(processes: ProcessExecutor) -> None:

    class Bad(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("a filter of the application")

    def body(x: int) -> int:
        logging.getLogger("filtered").warning("said")
        return x

    logger, bad = logging.getLogger("filtered"), Bad()
    logger.addFilter(bad)
    try:
        assert far(processes, body).invoke(4) == 4
    finally:
        logger.removeFilter(bad)
    assert threading.active_count()
