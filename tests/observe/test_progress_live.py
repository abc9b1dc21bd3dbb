"""What people see of a run on a terminal, and in a notebook."""

import asyncio
import codecs
import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import types

import pytest

import weft
from weft import UsageError
from weft.core.outcome import Failed, Ok
from weft.engine import events
from weft.observe import progress, progress_live, progress_notebook
from weft.observe.progress import Progress


def run_started(run="r", workflow="digest"):
    return events.RunStarted(run_id=run, time=0.0, workflow=workflow)


def run_finished(run="r", status="finished"):
    return events.RunFinished(run_id=run, time=0.0, status=status, outcome=None)


def call(kind, name, step="read", run="r", **fields):
    return kind(run_id=run, time=0.0, call_id=name, step=step, parent_id=run, **fields)


def started(name, **fields):
    return call(events.CallStarted, name, attempt=1, args=(), kwargs={}, **fields)


def finished(name, outcome=None, **fields):
    return call(events.CallFinished, name, outcome=outcome or Ok(1), **fields)


# A terminal


class Screen:
    """What a terminal shows that is written to; as much of one as a view needs."""

    def __init__(self, columns=80, lines=24):
        self.columns, self.height = columns, lines
        self.rows, self.x, self.y = [""], 0, 0
        self.has_cursor = True
        self.too_big = 0
        self.frames = 0  # that have begun
        self.left = ""

    def feed(self, text):
        text = self.left + text
        self.left = ""
        for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", text):
            if "\x1b" in part and not re.fullmatch(r"\x1b\[[0-9;?]*[A-Za-z]", part):
                self.left = part
            elif part:
                self.take(part)

    def take(self, part):
        if part == "\r":
            self.x = 0
        elif part == "\n":
            self.y += 1
            self.rows += [""] * (self.y + 1 - len(self.rows))
        elif part in {"\x1b[?25l", "\x1b[?25h"}:
            self.has_cursor = part.endswith("h")
            self.frames += not self.has_cursor
        elif part == "\x1b[K":
            self.rows[self.y] = self.rows[self.y][: self.x]
        elif part == "\x1b[J":
            self.rows[self.y :] = [self.rows[self.y][: self.x]]
        elif part.startswith("\x1b") and part.endswith("A"):
            up = int(part[2:-1])
            self.too_big += up >= self.height  # what has left the screen cannot be reached
            self.y -= up
        elif not part.startswith("\x1b"):
            assert part.isprintable(), part
            row = self.rows[self.y].ljust(self.x)
            self.rows[self.y] = row[: self.x] + part + row[self.x + len(part) :]
            self.x += len(part)
            self.too_big += self.x >= self.columns  # it would wrap

    @property
    def text(self):
        return "\n".join(row.rstrip() for row in self.rows)


class Terminal:
    """A terminal with somebody who reads it, or nobody."""

    def __init__(self, columns=80, lines=24):
        self.master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w", buffering=1)
        self.screen = Screen(columns, lines)
        self.is_read = threading.Event()
        self.is_read.set()
        self.resize(columns, lines)
        self.thread = threading.Thread(target=self.read, daemon=True)

    def resize(self, columns, lines):
        fcntl.ioctl(self.file.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self):
        decoder = codecs.getincrementaldecoder("utf-8")()  # what is read may end within a character
        with contextlib.suppress(OSError):
            while self.is_read.wait():
                self.screen.feed(decoder.decode(os.read(self.master, 65536)))

    def shows(self, what, seconds=10):
        """Wait until it is seen."""
        self.waits(lambda: re.search(what, self.screen.text), what, seconds)

    def waits(self, comes, what, seconds=10):
        """Until something is so, as long as somebody reads."""
        deadline = time.monotonic() + seconds
        while not comes():
            assert self.thread.is_alive(), "the reader of the terminal has failed"
            assert time.monotonic() < deadline, f"{what} not in:\n{self.screen.text}"
            time.sleep(0.01)

    def fill(self):
        """Nobody reads it, and it takes no more."""
        self.is_read.clear()
        os.write(self.file.fileno(), b"\n")  # which the reader may still take
        time.sleep(0.05)
        os.set_blocking(self.file.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.file.fileno(), b"\r" * 65536)
        os.set_blocking(self.file.fileno(), True)


