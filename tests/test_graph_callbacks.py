"""Graphs while they run: what nodes stream, the verbs, the command line, and the options of nodes, forks and runs.

Time is virtual wherever something takes any.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from leftovers import nothing_left, takes, timed, within

import weft
from weft import (
    Callback,
    EventCallback,
    Failed,
    Graph,
    GraphError,
    GraphEvent,
    GraphEventType,
    InMemorySaver,
    InputError,
    Limit,
    NodeTimeoutError,
    ParallelExecutionError,
    ParallelTimeoutError,
    RetryPolicy,
    UsageError,
    entrypoint,
    node,
    parallel,
    router,
    tolerate,
)
from weft.testing import run, sleep, virtual_clock

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


class Boom(Exception):
    pass


def linked(*paths, join=None, **nodes):
    """A graph along paths like "start a end"; a join is written "a b > end". Where nothing comes after, it ends."""
    graph = Graph()
    edges = [pair for path in paths for pair in zip(path.split(), path.split()[1:], strict=False)]
    joined, _, to = (join or "").partition(" > ")
    sources = {source for source, _ in edges} | {*joined.split()}
    for name in dict.fromkeys([*(name for path in paths for name in path.split()), *to.split()]):
        part = nodes.pop(name, nothing)
        graph.add_node(part, name=name, end=name not in sources)
    assert not nodes
    graph.set_start_node(paths[0].split()[0])
    for source, destination in edges:
        graph.add_edge(source, destination)
    return graph.add_join(joined.split(), to) if join else graph


async def nothing():
    return {}


def forked(*branches, join=True, **options):
    """A graph whose start forks to these, with options."""
    graph = Graph().add_node(nothing, name="start", start=True).add_node(nothing, name="end", end=True)
    for branch in branches:
        graph.add_node(branch)
    graph.add_parallel("start", branches, **options)
    if join:
        graph.add_join(branches, "end")
    return graph


def waiting(name, seconds, *, kind="async", error=None, log=None, **options):
    """A node that gives its name after so many seconds, or fails; the log notes when it began and how it was left."""
    log = [] if log is None else log

    def leave(now):
        log.append((name, "left", now))
        if error is not None:
            raise error
        return {name: True}

    async def body():
        loop = asyncio.get_running_loop()
        log.append((name, "began", loop.time()))
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            log.append((name, "stopped", loop.time()))
            raise
        return leave(loop.time())

    def sync_body():
        clock = current_clock()
        log.append((name, "began", clock.now))
        until = clock.now + seconds
        while clock.now < until:
            sleep(min(0.25, until - clock.now))
            if weft.cancelled():
                log.append((name, "stopped", clock.now))
                return {}
        return leave(clock.now)

    return node(name=name, **options)(body if kind == "async" else sync_body)


def current_clock():
    return weft.engine.context.current.get().run.clock


def moments(log, what):
    return {name: when for name, event, when in log if event == what}


# Callbacks


def streaming(name, *tokens, kind="async", seconds=0.0, error=None, **options):
    """A node that streams these, one after so many seconds each, and then gives its name or fails."""

    async def body(callback):
        for token in tokens:
            await callback.acall(token)
            await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return {name: True}

    def sync_body(callback):
        for token in tokens:
            callback(token)
            sleep(seconds)
        if error is not None:
            raise error
        return {name: True}

    return node(name=name, stream=True, **options)(body if kind == "async" else sync_body)


async def read(callback):
    return [event async for event in callback.aiter()]


async def read_while_executed(graph, callback, input=None, **options):
    """What the execution gives or raises, and all that is read from the callback meanwhile."""
    executing = asyncio.create_task(
        graph.execute({} if input is None else input, callback=callback, **options)
    )
    reading = asyncio.create_task(read(callback))
    try:
        found = await executing
    except Exception as error:
        found = error
    return found, await asyncio.wait_for(reading, 60)


START, TOKEN, ENDED, END = (
    GraphEventType.START_NODE,
    GraphEventType.CALLBACK,
    GraphEventType.END_NODE,
    GraphEventType.END,
)


def shown(found):
    return [(event.type, event.token) for event in found]


@KINDS
def test_events_come_as_they_are_streamed(kind):
    graph = linked(
        "a b c", a=streaming("a", "1", "2", kind=kind), c=streaming("c", "3", kind=kind)
    )  # and b, which does not stream, is not told of
    (result, found), _ = timed(lambda: read_while_executed(graph, EventCallback("conversation 7")))
    assert result == {"a": True, "c": True}
    assert shown(found) == [
        (START, "a"),
        (TOKEN, "1"),
        (TOKEN, "2"),
        (ENDED, "a"),
        (START, "c"),
        (TOKEN, "3"),
        (ENDED, "c"),
        (END, None),
    ]
    assert {event.identifier for event in found} == {"conversation 7"}


@KINDS
def test_text_comes_as_it_is_streamed(kind):
    graph = linked("a b", a=streaming("a", "one ", "two", kind=kind), b=streaming("b", "three", kind=kind))
    (_, found), _ = timed(lambda: read_while_executed(graph, Callback()))
    assert found == [
        "<graphai:a:start:>",
        "<graphai:a:>",
        "one ",
        "two",
        "<graphai:a:end:>",
        "<graphai:b:start:>",
        "<graphai:b:>",
        "three",
        "<graphai:b:end:>",
        "<graphai:END:>",
    ]


def test_text_in_a_format_of_ones_own():
    callback = Callback(
        "me", special_token_format="[{identifier}|{token}|{params}]", token_format="'{token}'"
    )
    (_, found), _ = timed(lambda: read_while_executed(linked("a", a=streaming("a", "x{y}")), callback))
    assert found == ["[me|a:start|]", "[me|a|]", "'x{y}'", "[me|a:end|]", "[me|END|]"]


def test_a_token_is_there_when_it_is_streamed_and_not_at_the_end():
    async def main():
        callback = EventCallback()
        graph = linked("a", a=streaming("a", "0", "1", "2", seconds=10))
        executing = asyncio.create_task(graph.execute({}, callback=callback))
        loop = asyncio.get_running_loop()
        found = [(event.token, loop.time()) async for event in callback.aiter() if event.type == "callback"]
        await executing
        return found

    assert timed(main)[0] == [("0", 0), ("1", 10), ("2", 20)]


def test_an_event_is_what_the_node_makes_it():
    @node(stream=True)
    async def a(callback):
        await callback.acall("found", type="tool_done", params={"tool": "search"})
        callback(type="empty", identifier="another")
        await callback.start_node("inner")
        await callback.end_node("inner")
        await callback.start_node("quiet", active=False)
        await callback.end_node("quiet")
        return {}

    (_, found), _ = timed(lambda: read_while_executed(linked("a", a=a), EventCallback("me")))
    assert found[1] == GraphEvent("tool_done", "me", "found", {"tool": "search"})
    assert found[2] == GraphEvent("empty", "another")
    assert shown(found[3:5]) == [(START, "inner"), (ENDED, "inner")]
    assert "quiet" not in [event.token for event in found]


def test_an_event_is_encoded_for_a_server_that_streams():
    event = GraphEvent(GraphEventType.CALLBACK, "me", 'é"', {"a": [1]})
    data = event.encode()
    assert data.startswith(b"data: ") and data.endswith(b"\n\n")
    found = json.loads(data[len(b"data: ") :])
    assert found == {"type": "callback", "identifier": "me", "token": 'é"', "params": {"a": [1]}}
    assert json.loads(GraphEvent("own", "me").encode()[6:])["type"] == "own"
    assert event.encode("latin-1") != data


def test_the_type_of_an_event_equals_its_word():
    assert GraphEventType.CALLBACK == "callback"
    assert str(GraphEventType.END) == "end"
    assert {GraphEventType.END: 1}[GraphEventType.END] == 1
    assert GraphEventType.END != "callback"


@KINDS
@pytest.mark.parametrize("made", [Callback, EventCallback])
def test_a_stream_closes_when_the_execution_fails(made, kind):
    graph = linked("a b c", a=streaming("a", "x", kind=kind, error=Boom("no")))
    (error, found), _ = timed(lambda: read_while_executed(graph, made()))
    assert isinstance(error, Boom)
    assert len(found) == (3 if made is EventCallback else 4)  # begun, the token, and the end of the stream


@pytest.mark.parametrize("made", [Callback, EventCallback])
@pytest.mark.parametrize("after", [0, 5, 15])
def test_a_stream_closes_when_the_execution_is_cancelled(made, after):
    async def main():
        callback = made()
        graph = linked("a b", a=streaming("a", "1", "2", "3", seconds=10))
        executing = asyncio.create_task(graph.execute({}, callback=callback))
        reading = asyncio.create_task(read(callback))
        await asyncio.sleep(after)
        executing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await executing
        return await asyncio.wait_for(reading, 1)

    found, seconds = timed(main)
    assert seconds == after
    assert len(found) >= 1


@pytest.mark.parametrize("made", [Callback, EventCallback])
def test_a_stream_closes_when_time_is_up(made):
    graph = linked("a b", a=streaming("a", "1", "2", seconds=10))
    (error, found), seconds = timed(lambda: read_while_executed(graph, made(), timeout=15))
    assert isinstance(error, NodeTimeoutError)
    assert seconds == 15
    assert found[-1] == (GraphEvent(END, "graphai") if made is EventCallback else "<graphai:END:>")


@pytest.mark.parametrize(
    ("graph", "input", "options"),
    [
        (linked("a", a=streaming("a", "x")), "no dict", {}),
        (linked("a", a=streaming("a", "x")), {}, {"no_such_option": 1}),
        (Graph(), {}, {}),
    ],
    ids=["input", "option", "graph"],
)
def test_a_stream_closes_when_the_execution_never_begins(graph, input, options):
    """Else whoever reads it would wait for ever."""
    (error, found), _ = timed(lambda: read_while_executed(graph, EventCallback(), input, **options))
    assert isinstance(error, InputError | GraphError)
    assert shown(found) == [(END, None)]


def test_what_was_streamed_can_be_read_when_all_is_over():
    async def main():
        callback = EventCallback()
        await linked("a", a=streaming("a", "x")).execute({}, callback=callback)
        assert callback.is_closed
        found = await read(callback)
        assert await read(callback) == []  # once
        return found

    assert shown(timed(main)[0]) == [(START, "a"), (TOKEN, "x"), (ENDED, "a"), (END, None)]


def test_a_stream_is_of_one_execution():
    async def main():
        callback = EventCallback()
        graph = linked("a", a=streaming("a", "x"))
        await graph.execute({}, callback=callback)
        with pytest.raises(UsageError, match="one for each execution"):
            await graph.execute({}, callback=callback)

    timed(main)


def test_nothing_can_be_streamed_behind_the_end():
    kept = []

    @node(stream=True)
    async def a(callback):
        kept.append(callback)
        return {}

    async def main():
        for made in (None, EventCallback()):
            await linked("a", a=a).execute({}, callback=made)
        for callback in kept:
            with pytest.raises(UsageError, match="closed"):
                callback("late")
            with pytest.raises(UsageError, match="closed"):
                await callback.acall("late")
            await callback.start_node("late")  # as when a node has closed its stream itself
            await callback.end_node("late")
            await callback.close()  # again is no harm
        found = [event.type async for event in kept[1].aiter()]
        assert found == [START, ENDED, END]

    timed(main)
    assert [type(callback) for callback in kept] == [Callback, EventCallback]


@pytest.mark.parametrize("made", [Callback, EventCallback])
def test_a_node_may_close_its_stream(made):
    @node(stream=True)
    async def a(callback):
        await callback.acall("x")
        await callback.close()
        return {"a": 1}

    (result, found), _ = timed(lambda: read_while_executed(linked("a b", a=a, b=lambda: {"b": 1}), made()))
    assert result == {"a": 1, "b": 1}
    assert len(found) == (3 if made is EventCallback else 4)


def test_streams_of_executions_at_the_same_time_are_apart():
    @node(stream=True)
    async def a(callback, number):
        for turn in range(3):
            await asyncio.sleep(1)
            callback(f"{number}.{turn}")
        return {}

    async def main():
        graph = linked("a", a=a)
        callbacks = [EventCallback(str(number)) for number in range(20)]
        readers = [asyncio.create_task(read(callback)) for callback in callbacks]
        await asyncio.gather(
            *(graph.execute({"number": number}, callback=callbacks[number]) for number in range(20))
        )
        return [await reader for reader in readers]

    for number, found in enumerate(timed(main)[0]):
        tokens = [event.token for event in found if event.type == "callback"]
        assert tokens == [f"{number}.{turn}" for turn in range(3)]
        assert found[-1] == GraphEvent(END, str(number))


@pytest.mark.parametrize("made", [Callback, EventCallback])
def test_threads_stream_while_a_reader_waits(made):
    """In real time: what a thread puts into the queue must wake who waits on a loop."""
    barrier = threading.Barrier(4, timeout=10)

    def sync_body(callback, name):
        barrier.wait()
        for turn in range(50):
            callback(f"{name}.{turn}")
            if turn % 10 == 0:
                time.sleep(0.001)
        return {}

    names = ["a", "b", "c", "d"]
    nodes = {name: node(stream=True)(functools.partial(sync_body, name=name)) for name in names}
    graph = linked(*(f"s {name}" for name in names), **nodes)

    async def main():
        callback = made()
        found = await read_while_executed(graph, callback)
        return [getattr(each, "token", each) for each in found[1]]

    with nothing_left():
        found = within(20, lambda: asyncio.run(main()))
    for name in names:
        assert [each for each in found if each and f"{name}." in each] == [
            f"{name}.{turn}" for turn in range(50)
        ]


@KINDS
def test_a_reader_in_another_thread_is_woken_at_each_token(kind):
    """The node goes on only when what it has streamed was read, on a loop on which nothing else happens."""
    was_read = threading.Semaphore(0)

    def sync_body(callback):
        for token in "123":
            callback(token)
            assert was_read.acquire(timeout=10)
        return {}

    async def body(callback):
        for token in "123":
            await callback.acall(token)
            assert await asyncio.to_thread(was_read.acquire, timeout=10)
        return {}

    async def reads(callback):
        tokens = []
        async for event in callback.aiter():
            if event.type == TOKEN:
                tokens.append(event.token)
                was_read.release()
        return tokens

    async def main(callback):
        return await linked("a", a=node(stream=True)(body if kind == "async" else sync_body)).execute(
            {}, callback=callback
        )

    with nothing_left():
        callback, found = EventCallback(), []
        reader = threading.Thread(target=lambda: found.append(asyncio.run(reads(callback))), daemon=True)
        reader.start()
        assert within(20, lambda: asyncio.run(main(callback))) == {}
        reader.join(10)
    assert found == [["1", "2", "3"]]


def test_text_of_nodes_that_stream_at_the_same_time():
    """A node may say which it is, and is not refused because another one has begun since."""

    def speaker(name):
        async def body(callback):
            await asyncio.sleep(1)
            await callback.acall(f"by {name}", node_name=name)
            return {}

        return node(stream=True)(body)

    graph = linked("s a", "s b", a=speaker("a"), b=speaker("b"))
    (result, found), _ = timed(lambda: read_while_executed(graph, Callback()))
    assert result == {}
    assert {"by a", "by b"} <= {*found}
    assert sorted(each for each in found if each.endswith(":end:>")) == [
        "<graphai:a:end:>",
        "<graphai:b:end:>",
    ]


def test_text_of_another_node_than_runs_is_refused():
    @node(stream=True)
    async def a(callback):
        callback("x", node_name="b")
        return {}

    with pytest.raises(ValueError, match="'b'.*'a'"):
        linked("a b", a=a).invoke({})


def test_without_a_callback_there_is_one_of_the_graphs_own():
    seen = []

    @node(stream=True)
    async def a(callback):
        seen.append(callback)
        callback("x")
        return {}

    class Mine(EventCallback):
        pass

    graph = linked("a", a=a)
    assert isinstance(graph.get_callback(), Callback)
    graph.invoke({})
    graph.set_callback(Mine)
    graph.invoke({})
    assert isinstance(graph.get_callback(), Mine)
    assert graph.get_callback() is not graph.get_callback()
    graph.map([{}, {}])
    assert [type(each) for each in seen] == [Callback, Mine, Mine, Mine]
    assert len({*map(id, seen)}) == 4
    assert all(each.is_closed for each in seen)


def test_a_callback_of_ones_own_needs_no_base_class():
    class Mine:
        def __init__(self):
            self.told = []

        def __call__(self, token):
            self.told.append(token)

        async def start_node(self, node_name, active=True):
            await asyncio.sleep(1)
            self.told.append(f"{node_name} begins")

        async def end_node(self, node_name):
            self.told.append(f"{node_name} ends")

        async def close(self):
            await asyncio.sleep(1)
            self.told.append("closed")

    callback = Mine()

    @node(stream=True)
    async def a(callback):
        callback("x")
        return {}

    timed(lambda: linked("a", a=a).execute({}, callback=callback))
    assert callback.told == ["a begins", "x", "a ends", "closed"]
    timed(lambda: linked("a", a=a).set_callback(lambda: callback).execute({}))  # one of the graph's own
    assert callback.told == ["a begins", "x", "a ends", "closed"] * 2


@pytest.mark.parametrize("wrong", [3, object(), "callback"])
def test_what_is_no_callback_is_refused(wrong):
    graph = linked("a", a=streaming("a", "x"))
    with pytest.raises((InputError, GraphError), match="callback"):
        within(5, lambda: asyncio.run(graph.execute({}, callback=wrong)))


def test_a_callback_that_cannot_be_closed_hides_no_result():
    class Broken(EventCallback):
        async def close(self):
            await super().close()
            raise Boom("close")

    async def main():
        return await linked("a").execute({"x": 1}, callback=Broken())

    with nothing_left():
        try:
            assert within(5, lambda: asyncio.run(main())) == {"x": 1}
        except Boom:  # said is good too; what may not be is a caller that waits for ever
            pass


def test_a_streaming_node_need_not_take_a_callback():
    (result, found), _ = timed(
        lambda: read_while_executed(linked("a", a=node(stream=True)(lambda: {"a": 1})), EventCallback())
    )
    assert result == {"a": 1}
    assert shown(found) == [(START, "a"), (ENDED, "a"), (END, None)]


def test_a_callback_is_no_part_of_the_result_and_of_the_input():
    given = {}
    graph = linked("a", a=streaming("a", "x"))
    assert timed(lambda: graph.execute(given, callback=EventCallback()))[0] == {"a": True}
    assert given == {}
    graph = linked("a b", a=streaming("a", "x"), b=lambda **flow: {"seen": sorted(flow)})
    assert timed(lambda: graph.execute({"callback": "a value"}))[0]["seen"] == ["a", "callback"]


def test_a_graph_in_a_graph_streams_to_the_outer_callback_and_leaves_it_open():
    inner = linked("x y", x=streaming("x", "from x"))
    graph = Graph().add_node(streaming("a", "from a"), start=True).add_node(inner, name="inner")
    graph.add_node(streaming("b", "from b"), end=True).add_edge("a", "inner").add_edge("inner", "b")
    (_, found), _ = timed(lambda: read_while_executed(graph, EventCallback()))
    assert [event.token for event in found if event.type == TOKEN] == ["from a", "from x", "from b"]
    assert [event.type for event in found].count(END) == 1


def test_a_retry_streams_again():
    attempts = []

    @node(stream=True, retry=3)
    async def a(callback):
        attempts.append(1)
        callback(str(len(attempts)))
        if len(attempts) < 3:
            raise ConnectionError
        return {}

    (_, found), _ = timed(lambda: read_while_executed(linked("a", a=a), EventCallback()))
    assert [event.token for event in found if event.type == TOKEN] == ["1", "2", "3"]
    assert [event.token for event in found if event.type == ENDED] == ["a"]


# Streams of the run


@pytest.fixture(params=["stream", "astream"])
def chunks(request):
    """All chunks of a graph, by the one face or the other."""

    def collect(graph, given=None, **options):
        given = {} if given is None else given
        if request.param == "stream":
            return within(10, lambda: list(graph.stream(given, **options)))

        async def main():
            return [chunk async for chunk in graph.astream(given, **options)]

        return within(10, lambda: asyncio.run(main()))

    return collect


@KINDS
def test_each_mode_of_a_stream(chunks, kind):
    graph = linked("a b", a=streaming("a", "1", "2", kind=kind), b=streaming("b", "3", kind=kind))
    updates = [{"a": {"a": True}}, {"b": {"b": True}}, {"graph": {"x": 1, "a": True, "b": True}}]
    assert chunks(graph, {"x": 1}) == updates
    assert chunks(graph, {"x": 1}, stream_mode="updates") == updates
    assert chunks(graph, {"x": 1}, stream_mode="values") == [{"x": 1, "a": True, "b": True}]
    assert chunks(graph, {"x": 1}, stream_mode="custom") == ["1", "2", "3"]
    both = chunks(graph, {"x": 1}, stream_mode=["custom", "updates"])
    assert both[:3] == [("custom", "1"), ("custom", "2"), ("updates", updates[0])]
    tasks = chunks(graph, {"x": 1}, stream_mode="tasks")
    assert tasks[0]["input"] == (({"x": 1},), {})
    assert [each["name"] for each in tasks if "input" in each] == ["graph", "a", "b"]
    assert [each["name"] for each in tasks if "input" not in each] == ["a", "b", "graph"]


def test_events_of_a_callback_are_custom_chunks(chunks):
    graph = linked("a", a=streaming("a", "1")).set_callback(EventCallback)
    assert chunks(graph, stream_mode="custom") == [GraphEvent(TOKEN, "graphai", "1")]


def test_a_router_is_streamed_without_its_keys_in_the_result(chunks):
    chooser = router(name="r")(lambda: {"choices": ["a"], "more": 1})
    graph = linked("r a", r=chooser, a=lambda: {"a": 1})
    assert chunks(graph)[-1] == {"graph": {"more": 1, "a": 1}}


@pytest.mark.parametrize("mode", ["updates", "values", "tasks"])
def test_a_checkpointer_changes_nothing_of_a_stream(chunks, mode):
    @node
    async def counts(state):
        state["n"] = state.get("n", 0) + 1
        return {"n": state["n"]}

    def seen(**options):
        graph = linked("a b", a=counts)
        found = chunks(graph, stream_mode=mode, **options)
        return [{key: value for key, value in chunk.items() if key != "id"} for chunk in found]

    assert seen(checkpointer=InMemorySaver(), thread_id="t") == seen()


def test_updates_come_as_nodes_end():
    graph = linked("s a", "s b", "s c", a=waiting("a", 3), b=waiting("b", 1), c=waiting("c", 2))

    async def main():
        loop = asyncio.get_running_loop()
        return [(*chunk, loop.time()) async for chunk in graph.astream({})]

    found, _ = timed(main)
    assert found == [("s", 0), ("b", 1), ("c", 2), ("a", 3), ("graph", 3)]


def test_a_stream_of_a_failure_gives_what_came_before_it():
    graph = linked("a b c", b=waiting("b", 0, error=Boom("no")))
    found = []
    with pytest.raises(Boom):
        for chunk in graph.stream({}):
            found.append(chunk)
    assert found == [{"a": {}}]


@KINDS
def test_leaving_a_stream_stops_the_execution(kind):
    log = []
    graph = linked("a b", a=lambda: {"a": 1}, b=waiting("b", 1000, kind=kind, log=log))

    async def main():
        async for chunk in (stream := graph.astream({})):
            assert chunk == {"a": {"a": 1}}
            await asyncio.sleep(1)
            break
        await stream.aclose()

    _, seconds = timed(main)
    assert seconds <= 2
    assert [name for name, event, _ in log if event == "stopped"] == ["b"]


# Other verbs


def test_submit_gives_a_handle():
    async def main():
        handle = linked("a b", a=waiting("a", 1), b=waiting("b", 1)).submit({"x": 1})
        assert handle.status == "running"
        found = await handle
        assert handle.status == "finished"
        return found

    assert timed(main) == ({"x": 1, "a": True, "b": True}, 2)


@KINDS
def test_a_run_that_is_cancelled_leaves_nothing(kind):
    log = []
    nodes = {name: waiting(name, 1000, kind=kind, log=log) for name in "abc"}

    async def main():
        handle = linked("s a", "s b", "s c", **nodes).submit({})
        await asyncio.sleep(5)
        handle.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await handle
        assert handle.status == "cancelled"
        return handle.given_up

    given_up, seconds = timed(main)
    assert given_up == []
    assert 5 <= seconds <= 6
    assert {name for name, event, _ in log if event == "stopped"} == {*"abc"}


def test_map_runs_graphs_for_all_items():
    graph = linked("a", a=lambda number: {"square": number**2})
    items = [{"number": number} for number in range(5)]
    assert [each["square"] for each in graph.map(items)] == [0, 1, 4, 9, 16]
    assert [each["square"] for each in run(lambda: graph.amap(items, max_concurrent=2))] == [0, 1, 4, 9, 16]
    streamed = [each["square"] for each in weft.map(graph).stream(items)]
    assert sorted(streamed) == [0, 1, 4, 9, 16]


def test_a_run_is_named_and_recorded():
    saver = InMemorySaver()
    ran = []
    graph = linked("a", a=lambda: ran.append(1) or {"a": len(ran)})
    for _ in range(3):
        assert graph.invoke({}, run_id="once", checkpointer=saver) == {"a": 1}
    assert graph.invoke({}, run_id="another", checkpointer=saver) == {"a": 2}
    assert Graph(checkpointer=saver).checkpointer is saver


def test_a_graph_cannot_be_invoked_in_an_async_body():
    graph = linked("a")

    @entrypoint()
    async def outer(x):
        return graph.invoke(x)

    with pytest.raises(UsageError, match="await graph.ainvoke"):
        within(5, lambda: outer.invoke({}))


# The command line

FLOWS = """
from weft import Graph, node, router


