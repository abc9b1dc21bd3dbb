"""The types of the standard library that the codec knows: how each is written, how it is read.

A type is added by one function for each way and a line in each of the two tables at the end. What is read is
of exactly the types that were written: a constructor that was given something else might ask it to convert
itself, which is code, or take long.
"""

from __future__ import annotations

import ipaddress
import re
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import cache, lru_cache
from itertools import chain, islice
from math import gcd
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from types import EllipsisType
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from msgspec import Raw
from msgspec.msgpack import Decoder, Ext

from weft.checkpoint.wire import (
    ALERT,
    MANY,
    Reader,
    ReadTable,
    Refusal,
    Tag,
    Writer,
    WriteTable,
    extension,
    pack,
    short_repr,
    too_alike,
)
from weft.core.graph_state import NotingDict, NotingList
from weft.errors import CorruptDataError

AnyCollection = TypeVar("AnyCollection", bound=Collection[Any])
Exact = TypeVar("Exact")

ALWAYS_ATOMS: frozenset[type] = frozenset({type(None), bool, float})
USUAL_ATOMS = ALWAYS_ATOMS | {int, str}

FACTORIES: dict[str, Callable[[], object] | None] = {
    "None": None,
    "list": list,
    "dict": dict,
    "set": set,
    "tuple": tuple,
    "int": int,
    "float": float,
    "str": str,
}
"""What makes a default value and may be named in the data."""

_PATHS: dict[str, type[PurePath]] = {
    cls.__name__: cls for cls in (PurePosixPath, PureWindowsPath, PosixPath, WindowsPath)
}
_IPS: dict[str, Callable[[str], object]] = {
    cls.__name__: cls
    for cls in (
        ipaddress.IPv4Address,
        ipaddress.IPv4Network,
        ipaddress.IPv4Interface,
        ipaddress.IPv6Address,
        ipaddress.IPv6Network,
        ipaddress.IPv6Interface,
    )
}
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+-]{1,40}(/[A-Za-z0-9_+-]{1,40}){0,4}")
_LONGEST_ADDRESS = 1_000
_LONGEST_KEY = 10_000  # of a key that is shown as text
_CHECKED_BITS = 2**12  # of a fraction: looking for common factors of numbers of a million bits takes seconds


def _all(kind: type[Exact], count: int, items: list[Any]) -> list[Exact]:
    """The items, if they are so many of exactly this type."""
    if len(items) != count or set(map(type, items)) != {kind}:
        raise CorruptDataError(f"something else was recorded where {count} {kind.__name__} should be")
    return items


# How an item of a container is named in a path.


def _at_index(_: object, at: int) -> str:
    return f"[{at}]"


def _a_member(_: object, at: int) -> str:
    return ".<member>"


def _at_key(owner: Mapping[object, object], at: int) -> str:
    return f"[{short_repr(next(islice(owner, at, None)))}]"


