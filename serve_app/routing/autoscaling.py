"""How many generator replicas: by the streams they hold, not by the calls that are open."""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext

__all__ = ["scale_by_streams", "wanted_replicas"]


def wanted_replicas(streams: float, target: float, lowest: int, highest: int) -> int:
    """Return the replicas that hold `streams` at `target` streams each, within the bounds."""
    return min(highest, max(lowest, math.ceil(streams / target)))


def scale_by_streams(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy for the Generator.

    A generator has one open call per ingress replica whatever its load, so Serve's own count of
    requests says nothing. Replicas record `streams` (running and waiting) instead; the target is
    the deployment's `target_ongoing_requests`.
    """
    recorded = (context.aggregated_metrics or {}).get("streams", {})
    wanted = wanted_replicas(
        sum(recorded.values()),
        context.config.get_target_ongoing_requests(),
        context.capacity_adjusted_min_replicas,
        context.capacity_adjusted_max_replicas,
    )
    return wanted, context.policy_state
