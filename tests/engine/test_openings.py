"""Runs that begin at the same time are opened together, and each hears of its own opening only."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest

from weft import (
    Command,
    InMemorySaver,
    RunBusyError,
    RunNotFoundError,
    RunStatus,
    SqliteSaver,
    StoreError,
    entrypoint,
    interrupt,
    task,
)
from weft.checkpoint.base import OpenRun
from weft.checkpoint.owner import run_busy
from weft.engine import execution, recorder
from weft.engine.execution import Execution
from weft.engine.threads import Delivery, deliver


@task
async def double(i):
    return 2 * i


@entrypoint()
async def flow(i):
    return await double(i)


@entrypoint()
async def broken(i):
    return 1 / await double(i)


class Gated(SqliteSaver):
    """Opens nothing before the gate is open, and notes how many runs were opened together."""

    def __init__(self, path):
        super().__init__(path)
        self.gate, self.asked = threading.Event(), threading.Event()
        self.groups = []
        self.committed = []

    def open_many(self, requests):
        self.groups.append(len(requests))
        self.asked.set()
        assert self.gate.wait(20)
        return super().open_many(requests)

    def commit(self, writes):
        self.committed.append({write.run_id for write in writes})
        return super().commit(writes)


@pytest.fixture
def store(tmp_path):
    with Gated(tmp_path / "runs.db") as store:
        yield store
        store.gate.set()


async def wait_for(event):
    assert await asyncio.to_thread(event.wait, 20)


async def all_at_once(store, inputs, **options):
    """Runs of which the first is just being opened when the others are asked for."""
    runs = []
    for number, value in enumerate(inputs):
        name = options.get("name", "r{}").format(number)
        runs.append(asyncio.ensure_future(flow.ainvoke(value, run_id=name, checkpointer=store)))
        if not number:
            await wait_for(store.asked)
    await asyncio.sleep(0.05)
    store.gate.set()
    return await asyncio.gather(*runs, return_exceptions=True)


def test_runs_that_wait_to_be_opened_are_opened_in_one_transaction(store):
    assert asyncio.run(all_at_once(store, range(200))) == [2 * i for i in range(200)]
    assert store.groups == [1, 199]


def test_one_that_is_refused_hinders_none_of_the_others(store):
    store.gate.set()
    flow.invoke(1, run_id="r3", checkpointer=store)
    store.gate.clear()
    store.asked.clear()
    results = asyncio.run(all_at_once(store, range(5)))
    assert results[:3] == [0, 2, 4]
    assert results[4] == 8
    assert type(results[3]).__name__ == "RunMismatchError"


def test_of_two_who_want_a_run_at_the_same_time_one_gets_it(store):
    results = asyncio.run(all_at_once(store, [7] * 4, name="same"))
    assert results[0] == 14
    # Who comes while it is open is refused, and who comes when it has ended gets its output.
    assert all(found == 14 or type(found) is RunBusyError for found in results)
    assert any(type(found) is RunBusyError for found in results)


class Failing(Gated):
    """Fails to do for a group what it is asked for."""

    fails_to = ""

    def open_many(self, requests):
        found = super().open_many(requests)
        if self.fails_to == "open" and len(requests) > 1:
            for row in found:
                self.release(row.run_id, row.fence)
            raise StoreError("the disk is on fire")
        return found

    def commit(self, writes):
        if self.fails_to == "commit" and len(writes) > 1:
            raise StoreError("the disk is on fire")
        return super().commit(writes)


@pytest.mark.parametrize("what", ["open", "commit"])
def test_each_run_of_a_group_that_fails_has_an_error_of_its_own(what, tmp_path):
    """Notes on it say how to go on with that run, and not with another one."""
    with Failing(tmp_path / "runs.db") as store:
        store.fails_to = what
        results = asyncio.run(all_at_once(store, range(20)))
        errors = [found for found in results if isinstance(found, StoreError)]
        assert len(errors) >= 2
        assert len({id(error) for error in errors}) == len(errors)
        for number, error in enumerate(results):
            if isinstance(error, StoreError):
                assert str(error) == "the disk is on fire"
                for note in getattr(error, "__notes__", []):
                    assert f"run_id='r{number}'" in note
                assert len(getattr(error, "__notes__", [])) == (what == "commit")
        store.fails_to = ""
        again = [flow.invoke(i, run_id=f"r{i}", checkpointer=store) for i in range(20)]
        assert again == [2 * i for i in range(20)]


def test_a_run_whose_owner_is_just_dying_is_asked_for_again_alone(store):
    """A store may need a moment to notice; the others do not wait for that."""
    asked = []

    class Late(Gated):
        def open_many(self, requests):
            return [run_busy(each.run_id, 5.0) for each in requests]

        def open(self, request):
            asked.append(threading.current_thread().name)
            (row,) = SqliteSaver.open_many(self, [request])
            return row

    late = Late(store.path)
    assert flow.invoke(3, run_id="r", checkpointer=late) == 6
    assert asked == ["weft-worker"]
    late.close()


def test_a_run_that_this_object_has_open_is_not_asked_for_again(store):
    store.gate.set()
    fence = store.open(OpenRun("r", "flow", None, store.codec.encode(1))).fence
    store.groups.clear()
    with pytest.raises(RunBusyError):
        flow.invoke(1, run_id="r", checkpointer=store)
    assert store.groups == [1]
    store.release("r", fence)


def test_a_run_is_let_go_when_its_loop_was_closed_while_it_was_opened(store):
    async def leave():
        flow.submit(1, run_id="r", checkpointer=store)
        await wait_for(store.asked)

    asyncio.run(leave())
    store.gate.set()
    for _ in range(200):
        with suppress(RunBusyError, RunNotFoundError):
            assert store.open(OpenRun("r", "flow")).fence == 2
            return
        threading.Event().wait(0.01)
    raise AssertionError("the run is open, and nobody has it")


def test_a_run_is_let_go_that_is_open_when_its_loop_is_about_to_be_closed(store):
    async def main():
        run = flow.submit(1, run_id="r", checkpointer=store)
        await wait_for(store.asked)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()  # as asyncio.run does
        with pytest.raises(asyncio.CancelledError):
            await run
        store.gate.set()
        for _ in range(200):
            await asyncio.sleep(0.01)
            with suppress(RunBusyError, RunNotFoundError):
                assert store.open(OpenRun("r", "flow")).fence == 2
                return
        raise AssertionError("the run is open, and nobody has it")

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(6))
def test_a_run_is_let_go_whose_reading_is_cancelled_before_it_has_begun(turns):
    async def main():
        store = InMemorySaver()
        with pytest.raises(ZeroDivisionError):
            await broken.ainvoke(0, run_id="r", checkpointer=store)
        run = broken.submit(None, run_id="r", checkpointer=store)
        for _ in range(turns):
            await asyncio.sleep(0)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()  # as asyncio.run does
        with suppress(asyncio.CancelledError, ZeroDivisionError):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(wait(run))), 20)
        assert store.open(OpenRun("r", "broken")).fence >= 2

    async def wait(run):
        return await run

    asyncio.run(main())


@pytest.mark.parametrize("where", ["Recorder", "root_identity"])
@pytest.mark.parametrize("durable", [False, True])
def test_a_run_that_has_no_memory_to_start_fails_and_is_let_go(store, monkeypatch, where, durable):
    def no_memory(*_, **__):
        raise MemoryError

    store.gate.set()
    names = where if durable else "_tell_start"
    with monkeypatch.context() as patch:
        home = (recorder if where == "Recorder" else execution) if durable else Execution
        patch.setattr(home, names, no_memory)
        options = {"run_id": "r", "checkpointer": store} if durable else {}
        with pytest.raises(MemoryError):
            asyncio.run(asyncio.wait_for(flow.ainvoke(1, **options), 20))
        with pytest.raises(MemoryError):
            flow.invoke(1, **{**options, **({"run_id": "s"} if durable else {})})
    if durable:
        assert flow.invoke(1, run_id="r", checkpointer=store) == 2


def test_a_run_that_is_cancelled_while_it_is_opened_can_be_gone_on_with(store):
    async def main():
        run = asyncio.ensure_future(flow.ainvoke(1, run_id="r", checkpointer=store))
        await wait_for(store.asked)
        run.cancel()
        store.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert store.find("r").status is RunStatus.CANCELLED
        return await flow.ainvoke(None, run_id="r", checkpointer=store)

    assert asyncio.run(main()) == 2


# What is on its way to a loop


async def cancelled(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("moment", ["before", "as it comes"])
def test_a_value_that_nobody_awaits_any_more_is_given_back(moment):
    async def main():
        given_back = []
        delivery = Delivery(asyncio.get_running_loop(), given_back.append)
        task = asyncio.ensure_future(delivery.received())
        await asyncio.sleep(0)
        if moment == "before":
            await cancelled(task)
            delivery.settle("value", None)
        else:
            delivery.settle("value", None)
            await cancelled(task)
        assert given_back == ["value"]

    asyncio.run(main())


def test_an_error_that_nobody_awaits_any_more_is_forgotten():
    async def main():
        given_back = []
        delivery = Delivery(asyncio.get_running_loop(), given_back.append)
        task = asyncio.ensure_future(delivery.received())
        await asyncio.sleep(0)
        await cancelled(task)
        delivery.settle(None, ValueError())
        assert given_back == []

    asyncio.run(main())


def test_what_comes_for_a_closed_loop_is_given_back_and_the_others_get_theirs():
    given_back = []

    async def make():
        return Delivery(asyncio.get_running_loop(), given_back.append)

    async def main():
        late = Delivery(asyncio.get_running_loop())
        deliver(gone, "lost", None)
        deliver(late, "found", None)
        assert await late.received() == "found"

    gone = asyncio.run(make())
    asyncio.run(main())
    assert given_back == ["lost"]


class Slow(SqliteSaver):
    """Takes its time to open a run, and may refuse to release one."""

    is_slow = False
    answered = 0

    def open_many(self, requests):
        if self.is_slow:
            time.sleep(0.3)
        return super().open_many(requests)

    def release(self, *args):
        if self.is_slow:
            raise OSError("the disk is full")
        return super().release(*args)

    def add_answers(self, *args):
        self.answered += 1
        return super().add_answers(*args)


def test_who_cannot_be_released_holds_up_nobody_else(db):
    """Its loop has gone while it was opened, and so it is the store's own writer that lets it go."""

    async def begins():
        flow.submit(1, run_id="lost", checkpointer=store)
        await asyncio.sleep(0.1)

    with Slow(db) as store:
        store.is_slow = True
        asyncio.run(begins())
        time.sleep(0.5)
        store.is_slow = False
        assert flow.submit(1, run_id="next", checkpointer=store).result(10) == flow.invoke(1)


