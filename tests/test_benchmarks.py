"""The benchmark runs and says what it is to say; how fast anything is, no test asks."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "overhead.py"


def overhead(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], check=False, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What it prints, and what it writes, for a handful of tasks."""
    path = tmp_path_factory.mktemp("overhead") / "figures.json"
    done = overhead("--sizes", "2,4", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text(encoding="utf-8"))


def test_every_contender_is_measured_at_every_size(run):
    _, figures = run
    contenders = {"asyncio", "sqlite", "weft", "weft+memory", "weft+sqlite"}
    for section in ("fanout", "chain"):
        assert set(figures["results"][section]) == contenders
        for by_size in figures["results"][section].values():
            assert set(by_size) == {"2", "4"}
            assert all(values and min(values) > 0 for found in by_size.values() for values in found.values())


def test_every_section_has_figures_beside_its_limit(run):
    _, figures = run
    results = figures["results"]
    assert {name: set(found) for name, found in results.items() if name not in ("fanout", "chain")} == {
        "blocks": {
            "asyncio",
            "weft parallel",
            "weft map",
            "weft map, generator",
            "weft map, stream",
            "weft map, sqlite",
        },
        "sequence": {"asyncio", "weft"},
        "sync-fanout": {"hop", "weft"},
        "sync-chain": {"hop", "weft", "weft, sync body"},
        "memory": {"asyncio", "weft", "weft+sqlite"},
        "runs": {"asyncio", "sqlite", "weft", "weft+sqlite"},
        "resume": {"fan-out", "chain"},
        "import": {'python -c ""', "import weft", "and what a run needs"},
    }
    for by_contender in results.values():
        for by_size in by_contender.values():
            assert all(len(values) == 1 for found in by_size.values() for values in found.values())


def test_the_table_names_the_machine_and_judges_the_targets(run):
    printed, figures = run
    assert f"filesystem {figures['machine']['filesystem']}" in printed.splitlines()[0]
    # Of the targets only those of the import do without 1,000 tasks.
    assert [verdict["target"].partition(",")[0] for verdict in figures["targets"]] == ["import", "import"]
    for verdict in figures["targets"]:
        assert verdict["met"] == (verdict["figure"] <= verdict["at_most"])
        word = "pass" if verdict["met"] else "MISS"
        assert any(word in line and verdict["target"] in line for line in printed.splitlines())


def test_one_section_can_be_measured_alone():
    done = overhead("--sizes", "3", "--quick", "--only", "chain")
    assert done.returncode == 0, done.stderr
    assert "chain of no-op async tasks" in done.stdout
    assert "fan-out" not in done.stdout


@pytest.mark.parametrize("wrong", [["--only", "chian"], ["--sizes", "0"], ["--sizes", "many"]])
def test_a_wrong_option_is_refused(wrong):
    done = overhead(*wrong)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# --- run.py: Weft beside its peers ----------------------------------------------------------------------------

BENCHMARKS = SCRIPT.parent
sys.path.insert(0, str(BENCHMARKS))

import contenders  # noqa: E402
import figures  # noqa: E402
import pictures  # noqa: E402
import run as runner  # noqa: E402
import workloads  # noqa: E402


def compared(*arguments):
    script = str(BENCHMARKS / "run.py")
    return subprocess.run(
        [sys.executable, script, "--quick", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Weft's styles and the limits, small."""
    folder = tmp_path_factory.mktemp("compared")
    chosen = [word for name in contenders.OURS for word in ("--only", name)]
    wanted = [
        word for name in ("chain", "fanout", "durable-fanout", "resume") for word in ("--workload", name)
    ]
    done = compared(*chosen, *wanted, "--json", str(folder / "figures.json"))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "figures.json").read_text(encoding="utf-8")), folder


