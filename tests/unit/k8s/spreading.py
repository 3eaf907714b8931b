"""What keeps a service up when a node goes: pods that lie apart, and budgets for their evictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster_rules import Workload

__all__ = ["spreading_faults"]

Manifest = dict[str, Any]
_NODE = "kubernetes.io/hostname"


def spreading_faults(manifests: list[Manifest], pods: list[Workload]) -> Iterator[str]:
    """Yield each workload of several pods that one node, or one drain, may take away whole.

    Args:
        manifests: all objects of an overlay.
        pods: what makes pods there.
    """
    budgets = [
        one["spec"]["selector"]["matchLabels"].items()
        for one in manifests
        if one["kind"] == "PodDisruptionBudget"
    ]
    for workload in pods:
        if workload.replicas < 2:
            continue
        constraints = workload.pod.get("topologySpreadConstraints") or []
        if _NODE not in {one["topologyKey"] for one in constraints}:
            yield f"{workload.name}: all pods may lie on one node"
        if not any(wanted <= workload.labels.items() for wanted in budgets):
            yield f"{workload.name}: no budget keeps any of its pods"
