"""Finds the workflow that ``module:name`` or ``path/to/file.py:name`` means."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from weft.cli.endings import Refusal
from weft.history import closest
from weft.runnable import Runnable


def load_target(target: str) -> Runnable:
    """The workflow.

    Raises:
        Refusal: There is no such file, module or name, it cannot be imported, or it is no workflow.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise Refusal(f"{target!r} is no target; write module:name or path/to/file.py:name")
    module = _load_file(Path(place)) if _is_path(place) else _load_module(place)
    return _workflow(module, place, name)


def _is_path(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Refusal(f"there is no file {str(path)!r}")
    path, name = path.resolve(), path.stem
    loaded = sys.modules.get(name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path):
            return loaded
        raise Refusal(f"{str(path)!r} cannot be loaded: a module {name!r} is loaded already; rename the file")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Refusal(f"{str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Under its name from the start: recorded objects of its classes are looked up there.
    sys.modules[name] = module
    execute = spec.loader.exec_module
    _imported(str(path), lambda: execute(module))
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the package it is in
        found = None
    except Exception as error:
        raise Refusal(f"{name!r} cannot be imported: {_what_and_where(error)}") from error
    if found is None:
        hint = f"; for the file write {name}.py" if Path(f"{name}.py").is_file() else ""
        raise Refusal(f"there is no module {name!r}{hint}")
    module: ModuleType = _imported(name, lambda: importlib.import_module(name))
    return module


def _imported(name: str, load: Callable[[], Any]) -> Any:
    try:
        with redirect_stdout(sys.stderr):  # what a module prints when it is imported is no result
            return load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's module raises, sys.exit() too
        raise Refusal(f"{name!r} cannot be imported: {_what_and_where(error)}") from error


def _what_and_where(error: BaseException) -> str:
    """The error in a line, with the place in the user's code where it came from."""
    what = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, SyntaxError):
        return f"{what} ({error.filename}, line {error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    ours = str(Path(__file__).parent)
    place = next((f for f in reversed(frames) if not f.filename.startswith((ours, _STDLIB))), None)
    return f"{what} ({place.filename}, line {place.lineno})" if place is not None else what


_STDLIB = str(Path(importlib.__file__).parent)


def _workflow(module: ModuleType, place: str, name: str) -> Runnable:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise Refusal(f"{place} has no {name!r}; {_hint(module, name)}")
        found = getattr(found, part)
    if not isinstance(found, Runnable):
        raise Refusal(f"{place}:{name} is no workflow but a {type(found).__name__}; {_hint(module, name)}")
    return found


def _hint(module: ModuleType, name: str) -> str:
    names = [known for known, value in vars(module).items() if isinstance(value, Runnable)]
    if not names:
        return "there is no workflow in it"
    return f"workflows in it: {', '.join(closest(name, names) or sorted(names)[:10])}"
