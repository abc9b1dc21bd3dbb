"""The lock that says an owner is alive."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from weft.checkpoint import owner as owner_module
from weft.checkpoint.owner import Owner, shown
from weft.errors import StoreError


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "runs.db-owners"


@pytest.fixture
def owners(directory):
    """Makes owners that leave at the end."""
    made = []

    def make():
        made.append(Owner(str(directory)))
        return made[-1]

    yield make
    for owner in made:
        owner.leave()


def child(directory, script):
    """A process with an owner of its own, which has printed its id; then it runs ``script``."""
    code = f"""
import os, sys, time
from weft.checkpoint.owner import Owner
owner = Owner({str(directory)!r})
print(owner.enter(), flush=True)
{textwrap.dedent(script)}
"""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return process, process.stdout.readline().strip()


def wait(process):
    process.communicate()
    return process.returncode


def test_nothing_is_created_before_an_owner_enters(owners, directory):
    owner = owners()
    assert owner.id is None
    assert not owner.is_alive("0" * 32)
    owner.leave()
    assert not directory.exists()


def test_an_owner_is_alive_from_entering_to_leaving(owners, directory):
    one, other = owners(), owners()
    name = one.enter()
    assert one.enter() == name
    assert other.is_alive(name)
    assert one.is_alive(name)
    one.leave()
    one.leave()
    assert one.id is None
    assert not other.is_alive(name)
    assert not directory.exists()


def test_an_owner_that_enters_again_is_another(owners):
    owner = owners()
    first = owner.enter()
    owner.leave()
    assert owner.enter() != first
    assert not owner.is_alive(first)


def test_the_last_to_leave_removes_the_directory(owners, directory):
    one, other = owners(), owners()
    one.enter(), other.enter()
    one.leave()
    assert [path.name for path in directory.iterdir()] == [f"{other.id}.lock"]
    other.leave()
    assert not directory.exists()


def test_directory_and_file_are_private_under_any_umask(owners, directory):
    umask = os.umask(0)
    try:
        owner = owners()
        owner.enter()
    finally:
        os.umask(umask)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / f"{owner.id}.lock").stat().st_mode & 0o777 == 0o600


def test_a_killed_owner_is_dead_at_once_and_its_file_is_removed(owners, directory):
    process, name = child(directory, "time.sleep(60)")
    owner = owners()
    assert owner.is_alive(name)
    process.kill()
    wait(process)
    assert (directory / f"{name}.lock").exists()
    assert not owner.is_alive(name)
    assert not (directory / f"{name}.lock").exists()


def test_a_stopped_owner_is_alive(owners, directory):
    process, name = child(directory, "time.sleep(60)")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert owners().is_alive(name)
    finally:
        process.kill()
        wait(process)


def test_entering_sweeps_the_dead_away_and_leaves_the_living(owners, directory):
    living, living_id = child(directory, "time.sleep(60)")
    for _ in range(3):
        process, _ = child(directory, "time.sleep(60)")
        process.kill()
        wait(process)
    (directory / "notes.txt").write_text("not a lock")
    owner = owners()
    owner.enter()
    assert {path.name for path in directory.iterdir()} == {
        f"{living_id}.lock",
        f"{owner.id}.lock",
        "notes.txt",
    }
    living.kill()
    wait(living)


def test_what_is_no_id_is_no_owner_and_touches_no_file(owners, directory, tmp_path):
    """The id comes from the database: it must not lead out of the directory."""
    owner = owners()
    owner.enter()
    victim = tmp_path / "victim.lock"
    victim.touch()
    for name in (
        "../victim",
        str(tmp_path / "victim"),
        "",
        "0",
        "\0",
        "Z" * 32,
        f"{owner.id}\n",
        f"{owner.id}x",
    ):
        assert not owner.is_alive(name)
    assert victim.exists()


def test_a_forked_child_keeps_no_lock_of_its_parent(owners, directory):
    process, name = child(
        directory,
        """
        pid = os.fork()
        if pid == 0:
            owner.forget()
            owner.enter()
            os.write(1, b"child\\n")
            time.sleep(60)
        os.write(1, b"%d\\n" % pid)
        time.sleep(60)
        """,
    )
    (pid,) = {process.stdout.readline().strip() for _ in range(2)} - {"child"}
    try:
        assert owners().is_alive(name)
        process.kill()
        process.wait()
        assert not owners().is_alive(name)
    finally:
        os.kill(int(pid), signal.SIGKILL)
        wait(process)


def test_forgetting_in_a_child_leaves_the_parent_alive(owners, directory):
    process, name = child(
        directory,
        """
        pid = os.fork()
        if pid == 0:
            owner.forget()
            owner.leave()
            os._exit(0)
        os.waitpid(pid, 0)
        print("forked", flush=True)
        time.sleep(60)
        """,
    )
    assert process.stdout.readline() == "forked\n"
    assert owners().is_alive(name)
    process.kill()
    wait(process)


def test_a_planted_symlink_for_the_directory_is_not_followed(owners, directory, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    directory.symlink_to(elsewhere)
    with pytest.raises(StoreError, match="runs.db-owners"):
        owners().enter()
    assert list(elsewhere.iterdir()) == []


def test_a_planted_symlink_for_a_lock_file_is_not_followed(owners, directory, tmp_path, monkeypatch):
    directory.mkdir(0o700)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (directory / f"{'a' * 32}.lock").symlink_to(victim)
    (directory / f"{'b' * 32}.lock").symlink_to(tmp_path / "created")
    monkeypatch.setattr(owner_module.secrets, "token_hex", lambda _: "a" * 32)
    with pytest.raises(StoreError, match="File exists"):
        owners().enter()
    with victim.open() as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        assert not owners().is_alive("a" * 32)
    assert not owners().is_alive("a" * 32)
    assert not owners().is_alive("b" * 32)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_directory_that_others_may_write_to_is_refused(owners, directory, mode):
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(StoreError, match="others may write"):
        owners().enter()
    with pytest.raises(StoreError, match="chmod 700"):
        owners().is_alive("a" * 32)


def test_a_file_that_vanishes_before_it_is_locked_is_made_again(owners, directory, monkeypatch):
    """Somebody takes the new file for one of the dead: without the check, the lock would be on no file."""
    lock, times = owner_module._lock, []

    def vanish_first(fd):
        if not times:
            times.append(1)
            for path in directory.iterdir():
                path.unlink()
        return lock(fd)

    monkeypatch.setattr(owner_module, "_lock", vanish_first)
    owner, other = owners(), owners()
    owner.enter()
    assert times
    assert other.is_alive(owner.id)


def test_only_the_file_that_was_locked_is_removed(owners, directory, monkeypatch):
    """1: A opens a dead owner's file. 2: B removes it, and there is a new one. 3: A locks the old one."""
    directory.mkdir(0o700)
    path = directory / f"{'a' * 32}.lock"
    path.touch()
    lock = owner_module._lock

    def replaced(fd):
        path.unlink()
        path.touch()
        return lock(fd)

    monkeypatch.setattr(owner_module, "_lock", replaced)
    assert not owners().is_alive("a" * 32)
    assert path.exists()


