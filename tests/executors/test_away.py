"""What the engine promises holds for bodies that run in other processes."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import harmful
import noting
import pytest
from harmful import nothing_is_left, runs, until
from killing import Program, kill_at_effect
from noting import noted
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import weft
from weft import (
    InMemorySaver,
    InMemoryStore,
    Limit,
    NodeTimeoutError,
    NotInRunError,
    ProcessExecutor,
    RetryPolicy,
    SqliteSaver,
    TimeoutPolicy,
    UnsendableError,
    WorkerDiedError,
)
from weft.observe.logs import RunIds
from weft.observe.otel import Tracing
from weft.testing import virtual_clock


def far(executor: Any, fn: Any, **options: Any) -> Any:
    return weft.task(executor=executor, **options)(fn)


def kinds(run: Any, call_id: str) -> list[str]:
    return [type(e).__name__ for e in run.events() if getattr(e, "call_id", "") == call_id]


# Time


def test_an_idle_timeout_counts_from_the_last_sign_of_life(processes: ProcessExecutor) -> None:
    def beats(times: int, runtime: weft.Runtime) -> int:
        for _ in range(times):
            time.sleep(0.1)
            runtime.heartbeat()
        harmful.spins_in_native_code()
        return times

    def writes(times: int, writer: weft.StreamWriter) -> None:
        for i in range(times):
            time.sleep(0.1)
            writer(i)
        harmful.spins()

    for body in (beats, writes):
        step = far(processes, body, timeout=TimeoutPolicy(idle_timeout=0.4))
        workflow = weft.entrypoint()(lambda times: step(times).result())
        began = time.monotonic()
        with pytest.raises(NodeTimeoutError) as caught:
            workflow.invoke(8)
        assert time.monotonic() - began > 1.1
        assert caught.value.idle


def test_total_counts_all_attempts(log: str) -> None:
    with ProcessExecutor(1) as executor:
        far(executor, harmful.double).invoke(1)

        def body(log: str) -> None:
            noting.note(log, os.getpid())
            time.sleep(0.15)
            raise ConnectionError("again")

        policy = RetryPolicy(max_attempts=50, initial_interval=0.01)
        step = far(executor, body, total=0.6, retry_policy=policy)
        with pytest.raises((NodeTimeoutError, ConnectionError)):
            step.invoke(log)
        assert 1 <= len(noted(log)) <= 4
        spin = far(executor, harmful.work_for_ever, total=0.2, name="spin")
        with pytest.raises(NodeTimeoutError):
            spin.invoke({"how": "native", "log": log})
        assert not runs(int(noted(log)[-1]))


@pytest.mark.parametrize("of", ["run", "block", "parent"])
def test_who_is_above_it_is_out_of_time(of: str, log: str) -> None:
    """A time that has passed leaves no grace."""
    with nothing_is_left(), ProcessExecutor(2) as executor:
        far(executor, harmful.double).invoke(1)
        body = weft.node("body", executor=executor)(lambda log: harmful.work_for_ever("ignoring", log))
        began = time.monotonic()
        with pytest.raises((TimeoutError, NodeTimeoutError)):
            if of == "run":
                weft.Sequence(body).invoke(log, timeout=0.5)
            elif of == "block":
                weft.parallel(body, timeout=0.5).invoke(log)
            else:
                inner = far(executor, harmful.work_for_ever)

                @weft.task(timeout=0.5)
                async def parent(log: str) -> None:
                    await inner("native", log)

                parent.invoke(log)
        assert not any(runs(int(pid)) for pid in noted(log))
        assert time.monotonic() - began < 5


def test_a_sibling_that_fails_ends_it_after_its_grace(processes: ProcessExecutor, log: str) -> None:
    spin = weft.node("spin", executor=processes)(lambda log: harmful.work_for_ever("ignoring", log))

    @weft.node("fail")
    def fail(log: str) -> None:
        until(lambda: noted(log))
        raise ValueError("now")

    with pytest.raises(weft.ParallelExecutionError, match="now"):
        weft.parallel(spin, fail).invoke(log)
    assert not runs(int(noted(log)[0]))


def test_under_a_virtual_clock_time_stands_still_while_a_process_works(processes: ProcessExecutor) -> None:
    def body(x: int) -> int:
        time.sleep(0.1)
        return x

    step = far(processes, body, timeout=1)

    @weft.entrypoint()
    async def workflow(_: None) -> list[int]:
        found = [await step(1)]
        await asyncio.sleep(100)
        return found + list(await asyncio.gather(*[step(x) for x in range(4)]))

    with virtual_clock() as clock:
        assert workflow.invoke(None) == [1, 0, 1, 2, 3]
        assert clock.now == 100
        assert not clock.complaints


def test_under_a_virtual_clock_a_failure_ends_it(processes: ProcessExecutor, log: str) -> None:
    step = far(processes, harmful.work_for_ever)

    @weft.entrypoint()
    async def workflow(_: None) -> None:
        step("native", log)
        while not noted(log):
            time.sleep(0.01)
            await asyncio.sleep(0)
        raise KeyError("now")

    with virtual_clock() as clock:
        with pytest.raises(KeyError):
            workflow.invoke(None)
        assert not clock.complaints
    until(lambda: not runs(int(noted(log)[0])))  # virtual time may run out before it is gone


# Policies


def test_retries_and_collected_errors(processes: ProcessExecutor, log: str) -> None:
    def body(x: int) -> int:
        noting.note(log, x)
        if noting.noted(log).count(str(x)) < 3:
            raise ConnectionError(x)
        return x

    step = far(processes, body, retry_policy=RetryPolicy(max_attempts=3, initial_interval=0))
    assert weft.map(step).invoke(range(10)) == list(range(10))
    assert set(Counter(noted(log)).values()) == {3}

    def sometimes(x: int) -> int:
        if x % 3 == 0:
            harmful.is_killed()
        if x % 3 == 1:
            raise ValueError(x)
        return x

    found = weft.map(far(processes, sometimes), on_error="collect").invoke(range(12))
    for x, outcome in enumerate(found):
        if x % 3 == 2:
            assert outcome.value == x
        else:
            assert isinstance(outcome.error, WorkerDiedError if x % 3 == 0 else ValueError)


def test_a_limit_counts_bodies_elsewhere(log: str) -> None:
    def body(log: str) -> None:
        noting.note(log, "+")
        time.sleep(0.02)
        noting.note(log, "-")

    with ProcessExecutor(4) as executor:
        weft.map(far(executor, body, limit=Limit("one", concurrent=1))).invoke([log] * 10)
    assert noted(log) == ["+", "-"] * 10


def test_it_is_refused_before_it_is_sent(processes: ProcessExecutor) -> None:
    run = far(processes, harmful.double).submit(open)  # noqa: SIM115
    with pytest.raises(TypeError):
        run.result()
    step = far(processes, harmful.double, retry_policy=RetryPolicy(max_attempts=3, initial_interval=0))
    run = step.submit({"x": _Refusing()})
    with pytest.raises(UnsendableError, match="the argument x"):
        run.result()
    assert len([e for e in run.events() if type(e).__name__ == "CallStarted"]) == 1, (
        "another attempt is no use"
    )


class _Refusing:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


# What a body may ask


def test_what_stays_with_the_workflow_says_so(processes: ProcessExecutor) -> None:
    def attempts(_: None) -> dict[str, str]:
        found = {}
        asked: dict[str, Any] = {
            "task": lambda: weft.task(lambda x: x)(1),
            "interrupt": lambda: weft.interrupt("?"),
            "config": weft.get_config,
            "store": weft.get_store,
            "runtime": weft.get_runtime,
        }
        for name, ask in asked.items():
            try:
                ask()
            except NotInRunError as error:
                found[name] = str(error)
        return found

    step = far(processes, attempts)

    @weft.entrypoint(checkpointer=InMemorySaver())
    def workflow(_: None) -> Any:
        return step(None).result()

    found = workflow.invoke(0, run_id="r")
    assert set(found) == {"task", "interrupt", "config", "store", "runtime"}
    assert all("an executor runs this body in another one" in text for text in found.values())


def test_what_is_injected(processes: ProcessExecutor) -> None:
    def body(x: int, config: weft.RunnableConfig, runtime: weft.Runtime, writer: weft.StreamWriter) -> Any:
        writer("w")
        weft.get_stream_writer()("g")
        runtime.stream_writer("r")
        runtime.heartbeat()
        try:
            runtime.store.get(("a",), "b")
            store = "used"
        except NotInRunError as error:
            store = str(error)
        return config["configurable"]["user"], runtime.context, runtime.run_id, runtime.previous, store

    step = far(processes, body)

    @weft.entrypoint(checkpointer=InMemorySaver(), store=InMemoryStore())
    def workflow(x: int) -> Any:
        return step(x).result()

    run = workflow.submit(
        1, config={"configurable": {"user": "u"}}, context={"c": 1}, run_id="r", thread_id="t"
    )
    user, context, run_id, previous, store = run.result()
    assert (user, context, run_id, previous) == ("u", {"c": 1}, "r", None)
    assert "runtime.store stays in the process of the workflow" in store
    assert [e.value for e in run.events() if type(e).__name__ == "UserEvent"] == ["w", "g", "r"]


def test_a_store_as_a_parameter_is_refused(processes: ProcessExecutor) -> None:
    def body(x: int, store: weft.BaseStore) -> None:
        store.put(("a",), "b", {})

    step = far(processes, body)

    @weft.entrypoint(store=InMemoryStore())
    def workflow(x: int) -> Any:
        return step(x).result()

    with pytest.raises((UnsendableError, NotInRunError), match="store"):
        workflow.invoke(1)


def test_a_reader_that_is_slow_holds_up_a_body_that_writes_much(processes: ProcessExecutor, log: str) -> None:
    def body(log: str, writer: weft.StreamWriter) -> None:
        for i in range(20_000):
            writer("x" * 100)
            if i % 1000 == 0:
                noting.note(log, i)

    step = far(processes, body)

    @weft.entrypoint()
    async def workflow(log: str) -> None:
        await step(log)

    stream = workflow.stream(log, stream_mode="custom")
    next(stream)
    time.sleep(0.5)
    assert 0 < len(noted(log)) < 20, "it waits"
    assert sum(1 for _ in stream) == 19_999


def test_log_records_say_whose_they_are(processes: ProcessExecutor, log: str) -> None:
    class Kept(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.addFilter(RunIds())
            self.records: list[logging.LogRecord] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.records.append(record)

    def body(x: int) -> str:
        logger = logging.getLogger("away.body")
        logger.debug("hidden")
        logger.info("from %s", x, extra={"lock": threading.Lock(), "colour": "red"})
        logging.getLogger("away.quiet").info("hidden")
        try:
            raise ValueError("shown")
        except ValueError:
            logger.exception("failed")
        thread = threading.Thread(target=logger.warning, args=("from a thread",))
        thread.start()
        thread.join()
        logger.warning("%d", "no number")
        if weft.cancelled() or noting.noted(log) == []:
            noting.note(log, "x")
            raise ConnectionError
        return weft.call_id()

    kept, root = Kept(), logging.getLogger()
    levels = {name: logging.getLogger(name) for name in ("away", "away.quiet")}
    levels["away"].setLevel(logging.INFO)
    levels["away.quiet"].setLevel(logging.ERROR)
    root.addHandler(kept)
    try:
        step = far(processes, body, retry_policy=RetryPolicy(max_attempts=2, initial_interval=0))

        @weft.entrypoint(checkpointer=InMemorySaver())
        def workflow(x: int) -> Any:
            return step(x).result()

        call_id = workflow.invoke(7, run_id="r")
    finally:
        root.removeHandler(kept)
        for logger in levels.values():
            logger.setLevel(logging.NOTSET)
    ours = [r for r in kept.records if r.name == "away.body"]
    expected = ["from 7", "failed", "from a thread"]
    assert [r.getMessage() for r in ours if "arguments do not fit" not in r.getMessage()] == expected * 2
    assert len(ours) == 8
    assert {(r.run_id, r.call_id, r.step) for r in ours} == {("r", call_id, "body")}  # type: ignore[attr-defined]
    assert [r.attempt for r in ours] == [1] * 4 + [2] * 4  # type: ignore[attr-defined]
    assert "ValueError: shown" in logging.Formatter().format(ours[1])
    assert {r.process for r in ours} != {os.getpid()}


def test_the_span_of_a_call_is_the_parent_of_those_in_its_body(processes: ProcessExecutor, log: str) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def body(fails: bool) -> Any:
        context = trace.get_current_span().get_span_context()
        noting.note(log, f"{context.trace_id:x}-{context.span_id:x}")
        if fails and len(noting.noted(log)) == 1:
            raise ConnectionError
        return context.trace_id, context.span_id

    plain = far(processes, body, name="plain")
    retried = far(
        processes, body, name="retried", retry_policy=RetryPolicy(max_attempts=2, initial_interval=0)
    )

    @weft.entrypoint()
    def workflow(_: None) -> Any:
        return retried(True).result(), plain(False).result()

    found = workflow.invoke(None, observers=[Tracing(provider)])
    seen = noted(log)
    spans = {}
    for span in exporter.get_finished_spans():
        spans.setdefault(span.name, []).append(span.get_span_context())
    assert [(c.trace_id, c.span_id) for c in spans["plain"]] == [found[1]]
    attempts = [f"{c.trace_id:x}-{c.span_id:x}" for c in spans["retried attempt"]]
    assert sorted(attempts) == sorted(seen[:2])


def test_its_events_are_those_of_any_call(processes: ProcessExecutor) -> None:
    def body(x: int, writer: weft.StreamWriter) -> str:
        for i in range(3):
            writer(i)
        return weft.call_id()

    step = far(processes, body)
    run = weft.entrypoint()(lambda x: step(x).result()).submit(1)
    call_id = run.result()
    assert kinds(run, call_id)[-5:] == ["CallStarted", "UserEvent", "UserEvent", "UserEvent", "CallFinished"]


# What is recorded

JOURNALED = """
    import os, sys, time
    sys.path.insert(0, {here!r})
    import harmful, noting, weft

    db, log = sys.argv[1:3]

    @weft.task(executor=weft.ProcessExecutor(2))
    def work(x):
        time.sleep(0.01)
        noting.note(os.environ["EFFECTS"], x)
        noting.note(log, f"{{x}}={{weft.call_id()}}")
        return x * x

    @weft.entrypoint()
    def workflow(n):
        calls = [work(x) for x in range(n)]
        return [call.result() for call in calls]

    with weft.SqliteSaver(db) as saver:
        print(workflow.invoke(40, checkpointer=saver, run_id="r"))
