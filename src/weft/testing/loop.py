"""An event loop whose time jumps to the next timer when nothing is ready."""

from __future__ import annotations

import asyncio
import concurrent.futures
import heapq
import itertools
import logging
import math
import random
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextvars import Context
from functools import partial
from threading import get_ident
from typing import Any, TypeVar, TypeVarTuple

from weft.core.checks import check_count, check_seconds
from weft.core.sizing import Resources
from weft.errors import DefinitionError
from weft.testing.baton import here
from weft.testing.clock import VirtualClock
from weft.testing.standstill import StandstillError, list_of, name_of, where_task, where_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

logger = logging.getLogger("weft")

#: What :meth:`weft.testing.VirtualClock.resources` tells where a test does not say.
CORES = 4
MEMORY = 8 * 1024**3

#: Real seconds for which a thread may work while virtual time stands still.
PATIENCE = 10.0

#: Real seconds after which a loop that serves a sync program says that its run stands still.
_STANDS_STILL = 1.0


#: Real seconds that a selector can be asked to wait at once.
_LONGEST = 3600.0


class _Timer(asyncio.TimerHandle):
    """Of two for one moment, the first that was set goes first. Where time jumps, that is no rare case."""

    __slots__ = ("number",)
    _when: float
    _scheduled: bool
    number: int

    def __lt__(self, other: Any) -> bool:
        if self._when != other._when:
            return bool(self._when < other._when)
        return bool(self.number < other.number)


class _Selector(selectors.DefaultSelector):
    """The real one, but what it means to wait is the loop's to say."""

    come_round: Callable[[float | None], list[Any]]

    def select(self, timeout: float | None = None) -> list[Any]:
        return self.come_round(timeout)

    def really_select(self, timeout: float | None) -> list[Any]:
        return super().select(timeout)


class _Work:
    """Something that an executor does for this loop."""

    __slots__ = ("future", "is_resting", "name", "thread")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.name = name_of(fn)
        self.future: concurrent.futures.Future[Any] | None = None
        self.thread = 0
        self.is_resting = False  # it sleeps in virtual time

    def run(self, loop: VirtualLoop, fn: Callable[..., T], *args: Any) -> T:
        """Call the function in its thread."""
        self.thread = get_ident()
        here.sleep = partial(loop.sleep_in_thread, work=self)
        try:
            return fn(*args)
        finally:
            here.sleep = None


