"""How the functional style is typed in users' programs: checked by mypy in strict mode, never run.

A line that must be an error carries the code of that error; mypy complains about an ignore that is not needed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from datetime import timedelta
from typing import Any, assert_type

import weft
from weft import (
    CachePolicy,
    Command,
    Entrypoint,
    Failed,
    InMemoryCache,
    InMemorySaver,
    InMemoryStore,
    Interrupt,
    Ok,
    Outcome,
    RetryPolicy,
    Run,
    RunnableConfig,
    Runtime,
    SqliteSaver,
    StateSnapshot,
    StreamWriter,
    Task,
    TimeoutPolicy,
    entrypoint,
    interrupt,
    task,
)

# Tasks keep the signature of their function


@task
def add(a: int, b: int = 0, *, sign: bool = False) -> int:
    return -(a + b) if sign else a + b


@task
async def fetch(url: str) -> bytes:
    return url.encode()


@task()
def bare(a: int) -> str:
    return str(a)


@task(
    name="named",
    retry_policy=RetryPolicy(retry_on=(ConnectionError, TimeoutError)),
    cache_policy=CachePolicy(ttl=60),
    timeout=timedelta(seconds=3),
    key=lambda a: a,
)
def with_options(a: int) -> list[str]:
    return [str(a)]


@task(retry_policy=[RetryPolicy(), RetryPolicy(retry_on=ValueError)], timeout=TimeoutPolicy(idle_timeout=1))
async def async_with_options(a: int) -> dict[str, int]:
    return {"a": a}


def sync_body(x: int) -> None:
    assert_type(add(1, 2, sign=True).result(), int)
    assert_type(add(1).result(timeout=3), int)
    assert_type(fetch("u").result(), bytes)
    assert_type(bare(1).result(), str)
    assert_type(with_options(1).result(), list[str])
    assert_type(async_with_options(1).result(), dict[str, int])
    assert_type(add.func(1), Any)
    assert_type(add.__name__, str)

    add("1")  # type: ignore[arg-type]
    add()  # type: ignore[call-arg]
    add(1, 2, 3)  # type: ignore[call-arg, arg-type]
    add(1, wrong=2)  # type: ignore[call-arg]
    fetch(b"u")  # type: ignore[arg-type]
    bare("1")  # type: ignore[arg-type]
    with_options(None)  # type: ignore[arg-type]
    async_with_options()  # type: ignore[call-arg]
    add(1).nothing()  # type: ignore[attr-defined]
    text: str = add(1).result()  # type: ignore[assignment]
    print(text)


def sync_waiting(x: int) -> list[int]:
    futures = [add(i) for i in range(x)]
    done, rest = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
    for future in concurrent.futures.as_completed(futures):
        assert_type(future.result(), int)
    one: concurrent.futures.Future[int] = add(1)
    one.add_done_callback(lambda f: print(f.result()))
    return [f.result() for f in done | rest]


async def async_body(x: int) -> None:
    assert_type(await add(1), int)
    assert_type(await fetch("u"), bytes)
    assert_type(await with_options(1), list[str])
    assert_type(await async_with_options(1), dict[str, int])
    assert_type(await asyncio.gather(add(1), fetch("u")), tuple[int, bytes])
    assert_type(await asyncio.gather(*[add(i) for i in range(x)]), list[int])
    assert_type(await asyncio.wait_for(fetch("u"), 1), bytes)
    text: str = await fetch("u")  # type: ignore[assignment]
    print(text)


def wrong_options() -> None:
    task(name=1)  # type: ignore[call-overload]
    task(wrong=True)  # type: ignore[call-overload]
    task("name")  # type: ignore[call-overload]
    RetryPolicy(max_attempts="3")  # type: ignore[arg-type]
    RetryPolicy(retry_on="x")  # type: ignore[arg-type]
    CachePolicy(ttl="k")  # type: ignore[arg-type]
    TimeoutPolicy(run_timeout="1")  # type: ignore[arg-type]


class Reader:
    @task
    def read(self, path: str) -> bytes:
        return path.encode()

    def plain(self, path: str) -> bytes:
        return path.encode()


def methods(reader: Reader) -> None:
    assert_type(reader.read("p").result(), bytes)
    assert_type(task(reader.plain)("p").result(), bytes)
    task(reader.plain)(1)  # type: ignore[arg-type]
    assert_type(task(lambda: 1)().result(), int)


# Entrypoints know their input and output


@entrypoint(checkpointer=InMemorySaver(), store=InMemoryStore(), cache=InMemoryCache())
def workflow(topics: list[str], *, previous: int | None = None) -> int:
    return len(topics)


@entrypoint(checkpointer="sqlite:///runs.db", retry_policy=RetryPolicy(), timeout=3, name="other")
async def async_workflow(
    topic: str,
    config: RunnableConfig,
    runtime: Runtime[str],
    writer: StreamWriter,
) -> str:
    assert_type(runtime.context, str)
    assert_type(runtime.run_id, str)
    writer({"topic": topic})
    return topic


@entrypoint()
def saves(x: int) -> entrypoint.final[int, str]:
    return entrypoint.final(value=x, save="s")


@entrypoint()
async def asaves(x: int) -> entrypoint.final[int, str]:
    return entrypoint.final(value=x, save="s")


def run() -> None:
    config: RunnableConfig = {"configurable": {"thread_id": "t"}, "max_concurrency": 3}
    assert_type(workflow, Entrypoint[list[str], int])
    assert_type(workflow.invoke(["a"], config), int)
    assert_type(workflow.invoke(["a"], thread_id="t", run_id="r", max_concurrent=3, timeout=1.5), int)
    assert_type(workflow.invoke(None, config), int)
    assert_type(workflow.invoke(Command(resume="yes"), config), int)
    assert_type(async_workflow.invoke("a"), str)
    assert_type(saves.invoke(1), int)
    assert_type(asaves.invoke(1), int)
    assert_type(workflow.get_state(config), StateSnapshot)
    assert_type([each.values for each in workflow.get_state_history(config)], list[Any])
    assert_type(workflow.get_state(config).interrupts, tuple[Interrupt, ...])
    for chunk in workflow.stream(["a"], config, stream_mode=["updates", "custom"]):
        print(chunk)
    workflow(["a"])
    text: str = workflow.invoke(["a"])  # type: ignore[assignment]
    workflow.nothing()  # type: ignore[attr-defined]
    entrypoint.final(1, 2)  # type: ignore[call-arg]
    entrypoint.final(value=1)  # type: ignore[call-arg]
    entrypoint(wrong=1)  # type: ignore[call-arg]
    print(text)


async def arun() -> None:
    assert_type(await workflow.ainvoke(["a"], thread_id="t"), int)
    assert_type(await async_workflow.ainvoke("a"), str)
    assert_type(await saves.ainvoke(1), int)
    assert_type(await asaves.ainvoke(1), int)
    async for chunk in async_workflow.astream("a", stream_mode="values"):
        print(chunk)
    assert_type(await workflow.aget_state(thread_id="t"), StateSnapshot)
    text: str = await workflow.ainvoke(["a"])  # type: ignore[assignment]
    print(text)


async def handle() -> None:
    run: Run[Any] = workflow.submit(["a"], thread_id="t")
    assert_type(run.id, str)
    assert_type(run.status, str)
    assert_type(run.questions, list[Interrupt])
    assert_type(run.outcomes, list[Outcome[Any]])
    run.answer({run.questions[0].id: "yes"})
    run.cancel()
    for outcome in run.outcomes:
        match outcome:
            case Ok(value):
                print(value)
            case Failed(error):
                assert_type(error, BaseException)
            case _:
                pass
    async for event in run.aevents():
        print(event.run_id)
    run.result(timeout="1")  # type: ignore[arg-type]
    run.id = "x"  # type: ignore[misc]


def asks() -> None:
    assert_type(interrupt({"question": "?"}), Any)
    assert_type(weft.call_id(), str)
    assert_type(weft.cancelled(), bool)
    assert_type(weft.remaining(), float | None)
    assert_type(Interrupt("q", "i").id, str)
    interrupt()  # type: ignore[call-arg]


def stores() -> None:
    with SqliteSaver("runs.db") as saver:
        entrypoint(checkpointer=saver)


def takes_a_task(t: Task[[str], bytes], plain: Callable[[str], concurrent.futures.Future[bytes]]) -> None:
    assert_type(t("u").result(), bytes)


takes_a_task(fetch, fetch)
takes_a_task(add, fetch)  # type: ignore[arg-type]