@pytest.fixture
def open_terminal(monkeypatch):
    monkeypatch.setattr(progress_live, "_FIRST", 0.0)
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    opened = []

    def open_(*size):
        terminal = Terminal(*size)
        terminal.thread.start()
        opened.append(terminal)
        return terminal

    yield open_
    for terminal in opened:
        terminal.is_read.set()
        terminal.file.close()
        terminal.thread.join(10)
        os.close(terminal.master)
    assert not progress_live._screens


@pytest.fixture
def terminal(open_terminal):
    return open_terminal()


def test_the_counts_are_seen_and_stay(terminal):
    with Progress(terminal.file) as shown:
        for event in (run_started(), started("a"), started("b"), finished("a")):
            shown(event)
        terminal.shows(r"digest  .*\n  read .* 1/2 .* 1 running")
        assert not terminal.screen.has_cursor
        shown(finished("b", Failed(ValueError("why"))))
        shown(run_finished())
    terminal.shows(
        r"^  read .* 2/2  1 failed: ValueError: why\ndigest: finished after .* 2 calls, 1 failed\n$"
    )
    assert terminal.screen.has_cursor


def test_a_run_that_is_over_at_once_is_told_in_a_line(terminal, monkeypatch):
    monkeypatch.setattr(progress_live, "_FIRST", 10.0)
    assert weft.map(abs, [-1], progress=Progress(terminal.file)) == [1]
    terminal.shows(r"^map\(abs\): finished after .*: 1 call\n$")
    assert "\x1b[?25l" not in terminal.screen.left


def test_two_displays_share_a_view(terminal):
    with Progress(terminal.file) as one:
        one(run_started())
        one(started("a"))
        with Progress(terminal.file) as two:
            two(run_started("s", workflow="second"))
            two(started("a", run="s"))
            terminal.shows(r"digest  .*\n  read .* 0/1 .*\nsecond  .*\n  read .* 0/1 ")
            two(run_finished("s"))
        terminal.shows(r"second: finished .*\n\ndigest  .*\n  read .* 0/1 ")
        one(run_finished())
    terminal.shows(r"second: finished .*\n  read .*\ndigest: finished .*\n$")
    assert sum(thread.name == "weft-progress" for thread in threading.enumerate()) <= 1


def test_two_maps_in_two_threads_share_a_view(terminal):
    both = threading.Barrier(2, timeout=10)

    def first(n):
        both.wait()
        terminal.shows(r"map\(first\)(.|\n)*map\(second\)|map\(second\)(.|\n)*map\(first\)")
        return n

    def second(n):
        return first(n)

    maps = [
        threading.Thread(target=weft.map, args=(fn, [1]), kwargs={"progress": Progress(terminal.file)})
        for fn in (first, second)
    ]
    for thread in maps:
        thread.start()
    for thread in maps:
        thread.join(20)
    terminal.shows(r"(?s)(?=.*map\(first\): finished)(?=.*map\(second\): finished)")


def test_what_bodies_print_comes_above(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal.file)
    with Progress(terminal.file) as shown:
        shown(run_started())
        shown(started("a"))
        terminal.shows("0/1")
        print("one\ntwo")
        terminal.shows(r"^one\ntwo\n\ndigest .*\n  read .*0/1")
        print("half", end="", flush=True)
        terminal.shows(r"^one\ntwo\nhalf\n\ndigest .*\n  read .*0/1")
        print("\r10 %\r20 %", end="")  # somebody's bar
        time.sleep(2 * progress_live._HELD)
        assert "%" not in terminal.screen.text
        shown(run_finished())
        print("last")
    assert sys.stdout is terminal.file
    terminal.shows(r"^one\ntwo\nhalf\n20 %last\n  read .*\ndigest: finished .*\n$")


