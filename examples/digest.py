"""Digest a folder of documents: summaries, keywords and statistics, in one Markdown report.

    python examples/digest.py                           the documents of this repository
    python examples/digest.py ~/notes -o notes.md       any folder with .md, .rst and .txt files

Every document is work of its own, many at a time, and what is done is recorded in a SQLite file as it is
done. Kill the program at any moment (``kill -9`` too) and start it again with the same command: it goes on
where it was. A folder that has changed in between is a new run.

A summary is made of a document's most telling sentences. If the environment names a model behind an
OpenAI-compatible endpoint (OPENAI_BASE_URL, WEFT_MODEL and, where it needs one, OPENAI_API_KEY), that model
writes it instead.

The workflow comes first, then the program around it and the report; what it knows about text is in prose.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import prose

from weft import RetryPolicy, RunStatus, SqliteSaver, WeftError, entrypoint, get_runtime, task

# What goes from task to task. Dataclasses that annotations name can be recorded.


@dataclass(frozen=True)
class Job:
    folder: Path
    names: list[str]
    model: str | None


@dataclass(frozen=True)
class Facts:
    name: str
    title: str
    words: int
    sentences: int
    headings: int
    links: int


@dataclass(frozen=True)
class Survey:
    facts: Facts
    terms: dict[str, int]  # how often each of the document's most frequent terms occurs


@dataclass(frozen=True)
class Digest:
    facts: Facts
    summary: str
    keywords: dict[str, float]  # with their weights, the heaviest first


@dataclass(frozen=True)
class Failure:
    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    digests: list[Digest]
    failures: list[Failure]
    keywords: list[str]


@dataclass(frozen=True)
class Settings:
    """What may differ from one start of a run to the next: it is not recorded."""

    delay: float
    log: Path | None


# The workflow.


@task
def survey(folder: Path, name: str) -> Survey:
    """First pass: what one document says about itself."""
    document = prose.parse(read(folder / name), name)
    if not document.sentences:
        raise ValueError("has no text")
    terms = Counter(prose.terms([*document.sentences, *document.headings, document.title]))
    facts = Facts(
        name,
        document.title,
        words=document.words,
        sentences=len(document.sentences),
        headings=len(document.headings),
        links=document.links,
    )
    log("survey", name)
    return Survey(facts, dict(terms.most_common(300)))


@task
def digest(job: Job, surveyed: Survey, rarity: dict[str, float]) -> Digest:
    """Second pass: what one document says, in the light of all the others."""
    facts = surveyed.facts
    settings: Settings = get_runtime().context
    time.sleep(settings.delay)  # the real work takes milliseconds; --delay makes a run that one can watch
    document = prose.parse(read(job.folder / facts.name), facts.name)
    if job.model:
        summary = ask_model(job.model, facts.title, "\n".join(document.sentences)).result()
    else:
        summary = " ".join(prose.telling_sentences(document, rarity)) or prose.outline(document.headings)
    log("digest", facts.name)
    return Digest(facts, summary, prose.keywords(surveyed.terms, rarity))


class ModelError(Exception):
    """The model gave no summary, and will not give one if asked again."""


class ModelBusyError(ModelError):
    """The model gave no summary this time. Weft waits for as long as ``retry_after`` says, if it is set."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


