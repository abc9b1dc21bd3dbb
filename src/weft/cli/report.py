"""What the commands write: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import weft
from weft.cli.endings import Refusal
from weft.cli.running import Ending
from weft.history import CallInfo, QuestionInfo, RunInfo
from weft.observe.progress import duration, printable
from weft.observe.timeline import Timeline
from weft.resume_plan import ResumePlan

_SHORT = 100  # JSON up to this length stays on one line
_RED, _GREEN, _YELLOW, _CYAN = 31, 32, 33, 36
_COLOURS = {
    "finished": _GREEN,
    "ok": _GREEN,
    "failed": _RED,
    "timed_out": _RED,
    "cancelled": _YELLOW,
    "suspended": _YELLOW,
    "running": _CYAN,
}


# Streams


def out(text: str) -> None:
    """A line on stdout; quiet when nobody reads it any more."""
    _write(sys.stdout, text)


def note(text: str) -> None:
    """A line on stderr, for people."""
    _write(sys.stderr, text)


def _write(file: TextIO | None, text: str) -> None:
    if file is None:  # it was closed before we began
        return
    try:
        file.write(_encodable(text, file) + "\n")
        file.flush()
    except BrokenPipeError:
        # What is left in the buffer would raise again when the interpreter flushes at its end.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def _encodable(text: str, file: TextIO) -> str:
    encoding = file.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


# Results


def show_ending(ending: Ending, again: CommandLine | None, *, as_json: bool, quiet: bool) -> None:
    """The result on stdout, and what a person does next on stderr.

    Args:
        ending: How the run ended.
        again: The command line that goes on with it; None when nothing can.
        as_json: Everything as one JSON object on stdout.
        quiet: Nothing on stderr but an error.
    """
    if as_json:
        out(json_text(ending_as_dict(ending)))
    elif ending.status == "finished":
        out(value_text(ending.value))
    if ending.error is not None and not isinstance(ending.error, KeyboardInterrupt):
        note(error_text(ending.error).rstrip())
    if quiet:
        return
    if ending.is_recorded:
        note(f"run {ending.run_id} had finished before; this is its recorded result")
    if ending.questions:
        note("\n".join(questions_text(ending.questions)))
    if again and ending.questions:
        note(f"answer with: {again(*answer_words(ending.questions))}")
    elif again and ending.status != "finished":
        note(f"{ending.status}; go on with: {again()}")


def ending_as_dict(ending: Ending) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "status": ending.status,
        "run_id": ending.run_id,
        "output": ending.value,
        "error": None if ending.error is None else error_as_dict(ending.error),
        "questions": [question_as_dict(question) for question in ending.questions],
    }


def error_as_dict(error: BaseException) -> dict[str, Any]:
    """An error for ``--json``."""
    cls = type(error)
    return {
        "type": f"{cls.__module__}.{cls.__qualname__}",
        "message": str(error),
        "notes": [str(text) for text in getattr(error, "__notes__", ())],
    }


def value_text(value: Any, *, short: int = _SHORT) -> str:
    """JSON if the value can be, else its repr; what is longer than ``short`` takes several lines."""
    try:
        line = _dumped(value)
        return line if len(line) <= short else _dumped(value, indent=2)
    except (TypeError, ValueError, RecursionError):
        return repr(value)


def _in_a_line(value: Any) -> str:
    return value_text(value, short=sys.maxsize)


def json_text(value: Any) -> str:
    """JSON in any case: what has no JSON is its repr."""
    try:
        return _dumped(_plain(value), indent=2)
    except RecursionError:
        return _dumped(repr(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return repr(value)


def _dumped(value: Any, **options: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    # Lone surrogates, and what a terminal would obey, are written as escapes.
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    return char if char.isprintable() or char == "\n" or ord(char) > 0xFFFF else f"\\u{ord(char):04x}"


# Errors


def error_text(error: BaseException) -> str:
    """The error with its notes, causes and members, and of the tracebacks only what is the user's."""
    told = traceback.TracebackException.from_exception(error)
    _leave_out_ours(told)
    return "".join(told.format())


_OURS = str(Path(weft.__file__).parent) + os.sep
_STDLIB = str(Path(traceback.__file__).parent) + os.sep
_PLUMBING = ("asyncio", "concurrent", "contextvars.py", "threading.py")


