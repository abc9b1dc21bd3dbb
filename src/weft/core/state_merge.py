"""What branches did to the state of a graph, done to one: see :mod:`weft.core.graph_state`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from weft.core.graph_state import NotingList, StateBranch, moments_of, plain
from weft.errors import StateConflictError

StateReducer = Callable[[Any, Any, Any], Any]
"""Combines a key's values: at the fork (where that branch began), merged so far, and in the branch that comes."""

_GONE: Any = object()


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two branches changed the same, and the later one won.

    Attributes:
        path: The keys that lead there.
        branches: What the branches are called; the second one won.
    """

    path: tuple[Any, ...]
    branches: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """What one branch did to the state.

    Attributes:
        name: What it is called.
        branch: The state as it left it.
        has_seen: Whether it began with what another branch did.
    """

    name: str
    branch: StateBranch
    has_seen: Callable[[Part], bool]


def merge(
    target: StateBranch,
    parts: Sequence[Part],
    *,
    reducers: Mapping[Any, StateReducer] | None = None,
    on_conflict: Literal["last", "error"] = "last",
) -> list[Conflict]:
    """Do to a state what branches did that began with it, one after the other.

    What is appended is appended, all of it in the order in which the nodes that did so were completed, not branch by
    branch; dicts are merged by key; a list or dict that two branches have created is taken for one that was empty.
    Else the later branch wins, unless it has seen the earlier one and so meant to overwrite it.

    Args:
        target: The state at the fork.
        parts: The branches, in the order in which they came; one that began on another after that one.
        reducers: How two values of a key of the state itself are combined.
        on_conflict: What happens where there is no reducer.

    Returns:
        Where the later one has won over one that it had not seen.

    Raises:
        StateConflictError: There is such a place, under ``on_conflict="error"``.
    """
    target.take()
    merging = _Merging(target, reducers or {}, on_conflict)
    for part in parts:
        merging.do(part)
    order = merging.arrange()
    target.take()
    joined = b"".join(part.branch.digest for part in parts)
    target.digest = blake2b(target.digest + joined + order, digest_size=16).digest()
    return merging.conflicts


@dataclass(slots=True)
class _Trace:
    """Who has changed what is at one path."""

    whole: Part | None = None  # who has set or removed all of it
    created: bool = False  # and it had not been there
    below: list[Part] = field(default_factory=list)  # who has changed something in it since
    keys: dict[Any, _Trace] = field(default_factory=dict)

    def is_unseen_whole(self, part: Part) -> bool:
        """Whether all of it was set by somebody whom this one has not seen."""
        return self.whole is not None and not part.has_seen(self.whole)

    def unseen_by(self, part: Part) -> Part | None:
        """Somebody who has changed it, or something in it, and whose change this one did not see."""
        writers = [*self.below, *filter(None, [self.whole])]
        return next(
            (each for each in reversed(writers) if each is not part and not part.has_seen(each)), None
        )


class _Merging:
    def __init__(self, target: StateBranch, reducers: Mapping[Any, StateReducer], on_conflict: str) -> None:
        self._target = target
        self._reducers = reducers
        self._on_conflict = on_conflict
        self._trace = _Trace()
        self._longer: dict[tuple[Any, ...], NotingList] = {}  # the lists that something was appended to
        self.conflicts: list[Conflict] = []

    def do(self, part: Part) -> None:
        for key, entry in part.branch.changes().items():
            trace = self._trace.keys.setdefault(key, _Trace())
            if key in self._reducers and trace.unseen_by(part) is not None:
                self._reduce(part, key, trace)
            else:
                self._do(part, self._target.state, trace, (key,), entry)

    def arrange(self) -> bytes:
        """Bring what was appended into its order; what stands for it, nothing if that was the order of the parts."""
        moved = [
            (repr(path), order)
            for path, items in self._longer.items()
            if (order := self._target.arrange(items))
        ]
        return repr(sorted(moved)).encode() if moved else b""

    def _reduce(self, part: Part, key: Any, trace: _Trace) -> None:
        state = self._target.state
        at_fork, merged, mine = (
            part.branch.at_begin(key),
            plain(state.get(key)),
            plain(part.branch.state.get(key)),
        )
        try:
            reduced = self._reducers[key](at_fork, merged, mine)
        except Exception as error:
            error.add_note(f"raised by the reducer of state[{key!r}], for what {part.name} did")
            raise
        self._target.put(state, key, reduced)
        trace.below.append(part)

    def _do(
        self, part: Part, container: Any, trace: _Trace, path: tuple[Any, ...], entry: tuple[Any, ...]
    ) -> None:
        kind, key = entry[0], path[-1]
        there = container[key] if isinstance(container, list) or key in container else _GONE
        if kind == "new" and trace.created and trace.is_unseen_whole(part):
            together = _as_added(there, entry[1])  # both have made one where there was none
            if together is not None:
                entry, kind = together, together[0]
        elif kind in ("in", "app") and not trace.created and trace.is_unseen_whole(part):
            kind = "set"  # it changed what somebody has replaced
        if kind in ("in", "app") and not self._fits(entry, there):
            kind = "set"
        if kind in ("in", "app"):
            trace.below.append(part)
            self._do_inside(part, there, trace, path, entry)
            return
        if kind != "del" or there is not _GONE:  # else both have removed it
            self._note_conflict(part, trace, path)
        trace.whole, trace.created, trace.below, trace.keys = part, kind == "new", [], {}
        if kind in ("del", "anew"):
            container.pop(key, None)
        if kind != "del":
            self._target.put(container, key, _found(part, path))

    def _do_inside(
        self, part: Part, there: Any, trace: _Trace, path: tuple[Any, ...], entry: tuple[Any, ...]
    ) -> None:
        inside = entry[1] if entry[0] == "in" else entry[2]
        for key, each in inside.items():
            known = trace.keys.get(key)
            if known is None:
                is_part = trace.created and isinstance(there, dict) and key in there
                known = trace.keys[key] = _Trace(trace.whole, created=True) if is_part else _Trace()
            self._do(part, there, known, (*path, key), each)
        if entry[0] == "app" and entry[1]:
            mine = _found(part, path)
            self._target.append(there, entry[1], moments_of(mine, len(mine) - len(entry[1])))
            self._longer[path] = there

    def _fits(self, entry: tuple[Any, ...], there: Any) -> bool:
        """Whether what is there is what was changed; places in a list are sure only in what was there at the fork."""
        if entry[0] == "in":
            return isinstance(there, dict)
        if not isinstance(there, NotingList):
            return False
        return not entry[2] or max(entry[2]) < self._target.size_at_last_take(there)

    def _note_conflict(self, part: Part, trace: _Trace, path: tuple[Any, ...]) -> None:
        other = trace.unseen_by(part)
        if other is None:
            return
        if self._on_conflict == "error":
            raise StateConflictError(path, (other.name, part.name))
        self.conflicts.append(Conflict(path, (other.name, part.name)))


def _found(part: Part, path: tuple[Any, ...]) -> Any:
    """What is there in the state of a branch."""
    value: Any = part.branch.state
    for key in path:
        value = value[key]
    return value


def _as_added(there: Any, value: Any) -> tuple[Any, ...] | None:
    """What one has created as a change of what another has created; None if they are of different kinds."""
    if isinstance(there, dict) and isinstance(value, dict):
        return ("in", {key: ("new", item) for key, item in value.items()})
    if isinstance(there, list) and isinstance(value, list):
        return ("app", value, {})
    return None
