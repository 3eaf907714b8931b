"""Rollouts and rollbacks: a changed spec is sent such that nobody's change is overwritten."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from serve_app.errors import InvalidRequest
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.kinds import RAY_SERVICES, Object
from serve_app.operations.merge_patch import merge_patch
from serve_app.operations.revisions import Revision, Revisions

__all__ = ["EVERY_GROUP", "HEAD", "Change", "apply_spec", "change_spec", "roll_back"]

HEAD = "head"
"""Names the head's pod among the worker groups."""

EVERY_GROUP = ""
"""Stands for the head and all groups."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a rollout changes.

    Attributes:
        serve_config: the text of a deploy file; None leaves it alone.
        images: image by worker group, `HEAD` or `EVERY_GROUP`; one of a group goes above that of all.
    """

    serve_config: str | None = None
    images: Mapping[str, str] = field(default_factory=dict)


def change_spec(spec: Object, change: Change) -> Object:
    """Return a RayService's spec with a change made.

    Raises:
        InvalidRequest: there is no group of that name.
    """
    changed = copy.deepcopy(spec)
    if change.serve_config is not None:
        changed["serveConfigV2"] = change.serve_config
    templates = dict(_templates(changed))
    for group in change.images:
        if group not in (EVERY_GROUP, *templates):
            msg = f"There is no worker group {group}; there are {', '.join(templates)}."
            raise InvalidRequest(msg)
    for group, template in templates.items():
        image = change.images.get(group, change.images.get(EVERY_GROUP))
        if image is not None:
            # KubeRay takes the first container for Ray's.
            template["spec"]["containers"][0]["image"] = image
    return changed


def apply_spec(api: ClusterApi, service: Object, spec: Object, cause: str) -> Revision | None:
    """Tell a RayService to be something else, and record what it was and will be.

    Args:
        api: the cluster.
        service: the RayService as it was read; if it has changed since, nothing is done.
        spec: what its spec is to be.
        cause: what is recorded as the reason.

    Returns:
        The new revision, or None if there is nothing to change.

    Raises:
        OperationError: somebody else was quicker (`cluster_conflict`), or the server refuses.
    """
    patch = merge_patch(service["spec"], spec)
    if not patch:
        return None
    name = service["metadata"]["name"]
    revisions = Revisions(api, name)
    if revisions.current(service["spec"]) is None:
        revisions.record(service, "found when it was about to be changed")
    version = service["metadata"]["resourceVersion"]
    changed = api.patch(
        RAY_SERVICES, name, {"metadata": {"resourceVersion": version}, "spec": patch}
    )
    return revisions.record(changed, cause)


def roll_back(api: ClusterApi, name: str, number: int | None = None) -> Revision | None:
    """Tell a RayService to be what it was.

    Args:
        api: the cluster.
        name: the RayService.
        number: which revision; None takes the one before the current one.

    Returns:
        The revision that it goes back to under its new number, or None if it is that already.

    Raises:
        OperationError: there is no such revision, or somebody else was quicker.
    """
    service = api.get(RAY_SERVICES, name)
    revisions = Revisions(api, name)
    target = revisions.before(service["spec"]) if number is None else revisions.numbered(number)
    cause = f"rollback to revision {target.number}"
    return apply_spec(api, service, {**service["spec"], **target.spec}, cause)


def _templates(spec: Object) -> Iterator[tuple[str, Object]]:
    cluster = spec["rayClusterConfig"]
    yield HEAD, cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs") or []:
        yield group["groupName"], group["template"]
