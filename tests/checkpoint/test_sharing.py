"""Results that hold what their run has recorded are stored as pieces, and come back as they were."""

from __future__ import annotations

import os
import sqlite3

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from postgres import address, fresh_schema

from weft import (
    Flow,
    Graph,
    Node,
    PostgresSaver,
    SqliteSaver,
    entrypoint,
    node,
    router,
    runs,
    task,
)
from weft import map as map_
from weft.checkpoint.base import Change, OpenRun, Record, RecordKind, Write
from weft.checkpoint.sharing import LEAST_RESULT, put_together, taken_apart
from weft.core.status import RunStatus
from weft.errors import CorruptDataError

encode = msgspec.msgpack.Encoder().encode
STEPS, SIZE, LIMIT = 1_000, 1_000, 1_500_000


def there_and_back(result, values):
    """What is stored instead, having seen that it is the result; None for the result itself."""
    stored = taken_apart(result, enumerate(values, 1))
    if stored is not None:
        assert put_together(stored, lambda at: {position: values[position - 1] for position in at}) == result
    return stored


# What is shared


def test_a_list_of_what_steps_returned_takes_a_hundredth():
    values = [os.urandom(500) for _ in range(200)]
    stored = there_and_back(encode(values), [encode(value) for value in values])
    assert len(stored) < len(encode(values)) / 50


def test_values_that_stand_in_records_with_more_around_them():
    values = [os.urandom(500) for _ in range(200)]
    records = [
        encode({"kind": "change", "of": ["items", number], "to": v}) for number, v in enumerate(values)
    ]
    assert len(there_and_back(encode({"items": values}), records)) < 10_000


def test_equal_values():
    assert len(there_and_back(encode([b"\0" * 1_000] * 100), [encode(b"\0" * 1_000)] * 100)) < 2_000


@pytest.mark.parametrize(
    ("result", "records"),
    [
        (b"x" * (LEAST_RESULT - 1), [b"x" * LEAST_RESULT]),
        (os.urandom(20_000), [os.urandom(1_000) for _ in range(50)]),
        (os.urandom(20_000), []),
        (b"".join(bytes([n % 256]) * 100 for n in range(200)), [bytes([n % 256]) * 100 for n in range(200)]),
    ],
    ids=["small", "nothing in common", "no records", "small records"],
)
def test_what_is_not_worth_it_is_left_alone(result, records):
    assert taken_apart(result, enumerate(records, 1)) is None


@given(st.data())
def test_whatever_is_shared_comes_back(data):
    """Pieces of records in any order, twice, cut, with other bytes between them."""
    records = data.draw(st.lists(st.binary(min_size=100, max_size=400), max_size=8))
    pieces = data.draw(
        st.lists(
            st.one_of(
                st.binary(max_size=50),
                st.builds(
                    lambda record, start, end: record[start:end] if start < end else record,
                    st.sampled_from(records or [b""]),
                    st.integers(0, 400),
                    st.integers(0, 400),
                ),
            ),
            max_size=30,
        )
    )
    result = b"".join(pieces) + b"".join(records) * data.draw(st.integers(0, 40))
    there_and_back(result, records)


def test_a_record_that_is_not_what_it_was_is_noticed():
    values = [os.urandom(500) for _ in range(50)]
    stored = taken_apart(encode(values), enumerate(map(encode, values), 1))
    for wrong in ({}, {n: os.urandom(503) for n in range(51)}):
        with pytest.raises(CorruptDataError):
            put_together(stored, lambda _, wrong=wrong: wrong)
    with pytest.raises(CorruptDataError):
        put_together(b"\xff" + stored, lambda _: {})


# In the stores


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    if request.param == "sqlite":
        with SqliteSaver(tmp_path / "runs.db") as found:
            yield found
        return
    with fresh_schema() as schema, PostgresSaver(address(), schema=schema) as found:
        yield found


