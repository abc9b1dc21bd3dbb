"""Sort a day's post of a shop: each message is read by a model in three ways at once, then answered or passed on.

    python examples/fanout.py                   60 messages; takes some five seconds
    python examples/fanout.py --messages 500 --database post.db

The model is a fake, so that this runs anywhere: it is slow, refuses more than so many requests at once or in a
second, loses a connection now and then, and is once too busy for anybody. Take the Limit away, and see it refuse.

What is done is recorded in a SQLite file. Kill the program at any moment (``kill -9`` too) and start it again with the
same command: no answer that it has had is asked for twice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import weft
from weft import (
    Limit,
    Ok,
    Outcome,
    ParallelExecutionError,
    RetryPolicy,
    Sequence,
    SqliteSaver,
    WeftError,
    decision,
    node,
    parallel,
    tolerate,
)

# What goes from step to step. Dataclasses that annotations name can be recorded.


@dataclass(frozen=True)
class Message:
    number: int
    text: str


@dataclass(frozen=True)
class Filed:
    message: Message
    desk: str
    note: str


# The fake model.


class BusyError(Exception):
    """It takes no more requests now. Weft looks for ``retry_after``, as real clients have it."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after


THINGS = ["kettle", "toaster", "lamp", "radio", "blender", "heater", "clock", "scale"]
LABELS = {
    "topic": {"refund": ["money", "charged"], "broken": ["broke", "smoke", "leaks"]},
    "mood": {"angry": ["never again", "lawyer", "smoke"], "happy": ["love", "thank"]},
    "language": {"German": [" der ", " ist "], "French": [" est ", " ne "]},
}
OTHERWISE = {"topic": "other", "mood": "calm", "language": "English"}


class Model:
    """Answers by keywords, with the troubles of the real ones."""

    AT_ONCE = 12
    A_SECOND = 60

    def __init__(self) -> None:
        self.log: Path | None = None
        self.answered = self.lost = self.refused = self.at_once = self.most_at_once = self.busiest_second = 0
        self.working = 0.0  # seconds, over all answers
        self._begun: deque[float] = deque()
        self._asked: Counter[str] = Counter()

    async def ask(self, question: str, text: str) -> str:
        """The answer, after a while."""
        self._admit()
        chance = random.Random(f"{question} {text}")
        self._asked[f"{question} {text}"] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            seconds = chance.uniform(0.1, 0.3)
            await asyncio.sleep(seconds)
            if chance.random() < 0.05 and self._asked[f"{question} {text}"] == 1:
                self.lost += 1
                raise ConnectionResetError("the connection was lost")
        finally:
            self.at_once -= 1
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {question} {text}\n")
        self.working += seconds
        self.answered += 1
        return self._answer(question, text)

    def _admit(self) -> None:
        now = time.monotonic()
        while self._begun and self._begun[0] <= now - 1:
            self._begun.popleft()
        if self.at_once >= self.AT_ONCE or len(self._begun) >= self.A_SECOND:
            self.refused += 1
            raise BusyError("too many requests", retry_after=0.5)
        if self.answered == 50 and not self.refused:
            self.refused += 1
            raise BusyError("overloaded, please come back", retry_after=0.7)
        self._begun.append(now)
        self.busiest_second = max(self.busiest_second, len(self._begun))

    def _answer(self, question: str, text: str) -> str:
        if question == "reply":
            return f"Dear customer, about your {next(thing for thing in THINGS if thing in text)}: ..."
        found = (label for label, words in LABELS[question].items() if any(word in text for word in words))
        return next(found, OTHERWISE[question])


MODEL = Model()

#: Less than the model allows: it counts when requests reach it, which is a little after they were begun here.
MODEL_LIMIT = Limit("model", concurrent=10, rate="50/s")

PATIENT = RetryPolicy(
    max_attempts=4, initial_interval=0.2, jitter=False, retry_on=[ConnectionError, BusyError]
)


# The workflow.


@node("topic", limit=MODEL_LIMIT, retry=PATIENT, timeout=10)
async def topic_of(message: Message) -> str:
    return await MODEL.ask("topic", message.text)


@node("mood", limit=MODEL_LIMIT, retry=PATIENT, timeout=10)
async def mood_of(message: Message) -> str:
    return await MODEL.ask("mood", message.text)


@node("language", limit=MODEL_LIMIT, retry=PATIENT, timeout=10)
async def language_of(message: Message) -> str:
    return await MODEL.ask("language", message.text)


@node("message")
def as_it_is(message: Message) -> Message:
    """The message itself, for the steps after the block."""
    if not message.text.strip():
        raise ValueError("the message is empty")
    return message


