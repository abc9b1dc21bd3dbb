"""The examples, as their users run them: a process that is killed, started again, and asked for its report."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from killing import kill_at_effect

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "digest.py"
JOBS = 2
SUBJECTS = (
    "otters bridges glaciers violins orchards satellites harbours dictionaries kilns beehives tides".split()
)


class Digest:
    """One folder of documents, and the command that digests it."""

    def __init__(self, folder: Path) -> None:
        self.documents = folder / "documents"
        self.documents.mkdir(parents=True)
        self.log = folder / "effects.log"
        self.report = folder / "report.md"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "WEFT_"))}
        for subject in SUBJECTS:
            self.write(f"{subject}.md", text_about(subject))

    def write(self, name: str, text: str) -> None:
        (self.documents / name).write_text(text, encoding="utf-8")

    def start(self, *options: object, delay: float = 0.0) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-W", "error", str(SCRIPT), str(self.documents), "-o", str(self.report)),
                *("--log", str(self.log), "--jobs", str(JOBS), "--delay", str(delay), *map(str, options)),
            ],
            cwd=self.documents.parent,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: object, delay: float = 0.0) -> subprocess.CompletedProcess[str]:
        process = self.start(*options, delay=delay)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def effects(self) -> list[tuple[str, str]]:
        """(process, what it did to which document), in the order in which it happened."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(process, what) for process, _, what in (line.partition(" ") for line in lines)]

    def text(self) -> str:
        """The report without its date."""
        return re.sub(r"\d{4}-\d{2}-\d{2}", "DATE", self.report.read_text(encoding="utf-8"))


def text_about(subject: str) -> str:
    return (
        f"---\ntitle: All about {subject}\n---\n\n"
        f"The study of {subject} begins with patience, and most people who study {subject} never stop. "
        f"Dr. Hill says that {subject} cannot be understood without maps, e.g. old ones, of the country. "
        f"This is so.\n\n## Where to look\n\n"
        f"Every town archives its {subject}, and [all may read](https://example.org/{subject}) that. "
        f"In 1911 the archive of {subject} was moved.\n\n```python\nprint('not prose')\n```\n"
    )


@pytest.fixture
def digest(tmp_path):
    return Digest(tmp_path)


def test_the_report_says_what_is_in_the_documents(digest):
    done = digest.run()
    assert done.returncode == 0, done.stderr
    assert "11 documents digested" in done.stdout
    report = digest.text()
    assert report.startswith("# Digest of documents\n")
    for subject in SUBJECTS:
        section = report.partition(f"\n## All about {subject}\n")[2].partition("\n## ")[0]
        assert f"The study of {subject} begins with patience" in section
        assert f"Dr. Hill says that {subject} cannot be understood without maps, e.g. old ones," in section
        assert re.search(rf"- about: [^\n]*{subject}", section)
        assert re.search(r"`: \d\d words in \d sentences, 1 heading, 1 link, 1 min to read", section)
        assert "not prose" not in section
        assert "This is so." not in section  # says nothing
    assert "example.org" not in report
    assert not list(digest.report.parent.glob(".report*"))


@pytest.mark.parametrize("moments", [[1], [13], [16], [14, 4, 2]], ids=str)
def test_killed_at_any_moment_it_goes_on_with_the_same_command(tmp_path, moments):
    """1. processes are killed after so many effects; 2. the last one ends; 3. nothing used was done again."""
    undisturbed = Digest(tmp_path / "undisturbed")
    assert undisturbed.run().returncode == 0
    digest = Digest(tmp_path / "killed")
    killed = []
    for moment in moments:
        process = digest.start(delay=0.2)
        assert kill_at_effect(process, digest.log, len(digest.effects()) + moment), (
            "it was to be killed half-way"
        )
        killed.append(str(process.pid))

    began = time.monotonic()
    done = digest.run(delay=0.2)
    assert done.returncode == 0, done.stderr
    assert "going on with what is done" in done.stderr
    assert time.monotonic() - began < 8, "a dead owner's run is taken over at once"
    assert digest.text() == undisturbed.text().replace(str(undisturbed.documents), str(digest.documents))

    effects = digest.effects()
    assert {what for _, what in effects} == {what for _, what in undisturbed.effects()}
    first_digest = next(at for at, (_, what) in enumerate(effects) if what.startswith("digest"))
    later_processes = {process for process, _ in effects[first_digest:]} - {effects[first_digest][0]}
    again = [what for process, what in effects if process in later_processes and what.startswith("survey")]
    assert not again, "every digest has used every survey"
    in_flight = {
        what for pid in killed for what in [what for process, what in effects if process == pid][-JOBS:]
    }  # done, perhaps, but killed before that was recorded
    for what, times in Counter(what for _, what in effects).items():
        assert times == 1 or what in in_flight or what.startswith("survey"), what


