"""The Python samples of the document that describes the compose style, with nothing changed but the imports.

The texts below are the document's own, fences and indentation kept, each above the tests that run it. What a sample
uses without saying where it comes from is given to it: nodes, lists, a service that fails. Bodies that must overlap
wait for each other, so that a test in which they do not fails instead of being slow.
"""

import __future__

import asyncio
import functools
import re
import textwrap
import threading
import time
import types
from contextlib import contextmanager

import pytest
from leftovers import eventually, nothing_left

from weft import ParallelExecutionError, ParallelTimeoutError, Sequence, decision, node, parallel
from weft.core.sizing import ESTIMATED_MEMORY, MEMORY_SHARE, Resources, size_of

OF_WEFT = {
    "parallel": parallel,
    "node": node,
    "Sequence": Sequence,
    "decision": decision,
    "ParallelExecutionError": ParallelExecutionError,
    "ParallelTimeoutError": ParallelTimeoutError,
}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """The same cores and memory for all who run this; the tests may change them."""

    def has(*, cores, nodes_in_memory):
        memory = (
            round(nodes_in_memory * ESTIMATED_MEMORY / MEMORY_SHARE) + 1
        )  # only a share of it is to be used
        found = Resources(cores, memory)
        monkeypatch.setattr("weft.machine.resources", lambda: found)
        return found

    has(cores=2, nodes_in_memory=100)
    return has


def code_of(block):
    """The sample between its fences."""
    found = re.search(r"```python[^\n]*\n(.*?)\n *```", textwrap.dedent(block), re.DOTALL)
    assert found is not None
    return textwrap.dedent(found[1])


def names_of(code, *, flags=0, **given):
    """The names that the sample has when it has run."""
    names = {"__name__": "sample", **OF_WEFT, **given}
    exec(compile(code, "<sample>", "exec", flags=flags, dont_inherit=True), names)
    return names


def answering(*names):
    """Nodes that say who they are and what they were given."""
    return {name: node(name)(answer_of(name)) for name in names}


def answer_of(name):
    def body(data):
        return f"{name} of {data}"

    return body


class Together:
    """Nodes that go on when a number of them have been in flight at once; no more than that ever are."""

    def __init__(self, count):
        self.count = count
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._reached = threading.Event()

    def nodes(self, *names):
        return {name: node(name)(self.around(answer_of(name))) for name in names}

    def around(self, fn):
        """The function, in flight together with others."""

        @functools.wraps(fn)
        def body(*args, **kwargs):
            with self._counted():
                assert self._reached.wait(5), f"never {self.count} at once"
                time.sleep(0.01)  # for one too many to come
                return fn(*args, **kwargs)

        return body

    @contextmanager
    def _counted(self):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            if self._now == self.count:
                self._reached.set()
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1


class Gates:
    """Nodes that end when the test lets them; all are let go at the end."""

    def __init__(self, kind, *names):
        self.started = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._gates = {name: threading.Event() for name in names}
        self.nodes = {
            name: node(name)((self._waiting if kind == "sync" else self._awaiting)(name)) for name in names
        }

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.open(*self._gates)

    def open(self, *names):
        for name in names:
            self._gates[name].set()

    def _waiting(self, name):
        def body(data):
            with self._counted(name):
                assert self._gates[name].wait(20)
            return f"{name} of {data}"

        return body

    def _awaiting(self, name):
        async def body(data):
            with self._counted(name):
                while not self._gates[name].is_set():
                    await asyncio.sleep(0.001)
            return f"{name} of {data}"

        return body

    @contextmanager
    def _counted(self, name):
        with self._lock:
            self.started.append(name)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1


def recording(built):
    """``parallel``, for samples that give what they build no name."""

    def make(*branches, **options):
        built.append(parallel(*branches, **options))
        return built[-1]

    return make


async def awaited(workflow, value):
    return await workflow.ainvoke(value)


