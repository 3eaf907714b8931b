"""What is measured of one reply, and what a level's replies come to together."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Level", "Percentiles", "Reply", "TokenCounts"]


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What a reply cost, as the one who gave it counts.

    Attributes:
        prompt: tokens of the prompt.
        cached: how many of them came out of a cache.
        completion: tokens of the reply.
        held: how many of the prompt's an earlier turn has left with whoever answers.
        spared: how many of these came out of a cache.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    held: int = 0
    spared: int = 0

    def after(self, earlier: TokenCounts | None) -> TokenCounts:
        """Return these counts with what an earlier reply of the same conversation has left behind.

        The last token of a reply is sent and never computed.
        """
        if earlier is None:
            return self
        held = min(self.prompt, earlier.prompt + earlier.completion - 1)
        return replace(self, held=held, spared=min(self.cached, held))

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.held + other.held,
            self.spared + other.spared,
        )


@dataclass(slots=True)
class Reply:
    """One reply while it comes in. Times are seconds on one clock that never goes back.

    Attributes:
        sent_at: when the question was sent.
        first_at: when the first of the reply's text arrived.
        last_at: when the latest of it arrived.
        gaps: seconds between one arrival and the next. Where several tokens arrive at once, they
            are one arrival and so many gaps of 0 less one, if the sender tells them apart.
        arrivals: pieces of text that arrived: streamed events, or tokens of the bare engine.
        tokens: what it cost; None as long as nobody said.
        error: what went wrong, in a word or two; None if nothing did.
    """

    sent_at: float
    first_at: float | None = None
    last_at: float = 0.0
    gaps: array[float] = field(default_factory=lambda: array("d"))
    arrivals: int = 0
    tokens: TokenCounts | None = None
    error: str | None = None

    def arrived(self, now: float) -> None:
        """Take note of a piece of text."""
        if self.first_at is None:
            self.first_at = now
        else:
            self.gaps.append(now - self.last_at)
        self.last_at = now
        self.arrivals += 1


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of some durations, in milliseconds, interpolated linearly."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: ArrayLike) -> Percentiles | None:
        """Return the percentiles of durations in seconds; None if there are none."""
        values = np.asarray(seconds, np.float64)
        if not values.size:
            return None
        p50, p95, p99 = (np.percentile(values, (50, 95, 99)) * 1e3).tolist()
        return cls(p50, p95, p99)


@dataclass(frozen=True, slots=True)
class Level:
    """What came of one level of concurrency. Only replies that came whole count as output.

    Attributes:
        concurrency: clients that held a conversation at once.
        conversations: conversations begun.
        replies: replies that came whole.
        errors: those that didn't, by what went wrong.
        wall_s: seconds from the first question to the end of the last reply.
        tokens: what the replies cost together. A reply whose cost nobody told counts as many
            tokens as arrivals.
        uncounted: replies whose cost nobody told.
        arrivals: pieces of text in them.
        tokens_per_s: output tokens per second.
        requests_per_s: replies per second.
        ttft_ms: from the question to the first of its reply.
        inter_token_ms: from one arrival of a reply to the next.
        client_cpu: seconds of processor time that this process took, per second. In `load.engine`
            the engine's own are part of it.
    """

    concurrency: int
    conversations: int
    replies: int
    errors: dict[str, int]
    wall_s: float
    tokens: TokenCounts
    uncounted: int
    arrivals: int
    tokens_per_s: float
    requests_per_s: float
    ttft_ms: Percentiles | None
    inter_token_ms: Percentiles | None
    client_cpu: float

    @classmethod
    def of(
        cls,
        replies: Sequence[Reply],
        *,
        concurrency: int,
        conversations: int,
        wall_s: float,
        cpu_s: float,
    ) -> Level:
        """Add up replies.

        Args:
            replies: all of them, the failed ones too.
            concurrency: clients that held a conversation at once.
            conversations: conversations begun.
            wall_s: seconds it took.
            cpu_s: seconds of processor time it took in this process.
        """
        whole = [reply for reply in replies if reply.error is None]
        counts = (reply.tokens or TokenCounts(completion=reply.arrivals) for reply in whole)
        tokens = sum(counts, TokenCounts())
        return cls(
            concurrency=concurrency,
            conversations=conversations,
            replies=len(whole),
            errors=dict(Counter(reply.error for reply in replies if reply.error is not None)),
            wall_s=wall_s,
            tokens=tokens,
            uncounted=sum(reply.tokens is None for reply in whole),
            arrivals=sum(reply.arrivals for reply in whole),
            tokens_per_s=tokens.completion / wall_s,
            requests_per_s=len(whole) / wall_s,
            ttft_ms=Percentiles.of(
                [reply.first_at - reply.sent_at for reply in whole if reply.first_at is not None]
            ),
            inter_token_ms=Percentiles.of(
                np.concatenate([np.frombuffer(reply.gaps) for reply in whole] or [np.empty(0)])
            ),
            client_cpu=cpu_s / wall_s,
        )
