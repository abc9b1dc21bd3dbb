"""What can be typed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import click

from weft.checkpoint.base import Checkpointer
from weft.checkpoint.keep import Keep
from weft.cli import report
from weft.cli.endings import EXIT_CODES, Code, Refusal, code_of
from weft.cli.running import execute
from weft.cli.stores import DEFAULT, VARIABLE, existing_store, outlives_us, store_for, store_words
from weft.cli.target import load_target
from weft.cli.values import answers_by_id, read_answers, read_input
from weft.core.question import Command
from weft.core.status import RunStatus
from weft.errors import WeftError
from weft.history import Runs
from weft.observe.progress import printable
from weft.runnable import Runnable


def run_command(args: Sequence[str] | None = None) -> int:
    """Do what the arguments say; the exit code. Whatever was typed wrongly is one sentence on stderr."""
    try:
        code = weft.main(args=args, prog_name="weft", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        report.note(f"Error: {error.format_message().rstrip('.')}{hint}")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Code.INTERRUPTED
    except Refusal as refusal:
        report.note(f"Error: {refusal}")
        return refusal.code
    except WeftError as error:
        report.note(f"Error: {error}")
        return code_of(error)
    return int(code or 0)


def _version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    try:
        report.out(f"weft {metadata.version('weft')}")
    except metadata.PackageNotFoundError:
        report.out("weft (not installed)")
    context.exit()


@click.group(
    invoke_without_command=True, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show it."
)
@click.pass_context
def weft(context: click.Context) -> None:
    """Run parallel workflows that do not lose their work."""
    if context.invoked_subcommand is None:
        report.out(context.get_help())


# Options that several commands have

_Command = Callable[..., Any]

_store_option = click.option(
    "--checkpointer",
    "url",
    metavar="URL",
    envvar=VARIABLE,
    help="Where runs are recorded. Else $WEFT_CHECKPOINTER, else what the workflow was defined with (not in "
    f"memory), else {DEFAULT}, in the current folder.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="JSON on stdout, for programs.")


def _options_of_a_run(command: _Command) -> _Command:
    for option in reversed(
        [
            _store_option,
            click.option("--max-concurrent", type=int, metavar="N", help="At most so many calls at a time."),
            click.option("--timeout", type=float, metavar="SECONDS", help="For the whole run."),
            click.option(
                "--durability",
                type=click.Choice(["sync", "async", "exit"]),
                help="When results are recorded: before anything goes on from them (sync, the default), "
                "behind the run, or at its end.",
            ),
            _json_option,
            click.option("--quiet", "-q", is_flag=True, help="No progress, no hints; errors only."),
        ]
    ):
        command = option(command)
    return command


# Commands that run something


@weft.command(epilog=EXIT_CODES)
@click.argument("target")
@click.option("--input", "-i", "given", metavar="JSON", help="The workflow's input; {} unless told.")
@click.option("--input-file", "file", metavar="FILE", help="A file with the input as JSON; - is stdin.")
@click.option("--input-text", "text", metavar="TEXT", help="The input is this text.")
@click.option("--run-id", metavar="ID", help="Names the run. Given again, the run goes on where it stopped.")
@click.option("--thread-id", metavar="ID", help="The conversation that the run belongs to.")
@_options_of_a_run
def run(
    *,
    target: str,
    given: str | None,
    file: str | None,
    text: str | None,
    run_id: str | None,
    **options: Any,
) -> int:
    """Run a workflow: TARGET is module:name or path/to/file.py:name.

    Its result goes to stdout, everything else to stderr. A run that stopped, in whatever way, goes on when
    it is given the same --run-id again, or with `weft resume`.
    """

    def begin() -> int:
        has_input, value = read_input(given, file, text)
        workflow = load_target(target)
        store = store_for(workflow, options["url"])
        name = secrets.token_hex(6) if run_id is None else run_id
        again = _again(store, name, target, options)
        if run_id is None and not options["quiet"]:
            report.note(f"run {name}; if it stops, go on with: {again()}" if again else f"run {name}")
        goes_on = not has_input and run_id is not None and store.find(run_id) is not None
        return _execute(workflow, None if goes_on else value, store, {**options, "run_id": name}, again)

    return _or_json(begin, run_id, as_json=options["as_json"])


@weft.command(epilog=EXIT_CODES)
@click.argument("run_id", metavar="RUN")
@click.argument("target")
@click.option(
    "--answer",
    "answers",
    multiple=True,
    metavar="[ID=]JSON",
    help="Answers an open question; without an id the only one. May be given several times.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="While another process owns the run, wait for so long: it may end, or be silent for its lease (30 s, "
    "unless its store says otherwise) and lose the run. Without, the command ends with code 4.",
)
@_options_of_a_run
def resume(run_id: str, target: str, answers: tuple[str, ...], **options: Any) -> int:
    """Go on with a RUN where it stopped. What it has recorded is not run again.

    TARGET is the workflow, as for `weft run`: code comes from you, never from the store.
    """

    def go_on() -> int:
        workflow = load_target(target)
        store = store_for(workflow, options["url"], must_exist=True)
        value = None
        if answers or store.find(run_id) is None:
            info = Runs(store).show(run_id)  # names the closest ids when there is no such run
            value = Command(resume=read_answers(answers, [question.id for question in info.questions]))
        again = _again(store, run_id, target, options)
        return _execute(workflow, value, store, {**options, "run_id": run_id}, again)

    return _or_json(go_on, run_id, as_json=options["as_json"])


_OF_THE_RUN = ("run_id", "thread_id", "max_concurrent", "timeout", "durability")


def _execute(
    workflow: Runnable,
    value: Any,
    store: Checkpointer,
    options: dict[str, Any],
    again: report.CommandLine | None,
) -> int:
    of_the_run = {name: options.get(name) for name in _OF_THE_RUN}
    quiet = options["quiet"]
    try:
        ending = execute(workflow, value, store, of_the_run, quiet=quiet, wait=options.get("wait", 0.0))
    finally:
        store.close()
    report.show_ending(ending, again, as_json=options["as_json"], quiet=quiet)
    return ending.code


def _again(
    store: Checkpointer, run_id: str, target: str, options: dict[str, Any]
) -> report.CommandLine | None:
    """The command line that goes on with a run; None when its store is gone with this process."""
    if not outlives_us(store):
        return None
    return report.CommandLine("weft", "resume", *store_words(options["url"]), about=(run_id, target))


def _or_json(work: Callable[[], int], run_id: str | None, *, as_json: bool) -> int:
    """Programs that ask for JSON get it, even when nothing could be run."""
    try:
        return work()
    except (Refusal, WeftError) as error:
        if as_json:
            refused = {"status": "refused", "run_id": run_id, "output": None}
            told = {"type": _type_of(error), "message": str(error), "notes": []}
            report.out(report.json_text({**refused, "error": told, "questions": []}))
        raise


def _type_of(error: Refusal | WeftError) -> str:
    cause = error.__cause__ if isinstance(error, Refusal) else error
    return type(cause).__name__ if isinstance(cause, WeftError) else "UsageError"


# Commands that look at what is recorded


@weft.command(epilog=EXIT_CODES)
@_store_option
@click.option("--status", type=click.Choice([s.value for s in RunStatus]), help="Only such.")
@click.option("--thread-id", metavar="ID", help="Only those of this conversation.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="So many.")
@click.option("--delete", "doomed", multiple=True, metavar="RUN", help="Forget this run instead.")
@_json_option
def runs(
    *,
    url: str | None,
    status: str | None,
    thread_id: str | None,
    limit: int,
    doomed: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the recorded runs, the newest first."""
    with existing_store(url) as store:
        for run_id in doomed:
            Runs(store).delete(run_id)
            report.note(f"run {printable(run_id)} is deleted")
        if doomed:
            return
        found = Runs(store).list(thread_id=thread_id, status=status, limit=limit)
        if as_json:
            report.out(report.json_text([report.run_as_dict(info) for info in found]))
        elif found:
            report.show_runs(found)
        else:
            report.note("no runs")


