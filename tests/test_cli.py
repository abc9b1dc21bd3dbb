"""The command line, in real processes: what goes where, exit codes, kills, terminals."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

import weft

WORKFLOWS = """
import asyncio, os, sys, time
from dataclasses import dataclass
from pathlib import Path

from weft import entrypoint, interrupt, task


@dataclass
class Doc:
    name: str


@task
def effect(n):
    with open("effects", "a") as file:
        file.write(f"{n}\\n")
    time.sleep(0.05)
    while Path("hold").exists():
        time.sleep(0.005)
    return n


@entrypoint()
def work(given):
    return sum(f.result() for f in [effect(n) for n in range(given["n"])])


@entrypoint()
async def awork(given):
    return sum(await asyncio.gather(*[effect(n) for n in range(given["n"])]))


@entrypoint()
def echo(given):
    return given


@task
def make() -> Doc:
    return Doc("x")


@entrypoint()
def doc(given):
    return make().result()


@entrypoint()
def odd(given):
    return {"path": Path("x"), "nan": float("nan"), ("a", 1): 2}


@task
def fail(text):
    error = ValueError(text)
    error.add_note("look here")
    raise error


@entrypoint()
def failing(given):
    return fail("it broke").result()


@entrypoint()
def chained(given):
    try:
        fail("first").result()
    except ValueError as error:
        raise KeyError("second") from error


@entrypoint()
def leaving(given):
    sys.exit(3)


@task
def ask(word):
    return interrupt({"about": word})


@entrypoint()
def asking(words):
    return [f.result() for f in [ask(word) for word in words]]


@entrypoint()
def sure(given):
    return interrupt("sure?")


@task
def flaky(n):
    time.sleep(0.1)
    if n == 3:
        raise ValueError(n)


@entrypoint()
def shown(given):
    print("printed by the body")
    for future in [flaky(n) for n in range(30)]:
        try:
            future.result()
        except ValueError:
            pass


@entrypoint(checkpointer="sqlite:///own.db")
def kept(given):
    return effect(1).result()


plain = 3
"""

SOURCE = Path(weft.__file__).parent.parent
# -P: as in the installed script, the current folder is not on the path by itself.
COMMAND = [sys.executable, "-P", "-W", "error", "-m", "weft.cli"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "flows.py").write_text(WORKFLOWS)
    return tmp_path


@pytest.fixture
def environment():
    left_out = {"CI", "NO_COLOR", "WEFT_CHECKPOINTER"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PYTHONPATH": str(SOURCE), "TERM": "xterm", "PYTHONUTF8": "1"}


@pytest.fixture
def cli(folder, environment):
    def run(*words, code=0, **options):
        env = {**environment, **options.pop("env", {})}
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )
        assert done.returncode == code, done.stderr
        assert "weft/" not in done.stderr.replace(str(folder), ""), "none of our frames"
        return done

    return run


@pytest.fixture
def begin(folder, environment):
    """Start a command and leave it running."""
    begun = []

    def start(*words):
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [*COMMAND, *words], cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def effects(folder):
    path = folder / "effects"
    return path.read_text().split() if path.exists() else []


def wait_for_effects(folder, count):
    until = time.monotonic() + 30
    while len(effects(folder)) < count:
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.005)


def only_sentence(done):
    """One sentence on stderr, and nothing else anywhere."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


# Results


def test_the_result_goes_to_stdout_and_all_else_to_stderr(cli):
    done = cli("run", "flows.py:work", "--input", '{"n": 3}')
    assert done.stdout == "3\n"
    first, *lines = done.stderr.splitlines()
    run_id = re.fullmatch(r"run (\w+); if it stops, go on with: weft resume \1 flows.py:work", first).group(1)
    assert lines[0] == "work: begins"
    assert "effect: started" in lines
    assert re.fullmatch(r"work: finished after .*: 3 calls", lines[-1])
    assert json.loads(cli("show", run_id, "--json").stdout)["status"] == "finished"


