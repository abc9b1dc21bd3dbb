"""Where the branches of a block come from: what is there already, or a source that is read as there is room."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from weft.errors import InputError

if TYPE_CHECKING:
    from weft.engine.caller import Reader
    from weft.engine.planned import PlannedCall

logger = logging.getLogger("weft")

#: How many items of a source are read ahead of being started.
_AHEAD = 64

#: Seconds that are at least between two attempts to cancel the reading of a source that swallows its cancellation.
_INSIST = 0.05

_IN_MEMORY = (list, tuple, range, dict, set, frozenset, deque, str, bytes)

#: What :meth:`Feed.next` gives when nothing is there at the moment.
NOTHING = object()


class Feed(Protocol):
    """Gives the items of a block, in order; on the loop of the run."""

    @property
    def total(self) -> int | None:
        """How many there are; None while that is not known."""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to come."""

    @property
    def interrupt(self) -> BaseException | None:
        """What ended the reading and cannot wait until somebody asks for the next item: Ctrl-C."""

    def next(self) -> Any:
        """The next item, or :data:`NOTHING`: at the moment, or because it is over.

        Raises:
            BaseException: What the source raised.
        """

    def close(self, then: Callable[[], None]) -> None:
        """Read no further; ``then`` when nothing is being read any more."""


def is_in_memory(source: object) -> bool:
    """Whether the items of this source are there, so that reading them does not wait, and can be done again."""
    return isinstance(source, _IN_MEMORY) or type(source).__name__ in {
        "dict_keys",
        "dict_values",
        "dict_items",
    }


def feed_of(source: Any, call: PlannedCall) -> Feed:
    """The feed of any sync or async iterable.

    Raises:
        InputError: It is no iterable.
    """
    if is_in_memory(source):
        return Known(source)
    if isinstance(source, AsyncIterable):
        return Streamed(source, call)
    if isinstance(source, Iterable) or hasattr(type(source), "__getitem__"):  # iter() takes both
        reader = call.reader_of_source()
        return Drawn(source, call) if reader is None else Pulled(source, call, reader)
    raise InputError(
        f"{call.step.name!r} takes an iterable or async iterable, not {type(source).__name__}: {source!r:.80}"
    )


class Known:
    """Items that are in memory."""

    def __init__(self, items: Any) -> None:
        items = items if type(items) in {tuple, str, bytes, range} else tuple(items)
        self.total: int | None = len(items)
        self._items = iter(items)
        self._left = len(items)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to come."""
        return not self._left

    interrupt = None

    def next(self) -> Any:
        """The next item."""
        if not self._left:
            return NOTHING
        self._left -= 1
        return next(self._items)

    def close(self, then: Callable[[], None]) -> None:
        """There is nothing to close."""
        then()


class Drawn:
    """A sync iterable of an async program: read on its loop, one item when there is room, as a ``for`` would."""

    def __init__(self, source: Iterable[Any], call: PlannedCall) -> None:
        self.total: int | None = None
        self.is_over = False
        self._call = call
        self._source = source
        self._iterator: Iterator[Any] | None = None
        self._context = call.source_context()
        self._taken = 0

    interrupt = None

    def next(self) -> Any:
        """The next item."""
        if self.is_over:
            return NOTHING
        try:
            item = self._context.run(self._draw)
        except BaseException as error:
            _say_whence(error, self._call)
            raise
        if item is NOTHING:
            self.is_over, self.total = True, self._taken
        else:
            self._taken += 1
        return item

    def _draw(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._source)
        return next(self._iterator, NOTHING)

    def close(self, then: Callable[[], None]) -> None:
        """A generator that was not read to its end runs its ``finally``."""
        if isinstance(self._iterator, Generator):
            self._context.run(_close, self._iterator, self._call)
        then()


class _Read:
    """What the two kinds of sources share: items that were read and not taken yet."""

    total: int | None = None

    def __init__(self, call: PlannedCall) -> None:
        self._call = call
        self._items: deque[Any] = deque()
        self._taken = 0
        self._error: BaseException | None = None
        self._ended = False
        self._closed: list[Callable[[], None]] = []

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to come."""
        return self._ended and not self._items and self._error is None

    @property
    def interrupt(self) -> BaseException | None:
        """What ended the reading and cannot wait until somebody asks for the next item: Ctrl-C."""
        return None if self._error is None or isinstance(self._error, Exception) else self._error

    def _take(self) -> Any:
        if self._items:
            self._taken += 1
            return self._items.popleft()
        if self._error is not None:
            raise self._error
        return NOTHING

    def _source_ended(self, error: BaseException | None) -> None:
        self._ended = True
        self._error = error
        if error is not None:
            if isinstance(error, Exception):
                _say_whence(error, self._call)
        else:
            self.total = self._taken + len(self._items)
        self._call.advance_soon()


