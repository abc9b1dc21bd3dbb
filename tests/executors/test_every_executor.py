"""What every executor promises: processes of this machine, Dask and Ray."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import far_bodies
import postgres
import pytest
from noting import noted
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import weft
from weft import DaskExecutor, ProcessExecutor, RayExecutor, WorkerDiedError
from weft.observe.otel import Tracing

NAMES = ("process", "dask", "ray")


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    found = pytest.importorskip("ray")
    found.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.CRITICAL,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(far_bodies.__file__).parent)}},
    )
    yield found
    found.shutdown()


@pytest.fixture(params=NAMES)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes an executor of this kind, with the options that all have."""
    made: list[ProcessExecutor] = []

    def make(**options: Any) -> Any:
        if request.param == "process":
            made.append(ProcessExecutor(2, **options))
            return made[-1]
        if request.param == "dask":
            return DaskExecutor(request.getfixturevalue("dask"), **options)
        request.getfixturevalue("ray")
        return RayExecutor(**options)

    yield make
    for each in made:
        each.close()


def test_values_come_back_in_order_from_other_processes(make: Callable[..., Any]) -> None:
    executor = make()
    double = weft.task(executor=executor)(far_bodies.double)
    assert weft.map(double).invoke(range(200)) == [2 * x for x in range(200)]
    assert weft.task(executor=executor)(far_bodies.double_async).invoke(4) == 8
    assert weft.task(executor=executor)(far_bodies.where).invoke(0) != os.getpid()
    assert weft.task(executor=executor, name="closure")(lambda x: x + len(NAMES)).invoke(1) == 4


def test_errors_come_back_as_what_they_are(make: Callable[..., Any]) -> None:
    fail = weft.task(executor=make())(far_bodies.fail)
    with pytest.raises(ValueError, match="plain") as raised:
        fail.invoke("plain")
    assert raised.value.args == ("no", "plain")
    assert "far_bodies.py" in str(raised.value.__cause__), "where it was raised there"
    with pytest.raises((far_bodies.Odd, weft.RemoteError), match="7: it is so"):
        fail.invoke("odd")
    with pytest.raises(SystemExit):
        fail.invoke("exit")


@pytest.mark.parametrize("how", ["segfault", "exit", "kill", "memory"])
def test_a_body_that_ends_its_process_fails_its_own_call_alone(make: Callable[..., Any], how: str) -> None:
    executor = make(memory="1GB")
    die = weft.task(executor=executor, name="die")(far_bodies.die)
    double = weft.task(executor=executor)(far_bodies.double)

    @weft.entrypoint()
    def workflow(_: None) -> tuple[list[int], BaseException | None]:
        futures = [double(x) for x in range(40)]
        dying = die(how)
        futures += [double(x) for x in range(40)]
        return [future.result() for future in futures], dying.exception()

    values, error = workflow.invoke(None)
    assert values == [2 * x for x in range(40)] * 2
    if how == "memory":
        assert isinstance(error, MemoryError)
    else:
        assert isinstance(error, WorkerDiedError)
        assert {"segfault": "SIGSEGV", "exit": "code 3", "kill": "SIGKILL"}[how] in str(error)