@node(start=True)
async def start(text, state):
    state["n"] = state.get("n", 0) + 1
    return {"n": state["n"]}


@node(stream=True)
async def left(text, callback):
    callback("token")
    return {"left": text.upper()}


@node
def right(text):
    if text == "fail":
        raise OSError("it broke")
    return {"right": len(text)}


@node(end=True)
async def end(left, right):
    return {"all": f"{left}{right}"}


graph = Graph(name="greeting").add_node(start).add_node(left).add_node(right).add_node(end)
graph.add_parallel(start, [left, right]).add_join([left, right], end)

unfinished = Graph().add_node(start)
empty = Graph()
"""


@pytest.fixture
def cli(tmp_path):
    (tmp_path / "flows.py").write_text(FLOWS)
    environment = {**os.environ, "PYTHONPATH": str(Path(weft.__file__).parent.parent), "PYTHONUTF8": "1"}
    environment.pop("WEFT_CHECKPOINTER", None)

    def start(*words, code=0):
        command = [sys.executable, "-P", "-W", "error", "-m", "weft.cli", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stderr
        assert "weft/" not in done.stderr.replace(str(tmp_path), ""), "none of our frames"
        return done

    return start


def test_a_graph_runs_from_the_command_line(cli):
    done = cli("run", "flows:graph", "--input", '{"text": "abc"}', "--json")
    found = json.loads(done.stdout)
    assert found["status"] == "finished"
    assert found["output"] == {"text": "abc", "n": 1, "left": "ABC", "right": 3, "all": "ABC3"}


def test_a_graph_is_resumed_from_the_command_line(cli):
    failed = cli("run", "flows:graph", "--input", '{"text": "fail"}', "--run-id", "mine", code=1)
    assert "OSError: it broke" in failed.stderr
    assert "'right'(text='fail')" in failed.stderr
    again = cli("resume", "mine", "flows:graph", code=1)
    assert "OSError: it broke" in again.stderr
    listed = cli("runs")
    assert "mine" in listed.stdout
    assert "failed" in listed.stdout


@pytest.mark.parametrize(
    ("target", "given", "code", "says"),
    [
        ("graph", "{}", 1, "node 'start' is missing the required parameter 'text'"),
        ("graph", "[1]", 1, "takes a dict"),
        ("unfinished", '{"text": ""}', 1, "no way on"),
        ("empty", "{}", 2, "has no nodes"),
    ],
)
def test_what_is_wrong_with_a_graph_is_said_on_the_command_line(cli, target, given, code, says):
    done = cli("run", f"flows:{target}", "--input", given, code=code)
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# The options of nodes


@KINDS
def test_a_node_has_a_timeout(kind):
    log = []
    graph = linked(
        "s a", "s b", a=waiting("a", 100, kind=kind, log=log, timeout=2), b=waiting("b", 50, log=log)
    )

    async def main():
        handle = graph.submit({})
        with pytest.raises(NodeTimeoutError, match="'a' took longer than its timeout of 2 s") as caught:
            await handle
        assert caught.value.step == "a"
        given_up, ended = [body.step for body in handle.given_up], asyncio.get_running_loop().time()
        await asyncio.sleep(1)  # for a body that was given up to see that it was
        return given_up, ended

    (given_up, ended), _ = timed(main)
    assert ended == 2
    assert given_up == (["a"] if kind == "sync" else [])
    assert moments(log, "stopped")["b"] == 2


@KINDS
def test_a_node_is_tried_again(kind):
    log = []
    policy = RetryPolicy(max_attempts=3, initial_interval=1, backoff_factor=2, jitter=False, retry_on=Boom)
    graph = linked("s a", a=waiting("a", 1, kind=kind, log=log, error=Boom("no"), retry=policy))
    with takes(6), pytest.raises(Boom) as caught:
        graph.invoke({})
    assert [when for _, event, when in log if event == "began"] == [0, 2, 5]
    assert any("'a'()" in note for note in caught.value.__notes__)


@KINDS
def test_all_attempts_of_a_node_have_a_time_together(kind):
    log = []
    policy = RetryPolicy(max_attempts=99, initial_interval=1, backoff_factor=1, jitter=False, retry_on=Boom)
    graph = linked("s a", a=waiting("a", 1, kind=kind, log=log, error=Boom("no"), retry=policy, total=6))
    with takes(5), pytest.raises(Boom):
        graph.invoke({})
    assert [when for _, event, when in log if event == "began"] == [0, 2, 4]


@KINDS
def test_nodes_share_a_limit(kind):
    log = []
    limit = Limit("two", concurrent=2)
    names = "abcde"
    nodes = {name: waiting(name, 10, kind=kind, log=log, limit=limit) for name in names}
    graph = linked(*(f"s {name}" for name in names), **nodes)
    with takes(30):
        graph.invoke({})
    assert sorted(moments(log, "began").values()) == [0, 0, 10, 10, 20]
    assert limit.in_use == 0


@KINDS
def test_a_limit_holds_over_executions(kind):
    limit = Limit("two", concurrent=2)
    graph = linked("a", a=waiting("a", 10, kind=kind, limit=limit))
    assert timed(lambda: graph.execute_many([{}] * 6, concurrency=6))[1] == 30
    assert limit.in_use == 0


def test_a_run_has_a_width():
    graph = linked(*(f"s {name}" for name in "abcd"), **{name: waiting(name, 10) for name in "abcd"})
    assert timed(lambda: graph.execute({}, max_concurrent=2))[1] == 20


@KINDS
def test_an_execution_has_a_timeout(kind):
    log = []
    nodes = {name: waiting(name, 100, kind=kind, log=log) for name in "ab"}

    async def main(given, **options):
        handle = given.submit({}, **options)
        with pytest.raises(NodeTimeoutError, match="'graph' took longer than its timeout of 7 s"):
            await handle
        ended = asyncio.get_running_loop().time()
        await asyncio.sleep(1)
        return ended

    graph = linked("s a", "s b", **nodes)
    assert timed(lambda: main(graph, timeout=7))[0] == 7
    own = Graph(timeout=7).add_node(nodes["a"], start=True, end=True)
    assert timed(lambda: main(own))[0] == 7
    assert {name for name, event, _ in log if event == "stopped"} == {"a", "b"}


def test_a_whole_execution_is_tried_again():
    attempts = []

    @node(start=True, end=True)
    async def a(state):
        state["n"] = state.get("n", 0) + 1
        attempts.append(state["n"])
        if len(attempts) < 3:
            raise ConnectionError
        return {}

    graph = Graph(retry=3).add_node(a)
    timed(lambda: graph.execute({}))
    assert attempts == [1, 1, 1]
    assert graph.get_state() == {"n": 1}


# Failures


@KINDS
@pytest.mark.parametrize("join", [True, False])
def test_the_first_failure_stops_the_others(kind, join):
    """They are cancelled, or told so, and awaited; the error is the node's own."""
    log = []
    branches = [waiting(name, 100, kind=kind, log=log) for name in "ac"]
    bad = waiting("bad", 2, kind=kind, log=log, error=Boom("no"))
    with takes(2.25 if kind == "sync" else 2), pytest.raises(Boom) as caught:
        forked(branches[0], bad, branches[1], join=join).invoke({})
    assert set(moments(log, "stopped")) == {"a", "c"}
    assert caught.value.__notes__[0].startswith("weft: raised by 'bad'()")


