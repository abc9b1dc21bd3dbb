"""What the worker of a pool or a cluster does with a body: call it here, or in a process beside."""

from __future__ import annotations

import functools
import pickle
import time

from weft.executors import work
from weft.executors.base import Ticket
from weft.executors.inside import Inside
from weft.executors.parcel import unpack, unpack_body
from weft.executors.process import Job, ProcessExecutor
from weft.executors.report import Report, Reporter

#: Seconds between two looks at how long a body takes.
_LOOK = 0.02

#: Processes beside a worker of a cluster; how many bodies it has at once is for the cluster to say.
_MANY = 10_000


def call_here(data: bytes) -> bytes:
    """Call a packed body in this thread; its report, packed."""
    called, ticket, variables = unpack(data)
    reporter = Reporter(ticket.step)
    there = Inside(ticket.call_id, ticket.step, ticket.left, write=reporter.wrote, heartbeat=reporter.beat)
    began = time.monotonic()
    value, error = None, None
    try:
        value = work.call_here(
            unpack_body(called, ticket),
            variables=unpack(variables) if variables else (),
            there=there,
            log=reporter.logged,
        )
    except BaseException as raised:  # also SystemExit: it becomes the outcome of the call
        error = raised
    reporter.ended(value, error)
    reporter.report.seconds = time.monotonic() - began
    return pickle.dumps(reporter.report)


def call_apart(number: int, bodies: list[bytes], memory: int | None) -> bytes:
    """Call packed bodies one after the other in a process beside this one; their reports, packed.

    Args:
        number: What these are called, for :func:`stop`.
        bodies: Each packed, as by :func:`weft.executors.parcel.packed`.
        memory: Bytes that the process may use.
    """
    pool = _processes(memory)
    reports = [_call_in(pool, data, number, place) for place, data in enumerate(bodies)]
    return pickle.dumps(reports)


def stop(numbers: list[tuple[int, int]], *, kill: bool) -> None:
    """Tell bodies that are at work in processes beside this one that nobody waits for them, or end them."""
    for each in numbers:
        _stopped[each] = None
        if (job := _at_work.get(each)) is not None:
            if kill:
                job.kill()
            else:
                job.tell()
    while len(_stopped) > _MANY:
        _stopped.pop(next(iter(_stopped)))


_at_work: dict[tuple[int, int], Job] = {}
_stopped: dict[tuple[int, int], None] = {}


@functools.cache
def _processes(memory: int | None) -> ProcessExecutor:
    return ProcessExecutor(_MANY, memory=memory)


def _call_in(pool: ProcessExecutor, data: bytes, number: int, place: int) -> Report:
    _, ticket, _ = unpack(data)
    reporter = Reporter(ticket.step)
    if (number, place) in _stopped:
        reporter.ended(None, KeyboardInterrupt("never begun"))
        return reporter.report
    began = time.monotonic()
    job = _at_work[number, place] = pool.begin_sent(data, ticket.step, reporter)
    try:
        _wait(job, reporter, ticket, began)
    except BaseException:  # the cluster wants to be rid of it
        job.kill()
        raise
    finally:
        del _at_work[number, place]
    reporter.report.seconds = time.monotonic() - began
    return reporter.report


def _wait(job: Job, reporter: Reporter, ticket: Ticket, began: float) -> None:
    """Until it has ended, or is out of time and was killed."""
    if ticket.timeout is None and ticket.idle is None:
        while not reporter.done.wait(1.0):  # without an end, Ctrl-C would not be seen
            pass
        return
    signs, since = reporter.signs, began
    while not reporter.done.wait(_LOOK):
        now = time.monotonic()
        if reporter.signs != signs:
            signs, since = reporter.signs, now
        passed = _passed(ticket, now - began, now - since)
        if passed is not None:
            job.kill()
            reporter.done.wait()
            reporter.report.out_of_time = passed
            return


def _passed(ticket: Ticket, elapsed: float, silent: float) -> tuple[float, float, bool] | None:
    if ticket.timeout is not None and elapsed >= ticket.timeout:
        return ticket.timeout, elapsed, False
    if ticket.idle is not None and silent >= ticket.idle:
        return ticket.idle, elapsed, True
    return None