WAYS = {
    "call": lambda workflow, value: workflow(value),
    "invoke": lambda workflow, value: workflow.invoke(value),
    "ainvoke": lambda workflow, value: asyncio.run(awaited(workflow, value)),
    "submit": lambda workflow, value: workflow.submit(value).result(5),
}
SYNC_AND_ASYNC = pytest.mark.parametrize("kind", ["sync", "async"])


# Basic Parallel Execution

BASIC = """
```python theme={null}
from weft import parallel, node, Sequence

@node("fetch_api")
def fetch_api(url: str) -> dict:
    # API call
    return {"source": "api", "data": "..."}

@node("fetch_database")
def fetch_database(query: str) -> dict:
    # Database query
    return {"source": "db", "data": "..."}

@node("fetch_cache")
def fetch_cache(key: str) -> dict:
    # Cache lookup
    return {"source": "cache", "data": "..."}

# Execute all three concurrently
parallel_fetch = parallel(
    fetch_api,
    fetch_database,
    fetch_cache
)

result = parallel_fetch({"url": "...", "query": "...", "key": "..."})
```
"""

FETCHED = {
    "fetch_api": {"source": "api", "data": "..."},
    "fetch_database": {"source": "db", "data": "..."},
    "fetch_cache": {"source": "cache", "data": "..."},
}


def basic(flags=0):
    return names_of(code_of(BASIC), flags=flags)


@pytest.mark.parametrize("flags", [0, __future__.annotations.compiler_flag], ids=["hints", "hints as texts"])
def test_the_basic_sample_gives_the_three_by_name_in_declared_order(flags):
    with nothing_left():
        result = basic(flags)["result"]
    assert list(result.items()) == list(FETCHED.items())


@pytest.mark.parametrize("flags", [0, __future__.annotations.compiler_flag], ids=["hints", "hints as texts"])
def test_the_nodes_of_the_basic_sample_overlap_and_each_gets_the_key_that_it_names(flags):
    together, given = Together(3), {}

    def watched(name):
        def decorate(fn):
            @functools.wraps(fn)
            def body(value):
                given[name] = value
                return fn(value)

            return node(name)(together.around(body))

        return decorate

    imports, _, code = code_of(BASIC).partition("\n")
    assert imports == "from weft import parallel, node, Sequence"
    with nothing_left():
        names = names_of(code, flags=flags, node=watched)
        assert names["result"] == FETCHED
        assert given == {"fetch_api": "...", "fetch_database": "...", "fetch_cache": "..."}
        names["parallel_fetch"]({"url": 1, "query": 2, "key": 3})
    assert together.most == 3
    assert given == {"fetch_api": 1, "fetch_database": 2, "fetch_cache": 3}


@pytest.mark.parametrize("way", WAYS)
def test_the_basic_sample_runs_by_every_verb(way):
    block = basic()["parallel_fetch"]
    with nothing_left():
        assert WAYS[way](block, {"url": "...", "query": "...", "key": "..."}) == FETCHED


# Result Collection

COLLECTED = """
```python theme={null}
result = parallel_fetch({...})
# Returns:
# {
#     "fetch_api": {"source": "api", "data": "..."},
#     "fetch_database": {"source": "db", "data": "..."},
#     "fetch_cache": {"source": "cache", "data": "..."}
# }

# Access individual results
api_result = result["fetch_api"]
db_result = result["fetch_database"]
cache_result = result["fetch_cache"]
```
"""


def test_results_are_a_dict_by_the_names_of_the_nodes():
    names = names_of(code_of(COLLECTED), **basic())
    assert list(names["result"].items()) == list(FETCHED.items())
    assert names["api_result"] == FETCHED["fetch_api"]
    assert names["db_result"] == FETCHED["fetch_database"]
    assert names["cache_result"] == FETCHED["fetch_cache"]


COMBINED = '''
```python theme={null}
@node("combine_results")
def combine_results(data: dict) -> dict:
    """Combine parallel results."""
    return {
        "api": data["fetch_api"],
        "db": data["fetch_database"],
        "cache": data["fetch_cache"],
        "combined": True
    }

workflow = Sequence(
    parallel(fetch_api, fetch_database, fetch_cache),
    combine_results
)
```
'''


