"""What went wrong elsewhere when runs were recorded and resumed. The numbers are the peers'."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from unittest.mock import patch

import pytest
from killing import Mortal, MortalFile, Program

import weft
from weft import (
    AsyncParallelBatchNode,
    Command,
    Graph,
    Limit,
    RunMismatchError,
    SqliteSaver,
    StoreError,
    WeftError,
    entrypoint,
    interrupt,
    node,
    parallel,
    task,
)
from weft.checkpoint import sql
from weft.checkpoint.base import RecordKind, all_records


def recorded(store, run_id):
    """The values that another reader finds in a journal by now."""
    return [
        store.codec.decode(line.value) for line in all_records(store, run_id) if line.kind is RecordKind.OK
    ]


# Durable before it is used


class Slow(SqliteSaver):
    """A disk on which a commit takes its time, before and after."""

    def commit(self, writes):
        time.sleep(0.03)
        refused = super().commit(writes)
        time.sleep(0.01)
        return refused


def functional(see):
    @task
    def first(x):
        return "first"

    @task
    def second(x):
        see()
        return x

    @entrypoint()
    def flow(x):
        found = first(x).result()
        see()
        return second(found).result()

    return flow, 1


def functional_async(see):
    @task
    async def first(x):
        return "first"

    @entrypoint()
    async def flow(x):
        for done in asyncio.as_completed([first(x)]):
            found = await done
            see()
        return found

    return flow, 1


def graph(see):
    @node(start=True)
    def first(x):
        return {"found": "first"}

    @node(end=True)
    def second(found):
        see()
        return {}

    return Graph().add_node(first).add_node(second).add_edge(first, second), {"x": 1}


def compose(see):
    def first(x):
        return "first"

    def second(found):
        see()
        return found

    return node("first")(first) >> node("second")(second), 1


def batch(see):
    class First(AsyncParallelBatchNode):
        async def prep_async(self, shared):
            return [1]

        async def exec_async(self, item):
            return "first"

        async def post_async(self, shared, prep_res, exec_res):
            see()

    return First(), {}


@pytest.mark.parametrize("style", [functional, functional_async, graph, compose, batch])
def test_langgraph_8039_a_result_is_durable_before_what_depends_on_it_starts(style, tmp_path):
    """Even with durability="sync" the write of a result was not ordered before what used it: after a kill, steps ran
    again whose results had been used."""
    seen = []
    with SqliteSaver(tmp_path / "runs.db") as reader, Slow(tmp_path / "runs.db") as store:
        flow, given = style(lambda: seen.append(recorded(reader, "r")))
        flow.invoke(given, checkpointer=store, run_id="r")
    assert seen
    for found in seen:
        assert "first" in str(found)


def test_langgraph_8039_without_that_order_it_would_show(tmp_path):
    """The test before is one that can fail: under "async" results are used before they are durable."""
    seen = []
    with SqliteSaver(tmp_path / "runs.db") as reader, Slow(tmp_path / "runs.db") as store:
        flow, given = functional(lambda: seen.append(recorded(reader, "r")))
        flow.invoke(given, checkpointer=store, run_id="r", durability="async")
    assert "first" not in str(seen[0])


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
def test_langgraph_8764_a_run_that_dies_in_its_first_write_is_in_the_store(tmp_path, durability):
    """Reported: a run killed in its first write had left no trace. Here it is recorded, with its input, before its
    body begins, so that whoever was told its id can go on with it."""
    store = MortalFile(tmp_path / "runs.db")  # takes no commit at all
    seen = []

    @task
    def step(x):
        return x + 1

    @entrypoint()
    def flow(x):
        with SqliteSaver(tmp_path / "runs.db") as reader:
            seen.append(weft.runs(reader).show("r").input)
        return step(x).result()

    with store, pytest.raises(StoreError):
        flow.invoke(20, checkpointer=store, run_id="r", durability=durability)
    with SqliteSaver(tmp_path / "runs.db") as other:
        assert seen == [20]
        assert flow.invoke(None, checkpointer=other, run_id="r") == 21


FIRST_WRITE = """
    import os, signal, sys
    from weft import SqliteSaver, entrypoint, task
    from weft.checkpoint import sql

    def effect(word):
        fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{word}\\n".encode()); os.close(fd)

    class Store(SqliteSaver):
        def commit(self, writes):
            if sys.argv[1] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().commit(writes)

    @task
    def step(x):
        effect("step")
        return x + 1

    @entrypoint(checkpointer=Store("runs.db"))
    def flow(x):
        effect("begun")
        return step(x).result()

    print(flow.invoke(20 if sys.argv[1] == "die" else None, run_id="r"))
