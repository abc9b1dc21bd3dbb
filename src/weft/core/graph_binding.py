"""How a node of a graph gets its arguments: by name, from the values that stand on its branch.

After GraphAI, whose nodes declare what they read. Beside values, a node may declare ``state`` (the graph's),
``upstream`` (the node that led to it, and what that gave) and ``callback`` (what it streams to).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from weft.core.binding import parameters_of
from weft.errors import InputError

#: What a node may declare that is no value.
STATE, UPSTREAM, CALLBACK = "state", "upstream", "callback"

_BY_POSITION = (Parameter.POSITIONAL_ONLY,)
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

#: One object for all: ten thousand nodes that declare nothing need no sets of nothing.
_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class GraphBinding:
    """What a function reads; worked out once for a function.

    Attributes:
        by_position: The parameters that can only be given by position.
        by_name: All others.
        required: Those of both that have no default.
        takes_all: Whether it has ``**kwargs``, which get whatever else stands there.
        special: Which of ``state``, ``upstream`` and ``callback`` it declares.
        optional: Those of them that have a default.
    """

    by_position: tuple[str, ...] = ()
    by_name: tuple[str, ...] = ()
    required: frozenset[str] = _NONE
    takes_all: bool = False
    special: frozenset[str] = _NONE
    optional: frozenset[str] = frozenset()

    @classmethod
    def of(cls, fn: Callable[..., Any]) -> GraphBinding:
        """Read the signature of a function, method, partial, class or callable object."""
        try:
            parameters = parameters_of(fn)
        except (TypeError, ValueError):  # some builtins have none
            return cls()
        named = [p for p in parameters if p.kind not in _VARIABLE]
        special = {
            p.name: p.default is not Parameter.empty
            for p in named
            if p.kind not in _BY_POSITION and p.name in (STATE, UPSTREAM, CALLBACK)
        }
        values = [p for p in named if p.name not in special]
        return cls(
            tuple(p.name for p in values if p.kind in _BY_POSITION),
            tuple(p.name for p in values if p.kind not in _BY_POSITION),
            frozenset(p.name for p in values if p.default is Parameter.empty) or _NONE,
            any(p.kind is Parameter.VAR_KEYWORD for p in parameters),
            frozenset(special) or _NONE,
            frozenset(name for name, has_default in special.items() if has_default) or _NONE,
        )

    @property
    def reads(self) -> bool:
        """Whether there is any value that it takes."""
        return bool(self.by_position or self.by_name or self.takes_all)

    def bind(self, flow: Mapping[Any, Any], node: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for these values, without what is special.

        Raises:
            InputError: A required one is not there; it names the node and the parameter.
        """
        args = self._positional(flow, node) if self.by_position else ()
        if self.takes_all:
            return args, self._all_others(flow, node, given=len(args))
        kwargs = {}
        for name in self.by_name:
            if name in flow:
                kwargs[name] = flow[name]
            elif name in self.required:
                raise self._missing(flow, node)
        return args, kwargs

    def _positional(self, flow: Mapping[Any, Any], node: str) -> tuple[Any, ...]:
        args = []
        for name in self.by_position:
            if name not in flow:
                if name in self.required:
                    raise self._missing(flow, node)
                break  # the defaults of this one and those after it count
            args.append(flow[name])
        return tuple(args)

    def _all_others(self, flow: Mapping[Any, Any], node: str, *, given: int) -> dict[str, Any]:
        if any(name in self.required and name not in flow for name in self.by_name):
            raise self._missing(flow, node)
        taken = {*self.by_position[:given], *self.special}
        return {key: flow[key] for key in flow if isinstance(key, str) and key not in taken}

    def _missing(self, flow: Mapping[Any, Any], node: str) -> InputError:
        names = (*self.by_position, *self.by_name)
        return InputError(
            _missing(node, [name for name in names if name in self.required and name not in flow], flow)
        )


def _missing(node: str, missing: list[str], flow: Collection[Any]) -> str:
    there = ", ".join(map(repr, flow)) or "nothing"
    several = len(missing) > 1
    return (
        f"node {node!r} is missing the required parameter{'s' if several else ''} {', '.join(map(repr, missing))}: "
        f"neither the input nor a node before it has given {'them' if several else 'it'}; there is {there}"
    )
