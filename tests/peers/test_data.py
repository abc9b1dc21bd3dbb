"""What went wrong elsewhere when recorded data was read or written. The numbers are those under which it is known."""

from __future__ import annotations

import ast
import dataclasses
import enum
import gc
import json
import logging
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import pydantic
import pytest
from msgspec.msgpack import Ext
from msgspec.msgpack import encode as raw_encode

import weft
from weft import (
    CachePolicy,
    Codec,
    CorruptDataError,
    DefinitionError,
    InMemoryCache,
    SqliteSaver,
    UnstorableError,
    entrypoint,
    parallel,
    task,
)
from weft.checkpoint.base import OpenRun, RecordKind, Write
from weft.checkpoint.wire import Tag

SOURCE = Path(weft.__file__).parent


class Ran(Exception):
    """Code that only the data names has run."""


class Trap:
    """Whatever is called of it has been called by the data."""

    called: list[str] = []

    def __init__(self, *args: object, **options: object) -> None:
        self.called.append("__init__")

    @classmethod
    def build(cls, *args: object) -> Trap:
        cls.called.append("build")
        return cls()


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0

    called = []  # no field: it has no annotation

    def __post_init__(self) -> None:
        self.called.append("__post_init__")

    def __setstate__(self, state: object) -> None:
        self.called.append("__setstate__")

    @classmethod
    def parse(cls, *args: object) -> Point:
        cls.called.append("parse")
        return cls(1)


@pytest.fixture(autouse=True)
def _nothing_called():
    del Trap.called[:], Point.called[:]
    yield


def doctored(store, value, *, kind=RecordKind.OK):
    """A finished call of `step` in run "r" of `flow`, whose recorded value are these bytes."""
    ran = []

    @task
    def step(x):
        ran.append(x)
        return x

    @entrypoint(checkpointer=store)
    def flow(x):
        step(x).result()
        raise RuntimeError("not yet")

    with pytest.raises(RuntimeError):
        flow.invoke(1, run_id="r")
    ((_, line), *_) = store.records("r")
    fence = store.open(OpenRun("r", "flow")).fence
    evil = msgspec.structs.replace(line, kind=kind, value=value, batch=line.batch + 1)
    assert store.commit([Write("r", fence, [evil])]) == set()
    store.release("r", fence)
    return flow, ran


def read_in_every_way(codec, data):
    """What the codec makes of bytes: an error of ours or plain data."""
    for read in (codec.decode, codec.decode_error, codec.describe):
        try:
            yield read(data)
        except CorruptDataError as error:
            yield error


# Code named in data


def test_cve_2025_64439_half_a_character_comes_back_and_no_constructor_in_json_is_called(saver, tmp_path):
    """LangGraph's first serialiser failed on half a character, and its second built whatever the JSON named."""
    half = "from a model \ud83d"

    @task
    def step(x):
        return half

    @entrypoint(checkpointer=saver)
    def flow(x):
        return step(x).result()

    assert flow.invoke(half, run_id="r") == half
    assert weft.runs(saver).show("r").output == half
    made = tmp_path / "made"
    document = {"lc": 2, "type": "constructor", "id": ["os", "mkdir"], "kwargs": {"path": str(made)}}
    for data in (
        json.dumps(document).encode(),
        b"json" + json.dumps(document).encode(),
        saver.codec.encode(document),
    ):
        found = list(read_in_every_way(saver.codec, data))
        assert all(isinstance(each, CorruptDataError) or each == document for each in found)
    assert saver.codec.decode(saver.codec.encode(document)) == document
    assert not made.exists()


CALLS = [
    lambda made: ("os", "mkdir", [made]),
    lambda made: ("os", "mkdir", made),
    lambda made: ("os", "mkdir", {"path": made}, "__call__"),
    lambda made: ["os:mkdir", [made]],
    lambda made: ["os:mkdir", ["path"], made],
    lambda made: ["os.mkdir", made, True, {}, {}, None, "", ""],
    lambda made: [f"{__name__}:Trap", [], {"build": made}],
    lambda made: [f"{__name__}:Trap", ["build"], made],
]


