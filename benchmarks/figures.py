"""Medians, ratios, growth, targets and tables, of what `run.py` has measured.

    python benchmarks/figures.py FILE.json PAGE.md

writes the tables of a page anew: what stands between `<!-- name -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import contenders
from workloads import WORKLOADS, Workload

#: workload -> contender -> size -> measure -> one value a turn
Results = dict[str, dict[str, dict[str, dict[str, list[float]]]]]
Skipped = dict[str, dict[str, dict[str, str]]]


@dataclass(frozen=True)
class Target:
    """What a figure of ours must not be above (or below): a ratio to `limit`, or the figure itself."""

    workload: str
    who: tuple[str, ...]
    measure: str
    at_most: float | None = None
    at_least: float | None = None
    limit: str = ""
    sizes: tuple[str, ...] = ()


STYLES = ("weft functional", "weft compose", "weft graph", "weft batch")
ALL = (*STYLES, "weft map")

TARGETS = (
    Target("chain", STYLES, "us", 1.5, limit="asyncio", sizes=("1000",)),
    Target("fanout", STYLES, "us", 2, limit="asyncio"),
    Target("fanout", ("weft map",), "us", 1, limit="asyncio"),
    Target("wait", ALL, "efficiency", at_least=0.94),
    Target("threads", ALL, "efficiency", at_least=0.99),
    Target("threads", ALL, "lag_ms", 2),
    Target("durable-fanout", ALL, "us", 2.5, limit="sqlite", sizes=("1000",)),
    Target("durable-chain", STYLES, "us", 1.6, limit="sqlite"),
    Target("durable-chain", STYLES, "us", 1.3, limit="sqlite"),  # where a commit can be made on the spot
    Target("memory", ALL, "bytes", 2_500),
    Target("runs", STYLES, "per_second", at_least=25_000),
    Target("durable-runs", STYLES, "per_second", at_least=6_000),
    Target("import", ALL, "ms", 100),
    Target("resume", ALL, "us", 10),
)


def ratio(results: Results, workload: str, name: str, limit: str, size: str, measure: str) -> float | None:
    """How many times the limit's: the median of the turns' ratios."""
    own = results.get(workload, {}).get(name, {}).get(size, {}).get(measure)
    theirs = results.get(workload, {}).get(limit, {}).get(size, {}).get(measure)
    if not own or not theirs:
        return None
    return median(mine / other for mine, other in zip(own, theirs, strict=False))


def growth(results: Results, workload: str, name: str, start: str, end: str) -> float | None:
    """By how many times what one step costs grows from a size to another: the medians'."""
    by_size = results.get(workload, {}).get(name, {})
    if start not in by_size or end not in by_size:
        return None
    return median(by_size[end]["us"]) / median(by_size[start]["us"])


def judge(results: Results) -> list[dict[str, Any]]:
    """Each target that was measured, with the figure and whether it is met."""
    return [verdict for target in TARGETS for verdict in _judged(results, target)]


def _judged(results: Results, target: Target) -> Iterator[dict[str, Any]]:
    for name in target.who:
        for size, measures in results.get(target.workload, {}).get(name, {}).items():
            if target.sizes and size not in target.sizes:
                continue
            figure: float | None = median(measures[target.measure])
            if target.limit:
                figure = ratio(results, target.workload, name, target.limit, size, target.measure)
            if figure is None:
                continue
            met = figure <= target.at_most if target.at_most is not None else figure >= (target.at_least or 0)
            yield {
                "workload": target.workload,
                "contender": name,
                "size": int(size),
                "measure": f"times {target.limit}" if target.limit else target.measure,
                "figure": round(figure, 3),
                "at_most": target.at_most,
                "at_least": target.at_least,
                "met": met,
            }


