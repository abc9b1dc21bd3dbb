"""Bodies in processes of this machine: one body a process at a time, so that what ends a process ends one call.

Pools that exist lose everything in them with one worker, or cannot end one that is busy: the standard one and loky
break as a whole, pebble by an idle worker that dies. Here each worker has a socket and a thread of its own: a call
can be told that nobody waits for it, its process be killed, and what it writes and logs is seen while it runs.

Small bodies are given to a worker several at a time. What it has not begun when it dies, or when one of them turns
out to take long, goes to others; so each is begun once, but for one whose process dies before it says so.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

from weft.core.checks import check_count
from weft.errors import DefinitionError, ExecutorError, UsageError, WorkerDiedError
from weft.executors.base import Body, Dropped, Listener, check_carry
from weft.executors.child import Child, Warden
from weft.executors.frames import AGE, CUT_OFF, Kind, Line, RubbishError, SilenceError, frame_of
from weft.executors.pace import Pace
from weft.executors.parcel import outcome_of, packed, place_of, unpack, variable_at
from weft.machine import cores

logger = logging.getLogger("weft")

#: Seconds that a worker is kept without work.
_KEEP = 30.0

#: What a worker is given at once, where bodies are small: seconds of work, bodies, and bytes, so that it all fits into
#: the socket's buffer and nobody has to wait until the worker reads.
_AT_ONCE = 0.02
_MOST = 64
_ROOM = 1 << 16

#: Seconds after which what waits behind a body is given to others.
_PATIENCE = 0.05

#: How often a job is given to a worker that dies before it begins it.
_TRIES = 3

#: Seconds for which a worker that has nothing to do may end by itself, and after which one has to have answered that
#: is told of a body which it has not begun.
_FAREWELL = 1.0

_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from weft.executors.worker import main; main()"


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
        self._width = max_workers or cores()
        self.memory = None if memory is None else bytes_of(memory)
        self.carry = check_carry(carry)
        self._closed = False
        self._reset()
        _open.add(self)
        _close_at_exit()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: OrderedDict[Job, None] = OrderedDict()
        self._workers: set[_Worker] = set()
        self._idle = 0  # workers that wait for a job, or were just woken for one
        self._warden = Warden()
        self.pace = Pace(_AT_ONCE)

    def _leave_to_parent(self) -> None:
        """After a fork: workers and what they do are the parent's."""
        if self._pid != os.getpid():
            workers, warden = self._workers, self._warden
            self._reset()
            warden.let_go()
            for worker in workers:
                worker.let_go()

    def __reduce__(self) -> tuple[Any, ...]:
        places = tuple(place_of(variable) for variable in self.carry)
        return _again, (type(self), self.max_workers, self.memory, places)

    def begin(self, body: Body, listener: Listener) -> Job:
        """Have a body called in a process; see :class:`weft.executors.base.Executor`."""
        return self.begin_sent(packed(body, self.carry), body.ticket.step, listener)

    def begin_sent(self, data: bytes, step: str, listener: Listener) -> Job:
        """Have a body called that was packed already, perhaps on another machine."""
        self._leave_to_parent()
        job = Job(self, step, data, listener)
        with self._changed:
            if self._closed:
                raise UsageError("this ProcessExecutor is closed: make a new one")
            self._queue[job] = None
            try:
                self._wake()
            except RuntimeError:  # the system has no thread to give
                if not self._workers:
                    del self._queue[job]
                    raise
        return job

    def _wake(self) -> None:
        """Something was queued: it is for whoever waits, or for one more."""
        self._changed.notify()
        if len(self._queue) > self._idle and len(self._workers) < self._width:
            worker = _Worker(self)
            worker.start()
            self._workers.add(worker)

    def close(self) -> None:
        """End the workers, and what is at work in them. The calls that wait for it fail."""
        self._leave_to_parent()
        with self._changed:
            self._closed = True
            jobs = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
            workers = list(self._workers)
        for job in jobs:
            job.end(None, _closed_error())
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

    def take(self, worker: _Worker) -> list[Job]:
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
            jobs = self._next() if not self._closed else []
            for job in jobs:
                job.worker = worker
            return jobs

    def _next(self) -> list[Job]:
        first, _ = self._queue.popitem(last=False)
        found = [first]
        share = len(self._queue) // (2 * max(len(self._workers), 1))
        count, room = min(share, _MOST, self.pace.fitting(first.step)), _ROOM - len(first.data)
        while len(found) <= count:
            job = next(iter(self._queue))
            room -= len(job.data)
            if job.step != first.step or room < 0:
                break
            del self._queue[job]
            found.append(job)
        return found

    @property
    def has_room(self) -> bool:
        """Whether another worker would begin at once what is put back now."""
        with self._changed:
            return self._idle > len(self._queue) or len(self._workers) < self._width

    def put_back(self, jobs: list[Job]) -> None:
        """They were not begun: others do them, before what came later."""
        ended: list[tuple[Job, BaseException]] = []
        with self._changed:
            for job in reversed(jobs):
                if job.is_told:
                    ended.append((job, Dropped()))
                elif self._closed:
                    ended.append((job, _closed_error()))
                else:
                    job.worker = None
                    self._queue[job] = None
                    self._queue.move_to_end(job, last=False)
            if self._queue:
                with contextlib.suppress(RuntimeError):  # no thread for one more: those that are there do it
                    self._wake()
        for job, error in ended:
            job.end(None, error)

    def forget(self, worker: _Worker) -> None:
        """Its thread ends. What came in the meantime is for another."""
        with self._changed:
            self._workers.discard(worker)
            if self._queue and not self._closed:
                self._wake()
            warden = self._warden
            if not self._workers:
                self._warden = Warden()
        if warden is not self._warden:
            warden.close()

    @property
    def warden(self) -> Warden:
        """Ends its workers if this process cannot."""
        return self._warden

    def withdraw(self, job: Job) -> bool:
        """Whether it was still waiting, and will not be begun."""
        with self._changed:
            if job not in self._queue:
                return False
            del self._queue[job]
            return True