def test_an_async_workflow_runs_as_well(cli):
    assert cli("run", "flows.py:awork", "-i", '{"n": 3}', "-q").stdout == "3\n"


def test_quiet_says_nothing_but_the_result(cli):
    done = cli("run", "flows.py:echo", "--input", '"x"', "--quiet")
    assert (done.stdout, done.stderr) == ('"x"\n', "")


def test_no_control_characters_when_piped(cli):
    done = cli("run", "flows.py:work", "-i", '{"n": 3}')
    table = cli("runs")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout + done.stderr + table.stdout + table.stderr)


@pytest.mark.parametrize(
    ("words", "stdin", "output"),
    [
        (["--input", '{"a": [1, "é"]}'], None, '{"a": [1, "é"]}'),
        (["--input-text", "just so"], None, '"just so"'),
        (["--input-file", "given.json"], None, "[1, 2]"),
        (["--input-file", "-"], "[3]", "[3]"),
        ([], None, "{}"),
    ],
)
def test_inputs(cli, folder, words, stdin, output):
    (folder / "given.json").write_text("[1, 2]")
    assert cli("run", "flows.py:echo", "-q", *words, input=stdin).stdout == f"{output}\n"


def test_a_result_that_is_no_json_is_its_repr(cli):
    assert cli("run", "flows.py:doc", "-q").stdout == "Doc(name='x')\n"


def test_json_is_json_whatever_the_result_is(cli):
    done = json.loads(cli("run", "flows.py:doc", "--json", "--run-id", "r").stdout)
    expected = {
        "status": "finished",
        "run_id": "r",
        "output": "Doc(name='x')",
        "error": None,
        "questions": [],
    }
    assert done == expected
    done = cli("run", "flows.py:odd", "--json", "-q", "--checkpointer", "memory:", code=0)
    assert json.loads(done.stdout)["output"] == {"path": "PosixPath('x')", "nan": "nan", "('a', 1)": 2}


def test_output_that_the_terminal_would_obey_is_escaped(cli):
    done = cli("run", "flows.py:echo", "-q", "--input", json.dumps("\x9b2J\x7f\ud800"))
    assert done.stdout == '"\\u009b2J\\u007f\\ud800"\n'
    assert json.loads(done.stdout) == "\x9b2J\x7f\ud800"


def test_modules_are_found_in_this_folder(cli):
    assert cli("run", "flows:echo", "-q").stdout == "{}\n"


def test_the_folder_of_a_file_comes_first_on_the_path(cli, folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "friend.py").write_text("value = 7")
    (folder / "sub" / "main.py").write_text(
        "from __future__ import annotations\nimport friend\nfrom weft import entrypoint\n"
        "@entrypoint()\ndef flow(x: int) -> int:\n    return friend.value\n"
    )
    assert cli("run", "sub/main.py:flow", "-q").stdout == "7\n"


def test_the_same_run_id_gives_the_recorded_result(cli, folder):
    for _ in range(2):
        done = cli("run", "flows.py:work", "--run-id", "r", "-i", '{"n": 3}')
        assert done.stdout == "3\n"
    assert "had finished before" in done.stderr
    assert cli("run", "flows.py:work", "--run-id", "r").stdout == "3\n", "it knows its input"
    assert cli("resume", "r", "flows.py:work").stdout == "3\n"
    assert sorted(effects(folder)) == ["0", "1", "2"]


