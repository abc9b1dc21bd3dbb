"""A value becomes the arguments of a function: read from its signature, whatever kind of callable it is."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import decimal
import functools
import textwrap
import typing
from collections.abc import Mapping

import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st

from weft.core.binding import Binding
from weft.errors import InputError


def given_to(fn, value, how="bind"):
    """What the function gives when it is called with the arguments of this value."""
    args, kwargs = getattr(Binding.of(fn), how)(value, step="s")
    return fn(*args, **kwargs)


def error_of(fn, value, how="bind"):
    with pytest.raises(InputError) as caught:
        given_to(fn, value, how)
    return str(caught.value)


# Any signature, any value: a model that says what every parameter must get

NAMES = "abcd"
MAPPING_HINTS = ["", ": dict", ": Any", ": object", ": Mapping[str, int]", ": int | dict", ": T"]
OTHER_HINTS = [": int", ": list[dict]", ": str | None", ": Unknown", ": Callable[[dict], dict]"]


@dataclasses.dataclass(frozen=True)
class Param:
    name: str
    kind: str  # "positional only", "plain", "*", "keyword only" or "**"
    hint: str
    default: bool


@st.composite
def signatures(draw):
    """Parameters in an order that Python accepts."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(0, len(NAMES)))]
    ranks = sorted(draw(st.lists(st.integers(0, 2), min_size=len(names), max_size=len(names))))
    params, defaulted = [], False
    for name, rank in zip(names, ranks, strict=True):
        default = draw(st.booleans())
        if rank < 2:
            defaulted = default = default or defaulted
        hint = draw(st.sampled_from(MAPPING_HINTS + OTHER_HINTS))
        params.append(Param(name, ("positional only", "plain", "keyword only")[rank], hint, default))
    if draw(st.booleans()):
        params.append(Param("args", "*", "", False))
    if draw(st.booleans()):
        params.append(Param("more", "**", "", False))
    return params


def function_of(params, *, texts):
    """A function with these parameters that gives its arguments by name."""
    parts = {kind: [] for kind in ("positional only", "plain", "*", "keyword only", "**")}
    for p in params:
        stars = p.kind if p.kind in ("*", "**") else ""
        parts[p.kind].append(f"{stars}{p.name}{p.hint}{' = 0' if p.default else ''}")
    only, plain, star, keyword, more = parts.values()
    if keyword and not star:
        star = ["*"]
    header = ", ".join([*only, *(["/"] if only else []), *plain, *star, *keyword, *more])
    source = f"{'from __future__ import annotations' if texts else ''}\ndef fn({header}): return locals()"
    names = {"Any": typing.Any, "T": typing.TypeVar("T"), "Mapping": Mapping, "Callable": typing.Callable}
    if not texts:
        names["Unknown"] = decimal.Decimal
    exec(source, names)
    return names["fn"]


VALUES = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), st.integers(1, 9)),
    st.lists(st.integers(1, 9), max_size=5),
    st.lists(st.integers(1, 9), max_size=5).map(tuple),
    st.sampled_from([None, 7, "ab", {1, 2}]),
)

WRONG = object()


def expected(params, value, *, item):
    """What every parameter gets, by the words of the rule; WRONG where that is an error."""
    required = [p for p in params if not p.default and p.kind not in ("*", "**")]
    got = {p.name: 0 for p in params if p.default}
    got |= {p.name: {"*": (), "**": {}}[p.kind] for p in params if p.kind in ("*", "**")}
    if not required:
        places = [p for p in params if p.kind in ("positional only", "plain")]
        star = [p for p in params if p.kind == "*"]
        if star or (item and places):
            got |= {places[0].name: value} if places else {star[0].name: (value,)}
        return got
    if len(required) == 1:
        (p,) = required
        picks = p.hint in OTHER_HINTS and isinstance(value, dict) and p.name in value
        return got | {p.name: value[p.name] if picks else value}
    if isinstance(value, dict) and all(p.name in value for p in required):
        return got | {p.name: value[p.name] for p in required}
    if isinstance(value, list | tuple) and len(value) == len(required):
        return got | {p.name: one for p, one in zip(required, value, strict=True)}
    return WRONG


