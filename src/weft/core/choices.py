"""What a function that decides can choose, found without running it."""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Any


def choices_of(fn: Callable[..., Any]) -> frozenset[str] | None:
    """All texts that the function can return, if its annotation or its code says so; None if they do not."""
    fn = inspect.unwrap(fn)
    try:
        annotated = typing.get_type_hints(fn).get("return")
    except Exception:  # an annotation that cannot be resolved says nothing
        annotated = None
    if typing.get_origin(annotated) is typing.Literal:
        return frozenset(choice for choice in typing.get_args(annotated) if isinstance(choice, str))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(fn)))
    except (OSError, TypeError, SyntaxError):  # there is no source, or a part of an expression
        return None
    function = next(
        (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)), None
    )
    if function is None:
        return None
    found: set[str] = set()
    for statement in _own_returns(function):
        names = _constants(statement.value)
        if names is None:
            return None
        found |= names
    return frozenset(found)


def _own_returns(function: ast.AST) -> Iterator[ast.Return]:
    for child in ast.iter_child_nodes(function):
        if isinstance(child, ast.Return):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield from _own_returns(child)


def _constants(value: ast.expr | None) -> set[str] | None:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return {value.value}
    if isinstance(value, ast.IfExp):
        one, other = _constants(value.body), _constants(value.orelse)
        return None if one is None or other is None else one | other
    return None
