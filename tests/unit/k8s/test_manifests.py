"""Every overlay is what Kubernetes, KubeRay, Serve and Parley take, and a slip anywhere is refused."""

from __future__ import annotations

import copy
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_rules import cluster_faults, secret_references, workloads
from kustomize import K8S, SERVICES, build, run_kubectl
from manifest_slips import SLIPS, the
from ray._private import ray_constants
from schemas import schema_faults
from serve_config import serve_faults

from serve_app.cluster.deploy_file import default_deploy_file, load_deployment
from serve_app.routing.serving import chosen_backend
from serve_app.state.keys import KeyRing

Manifest = dict[str, Any]
Manifests = list[Manifest]

REPOSITORY = Path(__file__).parents[3]
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


@pytest.mark.parametrize("folder", SERVICES)
def test_nothing_is_wrong_with_an_overlay(folder: str, faults) -> None:
    assert faults(build(folder)) == []


def test_nothing_is_wrong_with_what_a_cluster_gets_once() -> None:
    assert [fault for one in build("cluster") for fault in schema_faults(one)] == []


def test_upgrades_use_a_gateway_class_that_the_cluster_has() -> None:
    options = the(build(HA), "RayService")["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    assert options["gatewayClassName"] == the(build("cluster"), "GatewayClass")["metadata"]["name"]


@pytest.mark.parametrize("folder", SERVICES)
def test_no_secret_lies_in_the_manifests(folder: str) -> None:
    manifests = build(folder)
    assert not [one for one in manifests if one["kind"] == "Secret"]
    for workload_env in _environments(manifests):
        name = workload_env["name"]
        if any(word in name for word in ("PASSWORD", "TOKEN", "AUTH", "URL", "KEYS")):
            assert "valueFrom" in workload_env or name.endswith("_FILE"), name


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
    used = {name for folder in SERVICES for name, _ in secret_references(build(folder))}
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
    del gpu["spec"]["initContainers"], gpu["spec"]["volumes"][0]  # what builds the engine
    assert gpu == cpu


@pytest.mark.parametrize("folder", ["overlays/gpu-pool", HA])
def test_gpu_workers_build_the_engines_that_their_replicas_load(
    folder: str, tmp_path: Path
) -> None:
    manifests = build(folder)
    cluster = the(manifests, "RayService")["spec"]["rayClusterConfig"]
    (pod,) = (
        group["template"]["spec"]
        for group in cluster["workerGroupSpecs"]
        if group["groupName"] == "gpu"
    )
    (builder,), (worker,) = pod["initContainers"], pod["containers"]
    assert builder["image"] == worker["image"]
    assert builder["resources"] == worker["resources"]  # the very GPU
    command, file = builder["command"][:-1], Path(builder["command"][-1])
    assert command == ["parley", "model", "build", "--config"]
    (mount,) = (one for one in builder["volumeMounts"] if one["mountPath"] == str(file.parent))
    (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
    (given,) = (
        one["data"]
        for one in manifests
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == volume["configMap"]["name"]
    )
    assert given[file.name] == the(manifests, "RayService")["spec"]["serveConfigV2"]
    home = {"name": "home", "mountPath": "/var/lib/parley"}
    assert home in builder["volumeMounts"]
    assert home in worker["volumeMounts"]
    served = tmp_path / file.name
    served.write_text(given[file.name])
    (model,) = load_deployment(served).models
    assert [chosen_backend(pool.settings) for pool in model.pools] == ["tensorrt"]


def _served(folder: str) -> Manifest:
    served: Manifest = yaml.safe_load(the(build(folder), "RayService")["spec"]["serveConfigV2"])
    return served


@pytest.mark.parametrize("folder", SERVICES)
def test_serve_runs_the_application_of_the_local_deploy_file(folder: str) -> None:
    local, here = yaml.safe_load(default_deploy_file().read_text()), _served(folder)
    may_differ = {
        "proxy_location", "http_options.host", "logging_config.encoding",
        "args.auth.keys_file", "args.auth.required", "args.generator.slots",
        "args.generator.max_cached_tokens", "args.metrics.port", "min_replicas", "max_replicas",
        "target_ongoing_requests", "max_replicas_per_node", "num_cpus", "num_gpus",
        "max_surge_percent",  # of two replicas, the other one serves meanwhile
    }  # fmt: skip
    if "gpu" in folder:
        may_differ |= {"args.model.precision", "args.model.form", "args.model.engines"}
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


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_refused(slip: str, faults) -> None:
    manifests = copy.deepcopy(build(HA))
    change, said = SLIPS[slip]
    change(manifests)
    assert any(said in fault for fault in faults(manifests)), faults(manifests)


def test_gpu_pools_have_all_that_an_operator_looks_for() -> None:
    """Beside what `cluster_faults` asks for: what would be missed only by whoever looks at nothing."""
    kinds = {one["kind"] for one in build("overlays/gpu-pool")}
    assert {"Gateway", "HTTPRoute", "PodMonitor", "PrometheusRule", "PodDisruptionBudget"} <= kinds
    upgrade = the(build("overlays/gpu-pool"), "RayService")["spec"]["upgradeStrategy"]
    assert upgrade["type"] == "NewClusterWithIncrementalUpgrade"


def test_the_edge_passes_on_what_the_service_answers_and_no_more() -> None:
    matches = [
        (match["path"]["type"], match["path"]["value"])
        for rule in the(build(HA), "HTTPRoute")["spec"]["rules"]
        for match in rule["matches"]
    ]

    def passed_on(path: str) -> bool:
        return any(
            path.startswith(value) if kind == "PathPrefix" else path == value
            for kind, value in matches
        )

    routes = "".join(
        file.read_text("utf-8")
        for file in (REPOSITORY / "serve_app" / "ingress" / "routes").glob("*.py")
    )
    answered = set(re.findall(r'(?:\.(?:get|post)\(|prefix=)"(/\w[^"]*)"', routes))
    assert len(answered) > 10
    assert {path for path in answered if not passed_on(path)} == {"/metrics"}
    assert not any(map(passed_on, ("/metrics", "/-/healthz", "/-/routes", "/docs", "/")))
    for kind, value in matches:
        assert any(path.startswith(value) for path in answered), (kind, value)


def test_ray_knows_the_time_that_a_node_drains() -> None:
    """The name is Ray's own; without it a worker would have 30 seconds."""
    assert ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S == 30


@pytest.mark.parametrize("folder", SERVICES)
def test_every_image_is_pinned(folder: str) -> None:
    images = {
        container["image"]
        for workload in workloads(build(folder))
        for container in (*workload.pod.get("initContainers", ()), *workload.pod["containers"])
    }
    assert len(images) >= 2
    for image in images:
        name, _, tag = image.rpartition(":")
        assert "/" in name, image  # no registry is guessed
        assert tag == "local" or re.fullmatch(r"\d+\.\d+\.\d+(-[a-z]+)?", tag), image


def test_readiness_needs_no_other_part_of_the_service() -> None:
    """/ready asks for the whole application: as a probe it would take every pod out at once."""
    spec = the(build(HA), "RayService")["spec"]["rayClusterConfig"]
    for group in spec["workerGroupSpecs"]:
        probe = group["template"]["spec"]["containers"][0]["readinessProbe"]
        assert probe["httpGet"]["path"] == "/-/healthz"


def test_the_overlay_that_the_documents_show_names_your_registry_and_host_alone(
    tmp_path: Path,
) -> None:
    text = (REPOSITORY / "docs" / "kubernetes.md").read_text("utf-8")
    (shown,) = re.findall(r"```yaml\n(apiVersion: kustomize.*?)```", text, re.DOTALL)
    shutil.copytree(K8S, tmp_path / "k8s")
    mine = tmp_path / "k8s" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(shown)
    built = run_kubectl("kustomize", str(mine))
    assert "registry.example.com" not in built
    assert "parley.example.com" not in built
    assert built.count("chat.you.example") == 2


@pytest.mark.parametrize("overlay", SERVICES)
def test_programs_that_rays_pods_name_are_in_the_image(overlay: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    programs = {f"/opt/parley/bin/{name}" for name in project["project"]["scripts"]}
    named = re.findall(r"/opt/parley/bin/[\w-]+", yaml.safe_dump_all(build(overlay)))
    assert named
    assert set(named) <= programs
