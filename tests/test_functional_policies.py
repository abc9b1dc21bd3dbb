"""Retries, timeouts and caches of tasks and entrypoints."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import pytest
from leftovers import nothing_left, takes, timed, within

import weft
from weft import (
    CachePolicy,
    InMemoryCache,
    NodeTimeoutError,
    RetryPolicy,
    TimeoutPolicy,
    entrypoint,
    task,
)
from weft.engine import events
from weft.testing import sleep, virtual_clock
from weft.testing.clock import EPOCH


class Boom(Exception):
    pass


class Other(Exception):
    pass


def quick(**more):
    return RetryPolicy(**{"initial_interval": 0, "jitter": False, **more})


def flaky(attempts, errors, policy, *, is_async=False):
    """A task that raises one error an attempt, until none is left."""
    left = list(errors)

    def body(x):
        attempts.append(x)
        if left:
            raise left.pop(0)
        return x

    async def abody(x):
        return body(x)

    return task(name="flaky", retry_policy=policy)(abody if is_async else body)


def now():
    """The time of the running loop."""
    return asyncio.get_running_loop().time()


def run_one(t, saver, **options):
    @entrypoint(checkpointer=saver)
    def wf(x):
        return t(x).result()

    return within(5, lambda: wf.invoke(7, thread_id="t", **options))


# Retries


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("width", [None, 1])
def test_a_call_is_tried_again_until_it_succeeds(any_saver, is_async, width):
    attempts = []
    t = flaky(attempts, [Boom("1"), Boom("2")], quick(), is_async=is_async)
    with nothing_left():
        assert run_one(t, any_saver, max_concurrent=width) == 7
    assert len(attempts) == 3


@pytest.mark.parametrize("is_async", [False, True])
def test_the_last_error_is_raised_when_there_are_no_more_attempts(any_saver, is_async):
    attempts = []
    t = flaky(attempts, [Boom("1"), Boom("2"), Boom("3"), Boom("4")], quick(), is_async=is_async)
    with pytest.raises(Boom, match="3"):
        run_one(t, any_saver)
    assert len(attempts) == 3


@pytest.mark.parametrize(
    "error", [ValueError("x"), TypeError("x"), KeyError("x"), SystemExit(1), OSError("x")]
)
def test_what_is_final_by_default(error):
    attempts = []
    with pytest.raises(type(error)):
        run_one(flaky(attempts, [error], quick()), None)
    assert len(attempts) == 1


def test_the_first_policy_that_covers_decides_and_all_count_together(any_saver):
    attempts = []
    policies = [quick(max_attempts=2, retry_on=Boom), quick(max_attempts=4, retry_on=(Other, Boom))]
    t = flaky(attempts, [Other("1"), Other("2"), Boom("3")], policies)
    with pytest.raises(Boom, match="3"):
        run_one(t, any_saver)
    assert len(attempts) == 3


def test_policies_may_be_any_iterable():
    attempts = []
    assert run_one(flaky(attempts, [Boom("1")], iter([quick()])), None) == 7
    attempts.clear()
    assert run_one(flaky(attempts, [Boom("1")], (quick(),)), None) == 7


def test_retries_belong_to_the_call(any_saver):
    """PocketFlow's counter is an attribute that all parallel items share."""
    tries = {}

    @task(retry_policy=quick())
    def t(i):
        tries[i] = tries.get(i, 0) + 1
        if tries[i] < 3:
            raise Boom("x")
        return i

    @entrypoint(checkpointer=any_saver)
    def wf(n):
        return [f.result() for f in [t(i) for i in range(n)]]

    assert within(5, lambda: wf.invoke(10, thread_id="t")) == list(range(10))
    assert set(tries.values()) == {3}


def test_a_body_that_is_tried_again(any_saver):
    attempts = []

    @entrypoint(checkpointer=any_saver, retry_policy=quick())
    async def wf(x):
        attempts.append(x)
        if len(attempts) < 3:
            raise Boom("x")
        return x

    assert within(5, lambda: wf.invoke(1, thread_id="t")) == 1
    assert len(attempts) == 3


