"""The model of a timeline: what happened when, what decided when the run ended, what limits cost."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weft
from weft.core.outcome import Cancelled, Failed, NotStarted, Ok, TimedOut
from weft.engine import events
from weft.observe.timeline import BODY, Link, Piece, Span, Timeline, TimelineRecorder, _covered, most_at_once
from weft.observe.timeline_rows import Scale, arranged, chosen, clock_text, kind_of, notes, step_lanes, took

BEGAN = 1_700_000_000.0


class Told:
    """Events of a run, with times since it began."""

    def __init__(self, workflow="work"):
        self.events = [events.RunStarted(run_id="r", time=BEGAN, workflow=workflow)]
        self.add(events.CallStarted, 0.0, "root", "work", "", attempt=1, args=(), kwargs={})

    def add(self, kind, at, call, step="step", parent="root", **fields):
        known = {"call_id": f"r:{call}", "step": step, "parent_id": parent and f"r:{parent}"}
        self.events.append(kind(run_id="r", time=BEGAN + at, **known, **fields))

    def asked(self, at, call, **where):
        self.add(events.CallAsked, at, call, **where)

    def queued(self, at, call, *limits, **where):
        self.add(events.CallQueued, at, call, limits=limits, **where)

    def started(self, at, call, attempt=1, **where):
        self.add(events.CallStarted, at, call, attempt=attempt, args=(), kwargs={}, **where)

    def retrying(self, at, call, attempt=1, **where):
        self.add(events.CallRetrying, at, call, attempt=attempt, delay=1.0, error=ValueError("x"), **where)

    def finished(self, at, call, outcome=Ok(1), **fields):
        self.add(events.CallFinished, at, call, outcome=outcome, **fields)

    def call(self, asked, started, ended, call, *limits, **where):
        self.asked(asked, call, **where)
        if limits:
            self.queued(asked, call, *limits, **where)
        self.started(started, call, **where)
        self.finished(ended, call, **where)

    def end(self, at, status="finished"):
        self.finished(at, "root", step="work", parent="")
        self.events.append(events.RunFinished(run_id="r", time=BEGAN + at, status=status, outcome=None))

    def timeline(self, **options):
        return Timeline.of_events(self.events, **options)


def span(name, asked, ended, *, parent="", waited=0.0, limits=(), step=None, **fields):
    started = asked + waited
    pieces = [Piece("waiting", asked, started), Piece("running", started, ended)]
    given = tuple(piece for piece in pieces if piece.seconds > 0)
    return Span(name, step or name, parent, asked, started, ended, "ok", given, limits=limits, **fields)


def timeline(*spans, seconds=None, **fields):
    end = max((each.ended for each in spans), default=0.0) if seconds is None else seconds
    ordered = tuple(sorted(spans, key=lambda each: each.asked))
    return Timeline("r", "work", "finished", BEGAN, end, ordered, **fields)


# From events


def test_a_call_waits_runs_and_ends():
    told = Told()
    told.asked(1.0, "a")
    told.queued(1.0, "a", "api", "max_concurrent")
    told.started(3.0, "a")
    told.finished(4.5, "a")
    told.end(5.0)
    found = told.timeline()
    (call,) = found.spans
    assert call == Span(
        "a", "step", "", 1.0, 3.0, 4.5, "ok",
        (Piece("waiting", 1.0, 3.0), Piece("running", 3.0, 4.5)), 1, ("api", "max_concurrent"),
    )  # fmt: skip
    assert (call.seconds, call.waited, call.worked) == (3.5, 2.0, 1.5)
    assert (found.run_id, found.workflow, found.status, found.began) == ("r", "work", "finished", BEGAN)
    assert (found.seconds, found.work, found.widest) == (5.0, 1.5, 1)


def test_attempts_and_the_time_between_them_are_told_apart():
    told = Told()
    told.asked(0.0, "a")
    told.started(0.0, "a")
    told.retrying(1.0, "a")
    told.queued(3.0, "a", "api")  # the next attempt waits for its limits again
    told.started(3.5, "a", attempt=2)
    told.finished(4.0, "a", attempts=2)
    (call,) = told.timeline().spans
    assert call.pieces == (
        Piece("failed", 0.0, 1.0),
        Piece("backoff", 1.0, 3.0),
        Piece("waiting", 3.0, 3.5),
        Piece("running", 3.5, 4.0),
    )
    assert (call.attempts, call.retries, call.worked, call.limits) == (2, (1.0,), 1.5, ("api",))


def test_a_question_is_no_work():
    told = Told()
    told.asked(0.0, "a")
    told.started(0.0, "a")
    told.add(events.QuestionAsked, 1.0, "a", question_id="q", value=None)
    told.started(9.0, "a")
    told.finished(10.0, "a")
    found = told.timeline()
    assert found.spans[0].spent("asking") == 8.0
    assert found.work == 2.0


@pytest.mark.parametrize(
    ("outcome", "name", "error"),
    [
        (Failed(ValueError("no")), "failed", "ValueError: no"),
        (Failed(KeyError()), "failed", "KeyError"),
        (TimedOut(TimeoutError("late")), "timed_out", "TimeoutError: late"),
        (Cancelled("a sibling failed"), "cancelled", "a sibling failed"),
        (NotStarted(), "not_started", None),
    ],
)
def test_how_calls_end(outcome, name, error):
    told = Told()
    told.asked(0.0, "a")
    told.finished(1.0, "a", outcome)
    (call,) = told.timeline().spans
    assert (call.outcome, call.error) == (name, error)


def test_an_error_that_cannot_be_shown_is_named_and_a_long_one_is_cut():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    told = Told()
    for name, error in (("a", Mute()), ("b", ValueError("x" * 10_000))):
        told.asked(0.0, name)
        told.finished(1.0, name, Failed(error))
    mute, long = told.timeline().spans
    assert mute.error == "Mute"
    assert len(long.error) == 300


def test_what_is_reused_does_nothing():
    told = Told()
    for name, how in (("a", {"recorded": True}), ("b", {"cached": True})):
        told.asked(1.0, name)
        told.finished(1.5, name, **how)
    found = told.timeline()
    assert [(call.reused, call.pieces) for call in found.spans] == [("recorded", ()), ("cached", ())]
    assert found.work == 0.0


def test_open_calls_go_until_now():
    told = Told()
    told.asked(1.0, "a")
    told.started(2.0, "a")
    told.asked(2.5, "b")
    assert [(call.ended, call.outcome) for call in told.timeline().spans] == [(2.5, "open")] * 2
    found = told.timeline(now=BEGAN + 7.0)
    assert [call.pieces[-1] for call in found.spans] == [
        Piece("running", 2.0, 7.0),
        Piece("waiting", 2.5, 7.0),
    ]
    assert (found.status, found.seconds) == ("running", 7.0)


def test_a_clock_that_is_set_back_gives_no_negative_times():
    told = Told()
    told.asked(5.0, "a")
    told.started(4.0, "a")
    told.finished(3.0, "a")
    told.end(2.0)
    found = told.timeline()
    (call,) = found.spans
    assert call.asked <= call.ended <= found.seconds
    assert call.pieces == ()


def test_children_of_what_nobody_told_of_belong_to_the_body():
    told = Told()
    told.call(0.0, 0.0, 1.0, "a", parent="glue")
    told.call(0.0, 0.0, 1.0, "b", parent="a")
    assert {call.id: call.parent for call in told.timeline().spans} == {"a": "", "b": "a"}


def test_a_body_without_calls_is_shown_itself():
    told = Told()
    told.end(2.0)
    (call,) = told.timeline().spans
    assert (call.step, call.parent, call.seconds) == ("work", "", 2.0)


def test_events_that_were_lost_are_owned_up_to():
    told = Told()
    told.call(0.0, 0.0, 5.0, "a")
    told.call(6.0, 6.0, 7.0, "b")
    told.end(8.0)
    lost = events.EventsLost(run_id="r", time=BEGAN + 5.0, count=4)
    found = Timeline.of_events([lost, *told.events[4:]])
    assert found.lost == 4
    assert [(call.id, call.asked, call.ended) for call in found.spans] == [("a", 0.0, 0.0), ("b", 1.0, 2.0)]
    assert (found.began, found.seconds, found.status) == (BEGAN + 5.0, 3.0, "finished")
    assert list(notes(found)) == ["4 events were not kept; what they told of is missing."]
    # what ends after them went on from there
    told.finished(9.0, "c")
    (*_, call) = sorted(Timeline.of_events([lost, *told.events[4:]]).spans, key=lambda each: each.ended)
    assert (call.id, call.asked, call.pieces) == ("c", 0.0, (Piece("running", 0.0, 4.0),))


def test_an_observer_keeps_what_a_timeline_needs():
    told = Told()
    told.call(0.0, 0.0, 5.0, "a")
    recorder = TimelineRecorder()
    for event in told.events:
        recorder(event)
    assert recorder.timeline() == told.timeline()
    assert recorder.timeline(now=BEGAN + 9).seconds == 9


def test_no_events_give_an_empty_timeline():
    found = Timeline.of_events([])
    assert (found.spans, found.path, dict(found.limits), found.widest) == ((), (), {}, 0)


# From a journal


@dataclass
class Recorded:
    step: str
    id: str
    parent: str = ""
    outcome: str = "ok"
    attempts: int = 1
    asked: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    limits: tuple[str, ...] = ()
    error: str | None = None


def at(seconds):
    return datetime.fromtimestamp(BEGAN + seconds, UTC)


def of_calls(*calls, status="finished", updated=0.0):
    return Timeline.of_calls(
        calls, run_id="r", workflow="work", status=status, created=at(0.0), updated=at(updated)
    )


def test_a_recorded_call_is_as_its_events_told_it():
    told = Told()
    told.call(0.5, 0.5, 2.0, "a")
    told.call(0.5, 1.5, 3.0, "b", "api", parent="a")
    told.end(3.5)
    recorded = of_calls(
        Recorded("step", "b", "a", asked=at(0.5), started=at(1.5), ended=at(3.0), limits=("api",)),
        Recorded("step", "a", asked=at(0.5), started=at(0.5), ended=at(2.0)),
        updated=3.5,
    )
    live = told.timeline()
    assert set(recorded.spans) == set(live.spans)
    assert (recorded.path, recorded.seconds) == (live.path, live.seconds)
    assert recorded.is_recorded
    assert not live.is_recorded


def test_of_several_attempts_only_the_last_is_known():
    found = of_calls(Recorded("s", "a", attempts=3, asked=at(0), started=at(5), ended=at(6)))
    (call,) = found.spans
    assert call.pieces == (Piece("earlier", 0.0, 5.0), Piece("running", 5.0, 6.0))
    assert (call.started, call.worked) == (None, 1.0)


def test_times_that_are_not_recorded_are_done_without():
    found = of_calls(
        Recorded("s", "a", ended=at(4)), Recorded("s", "b", started=at(1), ended=at(3)), Recorded("s", "c")
    )
    assert [(call.id, call.asked, call.ended) for call in found.spans] == [("b", 1.0, 3.0), ("a", 4.0, 4.0)]


def test_a_run_that_was_resumed_the_next_day_has_a_pause():
    found = of_calls(
        Recorded("s", "a", asked=at(1), started=at(1), ended=at(100)),
        Recorded("s", "b", asked=at(90_000), started=at(90_000), ended=at(90_100)),
        updated=90_101,
    )
    assert found.pauses == ((100.0, 90_000.0),)
    assert found.paused == 89_900
    scale = Scale(found)
    assert scale.at(90_000) - scale.at(100) < 0.05
    assert [words for _, words in scale.ticks(4)] == ["0", "1:00", "1 d 1:00:00", "1 d 1:01:00"]


def test_a_gap_is_a_pause_only_if_it_takes_more_than_half_of_what_went_on():
    calls = [
        Recorded("s", "a", ended=at(1), started=at(0)),
        Recorded("s", "b", started=at(101), ended=at(400)),
    ]
    assert of_calls(*calls).pauses == ()
    calls[1] = replace(calls[1], ended=at(200))
    assert of_calls(*calls).pauses == ((1.0, 101.0),)


def test_short_gaps_are_no_pauses():
    calls = [
        Recorded("s", str(n), asked=at(n * 50), started=at(n * 50), ended=at(n * 50 + 1)) for n in range(5)
    ]
    assert of_calls(*calls).pauses == ()


def test_a_live_run_and_its_record_tell_the_same():
    @weft.task(limit=weft.Limit("api", concurrent=2))
    async def fetch(number):
        return number

    @weft.entrypoint()
    async def work(count):
        return [await each for each in [fetch(number) for number in range(count)]]

    store = weft.InMemorySaver()
    run = work.submit(5, checkpointer=store, run_id="r")
    assert run.result(10) == [0, 1, 2, 3, 4]
    live = Timeline.of_events(list(run.events()))
    info = weft.runs(store).show("r")
    recorded = Timeline.of_calls(
        info.calls, run_id=info.id, workflow=info.workflow, status=info.status,
        created=info.created, updated=info.updated,
    )  # fmt: skip
    assert (live.workflow, live.status) == (recorded.workflow, recorded.status) == ("work", "finished")
    known = {call.id: call for call in recorded.spans}
    assert len(live.spans) == 5
    for call in live.spans:
        assert (call.step, call.parent, call.limits) == (
            known[call.id].step,
            known[call.id].parent,
            known[call.id].limits,
        )
    assert recorded.limits["api"].calls == live.limits["api"].calls == 3


# What decided when the run ended


def test_the_path_goes_from_call_to_call_that_waited_for_it():
    found = timeline(span("a", 0, 2), span("b", 0, 3), span("c", 3, 5), span("d", 3, 4), seconds=5)
    assert found.path == (Link("b", 0, 3), Link("c", 3, 5))
    assert found.critical_path == ("b", "c")


def test_the_path_goes_into_blocks_and_names_what_bodies_did_themselves():
    found = timeline(
        span("block", 1, 9),
        span("x", 1, 4, parent="block"),
        span("y", 4, 8, parent="block"),
        span("z", 1, 2, parent="block"),
        seconds=10,
    )
    assert found.path == (
        Link(BODY, 0, 1), Link("x", 1, 4), Link("y", 4, 8), Link("block", 8, 9), Link(BODY, 9, 10),
    )  # fmt: skip
    assert found.critical_path == ("x", "y", "block")


def test_what_waited_for_a_limit_waited_for_the_call_that_gave_it_free():
    found = timeline(
        span("a", 0, 2, step="s"),
        span("b", 0, 5, step="s", waited=2, limits=("api",)),
        span("c", 0, 6, step="s", waited=5, limits=("api",)),
        span("d", 0, 1, step="other"),
        seconds=6,
    )
    assert found.path == (Link("a", 0, 2), Link("b", 2, 5), Link("c", 5, 6))
    cost = found.limits["api"]
    assert (cost.seconds, cost.calls, cost.longest) == (7, 2, 5)
    assert cost.critical == 5  # of b's and c's together, not 7


def test_the_one_that_gave_way_may_be_in_another_block_and_be_seen_a_little_later():
    found = timeline(
        span("one", 0, 2.01),
        span("two", 0, 4),
        span("a", 0, 2.01, parent="one", step="s"),
        span("b", 0, 4, parent="two", step="s", waited=2, limits=("api",)),
        seconds=4,
    )
    assert found.path == (Link("a", 0, 2), Link("b", 2, 4))


def test_who_only_began_when_the_limit_was_free_did_not_hold_it():
    found = timeline(
        span("a", 0, 1, step="s"),
        span("late", 2, 2.02, step="s"),  # ended just after b began, but began just then too
        span("b", 0, 5, step="s", waited=2, limits=("api",)),
        seconds=5,
    )
    assert found.path == (Link("a", 0, 1), Link("b", 2, 5))


def test_waiting_is_counted_once_where_a_short_one_lies_in_a_long_one():
    found = timeline(
        span("a", 0, 1),
        span("c", 1, 4, waited=2, limits=("api",)),
        span("b", 0, 9, waited=4, limits=("api",)),
        seconds=9,
    )
    assert found.critical_path == ("a", "c", "b")
    assert found.limits["api"].critical == 4
    assert _covered([(0, 4), (1, 3), (2, 5), (7, 8)]) == 6


def test_waiting_for_a_rate_is_on_the_path_itself():
    found = timeline(
        span("a", 0, 1, step="s"), span("b", 1, 9, step="s", waited=6, limits=("rate",)), seconds=9
    )
    assert found.path == (Link("a", 0, 1), Link("b", 1, 9, 6))
    assert found.limits["rate"].critical == 6


def test_a_thousand_calls_deep():
    deep = [span(str(n), n, 2000 - n, parent=str(n - 1) if n else "") for n in range(1000)]
    found = timeline(*deep, seconds=2000)
    assert found.critical_path == ("999",)
    assert arranged(found, shared=True).lanes == 1000
    assert kind_of(found) == "steps"


def brute_path(spans, seconds):
    """Of calls that neither waited nor asked for others: always to the one that ended last before."""
    found, moment, left = [], seconds, list(spans)
    while fitting := [each for each in left if each.ended <= moment]:
        last = max(fitting, key=lambda each: each.ended)
        left.remove(last)
        if last.ended > last.asked:
            found.append(last.id)
        moment = min(moment, last.asked)
    return tuple(reversed(found))


TIMES = st.integers(0, 60)


@given(st.lists(st.tuples(TIMES, st.integers(1, 20)), max_size=30))
def test_the_path_of_flat_runs_is_that_of_the_simplest_search(drawn):
    # every end once, so that no choice is left
    ends = {asked + took_: (asked, asked + took_) for asked, took_ in drawn}
    spans = [span(f"s{n}", *times) for n, times in enumerate(ends.values())]
    found = timeline(*spans)
    assert found.critical_path == brute_path(spans, found.seconds)


@st.composite
def trees(draw, most=40):
    """Calls with parents around them, waits and limits."""
    count = draw(st.integers(0, most))
    made = []
    for number in range(count):
        parent = draw(st.sampled_from([None, *made])) if made else None
        first, last = (parent.asked, parent.ended) if parent else (0.0, 60.0)
        asked, ended = sorted(draw(st.tuples(st.floats(first, last), st.floats(first, last))))
        waited = draw(st.sampled_from([0.0, 0.5, 1.0])) * (ended - asked)
        limits = draw(st.sampled_from([(), ("a",), ("a", "b")])) if waited else ()
        step = draw(st.sampled_from(["s", "t", "u"]))
        made.append(
            span(
                f"i{number}",
                asked,
                ended,
                parent=parent.id if parent else "",
                waited=waited,
                limits=limits,
                step=step,
            )
        )
    return timeline(*made, seconds=60.0)


@given(trees())
@settings(max_examples=300)
def test_the_path_is_one_way_through_time(found):
    path = found.path
    assert all(link.end > link.start for link in path)
    assert all(one.end <= other.start + 1e-9 for one, other in pairwise(path))
    for link in path:
        if link.id != BODY:
            call = found.by_id[link.id]
            assert call.asked <= link.start
            assert link.end <= call.ended
            assert 0 <= link.waiting <= link.seconds + 1e-9
    for cost in found.limits.values():
        assert 0 <= cost.critical <= cost.seconds + 1e-9
        assert cost.longest <= cost.seconds + 1e-9


@given(st.lists(st.tuples(TIMES, TIMES), max_size=40))
def test_most_at_once_is_what_counting_at_every_moment_finds(whiles):
    moments = {start for start, _ in whiles}
    counts = [sum(start <= moment < end for start, end in whiles) for moment in moments]
    assert most_at_once(whiles) == max(counts, default=0)


# Rows, lanes, steps


@given(trees(), st.booleans())
def test_calls_share_lanes_without_meeting(found, waits):
    arrangement = arranged(found, shared=True, waits=waits)
    rows = {row.span.id: row for row in arrangement.rows}
    assert set(rows) == {call.id for call in found.spans}
    siblings: dict[str, list] = {}
    for row in rows.values():
        assert 0 <= row.lane <= row.lane + row.height <= arrangement.lanes
        siblings.setdefault(row.span.parent, []).append(row)
        if row.span.parent:
            around = rows[row.span.parent]
            assert around.lane < row.lane
            assert row.lane + row.height <= around.lane + around.height
            assert row.depth == around.depth + 1
    for several in siblings.values():
        for number, one in enumerate(several):
            for other in several[:number]:
                lanes = range(
                    max(one.lane, other.lane), min(one.lane + one.height, other.lane + other.height)
                )
                begun = [
                    each.span.asked if waits else each.span.ended - each.span.worked for each in (one, other)
                ]
                apart = one.span.ended <= begun[1] + 1e-9 or other.span.ended <= begun[0] + 1e-9
                assert not lanes or apart, (one, other)


def test_a_call_takes_the_first_lane_that_is_free():
    found = timeline(span("a", 0, 4), span("b", 1, 2), span("c", 2, 3), span("d", 4, 5))
    assert [(row.span.id, row.lane) for row in arranged(found, shared=True).rows] == [
        ("a", 0), ("b", 1), ("c", 1), ("d", 0),
    ]  # fmt: skip
    assert [row.lane for row in arranged(found, shared=False).rows] == [0, 1, 2, 3]


def test_a_block_takes_as_many_lanes_as_its_branches_need():
    found = timeline(
        span("block", 0, 9),
        span("x", 0, 5, parent="block"),
        span("y", 0, 5, parent="block"),
        span("z", 9, 10),
    )
    places = {row.span.id: (row.lane, row.height) for row in arranged(found, shared=True).rows}
    assert places == {"block": (0, 3), "x": (1, 1), "y": (2, 1), "z": (0, 1)}


@given(trees(), st.integers(1, 50), st.integers(1, 3))
def test_what_is_shown_by_step_adds_up(found, bins, most):
    lanes = step_lanes(found, bins, most=most)
    assert len(lanes) <= most
    assert sum(lane.calls for lane in lanes) == len(found.spans)
    for what, kinds in (("running", {"running"}), ("waiting", {"waiting"})):
        spent = sum(p.seconds for call in found.spans for p in call.pieces if p.kind in kinds)
        drawn = sum(sum(getattr(lane, what)) for lane in lanes) * found.seconds / bins
        assert drawn == pytest.approx(spent, abs=1e-6)
    for lane in lanes:
        assert max(lane.running) <= lane.most_running + 1e-9


def test_what_is_chosen_says_what_is_left_out():
    failed = [
        replace(span(f"f{n}", n, n + 1, step="s"), outcome="failed", error=f"ValueError: {n % 3}")
        for n in range(9)
    ]
    found = timeline(*failed, *(span(f"g{n}", 20 + n, 21 + n) for n in range(30)))
    some = chosen(found, links=10, failures=2, longest=3)
    assert (len(some.links), some.links_left) == (10, len(found.path) - 10)
    assert [count for _, count in some.failures] == [3, 3]
    assert some.failures_left == 3
    assert len(some.longest) == 3


@given(
    st.floats(1e-6, 1e9),
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=3),
)
def test_times_are_in_order_on_the_axis(seconds, most, cuts):
    edges = sorted(edge for cut in cuts for edge in cut)
    pauses = tuple(
        (start * seconds, end * seconds) for start, end in zip(edges[::2], edges[1::2], strict=True)
    )
    pauses = tuple((start, end) for start, end in pauses if end > start)
    scale = Scale(timeline(seconds=seconds, pauses=pauses))
    places = [scale.at(seconds * part / 50) for part in range(51)]
    assert all(0 <= place <= 1 + 1e-9 for place in places)
    assert all(one <= other + 1e-9 for one, other in pairwise(places))
    ticks = scale.ticks(most)
    assert len(ticks) <= most + 1 + 2 * len(pauses)
    assert all(one <= other + 1e-9 for (one, _), (other, _) in pairwise(ticks))


def test_the_time_after_a_pause_is_the_first_on_its_part_of_the_axis():
    scale = Scale(timeline(seconds=0.875, pauses=((0.0, 0.875 * 0.99999),)))
    places = [place for place, _ in scale.ticks(10)]
    assert places == sorted(places)
    assert places[1] == scale.at(0.875 * 0.99999)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 ms"), (0.00004, "0 ms"), (0.0042, "4.2 ms"), (0.0421, "42 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"),
        (9.994, "9.99 s"), (9.996, "10.0 s"), (59.94, "59.9 s"), (59.96, "1:00"), (185, "3:05"), (7800, "2:10:00"),
        (90_061, "1 d 1:01:01"),
    ],
)  # fmt: skip
def test_how_long_something_took_in_words(seconds, words):
    assert took(seconds) == words
    assert seconds < 59.95 or clock_text(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "ticks"),
    [
        (0.001, ["0", "0.2 ms", "0.4 ms", "0.6 ms", "0.8 ms", "1.0 ms"]),
        (0.4, ["0", "0.1 s", "0.2 s", "0.3 s", "0.4 s"]),
        (1.2, ["0", "0.5 s", "1.0 s"]),
        (11.7, ["0", "5 s", "10 s"]),
        (100, ["0", "30 s", "1:00", "1:30"]),
        (749, ["0", "5:00", "10:00"]),
        (8000, ["0", "30:00", "1:00:00", "1:30:00", "2:00:00"]),
        (200_000, ["0", "12:00:00", "1 d 0:00:00", "1 d 12:00:00", "2 d 0:00:00"]),
    ],
)
def test_round_times_on_the_axis(seconds, ticks):
    assert [words for _, words in Scale(timeline(seconds=seconds)).ticks(5)] == ticks
