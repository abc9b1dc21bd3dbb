"""The spans of a run are its calls: the same tree, ended, with the right one current in every body."""

import asyncio
import subprocess
import sys
import threading
import time
from collections import Counter
from contextvars import Context, ContextVar, copy_context

import nesting
import pytest
from killing import seeded
from leftovers import nothing_left
from nesting import ASYNC_ENTRIES, SYNC_ENTRIES, drawn, replace, told
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, StatusCode

import weft
from weft import (
    AsyncFlow,
    AsyncParallelBatchNode,
    CachePolicy,
    Flow,
    Graph,
    InMemoryCache,
    InMemorySaver,
    InputError,
    Limit,
    Node,
    NodeTimeoutError,
    ParallelExecutionError,
    RetryPolicy,
    Sequence,
    entrypoint,
    node,
    parallel,
    task,
)
from weft.engine import events
from weft.engine.audience import Audience
from weft.engine.call import Call
from weft.engine.context import current
from weft.engine.recorder import answer_record, load_run
from weft.observe.otel import Tracing
from weft.testing import run as run_virtual
from weft.testing import sleep, virtual_clock

AT_ONCE = RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False)


class Spans(SpanProcessor):
    """All spans of one provider."""

    def __init__(self):
        self.begun = []
        self.ended = []

    def on_start(self, span, parent_context=None):
        self.begun.append(span)

    def on_end(self, span):
        self.ended.append(span)

    def named(self, name):
        [found] = self.all_named(name)
        return found

    def all_named(self, name):
        return [span for span in self.ended if span.name == name]

    def below(self, parent=None):
        """The spans below one, as nested lists of names in the order of their beginning."""
        inside = [span for span in self.ended if id_of(span.parent) == id_of(parent and parent.context)]
        inside.sort(key=lambda span: (span.start_time, span.name))
        return [[span.name, *self.below(span)] for span in inside]


def id_of(context):
    return context and context.span_id


def event_names(span):
    return [event.name for event in span.events]


def event_of(span, name):
    [found] = [event for event in span.events if event.name == name]
    return dict(found.attributes)


class Setup:
    def __init__(self, **options):
        self.spans = Spans()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(self.spans)
        self.own = self.provider.get_tracer("of the user").start_as_current_span
        self.tracing = Tracing(self.provider, **options)
        self.observers = [self.tracing]


@pytest.fixture
def setup():
    made = Setup()
    yield made
    assert not made.tracing._traces, "every run is forgotten when it has ended"
    assert len(made.spans.begun) == len(made.spans.ended), "every span is ended"
    assert trace.get_current_span() is trace.INVALID_SPAN


# The tree


