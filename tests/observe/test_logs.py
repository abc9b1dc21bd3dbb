"""Records made in bodies say which run, call, step and attempt they are of."""

import asyncio
import logging
import logging.handlers
import queue
import threading

import pytest

import weft
from weft import InMemorySaver, RetryPolicy, Sequence, entrypoint, node, parallel, task
from weft.engine.events import CallStarted
from weft.observe.logs import RunIds, run_ids

logger = logging.getLogger("tests.logs")


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.addFilter(RunIds())
        self.setFormatter(logging.Formatter("%(run_id)s %(call_id)s %(step)s %(attempt)s: %(message)s"))
        self.records = []

    def emit(self, record):
        self.records.append(record)

    def lines(self):
        return [self.format(record) for record in self.records]

    def ids(self):
        return [
            (record.getMessage(), record.run_id, record.call_id, record.step, record.attempt)
            for record in self.records
        ]


@pytest.fixture
def kept():
    handler, root = Kept(), logging.getLogger()
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)


def test_outside_of_a_body_they_are_empty(kept):
    logger.info("outside")
    assert kept.lines() == ["   0: outside"]
    assert run_ids() == {}


@pytest.mark.parametrize("is_async", [True, False])
def test_on_the_loop_and_in_threads(is_async, kept):
    def say(x):
        logger.info("%s %s", x, weft.call_id())
        return x

    async def asay(x):
        return say(x)

    step = task(asay if is_async else say)

    @entrypoint(checkpointer=InMemorySaver())
    async def workflow(n):
        await asyncio.gather(*[step(i) for i in range(n)])
        logger.info("last %s", weft.call_id())

    workflow.invoke(20, run_id="r")
    assert len({record.call_id for record in kept.records}) == 21
    for message, run_id, call_id, name, attempt in kept.ids():
        number, mine = message.split()
        assert (run_id, call_id, attempt) == ("r", mine, 1)
        assert name == ("workflow" if number == "last" else step.step.name)


def test_attempts(kept):
    tries = []

    @node(retry=RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False))
    def flaky(x):
        tries.append(x)
        logger.info("try")
        if len(tries) < 3:
            raise ConnectionError

    flaky.invoke(1)
    assert [(record.step, record.attempt) for record in kept.records] == [("flaky", n) for n in (1, 2, 3)]


def test_the_bodies_of_a_run_without_a_journal_agree_on_its_id(kept):
    """They name it in the same moment, in threads."""
    for _ in range(20):
        barrier = threading.Barrier(8)

        def say(x):
            barrier.wait(5)
            logger.info("here")

        kept.records.clear()
        branches = [node(f"branch {n}")(say) for n in range(8)]
        parallel(*branches, max_concurrent=8).invoke(1)
        assert len(kept.records) == 8
        assert len({record.run_id for record in kept.records}) == 1
        assert len({record.call_id for record in kept.records}) == 8


def test_a_record_of_the_engine_has_none_as_it_may_be_made_anywhere(kept):
    def broken(event):
        if isinstance(event, CallStarted):
            raise RuntimeError("no")

    Sequence(lambda x: x).invoke(1, observers=[broken])
    [record] = kept.records
    assert (record.name, record.run_id, record.step) == ("weft", "", "")


def test_a_record_that_comes_through_a_queue_keeps_its_own(kept):
    waiting = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(waiting)
    handler.addFilter(RunIds())
    logger.addHandler(handler)
    logger.propagate = False
    try:
        node("step")(lambda x: logger.info("queued")).invoke(1)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    listener = logging.handlers.QueueListener(waiting, kept)
    listener.start()
    listener.stop()
    [(message, run_id, call_id, step, attempt)] = kept.ids()
    assert (message, step, attempt) == ("queued", "step", 1)
    assert call_id.startswith(run_id)
    assert run_id


def test_ids_for_loggers_that_bind_values():
    assert set(node("step")(lambda x: run_ids()).invoke(1)) == {"run_id", "call_id", "step", "attempt"}
