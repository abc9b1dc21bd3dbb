"""Drawings of workflows: what is in them, which call of a run belongs where, and what is said of it."""

import asyncio
import re
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weft
from weft import (
    AsyncFlow,
    AsyncNode,
    BatchFlow,
    BatchNode,
    Flow,
    Graph,
    InMemorySaver,
    InputError,
    Node,
    ParallelBatchNode,
    ParallelExecutionError,
    Sequence,
    decision,
    entrypoint,
    node,
    parallel,
    pipeline,
    race,
    task,
    tolerate,
)
from weft.observe.layout import place
from weft.observe.picture import OUTCOMES, Arrow, Box, Group, Picture, all_groups
from weft.observe.run_calls import RunCall, RunCalls
from weft.observe.sketch import named_in_code
from weft.observe.workflow_drawing import picture_of, shown_seconds
from weft.testing import run as in_virtual_time


@node
def one(x):
    return x + 1


@node
def two(x):
    return x + 2


@node
def fails(x):
    raise ValueError(f"no {x}")


def boxes(picture):
    """By label: their kinds."""
    return {box.label: box.kind for box in picture.boxes}


def outcomes(picture):
    return {box.label: box.outcome for box in picture.boxes}


def notes(picture):
    return {box.label: box.note for box in picture.boxes}


def headings(picture):
    return [group.label for group in all_groups(picture.groups)]


def ways(picture):
    """(from, to) by labels; a fork is '<', a join '>'."""
    signs = {"fork": "<", "join": ">"}
    label = {box.id: signs.get(box.kind, box.label) for box in picture.boxes}
    return sorted((label[arrow.source], label[arrow.destination]) for arrow in picture.arrows)


def calls(picture):
    label = {box.id: box.label for box in picture.boxes}
    return {
        (label[arrow.source], label[arrow.destination]) for arrow in picture.arrows if arrow.kind == "call"
    }


def ran(workflow, given, **options):
    """What a run of it has recorded, however it has ended."""
    store = InMemorySaver()
    try:
        workflow.invoke(given, checkpointer=store, run_id="r", **options)
    except (Exception, ParallelExecutionError):
        pass
    return weft.runs(store).show("r")


# What is in them


def test_a_step_is_a_box():
    picture = one.picture()
    assert [(box.label, box.kind, box.is_start) for box in picture.boxes] == [("one", "node", True)]
    assert not picture.arrows


def test_a_sequence_is_a_chain_and_its_blocks_are_frames():
    picture = (one >> parallel(two, fails, name="both", max_concurrent=1) >> two).picture()
    assert ways(picture) == [
        ("<", "fails"),
        ("<", "two"),
        (">", "two"),
        ("fails", ">"),
        ("one", "<"),
        ("two", ">"),
    ]
    assert headings(picture) == ["both · one at a time"]
    assert [box.label for box in picture.boxes if box.is_start] == ["one"]
    assert [box.label for box in picture.boxes if box.is_end] == ["two"]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: parallel(one, two, max_concurrent=3), "parallel · at most 3 at once"),
        (lambda: race(one, two), "race · the first success wins"),
        (lambda: parallel(one, two, need=1), "parallel · 1 successes are enough"),
        (lambda: parallel(one, two, on_error="collect"), "parallel · failures are collected"),
        (lambda: parallel(one, two, on_error=tolerate(count=1)), "parallel · tolerates 1 failures"),
        (lambda: parallel(one, two, on_error=tolerate(ratio=0.25)), "parallel · tolerates 25% of them"),
        (lambda: weft.map(one, max_concurrent=9), "map(one) · for each item, at most 9 at once"),
        (
            lambda: pipeline(None, one, two, max_concurrent={"one": 2}),
            "pipeline · for each item, at once: one 2",
        ),
    ],
)
def test_the_frame_of_a_block_says_its_options(made, said):
    assert headings(made().picture()) == [said]


def test_a_decision_leads_to_its_steps_and_what_it_runs_instead():
    @decision(branches={"other": two})
    def choose(x):
        return "one" if x < 3 else "other"

    picture = Sequence(one, choose, fails).picture()
    assert ways(picture) == [("choose", "one"), ("choose", "other"), ("one", "choose"), ("other", "fails")]
    assert boxes(picture)["choose"] == "router"


