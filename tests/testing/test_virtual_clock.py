"""Virtual time: exact, the same again under one seed, and standing still while a thread works."""

import asyncio
import concurrent.futures
import gc
import inspect
import itertools
import logging
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft import InMemorySaver, NodeTimeoutError, RetryPolicy, entrypoint, task
from weft.core.sizing import Resources
from weft.engine.clock import clock_of
from weft.engine.portal import portal
from weft.errors import DefinitionError, Stopped, UsageError, WeftError
from weft.testing import StandstillError, VirtualClock, VirtualLoop, run, sleep, virtual_clock, virtual_time

FOREVER = 10**9


def now():
    return asyncio.get_running_loop().time()


def my_clock():
    return asyncio.get_running_loop().weft_clock


class Watch:
    """Real seconds, so that a test fails which really waits."""

    def __enter__(self):
        self._began = time.monotonic()
        return self

    def __exit__(self, *exc):
        self.seconds = time.monotonic() - self._began


# Time


def test_an_hour_passes_at_once_and_exactly():
    async def main():
        await asyncio.sleep(3600)
        return now()

    with Watch() as watch:
        assert run(main) == 3600.0
    assert watch.seconds < 2


@given(st.lists(st.floats(0, 1e12), max_size=30))
@settings(deadline=None, max_examples=60)
def test_timers_fire_at_their_very_moment_and_in_order_of_asking(delays):
    fired = []

    async def main():
        loop = asyncio.get_running_loop()
        for number, delay in enumerate(delays):
            loop.call_later(delay, lambda number=number: fired.append((loop.time(), number)))
        await asyncio.sleep(1e12)

    run(main)
    assert fired == sorted((delay, number) for number, delay in enumerate(delays))


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_time_is_the_sum_of_what_was_slept(delays):
    async def main():
        expected = 0.0
        for delay in delays:
            await asyncio.sleep(delay)
            expected += delay
            assert now() == expected

    run(main)


def test_time_goes_on_where_a_nanosecond_is_below_the_precision_of_a_float():
    async def main():
        await asyncio.sleep(3e9)
        await asyncio.sleep(1e-9)
        await asyncio.sleep(1.5)
        return now()

    assert run(main) == 3e9 + 1e-9 + 1.5


def test_a_hundred_thousand_sleeps_are_quick():
    async def main():
        for _ in range(100_000):
            await asyncio.sleep(1)
        return now()

    with Watch() as watch:
        assert run(main) == 100_000.0
    assert watch.seconds < 5


def test_timeouts_are_virtual():
    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 30)
        assert now() == 30.0
        async with asyncio.timeout(10):
            await asyncio.sleep(9.5)
        assert now() == 39.5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.sleep(FOREVER)
        return now()

    assert run(main) == 40.5


def test_a_timeout_and_what_it_guards_at_one_moment_keep_their_order():
    async def main():
        async def short():
            await asyncio.sleep(1)
            return "done"

        inner = asyncio.create_task(short())
        await asyncio.sleep(0)  # its timer is the first
        return await asyncio.wait_for(inner, 1), now()

    assert run(main) == ("done", 1.0)


def test_gather_takes_as_long_as_the_longest():
    async def main():
        await asyncio.gather(*(asyncio.sleep(seconds) for seconds in (3, 1, 2)))
        return now()

    assert run(main) == 3.0


def test_cancelled_timers_are_not_jumped_to():
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(300):  # enough that asyncio sweeps its heap
            loop.call_later(50, lambda: None).cancel()
        loop.call_later(100, lambda: None).cancel()
        await asyncio.sleep(200)
        return now()

    assert run(main) == 200.0


def test_time_stands_still_while_anything_is_ready():
    async def main():
        timer = asyncio.create_task(asyncio.sleep(1e-9))
        for _ in range(1000):
            await asyncio.sleep(0)
            assert now() == 0.0
        await timer
        return now()

    assert run(main) == 1e-9


def test_asyncio_debug_mode_works(monkeypatch):
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")

    async def main():
        await asyncio.gather(asyncio.sleep(5), asyncio.to_thread(lambda: None))
        return now()

    assert run(main, seed=1) == 5.0


# The world that is not virtual


def test_time_stands_still_for_work_in_an_executor():
    async def main():
        timer = asyncio.create_task(asyncio.sleep(1))
        result = await asyncio.wait_for(asyncio.to_thread(lambda: time.sleep(0.05) or "done"), 0.001)
        assert now() == 0.0
        await timer
        return result, now()

    assert run(main) == ("done", 1.0)


def test_time_stands_still_for_work_that_nobody_waits_for_any_more():
    ended = threading.Event()

    async def main():
        future = asyncio.get_running_loop().run_in_executor(None, lambda: time.sleep(0.05) or ended.set())
        await asyncio.sleep(0)
        future.cancel()
        await asyncio.sleep(1)
        return ended.is_set()

    assert run(main)


class OneThread(concurrent.futures.Executor):
    """An executor of somebody else's."""

    def submit(self, fn, /, *args, **kwargs):
        future = concurrent.futures.Future()
        threading.Thread(target=lambda: future.set_result(fn(*args, **kwargs))).start()
        return future


