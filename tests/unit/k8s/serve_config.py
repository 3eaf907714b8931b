"""Checks `serveConfigV2` as `parley config check` does, and against the cluster it is to run on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serve_app.cluster.deploy_file import load_deployment
from serve_app.errors import ConfigError

__all__ = ["serve_faults"]

Manifest = dict[str, Any]


# Time in which a replica that is ready elsewhere takes over, and in which Ray's processes end.
_REPLACED_S = 60
_ENDED_S = 15


def serve_faults(ray_service: Manifest, folder: Path) -> list[str]:
    """Return what Serve, Parley's settings or this cluster would refuse.

    Args:
        ray_service: the RayService.
        folder: where the file is written for the check.
    """
    file = folder / "serve.yaml"
    file.write_text(ray_service["spec"]["serveConfigV2"])
    try:
        deployment = load_deployment(file)
    except ConfigError as error:
        return [error.message]
    return [
        *_places(deployment.config, ray_service),
        *_times(deployment.config, ray_service),
        *_mounts(deployment.config, ray_service),
        *_metrics(deployment.config, ray_service),
    ]


def _application(config: Manifest) -> Manifest:
    application: Manifest = config["applications"][0]
    return application


def _places(config: Manifest, ray_service: Manifest) -> Iterator[str]:
    """Each replica needs a worker that is large enough, and all at their least the workers' least."""
    groups = ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    sizes = []
    for group in groups:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        size = {"cpu": float(limits["cpu"]), "gpu": float(limits.get("nvidia.com/gpu", 0))}
        sizes.append((size, group["minReplicas"], group["maxReplicas"]))
    wanted = {"least": {"cpu": 0.0, "gpu": 0.0}, "most": {"cpu": 0.0, "gpu": 0.0}}
    for deployment in _application(config)["deployments"]:
        options, scaling = deployment["ray_actor_options"], deployment["autoscaling_config"]
        cpu, gpu = options["num_cpus"], options.get("num_gpus", 0)
        if not any(cpu <= size["cpu"] and gpu <= size["gpu"] for size, _, _ in sizes):
            yield f"no worker has room for a {deployment['name']}"
        for bound, replicas in (("least", "min_replicas"), ("most", "max_replicas")):
            wanted[bound]["cpu"] += scaling[replicas] * cpu
            wanted[bound]["gpu"] += scaling[replicas] * gpu
    for kind in ("cpu", "gpu"):
        least = sum(size[kind] * fewest for size, fewest, _ in sizes)
        most = sum(size[kind] * largest for size, _, largest in sizes)
        if wanted["least"][kind] > least:
            yield f"replicas want {wanted['least'][kind]} {kind} at least, workers have {least}"
        if wanted["most"][kind] > most:
            yield f"replicas want {wanted['most'][kind]} {kind} at most, workers have {most}"


def _times(config: Manifest, ray_service: Manifest) -> Iterator[str]:
    reply = _application(config)["args"]["ingress"]["request_timeout_s"]
    cluster = ray_service["spec"]["rayClusterConfig"]
    templates = [group["template"] for group in cluster["workerGroupSpecs"]]
    stops = {
        one["name"]: one["graceful_shutdown_timeout_s"]
        for one in _application(config)["deployments"]
    }
    for template in templates:
        environment = _environment(template)
        # Ray's own is 30 s.
        drains = float(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30))
        # Serve stops a node's replicas so long before the node goes as each may take to stop.
        if drains < max(stops.values()) + _REPLACED_S:
            yield "a worker goes before its replicas are replaced and stopped"
        if template["spec"]["terminationGracePeriodSeconds"] < drains + _ENDED_S:
            yield "a worker is killed before its replies have drained"
        if float(environment["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) <= reply:
            yield "a proxy that is replaced cuts replies"
    head = cluster["headGroupSpec"]["template"]
    waits = float(_environment(head).get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30))
    if head["spec"]["terminationGracePeriodSeconds"] < waits + _ENDED_S:
        yield "the head is killed while it waits for itself to drain"
    if ray_service["spec"].get("rayClusterDeletionDelaySeconds", 60) <= reply:
        yield "the old cluster goes before its last reply can have ended"


def _environment(template: Manifest) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in template["spec"]["containers"][0]["env"]}


def _metrics(config: Manifest, ray_service: Manifest) -> Iterator[str]:
    """What Prometheus scrapes is where the nodes answer."""
    answered = _application(config)["args"]["metrics"]["port"]
    for group in ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        container = group["template"]["spec"]["containers"][0]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        if ports.get("parley-metrics") != answered:
            yield f"{group['groupName']}: nothing answers at the port parley-metrics"


def _mounts(config: Manifest, ray_service: Manifest) -> Iterator[str]:
    keys = _application(config)["args"]["auth"]
    if keys["required"] is not True:
        yield "auth.required has to be true where others can reach the service"
    for group in ray_service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        container = group["template"]["spec"]["containers"][0]
        environment = {one["name"] for one in container["env"]}
        own = {"PARLEY_HOME", "PARLEY_REDIS_URL_FILE", "PARLEY_ENCRYPTION_KEYS_FILE"}
        serves = {"RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_HAPROXY_BINARY_PATH"}
        for variable in sorted((own | serves) - environment):
            yield f"{group['groupName']}: {variable} is missing"
        for variable in environment - own - {"PARLEY_REDIS_REPLICAS"}:
            if re.match(r"(?i)parley_", variable):
                yield f"{group['groupName']}: {variable} is not expected here"