def test_a_decision_that_says_nothing_may_go_anywhere():
    picture = Sequence(one, decision("choose")(lambda x: [one][0]), two).picture()
    assert boxes(picture)["any step that it names"] == "anywhere"


class Load(Node):
    def exec(self, given):
        return given


class Many(BatchNode):
    def prep(self, shared):
        return shared["items"]

    def exec(self, item):
        if item == 2:
            raise ValueError("two")
        return item


class Silent(Node):
    def post(self, shared, _, __):
        return shared.pop("next", None)


def flow():
    load, many, silent = Load(), Many(), Silent()
    load >> many >> silent
    silent - "again" >> load
    return Flow(start=load)


def test_a_flow_shows_its_actions():
    picture = flow().picture()
    assert ways(picture) == [("Load", "Many"), ("Many", "Silent"), ("Silent", "Load")]
    assert [arrow.label for arrow in picture.arrows if arrow.label] == ["again"]
    assert notes(picture)["Many"] == "for each item, one at a time"
    assert boxes(picture)["Many"] == "block"


def test_a_user_may_call_attributes_of_a_node_as_we_do():
    class Camera(Node):
        picture = sketch = mermaid = parts = "mine"

        def exec(self, _):
            return 1

    assert boxes(Flow(start=Camera()).picture()) == {"Camera": "node"}


def test_an_entrypoint_says_what_its_code_names_and_that_this_is_all_it_says():
    @task
    def inner(x):
        return x

    @task
    def outer(x):
        return inner(x)

    @entrypoint()
    def program(x):
        def helper():
            return outer(x)

        return helper()

    picture = program.picture()
    assert calls(picture) == {("program", "outer"), ("outer", "inner")}
    assert {arrow.label for arrow in picture.arrows} == {"may call"}
    assert notes(picture)["program"] == "a run shows what it calls"


@task
def countdown(x):
    return countdown(x - 1).result() if x else 0


def test_what_calls_itself_is_drawn_once_inside_itself():
    assert calls(countdown.picture()) == {("countdown", "countdown")}
    assert len(countdown.picture().boxes) == 2


def test_code_is_looked_at_and_not_run():
    class Trap:
        def __getattr__(self, name):
            raise AssertionError("asked")

    trap = Trap()

    def body():
        return trap.fetch(), weft.InMemorySaver, [one for _ in range(2)]

    assert list(named_in_code(body)) == [trap, weft.InMemorySaver, one]
    assert list(named_in_code(len)) == []


def test_all_styles_are_drawn_inside_each_other():
    inner = Graph(name="inner").add_node(one, start=True).add_node(flow(), name="flow")
    inner.add_node(parallel(two, fails), name="both", end=True).add_edge(one, "flow").add_edge("flow", "both")
    holder = Flow(start=None)
    holder.start(Load()) >> inner
    picture = weft.map(Sequence(holder, one, name="all")).picture()
    assert headings(picture) == ["map(all) · for each item", "all", "Flow", "inner", "flow", "both"]
    assert ("Load", "one") in ways(picture)  # from outside into the graph
    assert (">", "one") in ways(picture)  # out of it, of its last block


# With a run


def test_each_step_has_the_outcome_of_its_own_calls():
    workflow = Sequence(one, parallel(two, fails, name="both"), one, name="s")
    picture = workflow.picture(run=ran(workflow, 1))
    assert [(box.label, box.outcome) for box in picture.boxes if box.kind == "node"] == [
        ("one", "ok"),
        ("two", "ok"),
        ("fails", "failed"),
        ("one", "never"),  # the same step, at another place
    ]
    assert {group.outcome for group in all_groups(picture.groups)} == {"failed"}
    assert "ValueError: no 2" in next(box.about for box in picture.boxes if box.label == "fails")
    assert re.search(r"<title>fails: failed, .*; 1 call; .*; ValueError: no 2</title>", picture.svg())


def test_steps_of_one_name_take_turns_in_a_sequence():
    workflow = Sequence(one, one, fails, one)
    picture = workflow.picture(run=ran(workflow, 1))
    assert [box.outcome for box in picture.boxes] == ["ok", "ok", "failed", "never"]