def test_time_stands_still_for_executors_of_any_kind():
    async def main():
        work = asyncio.get_running_loop().run_in_executor(OneThread(), time.sleep, 0.05)
        await asyncio.wait_for(work, 0.001)
        return now()

    assert run(main) == 0.0


def test_an_executor_that_refuses_does_not_hold_time():
    async def main():
        executor = concurrent.futures.ThreadPoolExecutor()
        executor.shutdown()
        with pytest.raises(RuntimeError):
            await asyncio.get_running_loop().run_in_executor(executor, print)
        await asyncio.get_running_loop().shutdown_default_executor()
        with pytest.raises(RuntimeError, match="shutdown"):
            await asyncio.to_thread(print)
        await asyncio.sleep(3)
        return now()

    assert run(main) == 3.0


def test_work_in_an_executor_may_sleep_in_virtual_time():
    async def main():
        with Watch() as watch:
            await asyncio.gather(asyncio.to_thread(sleep, 50), asyncio.to_thread(sleep, 70))
        assert watch.seconds < 5
        return now()

    assert run(main) == 70.0


def test_the_end_waits_for_threads_that_sleep_in_virtual_time():
    ended = []

    async def main():
        asyncio.get_running_loop().run_in_executor(None, lambda: sleep(60) or ended.append(1))
        await asyncio.sleep(1)

    run(main)
    assert ended == [1]


def test_networks_are_real():
    server = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection, _ = server.accept()
        with connection:
            line = connection.recv(100)
            time.sleep(0.05)
            connection.sendall(line)

    async def main():
        reader, writer = await asyncio.open_connection(*server.getsockname())
        writer.write(b"hello\n")
        async with asyncio.timeout(30):
            line = await reader.readline()
        began = now()
        await asyncio.sleep(0.03)  # a socket is open: time passes as it does outside
        assert now() == began + 0.03
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(FOREVER)
        return line, began

    with server:
        thread = threading.Thread(target=answer)
        thread.start()
        line, at = run(main)
        thread.join()
    assert line == b"hello\n"
    assert 0.04 < at < 30


def test_subprocesses_are_real():
    async def main():
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(0.05)")
        return await asyncio.wait_for(program.wait(), 30), now()

    code, at = run(main)
    assert code == 0
    assert 0.04 < at < 30


# The order


def ordered(number=4, turns=3):
    """A program whose log is the order in which its tasks take their steps."""
    log = []

    async def main():
        async def walk(name):
            for turn in range(turns):
                log.append((name, turn))
                await asyncio.sleep(0)

        await asyncio.gather(*(walk(name) for name in range(number)))

    return main, log


def logged(seed, **options):
    main, log = ordered(**options)
    run(main, seed=seed)
    return log


def test_without_a_seed_the_order_is_that_of_asyncio():
    main, log = ordered()
    asyncio.run(main())
    assert logged(None) == log


def test_one_seed_gives_one_log():
    for seed in range(30):
        assert logged(seed) == logged(seed)


def test_seeds_find_every_order():
    orders = {tuple(logged(seed, number=3, turns=1)) for seed in range(100)}
    assert len(orders) == 6


def test_seeds_find_a_race():
    """The second of two tasks that are woken at one moment may go first."""

    def race(seed):
        async def main():
            log = []

            async def walk(name):
                await asyncio.sleep(1)
                log.append(name)

            await asyncio.gather(walk("a"), walk("b"))
            return log

        return run(main, seed=seed)

    assert race(None) == ["a", "b"]
    assert {tuple(race(seed)) for seed in range(20)} == {("a", "b"), ("b", "a")}


def test_plain_callbacks_keep_their_order_under_every_seed():
    async def main():
        log = []
        loop = asyncio.get_running_loop()
        others = [asyncio.create_task(asyncio.sleep(0)) for _ in range(10)]
        for number in range(10):
            loop.call_soon(log.append, number)
        await asyncio.gather(*others)
        return log

    for seed in range(30):
        assert run(main, seed=seed) == list(range(10))


def test_a_cancel_that_was_asked_for_is_no_step_of_the_task():
    """``call_soon(task.cancel)`` is a callback like any other, so two of them keep their order."""

    async def main():
        log = []
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(asyncio.sleep(FOREVER)) for _ in range(6)]
        await asyncio.sleep(0)
        for number, each in enumerate(tasks):
            loop.call_soon(each.cancel)
            loop.call_soon(lambda done=number + 1: log.append(all(t.cancelling() for t in tasks[:done])))
        await asyncio.gather(*tasks, return_exceptions=True)
        return log

    for seed in range(20):
        assert run(main, seed=seed) == [True] * 6


def test_the_order_does_not_depend_on_where_tasks_lie_in_memory():
    """asyncio cancels the tasks of a group in the order of a set, which is that of their addresses."""

    def cancelled(chance):
        async def main():
            log, junk = [], []

            async def wait(name):
                try:
                    await asyncio.sleep(FOREVER)
                finally:
                    log.append(name)

            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    for name in range(20):
                        junk += [asyncio.Event() for _ in range(chance.randrange(20))]
                        group.create_task(wait(name))
                    await asyncio.sleep(1)
                    raise ValueError
            return log

        return run(main, seed=5)

    assert len({tuple(cancelled(random.Random(lie))) for lie in range(10)}) == 1