def _in_pairs(owner: Mapping[object, object], at: int) -> str:
    return f".keys()[{at // 2}]" if at % 2 == 0 else _at_key(owner, at // 2)


def _the_zone(_: object, at: int) -> str:
    return ".tzinfo"


# Scalars


def _write_int(w: Writer, value: int) -> Any:
    if -(2**63) <= value < 2**64:
        return value
    return Ext(Tag.INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _read_int(r: Reader, payload: memoryview) -> int:
    return int.from_bytes(payload, "big", signed=True)


def _write_str(w: Writer, value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return Ext(Tag.STR, value.encode("utf-8", "surrogatepass"))
    return value


def _read_str(r: Reader, payload: memoryview) -> str:
    return str(payload, "utf-8", "surrogatepass")


def _write_bytes(w: Writer, value: bytes) -> bytes:
    w.weigh(len(value))
    return value


def _write_bytearray(w: Writer, value: bytearray) -> Ext:
    w.weigh(len(value))
    return Ext(Tag.BYTEARRAY, bytes(value))


def _read_bytearray(r: Reader, payload: memoryview) -> bytearray:
    return bytearray(payload)


def _write_complex(w: Writer, value: complex) -> Ext:
    return extension(Tag.COMPLEX, [value.real, value.imag])


def _read_complex(r: Reader, payload: memoryview) -> complex:
    real, imaginary = _all(float, 2, r.items(payload))
    return complex(real, imaginary)


def _write_ellipsis(w: Writer, value: EllipsisType) -> Ext:
    return Ext(Tag.ELLIPSIS, b"")


def _read_ellipsis(r: Reader, payload: memoryview) -> EllipsisType:
    return ...


def _write_decimal(w: Writer, value: Decimal) -> Ext:
    return Ext(Tag.DECIMAL, str(value).encode())


def _read_decimal(r: Reader, payload: memoryview) -> Decimal:
    return Decimal(str(payload, "ascii"))


def _write_fraction(w: Writer, value: Fraction) -> Ext:
    return extension(Tag.FRACTION, w.items((value.numerator, value.denominator), value, _at_index))


def _read_fraction(r: Reader, payload: memoryview) -> Fraction:
    numerator, denominator = _all(int, 2, r.items(payload))
    small = max(numerator.bit_length(), denominator.bit_length()) <= _CHECKED_BITS
    if denominator <= 0 or (small and gcd(numerator, denominator) != 1):
        raise CorruptDataError("no fraction in its lowest terms")
    made: Any = object.__new__(Fraction)  # its constructor would look for common factors, however large
    made._numerator, made._denominator = numerator, denominator
    fraction: Fraction = made
    return fraction


def _write_uuid(w: Writer, value: UUID) -> Ext:
    return Ext(Tag.UUID, value.bytes)


def _read_uuid(r: Reader, payload: memoryview) -> UUID:
    return UUID(bytes=bytes(payload))


def _write_path(w: Writer, value: PurePath) -> Ext:
    cls, text = type(value), str(value)
    if cls(text) != value:  # some Windows paths have no text of their own, such as PureWindowsPath("./c:x")
        raise Refusal("is a path that its text does not describe; return str(path)")
    return extension(Tag.PATH, [cls.__name__, w.write(text)])


def _read_path(r: Reader, payload: memoryview) -> PurePath:
    name, text = _all(str, 2, r.items(payload))
    return _PATHS[name](text)


def _write_ip(w: Writer, value: object) -> Ext:
    text = str(value)
    if len(text) > _LONGEST_ADDRESS:
        raise Refusal("is an address with a scope of too many characters; return str(address)")
    return extension(Tag.IP, [type(value).__name__, w.write(text)])


def _read_ip(r: Reader, payload: memoryview) -> object:
    name, text = _all(str, 2, r.items(payload))
    if len(text) > _LONGEST_ADDRESS:
        raise CorruptDataError(f"an IP address of {len(text)} characters")
    return _IPS[name](text)


# Containers


def _write_list(w: Writer, value: list[object]) -> list[Any]:
    return w.items(value, value, _at_index)


def _write_tuple(w: Writer, value: tuple[object, ...]) -> Ext:
    return extension(Tag.TUPLE, w.items(value, value, _at_index))


def _read_tuple(r: Reader, payload: memoryview) -> tuple[object, ...]:
    return tuple(r.items(payload))


def _write_set(w: Writer, value: set[object]) -> Ext:
    return extension(Tag.SET, _sorted_members(w, value))


def _read_set(r: Reader, payload: memoryview) -> set[object]:
    members = _unlike(r.items(payload))
    return _all_of(set(members), members)


def _write_frozenset(w: Writer, value: frozenset[object]) -> Ext:
    return extension(Tag.FROZENSET, _sorted_members(w, value))


def _read_frozenset(r: Reader, payload: memoryview) -> frozenset[object]:
    members = _unlike(r.items(payload))
    return _all_of(frozenset(members), members)


def _sorted_members(w: Writer, value: set[object] | frozenset[object]) -> list[Raw]:
    _refuse_alike(value)
    return [Raw(packed) for packed in sorted(map(pack, w.items(value, value, _a_member)))]


def _refuse_alike(keys: Collection[object]) -> None:
    if too_alike(keys):
        raise Refusal("has too many keys or members that share one hash; return them as a list")


def _unlike(keys: list[Any]) -> list[Any]:
    if too_alike(keys):
        raise CorruptDataError("too many keys or members that share one hash")
    return keys


def _all_of(made: AnyCollection, keys: Collection[object]) -> AnyCollection:
    if len(made) != len(keys):
        raise CorruptDataError("the same key or member twice")
    return made


def _write_dict(w: Writer, value: dict[Any, object]) -> Any:
    # Without str among the atoms a key may have a lone surrogate, which only pairs can hold.
    if str not in w.atoms or not set(map(type, value)) <= {str}:
        return extension(Tag.DICT, _pairs(w, value))
    length = len(value)
    w.count += length + 1
    if length > MANY or w.count > ALERT:
        w.look(length, value)
        if length > MANY and w.plain(value.values()):
            w.weigh(sum(map(len, value)))
            return value.copy()
    atoms, text = w.atoms, w.text
    out: dict[str, Any] = {}
    size = 0
    try:
        for key, item in value.items():
            kind = type(item)
            if kind is text:
                size += len(item)  # type: ignore[arg-type] # it is a str
                out[key] = item
            elif kind in atoms:
                out[key] = item
            else:
                out[key] = w.write(item)
    except Refusal as refusal:
        refusal.trail.append((value, _at_key(value, len(out))))
        raise
    if size:
        w.weigh(size)
    return out


def _pairs(w: Writer, value: Mapping[Any, object]) -> list[Any]:
    _refuse_alike(value)
    flat = list(chain.from_iterable(value.items()))
    return w.items(flat, value, _in_pairs)


def _unpaired(flat: list[Any]) -> dict[Any, Any]:
    keys = _unlike(flat[::2])
    return _all_of(dict(zip(keys, flat[1::2], strict=True)), keys)


def _read_dict(r: Reader, payload: memoryview) -> dict[object, object]:
    return _unpaired(r.items(payload))


def _write_ordered_dict(w: Writer, value: OrderedDict[object, object]) -> Ext:
    return extension(Tag.ORDERED_DICT, _pairs(w, value))


def _read_ordered_dict(r: Reader, payload: memoryview) -> OrderedDict[object, object]:
    return OrderedDict(_unpaired(r.items(payload)))


def _write_counter(w: Writer, value: Counter[object]) -> Ext:
    return extension(Tag.COUNTER, _pairs(w, value))


def _read_counter(r: Reader, payload: memoryview) -> Counter[object]:
    return Counter(_unpaired(r.items(payload)))


def _write_default_dict(w: Writer, value: defaultdict[object, object]) -> Ext:
    factory = value.default_factory
    name = next((name for name, known in FACTORIES.items() if known is factory), None)
    if name is None:
        raise Refusal(
            f"is a defaultdict whose default_factory {short_repr(factory)} is code; return dict(value), "
            f"or use one of {', '.join(FACTORIES)}"
        )
    return extension(Tag.DEFAULT_DICT, [name, *_pairs(w, value)])


def _read_default_dict(r: Reader, payload: memoryview) -> defaultdict[object, object]:
    name, *flat = r.items(payload)
    return defaultdict(_factory(name), _unpaired(flat))


def _factory(name: object) -> Callable[[], object] | None:
    if type(name) is not str or name not in FACTORIES:
        raise CorruptDataError("no factory of a defaultdict is known by what was recorded")
    return FACTORIES[name]


def _write_deque(w: Writer, value: deque[object]) -> Ext:
    return extension(Tag.DEQUE, [value.maxlen, *w.items(value, value, _at_index)])


def _read_deque(r: Reader, payload: memoryview) -> deque[object]:
    maxlen, *items = r.items(payload)
    if maxlen is not None and (type(maxlen) is not int or maxlen < len(items)):
        raise CorruptDataError("a deque longer than its maxlen")
    return deque(items, maxlen)


def _write_range(w: Writer, value: range) -> Ext:
    return extension(Tag.RANGE, w.items((value.start, value.stop, value.step), value, _at_index))


def _read_range(r: Reader, payload: memoryview) -> range:
    start, stop, step = _all(int, 3, r.items(payload))
    return range(start, stop, step)


def _write_slice(w: Writer, value: slice) -> Ext:
    return extension(Tag.SLICE, w.items((value.start, value.stop, value.step), value, _at_index))


def _read_slice(r: Reader, payload: memoryview) -> slice:
    start, stop, step = r.items(payload)
    return slice(start, stop, step)


# Dates and times

_INTS = frozenset({int})
_ZONES = (type(None), timezone, ZoneInfo)
_date_parts = Decoder(tuple[int, int, int]).decode


def _check_clock(numbers: list[int], zone: object) -> None:
    if not _INTS.issuperset(map(type, numbers)) or type(zone) not in _ZONES:
        raise CorruptDataError("something else was recorded where a time and its zone should be")


def _write_datetime(w: Writer, value: datetime) -> Ext:
    day = [value.year, value.month, value.day]
    clock = [value.hour, value.minute, value.second, value.microsecond, value.fold]
    return extension(Tag.DATETIME, [*day, *clock, *w.items((value.tzinfo,), value, _the_zone)])


def _read_datetime(r: Reader, payload: memoryview) -> datetime:
    parts = r.items(payload)
    zone = parts.pop()
    _check_clock(parts, zone)
    year, month, day, hour, minute, second, microsecond, fold = parts
    return datetime(year, month, day, hour, minute, second, microsecond, zone, fold=fold)


def _write_date(w: Writer, value: date) -> Ext:
    return extension(Tag.DATE, [value.year, value.month, value.day])


def _read_date(r: Reader, payload: memoryview) -> date:
    year, month, day = _date_parts(payload)
    return date(year, month, day)


def _write_time(w: Writer, value: time) -> Ext:
    clock = [value.hour, value.minute, value.second, value.microsecond, value.fold]
    return extension(Tag.TIME, [*clock, *w.items((value.tzinfo,), value, _the_zone)])


def _read_time(r: Reader, payload: memoryview) -> time:
    parts = r.items(payload)
    zone = parts.pop()
    _check_clock(parts, zone)
    hour, minute, second, microsecond, fold = parts
    return time(hour, minute, second, microsecond, zone, fold=fold)


def _write_timedelta(w: Writer, value: timedelta) -> Ext:
    return extension(Tag.TIMEDELTA, [value.days, value.seconds, value.microseconds])


def _read_timedelta(r: Reader, payload: memoryview) -> timedelta:
    days, seconds, microseconds = _date_parts(payload)
    return timedelta(days, seconds, microseconds)


def _write_timezone(w: Writer, value: timezone) -> Ext:
    offset, name = value.utcoffset(None), value.tzname(None)
    named = [] if name == timezone(offset).tzname(None) else [w.write(name)]
    return extension(Tag.TIMEZONE, [w.write(offset), *named])


def _read_timezone(r: Reader, payload: memoryview) -> timezone:
    offset, *name = r.items(payload)
    if type(offset) is not timedelta or list(map(type, name)) not in ([], [str]):
        raise CorruptDataError("no offset and name of a time zone")
    return timezone(offset, *name)


def _write_zone_info(w: Writer, value: ZoneInfo) -> Ext:
    try:
        value.__reduce__()
    except Exception:  # PicklingError: it is from a file of the program's, whatever it says its key is
        raise Refusal("is a ZoneInfo that was read from a file; use ZoneInfo('Area/City')") from None
    if not _ZONE_KEY.fullmatch(value.key):
        raise Refusal(f"is a ZoneInfo whose key {short_repr(value.key)} is no 'Area/City'")
    return Ext(Tag.ZONE_INFO, value.key.encode())


def _read_zone_info(r: Reader, payload: memoryview) -> ZoneInfo:
    return ZoneInfo(_key_of_zone(str(payload, "ascii")))


@lru_cache(maxsize=1_000)
def _key_of_zone(key: str) -> str:
    """The key, if there is such a zone.

    ``ZoneInfo`` would open files that are named by the key, and then import by a name made from it, below the
    package tzdata. So nothing is given to it but what is known to be a zone; the rest is never looked for.
    """
    if not _ZONE_KEY.fullmatch(key):
        raise CorruptDataError(f"no key of a time zone: {short_repr(key)}")
    if not any(Path(folder, key).is_file() for folder in zoneinfo.TZPATH) and key not in _zones_of_tzdata():
        raise CorruptDataError(f"no time zone is known here as {short_repr(key)}")
    return key


@cache
def _zones_of_tzdata() -> frozenset[str]:
    """The zones that the package tzdata lists, which systems without zones of their own need."""
    from importlib.resources import files  # noqa: PLC0415 - costs more than all of this module

    try:
        return frozenset((files("tzdata") / "zones").read_text("utf-8").split())
    except (ImportError, OSError):
        return frozenset()


# For display: members and keys may have become dicts, which cannot be hashed.


def _describe_members(r: Reader, payload: memoryview) -> object:
    members = r.items(payload)
    try:
        return set(_unlike(members))
    except TypeError:
        return members


def _describe_pairs(r: Reader, payload: memoryview) -> dict[object, object]:
    return _described_pairs(r.items(payload))


def _describe_default_dict(r: Reader, payload: memoryview) -> dict[object, object]:
    return _described_pairs(r.items(payload)[1:])


def _described_pairs(flat: list[Any]) -> dict[object, object]:
    keys = _unlike([_hashable(key) for key in flat[::2]])
    return dict(zip(keys, flat[1::2], strict=True))


def _hashable(key: object) -> object:
    try:
        hash(key)
    except TypeError:
        return short_repr(key, _LONGEST_KEY)
    return key


WRITERS: WriteTable = {
    int: _write_int,
    str: _write_str,
    bytes: _write_bytes,
    bytearray: _write_bytearray,
    complex: _write_complex,
    EllipsisType: _write_ellipsis,
    list: _write_list,
    NotingList: _write_list,
    tuple: _write_tuple,
    set: _write_set,
    frozenset: _write_frozenset,
    dict: _write_dict,
    NotingDict: _write_dict,  # the state of a graph, which is a dict to everybody else
    deque: _write_deque,
    OrderedDict: _write_ordered_dict,
    Counter: _write_counter,
    defaultdict: _write_default_dict,
    datetime: _write_datetime,
    date: _write_date,
    time: _write_time,
    timedelta: _write_timedelta,
    timezone: _write_timezone,
    ZoneInfo: _write_zone_info,
    Decimal: _write_decimal,
    Fraction: _write_fraction,
    UUID: _write_uuid,
    range: _write_range,
    slice: _write_slice,
    **dict.fromkeys(_PATHS.values(), _write_path),
    **dict.fromkeys((cls for cls in _IPS.values() if isinstance(cls, type)), _write_ip),
}

READERS: ReadTable = {
    Tag.INT: _read_int,
    Tag.STR: _read_str,
    Tag.BYTEARRAY: _read_bytearray,
    Tag.COMPLEX: _read_complex,
    Tag.ELLIPSIS: _read_ellipsis,
    Tag.TUPLE: _read_tuple,
    Tag.SET: _read_set,
    Tag.FROZENSET: _read_frozenset,
    Tag.DICT: _read_dict,
    Tag.DEQUE: _read_deque,
    Tag.ORDERED_DICT: _read_ordered_dict,
    Tag.COUNTER: _read_counter,
    Tag.DEFAULT_DICT: _read_default_dict,
    Tag.DATETIME: _read_datetime,
    Tag.DATE: _read_date,
    Tag.TIME: _read_time,
    Tag.TIMEDELTA: _read_timedelta,
    Tag.TIMEZONE: _read_timezone,
    Tag.ZONE_INFO: _read_zone_info,
    Tag.DECIMAL: _read_decimal,
    Tag.FRACTION: _read_fraction,
    Tag.UUID: _read_uuid,
    Tag.PATH: _read_path,
    Tag.IP: _read_ip,
    Tag.RANGE: _read_range,
    Tag.SLICE: _read_slice,
}

DESCRIBERS: ReadTable = {
    Tag.SET: _describe_members,
    Tag.FROZENSET: _describe_members,
    Tag.DICT: _describe_pairs,
    Tag.ORDERED_DICT: _describe_pairs,
    Tag.COUNTER: _describe_pairs,
    Tag.DEFAULT_DICT: _describe_default_dict,
}