_open: weakref.WeakSet[ProcessExecutor] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """Workers that have nothing to do leave in order when the interpreter ends; others are ended."""
    atexit.register(_close_all)


def _close_all() -> None:
    for executor in list(_open):
        executor.close()


def _closed_error() -> ExecutorError:
    return ExecutorError("the ProcessExecutor was closed before the body had ended")


class Job:
    """A body on its way."""

    __slots__ = (
        "_executor",
        "_lock",
        "asked",
        "data",
        "ended",
        "is_killed",
        "is_sent",
        "is_told",
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
        self.asked = time.monotonic()
        self.worker: _Worker | None = None  # that has it
        self.tries = 0
        self.is_sent = False
        self.is_told = False
        self.is_killed = False
        self.ended = False

    def tell(self) -> None:
        """Nobody waits for it any more."""
        # Before looking where it is: whoever has it between two places looks at this.
        self.is_told = True
        if self._executor.withdraw(self):
            self.end(None, Dropped())
        elif (worker := self.worker) is not None:
            worker.tell(self)

    def kill(self) -> bool:
        """End it now, with its process if it has begun."""
        self.is_killed = True
        self.tell()
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
        self._child: Child | None = None
        self._line: Line | None = None
        self._jobs: deque[Job] = deque()  # the first one is at work, or next
        self._has_begun = False  # the first one has
        self._began = 0.0
        self._has_asked_back = False  # those behind it
        self._ending = False
        self._thread = threading.Thread(target=self._serve, name="weft-process", daemon=True)

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()

    def join(self) -> None:
        """Wait until it has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def let_go(self) -> None:
        """This process was forked, and all of it is its parent's."""
        if self._line is not None:
            self._line.let_go()
        if self._child is not None:
            self._child.let_go()

    def _serve(self) -> None:
        try:
            while jobs := self._executor.take(self):
                self._do(jobs)
        finally:
            self._hang_up(_FAREWELL)
            self._executor.forget(self)

    def _do(self, jobs: list[Job]) -> None:
        """Have them done, one after the other, unless the process dies."""
        with self._lock:
            self._jobs, self._has_begun, self._has_asked_back = deque(jobs), False, False
        try:
            self._connect()
            self._send_jobs(jobs)
            while self._jobs:
                self._heed_next()
        except _GoneError as gone:
            self._has_died(gone.why)
        except OSError as error:
            self._fail_all(WorkerDiedError(f"no process could be started for the body: {error}"))
        except BaseException as error:  # a mistake of ours must not leave calls hanging
            logger.exception("a worker of a ProcessExecutor failed")
            self._fail_all(ExecutorError(f"the ProcessExecutor failed: {error!r}"))

    def _send_jobs(self, jobs: list[Job]) -> None:
        assert self._line is not None
        frames: list[bytes] = []
        now = time.monotonic()
        for job in jobs:
            if job.is_told:
                self._remove(job)
                job.end(None, Dropped())
            else:
                frames.append(frame_of(Kind.JOB, job.number, AGE.pack(now - job.asked) + job.data))
        if not frames:
            return
        try:
            self._line.send_all(b"".join(frames) if len(frames) > 1 else frames[0])
        except OSError:
            return  # it is gone: reading says so
        with self._lock:
            for job in self._jobs:
                job.is_sent = True
            told = [job for job in self._jobs if job.is_told]
        for job in told:
            self.tell(job)

    def _heed_next(self) -> None:
        """Wait for the next frame, and do what it says."""
        assert self._line is not None
        try:
            frame = self._line.read(self._patience)
        except SilenceError:
            self._lose_patience()
            return
        except RubbishError as rubbish:
            raise _GoneError(f"the body has written to a descriptor that is not its own: {rubbish}") from None
        if frame is None:
            raise _GoneError
        kind, number, data = frame
        if kind is Kind.BACK:
            self._take_back(number)
            return
        job = self._jobs[0]
        if number != job.number:
            return  # a thread that an earlier body has left behind
        if kind is Kind.BEGUN:
            self._begun(job)
        elif kind in (Kind.RETURNED, Kind.RAISED):
            if self._has_begun:
                self._executor.pace.note(job.step, time.monotonic() - self._began)
            self._remove(job)
            job.end(*outcome_of(data, has_failed=kind is Kind.RAISED, step=job.step))
        else:
            self._pass_on(job.listener, kind, data)

    def _begun(self, job: Job) -> None:
        with self._lock:
            self._has_begun = not job.ended
            self._began = time.monotonic()
            if job.ended and self._child is not None:
                self._child.kill()  # it was told that nobody waits while this was on its way here
                return
        job.listener.begun()

    def _pass_on(self, listener: Listener, kind: Kind, data: bytes) -> None:
        try:
            if kind is Kind.BEAT:
                listener.beat()
            elif kind is Kind.WROTE:
                listener.wrote(unpack(data))
            elif kind is Kind.LOGGED:
                listener.logged(unpack(data))
        except Exception:  # a handler of the application, or a class whose objects cannot be made here
            logger.warning("something that a body has written or logged was lost", exc_info=True)

    def _remove(self, job: Job) -> None:
        with self._lock:
            if self._jobs[0] is job:
                self._has_begun = False
            self._jobs.remove(job)

    # What it has not begun

    @property
    def _patience(self) -> float | None:
        """Seconds for which the process may say nothing."""
        if not self._has_begun:
            return _FAREWELL
        return None if len(self._jobs) < 2 or self._has_asked_back else _PATIENCE

    def _lose_patience(self) -> None:
        if self._jobs[0].ended:  # it was told that nobody waits, and does not even answer
            assert self._child is not None
            self._child.kill()
        elif self._has_begun and self._executor.has_room:  # it takes long: who waits behind it is for another
            self._has_asked_back = True
            assert self._line is not None
            for job in list(self._jobs)[1:]:
                self._line.send_soon(Kind.BACK, job.number)

    def _take_back(self, number: int) -> None:
        for job in list(self._jobs):
            if job.number == number:
                self._remove(job)
                self._executor.put_back([job])

    # From other threads

    def tell(self, job: Job) -> None:
        """Say there that nobody waits for it. If it has not begun it is over; if it is to be killed it is killed."""
        with self._lock:
            if job not in self._jobs or not job.is_sent or self._line is None:
                return  # whoever has it will look
            has_begun = self._has_begun and self._jobs[0] is job
            if has_begun and job.is_killed and self._child is not None:
                self._child.kill()
                return
            if not job.ended:
                self._line.send_soon(Kind.TELL, job.number)
        if not has_begun:
            job.end(None, Dropped())

    def end(self) -> None:
        """End what is at work, and then the process and the thread."""
        with self._lock:
            self._ending = True
            jobs = list(self._jobs)
            if jobs and self._child is not None:
                self._child.kill()
        for job in jobs:
            job.end(None, _closed_error())

    # The process

    def _connect(self) -> None:
        if self._child is not None and self._child.is_dead:
            self._hang_up(0.0)
        if self._line is not None:
            return
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                child = Child(_command(theirs.fileno()), theirs.fileno(), self._executor.warden)
        except BaseException:
            ours.close()
            raise
        with self._lock:
            self._child, self._line = child, Line(ours, child.pidfd)
            if self._ending:
                child.kill()
        hello = {"memory": self._executor.memory, "argv": sys.argv}
        with contextlib.suppress(OSError):  # it is gone: reading says so
            self._line.send(Kind.HELLO, 0, pickle.dumps(hello))

    def _hang_up(self, seconds: float) -> int | None:
        """End the process, for which it has so long by itself; its exit code."""
        with self._lock:
            line, child, self._line = self._line, self._child, None
        if line is not None:
            line.close()
        code = child.end(0.0 if self._ending and self._jobs else seconds) if child is not None else None
        with self._lock:
            self._child = None
        return code

    def _has_died(self, why: str) -> None:
        """The process is gone: the job at work was ended by that, or has ended it; the others had not begun."""
        code = self._hang_up(_FAREWELL)
        with self._lock:
            jobs, self._jobs = list(self._jobs), deque()
        for job in jobs:
            job.is_sent = False
        first = jobs[0]
        first.tries += 1
        if first.is_killed:
            first.end(None, Dropped())
        elif self._has_begun or first.tries >= _TRIES:
            first.end(None, WorkerDiedError(_how_it_died(code, why, has_begun=self._has_begun), code))
        self._executor.put_back([job for job in jobs if not job.ended])

    def _fail_all(self, error: BaseException) -> None:
        with self._lock:
            jobs, self._jobs = list(self._jobs), deque()
            if self._child is not None:
                self._child.kill()
        self._hang_up(0.0)
        for job in jobs:
            job.end(None, error)


class _GoneError(Exception):
    """The process is gone, or of no use any more."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


def _command(fd: int) -> list[str]:
    flags: Callable[[], list[str]] = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]
    return [sys.executable, *flags(), "-c", _BOOT, str(fd), str(os.getpid()), *sys.path]


def _how_it_died(code: int | None, why: str, *, has_begun: bool) -> str:
    when = "while the body ran in it" if has_begun else "before it began the body"
    if why:
        return f"the process had to be ended {when}: {why}"
    if code is None:
        return f"the process ended {when}"
    how = f"exited with code {code}" if code >= 0 else f"was ended by {_signal(-code)}"
    return f"the process {how} {when}{_HINTS.get(code, '')}"


_HINTS = {
    -signal.SIGKILL: ": by somebody, or by the system for want of memory",
    -signal.SIGSEGV: ": native code has failed",
    CUT_OFF: ": the body has closed descriptors that are not its own",
}


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


def _again(
    cls: type[ProcessExecutor],
    max_workers: int | None,
    memory: int | None,
    carry: tuple[Any, ...],
) -> ProcessExecutor:
    return cls(max_workers, memory=memory, carry=[variable_at(*place) for place in carry])
