"""Maps with a checkpointer: a resume runs what is missing, and never gives a result to the wrong item."""

from __future__ import annotations

import asyncio
import collections
import itertools
import threading
import time
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import Program, kill_at_effect, seeded
from leftovers import nothing_left, within

import weft
from weft import (
    Failed,
    InMemorySaver,
    InputError,
    Ok,
    ParallelExecutionError,
    RunMismatchError,
    Sequence,
    entrypoint,
    tolerate,
)


class Boom(Exception):
    pass


class Work:
    """A step that counts outside of the engine how often it ran for each item, and fails where it is told to."""

    def __init__(self, *failing):
        self.failing = set(failing)
        self.ran = collections.Counter()
        self._lock = threading.Lock()

    def step(self, kind="async"):
        def body(x):
            with self._lock:
                self.ran[x] += 1
                serial = self.ran.total()
            if x in self.failing:
                raise Boom(x)
            return [x, serial]

        async def abody(x):
            await asyncio.sleep(0)
            return body(x)

        return weft.task(name="work")(abody if kind == "async" else body)

    def again(self):
        """The same step in another life: everything succeeds, and what runs now is counted from zero."""
        self.failing = set()
        self.ran.clear()


async def agen(items):
    for item in items:
        yield item


SOURCES = {
    "list": list,
    "generator": lambda items: (x for x in items),
    "async generator": agen,
    "iterable": collections.UserList,
}


def by_map(step, items, **options):
    return within(20, lambda: weft.map(step, items, **options))


def by_amap(step, items, **options):
    return within(20, lambda: asyncio.run(weft.amap(step, items, **options)))


def in_a_body(step, items, *, checkpointer, run_id, **options):
    @entrypoint(checkpointer=checkpointer)
    def flow(_):
        return weft.map(step, items, **options)

    return within(20, lambda: flow.invoke("go", run_id=run_id))


def in_an_async_body(step, items, *, checkpointer, run_id, **options):
    @entrypoint(checkpointer=checkpointer)
    async def flow(_):
        return await weft.amap(step, items, **options)

    return within(20, lambda: asyncio.run(flow.ainvoke("go", run_id=run_id)))


def by_stream(step, items, *, checkpointer, run_id, **options):
    made = weft.map(step, **options)
    return within(20, lambda: list(made.stream(items, checkpointer=checkpointer, run_id=run_id)))


def by_astream(step, items, *, checkpointer, run_id, **options):
    async def main():
        made = weft.map(step, **options)
        return [each async for each in made.astream(items, checkpointer=checkpointer, run_id=run_id)]

    return within(20, lambda: asyncio.run(main()))


FACES = [by_map, by_amap, in_a_body, in_an_async_body, by_stream, by_astream]


@pytest.fixture(params=FACES, ids=[face.__name__ for face in FACES])
def mapped(request):
    def call(*args, **options):
        with nothing_left():
            return request.param(*args, **options)

    return call


def items_of(results):
    return [item for item, _ in results]


