"""Reads what is typed for values: inputs and answers, as JSON or as text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from weft.cli.endings import Refusal

_QUESTION_ID = re.compile(r"([0-9a-f]{32})=(.*)", re.DOTALL)


def parse_json(text: str, what: str, hint: str = "") -> Any:
    """The value of a JSON text.

    Raises:
        Refusal: It is none; ``what`` says what it was to be.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise Refusal(f"{what} is not JSON: {error.msg} at {place}{hint}") from error
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{what} is not JSON: {error}{hint}") from error


def read_input(given: str | None, file: str | None, text: str | None) -> tuple[bool, Any]:
    """Whether an input was given, and the input.

    Raises:
        Refusal: There are several, it cannot be read, or it is null.
    """
    if sum(option is not None for option in (given, file, text)) > 1:
        raise Refusal("give one of --input, --input-file and --input-text")
    if text is not None:
        return True, text
    if given is not None:
        value = parse_json(given, "--input", "; for plain text use --input-text")
    elif file is not None:
        value = parse_json(_read(file), f"the content of {file!r}")
    else:
        return False, {}
    if value is None:
        raise Refusal("the input null cannot begin a run: it stands for going on with one")
    return True, value


def read_answers(given: Sequence[str], open_ids: Sequence[str]) -> dict[str, Any]:
    """What ``--answer`` options say, by question id: ``ID=JSON``, or JSON for the only open question.

    Raises:
        Refusal: One is neither, or has no id where several questions are open.
    """
    if len(given) != 1 or _QUESTION_ID.fullmatch(given[0]):
        return answers_by_id(given)
    if len(open_ids) != 1:
        hint = (
            f"write --answer ID=JSON; open are: {', '.join(open_ids)}" if open_ids else "leave out --answer"
        )
        raise Refusal(f"{len(open_ids) or 'no'} questions are open: {hint}")
    return {open_ids[0]: parse_json(given[0], f"--answer {given[0]}", _NO_ANSWER)}


def answers_by_id(given: Iterable[str]) -> dict[str, Any]:
    """Answers by question id, from ``ID=JSON``.

    Raises:
        Refusal: One is not of that form, or an id comes twice.
    """
    answers: dict[str, Any] = {}
    for text in given:
        match = _QUESTION_ID.fullmatch(text)
        if match is None:
            raise Refusal(f"{text!r} is no answer: write ID=JSON, with the id that `weft show` names")
        key, value = match.groups()
        if key in answers:
            raise Refusal(f"question {key} is answered twice")
        answers[key] = parse_json(value, f"the answer to {key}", _NO_ANSWER)
    return answers


_NO_ANSWER = """; a text is written '"so"'"""


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(f"{file!r} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise Refusal(f"{file!r} cannot be read: {error.strerror}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
