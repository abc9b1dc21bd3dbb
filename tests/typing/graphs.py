"""How graphs, nodes and flows are typed in users' programs: checked by mypy in strict mode, never run.

A line that must be an error carries the code of that error; mypy complains about an ignore that is not needed.
"""

from __future__ import annotations

from typing import Any, assert_type

import weft
from weft import (
    AsyncParallelBatchNode,
    EventCallback,
    FailedCall,
    Flow,
    Graph,
    Node,
    PostgresSaver,
    ResumePlan,
    SqliteSaver,
    node,
    router,
    tolerate,
)


@node(start=True, retry=3, timeout=2.5)
def begin(city: str) -> dict[str, int]:
    return {"length": len(city)}


@node
async def wait(length: int) -> dict[str, int]:
    return {"waited": length}


@router("where")
def choose(waited: int) -> dict[str, str]:
    return {"choice": "wait" if waited < 3 else "end"}


# Nodes keep the signature of their function

assert_type(begin("Bern"), dict[str, int])
assert_type(choose(waited=3), dict[str, str])
begin(3)  # type: ignore[call-overload]
node(starts=True)  # type: ignore[call-overload]
router(1)  # type: ignore[call-overload]


# Builders give the graph


def built() -> Graph:
    graph = Graph(max_steps=20, initial_state={"n": 0}, reducers={"found": lambda one, other: one + other})
    graph = graph.add_node(begin).add_node(wait, name="wait").add_node(choose).set_end_node("wait")
    graph.add_parallel(begin, [wait, "where"], max_concurrent=2, timeout=3.0, on_error=tolerate(count=1))
    graph.add_join([wait, choose], "wait").compile(strict=False)
    graph.add_parallel(begin, [wait], width=2)  # type: ignore[call-arg]
    Graph(steps=3)  # type: ignore[call-arg]
    return graph


async def run(graph: Graph) -> None:
    callback = EventCallback()
    assert_type(await graph.execute({"city": "Bern"}, callback=callback), dict[Any, Any])
    assert_type(await graph.execute_many([{"city": "Bern"}], concurrency=2), list[Any])
    assert_type(graph.get_state(), dict[Any, Any])
    async for event in callback.aiter():
        assert_type(event.token, str | None)
    assert_type(graph.mermaid(), str)


# Flows


class Read(Node):
    def prep(self, shared: Any) -> str:
        return str(shared["text"])

    def exec(self, prep_res: str) -> int:
        return len(prep_res)


class Each(AsyncParallelBatchNode):
    async def exec_async(self, prep_res: Any) -> int:
        return int(prep_res)


flow = Flow(start=Read(max_retries=3, wait=0.5))
shared: dict[str, Any] = {"text": "a"}
flow.run(shared)


# Runs of a store


def looked_at() -> None:
    runs = weft.runs(SqliteSaver("runs.db"))
    plan = runs.plan("r", built())
    assert_type(plan, ResumePlan)
    assert_type(plan.again[0].why, str)
    assert_type(runs.fork("r", at=plan.reused[0].id, values={"x": 1}), str)

    def again(failure: FailedCall) -> bool:
        return isinstance(failure.error, ConnectionError)

    runs.resume("r", built(), retry=again)
    PostgresSaver("postgresql://localhost/weft", lease=10.0).close()
