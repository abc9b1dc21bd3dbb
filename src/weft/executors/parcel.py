"""Functions, arguments, results and errors on their way to another process and back.

Pickles go between processes of one program, over pipes of its own or the cluster's; none is ever stored. cloudpickle
(https://github.com/cloudpipe/cloudpickle) adds what pickle cannot name: lambdas, closures, what ``__main__`` defines.
"""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import os
import pickle
import sys
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context, ContextVar, copy_context
from importlib import import_module
from typing import Any

from weft.errors import DefinitionError, RemoteError, UnsendableError
from weft.executors.base import Body, Ticket

try:
    import cloudpickle
except ImportError as error:
    raise DefinitionError(
        "an executor that runs bodies in other processes needs the package cloudpickle: pip install 'weft[process]'"
    ) from error

#: What pickle writes as it is, whatever process reads it.
_PLAIN = frozenset({int, str, float, bytes, bool, complex, type(None)})
_FEW = 64

#: How deep the search goes for what cannot be sent.
_DEPTH = 6


class RemoteTraceback(Exception):  # noqa: N818 - it stands for one, as in concurrent.futures
    """Where an error was raised in the other process, as text; the cause of the error here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


def pack(value: Any, what: str) -> bytes:
    """A value as bytes.

    Args:
        value: Anything.
        what: What the value is to the user, for the error: ``the argument x``.

    Raises:
        UnsendableError: It cannot be sent; the error names the part of it that cannot.
    """
    if _is_plain(value):
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    try:
        return _dumps(value)
    except UnsendableError:
        raise
    except Exception as error:
        path, culprit = _search(value, what)
        raise UnsendableError(
            f"{path} cannot be sent to another process: {_shown(culprit):.100} is a {type(culprit).__name__}, "
            f"and {_reason(error)}. Make it inside the function, or pass what it is made from",
            where=path,
        ) from error


def pack_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """A function and its arguments as bytes.

    Raises:
        UnsendableError: One cannot be sent.
    """
    try:
        return _dumps((fn, args, kwargs))
    except Exception:
        pack(fn, f"the function {getattr(fn, '__qualname__', fn)!s}")
        names = _positional(fn)
        for i, value in enumerate(args):
            pack(value, f"the argument {names[i]}" if i < len(names) else f"argument {i + 1}")
        for name, value in kwargs.items():
            pack(value, f"the argument {name}")
        raise


def _positional(fn: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def unpack_body(called: bytes, ticket: Ticket) -> Body:
    """The body of this ticket: its function and its arguments, made again.

    Raises:
        UnsendableError: They cannot be, in this process.
    """
    try:
        fn, args, kwargs = unpack(called)
    except MemoryError:
        raise
    except Exception as error:
        raise _unmakeable(f"the function or an argument of {ticket.step!r}", error) from error
    return Body(fn, args, kwargs, ticket)


def packed(body: Body, carry: tuple[ContextVar[Any], ...]) -> bytes:
    """All that another process needs to call a body.

    Args:
        body: The body.
        carry: The context variables that it is to see with the values that they have here.

    Raises:
        UnsendableError: Some of it cannot be sent.
    """
    called = pack_call(body.fn, body.args, body.kwargs)
    sent = _packed_variables(carry) if carry else b""
    return pickle.dumps((called, body.ticket, sent), pickle.HIGHEST_PROTOCOL)


def _packed_variables(carry: tuple[ContextVar[Any], ...]) -> bytes:
    context = copy_context()
    found = tuple((each, context[each]) for each in carry if each in context)
    try:
        return _dumps(found)
    except Exception:
        for variable, value in found:
            pack(value, f"the context variable {variable.name}")
        raise


def pack_error(error: BaseException, *, text: str | None = None) -> bytes:
    """An error with the text of its traceback.

    Where it cannot be sent as it is, it keeps its class, and what of its arguments and attributes can be sent; where
    even its class cannot, it is a RemoteError.
    """
    if text is None:
        text = _text_of(error)
    shown = f"{type(error).__qualname__}: {_shown(error)}"
    error = error.with_traceback(None)
    data = _made_sure(error) or _made_sure(_Lightened(error))
    return pickle.dumps((data, shown, text), pickle.HIGHEST_PROTOCOL)


def _made_sure(error: Any) -> bytes:
    """The error as bytes of which it can be made again; none where there are none."""
    try:
        data = _dumps(error)
        unpack(data)
    except Exception:
        return b""
    return data


def _text_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # of an error that cannot be shown
        return f"{type(error).__qualname__}\n"


def unpack(data: bytes | memoryview) -> Any:
    """The value of these bytes, which come from a process of this program."""
    return pickle.loads(data)  # noqa: S301 - see above: these bytes are our own


def unpack_error(data: bytes) -> BaseException:
    """The error of these bytes, caused by its traceback there."""
    error: BaseException
    sent, shown, text = unpack(data)
    try:
        error = unpack(sent) if sent else RemoteError(shown)
    except Exception:  # its class is not there in this process
        error = RemoteError(shown)
    error.__cause__ = RemoteTraceback(text)
    return error


def outcome_of(data: bytes, *, has_failed: bool, step: str) -> tuple[Any, BaseException | None]:
    """What a body returned, or the error that it raised."""
    if has_failed:
        return None, unpack_error(data)
    try:
        return unpack(data), None
    except Exception as error:
        unmakeable = _unmakeable(f"what {step!r} returned", error)
        unmakeable.__cause__ = error
        return None, unmakeable


def _unmakeable(what: str, error: Exception) -> UnsendableError:
    said = f"{what} was sent, but cannot be made again in the other process: {type(error).__name__}: {error}"
    if isinstance(error, ImportError):
        said += (
            ". That process imports modules by their names, from the sys.path of this one when it began; "
            "cloudpickle.register_pickle_by_value(module) sends one along"
        )
    return UnsendableError(said, what)


# Errors


def _made_again(base: type[BaseException], kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """An error without its own ``__init__``, which may take other arguments than it has passed on."""
    error = base.__new__(kind, *args)
    base.__init__(error, *args)
    return error


def _reduced(error: BaseException) -> tuple[Any, ...] | None:
    """How an error with an ``__init__`` or ``__new__`` in Python is made again, unless it says so itself."""
    kind = type(error)
    base = next(each for each in kind.__mro__ if each.__module__ == "builtins")
    if kind is base or any("__reduce" in name for each in _own_classes(kind) for name in vars(each)):
        return None
    if not any(name in vars(each) for each in _own_classes(kind) for name in ("__init__", "__new__")):
        return None
    if isinstance(error, BaseExceptionGroup):  # whose args are what its own ``__new__`` was given
        return _made_again, (base, kind, (error.message, list(error.exceptions))), vars(error)
    reduced = error.__reduce__()
    if not isinstance(reduced, tuple) or reduced[0] is not kind:
        return None
    return _made_again, (base, kind, reduced[1]), *reduced[2:]


def _own_classes(kind: type) -> Iterator[type]:
    return itertools.takewhile(lambda each: each.__module__ != "builtins", kind.__mro__)


class _Lightened:
    """An error with what of it can be sent."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._error
        base = next(each for each in type(error).__mro__ if each.__module__ == "builtins")
        if isinstance(error, BaseExceptionGroup):
            args: tuple[Any, ...] = (error.message, [_Lightened(each) for each in error.exceptions])
        else:
            args = tuple(value if _goes(value) else _shown(value) for value in error.args)
        state = {name: value for name, value in vars(error).items() if _goes(value)}
        return _made_again, (base, type(error), args), state


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """cloudpickle, but for what can be found again by a name, errors, and classes that are there already."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ContextVar):
            return variable_at, place_of(obj)
        if isinstance(obj, BaseException) and (reduced := _reduced(obj)) is not None:
            return reduced
        if isinstance(obj, types.FunctionType):
            found = _place_by_name(obj)
            if found is not None and found[1] is not obj and _inner(found[1]) is obj:
                return _function_in, found[0]
        elif "__wrapped__" in getattr(obj, "__dict__", ()):  # what a decorator has made, here or elsewhere
            found = _place_by_name(obj)
            if found is not None and found[1] is obj:
                return _object_in, found[0]
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) == 6:
            if obj not in _foreign:
                _ours.add(obj)
            return (*reduced[:5], _set_up)
        return reduced


# Classes that are sent by value, as those of ``__main__``. When one comes back it is the same class here, and must not
# be set up again from what it is there: its methods would be others, and what it counts would be forgotten.

_ours: weakref.WeakSet[type] = weakref.WeakSet()
_foreign: weakref.WeakSet[type] = weakref.WeakSet()


def _set_up(kind: type, state: Any) -> type:
    if kind not in _ours:
        _foreign.add(kind)
        cloudpickle.cloudpickle._class_setstate(kind, state)
    return kind


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is tuple or kind is list:
        return len(value) <= _FEW and all(type(each) in _PLAIN for each in value)
    return False


# What a decorator makes of a function is found under the name of that


def _place_by_name(obj: Any) -> tuple[tuple[str, str], Any] | None:
    """Module and name that an object says are its own, and what is there; None where no other process would find it."""
    name, where = getattr(obj, "__qualname__", None), getattr(obj, "__module__", None)
    module = sys.modules.get(where) if isinstance(where, str) else None
    if module is None or where == "__main__" or not isinstance(name, str) or "<locals>" in name:
        return None
    found: Any = module
    for each in name.split("."):
        found = getattr(found, each, None)
    return None if found is None else ((module.__name__, name), found)


def _inner(found: Any) -> Any:
    """The function that was decorated."""
    return getattr(found, "func", None) or getattr(found, "__wrapped__", None)


def _object_in(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), import_module(module))


def _function_in(module: str, name: str) -> Any:
    return _inner(_object_in(module, name))


# Context variables: the same name in the other process

Place = tuple[str, str, tuple[Any, ...]]


def place_of(var: ContextVar[Any]) -> Place:
    """Module and name of a variable; for one that no module has, or only ``__main__``, what it is known by."""
    found = _places.get(var)
    if found is None:
        found = _places[var] = _look_for(var)
    return found


_places: dict[ContextVar[Any], Place] = {}
_numbers = itertools.count()


def _look_for(var: ContextVar[Any]) -> Place:
    for name, module in list(sys.modules.items()):
        if name == "__main__":
            continue
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is var:
                return name, attribute, ()
    try:
        default: tuple[Any, ...] = (Context().run(var.get),)
    except LookupError:
        default = ()
    return "", var.name, (os.getpid(), next(_numbers), *default)


def variable_at(module: str, name: str, known_by: tuple[Any, ...] = ()) -> ContextVar[Any]:
    """The variable of that place."""
    if module:
        found: ContextVar[Any] = getattr(import_module(module), name)
        return found
    for var, place in list(_places.items()):
        if place[2][:2] == known_by[:2]:
            return var  # all functions that come from there share it, and it comes home as what it was
    var = ContextVar(name, default=known_by[2]) if len(known_by) > 2 else ContextVar(name)
    _places[var] = "", name, known_by
    return var


# What cannot be sent


def _search(value: Any, path: str, depth: int = 0) -> tuple[str, Any]:
    """The innermost part that cannot be sent, and the way to it."""
    if depth < _DEPTH:
        for name, part in _parts(value, path):
            if not _goes(part):
                return _search(part, name, depth + 1)
    return path, value


def _goes(value: Any) -> bool:
    try:
        _dumps(value)
    except Exception:
        return False
    return True


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.MethodType):
        yield f"the object of {path}", value.__self__
    elif isinstance(value, functools.partial):
        yield f"the function of {path}", value.func
        for i, part in enumerate(value.args):
            yield f"argument {i + 1} of {path}", part
        for name, part in value.keywords.items():
            yield f"the argument {name} of {path}", part
    elif isinstance(value, types.FunctionType):
        yield from _variables_of(value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield f"{path}[{key!r:.40}]", part
    elif isinstance(value, list | tuple | set | frozenset):
        for i, part in enumerate(value):
            yield f"{path}[{i}]", part
    else:
        for name, part in getattr(value, "__dict__", {}).items():
            yield f"{path}.{name}", part


def _variables_of(fn: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    code, cells = fn.__code__, fn.__closure__ or ()
    said = f"that {fn.__qualname__!r} uses"
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            yield f"the variable {name} {said}", cell.cell_contents
        except ValueError:  # not set yet
            continue
    for name in _globals_of(code):
        if name in fn.__globals__:
            yield f"the global variable {name} {said}", fn.__globals__[name]
    for part in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()):
        yield f"a default of {fn.__qualname__!r}", part


def _globals_of(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _globals_of(const)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _shown(value: Any) -> str:
    try:
        return str(value) if isinstance(value, BaseException) else repr(value)
    except Exception:
        return f"<{type(value).__qualname__}, which cannot be shown>"
