"""What went wrong elsewhere when names became parts of queries, paths and patterns. The numbers are the peers'."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from postgres import address, fresh_schema

import weft
from weft import InMemoryCache, InMemorySaver, InMemoryStore, InputError, SqliteSaver, entrypoint, task
from weft.checkpoint.postgres import PostgresSaver
from weft.checkpoint.url import from_url

ROOT = Path(__file__).parents[2]

#: What has been more than a name in some query language: SQL, JSON paths, LIKE, Redis, shells, paths.
QUERIES = [
    "' OR 1=1 --",
    "') OR 1=1 UNION SELECT * FROM runs --",
    "a'; DROP TABLE runs; --",
    "$.x') OR 1",
    'x") OR ("1"="1',
    "json_extract(value, '$.a') = 1 OR 1",
    "%",
    "_",
    "*",
    "@thread:{*}",
    "(@a:[-inf +inf])|*",
    "{a|b}",
    "-@thread:{t}",
    "a\\",
    "\\'",
    "[a-z]",
    "?",
    "../../t",
    "t/../t",
    "..",
    "t%2f..%2ft",
    "t?x=1#y",
    "t\r\nX: y",
]


@pytest.fixture(scope="module")
def watch():
    spec = importlib.util.spec_from_file_location("hostile_names", ROOT / "scripts" / "hostile_names.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request, watch, tmp_path):
    """Every kind of store; whatever statement a database is given must be one of ours, letter by letter."""
    wrong = watch.Violations()
    with contextlib.ExitStack() as stack:
        if request.param == "memory":
            yield InMemorySaver()
        elif request.param == "sqlite":
            stack.enter_context(watch.guarded_sqlite(wrong))
            yield stack.enter_context(SqliteSaver(tmp_path / "runs.db"))
        else:
            schema = stack.enter_context(fresh_schema())
            stack.enter_context(watch.guarded_postgres(wrong))
            yield stack.enter_context(PostgresSaver(address(), schema=schema))
        assert wrong.lines == []
        assert request.param == "memory" or wrong.counts["statements"] > 20


@task
def step(x):
    return x


@entrypoint()
def flow(x):
    return step(x).result()


def test_cve_2025_67644_what_runs_are_looked_for_by_is_no_part_of_a_statement(store):
    """In LangGraph's SQLite store keys and operators of filters were pasted into SQL (also CVE-2025-8709)."""
    flow.invoke("mine", checkpointer=store, run_id="mine", thread_id="t")
    flow.invoke("other", checkpointer=store, run_id="other", thread_id="u")
    runs = weft.runs(store)
    for query in QUERIES:
        assert runs.list(thread_id=query) == []
        assert store.states(query) == []
        assert store.find(query) is None
        assert store.records(query) == []
        with pytest.raises(InputError, match="status"):
            runs.list(status=query)
        with pytest.raises(weft.RunNotFoundError):
            runs.delete(query)
        store.delete_thread(query)
        with pytest.raises((TypeError, ValueError)):
            runs.list(limit=query)
        flow.invoke(query, checkpointer=store, run_id=query, thread_id=query)
        assert [info.input for info in runs.list(thread_id=query)] == [query]
        runs.delete(query)
        store.delete_thread(query)
    assert {info.id for info in runs} == {"mine", "other"}


def test_cve_2026_27022_nor_of_any_other_language(store):
    """The same in the language of Redis: there is no such store here, and no pattern in those that are."""
    for n, query in enumerate(QUERIES):
        flow.invoke(n, checkpointer=store, run_id=f"r{n}", thread_id=query)
    for n, query in enumerate(QUERIES):
        assert [info.id for info in weft.runs(store).list(thread_id=query)] == [f"r{n}"]
        assert [state.run_id for state in store.states(query)] == [f"r{n}"]


def test_cve_2025_67644_keys_of_a_filter_are_names_of_fields_and_operators_are_known():
    memory = InMemoryStore()
    memory.put(("a",), "mine", {"x": 1})
    memory.put(("a",), "other", {"y": 2})
    for query in QUERIES:
        assert memory.search(("a",), filter={query: 1}) == []
        if not query.startswith("$"):
            assert memory.search(("a",), filter={"x": {query: 1}}) == []
        for operator in (f"${query}", f"$eq{query}"):
            with pytest.raises(InputError, match="operator"):
                memory.search(("a",), filter={"x": {operator: 1}})
        assert memory.search(("a",), filter={"x": query}) == []
        memory.put(("a",), query, {query: 1})
        assert [item.key for item in memory.search(("a",), filter={query: 1})] == [query]
        memory.delete(("a",), query)
    assert [item.key for item in memory.search(("a",))] == ["mine", "other"]


def test_langgraph_8478_a_prefix_ends_where_a_label_ends(store):
    """There `foo` could read what was in `foobar`: a namespace was looked for with LIKE 'foo%'."""
    memory, cache = InMemoryStore(), InMemoryCache()
    labels = ["foo", "foobar", "foo%", "foo_", "FOO", "fo"]
    for label in labels:
        memory.put((label, "x"), "k", {"of": label})
        cache.set((label,), "k", label.encode())
        flow.invoke(label, checkpointer=store, run_id=f"{label} run", thread_id=label)
    for label in labels:
        assert [item.value for item in memory.search((label,))] == [{"of": label}]
        assert memory.list_namespaces(prefix=(label,)) == [(label, "x")]
        assert [info.input for info in weft.runs(store).list(thread_id=label)] == [label]
        assert [store.codec.decode(state.value) for state in store.states(label)] == [label]
    cache.clear([("foo",)])
    assert [label for label in labels if cache.get((label,), "k")] == labels[1:]
    store.delete_thread("foo")
    assert sorted(info.thread_id for info in weft.runs(store)) == sorted(labels[1:])


