"""KubeRay, made up: what its operator writes into a RayService's status, step by step."""

from __future__ import annotations

import copy
import threading
from typing import Any

from object_store import RESOURCES, Object, ObjectStore

__all__ = ["KubeRay", "service_objects", "status_of"]

SERVICE = RESOURCES["ray.io", "rayservices"]
PODS = RESOURCES["", "pods"]

_DEPLOYMENTS = ("Ingress", "Dialogue", "Tokenizer", "Generator")


def applications(status: str = "RUNNING", message: str = "") -> Object:
    healthy = "HEALTHY" if status == "RUNNING" else "UPDATING"
    deployments = {name: {"status": healthy, "message": ""} for name in _DEPLOYMENTS}
    return {
        "parley": {"status": status, "message": message, "serveDeploymentStatuses": deployments}
    }


def serving(
    cluster: str, ready: int, *, traffic: int, status: str = "RUNNING", **more: Any
) -> Object:
    return {
        "rayClusterName": cluster,
        "trafficRoutedPercent": traffic,
        "applicationStatuses": applications(status, **more),
        "rayClusterStatus": {
            "readyWorkerReplicas": ready,
            "desiredWorkerReplicas": 4,
            "desiredGPU": "2",
        },
    }


def status_of(
    generation: int,
    active: Object,
    pending: Object | None = None,
    *,
    ready: tuple[str, str, str] = ("True", "NonZeroServeEndpoints", "endpoints"),
) -> Object:
    """Return a RayService's status as KubeRay 1.7 writes it."""
    moment = "2026-11-26T12:00:00Z"
    upgrading = "True" if pending else "False"

    def condition(kind: str, status: str, reason: str, message: str) -> Object:
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": moment,
        }

    return {
        "observedGeneration": generation,
        "numServeEndpoints": 4,
        "conditions": [
            condition("Ready", *ready),
            condition("UpgradeInProgress", upgrading, "BothActivePendingClustersExist", ""),
        ],
        "activeServiceStatus": active,
        **({"pendingServiceStatus": pending} if pending else {}),
    }


def service_objects(manifests: list[Object]) -> list[Object]:
    """Return an overlay's RayService as it runs, its budgets and its pods."""
    service = copy.deepcopy(next(one for one in manifests if one["kind"] == "RayService"))
    service["status"] = status_of(1, serving("parley-x1", 4, traffic=100))
    cluster = service["spec"]["rayClusterConfig"]
    templates = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    pods = [_pod("head", "headgroup", cluster["headGroupSpec"]["template"], "node-1")]
    for group, template in templates.items():
        pods += [_pod(f"{group}-a", group, template, "node-1")]
        pods += [_pod(f"{group}-b", group, template, "node-2")]
    nodes = [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {}}
        for name in ("node-1", "node-2")
    ]
    others = [one for one in manifests if one["kind"] in ("PodDisruptionBudget", "ConfigMap")]
    return [service, *pods, *nodes, *copy.deepcopy(others)]


def _pod(name: str, group: str, template: Object, node: str) -> Object:
    labels = {
        **template["metadata"]["labels"],
        "ray.io/cluster": "parley-x1",
        "ray.io/group": group,
        "ray.io/is-ray-node": "yes",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"parley-x1-{name}", "labels": labels},
        "spec": {**copy.deepcopy(template["spec"]), "nodeName": node},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


class KubeRay:
    """Acts on changes of the RayService as the operator would, in less time.

    Attributes:
        seen: the images and sizes of the changes that it has acted on.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._threads: list[threading.Thread] = []
        self._images = ["registry.example.com/parley/parley:0.1.0"]
        self._serial = 1

    def reconcile(self, service: Object) -> None:
        thread = threading.Thread(target=self._act, args=(service,))
        self._threads.append(thread)
        thread.start()

    def finish(self) -> None:
        for thread in self._threads:
            thread.join()

    def _act(self, service: Object) -> None:
        generation, spec = service["metadata"]["generation"], service["spec"]
        head = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        active = service["status"]["activeServiceStatus"]
        if "nonsense" in head["image"]:
            self._set(
                status_of(
                    generation - 1,
                    active,
                    ready=("False", "ValidationFailed", "the image is nonsense"),
                )
            )
        elif "bad_model" in spec["serveConfigV2"]:
            failed = serving(
                active["rayClusterName"], 4, traffic=100, status="DEPLOY_FAILED",
                message="Traceback:\nModelError: there is no bad_model",
            )  # fmt: skip
            self._set(status_of(generation, failed))
        elif head["image"] != self._images[-1]:
            self._upgrade(generation, active, head["image"])
        else:
            name = active["rayClusterName"]
            # The first look after a change still shows what was before.
            self._set(status_of(generation, serving(name, 4, traffic=100)))
            self._set(status_of(generation, serving(name, 4, traffic=100, status="DEPLOYING")))
            self._set(status_of(generation, serving(name, 4, traffic=100)))

    def _upgrade(self, generation: int, active: Object, image: str) -> None:
        self._serial += 1
        name = f"parley-x{self._serial}"
        self._set(status_of(generation, active, serving(name, 0, traffic=0, status="DEPLOYING")))
        if "missing" in image:
            return
        for share in (25, 75):
            old = {**active, "trafficRoutedPercent": 100 - share}
            self._set(status_of(generation, old, serving(name, 4, traffic=share)))
        self._images.append(image)
        self._set(status_of(generation, serving(name, 4, traffic=100)))

    def _set(self, status: Object) -> None:
        self._store.set_status(SERVICE, "parley", status)
