"""The example of the batch style, as its users run it."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from killing import kill_at_effect, seeded

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "batch_guides.py"
CITIES = ["Lisbon", "Nairobi", "Kyoto", "Quito"]


@pytest.fixture
def start(tmp_path):
    def begin(*cities):
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(SCRIPT), *cities, "--log", "answers.log"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def finish(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out, err


def answers(tmp_path):
    return Counter((tmp_path / "answers.log").read_text().splitlines())


def test_it_writes_all_guides(start, tmp_path):
    out, err = finish(start())
    assert re.findall(r"^(\w+), in draft [123]$", out, re.MULTILINE) == CITIES
    asked = answers(tmp_path)
    assert set(asked.values()) == {1}
    assert re.fullmatch(rf"{len(asked)} answers of the model, at most [2-6] at once\n", err)
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert len(lines) == 3 * len(CITIES)
    assert any("(nothing known)" in line for line in lines)
    assert finish(start()) == (out, "0 answers of the model\n")


def test_killed_it_goes_on_and_asks_for_nothing_twice(start, tmp_path):
    rng = seeded("guides")
    kills = at = 0
    while kills < 4:
        at += rng.randint(2, 9)
        if not kill_at_effect(start(*CITIES[:3]), tmp_path / "answers.log", at):
            break
        kills += 1
    out, _ = finish(start(*CITIES[:3]))
    again = sum(times - 1 for times in answers(tmp_path).values())
    assert again <= 6 * kills  # what was at work, and answered, and not yet on the disk
    (tmp_path / "guides.db").unlink()
    assert finish(start(*CITIES[:3]))[0] == out
