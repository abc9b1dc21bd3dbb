"""How errors are recorded and rebuilt, without running any of their code.

An error keeps its class name, arguments, storable attributes, notes and the text of its traceback. Its class
is looked up among the modules already loaded. Errors that refer to each other (the members of a group, which
its attributes name again) are stored once each.

Any class of any loaded module may be named by the data, so nothing here asks a class or an error for anything
in a way that the class could answer itself: no ``isinstance`` (it may ask ``__class__``), no ``vars`` and no
plain attributes, but the descriptors of ``type`` and ``BaseException``.
"""

from __future__ import annotations

import builtins
import sys
import traceback
from collections.abc import Callable, Mapping
from types import GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any, NamedTuple

from msgspec.msgpack import Ext

from weft.checkpoint.wire import (
    Reader,
    ReadTable,
    Refusal,
    Tag,
    UnknownTypeError,
    Writer,
    args_of,
    extension,
    members_of,
    pack,
    parts,
    short_repr,
    shortened,
    tag_of,
    text_keys,
)
from weft.errors import CorruptDataError, ParallelExecutionError

TRACEBACK = "__weft_traceback__"
"""The attribute of a rebuilt error that has the text of the traceback it was recorded with."""

_LONGEST_TRACEBACK = 30_000
_LONGEST_REPR = 1_000
_LONGEST_SHOWN = 100_000  # of str(error) as it is recorded beside its arguments
_MOST_PARTS = 5_000  # of the arguments of an error whose text is asked for: it may show each many times
_MOST_LINES = 2_000  # errors, frames and notes that a traceback is made from
_NOT_ATTRIBUTES = {"__notes__", TRACEBACK}
_NOT_SLOTS = {"args", "obj"}  # AttributeError.obj: of any size, and no part of what is said


class ErrorForm(NamedTuple):
    """What is recorded of an error."""

    tag: str
    args: list[Any]
    exact: bool  # False: an arg is only the repr of what could not be stored, and the text would be another
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
    given = args_of(error)
    args = [_storable(w, arg) or _repr(w, arg) for arg in given]
    slots = _storables(w, _slot_values(error))
    attributes = _storables(w, {k: v for k, v in _dict_of(error).items() if k not in _NOT_ATTRIBUTES})
    notes = _notes(w, error)
    text = _text(error)
    form = ErrorForm(
        tag_of(type(error)),
        [live for live, _ in args],
        all(live is arg for (live, _), arg in zip(args, given, strict=True)),
        {name: live for name, (live, _) in slots.items()},
        {name: live for name, (live, _) in attributes.items()},
        [live for live, _ in notes] if notes is not None else None,
        _traceback_text(error),
        text,
    )
    if not (w.lenient and form.exact):
        rebuilt = _rebuilt(form)
        # Compared here, where the error's own __str__ may run; it is not asked when the error is read.
        exact = rebuilt is not None and (form.exact or _text(rebuilt) == text)
        form = form._replace(exact=exact)
    if not (w.lenient or form.exact):
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
        text=w.write(shortened(text, _LONGEST_SHOWN)),
    )
    return list(packed)


def minimal_form(error: BaseException) -> bytes:
    """The encoding of an error of which nothing but its name and text can be recorded."""
    text = shortened(_text(error), _LONGEST_SHOWN).encode("utf-8", "replace").decode()
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
    notes = _dict_of(error).get("__notes__")
    if type(notes) is not list:
        return None
    if not w.lenient:
        return [_storable(w, note) or _repr(w, note) for note in notes]
    kept = [_storable(w, note) or _repr(w, note) for note in notes[:_MOST_LINES]]
    if len(notes) > _MOST_LINES:
        kept.append(_repr(w, f"[{len(notes) - _MOST_LINES} more notes]"))
    return kept


def _text(error: BaseException) -> str:
    if parts(error, _MOST_PARTS) >= _MOST_PARTS:
        return f"<{type(error).__qualname__} of more parts than can be shown>"
    try:
        return str(error)
    except Exception:  # a user's __str__
        return f"<{type(error).__qualname__}>"


