"""Names of others' that no schema knows: Ray's variables and health checks, classes of Gateways, paths."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from cluster_rules import Workload

__all__ = ["foreign_name_faults", "ray_reads"]

Manifest = dict[str, Any]

_READ_BY = (
    "ray._private.ray_constants",
    "ray._common.usage.usage_constants",
    "ray.serve._private.constants",
)
_AGENT_PORT = 52365
_SERVE_HEALTH = "/-/healthz"
# Istio makes the first one itself, k8s/cluster the other.
_CLASSES = ("istio", "parley-internal")
_METRICS = "/metrics"


def foreign_name_faults(manifests: list[Manifest], pods: list[Workload]) -> Iterator[str]:
    """Yield each name that is misspelt, so that whoever it belongs to would pass it over.

    Args:
        manifests: all objects of an overlay.
        pods: what makes pods there.
    """
    for workload in pods:
        if workload.is_ray:
            yield from _variables(workload)
            yield from _probes(workload)
            yield from _home(workload)
    for one in manifests:
        name, spec = f"{one['kind']}/{one['metadata']['name']}", one.get("spec") or {}
        if one["kind"] == "Gateway" and spec["gatewayClassName"] not in _CLASSES:
            yield f"{name}: there is no GatewayClass {spec['gatewayClassName']}"
        if one["kind"] == "PodMonitor":
            for endpoint in spec["podMetricsEndpoints"]:
                if endpoint.get("path", _METRICS) != _METRICS:
                    yield f"{name}: nothing answers at {endpoint['path']}"
        if one["kind"] == "RayService":
            yield from _versions(spec)


@cache
def _texts() -> tuple[str, bytes]:
    """Return what reads variables in Ray: its constants in Python, and its control service."""
    python = "".join(inspect.getsource(importlib.import_module(name)) for name in _READ_BY)
    return python, (Path(ray.__file__).parent / "core/src/ray/gcs/gcs_server").read_bytes()


@cache
def ray_reads(variable: str) -> bool:
    """Whether a variable of the environment is one of Ray's."""
    python, binary = _texts()
    return f'"{variable}"' in python or b"\0" + variable.encode() + b"\0" in binary


def _variables(workload: Workload) -> Iterator[str]:
    for variable in workload.pod["containers"][0].get("env") or []:
        if variable["name"].startswith("RAY_") and not ray_reads(variable["name"]):
            yield f"{workload.name}: Ray knows no {variable['name']}"


@cache
def _agent_health() -> str:
    """Return where Ray's agent answers for its node."""
    module = importlib.import_module("ray.dashboard.modules.reporter.healthz_agent")
    (path,) = re.findall(r'@routes\.get\("(/api/healthz)"\)', inspect.getsource(module))
    return str(path)


def _probes(workload: Workload) -> Iterator[str]:
    for container in workload.pod["containers"]:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe not in container:
                yield f"{workload.name}/{container['name']} has no {probe}"
                continue
            asked = container[probe]["httpGet"]
            known = _agent_health() if asked["port"] == _AGENT_PORT else _SERVE_HEALTH
            if asked["path"] != known:
                yield f"{workload.name}: nothing answers {probe} at {asked['path']}"


def _home(workload: Workload) -> Iterator[str]:
    for container in workload.pod["containers"]:
        homes = [one["value"] for one in container.get("env") or [] if one["name"] == "PARLEY_HOME"]
        mounted = {one["mountPath"] for one in container["volumeMounts"] if not one.get("readOnly")}
        if not set(homes) <= mounted:
            yield f"{workload.name}: PARLEY_HOME is on no volume"


def _versions(spec: Manifest) -> Iterator[str]:
    wanted = spec["rayClusterConfig"]["rayVersion"]
    if wanted != ray.__version__:
        yield f"rayVersion is {wanted}, and the image has {ray.__version__}"