def test_chance_comes_from_the_seed():
    async def main():
        clock = my_clock()
        return [clock.draw() for _ in range(3)], [clock.new_id() for _ in range(3)]

    assert run(main, seed=1) == run(main, seed=1)
    assert run(main, seed=1) != run(main, seed=2)
    draws, ids = run(main, seed=1)
    assert all(0 <= drawn < 1 for drawn in draws)
    assert len(set(ids)) == 3
    assert {len(each) for each in ids} == {32}


def test_drawing_does_not_change_the_order_of_tasks():
    def walked(draws):
        main, log = ordered()

        async def drawing():
            for _ in range(draws):
                my_clock().draw()
            await main()

        run(drawing, seed=3)
        return log

    assert walked(0) == walked(5)


def test_without_a_seed_no_run_has_the_id_of_another():
    """Two clocks may share a store, as a first run and its resume do."""

    async def main():
        return my_clock().new_id(), my_clock().draw()

    first, second = run(main), run(main)
    assert first[0] != second[0]
    assert first[1] == second[1]


def test_the_clock_tells_virtual_time_and_made_up_resources():
    async def main():
        clock = my_clock()
        assert clock_of(asyncio.get_running_loop()) is clock
        assert isinstance(clock, VirtualClock)
        assert clock.is_virtual
        began = clock.wall()
        await asyncio.sleep(90)
        assert clock.now == 90.0
        return clock.wall() - began, clock.resources()

    assert run(main) == (90.0, Resources(4, 8 * 1024**3))
    assert run(main, cores=2, memory=1000)[1] == Resources(2, 1000)


# Threads