def test_where_runs_are_recorded(cli, folder):
    cli("run", "flows.py:echo", "--run-id", "a")
    cli("run", "flows.py:echo", "--run-id", "b", "--checkpointer", "sqlite:///b.db")
    cli("run", "flows.py:echo", "--run-id", "c", env={"WEFT_CHECKPOINTER": "sqlite:///c.db"})
    cli("run", "flows.py:kept", "--run-id", "d")
    for name, run_id in (("weft", "a"), ("b", "b"), ("c", "c"), ("own", "d")):
        found = json.loads(cli("runs", "--json", "--checkpointer", f"sqlite:///{name}.db").stdout)
        assert [run["run_id"] for run in found] == [run_id]
    assert (
        "--checkpointer sqlite:///b.db"
        in cli("run", "flows.py:echo", "--checkpointer", "sqlite:///b.db").stderr
    )
    assert "resume" not in cli("run", "flows.py:echo", "--checkpointer", "memory:").stderr


def test_options_of_a_run_reach_it(cli):
    done = cli("run", "flows.py:work", "-i", '{"n": 40}', "--timeout", "0.3", "--max-concurrent", "1", code=1)
    assert "took longer than its timeout of 0.3 s" in done.stderr
    cli("run", "flows.py:echo", "--thread-id", "t", "--durability", "exit", "--run-id", "x")
    (run,) = json.loads(cli("runs", "--thread-id", "t", "--json").stdout)
    assert run["thread_id"] == "t"


# Failures


def test_a_failure_shows_the_error_its_notes_and_only_the_users_frames(cli):
    done = cli("run", "flows.py:failing", "--run-id", "r", code=1)
    assert done.stdout == ""
    assert "ValueError: it broke\nlook here\n" in done.stderr
    frames = re.findall(r'File "(.*)", line \d+, in (\w+)', done.stderr)
    assert [(Path(file).name, name) for file, name in frames] == [
        ("flows.py", "failing"),
        ("flows.py", "fail"),
    ]
    assert done.stderr.endswith("failed; go on with: weft resume r flows.py:failing\n")


def test_causes_are_shown_too(cli):
    done = cli("run", "flows.py:chained", code=1)
    assert "ValueError: first" in done.stderr
    assert "direct cause" in done.stderr
    assert "KeyError: 'second'" in done.stderr


def test_a_failure_as_json(cli):
    told = json.loads(cli("run", "flows.py:failing", "--run-id", "r", "--json", code=1).stdout)
    assert told["status"] == "failed"
    assert (told["error"]["type"], told["error"]["message"]) == ("builtins.ValueError", "it broke")
    assert told["error"]["notes"][0] == "look here"
    assert "weft: raised by 'fail'('it broke')" in told["error"]["notes"][1]


def test_a_body_that_leaves_the_process_is_a_failure(cli):
    assert "SystemExit: 3" in cli("run", "flows.py:leaving", code=1).stderr


# Wrong usage


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["flows.py"], "no target; write module:name"),
        (["nothing.py:x"], "there is no file 'nothing.py'"),
        (["nothing:x"], "there is no module 'nothing'"),
        (["nothing.at.all:x"], "there is no module 'nothing.at.all'"),
        (["flows.py:wrok"], "flows.py has no 'wrok'; workflows in it: work"),
        (["flows.py:plain"], "is no workflow but a int; workflows in it:"),
        (["broken.py:x"], "cannot be imported: ZeroDivisionError: division by zero ("),
        (["typo.py:x"], "cannot be imported: SyntaxError:"),
        (["exits.py:x"], "cannot be imported: SystemExit: 1"),
        (["needs.py:x"], "cannot be imported: ModuleNotFoundError: No module named 'absent'"),
        (["json.py:x"], "a module 'json' is loaded already; rename the file"),
        (["flows.py:echo", "--input", "{x"], "--input is not JSON"),
        (["flows.py:echo", "--input", "NaN"], "NaN is no number"),
        (["flows.py:echo", "--input", "null"], "the input null"),
        (["flows.py:echo", "--input", "[" * 100_000], "--input is not JSON"),
        (["flows.py:echo", "--input-file", "absent.json"], "'absent.json' cannot be read: No such file"),
        (["flows.py:echo", "--input-file", "."], "'.' cannot be read"),
        (["flows.py:echo", "--input-file", "binary"], "is not UTF-8"),
        (["flows.py:echo", "--input", "1", "--input-text", "x"], "give one of"),
        (["flows.py:echo", "--max-concurrent", "0"], "max_concurrent"),
        (["flows.py:echo", "--timeout", "-1"], "timeout"),
        (["flows.py:echo", "--checkpointer", "mysql://x"], "names no store"),
        (["flows.py:echo", "--colour"], "No such option"),
        ([], "Missing argument 'TARGET'"),
    ],
)
def test_what_is_typed_wrongly_is_one_sentence(cli, folder, words, sentence):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "typo.py").write_text("def\n")
    (folder / "exits.py").write_text("raise SystemExit(1)\n")
    (folder / "needs.py").write_text("import absent\n")
    (folder / "json.py").write_text("")
    (folder / "binary").write_bytes(b"\xff\xff")
    done = cli("run", *words, "-q", code=2)
    assert sentence in only_sentence(done)