class Streamed(_Read):
    """An async iterable, read by a task of its own that waits when enough is there."""

    def __init__(self, source: AsyncIterable[Any], call: PlannedCall) -> None:
        super().__init__(call)
        self._source = source
        self._room: asyncio.Future[None] | None = None
        self._insisting: asyncio.TimerHandle | None = None
        self._task = call.run.loop.create_task(self._read(), context=call.source_context())

    def next(self) -> Any:
        """The next item, if one has been read."""
        item = self._take()
        if self._room is not None and len(self._items) < _AHEAD // 2:
            room, self._room = self._room, None
            if not room.done():
                room.set_result(None)
        return item

    async def _read(self) -> None:
        error, iterator = None, None
        try:
            iterator = aiter(self._source)
            async for item in iterator:
                self._items.append(item)
                self._call.advance_soon()
                if len(self._items) >= _AHEAD:
                    self._room = self._call.run.loop.create_future()
                    await self._room
        except GeneratorExit:  # the loop is gone
            raise
        except BaseException as caught:  # raised where the items are taken, never on the loop
            error = caught
        if isinstance(iterator, AsyncGenerator):  # its `finally` runs now, not when it is collected
            try:
                await iterator.aclose()
            except BaseException as caught:
                error = error or caught
        self._source_ended(error)

    def close(self, then: Callable[[], None]) -> None:
        """Cancel what is being waited for."""
        if self._task.done():
            then()
            return
        self._task.add_done_callback(lambda _: self._closed_then(then))
        self._cancel()

    def _cancel(self) -> None:
        self._task.cancel()
        # Again for one that swallows it; one that cleans up has its time.
        self._insisting = self._call.run.loop.call_later(max(self._call.run.grace, _INSIST), self._cancel)

    def _closed_then(self, then: Callable[[], None]) -> None:
        if self._insisting is not None:
            self._insisting.cancel()
        then()


class Pulled(_Read):
    """A sync iterable of a sync program, which may block: read from first to last by one thread."""

    def __init__(self, source: Iterable[Any], call: PlannedCall, reader: Reader) -> None:
        super().__init__(call)
        self._source = source
        self._reader = reader
        self._is_hungry = True  # the block has room and found nothing
        self._is_closed = False
        self._has_left = False  # the thread
        self._room = threading.Event()
        self._grace: asyncio.TimerHandle | None = None
        context = call.source_context()
        reader.put(lambda: context.run(self._pull))

    def next(self) -> Any:
        """The next item, if one has been read."""
        self._is_hungry = True
        item = self._take()
        if item is not NOTHING:
            self._is_hungry = False
        if len(self._items) < _AHEAD // 2:
            self._room.set()
        return item

    def _pull(self) -> None:
        iterator, error = None, None
        try:
            iterator = iter(self._source)
            for item in iterator:
                self._items.append(item)
                if self._is_hungry:
                    self._is_hungry = False
                    self._call.run.post(self._call.advance_soon)
                self._wait_for_room()
                if self._is_closed:
                    break
        except BaseException as caught:  # it is raised where the items are taken
            error = caught
        if isinstance(iterator, Generator):  # its `finally` runs now, in its own thread
            _close(iterator, self._call)
        self._call.run.post(self._left, error)

    def _wait_for_room(self) -> None:
        while len(self._items) >= _AHEAD and not self._is_closed:
            self._room.clear()
            if len(self._items) < _AHEAD or self._is_closed:
                return  # in this very moment
            clock = self._call.run.clock
            clock.leave()
            try:
                with self._reader.resting():
                    self._room.wait()
            finally:
                clock.enter()

    def _left(self, error: BaseException | None) -> None:
        self._has_left = True
        self._source_ended(error)
        self._tell_closed()

    def close(self, then: Callable[[], None]) -> None:
        """Wait for the item that is being read, but not longer than a sync body is waited for."""
        self._is_closed = True
        self._room.set()
        if self._has_left:
            then()
            return
        self._closed.append(then)
        stopping = self._call.stopping
        # At a timeout at once, but for the moment that a thread needs which only waits for room.
        grace = self._call.run.grace if stopping is None else max(stopping.grace, _INSIST)
        self._grace = self._call.run.loop.call_later(grace, self._give_up)

    def _give_up(self) -> None:
        call = self._call
        call.run.has_given_up(call, "its source was still being read")
        self._tell_closed()

    def _tell_closed(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        closed, self._closed = self._closed, []
        for then in closed:
            then()


def _close(generator: Generator[Any, Any, Any], call: PlannedCall) -> None:
    try:
        generator.close()
    except Exception:  # the block has its outcome already
        logger.exception("the source of %r failed when it was closed", call.step.name)


def _say_whence(error: BaseException, call: PlannedCall) -> None:
    with suppress(Exception):  # an error may refuse notes
        error.add_note(f"raised by the source of {call.step.name!r}")
