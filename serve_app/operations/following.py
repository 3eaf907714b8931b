"""Waiting until KubeRay has done what a RayService asks for, or can't."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from serve_app.errors import OperationError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.kinds import RAY_SERVICES
from serve_app.operations.pods import ray_pods, troubles
from serve_app.operations.ray_service import ServiceState

__all__ = ["Progress", "follow"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told a stage, and how far it is: done of total, or 0 of 0 where there is nothing to count."""

SETTLE_S = 8.0
"""How long an outcome has to last. KubeRay looks every 2 s, and asks Serve how it is before it tells it of
a change, so that the first look after a change still shows what was before."""

LOOK_S = 2.0
"""How often pods are looked at, where the RayService itself doesn't change."""


def follow(
    api: ClusterApi,
    service: str,
    *,
    timeout_s: float,
    progress: Progress,
) -> ServiceState:
    """Watch a RayService until all that its spec asks for is done.

    Args:
        api: the cluster.
        service: the RayService.
        timeout_s: how long to wait at most.
        progress: told what is going on.

    Raises:
        OperationError: it can't be done (`rollout_failed`), or isn't in time (`operation_timeout`).
    """
    began = since = time.monotonic()
    outcome: tuple[bool, list[str]] = (False, [])
    while True:
        state = ServiceState.of(api.get(RAY_SERVICES, service))
        now = time.monotonic()
        seen = (state.settled, list(state.failures()))
        if seen != outcome:
            outcome, since = seen, now
        lasted = now - since >= SETTLE_S
        if state.settled and lasted:
            return state
        hindered = list(troubles(ray_pods(api, [one.name for one in state.clusters])))
        if outcome[1] and lasted:
            raise _failed(service, outcome[1] + hindered)
        if now - began >= timeout_s:
            raise _late(service, timeout_s, state, hindered)
        progress("; ".join([state.describe(), *hindered[:1]]), *_share(state))
        left = min(LOOK_S, timeout_s - (now - began))
        if outcome != (False, []):
            left = min(left, SETTLE_S - (now - since))
        api.wait_for_change(RAY_SERVICES, service, state.version, max(0.05, left))


def _share(state: ServiceState) -> tuple[int, int]:
    if state.pending is not None and state.pending.traffic_percent is not None:
        return state.pending.traffic_percent, 100
    target = state.pending or state.active
    return (target.ready_workers, target.desired_workers) if target else (0, 0)


def _failed(service: str, reasons: list[str]) -> OperationError:
    msg = (
        f"{service} can't become what it was told to be. {' '.join(reasons)} What ran before serves on. "
        "`parley ops rollback` goes back to it; `parley ops bundle` collects what is known."
    )
    return OperationError(msg, code="rollout_failed")


def _late(
    service: str, timeout_s: float, state: ServiceState, hindered: list[str]
) -> OperationError:
    why = ". ".join([state.describe(), *hindered[:3]])
    msg = (
        f"{service} is not done after {timeout_s:g} s: {why}. It goes on by itself; look again with "
        "`parley ops status`, or go back with `parley ops rollback`."
    )
    return OperationError(msg, code="operation_timeout")
