"""Programs of the repository, run by the tests as a person would: in an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


def run_script(name: str, *words: object, patience: float = 110) -> subprocess.CompletedProcess[str]:
    """Run ``scripts/<name>`` with this source, for at most ``patience`` seconds; what it says is printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPTS / name), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    print(done.stdout, done.stderr)
    return done
