"""How errors are recorded and rebuilt, without running any of their code.

An error keeps its class name, arguments, storable attributes, notes and the text of its traceback. Its class
is looked up among the modules already loaded. Errors that refer to each other (the members of a group, which
its attributes name again) are stored once each.
"""

from __future__ import annotations

import sys
import traceback
from types import BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, NamedTuple

from msgspec.msgpack import Ext

from weft.checkpoint.wire import (
    Reader,
    ReadTable,
    Refusal,
    Tag,
    UnknownTypeError,
    Writer,
    extension,
    pack,
    short_repr,
    tag_of,
)
from weft.errors import CorruptDataError, ParallelExecutionError

TRACEBACK = "__weft_traceback__"
"""The attribute of a rebuilt error that has the text of the traceback it was recorded with."""

_LONGEST_TRACEBACK = 30_000
_LONGEST_REPR = 1_000
_NOT_ATTRIBUTES = {"__notes__", TRACEBACK}
_NOT_SLOTS = {"args", "obj"}  # AttributeError.obj: of any size, and no part of what is said


class ErrorForm(NamedTuple):
    """What is recorded of an error."""

    tag: str
    args: list[Any]
    exact: bool  # False: at least one of args is the repr of what could not be stored
    slots: dict[str, Any]  # state outside __dict__, such as OSError.errno
    attributes: dict[str, Any]
    notes: list[Any] | None
    traceback: str
    text: str  # str(error)


class _Errors:
    """The errors of one ``Tag.ERRORS`` while it is written."""

    def __init__(self) -> None:
        self.forms: list[Ext] = []
        self.places: dict[int, tuple[int, BaseException]] = {}  # by id, which is good while the error is held
        self.open: set[int] = set()


def write_error(w: Writer, error: BaseException) -> Ext:
    """The error with those it refers to; inside another error, a reference to its place there.

    Raises:
        Refusal: The error contains itself, or (unless the writer is lenient) it could not be rebuilt.
    """
    if w.errors is not None:
        return Ext(Tag.ERROR_REF, pack(_place(w, w.errors, error)))
    w.errors = _Errors()
    try:
        _place(w, w.errors, error)
        return extension(Tag.ERRORS, w.errors.forms)
    finally:
        w.errors = None


def _place(w: Writer, errors: _Errors, error: BaseException) -> int:
    if id(error) in errors.places:
        return errors.places[id(error)][0]
    if id(error) in errors.open:
        raise Refusal("is an error that contains itself; break the cycle")
    errors.open.add(id(error))
    try:
        errors.forms.append(extension(Tag.ERROR, _write_form(w, error)))
    finally:
        errors.open.discard(id(error))
    place = len(errors.forms) - 1
    errors.places[id(error)] = place, error
    return place


def _write_form(w: Writer, error: BaseException) -> list[Any]:
    args = [_storable(w, arg) or _repr(w, arg) for arg in error.args]
    slots = _storables(w, _slot_values(error))
    attributes = _storables(w, {k: v for k, v in vars(error).items() if k not in _NOT_ATTRIBUTES})
    notes = _notes(w, error)
    form = ErrorForm(
        tag_of(type(error)),
        [live for live, _ in args],
        all(live is arg for (live, _), arg in zip(args, error.args, strict=True)),
        {name: live for name, (live, _) in slots.items()},
        {name: live for name, (live, _) in attributes.items()},
        [live for live, _ in notes] if notes is not None else None,
        _traceback_text(error),
        _text(error),
    )
    if not w.lenient and _rebuilt(form) is None:
        raise Refusal(
            f"is the error {short_repr(error)}, which could not be rebuilt from its class name, arguments "
            f"and attributes; return str(error)"
        )
    packed = form._replace(
        tag=w.write(form.tag),
        args=[packed for _, packed in args],
        slots={name: packed for name, (_, packed) in slots.items()},
        attributes={name: packed for name, (_, packed) in attributes.items()},
        notes=[packed for _, packed in notes] if notes is not None else None,
        traceback=w.write(form.traceback),
        text=w.write(form.text),
    )
    return list(packed)


def minimal_form(error: BaseException) -> bytes:
    """The encoding of an error of which nothing but its name and text can be recorded."""
    text = _text(error).encode("utf-8", "replace").decode()
    tag = tag_of(type(error)).encode("utf-8", "replace").decode()
    form = ErrorForm(tag, [], False, {}, {}, None, "", text)
    return pack(extension(Tag.ERRORS, [extension(Tag.ERROR, list(form))]))


def _storable(w: Writer, value: object) -> tuple[object, Any] | None:
    """The value and its written form; None when it has none."""
    depth = w.depth
    try:
        return value, w.write(value)
    except Refusal:
        w.depth = depth
        return None


def _storables(w: Writer, values: dict[str, object]) -> dict[str, tuple[object, Any]]:
    kept = ((name, _storable(w, value)) for name, value in values.items() if name.isprintable())
    return {name: pair for name, pair in kept if pair is not None}


def _repr(w: Writer, value: object) -> tuple[object, Any]:
    text = short_repr(value, _LONGEST_REPR)
    return text, w.write(text)


def _notes(w: Writer, error: BaseException) -> list[tuple[object, Any]] | None:
    notes = vars(error).get("__notes__")
    if not isinstance(notes, list):
        return None
    return [_storable(w, note) or _repr(w, note) for note in notes]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a user's __str__
        return f"<{type(error).__qualname__}>"


