"""A day's load against the autoscaling policies, in simulated time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.serve import autoscaling_policy
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig
from typer.testing import CliRunner

from load import autoscale
from load.day import Day
from load.report import console
from load.simulated_fleet import Fleet, Policy, Replay
from load.simulated_replica import Request, SimulatedReplica
from load.step_times import StepTimes
from serve_app.routing.autoscaling import ScaleByWork

TIMES = StepTimes(itself=0.02, stream=0.0005, prompt_token=0.00025)
SLOTS = 8


def replica() -> SimulatedReplica:
    return SimulatedReplica(TIMES, slots=SLOTS, prompt_slowdown=2.5, max_tokens=256)


def fleet(policy: Policy, **config: float) -> Fleet:
    given = {
        "min_replicas": 0,
        "max_replicas": 6,
        "target_ongoing_requests": 0.8 * SLOTS,
        "upscale_delay_s": 10.0,
        "downscale_delay_s": 120.0,
    }
    return Fleet(policy, AutoscalingConfig(**(given | config)), replica, start_s=20.0)


def test_a_request_alone_has_its_token_after_its_prompt_and_a_step() -> None:
    alone, request = replica(), Request(0.0, prompt=400, output=50)
    alone.submit(request)
    assert alone.recorded()["queued_tokens"] == 400
    alone.advance(0.0, 1.0)
    assert request.first_at == pytest.approx(400 * TIMES.prompt_token + TIMES.step(1))
    assert alone.streams == 1  # 0.9 s are 43 steps
    alone.advance(1.0, 1.0)
    assert alone.streams == 0


def test_whoever_finds_no_slot_waits_and_the_forecast_says_so() -> None:
    full = replica()
    requests = [Request(0.0, prompt=10, output=100) for _ in range(SLOTS + 1)]
    for request in requests:
        full.submit(request)
    full.advance(0.0, 1.0)
    assert requests[-2].first_at is not None
    assert requests[-1].first_at is None
    assert full.recorded()["streams"] == SLOTS + 1
    assert full.recorded()["predicted_ttft_s"] > 0.5
    for second in range(1, 5):
        full.advance(float(second), 1.0)
    assert requests[-1].first_at is not None
    assert requests[-1].first_at > 2.0


def steady(rate: float, seconds: float, prompt: int = 100, output: int = 100) -> list[Request]:
    return [Request(number / rate, prompt, output) for number in range(int(rate * seconds))]


@pytest.mark.parametrize("policy", [ScaleByWork(), replica_queue_length_autoscaling_policy])
def test_an_idle_model_goes_and_the_next_request_brings_it_back(policy: Policy) -> None:
    asked = [*steady(2.0, 60.0), Request(1000.0, 100, 10)]
    replay = fleet(policy, downscale_to_zero_delay_s=200.0).replay(asked, 1200.0)
    assert all(request.first_at is not None for request in replay.requests)
    at_rest = [ready for at, ready in zip(replay.at, replay.ready, strict=True) if 600 < at < 990]
    assert set(at_rest) == {0}
    last = replay.requests[-1]
    assert last.first_at is not None
    assert 20.0 < last.first_at - last.due_at < 23.0  # what a replica takes to start


def test_the_load_says_the_same_however_many_replicas_share_it() -> None:
    def work(replicas: int) -> float:
        asked, shared = steady(2.0, 60.0), [replica() for _ in range(replicas)]
        for second in range(60):
            for number, request in enumerate(asked[2 * second : 2 * second + 2]):
                shared[(2 * second + number) % replicas].submit(request)
            for one in shared:
                one.advance(float(second), 1.0)
        return sum(one.recorded()["work"] for one in shared)

    assert work(4) == pytest.approx(work(1), rel=0.1)


def test_a_steady_load_settles_on_the_replicas_that_carry_it() -> None:
    replay = fleet(ScaleByWork(), min_replicas=1, downscale_delay_s=60.0).replay(
        steady(3.4, 1200.0), 1200.0
    )
    assert set(replay.ready[5:]) == {2}
    assert _late(replay, 2.0) == 0


def test_long_prompts_bring_replicas() -> None:
    asked = steady(1.5, 900.0, prompt=3000, output=5)
    replay = fleet(ScaleByWork(), min_replicas=1).replay(asked, 900.0)
    assert 2 <= max(replay.ready) <= 4
    assert _late(replay, 2.0) == 0


def _late(replay: Replay, seconds: float) -> int:
    """Count who waits longer, in the last half, when replicas have had time to start."""
    settled = replay.requests[len(replay.requests) // 2 :]
    return sum((one.first_at or float("inf")) - one.due_at > seconds for one in settled)


def test_serves_clock_is_its_own_again_afterwards() -> None:
    before = autoscaling_policy.time
    fleet(ScaleByWork()).replay(steady(1.0, 10.0), 10.0)
    assert autoscaling_policy.time is before


def test_a_day_is_its_curve() -> None:
    day = Day(seconds=7200.0, peak_rate=4.0, seed=1)
    requests = day.requests()
    hours = [request.due_at / 300.0 for request in requests]
    assert hours == sorted(hours)
    assert min(hours) > 5.0
    assert requests == Day(seconds=7200.0, peak_rate=4.0, seed=1).requests()
    for first, last in ((7, 9), (12, 16), (20, 23)):
        expected = sum(day.rate(first + (last - first) * at / 100) for at in range(100)) / 100
        found = sum(first <= hour < last for hour in hours) / (300.0 * (last - first))
        assert found == pytest.approx(expected, rel=0.15)
    assert max(request.prompt for request in requests) > 2000


def test_the_command_compares_the_two_and_writes_table_plot_and_json(tmp_path: Path) -> None:
    plot, written = tmp_path / "day.png", tmp_path / "day.json"
    arguments = ["--hours", "0.3", "--peak-rate", "3", "--start-s", "10"]
    with console.capture() as capture:
        result = CliRunner().invoke(
            autoscale.app,
            [*arguments, "--plot", str(plot), "--json", str(written)],
            catch_exceptions=False,
        )
    assert result.exit_code == 0
    assert "ScaleByWork" in capture.get()
    assert plot.read_bytes().startswith(b"\x89PNG")
    ours, rays = json.loads(written.read_text())["outcomes"]
    assert (ours["policy"], rays["policy"]) == ("ScaleByWork", "Ray's default")
    for outcome in (ours, rays):
        assert outcome["replica_hours"] > 0
        assert 0 < outcome["in_time"] <= 1