class _Submitting:
    """An executor that keeps the future of what was last submitted."""

    def __init__(self, executor: concurrent.futures.Executor, work: _Work) -> None:
        self._executor = executor
        self._work = work

    def submit(self, fn: Callable[..., Any], *args: Any) -> concurrent.futures.Future[Any]:
        self._work.future = future = self._executor.submit(fn, *args)
        return future


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop with virtual time, which begins at 0.0.

    Time stands still while anything can run: tasks, work given to executors, bodies of sync steps. Then it jumps to
    the next timer. While files, sockets, pipes or subprocesses are open on the loop, it passes as it does in reality.

    Args:
        seed: Decides in which order tasks that are ready take their steps; None leaves asyncio's order.
        cores: What a run believes to have.
        memory: As well, in bytes.
        patience: Real seconds for which time stands still for a thread; after that it goes on without, and the
            clock has a complaint. None: for as long as it takes.

    Attributes:
        weft_clock: The clock that runs on this loop use.

    Raises:
        DefinitionError: A seed or a number that cannot be.
    """

    _closed = True  # until it is open: asyncio complains of loops that are lost and not closed
    _ready: deque[asyncio.Handle]
    _scheduled: list[_Timer]
    _clock_resolution: float
    _thread_id: int | None
    _default_executor: concurrent.futures.Executor | None
    _executor_shutdown_called: bool

    def __init__(
        self,
        seed: int | None = None,
        *,
        cores: int = CORES,
        memory: int = MEMORY,
        patience: float | None = PATIENCE,
    ) -> None:
        check_seed(seed)
        check_count("cores", cores)
        check_count("memory", memory)
        if patience is not None:
            check_seconds("patience", patience)
        self._now = 0.0
        self._numbers = itertools.count()
        self._order = None if seed is None else random.Random(seed)
        self._patience = patience
        self._work: dict[_Work, None] = {}
        self._is_joining = False  # the threads of the default executor
        self._subprocesses: list[asyncio.SubprocessTransport] = []
        self._goals = 0  # how many callers wait for a result of this loop
        self._has_warned = False
        self._is_over = False
        self._own_selector = _Selector()
        self._own_selector.come_round = self._come_round
        self.weft_clock = VirtualClock(
            now=self.time,
            wake=self._wake,
            seed=seed,
            resources=Resources(cores, memory),
            patience=patience,
        )
        self._baton = self.weft_clock.baton
        super().__init__(self._own_selector)
        self._clock_resolution = 0.0  # asyncio finds no timer due: we do, exactly

    # What users of a loop call

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._now

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Have ``callback(*args)`` called at that virtual time, after those that were asked for before."""
        if when is None:
            raise TypeError("when cannot be None")
        self._check_closed()  # type: ignore[attr-defined]  # this and what follows is as in asyncio
        if self.get_debug():
            self._check_thread()  # type: ignore[attr-defined]
            self._check_callback(callback, "call_at")  # type: ignore[attr-defined]
        timer = _Timer(when, callback, args, self, context)
        timer.number = next(self._numbers)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Have ``callback(*args)`` called soon; from any thread, and from signal handlers."""
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        self._baton.interrupt()
        return handle

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """A task for this coroutine."""
        task = super().create_task(coro, **options)
        if self._order is not None:
            task.weft_number = next(self._numbers)  # type: ignore[attr-defined]  # see _shuffle()
        return task

    def run_until_complete(self, future: Generator[Any, None, T] | Any) -> T:
        """Run until the future is done, and return its result.

        Raises:
            StandstillError: Nothing can happen any more.
        """
        self._goals += 1
        try:
            return super().run_until_complete(future)  # type: ignore[no-any-return]
        finally:
            self._goals -= 1

    def run_in_executor(
        self, executor: concurrent.futures.Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Have ``func(*args)`` called in the executor; time stands still until it returns, or sleeps with ours."""
        if executor is None and self._default_executor is None and not self._executor_shutdown_called:
            self.set_default_executor(concurrent.futures.ThreadPoolExecutor(thread_name_prefix="asyncio"))
        target = executor or self._default_executor
        if target is None:
            return super().run_in_executor(None, func, *args)  # it says what is wrong
        work = _Work(func)
        given: Any = func
        if isinstance(target, concurrent.futures.ThreadPoolExecutor):
            given = partial(work.run, self, func)
        future: asyncio.Future[T] = super().run_in_executor(
            _Submitting(target, work),  # type: ignore[arg-type]  # asyncio calls submit() and nothing else
            given,
            *args,
        )
        assert work.future is not None
        self._work[work] = None
        # After asyncio's own callback, so that the outcome is on its way when the work counts no longer.
        work.future.add_done_callback(lambda _: self._post(self._work_ended, work))
        return future

    async def shutdown_default_executor(self, *args: Any, **options: Any) -> None:
        """Wait, for real, until the threads of the default executor have ended."""
        self._is_joining = True
        try:
            await super().shutdown_default_executor(*args, **options)
        finally:
            self._is_joining = False

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        """Start a program; time passes as in reality until it has ended."""
        return self._noted(await super().subprocess_exec(*args, **options))

    async def subprocess_shell(self, *args: Any, **options: Any) -> Any:
        """Start a command; time passes as in reality until it has ended."""
        return self._noted(await super().subprocess_shell(*args, **options))

    def _noted(self, found: tuple[asyncio.SubprocessTransport, Any]) -> Any:
        self._subprocesses.append(found[0])
        return found

    def close(self) -> None:
        """Free what the loop holds, and stop the bodies that wait for their turn."""
        if not self.is_running():
            self._baton.close()
        super().close()

    # What the faces call

    def serve(self) -> None:
        """Run for a sync program, until :meth:`end`."""
        while not self._is_over:
            try:
                self.run_forever()
            except BaseException:  # asyncio lets SystemExit of a user's own task through, and stops
                logger.exception("a task of a workflow's own ended the virtual loop; it goes on")

    def end(self) -> None:
        """Serve no longer."""
        self._is_over = True
        self.stop()

    def sleep_in_thread(self, seconds: float, work: _Work | None = None) -> None:
        """Block this thread, which is not that of a body, for so many seconds of virtual time.

        ``work``: what this thread does for the loop, which need not wait for it meanwhile.
        """
        is_over = threading.Event()

        def rest(is_resting: bool) -> None:
            if work is not None:
                work.is_resting = is_resting

        def begin() -> None:
            rest(True)
            self.call_later(seconds, end)

        def end() -> None:
            rest(False)
            is_over.set()

        self._post(begin)
        while not is_over.wait(1.0) and not self.is_closed():
            pass

    # Coming round

    def _come_round(self, timeout: float | None) -> list[Any]:
        """Called once for each turn, instead of waiting for files: ``timeout`` is 0 when callbacks are ready."""
        self._baton.go_round(busy=bool(self._ready))
        events = self._own_selector.really_select(0)
        self._take_due()
        if timeout != 0 and not events and not self._ready:
            events = self._wait()
        if self._order is not None and len(self._ready) > 1:
            self._shuffle(self._order)
        return events

    def _take_due(self) -> None:
        """The timers whose time has come are ready."""
        timers, now = self._scheduled, self._now
        while timers and timers[0]._when <= now:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            self._ready.append(timer)

    def _shuffle(self, order: random.Random) -> None:
        """Draw who of the ready tasks goes first; other callbacks keep their places."""
        ready = self._ready
        handles = [ready.popleft() for _ in range(len(ready))]
        places = [place for place, handle in enumerate(handles) if _is_step(handle)]
        if len(places) > 1:
            steps = [handles[place] for place in places]
            steps.sort(key=_number)  # asyncio cancels sets of tasks, whose order is not that of the last time
            order.shuffle(steps)
            for place, handle in zip(places, steps, strict=True):
                handles[place] = handle
        ready.extendleft(reversed(handles))  # to the left: other threads may have appended

    # Waiting

    def _wait(self) -> list[Any]:
        """Nothing is ready. Let time pass, or wait for what is real."""
        if self._baton.is_wanted:
            return []
        if self._at_work or (self._is_joining and not self._work):
            return self._wait_for_work()
        moment = self._next_moment()
        if self._is_open_to_the_world:
            return self._wait_for_the_world(moment)
        if moment is None:
            return self._stand_still()
        self._now = moment
        self._take_due()
        return []

    def _next_moment(self) -> float | None:
        """The virtual time of the next timer, if there is one that ever comes."""
        moments = [self._scheduled[0]._when] if self._scheduled else []
        if (of_bodies := self._baton.next_moment) is not None:
            moments.append(of_bodies)
        moment = min(moments, default=math.inf)
        return None if math.isinf(moment) else max(moment, self._now)

    @property
    def _at_work(self) -> list[_Work]:
        return [work for work in self._work if not work.is_resting]

    def _wait_for_work(self) -> list[Any]:
        """Stand still while executors work, within reason."""
        events = self._own_selector.really_select(None if self._is_joining else self._patience)
        if events or self._is_joining:
            return events
        overdue = self._at_work
        self.weft_clock.complain(
            f"work in an executor took more than {self._patience:g} s of real time, in which virtual time stood "
            "still; time goes on without it from here, so what happens may not happen again. If it waits for "
            "something that takes virtual time, let it use weft.testing.sleep(); if it works for long, give the "
            f"clock more patience={list_of(f'{work.name} is at {where_thread(work.thread)}' for work in overdue)}"
        )
        for work in overdue:
            del self._work[work]
        return []

    def _work_ended(self, work: _Work) -> None:
        self._work.pop(work, None)

    @property
    def _is_open_to_the_world(self) -> bool:
        if len(self._own_selector.get_map()) > 1:  # the one is asyncio's own, for being woken up
            return True
        self._subprocesses = [each for each in self._subprocesses if each.get_returncode() is None]
        return bool(self._subprocesses)

    def _wait_for_the_world(self, moment: float | None) -> list[Any]:
        """Networks, pipes and subprocesses are not virtual: wait for real, and let as much time pass."""
        latest = math.inf if moment is None else moment
        began = time.monotonic()
        events = self._own_selector.really_select(min(latest - self._now, _LONGEST))
        self._now = min(self._now + time.monotonic() - began, latest)
        self._take_due()
        return events

    def _stand_still(self) -> list[Any]:
        """Nothing is to come that this loop knows of."""
        if self._goals:
            # Threads that time goes on without may still give something to do.
            events = self._own_selector.really_select(self._patience) if self.weft_clock.complaints else []
            if events:
                return events
            raise StandstillError(self._standstill())
        waits = bool(self._baton.has_bodies or asyncio.all_tasks(self))
        events = self._own_selector.really_select(_STANDS_STILL if waits and not self._has_warned else None)
        if not events:
            self._has_warned = True
            logger.warning("virtual time: %s", self._standstill())
        return events

    def _standstill(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        return (
            f"at {self._now:g} s of virtual time nothing can happen any more: nothing is ready, no timer is set and "
            "no thread works that time would wait for. If something comes from a thread of your own, have it started "
            "by asyncio.to_thread()"
            f"{list_of([*map(where_task, tasks), *self._baton.where()])}"
        )

    # From other threads

    def _post(self, fn: Callable[..., object], *args: Any) -> None:
        try:
            self.call_soon_threadsafe(fn, *args)
        except RuntimeError:
            if not self.is_closed():
                raise

    def _wake(self) -> None:
        if self._thread_id != get_ident():
            self._write_to_self()  # type: ignore[attr-defined]


def _is_step(handle: asyncio.Handle) -> bool:
    """Whether a task takes its next step by this callback; a method of a task that somebody asked for is none."""
    callback = handle._callback  # type: ignore[attr-defined]
    if not isinstance(getattr(callback, "__self__", None), asyncio.Task):
        return False
    return not hasattr(asyncio.Task, getattr(callback, "__name__", None) or "")


def _number(handle: asyncio.Handle) -> int:
    """The number of a task in the order of creation."""
    return getattr(handle._callback.__self__, "weft_number", 0)  # type: ignore[attr-defined]


def check_seed(seed: object) -> None:
    """Refuse what is no seed.

    Raises:
        DefinitionError: It is not a whole number.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise DefinitionError(f"a seed is a whole number, not {seed!r}; virtual_time takes several as seeds=")
