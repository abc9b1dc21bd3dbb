"""Timelines as HTML, for any width: nothing to load, no script. Who points at a call is told about it at the foot.

Names are only ever text: they are escaped, and are in no place where they could be anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from weft.observe.lettering import text_width
from weft.observe.timeline import Timeline
from weft.observe.timeline_colours import DARK, LIGHT, variables
from weft.observe.timeline_rows import StepLane, lane_words, took
from weft.observe.timeline_sheet import Areas, Item, Lanes, Line, Lines, Most, Rows, Section, Sheet, sheet_of

_TICKS = 6
_LANE = 20  # pixels
_WIDE, _NARROW = 950, 330  # of the lanes, where they are drawn on a large screen and on a small one


def page(timeline: Timeline) -> str:
    """A document by itself; the same timeline gives the same text."""
    sheet = sheet_of(timeline, Most())
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(sheet.title)}: timeline</title>",
            f"<style>{_PAGE_STYLE}</style></head><body>",
            *_drawn(sheet),
            "</body></html>\n",
        ]
    )


def fragment(timeline: Timeline) -> str:
    """To stand in a page beside others, such as a notebook; its styles are for itself only."""
    return "\n".join(_drawn(sheet_of(timeline, Most()))) + "\n"


def _drawn(sheet: Sheet) -> Iterator[str]:
    yield '<div class="weft-timeline">'
    yield f"<style>{_STYLE}</style>"
    yield (
        f'<div class="head"><b>{escape(sheet.title)}</b>'
        f'<span class="status is-{escape(sheet.status)}">{escape(sheet.status)}</span></div>'
    )
    yield f'<ul class="facts">{"".join(f"<li>{escape(fact)}</li>" for fact in sheet.facts)}</ul>'
    yield from (f'<p class="remark">{escape(note)}</p>' for note in sheet.notes)
    for section in sheet.sections:
        yield from _section(section, sheet)
    keys = (f'<li><i class="key {look}"></i>{escape(words)}</li>' for look, words in sheet.legend)
    yield f'<ul class="legend">{"".join(keys)}</ul>'
    yield "</div>"


def _section(section: Section, sheet: Sheet) -> Iterator[str]:
    if section.heading:
        yield f"<h2>{escape(section.heading)}</h2>"
    if section.remark:
        yield f'<p class="remark">{escape(section.remark)}</p>'
    match section:
        case Rows():
            yield f'<div class="chart rows">{_axis(sheet)}'
            for item in section.items:
                yield _row(item)
            yield "</div>"
        case Lanes():
            yield f'<div class="chart lanes">{_axis(sheet)}'
            yield f'<div class="canvas" style="height:{section.lanes * _LANE}px">'
            for item in section.items:
                yield _lane_item(item)
            yield "</div></div>"
        case Areas():
            yield f'<div class="chart {"wide" if section.is_wide else "rows"}">{_axis(sheet)}'
            for lane in section.lanes:
                yield from _area(lane, has_name=not section.is_wide)
            yield "</div>"
        case Lines():
            yield '<div class="lines">'
            for line in section.lines:
                yield _line(line)
            yield "</div>"


def _axis(sheet: Sheet) -> str:
    ticks = "".join(
        f'<i style="left:{_percent(place)}"><span>{escape(words)}</span></i>'
        for place, words in sheet.scale.ticks(_TICKS)
    )
    cuts = "".join(
        f'<u style="left:{_percent(sheet.scale.at(start))};width:{_width(sheet.scale.at(start), sheet.scale.at(end))}">'
        f"<span>stopped {escape(took(end - start))}</span></u>"
        for start, end in sheet.scale.pauses
    )
    return f'<div class="axis">{ticks}{cuts}</div>'


def _row(item: Item) -> str:
    inset = min(item.depth, 8) * 0.7
    name = (
        f'<span class="name" style="padding-left:{inset:g}em" title="{_attribute(item.label)}">'
        f"{escape(item.label)}</span>"
    )
    mark = " on" if item.critical else ""
    track = f'<div class="track" data-tip="{_attribute(item.tip)}">{_bars(item)}{_note(item)}</div>'
    return f'<div class="row{mark}">{name}{track}</div>'


def _note(item: Item) -> str:
    ending = f"<em>, {escape(item.ending)}</em>" if item.ending else ""
    return f'<span class="note" style="left:{_percent(item.right)}">{escape(item.note)}{ending}</span>'


def _bars(item: Item, left: float = 0.0, right: float = 1.0) -> str:
    """The bars of a call, in parts of what is from left to right."""
    room = (right - left) or 1.0
    band = " band" if item.is_band else ""
    drawn = [
        f'<i class="bar {bar.look}{band}" style="left:{_percent((bar.left - left) / room)};'
        f'width:{_width(bar.left, bar.right, room)}"></i>'
        for bar in item.bars
    ]
    drawn += [
        f'<i class="critical" style="left:{_percent((start - left) / room)};width:{_width(start, end, room)}"></i>'
        for start, end in item.critical
    ]
    return "".join(drawn)


def _lane_item(item: Item) -> str:
    look = "box band" if item.is_band else "box"
    place = f"left:{_percent(item.left)};width:{_width(item.left, item.right)};top:{item.lane * _LANE}px"
    tall = f";height:{item.height * _LANE - 2}px" if item.is_band else ""
    bars = _bars(item, item.left, item.right)
    tip = _attribute(item.tip)
    return f'<div class="{look}" style="{place}{tall}" data-tip="{tip}">{bars}{_lane_label(item)}</div>'


def _lane_label(item: Item) -> str:
    """The name if it fits on a wide screen; and whether it does so on a narrow one too."""
    room = item.lettered
    needed = text_width(item.label, size=11.0) + 8
    part = room.right - room.left
    if needed > part * _WIDE:
        return ""
    wide = "" if needed <= part * _NARROW else ' class="wide"'
    left = (room.left - item.left) / ((item.right - item.left) or 1.0)
    return f'<span{wide} style="left:{_percent(left)}">{escape(item.label)}</span>'


def _area(lane: StepLane, *, has_name: bool) -> Iterator[str]:
    words = ", ".join(lane_words(lane))
    tip = f"{lane.name or 'waiting for limits'}\n{words}, {took(lane.seconds)} of work\n{_at_once(lane)}"
    yield f'<div class="row {"area band" if lane.is_band else "area"}">'
    if has_name:
        yield f'<span class="name" title="{_attribute(lane.name)}">{escape(lane.name)}'
        yield f"<small>{escape(words)}</small></span>"
    yield f'<div class="track" data-tip="{_attribute(tip)}">'
    if lane.most_running:
        yield _curve(lane.running, "running")
        yield f'<span class="most">{lane.most_running:,}</span>'
    if lane.most_waiting:
        yield _curve(lane.waiting, "waiting")
    if lane.most_waiting and has_name:
        yield f'<span class="most below">{lane.most_waiting:,} wait</span>'
    if lane.failures:
        marks = "".join(f'<path d="M{place} 0h1v1h-1z"/>' for place in lane.failures)
        yield _stretched(len(lane.running), 1, "marks", marks)
    yield "</div></div>"


def _at_once(lane: StepLane) -> str:
    return f"at most {lane.most_running:,} ran and {lane.most_waiting:,} waited at a time"


def _curve(levels: tuple[float, ...], look: str) -> str:
    return _stretched(len(levels), 100, look, f'<path d="{_outline(levels, max(levels) or 1.0)}"/>')


def _stretched(width: int, height: int, look: str, drawn: str) -> str:
    box = f'viewBox="0 0 {width} {height}" preserveAspectRatio="none"'
    return f'<svg class="{look}" {box} aria-hidden="true">{drawn}</svg>'


def _outline(levels: tuple[float, ...], most: float) -> str:
    """Steps, as many calls high as were there."""
    drawn, last = ["M0 100"], 100.0
    for place, level in enumerate(levels):
        height = round(100 - 100 * level / most, 1) + 0.0
        if height != last:
            drawn.append(f"H{place}V{height:g}")
            last = height
    return f"{''.join(drawn)}H{len(levels)}V100Z"


def _line(line: Line) -> str:
    bar = (
        f'<i class="amount"><i style="width:{_percent(line.part)}"></i></i>' if line.part is not None else ""
    )
    name = f'<b title="{_attribute(line.name)}">{escape(line.name)}</b>'
    return f'<div class="line">{name}<span>{bar}{escape(line.words)}</span></div>'


def _attribute(text: str) -> str:
    return escape(text).replace("\n", "&#10;")


def _percent(part: float) -> str:
    return f"{round(part * 100, 3) + 0.0:g}%"


def _width(left: float, right: float, room: float = 1.0) -> str:
    return _percent(max(right - left, 0.0) / room)


_PAGE_STYLE = (
    f"body{{margin:0;background:{LIGHT['page']}}}"
    f"@media (prefers-color-scheme:dark){{body{{background:{DARK['page']}}}}}"
    ".weft-timeline{max-width:1600px;margin:0 auto!important;border-radius:0!important}"
)

_ROOT = ".weft-timeline"


def _rules() -> Iterator[str]:
    root = _ROOT
    yield f"{root}{{{variables(LIGHT)}}}"
    yield f"@media (prefers-color-scheme:dark){{{root}{{{variables(DARK)}}}}}"
    for selector, rule in _RULES.items():
        yield (
            ",".join(f"{root} {each.strip()}" if each else root for each in selector.split(","))
            + f"{{{rule}}}"
        )
    small = ",".join(f"{root} {each}" for each in (".note em", ".axis i:nth-child(even) span"))
    yield f"@media (max-width:700px){{{small}{{display:none}}}}"
    yield f"@media (max-width:1000px){{{root} .box .wide{{display:none}}}}"


_RULES = {
    "": (
        "--gutter:clamp(6.5rem,24%,17rem);--right:clamp(3.6rem,11%,8.5rem);box-sizing:border-box;"
        "padding:16px 20px 44px;border-radius:10px;"
        "background:var(--page);color:var(--ink);font:13px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,"
        "'Helvetica Neue',Arial,'Liberation Sans','Noto Sans','DejaVu Sans','PingFang SC','Hiragino Sans',"
        "'Microsoft YaHei','Noto Sans CJK SC','Noto Sans CJK JP',sans-serif;font-variant-numeric:tabular-nums"
    ),
    " *": "box-sizing:border-box",
    " .head": "display:flex;gap:10px;align-items:center;font-size:18px;overflow-wrap:anywhere",
    " .status": "font-size:12px;padding:1px 9px;border-radius:9px;background:var(--soft);color:var(--dim);flex:none",
    " .status.is-finished": "background:var(--good-soft);color:var(--good)",
    " .status.is-failed": "background:var(--bad-soft);color:var(--bad-ink)",
    " ul": "list-style:none;margin:4px 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 0;color:var(--dim)",
    " .facts li:not(:last-child)::after": 'content:"·";margin:0 7px',
    " .legend": "margin-top:22px;gap:4px 18px;font-size:12px",
    " .key": "display:inline-block;position:relative;width:22px;height:10px;margin-right:6px;border-radius:2px",
    " h2": "font-size:14px;font-weight:600;margin:22px 0 2px;color:var(--ink)",
    " .remark": "margin:2px 0;color:var(--dim);font-size:12px;overflow-wrap:anywhere",
    " .chart": "position:relative;padding-top:24px;margin-top:6px",
    " .axis": "position:absolute;inset:0 var(--right) 0 0;pointer-events:none;font-size:11px;color:var(--dim)",
    " .rows .axis": "left:calc(var(--gutter) + 8px)",
    " .chart.lanes, .chart.wide": "--right:2.4rem",
    " .chart.wide": "margin-top:0",
    " .axis i": "position:absolute;top:20px;bottom:0;border-left:1px solid var(--line);font-style:normal",
    " .axis i span": "position:absolute;top:-19px;left:-1px;white-space:nowrap",
    " .axis u": (
        "position:absolute;top:20px;bottom:0;background:var(--soft);border:1px dashed var(--dim);border-width:0 1px;"
        "text-decoration:none"
    ),
    " .axis u span": (
        "position:absolute;top:2px;left:calc(100% + 3px);white-space:nowrap;font-size:10px;background:var(--page)"
    ),
    " .row": "position:relative;display:flex;gap:8px;height:24px;align-items:center",
    " .row.area": "height:44px;margin-bottom:4px",
    " .name": (
        "flex:none;width:var(--gutter);white-space:nowrap;overflow:hidden;text-overflow:ellipsis;color:var(--dim)"
    ),
    " .on .name": "color:var(--ink);font-weight:600",
    " .area .name": "color:var(--ink)",
    " .name small": "display:block;font-size:11px;color:var(--dim);overflow:hidden;text-overflow:ellipsis",
    " .track": "position:relative;flex:1;height:100%;min-width:0;margin-right:var(--right)",
    " .row:hover .track": "background:var(--hover)",
    " .bar": "position:absolute;top:5px;height:14px;min-width:2px;border-radius:2px",
    " .bar.band": "top:8px;height:8px;opacity:.45",
    " .running": "background:var(--run);fill:var(--run)",
    " .waiting": "fill:var(--wait-line)",
    " .bar.waiting, .key.waiting": (
        "background:repeating-linear-gradient(135deg,var(--wait) 0 3px,var(--wait-line) 3px 5px)"
    ),
    " .bar.waiting": "top:8px;height:8px;min-width:0;border-radius:0",
    " .backoff": "border-bottom:2px dotted var(--retry);border-radius:0",
    " .bar.backoff": "top:4px;height:9px;min-width:0",
    " .key.backoff": "height:6px;top:-3px",
    " .earlier": "background:repeating-linear-gradient(90deg,var(--run) 0 4px,var(--retry) 4px 6px);opacity:.7",
    " .asking": "background:var(--ask)",
    " .bar.asking": "top:9px;height:6px;border-radius:0",
    " .bad": "background:var(--bad);fill:var(--bad)",
    " .cancelled": "background:var(--gone)",
    " .reused": "border:1.5px solid var(--good);background:var(--good-soft)",
    " .bar.reused": "min-width:6px",
    " .critical": "background:var(--ink)",
    " i.critical": "position:absolute;bottom:1px;height:2.5px;min-width:2px;border-radius:1px",
    " .key.critical": "position:relative;height:3px;top:-3px;bottom:auto",
    " .note": (
        "position:absolute;top:0;line-height:24px;padding:0 6px;font-size:11.5px;white-space:nowrap;color:var(--dim)"
    ),
    " .note em": "font-style:normal",
    " .canvas": "position:relative;margin-right:var(--right)",
    " .box": "position:absolute;height:18px;min-width:3px;overflow:hidden;border-right:1px solid var(--soft)",
    " .box .bar": "top:0;height:15px",
    " .box .bar.waiting": "top:4px;height:7px",
    " .box .bar.backoff": "top:0;height:8px",
    " .box .bar.asking": "top:5px",
    " .box.band": "background:var(--soft);box-shadow:inset 0 0 0 1px var(--line)",
    " .box.band>.bar": "top:0;height:3px;border-radius:0",
    " .box.band>.critical": "bottom:auto;top:0",
    " .box i.critical": "bottom:0",
    " .box span": (
        "position:absolute;top:0;padding:0 4px;font-size:11px;line-height:15px;white-space:nowrap;color:var(--on-run)"
    ),
    " .box.band>span": "color:var(--dim);top:3px",
    " .box:hover": "outline:2px solid var(--ink);z-index:2",
    " .area svg": "position:absolute;left:0;width:100%;display:block;background:none",
    " svg.running": "top:0;height:28px",
    " svg.waiting": "bottom:2px;height:11px;fill:var(--wait-line)",
    " svg.marks": "bottom:13px;height:4px;fill:var(--bad)",
    " .wide svg.waiting": "height:30px",
    " .area.band": "height:40px",
    " .area.band svg.running": "opacity:.45;height:10px;top:8px",
    " .most": (
        "position:absolute;left:100%;top:-2px;padding-left:6px;font-size:11px;color:var(--dim);white-space:nowrap"
    ),
    " .most.below": "top:auto;bottom:-2px",
    " .line": (
        "display:grid;grid-template-columns:var(--gutter) 1fr;gap:8px;padding:3px 0;border-top:1px solid var(--line)"
    ),
    " .line b": "font-weight:500;overflow:hidden;text-overflow:ellipsis;white-space:nowrap",
    " .line span": "overflow-wrap:anywhere;color:var(--dim)",
    " .amount": "display:block;height:5px;margin:5px 0 2px;background:var(--soft);border-radius:2px;max-width:420px",
    " .amount i": "display:block;height:100%;background:var(--run);border-radius:2px",
    " [data-tip]:hover::after": (
        "content:attr(data-tip);position:fixed;left:0;right:0;bottom:0;z-index:9;padding:9px 20px;white-space:pre-wrap;"
        "overflow-wrap:anywhere;background:var(--tip);color:var(--tip-ink);font-size:12.5px;line-height:1.4;"
        "pointer-events:none"
    ),
}

_STYLE = "".join(_rules())

__all__ = ["fragment", "page"]
