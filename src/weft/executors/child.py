"""A process of ours and what it has started, so that nothing of them is left, whoever ends first."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

#: Seconds in which a warden has to leave that is not needed any more.
_FAREWELL = 2.0

_SCRIPT = str(Path(__file__).with_name("warden.py"))


class Warden:
    """Has processes ended when this one is gone, however that ends. Its own process is begun with the first one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def guard(self, group: int) -> None:
        """From now on.

        Raises:
            OSError: No process can be begun.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                    [sys.executable, "-I", "-S", _SCRIPT, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # a signal for the terminal's group is not for it
                    bufsize=0,
                )
            self._say(f"+{group}\n")

    def release(self, group: int) -> None:
        """It has ended."""
        with self._lock:
            self._say(f"-{group}\n")

    def close(self) -> None:
        """There are no more of them."""
        with self._lock:
            self._say(".\n")  # what this process has forked may hold the other end of the pipe
            process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_FAREWELL)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def let_go(self) -> None:
        """This process was forked, and the warden is its parent's."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.returncode = 0  # or the end of the object complains

    def _say(self, line: str) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):  # somebody has killed it; the next one begins another
                self._process.stdin.write(line.encode())


class Child:
    """A process that leads a group, so that what it starts is ended with it.

    Args:
        command: What to run.
        fd: A descriptor that it gets.
        warden: Is told of it.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, command: list[str], fd: int, warden: Warden) -> None:
        self._warden = warden
        self._lock = threading.Lock()
        self._is_over = False
        self._process = subprocess.Popen(  # noqa: S603 - the caller's
            command,
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the workflow, which says what becomes of the bodies
        )
        self.pidfd: int | None = None
        try:
            with contextlib.suppress(AttributeError):  # there is none but on Linux
                self.pidfd = os.pidfd_open(self._process.pid)
            warden.guard(self._process.pid)
        except BaseException:
            self.end(0.0)
            raise

    @property
    def is_dead(self) -> bool:
        """Whether it has ended, though it may not have been waited for yet."""
        return self._is_over or self._wait(0.0)

    def kill(self) -> None:
        """End it now, and what it has started; from any thread, at any time."""
        with self._lock:
            if not self._is_over:
                self._kill()

    def end(self, seconds: float) -> int:
        """Wait so long until it has ended, then kill it; its exit code, as of :mod:`subprocess`.

        What it has started is ended in any case.
        """
        self._wait(seconds)
        self.kill()
        self._wait(None)
        with self._lock:
            self._kill()  # what was begun in the last moment; nobody can have its number yet
            self._warden.release(self._process.pid)
            code = self._process.wait()
            self._is_over = True
            if self.pidfd is not None:
                os.close(self.pidfd)
                self.pidfd = None
        return code

    def let_go(self) -> None:
        """This process was forked, and the child is its parent's."""
        self._process.returncode = 0  # or the end of the object complains
        if self.pidfd is not None:
            os.close(self.pidfd)

    def _kill(self) -> None:
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self._process.pid, signal.SIGKILL)

    def _wait(self, seconds: float | None) -> bool:
        """Until it has ended, but leave it to be waited for, so that its number stays its own."""
        if self.pidfd is not None:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            return bool(poll.poll(None if seconds is None else seconds * 1000))
        until = None if seconds is None else time.monotonic() + seconds
        while not self._has_ended():
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(0.005)
        return True

    def _has_ended(self) -> bool:
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except AttributeError:  # macOS, before Python 3.13
            return self._process.poll() is not None
        except ChildProcessError:  # somebody else has waited for it
            return True
