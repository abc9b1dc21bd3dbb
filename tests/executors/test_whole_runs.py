"""Each item's run in another process: what crosses, and what is refused."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest

import weft
from weft import ProcessExecutor, RunBusyError, UsageError


def elsewhere(workflow: Any, items: list[Any], **options: Any) -> Any:
    with ProcessExecutor(1) as executor:
        return weft.map(workflow, executor=executor).invoke(items, **options)


def failure(workflow: Any, **options: Any) -> BaseException:
    with pytest.raises(weft.ParallelExecutionError) as caught:
        elsewhere(workflow, [1], **options)
    return caught.value.failures[0]


def test_a_question_is_refused(db: str) -> None:
    @weft.entrypoint()
    def asks(x: int) -> Any:
        return weft.interrupt(f"{x}?")

    with weft.SqliteSaver(db) as saver:
        found = failure(asks, checkpointer=saver, run_id="r")
    assert isinstance(found, UsageError)
    assert "nobody can answer" in str(found)


def test_the_context_of_the_run_goes_along() -> None:
    @weft.entrypoint()
    def tells(x: int, runtime: weft.Runtime[Any]) -> Any:
        return (x, runtime.context)

    found = elsewhere(tells, [1, 2], context={"who": "me"})
    assert found == [(1, {"who": "me"}), (2, {"who": "me"})]


def test_a_body_that_finds_another_run_busy_fails_as_others_do(db: str) -> None:
    """Only that the run of the item itself is taken says that its last process is not known to be dead yet."""
    begun, may_end = threading.Event(), threading.Event()

    @weft.entrypoint()
    def blocked(_: int) -> None:
        begun.set()
        assert may_end.wait(60)

    @weft.entrypoint()
    def asks_for_it(_: int) -> Any:
        @weft.entrypoint()
        def blocked(_: int) -> None:
            raise AssertionError

        with weft.SqliteSaver(db) as there:
            return contextvars.Context().run(blocked.invoke, 0, checkpointer=there, run_id="busy")

    with weft.SqliteSaver(db) as saver:
        owner = blocked.submit(0, checkpointer=saver, run_id="busy")
        assert begun.wait(60)
        try:
            assert isinstance(failure(asks_for_it, checkpointer=saver, run_id="r"), RunBusyError)
        finally:
            may_end.set()
            owner.result()
