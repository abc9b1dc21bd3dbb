"""Files, what comes with an import, and the wheel: what went wrong elsewhere, and what must not go wrong here."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from email.parser import Parser
from pathlib import Path

import pytest
from killing import seeded

import weft
from weft import CheckpointError, CorruptDataError, SqliteSaver, StoreError, entrypoint, task

ROOT = Path(__file__).parents[2]


@task
def step(x):
    return x


@entrypoint()
def flow(x):
    return step(x).result()


def said_by(program, folder, **environment):
    """What a program says, in an interpreter of its own that leaves nothing compiled behind."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Files

UNDER_UMASK_0 = """
import os, sys
os.umask(0)
import weft
from weft import SqliteSaver, entrypoint, task
from weft.checkpoint.url import from_url
from weft.cli.commands import run_command

@task
def step(x):
    if x == "look":
        for folder, folders, files in os.walk("."):
            for name in folders + files:
                path = os.path.join(folder, name)
                print(oct(os.stat(path).st_mode & 0o777), os.path.isdir(path), path)
    return x

@entrypoint()
def flow(x):
    return step(x).result()

with SqliteSaver("runs.db") as store:
    flow.invoke("look", checkpointer=store, run_id="r")
open("flows.py", "w").write("from weft import entrypoint\\n@entrypoint()\\ndef echo(x):\\n    return x\\n")
os.chmod("flows.py", 0o600)
run_command(["run", "flows.py:echo", "--quiet"])
with from_url("sqlite:///runs.db") as store:
    flow.invoke("look", checkpointer=store, run_id="s")
"""


