"""One execution of a graph: starts what :mod:`weft.core.activation` says, and tells it what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from weft.core.activation import (
    Activation,
    BranchEnded,
    Decision,
    Finished,
    Options,
    Run,
    StateConflicts,
    Upstream,
    split_choices,
)
from weft.core.graph_plan import GraphPlan
from weft.core.graph_state import Change, StateBranch, plain
from weft.core.outcome import Failed
from weft.core.state_merge import Part, merge
from weft.engine import events
from weft.engine.context import current
from weft.engine.futures import Branch
from weft.engine.states import Stop, StopKind
from weft.engine.step import Step
from weft.errors import GraphError, UnstorableError
from weft.graph_forks import Ending, ForkOptions, ForkRun, Forks
from weft.graph_nodes import Given, GraphNode, NodeCall, Start

if TYPE_CHECKING:
    from weft.engine.call import Call
    from weft.engine.planned import PlannedCall


logger = logging.getLogger("weft")


@dataclass(frozen=True, slots=True)
class Program:
    """A graph as it is when an execution begins; what is added to it later concerns later ones.

    Attributes:
        plan: Its nodes, edges and joins.
        nodes: What runs at each node, by name.
        forks: The nodes behind which branches run with options.
        options: How an execution goes.
        takes_state: Whether any node gets the state.
        streams: Whether any node streams.
        sides: By node, the pipelines that begin beside the way on from there.
    """

    plan: GraphPlan
    nodes: Mapping[str, GraphNode]
    forks: Mapping[str, ForkOptions]
    options: Options
    takes_state: bool
    streams: bool
    sides: Mapping[str, tuple[Side, ...]]


@dataclass(frozen=True, slots=True)
class Side:
    """A pipeline that begins beside the way on from a node; see :meth:`weft.graph.Graph.add_branch`.

    Attributes:
        source: The node.
        destination: The first of the pipeline.
        step: Runs it.
        waits: Whether the way on waits for it.
        takes_state: Whether it, or its condition, gets the state.
        plan: Its nodes and ways.
    """

    source: str
    destination: str
    step: Step
    waits: bool
    takes_state: bool
    plan: GraphPlan


@dataclass(frozen=True, slots=True)
class BranchError:
    """A pipeline beside the way has failed, which concerns nothing else.

    Attributes:
        source: The node behind which it began.
        destination: Its first node.
        error: What was raised.
    """

    source: str
    destination: str
    error: Exception


def _refuse_abandoned() -> None:
    """A body that was given up goes on in its thread; the state is the next attempt's."""
    call = current.get()
    if call is not None and call.is_in_abandoned_thread:
        raise call.unwinding()


async def close_callback(callback: Any) -> None:
    """Nothing more is streamed; may be done twice. What it raises is logged."""
    try:
        closing = callback.close()
        if isawaitable(closing):
            await closing
    except Exception:  # it concerns who reads what was streamed, not the execution
        logger.exception("the callback %r could not be closed", callback)


class Result(dict[Any, Any]):
    """The result of an execution that is a run, with the state that its thread keeps."""

    __slots__ = ("state",)

    def __init__(self, values: Mapping[Any, Any], state: dict[Any, Any]) -> None:
        super().__init__(values)
        self.state = state


class Holder(Protocol):
    """What lasts from one execution to the next."""

    state: dict[Any, Any]
    given_state: dict[Any, Any]
    branch_errors: list[BranchError]


class SideCall(Branch):
    """A pipeline beside the way, as a call that the graph has started."""

    __slots__ = ("is_recorded", "run", "side", "start", "state")

    def __init__(self, owner: PlannedCall, side: Side, run: Run, state: Mapping[Any, Any] | None) -> None:
        super().__init__(owner, run.execution)
        self.side = side
        self.run = run  # of the node behind which it begins
        self.state = state  # what it begins with
        self.is_recorded = False
        self.start: Start | None = None  # while it is held back


class _OutOfTime(Branch):
    """That a fork has run out of time, as a call that is recorded."""

    __slots__ = ("fork",)

    def __init__(self, owner: PlannedCall, fork: ForkRun) -> None:
        super().__init__(owner, 0)
        self.fork = fork


_OUT_OF_TIME = "out of time"

#: How many pipelines may be beside each other.
_DEEPEST = 100

#: Seconds for which a callback may take to be closed.
_CLOSING = 10.0

#: Seconds after which one looks whether that is still wanted.
_CLOSING_LOOK = 0.25