def test_a_loop_says_how_often():
    @decision
    def choose(x):
        return "one" if x < 5 else "two"

    workflow = Sequence(one, choose, two)
    picture = workflow.picture(run=ran(workflow, 1))
    assert notes(picture)["one"].startswith("4 ×")
    assert [arrow.label for arrow in picture.arrows] == ["", "3 ×", ""]


def test_a_flow_counts_items_and_says_what_nothing_is_recorded_of():
    workflow = flow()
    picture = workflow.picture(run=ran(workflow, {"items": [1, 3, 4], "next": "again"}))
    assert re.fullmatch(r"for each item, one at a time\n6 ×, .*ms", notes(picture)["Many"])
    assert outcomes(picture) == {"Load": "ok", "Many": "ok", "Silent": None}
    assert notes(picture)["Silent"] == "not recorded"


def test_an_item_that_fails_is_counted_and_one_that_something_stood_in_for_is_not_failed():
    picture = flow().picture(run=ran(flow(), {"items": [1, 2, 3]}))
    assert "1 of 2 failed" in notes(picture)["Many"]

    class Careful(Many):
        def exec_fallback(self, item, error):
            return 0

    workflow = Flow(start=Careful())
    picture = workflow.picture(run=ran(workflow, {"items": [1, 2, 3]}))
    assert outcomes(picture) == {"Careful": "ok"}
    assert "3 ×, 1 fell back" in notes(picture)["Careful"]
    assert outcomes(workflow.picture(run=ran(workflow, {"items": [2]}))) == {"Careful": "ok"}


def test_a_flow_in_a_flow_of_which_nothing_is_recorded_itself_finds_its_calls():
    first, second = Flow(start=Load()), Flow(start=Many())
    first >> second
    outer = Flow(start=first)
    picture = outer.picture(run=ran(outer, {"items": [1, 3]}))
    assert outcomes(picture) == {"Load": "ok", "Many": "ok"}
    assert [group.outcome for group in all_groups(picture.groups)] == ["ok", None, None]


def test_nodes_of_one_class_that_cannot_be_told_apart_say_so():
    first, second = Load(), Load()
    first >> second
    workflow = Flow(start=first)
    picture = workflow.picture(run=ran(workflow, {}))
    assert [re.sub(r"[<\d]+ ms", "t", box.note) for box in picture.boxes] == ["2 ×, t in 2 alike"] * 2


def test_params_and_items_at_once_are_said():
    class Params(BatchFlow):
        def prep(self, shared):
            return [{"n": 1}, {"n": 2}]

    class Wide(ParallelBatchNode):
        def prep(self, shared):
            return [1, 2, 3]

        def exec(self, item):
            return item

    workflow = Params(start=Wide())
    picture = workflow.picture(run=ran(workflow, {}))
    assert "for each item, all at once\n6 ×" in notes(picture)["Wide"]
    assert headings(picture)[0].startswith("Params · for each of its params, one at a time · ")


def test_a_pipeline_beside_the_way_has_its_calls():
    @node(start=True)
    def begin(x):
        return {}

    @node(end=True)
    def end(x):
        return {}

    @node
    def log(x):
        return {}

    graph = Graph(name="g").add_node(begin).add_node(end).add_node(log).add_edge(begin, end)
    graph.add_branch(begin, log)
    picture = graph.picture(run=ran(graph, {"x": 1}))
    assert outcomes(picture) == {"begin": "ok", "end": "ok", "log": "ok"}
    assert ways(picture) == [("begin", "end"), ("begin", "log")]


def test_one_workflow_at_two_places_has_the_calls_of_each_place():
    """Nothing is recorded between a flow and its node; when they ran says which is which."""

    @node
    async def nap(x):
        await asyncio.sleep(1)
        return x

    class Nap(AsyncNode):
        async def exec_async(self, given):
            await asyncio.sleep(1)

    def napping():
        return AsyncFlow(start=Nap())

    workflow = Sequence(napping(), nap, napping(), nap, parallel(napping(), nap, name="p"))

    async def go():
        store = InMemorySaver()
        await workflow.ainvoke({}, checkpointer=store, run_id="r")
        run = workflow.submit({})
        await run
        return run, weft.runs(store).show("r")

    for run in in_virtual_time(go):
        picture = workflow.picture(run=run)
        assert [box.note for box in picture.boxes if box.label == "Nap"] == ["1.0 s"] * 3


