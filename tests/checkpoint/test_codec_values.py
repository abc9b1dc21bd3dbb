"""Values of all kinds that the codec knows, made at random from a seed: each comes back equal and of its type.

``values(random)`` makes them; `scripts/fuzz_codec.py` takes its payloads from the same source.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import itertools
import os
import random
import struct
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest

from weft import ParallelExecutionError
from weft.checkpoint.codec import Codec
from weft.core.outcome import Failed, Ok
from weft.errors import CorruptDataError, DefinitionError, UnstorableError

SEED = int(os.environ.get("WEFT_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


class Color(enum.Enum):
    RED = 1
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2**70


class Word(enum.StrEnum):
    A = "a"


class Rights(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()
    RUN = enum.auto()


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class Point(NamedTuple):
    x: Any
    y: Any = 0.5


@dataclasses.dataclass
class Row:
    name: Any
    rest: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    x: Any


@attrs.define
class Slotted:
    x: Any
    _hidden: Any = None


@attrs.frozen
class Cold:
    x: Any


class Packed(msgspec.Struct):
    x: Any
    y: Any = 3


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    x: Any
    _seen: Any = pydantic.PrivateAttr(default=None)


class Own(Exception):
    def __init__(self, code, *, more):
        super().__init__(f"code {code}")
        self.code = code
        self.more = more


TYPES = (Color, Level, Word, Rights, Bits, Point, Row, Key, Slotted, Cold, Packed, Model)
ZONES = sorted(zoneinfo.available_timezones())


class Values:
    """Makes values. Each ``key_*`` can be a key, each ``one_*`` cannot, and is of any depth that is left."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.made: Counter[str] = Counter()
        names = [name for name in dir(type(self)) if name.startswith(("key_", "one_"))]
        self.keys = [name for name in names if name.startswith("key_")]
        self.all = names

    def value(self, depth: int = 4) -> Any:
        return self._make(self.rng.choice(self.all if depth > 0 else self.keys), depth)

    def key(self, depth: int = 2) -> Any:
        return self._make(self.rng.choice(self.keys), depth)

    def _make(self, name: str, depth: int) -> Any:
        self.made[name] += 1
        return getattr(self, name)(depth - 1)

    def some(self, make: Any, depth: int) -> list[Any]:
        return [make(depth) for _ in range(self.rng.choice((0, 1, 1, 2, 3, 20 if depth < 1 else 2)))]

    # keys

    def key_none(self, _):
        return None

    def key_bool(self, _):
        return self.rng.random() < 0.5

    def key_int(self, _):
        return self.rng.choice(
            (0, 1, -1, self.rng.randint(-(2**8), 2**8), self.rng.randint(-(2**63), 2**64 - 1))
        )

    def key_huge_int(self, _):
        return self.rng.choice((-1, 1)) * (
            2 ** self.rng.choice((63, 64, 65, 127, 4_000)) + self.rng.randint(-2, 2)
        )

    def key_float(self, _):
        odd = (0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.0, 5e-324, 1.7976931348623157e308)
        return self.rng.choice((*odd, self.rng.random(), struct.unpack("<d", self.rng.randbytes(8))[0]))

    def key_complex(self, depth):
        return complex(self.key_float(depth), self.key_float(depth))

    def key_text(self, _):
        odd = (
            "",
            "\0",
            "\ud800",
            "a\udfffb",
            "é",
            "\U0001f600",
            "e\u0301",
            "\ufeff",
            "../x",
            "$type",
            "x" * 300,
        )
        return self.rng.choice((*odd, "".join(map(chr, (self.rng.randrange(0x11_0000) for _ in range(4))))))

    def key_bytes(self, _):
        return self.rng.randbytes(self.rng.choice((0, 1, 5, 300)))

    def key_ellipsis(self, _):
        return ...

    def key_tuple(self, depth):
        return tuple(self.some(self.key, depth))

    def key_frozenset(self, depth):
        return frozenset(v for v in self.some(self.key, depth) if _hashable(v))

    def key_range(self, depth):
        return range(self.key_int(0), self.key_huge_int(0), self.rng.choice((-3, 1, 2**65)))

    def key_decimal(self, _):
        odd = ("0", "-0", "0E+5", "1.10", "NaN", "-NaN123", "Infinity", "-Infinity", "1E+999999", "1E-999999")
        return Decimal(self.rng.choice((*odd, str(self.rng.random()), "7" * 60)))

    def key_fraction(self, _):
        return Fraction(self.key_int(0), self.rng.choice((1, 3, 2**70, 2**5_000 + 1)))

    def key_uuid(self, _):
        return UUID(bytes=self.rng.randbytes(16))

    def key_date(self, _):
        return date.fromordinal(self.rng.randint(1, date.max.toordinal()))

    def key_datetime(self, depth):
        day = self.key_date(0)
        return datetime.combine(day, self.key_time(depth))

    def key_time(self, _):
        clock = (
            self.rng.randrange(24),
            self.rng.randrange(60),
            self.rng.randrange(60),
            self.rng.randrange(10**6),
        )
        return time(*clock, self.zone(), fold=self.rng.randrange(2))

    def key_timedelta(self, _):
        return timedelta(
            self.rng.randint(-999_999_999, 999_999_998), self.rng.randrange(86_400), self.rng.randrange(99)
        )

    def key_timezone(self, _):
        offset = timedelta(seconds=self.rng.randint(-86_399, 86_399), microseconds=self.rng.randrange(2))
        return self.rng.choice(
            (UTC, timezone(offset), timezone(offset, self.rng.choice(("", "CET", "é\ud800"))))
        )

    def key_zone_info(self, _):
        return ZoneInfo(self.rng.choice(ZONES))

    def zone(self) -> tzinfo | None:
        return self.rng.choice((None, self.key_timezone(0), self.key_zone_info(0)))

    def key_path(self, _):
        text = self.rng.choice(("", ".", "/", "/a/b", "a/../b", "\udc80x", "C:/x", "//host/share/x"))
        return self.rng.choice((Path, PurePosixPath, PureWindowsPath))(text)

    def key_address(self, _):
        four, six = (
            ipaddress.IPv4Address(self.rng.randbytes(4)),
            ipaddress.IPv6Address(self.rng.randbytes(16)),
        )
        scoped = ipaddress.IPv6Address("fe80::1%eth0")
        return self.rng.choice((four, six, scoped))

    def key_network(self, _):
        address = self.rng.choice((self.rng.randbytes(4), self.rng.randbytes(16)))
        bits = self.rng.randrange(len(address) * 8 + 1)
        make = self.rng.choice((ipaddress.ip_network, ipaddress.ip_interface))
        return make((address, bits), strict=False) if make is ipaddress.ip_network else make((address, bits))

    def key_enum(self, _):
        return self.rng.choice((*Color, *Level, *Word))

    def key_flag(self, _):
        return self.rng.choice((Rights(self.rng.randrange(8)), Bits(self.rng.randrange(4))))

    def key_named_tuple(self, depth):
        return Point(self.key(depth), self.key(depth))

    def key_frozen_dataclass(self, depth):
        return Key(self.key(depth))

    def key_frozen_attrs(self, depth):
        return Cold(self.key(depth))

    # others

    def one_list(self, depth):
        return self.some(self.value, depth)

    def one_dict(self, depth):
        return dict(self.pairs(depth))

    def one_text_dict(self, depth):
        return {
            str(at): self.value(depth) for at in range(self.rng.choice((0, 1, 3, 20 if depth < 1 else 3)))
        }

    def pairs(self, depth: int) -> list[tuple[Any, Any]]:
        return [(key, self.value(depth)) for key in self.some(self.key, depth) if _hashable(key)]

    def one_shared(self, depth):
        part = self.value(depth)
        return [part, {"again": part}, (part,)]

    def one_ordered_dict(self, depth):
        return OrderedDict(self.pairs(depth))

    def one_default_dict(self, depth):
        return defaultdict(
            self.rng.choice((None, list, dict, set, tuple, int, float, str)), self.pairs(depth)
        )

    def one_counter(self, depth):
        return Counter({key: self.rng.randint(-2, 9) for key in self.some(self.key, depth) if _hashable(key)})

    def one_set(self, depth):
        return set(self.key_frozenset(depth))

    def one_deque(self, depth):
        items = self.some(self.value, depth)
        return deque(items, self.rng.choice((None, len(items), len(items) + 3)))

    def one_bytearray(self, _):
        return bytearray(self.key_bytes(0))

    def one_slice(self, depth):
        return slice(self.value(depth), self.key(depth), None)

    def one_dataclass(self, depth):
        made = Row(self.value(depth), self.value(depth))
        if self.rng.random() < 0.3:
            made.extra = self.value(depth)
        return made

    def one_attrs(self, depth):
        return Slotted(self.value(depth), self.value(depth))

    def one_struct(self, depth):
        return Packed(self.value(depth), self.value(depth))

    def one_model(self, depth):
        made = Model.model_construct(x=self.value(depth), **({"more": 1} if self.rng.random() < 0.3 else {}))
        made._seen = self.value(depth)
        return made

    def one_outcome(self, depth):
        return Ok(self.value(depth), **_rest_of(Ok))

    def one_error(self, depth):
        kind = self.rng.choice((ValueError, KeyError, RuntimeError, OSError))
        made = kind(*self.some(self.key, depth))
        made.detail = self.value(depth)
        if self.rng.random() < 0.3:
            made.add_note(self.key_text(0))
        return made

    def one_own_error(self, depth):
        return Own(self.key(depth), more=self.value(depth))

    def one_group(self, depth):
        return ExceptionGroup("group", [self.one_error(depth) for _ in range(self.rng.randint(1, 3))])