def _traceback_text(error: BaseException) -> str:
    """Where the error came from; for one that was rebuilt, where it came from the first time."""
    recorded = vars(error).get(TRACEBACK)
    if isinstance(recorded, str):
        return recorded
    try:
        if isinstance(error, BaseExceptionGroup):  # its members have their own
            lines = [*traceback.format_tb(error.__traceback__), f"{type(error).__qualname__}: {error}"]
        else:
            lines = traceback.format_exception(error)
        text = "".join(lines)
    except Exception:  # a user's __str__, or notes of an odd shape
        return ""
    if len(text) <= _LONGEST_TRACEBACK:
        return text
    half = _LONGEST_TRACEBACK // 2
    return f"{text[:half]}\n  […]\n{text[-half:]}"


# Reading


def _read_errors(r: Reader, payload: memoryview) -> Any:
    inside = r.fork()
    return inside.items(payload)[-1]


def _read_reference(r: Reader, payload: memoryview) -> Any:
    return _errors(r)[r.value(payload)]


def _errors(r: Reader) -> list[Any]:
    if r.errors is None:
        raise CorruptDataError("an error outside of a list of errors")
    return r.errors


def _read_error(r: Reader, payload: memoryview) -> BaseException:
    form = ErrorForm(*r.items(payload))
    error = _rebuilt(form)
    if error is None:
        raise UnknownTypeError(f"the error {form.tag} cannot be rebuilt here: {form.text}")
    _errors(r).append(error)
    return error


def _describe_error(r: Reader, payload: memoryview) -> dict[str, object]:
    form = ErrorForm(*r.items(payload))
    description: dict[str, object] = {"$error": form.tag, "message": form.text}
    _errors(r).append(description)
    return description


READERS: ReadTable = {Tag.ERRORS: _read_errors, Tag.ERROR: _read_error, Tag.ERROR_REF: _read_reference}
DESCRIBERS: ReadTable = {Tag.ERROR: _describe_error}


# Rebuilding


def _rebuilt(form: ErrorForm) -> BaseException | None:
    cls = _loaded_class(form.tag)
    if cls is None:
        return None
    try:
        error = _restored(cls, form)
    except Exception:  # the class has changed, or its state is not what it seems
        return None
    return error if form.exact or _text(error) == form.text else None


def _restored(cls: type[BaseException], form: ErrorForm) -> BaseException:
    if issubclass(cls, UnicodeError):
        _check_unicode_error(cls, form.slots)
    error = _new(cls, form)
    BaseException.args.__set__(error, tuple(form.args))  # type: ignore[attr-defined] # a descriptor of C
    descriptors = _slots(cls)
    for name, value in form.slots.items():
        if name not in _GROUP_SLOTS:
            descriptors[name].__set__(error, value)
    if isinstance(error, ParallelExecutionError):
        error.__cause__ = error.exceptions[0]
    state = vars(error)
    state.update(form.attributes)
    if form.notes is not None:
        state["__notes__"] = list(form.notes)
    state[TRACEBACK] = form.traceback
    return error


_GROUP_SLOTS = {"message", "exceptions"}  # read only in a BaseExceptionGroup: given to its __new__


def _new(cls: type[BaseException], form: ErrorForm) -> BaseException:
    """An empty error of exactly this class, by the ``__new__`` that is C's: Python's is a user's code."""
    new = next(
        made for base in cls.__mro__ if isinstance(made := vars(base).get("__new__"), BuiltinFunctionType)
    )
    if issubclass(cls, BaseExceptionGroup):
        made = new(cls, form.slots["message"], list(form.slots["exceptions"]))
    else:
        made = new(cls)
    if type(made) is not cls:
        raise TypeError(cls)
    assert isinstance(made, BaseException)
    return made


def _check_unicode_error(cls: type[UnicodeError], slots: dict[str, Any]) -> None:
    """Refuse state that would make ``str`` of the error read memory that is not the object's: C trusts it."""
    if not slots:
        return
    text, start, end = slots["object"], slots["start"], slots["end"]
    if type(text) is not (bytes if issubclass(cls, UnicodeDecodeError) else str):
        raise TypeError(text)
    if not 0 <= start <= end <= len(text):
        raise ValueError(start, end)


def _slot_values(error: BaseException) -> dict[str, object]:
    values = {}
    for name, descriptor in _slots(type(error)).items():
        try:
            values[name] = descriptor.__get__(error)
        except AttributeError:  # not set
            continue
    return {name: value for name, value in values.items() if value is not None}


def _slots(cls: type) -> dict[str, Any]:
    """The descriptors of what C and ``__slots__`` keep outside ``__dict__``."""
    return {
        name: descriptor
        for base in reversed(cls.__mro__)
        for name, descriptor in vars(base).items()
        if isinstance(descriptor, MemberDescriptorType | GetSetDescriptorType)
        and not name.startswith("__")
        and name not in _NOT_SLOTS
    }


def _loaded_class(tag: str) -> type[BaseException] | None:
    """The class, if its module is loaded. Looks into ``__dict__`` only: ``__getattr__`` may import."""
    module_name, _, qualname = tag.partition(":")
    module = sys.modules.get(module_name)
    if not isinstance(module, ModuleType):
        return None
    names: Any = object.__getattribute__(module, "__dict__")
    found: Any = None
    for part in qualname.split("."):
        found = names.get(part)
        if not isinstance(found, type):
            return None
        names = vars(found)
    return found if issubclass(found, BaseException) else None