def test_every_style_is_measured_beside_its_limits(comparison):
    _, content, _ = comparison
    found = {workload: set(by_name) for workload, by_name in content["results"].items()}
    styles = set(contenders.OURS) - {"weft map"}
    assert found == {
        "chain": {"asyncio", *styles},
        "fanout": {"asyncio", *contenders.OURS},
        "durable-fanout": {"sqlite", "sqlite, one each", *contenders.OURS},
        "resume": {"weft functional", "weft compose", "weft map"},
    }
    for by_name in content["results"].values():
        for by_size in by_name.values():
            assert all(values and min(values) > 0 for found in by_size.values() for values in found.values())
    assert content["skipped"]["chain"]["weft map"]["all"].startswith("its items do not follow")


def test_what_is_printed_has_versions_ratios_reasons_and_verdicts(comparison):
    printed, content, _ = comparison
    assert "filesystem" in printed.splitlines()[0]
    assert "weft 0." in printed
    assert " x sqlite, one each" in printed
    assert "not measured: its items do not follow each other" in printed
    assert content["targets"]
    for verdict in content["targets"]:
        below = verdict["at_most"] is None or verdict["figure"] <= verdict["at_most"]
        assert verdict["met"] == (below and verdict["figure"] >= (verdict["at_least"] or 0))


def test_the_pictures_are_whole_and_need_nothing_else(comparison):
    _, content, folder = comparison
    names = {path.name for path in folder.glob("*.svg")}
    assert names == {f"bars-{workload}.svg" for workload in content["results"]}
    for path in folder.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        ET.fromstring(text)
        assert "href" not in text
        assert all(name in text for name in content["results"][path.stem.removeprefix("bars-")])


def test_a_page_gets_its_tables_and_keeps_the_rest(comparison, tmp_path):
    _, content, folder = comparison
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- chain --><!-- end -->\nbetween\n<!-- fanout -->old<!-- end -->\nafter\n")
    command = [sys.executable, str(BENCHMARKS / "figures.py"), str(folder / "figures.json"), str(page)]
    for _ in range(2):  # a second time changes nothing
        subprocess.run(command, check=True, timeout=60)
    text = page.read_text()
    assert [line for line in text.splitlines() if line in ("before", "between", "after")] == [
        "before",
        "between",
        "after",
    ]
    assert "old" not in text
    assert text.count("| **Weft functional** |") == 2
    assert text.count("| µs a step |") == 1


def some(**by_name):
    return {name.replace("_", " "): {"1000": {"us": values}} for name, values in by_name.items()}


def test_a_ratio_is_formed_within_a_turn():
    results = {"chain": some(asyncio=[1.0, 10.0, 2.0], weft_functional=[2.0, 20.0, 6.0])}
    assert figures.ratio(results, "chain", "weft functional", "asyncio", "1000", "us") == 2.0
    assert figures.ratio(results, "chain", "weft graph", "asyncio", "1000", "us") is None


def test_targets_are_judged_by_the_median_ratio():
    results = {"chain": some(asyncio=[1.0, 1.0], weft_functional=[1.5, 1.5], weft_graph=[1.6, 1.6])}
    assert [(each["contender"], each["met"]) for each in figures.judge(results)] == [
        ("weft functional", True),
        ("weft graph", False),
    ]


def test_an_update_keeps_the_other_workloads_and_says_what_is_new():
    """What a workload could not do before is no longer so when it was measured anew."""
    before = {
        "contenders": {"asyncio": 1},
        "results": {"chain": 1, "wait": 1},
        "skipped": {"chain": 1, "wait": 1},
        "machine": "before",
    }
    new = {"contenders": {"asyncio": 2}, "results": {"wait": 2}, "skipped": {}, "machine": "after"}
    assert figures.updated(before, new) == {
        "contenders": {"asyncio": 2},
        "results": {"chain": 1, "wait": 2},
        "skipped": {"chain": 1},
        "machine": "before",
        "anew": {"wait": "after"},
    }


