"""Change the code in one place at a time, and see whether the tests notice.

    python scripts/mutate.py core [codec] [stores] [postgres] [--sample 150] [--seed N] [--jobs 2]
        [--only PATH[:FIRST[-LAST]] ...] [--tests PYTEST ARGUMENTS] [--survivors FILE] [--again FILE] [--slow]

A mutant is a module with one comparison, boolean operator, constant, condition, returned value, argument, statement or
``except`` body changed. The checkout is never touched: every worker has a copy of it, changes one file of the copy,
runs the tests that TARGETS names for that file, and puts the file back. The tests are reproducible: Hypothesis is
derandomized, and what draws by itself draws from the seed. Before any mutant, the same tests must pass with nothing
changed, in every copy; otherwise there is no figure.

The mutants are a sample, drawn by the seed from all that the named groups have, so a file counts by its size. Those
that live are printed with their line and change: write a test that fails for it, or see that nobody could notice.
A mutant that takes far longer than the unchanged code, twice, is counted apart from those that a test refused.

Not changed are annotations, decorators, docstrings, strings, ``__all__``, asserts and imports.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COPIED = ["src", "tests", "scripts", "examples", "docs", "pyproject.toml"]
SLOW = (
    "100_000 or fork_of_10_000 or many_turns or ten_thousand or 10_000 or ten_times or random_graphs or crowd or "
    "laughing or hostile or fuzzer or process or kill or silent or time_of_day or gives_signs or two_tenants or "
    "long_line or far_too_deep or damaged_bytes or fight or zombie or beats"
)
"""Parts of the names of tests that take most of the time and find little that others do not."""
VERY_SLOW = "fuzzer or fight or audit_of_zombies or laughing"
"""The same, where all others have their turn."""


@dataclass(frozen=True)
class Target:
    """Modules, and the test files that are to notice what is changed in them, the most telling first."""

    modules: str
    tests: str
    more: str = ""
    """Others, for what lives through these: see ``--slow``."""
    only: str = ""
    """An expression of pytest's ``-k``, besides SLOW."""


def _modules(layer: str, names: str) -> str:
    return " ".join(f"src/weft/{layer}/{name}.py" for name in names.split())