@weft.command(epilog=EXIT_CODES)
@_store_option
@click.option("--days", type=float, metavar="N", help="Forget what has finished longer ago.")
@click.option(
    "--failed-days",
    type=float,
    metavar="N",
    help="The same for what failed or was cancelled; else as --days.",
)
@click.option("--last", type=int, metavar="N", help="Forget all but so many, those that ended last.")
def prune(*, url: str | None, days: float | None, failed_days: float | None, last: int | None) -> None:
    """Forget old runs that have ended. Those that are running, or wait for an answer, stay.

    A store can do that by itself: --checkpointer 'sqlite:///weft.db?days=30&max_bytes=2GB'.
    """
    if days is None and failed_days is None and last is None:
        raise Refusal("say what is to be forgotten: --days, --failed-days or --last")
    keep = Keep(days=days, failed_days=failed_days, last=last)
    with existing_store(url) as store:
        forgotten = Runs(store).prune(keep)
        report.note(
            f"{forgotten} run{'' if forgotten == 1 else 's'} forgotten; `weft vacuum` gives their room back"
        )


@weft.command(epilog=EXIT_CODES)
@_store_option
def vacuum(url: str | None) -> None:
    """Give the room of deleted runs back to the disk. Nothing else can write to a SQLite file meanwhile."""
    with existing_store(url) as store:
        Runs(store).vacuum()


