"""Slips that a manifest may have, each with what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["SLIPS", "the"]

Manifest = dict[str, Any]
Manifests = list[Manifest]


def the(manifests: Manifests, kind: str, name: str | None = None) -> Manifest:
    return next(
        one for one in manifests if one["kind"] == kind and name in (None, one["metadata"]["name"])
    )


def _set(kind: str, name: str | None, path: str, value: Any) -> Callable[[Manifests], None]:
    def change(manifests: Manifests) -> None:
        parent: Any = the(manifests, kind, name)
        *steps, last = [
            int(step) if step.isdigit() else step.replace("~1", "/") for step in path.split("/")
        ]
        for step in steps:
            parent = parent[step]
        if value is None:
            del parent[last]
        else:
            parent[last] = value

    return change


def _drop(kind: str, name: str) -> Callable[[Manifests], None]:
    return lambda manifests: manifests.remove(the(manifests, kind, name))


def _served_instead(old: str, new: str) -> Callable[[Manifests], None]:
    def change(manifests: Manifests) -> None:
        spec = the(manifests, "RayService")["spec"]
        assert old in spec["serveConfigV2"]
        spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new, 1)

    return change


CLUSTER = "spec/rayClusterConfig"
WORKER = f"{CLUSTER}/workerGroupSpecs/0/template/spec"
SLIPS: dict[str, tuple[Callable[[Manifests], None], str]] = {
    # wrong types and values
    "replicas as text": (_set("StatefulSet", None, "spec/replicas", "3"), "'3' is not of type"),
    "a start parameter as a number": (
        _set("RayService", None, f"{CLUSTER}/headGroupSpec/rayStartParams/num-cpus", 0),
        "0 is not of type 'string'",
    ),
    "an unknown way to upgrade": (
        _set("RayService", None, "spec/upgradeStrategy/type", "Incremental"),
        "'Incremental' is not one of",
    ),
    "no step": (
        _set(
            "RayService", None, "spec/upgradeStrategy/clusterUpgradeOptions/stepSizePercent", None
        ),
        "'stepSizePercent' is a required property",
    ),
    "a duration without a unit": (
        _set("HTTPRoute", None, "spec/rules/0/timeouts/request", "660"),
        "does not match",
    ),
    "a port that is none": (
        _set("Gateway", None, "spec/listeners/0/port", 70000),
        "70000 is greater than",
    ),
    # KubeRay's rules
    "a step above the surge": (
        _set("RayService", None, "spec/upgradeStrategy/clusterUpgradeOptions/stepSizePercent", 80),
        "stepSizePercent is above maxSurgePercent",
    ),
    "an incremental upgrade without autoscaler": (
        _set("RayService", None, f"{CLUSTER}/enableInTreeAutoscaling", value=False),
        "needs the autoscaler",
    ),
    "the old autoscaler": (
        _set("RayService", None, f"{CLUSTER}/autoscalerOptions/version", "v1"),
        "not v2",
    ),
    "pods that restart": (_set("RayService", None, f"{WORKER}/restartPolicy", "Always"), "Never"),
    "no token": (_set("RayService", None, f"{CLUSTER}/authOptions/mode", "disabled"), "no token"),
    "work on the head": (
        _set("RayService", None, f"{CLUSTER}/headGroupSpec/rayStartParams/num-cpus", "4"),
        "could run on the head",
    ),
    "more workers at least than at most": (
        _set("RayService", None, f"{CLUSTER}/workerGroupSpecs/0/minReplicas", 9),
        "minReplicas is above maxReplicas",
    ),
    "Ray's state without TLS": (
        _set(
            "RayService",
            None,
            f"{CLUSTER}/gcsFaultToleranceOptions/redisAddress",
            "redis://parley-redis:6379",
        ),
        "with TLS",
    ),
    # Serve and Parley
    "an unknown key of Serve's": (
        _served_instead("max_ongoing_requests", "max_ongoing_request"),
        "unknown key; did you mean `max_ongoing_requests`?",
    ),
    "an unknown key at the top": (
        _served_instead("proxy_location", "proxy_locations"),
        "did you mean `proxy_location`?",
    ),
    "an unknown setting": (
        _served_instead("prefill_chunk", "prefil_chunk"),
        "did you mean `prefill_chunk`?",
    ),
    "a setting that can't be": (_served_instead("slots: 64", "slots: 0"), "greater than 0"),
    "an unknown deployment": (
        _served_instead("name: Tokenizer", "name: Tokeniser"),
        "no deployment of that name",
    ),
    "bounds that can't be": (
        _served_instead("max_replicas: 16", "max_replicas: 1"),
        "max_replicas",
    ),
    "a replica that fits nowhere": (
        _served_instead("num_cpus: 7", "num_cpus: 70"),
        "no worker has room for a Generator",
    ),
    "more replicas than workers": (
        _served_instead("max_replicas: 16", "max_replicas: 40"),
        "at most",
    ),
    "everybody let in": (_served_instead("required: true", "required: false"), "auth.required"),
    "a worker killed early": (
        _set("RayService", None, f"{WORKER}/terminationGracePeriodSeconds", 205),
        "before its replies have drained",
    ),
    "a worker that goes before its replicas": (
        _set("RayService", None, f"{WORKER}/containers/0/env/9/value", "150"),
        "before its replicas are replaced and stopped",
    ),
    "a worker that drains for as long as Ray does by itself": (
        _set("RayService", None, f"{WORKER}/containers/0/env/9", None),
        "before its replicas are replaced and stopped",
    ),
    "a generator stopped early": (
        _served_instead("generator:\n", "generator:\n        drain_timeout_s: 135\n"),
        "s are too few: replies may end",
    ),
    "a head that waits for itself": (
        _set(
            "RayService",
            None,
            f"{CLUSTER}/headGroupSpec/template/spec/containers/0/env/9/value",
            "200",
        ),
        "the head is killed while it waits",
    ),
    "a cluster deleted early": (
        _set("RayService", None, "spec/rayClusterDeletionDelaySeconds", 60),
        "before its last reply",
    ),
    # references
    "a missing secret": (
        _set("RayService", None, f"{CLUSTER}/authOptions/secretName", "parley-token"),
        "there is no Secret parley-token",
    ),
    "a missing key of a secret": (
        _set(
            "RayService",
            None,
            f"{CLUSTER}/gcsFaultToleranceOptions/redisPassword/valueFrom/secretKeyRef/key",
            "password",
        ),
        "the Secret parley-redis-acl has no key password",
    ),
    "a missing file of a secret": (
        _set("RayService", None, f"{WORKER}/containers/0/env/1/value", "/etc/parley/redis/uri"),
        "parley-redis-url has no file uri",
    ),
    "a file that nobody mounts": (
        _set("RayService", None, f"{WORKER}/containers/0/env/2/value", "/etc/parley/keys.txt"),
        "PARLEY_ENCRYPTION_KEYS_FILE names no mounted file",
    ),
    "a failover that loses what was confirmed": (
        _set("RayService", None, f"{WORKER}/containers/0/env/10", None),
        "would lose confirmed turns",
    ),
    "a turn that no two nodes can confirm": (
        _set("RayService", None, f"{WORKER}/containers/0/env/10/value", "2"),
        "without one node of Redis no turn could be stored",
    ),
    "a missing volume": (
        _set("RayService", None, f"{WORKER}/volumes/1", None),
        "there is no volume redis-ca",
    ),
    "a missing configuration": (
        lambda manifests: manifests.remove(the(manifests, "ConfigMap")),
        "there is no ConfigMap",
    ),
    "a route to nowhere": (
        _set("HTTPRoute", None, "spec/rules/0/backendRefs/0/name", "parley-serve-svc"),
        "there is no Service parley-serve-svc",
    ),
    "a route from nowhere": (
        _set("HTTPRoute", None, "spec/parentRefs/0/sectionName", "http"),
        "there is no listener",
    ),
    "an edge that cuts long streams": (
        _set("HTTPRoute", None, "spec/rules/0/timeouts/request", "60s"),
        "request cuts long replies",
    ),
    "an edge without a time limit of its own": (
        _set("HTTPRoute", None, "spec/rules/0/timeouts/backendRequest", None),
        "backendRequest cuts long replies",
    ),
    "an edge in plain text": (
        _set("Gateway", None, "spec/listeners/0/protocol", "HTTP"),
        "encrypted",
    ),
    "a monitor of a port that isn't there": (
        _set("PodMonitor", "parley", "spec/podMetricsEndpoints/0/port", "http"),
        "has no port http",
    ),
    "a probe of a port that isn't there": (
        _set("RayService", None, f"{WORKER}/containers/0/readinessProbe/httpGet/port", "http"),
        "asks a port http",
    ),
    "Services as variables": (
        _set("RayService", None, f"{WORKER}/enableServiceLinks", value=True),
        "PARLEY_",
    ),
    # reachability
    "an app cut off from Redis": (
        _drop("NetworkPolicy", "ray-to-redis"),
        "can't reach parley-redis",
    ),
    "a Redis that lets nobody in": (
        _drop("NetworkPolicy", "redis-from-ray"),
        "can't reach parley-redis-proxy on port 6379",
    ),
    "Redis on another port": (
        _set("NetworkPolicy", "ray-to-redis", "spec/egress/0/ports/0/port", 6380),
        "can't reach parley-redis-proxy on port 6379",
    ),
    "no names": (_drop("NetworkPolicy", "dns"), "can't reach DNS"),
    "replicas that can't replicate": (
        _drop("NetworkPolicy", "redis-internal"),
        "parley-redis can't reach parley-redis",
    ),
    "an open door": (_drop("NetworkPolicy", "default-deny"), "the world"),
    "a scrape that is refused": (_drop("NetworkPolicy", "ray-from-prometheus"), "Prometheus can't"),
    "an edge that leads nowhere": (
        _drop("NetworkPolicy", "workers-from-gateway"),
        "parley-gateway can't reach parley-cpu",
    ),
    # names of others'
    "a variable that Ray doesn't read": (
        _set("RayService", None, f"{WORKER}/containers/0/env/3/name", "RAY_REDIS_CA_CRT"),
        "Ray knows no RAY_REDIS_CA_CRT",
    ),
    "a probe that asks nobody": (
        _set("RayService", None, f"{WORKER}/containers/0/startupProbe/httpGet/path", "/healthz"),
        "nothing answers startupProbe",
    ),
    "a readiness that nobody tells": (
        _set("RayService", None, f"{WORKER}/containers/0/readinessProbe/httpGet/path", "/-/health"),
        "nothing answers readinessProbe",
    ),
    "no startup probe": (
        _set("RayService", None, f"{WORKER}/containers/0/startupProbe", None),
        "has no startupProbe",
    ),
    "a home that is lost": (
        _set("RayService", None, f"{WORKER}/containers/0/volumeMounts/0/mountPath", "/var/lib/x"),
        "PARLEY_HOME is on no volume",
    ),
    "an edge of a class that nobody has": (
        _set("Gateway", None, "spec/gatewayClassName", "istoi"),
        "there is no GatewayClass istoi",
    ),
    "a scrape of another path": (
        _set("PodMonitor", "parley", "spec/podMetricsEndpoints/0/path", "/metric"),
        "nothing answers at /metric",
    ),
    "metrics at another port": (
        _served_instead("port: 9464", "port: 9465"),
        "nothing answers at the port parley-metrics",
    ),
    "another Ray": (_set("RayService", None, f"{CLUSTER}/rayVersion", "2.59.0"), "rayVersion"),
    "a head that is sent requests": (
        _set("RayService", None, "spec/excludeHeadPodFromServeSvc", None),
        "the head would be sent requests",
    ),
    "no state outside of the head": (
        _set("RayService", None, f"{CLUSTER}/gcsFaultToleranceOptions", None),
        "Ray's own state needs a Redis",
    ),
    # spreading, budgets, security, resources
    "workers on one node": (
        _set("RayService", None, f"{WORKER}/topologySpreadConstraints", None),
        "parley-cpu: all pods may lie on one node",
    ),
    "all Redis on one node": (
        _set("StatefulSet", None, "spec/template/spec/topologySpreadConstraints", None),
        "parley-redis: all pods may lie on one node",
    ),
    "workers without a budget": (
        _drop("PodDisruptionBudget", "parley-workers"),
        "parley-cpu: no budget keeps",
    ),
    "Redis without a budget": (
        _drop("PodDisruptionBudget", "parley-redis"),
        "parley-redis: no budget keeps",
    ),
    "a worker that could ask the API server": (
        _set("RayService", None, f"{WORKER}/automountServiceAccountToken", None),
        "gets a token of the API server",
    ),
    "a budget that can never be met": (
        _set("PodDisruptionBudget", "parley-workers", "spec/minAvailable", 4),
        "keeps 4 of 4 pods",
    ),
    "a budget that allows nothing": (
        _set("PodDisruptionBudget", "parley-redis", "spec/maxUnavailable", 0),
        "keeps 3 of 3 pods",
    ),
    "a budget that Ray's pods can't have": (
        _set("PodDisruptionBudget", "parley-workers", "spec/minAvailable", "50%"),
        "as a number",
    ),
    "root": (
        _set("RayService", None, f"{WORKER}/securityContext/runAsNonRoot", value=False),
        "as root",
    ),
    "capabilities": (
        _set("RayService", None, f"{WORKER}/containers/0/securityContext/capabilities", None),
        "keeps capabilities",
    ),
    "an autoscaler with privileges": (
        _set("RayService", None, f"{CLUSTER}/autoscalerOptions/securityContext", None),
        "autoscaler may gain privileges",
    ),
    "a volume of the host": (
        _set(
            "RayService", None, f"{WORKER}/volumes/0", {"name": "home", "hostPath": {"path": "/"}}
        ),
        "forbidden type",
    ),
    "a namespace that takes any pod": (
        _set("Namespace", None, "metadata/labels/pod-security.kubernetes.io~1enforce", "baseline"),
        "restricted",
    ),
    "no requests": (
        _set("Deployment", None, "spec/template/spec/containers/0/resources/requests", None),
        "requests no CPU or memory",
    ),
    "no probe": (
        _set("RayService", None, f"{WORKER}/containers/0/livenessProbe", None),
        "has no livenessProbe",
    ),
}