def test_again_on_an_unchanged_folder_nothing_is_done_and_on_a_changed_one_everything(digest):
    assert digest.run().returncode == 0
    first = digest.text()
    effects = len(digest.effects())
    digest.report.unlink()
    again = digest.run()
    assert "done already" in again.stderr
    assert digest.text() == first
    assert len(digest.effects()) == effects
    digest.write("otters.md", text_about("badgers"))
    assert digest.run().returncode == 0
    assert "All about badgers" in digest.text()
    changed = len(digest.effects())
    assert digest.run("--fresh").returncode == 0
    assert len(digest.effects()) == changed + effects


def test_documents_that_cannot_be_read_are_in_the_report(digest):
    (digest.documents / "latin.txt").write_bytes("Ein schöner Satz.".encode("latin-1"))
    (digest.documents / "binary.txt").write_bytes(b"\x00\x01")
    (digest.documents / "empty.rst").write_bytes(b"")
    (digest.documents / "gone.md").symlink_to("nowhere.md")
    done = digest.run()
    assert done.returncode == 0
    failures = digest.text().partition("## Not digested")[2]
    assert "- `latin.txt`: is not UTF-8: byte 0xf6 at 7\n" in failures
    assert "- `binary.txt`: is no text: it contains NUL bytes\n" in failures
    assert "- `empty.rst`: has no text\n" in failures
    assert "- `gone.md`: No such file or directory\n" in failures
    assert "not digested: latin.txt" in done.stderr


def test_a_second_process_is_told_that_the_first_one_lives(digest):
    first = digest.start(delay=0.5)
    deadline = time.monotonic() + 20
    while not digest.effects() and time.monotonic() < deadline:
        time.sleep(0.01)
    second = digest.run()
    first.kill()
    first.communicate()
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].startswith("digest: run ")
    assert not digest.report.exists()