# A resume runs what is missing


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_resume_runs_only_what_is_missing(saver, mapped, source, kind):
    """One at a time, so what had ended when the fifth failed is known."""
    work = Work(4)
    step, options = work.step(kind), {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    with pytest.raises(ParallelExecutionError):
        mapped(step, SOURCES[source](range(10)), **options)
    assert work.ran == dict.fromkeys(range(5), 1)
    work.again()
    found = mapped(step, SOURCES[source](range(10)), **options)
    assert items_of(found) == list(range(10))
    assert work.ran == dict.fromkeys(range(4, 10), 1)
    assert [serial for _, serial in found[:4]] == [1, 2, 3, 4]  # results of the first life


@pytest.mark.parametrize("source", ["list", "generator"])
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_in_parallel_a_resume_runs_no_item_that_had_a_result(saver, source, durability):
    work = Work(20)
    step = work.step()
    options = {"checkpointer": saver, "run_id": "r", "max_concurrent": 7, "durability": durability}
    with pytest.raises(ParallelExecutionError):
        by_map(step, SOURCES[source](range(50)), **options)
    done = {x for x in work.ran if x < 14}
    work.again()
    assert items_of(by_map(step, SOURCES[source](range(50)), **options)) == list(range(50))
    assert not done & work.ran.keys()
    assert max(work.ran.values()) == 1


def test_a_resume_that_fails_again_and_again_gets_on(saver):
    work = Work(*range(0, 10, 2))
    step, options = work.step(), {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    for failing in range(0, 10, 2):
        with pytest.raises(ParallelExecutionError) as caught:
            by_map(step, iter(range(10)), **options)
        assert caught.value.branch == failing
        work.failing.remove(failing)
    assert items_of(by_map(step, iter(range(10)), **options)) == list(range(10))
    assert work.ran == {x: 2 if x % 2 == 0 else 1 for x in range(10)}


def test_equal_items_each_run_once_and_have_a_record_each(saver, mapped):
    work = Work(9)
    items = [1, 1, 2, 1, 9, 1, 2]
    step, options = work.step(), {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    with pytest.raises(ParallelExecutionError):
        mapped(step, iter(items), **options)
    assert work.ran == {1: 3, 2: 1, 9: 1}
    work.again()
    found = mapped(step, iter(items), **options)
    assert items_of(found) == items
    assert work.ran == {9: 1, 1: 1, 2: 1}
    assert [serial for _, serial in found[:4]] == [1, 2, 3, 4]


def test_equal_arguments_of_two_maps_are_not_mixed_up(saver):
    """The same step and items in two places of one body."""
    work = Work()
    step, lives = work.step(), []

    @entrypoint(checkpointer=saver)
    def flow(_):
        first = weft.map(step, iter([1, 2]))
        second = weft.map(step, iter([2, 1]))
        lives.append((first, second))
        if len(lives) == 1:
            raise Boom
        return

    with pytest.raises(Boom):
        flow.invoke("go", run_id="r")
    work.again()
    flow.invoke("go", run_id="r")
    assert lives[0] == lives[1]
    assert not work.ran


@pytest.mark.parametrize("source", SOURCES)
def test_a_finished_run_gives_its_result_and_runs_nothing(saver, mapped, source):
    work = Work()
    step, options = work.step(), {"checkpointer": saver, "run_id": "r"}
    first = mapped(step, SOURCES[source](range(5)), **options)
    work.again()
    assert mapped(step, SOURCES[source](range(5)), **options) == first
    assert not work.ran


def test_a_run_that_a_stream_finished_has_a_result_for_everybody(saver):
    work = Work()
    step, options = work.step(), {"checkpointer": saver, "run_id": "r"}
    first = by_stream(step, [1, 2, 3], **options)
    assert by_map(step, [1, 2, 3], **options) == first
    assert by_astream(step, [1, 2, 3], **options) == first
    assert work.ran == {1: 1, 2: 1, 3: 1}


def test_a_run_that_map_finished_can_be_streamed(saver):
    work = Work()
    step, options = work.step(), {"checkpointer": saver, "run_id": "r"}
    first = by_map(step, [1, 2, 3], **options)
    assert by_stream(step, [1, 2, 3], **options) == first
    made = weft.map(step)
    assert list(made.stream([1, 2, 3], ordered=False, **options)) == list(enumerate(first))


@pytest.mark.parametrize(
    "policy",
    [{"on_error": "collect"}, {"on_error": tolerate(count=2)}, {"need": 3}, {"on_error": "race"}],
    ids=["collect", "tolerate", "need", "race"],
)
@pytest.mark.parametrize("ordered", [True, False])
def test_a_finished_stream_gives_again_what_it_gave(saver, policy, ordered):
    """Whatever its policy: outcomes as outcomes, with the same numbers; but who won a race is not kept."""
    work = Work(0, 2)
    made = weft.map(work.step(), max_concurrent=1, **policy)
    options = {"checkpointer": saver, "run_id": "r", "ordered": ordered}

    def take_all():
        found = [describe(each) for each in made.stream(iter(range(6)), **options)]
        return [result for _, result in found] if policy == {"on_error": "race"} and not ordered else found

    first = within(20, take_all)
    work.again()
    assert within(20, take_all) == first
    assert not work.ran


@pytest.mark.parametrize("after", [[2], [2, 1], [1, 2], []])
def test_a_finished_stream_gives_only_what_its_last_life_gave(saver, after):
    """Items of an earlier life that did not come again have records too."""
    work = Work(0)
    made = weft.map(work.step(), max_concurrent=1)
    options = {"checkpointer": saver, "run_id": "r"}
    with pytest.raises(ParallelExecutionError):
        list(made.stream(iter([1, 3, 0]), **options))
    work.again()
    found = within(20, lambda: list(made.stream(iter(after), **options)))
    assert items_of(found) == after
    assert within(20, lambda: list(made.stream(iter(after), **options))) == found
    assert within(20, lambda: made.invoke(iter(after), **options)) == found


def describe(result):
    """What can be compared of a result, with its number where it has one."""
    if isinstance(result, tuple):
        return (result[0], describe(result[1]))
    return (type(result.error), result.error.args) if isinstance(result, Failed) else result


def test_of_a_finished_run_the_source_is_not_read():
    saver, read = InMemorySaver(), []

    def source():
        for number in range(5):
            read.append(number)
            yield number

    first = by_map(repr, source(), checkpointer=saver, run_id="r")
    read.clear()
    assert by_map(repr, source(), checkpointer=saver, run_id="r") == first
    assert read == []


# Other items


@pytest.mark.parametrize("mapped", [by_map, by_amap, by_stream, by_astream])
def test_the_same_run_id_with_other_list_items_is_refused(saver, mapped):
    work = Work(2)
    step, options = work.step(), {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    with pytest.raises(ParallelExecutionError):
        mapped(step, [1, 2, 3], **options)
    work.again()
    for other in ([1, 2, 4], [2, 1, 3], [1, 2], [1, 2, 3, 3], iter([1, 2, 3])):
        with pytest.raises(RunMismatchError, match="'r'"):
            mapped(step, other, **options)
    assert not work.ran
    assert items_of(mapped(step, [1, 2, 3], **options)) == [1, 2, 3]
    with pytest.raises(RunMismatchError):
        mapped(step, [1, 2, 4], **options)  # of a finished run as well


def test_another_map_with_the_same_run_id_is_refused(saver):
    by_map(repr, [1], checkpointer=saver, run_id="r")
    with pytest.raises(RunMismatchError, match="map\\(repr\\).*map\\(ascii\\)|map\\(ascii\\).*map\\(repr\\)"):
        by_map(ascii, [1], checkpointer=saver, run_id="r")


ITEMS = st.lists(st.integers(0, 5), max_size=12)


@settings(max_examples=120, deadline=None)
@given(
    before=ITEMS,
    after=ITEMS,
    failing=st.integers(0, 7),
    width=st.sampled_from([1, 2, 5]),
    is_async=st.booleans(),
    face=st.sampled_from([by_map, in_an_async_body, by_stream]),
)
def test_reordered_inserted_and_removed_items_never_get_a_wrong_result(
    before, after, failing, width, is_async, face
):
    """A source that gives other items on resume: each item has its own result, and a recorded one is used again."""
    saver, work = InMemorySaver(), Work(failing)
    step = work.step()
    options = {"checkpointer": saver, "run_id": "r", "max_concurrent": width}
    source = agen if is_async else iter
    try:
        first = face(step, source(before), **options)
    except ParallelExecutionError:
        first = None
    at_least = collections.Counter(x for x in before[: before.index(failing)]) if failing in before else None
    work.again()
    found = face(step, source(after), **options)
    if first is not None:  # it had finished
        assert items_of(first) == before
        assert found == first
        assert not work.ran
        return
    assert items_of(found) == after
    wanted = collections.Counter(after)
    if width == 1:
        assert work.ran == wanted - at_least
    else:
        assert work.ran <= wanted
    assert face(step, source(after), **options) == found  # it has finished now


@pytest.mark.parametrize("kind", ["generator", "async generator"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_finished_map_of_a_body_follows_its_source_on_resume(saver, kind, is_stream):
    """It is not recorded as a whole: the source may give other items this time, and each of them has its own record."""
    work, lives = Work(), []
    made = weft.map(work.step(), max_concurrent=1)

    @entrypoint(checkpointer=saver)
    def flow(_):
        source = SOURCES[kind]([1, 2, 3] if not lives else [3, 4, 1])
        lives.append(list(made.stream(source)) if is_stream else made.invoke(source))
        if len(lives) == 1:
            raise Boom

    with nothing_left(), pytest.raises(Boom):
        within(20, lambda: flow.invoke("go", run_id="r"))
    work.again()
    with nothing_left():
        within(20, lambda: flow.invoke("go", run_id="r"))
    assert items_of(lives[1]) == [3, 4, 1]
    assert (lives[1][0], lives[1][2]) == (lives[0][2], lives[0][0])
    assert work.ran == {4: 1}


def test_items_that_never_come_again_do_not_keep_a_resume_from_going_on(saver, mapped):
    work = Work(3)
    step, options = work.step(), {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    with pytest.raises(ParallelExecutionError):
        mapped(step, iter(range(10)), **options)
    work.again()
    assert items_of(mapped(step, iter(range(100, 110)), **options)) == list(range(100, 110))


def test_an_endless_source_that_has_changed_does_not_keep_a_resume_from_going_on(saver):
    """It looks for the recorded items only so far ahead."""
    work = Work(3)
    step, options = work.step(), {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    with pytest.raises(ParallelExecutionError):
        by_map(step, iter(range(10)), **options)
    work.again()
    found = by_map(step, itertools.count(100), need=3, **options)
    assert [each.value[0] for each in found if isinstance(each, Ok)] == [100, 101, 102]


# Decisions are made again as they were made


@pytest.mark.parametrize("source", ["list", "generator", "async generator"])
@pytest.mark.parametrize("options", [{"on_error": "race"}, {"need": 2}], ids=["race", "need"])
def test_a_race_has_the_same_winner_on_resume(saver, source, options):
    """Though another item would win now."""
    lives, ran = [], []

    @weft.task
    async def work(x):
        ran.append(x)
        fast = x >= 2 if not lives else x < 2
        await asyncio.sleep(0.01 if fast else 60)
        return x

    @entrypoint(checkpointer=saver)
    async def flow(_):
        found = await weft.amap(work, SOURCES[source](range(4)), max_concurrent=4, **options)
        lives.append(found)
        if len(lives) == 1:
            raise Boom
        return

    with pytest.raises(Boom):
        within(20, lambda: asyncio.run(flow.ainvoke("go", run_id="r")))
    ran.clear()
    within(20, lambda: asyncio.run(flow.ainvoke("go", run_id="r")))
    assert ran == []
    if options == {"on_error": "race"}:
        assert lives[0] == lives[1]
        assert lives[0] in (2, 3)
    else:
        assert [each for each in lives[0] if isinstance(each, Ok)] == [Ok(2), Ok(3)]
        assert [each for each in lives[1] if isinstance(each, Ok)] == [Ok(2), Ok(3)]


@pytest.mark.parametrize("source", ["list", "generator"])
@pytest.mark.parametrize("policy", ["collect", tolerate(count=3), tolerate(ratio=0.5, at_least=4)], ids=str)
def test_failures_that_the_body_went_on_from_are_not_tried_again(saver, source, policy):
    work = Work(2, 4)
    step, lives = work.step(), []

    @entrypoint(checkpointer=saver)
    def flow(_):
        lives.append(weft.map(step, SOURCES[source](range(6)), max_concurrent=1, on_error=policy))
        if len(lives) == 1:
            raise Boom
        return

    with pytest.raises(Boom):
        within(20, lambda: flow.invoke("go", run_id="r"))
    work.again()
    within(20, lambda: flow.invoke("go", run_id="r"))
    assert not work.ran
    assert [type(each) for each in lives[1]] == [Ok, Ok, Failed, Ok, Failed, Ok]
    assert [each.value for each in lives[1] if isinstance(each, Ok)] == [
        each.value for each in lives[0] if isinstance(each, Ok)
    ]
    assert [str(each.error) for each in lives[1] if isinstance(each, Failed)] == ["2", "4"]


# Streams


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("ordered", [True, False])
def test_a_stream_that_was_left_is_resumed_from_its_first_result_on(saver, source, ordered):
    """What was taken had been recorded: it is given again, and not run again."""
    work = Work()
    made = weft.map(work.step(), max_concurrent=3)
    options = {"checkpointer": saver, "run_id": "r", "ordered": ordered}
    seen = []

    def take_some():
        with closing(made.stream(SOURCES[source](range(200)), **options)) as results:
            seen.extend(itertools.islice(results, 20))

    with nothing_left():
        within(20, take_some)
    ran = dict(work.ran)
    work.again()
    found = within(20, lambda: list(made.stream(SOURCES[source](range(200)), **options)))
    if not ordered:
        seen, found = [sorted(each) for each in (seen, found)]
        assert [index for index, _ in found] == list(range(200))
        seen, found = [[result for _, result in each] for each in (seen, found)]
    assert items_of(found) == list(range(200))
    assert all(result in found for result in seen)
    assert not {item for item, _ in seen} & work.ran.keys()
    assert len(ran) < 200
    assert max(work.ran.values()) == 1


def test_what_a_stream_yields_was_recorded_before():
    saver = InMemorySaver()
    made = weft.map(repr, max_concurrent=2)
    for taken, _ in enumerate(made.stream(range(50), checkpointer=saver, run_id="r"), 1):
        assert len(saver.records("r", limit=1000)) >= taken


def test_a_resumed_stream_of_many_recorded_items_yields_them_all_in_order(saver):
    work = Work(700)
    made = weft.map(work.step(), max_concurrent=4)
    options = {"checkpointer": saver, "run_id": "r"}

    def take_all():
        return [item for item, _ in made.stream(iter(range(800)), **options)]

    with pytest.raises(ParallelExecutionError):
        within(20, take_all)
    work.again()
    assert within(20, take_all) == list(range(800))
    assert min(work.ran) >= 690


# What is no list any more


def test_a_resume_without_items_uses_the_recorded_list(saver):
    work = Work(2)
    made = weft.map(work.step(), max_concurrent=1)
    with pytest.raises(ParallelExecutionError):
        made.invoke([1, 2, 3], checkpointer=saver, run_id="r")
    work.again()
    assert items_of(weft.runs(saver).resume("r", made)) == [1, 2, 3]
    assert work.ran == {2: 1, 3: 1}


def test_a_resume_without_items_of_a_source_that_is_gone_asks_for_them(saver):
    work = Work(2)
    made = weft.map(work.step(), max_concurrent=1)
    with pytest.raises(ParallelExecutionError):
        made.invoke(iter([1, 2, 3]), checkpointer=saver, run_id="r")
    work.again()
    with pytest.raises(InputError, match="again"):
        weft.runs(saver).resume("r", made)
    assert items_of(made.invoke(iter([1, 2, 3]), checkpointer=saver, run_id="r")) == [1, 2, 3]


def test_what_stands_for_such_a_source_in_the_journal_is_no_items_of_a_user(saver):
    """Whatever is recorded in its place must not be taken for it when somebody passes it himself."""
    weft.map(repr, iter([1]), checkpointer=saver, run_id="r")
    found = saver.codec.decode(saver.find("r").input)
    if isinstance(found, str | tuple | list | dict):
        assert weft.map(repr, found) == [repr(each) for each in found]
        assert weft.map(repr, found, checkpointer=saver, run_id="other") == [repr(each) for each in found]


@pytest.mark.parametrize(
    "items",
    [
        (1, 2),
        range(1, 3),
        {1, 2},
        {1: "a", 2: "b"},
        {1: 0, 2: 0}.keys(),
        collections.deque([1, 2]),
        b"\x01\x02",
    ],
    ids=lambda items: type(items).__name__,
)
def test_everything_in_memory_can_be_the_input_of_a_recorded_run(saver, items):
    work = Work(2)
    step, options = work.step(), {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    with pytest.raises(ParallelExecutionError):
        by_map(step, items, **options)
    work.again()
    assert items_of(by_map(step, items, **options)) == [1, 2]
    assert work.ran == {2: 1}


def test_maps_in_maps_and_sequences_resume_at_the_item_that_failed(saver):
    work = Work(12)
    step = work.step()
    inner = Sequence(lambda n: [10 * n + k for k in range(4)], weft.map(step, max_concurrent=1))
    options = {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    with pytest.raises(ParallelExecutionError):
        by_map(inner, iter(range(3)), **options)
    assert sorted(work.ran) == [0, 1, 2, 3, 10, 11, 12]
    work.again()
    found = by_map(inner, iter(range(3)), **options)
    assert [items_of(each) for each in found] == [[10 * n + k for k in range(4)] for n in range(3)]
    assert sorted(work.ran) == [12, 13, 20, 21, 22, 23]


def test_a_pipeline_resumes_every_item_at_its_stage(saver):
    ran, failing = collections.Counter(), {3}

    def load(x):
        ran["load", x] += 1
        return x

    def store(x):
        ran["store", x] += 1
        if x in failing:
            raise Boom
        return x * x

    options = {"checkpointer": saver, "run_id": "r", "max_concurrent": 1}
    with pytest.raises(ParallelExecutionError):
        weft.pipeline(iter(range(6)), load, store, **options)
    before = dict(ran)
    failing.clear()
    assert weft.pipeline(iter(range(6)), load, store, **options) == [x * x for x in range(6)]
    assert ran["load", 3] == 1
    assert ran["store", 3] == 2
    assert all(ran[key] == 1 for key in before if key[0] == "store" and key != ("store", 3))


# Killed


KILLED = """
    import asyncio, os, sys, time
    import weft
    from weft import SqliteSaver

    def effect(word):
        fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{word}\\n".encode()); os.close(fd)

    def work(i):
        effect(f"ran{i}")
        time.sleep(0.004)
        return [i, os.getpid()]

    async def awork(i):
        effect(f"ran{i}")
        await asyncio.sleep(0.004)
        return [i, os.getpid()]

    def lazy(n):
        yield from range(n)

    async def alazy(n):
        for i in range(n):
            yield i

    how, n = sys.argv[1], int(sys.argv[2])
    options = {"checkpointer": SqliteSaver("runs.db"), "run_id": "r"}
    if how == "list":
        found = weft.map(work, list(range(n)), max_concurrent=6, **options)
    elif how == "generator":
        found = asyncio.run(weft.amap(awork, lazy(n), max_concurrent=6, **options))
    elif how == "names":  # a set, whose order is another in every process
        found = weft.map(work, {f"{i}" for i in range(n)}, max_concurrent=6, **options)
    else:
        found = []
        for result in weft.map(awork, max_concurrent=6).stream(alazy(n), **options):
            effect(f"took{result[0]}:{result[1]}")
            found.append(result)
    print([i for i, _ in found])
"""


@pytest.mark.parametrize("how", ["list", "generator", "stream", "names"])
def test_after_kill_9_the_same_command_goes_on_and_loses_nothing(tmp_path, how):
    """Twice killed, at moments drawn by a seed: every item ran at most once more than it was killed."""
    random, count, width = seeded(f"killed map {how}"), 60, 6
    program = Program(tmp_path, KILLED)
    kills = 0
    for least in (random.randrange(1, 40), random.randrange(60, 90)):
        kills += kill_at_effect(program.start(how, count), program.effects_path, least)
    assert kills
    done = program.run(how, count)
    assert done.returncode == 0, done.stderr
    expected = str(list(range(count)))
    if how == "names":
        assert sorted(eval(done.stdout), key=int) == [str(x) for x in range(count)]
    else:
        assert done.stdout.strip() == expected
    effects = program.effects()
    ran = {word: times for word, times in effects.items() if word.startswith("ran")}
    assert len(ran) == count
    assert max(ran.values()) <= 1 + kills
    # In flight, or ended and in the one commit that did not come to be.
    assert sum(ran.values()) <= count + kills * 3 * width
    taken = [word for word in effects if word.startswith("took")]
    assert len({word.partition(":")[0] for word in taken}) == len(taken)  # never another result than was seen


def test_a_resume_of_a_thousand_items_of_which_most_are_recorded_is_quick(saver):
    work = Work(990)
    step, options = work.step(), {"checkpointer": saver, "run_id": "r", "max_concurrent": 50}
    with pytest.raises(ParallelExecutionError):
        by_map(step, iter(range(1000)), **options)
    work.again()
    began = time.monotonic()
    assert items_of(by_map(step, iter(range(1000)), **options)) == list(range(1000))
    assert time.monotonic() - began < 5
    assert len(work.ran) <= 60
