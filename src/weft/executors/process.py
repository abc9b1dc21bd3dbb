"""Bodies in processes of this machine: one body a process at a time, so that what ends a process ends one call.

Pools that exist lose everything in them with one worker, or cannot end one that is busy: the standard one and loky
break as a whole, pebble by an idle worker that dies. Here each worker has a socket and a thread of its own: a call
can be told that nobody waits for it, its process be killed, and what it writes and logs is seen while it runs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

from weft.core.checks import check_count
from weft.errors import DefinitionError, UsageError, WorkerDiedError
from weft.executors.base import Body, Dropped, Listener, check_carry
from weft.executors.frames import Kind, Line
from weft.executors.parcel import packed, unpack, unpack_error

#: Seconds that a worker is kept without work.
_KEEP = 30.0

#: Seconds of work that a worker is given at once, where bodies are small.
_AT_ONCE = 0.02

#: How often a job is given to a worker that dies before it begins it.
_TRIES = 3

_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from weft.executors.worker import main; main()"


class ProcessExecutor:
    """Runs bodies in processes of this machine; they are started when there is work, and end when there is none.

    A body that crashes, exits or is killed fails its own call alone, with a :class:`weft.WorkerDiedError`. A body
    that is cancelled or out of time is killed with its process, and what it has started.

    Args:
        max_workers: How many processes at most; the cores that this process may use, by default.
        memory: How much each may use: bytes, or a text such as ``"2GB"``. A body that wants more gets a MemoryError.
        carry: Context variables whose values bodies see as they were where the call was asked for.

    Raises:
        DefinitionError: A number or a text that can never work.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        memory: int | str | None = None,
        carry: Iterable[ContextVar[Any]] = (),
    ) -> None:
        if max_workers is not None:
            check_count("max_workers", max_workers)
        self.max_workers = max_workers
        self.memory = None if memory is None else bytes_of(memory)
        self.carry = check_carry(carry)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._workers: set[_Worker] = set()
        self._idle = 0
        self._closed = False
        self._pace: dict[str, float] = {}  # seconds a job, by its step

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.max_workers, self.memory, self.carry)

    def begin(self, body: Body, listener: Listener) -> Job:
        """Have a body called in a process; see :class:`weft.executors.base.Executor`."""
        return self.begin_sent(packed(body, self.carry), body.ticket.step, listener)

    def begin_sent(self, data: bytes, step: str, listener: Listener) -> Job:
        """Have a body called that was packed already, perhaps on another machine."""
        if self._pid != os.getpid():
            self._reset()  # the workers are the parent's
        job = Job(self, step, data, listener)
        with self._changed:
            if self._closed:
                raise UsageError("this ProcessExecutor is closed: make a new one")
            self._queue.append(job)
            if self._idle:
                self._changed.notify()
            elif len(self._workers) < self._width:
                worker = _Worker(self)
                self._workers.add(worker)
                worker.start()
        return job

    @property
    def _width(self) -> int:
        return self.max_workers or cores()

    def close(self) -> None:
        """End the workers, and what is at work in them."""
        with self._changed:
            self._closed = True
            jobs = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
            workers = list(self._workers)
        for job in jobs:
            job.end(None, Dropped())
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    # For its workers

    def take(self) -> list[Job]:
        """What a worker is to do next; none when it is to end."""
        until = time.monotonic() + _KEEP
        with self._changed:
            self._idle += 1
            try:
                while not self._queue and not self._closed:
                    left = until - time.monotonic()
                    if left <= 0:
                        return []
                    self._changed.wait(left)
            finally:
                self._idle -= 1
            return self._next() if not self._closed else []

    def _next(self) -> list[Job]:
        first = self._queue.popleft()
        pace = self._pace.get(first.step)
        if pace is None:
            return [first]
        share = len(self._queue) // (2 * max(len(self._workers), 1))
        count = min(share, int(_AT_ONCE / max(pace, 1e-6)))
        return [first, *(self._queue.popleft() for _ in range(count))]

    def note_pace(self, jobs: list[Job], seconds: float) -> None:
        """How long a worker took for these."""
        step, each = jobs[0].step, seconds / len(jobs)
        self._pace[step] = 0.5 * self._pace.get(step, each) + 0.5 * each

    def put_back(self, jobs: list[Job]) -> None:
        """They were not begun: others do them."""
        with self._changed:
            if not self._closed:
                self._queue.extendleft(reversed(jobs))
                self._changed.notify(len(jobs))
                return
        for job in jobs:
            job.end(None, Dropped())

    def forget(self, worker: _Worker) -> None:
        """Its thread ends. What came in the meantime is for another."""
        with self._changed:
            self._workers.discard(worker)
            if self._queue and not self._idle and not self._closed and len(self._workers) < self._width:
                other = _Worker(self)
                self._workers.add(other)
                other.start()

    def withdraw(self, job: Job) -> bool:
        """Whether it was still waiting, and will not be begun."""
        with self._changed:
            if job not in self._queue:
                return False
            self._queue.remove(job)
            return True


