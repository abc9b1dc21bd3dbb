"""Which nodes of a graph run next: events in, decisions out.

An :class:`Activation` is one execution of a graph. It is told how each node that it wanted to run has ended, and
answers with the branches whose nodes are to run now, or with the result. It knows no clock and starts nothing; it is
a function of the order in which it is told, so that telling it the same again leads to the same decisions.

What is under way are *tokens*, each at a node. A token that goes on in one direction stays on its *branch*; where it
goes on in several, each of them begins a branch of its own. So there is never more than one on a branch, and it is no
object: where it stands, and how it came there, the branch says. A branch holds what was written on it since it began,
and what came before stands in those above it, which do not change meanwhile: nothing is copied along a chain, and a
fork shares what it does not write.

An *opening* is a join that waits, or may have to. It counts what is under way in its span (see
:mod:`weft.core.graph_plan`): tokens, and other openings to which something has come already. When nothing is left
it fires, with what has come, or is forgotten. What goes on behind a join is placed where the join was opened. If
from there its own sources can be reached again, firing opens it anew: a round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, NamedTuple, TypeAlias

from weft.core.checks import check_count
from weft.core.graph_branches import (
    Branch,
    Fork,
    OnConflict,
    Reducer,
    Upstream,
    all_below,
    came,
    merged,
    nearest_common,
    seen_from,
)
from weft.core.graph_plan import MAX_STEPS, GraphPlan
from weft.core.graph_state import Change, StateBranch, plain
from weft.core.state_merge import Conflict, Part, StateReducer, merge
from weft.errors import DefinitionError, GraphError, MaxStepsError, StuckError


@dataclass(frozen=True, slots=True)
class Options:
    """How an execution of a graph goes.

    Attributes:
        max_steps: How many nodes may run one after the other; None for no bound where there is no loop, and
            :data:`~weft.core.graph_plan.MAX_STEPS` where there is one.
        reducers: By key, how what several branches wrote is combined.
        on_conflict: What happens where no reducer is given: the last to complete wins, or :class:`ConflictError`.
        state_reducers: The same for the keys of the state, of three values.
        on_state_conflict: The same for the state; the last wins with a :class:`StateConflicts`, or
            :class:`~weft.core.state_merge.StateConflictError`.

    Raises:
        DefinitionError: One of them can never work.
    """

    max_steps: int | None = None
    reducers: Mapping[str, Reducer] | None = None
    on_conflict: OnConflict = "last"
    state_reducers: Mapping[str, StateReducer] | None = None
    on_state_conflict: OnConflict = "last"

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            check_count("max_steps", self.max_steps)
        for name in ("on_conflict", "on_state_conflict"):
            if getattr(self, name) not in ("last", "error"):
                raise DefinitionError(f'{name} must be "last" or "error", not {getattr(self, name)!r}')
        _check_reducers(self.reducers, "two")
        _check_reducers(self.state_reducers, "three")


def _check_reducers(reducers: Mapping[str, Callable[..., Any]] | None, count: str) -> None:
    if reducers is not None and not isinstance(reducers, Mapping):
        raise DefinitionError(
            f"reducers are a dict of functions of {count} values, by key, not {reducers!r:.80}"
        )
    for key, reducer in (reducers or {}).items():
        if not callable(reducer):
            raise DefinitionError(
                f"the reducer of {key!r} must be a function of {count} values, not {reducer!r}"
            )


class BranchEnded(NamedTuple):
    """Nothing of a branch of a fork goes on: all of it came to a join, ended or was lost."""

    branch: Branch


@dataclass(frozen=True, slots=True)
class StateConflicts:
    """Branches that met had changed the same of the state, and the later one has won."""

    conflicts: tuple[Conflict, ...]


@dataclass(slots=True)
class Finished:
    """Nothing goes on.

    Attributes:
        result: The input, and what was written on all branches that ended, merged.
        writes: What was written, without the input.
        state: That of the graph, with what was done on all branches that ended; None if there is none.
    """

    result: dict[Any, Any]
    state: dict[Any, Any] | None = None
    writes: dict[Any, Any] = field(default_factory=dict, compare=False)


#: What was decided; of a branch, that its node is to run.
Decision: TypeAlias = Branch | BranchEnded | StateConflicts | Finished

#: What an execution goes by that is told nothing.
_USUAL = Options()


def split_choices(router: str, output: Mapping[Any, Any]) -> tuple[list[str], dict[Any, Any]]:
    """Where a router goes on, by its output, and the rest of the output.

    Raises:
        GraphError: It says neither ``choice`` nor ``choices``, or both, or is not of the right type.
    """
    rest = {key: value for key, value in output.items() if key not in ("choice", "choices")}
    if "choice" in output and "choices" in output:
        raise GraphError(f"router {router!r} gave both 'choice' and 'choices'; it must give one of them")
    if "choice" in output:
        if not isinstance(output["choice"], str):
            raise GraphError(
                f"the 'choice' of router {router!r} must be the name of a node, not {output['choice']!r}"
            )
        return [output["choice"]], rest
    if "choices" not in output:
        raise GraphError(
            f"router {router!r} gave neither 'choice' (the name of a node) nor 'choices' (a list of names), but "
            f"{_keys_of(output)}"
        )
    choices = output["choices"]
    if not isinstance(choices, list | tuple) or not all(isinstance(each, str) for each in choices):
        raise GraphError(
            f"the 'choices' of router {router!r} must be a list of names of nodes, not {choices!r}"
        )
    return [*choices], rest


def _keys_of(output: Mapping[Any, Any]) -> str:
    return f"a dict with {', '.join(map(repr, output))}" if output else "an empty dict"


class Activation:
    """One execution of a graph.

    Args:
        plan: The graph.
        options: How it goes.
        state: What the state of the graph is at the beginning; None for none. It is copied.
        guard: Raises where whoever is about to change the state may not.
        watched: The nodes behind which the end of each branch is told; None for all.
        has_places: Whether places are told, which cost a digest for each branch.
    """

    # How it begins, until something is set.
    is_finished = False
    _begun = 0
    _opened = 0
    _branches = 1
    _turn = 0  # how often something was completed on another branch than before, if it has a state
    _turn_of = -1

    def __init__(
        self,
        plan: GraphPlan,
        options: Options | None = None,
        *,
        state: Mapping[Any, Any] | None = None,
        guard: Callable[[], None] | None = None,
        watched: Collection[str] | None = None,
        has_places: bool = True,
    ) -> None:
        self._plan = plan
        self._options = options or _USUAL
        self._max_steps = self._options.max_steps
        if self._max_steps is None and plan.has_loop:
            self._max_steps = MAX_STEPS
        self._watched = plan.number if watched is None else watched
        self._has_places = has_places
        self._running: dict[int, Branch] = {}  # by execution, where it is
        self._waiting: dict[int, _Opening] = {}  # by number, those to which something has come
        self._ready: list[int] = []
        self._input = Branch(None, 1)
        if state is not None:
            self._input._state = StateBranch(state, guard=guard)
        self._ended: list[Branch] = []
        self._awaited: dict[
            Branch, _Opening | None
        ] = {}  # branches that fail, and the join that each comes to
        self._decisions: list[Decision] = []

    def __repr__(self) -> str:
        return f"<Activation: {len(self._running)} running, {len(self._waiting)} joins waiting>"

    # What is told

    def begin(self, input: dict[Any, Any], upstream: tuple[Upstream, ...] = ()) -> list[Decision]:
        """Run the start node, with this input, which must not change from now on, and what has led there."""
        self._input._flow = input
        first = self._branch(self._input)
        if opens := self._plan.opened_by.get(-1):
            first.openings = self._open(opens, first, {}, b"")
        if upstream:
            first.came = tuple((node, output, -1) for node, output in upstream)
        self._enter(self._plan.start, first)
        return self._decided()

    def ended(
        self,
        execution: int,
        output: Mapping[Any, Any],
        choices: Sequence[str] | None = None,
        *,
        goes_on: bool = True,
    ) -> list[Decision]:
        """A node has given its output.

        Args:
            execution: Of what.
            output: What it wrote.
            choices: Where a router goes on, by name, none or several; None for what is no router.
            goes_on: Whether anything follows; if not, the branch ends here.

        Raises:
            GraphError: The router may not go there, or the node has no way on; the execution still runs then.
            MaxStepsError: The next node would be one too many.
            ConflictError: Branches that meet now have written one key, under ``on_conflict="error"``.
            StuckError: Joins wait for each other, and for nothing else.
        """
        branch, plan = self._running.get(execution) or self._where(execution), self._plan
        point = branch.point
        ways = plan.onward[point] if choices is None and goes_on else None
        if ways is None:
            ways = self._ways_on(point, choices) if goes_on else ()
        del self._running[execution]
        openings, node = branch.openings, branch.node
        branch.write(output, node)
        if branch._state is not None:
            self._complete_state(branch, branch._state)
        branch.came = ((node, output, execution),)
        if not ways:
            branch.stand_still()
            self._ended.append(branch)
            self._end_token(branch)
        elif len(ways) == 1 and point not in plan.blocks:
            self._enter(ways[0], branch)
        else:
            self._fork(branch, execution, ways)
        if openings:
            self._leave(openings)
        return self._decided()

    def lost(self, execution: int) -> list[Decision]:
        """A node will give nothing and its branch does not go on, as if it had never been.

        Raises:
            StuckError: Joins wait for each other, and for nothing else.
        """
        branch = self._where(execution)
        del self._running[execution]
        self._end_and_release(branch)
        self._leave(branch.openings)
        return self._decided()

    def cut_off(self, ending: Mapping[Branch, Sequence[int]], *, fails: bool) -> list[Decision]:
        """Branches of a fork are being ended: nothing that they gave counts from now on.

        All of them at once, or a join could go on with what one of them gave when another has been cut off.

        Args:
            ending: The branches, each with the executions that still run on it.
            fails: Whether they will give something instead (see :meth:`failed`), for which their joins wait.

        Raises:
            StuckError: Joins wait for each other, and for nothing else.
        """
        for branch, executions in ending.items():
            running = [self._where(execution) for execution in executions]
            if fails:
                found = self._opening_for(branch, running)
                self._awaited[branch] = found
                if found is not None:
                    found.under_way += 1
            self._discard(branch, running)
        return self._decided()

    def _discard(self, branch: Branch, running: Sequence[Branch]) -> None:
        """What has ended on a branch, or on one that began there, or has come from there to a join, does not count."""
        if _is_all_of(branch, running):
            return
        ended, self._ended = self._ended, []
        for each in ended:
            if each.is_within(branch):
                self._release(each)
            else:
                self._ended.append(each)
        for opening in self._waiting.values():
            arrivals, opening.arrivals = opening.arrivals, []
            for arrived in arrivals:
                if arrived.is_within(branch):
                    self._release(arrived)
                else:
                    opening.arrivals.append(arrived)
            if not opening.arrivals and not opening.under_way:
                heappush(self._ready, opening.number)

    def failed(self, executions: Sequence[int], branch: Branch, output: Mapping[Any, Any]) -> list[Decision]:
        """A branch of a fork that was cut off has failed, and nothing runs on it any more; what it gives instead.

        It comes to the join that the fork has opened; to the one that was opened last, if it has opened none that can
        be reached from there; and if there is none, the branch ends here.

        Raises:
            ConflictError: As in :meth:`ended`.
            StuckError: As in :meth:`ended`.
        """
        running = [self._where(execution) for execution in executions]
        above, first = branch.parent, running[0]
        assert above is not None
        name = first.node
        found = self._awaited.pop(branch)
        for execution in executions:
            del self._running[execution]
        self._discard(branch, running)
        above._uses += 1
        above._live += 1
        instead = self._branch(above)
        instead.node = name
        instead.write(output, name)
        if found is None:
            self._ended.append(instead)
            self._end_token(instead)
        else:
            instead.steps, instead.came = first.steps, ((name, output, -1),)
            self._arrive(found, instead)
            self._leave({found.join: found})
        for each in running:
            self._end_and_release(each)
            self._leave(each.openings)
        return self._decided()

    def _opening_for(self, branch: Branch, running: Sequence[Branch]) -> _Opening | None:
        """The join to which a branch comes that has failed."""
        assert branch.fork is not None
        own = {*self._plan.opened_by.get(self._plan.number[branch.fork.node], ())}
        reached = [opening for each in running for opening in each.openings.values()]
        if not _is_all_of(branch, running):
            reached += [
                opening
                for opening in self._waiting.values()
                if opening.join in own and any(arrived.is_within(branch) for arrived in opening.arrivals)
            ]
        outside = [opening for opening in reached if not opening.base.is_within(branch)]
        outside.sort(key=lambda opening: (opening.join not in own, -opening.number))
        return outside[0] if outside else None

    def change(self) -> Change:
        """What was done to the state since the beginning, for :meth:`StateBranch.apply`; when it is finished."""
        return self._input.state.all_changes()

    def _where(self, execution: int) -> Branch:
        """The branch on which it runs."""
        branch = self._running.get(execution)
        if branch is None:
            state = "has ended already" if 0 <= execution < self._begun else "was never started"
            raise GraphError(f"execution {execution} {state}; running: {[*self._running]}")
        return branch

    def _complete_state(self, branch: Branch, state: StateBranch) -> None:
        """Say when what was done to the state was done: in which turn, since one branch has no need of more."""
        if branch.number != self._turn_of:
            self._turn += 1
            self._turn_of = branch.number
        state.complete(self._turn)

    def _decided(self) -> list[Decision]:
        if self._ready:
            self._fire_what_can()
        if not self._running and not self.is_finished:
            if self._waiting:
                raise StuckError(list(self._told_waits()))
            self.is_finished = True
            self._decisions.append(self._finished())
        decisions, self._decisions = self._decisions, []
        return decisions

    def _finished(self) -> Finished:
        found = merged(came(self._input, self._ended), self._options.reducers, self._options.on_conflict)
        result = {**self._input.flow, **found.writes}
        if self._input._state is None:
            return Finished(result, None, found.writes)
        self._join_states(self._input, self._input, self._ended)
        return Finished(result, plain(self._input.state.state), found.writes)

    # Going on

    def _ways_on(self, point: int, choices: Sequence[str] | None) -> Sequence[int]:
        """Where it goes on, where the plan alone does not say that."""
        plan = self._plan
        node = plan.nodes[point]
        if node.is_end:
            return ()
        if node.is_router:
            if choices is None:
                raise GraphError(
                    f"router {node.name!r} has chosen nothing; an empty list of choices ends its branch"
                )
            return plan.choose(point, choices)
        if choices is not None:
            raise GraphError(f"node {node.name!r} is no router and cannot choose; it chose {list(choices)!r}")
        raise GraphError(
            f"node {node.name!r} has ended and there is no way on from it: add an edge or a join, or make it an "
            "end node (end=True)"
        )

    def _fork(self, above: Branch, execution: int, ways: Sequence[int]) -> None:
        node, size = above.node, len(ways)
        came_by = above.place + node.encode("utf-8", "surrogatepass")
        above._uses += size
        above._live += size
        first, self._branches = self._branches + 1, self._branches + size
        fork = Fork(node, execution, size, first, came_by, node in self._watched)
        branches = [Branch(above, number, fork) for number in range(first, first + size)]
        above.stand_still()
        equals: dict[int, int] = {}  # how often each way was taken: a router may choose one twice
        for way, branch in zip(ways, branches, strict=True):
            if self._has_places:
                number = equals[way] = equals.get(way, -1) + 1
                branch.place = _digest(came_by, self._plan.marks[way], number.to_bytes(4, "big"))
            self._enter(way, branch)
        self._end_and_release(above)

    def _enter(self, point: int, branch: Branch) -> None:
        """Come to a join, or to a node that is to run; what it opens is opened."""
        plan = self._plan
        if point >= len(plan.nodes):
            self._arrive(branch.openings[point], branch)
            return
        name = plan.nodes[point].name
        if point in plan.blocks and _is_alone_behind(name, branch):
            branch = self._back_at_fork(branch)
        if branch.steps == self._max_steps:
            raise MaxStepsError(branch.steps, name, plan.loop_through(name))
        openings, span, opens = branch.openings, plan.spans[point], plan.opened_by.get(point)
        # A node that runs is counted by no others than these.
        if opens or (openings and len(openings) != len(span)):
            openings = {join: openings[join] for join in span}
            if opens:
                openings |= self._open(opens, branch, openings, branch.place)
            branch.openings = openings
        if openings:
            for opening in openings.values():
                opening.under_way += 1
        execution = self._begun
        self._begun = execution + 1
        branch.execution = execution
        branch.point = point
        branch.node = name
        branch.steps += 1
        self._running[execution] = branch
        self._decisions.append(branch)

    def _back_at_fork(self, branch: Branch) -> Branch:
        """A branch comes back to where it began, and nothing else began there: it is over, and goes on above."""
        above = branch.parent
        assert above is not None
        above._uses += 1
        above._live += 1
        self._end_token(branch)
        going_on = self._join_branches(above, [branch])
        going_on.stand_where(branch)
        for opening in going_on.openings.values():
            self._widen(opening, above)  # what was opened on the branch that is over is met by what goes on
        return going_on

    # Joins

    def _open(
        self, joins: Sequence[int], branch: Branch, around: Mapping[int, _Opening], place: bytes
    ) -> dict[int, _Opening]:
        """Open joins, all of which see each other and what is open around them."""
        openings: dict[int, _Opening] = {}
        visible = {**around}
        for join in joins:
            openings[join] = visible[join] = _Opening(self._opened, join, branch, visible, place)
            self._opened += 1
        return openings

    def _arrive(self, opening: _Opening, branch: Branch) -> None:
        if opening.number not in self._waiting:
            self._hold(opening)
        opening.arrivals.append(branch)
        self._end_token(branch)

    def _hold(self, opening: _Opening) -> None:
        """It will fire: others have to wait for what goes on behind it."""
        self._waiting[opening.number] = opening
        opening.base._uses += 1
        opening.base._live += 1
        for join in self._plan.spans[opening.join]:
            known = opening.around[join]
            other = known.latest()
            if other is not known:  # a round later, and what comes from here was not there
                self._widen(other, opening.base)
            other.under_way += 1
            opening.holds[join] = other

    def _widen(self, opening: _Opening, branch: Branch) -> None:
        """Something may come to a join that did not begin where the join was opened, but on this branch."""
        common = nearest_common(opening.base, branch)
        if common is opening.base:
            return
        if opening.number in self._waiting:
            common._uses += 1
            common._live += 1
            self._end_and_release(opening.base)
        opening.base = common

    def _leave(self, openings: Mapping[int, _Opening]) -> None:
        for opening in openings.values():
            opening.under_way -= 1
            if not opening.under_way and opening.number in self._waiting:
                heappush(self._ready, opening.number)

    def _fire_what_can(self) -> None:
        while self._ready:
            opening = self._waiting.get(heappop(self._ready))
            if opening is None or opening.under_way:
                continue
            if opening.arrivals:
                self._fire(opening)
            else:
                self._forget(opening)

    def _forget(self, opening: _Opening) -> None:
        """All that had come to a join was discarded: it does not fire, and nobody waits for it."""
        del self._waiting[opening.number]
        self._end_and_release(opening.base)
        self._leave(opening.holds)
        opening.close()

    def _fire(self, opening: _Opening) -> None:
        """Go on behind a join, in the place where it was opened, with what came to it."""
        del self._waiting[opening.number]
        plan, join, arrivals = self._plan, opening.join, opening.arrivals
        branch = self._join_branches(opening.base, arrivals)
        steps = max([arrived.steps for arrived in arrivals])
        led_here: list[tuple[str, Mapping[Any, Any], int]] = []
        for arrived in arrivals:
            led_here += arrived.came
            arrived.stand_still()
        branch.steps, branch.came = steps, tuple(led_here)
        node = plan.destination_of(join)
        if self._has_places:
            branch.place = _digest(opening.place, plan.marks[join])
        opens = [*plan.opened_by.get(join, ())]
        if join in plan.spans[node]:
            opens.append(join)
        branch.openings = {**opening.holds, **self._open(opens, branch, opening.holds, branch.place)}
        opening.next = branch.openings.get(join)
        self._enter(node, branch)
        self._leave(opening.holds)
        opening.close()

    def _told_waits(self) -> Iterator[str]:
        names = self._plan.name_of
        for opening in self._waiting.values():
            blocking = [other for other in self._waiting.values() if opening in other.holds.values()]
            came = ", ".join(repr(node) for arrived in opening.arrivals for node, _, _ in arrived.came)
            awaited = " and for ".join(names(other.join) for other in blocking)
            missing = [
                self._plan.nodes[place].name
                for place in self._plan.sources_of(opening.join)
                if self._plan.nodes[place].name not in {arrived.came[-1][0] for arrived in opening.arrivals}
            ]
            also = f", which can lead to {' and '.join(map(repr, missing))}" if missing else ""
            yield f"{names(opening.join)} has what came from {came} and waits for {awaited}{also}"

    # Branches

    def _join_branches(self, base: Branch, arrived: Sequence[Branch]) -> Branch:
        """The branch to go on, with what was written on those that arrived."""
        below = came(base, arrived)
        found = merged(below, self._options.reducers, self._options.on_conflict)
        for branch in arrived:
            self._release(branch)
        if base._uses == 1 and not any(branch.is_copied for branch in (base, *below)):
            self._join_states(base, base, arrived)
            base.write(found.writes, found.writers)
            return base  # nobody else can see it, or has seen what was written below it
        branch = self._branch(base, joined=arrived)  # its place above is the one that the join held
        for each in below:
            each.is_copied = True
        self._join_states(branch, base, arrived)
        branch.write(found.writes, found.writers)
        branch.homes = found.homes
        return branch

    def _join_states(self, branch: Branch, base: Branch, arrived: Sequence[Branch]) -> None:
        """Do to the state of a branch what was done on those that came to it."""
        if self._input._state is None:
            return
        changed = [
            each for each in all_below(base, arrived) if each._state is not None and each._state.has_changes
        ]
        if not changed:
            return
        seen = functools.cache(lambda each: {it._state for it in seen_from([each], base.number)})
        parts = [
            Part(
                f"the branch that ended with {each.node!r}",
                each.state,
                functools.partial(_is_seen, seen, each),
            )
            for each in changed
        ]
        conflicts = merge(
            branch.state,
            parts,
            reducers=self._options.state_reducers,
            on_conflict=self._options.on_state_conflict,
        )
        if branch is not base:
            branch.state.begin()  # each of them counts by itself where they are met again
        if conflicts:
            self._decisions.append(StateConflicts(tuple(conflicts)))

    def _branch(self, parent: Branch | None, *, joined: Sequence[Branch] = ()) -> Branch:
        self._branches = number = self._branches + 1
        return Branch(parent, number, joined=joined)

    def _end_token(self, branch: Branch) -> None:
        """A token goes no further; what was written stays."""
        ended = branch
        while ended is not None:
            ended._live -= 1
            if ended._live:
                return
            if ended.fork is not None and ended.fork.is_watched:
                self._decisions.append(BranchEnded(ended))
            if ended.parent is None:
                return
            ended = ended.parent

    def _end_and_release(self, branch: Branch) -> None:
        """A token goes no further, and nothing of it stays."""
        self._end_token(branch)
        self._release(branch)

    def _release(self, branch: Branch) -> None:
        """Let go of a branch, and of those above that nothing else is on."""
        released: Branch | None = branch
        while released is not None:
            released._uses -= 1
            if released._uses:
                return
            released = released.parent


class _Opening:
    """A join that was opened, until it fires."""

    __slots__ = (
        "around",
        "arrivals",
        "base",
        "holds",
        "join",
        "next",
        "number",
        "place",
        "under_way",
    )

    def __init__(
        self, number: int, join: int, base: Branch, around: Mapping[int, _Opening], place: bytes
    ) -> None:
        self.number = number
        self.join = join
        self.base = base  # the branch on which it was opened
        self.around = around  # what else was open there, by join
        self.place = place
        self.under_way = 0  # how much may still come to it
        self.arrivals: list[Branch] = []
        self.holds: dict[int, _Opening] = {}  # those that wait for what will go on behind it, by join
        self.next: _Opening | None = None  # the round that began when it fired

    def latest(self) -> _Opening:
        """It, or the last of the rounds that began with it."""
        opening = self
        while opening.next is not None:
            opening = opening.next
        return opening

    def close(self) -> None:
        """Let go of everything that nobody asks for any more."""
        self.around, self.holds, self.arrivals = {}, {}, []


def _is_alone_behind(node: str, branch: Branch) -> bool:
    """Whether this is the only branch of a fork behind that node, and nothing has begun on it."""
    fork, above = branch.fork, branch.parent
    return (
        fork is not None
        and fork.node == node
        and branch._uses == 1
        and above is not None
        and above._uses == 1
    )


def _is_all_of(branch: Branch, running: Sequence[Branch]) -> bool:
    """Whether a single node that runs is all there is on a branch and on those that began there."""
    if len(running) != 1:
        return False
    below = running[0]
    while below is not branch and below._uses == 1 and below.parent is not None:
        below = below.parent
    return below is branch and branch._uses == 1


def _is_seen(seen: Callable[[Branch], set[StateBranch | None]], branch: Branch, other: Part) -> bool:
    return other.branch in seen(branch)


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"\0".join(parts), digest_size=16).digest()
