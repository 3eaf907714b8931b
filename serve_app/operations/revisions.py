"""What the service was told to be, kept in the cluster so that it can be told so again.

A revision is a ControllerRevision, Kubernetes' own kind for this: an immutable snapshot with a number,
which goes when the RayService goes. `HISTORY` of them are kept.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from serve_app.errors import OperationError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.kinds import CONTROLLER_REVISIONS, Object

__all__ = ["HISTORY", "Revision", "Revisions", "revised_part"]

HISTORY = 10
"""How many revisions are kept: as many as a Deployment keeps."""

_KEYS = ("serveConfigV2", "rayClusterConfig")
_CAUSE = "kubernetes.io/change-cause"


def revised_part(spec: Object) -> Object:
    """Return what a revision holds of a RayService's spec: what runs, and on what."""
    return {key: spec[key] for key in _KEYS if key in spec}


@dataclass(frozen=True, slots=True)
class Revision:
    """One thing that the service was told to be.

    Attributes:
        number: counts up; going back to an older one gives that one the next number.
        name: of the ControllerRevision.
        created: when it was first recorded.
        cause: what made it.
        spec: `serveConfigV2` and `rayClusterConfig`.
    """

    number: int
    name: str
    created: str
    cause: str
    spec: Object


class Revisions:
    """The recorded revisions of one RayService.

    Args:
        api: the cluster.
        service: the RayService's name.
    """

    def __init__(self, api: ClusterApi, service: str) -> None:
        self._api = api
        self._service = service

    def history(self) -> list[Revision]:
        """Return all of them, the newest first."""
        labels = ",".join(f"{name}={value}" for name, value in self._labels().items())
        found = [_read(one) for one in self._api.find(CONTROLLER_REVISIONS, labels=labels)]
        return sorted(found, key=lambda one: one.number, reverse=True)

    def current(self, spec: Object) -> Revision | None:
        """Return the revision that a spec is; None if it was changed by other means."""
        name = self._name(revised_part(spec))
        return next((one for one in self.history() if one.name == name), None)

    def record(self, service: Object, cause: str) -> Revision:
        """Make what a RayService is now the newest revision, and forget the oldest ones.

        Args:
            service: the RayService.
            cause: what made it so.
        """
        part = revised_part(service["spec"])
        name, known = self._name(part), self.history()
        newest = known[0] if known else None
        if newest is not None and newest.name == name:
            return newest
        number = newest.number + 1 if newest else 1
        if any(one.name == name for one in known):
            made = self._renumber(name, number, cause)
        else:
            made = self._create(service, name, number, cause, part)
        for old in [one for one in known if one.name != name][HISTORY - 1 :]:
            self._api.delete(CONTROLLER_REVISIONS, old.name)
        return _read(made)

    def before(self, spec: Object) -> Revision:
        """Return the revision before the one that a spec is.

        Raises:
            OperationError: there is none.
        """
        known, name = self.history(), self._name(revised_part(spec))
        places = [place for place, one in enumerate(known) if one.name == name]
        # What nobody has recorded came after all that is recorded.
        older = known[places[0] + 1 :] if places else known
        if not older:
            msg = (
                f"No earlier revision of {self._service} is recorded: they are by `parley ops rollout` and "
                "`parley ops scale`. Apply the manifests of an earlier commit instead."
            )
            raise OperationError(msg, code="revision_not_found")
        return older[0]

    def numbered(self, number: int) -> Revision:
        """Return a revision by its number.

        Raises:
            OperationError: it isn't there, or is no longer kept.
        """
        known = self.history()
        for one in known:
            if one.number == number:
                return one
        kept = ", ".join(str(one.number) for one in known) or "none"
        msg = f"There is no revision {number} of {self._service}; kept are: {kept}."
        raise OperationError(msg, code="revision_not_found")

    def _labels(self) -> dict[str, str]:
        return {
            "app.kubernetes.io/part-of": "parley",
            "app.kubernetes.io/component": "revision",
            "app.kubernetes.io/instance": self._service,
        }

    def _name(self, part: Object) -> str:
        text = json.dumps(part, sort_keys=True, separators=(",", ":"))
        return f"{self._service}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def _create(self, service: Object, name: str, number: int, cause: str, part: Object) -> Object:
        owner = {
            "apiVersion": service["apiVersion"],
            "kind": service["kind"],
            "name": service["metadata"]["name"],
            "uid": service["metadata"]["uid"],
        }
        body: dict[str, Any] = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "labels": self._labels(),
                "annotations": {_CAUSE: cause},
                "ownerReferences": [owner],
            },
            "data": {"spec": part},
            "revision": number,
        }
        return self._api.create(CONTROLLER_REVISIONS, body)

    def _renumber(self, name: str, number: int, cause: str) -> Object:
        body = {"metadata": {"annotations": {_CAUSE: cause}}, "revision": number}
        return self._api.patch(CONTROLLER_REVISIONS, name, body)


def _read(one: Object) -> Revision:
    metadata = one["metadata"]
    return Revision(
        number=one["revision"],
        name=metadata["name"],
        created=metadata.get("creationTimestamp", ""),
        cause=metadata.get("annotations", {}).get(_CAUSE, ""),
        spec=one["data"]["spec"],
    )