def test_cve_2026_28277_no_extension_of_msgpack_imports_or_calls_a_name(saver, tmp_path):
    """An extension of LangGraph's msgpack names a module, a function and its arguments, and is obeyed on load."""
    made = tmp_path / "made"
    for code in range(-128, 128):
        for call in CALLS:
            for data in (
                raw_encode(Ext(code, raw_encode(call(str(made))))),
                raw_encode([Ext(code, raw_encode(Ext(code, raw_encode(call(str(made))))))]),
            ):
                list(read_in_every_way(saver.codec, data))
    assert not made.exists()
    assert Trap.called == []
    evil = raw_encode(Ext(120, raw_encode(CALLS[0](str(made)))))
    flow, ran = doctored(saver, evil)
    with pytest.raises(CorruptDataError):
        flow.invoke(None, run_id="r")
    assert ran == [1]  # nor is the step run again, over what is damaged
    assert not made.exists()


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("made-by-pickle",)


def test_cve_2026_27794_a_cache_holds_what_the_codec_wrote_and_no_pickle(tmp_path, monkeypatch):
    """LangGraph's cache wrote and read a pickle wherever its serialiser could not."""
    monkeypatch.chdir(tmp_path)
    cache = InMemoryCache()
    evil = pickle.dumps(Explosive())

    @task(cache_policy=CachePolicy(key_func=lambda x: "k"))
    def step(x):
        return Explosive() if x == "explosive" else (x, "\ud800")

    @entrypoint(cache=cache)
    def flow(x):
        return step(x).result()

    assert (
        type(flow.invoke("explosive")) is Explosive
    )  # a cache is no journal: what it cannot keep it does without
    assert cache._entries == {}
    assert flow.invoke(1) == (1, "\ud800")
    ((space, key),) = cache._entries
    assert Codec().decode(cache.get(space, key)) == (1, "\ud800")
    for data in (evil, b"pickle" + evil, raw_encode(Ext(120, evil)), raw_encode(evil)[:-3]):
        cache.set(space, key, data)
        assert flow.invoke(2) == (2, "\ud800")  # what cannot be read is made anew
    assert not any(tmp_path.iterdir())


def test_cve_2026_48775_data_chooses_no_method_of_a_registered_class():
    """A field of LangGraph's data said which method of the rebuilt class to call."""
    codec = Codec([Point])
    tag = f"{__name__}:Point"
    assert codec.decode(codec.encode(Point(1, 2))) == Point(1, 2)
    del Point.called[:]
    for method in ("parse", "__init__", "__post_init__", "__setstate__", "model_construct", "__reduce__"):
        for form in (
            [tag, [method], 1],
            [tag, ["x", method], 1, 2],
            [tag, ["x", "y", method], 1, 2, [3]],
            [tag, {"method": method}, 1],
            [tag, ["method"], method],
            [tag, ["x", "y", "method"], 1, 2, method],
            [tag, method, [1]],
            [f"{tag}.{method}", ["x"], 1],
            [f"{__name__}:Point.parse", [], 1],
        ):
            for kind in (Tag.OBJECT, Tag.ENUM):
                found = list(read_in_every_way(codec, raw_encode(Ext(kind, raw_encode(form)))))
                # Nothing beside the fields that it has; what is only shown is shown as it is.
                assert not any(vars(each).keys() - {"x", "y"} for each in found if isinstance(each, Point))
    assert Point.called == []


