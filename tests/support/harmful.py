"""Bodies that do harm to the process in which they run, and what is left of them, seen from outside."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from noting import note

from weft.engine.portal import portal


def until(check: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What ``check()`` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.005)
    return found


def runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def nothing_is_left() -> Iterator[None]:
    """No process, thread or descriptor is there afterwards that was not there before."""

    def there() -> tuple[set[int], int, int]:
        threads = sum(t.name.startswith(("weft-process", "weft-line")) for t in threading.enumerate())
        return {p.pid for p in psutil.Process().children(recursive=True)}, threads, descriptors()

    assert portal.loop  # it is kept, so it is there before
    children, threads, files = there()
    yield
    end = time.monotonic() + 3
    while True:
        now = there()
        if now[0] <= children and now[1] <= threads and now[2] <= files:
            return
        assert time.monotonic() < end, f"left: {now[0] - children} {now[1] - threads} {now[2] - files}"
        time.sleep(0.01)


# What ends the process


def segfault() -> None:
    ctypes.string_at(0)


def exits() -> None:
    os._exit(3)


def aborts() -> None:
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    os.abort()


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kills_its_group() -> None:
    os.killpg(0, signal.SIGKILL)


def is_terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)


def closes_everything() -> None:
    os.closerange(3, 1 << 12)


def shuts_every_socket() -> None:
    for name in [each.name for each in Path("/proc/self/fd").iterdir()]:
        try:
            socket.socket(fileno=os.dup(int(name))).shutdown(socket.SHUT_RDWR)
        except OSError:
            continue
    time.sleep(30)


def writes_rubbish() -> None:
    for name in [each.name for each in Path("/proc/self/fd").iterdir()]:
        if int(name) > 2:
            try:
                os.write(int(name), b"rubbish" * 20)
            except OSError:
                continue


def fork() -> int:
    """Later Pythons warn where there are threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def leaves_a_fork_and_dies() -> None:
    """The fork holds all descriptors."""
    if fork() == 0:
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


ENDINGS: dict[str, tuple[Callable[[], None], str]] = {
    "segfault": (segfault, "SIGSEGV"),
    "exit": (exits, "code 3"),
    "abort": (aborts, "SIGABRT"),
    "kill": (is_killed, "SIGKILL"),
    "group": (kills_its_group, "SIGKILL"),
    "term": (is_terminated, "SIGTERM"),
    "close": (closes_everything, "descriptors"),
    "shut": (shuts_every_socket, "process"),
    "rubbish": (writes_rubbish, "descriptor"),
    "fork": (leaves_a_fork_and_dies, "SIGKILL"),
}


def end_by(how: str) -> str:
    ENDINGS[how][0]()
    return how


# What never ends


def spins() -> None:
    while True:
        pass


def spins_in_native_code() -> None:
    """It holds the interpreter, so that no other thread runs."""
    sum(range(10**12))


def spins_without_the_interpreter() -> None:
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)


def ignores_everything() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    while True:
        time.sleep(60)


ENDLESS = {
    "spin": spins,
    "native": spins_in_native_code,
    "released": spins_without_the_interpreter,
    "ignoring": ignores_everything,
}


def work_for_ever(how: str, log: str) -> None:
    note(log, os.getpid())
    ENDLESS[how]()


_kept: list[Any] = []


def starts_another(log: str, how: str) -> None:
    """Starts a process of its own, and goes on."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    _kept.append(child)
    note(log, os.getpid())
    note(log, child.pid)
    if how in ENDLESS:
        ENDLESS[how]()
    elif how in ENDINGS:
        ENDINGS[how][0]()


# What is well


def double(x: int) -> int:
    return 2 * x


def counted(log: str, x: int, seconds: float = 0.0) -> int:
    if seconds:
        time.sleep(seconds)
    note(log, x)
    return x * x


def pid(_: Any = None) -> int:
    return os.getpid()


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