def test_what_has_not_begun_when_a_branch_fails_never_does():
    log = []
    branches = [waiting(name, 5, log=log) for name in "bcd"]
    bad = waiting("bad", 2, log=log, error=Boom("no"))
    with takes(2), pytest.raises(Boom):
        forked(bad, *branches, max_concurrent=2).invoke({})
    assert set(moments(log, "began")) == {"bad", "b"}


def test_a_sync_node_that_does_not_listen_is_given_up_after_the_grace():
    async def main():
        def deaf():
            sleep(50)
            return {}

        handle = linked("s a", "s b", a=deaf, b=waiting("b", 2, error=Boom("no"))).submit({})
        with pytest.raises(Boom):
            await handle
        ended = asyncio.get_running_loop().time()
        given_up = [body.step for body in handle.given_up]
        await asyncio.sleep(100)
        return ended, given_up

    assert run(main) == (3, ["a"])


# The options of forks


@pytest.mark.parametrize("options", [{}, {"max_concurrent": 1}])
def test_a_run_of_width_one_goes_through_graphs_in_graphs(options):
    """Whoever waits for what is in it computes nothing, and holds no place that it needs."""
    inner = forked(waiting("x", 1), waiting("y", 1))

    def calls():
        return inner.invoke({})

    async def awaits():
        return await inner.execute({})

    graph = Graph().add_node(nothing, name="s", start=True).add_node(inner, name="inner").add_node(calls)
    graph.add_node(awaits).add_node(nothing, name="end", end=True)
    graph.add_parallel("s", [inner, calls, awaits], **options).add_join([inner, calls, awaits], "end")
    found, seconds = timed(lambda: graph.execute({}, max_concurrent=1))
    assert found == {"x": True, "y": True}
    assert seconds == 6


