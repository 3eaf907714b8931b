"""Draining a node: no new pods, then Parley's go one after the other, as far as budgets allow."""

from __future__ import annotations

import time
from dataclasses import dataclass

from serve_app.errors import OperationError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.following import Progress
from serve_app.operations.kinds import DISRUPTION_BUDGETS, NODES, PART_OF_PARLEY, PODS, Object

__all__ = ["Drained", "drain"]

_AGAIN_S = 5.0
_LOOK_S = 1.0
# Whoever serves nobody goes last: a head that is away keeps replicas from being moved.
_ORDER = {"ray-worker": 0, "ray-head": 2}


@dataclass(frozen=True, slots=True)
class Drained:
    """What a drain has done.

    Attributes:
        node: the node; nothing new is placed on it.
        evicted: the pods that have gone.
        refusals: how often a budget asked to wait.
    """

    node: str
    evicted: list[str]
    refusals: int


def drain(
    api: ClusterApi,
    node: str,
    *,
    timeout_s: float,
    progress: Progress,
    again_s: float = _AGAIN_S,
) -> Drained:
    """Cordon a node and evict Parley's pods from it, until they are gone.

    Pods go through the Eviction API, which honours PodDisruptionBudgets: one that is refused is asked for
    again. Other applications' pods stay.

    Args:
        api: the cluster.
        node: the node's name.
        timeout_s: how long to wait at most.
        progress: told how many pods have gone.
        again_s: how long to wait after a budget has refused, where it doesn't say itself.

    Raises:
        OperationError: there is no such node, it may not be drained, or pods are left (`operation_timeout`).
    """
    api.patch(NODES, node, {"spec": {"unschedulable": True}})
    deadline = time.monotonic() + timeout_s
    waiting = {str(pod["metadata"]["uid"]): pod for pod in _pods_on(api, node)}
    total, evicted, refusals = len(waiting), [], 0
    leaving: set[str] = set()
    refused: dict[str, str] = {}
    next_try = 0.0
    while waiting:
        if time.monotonic() >= next_try:
            refused = {}
            for uid, pod in waiting.items():
                if uid in leaving:
                    continue
                try:
                    _evict(api, pod)
                except OperationError as error:
                    if error.code != "disruption_refused":
                        raise
                    refusals += 1
                    refused[str(pod["metadata"]["name"])] = error.message
                    next_try = time.monotonic() + (error.retry_after or again_s)
                else:
                    leaving.add(uid)
        there = {str(pod["metadata"]["uid"]) for pod in _pods_on(api, node)}
        for uid in [uid for uid in waiting if uid not in there]:
            evicted.append(str(waiting.pop(uid)["metadata"]["name"]))
            next_try = 0.0  # a pod that has gone may have made room in a budget
        progress(_stage(refused, leaving & waiting.keys()), len(evicted), total)
        if waiting and time.monotonic() >= deadline:
            raise _left(api, node, list(waiting.values()), refused, timeout_s)
        if waiting:
            time.sleep(min(_LOOK_S, again_s))
    return Drained(node, evicted, refusals)


def _pods_on(api: ClusterApi, node: str) -> list[Object]:
    pods = api.find(PODS, labels=PART_OF_PARLEY, fields=f"spec.nodeName={node}")
    finished = ("Succeeded", "Failed")
    running = [pod for pod in pods if pod.get("status", {}).get("phase") not in finished]
    return sorted(running, key=lambda pod: (_rank(pod), pod["metadata"]["name"]))


def _rank(pod: Object) -> int:
    return _ORDER.get(pod["metadata"]["labels"].get("app.kubernetes.io/component", ""), 1)


def _evict(api: ClusterApi, pod: Object) -> None:
    metadata = pod["metadata"]
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        # Not the pod that a StatefulSet has started under the same name meanwhile.
        "deleteOptions": {"preconditions": {"uid": metadata["uid"]}},
    }
    try:
        api.create(PODS, body, name=metadata["name"], subresource="eviction")
    except OperationError as error:
        if error.code not in ("cluster_object_not_found", "cluster_conflict"):
            raise


def _stage(refused: dict[str, str], leaving: set[str]) -> str:
    if refused:
        name, why = next(iter(refused.items()))
        return f"{name} has to wait: {why.rstrip('.')}"
    return f"{len(leaving)} pods let their streams end" if leaving else "pods gone"


def _left(
    api: ClusterApi, node: str, left: list[Object], refused: dict[str, str], timeout_s: float
) -> OperationError:
    names = ", ".join(pod["metadata"]["name"] for pod in left)
    msg = f"After {timeout_s:g} s there are pods left on {node}: {names}."
    if refused:
        msg += f" {' '.join(sorted(set(refused.values())))}{_budgets(api)}"
        msg += " Add workers on other nodes (`parley ops scale`) and drain again,"
    else:
        msg += " They are ending; wait longer with --timeout,"
    msg += f" or give the node back with `kubectl uncordon {node}`."
    return OperationError(msg, code="operation_timeout")


def _budgets(api: ClusterApi) -> str:
    try:
        found = api.find(DISRUPTION_BUDGETS)
    except OperationError:
        return ""  # who may evict need not be allowed to read budgets
    full = [
        f" {one['metadata']['name']} keeps {status.get('desiredHealthy')} of "
        f"{status.get('currentHealthy')} healthy pods."
        for one in found
        if (status := one.get("status", {})) and status.get("disruptionsAllowed") == 0
    ]
    return "".join(full)
