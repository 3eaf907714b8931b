"""How long a request that arrived now would wait for its first token."""

from __future__ import annotations

from serve_app.generation.config import EngineStats

__all__ = ["predicted_ttft_s"]


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
