"""What people see of a run: counts, plain lines, where what is shown."""

import asyncio
import io
import os
import sys
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weft
from weft import InputError, Limit, Sequence, entrypoint, node, parallel, task
from weft.core.outcome import Cancelled, Failed, Ok, TimedOut
from weft.engine import events
from weft.observe import progress, progress_lines
from weft.observe.progress import Progress, Tally, duration, printable
from weft.observe.progress_look import fitting
from weft.observe.progress_tally import Stage
from weft.observe.progress_words import error_text


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


def run_started(run="r", workflow="digest", **fields):
    return events.RunStarted(run_id=run, time=0.0, workflow=workflow, **fields)


def run_finished(status="finished", run="r"):
    return events.RunFinished(run_id=run, time=0.0, status=status, outcome=None)


def call(kind, id, step="read", parent="r", run="r", **fields):
    return kind(run_id=run, time=0.0, call_id=id, step=step, parent_id=parent, **fields)


def asked(id, **fields):
    return call(events.CallAsked, id, **fields)


def queued(id, *limits, **fields):
    return call(events.CallQueued, id, limits=limits, **fields)


def started(id, attempt=1, **fields):
    return call(events.CallStarted, id, attempt=attempt, args=(), kwargs={}, **fields)


def retrying(id, delay=1.0, **fields):
    return call(events.CallRetrying, id, attempt=1, delay=delay, error=ValueError("bad"), **fields)


def finished(id, outcome=None, **fields):
    return call(events.CallFinished, id, outcome=outcome or Ok(1), **fields)


def question(id, **fields):
    return call(events.QuestionAsked, id, question_id="q", value="?", **fields)


def take(tally, *many):
    return [line for event in many if (line := tally.take(event))]


def row(tally, *steps, workflow="digest"):
    found = tally.groups[workflow].root
    for step in steps:
        found = found.rows[step]
    return found


def line(tally, name="read"):
    """The line of a step, as it is shown now."""
    return next(each for look in tally.look() for each in look.lines if each.name == name)


def said(tally, name="read"):
    return [words for _, words in line(tally, name).parts]


def shown(tally):
    return [(each.depth, each.name, each.count) for look in tally.look() for each in look.lines]


def summary(tally):
    return [text for text, _ in tally.summaries()]


# Counting


def test_a_call_is_in_one_place_at_a_time(tally):
    take(tally, run_started(), asked("a"))
    assert said(tally) == [], "it waits for its turn: that is what total says"
    take(tally, started("a"))
    assert said(tally) == ["1 running"]
    take(tally, retrying("a"))
    assert said(tally) == ["1 retrying"]
    take(tally, queued("a", "openai"))
    assert said(tally) == ["1 waits for 'openai'"]
    take(tally, started("a", attempt=2))
    assert said(tally) == ["1 running"]
    take(tally, question("a"))
    assert said(tally) == ["1 waiting"]
    take(tally, started("a"), finished("a"))
    assert said(tally) == []
    assert line(tally).count == "1/1"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"outcome": Failed(ValueError())}, "1 failed"),
        ({"outcome": TimedOut(TimeoutError())}, "1 failed"),
        ({"outcome": Cancelled()}, "1 cancelled"),
        ({"recorded": True}, "1 reused"),
        ({"cached": True}, "1 reused"),
    ],
)
def test_every_end_is_counted(tally, fields, expected):
    take(tally, run_started(), asked("a"), finished("a", **fields))
    assert said(tally) == [expected]


def test_a_call_that_was_stopped_before_it_was_noticed_counts(tally):
    take(tally, run_started(), finished("a", Cancelled()))
    assert line(tally).count == "0/1"


def test_the_body_of_the_run_is_no_call_of_it(tally):
    body = {"step": "digest", "parent": ""}
    take(tally, run_started(), started("r", **body), finished("r", **body), run_finished())
    assert shown(tally) == []
    assert summary(tally) == ["digest: finished after 0 ms: 0 calls"]


def test_a_question_of_the_body_of_the_run_is_seen(tally):
    body = {"step": "digest", "parent": ""}
    take(tally, run_started(), started("r", **body), question("r", **body))
    assert [words for _, words in tally.look()[0].own] == ["1 waiting"]
    take(tally, started("r", **body))
    assert tally.look()[0].own == ()