class Job:
    """A body on its way."""

    __slots__ = (
        "_executor",
        "_lock",
        "data",
        "ended",
        "is_killed",
        "listener",
        "number",
        "step",
        "tries",
        "worker",
    )
    _numbers = itertools.count(1)

    def __init__(self, executor: ProcessExecutor, step: str, data: bytes, listener: Listener) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self.number = next(self._numbers)
        self.step = step
        self.data = data
        self.listener = listener
        self.worker: _Worker | None = None  # that has it
        self.tries = 0
        self.is_killed = False
        self.ended = False

    def tell(self) -> None:
        """Nobody waits for it any more."""
        if self._executor.withdraw(self):
            self.end(None, Dropped())
        elif (worker := self.worker) is not None:
            worker.tell(self)

    def kill(self) -> bool:
        """End it now, with its process."""
        if self._executor.withdraw(self):
            self.end(None, Dropped())
        else:
            self.is_killed = True
            if (worker := self.worker) is not None:
                worker.kill_for(self)
        return True

    def end(self, value: Any, error: BaseException | None) -> None:
        """Say how it ended; once."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
        self.listener.ended(value, error)


class _Worker:
    """A thread of ours and the process that it minds."""

    def __init__(self, executor: ProcessExecutor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Line | None = None
        self._jobs: deque[Job] = deque()  # the first one is at work, or next
        self._has_begun = False  # the first one has
        self._ending = False
        self._thread = threading.Thread(target=self._serve, name="weft-process", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def join(self) -> None:
        """Wait until it has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _serve(self) -> None:
        try:
            while jobs := self._executor.take():
                began = time.monotonic()
                if self._do(jobs):
                    self._executor.note_pace(jobs, time.monotonic() - began)
        finally:
            self._hang_up()
            self._executor.forget(self)

    def _do(self, jobs: list[Job]) -> bool:
        """Have them done, one after the other; whether the process lives on."""
        try:
            line = self._connected()
        except OSError as error:
            for job in jobs:
                job.end(None, WorkerDiedError(f"no process could be started for the body: {error}"))
            return False
        self._has_begun = False
        self._jobs = deque(jobs)
        for job in jobs:
            job.worker = self
        with contextlib.suppress(OSError):  # it is gone: reading says so
            for job in jobs:
                self._send(line, job)
        while self._jobs:
            frame = line.read()
            if frame is None:
                self._has_died()
                return False
            self._heed(*frame)
            if self._jobs and self._jobs[0].is_killed:
                self.kill_for(self._jobs[0])  # it was not its turn when somebody wanted it ended
        return True

    def _send(self, line: Line, job: Job) -> None:
        line.send(Kind.JOB, job.number, job.data)
        if job.is_killed:
            line.send(Kind.TELL, job.number)

    def _heed(self, kind: Kind, number: int, data: bytes) -> None:
        job = self._jobs[0]
        if number != job.number:
            return  # a thread that an earlier body has left behind
        if kind is Kind.BEGUN:
            self._has_begun = True
            job.listener.begun()
        elif kind is Kind.BEAT:
            job.listener.beat()
        elif kind is Kind.WROTE:
            job.listener.wrote(unpack(data))
        elif kind is Kind.LOGGED:
            job.listener.logged(unpack(data))
        else:
            with self._lock:
                self._jobs.popleft()
                self._has_begun = False
            job.end(*_outcome(kind, data))

    def tell(self, job: Job) -> None:
        """Say there that nobody waits for it."""
        with contextlib.suppress(OSError):
            if (line := self._line) is not None and job in self._jobs:
                line.send(Kind.TELL, job.number)

    def kill_for(self, job: Job) -> None:
        """End the process, if this job is at work in it."""
        with self._lock:
            if self._jobs and self._jobs[0] is job:
                self._kill()
                return
        self.tell(job)  # it will not be begun

    def end(self) -> None:
        """End the process and the thread."""
        with self._lock:
            self._ending = True
            self._kill()

    # The process

    def _connected(self) -> Line:
        if self._process is not None and self._process.poll() is not None:
            self._hang_up()
        if self._line is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                    [sys.executable, "-c", _BOOT, str(theirs.fileno()), *sys.path],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the workflow, which says what becomes of the bodies
                )
            self._line = Line(ours)
            hello = {"memory": self._executor.memory}
            with contextlib.suppress(OSError):
                self._line.send(Kind.HELLO, 0, pickle.dumps(hello))
        return self._line

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()

    def _hang_up(self) -> None:
        line, process, self._line, self._process = self._line, self._process, None, None
        if line is not None:
            line.close()
        if process is not None:
            process.wait()

    def _has_died(self) -> None:
        """The process is gone: the job at work was ended by that, or has ended it; the others had not begun."""
        assert self._process is not None
        code = self._process.wait()
        with self._lock:
            jobs, self._jobs = list(self._jobs), deque()
        self._hang_up()
        if self._ending:
            for job in jobs:
                job.end(None, Dropped())
            return
        first = jobs[0]
        first.tries += 1
        if first.is_killed:
            first.end(None, Dropped())
        elif self._has_begun or first.tries >= _TRIES:
            first.end(None, WorkerDiedError(_how_it_died(code, self._has_begun), code))
        else:
            self._executor.put_back(jobs)
            return
        for job in jobs[1:]:
            job.worker = None
            if job.is_killed:
                job.end(None, Dropped())
        self._executor.put_back([job for job in jobs[1:] if not job.ended])