@given(params=signatures(), value=VALUES, item=st.booleans(), texts=st.booleans())
def test_every_parameter_gets_what_the_rule_says(params, value, item, texts):
    fn, how = function_of(params, texts=texts), "bind_item" if item else "bind"
    wanted = expected(params, value, item=item)
    if wanted is WRONG:
        message = error_of(fn, value, how)
        assert message.startswith("'s' ")
        assert all(repr(p.name) in message for p in params if not p.default and p.kind not in ("*", "**"))
    else:
        assert given_to(fn, value, how) == wanted


# Which annotations a mapping fits

T = typing.TypeVar("T")
Anything = typing.TypeVar("Anything", bound=int)


class Options(typing.TypedDict):
    url: str


class GenericOptions(typing.TypedDict, typing.Generic[T]):
    url: T


class BackportedOptions(typing_extensions.TypedDict):
    url: str


class OwnMapping(Mapping):
    """Made by hand: a mapping that is no dict."""


@dataclasses.dataclass
class Record:
    url: str


UserId = typing.NewType("UserId", int)
Headers = typing.NewType("Headers", dict)
Json = typing.Union[str, list["Json"], dict[str, "Json"]]  # noqa: UP007 - a text has no |
Endless = typing.Optional["Endless"]
PAYLOAD = dict[str, typing.Any]
REMARK = "REMARK"  # a name that stands for a text: its own
BY_TYPE_STATEMENT = typing_extensions.TypeAliasType("BY_TYPE_STATEMENT", int | dict)
ENDLESS_STATEMENT = typing_extensions.TypeAliasType("ENDLESS_STATEMENT", list[int])

FITS = [
    "typing.Any", "object", "T", "Anything", "dict", "dict[str, int]", "typing.Dict", "typing.Dict[str, int]",
    "typing.Mapping", "collections.abc.Mapping[str, int]", "typing.MutableMapping[str, int]",
    "collections.defaultdict", "collections.defaultdict[str, int]", "typing.DefaultDict[str, int]",
    "collections.OrderedDict", "typing.OrderedDict[str, int]", "collections.Counter[str]", "OwnMapping",
    "Options", "GenericOptions", "GenericOptions[int]", "BackportedOptions", "Headers", "Json", "PAYLOAD",
    "BY_TYPE_STATEMENT", "typing.Optional[dict]", "dict | None", "None | dict[str, int]", "typing.Any | None",
    "typing.Union[int, Options]", "typing.Annotated[dict, 'the headers']", "typing.Optional[T]",
    "typing.Annotated[typing.Optional[dict], 1]", "typing.Optional[typing.Annotated[dict, 1]]",
    "typing.Optional['dict']", "typing.Union[int, 'Options']",
]  # fmt: skip
DOES_NOT_FIT = [
    "str", "int", "list", "list[dict]", "tuple[dict, int]", "None", "typing.Optional[str]", "str | int", "Record",
    "typing.Callable[[dict], dict]", "typing.Annotated[str, dict]", "typing.Literal['dict']", "set[str]",
    "typing.Iterable[str]", "UserId", "Endless", "type[dict]", "typing.Optional['str']", "ENDLESS_STATEMENT",
    "typing.Type[dict]", "typing.Annotated['int', 'dict']", "collections.abc.Sequence[dict]",
]  # fmt: skip
# Only as texts: what cannot be evaluated
TEXT_FITS = [
    "Unknown | dict", "dict | Unknown", "Optional[dict[str, Unknown]]", "missing.Dict[str, missing.X]",
    "missing.Optional[missing.Mapping]", "Mapping[str, Unknown]", "missing.Annotated[dict, 1]", "Any",
    "OrderedDict", "MutableMapping", "defaultdict[str, Unknown]", "the url, as a text", "'dict'", "",
    "typing.Union['Unknown', 'Options']", "Union[Unknown, dict]", "missing.Any | None",
]  # fmt: skip
TEXT_DOES_NOT_FIT = [
    "Unknown", "missing.Frame", "Unknown | None", "Optional[Unknown]", "list[Unknown]", "Frame[dict]", "url",
    "Annotated[Unknown, dict]", "Callable[[dict], dict]", "REMARK", "1", "typing.Missing", "Literal['dict']",
    "(dict)()", "Dictionary", "None",
]  # fmt: skip


