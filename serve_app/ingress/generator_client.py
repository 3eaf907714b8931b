"""Opens streams on generator replicas and hands out what their frames bring."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from serve_app.errors import GeneratorLost, Overloaded, ParleyError, QueueFull
from serve_app.ingress.streams import TokenStream
from serve_app.messages.generation import Admitted, Frame, GenerateRequest

__all__ = ["GeneratorClient", "GeneratorPort"]

logger = logging.getLogger("ray.serve")

ADMISSION_TRIES = 3
"""A replica that dies before it has taken a stream costs one try; the next goes elsewhere."""

FULL_FOR_S = 0.25
"""So long after a full queue nobody else is sent there: a refusal by the generator costs what an
admission does, and under overload these would take the time of those who are answered. A full queue
holds more than a generator answers meanwhile."""


class GeneratorPort(Protocol):
    """The generator deployment as the client calls it."""

    def submit(
        self, request: GenerateRequest, load: Mapping[str, int]
    ) -> AsyncIterator[Admitted | Frame]:
        """Open a stream on the replica that routing chooses."""

    async def cancel(self, request_id: str, replica: str) -> None:
        """End a stream early."""


@dataclass(slots=True)
class _Channel:
    """A replica's frames; `reader` is None while the call that carries them is yet to be seen."""

    last_frame: float
    reader: asyncio.Task[None] | None = None


