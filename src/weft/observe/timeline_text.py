"""Timelines for a terminal, in at most 60 lines: what decided, what took longest, what failed, what limits cost."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from weft.observe.timeline import Timeline
from weft.observe.timeline_rows import Kind, StepLane, counted
from weft.observe.timeline_sheet import Areas, Item, Line, Lines, Most, Rows, Section, Sheet, sheet_of

_LEAST, _MOST = 60, 200  # columns
_ROWS = 24
_MARKS = {
    "running": "█",
    "bad": "▓",
    "cancelled": "▒",
    "waiting": "░",
    "backoff": "┄",
    "earlier": "▚",
    "asking": "?",
    "reused": "│",
}
_LEVELS = " ▁▂▃▄▅▆▇█"
_CRITICAL = "◆"
_COLOURS = {
    "bad": 31,
    "reused": 32,
    "waiting": 90,
    "backoff": 33,
    "earlier": 33,
    "asking": 35,
    "cancelled": 90,
    "running": 34,
}
_STATUS = {"finished": 32, "failed": 31, "cancelled": 33, "suspended": 33, "running": 36}
_BOLD, _DIM = 1, 2

Paint = Callable[[str, int], str]
"""Text in a colour of the terminal, or as it is."""


def text(timeline: Timeline, *, width: int = 100, colour: bool = False) -> str:
    """Lines without a line break at the end; no trailing blanks, nothing that a terminal would obey but colours."""
    width = min(max(width, _LEAST), _MOST)
    columns = _Columns(width)
    # Shared lanes need more room than a terminal has.
    kind: Kind = "rows" if len(timeline.spans) <= _ROWS else "steps"
    most = Most(bins=columns.chart, steps=7, links=7, failures=4, longest=5, limits=3)
    sheet = sheet_of(timeline, most, kind=kind)
    return "\n".join(line.rstrip() for line in _lines(sheet, columns, _coloured if colour else _plain))


class _Columns:
    """How many columns there are for names, bars and notes."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.name = min(max(width // 4, 16), 36)
        self.note = 18
        self.chart = width - self.name - self.note - 3


def _lines(sheet: Sheet, columns: _Columns, paint: Paint) -> Iterator[str]:
    yield f"{paint(_cut(sheet.title, columns.width // 2), _BOLD)}  {paint(sheet.status, _STATUS.get(sheet.status, 0))}"
    yield from _wrapped(" · ".join(sheet.facts), columns.width)
    for note in sheet.notes:
        yield from _wrapped(note, columns.width)
    for section in sheet.sections:
        yield from _section(section, sheet, columns, paint)
    yield ""
    keys = [
        f"{paint(_CRITICAL if look == 'critical' else _MARKS[look], _COLOURS.get(look, 0))} {words}"
        for look, words in sheet.legend
    ]
    yield from _packed(keys, [len(words) + 2 for _, words in sheet.legend], columns.width)


def _section(section: Section, sheet: Sheet, columns: _Columns, paint: Paint) -> Iterator[str]:
    yield ""
    if section.heading:
        yield f"{paint(section.heading, _BOLD)} {'─' * (columns.width - len(section.heading) - 1)}"
    if section.remark and not isinstance(section, Areas):  # it is about what only a drawing has
        yield from _wrapped(section.remark, columns.width)
    match section:
        case Rows():
            yield _axis(sheet, columns)
            for item in section.items:
                yield _row(item, columns, paint)
        case Areas():
            yield _axis(sheet, columns)
            for lane in section.lanes:
                yield _area(lane, columns, paint)
        case Lines():
            for line in section.lines:
                yield from _told(line, columns)


