"""However a run ends, nothing of it is left but what ``given_up`` lists."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from killing import Program

import weft
from weft import NodeTimeoutError, entrypoint, task
from weft.engine.workers import workers


class Value:
    """Something whose life can be watched."""


started = threading.Semaphore(0)


@task
async def asleep(seconds: float) -> None:
    started.release()
    await asyncio.sleep(seconds)


@task
def patient(seconds: float) -> None:
    """A sync body that looks whether it is still wanted."""
    started.release()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not weft.cancelled():
        time.sleep(0.005)


@task
def stubborn(release: threading.Event) -> None:
    """A sync body that does not."""
    started.release()
    release.wait(10)


before: list[int] = []


@pytest.fixture(autouse=True)
def _count_threads() -> None:
    """Bodies that other tests have left behind are not ours."""
    before[:] = [workers._working]


def busy_threads() -> int:
    return workers._working - before[0]


def check_nothing_is_left() -> None:
    deadline = time.monotonic() + 2
    while busy_threads() > 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert busy_threads() <= 0


async def run_and_look(flow: Any, value: Any, **options: Any) -> tuple[Any, BaseException | None]:
    """The handle of a run and the error that it ended with; nothing of it may be on the loop afterwards."""
    before = asyncio.all_tasks()
    run = flow.submit(value, **options)
    error = None
    try:
        await run
    except BaseException as caught:
        error = caught
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    return run, error


@pytest.mark.parametrize("ending", ["success", "error", "timeout", "cancel"])
def test_nothing_is_left_on_the_loop_or_in_threads(ending: str):
    @task
    async def middle() -> None:
        await asyncio.gather(asleep(5), patient(5))

    @entrypoint()
    async def flow(how: str) -> str:
        if how == "success":
            asleep(0.01)
            patient(0.01)
            return "done"
        middle()
        asleep(5)
        patient(5)
        if how == "error":
            await asyncio.sleep(0.02)
            raise KeyError(how)
        await asyncio.sleep(5)
        return "never"

    async def main() -> None:
        if ending == "cancel":
            before = asyncio.all_tasks()
            running = asyncio.ensure_future(flow.ainvoke(ending))
            await asyncio.sleep(0.05)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before
            return
        options = {"timeout": 0.05} if ending == "timeout" else {}
        run, error = await run_and_look(flow, ending, **options)
        if ending == "timeout":
            assert isinstance(error, NodeTimeoutError)
        else:
            assert run.given_up == []
            assert isinstance(error, KeyError) == (ending == "error")

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 2
    check_nothing_is_left()


def test_a_sync_body_that_cannot_be_stopped_is_given_up_and_listed():
    release = threading.Event()

    @entrypoint()
    async def flow(_: str) -> None:
        stubborn(release)
        await asyncio.sleep(0.02)
        raise KeyError

    async def main() -> None:
        run, error = await run_and_look(flow, "", grace=0.05)
        assert isinstance(error, KeyError)
        assert [body.step for body in run.given_up] == ["stubborn"]

    asyncio.run(main())
    assert busy_threads() <= 1
    release.set()
    check_nothing_is_left()


def test_a_body_that_was_given_up_can_do_nothing_more():
    later: list[BaseException] = []
    go_on = threading.Event()

    @task
    def effect() -> None:
        raise AssertionError("a body that was given up began something")

    @task(timeout=0.05)
    def late() -> None:
        go_on.wait(5)
        try:
            effect()
        except BaseException as error:
            later.append(error)

    @entrypoint()
    def flow(_: str) -> str:
        with pytest.raises(NodeTimeoutError) as caught:
            late().result()
        assert caught.value.given_up
        return "went on"

    began = time.monotonic()
    run = flow.submit("")
    assert run.result() == "went on"
    assert time.monotonic() - began < 1
    assert [body.step for body in run.given_up] == ["late"]
    go_on.set()
    check_nothing_is_left()
    assert len(later) == 1
    assert not isinstance(later[0], Exception)


def test_a_timeout_of_a_blocking_sync_task_returns_on_time():
    release = threading.Event()

    @task(timeout=0.1)
    def blocks() -> None:
        release.wait(10)

    @entrypoint()
    def flow(_: str) -> None:
        blocks().result()

    began = time.monotonic()
    with pytest.raises(NodeTimeoutError):
        flow.invoke("")
    assert 0.1 <= time.monotonic() - began < 0.6
    release.set()
    check_nothing_is_left()


@pytest.mark.parametrize("end", ["ok", "error"])
def test_a_finished_run_keeps_nothing_alive(end: str):
    made: list[weakref.ref[Value]] = []

    @task
    async def make(_: int) -> Value:
        value = Value()
        made.append(weakref.ref(value))
        return value

    @entrypoint()
    async def flow(n: int) -> int:
        values = await asyncio.gather(*[make(i) for i in range(n)])
        if end == "error":
            raise KeyError(len(values))
        return len(values)

    async def main() -> None:
        try:
            await flow.ainvoke(20)
        except KeyError:
            pass
        await asyncio.sleep(0)  # the loop itself holds what it has just called back with
        gc.collect()
        assert [ref for ref in made if ref() is not None] == []

    asyncio.run(main())


INTERRUPTED = """
    import asyncio, os, sys, time
    import weft
    from weft import SqliteSaver, entrypoint, task

    def say(line):
        os.write(1, f"{line}\\n".encode())  # in one piece, whichever thread says it

    @task
    async def on_loop(i):
        try:
            await asyncio.sleep(30)
        finally:
            say("loop body ended")

    @task
    def in_thread(i):
        say("started")
        while not weft.cancelled():
            time.sleep(0.01)
        say("thread body ended")

    options = {"checkpointer": SqliteSaver("runs.db"), "run_id": "r"} if "durable" in sys.argv else {}

    @entrypoint()
    def waits(_):
        a, b = on_loop(1), in_thread(2)
        a.result()

    @entrypoint()
    def works(_):
        a, b = on_loop(1), in_thread(2)
        time.sleep(30)

    @entrypoint()
    async def on_a_loop(_):
        await asyncio.gather(on_loop(1), in_thread(2))

    try:
        if "asyncio" in sys.argv:
            asyncio.run(on_a_loop.ainvoke("", **options))
        else:
            {"waits": waits, "works": works, "portal": on_a_loop}[sys.argv[1]].invoke("", **options)
    except KeyboardInterrupt:
        say("interrupted")
    if options:
        say(options["checkpointer"].find("r").status.value)
"""


@pytest.mark.parametrize("durable", ["", "durable"])
@pytest.mark.parametrize("where", ["waits", "works", "portal", "asyncio"])
def test_ctrl_c_stops_everything_and_is_raised(tmp_path: Path, where: str, durable: str):
    process = Program(tmp_path, INTERRUPTED).start(where, durable)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert lines.count("interrupted") == 1
    assert "thread body ended" in lines
    assert "loop body ended" in lines
    assert lines.index("interrupted") > lines.index(
        "loop body ended"
    )  # it had ended before the error was seen
    if durable:
        assert lines[-1] == "cancelled"