@KINDS
def test_a_fork_has_a_width(kind):
    log = []
    seconds = {"a": 5, "b": 1, "c": 2, "d": 1}
    graph = forked(
        *(waiting(name, wait, kind=kind, log=log) for name, wait in seconds.items()), max_concurrent=2
    )
    with takes(5):
        assert graph.invoke({}) == dict.fromkeys("abcd", True)
    assert moments(log, "began") == {"a": 0, "b": 0, "c": 1, "d": 3}


def test_the_width_of_a_fork_counts_branches_with_all_that_is_in_them():
    log = []
    graph = linked(
        "s a a2",
        "s b b2",
        "s c c2",
        join="a2 b2 c2 > end",
        **{name: waiting(name, 1, log=log) for name in ("a", "a2", "b", "b2", "c", "c2", "end")},
    )
    graph.add_parallel("s", ["a", "b", "c"], max_concurrent=1)
    assert timed(lambda: graph.execute({}))[1] == 7
    assert moments(log, "began") == {"a": 0, "a2": 1, "b": 2, "b2": 3, "c": 4, "c2": 5, "end": 6}


@KINDS
def test_a_fork_has_a_timeout(kind):
    log = []
    branches = [waiting(name, wait, kind=kind, log=log) for name, wait in {"a": 1, "b": 50, "c": 60}.items()]

    async def main():
        handle = forked(*branches, timeout=5).submit({})
        with pytest.raises(ParallelTimeoutError) as caught:
            await handle
        ended = asyncio.get_running_loop().time()
        await asyncio.sleep(2)
        return caught.value, ended

    (error, ended), _ = timed(main)
    assert 5 <= ended <= 6
    assert error.unfinished == ("b", "c")
    assert "the fork behind start" in str(error)
    assert set(moments(log, "stopped")) == {"b", "c"}


