"""What the tests share: every child process and file is of the test alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))


@pytest.fixture
def db(tmp_path: Path) -> str:
    """The path of a database that is not there yet."""
    return str(tmp_path / "runs.db")