@pytest.mark.parametrize("has_hooks", [False, True])
def test_equal_flows_at_one_time_are_told_apart_while_they_run_and_else_it_is_said(has_hooks):
    """Of a flow with hooks it is not recorded which of its calls are the walk's."""

    class Nap(AsyncNode):
        async def exec_async(self, given):
            await asyncio.sleep(1)

    @node(start=True)
    async def begin():
        return {}

    class Hooked(AsyncFlow):
        async def prep_async(self, shared):
            return None

    graph = Graph(name="g").add_node(begin)
    for name in ("left", "right"):
        flow = (Hooked if has_hooks else AsyncFlow)(start=Nap())
        graph.add_node(flow, name=name, end=True).add_edge(begin, name)

    async def go():
        store = InMemorySaver()
        await graph.ainvoke({}, checkpointer=store, run_id="r")
        run = graph.submit({})
        await run
        return run, weft.runs(store).show("r")

    live, recorded = in_virtual_time(go)
    assert [box.note for box in graph.picture(run=live).boxes if box.label == "Nap"] == ["1.0 s"] * 2
    notes = [box.note for box in graph.picture(run=recorded).boxes if box.label == "Nap"]
    assert notes == (["2 ×, 1.0 s in 2 alike"] if has_hooks else ["1.0 s"]) * 2


def test_whatever_a_decision_has_chosen_goes_on_after_it():
    @decision(branches={"a": one, "b": two})
    def choose(x):
        return "a" if x else "b"

    picture = Sequence(Sequence(choose, name="inner"), fails).picture()
    assert ways(picture) == [("a", "fails"), ("b", "fails"), ("choose", "a"), ("choose", "b")]


def test_a_start_is_above_what_leads_back_to_it():
    @decision
    def choose(x):
        return "one" if x < 5 else "two"

    picture = Sequence(one, parallel(two, fails, name="both"), choose, two).picture()
    for direction in ("down", "right"):
        frames = place(picture, direction=direction).boxes
        ahead = [frame.y if direction == "down" else frame.x for frame in frames]
        order = [at for _, at in sorted(zip(ahead, [box.label for box in picture.boxes]))]
        assert order[0] == "one"
        assert order[-2:] == ["choose", "two"]


@task
def fetch(x):
    if x == 7:
        raise ValueError("seven")
    return x


@task
def unused(x):
    return x


@entrypoint()
def gather(count):
    found = weft.map(fetch, range(count), on_error="collect")
    return unused(len(found)).result() if count > 100 else len(found)


def test_an_entrypoint_is_drawn_from_its_run_equal_calls_folded():
    picture = gather.picture(run=ran(gather, 20))
    assert calls(picture) == {("gather", "map(fetch)"), ("map(fetch)", "fetch"), ("gather", "unused")}
    assert len(picture.boxes) == 4  # fetch, which the code names, is where it ran and nowhere else
    assert outcomes(picture) == {"gather": "ok", "map(fetch)": "ok", "fetch": "failed", "unused": "never"}
    assert "1 of 20 failed" in notes(picture)["fetch"]
    assert notes(picture)["unused"] == "no result"  # a journal does not tell whether it ran


def test_what_a_run_called_and_nobody_knew_of_is_drawn_open():
    made = Graph(name="made").add_node(one, start=True, end=True)

    @node
    def caller(x):
        return {"x": made.invoke({"x": x})}

    workflow = Sequence(caller, lambda x: x)
    picture = workflow.picture(run=ran(workflow, 1))
    assert ("caller", "one") in calls(picture)
    assert headings(picture)[1].startswith("made · ")


@node
async def slow(x):
    await asyncio.sleep(10)
    return x


@node
async def quick(x):
    await asyncio.sleep(1)
    return x


def test_a_run_is_drawn_as_it_stands_while_it_goes_on():
    workflow = Sequence(quick, slow, quick, name="s")

    async def look():
        run = workflow.submit(1)
        await asyncio.sleep(3)
        during = workflow.picture(run=run)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        return during, workflow.picture(run=run)

    during, after = in_virtual_time(look)
    assert [(box.outcome, box.note) for box in during.boxes] == [
        ("ok", "1.0 s"),
        ("running", "running, 2.0 s"),
        ("never", "never ran"),
    ]
    assert headings(during)[0].startswith("s · running")
    assert [box.outcome for box in after.boxes] == ["ok", "cancelled", "never"]
    assert [group.outcome for group in after.groups] == ["cancelled"]


