"""One request's lines in the logs of all of Ray's pods.

Serve's replicas write files in the pod, and nothing to the container's output, so the files are read where
they are, through the API server's `exec`: what `kubectl exec` does. Nothing but a shell, grep and tail
has to be in the image.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from serve_app.errors import InvalidRequest, OperationError, ParleyError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.kinds import RAY_SERVICES, Object
from serve_app.operations.pods import ray_pods
from serve_app.operations.ray_service import ServiceState

__all__ = ["LOG_FOLDER", "LogLine", "PodComplaint", "follow_request", "request_lines"]

LOG_FOLDER = "/tmp/ray/session_latest/logs/serve"  # noqa: S108 - Ray's, in the pod

_FIND = f'cd {LOG_FOLDER} 2>/dev/null || exit 0; grep -hsF -e "$0" -- *.log*'
# When the API server is left, nobody ends the command in the pod: it ends itself.
_FOLLOW = (
    f"cd {LOG_FOLDER} 2>/dev/null || exit 0; "
    'timeout "$1" tail -q -n +1 -F -- *.log 2>/dev/null | grep --line-buffered -F -e "$0"'
)
_FIND_S = 60.0
_LONGEST_ID = 200


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log.

    Attributes:
        time: when it was written, RFC 3339; ``""`` if the line doesn't say.
        pod: where it was found.
        deployment: of which deployment; ``""`` for Serve's own parts.
        level: such as INFO.
        message: what it says.
        record: the line as Serve wrote it.
    """

    time: str
    pod: str
    deployment: str
    level: str
    message: str
    record: str


@dataclass(frozen=True, slots=True)
class PodComplaint:
    """Why a pod's logs could not be read.

    Attributes:
        pod: which.
        error: why.
    """

    pod: str
    error: ParleyError


def request_lines(
    api: ClusterApi, service: str, request_id: str
) -> tuple[list[LogLine], list[PodComplaint]]:
    """Return the lines that name a request, of all pods, in the order of their time.

    Args:
        api: the cluster.
        service: the RayService.
        request_id: such as `resp_…` or `chatcmpl-…`.

    Raises:
        InvalidRequest: that is no request's id.
        OperationError: no pod could be read.
    """
    lines: list[LogLine] = []
    complaints: list[PodComplaint] = []
    for pod, found in _every_pod(api, service, ["sh", "-c", _FIND, _checked(request_id)], _FIND_S):
        match found:
            case str():
                lines.append(read_line(pod, found))
            case ParleyError():
                complaints.append(PodComplaint(pod, found))
    return sorted(lines, key=lambda line: line.time), complaints


def follow_request(
    api: ClusterApi, service: str, request_id: str, *, seconds: float
) -> Iterator[LogLine | PodComplaint]:
    """Yield the lines that name a request as they come, first those that are there already.

    Pods and replicas that start meanwhile are not followed.

    Args:
        api: the cluster.
        service: the RayService.
        request_id: such as `resp_…` or `chatcmpl-…`.
        seconds: how long to follow.

    Raises:
        InvalidRequest: that is no request's id.
        OperationError: no pod could be read.
    """
    command = ["sh", "-c", _FOLLOW, _checked(request_id), f"{seconds:g}"]
    for pod, found in _every_pod(api, service, command, seconds):
        yield read_line(pod, found) if isinstance(found, str) else PodComplaint(pod, found)


def read_line(pod: str, line: str) -> LogLine:
    """Read a line of Serve's: JSON where `logging_config.encoding` says so, else text."""
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return LogLine("", pod, "", "", line, line)
    stamp = said.get("timestamp_ns")
    time_ = ""
    if isinstance(stamp, int):
        moment = datetime.fromtimestamp(stamp / 1e9, UTC)
        time_ = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return LogLine(
        time=time_ or str(said.get("asctime", "")),
        pod=pod,
        deployment=str(said.get("deployment", "")),
        level=str(said.get("levelname", "")),
        message=str(said.get("message", "")),
        record=line,
    )


def _checked(request_id: str) -> str:
    if not request_id.strip() or len(request_id) > _LONGEST_ID or "\n" in request_id:
        msg = "Name a request's id, such as the `id` of its reply: resp_… or chatcmpl-…."
        raise InvalidRequest(msg)
    return request_id


def _every_pod(
    api: ClusterApi, service: str, command: list[str], seconds: float
) -> Iterator[tuple[str, str | ParleyError]]:
    """Run a command in all pods at once, and yield (pod, line or error) as they come."""
    state = ServiceState.of(api.get(RAY_SERVICES, service))
    pods = [
        pod
        for pod in ray_pods(api, [one.name for one in state.clusters])
        if pod.get("status", {}).get("phase") == "Running"
    ]
    if not pods:
        msg = f"{service} has no running pod. `parley ops status` says why."
        raise OperationError(msg)
    out: queue.SimpleQueue[tuple[str, str | ParleyError | None]] = queue.SimpleQueue()
    for pod in pods:
        threading.Thread(
            target=_read_pod, args=(api, pod, command, seconds, out), daemon=True
        ).start()
    deadline = time.monotonic() + seconds + 10.0
    reading, errors = len(pods), []
    while reading:
        try:
            name, found = out.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return
        if found is None:
            reading -= 1
            continue
        if isinstance(found, ParleyError):
            errors.append(found)
        yield name, found
    if len(errors) == len(pods):
        raise errors[0]


def _read_pod(
    api: ClusterApi,
    pod: Object,
    command: list[str],
    seconds: float,
    out: queue.SimpleQueue[tuple[str, str | ParleyError | None]],
) -> None:
    name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]
    try:
        for line in api.run_in_pod(name, container, command, seconds=seconds):
            out.put((name, line))
    except ParleyError as error:
        out.put((name, error))
    finally:
        out.put((name, None))