"""


def test_a_killed_workflow_goes_on_where_it_was(tmp_path: Path, db: str, log: str) -> None:
    program = Program(tmp_path, JOURNALED.format(here=str(Path(harmful.__file__).parent)))
    for seen in (5, 15, 30):
        process = program.start(db, log)
        assert kill_at_effect(process, program.effects_path, seen)
    result = program.run(db, log)
    assert result.stdout.strip() == str([x * x for x in range(40)]), result.stderr
    often = program.effects()
    assert set(often) == set(map(str, range(40)))
    # At each kill two bodies were at work, and as many results may have been on their way to the journal.
    assert sum(often.values()) - 40 <= 3 * 6
    ids = dict(line.split("=") for line in noted(log))
    assert all(ids[line.split("=")[0]] == line.split("=")[1] for line in noted(log)), (
        "the same on every resume"
    )


def test_what_was_recorded_does_not_run_again(processes: ProcessExecutor, db: str, log: str) -> None:
    step = far(processes, harmful.counted)
    failing = [True]

    @weft.entrypoint()
    def workflow(_: None) -> list[int]:
        found = [step(log, x).result() for x in range(5)]
        if failing:
            raise KeyError("later")
        return found

    with SqliteSaver(db) as saver:
        with pytest.raises(KeyError):
            workflow.invoke(0, checkpointer=saver, run_id="r")
        failing.clear()
        assert workflow.invoke(0, checkpointer=saver, run_id="r") == [0, 1, 4, 9, 16]
    assert noted(log) == list("01234")


def test_questions_are_asked_while_a_process_works(processes: ProcessExecutor, log: str) -> None:
    step = far(processes, harmful.counted)

    @weft.entrypoint(checkpointer=InMemorySaver())
    async def workflow(_: None) -> Any:
        calls = [step(log, x, 0.05) for x in range(4)]

        return [await call for call in calls], weft.interrupt("well?")

    asked = workflow.invoke(0, thread_id="t")
    assert asked["__interrupt__"][0].value == "well?"
    assert workflow.invoke(weft.Command(resume="yes"), thread_id="t") == ([0, 1, 4, 9], "yes")
    assert sorted(noted(log)) == list("0123")