def test_a_timeout_frees_the_core_of_a_busy_loop(make: Callable[..., Any], tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    spin = weft.task(executor=make(), timeout=0.3)(far_bodies.spin_for_ever)
    with pytest.raises(weft.NodeTimeoutError, match=r"0\.3 s"):
        spin.invoke(log)
    pid = int(noted(log)[0])
    end = time.monotonic() + 1
    while _runs(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _runs(pid), "the body's process must be gone within a second"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_body_knows_its_call_and_its_records_come_home(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    executor = make(carry=[far_bodies.request_id])
    far = weft.task(executor=executor)(far_bodies.asked_of)
    far_bodies.request_id.set("of this test")

    @weft.entrypoint()
    def workflow(x: int) -> Any:
        return far(x).result()

    with caplog.at_level(logging.WARNING):
        run = workflow.submit(3, timeout=60)
        found = run.result()
    assert found["call_id"] in {
        e.call_id for e in run.events() if type(e).__name__ == "CallStarted" and e.parent_id
    }
    assert 0 < found["remaining"] <= 60
    assert found["cancelled"] is False
    assert found["request_id"] == "of this test"
    assert [r.getMessage() for r in caplog.records if r.name == "far"] == ["asked of 3"]


def test_the_spans_of_a_run_are_the_tree_of_its_calls(make: Callable[..., Any]) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    executor = make()

    @weft.node
    def here(found: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        return {"here": far_bodies.span(), **found}

    branches = [weft.node(name, executor=executor)(far_bodies.span) for name in ("a", "b")]
    workflow = weft.Sequence(weft.parallel(*branches, name="block"), here, name="whole")
    seen = workflow.invoke(None, observers=[Tracing(provider)])

    spans = {found.name: found for found in exporter.get_finished_spans()}
    parents = {name: found.parent and found.parent.span_id for name, found in spans.items()}
    ids = {name: found.context.span_id for name, found in spans.items()}
    assert parents == {
        "whole": None,
        "block": ids["whole"],
        "here": ids["whole"],
        "a": ids["block"],
        "b": ids["block"],
    }
    for name, where in seen.items():
        assert where == (spans[name].context.trace_id, ids[name]), (
            "the span of the call is current in its body"
        )


def test_what_a_body_writes_is_in_the_stream_of_the_run(make: Callable[..., Any]) -> None:
    written = weft.task(executor=make())(far_bodies.written)

    @weft.entrypoint()
    def workflow(x: int) -> int:
        return written(x).result()

    assert list(workflow.stream(5, stream_mode="custom")) == [0, 1, 2, 3, 4]


def test_a_failure_beside_it_ends_a_body(make: Callable[..., Any], tmp_path: Path) -> None:
    """It is told, where somebody can tell it, and has its grace; then its process is ended."""
    executor, log = make(), str(tmp_path / "log")
    wait = weft.node("wait", executor=executor)(far_bodies.wait_until_cancelled)

    @weft.node("fail")
    def fail(_: str) -> None:
        end = time.monotonic() + 30
        while not noted(log) and time.monotonic() < end:
            time.sleep(0.01)
        raise ValueError("now")

    with pytest.raises(weft.ParallelExecutionError, match="now"):
        weft.parallel(wait, fail).invoke(log)
    if not isinstance(executor, RayExecutor):
        assert noted(log) == ["began", "told"]


def test_a_retry_begins_in_another_process(make: Callable[..., Any]) -> None:
    policy = weft.RetryPolicy(max_attempts=3, initial_interval=0, retry_on=WorkerDiedError)
    die = weft.task(executor=make(), retry_policy=policy, name="die")(far_bodies.die)
    run = die.submit("exit")
    with pytest.raises(WorkerDiedError):
        run.result()
    attempts = [e.attempt for e in run.events() if type(e).__name__ == "CallStarted"]
    assert attempts == [1, 2, 3]


def test_what_is_recorded_does_not_run_again(make: Callable[..., Any], db: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    count = weft.task(executor=make())(far_bodies.counted)

    @weft.entrypoint()
    def workflow(fails: bool) -> list[int]:
        found = [count((log, x, 0.0)).result() for x in range(5)]
        if len(noted(log)) == 5 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise RuntimeError("in the middle")
        return found

    with weft.SqliteSaver(db) as saver:
        with pytest.raises(RuntimeError, match="in the middle"):
            workflow.invoke(True, checkpointer=saver, run_id="r")
        assert workflow.invoke(None, checkpointer=saver, run_id="r") == [x * x for x in range(5)]
    assert noted(log) == list("01234")


@pytest.fixture(params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, db: str) -> Iterator[weft.Checkpointer]:
    """A store that several processes can have open."""
    if request.param == "sqlite":
        with weft.SqliteSaver(db) as found:
            yield found
        return
    with postgres.fresh_schema() as schema, weft.PostgresSaver(postgres.address(), schema=schema) as kept:
        yield kept


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_worker_costs_only_what_it_was_at(
    name: str, request: pytest.FixtureRequest, shared: weft.Checkpointer, tmp_path: Path
) -> None:
    """Whole runs in a shared journal: what was recorded is not done again, wherever its item goes on."""
    log, items = str(tmp_path / "log"), 1_000
    if name == "process":
        executor: Any = ProcessExecutor(2)
        victims = weft.map(weft.task(executor=executor)(far_bodies.where)).invoke(range(8))[:1]
    elif name == "dask":
        client = request.getfixturevalue("dask")
        executor, victims = DaskExecutor(client), list(client.run(os.getpid).values())[:1]
    else:
        ray = request.getfixturevalue("ray")
        executor, victims = RayExecutor(), [ray.get(ray.remote(far_bodies.where).remote())]

    def kill_in_the_middle() -> None:
        while len(noted(log)) < items // 4:
            time.sleep(0.005)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    workflow = weft.map(far_bodies.whole, executor=executor)
    found = workflow.invoke([(log, x, 0.002) for x in range(items)], checkpointer=shared, run_id="r")
    killer.join()
    assert found == [x * x for x in range(items)]
    again = len(noted(log)) - items
    assert again <= 2, "at most one body of each process was at work when the worker was killed"
