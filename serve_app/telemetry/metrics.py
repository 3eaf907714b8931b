"""The metrics themselves. Names and labels follow vLLM's where it has the same thing."""

from __future__ import annotations

from serve_app.telemetry import process_metrics  # noqa: F401  (must come before prometheus_client)

from prometheus_client import Counter, Gauge, Histogram  # isort: skip

__all__ = [
    "CACHED_TOKENS",
    "CACHE_TOKENS",
    "COMPLETION_TOKENS",
    "DECODE_SECONDS",
    "E2E_SECONDS",
    "ERRORS",
    "INTER_TOKEN_SECONDS",
    "MOVES",
    "MOVE_SECONDS",
    "PREFILL_SECONDS",
    "PROMPT_TOKENS",
    "QUEUE_SECONDS",
    "REQUESTS",
    "REQUESTS_IN_PROGRESS",
    "SLOTS",
    "STAGE_SECONDS",
    "STREAMS_RUNNING",
    "STREAMS_WAITING",
    "TTFT_SECONDS",
]

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_PART = (0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
_STEP = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0)

REQUESTS = Counter(
    "parley_requests", "HTTP requests answered, by route and status.", ["route", "status"]
)
ERRORS = Counter(
    "parley_errors",
    "Requests that failed, by stable error code; broken streams count here too.",
    ["code"],
)
REQUESTS_IN_PROGRESS = Gauge(
    "parley_requests_in_progress", "HTTP requests being answered.", multiprocess_mode="livesum"
)
TTFT_SECONDS = Histogram(
    "parley_time_to_first_token_seconds",
    "From the request's arrival to its first token.",
    buckets=_LATENCY,
)
INTER_TOKEN_SECONDS = Histogram(
    "parley_inter_token_latency_seconds",
    "Mean time between tokens of a finished reply.",
    buckets=_STEP,
)
E2E_SECONDS = Histogram(
    "parley_e2e_request_latency_seconds",
    "From the request's arrival to the end of its reply.",
    buckets=_LATENCY,
)
QUEUE_SECONDS = Histogram(
    "parley_request_queue_time_seconds", "From submission to a slot.", buckets=_LATENCY
)
PREFILL_SECONDS = Histogram(
    "parley_request_prefill_time_seconds",
    "From a slot to the first token.",
    ["model_name"],
    buckets=_LATENCY,
)
DECODE_SECONDS = Histogram(
    "parley_request_decode_time_seconds",
    "From the first token to the last one, at the generator.",
    ["model_name"],
    buckets=_LATENCY,
)
STAGE_SECONDS = Histogram(
    "parley_stage_seconds",
    "Where the time of requests went: transfer and compute of each stage.",
    ["stage", "part"],
    buckets=_PART,
)
MOVES = Counter(
    "parley_stream_moves",
    "Streams that went on with another generator, by what became of theirs.",
    ["cause"],
)
MOVE_SECONDS = Histogram(
    "parley_stream_move_seconds",
    "From a generator's loss to another one's having taken the stream.",
    buckets=_LATENCY,
)
PROMPT_TOKENS = Counter("parley_prompt_tokens", "Prompt tokens of finished replies.")
CACHED_TOKENS = Counter("parley_prompt_tokens_cached", "Prompt tokens taken from a prefix cache.")
COMPLETION_TOKENS = Counter("parley_generation_tokens", "Tokens of finished replies.")
STREAMS_RUNNING = Gauge(
    "parley_num_requests_running", "Streams that hold a slot.", multiprocess_mode="livesum"
)
STREAMS_WAITING = Gauge(
    "parley_num_requests_waiting", "Streams waiting for a slot.", multiprocess_mode="livesum"
)
SLOTS = Gauge("parley_slots", "Slots of all generators.", multiprocess_mode="livesum")
CACHE_TOKENS = Gauge("parley_kv_cache_tokens", "Tokens held in slots.", multiprocess_mode="livesum")