class Watcher:
    """What the spans of each life must be, by the tree of calls as the engine has it, and whether they are."""

    def __init__(self, world):
        self.world = world
        self.setup = Setup()
        self.begin()

    def begin(self):
        self.parents = {}  # by call, the nearest one above that is told of
        self.with_span = set()
        self.root = ""
        self.counts = Counter()

    def __call__(self, event):
        if isinstance(event, events.CallAsked):
            self.asked(event)
        elif isinstance(event, events.CallStarted | events.CallQueued):
            self.root = self.root if event.parent_id else event.call_id
            self.with_span.add(event.call_id)
        elif isinstance(event, events.CallFinished) and not (event.recorded or event.cached):
            # One that was asked for by a body that is being stopped ends without having been told of.
            self.with_span |= {event.call_id} & self.parents.keys()
        elif isinstance(event, events.CallMismatch):
            self.with_span.add(event.call_id)

    def asked(self, event):
        call = current.get()
        assert call.id == event.call_id
        above = call.parent
        while above.id not in self.parents and above.parent is not None:
            above = above.parent
        self.parents[event.call_id] = above.id
        if event.parent_id in self.parents:
            assert above.id == event.parent_id

    def in_body(self):
        """Called by each body: the current span is that of its call, or, in a hook, of the nearest told of."""
        call, span = current.get(), trace.get_current_span()
        while call.id not in self.parents and call.parent is not None:
            call = call.parent
        mine = dict(span.attributes).get("weft.call.id")
        if "weft.attempt" in span.attributes:
            mine = self.spans_by_id[span.parent.span_id].attributes["weft.call.id"]
        if call.parent is not None and mine != call.id:
            self.world.problem(f"{call.id} runs in the span of {mine}, {span.name}")
        with self.setup.own("own", attributes={"mine": call.id}):
            pass

    @property
    def spans_by_id(self):
        return {span.context.span_id: span for span in self.setup.spans.begun}

    def check(self):
        """After a life."""
        spans, problem = self.setup.spans, self.world.problem
        if len(spans.begun) != len(spans.ended):
            problem(f"not ended: {[s.name for s in spans.begun if s.end_time is None]}")
        if self.setup.tracing._traces:
            problem("the run is not forgotten")
        by_id = self.spans_by_id
        found = Counter()
        for span in spans.ended:
            if (mine := span.attributes.get("weft.call.id")) is None:
                self.check_other(span, by_id)
                continue
            found[mine] += 1
            above = self.call_above(span, by_id)
            wanted = self.parents.get(mine)
            if above != wanted:
                problem(f"{mine} ({span.name}) is below {above}, not {wanted}")
        if found != Counter(self.with_span):
            more, less = found - Counter(self.with_span), Counter(self.with_span) - found
            problem(f"spans too many: {more}; too few: {less}")
        spans.begun.clear()
        spans.ended.clear()
        total, self.counts = (
            self.counts + Counter(spans=len(found), recorded=len(self.parents) - len(found)),
            None,
        )
        self.begin()
        return total

    def check_other(self, span, by_id):
        """An attempt, a span of a body's own, or a run that was not even begun."""
        if span.parent is None:
            assert "weft.run.id" in span.attributes
            return
        above = by_id[span.parent.span_id].attributes
        if "mine" in span.attributes:
            self.counts["own"] += 1
            if "weft.attempt" in above:
                above = by_id[by_id[span.parent.span_id].parent.span_id].attributes
            if above["weft.call.id"] != span.attributes["mine"]:
                self.world.problem(f"a span of {span.attributes['mine']} is below {above}")
        else:
            assert "weft.attempt" in span.attributes
            assert above["weft.step"] == span.attributes["weft.step"]
            self.counts["attempts"] += 1

    def call_above(self, span, by_id):
        while span.parent is not None:
            inner, span = span, by_id[span.parent.span_id]
            if inner.start_time < span.start_time or inner.end_time > span.end_time:
                self.world.problem(f"{inner.name} does not lie within {span.name}")
            if "weft.call.id" in span.attributes:
                return span.attributes["weft.call.id"]
        return None


@pytest.fixture
def watchers(monkeypatch):
    """Every life of the stories of this test is watched."""
    found, total = {}, Counter()

    def watched(world):
        if id(world) not in found:
            found.clear()
            found[id(world)] = Watcher(world)
        return found[id(world)]

    worlds = []
    begins, once = nesting.World.begins, nesting.Story.once

    def begin(world, name):
        watched(world).in_body()
        return begins(world, name)

    class Life(nesting.Life):
        def __init__(self, workflow, given, options, *rest):
            watcher = watched(worlds[-1])
            super().__init__(
                workflow, given, {**options, "observers": [watcher.setup.tracing, watcher]}, *rest
            )

    def live_once(story, *args, **options):
        worlds.append(story.world)
        try:
            return once(story, *args, **options)
        finally:
            total.update(watched(story.world).check())
            total["lives"] += 1

    monkeypatch.setattr(nesting.World, "begins", begin)
    monkeypatch.setattr(nesting.Story, "once", live_once)
    monkeypatch.setattr(nesting, "Life", Life)
    return total


@pytest.mark.parametrize(("store", "count"), [("", 150), ("memory", 80)])
def test_the_spans_of_a_nesting_are_its_calls(store, count, watchers):
    """All styles in each other, async and sync; with a journal killed, cancelled and resumed, questions answered."""
    rng = seeded(f"spans of nestings, {store or 'no journal'}")
    with nothing_left():
        for _ in range(count):
            seed = rng.randrange(2**32)
            problems, _story = told(drawn(seed, store=store))
            assert not problems, f"nesting {seed}: {problems[:5]}"
    print(watchers)
    assert watchers["spans"] > 10 * count
    assert watchers["own"] > count
    assert watchers["attempts"]
    assert watchers["recorded"] or not store


