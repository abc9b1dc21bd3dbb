"""``pipeline``: every item goes through the stages as fast as it can."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import threading
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leftovers import nothing_left, within

import weft
from weft import (
    DefinitionError,
    Failed,
    InputError,
    Limit,
    Ok,
    ParallelExecutionError,
    ParallelTimeoutError,
    RunMismatchError,
    Sequence,
    UsageError,
    decision,
    entrypoint,
    node,
    parallel,
    task,
)
from weft.testing import run as virtually


class Boom(Exception):
    pass


def add_one(x):
    return x + 1


async def double(x):
    await asyncio.sleep(0)
    return 2 * x


def numbers(count):
    return list(range(count))


def text(x):
    return f"<{x}>"


# The faces


def by_function(items, *stages, **options):
    return within(20, lambda: weft.pipeline(items, *stages, **options))


def by_ainvoke(items, *stages, **options):
    return within(20, lambda: asyncio.run(weft.pipeline(None, *stages, **options).ainvoke(items)))


def in_sync_body(items, *stages, **options):
    @entrypoint()
    def flow(_):
        return weft.pipeline(items, *stages, **options)

    return within(20, lambda: flow.invoke(0))


def in_async_body(items, *stages, **options):
    @entrypoint()
    async def flow(_):
        return await weft.pipeline(None, *stages, **options).ainvoke(items)

    return within(20, lambda: asyncio.run(flow.ainvoke(0)))


def by_stream(items, *stages, **options):
    return within(20, lambda: list(weft.pipeline(None, *stages, **options).stream(items)))


FACES = [by_function, by_ainvoke, in_sync_body, in_async_body, by_stream]


@pytest.fixture(params=FACES, ids=[face.__name__ for face in FACES])
def piped(request):
    def call(*args, **options):
        with nothing_left():
            return request.param(*args, **options)

    return call


async def agenerated(count):
    for number in range(count):
        yield number


# What it gives


@pytest.mark.parametrize(
    "source", [list, iter, lambda items: agenerated(len(items))], ids=["list", "iter", "async"]
)
def test_every_item_goes_through_all_stages_and_results_are_in_input_order(piped, source):
    assert piped(source(range(5)), add_one, double, text) == [f"<{2 * (x + 1)}>" for x in range(5)]


def test_one_stage_is_a_map_and_no_items_give_an_empty_list(piped):
    assert piped([1, 2], add_one) == [2, 3]
    assert piped([], add_one, double) == []
    assert piped(iter([]), add_one, double, max_concurrent=1) == []


add_two = task(lambda x: x + 2)


@entrypoint()
def times_ten(x):
    return 10 * x


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (add_two, [3, 4]),
        (node("n")(lambda x: -x), [-1, -2]),
        (times_ten, [10, 20]),
        (Sequence(add_one, double), [4, 6]),
        (parallel(add_one, double), [{"add_one": 2, "double": 2}, {"add_one": 3, "double": 4}]),
        (Sequence(numbers, weft.map(add_one)), [[1], [1, 2]]),
        (len, "TypeError"),
    ],
    ids=["task", "node", "entrypoint", "Sequence", "parallel", "map", "builtin"],
)
@pytest.mark.parametrize("widths", [None, 1])
def test_everything_that_runs_can_be_a_stage(piped, stage, expected, widths):
    if expected == "TypeError":
        with pytest.raises(ParallelExecutionError) as caught:
            piped([1, 2], stage, text, max_concurrent=widths)
        assert isinstance(caught.value.exceptions[0], TypeError)
        return
    assert piped([1, 2], stage, text, max_concurrent=widths) == [text(x) for x in expected]


def test_values_are_handed_on_as_in_a_sequence(piped):
    def split(x):
        return {"left": x, "right": 10 * x}

    def join(left, right):
        return left + right

    assert piped([1, 2], split, join) == [11, 22]


def test_a_stage_that_gives_none_hands_it_on(piped):
    assert piped([1, 2], lambda x: None, text) == ["<None>"] * 2


def test_without_items_it_is_a_workflow():
    made = weft.pipeline(None, add_one, double, name="both")
    assert made.invoke([1, 2]) == [4, 6]
    assert list(made.stream(iter([1, 2]), ordered=False)) == [(0, 4), (1, 6)]
    assert Sequence(numbers, made, sum)(3) == 12
    assert parallel(made, sum)([1]) == {"both": [4], "sum": 1}
    assert made.map([[1], [2, 3]]) == [[4], [6, 8]]


# No barrier


def test_the_first_item_leaves_the_last_stage_before_the_last_leaves_the_first(piped):
    """With threads and with loops, not in virtual time: the last item waits for the first to be through."""
    through = threading.Event()

    async def load(x):
        while x == 9 and not through.is_set():
            await asyncio.sleep(0.001)
        return x

    def store(x):
        if x == 0:
            through.set()
        return x

    assert piped(range(10), load, store) == list(range(10))


def list_schedule(seconds, widths):
    """When each item leaves the last stage: a stage takes who waits longest, as soon as it has a place."""
    free = [width if width is not None else len(seconds) for width in widths]
    waiting = [[] for _ in widths]
    events = [
        (0.0, number, number, 0) for number in range(len(seconds))
    ]  # arrivals, in the order of the items
    order, ended = itertools.count(len(seconds)), {}
    while events:
        now, _, item, stage = heapq.heappop(events)
        if stage:  # it has left the stage before
            free[stage - 1] += 1
            ready = stage - 1
            if waiting[ready]:
                begin(events, order, free, ready, waiting[ready].pop(0), now, seconds)
        if stage == len(widths):
            ended[item] = now
        elif free[stage]:
            begin(events, order, free, stage, item, now, seconds)
        else:
            waiting[stage].append(item)
    return ended


def begin(events, order, free, stage, item, now, seconds):
    free[stage] -= 1
    heapq.heappush(events, (now + seconds[item][stage], next(order), item, stage + 1))


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(0, 12),
    widths=st.lists(st.sampled_from([None, 1, 2, 3]), min_size=1, max_size=4),
    seed=st.integers(0, 10_000),
    lazy=st.booleans(),
)
def test_each_item_is_through_when_the_list_schedule_says_so(count, widths, seed, lazy):
    """So no stage ever has a free place and somebody who waits for it; and none has more than its width."""
    draw = random.Random(seed)
    seconds = [[draw.uniform(1, 9) for _ in widths] for _ in range(count)]
    now, most, ended = [0] * len(widths), [0] * len(widths), {}

    def stage(place):
        async def body(item):
            now[place] += 1
            most[place] = max(most[place], now[place])
            await asyncio.sleep(seconds[item][place])
            now[place] -= 1
            if place == len(widths) - 1:
                ended[item] = asyncio.get_running_loop().time()
            return item

        return node(f"stage{place}")(body)

    stages = [stage(place) for place in range(len(widths))]
    given_widths = {f"stage{place}": width for place, width in enumerate(widths) if width is not None}
    items = iter(range(count)) if lazy else range(count)
    found = virtually(weft.pipeline(None, *stages, max_concurrent=given_widths or None).ainvoke(items))
    assert found == list(range(count))
    expected = list_schedule(seconds, widths)
    assert ended == {item: pytest.approx(moment) for item, moment in expected.items()}
    assert all(width is None or peak <= width for peak, width in zip(most, widths, strict=True))


# Widths


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_widths_hold_exactly_for_each_stage(piped, kind):
    """As many as the width are in flight at some time, and never more."""
    widths = {"first": 3, "second": 2}
    now, most, lock = dict.fromkeys(widths, 0), dict.fromkeys(widths, 0), threading.Lock()
    reached = {name: threading.Event() for name in widths}

    def enter(name):
        with lock:
            now[name] += 1
            most[name] = max(most[name], now[name])
            if now[name] == widths[name]:
                reached[name].set()

    def leave(name):
        with lock:
            now[name] -= 1

    def stage(name):
        def body(x):
            enter(name)
            assert reached[name].wait(10)
            leave(name)
            return x

        async def abody(x):
            enter(name)
            while not reached[name].is_set():
                await asyncio.sleep(0.001)
            leave(name)
            return x

        return node(name)(body if kind == "sync" else abody)

    assert piped(range(20), stage("first"), stage("second"), max_concurrent=widths) == list(range(20))
    assert most == widths


def test_a_number_is_the_width_of_every_stage():
    now, most = [0, 0], [0, 0]

    def stage(place):
        @node(f"stage{place}")
        async def body(x):
            now[place] += 1
            most[place] = max(most[place], now[place])
            await asyncio.sleep(1 + place)
            now[place] -= 1
            return x

        return body

    virtually(weft.pipeline(None, stage(0), stage(1), max_concurrent=2).ainvoke(range(9)))
    assert most == [2, 2]


def test_the_width_of_a_stage_that_is_a_workflow_counts_items_from_start_to_end():
    now = most = 0

    async def begin_(x):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(1)
        return x

    async def end_(x):
        nonlocal now
        await asyncio.sleep(1)
        now -= 1
        return x

    both = Sequence(begin_, end_, name="both")

    async def main():
        await weft.pipeline(None, both, add_one, max_concurrent={"both": 2}).ainvoke(range(6))
        return asyncio.get_running_loop().time()

    assert virtually(main()) == pytest.approx(6)
    assert most == 2


def test_every_run_has_its_widths_to_itself():
    now = most = 0

    @node("stage")
    async def stage(x):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(1)
        now -= 1
        return x

    made = weft.pipeline(None, stage, max_concurrent=1)

    async def main():
        await asyncio.gather(made.ainvoke(range(4)), made.ainvoke(range(4)))
        return asyncio.get_running_loop().time()

    assert virtually(main()) == pytest.approx(4)
    assert most == 2


def test_a_limit_of_a_stage_and_its_width_hold_both():
    now = most = 0

    @node(name="call", limit=Limit("provider", concurrent=2))
    async def call(x):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(1)
        now -= 1
        return x

    virtually(weft.pipeline(None, call, add_one, max_concurrent=3).ainvoke(range(6)))
    assert most == 2


def test_the_width_of_the_run_bounds_all_stages_together():
    now = most = 0

    def stage(place):
        @node(f"stage{place}")
        async def body(x):
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(1)
            now -= 1
            return x

        return body

    made = weft.pipeline(None, stage(0), stage(1), stage(2), max_concurrent=2)
    assert virtually(made.ainvoke(range(8), max_concurrent=3)) == list(range(8))
    assert most == 3


def test_an_endless_source_is_read_only_as_items_get_through():
    read = 0

    def source():
        nonlocal read
        for number in itertools.count():
            read = number
            yield number

    made = weft.pipeline(None, double, add_one, max_concurrent=2, need=5)
    found = within(20, lambda: made.invoke(source()))
    assert sum(isinstance(each, Ok) for each in found) >= 5
    assert read < 1200


def test_a_stream_of_an_endless_source_can_be_left():
    made = weft.pipeline(None, double, add_one, max_concurrent=2)

    def main():
        with closing(made.stream(itertools.count())) as results:
            return list(itertools.islice(results, 100))

    with nothing_left():
        assert within(20, main) == [2 * x + 1 for x in range(100)]


# Failures


def test_an_item_that_fails_at_a_stage_stops_the_others(piped):
    stored = []

    async def load(x):
        if x == 3:
            raise Boom(x)
        return x

    async def store(x):
        stored.append(x)
        await asyncio.sleep(60 if x > 3 else 0)

    with pytest.raises(ParallelExecutionError, match="pipeline.*Boom") as caught:
        piped(itertools.count(), load, store, max_concurrent=1)
    assert caught.value.branch == 3
    assert caught.value.__cause__.args == (3,)


def test_collect_gives_the_outcome_of_each_item_and_later_stages_do_not_see_the_failed(piped):
    stored = []

    def load(x):
        if x % 2:
            raise Boom(x)
        return x

    def store(x):
        stored.append(x)
        return x

    found = piped(range(5), load, store, on_error="collect")
    assert [type(each) for each in found] == [Ok, Failed, Ok, Failed, Ok]
    assert sorted(stored) == [0, 2, 4]


def test_the_timeout_is_that_of_all_of_it(piped):
    async def sleepy(x):
        await asyncio.sleep(60)

    with pytest.raises(ParallelTimeoutError):
        piped(range(3), add_one, sleepy, timeout=0.05)


def test_a_stage_that_is_retried_holds_its_place_and_no_other():
    attempts = []

    @node(name="flaky", retry=3)
    async def flaky(x):
        attempts.append(x)
        if attempts.count(x) < 2:
            raise ConnectionError(x)
        return x

    assert virtually(weft.pipeline(None, flaky, double, max_concurrent=1).ainvoke(range(4))) == [0, 2, 4, 6]
    assert sorted(attempts) == sorted([*range(4), *range(4)])


@pytest.mark.parametrize("first", ["finished", "failed"])
def test_a_pipeline_of_other_stages_is_another_workflow(saver, first):
    """Else a resume gives the results of stages that are not there any more."""

    def load(x):
        if x == 3 and first == "failed":
            raise Boom
        return x

    def old(x):
        return "old"

    def new(x):
        return "new"

    options = {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    try:
        weft.pipeline([1, 2, 3], load, old, **options)
    except ParallelExecutionError:
        assert first == "failed"
        first = "goes on"
        assert weft.pipeline([1, 2, 3], load, new, **options) == ["new"] * 3
    else:
        with pytest.raises(RunMismatchError):
            weft.pipeline([1, 2, 3], load, new, **options)


# What is refused


@pytest.mark.parametrize(
    ("stages", "options", "said"),
    [
        ([], {}, "at least one stage"),
        ([add_one, add_one], {}, "different names.*add_one, add_one"),
        ([add_one, 3], {}, "pipeline\\(\\).*int"),
        ([decision(lambda x: "b"), add_one], {}, "decision"),
        ([add_one], {"max_concurrent": 0}, "max_concurrent"),
        ([add_one], {"max_concurrent": True}, "max_concurrent"),
        ([add_one], {"max_concurrent": {"add_one": 0}}, "max_concurrent of 'add_one'"),
        ([add_one], {"max_concurrent": {"add_one": 1.5}}, "max_concurrent of 'add_one'"),
        ([add_one, double], {"max_concurrent": {"add_two": 2}}, "'add_two'.*add_one, double"),
        ([add_one], {"max_concurrent": [1, 2]}, "max_concurrent"),
        ([add_one], {"timeout": -1}, "timeout"),
        ([add_one], {"on_error": "ignore"}, "on_error"),
        ([add_one], {"need": 0}, "need"),
        ([add_one], {"need": 1, "on_error": "collect"}, "need"),
        ([add_one], {"windows": 3}, "windows"),
    ],
)
def test_what_can_never_work_is_refused_when_it_is_made(stages, options, said):
    with pytest.raises(DefinitionError, match=said):
        weft.pipeline(None, *stages, **options)


def test_an_option_that_no_run_has_is_refused():
    with pytest.raises(InputError, match="windows"):
        weft.pipeline([1], add_one, windows=3)


def test_in_an_async_body_it_is_refused_and_names_what_to_write():
    @entrypoint()
    async def flow(_):
        return weft.pipeline([1], add_one)

    with pytest.raises(UsageError, match="await"):
        asyncio.run(flow.ainvoke(0))


@pytest.mark.parametrize("items", [3, object()])
def test_what_cannot_be_iterated_is_refused(piped, items):
    with pytest.raises(InputError, match="iterable"):
        piped(items, add_one)


def test_problems_of_a_stage_are_found_before_anything_runs():
    never = Sequence(parallel(node(name="slow", timeout=9)(add_one), timeout=1), name="block")
    with pytest.raises(DefinitionError, match="stage 'block'.*'slow'"):
        weft.pipeline(None, add_one, never).validate()
