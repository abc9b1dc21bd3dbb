"""What people see of a run: counts, plain lines, and the live view."""

import io
import sys
import threading
import time

import pytest

from weft import UsageError, entrypoint, task
from weft.core.outcome import Cancelled, Failed, Ok, TimedOut
from weft.engine import events
from weft.observe import progress
from weft.observe.progress import Progress, Tally, duration, printable


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tally(clock):
    return Tally(clock)


def run_started(**fields):
    return events.RunStarted(run_id="r", time=0.0, workflow="digest", **fields)


def run_finished(status="finished"):
    return events.RunFinished(run_id="r", time=0.0, status=status, outcome=None)


def call(kind, id, step="read", parent="r", **fields):
    return kind(run_id="r", time=0.0, call_id=id, step=step, parent_id=parent, **fields)


def asked(id, **fields):
    return call(events.CallAsked, id, **fields)


def started(id, attempt=1, **fields):
    return call(events.CallStarted, id, attempt=attempt, args=(), kwargs={}, **fields)


def retrying(id, **fields):
    return call(events.CallRetrying, id, attempt=1, delay=1.0, error=ValueError(), **fields)


def finished(id, outcome=None, **fields):
    return call(events.CallFinished, id, outcome=outcome or Ok(1), **fields)


def question(id, **fields):
    return call(events.QuestionAsked, id, question_id="q", value="?", **fields)


def take(tally, *many):
    return [line for event in many if (line := tally.take(event))]


def said(tally, step="read"):
    return {what: count for what, count in tally.steps[step].parts() if count}


# Counting


def test_a_call_is_in_one_place_at_a_time(tally):
    take(tally, run_started(), asked("a"))
    assert said(tally) == {}, "it waits for its turn: that is what total says"
    take(tally, started("a"))
    assert said(tally) == {"running": 1}
    take(tally, retrying("a"))
    assert said(tally) == {"retrying": 1}
    take(tally, started("a", attempt=2))
    assert said(tally) == {"running": 1}
    take(tally, question("a"))
    assert said(tally) == {"waiting": 1}
    take(tally, started("a"), finished("a"))
    assert said(tally) == {}
    assert (tally.steps["read"].done, tally.steps["read"].total) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"outcome": Failed(ValueError())}, {"failed": 1}),
        ({"outcome": TimedOut(TimeoutError())}, {"failed": 1}),
        ({"outcome": Cancelled()}, {"cancelled": 1}),
        ({"recorded": True}, {"reused": 1}),
        ({"cached": True}, {"reused": 1}),
    ],
)
def test_every_end_is_counted(tally, fields, expected):
    take(tally, run_started(), asked("a"), finished("a", **fields))
    assert said(tally) == expected


def test_a_call_that_was_stopped_before_it_was_noticed_counts(tally):
    take(tally, run_started(), finished("a", Cancelled()))
    assert (tally.steps["read"].done, tally.steps["read"].total) == (0, 1)


def test_the_body_of_the_run_is_no_call_of_it(tally):
    take(tally, run_started(), started("r", step="digest", parent=""), run_finished())
    assert tally.steps == {}
    assert tally.summary() == "digest: finished after 0 ms: 0 calls"


def test_a_question_of_the_body_of_the_run_is_seen(tally):
    ask, again = question("r", step="digest", parent=""), started("r", step="digest", parent="")
    take(tally, run_started(), ask)
    assert said(tally, "digest") == {"waiting": 1}
    take(tally, again, finished("r", step="digest", parent=""), run_finished())
    assert said(tally, "digest") == {}
    assert tally.summary() == "digest: finished after 0 ms: 1 call"


def test_calls_of_a_suspended_run_wait_and_are_not_cancelled(tally):
    take(tally, run_started(), asked("a"), started("a"), question("a"), finished("a", Cancelled()))
    take(tally, run_finished("suspended"))
    assert said(tally) == {"waiting": 1}
    assert tally.summary() == "digest: suspended after 0 ms: 0 calls, 1 waiting"


def test_the_rate_is_of_what_was_worked_on_and_gives_the_time_left(tally, clock):
    take(tally, run_started(), *[asked(str(n)) for n in range(100)])
    take(tally, *[finished(str(n), recorded=True) for n in range(50)])
    step = tally.steps["read"]
    assert step.rate(clock()) is None
    for number in range(50, 60):
        take(tally, started(str(number)))
        clock.now += 1
        take(tally, finished(str(number)))
    assert step.rate(clock()) == pytest.approx(1.0)
    assert step.seconds_left(clock()) == pytest.approx(40)


def test_the_rate_forgets(tally, clock):
    take(tally, run_started(), *[asked(str(n)) for n in range(300)], started("0"))
    for number in range(100):
        clock.now += 1
        take(tally, finished(str(number)))
    for number in range(100, 290):
        clock.now += 0.1
        take(tally, finished(str(number)))
    assert tally.steps["read"].rate(clock()) == pytest.approx(10, rel=0.2)
    assert len(tally.steps["read"].samples) < 50


def test_nothing_is_kept_of_calls_that_have_ended(tally):
    take(tally, run_started())
    for number in range(1000):
        take(tally, asked(str(number)), started(str(number)), finished(str(number)))
    assert not tally._stages