@pytest.mark.parametrize(
    "name", ["../../escaped", "/tmp/escaped", "a/b", "..", "%2e%2e%2fescaped", "a\\..\\b"]
)
def test_ghsa_w39p_vh2g_g8g5_an_identifier_is_no_part_of_a_path(tmp_path, name):
    """There identifiers were pasted into the paths of requests. Here no id becomes a file's name, or a part of one."""
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    outside = [Path("/tmp/escaped"), tmp_path / "escaped", tmp_path.parent / "escaped"]
    assert not any(path.exists() for path in outside)
    with SqliteSaver(home / "runs.db") as store:

        @entrypoint()
        def named(x):
            return task(name=name)(lambda x: x)(x).result()

        named.invoke(1, checkpointer=store, run_id=name, thread_id=name)
        beside = {"runs.db", "runs.db-wal", "runs.db-shm", "runs.db-owners"}
        assert {path.name for path in home.iterdir()} == beside
    assert [*home.iterdir()] == [home / "runs.db"]
    assert [*tmp_path.iterdir()] == [home.parent]
    assert [*home.parent.iterdir()] == [home]
    assert not any(path.exists() for path in outside)


@pytest.mark.parametrize(
    "name", ["100%.db", "a b.db", "a?b.db", "a#b.db", "é.db", "%2e%2e.db", "a;b.db", "\udcff.db"]
)
def test_ghsa_w39p_vh2g_g8g5_a_quoted_name_in_a_url_is_that_name(tmp_path, name):
    """Whatever byte a name has: two of them are never one."""
    with contextlib.closing(from_url(f"sqlite:///{tmp_path}/{quote(os.fsencode(name), safe='')}")) as store:
        flow.invoke(1, checkpointer=store, run_id="r")
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [os.fsencode(name)]


@pytest.mark.parametrize("half", ["\ud800", "runs\udfff.db"])
def test_ghsa_w39p_vh2g_g8g5_what_can_be_no_file_is_refused(tmp_path, half):
    for make in (
        lambda: SqliteSaver(tmp_path / half),
        lambda: from_url(f"sqlite:///{tmp_path}/{half}"),
        lambda: PostgresSaver(f"postgresql://host/{half}"),
        lambda: from_url(f"postgresql://{half}@host/db"),
    ):
        with pytest.raises(InputError):
            make()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("odd", ["\n", "\r", "\t"])
def test_ghsa_w39p_vh2g_g8g5_nothing_is_left_out_of_a_url(tmp_path, odd):
    """`urlsplit` drops what ends a line: two URLs would be one file."""
    for url in (f"sqlite:///{tmp_path}/a{odd}b.db", f"sqlite:///{tmp_path}/ab.db?lease{odd}=5"):
        with pytest.raises(InputError):
            from_url(url)


RAW = """
import sys
from weft.cli.commands import run_command
sys.exit(run_command(sys.argv[1:]))
"""

FLOWS = """
from weft import entrypoint, interrupt
@entrypoint()
def asks(given):
    return interrupt(given)
"""


@pytest.fixture
def typed(tmp_path):
    (tmp_path / "flows.py").write_text(FLOWS)

    def run(*words):
        return subprocess.run(
            [sys.executable, "-c", RAW, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    return run


@pytest.mark.parametrize("run_id", ["$(touch pwned)", "a b; touch pwned", "`touch pwned`", "--help"])
def test_ghsa_w39p_vh2g_g8g5_what_a_command_says_to_type_does_what_it_says(tmp_path, typed, run_id):
    """An id in a command that is pasted into a shell is an id there, and neither words, options nor another command."""
    assert typed("run", "flows.py:asks", "--input", "1", "--run-id", run_id).returncode == 3
    shown = typed("show", "--json", "--", run_id).stdout
    question = shown.partition('"questions"')[2].partition('"id": "')[2].partition('"')[0]
    said = typed("answer", "--", run_id, f"{question}=7").stderr
    line = said.partition("go on with: weft ")[2].strip().replace("TARGET", "flows.py:asks")
    script = f'weft() {{ "{sys.executable}" -c "$CODE" "$@"; }}; weft {line}'
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "CODE": RAW, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
    assert not (tmp_path / "pwned").exists()


def test_ghsa_w39p_vh2g_g8g5_an_empty_id_is_refused_and_not_made_up(typed, tmp_path):
    """`--run-id "$RUN"` where there is no such variable must not begin a run that nobody finds again."""
    done = typed("run", "flows.py:asks", "--input", "1", "--run-id", "")
    assert done.returncode == 2
    assert "run_id" in done.stderr
    assert not (tmp_path / "weft.db").exists() or list(weft.runs(f"sqlite:///{tmp_path}/weft.db")) == []