def test_branches_that_have_not_begun_when_time_is_up_never_do():
    log = []
    graph = forked(waiting("a", 50, log=log), waiting("b", 1, log=log), max_concurrent=1, timeout=5)
    with takes(5), pytest.raises(ParallelTimeoutError) as caught:
        graph.invoke({})
    assert caught.value.unfinished == ("a",)  # as in a block: what had begun
    assert moments(log, "began") == {"a": 0}


def test_the_timeout_of_a_fork_ends_at_its_join():
    graph = linked(
        "s a",
        "s b",
        "end late",
        join="a b > end",
        a=waiting("a", 1),
        b=waiting("b", 2),
        late=waiting("late", 50),
    )
    graph.add_parallel("s", ["a", "b"], timeout=5)
    assert timed(lambda: graph.execute({}))[1] == 52


@KINDS
def test_collected_failures_come_to_the_join(kind):
    log = []
    bad = waiting("bad", 1, kind=kind, error=Boom("no"), log=log)
    graph = forked(bad, waiting("good", 2, kind=kind, log=log), on_error="collect")
    with takes(2):
        found = graph.invoke({})
    assert found["good"] is True
    assert isinstance(found["bad"], Failed)
    assert isinstance(found["bad"].error, Boom)
    assert any("'bad'()" in note for note in found["bad"].error.__notes__)


