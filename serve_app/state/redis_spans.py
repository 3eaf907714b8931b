"""What traces tell of a call to Redis: which script ran, and nothing of its keys and values."""

from __future__ import annotations

from serve_app.telemetry import tracing

__all__ = ["redis_span"]


def redis_span(script: str) -> tracing.Span:
    """Begin the span of a round trip that runs a script.

    Args:
        script: what it is called.
    """
    return tracing.span(
        f"redis {script}",
        "client",
        {
            "db.system.name": "redis",
            "db.operation.name": "EVAL",
            "db.stored_procedure.name": script,
        },
    )
