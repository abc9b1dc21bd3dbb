"""Progress on a terminal: one view for all that is shown there, drawn by one thread, below what bodies print.

The cursor rests on an empty line above the view. So what somebody writes past us (a child process, a log that holds
the old stderr, the ``^C`` of the terminal) stays readable, the view is drawn anew below it, and after a resize
nothing of the old view is left: all below the cursor is ours to clear.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO

from weft.observe.progress_lines import Out
from weft.observe.progress_look import Line, Look, fitting
from weft.observe.progress_tally import Tally
from weft.observe.progress_words import duration, per_second, time_left

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_EVERY = 0.1  # seconds between two frames
_CLOCK = 1.0  # seconds, where nothing changes but the time
_SHARE = 20  # drawing takes at most so much of a core: one part of it
_FIRST = 0.2  # seconds: of a run that takes less, only the last line is shown
_HELD = 0.3  # seconds that a printed line without an end is waited for
_MOST_HELD = 1 << 20  # characters that bodies may have printed and no terminal has taken

_HIDE, _SHOW, _CLEAR_BELOW, _CLEAR_LINE = "\x1b[?25l", "\x1b[?25h", "\x1b[J", "\x1b[K"
_STYLES = {"failed": "red", "waiting": "yellow", "retrying": "yellow", "queued": "yellow", "running": "cyan"}
_ENDINGS = {"finished": "green", "suspended": "yellow"}

_screens: dict[tuple[int, Any], Screen] = {}  # by process and terminal: two would draw over each other
_screens_lock = threading.Lock()


class LiveView:
    """What one display shows on a terminal that it may share with others."""

    def __init__(self, tally: Tally, file: TextIO) -> None:
        self.tally = tally
        self.over: Future[None] = Future()
        self.two_lines: set[int] = set()  # rows that once did not fit a line: they are not to jump
        self._file = file
        self._screen: Screen | None = None

    def start(self) -> None:
        """Have it drawn, by the thread of the screen."""
        place = os.getpid(), _place_of(self._file)
        with _screens_lock:
            self._screen = _screens.get(place)
            if self._screen is None:
                self._screen = _screens[place] = Screen(self._file, lambda: _screens.pop(place, None))
            self._screen.add(self)

    def tell(self, line: str) -> None:
        """What begins is seen anyway."""

    def stop(self) -> Future[None]:
        """End, and give what is done when the last counts are drawn; never waits."""
        assert self._screen is not None
        self._screen.leave(self)
        return self.over


def _place_of(file: TextIO) -> Any:
    try:
        return os.ttyname(file.fileno())
    except (OSError, ValueError, AttributeError):
        return id(file)


class Screen:
    """A terminal with a view at its end, as long as there is something to show."""

    def __init__(self, file: TextIO, forget: Callable[[], object]) -> None:
        self._file = file
        self._out = Out(file)
        self._forget = forget
        self._views: list[LiveView] = []
        self._ended: list[LiveView] = []
        self._wake = threading.Event()
        self._above = _Above(file)
        self._pen: _Pen | None = None
        self._drawn: set[LiveView] = set()
        self._seen: list[int] = []
        self._drawn_at = 0.0
        self._is_hidden = False  # the cursor

    def add(self, view: LiveView) -> None:
        """Show it too; under the lock of the screens."""
        self._views.append(view)
        if len(self._views) == 1 and not self._above.is_catching:
            self._above.catch()
            threading.Thread(target=self._run, name="weft-progress", daemon=True).start()

    def leave(self, view: LiveView) -> None:
        """Show its last counts, and no more of it."""
        with _screens_lock:
            if view in self._views:
                self._views.remove(view)
                self._ended.append(view)
        self._wake.set()

    def _run(self) -> None:
        try:
            self._wake.wait(_FIRST)
            while self._draw_next():
                pass
        except BaseException:  # what should never be raised: who waits for the end of a view gets it
            with _screens_lock:
                self._forget()
                self._above.let_go()
                left = [*self._views, *self._ended]
            self._out.write(_SHOW if self._is_hidden else "")
            for view in left:
                view.over.set_result(None)
            raise

    def _draw_next(self) -> bool:
        """Draw what is new, and wait for the next time; False when nothing is left to show."""
        began = time.perf_counter()
        self._wake.clear()
        with _screens_lock:
            ended, self._ended = self._ended, []
            is_last = not self._views
            if is_last:  # who comes now begins anew
                self._forget()
                self._above.let_go()
        if ended or self._is_news(began):
            self._draw(ended, is_last=is_last)
        for view in ended:
            view.over.set_result(None)
        if not is_last:
            self._wake.wait(max(_EVERY, _SHARE * (time.perf_counter() - began)))
        return not is_last

    def _is_news(self, now: float) -> bool:
        seen = [view.tally.changes for view in list(self._views)]
        if seen == self._seen and not self._above.has_text and now - self._drawn_at < _CLOCK:
            return False
        self._seen, self._drawn_at = seen, now
        return True

    # Drawing

    def _draw(self, ended: list[LiveView], *, is_last: bool) -> None:
        printed = self._above.take(everything=is_last)
        if printed:
            self._out.write(f"\r{_CLEAR_BELOW}" if self._drawn else "")
            for out, text in printed:
                out.write(text)
        pen = self._pen_now()
        text = "".join(self._last_of(view, pen) for view in ended)
        self._drawn.difference_update(ended)
        if not is_last:
            text += self._frame(pen)
        if is_last and self._is_hidden:
            text += _SHOW
        self._is_hidden = not is_last
        self._out.write(text)

    def _pen_now(self) -> _Pen:
        size = _size_of(self._file)
        if self._pen is None or self._pen.size != size:
            self._pen = _Pen(self._file, size)
        return self._pen

    def _frame(self, pen: _Pen) -> str:
        """The empty line that the cursor rests on, and below it what fits of the view."""
        views = list(self._views)
        looks = [look for view in views for look in view.tally.look()]
        two_lines: set[int] = set().union(*(view.two_lines for view in views))
        lines = pen.view(looks, two_lines)
        for view in views:
            view.two_lines |= two_lines
        self._drawn.update(views)
        rows = "".join(f"\r\n{line}{_CLEAR_LINE}" for line in lines)
        return f"{_HIDE}\r{_CLEAR_LINE}{rows}{_CLEAR_BELOW}\r" + (f"\x1b[{len(lines)}A" if lines else "")

    def _last_of(self, view: LiveView, pen: _Pen) -> str:
        """What stays of a view: its last counts, if there was time to see any, and what has become of the runs."""
        lines = pen.last(view.tally.look()) if view in self._drawn else []
        lines += [
            pen.line(pen.text(text, _ENDINGS.get(ending, "red"))) for text, ending in view.tally.summaries()
        ]
        rows = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
        return f"\r{_CLEAR_BELOW}{rows}" if self._drawn or view in self._drawn else rows


def _size_of(file: TextIO) -> tuple[int, int]:
    try:
        columns, lines = os.get_terminal_size(file.fileno())
    except (OSError, ValueError, AttributeError):
        return 80, 24
    return columns or 80, lines or 24


class _Pen:
    """Draws lines of one width."""

    def __init__(self, file: TextIO, size: tuple[int, int]) -> None:
        from rich.console import Console  # noqa: PLC0415 - an extra, and only needed on a terminal

        self.size = size
        self._width = max(size[0] - 1, 1)  # a full line would wrap
        self._height = size[1]
        self._paper = StringIO()
        self._console: Console = Console(
            file=self._paper, force_terminal=True, width=self._width, height=size[1], highlight=False
        )
        encoding = (getattr(file, "encoding", None) or "utf-8").lower()
        self._full, self._half, self._rest = "━╸━" if encoding.startswith("utf") else "#--"
        self._bar = min(max((size[0] - 60) // 2, 8), 30)

    def text(self, words: str = "", style: str = "") -> Text:
        """A text to be drawn."""
        from rich.text import Text  # noqa: PLC0415 - as above

        return Text(words, style=style, no_wrap=True, end="")

    def line(self, text: Text) -> str:
        """A text as it is written, cut where the line ends."""
        text.truncate(self._width, overflow="ellipsis")
        self._console.print(text, end="", crop=True, no_wrap=True, overflow="ellipsis", markup=False)
        drawn = self._paper.getvalue()
        self._paper.seek(0)
        self._paper.truncate()
        return drawn

    def view(self, looks: list[Look], two_lines: set[int]) -> list[str]:
        """All of it, or what fits; ``two_lines`` are the rows that take a second line, and get more by that."""
        room = max(self._height - 3, 1)
        shown, left_out = fitting(looks, room)
        texts: list[tuple[Text, Text | None]] = []
        for look in shown:
            texts.append((self._head(look), None))
            texts += self._rows(look, two_lines, is_over=False)
            if look.left_out:
                texts.append((self.text(f"  and {look.left_out} more", "dim"), None))
        if left_out:
            texts.append((self.text(f"and {left_out} more workflows", "dim"), None))
        spare = room - len(texts)
        lines = []
        for text, below in texts:
            lines.append(self.line(text))
            if below is not None and spare > 0:
                spare -= 1
                lines.append(self.line(below))
        return lines[:room]  # of a screen of three lines

    def last(self, looks: list[Look]) -> list[str]:
        """The rows, as they stay."""
        shown, _ = fitting(looks, max(self._height - 3, 2))
        lines = []
        for look in shown:
            for text, below in self._rows(look, set(), is_over=True):
                lines += [self.line(each) for each in (text, below) if each is not None]
            if look.left_out:
                lines.append(self.line(self.text(f"  and {look.left_out} more", "dim")))
        return lines

    def _head(self, look: Look) -> Text:
        text = self.text(look.name, "bold")
        text.append(f"  {duration(look.elapsed)}", "not bold")
        if look.runs:
            text.append(f"  {look.runs}", "not bold")
        if look.own:
            text.append("  ").append_text(self._details(look.own, ""))
        return text

    def _rows(self, look: Look, two_lines: set[int], *, is_over: bool) -> list[tuple[Text, Text | None]]:
        """Each row, and what does not fit beside it: that comes below."""
        names = max((2 * line.depth + len(line.name) for line in look.lines), default=0)
        width = min(max(names, 8), max(self._width // 4, 12)) + 2
        counts = max((len(line.count) for line in look.lines), default=0)
        return [self._row(line, width, counts, two_lines, is_over=is_over) for line in look.lines]

    def _row(
        self, line: Line, width: int, counts: int, two_lines: set[int], *, is_over: bool
    ) -> tuple[Text, Text | None]:
        text = self.text("  " * (line.depth + 1) + line.name)
        text.truncate(width, overflow="ellipsis", pad=True)
        text.append(" ").append_text(self._bar_of(line)).append(f" {line.count:>{counts}}")
        if not is_over:  # so wide that nothing jumps
            rate = "" if line.rate is None else per_second(line.rate)
            left = "" if line.left is None else time_left(line.left)
            text.append(f" {rate:>7} {left:>9}", "dim")
        details = self._details(line.parts, line.error)
        if not details.cell_len:
            return text, None
        if line.key not in two_lines and text.cell_len + 2 + details.cell_len <= self._width:
            return text.append("  ").append_text(details), None
        two_lines.add(line.key)
        return text, self.text("  " * (line.depth + 2)).append_text(details)

    def _bar_of(self, line: Line) -> Text:
        if line.is_open:
            return self.text(" " * self._bar)
        halves = round(line.share * self._bar * 2)
        full, half = divmod(halves, 2)
        style = "green" if line.share == 1 else "cyan"
        text = self.text(self._full * full + self._half * half, style)
        return text.append(self._rest * (self._bar - full - half), "bright_black")

    def _details(self, parts: tuple[tuple[str, str], ...], error: str) -> Text:
        text = self.text()
        for number, (kind, words) in enumerate(parts):
            text.append(", " if number else "").append(words, _STYLES.get(kind, "dim"))
        if error:
            text.append(": " if parts else "").append(error, "red")
        return text


# What bodies print meanwhile


class _Above:
    """What is printed on this terminal while there is a view: the screen's thread writes it above."""

    def __init__(self, file: TextIO) -> None:
        self._place = _place_of(file)
        self._lock = threading.Condition()
        self._texts: list[tuple[TextIO, str]] = []
        self._size = 0
        self._tails: dict[TextIO, tuple[float, str]] = {}  # lines without an end, and since when
        self._outs: dict[TextIO, Out] = {}
        self._caught: dict[str, tuple[TextIO, _Caught]] = {}
        self.is_catching = False
        self._pid = os.getpid()

    @property
    def has_text(self) -> bool:
        """Whether something was printed."""
        return bool(self._texts or self._tails)

    def catch(self) -> None:
        """From now on, what is printed comes here."""
        self.is_catching = True
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, _Caught) and _place_of(stream) == self._place:
                self._caught[name] = stream, _Caught(stream, self)
                setattr(sys, name, self._caught[name][1])

    def let_go(self) -> None:
        """From now on, what is printed goes where it went before; what is left is still to be taken."""
        for name, (stream, caught) in self._caught.items():
            if getattr(sys, name) is caught:
                setattr(sys, name, stream)
        with self._lock:
            self.is_catching = False
            self._lock.notify_all()

    def add(self, stream: TextIO, text: str) -> bool:
        """Keep what was printed until it is written; False if nobody is there to write it."""
        if os.getpid() != self._pid:
            return False  # a process that a body has forked has no thread of ours
        with self._lock:
            while self.is_catching and self._size > _MOST_HELD:
                self._lock.wait(0.1)  # the terminal takes nothing, and without us printing would wait too
            if self.is_catching:
                self._texts.append((stream, text))
                self._size += len(text)
            return self.is_catching

    def take(self, *, everything: bool) -> list[tuple[Out, str]]:
        """The lines that were printed; those without an end only if they are old."""
        with self._lock:
            texts, self._texts = self._texts, []
            self._size = 0
            self._lock.notify_all()
        now = time.monotonic()
        found: list[tuple[Out, str]] = []
        for stream, text in texts:
            since, tail = self._tails.pop(stream, (now, ""))
            lines, end, rest = f"{tail}{text}".rpartition("\n")
            if end:
                found.append((self._out_of(stream), f"{lines}\n"))
                since = now
            if rest:
                self._tails[stream] = since, rest
        for stream, (since, tail) in list(self._tails.items()):
            is_redrawn = "\r" in tail  # a bar of somebody else's, which would give a line each time
            if everything or (now - since >= _HELD and not is_redrawn):
                found.append((self._out_of(stream), f"{tail}\n"))
                del self._tails[stream]
        return found

    def _out_of(self, stream: TextIO) -> Out:
        if stream not in self._outs:
            self._outs[stream] = Out(stream)
        return self._outs[stream]


class _Caught:
    """Stands in for ``sys.stdout`` or ``sys.stderr``: as it, but that what is written comes above the view."""

    def __init__(self, stream: TextIO, above: _Above) -> None:
        self._stream = stream
        self._above = above

    def write(self, text: str) -> int:
        """Have it written, without waiting for the terminal."""
        return len(text) if self._above.add(self._stream, text) else self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        """As of any stream."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """What is caught is written soon anyway."""
        if not self._above.is_catching:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