def test_what_is_printed_where_we_cannot_see_it_stays(terminal):
    logger = logging.getLogger("old")
    logger.addHandler(logging.StreamHandler(terminal.file))
    with Progress(terminal.file) as shown:
        shown(run_started())
        shown(started("a"))
        terminal.shows("0/1")
        logger.warning("past us")
        shown(started("b"))
        terminal.shows(r"^past us\n\ndigest .*\n  read .*0/2.*$")
        shown(run_finished())
    logger.handlers.clear()


def test_what_a_process_prints_that_a_body_has_forked_is_not_caught(terminal, monkeypatch):
    above = progress_live._Above(terminal.file)
    above.catch()
    assert above.add(terminal.file, "in the parent")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert not above.add(terminal.file, "in the child")
    above.let_go()


@pytest.mark.parametrize("size", [(40, 10), (200, 50), (12, 3)])
def test_a_terminal_that_is_resized(terminal, size):
    with Progress(terminal.file) as shown:
        shown(run_started())
        for number in range(40):
            shown(started(str(number), step=f"a step with a long name {number}"))
        terminal.shows("more")
        terminal.resize(*size)
        terminal.screen.columns, terminal.screen.height = size
        frames = terminal.screen.frames
        shown(finished("39", Failed(ValueError("x" * 300)), step="a step with a long name 39"))
        terminal.waits(lambda: terminal.screen.frames >= frames + 2, "two frames")
        terminal.screen.too_big = 0  # one was on its way
        terminal.waits(
            lambda: shown(started("40")) or terminal.screen.frames >= frames + 4, "two frames of the new size"
        )
        assert not terminal.screen.too_big
        assert len(terminal.screen.text.splitlines()) <= max(size[1], 5)
        shown(run_finished())
    terminal.shows("digest")


def test_what_does_not_fit_a_line_has_a_second_one_and_keeps_it(open_terminal):
    terminal = open_terminal(80, 24)
    with Progress(terminal.file) as shown:
        shown(run_started())
        shown(started("a"))
        terminal.shows(r"read .* 1 running")
        shown(finished("b", Failed(ValueError("y" * 10))))
        terminal.shows(r"read .*\n    1 failed, 1 running: ValueError: y{10}\n?$")
        shown(finished("a"))
        terminal.shows(r"read .*2/2.*\n    1 failed: ValueError: y{10}\n?$")
        shown(run_finished())


def test_a_stuck_terminal_holds_up_neither_the_run_nor_its_end(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.05)
    monkeypatch.setattr(sys, "stdout", terminal.file)

    async def body(n):
        print("from a body")
        return n

    async def runs():
        loop, waits = asyncio.get_running_loop(), []

        async def beat():
            while True:
                before = loop.time()
                await asyncio.sleep(0.01)
                waits.append(loop.time() - before)

        beating = asyncio.create_task(beat())
        assert await weft.amap(body, range(500), progress=Progress(terminal.file)) == list(range(500))
        beating.cancel()
        return max(waits, default=0)

    terminal.fill()
    began = time.monotonic()
    assert asyncio.run(runs()) < 2
    assert time.monotonic() - began < 10
    terminal.is_read.set()
    terminal.shows(r"(from a body\n){500}")


def test_a_terminal_that_goes_away_does_not_disturb_the_run(terminal, monkeypatch):
    file = terminal.file
    with Progress(file) as shown:
        shown(run_started())
        terminal.shows("digest")
        monkeypatch.setattr(progress_live.Out, "_write_some", lambda *_: (_ for _ in ()).throw(OSError))
        shown(run_finished())


