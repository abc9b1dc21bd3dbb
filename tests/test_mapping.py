"""``map`` and ``amap``: where they can be written, what they promise, and what they refuse."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import heapq
import itertools
import random
import threading
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leftovers import nothing_left, within

import weft
from weft import (
    Cancelled,
    DefinitionError,
    Failed,
    InputError,
    Limit,
    NotStarted,
    Ok,
    ParallelExecutionError,
    ParallelTimeoutError,
    RetryPolicy,
    Sequence,
    TimedOut,
    UsageError,
    entrypoint,
    node,
    parallel,
    task,
    tolerate,
)
from weft.core.policy import Verdict, policy_of
from weft.engine import events
from weft.testing import run as virtually


class Boom(Exception):
    pass


def double(x):
    return 2 * x


async def adouble(x):
    await asyncio.sleep(0)
    return 2 * x


# The four places where a map can be written


def by_map(step, items, **options):
    return within(20, lambda: weft.map(step, items, **options))


def by_amap(step, items, **options):
    return within(20, lambda: asyncio.run(weft.amap(step, items, **options)))


def in_sync_body(step, items, **options):
    @entrypoint()
    def flow(_):
        return weft.map(step, items, **options)

    return within(20, lambda: flow.invoke(None))


def in_async_body(step, items, **options):
    @entrypoint()
    async def flow(_):
        return await weft.amap(step, items, **options)

    return within(20, lambda: asyncio.run(flow.ainvoke(None)))


@pytest.fixture(params=[by_map, by_amap, in_sync_body, in_async_body], ids=lambda face: face.__name__)
def mapped(request):
    return request.param


@pytest.fixture(params=["sync", "async"])
def doubling(request):
    return double if request.param == "sync" else adouble


class Gauge:
    """How many are in flight at once, counted in the bodies; sync and async ones."""

    def __init__(self):
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __enter__(self):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *exc):
        with self._lock:
            self.now -= 1


# What can be mapped, and how it is written


def test_results_are_a_list_in_the_order_of_the_items(mapped, doubling):
    with nothing_left():
        assert mapped(doubling, [3, 1, 2]) == [6, 2, 4]


def test_of_no_items_the_result_is_an_empty_list(mapped, doubling):
    assert mapped(doubling, []) == []
    assert mapped(doubling, iter(())) == []


add_one = task(lambda x: x + 1)
plus_two = node("plus_two")(lambda x: x + 2)


@entrypoint()
def flow_of_one(x):
    return add_one(x).result() * 10


@entrypoint()
async def async_flow_of_one(x):
    return await add_one(x) * 10


METHODS = {
    "task": (add_one, [2, 3]),
    "node": (plus_two, [3, 4]),
    "entrypoint": (flow_of_one, [20, 30]),
    "async entrypoint": (async_flow_of_one, [20, 30]),
    "parallel": (parallel(plus_two, double), [{"plus_two": 3, "double": 2}, {"plus_two": 4, "double": 4}]),
    "Sequence": (Sequence(plus_two, double), [6, 8]),
    "map": (weft.map(double), [[2], [4]]),
}


@pytest.mark.parametrize("name", METHODS)
def test_everything_that_runs_can_be_mapped_by_function_and_by_method(mapped, name):
    runnable, expected = METHODS[name]
    items = [[1], [2]] if name == "map" else [1, 2]
    assert mapped(runnable, items) == expected
    assert within(10, lambda: runnable.map(items)) == expected
    assert within(10, lambda: asyncio.run(runnable.amap(items))) == expected
    assert within(10, lambda: runnable.map(max_concurrent=1).invoke(items)) == expected


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_join_the_run_of_a_body(name):
    runnable, expected = METHODS[name]
    items = [[1], [2]] if name == "map" else [1, 2]

    @entrypoint()
    def flow(_):
        return runnable.map(items, max_concurrent=2)

    @entrypoint()
    async def async_flow(_):
        return await runnable.amap(items, max_concurrent=2)

    assert within(10, lambda: flow.invoke(None)) == expected
    assert within(10, lambda: asyncio.run(async_flow.ainvoke(None))) == expected


@pytest.mark.parametrize(
    "function",
    [
        str.upper,
        len,
        str,
        functools.partial(int, base=16),
        lambda text: text,
        "x{}".format,
        lambda text, more=None: (text, more),
        lambda *, text: text,
        lambda *texts: texts,
    ],
    ids=["method", "builtin", "class", "partial", "lambda", "bound", "default", "keyword", "variable"],
)
def test_any_callable_gets_the_whole_item(mapped, function):
    def by_hand(item):
        try:
            return function(item)
        except TypeError:
            return function(text=item)

    assert mapped(function, ["a", "b"]) == [by_hand("a"), by_hand("b")]


def test_items_fill_several_parameters_as_they_do_in_parallel(mapped):
    def area(width, height):
        return width * height

    assert mapped(area, [(2, 3), [4, 5], {"height": 6, "width": 7}]) == [6, 20, 42]


def test_an_item_that_does_not_fit_is_the_failure_of_that_item_alone(mapped):
    def area(width, height):
        return width * height

    found = mapped(area, [(2, 3), 4, (5, 6)], on_error="collect")
    assert [type(each) for each in found] == [Ok, Failed, Ok]
    assert isinstance(found[1].error, InputError)
    assert "'width'" in str(found[1].error)
    with pytest.raises(ParallelExecutionError) as caught:
        mapped(area, [(2, 3), 4, (5, 6)])
    assert caught.value.branches == (1,)


def test_without_items_it_is_a_step_of_a_sequence():
    double_all = weft.map(double, max_concurrent=2)
    total = Sequence(lambda n: [*range(n)], double_all, sum)
    assert total(5) == 20
    assert (weft.map(double) >> sum)([1, 2]) == 6
    assert asyncio.run(total.ainvoke(5)) == 20


def test_without_items_it_is_a_branch():
    block = parallel(weft.map(double, name="doubled"), sum)
    assert block([1, 2]) == {"doubled": [2, 4], "sum": 3}
    assert list(parallel(weft.map(double), sum)([1])) == ["double", "sum"]


def test_one_map_serves_any_number_of_runs():
    doubled = weft.map(double, max_concurrent=1)
    assert [doubled.invoke([n]) for n in range(3)] == [[0], [2], [4]]
    assert doubled.submit([4, 5]).result(10) == [8, 10]


def test_its_name_is_in_errors_and_its_branches_are_numbers():
    def fail(x):
        raise Boom(x)

    with pytest.raises(ParallelExecutionError, match="branch 0 of 'loads' failed: Boom"):
        weft.map(fail, [1], name="loads")
    with pytest.raises(ParallelExecutionError, match="branch 0 of 'map\\(fail\\)' failed: Boom"):
        weft.map(fail, [1])


# What is refused


@pytest.mark.parametrize("items", [None, 3, 2.5, object()], ids=["None", "int", "float", "object"])
def test_what_cannot_be_iterated_is_refused_naming_it(mapped, items):
    with pytest.raises(InputError, match=f"'map\\(double\\)'.*iterable.*{type(items).__name__}"):
        mapped(double, items)


def test_map_in_an_async_body_is_refused_and_names_what_to_write():
    @entrypoint()
    async def flow(_):
        return weft.map(double, [1])

    @entrypoint()
    async def by_method(_):
        return add_one.map([1])

    for each in (flow, by_method):
        with pytest.raises(UsageError, match="amap|ainvoke"):
            asyncio.run(each.ainvoke(None))


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrent": 0},
        {"max_concurrent": -1},
        {"max_concurrent": True},
        {"max_concurrent": float("nan")},
        {"max_concurrent": "3"},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"total": -1},
        {"on_error": "ignore"},
        {"need": 0},
        {"need": True},
        {"need": 2, "on_error": "collect"},
        {"estimated_memory_per_node": 0},
        {"windows": 3},
    ],
    ids=str,
)
def test_options_that_can_never_work_are_refused_when_it_is_made(options):
    with pytest.raises(DefinitionError, match=next(iter(options))):
        weft.map(double, **options)


def test_an_option_that_no_run_has_is_refused_naming_those_there_are(mapped):
    with pytest.raises(InputError, match="windows.*max_concurrent|joins the run"):
        mapped(double, [1], windows=3)


@pytest.mark.parametrize("step", [None, 3, "double", [double]], ids=str)
def test_what_cannot_be_run_is_refused(step):
    with pytest.raises(DefinitionError, match="map\\(\\)"):
        weft.map(step, [1])


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_too_few_items_for_what_is_needed_is_an_error_of_the_input(mapped, kind, count):
    """The same for a list and for a source whose number is known only at its end."""
    with pytest.raises(InputError, match="2"):
        mapped(double, kind([1] * count), need=2)


@pytest.mark.parametrize("kind", [list, iter])
def test_a_race_of_nobody_is_an_error(mapped, kind):
    with pytest.raises(InputError):
        mapped(double, kind([]), on_error="race")


# Policies: a model that looks at nothing but who ends when


def simulate(policy, width, plan, *, lazy):
    """(verdict, moment, started, ended) of branches ``(seconds, succeeds)``, each started when there is room."""
    now, ok, failed, total = 0.0, 0, 0, None if lazy else len(plan)
    flying, started, ended = [], 0, {}
    while True:
        verdict = policy.verdict(ok, failed, total)
        if verdict is not Verdict.GO_ON:
            return verdict, now, started, ended
        while len(flying) < width and started < len(plan):
            heapq.heappush(flying, (now + plan[started][0], started))
            started += 1
        if len(flying) < width and total is None:
            total = len(plan)
            continue
        now, index = heapq.heappop(flying)
        ended[index] = plan[index][1]
        ok += ended[index]
        failed += not ended[index]


def actual(options, width, plan, *, lazy):
    """(result or error, moment, what started in which order)."""
    started = []

    async def branch(index):
        started.append(index)
        seconds, succeeds = plan[index]
        await asyncio.sleep(seconds)
        if not succeeds:
            raise Boom(index)
        return -index

    async def main():
        loop = asyncio.get_running_loop()
        begun = loop.time()
        source = range(len(plan))
        try:
            found = await weft.amap(branch, iter(source) if lazy else source, max_concurrent=width, **options)
        except Exception as error:
            found = error
        left = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        assert not left
        return found, loop.time() - begun

    found, moment = virtually(main())
    return found, moment, started


POLICIES = st.one_of(
    st.just({}),
    st.just({"on_error": "collect"}),
    st.just({"on_error": "race"}),
    st.integers(1, 4).map(lambda need: {"need": need}),
    st.integers(0, 3).map(lambda count: {"on_error": tolerate(count=count)}),
    st.tuples(st.sampled_from([0, 0.1, 0.3, 0.5]), st.integers(1, 4)).map(
        lambda both: {"on_error": tolerate(ratio=both[0], at_least=both[1])}
    ),
)


@settings(max_examples=150, deadline=None)
@given(
    options=POLICIES,
    width=st.integers(1, 5),
    endings=st.lists(st.booleans(), min_size=4, max_size=10),
    seed=st.integers(0, 10_000),
    lazy=st.booleans(),
)
def test_what_is_decided_and_when_follows_from_who_ends_when(options, width, endings, seed, lazy):
    """Decided at the first moment it is certain; nothing starts after that, and nothing of it is left."""
    seconds = random.Random(seed)
    plan = [(seconds.uniform(1, 9), succeeds) for succeeds in endings]
    verdict, moment, begun, ended = simulate(policy_of(**options), width, plan, lazy=lazy)
    found, took, started = actual(options, width, plan, lazy=lazy)
    assert took == pytest.approx(moment)
    assert started == list(range(begun))
    if verdict is Verdict.FAILED:
        bad = sorted(index for index, succeeds in ended.items() if not succeeds)
        assert isinstance(found, ParallelExecutionError)
        assert found.branches == tuple(bad)
        assert found.branch == bad[0]
        assert found.__cause__ is found.exceptions[0]
        assert [error.args for error in found.exceptions] == [(index,) for index in bad]
    elif options == {}:
        assert found == [-index for index in range(len(plan))]
    elif options == {"on_error": "race"}:
        assert found == -next(index for index, succeeds in ended.items() if succeeds)
    else:
        count = begun if lazy else len(plan)
        assert [shape(each) for each in found] == [
            expected_shape(index, ended, begun) for index in range(count)
        ]


def shape(outcome):
    if isinstance(outcome, Failed):
        return (Failed, outcome.error.args[0])
    return (Ok, outcome.value) if isinstance(outcome, Ok) else (type(outcome),)


def expected_shape(index, ended, begun):
    if index not in ended:
        return (Cancelled,) if index < begun else (NotStarted,)
    return (Ok, -index) if ended[index] else (Failed, index)


@pytest.mark.parametrize("seed", range(3))
def test_results_are_in_input_order_whatever_the_order_of_ending(mapped, seed):
    """Real threads and a real loop, which end in an order that the items say."""
    order = list(range(8))
    random.Random(seed).shuffle(order)
    turn = [threading.Event() for _ in range(9)]
    turn[0].set()
    ended = []

    async def wait(place):
        while not turn[place].is_set():
            await asyncio.sleep(0.001)
        ended.append(place)
        turn[place + 1].set()
        return place

    assert mapped(wait, order, max_concurrent=8) == order
    assert ended == sorted(order)


def test_sync_bodies_that_end_in_reverse_give_results_in_input_order(mapped):
    turn = [threading.Event() for _ in range(7)]
    turn[6].set()

    def wait(place):
        assert turn[place + 1].wait(10)
        turn[place].set()
        return place

    assert mapped(wait, range(6), max_concurrent=6) == list(range(6))


def test_of_sync_bodies_the_first_in_declared_order_leads_though_it_failed_last(mapped):
    turn = [threading.Event() for _ in range(4)]
    turn[3].set()

    def fail(place):
        assert turn[place + 1].wait(10)
        turn[place].set()
        raise Boom(place)

    with pytest.raises(ParallelExecutionError) as caught:
        mapped(fail, range(3), max_concurrent=3, on_error=tolerate(count=2))
    assert caught.value.branches == (0, 1, 2)
    assert caught.value.branch == 0
    assert caught.value.failures[2].args == (2,)


def test_fail_fast_stops_sync_siblings_and_waits_for_them(mapped):
    begun = threading.Semaphore(0)
    ended = []

    def work(x):
        if x == 2:
            assert begun.acquire(timeout=10)
            assert begun.acquire(timeout=10)
            raise Boom(x)
        begun.release()
        while not weft.cancelled():
            threading.Event().wait(0.001)
        ended.append(x)

    with nothing_left(), pytest.raises(ParallelExecutionError) as caught:
        mapped(work, range(10), max_concurrent=3)
    assert caught.value.branch == 2
    assert sorted(ended) == [0, 1]


def test_a_base_exception_of_an_item_leaves_by_itself_with_a_note():
    class Stop(BaseException):
        pass

    async def stop(x):
        raise Stop(x)

    with pytest.raises(Stop) as caught:
        weft.map(stop, [5], name="all of it", on_error="collect")
    assert any("branch 0 of 'all of it'" in note for note in caught.value.__notes__)


def test_the_items_of_a_map_in_a_map_fail_with_the_error_of_theirs():
    def fail(x):
        if x == 3:
            raise Boom(x)

    with pytest.raises(ParallelExecutionError) as caught:
        weft.map(weft.map(fail, name="inner"), [[1], [2, 3]], name="outer")
    assert caught.value.branch == 1
    assert caught.value.exceptions[0].branch == 1
    assert caught.value.exceptions[0].failures == {1: caught.value.exceptions[0].__cause__}


@pytest.mark.parametrize("is_async", [False, True])
def test_one_seed_gives_one_result_error_and_log(is_async):
    """Twice the same inputs, times and chance: the same story, whatever became of it."""
    seeds = random.Random(5)

    def story(seed):
        times = random.Random(seed)
        plan = [times.uniform(0, 5) for _ in range(12)]

        def fails(x):
            return plan[x] > 4.5

        def work(x):
            weft.testing.sleep(plan[x])
            if fails(x):
                raise Boom(x)
            return x

        async def awork(x):
            await asyncio.sleep(plan[x])
            if fails(x):
                raise Boom(x)
            return x

        async def main():
            run = weft.map(awork if is_async else work, max_concurrent=3, on_error=tolerate(count=1)).submit(
                iter(range(12))
            )
            log = [
                (type(event).__name__, event.time, getattr(event, "call_id", None))
                async for event in run.aevents()
            ]
            try:
                return log, [repr(each) for each in await run]
            except ParallelExecutionError as error:
                return log, error.branches

        return virtually(main(), seed=seed)

    for seed in [seeds.randrange(10**6) for _ in range(5)]:
        assert story(seed) == story(seed), f"seed {seed}"


# Width


@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_no_more_than_max_concurrent_are_in_flight_and_no_fewer_where_there_are_items(mapped, kind, width):
    gauge, reached = Gauge(), threading.Event()

    def work(x):
        with gauge:
            if gauge.now == width:
                reached.set()
            assert reached.wait(10)

    async def awork(x):
        with gauge:
            if gauge.now == width:
                reached.set()
            while not reached.is_set():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)

    with nothing_left():
        mapped(work if kind == "sync" else awork, range(30), max_concurrent=width)
    assert gauge.most == width


def test_widths_of_maps_in_maps_hold_for_each_of_them():
    outer, inners, all_of_them = Gauge(), [Gauge() for _ in range(6)], Gauge()

    async def leaf(pair):
        with inners[pair[0]], all_of_them:
            await asyncio.sleep(1)

    inner = weft.map(leaf, max_concurrent=3)

    @task
    async def one(number):
        with outer:
            await inner.ainvoke([(number, k) for k in range(7)])

    virtually(weft.amap(one, range(6), max_concurrent=2))
    assert outer.most == 2
    assert [gauge.most for gauge in inners] == [3] * 6
    assert all_of_them.most == 6


def test_the_width_of_the_run_bounds_all_maps_in_it():
    gauge = Gauge()

    async def leaf(x):
        with gauge:
            await asyncio.sleep(1)

    both = weft.map(weft.map(leaf, max_concurrent=4), max_concurrent=4)

    async def main():
        begun = asyncio.get_running_loop().time()
        await both.ainvoke([range(5)] * 5, max_concurrent=3)
        return asyncio.get_running_loop().time() - begun

    assert virtually(main()) == pytest.approx(9)  # 25 seconds of work, three at once
    assert gauge.most == 3


def test_a_limit_is_shared_by_the_items_and_by_everybody_else():
    gauge = Gauge()
    shared = Limit("provider", concurrent=2)

    @task(limit=shared)
    async def call(x):
        with gauge:
            await asyncio.sleep(1)

    async def main():
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(call.amap(range(4)), weft.amap(call, iter(range(4)), max_concurrent=3))
        return asyncio.get_running_loop().time() - begun

    assert virtually(main()) == pytest.approx(4)
    assert gauge.most == 2


def test_a_limit_given_to_the_run_counts_for_every_item():
    gauge = Gauge()

    async def call(x):
        with gauge:
            await asyncio.sleep(1)

    virtually(weft.amap(call, range(6), limit=Limit("provider", concurrent=2)))
    assert gauge.most == 2


def test_as_many_sync_items_as_cores_begin_and_more_while_they_queue():
    """Without max_concurrent: cores bound what computes, and grow, because most sync bodies only wait."""
    seen = []

    @task
    def work(x):
        weft.testing.sleep(10)

    async def main():
        run = work.map().submit(range(64))
        async for event in run.aevents():
            if isinstance(event, events.BlockSized):
                seen.append(event.computing)

    virtually(main(), cores=4)
    assert seen[0] == 4
    assert seen[1:3] == [8, 16]


def test_optimization_off_starts_all_items_at_once():
    gauge = Gauge()

    async def work(x):
        with gauge:
            await asyncio.sleep(1)

    virtually(weft.amap(work, range(500), optimization_enabled=False), memory=1)
    assert gauge.most == 500


def test_memory_bounds_the_width_where_nobody_said_it():
    gauge = Gauge()

    async def work(x):
        with gauge:
            await asyncio.sleep(1)

    virtually(weft.amap(work, iter(range(30)), estimated_memory_per_node=70), memory=1000)
    assert gauge.most == 10


# Time


def test_the_timeout_is_that_of_all_of_it_and_says_what_was_unfinished(mapped):
    stopped = []

    async def work(x):
        if x % 2:
            return x
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(x)

    with nothing_left(), pytest.raises(ParallelTimeoutError) as caught:
        mapped(work, range(4), timeout=0.05, max_concurrent=4)
    assert caught.value.unfinished == (0, 2)
    assert sorted(stopped) == [0, 2]
    assert not isinstance(caught.value, ParallelExecutionError)
    assert isinstance(caught.value, TimeoutError)


def test_the_timeout_counts_while_a_source_is_waited_for():
    async def source():
        yield 1
        await asyncio.sleep(60)
        yield 2

    async def main():
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with pytest.raises(ParallelTimeoutError):
            await weft.amap(adouble, source(), timeout=5)
        return loop.time() - begun

    assert virtually(main()) == pytest.approx(5)


def test_no_item_outlives_the_deadline_of_the_block():
    async def remaining(x):
        await asyncio.sleep(x)
        return weft.remaining()

    found = virtually(weft.amap(remaining, [1, 2], timeout=5))
    assert found == [pytest.approx(4), pytest.approx(3)]


def test_an_item_that_times_out_is_an_outcome_of_its_own():
    @task(timeout=1)
    async def work(x):
        await asyncio.sleep(x)
        return x

    found = virtually(work.amap([0.5, 3, 0.7], on_error="collect"))
    assert [type(each) for each in found] == [Ok, TimedOut, Ok]


def test_a_retry_of_the_whole_runs_all_items_again():
    begun = []

    async def work(x):
        begun.append(x)
        if x == 2 and begun.count(2) < 2:
            raise Boom(x)
        return x

    policy = RetryPolicy(max_attempts=2, retry_on=ParallelExecutionError, initial_interval=0)
    assert virtually(weft.amap(work, [1, 2], retry=policy, max_concurrent=1)) == [1, 2]
    assert begun == [1, 2, 1, 2]


# Retries of items


@pytest.mark.parametrize("is_async", [False, True])
def test_every_item_has_attempts_of_its_own(mapped, is_async):
    """One item's failures use up nobody else's attempts."""
    attempts = []
    lock = threading.Lock()

    def work(x):
        with lock:
            attempts.append(x)
            mine = attempts.count(x)
        if mine < 3:
            raise Boom(x)
        return x

    async def awork(x):
        return work(x)

    policy = RetryPolicy(max_attempts=3, initial_interval=0, jitter=False, retry_on=Boom)
    step = task(retry_policy=policy)(awork if is_async else work)
    assert mapped(step, range(10), max_concurrent=4) == list(range(10))
    assert sorted(attempts) == sorted(list(range(10)) * 3)


def test_an_item_that_fails_once_too_often_fails_alone(mapped):
    policy = RetryPolicy(max_attempts=2, initial_interval=0, jitter=False, retry_on=Boom)
    attempts = []

    @task(retry_policy=policy)
    async def work(x):
        attempts.append(x)
        if x == 1:
            raise Boom(x)
        return x

    found = mapped(work, range(3), on_error="collect")
    assert [type(each) for each in found] == [Ok, Failed, Ok]
    assert sorted(attempts) == [0, 1, 1, 2]


# Contexts


variable = contextvars.ContextVar("variable", default="none")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_every_item_has_a_context_of_its_own_that_has_what_the_caller_set(is_async, lazy):
    def work(x):
        before = variable.get()
        variable.set(f"item {x}")
        return before, variable.get()

    async def awork(x):
        before, _ = work(x)
        await asyncio.sleep(0)
        return before, variable.get()

    def main():
        variable.set("caller")
        found = weft.map(awork if is_async else work, iter(range(4)) if lazy else range(4), max_concurrent=2)
        return found, variable.get()

    expected = [("caller", f"item {x}") for x in range(4)], "caller"
    assert contextvars.copy_context().run(main) == expected

    async def amain():
        variable.set("caller")
        step = awork if is_async else work
        found = await weft.amap(step, iter(range(4)) if lazy else range(4), max_concurrent=2)
        return found, variable.get()

    assert asyncio.run(amain()) == expected


def test_what_a_source_sets_is_seen_by_the_source_alone(mapped):
    seen = []

    def source():
        variable.set("source")
        yield 1
        seen.append(variable.get())
        yield 2

    assert mapped(lambda x: variable.get(), source()) == ["none", "none"]
    assert seen == ["source"]
    assert variable.get() == "none"


def test_an_async_source_goes_on_in_one_context():
    token_of = []

    async def source():
        token = variable.set("source")
        yield 1
        await asyncio.sleep(0)
        variable.reset(token)  # refused in another context than the one it was set in
        token_of.append(token)
        yield 2

    assert asyncio.run(weft.amap(lambda x: variable.get(), source())) == ["none", "none"]
    assert token_of


# What is around it


def test_cancelling_amap_stops_the_items_and_waits_for_them():
    async def main():
        begun, ended = [], []

        async def work(x):
            begun.append(x)
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.01)
                ended.append(x)

        running = asyncio.ensure_future(weft.amap(work, itertools.count(), max_concurrent=3))
        while len(begun) < 3:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert sorted(ended) == [0, 1, 2]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with nothing_left():
        within(10, lambda: asyncio.run(main()))


def test_a_submitted_map_can_be_cancelled_from_outside():
    begun = threading.Semaphore(0)

    async def work(x):
        begun.release()
        await asyncio.sleep(60)

    with nothing_left():
        run = weft.map(work, max_concurrent=2).submit(itertools.count())
        assert begun.acquire(timeout=10)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            within(10, run.result)


def test_an_endless_sync_source_of_a_body_ends_with_need(mapped):
    with nothing_left():
        found = mapped(double, itertools.count(), need=3, max_concurrent=2)
    assert sum(isinstance(each, Ok) for each in found) >= 3


def test_all_at_once_over_an_endless_source_still_ends_with_need():
    """A source that always has another item must not keep the results from being seen."""
    read = []

    def source():
        for number in itertools.count():
            read.append(number)
            assert number < 100_000, "read without an end"
            yield number

    asyncio.run(weft.amap(adouble, source(), need=2, optimization_enabled=False))
    assert len(read) < 10_000


def test_many_items_in_many_maps_need_no_deep_stack():
    step = double
    for _ in range(300):
        step = weft.map(step, max_concurrent=1)
    items = 1
    for _ in range(300):
        items = [items]
    found = within(30, lambda: step.invoke(items))
    for _ in range(300):
        (found,) = found
    assert found == 2


def test_a_block_says_why_it_was_decided():
    async def main():
        run = weft.map(double, need=2, max_concurrent=1).submit(range(5))
        found = [event async for event in run.aevents()]
        (decided,) = [event for event in found if isinstance(event, events.BlockDecided)]
        return decided

    decided = asyncio.run(main())
    assert (decided.ok, decided.failed, decided.total) == (2, 0, 5)
    assert "2 needed" in decided.reason


def test_the_note_of_a_failed_item_names_it():
    def fail(x):
        raise Boom("no")

    with pytest.raises(ParallelExecutionError) as caught:
        weft.map(fail, ["this one"])
    assert any("'this one'" in note for note in caught.value.exceptions[0].__notes__)


def test_an_item_is_taken_apart_in_the_context_of_the_caller():
    """Its code may be the user's."""
    asked = contextvars.ContextVar("asked", default="nobody")

    class Lazy(Mapping):
        def __getitem__(self, key):
            return asked.get()

        def __iter__(self):
            return iter("ab")

        def __len__(self):
            return 2

    async def first(a, b):
        return a

    async def main():
        asked.set("me")
        return await weft.amap(first, [Lazy()] * 3)

    assert asyncio.run(main()) == ["me"] * 3


def test_a_result_of_any_type_comes_through():
    class Meta(type):
        def __eq__(cls, other):
            return cls is other

        __hash__ = None

    class Odd(metaclass=Meta):
        pass

    async def body(_):
        return Odd()

    (found,) = asyncio.run(asyncio.wait_for(weft.amap(body, [1]), 10))
    assert type(found) is Odd
