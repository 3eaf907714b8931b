"""What the API server refuses, in sentences that say what to do."""

from __future__ import annotations

import json
from typing import Any

from kubernetes.client.exceptions import ApiException

from serve_app.errors import OperationError
from serve_app.operations.kinds import Kind

__all__ = ["refusal", "unreachable"]

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _TOO_MANY = 401, 403, 404, 409, 429


def refusal(
    error: ApiException, verb: str, kind: Kind, name: str, namespace: str, part: str = ""
) -> OperationError:
    """Return the error that says what the server refused, and what would let it pass.

    Args:
        error: what the client has raised.
        verb: the verb of RBAC that was asked for.
        kind: of which kind.
        name: the object, or ``""`` for all of them.
        namespace: where.
        part: the subresource.
    """
    status = _status(error)
    said = status.get("message") or str(error.reason or error.status)
    resource = f"{kind.plural}/{part}" if part else kind.plural
    where = f" in the namespace {namespace}" if kind.namespaced else ""
    thing = f"{kind.resource}/{name}" if name else kind.resource
    wait = status.get("details", {}).get("retryAfterSeconds")
    if error.status == _UNAUTHORIZED:
        msg = "The API server doesn't take your credentials. Log in again, or choose --context."
        return OperationError(msg, code="cluster_unauthorized")
    if error.status == _FORBIDDEN:
        role = "Role" if kind.namespaced else "ClusterRole"
        msg = (
            f"You may not {verb} {resource}{where}: your account lacks the verb `{verb}` on `{resource}` "
            f'in the API group "{kind.group}". The {role} in k8s/operator grants it: '
            "`kubectl apply --kustomize k8s/operator`, and bind it to you."
        )
        return OperationError(msg, code="cluster_forbidden")
    if error.status == _NOT_FOUND:
        if name:
            msg = f"There is no {thing}{where}. Look with `kubectl get {kind.resource}{_flag(kind, namespace)}`."
        else:
            msg = f"The cluster knows no {kind.resource}. Is its operator installed? See docs/kubernetes.md."
        return OperationError(msg, code="cluster_object_not_found")
    if error.status == _CONFLICT:
        msg = f"Somebody has changed {thing} meanwhile, so nothing was done. Look at it and try again."
        return OperationError(msg, code="cluster_conflict")
    if error.status == _TOO_MANY:
        causes = status.get("details", {}).get("causes") or []
        why = " ".join(f"{one.get('message', '')}." for one in causes)
        return OperationError(f"{said} {why}".strip(), code="disruption_refused", retry_after=wait)
    msg = f"The API server refused to {verb} {thing}{where}: {said}"
    return OperationError(msg if msg.endswith(".") else f"{msg}.")


def unreachable(server: str, error: Exception) -> OperationError:
    """Return the error that says that no API server answers."""
    reason = getattr(error, "reason", None) or error
    text = str(reason).rsplit(": ", maxsplit=1)[-1].rstrip(".")
    msg = (
        f"The API server {server} can't be reached: {text}. Is the cluster up, and is --context the "
        "right one? `kubectl cluster-info` tries the same."
    )
    return OperationError(msg, code="cluster_unreachable")


def _flag(kind: Kind, namespace: str) -> str:
    return f" -n {namespace}" if kind.namespaced else ""


def _status(error: ApiException) -> dict[str, Any]:
    """Return the `Status` object in the answer, if it is one."""
    try:
        status = json.loads(error.body or "")
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}
