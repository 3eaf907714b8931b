"""The ingress' end of the channels, against replicas that are played by the test."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from played_generators import Ingress, end, frame, lost, soon
from ray.exceptions import RayActorError

from serve_app.errors import (
    GeneratorStopping,
    InvalidRequest,
    Overloaded,
    ParleyError,
    QueueFull,
)
from serve_app.ingress import generator_client, rooms
from serve_app.ingress.generator_client import ADMISSION_TRIES
from serve_app.messages.generation import Admitted, FinishReason, Frame, Room
from serve_app.routing.own_streams import OwnStreams
from serve_app.routing.pool_choice import LOST_LOAD


@pytest.fixture
async def ingress() -> AsyncIterator[Ingress]:
    made = Ingress()
    yield made
    await end(made)


async def test_one_calls_frames_serve_all_streams_of_the_replica(ingress: Ingress) -> None:
    carrier, first = await ingress.open_carrying()
    other, opening = await ingress.open()
    other.send(Admitted("a", carries_frames=False), None)
    second = await opening
    carrier.send(frame((carrier.stream, 7), (other.stream, 8)), frame(finished=(other.stream,)))
    assert (await first.receive()).tokens == [7]
    await soon(lambda: second.ended)
    arrived = await second.receive()
    assert (arrived.tokens, arrived.finished.reason) == ([8], FinishReason.STOP)
    # A call that is dropped before its end is cancelled, and the stream may be with it.
    await soon(lambda: other.read_to_its_end)
    assert not carrier.over.is_set()


async def test_a_stream_whose_admission_overtakes_the_carriers_is_not_lost(
    ingress: Ingress,
) -> None:
    carrier, opening_carrier = await ingress.open()
    other, opening = await ingress.open()
    other.send(Admitted("a", carries_frames=False), None)
    second = await opening
    assert not second.ended
    carrier.send(Admitted("a", carries_frames=True), frame((other.stream, 8)))
    await opening_carrier
    assert (await asyncio.wait_for(second.receive(), 5)).tokens == [8]


async def test_tokens_that_come_before_their_streams_admission_are_kept(ingress: Ingress) -> None:
    carrier, first = await ingress.open_carrying()
    other, opening = await ingress.open()
    carrier.send(frame((other.stream, 8), (carrier.stream, 7)))
    await first.receive()
    other.send(Admitted("a", carries_frames=False), None)
    assert (await (await opening).receive()).tokens == [8]


@pytest.mark.parametrize("broken_by", [RayActorError(), None])
async def test_a_channel_that_breaks_fails_every_stream_of_its_replica(
    ingress: Ingress, broken_by: Exception | None
) -> None:
    carrier, first = await ingress.open_carrying("a")
    other, opening = await ingress.open()
    other.send(Admitted("a", carries_frames=False), None)
    second = await opening
    elsewhere, third = await ingress.open_carrying("b")
    carrier.send(frame((carrier.stream, 7)), broken_by)
    await soon(lambda: first.ended and second.ended)
    # What had arrived is still handed out.
    assert (await first.receive()).tokens == [7]
    await lost(first.receive())
    await lost(second.receive())
    elsewhere.send(frame((elsewhere.stream, 9)))
    assert (await third.receive()).tokens == [9]


async def test_a_lost_stream_is_cancelled_should_its_generator_be_alive() -> None:
    ingress = Ingress(silence_s=0.1)
    _, stream = await ingress.open_carrying()
    await lost(stream.receive())
    await soon(lambda: ingress.port.cancelled == [("request-1", "a")])
    ingress.client.close(stream)
    assert ingress.client.open_streams == 0
    await end(ingress)


async def test_a_generator_whose_call_broke_is_not_asked_to_cancel(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    carrier.send(RayActorError())
    await lost(stream.receive())
    ingress.client.close(stream)
    await soon(lambda: len(ingress.client._tasks) == 1)  # the watchdog
    assert ingress.port.cancelled == []


async def test_a_finished_stream_is_not_cancelled(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    carrier.send(frame((carrier.stream, 7), finished=(carrier.stream,)))
    await stream.receive()
    ingress.client.close(stream)
    again, opening = await ingress.open()
    again.send(Admitted("a", carries_frames=False), None)
    await opening
    assert ingress.port.cancelled == []


async def test_the_end_of_an_old_channel_does_not_touch_the_new_one(ingress: Ingress) -> None:
    old, first = await ingress.open_carrying()
    old.send(frame(finished=(old.stream,)))
    await first.receive()
    ingress.client.close(first)
    new, second = await ingress.open_carrying()
    old.send(None)
    await asyncio.wait_for(old.over.wait(), 5)
    new.send(frame((new.stream, 8)))
    assert (await asyncio.wait_for(second.receive(), 5)).tokens == [8]


async def test_a_replica_that_dies_before_admission_costs_a_try(ingress: Ingress) -> None:
    first, opening = await ingress.open()
    first.send(RayActorError())
    second = await ingress.port.next_call(1)
    second.send(Admitted("b", carries_frames=True))
    stream = await opening
    # Whatever the first try may still produce is not part of the reply.
    second.send(frame((first.stream, 6), (second.stream, 7)))
    assert (await stream.receive()).tokens == [7]
    assert ingress.client.open_streams == 1


async def test_after_some_tries_there_is_no_generator(ingress: Ingress) -> None:
    _, opening = await ingress.open()
    for number in range(ADMISSION_TRIES):
        (await ingress.port.next_call(number)).send(RayActorError())
    await lost(opening)
    await soon(lambda: ingress.client.open_streams == 0)
    assert len(ingress.port.calls) == ADMISSION_TRIES


async def test_while_the_only_replica_stops_a_request_waits_for_the_next_one(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator_client, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(generator_client, "_LONGEST_PAUSE_S", 0.002)
    _, opening = await ingress.open()
    for number in range(4 * ADMISSION_TRIES):
        (await ingress.port.next_call(number)).send(GeneratorStopping("stops"))
    last = await ingress.port.next_call(4 * ADMISSION_TRIES)
    last.send(Admitted("new", carries_frames=True))
    assert not (await opening).ended


async def test_while_none_is_up_a_request_waits_longer_than_for_an_answer() -> None:
    up: list[str] = []
    ingress = Ingress(admission_s=0.02, start_s=30.0, replicas=lambda: up)
    _, opening = await ingress.open()
    third = await ingress.port.next_call(2)  # two were given up
    up.append("new")
    third.send(Admitted("new", carries_frames=True))
    assert not (await opening).ended
    await end(ingress)


async def test_a_request_waits_for_a_replica_no_longer_than_for_its_start() -> None:
    ingress = Ingress(admission_s=0.02, start_s=0.05, replicas=list)
    _, opening = await ingress.open()
    with pytest.raises(Overloaded):
        await asyncio.wait_for(opening, 5)
    await soon(lambda: ingress.client.open_streams == 0)
    await end(ingress)


async def test_a_request_waits_for_a_replica_no_longer_than_its_own_time() -> None:
    ingress = Ingress(admission_s=0.02, replicas=list)
    _, opening = await ingress.open(timeout_s=0.1)
    with pytest.raises(Overloaded):
        await asyncio.wait_for(opening, 5)
    await end(ingress)


@pytest.mark.parametrize("refusal", [Overloaded("full"), InvalidRequest("no")])
async def test_a_refusal_is_passed_on_at_once(ingress: Ingress, refusal: ParleyError) -> None:
    call, opening = await ingress.open()
    call.send(refusal)
    with pytest.raises(type(refusal)):
        await opening
    await soon(lambda: ingress.client.open_streams == 0)
    assert len(ingress.port.calls) == 1


async def test_a_replica_that_does_not_answer_is_an_overload_and_the_call_is_ended() -> None:
    ingress = Ingress(admission_s=0.05)
    call, opening = await ingress.open()
    with pytest.raises(Overloaded):
        await opening
    await asyncio.wait_for(call.over.wait(), 5)
    await soon(lambda: ingress.client.open_streams == 0)
    await end(ingress)


async def test_an_opening_given_up_is_cancelled_once_it_is_admitted(ingress: Ingress) -> None:
    call, opening = await ingress.open()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    call.send(Admitted("a", carries_frames=True))
    await soon(lambda: ingress.port.cancelled == [("request-1", "a")])
    assert ingress.client.open_streams == 0
    # Its call carries on: other streams may come to use it.
    other, opening = await ingress.open()
    other.send(Admitted("a", carries_frames=False), None)
    stream = await opening
    call.send(frame((other.stream, 8)))
    assert (await stream.receive()).tokens == [8]
    assert other.load == {}


async def test_an_opening_given_up_and_refused_leaves_nothing(ingress: Ingress) -> None:
    call, opening = await ingress.open()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    call.send(Overloaded("full"))
    await soon(lambda: ingress.client.open_streams == 0)
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    await soon(lambda: len(ingress.client._tasks) == 1)  # the watchdog
    gc.collect()
    assert complaints == []


async def test_routing_is_told_how_many_streams_each_replica_has(ingress: Ingress) -> None:
    _, first = await ingress.open_carrying("a")
    _, second = await ingress.open_carrying("b")
    call, opening = await ingress.open()
    call.send(Admitted("a", carries_frames=False), None)
    await opening
    ingress.client.close(second)
    call, opening = await ingress.open()
    assert call.load == {"a": 2}
    opening.cancel()
    call.send(Overloaded("full"))
    ingress.client.close(first)
    ingress.client.close(first)
    call, opening = await ingress.open()
    assert call.load == {"a": 1}
    opening.cancel()


async def test_silence_is_loss() -> None:
    ingress = Ingress(silence_s=0.1)
    carrier, stream = await ingress.open_carrying()
    await lost(stream.receive())
    await asyncio.wait_for(carrier.over.wait(), 5)
    await end(ingress)


async def test_a_carrier_that_never_comes_is_loss() -> None:
    ingress = Ingress(silence_s=0.1)
    call, opening = await ingress.open()
    call.send(Admitted("a", carries_frames=False), None)
    await lost((await opening).receive())
    await end(ingress)


class Clock:
    """Stands still unless the test moves it, however long the machine takes.

    Attributes:
        now: what it shows.
        looks: how often somebody has looked at it.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now