@dataclass(eq=False, slots=True)
class _Waiting:
    """A node that has ended, and whose way on waits for pipelines beside it."""

    running: NodeCall
    output: Mapping[Any, Any]
    choices: Sequence[str] | None
    left: int = 0
    changes: list[tuple[Mapping[Any, Any], Change]] = field(default_factory=list)


class GraphRun:
    """The conductor of an execution.

    Args:
        program: The graph.
        call: Whose conductor it is.
        given: What the execution begins with.
        holder: Has the graph's state, and takes what an execution leaves.
        callback: What streaming nodes stream to.
    """

    is_serial = False
    is_looking = (
        False  # what can be asked for is asked for at once, so that nothing recorded has to be looked for
    )
    may_start_more = False

    def __init__(
        self,
        program: Program,
        call: PlannedCall,
        given: Given,
        holder: Holder,
        callback: Any,
    ) -> None:
        self._program = program
        self._call = call
        self._given = given
        self._callback = callback
        self._holder = holder
        self._activation: Activation | None = None
        self._running: dict[int, NodeCall] = {}
        self._sides: dict[SideCall, None] = {}
        self._waiting: dict[int, _Waiting] = {}  # executions whose way on waits for pipelines beside it
        self._branch_errors: list[BranchError] = [] if given.branch_errors is None else given.branch_errors
        self._ended: deque[tuple[Branch, Call]] = deque()
        self._finished: Finished | None = None
        self._error: BaseException | None = None
        self._has_begun = False
        recorder = call.run.recorder
        self._codec = None if recorder is None else recorder.codec
        # On a resume nothing new begins before what is recorded has been seen: it may decide that it is not needed.
        self._replays = call.scope is not None and call.scope.order.replaying
        self._held_back: dict[NodeCall | SideCall, None] = {}
        self._recalled = 0  # calls with a record whose turn has not come yet
        self._forks = Forks(self, program.forks) if program.forks else None
        self._late_changes: list[tuple[Mapping[Any, Any], Change]] = []

    # What the engine tells

    def note(self, branch: Branch, call: Call) -> None:
        """A node has ended."""
        self._ended.append((branch, call))

    def advance(self) -> None:
        """Tell what has ended, start what is to run, or conclude."""
        if self._error is None and not self._has_begun:
            self._has_begun = True
            self._begin()
        while self._ended and self._error is None:
            branch, call = self._ended.popleft()
            if isinstance(branch, NodeCall):
                self._node_ended(branch, call)
            elif isinstance(branch, SideCall):
                self._side_ended(branch, call)
            elif isinstance(branch, _OutOfTime):
                self._ran_out(branch, call)
            else:
                self._preface_ended(call)
        if self._error is not None:
            self._call.conclude(None, self._error)
        elif self._finished is not None and not self._sides:
            self._end(self._finished)
        elif self._held_back and not self._recalled:
            self._start_held_back()

    def close(self, then: Callable[[], None]) -> None:
        """Let go of the timers, and tell who reads what was streamed that nothing more comes."""
        if self._forks is not None:
            self._forks.close()
        if self._program.sides and self._call.run.rehearsal is None:
            self._holder.branch_errors = self._branch_errors
        callback = self._callback
        is_own = callback is not self._given.callback
        may_be_tried_again = self._error is not None and bool(self._call.step.retry)
        if callback is None or self._given.only_writes or self._given.is_closed:
            then()
            return
        if may_be_tried_again and not is_own:  # `execute` closes it in the end
            then()
            return
        self._given.is_closed = True
        self._call.run.spawn(self._close_callback(callback, then))

    async def _close_callback(self, callback: Any, then: Callable[[], None]) -> None:
        loop, run = self.loop, self._call.run
        closing = loop.create_task(close_callback(callback))
        end = loop.time() + _CLOSING
        try:
            while not closing.done() and loop.time() < end:
                await asyncio.wait({closing}, timeout=min(_CLOSING_LOOK, end - loop.time()))
                if self._call.stopping is not None:
                    end = min(end, loop.time() + run.grace)
            if not closing.done():
                closing.cancel()
                logger.warning("the callback %r was left, since it is not closed in time", callback)
        finally:
            then()

    def timeout_error(self, limit: float, elapsed: float) -> None:
        """The usual error will do."""

    # Beginning and ending

    def _begin(self) -> None:
        if not self._program.takes_state:
            self._activate(None)
        elif self._codec is None:
            self._activate(self._first_state)
        else:  # what it was when the run began is recorded, since the graph of a resume may hold another
            reading = Step(self._read_state, "state", is_async=True)
            self._call.start(Branch(self._call, 0), reading, (), {}, is_told=False)

    async def _read_state(self) -> Any:
        return plain({**self._first_state})

    @property
    def _is_of_thread(self) -> bool:
        """Whether the state is that of a thread, which is no business of other threads."""
        return self._call.parent is None and self._call.run.thread_id is not None

    @property
    def _name_in_run(self) -> str:
        """What the run calls the state of this graph: by what it is made of, and which of several it is."""
        step = self._call.step
        numbers: WeakKeyDictionary[Holder, int] = self._call.run.kept.setdefault(
            f"graphs {step.shape}", WeakKeyDictionary()
        )
        number = numbers.setdefault(self._holder, len(numbers))
        return f"state of {step.name} {step.shape} {number}"

    @property
    def _first_state(self) -> Mapping[Any, Any]:
        """What the last run of the thread has left; without a thread, what the last execution of the graph has."""
        run = self._call.run
        if self._call.parent is not None:
            held = self._holder.state
            return held if run.recorder is None else run.recorder.remembered(self._name_in_run, held)
        if not self._is_of_thread:
            return self._holder.state
        return run.previous if isinstance(run.previous, Mapping) else self._holder.given_state

    def _preface_ended(self, call: Call) -> None:
        if call.error is not None:
            self._error = call.error
        else:
            self._activate(call.value)

    def _activate(self, state: Mapping[Any, Any] | None) -> None:
        self._activation = Activation(
            self._program.plan, self._program.options, state=state, guard=_refuse_abandoned
        )
        self._do(self._activation.begin(self._given, self._given.upstream))

    def _end(self, finished: Finished) -> None:
        result = finished.writes if self._given.only_writes else finished.result
        if finished.state is not None:
            state = self._call.aside = self._with_late_changes(finished.state)
            if not self._is_of_thread and self._call.run.rehearsal is None:
                self._holder.state = state
            if self._call.parent is None:
                result = Result(result, state)
            elif self._call.run.recorder is not None:
                # Its own record is not read again where what is round it was recorded as a whole.
                self._call.run.recorder.keep(self._name_in_run, state)
        self._call.conclude(result, None)

    # Starting

    def _do(self, decisions: Iterable[Decision]) -> None:
        todo = deque(decisions)
        while todo and self._error is None:
            decision = todo.popleft()
            if isinstance(decision, Run):
                todo.extend(self._run(decision))
            elif isinstance(decision, BranchEnded):
                todo.extend(self._forks.branch_ended(decision.branch) if self._forks is not None else ())
            elif isinstance(decision, StateConflicts):
                self._tell_conflicts(decision)
            else:
                self._finished = decision

    def _run(self, run: Run) -> Iterable[Decision]:
        if self._forks is not None and (instead := self._forks.admit(run)) is not None:
            return instead
        return self.start(run)

    def start(self, run: Run) -> Iterable[Decision]:
        """Run a node."""
        node = self._program.nodes[run.node]
        running = NodeCall(self._call, node, run, self._callback)
        try:
            start = node.start_of(run, self._callback)
        except Exception as error:
            return self._failed(running, error)
        self._running[run.execution] = running
        if self._forks is not None:
            self._forks.began(run.execution, run.branch)
        self._ask_in_turn(running, start, running.state)
        return ()

    def _ask_in_turn(self, asked: NodeCall | SideCall, start: Start, state: StateBranch | None) -> None:
        if self._codec is not None:
            start = start._replace(identity=self._identify(asked.run, start, state))
        if self._replays and start.identity is not None and self._call.recorded_at(start.identity[0]) is None:
            asked.start = start
            self._held_back[asked] = None
            return
        self._ask(asked, start)
        if self._replays:
            asked.is_recorded = asked.call is not None and asked.call.record is not None
            self._recalled += asked.is_recorded

    def _ask(self, running: NodeCall | SideCall, start: Start) -> None:
        latest = self._forks.deadline_on(running.run.branch) if self._forks is not None else None
        self._call.start(
            running, start.step, start.args, start.kwargs, identity=start.identity, latest=latest
        )

    def _start_held_back(self) -> None:
        self._replays = False
        held_back, self._held_back = self._held_back, {}
        for running in held_back:
            start, running.start = running.start, None
            assert start is not None
            self._ask(running, start)

    def _identify(self, run: Run, start: Start, state: StateBranch | None) -> tuple[bytes, int]:
        """By the way it came, by its arguments, and by the state, which stands for what was done to it until now."""
        assert self._call.run.recorder is not None
        fingerprint = self._call.run.recorder.fingerprint(start.step, start.args, start.kwargs)
        seen = b"" if state is None else b"s" + state.digest
        return self._call.identify(start.step.name, run.place + seen + fingerprint)

    # Outcomes

    def _node_ended(self, running: NodeCall, call: Call) -> None:
        run = running.run
        del self._running[run.execution]
        self._recalled -= running.is_recorded
        ending = self._forks.ending_of(run.branch) if self._forks is not None else None
        if ending is None and call.error is None:
            self._succeeded(running, call)
            return
        if running.state is not None:
            running.state.undo()
        if ending is not None:
            self._has_stopped(ending, run.execution)
        else:
            assert call.error is not None
            self._do(self._failed(running, call.error))

    def _has_stopped(self, ending: Ending, execution: int) -> None:
        assert self._forks is not None
        self._forks.left(execution)
        self._do(self._forks.stopped(ending, execution))

    def _succeeded(self, running: NodeCall, call: Call) -> None:
        if running.state is not None and call.aside is not None:
            self._note_change(running, call.aside, was_recorded=call.record is not None)
        output, choices = call.value, None
        if running.node.is_router:
            choices, output = split_choices(running.node.name, output)
        if sides := self._program.sides.get(running.node.name):
            self._begin_sides(sides, running, output, choices)
        else:
            self._go_on(running, output, choices)

    def _go_on(self, running: NodeCall, output: Mapping[Any, Any], choices: Sequence[str] | None) -> None:
        self._leave(running)
        self._do(self.active.ended(running.run.execution, output, choices))

    def _leave(self, running: NodeCall) -> None:
        if self._forks is not None:
            self._forks.left(running.run.execution)

    def _note_change(self, running: NodeCall, change: Change, *, was_recorded: bool) -> None:
        assert running.state is not None
        if was_recorded:
            running.state.apply(change)
        if self._codec is not None:
            running.state.record(self._codec.fingerprint(change) or b"")

    def _failed(self, running: NodeCall, error: BaseException) -> Iterable[Decision]:
        """A node has failed: the branch that may fail has, or else the graph."""
        if self._forks is None or not isinstance(error, Exception):
            self.fail(error)
            return ()
        return self._forks.failed(running.run.execution, running.run.branch, error)

    def _tell_conflicts(self, decision: StateConflicts) -> None:
        if self._call.run.is_observed:
            for conflict in decision.conflicts:
                self._call._tell(events.StateConflict, path=conflict.path, branches=conflict.branches)

    # Pipelines beside the way

    def _begin_sides(
        self,
        sides: Iterable[Side],
        running: NodeCall,
        output: Mapping[Any, Any],
        choices: Sequence[str] | None,
    ) -> None:
        if self._given.depth == _DEEPEST:
            raise GraphError(
                f"pipelines are {_DEEPEST} deep beside each other at {running.node.name!r}: add_branch() leads back to "
                "where it began"
            )
        run = running.run
        waiting = _Waiting(running, output, choices)
        for side in sides:
            state = run.branch.state if side.takes_state else None
            given = Given(
                {**run.flow, **output},
                self._callback,
                only_writes=True,
                upstream=(Upstream(running.node.name, output),),
                state=None if state is None else plain({**state.state}),
                branch_errors=self._branch_errors,
                depth=self._given.depth + 1,
            )
            asked = SideCall(self._call, side, run, given.state)
            self._sides[asked] = None
            waiting.left += side.waits
            self._ask_in_turn(asked, Start(side.step, (given,), {}), state)
        if waiting.left:
            self._waiting[run.execution] = waiting
        else:
            self._go_on(running, output, choices)

    def _side_ended(self, asked: SideCall, call: Call) -> None:
        del self._sides[asked]
        self._recalled -= asked.is_recorded
        side, error = asked.side, call.error
        if isinstance(error, Exception):
            self._branch_errors.append(BranchError(side.source, side.destination, error))
        elif error is not None and not isinstance(error, asyncio.CancelledError):
            self._error = error
        elif call.aside is not None:
            changes = self._waiting[asked.run.execution].changes if side.waits else self._late_changes
            changes.append((asked.state or {}, call.aside))
        waiting = self._waiting.get(asked.run.execution) if side.waits else None
        if waiting is None or self._error is not None:
            return
        waiting.left -= 1
        if not waiting.left:
            del self._waiting[asked.run.execution]
            self._waited_for(waiting)

    def _waited_for(self, waiting: _Waiting) -> None:
        run = waiting.running.run
        ending = self._forks.ending_of(run.branch) if self._forks is not None else None
        if ending is not None:
            self._has_stopped(ending, run.execution)
            return
        if waiting.changes:
            state = run.branch.state
            met = state.copy()
            self._merge_sides(met, waiting.changes)
            state.apply(met.all_changes())
            if self._codec is not None:
                state.record(b"beside")
        self._go_on(waiting.running, waiting.output, waiting.choices)

    def _with_late_changes(self, state: dict[Any, Any]) -> dict[Any, Any]:
        """The state at the end, with what pipelines did to theirs for which nothing has waited."""
        if not self._late_changes:
            return state
        target = StateBranch(state)
        self._merge_sides(target, self._late_changes)
        found: dict[Any, Any] = plain(target.state)
        return found

    def _merge_sides(self, target: StateBranch, changes: Sequence[tuple[Mapping[Any, Any], Change]]) -> None:
        """Do to a state what pipelines did to theirs, which all began with it: they are branches that meet."""
        parts = []
        for number, (before, change) in enumerate(changes, 1):
            part = StateBranch(before)
            part.begin()
            part.apply(change)
            if self._codec is not None:
                part.record(self._codec.fingerprint(change) or b"")
            parts.append(Part(f"pipeline {number} beside the way", part, lambda _: False))
        options = self._program.options
        conflicts = merge(
            target, parts, reducers=options.state_reducers, on_conflict=options.on_state_conflict
        )
        if conflicts:
            self._tell_conflicts(StateConflicts(tuple(conflicts)))

    # As its forks see it

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop of the run."""
        return self._call.run.loop

    @property
    def active(self) -> Activation:
        """What decides."""
        assert self._activation is not None
        return self._activation

    def fail(self, error: BaseException) -> None:
        """The graph has failed, unless it has already."""
        self._error = self._error or error

    def soon(self, do: Callable[[], None]) -> None:
        """Do it in the run's turn."""
        self._call.run.soon(do)

    def act(self, decisions: Iterable[Decision]) -> None:
        """Do what was decided outside of the graph's turn."""
        self._do(decisions)
        self._call.advance_soon()

    def recorded(self, fork: ForkRun) -> bool:
        """Whether it is recorded that this fork has run out of time; then that is told in its turn."""
        if self._codec is None:
            return False
        fork.identity = self._call.identify(_OUT_OF_TIME, fork.fork.place)
        if self._call.recorded_at(fork.identity[0]) is None:
            return False
        self._recalled += self._replays
        self.record(fork)
        return True

    def record(self, fork: ForkRun) -> None:
        """Record that this fork has run out of time, and tell it when that is durable."""
        overdue = fork.overdue(self.loop.time())

        async def say() -> dict[str, Any]:
            return overdue

        step = Step(say, _OUT_OF_TIME, is_async=True)
        self._call.start(_OutOfTime(self._call, fork), step, (), {}, identity=fork.identity, is_told=False)

    def _ran_out(self, branch: _OutOfTime, call: Call) -> None:
        self._recalled -= self._replays and call.record is not None
        assert self._forks is not None
        if call.error is None:
            self._forks.out_of_time(branch.fork, call.value)

    def stop(self, execution: int, reason: str, latest: float | None) -> bool:
        """Stop a node, or the pipelines beside it that its way on waits for; whether there is anything to wait for."""
        grace = self._call.run.grace
        if latest is not None:
            grace = max(0.0, min(grace, latest - self.loop.time()))
        why = Stop(StopKind.CANCEL, reason, grace)
        if execution in self._waiting:
            return self._stop_sides(execution, why)
        running = self._running[execution]
        if running.start is not None:  # it is held back
            del self._held_back[running]
            del self._running[execution]
            return False
        if running.call is not None:
            running.call.stop(why)
        return True

    def _stop_sides(self, execution: int, why: Stop) -> bool:
        sides = [asked for asked in self._sides if asked.run.execution == execution and asked.side.waits]
        for asked in sides:
            if asked.start is not None:
                del self._held_back[asked]
                del self._sides[asked]
                self._waiting[execution].left -= 1
            elif asked.call is not None:
                asked.call.stop(why)
        if not self._waiting[execution].left:
            del self._waiting[execution]
            return False
        return True

    def storable(self, name: str, error: Exception) -> Failed:
        """The failure as a value of the flow, or one that says so where it could not be recorded."""
        outcome = Failed(error)
        if self._codec is not None:
            try:
                self._codec.encode(outcome)
            except UnstorableError as refused:
                unstorable = UnstorableError(f"the failure of branch {name!r}", refused.reason)
                unstorable.__cause__ = error
                return Failed(unstorable)
        return outcome