def test_cve_2021_23727_a_recorded_failure_names_no_code():
    """Celery rebuilt the exception of a task from any module, class and arguments in its result."""
    codec = Codec()
    for name in (
        "os:system",
        "subprocess:Popen",
        "builtins:exec",
        f"{__name__}:Trap",
        "antigravity:X",
        "os:_exit",
    ):
        for form in (
            [name, ["true"], True, {}, {}, None, "", ""],
            [name, ["true"], False, {"args": ["true"]}, {"args": ["true"]}, [], "", ""],
            [name, [], True, {"__class__": name}, {"__class__": name}, None, "", ""],
        ):
            data = raw_encode(Ext(Tag.ERRORS, raw_encode([Ext(Tag.ERROR, raw_encode(form))])))
            for found in read_in_every_way(codec, data):
                assert found is None or isinstance(found, CorruptDataError | dict)
    assert Trap.called == []
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("text", ["__import__('os').mkdir('made')", "2*n_jobs", "1", "all", "os.mkdir"])
def test_cve_2022_21797_options_are_numbers_and_no_expressions(tmp_path, monkeypatch, text):
    """joblib evaluated an option that was given as a string."""
    monkeypatch.chdir(tmp_path)

    def works(x):
        return x

    for make in (
        lambda: parallel(works, max_concurrent=text),
        lambda: parallel(works, timeout=text),
        lambda: weft.map(works, max_concurrent=text),
        lambda: weft.Limit("l", concurrent=text),
        lambda: weft.Limit("l", rate=text),
        lambda: task(works).invoke(1, max_concurrent=text),
        lambda: task(works).invoke(1, timeout=text),
        lambda: SqliteSaver("runs.db", lease=text),
        lambda: SqliteSaver("runs.db", timeout=text),
        lambda: weft.RetryPolicy(max_attempts=text),
        lambda: weft.Graph(max_steps=text),
    ):
        with pytest.raises((DefinitionError, weft.InputError, TypeError)):
            make()
    assert not any(tmp_path.iterdir())


def test_cve_2020_22083_documents_that_other_libraries_obey_are_documents(saver):
    """jsonpickle, and others with a key of their own, call what a decoded document names."""
    documents = [
        {"py/object": f"{__name__}.Trap"},
        {"py/reduce": [{"py/type": "os.mkdir"}, {"py/tuple": ["made"]}]},
        {"$type": f"{__name__}:Trap", "x": 1},
        {"$error": "os:system", "message": "true"},
        {"__class__": "Trap", "__module__": __name__},
        {"!!python/object/apply:os.mkdir": ["made"]},
        {"__type__": [__name__, "Trap"], "__args__": []},
    ]

    @entrypoint(checkpointer=saver)
    def flow(given):
        return given

    assert flow.invoke(documents, run_id="r") == documents
    assert weft.runs(saver).show("r").output == documents
    assert flow.invoke(None, run_id="r") == documents
    assert Trap.called == []
    assert not Path("made").exists()


def test_agent_framework_4872_nothing_of_ours_can_unpickle():
    """Checkpoints and results that are pickles run code in whoever reads them: there, in Airflow, DBOS and huey."""
    unsafe = {
        "pickle",
        "cPickle",
        "_pickle",
        "shelve",
        "marshal",
        "dill",
        "cloudpickle",
        "jsonpickle",
        "yaml",
        "copyreg",
    }
    names = {"eval", "exec", "__import__"}
    # Bodies go to other processes of the same program, and back, as pickles; none is ever kept.
    kept = [path for path in SOURCE.rglob("*.py") if path.parent.name != "executors"]
    assert len(kept) > 100
    for path in kept:
        for found in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(found, ast.Import):
                assert not unsafe & {alias.name.partition(".")[0] for alias in found.names}, path
            elif isinstance(found, ast.ImportFrom):
                assert (found.module or "").partition(".")[0] not in unsafe, path
            elif isinstance(found, ast.Call) and isinstance(found.func, ast.Name):
                assert found.func.id not in names, f"{path}:{found.lineno}"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for found in read_in_every_way(Codec(), pickle.dumps(Explosive(), protocol)):
            assert isinstance(found, CorruptDataError)


