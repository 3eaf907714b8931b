"""An open loop: requests are sent when they are due, whether or not earlier ones were answered.

A client that waits for its answer before it asks again asks less when the server is slow, and so
leaves out just the requests that would have waited longest (coordinated omission). Here arrivals are
drawn beforehand, and every latency counts from the moment at which a request was due.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from load.chats import Target
from load.command_line import bearer
from load.dialects import MODES, refusal_kind
from load.http_client import HttpClient, RequestFailed
from load.measurements import Percentiles, Reply
from load.workload import Workload
from serve_app.messages.tokenization import Message

__all__ = ["Arrival", "OpenLevel", "poisson", "send_all"]

Prompt = tuple[Message, ...]


@dataclass(slots=True)
class Arrival:
    """One request and what became of it. Times are seconds on the clock of `Reply`.

    Attributes:
        due_at: when it was to be sent.
        reply: what came of it; its `sent_at` is `due_at`.
        sent_at: when it really was sent.
        ended_at: when its response was over.
        status: HTTP status; 0 where there was none.
        retry_after_s: what a refusal said of when to come back; None where it didn't.
    """

    due_at: float
    reply: Reply
    sent_at: float
    ended_at: float = 0.0
    status: int = 0
    retry_after_s: float | None = None

    @property
    def refused(self) -> bool:
        """Whether the server said that it has no room."""
        return self.status in (429, 503)


@dataclass(frozen=True, slots=True)
class OpenLevel:
    """What came of one rate of arrivals.

    Attributes:
        rate: requests per second that were asked for.
        seconds: in which they arrived.
        requests: requests sent.
        replies: replies that came whole.
        refusals: requests that the server had no room for.
        errors: what else went wrong, by what it was.
        goodput: output tokens per second of replies that came whole, and in time where a TTFT was
            asked for. It counts those that ended in the last three quarters of the seconds, since in
            the first the server fills, and after the last it empties.
        in_time: share of all requests whose reply came whole and in time.
        ttft_ms: from when a request was due to the first of its reply.
        sent_ttft_ms: the same from when it was sent, which is what a closed loop would report.
        e2e_ms: from when a request was due to the end of its reply.
        refusal_ms: from sending a request to the end of its refusal.
        unsaid: refusals that don't say when to come back.
        late_ms: from when a request was due to when it was sent: how late this client is.
        other_length: replies whose prompt had another number of tokens than was asked for.
    """

    rate: float
    seconds: float
    requests: int
    replies: int
    refusals: int
    errors: dict[str, int]
    goodput: float
    in_time: float
    ttft_ms: Percentiles | None
    sent_ttft_ms: Percentiles | None
    e2e_ms: Percentiles | None
    refusal_ms: Percentiles | None
    unsaid: int
    late_ms: Percentiles | None
    other_length: int

    @classmethod
    def of(
        cls,
        arrivals: Sequence[Arrival],
        *,
        rate: float,
        seconds: float,
        began: float,
        prompt_tokens: int | None = None,
        ttft_s: float | None = None,
    ) -> OpenLevel:
        """Add up arrivals.

        Args:
            arrivals: all of them.
            rate: requests per second that were asked for.
            seconds: in which they arrived.
            began: when these seconds began.
            prompt_tokens: tokens that each prompt was to have; None doesn't compare.
            ttft_s: seconds from when a request is due within which its first token is in time.
        """
        whole = [one for one in arrivals if one.reply.error is None]
        refused = [one for one in arrivals if one.refused]
        failed = [one for one in arrivals if one.reply.error is not None and not one.refused]
        good = [
            one
            for one in whole
            if ttft_s is None
            or (one.reply.first_at is not None and one.reply.first_at - one.due_at <= ttft_s)
        ]
        since, until = began + seconds / 4, began + seconds
        tokens = sum(_tokens(one.reply) for one in good if since <= one.ended_at < until)
        first = [(one, one.reply.first_at) for one in whole if one.reply.first_at is not None]
        return cls(
            rate=rate,
            seconds=seconds,
            requests=len(arrivals),
            replies=len(whole),
            refusals=len(refused),
            errors=dict(Counter(str(one.reply.error) for one in failed)),
            goodput=tokens / (until - since),
            in_time=len(good) / len(arrivals) if arrivals else 0.0,
            ttft_ms=Percentiles.of([at - one.due_at for one, at in first]),
            sent_ttft_ms=Percentiles.of([at - one.sent_at for one, at in first]),
            e2e_ms=Percentiles.of([one.ended_at - one.due_at for one in whole]),
            refusal_ms=Percentiles.of([one.ended_at - one.sent_at for one in refused]),
            unsaid=sum(one.retry_after_s is None for one in refused),
            late_ms=Percentiles.of([one.sent_at - one.due_at for one in arrivals]),
            other_length=sum(
                prompt_tokens is not None
                and one.reply.tokens is not None
                and one.reply.tokens.prompt != prompt_tokens
                for one in whole
            ),
        )


def poisson(rate: float, seconds: float, *, seed: int) -> list[float]:
    """Return when requests arrive that know nothing of each other, in seconds from the beginning.

    Args:
        rate: requests per second, on average.
        seconds: no request arrives after these.
        seed: the same one gives the same arrivals.
    """
    chooser = random.Random(seed)
    times: list[float] = []
    now = chooser.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += chooser.expovariate(rate)
    return times


async def send_all(
    target: Target, prompts: Sequence[Prompt], times: Sequence[float], *, output_tokens: int
) -> tuple[float, list[Arrival]]:
    """Send a request at each time, and wait for all of them to end.

    Args:
        target: who is asked.
        prompts: what each request says.
        times: when each is due, in seconds from now.
        output_tokens: tokens of each reply.

    Returns:
        When it began, and what became of each request.
    """
    idle: list[HttpClient] = []
    workload = Workload(output_tokens=output_tokens)
    headers = bearer(target.api_key)

    async def send(prompt: Prompt, due_at: float) -> Arrival:
        client = idle.pop() if idle else HttpClient(target.address, headers)
        arrival = await _ask(target, workload, prompt, client, due_at)
        idle.append(client)
        return arrival

    began = time.perf_counter()
    tasks = []
    try:
        for prompt, due in zip(prompts, times, strict=True):
            await asyncio.sleep(max(began + due - time.perf_counter(), 0.0))
            tasks.append(asyncio.create_task(send(prompt, began + due)))
        return began, list(await asyncio.gather(*tasks))
    finally:
        for client in idle:
            client.close()


async def _ask(
    target: Target, workload: Workload, prompt: Prompt, client: HttpClient, due_at: float
) -> Arrival:
    dialect = MODES[target.mode]
    body = orjson.dumps(dialect.body(target.model, prompt, workload))
    stream = dialect()
    arrival = Arrival(due_at, stream.reply, sent_at=time.perf_counter())
    stream.reply.sent_at = due_at
    try:
        async with asyncio.timeout(target.timeout_s):
            response = await client.request("POST", dialect.PATH, body, sink=stream.feed)
    except TimeoutError:
        stream.failed("timeout")
    except RequestFailed as failure:
        stream.failed(failure.kind)
    else:
        arrival.status = response.status
        if response.status != 200:
            stream.failed(refusal_kind(response.status, response.body))
            arrival.retry_after_s = _seconds(response.headers.get("retry-after"))
        elif not stream.complete:
            stream.failed("cut")
    arrival.ended_at = time.perf_counter()
    return arrival


def _tokens(reply: Reply) -> int:
    return reply.arrivals if reply.tokens is None else reply.tokens.completion


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else float(header)
    except ValueError:
        return None