def _leave_out_ours(told: traceback.TracebackException) -> None:
    pending: list[traceback.TracebackException | None] = [told]
    seen: set[int] = set()
    while pending:
        part = pending.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        kept = [frame for frame in part.stack if not _is_ours(frame.filename)]
        part.stack = traceback.StackSummary.from_list(kept) if kept else None  # type: ignore[assignment]  # no heading
        pending += [part.__cause__, part.__context__, *(part.exceptions or ())]


def _is_ours(filename: str) -> bool:
    if filename.startswith(_OURS):
        return True
    return filename.startswith(_STDLIB) and filename.removeprefix(_STDLIB).startswith(_PLUMBING)


# Questions


def questions_text(questions: Sequence[QuestionInfo]) -> Iterable[str]:
    """The open questions, for people."""
    count = len(questions)
    yield f"{count} open question{'s' if count > 1 else ''}:"
    for question in questions:
        yield f"  {question.id}  {printable(question.step)}: {_in_a_line(question.value)}"


def answer_words(questions: Sequence[QuestionInfo]) -> tuple[str, str]:
    """The option that answers a question."""
    return "--answer", "JSON" if len(questions) == 1 else f"{questions[0].id}=JSON"


class CommandLine:
    """A command as it is typed.

    Args:
        words: Its name, and options.
        about: Its arguments, of which one may look like an option.
    """

    def __init__(self, *words: str, about: Sequence[str]) -> None:
        self._words = words
        self._about = about

    def __call__(self, *options: str) -> str:
        """With these options too: behind its arguments, unless nothing there is taken for an option any more."""
        if any(word.startswith("-") for word in self._about):
            return printable(shlex.join([*self._words, *options, "--", *self._about]))
        return printable(shlex.join([*self._words, *self._about, *options]))


# Runs


def show_runs(infos: Sequence[RunInfo]) -> None:
    """A table of runs."""
    out(table(("RUN", "WORKFLOW", "STATUS", "THREAD", "BEGAN", "TOOK", "ERROR"), map(_run_row, infos)))


def _run_row(info: RunInfo) -> tuple[str, ...]:
    began, thread = _time(info.created), info.thread_id or ""
    return (info.id, info.workflow, info.status, thread, began, _took(info), info.error or "")


def show_run(info: RunInfo, store_option: Sequence[str]) -> None:
    """Everything about a run."""
    facts = [
        ("run", info.id),
        ("workflow", info.workflow),
        ("status", info.status + (" (or its process died)" if info.status == "running" else "")),
        ("thread", info.thread_id),
        ("began", _time(info.created)),
        ("updated", f"{_time(info.updated)}, {_took(info)} later"),
        ("input", _in_a_line(info.input)),
        ("output", _in_a_line(info.output) if info.status == "finished" else None),
        ("error", info.error),
    ]
    out(table((), [(name, text) for name, text in facts if text is not None]))
    if info.calls:
        out("")
        rows = [_call_row(call) for call in info.calls]
        out(table(("STEP", "OUTCOME", "ATTEMPTS", "BEGAN", "TOOK", "RESULT"), rows))
    if info.questions:
        out("")
        out("\n".join(questions_text(info.questions)))
        answer = CommandLine("weft", "answer", *store_option, about=(info.id, f"{info.questions[0].id}=JSON"))
        out(f"answer with: {answer()}")
    if info.status != "finished":
        out("")
        again = CommandLine("weft", "resume", *store_option, about=(info.id,))
        out(f"go on with: {again()} TARGET")


def show_told(told: CallInfo | QuestionInfo, *, as_json: bool) -> None:
    """A line of what a run has just recorded."""
    if as_json:
        told_as = call_as_dict(told) if isinstance(told, CallInfo) else question_as_dict(told)
        out(_dumped(_plain(told_as)))
        return
    if isinstance(told, CallInfo):
        moment, words = told.ended, _call_row(told)
        line = f"{words[1]:<9}  {words[4]:>7}  {words[0]}  {words[5]}"
    else:
        moment, line = told.asked, f"asks                {printable(told.step)}  {_in_a_line(told.value)}"
    out(_cut(f"{f'{moment.astimezone():%H:%M:%S}' if moment else '':8}  {line}".rstrip(), _columns()))


def show_timeline(timeline: Timeline, where: str) -> None:
    """Write a timeline to the terminal (``-``), or to a file by its suffix."""
    if where == "-":
        width = min(_columns(), 200) if sys.stdout.isatty() else 100
        out(timeline.text(width=width, colour=sys.stdout.isatty()))
        return
    try:
        timeline.save(where)
    except OSError as error:
        raise Refusal(f"cannot write {where!r}: {error.strerror or error}") from error
    note(f"the timeline is in {where}")