def _axis(sheet: Sheet, columns: _Columns) -> str:
    cells = [" "] * (columns.chart + columns.note)
    reached = -1
    for place, words in sheet.scale.ticks(max(2, columns.chart // 14)):
        start = int(place * columns.chart)
        label = f"╷{words}"
        if start > reached and start + len(label) <= len(cells):
            cells[start : start + len(label)] = label
            reached = start + len(label)
    return " " * (columns.name + 2) + "".join(cells)


def _row(item: Item, columns: _Columns, paint: Paint) -> str:
    inset = min(item.depth, 6)
    mark = _CRITICAL if item.critical else " "
    name = _padded(_cut(" " * inset + item.label, columns.name), columns.name)
    note = f" {item.note}" + (f", {item.ending}" if item.ending else "")
    bars = _bars(item, columns.chart, paint)
    return f"{mark} {paint(name, _BOLD) if item.critical else name} {bars}{_cut(note, columns.note)}"


def _bars(item: Item, chart: int, paint: Paint) -> str:
    """The bars of a call from the left, without what is blank to their right."""
    cells: list[tuple[str, str]] = []
    for bar in item.bars:
        start = min(int(bar.left * chart), chart - 1)
        end = max(start + (bar.look != "waiting"), round(bar.right * chart))
        cells = cells[:start]  # a bar of work has at least one cell, be it that of the one before
        cells += [(" ", "")] * (start - len(cells))
        mark = "─" if item.is_band else _MARKS[bar.look]
        cells += [(mark, bar.look)] * (end - start)
    if not item.bars:
        start, end = int(item.left * chart), max(round(item.right * chart), int(item.left * chart) + 1)
        cells = [(" ", "")] * start + [("╌", "")] * (end - start)
    return "".join(paint(mark * count, _COLOURS.get(look, 0)) for (mark, look), count in _runs(cells[:chart]))


def _runs(cells: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], int]]:
    last, count = None, 0
    for cell in cells:
        if cell != last and last is not None:
            yield last, count
            count = 0
        last, count = cell, count + 1
    if last is not None:
        yield last, count


def _area(lane: StepLane, columns: _Columns, paint: Paint) -> str:
    words = f" {lane.calls:,}, {lane.failed:,} failed" if lane.failed else f" {counted(lane.calls)}"
    name = _padded(_cut(lane.name, columns.name), columns.name)
    levels = lane.running if lane.most_running else lane.waiting
    most = max(levels) or 1.0
    drawn = "".join(_LEVELS[-(-int(level * 800 / most) // 100)] for level in levels)
    look = "running" if lane.most_running else "waiting"
    return f"  {name} {paint(drawn, _COLOURS[look])}{_cut(words, columns.note)}"


def _told(line: Line, columns: _Columns) -> Iterator[str]:
    name = _padded(_cut(line.name, columns.name), columns.name)
    for number, part in enumerate(_wrapped(line.words, columns.width - columns.name - 3, most=2)):
        yield f"  {name if number == 0 else ' ' * columns.name} {part}"


# Text in columns


def _plain(text: str, code: int) -> str:
    return text


def _coloured(text: str, code: int) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code and text.strip() else text


def _cells(text: str) -> int:
    """How many columns it takes."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


def _cells_of(letter: str) -> int:
    if unicodedata.category(letter) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in {"W", "F"} else 1


def _cut(text: str, columns: int) -> str:
    if _cells(text) <= columns:
        return text
    used, kept = 1, []
    for letter in text:
        used += _cells_of(letter)
        if used > columns:
            break
        kept.append(letter)
    return f"{''.join(kept)}…"


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - _cells(text))


def _wrapped(text: str, columns: int, *, most: int = 3) -> Iterator[str]:
    """At most so many lines; the last is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _cells(longer) > columns and len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = longer
    yield from (_cut(line, columns) for line in lines)


def _packed(parts: Sequence[str], widths: Sequence[int], columns: int) -> Iterator[str]:
    line, used = "", 0
    for part, width in zip(parts, widths, strict=True):
        if used and used + 3 + width > columns:
            yield line
            line, used = "", 0
        line, used = (f"{line}   {part}", used + 3 + width) if used else (part, width)
    if line:
        yield line


__all__ = ["text"]
