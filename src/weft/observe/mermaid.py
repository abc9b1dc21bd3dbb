"""Pictures as Mermaid flowcharts.

Whatever the names are, the text is a valid flowchart that shows them: ids are made up (``end`` is none that Mermaid
takes), and in labels all but letters, digits and a few harmless signs is written as a code (``#58;``). Mermaid reads
labels as Markdown, with icons and links in it, before it looks at these codes.

GitHub and others draw up to 500 arrows and 50,000 letters of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from weft.observe.lettering import shortened, shown
from weft.observe.picture import (
    Arrow,
    ArrowKind,
    Box,
    BoxKind,
    Direction,
    Group,
    Picture,
    all_groups,
    check_choice,
)

_WIDEST = 40.0  # in letters' heights; Mermaid itself breaks lines at words only

_SHAPES: dict[BoxKind, tuple[str, str]] = {
    "node": ("(", ")"),
    "router": ("{{", "}}"),
    "join": ("{", "}"),
    "block": ("[/", "\\]"),
    "runnable": ("[[", "]]"),
    "anywhere": ("(", ")"),
}
_END = ("([", "])")  # of a node where the workflow ends

_DIRECTIONS: dict[Direction, str] = {"down": "TD", "right": "LR"}

_LINES: dict[ArrowKind, str] = {"edge": "-->", "join": "==>", "choice": "-.->"}

# With these Mermaid itself writes codes while it works, and reads them in labels too, even if they are codes there.
_INSTEAD = str.maketrans({"ﬂ": "fl", "¶": "⁋"})

# Each says its own text colour, so that it can be read on a light page and on a dark one.
_LOOKS = {
    "node": "fill:#e8f0fb,stroke:#4f77ad,color:#16263d",
    "router": "fill:#fff0c8,stroke:#b97f00,color:#3d2b00",
    "join": "fill:#8557c9,stroke:#5f35a3,color:#ffffff",
    "block": "fill:#dcf3ee,stroke:#1f8474,color:#0b332c",
    "runnable": "fill:#e9e6fa,stroke:#6a5fc0,color:#221c4d",
    "anywhere": "fill:#f3f4f6,stroke:#8b93a1,color:#374151,stroke-dasharray:4 3",
    "first": "fill:#2f9e57,stroke:#1d7a3f,color:#ffffff",
    "last": "fill:#fde3e9,stroke:#bd3a58,color:#4a0f1e,stroke-width:4px",
}
_FRAME = (
    "fill:#8fa3bf22,stroke:#8fa3bf"  # a little darker than a light page, a little lighter than a dark one
)


def mermaid(picture: Picture, *, direction: Direction = "down") -> str:
    """The text of a Mermaid flowchart; the same picture gives the same text."""
    check_choice("direction", direction, _DIRECTIONS)
    names = {box.id: f"n{place}" for place, box in enumerate(picture.boxes)}
    boxes = {box.id: box for box in picture.boxes}
    lines = [f"flowchart {_DIRECTIONS[direction]}"]
    grouped = {member for group in all_groups(picture.groups) for member in group.members}
    lines += [_declared(box, names) for box in picture.boxes if box.id not in grouped]
    lines += _subgraphs(picture.groups, boxes, names)
    lines += [f"s{names[box.id]}(( )):::first --> {names[box.id]}" for box in picture.boxes if box.is_start]
    lines += [_line(arrow, names) for arrow in picture.arrows]
    lines += [f"classDef {look} {_LOOKS[look]}" for look in _looks(picture.boxes)]
    frames = [f"g{number}" for number, _ in enumerate(all_groups(picture.groups))]
    if frames:
        lines += [f"classDef frame {_FRAME}", f"class {','.join(frames)} frame"]
    return "\n    ".join(lines) + "\n"


def _declared(box: Box, names: dict[str, str]) -> str:
    before, after = _END if box.is_end and box.kind == "node" else _SHAPES[box.kind]
    label = "#43;" if box.kind == "join" else _label(box.label)
    return f'{names[box.id]}{before}"{label}"{after}:::{_look(box)}'


def _subgraphs(groups: Sequence[Group], boxes: dict[str, Box], names: dict[str, str]) -> Iterator[str]:
    """Without recursion: groups can be nested as deep as workflows are."""
    pending: list[Group | None] = list(groups[::-1])
    count = 0
    while pending:
        group = pending.pop()
        if group is None:
            yield "end"
            continue
        yield f'subgraph g{count}["{_label(group.label)}"]'
        count += 1
        yield from (_declared(boxes[member], names) for member in group.members)
        pending += [None, *group.groups[::-1]]


def _line(arrow: Arrow, names: dict[str, str]) -> str:
    label = f'|"{_label(arrow.label)}"|' if arrow.label else ""
    return f"{names[arrow.source]} {_LINES[arrow.kind]}{label} {names[arrow.destination]}"


def _look(box: Box) -> str:
    return "last" if box.is_end else box.kind


def _looks(boxes: Iterable[Box]) -> list[str]:
    used = {_look(box) for box in boxes} | {"first" for box in boxes if box.is_start}
    return [look for look in _LOOKS if look in used]


def _label(text: str) -> str:
    line = shortened(shown(text).translate(_INSTEAD), _WIDEST, size=1)
    return "".join(each if _is_harmless(line, place) else f"#{ord(each)};" for place, each in enumerate(line))


def _is_harmless(line: str, place: int) -> bool:
    letter = line[place]
    if letter in "_-/":  # not at the ends of words, where they could be Markdown
        return 0 < place < len(line) - 1 and line[place - 1].isalnum() and line[place + 1].isalnum()
    if letter == " ":  # Mermaid takes "direction LR" for an order even in a label
        return not line[:place].lower().endswith("direction")
    return letter.isalnum() or letter == "," or not letter.isascii()