def _call_row(call: CallInfo) -> tuple[str, ...]:
    return (
        _cut(printable(call.step), max(_columns() // 4, 12)),
        call.outcome,
        str(call.attempts),
        f"{call.started.astimezone():%H:%M:%S}" if call.started else "",
        duration(call.seconds) if call.seconds is not None else "",
        call.error if call.error is not None else _in_a_line(call.value),
    )


def show_plan(plan: ResumePlan) -> None:
    """What a resume would do, in three lists."""
    run_id = printable(plan.run_id)
    if plan.status == "finished":
        out(f"run {run_id} is finished: a resume gives its recorded output, and runs nothing")
        return
    out(f"run {run_id} is {plan.status}; a resume would")
    _show_planned(f"reuse {len(plan.reused)} recorded", [_call_row(call) for call in plan.reused])
    again = [(call.step, call.why, call.error or "", call.id) for call in plan.again]
    _show_planned(f"run {len(plan.again)}", again)
    unmatched = [_call_row(call) for call in plan.unmatched]
    _show_planned(
        f"have no use for {len(plan.unmatched)} recorded, which the program does not ask for now", unmatched
    )
    if plan.error is not None:
        out(f"the program itself fails on the way: {type(plan.error).__name__}: {printable(str(plan.error))}")


def _show_planned(title: str, rows: Sequence[Sequence[str]]) -> None:
    out(f"- {title}")
    for row in rows:
        out("    " + "  ".join(printable(cell) for cell in row if cell))


def plan_as_dict(plan: ResumePlan) -> dict[str, Any]:
    """As JSON."""
    return {
        "run_id": plan.run_id,
        "status": plan.status,
        "reused": [call_as_dict(call) for call in plan.reused],
        "again": [{"step": c.step, "id": c.id, "why": c.why, "error": c.error} for c in plan.again],
        "unmatched": [call_as_dict(call) for call in plan.unmatched],
        "error": None if plan.error is None else error_as_dict(plan.error),
    }


def run_as_dict(info: RunInfo) -> dict[str, Any]:
    """A run for ``--json``."""
    return {
        "run_id": info.id,
        "workflow": info.workflow,
        "status": info.status,
        "thread_id": info.thread_id,
        "created": info.created.isoformat(),
        "updated": info.updated.isoformat(),
        "error": info.error,
    }


def run_with_calls_as_dict(info: RunInfo) -> dict[str, Any]:
    """A run with all that is recorded of it, for ``--json``."""
    return {
        **run_as_dict(info),
        "input": info.input,
        "output": info.output,
        "calls": [call_as_dict(call) for call in info.calls],
        "questions": [question_as_dict(question) for question in info.questions],
    }


def call_as_dict(call: CallInfo) -> dict[str, Any]:
    """A call for ``--json``."""
    return {
        "step": call.step,
        "id": call.id,
        "parent": call.parent,
        "outcome": call.outcome,
        "attempts": call.attempts,
        "started": _iso(call.started),
        "ended": _iso(call.ended),
        "seconds": call.seconds,
        "value": call.value,
        "error": call.error,
    }


def question_as_dict(question: QuestionInfo) -> dict[str, Any]:
    """A question for ``--json``."""
    return {"id": question.id, "step": question.step, "value": question.value, "asked": _iso(question.asked)}


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None


def _time(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _took(info: RunInfo) -> str:
    return duration((info.updated - info.created).total_seconds())


# Tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns in line. For a terminal in colour, the last column cut to its width; else plain and whole."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - only commands that show tables

    cells = [[printable(" ".join(cell.split())) for cell in row] for row in rows]
    lines = [list(head), *cells] if head else cells
    widths = [max(map(cell_len, column)) for column in list(zip(*lines, strict=True))[:-1]]
    room = _columns() - sum(width + len(_GAP) for width in widths)
    shown = []
    for *first, last in lines:
        padded = [
            _coloured(cell, set_cell_size(cell, width)) for cell, width in zip(first, widths, strict=True)
        ]
        shown.append(_GAP.join([*padded, _cut(last, max(room, 8))]).rstrip())
    return "\n".join(shown)


def _cut(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - as above

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


_GAP = "  "


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def _coloured(cell: str, padded: str) -> str:
    colour = _COLOURS.get(cell)
    if colour is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return padded
    return f"\x1b[{colour}m{padded}\x1b[0m"