def _traceback_text(error: BaseException) -> str:
    """Where the error came from; for one that was rebuilt, where it came from the first time."""
    recorded = _dict_of(error).get(TRACEBACK)
    if isinstance(recorded, str):
        return recorded
    try:
        if _lines(error) >= _MOST_LINES:
            lines = [*_frames(error, 20), f"{type(error).__qualname__}: {_text(error)}\n", _TOO_LONG]
        elif isinstance(error, BaseExceptionGroup):  # its members have their own
            lines = [*traceback.format_tb(error.__traceback__), f"{type(error).__qualname__}: {error}"]
        else:
            lines = traceback.format_exception(error)
        return shortened("".join(lines), _LONGEST_TRACEBACK).replace("…", "\n  […]\n", 1)
    except Exception:  # a user's __str__, or notes of an odd shape
        return ""


_TOO_LONG = "  [what led to it is too long to be recorded]\n"


def _frames(error: BaseException, most: int) -> list[str]:
    """The first and the last frames of the traceback."""
    first = traceback.format_tb(error.__traceback__, most)
    return (
        [*first, "  […]\n", *traceback.format_tb(error.__traceback__, -most)] if len(first) == most else first
    )


def _lines(error: BaseException) -> int:
    """How many lines a traceback would have, about: counting ends where it is too many."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    count = 0
    while waiting and count < _MOST_LINES:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        count += 1 + parts(one, _MOST_PARTS) * _MOST_LINES // _MOST_PARTS
        notes = _dict_of(one).get("__notes__")
        count += parts(notes, _MOST_LINES) if type(notes) in (list, tuple, type(None)) else _MOST_LINES
        waiting += (one.__cause__, one.__context__)
        if one is not error and isinstance(one, BaseExceptionGroup):
            waiting += members_of(one)
        frame = one.__traceback__
        while frame is not None and count < _MOST_LINES:
            frame = frame.tb_next
            count += 1
    return count


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
    form = _form(r, payload)
    error = _rebuilt(form) if form.exact or _shows_only_text(form) else None
    if error is None:
        raise UnknownTypeError(
            f"the error {shortened(form.tag)} cannot be rebuilt here: {shortened(form.text)}"
        )
    _errors(r).append(error)
    return error


def _describe_error(r: Reader, payload: memoryview) -> dict[str, object]:
    form = _form(r, payload)
    description: dict[str, object] = {"$error": form.tag, "message": form.text}
    _errors(r).append(description)
    return description


def _form(r: Reader, payload: memoryview) -> ErrorForm:
    form = ErrorForm(*r.items(payload))
    texts = (form.tag, form.traceback, form.text)
    lists = (form.args, [] if form.notes is None else form.notes)
    if set(map(type, texts)) != {str} or set(map(type, lists)) != {list} or type(form.exact) is not bool:
        raise CorruptDataError("an error in a form that no error was recorded in")
    if not text_keys(form.slots) or not text_keys(form.attributes):
        raise CorruptDataError("the attributes of an error are not given by names")
    return form


READERS: ReadTable = {Tag.ERRORS: _read_errors, Tag.ERROR: _read_error, Tag.ERROR_REF: _read_reference}
DESCRIBERS: ReadTable = {Tag.ERROR: _describe_error}


# Rebuilding


def _rebuilt(form: ErrorForm) -> BaseException | None:
    cls = _loaded_class(form.tag)
    if cls is None or not _is_inert(cls):
        return None
    try:
        return _restored(cls, form)
    except Exception:  # the class has changed, or its state is not what it seems
        return None


def _shows_only_text(form: ErrorForm) -> bool:
    """Whether the error is sure to say what it said, though an argument is now the repr of what it was."""
    cls = _loaded_class(form.tag)
    return cls is not None and [form.text] == form.args and _attribute(cls, "__str__") is _PLAIN_STR


def _is_inert(cls: type) -> bool:
    """Whether nothing of the class runs just because an object of it is there, is looked at or goes away."""
    theirs = (_dict_of_type(base) for base in _mro(cls) if base not in _BUILTIN_ERRORS and base is not object)
    return not any(name in names for names in theirs for name in _RUNS_BY_ITSELF)


_RUNS_BY_ITSELF = ("__del__", "__getattribute__", "__class__")
_PLAIN_STR = vars(BaseException)["__str__"]


def _restored(cls: type[BaseException], form: ErrorForm) -> BaseException:
    if issubclass(cls, UnicodeError):
        _check_unicode_error(cls, form.slots)
    error = _new(cls, form)
    _SET_ARGS(error, tuple(form.args))
    descriptors = _slots(cls)
    for name, value in form.slots.items():
        if name not in _GROUP_SLOTS:
            descriptors[name].__set__(error, value)
    if issubclass(cls, ParallelExecutionError):
        _SET_CAUSE(error, members_of(error)[0])
    state = _dict_of(error)
    state.update(form.attributes)
    if form.notes is not None:
        state["__notes__"] = list(form.notes)
    state[TRACEBACK] = form.traceback
    return error


_GROUP_SLOTS = {"message", "exceptions"}  # read only in a BaseExceptionGroup: given to its __new__
_SET_ARGS = vars(BaseException)["args"].__set__
_SET_CAUSE = vars(BaseException)["__cause__"].__set__
_dict_of: Callable[[BaseException], dict[str, Any]] = vars(BaseException)["__dict__"].__get__
_dict_of_type: Callable[[type], Mapping[str, Any]] = vars(type)["__dict__"].__get__
_dict_of_module: Callable[[ModuleType], dict[str, Any]] = vars(ModuleType)["__dict__"].__get__
_mro: Callable[[type], tuple[type, ...]] = vars(type)["__mro__"].__get__


def _attribute(cls: type, name: str) -> Any:
    return next((found for base in _mro(cls) if (found := _dict_of_type(base).get(name)) is not None), None)


def _new(cls: type[BaseException], form: ErrorForm) -> BaseException:
    """An empty error of exactly this class, by the ``__new__`` of Python's own errors: others are a user's code."""
    own = next(base for base in _mro(cls) if base in _BUILTIN_ERRORS and "__new__" in _dict_of_type(base))
    new = _dict_of_type(own)["__new__"]
    if issubclass(cls, BaseExceptionGroup):
        members = list(form.slots["exceptions"])
        if any(not issubclass(type(member), BaseException) for member in members):
            raise TypeError(cls)
        made = new(cls, form.slots["message"], members)
    else:
        made = new(cls)
    if type(made) is not cls:
        raise TypeError(cls)
    assert isinstance(made, BaseException)
    return made


_BUILTIN_ERRORS = frozenset(
    found for found in vars(builtins).values() if isinstance(found, type) and issubclass(found, BaseException)
)


def _check_unicode_error(cls: type[UnicodeError], slots: dict[str, Any]) -> None:
    """Refuse state that would make ``str`` of the error read memory that is not the object's: C trusts it."""
    if not slots:
        return
    text, start, end = slots["object"], slots["start"], slots["end"]
    if type(text) is not (bytes if issubclass(cls, UnicodeDecodeError) else str):
        raise TypeError(type(text))
    if not type(start) is type(end) is int or not 0 <= start <= end <= len(text):
        raise ValueError(type(text))


