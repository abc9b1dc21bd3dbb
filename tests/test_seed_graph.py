"""The Python samples of the document that describes the graph style, with nothing changed but the imports.

The texts below are the document's own, fences kept, each above the tests that run it. Names that a sample takes from
the samples before it, or from an import that stands in another one, are given to it. To show what runs at the same
time, samples are also run in slow motion: there each body begins with one second of virtual time.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import re
import sys
import types

import pytest
from leftovers import timed

import weft
from weft import Graph, node, router

SECOND = 1.0


def code_of(block):
    """The sample between its fences, with its imports changed."""
    found = re.search(r"```python[^\n]*\n(.*?)\n *```", block, re.DOTALL)
    assert found is not None
    return found[1].replace("from graphai import", "from weft import")


async def ran(block, **given):
    """The names that a sample has when it has run; it awaits where no function is round it."""
    names = {"__name__": "sample", **given}
    code = compile(
        code_of(block), "<sample>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    awaitable = eval(code, names)
    if inspect.isawaitable(awaitable):
        await awaitable
    return names


def finished(block, **given):
    """As :func:`ran`, where no time passes and nothing is left."""
    names, seconds = timed(lambda: ran(block, **given))
    assert seconds == 0
    return names


def executed(graph, input=None):
    """The result and the state of an execution."""

    async def main():
        return await graph.execute({"input": {}} if input is None else input), graph.get_state()

    return timed(main)[0]


class SlowMotion:
    """``node`` and ``router`` whose bodies wait for a second first; and who began when."""

    def __init__(self):
        self.began = []
        self.given = {name: self._slowed(getattr(weft, name)) for name in ("node", "router")}
        self.given["Graph"] = Graph

    def _slowed(self, decorator):
        def decorate(func=None, **options):
            if func is None:
                return functools.partial(decorate, **options)

            @functools.wraps(func)
            async def body(*args, **kwargs):
                self.began.append((func.__name__, asyncio.get_running_loop().time()))
                await asyncio.sleep(SECOND)
                return await func(*args, **kwargs)

            return decorator(body, **options) if options else decorator(body)

        return decorate

    def at(self, time):
        """What began at a moment."""
        return sorted(name for name, began in self.began if began == time)


@pytest.fixture
def slow(monkeypatch):
    """Slow motion, for samples with and without an import of their own."""
    motion = SlowMotion()
    module = types.ModuleType("weft")
    vars(module).update(motion.given)
    monkeypatch.setitem(sys.modules, "weft", module)
    return motion


IMPORTS = {"Graph": Graph, "node": node, "router": router}

# The samples


BASIC = """
```python  theme={null}
from graphai import Graph, node

@node(start=True)
async def start(input: dict):
    return {}

@node
async def branch_a(input: dict):
    return {"a": 1}

@node
async def branch_b(input: dict):
    return {"b": 2}

@node(end=True)
async def end(input: dict):
    return {}

g = Graph()
g.add_node(start).add_node(branch_a).add_node(branch_b).add_node(end)

# Create parallel branches from start
g.add_edge(start, branch_a)
g.add_edge(start, branch_b)

# Both branches lead to end
g.add_edge(branch_a, end)
g.add_edge(branch_b, end)

result = await g.execute(input={"input": {}})
# result contains: {"a": 1, "b": 2}
```
"""


def test_branches_with_edges():
    names = finished(BASIC)
    assert names["result"] == {"input": {}, "a": 1, "b": 2}


def test_branches_with_edges_run_at_the_same_time_and_the_end_once_for_each(slow):
    names, seconds = timed(lambda: ran(BASIC))
    assert seconds == 3
    assert slow.began[0] == ("start", 0)
    assert slow.at(1) == ["branch_a", "branch_b"]
    assert slow.at(2) == ["end", "end"]
    assert len(slow.began) == 5
    assert names["result"] == {"input": {}, "a": 1, "b": 2}


ADD_PARALLEL = """
```python  theme={null}
g = Graph()
g.add_node(start).add_node(branch_a).add_node(branch_b).add_node(end)

# Equivalent to adding edges individually
g.add_parallel(start, [branch_a, branch_b])

g.add_edge(branch_a, end)
g.add_edge(branch_b, end)
```
"""


def test_add_parallel():
    names = finished(ADD_PARALLEL, **finished(BASIC))
    assert executed(names["g"]) == ({"input": {}, "a": 1, "b": 2}, {})


def test_add_parallel_is_the_edges_one_by_one(slow):
    async def main():
        names = await ran(ADD_PARALLEL, **await ran(BASIC))
        slow.began.clear()
        return await names["g"].execute({"input": {}})

    result, seconds = timed(main)
    assert seconds == 6  # of which the first sample took three
    assert slow.at(4) == ["branch_a", "branch_b"]
    assert slow.at(5) == ["end", "end"]
    assert result == {"input": {}, "a": 1, "b": 2}


WITHOUT_JOIN = """
```python  theme={null}
@node(start=True)
async def start(input: dict, state: dict):
    state["history"] = ["start"]
    return {}

@node
async def branch_a(input: dict, state: dict):
    state["history"].append("branch_a")
    return {}

@node
async def branch_b(input: dict, state: dict):
    state["history"].append("branch_b")
    return {}

@node(end=True)
async def end(input: dict, state: dict):
    state["history"].append("end")
    return {}

g = Graph()
g.add_node(start).add_node(branch_a).add_node(branch_b).add_node(end)
g.add_edge(start, branch_a)
g.add_edge(start, branch_b)
g.add_edge(branch_a, end)
g.add_edge(branch_b, end)

await g.execute(input={"input": {}})
state = g.get_state()
# state["history"] contains TWO "end" entries because end runs for each branch
```
"""


def test_without_a_join_the_end_runs_twice():
    names = finished(WITHOUT_JOIN, **IMPORTS)
    assert names["state"] == {"history": ["start", "branch_a", "branch_b", "end", "end"]}
    assert names["g"].get_state() == names["state"]


def test_without_a_join_each_branch_goes_on_by_itself(slow):
    names, seconds = timed(lambda: ran(WITHOUT_JOIN, **slow.given))
    assert seconds == 3
    assert slow.at(2) == ["end", "end"]
    assert names["state"] == {"history": ["start", "branch_a", "branch_b", "end", "end"]}


WITH_JOIN = """
```python  theme={null}
g = Graph()
g.add_node(start).add_node(branch_a).add_node(branch_b).add_node(end)
g.add_edge(start, branch_a)
g.add_edge(start, branch_b)

# Use add_join to synchronize branches
g.add_join([branch_a, branch_b], end)

await g.execute(input={"input": {}})
state = g.get_state()
# state["history"] contains only ONE "end" entry
```
"""


def test_with_a_join_the_end_runs_once():
    names = finished(WITH_JOIN, **finished(WITHOUT_JOIN, **IMPORTS))
    assert names["state"] == {"history": ["start", "branch_a", "branch_b", "end"]}


def test_with_a_join_the_end_waits_for_both(slow):
    async def main():
        names = await ran(WITHOUT_JOIN, **slow.given)
        slow.began.clear()
        return await ran(WITH_JOIN, **names)

    names, seconds = timed(main)
    assert seconds == 6  # of which the sample before took three
    assert slow.at(4) == ["branch_a", "branch_b"]
    assert slow.at(5) == ["end"]
    assert names["state"] == {"history": ["start", "branch_a", "branch_b", "end"]}


NESTED = """
```python  theme={null}
@node(start=True)
async def start(input: dict):
    return {}

@node
async def mid(input: dict):
    return {"mid": True}

@node
async def branch_a(input: dict):
    return {"a": 1}

@node
async def branch_b(input: dict):
    return {"b": 2}

@node(end=True)
async def end(input: dict):
    return {}

g = Graph()
g.add_node(start).add_node(mid).add_node(branch_a).add_node(branch_b).add_node(end)

# Linear edge to mid
g.add_edge(start, mid)

# Mid forks to two parallel branches
g.add_edge(mid, branch_a)
g.add_edge(mid, branch_b)

# Both branches converge at end
g.add_join([branch_a, branch_b], end)

result = await g.execute(input={"input": {}})
# result contains: {"mid": True, "a": 1, "b": 2}
```
"""


def test_nested_branches():
    names = finished(NESTED, **IMPORTS)
    assert names["result"] == {"input": {}, "mid": True, "a": 1, "b": 2}


def test_nested_branches_run_at_the_same_time_and_the_end_once(slow):
    names, seconds = timed(lambda: ran(NESTED, **slow.given))
    assert seconds == 4
    assert slow.began[:2] == [("start", 0), ("mid", 1)]
    assert slow.at(2) == ["branch_a", "branch_b"]
    assert slow.began[4:] == [("end", 3)]
    assert names["result"] == {"input": {}, "mid": True, "a": 1, "b": 2}


SINGLE_CHOICE = """
```python  theme={null}
from graphai import router

@router
async def single_router(input: dict):
    return {"choice": "tool_a"}  # Only tool_a executes
```
"""


SEVERAL_CHOICES = """
```python  theme={null}
@router
async def parallel_router(input: dict):
    return {"choices": ["tool_a", "tool_b"]}  # Both execute in parallel
```
"""


def around(chosen, given):
    """A graph round the router of one of these samples, which stand by themselves."""
    node = given["node"]

    @node(start=True)
    async def start(input: dict):
        return {}

    @node
    async def tool_a(input: dict):
        return {"a": 1}

    @node
    async def tool_b(input: dict):
        return {"b": 2}

    @node(end=True)
    async def end(input: dict):
        return {}

    graph = Graph()
    for each in (start, chosen, tool_a, tool_b, end):
        graph.add_node(each)
    graph.add_edge(start, chosen).add_parallel(chosen, [tool_a, tool_b])
    graph.add_edge(tool_a, end).add_edge(tool_b, end)
    return graph


def test_a_router_chooses_one():
    names = finished(SINGLE_CHOICE)
    assert executed(around(names["single_router"], IMPORTS)) == ({"input": {}, "a": 1}, {})


def test_a_router_chooses_several(slow):
    async def main():
        names = await ran(SEVERAL_CHOICES, **slow.given)
        return await around(names["parallel_router"], slow.given).execute({"input": {}})

    result, seconds = timed(main)
    assert seconds == 4
    assert slow.at(2) == ["tool_a", "tool_b"]
    assert slow.at(3) == ["end", "end"]
    assert result == {"input": {}, "a": 1, "b": 2}  # and nothing of the choices


FULL = """
```python  theme={null}
from graphai import Graph, node, router

@node(start=True)
async def start(input: dict):
    return {}

@router
async def parallel_router(input: dict):
    # Return multiple choices for parallel execution
    return {"choices": ["tool_a", "tool_b"]}

@node(name="tool_a")
async def tool_a(input: dict):
    return {"a_result": 1}

@node(name="tool_b")
async def tool_b(input: dict):
    return {"b_result": 2}

@node(name="tool_c")
async def tool_c(input: dict):
    return {"c_result": 3}

@node(end=True)
async def end(input: dict):
    return {}

g = Graph()
g.add_node(start).add_node(parallel_router).add_node(tool_a).add_node(tool_b).add_node(tool_c).add_node(end)
g.add_edge(start, parallel_router)
g.add_edge(parallel_router, tool_a)
g.add_edge(parallel_router, tool_b)
g.add_edge(parallel_router, tool_c)  # tool_c has an edge but is not in choices
g.add_join([tool_a, tool_b], end)

result = await g.execute({"input": {}})

# Results from parallel branches are merged into state
assert result["a_result"] == 1
assert result["b_result"] == 2
# tool_c is NOT executed because it's not in the choices array
assert "c_result" not in result
```
"""


def test_the_full_example():
    names = finished(FULL)  # which has asserts of its own
    assert names["result"] == {"input": {}, "a_result": 1, "b_result": 2}


def test_the_full_example_runs_both_tools_at_the_same_time_and_never_the_third(slow):
    names, seconds = timed(lambda: ran(FULL))
    assert seconds == 4
    assert slow.at(2) == ["tool_a", "tool_b"]
    assert slow.began[4:] == [("end", 3)]
    assert names["result"] == {"input": {}, "a_result": 1, "b_result": 2}


ROUNDS = """
```python  theme={null}
@node(start=True)
async def start(input: dict):
    return {}

@router(name="parallel_router")
async def parallel_router(input: dict, state: dict):
    iteration = state.get("iteration", 0)

    if iteration > 0:
        # After first iteration, proceed to end
        return {"choice": "end"}

    state["iteration"] = iteration + 1
    # Run tools in parallel, then return to this router via join
    return {"choices": ["tool_a", "tool_b"]}

@node(name="tool_a")
async def tool_a(input: dict):
    return {"a_result": 1}

@node(name="tool_b")
async def tool_b(input: dict):
    return {"b_result": 2}

@node(end=True)
async def end(input: dict):
    return {"final": "done"}

g = Graph()
g.add_node(start).add_node(parallel_router).add_node(tool_a).add_node(tool_b).add_node(end)
g.add_edge(start, parallel_router)
g.add_edge(parallel_router, tool_a)
g.add_edge(parallel_router, tool_b)
g.add_join([tool_a, tool_b], parallel_router)  # Return to router after parallel execution
g.add_edge(parallel_router, end)

result = await g.execute({"input": {}})
# Router is called twice: first returns choices, second returns choice to end
```
"""


def test_a_join_that_leads_back_to_its_router():
    names = finished(ROUNDS, **IMPORTS)
    assert names["result"] == {"input": {}, "a_result": 1, "b_result": 2, "final": "done"}
    assert names["g"].get_state() == {"iteration": 1}


def test_a_join_that_leads_back_to_its_router_runs_it_twice_and_each_tool_once(slow):
    names, seconds = timed(lambda: ran(ROUNDS, **slow.given))
    assert seconds == 5
    assert slow.began[:2] == [("start", 0), ("parallel_router", 1)]
    assert slow.at(2) == ["tool_a", "tool_b"]
    assert slow.began[4:] == [("parallel_router", 3), ("end", 4)]
    assert names["result"]["final"] == "done"


MERGING = """
```python  theme={null}
result = await g.execute({"input": {}})

# Results from all branches merged into state
result["a_result"]  # From tool_a
result["b_result"]  # From tool_b
```
"""


@pytest.mark.parametrize("before", [FULL, ROUNDS], ids=["the full example", "the rounds"])
def test_results_of_all_branches_are_in_the_result(before):
    names = finished(before, **IMPORTS)
    names["g"].reset_state()  # the rounds are counted in the state, which lasts
    assert finished(MERGING, **names)["result"].items() >= {"a_result": 1, "b_result": 2}.items()


# What the prose says


def test_the_last_branch_to_complete_wins_whatever_was_declared_last():
    @node(start=True)
    async def start(input: dict):
        return {}

    def writer(name, seconds):
        @node(name=name)
        async def write(input: dict):
            await asyncio.sleep(seconds)
            return {"winner": name}

        return write

    async def main(seconds):
        graph = Graph().add_node(start)
        branches = [writer(name, wait) for name, wait in seconds.items()]
        for branch in branches:
            graph.add_node(branch).set_end_node(branch)
        return await graph.add_parallel(start, branches).execute({"input": {}})

    assert timed(lambda: main({"slow": 2, "fast": 1})) == ({"input": {}, "winner": "slow"}, 2)
    assert timed(lambda: main({"fast": 1, "slow": 2})) == ({"input": {}, "winner": "slow"}, 2)