def test_calls_of_a_suspended_run_wait_and_are_not_cancelled(tally):
    take(tally, run_started(), asked("a"), started("a"), question("a"), finished("a", Cancelled()))
    take(tally, run_finished("suspended"))
    assert said(tally) == ["1 waiting"]
    assert summary(tally) == ["digest: suspended after 0 ms: 0 calls, 1 waiting"]
    take(tally, run_started(resumed=True), asked("a"), started("a"), finished("a"), run_finished())
    assert shown(tally) == [(0, "read", "1/1")], "and are counted once when the run goes on"
    assert said(tally) == []


def test_the_rate_is_of_what_was_worked_on_and_gives_the_time_left(tally, clock):
    take(tally, run_started(), *[asked(str(n)) for n in range(100)])
    take(tally, *[finished(str(n), recorded=True) for n in range(50)])
    assert line(tally).rate is None
    for number in range(50, 60):
        take(tally, started(str(number)))
        clock.now += 1
        take(tally, finished(str(number)))
    assert line(tally).rate == pytest.approx(1.0)
    assert line(tally).left == pytest.approx(40)


def test_the_rate_forgets(tally, clock):
    take(tally, run_started(), *[asked(str(n)) for n in range(300)], started("0"))
    for number in range(100):
        clock.now += 1
        take(tally, finished(str(number)))
    for number in range(100, 290):
        clock.now += 0.1
        take(tally, finished(str(number)))
    assert line(tally).rate == pytest.approx(10, rel=0.2)
    assert len(row(tally, "read").samples) < 50


def test_nothing_is_kept_of_calls_and_runs_that_have_ended(tally):
    for run in "abc":
        take(tally, run_started(run))
        for number in range(1000):
            name, fields = str(number), {"run": run}
            take(tally, asked(name, **fields), queued(name, "x", **fields), started(name, **fields))
            take(tally, retrying(name, **fields), finished(name, **fields))
        assert not tally._runs[run].calls
        take(tally, run_finished(run=run))
    assert not tally._runs
    assert not row(tally, "read").waits
    assert not row(tally, "read").dues


def test_a_run_that_ends_with_calls_that_nobody_ends_leaves_none_at_work(tally):
    take(tally, run_started(), started("a"), queued("b", "x"), run_finished("cancelled"))
    assert said(tally) == ["2 cancelled"]


def test_there_are_never_more_rows_than_people_can_look_through(tally):
    take(tally, run_started(), *[asked(str(n), step=f"step{n}") for n in range(2_000)])
    assert len(tally.look()[0].lines) == 501
    assert line(tally, "other steps").count == "0/1500"


def test_the_summary_counts_everything(tally, clock):
    take(tally, run_started(resumed=True, recorded=1), asked("a"), finished("a", recorded=True))
    take(tally, asked("b"), started("b"), retrying("b"), started("b"), finished("b", Failed(ValueError())))
    clock.now += 75
    take(tally, run_finished("failed"))
    clock.now += 75
    assert summary(tally) == ["digest: failed after 1:15: 2 calls, 1 reused, 1 failed, 1 retried"]


def test_a_run_that_never_began_has_no_summary(tally):
    take(tally, run_finished("failed"))
    assert summary(tally) == []


def test_runs_of_one_workflow_are_added_up(tally):
    take(tally, run_started("a"), run_started("b"), run_started("c", workflow="other"))
    take(tally, started("1", run="a"), started("1", run="b"), finished("1", run="a"), run_finished(run="a"))
    assert [(look.name, look.runs) for look in tally.look()] == [("digest", "1/2 runs"), ("other", "")]
    assert line(tally).count == "1/2"
    take(tally, finished("1", run="b"), run_finished("failed", run="b"))
    assert summary(tally) == ["digest: 2 runs, 1 finished, 1 failed after 0 ms: 2 calls"]


def test_a_wait_before_a_retry_is_told_when_it_is_long(tally, clock):
    take(
        tally, run_started(), started("a"), started("b"), retrying("a", delay=90.0), retrying("b", delay=40.0)
    )
    assert said(tally) == ["2 retrying (the next in 40 s)"]
    assert line(tally).error == "ValueError: bad"
    clock.now += 39
    assert said(tally) == ["2 retrying"]
    take(tally, started("b", attempt=2))
    assert said(tally) == ["1 retrying (in 51 s)", "1 running"]


