"""The public names: they change when somebody means to change them, and importing them does nothing else."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import weft

EXPECTED = """
AnswerError AsyncBatchFlow AsyncBatchNode AsyncFlow AsyncNode AsyncParallelBatchFlow AsyncParallelBatchNode
BaseNode BaseStore BatchFlow BatchNode BranchError Cache CachePolicy CallToRun Callback Cancelled
CheckpointError Checkpointer Codec Command ConflictError CorruptDataError DEFAULT_ACTION DaskExecutor Decision
DefinitionError DirectCallError Entrypoint EventCallback Executor ExecutorError Failed FailedCall Flow
FunctionNode Graph GraphCompileError GraphError GraphEvent GraphEventType InMemoryCache InMemorySaver
InMemoryStore InputError Interrupt Keep Limit Map MaxStepsError MemorySaver Node NodeTimeoutError
NotInRunError NotStarted Ok Outcome OwnerLostError Parallel ParallelBatchFlow ParallelBatchNode
ParallelExecutionError ParallelTimeoutError Pipeline PostgresSaver ProcessExecutor Progress RayExecutor
RemoteError ReplayMismatchError ResumePlan RetryAfter RetryPolicy Run RunBusyError RunCancelledError
RunMismatchError RunNotFoundError RunStatus Runnable RunnableConfig Runs Runtime Sequence Skipped SqliteSaver
StateConflictError StateSnapshot StoreError StreamWriter StuckError Task ThreadBusy TimedOut Timeline
TimelineRecorder TimeoutPolicy Tolerate UnsendableError UnstorableError UsageError WeftError WorkerDiedError
amap call_id cancelled decision entrypoint get_config get_runtime get_store get_stream_writer interrupt map
node parallel pipeline race remaining router runs task tolerate transient
""".split()


def test_the_names_are_those_that_we_promise():
    assert sorted(weft.__all__) == EXPECTED
    assert sorted(EXPECTED) == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_every_name_resolves(name):
    assert getattr(weft, name) is not None
    assert name in dir(weft)


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'tsk'"):
        weft.tsk  # noqa: B018


def test_what_type_checkers_see_is_what_is_imported():
    tree = ast.parse(Path(weft.__file__).read_text(encoding="utf-8"))
    checking = next(
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        (alias.asname or alias.name): (node.module, alias.name)
        for node in checking.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    home = {name: module for module, names in weft._HOME.items() for name in names}
    assert {name: module for name, (module, _) in seen.items()} == home
    for name, (_, original) in seen.items():
        assert getattr(weft, name) is getattr(sys.modules[home[name]], original)


def test_type_checkers_let_users_import_the_names():
    """Under strict, a name counts as exported only if `__all__` is a list that mypy can read."""
    literal = next(
        (
            node.value
            for node in ast.walk(ast.parse(Path(weft.__file__).read_text(encoding="utf-8")))
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ),
        None,
    )
    assert isinstance(literal, ast.List | ast.Tuple)
    assert all(isinstance(element, ast.Constant) for element in literal.elts)


_LOOK = """
import json, os, sys, threading
before = set(sys.modules)
files = set(os.listdir("."))
import weft
import asyncio
loops = asyncio.events._get_running_loop()
try:
    policy = asyncio.events._event_loop_policy
except AttributeError:
    policy = None
print(json.dumps({
    "threads": [thread.name for thread in threading.enumerate()],
    "files": sorted(set(os.listdir(".")) - files),
    "modules": sorted(set(sys.modules) - before),
    "loop": repr(loops), "policy": repr(policy),
}))
"""


def test_importing_starts_writes_and_loads_nothing(tmp_path):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LOOK],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=30,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["threads"] == ["MainThread"]
    assert found["files"] == []
    assert found["loop"] == found["policy"] == "None"
    heavy = {"sqlite3", "rich", "click", "msgspec", "pydantic", "multiprocessing", "subprocess", "socket"}
    loaded = {name.partition(".")[0] for name in found["modules"]} - {"asyncio"}
    # asyncio, which the script itself imports after weft, loads these two
    assert not loaded & heavy - {"subprocess", "socket"}, sorted(loaded & heavy)
