"""One execution of a graph: starts what :mod:`weft.core.activation` says, and tells it what came of it."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from weft.core.activation import (
    Activation,
    BranchEnded,
    Decision,
    Finished,
    Options,
    StateConflicts,
    split_choices,
)
from weft.core.graph_branches import Branch as GraphBranch
from weft.core.graph_plan import GraphPlan
from weft.core.graph_state import Change, StateBranch, plain
from weft.core.outcome import Failed
from weft.engine.context import current
from weft.engine.futures import Branch
from weft.engine.states import Stop, StopKind
from weft.engine.step import Step
from weft.errors import UnstorableError
from weft.graph_callback import close_in_time
from weft.graph_forks import Ending, ForkOptions, ForkRun, Forks
from weft.graph_nodes import Given, GraphNode, NodeCall, Start
from weft.graph_sides import BranchError, Side, SideCall, SideEdge, Sides, Waiting

if TYPE_CHECKING:
    from weft.checkpoint.codec import Codec
    from weft.engine.audience import Audience
    from weft.engine.call import Call
    from weft.engine.planned import PlannedCall


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


def _refuse_abandoned() -> None:
    """A body that was given up goes on in its thread; the state is the next attempt's."""
    call = current.get()
    if call is not None and call.is_in_abandoned_thread:
        raise call.unwinding()


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


class _Moment(Branch):
    """That something has happened from which the graph goes on, as a call that is recorded.

    Args:
        owner: The call of the graph.
        tell: Is told in its turn what is recorded.
    """

    __slots__ = ("tell",)

    def __init__(self, owner: PlannedCall, tell: Callable[[Any], None]) -> None:
        super().__init__(owner, 0)
        self.tell = tell


