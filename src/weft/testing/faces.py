"""How tests use virtual time."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, overload

from weft.engine.portal import stand_in
from weft.errors import DefinitionError, UsageError
from weft.testing.baton import here
from weft.testing.clock import VirtualClock
from weft.testing.loop import CORES, MEMORY, PATIENCE, VirtualLoop, check_seed
from weft.testing.standstill import StandstillError, name_of

T = TypeVar("T")
P = ParamSpec("P")

_really_sleep = time.sleep  # so that a test may put our sleep() in its place


def run(
    main: Coroutine[Any, Any, T] | Callable[[], Coroutine[Any, Any, T]],
    *,
    seed: int | None = None,
    cores: int = CORES,
    memory: int = MEMORY,
    patience: float | None = PATIENCE,
) -> T:
    """Run a coroutine on a loop of virtual time and return its result; otherwise as :func:`asyncio.run`.

    Args:
        main: A coroutine, or a coroutine function without parameters.
        seed: Decides the order in which what is ready runs; None leaves asyncio's order.
        cores: What a run believes to have.
        memory: As well, in bytes.
        patience: Real seconds for which a thread may work while time stands still; None for as long as it takes.

    Raises:
        StandstillError: Nothing can happen any more, or a thread worked for longer than ``patience``.
        UsageError: A loop is running in this thread.
    """
    coroutine: Coroutine[Any, Any, T] = main() if callable(main) else main
    if not inspect.iscoroutine(coroutine):
        raise DefinitionError(f"run() takes a coroutine or a coroutine function, not {main!r}")

    def new_loop() -> VirtualLoop:
        return VirtualLoop(seed, cores=cores, memory=memory, patience=patience)

    try:
        _check_no_loop("run() starts a loop of its own; inside one, await what you would give to it")
        with asyncio.Runner(loop_factory=new_loop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, VirtualLoop)
            with _loud(loop.weft_clock):
                result: T = runner.run(coroutine)
                return result
    finally:
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


@contextmanager
def virtual_clock(
    seed: int | None = None,
    *,
    cores: int = CORES,
    memory: int = MEMORY,
    patience: float | None = PATIENCE,
) -> Iterator[VirtualClock]:
    """Runs that sync code begins in this context use virtual time; gives their clock.

    Options are those of :func:`run`. Leave it when the runs have ended: what still goes on is cancelled.

    Raises:
        StandstillError: On leaving: a thread worked for longer than ``patience``.
    """
    loop = VirtualLoop(seed, cores=cores, memory=memory, patience=patience)
    thread = threading.Thread(target=_serve, args=(loop,), name="weft-virtual-loop", daemon=True)
    thread.start()
    before = stand_in.get()
    stand_in.set(loop)
    with _loud(loop.weft_clock):
        try:
            yield loop.weft_clock
        finally:
            stand_in.set(before)
            loop.call_soon_threadsafe(loop.end)
            thread.join()


@overload
def virtual_time(seed: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, T]: ...
@overload
def virtual_time(
    seed: int | None = None,
    *,
    seeds: Iterable[int] | None = None,
    cores: int = CORES,
    memory: int = MEMORY,
    patience: float | None = PATIENCE,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, T]]: ...
def virtual_time(
    seed: Any = None,
    *,
    seeds: Iterable[int] | None = None,
    cores: int = CORES,
    memory: int = MEMORY,
    patience: float | None = PATIENCE,
) -> Any:
    """Decorate an ``async def`` test so that it runs in virtual time, with no plugin.

    Options are those of :func:`run`, and ``seeds``: the test runs once for each of them. A failure has a note that
    names its seed. Fixtures are those of the test as a whole: all seeds share them.

    Raises:
        DefinitionError: The test is not ``async def``, or there is no seed in ``seeds``.
    """
    if callable(seed):
        return virtual_time()(seed)
    chosen = _chosen(seed, seeds)

    def decorate(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
        if not inspect.iscoroutinefunction(test):
            raise DefinitionError(
                f"virtual_time is for async def, and {name_of(test)} is none; in a sync test write "
                "`with virtual_clock():`"
            )

        @wraps(test)
        def tested(*args: P.args, **kwargs: P.kwargs) -> T:
            result: Any = None
            for each in chosen:
                with _naming(each):
                    main = test(*args, **kwargs)
                    result = run(main, seed=each, cores=cores, memory=memory, patience=patience)
            return result  # type: ignore[no-any-return]

        return tested

    return decorate


def sleep(seconds: float) -> None:
    """Block this thread for so many seconds: of virtual time in a sync body under a virtual clock, else of real time.

    Under a virtual clock it may also be used by what ``asyncio.to_thread`` runs, and by the thread that entered
    ``virtual_clock()``. A test may put it in the place of ``time.sleep`` of the code that it tests.

    Raises:
        UsageError: On a virtual loop, which it would block for ever.
    """
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    if here.sleep is not None:
        here.sleep(seconds)
        return
    _check_no_loop("sleep() would block the virtual loop; write `await asyncio.sleep(...)`", kind=VirtualLoop)
    loop = stand_in.get()
    if isinstance(loop, VirtualLoop) and not loop.is_closed():
        loop.sleep_in_thread(seconds)
        return
    _really_sleep(seconds)


def _serve(loop: VirtualLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop()
        loop.serve()


@contextmanager
def _loud(clock: VirtualClock) -> Iterator[None]:
    """What broke the promises of virtual time is an error at the end, or a note to the error that there is."""
    try:
        yield
    except BaseException as error:
        for complaint in clock.complaints:
            error.add_note(f"virtual time: {complaint}")
        raise
    if clock.complaints:
        raise StandstillError("\n".join(clock.complaints))


@contextmanager
def _naming(seed: int | None) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # pytest's own signals are no Exceptions
        if seed is not None:
            error.add_note(
                f"in virtual time with seed={seed}; virtual_time(seed={seed}) runs this order alone"
            )
        raise


def _chosen(seed: int | None, seeds: Iterable[int] | None) -> tuple[int | None, ...]:
    if seeds is None:
        check_seed(seed)
        return (seed,)
    if seed is not None:
        raise DefinitionError(
            f"virtual_time takes seed= or seeds=, not both; here are {seed!r} and {seeds!r}"
        )
    chosen = tuple(seeds)
    if not chosen:
        raise DefinitionError(f"seeds={seeds!r} is empty, so the test would never run")
    for each in chosen:
        check_seed(each)
    return chosen


def _check_no_loop(message: str, kind: type = asyncio.AbstractEventLoop) -> None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if isinstance(loop, kind):
        raise UsageError(message)
