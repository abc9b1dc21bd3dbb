"""The codec: what goes in comes back equal and of the same type, or is refused; and bytes never run code."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import ipaddress
import itertools
import json
import os
import subprocess
import sys
import textwrap
import threading
import types
import typing
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext
from msgspec.msgpack import encode as raw_encode

from weft.checkpoint.codec import Codec
from weft.checkpoint.wire import MAX_DEPTH, Tag
from weft.errors import CorruptDataError, DefinitionError, NodeTimeoutError, UnstorableError

T = TypeVar("T")


# The application's types


class Color(enum.Enum):
    RED = 1
    BLUE = "b"
    CRIMSON = 1  # noqa: PIE796 - an alias


class Level(enum.IntEnum):
    LOW = 1


class Rights(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()
    BOTH = READ | WRITE
    RUN = enum.auto()


@dataclasses.dataclass
class Item:
    name: str
    price: Decimal = Decimal(1)
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    items: tuple[Item, ...]
    color: Color
    total: Decimal = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "total", sum((i.price for i in self.items), Decimal(0)))


@dataclasses.dataclass
class Strict:
    n: int
    runs: typing.ClassVar[list[str]] = []

    def __post_init__(self):
        self.runs.append("post_init")
        self.extra = self.n * 2

    @functools.cached_property
    def slow(self):
        return threading.Lock()


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@dataclasses.dataclass
class Tree:
    value: int
    children: list[Tree] = dataclasses.field(default_factory=list)


@attrs.define
class Slotted:
    x: int
    _private: str = "p"


@attrs.frozen(cache_hash=True)
class Hashed:
    x: int


@attrs.define(slots=False)
class Checked:
    x: int = attrs.field(validator=attrs.validators.instance_of(int))


class Point(NamedTuple):
    x: int
    y: float = 0.5


class Packed(msgspec.Struct, frozen=True):
    x: int
    y: list[int] = []


class PackedWithHook(msgspec.Struct):
    x: int

    def __post_init__(self):
        raise AssertionError("runs on load")


class Address(pydantic.BaseModel):
    street: str


class User(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    name: str
    address: Address | None = None
    aliased: int = pydantic.Field(default=3, alias="al")
    _seen: int = pydantic.PrivateAttr(default=0)

    @pydantic.field_validator("name")
    @classmethod
    def never_again(cls, value):
        Strict.runs.append("validator")
        return value


class Names(pydantic.RootModel[list[str]]):
    pass


class Chosen(TypedDict):
    item: Item


class Client:
    def __repr__(self):
        return "<Client>"


TYPES = (Color, Level, Rights, Order, Strict, Box, Tree, Slotted, Hashed, Checked, Point, Packed, User, Names)


@pytest.fixture
def codec():
    return Codec(TYPES)


def same(a, b):
    """Equal, and of equal types all the way down; one nan is like another."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, Decimal):
        return a.as_tuple() == b.as_tuple()
    if isinstance(a, dict):
        extra = getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
        return extra and len(a) == len(b) and all(map(same, flat(a), flat(b)))
    if isinstance(a, list | tuple | deque):
        return (
            len(a) == len(b) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0) and all(map(same, a, b))
        )
    if isinstance(a, set | frozenset):
        rest = list(b)
        for item in a:
            at = next((i for i, other in enumerate(rest) if same(item, other)), None)
            if at is None:
                return False
            rest.pop(at)
        return not rest
    if isinstance(a, slice | range):  # ranges of the same numbers are equal, whatever they were made of
        return same((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    if isinstance(a, datetime | time):
        return a == b and a.fold == b.fold and same(a.tzinfo, b.tzinfo)
    if isinstance(a, timezone):
        return repr(a) == repr(b)
    if dataclasses.is_dataclass(a):
        names = [f.name for f in dataclasses.fields(a)]
        return all(same(getattr(a, n), getattr(b, n)) for n in names)
    return a == b


def flat(mapping):
    return list(itertools.chain.from_iterable(mapping.items()))


# Round trips

zones = st.one_of(
    st.none(),
    st.timezones(),
    st.just(UTC),
    st.builds(
        timezone,
        st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
)
_hashable_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**62, max_value=2**66),
    st.integers(min_value=-(2**66), max_value=-(2**62)),
    st.floats(),
    st.text(st.characters()),
    st.text(st.characters(categories=["Cs"])),
    st.binary(),
    st.complex_numbers(),
    st.datetimes(timezones=zones, allow_imaginary=True),
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    zones,
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.ip_addresses(),
    st.builds(ipaddress.ip_network, st.ip_addresses()),
    st.builds(ipaddress.ip_interface, st.ip_addresses()),
    st.builds(range, st.integers(), st.integers(), st.integers(min_value=1)),
    st.just(...),
    st.sampled_from([Color.RED, Color.BLUE, Level.LOW, Rights.READ, Rights.BOTH, Rights.RUN | Rights.READ]),
    st.just(Rights(0)),
    st.builds(PurePosixPath, st.text(st.characters(exclude_characters="\0"))),
    st.builds(Path, st.text(st.characters(exclude_characters="\0"))),
    st.sampled_from([PureWindowsPath("C:/a/b"), PureWindowsPath("//host/share/x"), PureWindowsPath("")]),
)


# Composite, because Hypothesis shows a strategy that is no function in full, and warns that it is long.


@st.composite
def hashable_scalars(draw):
    return draw(_hashable_scalars)


@st.composite
def hashables(draw):
    return draw(_hashables)


_hashables = st.recursive(
    # a signalling NaN has no hash, not even by Decimal itself
    hashable_scalars().filter(lambda v: not (isinstance(v, Decimal) and v.is_snan())),
    lambda inner: st.one_of(
        st.tuples(inner, inner), st.frozensets(inner, max_size=3), st.builds(Point, inner)
    ),
    max_leaves=4,
)
keys = hashables()
dicts = st.one_of(
    st.dictionaries(st.text(), st.nothing()), st.dictionaries(keys, hashable_scalars(), max_size=4)
)
_values = st.recursive(
    st.one_of(
        hashable_scalars(),
        st.binary().map(bytearray),
        st.builds(slice, keys, keys, keys),
        dicts.map(OrderedDict),
        st.dictionaries(keys, st.integers(), max_size=3).map(Counter),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.builds(deque, st.lists(inner, max_size=4), st.none() | st.integers(4, 9)),
        st.builds(
            defaultdict,
            st.sampled_from([None, list, dict, set, tuple, int, float, str]),
            st.dictionaries(keys, inner),
        ),
        st.builds(Item, st.text(), st.decimals(allow_nan=False), st.lists(st.text(), max_size=2)),
        st.builds(Tree, st.integers(), st.lists(st.builds(Tree, inner), max_size=2)),
        st.builds(Box, inner),
        st.builds(Point, inner, inner),
    ),
    max_leaves=12,
)


@st.composite
def any_value(draw):
    return draw(_values)


values = any_value()
SHARED = Codec(TYPES)


@given(values)
@example([2**64, -(2**63) - 1, 2**64 - 1, -(2**63), {"\ud800": "\udfff", "a": 2**70}])
@example({"a": {"b": {1: [-0.0, float("nan"), float("inf")]}}})
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_goes_in_comes_back_equal_and_of_the_same_type(value):
    data = SHARED.encode(value)
    assert same(SHARED.decode(data), value)
    assert SHARED.encode(value) == data
    SHARED.describe(data)


@given(keys, keys)
@settings(deadline=None)
def test_different_values_have_different_fingerprints(a, b):
    """``1``, ``True`` and ``1.0`` are equal in Python and other arguments to a step."""
    assume(not same(a, b))
    assert SHARED.fingerprint(a) != SHARED.fingerprint(b)
    assert SHARED.fingerprint(a, b) != SHARED.fingerprint((a, b))


@given(st.lists(keys, max_size=6), st.randoms())
@settings(deadline=None)
def test_a_set_has_one_fingerprint_however_it_was_built(items, random):
    shuffled = list(items)
    random.shuffle(shuffled)
    first, second = set(items), set()
    for item in shuffled:
        second.add(item)
    assume(same(first, second))  # equal items of other types: the first one stays, as with 1 and True
    assert SHARED.fingerprint(first) == SHARED.fingerprint(second)


def test_a_set_has_one_fingerprint_in_every_process():
    script = """
        from weft.checkpoint.codec import Codec
        print(Codec().fingerprint({"a", "b", "c", ("d", 1)}, {"x": frozenset("pqrs")}).hex())
    """
    outputs = {run_python(script, PYTHONHASHSEED=str(seed)) for seed in range(4)}
    assert len(outputs) == 1


def test_a_fingerprint_needs_every_part_to_be_storable(codec):
    assert codec.fingerprint("a", [Client()]) is None
    assert codec.fingerprint(lambda: 1) is None
    loop: list[Any] = []
    loop.append(loop)
    assert codec.fingerprint(loop) is None
    assert codec.fingerprint() == codec.fingerprint()
    assert codec.fingerprint(2**80, "\ud800") == codec.fingerprint(2**80, "\ud800")


def test_key_order_is_kept(codec):
    value = {"z": 1, "a": 2, 5: 3, None: 4}
    assert list(codec.decode(codec.encode(value))) == list(value)


def test_large_data_is_not_limited(codec):
    value = {"rows": [{"id": i, "text": "x" * 20} for i in range(50_000)], "blob": bytes(5_000_000)}
    assert codec.decode(codec.encode(value)) == value


# Application types


ORDER = Order((Item("a", Decimal("1.5"), ["t"]), Item("b")), Color.RED)


@pytest.mark.parametrize(
    "value",
    [
        ORDER,
        Box(3),
        Box({"x": (1, 2)}),
        Box[int](3),
        Tree(1, [Tree(2, [Tree(3)])]),
        Slotted(1, "secret"),
        Hashed(4),
        {Hashed(4): 1},
        Checked(5),
        Point(1, 2.5),
        {Point(1): "origin"},
        Packed(1, [2]),
        {"k": Color.RED, Color.BLUE: Level.LOW},
        Color.CRIMSON,
        Rights.READ | Rights.RUN,
        Rights(0),
        Rights.BOTH,
        User(name="n", address=Address(street="s"), al=4),
        User(name="n", more=[1, {"x": 2}]),
        User.model_construct(name=3),
        Names(["a", "b"]),
    ],
    ids=repr,
)
def test_application_types_come_back(codec, value):
    back = codec.decode(codec.encode(value))
    assert type(back) is type(value)
    assert back == value
    assert repr(back) == repr(value)


def test_no_init_and_no_validator_runs_on_load(codec):
    model = User(name="n")
    model._seen = 7
    model.name = "m"
    data = codec.encode([Strict(2), model, Checked(1)])
    del Strict.runs[:]
    strict, user, _ = codec.decode(data)
    assert Strict.runs == []
    assert strict.extra == 4
    assert user._seen == 7
    assert user.model_fields_set == {"name"}
    assert user.model_copy() == user == model
    user.address = Address(street="x")


def test_state_outside_the_fields_is_kept_or_refused(codec):
    value = Strict(1)
    assert value.slow  # a cached property may hold anything: it is computed again
    assert codec.decode(codec.encode(value)).extra == 2
    value.client = Client()
    with pytest.raises(UnstorableError) as caught:
        codec.encode(value)
    assert caught.value.path == "result.client"


def test_a_private_attribute_of_a_model_is_refused_by_its_path(codec):
    user = User(name="n")
    user._seen = Client()
    with pytest.raises(UnstorableError, match=r"__pydantic_private__\['_seen'\]: is a Client"):
        codec.encode(user)


def test_an_unset_field_is_refused(codec):
    order = object.__new__(Order)
    with pytest.raises(UnstorableError, match="has no value yet"):
        codec.encode(order)


def test_nested_types_are_registered_with_the_outer_one():
    codec = Codec([Order])
    assert codec.decode(codec.encode(Item("x"))) == Item("x")
    assert codec.decode(codec.encode(Color.BLUE)) is Color.BLUE


@pytest.mark.parametrize(
    "cls", [Client, PackedWithHook, list[int], threading.Lock, "Item", None, object, enum.Enum]
)
def test_what_has_no_fields_cannot_be_registered(cls):
    with pytest.raises(DefinitionError, match="dataclasses, enums, attrs classes, pydantic models"):
        Codec().register(cls)


def test_types_that_need_no_registration_are_ignored():
    codec = Codec([dict, int, Decimal, Chosen, ValueError, type(None)])
    with pytest.raises(UnstorableError):
        codec.encode(Item("x"))


def test_a_reloaded_class_takes_the_place_of_the_old_one():
    def load():
        @dataclasses.dataclass
        class Thing:
            x: int

        return Thing

    first, second = load(), load()
    codec = Codec([first])
    data = codec.encode(first(1))
    codec.register(second)
    assert codec.decode(data) == second(1)
    with pytest.raises(UnstorableError, match="register the type"):
        codec.encode(first(1))


# Classes that have changed since


def changed(old_fields, new_fields):
    """A value recorded with the old fields, and a codec that knows the new ones."""
    old = dataclasses.make_dataclass("Changing", old_fields)
    new = dataclasses.make_dataclass("Changing", new_fields)
    data = Codec([old]).encode(old(*range(len(old_fields))))
    return Codec([new]), data, new


def test_a_new_field_takes_its_simple_default():
    new_fields = [
        "a",
        ("b", int, 5),
        ("c", list, dataclasses.field(default_factory=list)),
        ("d", object, None),
        ("e", Color, Color.RED),
    ]
    codec, data, new = changed(["a"], new_fields)
    assert codec.decode(data) == new(0, 5, [], None, Color.RED)


@pytest.mark.parametrize("factory", [dataclasses.MISSING, Client, lambda: [1]])
def test_a_new_field_without_a_simple_default_is_corrupt_data(factory):
    codec, data, _ = changed(["a"], ["a", ("b", object, dataclasses.field(default_factory=factory))])
    with pytest.raises(CorruptDataError, match="Changing was recorded without its field 'b'"):
        codec.decode(data)


def test_a_field_that_is_gone_is_corrupt_data():
    codec, data, _ = changed(["a", "b"], ["a"])
    with pytest.raises(CorruptDataError, match="Changing has no field 'b'"):
        codec.decode(data)


def test_attrs_without_a_default_take_none():
    """``attrs.NOTHING`` is an enum member, and no default."""
    old, new = (attrs.make_class("Made", names) for names in (["a"], ["a", "b"]))
    data = Codec([old]).encode(old(1))
    with pytest.raises(CorruptDataError, match="'b'"):
        Codec([new]).decode(data)


def test_a_member_that_is_gone_is_corrupt_data():
    old, new = (enum.Enum("Made", names, module=__name__) for names in ("A B", "A"))
    with pytest.raises(CorruptDataError, match="no member 'B'"):
        Codec([new]).decode(Codec([old]).encode(old.B))


@pytest.mark.parametrize("value", [Item("x"), Color.RED])
def test_a_type_that_is_not_registered_here_is_named(value):
    data = Codec([type(value)]).encode(value)
    with pytest.raises(CorruptDataError, match=rf"test_codec:{type(value).__name__} is no registered type"):
        Codec().decode(data)


def test_an_enum_is_not_built_from_fields():
    """``object.__new__`` of an enum would be a member that is none."""
    data = HOSTILE["enum as object"]
    with pytest.raises(CorruptDataError, match="recorded with fields, and is an enum here"):
        SHARED.decode(data)


@pytest.mark.parametrize("name", ["zone outside", "zone by module"])
def test_a_key_that_is_no_time_zone_is_not_looked_up(name):
    """``ZoneInfo`` makes file names from it, and names of modules in the package tzdata."""
    with pytest.raises(CorruptDataError, match="no key of a time zone"):
        SHARED.decode(HOSTILE[name])


# Types found in annotations


class Hinted(typing.Protocol):
    def __call__(self, x: Item) -> Color: ...


def plain(a: Item, b: int) -> Color: ...
def optional(a: Item | None, b: Color | None): ...
def nested(a: list[dict[str, tuple[Item, ...]]]) -> typing.Iterator[Color]: ...
def annotated(a: Annotated[Item, "doc"], b: type[Color]): ...
def mapped(a: Chosen, b: typing.Callable[[Color], None]): ...
def literal(a: Literal[Color.RED], b: Box[Item]): ...
def broken(a: NoSuchName, b: Item, c: Color | NoSuchName, d: Color): ...  # noqa: F821
def variadic(*a: Item, **k: Color): ...


BOUND = TypeVar("BOUND", bound=Item)
ALIAS = typing.NewType("ALIAS", Color)


def bound(a: BOUND) -> ALIAS: ...


class Worker:
    def method(self, a: Item) -> Color: ...
    def __call__(self, a: Item) -> Color: ...


@pytest.mark.parametrize(
    "fn",
    [
        plain,
        optional,
        nested,
        annotated,
        mapped,
        literal,
        broken,
        variadic,
        bound,
        Worker().method,
        Worker(),
        functools.partial(plain, b=1),
        functools.wraps(plain)(lambda *a: None),
        functools.wraps(plain, assigned=())(lambda *a: None),
    ],
)
def test_types_in_annotations_are_registered(fn):
    codec = Codec()
    codec.register_hints(fn)
    codec.register_hints(fn)
    for value in (Item("x"), Color.RED):
        assert codec.decode(codec.encode(value)) == value


def test_the_functions_of_an_owner_are_looked_at_once_and_it_is_not_kept_alive():
    class Owner:
        pass

    codec, owner, asked = Codec(), Owner(), []

    def functions():
        asked.append(1)
        return [takes_item]

    def takes_item(item: Item) -> None:
        pass

    codec.register_hints_of(functions, owner=owner)
    codec.register_hints_of(functions, owner=owner)
    assert codec.decode(codec.encode(Item("x"))) == Item("x")
    codec.register_hints_of(functions, owner=Owner())
    assert len(asked) == 2
    gone = weakref.ref(owner)
    del owner
    assert gone() is None


def test_a_local_class_is_found_through_the_closure():
    @dataclasses.dataclass
    class Local:
        x: int

    def fn(a: Local) -> list[Local]:
        return [Local(1)]

    codec = Codec()
    codec.register_hints(fn)
    assert codec.decode(codec.encode(fn(None))) == [Local(1)]


@pytest.mark.parametrize("fn", [len, print, lambda: 1, types.SimpleNamespace(), Client(), int, dict])
def test_callables_without_annotations_are_no_error(fn):
    Codec().register_hints(fn)


def test_a_type_with_the_name_of_a_builtin_is_found():
    @dataclasses.dataclass
    class float:  # noqa: A001, N801 - which is the point
        mark: str

    def fn(x: float) -> int:
        assert isinstance(x, float)
        return 1

    codec = Codec()
    codec.register_hints(fn)
    assert codec.decode(codec.encode(float("a"))) == float("a")


def test_the_type_argument_of_a_generic_model_is_registered():
    class Page(pydantic.BaseModel, Generic[T]):
        rows: list[T]

    codec = Codec()
    codec.register(Page[Address])
    value = Page[Address](rows=[Address(street="s")])
    assert codec.decode(codec.encode(value)) == value


def test_unsupported_classes_in_annotations_are_left_out():
    def fn(a: Client, b: threading.Lock, c: Any, d: None, e: Item) -> typing.NoReturn: ...

    codec = Codec()
    codec.register_hints(fn)
    assert codec.encode(Item("x"))
    with pytest.raises(UnstorableError):
        codec.encode(Client())


def test_registering_from_many_threads():
    made = [dataclasses.make_dataclass(f"Made{i}", ["x"]) for i in range(50)]
    codec = Codec()
    errors = []

    def work(offset):
        try:
            for cls in made[offset:] + made[:offset]:
                codec.register(cls)
                assert codec.decode(codec.encode(cls(1))) == cls(1)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i * 10,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# Refusal


class MyInt(int): ...


class MyStr(str): ...  # noqa: SLOT000


class MyList(list): ...


class MyDict(dict): ...


class MyPath(PurePosixPath): ...


class MyDate(datetime): ...


class Undeclared(enum.IntEnum):
    A = 1


@dataclasses.dataclass
class Unknown:
    x: int


class Fake(timezone.__base__):
    def utcoffset(self, _):
        return timedelta(0)


def generator():
    yield


REFUSED = {
    "client": (Client(), "", "is a Client; pass data instead"),
    "in a dict": ({"items": [0, 1, {"a": 1, "client": Client()}]}, "['items'][2]['client']", "Client"),
    "in a tuple": ((1, (2, Client())), "[1][1]", "Client"),
    "in a set": ({1, Unknown}, ".<member>", "code"),
    "as a key": ({1: 2, Client(): 3}, ".keys()[1]", "Client"),
    "under a key": ({(1, 2): [Client()]}, "[(1, 2)][0]", "Client"),
    "in a field": (Box([Client()]), ".content[0]", "Client"),
    "in a model": (User.model_construct(name={"x": Client()}), ".name['x']", "Client"),
    "in a deque": (deque([1, Client()]), "[1]", "Client"),
    "int subclass": ([MyInt(3)], "[0]", "subclass of int"),
    "str subclass": ([MyStr("a")], "[0]", "plain str"),
    "list subclass": (MyList(), "", "subclass of list"),
    "dict subclass": (MyDict(), "", "subclass of dict"),
    "key subclass": ({MyStr("a"): 1}, ".keys()[0]", "subclass of str"),
    "path subclass": (MyPath("a"), "", "subclass of PurePosixPath"),
    "datetime subclass": (MyDate(2024, 1, 1), "", "subclass of datetime"),
    "IntEnum": (Undeclared.A, "", r"codec.register\(Undeclared\)"),
    "dataclass": ({"x": Unknown(1)}, "['x']", r"saver.codec.register\(Unknown\)"),
    "function": ([generator], "[0]", "function"),
    "builtin": (len, "", "code"),
    "class": (Item, "", "code"),
    "generator": ([generator()], "[0]", "is a generator"),
    "module": (json, "", "is a module"),
    "lock": (threading.Lock(), "", "is a lock"),
    "object": (object(), "", "is an object"),
    "zone": (datetime(2024, 1, 1, tzinfo=Fake()), ".tzinfo", "is a Fake"),
    "factory": (defaultdict(lambda: 1), "", "default_factory"),
    "mappingproxy": (types.MappingProxyType({}), "", "mappingproxy"),
    "memoryview": (memoryview(b"x"), "", "memoryview"),
    "struct": (PackedWithHook.__new__, "", "code"),
    "windows path": (PureWindowsPath("./c:x"), "", "its text does not describe"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_cannot_come_back_is_refused_with_its_path(codec, name):
    value, path, reason = REFUSED[name]
    if name == "windows path" and PureWindowsPath(str(value)) == value:
        pytest.skip("this Python writes such a path in a way that can be read")
    with pytest.raises(UnstorableError, match=reason) as caught:
        codec.encode(value, root="answer")
    assert caught.value.path == f"answer{path}"
    assert caught.value.__cause__ is None


def test_a_cycle_is_refused_where_it_closes(codec):
    value: dict[str, Any] = {"a": [1, {}]}
    value["a"][1]["back"] = value["a"]
    with pytest.raises(UnstorableError, match=r"refers back to result\['a'\]") as caught:
        codec.encode(value)
    assert caught.value.path == "result['a'][1]['back']"


def test_a_cycle_of_objects_is_refused(codec):
    tree = Tree(1)
    tree.children.append(tree)
    with pytest.raises(UnstorableError) as caught:
        codec.encode([tree])
    assert (caught.value.path, caught.value.reason) == (
        "result[0].children[0]",
        "refers back to result[0]; break the cycle",
    )


def nest(levels, wrap):
    value = wrap(None)
    for _ in range(levels - 1):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap",
    [lambda v: [v], lambda v: (v,), lambda v: {"a": v}, lambda v: {1: v}, Box, lambda v: frozenset([v])],
)
def test_depth_is_bounded_and_what_is_encoded_can_be_decoded(codec, wrap):
    value = nest(MAX_DEPTH, wrap)
    data = codec.encode(value)
    assert codec.encode(codec.decode(data)) == data
    with pytest.raises(UnstorableError, match="levels deep") as caught:
        codec.encode(wrap(value))
    assert len(caught.value.path) < 1000


@pytest.mark.parametrize("wrap", [lambda v: (v,), lambda v: {1: v}, Box, lambda v: frozenset([v])])
def test_the_depth_does_not_depend_on_the_stack_of_the_caller(codec, wrap):
    """A value recorded by a shallow caller must not be corrupt data to a deep one."""

    def deep_down(n, fn, *args):
        return deep_down(n - 1, fn, *args) if n else fn(*args)

    data = deep_down(700, codec.encode, nest(MAX_DEPTH, wrap))
    assert codec.encode(deep_down(700, codec.decode, data)) == data
    assert deep_down(700, codec.fingerprint, nest(MAX_DEPTH - 1, wrap))


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, Box])
def test_far_too_deep_values_are_refused(codec, wrap):
    value = nest(100_000, wrap) if wrap is not Box else nest(5_000, wrap)
    with pytest.raises(UnstorableError):
        codec.encode(value)
    assert codec.fingerprint(value) is None
    while value is not None:  # taken apart here: freeing it in one go recurses
        value = value.content if wrap is Box else (value[0] if isinstance(value, list) else value["a"])