class Bodies:
    """Sync bodies, run as the engine runs them."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.clock = clock_of(self.loop)
        self.at_work = 0
        self.log = []

    def begin(self, fn, *args):
        """Have ``fn(*args)`` done by a body; what it gives, for the loop."""
        future = self.loop.create_future()

        def job():
            value, error = None, None
            try:
                with self:
                    value = fn(*args)
            except BaseException as caught:
                error = caught
            try:
                self.loop.call_soon_threadsafe(settle, value, error)
            except RuntimeError:  # the loop is closed
                pass

        def settle(value, error):
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        self.clock.start_thread(job)
        return future

    def __enter__(self):
        self.at_work += 1
        assert self.at_work == 1, "two bodies work at once"

    def __exit__(self, *exc):
        assert self.at_work == 1, "two bodies work at once"
        self.at_work -= 1

    def say(self, *what):
        assert self.at_work == 1
        self.log.append((self.loop.time(), *what))

    def sleep(self, seconds):
        self.__exit__()
        try:
            sleep(seconds)
        finally:
            self.__enter__()

    def ask(self, begin, *args, timeout=None):
        """Have the loop do something and give a result, as a body asks for a call."""
        future = concurrent.futures.Future()
        self.loop.call_soon_threadsafe(begin, future, *args)
        self.__exit__()
        self.clock.leave()
        try:
            return future.result(timeout)
        finally:
            self.clock.enter()
            self.__enter__()

    def later(self, future, seconds, value):
        """Something to ask for: the value, after so many seconds."""
        self.loop.call_later(seconds, lambda: future.done() or future.set_result(value))


def mixed(seed):
    """The log of bodies that sleep, ask, time out and work, beside tasks that tick."""

    async def main():
        bodies = Bodies()

        def body(name):
            bodies.say(name, "begins")
            bodies.sleep(name % 3)
            bodies.say(name, "slept")
            bodies.say(name, bodies.ask(bodies.later, 1, name))
            with pytest.raises(TimeoutError):
                bodies.ask(bodies.later, FOREVER, None, timeout=name + 1)
            bodies.say(name, "timed out")
            sum(range(1000))
            return name

        async def tick(name):
            for _ in range(5):
                await asyncio.sleep(1)
                assert not bodies.at_work
                bodies.log.append((now(), "tick", name))

        results = await asyncio.gather(
            *(bodies.begin(body, name) for name in range(5)), *(tick(name) for name in range(2))
        )
        assert results[:5] == list(range(5))
        return bodies.log

    return run(main, seed=seed)


def test_bodies_never_work_at_once_and_one_seed_gives_one_log():
    logs = set()
    for seed in [None, *range(60)]:
        log = mixed(seed)
        assert log == mixed(seed), f"{seed=}"
        logs.add(tuple(log))
    assert len(logs) > 50
    for log in logs:
        times = {each[1:]: each[0] for each in log}
        assert times[4, "slept"] == 1.0
        assert times[4, 4] == 2.0
        assert times[4, "timed out"] == 7.0


def test_without_a_seed_bodies_begin_in_order():
    async def main():
        bodies = Bodies()
        await asyncio.gather(*(bodies.begin(bodies.say, name) for name in range(20)))
        return bodies.log

    assert run(main) == [(0.0, name) for name in range(20)]


def test_the_loop_does_nothing_while_a_body_works():
    async def main():
        bodies, ticks = Bodies(), 0

        def work():
            before = ticks
            time.sleep(0.02)
            return ticks - before

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        assert await bodies.begin(work) == 0
        ticking.cancel()
        return now()

    for seed in [None, *range(5)]:
        assert run(main, seed=seed) == 0.0


def test_seeds_let_the_loop_go_on_before_a_body_that_could():
    def first(seed):
        async def main():
            bodies, log = Bodies(), []

            async def walk():
                for _ in range(3):
                    log.append("task")
                    await asyncio.sleep(0)

            body = bodies.begin(log.append, "body")
            await asyncio.gather(body, walk())
            return log.index("body")

        return run(main, seed=seed)

    assert {first(seed) for seed in range(60)} == {0, 1, 2, 3}


@pytest.mark.parametrize("way", ["result", "wait", "as_completed", "event", "queue"])
def test_bodies_block_in_any_way_that_the_standard_library_has(way):
    async def main():
        bodies = Bodies()

        def wait_for(futures):
            if way == "result":
                return futures[0].result() + futures[1].result()
            if way == "wait":
                done, _ = concurrent.futures.wait(futures)
                return sum(each.result() for each in done)
            if way == "as_completed":
                return sum(each.result() for each in concurrent.futures.as_completed(futures))
            if way == "event":
                event = threading.Event()
                futures[1].add_done_callback(lambda _: event.set())
                event.wait()
            else:
                items = queue.Queue()
                futures[1].add_done_callback(items.put)
                items.get()
            return futures[0].result() + futures[1].result()

        def body():
            futures = [concurrent.futures.Future() for _ in range(2)]
            for number, future in enumerate(futures):
                bodies.loop.call_soon_threadsafe(bodies.later, future, number + 1, number + 1)
            bodies.clock.leave()
            try:
                return wait_for(futures)
            finally:
                bodies.clock.enter()

        return await bodies.begin(body), now()

    assert run(main, seed=1) == (3, 2.0)


def test_a_timed_wait_ends_in_virtual_time():
    async def main():
        bodies = Bodies()

        def body():
            with pytest.raises(TimeoutError):
                bodies.ask(bodies.later, 100, None, timeout=30)
            bodies.say("timed out")
            future = concurrent.futures.Future()
            bodies.clock.leave()
            done, not_done = concurrent.futures.wait([future], timeout=5)
            bodies.clock.enter()
            bodies.say(len(done), len(not_done))
            return bodies.ask(bodies.later, 3, "value", timeout=7)

        with Watch() as watch:
            result = await bodies.begin(body)
        assert watch.seconds < 3
        return result, bodies.log, now()

    assert run(main) == ("value", [(30.0, "timed out"), (35.0, 0, 1)], 38.0)


def test_those_who_are_woken_at_one_moment_go_on_in_the_order_of_their_beginning():
    async def main():
        bodies, futures = Bodies(), []

        def body(name):
            bodies.ask(futures.append)
            bodies.say(name)

        results = [bodies.begin(body, name) for name in range(10)]
        await asyncio.sleep(1)
        for future in chance.sample(futures, len(futures)):
            future.set_result(None)
        await asyncio.gather(*results)
        return [name for _, name in bodies.log]

    for chance in map(random.Random, range(5)):
        assert run(main) == list(range(10))


def test_time_waits_for_a_thread_that_was_woken():
    """It takes a moment until it runs: time must not jump, or be said to stand still, in that moment."""

    async def main():
        bodies = Bodies()

        def body():
            for turn in range(100):
                at = bodies.loop.time()
                bodies.ask(lambda future: future.set_result(None))
                assert bodies.loop.time() == at, f"time has passed in turn {turn}"

        other = asyncio.create_task(asyncio.sleep(1))
        await bodies.begin(body)
        assert now() == 0.0
        await other

    for seed in [None, 1, 2]:
        run(main, seed=seed)


def test_a_body_that_really_blocks_takes_real_time_only():
    async def main():
        bodies = Bodies()
        timer = asyncio.create_task(asyncio.sleep(0.001))
        with Watch() as watch:
            await bodies.begin(time.sleep, 0.05)
        assert watch.seconds >= 0.05
        assert now() == 0.0
        await timer

    run(main)


def test_at_most_512_bodies_have_a_thread_and_those_that_block_do_not_count():
    async def main():
        bodies = Bodies()
        await asyncio.gather(*(bodies.begin(bodies.sleep, 1) for _ in range(513)))
        assert now() == 2.0

        def nested(depth):
            if depth:
                bodies.ask(
                    lambda future: bodies.begin(nested, depth - 1).add_done_callback(future.set_result)
                )
            return depth

        return await bodies.begin(nested, 520)

    assert run(main) == 520


def test_threads_that_are_no_bodies_leave_and_enter_and_nothing_happens():
    async def main():
        clock = my_clock()
        clock.leave()
        clock.enter()

        def strange():
            clock.leave()
            clock.enter()
            return "strange"

        assert await asyncio.to_thread(strange) == "strange"

        def body():
            with concurrent.futures.ThreadPoolExecutor() as pool:
                return pool.submit(strange).result()

        return await Bodies().begin(body)

    assert run(main) == "strange"


def test_a_body_may_leave_and_enter_twice():
    async def main():
        bodies = Bodies()

        def body():
            bodies.clock.enter()
            future = concurrent.futures.Future()
            bodies.loop.call_soon_threadsafe(bodies.later, future, 1, "value")
            bodies.clock.leave()
            bodies.clock.leave()
            value = future.result()
            bodies.clock.enter()
            bodies.clock.enter()
            return value

        return await bodies.begin(body), now()

    assert run(main) == ("value", 1.0)


def test_a_body_that_leaves_and_need_not_block_comes_back():
    async def main():
        bodies = Bodies()

        def body():
            for _ in range(50):
                bodies.clock.leave()
                bodies.clock.enter()
            return bodies.loop.time()

        timer = asyncio.create_task(asyncio.sleep(1))
        at = await bodies.begin(body)
        await timer
        return at

    assert run(main, seed=2) == 0.0


def test_a_body_of_another_clock_is_a_strange_thread():
    async def main():
        async def inner():
            my_clock().leave()
            my_clock().enter()
            await asyncio.sleep(5)
            return now()

        return await Bodies().begin(run, inner), now()

    assert run(main) == (5.0, 0.0)


def test_sleep_is_real_outside_of_a_virtual_clock():
    with Watch() as watch:
        sleep(0.02)
    assert watch.seconds >= 0.02
    with pytest.raises(ValueError, match="negative"):
        sleep(-1)


def test_sleep_refuses_to_block_the_loop():
    async def main():
        with pytest.raises(UsageError, match=r"await asyncio\.sleep"):
            sleep(1)

    run(main)


def test_sleep_can_stand_for_that_of_the_code_under_test(monkeypatch):
    monkeypatch.setattr(time, "sleep", sleep)

    async def main():
        await Bodies().begin(time.sleep, 30)
        return now()

    assert run(main) == 30.0
    time.sleep(0.001)


# What nobody waits for any more


def test_bodies_that_sleep_or_block_are_stopped_when_the_loop_is_closed():
    ended = {}

    async def main():
        clock = my_clock()

        def body(name, block):
            try:
                block()
            except BaseException as error:
                time.sleep(0.05)  # the end waits for what it does then
                ended[name] = type(error)
                with pytest.raises(Stopped):
                    sleep(1)
                with pytest.raises(Stopped):
                    clock.leave()
                clock.enter()

        def wait():
            clock.leave()
            try:
                concurrent.futures.Future().result()
            finally:
                clock.enter()

        clock.start_thread(lambda: body("asleep", lambda: sleep(FOREVER)))
        clock.start_thread(lambda: body("blocked", wait))
        await asyncio.sleep(1)
        return clock

    clock = run(main)
    assert ended == {"asleep": Stopped, "blocked": Stopped}
    with pytest.raises(RuntimeError, match="ended"):
        clock.start_thread(print)


def test_bodies_that_have_not_begun_never_do():
    loop, begun = VirtualLoop(), []
    loop.weft_clock.start_thread(lambda: begun.append(1))
    loop.close()
    time.sleep(0.02)
    assert not begun


def test_a_body_that_was_given_up_goes_on_in_its_turn():
    async def main():
        bodies = Bodies()
        unwanted = bodies.begin(lambda: bodies.sleep(50) or bodies.say("still here"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(unwanted, 5)
        assert now() == 5.0
        await asyncio.sleep(100)
        return bodies.log

    assert run(main) == [(50.0, "still here")]


# Patience


def wait_for(event):
    event.wait()  # THE PLACE


def test_a_body_that_waits_for_what_only_virtual_time_can_give(caplog):
    """It would stand still for ever. So the loop goes on, and the test fails with the place."""
    ended = []

    async def main():
        event = threading.Event()
        asyncio.get_running_loop().call_later(5, event.set)
        await Bodies().begin(wait_for, event)
        ended.append(now())

    with pytest.raises(StandstillError) as caught:
        run(main, patience=0.1)
    assert ended == [5.0]
    assert "worked for 0.1 s of real time" in str(caught.value)
    assert "THE PLACE" in str(caught.value)
    assert "weft.testing.sleep()" in str(caught.value)
    assert "THE PLACE" in caplog.text


def test_work_in_an_executor_that_waits_for_what_only_virtual_time_can_give():
    ended = []

    async def main():
        event = threading.Event()
        asyncio.get_running_loop().call_later(5, event.set)
        await asyncio.to_thread(wait_for, event)
        ended.append(now())

    with pytest.raises(StandstillError, match=r"work in an executor took more than 0\.1 s") as caught:
        run(main, patience=0.1)
    assert ended == [5.0]
    assert "wait_for is at " in str(caught.value)
    assert "THE PLACE" in str(caught.value)


def test_an_error_is_not_hidden_by_a_lack_of_patience():
    async def main():
        await Bodies().begin(time.sleep, 0.3)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        run(main, patience=0.2)
    assert "worked for 0.2 s" in caught.value.__notes__[0]


def test_who_was_left_alone_takes_turns_again():
    ended = []

    async def main():
        bodies = Bodies()

        def slow():
            time.sleep(0.3)
            bodies.sleep(3)
            ended.append(bodies.loop.time())

        await bodies.begin(slow)

    with pytest.raises(StandstillError, match=r"worked for 0\.2 s"):
        run(main, patience=0.2)
    run(main, patience=None)
    assert ended == [3.0, 3.0]


def test_a_body_that_says_it_will_block_and_works(caplog):
    async def main():
        bodies = Bodies()

        def body():
            bodies.clock.leave()
            time.sleep(0.1)  # THE PLACE
            bodies.clock.enter()
            return "done"

        return await bodies.begin(body)

    with pytest.raises(StandstillError, match="was to block"):
        run(main, patience=0.02)
    assert "THE PLACE" in caplog.text


# Standing still


def test_nothing_can_happen_any_more():
    async def main():
        await asyncio.sleep(2)
        queue = asyncio.Queue()

        async def consume():
            return await queue.get()  # THE CONSUMER

        async with asyncio.TaskGroup() as group:
            group.create_task(consume(), name="the consumer")
            await asyncio.Event().wait()  # THE MAIN

    with pytest.raises(StandstillError) as caught:
        run(main)
    text = str(caught.value)
    assert isinstance(caught.value, WeftError)
    assert "at 2 s of virtual time" in text
    assert "task 'the consumer' waits at " in text
    assert "test_virtual_clock.py:" in text
    assert "consume: return await queue.get()  # THE CONSUMER" in text
    assert "THE MAIN" in text


def test_a_standstill_names_the_places_of_bodies():
    async def main():
        bodies = Bodies()

        def body():
            bodies.ask(lambda future: None)

        await bodies.begin(body)

    with pytest.raises(
        StandstillError, match=r"a body in a thread is at .* in Bodies\.ask: return future\.result"
    ):
        run(main)


def test_a_standstill_lists_only_so_many():
    async def main():
        await asyncio.gather(*(asyncio.Event().wait() for _ in range(50)))

    with pytest.raises(StandstillError, match="and 31 more"):
        run(main)


def test_a_timer_that_never_comes_is_none():
    async def main():
        await asyncio.sleep(float("inf"))

    with pytest.raises(StandstillError, match=r"asyncio\.sleep\(float"):
        run(main)


def test_a_loop_that_has_no_goal_waits_for_other_threads():
    loop = VirtualLoop()
    threading.Timer(0.02, loop.call_soon_threadsafe, [loop.stop]).start()
    loop.run_forever()
    loop.close()


def test_cleaning_up_after_a_standstill_may_take_time():
    log = []

    async def main():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(5)
            log.append(now())

    with pytest.raises(StandstillError):
        run(main)
    assert log == [5.0]


# run()


def test_run_takes_a_coroutine_or_a_function():
    async def main():
        return "result"

    assert run(main) == "result"
    assert run(main()) == "result"
    with pytest.raises(DefinitionError, match="takes a coroutine or a coroutine function"):
        run(lambda: 3)


def test_run_closes_everything():
    log, left = [], []

    async def main():
        async def numbers():
            try:
                yield 1
            finally:
                await asyncio.sleep(1)
                log.append("generator")

        async def forever():
            try:
                await asyncio.sleep(FOREVER)
            finally:
                log.append("task")

        left.append(numbers())
        await anext(left[0])
        left.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)

    run(main)
    assert sorted(log) == ["generator", "task"]


def test_run_refuses_to_block_a_running_loop():
    async def inner():
        pass

    async def main():
        with pytest.raises(UsageError, match="inside one, await"):
            run(inner())

    asyncio.run(main())


@pytest.mark.parametrize(
    "option",
    [{"seed": 1.5}, {"seed": True}, {"seed": range(3)}, {"cores": 0}, {"memory": -1}, {"patience": 0}],
)
def test_options_that_cannot_be(option):
    async def main():
        pass

    with pytest.raises(DefinitionError):
        run(main(), **option)
    with pytest.raises(DefinitionError), virtual_clock(**option):
        pass


def test_ctrl_c_cancels_and_is_raised():
    log = []

    async def main():
        asyncio.get_running_loop().call_later(3, signal.raise_signal, signal.SIGINT)
        try:
            await asyncio.sleep(FOREVER)
        finally:
            log.append(now())

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert log == [3.0]


@pytest.mark.parametrize("blocks", ["body", "executor"])
def test_ctrl_c_does_not_wait_for_a_thread(blocks):
    log = []
    end = threading.Event()

    async def main():
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            if blocks == "body":
                await Bodies().begin(end.wait)
            else:
                await asyncio.to_thread(end.wait)
        finally:
            log.append(now())
            end.set()

    with Watch() as watch, pytest.raises(KeyboardInterrupt):
        run(main)
    assert log == [0.0]
    assert watch.seconds < 5  # which is below the clock's patience


def test_ctrl_c_twice():
    """As with asyncio: the second is raised where the loop is."""
    end = threading.Event()

    def interrupt():
        for _ in range(2):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)

    async def main():
        async def swallow():
            try:
                await asyncio.sleep(FOREVER)
            except asyncio.CancelledError:
                await Bodies().begin(end.wait)

        interrupting.start()
        body = Bodies().begin(end.wait)
        await asyncio.gather(body, swallow())

    with pytest.raises(KeyboardInterrupt):
        try:
            run(main)
        finally:
            end.set()
            interrupting.join()


# virtual_time


@pytest.fixture
def seven():
    return 7


@virtual_time()
async def test_a_test_in_virtual_time(seven):
    await asyncio.sleep(seven)
    assert now() == 7.0


@virtual_time
async def test_a_test_in_virtual_time_without_parentheses(seven, tmp_path):
    await asyncio.sleep(3600)
    assert now() == 3600.0
    assert tmp_path.exists()


@pytest.mark.parametrize("seconds", [1, 2])
@virtual_time(seed=4, cores=2)
async def test_a_test_in_virtual_time_with_a_parameter(seconds):
    await asyncio.sleep(seconds)
    assert now() == seconds
    assert my_clock().resources().cores == 2


class TestMethods:
    @virtual_time(seeds=range(3))
    async def test_a_method(self, seven):
        assert now() == 0.0
        await asyncio.sleep(seven)


@given(st.integers(1, 10**6))
@settings(deadline=None, max_examples=10)
@virtual_time()
async def test_a_property_in_virtual_time(seconds):
    await asyncio.sleep(seconds)
    assert now() == seconds


def test_the_decorator_keeps_the_signature():
    @virtual_time()
    async def check(one, *, two=2):
        """What it checks."""

    assert list(inspect.signature(check).parameters) == ["one", "two"]
    assert check.__doc__ == "What it checks."
    assert not inspect.iscoroutinefunction(check)


def test_seeds_are_tried_in_turn_and_a_failure_names_its_own():
    tried = []

    @virtual_time(seeds=iter([3, 1, 4, 1, 5]))
    async def check():
        tried.append(my_clock())
        if len(tried) == 3:
            pytest.fail("this order is wrong")

    with pytest.raises(pytest.fail.Exception) as caught:
        check()
    assert len(tried) == 3
    assert any("seed=4" in note for note in caught.value.__notes__)
    tried[:] = [None] * 10
    check()
    assert len(tried) == 15  # an iterator is used up once, not by the first use of the test


def test_a_seed_finds_a_bug_and_finds_it_again():
    async def program():
        found = {}

        async def write():
            await asyncio.sleep(1)
            found["value"] = 1

        async def read():
            await asyncio.sleep(1)
            assert "value" in found

        await asyncio.gather(write(), read())

    virtual_time(program)()
    with pytest.raises(AssertionError) as caught:
        virtual_time(seeds=range(100))(program)()
    seed = int(caught.value.__notes__[-1].partition("virtual_time(seed=")[2].partition(")")[0])
    for _ in range(3):
        with pytest.raises(AssertionError):
            virtual_time(seed=seed)(program)()


def test_the_decorator_refuses_what_it_cannot_run():
    with pytest.raises(DefinitionError, match=r"with virtual_clock\(\)"):

        @virtual_time()
        def check():
            pass

    with pytest.raises(DefinitionError, match="not both"):
        virtual_time(1, seeds=[1])
    with pytest.raises(DefinitionError, match="never run"):
        virtual_time(seeds=[])
    with pytest.raises(DefinitionError, match="whole number"):
        virtual_time(seeds=["a"])


# virtual_clock


async def later(seconds, value="value"):
    await asyncio.sleep(seconds)
    return value


slow = entrypoint()(later)


def test_sync_programs_run_in_virtual_time():
    with Watch() as watch, virtual_clock() as clock:
        assert clock.now == 0.0
        assert slow.invoke(3600) == "value"
        assert clock.now == 3600.0
        sleep(400)
        assert clock.now == 4000.0
        run = slow.submit(100)
        assert run.result() == "value"
        assert clock.now == 4100.0
    assert watch.seconds < 3


def test_the_loop_of_sync_programs_is_back_afterwards():
    before = portal.loop
    with virtual_clock(), pytest.raises(ZeroDivisionError):
        assert portal.loop is not before
        1 / 0
    assert portal.loop is before
    with Watch() as watch:
        slow.invoke(0.02)
    assert watch.seconds >= 0.02


def test_virtual_clocks_nest():
    with virtual_clock() as outer:
        with virtual_clock() as inner:
            slow.invoke(5)
        assert (outer.now, inner.now) == (0.0, 5.0)
        slow.invoke(2)
        assert outer.now == 2.0


def test_other_threads_keep_their_time():
    seen = []
    with virtual_clock():
        thread = threading.Thread(target=lambda: seen.append(portal.loop))
        thread.start()
        thread.join()
        assert seen != [portal.loop]
    assert seen == [portal.loop]


def test_a_virtual_clock_says_that_a_run_stands_still(caplog):
    entered = threading.Event()
    release = []

    @entrypoint()
    async def stuck(_):
        future = asyncio.get_running_loop().create_future()
        release.append((future.get_loop(), future))
        entered.set()
        return await future  # THE PLACE

    with virtual_clock():
        run = stuck.submit(1)
        assert entered.wait(5)
        time.sleep(1.2)
        loop, future = release[0]
        loop.call_soon_threadsafe(future.set_result, "value")
        assert run.result() == "value"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "nothing can happen any more" in caplog.text
    assert "THE PLACE" in caplog.text


def test_an_idle_virtual_clock_says_nothing(caplog):
    with virtual_clock():
        slow.invoke(1)
        time.sleep(1.1)
        slow.invoke(1)
    assert not caplog.records


def test_leaving_a_virtual_clock_ends_what_goes_on():
    ended = []

    @entrypoint()
    async def stuck(_):
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(1)

    entered = threading.Event()
    with virtual_clock() as clock:
        run = stuck.submit(1)
        loop = portal.loop
        loop.call_soon_threadsafe(lambda: loop.call_later(1, entered.set))
        assert entered.wait(5)
        assert clock.now >= 1.0
    assert ended == [1]
    assert loop.is_closed()
    del run


def test_a_virtual_clock_goes_on_after_a_task_that_leaves(caplog):
    with virtual_clock():

        async def leave():
            raise SystemExit(3)

        left, loop = threading.Event(), portal.loop
        loop.call_soon_threadsafe(lambda: loop.create_task(leave()).add_done_callback(lambda _: left.set()))
        assert left.wait(5)
        assert slow.invoke(1) == "value"
    assert "it goes on" in caplog.text


def test_impatience_is_an_error_when_a_virtual_clock_is_left():
    with pytest.raises(StandstillError, match=r"worked for 0\.01 s"), virtual_clock(patience=0.01) as clock:
        ended = threading.Event()
        clock.start_thread(lambda: time.sleep(0.1) or ended.set())
        assert ended.wait(5)


OPEN_FILES = Path("/proc/self/fd")


def fds():
    return len(list(OPEN_FILES.iterdir()))


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="there is no list of open files")
def test_nothing_is_left_behind():
    async def main():
        bodies = Bodies()
        await asyncio.gather(bodies.begin(bodies.sleep, 1), asyncio.to_thread(sleep, 2), asyncio.sleep(3))

    def use():
        with virtual_clock(seed=1):
            slow.invoke(1)
        run(main, seed=2)

    use()
    gc.collect()
    before = fds(), {thread.name for thread in threading.enumerate()}, threading.active_count()
    loops = sum(issubclass(type(each), VirtualLoop) for each in gc.get_objects())
    for _ in range(200):
        use()
    gc.collect()
    after = fds(), {thread.name for thread in threading.enumerate()}, threading.active_count()
    assert after == before
    assert sum(issubclass(type(each), VirtualLoop) for each in gc.get_objects()) <= loops + 1


def test_no_warnings_in_a_program_of_its_own(tmp_path):
    """Nothing is unclosed or never awaited, also where a run ends badly."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import asyncio
