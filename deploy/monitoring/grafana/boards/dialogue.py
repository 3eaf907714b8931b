"""What conversations do, and what keeps them."""

from __future__ import annotations

from boards.panels import Panel, Rows, quantile, quantiles, rate

_TURNS_THAT_MET = (
    "conversation_busy|response_cancelled|response_unfinished|idempotency_in_flight|"
    "idempotency_key_reused"
)
_NOT_KEPT = "state_unavailable|commit_unknown|response_lost"

DIALOGUE: Rows = {
    "Turns": (
        Panel(
            "Turns by who answers",
            "reqps",
            (rate("parley_turns_total", "{{outcome}}", "outcome"),),
            "fixed_words: a persona's rule, which costs no tokens; generated: the model.",
            stacked=True,
        ),
        Panel(
            "Decisions of personas' rules",
            "reqps",
            (rate("parley_turn_actions_total", "{{action}}", "action"),),
            "More hand_over, clarify or refuse than usual: look at what is being asked.",
            stacked=True,
        ),
        Panel(
            "Turns that prompts did without",
            "reqps",
            (rate("parley_turns_left_out_total", "turns/s"),),
            "Conversations outgrow the context: a larger generator.max_len, or summaries.",
        ),
    ),
    "Meeting and failing": (
        Panel(
            "Turns that met another",
            "reqps",
            (rate("parley_errors_total", "{{code}}", "code", f'code=~"{_TURNS_THAT_MET}"'),),
            "Of the same conversation, or the same request. Many: a client that repeats itself.",
            stacked=True,
        ),
        Panel(
            "Turns that may not have been kept",
            "reqps",
            (rate("parley_errors_total", "{{code}}", "code", f'code=~"{_NOT_KEPT}"'),),
            "Should be nothing.",
            stacked=True,
        ),
        Panel(
            "Memory behind turns",
            "reqps",
            (rate("parley_memory_tasks_total", "{{kind}} {{outcome}}", "kind, outcome"),),
            "Summaries and facts. What failed is done again behind a later turn.",
            stacked=True,
        ),
    ),
    "Redis": (
        Panel(
            "Time of a call",
            "s",
            quantiles("parley_redis_seconds"),
            "As a replica sees it, waiting for one of its connections included.",
            threshold=0.25,
        ),
        Panel(
            "Time of a call, by what it is for",
            "s",
            (quantile("parley_redis_seconds", 0.95, "{{operation}}", by="operation"),),
            "p95. begin and commit stand before the first token and the end of a reply.",
        ),
        Panel(
            "Calls",
            "reqps",
            (rate("parley_redis_seconds_count", "{{operation}}", "operation"),),
            "journal: what running responses have said, once an interval for each Ingress replica.",
            stacked=True,
        ),
        Panel(
            "Calls that failed",
            "reqps",
            (rate("parley_redis_failures_total", "{{operation}}", "operation"),),
            "Should be nothing.",
            stacked=True,
        ),
    ),
}
