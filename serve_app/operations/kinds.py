"""The kinds of Kubernetes' objects that are read and changed here, and the labels on Parley's pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "CONFIG_MAPS",
    "CONTROLLER_REVISIONS",
    "DISRUPTION_BUDGETS",
    "EVENTS",
    "GROUP_LABEL",
    "NODES",
    "PART_OF_PARLEY",
    "PODS",
    "RAY_CLUSTERS",
    "RAY_CLUSTER_LABEL",
    "RAY_SERVICES",
    "SECRETS",
    "SUPPORT_KINDS",
    "Kind",
    "Object",
]

Object: TypeAlias = dict[str, Any]
"""An object as the API writes it."""

PART_OF_PARLEY = "app.kubernetes.io/part-of=parley"
"""Selects what `k8s/` makes."""

RAY_CLUSTER_LABEL = "ray.io/cluster"
"""Names the RayCluster of a pod; KubeRay puts it there."""

GROUP_LABEL = "ray.io/group"
"""Names the worker group of a pod, `headgroup` for a head; KubeRay puts it there."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object.

    Attributes:
        group: API group; ``""`` for the core.
        version: its version.
        plural: the resource's name.
        namespaced: False for a kind that belongs to the whole cluster.
    """

    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the path of the collection, of one object, or of a part of it."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        place = f"/namespaces/{namespace}" if self.namespaced else ""
        return "/".join(part for part in (f"{root}{place}", self.plural, name, subresource) if part)

    @property
    def resource(self) -> str:
        """The name as kubectl and rules of RBAC write it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


RAY_SERVICES = Kind("ray.io", "v1", "rayservices")
RAY_CLUSTERS = Kind("ray.io", "v1", "rayclusters")
PODS = Kind("", "v1", "pods")
EVENTS = Kind("", "v1", "events")
NODES = Kind("", "v1", "nodes", namespaced=False)
SECRETS = Kind("", "v1", "secrets")
CONFIG_MAPS = Kind("", "v1", "configmaps")
CONTROLLER_REVISIONS = Kind("apps", "v1", "controllerrevisions")
DISRUPTION_BUDGETS = Kind("policy", "v1", "poddisruptionbudgets")

SUPPORT_KINDS = (
    RAY_SERVICES,
    RAY_CLUSTERS,
    PODS,
    EVENTS,
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DISRUPTION_BUDGETS,
    Kind("", "v1", "services"),
    Kind("", "v1", "persistentvolumeclaims"),
    Kind("apps", "v1", "statefulsets"),
    Kind("apps", "v1", "deployments"),
    Kind("networking.k8s.io", "v1", "networkpolicies"),
    Kind("gateway.networking.k8s.io", "v1", "gateways"),
    Kind("gateway.networking.k8s.io", "v1", "httproutes"),
)
"""What a support bundle holds, besides the Secrets."""
