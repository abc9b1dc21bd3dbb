"""What the tests of executors share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft import ProcessExecutor

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessExecutor]:
    """Two processes, for all tests of a module that do them no harm that lasts."""
    with ProcessExecutor(2) as found:
        yield found


@pytest.fixture
def log(tmp_path: Path) -> str:
    """The path of a file to which bodies append what they do."""
    return str(tmp_path / "log")
