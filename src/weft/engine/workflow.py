"""What a style gives to the engine: a step to run, and what its bodies may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.checkpoint.base import Checkpointer
    from weft.engine.call import Call
    from weft.engine.execution import Execution
    from weft.engine.options import RunOptions
    from weft.engine.step import Step


class Workflow:
    """The base of whatever can be the root of a run. The hooks do nothing until a style overrides them."""

    step: Step

    #: Whether its functions are the same as long as its step is.
    is_fixed = False

    #: Whether a run that is there already goes on with what it has recorded as its input, whatever is given.
    adopts_input = False

    def for_run(self, input: Any, options: RunOptions) -> Workflow:
        """What is run: itself, or, where a run has something of its own to remember, an object for it alone."""
        return self

    def bind(self, input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the step for this input."""
        return (input,), {}

    def functions(self) -> Iterator[Callable[..., Any]]:
        """The functions that belong to it: their annotations name what may be stored."""
        yield self.step.fn

    def owner_of_functions(self) -> object | None:
        """What stands for these functions for as long as they are the same; None where they may change at any time."""
        return self.step if self.is_fixed else None

    def recorded_input(self, input: Any) -> Any:
        """What a journal keeps of the input."""
        return input

    def adopt(self, input: Any, recorded: Any) -> Any:
        """What counts as the input of a run that is there, in place of what :meth:`recorded_input` gives.

        Asked where :attr:`adopts_input` says so. A run refuses all but the ``recorded`` one.
        """
        return input

    def recorded_value(self, value: Any) -> Any:
        """What a journal keeps as the output: of the value of the root what the run returns, unless that is too little.

        Asked where the root has a conductor; the value of a body is encoded in the thread that made it.
        """
        return self.split_output(value)[0]

    def recorded_output(self, value: Any, store: Checkpointer, run_id: str) -> Any:
        """The output of a finished run, made of what its journal has kept as such."""
        return value

    def split_output(self, value: Any) -> tuple[Any, Any]:
        """What the run returns, and what its thread saves as ``previous``."""
        return value, value

    def suspended(self, run: Execution) -> Any:
        """What a run returns that was put aside."""
        return {"__interrupt__": run.interrupts}

    def provide(self, name: str, call: Call) -> Any:
        """The value that is injected into a body under this name."""
        raise NotImplementedError(name)

    def look_up(self, call: Call) -> tuple[bool, Any]:
        """Whether a cache has a value for this call, and the value."""
        return False, None

    def keep(self, call: Call) -> None:
        """Put the value of this call into a cache."""
