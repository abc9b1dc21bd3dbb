"""What an error says of where it was raised, and how to go on."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass

import pytest

from weft import (
    Flow,
    Graph,
    InMemorySaver,
    Node,
    ParallelExecutionError,
    RetryPolicy,
    SqliteSaver,
    entrypoint,
    node,
    parallel,
    task,
    tolerate,
)
from weft import map as map_


@task
def fetch(url, *, api_key=None, options=None):
    raise ValueError("503 from upstream")


def raised(run, kind=Exception):
    with pytest.raises(kind) as caught:
        run()
    return caught.value


def notes(error):
    return "\n".join(getattr(error, "__notes__", ()))


# Secrets


@dataclass
class Settings:
    url: str
    password: str


@pytest.mark.parametrize(
    ("given", "shown", "hidden"),
    [
        (("http://a",), "'fetch'('http://a')", ()),
        (("http://me:hunter2@host/x",), "'fetch'('http://me:***@host/x')", ("hunter2",)),
        (("Authorization: Bearer abc.def.ghi",), "Bearer ***", ("abc.def",)),
        (("sk-abcdefghijklmnop1234",), "'fetch'('***')", ("abcdefgh",)),
        (({"token": "t0psecret", "max_tokens": 100},), "{'token': ***, 'max_tokens': 100}", ("t0psecret",)),
        (({"a": {"b": {"Password": "t0psecret"}}},), "'Password': ***", ("t0psecret",)),
        ((Settings("http://a", "t0psecret"),), "password=***", ("t0psecret",)),
        ((["x" * 500, 1, 2, 3, 4, 5],), "...", ("x" * 100,)),
    ],
)
def test_the_input_is_short_and_secrets_stay_out(given, shown, hidden):
    @entrypoint()
    def flow(_):
        return fetch(*given).result()

    said = notes(raised(lambda: flow.invoke(1)))
    assert shown in said
    assert not any(secret in said for secret in hidden)
    assert len(said) < 300


def test_what_is_given_by_the_name_of_a_secret_is_one():
    @task
    def call(url, api_key, token_count, auth_token=None):
        raise ValueError

    @entrypoint()
    def flow(_):
        return call("http://a", "k3y", 7, auth_token=b"t0ken").result()

    said = notes(raised(lambda: flow.invoke(1)))
    assert "'call'('http://a', ***, 7, auth_token=***)" in said


class Unshowable:
    def __repr__(self):
        raise RuntimeError


def test_what_cannot_be_shown_hides_no_error():
    @entrypoint()
    def flow(_):
        return fetch(Unshowable()).result()

    assert isinstance(raised(lambda: flow.invoke(1)), ValueError)


# The way there


def test_attempts_are_counted():
    @task(retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.001, jitter=False, retry_on=ValueError))
    def flaky():
        raise ValueError

    @entrypoint()
    def flow(_):
        return flaky().result()

    assert "'flaky'(), attempt 3, call " in notes(raised(lambda: flow.invoke(1)))


def test_the_way_through_nested_styles():
    @node(name="search", start=True, end=True)
    async def search(query):
        return {"found": await inner.ainvoke(query)}

    @entrypoint()
    async def inner(query):
        return await fetch(query)

    graph = Graph().add_node(search).compile()

    class Ask(Node):
        async def exec_async(self, prep_res):
            return None

        def exec(self, prep_res):
            return graph.invoke({"query": "q"})

    @entrypoint()
    async def outer(_):
        return await graph.ainvoke({"query": "q"})

    said = notes(raised(lambda: outer.invoke(1)))
    assert "weft: raised by 'fetch'('q'), call " in said
    assert "\n      on the way 'outer' > " in said
    way = said.rpartition("on the way ")[2].splitlines()[0]
    assert way.startswith("'outer' > ")
    assert way.endswith(" > 'fetch'")
    assert "'search'" in way


def test_a_long_way_is_shortened():
    @entrypoint()
    async def down(depth):
        return await (down.ainvoke(depth - 1) if depth else fetch("x"))

    said = notes(raised(lambda: asyncio.run(down.ainvoke(30))))
    way = said.rpartition("on the way ")[2].splitlines()[0]
    assert way.startswith("'down' > 'down' > ... ")
    assert way.endswith("'fetch'")
    assert way.count(">") == 7


def test_a_call_right_below_the_run_needs_no_way():
    @entrypoint()
    def flow(_):
        return fetch("x").result()

    assert "on the way" not in notes(raised(lambda: flow.invoke(1)))


# How to go on


def test_a_recorded_run_says_how_to_go_on_with_it(tmp_path):
    with SqliteSaver(tmp_path / "runs.db") as store:

        @entrypoint()
        def flow(_):
            return fetch("x").result()

        error = raised(lambda: flow.invoke(1, run_id="r", checkpointer=store))
        said = notes(error)
        assert f"invoke(None, run_id='r', checkpointer={store!r})" in said
        assert "run 'r' of 'flow'" in said
        again = raised(lambda: flow.invoke(None, run_id="r", checkpointer=store))
        assert notes(again).count("to go on") == 1


def test_it_is_said_once_and_not_of_runs_inside_or_without_a_journal():
    @entrypoint()
    def inner(_):
        return fetch("x").result()

    @entrypoint()
    def outer(_):
        return inner.invoke(1)

    @entrypoint()
    async def aouter(_):
        return await inner.ainvoke(1)

    assert "to go on" not in notes(raised(lambda: aouter.invoke(1)))
    said = notes(raised(lambda: aouter.invoke(1, run_id="r", checkpointer=InMemorySaver())))
    assert said.count("to go on") == 1
    assert "of 'aouter'" in said


def test_a_refused_run_is_not_to_be_gone_on_with():
    store = InMemorySaver()

    @entrypoint()
    def flow(_):
        return 1

    flow.invoke(1, run_id="r", checkpointer=store)
    assert "to go on" not in notes(raised(lambda: flow.invoke(2, run_id="r", checkpointer=store)))


def test_who_catches_an_error_catches_its_own_class_through_nested_blocks():
    class Mine(Exception):
        pass

    def bad(_):
        raise Mine("x")

    block = parallel(parallel(parallel(bad, name="c"), name="b"), name="a")
    with pytest.raises(ExceptionGroup) as caught:
        block.invoke(1)
    assert caught.value.subgroup(Mine) is not None


def test_a_thousand_failures_stay_readable():
    def bad(number):
        raise ValueError(f"no {number}")

    with pytest.raises(ParallelExecutionError) as caught:
        map_(bad, range(1_000), on_error=tolerate(count=990))
    assert len(caught.value.exceptions) > 50
    text = "".join(traceback.format_exception(caught.value))
    assert len(text) < 20_000
    assert len(str(caught.value)) < 500


class Failing(Node):
    def exec(self, prep_res):
        raise KeyError("no")


def test_a_flow_says_it_too():
    said = notes(raised(lambda: Flow(start=Failing()).invoke({})))
    assert "weft: raised by 'Failing'" in said
