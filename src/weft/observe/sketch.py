"""What a style says of how its workflows look, before anything is drawn.

    a workflow ─► Sketch of itself, with parts ─┐
                  Sketch of each part …         ├─► workflow_drawing.py ─► Picture
                  what a run has recorded ──────┘

A sketch is shallow: of its parts it has only what they are, and those make sketches of their own. So workflows may be
as deep in each other as they like.
"""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from weft.observe.picture import ArrowKind, BoxKind

#: The ends of ways that come from outside, and lead there.
IN, OUT = -1, -2

Records: TypeAlias = Literal["calls", "nothing"]
"""What a run tells of a part: its calls; or nothing, where only other code runs."""


class Drawable(Protocol):
    """Whatever can be drawn."""

    def sketch(self) -> Sketch:
        """How it looks, but not its parts."""


@dataclass(frozen=True, slots=True)
class Part:
    """A place in a workflow.

    Attributes:
        label: What is written there.
        step: By what name of a step the calls of a run belong here; "" if none do.
        what: What is there, to be drawn by its own sketch; None for a box and nothing else.
        kind: What the box stands for, where the part's own sketch does not say more.
        is_end: Whether the workflow ends here, and not only because nothing follows.
    """

    label: str
    step: str = ""
    what: Drawable | None = None
    kind: BoxKind = "node"
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """From one part to another, by their numbers, or ``IN`` or ``OUT``."""

    source: int
    destination: int
    label: str = ""
    kind: ArrowKind = "edge"


@dataclass(frozen=True, slots=True)
class Sketch:
    """How a workflow looks.

    Attributes:
        label: What it is called.
        step: The name of its step.
        kind: Of its box, where it has no parts.
        note: What is said of it besides, such as how many branches there are at once.
        parts: What is in it, inside a frame; none for a box.
        ways: Between these, and from and to the outside.
        unknown: What is said of what only a run can tell, where none is drawn.
        calls: What its code names, and so may call.
        records: What a run tells of it.
        is_in_order: Whether its parts run one after the other, those of one name in the order of the parts.
    """

    label: str
    step: str
    kind: BoxKind = "node"
    note: str = ""
    parts: tuple[Part, ...] = ()
    ways: tuple[Way, ...] = ()
    unknown: str = ""
    calls: tuple[Part, ...] = ()
    records: Records = "calls"
    is_in_order: bool = False


def chain(count: int) -> tuple[Way, ...]:
    """The ways of parts that follow one another."""
    return (Way(IN, 0), *(Way(number, number + 1) for number in range(count - 1)), Way(count - 1, OUT))


def named_in_code(fn: Callable[..., Any]) -> Iterator[Any]:
    """The values of the global and outer variables that a function's own code names, in order.

    And what it names of modules. Nothing of the user's runs: nothing else is asked for its attributes.
    """
    fn = _plain(fn)
    code = getattr(fn, "__code__", None)
    if not isinstance(code, CodeType):
        return
    variables = dict(getattr(fn, "__globals__", {}))
    for name, cell in zip(code.co_freevars, getattr(fn, "__closure__", None) or (), strict=False):
        try:
            variables[name] = cell.cell_contents
        except ValueError:  # not set yet
            variables.pop(name, None)
    seen: set[int] = set()
    for value in _values(code, variables):
        if id(value) not in seen:
            seen.add(id(value))
            yield value


def _plain(fn: Any) -> Any:
    while isinstance(fn, functools.partial):
        fn = fn.func
    try:
        fn = inspect.unwrap(fn)
    except ValueError:  # wrapped in itself
        return None
    fn = getattr(fn, "__func__", fn)
    return fn if hasattr(fn, "__code__") else getattr(type(fn), "__call__", None)  # noqa: B004 - its code, not a call


def _values(code: CodeType, variables: dict[str, Any]) -> Iterator[Any]:
    found: Any = None  # the module whose attribute may come next
    for each in dis.get_instructions(code):
        if each.opname in {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"}:
            found = variables.get(each.argval)
        elif each.opname in {"LOAD_ATTR", "LOAD_METHOD"} and isinstance(found, ModuleType):
            found = vars(found).get(each.argval)
        else:
            found = None
            if isinstance(each.argval, CodeType):
                yield from _values(each.argval, variables)
        if found is not None and not isinstance(found, ModuleType):
            yield found


__all__ = ["IN", "OUT", "Drawable", "Part", "Sketch", "Way", "chain", "named_in_code"]
