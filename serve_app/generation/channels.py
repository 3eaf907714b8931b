"""Brings the engine's frames to the subscribers' open calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from itertools import chain

from serve_app.messages.generation import Frame

__all__ = ["FrameChannels"]

HEARTBEAT_S = 1.0
"""An open channel carries at least one frame, empty if need be, in this time."""
LINGER_S = 2.0
"""An open channel without streams stays open this long for the next one."""


MOST_TOGETHER = 8
"""So many steps' frames, if they have had to wait, travel as one."""


class _Channel:
    """One subscriber's frames that are yet to be sent, and its streams that are yet to end."""

    __slots__ = ("arrived", "frames", "streams")

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.arrived = asyncio.Event()
        self.streams: set[int] = set()


class FrameChannels:
    """One open call per subscriber, carrying the frames of all its streams here.

    Everything but `deliver` runs on the event loop, so that opening a stream and closing an idle
    channel can't cross each other.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, abandon: Callable[[str], None]) -> None:
        """Make channels on `loop`; `abandon` is told of a subscriber that stopped reading."""
        self._loop = loop
        self._abandon = abandon
        self._channels: dict[str, _Channel] = {}

    @property
    def subscribers(self) -> int:
        """How many subscribers have an open channel."""
        return len(self._channels)

    def deliver(self, frames: Mapping[str, Frame]) -> None:
        """Take one step's frames; called from the engine's thread."""
        self._loop.call_soon_threadsafe(self._dispatch, dict(frames))

    def open_stream(self, subscriber: str, stream: int) -> bool:
        """Take note of a stream; True when the caller must carry the subscriber's frames."""
        channel = self._channels.get(subscriber)
        carries = channel is None
        if channel is None:
            channel = self._channels[subscriber] = _Channel()
        channel.streams.add(stream)
        return carries

    def close(self, subscriber: str) -> None:
        """Close the channel; streams that are still open in it are abandoned."""
        channel = self._channels.pop(subscriber, None)
        if channel is not None and channel.streams:
            self._abandon(subscriber)

    async def frames(self, subscriber: str) -> AsyncGenerator[Frame, None]:
        """Yield the subscriber's frames until it has had no stream for `LINGER_S`.

        A subscriber that keeps up gets one per step. For one that falls behind, frames that wait are
        put together: a message, and what its reader then writes to each client, costs about the same
        however many tokens are in it, so this is how it catches up.

        The channel is closed when this ends, however it ends.
        """
        channel = self._channels[subscriber]
        try:
            while await _more(channel):
                ready, channel.frames = channel.frames, []
                channel.arrived.clear()
                for frame in _together(ready or [Frame()]):
                    yield frame
        finally:
            # A later call may have opened the subscriber's next channel by the time this runs.
            if self._channels.get(subscriber) is channel:
                self.close(subscriber)

    def _dispatch(self, frames: Mapping[str, Frame]) -> None:
        for subscriber, frame in frames.items():
            channel = self._channels.get(subscriber)
            if channel is not None:
                channel.frames.append(frame)
                channel.arrived.set()
                channel.streams.difference_update(ended.stream for ended in frame.finished)


async def _more(channel: _Channel) -> bool:
    """Wait for frames or for the time of a heartbeat; False when the channel may close."""
    if channel.frames:
        return True
    try:
        async with asyncio.timeout(HEARTBEAT_S if channel.streams else LINGER_S):
            await channel.arrived.wait()
    except TimeoutError:
        return bool(channel.streams or channel.frames)
    return True


def _together(frames: Sequence[Frame]) -> Iterator[Frame]:
    for start in range(0, len(frames), MOST_TOGETHER):
        yield _merged(frames[start : start + MOST_TOGETHER])


def _merged(frames: Sequence[Frame]) -> Frame:
    """Put frames into one, in order."""
    if len(frames) == 1:
        return frames[0]
    logprobs = None
    if any(frame.logprobs is not None for frame in frames):
        columns = (frame.logprobs or (None,) * len(frame.tokens) for frame in frames)
        logprobs = tuple(chain.from_iterable(columns))
    return Frame(
        streams=tuple(chain.from_iterable(frame.streams for frame in frames)),
        tokens=tuple(chain.from_iterable(frame.tokens for frame in frames)),
        logprobs=logprobs,
        finished=tuple(chain.from_iterable(frame.finished for frame in frames)),
        begun=tuple(chain.from_iterable(frame.begun for frame in frames)),
    )
