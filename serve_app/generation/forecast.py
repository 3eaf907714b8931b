"""What an engine's load comes to: how long a new request would wait, and how much work there is."""

from __future__ import annotations

import time
from collections.abc import Callable

from serve_app.generation.config import EngineStats

__all__ = ["WorkRate", "predicted_ttft_s"]


def predicted_ttft_s(stats: EngineStats) -> float:
    """Return the seconds until a request that arrives now would have its first token.

    Two things stand before it: prompts that have yet to be computed, and, where more wait than slots
    are free, running replies that have to end first. A running reply counts with all the tokens that
    it may still come to hold, so of replies that end early the wait is overstated, never understated.
    The request's own prompt, of which nobody knows how much is cached, is left out.

    Returns:
        Seconds; 0 where nobody is before it, and before the engine has measured itself.
    """
    if not stats.tokens_per_s:
        return 0.0
    tokens = float(stats.queued_prompt_tokens)
    ends = stats.waiting - stats.free_slots
    if ends > 0 and stats.running:
        left = max(stats.reserved_tokens - stats.cached_tokens, 0)
        tokens += ends * left / stats.running
    return tokens / stats.tokens_per_s


class WorkRate:
    """Work per second between one look and the next: 1 is all that an engine can do.

    Args:
        clock: tells the time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen_at, self._seen = clock(), 0.0

    def since_last(self, stats: EngineStats) -> float:
        """Return the work per second since the last look, or since the beginning."""
        now, total = self._clock(), stats.work_s_total
        passed_s, done_s = now - self._seen_at, total - self._seen
        self._seen_at, self._seen = now, total
        return done_s / passed_s if passed_s > 0 else 0.0
