"""Any bodies, told, killed, crashing and killed from outside in any order: each ends once, as it has to."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import harmful
import noting
import pytest
from harmful import nothing_is_left, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from noting import noted

import weft
from weft import ProcessExecutor, WorkerDiedError
from weft.executors.base import Body, Dropped, Ticket


def body(log: str, number: int, kind: str) -> int:
    noting.note(log, number)
    if kind == "crash":
        os._exit(9)
    if kind == "native":
        harmful.spins_in_native_code()
    if kind == "spin":
        harmful.spins()
    if kind == "listen":
        harmful.until(weft.cancelled, 60)
    if kind == "raise":
        raise ValueError(number)
    if kind == "slow":
        __import__("time").sleep(0.01)
    return number


class Heard:
    """A listener that keeps what it was told."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.begins = 0
        self.ends: list[tuple[Any, BaseException | None]] = []
        self.over = threading.Event()
        self.told = False
        self.flight: Any = None

    def begun(self) -> None:
        assert not self.ends
        self.begins += 1

    def wrote(self, value: Any) -> None:
        raise AssertionError("nobody has written")

    def logged(self, record: logging.LogRecord) -> None:
        raise AssertionError("nobody has logged")

    def beat(self) -> None:
        raise AssertionError("no heart beats")

    def ended(self, value: Any, error: BaseException | None) -> None:
        self.ends.append((value, error))
        self.over.set()


ENDLESS = ("native", "spin", "listen")

begin = st.tuples(
    st.just("begin"), st.sampled_from(["quick"] * 6 + ["slow", "crash", "raise", "native", "spin", "listen"])
)
many = st.tuples(st.just("many"), st.integers(2, 80))
stop = st.tuples(st.sampled_from(["tell", "kill"]), st.integers(0, 30))
other = st.tuples(st.sampled_from(["shoot", "wait"]), st.integers(0, 3))


@given(
    steps=st.lists(st.one_of(begin, begin, many, stop, other), min_size=3, max_size=25),
    width=st.integers(1, 3),
)
@settings(
    max_examples=int(os.environ.get("WEFT_EXAMPLES", "12")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_each_ends_once_and_as_it_has_to(
    steps: list[tuple[str, Any]], width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = str(tmp_path_factory.mktemp("model") / "log")
    with nothing_is_left():
        _play(steps, width, log)


def _play(steps: list[tuple[str, Any]], width: int, log: str) -> None:
    numbers = itertools.count()
    heard: list[Heard] = []
    shots = 0
    with ProcessExecutor(width) as executor:

        def start(kind: str) -> None:
            number, listener = next(numbers), Heard(kind)
            ticket = Ticket(f"id-{number}", "body" if kind == "quick" else kind)
            listener.flight = executor.begin(Body(body, (log, number, kind), {}, ticket), listener)
            heard.append(listener)

        for what, which in steps:
            if what == "begin":
                start(which)
            elif what == "many":
                for _ in range(which):
                    start("quick")
            elif what == "shoot":
                shots += _shoot(executor)
            elif what == "wait":
                quick = [h for h in heard if h.kind in ("crash", "raise") and not h.told]
                if quick and all(h.kind not in ENDLESS or h.over.is_set() for h in heard):
                    assert quick[-1].over.wait(20)
            elif heard:
                listener = heard[-1 - which % len(heard)]
                listener.told = True
                if what == "kill":
                    assert listener.flight.kill()
                    assert listener.over.wait(20), "killed, and not ended"
                else:
                    listener.flight.tell()
        for listener in heard:
            if listener.kind in ENDLESS and not (listener.kind == "listen" and listener.told):
                listener.told = True
                listener.flight.kill()
        for number, listener in enumerate(heard):
            assert listener.over.wait(20), f"{number}, a {listener.kind}, does not end"
        assert len(executor._workers) <= width
    _check(heard, Counter(noted(log)), shots)


def _shoot(executor: ProcessExecutor) -> int:
    """Kill a worker from outside."""
    for worker in list(executor._workers):
        child = worker._child
        if child is not None:
            try:
                os.kill(child._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            return 1
    return 0


def _check(heard: list[Heard], often: Counter[str], shots: int) -> None:
    victims = 0
    for number, listener in enumerate(heard):
        assert len(listener.ends) == 1
        value, error = listener.ends[0]
        ran = often[str(number)]
        assert ran <= 1, f"{number} ran {ran} times"
        assert listener.begins <= 1
        if isinstance(error, Dropped):
            assert listener.told, "only who was told is dropped"
        elif isinstance(error, WorkerDiedError) and listener.kind != "crash" and not listener.told:
            victims += 1
        elif listener.told:
            continue  # it may have ended before
        elif listener.kind == "crash":
            assert isinstance(error, WorkerDiedError)
            victims += error.exitcode != 9
        elif listener.kind == "raise":
            assert isinstance(error, ValueError)
            assert ran == 1
        else:
            assert (value, error) == (number, None)
            assert ran == 1
    assert victims <= shots, "each shot hits one body at most"


def test_the_model_is_not_blind(tmp_path: Path) -> None:
    """What it looks at is there."""
    log = str(tmp_path / "log")
    steps = [("many", 80), ("begin", "crash"), ("begin", "native"), ("many", 80), ("tell", 0), ("shoot", 0)]
    _play(steps, 2, log)
    until(lambda: len(noted(log)) > 100)
