"""What schemas can't see: references, selectors, reachability, budgets, and what Parley needs.

`cluster_faults` looks at all objects of one overlay together, as they would lie in one namespace. Rules
of KubeRay are those of its operator's validation in 1.7.0; the labels are those that it puts on pods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from foreign_names import foreign_name_faults
from network import Network
from spreading import spreading_faults

__all__ = ["KUBERAY_LABELS", "Workload", "cluster_faults", "secret_references", "workloads"]

Manifest = dict[str, Any]

KUBERAY_LABELS = {"ray.io/is-ray-node": "yes", "app.kubernetes.io/created-by": "kuberay-operator"}
_RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected",
    "secret",
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """Pods of one template: `replicas` of them at least."""

    name: str
    template: Manifest
    replicas: int
    is_ray: bool

    @property
    def labels(self) -> dict[str, str]:
        own = self.template["metadata"].get("labels") or {}
        return {**(KUBERAY_LABELS if self.is_ray else {}), **own}

    @property
    def pod(self) -> Manifest:
        spec: Manifest = self.template["spec"]
        return spec

    @property
    def ports(self) -> dict[str, int]:
        return {
            port["name"]: port["containerPort"]
            for container in self.pod["containers"]
            for port in container.get("ports") or []
        }


def workloads(manifests: list[Manifest]) -> list[Workload]:
    """Return everything that makes pods."""
    found = []
    for one in manifests:
        name = one["metadata"]["name"]
        if one["kind"] in ("StatefulSet", "Deployment"):
            spec = one["spec"]
            found.append(Workload(name, spec["template"], spec["replicas"], is_ray=False))
        elif one["kind"] == "RayService":
            cluster = one["spec"]["rayClusterConfig"]
            found.append(
                Workload(f"{name}-head", cluster["headGroupSpec"]["template"], 1, is_ray=True)
            )
            found += [
                Workload(
                    f"{name}-{group['groupName']}",
                    group["template"],
                    group["minReplicas"],
                    is_ray=True,
                )
                for group in cluster["workerGroupSpecs"]
            ]
    return found


def secret_references(manifests: list[Manifest]) -> set[tuple[str, str]]:
    """Return the (name, key) of every Secret that something refers to; the key may be ``""``."""
    found: set[tuple[str, str]] = set()

    def visit(value: Any) -> None:
        if isinstance(value, list):
            for inner in value:
                visit(inner)
        if not isinstance(value, dict):
            return
        for key, inner in value.items():
            if key in ("secretKeyRef", "credentials") and isinstance(inner, dict):
                found.add((inner["name"], inner["key"]))
            elif key == "secret" and isinstance(inner, dict):
                items = inner.get("items") or [{"key": ""}]
                found.update((inner["secretName"], item["key"]) for item in items)
            elif key == "authOptions":
                found.add((inner["secretName"], "auth_token"))
            elif key == "certificateRefs":
                found.update((one["name"], key) for one in inner for key in ("tls.crt", "tls.key"))
            else:
                visit(inner)

    visit(manifests)
    return found


def cluster_faults(manifests: list[Manifest], secrets: dict[str, set[str]]) -> list[str]:
    """Return what would go wrong although every single object is well-formed.

    Args:
        manifests: all objects of an overlay.
        secrets: the keys of every Secret that will be there.
    """
    pods = workloads(manifests)
    return [
        *_missing_references(manifests, secrets),
        *_missing_files(pods, secrets),
        *_confirmed_writes(pods),
        *_selectors(manifests, pods),
        *_budgets(manifests, pods),
        *spreading_faults(manifests, pods),
        *_containers(pods),
        *_pod_security(manifests, pods),
        *_kuberay(manifests),
        *foreign_name_faults(manifests, pods),
        *_edge(manifests),
        *Network(manifests, pods).faults(),
    ]


def _of(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] == kind]


def _missing_references(manifests: list[Manifest], secrets: dict[str, set[str]]) -> Iterator[str]:
    for name, key in sorted(secret_references(manifests)):
        if name not in secrets:
            yield f"there is no Secret {name}"
        elif key and key not in secrets[name]:
            yield f"the Secret {name} has no key {key}"
    maps = {one["metadata"]["name"]: set(one["data"]) for one in _of(manifests, "ConfigMap")}
    for workload in workloads(manifests):
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes") or []}
        claims = {
            claim["metadata"]["name"]
            for one in _of(manifests, "StatefulSet")
            if one["metadata"]["name"] == workload.name
            for claim in one["spec"].get("volumeClaimTemplates") or []
        }
        for volume in volumes.values():
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                yield f"{workload.name}: there is no ConfigMap {volume['configMap']['name']}"
        for container in _all_containers(workload.pod):
            for mount in container.get("volumeMounts") or []:
                if mount["name"] not in {*volumes, *claims}:
                    yield f"{workload.name}: there is no volume {mount['name']}"
                source = volumes.get(mount["name"], {}).get("configMap")
                if source and "subPath" in mount:
                    keys = maps.get(source["name"], set())
                    if mount["subPath"] not in keys:
                        yield f"{workload.name}: {source['name']} has no {mount['subPath']}"


def _missing_files(pods: list[Workload], secrets: dict[str, set[str]]) -> Iterator[str]:
    """Whatever a variable names below /etc/parley is a file of a Secret that is mounted there."""
    for workload in pods:
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes") or []}
        for container in workload.pod["containers"]:
            mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts") or []}
            for variable in container.get("env") or []:
                file = variable.get("value", "")
                if not file.startswith("/etc/parley/"):
                    continue
                folder, _, name = file.rpartition("/")
                source = volumes.get(mounts.get(folder, {}).get("name", ""), {}).get("secret")
                if source is None:
                    yield f"{workload.name}: {variable['name']} names no mounted file"
                    continue
                items = source.get("items")
                there = {item["path"] for item in items} if items else secrets[source["secretName"]]
                if name not in there:
                    yield f"{workload.name}: {source['secretName']} has no file {name}"


def _confirmed_writes(pods: list[Workload]) -> Iterator[str]:
    """Where Redis fails over, a write counts once another node has it, or it may be lost."""
    nodes = next((pod.replicas for pod in pods if pod.name == "parley-redis"), 0)
    for workload in pods:
        if not workload.is_ray:
            continue
        environment = {
            one["name"]: one.get("value") for one in workload.pod["containers"][0].get("env") or []
        }
        wanted = int(environment.get("PARLEY_REDIS_REPLICAS") or 0)
        if nodes > 1 and not wanted:
            yield f"{workload.name}: a failover of Redis would lose confirmed turns"
        if wanted >= max(nodes, 1):
            yield f"{workload.name}: {nodes} Redis have no {wanted} replicas"
        # One of the replicas may be away for a while.
        if nodes > 1 and wanted > nodes - 2:
            yield f"{workload.name}: without one node of Redis no turn could be stored"


def _selectors(manifests: list[Manifest], pods: list[Workload]) -> Iterator[str]:
    for one in manifests:
        kind, name, spec = one["kind"], one["metadata"]["name"], one.get("spec") or {}
        if kind in ("StatefulSet", "Deployment"):
            labels = spec["template"]["metadata"]["labels"]
            if not spec["selector"]["matchLabels"].items() <= labels.items():
                yield f"{kind}/{name} doesn't select its own pods"
        if kind == "Service":
            chosen = [pod for pod in pods if spec["selector"].items() <= pod.labels.items()]
            if not chosen:
                yield f"Service/{name} selects no pod"
            for port in spec["ports"]:
                target = port.get("targetPort", port["port"])
                for pod in chosen:
                    known = pod.ports if isinstance(target, str) else set(pod.ports.values())
                    if target not in known:
                        yield f"Service/{name}: {pod.name} has no port {target}"
        if kind in ("PodMonitor", "PodDisruptionBudget"):
            wanted = spec["selector"]["matchLabels"]
            chosen = [pod for pod in pods if wanted.items() <= pod.labels.items()]
            if not chosen:
                yield f"{kind}/{name} selects no pod"
            for endpoint in spec.get("podMetricsEndpoints") or []:
                for pod in chosen:
                    if endpoint["port"] not in pod.ports:
                        yield f"PodMonitor/{name}: {pod.name} has no port {endpoint['port']}"
    for pod in pods:
        for constraint in pod.pod.get("topologySpreadConstraints") or []:
            if not constraint["labelSelector"]["matchLabels"].items() <= pod.labels.items():
                yield f"{pod.name} is spread by labels that it doesn't have"


def _budgets(manifests: list[Manifest], pods: list[Workload]) -> Iterator[str]:
    for one in _of(manifests, "PodDisruptionBudget"):
        name, spec = one["metadata"]["name"], one["spec"]
        wanted = spec["selector"]["matchLabels"]
        chosen = [pod for pod in pods if wanted.items() <= pod.labels.items()]
        least = sum(pod.replicas for pod in chosen)
        if any(pod.is_ray for pod in chosen) and not isinstance(spec.get("minAvailable"), int):
            yield f"PodDisruptionBudget/{name}: Ray's pods need minAvailable as a number"
        kept = spec.get("minAvailable", least - spec.get("maxUnavailable", 0))
        if isinstance(kept, int) and kept >= least:
            yield f"PodDisruptionBudget/{name} keeps {kept} of {least} pods: no drain would end"


def _all_containers(pod: Manifest) -> list[Manifest]:
    return [*(pod.get("initContainers") or []), *pod["containers"]]


def _containers(pods: list[Workload]) -> Iterator[str]:
    for workload in pods:
        pod = workload.pod
        if pod.get("enableServiceLinks") is not False:
            yield f"{workload.name}: Services would become PARLEY_… variables"
        for container in _all_containers(pod):
            where = f"{workload.name}/{container['name']}"
            asked, most = (
                container.get("resources", {}).get(k, {}) for k in ("requests", "limits")
            )
            if not {"cpu", "memory"} <= set(asked):
                yield f"{where} requests no CPU or memory"
            if asked.get("memory") is None or "memory" not in most:
                yield f"{where} has no memory limit"
        for container in pod["containers"]:
            where = f"{workload.name}/{container['name']}"
            for probe in ("readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"{where} has no {probe}"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                action = container.get(probe, {})
                port = (action.get("httpGet") or action.get("tcpSocket") or {}).get("port")
                if isinstance(port, str) and port not in workload.ports:
                    yield f"{where}: {probe} asks a port {port} that isn't there"


def _pod_security(manifests: list[Manifest], pods: list[Workload]) -> Iterator[str]:
    for one in _of(manifests, "Namespace"):
        if one["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"Namespace/{one['metadata']['name']} doesn't enforce restricted pods"
    for workload in pods:
        pod = workload.pod
        security = pod.get("securityContext") or {}
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
            yield f"{workload.name} may run as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{workload.name} has no seccomp profile"
        asks_api = (
            workload.labels.get("app.kubernetes.io/component") == "ray-head"
        )  # the autoscaler
        if not asks_api and pod.get("automountServiceAccountToken") is not False:
            yield f"{workload.name} gets a token of the API server, and needs none"
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{workload.name} shares a namespace of its host"
        for volume in pod.get("volumes") or []:
            if not (set(volume) - {"name"}) <= _RESTRICTED_VOLUMES:
                yield f"{workload.name}: the volume {volume['name']} is of a forbidden type"
        for container in _all_containers(pod):
            yield from _confined(f"{workload.name}/{container['name']}", container)
    for one in _of(manifests, "RayService"):
        options = one["spec"]["rayClusterConfig"].get("autoscalerOptions", {})
        yield from _confined("autoscaler", options)


def _confined(name: str, container: Manifest) -> Iterator[str]:
    context = container.get("securityContext") or {}
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name} may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{name} keeps capabilities"
    if context.get("privileged") or context.get("runAsUser") == 0:
        yield f"{name} is privileged"


def _kuberay(manifests: list[Manifest]) -> Iterator[str]:
    for one in _of(manifests, "RayService"):
        spec = one["spec"]
        cluster, strategy = spec["rayClusterConfig"], spec.get("upgradeStrategy") or {}
        if len(one["metadata"]["name"]) > 47:
            yield "a RayService's name has 47 characters at most"
        options = strategy.get("clusterUpgradeOptions")
        if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
            if not cluster.get("enableInTreeAutoscaling"):
                yield "an incremental upgrade needs the autoscaler"
            if options is None:
                yield "an incremental upgrade needs clusterUpgradeOptions"
            elif options["stepSizePercent"] > options.get("maxSurgePercent", 100):
                yield "stepSizePercent is above maxSurgePercent"
        if cluster.get("autoscalerOptions", {}).get("version") != "v2":
            yield "the autoscaler is not v2"
        if cluster.get("authOptions", {}).get("mode") != "token":
            yield "Ray asks for no token"
        redis = cluster.get("gcsFaultToleranceOptions", {})
        if not redis.get("redisAddress", "").startswith("rediss://"):
            yield "Ray's own state needs a Redis with TLS"
        head = cluster["headGroupSpec"]
        if head.get("rayStartParams", {}).get("num-cpus") != "0":
            yield "replicas could run on the head"
        if spec.get("excludeHeadPodFromServeSvc") is not True:
            yield "the head would be sent requests, and serves nobody"
        if set(head["rayStartParams"]) & {"redis-password", "redis-username"}:
            yield "Redis' user belongs into gcsFaultToleranceOptions"
        for template in (head["template"], *(g["template"] for g in cluster["workerGroupSpecs"])):
            if template["spec"].get("restartPolicy", "Never") != "Never":
                yield "autoscaler v2 takes no restartPolicy but Never"
        names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
        if len(names) != len(set(names)):
            yield "two worker groups have one name"
        for group in cluster["workerGroupSpecs"]:
            if group["minReplicas"] > group["maxReplicas"]:
                yield f"worker group {group['groupName']}: minReplicas is above maxReplicas"
        if "serve" not in {
            port["name"] for port in head["template"]["spec"]["containers"][0].get("ports") or []
        }:
            # KubeRay takes the Service's port from the head, whoever serves.
            yield "the head has no port named serve, so that there would be no Service"


def _longest_reply_s(manifests: list[Manifest]) -> float:
    (ray_service,) = _of(manifests, "RayService")
    config = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    return float(config["applications"][0]["args"]["ingress"]["request_timeout_s"])


def _edge(manifests: list[Manifest]) -> Iterator[str]:
    gateways = {
        one["metadata"]["name"]: {listener["name"] for listener in one["spec"]["listeners"]}
        for one in _of(manifests, "Gateway")
    }
    # KubeRay makes a Gateway of its own, and Istio the Service of that.
    services = {one["metadata"]["name"] for one in _of(manifests, "Service")}
    for one in _of(manifests, "RayService"):
        options = one["spec"].get("upgradeStrategy", {}).get("clusterUpgradeOptions")
        if options:
            services.add(f"{one['metadata']['name']}-gateway-{options['gatewayClassName']}")
    for one in _of(manifests, "Gateway"):
        for listener in one["spec"]["listeners"]:
            if listener["protocol"] != "HTTPS" or "tls" not in listener:
                yield f"Gateway/{one['metadata']['name']}: {listener['name']} is not encrypted"
    for one in _of(manifests, "HTTPRoute"):
        name = one["metadata"]["name"]
        for parent in one["spec"]["parentRefs"]:
            if parent.get("sectionName") not in gateways.get(parent["name"], set()):
                yield f"HTTPRoute/{name}: there is no listener {parent}"
        for rule in one["spec"]["rules"]:
            for kind in ("request", "backendRequest"):
                # Without one, an implementation's own counts, which may be seconds.
                seconds = rule.get("timeouts", {}).get(kind, "0s").removesuffix("s")
                if not seconds.isdigit() or int(seconds) <= _longest_reply_s(manifests):
                    yield f"HTTPRoute/{name}: {kind} cuts long replies"
            for backend in rule["backendRefs"]:
                if backend["name"] not in services:
                    yield f"HTTPRoute/{name}: there is no Service {backend['name']}"