@weft.command(epilog=EXIT_CODES)
@click.argument("run_id", metavar="RUN")
@_store_option
@_json_option
@click.option(
    "--timeline",
    "timeline",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="What happened when instead, what decided when the run ended and what limits cost: here, or drawn to "
    "FILE.svg, FILE.html or FILE.txt. To be given after RUN.",
)
def show(run_id: str, url: str | None, as_json: bool, timeline: str | None) -> None:
    """Show a RUN: its calls, how they ended and when, errors, open questions and how to answer them."""
    if timeline is not None and as_json:
        raise Refusal("--timeline and --json do not go together: --json has the times of every call")
    with existing_store(url) as store:
        info = Runs(store).show(run_id)
        if timeline is not None:
            report.show_timeline(info.timeline(), timeline)
        elif as_json:
            report.out(report.json_text(report.run_with_calls_as_dict(info)))
        else:
            report.show_run(info, store_words(url))


@weft.command(epilog=EXIT_CODES)
@click.argument("run_id", metavar="RUN")
@_store_option
@click.option(
    "--last",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="So many that are there already.",
)
@_json_option
def tail(run_id: str, url: str | None, last: int, as_json: bool) -> int:
    """Follow a RUN of whatever process: its calls as they end, until it has ended. One JSON a line with --json."""
    with existing_store(url) as store:
        found = Runs(store)
        for told in found.follow(run_id, last=last):
            report.show_told(told, as_json=as_json)
        info = found.show(run_id)
        if not as_json:
            report.note(f"run {printable(run_id)} is {info.status}{f': {info.error}' if info.error else ''}")
        return {"finished": Code.FINISHED, "suspended": Code.SUSPENDED}.get(info.status, Code.FAILED)


@weft.command(epilog=EXIT_CODES)
@click.argument("run_id", metavar="RUN")
@click.argument("target")
@_store_option
@_json_option
def plan(run_id: str, target: str, url: str | None, as_json: bool) -> None:
    """Say what resuming a RUN would do, without doing it: what it reuses, runs again, and has no use for.

    TARGET is the workflow, as for `weft run`. Its code between the steps runs for that; no step does.
    """
    workflow = load_target(target)
    with existing_store(url) as store:
        found = Runs(store).plan(run_id, workflow)
        if as_json:
            report.out(report.json_text(report.plan_as_dict(found)))
        else:
            report.show_plan(found)


@weft.command(epilog=EXIT_CODES)
@click.argument("run_id", metavar="RUN")
@click.argument("answers", nargs=-1, required=True, metavar="ID=JSON...")
@_store_option
def answer(run_id: str, answers: tuple[str, ...], url: str | None) -> None:
    """Answer open questions of a RUN. Whoever runs it takes the answers up; else `weft resume` does."""
    given = answers_by_id(answers)
    with existing_store(url) as store:
        found = Runs(store)
        found.answer(run_id, given)
        left = len(found.show(run_id).questions)
        report.note(f"answered {len(given)}, {left} left open" if left else "answered; none is left open")
        again = report.CommandLine("weft", "resume", *store_words(url), about=(run_id,))
        report.note(f"unless a process runs it now, go on with: {again()} TARGET")
