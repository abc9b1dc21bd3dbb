"""Finds the application types that annotations name."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum
from types import FunctionType, SimpleNamespace
from typing import Any

#: Names of what any journal can hold, unless a module or a function means something else by them.
_BUILTIN = frozenset(
    {"bool", "bytes", "dict", "float", "int", "list", "None", "object", "set", "str", "tuple"}
)


def classes_of_function(fn: Callable[..., Any]) -> Iterator[type]:
    """Every class in the annotations of a function, method, partial or callable object.

    What cannot be resolved is left out.
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    if hasattr(fn, "__wrapped__"):
        fn = inspect.unwrap(fn)
    if not hasattr(fn, "__globals__"):
        fn = getattr(type(fn), "__call__", fn)  # noqa: B004 - the function that a call runs
    code = getattr(fn, "__code__", None)
    names, free = getattr(fn, "__globals__", {}), code.co_freevars if code is not None else ()
    annotations = _annotations(fn)
    if _are_builtin(annotations, names, free):
        return iter(())
    cells = getattr(fn, "__closure__", None) or ()
    return classes_in(_resolved(annotations, names, dict(zip(free, map(_content, cells), strict=False))))


def classes_of_fields(cls: type, names: Collection[str]) -> Iterator[type]:
    """Every class in the annotations of these attributes of a class."""
    return classes_in(
        hint
        for base in cls.__mro__
        for hint in _resolved(
            _annotations(base), vars(sys.modules.get(base.__module__, typing)), dict(vars(base)), names
        )
    )


def classes_in(hints: Iterable[object]) -> Iterator[type]:
    """Every class that these resolved annotations are made of."""
    waiting = list(hints)
    seen: dict[int, object] = {}  # by id, which is good while the hint is held
    while waiting:
        hint = waiting.pop()
        if id(hint) in seen:
            continue
        seen[id(hint)] = hint
        if isinstance(hint, type) and typing.get_origin(hint) is None:
            if typing.is_typeddict(hint):
                names = vars(sys.modules.get(hint.__module__, typing))
                waiting.extend(_resolved(_annotations(hint), names, {}))
            else:
                yield hint
        else:
            waiting.extend(_parts(hint))


def _annotations(owner: Any) -> Mapping[str, Any]:
    try:
        return owner.__annotations__ if type(owner) is FunctionType else inspect.get_annotations(owner)
    except Exception:  # Python 3.14 evaluates here, and a name may be missing; no annotations at all
        return {}


def _resolved(
    annotations: Mapping[str, Any],
    global_names: dict[str, Any],
    local_names: Mapping[str, Any],
    wanted: Collection[str] | None = None,
) -> Iterator[object]:
    for name, annotation in annotations.items():
        if wanted is not None and name not in wanted:
            continue
        if _is_builtin(annotation) and annotation not in global_names and annotation not in local_names:
            continue  # most are such, and resolving one takes long
        # One at a time, since a name that is missing makes get_type_hints fail as a whole.
        one = SimpleNamespace(__annotations__={name: annotation})
        try:
            yield typing.get_type_hints(one, global_names, dict(local_names))[name]
        except Exception:  # noqa: S112 - evaluating an annotation may raise anything, and is only a help
            continue


def _are_builtin(annotations: Mapping[str, Any], names: Collection[str], free: Collection[str]) -> bool:
    """Whether nothing else is named, and these names mean nothing else."""
    for each in annotations.values():
        if type(each) is not str or each not in _BUILTIN or each in names or each in free:
            return False
    return True


def _is_builtin(annotation: object) -> bool:
    return type(annotation) is str and annotation in _BUILTIN


def _parts(hint: Any) -> Iterable[object]:
    """What a hint is made of: the union's members, the list's items, the alias's value, the bound."""
    if isinstance(hint, list | tuple):  # the parameters of Callable
        return hint
    if isinstance(hint, Enum):  # in a Literal
        return (type(hint),)
    inner = (
        getattr(hint, name, None)
        for name in ("__origin__", "__value__", "__supertype__", "__bound__", "__constraints__")
    )
    return (*typing.get_args(hint), *(part for part in inner if part is not None))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