TARGETS: dict[str, list[Target]] = {
    "core": [
        Target(
            _modules("core", "activation branches graph_plan dominators"),
            "tests/core/test_activation.py tests/test_graph_branches.py tests/test_graph.py tests/test_graph_errors.py",
            more="tests/test_graph_callbacks.py tests/test_graph_durable.py tests/test_graph_forks.py",
        ),
        Target(
            _modules("core", "graph_state state_merge"),
            "tests/core/test_graph_state.py tests/test_graph.py tests/test_graph_errors.py",
        ),
        Target(
            _modules("core", "binding graph_binding"),
            "tests/core/test_binding.py tests/test_graph_errors.py tests/test_graph.py tests/test_compose.py",
        ),
        Target(
            _modules("core", "checks timeout"),
            "tests/core/test_checks.py tests/test_compose_policies.py tests/test_functional_policies.py",
        ),
        Target(_modules("core", "choices"), "tests/test_compose_decisions.py"),
        Target(_modules("core", "limits"), "tests/core/test_limits.py tests/test_compose_limits.py"),
        Target(
            _modules("core", "outcome policy retry"),
            "tests/core/test_policy.py tests/core/test_retry.py tests/test_compose_policies.py "
            "tests/test_functional_policies.py tests/test_mapping.py",
        ),
        Target(
            _modules("core", "question"), "tests/core/test_question.py tests/test_functional_questions.py"
        ),
        Target(_modules("core", "sizing"), "tests/core/test_sizing.py tests/test_compose.py"),
        Target(
            _modules("core", "identity visibility"),
            "tests/core/test_identity.py tests/core/test_visibility.py tests/test_functional_runs.py",
        ),
    ],
    "codec": [
        Target(
            _modules("checkpoint", "errors_codec"),
            "tests/checkpoint/test_codec_errors.py tests/checkpoint/test_codec.py "
            "tests/checkpoint/test_codec_values.py tests/checkpoint/test_codec_limits.py",
        ),
        Target(
            _modules("checkpoint", "codec wire builtin_types shapes hints"),
            "tests/checkpoint/test_codec_values.py tests/checkpoint/test_codec.py "
            "tests/checkpoint/test_codec_errors.py tests/checkpoint/test_codec_limits.py",
        ),
    ],
    "stores": [
        Target(_modules("checkpoint", "url"), "tests/checkpoint/test_url.py"),
        Target(
            _modules("checkpoint", "memory"),
            "tests/checkpoint/test_memory.py tests/checkpoint/test_keep.py",
            only="not postgres and not sqlite",
        ),
        Target(
            _modules("checkpoint", "owner"),
            "tests/checkpoint/test_owner.py tests/checkpoint/test_lease.py tests/checkpoint/test_sqlite.py",
            only="not postgres",
        ),
        Target(
            _modules("checkpoint", "keep rows"),
            "tests/checkpoint/test_keep.py tests/checkpoint/test_memory.py tests/checkpoint/test_sqlite.py",
        ),
        Target(
            _modules("checkpoint", "sqlite sqlite_rows sqlite_link sqlite_upkeep"),
            "tests/checkpoint/test_keep.py tests/checkpoint/test_sqlite.py tests/checkpoint/test_lease.py",
            more="tests/checkpoint/test_torn.py",
            only="not postgres",
        ),
    ],
    "postgres": [
        Target(
            _modules("checkpoint", "postgres postgres_link postgres_sql postgres_upkeep"),
            "tests/checkpoint/test_keep.py tests/checkpoint/test_postgres.py",
            only="not sqlite and not TestPooled",
        ),
    ],
}