@pytest.mark.parametrize("flags", [0, __future__.annotations.compiler_flag], ids=["hints", "hints as texts"])
def test_the_next_node_gets_the_dict_of_results(flags):
    names = names_of(code_of(COMBINED), flags=flags, **basic())
    with nothing_left():
        result = names["workflow"].invoke({"url": "...", "query": "...", "key": "..."})
    api, db, cache = FETCHED.values()
    assert result == {"api": api, "db": db, "cache": cache, "combined": True}


# Concurrency Control

LIMITED = """
```python theme={null}
# Limit to 2 concurrent operations
limited_parallel = parallel(
    task1,
    task2,
    task3,
    task4,
    max_concurrent=2  # Only 2 run at a time
)

# Execution order:
# 1. task1 and task2 start
# 2. When one finishes, task3 starts
# 3. When another finishes, task4 starts
```
"""


@SYNC_AND_ASYNC
def test_when_one_of_two_ends_the_next_starts(kind):
    tasks = ("task1", "task2", "task3", "task4")
    with nothing_left(), Gates(kind, *tasks) as gates:
        run = names_of(code_of(LIMITED), **gates.nodes)["limited_parallel"].submit("it")
        eventually(lambda: sorted(gates.started) == ["task1", "task2"])
        gates.open("task2")  # task1 goes on: no barrier between the first two and the next
        eventually(lambda: gates.started[2:] == ["task3"])
        gates.open("task3")
        eventually(lambda: gates.started[2:] == ["task3", "task4"])
        gates.open("task4", "task1")
        result = run.result(5)
    assert list(result.items()) == [(name, f"{name} of it") for name in tasks]
    assert gates.most == 2


HEAVY = """
```python theme={null}
# Heavy memory operations - limit concurrency
memory_intensive = parallel(
    process_large_dataset1,
    process_large_dataset2,
    process_large_dataset3,
    max_concurrent=2  # Prevent memory exhaustion
)

# API calls with rate limits
api_calls = parallel(
    api_request1,
    api_request2,
    api_request3,
    api_request4,
    max_concurrent=3  # Respect rate limits
)
```
"""


def test_no_more_run_at_once_than_the_block_allows_and_not_fewer():
    memory, api = Together(2), Together(3)
    datasets = memory.nodes(*(f"process_large_dataset{n}" for n in (1, 2, 3)))
    requests = api.nodes(*(f"api_request{n}" for n in (1, 2, 3, 4)))
    names = names_of(code_of(HEAVY), **datasets, **requests)
    with nothing_left():
        assert names["memory_intensive"]("it") == {name: f"{name} of it" for name in datasets}
        assert names["api_calls"]("it") == {name: f"{name} of it" for name in requests}
    assert memory.most == 2
    assert api.most == 3


# Timeout Control

TIMED = """
```python theme={null}
# Timeout after 30 seconds
timed_parallel = parallel(
    long_running_task1,
    long_running_task2,
    long_running_task3,
    timeout=30.0  # seconds
)

try:
    result = timed_parallel(data)
except ParallelTimeoutError:
    print("Parallel execution timed out")
```
"""

LONG_RUNNING = ("long_running_task1", "long_running_task2", "long_running_task3")


@SYNC_AND_ASYNC
def test_a_block_that_ends_in_time_gives_its_result(kind, capsys):
    with nothing_left(), Gates(kind, *LONG_RUNNING) as gates:
        gates.open(*LONG_RUNNING)
        names = names_of(code_of(TIMED), data="it", **gates.nodes)
    assert names["result"] == {name: f"{name} of it" for name in LONG_RUNNING}
    assert capsys.readouterr().out == ""


