"""The example that has all four styles in each other, as its users run it."""

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from killing import seeded

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "four_styles.py"
LETTERS = 6
AT_ONCE = 5  # what the example's Limit says


class Post:
    """One folder, and the command that prepares the letters there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.bill = folder / "four_styles.log"

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(SCRIPT), "--letters", str(LETTERS)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self) -> tuple[str, list[str]]:
        """What was prepared, and what is said about it."""
        out, err = self.start().communicate(timeout=60)
        assert not err
        prepared, _, said = out.partition("\n\n")
        return prepared, said.splitlines()

    def answers(self) -> list[str]:
        """Those of the model, to all processes."""
        return self.bill.read_text().splitlines() if self.bill.exists() else []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    post = Post(tmp_path_factory.mktemp("undisturbed"))
    return post, post.run()


def numbers(said: list[str]) -> list[int]:
    return [int(line.split()[0]) for line in said if line[0].isdigit()]


def test_all_letters_are_prepared_under_one_limit(undisturbed):
    post, (prepared, said) = undisturbed
    entries = re.findall(r"^(\d)\. (\w+), (?:calm|angry|hopeful): ", prepared, re.MULTILINE)
    topics = ["bridge", "market", "school", "bus", "bridge", "market"]
    assert entries == [(str(number), topic) for number, topic in enumerate(topics, 1)]
    assert re.findall(r"^   in draft \d: <translation \d of 'Haus (\d)", prepared, re.MULTILINE) == [*"246"]
    assert prepared.endswith("\nagenda: bridge, then bus, then market, then school")
    assert set(Counter(post.answers()).values()) == {1}
    assert numbers(said) == [len(post.answers()), 0, 0]
    assert said[0].endswith(f"at most {AT_ONCE} at once")


def test_what_is_prepared_is_shown_again_and_the_model_is_not_asked(undisturbed):
    post, (prepared, _) = undisturbed
    answers = post.answers()
    again, said = post.run()
    assert again == prepared
    assert numbers(said) == [0, len(answers), 0]
    assert post.answers() == answers


def kill_after(process: subprocess.Popen[str], post: Post, count: int, seconds: float) -> bool:
    """SIGKILL it so many seconds after so many answers; whether it was still running."""
    while process.poll() is None and len(post.answers()) < count:
        time.sleep(0.001)
    time.sleep(seconds)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


def test_killed_at_any_moment_it_goes_on_and_says_what_ran_again(undisturbed, tmp_path):
    """1. it is killed several times; 2. the same command ends it; 3. what it says of itself is what the bill says."""
    whole, (prepared, _) = undisturbed
    rng = seeded("four styles")
    post = Post(tmp_path)
    kills = at = 0
    while kills < 3:
        at += rng.randint(3, 15)
        if not kill_after(post.start(), post, at, rng.choice([0, rng.uniform(0, 0.2)])):
            break
        kills += 1
    earlier = post.answers()
    found, said = post.run()
    assert found == prepared
    assert set(post.answers()) == set(whole.answers())
    times = Counter(post.answers())
    assert times.total() - len(times) <= AT_ONCE * kills, "only what was on its way is asked for again"
    now = post.answers()[len(earlier) :]
    again = sorted({*earlier} & {*now})
    assert numbers(said) == [len(now), len({*earlier} - {*now}), len(again)]
    assert [line.strip() for line in said if line.startswith("  ")] == again
