"""The walk behind the codec: values to msgpack and back, with one small function a type.

``None``, ``bool``, ``float``, ``bytes``, ``list``, ordinary ``str`` and ``int``, and ``dict`` with ``str``
keys are msgpack's own. Everything else is an extension (:class:`Tag`) whose payload is msgpack again. Sets
are sorted by their encoding, so equal values have equal bytes in every process.

Both ways are bounded: in depth, in size, in how often one object may be met again, and in how many keys may
share a hash. Bytes that would break a bound are found before they are decoded (:func:`check_bounds`).
"""

from __future__ import annotations

import reprlib
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from operator import length_hint, mul
from typing import Any, NamedTuple

import msgspec
from msgspec.msgpack import Decoder, Ext

from weft.errors import CorruptDataError, UnstorableError

MAX_DEPTH = 200
MAX_SIZE = 2**29
"""The most bytes of one value, of which the largest store takes a little less than double."""

_LONGEST_TEXT = 400  # of a path, or of what is quoted in a message
LARGE = 1_000  # items from which a container is looked at, whether it was met before; the smaller ones are
ALERT = 100_000  # looked at after so many items in all
_REPEATED = (
    300_000  # items of objects met before that are allowed, and as many more for each item that is new:
)
_REPEATED_PER_ITEM = 256
_MOST_IN_ERRORS = 1_000_000  # items in what an error refers to, whether or not they can be kept
_SAME_HASH = 256  # keys with one hash, on average over the keys

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


_BYTES = frozenset({bytes})
_SIZED = frozenset({str, bytes})
MANY = 16  # items, from which it pays to look at all types at once


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
                    shortened(path), f"refers back to {seen[id(container)]}; break the cycle"
                )
            seen[id(container)] = path
            path += label
        return UnstorableError(shortened(path), self.reason)


class UnknownTypeError(CorruptDataError):
    """Sound data of a type, field or member that this program does not have."""