# What is changed


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the bytes from ``start`` to ``end`` become ``new``."""

    path: str
    line: int
    start: int
    end: int
    new: str
    old: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}  {_short(self.old)}  ->  {_short(self.new)}"


def mutants_of(root: Path, path: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    source = (root / path).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree = ast.parse(source)
    inert = {id(node) for part in _inert(tree) for node in ast.walk(part)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in inert:
            continue
        for first, last, new in _changes(node, inert):
            start = starts[first.lineno - 1] + first.col_offset
            end = starts[(last.end_lineno or 0) - 1] + (last.end_col_offset or 0)
            old = source[start:end].decode()
            found.add(Mutant(path, first.lineno, start, end, new, old))
    return sorted(found, key=lambda one: (one.start, one.end, one.new))


def _inert(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                yield getattr(node, name)
        yield from getattr(node, "decorator_list", [])
        if isinstance(node, ast.JoinedStr | ast.Assert):
            yield node
        if isinstance(node, ast.Assign | ast.If) and _names_what_is_not_run(node):
            yield node


def _names_what_is_not_run(node: ast.Assign | ast.If) -> bool:
    shown = node.targets if isinstance(node, ast.Assign) else [node.test]
    return any(isinstance(one, ast.Name) and one.id in {"__all__", "TYPE_CHECKING"} for one in shown)


Change = tuple[Any, Any, str]
"""The first and last node that are replaced, and by what."""


def _changes(node: Any, inert: set[int]) -> Iterator[Change]:
    change = CHANGES.get(type(node))
    if change is not None:
        for new in change(node):
            yield node, node, new
    test = getattr(node, "test", None)
    if test is not None and id(test) not in inert and not isinstance(test, ast.Compare | ast.UnaryOp):
        yield test, test, f"(not ({ast.unparse(test)}))"
    if isinstance(node, ast.ExceptHandler | ast.Try):
        yield from _changed_handling(node)


def _changed_handling(node: ast.ExceptHandler | ast.Try) -> Iterator[Change]:
    """Errors passed over, or never met, and nothing tidied up."""
    body = node.body if isinstance(node, ast.ExceptHandler) else node.finalbody
    if not body:
        return
    if not isinstance(body[0], ast.Pass):
        yield body[0], body[-1], "pass"
    if isinstance(node, ast.ExceptHandler) and not isinstance(body[0], ast.Raise):
        yield body[0], body[-1], "raise"


COMPARED: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt], ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}  # fmt: skip
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


def _compared(node: ast.Compare) -> Iterator[str]:
    for at, op in enumerate(node.ops):
        for other in COMPARED[type(op)]:
            yield _written(
                ast.Compare(node.left, [*node.ops[:at], other(), *node.ops[at + 1 :]], node.comparators)
            )


def _either(node: ast.BoolOp) -> Iterator[str]:
    yield _written(ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values))
    for at in range(len(node.values)):
        rest = [*node.values[:at], *node.values[at + 1 :]]
        yield _written(rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest))


def _computed(node: ast.BinOp) -> Iterator[str]:
    if type(node.op) in COMPUTED and not isinstance(node.left, ast.Constant | ast.JoinedStr):
        yield _written(ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right))


def _constant(node: ast.Constant) -> Iterator[str]:
    if isinstance(node.value, bool):
        yield str(not node.value)
    elif isinstance(node.value, int | float):
        yield f"({node.value + 1!r})"
        yield f"({node.value - 1!r})"


def _negated(node: ast.UnaryOp) -> Iterator[str]:
    if isinstance(node.op, ast.Not | ast.USub):
        yield _written(node.operand)


def _called(node: ast.Call) -> Iterator[str]:
    """Two arguments swapped, or one that has a default left out."""
    if isinstance(node.func, ast.Name) and node.func.id in {"isinstance", "issubclass", "cast"}:
        return  # swapped, it is an error wherever it is met, or nothing
    plain = [at for at, one in enumerate(node.args) if not isinstance(one, ast.Starred)]
    if len(plain) >= 2 and ast.dump(node.args[plain[0]]) != ast.dump(node.args[plain[1]]):
        swapped = list(node.args)
        swapped[plain[0]], swapped[plain[1]] = swapped[plain[1]], swapped[plain[0]]
        yield ast.unparse(ast.Call(node.func, swapped, node.keywords))
    for at in range(len(node.keywords)):
        rest = [*node.keywords[:at], *node.keywords[at + 1 :]]
        yield ast.unparse(ast.Call(node.func, node.args, rest))


def _returned(node: ast.Return) -> Iterator[str]:
    if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield "return None"


def _stated(node: ast.Expr) -> Iterator[str]:
    if not isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom):
        yield "pass"


def _assigned(node: ast.Assign) -> Iterator[str]:
    """What is kept in an object is left out; a local name would only be missing."""
    if all(isinstance(one, ast.Attribute | ast.Subscript) for one in node.targets):
        yield "pass"


def _left_out(_node: ast.AST) -> Iterator[str]:
    yield "pass"


CHANGES: dict[type[ast.AST], Callable[[Any], Iterator[str]]] = {
    ast.Compare: _compared,
    ast.BoolOp: _either,
    ast.BinOp: _computed,
    ast.Constant: _constant,
    ast.UnaryOp: _negated,
    ast.Call: _called,
    ast.Return: _returned,
    ast.Expr: _stated,
    ast.Assign: _assigned,
    ast.AugAssign: _left_out,
    ast.Raise: _left_out,
    ast.Delete: _left_out,
    ast.Break: lambda _node: iter(["continue"]),
    ast.Continue: lambda _node: iter(["break"]),
}


def _written(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:99] + "…"


# Whether the tests notice


class Fate(Enum):
    """What became of a mutant."""

    LIVES = "survived"
    REFUSED = "killed by a test"
    BROKEN = "killed by not even being imported"
    LATE = "timed out"


FATES = {0: Fate.LIVES, 1: Fate.REFUSED, 2: Fate.BROKEN, 3: Fate.REFUSED, 4: Fate.BROKEN}
"""By what pytest ends with; 2 and 4 are errors of collection, as the same tests have run without the change."""


class Copy:
    """A copy of the checkout, in which one file at a time is changed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.root = folder
        self._seed = seed
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (ROOT / name).exists():
                shutil.copy2(ROOT / name, folder / name)
        self._check_that_it_is_what_is_imported()

    def _check_that_it_is_what_is_imported(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "import weft; print(weft.__file__)"],
            cwd=self.root, env=self._environment(keep=False), capture_output=True, text=True, check=True,
        )  # fmt: skip
        if not Path(done.stdout.strip()).is_relative_to(self.root):
            raise SystemExit(
                f"the tests would import {done.stdout.strip()}, which is not of the copy {self.root}"
            )

    def run(self, mutant: Mutant, tests: list[str], timeout: float) -> Fate:
        """What the tests say of a mutant; ``timeout`` is in seconds."""
        file = self.root / mutant.path
        before = file.read_bytes()
        # The stamp of a bytecode file is too coarse to tell a change of the same length within a second.
        for stale in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
            stale.unlink()
        file.write_bytes(before[: mutant.start] + mutant.new.encode() + before[mutant.end :])
        try:
            code = self.test(tests, timeout=timeout)
        finally:
            file.write_bytes(before)
        if code is None:
            return Fate.LATE
        return FATES.get(code, Fate.REFUSED)

    def test(
        self, tests: list[str], *, timeout: float, keep: bool = False, shown: bool = False
    ) -> int | None:
        """The exit code of pytest, None if it took longer than ``timeout`` seconds."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["--hypothesis-profile=ci", *tests]
        quiet = None if shown else subprocess.DEVNULL
        process = subprocess.Popen(
            command, cwd=self.root, env=self._environment(keep=keep), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=quiet, stderr=quiet,
        )  # fmt: skip
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)

    def _environment(self, *, keep: bool) -> dict[str, str]:
        """``keep`` whether bytecode is: of what is unchanged, once."""
        found = {**os.environ, "PYTHONPATH": str(self.root / "src")}
        found["WEFT_SEED"] = str(self._seed)
        found["PYTHONDONTWRITEBYTECODE"] = "" if keep else "1"
        return found


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """What the tests have started is of the same session, and ends with them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# The sample


