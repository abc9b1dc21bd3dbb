"""Research a question: an agent looks at what it knows, asks several sources at once, and goes on from what they say.

    python examples/research_graph.py                    takes some two seconds
    python examples/research_graph.py "Who was Smeaton?" --database research.db

The agent is a graph with a loop: `think` decides whether there is something to look up, `choose` which sources are
asked for it, and what they have found comes together in `think` again. The sources are fakes, so that this runs
anywhere: they are slow, refuse more than three requests at once, lose connections, hang, and one is closed for good.

What is done is recorded in a SQLite file. Kill the program at any moment (``kill -9`` too) and start it again with the
same command: no answer that it has had is asked for twice.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft import Failed, Graph, Limit, RetryPolicy, SqliteSaver, WeftError, node, router, task

QUESTION = "Why are there four Eddystone lighthouses?"

# The fake sources: by topic what each of them says. A topic in brackets is one to look up as well.

ENCYCLOPEDIA = {
    "Eddystone": "Four towers have stood on the rocks: by [Winstanley], [Rudyerd], [Smeaton] and [Douglass].",
    "Winstanley": "His tower, lit in 1698, was swept away with him in the [great storm].",
    "great storm": "It came in November 1703, and sank a fifth of the navy.",
    "Rudyerd": "His tower of wood, lit in 1709, burned down when the lantern took fire, in 1755.",
    "Smeaton": "His tower of dovetailed granite was lit in 1759.",
    "Douglass": "His tower, lit in 1882, still stands.",
    "hydraulic lime": "A mortar that sets under water.",
}
PAGES = {
    "Eddystone": {
        "a visit": "There is a helipad above the lantern.",
        "the rocks": "They are under water at high tide.",
    },
    "Smeaton": {
        "the mortar": "He found [hydraulic lime].",
        "the end": "The sea was hollowing out the rock under it.",
    },
    "Douglass": {"the stump": "Beside it stands what is left of the tower of [Smeaton]."},
}
ARCHIVE = {"Winstanley": "He wished to be in his tower during the greatest storm that ever was."}
CLOSED = "great storm"


class Sources:
    """They answer after a while, with the troubles of the real ones."""

    AT_ONCE = 3

    def __init__(self) -> None:
        self.log: Path | None = None
        self.answered = self.at_once = 0
        self.troubles: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()

    async def ask(self, source: str, about: str) -> Any:
        """What a source says about a topic."""
        request = f"{source}: {about}"
        chance = random.Random(request)
        self._asked[request] += 1
        if self.at_once >= self.AT_ONCE:
            raise self._trouble("refused", "too many requests at once")
        self.at_once += 1
        try:
            await asyncio.sleep(chance.uniform(0.03, 0.12))
            if source == "archive" and about == CLOSED:
                self.troubles["closed"] += 1
                raise PermissionError("the archive of that year is closed")
            if self._asked[request] == 1 and chance.random() < 0.2:
                raise self._trouble("lost", "the connection was lost")
            if self._asked[request] == 1 and request == "search: hydraulic lime":
                self.troubles["hung"] += 1
                await asyncio.sleep(3600)
        finally:
            self.at_once -= 1
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{request}\n")
        self.answered += 1
        return self._answer(source, about)

    def _trouble(self, kind: str, message: str) -> ConnectionError:
        self.troubles[kind] += 1
        return ConnectionError(message)

    @staticmethod
    def _answer(source: str, about: str) -> Any:
        if source == "search":
            return sorted(PAGES.get(about, {}))
        if source == "page":
            topic, _, title = about.partition("/")
            return PAGES[topic][title]
        return {"encyclopedia": ENCYCLOPEDIA, "archive": ARCHIVE}[source].get(about)


SOURCES = Sources()

# The graph. A node reads what it names from what stands on its branch, and returns what it adds. What lasts over the
# rounds is in `state`: each branch of a fork has a copy, and where they join all have been appended to one list.


@node(start=True)
def begin(question: str, state: dict[str, Any]) -> dict[str, Any]:
    state["open"] = [topic for topic in ENCYCLOPEDIA if topic.lower() in question.lower()]
    state["looked_up"], state["facts"], state["history"] = [], [], []
    return {}


@router
def think(topic: str | None, archive: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Take in what the sources said about a topic, and go on with the next one, if there is any."""
    if isinstance(archive, Failed):
        state["history"].append(f"round {len(state['looked_up'])}: no archive: {archive.error}")
    for fact in state["facts"]:
        for lead in re.findall(r"\[(.+?)\]", fact["text"]):
            if lead not in state["open"] + state["looked_up"]:
                state["open"].append(lead)
    if not state["open"]:
        return {"choice": "report"}
    topic = state["open"].pop(0)
    state["looked_up"].append(topic)
    # What a branch failed with stands in the flow until something else is written there.
    return {"choice": "choose", "topic": topic, "archive": None}