class Writer:
    """Turns one value into what msgpack can encode.

    ``atoms`` are the types that msgpack takes as they are, but for ``bytes``, which are counted. The codec
    tries with ``int`` and ``str`` among them and, when msgpack finds one that it cannot encode, walks again
    without them.
    """

    __slots__ = (
        "atoms", "bytes", "count", "depth", "errors", "fresh", "lenient", "repeated", "seen", "text", "writers",
    )  # fmt: skip

    def __init__(self, writers: WriteTable, atoms: frozenset[type], *, lenient: bool = False) -> None:
        self.writers = writers
        self.atoms = atoms
        self.text = str if str in atoms else None
        self.lenient = lenient  # an error need not be one that can be rebuilt
        self.depth = 0
        self.errors: Any = None  # errors_codec's, while it writes
        self.count = 0  # of items in containers, and of containers
        self.bytes = 0  # of texts and the like
        self.seen: set[int] | None = None  # containers looked at, by id; made with the counts of them

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

    def items(self, values: Collection[object], owner: object, label: Label) -> list[Any]:
        """Each of the values written; ``label(owner, index)`` names the one that is refused."""
        length = len(values)
        self.count += length + 1
        if length > MANY or self.count > ALERT:
            self.look(length, owner)
            if length > MANY and self.plain(values):
                return list(values)
        out: list[Any] = []
        atoms, text = self.atoms, self.text
        size = 0
        try:
            for item in values:
                kind = type(item)
                if kind is text:
                    size += len(item)  # type: ignore[arg-type] # it is a str
                    out.append(item)
                elif kind in atoms:
                    out.append(item)
                else:
                    out.append(self.write(item))
        except Refusal as refusal:
            refusal.trail.append((owner, label(owner, len(out))))
            raise
        if size:
            self.weigh(size)
        return out

    def plain(self, values: Collection[object]) -> bool:
        """Whether msgpack takes all of these as they are; then they are weighed.

        Raises:
            Refusal: As ``weigh`` does.
        """
        kinds = set(map(type, values))
        if not kinds - _BYTES <= self.atoms:
            return False
        if kinds <= _SIZED:
            self.weigh(sum(map(len, values)))  # type: ignore[arg-type] # str and bytes
        elif not kinds.isdisjoint(_SIZED):
            self.weigh(sum(map(length_hint, values)))
        return True

    def weigh(self, size: int) -> None:
        """Count bytes of texts and the like.

        Raises:
            Refusal: The whole would be too large.
        """
        self.bytes += size
        if self.bytes > MAX_SIZE:
            raise Refusal(
                f"makes the whole larger than {MAX_SIZE // 2**20} MiB; store it elsewhere and return where it is"
            )

    def look(self, size: int, owner: object) -> None:
        """Look whether this container was met before, if it is large or there are many.

        Raises:
            Refusal: The whole would be by far larger than what it is made of.
        """
        if size <= LARGE and self.count <= ALERT:
            return
        if self.lenient and self.count > _MOST_IN_ERRORS:
            raise Refusal("is more than is recorded of an error")
        if self.seen is None:
            self.seen = set()
            self.fresh = self.repeated = 0  # items of containers met for the first time, and again
        if id(owner) in self.seen:
            self.repeated += size
        else:
            self.seen.add(id(owner))
            self.fresh += size
        if self.repeated > _REPEATED + _REPEATED_PER_ITEM * self.fresh:
            raise Refusal(
                "is part of a value that refers to the same objects again and again, each of which would be "
                "stored as often as it is met; return each object once, and refer to it by a name or number"
            )

    def attributes(self, values: Mapping[str, object], owner: object) -> dict[str, Any]:
        """Named values of an object written."""
        names = list(values)
        return dict(
            zip(names, self.items(list(values.values()), owner, lambda _, at: f".{names[at]}"), strict=True)
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
        if len(payload) > _SMALL_MAPS and code not in _NOT_MSGPACK:
            _check_maps(bytes(payload))
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
    """``repr``, cut at a limit, whatever the class of the value does and however large it is."""
    try:
        if type(value) in (str, bytes, bytearray):
            text = repr(value[:limit])  # type: ignore[index] # one of the three
        else:
            text = repr(value) if parts(value, _SMALL) < _SMALL else _brief.repr(value)
    except Exception:  # a user's __repr__
        return f"<{type(value).__qualname__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"


_SMALL = 1_000
_brief = reprlib.Repr()
_CONTAINERS = frozenset({list, tuple, set, frozenset, deque})
_MAPPINGS = frozenset({dict, OrderedDict, defaultdict, Counter})
args_of = vars(BaseException)["args"].__get__
members_of = vars(BaseExceptionGroup)["exceptions"].__get__


def parts(value: object, limit: int) -> int:
    """How many parts ``repr`` would show, each as often as it is met; counting ends at the limit."""
    waiting = [value]
    count = 0
    while waiting and count < limit:
        one = waiting.pop()
        kind = type(one)
        count += 1
        if kind in _CONTAINERS or kind in _MAPPINGS:
            inside: Any = one
        elif issubclass(kind, BaseExceptionGroup):
            inside = members_of(one)
        elif issubclass(kind, BaseException):
            inside = args_of(one)
        else:
            count += length_hint(one) // 100 if kind in _SIZED else 0
            continue
        if len(inside) + len(waiting) + count >= limit:
            return limit
        waiting += inside.values() if kind in _MAPPINGS else inside
        waiting += inside if kind in _MAPPINGS else ()
    return min(count, limit)


def too_alike(keys: Collection[object]) -> bool:
    """Whether so many of the keys share a hash that a dict of them would take ages to build."""
    if len(keys) <= _SAME_HASH:
        return False
    if len(set(map(hash, keys))) > len(keys) - _SAME_HASH:
        return False
    counts = Counter(map(hash, keys)).values()
    return max(counts) > _SAME_HASH and sum(map(mul, counts, counts)) > _SAME_HASH * len(keys)


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


def shortened(text: str, limit: int = _LONGEST_TEXT) -> str:
    """The two ends of a long text."""
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 :]}"