def test_files_are_their_users_alone_under_any_umask_and_none_is_elsewhere(tmp_path):
    """As a user has it: a store, one by URL and that of the command line, while they are in use and afterwards."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    said = said_by(UNDER_UMASK_0, home, TMPDIR=str(temporary), HOME=str(temporary))
    lines = [line.split(" ", 2) for line in said.splitlines() if line.startswith("0o")]
    assert {(mode, is_folder) for mode, is_folder, _ in lines} == {("0o600", "False"), ("0o700", "True")}
    seen = {Path(path).name for *_, path in lines}
    assert {"runs.db", "runs.db-wal", "runs.db-shm", "runs.db-owners", "weft.db"} <= seen
    assert any(name.endswith(".lock") for name in seen)
    assert not any(temporary.iterdir())
    assert {path.name for path in home.iterdir()} == {"runs.db", "weft.db", "flows.py"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}


@pytest.mark.parametrize("is_there", [False, True], ids=["new store", "old store"])
@pytest.mark.parametrize("leads", ["to a file", "nowhere"])
@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal", "-owners"])
def test_a_planted_link_is_not_followed(tmp_path, end, leads, is_there):
    """Nothing is written, made, or made readable where a link beside the store leads to."""
    home = tmp_path / "home"
    home.mkdir()
    if is_there:
        with SqliteSaver(home / "runs.db") as store:
            flow.invoke(1, checkpointer=store, run_id="before")
    victim = tmp_path / "victim"
    if leads == "to a file" and end == "-owners":
        victim.mkdir()
    elif leads == "to a file":
        victim.write_text("precious " * 1000)
        victim.chmod(0o644)
    (home / f"runs.db{end}").symlink_to(victim)
    with SqliteSaver(home / "runs.db") as store:
        try:
            assert flow.invoke(1, checkpointer=store, run_id="r") == 1
        except StoreError as error:
            assert str(home / "runs.db") in str(error)
        if victim.is_dir():  # also while it is in use
            assert not any(victim.iterdir())
    if leads == "nowhere":
        assert not victim.exists()
    elif end == "-owners":
        assert not any(victim.iterdir())
    else:
        assert victim.read_text() == "precious " * 1000
        assert stat.S_IMODE(victim.stat().st_mode) == 0o644


def test_a_folder_that_is_swapped_while_runs_are_recorded_gets_nothing(tmp_path):
    """The store's folder is moved away at some moment, and another with a store put in its place: that one gets no run
    that was begun elsewhere, and what was acknowledged is in the old one."""
    draw = seeded("swaps")
    happened = Counter()
    for number in range(25):
        home, other, away = (tmp_path / f"{name}{number}" for name in ("home", "other", "away"))
        home.mkdir()
        other.mkdir()
        with SqliteSaver(other / "runs.db") as store:
            flow.invoke("other", checkpointer=store, run_id="other")

        def swap(home=home, other=other, away=away):
            home.rename(away)
            other.rename(home)

        acknowledged = []
        with SqliteSaver(home / "runs.db") as store:
            flow.invoke(0, checkpointer=store, run_id="0")
            timer = threading.Timer(draw.uniform(0, 0.012), swap)
            timer.start()
            try:
                for n in range(1, 200):
                    flow.invoke(n, checkpointer=store, run_id=f"{n}")
                    acknowledged.append(f"{n}")
            except CheckpointError as error:
                happened[type(error).__name__] += 1
            timer.join()
        with SqliteSaver(home / "runs.db") as store:
            assert [row.run_id for row in store.runs()] == ["other"]
            assert weft.runs(store).show("other").output == "other"
        with SqliteSaver(away / "runs.db") as old:
            try:
                rows = {row.run_id for row in old.runs(limit=1000) if row.output is not None}
            except CorruptDataError:  # it says that the end of its log is gone
                happened["said so"] += 1
                continue
        assert {*acknowledged} <= rows
    assert happened["StoreError"] > 15


# Imports

QUIET = """
import sys
seen = []
watching = True
NEVER = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "urllib.", "http.",
    "ftplib.", "smtplib.", "webbrowser.", "pty.", "signal.", "ctypes.dlopen", "os.mkdir", "os.rename", "os.remove",
    "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate", "shutil.", "tempfile.", "sqlite3.connect",
    "os.putenv", "os.unsetenv", "cpython.run_",
)
def hook(event, args):
    if not watching:
        return
    if event.startswith(NEVER) and event not in ("socket.__new__",):
        seen.append((event, repr(args)[:200]))
    elif event == "open" and isinstance(args[2], int) and args[2] & 0o1103:  # to write, to make, to empty
        seen.append((event, repr(args)[:200]))
sys.addaudithook(hook)
import _thread
start = _thread.start_new_thread
def noted(*args):
    seen.append(("_thread.start_new_thread", repr(args[:1])))
    return start(*args)
