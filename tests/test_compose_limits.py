"""Limits, widths, timeouts and retries over nested blocks: never exceeded, no deadlock, nothing kept at the end."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager

import pytest
from leftovers import busy_workers, eventually, nothing_left, within

import weft
from weft import (
    Failed,
    Limit,
    NodeTimeoutError,
    Ok,
    ParallelExecutionError,
    ParallelTimeoutError,
    RetryAfter,
    RetryPolicy,
    Sequence,
    TimedOut,
    WeftError,
    entrypoint,
    node,
    parallel,
    race,
    task,
)
from weft.engine import events
from weft.testing import run, sleep, virtual_clock

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


class Boom(Exception):
    pass


@node
def same(value):
    return value


def at_once(**more):
    return RetryPolicy(**{"initial_interval": 0, "jitter": False, "retry_on": Exception, **more})


def now():
    return asyncio.get_running_loop().time()


class Gauge:
    """How many bodies are at work at once."""

    def __init__(self):
        self.most = self.now = self.begun = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self):
        with self._lock:
            self.now += 1
            self.begun += 1
            self.most = max(self.most, self.now)
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1


def idle(*limits):
    return all((each.in_use, each.waiting) == (0, 0) for each in limits)


# Nested blocks and bodies


@KINDS
@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_runs_width_holds_over_nested_blocks_and_is_used_in_full(width, kind):
    gauge = Gauge()

    async def body(value):
        with gauge.counted():
            await asyncio.sleep(1)
        return value

    def sync_body(value):
        with gauge.counted():
            sleep(1)
        return value

    def leaf(name):
        return node(name)(body if kind == "async" else sync_body)

    def block(name, *parts):
        return parallel(*parts, name=name, optimization_enabled=False)

    inner = [block(f"in{n}", leaf("a"), same >> leaf("b"), leaf("c")) for n in range(4)]
    whole = block("whole", *inner)

    async def main():
        result = await whole.ainvoke(5, max_concurrent=width)
        assert result == {f"in{n}": {"a": 5, "b": 5, "c": 5} for n in range(4)}
        return now()

    assert run(main) == 12 / width
    assert gauge.most == width


@KINDS
def test_calls_that_wait_for_their_children_hold_nothing(kind):
    """Eight levels of bodies, each under the same limit of one."""
    limit = Limit("one", concurrent=1)
    gauge = Gauge()

    def level(n):
        if n == 0:

            @node(name="leaf", limit=limit)
            def leaf(value):
                with gauge.counted():
                    sleep(1)
                return 1

            return leaf
        inner = [level(n - 1), node(name="side", limit=limit)(lambda value: 1)]
        block = parallel(*inner, name="block", optimization_enabled=False)

        async def body(value):
            return (await block.ainvoke(value))["leaf" if n == 1 else "level"] + 1

        def sync_body(value):
            return block.invoke(value)["leaf" if n == 1 else "level"] + 1

        return node(name="level", limit=limit)(body if kind == "async" else sync_body)

    async def main():
        return await level(8).ainvoke(0, max_concurrent=1)

    assert run(main) == 9
    assert idle(limit)


@KINDS
@pytest.mark.parametrize("ends", ["success", "failure", "timeout", "run timeout", "cancel", "race"])
def test_limits_are_back_to_zero_however_a_block_ends(ends, kind):
    first, second = Limit("first", concurrent=2), Limit("second", concurrent=1)
    seconds = 1 if ends == "success" else 8

    async def body(value):
        await asyncio.sleep(seconds)

    def sync_body(value):
        for _ in range(int(seconds * 10)):
            if weft.cancelled():
                return
            sleep(0.1)

    def leaf(name, *limits):
        return node(name=name, limit=limits)(body if kind == "async" else sync_body)

    async def bad(value):
        await asyncio.sleep(0.5)
        raise Boom("no")

    async def good(value):
        await asyncio.sleep(0.5)

    last = {"failure": bad, "race": good}.get(ends, same)
    block = parallel(
        leaf("a", first, second),
        leaf("b", second),
        leaf("c", first),
        leaf("d", first),
        parallel(leaf("e", first, second), name="in"),
        node("last")(last.func if last is same else last),
        on_error="race" if ends == "race" else "fail_fast",
        timeout=0.5 if ends == "timeout" else None,
        optimization_enabled=False,
    )
    if ends == "race":
        block = race(*[part for name, part in block.branches.items()], optimization_enabled=False)

    async def main():
        handle = block.submit(1, timeout=0.5 if ends == "run timeout" else None)
        if ends == "cancel":
            await asyncio.sleep(0.5)
            assert first.in_use > 0
            assert second.waiting > 0
            handle.cancel()
        wanted = {
            "failure": ParallelExecutionError,
            "timeout": ParallelTimeoutError,
            "run timeout": TimeoutError,
            "cancel": asyncio.CancelledError,
        }.get(ends)
        if wanted is None:
            await handle
        else:
            with pytest.raises(wanted):
                await handle
        if handle.given_up:  # a timeout waits for nobody; what was given up keeps its limit
            assert (ends, kind) in {("timeout", "sync"), ("run timeout", "sync")}
            await asyncio.sleep(0.2)
        assert idle(first, second)

    run(main)


def test_limits_are_back_to_zero_after_ctrl_c(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import asyncio, sys, threading, time
            import weft
            from weft import Limit, node, parallel

            limit = Limit("l", concurrent=1)

            @node(limit=limit)
            async def waits(value):
                try:
                    await asyncio.sleep(60)
                finally:
                    await asyncio.sleep(0.01)
                    print("async left", flush=True)

            @node(limit=limit)
            async def queued(value):
                print("must not start")

            @node
            def listens(value):
                print("started", flush=True)
                while not weft.cancelled():
                    time.sleep(0.001)
                print("sync left", flush=True)

            @node("inner")
            async def inner(value):
                return await parallel(waits, queued)(value)

            try:
                parallel(inner, listens, optimization_enabled=False)(1)
            except KeyboardInterrupt:
                print("interrupted", limit.in_use, limit.waiting, flush=True)
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    lines = out.splitlines()
    assert sorted(lines[:-1]) == ["async left", "sync left"], (out, err)
    assert lines[-1] == "interrupted 0 0"
    assert err == ""


# A limit over runs, loops and threads


def test_a_limit_is_one_for_all_runs_loops_and_threads():
    limit = Limit("shared", concurrent=3)
    gauge = Gauge()

    @node(limit=limit)
    async def wait(value):
        with gauge.counted():
            await asyncio.sleep(0.002)
        return value

    @node(limit=[limit])
    def work(value):
        with gauge.counted():
            time.sleep(0.002)
        return value

    block = parallel(wait, work, same >> node(name="third", limit=limit)(work.func), name="block")
    results, threads = [], []

    def from_thread(n):
        results.append(block.invoke(n))

    def from_a_loop(n):
        async def main():
            results.extend(await asyncio.gather(*(block.ainvoke(n) for _ in range(3))))

        asyncio.run(main())

    for n in range(6):
        threads.append(threading.Thread(target=from_thread if n % 2 else from_a_loop, args=(n,)))
    with nothing_left():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
    assert len(results) == 12
    assert gauge.begun == 36
    assert gauge.most == 3
    assert idle(limit)


def test_a_limit_of_the_run_counts_every_call_of_it():
    limit = Limit("l", concurrent=2)
    gauge = Gauge()

    async def body(value):
        with gauge.counted():
            await asyncio.sleep(1)

    async def main():
        await parallel(*(node(f"n{n}")(body) for n in range(6))).ainvoke(1, limit=limit)
        return now()

    assert run(main) == 3
    assert gauge.most == 2
    assert idle(limit)


def test_a_rate_holds_in_every_window():
    limit = Limit("openai", rate="3/2s")
    begun = []

    async def body(value):
        begun.append(now())

    async def main():
        block = parallel(*(node(name=f"n{n}", limit=limit)(body) for n in range(10)))
        await asyncio.gather(block.ainvoke(1), block.ainvoke(2))

    run(main)
    assert len(begun) == 20
    for at, moment in enumerate(begun[:-3]):
        assert begun[at + 3] >= moment + 2 - 1e-9
    assert max(begun) == pytest.approx(12)  # seven windows: no slower than it must be
    assert idle(limit)


def test_retries_count_in_the_rate():
    limit = Limit("l", rate=(1, 10.0))
    begun = []

    @node(limit=limit, retry=at_once(max_attempts=3))
    async def flaky(value):
        begun.append(now())
        raise Boom("no")

    async def main():
        with pytest.raises(ParallelExecutionError):
            await parallel(flaky).ainvoke(1)

    run(main)
    assert begun == pytest.approx([0, 10, 20])


def test_who_came_first_goes_first():
    limit = Limit("l", concurrent=1)
    order = []

    async def body(value):
        order.append(value)
        await asyncio.sleep(1)

    each = node(name="each", limit=limit)(body)

    async def main():
        handles = []
        for n in range(8):
            handles.append(parallel(each).submit(n))
            await asyncio.sleep(0.01)
        for handle in handles:
            await handle

    run(main)
    assert order == list(range(8))


def test_a_call_that_needs_two_limits_is_not_starved_by_those_that_need_one():
    one, other = Limit("one", concurrent=1), Limit("other", concurrent=1)
    order = []

    def leaf(name, seconds, *limits):
        async def body(value):
            order.append(name)
            await asyncio.sleep(seconds)

        return node(name=name, limit=limits)(body)

    async def main():
        block = parallel(
            leaf("a", 3, one),
            leaf("b", 2, other),
            leaf("both", 1, one, other),
            *(leaf(f"later{n}", 2, other) for n in range(5)),
        )
        await block.ainvoke(1)

    run(main)
    assert order.index("both") <= 3
    assert idle(one, other)


@pytest.mark.parametrize("how", ["attribute", "class", "header"])
def test_an_error_that_says_when_to_come_back_pauses_everybody_once(how):
    limit = Limit("openai", concurrent=4)
    begun = []

    class Headers(Exception):
        def __init__(self):
            super().__init__("429")
            self.response = type("Response", (), {"status_code": 429, "headers": {"retry-after": "10"}})()

    class Attribute(Exception):
        retry_after = 10.0

    error = {"attribute": Attribute, "class": lambda: RetryAfter(10), "header": Headers}[how]

    def branch(name):
        tries = []

        async def body(value):
            begun.append((name, now()))
            await asyncio.sleep(1)
            tries.append(name)
            if name in ("n0", "n1") and len(tries) == 1:
                raise error()
            return name

        return node(name=name, limit=limit, retry=at_once(jitter=False))(body)

    async def main():
        await parallel(*(branch(f"n{n}") for n in range(8))).ainvoke(1)
        return now()

    # Both errors come at 1 and say 10 s: the pause is to 11, not to 21; who waits in the queue waits as well.
    assert run(main) == 13
    assert sorted(begun[:4]) == [(f"n{n}", 0) for n in range(4)]
    assert all(moment >= 11 for _, moment in begun[4:])
    assert len(begun) == 10
    assert idle(limit)


def test_waiting_for_a_retry_holds_no_limit():
    limit = Limit("l", concurrent=1)
    began = {}
    tries = []

    @node(limit=limit, retry=RetryPolicy(initial_interval=5, jitter=False, retry_on=Boom))
    async def flaky(value):
        tries.append(now())
        if len(tries) == 1:
            raise Boom("no")

    @node(limit=limit)
    async def other(value):
        began["other"] = now()
        await asyncio.sleep(1)

    async def main():
        await parallel(flaky, other).ainvoke(1)

    run(main)
    assert tries == [0, 5]
    assert began == {"other": 0}


def test_a_call_that_has_to_wait_says_for_what():
    limit = Limit("openai", concurrent=1)

    async def body(value):
        await asyncio.sleep(1)

    async def main():
        block = parallel(*(node(name=f"n{n}", limit=limit)(body) for n in range(3)))
        handle = block.submit(1, max_concurrent=5)
        await handle
        return [
            (event.step, event.limits)
            for event in handle._tape.read(0)[1]
            if isinstance(event, events.CallQueued)
        ]

    assert run(main) == [
        ("n1", ("max_concurrent", "openai")),
        ("n2", ("max_concurrent", "openai")),
    ]


# Timeouts


def forever(kind, log=None, name="slow"):
    async def body(value):
        try:
            await asyncio.sleep(60)
        finally:
            if log is not None:
                log.append(name)

    def sync_body(value):
        while not weft.cancelled():
            sleep(0.1)
        if log is not None:
            log.append(name)

    return node(name)(body if kind == "async" else sync_body)


def test_a_block_that_is_out_of_time_names_what_has_not_ended():
    left = []
    block = parallel(
        same,
        forever("async", left, "a"),
        same >> forever("async", left, "b"),
        node("never")(lambda value: left.append("never")),
        timeout=2,
        name="block",
        max_concurrent=2,
    )

    async def main():
        with pytest.raises(ParallelTimeoutError) as caught:
            await block.ainvoke(1)
        assert now() == 2
        assert sorted(left) == ["a", "b"]
        return caught.value

    error = run(main)
    assert isinstance(error, WeftError)
    assert isinstance(error, TimeoutError)
    assert not isinstance(error, ParallelExecutionError)
    assert error.unfinished == ("a", "b")
    assert error.timeout == 2
    assert error.elapsed == pytest.approx(2)
    assert error.step == "block"
    for part in ("'block'", "2 s", "'a'", "'b'"):
        assert part in str(error)
    assert "same" not in str(error)


@KINDS
def test_a_sync_branch_that_is_out_of_time_is_given_up_and_listed(kind):
    release = threading.Event()

    def deaf(value):
        release.wait(10)

    async def main():
        handle = parallel(node("deaf")(deaf), forever(kind), timeout=0.05).submit(1)
        began = time.monotonic()
        with pytest.raises(ParallelTimeoutError) as caught:
            await handle
        assert time.monotonic() - began < 0.6
        assert "deaf" in caught.value.unfinished
        assert "deaf" in [body.step for body in handle.given_up]

    try:
        asyncio.run(main())
    finally:
        release.set()


def test_the_slot_of_a_branch_that_was_given_up_is_kept_until_it_ends():
    limit = Limit("l", concurrent=1)
    release = threading.Event()

    @node(limit=limit, timeout=0.05)
    def deaf(value):
        release.wait(10)

    handle = parallel(deaf, on_error="collect").submit(1)
    value = handle.result(5)
    assert isinstance(value["deaf"], TimedOut)
    assert [body.step for body in handle.given_up] == ["deaf"]
    assert limit.in_use == 1
    release.set()
    eventually(lambda: idle(limit))


def test_the_slot_of_a_branch_that_was_given_up_is_free_when_its_loop_was_closed_meanwhile():
    """Its thread ends between the last turn of the loop and its closing, as happens at the end of asyncio.run()."""
    limit = Limit("l", concurrent=1)
    release = threading.Event()

    @node(limit=limit, timeout=0.02)
    def deaf(value):
        release.wait(10)

    async def main():
        with pytest.raises(ParallelExecutionError):
            await parallel(deaf).ainvoke(1)

    busy = busy_workers()
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main())
        assert limit.in_use == 1
        release.set()
        eventually(lambda: busy_workers() <= busy)
    finally:
        loop.close()
    eventually(lambda: idle(limit), seconds=0.5)


def test_a_nodes_timeout_is_of_one_attempt_and_waiting_for_limits_does_not_count():
    limit = Limit("l", concurrent=1)

    def leaf(name):
        async def body(value):
            await asyncio.sleep(1)

        return node(name=name, limit=limit, timeout=1.5)(body)

    async def main():
        await parallel(*(leaf(f"n{n}") for n in range(5))).ainvoke(1)
        return now()

    assert run(main) == 5


def test_a_nodes_timeout_fails_its_branch():
    @node(timeout=1)
    async def slow(value):
        await asyncio.sleep(60)

    async def main():
        with pytest.raises(ParallelExecutionError) as caught:
            await parallel(slow, same, forever("async", name="other")).ainvoke(1)
        assert now() == 1
        assert caught.value.branch == "slow"
        assert isinstance(caught.value.__cause__, NodeTimeoutError)
        assert not isinstance(caught.value.__cause__, ParallelTimeoutError)
        value = await parallel(slow, same, on_error="collect").ainvoke(1)
        assert isinstance(value["slow"], TimedOut)
        with pytest.raises(TimeoutError):
            value["slow"].get()
        assert value["same"] == Ok(1)

    run(main)


def test_a_total_covers_all_attempts_and_waits():
    attempts = []

    @node(total=5, retry=RetryPolicy(initial_interval=1, jitter=False, max_attempts=100, retry_on=Exception))
    async def flaky(value):
        attempts.append(now())
        await asyncio.sleep(1)
        raise Boom("no")

    async def main():
        with pytest.raises(ParallelExecutionError) as caught:
            await parallel(flaky).ainvoke(1)
        return now(), caught.value.__cause__

    ended, cause = run(main)
    # Attempts at 0 and 2 and, after a wait of 2 s, at 5 there is no time for another: it fails at once.
    assert attempts == [0, 2]
    assert ended == 3
    assert isinstance(cause, Boom)


def test_a_total_covers_waiting_for_limits():
    limit = Limit("l", concurrent=1)

    @node(limit=limit)
    async def holds(value):
        await asyncio.sleep(60)

    @node(limit=limit, total=3)
    async def waits(value):
        raise AssertionError("never")

    async def main():
        with pytest.raises(ParallelExecutionError) as caught:
            await parallel(holds, waits).ainvoke(1)
        assert now() == 3
        assert caught.value.branch == "waits"
        assert isinstance(caught.value.__cause__, NodeTimeoutError)
        assert idle(limit)

    run(main)


@pytest.mark.parametrize("make", [parallel, Sequence], ids=["parallel", "Sequence"])
def test_a_total_of_a_whole_workflow(make):
    attempts = []

    async def body(value):
        attempts.append(now())
        await asyncio.sleep(2)
        raise Boom("no")

    whole = make(
        node("bad")(body),
        total=7,
        retry=RetryPolicy(
            initial_interval=1, backoff_factor=1, jitter=False, max_attempts=9, retry_on=Exception
        ),
    )

    async def main():
        with pytest.raises((ParallelExecutionError, Boom, TimeoutError)):
            await whole.ainvoke(1)
        return now()

    assert run(main) <= 7
    assert attempts == [0, 3, 6]


def test_deadlines_are_inherited_and_can_only_get_nearer():
    seen = {}

    def look(name):
        async def body(value):
            seen[name] = weft.remaining()

        def sync_body(value):
            seen[f"{name} sync"] = weft.remaining()

        return parallel(node(name)(body), node(f"{name} sync")(sync_body), name=name)

    async def wait(value):
        await asyncio.sleep(2)

    whole = Sequence(
        look("outer"),
        node("wait")(wait),
        parallel(look("later"), timeout=3, name="nearer"),
        parallel(look("too late"), timeout=100, name="no nearer"),
        node(name="own", timeout=1)(lambda value: seen.update(own=weft.remaining())),
    )

    async def main():
        await whole.ainvoke(1, timeout=10)

    run(main)
    assert seen == {
        "outer": 10,
        "outer sync": 10,
        "later": 3,
        "later sync": 3,
        "too late": 8,
        "too late sync": 8,
        "own": 1,
    }


def test_without_a_timeout_nothing_remains_to_be_told():
    seen = []
    parallel(node("look")(lambda value: seen.append(weft.remaining())))(1)
    assert seen == [None]


def test_no_child_outlives_its_ancestors_deadline():
    ends = []

    async def body(value):
        try:
            await asyncio.sleep(60)
        finally:
            ends.append(now())

    inner = parallel(node(name="a", timeout=50)(body), node("b")(body), timeout=20, name="inner")
    whole = parallel(Sequence(same, inner, timeout=30, name="flow"), timeout=4)

    async def main():
        with pytest.raises(ParallelTimeoutError) as caught:
            await whole.ainvoke(1)
        assert caught.value.unfinished == ("flow",)

    run(main)
    assert ends == [4, 4]


def test_the_timeout_of_an_inner_block_is_a_failure_of_its_branch():
    inner = parallel(forever("async"), timeout=1, name="inner")

    async def main():
        with pytest.raises(ParallelExecutionError) as caught:
            await parallel(inner, same).ainvoke(1)
        assert isinstance(caught.value.failures["inner"], ParallelTimeoutError)
        value = await parallel(inner, same, on_error="collect").ainvoke(1)
        assert isinstance(value["inner"], TimedOut)

    run(main)


def test_a_sequence_that_is_out_of_time():
    left = []

    async def main():
        with pytest.raises(TimeoutError, match="'flow'") as caught:
            await Sequence(same, forever("async", left), same, timeout=2, name="flow").ainvoke(1)
        assert not isinstance(caught.value, ParallelTimeoutError)
        assert now() == 2
        assert left == ["slow"]

    run(main)


def test_a_block_may_be_given_a_timeout_where_it_is_called():
    block = parallel(forever("async"), same)

    @entrypoint()
    async def outer(x):
        with pytest.raises(ParallelTimeoutError):
            await block.ainvoke(x, timeout=1)
        return now()

    async def main():
        return await outer.ainvoke(1)

    assert run(main) == 1


def test_the_timeout_of_a_run_that_is_a_block():
    async def main():
        with pytest.raises(ParallelTimeoutError) as caught:
            await parallel(forever("async"), same).ainvoke(1, timeout=1.5)
        assert caught.value.unfinished == ("slow",)
        return now()

    assert run(main) == 1.5


def test_a_block_that_was_out_of_time_may_be_tried_again():
    began = []

    async def body(value):
        began.append(now())
        await asyncio.sleep(60 if len(began) == 1 else 0)
        return value

    block = parallel(
        node("slow")(body), timeout=1, retry=RetryPolicy(initial_interval=1, jitter=False, max_attempts=2)
    )

    async def main():
        return await block.ainvoke(7)

    assert run(main) == {"slow": 7}
    assert began == [0, 2]


# Retries


def flaky(kind, fails, name="flaky", error=Boom, **options):
    attempts = []

    def body(value):
        attempts.append(value)
        if len(attempts) <= fails:
            raise error("no")
        return value

    async def abody(value):
        return body(value)

    made = node(name=name, **options)(abody if kind == "async" else body)
    return made, attempts


@KINDS
@pytest.mark.parametrize(
    "retry", [3, at_once(), [at_once()], (at_once(retry_on=KeyError), at_once(retry_on=Boom))]
)
def test_a_node_is_tried_again(retry, kind):
    step, attempts = flaky(kind, 2, retry=retry)
    with virtual_clock():
        assert parallel(step, same)(5) == {"flaky": 5, "same": 5}
        attempts.clear()
        assert (same >> step)(5) == 5
    assert attempts == [5, 5, 5]


@KINDS
def test_the_last_error_is_the_branchs(kind):
    step, attempts = flaky(kind, 9, retry=at_once(max_attempts=2))
    with pytest.raises(ParallelExecutionError) as caught:
        parallel(step, same)(5)
    assert caught.value.branch == "flaky"
    assert len(attempts) == 2


@KINDS
def test_an_error_that_the_policy_does_not_cover_is_final(kind):
    step, attempts = flaky(kind, 1, error=KeyError, retry=at_once(retry_on=Boom))
    with pytest.raises(ParallelExecutionError):
        parallel(step, same)(5)
    assert len(attempts) == 1


def test_a_number_of_attempts_means_the_default_errors():
    """Mistakes of the program are final; what looks passing is tried again."""
    passing, attempts = flaky("sync", 1, name="passing", error=ConnectionError, retry=3)
    mistake, tries = flaky("sync", 1, name="mistake", error=ValueError, retry=3)
    with virtual_clock():
        value = parallel(passing, mistake, on_error="collect")(1)
    assert value["passing"] == Ok(1)
    assert isinstance(value["mistake"], Failed)
    assert (len(attempts), len(tries)) == (2, 1)


def test_a_whole_block_is_tried_again_with_all_its_branches():
    bad, attempts = flaky("sync", 2, name="bad")
    good, others = flaky("async", 0, name="good")
    block = parallel(bad, good, retry=at_once(retry_on=ParallelExecutionError), max_concurrent=1)
    assert block(5) == {"bad": 5, "good": 5}
    assert len(attempts) == 3
    assert len(others) == 1  # a failed attempt stops what it has not started


def test_a_block_is_not_tried_again_for_errors_that_are_not_named():
    bad, attempts = flaky("sync", 2, name="bad")
    with pytest.raises(ParallelExecutionError):
        parallel(bad, retry=at_once(retry_on=KeyError))(5)
    assert len(attempts) == 1


def test_a_whole_sequence_is_tried_again_from_its_start():
    ran = []
    bad, attempts = flaky("async", 1, name="bad")
    flow = Sequence(node("first")(lambda x: ran.append(x) or x + 1), bad, same, retry=at_once())
    assert flow(5) == 6
    assert ran == [5, 5]
    assert attempts == [6, 6]


def test_the_retries_of_a_node_and_of_its_block_are_each_their_own():
    bad, attempts = flaky("sync", 5, name="bad", retry=at_once(max_attempts=2))
    block = parallel(bad, retry=at_once(max_attempts=3))
    assert block(5) == {"bad": 5}
    assert len(attempts) == 6


def test_retries_belong_to_the_call_and_not_to_the_step():
    tries = {}

    @node(retry=at_once())
    async def each(value):
        tries[value] = tries.get(value, 0) + 1
        if tries[value] < 3:
            raise Boom("no")
        return value

    async def main():
        return await asyncio.gather(*(parallel(each, same).ainvoke(n) for n in range(20)))

    assert [found["each"] for found in asyncio.run(main())] == list(range(20))
    assert set(tries.values()) == {3}


def test_a_retry_never_waits_past_a_deadline():
    step, attempts = flaky("async", 9, retry=RetryPolicy(initial_interval=10, jitter=False, retry_on=Boom))

    async def main():
        with pytest.raises(ParallelExecutionError) as caught:
            await parallel(step, timeout=5).ainvoke(1)
        assert isinstance(caught.value.__cause__, Boom)
        return now()

    assert run(main) == 0
    assert len(attempts) == 1


def test_a_branch_that_backs_off_is_stopped_when_its_block_is_decided():
    step, attempts = flaky("async", 9, retry=RetryPolicy(initial_interval=60, jitter=False, retry_on=Boom))

    async def bad(value):
        await asyncio.sleep(1)
        raise KeyError("no")

    async def main():
        with pytest.raises(ParallelExecutionError) as caught:
            await parallel(step, bad).ainvoke(1)
        assert caught.value.branches == ("bad",)
        return now()

    assert run(main) == 1
    assert len(attempts) == 1


def test_retry_after_says_when():
    begun = []

    @node(retry=at_once())
    async def polite(value):
        begun.append(now())
        if len(begun) == 1:
            raise RetryAfter(7)
        return value

    async def main():
        return await parallel(polite).ainvoke(1)

    assert run(main) == {"polite": 1}
    assert begun == [0, 7]


def test_a_task_brings_its_own_policies():
    tries = []

    @task(retry_policy=at_once())
    async def fetch(value):
        tries.append(value)
        if len(tries) < 3:
            raise Boom("no")
        return value

    assert parallel(fetch, same)(4) == {"fetch": 4, "same": 4}
    assert len(tries) == 3


def test_after_all_this_the_world_is_as_before():
    """The helpers of this file run thousands of threads and tasks; the process has none of them left."""
    with nothing_left():
        within(5, lambda: parallel(same, same >> node("b")(same.func))(1))
