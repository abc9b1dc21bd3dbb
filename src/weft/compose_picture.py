"""How what is composed looks: blocks, sequences and decisions as sketches, and what a drawing says of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from weft.compose import Decision
from weft.core.policy import Collect, FailFast, Need, Policy, Race, Tolerate
from weft.errors import UsageError
from weft.observe.sketch import IN, OUT, Part, Sketch, Way, chain
from weft.runnable import Runnable, called_in, drawn_part

if TYPE_CHECKING:
    from weft.compose import Parallel, Sequence
    from weft.engine.block import BlockOptions


def sketch_of_parallel(block: Parallel) -> Sketch:
    """Its branches side by side, between where they begin and where they meet."""
    names = ", ".join(block.branches)
    branches = [drawn_part(branch, label=key, step=key) for key, branch in block.branches.items()]
    note = said_of_block(block.options)
    if len(branches) == 1:
        return Sketch(block.key, block.step.name, note=note, parts=(branches[0],), ways=chain(1))
    fork, join = Part(f"{names} begin at once", kind="fork"), Part(f"{names} meet", kind="join")
    last = len(branches) + 1
    ways = [Way(0, number) for number in range(1, last)]
    ways += [Way(number, last, kind="join") for number in range(1, last)]
    return Sketch(
        block.key,
        block.step.name,
        note=note,
        parts=(fork, *branches, join),
        ways=(Way(IN, 0), *ways, Way(last, OUT)),
    )


def sketch_of_sequence(sequence: Sequence) -> Sketch:
    """Its steps one after the other, and where its decisions lead."""
    parts, ways = _Line(sequence.steps).drawn()
    label = sequence.own_name or "sequence"
    return Sketch(label, sequence.step.name, parts=parts, ways=ways, is_in_order=True)


def sketch_of_decision(decision: Decision) -> Sketch:
    """Itself, and what it can choose."""
    parts, ways = _Line([decision.within([])]).drawn()
    return Sketch(decision.key, decision.step.name, parts=parts, ways=ways, is_in_order=True)


class _Line:
    """The steps of a sequence, as they are drawn: what a decision may choose besides stands behind it."""

    def __init__(self, steps: list[Runnable]) -> None:
        self._steps = steps
        self._parts = [
            Part(step.key, step.choose.name, None, "router")
            if isinstance(step, Decision)
            else drawn_part(step)
            for step in steps
        ]
        self._ways = [Way(IN, 0)]

    def drawn(self) -> tuple[tuple[Part, ...], tuple[Way, ...]]:
        for place, step in enumerate(self._steps):
            if isinstance(step, Decision):
                self._decide(place, step)
            else:
                self._ways.append(Way(place, self._after(place)))
        return tuple(self._parts), tuple(self._ways)

    def _decide(self, place: int, decision: Decision) -> None:
        choices, beside = _choices_of(decision)
        for choice in choices:
            self._ways.append(Way(place, choice, kind="choice"))
        for part in beside:
            self._parts.append(part)
            number = len(self._parts) - 1
            self._ways += [Way(place, number, kind="choice"), Way(number, self._after(place))]

    def _after(self, place: int) -> int:
        return place + 1 if place + 1 < len(self._steps) else OUT


def _choices_of(decision: Decision) -> tuple[list[int], list[Part]]:
    """The places in the sequence to which it may jump, and what may run in its place; in order."""
    if decision.choices is None:
        named = [part for part in called_in(decision.func) if part.what not in decision.among]
        listed = {name: drawn_part(part, label=name) for name, part in decision.branches.items()}
        others = [part for part in named if part.step not in {each.step for each in listed.values()}]
        return [], [*listed.values(), *others, Part("any step that it names", kind="anywhere")]
    places, beside = [], []
    for choice in sorted(decision.choices):
        try:
            found = decision.resolve(choice)
        except UsageError:
            continue
        if isinstance(found, int):
            places.append(found)
        else:
            beside.append(drawn_part(found, label=choice))
    return sorted(places), beside


def said_of_block(options: BlockOptions) -> str:
    """What a drawing says of a block: how many at once, and what decides it, if that is not the usual."""
    width = options.max_concurrent
    policy = options.policy
    several = "" if width is None else "one at a time" if width == 1 else f"at most {width} at once"
    return ", ".join(filter(None, [several, _DECIDES.get(type(policy), str)(policy)]))


_DECIDES: dict[type[Policy], Callable[[Any], str]] = {
    FailFast: lambda _: "",
    Collect: lambda _: "failures are collected",
    Race: lambda _: "the first success wins",
    Need: lambda policy: f"{policy.count} successes are enough",
    Tolerate: lambda policy: f"tolerates {_tolerated(policy)}",
}


def _tolerated(policy: Tolerate) -> str:
    count = "" if policy.count is None else f"{policy.count} failures"
    ratio = "" if policy.ratio is None else f"{100 * policy.ratio:g}% of them"
    return " and ".join(filter(None, [count, ratio]))
