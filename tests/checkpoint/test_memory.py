"""The store in memory: what every store does, and what its runs outlive."""

from __future__ import annotations

import os
import threading

import pytest

from weft.checkpoint.base import Write
from weft.checkpoint.codec import Codec
from weft.checkpoint.memory import InMemorySaver
from weft.testing.conformance import StoreConformance, begin, end, record, values


@pytest.fixture
def store():
    return InMemorySaver()


class TestInMemorySaver(StoreConformance):
    pass


def test_the_codec_given_is_the_one_used():
    codec = Codec()
    assert InMemorySaver(codec).codec is codec


def test_commits_are_instant(store):
    assert store.instant is True


def test_closing_keeps_what_is_there(store):
    end(store, "r", begin(store), output=b"out")
    store.close()
    assert store.find("r").output == b"out"


def test_two_savers_share_nothing(store):
    begin(store)
    assert InMemorySaver().find("r") is None


def test_ten_thousand_running_runs_do_not_slow_an_open_down(store):
    """A scan over what is running at every open would take minutes here."""
    for number in range(10_000):
        begin(store, f"r{number}", thread_id=f"t{number}")
    assert len(store.runs(limit=10**6)) == 10_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_in_the_middle_of_a_commit_can_use_its_copy(store):
    """The lock that another thread held would stay held for ever in the child."""
    fence = begin(store)
    stop = threading.Event()

    def commit():
        while not stop.is_set():
            store.commit([Write("r", fence, [record() for _ in range(100)])])

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if len(values(store, "r")) % 100 == 0 else 1)
            _, status = os.waitpid(pid, 0)
            assert status == 0
    finally:
        stop.set()
        thread.join()


def test_a_run_that_saves_nothing_changes_nothing_of_its_thread(store):
    end(store, "r1", begin(store, "r1", thread_id="t"), saved=b"value")
    end(store, "r2", begin(store, "r2", thread_id="t"))
    assert [state.value for state in store.states("t")] == [b"value"]