#: What the calls of such moments are named: a fork has run out of time; all has stopped on a branch that was ended.
_OUT_OF_TIME, _STOPPED = "out of time", "stopped"


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

    # How it begins, until something is set.
    _activation: Activation | None = None
    _finished: Finished | None = None
    _error: BaseException | None = None
    _has_begun = False
    _forks: Forks | None = None
    _sides: Sides | None = None
    _codec: Codec | None = None
    # On a resume nothing new begins before what is recorded has been seen: it may decide that it is not needed.
    _replays = False

    def __init__(
        self,
        program: Program,
        call: PlannedCall,
        given: Given,
        holder: Holder,
        callback: Any,
    ) -> None:
        self._program = program
        self._nodes = program.nodes
        self._call = call
        self._given = given
        self._callback = callback
        self._holder = holder
        self._ended: deque[tuple[Branch, Call]] = deque()
        if call.run.recorder is not None:
            self._codec = call.run.recorder.codec
            self._replays = call.scope is not None and call.scope.order.replaying
        #: Calls with a record whose turn has not come yet.
        self._recalled: set[Branch] = set()
        #: Calls that wait until all that is recorded was seen, with what they are to be asked with.
        self._held_back: dict[NodeCall | SideCall, tuple[Start, tuple[bytes, int] | None]] = {}
        self._unrecorded: list[Ending] = []  # of branches, of which all has stopped in the meantime
        self._ids: dict[int, str] = {}  # of the calls of executions that have ended, where somebody observes
        if program.forks:
            self._forks = Forks(self, program.forks)
        if program.sides:
            self._sides = Sides(self, program.sides, call, given, callback, program.options)

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
            elif isinstance(branch, _Moment):
                self._recalled.discard(branch)
                if call.error is None:
                    branch.tell(call.value)
                elif not isinstance(call.error, asyncio.CancelledError):
                    self.fail(call.error)
            else:
                self._preface_ended(call)
        if self._error is not None:
            self._call.conclude(None, self._error)
        elif self._finished is not None and not (self._sides and self._sides.running):
            self._end(self._finished)
        elif (self._held_back or self._unrecorded) and not self._recalled:
            self._start_held_back()

    def close(self, then: Callable[[], None]) -> None:
        """Let go of the timers, and tell who reads what was streamed that nothing more comes."""
        if self._forks is not None:
            self._forks.close()
        if self._sides is not None and self._call.run.rehearsal is None:
            self._holder.branch_errors = self._sides.errors
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
        self._call.run.spawn(close_in_time(callback, self._call, then))

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
            self._program.plan,
            self._program.options,
            state=state,
            guard=_refuse_abandoned,
            watched=self._program.forks,
            has_places=self._codec is not None,
        )
        self._do(self._activation.begin(self._given, self._given.upstream))

    def _end(self, finished: Finished) -> None:
        result = finished.writes if self._given.only_writes else finished.result
        if finished.state is not None:
            state = finished.state if self._sides is None else self._sides.with_late_changes(finished.state)
            self._call.aside = state
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
        """Do what was decided, then what follows from that."""
        forks = self._forks
        while decisions:
            following: list[Decision] = []
            for decision in decisions:
                if self._error is not None:
                    return
                if isinstance(decision, GraphBranch):
                    following += self.start(decision) if forks is None else forks.started(decision)
                elif isinstance(decision, BranchEnded):
                    assert forks is not None  # nobody else watches
                    following += forks.branch_ended(decision.branch)
                elif isinstance(decision, StateConflicts):
                    self.tell_conflicts(decision)
                else:
                    self._finished = decision
            decisions = following

    def start(self, branch: GraphBranch) -> Iterable[Decision]:
        """Run the node of a branch."""
        node = self._nodes[branch.node]
        running = NodeCall(self._call, node, branch, self._callback)
        try:
            start = node.start_of(branch, self._callback)
        except Exception as error:
            return self._failed(running, error)
        if self._forks is not None:
            self._forks.began(running)
        if self._codec is not None:
            self.ask_in_turn(running, start, running.state)
        else:
            self._ask(running, start)
        return ()

    def ask_in_turn(self, asked: NodeCall | SideCall, start: Start, state: StateBranch | None) -> None:
        """Make it a call, on a resume not before its turn."""
        identity = None if self._codec is None else self._identify(asked.branch, start, state)
        if not self._replays or identity is None:
            self._ask(asked, start, identity)
        elif self._call.recorded_at(identity[0]) is None:
            self._held_back[asked] = start, identity
        else:
            self._ask(asked, start, identity)
            if asked.call is not None and asked.call.record is not None:
                self._recalled.add(asked)

    def _ask(
        self, running: NodeCall | SideCall, start: Start, identity: tuple[bytes, int] | None = None
    ) -> None:
        step, args, kwargs = start
        latest = None if self._forks is None else self._forks.deadline_on(running.branch)
        self._call.start(running, step, args, kwargs, identity, latest)
        if self._call.run.audience is not None:
            self._tell_joined(running, self._call.run.audience)

    def _tell_joined(self, running: NodeCall | SideCall, audience: Audience) -> None:
        """If it goes on behind a join, say from where it came."""
        call = running.call
        if len(running.branch.came) > 1 and call is not None and isinstance(running, NodeCall):
            branches = tuple(self._ids.get(execution, "") for *_, execution in running.branch.came)
            audience.joined(call, branches)

    def _start_held_back(self) -> None:
        self._replays = False
        for running in list(self._held_back):
            held = self._held_back.pop(running, None)
            if held is not None:  # else it was stopped by what became of another
                self._ask(running, *held)
        unrecorded, self._unrecorded = self._unrecorded, []
        for ending in unrecorded:
            if ending.is_current and not ending.alive:
                self.record_end(ending)

    def _identify(self, branch: GraphBranch, start: Start, state: StateBranch | None) -> tuple[bytes, int]:
        """By the way it came, by its arguments, and by the state, which stands for what was done to it until now."""
        assert self._call.run.recorder is not None
        step, args, kwargs = start
        fingerprint = self._call.run.recorder.fingerprint(step, args, kwargs)
        seen = b"" if state is None else b"s" + state.digest
        return self._call.identify(step.name, branch.place + seen + fingerprint)

    # Outcomes

    def _node_ended(self, running: NodeCall, call: Call) -> None:
        if self._recalled:
            self._recalled.discard(running)
        ending = None if self._forks is None else self._forks.ending_of(running.branch)
        if ending is not None or call.error is not None:
            self._has_nothing(running, ending, call.error)
            return
        node, output, choices = running.node, call.value, None
        if self._call.run.audience is not None:
            self._ids[running.index] = call.id
        if call.aside is not None and (state := running.state) is not None:
            self._note_change(state, call.aside, was_recorded=call.record is not None)
        if node.is_router:
            choices, output = split_choices(node.name, output)
        if self._sides is not None and self._sides.begin(Waiting(running, output, choices)):
            return
        self._go_on(running, output, choices)

    def _has_nothing(self, running: NodeCall, ending: Ending | None, error: BaseException | None) -> None:
        """A node has ended and gives nothing: it has failed, or what it is on is being ended."""
        if (state := running.state) is not None:
            state.undo()
        if ending is not None:
            self._has_stopped(ending, running)
        else:
            assert error is not None
            self._do(self._failed(running, error))

    def _has_stopped(self, ending: Ending, running: NodeCall) -> None:
        assert self._forks is not None
        self._do(self._forks.stopped(ending, running))

    def _side_ended(self, asked: SideCall, call: Call) -> None:
        assert self._sides is not None
        self._recalled.discard(asked)
        waiting = self._sides.ended(asked, call)
        if call.error is not None and not isinstance(call.error, Exception | asyncio.CancelledError):
            self.fail(call.error)
        elif waiting is not None:
            self._waited_for(waiting)

    def _waited_for(self, waiting: Waiting) -> None:
        running = waiting.running
        ending = None if self._forks is None else self._forks.ending_of(running.branch)
        if ending is not None:
            self._has_stopped(ending, running)
            return
        assert self._sides is not None
        self._sides.take_changes(waiting)
        self._go_on(running, waiting.output, waiting.choices)

    def _go_on(
        self,
        running: NodeCall,
        output: Mapping[Any, Any],
        choices: Sequence[str] | None,
        *,
        goes_on: bool = True,
    ) -> None:
        """A node has ended, and nothing that concerns it has to be waited for."""
        if self._forks is not None:
            self._forks.left(running)
        assert self._activation is not None
        self._do(self._activation.ended(running.index, output, choices, goes_on=goes_on))

    def _note_change(self, state: StateBranch, change: Change, *, was_recorded: bool) -> None:
        if was_recorded:
            state.apply(change)
        if self._codec is not None:
            state.record(self._codec.fingerprint(change) or b"")

    def _failed(self, running: NodeCall, error: BaseException) -> Iterable[Decision]:
        """A node has failed: the branch that may fail has, or else the graph."""
        if self._forks is None or not isinstance(error, Exception):
            self.fail(error)
            return ()
        return self._forks.failed(running, error)

    def tell_conflicts(self, decision: StateConflicts) -> None:
        """Branches that met had changed the same of the state."""
        if (audience := self._call.run.audience) is not None:
            for conflict in decision.conflicts:
                audience.conflicted(self._call, conflict)

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
        fork.identity = self._call.identify_aside(_OUT_OF_TIME, fork.fork.place)
        if self._call.recorded_at(fork.identity[0]) is None:
            return False
        self.record(fork)
        return True

    def record(self, fork: ForkRun) -> None:
        """Record that this fork has run out of time, unless that is recorded, and tell it when that is durable."""
        assert self._forks is not None
        tell = functools.partial(self._forks.out_of_time, fork)
        self._record_moment(_OUT_OF_TIME, fork.overdue(self.loop.time()), fork.identity, tell)

    def expect_end(self, ending: Ending) -> None:
        """Something runs on an arm that is being ended; if it is recorded that it has stopped, have that told."""
        if self._codec is None:
            return
        ending.identity = self._call.identify_aside(_STOPPED, ending.arm.branch.place)
        if self._replays and self._call.recorded_at(ending.identity[0]) is not None:
            self._record_stopped(ending)

    def record_end(self, ending: Ending) -> bool:
        """All that ran on an arm has stopped: whether that is told when it is durable, in its turn."""
        if ending.identity is None:
            return False
        if not ending.is_recorded:
            if self._replays:
                self._unrecorded.append(ending)  # that was not so before all that is recorded
            else:
                self._record_stopped(ending)
        return True

    def _record_stopped(self, ending: Ending) -> None:
        ending.is_recorded = True
        self._record_moment(_STOPPED, None, ending.identity, functools.partial(self._stopped, ending))

    def _stopped(self, ending: Ending, _: None) -> None:
        assert self._forks is not None
        self._do(self._forks.end_told(ending))

    def _record_moment(
        self, name: str, value: Any, identity: tuple[bytes, int] | None, tell: Callable[[Any], None]
    ) -> None:
        """Record that something has happened, unless that is recorded, and tell it when that is durable."""

        async def say() -> Any:
            return value

        branch = _Moment(self._call, tell)
        self._call.start(branch, Step(say, name, is_async=True), (), {}, identity=identity, is_told=False)
        if self._replays and branch.call is not None and branch.call.record is not None:
            self._recalled.add(branch)

    def stop(self, running: NodeCall, reason: str, latest: float | None) -> bool:
        """Stop a node, or the pipelines beside it that its way on waits for; whether there is anything to wait for."""
        grace = self._call.run.grace
        if latest is not None:
            grace = max(0.0, min(grace, latest - self.loop.time()))
        why = Stop(StopKind.CANCEL, reason, grace)
        if self._sides is not None and self._sides.are_awaited(running):
            return self._sides.stop(running, why)
        return self.stop_call(running, why)

    def stop_call(self, asked: NodeCall | SideCall, why: Stop) -> bool:
        """Stop a call, or have it not begin; whether there is anything to wait for."""
        if self._held_back.pop(asked, None) is not None:
            return False
        if asked.call is not None:
            asked.call.stop(why)
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


