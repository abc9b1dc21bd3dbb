"""Reading the machine: what a container allows counts, and nothing that is missing stops a run."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from weft import ProcessExecutor
from weft import machine as module
from weft.machine import Machine, resources

GIB = 1024**3
UNLIMITED_V1 = "9223372036854771712"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 8 cores with 16 GiB available, whatever the real one is."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GIB))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 32)


@pytest.fixture
def read(tmp_path):
    """Give the lines of /proc/self/cgroup and the files under /sys/fs/cgroup; get (cores, memory)."""

    def read(membership, files):
        proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in membership))
        for name, text in files.items():
            (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
            (cgroups / name).write_text(f"{text}\n")
        found = Machine(proc=proc, cgroups=cgroups).resources()
        return found.cores, found.memory

    return read


def test_without_control_groups_it_is_the_machine(tmp_path):
    found = Machine(proc=tmp_path / "none", cgroups=tmp_path / "none").resources()
    assert (found.cores, found.memory) == (8, 16 * GIB)


def test_v2_counts_what_is_used_except_pages_that_nobody_needs(read):
    stat = f"anon 77\ninactive_anon 5\ninactive_file {GIB}\nactive_file 3"
    files = {
        "memory.max": 4 * GIB,
        "memory.current": 3 * GIB,
        "memory.stat": stat,
        "cpu.max": "200000 100000",
    }
    assert read(["0::/"], files) == (2, 2 * GIB)


def test_v2_takes_the_tightest_of_all_groups_up_to_the_root(read):
    files = {
        "a/b/c/memory.max": "max",
        "a/b/c/memory.current": GIB,
        "a/b/c/cpu.max": "max 100000",
        "a/b/memory.max": 5 * GIB,
        "a/b/memory.current": 4 * GIB,
        "a/b/cpu.max": "700000 100000",
        "a/memory.max": 3 * GIB,
        "a/memory.current": GIB,
        "a/cpu.max": "300000 100000",
        "cpu.max": "max 100000",
    }
    assert read(["0::/a/b/c"], files) == (3, GIB)


def test_groups_beside_ours_do_not_count(read):
    files = {"a/x/memory.max": 1, "b/memory.max": 1, "b/cpu.max": "1000 1000", "a/memory.max": 2 * GIB}
    assert read(["0::/a/b"], files) == (8, 2 * GIB)


def test_v2_in_a_container_that_sees_the_path_of_the_host(read):
    """The mount's root is the container's own group there; the path is not under it."""
    files = {"memory.max": 2 * GIB, "memory.current": 0, "cpu.max": "100000 100000"}
    assert read(["0::/system.slice/docker-0123.scope"], files) == (1, 2 * GIB)


def test_v2_of_a_process_that_was_moved_out_of_its_namespace(read):
    assert read(["0::/../other"], {"memory.max": 2 * GIB, "../other/memory.max": 1}) == (8, 2 * GIB)


def test_v2_mounted_beside_v1(read):
    files = {
        "unified/a/memory.max": GIB,
        "memory/b/memory.limit_in_bytes": 2 * GIB,
        "memory/b/memory.usage_in_bytes": 0,
    }
    assert read(["4:memory:/b", "0::/a"], files) == (8, GIB)


def test_v1(read):
    stat = f"inactive_file 7\ntotal_inactive_file {GIB // 2}"
    files = {
        "memory/docker/0123/memory.limit_in_bytes": 4 * GIB,
        "memory/docker/0123/memory.usage_in_bytes": 2 * GIB,
        "memory/docker/0123/memory.stat": stat,
        "memory/memory.limit_in_bytes": UNLIMITED_V1,
        "memory/memory.usage_in_bytes": 9 * GIB,
        "cpu,cpuacct/docker/0123/cpu.cfs_quota_us": 300000,
        "cpu,cpuacct/docker/0123/cpu.cfs_period_us": 100000,
        "cpu,cpuacct/cpu.cfs_quota_us": -1,
        "cpu,cpuacct/cpu.cfs_period_us": 100000,
    }
    lines = ["9:memory:/docker/0123", "3:cpu,cpuacct:/docker/0123", "2:cpuset:/x", "1:name=systemd:/y"]
    assert read(lines, files) == (3, 2 * GIB + GIB // 2)


def test_v1_in_a_container_that_sees_the_path_of_the_host(read):
    files = {
        "memory/memory.limit_in_bytes": GIB,
        "memory/memory.usage_in_bytes": 0,
        "cpu/cpu.cfs_quota_us": 50000,
        "cpu/cpu.cfs_period_us": 100000,
    }
    assert read(["9:memory:/docker/0123", "3:cpu,cpuacct:/docker/0123"], files) == (1, GIB)


def test_v1_without_limits(read):
    files = {"memory/memory.limit_in_bytes": UNLIMITED_V1, "memory/memory.usage_in_bytes": GIB}
    assert read(["9:memory:/"], files) == (8, 16 * GIB)


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("10000 100000", 1),
        ("100000 100000", 1),
        ("100001 100000", 2),
        ("250000 100000", 3),
        ("2500000 100000", 8),  # more than there are
        ("max 100000", 8),
        ("max", 8),
        ("0 100000", 8),
        ("100000 0", 8),
        ("100000", 8),
        ("", 8),
        ("nonsense here", 8),
    ],
)
def test_a_share_of_time_is_rounded_up_to_whole_cores(read, limit, cores):
    assert read(["0::/"], {"cpu.max": limit})[0] == cores


def test_a_group_that_is_over_its_limit_leaves_nothing(read):
    assert read(["0::/"], {"memory.max": GIB, "memory.current": 2 * GIB})[1] == 0


def test_more_unused_pages_than_pages_make_no_memory(read):
    """The files are read one after another, while they change."""
    files = {"memory.max": GIB, "memory.current": 10, "memory.stat": "inactive_file 5000"}
    assert read(["0::/"], files)[1] == GIB


def test_a_limit_counts_where_the_use_cannot_be_read(read):
    assert read(["0::/"], {"memory.max": GIB})[1] == GIB


@pytest.mark.parametrize("line", ["", "nonsense", "0:", "0::", "4:memory:", ":::", "0::a"])
def test_lines_that_are_none_of_ours_limit_nothing(read, line):
    assert read([line], {}) == (8, 16 * GIB)


def test_files_that_cannot_be_read_limit_nothing(tmp_path):
    """A folder in the place of a file fails for every user, root too; the others hold no text."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "cgroup/memory.max").mkdir(parents=True)
    (tmp_path / "cgroup/cpu.max").write_bytes(b"\xff\xfe\x00")
    found = Machine(proc=tmp_path / "proc", cgroups=tmp_path / "cgroup").resources()
    assert (found.cores, found.memory) == (8, 16 * GIB)
    (tmp_path / "proc/self/cgroup").unlink()
    (tmp_path / "proc/self/cgroup").mkdir()
    found = Machine(proc=tmp_path / "proc", cgroups=tmp_path / "cgroup").resources()
    assert (found.cores, found.memory) == (8, 16 * GIB)


