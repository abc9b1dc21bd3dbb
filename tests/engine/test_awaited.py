"""What a body has returned is awaited where it can be."""

from __future__ import annotations

import asyncio

import pytest

import weft
from weft.engine.awaited import is_awaitable


class Awaited(list):
    """A list that is no plain one."""

    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return sum(self)


@pytest.mark.parametrize("value", [None, True, 1, 1.0, 1j, "", b"", [], (), {}, set(), frozenset(), object()])
def test_plain_values_are_what_they_are(value):
    assert not is_awaitable(value)


def test_a_subclass_of_a_plain_type_may_be_awaited():
    assert is_awaitable(Awaited())


def test_an_object_that_has_the_method_but_not_its_class_may_not():
    class Plain:
        pass

    value = Plain()
    value.__await__ = lambda: iter(())
    assert not is_awaitable(value)


@pytest.mark.parametrize("style", ["map", "batch"])
def test_what_a_body_returns_is_awaited(style):
    async def body(i):
        return Awaited([i, 1])

    class Items(weft.AsyncNode):
        async def exec_async(self, i):
            return Awaited([2, 1])

        async def post_async(self, shared, prep_res, exec_res):
            shared["found"] = [exec_res]

    async def main():
        if style == "map":
            return await weft.amap(weft.node("step")(body), [2])
        return (await weft.Flow(Items()).ainvoke({}))["found"]

    assert asyncio.run(main()) == [3]