def updated(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, with the workloads that were measured anew; says which, and under what load."""
    merged = dict(before)
    for part in ("contenders", "results", "skipped"):
        kept = {name: value for name, value in before[part].items() if name not in new["results"]}
        merged[part] = {**kept, **new[part]}
    anew = dict.fromkeys(new["results"], new["machine"])
    merged["anew"] = {**before.get("anew", {}), **anew}
    return merged


def verdicts(targets: list[dict[str, Any]]) -> Iterator[str]:
    if targets:
        yield "\ntargets"
    for verdict in targets:
        bound = (
            f"<= {verdict['at_most']:g}" if verdict["at_most"] is not None else f">= {verdict['at_least']:g}"
        )
        yield (
            f"  {'pass' if verdict['met'] else 'MISS'}  {number(verdict['figure']):>8} {bound:10} "
            f"{verdict['workload']} at {verdict['size']:,}, {verdict['contender']}: {verdict['measure']}"
        )


# --- What is printed --------------------------------------------------------------------------------------------


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))}..{number(max(values))})"


def lines(workload: Workload, results: Results, skipped: Skipped) -> Iterator[str]:
    """The table of a workload: a line for each contender and size, with its ratios to the limits."""
    found, without = results.get(workload.name, {}), skipped.get(workload.name, {})
    if not found:
        return
    yield f"\n{workload.name}: {workload.title} ({workload.unit})"
    for name in dict.fromkeys((*found, *without)):
        for size, measures in found.get(name, {}).items():
            times = [
                f"{found_ratio:.2f} x {limit}"
                for limit in workload.limits
                if limit != name
                and (found_ratio := ratio(results, workload.name, name, limit, size, workload.main))
                is not None
            ]
            others = [f"{key} {spread(values)}" for key, values in measures.items() if key != workload.main]
            head = f"  {name:22}{int(size):>8,}  {spread(measures[workload.main]):26}"
            yield f"{head} {'; '.join([*times, *others])}".rstrip()
        for size, why in without.get(name, {}).items():
            yield f"  {name:22}{size:>8}  not measured: {why}"


# --- The page of the documentation ------------------------------------------------------------------------------


def page(content: Mapping[str, Any], text: str) -> str:
    """The page with its marked parts written anew."""
    parts = {"machine": _machine(content), "versions": _versions(content), "targets": _targets(content)}
    parts |= {workload.name: _table(workload, content) for workload in WORKLOADS}
    parts["growth"] = _growth(content)
    for name, lines_of_part in parts.items():
        body = "\n".join(lines_of_part).replace("\\", "\\\\")
        text = re.sub(
            rf"(?s)<!-- {re.escape(name)} -->.*?<!-- end -->",
            f"<!-- {name} -->\n\n{body}\n\n<!-- end -->",
            text,
        )
    return text


def _machine(content: Mapping[str, Any]) -> Iterator[str]:
    about = content["machine"]
    load, after = about["load"][0], about.get("load after", about["load"])[0]
    yield (
        f"Measured on {about['date']} UTC in {content['seconds']} s: {about['platform']}, {about['cores']} cores, "
        f"CPython {about['python']}, SQLite {about['sqlite']} on {about['filesystem']}, event loop of {about['loop']}. "
        f"The load of the machine was {load} before and {after} after; the benchmark itself is about 1."
    )
    for name, anew in content.get("anew", {}).items():
        load, after = anew["load"][0], anew["load after"][0]
        yield f"`{name}` was measured on {anew['date']} UTC; the load was {load} before and {after} after."


def _versions(content: Mapping[str, Any]) -> Iterator[str]:
    known: dict[str, str] = {}
    for about in content["contenders"].values():
        known |= about["versions"]
    yield ", ".join(f"{package} {version}" for package, version in known.items()) + "."
    if missing := [name for name, about in content["contenders"].items() if "missing" in about]:
        yield f"\nNot installed there: {', '.join(missing)}."


def _cell(workload: Workload, results: Results, name: str, size: str) -> str:
    measures = results.get(workload.name, {}).get(name, {}).get(size)
    if not measures:
        return ""
    shown = spread(measures[workload.main])
    limit = workload.limits[0] if workload.limits else ""
    times = ratio(results, workload.name, name, limit, size, workload.main) if limit != name else None
    if times is not None and workload.main in {"us", "bytes"}:
        shown += f" = **{times:.2g}** x" if times < 99.5 else f" = **{times:,.0f}** x"
    if "lag_ms" in measures:
        shown += f", lag {number(median(measures['lag_ms']))} ms"
    return shown


def _table(workload: Workload, content: Mapping[str, Any]) -> Iterator[str]:
    results, skipped = content["results"], content["skipped"].get(workload.name, {})
    found = results.get(workload.name, {})
    sizes = sorted({size for by_size in found.values() for size in by_size}, key=int)
    heads = [f"{int(size):,}" for size in sizes] if workload.name != "import" else ["ms"]
    yield f"| {workload.unit} | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(heads)}"
    for name in found:
        cells = [
            _cell(workload, results, name, size) or _why(skipped.get(name, {}).get(size, ""))
            for size in sizes
        ]
        yield f"| {_shown(name)} | {' | '.join(cells)} |"
    reasons: dict[str, list[str]] = {}
    for name, by_size in skipped.items():
        if "all" in by_size and name not in contenders.LIMITS:
            reasons.setdefault(by_size["all"], []).append(_shown(name))
    if reasons:
        yield ""
        yield "Not measured: " + "; ".join(f"{', '.join(who)} ({why})" for why, who in reasons.items()) + "."


def _why(reason: str) -> str:
    return f"*{reason}*" if reason else ""


def _shown(name: str) -> str:
    return f"**{name[0].upper()}{name[1:]}**" if name in contenders.OURS else name


def _targets(content: Mapping[str, Any]) -> Iterator[str]:
    yield "| | size | target | figure | |"
    yield "|---|---|---|---|---|"
    for verdict in content["targets"]:
        bound = (
            f"≤ {verdict['at_most']:g}" if verdict["at_most"] is not None else f"≥ {verdict['at_least']:g}"
        )
        yield (
            f"| {verdict['workload']}, {verdict['contender'].removeprefix('weft ')} | {verdict['size']:,} | "
            f"{bound} {verdict['measure']} | {number(verdict['figure'])} | {'' if verdict['met'] else '**missed**'} |"
        )


def _growth(content: Mapping[str, Any]) -> Iterator[str]:
    spans = (("chain", "1000", "100000"), ("fanout", "1000", "10000"), ("fanout", "1000", "100000"))
    yield "| | " + " | ".join(f"{name}, {int(a):,} to {int(b):,}" for name, a, b in spans) + " |"
    yield f"|---|{'---|' * len(spans)}"
    for name in contenders.NAMES:
        grown = [growth(content["results"], workload, name, a, b) for workload, a, b in spans]
        if any(value is not None for value in grown):
            cells = " | ".join("" if value is None else f"x {value:.2g}" for value in grown)
            yield f"| {_shown(name)} | {cells} |"


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: python benchmarks/figures.py FILE.json PAGE.md")
    source, target = map(Path, sys.argv[1:])
    content = json.loads(source.read_text(encoding="utf-8"))
    target.write_text(page(content, target.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
