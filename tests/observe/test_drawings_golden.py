"""Drawings of one workflow of each style, and of one with all four in each other, before and after a run."""

import asyncio
import os
import warnings
from pathlib import Path

import pytest

import weft
from weft import (
    AsyncFlow,
    AsyncNode,
    AsyncParallelBatchNode,
    Graph,
    InMemorySaver,
    Limit,
    Sequence,
    decision,
    entrypoint,
    node,
    parallel,
    race,
    router,
    task,
)
from weft.testing import run as in_virtual_time

GOLDEN = Path(__file__).parent / "drawings"


# Compose: steps, branches, a race, a decision that leads back


@node
async def load(page):
    await asyncio.sleep(0.2)
    return {"page": page["page"], "draft": page.get("draft", 0) + 1}


@node
async def spelling(page):
    await asyncio.sleep(0.1)
    return "good"


@node(timeout=1)
async def facts(page):
    await asyncio.sleep(0.5 if page["draft"] < 3 else 5)
    return "doubtful" if page["draft"] < 3 else "good"


@node(retry=3)
async def tone(page):
    await asyncio.sleep(2)
    return "friendly"


@node
async def ours(page):
    await asyncio.sleep(0.3)
    return page


@node
async def theirs(page):
    await asyncio.sleep(0.4)
    return page


@decision
def judge(page):
    return "load" if page["draft"] < 3 else "checks"


@node
async def publish(page):
    return page


def compose():
    read = node("read")(lambda page: page)
    return Sequence(
        load,
        race(ours, theirs, name="fastest mirror"),
        judge,
        parallel(spelling, facts, tone, name="checks", max_concurrent=2),
        publish,
        read,
        name="review",
    )


# Batch: nodes, actions, a loop, items


class Outline(AsyncNode):
    async def prep_async(self, shared):
        shared["round"] = shared.get("round", 0) + 1
        return shared["round"]

    async def exec_async(self, number):
        await asyncio.sleep(0.1)
        return number


class Write(AsyncParallelBatchNode):
    max_concurrent = 4
    max_retries = 2

    async def prep_async(self, shared):
        return [(shared["round"], number) for number in range(12)]

    async def exec_async(self, item):
        await asyncio.sleep(0.25)
        if item == (3, 7):
            raise ValueError("no words left")
        return item


class Edit(AsyncNode):
    async def prep_async(self, shared):
        return shared["round"]

    async def exec_async(self, number):
        await asyncio.sleep(1)
        return number

    async def post_async(self, shared, _, number):
        return "rewrite" if number < 3 else "done"


class Tell(AsyncNode):
    async def post_async(self, shared, _, __):
        shared["told"] = True


def batch():
    outline, write, edit, tell = Outline(), Write(), Edit(), Tell()
    outline >> write >> edit
    edit - "rewrite" >> outline
    edit - "done" >> tell
    return AsyncFlow(start=outline)


# Graph: a router in a loop, a fork, a join, a workflow of another style


@node(start=True)
async def plan(question):
    await asyncio.sleep(0.1)
    return {"asked": 0}


@router
async def next_tool(asked):
    return {"choices": ["search", "shop"] if asked < 3 else ["answer"]}


@node
async def search(asked):
    await asyncio.sleep(0.6)
    return {"found": asked}


@node
async def shop(asked):
    await asyncio.sleep(0.2)
    return {"price": asked}


@node
async def think(asked):
    await asyncio.sleep(0.1)
    return {"asked": asked + 1}


@node(end=True)
async def answer(question):
    raise ConnectionError("the model is away")


def graph():
    made = Graph(name="agent").add_node(plan).add_node(next_tool).add_node(search).add_node(shop)
    made.add_node(think).add_node(answer)
    made.add_router([plan, think], next_tool, [search, shop, answer])
    return made.add_join([search, shop], think)


# Functional: what is called is known when it has run


@task
async def fetch(number):
    await asyncio.sleep(0.1 * (number % 3))
    if number == 100:
        raise ValueError("no such page")
    return number


@task
async def words(number):
    return await stem(number)


@task
async def stem(number):
    await asyncio.sleep(0.2)
    return number


@task
async def report(found):
    return len(found)


@entrypoint()
async def digest(count):
    first = await asyncio.gather(*[words(number) for number in range(3)])
    found = await asyncio.gather(*[fetch(number) for number in range(count)])
    return await report(first + found)


# All four


MODEL = Limit("model", concurrent=4)


@task(limit=MODEL)
async def ask(question):
    await asyncio.sleep(0.25)
    if question == "translate 2":
        raise ValueError("not a language")
    return question


class Split(AsyncNode):
    async def prep_async(self, shared):
        return shared["letter"]

    async def exec_async(self, letter):
        return letter


class Translate(AsyncParallelBatchNode):
    async def prep_async(self, shared):
        return range(3)

    async def exec_async(self, number):
        return await ask(f"translate {number}")


@node
async def topic(letter):
    return await ask(f"topic of {letter}")


@node
async def mood(letter):
    return await ask(f"mood of {letter}")


@router(start=True)
async def sort(letter):
    return {"choices": ["understand"] if letter % 2 else ["understand", "translate"]}


@node(end=True)
async def file_it(letter):
    return {}


def letters():
    split = Split()
    split >> Translate()
    made = Graph(name="letter").add_node(sort).add_node(file_it)
    made.add_node(parallel(topic, mood, name="understand")).add_node(AsyncFlow(start=split), name="translate")
    return made.add_router([], sort, ["understand", "translate"]).add_join(
        ["understand", "translate"], file_it
    )


letter = letters()


@entrypoint()
async def post(count):
    done = await weft.amap(letter, [{"letter": number} for number in range(count)], on_error="collect")
    await ask("agenda")
    failed = [each for each in done if not each.ok]
    if failed:
        raise failed[0].error
    return done


WORKFLOWS = {
    "compose": (compose, {"page": "home"}),
    "batch": (batch, {}),
    "graph": (graph, {"question": "?"}),
    "functional": (lambda: digest, 120),
    "nested": (lambda: post, 6),
}


async def finished(workflow, input, **options):
    run = workflow.submit(input, **options)
    try:
        await run
    except (Exception, weft.ParallelExecutionError):
        pass
    return run


def pictures(name):
    """Of a workflow: before it runs, after a run, and of what that run has recorded."""
    make, given = WORKFLOWS[name]
    workflow, store = make(), InMemorySaver()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        live = in_virtual_time(lambda: finished(workflow, given, checkpointer=store, run_id="run 1"))
    recorded = weft.runs(store).show("run 1")
    return {
        "before": workflow.picture(),
        "live": workflow.picture(run=live),
        "recorded": workflow.picture(run=recorded),
    }


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_mermaid_text_is_what_it_was(name):
    for when, picture in pictures(name).items():
        path = GOLDEN / f"{name}-{when}.mmd"
        text = picture.mermaid()
        if os.environ.get("WEFT_WRITE_GOLDEN"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), (
            f"{path.name} would be another: look at it, then keep it"
        )