@SYNC_AND_ASYNC
def test_a_block_that_is_out_of_time_says_so_and_leaves_only_bodies_that_cannot_be_stopped(kind, capsys):
    def impatient(*branches, timeout):
        assert timeout == 30.0
        return parallel(*branches, timeout=0.1)

    with nothing_left(), Gates(kind, *LONG_RUNNING) as gates:
        with nothing_left(given_up=3 if kind == "sync" else 0):
            names = names_of(code_of(TIMED), data="it", parallel=impatient, **gates.nodes)
    assert "result" not in names
    assert capsys.readouterr().out == "Parallel execution timed out\n"


PER_BRANCH = """
```python theme={null}
# All branches must complete within 30 seconds total
parallel(task1, task2, task3, timeout=30.0)

# If you need per-task timeouts, implement within nodes:
@node("task_with_timeout")
def task_with_timeout(data: dict) -> dict:
    import asyncio
    try:
        return asyncio.wait_for(
            async_operation(data),
            timeout=10.0
        )
    except asyncio.TimeoutError:
        return {"status": "timeout"}
```
"""


def test_a_node_that_gives_something_to_await_is_awaited():
    async def async_operation(data):
        await asyncio.sleep(0)
        return f"awaited of {data}"

    built = []
    names = names_of(
        code_of(PER_BRANCH),
        parallel=recording(built),
        async_operation=async_operation,
        **answering("task1", "task2", "task3"),
    )
    with nothing_left():
        assert built[0]("it") == {name: f"{name} of it" for name in ("task1", "task2", "task3")}
        assert parallel(names["task_with_timeout"])("it") == {"task_with_timeout": "awaited of it"}
        assert Sequence(names["task_with_timeout"]).invoke("it") == "awaited of it"


def test_what_is_awaited_after_the_node_has_returned_is_not_caught_in_it():
    async def async_operation(data):
        raise TimeoutError("too slow")

    names = names_of(
        code_of(PER_BRANCH), async_operation=async_operation, **answering("task1", "task2", "task3")
    )
    with nothing_left(), pytest.raises(ParallelExecutionError, match="task_with_timeout") as caught:
        parallel(names["task_with_timeout"])("it")
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert str(caught.value.__cause__) == "too slow"


# Resource Optimization

OPTIMIZED = """
```python theme={null}
# Automatic optimization (default)
optimized = parallel(
    node1, node2, node3, node4, node5,
    # Automatically:
    # - Analyzes available CPU and memory
    # - Calculates optimal worker count
    # - Creates balanced execution batches
    # - Monitors resource usage
)

# Disable optimization if needed
unoptimized = parallel(
    node1, node2, node3,
    optimization_enabled=False  # Manual control only
)
```
"""


def test_without_sizing_all_run_at_once_whatever_the_machine_has(machine):
    machine(cores=1, nodes_in_memory=1)
    alone, together = Together(1), Together(3)
    five = alone.nodes("node1", "node2", "node3", "node4", "node5")
    three = together.nodes("node1", "node2", "node3")
    with nothing_left():
        result = names_of(code_of(OPTIMIZED), **five)["optimized"]("it")
        assert list(result.items()) == [(name, f"{name} of it") for name in five]
        assert alone.most == 1
        result = names_of(code_of(OPTIMIZED), **{**five, **three})["unoptimized"]("it")
        assert list(result.items()) == [(name, f"{name} of it") for name in three]


FORMULA = """
   ```python theme={null}
   optimal_workers = min(
       max_concurrent or branch_count,
       available_cpu_cores,
       available_memory / estimated_memory_per_node
   )
   ```
"""


@pytest.mark.parametrize(
    ("branches", "cores", "nodes_in_memory"), [(3, 8, 100), (100, 8, 100), (100, 8, 5), (4, 4, 4), (9, 1, 1)]
)
def test_sync_branches_are_sized_by_the_formula(branches, cores, nodes_in_memory, machine):
    names = names_of(
        code_of(FORMULA),
        max_concurrent=None,
        branch_count=branches,
        available_cpu_cores=cores,
        available_memory=nodes_in_memory * ESTIMATED_MEMORY,
        estimated_memory_per_node=ESTIMATED_MEMORY,
    )
    size = size_of(
        max_concurrent=None,
        optimize=True,
        branches=branches,
        computing=True,
        resources=lambda: machine(cores=cores, nodes_in_memory=nodes_in_memory),
    )
    assert size.computing == names["optimal_workers"]


