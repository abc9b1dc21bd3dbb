"""The figures as SVG that needs nothing else: cost over size, log by log, and a bar for each contender."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import contenders
from workloads import WORKLOADS, Workload

OURS, LIMIT, PEER = "#c2410c", "#111827", "#64748b"
HUES = (
    "#2563eb",
    "#059669",
    "#7c3aed",
    "#0891b2",
    "#be185d",
    "#65a30d",
    "#4f46e5",
    "#0f766e",
    "#9333ea",
    "#b45309",
)
FONT = "font-family='system-ui,sans-serif' font-size='12'"
SHADES = ("#7c2d12", "#c2410c", "#ea580c", "#f59e0b", "#dc2626")


def write(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """A picture of growth for the workloads with several sizes, and one of bars for each workload."""
    written = []
    for workload in WORKLOADS:
        found = content["results"].get(workload.name)
        if not found:
            continue
        drawn = [(f"bars-{workload.name}.svg", bars(workload, found))]
        if workload.main == "us" and len({size for by_size in found.values() for size in by_size}) > 2:
            drawn.append((f"growth-{workload.name}.svg", growth(workload, found)))
        for name, text in drawn:
            written.append(folder / name)
            written[-1].write_text(text, encoding="utf-8")
    return written


def _frame(width: int, height: int, title: str, body: Iterator[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' {FONT}>"
    back = f"<rect width='{width}' height='{height}' fill='white'/>"
    named = f"<text x='12' y='22' font-weight='bold'>{escape(title)}</text>"
    return "\n".join([head, f"<title>{escape(title)}</title>", back, named, *body, "</svg>"]) + "\n"


def _colour(name: str, peers: list[str]) -> str:
    if name in contenders.OURS:
        return SHADES[contenders.OURS.index(name)]
    return LIMIT if name in contenders.LIMITS else HUES[peers.index(name) % len(HUES)]


def growth(workload: Workload, found: Mapping[str, Any]) -> str:
    """Cost of one step over the number of steps: what is linear is a level line."""
    lines = {
        name: [(int(size), median(measures["us"])) for size, measures in by_size.items()]
        for name, by_size in found.items()
    }
    peers = [name for name in lines if name not in contenders.OURS and name not in contenders.LIMITS]
    sizes = sorted({size for points in lines.values() for size, _ in points})
    costs = [cost for points in lines.values() for _, cost in points]
    low, high = math.floor(math.log10(min(costs))), math.ceil(math.log10(max(costs)))
    left, top, wide, tall = 70, 50, 520, 380

    def x(size: float) -> float:
        first, last = math.log10(sizes[0]), math.log10(sizes[-1])
        return left + wide * (math.log10(size) - first) / ((last - first) or 1)

    def y(cost: float) -> float:
        return top + tall * (high - math.log10(cost)) / ((high - low) or 1)

    def body() -> Iterator[str]:
        for power in range(low, high + 1):
            at = y(10**power)
            yield f"<line x1='{left}' x2='{left + wide}' y1='{at:.1f}' y2='{at:.1f}' stroke='#e5e7eb'/>"
            yield f"<text x='{left - 8}' y='{at + 4:.1f}' text-anchor='end'>{10**power:g} µs</text>"
        for size in sizes:
            yield f"<text x='{x(size):.1f}' y='{top + tall + 20}' text-anchor='middle'>{size:,}</text>"
        yield from _curves(lines, peers, x, y)
        yield from _labels(lines, peers, left + wide + 14, top, tall, y)

    return _frame(850, top + tall + 40, f"{workload.title}: {workload.unit}, over their number", body())


def _curves(lines: Mapping[str, Any], peers: list[str], x: Any, y: Any) -> Iterator[str]:
    for name, points in lines.items():
        colour, thick = _colour(name, peers), 1.2 if name in peers else 2.4
        dashes = " stroke-dasharray='5 4'" if name in contenders.LIMITS else ""
        path = " ".join(f"{x(size):.1f},{y(cost):.1f}" for size, cost in points)
        yield f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{thick}'{dashes}/>"
        for size, cost in points:
            yield f"<circle cx='{x(size):.1f}' cy='{y(cost):.1f}' r='2.5' fill='{colour}'/>"


def _labels(
    lines: Mapping[str, Any], peers: list[str], at: float, top: float, tall: float, y: Any
) -> Iterator[str]:
    """Names at the right, in the order of the lines' ends, none over another."""
    wanted = sorted((y(points[-1][1]), name) for name, points in lines.items() if points)
    place = top - 20.0
    for position, (height, name) in enumerate(wanted):
        room = top + tall + 10 - 15 * (len(wanted) - position - 1)
        place = max(place + 15, min(height + 4, room))
        yield f"<text x='{at}' y='{place:.1f}' fill='{_colour(name, peers)}'>{escape(name)}</text>"


def bars(workload: Workload, found: Mapping[str, Any]) -> str:
    """A bar for each contender at the workload's own size: logarithmic where it spans more than fifty times."""
    size = _size(workload, found)
    values = {
        name: (median(by_size[size][workload.main]), by_size[size][workload.main])
        for name, by_size in found.items()
        if size in by_size
    }
    order = sorted(values, key=lambda name: values[name][0], reverse=workload.more_is_better)
    most, least = max(value for value, _ in values.values()), min(value for value, _ in values.values())
    is_log = least > 0 and most / least > 50

    def length(value: float) -> float:
        if is_log:
            return 30 + 450 * (math.log10(max(value, least)) - math.log10(least)) / math.log10(most / least)
        return 480 * max(value, 0) / (most or 1)

    def body() -> Iterator[str]:
        for row, name in enumerate(order):
            value, turns = values[name]
            colour = OURS if name in contenders.OURS else LIMIT if name in contenders.LIMITS else PEER
            top = 40 + row * 24
            yield f"<text x='170' y='{top + 13}' text-anchor='end'>{escape(name)}</text>"
            yield f"<rect x='178' y='{top}' width='{length(value):.1f}' height='17' fill='{colour}'/>"
            ends = (178 + length(min(turns)), 178 + length(max(turns)))
            yield f"<path d='M{ends[0]:.1f} {top + 8.5}H{ends[1]:.1f}' stroke='#9ca3af' stroke-width='2'/>"
            shown = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
            yield f"<text x='{max(ends) + 6:.1f}' y='{top + 13}'>{shown}</text>"

    scale = ", logarithmic" if is_log else ""
    better = "more is better" if workload.more_is_better else "less is better"
    title = f"{workload.title}, {int(size):,}: {workload.unit} ({better}{scale})"
    return _frame(760, 52 + 24 * len(order), title, body())


def _size(workload: Workload, found: Mapping[str, Any]) -> str:
    """The size of the table's row: 1,000 where it is one of several, else the first one."""
    sizes = sorted({size for by_size in found.values() for size in by_size}, key=int)
    return "1000" if "1000" in sizes else sizes[-1]