@pytest.mark.parametrize("entries", [ASYNC_ENTRIES, SYNC_ENTRIES], ids=["async", "sync"])
def test_the_spans_of_a_nesting_in_real_time(entries, watchers):
    """Threads that really meet, and the thread of the caller."""
    rng = seeded("spans of nestings in real time")
    for number in range(40):
        seed = rng.randrange(2**32)
        plan = drawn(seed, store=rng.choice(["", "memory"]))
        if any(plan.cancels):
            continue
        problems, _story = told(replace(plan, entry=entries[number % len(entries)]), unit=0.0)
        assert not problems, f"nesting {seed}, number {number}: {problems[:5]}"
    assert watchers["own"]


# Each style once, to be read

add = node("add")(lambda x: x + 1)


@node
async def double(x):
    return x * 2


def test_compose(setup):
    workflow = Sequence(add, parallel(double, Sequence(add, double, name="both")), name="workflow")
    with setup.own("request"):
        workflow.invoke(1, observers=setup.observers)
    [[name, *below]] = setup.spans.below()
    assert name == "request"
    [[name, first, [block, *branches]]] = below
    assert (name, first, block) == ("workflow", ["add"], "parallel")
    assert sorted(branches) == [["both", ["add"], ["double"]], ["double"]]


def test_functional(setup):
    @task
    def inner(x):
        with setup.own("query"):
            return x

    @task
    async def outer(x):
        with setup.own("phase"):
            return await inner(x)

    @entrypoint()
    async def workflow(x):
        return await outer(x)

    assert asyncio.run(workflow.ainvoke(1, observers=setup.observers)) == 1
    assert setup.spans.below() == [["workflow", ["outer", ["phase", ["inner", ["query"]]]]]]


def test_graph(setup):
    @node(start=True)
    async def begin(input: dict):
        return {"n": 1}

    @node
    def left(n: int):
        with setup.own("in left"):
            return {"left": n}

    @node
    async def right(n: int):
        return {"right": n}

    @node(end=True)
    async def end(left: int, right: int):
        return {"sum": left + right}

    graph = Graph().add_node(begin).add_node(left).add_node(right).add_node(end)
    graph.add_parallel(begin, [left, right])
    graph.add_join([left, right], end)
    found = asyncio.run(graph.execute({"input": {}}, observers=setup.observers))
    assert found["sum"] == 2
    [[_, first, *branches, last]] = setup.spans.below()
    assert (first, last) == (["begin"], ["end"])
    assert sorted(branches) == [["left", ["in left"]], ["right"]]