MANUAL = """
```python theme={null}
# Explicit concurrency limit
parallel(
    *heavy_tasks,
    max_concurrent=4  # Exact worker count
)

# Disable optimization for predictable behavior
parallel(
    *tasks,
    max_concurrent=2,
    optimization_enabled=False
)
```
"""


def test_an_explicit_limit_is_exact_with_and_without_sizing():
    four, two, built = Together(4), Together(2), []
    heavy, light = four.nodes(*"abcdef"), two.nodes(*"ghijk")
    names_of(code_of(MANUAL), parallel=recording(built), heavy_tasks=heavy.values(), tasks=light.values())
    with nothing_left():
        assert built[0]("it") == {name: f"{name} of it" for name in heavy}
        assert built[1]("it") == {name: f"{name} of it" for name in light}
    assert four.most == 4
    assert two.most == 2


# Error Handling

FAILING = """
```python theme={null}
from weft import ParallelExecutionError

@node("safe_task")
def safe_task(data: dict) -> dict:
    return {"status": "success"}

@node("failing_task")
def failing_task(data: dict) -> dict:
    raise ValueError("Task failed!")

try:
    result = parallel(safe_task, failing_task)(data)
except ParallelExecutionError as e:
    print(f"Parallel execution failed: {e}")
    # Error includes which branch failed
```
"""


def test_a_branch_that_fails_fails_the_block_and_is_named(capsys):
    with nothing_left():
        names = names_of(code_of(FAILING), data={})
    out = capsys.readouterr().out
    assert out.startswith("Parallel execution failed: ")
    assert "failing_task" in out
    assert "Task failed!" in out
    assert "safe_task" not in out
    assert "result" not in names


RESILIENT = '''
```python theme={null}
@node("resilient_task")
def resilient_task(data: dict) -> dict:
    """Task with built-in error handling."""
    try:
        result = risky_operation(data)
        return {"status": "success", "result": result}
    except Exception as e:
        # Log error but don't crash
        return {"status": "error", "error": str(e)}

# Parallel block completes even if operations fail
result = parallel(resilient_task, another_task)(data)

# Check individual results
if result["resilient_task"]["status"] == "error":
    handle_error(result["resilient_task"]["error"])
```
'''


def test_a_branch_that_handles_its_error_does_not_fail_the_block():
    handled = []

    def risky_operation(data):
        raise OSError(f"no way to get {data}")

    with nothing_left():
        names = names_of(
            code_of(RESILIENT),
            risky_operation=risky_operation,
            handle_error=handled.append,
            data="it",
            **answering("another_task"),
        )
    assert handled == ["no way to get it"]
    assert names["result"] == {
        "resilient_task": {"status": "error", "error": "no way to get it"},
        "another_task": "another_task of it",
    }


# Workflow Integration