def test_a_view_that_fails_is_left_and_the_run_is_not(terminal, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    caught = []
    monkeypatch.setattr(threading, "excepthook", caught.append)
    monkeypatch.setattr(progress_live._Pen, "view", broken)
    monkeypatch.setattr(sys, "stdout", terminal.file)
    assert weft.map(abs, [-1], progress=Progress(terminal.file, live=True)) == [1]
    assert [each.exc_type for each in caught] in ([ZeroDivisionError], [])
    assert sys.stdout is terminal.file
    assert terminal.screen.has_cursor


def test_without_unicode_the_bars_are_drawn_in_ascii():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    pen = progress_live._Pen(file, (80, 24))
    line = types.SimpleNamespace(share=0.5, is_open=False)
    assert pen._bar_of(line).plain == "#####-----"


def test_without_rich_a_live_view_says_what_to_install_and_others_do_without(monkeypatch, terminal):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(UsageError, match=r'pip install "weft\[cli\]"'):
        Progress(io.StringIO(), live=True)
    assert weft.map(abs, [-1], progress=Progress(terminal.file)) == [1]
    terminal.shows(r"map\(abs\): begins\n")


PROGRAM = """
import sys, time, weft
def work(n):
    time.sleep(0.05)
    return n
{}
"""


def started_program(terminal, text):
    environment = {name: value for name, value in os.environ.items() if name not in {"CI", "NO_COLOR"}}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(text)],
        stdin=subprocess.DEVNULL,
        stdout=terminal.file,
        stderr=terminal.file,
        env={**environment, "TERM": "xterm"},
    )


def test_ctrl_c_gives_the_cursor_back(terminal):
    process = started_program(terminal, "weft.map(work, range(10_000), max_concurrent=2, progress=True)")
    terminal.shows(r"work .*[1-9]/10000")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in {130, -signal.SIGINT}
    terminal.shows("(?s)map.work.: cancelled after .*KeyboardInterrupt")
    assert terminal.screen.has_cursor


def test_a_process_that_ends_at_once_has_the_last_line_written(terminal):
    text = "r = weft.map(work).submit(range(20), progress=True); r.result()"
    assert started_program(terminal, text).wait(30) == 0
    terminal.shows(r"map\(work\): finished after .*: 20 calls\n$")
    assert terminal.screen.has_cursor


# A notebook


class Handle:
    def __init__(self, shown):
        self.shown = shown

    def update(self, bundle, raw):
        assert raw
        self.shown.append(bundle)


@pytest.fixture
def notebook(monkeypatch):
    """What a notebook shows, one after the other."""
    shown = []

    def display(bundle, raw, display_id):
        assert (raw, display_id) == (True, True)
        shown.append(bundle)
        return Handle(shown)

    ipython, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(progress_notebook, "_EVERY", 0.01)
    return shown


def test_a_notebook_shows_a_table_that_is_updated(notebook, capfd):
    def fail(n):
        if n == 3:
            raise ValueError("<b>&")
        return n

    weft.map(fail, range(5), on_error="collect", progress=True)
    assert "<table" in notebook[0]["text/html"]
    last = notebook[-1]["text/html"]
    assert '<td class="n">5/5</td>' in last
    assert "ValueError: &lt;b&gt;&amp;" in last
    assert "<b>&" not in last
    assert "finished after" in last
    assert "fail 5/5, 1 failed: ValueError: <b>&\n" in notebook[-1]["text/plain"]
    assert capfd.readouterr() == ("", "")


def test_a_notebook_that_is_gone_does_not_disturb_the_run(notebook, monkeypatch):
    monkeypatch.setattr(Handle, "update", lambda *_: (_ for _ in ()).throw(ConnectionError))
    assert weft.map(abs, [-1], progress=True) == [1]


def test_a_notebook_without_a_display_does_not_disturb_the_run(notebook, monkeypatch):
    monkeypatch.delattr(sys.modules["IPython.display"], "display")
    assert weft.map(abs, [-1], progress=True) == [1]


def test_ipython_on_a_terminal_is_no_notebook(notebook, monkeypatch, capfd):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", types.SimpleNamespace)
    weft.map(abs, [-1], progress=True)
    assert notebook == []
    assert "map(abs): begins" in capfd.readouterr().err
