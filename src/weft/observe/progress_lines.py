"""Progress as plain lines: for files, pipes, CI, and whoever wants no colours."""

from __future__ import annotations

import os
import queue
import threading
import time
from concurrent.futures import Future
from io import TextIOWrapper
from typing import TextIO

from weft.observe.progress_look import Line, Look
from weft.observe.progress_tally import Tally

_EVERY = 2.0  # seconds between two looks at what is new
_SLOWEST = 30.0  # and in runs that take hours
_MOST = 8  # lines at a look


class LinesView:
    """A line when something begins, some now and then while something changes, one at the end."""

    def __init__(self, tally: Tally, file: TextIO | None) -> None:
        self._tally = tally
        self._out = Out(file)
        self._told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._seen = 0
        self._last: dict[tuple[str, int], str] = {}
        self.over: Future[None] = Future()

    def start(self) -> None:
        """Begin; the lines are written by a thread of its own."""
        threading.Thread(target=self._run, name="weft-progress", daemon=True).start()

    def tell(self, line: str) -> None:
        """Say that something has begun; never waits."""
        self._told.put(line)

    def stop(self) -> Future[None]:
        """End, and give what is done when the last line is written; never waits."""
        self._told.put(None)
        return self.over

    def _run(self) -> None:
        try:
            self._write()
        finally:
            self.over.set_result(None)

    def _write(self) -> None:
        began = due = time.monotonic()
        while True:
            due = time.monotonic() + min(max(_EVERY, (due - began) / 30), _SLOWEST)
            while (timeout := due - time.monotonic()) > 0:
                try:
                    line = self._told.get(timeout=timeout)
                except queue.Empty:
                    break
                if line is None:
                    for summary, _ in self._tally.summaries():
                        self._out.write(f"{summary}\n")
                    return
                self._out.write(f"{line}\n")
            for line in self._news():
                self._out.write(f"{line}\n")

    def _news(self) -> list[str]:
        """What something has changed for since the last look, the most interesting first."""
        if self._tally.changes == self._seen:
            return []
        self._seen = self._tally.changes
        found: list[tuple[Line, str]] = []
        for look in self._tally.look():
            for line in look.lines:
                words = f"{_name(look)}: {line.words()}"
                if self._last.get((look.name, line.key)) != words:
                    self._last[look.name, line.key] = words
                    found.append((line, words))
        if len(found) > _MOST:
            shown = sorted(found, key=lambda each: each[0].interest, reverse=True)[: _MOST - 1]
            return [words for _, words in shown] + [f"... and {len(found) - len(shown)} more that go on"]
        return [words for _, words in found]


def _name(look: Look) -> str:
    return f"{look.name} ({look.runs})" if look.runs else look.name


def plain_text(looks: list[Look], summaries: list[str]) -> str:
    """All that there is to see, as text."""
    text = [f"{'  ' * line.depth}{_name(look)}: {line.words()}" for look in looks for line in look.lines]
    return "\n".join([*text, *summaries])


class Out:
    """A file that is written to as long as somebody reads it.

    A terminal, pipe or file is written to past the buffer that others use: a thread that waits for a slow reader
    would hold that buffer, and the interpreter could not end.
    """

    def __init__(self, file: TextIO | None) -> None:
        self.file = file
        self.number = _number_of(file)

    def write(self, text: str) -> None:
        """Write it, at once; what cannot be written is dropped."""
        if self.file is None or not text:
            return
        try:
            if self.number is None:
                self.file.write(text)
                self.file.flush()
                return
            left = text.encode(self.file.encoding or "utf-8", "replace")
            while left:
                left = left[self._write_some(left) :]
        except (OSError, ValueError):  # nobody reads it any more, and the run goes on without
            self.file = None

    def _write_some(self, left: bytes) -> int:
        assert self.number is not None
        try:
            return os.write(self.number, left)
        except BlockingIOError:  # somebody has it not block, and it is full
            time.sleep(0.01)
            return 0


def _number_of(file: TextIO | None) -> int | None:
    if type(file) is not TextIOWrapper:
        return None  # whatever stands in for one may do more than to write
    try:
        return file.fileno()
    except (OSError, ValueError):
        return None
