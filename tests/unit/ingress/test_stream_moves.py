"""Streams that go from one generator to another, against replicas that are played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from played_generators import Call, Ingress, end, frame, lost, soon
from ray.exceptions import RayActorError

from serve_app.errors import GeneratorStopping, InvalidRequest, Overloaded
from serve_app.ingress import generator_client
from serve_app.messages.generation import Admitted, Begun, Finished, FinishReason, Frame
from serve_app.telemetry import metrics


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_client, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(generator_client, "_LONGEST_PAUSE_S", 0.01)


@pytest.fixture
async def ingress() -> AsyncIterator[Ingress]:
    made = Ingress(max_moves=2)
    yield made
    await end(made)


def ended(stream: int, reason: FinishReason, *, cached: int = 0, tokens: int = 1) -> Frame:
    return Frame(finished=(Finished(stream, reason, 2, cached, tokens, 0.5, 0.0, 0.0),))


async def taken_over(ingress: Ingress, number: int, replica: str = "b") -> Call:
    call = await ingress.port.next_call(number)
    call.send(Admitted(replica, carries_frames=True))
    return call


def moves(cause: str) -> float:
    return metrics.MOVES.labels(cause)._value.get()  # type: ignore[attr-defined]


@pytest.mark.parametrize("broken_by", [RayActorError(), None])
async def test_a_lost_stream_goes_on_behind_what_has_arrived(
    ingress: Ingress, broken_by: Exception | None
) -> None:
    before = moves("lost")
    carrier, stream = await ingress.open_carrying(timeout_s=30.0, affinity="k", priority=3)
    carrier.send(frame((carrier.stream, 7)))
    assert (await stream.receive()).tokens == [7]
    carrier.send(frame((carrier.stream, 8), (carrier.stream, 9)), broken_by)
    second = await taken_over(ingress, 1)
    asked = second.request
    assert (asked.prompt, asked.output, asked.sampling) == (
        carrier.request.prompt,
        (7, 8, 9),
        carrier.request.sampling,
    )
    assert (asked.affinity, asked.priority, asked.moves) == ("k", 3, 1)
    assert 0 < asked.timeout_s < 30.0
    assert asked.request_id != carrier.request.request_id
    second.send(frame((second.stream, 10)), ended(second.stream, FinishReason.LENGTH))
    await soon(lambda: stream.ended)
    arrived = await stream.receive()
    assert (arrived.tokens, arrived.finished.reason) == ([8, 9, 10], FinishReason.LENGTH)
    assert moves("lost") == before + 1


async def test_all_streams_of_a_lost_replica_go_on_and_no_others(ingress: Ingress) -> None:
    carrier, first = await ingress.open_carrying("a")
    other, opening = await ingress.open()
    other.send(Admitted("a", carries_frames=False), None)
    second = await opening
    elsewhere, third = await ingress.open_carrying("b")
    carrier.send(RayActorError())
    calls = [await ingress.port.next_call(number) for number in (3, 4)]
    for call in calls:
        # It has a replica's load known to be lost beyond all others'.
        assert call.load["a"] > 1000 * call.load["b"]
        call.send(Admitted("b", carries_frames=False), None)
    elsewhere.send(
        frame(*((call.stream, 5) for call in calls), (elsewhere.stream, 6)),
    )
    assert [(await it.receive()).tokens for it in (first, second, third)] == [[5], [5], [6]]
    assert len(ingress.port.calls) == 5


async def test_what_the_lost_replica_may_still_send_is_no_part_of_the_reply() -> None:
    ingress = Ingress(silence_s=0.1, max_moves=1)
    carrier, stream = await ingress.open_carrying()
    second = await ingress.port.next_call(1)
    # Should it be alive, it is told to stop, and the id is its own.
    await soon(lambda: ingress.port.cancelled == [("request-1", "a")])
    second.send(Admitted("b", carries_frames=True))
    second.send(frame((carrier.stream, 6), (second.stream, 7)))
    assert (await stream.receive()).tokens == [7]
    ingress.client.close(stream)
    await soon(lambda: ingress.port.cancelled[1:] == [("request-1+1", "b")])
    await end(ingress)


async def test_a_stream_that_is_handed_back_goes_on_elsewhere(ingress: Ingress) -> None:
    before = moves("handed_back")
    carrier, stream = await ingress.open_carrying()
    carrier.send(frame((carrier.stream, 7)), ended(carrier.stream, FinishReason.HANDED_BACK))
    second = await taken_over(ingress, 1)
    assert second.request.output == (7,)
    second.send(frame((second.stream, 8)))
    await soon(lambda: moves("handed_back") == before + 1)
    assert not stream.ended
    # The replica that handed it back has forgotten it.
    assert ingress.port.cancelled == []


async def test_so_many_moves_and_no_more(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    for number, token in ((1, 7), (2, 8)):
        carrier.send(frame((carrier.stream, token)), RayActorError())
        carrier = await taken_over(ingress, number, f"replica-{number}")
    assert carrier.request.output == (7, 8)
    carrier.send(RayActorError())
    assert (await stream.receive()).tokens == [7, 8]
    await lost(stream.receive())
    assert len(ingress.port.calls) == 3


async def test_replicas_that_stop_in_good_order_use_up_no_moves(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    for number in range(1, 9):  # a rolling update of many replicas, one after the other
        carrier.send(
            frame((carrier.stream, number)), ended(carrier.stream, FinishReason.HANDED_BACK)
        )
        carrier = await taken_over(ingress, number, f"replica-{number}")
    assert carrier.request.output == tuple(range(1, 9))
    assert not stream.ended


async def test_a_replica_that_hands_back_since_it_fails_uses_up_a_move(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    for number in (1, 2, 3):
        handed_back = ended(carrier.stream, FinishReason.HANDED_BACK)
        (last,) = handed_back.finished
        carrier.send(replace(handed_back, finished=(replace(last, error_code="generator_lost"),)))
        if number < 3:
            carrier = await taken_over(ingress, number, f"replica-{number}")
    await lost(stream.receive())
    assert len(ingress.port.calls) == 3


@pytest.mark.parametrize(
    "refusal", [RayActorError(), GeneratorStopping("stopping"), Overloaded("full")]
)
async def test_it_waits_until_a_replica_takes_it(ingress: Ingress, refusal: Exception) -> None:
    carrier, stream = await ingress.open_carrying(timeout_s=30.0)
    carrier.send(frame((carrier.stream, 7)), RayActorError())
    for number in range(1, 9):
        (await ingress.port.next_call(number)).send(refusal)
    second = await taken_over(ingress, 9)
    assert second.request.moves == 1  # tries are no moves
    second.send(frame((second.stream, 8)))
    await soon(lambda: not stream.ended and len(stream.request("").output) == 2)
    assert (await stream.receive()).tokens == [7, 8]


async def test_it_waits_no_longer_than_the_requests_own_time(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying(timeout_s=0.2)
    carrier.send(RayActorError())
    await ingress.port.next_call(1)  # nobody answers
    await lost(stream.receive())


async def test_where_the_service_ends_nobody_waits() -> None:
    ingress = Ingress(max_moves=3, shutting_down=lambda: True)
    carrier, stream = await ingress.open_carrying()
    carrier.send(ended(carrier.stream, FinishReason.HANDED_BACK))
    await lost(stream.receive())
    assert len(ingress.port.calls) == 1
    await end(ingress)


async def test_a_refusal_that_will_not_change_ends_the_stream(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    carrier.send(RayActorError())
    (await ingress.port.next_call(1)).send(InvalidRequest("no"))
    with pytest.raises(InvalidRequest):
        await asyncio.wait_for(stream.receive(), 5)


async def test_what_nobody_foresaw_ends_the_stream_and_does_not_hang_it(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    carrier.send(RayActorError())
    (await ingress.port.next_call(1)).send(Frame())  # instead of an admission
    await lost(stream.receive())


async def test_a_client_that_leaves_between_two_replicas_leaves_nothing(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    carrier.send(RayActorError())
    second = await ingress.port.next_call(1)
    ingress.client.close(stream)
    second.send(Admitted("b", carries_frames=True))
    await soon(lambda: ("request-1+1", "b") in ingress.port.cancelled)
    assert ingress.client.open_streams == 0
    # Its call carries on, for others.
    other, opening = await ingress.open()
    other.send(Admitted("b", carries_frames=False), None)
    second.send(frame((other.stream, 8)))
    assert (await (await opening).receive()).tokens == [8]
    assert "b" not in other.load


async def test_a_stream_that_was_cancelled_does_not_go_on(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    ingress.client.cancel(stream)
    carrier.send(RayActorError())
    await lost(stream.receive())
    carrier, stream = await ingress.open_carrying("b")
    carrier.send(RayActorError())
    await ingress.port.next_call(2)
    ingress.client.cancel(stream)  # between two replicas
    await lost(stream.receive())


async def test_the_account_is_that_of_the_replica_that_began(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying()
    begun = Frame((carrier.stream,), (7,), begun=(Begun(carrier.stream, 16, 0.25),))
    carrier.send(begun, RayActorError())
    second = await taken_over(ingress, 1)
    second.send(ended(second.stream, FinishReason.STOP, cached=2, tokens=5))
    await soon(lambda: stream.ended)
    finished = (await stream.receive()).finished
    assert (finished.cached_tokens, finished.queue_s) == (16, 0.25)
    assert (finished.completion_tokens, finished.reason) == (5, FinishReason.STOP)


async def test_a_replica_whose_idle_call_ended_is_not_passed_over(ingress: Ingress) -> None:
    carrier, stream = await ingress.open_carrying("a")
    carrier.send(frame(finished=(carrier.stream,)), None)
    await stream.receive()
    ingress.client.close(stream)
    await soon(carrier.over.is_set)
    call, opening = await ingress.open()
    assert call.load == {}
    opening.cancel()


async def test_new_requests_pass_a_stopping_replica_by(ingress: Ingress) -> None:
    first, opening = await ingress.open()
    first.send(GeneratorStopping("stopping"))
    second = await taken_over(ingress, 1)
    stream: Any = await opening
    second.send(frame((second.stream, 7)))
    assert (await stream.receive()).tokens == [7]
