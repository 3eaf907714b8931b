"""Evaluates NetworkPolicies as Kubernetes defines them, and asks them for the connections Parley needs.

A connection is allowed if the policies on both ends allow it: none that selects a pod for a direction
allows everything in it, several allow what any of them does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from cluster_rules import Workload

__all__ = ["Network", "Peer"]

Manifest = dict[str, Any]
_NAMESPACE = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod's labels and its namespace; no namespace is outside of the cluster."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    namespace: str | None = "parley"


_OUTSIDE = Peer("the world", namespace=None)
_DNS = Peer("DNS", {"k8s-app": "kube-dns"}, "kube-system")
_OPERATOR = Peer("KubeRay's operator", {}, "kuberay-system")
_PROMETHEUS = Peer("Prometheus", {"app.kubernetes.io/name": "prometheus"}, "monitoring")
_ISTIOD = Peer("istiod", {"app": "istiod"}, "istio-system")
_STRANGER = Peer("another namespace's pod", {}, "default")
_UNFORESEEN = Peer("a pod that no policy names")


class Network:
    """The policies and pods of one overlay."""

    def __init__(self, manifests: list[Manifest], pods: list[Workload]) -> None:
        self._policies = [one for one in manifests if one["kind"] == "NetworkPolicy"]
        self._services = [one for one in manifests if one["kind"] == "Service"]
        self._monitors = [one for one in manifests if one["kind"] == "PodMonitor"]
        self._ray_services = [one for one in manifests if one["kind"] == "RayService"]
        self._pods = {pod.name: pod for pod in pods}
        self._gateways = [
            Peer(name, {"gateway.networking.k8s.io/gateway-name": name})
            for one in manifests
            if one["kind"] == "Gateway"
            for name in (one["metadata"]["name"], "parley-gateway")
        ]

    def allows(self, source: Peer, target: Peer, port: int) -> bool:
        """Whether `source` may open a TCP connection to that port of `target`."""
        return self._direction("Egress", source, target, port) and self._direction(
            "Ingress", target, source, port
        )

    def faults(self) -> Iterator[str]:
        """Yield each connection that is needed and forbidden, or allowed and needed by nobody."""
        peers = [*map(self._peer, self._pods.values()), *self._gateways]
        for policy in self._policies:
            if not any(self._selects(policy["spec"]["podSelector"], peer) for peer in peers):
                yield f"NetworkPolicy/{policy['metadata']['name']} selects no pod"
        for source, target, port in self._needed(peers):
            if not self.allows(source, target, port):
                yield f"{source.name} can't reach {target.name} on port {port}"
        for source, target, port in self._forbidden(peers):
            if self.allows(source, target, port):
                yield f"{source.name} can reach {target.name} on port {port}"

    def _needed(self, peers: list[Peer]) -> Iterator[tuple[Peer, Peer, int]]:
        ray = [self._peer(pod) for pod in self._pods.values() if pod.is_ray]
        heads = [
            peer for peer in ray if peer.labels.get("app.kubernetes.io/component") == "ray-head"
        ]
        workers = [peer for peer in ray if peer not in heads]
        for peer in peers:
            yield peer, _DNS, 53
        for one in ray:
            for other in ray:
                yield one, other, 6379
                yield one, other, 20000
            for endpoint in self._redis_endpoints():
                yield one, endpoint, 6379
        for head in heads:
            yield head, _OUTSIDE, 443
            yield head, _OUTSIDE, 6443
            yield _OPERATOR, head, 8265
        redis = [self._peer(pod) for pod in self._pods.values() if self._is_redis(pod)]
        for endpoint in self._redis_endpoints():
            for node in redis:
                if endpoint != node:
                    yield endpoint, node, 6379
        for node in redis:
            if "sentinel-tls" in self._pods[node.name].ports:
                yield node, node, 6379
                yield node, node, 26379
        for monitor in self._monitors:
            wanted = monitor["spec"]["selector"]["matchLabels"]
            for pod in self._pods.values():
                if wanted.items() <= pod.labels.items():
                    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                        number = pod.ports.get(endpoint["port"])
                        if number is not None:  # else the selector's rule says so
                            yield _PROMETHEUS, self._peer(pod), number
        if self._gateways:
            edge, inner = self._gateways[:2]
            yield _OUTSIDE, edge, 443
            yield edge, inner, 80
            for worker in workers:
                yield inner, worker, 8000
            for gateway in (edge, inner):
                yield gateway, _ISTIOD, 15012

    def _forbidden(self, peers: list[Peer]) -> Iterator[tuple[Peer, Peer, int]]:
        edges = {gateway.name for gateway in self._gateways[:1]}
        yield _UNFORESEEN, _OUTSIDE, 443
        for peer in (*peers, _UNFORESEEN):
            for port in (80, 443, 6379, 8000, 8265, 26379):
                if peer.name not in edges or port != 443:
                    yield _STRANGER, peer, port
                    yield _OUTSIDE, peer, port
        for pod in self._pods.values():
            if self._is_redis(pod):
                for gateway in self._gateways:
                    yield gateway, self._peer(pod), 6379
                yield self._peer(pod), _OUTSIDE, 443

    def _redis_endpoints(self) -> list[Peer]:
        """Return the pods behind the Service that Ray is told is Redis; Parley's URL names it too."""
        hosts = {
            urlsplit(
                one["spec"]["rayClusterConfig"]
                .get("gcsFaultToleranceOptions", {})
                .get("redisAddress", "")
            ).hostname
            for one in self._ray_services
        }
        selectors = [
            one["spec"]["selector"] for one in self._services if one["metadata"]["name"] in hosts
        ]
        return [
            self._peer(pod)
            for pod in self._pods.values()
            if any(selector.items() <= pod.labels.items() for selector in selectors)
        ] or [Peer("Redis, of which there is none")]

    @staticmethod
    def _is_redis(pod: Workload) -> bool:
        return pod.labels.get("app.kubernetes.io/component") == "redis"

    @staticmethod
    def _peer(pod: Workload) -> Peer:
        return Peer(pod.name, pod.labels)

    def _direction(self, direction: str, subject: Peer, other: Peer, port: int) -> bool:
        if subject.namespace != "parley":
            return True
        policies = [
            policy["spec"]
            for policy in self._policies
            if direction in policy["spec"]["policyTypes"]
            and self._selects(policy["spec"]["podSelector"], subject)
        ]
        if not policies:
            return True
        side = "to" if direction == "Egress" else "from"
        return any(
            self._admits(rule, side, other, port)
            for policy in policies
            for rule in policy.get(direction.lower()) or []
        )

    def _admits(self, rule: Manifest, side: str, other: Peer, port: int) -> bool:
        ports = rule.get("ports")
        if ports and not any(
            one.get("port", port) == port and one.get("protocol", "TCP") == "TCP" for one in ports
        ):
            return False
        peers = rule.get(side)
        return not peers or any(self._matches(peer, other) for peer in peers)

    def _matches(self, peer: Manifest, other: Peer) -> bool:
        if other.namespace is None:
            return False
        spaces = peer.get("namespaceSelector")
        if spaces is None:
            if other.namespace != "parley":
                return False
        elif not self._selects(spaces, Peer("", {_NAMESPACE: other.namespace})):
            return False
        return self._selects(peer.get("podSelector") or {}, other)

    @staticmethod
    def _selects(selector: Manifest, peer: Peer) -> bool:
        labels = (selector.get("matchLabels") or {}).items() <= peer.labels.items()
        return labels and all(
            expression["operator"] == "In"
            and peer.labels.get(expression["key"]) in expression["values"]
            for expression in selector.get("matchExpressions") or []
        )