class _Own:
    """What a pipeline has of its own; what it leaves is taken by the graph."""

    def __init__(self, state: Mapping[Any, Any] | None) -> None:
        self.state = self.given_state = dict(state or {})
        self.branch_errors: list[Any] = []  # which are in those of the graph as well


class SideRun(GraphRun):
    """The conductor of a pipeline: first its condition, if it has one."""

    def __init__(self, program: Program, call: PlannedCall, given: Given, condition: Step | None) -> None:
        self._own: Holder = _Own(given.state)
        super().__init__(program, call, given, self._own, given.callback)
        self._condition = condition

    def _begin(self) -> None:
        if self._condition is None:
            self._activate_own()
            return
        output = dict(self._given.upstream[-1].output)
        self._call.start(Branch(self._call, 0), self._condition, (output, self._own.state), {})

    def _preface_ended(self, call: Call) -> None:
        if call.error is not None:
            self._error = call.error
        elif call.value:
            self._activate_own()
        else:
            self._call.conclude(None, None)

    def _activate_own(self) -> None:
        self._activate(self._own.state if self._program.takes_state else None)

    def _go_on(
        self,
        running: NodeCall,
        output: Mapping[Any, Any],
        choices: Sequence[str] | None,
        *,
        goes_on: bool = True,
    ) -> None:
        super()._go_on(running, output, choices, goes_on=goes_on and output.get("success") is not False)

    def _end(self, finished: Finished) -> None:
        if finished.state is not None:
            self._call.aside = self.active.change() or None
        self._call.conclude(None, None)


def side_of(
    edge: SideEdge, plan: GraphPlan, program: Callable[[], Program], *, shape: str, takes_state: bool
) -> Side:
    """The pipeline as the graph runs it."""
    condition = None
    if edge.condition is not None:
        condition = Step.of(edge.condition, name=f"{edge.source} to {edge.destination}?", convert=bool)
    step = Step(
        functools.partial(_conductor, program, condition),
        f"{edge.source} to {edge.destination}",
        is_async=True,
        is_planned=True,
        key=_flow_of,
        shape=shape,
    )
    return Side(edge.source, edge.destination, step, edge.waits, takes_state or condition is not None, plan)


def _flow_of(given: Given) -> Any:
    return {**given}


def _conductor(
    program: Callable[[], Program], condition: Step | None, call: PlannedCall, given: Given
) -> SideRun:
    return SideRun(program(), call, given, condition)


__all__ = ["BranchError", "GraphRun", "Holder", "Program", "Result", "SideRun", "side_of"]
