"""How ``exec`` is retried, limited and timed in batch programs, and what blocks of them do when something fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest
from leftovers import nothing_left, takes, timed

import weft
from weft import (
    AsyncBatchNode,
    AsyncNode,
    AsyncParallelBatchFlow,
    AsyncParallelBatchNode,
    BatchFlow,
    BatchNode,
    Cancelled,
    DefinitionError,
    Failed,
    Flow,
    Limit,
    Node,
    NodeTimeoutError,
    NotStarted,
    Ok,
    ParallelBatchNode,
    ParallelExecutionError,
    ParallelTimeoutError,
    RetryPolicy,
    TimedOut,
    tolerate,
)
from weft.testing import sleep

SYNC = [Node, BatchNode, ParallelBatchNode]
ASYNC = [AsyncNode, AsyncBatchNode, AsyncParallelBatchNode]
KINDS = pytest.mark.parametrize("cls", SYNC + ASYNC)
SEVERAL = pytest.mark.parametrize("cls", [c for c in SYNC + ASYNC if issubclass(c, BatchNode)])
AT_ONCE = pytest.mark.parametrize("cls", [ParallelBatchNode, AsyncParallelBatchNode])


def made(cls, exec_, *, items=(0,), seconds=lambda item: 0.0, fallback=None, name="Made", **options):
    """A node whose exec takes so long for an item and then does ``exec_(node, item)``."""

    def prep(self, shared):
        return list(items) if cls._weft_is_batch else items[0]

    def post(self, shared, prep_res, exec_res):
        shared["out"] = exec_res

    async def exec_async(self, item):
        await asyncio.sleep(seconds(item))
        return exec_(self, item)

    def exec_sync(self, item):
        sleep(seconds(item))
        return exec_(self, item)

    async def fallback_async(self, item, error):
        await asyncio.sleep(0)
        return fallback(self, item, error)

    hooks = {"prep": prep, "post": post}
    is_async = issubclass(cls, AsyncNode)
    hooks["exec_async" if is_async else "exec"] = exec_async if is_async else exec_sync
    if fallback is not None:
        hooks["exec_fallback_async" if is_async else "exec_fallback"] = (
            fallback_async if is_async else fallback
        )
    return type(name, (cls,), hooks)(**options)


def out(node, **options):
    shared = {}
    node.run(shared, **options)
    return shared["out"]


def only(cls, values):
    return values if cls._weft_is_batch else values[0]


# Retries


class Shaky:
    """Fails so many times for each item."""

    def __init__(self, fails):
        self.fails = fails
        self.tried = Counter()
        self.seen = []

    def __call__(self, node, item):
        self.tried[item] += 1
        self.seen.append((item, node.cur_retry))
        if self.tried[item] <= (self.fails[item] if isinstance(self.fails, dict) else self.fails):
            raise ValueError(f"{item}: {self.tried[item]}")
        return (item, node.cur_retry)


@KINDS
def test_each_item_has_its_own_retries(cls):
    """One that succeeds on its third try is not given up because others have failed too."""
    items = [0, 1, 2, 3] if cls._weft_is_batch else [2]
    shaky = Shaky({item: item % 3 for item in items})
    with weft.testing.virtual_clock():
        found = out(made(cls, shaky, items=items, max_retries=3))
    assert found == only(cls, [(item, item % 3) for item in items])
    assert sorted(shaky.seen) == [(item, n) for item in items for n in range(item % 3 + 1)]


@KINDS
def test_between_two_attempts_it_waits(cls):
    with takes(2 * 1.5):
        assert out(made(cls, Shaky(2), max_retries=3, wait=1.5)) == only(cls, [(0, 2)])


@AT_ONCE
def test_items_wait_at_the_same_time(cls):
    with takes(2 * 1.5):
        out(made(cls, Shaky(2), items=[0, 1, 2, 3], max_retries=3, wait=1.5, optimization_enabled=False))


@KINDS
def test_the_last_error_is_raised(cls):
    shaky = Shaky(9)
    with nothing_left(), pytest.raises(ValueError, match="^0: 3"):
        out(made(cls, shaky, max_retries=3))
    assert shaky.tried == {0: 3}


@KINDS
def test_only_exec_is_tried_again(cls):
    calls = Counter()

    def prep(self, shared):
        calls["prep"] += 1
        return [1]

    def post(self, shared, *_):
        calls["post"] += 1
        raise ValueError

    with pytest.raises(ValueError):
        type("Made", (cls,), {"prep": prep, "post": post})(max_retries=3).run({})
    assert calls == {"prep": 1, "post": 1}


def test_options_may_be_attributes_of_the_class():
    class Mine(AsyncParallelBatchNode):
        max_retries = 3
        wait = 1
        max_concurrent = 2
        attempt_timeout = 5

        async def prep_async(self, shared):
            return range(4)

        async def exec_async(self, item):
            await asyncio.sleep(1)
            if self.cur_retry < 1:
                raise ValueError

    _, seconds = timed(lambda: Mine().run_async({}))
    assert seconds == 6
    _, seconds = timed(lambda: Mine(max_concurrent=4).run_async({}))
    assert seconds == 3
    _, seconds = timed(lambda: Mine(max_concurrent=4, wait=0).run_async({}))
    assert seconds == 2


def test_the_retries_of_an_object_may_be_set_later():
    node = made(Node, Shaky(1))
    node.max_retries = 2
    assert out(node) == (0, 1)
    node.max_retries = 0
    with pytest.raises(DefinitionError, match="max_retries counts all attempts.* not 0"):
        node.run({})


def test_a_retry_policy_in_place_of_them():
    policy = RetryPolicy(max_attempts=4, initial_interval=1, jitter=False, retry_on=ValueError)
    with takes(1 + 2 + 4):
        assert out(made(Node, Shaky(3), retry=policy)) == (0, 3)
    assert out(
        made(
            Node,
            Shaky(1),
            retry=RetryPolicy(max_attempts=2, initial_interval=0, jitter=False, retry_on=ValueError),
        )
    ) == (0, 1)


def test_a_run_in_a_thread_of_exec_reads_the_retries_of_its_own_item():
    """Also where the items are at work at the same time, in threads."""
    together = threading.Barrier(3, timeout=10)

    def exec_(node, item):
        if node.cur_retry == 0:
            together.wait()
            raise ValueError
        time.sleep(0.01 * item)
        return node.cur_retry

    node = made(ParallelBatchNode, exec_, items=[0, 1, 2], max_retries=2, optimization_enabled=False)
    assert out(node) == [1, 1, 1]


# What takes the place of exec


def fell(node, item, error):
    return (item, str(error), node.cur_retry)


@KINDS
def test_a_fallback_takes_the_place_of_what_has_failed_for_good(cls):
    items = [0, 1, 2] if cls._weft_is_batch else [0]
    shaky = Shaky({0: 9, 1: 0, 2: 1})
    with weft.testing.virtual_clock():
        found = out(made(cls, shaky, items=items, max_retries=2, wait=5, fallback=fell))
    assert found == only(cls, [(0, "0: 2", 1), (1, 0), (2, 1)])


@KINDS
def test_a_fallback_may_raise(cls):
    def raises(node, item, error):
        raise KeyError("mine") from error

    with nothing_left(), pytest.raises(KeyError, match="mine") as caught:
        out(made(cls, Shaky(9), fallback=raises))
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.__notes__[0].startswith("weft: raised by 'Made.exec_fallback'(0, ValueError(")


@pytest.mark.parametrize("cls", ASYNC)
def test_a_fallback_takes_the_place_of_what_is_out_of_time(cls):
    option = "attempt_timeout" if cls._weft_is_batch else "timeout"
    node = made(cls, Shaky(0), seconds=lambda _: 10, max_retries=2, fallback=fell, **{option: 1})
    with takes(2):
        (item, said, retries) = out(node)[0] if cls._weft_is_batch else out(node)
    assert (item, retries) == (0, 1)
    assert "took longer than its timeout of 1 s" in said


# Width


@AT_ONCE
@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_so_many_at_once_and_when_one_ends_the_next_begins(cls, width):
    at_once = most = 0
    lock = threading.Lock()

    def enter(change):
        nonlocal at_once, most
        with lock:
            at_once += change
            most = max(most, at_once)

    # Long and short ones in turn: batches with a barrier between them would take longer.
    seconds = [4, 1, 1, 1, 1, 1, 1, 1, 1]

    class Made(cls):
        def prep(self, shared):
            return seconds

    async def exec_async(self, item):
        enter(1)
        await asyncio.sleep(item)
        enter(-1)

    def exec_sync(self, item):
        enter(1)
        sleep(item)
        enter(-1)

    if cls is ParallelBatchNode:
        Made.exec = exec_sync
    else:
        Made.exec_async = exec_async
    with takes({1: 12, 2: 6, 3: 4, 7: 4}[width]):
        Made(max_concurrent=width).run({})
    assert most == width


def test_so_many_runs_of_a_flow_at_once():
    class Runs(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"i": i} for i in range(6)]

    first = made(AsyncNode, lambda node, item: item, seconds=lambda _: 1)
    first >> made(AsyncNode, lambda node, item: item, seconds=lambda _: 1)
    with takes(3 * 2):
        Runs(first, max_concurrent=2).run({})


def test_a_limit_counts_exec_of_all_nodes_that_are_given_it():
    limit = Limit("model", concurrent=3)
    one = made(AsyncParallelBatchNode, lambda *_: 1, items=range(6), seconds=lambda _: 1, limit=limit)

    class Runs(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{}, {}]

    with takes(4):
        Runs(one).run({})
    assert limit.in_use == limit.waiting == 0


def test_a_limit_by_rate_and_a_width_of_the_run_leave_hooks_alone():
    """With a rate of one a second, a node of three hooks takes no longer than its exec."""
    one = made(AsyncNode, lambda *_: 1, limit=Limit("model", rate="1/s"))
    one >> made(Node, lambda *_: 1)
    with takes(0):
        Flow(one).run({}, max_concurrent=1)
    with takes(1):
        Flow(made(Node, lambda *_: 1)).run({}, limit=Limit("all", rate="2/s"))
        first = made(Node, lambda *_: 1)
        first >> made(Node, lambda *_: 1)
        Flow(first).run({}, limit=Limit("all", rate="1/s"))


# Time


def test_timeout_of_an_attempt():
    with takes(1), pytest.raises(NodeTimeoutError, match="'Made' took longer than its timeout of 1 s"):
        out(made(AsyncNode, Shaky(0), seconds=lambda _: 5, timeout=1))
    with takes(3), pytest.raises(NodeTimeoutError):
        out(made(AsyncNode, Shaky(0), seconds=lambda _: 5, timeout=1, max_retries=3))


@pytest.mark.parametrize("cls", [AsyncBatchNode, AsyncParallelBatchNode])
def test_timeout_of_an_attempt_of_an_item(cls):
    with weft.testing.virtual_clock(), pytest.raises(NodeTimeoutError) as caught:
        out(made(cls, Shaky(0), items=[0, 1, 2], seconds=lambda item: item * 2, attempt_timeout=3))
    assert "weft: item 2 of 'Made'" in caught.value.__notes__


@pytest.mark.parametrize("cls", [AsyncBatchNode, AsyncParallelBatchNode])
def test_timeout_of_all_items(cls):
    with takes(3), pytest.raises(ParallelTimeoutError) as caught:
        out(made(cls, Shaky(0), items=[1, 2, 9, 9], seconds=lambda item: item, timeout=3))
    assert caught.value.unfinished == ((2, 3) if cls._weft_is_parallel else (1,))


def test_total_of_an_item():
    with takes(4.5), pytest.raises(NodeTimeoutError):
        out(made(AsyncBatchNode, Shaky(99), seconds=lambda _: 1, max_retries=99, wait=1, total=4.5))


def test_total_without_time_for_another_attempt():
    """The back-off would end past it: the last error is raised at once."""
    with takes(1), pytest.raises(ValueError):
        out(made(AsyncNode, Shaky(99), seconds=lambda _: 1, max_retries=99, wait=9, total=5))


@pytest.mark.parametrize("nested", [False, True])
def test_timeout_of_a_flow(nested):
    class Named(Flow):
        pass

    flow = Named(made(AsyncNode, Shaky(0), seconds=lambda _: 9), timeout=2)
    with takes(2), pytest.raises(NodeTimeoutError, match="'Named' took longer than its timeout of 2 s"):
        (Flow(flow) if nested else flow).run({})


def test_timeout_of_the_runs_of_a_flow():
    class Runs(AsyncParallelBatchFlow):
        timeout = 3

        async def prep_async(self, shared):
            return [{"i": i} for i in (1, 9)]

    class Waits(AsyncNode):
        async def exec_async(self, _):
            await asyncio.sleep(self.params["i"])

    with takes(3), pytest.raises(ParallelTimeoutError) as caught:
        Runs(Waits()).run({})
    assert caught.value.unfinished == (1,)


def test_timeout_of_a_sync_attempt_gives_its_thread_up():
    go = threading.Event()
    node = made(Node, lambda *_: go.wait(5), timeout=0.05)
    handle = node.submit({})
    with pytest.raises(NodeTimeoutError):
        handle.result()
    assert [each.step for each in handle.given_up] == ["Made"]
    go.set()


# What becomes of failures


def odd_fails(node, item):
    if item % 2:
        raise ValueError(item)
    return item


def kinds_of(outcomes):
    return [type(each) for each in outcomes]


@SEVERAL
def test_collected_outcomes(cls):
    with weft.testing.virtual_clock():
        found = out(made(cls, odd_fails, items=range(4), on_error="collect"))
    assert kinds_of(found) == [Ok, Failed, Ok, Failed]
    assert [each.value for each in found[::2]] == [0, 2]
    assert repr(found[1].error) == "ValueError(1)"


@SEVERAL
def test_tolerated_failures(cls):
    with weft.testing.virtual_clock():
        assert (
            kinds_of(out(made(cls, odd_fails, items=range(4), on_error=tolerate(count=2))))
            == [Ok, Failed] * 2
        )
        with pytest.raises(ParallelExecutionError, match="2 of 4 branches failed; 1 is tolerated") as caught:
            out(made(cls, odd_fails, items=range(4), on_error=tolerate(count=1)))
    assert set(caught.value.failures) == {1, 3}


def test_enough_successes():
    with takes(2):
        found = out(
            made(
                AsyncParallelBatchNode,
                odd_fails,
                items=[1, 2, 0, 4, 9],
                seconds=lambda n: n,
                need=2,
                max_concurrent=4,
            )
        )
    assert kinds_of(found) == [Failed, Ok, Ok, Cancelled, Cancelled]
    found = out(made(BatchNode, odd_fails, items=[0, 2, 4], need=2))
    assert kinds_of(found) == [Ok, Ok, NotStarted]


def test_a_race():
    with takes(1):
        assert (
            out(
                made(
                    AsyncParallelBatchNode,
                    lambda _, n: n,
                    items=[3, 1, 2],
                    seconds=lambda n: n,
                    on_error="race",
                )
            )
            == 1
        )


def test_collected_timeouts():
    found = None
    with takes(2):
        found = out(
            made(
                *(AsyncParallelBatchNode, lambda _, n: n),
                items=[1, 9],
                seconds=lambda n: n,
                attempt_timeout=2,
                on_error="collect",
            )
        )
    assert kinds_of(found) == [Ok, TimedOut]


@pytest.mark.parametrize("cls", [BatchFlow, AsyncParallelBatchFlow])
def test_collected_runs_of_a_flow(cls):
    class Runs(cls):
        def prep(self, shared):
            return [{"i": i} for i in range(4)]

        def post(self, shared, prep_res, exec_res):
            shared["out"] = exec_res

    class Odd(Node):
        def exec(self, _):
            return odd_fails(self, self.params["i"])

        def post(self, shared, prep_res, exec_res):
            shared[exec_res] = "went on"
            return f"action {exec_res}"

    shared = {}
    Runs(Odd(), on_error="collect").run(shared)
    assert kinds_of(shared.pop("out")) == [Ok, Failed, Ok, Failed]
    assert shared == {0: "went on", 2: "went on"}


@SEVERAL
def test_without_a_policy_the_first_failure_ends_it(cls):
    seen = []

    def exec_(node, item):
        seen.append(item)
        return odd_fails(node, item)

    options = {"max_concurrent": 1} if cls._weft_is_parallel else {}
    with nothing_left(), pytest.raises(ValueError) as caught:
        out(made(cls, exec_, items=range(4), **options))
    assert caught.value.args == (1,)
    assert seen == [0, 1]


# Bad options


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Node(max_retries=0), "max_retries counts all attempts.* not 0"),
        (lambda: Node(max_retries=True), "max_retries .* not True"),
        (lambda: Node(max_retries=2.0), "max_retries .* not 2.0"),
        (lambda: Node(wait=-1), "wait must be a number of seconds of at least 0, not -1"),
        (lambda: Node(wait=float("nan")), "wait must be .* not nan"),
        (lambda: AsyncParallelBatchNode(max_concurrent=0), "max_concurrent must be at least 1, not 0"),
        (lambda: AsyncParallelBatchNode(max_concurrent=True), "max_concurrent must be a whole number"),
        (
            lambda: AsyncParallelBatchNode(timeout=0),
            "timeout must be a finite number of seconds greater than 0",
        ),
        (lambda: AsyncParallelBatchNode(need=2, on_error="collect"), "two policies"),
        (lambda: AsyncParallelBatchNode(on_error="ignore"), "on_error must be"),
        (lambda: Node(limit=5), "limit takes Limit"),
        (lambda: Node(retry="often"), "a retry is"),
        (
            lambda: Node(max_concurrent=3),
            "Node takes no option 'max_concurrent'; it takes: checkpointer, timeout,",
        ),
        (lambda: BatchNode(max_concurrent=3), "; a ParallelBatchNode runs its items at the same time"),
        (lambda: BatchFlow(max_concurrent=3), "; a ParallelBatchFlow runs its items at the same time"),
        (
            lambda: Flow(limit=Limit("x", concurrent=1)),
            "Flow takes no option 'limit'; it takes: checkpointer, timeout",
        ),
        (
            lambda: type("Mine", (AsyncParallelBatchNode,), {"max_concurrent": 0}),
            "max_concurrent must be at least 1",
        ),
        (lambda: type("Mine", (Node,), {"max_retries": 0}), "max_retries counts all attempts"),
    ],
)
def test_an_option_that_can_never_work_is_an_error_at_definition(make, said):
    with pytest.raises(DefinitionError, match=said):
        make()


def test_methods_of_a_user_may_have_the_names_of_options():
    class Mine(AsyncParallelBatchNode):
        def timeout(self):
            return 1

        @property
        def limit(self):
            return 2

        async def prep_async(self, shared):
            return [1]

        async def exec_async(self, item):
            return (item, self.timeout(), self.limit)

        async def post_async(self, shared, prep_res, exec_res):
            return exec_res

    assert Mine().run({}) == [(1, 1, 2)]


def test_attributes_of_an_object_are_the_users_own():
    node = made(Node, lambda node, _: (node.timeout, node.limit))
    node.timeout, node.limit = -1, "mine"
    assert out(node) == (-1, "mine")