def test_the_summary_counts_everything(tally, clock):
    take(tally, run_started(resumed=True, recorded=1), asked("a"), finished("a", recorded=True))
    take(tally, asked("b"), started("b"), retrying("b"), started("b"), finished("b", Failed(ValueError())))
    clock.now += 75
    take(tally, run_finished("failed"))
    clock.now += 75
    assert tally.summary() == "digest: failed after 1:15: 2 calls, 1 reused, 1 failed, 1 retried"


def test_a_run_that_never_began_has_no_summary(tally):
    take(tally, run_finished("failed"))
    assert tally.summary() is None


# Plain lines


def lines_of(*many, pause=0.0):
    file = io.StringIO()
    with Progress(file) as shown:
        for event in many:
            shown(event)
        time.sleep(pause)
        shown(run_finished())
    return file.getvalue()


def test_plain_lines_name_each_step_once_and_end_with_a_summary():
    many = [event for name in "abc" for event in (asked(name), started(name), finished(name))]
    text = lines_of(
        run_started(), *many, asked("d", step="join"), started("d", step="join"), finished("d", step="join")
    )
    assert text.splitlines()[:-1] == ["digest: begins", "read: started", "join: started"]
    assert text.splitlines()[-1].startswith("digest: finished after ")
    assert text.endswith(": 4 calls\n")


def test_a_plain_line_comes_now_and_then_and_only_with_news(monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.05)
    text = lines_of(run_started(), asked("a"), started("a"), asked("b"), pause=0.4)
    news = [line for line in text.splitlines() if "0/2" in line]
    assert news == ["read 0/2, 1 running"]


def test_a_resumed_run_says_what_is_recorded():
    assert lines_of(run_started(resumed=True, recorded=7)).startswith("digest: goes on, 7 calls recorded\n")


def test_names_cannot_steer_the_terminal():
    text = lines_of(run_started(), started("a", step="\x1b[2J\x9bevil"))
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "evil: started" in text


def test_a_reader_that_went_away_does_not_disturb_the_run():
    class Gone(io.StringIO):
        def write(self, _text):
            raise BrokenPipeError

    with Progress(Gone()) as shown:
        shown(run_started())
        shown(run_finished())


def test_a_file_that_blocks_does_not_hold_up_the_run():
    free = threading.Event()

    class Stuck(io.StringIO):
        def write(self, _text):
            free.wait(10)
            return 0

    with Progress(Stuck()) as shown:
        began = time.monotonic()
        for event in (run_started(), asked("a"), started("a"), finished("a"), run_finished()):
            shown(event)
        assert time.monotonic() - began < 1
        free.set()


@pytest.mark.parametrize(
    ("name", "value", "live"),
    [("CI", "true", False), ("CI", "false", True), ("NO_COLOR", "1", False), ("TERM", "dumb", False)],
)
def test_where_it_is_plain(monkeypatch, name, value, live):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for variable in ("CI", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    assert progress._is_live(Terminal(), None) is live
    assert progress._is_live(io.StringIO(), None) is False


# The live view


def test_the_live_view_ends_with_the_final_counts():
    file = io.StringIO()
    with Progress(file, live=True) as shown:
        shown(run_started())
        for event in (
            asked("a"),
            asked("b"),
            started("a"),
            finished("a"),
            finished("b", Failed(ValueError())),
        ):
            shown(event)
        shown(run_finished())
    assert "2/2" in file.getvalue()
    assert "1 failed" in file.getvalue()
    assert "digest: finished after" in file.getvalue()


def test_two_live_views_do_not_draw_over_each_other():
    first, second = io.StringIO(), io.StringIO()
    with Progress(first, live=True), Progress(second, live=True) as shown:
        shown(run_started())
        shown(run_finished())
    assert second.getvalue().startswith("digest: begins\n")
    with Progress(third := io.StringIO(), live=True) as shown:
        shown(run_started())
        shown(asked("a"))
        shown(run_finished())
    assert "0/1" in third.getvalue(), "the place is free again"


def test_more_steps_than_lines():
    file = io.StringIO()
    with Progress(file, live=True) as shown:
        shown(run_started())
        for number in range(100):
            shown(asked(f"{number}", step=f"step{number}"))
        shown(run_finished())
    assert "more" in file.getvalue()


def test_without_rich_a_live_view_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(UsageError, match=r'pip install "weft\[cli\]"'):
        Progress(io.StringIO(), live=True)
    Progress(io.StringIO())  # lines need nothing


# In a real run


def test_a_run_with_progress_tells_on_stderr(capfd):
    @task
    def read(x):
        return x

    @entrypoint()
    def flow(n):
        return sum(f.result() for f in [read(x) for x in range(n)])

    assert flow.invoke(10, progress=True) == 45
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[:2] == ["flow: begins", "read: started"]
    assert "10 calls" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "40 ms"),
        (0.0999, "0.1 s"),
        (9.949, "9.9 s"),
        (9.95, "10 s"),
        (59.6, "1:00"),
        (3599.7, "1:00:00"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_printable():
    assert printable("a b\u00e9") == "a b\u00e9"
    assert printable("a\nb\x1b") == "a\ufffdb\ufffd"
