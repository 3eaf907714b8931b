"""The metrics themselves. Names and labels follow vLLM's where it has the same thing.

Labels take few values, whatever clients send: routes' patterns, statuses, error codes, the served
model's name. Nothing that a client chooses is one.
"""

from __future__ import annotations

from serve_app.telemetry import process_metrics  # noqa: F401  (must come before prometheus_client)

from prometheus_client import Counter, Gauge, Histogram  # isort: skip

__all__ = [
    "CACHED_TOKENS",
    "CACHE_TOKENS",
    "CACHE_USAGE",
    "COMPLETION_TOKENS",
    "CPU_SECONDS",
    "DECODE_SECONDS",
    "DRAFTED_TOKENS",
    "DRAFT_HITS",
    "E2E_SECONDS",
    "ERRORS",
    "FINISHED",
    "FINISHED_REASONS",
    "INTER_TOKEN_SECONDS",
    "MEMORY_TASKS",
    "MOST_COMPLETION_TOKENS",
    "MOVES",
    "MOVE_SECONDS",
    "OPEN_FILES",
    "PREDICTED_TTFT_SECONDS",
    "PREFILL_SECONDS",
    "PREFIX_HITS",
    "PREFIX_QUERIES",
    "PROMPT_TOKENS",
    "QUEUED_PROMPT_TOKENS",
    "QUEUE_SECONDS",
    "REDIS_FAILURES",
    "REDIS_SECONDS",
    "REJECTIONS",
    "REPLICAS",
    "REPLICA_STARTS",
    "REQUESTS",
    "REQUESTS_IN_PROGRESS",
    "REQUEST_COMPLETION_TOKENS",
    "REQUEST_PROMPT_TOKENS",
    "RESIDENT_MEMORY",
    "SLOTS",
    "STAGE_SECONDS",
    "STEP_BUCKETS",
    "STREAMS_RUNNING",
    "STREAMS_WAITING",
    "TOKEN_SECONDS",
    "TTFT_SECONDS",
    "TURNS",
    "TURNS_LEFT_OUT",
    "TURN_ACTIONS",
]

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0)
_CALL = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_PART = (0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
_LENGTH = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_MODEL = ("model_name",)
_DEPLOYMENT = ("deployment",)

# Requests.


REQUESTS = Counter(
    "parley_requests", "HTTP requests answered, by route and status.", ["route", "status"]
)
ERRORS = Counter(
    "parley_errors",
    "Requests that failed, by stable error code; broken streams count here too.",
    ["code"],
)
REJECTIONS = Counter(
    "parley_requests_rejected",
    "Requests refused before anything was done for them, by reason.",
    ["reason"],
)
REQUESTS_IN_PROGRESS = Gauge(
    "parley_requests_in_progress", "HTTP requests being answered.", multiprocess_mode="livesum"
)

# Replies.

TTFT_SECONDS = Histogram(
    "parley_time_to_first_token_seconds",
    "From the request's arrival to its first token.",
    _MODEL,
    buckets=_LATENCY,
)
INTER_TOKEN_SECONDS = Histogram(
    "parley_inter_token_latency_seconds",
    "Time between tokens of a reply as they arrive.",
    _MODEL,
    buckets=STEP_BUCKETS,
)
TOKEN_SECONDS = Histogram(
    "parley_request_time_per_output_token_seconds",
    "Mean time between tokens of a finished reply.",
    _MODEL,
    buckets=STEP_BUCKETS,
)
E2E_SECONDS = Histogram(
    "parley_e2e_request_latency_seconds",
    "From the request's arrival to the end of its reply.",
    _MODEL,
    buckets=_LATENCY,
)
QUEUE_SECONDS = Histogram(
    "parley_request_queue_time_seconds", "From submission to a slot.", _MODEL, buckets=_LATENCY
)
PREFILL_SECONDS = Histogram(
    "parley_request_prefill_time_seconds",
    "From a slot to the first token.",
    _MODEL,
    buckets=_LATENCY,
)
DECODE_SECONDS = Histogram(
    "parley_request_decode_time_seconds",
    "From the first token to the last one, at the generator.",
    _MODEL,
    buckets=_LATENCY,
)
STAGE_SECONDS = Histogram(
    "parley_stage_seconds",
    "Where the time of requests went: transfer and compute of each stage.",
    ["stage", "part"],
    buckets=_PART,
)
FINISHED_REASONS = ("stop", "length", "abort", "error")
FINISHED = Counter(
    "parley_request_success",
    "Replies that ended, by why: stop, length, abort or error.",
    ["model_name", "finished_reason"],
)
PROMPT_TOKENS = Counter("parley_prompt_tokens", "Prompt tokens of finished replies.", _MODEL)
CACHED_TOKENS = Counter(
    "parley_prompt_tokens_cached", "Prompt tokens taken from a prefix cache.", _MODEL
)
COMPLETION_TOKENS = Counter("parley_generation_tokens", "Tokens of finished replies.", _MODEL)
REQUEST_PROMPT_TOKENS = Histogram(
    "parley_request_prompt_tokens", "Prompt tokens of a request.", _MODEL, buckets=_LENGTH
)
REQUEST_COMPLETION_TOKENS = Histogram(
    "parley_request_generation_tokens", "Tokens of a request's replies.", _MODEL, buckets=_LENGTH
)
MOST_COMPLETION_TOKENS = Histogram(
    "parley_request_max_num_generation_tokens",
    "Tokens of the longest of a request's replies.",
    _MODEL,
    buckets=_LENGTH,
)

# Streams that moved.

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

# Engines.

STREAMS_RUNNING = Gauge(
    "parley_num_requests_running", "Streams that hold a slot.", _MODEL, multiprocess_mode="livesum"
)
STREAMS_WAITING = Gauge(
    "parley_num_requests_waiting",
    "Streams waiting for a slot.",
    _MODEL,
    multiprocess_mode="livesum",
)
SLOTS = Gauge("parley_slots", "Slots of all generators.", _MODEL, multiprocess_mode="livesum")
CACHE_TOKENS = Gauge(
    "parley_kv_cache_tokens", "Tokens held in slots.", _MODEL, multiprocess_mode="livesum"
)
CACHE_USAGE = Gauge(
    "parley_kv_cache_usage_perc",
    "Share of the K/V cache that is held, of the fullest generator; 1 is all of it.",
    _MODEL,
    multiprocess_mode="livemax",
)
QUEUED_PROMPT_TOKENS = Gauge(
    "parley_queued_prompt_tokens",
    "Prompt tokens that have yet to be computed.",
    _MODEL,
    multiprocess_mode="livesum",
)
PREDICTED_TTFT_SECONDS = Gauge(
    "parley_predicted_time_to_first_token_seconds",
    "Time that a request would wait which comes now, at the busiest generator.",
    _MODEL,
    multiprocess_mode="livemax",
)
PREFIX_QUERIES = Counter(
    "parley_prefix_cache_queries", "Prompt tokens that were looked for in a prefix cache.", _MODEL
)
PREFIX_HITS = Counter(
    "parley_prefix_cache_hits", "Prompt tokens that were found in a prefix cache.", _MODEL
)
DRAFTED_TOKENS = Counter(
    "parley_spec_decode_num_draft_tokens", "Tokens that were guessed ahead.", _MODEL
)
DRAFT_HITS = Counter("parley_spec_decode_num_accepted_tokens", "Guesses that were right.", _MODEL)

# Dialogue.

TURNS = Counter(
    "parley_turns",
    "Turns planned, by who answers: the model (generated) or a rule (fixed_words).",
    ["outcome"],
)
TURN_ACTIONS = Counter(
    "parley_turn_actions", "Turns that a persona answered, by what its rules decided.", ["action"]
)
TURNS_LEFT_OUT = Counter(
    "parley_turns_left_out", "Turns that prompts did without, since they were too long with them."
)
MEMORY_TASKS = Counter(
    "parley_memory_tasks",
    "Summaries and facts kept behind turns, by kind and outcome.",
    ["kind", "outcome"],
)
REDIS_SECONDS = Histogram(
    "parley_redis_seconds",
    "Time of a call to Redis, waiting for a connection included.",
    ["operation"],
    buckets=_CALL,
)
REDIS_FAILURES = Counter(
    "parley_redis_failures", "Calls to Redis that failed, by operation.", ["operation"]
)

# Processes.

REPLICAS = Gauge(
    "parley_replicas", "Replicas that run or start.", _DEPLOYMENT, multiprocess_mode="livesum"
)
REPLICA_STARTS = Counter("parley_replica_starts", "Replicas that were started.", _DEPLOYMENT)
RESIDENT_MEMORY = Gauge(
    "parley_resident_memory_bytes",
    "Memory that replicas take, what they share counted for each.",
    _DEPLOYMENT,
    multiprocess_mode="livesum",
)
CPU_SECONDS = Counter("parley_cpu_seconds", "Processor time that replicas took.", _DEPLOYMENT)
OPEN_FILES = Gauge(
    "parley_open_files",
    "Files and sockets that replicas have open.",
    _DEPLOYMENT,
    multiprocess_mode="livesum",
)
