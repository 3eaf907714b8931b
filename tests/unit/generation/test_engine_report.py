"""What an engine says of itself arrives in the metrics of its model."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.generation.config import EngineConfig, EngineStats
from serve_app.generation.engine_report import EngineReport
from serve_app.telemetry import metrics

CONFIG = EngineConfig(slots=4, max_len=50, max_cached_tokens=200, prefill_chunk=16, max_queued=4)


def stats(**given: Any) -> EngineStats:
    none: dict[str, Any] = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
    return EngineStats(**none | {"slots": 4, "free_slots": 1, "tokens_per_s": 100.0} | given)


def value(metric: Any, model: str) -> float:
    return float(metric.labels(model)._value.get())


def test_gauges_tell_how_it_stands_now() -> None:
    report = EngineReport("gauges", CONFIG)
    report.write(stats(running=3, waiting=2, cached_tokens=150, queued_prompt_tokens=50))
    assert value(metrics.STREAMS_RUNNING, "gauges") == 3
    assert value(metrics.STREAMS_WAITING, "gauges") == 2
    assert value(metrics.SLOTS, "gauges") == 4
    assert value(metrics.CACHE_TOKENS, "gauges") == 150
    assert value(metrics.CACHE_USAGE, "gauges") == pytest.approx(0.75)
    assert value(metrics.QUEUED_PROMPT_TOKENS, "gauges") == 50
    assert value(metrics.PREDICTED_TTFT_SECONDS, "gauges") >= 0.5


def test_counters_take_what_has_been_done_since_the_last_time() -> None:
    report = EngineReport("counters", CONFIG)
    done = {"prefilled_total": 70, "prefix_hits_total": 30, "drafted_total": 8}
    report.write(stats(**done, draft_hits_total=5))
    report.write(stats(**done, draft_hits_total=6))
    report.write(stats(**done | {"prefilled_total": 90}, draft_hits_total=6))
    assert value(metrics.PREFIX_QUERIES, "counters") == 120
    assert value(metrics.PREFIX_HITS, "counters") == 30
    assert value(metrics.DRAFTED_TOKENS, "counters") == 8
    assert value(metrics.DRAFT_HITS, "counters") == 6


def test_an_engine_that_takes_anothers_place_counts_on() -> None:
    EngineReport("successor", CONFIG).write(stats(prefix_hits_total=30))
    EngineReport("successor", CONFIG).write(stats(prefix_hits_total=2))
    assert value(metrics.PREFIX_HITS, "successor") == 32