def test_batch(setup):
    class Load(Node):
        def exec(self, given):
            with setup.own("read"):
                return given

        def post(self, shared, given, found):
            shared["items"] = [1, 2]

    class Work(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return shared["items"]

        async def exec_async(self, item):
            with setup.own("request"):
                return item

    load = Load()
    load >> Work()
    asyncio.run(AsyncFlow(start=load).run_async({}, observers=setup.observers))
    [[flow, *_]] = setup.spans.below()
    assert flow == "AsyncFlow"
    requests = setup.spans.all_named("request")
    by_id = {span.context.span_id: span for span in setup.spans.ended}
    items = [by_id[span.parent.span_id] for span in [*requests, setup.spans.named("read")]]
    assert len({span.context.span_id for span in items}) == 3
    assert all(span.attributes["weft.call.id"] for span in items)


def test_map(setup):
    found = weft.map(add, range(3), observers=setup.observers)
    assert found == [1, 2, 3]
    assert setup.spans.below() == [["map(add)", ["add"], ["add"], ["add"]]]
    [name] = {span.attributes.get("code.function.name") for span in setup.spans.all_named("add")}
    assert name == f"{__name__}.<lambda>"
    assert "code.function.name" not in setup.spans.named("map(add)").attributes, "it is none of the user's"
    assert {span.kind for span in setup.spans.ended} == {SpanKind.INTERNAL}


VERBS = {
    "invoke": lambda w, **options: w.invoke(1, **options),
    "call": lambda w, **options: w(1, **options),
    "stream": lambda w, **options: [*w.stream(1, **options)],
    "submit": lambda w, **options: w.submit(1, **options).result(5),
    "map": lambda w, **options: w.map([1], **options),
    "ainvoke": lambda w, **options: asyncio.run(w.ainvoke(1, **options)),
    "amap": lambda w, **options: asyncio.run(w.amap([1], **options)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_observers(verb, setup):
    VERBS[verb](Sequence(add, double, name="w"), observers=setup.observers)
    assert len(setup.spans.all_named("add")) == 1


def test_a_flow_that_is_run_takes_observers(setup):
    Flow(start=Node()).run({}, observers=setup.observers)
    assert setup.spans.ended


# Context


mine = ContextVar("mine", default="unset")


@pytest.mark.parametrize("is_async", [True, False])
def test_a_body_sees_what_was_set_before_and_nothing_leaks(is_async, setup):
    seen = []

    def look(x):
        seen.append((mine.get(), trace.get_current_span().name))
        mine.set("from inside")
        return x

    async def alook(x):
        return look(x)

    body = task(alook if is_async else look)

    @entrypoint()
    async def workflow(x):
        await asyncio.gather(body(1), body(2))
        outside.append((mine.get(), trace.get_current_span().name))

    outside = []
    mine.set("from outside")
    try:
        with setup.own("request"):
            before = trace.get_current_span()
            workflow.invoke(1, observers=setup.observers)
            assert trace.get_current_span() is before
            asyncio.run(workflow.ainvoke(1, observers=setup.observers))
            assert trace.get_current_span() is before
        assert mine.get() == "from outside"
    finally:
        mine.set("unset")
    name = "alook" if is_async else "look"
    assert seen == [("from outside", name)] * 4
    assert outside == [("from outside", "workflow")] * 2
    assert setup.spans.below() == [["request", *[["workflow", [name], [name]]] * 2]]


def test_what_an_observer_sets_the_body_sees_and_what_it_asks_for():
    """The rule that tracing is made of, for every observer."""
    seen = []

    @task
    async def inner(x):
        seen.append(("inner", mine.get()))

    @task
    def outer(x):
        seen.append(("outer", mine.get()))
        inner(x).result()

    @entrypoint()
    def workflow(x):
        seen.append(("workflow", mine.get()))
        outer(x).result()

    def observer(event):
        if isinstance(event, events.RunStarted):
            mine.set("run")
        if isinstance(event, events.CallStarted) and event.step != "inner":
            mine.set(f"{mine.get()} {weft.call_id().count('/')}")

    Context().run(workflow.invoke, 1, observers=[observer])
    assert seen == [("workflow", "run 0"), ("outer", "run 0 1"), ("inner", "run 0 1")]
    assert mine.get() == "unset"


def test_an_attempt_does_not_see_what_another_has_set(setup):
    seen = []

    @task(retry_policy=AT_ONCE)
    async def flaky(x):
        seen.append((mine.get(), trace.get_current_span().attributes["weft.attempt"]))
        mine.set("from an attempt")
        if len(seen) < 3:
            raise ConnectionError

    @entrypoint()
    async def workflow(x):
        await flaky(x)

    workflow.invoke(1, observers=setup.observers)
    assert seen == [("unset", 1), ("unset", 2), ("unset", 3)]


@pytest.mark.parametrize("is_traced", [True, False])
def test_what_a_sync_body_returns_to_await_runs_in_the_context_of_that_body(is_traced, setup):
    """Also where many come from their threads at the same moment."""

    async def later(x):
        with setup.own("later"):
            return mine.get()

    @task
    def sync(x):
        mine.set(x)
        return later(x)

    @entrypoint()
    async def workflow(n):
        return await asyncio.gather(*[sync(i) for i in range(n)])

    options = {"observers": setup.observers} if is_traced else {}
    assert workflow.invoke(50, **options) == [*range(50)]
    if is_traced:
        [[_, *below]] = setup.spans.below()
        assert below == [["sync", ["later"]]] * 50


def test_a_body_that_goes_on_at_an_answer_has_its_own_context(setup):
    """Not that of who has answered."""
    seen = []

    @task
    async def ask(x):
        seen.append((mine.get(), trace.get_current_span().name))
        return weft.interrupt("really?")

    @task
    async def other(x):
        while len(seen) < 2:
            await asyncio.sleep(0.001)

    @entrypoint(checkpointer=InMemorySaver())
    async def workflow(x):
        mine.set("from the workflow")
        found, _ = await asyncio.gather(ask(x), other(x))
        return found

    run = workflow.submit(1, run_id="r", observers=setup.observers)
    while not run.questions:
        time.sleep(0.001)

    def answer():
        mine.set("from who answers")
        run.answer({run.questions[0].id: "yes"})

    copy_context().run(answer)
    assert run.result(5) == "yes"
    assert seen == [("from the workflow", "ask")] * 2
    assert event_names(setup.spans.named("ask")) == ["weft.question", "weft.question.answered"]


def test_so_it_has_in_a_run_without_observers():
    """There the answer comes through the store."""
    seen, answered = [], threading.Event()
    saver = InMemorySaver()

    @task
    async def ask(x):
        seen.append(mine.get())
        return weft.interrupt("really?")

    @task
    def other(x):
        mine.set("from another body")
        answered.wait(5)

    @entrypoint(checkpointer=saver)
    async def workflow(x):
        mine.set("from the workflow")
        asked = ask(x)
        await other(x)
        return await asked

    def answer():
        while not (asked := saver.find("r") and load_run(saver, "r").open_questions):
            time.sleep(0.001)
        [question] = asked
        saver.add_answers("r", [answer_record(question, saver.codec.encode("yes"))])
        answered.set()

    thread = threading.Thread(target=answer)
    thread.start()
    assert Context().run(workflow.invoke, 1, run_id="r") == "yes"
    thread.join()
    assert seen == ["from the workflow"] * 2


@pytest.mark.parametrize("is_traced", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_source_is_read_in_the_call_of_who_has_asked(is_async, is_traced, setup):
    """And in the span of the block that reads it."""
    seen = []

    def source():
        seen.append((weft.call_id(), trace.get_current_span()))
        yield 1

    @entrypoint()
    def workflow(x):
        weft.map(add, source())
        return weft.call_id()

    @entrypoint()
    async def aworkflow(x):
        await weft.amap(add, source())
        return weft.call_id()

    found = (aworkflow if is_async else workflow).invoke(1, observers=setup.observers if is_traced else [])
    [(asker, span)] = seen
    assert asker == found
    if is_traced and is_async:
        assert span.name == "map(add)"


def test_runs_at_the_same_time_share_one_observer(setup):
    @node
    async def slow(x):
        await asyncio.sleep(0.001)
        return x

    async def one(number):
        with setup.own(f"request {number}"):
            await Sequence(add, slow, name="w").ainvoke(number, observers=setup.observers)

    async def main():
        await asyncio.gather(*[one(i) for i in range(20)])

    asyncio.run(main())
    tree = setup.spans.below()
    assert sorted(tree) == sorted([[f"request {i}", ["w", ["add"], ["slow"]]] for i in range(20)])
    assert len({span.context.trace_id for span in setup.spans.ended}) == 20


def test_without_tracing_there_are_no_spans_and_no_call_pays_for_any(setup, monkeypatch):
    def told(*args):
        raise AssertionError("nobody has asked for it")

    monkeypatch.setattr(Audience, "__init__", told)
    monkeypatch.setattr(Call, "_keep_context", told)  # a copy for each call

    @entrypoint()
    async def workflow(x):
        return await asyncio.gather(work(x), work(x))

    work = task(lambda x: x)
    assert workflow.invoke(1) == [1, 1]
    assert asyncio.run(parallel(add, double).ainvoke(1)) == {"add": 2, "double": 2}
    assert not setup.spans.begun


# How calls end


def test_retries(setup):
    tries = []

    @node(retry=AT_ONCE)
    def flaky(x):
        with setup.own("in flaky"):
            tries.append(x)
            if len(tries) < 3:
                raise ConnectionError(f"no {len(tries)}")
            return x

    Sequence(flaky, name="w").invoke(1, observers=setup.observers)
    attempt = ["flaky attempt", ["in flaky"]]
    assert setup.spans.below() == [["w", ["flaky", attempt, attempt, attempt]]]
    call = setup.spans.named("flaky")
    assert (call.status.status_code, call.attributes["weft.attempts"]) == (StatusCode.UNSET, 3)
    retries = [dict(event.attributes) for event in call.events]
    assert [(found["weft.attempt"], found["error.type"]) for found in retries] == [
        (1, "ConnectionError"),
        (2, "ConnectionError"),
    ]
    assert all(found["weft.retry.delay"] > 0 for found in retries)
    attempts = setup.spans.all_named("flaky attempt")
    assert [span.attributes["weft.attempt"] for span in attempts] == [1, 2, 3]
    assert [span.attributes["weft.outcome"] for span in attempts] == ["failed", "failed", "ok"]
    assert [event_names(span) for span in attempts] == [["exception"], ["exception"], []]


def test_a_block_that_is_tried_again_has_attempts_with_its_branches(setup):
    tries = []

    @node
    async def flaky(x):
        tries.append(x)
        if len(tries) == 1:
            raise ConnectionError

    block = parallel(
        flaky,
        add,
        name="block",
        retry=RetryPolicy(max_attempts=2, initial_interval=0.001, jitter=False, retry_on=Exception),
    )
    Sequence(block, name="w").invoke(1, observers=setup.observers)
    [[_, [name, first, second]]] = setup.spans.below()
    assert (name, first[0], second[0]) == ("block", "block attempt", "block attempt")
    assert sorted(second[1:]) == [["add"], ["flaky"]]
    last = setup.spans.all_named("block attempt")[1]
    assert len(last.links) == 2, "those of the attempt before did not come to it"


def test_a_failure_is_said_where_it_was_raised_and_on_the_run(setup):
    given = ("alice", 471147114711)

    @task
    def bad(user, number):
        raise ValueError("it is broken")

    @task
    async def middle(x):
        return await bad(*given)  # not written here, as tracebacks show source lines

    @entrypoint()
    async def workflow(x):
        return await middle(x)

    with pytest.raises(ValueError, match="broken") as caught:
        workflow.invoke("the input", observers=setup.observers)
    assert any("alice" in note for note in caught.value.__notes__)
    for name in ("bad", "middle", "workflow"):
        span = setup.spans.named(name)
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "ValueError: it is broken"
        assert span.attributes["error.type"] == "ValueError"
        assert span.attributes["weft.outcome"] == "failed"
    assert event_names(setup.spans.named("middle")) == []
    for name in ("bad", "workflow"):
        found = event_of(setup.spans.named(name), "exception")
        assert (found["exception.type"], found["exception.message"]) == ("ValueError", "it is broken")
        assert 'raise ValueError("it is broken")' in found["exception.stacktrace"]
    said = repr([(span.to_json(), span.attributes) for span in setup.spans.ended])
    for value in ("alice", "471147114711", "the input"):
        assert value not in said
    assert setup.spans.named("workflow").attributes["weft.run.status"] == "failed"


def test_values_are_put_in_when_asked_but_no_secrets():
    setup = Setup(values=True)

    @task
    def login(user, api_key):
        return {"user": user, "token": "hush-hush"}

    @entrypoint()
    async def workflow(x):
        await login("alice", api_key="hush-hush")

    workflow.invoke("the input", observers=setup.observers)
    span = setup.spans.named("login")
    assert span.attributes["weft.arguments"] == "('alice', api_key=***)"
    assert span.attributes["weft.result"] == "{'user': 'alice', 'token': ***}"
    assert setup.spans.named("workflow").attributes["weft.arguments"] == "('the input')"
    assert "hush" not in repr([span.to_json() for span in setup.spans.ended])


class Rude(Exception):
    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


def test_what_refuses_to_be_shown_harms_nothing():
    setup = Setup(values=True)

    class Value:
        def __repr__(self):
            raise RuntimeError("no")

    @task
    async def bad(value):
        raise Rude

    @entrypoint()
    async def workflow(x):
        try:
            await bad(Value())
        except Rude:
            return Value()

    workflow.invoke(1, observers=setup.observers)
    span = setup.spans.named("bad")
    assert span.attributes["error.type"].endswith("Rude")
    assert span.status.status_code is StatusCode.ERROR
    assert len(setup.spans.ended) == 2


def test_timeouts_on_the_loop_and_in_a_thread(setup):
    @node(timeout=0.02)
    async def slow(x):
        await asyncio.sleep(10)

    release = threading.Event()

    @node(timeout=0.02)
    def stuck(x):
        with setup.own("in stuck"):
            release.wait(10)

    with pytest.raises(NodeTimeoutError):
        slow.invoke(1, observers=setup.observers)
    with pytest.raises(NodeTimeoutError):
        Sequence(stuck, name="w").invoke(1, observers=setup.observers)
    assert setup.spans.named("slow").attributes["weft.run.status"] == "failed"
    span = setup.spans.named("stuck")
    assert span.attributes["weft.outcome"] == "timed_out"
    assert span.attributes["error.type"] == "weft.errors.NodeTimeoutError"
    assert event_names(span) == ["weft.given_up", "exception"]
    release.set()  # a span of a body that was given up ends when that does, below its call's
    while not setup.spans.all_named("in stuck"):
        time.sleep(0.001)
    assert id_of(setup.spans.named("in stuck").parent) == id_of(span.context)


def test_cancellation_is_no_error(setup):
    begun = threading.Event()

    @node
    async def slow(x):
        begun.set()
        await asyncio.sleep(10)

    @node
    async def bad(x):
        await asyncio.sleep(0.01)
        raise ValueError

    run = Sequence(slow, name="w").submit(1, observers=setup.observers)
    begun.wait(5)
    run.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        run.result(5)
    for name in ("slow", "w"):
        assert setup.spans.named(name).attributes["weft.outcome"] == "cancelled"
        assert setup.spans.named(name).status.status_code is StatusCode.UNSET
    assert setup.spans.named("slow").attributes["weft.reason"] == "enough"
    setup.spans.begun.clear()
    setup.spans.ended.clear()
    with pytest.raises(ParallelExecutionError):
        parallel(slow, bad, name="block").invoke(1, observers=setup.observers)
    assert setup.spans.named("slow").attributes["weft.outcome"] == "cancelled"
    assert setup.spans.named("bad").attributes["weft.outcome"] == "failed"


# What else is said


def test_waiting_for_a_limit_is_an_event_and_how_long_that_was(setup):
    limit = Limit("provider", concurrent=1)

    @node(limit=limit)
    def call(x):
        sleep(3)

    with virtual_clock():
        weft.map(call, [1, 2], max_concurrent=2, observers=setup.observers)
    first, second = sorted(setup.spans.all_named("call"), key=lambda span: span.end_time)
    assert (event_names(first), first.end_time - first.start_time) == ([], 3 * 10**9)
    assert event_names(second) == ["weft.limits.queued", "weft.limits.granted"]
    assert event_of(second, "weft.limits.queued") == {"weft.limits": ("provider",)}
    assert event_of(second, "weft.limits.granted")["weft.limits.waited"] == pytest.approx(3)
    assert second.attributes["weft.limits.waited"] == pytest.approx(3)
    assert second.end_time - second.start_time == pytest.approx(6e9)


def test_an_attempt_that_did_not_wait_says_nothing_of_limits(setup):
    limit = Limit("provider", concurrent=1)
    tries = []

    @node(limit=limit, retry=RetryPolicy(max_attempts=2, initial_interval=5, jitter=False))
    def call(x):
        sleep(3)
        tries.append(x)
        if tries == [1, 2]:
            raise ConnectionError

    with virtual_clock():
        weft.map(call, [1, 2], max_concurrent=2, observers=setup.observers)
    _, second = sorted(setup.spans.all_named("call"), key=lambda span: span.end_time)
    assert event_names(second) == ["weft.limits.queued", "weft.limits.granted", "weft.retry"]
    assert second.attributes["weft.limits.waited"] == pytest.approx(3)


def test_a_block_says_what_it_decided_and_links_the_branches_that_came(setup):
    @node
    async def quick(x):
        return x

    @node
    async def bad(x):
        raise ValueError

    @node
    async def slow(x):
        await asyncio.sleep(10)

    block = parallel(quick, bad, slow, on_error="race", name="block", max_concurrent=3)
    block.invoke(1, observers=setup.observers)
    span = setup.spans.named("block")
    came = {id_of(link.context): link.attributes["weft.outcome"] for link in span.links}
    ids = {id_of(found.context): found for found in setup.spans.ended}
    assert {ids[each].name for each in came} <= {"quick", "bad"}
    assert came[id_of(setup.spans.named("quick").context)] == "ok"
    assert span.attributes["weft.block.width"] == 3
    assert (span.attributes["weft.block.ok"], span.attributes["weft.block.total"]) == (1, 3)
    assert event_of(span, "weft.block.decided")["weft.reason"]


def test_a_join_links_the_last_calls_of_its_branches(setup):
    @weft.node(start=True)
    async def fork(n):
        return {"n": n}

    @weft.node
    async def short(n):
        return {"a": n}

    @weft.node
    async def first(n):
        return {"b": n}

    @weft.node
    async def last(b):
        return {"c": b}

    @weft.node(end=True)
    async def meet(a, c):
        return {"sum": a + c}

    graph = weft.Graph()
    for each in (fork, short, first, last, meet):
        graph.add_node(each)
    graph.add_parallel(fork, [short, first])
    graph.add_edge(first, last)
    graph.add_join([short, last], meet)
    assert graph.invoke({"n": 2}, observers=setup.observers)["sum"] == 4
    named = setup.spans.named
    assert {id_of(link.context) for link in named("meet").links} == {
        id_of(named(name).context) for name in ("short", "last")
    }
    assert not any(named(name).links for name in ("fork", "short", "first", "last"))


def test_a_block_of_many_keeps_few_links(setup):
    weft.map(double, range(1000), observers=setup.observers)
    span = setup.spans.named("map(double)")
    assert len(span.links) == 128
    assert (span.dropped_links, span.attributes["weft.block.ok"]) == (0, 1000)


def test_what_is_recorded_gets_an_event_and_no_span(setup):
    tries = []

    @task
    async def first(x):
        return x

    @task
    async def second(x):
        tries.append(x)
        if len(tries) == 1:
            raise ValueError

    @entrypoint(checkpointer=InMemorySaver())
    async def workflow(x):
        await first(x)
        await second(x)

    with pytest.raises(ValueError):
        workflow.invoke(1, run_id="r", thread_id="t")
    workflow.invoke(None, run_id="r", thread_id="t", observers=setup.observers)
    assert setup.spans.below() == [["workflow", ["second"]]]
    span = setup.spans.named("workflow")
    found = event_of(span, "weft.recorded")
    assert (found["weft.step"], found["weft.outcome"]) == ("first", "ok")
    assert (span.attributes["weft.run.resumed"], span.attributes["weft.run.recorded"]) == (True, 1)
    assert (span.attributes["weft.run.id"], span.attributes["weft.thread.id"]) == ("r", "t")


def test_what_is_cached_gets_an_event_and_no_span(setup):
    @task(cache_policy=CachePolicy())
    async def costly(x):
        return x

    @entrypoint(cache=InMemoryCache())
    async def workflow(x):
        await costly(x)

    workflow.invoke(1)
    workflow.invoke(1, observers=setup.observers)
    assert setup.spans.below() == [["workflow"]]
    assert event_of(setup.spans.named("workflow"), "weft.cached")["weft.step"] == "costly"


def test_a_run_that_is_put_aside(setup):
    @task
    def ask(x):
        return weft.interrupt("a secret question")

    @entrypoint(checkpointer=InMemorySaver())
    async def workflow(x):
        return await ask(x)

    found = workflow.invoke(1, run_id="r", observers=setup.observers)
    assert "__interrupt__" in found
    assert setup.spans.below() == [["workflow", ["ask"]]]
    for name in ("workflow", "ask"):
        assert setup.spans.named(name).attributes["weft.outcome"] == "suspended"
        assert setup.spans.named(name).status.status_code is StatusCode.UNSET
    assert event_of(setup.spans.named("ask"), "weft.question")["weft.question.id"]
    assert "secret" not in repr([span.to_json() for span in setup.spans.ended])


def test_virtual_time_is_the_time_of_spans(setup):
    @node
    async def slow(x):
        await asyncio.sleep(100)

    run_virtual(lambda: Sequence(slow, name="w").ainvoke(1, observers=setup.observers))
    for span in setup.spans.ended:
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(100)


# Asking for it


@pytest.mark.parametrize("observers", [print, "print", 5, [5]])
def test_observers_are_a_list_of_functions(observers):
    with pytest.raises(InputError, match="observer"):
        add.invoke(1, observers=observers)


def test_an_observer_that_fails_is_left_out_and_the_run_goes_on(setup, caplog):
    def broken(event):
        raise RuntimeError("no")

    assert Sequence(add, double).invoke(1, observers=[broken, *setup.observers]) == 4
    assert len(setup.spans.ended) == 3
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def python(program):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_without_the_package_the_error_says_what_to_install():
    run = python("import sys; sys.modules['opentelemetry'] = None; import weft; import weft.observe.otel")
    assert run.returncode == 1
    assert (
        "ImportError: weft.observe.otel needs OpenTelemetry: install it with pip install 'weft[otel]'"
        in run.stderr
    )


def test_runs_without_tracing_do_not_import_it():
    run = python(
        "import sys, weft; import weft.observe.logs; weft.node('a')(lambda x: x).invoke(1);"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert (run.returncode, run.stdout) == (0, "[]\n"), run.stderr


def test_the_global_provider_is_used_even_where_it_is_set_later():
    run = python(
        """
import weft
from weft.observe.otel import Tracing
tracing = Tracing()
step = weft.node("step")(lambda x: x)
step.invoke(1, observers=[tracing])  # nobody collects yet
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
step.invoke(1, observers=[tracing])
print([(span.name, span.instrumentation_scope.name) for span in exporter.get_finished_spans()])
"""
    )
    assert (run.returncode, run.stdout) == (0, "[('step', 'weft')]\n"), run.stderr