def test_children_of_a_failed_attempt_are_ended_before_the_next(any_saver):
    log = []

    @task
    async def child(i):
        try:
            await asyncio.sleep(30)
        finally:
            log.append((f"child {i} ended", now()))

    @task(retry_policy=quick())
    async def t():
        log.append(("attempt", now()))
        attempt = len([each for each, _ in log if each == "attempt"])
        if attempt < 3:
            child(attempt)
            await asyncio.sleep(1)
            raise Boom("x")
        return attempt

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        return await t()

    with takes(2):
        assert within(5, lambda: wf.invoke(1, thread_id="t")) == 3
    assert log == [
        ("attempt", 0),
        ("child 1 ended", 1),
        ("attempt", 1),
        ("child 2 ended", 2),
        ("attempt", 2),
    ]


def test_delays_are_waited_and_shown(any_saver):
    attempts = []

    class Slow(Boom):
        retry_after = 300

    policy = RetryPolicy(
        initial_interval=100, backoff_factor=2, max_interval=1000, jitter=False, max_attempts=4
    )
    t = flaky(attempts, [Boom("1"), Slow("2"), Boom("3")], policy)

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return t(x).result()

    with takes(800):
        run = wf.submit(7, thread_id="t")
        assert run.result(5) == 7
    retrying = [event for event in run.events() if isinstance(event, events.CallRetrying)]
    assert [event.delay for event in retrying] == [100, 300, 400]
    assert [event.time - EPOCH for event in retrying] == [0, 100, 400]
    assert [event.attempt for event in retrying] == [1, 2, 3]
    assert [str(event.error) for event in retrying] == ["1", "2", "3"]


def test_a_back_off_never_goes_past_the_deadline(any_saver):
    attempts = []
    policy = RetryPolicy(initial_interval=10, jitter=False)
    t = flaky(attempts, [Boom("1")] * 3, policy, is_async=True)
    with takes(0), pytest.raises(Boom, match="1"):
        run_one(t, any_saver, timeout=9)
    assert len(attempts) == 1
    t = flaky(attempts, [Boom("1"), Boom("2"), Boom("3")], policy, is_async=True)
    with takes(10), pytest.raises(Boom, match="2"):
        run_one(t, any_saver, timeout=29)
    assert len(attempts) == 3


def test_a_back_off_is_left_at_once_when_the_run_is_cancelled(any_saver):
    attempts = []
    t = flaky(attempts, [Boom("1")], RetryPolicy(initial_interval=20, jitter=False), is_async=True)

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        await t(x)

    async def main():
        run = wf.submit(1, thread_id="t")
        await asyncio.sleep(5)
        assert len(attempts) == 1
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    assert within(5, lambda: timed(main)) == (None, 5)
    assert len(attempts) == 1


def test_a_replayed_failure_is_not_tried_again_by_the_policy(any_saver):
    """The attempts are used up: a resume that goes on from the failure does not spend more."""
    if any_saver is None:
        return
    attempts, broken = [], [True]
    t = flaky(attempts, [Boom(str(i)) for i in range(9)], quick())

    @task
    def fallback():
        return "fallback"

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        try:
            t(x).result()
        except Boom as error:
            found = str(error), fallback().result()
        if broken:
            raise Other("x")
        return found

    with pytest.raises(Other):
        wf.invoke(1, thread_id="t")
    broken.clear()
    assert wf.invoke(None, thread_id="t") == ("2", "fallback")
    assert len(attempts) == 3


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_a_new_attempt_uses_what_the_last_one_has_recorded(any_saver, is_async, durability):
    """Without a journal nothing is recorded, so that all is done again."""
    ran = []

    @task
    def child(i):
        ran.append(i)
        if i == 2 and ran.count(2) == 1:
            raise Boom("x")
        return i

    def parent():
        return [child(1).result(), child(2).result(), child(1).result()]

    async def aparent():
        return [await child(1), await child(2), await child(1)]

    t = task(retry_policy=quick())(aparent if is_async else parent)

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return t().result()

    assert within(5, lambda: wf.invoke(1, thread_id="t", durability=durability)) == [1, 2, 1]
    assert ran == ([1, 2, 1, 2, 1] if any_saver is None else [1, 2, 2, 1])


