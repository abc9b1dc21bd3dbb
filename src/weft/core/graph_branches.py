"""Branches of an execution of a graph: what was written on each, and how it is merged where they meet.

Branches are a tree: each began on another one, which stands still meanwhile. Where branches meet in a join, what goes
on does so on the branch where the join was opened if nothing else is left that began there, else on a new one that
knows which branches it has *joined*. So it can always be said which of two values was written by somebody who could
see the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from weft.core.graph_state import StateBranch
from weft.errors import ConflictError, GraphError

Reducer = Callable[[Any, Any], Any]
"""What two branches wrote of one key, in the order in which they were completed, and what it is combined to."""

OnConflict: TypeAlias = Literal["last", "error"]


class Upstream(NamedTuple):
    """A node that led to another, and what it gave."""

    node: str
    output: Mapping[Any, Any]


class Fork(NamedTuple):
    """A place where one became several.

    Attributes:
        node: The node behind which it is.
        execution: Of that node.
        size: How many branches there are.
        first: The number of the first of them.
        place: By which forks and joins one came there, whatever else happens and when: a digest.
        is_watched: Whether somebody is to be told when nothing of one of its branches goes on.
    """

    node: str
    execution: int
    size: int
    first: int
    place: bytes = b""
    is_watched: bool = True


#: What stands on a branch where nothing was written yet, which most of those that wait have; never changed.
_NOTHING: dict[Any, Any] = {}


class Branch:
    """What runs one after the other, with what it has written.

    Attributes:
        parent: The branch that it began on, which stands still while this one goes on; the first one's holds the
            input, and has none.
        fork: Where it began; None for the first branch, and for what goes on behind a join.
        number: In the order in which they began.
        joined: Those that came to the join behind which it goes on, where they may still be of interest.
        writes: What was written on it, by key.
        writers: By key, the node that wrote it; where several values were combined, that of the last. Its name alone,
            where one node has written all of it, as on most branches.
        homes: By key, on which branch it was written, where that was another one, which came to a join.
        node: The node that runs on it, or has run last; only one does at a time.
        execution: Of that node, by which its end is told; counted from 0.
        point: That node by its number in the plan.
        openings: The joins that count what runs on it, by join.
        steps: How many nodes have run on the way here, with that one.
        came: The nodes that led to where it is, each with what it gave, and in which execution; -1 for one that was
            no execution of a node.
        place: By which forks and joins one came there, whatever else happens and when: a digest, if somebody wants it.
            One node runs in one place several times only one after the other.
        block: Round it, what whoever runs it has put there; for the branches that begin on it as well.
    """

    __slots__ = (
        "_flow",
        "_is_own",
        "_live",
        "_state",
        "_uses",
        "block",
        "came",
        "execution",
        "fork",
        "homes",
        "is_copied",
        "joined",
        "node",
        "number",
        "openings",
        "parent",
        "place",
        "point",
        "steps",
        "writers",
        "writes",
    )

    def __init__(
        self,
        parent: Branch | None,
        number: int,
        fork: Fork | None = None,
        joined: Sequence[Branch] = (),
    ) -> None:
        self.parent = parent
        self.number = number
        self.fork = fork
        self.joined = joined
        self.execution = self.point = -1
        self.openings: Mapping[int, Any]
        self.came: tuple[tuple[str, Mapping[Any, Any], int], ...]
        self.block: Any
        if parent is None:
            self.openings, self.steps, self.came, self.place, self.block = _NOTHING, 0, (), b"", None
        else:  # as by stand_where
            self.openings, self.steps, self.came = parent.openings, parent.steps, parent.came
            self.place, self.block = parent.place, parent.block
        self.writers: str | dict[Any, str] = ""
        self.writes = self.homes = _NOTHING
        self.node = ""
        self.is_copied = False  # whether what was written on it stands on another one too
        self._flow: dict[Any, Any] | None = None
        self._is_own = False  # whether the flow is a dict of its own
        self._state: StateBranch | None = None
        self._uses = 1  # tokens, branches below, joins that hold something of it: it must not change else
        self._live = 1  # of these, what still goes on

    @property
    def index(self) -> int:
        """Which branch of the fork it is."""
        return 0 if self.fork is None else self.number - self.fork.first

    def __repr__(self) -> str:
        where = "" if self.fork is None else f" {self.index} of {self.fork.node!r}"
        return f"<Branch {self.number}{where}>"

    @property
    def flow(self) -> Mapping[Any, Any]:
        """All values here, by key; to be read only, and before the branch goes on."""
        if self._flow is not None:
            return self._flow
        pending = []
        branch = self
        while branch._flow is None:
            pending.append(branch)
            assert branch.parent is not None
            branch = branch.parent
        flow = branch._flow
        for branch in reversed(pending):
            branch._is_own = bool(branch.writes)
            branch._flow = flow = {**flow, **branch.writes} if branch.writes else flow
        return flow

    @property
    def upstream(self) -> tuple[Upstream, ...]:
        """What led here: nothing for the start, one node, or all that came to a join, by time of arrival."""
        return tuple(Upstream(node, output) for node, output, _ in self.came)

    @property
    def state(self) -> StateBranch:
        """The state of the graph as this branch sees it, a copy of its own from when it is first asked for.

        Raises:
            GraphError: The execution has no state.
        """
        if self._state is None:
            self._state = self._state_above().copy()
        return self._state

    def _state_above(self) -> StateBranch:
        branch: Branch | None = self
        while branch is not None and branch._state is None:
            branch = branch.parent
        if branch is None or branch._state is None:
            raise GraphError("this execution was begun without a state")
        return branch._state

    def stand_where(self, other: Branch) -> None:
        """Have come by the way by which another one has."""
        self.openings, self.steps = other.openings, other.steps
        self.came, self.place = other.came, other.place

    def stand_still(self) -> None:
        """Nothing runs on it, so that it need not hold what leads on."""
        self.openings, self.came = _NOTHING, ()

    def is_within(self, other: Branch) -> bool:
        """Whether it is this branch or began on it."""
        branch: Branch | None = self
        while branch is not None and branch is not other:
            branch = branch.parent
        return branch is other

    def write(self, values: Mapping[Any, Any], writers: str | dict[Any, str]) -> None:
        """Go on with these values, which this node, or these, wrote here; a dict is taken over."""
        if not values:
            return
        if self.writes is _NOTHING:
            self.writes, self.writers = {**values}, writers
        else:
            if self.writers != writers:
                self._note_writers(values, writers)
            self.writes.update(values)
            if self.homes:
                for key in self.homes.keys() & values.keys():
                    del self.homes[key]
        if self._is_own:
            assert self._flow is not None
            self._flow.update(values)
        else:
            self._flow = None

    def _note_writers(self, values: Mapping[Any, Any], writers: str | dict[Any, str]) -> None:
        if isinstance(self.writers, str):
            self.writers = dict.fromkeys(self.writes, self.writers)
        self.writers.update(dict.fromkeys(values, writers) if isinstance(writers, str) else writers)

    def writer_of(self, key: Any) -> str:
        """The node that wrote a value that stands here."""
        return self.writers if isinstance(self.writers, str) else self.writers[key]

    def home_of(self, key: Any) -> Branch:
        """The branch on which a value was written that stands here."""
        return self.homes.get(key, self) if self.homes else self


# Merging


class Merged(NamedTuple):
    """What was written below a branch, by key."""

    writes: dict[Any, Any]
    last: dict[Any, Branch]  # on which the value stands that counts, or counts last
    contended: set[Any]  # the keys of which there was more than one value

    @property
    def writers(self) -> dict[Any, str]:
        """The nodes that wrote it."""
        return {key: branch.writer_of(key) for key, branch in self.last.items()}

    @property
    def homes(self) -> dict[Any, Branch]:
        """On which branch; what was made of several values is nobody's."""
        return {key: branch.home_of(key) for key, branch in self.last.items() if key not in self.contended}


