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
    required: frozenset[str] = frozenset()
    takes_all: bool = False
    special: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()

    @classmethod
    def of(cls, fn: Callable[..., Any]) -> GraphBinding:
        """Read the signature of a function, method, partial, class or callable object."""
        try:
            parameters = parameters_of(fn)
        except (TypeError, ValueError):  # some builtins have none
            return cls()
        variable = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        named = [p for p in parameters if p.kind not in variable]
        by_name = [p for p in named if p.kind not in _BY_POSITION]
        special = {p.name for p in by_name if p.name in (STATE, UPSTREAM, CALLBACK)}
        values = [p for p in named if p.name not in special]
        return cls(
            tuple(p.name for p in values if p.kind in _BY_POSITION),
            tuple(p.name for p in values if p.kind not in _BY_POSITION),
            frozenset(p.name for p in values if p.default is Parameter.empty),
            any(p.kind is Parameter.VAR_KEYWORD for p in parameters),
            frozenset(special),
            frozenset(p.name for p in named if p.name in special and p.default is not Parameter.empty),
        )

    def bind(self, flow: Mapping[Any, Any], *, node: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for these values, without what is special.

        Raises:
            InputError: A required one is not there; it names the node and the parameter.
        """
        missing = [
            name for name in (*self.by_position, *self.by_name) if name in self.required and name not in flow
        ]
        if missing:
            raise InputError(_missing(node, missing, flow))
        args = []
        for name in self.by_position:
            if name not in flow:
                break  # the defaults of this one and those after it count
            args.append(flow[name])
        if self.takes_all:
            taken = {*self.by_position[: len(args)], *self.special}
            return tuple(args), {key: flow[key] for key in flow if isinstance(key, str) and key not in taken}
        return tuple(args), {name: flow[name] for name in self.by_name if name in flow}


def _missing(node: str, missing: list[str], flow: Collection[Any]) -> str:
    there = ", ".join(map(repr, flow)) or "nothing"
    several = len(missing) > 1
    return (
        f"node {node!r} is missing the required parameter{'s' if several else ''} {', '.join(map(repr, missing))}: "
        f"neither the input nor a node before it has given {'them' if several else 'it'}; there is {there}"
    )
