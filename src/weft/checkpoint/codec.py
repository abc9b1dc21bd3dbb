"""Turns values into bytes and back, exactly or not at all, and never runs code from the bytes.

The format is msgpack with a closed set of extension types (:class:`weft.checkpoint.wire.Tag`). Nothing is
imported, no ``__init__``, ``__new__``, validator or hook such as ``__setstate__`` is called, and an
application's classes are found only among those that it registered; errors, of which any class that is loaded
may be named, run no code of theirs at all. Two things happen that the bytes have a say in: what is a key or a
member is hashed and compared, by its own class where that is a registered one; and for a time zone that exists
its file is read.

What is decoded is bounded by what was encoded: time and memory grow with the number of bytes and no faster,
whoever wrote them.

Where to look: ``wire`` is the walk, ``builtin_types`` the types of the standard library, ``shapes`` the
application's types, ``errors_codec`` errors, ``hints`` the types that annotations name.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import length_hint
from typing import Any, TypeVar, is_typeddict
from weakref import WeakSet

from weft.checkpoint import builtin_types, errors_codec, hints, shapes
from weft.checkpoint.builtin_types import ALWAYS_ATOMS, USUAL_ATOMS
from weft.checkpoint.shapes import Shape
from weft.checkpoint.wire import (
    MANY,
    MAX_DEPTH,
    MAX_SIZE,
    NO_HARM,
    Reader,
    ReadTable,
    Refusal,
    UnknownTypeError,
    Writer,
    WriteTable,
    check_bounds,
    pack,
    short_repr,
    text_keys,
)
from weft.core.outcome import (
    Cancelled,
    Composed,
    Failed,
    HandedOut,
    NotStarted,
    Ok,
    ReadOnce,
    Skipped,
    TimedOut,
)
from weft.errors import CorruptDataError, DefinitionError, UnstorableError

T = TypeVar("T")

_READERS: ReadTable = {**builtin_types.READERS, **shapes.READERS, **errors_codec.READERS}
_DESCRIBERS: ReadTable = {
    **_READERS,
    **builtin_types.DESCRIBERS,
    **shapes.DESCRIBERS,
    **errors_codec.DESCRIBERS,
}


_OURS = (Ok, Failed, TimedOut, Cancelled, Skipped, NotStarted, HandedOut, ReadOnce, Composed)


class Codec:
    """The values that a journal can hold, and their bytes.

    A value comes back equal and of the same type, or is refused when it is encoded. Known are the builtin
    types and those of ``collections``, ``datetime``, ``decimal``, ``fractions``, ``ipaddress``, ``pathlib``,
    ``uuid`` and ``zoneinfo``; errors; and the application's types, once registered.

    Not kept is which objects are one: two references to one list come back as two equal lists, and a change
    of one is not seen in the other (errors inside one error are the exception: they stay one object). A value
    that contains itself is refused, and so is one that meets the same objects so often that it would be very
    much larger in the store than in memory. The order of dicts is kept; so is the type of a key among keys
    that are equal, such as ``1``, ``True`` and ``1.0``.

    Refused is also what is nested more than 200 levels deep or takes more than 512 MiB.
    All methods may be called from any thread.

    Args:
        types: Application types to register.
    """

    def __init__(self, types: Iterable[type] = ()) -> None:
        self._writers: WriteTable = {**builtin_types.WRITERS, BaseException: errors_codec.write_error}
        self._shapes: dict[str, Shape] = {}
        self._reader = Reader(_READERS, self._shapes)
        self._describer = Reader(_DESCRIBERS, self._shapes)
        self.token = object()  # by which a step knows it again without keeping it
        self._lock = threading.Lock()
        self._hinted: WeakSet[Any] = WeakSet()
        self._owners: WeakSet[Any] = WeakSet()
        for shape in _our_shapes():
            self._keep(shape)
        self.register(*types)

    def register(self, *types: type) -> None:
        """Make application types storable, with those that the annotations of their fields name.

        A type is known in the data by its module and qualified name; registering another class of that name
        replaces the first (its module was reloaded). Types that need no registering are ignored.

        Raises:
            DefinitionError: A type has no fields that the codec could see.
        """
        for cls in types:
            if not isinstance(cls, type) or not (self._add(cls) or self._needs_none(cls)):
                raise DefinitionError(
                    f"{cls!r} cannot be registered; what can: dataclasses, enums, attrs classes, pydantic "
                    f"models, NamedTuples, and msgspec.Struct without __post_init__"
                )

    def known_types(self) -> tuple[type, ...]:
        """The application types that are registered."""
        return tuple(shape.cls for shape in self._shapes.values() if shape.cls not in _OURS)

    def register_hints(self, fn: Callable[..., Any]) -> None:
        """Register the application types in a function's annotations; what cannot be resolved is left out.

        Calling it again for the same function costs next to nothing.
        """
        fn = getattr(fn, "__func__", fn)  # a bound method is a new object each time
        try:
            if fn in self._hinted:
                return
        except TypeError:  # a callable object may be unhashable
            self._add_all(hints.classes_of_function(fn))
            return
        self._add_all(hints.classes_of_function(fn))
        with suppress(TypeError), self._lock:  # there may be no weak references to it
            self._hinted.add(fn)

    def register_hints_of(
        self, functions: Callable[[], Iterable[Callable[..., Any]]], *, owner: object | None = None
    ) -> None:
        """Register those of all these functions; where they have an ``owner``, only the first time for it."""
        if owner is not None and owner in self._owners:
            return
        for fn in functions():
            self.register_hints(fn)
        if owner is not None:
            with self._lock:
                self._owners.add(owner)

    def encode(self, value: object, *, root: str = "result") -> bytes:
        """The bytes of a value; ``root`` is what the path in an error begins with.

        Raises:
            UnstorableError: It or something in it cannot come back as it is; ``path`` says where, and
                ``reason`` what to do.
        """
        try:
            return self._encode(value)
        except Refusal as refusal:
            raise refusal.located(root) from None
        except RecursionError:
            raise UnstorableError(root, "is nested too deeply; return flatter data") from None
        except MemoryError:
            raise
        except Exception as error:  # a property of a user's class raised, or another thread changed the value
            raise UnstorableError(root, f"could not be read: {short_repr(error, 300)}") from error

    def decode(self, data: bytes) -> object:
        """The value of the bytes.

        Raises:
            CorruptDataError: They are no encoding, or of a type that is not registered or has changed.
        """
        if len(data) > NO_HARM:
            return _decode(self._reader, data)
        try:
            return self._reader.value(data)
        except Exception:
            return _decode(self._reader, data)  # which says what is wrong

    def fingerprint(self, *parts: object) -> bytes | None:
        """Bytes to tell arguments apart by; None when something in them cannot be encoded.

        Equal values of equal types have equal bytes in every process; a dict's order counts.
        """
        try:
            return self._encode(list(parts))
        except Exception:  # whatever the reason, the caller goes on without a fingerprint
            return None

    def encode_error(self, error: BaseException) -> bytes:
        """What can be recorded of an error, whatever its state; never raises."""
        try:
            return self._encode(error, lenient=True)
        except Exception:  # a recorded failure must never be lost to the oddness of its own error
            return errors_codec.minimal_form(error)

    def decode_error(self, data: bytes) -> BaseException | None:
        """The error; None when its class is not loaded, or it cannot be rebuilt without running its code.

        ``__weft_traceback__`` of the error is the text of the traceback it was recorded with.

        Raises:
            CorruptDataError: The bytes are no encoding of an error.
        """
        try:
            error = self.decode(data)
        except UnknownTypeError:
            return None
        if not isinstance(error, BaseException):
            raise CorruptDataError(f"a {type(error).__name__} was recorded where an error should be")
        return error

    def describe(self, data: bytes) -> object:
        """Plain data for display, whether or not the types in it are known to this program.

        An object of an application type is ``{"$type": "module:Class", field: value, ...}``, an error
        ``{"$error": "module:Class", "message": text}``.

        Raises:
            CorruptDataError: The bytes are no encoding.
        """
        return _decode(self._describer, data)

    def _encode(self, value: object, *, lenient: bool = False) -> bytes:
        try:
            data = pack(value) if _is_plain(value) else self._walk(value, lenient)
        except RecursionError:
            data = _on_a_fresh_stack(self._walk, value, lenient)
        except (OverflowError, UnicodeEncodeError):  # a huge int or a lone surrogate: too rare to look for
            data = self._walk(value, lenient)
        if len(data) > MAX_SIZE:
            raise Refusal(
                f"takes {len(data)} bytes, more than {MAX_SIZE}; store it elsewhere and return where it is"
            )
        return data

    def _walk(self, value: object, lenient: bool) -> bytes:
        try:
            return pack(Writer(self._writers, USUAL_ATOMS, lenient=lenient).write(value))
        except (OverflowError, UnicodeEncodeError):
            return pack(Writer(self._writers, ALWAYS_ATOMS, lenient=lenient).write(value))

    def _needs_none(self, cls: type) -> bool:
        return (
            cls in self._writers or cls in ALWAYS_ATOMS or is_typeddict(cls) or issubclass(cls, BaseException)
        )

    def _add(self, cls: type) -> bool:
        if isinstance(getattr(self._writers.get(cls), "__self__", None), Shape):
            return True
        shape = None if cls in self._writers else shapes.shape_of(cls)
        if shape is None:
            return False
        self._keep(shape)
        self._add_all(shape.nested())
        return True

    def _keep(self, shape: Shape) -> None:
        with self._lock:
            replaced = self._shapes.get(shape.tag)
            self._shapes[shape.tag] = shape
            self._writers[shape.cls] = shape.write
            if replaced is not None and replaced.cls is not shape.cls:
                self._writers.pop(replaced.cls, None)

    def _add_all(self, classes: Iterable[type]) -> None:
        for cls in classes:
            self._add(cls)


@functools.cache
def _our_shapes() -> list[Shape]:
    """Those of the engine's own types, worked out once: that takes longer than all else that a codec begins with."""
    found = [shapes.shape_of(cls) for cls in _OURS]
    return [shape for shape in found if shape is not None]