def test_langgraph_threat_model_t8_what_refuses_data_is_not_gone_with_dash_o(tmp_path):
    """A check that is an `assert` is none where Python is started with -O, as LangGraph's of a cipher was."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "checkpoint")!r})
assert False, "asserts are on"
from test_codec import HOSTILE, TYPES, Codec, CorruptDataError
codec = Codec(TYPES)
read = 0
for name, data in HOSTILE.items():
    try:
        codec.decode(data)
    except CorruptDataError:
        read += 1
print(len(HOSTILE) - read, read > 40)
"""
    done = subprocess.run(
        [sys.executable, "-O", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert done.stdout.strip() == "0 True", done.stderr


def test_langgraph_threat_model_t8_nothing_that_reads_data_relies_on_an_assert():
    """Whoever adds one here is asked what it refuses. The one that is there tells the type checker something."""
    reading = ("builtin_types", "codec", "errors_codec", "rows", "shapes", "wire", "url", "owner")
    found = [
        f"{name}: {ast.unparse(each.test)}"
        for name in reading
        for each in ast.walk(ast.parse((SOURCE / "checkpoint" / f"{name}.py").read_text(encoding="utf-8")))
        if isinstance(each, ast.Assert)
    ]
    assert found == ["errors_codec: isinstance(made, BaseException)"]


def test_langgraph_threat_model_t4_an_object_gets_the_fields_of_its_class_and_no_others():
    """What came from elsewhere was handed to classes as keyword arguments, unchecked."""
    codec = Codec([Point])
    tag = f"{__name__}:Point"
    for fields, values in (
        (["x", "y", "z"], [1, 2, 3]),
        (["y", "x"], [1]),
        (["y"], [2]),
        (["x", "__dict__"], [1, {"x": 2}]),
        ([], []),
    ):
        with pytest.raises(CorruptDataError):
            codec.decode(raw_encode(Ext(Tag.OBJECT, raw_encode([tag, fields, *values]))))


# Data that is too much


def test_cve_2024_27454_deep_documents_are_refused_and_crash_nothing(tmp_path):
    """orjson recursed as deep as its input said, until the process died."""
    deep = 200_000
    codec = Codec()
    for data in (b"\x91" * deep + b"\xc0", b"\x81\xa1a" * deep + b"\xc0", b"[" * deep + b"]" * deep):
        for found in read_in_every_way(codec, data):
            assert isinstance(found, CorruptDataError)
    value: object = None
    for _ in range(deep):
        value = [value]
    with pytest.raises(UnstorableError, match="nested"):
        codec.encode(value)
    while value:  # taken apart by hand: even forgetting it is deep work
        value = value[0]  # type: ignore[index]


def test_cve_2024_27454_so_is_deep_json_on_the_command_line(tmp_path):
    (tmp_path / "flows.py").write_text(
        "from weft import entrypoint\n@entrypoint()\ndef echo(given):\n    return given\n"
    )
    (tmp_path / "deep.json").write_text("[" * 200_000 + "]" * 200_000)
    done = subprocess.run(
        [sys.executable, "-m", "weft.cli", "run", "flows.py:echo", "--input-file", "deep.json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == 2, done.stderr[-500:]
    (line,) = done.stderr.splitlines()
    assert "deep.json" in line or "nested" in line
    assert "Traceback" not in done.stderr


def test_langgraph_3481_encoding_and_decoding_keep_nothing():
    """Its serialiser kept memory with every use."""
    codec = Codec([Point])

    def use(times):
        for number in range(times):
            value = {"point": Point(number), "text": f"{number}" * 50, "error": ValueError(number)}
            codec.decode(codec.encode(value))
            codec.describe(codec.encode_error(value["error"]))
            codec.fingerprint(number, f"{number}")

    use(200)
    tracemalloc.start()
    try:
        use(500)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        use(3_000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000  # 3,000 values of 700 bytes and more would be 2 MB


# Values that change


class Number(int):
    pass


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        (1, (2, [3])),
        "half \ud800",
        {1: "a", (2, 3): {4}},
        frozenset({1, "a"}),
        2**100,
        b"\xff\x00",
        float("inf"),
        True,
        ValueError("wrong", 3),
        OSError(2, "gone"),
    ],
    ids=repr,
)
def test_langgraph_1_2_22_a_value_comes_back_as_it_was(saver, value):
    """There a tuple became a list, half a character a question mark, and an error its text; nothing was said."""
    failing = [True]

    @task
    def step(x):
        return value

    @entrypoint(checkpointer=saver)
    def flow(x):
        found = step(x).result()
        if failing:
            failing.clear()
            raise RuntimeError
        return found

    with pytest.raises(RuntimeError):
        flow.invoke(1, run_id="r")
    found = flow.invoke(None, run_id="r")
    assert type(found) is type(value)
    if isinstance(value, Exception):
        assert (found.args, str(found)) == (value.args, str(value))
    else:
        assert found == value
        assert repr(found) == repr(value)


class Account(pydantic.BaseModel):
    password: pydantic.SecretStr


@pytest.mark.parametrize(
    "value",
    [
        Number(3),
        pydantic.SecretStr("hunter2"),
        {"a": [pydantic.SecretStr("hunter2")]},
        open,
        object(),
        Trap(),
    ],
    ids=["int subclass", "secret", "secret inside", "function", "object", "unregistered"],
)
def test_langgraph_1_2_22_what_cannot_come_back_is_refused_and_a_secret_not_stored(tmp_path, value):
    """There a number of one's own became an int, and a `SecretStr` was stored as what it hides."""
    with SqliteSaver(tmp_path / "runs.db") as store:

        @task
        def step(x):
            return value

        @entrypoint(checkpointer=store)
        def flow(x):
            return step(x).result()

        with pytest.raises(UnstorableError, match="result"):
            flow.invoke(1, run_id="r")
    assert b"hunter2" not in (tmp_path / "runs.db").read_bytes()


def test_langgraph_1_2_22_a_secret_in_a_model_is_not_stored_either(tmp_path):
    """A registered model must not be the way in which a secret gets into the store unasked."""
    with SqliteSaver(tmp_path / "runs.db") as store:

        @task
        def step(x) -> Account:
            return Account(password="hunter2")

        @entrypoint(checkpointer=store)
        def flow(x):
            return step(x).result().password.get_secret_value()

        with pytest.raises(UnstorableError, match="password"):
            flow.invoke(1, run_id="r")
    assert b"hunter2" not in (tmp_path / "runs.db").read_bytes()


def test_langgraph_1_2_22_what_cannot_be_rebuilt_is_an_error_and_not_none(saver):
    """There a value whose class could not be made again came back as None."""
    flow, ran = doctored(saver, Codec([Point]).encode(Point(1)))
    with pytest.raises(CorruptDataError, match="Point"):
        flow.invoke(None, run_id="r")
    assert ran == [1]


# Data that is seen


def test_cve_2024_45784_arguments_and_results_are_in_no_log(caplog, tmp_path):
    """Airflow wrote secrets into the logs of tasks."""
    canary = "canary-8f3a"

    @task(retry_policy=weft.RetryPolicy(max_attempts=2, initial_interval=0))
    def step(secret, fails):
        if fails:
            raise ValueError(secret)
        return secret

    with SqliteSaver(tmp_path / "runs.db") as store, caplog.at_level(logging.DEBUG):

        @entrypoint(checkpointer=store)
        def flow(given):
            return step(given["secret"], given["fails"]).result()

        assert flow.invoke({"secret": canary, "fails": False}, run_id="r") == canary
        with pytest.raises(ValueError, match=canary):
            flow.invoke({"secret": canary, "fails": True}, run_id="s")
        shown = [repr(each) for each in (store, flow, step, weft.runs(store), flow.submit(None, run_id="r"))]
    assert canary not in caplog.text
    assert canary not in "".join(shown)


def test_cve_2025_54831_a_list_of_runs_shows_no_values(tmp_path):
    """Airflow showed secret fields to those who may only look."""
    canary = "canary-77b1"
    with SqliteSaver(tmp_path / "runs.db") as store:

        @entrypoint(checkpointer=store)
        def flow(given):
            return given

        flow.invoke(canary, run_id="r")
        (info,) = weft.runs(store)
        assert canary not in repr(info)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "weft.cli",
            "runs",
            "--json",
            "--checkpointer",
            f"sqlite:///{tmp_path}/runs.db",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert json.loads(done.stdout)[0]["run_id"] == "r"
    assert canary not in done.stdout + done.stderr


def test_cve_2026_25917_recorded_data_is_shown_without_being_built():
    """Airflow's web server ran code of the results that it was to show."""
    data = Codec([Point]).encode([Point(1, 2), ValueError("x")])
    del Point.called[:]
    shown = Codec([Point]).describe(data)
    assert shown[0] == {"$type": f"{__name__}:Point", "x": 1, "y": 2}
    assert shown[1] == {"$error": "builtins:ValueError", "message": "x"}
    assert Point.called == []
