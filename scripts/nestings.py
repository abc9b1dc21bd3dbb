"""Run random nestings of the four styles, killed and resumed, and look whether each gives what it must.

    python scripts/nestings.py --trees 2000 [--seed N] [--start K]
    python scripts/nestings.py --only SEED [--shrink]     one again, with its description

See tests/support/nesting.py for what a nesting is, and what is looked at.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from nesting import all_in, description, drawn, kind_of, parts_of, shrunk, style_of, told

#: Seconds after which one of them is taken to stand still: the script ends, and the last number shown is the one.
HANGS = 120


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trees", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="where the numbers of the nestings begin")
    parser.add_argument("--start", type=int, default=0, help="how many to leave out")
    parser.add_argument("--only", type=int, default=None, help="the number of one nesting")
    parser.add_argument(
        "--store", choices=["", "memory", "sqlite"], default=None, help="instead of a random one"
    )
    parser.add_argument("--depth", type=int, default=None, help="instead of a random one")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which to stop")
    parser.add_argument("--most", type=int, default=10, help="failures after which to stop")
    parser.add_argument(
        "--shrink", action="store_true", help="with --only: look for a smaller one that fails so"
    )
    options = parser.parse_args()
    for name in ("weft", "asyncio"):  # of errors that nobody takes, where a run was killed
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.db"
        return alone(options, path) if options.only is not None else many(options, path)


def alone(options: argparse.Namespace, path: Path) -> int:
    plan = drawn(options.only, store=options.store, depth=options.depth)
    problems, _ = told(plan, path=path)
    if problems and options.shrink:
        plan = shrunk(plan, kind_of(problems), path=path)
        problems, _ = told(plan, path=path)
        print(plan)
    print(description(plan))
    print(*problems or ["nothing wrong"], sep="\n")
    return bool(problems)


def many(options: argparse.Namespace, path: Path) -> int:
    first = options.seed if options.seed is not None else random.randrange(10**6) * 10**6
    print(f"nestings {first + options.start} to {first + options.trees - 1}: --seed {first}", flush=True)
    began, failed, found, number = time.monotonic(), 0, Counter[str](), options.start
    for number in range(options.start, options.trees):
        plan = drawn(first + number, store=options.store, depth=options.depth)
        print(f"{first + number} ", end="\r", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        problems, story = told(plan, path=path)
        specs = [*all_in(plan.tree)]
        found.update(
            lives=story.lives, killed=story.killed, answered=story.questions, cancelled=story.cancelled
        )
        found.update(parts=len(specs))
        found.update({f"{style_of(part)} in {style_of(spec)}" for spec in specs for part in parts_of(spec)})
        if problems:
            failed += 1
            print(f"\n{description(plan)[:3000]}\n", *(each[:3000] for each in problems[:3]), sep="\n")
            print(f"{kind_of(problems)}; again: --only {first + number}\n", flush=True)
            if failed >= options.most:
                break
        if number % 500 == 499:
            print(f"{number + 1} nestings, {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
        if time.monotonic() - began > options.seconds:
            break
    print(dict(found))
    print(f"{number + 1 - options.start} nestings, {failed} with problems, {time.monotonic() - began:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