def merged(
    branches: Sequence[Branch], reducers: Mapping[str, Reducer] | None, on_conflict: OnConflict
) -> Merged:
    """What branches brought that came to one place.

    Each brings the last value that was written on its way. One that somebody saw and has overwritten does not count
    if that one came too. Of several that are left, the one that was brought last wins.

    Args:
        branches: All branches on the way of one that came, in the order of :func:`came`.
        reducers: By key, how several values are combined.
        on_conflict: What happens where no reducer is given.

    Raises:
        ConflictError: There are several values of a key, and there is no reducer.
    """
    if len(branches) == 1:
        return Merged(branches[0].writes, dict.fromkeys(branches[0].writes, branches[0]), set())
    writes: dict[Any, Any] = {}
    last: dict[Any, Branch] = {}
    several: dict[Any, list[Branch]] = {}
    for branch in branches:
        for key, value in branch.writes.items():
            if key in last:
                several.setdefault(key, [last[key]]).append(branch)
            writes[key], last[key] = value, branch
    contended: set[Any] = set()
    for key in [key for key in writes if key in several] if several else ():
        counted = _not_overwritten(key, several[key])
        last[key] = counted[-1]
        writes[key] = counted[-1].writes[key]
        if len(counted) > 1:
            contended.add(key)
            writes[key] = _resolved(key, counted, (reducers or {}).get(key), on_conflict)
    return Merged(writes, last, contended)


