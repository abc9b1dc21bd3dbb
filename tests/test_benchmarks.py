"""The benchmark runs and says what it is to say; how fast anything is, no test asks."""

import json
import subprocess
import sys
from pathlib import Path

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
