"""What a graph's nodes stream to while they run: ``Callback``, ``EventCallback``, ``GraphEvent``. After GraphAI."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, NamedTuple

from weft.engine.context import current
from weft.errors import UsageError

if TYPE_CHECKING:
    from weft.engine.call import Call


logger = logging.getLogger("weft")

#: How `Callback` writes what happens, and what is streamed.
_SPECIAL, _PLAIN = "<{identifier}:{token}:{params}>", "{token}"


class GraphEventType(Enum):
    """What happened."""

    START = "start"
    END = "end"
    START_NODE = "start_node"
    END_NODE = "end_node"
    CALLBACK = "callback"

    def __str__(self) -> str:
        return self.value

    def __eq__(self, other: object) -> bool:
        """Also to the plain word, which is what users compare with."""
        return self is other or self.value == other

    __hash__ = Enum.__hash__


@dataclass
class GraphEvent:
    """Something that a streaming node said, or that it begins or ends.

    Attributes:
        type: What happened: a :class:`GraphEventType`, or a word of the node's own.
        identifier: Who says so; "graphai" unless the callback was given another name.
        token: What was streamed, or the name of the node.
        params: More, as the node gave it.
    """

    type: GraphEventType | str
    identifier: str
    token: str | None = None
    params: Mapping[str, Any] | None = None

    def encode(self, charset: str = "utf-8") -> bytes:
        """As a server-sent event whose data is JSON."""
        import json  # noqa: PLC0415 - only who sends events needs it

        data = {
            "type": str(self.type),
            "identifier": self.identifier,
            "token": self.token,
            "params": self.params,
        }
        return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode(charset)


class _End(NamedTuple):
    """The last of a stream: no other is it, though it may look like it."""

    item: Any


class _Stream:
    """A queue that nodes put into, on any thread, and one consumer reads on its loop."""

    def __init__(self, identifier: str) -> None:
        self.identifier = identifier
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.active = True  # of the node that began last
        self.first_token = True
        self.current_node_name: str | None = None  # as above
        self._nodes: dict[str, list[bool]] = {}  # those at work, each with whether it is active
        self.is_unread = False  # nobody can read it, so nothing need be kept
        self._loop: asyncio.AbstractEventLoop | None = None  # of who reads
        self._lock = threading.Lock()
        self._done = False
        self._was_read = False  # to its end

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be put into it."""
        return self._done

    def _put(self, item: Any) -> None:
        if self.is_unread:
            return
        with self._lock:
            if self._loop is None or self._loop is asyncio._get_running_loop():
                self.queue.put_nowait(item)
                return
            with suppress(RuntimeError):  # who reads has gone, with his loop; that concerns nobody else
                self._loop.call_soon_threadsafe(self.queue.put_nowait, item)

    def _say(self, item: Any) -> None:
        """Something that a node streams; the run's own stream has it as well."""
        self._check_open()
        self._put(item)
        call = current.get()
        if call is not None:
            call.run.tell(call.tell_user_event, item)

    def _check_open(self) -> None:
        if self._done:
            raise UsageError(
                "this callback's stream is closed, by a node or since its execution has ended; "
                "use one for each execution"
            )

    def _begin_node(self, name: str, active: bool) -> bool:
        self.current_node_name, self.active, self.first_token = name, active, False
        with self._lock:
            self._nodes.setdefault(name, []).append(active)
        return active and not self._done

    def _end_node(self, name: str) -> bool:
        with self._lock:
            active = self._nodes.get(name) or [self.active]
            return active.pop() and not self._done

    async def _read(self) -> AsyncIterator[Any]:
        with self._lock:
            self._loop = asyncio.get_running_loop()
        while not self._was_read:
            item = await self.queue.get()
            if isinstance(item, _End):
                self._was_read = True
                self.queue.put_nowait(item)  # for another who reads
                item = item.item
            yield item
            self.queue.task_done()

    def _close(self, last: Any) -> None:
        if not self._done:
            self._done = True
            self._put(_End(last))


