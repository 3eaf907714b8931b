"""What the generators do."""

from __future__ import annotations

from boards.panels import MODEL, Panel, Query, Rows, gauge, quantiles, rate, share

ENGINE: Rows = {
    "Slots": (
        Panel(
            "Streams",
            "short",
            (
                gauge("parley_num_requests_running", "running", labels=MODEL),
                gauge("parley_num_requests_waiting", "waiting", labels=MODEL),
                gauge("parley_slots", "slots", labels=MODEL),
            ),
            "Running at the slots' line, and waiting above 0: more is asked for than there is.",
        ),
        Panel(
            "Slots in use",
            "percentunit",
            (Query("parley:slots:used_ratio", "in use"),),
            "For hours above 0.95: add replicas.",
            threshold=0.95,
        ),
        Panel(
            "Queue time",
            "s",
            quantiles("parley_request_queue_time_seconds", MODEL),
            "From submission to a slot: the part of the time to first token that more slots end.",
        ),
        Panel(
            "Prefill time",
            "s",
            quantiles("parley_request_prefill_time_seconds", MODEL),
            "From a slot to the first token. Grows with prompts that are in no cache.",
        ),
        Panel(
            "Decode time",
            "s",
            quantiles("parley_request_decode_time_seconds", MODEL),
            "From the first token to the last one. Grows with the length of replies.",
        ),
        Panel(
            "Wait that a new request would have",
            "s",
            (
                gauge(
                    "parley_predicted_time_to_first_token_seconds",
                    "predicted",
                    most=True,
                    labels=MODEL,
                ),
            ),
            "At the busiest generator, without its own prompt. The autoscaler goes by it.",
        ),
    ),
    "Tokens": (
        Panel(
            "Tokens a second",
            "short",
            (
                rate("parley_prompt_tokens_total", "prompt", labels=MODEL),
                rate("parley_prompt_tokens_cached_total", "of them cached", labels=MODEL),
                rate("parley_generation_tokens_total", "reply", labels=MODEL),
            ),
            "Cached tokens are not computed.",
        ),
        Panel(
            "Tokens held in slots",
            "short",
            (
                gauge("parley_kv_cache_tokens", "held", labels=MODEL),
                gauge("parley_queued_prompt_tokens", "yet to be computed", labels=MODEL),
            ),
            "Held ones are bounded by generator.max_cached_tokens on each replica.",
        ),
        Panel(
            "K/V cache in use",
            "percentunit",
            (gauge("parley_kv_cache_usage_perc", "fullest", most=True, labels=MODEL),),
            "At 1, streams wait though slots are free: raise generator.max_cached_tokens.",
            threshold=0.95,
        ),
    ),
    "Work that is spared": (
        Panel(
            "Prefix cache hits",
            "percentunit",
            (
                share(
                    "parley_prefix_cache_hits_total",
                    "parley_prefix_cache_queries_total",
                    "found",
                    MODEL,
                ),
            ),
            "A fall with no change in traffic: conversations don't find their replica again.",
        ),
        Panel(
            "Guesses that were right",
            "percentunit",
            (
                share(
                    "parley_spec_decode_num_accepted_tokens_total",
                    "parley_spec_decode_num_draft_tokens_total",
                    "right",
                    MODEL,
                ),
            ),
            "Of tokens guessed ahead (generator.draft_tokens). Wrong ones cost their part of a step.",
        ),
    ),
    "Replicas": (
        Panel(
            "Slots by node",
            "short",
            (gauge("parley_slots", "{{instance}}", "instance", MODEL),),
            "A node that falls to 0 and comes back has lost its replica.",
            stacked=True,
        ),
        Panel(
            "Generators lost, engine errors",
            "reqps",
            (
                rate(
                    "parley_errors_total", "{{code}}", "code", 'code=~"generator_lost|engine_error"'
                ),
            ),
            "Should be nothing.",
        ),
        Panel(
            "Replies that moved",
            "reqps",
            (rate("parley_stream_moves_total", "{{cause}}", "cause"),),
            "They went on with another generator: lost, theirs died; handed_back, it was stopped.",
            stacked=True,
        ),
        Panel(
            "Time to move",
            "s",
            quantiles("parley_stream_move_seconds"),
            "Until another generator has taken the reply. Readers wait for its prompt besides.",
        ),
    ),
}
