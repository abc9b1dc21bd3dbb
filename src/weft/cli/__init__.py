"""The command line: ``weft run``, ``weft runs``, ``weft show``, ``weft resume``, ``weft answer``.

Its modules:

    commands    what can be typed
    target      finds the workflow that ``module:name`` or ``file.py:name`` means
    values      reads inputs and answers
    stores      which store a command is about
    running     runs a workflow, and knows how that ended
    endings     exit codes, and refusals in one sentence
    report      writes: results to stdout, everything else to stderr
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The ``weft`` command; leaves the process with its exit code."""
    try:
        import click  # noqa: F401, PLC0415 - extras: whoever lacks them is told how to get them
        import rich  # noqa: F401, PLC0415 - the same
    except ImportError as error:
        sys.stderr.write(f'Error: the command line needs {error.name}: pip install "weft[cli]"\n')
        sys.exit(2)
    from weft.cli.commands import run_command  # noqa: PLC0415 - needs them

    sys.exit(run_command(args))


__all__ = ["main"]