def test_the_last_error_is_told_without_secrets_and_not_kept(tally):
    secret = "sk-abcdefghijklmnop123456"
    error = ValueError(f"no \n{secret}\x1b[2J")
    take(tally, run_started(), started("a"), finished("a", Failed(error)))
    assert line(tally).error == "ValueError: no ***\ufffd[2J"
    assert row(tally, "read").error is None
    assert secret not in line(tally).words()


def test_an_error_that_cannot_be_shown_is_named():
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError

    assert error_text(Odd()) == "Odd"
    assert len(error_text(ValueError("x" * 100_000))) == 120


# Nesting


def test_steps_are_shown_below_what_asked_for_them(tally):
    take(tally, run_started(), asked("a", step="outer"), started("a", step="outer"))
    take(tally, asked("b", parent="a"), asked("c", step="other"), asked("d", step="read"))
    assert shown(tally) == [(0, "outer", "0/1"), (1, "read", "0/1"), (0, "other", "0/1"), (0, "read", "0/1")]


def test_what_is_nested_without_end_has_a_bounded_depth(tally):
    take(tally, run_started(), *[asked(str(n), parent=str(n - 1)) for n in range(1, 1001)])
    assert max(depth for depth, _, _ in shown(tally)) == 5
    assert sum(each.total for each in tally.look()[0].lines) == 1000


def watched(run):
    """A tally of a real run, and all that it showed on the way."""
    tally, seen = Tally(), []

    def watch(event):
        tally.take(event)
        seen.append(shown(tally))

    run(watch)
    return tally, seen


def test_how_many_there_are_is_known_where_a_list_is_mapped():
    _, seen = watched(lambda watch: node(abs).map(range(30), max_concurrent=2, observers=[watch]))
    assert (0, "abs", "1/30") in [each for now in seen for each in now]


def test_of_a_source_nobody_knows_how_many_there_are_until_it_ends():
    _, seen = watched(
        lambda watch: node(abs).map((n for n in range(30)), max_concurrent=2, observers=[watch])
    )
    assert any(count.endswith("+") for now in seen for _, _, count in now)
    assert seen[-1] == [(0, "abs", "30/30")]
    flow = Sequence(iter, weft.map(node(abs)), node("then")(len))
    _, seen = watched(lambda watch: flow.invoke(range(30), observers=[watch]))
    assert (0, "map(abs)", "30/30") in next(now for now in seen if now and now[-1][1] == "then")


def test_a_block_of_one_kind_has_one_line_and_one_of_several_has_one_for_each():
    flow = Sequence(
        range, weft.map(Sequence(node("load")(abs), parallel(node("a")(abs), node("b")(abs)), str))
    )
    _, seen = watched(lambda watch: flow.invoke(9, observers=[watch]))
    assert seen[-1] == [
        (0, "range", "1/1"),
        (0, "map(str)", "9/9"),
        (1, "load", "9/9"),
        (1, "parallel", "18/18"),
        (2, "a", "9/9"),
        (2, "b", "9/9"),
        (1, "str", "9/9"),
    ]
    counts = [count for now in seen for _, name, count in now if name == "load"]
    assert not {"1/9", "1/1", "2/2"} & set(counts), "who knows how often a sequence comes to it"
    counts = [count for now in seen for _, name, count in now if name == "a"]
    assert counts[0] == "0/1+"


def test_maps_in_a_map():
    flow = weft.map(weft.map(node("inner")(abs), max_concurrent=2), max_concurrent=2)
    _, seen = watched(lambda watch: flow.invoke([[1, 2, 3], [4], [5, 6]], observers=[watch]))
    assert seen[-1] == [(0, "map(inner)", "6/6")]
    flow = Sequence(list, flow)
    _, seen = watched(lambda watch: flow.invoke([[1, 2, 3], [4], [5, 6]], observers=[watch]))
    assert seen[-1] == [(0, "list", "1/1"), (0, "map(inner)", "3/3"), (1, "inner", "6/6")]