def all_mutants(groups: list[str], only: list[str], *, slow: bool = False) -> dict[Mutant, list[str]]:
    """What can be changed in the modules of these groups, each with the arguments for its tests."""
    found = {}
    for target in (one for group in groups for one in TARGETS[group]):
        files = target.tests.split() + (target.more.split() if slow else [])
        chosen = [f"not ({VERY_SLOW if slow else SLOW})", *filter(None, [target.only])]
        tests = [*files, "-k", " and ".join(chosen)]
        for path in target.modules.split():
            for mutant in mutants_of(ROOT, path):
                if not only or any(_is_within(mutant, place) for place in only):
                    found[mutant] = tests
    return found


def _is_within(mutant: Mutant, place: str) -> bool:
    path, _, lines = place.partition(":")
    if not mutant.path.endswith(path):
        return False
    first, _, last = lines.partition("-")
    return not lines or int(first) <= mutant.line <= int(last or first)


def measured(copies: list[Copy], wanted: list[list[str]]) -> dict[tuple[str, ...], float]:
    """How many seconds each list of tests takes with nothing changed; it must pass in every copy."""
    took = {}
    for tests in wanted:
        with ThreadPoolExecutor(len(copies)) as pool:  # all at once, as later
            before = time.monotonic()
            codes = list(pool.map(lambda copy: copy.test(tests, timeout=600, keep=True), copies))  # noqa: B023
        took[tuple(tests)] = time.monotonic() - before
        if any(codes):
            copies[0].test(tests, timeout=600, keep=True, shown=True)
            raise SystemExit(f"without any change, these tests fail: {' '.join(tests)}")
        print(f"{took[tuple(tests)]:6.1f} s unchanged: {' '.join(tests[:-2])}", flush=True)
    return took


