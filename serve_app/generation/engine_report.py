"""What an engine says of itself, as metrics."""

from __future__ import annotations

from serve_app.generation.config import EngineConfig, EngineStats
from serve_app.generation.forecast import predicted_ttft_s
from serve_app.telemetry import metrics

__all__ = ["EngineReport"]


class EngineReport:
    """Writes the metrics of one engine.

    Args:
        model: name of the model that it serves.
        config: its limits.
    """

    def __init__(self, model: str, config: EngineConfig) -> None:
        self._most_cached = config.max_cached_tokens
        self._running = metrics.STREAMS_RUNNING.labels(model)
        self._waiting = metrics.STREAMS_WAITING.labels(model)
        self._slots = metrics.SLOTS.labels(model)
        self._cached = metrics.CACHE_TOKENS.labels(model)
        self._usage = metrics.CACHE_USAGE.labels(model)
        self._queued = metrics.QUEUED_PROMPT_TOKENS.labels(model)
        self._predicted = metrics.PREDICTED_TTFT_SECONDS.labels(model)
        # An engine counts since its start; counters are of the node.
        self._counters = {
            name: (counter.labels(model), 0)
            for name, counter in (
                ("looked_up", metrics.PREFIX_QUERIES),
                ("hits", metrics.PREFIX_HITS),
                ("drafted", metrics.DRAFTED_TOKENS),
                ("draft_hits", metrics.DRAFT_HITS),
            )
        }

    def write(self, stats: EngineStats) -> None:
        """Write how the engine stands now, and what it has done since the last time."""
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._slots.set(stats.slots)
        self._cached.set(stats.cached_tokens)
        self._usage.set(stats.cached_tokens / self._most_cached)
        self._queued.set(stats.queued_prompt_tokens)
        self._predicted.set(predicted_ttft_s(stats))
        # Whatever isn't found is computed.
        self._count("looked_up", stats.prefilled_total + stats.prefix_hits_total)
        self._count("hits", stats.prefix_hits_total)
        self._count("drafted", stats.drafted_total)
        self._count("draft_hits", stats.draft_hits_total)

    def _count(self, name: str, total: int) -> None:
        counter, seen = self._counters[name]
        counter.inc(total - seen)
        self._counters[name] = (counter, total)
