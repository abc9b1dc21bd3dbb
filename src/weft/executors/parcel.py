"""Functions, arguments, results and errors on their way to another process and back.

Pickles go between processes of one program, over pipes of its own or the cluster's; none is ever stored. cloudpickle
(https://github.com/cloudpipe/cloudpickle) adds what pickle cannot name: lambdas, closures, what ``__main__`` defines.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from importlib import import_module
from typing import Any

import cloudpickle

from weft.errors import RemoteError, UnsendableError
from weft.executors.base import Body

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
            f"{path} cannot be sent to another process: {culprit!r:.100} is a {type(culprit).__name__}, "
            f"and {_reason(error)}. Make it inside the function, or pass what it is made from",
            where=path,
        ) from error


def pack_call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """A function and its arguments as bytes.

    Raises:
        UnsendableError: One cannot be sent.
    """
    try:
        return _dumps((fn, args, kwargs))
    except Exception:
        pack(fn, f"the function {getattr(fn, '__qualname__', fn)!s}")
        for i, value in enumerate(args):
            pack(value, f"argument {i + 1}")
        for name, value in kwargs.items():
            pack(value, f"the argument {name}")
        raise


def packed(body: Body, carry: tuple[ContextVar[Any], ...]) -> bytes:
    """All that another process needs to call a body.

    Args:
        body: The body.
        carry: The context variables that it is to see with the values that they have here.

    Raises:
        UnsendableError: Some of it cannot be sent.
    """
    called = pack_call(body.fn, body.args, body.kwargs)
    context = copy_context() if carry else {}
    variables = tuple((each, context[each]) for each in carry if each in context)
    sent = pack(variables, "what carry= names") if variables else b""
    return pickle.dumps((called, body.ticket, sent), pickle.HIGHEST_PROTOCOL)


def pack_error(error: BaseException, *, text: str | None = None) -> bytes:
    """An error with the text of its traceback; one that cannot be sent, or not be made again, as a RemoteError."""
    if text is None:
        text = "".join(traceback.format_exception(error))
    try:
        data = _dumps((error.with_traceback(None), text))
        unpack(data)
    except Exception:
        said = RemoteError(f"{type(error).__qualname__}: {_shown(error)}")
        return pickle.dumps((said, text), pickle.HIGHEST_PROTOCOL)
    return data


def unpack(data: bytes) -> Any:
    """The value of these bytes, which come from a process of this program."""
    return pickle.loads(data)  # noqa: S301 - see above: these bytes are our own


def unpack_error(data: bytes) -> BaseException:
    """The error of these bytes, caused by its traceback there."""
    error: BaseException
    error, text = unpack(data)
    error.__cause__ = RemoteTraceback(text)
    return error


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """cloudpickle, but for what can be found again by a name."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ContextVar):
            return _variable, _place_of(obj)
        if isinstance(obj, types.FunctionType):
            found = _place_by_name(obj)
            if found is not None and found[1] is not obj and _inner(found[1]) is obj:
                return _function_in, found[0]
        elif "__wrapped__" in getattr(obj, "__dict__", ()):  # what a decorator has made, here or elsewhere
            found = _place_by_name(obj)
            if found is not None and found[1] is obj:
                return _object_in, found[0]
        return super().reducer_override(obj)


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


def _place_of(var: ContextVar[Any]) -> tuple[str, str]:
    for name, module in list(sys.modules.items()):
        for attribute in (var.name, *_names_of(module, var)):
            if getattr(module, "__dict__", {}).get(attribute) is var:
                return name, attribute
    return "", var.name


def _names_of(module: Any, var: ContextVar[Any]) -> Iterator[str]:
    for attribute, value in list(getattr(module, "__dict__", {}).items()):
        if value is var:
            yield attribute


@functools.cache
def _variable(module: str, name: str) -> ContextVar[Any]:
    if module not in ("", "__main__"):
        found: ContextVar[Any] = getattr(import_module(module), name)
        return found
    return ContextVar(name)  # the functions that come from there by value all share this one


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


def _shown(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<an error that cannot be shown>"
