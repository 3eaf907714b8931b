"""Opens streams on generator replicas, hands out what their frames bring, and moves them on."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from serve_app.errors import (
    GeneratorLost,
    GeneratorStopping,
    Overloaded,
    ParleyError,
    QueueFull,
)
from serve_app.ingress.rooms import Rooms
from serve_app.ingress.streams import TokenStream
from serve_app.messages.generation import Admitted, FinishReason, Frame, GenerateRequest
from serve_app.routing.own_streams import OwnStreams, own_streams
from serve_app.routing.pool_choice import LOST_LOAD
from serve_app.telemetry import metrics
from serve_app.telemetry.origin import Origin, detached

__all__ = ["GeneratorClient", "GeneratorPort"]

logger = logging.getLogger("ray.serve")

ADMISSION_TRIES = 3
"""A replica that dies before it has taken a stream costs one try; the next goes elsewhere."""
# Between the tries to have a stream taken over: it may be a while until a replica is up again.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0

_Cause = Literal["lost", "handed_back"]


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

    A stream whose replica is lost, or stops, goes on at another one behind the tokens that have
    arrived here. What is sampled depends on them, the seed and the position alone, so the reply is
    what it would have been.

    Calls to the generator run in tasks with an empty context: Serve cancels the calls made on
    behalf of a request when its client leaves, and one such call may be carrying the frames of
    many other requests.
    """

    def __init__(
        self,
        port: GeneratorPort,
        *,
        silence_s: float,
        max_moves: int,
        admission_s: float = 30.0,
        start_s: float = 180.0,
        replicas: Callable[[], Collection[str]] | None = None,
        shutting_down: Callable[[], bool] = lambda: False,
        own: OwnStreams | None = None,
    ) -> None:
        """Make a client.

        Args:
            port: the generator deployment.
            silence_s: seconds without a frame after which a replica is taken for lost.
            max_moves: how often a stream may lose its replica before it fails. One that is handed back in
                good order has done no harm, and goes on however often.
            admission_s: seconds in which a replica must take a new stream or refuse it.
            start_s: seconds that a new stream waits for a replica while none is up: as the last one is being
                replaced, or the first one started.
            replicas: unique ids of the replicas that are up, as far as anybody here knows; None where
                nobody does.
            shutting_down: whether the whole service is ending, so that no replica will come back.
            own: told of the streams, so that routing counts them; None takes this process's.
        """
        self.subscriber = uuid.uuid4().hex
        self._port = port
        self._silence_s = silence_s
        self._max_moves = max_moves
        self._admission_s = admission_s
        self._start_s = start_s
        self._replicas = replicas
        self._shutting_down = shutting_down
        self._own = own_streams() if own is None else own
        self._numbers = 0
        self._streams: dict[int, TokenStream] = {}
        self._channels: dict[str, _Channel] = {}
        # Streams that each replica has and has not ended.
        self._held: defaultdict[str, set[TokenStream]] = defaultdict(set)
        self._rooms = Rooms(self._load, replicas)
        # Replicas that were lost a moment ago, and until when routing is to pass them over.
        self._shunned: dict[str, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watchdog: asyncio.Task[Any] | None = None

    def check_room(self) -> None:
        """Refuse early what would be refused anyway, before anything is done for it.

        Raises:
            QueueFull: every generator's queue is full.
        """
        self._rooms.check()

    def promise(self, count: int = 1) -> AbstractContextManager[None]:
        """Keep places for streams that are about to be opened, until they are: nobody else is let in for them.

        Args:
            count: how many.

        Raises:
            QueueFull: there are not so many.
        """
        return self._rooms.promise(count)

    async def open(self, request: GenerateRequest) -> TokenStream:
        """Submit a request; its `subscriber` and `stream` are filled in here.

        Raises:
            Overloaded: every queue is full, or no replica took the stream in time.
            GeneratorLost: replica after replica died before taking it.
            ParleyError: whatever the engine refuses the request with.
        """
        if self._watchdog is None:
            self._watchdog = self._spawn(self._watch())
        stream = TokenStream(request)
        admission = self._spawn(self._admit(stream), request.origin)
        try:
            await asyncio.shield(admission)
        except BaseException:
            # The client left or the stream was refused. An admission in flight goes on: it must
            # not take a channel that carries other streams down with it.
            admission.add_done_callback(lambda _: self.close(stream))
            raise
        return stream

    def cancel(self, stream: TokenStream) -> None:
        """End a stream early; its last frame, which says what it cost, still arrives.

        One that is between two replicas fails instead: nobody is left to say it.
        """
        stream.wanted = False
        if stream.finished:
            return
        if stream.replica is None:
            stream.fail(_lost())
        else:
            self._spawn(self._cancel(stream.request_id, stream.replica))

    def close(self, stream: TokenStream) -> None:
        """Forget a stream; one that is still running is cancelled."""
        if self._streams.pop(stream.number, None) is not None:
            self._own.end(stream.request_id)
            self.cancel(stream)
            self._release(stream)

    def check(self) -> None:
        """Raise when nobody watches over the generators any more: lost ones would hang clients."""
        if self._watchdog is not None and self._watchdog.done():
            message = "the watch over generators has ended"
            raise RuntimeError(message)

    @property
    def open_streams(self) -> int:
        """Streams that have been opened and not closed."""
        return len(self._streams)

    async def _admit(self, stream: TokenStream) -> None:
        """Have a replica take a new stream.

        One that dies before it has taken the stream costs a try. One that stops, or none that is up, costs
        time alone: whoever takes its place is waited for.
        """
        started, pause_s, deaths = time.monotonic(), _FIRST_PAUSE_S, 0
        while True:
            waited_s = time.monotonic() - started
            try:
                await self._place(stream, within_s=self._admission_s)
            except GeneratorStopping:
                if waited_s > self._start_s:
                    raise
            except _NotTaken:
                if self._replicas is None or self._replicas() or waited_s > self._start_s:
                    raise
            except GeneratorLost:
                deaths += 1
                if deaths == ADMISSION_TRIES:
                    raise
            else:
                return
            if stream.left_s <= 0 or self._shutting_down():
                raise _not_taken()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _place(self, stream: TokenStream, *, within_s: float) -> None:
        """Have a replica take a stream, with one try.

        Args:
            stream: new, or between two replicas.
            within_s: seconds for an answer.

        Raises:
            Overloaded: every queue is full, or, as `_NotTaken`, no replica took the stream in time.
            GeneratorLost: the replica died or, as `GeneratorStopping`, stops, or there is none.
            ParleyError: whatever the engine refuses the request with.
        """
        self._own.begin(stream.request_id)
        try:
            await self._ask(stream, within_s=within_s)
        except BaseException:
            self._own.end(stream.request_id)
            raise

    async def _ask(self, stream: TokenStream, *, within_s: float) -> None:
        calls = self._port.submit(self._numbered(stream), self._routing_load(stream))
        try:
            async with asyncio.timeout(min(within_s, stream.left_s)):
                admitted = await anext(calls)
        except QueueFull as refusal:
            self._rooms.refused(refusal)
            raise
        except ParleyError:
            raise
        except TimeoutError:
            raise _not_taken() from None
        except Exception as error:
            # Ray's own errors: the replica died, or none is there.
            logger.warning("A generator did not take %s: %r", stream.request_id, error)
            message = "No generator is reachable; try again shortly."
            raise GeneratorLost(message, retry_after=1.0) from error
        if not isinstance(admitted, Admitted):
            message = f"the generator's first item was {type(admitted).__name__}, not Admitted"
            raise TypeError(message)
        self._shunned.pop(admitted.replica, None)
        if stream.wanted:
            stream.replica = admitted.replica
            # Serve may have passed over the one that routing preferred.
            self._own.route(stream.request_id, admitted.replica)
            if not stream.finished:
                self._held[admitted.replica].add(stream)
        else:
            self._own.end(stream.request_id)
            self._spawn(self._cancel(stream.request_id, admitted.replica))
        if admitted.carries_frames:
            channel = _Channel(time.monotonic())
            self._channels[admitted.replica] = channel
            channel.reader = self._spawn(self._read(admitted.replica, channel, calls))
        else:
            self._spawn(_exhaust(calls))
            # The two calls may overtake each other. If the other one broke while this stream was
            # being admitted, no frame comes, and the watchdog gives the replica up.
            self._channels.setdefault(admitted.replica, _Channel(time.monotonic()))

    def _numbered(self, stream: TokenStream) -> GenerateRequest:
        """Return the request with a new number: what an earlier try may still send goes nowhere."""
        self._streams.pop(stream.number, None)
        self._numbers += 1
        stream.number = self._numbers
        self._streams[stream.number] = stream
        return stream.request(self.subscriber)

    def _load(self, replica: str) -> int:
        return len(self._held.get(replica, ()))

    def _release(self, stream: TokenStream) -> None:
        """Take note that a stream's replica no longer has it; once more does no harm."""
        if stream.replica is not None and (held := self._held.get(stream.replica)) is not None:
            held.discard(stream)
            if not held:
                del self._held[stream.replica]

    def _routing_load(self, stream: TokenStream) -> dict[str, int]:
        """Return the streams of each replica, and of those that were just lost more than of any.

        So it is of those that would refuse the stream, as long as another one wouldn't.
        """
        now = time.monotonic()
        self._shunned = {name: until for name, until in self._shunned.items() if until > now}
        load = {replica: len(held) for replica, held in self._held.items()}
        avoided = [*self._shunned, *(() if stream.moves else self._rooms.full())]
        return load | dict.fromkeys(avoided, LOST_LOAD)

    async def _read(
        self, replica: str, channel: _Channel, calls: AsyncIterator[Admitted | Frame]
    ) -> None:
        """Dispatch frames until the call ends; a stream that is still open then has lost its replica."""
        try:
            async for frame in calls:
                channel.last_frame = time.monotonic()
                if isinstance(frame, Frame):
                    if frame.room is not None:
                        self._rooms.report(replica, frame.room)
                        self._own.hear(replica, frame.room.others)
                    self._dispatch(frame)
        except Exception as error:  # noqa: BLE001  (whatever ended the call, its streams are told)
            logger.warning("The frames of generator %s ended: %r", replica, error)
        finally:
            if self._channels.get(replica) is channel:
                del self._channels[replica]
                self._lose(replica)

    def _dispatch(self, frame: Frame) -> None:
        streams = self._streams
        logprobs = frame.logprobs
        for position, (number, token) in enumerate(zip(frame.streams, frame.tokens, strict=True)):
            stream = streams.get(number)
            if stream is not None:
                stream.push(token, logprobs[position] if logprobs else None)
        for begun in frame.begun:
            stream = streams.get(begun.stream)
            if stream is not None:
                stream.begin(begun)
        for finished in frame.finished:
            stream = streams.get(finished.stream)
            if stream is None:
                continue
            if finished.reason is FinishReason.HANDED_BACK:
                self._leave(stream, "handed_back", failed=finished.error_code is not None)
            else:
                self._release(stream)
                stream.finish(finished)

    def _lose(self, replica: str, *, silent: bool = False) -> None:
        """Take all streams off a replica that is dead, or might as well be.

        Args:
            replica: its unique id.
            silent: it may be alive, and must not go on for nobody. One whose call has ended has either
                died or ends the streams of its own accord.
        """
        for stream in list(self._streams.values()):
            if stream.replica == replica and not stream.ended:
                if silent:
                    self._spawn(self._cancel(stream.request_id, replica))
                self._leave(stream, "lost", failed=True)

    def _leave(self, stream: TokenStream, cause: _Cause, *, failed: bool) -> None:
        """Take a stream off its replica, and let it go on elsewhere as often as it may.

        Args:
            stream: of this client.
            cause: what is counted.
            failed: whether the replica did, as it may at whatever else computes the stream.
        """
        self._own.end(stream.request_id)
        if stream.replica is not None:
            self._release(stream)
            self._rooms.forget(stream.replica)
            self._shunned[stream.replica] = time.monotonic() + self._silence_s
            stream.replica = None
        stream.losses += failed
        if stream.wanted and stream.losses <= self._max_moves:
            stream.moves += 1
            self._spawn(self._move(stream, cause), stream.origin)
        else:
            stream.fail(_lost())

    async def _move(self, stream: TokenStream, cause: _Cause) -> None:
        """Let a stream go on behind the tokens it has, as soon as a replica takes it."""
        started, pause_s = time.monotonic(), _FIRST_PAUSE_S
        try:
            while stream.wanted and stream.left_s > 0 and not self._shutting_down():
                try:
                    await self._place(stream, within_s=self._silence_s)
                except (GeneratorLost, Overloaded):
                    await asyncio.sleep(min(pause_s, max(stream.left_s, 0.0)))
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                else:
                    metrics.MOVES.labels(cause).inc()
                    moving_s = time.monotonic() - started
                    stream.moved(moving_s)
                    metrics.MOVE_SECONDS.observe(moving_s)
                    return
            stream.fail(_lost())
        except ParleyError as error:
            stream.fail(error)
        except Exception:
            logger.exception("%s could not be moved", stream.request_id)
            stream.fail(_lost())

    async def _watch(self) -> None:
        """Give up on replicas that stopped sending frames without closing the call."""
        while True:
            await asyncio.sleep(self._silence_s / 4)
            now = time.monotonic()
            for replica, channel in list(self._channels.items()):
                if now - channel.last_frame > self._silence_s:
                    del self._channels[replica]
                    logger.warning("Generator %s has been silent for too long.", replica)
                    self._lose(replica, silent=True)
                    if channel.reader is not None:
                        channel.reader.cancel()

    async def _cancel(self, request_id: str, replica: str) -> None:
        try:
            async with asyncio.timeout(self._admission_s):
                await self._port.cancel(request_id, replica)
        except Exception:  # noqa: BLE001  (a replica that is gone runs nothing that could be cancelled)
            return

    def _spawn(
        self, work: Coroutine[Any, Any, None], origin: Origin | None = None
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=detached(origin))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _exhaust(calls: AsyncIterator[Admitted | Frame]) -> None:
    """Let a call end by itself: dropped halfway, it would be cancelled at the replica."""
    with suppress(Exception):  # it has said what it had to say; the frames come over another one
        async for _ in calls:
            pass


class _NotTaken(Overloaded):
    """No replica has said anything in time."""


def _not_taken() -> _NotTaken:
    return _NotTaken("No generator took the request in time; try again shortly.", retry_after=1.0)


def _lost() -> GeneratorLost:
    return GeneratorLost(
        "The generator that was producing this reply is gone; send the request again.",
        retry_after=1.0,
    )
