"""What is sent to other processes and back, found there by its name."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

import weft

number: ContextVar[int] = ContextVar("number", default=0)
renamed: ContextVar[int] = ContextVar("another name")


class Odd(Exception):
    """Its ``__init__`` takes something else than it passes on."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code
        self.why = why


class Twice(Exception):
    """Made again from its args, it would say it twice."""

    def __init__(self, text: str) -> None:
        super().__init__(f"twice {text}")


class Holding(Exception):
    """It holds what cannot be sent."""

    def __init__(self, text: str) -> None:
        super().__init__(text, threading.Lock())
        self.lock = threading.Lock()
        self.code = 7


class Own(Exception):
    """It says itself how it is made again."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a)
        self.b = b

    def __reduce__(self) -> Any:
        return Own, (self.args[0], self.b)


class Disk(OSError):
    def __init__(self, number: int, text: str, *, disk: str) -> None:
        super().__init__(number, text)
        self.disk = disk


class Group(ExceptionGroup):
    def __new__(cls, errors: list[Exception]) -> Self:
        found = super().__new__(cls, "some", errors)
        found.count = len(errors)
        return found

    def derive(self, errors: Any) -> Group:
        return Group(errors)


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def make(kind: str) -> BaseException:
    made: dict[str, Callable[[], BaseException]] = {
        "odd": lambda: Odd(3, why="so"),
        "twice": lambda: Twice("x"),
        "holding": lambda: Holding("held"),
        "own": lambda: Own(1, 2),
        "disk": lambda: Disk(2, "no such thing", disk="c"),
        "key": lambda: KeyError("k"),
        "unicode": lambda: UnicodeDecodeError("utf-8", b"abc", 0, 1, "bad"),
        "import": lambda: ImportError("no", name="n", path="p"),
        "exit": lambda: SystemExit(4),
        "interrupt": lambda: KeyboardInterrupt("ctrl"),
        "stop": lambda: StopIteration(5),
        "generator": lambda: GeneratorExit("g"),
        "group": lambda: ExceptionGroup("many", [Odd(1, why="a"), ValueError(2)]),
        "owngroup": lambda: Group([Odd(1, why="a"), ValueError(2)]),
        "heldgroup": lambda: ExceptionGroup("many", [Holding("h"), ValueError(2)]),
        "base": lambda: BaseExceptionGroup("many", [KeyboardInterrupt(), ValueError(2)]),
        "node": lambda: weft.NodeTimeoutError("n", timeout=1, elapsed=2, idle=False),
        "unshowable": lambda: Unshowable("x"),
        "noted": _noted,
    }
    return made[kind]()


def _noted() -> BaseException:
    error = ValueError("with notes")
    error.add_note("one")
    error.add_note("two")
    return error


def fail(kind: str) -> None:
    raise make(kind)


@dataclass
class Point:
    x: int
    tags: dict[str, Any] = field(default_factory=dict)


class Client:
    def __init__(self) -> None:
        self.session = {"deep": [1, threading.Lock()]}


class Unmakeable:
    """It can be sent, but not be made again."""

    def __reduce__(self) -> Any:
        return _never, ("it",)


class Slow:
    """It takes its time to be made again, as what imports much."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __reduce__(self) -> Any:
        return _slowly, (self.seconds,)


def _slowly(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _never(what: str) -> None:
    raise ValueError(f"{what} cannot be made again")


def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any) -> Any:
        return "logged", fn(*args)

    return wrapper


@weft.task(executor="process")
@logged
def decorated(x: int) -> int:
    return x + 1


@logged
def behind(x: int) -> int:
    return x + 2


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def add(self, x: int) -> int:
        return self.start + x

    @weft.task(executor="process")
    def far_add(self, x: int) -> int:
        return self.start + x

    @classmethod
    def made(cls, x: int) -> int:
        return cls(100).add(x)

    @staticmethod
    def plain(x: int) -> int:
        return -x

    def __call__(self, x: int) -> int:
        return self.start * x


@weft.task(executor="process")
def factorial(n: int) -> int:
    return 1 if n < 2 else n * factorial.func(n - 1)