async def test_heartbeats_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(generator_client, "time", clock)
    ingress = Ingress(silence_s=0.02)
    carrier, stream = await ingress.open_carrying()
    (channel,) = ingress.client._channels.values()
    receiving = asyncio.create_task(stream.receive())
    for _ in range(20):
        seen = clock.looks
        clock.now += 0.015
        await soon(lambda seen=seen: clock.looks > seen)  # only the watch looks now
        carrier.send(Frame())
        await soon(lambda: channel.last_frame == clock.now)
    assert not receiving.done()
    carrier.send(frame((carrier.stream, 7)))
    assert (await receiving).tokens == [7]
    await end(ingress)


async def test_an_ingress_that_no_longer_watches_is_unhealthy(ingress: Ingress) -> None:
    ingress.client.check()
    await ingress.open_carrying()
    ingress.client.check()
    await end(ingress)
    with pytest.raises(RuntimeError, match="watch"):
        ingress.client.check()


async def test_after_a_full_queue_nobody_is_sent_there_for_a_moment(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "FULL_FOR_S", 0.05)
    client = ingress.client
    assert has_room(ingress)
    call, opening = await ingress.open()
    call.send(QueueFull("The queue is full.", retry_after=7.0))
    with pytest.raises(QueueFull):
        await opening
    with pytest.raises(QueueFull, match="The queue is full") as refused:
        client.check_room()
    assert refused.value.retry_after == 7.0
    await soon(lambda: has_room(ingress))