INTEGRATED = """
```python theme={null}
workflow = Sequence(
    extract_data,           # Sequential
    parallel(               # Parallel
        transform_type_a,
        transform_type_b,
        transform_type_c
    ),
    combine_results,        # Sequential
    save_to_database        # Sequential
)
```
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_block_in_a_sequence_gets_what_was_before_it_and_hands_on_its_dict(way):
    together, order = Together(3), []

    def step(name, fn):
        def body(data):
            order.append(name)
            return fn(data)

        return node(name)(body)

    transforms = ("transform_type_a", "transform_type_b", "transform_type_c")
    names = names_of(
        code_of(INTEGRATED),
        extract_data=step("extract_data", lambda source: f"rows of {source}"),
        combine_results=step("combine_results", lambda results: list(results.values())),
        save_to_database=step("save_to_database", lambda rows: {"saved": rows}),
        **{name: step(name, together.around(answer_of(name))) for name in transforms},
    )
    with nothing_left():
        result = WAYS[way](names["workflow"], "it")
    assert result == {"saved": [f"{name} of rows of it" for name in transforms]}
    assert order[0] == "extract_data"
    assert sorted(order[1:4]) == list(transforms)
    assert order[4:] == ["combine_results", "save_to_database"]


NESTED = """
```python theme={null}
inner_parallel = parallel(subtask1, subtask2, subtask3)

outer_parallel = parallel(
    main_task1,
    inner_parallel,  # Nested parallel execution
    main_task3
)

# Execution:
# - main_task1, inner_parallel, and main_task3 run concurrently
# - Within inner_parallel, subtask1/2/3 run concurrently
```
"""


def test_a_block_in_a_block_is_one_branch_of_it_and_all_five_overlap():
    together = Together(5)
    inner, outer = ("subtask1", "subtask2", "subtask3"), ("main_task1", "main_task3")
    names = names_of(code_of(NESTED), **together.nodes(*inner, *outer))
    with nothing_left():
        result = names["outer_parallel"]("it")
    first, middle, last = result.values()
    assert list(result)[::2] == list(outer)
    assert (first, last) == ("main_task1 of it", "main_task3 of it")
    assert list(middle.items()) == [(name, f"{name} of it") for name in inner]
    assert together.most == 5


DECIDED = """
```python theme={null}
@decision("route_by_size")
def route_by_size(data: dict) -> str:
    size = len(data["items"])
    return "parallel_process" if size > 100 else "sequential_process"

@node("sequential_process")
def sequential_process(data: dict) -> dict:
    return process_sequentially(data)

# For large datasets, use parallel processing
parallel_process = parallel(
    process_chunk1,
    process_chunk2,
    process_chunk3,
    process_chunk4
)

workflow = Sequence(
    load_data,
    route_by_size,
    # Execution branches based on data size
)
```
"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [100, 101])
def test_a_decision_runs_what_it_names_with_its_own_input(count, way):
    asked = []

    def process_sequentially(data):
        asked.append(data)
        return {"sum": sum(data["items"])}

    def counted(name):
        return node(name)(lambda data: f"{name} of {len(data['items'])}")

    chunks = [f"process_chunk{n}" for n in (1, 2, 3, 4)]
    names = names_of(
        code_of(DECIDED),
        load_data=node("load_data")(lambda count: {"items": list(range(count))}),
        process_sequentially=process_sequentially,
        **{name: counted(name) for name in chunks},
    )
    with nothing_left():
        result = WAYS[way](names["workflow"], count)
    if count > 100:
        assert list(result.items()) == [(name, f"{name} of 101") for name in chunks]
        assert not asked
    else:
        assert result == {"sum": 4950}
        assert asked == [{"items": list(range(100))}]


# Performance Considerations

OVERHEAD = """
```python theme={null}
# Parallel execution overhead: ~1-2ms per branch
# Benefits kick in when operations take >10ms each

# Not worth it (too fast):
@node("add_numbers")
def add_numbers(a: int, b: int) -> int:
    return a + b  # <1ms - sequential is faster

# Worth it (I/O bound):
@node("fetch_from_api")
def fetch_from_api(url: str) -> dict:
    return requests.get(url).json()  # 100-500ms - parallel is much faster
```
"""


def test_parameters_get_their_keys_of_one_mapping():
    def get(url):
        return types.SimpleNamespace(json=lambda: {"from": url})

    names = names_of(code_of(OVERHEAD), requests=types.SimpleNamespace(get=get))
    add, fetch = names["add_numbers"], names["fetch_from_api"]
    with nothing_left():
        assert parallel(add, fetch)({"a": 1, "b": 2, "url": "there"}) == {
            "add_numbers": 3,
            "fetch_from_api": {"from": "there"},
        }
        assert Sequence(add).invoke((3, 4)) == 7
        assert Sequence(add).invoke({"b": 1, "a": 2, "c": 3}) == 3
    assert add(1, 2) == 3  # called with arguments a node is its function


