"""Timelines as SVG: of one width, for a page that has it. Names are shortened to where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from xml.sax.saxutils import escape, quoteattr

from weft.errors import InputError
from weft.observe.lettering import is_wide, shortened, text_width
from weft.observe.picture import Theme, check_choice
from weft.observe.timeline import Timeline
from weft.observe.timeline_colours import DARK, LIGHT, variables
from weft.observe.timeline_rows import StepLane, lane_words, took
from weft.observe.timeline_sheet import (
    Areas,
    Bar,
    Item,
    Lanes,
    Line,
    Lines,
    Most,
    Rows,
    Section,
    Sheet,
    sheet_of,
)

_LEAST = 400  # the width
_MARGIN = 20.0
_TEXT = 12.0
_SMALL = 10.5
_BOLD = 1.13  # so much wider
_TITLE = 18.0 * _BOLD
_ROW = 23.0
_LANE = 19.0
_AREA = 46.0
_LANES_RIGHT = 30.0  # of lanes, for the last time on the axis


def svg(timeline: Timeline, *, theme: Theme = "auto", width: int = 1000) -> str:
    """An SVG document.

    Raises:
        InputError: Another theme, or a width below 400.
    """
    check_choice("theme", theme, ("auto", "light", "dark"))
    if not isinstance(width, int) or width < _LEAST:
        raise InputError(f"width={width!r}: a timeline is drawn in {_LEAST} pixels or more")
    narrow = width < 640
    sheet = sheet_of(timeline, Most(bins=120 if narrow else 240))
    paper = _Paper(sheet, width)
    paper.draw()
    return "\n".join(_document(sheet, paper, theme)) + "\n"


def _document(sheet: Sheet, paper: _Paper, theme: Theme) -> Iterator[str]:
    width, height = _short(paper.width), _short(paper.y + _MARGIN)
    about = f"{sheet.title}, {sheet.status}: {', '.join(sheet.facts)}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="weft-timeline-{theme}" role="img" '
        f'aria-label={quoteattr(about)} width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'style="max-width:100%;height:auto">'
    )
    yield f"<title>{escape(about)}</title>"
    yield f"<style>{_styles(theme)}</style>"
    yield f'<rect class="page" width="{width}" height="{height}" rx="10"/>'
    yield from paper.parts
    yield "</svg>"


class _Paper:
    """What is drawn so far, and where it goes on."""

    def __init__(self, sheet: Sheet, width: int) -> None:
        self.sheet = sheet
        self.width = float(width)
        self.parts: list[str] = []
        self.y = _MARGIN
        self.gutter = min(max(width * 0.23, 105.0), 250.0)
        self.notes = min(max(width * 0.12, 62.0), 130.0)  # the room for notes beside bars

    def draw(self) -> None:
        self._head()
        for section in self.sheet.sections:
            self._section(section)
        self._legend()

    def _head(self) -> None:
        sheet = self.sheet
        room = self.width - 2 * _MARGIN
        status_width = text_width(sheet.status, size=_SMALL) + 16
        title = shortened(sheet.title, room - status_width - 12, size=_TITLE)
        self.text(title, _MARGIN, self.y + 15, "title")
        left = _MARGIN + text_width(title, size=_TITLE) + 12
        self.parts.append(f'<g class="status is-{escape(sheet.status)}">')
        self.rectangle("pill", left, self.y + 2, status_width, 17, 8.5)
        self.text(sheet.status, left + status_width / 2, self.y + 14, "small middle")
        self.parts.append("</g>")
        self.y += 24
        self.words(" · ".join(sheet.facts))
        for note in sheet.notes:
            self.words(note)

    def words(self, text: str, *, left: float = _MARGIN, small: bool = False) -> None:
        """A paragraph."""
        size = _SMALL if small else _TEXT
        for line in _wrapped(text, self.width - _MARGIN - left, size):
            self.y += size + 5
            self.text(line, left, self.y - 4, "small dim" if small else "dim")

    def _section(self, section: Section) -> None:
        self.y += 16 if section.heading else 6
        if section.heading:
            self.text(section.heading, _MARGIN, self.y + 12, "heading")
            self.y += 18
        if section.remark:
            self.words(section.remark, small=True)
        match section:
            case Rows():
                self._chart(section.items, _ROW, self._row, left=self.gutter + 8, right=self.notes)
            case Lanes():
                self._lanes(section)
            case Areas(is_wide=True):
                self._chart(section.lanes, _AREA, self._area, left=0.0, right=_LANES_RIGHT)
            case Areas():
                self._chart(section.lanes, _AREA, self._area, left=self.gutter + 8, right=self.notes)
            case Lines():
                for line in section.lines:
                    self._line(line)

    # Charts: y is that of the row; left and room are those of the axis

    def _chart(
        self,
        rows: Sequence[Item] | Sequence[StepLane],
        height: float,
        draw: Callable[..., None],
        *,
        left: float,
        right: float,
    ) -> None:
        left += _MARGIN
        room = self.width - _MARGIN - right - left
        self._axis(left, room, height * len(rows))
        for row in rows:
            draw(row, left, room)
            self.y += height

    def _lanes(self, section: Lanes) -> None:
        room = self.width - 2 * _MARGIN - _LANES_RIGHT
        height = section.lanes * _LANE
        self._axis(_MARGIN, room, height)
        for item in section.items:
            self._lane_item(item, self.y + item.lane * _LANE, room)
        self.y += height

    def _axis(self, left: float, room: float, height: float) -> None:
        self.y += 20
        top = self.y - 2
        for place, words in self.sheet.scale.ticks(max(2, int(room / 90))):
            x = left + place * room
            self.parts.append(
                f'<path class="grid" d="M{_short(x)} {_short(top)}V{_short(self.y + height)}"/>'
            )
            self.text(words, x, top - 4, "small dim")
        for start, end in self.sheet.scale.pauses:
            x = left + self.sheet.scale.at(start) * room
            wide = (self.sheet.scale.at(end) - self.sheet.scale.at(start)) * room
            self.parts.append(f"<g><title>{escape(f'stopped for {took(end - start)}')}</title>")
            self.rectangle("cut", x, top, wide, height + 2, 0)
            self.parts.append("</g>")

    def _row(self, item: Item, left: float, room: float) -> None:
        inset = min(item.depth, 8) * 9.0
        size = _TEXT * _BOLD if item.critical else _TEXT
        name = shortened(item.label, self.gutter - inset, size=size)
        self.parts.append(f"<g><title>{escape(item.tip)}</title>")
        self.text(name, _MARGIN + inset, self.y + 15.5, "strong" if item.critical else "dim")
        self._bars(item.bars, left, room, self.y + 4, 14, is_band=item.is_band)
        self._critical(item, left, room, self.y + 19)
        note = f"{item.note}, {item.ending}" if item.ending else item.note
        x = left + item.right * room + 6
        if x + text_width(note, size=_SMALL) > self.width - 4:
            note = item.note
        self.text(note, x, self.y + 15, "small dim")
        self.parts.append("</g>")

    def _bars(
        self, bars: Iterable[Bar], left: float, room: float, y: float, height: float, *, is_band: bool
    ) -> None:
        for bar in bars:
            x, wide = left + bar.left * room, (bar.right - bar.left) * room
            if bar.look == "backoff":
                middle = y + height / 2
                self.parts.append(
                    f'<path class="backoff" d="M{_short(x)} {_short(middle)}H{_short(x + wide)}"/>'
                )
                continue
            is_thin = is_band or bar.look in {"waiting", "asking"}
            top, tall = (y + height / 4, height / 2) if is_thin else (y, height)
            look = f"{bar.look} band" if is_band else bar.look
            least = 0.0 if bar.look == "waiting" else 5.0 if bar.look == "reused" else 1.5
            self.rectangle(look, x, top, max(wide, least), tall, 0 if is_thin and not is_band else 2)

    def _critical(self, item: Item, left: float, room: float, y: float) -> None:
        for start, end in item.critical:
            self.rectangle("critical", left + start * room, y, max((end - start) * room, 1.5), 2.5, 1)

    def _lane_item(self, item: Item, y: float, room: float) -> None:
        x, wide = _MARGIN + item.left * room, (item.right - item.left) * room
        self.parts.append(f"<g><title>{escape(item.tip)}</title>")
        if item.is_band:
            self.rectangle("ground", x, y, wide, item.height * _LANE - 2, 3)
            self._bars(item.bars, _MARGIN, room, y - 1.5, 6, is_band=True)
        else:
            self._bars(item.bars, _MARGIN, room, y, 14, is_band=False)
        self._critical(item, _MARGIN, room, y if item.is_band else y + 14.5)
        room_for_name = item.lettered
        if text_width(item.label, size=_SMALL) + 8 <= (room_for_name.right - room_for_name.left) * room:
            down, look = (13.5, "small dim") if item.is_band else (11.0, "small on")
            self.text(item.label, _MARGIN + room_for_name.left * room + 4, y + down, look)
        self.parts.append("</g>")

    def _area(self, lane: StepLane, left: float, room: float) -> None:
        words = lane_words(lane)
        tip = f"{lane.name or 'waiting'}\n{', '.join(words)}, {took(lane.seconds)} of work"
        self.parts.append(f"<g><title>{escape(tip)}</title>")
        if lane.name:
            self.text(shortened(lane.name, self.gutter, size=_TEXT), _MARGIN, self.y + 15, "plain")
            self.text(
                shortened(", ".join(words), self.gutter, size=_SMALL), _MARGIN, self.y + 29, "small dim"
            )
        x = left + room + 6
        if lane.most_running:
            look = "running band" if lane.is_band else "running"
            high, base = (10.0, 18.0) if lane.is_band else (26.0, 28.0)
            self.parts.append(_curve(lane.running, look, left, self.y + base, room, high))
            self.text(f"{lane.most_running:,}", x, self.y + base - high + 9, "small dim")
        if lane.most_waiting:
            high = 10.0 if lane.most_running else 30.0
            self.parts.append(_curve(lane.waiting, "waiting-area", left, self.y + 41, room, high))
            if lane.name:
                self.text(f"{lane.most_waiting:,} wait", x, self.y + 41, "small dim")
        step = room / len(lane.running)
        for place in lane.failures:
            self.rectangle("bad", left + place * step, self.y + 26, max(step, 1.5), 4, 0)
        self.parts.append("</g>")

    def _line(self, line: Line) -> None:
        left = _MARGIN + self.gutter + 8
        self.parts.append(
            f'<path class="grid" d="M{_short(_MARGIN)} {_short(self.y + 4)}H{_short(self.width - _MARGIN)}"/>'
        )
        self.y += 4
        self.text(shortened(line.name, self.gutter, size=_TEXT), _MARGIN, self.y + 14, "plain")
        if line.part is not None:
            full = min(self.width - _MARGIN - left, 420.0)
            self.rectangle("ground", left, self.y + 7, full, 5, 2)
            self.rectangle("running", left, self.y + 7, full * line.part, 5, 2)
            self.y += 14
        self.words(line.words, left=left)
        self.y += 4

    def _legend(self) -> None:
        self.y += 18
        x = _MARGIN
        for look, words in self.sheet.legend:
            wide = 28 + text_width(words, size=_SMALL) + 14
            if x + wide > self.width and x > _MARGIN:
                x, self.y = _MARGIN, self.y + 18
            self._key(look, x, self.y)
            self.text(words, x + 28, self.y + 9.5, "small dim")
            x += wide
        self.y += 12

    def _key(self, look: str, x: float, y: float) -> None:
        if look == "critical":
            self.rectangle("critical", x, y + 4.5, 22, 2.5, 1)
            return
        bar = Bar(look, 0.0, 1.0)
        self._bars([bar], x, 22, y, 11, is_band=False)

    # Shapes

    def rectangle(self, look: str, x: float, y: float, width: float, height: float, radius: float) -> None:
        rounded = f' rx="{_short(radius)}"' if radius else ""
        self.parts.append(
            f'<rect class="{look}" x="{_short(x)}" y="{_short(y)}" width="{_short(width)}" '
            f'height="{_short(height)}"{rounded}/>'
        )

    def text(self, text: str, x: float, y: float, look: str) -> None:
        wide = " wide" if is_wide(text) else ""
        self.parts.append(f'<text class="{look}{wide}" x="{_short(x)}" y="{_short(y)}">{escape(text)}</text>')


def _wrapped(text: str, width: float, size: float) -> Iterator[str]:
    """Lines of at most this width; a word that is wider is shortened."""
    fits: Callable[[str], str] = partial(shortened, width=width, size=size)
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and text_width(longer, size=size) > width:
            yield fits(line)
            longer = word
        line = longer
    if line:
        yield fits(line)


def _curve(levels: Sequence[float], look: str, left: float, base: float, room: float, high: float) -> str:
    """Steps, as high as the levels are of the greatest."""
    most, step = max(levels) or 1.0, room / len(levels)
    drawn, last = [f"M{_short(left)} {_short(base)}"], _short(base)
    for place, level in enumerate(levels):
        y = _short(base - high * level / most)
        if y != last:
            drawn.append(f"H{_short(left + place * step)}V{y}")
            last = y
    return f'<path class="{look}" d="{"".join(drawn)}H{_short(left + room)}V{_short(base)}Z"/>'


def _short(number: float) -> str:
    """To a tenth, which nobody sees the end of."""
    return f"{round(number, 1) + 0.0:.1f}".removesuffix(".0")


# Styles

_FONTS = (
    "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Liberation Sans','Noto Sans',"
    "'DejaVu Sans',sans-serif"
)
_WIDE_FONTS = (
    f"'PingFang SC','Hiragino Sans','Microsoft YaHei','Noto Sans CJK SC','Noto Sans CJK JP',{_FONTS}"
)
_LOOKS = {
    "page": "fill:var(--page)",
    "text": f"font-family:{_FONTS};font-size:{_TEXT:g}px;fill:var(--ink)",
    "wide": f"font-family:{_WIDE_FONTS}",
    "title": "font-size:18px;font-weight:600",
    "heading": "font-size:13px;font-weight:600",
    "strong": "font-weight:600",
    "small": f"font-size:{_SMALL:g}px",
    "middle": "text-anchor:middle",
    "dim": "fill:var(--dim)",
    "on": "fill:var(--on-run)",
    "pill": "fill:var(--soft)",
    "status text": "fill:var(--dim)",
    "is-finished .pill": "fill:var(--good-soft)",
    "is-finished text": "fill:var(--good)",
    "is-failed .pill": "fill:var(--bad-soft)",
    "is-failed text": "fill:var(--bad-ink)",
    "grid": "stroke:var(--line);fill:none",
    "cut": "fill:var(--soft);stroke:var(--dim);stroke-dasharray:3 3",
    "ground": "fill:var(--soft)",
    "running": "fill:var(--run)",
    "waiting": "fill:var(--wait);stroke:var(--wait-line);stroke-width:.8",
    "waiting-area": "fill:var(--wait-line)",
    "backoff": "fill:none;stroke:var(--retry);stroke-width:2;stroke-dasharray:2 2",
    "earlier": "fill:var(--run);fill-opacity:.55;stroke:var(--retry);stroke-width:1;stroke-dasharray:3 2",
    "asking": "fill:var(--ask)",
    "bad": "fill:var(--bad)",
    "cancelled": "fill:var(--gone)",
    "reused": "fill:var(--good-soft);stroke:var(--good);stroke-width:1.5",
    "critical": "fill:var(--ink)",
    "band": "fill-opacity:.45",
}


def _styles(theme: Theme) -> str:
    root = f".weft-timeline-{theme}"
    palette = variables(DARK if theme == "dark" else LIGHT)
    rules = [f"{root}{{{palette}}}"]
    if theme == "auto":
        rules.append(f"@media (prefers-color-scheme:dark){{{root}{{{variables(DARK)}}}}}")
    for look, rule in _LOOKS.items():
        selector = look if look == "text" else f".{look}"
        rules.append(f"{root} {selector}{{{rule}}}")
    return "".join(rules)


__all__ = ["svg"]