@node(limit=MODEL_LIMIT, retry=PATIENT, timeout=10)
async def reply(found: dict[str, Any]) -> Filed:
    return Filed(found["message"], "reply", await MODEL.ask("reply", found["message"].text))


@node
def refund(found: dict[str, Any]) -> Filed:
    return Filed(found["message"], "refund", "the money goes back")


@node
def person(found: dict[str, Any]) -> Filed:
    return Filed(
        found["message"], "person", f"{found['mood']}, in {found['language']}, about {found['topic']}"
    )


@decision(branches=[reply, refund, person])
def desk(found: dict[str, Any]) -> Literal["reply", "refund", "person"]:
    """Who deals with the message."""
    if found["mood"] == "angry" or found["language"] != "English":
        return "person"
    return "refund" if found["topic"] == "refund" else "reply"


handle = Sequence(parallel(as_it_is, topic_of, mood_of, language_of), desk, name="handle")

#: Some messages may fail: they are in the result as outcomes. Many failures mean that something is wrong.
sort_post: weft.Map = weft.map(handle, max_concurrent=20, on_error=tolerate(count=3), name="sort post")


# The program.


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    MODEL.log = args.log
    messages = post(args.messages)
    run_id = f"post of {args.messages}"
    began = time.monotonic()
    try:
        with SqliteSaver(args.database) as store:
            if args.fresh:
                store.delete_run(run_id)
            outcomes = show(sort_post.stream(messages, checkpointer=store, run_id=run_id), messages)
    except KeyboardInterrupt:
        return say("stopped; the same command goes on from here", code=130)
    except (WeftError, OSError) as error:
        return say(str(error), code=1)
    summarise(outcomes, time.monotonic() - began)
    return 0


def show(results: Iterator[Outcome[Filed]], messages: list[Message]) -> list[Outcome[Filed]]:
    """Print each result when it and all before it are there."""
    outcomes = []
    for message, outcome in zip(messages, results, strict=True):
        if isinstance(outcome, Ok):
            filed = outcome.value
            print(f"{message.number:4}  {filed.desk:7} {shortened(message.text, 40):40}  {filed.note}")
        else:
            print(f"{message.number:4}  FAILED  {reason_of(outcome)}")
        outcomes.append(outcome)
    return outcomes


def summarise(outcomes: list[Outcome[Filed]], seconds: float) -> None:
    desks = Counter(outcome.value.desk for outcome in outcomes if isinstance(outcome, Ok))
    print()
    print(f"{len(outcomes)} messages: {', '.join(f'{count} {desk}' for desk, count in desks.most_common())}")
    print(f"{seconds:.1f} s; one request after the other would have taken {MODEL.working:.1f} s")
    print(
        f"the model gave {MODEL.answered} answers, to {MODEL.most_at_once} requests at once and "
        f"{MODEL.busiest_second} in a second at most"
    )
    print(f"asked again: {MODEL.refused} refused, {MODEL.lost} with a lost connection")


def reason_of(outcome: Outcome[Filed]) -> str:
    try:
        outcome.get()
    except ParallelExecutionError as error:  # the block's; its cause is what the branch raised
        return f"{error.branch}: {error.__cause__}"
    except Exception as error:
        return str(error)
    return "it did not fail"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Sort a day's post of a shop with a (fake) language model.")
    add = parser.add_argument
    add("-n", "--messages", type=int, default=60, help="how many; default: 60")
    add(
        "--database",
        type=Path,
        default=Path("fanout.db"),
        help="where to record what is done; default: fanout.db",
    )
    add("--fresh", action="store_true", help="forget what is done and begin anew")
    add("--log", type=Path, help="append a line to this file for each answer of the model")
    args = parser.parse_args(arguments)
    if args.messages < 1:
        parser.error("--messages must be at least 1")
    return args


def post(count: int) -> list[Message]:
    """As many messages as wanted, the same each time; number 13 is empty."""
    chance = random.Random(7)
    texts = [
        "My {} broke after a week.",
        "The {} leaks. Never again!, I said, never again, and my lawyer agrees.",
        "I love the {}, thank you.",
        "Your {} makes smoke.",
        "Where is the money for the {} that I sent back?",
        "I was charged twice for a {}.",
        "When will the {} be there again?",
        "Leider ist der {} kaputt, der neue auch.",
        "Votre {} ne marche pas, il est trop petit.",
    ]
    return [
        Message(number, "" if number == 13 else chance.choice(texts).format(chance.choice(THINGS)))
        for number in range(1, count + 1)
    ]


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def say(message: str, *, code: int) -> int:
    print(f"fanout: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