def test_what_a_resume_takes_from_the_journal_is_reused():
    store, chance = InMemorySaver(), [1]

    @node
    def once(x):
        if chance.pop():
            raise ValueError
        return x

    workflow = Sequence(one, once)

    async def twice():
        with pytest.raises(ValueError):
            await workflow.ainvoke(1, checkpointer=store, run_id="r")
        chance.append(0)
        run = workflow.submit(None, checkpointer=store, run_id="r")
        await run
        return run

    picture = workflow.picture(run=asyncio.run(twice()))
    assert [(box.outcome, box.note.split(",")[0]) for box in picture.boxes][0] == ("reused", "reused")
    assert picture.boxes[1].outcome == "ok"


def test_a_run_of_another_workflow_and_what_is_none_are_refused():
    with pytest.raises(InputError, match=r"run 'r' is one of 'gather', and cannot be drawn into 'sequence'"):
        (one >> two).picture(run=ran(gather, 1))
    with pytest.raises(InputError, match="weft.runs"):
        one.picture(run=3)


def test_lost_events_are_told():
    root = RunCall("", "one", "", "ok")
    picture = picture_of(one, RunCalls("r", "one", "finished", (), root, is_recorded=False, lost=12))
    assert picture.title == "one, run r: finished; its first 12 events are not kept"


@pytest.mark.parametrize("style", ["events", "journal"])
def test_calls_are_none_lost_and_none_counted_twice(style):
    """Every call of a nested workflow has a place, in its own box or frame."""

    class Step(AsyncNode):
        async def exec_async(self, given):
            return given

    first = Step()
    first >> Step()

    @node(start=True)
    async def begin(x):
        return {}

    inner = Graph(name="inner").add_node(begin).add_node(AsyncFlow(start=first), name="flow", end=True)
    inner.add_edge(begin, "flow")
    workflow = weft.map(parallel(inner, quick, name="both"), name="m")
    items = [{"x": number} for number in range(7)]

    async def go():
        store = InMemorySaver()
        run = workflow.submit(items, checkpointer=store, run_id="r")
        await run
        return run, weft.runs(store).show("r")

    run, info = in_virtual_time(go)
    picture = workflow.picture(run=run if style == "events" else info)
    counted = {box.label: int(box.note.split(" ×")[0]) for box in picture.boxes if "×" in box.note}
    assert counted == {"begin": 7, "quick": 7, "Step": 14}
    assert Counter(call.step for call in info.calls) == {
        "both": 7,
        "inner": 7,
        "flow": 7,
        "begin": 7,
        "quick": 7,
        "Step": 14,
    }


# What is made of them

NAMES = st.sampled_from(
    [
        *(
            "<script>alert(1)</script>",
            '"></text><script>',
            "]]>",
            "a\nb",
            "\x00",
            "",
            "end",
            "`**x**`",
            "#35;",
        ),
        *(
            "javascript:alert(1)",
            "click n0 href",
            "%%{init: {}}%%",
            "&lt;b&gt;",
            "\u202e",
            "\ud800",
            "<br/>x",
        ),
    ]
)
SVG = "{http://www.w3.org/2000/svg}"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(NAMES, NAMES, NAMES, st.sampled_from(OUTCOMES)), min_size=1, max_size=5), NAMES)
def test_hostile_names_notes_and_errors_stay_inert(rows, heading):
    made = [
        Box(str(n), label, note=note, outcome=outcome, about=about, is_end=not n)
        for n, (label, note, about, outcome) in enumerate(rows)
    ]
    ids = tuple(box.id for box in made)
    picture = Picture(
        tuple(made), (Arrow("0", "0", kind="call"),), (Group(heading, ids, (), "failed", heading),)
    )
    root = ET.fromstring(picture.svg().encode())
    tags = ("svg", "title", "style", "g", "rect", "circle", "polygon", "path", "text")
    assert {each.tag for each in root.iter()} <= {SVG + tag for tag in tags}
    assert not [
        name for each in root.iter() for name in each.attrib if name.startswith("on") or "href" in name
    ]
    text = picture.mermaid()
    for line in text.splitlines():
        for label in re.findall(r'"(.*?)"', line):
            assert re.fullmatch(r"(?:[^\x00-\x7f]|[A-Za-z0-9 ,_/-]|#\d+;|<br/>)+", label), line
        assert line.count('"') in (0, 2)
        outside = re.sub(r'".*?"', "", line)
        assert not re.search(r"script|href|click|init", outside)


