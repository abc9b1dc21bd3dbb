"""Threads for bodies: whoever is told that there is none had its job not done, and nobody else loses one."""

import threading
import weakref

import pytest
from leftovers import eventually

from weft.engine.workers import Workers


def test_a_thread_that_cannot_be_started_takes_no_job_of_another(monkeypatch):
    pool, done, go_on, begun = Workers(), [], threading.Event(), threading.Event()

    def first():
        begun.set()
        go_on.wait(10)

    pool.submit(first)
    assert begun.wait(10)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(lambda: done.append("refused"))
    go_on.set()
    over = threading.Event()
    pool.submit(lambda: (done.append("next"), over.set()))
    assert over.wait(10)
    assert done == ["next"]


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