@pytest.mark.parametrize("where", ["task", "entrypoint"])
def test_a_failure_that_ended_the_attempt_is_tried_again_in_the_next(any_saver, where):
    """Also when the body had gone on from it before it gave up: otherwise no attempt could ever succeed."""
    ran = []

    @task
    def child():
        ran.append("child")
        if ran.count("child") < 3:
            raise Boom("x")
        return "good"

    @task
    def note():
        ran.append("note")

    def body(x):
        try:
            return child().result()
        except Boom:
            note().result()
            raise

    if where == "task":
        t = task(retry_policy=quick())(body)

        @entrypoint(checkpointer=any_saver)
        def wf(x):
            return t(x).result()
    else:
        wf = entrypoint(checkpointer=any_saver, retry_policy=quick())(body)

    assert within(5, lambda: wf.invoke(1, thread_id="t")) == "good"
    assert ran.count("child") == 3


# Timeouts


@pytest.mark.parametrize("limit", [30, timedelta(seconds=30), TimeoutPolicy(run_timeout=30)])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_task_that_is_out_of_time_fails_on_time(any_saver, limit, is_async):
    log = []

    @task(timeout=limit)
    def slow():
        sleep(100)
        log.append("ended")

    @task(timeout=limit)
    async def aslow():
        try:
            await asyncio.sleep(100)
        finally:
            log.append("cancelled")

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        with pytest.raises(NodeTimeoutError, match="slow") as caught:
            (aslow if is_async else slow)().result()
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert error.timeout == 30
        assert error.elapsed == 30
        assert error.given_up is not is_async
        return clock.now, list(log)

    with takes(30 if is_async else 100) as clock:
        run = wf.submit(1, thread_id="t")
        assert run.result(5) == (30, ["cancelled"] if is_async else [])
        assert [left.step for left in run.given_up] == ([] if is_async else ["slow"])


def test_a_task_that_really_blocks_is_given_up_on_time(any_saver):
    gate = threading.Event()

    @task(timeout=0.03)
    def slow():
        gate.wait(5)

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        begun = time.monotonic()
        with pytest.raises(NodeTimeoutError, match="slow") as caught:
            slow().result()
        assert caught.value.elapsed >= 0.03
        return time.monotonic() - begun

    with nothing_left():
        run = wf.submit(1, thread_id="t")
        assert 0.025 < run.result(5) < 0.25
        assert [left.step for left in run.given_up] == ["slow"]
        gate.set()


@pytest.mark.parametrize("made", [True, False], ids=["when made", "when run"])
def test_an_entrypoint_and_a_run_that_are_out_of_time(any_saver, made):
    given = {"timeout": 20}

    @entrypoint(checkpointer=any_saver, **(given if made else {}))
    async def wf(x):
        await asyncio.sleep(30)

    with takes(20), pytest.raises(NodeTimeoutError, match="wf"):
        within(5, lambda: wf.invoke(1, thread_id="t", **({} if made else given)))


@pytest.mark.parametrize("made", [True, False], ids=["when made", "when run"])
def test_an_entrypoint_that_really_blocks_and_is_out_of_time(any_saver, made):
    gate, given = threading.Event(), {"timeout": 0.02}

    @entrypoint(checkpointer=any_saver, **(given if made else {}))
    def wf(x):
        gate.wait(5)

    begun = time.monotonic()
    with pytest.raises(NodeTimeoutError, match="wf"):
        within(5, lambda: wf.invoke(1, thread_id="t", **({} if made else given)))
    assert time.monotonic() - begun < 0.5
    gate.set()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_child_never_outlives_its_parents_time(any_saver, is_async):
    """Deadlines are inherited, and what is below is ended with what is out of time."""
    log = []

    @task
    async def child():
        try:
            await asyncio.sleep(100)
        finally:
            log.append(("child", now()))

    @task(timeout=30)
    def parent():
        child().result()

    @task(timeout=30)
    async def aparent():
        await child()

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        with pytest.raises(NodeTimeoutError):
            await (aparent if is_async else parent)()
        return list(log)

    with takes(30):
        found = within(5, lambda: wf.invoke(1, thread_id="t"))
        if is_async:
            assert found == [("child", 30)]
    assert log == [("child", 30)]