@task(retry_policy=RetryPolicy(max_attempts=5, retry_on=ModelBusyError), timeout=120)
def ask_model(model: str, title: str, text: str) -> str:
    """A summary by the model; a task of its own, so that an answer that was paid for is asked for once."""
    prompt = f"Summarise this document in three plain sentences. Title: {title}\n\n{text[:24_000]}"
    request = urllib.request.Request(  # noqa: S310 - the user names the endpoint
        os.environ.get("OPENAI_BASE_URL", "").rstrip("/") + "/chat/completions",
        data=json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}]}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - the same
            return " ".join(str(json.load(response)["choices"][0]["message"]["content"]).split())
    except urllib.error.HTTPError as error:
        with error:
            message = f"the model's endpoint answered {error.code} {error.reason}"
            if error.code == 429 or error.code >= 500:
                told = error.headers.get("Retry-After") or ""
                raise ModelBusyError(message, float(told) if told.isdecimal() else None) from None
            raise ModelError(message) from None
    except OSError as error:  # no connection, or one that was lost or timed out
        raise ModelBusyError(f"the model's endpoint cannot be reached: {error}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"the model's endpoint answered with no completion: {error!r}") from None


@entrypoint()
def digest_folder(job: Job) -> Report:
    """Survey all documents at once, then digest all of them at once, and join what came out."""
    failures: list[Failure] = []
    surveys: list[Survey] = []
    for name, surveyed in [(name, survey(job.folder, name)) for name in job.names]:
        try:
            surveys.append(surveyed.result())
        except (OSError, ValueError) as error:  # one document that cannot be read stops nothing
            failures.append(Failure(name, reason_of(error)))

    found_in = Counter(term for each in surveys for term in each.terms)
    rarity = {term: math.log(1 + len(surveys) / count) for term, count in found_in.items()}
    digests: list[Digest] = []
    no_answer: list[Exception] = []
    for pending in [digest(job, each, {term: rarity[term] for term in each.terms}) for each in surveys]:
        try:
            digests.append(pending.result())
        except ModelError as error:
            no_answer.append(error)
    if no_answer:  # a failed run: the same command asks again, and only for what is missing
        raise ExceptionGroup(f"{len(no_answer)} of {len(surveys)} documents got no summary", no_answer)

    return Report(digests, failures, list(prose.themes([each.terms for each in surveys], rarity)))


# The program.


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    output: Path = args.output.resolve()
    folder: Path = args.folder.resolve()
    names = sorted(str(path.relative_to(folder)) for path in documents(folder) if path != output)
    job = Job(folder, names, args.model)
    database: Path = args.database or output.parent / ".weft" / "digest.db"
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with SqliteSaver(database) as store:
            report = run(job, store, args)
        write_atomically(output, render(report, folder))
    except KeyboardInterrupt:
        return say("stopped; the same command goes on from here", code=130)
    except ExceptionGroup as group:
        reasons = sorted({str(error) for error in group.exceptions})
        return say(f"{group.message}: {'; '.join(reasons)}. The same command tries these again.", code=1)
    except (WeftError, OSError) as error:
        return say(str(error), code=1)
    for failure in report.failures[:5]:
        say(f"not digested: {failure.name}: {failure.reason}")
    if len(report.failures) > 5:
        say(f"not digested: {len(report.failures) - 5} more; the report names them")
    print(f"{len(report.digests)} documents digested: {args.output}")
    return 0


def run(job: Job, store: SqliteSaver, args: argparse.Namespace) -> Report:
    """Begin the run of this job, or go on with it, or fetch what it gave if it is finished."""
    run_id = run_id_of(job)
    if args.fresh:
        store.delete_run(run_id)
    elif (found := store.find(run_id)) is not None:
        finished = found.status is RunStatus.FINISHED
        say("all of this is done already; --fresh does it anew" if finished else "going on with what is done")
    return digest_folder.invoke(
        job,
        run_id=run_id,
        checkpointer=store,
        max_concurrent=args.jobs,
        context=Settings(args.delay, args.log),
        progress=sys.stderr.isatty(),
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Digest a folder of documents into one Markdown report.")
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=here, help="default: this repository")
    add("-o", "--output", type=Path, default=Path("digest.md"), help="default: digest.md")
    add("-j", "--jobs", type=int, default=8, help="documents at a time; default: 8")
    add(
        "--database",
        type=Path,
        help="where to record what is done; default: .weft/digest.db beside the report",
    )
    add("--fresh", action="store_true", help="forget what is done and begin anew")
    add("--model", default=os.environ.get("WEFT_MODEL"), help="default: $WEFT_MODEL")
    add("--delay", type=float, default=0.0, help="seconds to pause for each document, to watch a run")
    add("--log", type=Path, help="append a line to this file for each pass over a document")
    args = parser.parse_args(arguments)
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is no folder")
    if not any(documents(args.folder)):
        parser.error(f"there are no {', '.join(SUFFIXES)} files in {args.folder}")
    if args.model and not os.environ.get("OPENAI_BASE_URL"):
        parser.error("to use a model, set OPENAI_BASE_URL")
    if args.jobs < 1 or not 0 <= args.delay < math.inf:
        parser.error("--jobs must be at least 1, --delay at least 0")
    return args


SUFFIXES = (".md", ".rst", ".txt")
LEFT_OUT = {"node_modules", "site-packages", "build"}


def documents(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in LEFT_OUT]
        yield from (Path(at, name) for name in files if name.endswith(SUFFIXES) and not name.startswith("."))


def run_id_of(job: Job) -> str:
    """The same for the same files, unchanged, and the same model: that is what makes it one run."""
    hashed = hashlib.sha256(f"{job.folder} {job.model}".encode())
    for name in job.names:
        stat = (job.folder / name).lstat()
        hashed.update(f"\n{name} {stat.st_size} {stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return f"digest-{hashed.hexdigest()[:16]}"


def log(what: str, name: str) -> None:
    settings: Settings = get_runtime().context
    if settings.log is not None:
        with settings.log.open("a") as file:
            file.write(f"{os.getpid()} {what} {name}\n")


def say(message: str, *, code: int = 0) -> int:
    print(f"digest: {message}", file=sys.stderr)
    return code


# The report.


def render(report: Report, folder: Path) -> str:
    facts = [digest.facts for digest in report.digests]
    words = sum(each.words for each in facts)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"# Digest of {folder.name}",
        "",
        f"{len(facts)} documents, {words:,} words, {reading_time(words)} to read. From `{folder}`, {today}.",
        "",
        f"**What they are about:** {', '.join(report.keywords) or 'nothing that stands out'}.",
        "",
        "| document | title | words | reading | about |",
        "|---|---|--:|--:|---|",
    ]
    for number, digest in enumerate(report.digests, 1):
        about = ", ".join(list(digest.keywords)[:3])
        lines.append(
            f"| [{cell(digest.facts.name)}](#document-{number}) | {cell(digest.facts.title)} "
            f"| {digest.facts.words:,} | {reading_time(digest.facts.words)} | {cell(about)} |"
        )
    lines.append(f"| **all** | | **{words:,}** | **{reading_time(words)}** | |")
    for number, digest in enumerate(report.digests, 1):
        lines += ["", *section(number, digest)]
    if report.failures:
        lines += ["", "## Not digested", ""]
        lines += [f"- `{failure.name}`: {failure.reason}" for failure in report.failures]
    lines += [
        "",
        "## In all",
        "",
        f"- {counted(len(facts), 'document')}, {len(report.failures)} that could not be digested",
        f"- {words:,} words in {sum(each.sentences for each in facts):,} sentences",
        f"- {sum(each.headings for each in facts):,} headings, {sum(each.links for each in facts):,} links",
    ]
    return "\n".join(lines) + "\n"


def section(number: int, digest: Digest) -> list[str]:
    facts = digest.facts
    counts = [
        f"{counted(facts.words, 'word')} in {counted(facts.sentences, 'sentence')}",
        counted(facts.headings, "heading"),
        counted(facts.links, "link"),
        f"{reading_time(facts.words)} to read",
    ]
    return [
        f'<a id="document-{number}"></a>',
        "",
        f"## {facts.title}",
        "",
        digest.summary,
        "",
        f"- about: {', '.join(digest.keywords) or 'nothing that stands out'}",
        f"- `{facts.name}`: {', '.join(counts)}",
    ]


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def reading_time(words: int) -> str:
    minutes = round(words / 230)  # a usual pace
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def write_atomically(path: Path, text: str) -> None:
    """Whoever reads the file sees the old text or the new one, never half of it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def read(path: Path) -> str:
    data = path.read_bytes()
    if b"\0" in data:
        raise ValueError("is no text: it contains NUL bytes")
    return data.decode("utf-8-sig")


def reason_of(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


if __name__ == "__main__":
    sys.exit(main())
