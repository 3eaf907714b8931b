"""The generator's end of the channels: one open call per subscriber, and none forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from serve_app.generation import channels
from serve_app.generation.channels import MOST_TOGETHER, FrameChannels
from serve_app.messages.generation import Finished, FinishReason, Frame, TokenLogprobs


class Channels:
    """Channels, and who was abandoned."""

    def __init__(self) -> None:
        self.abandoned: list[str] = []
        self.real = FrameChannels(asyncio.get_running_loop(), self.abandoned.append)


@pytest.fixture
async def made(monkeypatch: pytest.MonkeyPatch) -> Channels:
    monkeypatch.setattr(channels, "HEARTBEAT_S", 0.03)
    monkeypatch.setattr(channels, "LINGER_S", 0.06)
    return Channels()


def tokens(*numbers: int, ended: tuple[int, ...] = ()) -> Frame:
    finished = tuple(Finished(it, FinishReason.STOP, 1, 0, 1, 0.0, 0.0, 0.0) for it in ended)
    return Frame((0,) * len(numbers), numbers, None, finished)


async def next_tokens(frames: AsyncIterator[Frame]) -> tuple[int, ...]:
    """Return the next frame's tokens, past heartbeats."""
    async with asyncio.timeout(5):
        while not (frame := await anext(frames)).tokens:
            pass
    return frame.tokens


async def test_the_first_call_carries_the_frames_of_all(made: Channels) -> None:
    assert made.real.open_stream("x", 1) is True
    assert made.real.open_stream("x", 2) is False
    assert made.real.open_stream("y", 3) is True
    frames = made.real.frames("x")
    made.real.deliver({"x": tokens(1, 2), "y": tokens(3)})
    made.real.deliver({"x": tokens(4)})
    assert await next_tokens(frames) == (1, 2, 4)
    assert await next_tokens(made.real.frames("y")) == (3,)


async def test_a_reader_that_keeps_up_gets_every_step_by_itself(made: Channels) -> None:
    made.real.open_stream("x", 1)
    frames = made.real.frames("x")
    for number in range(3):
        made.real.deliver({"x": tokens(number)})
        assert await next_tokens(frames) == (number,)


async def test_frames_that_wait_travel_together_and_lose_nothing(made: Channels) -> None:
    made.real.open_stream("x", 0)
    frames = made.real.frames("x")
    steps = [tokens(number) for number in range(MOST_TOGETHER + 1)]
    steps[1] = replace(steps[1], logprobs=(TokenLogprobs(-0.5),))
    steps[2] = tokens(2, ended=(7,))
    for step in steps:
        made.real.deliver({"x": step})
    async with asyncio.timeout(5):
        first, second = await anext(frames), await anext(frames)
    assert first.tokens == tuple(range(MOST_TOGETHER))
    assert first.streams == (0,) * MOST_TOGETHER
    assert first.logprobs == (None, TokenLogprobs(-0.5), *(None,) * (MOST_TOGETHER - 2))
    assert [it.stream for it in first.finished] == [7]
    assert second == steps[-1]


async def test_frames_come_from_another_thread_in_order(made: Channels) -> None:
    made.real.open_stream("x", 1)
    frames = made.real.frames("x")

    def step() -> None:
        for number in range(1, 201):
            made.real.deliver({"x": tokens(number)})

    thread = threading.Thread(target=step)
    thread.start()
    came: list[int] = []
    while len(came) < 200:
        came += await next_tokens(frames)
    assert came == list(range(1, 201))
    thread.join()


async def test_an_open_channel_beats(made: Channels) -> None:
    made.real.open_stream("x", 1)
    frames = made.real.frames("x")
    assert await asyncio.wait_for(anext(frames), 5) == Frame()
    assert await asyncio.wait_for(anext(frames), 5) == Frame()


async def test_a_channel_without_streams_closes_after_its_last_frame(made: Channels) -> None:
    made.real.open_stream("x", 1)
    made.real.open_stream("x", 2)
    frames = made.real.frames("x")
    made.real.deliver({"x": tokens(1, ended=(1,))})
    assert await next_tokens(frames) == (1,)
    assert await asyncio.wait_for(anext(frames), 5) == Frame()  # one is still open
    made.real.deliver({"x": tokens(2, ended=(2,))})
    async with asyncio.timeout(5):
        rest = [frame async for frame in frames]
    assert [frame.tokens for frame in rest if frame.tokens] == [(2,)]
    assert (made.real.subscribers, made.abandoned) == (0, [])
    assert made.real.open_stream("x", 3) is True


async def test_a_channel_lingers_for_the_next_stream(made: Channels) -> None:
    made.real.open_stream("x", 1)
    frames = made.real.frames("x")
    made.real.deliver({"x": tokens(1, ended=(1,))})
    assert await next_tokens(frames) == (1,)
    waiting = asyncio.ensure_future(next_tokens(frames))
    await asyncio.sleep(0)
    assert made.real.open_stream("x", 2) is False
    made.real.deliver({"x": tokens(2)})
    assert await waiting == (2,)


@pytest.mark.parametrize("by", ["closing", "cancelling"])
async def test_a_subscriber_that_stops_reading_is_abandoned(made: Channels, by: str) -> None:
    made.real.open_stream("x", 1)
    frames = made.real.frames("x")
    made.real.deliver({"x": tokens(1)})
    assert await next_tokens(frames) == (1,)
    if by == "closing":
        await frames.aclose()  # type: ignore[attr-defined]
    else:
        reading = asyncio.ensure_future(anext(frames))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert (made.real.subscribers, made.abandoned) == (0, ["x"])
    # What the engine still says about its streams goes nowhere.
    made.real.deliver({"x": tokens(2, ended=(1,))})
    await asyncio.sleep(0)
    assert made.real.subscribers == 0


async def test_the_late_end_of_an_old_call_does_not_close_the_next_channel(made: Channels) -> None:
    made.real.open_stream("x", 1)
    old = made.real.frames("x")
    made.real.deliver({"x": tokens(1)})
    assert await next_tokens(old) == (1,)
    made.real.close("x")
    assert made.real.open_stream("x", 2) is True
    new = made.real.frames("x")
    made.real.deliver({"x": tokens(2)})
    assert await next_tokens(new) == (2,)
    await old.aclose()  # type: ignore[attr-defined]
    assert (made.real.subscribers, made.abandoned) == (1, ["x"])
    made.real.deliver({"x": tokens(3)})
    assert await next_tokens(new) == (3,)


async def test_what_old_streams_still_say_does_not_end_the_new_ones(made: Channels) -> None:
    made.real.open_stream("x", 1)
    made.real.close("x")
    made.real.open_stream("x", 2)
    frames = made.real.frames("x")
    made.real.deliver({"x": tokens(5, ended=(1,))})
    assert await next_tokens(frames) == (5,)
    assert await asyncio.wait_for(anext(frames), 5) == Frame()  # a heartbeat: 2 is still open