def _is_plain(value: object) -> bool:
    """Whether this is one of the many small values that msgpack takes as they are, so that nothing is looked at."""
    if type(value) is list:
        return len(value) <= MANY and _are_plain(value)
    if type(value) is dict:
        return len(value) <= MANY and text_keys(value) and _are_plain(value.values())
    return type(value) in USUAL_ATOMS


def _are_plain(items: Collection[object]) -> bool:
    kinds = set(map(type, items))
    return kinds <= USUAL_ATOMS and (str not in kinds or sum(map(length_hint, items)) <= NO_HARM)


def _decode(reader: Reader, data: bytes) -> object:
    try:
        try:
            return _checked(reader, data)
        except RecursionError:
            return _on_a_fresh_stack(_checked, reader, data)
    except (CorruptDataError, MemoryError):
        raise
    except RecursionError:
        raise CorruptDataError(f"nested deeper than the {MAX_DEPTH} levels that are ever encoded") from None
    except Exception as error:  # bytes that nobody encoded may fail in any of the readers
        raise CorruptDataError(f"no encoded value: {short_repr(error, 300)}") from error


def _checked(reader: Reader, data: bytes) -> object:
    if len(data) > NO_HARM:
        check_bounds(data)
    return reader.value(data)


def _on_a_fresh_stack(fn: Callable[..., T], *args: object) -> T:
    """The result in a thread of its own: what can be stored must not depend on how deep the caller is."""
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(fn, *args).result()
