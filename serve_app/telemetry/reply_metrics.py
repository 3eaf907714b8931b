"""What is measured of the replies to one request."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.telemetry import metrics
from serve_app.telemetry.tally import Tally

__all__ = ["ReplyMetrics"]


class ReplyMetrics:
    """Writes what becomes of requests into the metrics of one model.

    Args:
        model: name of the served model; None measures nothing, for what no client asked for. A
            summary that waits behind all requests says nothing of how long clients wait.
    """

    __slots__ = ("_model",)

    def __init__(self, model: str | None) -> None:
        self._model = model

    def first_token(self, seconds: float) -> None:
        """Note how long after its request's arrival a reply began."""
        if self._model is not None:
            metrics.TTFT_SECONDS.labels(self._model).observe(seconds)

    def ended(
        self, reason: str, *, tokens: int, spoke_s: float, gaps: Tally, queue_s: float
    ) -> None:
        """Note a reply's end.

        Args:
            reason: one of `metrics.FINISHED_REASONS`.
            tokens: how many it has.
            spoke_s: seconds from its first token to its last.
            gaps: seconds between tokens.
            queue_s: seconds from submission to a slot.
        """
        if self._model is None:
            return
        metrics.FINISHED.labels(self._model, reason).inc()
        metrics.QUEUE_SECONDS.labels(self._model).observe(queue_s)
        if tokens > 1:
            metrics.TOKEN_SECONDS.labels(self._model).observe(spoke_s / (tokens - 1))
            gaps.flush(metrics.INTER_TOKEN_SECONDS.labels(self._model))

    def request(
        self, *, seconds: float, prompt: int, cached: int, completions: Sequence[int]
    ) -> None:
        """Note a request whose replies are whole.

        Args:
            seconds: from its arrival.
            prompt: tokens of its prompts.
            cached: tokens among them that were in a prefix cache.
            completions: tokens of each reply.
        """
        if self._model is None:
            return
        labels = (self._model,)
        metrics.E2E_SECONDS.labels(*labels).observe(seconds)
        metrics.PROMPT_TOKENS.labels(*labels).inc(prompt)
        metrics.CACHED_TOKENS.labels(*labels).inc(cached)
        metrics.COMPLETION_TOKENS.labels(*labels).inc(sum(completions))
        metrics.REQUEST_PROMPT_TOKENS.labels(*labels).observe(prompt)
        metrics.REQUEST_COMPLETION_TOKENS.labels(*labels).observe(sum(completions))
        metrics.MOST_COMPLETION_TOKENS.labels(*labels).observe(max(completions, default=0))