_thread.start_new_thread = _thread.start_new = noted  # Python 3.11 tells hooks nothing of it
import weft
first = list(seen)
{more}
watching = False
import json, threading
print(json.dumps({{"first": first, "seen": seen, "threads": threading.active_count()}}))
"""

ALL_OF_IT = """
import importlib, pkgutil
for found in pkgutil.walk_packages(weft.__path__, "weft."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for name in weft.__all__:
    getattr(weft, name)
"""


def imported(folder, more):
    said = said_by(QUIET.format(more=more), folder, HOME=str(folder))
    assert not any(folder.iterdir())
    return json.loads(said)


def test_litellm_1_82_7_importing_does_nothing(tmp_path):
    """There a stolen token published a package that acted when it was imported. No file is written, no process or
    thread begun, no connection made; neither is one by any public name or module."""
    assert imported(tmp_path, "") == {"first": [], "seen": [], "threads": 1}


def test_litellm_1_82_7_nor_does_importing_all_of_it(tmp_path):
    """Others' modules, of psycopg or pydantic say, may load libraries; nothing else."""
    found = imported(tmp_path, ALL_OF_IT)
    assert [event for event in found["seen"] if event[0] != "ctypes.dlopen"] == []
    assert found["threads"] == 1


def test_litellm_1_82_7_the_watch_sees_what_it_should(tmp_path):
    for act, event in (
        (
            "import threading; t = threading.Thread(target=int); t.start(); t.join()",
            "_thread.start_new_thread",
        ),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import socket; socket.socket().connect_ex(('127.0.0.1', 9))", "socket.connect"),
        ("open('/dev/null', 'w').close()", "open"),
        ("import os; os.mkdir('x'); os.rmdir('x')", "os.mkdir"),
    ):
        assert event in {seen for seen, _ in imported(tmp_path, act)["seen"]}


LISTENS = """
import sys
seen = []
sys.addaudithook(lambda event, args: event in ("socket.bind", "socket.connect", "socket.getaddrinfo") and seen.append(
    (event, repr(args[1:]))))
import asyncio
from weft import Graph, InMemorySaver, SqliteSaver, entrypoint, node, parallel, task

@task
def step(x):
    return x

@entrypoint(checkpointer=SqliteSaver("runs.db"))
def flow(x):
    return [step(x).result(), parallel(node("a")(lambda x: x), node("b")(lambda x: x))(x)]

@entrypoint(checkpointer=SqliteSaver("runs.db"))
async def aflow(x):
    return await step(x)

flow.invoke(1, run_id="r")
asyncio.run(aflow.ainvoke(1, run_id="a"))
flow.submit(1, run_id="s").result()
flow.map([1, 2])
from weft.cli.commands import run_command
run_command(["runs", "--checkpointer", "sqlite:///runs.db", "--json"])
print(seen)
"""


def test_cve_2021_42343_a_run_listens_to_nobody_and_calls_nobody(tmp_path):
    """A "local" cluster of Dask's listened on all interfaces. Here no socket is bound or connected at all."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LISTENS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# The wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheel, built twice from a copy of what is in the repository."""
    folder = tmp_path_factory.mktemp("wheels")
    tree = folder / "tree"
    left_out = shutil.ignore_patterns("__pycache__", "*.pyc", ".venv", ".git", ".*_cache", "dist", "build")
    shutil.copytree(ROOT / "src", tree / "src", ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    here = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []  # else pip fetches it
    built = []
    for name in ("one", "two"):
        done = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", *here, "-w", folder / name, tree],
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr
        (wheel,) = (folder / name).glob("*.whl")
        built.append(wheel)
    return tree, built


@pytest.mark.slow
def test_litellm_1_82_7_the_wheel_is_the_tree(wheels):
    """File by file, byte by byte; with nothing that Python would run at its start, and no script but `weft`."""
    tree, (wheel, _) = wheels
    source = {
        path.relative_to(tree / "src").as_posix(): path.read_bytes()
        for path in (tree / "src" / "weft").rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {info.filename: archive.read(info) for info in archive.infolist()}
        modes = {info.filename: stat.S_IFMT(info.external_attr >> 16) for info in archive.infolist()}
    about = {name: data for name, data in packed.items() if name.partition("/")[0].endswith(".dist-info")}
    assert {name: data for name, data in packed.items() if name not in about} == source
    assert {name.partition("/")[2] for name in about} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    assert not [name for name in packed if name.endswith((".pth", ".so", ".pyd", ".exe"))]
    assert set(modes.values()) <= {stat.S_IFREG, 0}
    entry_points = next(data for name, data in about.items() if name.endswith("entry_points.txt")).decode()
    assert entry_points.split() == ["[console_scripts]", "weft", "=", "weft.cli:main"]
    metadata = Parser().parsestr(
        next(data for name, data in about.items() if name.endswith("METADATA")).decode()
    )
    needed = [each for each in metadata.get_all("Requires-Dist", []) if "extra" not in each]
    assert sorted(each.partition(">")[0] for each in needed) == ["msgspec", "psutil"]


@pytest.mark.slow
def test_litellm_1_82_7_the_wheel_is_the_same_each_time(wheels):
    _, (one, two) = wheels
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
