"""What is posted to a loop from anywhere."""

import asyncio
import gc
import threading
import weakref
from contextvars import Context, ContextVar

import pytest

from weft import RetryPolicy, entrypoint, task
from weft.engine.inbox import inbox_of
from weft.engine.threads import tell

name = ContextVar("name", default="nobody")


def test_what_is_posted_is_called_in_order_with_one_wake_up():
    async def main():
        loop, found = asyncio.get_running_loop(), []
        inbox = inbox_of(loop)
        calls = []
        loop.call_soon = lambda *args, **options: (
            calls.append(args) or type(loop).call_soon(loop, *args, **options)
        )
        for i in range(10):
            assert inbox.post(found.append, i)
        assert len(calls) == 1
        await asyncio.sleep(0)
        assert found == list(range(10))

    asyncio.run(main())


def test_a_loop_has_one_inbox_whoever_asks_first():
    async def main():
        loop = asyncio.get_running_loop()
        start, found = threading.Barrier(4), []

        def ask():
            start.wait(10)
            found.append(inbox_of(loop))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        return found

    found = asyncio.run(main())
    assert len(found) == 4
    assert len({id(each) for each in found}) == 1


def test_the_loop_has_its_turn_though_there_is_always_more():
    async def main():
        inbox, turns = inbox_of(asyncio.get_running_loop()), []

        def again():
            turns.append(1)
            if not is_over and len(turns) < 1000:
                inbox.post(again)

        is_over = []
        inbox.post(again)
        for _ in range(5):
            await asyncio.sleep(0)
        is_over.append(True)
        assert 2 <= len(turns) <= 5

    asyncio.run(asyncio.wait_for(main(), 20))


def test_what_fails_is_said_and_the_rest_is_called():
    async def main():
        said, found = [], []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context["exception"]))
        inbox_of(loop).post(int, "x")
        inbox_of(loop).post(found.append, 1)
        await asyncio.sleep(0)
        assert found == [1]
        assert isinstance(said[0], ValueError)

    asyncio.run(main())


def test_a_closed_loop_takes_nothing_and_is_not_kept_alive():
    async def main():
        return inbox_of(asyncio.get_running_loop()), weakref.ref(asyncio.get_running_loop())

    inbox, loop = asyncio.run(main())
    assert not inbox.post(print)
    gc.collect()
    assert loop() is None
    assert not inbox.post(print)


@pytest.mark.parametrize("durable", [False, True])
def test_runs_that_begin_in_one_turn_see_each_what_its_own_caller_saw(tmp_path, durable):
    @task
    async def who():
        return name.get()

    @entrypoint()
    async def flow(x):
        return name.get(), await who()

    async def main():
        runs = []
        for each in ("a", "b", "c"):
            name.set(each)
            runs.append(flow.submit(1, **({"checkpointer": store, "run_id": each} if durable else {})))
        name.set("nobody")
        return [await run for run in runs]

    store = f"sqlite:///{tmp_path / 'runs.db'}"
    assert asyncio.run(main()) == [("a", "a"), ("b", "b"), ("c", "c")]


def test_each_is_called_in_the_context_of_whoever_posted_it():
    async def main():
        inbox, found = inbox_of(asyncio.get_running_loop()), []

        def post(who):
            name.set(who)
            inbox.post(lambda: found.append(name.get()))

        for who in "abc":
            Context().run(post, who)
        await asyncio.sleep(0)
        assert found == ["a", "b", "c"]

    asyncio.run(main())


def test_what_decides_of_a_retry_sees_what_its_own_caller_has_set():
    """Many sync callers share one loop."""
    seen = []

    def is_again(error):
        seen.append((str(error), name.get()))
        return False

    @task(retry_policy=RetryPolicy(retry_on=is_again))
    def fails(who):
        raise ValueError(who)

    @entrypoint()
    def workflow(who):
        return fails(who).result()

    def call(who):
        name.set(who)
        with pytest.raises(ValueError, match=who):
            workflow.invoke(who)

    threads = [threading.Thread(target=call, args=(f"caller {n}",)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 30
    assert all(error == who for error, who in seen)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("way", ["posted", "told by a thread"])
def test_what_ends_a_loop_leaves_it_and_the_rest_is_done_if_it_goes_on(kind, way):
    found, loop = [], asyncio.new_event_loop()

    def end():
        raise kind

    calls = [(found.append, (1,)), (end, ()), (found.append, (2,))]
    if way == "posted":
        for fn, args in calls:
            inbox_of(loop).post(fn, *args)
    else:
        tell(loop, calls)
    with pytest.raises(kind):
        loop.run_until_complete(asyncio.sleep(0.01))
    assert found == [1]
    loop.run_until_complete(asyncio.sleep(0.01))
    assert found == [1, 2]
    loop.close()