def test_a_directory_that_is_always_removed_is_an_error_in_the_end(owners, monkeypatch):
    monkeypatch.setattr(owner_module, "_is_same_file", _unlinking)
    with pytest.raises(StoreError, match="removes it at once"):
        owners().enter()


def _unlinking(fd, name, directory):
    os.unlink(name, dir_fd=directory)
    return False


def test_a_lock_file_of_another_user_counts_as_alive(owners, directory, monkeypatch):
    process, name = child(directory, "time.sleep(60)")
    process.kill()
    wait(process)
    owner = owners()

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(owner_module.os, "open", denied)
        assert owner.is_alive(name)
    assert not owner.is_alive(name)


def test_a_lock_is_gone_when_its_file_was_deleted(owners, directory):
    owner = owners()
    owner.enter()
    (directory / f"{owner.id}.lock").unlink()
    assert not owners().is_alive(owner.id)


def test_owners_come_and_go_at_the_same_time(directory):
    """The directory is removed by the last to leave while the next one is entering."""

    def live(_):
        for _ in range(50):
            owner, other = Owner(str(directory)), Owner(str(directory))
            name = owner.enter()
            assert other.is_alive(name)
            owner.leave()
            assert not other.is_alive(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(live, range(8)))
    assert not directory.exists()


def test_without_flock_the_error_says_so(owners, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(StoreError, match="flock"):
        owners().enter()


@pytest.mark.parametrize("name", ["short", "x" * 60])
def test_short_names_are_shown_whole(name):
    assert shown(name) == repr(name)


# Marks


def test_a_mark_tells_the_last_commit_of_an_owner(owners, directory):
    one, other = owners(), owners()
    one.enter(), other.enter()
    assert owner_module.marks(str(directory)) == {}, "nothing was acknowledged"
    one.mark(2**40 + 5)
    one.mark(2**40 + 6)
    assert owner_module.marks(str(directory)) == {one.id: 2**40 + 6}
    one.leave()
    assert owner_module.marks(str(directory)) == {}


def test_what_is_no_mark_tells_nothing(owners, directory):
    owner = owners()
    owner.enter()
    (directory / f"{'a' * 32}.lock").write_bytes(b"short")
    (directory / "notes.lock").write_bytes(b"12345678")
    (directory / f"{'b' * 32}.lock").symlink_to(directory / "notes.lock")
    assert owner_module.marks(str(directory)) == {}
    assert owner_module.marks(str(directory / "none")) == {}
    for stray in ("a" * 32, "notes", "b" * 32):
        (directory / f"{stray}.lock").unlink()


def test_an_owner_that_ended_without_leaving_has_left_its_mark_behind(owners, directory):
    process, name = child(directory, "owner.mark(7); print(flush=True); time.sleep(60)")
    process.stdout.readline()
    there = str(directory)
    assert owner_module.marks(there) == {name: 7}
    assert not owner_module.is_left_behind(there, name), "it is alive"
    process.kill()
    wait(process)
    assert owner_module.is_left_behind(there, name)
    assert owner_module.is_left_behind(there, name), "finding out changes nothing"
    assert not owner_module.is_left_behind(there, "a" * 32)
    assert owner_module.marks(there) == {name: 7}
    owner_module.remove_left_behind(there)
    assert not owner_module.is_left_behind(there, name)
    assert owner_module.marks(there) == {}
