"""Change the code in small ways, one at a time, and see whether the tests notice.

    python scripts/mutate.py src/weft/checkpoint/wire.py [MODULE ...] --tests tests/checkpoint [PYTEST ARGUMENT ...]
        [--sample 200] [--seed N] [--jobs 2] [--timeout 60]

A mutant is a module with one comparison, operator, constant, condition, return value or statement changed. Each is
tested in a fork of a process that has pytest loaded, but not yet what is tested; only the named modules are
changed, in memory, so the checkout stays as it is and several runs can go on at once. A mutant that fails a test,
or takes longer than the timeout, is killed. Those that live are printed as they would read, each with its line:
write a test that fails for it, or see that it changes nothing that anybody could notice.

Annotations, docstrings and the texts of messages are not changed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    path: Path
    line: int
    what: str
    source: str


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(path.read_text())
    skipped = set(_not_code(tree))
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        for at in range(_count(node)):
            changed = copy.deepcopy(tree)
            target = next(one for index, one in enumerate(ast.walk(changed)) if index == number)
            before = ast.unparse(target)
            new = ast.fix_missing_locations(ast.copy_location(_changed(target, at), target))
            if new is not target:
                _replace(changed, target, new)
            after = ast.unparse(new)
            what = f"{_short(before)}  ->  {_short(after)}"
            yield Mutant(
                path, getattr(node, "lineno", 0), what, ast.unparse(ast.fix_missing_locations(changed))
            )


def _not_code(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        inert: list[Any] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.JoinedStr):
            inert.append(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inert.append(node)
        if isinstance(node, ast.Assign | ast.If) and "__all__" in ast.dump(node):
            inert.append(node)
        for one in inert:
            if one is not None:
                yield from map(id, ast.walk(one))


def _count(node: ast.AST) -> int:
    """In how many ways a node can be changed."""
    if isinstance(node, ast.Compare):
        return len(node.ops)
    if isinstance(node, ast.BinOp):
        return int(type(node.op) in COMPUTED)
    if isinstance(node, ast.Constant):
        return int(isinstance(node.value, int | float | str | bytes))
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        return 2 if not isinstance(node, ast.While) else 1
    if isinstance(node, ast.Expr):
        return int(isinstance(node.value, ast.Call | ast.Await))
    if isinstance(node, ast.Return):
        return int(node.value is not None and not _is_none(node.value))
    return int(
        isinstance(node, ast.BoolOp | ast.Raise | ast.AugAssign | ast.Break | ast.Continue) or _is_not(node)
    )


def _changed(node: Any, at: int) -> ast.AST:
    """The node changed in place, or what takes its place."""
    if isinstance(node, ast.Compare):
        node.ops[at] = COMPARED[type(node.ops[at])]()
    elif isinstance(node, ast.BinOp):
        node.op = COMPUTED[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.Constant):
        node.value = _other(node.value)
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.Constant(bool(at))
    elif isinstance(node, ast.While):
        node.test = ast.Constant(False)
    elif isinstance(node, ast.Return):
        node.value = ast.Constant(None)
    elif isinstance(node, ast.AugAssign):
        return ast.Assign([node.target], node.value)
    elif isinstance(node, ast.Break):
        return ast.Continue()
    elif isinstance(node, ast.Continue):
        return ast.Break()
    elif _is_not(node):
        return node.operand
    else:
        return ast.Pass()
    return node


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + (b"x" if isinstance(value, bytes) else "x")


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_not(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and any(one is old for one in value):
                setattr(parent, name, [new if one is old else one for one in value])


def _short(text: str) -> str:
    first = text.partition("\n")[0]
    return first if len(first) <= 90 else first[:89] + "…"


# Testing one


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the mutant in the place of its module."""

    def __init__(self, name: str, mutant: Mutant) -> None:
        self.name = name
        self.mutant = mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        return importlib.machinery.ModuleSpec(name, self, origin=str(self.mutant.path))

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        module.__file__ = str(self.mutant.path)
        exec(compile(self.mutant.source, str(self.mutant.path), "exec"), vars(module))


def module_name(path: Path) -> str:
    parts = path.resolve().with_suffix("").parts
    return ".".join(parts[len(parts) - parts[::-1].index("src") :])


def is_killed(mutant: Mutant | None, arguments: list[str], timeout: float) -> bool:
    """Whether the tests fail with it."""
    child = os.fork()
    if child == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if mutant is not None:
            sys.meta_path.insert(0, Changed(module_name(mutant.path), mutant))
        code = 1
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments]))
        finally:
            os._exit(int(code != 0))
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("modules", nargs="+", type=Path)
    options.add_argument(
        "--tests", nargs=argparse.REMAINDER, required=True, help="arguments of pytest; the last option"
    )
    options.add_argument("--sample", type=int, help="so many mutants, chosen at random; all by default")
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options.add_argument("--timeout", type=float, default=60.0, help="seconds for the tests of one mutant")
    given = options.parse_args()
    if is_killed(None, given.tests, given.timeout * 5):
        print("the tests fail without any change")
        return 2
    mutants = [mutant for path in given.modules for mutant in mutants_of(path)]
    chosen = random.Random(given.seed).sample(mutants, given.sample) if given.sample else mutants
    print(f"seed {given.seed}: {len(chosen)} of {len(mutants)} mutants")
    killed: dict[Path, int] = dict.fromkeys(given.modules, 0)
    with ThreadPoolExecutor(given.jobs) as pool:
        results = pool.map(lambda mutant: is_killed(mutant, given.tests, given.timeout), chosen)
        for mutant, dead in zip(chosen, results, strict=True):
            killed[mutant.path] += dead
            if not dead:
                print(f"lives: {mutant.path}:{mutant.line}  {mutant.what}", flush=True)
    for path in given.modules:
        count = sum(mutant.path == path for mutant in chosen)
        print(f"{path}: {killed[path]} of {count} killed")
    print(
        f"{sum(killed.values())} of {len(chosen)} killed, {100 * sum(killed.values()) / max(1, len(chosen)):.1f} %"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