class EventCallback(_Stream):
    """What a ``stream=True`` node gets as ``callback``; whoever runs the graph reads :class:`GraphEvent` from it.

    ::

        callback = EventCallback()
        running = asyncio.create_task(graph.execute({"query": "..."}, callback=callback))
        async for event in callback.aiter():
            print(event.token)

    Args:
        identifier: What its events carry, for example the id of a conversation.
        special_token_format: Taken for GraphAI's sake, and not used.
        token_format: As ``special_token_format``.
    """

    def __init__(
        self,
        identifier: str = "graphai",
        special_token_format: str | None = None,
        token_format: str | None = None,
    ) -> None:
        super().__init__(identifier)

    def __call__(
        self,
        token: str | None = None,
        type: GraphEventType | str = GraphEventType.CALLBACK,
        identifier: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """Stream this; from any thread.

        Raises:
            UsageError: The execution has ended.
        """
        self._say(GraphEvent(type, identifier or self.identifier, token, params))

    async def acall(
        self,
        token: str | None = None,
        type: GraphEventType | str = GraphEventType.CALLBACK,
        identifier: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """As calling it."""
        self(token, type, identifier, params)

    async def aiter(self) -> AsyncIterator[GraphEvent]:
        """The events as they come, until the execution ends."""
        async for event in self._read():
            yield event

    async def start_node(self, node_name: str, active: bool = True) -> None:
        """A streaming node begins; ``active=False`` keeps quiet about it."""
        if self._begin_node(node_name, active):
            self._put(GraphEvent(GraphEventType.START_NODE, self.identifier, node_name))

    async def end_node(self, node_name: str) -> None:
        """It has ended."""
        if self._end_node(node_name):
            self._put(GraphEvent(GraphEventType.END_NODE, self.identifier, node_name))

    async def close(self) -> None:
        """Nothing more comes; who reads is told so."""
        self._close(GraphEvent(GraphEventType.END, self.identifier))


class Callback(_Stream):
    """As :class:`EventCallback`, in one stream of text: what happens stands in it as special tokens.

    Args:
        identifier: What the special tokens carry.
        special_token_format: How they are written, of ``{identifier}``, ``{token}`` and ``{params}``.
        token_format: How what is streamed is written, of ``{token}``.
    """

    def __init__(
        self,
        identifier: str = "graphai",
        special_token_format: str = _SPECIAL,
        token_format: str = _PLAIN,
    ) -> None:
        super().__init__(identifier)
        self.special_token_format = special_token_format
        self.token_format = token_format

    def __call__(self, token: str, node_name: str | None = None) -> None:
        """Stream this; from any thread.

        Raises:
            UsageError: The execution has ended.
            ValueError: This node is not at work.
        """
        if node_name is not None and not self._nodes.get(node_name):
            raise ValueError(
                f"node {node_name!r} streams, but the nodes at work are {[*filter(self._nodes.get, self._nodes)]}"
            )
        self._say(self.token_format.format(token=token) if self.token_format != _PLAIN else token)

    async def acall(self, token: str, node_name: str | None = None) -> None:
        """As calling it."""
        self(token, node_name)

    async def aiter(self) -> AsyncIterator[str]:
        """The text as it comes, until the execution ends."""
        async for token in self._read():
            yield token

    async def start_node(self, node_name: str, active: bool = True) -> None:
        """A streaming node begins; ``active=False`` keeps quiet about it."""
        if self._begin_node(node_name, active):
            self._put(self._special(f"{node_name}:start"))
            self._put(self._special(node_name))

    async def end_node(self, node_name: str) -> None:
        """It has ended."""
        if self._end_node(node_name):
            self._put(self._special(f"{node_name}:end"))

    async def close(self) -> None:
        """Nothing more comes; who reads is told so."""
        self._close(self._special("END"))

    def _special(self, name: str) -> str:
        return self.special_token_format.format(identifier=self.identifier or "", token=name, params="")


#: Seconds for which a callback may take to be closed.
_CLOSING = 10.0

#: Seconds after which one looks whether that is still wanted.
_CLOSING_LOOK = 0.25


async def close_callback(callback: Any) -> None:
    """Nothing more is streamed; may be done twice. What it raises is logged."""
    try:
        closing = callback.close()
        if isawaitable(closing):
            await closing
    except Exception:  # it concerns who reads what was streamed, not the execution
        logger.exception("the callback %r could not be closed", callback)


async def close_in_time(callback: Any, call: Call, then: Callable[[], None]) -> None:
    """Close it for as long as whoever waits for this call can wait, and ``then()``."""
    run = call.run
    loop = run.loop
    closing = loop.create_task(close_callback(callback))
    end = loop.time() + _CLOSING
    try:
        while not closing.done() and loop.time() < end:
            await asyncio.wait({closing}, timeout=min(_CLOSING_LOOK, end - loop.time()))
            if call.stopping is not None:
                end = min(end, loop.time() + run.grace)
        if not closing.done():
            closing.cancel()
            logger.warning("the callback %r was left, since it is not closed in time", callback)
    finally:
        then()


__all__ = ["Callback", "EventCallback", "GraphEvent", "GraphEventType", "close_callback", "close_in_time"]
