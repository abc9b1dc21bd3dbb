"""The walk behind the codec: values to msgpack and back, with one small function a type.

``None``, ``bool``, ``float``, ``bytes``, ``list``, ordinary ``str`` and ``int``, and ``dict`` with ``str``
keys are msgpack's own. Everything else is an extension (:class:`Tag`) whose payload is msgpack again. Sets
are sorted by their encoding, so equal values have equal bytes in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from msgspec.msgpack import Decoder, Ext

from weft.errors import CorruptDataError, UnstorableError

MAX_DEPTH = 200
_LONGEST_PATH = 400

pack = msgspec.msgpack.Encoder().encode


class Tag:
    """The extension types of the format, by number. A number is never given a second meaning."""

    INT = 1  # beyond 64 bits: two's complement, big endian
    STR = 2  # with lone surrogates: UTF-8, surrogatepass
    BYTEARRAY = 3
    COMPLEX = 4  # [real, imaginary]
    ELLIPSIS = 5
    TUPLE = 6  # [item, ...]
    SET = 7  # [item, ...] sorted by their bytes
    FROZENSET = 8  # the same
    DICT = 9  # [key, value, key, value, ...], where not all keys are ordinary strings
    DEQUE = 10  # [maxlen, item, ...]
    ORDERED_DICT = 11  # like DICT
    COUNTER = 12  # like DICT
    DEFAULT_DICT = 13  # [name of the factory, key, value, ...]
    DATETIME = 14  # [year, month, day, hour, minute, second, microsecond, fold, zone]
    DATE = 15  # [year, month, day]
    TIME = 16  # [hour, minute, second, microsecond, fold, zone]
    TIMEDELTA = 17  # [days, seconds, microseconds]
    TIMEZONE = 18  # [offset] or [offset, name]
    ZONE_INFO = 19  # its key
    DECIMAL = 20  # its text
    FRACTION = 21  # [numerator, denominator]
    UUID = 22  # 16 bytes
    PATH = 23  # [class, text]
    IP = 24  # [class, text]
    RANGE = 25  # [start, stop, step]
    SLICE = 26  # the same
    OBJECT = 32  # [type, [field, ...], value, ..., state outside the fields]
    ENUM = 33  # [type, member, ...]; several or none for a combination of flags
    ERRORS = 34  # [ERROR, ...]; the last is the value, the others are what it refers to
    ERROR = 35  # see errors_codec.ErrorForm
    ERROR_REF = 36  # the position of an ERROR before this one


class Refusal(Exception):  # noqa: N818 - never leaves the codec: it becomes an UnstorableError
    """A value cannot be stored. On its way up every container adds where the value was."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.trail: list[tuple[object, str]] = []  # (container, label of the item), the innermost first

    def located(self, root: str) -> UnstorableError:
        """The error for the user. A container that was met twice on the way down is a cycle."""
        path = root
        seen: dict[int, str] = {}
        for container, label in reversed(self.trail):
            if id(container) in seen:
                return UnstorableError(
                    _shortened(path), f"refers back to {seen[id(container)]}; break the cycle"
                )
            seen[id(container)] = path
            path += label
        return UnstorableError(_shortened(path), self.reason)


class UnknownTypeError(CorruptDataError):
    """Sound data of a type, field or member that this program does not have."""


