"""What a workflow looks like, before anybody draws it: boxes, arrows and groups of boxes.

    a workflow ─► Picture ─► mermaid.py   text
                         └─► layout.py ─► drawing.py   SVG, PNG

Each style makes pictures of its own workflows; nothing here knows of graphs, blocks or flows.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from weft.errors import DefinitionError, InputError, UsageError

BoxKind: TypeAlias = Literal["node", "router", "fork", "join", "block", "runnable", "anywhere"]
"""What a box stands for.

``node`` is a step; ``router`` chooses where to go on; at a ``fork`` branches begin, a ``join`` brings them together;
``block`` runs a step for many items; ``runnable`` is another workflow inside this one; ``anywhere`` is any box, for a
router that may go to all.
"""

ArrowKind: TypeAlias = Literal["edge", "join", "choice", "call"]
"""How one comes from box to box.

Always; when all that was waited for is there; if it is chosen; or not at all, but the one calls the other, and goes
on with what that gives.
"""

BoxOutcome: TypeAlias = Literal["ok", "reused", "failed", "timed_out", "cancelled", "running", "never"]
"""What has become of a box in a run; ``reused`` was taken from a record or a cache, ``never`` did not run."""

OUTCOMES: tuple[BoxOutcome, ...] = ("ok", "reused", "failed", "timed_out", "cancelled", "running", "never")

Direction: TypeAlias = Literal["down", "right"]
"""Where the arrows lead. Chains and a few branches look best downwards, wide forks to the right."""

Theme: TypeAlias = Literal["auto", "light", "dark"]
"""The colours of a drawing; ``auto`` follows who looks at it."""


@dataclass(frozen=True, slots=True)
class Box:
    """A place in a workflow.

    Attributes:
        id: By which arrows and groups mean it; never shown.
        label: What is written in it; for a join, what it says when it is pointed at.
        kind: What it stands for.
        is_start: Whether the workflow begins here.
        is_end: Whether it can end here.
        note: Smaller lines below that.
        outcome: What has become of it in the run that is drawn; None if no run is, or nothing is known.
        about: What it says besides when it is pointed at.
    """

    id: str
    label: str
    kind: BoxKind = "node"
    is_start: bool = False
    is_end: bool = False
    note: str = ""
    outcome: BoxOutcome | None = None
    about: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    """A way from one box to another; there may be several between the same two."""

    source: str
    destination: str
    label: str = ""
    kind: ArrowKind = "edge"


@dataclass(frozen=True, slots=True)
class Group:
    """Boxes with a frame around them.

    Attributes:
        label: The heading of the frame.
        members: The ids of the boxes in it, but not those in the groups inside it.
        groups: The groups inside it.
        outcome: As of a box.
        about: As of a box.
    """

    label: str
    members: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    outcome: BoxOutcome | None = None
    about: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Picture:
    """A drawing of a workflow, shown by itself in a notebook.

    The Mermaid text needs nothing but Weft; SVG and PNG need ``pip install "weft[draw]"``.

    Raises:
        DefinitionError: Two boxes have one id, an id is no box's, or a box is in two groups.
    """

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...] = ()
    groups: tuple[Group, ...] = ()
    title: str = "workflow"

    def __post_init__(self) -> None:
        wrong = next(_mistakes(self), None)
        if wrong:
            raise DefinitionError(wrong)

    def __repr__(self) -> str:
        return f"<Picture of {self.title!r}: {counted(self)}>"

    def mermaid(self, *, direction: Direction = "down") -> str:
        """A Mermaid flowchart, for Markdown pages and documentation tools."""
        from weft.observe.mermaid import mermaid  # noqa: PLC0415 - it draws what is defined here

        return mermaid(self, direction=direction)

    def svg(self, *, theme: Theme = "auto", direction: Direction = "down") -> str:
        """An SVG document by itself: no script, no font, nothing to load.

        Raises:
            UsageError: The extra is not installed, or Graphviz, which is in it, could not lay the picture out.
        """
        from weft.observe.drawing import svg  # noqa: PLC0415 - see mermaid

        return svg(self, theme=theme, direction=direction)

    def png(
        self, *, theme: Literal["light", "dark"] = "light", direction: Direction = "down", scale: float = 2.0
    ) -> bytes:
        """A PNG image, so many pixels a unit of the SVG; fewer if it would become too large to be opened.

        Raises:
            UsageError: As by ``svg``, or the machine has no font.
        """
        from weft.observe.drawing import png  # noqa: PLC0415 - see mermaid

        return png(self, theme=theme, direction=direction, scale=scale)

    def save(self, path: str | os.PathLike[str], *, direction: Direction = "down") -> None:
        """Write it to a file: ``.svg``, ``.png``, ``.mmd`` (Mermaid), or ``.md`` (Mermaid in a Markdown page).

        Raises:
            InputError: Another suffix.
            UsageError: As by ``svg`` and ``png``.
        """
        path = Path(path)
        make = _FORMATS.get(path.suffix.lower())
        if make is None:
            known = ", ".join(_FORMATS)
            raise InputError(f"cannot draw to {str(path)!r}: its suffix has to be one of {known}")
        path.write_bytes(make(self, direction))

    def _repr_svg_(self) -> str | None:
        try:
            return self.svg()
        except UsageError:
            return None  # the notebook shows the Mermaid text

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        drawn = self._repr_svg_()
        if drawn is None:
            return {"text/vnd.mermaid": self.mermaid(), "text/plain": repr(self)}
        return {"image/svg+xml": drawn, "text/plain": repr(self)}


def show(picture: Picture, *, save_path: str | os.PathLike[str] | None = None) -> Picture | None:
    """Write a picture to a file, or show it in the notebook that is running.

    Returns:
        The picture, if neither was done: without a path, and outside of IPython.

    Raises:
        InputError: A path with a suffix that is none of ``.svg``, ``.png``, ``.mmd``, ``.md``.
        UsageError: The extra is not installed.
    """
    if save_path is not None:
        picture.save(save_path)
        return None
    display = _display()
    if display is None:
        return picture
    display(picture)
    return None


def check_choice(option: str, given: str, possible: Iterable[str]) -> None:
    """Refuse what is none of these.

    Raises:
        InputError: It is none of them.
    """
    if given not in possible:
        raise InputError(f"{option}={given!r}: it has to be one of {', '.join(map(repr, possible))}")


def all_groups(groups: Iterable[Group]) -> Iterator[Group]:
    """These groups and all that are inside them, the outer first."""
    pending = list(groups)[::-1]
    while pending:
        group = pending.pop()
        yield group
        pending += group.groups[::-1]


def counted(picture: Picture) -> str:
    """How large it is, for people."""
    boxes, arrows = len(picture.boxes), len(picture.arrows)
    return f"{boxes} {'box' if boxes == 1 else 'boxes'}, {arrows} {'arrow' if arrows == 1 else 'arrows'}"


_FORMATS: dict[str, Callable[[Picture, Direction], bytes]] = {
    ".svg": lambda picture, direction: picture.svg(direction=direction).encode(),
    ".png": lambda picture, direction: picture.png(direction=direction),
    ".mmd": lambda picture, direction: picture.mermaid(direction=direction).encode(),
    ".md": lambda picture, direction: f"```mermaid\n{picture.mermaid(direction=direction)}```\n".encode(),
}


def _mistakes(picture: Picture) -> Iterator[str]:
    ids = Counter(box.id for box in picture.boxes)
    grouped = Counter(member for group in all_groups(picture.groups) for member in group.members)
    yield from (f"two boxes of the picture have the id {each!r}" for each, count in ids.items() if count > 1)
    for arrow in picture.arrows:
        for end in (arrow.source, arrow.destination):
            if end not in ids:
                yield f"the arrow {arrow.source!r} -> {arrow.destination!r} names {end!r}, which is no box's id"
    yield from (
        f"a group has the member {each!r}, which is no box's id" for each in grouped if each not in ids
    )
    yield from (f"the box {each!r} is in two groups" for each, count in grouped.items() if count > 1)


def _display() -> Callable[[object], object] | None:
    """What shows things in the notebook or shell that is running, if one is."""
    ipython: Any = sys.modules.get("IPython")  # nobody runs it who has not imported it
    if ipython is None or ipython.get_ipython() is None:
        return None
    display: Callable[[object], object] = importlib.import_module("IPython.display").display
    return display