def test_a_run_id_is_for_one_workflow_and_input(cli):
    cli("run", "flows.py:echo", "--run-id", "r", "-i", "1")
    assert "was recorded for workflow 'echo'" in only_sentence(
        cli("run", "flows.py:work", "--run-id", "r", "-q", code=2)
    )
    assert "input #" in only_sentence(cli("run", "flows.py:echo", "--run-id", "r", "-i", "2", "-q", code=2))


@pytest.mark.parametrize(
    "words", [["show", "digets"], ["resume", "digets", "flows.py:echo"], ["runs", "--delete", "digets"]]
)
def test_a_wrong_run_id_names_the_closest(cli, words):
    cli("run", "flows.py:echo", "--run-id", "digest")
    assert only_sentence(cli(*words, code=2)) == "Error: there is no run 'digets'; did you mean 'digest'?"


@pytest.mark.parametrize(
    "words", [["runs"], ["show", "x"], ["answer", "x", "0=1"], ["resume", "x", "flows.py:echo"]]
)
def test_to_look_creates_nothing(cli, folder, words):
    only_sentence(cli(*words, code=2))
    assert not (folder / "weft.db").exists()


def test_a_refusal_is_json_for_those_who_want_json(cli):
    done = cli("run", "flows.py:wrok", "--json", code=2)
    told = json.loads(done.stdout)
    assert (told["status"], told["error"]["type"]) == ("refused", "UsageError")
    assert "wrok" in told["error"]["message"]


@pytest.mark.parametrize("words", [["run", "flows.py:echo", "-q"], ["runs"]])
def test_a_store_that_cannot_be_used(cli, folder, words):
    (folder / "text.db").write_text("this is no database, but a longer text that says so")
    only_sentence(cli(*words, "--checkpointer", "sqlite:///text.db", code=5))