@given(st.sampled_from(["script", "<b>"]))
def test_hostile_names_of_steps_come_through_a_whole_workflow(name):
    workflow = Sequence(node(f"<{name}>")(lambda x: x), parallel(one, two, name=f'"{name}"'), name="<x>")
    picture = workflow.picture(run=ran(workflow, 1))
    assert f"<{name}" not in picture.svg()
    assert f"<{name}" not in picture.mermaid()


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_outcome_has_a_mark_and_not_only_a_colour(outcome):
    plain, marked = Picture((Box("a", "x"),)), Picture((Box("a", "x", outcome=outcome),))
    assert f":::{outcome}" in marked.mermaid()
    assert '"x"' in plain.mermaid()
    assert '"x"' not in marked.mermaid()
    if outcome == "never":
        assert ".never .shape{stroke-dasharray" in marked.svg()
    else:
        assert '<circle class="badge"' in marked.svg()
        assert '<circle class="badge"' not in plain.svg()


def test_marks_of_outcomes_differ():
    texts = [Picture((Box("a", "x", outcome=outcome),)).mermaid() for outcome in OUTCOMES]
    assert len({re.search(r'"(.) x"', text)[1] for text in texts}) == len(OUTCOMES)
    drawn = [Picture((Box("a", "x", outcome=outcome),)).svg() for outcome in OUTCOMES]
    assert len({tuple(re.findall(r'class="mark" d="(.*?)"', text)) for text in drawn}) == len(OUTCOMES)


def test_a_workflow_of_five_hundred_steps_is_drawn_in_seconds():
    blocks = [
        parallel(*[node(f"step {n}.{k}")(lambda x: x) for k in range(9)], name=f"block {n}")
        for n in range(50)
    ]
    picture = Sequence(*blocks).picture()  # the time limit of the test is what fails
    assert len(picture.boxes) == 550
    assert picture.svg().count('class="shape"') > 500


def test_three_hundred_workflows_in_each_other_are_drawn():
    workflow = Sequence(one, one)
    for depth in range(300):
        workflow = Sequence(workflow, two, name=f"depth {depth}")
    picture = workflow.picture(run=ran(workflow, 1))
    assert len(headings(picture)) == 300
    assert picture.mermaid().count("subgraph") == 300


def test_every_workflow_has_the_same_verbs(tmp_path):
    graph = Graph().add_node(one, start=True, end=True)
    for number, workflow in enumerate(
        [
            one,
            fetch,
            gather,
            one >> two,
            parallel(one, two),
            weft.map(one),
            pipeline(None, one),
            graph,
            flow(),
        ]
    ):
        assert workflow.mermaid() == workflow.picture().mermaid()
        assert workflow.mermaid(direction="right").startswith("flowchart LR")
        assert workflow.visualize(save_path=tmp_path / f"{number}.svg") is None
        assert workflow._repr_mimebundle_()["image/svg+xml"].startswith("<svg")
        assert workflow._repr_mimebundle_()["text/plain"] == repr(workflow)


def test_a_notebook_shows_something_of_what_cannot_be_drawn_yet():
    assert Graph()._repr_mimebundle_() == {"text/plain": repr(Graph())}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "<1 ms"),
        (0.25, "250 ms"),
        (1.25, "1.2 s"),
        (99.9, "99.9 s"),
        (150, "2 min 30 s"),
        (9000, "2 h 30 min"),
    ],
)
def test_seconds_are_shown_for_people(seconds, text):
    assert shown_seconds(seconds) == text


def test_the_same_is_drawn_the_same():
    workflow = one >> parallel(two, fails)
    info = ran(workflow, 1)
    assert workflow.picture(run=info) == workflow.picture(run=replace(info))