def test_what_waits_for_which_limit_is_told_with_its_size():
    limit, tally, seen = Limit("openai", concurrent=2), Tally(), set()

    @node(limit=limit)
    async def ask(n):
        await asyncio.sleep(0)
        seen.update(said(tally, "ask"))

    ask.map(range(5), max_concurrent=5, observers=[tally.take])
    assert "3 wait for 'openai' (2 at once)" in seen


def test_of_several_limits_the_full_one_is_told():
    full, free, tally, seen = Limit("full", concurrent=1), Limit("free", concurrent=100), Tally(), set()

    @node(limit=[free, full])
    async def ask(n):
        seen.update(said(tally, "ask"))
        await asyncio.sleep(0)

    ask.map(range(3), max_concurrent=3, observers=[tally.take])
    assert "2 wait for 'full' (1 at once)" in seen


STAGES = {"asked": asked, "queued": lambda name: queued(name, "x"), "started": started, "retrying": retrying}
ENDS = {"ok": Ok(1), "failed": Failed(ValueError()), "cancelled": Cancelled()}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([*STAGES, *ENDS])), max_size=60))
def test_the_counts_are_those_of_a_model(history):
    tally = Tally(Clock())
    take(tally, run_started())
    live, ended, total = {}, Counter(), 0
    for number, what in history:
        total += number not in live
        if what in STAGES:
            live[number] = what
            take(tally, STAGES[what](str(number)))
        else:
            live.pop(number, None)
            ended[what] += 1
            take(tally, finished(str(number), ENDS[what]))
    if not total:
        return
    found, now = row(tally, "read"), Counter(live.values())
    assert found.total == total
    assert (found.done, found.failed, found.cancelled) == (
        ended["ok"] + ended["failed"], ended["failed"], ended["cancelled"],
    )  # fmt: skip
    stages = {
        "asked": Stage.ASKED,
        "queued": Stage.QUEUED,
        "started": Stage.RUNNING,
        "retrying": Stage.RETRYING,
    }
    assert {what: found.live[stage] for what, stage in stages.items()} == {what: now[what] for what in stages}
    assert found.waits.total() == now["queued"]
    assert len(found.dues) == now["retrying"]


# What fits


def test_what_fits_is_the_most_interesting_with_what_it_is_in(tally):
    take(tally, run_started(), *[started(str(n), step=f"step{n}") for n in range(50)])
    take(tally, *[finished(str(n), step=f"step{n}") for n in range(40)])
    take(tally, started("x", step="broken", parent="45"), finished("x", Failed(ValueError()), step="broken"))
    (look,), left_out = fitting(tally.look(), 10)
    assert (left_out, len(look.lines), look.left_out) == (0, 8, 43)
    assert [each.name for each in look.lines if each.depth or each.name == "step45"] == ["step45", "broken"]
    assert {each.done for each in look.lines if each.name != "broken"} == {0}, "what has ended can wait"


@given(st.integers(1, 12), st.integers(0, 30), st.integers(2, 40))
def test_nothing_is_higher_than_the_screen(workflows, steps, room):
    tally = Tally(Clock())
    for number in range(workflows):
        take(tally, run_started(str(number), workflow=f"w{number}"))
        take(tally, *[asked(str(n), step=f"step{n}", run=str(number)) for n in range(steps)])
    looks, left_out = fitting(tally.look(), room)
    lines = sum(1 + len(look.lines) + bool(look.left_out) for look in looks) + bool(left_out)
    assert lines <= max(room, 4)
    assert len(looks) + left_out == workflows


# Plain lines


def lines_of(*many, pause=0.0):
    file = io.StringIO()
    with Progress(file) as display:
        for event in many:
            display(event)
        time.sleep(pause)
        display(run_finished())
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
    monkeypatch.setattr(progress_lines, "_EVERY", 0.05)
    text = lines_of(run_started(), asked("a"), started("a"), asked("b"), pause=0.4)
    news = [line for line in text.splitlines() if "0/2" in line]
    assert news == ["digest: read 0/2, 1 running"]


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

    with Progress(Gone()) as display:
        display(run_started())
        display(run_finished())


def test_a_file_that_blocks_does_not_hold_up_the_run():
    free = threading.Event()

    class Stuck(io.StringIO):
        def write(self, _text):
            free.wait(10)
            return 0

    with Progress(Stuck()) as display:
        began = time.monotonic()
        for event in (run_started(), asked("a"), started("a"), finished("a"), run_finished()):
            display(event)
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


