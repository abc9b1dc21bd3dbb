"""A lower layer never imports a higher one, and `core` only decides."""

import ast
from pathlib import Path

import pytest

import weft

ROOT = Path(weft.__file__).parent

# The lower first. A module belongs to the layer that names it, or its package.
LAYERS = [
    {"errors"},
    {"core"},
    {"machine"},
    {"executors"},
    {"types", "cache", "memory"},  # small values and stores that the styles hand to bodies
    {"checkpoint"},
    {"engine"},
    {"observe"},
    {"run", "events"},
    {
        "provided",
        "runnable",
        "functional",
        "nodes",
        "compose",
        "compose_picture",
        "elsewhere",
        "mapping",
        "mapping_picture",
        "batch",
        "graph",
        "graph_callback",
        "graph_forks",
        "graph_nodes",
        "graph_picture",
        "graph_run",
        "graph_sides",
        "batch_hooks",
        "batch_options",
        "batch_picture",
        "batch_plain",
        "batch_runs",
        "batch_shared",
        "state",
        "history",
        "fork",
        "resume_plan",
    },
    {"testing"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LEVEL[""] = LEVEL["cli"]  # `import weft`: the facade may load anything, so only the top may use it

# What would let `core` act, or see the world change while it decides.
IMPURE = {
    "asyncio", "concurrent", "ctypes", "datetime", "http", "io", "logging", "multiprocessing", "os",
    "pathlib", "queue", "sched", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl",
    "subprocess", "sys", "tempfile", "threading", "time", "urllib", "uuid", "weakref",
}  # fmt: skip


def modules():
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def unit_of(path):
    """The layer's name for a file: its package, or its own name at the top."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports_of(path):
    """(line, module) of every import, those in functions and under TYPE_CHECKING too."""
    package = ["weft", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            # `from weft import x` may import a module of ours
            names = [f"weft.{alias.name}" for alias in node.names] if module == "weft" else [module]
            yield from ((node.lineno, name) for name in names)


def test_every_module_has_a_layer():
    assert {unit_of(path) for path in modules()} <= set(LEVEL), "name the new module in LAYERS"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_a_higher_layer(path):
    level = LEVEL[unit_of(path)]
    for line, module in imports_of(path):
        root, _, rest = module.partition(".")
        if root != "weft":
            continue
        unit = rest.partition(".")[0]
        assert unit in LEVEL, f"{path}:{line} imports {module}: import it from the module it is in"
        allowed = level if path.name != "errors.py" else LEVEL["core"]  # in annotations
        assert LEVEL[unit] <= allowed, f"{path}:{line} imports {module}, which is of a higher layer"


def test_errors_import_nothing_of_ours_when_they_run():
    tree = ast.parse((ROOT / "errors.py").read_text(encoding="utf-8"))
    at_run_time = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [module for module in at_run_time if module.startswith("weft")]


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=lambda path: path.name)
def test_core_is_pure(path):
    for line, module in imports_of(path):
        assert module.partition(".")[0] not in IMPURE, f"{path}:{line} imports {module}: core only decides"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), (
            f"{path}:{node.lineno}: core never waits"
        )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input"}, f"{path}:{node.lineno}: core only decides"
