"""What the documentation says is true: its programs print what it says, its commands and links exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*.md"))]
PAGES = [page for page in PAGES if page.name != "digest.md"]  # what the demo leaves behind


def name(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """(line, text) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, block.start()) + 1, block[1]


def program_of(page):
    """The Python blocks of a page as one program, with the page's line numbers."""
    lines = []
    for line, block in blocks(page, "python"):
        lines += [""] * (line - len(lines)) + block.splitlines()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))], ids=name)
def test_the_programs_of_a_page_print_what_it_says(page, tmp_path):
    program = program_of(page)
    (tmp_path / "page.py").write_text(program, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert run.returncode == 0, f"{page}:\n{run.stderr}"
    promised = re.findall(r"# -> (.*)$", program, re.MULTILINE)
    assert promised
    assert run.stdout.splitlines() == promised


def commands_of(page):
    """The words of each command in the page's shell blocks, without assignments and redirections."""
    for line, block in blocks(page, "sh"):
        for command in re.split(r"\n|;|&&|(?<!&)&(?!&)", block):
            if words := shlex.split(command, comments=True):
                yield line, words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_of_a_page_exist(page):
    for line, (program, *arguments) in commands_of(page):
        where = f"{name(page)}:{line}"
        if program.startswith(("scripts/", ".ci/")):
            assert os.access(ROOT / program, os.X_OK), f"{where}: there is no {program}"
        if program == ".venv/bin/python":
            assert (ROOT / arguments[0]).is_file(), where
        options = {word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)}
        if program == "weft":
            command, *_ = [word for word in arguments if not word.startswith("-")]
            known = help_of("-m", "weft.cli", command)
        elif program in {"scripts/demo", ".venv/bin/python"}:
            known = help_of(
                str(ROOT / (arguments[0] if program.startswith(".venv") else "examples/digest.py"))
            )
        else:
            continue
        assert options <= set(re.findall(r"--?[a-z][a-z-]*", known)), f"{where}: {options}"


def help_of(*command):
    run = subprocess.run(
        [sys.executable, *command, "--help"], capture_output=True, text=True, check=False, timeout=30
    )
    assert run.returncode == 0, f"{command}: {run.stderr}"
    return run.stdout


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_and_file_names_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"
    for script in re.findall(r"`((?:scripts|\.ci|tests|examples)/[\w./-]+)", text):
        assert (ROOT / script).exists(), f"{name(page)} names {script}"
    if page.name == "CONTRIBUTING.md":
        for module in re.findall(r"`((?:core|checkpoint|engine|observe|cli)/[\w.]*)", text):
            assert (ROOT / "src" / "weft" / module).exists(), f"{name(page)} names {module}"