def test_a_store_in_no_folder(cli):
    only_sentence(
        cli("run", "flows.py:echo", "-q", "--checkpointer", "sqlite:////no/such/folder/a.db", code=5)
    )


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extras_it_says_what_to_install(environment, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from weft.cli import main; main(['runs'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == f'Error: the command line needs {missing}: pip install "weft[cli]"\n'


def test_help_tells_the_exit_codes(cli):
    for words in (
        [],
        ["--help"],
        ["run", "--help"],
        ["resume", "-h"],
        ["show", "-h"],
        ["runs", "-h"],
        ["answer", "-h"],
    ):
        text = cli(*words).stdout
        assert "0    finished" in text
        assert "130  interrupted with Ctrl-C" in text
    assert cli("--version").stdout.startswith("weft ")


# Looking


def test_runs_are_a_table(cli):
    cli("run", "flows.py:echo", "--run-id", "one")
    cli("run", "flows.py:failing", "--run-id", "two", code=1)
    head, second, first = cli("runs").stdout.splitlines()
    assert head.split() == ["RUN", "WORKFLOW", "STATUS", "THREAD", "BEGAN", "TOOK", "ERROR"]
    assert second.startswith("two  failing   failed")
    assert second.endswith("ValueError: it broke")
    assert first.startswith("one  echo      finished")
    assert [run["run_id"] for run in json.loads(cli("runs", "--json", "--status", "failed").stdout)] == [
        "two"
    ]
    assert len(cli("runs", "--limit", "1").stdout.splitlines()) == 2
    assert cli("runs", "--status", "cancelled").stderr == "no runs\n"


def test_show_tells_the_story_of_a_run(cli):
    cli("run", "flows.py:failing", "--run-id", "r", code=1)
    text = cli("show", "r").stdout
    assert re.search(r"^status +failed$", text, re.MULTILINE)
    assert re.search(r"^error +ValueError: it broke$", text, re.MULTILINE)
    assert re.search(r"^fail +failed +1 +\d\d:\d\d:\d\d +\d+ ms +ValueError: it broke$", text, re.MULTILINE)
    assert "go on with: weft resume r TARGET" in text
    (call,) = json.loads(cli("show", "r", "--json").stdout)["calls"]
    assert (call["step"], call["outcome"], call["attempts"]) == ("fail", "failed", 1)


def test_a_deleted_run_is_gone(cli):
    cli("run", "flows.py:echo", "--run-id", "a")
    cli("run", "flows.py:echo", "--run-id", "b")
    cli("runs", "--delete", "a")
    assert [run["run_id"] for run in json.loads(cli("runs", "--json").stdout)] == ["b"]


def test_a_reader_that_stops_reading_is_no_error(folder, environment, cli):
    cli("run", "flows.py:echo", "--run-id", "a")
    read, write = os.pipe()
    os.close(read)
    for words in (["runs"], ["run", "flows.py:echo", "-q"], ["show", "a"]):
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=folder,
            env=environment,
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(write)


def test_standard_streams_that_are_closed_are_no_error(folder, environment):
    line = " ".join([*COMMAND, "run", "flows.py:echo"])
    for closed, out in (("2>&-", b"{}\n"), ("2>&- >&-", b"")):
        done = subprocess.run(
            f"{line} {closed}",
            shell=True,
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, out)


# Questions


def test_questions_are_answered_from_other_processes(cli):
    done = cli("run", "flows.py:asking", "--run-id", "r", "-i", '["a", "b"]', code=3)
    assert done.stdout == ""
    assert '{"about": "a"}' in done.stderr
    assert "answer with: weft resume r flows.py:asking --answer " in done.stderr
    told = json.loads(cli("show", "r", "--json").stdout)
    ids = {question["value"]["about"]: question["id"] for question in told["questions"]}
    assert ids["a"] in cli("show", "r").stdout
    assert cli("answer", "r", f"{ids['b']}=2").stderr.startswith("answered 1, 1 left open\n")
    done = cli("resume", "r", "flows.py:asking", "--json", code=3)
    assert [question["id"] for question in json.loads(done.stdout)["questions"]] == [ids["a"]]
    assert cli("resume", "r", "flows.py:asking", "--answer", '{"x": 1}', "-q").stdout == '[{"x": 1}, 2]\n'


def test_several_answers_at_once(cli):
    cli("run", "flows.py:asking", "--run-id", "r", "-i", '["a", "b"]', code=3)
    ids = {q["value"]["about"]: q["id"] for q in json.loads(cli("show", "r", "--json").stdout)["questions"]}
    words = [word for about, key in ids.items() for word in ("--answer", f'{key}="{about}!"')]
    assert cli("resume", "r", "flows.py:asking", *words, "-q").stdout == '["a!", "b!"]\n'


def test_the_only_question_needs_no_id(cli):
    cli("run", "flows.py:sure", "--run-id", "r", code=3)
    assert cli("resume", "r", "flows.py:sure", "--answer", '"yes"', "-q").stdout == '"yes"\n'


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("yes", "is not JSON"),
        ("1", "2 questions are open: write --answer ID=JSON"),
        ("0" * 32 + "=1", f"no open question has the id '{'0' * 32}'"),
        ("0" * 32 + "=x", "is not JSON"),
    ],
)
def test_a_wrong_answer_is_one_sentence(cli, answer, sentence):
    cli("run", "flows.py:asking", "--run-id", "r", "-i", '["a", "b"]', code=3)
    if answer == "yes":
        cli("run", "flows.py:sure", "--run-id", "s", code=3)
        assert sentence in only_sentence(cli("resume", "s", "flows.py:sure", "--answer", answer, code=2))
        return
    assert sentence in only_sentence(cli("resume", "r", "flows.py:asking", "-q", "--answer", answer, code=2))


def test_answers_to_nothing_are_one_sentence(cli):
    cli("run", "flows.py:sure", "--run-id", "r", code=3)
    assert "open are: " in only_sentence(cli("answer", "r", "0" * 32 + "=1", code=2))
    assert "write ID=JSON" in only_sentence(cli("answer", "r", "1", code=2))
    cli("run", "flows.py:echo", "--run-id", "done")
    done = cli("resume", "done", "flows.py:echo", "--answer", "1", code=2)
    assert "no questions are open" in only_sentence(done)


# Kills, owners, Ctrl-C


@pytest.mark.parametrize("workflow", ["work", "awork"])
@pytest.mark.parametrize("again", [("resume", "r"), ("run", "--run-id", "r", "-i", '{"n": 60}')])
def test_after_kill_9_it_goes_on(cli, begin, folder, workflow, again):
    """A step whose result was recorded never runs again; only what was in flight does."""
    target = f"flows.py:{workflow}"
    process = begin("run", target, "--run-id", "r", "-i", '{"n": 60}', "--max-concurrent", "4")
    wait_for_effects(folder, 20)
    process.kill()
    process.wait()
    before = json.loads(cli("show", "r", "--json").stdout)
    recorded = {str(call["value"]) for call in before["calls"]}
    assert before["status"] == "running"
    assert 0 < len(recorded) < 60
    in_flight = set(effects(folder)) - recorded
    words = [*again, target] if again[0] == "resume" else ["run", target, *again[1:]]
    assert cli(*words).stdout == f"{sum(range(60))}\n"
    counts = {n: effects(folder).count(n) for n in map(str, range(60))}
    assert all(counts[n] == 1 for n in recorded), "none of these ran again"
    assert all(count == (2 if n in in_flight else 1) for n, count in counts.items())


def test_a_second_process_is_told_that_the_run_is_owned(cli, begin, folder):
    process = begin("run", "flows.py:work", "--run-id", "r", "-i", '{"n": 40}', "--max-concurrent", "1")
    wait_for_effects(folder, 2)
    (folder / "hold").touch()  # the run goes on for as long as the others take
    for words in (
        ["run", "flows.py:work", "--run-id", "r", "-i", '{"n": 40}', "-q"],
        ["resume", "r", "flows.py:work", "-q"],
        ["runs", "--delete", "r"],
    ):
        assert "has an owner that is still alive" in only_sentence(cli(*words, code=4))
    told = json.loads(cli("resume", "r", "flows.py:work", "--json", code=4).stdout)
    assert (told["status"], told["error"]["type"]) == ("refused", "RunBusyError")
    (folder / "hold").unlink()
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, f"{sum(range(40))}\n")
    assert len(effects(folder)) == 40


