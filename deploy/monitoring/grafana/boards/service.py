"""Whether people are served well."""

from __future__ import annotations

from boards.panels import (
    MODEL,
    SERVED,
    Panel,
    Rows,
    burned,
    gauge,
    quantile,
    quantiles,
    rate,
)

SERVICE: Rows = {
    "Objectives": (
        Panel(
            "Requests that fail",
            "percentunit",
            burned("request_errors"),
            "Failures that are ours, broken streams included. The objective is 0.5 % in 30 days.",
            threshold=0.005,
        ),
        Panel(
            "Replies that begin late",
            "percentunit",
            burned("slow_first_tokens"),
            "First tokens after more than 2.5 s. The objective is 5 % in 30 days.",
            threshold=0.05,
        ),
    ),
    "Traffic": (
        Panel(
            "Requests by status",
            "reqps",
            (rate("parley_requests_total", "{{status}}", "status", SERVED),),
            "499 is a client that left.",
            stacked=True,
        ),
        Panel(
            "Requests by route",
            "reqps",
            (rate("parley_requests_total", "{{route}}", "route", SERVED),),
            "What is asked for.",
            stacked=True,
        ),
        Panel(
            "Errors by code",
            "reqps",
            (rate("parley_errors_total", "{{code}}", "code"),),
            "docs/api.md says what each code means.",
            stacked=True,
        ),
    ),
    "Refusals and ends": (
        Panel(
            "Refusals by reason",
            "reqps",
            (rate("parley_requests_rejected_total", "{{reason}}", "reason"),),
            "Of requests for which nothing was done. queue_full: the generators' queues; ingress_full: "
            "an Ingress replica's places; no_replica: a part is restarting.",
            stacked=True,
        ),
        Panel(
            "Replies by why they ended",
            "reqps",
            (
                rate(
                    "parley_request_success_total", "{{finished_reason}}", "finished_reason", MODEL
                ),
            ),
            "length: cut by their token limit; abort: cancelled, or out of time.",
            stacked=True,
        ),
        Panel(
            "Length of prompts",
            "short",
            quantiles("parley_request_prompt_tokens", MODEL),
            "In tokens. Longer ones take longer to begin, unless they are cached.",
        ),
        Panel(
            "Length of replies",
            "short",
            (
                *quantiles("parley_request_generation_tokens", MODEL),
                quantile(
                    "parley_request_max_num_generation_tokens",
                    0.99,
                    "p99 of the longest of a request",
                    labels=MODEL,
                ),
            ),
            "In tokens.",
        ),
    ),
    "Latency": (
        Panel(
            "Time to first token",
            "s",
            quantiles("parley_time_to_first_token_seconds", MODEL),
            "From a request's arrival. Compare with the queue time on the engine's dashboard.",
            threshold=2.5,
        ),
        Panel(
            "Time between tokens",
            "s",
            quantiles("parley_inter_token_latency_seconds", MODEL),
            "As they arrive: its p99 are the pauses that readers see.",
        ),
        Panel(
            "Time per token",
            "s",
            quantiles("parley_request_time_per_output_token_seconds", MODEL),
            "The mean of each finished reply: how fast it reads.",
        ),
        Panel(
            "Time to the end of the reply",
            "s",
            quantiles("parley_e2e_request_latency_seconds", MODEL),
            "Grows with the length of replies.",
        ),
    ),
    "Where the time goes": (
        Panel(
            "Requests computed, by stage",
            "short",
            (rate("parley_stage_seconds_sum", "{{stage}}", "stage", 'part="compute"'),),
            "Seconds spent per second: so many requests are in the stage at once. docs/latency.md "
            "says what each stage is.",
            stacked=True,
        ),
        Panel(
            "Requests on their way, by stage",
            "short",
            (rate("parley_stage_seconds_sum", "{{stage}}", "stage", 'part="transfer"'),),
            "Grows where the network, Redis, a busy event loop or clients are slow.",
            stacked=True,
        ),
    ),
    "Load": (
        Panel(
            "Requests in progress",
            "short",
            (gauge("parley_requests_in_progress", "in progress"),),
            "Streams that are being sent count.",
        ),
        Panel(
            "Tokens of replies",
            "short",
            (rate("parley_generation_tokens_total", "tokens/s", labels=MODEL),),
            "Of finished replies, so it follows the load by their length.",
        ),
    ),
}