def annotated(hint):
    def fn(url): ...

    fn.__annotations__["url"] = hint
    return fn


def takes_whole(fn):
    value = {"url": 1}
    ((got,), kwargs) = Binding.of(fn).bind(value, step="s")
    assert kwargs == {}
    assert got == 1 or got is value
    return got is value


@pytest.mark.parametrize("text", FITS + DOES_NOT_FIT)
@pytest.mark.parametrize("form", ["object", "text"])
def test_an_annotation_says_whether_the_whole_mapping_is_meant(text, form):
    hint = eval(text) if form == "object" else text
    assert takes_whole(annotated(hint)) == (text in FITS)


@pytest.mark.parametrize("text", TEXT_FITS + TEXT_DOES_NOT_FIT)
def test_names_that_only_a_type_checker_knows_do_not_hide_the_others(text):
    assert takes_whole(annotated(text)) == (text in TEXT_FITS)


def test_the_statement_of_an_alias_that_names_what_is_missing_is_no_mapping():
    class TypeAliasType:  # as Python 3.12 makes them: evaluated when looked at
        @property
        def __value__(self):
            raise NameError("Unknown")

    assert not takes_whole(annotated(TypeAliasType()))


def test_an_alias_that_is_defined_by_itself_ends():
    class TypeAliasType:
        @property
        def __value__(self):
            return int | typing.Annotated[T, 1] if self.ends else self

        ends = False

    assert not takes_whole(annotated(TypeAliasType()))
    ending = TypeAliasType()
    ending.ends = True
    assert takes_whole(annotated(ending))


def test_a_type_parameter_is_as_good_as_no_annotation():
    fn = annotated("V")
    assert not takes_whole(fn)
    typed = functools.partial(fn)
    fn.__type_params__ = (typing.TypeVar("V"),)  # as `def fn[V](url: V)` leaves it
    assert takes_whole(typed)


def test_names_of_enclosing_functions_count():
    class Local(typing.TypedDict):
        url: str

    def seen(url: Local):
        return Local, url

    def early(url: late):
        return late, url

    def unseen(url: Local): ...

    assert takes_whole(seen)
    assert not takes_whole(unseen)  # nothing but its text is left of the annotation
    assert not takes_whole(early)  # read before the name has a value
    late = dict


def test_a_module_that_loads_its_parts_on_demand_may_fail():
    class Lazy:
        def __getattr__(self, name):
            raise ImportError(name)

    fn = function_of([Param("url", "plain", ": lazy.Frame", False)], texts=True)
    fn.__globals__["lazy"] = Lazy()
    assert not takes_whole(fn)


def test_a_mapping_without_the_key_is_given_whole_whatever_the_annotation():
    def fetch(url: str): ...

    value = {"uri": "x"}
    for one in (value, [1, 2], "text", {...}, None):
        assert Binding.of(fetch).bind(one, step="s")[0][0] is one


def test_any_kind_of_mapping_is_read_by_name():
    def pair(a, b):
        return a, b

    class Upper(collections.UserDict):
        def __getitem__(self, key):
            return super().__getitem__(key).upper()

    def fetch(url: str):
        return url

    assert given_to(pair, Upper(a="x", b="y")) == ("X", "Y")
    assert given_to(fetch, Upper(url="x")) == "X"
    assert given_to(lambda a, b: (a, b), collections.ChainMap({"a": 1}, {"b": 2})) == (1, 2)


