"""Where a log record was made: the run, the call, the step and the attempt, on the records that bodies make."""

from __future__ import annotations

import logging
from typing import Any

from weft.engine.context import current


def run_ids() -> dict[str, Any]:
    """``run_id, call_id, step`` and ``attempt`` of the body that asks; empty outside of one.

    For loggers that bind values themselves; for those of the standard library there is :class:`RunIds`.
    """
    call = current.get()
    if call is None:
        return {}
    return {"run_id": call.run.id, "call_id": call.id, "step": call.step.name, "attempt": call.attempt}


class RunIds(logging.Filter):
    """Puts ``run_id, call_id, step`` and ``attempt`` on every record, so that a formatter may name them.

    ``handler.addFilter(RunIds())``: on a handler, which sees the records of all loggers; a filter of a logger sees its
    own alone. It works in async bodies and in those in threads. On records that no body made they are "", and 0 for
    the attempt; so too on those of Weft itself, which name their run in the text. A record is not looked at again
    that has them already, as one that comes through a queue.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Put them on this record; lets every record through."""
        if hasattr(record, "run_id"):
            return True
        # The engine logs in the context of whatever made it act, which says nothing.
        found = run_ids() if record.name != "weft" else {}
        vars(record).update(_NOWHERE, **found)
        return True


_NOWHERE = {"run_id": "", "call_id": "", "step": "", "attempt": 0}