def _outcome(kind: Kind, data: bytes) -> tuple[Any, BaseException | None]:
    try:
        return (unpack(data), None) if kind is Kind.RETURNED else (None, unpack_error(data))
    except Exception as error:  # a class whose objects cannot be made here
        return None, error


def _how_it_died(code: int, has_begun: bool) -> str:
    how = f"exited with code {code}" if code >= 0 else f"was ended by {_signal(-code)}"
    when = "while the body ran in it" if has_begun else "before it began the body"
    hints: dict[int, str] = {
        signal.SIGKILL: ": by somebody, or by the system for want of memory",
        signal.SIGSEGV: ": native code has failed",
    }
    hint = hints.get(-code, "")
    return f"the process {how} {when}{hint}"


def _signal(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


_UNITS = {"KB": 1_000, "MB": 1_000**2, "GB": 1_000**3, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "B": 1}


def bytes_of(size: int | str) -> int:
    """A size in bytes, of a number or a text such as ``"2GB"``.

    Raises:
        DefinitionError: It is neither.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    if isinstance(size, str):
        text = size.strip().upper()
        for unit, factor in sorted(_UNITS.items(), key=lambda each: -len(each[0])):
            number = text.removesuffix(unit)
            if number != text:
                with contextlib.suppress(ValueError):
                    if (found := int(float(number) * factor)) > 0:
                        return found
    raise DefinitionError(f'memory is a number of bytes or a text such as "2GB", not {size!r}')


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _again(
    cls: type[ProcessExecutor],
    max_workers: int | None,
    memory: int | None,
    carry: tuple[ContextVar[Any], ...],
) -> ProcessExecutor:
    return cls(max_workers, memory=memory, carry=carry)
