"""Questions that a run waits for, and the commands that answer them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from weft.errors import AnswerError


@dataclass(frozen=True, slots=True)
class Interrupt:
    """A question that a run waits for.

    Attributes:
        value: What was asked.
        id: By which it is answered: ``Command(resume={id: answer})``.
    """

    value: Any
    id: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """Input that goes on with a run instead of beginning one.

    Attributes:
        resume: The answer to the only open question, or a dict from question ids to answers; None only goes on.
    """

    resume: Any = None


def match_answers(resume: Any, open_ids: Iterable[str]) -> dict[str, Any]:
    """Which open question gets which answer.

    Raises:
        AnswerError: Nothing is open, several are and no ids are given, or an id is not that of an open question.
    """
    ids = list(open_ids)
    if isinstance(resume, dict) and resume and all(key in ids for key in resume):
        return dict(resume)
    if isinstance(resume, dict) and any(_looks_like_id(key) for key in resume):
        wrong = [key for key in resume if key not in ids]
        raise AnswerError(f"no open question has the id {wrong[0]!r}; {_listed(ids)}")
    if len(ids) == 1:
        return {ids[0]: resume}
    if not ids:
        raise AnswerError(
            "the run has no open question; to go on with it pass None instead of Command(resume=...)"
        )
    raise AnswerError(f"several questions are open: pass Command(resume={{id: answer}}); {_listed(ids)}")


def _looks_like_id(key: object) -> bool:
    return isinstance(key, str) and len(key) == 32 and all(c in "0123456789abcdef" for c in key)


def _listed(ids: list[str]) -> str:
    return f"open are: {', '.join(ids)}" if ids else "none is open"
