"""What the API server that is made up here keeps: objects with versions, and every change of them."""

from __future__ import annotations

import copy
import itertools
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from schemas import schema_faults

__all__ = ["CUSTOM", "RESOURCES", "Forbidden", "ObjectStore", "Refused", "Resource", "merged"]

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A resource as the API serves it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


RESOURCES = {
    (one.group, one.plural): one
    for one in (
        Resource("ray.io", "v1", "rayservices", "RayService"),
        Resource("ray.io", "v1", "rayclusters", "RayCluster"),
        Resource("", "v1", "pods", "Pod"),
        Resource("", "v1", "events", "Event"),
        Resource("", "v1", "secrets", "Secret"),
        Resource("", "v1", "configmaps", "ConfigMap"),
        Resource("", "v1", "services", "Service"),
        Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
        Resource("", "v1", "nodes", "Node", namespaced=False),
        Resource("apps", "v1", "controllerrevisions", "ControllerRevision"),
        Resource("apps", "v1", "statefulsets", "StatefulSet"),
        Resource("apps", "v1", "deployments", "Deployment"),
        Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
        Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
        Resource("gateway.networking.k8s.io", "v1", "gateways", "Gateway"),
        Resource("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute"),
    )
}
# What their definitions say of `status` is not among the schemas here.
CUSTOM = ("RayService", "RayCluster", "Gateway", "HTTPRoute")


class Refused(Exception):
    """An answer that is no success, as the API server words it."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
            **({"details": details} if details else {}),
        }


class Forbidden(Refused):
    """403, in the API server's words."""

    def __init__(self, user: str, verb: str, resource: str, group: str, namespace: str) -> None:
        where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
        named = f"{resource}.{group}" if group else resource
        super().__init__(
            403,
            "Forbidden",
            f'{named} is forbidden: User "{user}" cannot {verb} resource "{resource}" '
            f'in API group "{group}"{where}',
        )