def test_ctrl_c_stops_it_and_the_same_command_goes_on(digest):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of `pytest &` would ignore it
    try:
        process = digest.start(delay=0.3)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 20
    while len(digest.effects()) < 13 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert digest.run().returncode == 0
    assert len(digest.effects()) <= 22 + JOBS


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--jobs", "0"], "--jobs"), (["--delay", "-1"], "--delay"), (["--model", "m"], "OPENAI_BASE_URL")],
)
def test_a_wrong_option_is_one_sentence(digest, options, message):
    done = digest.run(*options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


class Model:
    """An OpenAI-compatible endpoint with troubles: each is given once, the last one for ever."""

    def __init__(self) -> None:
        self.troubles: dict[str, list[tuple[int, dict[str, str]]]] = {}  # by title
        self.asked: list[tuple[float, str]] = []
        self.bodies: list[dict[str, object]] = []
        self.headers: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def answer(self, path: str, authorization: str, body: dict) -> tuple[int, dict[str, str], object]:
        prompt = body["messages"][0]["content"]
        title = re.search(r"Title: (.*)", prompt)[1]
        with self.lock:
            self.asked.append((time.monotonic(), title))
            self.bodies.append(body)
            self.headers.append(f"{path} {authorization}")
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            trouble = self.troubles.get(title) or [(200, {})]
            status, headers = trouble.pop(0) if len(trouble) > 1 else trouble[0]
        time.sleep(0.02)
        with self.lock:
            self.at_once -= 1
        if status != 200:
            return status, headers, {"error": "no"}
        content = f"The model\nread '{title}'."
        return 200, {}, {"choices": [{"message": {"role": "assistant", "content": content}}]}

    def times(self, title: str) -> list[float]:
        return [at for at, asked in self.asked if asked == title]

    @contextmanager
    def serving(self):
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, answer = model.answer(self.path, self.headers["Authorization"], body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/v1/"
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture
def model(digest):
    model = Model()
    with model.serving() as url:
        digest.environment |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-1", "WEFT_MODEL": "tiny"}
        yield model


def test_a_model_writes_the_summaries_and_is_asked_again_when_it_is_busy(digest, model):
    model.troubles["All about otters"] = [(429, {"Retry-After": "2"}), (200, {})]
    model.troubles["All about tides"] = [(500, {}), (200, {})]
    done = digest.run()
    assert done.returncode == 0, done.stderr
    assert all(f"The model read 'All about {subject}'." in digest.text() for subject in SUBJECTS)
    assert len(model.asked) == len(SUBJECTS) + 2
    first, second = model.times("All about otters")
    assert 2 <= second - first < 3, "Retry-After is what decides"
    assert len(model.times("All about tides")) == 2
    assert model.most_at_once == JOBS
    assert set(model.headers) == {"/v1/chat/completions Bearer sk-1"}
    assert {body["model"] for body in model.bodies} == {"tiny"}


def test_what_a_model_refused_is_asked_again_by_the_same_command_and_nothing_else_is(digest, model):
    """The rest is done and paid for; only what failed the run is tried again."""
    refused = ["All about kilns", "All about bridges"]
    model.troubles |= {title: [(401, {})] for title in refused}
    failed = digest.run()
    assert failed.returncode == 1
    assert (
        "2 of 11 documents got no summary: the model's endpoint answered 401 Unauthorized." in failed.stderr
    )
    assert not digest.report.exists()
    assert len(model.asked) == len(SUBJECTS)
    model.troubles.clear()
    model.asked.clear()
    done = digest.run()
    assert done.returncode == 0, done.stderr
    assert sorted(title for _, title in model.asked) == sorted(refused)
    assert all(f"The model read 'All about {subject}'." in digest.text() for subject in SUBJECTS)


def test_an_answer_that_is_no_completion_is_one_sentence(digest, model):
    model.troubles |= {f"All about {subject}": [(404, {})] for subject in SUBJECTS}
    done = digest.run()
    assert done.returncode == 1
    assert "404 Not Found" in done.stderr.splitlines()[-1]


class Post:
    """One day's post, and the command that sorts it."""

    SCRIPT = ROOT / "examples" / "fanout.py"
    MESSAGES = 20
    AT_ONCE = 10  # requests

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = folder / "answers.log"

    def start(self, *options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-W", "error", str(self.SCRIPT), "--messages", str(self.MESSAGES)),
                *("--log", str(self.log), *map(str, options)),
            ],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sort(self, *options: object) -> tuple[list[str], str]:
        """A line for each message, and what is said about all of them."""
        process = self.start(*options)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert not err
        lines, _, summary = out.partition("\n\n")
        return lines.splitlines(), summary

    def answers(self) -> list[tuple[str, str]]:
        """(process, question) of each answer that the model gave."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(process, question) for process, _, question in (line.partition(" ") for line in lines)]


def test_the_post_is_sorted_within_what_the_model_allows(tmp_path):
    post = Post(tmp_path)
    lines, summary = post.sort()
    assert [int(line.split()[0]) for line in lines] == list(range(1, post.MESSAGES + 1))
    assert lines[12] == "  13  FAILED  message: the message is empty"
    assert sum("FAILED" in line for line in lines) == 1
    desks = re.findall(r"\d+ (person|reply|refund)", summary)
    assert sorted(desks) == ["person", "refund", "reply"]
    assert 5 < int(re.search(r"to (\d+) requests at once", summary)[1]) <= post.AT_ONCE
    refused, lost = re.search(r"asked again: (\d+) refused, (\d+) with a lost connection", summary).groups()
    assert int(refused) >= 1, "the model was too busy once"
    assert int(lost) >= 1
    assert len(post.answers()) == int(re.search(r"gave (\d+) answers", summary)[1])


def test_sorting_the_post_goes_on_where_it_was_killed_and_asks_nothing_twice(tmp_path):
    """1. it is killed when some answers have come; 2. the same command ends it; 3. it says the same as undisturbed."""
    undisturbed = Post(tmp_path / "undisturbed")
    expected, _ = undisturbed.sort()
    post = Post(tmp_path / "killed")
    assert kill_at_effect(post.start(), post.log, 30), "it was to be killed half-way"
    killed_at = len(post.answers())
    lines, summary = post.sort()
    assert lines == expected
    times = Counter(question for _, question in post.answers())
    wanted = Counter(question for _, question in undisturbed.answers())
    assert times.keys() == wanted.keys()
    again = sum((times - wanted).values())
    assert again <= post.AT_ONCE, "only answers that were on their way are asked for again"
    assert int(re.search(r"gave (\d+) answers", summary)[1]) == wanted.total() - killed_at + again


def test_post_that_is_sorted_is_shown_again_and_the_model_is_not_asked(tmp_path):
    post = Post(tmp_path)
    lines, _ = post.sort()
    again, summary = post.sort()
    assert again == lines
    assert "gave 0 answers" in summary
    answers = len(post.answers())
    assert post.sort("--fresh")[0] == lines
    assert len(post.answers()) == 2 * answers


def test_sorting_the_post_stops_at_ctrl_c(tmp_path):
    post = Post(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of `pytest &` would ignore it
    try:
        process = post.start()
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 20
    while len(post.answers()) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130, err
    assert err == "fanout: stopped; the same command goes on from here\n"
