"""Any ``concurrent.futures.Executor``, as it is: it calls bodies, and knows nothing of what a call is."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

from weft.executors.base import Body, Dropped, Listener, check_carry


class PoolExecutor:
    """Gives bodies to a ``concurrent.futures.Executor``.

    A body that has begun cannot be ended: when nobody waits for it any more, it is left to itself. The time for which
    it waits in the pool counts for its timeout. What it writes and logs in another process is seen when it has ended.

    Args:
        pool: The executor. A ThreadPoolExecutor calls bodies in their own context; any other is taken to call them in
            another process, so that what it is given has to be sendable.
        carry: Context variables whose values bodies in other processes see as they were where the call was asked for.
    """

    def __init__(self, pool: concurrent.futures.Executor, *, carry: Iterable[ContextVar[Any]] = ()) -> None:
        self.pool = pool
        self.carry = check_carry(carry)

    def begin(self, body: Body, listener: Listener) -> _Flight:
        """Have a body called by the pool; see :class:`weft.executors.base.Executor`."""
        listener.begun()
        if shares_memory(self.pool):
            run = copy_context().run
            future: concurrent.futures.Future[Any] = self.pool.submit(run, body.fn, *body.args, **body.kwargs)
            future.add_done_callback(partial(_tell_result, listener))
        else:
            from weft.executors.hosted import call_here  # noqa: PLC0415 - threads need nothing to be packed
            from weft.executors.parcel import packed  # noqa: PLC0415

            future = self.pool.submit(call_here, packed(body, self.carry))
            future.add_done_callback(partial(_tell_report, listener))
        return _Flight(future)


def shares_memory(pool: concurrent.futures.Executor) -> bool:
    """Whether what it calls runs in threads of this interpreter, so that nothing need be sent."""
    # An InterpreterPoolExecutor derives from it, and its threads share nothing.
    is_of_interpreters = any(each.__name__ == "InterpreterPoolExecutor" for each in type(pool).__mro__)
    return isinstance(pool, concurrent.futures.ThreadPoolExecutor) and not is_of_interpreters


class _Flight:
    __slots__ = ("_future",)

    def __init__(self, future: concurrent.futures.Future[Any]) -> None:
        self._future = future

    def tell(self) -> None:
        """If it has not begun, it never will."""
        self._future.cancel()

    def kill(self) -> bool:
        """Only what has not begun can be ended."""
        return self._future.cancel()


def _failure(future: concurrent.futures.Future[Any]) -> BaseException | None:
    return Dropped() if future.cancelled() else future.exception()


def _tell_result(listener: Listener, future: concurrent.futures.Future[Any]) -> None:
    error = _failure(future)
    listener.ended(None if error is not None else future.result(), error)


def _tell_report(listener: Listener, future: concurrent.futures.Future[bytes]) -> None:
    error = _failure(future)
    if error is not None:
        listener.ended(None, error)
    else:
        from weft.executors.parcel import unpack  # noqa: PLC0415 - as above
        from weft.executors.report import tell_report  # noqa: PLC0415

        tell_report(unpack(future.result()), listener)