def _slot_values(error: BaseException) -> dict[str, object]:
    values = {}
    for name, descriptor in _slots(type(error)).items():
        try:
            values[name] = descriptor.__get__(error)
        except AttributeError:  # not set
            continue
    return {name: value for name, value in values.items() if value is not None}


def _slots(cls: type) -> dict[str, Any]:
    """The descriptors of what Python's own errors and ``__slots__`` keep outside ``__dict__``."""
    return {
        name: descriptor
        for base in reversed(_mro(cls))
        for name, descriptor in _dict_of_type(base).items()
        if type(descriptor) in _DESCRIPTORS[base in _BUILTIN_ERRORS]
        and not name.startswith("__")
        and name not in _NOT_SLOTS
    }


_DESCRIPTORS: tuple[tuple[type, ...], ...] = (
    (MemberDescriptorType,),  # of others: a getset may be any code
    (MemberDescriptorType, GetSetDescriptorType),  # of Python's own
)


def _loaded_class(tag: str) -> type[BaseException] | None:
    """The class, if its module is loaded. Looks into ``__dict__`` only: ``__getattr__`` may import."""
    module_name, _, qualname = tag.partition(":")
    module: Any = sys.modules.get(module_name)
    if not issubclass(type(module), ModuleType):
        return None
    names: Mapping[str, Any] = _dict_of_module(module)
    found: Any = None
    for part in qualname.split("."):
        found = names.get(part)
        if not issubclass(type(found), type):
            return None
        names = _dict_of_type(found)
    return found if issubclass(found, BaseException) else None