async def test_a_generator_that_stops_is_no_full_queue(ingress: Ingress) -> None:
    call, opening = await ingress.open()
    call.send(Overloaded("This generator is stopping."))
    with pytest.raises(Overloaded):
        await opening
    ingress.client.check_room()


def has_room(ingress: Ingress, count: int = 1) -> bool:
    try:
        with ingress.client.promise(count):
            return True
    except QueueFull:
        return False


def said(places: int, others: int = 0) -> Frame:
    return Frame(room=Room(places, others, drain_s=3.0))


async def test_a_full_replica_is_known_to_be_full_until_a_stream_there_ends() -> None:
    ingress = Ingress(replicas=lambda: ["a"])
    carrier, first = await ingress.open_carrying()
    carrier.send(said(2))
    await soon(lambda: not has_room(ingress, 2))
    assert has_room(ingress)
    other, opening = await ingress.open()
    other.send(Admitted("a", carries_frames=False), None)
    second = await opening
    assert not has_room(ingress)
    # The generator has ended it, whether or not its reader has come so far.
    carrier.send(frame((carrier.stream, 7), finished=(carrier.stream,)))
    await soon(lambda: has_room(ingress))
    ingress.client.close(first)
    assert not has_room(ingress, 2)
    ingress.client.close(second)  # cancelled
    assert has_room(ingress, 2)
    assert not has_room(ingress, 3)
    await end(ingress)