class GeneratorClient:
    """All streams of one ingress replica.

    Calls to the generator run in tasks with an empty context: Serve cancels the calls made on
    behalf of a request when its client leaves, and one such call may be carrying the frames of
    many other requests.
    """

    def __init__(self, port: GeneratorPort, *, silence_s: float, admission_s: float = 10.0) -> None:
        """Make a client.

        Args:
            port: the generator deployment.
            silence_s: seconds without a frame after which a replica is taken for lost.
            admission_s: seconds in which a replica must take a stream or refuse it.
        """
        self.subscriber = uuid.uuid4().hex
        self._port = port
        self._silence_s = silence_s
        self._admission_s = admission_s
        self._numbers = 0
        self._streams: dict[int, TokenStream] = {}
        self._channels: dict[str, _Channel] = {}
        self._load: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watchdog: asyncio.Task[Any] | None = None
        # What the last full queue said, and the seconds after which it said to come back.
        self._refusal: tuple[str, float | None] = ("", None)
        self._full_until = 0.0

    def check_room(self) -> None:
        """Refuse early what would be refused anyway, before anything is done for it.

        Raises:
            QueueFull: a generator's queue was full a moment ago.
        """
        if time.monotonic() < self._full_until:
            message, retry_after = self._refusal
            raise QueueFull(message, retry_after=retry_after)

    async def open(self, request: GenerateRequest) -> TokenStream:
        """Submit a request; its `subscriber` and `stream` are filled in here.

        Raises:
            Overloaded: every queue is full, or no replica took the stream in time.
            GeneratorLost: replica after replica died before taking it.
            ParleyError: whatever the engine refuses the request with.
        """
        if self._watchdog is None:
            self._watchdog = self._spawn(self._watch())
        stream = TokenStream(request.request_id)
        admission = self._spawn(self._admit(stream, request))
        try:
            await asyncio.shield(admission)
        except BaseException:
            # The client left or the stream was refused. An admission in flight goes on: it must
            # not take a channel that carries other streams down with it.
            admission.add_done_callback(lambda _: self.close(stream))
            raise
        return stream

    def cancel(self, stream: TokenStream) -> None:
        """End a stream early; its last frame, which says what it cost, still arrives."""
        if stream.replica is not None and not stream.finished:
            self._spawn(self._cancel(stream.request_id, stream.replica))

    def close(self, stream: TokenStream) -> None:
        """Forget a stream; one that is still running is cancelled."""
        if self._streams.pop(stream.number, None) is not None:
            self.cancel(stream)
            if stream.replica is not None:
                self._load[stream.replica] -= 1

    def check(self) -> None:
        """Raise when nobody watches over the generators any more: lost ones would hang clients."""
        if self._watchdog is not None and self._watchdog.done():
            message = "the watch over generators has ended"
            raise RuntimeError(message)

    @property
    def open_streams(self) -> int:
        """Streams that have been opened and not closed."""
        return len(self._streams)

    async def _admit(self, stream: TokenStream, request: GenerateRequest) -> None:
        for tries_left in reversed(range(ADMISSION_TRIES)):
            calls = self._port.submit(self._numbered(request, stream), dict(+self._load))
            try:
                async with asyncio.timeout(self._admission_s):
                    admitted = await anext(calls)
            except QueueFull as refusal:
                self._refusal = refusal.message, refusal.retry_after
                self._full_until = time.monotonic() + FULL_FOR_S
                raise
            except ParleyError:
                raise
            except TimeoutError:
                message = "No generator took the request in time; try again shortly."
                raise Overloaded(message, retry_after=1.0) from None
            except Exception as error:
                # Ray's own errors: the replica died, or none is there.
                logger.warning("A generator did not take %s: %r", request.request_id, error)
                if tries_left:
                    await asyncio.sleep(0.05)
                    continue
                message = "No generator is reachable; try again shortly."
                raise GeneratorLost(message, retry_after=1.0) from error
            break
        if not isinstance(admitted, Admitted):
            message = f"the generator's first item was {type(admitted).__name__}, not Admitted"
            raise TypeError(message)
        stream.replica = admitted.replica
        self._load[admitted.replica] += 1
        if admitted.carries_frames:
            channel = _Channel(time.monotonic())
            self._channels[admitted.replica] = channel
            channel.reader = self._spawn(self._read(admitted.replica, channel, calls))
        else:
            self._spawn(_exhaust(calls))
            # The two calls may overtake each other. If the other one broke while this stream was
            # being admitted, no frame comes, and the watchdog gives the replica up.
            self._channels.setdefault(admitted.replica, _Channel(time.monotonic()))

    def _numbered(self, request: GenerateRequest, stream: TokenStream) -> GenerateRequest:
        """Return the request with a new number: what an earlier try may still send goes nowhere."""
        self._streams.pop(stream.number, None)
        self._numbers += 1
        stream.number = self._numbers
        self._streams[stream.number] = stream
        return replace(request, subscriber=self.subscriber, stream=stream.number)

    async def _read(
        self, replica: str, channel: _Channel, calls: AsyncIterator[Admitted | Frame]
    ) -> None:
        """Dispatch frames until the call ends; a stream that is still open then has lost its replica."""
        try:
            async for frame in calls:
                channel.last_frame = time.monotonic()
                if isinstance(frame, Frame):
                    self._dispatch(frame)
        except Exception as error:  # noqa: BLE001  (whatever ended the call, its streams are told)
            logger.warning("The frames of generator %s ended: %r", replica, error)
        finally:
            if self._channels.get(replica) is channel:
                del self._channels[replica]
                self._fail_streams(replica)

    def _dispatch(self, frame: Frame) -> None:
        streams = self._streams
        logprobs = frame.logprobs
        for position, (number, token) in enumerate(zip(frame.streams, frame.tokens, strict=True)):
            stream = streams.get(number)
            if stream is not None:
                stream.push(token, logprobs[position] if logprobs else None)
        for finished in frame.finished:
            stream = streams.get(finished.stream)
            if stream is not None:
                stream.finish(finished)

    def _fail_streams(self, replica: str) -> None:
        for stream in self._streams.values():
            if stream.replica == replica:
                stream.fail(_lost())

    async def _watch(self) -> None:
        """Give up on replicas that stopped sending frames without closing the call."""
        while True:
            await asyncio.sleep(self._silence_s / 4)
            now = time.monotonic()
            for replica, channel in list(self._channels.items()):
                if now - channel.last_frame > self._silence_s:
                    del self._channels[replica]
                    self._fail_streams(replica)
                    if channel.reader is not None:
                        channel.reader.cancel()

    async def _cancel(self, request_id: str, replica: str) -> None:
        try:
            async with asyncio.timeout(self._admission_s):
                await self._port.cancel(request_id, replica)
        except Exception:  # noqa: BLE001  (a replica that is gone runs nothing that could be cancelled)
            return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _exhaust(calls: AsyncIterator[Admitted | Frame]) -> None:
    """Let a call end by itself: dropped halfway, it would be cancelled at the replica."""
    with suppress(Exception):  # it has said what it had to say; the frames come over another one
        async for _ in calls:
            pass


def _lost() -> GeneratorLost:
    return GeneratorLost(
        "The generator that was producing this reply is gone; send the request again.",
        retry_after=1.0,
    )
