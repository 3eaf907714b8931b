"""Readers of a response's events get each of them once, whenever they come."""

from __future__ import annotations

import asyncio

from serve_app.ingress.event_log import EventLog


async def collected(log: EventLog, behind: int = 0) -> bytes:
    return b"".join([piece async for piece in log.read(behind)])


async def test_every_reader_gets_what_is_there_and_what_comes() -> None:
    log = EventLog()
    log.publish([b"a", b"b"])
    readers = [asyncio.create_task(collected(log, behind)) for behind in (0, 1)]
    await asyncio.sleep(0)
    log.publish([b"c"])
    await asyncio.sleep(0)
    log.close()
    assert await asyncio.gather(*readers) == [b"abc", b"bc"]
    assert await collected(log, 2) == b"c"


async def test_who_has_the_first_events_gets_the_rest_of_a_replay() -> None:
    log = EventLog()
    log.publish([b"queued"])
    reader = asyncio.create_task(collected(log))
    await asyncio.sleep(0)
    log.replay([b"queued", b" said", b" done"])
    log.close()
    assert await reader == b"queued said done"
    assert log.events == [b"queued", b" said", b" done"]


async def test_who_has_heard_more_than_there_is_gets_the_end() -> None:
    log = EventLog()
    log.publish([b"created", b"failed"])
    log.close()
    assert await collected(log, 5) == b"failed"


async def test_an_end_is_waited_for() -> None:
    log = EventLog()
    waiting = asyncio.create_task(log.closed())
    log.publish([b"a"])
    await asyncio.sleep(0)
    assert not waiting.done()
    log.close()
    await asyncio.wait_for(waiting, 10)