TEXT = frozenset({str})


def text_keys(state: object) -> bool:
    """Whether this is a dict of names, such as the attributes of an object."""
    return type(state) is dict and TEXT.issuperset(map(type, state))


# What bytes may be decoded at all
#
# Two things have to be known before msgspec is at work, since it cannot be stopped: how deep arrays and maps
# are nested (it recurses in C, and on Python 3.11 a program that raises the recursion limit takes away what
# stops it), and that the keys of large maps are text (other keys can be made to share a hash, and a map of
# a hundred thousand of those takes a minute). Looking at each byte in Python would cost more than decoding
# does, so both are ruled out by cheaper means.

NO_HARM = 4_096
"""Bytes that are too few to be looked at, whatever they are."""

_SAFE_RECURSION = 3_000  # a recursion limit that no program has crashed at
_DEEPEST = 1_000  # arrays, maps and extensions in each other: a level of a value is up to three
_SMALL_MAPS = 16 * 1024  # bytes that are too few for a map that takes long
_LARGE_MAP = 64
_MANY_ODD_MAPS = 1_000  # from which it is no dearer to look at each byte
_NESTING = bytes([*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)])
_INVALID = 0xC1  # the one byte that begins nothing in msgpack
_WITHOUT_LARGE_MAPS = bytes(_INVALID if head in (0xDE, 0xDF) else head for head in range(256))


def check_bounds(data: bytes) -> None:
    """Refuse bytes that would take too long or too deep a stack to decode.

    Raises:
        CorruptDataError: They were never encoded by a codec.
    """
    if len(data) > MAX_SIZE:
        raise CorruptDataError(f"{len(data)} bytes are more than the {MAX_SIZE} that are ever encoded")
    if _may_be_deep(data):
        _survey(data, inside_extensions=True)
    _check_maps(data)


def _may_be_deep(data: bytes) -> bool:
    if sys.getrecursionlimit() <= _SAFE_RECURSION:
        return False
    return len(data) - len(data.translate(None, _NESTING)) > _DEEPEST


def _check_maps(data: bytes) -> None:
    """Refuse large maps whose keys are no text, outside of extensions.

    The byte that a large map begins with may as well be part of a number or text. Which it is shows when it
    is replaced by one that is invalid: then msgpack can skip the whole only if it was a part.
    """
    if len(data) <= _SMALL_MAPS or (b"\xde" not in data and b"\xdf" not in data):
        return
    if _can_be_skipped(data.translate(_WITHOUT_LARGE_MAPS)):
        return
    odd = _odd_maps(data)
    if not odd:
        return
    if len(odd) > _MANY_ODD_MAPS:
        _survey(data, inside_extensions=False)
        return
    changed = bytearray(data)
    for at in odd:
        changed[at] = _INVALID
    if not _can_be_skipped(changed):  # there is such a map, or one was the length of something
        _survey(data, inside_extensions=False)


class _TextKeys(msgspec.Struct):
    """Decoding a map to this skips its values, and fails when a key is no text."""


_skip_text_keys = Decoder(_TextKeys).decode
_skip = Decoder(msgspec.Raw).decode


def _can_be_skipped(data: bytes | bytearray) -> bool:
    try:
        _skip(data)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _odd_maps(data: bytes) -> list[int]:
    """Where a large map seems to begin with a key in it that is no text."""
    view = memoryview(data)
    odd = []
    for head, width in ((b"\xde", 2), (b"\xdf", 4)):
        at = data.find(head)
        while at >= 0:
            if int.from_bytes(data[at + 1 : at + 1 + width]) >= _LARGE_MAP:
                try:
                    _skip_text_keys(view[at:])
                except (msgspec.ValidationError, RecursionError):
                    odd.append(at)
                    if len(odd) > _MANY_ODD_MAPS:
                        return odd
                except msgspec.DecodeError:  # the map is sound and others follow, or it is cut
                    pass
            at = data.find(head, at + 1)
    return odd


