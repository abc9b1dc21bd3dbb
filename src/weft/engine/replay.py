"""A call whose outcome is recorded: of the life of a call it has the beginning and the end, and nothing between.

On a resume there is one for each recorded call, at times a hundred thousand at once. So it has what a parent knows its
child by, and its record; it keeps no arguments, and has nothing that a body would need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weft.engine.call import Call
from weft.engine.states import ASKED, State

if TYPE_CHECKING:
    from weft.checkpoint.base import Record
    from weft.engine.step import Step


class RecordedCall(Call):
    """A call that only waits for its turn to be seen again."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed: it has no body that could be given any
    pending = asked = 0
    started = asked_at = 0.0
    context = body = None
    is_held = False

    def __init__(self, parent: Call, step: Step, record: Record) -> None:
        self.run = parent.run
        self.parent = parent
        self.step = step
        self.record = record
        self.identity = record.identity
        self.state: State = ASKED
        self.attempt = record.attempts
        self.value: Any = None
        self.error: BaseException | None = None

    def find_record(self, fingerprint: bytes) -> None:
        """It has its record; what remains is to be shown."""
        parent = self.parent
        assert parent is not None
        assert parent.scope is not None
        if self.run.rehearsal is not None:
            self.run.rehearsal.asked.add(self.identity)
        parent.scope.replay(self)
