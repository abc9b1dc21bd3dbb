"""What goes wrong in a block or a sequence is said clearly: which branch, what, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from datetime import timedelta

import pytest
from asking import ainvoke, in_async_body, in_sync_body, invoke
from leftovers import eventually, nothing_left, within

import weft
from weft import (
    Cancelled,
    DefinitionError,
    Failed,
    InputError,
    Limit,
    Ok,
    ParallelExecutionError,
    ParallelTimeoutError,
    RunCancelledError,
    Sequence,
    UnstorableError,
    UsageError,
    WeftError,
    decision,
    entrypoint,
    node,
    parallel,
    race,
    task,
    tolerate,
)

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


class Boom(Exception):
    pass


def make(kind, fn, name="bad"):
    async def body(value):
        await asyncio.sleep(0.002)
        return fn(value)

    return node(name)(body if kind == "async" else fn)


def raising(error, kind="sync", name="bad"):
    def body(value):
        raise error() if isinstance(error, type) else error

    return make(kind, body, name)


@node
def same(value):
    return value


class Neighbour:
    """A branch that goes on until it is stopped, and says that it has left."""

    def __init__(self):
        self.left = threading.Event()
        self.node = node("neighbour")(self.body)

    async def body(self, value):
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.005)
            self.left.set()


WAYS = pytest.mark.parametrize("way", [invoke, ainvoke, in_sync_body, in_async_body])


# The error of a block


def failed_block():
    block = parallel(
        node("a")(lambda x: 1 / 0),
        same,
        make("async", lambda x: [][x], "b"),
        on_error=tolerate(count=1),
        name="block",
        optimization_enabled=False,
    )
    with pytest.raises(ParallelExecutionError) as caught:
        block(3)
    return caught.value


@WAYS
def test_the_first_in_declared_order_leads_whatever_ends_first(way):
    def slow(value):
        time.sleep(0.02)
        raise Boom("slow")

    block = parallel(slow, make("async", lambda x: 1 / 0, "quick"), on_error=tolerate(count=1))
    with pytest.raises(ParallelExecutionError) as caught:
        way(block, 1)
    error = caught.value
    assert error.branch == "slow"
    assert error.branches == ("slow", "quick")
    assert list(error.failures) == ["slow", "quick"]
    assert [type(each) for each in error.exceptions] == [Boom, ZeroDivisionError]
    assert error.__cause__ is error.exceptions[0] is error.failures["slow"]


def test_its_text_names_the_block_the_branch_and_what_happened():
    text = str(failed_block())
    for part in ("'a'", "'block'", "ZeroDivisionError", "division by zero", "and 1 more", "2 of 3 branches"):
        assert part in text
    assert "sub-exception" not in text


def test_it_is_a_group_and_a_weft_error_and_no_timeout():
    error = failed_block()
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error, WeftError)
    assert not isinstance(error, TimeoutError)
    assert not issubclass(ParallelTimeoutError, ParallelExecutionError)


def test_except_star_takes_parts_of_it():
    taken = []
    try:
        raise failed_block()
    except* ZeroDivisionError as group:
        taken.append((group.branches, [type(each) for each in group.exceptions]))
        assert isinstance(group, ParallelExecutionError)
    except* IndexError as group:
        taken.append((group.branches, [type(each) for each in group.exceptions]))
    assert taken == [(("a",), [ZeroDivisionError]), (("b",), [IndexError])]


def test_split_and_subgroup_keep_the_names():
    error = failed_block()
    mine, rest = error.split(IndexError)
    assert (mine.branch, mine.branches, list(mine.failures)) == ("b", ("b",), ["b"])
    assert (rest.branch, rest.branches) == ("a", ("a",))
    assert mine.reason == rest.reason == error.reason
    assert error.subgroup(lambda each: True).branches == ("a", "b")
    assert error.subgroup(KeyError) is None
    assert error.derive([error.exceptions[1]]).branches == ("b",)


def test_nested_groups_are_found_by_their_branches():
    inner = parallel(
        raising(Boom, name="x"),
        raising(KeyError, name="y"),
        on_error=tolerate(count=1),
        name="inner",
        optimization_enabled=False,
    )
    block = parallel(same, inner, raising(ValueError, name="z"), on_error=tolerate(count=1), name="outer")
    with pytest.raises(ParallelExecutionError) as caught:
        block(1)
    error = caught.value
    assert error.branches == ("inner", "z")
    assert isinstance(error.failures["inner"], ParallelExecutionError)
    assert error.failures["inner"].branches == ("x", "y")
    part = error.subgroup(KeyError)
    assert part.branches == ("inner",)
    assert part.failures["inner"].branches == ("y",)
    mine, rest = error.split(ValueError)
    assert mine.branches == ("z",)
    assert rest.branches == ("inner",)
    assert rest.failures["inner"].branches == ("x", "y")


def test_two_nested_blocks_of_one_message_are_told_apart():
    """The parts of a group are new objects, which are known by nothing but what they are made of."""

    def block(name, error):
        return Sequence(parallel(raising(error, name="x"), name="same"), name=name)

    whole = parallel(block("one", Boom("m")), block("two", Boom("m")), on_error=tolerate(count=1))
    with pytest.raises(ParallelExecutionError) as caught:
        whole(1)
    error = caught.value
    second = error.failures["two"].exceptions[0]
    part = error.subgroup(lambda each: each is second)
    assert part.branches == ("two",)


def test_a_task_group_of_a_users_inside_a_branch_is_one_failure():
    async def grouped(value):
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
            raise Boom("in the group")

    with pytest.raises(ParallelExecutionError) as caught:
        parallel(grouped, same)(1)
    assert isinstance(caught.value.failures["grouped"], ExceptionGroup)
    part = caught.value.subgroup(Boom)
    assert part.branches == ("grouped",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_can_be_pickled(protocol):
    error = failed_block()
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is ParallelExecutionError
    assert (str(again), again.branches, again.reason) == (str(error), error.branches, error.reason)
    assert [type(each) for each in again.exceptions] == [ZeroDivisionError, IndexError]
    assert again.branch == "a"
    assert list(again.failures) == ["a", "b"]


def test_pickled_it_keeps_its_notes_and_its_cause():
    error = failed_block()
    error.add_note("hello")
    again = pickle.loads(pickle.dumps(error))
    assert "hello" in again.__notes__
    assert copy.copy(error).branches == ("a", "b")


def test_a_timeout_error_can_be_pickled():
    error = ParallelTimeoutError("block", timeout=1.0, elapsed=1.5, unfinished=["a", "b"])
    again = pickle.loads(pickle.dumps(error))
    assert (again.step, again.timeout, again.elapsed, again.unfinished) == ("block", 1.0, 1.5, ("a", "b"))
    assert str(again) == str(error)


def test_it_is_printed_with_what_happened():
    text = "".join(traceback.format_exception(failed_block()))
    assert "ZeroDivisionError" in text
    assert "IndexError" in text


@WAYS
def test_an_error_of_a_sequence_is_the_original_with_a_note_naming_the_step(way):
    flow = same >> raising(Boom("no"), name="broken") >> same
    with pytest.raises(Boom, match="no") as caught:
        way(flow, 5)
    assert any("'broken'" in note and "5" in note for note in caught.value.__notes__)


def test_the_traceback_of_a_branch_shows_the_users_code():
    def guilty(value):
        raise Boom("here")

    with pytest.raises(ParallelExecutionError) as caught:
        parallel(guilty, same)(1)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__cause__.__traceback__)]
    assert frames[-1] == "guilty"


@WAYS
def test_an_error_raised_in_a_block_is_taken_up_by_the_body_that_called_it(way):
    def careful(value):
        try:
            return parallel(raising(Boom("no")), same)(value)
        except ParallelExecutionError as error:
            return f"{error.branch}: {error.__cause__}"

    assert way(same >> careful, 1) == "bad: no"


def test_one_error_object_raised_by_two_branches():
    error = Boom("shared")
    block = parallel(raising(error, name="a"), raising(error, "async", name="b"), on_error=tolerate(count=1))
    with pytest.raises(ParallelExecutionError) as caught:
        block(1)
    assert caught.value.branches == ("a", "b")
    with pytest.raises(ParallelExecutionError) as caught:
        parallel(raising(error, name="a"), same)(1)
    assert caught.value.branch == "a"


# Errors that make trouble


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__()
        self.lock = threading.Lock()


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class NoReduce(Exception):
    def __reduce__(self):
        raise RuntimeError("no reduce")


class NoNotes(Exception):
    def add_note(self, note):
        raise RuntimeError("no notes")


class Slotted(Exception):
    __slots__ = ()

    def __setattr__(self, name, value):
        raise AttributeError(f"{name} cannot be set")


class NoEquality(Exception):
    def __eq__(self, other):
        raise RuntimeError("not comparable")

    __hash__ = None


class NoBool(Exception):
    def __bool__(self):
        raise RuntimeError("no truth")

    def __len__(self):
        return 0


class BadRetryAfter(Exception):
    @property
    def retry_after(self):
        raise RuntimeError("never")

    @property
    def response(self):
        raise RuntimeError("never")


STRANGE = {
    "args": lambda: Unpicklable(1, 2),
    "text": NoText,
    "reduce": NoReduce,
    "notes": NoNotes,
    "slots": Slotted,
    "equality": NoEquality,
    "bool": NoBool,
    "retry_after": BadRetryAfter,
    "stop": lambda: StopIteration("x"),
    "async stop": lambda: StopAsyncIteration("x"),
    "timeout": lambda: TimeoutError("mine"),
    "recursion": lambda: RecursionError("deep"),
    "memory": lambda: MemoryError("full"),
    "group": lambda: ExceptionGroup("mine", [ValueError("x")]),
    "empty": Exception,
    "invalid state": lambda: asyncio.InvalidStateError("x"),
}


@KINDS
@pytest.mark.parametrize("error", STRANGE.values(), ids=STRANGE.keys())
def test_strange_errors_are_failures_like_any_other(error, kind, any_saver):
    """With a policy, without one, with retries, behind a limit and in a journaled run."""
    limit = Limit("l", concurrent=1)
    options = {"checkpointer": any_saver} if any_saver is not None else {}

    def body(value):
        raise error()

    async def abody(value):
        raise error()

    bad = node(name="bad", retry=1, limit=limit)(abody if kind == "async" else body)
    neighbour = Neighbour()
    with nothing_left():
        with pytest.raises(ParallelExecutionError) as caught:
            within(10, lambda: parallel(neighbour.node, bad).invoke(1, thread_id="t1", **options))
        assert caught.value.branch == "bad"
        assert neighbour.left.is_set()
        assert "'bad'" in str(caught.value)
        value = within(
            10, lambda: parallel(bad, same, on_error="collect").invoke(1, thread_id="t2", **options)
        )
    assert isinstance(value["bad"], Failed)
    assert value["same"] == Ok(1)
    assert (limit.in_use, limit.waiting) == (0, 0)


@pytest.mark.parametrize("error", STRANGE.values(), ids=STRANGE.keys())
def test_strange_errors_are_retried_like_any_other(error):
    attempts = []

    def body(value):
        attempts.append(value)
        if len(attempts) < 3:
            raise error()
        return value

    def every(found):
        return True

    policy = weft.RetryPolicy(initial_interval=0, jitter=False, retry_on=every)
    assert within(10, lambda: parallel(node(name="bad", retry=policy)(body), same)(1)) == {
        "bad": 1,
        "same": 1,
    }
    assert len(attempts) == 3


@pytest.mark.parametrize("error", [NoText, NoReduce, lambda: Unpicklable(1, 2)])
def test_an_error_that_made_trouble_is_told_on_a_resume_as_well(error, saver):
    """A failure that was gone on from is replayed, or its branch runs again; never something else."""
    stops = [Boom("stop")]

    def bad(value):
        raise error()

    def last(value):
        if stops:
            raise stops.pop()
        return sorted(f"{name} {type(outcome).__name__}" for name, outcome in value.items())

    flow = parallel(bad, same, on_error="collect") >> node("last")(last)
    with pytest.raises(Boom):
        within(10, lambda: flow.invoke(1, run_id="r", checkpointer=saver))
    assert within(10, lambda: flow.invoke(1, run_id="r", checkpointer=saver)) == ["bad Failed", "same Ok"]


# What is no Exception


@KINDS
@WAYS
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_what_is_no_exception_leaves_by_itself_with_a_note(way, error, kind):
    """It ends the block whatever its policy is, and the neighbours have left before it is seen."""
    for options in ({}, {"on_error": "collect"}, {"on_error": "race"}, {"on_error": tolerate(count=2)}):
        neighbour = Neighbour()
        with nothing_left():
            with pytest.raises(error) as caught:
                within(
                    10,
                    lambda: way(
                        parallel(neighbour.node, raising(error("out"), kind), name="block", **options), 1
                    ),
                )
            assert type(caught.value) is error
            assert neighbour.left.is_set()
        assert any("'bad'" in note and "'block'" in note for note in caught.value.__notes__)


@KINDS
def test_a_branch_that_cancels_itself_has_failed(kind):
    bad = raising(asyncio.CancelledError("by itself"), kind)
    neighbour = Neighbour()
    with nothing_left():
        with pytest.raises(ParallelExecutionError) as caught:
            within(10, lambda: parallel(neighbour.node, bad)(1))
        assert neighbour.left.is_set()
    assert caught.value.branch == "bad"
    assert isinstance(caught.value.__cause__, RunCancelledError)
    assert "'bad'" in str(caught.value.__cause__)
    value = within(10, lambda: parallel(bad, same, on_error="collect")(1))
    assert isinstance(value["bad"], Failed)
    assert value["same"] == Ok(1)


@KINDS
@WAYS
def test_a_step_of_a_sequence_that_cancels_itself_ends_the_sequence(way, kind):
    flow = same >> raising(asyncio.CancelledError("by itself"), kind) >> same
    with nothing_left(), pytest.raises(asyncio.CancelledError):
        within(10, lambda: way(flow, 1))


@KINDS
def test_a_sequence_that_cancels_itself_is_a_failed_branch(kind):
    flow = Sequence(same, raising(asyncio.CancelledError("by itself"), kind), same, name="flow")
    value = within(10, lambda: parallel(flow, same, on_error="collect")(1))
    assert isinstance(value["flow"], Failed)
    assert isinstance(value["flow"].error, RunCancelledError)
    assert value["same"] == Ok(1)


def test_a_branch_that_swallows_its_cancellation_is_cancelled_again():
    rounds = []

    async def stubborn(value):
        while len(rounds) < 4:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                rounds.append("swallowed")
        return "at last"

    with nothing_left():
        with pytest.raises(ParallelExecutionError) as caught:
            within(10, lambda: parallel(stubborn, raising(Boom)).submit(1, grace=0.05).result(8))
        assert len(rounds) == 4
    assert caught.value.branch == "bad"


def test_a_branch_that_returns_a_value_when_it_is_cancelled_is_not_a_success():
    async def stubborn(value):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "late"

    block = parallel(stubborn, same, need=1)
    value = within(10, lambda: block(1))
    assert isinstance(value["stubborn"], Cancelled)
    with pytest.raises(ParallelExecutionError) as caught:
        within(10, lambda: parallel(stubborn, raising(Boom))(1))
    assert caught.value.branches == ("bad",)


def test_a_branch_that_fails_while_it_is_stopped_changes_nothing():
    async def angry(value):
        try:
            await asyncio.sleep(30)
        finally:
            raise ValueError("in the way out")

    with nothing_left():
        with pytest.raises(ParallelExecutionError) as caught:
            within(10, lambda: parallel(angry, raising(Boom))(1))
    assert caught.value.branches == ("bad",)


def test_a_branch_that_exits_while_it_is_stopped_does_not_end_the_loop():
    async def angry(value):
        try:
            await asyncio.sleep(30)
        finally:
            raise SystemExit(3)

    with nothing_left():
        with pytest.raises((ParallelExecutionError, SystemExit)):
            within(10, lambda: parallel(angry, raising(Boom))(1))
    assert within(5, lambda: parallel(same)(1)) == {"same": 1}


@pytest.mark.parametrize("error", [SystemExit(4), KeyboardInterrupt(), GeneratorExit()])
def test_a_step_that_is_no_exception_ends_a_sequence(error):
    with nothing_left(), pytest.raises(type(error)):
        within(10, lambda: (same >> raising(error, "async") >> same)(1))
    assert within(5, lambda: (same >> same)(1)) == 1


# What cannot be given


def bad_numbers(*more):
    return [0, -1, True, False, 2.0, math.nan, math.inf, "2", [1], *more]


@pytest.mark.parametrize("width", bad_numbers())
def test_a_width_that_can_never_work_is_refused_when_the_block_is_made(width):
    with pytest.raises(DefinitionError, match="max_concurrent") as caught:
        parallel(same, max_concurrent=width)
    assert repr(width) in str(caught.value)
    with pytest.raises(DefinitionError, match="max_concurrent"):
        parallel(same)(1, max_concurrent=width)
    with pytest.raises(DefinitionError):
        Limit("l", concurrent=width)


BAD_SECONDS = [0, -1, -0.5, math.nan, math.inf, True, "1", [1], timedelta(seconds=-1), timedelta(0)]


@pytest.mark.parametrize("seconds", BAD_SECONDS)
@pytest.mark.parametrize(
    "define",
    [
        lambda seconds: parallel(same, timeout=seconds),
        lambda seconds: Sequence(same, timeout=seconds),
        lambda seconds: node(timeout=seconds)(lambda x: x),
        lambda seconds: decision(timeout=seconds),
        lambda seconds: race(same, timeout=seconds),
        lambda seconds: task(timeout=seconds)(lambda x: x),
    ],
    ids=["parallel", "Sequence", "node", "decision", "race", "task"],
)
def test_a_timeout_that_can_never_work_is_refused_when_it_is_defined(define, seconds):
    with pytest.raises(DefinitionError, match="timeout"):
        define(seconds)


@pytest.mark.parametrize("seconds", [*BAD_SECONDS[:-2]])
@pytest.mark.parametrize(
    "define",
    [
        lambda seconds: parallel(same, total=seconds),
        lambda seconds: Sequence(same, total=seconds),
        lambda seconds: node(total=seconds)(lambda x: x),
        lambda seconds: decision(total=seconds),
    ],
    ids=["parallel", "Sequence", "node", "decision"],
)
def test_a_total_that_can_never_work_is_refused_when_it_is_defined(define, seconds):
    with pytest.raises(DefinitionError, match="total"):
        define(seconds)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on_error": "ignore"}, "'ignore'"),
        ({"on_error": None}, "None"),
        ({"on_error": Exception}, "Exception"),
        ({"need": 0}, "need"),
        ({"need": -1}, "need"),
        ({"need": True}, "need"),
        ({"need": 1.0}, "need"),
        ({"need": 3}, "need=3 of 2 branches"),
        ({"need": 1, "on_error": "collect"}, "two policies"),
        ({"estimated_memory_per_node": 0}, "estimated_memory_per_node"),
        ({"estimated_memory_per_node": 1.5}, "estimated_memory_per_node"),
        ({"estimated_memory_per_node": True}, "estimated_memory_per_node"),
        ({"retry": 0}, "max_attempts"),
        ({"retry": -1}, "max_attempts"),
        ({"retry": True}, "retry"),
        ({"retry": "3"}, "retry"),
        ({"retry": 1.5}, "retry"),
    ],
)
def test_options_of_a_block_that_can_never_work_are_refused(options, said):
    with pytest.raises(DefinitionError) as caught:
        parallel(same, node("other")(lambda x: x), **options)
    assert said in str(caught.value)


@pytest.mark.parametrize("retry", [0, -1, True, "3", 1.5, [1], object()])
@pytest.mark.parametrize(
    "define",
    [
        lambda retry: node(retry=retry)(lambda x: x),
        lambda retry: decision(retry=retry),
        lambda retry: Sequence(same, retry=retry),
    ],
)
def test_retries_that_can_never_work_are_refused(define, retry):
    with pytest.raises(DefinitionError):
        define(retry)


@pytest.mark.parametrize("limit", [3, "openai", [1], object()])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(DefinitionError, match="limit"):
        node(limit=limit)(lambda x: x)
    with pytest.raises(DefinitionError, match="limit"):
        decision(limit=limit)


@pytest.mark.parametrize("number", bad_numbers())
def test_a_number_of_steps_that_can_never_work_is_refused(number):
    with pytest.raises(DefinitionError, match="max_steps"):
        Sequence(same, max_steps=number)


def test_equal_names_are_refused_and_named():
    with pytest.raises(DefinitionError, match="2 branches named 'same'"):
        parallel(same, same)
    with pytest.raises(DefinitionError, match="3 branches named 'x'"):
        parallel(*(node("x")(lambda v: v) for _ in range(3)))
    with pytest.raises(DefinitionError, match="'same'"):
        parallel(same, node("first")(lambda v: v) >> same)  # a sequence goes by its last step
    with pytest.raises(DefinitionError, match="'parallel'"):
        parallel(parallel(same), parallel(same))


@pytest.mark.parametrize("branch", [None, 3, "name", [same], {"a": same}, 0.5, b"", object()])
def test_what_can_not_run_is_refused_and_named(branch):
    with pytest.raises(DefinitionError, match=type(branch).__name__):
        parallel(same, branch)
    with pytest.raises(DefinitionError, match=type(branch).__name__):
        Sequence(same, branch)
    with pytest.raises(DefinitionError):
        same >> branch
    with pytest.raises(DefinitionError):
        branch >> same


def test_empty_workflows_are_refused():
    with pytest.raises(DefinitionError, match="at least one"):
        parallel()
    with pytest.raises(DefinitionError, match="at least one"):
        Sequence()


@pytest.mark.parametrize("name", ["", 3, b"x", ["x"]])
def test_a_name_that_is_no_text_is_refused(name):
    with pytest.raises(DefinitionError, match="name"):
        node(name=name)(lambda x: x)
    with pytest.raises(DefinitionError, match="name"):
        parallel(same, name=name)
    with pytest.raises(DefinitionError, match="name"):
        Sequence(same, name=name)


def test_decorators_refuse_what_is_no_function():
    with pytest.raises(DefinitionError):
        node(3)
    with pytest.raises(DefinitionError):
        node("x")(3)
    with pytest.raises(DefinitionError, match="two names"):
        node("x", name="y")
    with pytest.raises(DefinitionError):
        node(same)
    with pytest.raises(DefinitionError):
        decision(3)
    with pytest.raises(DefinitionError):
        decision(same)


@WAYS
def test_a_value_that_does_not_fit_names_the_step_and_what_it_was_given(way):
    def pair(left, right):
        return left, right

    flow = same >> pair
    assert way(flow, {"left": 1, "right": 2}) == (1, 2)
    assert way(flow, [1, 2]) == (1, 2)
    for value in ({"left": 1}, [1], [1, 2, 3], 7, "ab", None):
        with pytest.raises(InputError) as caught:
            way(flow, value)
        for part in ("'pair'", "'left'", "'right'"):
            assert part in str(caught.value)


@WAYS
def test_a_first_step_that_does_not_fit_says_so_as_well(way):
    @node("first")
    def first(left, right):
        return left

    with pytest.raises(InputError, match="'first'"):
        way(first >> same, 7)
    with pytest.raises(ParallelExecutionError) as caught:
        way(parallel(first, name="block"), 7)
    assert isinstance(caught.value.__cause__, InputError)


def test_options_of_a_run_inside_a_run_are_refused():
    @entrypoint()
    def outer(x):
        return parallel(same).invoke(x, max_concurrent=2)

    with pytest.raises(InputError, match="max_concurrent"):
        outer.invoke(1)

    @entrypoint()
    def other(x):
        return (same >> same).invoke(x, run_id="r")

    with pytest.raises(InputError, match="run_id"):
        other.invoke(1)


def test_an_unknown_option_is_refused():
    with pytest.raises(InputError, match="'widht'"):
        parallel(same)(1, widht=3)


@pytest.mark.parametrize("flow", [parallel(same), same >> same, same], ids=["parallel", "Sequence", "node"])
def test_invoke_in_an_async_body_names_what_to_write(flow):
    @entrypoint()
    async def outer(x):
        return flow.invoke(x)

    with pytest.raises(UsageError, match="ainvoke"):
        outer.invoke(1)


# What cannot be stored


@WAYS
def test_a_branch_that_returns_what_cannot_be_stored_is_named(way, saver):
    class Odd:
        pass

    def odd(value):
        return {"items": [1, Odd()]}

    neighbour = Neighbour()
    block = parallel(neighbour.node, odd, optimization_enabled=False, name="block")

    @entrypoint(checkpointer=saver)
    async def outer(x):
        return await block(x)

    with nothing_left():
        with pytest.raises(ParallelExecutionError) as caught:
            within(10, lambda: outer.invoke(1, thread_id="t"))
        assert neighbour.left.is_set()
    assert caught.value.branch == "odd"
    assert isinstance(caught.value.__cause__, UnstorableError)
    assert "items" in str(caught.value.__cause__)
    assert any("'odd'" in note for note in caught.value.__cause__.__notes__)


def test_a_block_itself_as_the_run_names_the_branch_as_well(saver):
    def odd(value):
        return threading.Lock()

    neighbour = Neighbour()
    with nothing_left(), pytest.raises(ParallelExecutionError) as caught:
        within(10, lambda: parallel(neighbour.node, odd).invoke(1, thread_id="t", checkpointer=saver))
    assert neighbour.left.is_set()
    assert caught.value.branch == "odd"
    assert isinstance(caught.value.__cause__, UnstorableError)


def test_a_step_that_returns_what_cannot_be_stored_is_named(saver):
    def odd(value):
        return lambda: None

    flow = same >> odd >> same
    with pytest.raises(UnstorableError) as caught:
        within(10, lambda: flow.invoke(1, thread_id="t", checkpointer=saver))
    assert any("'odd'" in note for note in caught.value.__notes__)


def test_an_input_that_cannot_be_stored_is_refused_before_anything_runs(saver):
    ran = []
    with pytest.raises((UnstorableError, InputError)):
        within(
            10,
            lambda: parallel(node("a")(ran.append)).invoke(
                threading.Lock(), thread_id="t", checkpointer=saver
            ),
        )
    assert ran == []


def test_collect_goes_on_from_what_cannot_be_stored(saver):
    def odd(value):
        return threading.Lock()

    value = within(
        10,
        lambda: parallel(odd, same, on_error="collect").invoke(3, thread_id="t", checkpointer=saver),
    )
    assert isinstance(value["odd"].error, UnstorableError)
    assert value["same"] == Ok(3)


# Leaving early


@KINDS
def test_cancelling_the_run_stops_every_branch(kind):
    inside = threading.Barrier(4, timeout=10)
    left = []

    def held(name):
        async def body(value):
            try:
                await asyncio.to_thread(inside.wait)
                await asyncio.sleep(60)
            finally:
                left.append(name)

        def sync_body(value):
            inside.wait()
            while not weft.cancelled():
                time.sleep(0.001)
            left.append(name)

        return node(name)(body if kind == "async" else sync_body)

    block = parallel(held("a"), same >> held("b"), parallel(held("c"), name="in"), optimization_enabled=False)
    with nothing_left():
        handle = block.submit(1)
        inside.wait()
        handle.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            handle.result(5)
        assert sorted(left) == ["a", "b", "c"]
    assert handle.status == "cancelled"


def test_cancelling_ainvoke_stops_every_branch():
    left = []

    async def held(value):
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            left.append("left")

    async def main():
        waiting = asyncio.ensure_future(parallel(held, same >> node("b")(held)).ainvoke(1))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert left == ["left", "left"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_leaving_a_stream_stops_every_branch():
    left = threading.Event()

    async def held(value):
        try:
            await asyncio.sleep(60)
        finally:
            left.set()

    with nothing_left():
        stream = parallel(same, held).stream(1)
        assert next(stream) == {"same": 1}
        stream.close()
        assert left.is_set()


def test_a_body_that_gives_a_block_up_stops_it():
    left = []

    async def held(value):
        try:
            await asyncio.sleep(60)
        finally:
            left.append("left")

    @entrypoint()
    async def outer(x):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.03):
                await parallel(held, node("other")(held))(x)
        return list(left)

    with nothing_left():
        within(5, lambda: outer.invoke(1))
        eventually(lambda: left == ["left", "left"])


def test_a_sync_branch_that_waits_for_a_block_of_its_own_is_unwound_after_it():
    """Leaves first: what is below has left before the body that waits for it is told."""
    log = []

    async def leaf(value):
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            log.append("leaf")

    def waits(value):
        try:
            return parallel(leaf)(value)
        finally:
            log.append("waits")

    def bad(value):
        time.sleep(0.03)
        raise Boom("no")

    with nothing_left(), pytest.raises(ParallelExecutionError) as caught:
        within(5, lambda: parallel(waits, bad, optimization_enabled=False)(1))
    assert caught.value.branches == ("bad",)
    assert log == ["leaf", "waits"]


def test_a_task_of_a_branchs_own_that_exits_does_not_end_the_others():
    """asyncio lets SystemExit of a task through to the loop, which is shared by all sync callers."""

    async def exits():
        raise SystemExit("inside")

    async def careless(value):
        async with asyncio.TaskGroup() as group:
            group.create_task(exits())

    with nothing_left(), pytest.raises((SystemExit, BaseExceptionGroup)):
        within(5, lambda: parallel(careless, same)(1))
    assert within(5, lambda: parallel(same)(1)) == {"same": 1}


@pytest.mark.parametrize("shape", ["sequence", "nested", "block"])
def test_ctrl_c_in_a_sync_step_ends_the_workflow(tmp_path, shape):
    """Finally-blocks have run, nothing more starts, and the process can go on."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, time
            import weft
            from weft import Sequence, parallel

            def first(value):
                return value

            def second(value):
                try:
                    print("in", flush=True)
                    while not weft.cancelled():
                        time.sleep(0.001)
                finally:
                    print("left", flush=True)

            def third(value):
                print("must not start", flush=True)

            shapes = {
                "sequence": Sequence(first, second, third),
                "nested": Sequence(first, Sequence(first, second, name="inner"), third),
                "block": first >> parallel(first, second) >> third,
            }
            try:
                shapes[sys.argv[1]](1)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            print((first >> parallel(first))(5))
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(program), shape],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (out.splitlines(), err) == (["left", "interrupted", "{'first': 5}"], "")