# Best Practices

INDEPENDENT = """
    ```python theme={null}
    # Good: Independent operations
    parallel(
        fetch_user_profile,
        fetch_user_posts,
        fetch_user_comments
    )

    # Bad: Dependent operations
    parallel(
        fetch_user_id,      # Must complete first!
        fetch_user_profile  # Depends on user_id
    )
    ```
"""


def test_blocks_know_nothing_of_what_depends_on_what():
    built = []
    users = answering("fetch_user_profile", "fetch_user_posts", "fetch_user_comments", "fetch_user_id")
    names_of(code_of(INDEPENDENT), parallel=recording(built), **users)
    with nothing_left():
        assert [list(block("it")) for block in built] == [
            ["fetch_user_profile", "fetch_user_posts", "fetch_user_comments"],
            ["fetch_user_id", "fetch_user_profile"],
        ]


LIMITS = """
    ```python theme={null}
    # Good: Limited concurrency
    parallel(
        *api_requests,
        max_concurrent=5  # Respect rate limits
    )

    # Bad: Unlimited concurrency
    parallel(*api_requests)  # May overwhelm API
    ```
"""


def test_a_list_of_nodes_runs_with_a_limit_and_without():
    five, built = Together(5), []
    requests = five.nodes(*(f"api_request{n}" for n in range(12)))
    names_of(code_of(LIMITS), parallel=recording(built), api_requests=list(requests.values()))
    limited, unlimited = built
    with nothing_left():
        assert limited("it") == {name: f"{name} of it" for name in requests}
        assert five.most == 5
        assert list(unlimited("it")) == list(requests)


TIMEOUTS = """
    ```python theme={null}
    # Good: With timeout
    parallel(
        *long_tasks,
        timeout=60.0  # Fail if not done in 60s
    )

    # Bad: No timeout
    parallel(*long_tasks)  # May hang indefinitely
    ```
"""


def test_a_list_of_nodes_runs_with_a_timeout_and_without():
    built, tasks = [], answering("long1", "long2", "long3")
    names_of(code_of(TIMEOUTS), parallel=recording(built), long_tasks=list(tasks.values()))
    with nothing_left():
        for block in built:
            assert block("it") == {name: f"{name} of it" for name in tasks}
    assert len(built) == 2


HANDLED = """
    ```python theme={null}
    # Good: Resilient nodes
    @node("safe_fetch")
    def safe_fetch(url: str) -> dict:
        try:
            return fetch(url)
        except Exception as e:
            return {"error": str(e)}

    # Bad: Unhandled errors
    @node("unsafe_fetch")
    def unsafe_fetch(url: str) -> dict:
        return fetch(url)  # Crashes entire parallel block
    ```
"""


def test_the_resilient_node_completes_the_block_and_the_unsafe_one_fails_it():
    def fetch(url):
        raise OSError(f"{url} is gone")

    names = names_of(code_of(HANDLED), fetch=fetch)
    safe, unsafe = names["safe_fetch"], names["unsafe_fetch"]
    with nothing_left():
        assert parallel(safe)({"url": "it"}) == {"safe_fetch": {"error": "it is gone"}}
        with pytest.raises(ParallelExecutionError, match="unsafe_fetch") as caught:
            parallel(safe, unsafe)({"url": "it"})
    assert caught.value.branch == "unsafe_fetch"
    assert list(caught.value.failures) == ["unsafe_fetch"]
    assert isinstance(caught.value.__cause__, OSError)


CLEAR_NAMES = """
    ```python theme={null}
    # Good: Clear names
    @node("fetch_user_data")
    @node("fetch_order_data")
    @node("fetch_payment_data")

    result = parallel(...)(data)
    user = result["fetch_user_data"]  # Clear

    # Bad: Generic names
    @node("fetch1")
    @node("fetch2")
    @node("fetch3")

    result = parallel(...)(data)
    user = result["fetch1"]  # Which fetch is this?
    ```
"""