def test_remaining_counts_down_to_the_nearest_deadline(any_saver):
    @task
    def plain():
        sleep(1)
        return weft.remaining()

    @task(timeout=4)
    async def limited():
        return weft.remaining(), await plain()

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        return weft.remaining(), await plain(), await limited(), await plain()

    with takes(3):
        assert wf.invoke(1, thread_id="a") == (None, None, (4, 3), None)
    with takes(3):
        assert wf.invoke(1, thread_id="b", timeout=50) == (50, 49, (4, 3), 47)
    with takes(3):
        assert wf.invoke(1, thread_id="c", timeout=4.5) == (4.5, 3.5, (3.5, 2.5), 1.5)


def test_a_timeout_is_of_one_attempt(any_saver):
    attempts = []

    @task(timeout=5, retry_policy=quick())
    async def t():
        attempts.append(now())
        if len(attempts) < 3:
            await asyncio.sleep(30)
        await asyncio.sleep(4)
        return "ok"

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        return await t()

    with takes(14):
        assert within(5, lambda: wf.invoke(1, thread_id="t")) == "ok"
    assert attempts == [0, 5, 10]


@pytest.mark.parametrize(("retry_on", "expected"), [(None, 1), (TimeoutError, 2), (NodeTimeoutError, 2)])
def test_a_sync_attempt_that_was_given_up_is_retried_only_if_the_policy_names_it(
    any_saver, retry_on, expected
):
    attempts = []
    more = {} if retry_on is None else {"retry_on": retry_on}

    @task(timeout=2, retry_policy=quick(max_attempts=2, **more))
    def t():
        attempts.append(clock.now)
        sleep(30)

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        with pytest.raises(NodeTimeoutError):
            t().result()
        return clock.now

    with virtual_clock() as clock, nothing_left():
        assert within(5, lambda: wf.invoke(1, thread_id="t")) == 2 * expected
    assert attempts == [0, 2][:expected]


def test_a_given_up_attempt_cannot_reach_the_next(any_saver):
    """Neither its value nor its calls count once another attempt has begun."""
    attempts, raised = [], []

    @task
    def child(i):
        return i

    @task(timeout=5, retry_policy=quick(max_attempts=2, retry_on=TimeoutError))
    def t():
        attempts.append(clock.now)
        if len(attempts) == 1:
            sleep(7)
            try:
                child(1)
            except BaseException as error:
                raised.append((error, clock.now))
                raise
            return "first"
        sleep(4)
        return "second", child(2).result()

    @entrypoint(checkpointer=any_saver)
    def wf(x):
        return t().result()

    with takes(9) as clock:
        assert within(5, lambda: wf.invoke(1, thread_id="t")) == ("second", 2)
    assert attempts == [0, 5]
    ((error, at),) = raised
    assert not isinstance(error, Exception)
    assert at == 7


def test_waiting_for_a_slot_is_not_counted(any_saver):
    @task(timeout=10)
    async def t(i):
        await asyncio.sleep(9)
        return i

    @entrypoint(checkpointer=any_saver)
    async def wf(n):
        return await asyncio.gather(*[t(i) for i in range(n)])

    with takes(45):
        assert within(5, lambda: wf.invoke(5, thread_id="t", max_concurrent=1)) == [0, 1, 2, 3, 4]


def test_a_task_that_ends_in_time_is_not_touched_by_its_timer(any_saver):
    @task(timeout=5)
    async def t():
        return 1

    @task
    def later():
        sleep(8)
        return 2

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        return await t(), await later()

    with takes(8):
        assert within(5, lambda: wf.invoke(1, thread_id="t")) == (1, 2)


