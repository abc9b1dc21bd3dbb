"""The commands of the how-to start a cluster of two workers, run its program there, and stop it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clusters.md"


def block(heading: str, language: str) -> str:
    section = PAGE.read_text(encoding="utf-8").partition(heading)[2]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("name", ["Dask", "Ray"])
def test_the_commands_of_the_how_to(name: str, tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    if shutil.which(name.lower(), path=programs) is None:
        pytest.skip(f"{name} is not installed")
    (tmp_path / "squares.py").write_text(block("# A cluster", "py"), encoding="utf-8")
    run = subprocess.run(
        ["bash", "-e", "-c", block(f"## {name}", "sh")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert "[0, 0, 1, 5, 14, 30]" in run.stdout.splitlines(), run.stdout + run.stderr