def test_what_was_cancelled_while_it_was_opened_answers_nothing(db):
    @entrypoint()
    def asks(_):
        return interrupt("well?")

    async def main():
        run = asks.submit(Command(resume=5), run_id="r", checkpointer=store)
        await asyncio.sleep(0.1)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        await asyncio.sleep(0.5)
        assert run.status == "cancelled"

    with Slow(db) as store:
        asks.invoke(1, run_id="r", checkpointer=store)
        store.is_slow = True
        asyncio.run(main())
        assert store.answered == 0


@pytest.mark.parametrize("turns", range(4))
def test_a_loop_that_ends_at_once_ends_what_was_submitted_without_a_store(turns):
    begun = []

    @entrypoint()
    async def waits(_):
        begun.append(1)
        await asyncio.Event().wait()

    async def main():
        run = waits.submit(1)
        for _ in range(turns):
            await asyncio.sleep(0)
        return run

    run = asyncio.run(main())
    assert run.status == "cancelled"
    assert len(begun) <= turns


@pytest.mark.parametrize("has_store", [False, True])
def test_what_is_submitted_as_the_tasks_of_the_loop_are_cancelled_never_begins(has_store):
    begun = []
    store = InMemorySaver()
    options = {"run_id": "r", "checkpointer": store} if has_store else {}

    @entrypoint()
    async def notes(x):
        begun.append(x)

    async def main():
        run = notes.submit(1, **options)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        await asyncio.sleep(0.01)
        assert run.status == "cancelled"
        assert begun == []
        await notes.ainvoke(2, **{**options, "run_id": "another"} if has_store else {})

    asyncio.run(main())
    assert begun == [2]


def test_what_is_submitted_in_the_last_turn_of_a_loop_is_let_go():
    begun, runs = [], []
    options = {"run_id": "r", "checkpointer": InMemorySaver()}

    @entrypoint()
    async def notes(x):
        begun.append(x)

    async def main():
        asyncio.get_running_loop().call_soon(lambda: runs.append(notes.submit(1, **options)))

    asyncio.run(main())
    assert [run.status for run in runs] == ["cancelled"]
    assert begun == []
    notes.invoke(1, **options)
    assert begun == [1]


def test_a_loop_that_ends_at_once_ends_what_was_submitted(db):
    async def main():
        return flow.submit(1, run_id="r", checkpointer=store)

    with SqliteSaver(db) as store:
        run = asyncio.run(main())
        assert run.status == "cancelled"
        assert flow.invoke(1, run_id="again", checkpointer=store) == flow.invoke(1)
