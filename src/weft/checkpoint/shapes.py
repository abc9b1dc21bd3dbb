"""Application types: what of them is stored, and how they are rebuilt without running their ``__init__``.

A *shape* knows one class. State is the fields, plus what else is in ``__dict__``; what a class keeps in
``__slots__`` that are no fields is not kept, nor are cached properties.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, Flag
from functools import cached_property, reduce
from operator import attrgetter, or_
from types import BuiltinFunctionType
from typing import Any

import msgspec
from msgspec.msgpack import Ext

from weft.checkpoint import hints
from weft.checkpoint.builtin_types import FACTORIES
from weft.checkpoint.wire import (
    TEXT,
    Reader,
    ReadTable,
    Refusal,
    Tag,
    UnknownTypeError,
    Writer,
    extension,
    short_repr,
    shortened,
    tag_of,
    text_keys,
)
from weft.errors import CorruptDataError

Defaults = dict[str, Callable[[], object] | None]
"""The fields of a class, each with what makes its default, if it is a simple one."""

_SIMPLE = (type(None), bool, int, float, str, bytes, Enum)


class Shape:
    """What the codec knows of one application class."""

    names: Sequence[str] = ()

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.tag = tag_of(cls)

    def write(self, w: Writer, value: Any) -> Ext:
        """The value written.

        Raises:
            Refusal: Something in it cannot be stored.
        """
        raise NotImplementedError

    def nested(self) -> Iterable[type]:
        """The classes that the annotations of the fields name."""
        return hints.classes_of_fields(self.cls, self.names)


class FieldShape(Shape):
    """A class whose values are their fields. The base serves dataclasses and attrs classes."""

    def __init__(self, cls: type, fields: Defaults) -> None:
        super().__init__(cls)
        self.fields = fields
        self.names = list(fields)
        cached = {
            name for base in cls.__mro__ for name, at in vars(base).items() if isinstance(at, cached_property)
        }
        self._all = _getter(self.names)
        # __orig_class__ is typing's note of Box[int]; a cached hash is true only in its own process
        self._left_out = {*fields, *cached, "__orig_class__", _CACHED_HASH}

    def write(self, w: Writer, value: Any) -> Ext:
        values = self._written(w, value)
        rest = self.rest(value)
        tail = [w.attributes(rest, value)] if rest else []
        return extension(Tag.OBJECT, [w.write(self.tag), self.names, *values, *tail])

    def read(self, names: list[str], values: list[object], rest: dict[str, Any]) -> object:
        """The value of these fields; a missing one takes its default.

        Raises:
            UnknownTypeError: The class has changed too much.
        """
        given = dict(zip(names, values, strict=True))
        if names == self.names:
            return self.build(given, rest)
        if unknown := given.keys() - self.fields.keys():
            raise UnknownTypeError(f"{self.tag} has no field {short_repr(min(unknown))} here")
        return self.build({n: given[n] if n in given else self._default(n) for n in self.names}, rest)

    def values(self, value: Any) -> Iterable[object]:
        """The values of the fields, in their order; one that is not set is refused when it is its turn."""
        try:
            return self._all(value)
        except AttributeError:
            return (_field(value, name) for name in self.names)

    def rest(self, value: Any) -> dict[str, Any]:
        """State outside the fields."""
        return {k: v for k, v in getattr(value, "__dict__", {}).items() if k not in self._left_out}

    def build(self, fields: dict[str, Any], rest: dict[str, Any]) -> object:
        """A value of the class with this state."""
        made: Any = object.__new__(self.cls)
        for name, value in fields.items():
            object.__setattr__(made, name, value)
        if rest:
            vars(made).update(rest)
        return made

    def _written(self, w: Writer, value: Any) -> list[Any]:
        values: list[object] = []
        try:
            values += self.values(value)
        except Refusal as refusal:
            refusal.trail.append((value, self._label(value, len(values))))
            raise
        return w.items(values, value, self._label)

    def _default(self, name: str) -> object:
        make = self.fields[name]
        if make is None:
            raise UnknownTypeError(
                f"{self.tag} was recorded without its field {name!r}, which has no simple default"
            )
        return make()

    def _label(self, _: object, at: int) -> str:
        return f".{self.names[at]}"


class AttrsShape(FieldShape):
    """An attrs class; one that caches its hash finds the cache empty."""

    def build(self, fields: dict[str, Any], rest: dict[str, Any]) -> object:
        made = super().build(fields, rest)
        if _CACHED_HASH in getattr(getattr(self.cls.__hash__, "__code__", None), "co_names", ()):
            object.__setattr__(made, _CACHED_HASH, None)
        return made


class StructShape(FieldShape):
    """A msgspec.Struct without ``__post_init__``: its constructor is C and only assigns."""

    def build(self, fields: dict[str, Any], rest: dict[str, Any]) -> object:
        made: Any = self.cls(**fields)
        if rest:
            vars(made).update(rest)
        return made


class NamedTupleShape(FieldShape):
    """A NamedTuple, by the names of its fields."""

    def values(self, value: Any) -> Iterable[object]:
        return tuple.__iter__(value)

    def build(self, fields: dict[str, Any], rest: dict[str, Any]) -> object:
        made: Any = tuple.__new__(self.cls, fields.values())
        if rest:
            vars(made).update(rest)
        return made


class ModelShape(FieldShape):
    """A pydantic model: the four attributes that make up its state, without validation."""

    def nested(self) -> Iterable[type]:
        fields = self.cls.model_fields  # type: ignore[attr-defined] # a model; it knows what a type variable became
        return hints.classes_in(field.annotation for field in fields.values())

    def values(self, value: Any) -> Iterable[object]:
        state = vars(value)
        return (state[name] if name in state else _unset() for name in self.names)

    def rest(self, value: Any) -> dict[str, Any]:
        state: dict[str, Any] = {"__pydantic_fields_set__": value.__pydantic_fields_set__}
        if value.__pydantic_extra__:
            state["__pydantic_extra__"] = value.__pydantic_extra__
        if value.__pydantic_private__ is not None:
            state["__pydantic_private__"] = value.__pydantic_private__
        return state

    def build(self, fields: dict[str, Any], rest: dict[str, Any]) -> object:
        made: Any = object.__new__(self.cls)
        object.__setattr__(made, "__dict__", fields)
        object.__setattr__(made, "__pydantic_fields_set__", _a(set, rest["__pydantic_fields_set__"]))
        if not getattr(self.cls, "__pydantic_root_model__", False):
            keeps_extra = getattr(self.cls, "model_config", {}).get("extra") == "allow"
            extra = rest.get("__pydantic_extra__", {} if keeps_extra else None)
            private = rest.get("__pydantic_private__")
            object.__setattr__(made, "__pydantic_extra__", None if extra is None else _a(dict, extra))
            object.__setattr__(made, "__pydantic_private__", None if private is None else _a(dict, private))
        return made


class EnumShape(Shape):
    """An enum, by the name of the member; a combination of flags, by the names of its members."""

    def write(self, w: Writer, value: Any) -> Ext:
        return extension(Tag.ENUM, [w.write(self.tag), *map(w.write, self._members(value))])

    def member(self, names: list[str]) -> object:
        """The member of that name, or the combination of several."""
        known: Mapping[str, Any] = self.cls.__members__  # type: ignore[attr-defined] # an Enum
        if missing := [name for name in names if name not in known]:
            raise UnknownTypeError(f"{self.tag} has no member {short_repr(missing[0])} here")
        if len(names) == 1:
            return known[names[0]]
        if not issubclass(self.cls, Flag):
            raise CorruptDataError(f"{self.tag} is no Flag, but {len(names)} members were recorded")
        return reduce(or_, (known[name] for name in names), self.cls(0))

    def _members(self, value: Any) -> list[str]:
        if self.cls.__members__.get(value.name) is value:  # type: ignore[attr-defined] # an Enum
            return [value.name]
        names = [str(member.name) for member in value] if isinstance(value, Flag) else []
        if not isinstance(value, Flag) or self.member(names) != value:
            raise Refusal(f"is {short_repr(value)}, which is no member of its enum by name")
        return names


def _getter(names: Sequence[str]) -> Callable[[object], tuple[object, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


_CACHED_HASH = "_attrs_cached_hash"


def _a(kind: type, state: object) -> object:
    if type(state) is not kind:
        raise CorruptDataError(f"a {type(state).__name__} was recorded where a {kind.__name__} should be")
    return state


def _field(value: object, name: str) -> object:
    try:
        return getattr(value, name)
    except AttributeError:
        return _unset()


def _unset() -> object:
    raise Refusal("has no value yet; set the field before the value is returned")


# Which class has which shape


def shape_of(cls: type) -> Shape | None:
    """The shape of an application type; None for a class that cannot be registered."""
    for make in (_enum, _struct, _named_tuple, _model, _dataclass, _attrs):
        if shape := make(cls):
            return shape
    return None


def _enum(cls: Any) -> Shape | None:
    return EnumShape(cls) if issubclass(cls, Enum) and cls is not Enum else None


def _struct(cls: Any) -> Shape | None:
    # __post_init__ cannot be left out: only the constructor makes a Struct
    if not issubclass(cls, msgspec.Struct) or hasattr(cls, "__post_init__"):
        return None
    return StructShape(
        cls, {f.name: _simple(f.default, f.default_factory) for f in msgspec.structs.fields(cls)}
    )


def _named_tuple(cls: Any) -> Shape | None:
    names = getattr(cls, "_fields", None)
    if not issubclass(cls, tuple) or not isinstance(names, tuple):
        return None
    defaults = getattr(cls, "_field_defaults", {})
    return NamedTupleShape(cls, {n: _simple(defaults[n]) if n in defaults else None for n in names})


def _model(cls: Any) -> Shape | None:
    if not hasattr(cls, "__pydantic_private__") or not isinstance(getattr(cls, "model_fields", None), dict):
        return None
    return ModelShape(
        cls, {name: _simple(f.default, f.default_factory) for name, f in cls.model_fields.items()}
    )


def _dataclass(cls: Any) -> Shape | None:
    if not hasattr(cls, "__dataclass_fields__") or _has_content(cls):
        return None
    return FieldShape(cls, {f.name: _simple(f.default, f.default_factory) for f in dataclasses.fields(cls)})


def _attrs(cls: Any) -> Shape | None:
    fields = getattr(cls, "__attrs_attrs__", None)
    if fields is None or _has_content(cls):
        return None
    return AttrsShape(cls, {f.name: _simple(f.default, getattr(f.default, "factory", None)) for f in fields})


def _has_content(cls: Any) -> bool:
    """Whether values have state outside attributes: then ``object.__new__`` cannot make one, nor is that all."""
    return any(isinstance(vars(base).get("__new__"), BuiltinFunctionType) for base in cls.__mro__[:-1])


def _simple(default: object, factory: object = None) -> Callable[[], object] | None:
    """What makes a default value without running code of the user; None if there is no such default."""
    for known in FACTORIES.values():
        if known is not None and known is factory:
            return known
    # The markers of "no default" are of other types, but for attrs.NOTHING, an enum as long as it is one.
    if not isinstance(default, _SIMPLE) or type(default).__module__ == "attr._make":
        return None
    return lambda: default


# Reading


def _read_object(r: Reader, payload: memoryview) -> object:
    tag, names, values, rest = _object_parts(r, payload)
    shape = _shape(r, tag)
    if not isinstance(shape, FieldShape):
        raise UnknownTypeError(f"{tag} was recorded with fields, and is an enum here")
    return shape.read(names, values, rest)


def _read_enum(r: Reader, payload: memoryview) -> object:
    tag, names = _enum_parts(r, payload)
    shape = _shape(r, tag)
    if not isinstance(shape, EnumShape):
        raise UnknownTypeError(f"{tag} was recorded as an enum, and is none here")
    return shape.member(names)


def _shape(r: Reader, tag: str) -> Shape:
    shape = r.shapes.get(tag)
    if not isinstance(shape, Shape):
        shown = shortened(tag)
        raise UnknownTypeError(
            f"{shown} is no registered type; load its module and codec.register({shown.rpartition(':')[2]})"
        )
    return shape


def _object_parts(r: Reader, payload: memoryview) -> tuple[str, list[str], list[object], dict[str, Any]]:
    tag, names, *values = r.items(payload)
    _check_names(tag, names)
    rest: Any = values.pop() if len(values) > len(names) else None
    if rest is not None and not text_keys(rest):
        raise CorruptDataError("the state outside the fields is no dict of names")
    return tag, names, values, rest or {}


def _enum_parts(r: Reader, payload: memoryview) -> tuple[str, list[str]]:
    tag, *names = r.items(payload)
    _check_names(tag, names)
    return tag, names


def _check_names(tag: object, names: object) -> None:
    """Names that are text: whatever else they were would run code when they are compared or shown."""
    if type(tag) is not str or type(names) is not list or not TEXT.issuperset(map(type, names)):
        raise CorruptDataError("a type or its fields are not given by names")


def _describe_object(r: Reader, payload: memoryview) -> dict[str, object]:
    tag, names, values, _ = _object_parts(r, payload)
    return {"$type": tag, **dict(zip(names, values, strict=True))}


def _describe_enum(r: Reader, payload: memoryview) -> dict[str, object]:
    tag, names = _enum_parts(r, payload)
    return {"$type": tag, "name": "|".join(names)}


READERS: ReadTable = {Tag.OBJECT: _read_object, Tag.ENUM: _read_enum}
DESCRIBERS: ReadTable = {Tag.OBJECT: _describe_object, Tag.ENUM: _describe_enum}
