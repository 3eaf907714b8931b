"""The choices of one request while they are generated: from token streams to deltas and replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from serve_app.api.errors import deadline_exceeded, failure
from serve_app.api.reply import Reply, TokenLogprob, Usage
from serve_app.errors import GeneratorLost, ParleyError
from serve_app.ingress.assembly import Delta, StreamAssembly
from serve_app.ingress.generation_account import book_generation
from serve_app.ingress.generator_client import GeneratorClient
from serve_app.ingress.inference_span import Inference, InferenceSpan
from serve_app.ingress.models import ModelService
from serve_app.ingress.request_account import current_account
from serve_app.ingress.stop_strings import StopStrings
from serve_app.ingress.streams import TokenStream
from serve_app.messages.generation import Finished, FinishReason, GenerateRequest
from serve_app.telemetry.metrics import STEP_BUCKETS
from serve_app.telemetry.origin import Origin
from serve_app.telemetry.reply_metrics import ReplyMetrics
from serve_app.telemetry.tally import Tally

__all__ = ["ChoiceReply", "Generation"]

SETTLE_S = 2.0
"""After a stop string the generator is asked to stop; it says what the stream cost in this time."""

# What vLLM calls it, and so what its dashboards look for.
_VLLM_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.DEADLINE: "abort",
    FinishReason.ERROR: "error",
    FinishReason.HANDED_BACK: "error",
}


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
        first_token_s: seconds from the request's arrival to its first token, once that has come.
    """

    __slots__ = (
        "_assembly",
        "_client",
        "_clock",
        "_metrics",
        "_request",
        "_stream",
        "finished",
        "first_token_s",
        "reply",
    )

    def __init__(
        self,
        client: GeneratorClient,
        request: GenerateRequest,
        stream: TokenStream,
        assembly: StreamAssembly,
        clock: _Clock,
        metrics: ReplyMetrics,
    ) -> None:
        self._client = client
        self._request = request
        self._stream = stream
        self._assembly = assembly
        self._clock = clock
        self._metrics = metrics
        self.reply: Reply | None = None
        self.finished: Finished | None = None
        self.first_token_s: float | None = None

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
        gaps = Tally(STEP_BUCKETS)
        finished: Finished | None = None
        while finished is None:
            arrived = await self._stream.receive()
            if arrived.tokens:
                now = self._clock.since()
                if first:
                    gaps.add(now - last)
                else:
                    first = self.first_token_s = now
                    self._metrics.first_token(first)
                last = now
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
        stopped = assembly.stopped_by is not None
        self._metrics.ended(
            "stop" if stopped else _VLLM_REASONS[finished.reason],
            tokens=assembly.tokens,
            spoke_s=last - first,
            gaps=gaps,
            queue_s=finished.queue_s,
        )
        if (error := failure(finished)) is not None and not stopped:
            raise error
        if (delta := assembly.finish()) is not None:
            yield keep([delta])
        reason = FinishReason.STOP if stopped else finished.reason
        self.finished = replace(finished, reason=reason, completion_tokens=assembly.tokens)
        wants_logprobs = self._request.sampling.logprobs is not None
        self.reply = Reply("".join(pieces), reason, logprobs if wants_logprobs else None)

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
        measured: whether metrics tell of it.

    Attributes:
        account: that of the request on whose behalf it was made.
        choices: what has been opened.
    """

    def __init__(self, *, limit_s: float, measured: bool = True) -> None:
        self._limit_s = limit_s
        self._measured = measured
        self._metrics = ReplyMetrics(None)
        self._clock = _Clock(time.perf_counter())
        self._streams: list[tuple[GeneratorClient, TokenStream]] = []
        self._opened_at: float | None = None
        self.account = current_account()
        self.choices: list[ChoiceReply] = []
        self._span: InferenceSpan | None = None
        self._origin: Origin | None = None
        self._model = ""
        self._broken = ""

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
        self,
        model: ModelService,
        requests: Sequence[GenerateRequest],
        stop: Sequence[str],
        inference: Inference | None = None,
    ) -> None:
        """Submit one request per choice, each with the time that is left for it.

        The first one goes ahead, so that the others find its prompt in the cache and go to the
        same replica.

        Args:
            model: generates them.
            requests: one per choice.
            stop: strings that end a reply.
            inference: what it is, for traces; None tells them nothing.

        Raises:
            DeadlineExceeded: no time is left.
            ParleyError: a choice was refused; none runs then.
        """
        stops = StopStrings(stop) if stop else None
        self._span = InferenceSpan(inference, requests)
        self._origin = self._span.span.origin()
        self._model = model.name
        self._metrics = ReplyMetrics(model.name if self._measured else None)
        self._opened_at = time.perf_counter()
        try:
            async with self.in_time():
                for request in requests:
                    await self._open(model, request, stops)
        except BaseException as error:
            self._span.fail(error.code if isinstance(error, ParleyError) else "cancelled")
            self.close()
            raise

    async def _open(
        self, model: ModelService, request: GenerateRequest, stops: StopStrings | None
    ) -> None:
        left_s = self._limit_s - self._clock.since()
        if left_s <= 0:
            raise deadline_exceeded()
        request = replace(request, timeout_s=left_s, origin=self._origin)
        client = model.generators
        stream = await client.open(request)
        self._streams.append((client, stream))
        assembly = StreamAssembly(
            model.table, stops, logprobs=request.sampling.logprobs is not None
        )
        self.choices.append(
            ChoiceReply(client, request, stream, assembly, self._clock, self._metrics)
        )

    def close(self) -> None:
        """Cancel what still runs."""
        self._book()
        for client, stream in self._streams:
            client.close(stream)
        span, self._span = self._span, None
        if span is not None:
            self._end(span)

    def _end(self, span: InferenceSpan) -> None:
        done = [choice for choice in self.choices if choice.finished is not None]
        whole = bool(done) and len(done) == len(self.choices)
        if not whole and self.choices:
            span.fail(self._broken or "cancelled")
        firsts = [each.first_token_s for each in self.choices if each.first_token_s is not None]
        span.end(
            model=self._model,
            usage=self._cost(span.prompts) if whole else None,
            replies=[each.reply for each in done if each.reply is not None],
            first_token_s=min(firsts, default=None),
        )

    def _book(self) -> None:
        """Put what has been generated to the account, once."""
        if self._opened_at is not None:
            book_generation(self.account, self._opened_at, [stream for _, stream in self._streams])
            self._opened_at = None

    async def deltas(self) -> AsyncIterator[tuple[int, list[Delta] | None]]:
        """Yield (choice, deltas) as they come, and (choice, None) when a choice is done.

        Raises:
            ParleyError: a choice broke off.
        """
        try:
            if len(self.choices) == 1:
                async for deltas in self.choices[0].deltas():
                    yield 0, deltas
                yield 0, None
            else:
                async for choice, some in self._merged():
                    yield choice, some
        except ParleyError as error:
            self._broken = error.code
            raise

    async def _merged(self) -> AsyncIterator[tuple[int, list[Delta] | None]]:
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
        usage = self._cost(prompts)
        self._metrics.request(
            seconds=self._clock.since(),
            prompt=usage.prompt_tokens,
            cached=usage.cached_tokens,
            completions=[
                choice.finished.completion_tokens for choice in self.choices if choice.finished
            ],
        )
        return usage

    def _cost(self, prompts: int) -> Usage:
        finished = [choice.finished for choice in self.choices if choice.finished]
        each = len(finished) // prompts
        usage = Usage(0, 0, 0)
        for first in range(0, len(finished), each):
            usage += Usage.of(finished[first : first + each])
        self._book()
        self.account.usage, self.account.choices = usage, len(self.choices)
        return usage
