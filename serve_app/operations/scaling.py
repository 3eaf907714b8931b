"""Bounds of scaling: of a worker group in the RayService, of a deployment in Serve's configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from serve_app.errors import InvalidRequest
from serve_app.operations.kinds import Object

__all__ = ["Bounds", "budget_warnings", "scale_spec"]

_WORKER = {"app.kubernetes.io/part-of": "parley", "app.kubernetes.io/component": "ray-worker"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many there are at least and at most.

    Raises:
        InvalidRequest: the least is below 0, or above the most.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            msg = f"{self.least}:{self.most} can't be bounds: name the least first, from 0, as in 2:8."
            raise InvalidRequest(msg)

    @classmethod
    def parse(cls, text: str) -> Bounds:
        """Read MIN:MAX, or one number for both."""
        least, _, most = text.partition(":")
        if not (least.isdecimal() and (most or least).isdecimal()):
            msg = f"{text!r} can't be bounds: write MIN:MAX, as in 2:8."
            raise InvalidRequest(msg)
        return cls(int(least), int(most or least))


def scale_spec(
    spec: Object, workers: Mapping[str, Bounds], replicas: Mapping[str, Bounds]
) -> Object:
    """Return a RayService's spec with other bounds.

    Args:
        spec: as it is.
        workers: bounds by worker group.
        replicas: bounds by deployment; its comments and everything else in `serveConfigV2` stay.

    Raises:
        InvalidRequest: there is no such group, or no such deployment that scales.
    """
    changed = copy.deepcopy(spec)
    groups = {one["groupName"]: one for one in changed["rayClusterConfig"]["workerGroupSpecs"]}
    for name, bounds in workers.items():
        if name not in groups:
            msg = f"There is no worker group {name}; there are {', '.join(groups)}."
            raise InvalidRequest(msg)
        groups[name]["minReplicas"], groups[name]["maxReplicas"] = bounds.least, bounds.most
    for name, bounds in replicas.items():
        changed["serveConfigV2"] = _with_bounds(changed["serveConfigV2"], name, bounds)
    return changed


def budget_warnings(spec: Object, budgets: list[Object]) -> list[str]:
    """Return what is wrong between the workers that there are at least and the disruption budgets.

    Args:
        spec: of the RayService.
        budgets: the PodDisruptionBudgets of the namespace.
    """
    least = sum(one["minReplicas"] for one in spec["rayClusterConfig"]["workerGroupSpecs"])
    warnings = []
    for one in budgets:
        selector = one["spec"].get("selector", {}).get("matchLabels") or {}
        kept = one["spec"].get("minAvailable")
        if selector == _WORKER and isinstance(kept, int) and kept >= least:
            warnings.append(
                f"The PodDisruptionBudget {one['metadata']['name']} keeps {kept} workers and there are "
                f"{least} at least: a drain could wait for ever. Lower its minAvailable in k8s/."
            )
    return warnings


def _with_bounds(text: str, deployment: str, bounds: Bounds) -> str:
    """Replace the two numbers where they stand, so that comments survive."""
    scaling = _autoscaling(text, deployment)
    marks: list[tuple[int, int, int]] = []
    for key, value in (("min_replicas", bounds.least), ("max_replicas", bounds.most)):
        node = scaling.get(key)
        if node is None:
            msg = (
                f"{deployment} has no autoscaling_config.{key} in serveConfigV2. Write it into serve.yaml, "
                "and `parley ops rollout --serve-config serve.yaml`."
            )
            raise InvalidRequest(msg)
        marks.append((node.start_mark.index, node.end_mark.index, value))
    for start, end, value in sorted(marks, reverse=True):
        text = f"{text[:start]}{value}{text[end:]}"
    return text


def _autoscaling(text: str, deployment: str) -> dict[str, Any]:
    known = []
    for application in _items(_mapping(yaml.compose(text)).get("applications")):
        for one in _items(_mapping(application).get("deployments")):
            keys = _mapping(one)
            known.append(keys["name"].value)
            if known[-1] == deployment:
                return _mapping(keys.get("autoscaling_config"))
    msg = f"There is no deployment {deployment} in serveConfigV2; there are {', '.join(known)}."
    raise InvalidRequest(msg)


def _mapping(node: Any) -> dict[str, Any]:
    return {key.value: value for key, value in node.value} if node is not None else {}


def _items(node: Any) -> list[Any]:
    return list(node.value) if node is not None else []