def test_a_property_that_raises_is_an_unstorable_value(codec):
    @dataclasses.dataclass
    class Odd:
        x: int

        def __getattribute__(self, name):
            raise ZeroDivisionError if name == "x" else AttributeError(name)

    codec.register(Odd)
    with pytest.raises(UnstorableError, match="ZeroDivisionError"):
        codec.encode(object.__new__(Odd))


# Hostile bytes


def nested_ext(levels, tag=Tag.TUPLE):
    data = raw_encode([])
    for _ in range(levels):
        data = raw_encode([Ext(tag, data)])
    return data


HOSTILE = {
    "empty": b"",
    "deep arrays": b"\x91" * 1_000_000,
    "deep maps": b"\x81\xa1a" * 1_000_000,
    "deep keys": b"\x81" * 1_000_000,
    "deep exts": nested_ext(2_000),
    "array of 2^32": b"\xdd\xff\xff\xff\xff",
    "array of 2^32 begun": b"\xdd\xff\xff\xff\xff\xc0\xc0",
    "map of 2^32": b"\xdf\xff\xff\xff\xff",
    "bytes of 2^32": b"\xc6\xff\xff\xff\xffabc",
    "str of 2^32": b"\xdb\xff\xff\xff\xffabc",
    "ext of 2^32": b"\xc9\xff\xff\xff\xff\x06abc",
    "never used": b"\xc1",
    "bad utf-8": b"\xa1\xff",
    "trailing": b"\xc0\xc0",
    "unhashable key": b"\x81\x80\xc0",
    "unknown ext": raw_encode(Ext(99, b"")),
    "negative ext": raw_encode(Ext(-2, b"")),
    "pickle": b"\x80\x04\x95\x10\x00",
    "tuple of text": raw_encode(Ext(Tag.TUPLE, raw_encode("abc"))),
    "set of lists": raw_encode(Ext(Tag.SET, raw_encode([[1]]))),
    "odd pairs": raw_encode(Ext(Tag.DICT, raw_encode([1, 2, 3]))),
    "zero denominator": raw_encode(Ext(Tag.FRACTION, raw_encode([1, 0]))),
    "huge fraction": raw_encode(Ext(Tag.FRACTION, raw_encode(["1e999999999", 1]))),
    "bad decimal": raw_encode(Ext(Tag.DECIMAL, b"one")),
    "bad uuid": raw_encode(Ext(Tag.UUID, b"short")),
    "range without end": raw_encode(Ext(Tag.RANGE, raw_encode([0, 1, 0]))),
    "bad month": raw_encode(Ext(Tag.DATE, raw_encode([2024, 13, 1]))),
    "long time": raw_encode(Ext(Tag.TIMEDELTA, raw_encode([10**18, 0, 0]))),
    "unknown factory": raw_encode(Ext(Tag.DEFAULT_DICT, raw_encode(["system"]))),
    "unknown path": raw_encode(Ext(Tag.PATH, raw_encode(["open", "x"]))),
    "address by number": raw_encode(Ext(Tag.IP, raw_encode(["IPv4Address", 5]))),
    "zone outside": raw_encode(Ext(Tag.ZONE_INFO, b"../../etc/passwd")),
    "zone by module": raw_encode(Ext(Tag.ZONE_INFO, b"os.path/x")),
    "unknown zone": raw_encode(Ext(Tag.ZONE_INFO, b"Mars/Olympus")),
    "unknown type": raw_encode(Ext(Tag.OBJECT, raw_encode(["os:system", ["a"], 1]))),
    "type by list": raw_encode(Ext(Tag.OBJECT, raw_encode([["os:system"], [], {}]))),
    "enum as object": raw_encode(Ext(Tag.OBJECT, raw_encode([f"{__name__}:Color", []]))),
    "object as enum": raw_encode(Ext(Tag.ENUM, raw_encode([f"{__name__}:Item", "x"]))),
    "no member": raw_encode(Ext(Tag.ENUM, raw_encode([f"{__name__}:Color"]))),
    "field by number": raw_encode(Ext(Tag.OBJECT, raw_encode([f"{__name__}:Item", [1, "x"], 1, 2]))),
    "class as state": raw_encode(Ext(Tag.OBJECT, raw_encode([f"{__name__}:Item", ["__class__"], 1]))),
    "model without state": raw_encode(Ext(Tag.OBJECT, raw_encode([f"{__name__}:User", ["name"], 1]))),
    "no error": raw_encode(Ext(Tag.ERRORS, raw_encode([]))),
    "error alone": raw_encode(
        Ext(Tag.ERROR, raw_encode(["builtins:ValueError", [], True, {}, {}, None, "", ""]))
    ),
    "reference alone": raw_encode(Ext(Tag.ERROR_REF, raw_encode(0))),
    "error of a function": raw_encode(
        Ext(
            Tag.ERRORS,
            raw_encode([Ext(Tag.ERROR, raw_encode(["os:system", ["true"], True, {}, {}, None, "", ""]))]),
        )
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_corrupt_data(codec, name):
    with pytest.raises(CorruptDataError):
        codec.decode(HOSTILE[name])
    try:
        codec.describe(HOSTILE[name])
    except CorruptDataError:
        pass
    try:
        assert codec.decode_error(HOSTILE[name]) is None
    except CorruptDataError:
        pass


@given(st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_value_or_corrupt_data(data):
    for read in (SHARED.decode, SHARED.describe, SHARED.decode_error):
        try:
            read(data)
        except CorruptDataError:
            pass


@given(values, st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_bytes_are_a_value_or_corrupt_data(value, data):
    encoded = bytearray(SHARED.encode([value, ORDER, ValueError("x", {1: 2})]))
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    for damaged in (bytes(encoded), bytes(encoded[:cut])):
        for read in (SHARED.decode, SHARED.describe):
            try:
                read(damaged)
            except CorruptDataError:
                pass


def test_claimed_lengths_are_not_allocated():
    """2^32 items would be 34 GB; with 1 GB of address space left an attempt to allocate them shows."""
    script = """
        import resource
        from weft.checkpoint.codec import Codec, CorruptDataError
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        codec = Codec()
        for head in (b"\\xdd", b"\\xdf", b"\\xc6", b"\\xdb"):
            for data in (head + b"\\xff\\xff\\xff\\xff" + b"\\xc0" * 9, head + b"\\x0f\\xff\\xff\\xff"):
                try:
                    codec.decode(data)
                except CorruptDataError as error:
                    assert "truncated" in str(error), error
                else:
                    raise AssertionError(data)
        print("ok")
    """
    assert run_python(script) == "ok"


def test_decoding_imports_opens_and_runs_nothing():
    """An audit hook sees every import, exec, compile and open of the interpreter."""
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_codec import HOSTILE, ORDER, TYPES, Client, Codec, CorruptDataError, Point, User
        codec = Codec(TYPES)
        good = codec.encode([ORDER, User(name="x"), Point(1), {{1: ValueError("x")}}, 2**70])
        error = codec.encode_error(OSError(2, "gone", "file"))
        evil = codec.encode_error(ValueError(1)).replace(b"builtins:ValueError", b"antigravity:Unknown")
        seen = []
        watching = False
        def hook(event, args):
            if watching and event.partition(".")[0] in ("import", "exec", "compile", "open", "os", "pickle"):
                seen.append((event, args))
        sys.addaudithook(hook)
        watching = True
        for name, data in [*HOSTILE.items(), ("good", good), ("error", error), ("evil", evil)]:
            if "zone" in name:  # an unknown key is looked for in the files of the time zones
                continue
            for read in (codec.decode, codec.decode_error, codec.describe):
                try:
                    read(data)
                except CorruptDataError:
                    pass
        watching = False
        print(seen, codec.decode_error(evil), "antigravity" in sys.modules)
    """
    assert run_python(script) == "[] None False"


def run_python(script, **env):
    """What the script printed, in a Python of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Errors


class Plain(Exception): ...


class OwnInit(Exception):
    ran: typing.ClassVar[list[str]] = []

    def __init__(self, code, *, retry_after):
        self.ran.append("init")
        super().__init__(f"code {code}")
        self.code = code
        self.retry_after = retry_after

    def __reduce__(self):
        raise AssertionError("never called")

    def __setstate__(self, state):
        raise AssertionError("never called")


class OwnNew(Exception):
    def __new__(cls, *args):
        OwnInit.ran.append("new")
        return super().__new__(cls, *args)


class OwnText(Exception):
    def __init__(self, response):
        self.response = response

    def __str__(self):
        return f"status {self.response}"


class WithSlots(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, code):
        self.code = code

    def __str__(self):
        return f"code {self.code}"


class Loud(OSError):
    def __init__(self, message):
        super().__init__(5, message)
        self.extra = message


class Group(ExceptionGroup):
    def __new__(cls, errors):
        return super().__new__(cls, "of ours", errors)

    def __init__(self, errors):
        self.failures = dict(enumerate(errors))

    def derive(self, errors):
        return Group(errors)


@attrs.define(auto_exc=True)
class AttrsError(Exception):
    code: int


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


class Outer:
    class Inner(Exception): ...


def raised(make):
    """The error as it is after being raised."""
    try:
        make()
    except BaseException as error:
        return error
    raise AssertionError


def noted():
    error = Plain("x")
    error.add_note("first")
    error.add_note("second \ud800")
    return error


def fail(error):
    raise error


SHAPES = {
    "plain": lambda: ValueError("wrong", 3, {"a": (1,)}),
    "no args": Plain,
    "key": lambda: KeyError("k"),
    "own init": lambda: OwnInit(3, retry_after=1.5),
    "own new": lambda: OwnNew("x", 1),
    "own text": lambda: OwnText(404),
    "slots": lambda: WithSlots(7),
    "file not found": lambda: raised(Path("/no/such/file").read_bytes),
    "two files": lambda: OSError(18, "cross-device", "a", None, "b"),
    "errno": lambda: ConnectionRefusedError(111, "refused"),
    "os error with init": lambda: Loud("loud"),
    "blocking": lambda: BlockingIOError(11, "busy", 5),
    "unicode decode": lambda: raised(b"ab\xff".decode),
    "unicode encode": lambda: raised("\ud800".encode),
    "stop": lambda: StopIteration({"value": 1}),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "cancelled": lambda: asyncio.CancelledError("why"),
    "import": lambda: ImportError("no", name="n", path="p"),
    "syntax": lambda: raised(lambda: compile("a b", "f.py", "exec")),
    "name": lambda: NameError("nn", name="nn"),
    "attribute": lambda: raised(lambda: Client().missing),
    "json": lambda: raised(lambda: json.loads("{")),
    "group": lambda: ExceptionGroup(
        "all", [ValueError(1), ExceptionGroup("in", [KeyError("k"), OSError(2, "x")])]
    ),
    "base group": lambda: BaseExceptionGroup("all", [KeyboardInterrupt(), ValueError("x")]),
    "own group": lambda: Group([ValueError(1), Group([OwnInit(1, retry_after=2)])]),
    "inner class": lambda: Outer.Inner("x"),
    "attrs": lambda: AttrsError(3),
    "frozen": lambda: FrozenError(3),
    "ours": lambda: NodeTimeoutError("step", timeout=1.0, elapsed=1.5, given_up=True),
    "notes": noted,
    "surrogate": lambda: ValueError("\ud800", 2**80),
    "chained": lambda: raised(lambda: fail(raised(lambda: fail(ValueError("x"))))),
}


def looks(error):
    """What can be seen of an error."""
    state = {k: v for k, v in vars(error).items() if k != "__weft_traceback__"}
    slots = [
        getattr(error, n, None)
        for n in ("errno", "strerror", "filename", "filename2", "name", "value", "code")
    ]
    inner = [looks(e) for e in error.exceptions] if isinstance(error, BaseExceptionGroup) else []
    if inner:
        state.pop("failures", None)
    args = error.args if not inner else [str(a) for a in error.args]
    return type(error), args, str(error), state, slots, inner


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("as_value", [False, True])
def test_errors_come_back(codec, name, as_value):
    error = SHAPES[name]()
    data = codec.encode({"e": error}) if as_value else codec.encode_error(error)
    del OwnInit.ran[:]
    back = codec.decode(data)["e"] if as_value else codec.decode_error(data)
    assert OwnInit.ran == []
    assert looks(back) == looks(error)
    assert str(error) in back.__weft_traceback__ or name in ("surrogate", "syntax")
    assert back.__traceback__ is None
    assert codec.describe(data)


def test_the_traceback_is_kept_as_text_with_its_cause(codec):
    def inner():
        raise KeyError("first")

    def outer():
        try:
            inner()
        except KeyError as error:
            raise ValueError("second") from error

    error = raised(outer)
    back = codec.decode_error(codec.encode_error(error))
    text = back.__weft_traceback__
    assert "in inner" in text
    assert "The above exception was the direct cause" in text
    assert back.__cause__ is None
    again = codec.decode_error(codec.encode_error(raised(lambda: fail(back))))
    assert again.__weft_traceback__ == text


def test_errors_that_share_members_are_stored_once_each(codec):
    """Groups whose attributes name their members again would grow by a factor a level."""
    error: Exception = ValueError("leaf")
    for _ in range(25):
        error = Group([error])
    data = codec.encode_error(error)
    assert len(data) < 1_500_000
    back = codec.decode_error(data)
    assert back.failures[0] is back.exceptions[0]


def test_unstorable_parts_of_an_error_are_left_out(codec):
    error = Plain("text")
    error.client, error.code = Client(), 3
    back = codec.decode_error(codec.encode_error(error))
    assert back.code == 3
    assert not hasattr(back, "client")


def test_an_argument_that_cannot_be_stored_is_its_repr_if_the_text_stays_the_same(codec):
    back = codec.decode_error(codec.encode_error(ValueError(Client())))
    assert back.args == ("<Client>",)
    assert codec.decode_error(codec.encode_error(KeyError("a", Client()))) is None
    assert codec.decode_error(codec.encode_error(OwnText(Client()))) is None


def local_error():
    class Local(Exception): ...

    return Local("x")


class BadText(Exception):
    def __str__(self):
        raise RuntimeError

    __repr__ = __str__


def circular():
    error = Plain("x")
    error.args = (error, [error])
    error.me = error
    return error


def endless():
    error = Plain("x")
    error.loop = loop = []
    loop += [loop, loop]
    return error


def chain(levels):
    error = Plain("x")
    for _ in range(levels):
        error = Plain(error)
    return error


ODD = {
    "local": local_error,
    "bad text": lambda: BadText(Client()),
    "circular": circular,
    "endless": endless,
    "chain": lambda: chain(150),
    "long chain": lambda: chain(600),
    "bad notes": lambda: setattr(e := Plain("x"), "__notes__", [Client(), 3]) or e,
    "notes no list": lambda: setattr(e := Plain("x"), "__notes__", 3) or e,
    "odd names": lambda: setattr(e := Plain("x"), "\ud800", 3) or e,
    "group of local": lambda: ExceptionGroup("g", [local_error()]),
    "pydantic": lambda: raised(lambda: User(name=3)),
    "recursion": lambda: raised(lambda: nest(1, lambda v: forever(0))),
    "huge": lambda: ValueError("x" * 10_000_000),
}


def forever(n):
    return forever(n + 1)


@pytest.mark.parametrize("name", ODD)
def test_recording_an_error_never_fails(codec, name):
    error = ODD[name]()
    data = codec.encode_error(error)
    assert codec.describe(data)["$error"].endswith(f":{type(error).__qualname__}")
    codec.decode_error(data)


@pytest.mark.parametrize("make", [local_error, lambda: ExceptionGroup("g", [local_error()]), circular])
def test_an_error_that_could_not_come_back_is_refused_as_a_value(codec, make):
    with pytest.raises(UnstorableError, match=r"result\['e'\]: is the error .* return str\(error\)"):
        codec.encode({"e": make()})


def test_a_class_that_is_not_loaded_gives_none(codec):
    data = codec.encode_error(Plain("x"))
    name = __name__.encode()
    assert codec.decode_error(data.replace(name + b":Plain", name + b":Plane")) is None
    assert codec.decode_error(data.replace(name + b":Plain", name + b":fails")) is None
    assert codec.decode_error(codec.encode_error(local_error())) is None


def test_a_module_is_not_asked_for_what_it_would_import(codec):
    module = types.ModuleType("lazy_test_module")
    module.__getattr__ = lambda name: fail(AssertionError("asked"))
    sys.modules["lazy_test_module"] = module
    try:
        fake = type("Made", (Exception,), {"__module__": "lazy_test_module"})
        assert codec.decode_error(codec.encode_error(fake())) is None
    finally:
        del sys.modules["lazy_test_module"]


@pytest.mark.parametrize(
    "slots",
    [
        {"object": "text", "start": 0, "end": 1},
        {"object": 5, "start": 0, "end": 1},
        {"object": b"x", "start": -(2**40), "end": 1 - 2**40},
        {"object": b"x", "start": 1.5, "end": 1},
        {"start": 0, "end": 1},
        {"object": b"x"},
    ],
)
def test_a_unicode_error_with_a_false_state_cannot_be_built(codec, slots):
    """Its ``str`` is C that reads ``object[start]`` without looking at either: a crash at best."""
    form = [
        "builtins:UnicodeDecodeError",
        [],
        True,
        {"encoding": "u", "reason": "r", **slots},
        {},
        None,
        "",
        "x",
    ]
    data = raw_encode(Ext(Tag.ERRORS, raw_encode([Ext(Tag.ERROR, raw_encode(form))])))
    assert codec.decode_error(data) is None


class SameText(Exception):
    def __str__(self):
        return "always the same"


def test_a_refused_part_of_an_error_takes_no_depth_from_the_next(codec):
    error = SameText(*[[[[Client()]]] for _ in range(MAX_DEPTH)], [[1]])
    back = codec.decode_error(codec.encode_error(error))
    assert back.args[0] == "[[[<Client>]]]"
    assert back.args[-1] == [[1]]


def test_a_value_is_no_error(codec):
    with pytest.raises(CorruptDataError, match="a dict was recorded"):
        codec.decode_error(codec.encode({}))


# Display


def test_describe_needs_no_types(codec):
    value = {
        "order": ORDER,
        "user": User(name="n"),
        Color.RED: {Hashed(1)},
        "error": ValueError("x"),
        "when": date(2024, 1, 2),
        "flags": Rights.READ | Rights.RUN,
    }
    here = __name__
    assert Codec().describe(codec.encode(value)) == {
        "order": {
            "$type": f"{here}:Order",
            "items": (
                {"$type": f"{here}:Item", "name": "a", "price": Decimal("1.5"), "tags": ["t"]},
                {"$type": f"{here}:Item", "name": "b", "price": Decimal(1), "tags": []},
            ),
            "color": {"$type": f"{here}:Color", "name": "RED"},
            "total": Decimal("2.5"),
        },
        "user": {"$type": f"{here}:User", "name": "n", "address": None, "aliased": 3},
        repr({"$type": f"{here}:Color", "name": "RED"}): [{"$type": f"{here}:Hashed", "x": 1}],
        "error": {"$error": "builtins:ValueError", "message": "x"},
        "when": date(2024, 1, 2),
        "flags": {"$type": f"{here}:Rights", "name": "READ|RUN"},
    }
