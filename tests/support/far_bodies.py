"""Bodies that executors run elsewhere: found there by their names."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import time
from typing import Any

from noting import note
from opentelemetry import trace

import weft

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="nobody's")


def double(x: int) -> int:
    return x * 2


async def double_async(x: int) -> int:
    await asyncio.sleep(0)
    return x * 2


def where(_: Any = None) -> int:
    return os.getpid()


def die(how: str) -> None:
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "memory":
        _ = bytearray(64 << 30)
    time.sleep(60)


def spin_for(seconds: float) -> float:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return seconds


def spin_for_ever(log: str) -> None:
    note(log, str(os.getpid()))
    while True:
        pass


def counted(item: tuple[str, int, float]) -> int:
    log, x, seconds = item
    time.sleep(seconds)
    note(log, str(x))
    return x * x


def asked_of(x: int) -> dict[str, Any]:
    logging.getLogger("far").warning("asked of %s", x)
    return {
        "call_id": weft.call_id(),
        "remaining": weft.remaining(),
        "cancelled": weft.cancelled(),
        "request_id": request_id.get(),
    }


def written(x: int, writer: weft.StreamWriter) -> int:
    for i in range(x):
        writer(i)
    return x


def wait_until_cancelled(log: str) -> None:
    note(log, "began")
    while not weft.cancelled():
        time.sleep(0.005)
    note(log, "told")


class Odd(Exception):
    """One that is not made of its args."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code
        self.why = why


def fail(kind: str) -> None:
    if kind == "odd":
        raise Odd(7, why="it is so")
    if kind == "exit":
        raise SystemExit(3)
    raise ValueError("no", kind)


@weft.task
def step(item: tuple[str, int, float]) -> int:
    return counted(item)


@weft.entrypoint()
def whole(item: tuple[str, int, float]) -> int:
    """A workflow of its own for each item."""
    found: int = step(item).result()
    return found


def span(_: Any = None) -> tuple[int, int]:
    context = trace.get_current_span().get_span_context()
    return context.trace_id, context.span_id
