"""Pictures as Mermaid flowcharts.

Whatever the names are, the text is a valid flowchart that shows them: ids are made up (``end`` is none that Mermaid
takes), and in labels all but letters, digits and a few harmless signs is written as a code (``#58;``). Mermaid reads
labels as Markdown, with icons and links in it, before it looks at these codes.

GitHub and others draw up to 500 arrows and 50,000 letters of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weft.observe.lettering import shortened, shown
from weft.observe.picture import (
    OUTCOMES,
    Arrow,
    ArrowKind,
    Box,
    BoxKind,
    BoxOutcome,
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
    "fork": ("{", "}"),
    "join": ("{", "}"),
    "block": ("[/", "\\]"),
    "runnable": ("[[", "]]"),
    "anywhere": ("(", ")"),
}
_END = ("([", "])")  # of a node where the workflow ends

_DIRECTIONS: dict[Direction, str] = {"down": "TD", "right": "LR"}

_LINES: dict[ArrowKind, str] = {"edge": "-->", "join": "==>", "choice": "-.->", "call": "--o"}

# With these Mermaid itself writes codes while it works, and reads them in labels too, even if they are codes there.
_INSTEAD = str.maketrans({"ﬂ": "fl", "¶": "⁋"})

# Each says its own text colour, so that it can be read on a light page and on a dark one.
_LOOKS = {
    "node": "fill:#e8f0fb,stroke:#4f77ad,color:#16263d",
    "router": "fill:#fff0c8,stroke:#b97f00,color:#3d2b00",
    "fork": "fill:#8557c9,stroke:#5f35a3,color:#ffffff",
    "join": "fill:#8557c9,stroke:#5f35a3,color:#ffffff",
    "block": "fill:#dcf3ee,stroke:#1f8474,color:#0b332c",
    "runnable": "fill:#e9e6fa,stroke:#6a5fc0,color:#221c4d",
    "anywhere": "fill:#f3f4f6,stroke:#8b93a1,color:#374151,stroke-dasharray:4 3",
    "first": "fill:#2f9e57,stroke:#1d7a3f,color:#ffffff",
    "last": "fill:#fde3e9,stroke:#bd3a58,color:#4a0f1e,stroke-width:4px",
}
# What has become of boxes and frames, after the look that they have anyway; the marks say it without colours.
_OUTCOMES: dict[BoxOutcome, tuple[str, str]] = {
    "ok": ("✓", "fill:#ddf3e3,stroke:#2b8a4b,color:#0e3a1d"),
    "reused": ("↺", "fill:#dbf1f7,stroke:#1b7f9c,color:#08333f"),
    "failed": ("✗", "fill:#fbdcdc,stroke:#c22f2f,color:#4d0d0d,stroke-width:3px"),
    "timed_out": ("⌛", "fill:#ffe8cc,stroke:#c26500,color:#462300,stroke-width:3px"),
    "cancelled": ("⊘", "fill:#e6e9ee,stroke:#6b7685,color:#2c333d"),
    "running": ("…", "fill:#e3e6fd,stroke:#4a5bd0,color:#171f5c"),
    "never": ("\u2013", "fill:#f6f7f9,stroke:#a3abb8,color:#5b6472,stroke-dasharray:2 3"),
}
_FRAME_OUTCOMES: dict[BoxOutcome, str] = {
    "ok": "fill:#2b8a4b14,stroke:#2b8a4b",
    "reused": "fill:#1b7f9c14,stroke:#1b7f9c",
    "failed": "fill:#c22f2f1c,stroke:#c22f2f,stroke-width:3px",
    "timed_out": "fill:#c265001c,stroke:#c26500,stroke-width:3px",
    "cancelled": "fill:#8fa3bf22,stroke:#6b7685",
    "running": "fill:#4a5bd014,stroke:#4a5bd0",
    "never": "fill:none,stroke:#a3abb8,stroke-dasharray:2 3",
}
_FRAME = (
    "fill:#8fa3bf22,stroke:#8fa3bf"  # a little darker than a light page, a little lighter than a dark one
)


def mermaid(picture: Picture, *, direction: Direction = "down") -> str:
    """The text of a Mermaid flowchart; the same picture gives the same text."""
    check_choice("direction", direction, _DIRECTIONS)
    looks = _looks_of(picture)
    names = {box.id: f"n{place}" for place, box in enumerate(picture.boxes)}
    boxes = {box.id: box for box in picture.boxes}
    lines = [f"flowchart {_DIRECTIONS[direction]}"]
    grouped = {member for group in all_groups(picture.groups) for member in group.members}
    lines += [_declared(box, names, looks) for box in picture.boxes if box.id not in grouped]
    lines += _subgraphs(picture.groups, boxes, names, looks)
    lines += [f"s{names[box.id]}(( )):::first --> {names[box.id]}" for box in picture.boxes if box.is_start]
    lines += [_line(arrow, names) for arrow in picture.arrows]
    used = {*looks.values(), *("first" for box in picture.boxes if box.is_start)}
    lines += [f"classDef {look} {_ALL_LOOKS[look]}" for look in _ALL_LOOKS if look in used]
    lines += _frame_looks([*all_groups(picture.groups)])
    return "\n    ".join(lines) + "\n"


def _declared(box: Box, names: dict[str, str], looks: dict[str, str]) -> str:
    before, after = _END if box.is_end and box.kind == "node" else _SHAPES[box.kind]
    label = "#43;" if box.kind in {"fork", "join"} else _marked(box.outcome) + _label(box.label)
    note = "".join(f"<br/>{_label(line)}" for line in box.note.split("\n") if line)
    return f'{names[box.id]}{before}"{label}{note}"{after}:::{looks[box.id]}'


def _marked(outcome: BoxOutcome | None) -> str:
    return f"{_OUTCOMES[outcome][0]} " if outcome else ""


def _frame_looks(groups: Sequence[Group]) -> Iterator[str]:
    outcomes: tuple[BoxOutcome | None, ...] = (None, *OUTCOMES)
    for outcome in outcomes:
        frames = [f"g{number}" for number, group in enumerate(groups) if group.outcome == outcome]
        if frames:
            name, look = (f"{outcome}_frame", _FRAME_OUTCOMES[outcome]) if outcome else ("frame", _FRAME)
            yield f"classDef {name} {look}"
            yield f"class {','.join(frames)} {name}"


def _subgraphs(
    groups: Sequence[Group], boxes: dict[str, Box], names: dict[str, str], looks: dict[str, str]
) -> Iterator[str]:
    """Without recursion: groups can be nested as deep as workflows are."""
    pending: list[Group | None] = list(groups[::-1])
    count = 0
    while pending:
        group = pending.pop()
        if group is None:
            yield "end"
            continue
        yield f'subgraph g{count}["{_marked(group.outcome)}{_label(group.label)}"]'
        count += 1
        yield from (_declared(boxes[member], names, looks) for member in group.members)
        pending += [None, *group.groups[::-1]]


def _line(arrow: Arrow, names: dict[str, str]) -> str:
    label = f'|"{_label(arrow.label)}"|' if arrow.label else ""
    return f"{names[arrow.source]} {_LINES[arrow.kind]}{label} {names[arrow.destination]}"


def _looks_of(picture: Picture) -> dict[str, str]:
    """By the ids of boxes. Where colours say how steps have ended, that of an end would be mistaken."""
    is_of_run = any(box.outcome for box in picture.boxes)
    return {
        box.id: box.outcome or ("last" if box.is_end and not is_of_run else box.kind) for box in picture.boxes
    }


_ALL_LOOKS: dict[str, str] = {**_LOOKS, **{outcome: look for outcome, (_, look) in _OUTCOMES.items()}}


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
