"""The choices of one request while they are generated: from token streams to deltas and replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from serve_app.api.errors import deadline_exceeded, failure
from serve_app.api.reply import Reply, TokenLogprob, Usage
from serve_app.errors import GeneratorLost
from serve_app.ingress.assembly import Delta, StreamAssembly
from serve_app.ingress.generator_client import GeneratorClient
from serve_app.ingress.models import ModelService
from serve_app.ingress.stop_strings import StopStrings
from serve_app.ingress.streams import TokenStream
from serve_app.messages.generation import Finished, FinishReason, GenerateRequest
from serve_app.telemetry import metrics

__all__ = ["ChoiceReply", "Generation"]

SETTLE_S = 2.0
"""After a stop string the generator is asked to stop; it says what the stream cost in this time."""


@dataclass(frozen=True, slots=True)
class _Clock:
    """When a request arrived, in `time.perf_counter` seconds."""

    arrived: float

    def since(self) -> float:
        return time.perf_counter() - self.arrived


class ChoiceReply:
    """One choice: iterate `deltas` to the end, then read `reply` and `finished`.

    Attributes:
        reply: the whole reply, once `deltas` has ended.
        finished: what it cost, likewise.
    """

    __slots__ = (
        "_assembly",
        "_client",
        "_clock",
        "_request",
        "_stream",
        "finished",
        "reply",
    )

    def __init__(
        self,
        client: GeneratorClient,
        request: GenerateRequest,
        stream: TokenStream,
        assembly: StreamAssembly,
        clock: _Clock,
    ) -> None:
        self._client = client
        self._request = request
        self._stream = stream
        self._assembly = assembly
        self._clock = clock
        self.reply: Reply | None = None
        self.finished: Finished | None = None

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """Yield the reply piece by piece: all that has come together since the last time, never [].

        Whoever falls behind the generator finds several pieces at once, and what each write costs is
        spent once for all of them.

        Raises:
            ParleyError: the reply broke off; what was yielded before is all there will be.
        """
        pieces: list[str] = []
        logprobs: list[TokenLogprob] = []

        def keep(deltas: list[Delta]) -> list[Delta]:
            for delta in deltas:
                pieces.append(delta.text)
                logprobs.extend(delta.logprobs or ())
            return deltas

        assembly = self._assembly
        first = last = 0.0
        finished: Finished | None = None
        while finished is None:
            arrived = await self._stream.receive()
            if arrived.tokens:
                last = self._clock.since()
                if not first:
                    first = last
                    metrics.TTFT_SECONDS.observe(first)
            ready = [
                delta
                for token, token_logprobs in zip(arrived.tokens, arrived.logprobs, strict=True)
                if (delta := assembly.feed(token, token_logprobs)) is not None
            ]
            if ready:
                yield keep(ready)
            finished = arrived.finished
            if finished is None and assembly.stopped_by is not None:
                finished = await self._stop()
        if (error := failure(finished)) is not None and assembly.stopped_by is None:
            raise error
        if (delta := assembly.finish()) is not None:
            yield keep([delta])
        reason = FinishReason.STOP if assembly.stopped_by is not None else finished.reason
        self.finished = replace(finished, reason=reason, completion_tokens=assembly.tokens)
        wants_logprobs = self._request.sampling.logprobs is not None
        self.reply = Reply("".join(pieces), reason, logprobs if wants_logprobs else None)
        if assembly.tokens > 1:
            metrics.INTER_TOKEN_SECONDS.observe((last - first) / (assembly.tokens - 1))
        metrics.QUEUE_SECONDS.observe(finished.queue_s)

    async def _stop(self) -> Finished:
        """Stop a generation that a stop string has ended, and wait for what it cost."""
        self._client.cancel(self._stream)
        try:
            async with asyncio.timeout(SETTLE_S):
                while True:
                    arrived = await self._stream.receive()
                    if arrived.finished is not None:
                        return arrived.finished
        except (TimeoutError, GeneratorLost):
            # The reply is whole; all that is missing is how much of its prompt was cached.
            return Finished(
                self._stream.number,
                FinishReason.STOP,
                prompt_tokens=len(self._request.prompt),
                cached_tokens=0,
                completion_tokens=self._assembly.tokens,
                queue_s=0.0,
                prefill_s=0.0,
                decode_s=0.0,
            )


class Generation:
    """All choices of one request: `open` it, read it, and `close` it whatever happens.

    Args:
        limit_s: seconds from now in which any request must be done.
    """

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._clock = _Clock(time.perf_counter())
        self._streams: list[tuple[GeneratorClient, TokenStream]] = []
        self.choices: list[ChoiceReply] = []

    @asynccontextmanager
    async def in_time(self, timeout_s: float | None = None) -> AsyncIterator[None]:
        """Bound what comes before generation by the request's time limit.

        Args:
            timeout_s: the request's own limit, counted from its arrival like the server's; it
                holds from here on.

        Raises:
            DeadlineExceeded: nothing of it is left.
        """
        self._limit_s = min(timeout_s or self._limit_s, self._limit_s)
        try:
            async with asyncio.timeout(self._limit_s - self._clock.since()):
                yield
        except TimeoutError:
            raise deadline_exceeded() from None

    async def open(
        self, model: ModelService, requests: Sequence[GenerateRequest], stop: Sequence[str]
    ) -> None:
        """Submit one request per choice, each with the time that is left for it.

        The first one goes ahead, so that the others find its prompt in the cache and go to the
        same replica.

        Args:
            model: generates them.
            requests: one per choice.
            stop: what ends a choice.

        Raises:
            DeadlineExceeded: no time is left.
            ParleyError: a choice was refused; none runs then.
        """
        stops = StopStrings(stop) if stop else None
        try:
            async with self.in_time():
                for request in requests:
                    await self._open(model, request, stops)
        except BaseException:
            self.close()
            raise

    async def _open(
        self, model: ModelService, request: GenerateRequest, stops: StopStrings | None
    ) -> None:
        left_s = self._limit_s - self._clock.since()
        if left_s <= 0:
            raise deadline_exceeded()
        request = replace(request, timeout_s=left_s)
        client = model.generators
        stream = await client.open(request)
        self._streams.append((client, stream))
        assembly = StreamAssembly(
            model.table, stops, logprobs=request.sampling.logprobs is not None
        )
        self.choices.append(ChoiceReply(client, request, stream, assembly, self._clock))

    def close(self) -> None:
        """Cancel what still runs."""
        for client, stream in self._streams:
            client.close(stream)

    async def deltas(self) -> AsyncIterator[tuple[int, list[Delta] | None]]:
        """Yield (choice, deltas) as they come, and (choice, None) when a choice is done.

        Raises:
            ParleyError: a choice broke off.
        """
        if len(self.choices) == 1:
            async for deltas in self.choices[0].deltas():
                yield 0, deltas
            yield 0, None
            return
        merged: asyncio.Queue[tuple[int, list[Delta] | Exception | None]] = asyncio.Queue()

        async def forward(index: int, choice: ChoiceReply) -> None:
            try:
                async for deltas in choice.deltas():
                    merged.put_nowait((index, deltas))
                merged.put_nowait((index, None))
            except Exception as error:  # noqa: BLE001  (raised again where the deltas are read)
                merged.put_nowait((index, error))

        tasks = [
            asyncio.create_task(forward(index, choice)) for index, choice in enumerate(self.choices)
        ]
        try:
            running = len(tasks)
            while running:
                index, item = await merged.get()
                if isinstance(item, Exception):
                    raise item
                running -= item is None
                yield index, item
        finally:
            for task in tasks:
                task.cancel()

    async def replies(self) -> list[Reply]:
        """Wait for all choices and return them whole.

        Raises:
            ParleyError: a choice broke off.
        """
        async for _ in self.deltas():
            pass
        return [choice.reply for choice in self.choices if choice.reply is not None]

    def usage(self, prompts: int = 1) -> Usage:
        """Return what the choices cost together; call it once they are done.

        Args:
            prompts: how many prompts they answer, as many choices each, one prompt after the other.
        """
        finished = [choice.finished for choice in self.choices if choice.finished]
        each = len(finished) // prompts
        usage = Usage(0, 0, 0)
        for first in range(0, len(finished), each):
            usage += Usage.of(finished[first : first + each])
        metrics.E2E_SECONDS.observe(self._clock.since())
        metrics.PROMPT_TOKENS.inc(usage.prompt_tokens)
        metrics.CACHED_TOKENS.inc(usage.cached_tokens)
        metrics.COMPLETION_TOKENS.inc(usage.completion_tokens)
        return usage