def test_a_closed_stderr_is_no_reason_to_fail(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stderr in (None, closed):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert weft.map(abs, [-1], progress=True) == [1]


def test_a_full_pipe_holds_up_neither_the_run_nor_the_end_of_the_process(monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.05)
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 65536)
    except BlockingIOError:
        os.set_blocking(write, True)
    with os.fdopen(write, "w") as file:
        began = time.monotonic()
        assert weft.map(abs, [-1], progress=Progress(file)) == [1]
        assert time.monotonic() - began < 5
        file.flush()  # the buffer that all share is free
        while b"finished" not in os.read(read, 65536):
            pass
    os.close(read)


def test_lines_are_few_and_the_most_interesting_first(monkeypatch):
    monkeypatch.setattr(progress_lines, "_EVERY", 0.05)
    many = [event for n in range(30) for event in (asked(str(n), step=f"step{n}"),)]
    text = lines_of(run_started(), *many, finished("9", Failed(ValueError("why")), step="step9"), pause=0.4)
    assert text.splitlines()[1] == "digest: step9 1/1, 1 failed: ValueError: why"
    assert text.splitlines()[8] == "... and 23 more that go on"


# Which runs it shows


@pytest.fixture
def flow():
    @task
    def read(x):
        return x

    @entrypoint()
    def flow(n):
        return sum(f.result() for f in [read(x) for x in range(n)])

    return flow


async def _drained(stream):
    return [each async for each in stream]


VERBS = {
    "invoke": lambda flow, **options: flow.invoke(10, **options),
    "ainvoke": lambda flow, **options: asyncio.run(flow.ainvoke(10, **options)),
    "stream": lambda flow, **options: list(flow.stream(10, **options)),
    "astream": lambda flow, **options: asyncio.run(_drained(flow.astream(10, **options))),
    "submit": lambda flow, **options: flow.submit(10, **options).result(),
    "map": lambda flow, **options: flow.map([10], **options),
    "amap": lambda flow, **options: asyncio.run(flow.amap([10], **options)),
    "map().stream": lambda flow, **options: list(flow.map().stream([10], **options)),
    "map().astream": lambda flow, **options: asyncio.run(_drained(flow.map().astream([10], **options))),
    "pipeline": lambda flow, **options: weft.pipeline([10], flow, **options),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_progress_on_stderr(flow, verb, capfd):
    threads = set(threading.enumerate())
    VERBS[verb](flow, progress=True)
    for thread in set(threading.enumerate()) - threads:
        if thread.name == "weft-progress":
            thread.join(10)  # where nobody waits for the last line
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[0].endswith(": begins")
    assert "read: started" in err
    assert ": finished after " in err.splitlines()[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_shows_any_unless_it_is_asked_to(flow, verb, capfd):
    VERBS[verb](flow)
    VERBS[verb](flow, progress=False)
    assert capfd.readouterr() == ("", "")


def test_one_display_shows_several_runs(flow):
    file = io.StringIO()
    with Progress(file) as display:
        threads = [
            threading.Thread(target=flow.invoke, args=(5,), kwargs={"progress": display}) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        weft.map(abs, [1], progress=display)
    assert file.getvalue().count("flow: 4 runs, 4 finished after ") == 1
    assert file.getvalue().count("map(abs): finished after ") == 1


def test_a_display_can_be_used_again(flow):
    file = io.StringIO()
    display = Progress(file)
    flow.invoke(3, progress=display)
    flow.invoke(3, progress=display)
    assert file.getvalue().count("flow: finished after ") == 2
    assert file.getvalue().count(": 3 calls") == 2, "it has begun anew"


def test_what_progress_may_be(flow):
    with pytest.raises(InputError, match="progress must be True, False or a Progress, not 'yes'"):
        flow.invoke(1, progress="yes")


def test_many_graphs_at_a_time(capfd):
    @node(start=True, end=True)
    def double(x: int):
        return {"x": 2 * x}

    graph = weft.Graph().add_node(double).compile()
    found = asyncio.run(graph.execute_many([{"x": n} for n in range(3)], progress=True))
    assert [each["x"] for each in found] == [0, 2, 4]
    assert "double: started" in capfd.readouterr().err


# Words


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
