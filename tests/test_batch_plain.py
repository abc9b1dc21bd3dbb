"""Nodes whose hooks are all async are one call where nothing is recorded; nobody can tell, but by the time it takes."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections import Counter

import pytest

import weft
from weft import AsyncFlow, AsyncNode, AsyncParallelBatchFlow, AsyncParallelBatchNode, Flow, Node, node
from weft.engine.context import current


def calls_of(flow, shared=None):
    """A run of a flow, and the class of the call that each hook found itself in."""
    shared = {"calls": []} if shared is None else shared
    asyncio.run(flow.run_async(shared))
    return shared["calls"]


async def cancelled_soon(running):
    """Cancel a run that waits; whether no task of it is left."""
    task = asyncio.create_task(running)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return asyncio.all_tasks() == {asyncio.current_task()}


class Hooks(AsyncNode):
    async def prep_async(self, shared):
        shared["calls"].append(("prep", weft.call_id(), type(current.get()).__name__))
        return shared

    async def exec_async(self, shared):
        shared["calls"].append(("exec", weft.call_id(), type(current.get()).__name__))
        return 1

    async def post_async(self, shared, prep_res, exec_res):
        shared["calls"].append(("post", weft.call_id(), type(current.get()).__name__))
        return "default"


def kinds(found):
    return {kind for _, _, kind in found}


def test_a_node_of_async_hooks_is_one_call():
    assert kinds(calls_of(Flow(Hooks()))) == {"PlainNodeCall"}


def test_each_hook_has_an_id_of_its_own():
    first = Hooks()
    first >> Hooks()
    found = calls_of(Flow(first))
    assert len({call_id for _, call_id, _ in found}) == len(found) == 6


def test_calls_of_a_hook_have_ids_that_no_hook_has():
    ids = []

    @weft.task
    async def inner():
        ids.append(weft.call_id())

    class Asks(AsyncNode):
        async def prep_async(self, shared):
            ids.append(weft.call_id())
            await inner()

        async def exec_async(self, _):
            ids.append(weft.call_id())
            await inner()

    asyncio.run(Flow(Asks()).run_async({}))
    assert len(set(ids)) == len(ids) == 4


class Sync(Hooks):
    def prep(self, shared):
        return shared

    prep_async = AsyncNode.prep_async


class FallsBack(Hooks):
    async def exec_fallback_async(self, prep_res, exc):
        return None


@pytest.mark.parametrize(
    "made",
    [
        Sync(),
        FallsBack(),
        Hooks(max_retries=2),
        Hooks(timeout=5),
        Hooks(total=5),
        Hooks(limit=weft.Limit("one", concurrent=1)),
        Hooks(retry=weft.RetryPolicy()),
    ],
    ids=lambda made: f"{type(made).__name__} {made.max_retries}",
)
def test_a_node_that_asks_for_more_is_several_calls(made):
    assert "PlainNodeCall" not in kinds(calls_of(Flow(made)))


def test_an_option_that_is_set_later_counts():
    made = Hooks()
    made.max_retries = 2
    assert "PlainNodeCall" not in kinds(calls_of(Flow(made)))


@pytest.mark.parametrize("option", [{"observers": [lambda event: None]}, {"max_concurrent": 3}])
def test_a_run_that_is_watched_or_limited_has_all_calls(option):
    shared = {"calls": []}
    asyncio.run(Flow(Hooks()).run_async(shared, **option))
    assert "PlainNodeCall" not in kinds(shared["calls"])


def test_a_hook_that_is_replaced_on_the_class_or_the_node_is_called(monkeypatch):
    class Mine(Hooks):
        pass

    first = Mine()
    flow = Flow(first)
    assert len(calls_of(flow)) == 3

    async def other(self, shared, prep_res, exec_res):
        shared["calls"].append(("other", "", ""))

    monkeypatch.setattr(Mine, "post_async", other)
    assert [name for name, _, _ in calls_of(flow)] == ["prep", "exec", "other"]

    async def own(shared):
        shared["calls"].append(("own", "", ""))
        return shared

    first.prep_async = own
    assert [name for name, _, _ in calls_of(flow)] == ["own", "exec", "other"]


@pytest.mark.parametrize("hook", ["prep", "exec", "post"])
def test_an_error_says_which_hook_it_was_and_what_that_was_given(hook):
    class Fails(AsyncNode):
        async def prep_async(self, shared):
            return self.maybe("prep", "found")

        async def exec_async(self, found):
            return self.maybe("exec", "done")

        async def post_async(self, shared, found, done):
            self.maybe("post", None)

        def maybe(self, name, value):
            if name == hook:
                raise ValueError(name)
            return value

    class Called(Fails):
        max_retries = 2  # several calls, of which each says where it was

    notes = []
    for flow in (Flow(Fails()), Flow(Called())):
        with pytest.raises(ValueError, match=hook) as raised:
            asyncio.run(flow.run_async({"x": 1}))
        notes.append(raised.value.__notes__[0].replace("Called", "Fails").partition(", call ")[0])
    plain, several = notes
    assert plain == several.partition(", attempt")[0]


def test_a_hook_ends_with_all_that_it_has_begun():
    ended = []

    @weft.task
    async def slow(name):
        await asyncio.sleep(0.01)
        ended.append(name)

    class Leaves(AsyncNode):
        async def prep_async(self, shared):
            slow("of prep")

        async def exec_async(self, _):
            ended.append("exec")

        async def post_async(self, shared, prep_res, exec_res):
            slow("of post")

    asyncio.run(Flow(Leaves()).run_async({}))
    assert ended == ["of prep", "exec", "of post"]


def test_its_hooks_wait_for_the_turn_of_a_sync_hook():
    """A sync hook is at work in a thread when the hooks of the other nodes want to begin."""
    begun, found = threading.Event(), []

    class Takes(Node):
        def post(self, shared, prep_res, exec_res):
            found.append("begins")
            begun.set()
            threading.Event().wait(0.05)
            found.append("ends")

    class Looks(AsyncNode):
        async def exec_async(self, _):
            while not begun.is_set():
                await asyncio.sleep(0.001)

        async def post_async(self, shared, prep_res, exec_res):
            found.append("looks")

    class Starts(AsyncNode):
        async def post_async(self, shared, prep_res, exec_res):
            return self.params["way"]

    start = Starts()
    start - "takes" >> Takes()
    start - "looks" >> Looks()

    class All(AsyncParallelBatchFlow):
        async def prep_async(self, shared):
            return [{"way": "takes"}, *[{"way": "looks"}] * 3]

    asyncio.run(All(start).run_async({}))
    assert found == ["begins", "ends", "looks", "looks", "looks"]


def test_a_node_is_copied_as_it_says():
    class Copied(AsyncNode):
        copies = 0

        def __copy__(self):
            type(self).copies += 1
            made = type(self)()
            vars(made).update(vars(self))
            return made

    asyncio.run(Flow(Copied()).run_async({}))
    assert Copied.copies == 1


def test_a_node_with_slots_is_copied_with_them():
    class Slotted(AsyncNode):
        __slots__ = ("kept",)

        async def post_async(self, shared, prep_res, exec_res):
            shared["kept"] = self.kept

    made, shared = Slotted(), {}
    made.kept = "in a slot"
    asyncio.run(Flow(made).run_async(shared))
    assert shared == {"kept": "in a slot"}


def test_what_a_hook_keeps_on_itself_is_that_run_s_alone():
    class Keeps(AsyncNode):
        async def prep_async(self, shared):
            self.mine = shared["n"]
            await asyncio.sleep(0)

        async def post_async(self, shared, prep_res, exec_res):
            shared["found"] = self.mine

    made = Keeps()
    flow = Flow(made)

    async def main():
        several = [{"n": n} for n in range(5)]
        await asyncio.gather(*[flow.run_async(shared) for shared in several])
        return several

    assert asyncio.run(main()) == [{"n": n, "found": n} for n in range(5)]
    assert not hasattr(made, "mine")
    assert copy.copy(made).successors == {}


def test_a_flow_that_only_walks_keeps_what_is_set_on_it_and_has_its_params():
    class Chooses(Flow):
        def get_next_node(self, curr, action):
            self.went_on_from = type(curr).__name__, self.params["x"]
            return super().get_next_node(curr, action)

    flow = Chooses(Hooks())
    flow.set_params({"x": 1})
    calls_of(flow)
    assert flow.went_on_from == ("Hooks", 1)


def test_a_nested_flow_has_the_params_of_the_outer_one():
    found = []

    class Reads(AsyncNode):
        async def exec_async(self, _):
            found.append(self.params)

    inner = Flow(Reads())
    outer = Flow(inner)
    outer.set_params({"x": 1})
    asyncio.run(outer.run_async({}))
    assert found == [{"x": 1}]


def test_its_first_attempt_is_counted_from_zero_within_another_s_retry():
    found = []

    class Inner(AsyncNode):
        async def exec_async(self, _):
            found.append(self.cur_retry)

    flow = Flow(Inner())

    class Outer(AsyncNode):
        async def exec_async(self, _):
            await flow.run_async({})
            if len(found) < 2:
                raise ValueError

    asyncio.run(Flow(Outer(max_retries=3)).run_async({}))
    assert found == [0, 0]


def test_cancelling_a_run_cancels_the_hook_that_waits():
    ended = []

    class Waits(AsyncNode):
        async def prep_async(self, shared):
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("prep")

    assert asyncio.run(cancelled_soon(Flow(Waits()).run_async({})))
    assert ended == ["prep"]


def test_what_a_wrapped_step_gives_still_goes_into_shared():
    @node
    async def double(shared):
        return {"y": 2 * shared["x"]}

    first = Hooks()
    first >> double
    shared = {"calls": [], "x": 3}
    calls_of(Flow(first), shared)
    assert shared["y"] == 6


class Items(AsyncParallelBatchNode):
    """Doubles, at the same time; what its hooks do stands in ``shared``."""

    async def prep_async(self, shared):
        self.shared = shared
        shared["kinds"] = [type(current.get()).__name__]
        return shared["items"]

    async def exec_async(self, item):
        self.shared["kinds"].append(type(current.get()).__name__)
        return await self.work(item)

    async def post_async(self, shared, items, found):
        shared["found"] = found

    async def work(self, item):
        return 2 * item


@pytest.mark.parametrize("made", [Items, lambda: Flow(Items())], ids=["alone", "in a flow"])
def test_a_node_of_items_is_one_call_and_one_for_each(made):
    shared = {"items": range(3)}
    asyncio.run(made().run_async(shared))
    assert shared["found"] == [0, 2, 4]
    assert shared["kinds"] == ["PlainNodeCall", *["CrewedCall"] * 3]


@pytest.mark.parametrize("options", [{}, {"max_concurrent": 2}, {"on_error": "collect"}, {"timeout": 5}])
def test_a_node_of_no_items_gives_none(options):
    shared = {"items": None}
    asyncio.run(Items(**options).run_async(shared))
    assert shared["found"] == []


def test_a_node_that_is_run_by_itself_keeps_what_its_hooks_have_set_also_when_one_fails():
    class Keeps(Items):
        async def prep_async(self, shared):
            self.seen = shared
            raise ValueError("no")

    shared, node_ = {}, Keeps()
    with pytest.raises(ValueError):
        asyncio.run(node_.run_async(shared))
    assert node_.seen is shared


def test_an_item_that_fails_stops_the_others_and_is_named():
    ended = []

    class Fails(Items):
        async def work(self, item):
            try:
                await asyncio.sleep(0 if item == 1 else 60)
            finally:
                ended.append(item)
            raise ValueError(item)

    with pytest.raises(ValueError) as caught:
        asyncio.run(Fails().run_async({"items": range(3)}))
    assert sorted(ended) == [0, 1, 2]
    notes = "\n".join(caught.value.__notes__)
    assert "weft: raised by 'Fails'(1)" in notes
    assert "weft: item 1 of 'Fails'" in notes
    assert caught.value.__context__ is None


def test_what_a_policy_does_not_tolerate_is_raised_as_such():
    class Fails(Items):
        async def work(self, item):
            raise ValueError(item)

    with pytest.raises(weft.ParallelExecutionError) as caught:
        asyncio.run(Fails(on_error=weft.tolerate(count=1)).run_async({"items": range(3)}))
    assert "2 of 3" in str(caught.value)
    shared = {"items": range(2)}
    asyncio.run(Fails(on_error="collect").run_async(shared))
    assert [type(outcome) for outcome in shared["found"]] == [weft.Failed] * 2


def test_items_that_are_out_of_time_are_stopped():
    class Waits(Items):
        async def work(self, item):
            await asyncio.sleep(60)

    with pytest.raises(weft.ParallelTimeoutError):
        asyncio.run(Waits(timeout=0.02).run_async({"items": range(3)}))


def test_cancelling_a_run_cancels_its_items_and_nothing_is_left():
    ended = []

    class Waits(Items):
        async def work(self, item):
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(item)

    assert asyncio.run(cancelled_soon(Flow(Waits(max_concurrent=2)).run_async({"items": range(9)})))
    assert sorted(ended) == [0, 1]


def test_what_prep_gives_instead_of_items_is_said_of_prep():
    with pytest.raises(weft.InputError, match=r"Items.prep must give a list of items") as caught:
        asyncio.run(Items().run_async({"items": 3}))
    assert "raised by 'Items.prep'" in "\n".join(caught.value.__notes__)


@pytest.mark.parametrize("cls", [AsyncNode, AsyncParallelBatchNode])
@pytest.mark.parametrize("alone", [True, False])
def test_what_prep_changes_of_the_node_holds(cls, alone):
    tries = Counter()

    class Changing(cls):
        async def prep_async(self, shared):
            self.max_retries = 3
            self.post_async = self.write
            return [1] if cls is AsyncParallelBatchNode else 1

        async def exec_async(self, item):
            tries["exec"] += 1
            if tries["exec"] < 3:
                raise ValueError(item)
            return item

        async def write(self, shared, found, done):
            shared["done"] = done

    shared = {}
    node = Changing()
    asyncio.run((node if alone else AsyncFlow(start=node)).run_async(shared))
    assert tries["exec"] == 3
    assert shared["done"] == ([1] if cls is AsyncParallelBatchNode else 1)