def test_systems_without_affinity(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert Machine(proc=tmp_path, cgroups=tmp_path).resources().cores == 32
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert Machine(proc=tmp_path, cgroups=tmp_path).resources().cores == 1


def refused(*_):
    raise PermissionError("made up")


def test_a_sandbox_that_tells_nothing_still_gets_a_size(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", refused)
    monkeypatch.setattr(psutil, "virtual_memory", refused)
    found = Machine(proc=tmp_path, cgroups=tmp_path).resources()
    assert (found.cores, found.memory) == (32, GIB)


def test_memory_is_read_at_most_once_a_second(monkeypatch, tmp_path):
    now, readings = [100.0], []

    def virtual_memory():
        readings.append(now[0])
        return SimpleNamespace(available=len(readings))

    monkeypatch.setattr(psutil, "virtual_memory", virtual_memory)
    machine = Machine(proc=tmp_path, cgroups=tmp_path, now=lambda: now[0])
    assert readings == []  # and nothing before it is asked for
    for now[0], memory in [(100.0, 1), (100.0, 1), (100.99, 1), (101.0, 2), (101.5, 2), (500.0, 3)]:
        assert machine.resources().memory == memory
    assert readings == [100.0, 101.0, 500.0]


def test_this_machine_can_be_read(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(module, "_machine", Machine())
    found = resources()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 <= found.memory <= psutil.virtual_memory().total
    assert resources() is found


def test_psutil_is_imported_only_when_the_machine_is_read():
    program = "import sys, weft.machine as r; assert 'psutil' not in sys.modules; print(r.resources().cores)"
    child = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) >= 1


def test_an_executor_begins_no_more_processes_than_its_container_has_cores(tmp_path, monkeypatch):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    monkeypatch.setattr(module, "_machine", Machine(proc=tmp_path, cgroups=tmp_path))
    assert ProcessExecutor()._width == 3
    assert ProcessExecutor(5)._width == 5
