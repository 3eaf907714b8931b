"""What a replica's calls of Redis come to in metrics."""

from __future__ import annotations

from serve_app.state.connection import OPERATIONS, Operation
from serve_app.telemetry import metrics

__all__ = ["CallMetrics"]


class CallMetrics:
    """Counts calls by what they are for. Each has its series before the first call."""

    def __init__(self) -> None:
        for operation in OPERATIONS:
            metrics.REDIS_SECONDS.labels(operation)
            metrics.REDIS_FAILURES.labels(operation)

    def took(self, operation: Operation, seconds: float) -> None:
        """See `CallObserver.took`."""
        metrics.REDIS_SECONDS.labels(operation).observe(seconds)

    def failed(self, operation: Operation) -> None:
        """See `CallObserver.failed`."""
        metrics.REDIS_FAILURES.labels(operation).inc()
