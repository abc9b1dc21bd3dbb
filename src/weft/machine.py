"""What the machine has for this process: its cores and its memory, as its container allows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from weft.core.sizing import Resources

#: Seconds for which a reading is used again.
_FRESH = 1.0

#: Bytes to count on where the machine does not tell: what a small one has to spare.
_UNTOLD = 1024**3


class Machine:
    """Reads what there is, at most once a second.

    A container's limits are those of its control group (cgroup) and of all groups above it: the tightest holds.
    Files that are missing, unreadable or hold no number limit nothing, so that every system can be asked.
    Threads may ask at the same time; at worst two of them read.
    """

    def __init__(
        self,
        *,
        proc: str | Path = "/proc",
        cgroups: str | Path = "/sys/fs/cgroup",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc = Path(proc)
        self._cgroups = Path(cgroups)
        self._now = now
        self._last: tuple[float, Resources] | None = None

    def resources(self) -> Resources:
        """The cores and the memory that this process may use, as of at most a second ago."""
        now, last = self._now(), self._last
        if last is not None and now - last[0] < _FRESH:
            return last[1]
        groups = list(self._memberships())
        found = Resources(cores=self._cores(groups), memory=self._memory(groups))
        self._last = (now, found)
        return found

    def cores(self) -> int:
        """The cores that this process may use, now."""
        return self._cores(list(self._memberships()))

    def _cores(self, groups: list[tuple[str, str]]) -> int:
        quotas = [quota for quota in map(_cores_allowed, self._folders(groups, "cpu")) if quota is not None]
        return min([_own_cores(), *quotas])

    def _memory(self, groups: list[tuple[str, str]]) -> int:
        rooms = [room for room in map(_memory_left, self._folders(groups, "memory")) if room is not None]
        return max(0, min([_available_memory(), *rooms]))

    def _memberships(self) -> Iterator[tuple[str, str]]:
        """(controllers, path) of each hierarchy this process is in; v2 has no controllers there."""
        try:
            lines = (self._proc / "self" / "cgroup").read_text().splitlines()
        except (OSError, ValueError):
            return
        for line in lines:
            _, _, rest = line.partition(":")
            controllers, found, path = rest.partition(":")
            if found:
                yield controllers, path

    def _folders(self, groups: list[tuple[str, str]], controller: str) -> Iterator[Path]:
        """The folders of the groups that may limit it, from our own up to the root of each hierarchy.

        In a container the path is often one of the host, and only the root, which is then the container's own
        group, is there.
        """
        for controllers, path in groups:
            if not controllers:
                mounts = ["", "unified"]  # the second where v1 is mounted beside it
            elif controller in controllers.split(","):
                mounts = [controllers, controller]
            else:
                continue
            for mount in dict.fromkeys(mounts):
                yield from _upwards(self._cgroups / mount, path)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    parts = PurePosixPath(path.lstrip("/")).parts
    if ".." in parts:  # above what our namespace shows
        parts = ()
    for depth in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:depth])


def _memory_left(group: Path) -> int | None:
    """Bytes that a group still has room for; file pages that nobody uses count as room."""
    for limit_in, usage_in, unused in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _number(_text(group / limit_in))
        if limit is not None:
            usage = _number(_text(group / usage_in)) or 0
            return limit - max(0, usage - _stat(group / "memory.stat", unused))
    return None


def _stat(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value) or 0
    return 0


def _cores_allowed(group: Path) -> int | None:
    """How many threads a group's share of time keeps busy, rounded up; None for no limit."""
    quota, _, period = _text(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    microseconds, every = _number(quota), _number(period)
    if microseconds is None or microseconds <= 0 or every is None or every <= 0:
        return None
    return -(-microseconds // every)


def _own_cores() -> int:
    """The cores that the system lets this process be scheduled on."""
    affinity = getattr(os, "sched_getaffinity", None)
    try:
        if affinity is not None:
            return len(affinity(0))
    except OSError:
        pass  # forbidden in some sandboxes
    return os.cpu_count() or 1


def _available_memory() -> int:
    import psutil  # type: ignore[import-untyped]  # noqa: PLC0415 - `import weft` does without

    try:
        return int(psutil.virtual_memory().available)
    except Exception:  # whatever a sandbox that hides its memory makes of this: a size must still be found
        return _UNTOLD


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # "max", or nothing
        return None


_machine = Machine()


def resources() -> Resources:
    """The cores and the memory that this process may use, as of at most a second ago."""
    return _machine.resources()


def cores() -> int:
    """The cores that this process may use."""
    return _machine.cores()
