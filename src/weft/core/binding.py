"""How a value becomes the arguments of a step.

Steps that hand values on to each other are ordinary functions, so what a function gets is read from its
signature. Only required parameters count: those without a default that are neither ``*args`` nor ``**kwargs``.

- **One** gets the whole value; except that it gets ``value[name]`` when the value is a mapping with that key and
  the parameter's annotation says that it is no mapping itself.
- **Several** are taken by name from a mapping, by position from a list or tuple of exactly that length.
- **None**: the function is called with nothing; except that ``*args`` gets the value, since it stands for
  parameters that cannot be seen (a decorator's wrapper), as does a builtin that takes anything at all.
"""

from __future__ import annotations

import ast
import functools
import inspect
import typing
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from reprlib import Repr
from types import UnionType
from typing import Any

from weft.errors import InputError

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_NO_MAPPINGS = frozenset((type(None), bool, int, float, str, bytes, list, tuple))  # which need not be asked
_WHOLE: tuple[str, ...] = ("value",)  # stands for the parameter of a callable whose signature cannot be read


@dataclass(frozen=True, slots=True)
class Binding:
    """How one value becomes the arguments of a function; worked out once for a function.

    Attributes:
        positional: The required parameters that are given by position, as declared.
        keyword: The required parameters that can only be given by keyword.
        by_key: Whether the only required parameter prefers ``value[name]`` to the whole value.
        takes_value: Where nothing is required: whether the value is given nevertheless.
        takes_item: Where nothing is required: whether there is a parameter that an item of a map can go to.
        only: The one parameter of most functions, given by position; None where there are none or several.
    """

    positional: tuple[str, ...] = ()
    keyword: tuple[str, ...] = ()
    by_key: bool = False
    takes_value: bool = False
    takes_item: bool = False
    only: str | None = field(init=False)

    def __post_init__(self) -> None:
        is_only = len(self.positional) == 1 and not self.keyword
        object.__setattr__(self, "only", self.positional[0] if is_only else None)

    @classmethod
    def of(cls, fn: Callable[..., Any], *, injected: Collection[str] = ()) -> Binding:
        """Read the signature of a function, method, partial, class or callable object.

        Args:
            fn: That.
            injected: Names of parameters that somebody else gives.
        """
        try:
            parameters = parameters_of(fn)
        except (TypeError, ValueError):  # some builtins have none
            return cls(positional=_WHOLE)
        parameters = [p for p in parameters if p.name not in injected]
        required = [p for p in parameters if p.default is Parameter.empty and p.kind not in _VARIABLE]
        if not required:
            has_args = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
            has_positional = any(p.kind in _POSITIONAL for p in parameters)
            # `float` and `list` would otherwise give 0.0 and [], and which builtins have a signature that can be
            # read changes from one Python to the next.
            takes_value = has_args or (has_positional and _is_builtin(fn))
            return cls(takes_value=takes_value, takes_item=has_positional)
        return cls(
            positional=tuple(p.name for p in required if p.kind in _POSITIONAL),
            keyword=tuple(p.name for p in required if p.kind is Parameter.KEYWORD_ONLY),
            by_key=len(required) == 1 and not _Hints(fn).take_mapping(required[0].annotation),
        )

    @property
    def required(self) -> tuple[str, ...]:
        """The names of the required parameters, in the order in which a list or tuple fills them."""
        return self.positional + self.keyword

    def bind(self, value: Any, *, step: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword arguments for this value.

        Raises:
            InputError: Several parameters are required and the value does not hold them; it names the step.
        """
        if self.only is not None:
            return ((self._single(self.only, value) if self.by_key else value),), {}
        names = self.required
        if not names:
            return ((value,) if self.takes_value else ()), {}
        if len(names) == 1:
            return self._placed((self._single(names[0], value),))
        return self._placed(_several(names, value, step))

    def bind_item(self, value: Any, *, step: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As :meth:`bind`, for an item of a map.

        Where nothing is required, the first positional parameter gets the item: to map a function over items
        that it never sees would make no sense.
        """
        if self.takes_item or (self.only is not None and (not self.by_key or type(value) in _NO_MAPPINGS)):
            return (value,), {}
        return self.bind(value, step=step)

    def _single(self, name: str, value: Any) -> Any:
        if not self.by_key or type(value) in _NO_MAPPINGS:
            return value
        if isinstance(value, Mapping) and name in value:
            return value[name]
        return value

    def _placed(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self.keyword:
            return values, {}
        count = len(self.positional)
        return values[:count], dict(zip(self.keyword, values[count:], strict=True))


def _several(names: tuple[str, ...], value: Any, step: str) -> tuple[Any, ...]:
    if isinstance(value, Mapping):
        missing = [name for name in names if name not in value]
        if not missing:
            return tuple(value[name] for name in names)
        wrong = f"has no {_listed(missing)}"
    elif isinstance(value, list | tuple):
        if len(value) == len(names):
            return tuple(value)
        wrong = f"has {len(value)} item{'s' * (len(value) != 1)}"
    else:
        wrong = "is neither a mapping nor a list or tuple"
    raise InputError(
        f"{step!r} requires the parameters {_listed(names)} and was given {_shown(value)}, which "
        f"{wrong}. Give it a mapping with these keys, or a list or tuple of {len(names)} items; or let it have one "
        "required parameter, which gets the whole value"
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


_repr = Repr()
_repr.maxother = _repr.maxstring = 60
_repr.maxdict = _repr.maxlist = _repr.maxtuple = 6
_repr.maxlevel = 3


def _shown(value: Any) -> str:
    shown = _repr.repr(value)
    return shown if len(shown) <= 400 else f"{shown[:400]}..."


# Reading signatures


def parameters_of(fn: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a callable, as declared.

    Raises:
        TypeError: It is none.
        ValueError: It does not tell, as some builtins.
    """
    try:
        return list(inspect.signature(fn).parameters.values())
    except NameError:  # Python 3.14 evaluates annotations here, and one names what only a type checker sees
        from annotationlib import Format  # type: ignore[import-not-found]  # noqa: PLC0415 - not before 3.14

        options: dict[str, Any] = {"annotation_format": Format.FORWARDREF}
        return list(inspect.signature(fn, **options).parameters.values())


def _is_builtin(fn: Callable[..., Any]) -> bool:
    """Whether its signature is written in C: only those have it as a text."""
    return isinstance(getattr(fn, "__text_signature__", None), str)


def _function_of(fn: Any) -> Any:
    """The function in which the parameters are written, whose names their annotations use."""
    while True:
        if hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        elif isinstance(fn, functools.partial):
            fn = fn.func
        elif inspect.ismethod(fn):
            fn = fn.__func__
        elif isinstance(fn, type):
            return _maker_of(fn)
        elif inspect.isfunction(fn) or not inspect.isfunction(type(fn).__call__):
            return fn
        else:
            fn = type(fn).__call__


def _maker_of(cls: Any) -> Any:
    return cls.__init__ if inspect.isfunction(cls.__init__) else cls.__new__


# Reading annotations

#: What a name that cannot be looked up is taken for when it ends so.
_TAKES_MAPPING = frozenset(
    {
        "Any",
        "object",
        "dict",
        "Dict",
        "Mapping",
        "MutableMapping",
        "DefaultDict",
        "defaultdict",
        "OrderedDict",
    }
)
_WRAPPING = (typing.Union, UnionType, typing.Annotated)
_WRAPPING_NAMES = {"Union": typing.Union, "Optional": typing.Optional, "Annotated": typing.Annotated}


class _Hints:
    """Says of the annotations of a function whether they admit a mapping.

    An annotation may be a text, as all are under ``from __future__ import annotations``. It is read, never
    evaluated: a name in it may be known to a type checker only, and then the others still count.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._names: Mapping[str, Any] | None = None  # looked up when a text is met
        self._seen: set[object] = set()  # aliases and names, which may be defined by themselves

    def take_mapping(self, hint: Any) -> bool:
        """Whether a mapping is a value of this type, as far as the annotation tells; without one it is."""
        if hint is Parameter.empty or hint is Any or hint is object or isinstance(hint, typing.TypeVar):
            return True
        text = hint.__forward_arg__ if isinstance(hint, typing.ForwardRef) else hint
        if isinstance(text, str):
            return self._text_takes(text)
        origin = typing.get_origin(hint)
        if origin in _WRAPPING:
            count = 1 if origin is typing.Annotated else None
            return any(self.take_mapping(member) for member in typing.get_args(hint)[:count])
        named = hint if origin is None else origin
        if _is_alias(named):
            return self._is_new(id(named)) and self.take_mapping(_meaning(named))
        return isinstance(named, type) and issubclass(named, Mapping)

    def _text_takes(self, text: str) -> bool:
        try:
            tree = ast.parse(text, mode="eval")
        except (SyntaxError, ValueError):
            return True  # a remark, not a type: as good as absent
        return self._tree_takes(tree.body)

    def _tree_takes(self, node: ast.expr) -> bool:
        match node:
            case ast.Constant(value=str() as text):
                return self._text_takes(text)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self._tree_takes(left) or self._tree_takes(right)
            case ast.Subscript(value=head, slice=inside):
                return self._subscript_takes(head, inside)
            case ast.Name() | ast.Attribute():
                return self._name_takes(node)
        return False

    def _subscript_takes(self, head: ast.expr, inside: ast.expr) -> bool:
        found = self._find(head)
        wrapping = _WRAPPING_NAMES.get(_last(head)) if found is None else found
        members = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        if wrapping is typing.Annotated:
            return self._tree_takes(members[0])
        if wrapping is typing.Union or wrapping is typing.Optional:
            return any(self._tree_takes(member) for member in members)
        return self._tree_takes(head)

    def _name_takes(self, node: ast.expr) -> bool:
        found = self._find(node)
        if found is None:
            return _last(node) in _TAKES_MAPPING
        return self._is_new(ast.dump(node)) and self.take_mapping(found)

    def _is_new(self, key: object) -> bool:
        """Whether it was not met before; if it was, it adds nothing to what has been found."""
        is_new = key not in self._seen
        self._seen.add(key)
        return is_new

    def _find(self, node: ast.expr) -> Any:
        """What a name or dotted name stands for; None when that cannot be found out."""
        if isinstance(node, ast.Attribute):
            owner = self._find(node.value)
            try:
                return getattr(owner, node.attr, None)
            except Exception:  # a module that loads its parts on demand may raise anything
                return None
        if not isinstance(node, ast.Name):
            return None
        if self._names is None:
            self._names = _names_of(_function_of(self._fn))
        return self._names.get(node.id)


def _names_of(fn: Any) -> Mapping[str, Any]:
    """What the names in the annotations of a function stand for: the nearest scope first."""
    own = {one.__name__: one for one in getattr(fn, "__type_params__", ())}
    return ChainMap(own, dict(_enclosed(fn)), getattr(fn, "__globals__", {}))


def _enclosed(fn: Any) -> Iterator[tuple[str, Any]]:
    names = fn.__code__.co_freevars if inspect.isfunction(fn) else ()
    for name, cell in zip(names, getattr(fn, "__closure__", None) or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_alias(hint: Any) -> bool:
    """Whether it is another name of a type: a ``NewType``, or a ``type`` statement of Python 3.12."""
    return isinstance(hint, typing.NewType) or type(hint).__name__ == "TypeAliasType"


def _meaning(alias: Any) -> Any:
    try:
        return alias.__supertype__ if isinstance(alias, typing.NewType) else alias.__value__
    except NameError:  # it is evaluated here, and names what only a type checker sees
        return None


__all__ = ["Binding"]
