"""Graphviz's layout ``dot``, from the package pygraphviz, whose wheels bring it along.

It runs in a process of its own: it is C, there are graphs on which it crashes, and no picture is worth the runs that
would go down with it. That also leaves this process's other threads alone while it works.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from weft.errors import UsageError

_LONGEST = 120.0  # seconds

_PROGRAM = """
import sys
sys.path.append(sys.argv[1])
import pygraphviz
graph = pygraphviz.AGraph(sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format="json0", prog="dot"))
"""


def dot(source: str) -> dict[str, Any]:
    """Where everything in a graph of Graphviz's language goes, as its JSON output says it.

    Raises:
        UsageError: pygraphviz is not installed, or could not do it.
    """
    python = [sys.executable, "-P", "-c", _PROGRAM, _folder()]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            python, input=source.encode(), capture_output=True, timeout=_LONGEST, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(_cannot(f"took longer than {_LONGEST:g} s")) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(_cannot(f"ended with {done.returncode}{': ' + said[-1] if said else ''}"))
    placed: dict[str, Any] = json.loads(done.stdout)
    return placed


def _folder() -> str:
    """Where pygraphviz is installed, which another Python need not know."""
    spec = importlib.util.find_spec("pygraphviz")
    if spec is None or spec.origin is None:
        raise UsageError(
            'to lay a picture out, Weft needs pygraphviz: pip install "weft[draw]"; '
            "its Mermaid text, picture.mermaid(), needs nothing"
        )
    if not sys.executable or getattr(sys, "frozen", False):
        raise UsageError("to lay a picture out, Weft runs a Python of its own, and cannot find one to run")
    return str(Path(spec.origin).parent.parent)


def _cannot(what: str) -> str:
    return f"Graphviz, which lays pictures out, {what}; the Mermaid text, picture.mermaid(), does without it"