async def test_a_stream_that_ends_before_its_admission_is_told_takes_no_place() -> None:
    ingress = Ingress(replicas=lambda: ["a"])
    carrier, _ = await ingress.open_carrying()
    other, opening = await ingress.open()
    carrier.send(said(2), frame((other.stream, 7), finished=(other.stream,)))
    await soon(lambda: not has_room(ingress, 2))
    other.send(Admitted("a", carries_frames=False), None)
    await opening
    assert has_room(ingress)
    await end(ingress)


async def test_what_a_lost_replica_said_refuses_nobody() -> None:
    ingress = Ingress(replicas=lambda: ["a"])
    carrier, stream = await ingress.open_carrying()
    carrier.send(said(1))
    await soon(lambda: not has_room(ingress))
    carrier.send(RayActorError())
    await lost(stream.receive())
    assert has_room(ingress, 9)
    await end(ingress)


async def test_a_channel_that_ends_for_want_of_streams_leaves_what_was_said() -> None:
    ingress = Ingress(replicas=lambda: ["a"])
    carrier, stream = await ingress.open_carrying()
    carrier.send(said(2), frame((carrier.stream, 7), finished=(carrier.stream,)), None)
    await soon(lambda: not ingress.client._channels)
    ingress.client.close(stream)
    assert has_room(ingress, 2)
    assert not has_room(ingress, 3)
    await end(ingress)


async def test_a_new_stream_is_sent_past_a_full_replica_and_one_that_moves_is_not() -> None:
    ingress = Ingress(replicas=lambda: ["a", "b"], max_moves=1)
    carrier, _ = await ingress.open_carrying("a")
    carrier.send(said(1))
    await soon(lambda: ingress.client._rooms.full() == ["a"])
    elsewhere, opening = await ingress.open()
    assert elsewhere.load == {"a": LOST_LOAD}
    elsewhere.send(Admitted("b", carries_frames=True), RayActorError())
    await opening
    moving = await ingress.port.next_call(2)
    assert moving.load == {"a": 1, "b": LOST_LOAD}
    await end(ingress)


async def test_routing_counts_a_stream_from_its_call_to_its_end() -> None:
    own = OwnStreams()
    ingress = Ingress(own=own, max_moves=1)
    try:
        call, opening = await ingress.open()
        own.route("request-1", "b")  # what the router does
        assert own.counts() == {"b": 1}
        # Serve has passed over that one.
        call.send(Admitted("a", carries_frames=True))
        stream = await opening
        assert own.counts() == {"a": 1}
        call.send(None)  # the replica is gone
        moved = await ingress.port.next_call(1)
        assert own.counts() == {}
        moved.send(Admitted("b", carries_frames=True))
        await soon(lambda: own.counts() == {"b": 1})
        ingress.client.close(stream)
        assert own.counts() == {}
    finally:
        await end(ingress)


async def test_routing_does_not_count_a_stream_that_nobody_took() -> None:
    own = OwnStreams()
    ingress = Ingress(own=own)
    try:
        call, opening = await ingress.open()
        own.route("request-1", "a")
        call.send(QueueFull("full"))
        with pytest.raises(QueueFull):
            await opening
        assert own.counts() == {}
        # Nor one whose client has left before it was taken.
        call, opening = await ingress.open()
        own.route("request-2", "a")
        opening.cancel()
        call.send(Admitted("a", carries_frames=True))
        await soon(lambda: ("request-2", "a") in ingress.port.cancelled)
        assert own.counts() == {}
    finally:
        await end(ingress)
