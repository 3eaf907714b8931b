"""What an engine says of the wait before it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serve_app.generation.config import EngineStats
from serve_app.generation.forecast import WorkRate, predicted_ttft_s

IDLE = EngineStats(
    slots=4,
    free_slots=4,
    running=0,
    waiting=0,
    queued_prompt_tokens=0,
    cached_tokens=0,
    reserved_tokens=0,
    generated_total=0,
    prefilled_total=0,
    prefix_hits_total=0,
    drafted_total=0,
    draft_hits_total=0,
    steps_total=0,
    step_s=0.0,
    tokens_per_s=100.0,
    work_s_total=0.0,
    prefix_blocks=0,
    prefix_capacity=0,
    failed_steps=0,
)


def test_nobody_waits_for_an_idle_engine() -> None:
    assert predicted_ttft_s(IDLE) == 0.0


def test_prompts_that_are_to_be_computed_come_first() -> None:
    busy = replace(IDLE, running=2, free_slots=2, queued_prompt_tokens=250)
    assert predicted_ttft_s(busy) == pytest.approx(2.5)


def test_whoever_finds_no_slot_waits_for_replies_to_end() -> None:
    # Four replies with 100 tokens to come each; two of them have to end.
    full = replace(IDLE, running=4, free_slots=0, waiting=2, reserved_tokens=600, cached_tokens=200)
    assert predicted_ttft_s(full) == pytest.approx(2.0)
    assert predicted_ttft_s(replace(full, running=3, free_slots=1, waiting=1)) == 0.0


def test_an_engine_that_has_measured_nothing_predicts_nothing() -> None:
    assert predicted_ttft_s(replace(IDLE, tokens_per_s=0.0, queued_prompt_tokens=9)) == 0.0


def test_work_per_second_is_counted_from_look_to_look() -> None:
    now = 5.0
    rate = WorkRate(lambda: now)
    assert rate.since_last(replace(IDLE, work_s_total=1.0)) == 0.0  # no time has passed
    now = 9.0
    assert rate.since_last(replace(IDLE, work_s_total=3.0)) == pytest.approx(0.5)
    now = 11.0
    assert rate.since_last(replace(IDLE, work_s_total=3.0)) == 0.0
