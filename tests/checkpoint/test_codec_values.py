"""Values of all kinds that the codec knows, made at random from a seed: each comes back equal and of its type.

``values(random)`` makes them; `scripts/fuzz_codec.py` takes its payloads from the same source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import ipaddress
import itertools
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
from killing import seeded

from weft import ParallelExecutionError
from weft.checkpoint import wire
from weft.checkpoint.codec import Codec
from weft.checkpoint.wire import Tag
from weft.core.outcome import Failed, Ok
from weft.errors import CorruptDataError, DefinitionError, UnstorableError


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
    rng = seeded("values")
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
    rng = seeded("values")
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


# What is stored


@dataclasses.dataclass
class Stored:
    n: int
    tags: list[str]


class Kept(enum.Enum):
    RED = 1


Stored.__module__ = Kept.__module__ = "shop"

FORMAT = [
    (None, "c0"),
    (True, "c3"),
    (-7, "f9"),
    (1.5, "cb3ff8000000000000"),
    ("é", "a2c3a9"),
    (b"\x00\xff", "c40200ff"),
    ([1, {"a": []}], "920181a16190"),
    (2**63, "cf8000000000000000"),
    (2**64 - 1, "cfffffffffffffffff"),
    (2**64, "c70901010000000000000000"),
    ([2**64, 2**64 - 1, -(2**63)], "93c70901010000000000000000cfffffffffffffffffd38000000000000000"),
    (-(2**63), "d38000000000000000"),
    (-(2**63) - 1, "c70901ff7fffffffffffffff"),
    (-(2**100), "c70d01f0000000000000000000000000"),
    ("\ud800", "c70302eda080"),
    (bytearray(b"xy"), "d5037879"),
    (1 + 2j, "c7130492cb3ff0000000000000cb4000000000000000"),
    (..., "c70005"),
    ((1, "a"), "d6069201a161"),
    ({3, 1}, "c70307920103"),
    (frozenset({"b", "a"}), "c7050892a161a162"),
    ({1: "a"}, "d6099201a161"),
    (deque([1], maxlen=3), "c7030a920301"),
    (OrderedDict(a=1), "d60b92a16101"),
    (Counter("aab"), "c7070c94a16102a16201"),
    (defaultdict(list, a=[1]), "c70a0d93a46c697374a1619101"),
    (
        datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC, fold=1),
        "c7150e99cd07e8021d0102030401c7071291d61193000000",
    ),
    (datetime(2024, 2, 29), "c70c0e99cd07e8021d0000000000c0"),  # noqa: DTZ001 - a naive one
    (date(1, 2, 3), "d60f93010203"),
    (time(1, 2, 3, 4), "c70710960102030400c0"),
    (timedelta(-1, 2, 3), "d61193ff0203"),
    (timezone(timedelta(hours=-3), "here"), "d81292d71193ffce0001275000a468657265"),
    (ZoneInfo("Europe/Berlin"), "c70d134575726f70652f4265726c696e"),
    (Decimal("1.50"), "d614312e3530"),
    (Fraction(1, 3), "c70315920103"),
    (UUID(int=2**100), "d81600000010000000000000000000000000"),
    (PurePosixPath("/a/b"), "c7141792ad50757265506f73697850617468a42f612f62"),
    (PureWindowsPath("c:/a"), "c7161792af5075726557696e646f777350617468a4633a5c61"),
    (ipaddress.ip_address("10.0.0.1"), "c7161892ab4950763441646472657373a831302e302e302e31"),
    (ipaddress.ip_network("fe80::/10"), "c7171892ab495076364e6574776f726ba9666538303a3a2f3130"),
    (range(1, 9, 2), "d61993010902"),
    (slice(1, None, 2), "d61a9301c002"),
    (Stored(1, ["t"]), "c7192094ab73686f703a53746f72656492a16ea4746167730191a174"),
    (Kept.RED, "c70f2192a973686f703a4b657074a3524544"),
]


GROUP = (
    "c7e92293c72d2398b36275696c74696e733a56616c75654572726f7291a178c38080c0ae56616c75654572726f"
    "723a20780aa178c7312398b16275696c74696e733a4b65794572726f729101c38081a56669727374d42400c0ac"
    "4b65794572726f723a20310aa131c7812398b76275696c74696e733a457863657074696f6e47726f757092a167"
    "92d42400d42401c382a76d657373616765a167aa657863657074696f6e73c7070692d42400d4240180c0d92445"
    "7863657074696f6e47726f75703a2067202832207375622d657863657074696f6e7329b467202832207375622d"
    "657863657074696f6e7329"
)
ERROR = (
    "c78a2291c7862398ba6275696c74696e733a46696c654e6f74466f756e644572726f729202a26e6fc383a56572"
    "726e6f02a87374726572726f72a26e6fa866696c656e616d65a16681a4636f64650791a16ed92746696c654e6f"
    "74466f756e644572726f723a205b4572726e6f20325d206e6f3a202766270a6e0ab15b4572726e6f20325d206e"
    "6f3a20276627"
)


@pytest.mark.parametrize(("value", "data"), FORMAT, ids=[type(value).__name__ for value, _ in FORMAT])
def test_the_format_is_the_same_in_every_version(value, data):
    """What older versions have stored is there; and the bytes of a value are what a resume finds its call by."""
    codec = Codec([Stored, Kept])
    assert codec.encode(value).hex() == data
    assert same(codec.decode(bytes.fromhex(data)), value)


def test_every_tag_is_among_what_is_the_same_in_every_version():
    seen = set()

    def look(code, data):
        seen.add(code)
        msgspec.msgpack.decode(data, ext_hook=look)  # extensions within it; what is no msgpack is bare

    for data in [*(data for _, data in FORMAT), GROUP, ERROR]:
        with contextlib.suppress(msgspec.DecodeError):
            msgspec.msgpack.decode(bytes.fromhex(data), ext_hook=look)
    assert seen == {number for name, number in vars(Tag).items() if name.isupper()}


def test_errors_of_older_versions_are_read():
    """Two in a group, of which one refers to the other."""
    group = Codec().decode_error(bytes.fromhex(GROUP))
    assert type(group) is ExceptionGroup
    first, second = group.exceptions
    assert (group.message, repr(first), repr(second)) == ("g", "ValueError('x')", "KeyError(1)")
    assert second.first is first
    error = Codec().decode_error(bytes.fromhex(ERROR))
    assert type(error) is FileNotFoundError
    assert (error.errno, error.strerror, error.filename) == (2, "no", "f")
    assert (error.__notes__, error.code) == (["n"], 7)


# What is refused


@pytest.mark.parametrize("value", [Bits(16), Bits(17), Bits(-1) | Bits(64)])
def test_flags_of_which_a_part_has_no_name_are_refused(value):
    """Read back by its names, it would be another value."""
    with pytest.raises(UnstorableError, match="no member of its enum by name"):
        Codec([Bits]).encode(value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (same, "function"),
        (lambda: None, "function"),
        (len, "builtin_function_or_method"),
        (Bits, "EnumType"),
        (int, "type"),
    ],
    ids=["function", "lambda", "builtin", "enum", "type"],
)
def test_code_is_refused_as_code(value, name):
    with pytest.raises(UnstorableError, match=f"is the {name} .*, which is code; return data instead"):
        Codec([Bits]).encode([value])


@pytest.mark.parametrize("tag", [Tag.DICT, Tag.ORDERED_DICT, Tag.COUNTER])
def test_pairs_of_which_one_is_half_are_refused(tag):
    data = msgspec.msgpack.encode(msgspec.msgpack.Ext(tag, msgspec.msgpack.encode(["a", 1, "b"])))
    for read in (Codec().decode, Codec().describe):
        with pytest.raises(CorruptDataError):
            read(data)


def test_the_size_of_a_value_is_bounded_by_half_a_gibibyte():
    assert wire.MAX_SIZE == 512 * 1024**2
    writer = wire.Writer({}, frozenset())
    writer.weigh(wire.MAX_SIZE)
    with pytest.raises(wire.Refusal, match="larger than 512 MiB"):
        writer.weigh(1)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 600,
        b"x" * 600,
        bytearray(600),
        ["x" * 300] * 2,
        ["x" * 30] * 20,
        [1, *["x" * 30] * 20],
        ("x" * 30,) * 20,
        {f"{number:030}" for number in range(20)},
        {"k": "x" * 600},
        {str(number): "x" * 30 for number in range(20)},
        {str(number): ("x" * 30 if number else 1) for number in range(21)},
        {f"{number:030}": number for number in range(20)},
        dict.fromkeys(range(20), "x" * 30),
        Stored(1, ["x" * 300, "y" * 300]),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_encoded(value, monkeypatch):
    """By what texts and the like add up to, wherever they are: so it never takes the memory."""
    codec = Codec([Stored])
    monkeypatch.setattr(wire, "MAX_SIZE", 1_000)
    codec.encode([value])
    with pytest.raises(UnstorableError, match="makes the whole larger than"):
        codec.encode([value, ["and", value]])


class Untitled(tuple):
    __slots__ = ()


class Fielded:
    _fields = ("a",)


class Misfielded(tuple):
    __slots__ = ()
    _fields = 1


@pytest.mark.parametrize("cls", [Untitled, Fielded, Misfielded])
def test_what_only_resembles_a_named_tuple_is_none(cls):
    with pytest.raises(DefinitionError, match=cls.__name__):
        Codec().register(cls)


def test_what_is_exactly_as_large_as_is_taken_is_taken(monkeypatch):
    codec = Codec()
    data = codec.encode("x" * 9_000)
    for module in ("codec", "wire"):
        monkeypatch.setattr(f"weft.checkpoint.{module}.MAX_SIZE", len(data))
    assert codec.decode(codec.encode("x" * 9_000)) == "x" * 9_000
    with pytest.raises(UnstorableError):
        codec.encode("x" * 9_001)


def test_what_is_quoted_in_a_message_is_short():
    assert wire.short_repr("x" * 58) == repr("x" * 58)
    assert wire.short_repr("x" * 59) == "'" + "x" * 58 + "…"
    assert len(wire.short_repr([["x" * 50] * 50] * 50)) <= 60
    assert len(wire.short_repr("x" * 900, 300)) == 300


def test_one_object_may_be_met_often_but_not_again_and_again():
    """Each time it is stored anew: a small value would become a huge one."""
    codec = Codec()
    shared = list(range(1_001))
    often = [shared] * 500
    assert codec.decode(codec.encode(often)) == often
    for again in ([shared] * 600, dict.fromkeys(range(3_000), shared), [[shared] * 30] * 20):
        with pytest.raises(UnstorableError, match="refers to the same objects again and again"):
            codec.encode(again)
    different = [[number, *shared] for number in range(600)]
    assert codec.decode(codec.encode(different)) == different


def test_keys_that_share_a_hash_are_noticed_if_they_are_many():
    alike = [number * (2**61 - 1) for number in range(1, 600)]
    assert {*map(hash, alike)} == {0}
    assert wire.too_alike(alike)
    assert wire.too_alike([*alike, *range(600)])
    assert not wire.too_alike(alike[:256])
    assert not wire.too_alike([*alike[:257], *range(100_000)])
    assert not wire.too_alike(range(100_000))


def test_parts_are_counted_up_to_a_limit():
    nested = {"a": [1, 2, (3, 4)], "b": {5, 6}, "c": ["x" * 250, b"x" * 100]}
    counts = [wire.parts(value, 1_000) for value in (1, "x" * 250, [1, 2], [[1], [2]], {"k": [1]}, nested)]
    assert counts == [1, 3, 3, 5, 4, 19]
    assert wire.parts([nested] * 1_000, 1_000) == 1_000
    assert wire.parts(ExceptionGroup("g", [ValueError([1, 2])]), 1_000) == 5