def test_an_idle_timeout_and_its_signs_of_life(any_saver):
    @task
    async def child():
        pass

    @task
    async def long_child():
        await asyncio.sleep(25)

    def alive(kind):
        @task(timeout=TimeoutPolicy(idle_timeout=8), name=kind)
        async def t(runtime, writer):
            for _ in range(5):
                if kind == "writer":
                    writer(1)
                elif kind == "heartbeat":
                    runtime.heartbeat()
                elif kind == "child ends":
                    await child()
                elif kind == "child asked":
                    long_child()
                await asyncio.sleep(7)
            return kind

        return t

    @entrypoint(checkpointer=any_saver)
    async def wf(kind):
        return await alive(kind)()

    for kind in ("writer", "heartbeat", "child ends"):
        with takes(35):
            assert within(5, lambda: wf.invoke(kind, thread_id=kind)) == kind
    with takes(53):  # the last child is asked for at 28
        assert within(5, lambda: wf.invoke("child asked", thread_id="child asked")) == "child asked"
    with takes(8), pytest.raises(NodeTimeoutError, match="silent"):
        within(5, lambda: wf.invoke("silent", thread_id="silent"))


def test_an_idle_timeout_that_only_a_heartbeat_refreshes(any_saver):
    policy = TimeoutPolicy(idle_timeout=8, refresh_on="heartbeat")

    @task
    async def child():
        pass

    @task(timeout=policy)
    async def wrote(writer):
        for _ in range(5):
            writer(1)
            await child()
            await asyncio.sleep(7)

    @task(timeout=policy)
    def beat(runtime):
        for _ in range(5):
            runtime.heartbeat()
            sleep(7)
        return "alive"

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        with pytest.raises(NodeTimeoutError):
            await wrote()
        assert now() == 8
        return await beat()

    with takes(8 + 35):
        assert within(5, lambda: wf.invoke(1, thread_id="t")) == "alive"


def test_a_task_that_swallows_its_cancellation_still_fails(any_saver):
    @task(timeout=2)
    async def t():
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)
            return "swallowed"

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        await t()

    with takes(2.5), pytest.raises(NodeTimeoutError):
        within(5, lambda: wf.invoke(1, thread_id="t"))


def test_a_timeout_that_the_workflow_went_on_from_is_replayed(any_saver):
    if any_saver is None:
        return
    ran, broken = [], [True]

    @task(timeout=20)
    async def slow():
        ran.append("slow")
        await asyncio.sleep(30)

    @task
    def fallback():
        ran.append("fallback")
        return 1

    @entrypoint(checkpointer=any_saver)
    async def wf(x):
        try:
            await slow()
        except NodeTimeoutError as error:
            found = error.step, error.timeout, await fallback()
        if broken:
            raise Boom("x")
        return found

    with takes(20), pytest.raises(Boom):
        wf.invoke(1, thread_id="t")
    broken.clear()
    with takes(0):
        assert wf.invoke(None, thread_id="t") == ("slow", 20, 1)
    assert ran == ["slow", "fallback"]


# Caches


@pytest.mark.parametrize("is_async", [False, True])
def test_a_cached_result_is_used_again_over_runs_and_threads(any_saver, is_async):
    ran = []

    def body(x, y=0):
        ran.append(x)
        return [x]

    async def abody(x, y=0):
        return body(x)

    t = task(cache_policy=CachePolicy())(abody if is_async else body)
    cache = InMemoryCache()

    @entrypoint(checkpointer=any_saver, cache=cache)
    def wf(x):
        found = t(x).result()
        found.append("changed")
        return found

    for name in ("a", "b", "c"):
        assert wf.invoke(1, thread_id=name) == [1, "changed"]
    assert ran == [1]
    wf.invoke(2, thread_id="d")
    assert ran == [1, 2]
    t.clear_cache(cache)
    wf.invoke(1, thread_id="e")
    asyncio.run(t.aclear_cache(cache))
    wf.invoke(1, thread_id="f")
    assert ran == [1, 2, 1, 1]


