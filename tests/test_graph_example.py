"""The example of the graph style, as its users run it."""

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from killing import seeded

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "research_graph.py"
TOPICS = ["Eddystone", "Winstanley", "Rudyerd", "Smeaton", "Douglass", "great storm", "hydraulic lime"]
AT_ONCE = 2  # what the example's Limit says
END = "The sea was hollowing out the rock under it.  (page 'the end')"


class Research:
    """One folder, and the command that researches there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = folder / "answers.log"

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(SCRIPT), "--log", str(self.log), *options],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str) -> tuple[str, list[str], str]:
        """The report, the history and the last line."""
        out, err = self.start(*options).communicate(timeout=60)
        assert not err
        report, history, last = out.partition("\nWhy ")[2].rsplit("\n\n", 2)
        return report, history.splitlines(), last

    def requests(self) -> list[str]:
        """What was asked and answered, by all processes, in that order."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    research = Research(tmp_path_factory.mktemp("undisturbed"))
    return research, research.run()


def test_it_finds_all_that_is_known_although_sources_fail(undisturbed):
    research, (report, history, last) = undisturbed
    assert [line for line in report.splitlines()[1:] if line and line[0] != " "] == TOPICS
    assert END in report
    assert set(Counter(research.requests()).values()) == {1}
    rounds = [int(re.match(r"round (\d): ", line)[1]) for line in history]
    assert rounds == sorted(rounds)
    assert set(rounds) == {*range(1, 8)}, "a topic a round"
    assert "round 6: no archive: the archive of that year is closed" in history
    assert len(set(history)) == len(history), "what was appended on a branch is there once"
    assert re.search(r"troubles: 1 closed, [1-9] hung, \d lost$", last), "never refused: the limit is kept"


def test_a_finished_research_is_told_again_and_nobody_is_asked(undisturbed):
    research, (report, history, _) = undisturbed
    asked = research.requests()
    again = research.run()
    assert again[:2] == (report, history)
    assert again[2].startswith("0 requests answered")
    assert research.requests() == asked


def kill_after(process: subprocess.Popen[str], research: Research, count: int, seconds: float) -> bool:
    """SIGKILL it so many seconds after so many answers; whether it was still running."""
    while process.poll() is None and len(research.requests()) < count:
        time.sleep(0.001)
    time.sleep(seconds)
    alive = process.poll() is None
    process.kill()
    process.communicate()
    return alive


def test_killed_at_any_moment_it_goes_on_and_never_goes_back(undisturbed, tmp_path):
    """1. it is killed several times; 2. the same command ends it; 3. no round that was over is asked about again."""
    _, (report, history, _) = undisturbed
    rng = seeded("research")
    research = Research(tmp_path)
    kills = answers = 0
    while kills < 3:
        answers += rng.randint(2, 7)
        if not kill_after(research.start(), research, answers, rng.choice([0, rng.uniform(0, 0.15)])):
            break
        kills += 1
    found = research.run()
    assert found[0] == report
    assert sorted(found[1]) == sorted(history)
    requests = research.requests()
    assert Counter(requests).total() - len(set(requests)) <= AT_ONCE * kills, "what was on its way, at most"
    topics = [TOPICS.index(re.split(r": |/", request)[1]) for request in requests]
    assert topics == sorted(topics), "what a router has gone on from is never asked for again"


def test_ctrl_c_stops_it_and_it_can_go_on(tmp_path):
    research = Research(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of `pytest &` would ignore it
    try:
        process = research.start("Who was Rudyerd?")
    finally:
        signal.signal(signal.SIGINT, before)
    while process.poll() is None and not research.requests():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert err == "research: stopped; the same command goes on from here\n"
    assert process.returncode == 130
    out, _ = research.start("Who was Rudyerd?").communicate(timeout=30)
    assert "lantern took fire" in out