"""


def test_langgraph_8764_a_process_killed_in_its_first_write_leaves_its_run(tmp_path):
    program = Program(tmp_path, FIRST_WRITE)
    assert program.run("die").returncode == -9
    done = program.run("live")
    assert (done.returncode, done.stdout) == (0, "21\n"), done.stderr


# Resumed


def test_langgraph_6050_finished_steps_of_nested_workflows_do_not_run_again(saver):
    """A nested resume ran finished tasks again; and tasks below a server were not recorded at all, silently."""
    ran, broken = Counter(), [True]

    @task
    def deep(x):
        ran["deep", x] += 1
        return x

    @entrypoint()
    def innermost(x):
        return deep(x).result() + deep(x + 1).result()

    @node(start=True, end=True)
    def in_graph(x):
        ran["node", x] += 1
        return {"y": x}

    graph = Graph().add_node(in_graph)
    both = parallel(node("left")(lambda x: ran.update([("left", x)]) or x), innermost)

    @entrypoint(checkpointer=saver)
    def outer(x):
        first = innermost.invoke(x)
        second = graph.invoke({"x": x})["y"]
        third = both(x)
        answer = interrupt("go on?")
        if broken:
            raise RuntimeError
        return first, second, third, answer

    outer.invoke(1, run_id="r")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            outer.invoke(Command(resume="yes") if not broken[1:] else None, run_id="r")
        broken.append(True)
    del broken[:]
    once = dict(ran)
    assert outer.invoke(None, run_id="r")[3] == "yes"
    assert dict(ran) == once
    # `deep` is asked for by two parents: one of `outer` itself, and one in the block.
    assert once == {("deep", 1): 2, ("deep", 2): 2, ("node", 1): 1, ("left", 1): 1}
    assert Counter(call.step for call in weft.runs(saver).show("r").calls)["deep"] == 4


def test_dbos_769_what_a_deletion_leaves_undone_is_not_taken_for_a_result(tmp_path):
    """Clean-up that was interrupted left an old result, which a new run with the same id took for its own."""
    ran = []

    @task
    def step(x):
        ran.append(x)
        return x

    @entrypoint()
    def flow(x):
        return step(x).result()

    with SqliteSaver(tmp_path / "runs.db") as store:
        for at in range(len(sql.DELETE_RUN)):
            run_id = f"r{at}"
            flow.invoke("old", checkpointer=store, run_id=run_id)
            whole = (store.find(run_id), store.records(run_id))
            broken = [*sql.DELETE_RUN]
            broken[at] = "DELETE FROM nothing WHERE run = :run"
            with patch.object(sql, "DELETE_RUN", tuple(broken)), pytest.raises(StoreError):
                weft.runs(store).delete(run_id)
            assert (store.find(run_id), store.records(run_id)) == whole
            weft.runs(store).delete(run_id)
            assert store.records(run_id) == []
            assert flow.invoke("new", checkpointer=store, run_id=run_id) == "new"
            assert [line.value for line in all_records(store, run_id)] == [store.codec.encode("new")]
    assert ran == ["old", "new"] * len(sql.DELETE_RUN)
    with sqlite3.connect(tmp_path / "runs.db") as db:  # nor is any row left that belongs to no run
        for table, key in (("inputs", "run"), ("outcomes", "run"), ("records", "place >> 32")):
            assert db.execute(
                f"SELECT count(*) FROM {table} WHERE {key} NOT IN (SELECT run FROM runs)"
            ).fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("commits", range(8))
def test_dbos_805_a_run_that_dies_between_two_steps_goes_on_and_blocks_nobody(commits):
    """A recovered run was stuck between two steps, and with it the queue behind it."""
    store = Mortal(commits)
    limit = Limit("one at a time", concurrent=1)

    @task(limit=limit)
    def step(x):
        return x

    @entrypoint(checkpointer=store)
    def flow(x, previous=None):
        return sum(step(n).result() for n in range(5)) + (previous or 0)

    try:
        flow.invoke(1, run_id="r", thread_id="t", timeout=20)
        died = False
    except StoreError:
        died = True
    assert died is (commits < 6)
    store.left = 1_000
    assert flow.invoke(None, run_id="r", timeout=20) == 10
    assert flow.invoke(2, run_id="next", thread_id="t", timeout=20) == 20
    assert flow.invoke(2, run_id="beside", thread_id="u", timeout=20) == 10


def test_swarms_2286_the_same_task_again_is_a_run_of_its_own(saver):
    """A checkpoint was named by the text of its task, so that a second run silently went on with the first."""
    ran = []

    @task
    def step(text):
        ran.append(text)
        if len(ran) == 1:
            raise RuntimeError
        return len(ran)

    @entrypoint(checkpointer=saver)
    def flow(text):
        return step(text).result()

    with pytest.raises(RuntimeError):
        flow.invoke("write a report", thread_id="t")
    assert flow.invoke("write a report", thread_id="t") == 2
    assert flow.invoke("write a report", thread_id="u") == 3
    assert flow.invoke("write a report", run_id="r") == 4
    assert len(list(weft.runs(saver))) == 4
    with pytest.raises(RunMismatchError):
        flow.invoke("write another", run_id="r")


# Forks, and what is not set


def test_langgraph_6389_a_fork_has_what_was_recorded_up_to_its_place_and_nothing_more(saver):
    """There what an old run had still to write came up in a fork of it."""
    ran, broken = [], [True]

    @task
    def step(name, value):
        ran.append(name)
        return value + 1

    @entrypoint(checkpointer=saver)
    def flow(x):
        first = step("first", x).result()
        second = step("second", first).result()
        if broken:
            raise RuntimeError
        return second

    with pytest.raises(RuntimeError):
        flow.invoke(1, run_id="old")
    runs = weft.runs(saver)
    first, second = runs.show("old").calls
    del broken[:], ran[:]
    fork = runs.fork("old", at=first.id, values={first.id: 100})
    assert [call.value for call in runs.show(fork).calls] == [100]
    assert runs.resume(fork, flow) == 101
    assert ran == ["second"]
    assert [call.value for call in runs.show("old").calls] == [2, 3]
    assert runs.resume("old", flow) == 3


@pytest.mark.parametrize("taken", ["failed", "finished", "old"])
def test_langgraph_6389_a_fork_is_a_run_of_its_own_and_adds_nothing_to_another(saver, taken):
    """An id that is taken is refused: what was recorded there is neither mixed with the fork's nor given for it."""
    broken = [True]

    @task
    def step(x):
        return x

    @entrypoint(checkpointer=saver)
    def flow(x):
        found = step(x).result()
        if broken:
            raise RuntimeError
        return found

    for run_id in ("old", "failed", "finished"):
        if run_id == "finished":
            del broken[:]
            flow.invoke(1, run_id=run_id)
            continue
        with pytest.raises(RuntimeError):
            flow.invoke(1, run_id=run_id)
    before = (saver.find(taken), saver.records(taken))
    (call,) = weft.runs(saver).show("old").calls
    with pytest.raises(WeftError, match=taken):
        weft.runs(saver).fork("old", values={call.id: 100}, new_id=taken)
    assert saver.records(taken) == before[1]
    assert saver.find(taken).status is before[0].status
    assert flow.invoke(None, run_id=taken) == 1


def test_langgraph_7355_a_number_that_is_given_is_meant_whatever_the_default_is():
    """There "not set" was told by a number, which meant nothing when somebody gave that very number."""

    def counted(x):
        return {"x": x + 1}

    def chain(length, **options):
        made = Graph(**options)
        nodes = [node(name=f"n{i}", start=i == 0, end=i == length - 1)(counted) for i in range(length)]
        for each in nodes:
            made.add_node(each)
        for one, other in zip(nodes, nodes[1:], strict=False):
            made.add_edge(one, other)
        return made

    length = 10_001  # one more than what a loop may do by default
    assert chain(length).invoke({"x": 0}) == {"x": length}
    with pytest.raises(weft.MaxStepsError, match="10000|10,000"):
        chain(length, max_steps=10_000).invoke({"x": 0})