def _rest_of(cls: Any) -> dict[str, Any]:
    """Values for the fields of an outcome that have no default, apart from the first."""
    fields = dataclasses.fields(cls)[1:]
    return {
        f.name: 1
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:  # a signalling NaN, or a frozen one with a list in it
        return False
    return True


def same(a: Any, b: Any) -> bool:
    """Equal, of equal types and in the same order all the way down; one nan is like another of its bits."""
    if type(a) is not type(b):
        return False
    kind = type(a)
    if kind is float:
        return struct.pack("<d", a) == struct.pack("<d", b) or (a != a and b != b)
    if kind is complex:
        return same(a.real, b.real) and same(a.imag, b.imag)
    if kind is Decimal:
        return a.as_tuple() == b.as_tuple()
    if kind in (set, frozenset):
        return _same_members(a, b)
    if kind in (datetime, time):
        return (
            a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold and same(a.tzinfo, b.tzinfo)
        )
    if kind is timezone:
        return a == b and a.tzname(None) == b.tzname(None)
    if kind is ZoneInfo:
        return a is b
    if kind is slice:
        return all(map(same, (a.start, a.stop, a.step), (b.start, b.stop, b.step)))
    parts = _parts(a), _parts(b)
    if parts[0] is not None:
        return len(parts[0]) == len(parts[1]) and all(map(same, *parts))
    return a == b and hash(a) == hash(b) if _hashable(a) else a == b


def _parts(value: Any) -> list[Any] | None:
    kind = type(value)
    if kind in (list, tuple, Point):
        return list(value)
    if kind is deque:
        return [value.maxlen, *value]
    if issubclass(kind, dict):
        factory = getattr(value, "default_factory", None)
        return [repr(factory), *itertools.chain.from_iterable(value.items())]
    if issubclass(kind, BaseException):
        state = {k: v for k, v in vars(value).items() if k not in ("__weft_traceback__", "__notes__")}
        inner = list(getattr(value, "exceptions", ()))
        said = [
            getattr(value, name, None) for name in ("message", "errno", "strerror", "filename", "filename2")
        ]
        return [said, getattr(value, "__notes__", []), state, [] if inner else list(value.args), inner]
    if kind is Model:
        return [vars(value), value.model_fields_set, value.__pydantic_extra__, value.__pydantic_private__]
    if dataclasses.is_dataclass(kind):
        names = {f.name for f in dataclasses.fields(kind)} | getattr(value, "__dict__", {}).keys()
        return [getattr(value, name) for name in sorted(names)]
    if attrs.has(kind):
        return [getattr(value, f.name) for f in attrs.fields(kind)]
    if kind is Packed:
        return [value.x, value.y]
    return None


def _same_members(a: Any, b: Any) -> bool:
    rest = list(b)
    for item in a:
        at = next((at for at, other in enumerate(rest) if same(item, other)), None)
        if at is None:
            return False
        rest.pop(at)
    return not rest


def test_twenty_thousand_values_come_back_equal_and_of_their_types():
    print(f"WEFT_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    make = Values(rng)
    codec = Codec(TYPES)
    for number in range(20_000):
        value = make.value(rng.choice((1, 1, 2, 3, 4)))
        data = codec.encode(value)
        back = codec.decode(data)
        assert same(back, value), f"value {number}: {value!r} came back as {back!r}"
        if not isinstance(value, BaseException):
            codec.describe(data)
    assert len(make.all) >= 40
    assert min(make.made[name] for name in make.all) > 50


def test_refusals_name_the_path_wherever_the_value_is():
    """A thing that cannot be stored is put somewhere in a random value."""
    print(f"WEFT_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    make = Values(rng)
    codec = Codec(TYPES)
    culprit = object()
    wraps = {
        lambda v, n: [make.value(0)] * n + [v]: lambda n: f"[{n}]",
        lambda v, n: (v, make.value(1)): lambda n: "[0]",
        lambda v, n: {"key": v, "other": make.value(1)}: lambda n: "['key']",
        lambda v, n: {7: 1, n: v} if n != 7 else {7: v}: lambda n: f"[{n}]",
        lambda v, n: Row(1, v): lambda n: ".rest",
        lambda v, n: Point(v, 1): lambda n: ".x",
        lambda v, n: Packed(v): lambda n: ".x",
        lambda v, n: Slotted(1, v): lambda n: "._hidden",
        lambda v, n: Model.model_construct(x=v): lambda n: ".x",
        lambda v, n: deque([1, v]): lambda n: "[1]",
        lambda v, n: slice(None, v): lambda n: "[1]",
        lambda v, n: Ok(v, **_rest_of(Ok)): lambda n: f".{dataclasses.fields(Ok)[0].name}",
    }
    for _ in range(2_000):
        value, path = culprit, ""
        for _ in range(rng.randint(0, 6)):
            wrap, label = rng.choice(list(wraps.items()))
            n = rng.randint(0, 20)
            value, path = wrap(value, n), label(n) + path
        with pytest.raises(UnstorableError) as caught:
            codec.encode(value)
        assert caught.value.path == f"result{path}"


def test_cycles_through_every_container_are_refused():
    codec = Codec(TYPES)
    row, slot, packed, model = Row(1), Slotted(1), Packed(1), Model(x=1)
    row.rest, slot.x, packed.x, model.x = [row], (slot,), {"k": packed}, deque([model])
    many: dict[Any, Any] = {1: 2}
    many[3] = many
    error = ValueError("x")
    error.me = [error]
    for value in (row, slot, packed, model, many):
        with pytest.raises(UnstorableError, match="refers back to result; break the cycle"):
            codec.encode(value)
    assert not hasattr(codec.decode(codec.encode(error)), "me")


def test_one_object_twice_comes_back_as_two():
    codec = Codec(TYPES)
    part = [1]
    first, second = codec.decode(codec.encode([part, part]))
    assert first == second == part
    assert first is not second


def test_one_error_twice_in_an_error_stays_one():
    codec = Codec()
    inner = ValueError("inner")
    group = ExceptionGroup("g", [inner])
    group.first = inner
    back = codec.decode(codec.encode(group))
    assert back.first is back.exceptions[0]


@pytest.mark.parametrize(
    "order", list(itertools.permutations([1, True, 1.0, Decimal(1), Fraction(1), Level.LOW]))[::24]
)
def test_among_equal_keys_the_one_that_is_there_keeps_its_type(order):
    codec = Codec(TYPES)
    value = dict.fromkeys(order, 0)
    for back in (codec.decode(codec.encode(value)), codec.decode(codec.encode(set(value)))):
        assert [(type(key), key) for key in back] == [(type(order[0]), 1)]


def test_the_order_of_dicts_is_kept():
    codec = Codec()
    for keys in (["z", "a", "m"], [3, "a", 1], [*"zyxwvutsrqponmlkjihgfedcba"], range(100, 0, -1)):
        for kind in (dict, OrderedDict, Counter):
            assert list(
                codec.decode(codec.encode(kind.fromkeys(keys) if kind is not Counter else Counter(keys)))
            ) == list(keys)


def test_nans_that_are_keys_stay_two():
    codec = Codec()
    value = {float("nan"): 1, float("nan"): 2, Decimal("NaN"): 3}
    assert len(codec.decode(codec.encode(value))) == 3
    assert len(codec.decode(codec.encode(set(value)))) == 3


class MyBytes(bytes): ...


class MyFloat(float): ...


class MySet(set): ...


class MyDeque(deque): ...


class MyUUID(UUID): ...


class MyDecimal(Decimal): ...


class MyFraction(Fraction): ...


class MyDelta(timedelta): ...


class MyZone(ZoneInfo): ...


class MyTuple(tuple): ...  # noqa: SLOT001


@pytest.mark.parametrize(
    "value",
    [
        MyBytes(b"x"),
        MyFloat(1.5),
        MySet([1]),
        MyDeque([1]),
        MyUUID(int=1),
        MyDecimal(1),
        MyFraction(1, 2),
        MyDelta(1),
        MyZone("Europe/Berlin"),
        MyTuple((1,)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_subclasses_of_known_types_are_refused(value):
    codec = Codec()
    with pytest.raises(UnstorableError, match=f"is a {type(value).__name__}, a subclass of ") as caught:
        codec.encode({"a": [value]})
    assert caught.value.path == "result['a'][0]"


@dataclasses.dataclass
class Money(float):
    currency: str = "EUR"


@dataclasses.dataclass
class Blob(bytes):
    kind: str = "x"


@dataclasses.dataclass
class Zone(tzinfo):
    hours: int = 1


@attrs.define
class Numbers(list):
    x: int = 1


@pytest.mark.parametrize("cls", [Money, Blob, Zone, Numbers])
def test_a_class_with_state_beside_its_fields_cannot_be_registered(cls):
    """It would be encoded, and could then not be made again."""
    with pytest.raises(DefinitionError):
        Codec().register(cls)


def test_a_zone_from_a_file_is_refused(tmp_path):
    """It says that its key is one, and is not what the key stands for."""
    data = next(
        Path(root, "Europe/Berlin") for root in zoneinfo.TZPATH if Path(root, "Europe/Berlin").is_file()
    )
    with data.open("rb") as file:
        mine = ZoneInfo.from_file(file, key="Asia/Tokyo")
    with pytest.raises(UnstorableError, match="was read from a file") as caught:
        Codec().encode([datetime(2024, 1, 1, tzinfo=mine)])
    assert caught.value.path == "result[0].tzinfo"
    back = Codec().decode(Codec().encode(ZoneInfo.no_cache("Europe/Berlin")))
    assert back is ZoneInfo("Europe/Berlin")


def test_a_zone_that_this_machine_lacks_is_corrupt_data(monkeypatch):
    data = Codec().encode(ZoneInfo("Europe/Berlin"))
    wrong = data.replace(b"Europe/Berlin", b"Europe/Nowhre")
    with pytest.raises(CorruptDataError, match="no time zone is known here as 'Europe/Nowhre'"):
        Codec().decode(wrong)


def test_outcomes_with_errors_come_back():
    codec = Codec()
    failed = Failed(ValueError("x"), **_rest_of(Failed))
    back = codec.decode(codec.encode([failed]))[0]
    assert type(back) is Failed
    assert same(getattr(back, dataclasses.fields(Failed)[0].name), ValueError("x"))


def test_a_parallel_error_has_its_cause_again():
    error = ParallelExecutionError("block", {"a": ValueError("x"), "b": KeyError("y")})
    back = Codec().decode_error(Codec().encode_error(error))
    assert back.__cause__ is back.exceptions[0]
