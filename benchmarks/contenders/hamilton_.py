"""Hamilton: https://hamilton.apache.org/concepts/parallel-task/"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from hamilton import ad_hoc_utils, async_driver, base, driver
from hamilton.execution import executors
from hamilton.htypes import Collect, Parallelizable
from workloads import Job, Once, throttled

PACKAGES = ("sf-hamilton",)
IMPORT = "from hamilton import driver"
UNSUPPORTED = {
    "durable-runs": "its cache knows results by code and inputs: a second run computes nothing",
    "durable-chain": "its cache is for sync drivers; the row of the fan-out shows what it costs",
}


def _functions(count: int, argument: str, name: str, body: Any) -> list[Any]:
    """Hamilton's nodes are functions named for what they give, with parameters for what they need."""
    made = []
    for i in range(count):
        scope: dict[str, Any] = {"body": body}
        given = argument if "{" not in argument else ("start" if i == 0 else argument.format(i - 1))
        exec(f"async def {name}{i}({given}: int) -> int:\n    return await body({given}, {i})\n", scope)  # noqa: S102
        made.append(scope[f"{name}{i}"])
    return made


async def chain(job: Job) -> Once:
    # Its executor goes through the graph recursively.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 20 * job.size + 1000))
    module = ad_hoc_utils.create_temporary_module(
        *_functions(job.size, "step{}", "step", lambda x, i: job.body(x)), module_name="steps"
    )
    built = await async_driver.Builder().with_modules(module).with_adapters(base.DictResult()).build()
    last = f"step{job.size - 1}"

    async def once() -> int:
        return int((await built.execute([last], inputs={"start": 0}))[last])

    return once


async def block(job: Job) -> Once:
    if job.database:
        return _cached(job)
    names, body = [f"branch{i}" for i in range(job.size)], throttled(job)
    module = ad_hoc_utils.create_temporary_module(
        *_functions(job.size, "start", "branch", lambda start, i: body(i)),
        module_name=f"branches of {id(job)}",
    )
    built = await async_driver.Builder().with_modules(module).with_adapters(base.DictResult()).build()

    async def once() -> list[int]:
        return list((await built.execute(names, inputs={"start": 0})).values())

    return once


def _module(job: Job, work: Any) -> Any:
    def item(size: int, first: int) -> Parallelizable[int]:
        yield from range(first, first + size)

    def found(item: int, first: int) -> int:
        return int(work(item - first))

    def all_found(found: Collect[int]) -> list:
        return list(found)

    return ad_hoc_utils.create_temporary_module(item, found, all_found, module_name="items")


def _cached(job: Job) -> Once:
    """Its cache, with sync functions; each round has items of its own, since known ones are not computed."""
    assert job.database
    built = (
        driver.Builder()
        .enable_dynamic_execution(allow_experimental_mode=True)
        .with_modules(_module(job, lambda i: i + 1))
        .with_remote_executor(executors.SynchronousLocalTaskExecutor())
        .with_cache(path=str(job.database.parent / "cache"))
        .build()
    )
    first = [0]

    def run() -> list[int]:
        first[0] += job.size
        return list(built.execute(["all_found"], inputs={"size": job.size, "first": first[0]})["all_found"])

    async def once() -> list[int]:
        return run()

    return once


async def threads(job: Job) -> Once:
    """`Parallelizable` and `Collect` on threads; called in a thread, so that the loop is free."""
    built = (
        driver.Builder()
        .enable_dynamic_execution(allow_experimental_mode=True)
        .with_modules(_module(job, job.body))
        .with_remote_executor(executors.MultiThreadingExecutor(max_tasks=job.width or job.size))
        .build()
    )

    def run() -> list[int]:
        return list(built.execute(["all_found"], inputs={"size": job.size, "first": 0})["all_found"])

    return lambda: asyncio.to_thread(run)
