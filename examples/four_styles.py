"""Prepare the letters to a town council: four ways to write a workflow, in each other, in one run.

    python examples/four_styles.py              eight letters; takes some three seconds
    python examples/four_styles.py --letters 3 --database letters.db

    functional   `prepare` is the program: it maps over the letters, then has the model write the agenda
      graph      `letter`: what is to be done about a letter; it forks, and joins again
        compose  `understand`: three questions about it, at the same time
        batch    `translate`: sentence by sentence, all at the same time, until a proof-reader is content
          functional  `ask`: a task, the one place that asks the model

The model is a fake, so that this runs anywhere. It refuses more than six requests at once, and loses a connection now
and then. One Limit holds for all styles, one deadline, and one journal: kill the program at any moment (``kill -9``
too) and start it again with the same command. At the end it says what was asked for again, and what was not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import weft
from weft import (
    AsyncNode,
    AsyncParallelBatchNode,
    Flow,
    Graph,
    Limit,
    Node,
    RetryPolicy,
    SqliteSaver,
    WeftError,
    entrypoint,
    node,
    parallel,
    router,
    task,
)

# The fake model.


class Model:
    """Answers after a while, if the connection holds; each answer is a line of its bill."""

    AT_ONCE = 6

    def __init__(self) -> None:
        self.bill = Path("four_styles.log")
        self.at_once = self.most_at_once = 0
        self.answered: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()

    async def ask(self, prompt: str) -> str:
        """The answer."""
        chance = random.Random(prompt)
        self._asked[prompt] += 1
        if self.at_once >= self.AT_ONCE:
            raise ConnectionRefusedError("too many requests at once")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(chance.uniform(0.05, 0.2))
        finally:
            self.at_once -= 1
        if chance.random() < 0.1 and self._asked[prompt] == 1:
            raise ConnectionResetError("the connection was lost")
        with self.bill.open("a") as file:
            file.write(f"{prompt}\n")
        self.answered[prompt] += 1
        return self._answer(prompt, chance)

    @staticmethod
    def _answer(prompt: str, chance: random.Random) -> str:
        question, _, text = prompt.partition(": ")
        if question == "language":
            return "German" if "Haus" in text else "English"
        if question == "topic":
            topics = {"bridge": "bridge", "Markt": "market", "school": "school", "Bus": "bus"}
            return next(topic for word, topic in topics.items() if word in text)
        if question == "mood":
            return chance.choice(["calm", "angry", "hopeful"])
        if question.startswith("proof-read draft"):
            return "good" if question.endswith("3") or chance.random() < 0.3 else "clumsy"
        if question == "agenda":
            return ", then ".join(sorted(set(text.split(", "))))
        return f"<{question} of {text[:20]!r}>"


MODEL = Model()
MODEL_LIMIT = Limit("model", concurrent=5)
PATIENT = RetryPolicy(max_attempts=4, initial_interval=0.05, jitter=False, retry_on=ConnectionError)


# Functional, inside: a task. Wherever it is called, its result is recorded, and it counts in the limit.


@task(limit=MODEL_LIMIT, retry_policy=PATIENT, timeout=10)
async def ask(question: str, text: str) -> str:
    return await MODEL.ask(f"{question}: {text}")


# Compose: three questions, answered at the same time. As a node of a graph, its dict is merged into what stands there.


@node
async def topic(text: str) -> str:
    return await ask("topic", text)


@node
async def mood(text: str) -> str:
    return await ask("mood", text)


@node
async def gist(text: str) -> str:
    return await ask("gist", text)


understand = parallel(topic, mood, gist, name="understand")


# Batch: nodes that share one dict, as a node of a graph a copy of what stands there. `exec` is what is recorded.


class Split(Node):
    def prep(self, shared: dict[str, Any]) -> str:
        text: str = shared["text"]
        return text

    def exec(self, text: str) -> list[str]:
        return re.findall(r"\S[^.?]*[.?]", text)

    def post(self, shared: dict[str, Any], _: str, sentences: list[str]) -> None:
        shared["sentences"], shared["draft"] = sentences, 1


class Translate(AsyncParallelBatchNode):
    max_concurrent = 3  # of one letter

    async def prep_async(self, shared: dict[str, Any]) -> list[tuple[int, str]]:
        return [(shared["draft"], sentence) for sentence in shared["sentences"]]

    async def exec_async(self, item: tuple[int, str]) -> str:
        draft, sentence = item
        return await ask(f"translation {draft}", sentence)

    async def post_async(self, shared: dict[str, Any], _: Any, sentences: list[str]) -> None:
        shared["translation"] = " ".join(sentences)


class ProofRead(AsyncNode):
    async def prep_async(self, shared: dict[str, Any]) -> tuple[int, str]:
        return shared["draft"], shared["translation"]

    async def exec_async(self, given: tuple[int, str]) -> str:
        draft, translation = given
        return await ask(f"proof-read draft {draft}", translation)

    async def post_async(self, shared: dict[str, Any], _: Any, verdict: str) -> str:
        if verdict == "good":
            return "done"
        shared["draft"] += 1
        return "again"


def translate() -> Flow:
    split, sentences, proof_read = Split(), Translate(), ProofRead()
    split >> sentences >> proof_read
    proof_read - "again" >> sentences
    proof_read - "done" >> None
    return Flow(split)


# Graph: what is done about a letter. A branch that is not chosen is not waited for.


@router(start=True)
async def sort(text: str) -> dict[str, Any]:
    language = await ask("language", text)
    choices = ["understand"] if language == "English" else ["understand", "translate"]
    return {"language": language, "choices": choices}


@node(end=True)
def filed(
    number: int, topic: str, mood: str, gist: str, translation: str = "", draft: int = 0
) -> dict[str, str]:
    lines = [f"{number}. {topic}, {mood}: {gist}"]
    if translation:
        lines.append(f"   in draft {draft}: {translation}")
    return {"entry": "\n".join(lines)}


letter = Graph(name="letter").add_node(sort).add_node(understand).add_node(translate(), name="translate")
letter.add_node(filed)
letter.add_router([], sort, [understand, "translate"])
letter.add_join([understand, "translate"], filed)


# Functional, outside: an entrypoint, which is the program. The code between the calls runs again on every start.


@entrypoint()
def prepare(letters: list[dict[str, Any]]) -> str:
    done = weft.map(letter, letters, max_concurrent=4)
    agenda = ask("agenda", ", ".join(each["topic"] for each in done)).result()
    return "\n".join([*(each["entry"] for each in done), f"agenda: {agenda}"])


# The program.


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    MODEL.bill = args.log
    before = Counter(args.log.read_text().splitlines() if args.log.exists() else [])
    try:
        with SqliteSaver(args.database) as store:
            run_id = f"{args.letters} letters"
            text = prepare.invoke(post(args.letters), checkpointer=store, run_id=run_id, timeout=300)
    except KeyboardInterrupt:
        return say("stopped; the same command goes on from here", code=130)
    except (WeftError, OSError) as error:
        return say(str(error), code=1)
    print(text)
    tell(before)
    return 0


def tell(before: Counter[str]) -> None:
    """What ran again, and what did not: by the bill of the model, which knows nothing of the journal."""
    now = MODEL.answered
    again = sorted(before.keys() & now.keys())
    print()
    print(f"{now.total()} answers of the model, at most {MODEL.most_at_once} at once")
    print(f"{len(before) - len(again)} answers of earlier starts, which were not asked for again")
    print(f"{len(again)} answers that had come, were not recorded before the kill, and were asked for again")
    for prompt in again:
        print(f"  {prompt}")


def post(count: int) -> list[dict[str, Any]]:
    """As many letters as wanted, the same each time."""
    texts = [
        "House {} is at the bridge with the hole. Who of house {} may mend it?",
        "Haus {} will einen Markt. Vor Haus {} ist der Platz frei. Wer hilft Haus {} dabei?",
        "House {} has a school without chairs. We of house {} can make them.",
        "Haus {} fragt nach dem Bus. Von Haus {} ist die Schule weit.",
    ]
    return [
        {"number": number, "text": texts[(number - 1) % len(texts)].replace("{}", str(number))}
        for number in range(1, count + 1)
    ]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prepare the letters to a town council.")
    add = parser.add_argument
    add("-n", "--letters", type=int, default=8, help="how many; default: 8")
    add("--database", type=Path, default=Path("four_styles.db"), help="where to record what is done")
    add("--log", type=Path, default=MODEL.bill, help="the bill of the model: a line for each answer")
    return parser.parse_args(arguments)


def say(message: str, *, code: int) -> int:
    print(f"four_styles: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