def test_a_cached_result_that_cannot_be_read_is_made_anew(any_saver, caplog):
    """It may be of another version of its type; a cache may forget at any time."""
    ran = []

    @task(cache_policy=CachePolicy())
    def t(x):
        ran.append(x)
        return x

    cache = InMemoryCache()

    @entrypoint(checkpointer=any_saver, cache=cache)
    def wf(x):
        return t(x).result()

    wf.invoke(1, thread_id="a")
    (address,) = cache._entries
    cache.set(*address, b"\xff not what the codec makes")
    assert wf.invoke(1, thread_id="b") == 1
    assert "cached result of 't' cannot be read" in caplog.text
    assert wf.invoke(1, thread_id="c") == 1
    assert ran == [1, 1]


def test_errors_and_other_steps_are_not_cached(any_saver):
    ran = []

    @task(cache_policy=CachePolicy())
    def bad(x):
        ran.append("bad")
        raise Boom("x")

    @task(cache_policy=CachePolicy())
    def none(x):
        ran.append("none")

    @task
    def uncached(x):
        ran.append("uncached")

    @entrypoint(checkpointer=any_saver, cache=InMemoryCache())
    def wf(x):
        bad(x).exception()
        return none(x).result(), uncached(x).result()

    wf.invoke(1, thread_id="a")
    wf.invoke(1, thread_id="b")
    assert ran.count("bad") == 2
    assert ran.count("none") == 1
    assert ran.count("uncached") == 2


def test_without_a_cache_the_policy_does_nothing():
    ran = []

    @task(cache_policy=CachePolicy())
    def t(x):
        ran.append(x)

    @entrypoint()
    def wf(x):
        t(x).result(), t(x).result()

    wf.invoke(1)
    assert ran == [1, 1]


def test_a_key_function_and_a_time_to_live(any_saver):
    ran, seconds = [], [0]

    @task(cache_policy=CachePolicy(key_func=lambda client, x: f"k{x}", ttl=60))
    def t(client, x):
        ran.append(x)
        return x

    @entrypoint(checkpointer=any_saver, cache=InMemoryCache(clock=lambda: seconds[0]))
    def wf(x):
        return t([x], 1).result()

    wf.invoke(1, thread_id="a")
    seconds[0] = 59
    wf.invoke(2, thread_id="b")
    assert ran == [1]
    seconds[0] = 60
    wf.invoke(3, thread_id="c")
    assert ran == [1, 1]


def test_a_whole_run_is_cached_by_its_input(any_saver):
    ran = []

    @entrypoint(checkpointer=any_saver, cache=InMemoryCache(), cache_policy=CachePolicy())
    def wf(x):
        ran.append(x)
        return [x]

    assert wf.invoke(1, thread_id="a") == [1]
    assert wf.invoke(1, thread_id="b") == [1]
    assert wf.invoke(2, thread_id="c") == [2]
    assert ran == [1, 2]


def test_a_cached_task_does_not_wait_for_a_slot_or_run_twice_on_resume(any_saver):
    ran = []

    @task(cache_policy=CachePolicy())
    async def t(x):
        ran.append(x)
        return x

    @entrypoint(checkpointer=any_saver, cache=InMemoryCache())
    async def wf(x):
        await t(1)
        return await asyncio.gather(*[t(1) for _ in range(5)])

    assert within(5, lambda: wf.invoke(1, thread_id="t", max_concurrent=1)) == [1] * 5
    assert ran == [1]


def test_an_argument_that_cannot_be_a_key_is_an_error_of_the_call(any_saver):
    @task(cache_policy=CachePolicy(), key=lambda x: 1)
    def t(x):
        return 1

    @entrypoint(checkpointer=any_saver, cache=InMemoryCache())
    def wf(x):
        return t(object()).result()

    with nothing_left(), pytest.raises((TypeError, weft.UsageError)):
        within(3, lambda: wf.invoke(1, thread_id="t"))
