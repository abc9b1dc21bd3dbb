"""Threads for bodies: whoever is told that there is none had its job not done, and nobody else loses one."""

import queue
import threading
import weakref

import pytest
from leftovers import eventually

from weft.engine.workers import Workers


class Held(queue.SimpleQueue):
    """From which no thread of the pool takes anything before the gate is open."""

    def __init__(self):
        self.gate = threading.Event()

    def get(self, timeout=None):
        if threading.current_thread() is not threading.main_thread():
            self.gate.wait(10)
        return super().get(timeout=timeout)


def test_a_thread_that_cannot_be_started_takes_no_job_of_another(monkeypatch):
    pool, done, over = Workers(), [], threading.Event()
    pool._jobs = jobs = Held()
    jobs.gate.set()
    pool.submit(lambda: done.append("first"))
    eventually(lambda: pool._idle == 1, 10)
    jobs.gate.clear()
    pool.submit(lambda: (done.append("waits for the idle thread"), over.set()))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(lambda: done.append("refused"))
    jobs.gate.set()
    assert over.wait(10)
    assert done == ["first", "waits for the idle thread"]


def no_thread(_):
    raise RuntimeError("can't start new thread")


def test_a_thread_does_not_keep_what_it_has_done():
    class Job:
        def __call__(self):
            over.set()

    pool, over, job = Workers(), threading.Event(), Job()
    gone = weakref.ref(job)
    pool.submit(job)
    assert over.wait(10)
    del job
    eventually(lambda: gone() is None, 10)