def test_what_a_failing_node_did_to_the_state_is_undone():
    @node
    async def bad(state):
        state["bad"] = 1
        state["list"].append("bad")
        raise Boom("no")

    @node
    async def good(state):
        state["list"].append("good")
        return {}

    graph = forked(bad, good, on_error="collect").set_state({"list": []})
    found, _ = timed(lambda: graph.execute({}))
    assert isinstance(found["bad"], Failed)
    assert graph.get_state() == {"list": ["good"]}


def test_a_branch_is_called_by_its_first_node_and_what_it_did_before_it_failed_is_gone():
    @node
    async def first(state):
        state["first"] = 1
        return {"half": 1}

    graph = linked(
        "s first second",
        "s other",
        join="second other > end",
        first=first,
        second=waiting("x", 1, error=Boom("no")),
    )
    graph.add_parallel("s", ["first", "other"], on_error="collect")
    found, _ = timed(lambda: graph.execute({}))
    assert isinstance(found["first"], Failed)
    assert set(found) == {"first"}
    assert graph.get_state() == {}


@KINDS
def test_more_failures_than_are_tolerated_fail_the_graph(kind):
    log = []
    bad = [waiting(f"bad{n}", n, kind=kind, log=log, error=Boom(f"no {n}")) for n in (1, 2, 3)]
    good = waiting("good", 100, kind=kind, log=log)
    with takes(2.0 if kind == "async" else 2.25), pytest.raises(ParallelExecutionError) as caught:
        forked(good, *bad, on_error=tolerate(count=1)).invoke({})
    assert caught.value.branches == ("bad1", "bad2")
    assert "start" in str(caught.value)
    assert set(moments(log, "stopped")) == {"good", "bad3"}
    found, _ = timed(lambda: forked(bad[0], on_error=tolerate(count=1), join=True).execute({}))
    assert isinstance(found["bad1"], Failed)


