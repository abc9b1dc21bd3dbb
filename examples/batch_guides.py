"""Write a guide to each of some cities: outline, sections, and a critic who sends it back until it is good.

    python examples/batch_guides.py                     four cities; takes some three seconds
    python examples/batch_guides.py Oslo Lima --database guides.db

A guide is a flow of nodes that share one dict; all guides are written at the same time. The model is a fake, so that
this runs anywhere: it is slow, loses a connection now and then, and knows nothing of one subject.

What the model has answered is recorded in a SQLite file. Kill the program at any moment and start it again with the
same command: no answer is asked for twice.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from weft import AsyncNode, AsyncParallelBatchFlow, AsyncParallelBatchNode, Limit, Node, SqliteSaver

CITIES = ["Lisbon", "Nairobi", "Kyoto", "Quito"]
SUBJECTS = ["history", "food", "museums", "parks", "night life"]

# The fake model.


class Model:
    """Answers after a while, if the connection holds."""

    def __init__(self) -> None:
        self.log: Path | None = None
        self.at_once = self.most_at_once = self.answered = 0
        self._asked: Counter[str] = Counter()

    async def ask(self, prompt: str) -> str:
        """The answer."""
        chance = random.Random(prompt)
        self._asked[prompt] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(chance.uniform(0.05, 0.25))
        finally:
            self.at_once -= 1
        if "night life" in prompt:
            raise ConnectionError("no model wants to talk about this")
        if chance.random() < 0.2 and self._asked[prompt] == 1:
            raise ConnectionError("the connection was lost")
        self.answered += 1
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{prompt}\n")
        return self._answer(prompt, chance)

    @staticmethod
    def _answer(prompt: str, chance: random.Random) -> str:
        task, _, about = prompt.partition(": ")
        if task == "outline":
            return ", ".join(sorted(chance.sample(SUBJECTS, 3)))
        if task == "criticise":
            return "good" if about.endswith("draft 3") or chance.random() < 0.25 else "dull"
        return f"{about}: {chance.choice(['lovely', 'old', 'crowded', 'quiet'])}"


MODEL = Model()
LIMIT = Limit("model", concurrent=6)

# The nodes. ``prep`` reads what all share, ``exec`` computes and is recorded, ``post`` writes, and says how to go on.


class Outline(AsyncNode):
    """Which subjects the guide is about."""

    max_retries = 3
    wait = 0.05
    limit = LIMIT

    async def exec_async(self, _: None) -> list[str]:
        return (await MODEL.ask(f"outline: {self.params['city']}")).split(", ")

    async def post_async(self, shared: dict[str, Any], _: None, subjects: list[str]) -> None:
        shared[self.params["city"]] = {"subjects": subjects, "draft": 1}


class Sections(AsyncParallelBatchNode):
    """A paragraph on each subject, all at the same time; each is tried again by itself."""

    max_retries = 3
    wait = 0.05
    max_concurrent = 2
    limit = LIMIT

    async def prep_async(self, shared: dict[str, Any]) -> list[str]:
        city = self.params["city"]
        guide = shared[city]
        return [f"write: {subject} of {city}, draft {guide['draft']}" for subject in guide["subjects"]]

    async def exec_async(self, prompt: str) -> str:
        return await MODEL.ask(prompt)

    async def exec_fallback_async(self, prompt: str, error: Exception) -> str:
        return f"{prompt.removeprefix('write: ')}: (nothing known)"

    async def post_async(self, shared: dict[str, Any], _: list[str], sections: list[str]) -> None:
        shared[self.params["city"]]["sections"] = sections


class Critic(AsyncNode):
    """Whether it is good, or has to be written again."""

    max_retries = 3
    wait = 0.05
    limit = LIMIT

    async def prep_async(self, shared: dict[str, Any]) -> str:
        return f"criticise: {self.params['city']}, draft {shared[self.params['city']]['draft']}"

    async def exec_async(self, prompt: str) -> str:
        return await MODEL.ask(prompt)

    async def post_async(self, shared: dict[str, Any], _: str, verdict: str) -> str:
        if verdict == "good":
            return "publish"
        shared[self.params["city"]]["draft"] += 1
        return "again"


class Publish(Node):
    """The guide as text. A node may be sync; its hooks never run at the same time as those of others."""

    def post(self, shared: dict[str, Any], prep_res: None, exec_res: None) -> None:
        guide = shared[self.params["city"]]
        head = f"{self.params['city']}, in draft {guide['draft']}"
        shared["guides"][self.params["city"]] = "\n  ".join([head, *guide["sections"]])


class Guides(AsyncParallelBatchFlow):
    """All of it, once for each city."""

    async def prep_async(self, shared: dict[str, Any]) -> list[dict[str, str]]:
        return [{"city": city} for city in shared["cities"]]


def guides() -> Guides:
    """The program."""
    outline, sections, critic = Outline(), Sections(), Critic()
    outline >> sections >> critic
    critic - "again" >> sections
    critic - "publish" >> Publish()
    return Guides(outline)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a guide to each of some cities.")
    parser.add_argument("cities", nargs="*", default=CITIES, metavar="CITY")
    parser.add_argument("--database", type=Path, default=Path("guides.db"))
    parser.add_argument("--log", type=Path, help="a file that gets a line for each answer of the model")
    options = parser.parse_args()
    MODEL.log = options.log
    shared: dict[str, Any] = {"cities": options.cities, "guides": {}}
    with SqliteSaver(options.database) as saver:
        guides().run(shared, run_id=f"guides to {', '.join(options.cities)}", checkpointer=saver)
    for city in options.cities:
        print(shared["guides"][city])
    most = f", at most {MODEL.most_at_once} at once" if MODEL.answered else ""
    print(f"{MODEL.answered} answers of the model{most}", file=sys.stderr)


if __name__ == "__main__":
    main()