@pytest.mark.parametrize("workflow", ["work", "awork"])
def test_ctrl_c_stops_and_says_how_to_go_on(cli, begin, folder, workflow):
    process = begin(
        "run", f"flows.py:{workflow}", "--run-id", "r", "-i", '{"n": 40}', "--max-concurrent", "2"
    )
    wait_for_effects(folder, 6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.endswith(f"cancelled; go on with: weft resume r flows.py:{workflow}\n")
    assert "Traceback" not in err
    assert json.loads(cli("show", "r", "--json").stdout)["status"] == "cancelled"
    assert cli("resume", "r", f"flows.py:{workflow}").stdout == f"{sum(range(40))}\n"


# On a terminal


@pytest.fixture
def terminal(folder, environment):
    opened = []

    def start(command, columns=80, *words):
        child = pexpect.spawn(
            command,
            list(words),
            cwd=str(folder),
            env=environment,
            dimensions=(24, columns),
            timeout=30,
            encoding="utf-8",
        )
        opened.append(child)
        return child

    yield start
    for child in opened:
        child.close(force=True)


def plain(text):
    """What a person sees of a line, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_progress_while_it_runs_and_the_counts_at_the_end(terminal, columns):
    child = terminal(COMMAND[0], columns, *COMMAND[1:], "run", "flows.py:shown", "--max-concurrent", "3")
    child.expect(r"[1-9]\d?/30.*running")
    seen = plain(child.before + child.after)
    assert "printed by the body" in seen
    child.expect("30/30")
    child.expect(pexpect.EOF)
    *_, steps, summary, result = plain(child.before).split("\r\n")[:-1]
    assert "1 failed" in steps
    assert "running" not in steps
    assert re.fullmatch(r"shown: finished after .* s: 30 calls, 1 failed", summary)
    assert result == "null"
    assert "\x1b[?25h" in child.before, "the cursor is back"


def test_on_a_terminal_what_bodies_print_still_goes_where_stdout_goes(terminal, folder):
    line = " ".join([*COMMAND, "run", "flows.py:shown", "> printed"])
    child = terminal("/bin/sh", 80, "-c", line)
    child.expect(pexpect.EOF)
    assert (folder / "printed").read_text() == "printed by the body\nnull\n"


@pytest.mark.parametrize("setting", [("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb")])
def test_plain_lines_where_nothing_can_be_drawn(terminal, environment, setting):
    environment.update([setting])
    child = terminal(COMMAND[0], 80, *COMMAND[1:], "run", "flows.py:shown")
    child.expect(pexpect.EOF)
    assert "flaky: started" in child.before
    assert "\x1b" not in child.before


def test_ctrl_c_on_a_terminal_gives_the_cursor_back(terminal):
    child = terminal(COMMAND[0], 80, *COMMAND[1:], "run", "flows.py:shown", "--max-concurrent", "1")
    child.expect(r"[1-9]/30")
    child.sendintr()
    child.expect("cancelled; go on with: weft resume")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_tables_fit_the_terminal(terminal, cli):
    cli("run", "flows.py:failing", "--run-id", "r" * 30, code=1)
    child = terminal(COMMAND[0], 100, *COMMAND[1:], "runs")
    child.expect(pexpect.EOF)
    lines = plain(child.before).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[1].endswith("…")
    assert "\x1b[31mfailed" in child.before


# Waiting for another owner


URL = "sqlite:///runs.db?lease=1"


def test_a_resume_waits_for_an_owner_that_ends(cli, begin, folder):
    words = ("--checkpointer", URL)
    process = begin(
        "run", "flows.py:work", "-i", '{"n": 160}', "--run-id", "r", "--max-concurrent", "2", *words
    )
    wait_for_effects(folder, 2)
    assert cli("resume", "r", "flows.py:work", *words, code=4).stdout == ""
    done = cli("resume", "r", "flows.py:work", "--wait", "30", *words)
    assert done.stdout.strip() == str(sum(range(160)))
    assert process.wait(30) == 0
    assert sorted(map(int, effects(folder))) == list(range(160)), "nothing ran twice"


def test_a_resume_waits_until_a_silent_owner_is_taken_for_dead(cli, begin, folder):
    """One that has stopped without ending: who asks with a new process each time would never see it."""
    words = ("--checkpointer", URL)
    process = begin("run", "flows.py:work", "-i", '{"n": 40}', "--run-id", "r", *words)
    wait_for_effects(folder, 2)
    process.send_signal(signal.SIGSTOP)
    done = cli("resume", "r", "flows.py:work", "--wait", "30", *words)
    assert done.stdout.strip() == str(sum(range(40)))
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 4, "it has lost the run"


# Retention


def test_old_runs_are_pruned_and_their_room_is_given_back(cli, folder):
    for name in "abcd":
        cli("run", "flows.py:echo", "--input-text", name * 20_000, "--run-id", name)
    assert "3 runs forgotten" in cli("prune", "--last", "1").stderr
    assert [run["run_id"] for run in json.loads(cli("runs", "--json").stdout)] == ["d"]
    before = (folder / "weft.db").stat().st_size
    cli("vacuum")
    assert (folder / "weft.db").stat().st_size < before / 2
    assert "0 runs forgotten" in cli("prune", "--days", "1").stderr
    assert "--days, --failed-days or --last" in only_sentence(cli("prune", code=2))


def test_a_store_in_a_url_keeps_what_the_url_says(cli):
    url = "sqlite:///kept.db?last=2"
    for name in "abcd":
        cli("run", "flows.py:echo", "--run-id", name, "--checkpointer", url)
    runs = json.loads(cli("runs", "--json", "--checkpointer", url).stdout)
    assert [run["run_id"] for run in runs] == ["d", "c"]


# Following a run


def test_a_run_of_another_process_is_followed_to_its_end(cli, begin, folder):
    process = begin("run", "flows.py:work", "-i", '{"n": 60}', "--run-id", "r", "--max-concurrent", "2")
    wait_for_effects(folder, 5)
    done = cli("tail", "r", "--last", "1000")
    assert process.wait(30) == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 60
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d  ok +\d+ ms  effect  \d+", line) for line in lines), lines[0]
    assert sorted(int(line.split()[-1]) for line in lines) == list(range(60))
    assert done.stderr.strip() == "run r is finished"


def test_only_the_last_of_what_is_there_and_json_and_how_it_ended(cli):
    cli("run", "flows.py:work", "-i", '{"n": 12}', "--run-id", "r")
    assert len(cli("tail", "r").stdout.splitlines()) == 10
    assert cli("tail", "r", "--last", "0").stdout == ""
    told = [json.loads(line) for line in cli("tail", "r", "--json").stdout.splitlines()]
    assert {call["step"] for call in told} == {"effect"}
    cli("run", "flows.py:failing", "--run-id", "f", code=1)
    assert "run f is failed: ValueError: it broke" in cli("tail", "f", code=1).stderr
    cli("run", "flows.py:asking", "-i", '["a"]', "--run-id", "q", code=3)
    assert "asks" in cli("tail", "q", code=3).stdout
    assert "no run 'nope'" in cli("tail", "nope", code=2).stderr


# The timeline


def test_the_timeline_of_a_run_on_the_terminal_and_in_files(cli, folder):
    cli("run", "flows.py:work", "-i", '{"n": 6}', "--run-id", "r")
    text = cli("show", "r", "--timeline").stdout
    assert "effect" in text
    assert "work" in text
    assert "Critical path" in text or "critical path" in text
    for name in ("r.svg", "r.html", "r.txt"):
        assert f"the timeline is in {name}" in cli("show", "r", "--timeline", name).stderr
        assert "effect" in (folder / name).read_text()
    assert "No such file" in only_sentence(cli("show", "r", "--timeline", "none/r.svg", code=2))
    assert "--json" in only_sentence(cli("show", "r", "--json", "--timeline", code=2))
    assert ".svg" in only_sentence(cli("show", "r", "--timeline", "r.png", code=2))