@KINDS
@pytest.mark.parametrize("options", [{"need": 2}, {"on_error": "race"}], ids=["need", "race"])
def test_what_is_not_needed_any_more_is_stopped(kind, options):
    log = []
    seconds = {"a": 100, "b": 3, "c": 1, "d": 100}
    graph = forked(*(waiting(name, wait, kind=kind, log=log) for name, wait in seconds.items()), **options)
    first = 1 if "on_error" in options else 3
    with nothing_left(), virtual_clock() as clock:
        found = graph.invoke({})
        assert first <= clock.now <= first + 1
    assert found == ({"c": True} if first == 1 else {"b": True, "c": True})
    assert {"a", "d"} <= set(moments(log, "stopped"))


def test_a_race_that_nobody_wins():
    bad = [waiting(f"bad{n}", n, error=Boom(f"no {n}")) for n in (2, 1)]
    with takes(2), pytest.raises(ParallelExecutionError) as caught:
        forked(*bad, on_error="race").invoke({})
    assert caught.value.branches == ("bad2", "bad1")


def test_more_branches_needed_than_there_are():
    with pytest.raises(weft.WeftError) as caught:
        within(5, lambda: forked(waiting("a", 0), waiting("b", 0), need=3).invoke({}))
    assert "3" in str(caught.value)
    assert "2" in str(caught.value)
    assert "start" in str(caught.value)


