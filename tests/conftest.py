"""What the tests share: every child process and file is of the test alone."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from weft import Checkpointer, InMemorySaver, SqliteSaver
from weft.engine import signals

sys.path.insert(0, str(Path(__file__).parent / "support"))

# What a shell begins in the background ignores it, and so would all processes that tests begin.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What pytest-timeout raises in its handler is no Exception: commits are made on the loop as without it.
signals._LOOKED_AT -= {signal.SIGALRM}

# How long something takes is measured elsewhere: here a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Random tests draw from one seed: WEFT_SEED, or for what failed last the one that it failed with, or a new one."""
    cache = getattr(config, "cache", None)
    failed_with = (
        cache.get("weft/seed", None) if cache is not None and config.getoption("lf", default=False) else None
    )
    seed = os.environ.get("WEFT_SEED") or failed_with or str(random.SystemRandom().randrange(2**32))
    os.environ["WEFT_SEED"] = seed
    if cache is not None:
        cache.set("weft/seed", seed)


def pytest_report_header() -> str:
    return f"WEFT_SEED={os.environ['WEFT_SEED']} runs the same random tests again"


@pytest.fixture
def db(tmp_path: Path) -> str:
    """The path of a database that is not there yet."""
    return str(tmp_path / "runs.db")


@pytest.fixture(params=["memory", "sqlite"])
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Checkpointer]:
    """Every kind of checkpointer that needs no server."""
    if request.param == "memory":
        yield InMemorySaver()
    else:
        with SqliteSaver(tmp_path / "runs.db") as found:
            yield found


@pytest.fixture(params=["none", "memory", "sqlite"])
def any_saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Checkpointer | None]:
    """No checkpointer, and every kind there is: what holds must hold with all."""
    if request.param == "none":
        yield None
    elif request.param == "memory":
        yield InMemorySaver()
    else:
        with SqliteSaver(tmp_path / "runs.db") as found:
            yield found
