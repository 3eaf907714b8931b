"""Ray's pods: which there are, what they hold, and what keeps them from running."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.kinds import (
    GROUP_LABEL,
    PART_OF_PARLEY,
    PODS,
    RAY_CLUSTER_LABEL,
    Object,
)

__all__ = ["gpus_of", "group_of", "is_ready", "ray_pods", "troubles"]

HEAD_GROUP = "headgroup"

_GPU = "nvidia.com/gpu"
# A container waits for these as well while all is well.
_PATIENT = {"ContainerCreating", "PodInitializing"}


def ray_pods(api: ClusterApi, clusters: Iterable[str]) -> list[Object]:
    """Return the pods of RayClusters, by name."""
    names = ",".join(sorted(clusters))
    if not names:
        return []
    found = api.find(PODS, labels=f"{PART_OF_PARLEY},{RAY_CLUSTER_LABEL} in ({names})")
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def group_of(pod: Object) -> str:
    """Return the worker group of one of Ray's pods; the head's is `headgroup`."""
    return str(pod["metadata"].get("labels", {}).get(GROUP_LABEL, ""))


def is_ready(pod: Object) -> bool:
    """Return whether a pod gets requests."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = pod.get("status", {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def gpus_of(pod: Object) -> int:
    """Return how many GPUs a pod asks for."""
    return sum(
        int(container.get("resources", {}).get("limits", {}).get(_GPU, 0))
        for container in pod["spec"]["containers"]
    )


def troubles(pods: Iterable[Object]) -> Iterator[str]:
    """Yield what keeps pods from running, a sentence each."""
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        for one in status.get("conditions") or []:
            if one["type"] == "PodScheduled" and one["status"] == "False":
                yield f"{name} finds no node: {one.get('message', one.get('reason', ''))}"
        for container in status.get("containerStatuses") or []:
            waiting = container.get("state", {}).get("waiting")
            if waiting and waiting.get("reason") not in _PATIENT:
                said = waiting.get("message", "").strip().splitlines()
                why = f": {said[-1]}" if said else ""
                yield f"{name} doesn't start, {waiting.get('reason')}{why}"