def merged(target: Any, patch: Any) -> Any:
    """Apply a merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class ObjectStore:
    """Objects by resource, namespace and name, each checked against its schema when it changes."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.oldest_watch = 0
        self._objects: dict[tuple[Resource, str, str], Object] = {}
        self._versions = itertools.count(1000)
        self._changes: list[tuple[int, Resource, str, Object]] = []

    def add(self, one: Object) -> Object:
        """Put an object there as kubectl would, its status with it."""
        resource = next(
            known
            for known in RESOURCES.values()
            if (known.api_version, known.kind) == (one["apiVersion"], one["kind"])
        )
        return self.create(resource, "parley", copy.deepcopy(one))

    def create(self, resource: Resource, namespace: str, one: Object) -> Object:
        if (one.get("apiVersion"), one.get("kind")) != (resource.api_version, resource.kind):
            raise Refused(400, "BadRequest", "the object is of another kind than the URL")
        _check(one)
        with self.changed:
            name = one["metadata"]["name"]
            place = (resource, namespace if resource.namespaced else "", name)
            if place in self._objects:
                raise Refused(409, "AlreadyExists", f'{resource.plural} "{name}" already exists')
            metadata = one["metadata"]
            metadata.setdefault("uid", str(uuid.uuid4()))
            metadata.setdefault("creationTimestamp", "2026-11-26T12:00:00Z")
            metadata.setdefault("generation", 1)
            if resource.namespaced:
                metadata["namespace"] = namespace
            return self._keep("ADDED", place, one)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        with self.changed:
            return copy.deepcopy(self._objects[self._place(resource, namespace, name)])

    def find(self, resource: Resource, namespace: str, labels: str, fields: str) -> list[Object]:
        with self.changed:
            return [
                copy.deepcopy(one)
                for (kind, where, _), one in sorted(
                    self._objects.items(), key=lambda item: item[0][2]
                )
                if kind == resource
                and where in (namespace, "")
                and _has_labels(one, labels)
                and _has_fields(one, fields)
            ]

    def patch(self, resource: Resource, namespace: str, name: str, patch: Object) -> Object:
        """Merge a patch, as the resource itself takes it: its status stays."""
        with self.changed:
            place = self._place(resource, namespace, name)
            old = self._objects[place]
            version = patch.get("metadata", {}).get("resourceVersion")
            if version not in (None, old["metadata"]["resourceVersion"]):
                raise Refused(
                    409,
                    "Conflict",
                    f'Operation cannot be fulfilled on {resource.plural} "{name}": the object has been '
                    "modified; please apply your changes to the latest version and try again",
                )
            new = merged(copy.deepcopy(old), {**patch, "status": {}})
            if "status" in old:
                new["status"] = old["status"]
            else:
                new.pop("status")
            _check(new)
            if resource.kind == "ControllerRevision" and new["data"] != old["data"]:
                raise Refused(422, "Invalid", "data: Invalid value: field is immutable")
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] += 1
            return self._keep("MODIFIED", place, new)

    def set_status(self, resource: Resource, name: str, status: Object) -> Object:
        """Do what a controller does."""
        with self.changed:
            place = self._place(resource, "parley", name)
            return self._keep("MODIFIED", place, {**self._objects[place], "status": status})

    def replace(self, resource: Resource, name: str, one: Object) -> Object:
        with self.changed:
            return self._keep("MODIFIED", self._place(resource, "parley", name), one)

    def delete(self, resource: Resource, namespace: str, name: str) -> Object:
        with self.changed:
            place = self._place(resource, namespace, name)
            one = self._objects.pop(place)
            self._changes.append((next(self._versions), resource, "DELETED", one))
            self.changed.notify_all()
            return one

    def changes(
        self, resource: Resource, since: int, wanted: Callable[[Object], bool], seconds: float
    ) -> Iterator[tuple[str, Object]]:
        """Yield (type, object) of each change after a version, until the time is over."""
        if since < self.oldest_watch:
            gone = Refused(410, "Expired", f"too old resource version: {since}")
            yield "ERROR", gone.status
            return
        deadline = time.monotonic() + seconds
        while True:
            with self.changed:
                news = [change for change in self._changes if change[0] > since]
                if not news and not self.changed.wait(deadline - time.monotonic()):
                    return
            for version, kind, event, one in news:
                since = version
                if kind == resource and wanted(one):
                    yield event, one

    def _place(self, resource: Resource, namespace: str, name: str) -> tuple[Resource, str, str]:
        place = (resource, namespace if resource.namespaced else "", name)
        if place not in self._objects:
            named = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
            raise Refused(404, "NotFound", f'{named} "{name}" not found')
        return place

    def _keep(self, event: str, place: tuple[Resource, str, str], one: Object) -> Object:
        version = next(self._versions)
        kept = copy.deepcopy(one)
        kept["metadata"]["resourceVersion"] = str(version)
        self._objects[place] = kept
        self._changes.append((version, place[0], event, copy.deepcopy(kept)))
        self.changed.notify_all()
        return copy.deepcopy(kept)


def _check(one: Object) -> None:
    if one["kind"] == "RayCluster":
        return
    if one["kind"] in CUSTOM:
        one = {key: value for key, value in one.items() if key != "status"}
    # Of most objects there are many alike, but for what the server itself has put there.
    metadata = {k: v for k, v in one["metadata"].items() if k not in ("uid", "resourceVersion")}
    if faults := _faults(json.dumps({**one, "metadata": metadata}, sort_keys=True)):
        raise Refused(422, "Invalid", "; ".join(faults))


@cache
def _faults(text: str) -> list[str]:
    return schema_faults(json.loads(text))


def _has_labels(one: Object, selector: str) -> bool:
    labels = one["metadata"].get("labels", {})
    for name, inside, value in re.findall(r"([\w./-]+)(?: in \(([^)]*)\)|=([\w.-]+))", selector):
        if labels.get(name) not in (inside.split(",") if inside else [value]):
            return False
    return True


def _has_fields(one: Object, selector: str) -> bool:
    for term in selector.split(",") if selector else []:
        path, _, value = term.partition("=")
        found: Any = one
        for step in path.split("."):
            found = found.get(step, {})
        if found != value:
            return False
    return True
