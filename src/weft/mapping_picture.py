"""How a map looks, and a pipeline: what runs for each item, in a frame that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from weft.compose_picture import said_of_block
from weft.observe.sketch import Sketch, chain
from weft.runnable import Runnable, drawn_part

if TYPE_CHECKING:
    from weft.engine.block import BlockOptions


def sketch_of_map(name: str, part: Runnable, options: BlockOptions) -> Sketch:
    """What runs for each item, and how many at once."""
    return _framed(name, [part], said_of_block(options))


def sketch_of_pipeline(
    name: str, stages: Sequence[Runnable], widths: Mapping[str, int], options: BlockOptions
) -> Sketch:
    """What each item goes through, and how many may be in each."""
    at_once = ", ".join(f"{stage} {width}" for stage, width in widths.items())
    policy = said_of_block(replace(options, max_concurrent=None))
    return _framed(name, stages, f"at once: {at_once}" if at_once else "", policy)


def _framed(name: str, parts: Sequence[Runnable], *said: str) -> Sketch:
    drawn = tuple([drawn_part(part) for part in parts])
    note = ", ".join(filter(None, ["for each item", *said]))
    return Sketch(name, name, note=note, parts=drawn, ways=chain(len(drawn)))
