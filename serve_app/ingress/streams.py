"""One stream of tokens as the ingress sees it."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, replace

from serve_app.errors import ParleyError
from serve_app.messages.generation import Begun, Finished, GenerateRequest, TokenLogprobs
from serve_app.telemetry.origin import Origin

__all__ = ["Arrived", "StreamTimes", "TokenStream"]


@dataclass(slots=True)
class Arrived:
    """Everything that came since the last look, in order.

    Attributes:
        tokens: token ids.
        logprobs: aligned with `tokens`; None where the stream didn't ask for them.
        finished: set when the stream has ended and `tokens` are its last.
    """

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]
    finished: Finished | None


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """How long what parts of a stream took, as the generators tell it that had it.

    Attributes:
        queue_s: seconds to a slot.
        prefill_s: seconds from there to the reply's first token.
        decode_s: seconds from there to the last one, of a stream that stayed where it was.
        moving_s: seconds in which nobody had it.
        moving_before_s: those of them before its first token.
        redone_s: seconds that the last generator of a stream that moved took to get to where it was.
    """

    queue_s: float
    prefill_s: float
    decode_s: float
    moving_s: float
    moving_before_s: float
    redone_s: float


class TokenStream:
    """Tokens pushed by the frames' reader, pulled by the request's own task.

    It may go from one generator replica to another; whoever pulls sees nothing of it but a pause.

    Attributes:
        number: the stream's in frames, given anew with each try to submit it.
        replica: unique id of the replica that has it; None while none does.
        moves: how often it has left a replica.
        losses: how often that was because the replica failed: what a stream may have caused itself.
        wanted: False once it has been cancelled or closed, so that nobody lets it go on elsewhere.
        begun_at: when the reply's first token came, in `time.perf_counter` seconds; None before.
        finished_at: when the generator's word came that it has ended, likewise.
    """

    __slots__ = (
        "_begun",
        "_deadline",
        "_error",
        "_finished",
        "_handed_out",
        "_logprobs",
        "_moving_before_s",
        "_moving_s",
        "_request",
        "_tokens",
        "_told",
        "_waiter",
        "begun_at",
        "finished_at",
        "losses",
        "moves",
        "number",
        "replica",
        "wanted",
    )

    def __init__(self, request: GenerateRequest) -> None:
        self.number = 0
        self.replica: str | None = None
        self.moves = 0
        self.losses = 0
        self.wanted = True
        self._request = request
        limit_s = request.timeout_s
        self._deadline = math.inf if limit_s is None else time.monotonic() + limit_s
        self._tokens: list[int] = []
        self._handed_out = 0
        self._logprobs: list[TokenLogprobs | None] = []
        self._begun: Begun | None = None
        self._finished: Finished | None = None
        self.begun_at: float | None = None
        self.finished_at: float | None = None
        self._told: Finished | None = None
        self._moving_s = 0.0
        self._moving_before_s = 0.0
        self._error: ParleyError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def request_id(self) -> str:
        """Id of the stream's request at the replica that has it, another one after each move.

        A cancellation that arrives late ends nothing but what it was meant for.
        """
        name = self._request.request_id
        return f"{name}+{self.moves}" if self.moves else name

    @property
    def origin(self) -> Origin | None:
        """What it is generated for."""
        return self._request.origin

    @property
    def left_s(self) -> float:
        """Seconds of the request's time that are left."""
        return self._deadline - time.monotonic()

    def request(self, subscriber: str) -> GenerateRequest:
        """Return what a replica is asked now: to go on behind the tokens that have arrived.

        Args:
            subscriber: who receives the frames.
        """
        request = replace(
            self._request, request_id=self.request_id, subscriber=subscriber, stream=self.number
        )
        if not self.moves:
            return request
        timeout_s = None if request.timeout_s is None else max(self.left_s, 0.0)
        return replace(request, output=tuple(self._tokens), timeout_s=timeout_s, moves=self.moves)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finished or self._error is not None

    @property
    def finished(self) -> bool:
        """Whether the generator itself has ended it, and so no longer spends anything on it."""
        return self._finished is not None

    def push(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Add a token."""
        self._tokens.append(token)
        self._logprobs.append(logprobs)
        self._wake()

    def begin(self, begun: Begun) -> None:
        """Take note of what the replica that began the reply says of it."""
        self._begun = begun
        self.begun_at = time.perf_counter()
        self._moving_before_s = self._moving_s

    def moved(self, moving_s: float) -> None:
        """Take note that another replica has it, after so many seconds in which none had."""
        self._moving_s += moving_s

    @property
    def times(self) -> StreamTimes:
        """How long it took; call it once it has finished.

        Raises:
            ValueError: it hasn't.
        """
        told, begun = self._told, self._begun
        if told is None:
            msg = f"{self.request_id} has not finished, so nobody knows how long it took."
            raise ValueError(msg)
        before_s = self._moving_s if begun is None else self._moving_before_s
        moved_since = self._moving_s > before_s
        # A replica of the version before doesn't say how long its prefill took.
        prefill_s = getattr(begun, "prefill_s", 0.0) if moved_since else told.prefill_s
        return StreamTimes(
            queue_s=begun.queue_s if moved_since and begun is not None else told.queue_s,
            prefill_s=prefill_s,
            decode_s=told.decode_s,
            moving_s=self._moving_s,
            moving_before_s=before_s,
            redone_s=told.queue_s + told.prefill_s if moved_since else 0.0,
        )

    def finish(self, finished: Finished) -> None:
        """Mark the end; tokens pushed before are still handed out.

        The account is that of the replica that began the reply: what a later one found in its cache,
        or waited for, is not what the request cost.
        """
        self._told, self.finished_at = finished, time.perf_counter()
        if self.moves and self._begun is not None:
            finished = replace(
                finished, cached_tokens=self._begun.cached_tokens, queue_s=self._begun.queue_s
            )
        self._finished = finished
        self._wake()

    def fail(self, error: ParleyError) -> None:
        """End the stream with an error, unless it has ended already."""
        if not self.ended:
            self._error = error
            self._wake()

    async def receive(self) -> Arrived:
        """Wait for something to arrive and return all of it.

        Raises:
            ParleyError: why the stream broke, once the tokens before it have been handed out.
        """
        while len(self._tokens) == self._handed_out and not self.ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        tokens = self._tokens[self._handed_out :]
        if self._error is not None and not tokens:
            raise self._error
        arrived = Arrived(tokens, self._logprobs, self._finished)
        self._handed_out, self._logprobs = len(self._tokens), []
        return arrived

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