def _header(head: int) -> tuple[str, int, int]:
    """What follows a byte: its kind, how many bytes say its length, and the length that the byte itself says."""
    if head <= 0x7F or head >= 0xE0 or head in (0xC0, 0xC2, 0xC3):
        return "scalar", 0, 0
    if head <= 0x8F:
        return "map", 0, head & 0x0F
    if head <= 0x9F:
        return "array", 0, head & 0x0F
    if head <= 0xBF:
        return "text", 0, head & 0x1F
    return _LONG_HEADERS[head]


_LONG_HEADERS: dict[int, tuple[str, int, int]] = {
    0xC1: ("scalar", 0, 0),  # never used: decoding will say so
    **{0xC4 + n: ("scalar", 2**n, 0) for n in range(3)},  # bytes
    **{0xC7 + n: ("extension", 2**n, 0) for n in range(3)},
    **dict.fromkeys((0xCA, 0xCE, 0xD2), ("scalar", 0, 4)),
    **dict.fromkeys((0xCB, 0xCF, 0xD3), ("scalar", 0, 8)),
    **dict.fromkeys((0xCC, 0xD0), ("scalar", 0, 1)),
    **dict.fromkeys((0xCD, 0xD1), ("scalar", 0, 2)),
    **{0xD4 + n: ("extension", 0, 2**n) for n in range(5)},
    **{0xD9 + n: ("text", 2**n, 0) for n in range(3)},
    **{0xDC + n: ("array", 2 * 2**n, 0) for n in range(2)},
    **{0xDE + n: ("map", 2 * 2**n, 0) for n in range(2)},
}
_HEADERS = [_header(head) for head in range(256)]
_NOT_MSGPACK = frozenset(
    {Tag.INT, Tag.STR, Tag.BYTEARRAY, Tag.ELLIPSIS, Tag.ZONE_INFO, Tag.DECIMAL, Tag.UUID},
)


class _Open(NamedTuple):
    """An array, map or extension whose items are being looked at."""

    left: int  # items to come
    end: int  # no item is beyond
    extension: bool = False
    large_map: bool = False


def _survey(data: bytes, *, inside_extensions: bool) -> None:
    """Look at each header, without recursion."""
    at = 0
    inner = _Open(1, len(data))
    outer: list[_Open] = []
    while True:
        if not inner.left:
            at = inner.end if inner.extension else at
            if not outer:
                return
            inner = outer.pop()
            continue
        kind, width, length = _HEADERS[data[at]] if at < inner.end else _cut(at)
        if inner.large_map and inner.left % 2 == 0 and kind != "text":
            raise CorruptDataError(f"a large map with a key that is no text, at byte {at}")
        at += 1 + width
        length += int.from_bytes(data[at - width : at])
        inner = _Open(inner.left - 1, inner.end, inner.extension, inner.large_map)
        if kind in ("scalar", "text"):
            at += length
            continue
        if len(outer) > _DEEPEST:
            raise CorruptDataError(f"nested deeper than the {MAX_DEPTH} levels that are ever encoded")
        outer.append(inner)
        if kind == "array":
            inner = _Open(length, inner.end)
        elif kind == "map":
            inner = _Open(2 * length, inner.end, large_map=length >= _LARGE_MAP)
        else:
            end = at + 1 + length
            of_items = inside_extensions and end <= inner.end and data[at] not in _NOT_MSGPACK
            inner = _Open(int(of_items), min(end, inner.end), extension=True)
            at += 1


def _cut(at: int) -> Any:
    raise CorruptDataError(f"truncated at byte {at}")