def test_results_are_read_by_clear_names():
    """The sample is no Python: decorators without functions, and dots for nodes. Its names and its reading are run."""
    code = code_of(CLEAR_NAMES)
    with pytest.raises(SyntaxError):
        compile(code, "<sample>", "exec", dont_inherit=True)
    clear, generic = (re.findall(r'@node\("(\w+)"\)', part) for part in code.split("# Bad"))
    assert clear == ["fetch_user_data", "fetch_order_data", "fetch_payment_data"]
    lines = [line for line in code.splitlines() if re.match(r"user = ", line)]
    assert len(lines) == 2
    for names, line in zip((clear, generic), lines, strict=True):
        nodes = answering(*names)
        with nothing_left():
            result = parallel(*nodes.values())("it")
        assert names_of(line, result=result)["user"] == f"{names[0]} of it"


# Advanced Patterns

MAP_REDUCE = '''
```python theme={null}
@node("split_work")
def split_work(data: dict) -> list:
    """Split data into chunks."""
    return [chunk for chunk in split(data, size=100)]

# Create parallel processors dynamically
def create_processors(chunk_count: int):
    return [
        node(f"process_chunk_{i}")(
            lambda chunk: process(chunk)
        )
        for i in range(chunk_count)
    ]

@node("reduce_results")
def reduce_results(results: dict) -> dict:
    """Combine parallel results."""
    return merge(results.values())

# Map-reduce workflow
workflow = Sequence(
    split_work,
    # Create parallel processors based on chunk count
    # (would need dynamic workflow construction)
    reduce_results
)
```
'''


def map_reduce():
    def split(data, *, size):
        return [data[start : start + size] for start in range(0, len(data), size)]

    def merge(parts):
        return {"parts": list(parts)}

    return names_of(
        code_of(MAP_REDUCE), split=split, process=lambda chunks: [sum(c) for c in chunks], merge=merge
    )


def test_the_pieces_of_map_reduce_run():
    names, data = map_reduce(), [1] * 250
    processors = names["create_processors"](2)
    with nothing_left():
        assert Sequence(names["split_work"]).invoke(data) == [[1] * 100, [1] * 100, [1] * 50]
        complete = Sequence(names["split_work"], parallel(*processors), names["reduce_results"])
        assert complete.invoke(data) == {"parts": [[100, 100, 50]] * 2}
        assert list(parallel(*processors)([[1]])) == ["process_chunk_0", "process_chunk_1"]


def test_map_reduce_as_written_lacks_its_middle():
    workflow = map_reduce()["workflow"]
    with nothing_left(), pytest.raises(AttributeError, match="values") as caught:
        workflow.invoke([1])
    assert any("reduce_results" in note for note in caught.value.__notes__)


FANNED = '''
```python theme={null}
# Fan-out: One input, many parallel operations
fan_out = parallel(
    process_for_system_a,
    process_for_system_b,
    process_for_system_c
)

# Fan-in: Many results, one output
@node("fan_in")
def fan_in(results: dict) -> dict:
    """Combine all parallel results."""
    return {
        "system_a": results["process_for_system_a"],
        "system_b": results["process_for_system_b"],
        "system_c": results["process_for_system_c"],
        "combined": True
    }

workflow = Sequence(
    prepare_data,
    fan_out,
    fan_in,
    send_notifications
)
```
'''


def test_what_is_fanned_out_is_fanned_in():
    together = Together(3)
    systems = together.nodes("process_for_system_a", "process_for_system_b", "process_for_system_c")
    names = names_of(
        code_of(FANNED),
        prepare_data=node("prepare_data")(lambda source: f"{source}, prepared"),
        send_notifications=node("send_notifications")(lambda results: {**results, "sent": True}),
        **systems,
    )
    with nothing_left():
        result = names["workflow"].invoke("it")
    assert result == {
        "system_a": "process_for_system_a of it, prepared",
        "system_b": "process_for_system_b of it, prepared",
        "system_c": "process_for_system_c of it, prepared",
        "combined": True,
        "sent": True,
    }
