"""Who writes to a stream waits for its reader; nothing is lost, and memory stays bounded."""

from __future__ import annotations

import asyncio
import time

from weft import entrypoint, get_stream_writer, task
from weft.engine.reader import MOST_UNREAD
from weft.types import StreamWriter

MANY = 3 * MOST_UNREAD


class Count:
    """How much has been written until now."""

    value = 0


@task
def talk(count: Count, writer: StreamWriter):
    for number in range(MANY):
        writer(number)
        count.value = number + 1


@task
async def atalk(count: Count, writer: StreamWriter):
    for number in range(MANY):
        writer(number)
        count.value = number + 1
        await writer.drain()


@entrypoint()
def flow(count):
    return talk(count).result()


@entrypoint()
async def aflow(count):
    return await atalk(count)


def test_a_body_in_a_thread_waits_for_a_slow_reader_and_nothing_is_lost():
    count = Count()
    stream = flow.stream(count, stream_mode="custom")
    got = [next(stream)]
    settled(count)
    assert count.value <= MOST_UNREAD + 200
    got += stream
    assert got == list(range(MANY))


def test_a_body_on_the_loop_waits_in_drain():
    async def main():
        count = Count()
        got = []
        async for number in aflow.astream(count, stream_mode="custom"):
            got.append(number)
            if len(got) == 1:
                await asyncio.sleep(0.1)
                assert count.value <= MOST_UNREAD + 200
        assert got == list(range(MANY))

    asyncio.run(main())


def test_who_leaves_the_stream_stops_who_waits_for_it():
    count = Count()
    stream = flow.stream(count, stream_mode="custom")
    next(stream)
    settled(count)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 5


def test_without_a_stream_nobody_waits():
    count = Count()
    flow.invoke(count)
    run = flow.submit(count)
    run.result()
    assert count.value == MANY


def test_a_writer_that_belongs_to_no_stream_can_be_drained():
    @entrypoint()
    async def alone(_):
        writer = get_stream_writer()
        writer(1)
        await writer.drain()
        return 1

    assert alone.invoke(1) == 1


def settled(count):
    """Wait until nothing more is written for a while."""
    before = -1
    while count.value != before:
        before = count.value
        time.sleep(0.1)