def test_a_default_dict_is_not_filled_by_asking_it():
    value = collections.defaultdict(int)

    def fetch(url: str):
        return url

    assert given_to(fetch, value) is value
    error_of(lambda a, b: None, value)
    assert not value


# Every kind of callable


class Holder:
    factor = 10

    def method(self, number: int):
        return self.factor * number

    @classmethod
    def of_class(cls, number: int):
        return cls.factor * number

    @staticmethod
    def of_none(number: int):
        return 10 * number

    def __call__(self, number: int):
        return self.factor * number


class Made:
    def __init__(self, number: int):
        self.ten = 10 * number


class New:
    def __new__(cls, number: int):
        return 10 * number


@dataclasses.dataclass
class Data:
    number: int
    comment: str = ""


def decorated(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


@decorated
def wrapped(number: int):
    return 10 * number


def scaled(factor: int, number: int):
    return factor * number


CALLABLES = {
    "method": Holder().method,
    "class method": Holder.of_class,
    "static method": Holder.of_none,
    "static method itself": Holder.__dict__["of_none"],
    "callable object": Holder(),
    "partial": functools.partial(scaled, 10),
    "partial by keyword": functools.partial(scaled, factor=10),
    "partial of a partial": functools.partial(functools.partial(scaled), 10),
    "partial of a method": functools.partial(Holder().method),
    "wrapped": wrapped,
    "wrapped partial": functools.wraps(wrapped)(functools.partial(wrapped)),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_every_kind_of_callable_is_read(name):
    fn = CALLABLES[name]
    assert given_to(fn, 3) == 30
    assert given_to(fn, {"number": 3, "factor": 5}) == 30  # the annotations are found behind it as well
    assert given_to(fn, {"number": 3}, "bind_item") == 30


def whole(value: Options):
    return value


class Whole:
    def __init__(self, value: Options):
        self.value = value

    def method(self, value: Options):
        return value


class WholeNew:
    def __new__(cls, value: Options):
        return value


class WholeCall:
    def __call__(self, value: Options):
        return value


@pytest.mark.parametrize(
    "fn",
    [
        whole,
        decorated(whole),
        functools.singledispatch(whole),  # a wrapper from another module
        functools.partial(decorated(whole)),
        functools.partial(Whole.method, None),
        Whole(None).method,
        Whole,
        WholeNew,
        WholeCall(),
        functools.partial(WholeCall()),
    ],
)
def test_the_names_of_annotations_are_looked_up_where_the_function_was_written(fn):
    value = {"value": 1}
    found = given_to(fn, value)
    assert found is value or found.value is value


def test_names_of_the_function_around_a_class_count():
    class Local(typing.TypedDict):
        value: int

    class Holding:
        def method(self, value: Local):
            return Local and value

        def __call__(self, value: Local):
            return Local and value

    value = {"value": 1}
    assert given_to(Holding().method, value) is value
    assert given_to(Holding(), value) is value


def test_a_class_is_a_callable_that_makes_its_object():
    assert given_to(Made, {"number": 3}).ten == 30
    assert given_to(New, {"number": 3}) == 30
    assert given_to(Data, {"number": 3, "comment": "not required"}) == Data(3)


def test_a_bound_parameter_of_a_partial_does_not_count():
    def three(a, b, c):
        return a, b, c

    assert given_to(functools.partial(three, b=2), {"a": 1, "b": 9, "c": 3}) == (1, 2, 3)
    assert given_to(functools.partial(three, 1), [2, 3]) == (1, 2, 3)
    assert given_to(functools.partial(three, 1, 2, 3), "nothing is left to bind") == (1, 2, 3)


def test_a_lambda_without_annotation_gets_the_whole_value():
    assert given_to(lambda chunk: chunk, {"chunk": 1}) == {"chunk": 1}


@pytest.mark.parametrize(
    ("fn", "value", "result"),
    [
        (int, "7", 7),  # no signature
        (dict, {"a": 1}, {"a": 1}),
        (float, "1.5", 1.5),  # a signature in which nothing is required
        (list, "ab", ["a", "b"]),
        (bool, "x", True),
        (str, 1, "1"),
        (decimal.Decimal, "1.5", decimal.Decimal("1.5")),
        (len, {"obj": "abc"}, 1),
        (sorted, [2, 1], [1, 2]),
        ({"a": 1}.get, "a", 1),
        ([1, 2].copy, "not wanted", [1, 2]),
    ],
)
def test_a_builtin_gets_the_value(fn, value, result):
    assert given_to(fn, value) == result


def test_a_signature_that_lies_is_no_signature():
    def fn(*args):
        return args

    fn.__signature__ = "none"
    assert given_to(fn, {"a": 1}) == ({"a": 1},)


# Where nothing is required


def test_what_requires_nothing_is_called_with_nothing_except_for_an_item():
    def greet(name="you", *, loud=False):
        return name

    assert given_to(greet, "Ada") == "you"
    assert given_to(greet, {"name": "Ada"}) == "you"
    assert given_to(greet, "Ada", "bind_item") == "Ada"
    assert given_to(lambda: "none", "Ada", "bind_item") == "none"
    assert given_to(lambda *, loud=False: loud, "Ada", "bind_item") is False


def test_a_wrapper_that_hides_its_parameters_gets_the_value():
    def careless(fn):
        def wrapper(*args, **kwargs):
            return fn(*args, **kwargs)

        return wrapper

    @careless
    def fetch(url):
        return url

    assert given_to(fetch, {"url": "x"}) == {"url": "x"}
    assert given_to(fetch, "x", "bind_item") == "x"


# Errors


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": 1, "c": 3}, "{'a': 1, 'c': 3}, which has no 'b'."),
        ({}, "{}, which has no 'a', 'b'."),
        ([1], "[1], which has 1 item."),
        ((1, 2, 3), "(1, 2, 3), which has 3 items."),
        ("ab", "'ab', which is neither a mapping nor a list or tuple."),
        ({1, 2}, "{1, 2}, which is neither a mapping nor a list or tuple."),
    ],
)
def test_the_error_shows_step_parameters_and_value(value, says):
    def combine(a, *, b, c=0): ...

    with pytest.raises(InputError) as caught:
        Binding.of(combine).bind(value, step="combine")
    message = str(caught.value)
    assert message.startswith(f"'combine' requires the parameters 'a', 'b' and was given {says} ")
    assert "a list or tuple of 2 items" in message


def test_a_long_value_is_shown_in_part_and_one_that_cannot_be_shown_does_not_hide_the_error():
    class Sullen:
        def __repr__(self):
            raise ValueError("no")

    long = {f"key {n}": ["x" * 1000] * 1000 for n in range(1000)}
    for value in (long, "x" * 10**6, list(range(10**6)), Sullen(), [Sullen()] * 9):
        assert len(error_of(lambda a, b: None, value)) < 700
    assert "Sullen" in error_of(lambda a, b: None, Sullen())


def test_the_rules_are_those_of_the_documents_first_sample():
    source = textwrap.dedent("""
        def fetch_api(url: str) -> dict: return url
        def fetch_database(query: str) -> dict: return query
        def combine_results(data: dict) -> dict: return data
        def add_numbers(a: int, b: int) -> int: return a + b
    """)
    for heading in ("", "from __future__ import annotations\n"):
        names = {}
        exec(heading + source, names)
        data = {"url": 1, "query": 2, "data": 3, "a": 4, "b": 5}
        assert given_to(names["fetch_api"], data) == 1
        assert given_to(names["fetch_database"], data) == 2
        assert given_to(names["combine_results"], data) is data
        assert given_to(names["add_numbers"], data) == 9