def came(base: Branch, arrived: Sequence[Branch]) -> list[Branch]:
    """All branches between one and those that came from it, by when the last from each came."""
    if all(branch.parent is base for branch in arrived):
        return [*arrived]  # each from another branch: what has come to a join, or ended, goes no further
    seen = {base}
    order: list[Branch] = []
    for last in reversed(arrived):
        branch = last
        while branch not in seen:
            seen.add(branch)
            order.append(branch)
            assert branch.parent is not None
            branch = branch.parent
    order.reverse()  # so that of one way the upper come first, which began earlier
    return order


def _not_overwritten(key: Any, writers: Sequence[Branch]) -> list[Branch]:
    """Those whose value nobody has seen and overwritten who is among them; the same value where it came last."""
    homes = {branch.home_of(key): branch for branch in writers}
    overwritten = seen_from(homes, min(branch.number for branch in homes))
    return [
        branch
        for branch in writers
        if (home := branch.home_of(key)) not in overwritten and homes[home] is branch
    ]


def seen_from(branches: Iterable[Branch], first: int) -> set[Branch]:
    """The branches whose values could be seen on one of these, as far back as this number."""
    seen: set[Branch] = set()
    stack = [*branches]
    while stack:
        branch = stack.pop()
        for before in (branch.parent, *branch.joined):
            if before is not None and before.number >= first and before not in seen:
                seen.add(before)
                stack.append(before)
    return seen


def all_below(base: Branch, arrived: Sequence[Branch]) -> list[Branch]:
    """All branches of which something came, if only through a join: each after what was seen on it."""
    met: set[Branch] = set()
    order: list[Branch] = []
    stack = [(branch, False) for branch in reversed(arrived)]
    while stack:
        branch, is_done = stack.pop()
        if is_done:
            order.append(branch)
        elif branch.number > base.number and branch not in met:
            met.add(branch)
            before = filter(None, (branch.parent, *branch.joined))
            stack += [(branch, True), *((each, False) for each in reversed([*before]))]
    return order


def _resolved(key: Any, writers: Sequence[Branch], reducer: Reducer | None, on_conflict: OnConflict) -> Any:
    """One value of several."""
    if reducer is None:
        if on_conflict == "error":
            raise ConflictError(key, (writers[0].writer_of(key), writers[1].writer_of(key)))
        return writers[-1].writes[key]
    value = writers[0].writes[key]
    for branch in writers[1:]:
        try:
            value = reducer(value, branch.writes[key])
        except Exception as error:
            error.add_note(f"raised by the reducer of {key!r}, for what {branch.writer_of(key)!r} wrote")
            raise
    return value


def nearest_common(one: Branch, other: Branch) -> Branch:
    """The lowest branch that both began on."""
    while one is not other:
        if one.number > other.number:  # which began later, so that the other cannot have begun on it
            assert one.parent is not None
            one = one.parent
        else:
            assert other.parent is not None
            other = other.parent
    return one