def test_a_router_has_the_options_of_a_fork():
    log = []

    @router
    async def chooser():
        return {"choices": ["a", "b", "c"]}

    graph = (
        Graph()
        .add_node(nothing, name="s", start=True)
        .add_node(chooser)
        .add_node(nothing, name="end", end=True)
    )
    for name in "abcd":
        graph.add_node(waiting(name, 1, log=log, error=Boom("no") if name == "b" else None))
    graph.add_router(["s"], chooser, list("abcd"), max_concurrent=1, on_error="collect")
    graph.add_join(list("abcd"), "end")
    found, seconds = timed(lambda: graph.execute({}))
    assert seconds == 3
    assert moments(log, "began") == {"a": 0, "b": 1, "c": 2}
    assert isinstance(found["b"], Failed)


def test_forks_in_forks_have_options_of_their_own():
    log = []
    graph = linked(
        "s fork",
        "s other",
        "fork a",
        "fork b",
        join="a b other > end",
        a=waiting("a", 1, error=Boom("no"), log=log),
        b=waiting("b", 100, log=log),
        other=waiting("other", 5, log=log),
    )
    graph.add_parallel("s", ["fork", "other"], on_error="collect")
    found, seconds = timed(lambda: graph.execute({}))
    assert seconds == 5  # the inner fork failed as a whole, at once; the outer one goes on
    assert moments(log, "stopped") == {"b": 1}
    assert isinstance(found["fork"], Failed)
    assert isinstance(found["fork"].error, Boom)
    assert found["other"] is True


def test_a_graph_is_a_branch_of_a_block_that_stops_it():
    log = []
    graph = linked("s a", "s b", a=waiting("a", 100, log=log), b=waiting("b", 100, log=log))
    block = parallel(graph, waiting_step(2), timeout=5, name="block")

    async def main():
        with pytest.raises(ParallelTimeoutError) as caught:
            await block.ainvoke({})
        return caught.value.unfinished

    assert timed(main) == (("graph",), 5)
    assert moments(log, "stopped") == {"a": 5, "b": 5}


def waiting_step(seconds):
    @node("other")
    async def body(value):
        await asyncio.sleep(seconds)

    return body


# Interrupts of the user


def test_an_interrupted_execute_leaves_nothing():
    async def main():
        log = []
        graph = linked("s a", "s b", a=waiting("a", 100, log=log), b=waiting("b", 100, log=log))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await graph.execute({})
        return moments(log, "stopped")

    assert timed(main) == ({"a": 3, "b": 3}, 3)


def test_real_threads_are_all_back_when_a_graph_has_failed():
    began = threading.Barrier(4, timeout=10)

    def holds():
        began.wait()
        while not weft.cancelled():
            time.sleep(0.001)
        return {}

    def fails():
        began.wait()
        raise Boom("no")

    graph = linked("s a", "s b", "s c", "s bad", a=holds, b=holds, c=holds, bad=fails)
    with nothing_left(), pytest.raises(Boom):
        within(10, lambda: graph.invoke({}))