class Writer:
    """Turns one value into what msgpack can encode.

    ``atoms`` are the types that msgpack takes as they are. The codec tries with ``int`` and ``str`` among
    them and, when msgpack finds one that it cannot encode, walks again without them.
    """

    __slots__ = ("atoms", "depth", "errors", "lenient", "writers")

    def __init__(self, writers: WriteTable, atoms: frozenset[type], *, lenient: bool = False) -> None:
        self.writers = writers
        self.atoms = atoms
        self.lenient = lenient  # an error need not be one that can be rebuilt
        self.depth = 0
        self.errors: Any = None  # errors_codec's, while it writes

    def write(self, value: object) -> Any:
        """What msgpack is to encode for this value.

        Raises:
            Refusal: It or something in it cannot be stored.
        """
        kind = type(value)
        if kind in self.atoms:
            return value
        writer = self.writers.get(kind) or self._unlisted(kind)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Refusal(f"is nested more than {MAX_DEPTH} levels deep; return flatter data")
        packed = writer(self, value)
        self.depth -= 1
        return packed

    def items(self, values: Iterable[object], owner: object, label: Label) -> list[Any]:
        """Each of the values written; ``label(owner, index)`` names the one that is refused."""
        out: list[Any] = []
        atoms = self.atoms
        try:
            for item in values:
                out.append(item if type(item) in atoms else self.write(item))  # noqa: PERF401 - len(out) is the index
        except Refusal as refusal:
            refusal.trail.append((owner, label(owner, len(out))))
            raise
        return out

    def attributes(self, values: Mapping[str, object], owner: object) -> dict[str, Any]:
        """Named values of an object written."""
        names = list(values)
        return dict(
            zip(names, self.items(values.values(), owner, lambda _, at: f".{names[at]}"), strict=True)
        )

    def _unlisted(self, kind: type) -> WriteFunction:
        if issubclass(kind, BaseException):
            return self.writers[BaseException]
        return _refuse


class Reader:
    """Turns bytes into the value, by a table of extension types."""

    __slots__ = ("errors", "items", "readers", "shapes", "value")

    def __init__(self, readers: ReadTable, shapes: Mapping[str, Any]) -> None:
        self.readers = readers
        self.shapes = shapes
        self.errors: list[Any] | None = None  # those read so far, inside a Tag.ERRORS
        self.value: Callable[[bytes | memoryview], Any] = Decoder(ext_hook=self._extension).decode
        self.items: Callable[[bytes | memoryview], list[Any]] = Decoder(list, ext_hook=self._extension).decode

    def fork(self) -> Reader:
        """A reader of the same kind with no errors yet, for the inside of one ``Tag.ERRORS``."""
        inside = Reader(self.readers, self.shapes)
        inside.errors = []
        return inside

    def _extension(self, code: int, payload: memoryview) -> Any:
        return self.readers[code](self, payload)


Label = Callable[[Any, int], str]
WriteFunction = Callable[[Writer, Any], Any]
WriteTable = dict[type, WriteFunction]
ReadFunction = Callable[[Reader, memoryview], Any]
ReadTable = Mapping[int, ReadFunction]


def extension(tag: int, items: list[Any]) -> Ext:
    """An extension whose payload is a list."""
    return Ext(tag, pack(items))


def tag_of(cls: type) -> str:
    """How a class is named in the data."""
    return f"{cls.__module__}:{cls.__qualname__}"


def short_repr(value: object, limit: int = 60) -> str:
    """``repr``, cut at a limit, whatever the class of the value does."""
    try:
        text = repr(value)
    except Exception:  # a user's __repr__
        return f"<{type(value).__qualname__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _refuse(w: Writer, value: object) -> Any:
    kind = type(value)
    name = kind.__qualname__
    base = next((base for base in kind.__mro__ if base in w.writers or base in w.atoms), None)
    if kind in (type, type(_refuse), type(len)) or isinstance(value, type):
        raise Refusal(f"is the {name} {short_repr(value)}, which is code; return data instead")
    if base is not None:
        raise Refusal(
            f"is a {name}, a subclass of {base.__name__} that would come back as {base.__name__}; "
            f"return a plain {base.__name__}, or, if it is an enum or NamedTuple, {_how_to_register(name)}"
        )
    raise Refusal(f"is {_a(name)}; pass data instead, or {_how_to_register(name)}")


def _a(name: str) -> str:
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def _how_to_register(name: str) -> str:
    return f"register the type: saver.codec.register({name})"


def _shortened(path: str) -> str:
    if len(path) <= _LONGEST_PATH:
        return path
    return f"{path[: _LONGEST_PATH // 2]}…{path[-_LONGEST_PATH // 2 :]}"
