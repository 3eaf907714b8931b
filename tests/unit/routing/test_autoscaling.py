"""How many generator replicas there should be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serve_app.cluster.deploy_file import default_deploy_file
from serve_app.errors import ConfigError
from serve_app.generation.deployment import Generator
from serve_app.generation.forecast import WorkRate
from serve_app.routing.autoscaling import GeneratorLoad, ScaleByWork

GENERATOR = DeploymentID("Generator", "parley")
SLOTS = 10
IDLE = {
    "streams": 0.0,
    "slots": float(SLOTS),
    "work": 0.0,
    "queued_tokens": 0.0,
    "predicted_ttft_s": 0.0,
}


def recorded(*replicas: dict[str, float]) -> dict[str, dict[ReplicaID, float]]:
    """Return what Serve aggregates of some replicas."""
    return {
        name: {
            ReplicaID(str(number), GENERATOR): (IDLE | replica)[name]
            for number, replica in enumerate(replicas)
        }
        for name in IDLE
    }


def context(metrics: dict[str, dict[ReplicaID, float]] | None, **given: Any) -> AutoscalingContext:
    values: dict[str, Any] = {
        "deployment_id": GENERATOR,
        "deployment_name": "Generator",
        "app_name": "parley",
        "current_num_replicas": 2,
        "target_num_replicas": 2,
        "running_replicas": [],
        "total_num_requests": 1000,  # the open calls say nothing about the load
        "total_queued_requests": 1000,
        "aggregated_metrics": metrics,
        "raw_metrics": None,
        "capacity_adjusted_min_replicas": 1,
        "capacity_adjusted_max_replicas": 4,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": None,
        "config": AutoscalingConfig(max_replicas=4, upscale_delay_s=0, downscale_delay_s=0),
    }
    return AutoscalingContext(**(values | given))


@pytest.mark.parametrize(
    ("streams", "replicas"), [(0, 0), (1, 1), (8, 1), (8.5, 2), (16, 2), (17, 3)]
)
def test_no_more_than_the_wanted_share_of_slots_is_taken(streams: float, replicas: int) -> None:
    load = GeneratorLoad.of(recorded({"streams": streams}))
    assert ScaleByWork(utilisation=0.8).wanted(load) == replicas


def test_work_that_fewer_replicas_could_not_do_keeps_them_though_slots_are_free() -> None:
    load = GeneratorLoad.of(recorded(*[{"streams": 1, "work": 0.5}] * 4))
    assert ScaleByWork(utilisation=0.8).wanted(load) == 3


def test_a_backlog_beyond_the_target_is_worked_off_besides_what_arrives() -> None:
    policy = ScaleByWork(target_ttft_s=2.0, recovery_s=30.0)
    late = {"streams": 8, "work": 1.0, "predicted_ttft_s": 45.0}
    assert policy.wanted(GeneratorLoad.of(recorded(late))) == 3
    in_time = {"streams": 2, "work": 0.5, "predicted_ttft_s": 1.9}
    assert policy.wanted(GeneratorLoad.of(recorded(in_time))) == 1


def test_queued_prompt_tokens_ask_for_more_before_anything_was_measured() -> None:
    load = GeneratorLoad.of(recorded({"streams": 1, "queued_tokens": 20_000.0}))
    assert ScaleByWork(queued_tokens=8192).wanted(load) == 3


def test_the_load_of_all_replicas_counts_and_open_calls_do_not() -> None:
    metrics = recorded({"streams": 9}, {"streams": 8})
    assert ScaleByWork()(context(metrics)) == (3, {})


def test_the_bounds_hold() -> None:
    assert ScaleByWork()(context(recorded({"streams": 1000})))[0] == 4
    assert ScaleByWork()(context(recorded({})))[0] == 1


@pytest.mark.parametrize("metrics", [None, {}, {"streams": {}}])
def test_replicas_that_have_recorded_nothing_yet_change_nothing(
    metrics: dict[str, dict[ReplicaID, float]] | None,
) -> None:
    assert ScaleByWork()(context(metrics))[0] == 2


def test_an_idle_model_scales_to_zero_and_a_waiting_request_brings_it_back() -> None:
    policy: Any = _apply_autoscaling_config(ScaleByWork())
    idle = {
        "capacity_adjusted_min_replicas": 0,
        "config": AutoscalingConfig(min_replicas=0, max_replicas=4, downscale_delay_s=0),
    }
    last = {"current_num_replicas": 1, "target_num_replicas": 1, "total_num_requests": 0}
    assert policy(context(recorded({}), **idle, **last))[0] == 0
    gone = {"current_num_replicas": 0, "target_num_replicas": 0}
    assert policy(context({}, **idle, **gone, total_num_requests=0))[0] == 0
    assert policy(context({}, **idle, **gone, total_num_requests=1))[0] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("utilisation", 0),
        ("utilisation", 1.5),
        ("target_ttft_s", 0),
        ("recovery_s", float("nan")),
        ("queued_tokens", -1),
    ],
)
def test_a_target_that_makes_no_sense_is_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"policy_kwargs.{name}"):
        ScaleByWork(**{name: value})


def test_serve_finds_the_policy_that_the_deploy_file_names() -> None:
    (application,) = yaml.safe_load(default_deploy_file().read_text())["applications"]
    (generator,) = (one for one in application["deployments"] if one["name"] == "Generator")
    policy = AutoscalingPolicy(**generator["autoscaling_config"]["policy"])
    assert isinstance(_resolve_policy_callable(policy), ScaleByWork)


def test_a_generator_records_what_the_policy_reads() -> None:
    shell: Any = Generator.func_or_class  # type: ignore[attr-defined]
    stats = SimpleNamespace(
        running=8,
        waiting=14,
        slots=8,
        free_slots=0,
        queued_prompt_tokens=100,
        reserved_tokens=800,
        cached_tokens=0,
        tokens_per_s=150.0,
        work_s_total=9.0,
    )
    now = iter([0.0, 10.0])
    replica = SimpleNamespace(
        _engine=SimpleNamespace(stats=lambda: stats), _work=WorkRate(lambda: next(now))
    )
    load = GeneratorLoad.of(recorded(shell.record_autoscaling_stats(replica)))
    assert load == GeneratorLoad(
        1, streams=22.0, slots=8.0, work=0.9, queued_tokens=100.0, ttft_s=10.0
    )
    assert ScaleByWork(target_ttft_s=20.0, utilisation=1.0).wanted(load) == 3