def main() -> int:
    # A shell starts what is in its background with Ctrl-C ignored, and so would be every process that a test sends it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given = _options()
    every = all_mutants(given.groups, given.only, slow=given.slow)
    if given.again:
        listed = set(given.again.read_text().splitlines())
        every = {mutant: tests for mutant, tests in every.items() if str(mutant) in listed}
    if given.tests:
        every = dict.fromkeys(every, shlex.split(given.tests))
    if not every:
        raise SystemExit("nothing can be changed there")
    drawn = random.Random(given.seed)
    chosen = drawn.sample(list(every), min(given.sample or len(every), len(every)))
    print(f"seed {given.seed}: {len(chosen)} of {len(every)} mutants of {' '.join(given.groups)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy(Path(folder) / str(number), given.seed) for number in range(given.jobs)]
        wanted = [list(one) for one in dict.fromkeys(tuple(every[mutant]) for mutant in chosen)]
        took = measured(copies, wanted)
        fates = _tell(chosen, every, took, copies)
    _sum_up(fates)
    if given.survivors:
        given.survivors.write_text("".join(f"{one}\n" for one in fates if fates[one] is Fate.LIVES))
    return 0


def _tell(
    chosen: list[Mutant],
    every: dict[Mutant, list[str]],
    took: dict[tuple[str, ...], float],
    copies: list[Copy],
) -> dict[Mutant, Fate]:
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def tell(mutant: Mutant) -> Fate:
        copy = free.get()
        try:
            limit = 3 * took[tuple(every[mutant])] + 10
            fate = copy.run(mutant, every[mutant], limit)
            # Others may have had the machine for a while: only who is late twice is late.
            return copy.run(mutant, every[mutant], 3 * limit) if fate is Fate.LATE else fate
        finally:
            free.put(copy)

    fates = {}
    pool = ThreadPoolExecutor(len(copies))
    try:
        for mutant, fate in zip(chosen, pool.map(tell, chosen), strict=True):
            fates[mutant] = fate
            if fate in {Fate.LIVES, Fate.LATE}:
                print(f"{fate.value}: {mutant}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # at Ctrl-C only what is under way is waited for
    return fates


def _sum_up(fates: dict[Mutant, Fate]) -> None:
    for path in sorted({mutant.path for mutant in fates}):
        here = Counter(fate for mutant, fate in fates.items() if mutant.path == path)
        print(f"{path}: " + ", ".join(f"{here[fate]} {fate.value}" for fate in Fate if here[fate]))
    counts = Counter(fates.values())
    dead = counts[Fate.REFUSED] + counts[Fate.BROKEN]
    print(", ".join(f"{counts[fate]} {fate.value}" for fate in Fate))
    print(f"{dead} of {len(fates)} killed, {100 * dead / len(fates):.1f} %", end="; ")
    print(f"{100 * (dead + counts[Fate.LATE]) / len(fates):.1f} % with those that timed out")


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("groups", nargs="+", choices=TARGETS)
    options.add_argument("--sample", type=int, help="so many mutants, chosen at random; all by default")
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 2**32))
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--only", nargs="+", default=[], help="only what is in these files or lines")
    options.add_argument("--tests", help="arguments of pytest, instead of those for each file")
    options.add_argument("--survivors", type=Path, help="a file for the list of those that live")
    options.add_argument(
        "--slow", action="store_true", help="with nearly all tests: for what lived through the others"
    )
    options.add_argument("--again", type=Path, help="only what such a list names")
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(main())