from weft.testing import StandstillError, run, virtual_clock

async def stuck():
    asyncio.get_running_loop().call_soon(asyncio.create_task, asyncio.sleep(1))
    await asyncio.Event().wait()

async def fails():
    await asyncio.to_thread(lambda: None)
    asyncio.create_task(asyncio.sleep(5))
    raise ValueError

for main, expected in ((stuck, StandstillError), (fails, ValueError)):
    try:
        run(main)
    except expected:
        print("ok")
try:
    run(fails(), seed="a")
except ValueError:
    print("ok")
with virtual_clock():
    pass
""",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["ok"] * 3, "")


# The engine in virtual time


def test_a_retry_waits_in_virtual_time():
    tries = itertools.count(1)

    @task(retry_policy=RetryPolicy(initial_interval=10, backoff_factor=3, jitter=False, max_attempts=3))
    async def flaky():
        if next(tries) < 3:
            raise ConnectionError
        return now()

    @entrypoint()
    async def flow(_):
        return await flaky()

    assert run(flow.ainvoke(1)) == 40.0


@task
def work(name, seconds):
    sleep(seconds)
    return name


@entrypoint()
def slowly(names):
    calls = [work(name, 100 - place) for place, name in enumerate(names)]
    done = [call.result() for call in concurrent.futures.as_completed(calls)]
    return done, work("last", 50).result()


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_sync_bodies_wait_in_virtual_time(seed):
    async def main():
        return await slowly.ainvoke(["a", "b", "c"]), now()

    with Watch() as watch:
        assert run(main, seed=seed) == ((["c", "b", "a"], "last"), 150.0)
    assert watch.seconds < 3


def test_a_sync_body_is_given_up_in_virtual_time():
    ended = []

    @task(timeout=5)
    def late():
        try:
            sleep(FOREVER)
        except BaseException as error:
            ended.append(type(error))
            raise

    @entrypoint()
    def flow(_):
        return late().result()

    async def main():
        with pytest.raises(NodeTimeoutError):
            await flow.ainvoke(1)
        return now()

    assert run(main) == 5.0
    assert ended == [Stopped]


def test_a_run_with_a_journal_in_virtual_time():
    saver = InMemorySaver()

    @entrypoint(checkpointer=saver)
    def flow(names):
        calls = [work(name, place + 1) for place, name in enumerate(names)]
        return [call.result() for call in calls]

    async def main():
        return await flow.ainvoke(["a", "b", "c"], run_id="r"), now()

    assert run(main) == (["a", "b", "c"], 3.0)
    assert run(main) == (["a", "b", "c"], 0.0)
