"""Pictures as SVG and PNG.

What belongs to what can be told without colours: a router is a hexagon with dashed arrows, a join a diamond with
thick ones, an end has a double border, a start a dot before it, and what is called hangs on a dotted line. How a
step has ended is a badge with a mark of its own, and words. Colours are those of the page's reader, light or
dark, on a background of our own, since a notebook can be dark on a light desktop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from weft.errors import InputError, UsageError
from weft.observe.layout import (
    NOTE,
    SLANT,
    SMALL,
    TEXT,
    Curve,
    Frame,
    Layout,
    Point,
    is_meeting,
    is_round,
    place,
)
from weft.observe.lettering import is_wide, shortened, shown
from weft.observe.picture import (
    Arrow,
    Box,
    BoxKind,
    BoxOutcome,
    Direction,
    Group,
    Picture,
    Theme,
    all_groups,
    check_choice,
    counted,
)

_MARGIN = 20.0
_LONGEST_DETAILS = 300.0  # in letters' heights
_CORNERS: dict[BoxKind, float] = {"runnable": 2.0, "block": 0.0}
_MOST_PIXELS = 50_000_000  # of a PNG: more than that many programs refuse to open

_FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', 'Noto Sans', "
    "'DejaVu Sans', sans-serif"
)
# For text with East Asian letters: what draws PNGs would take any font that has them, be it one with serifs.
_WIDE_FONTS = (
    f"'PingFang SC', 'Hiragino Sans', 'Microsoft YaHei', 'Noto Sans CJK SC', 'Noto Sans CJK JP', {_FONTS}"
)

# What is coloured, and how: (fill, line, text).
_LIGHT = {
    "page": ("#ffffff", "none", "#1f2937"),
    "node": ("#eaf1fb", "#5580b5", "#16263d"),
    "router": ("#fff1cc", "#c08a0c", "#3d2b00"),
    "fork": ("#8557c9", "#6a3fae", "#ffffff"),
    "join": ("#8557c9", "#6a3fae", "#ffffff"),
    "block": ("#dff4ef", "#2a8b7b", "#0b332c"),
    "runnable": ("#ebe8fa", "#6f65c4", "#221c4d"),
    "anywhere": ("#f6f7f9", "#8b93a1", "#4b5563"),
    "end": ("#fde6eb", "#bf3d5b", "#4a0f1e"),
    "start": ("#2f9e57", "#2f9e57", "none"),
    "group": ("#8fa3bf", "#b3bfcf", "#4b5a70"),
    "edge": ("#64748b", "#64748b", "#334155"),
    "way": ("#7c4fc4", "#7c4fc4", "#4c2a86"),
    "choice": ("#b57f05", "#b57f05", "#6b4a00"),
    "call": ("#64748b", "#64748b", "#334155"),
    "ok": ("#e0f4e6", "#2b8a4b", "#0e3a1d"),
    "reused": ("#dcf1f7", "#1b7f9c", "#08333f"),
    "failed": ("#fbdddd", "#c22f2f", "#4d0d0d"),
    "timed_out": ("#ffe9d0", "#c26500", "#462300"),
    "cancelled": ("#e9ecf0", "#6b7685", "#2c333d"),
    "running": ("#e5e8fd", "#4a5bd0", "#171f5c"),
    "never": ("#ffffff", "#a3abb8", "#646e7d"),
}
_DARK = {
    "page": ("#13171f", "none", "#e6e9ef"),
    "node": ("#1d2a3f", "#6c97d2", "#e3ecf9"),
    "router": ("#3a2f12", "#dda42b", "#fcefcd"),
    "fork": ("#a17be0", "#c3a8ee", "#17102a"),
    "join": ("#a17be0", "#c3a8ee", "#17102a"),
    "block": ("#12352f", "#45b9a3", "#d5f3ec"),
    "runnable": ("#282548", "#958ce4", "#e7e4fb"),
    "anywhere": ("#1c212b", "#79839a", "#b6bfcd"),
    "end": ("#401d27", "#ee7f97", "#fde3e9"),
    "start": ("#4cc27a", "#4cc27a", "none"),
    "group": ("#8fa3bf", "#3f4a5c", "#a9b6c9"),
    "edge": ("#93a1b5", "#93a1b5", "#c4cedb"),
    "way": ("#b08ee8", "#b08ee8", "#d6c4f5"),
    "choice": ("#dda42b", "#dda42b", "#f3d48b"),
    "call": ("#93a1b5", "#93a1b5", "#c4cedb"),
    "ok": ("#143322", "#4cc27a", "#d7f5e1"),
    "reused": ("#12323d", "#45b6d6", "#d3f0f8"),
    "failed": ("#451a1e", "#f07178", "#ffe0e0"),
    "timed_out": ("#422a10", "#f0a04b", "#ffe8cf"),
    "cancelled": ("#262c37", "#8b96a8", "#d3dae4"),
    "running": ("#1f2552", "#8593f5", "#e2e5ff"),
    "never": ("#13171f", "#596476", "#98a3b5"),
}
_OUTCOMES = frozenset({"ok", "reused", "failed", "timed_out", "cancelled", "running", "never"})
_ARROWS = frozenset({"edge", "way", "choice", "call"})

# The marks of badges, in a circle of radius 8 round 0,0.
_MARKS: dict[BoxOutcome, str] = {
    "ok": "M-3.6,0.2L-1,2.8L3.8,-2.8",
    "reused": "M3.4,-1.6A3.9,3.9 0 1 0 3.7,1.4M3.6,-4.4V-1.4H0.6",
    "failed": "M-2.8,-2.8L2.8,2.8M2.8,-2.8L-2.8,2.8",
    "timed_out": "M0,-4.2V0.4L2.8,2.2",
    "cancelled": "M-3.6,0H3.6",
    "running": "M-3.6,0h0.1M0,0h0.1M3.5,0h0.1",
    "never": "",
}


def svg(picture: Picture, *, theme: Theme = "auto", direction: Direction = "down") -> str:
    """An SVG document; the same picture gives the same text.

    It can stand in a page beside others: its styles are for itself only, and nothing in it has an id.

    Raises:
        UsageError: The extra is not installed.
    """
    check_choice("theme", theme, ("auto", "light", "dark"))
    layout = place(picture, direction=direction)
    return "\n".join(_document(picture, layout, theme)) + "\n"


def png(
    picture: Picture,
    *,
    theme: Literal["light", "dark"] = "light",
    direction: Direction = "down",
    scale: float = 2.0,
) -> bytes:
    """A PNG image, so many pixels a unit of the SVG; fewer if it would become too large to be opened.

    Raises:
        InputError: A scale that is not above 0, or a theme that depends on the reader.
        UsageError: The extra is not installed, or the machine has no font.
    """
    check_choice("theme", theme, ("light", "dark"))
    if not scale > 0:
        raise InputError(f"scale={scale!r}: a picture can only be drawn larger than nothing")
    try:
        import resvg_py  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError('to draw a PNG, Weft needs resvg-py: pip install "weft[draw]"') from error
    layout = place(picture, direction=direction)
    _check_fonts()
    drawn = "\n".join(_document(picture, layout, theme))
    width, height = _canvas(layout)
    zoom = min(scale, (_MOST_PIXELS / (width * height)) ** 0.5)
    return resvg_py.svg_to_bytes(svg_string=drawn, zoom=zoom)


@cache
def _check_fonts() -> None:
    """Without any font, the boxes would be empty, and nobody would know why."""
    import resvg_py  # noqa: PLC0415 - an extra

    blank = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">{}</svg>'
    letter = blank.format(f'<text x="2" y="16" font-family="{_FONTS}">x</text>')
    if resvg_py.svg_to_bytes(svg_string=letter) == resvg_py.svg_to_bytes(svg_string=blank.format("")):
        raise UsageError(
            "to draw a PNG, a font has to be on the machine, and there is none: "
            "install one (Debian: apt-get install fonts-dejavu-core), or draw an SVG"
        )


def _document(picture: Picture, layout: Layout, theme: Theme) -> Iterator[str]:
    width, height = map(_short, _canvas(layout))
    about = f"{shown(picture.title)}: {counted(picture)}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="weft-{theme}" role="img" aria-label={quoteattr(about)} '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'style="max-width:100%;height:auto">'
    )
    yield f"<title>{escape(about)}</title>"
    yield f"<style>{_styles(theme)}</style>"
    yield f'<rect class="page" width="{width}" height="{height}" rx="10"/>'
    yield f'<g transform="translate({_short(_MARGIN)} {_short(_MARGIN)})">'
    for group, frame in zip(all_groups(picture.groups), layout.groups, strict=True):
        yield from _group(group, frame)
    starts = [box for box in picture.boxes if box.is_start]
    for box, (dot, curve) in zip(starts, layout.starts, strict=True):
        yield from _start(box, dot, curve)
    for arrow, curve in zip(picture.arrows, layout.arrows, strict=True):
        yield from _arrow(arrow, curve)
    is_of_run = any(box.outcome for box in picture.boxes)
    for box, frame in zip(picture.boxes, layout.boxes, strict=True):
        yield from _box(box, frame, is_of_run=is_of_run)
    for arrow, curve in zip(picture.arrows, layout.arrows, strict=True):
        yield from _arrow_label(arrow, curve)
    for group, frame in zip(all_groups(picture.groups), layout.groups, strict=True):
        yield from _heading(group, frame)
    yield "</g>"
    yield "</svg>"


def _canvas(layout: Layout) -> tuple[float, float]:
    return layout.width + 2 * _MARGIN, layout.height + 2 * _MARGIN


# Styles


def _styles(theme: Theme) -> str:
    root = f".weft-{theme}"
    always = (
        f"{root} text{{font-family:{_FONTS};font-size:{TEXT:g}px;text-anchor:middle}}"
        f"{root} .wide{{font-family:{_WIDE_FONTS}}}"
        f"{root} .small text{{font-size:{SMALL:g}px}}"
        f"{root} .fork text,{root} .join text{{font-size:20px;font-weight:600}}"
        f"{root} text.note{{font-size:{SMALL:g}px}}"
        f"{root} .group text{{text-anchor:start;font-weight:600}}"
        f"{root} .group rect{{fill-opacity:.1}}"
        f"{root} .group.failed rect,{root} .group.timed_out rect{{fill-opacity:.3}}"
        f"{root} .line{{fill:none;stroke-width:1.5}}"
        f"{root} .way .line{{stroke-width:2.6}}"
        f"{root} .choice .line{{stroke-dasharray:6 4}}"
        f"{root} .call .line{{stroke-dasharray:1 4;stroke-linecap:round;stroke-width:1.8}}"
        f"{root} .anywhere .shape{{stroke-dasharray:4 3}}"
        f"{root} .never .shape{{stroke-dasharray:2 3}}"
        f"{root} .mark{{fill:none;stroke-width:1.8;stroke-linecap:round;stroke-linejoin:round}}"
        f"{root} .shape{{stroke-width:1.5}}"
        f"{root} .failed .shape,{root} .timed_out .shape{{stroke-width:2.4}}"
        f"{root} .bar{{stroke-width:4}}"
        f"{root} .label text{{paint-order:stroke;stroke-width:3px;stroke-opacity:.8;stroke-linejoin:round}}"
    )
    if theme == "auto":
        dark = _colours(root, _DARK)
        return f"{always}{_colours(root, _LIGHT)}@media (prefers-color-scheme:dark){{{dark}}}"
    return always + _colours(root, _DARK if theme == "dark" else _LIGHT)


def _colours(root: str, palette: dict[str, tuple[str, str, str]]) -> str:
    rules = []
    for look, (fill, line, text) in palette.items():
        if look == "page":
            rules.append(f"{root} .page{{fill:{fill}}}")
        elif look in _ARROWS:
            rules.append(
                f"{root} .{look} .line{{stroke:{line}}}{root} .{look} .head{{fill:{fill}}}"
                f"{root} .{look} text{{fill:{text}}}"
            )
        else:
            rules.append(
                f"{root} .{look} .shape{{fill:{fill};stroke:{line}}}{root} .{look} text{{fill:{text}}}"
            )
        if look in _OUTCOMES:
            rules.append(f"{root} .{look} .badge{{fill:{line}}}{root} .{look} .mark{{stroke:{fill}}}")
    page = palette["page"][0]
    rules.append(
        f"{root} .start .line{{stroke:{palette['start'][1]}}}{root} .start .head{{fill:{palette['start'][0]}}}"
    )
    rules.append(f"{root} .label text{{stroke:{page}}}{root} .inner{{fill:none}}")
    return "".join(rules)


# Parts


def _group(group: Group, frame: Frame) -> Iterator[str]:
    yield f'<g class="{_group_look(group)}">'
    yield f"<title>{escape(_with_details(shown(group.label), group.about))}</title>"
    yield _rectangle(frame, 10)
    yield "</g>"


def _heading(group: Group, frame: Frame) -> Iterator[str]:
    left, top = frame.x - frame.width / 2, frame.y - frame.height / 2
    yield f'<g class="{_group_look(group)} small label">'
    indent = 12.0
    if group.outcome and group.outcome != "never":
        yield from _badge(group.outcome, left + 18, top + 14.5)
        indent = 31.0
    yield _text(frame.text, left + indent, top + 18)
    yield "</g>"


def _group_look(group: Group) -> str:
    return f"group {group.outcome}" if group.outcome else "group"


def _badge(outcome: BoxOutcome, x: float, y: float) -> Iterator[str]:
    """How it has ended, to be told without colours."""
    if _MARKS[outcome]:
        yield f'<g transform="translate({_at((x, y))})">'
        yield '<circle class="badge" r="8"/>'
        yield f'<path class="mark" d="{_MARKS[outcome]}"/>'
        yield "</g>"


def _box(box: Box, frame: Frame, *, is_of_run: bool) -> Iterator[str]:
    yield f'<g class="{_look(box, is_of_run=is_of_run)}">'
    yield f"<title>{escape(_told(box))}</title>"
    yield from _shape(box, frame)
    drop = (20 if is_meeting(box) else TEXT) * 0.35
    drop -= NOTE * len(frame.notes) / 2
    for number, note in enumerate(frame.notes, 1):
        yield _text(note, frame.x, frame.y + drop + NOTE * number + 1, "note")
    yield _text(frame.text, frame.x, frame.y + drop)
    if box.outcome:
        yield from _badge(box.outcome, frame.x + frame.width / 2 - 5, frame.y - frame.height / 2 + 3)
    yield "</g>"


def _shape(box: Box, frame: Frame) -> Iterator[str]:
    yield _outline(box, frame, 0, "shape")
    if box.is_end:
        yield _outline(box, frame, 4, "shape inner")
    yield from _marks(box, frame)


def _outline(box: Box, frame: Frame, inset: float, look: str) -> str:
    across, down = frame.width / 2 - inset, frame.height / 2 - inset
    x, y = frame.x, frame.y
    if is_meeting(box):
        return _polygon([(x, y - down), (x + across, y), (x, y + down), (x - across, y)], look)
    if box.kind == "router":
        side = across - SLANT
        right = [(x + side, y - down), (x + across, y), (x + side, y + down)]
        left = [(x - side, y + down), (x - across, y), (x - side, y - down)]
        return _polygon([*right, *left], look)
    radius = down if is_round(box) else _CORNERS.get(box.kind, 7.0)
    return _rectangle(Frame(x, y, 2 * across, 2 * down), radius, look)


def _marks(box: Box, frame: Frame) -> Iterator[str]:
    """The bars of what is more than a step: at the sides of a workflow, where a block forks and joins."""
    across, down = frame.width / 2, frame.height / 2
    if box.kind == "runnable":
        for x in (frame.x - across + 8, frame.x + across - 8):
            yield f'<path class="shape" d="M{_at((x, frame.y - down))}V{_short(frame.y + down)}"/>'
    if box.kind == "block":
        for y in (frame.y - down, frame.y + down):
            yield f'<path class="shape bar" d="M{_at((frame.x - across, y))}H{_short(frame.x + across)}"/>'


def _start(box: Box, dot: Frame, curve: Curve) -> Iterator[str]:
    yield '<g class="start">'
    yield f"<title>{escape(shown(box.label))} is where it starts</title>"
    yield f'<circle class="shape" cx="{_short(dot.x)}" cy="{_short(dot.y)}" r="{_short(dot.width / 2)}"/>'
    yield from _line(curve)
    yield "</g>"


def _arrow(arrow: Arrow, curve: Curve) -> Iterator[str]:
    yield f'<g class="{_way(arrow)}">'
    yield from _line(curve, is_call=arrow.kind == "call")
    yield "</g>"


def _line(curve: Curve, *, is_call: bool = False) -> Iterator[str]:
    drawn = "".join(f"M{_at(first)}C{' '.join(map(_at, others))}" for first, *others in curve.parts)
    yield f'<path class="line" d="{drawn}"/>'
    if is_call:
        (x, y), (tip_x, tip_y) = curve.parts[-1][-1], curve.tip
        yield f'<circle class="head" cx="{_short((x + 2 * tip_x) / 3)}" cy="{_short((y + 2 * tip_y) / 3)}" r="3.5"/>'
        return
    yield _head(curve.parts[-1][-1], curve.tip)


def _head(base: Point, tip: Point) -> str:
    across = ((tip[1] - base[1]) * 0.42, (base[0] - tip[0]) * 0.42)
    corners = [tip, (base[0] + across[0], base[1] + across[1]), (base[0] - across[0], base[1] - across[1])]
    return _polygon(corners, "head")


def _arrow_label(arrow: Arrow, curve: Curve) -> Iterator[str]:
    frame = curve.label
    if frame is None:
        return
    yield f'<g class="{_way(arrow)} small label">'
    yield f"<title>{escape(shown(arrow.label))}</title>"
    yield _text(frame.text, frame.x, frame.y + SMALL * 0.35)
    yield "</g>"


def _look(box: Box, *, is_of_run: bool) -> str:
    """Where colours say how steps have ended, that of an end would be mistaken; its double border stays."""
    return " ".join(filter(None, [box.kind, "end" if box.is_end and not is_of_run else "", box.outcome]))


def _way(arrow: Arrow) -> str:
    return "way" if arrow.kind == "join" else arrow.kind


def _told(box: Box) -> str:
    """What a box says when it is pointed at."""
    roles = [role for role, has in (("start", box.is_start), ("end", box.is_end)) if has]
    if box.kind not in {"node", "anywhere"}:
        roles.insert(0, box.kind)
    label = shown(box.label) + (f": {shown(box.note)}" if box.note else "")
    return _with_details(f"{label} ({', '.join(roles)})" if roles else label, box.about)


def _with_details(label: str, about: str) -> str:
    return f"{label}; {shortened(shown(about), _LONGEST_DETAILS, size=1)}" if about else label


# Numbers and shapes


def _text(text: str, x: float, y: float, look: str = "") -> str:
    looks = " ".join(filter(None, [look, "wide" if is_wide(text) else ""]))
    look = f' class="{looks}"' if looks else ""
    return f'<text{look} x="{_short(x)}" y="{_short(y)}">{escape(text)}</text>'


def _rectangle(frame: Frame, radius: float, look: str = "shape") -> str:
    left, top = frame.x - frame.width / 2, frame.y - frame.height / 2
    return (
        f'<rect class="{look}" x="{_short(left)}" y="{_short(top)}" width="{_short(frame.width)}" '
        f'height="{_short(frame.height)}" rx="{_short(radius)}"/>'
    )


def _polygon(corners: Iterable[Point], look: str) -> str:
    return f'<polygon class="{look}" points="{" ".join(map(_at, corners))}"/>'


def _at(point: Point) -> str:
    return f"{_short(point[0])},{_short(point[1])}"


def _short(number: float) -> str:
    """To a tenth, which nobody sees the end of."""
    return f"{round(number, 1) + 0.0:.1f}".removesuffix(".0")  # adding 0 leaves no minus before it