def finished(store, run_id, values, *, at_once):
    row = store.open(OpenRun(run_id, "w", input=b"in"))
    records = [
        Record(RecordKind.OK, number.to_bytes(16, "big"), step="s", value=encode(value), batch=number + 1)
        for number, value in enumerate(values)
    ]
    result = encode(values)
    change = Change(RunStatus.FINISHED, output=result)
    if at_once:
        store.commit([Write(run_id, row.fence, records, change)])
    else:
        store.commit([Write(run_id, row.fence, records[:-1])])
        store.commit([Write(run_id, row.fence, records[-1:]), Write(run_id, row.fence, (), change)])
    return result


@pytest.mark.parametrize("at_once", [True, False])
def test_a_stored_result_comes_back(store, at_once):
    values = [os.urandom(500) for _ in range(100)]
    result = finished(store, "r", values, at_once=at_once)
    other = finished(store, "other", values[:50], at_once=at_once)
    assert store.find("r").output == result
    assert [row.output for row in store.runs()] == [other, result]
    assert store.open(OpenRun("r", "w")).output == result
    assert stored_size(store) < len(result) / 10


def stored_size(store):
    if isinstance(store, SqliteSaver):
        with sqlite3.connect(store.path) as db:
            return db.execute("SELECT max(length(output)) FROM outcomes").fetchone()[0]
    return store._reader.transact(
        lambda db: db.execute("SELECT max(length(output)) FROM outcomes").fetchone()[0]
    )


def test_a_result_whose_records_are_damaged_is_not_given(tmp_path):
    with SqliteSaver(tmp_path / "runs.db") as store:
        finished(store, "r", [os.urandom(500) for _ in range(100)], at_once=True)
    with sqlite3.connect(tmp_path / "runs.db") as db:
        db.execute("UPDATE records SET value = zeroblob(503) WHERE place % 7 = 0")
    with SqliteSaver(tmp_path / "runs.db") as store, pytest.raises(CorruptDataError):
        store.find("r")


# Storage is linear: a thousand steps that each add a kilobyte, in every style


def kilobyte(number):
    return f"{number:04}" + "x" * (SIZE - 4)


@entrypoint()
def functional(count):
    return [grown(number).result() for number in range(count)]


@task
def grown(number):
    return kilobyte(number)


def looping():
    @node(name="add", start=True)
    def add(state):
        state.setdefault("items", []).append(kilobyte(len(state.get("items", []))))
        return {"count": len(state["items"])}

    @router(name="more")
    def more(count):
        return {"choice": "add" if count < STEPS else "end"}

    @node(name="end", end=True)
    def end(state):
        return {"total": len(state["items"])}

    graph = Graph().add_node(add).add_node(more).add_node(end)
    return graph.add_edge("add", "more").add_router(["add"], more, ["add", "end"]).compile()


class Add(Node):
    def prep(self, shared):
        return len(shared["items"])

    def exec(self, prep_res):
        return kilobyte(prep_res)

    def post(self, shared, prep_res, exec_res):
        shared["items"].append(exec_res)
        return "more" if len(shared["items"]) < STEPS else "done"


class Done(Node):
    pass


def flow():
    add = Add()
    add - "more" >> add
    add - "done" >> Done()
    return Flow(start=add)


@pytest.mark.parametrize(
    "run",
    [
        lambda options: functional.invoke(STEPS, **options),
        lambda options: looping().invoke({}, **options),
        lambda options: flow().invoke({"items": []}, **options),
        lambda options: map_(grown, range(STEPS), **options),
    ],
    ids=["functional", "graph", "batch", "map"],
)
def test_storage_is_linear(run, tmp_path):
    path = tmp_path / "runs.db"
    with SqliteSaver(path) as store:
        run({"checkpointer": store, "run_id": "r"})
    assert path.stat().st_size < LIMIT
    assert runs(SqliteSaver(path)).show("r").status == "finished"