def test_what_is_flat_is_drawn_level():
    points = {str(size): {"us": [5.0]} for size in (10, 1_000, 100_000)}
    text = pictures.growth(workloads.BY_NAME["chain"], {"asyncio": points})
    (path,) = [each.get("points") for each in ET.fromstring(text) if each.tag.endswith("polyline")]
    assert len({pair.split(",")[1] for pair in path.split()}) == 1


def bench(**results):
    made = runner.Bench(runner.parsed([]))
    made.results = {"chain": results}
    return made


def test_what_would_take_too_long_is_said_and_not_begun():
    quadratic = {"1000": {"us": [100.0]}, "10000": {"us": [1_000.0]}}
    made = bench(GraphAI=quadratic, PocketFlow={"1000": {"us": [3.0]}, "10000": {"us": [3.0]}})
    chain = workloads.BY_NAME["chain"]
    assert not made._is_wanted(chain, "GraphAI", 100_000, 0)
    assert made.skipped["chain"]["GraphAI"] == {"100000": "would take some 1000 s"}
    assert made._is_wanted(chain, "PocketFlow", 100_000, 0)


def test_peers_and_slow_pairs_take_part_in_fewer_turns():
    one = {"10": {"us": [1.0]}}
    made = bench(**{"weft graph": one, "GraphAI": one, "asyncio": one})
    chain = workloads.BY_NAME["chain"]
    made._took["chain", "asyncio", 10] = runner.ONCE + 1
    turns = {
        name: [turn for turn in range(5) if made._is_wanted(chain, name, 10, turn)]
        for name in made.results["chain"]
    }
    assert turns == {"weft graph": [0, 1, 2, 3, 4], "GraphAI": [0, 1], "asyncio": [0]}


def test_wrong_results_are_no_figures():
    with pytest.raises(AssertionError):
        workloads.is_last(3)(2)
    with pytest.raises(AssertionError):
        workloads.are_all(3)([1, 2, 2])
    workloads.are_all(3)([3, 1, 2])


def test_a_contender_that_cannot_be_measured_is_said(monkeypatch):
    """One that is missing, and one that fails, cost a line each and not the run."""
    found, why = runner.child("--case", "asyncio", "chain", "-1", "0", "/", "asyncio", patience=60)
    assert found is None
    assert why
    made = runner.Bench(runner.parsed(["--quick"]))
    made.about = {
        "weft graph": {"versions": {}, "not": {}},
        "Ray": {"missing": "No module named 'ray'", "not": {}},
    }
    monkeypatch.setattr(runner, "child", lambda *words, patience: (None, "it broke"))
    made.measure(workloads.BY_NAME["chain"])
    assert made.skipped["chain"] == {
        "Ray": {"all": "not installed: No module named 'ray'"},
        "weft graph": {"10": "it broke"},
    }


def test_every_contender_is_a_file_that_says_what_it_cannot_do():
    """Those whose libraries are missing are read, not imported."""
    for module in contenders.NAMES.values():
        text = (BENCHMARKS / "contenders" / f"{module}.py").read_text(encoding="utf-8")
        assert text.startswith('"""')
        assert "PACKAGES = " in text
        compile(text, module, "exec")
    files = {path.stem for path in (BENCHMARKS / "contenders").glob("*.py")} - {"__init__"}
    assert files == set(contenders.NAMES.values())


@pytest.mark.parametrize(
    "wrong", [["--only", "Weft"], ["--workload", "chian"], ["--repeats", "0"], ["--update"]]
)
def test_a_wrong_choice_is_refused(wrong):
    done = compared(*wrong)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_what_a_run_executes_is_counted_by_module_and_by_function():
    script = SCRIPT.with_name("where.py")
    arguments = ["weft_graph", "chain", "2", "--durable", "--times", "2", "--most", "300"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    first, second, *tables = done.stdout.splitlines()
    assert first == "weft_graph, durable chain of 2:"
    assert "bytecodes and" in second
    names = {line.split()[-1] for line in tables if line}
    assert {"weft.engine.call", "weft.core.activation"} <= names
    assert "weft.engine.call:Call._deliver" in names
