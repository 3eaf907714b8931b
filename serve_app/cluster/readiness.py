"""Waiting for a deployed application: until it serves, or until it is plain that it won't."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx

from serve_app.cluster.deploy_file import APPLICATION
from serve_app.cluster.run_folder import RunFolder
from serve_app.cluster.serve_api import ServeApi
from serve_app.cluster.steps import Steps
from serve_app.errors import ConfigError

__all__ = ["FAILED", "answers", "await_ready", "last_sentence"]

FAILED = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})
"""Serve's words for an application or a deployment that doesn't work."""

_TIMEOUT_S = 900.0  # a large model may take minutes to load
_POLL_S = 0.25
_REQUEST_TIMEOUT_S = 5.0
_HEALTHY = "HEALTHY"
_TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^(?:\w+\.)*(\w+): ")


def await_ready(api: ServeApi, url: str, folder: RunFolder, steps: Steps) -> None:
    """Return when every deployment is healthy and `GET /ready` says yes.

    Args:
        api: Serve's REST interface.
        url: where the application serves.
        folder: where the logs are.
        steps: told how many deployments are healthy.

    Raises:
        ConfigError: a deployment failed, with the replica's own error and its log; or nothing
            became ready in 15 minutes.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        application = api.details()["applications"].get(APPLICATION, {})
        _refuse_failure(application, folder)
        deployments = application.get("deployments", {}).values()
        missing = [one["name"] for one in deployments if one["status"] != _HEALTHY]
        if not deployments:
            steps.update("building the application")
        elif missing:
            done = len(deployments) - len(missing)
            steps.update(f"waiting for {', '.join(missing)}", done, len(deployments))
        elif application["status"] == "RUNNING":
            steps.update("waiting for /ready", len(deployments), len(deployments))
            if answers(url):
                return
        time.sleep(_POLL_S)
    msg = f"Nothing was ready after {_TIMEOUT_S:g} s; `{folder.logs}/serve` may tell why."
    raise ConfigError(msg)


def answers(url: str) -> bool:
    """Say whether `GET /ready` is answered with 200."""
    try:
        response = httpx.get(f"{url}/ready", timeout=_REQUEST_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return False  # not listening yet, or not any more
    return response.status_code == httpx.codes.OK


def _refuse_failure(application: dict[str, Any], folder: RunFolder) -> None:
    if application.get("status") not in FAILED:
        return
    for deployment in application.get("deployments", {}).values():
        if deployment["status"] not in FAILED:
            continue
        reason = last_sentence(deployment["message"])
        msg = f"{deployment['name']} does not start: {reason}\n{_log_of(deployment, folder)}"
        raise ConfigError(msg)
    msg = (
        f"The application does not start: {last_sentence(application['message'])}\n"
        f"Logs are in {folder.logs}/serve."
    )
    raise ConfigError(msg)


def _log_of(deployment: dict[str, Any], folder: RunFolder) -> str:
    replicas = [*deployment.get("recent_dead_replicas", []), *deployment["replicas"]]
    for replica in reversed(replicas):
        if log := replica.get("log_file_path"):
            return f"Its log is {folder.logs}{log}."
    return f"Logs are in {folder.logs}/serve."


def last_sentence(message: str) -> str:
    """Return what a traceback ends with: the exception that the replica raised."""
    lines = [line for line in _TERMINAL_COLOURS.sub("", message).splitlines() if line.strip()]
    # The exception's own text may have several lines; its first one carries its name.
    for position in range(len(lines) - 1, -1, -1):
        if _EXCEPTION.match(lines[position]) and not lines[position].startswith(" "):
            return _EXCEPTION.sub(r"\1: ", "\n".join(lines[position:]))
    return lines[-1].strip() if lines else "Serve gives no reason."
