"""How requests failed, counted under labels of which there are few, and all from the start.

A counter that appears with its first event has no increase over it: an alert would miss the first
failure of each kind. So each is there at 0 before anything has happened.
"""

from __future__ import annotations

from serve_app.errors import ParleyError
from serve_app.telemetry import metrics
from serve_app.telemetry.account import STAGES

__all__ = ["CODES", "OTHER", "REJECTIONS", "count_error", "count_from_zero"]

CODES = frozenset(
    {
        "account_not_found",
        "body_too_deep",
        "body_too_large",
        "client_gone",
        "commit_unknown",
        "config_error",
        "context_length_exceeded",
        "conversation_busy",
        "conversation_not_found",
        "deadline_exceeded",
        "engine_error",
        "generator_lost",
        "gpu_unavailable",
        "idempotency_in_flight",
        "idempotency_key_reused",
        "internal_error",
        "invalid_api_key",
        "invalid_json",
        "invalid_request",
        "invalid_type",
        "invalid_value",
        "item_not_found",
        "method_not_allowed",
        "missing_api_key",
        "missing_required_parameter",
        "model_error",
        "model_not_found",
        "overloaded",
        "persona_not_found",
        "request_timeout",
        "response_cancelled",
        "response_lost",
        "response_not_found",
        "response_unfinished",
        "state_unavailable",
        "tensorrt_engine_error",
        "tensorrt_unavailable",
        "turn_limit_reached",
        "unknown_path",
        "unsupported_parameter",
    }
)
"""Codes of all errors that a service gives: those of the table in docs/api.md."""

REJECTIONS = frozenset(
    {
        "body_too_large",
        "body_too_slow",
        "conversation_busy",
        "ingress_full",
        "no_replica",
        "queue_full",
        "shutting_down",
        "unauthorized",
    }
)
"""Why requests are refused before anything is done for them."""

OTHER = "other"
"""What a code is counted under that is not among them, so that labels stay few."""


def count_error(error: ParleyError) -> None:
    """Count a request that failed, and that it was refused where that is what happened."""
    metrics.ERRORS.labels(error.code if error.code in CODES else OTHER).inc()
    if error.rejection is not None:
        metrics.REJECTIONS.labels(error.rejection).inc()


def count_from_zero(model: str) -> None:
    """Make an ingress's counters and histograms exist before anything has happened.

    Args:
        model: name of the model that it serves.
    """
    for code in (*CODES, OTHER):
        metrics.ERRORS.labels(code)
    for reason in REJECTIONS:
        metrics.REJECTIONS.labels(reason)
    for cause in ("lost", "handed_back"):
        metrics.MOVES.labels(cause)
    for kind in ("summary", "facts"):
        for outcome in ("kept", "failed"):
            metrics.MEMORY_TASKS.labels(kind, outcome)
    for stage in STAGES:
        for part in ("transfer", "compute"):
            metrics.STAGE_SECONDS.labels(stage, part)
    for reason in metrics.FINISHED_REASONS:
        metrics.FINISHED.labels(model, reason)
    for each in (
        metrics.TTFT_SECONDS,
        metrics.INTER_TOKEN_SECONDS,
        metrics.TOKEN_SECONDS,
        metrics.E2E_SECONDS,
        metrics.QUEUE_SECONDS,
        metrics.PREFILL_SECONDS,
        metrics.DECODE_SECONDS,
        metrics.PROMPT_TOKENS,
        metrics.CACHED_TOKENS,
        metrics.COMPLETION_TOKENS,
        metrics.REQUEST_PROMPT_TOKENS,
        metrics.REQUEST_COMPLETION_TOKENS,
        metrics.MOST_COMPLETION_TOKENS,
    ):
        each.labels(model)
