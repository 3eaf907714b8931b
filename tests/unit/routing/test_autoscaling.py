"""How many generator replicas there should be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.generation.deployment import Generator
from serve_app.routing.autoscaling import scale_by_streams, wanted_replicas

GENERATOR = DeploymentID("Generator", "parley")
TARGET = 8


def context(recorded: dict[str, dict[ReplicaID, float]] | None) -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=GENERATOR,
        deployment_name="Generator",
        app_name="parley",
        current_num_replicas=2,
        target_num_replicas=2,
        running_replicas=[],
        total_num_requests=1000,  # the open calls say nothing about the load
        total_queued_requests=1000,
        aggregated_metrics=recorded,
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={"kept": True},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=AutoscalingConfig(target_ongoing_requests=TARGET, max_replicas=4),
    )


@pytest.mark.parametrize(
    ("streams", "replicas"), [(0, 1), (1, 1), (8, 1), (8.5, 2), (16, 2), (17, 3), (1000, 4)]
)
def test_there_are_as_many_replicas_as_hold_the_streams_within_the_bounds(
    streams: float, replicas: int
) -> None:
    assert wanted_replicas(streams, TARGET, 1, 4) == replicas


def test_no_streams_need_no_replica_where_none_is_allowed() -> None:
    assert wanted_replicas(0, TARGET, 0, 4) == 0


def test_the_streams_of_all_replicas_count_and_open_calls_do_not() -> None:
    streams = {ReplicaID("a", GENERATOR): 9.0, ReplicaID("b", GENERATOR): 8.0}
    assert scale_by_streams(context({"streams": streams, "other": streams})) == (3, {"kept": True})


@pytest.mark.parametrize("recorded", [None, {}, {"streams": {}}])
def test_replicas_that_have_recorded_nothing_yet_are_no_load(
    recorded: dict[str, dict[ReplicaID, float]] | None,
) -> None:
    assert scale_by_streams(context(recorded))[0] == 1


def test_a_generator_records_what_the_policy_reads() -> None:
    shell: Any = Generator.func_or_class  # type: ignore[attr-defined]
    engine = SimpleNamespace(stats=lambda: SimpleNamespace(running=3, waiting=14))
    replica = SimpleNamespace(_engine=engine)
    replica.record_routing_stats = lambda: shell.record_routing_stats(replica)
    recorded = shell.record_autoscaling_stats(replica)
    metrics = {name: {ReplicaID("a", GENERATOR): value} for name, value in recorded.items()}
    assert scale_by_streams(context(metrics))[0] == 3
