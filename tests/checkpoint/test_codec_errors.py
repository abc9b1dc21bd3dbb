"""A stored error runs no code of its class: every way in which a class could have its code run, each tried."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import types

import pytest
from msgspec.msgpack import Ext, encode

from weft import ParallelExecutionError
from weft.checkpoint.codec import Codec
from weft.checkpoint.wire import Tag
from weft.errors import CorruptDataError, UnstorableError

RAN: list[str] = []
HERE = __name__


def ran(name):
    def method(*args, **kwargs):
        RAN.append(name)
        raise AssertionError(name)

    return method


def form(name, args=(), *, exact=True, slots=None, attributes=None, notes=None, text="text"):
    one = [
        name if ":" in name else f"{HERE}:{name}",
        list(args),
        exact,
        slots or {},
        attributes or {},
        notes,
        "",
        text,
    ]
    return encode(Ext(Tag.ERRORS, encode([Ext(Tag.ERROR, encode(one))])))


def trap(**more):
    """A class of errors whose every hook is a trap."""
    names = [
        "__init__",
        "__new__",
        "__setstate__",
        "__reduce__",
        "__reduce_ex__",
        "__getattr__",
        "__setattr__",
        "__str__",
        "__repr__",
        "__hash__",
        "__eq__",
        "__bool__",
        "__len__",
        "__iter__",
        "__call__",
        "__copy__",
        "__deepcopy__",
        "__format__",
        "__dir__",
        "__delattr__",
        "add_note",
        "with_traceback",
        "__sizeof__",
        "__getnewargs__",
        "__getstate__",
        "__post_init__",
        "derive",
        "split",
    ]
    return {"__module__": HERE, **{name: ran(name) for name in names}, **more}


Trapped = type(
    "Trapped", (Exception,), trap(args=property(ran("args")), code=property(ran("code"), ran("set code")))
)
TrappedOS = type("TrappedOS", (OSError,), trap(errno=property(ran("errno"), ran("set errno"))))
TrappedGroup = type(
    "TrappedGroup",
    (ExceptionGroup,),
    trap(exceptions=property(ran("exceptions")), message=property(ran("message"))),
)
TrappedParallel = type(
    "TrappedParallel",
    (ParallelExecutionError,),
    trap(exceptions=property(ran("exceptions")), __cause__=property(ran("cause"), ran("set cause"))),
)
Dict = type("Dict", (Exception,), {"__module__": HERE, "__dict__": property(ran("__dict__"))})
Deleted = type("Deleted", (Exception,), {"__module__": HERE, "__del__": ran("__del__")})
Watched = type("Watched", (Exception,), {"__module__": HERE, "__getattribute__": ran("__getattribute__")})
Masked = type("Masked", (Exception,), {"__module__": HERE, "__class__": property(ran("__class__"))})
BuiltinNew = type("BuiltinNew", (Exception,), {"__module__": HERE, "__new__": staticmethod(print)})
Descriptor = type(
    "Descriptor",
    (),
    {"__get__": ran("__get__"), "__set__": ran("__set__"), "__class__": property(ran("__class__"))},
)
Described = type("Described", (Exception,), {"__module__": HERE, "value": Descriptor()})
Meta = type(
    "Meta",
    (type,),
    {
        name: ran(f"meta {name}")
        for name in ("__call__", "__instancecheck__", "__subclasscheck__", "__getattr__")
    }
    | {"__mro__": property(ran("mro"))},
)
OfMeta = Meta.__new__(Meta, "OfMeta", (Exception,), {"__module__": HERE})
LIVE = {"RAN": RAN}


class Mask:
    """Says by its ``__class__`` that it is a type."""

    __class__ = property(ran("Mask.__class__"))  # type: ignore[assignment]
    __getattr__ = ran("Mask.__getattr__")


MASK = Mask()


@pytest.fixture(autouse=True)
def nothing_ran():
    del RAN[:]
    yield
    assert RAN == []


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Trapped", {"args": [1, "a"], "attributes": {"code": 3, "x": [1]}, "notes": ["n"]}),
        ("Trapped", {}),
        ("TrappedOS", {"slots": {"errno": 5, "strerror": "s", "filename": "f"}}),
        ("Dict", {"args": [1], "attributes": {"a": 1}}),
        ("OfMeta", {"args": [1]}),
        ("Described", {"args": [1], "attributes": {"value": 2}}),
        ("BuiltinNew", {"args": [1]}),
    ],
)
def test_no_hook_of_the_class_runs(name, more):
    back = Codec().decode(form(name, **more))
    assert type(back) is globals()[name]
    assert BaseException.args.__get__(back) == tuple(more.get("args", ()))
    state = vars(BaseException)["__dict__"].__get__(back)
    assert {k: v for k, v in state.items() if k not in ("__notes__", "__weft_traceback__")} == more.get(
        "attributes", {}
    )
    assert state.get("__notes__") == more.get("notes")
    if name == "TrappedOS":
        assert (OSError.errno.__get__(back), OSError.strerror.__get__(back)) == (5, "s")


@pytest.mark.parametrize("name", ["TrappedGroup", "TrappedParallel"])
def test_no_hook_of_a_group_runs(name):
    inner = Ext(Tag.ERROR, encode(["builtins:ValueError", [1], True, {}, {}, None, "", "1"]))
    slots = {"message": "m", "exceptions": [Ext(Tag.ERROR_REF, encode(0))]}
    outer = Ext(Tag.ERROR, encode([f"{HERE}:{name}", [], True, slots, {}, None, "", "m"]))
    back = Codec().decode(encode(Ext(Tag.ERRORS, encode([inner, outer]))))
    assert type(back) is globals()[name]
    members = vars(BaseExceptionGroup)["exceptions"].__get__(back)
    assert [(type(one), one.args) for one in members] == [(ValueError, (1,))]
    if name == "TrappedParallel":
        assert vars(BaseException)["__cause__"].__get__(back) is members[0]


@pytest.mark.parametrize("name", ["Deleted", "Watched", "Masked"])
def test_a_class_whose_code_runs_by_itself_is_not_rebuilt(name):
    assert Codec().decode_error(form(name, [1])) is None
    with pytest.raises(CorruptDataError, match="cannot be rebuilt here: text"):
        Codec().decode(form(name, [1]))
    assert Codec().describe(form(name, [1])) == {"$error": f"{HERE}:{name}", "message": "text"}


def test_one_of_those_is_refused_as_a_value():
    cls = type("Deleted", (Exception,), {"__module__": HERE, "__del__": lambda self: None})
    with pytest.raises(UnstorableError, match="could not be rebuilt"):
        Codec().encode(cls("x"))


@pytest.mark.parametrize("exact", [True, False])
def test_the_text_of_an_error_is_not_asked_for(exact):
    """``exact`` is the word of the data: neither answer makes ``__str__`` run."""
    error = Codec().decode_error(form("Trapped", ["text"], exact=exact))
    assert (error is not None) == exact
    assert (Codec().decode_error(form("builtins:ValueError", ["text"], exact=exact))).args == ("text",)
    assert Codec().decode_error(form("builtins:ValueError", ["other"], exact=False)) is None


@pytest.mark.parametrize(
    "name",
    [
        f"{HERE}:MASK",
        f"{HERE}:MASK.x",
        f"{HERE}:Trapped.__init__",
        f"{HERE}:Trapped.code",
        f"{HERE}:LIVE",
        f"{HERE}:ran",
        f"{HERE}:OfMeta.x",
        f"{HERE}:",
        HERE,
        "",
        ":",
        "builtins:eval",
        "builtins:int",
        "builtins:type",
        "os:system",
        "masked:X",
        "sys:modules.os.error",
        "antigravity:X",
        "builtins:ValueError.__init__",
    ],
)
def test_what_is_no_class_of_errors_is_not_taken_for_one(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "masked", MASK)
    assert Codec().decode_error(form(name if ":" in name else name + ":")) is None
    assert "antigravity" not in sys.modules


def test_a_module_is_not_asked():
    lazy = type(
        "Lazy", (types.ModuleType,), {"__getattr__": ran("module"), "__dict__": property(ran("module dict"))}
    )("lazy_errors")
    sys.modules["lazy_errors"] = lazy
    try:
        assert Codec().decode_error(form("lazy_errors:X")) is None
    finally:
        del sys.modules["lazy_errors"]


def test_nothing_is_imported_for_a_class():
    script = """
        import sys
        from weft.checkpoint.codec import Codec
        class Mine(Exception): ...
        data = Codec().encode_error(Mine(1)).replace(b"__main__:Mine", b"wave.abc:Errr")
        before = set(sys.modules)
        print(Codec().decode_error(data), set(sys.modules) - before, "wave" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "None set() False"


@pytest.mark.parametrize(
    ("args", "exact"),
    [((1, 2), True), ((object(), 2), False), (("a", print), False)],
)
def test_whether_it_says_the_same_is_settled_when_it_is_recorded(args, exact):
    data = Codec().encode_error(KeyError(*args))
    assert (Codec().decode_error(data) is not None) == exact


def test_a_note_and_a_long_text_are_cut_where_they_are_said_to_be():
    error = ValueError("x" * 300_000)
    error.__notes__ = [str(at) for at in range(5_000)]
    data = Codec().encode_error(error)
    back = Codec().decode_error(data)
    assert back.args == error.args
    assert back.__notes__ == [*map(str, range(2_000)), "'[3000 more notes]'"]
    assert len(Codec().describe(data)["message"]) == 100_001
    assert Codec().decode(Codec().encode(error)).__notes__ == error.__notes__


def test_a_long_chain_is_named_in_the_traceback():
    error = ValueError("first")
    for at in range(5_000):
        error, error_ = ValueError(at), error
        error.__context__ = error_
    text = Codec().decode_error(Codec().encode_error(error)).__weft_traceback__
    assert text == "ValueError: 4999\n  [what led to it is too long to be recorded]\n"
    while error.__context__ is not None:
        error, error.__context__ = error.__context__, None


def test_the_object_that_lacks_an_attribute_is_not_recorded():
    """It may be of any size, or be a secret; the rest of what the error says is."""
    codec = Codec()
    found = AttributeError("no", name="missing", obj="x" * 10_000)
    data = codec.encode_error(found)
    assert len(data) < 1_000
    back = codec.decode_error(data)
    assert (type(back), back.args, back.name, back.obj) == (AttributeError, ("no",), "missing", None)


class Unspeakable(ExceptionGroup):
    def __str__(self):
        raise RuntimeError("no text")


def test_an_error_of_which_no_traceback_can_be_made_has_an_empty_one():
    codec = Codec()
    data = codec.encode_error(Unspeakable("g", [ValueError("x")]))
    group = codec.decode_error(data)
    assert type(group) is Unspeakable
    assert group.__weft_traceback__ == ""
    assert repr(group.exceptions) == "(ValueError('x'),)"


def test_what_is_recorded_of_an_error_is_bounded():
    """However much it refers to: what is too much is shown, and the error is not one that is rebuilt."""
    codec = Codec()
    some = codec.encode_error(ValueError(list(range(10_000))))
    assert codec.decode_error(some).args == (list(range(10_000)),)
    data = codec.encode_error(ValueError(list(range(1_000_001))))
    assert len(data) < 200_000
    assert codec.decode_error(data) is None
    assert codec.describe(data)["$error"] == "builtins:ValueError"
