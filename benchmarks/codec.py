"""What the codec costs for values as steps return them.

    python benchmarks/codec.py [--against SRC] [--turns 7]

`--against` names the `src` directory of another checkout: both are then measured in turns, each turn in a fresh
process, and the ratio of the least figures is printed (below 1: this one is faster): other work on the machine
only adds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import timeit
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID

import weft
from weft.checkpoint.codec import Codec

HERE = Path(__file__).resolve().parent.parent / "src"
SECONDS = 0.02  # for one figure, three of which are taken in a turn


class Kind(Enum):
    A = "a"


@dataclass
class Row:
    name: str
    price: float
    tags: list[str]
    kind: Kind


def values() -> dict[str, object]:
    row = {"id": 17, "name": "a name", "score": 0.25, "ok": True, "tags": ["x", "y"], "more": None}
    return {
        "None": None,
        "int": 7,
        "text of 2 KB": "word " * 400,
        "small dict": row,
        "tuple": (1, "two", 3.0),
        "answer of a model": {"role": "assistant", "content": "word " * 200, "usage": {"in": 10, "out": 20}},
        "100 rows": [dict(row, id=i) for i in range(100)],
        "1,000 floats": [i * 0.5 for i in range(1_000)],
        "1,000 texts": [str(i) for i in range(1_000)],
        "100 tuples": [(i, str(i)) for i in range(100)],
        "a set of 100": {str(i) for i in range(100)},
        "ints as keys": {i: str(i) for i in range(1_000)},
        "a dict of 1,000": {str(i): i for i in range(1_000)},
        "100 datetimes": [datetime(2024, 1, 1, 1, i % 60, tzinfo=UTC) for i in range(100)],
        "100 decimals": [Decimal(i) / 8 for i in range(100)],
        "mixed": [deque([1, 2]), {1, 2}, UUID(int=5), b"bytes", 2**70, Decimal("1.5")],
        "dataclass": Row("n", 1.5, ["a"], Kind.A),
        "100 dataclasses": [Row(str(i), 1.5, ["a"], Kind.A) for i in range(100)],
        "10,000 rows": [dict(row, id=i) for i in range(10_000)],
        "an error": ValueError("wrong", 3),
    }


def figures() -> dict[str, float]:
    """Microseconds of each operation."""
    named = values()
    codec = Codec([Row])
    found: dict[str, float] = {}
    for name, value in named.items():
        data = codec.encode(value)
        for what, fn in (
            ("encode", lambda v=value: codec.encode(v)),
            ("decode", lambda d=data: codec.decode(d)),
        ):
            timer = timeit.Timer(fn)
            count = max(1, int(SECONDS / max(1e-7, min(timer.repeat(3, 1)))))
            found[f"{what} {name}"] = min(timer.repeat(3, count)) / count * 1e6
    return found


def turn(src: Path) -> dict[str, float]:
    done = subprocess.run(  # noqa: S603 - this file
        [sys.executable, __file__, "--child"],
        env={**os.environ, "PYTHONPATH": str(src)},
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)
    assert Path(found.pop("file")).is_relative_to(src), "another weft was measured"
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--against", type=Path)
    options.add_argument("--turns", type=int, default=7)
    options.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        print(json.dumps({**figures(), "file": weft.__file__}))
        return
    sources = [HERE, *([given.against.resolve()] if given.against else [])]
    turns: list[list[dict[str, float]]] = [[] for _ in sources]
    for _ in range(given.turns):
        for src, found in zip(sources, turns, strict=True):
            found.append(turn(src))
    ratios = []
    for name in turns[0][0]:
        least = [min(one[name] for one in found) for found in turns]
        line = f"{name:28} {least[0]:10.2f} µs"
        if given.against:
            ratios.append(least[0] / least[1])
            line += f"   before {least[1]:10.2f} µs   ratio {ratios[-1]:.2f}"
        print(line)
    if ratios:
        print(f"geometric mean of the ratios: {statistics.geometric_mean(ratios):.3f}")


if __name__ == "__main__":
    main()
