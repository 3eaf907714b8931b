"""Every overlay is what Kubernetes, KubeRay, Serve and Parley take, and a slip anywhere is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_rules import cluster_faults, secret_references
from kustomize import OVERLAYS, build
from schemas import schema_faults
from serve_config import serve_faults

from serve_app.cluster.deploy_file import default_deploy_file
from serve_app.state.keys import KeyRing

Manifest = dict[str, Any]
Manifests = list[Manifest]

HA = "overlays/gpu-pool-redis-ha"
# Whose certificate it is, only its owner knows; docs/kubernetes.md says how it comes there.
_OWN_CERTIFICATE = {"parley-edge-tls": {"tls.crt", "tls.key"}}
# Below these, keys are somebody's own names.
_FREE = {
    "labels", "matchLabels", "annotations", "data", "selector", "requests", "limits", "rayStartParams",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path / "home"))
    KeyRing(tmp_path / "keys.json").create("first", "default")
    monkeypatch.setenv("PARLEY_AUTH_KEYS_FILE", str(tmp_path / "keys.json"))


@pytest.fixture(scope="session")
def secrets(secret_manifests: Manifests) -> dict[str, set[str]]:
    made = {one["metadata"]["name"]: set(one["data"]) for one in secret_manifests}
    return made | _OWN_CERTIFICATE


@pytest.fixture
def faults(tmp_path: Path, secrets: dict[str, set[str]]) -> Callable[[Manifests], list[str]]:
    """Everything that is wrong with an overlay; later checks rely on what earlier ones found sound."""

    def check(manifests: Manifests) -> list[str]:
        if found := [fault for one in manifests for fault in schema_faults(one)]:
            return found
        found = cluster_faults(manifests, secrets)
        return found + serve_faults(the(manifests, "RayService"), tmp_path)

    return check


def the(manifests: Manifests, kind: str, name: str | None = None) -> Manifest:
    return next(
        one for one in manifests if one["kind"] == kind and name in (None, one["metadata"]["name"])
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_wrong_with_an_overlay(overlay: str, faults) -> None:
    assert faults(build(f"overlays/{overlay}")) == []


def test_nothing_is_wrong_with_what_a_cluster_gets_once() -> None:
    assert [fault for one in build("cluster") for fault in schema_faults(one)] == []


def test_upgrades_use_a_gateway_class_that_the_cluster_has() -> None:
    options = the(build(HA), "RayService")["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    assert options["gatewayClassName"] == the(build("cluster"), "GatewayClass")["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_lies_in_the_manifests(overlay: str) -> None:
    manifests = build(f"overlays/{overlay}")
    assert not [one for one in manifests if one["kind"] == "Secret"]
    for workload_env in _environments(manifests):
        name = workload_env["name"]
        if any(word in name for word in ("PASSWORD", "TOKEN", "AUTH", "URL")):
            assert "valueFrom" in workload_env, name


def _environments(value: Any) -> Iterator[Manifest]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "env":
                yield from inner
            yield from _environments(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _environments(inner)


def test_every_secret_that_is_made_is_used(secret_manifests: Manifests) -> None:
    used = {
        name for overlay in OVERLAYS for name, _ in secret_references(build(f"overlays/{overlay}"))
    }
    assert {one["metadata"]["name"] for one in secret_manifests} <= used


def test_gpu_workers_differ_from_cpu_workers_only_in_what_a_gpu_asks_for() -> None:
    groups = the(build("overlays/gpu-pool"), "RayService")["spec"]["rayClusterConfig"][
        "workerGroupSpecs"
    ]
    cpu, gpu = (copy.deepcopy(group["template"]) for group in groups)
    for template in (cpu, gpu):
        pod, container = template["spec"], template["spec"]["containers"][0]
        del container["image"], container["resources"], container["startupProbe"]
        del pod["topologySpreadConstraints"], pod["volumes"][0]
        pod.pop("tolerations", None)
    assert gpu == cpu


def _served(overlay: str) -> Manifest:
    served: Manifest = yaml.safe_load(
        the(build(f"overlays/{overlay}"), "RayService")["spec"]["serveConfigV2"]
    )
    return served


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serve_runs_the_application_of_the_local_deploy_file(overlay: str) -> None:
    local, here = yaml.safe_load(default_deploy_file().read_text()), _served(overlay)
    may_differ = {
        "proxy_location", "http_options.host", "logging_config.encoding",
        "args.auth.keys_file", "args.auth.required", "args.generator.slots",
        "args.generator.max_cached_tokens", "min_replicas", "max_replicas",
        "target_ongoing_requests", "max_replicas_per_node", "num_cpus", "num_gpus",
        "max_surge_percent",  # of two replicas, the other one serves meanwhile
    }  # fmt: skip
    differ = {
        path
        for path in _leaves(local).items() ^ _leaves(here).items()
        if not any(path[0].endswith(allowed) for allowed in may_differ)
    }
    assert differ == set()


def _leaves(value: Any, path: str = "") -> dict[str, str]:
    """Return each leaf by its path; items of lists go by their name."""
    if isinstance(value, dict):
        items = [(key, inner) for key, inner in value.items() if key != "name"]
    elif isinstance(value, list):
        items = [(inner["name"], inner) for inner in value]
    else:
        return {path.strip("."): repr(value)}
    found: dict[str, str] = {}
    for key, inner in items:
        found |= _leaves(inner, f"{path}.{key}")
    return found


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every key that is no name of somebody's own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            selects = key == "selector" and {"matchLabels", "matchExpressions"} & set(inner)
            if selects or key not in _FREE:
                yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _paths(inner, (*path, position))


def _mistype(manifest: Manifest, path: tuple[Any, ...]) -> Manifest:
    """Return the manifest with one key misspelt."""
    changed = copy.deepcopy(manifest)
    parent: Any = changed
    for step in path[:-1]:
        parent = parent[step]
    parent[f"{path[-1]}x"] = parent.pop(path[-1])
    return changed


def test_a_misspelt_key_is_refused_wherever_it_stands() -> None:
    passed, tried = [], set()
    for one in [*build(HA), *build("cluster")]:
        for path in _paths(one):
            # Many objects are alike: once is enough for each place in a kind.
            place = (one["kind"], *(step for step in path if isinstance(step, str)))
            if place not in tried:
                tried.add(place)
                if not schema_faults(_mistype(one, path)):
                    passed.append(place)
    assert len(tried) > 300
    assert passed == []


@pytest.mark.parametrize("key", ["labels", "matchLabels", "selector", "subPath"])
def test_a_misspelt_name_is_refused_too(key: str, secrets: dict[str, set[str]]) -> None:
    """A selector or label that is off by a letter selects nothing, or isn't selected."""
    sound = build(HA)
    passed = []
    for position, one in enumerate(sound):
        for path in _places(one, key):
            changed = copy.deepcopy(sound)
            parent: Any = changed[position]
            for step in path[:-1]:
                parent = parent[step]
            value = parent[path[-1]]
            if isinstance(value, dict):
                last = "app.kubernetes.io/component"
                if last not in value or path[0] == "metadata":
                    continue
                value[last] += "x"
            else:
                parent[path[-1]] = f"{value}x"
            if not cluster_faults(changed, secrets):
                passed.append((one["kind"], one["metadata"]["name"], *path))
    assert passed == []


def _places(value: Any, key: str, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    steps: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    for step, inner in steps:
        if step == key:
            yield (*path, step)
        yield from _places(inner, key, (*path, step))


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
    "a setting that can't be": (_served_instead("slots: 32", "slots: 0"), "greater than 0"),
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
        _set("RayService", None, f"{WORKER}/terminationGracePeriodSeconds", 30),
        "before its replies have drained",
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
        _set("RayService", None, f"{WORKER}/containers/0/env/1/valueFrom/secretKeyRef/key", "uri"),
        "the Secret parley-redis-url has no key uri",
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
    # budgets, security, resources
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


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_refused(slip: str, faults) -> None:
    manifests = copy.deepcopy(build(HA))
    change, said = SLIPS[slip]
    change(manifests)
    assert any(said in fault for fault in faults(manifests)), faults(manifests)


def test_readiness_needs_no_other_part_of_the_service() -> None:
    """/ready asks for the whole application: as a probe it would take every pod out at once."""
    spec = the(build(HA), "RayService")["spec"]["rayClusterConfig"]
    for group in spec["workerGroupSpecs"]:
        probe = group["template"]["spec"]["containers"][0]["readinessProbe"]
        assert probe["httpGet"]["path"] == "/-/healthz"