@router
def choose(topic: str) -> dict[str, Any]:
    """Which sources may know of the topic; they are asked at the same time."""
    choices = ["encyclopedia", "search"]
    if topic[0].islower() or topic == "Winstanley":
        choices.append("archive")
    return {"choices": choices}


#: Over all nodes and tasks that are given it, in all runs of this process; one less than the sources allow.
LIMIT = Limit("sources", concurrent=2)
PATIENT = RetryPolicy(
    max_attempts=4, initial_interval=0.05, jitter=False, retry_on=(ConnectionError, TimeoutError)
)


def note(state: dict[str, Any], source: str, topic: str, text: str | None) -> None:
    state["history"].append(f"round {len(state['looked_up'])}: {source}: {topic}")
    if text is not None:
        state["facts"].append({"topic": topic, "source": source, "text": text})


@node(limit=LIMIT, retry=PATIENT, timeout=0.5)
async def encyclopedia(topic: str, state: dict[str, Any]) -> dict[str, Any]:
    note(state, "encyclopedia", topic, await SOURCES.ask("encyclopedia", topic))
    return {}


@node(limit=LIMIT, retry=PATIENT, timeout=0.5)
async def archive(topic: str, state: dict[str, Any]) -> dict[str, Any]:
    note(state, "archive", topic, await SOURCES.ask("archive", topic))
    return {}


@node(limit=LIMIT, retry=PATIENT, timeout=0.5)
async def search(topic: str) -> dict[str, Any]:
    return {"titles": await SOURCES.ask("search", topic)}


@task(limit=LIMIT, retry_policy=PATIENT, timeout=0.5)
async def page(topic: str, title: str) -> str:
    """A task, so that each page is recorded, and tried again, by itself."""
    text: str = await SOURCES.ask("page", f"{topic}/{title}")
    return text


@node
async def read(topic: str, titles: list[str], state: dict[str, Any]) -> dict[str, Any]:
    """The second node of its branch. `think` waits for it, however long the other branches are."""
    pages = [page(topic, title) for title in titles]
    for title, text in zip(titles, pages, strict=True):
        note(state, f"page '{title}'", topic, await text)
    return {}


@node(end=True)
def report(question: str, state: dict[str, Any]) -> dict[str, Any]:
    lines = [question]
    for topic in state["looked_up"]:
        facts = sorted((fact["source"], fact["text"]) for fact in state["facts"] if fact["topic"] == topic)
        lines += [f"\n{topic}", *(f"  {re.sub(r'[][]', '', text)}  ({source})" for source, text in facts)]
    return {"report": "\n".join(lines), "history": state["history"]}


def research() -> Graph:
    """The agent."""
    graph = Graph(name="research", max_steps=200, timeout=120)
    for each in (begin, think, choose, encyclopedia, archive, search, read, report):
        graph.add_node(each)
    graph.add_router([begin], think, [choose, report])
    # One source that fails does not end the research: its branch comes to the join with the failure. That holds for
    # all that this router chooses, which is why the report is chosen by the other one: it may not fail unseen.
    graph.add_router([], choose, [encyclopedia, archive, search], on_error="collect")
    graph.add_edge(search, read)
    graph.add_join([encyclopedia, archive, read], think)
    return graph.compile()


# The program.


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    SOURCES.log = args.log
    given = {"question": args.question, "topic": None, "archive": None}
    began = time.monotonic()
    try:
        with SqliteSaver(args.database) as store:
            run_id = f"research: {args.question}"
            if args.fresh:
                store.delete_run(run_id)
            found = show(research().stream(given, checkpointer=store, run_id=run_id))
    except KeyboardInterrupt:
        return say("stopped; the same command goes on from here", code=130)
    except (WeftError, OSError) as error:
        return say(str(error), code=1)
    print(f"\n{found['report']}\n")
    print("\n".join(found["history"]))
    troubles = ", ".join(f"{count} {kind}" for kind, count in sorted(SOURCES.troubles.items())) or "none"
    print(f"\n{SOURCES.answered} requests answered in {time.monotonic() - began:.1f} s; troubles: {troubles}")
    return 0


def show(steps: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Say what is looked up, as it is; what was done before a kill is not said again. The last step is the result."""
    last: dict[str, Any] = {}
    for last in steps:
        if "think" in last and "topic" in last["think"]:
            print(f"looking up: {last['think']['topic']}", flush=True)
    result: dict[str, Any] = last["research"]
    return result


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Research a question with several (fake) sources.")
    add = parser.add_argument
    add("question", nargs="?", default=QUESTION)
    add("--database", type=Path, default=Path("research.db"), help="where to record what is done")
    add("--fresh", action="store_true", help="forget what is done and begin anew")
    add("--log", type=Path, help="append a line to this file for each answer of a source")
    return parser.parse_args(arguments)


def say(message: str, *, code: int) -> int:
    print(f"research: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
