"""A support bundle: one archive with what somebody else needs to see, and nothing that they mustn't."""

from __future__ import annotations

import base64
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import serve_app
from serve_app.errors import OperationError, ParleyError
from serve_app.operations.cluster_api import ClusterApi
from serve_app.operations.following import Progress
from serve_app.operations.kinds import (
    NODES,
    PART_OF_PARLEY,
    PODS,
    SECRETS,
    SUPPORT_KINDS,
    Kind,
    Object,
)
from serve_app.operations.masked_objects import ObjectMasks
from serve_app.operations.request_logs import LOG_FOLDER
from serve_app.operations.status import look

__all__ = ["Bundle", "write_bundle"]

_FILES = f'cd {LOG_FOLDER} 2>/dev/null || exit 0; tail -v -c "$0" -- *.log* 2>/dev/null'
_FILES_S = 120.0


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was written.

    Attributes:
        file: the archive.
        members: the names of the files in it.
        missing: what could not be collected, and why; it is in the bundle as well.
    """

    file: Path
    members: list[str]
    missing: list[str]


def write_bundle(
    api: ClusterApi,
    service: str,
    file: Path,
    *,
    progress: Progress,
    log_lines: int = 2000,
    log_bytes: int = 200_000,
) -> Bundle:
    """Collect objects, events, status, versions and logs into a .tar.gz that nobody else can read.

    Values of Secrets and of variables named like secrets, credentials and personal data are replaced,
    in objects and logs alike. If Secrets can be read, what they hold is replaced wherever it stands.

    Args:
        api: the cluster.
        service: the RayService.
        file: the archive to write; it must not be there.
        progress: told what is being collected.
        log_lines: how many of a container's last lines to take.
        log_bytes: how many of a log file's last bytes to take.

    Raises:
        OperationError: the file is there already, or no cluster can be reached.
    """
    if file.exists():
        msg = f"{file} is there already. Name another file with --output."
        raise OperationError(msg, code="file_exists")
    missing: list[str] = []
    versions = _versions(api)
    secrets = _collected(SECRETS.resource, partial(api.find, SECRETS), missing)
    masks = ObjectMasks(value for one in secrets for value in _values(one))
    collected: dict[str, str] = {"versions.json": _pretty(versions)}
    kinds = {kind.resource: kind for kind in SUPPORT_KINDS}
    total = len(kinds) + 3
    for done, (resource, kind) in enumerate(kinds.items()):
        progress(resource, done, total)
        objects = _collected(resource, partial(api.find, kind), missing)
        collected[f"objects/{resource}.json"] = _pretty([masks.object(one) for one in objects])
    collected["objects/secrets.json"] = _pretty(
        [masks.object({**one, "kind": "Secret"}) for one in secrets]
    )
    progress("status", len(kinds), total)
    try:
        seen = dataclasses.asdict(look(api, service, events=100))
        collected["status.json"] = masks.text(_pretty(seen))
    except ParleyError as error:
        missing.append(f"status: {error.message}")
    pods = _collected("pods", partial(api.find, PODS, labels=PART_OF_PARLEY), missing)
    nodes = {str(pod["spec"]["nodeName"]) for pod in pods if pod["spec"].get("nodeName")}
    for node in sorted(nodes):
        found = _collected(f"node {node}", partial(_one, api, NODES, node), missing)
        for one in found:
            collected[f"objects/nodes/{node}.json"] = _pretty(masks.object(one))
    for pod in pods:
        progress(f"logs of {pod['metadata']['name']}", len(kinds) + 1, total)
        for name, text in _logs(api, pod, log_lines, log_bytes, missing):
            collected[name] = masks.text(text)
    missing = [masks.text(one) for one in missing]
    collected["missing.txt"] = "".join(f"{one}\n" for one in missing)
    progress(str(file), len(kinds) + 2, total)
    _write(file, collected)
    return Bundle(file, sorted(collected), missing)


def _versions(api: ClusterApi) -> dict[str, Any]:
    return {
        "parley": serve_app.__version__,
        "python": platform.python_version(),
        "kubernetes_client": importlib.metadata.version("kubernetes"),
        "api_server": api.server_version(),
        "namespace": api.namespace,
        "collected": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _collected(what: str, read: Callable[[], list[Object]], missing: list[str]) -> list[Object]:
    try:
        found = read()
    except OperationError as error:
        if error.code == "cluster_unreachable":
            raise
        missing.append(f"{what}: {error.message}")
        return []
    return found


def _one(api: ClusterApi, kind: Kind, name: str) -> list[Object]:
    return [api.get(kind, name)]


def _values(secret: Object) -> Iterator[str]:
    for value in (secret.get("data") or {}).values():
        yield base64.b64decode(value).decode("utf-8", "replace")


def _logs(
    api: ClusterApi, pod: Object, lines: int, size: int, missing: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield name and text of each log of a pod."""
    name = pod["metadata"]["name"]
    statuses = pod.get("status", {}).get("containerStatuses") or []
    restarted = {one["name"] for one in statuses if one.get("restartCount")}
    containers = [one["name"] for one in pod["spec"]["containers"]]
    for container in containers:
        for previous in [False, True] if container in restarted else [False]:
            which = f"{container}.previous" if previous else container
            try:
                text = "\n".join(api.pod_log(name, container, lines=lines, previous=previous))
                yield f"logs/{name}/{which}.log", text
            except ParleyError as error:
                missing.append(f"log of {name}, {which}: {error.message}")
    if pod["metadata"].get("labels", {}).get("ray.io/is-ray-node") != "yes":
        return
    try:
        command = ["sh", "-c", _FILES, str(size)]
        found = api.run_in_pod(name, containers[0], command, seconds=_FILES_S)
        yield f"logs/{name}/serve.log", "\n".join(found)
    except ParleyError as error:
        missing.append(f"log files of {name}: {error.message}")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _write(file: Path, collected: dict[str, str]) -> None:
    folder = file.name.removesuffix(".tar.gz")
    # Readable by its owner alone, from its first byte on.
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with (
            os.fdopen(descriptor, "wb") as raw,
            tarfile.open(fileobj=raw, mode="w:gz") as archive,
        ):
            for name, text in sorted(collected.items()):
                content = text.encode("utf-8", "replace")
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
                archive.addfile(member, io.BytesIO(content))
    except BaseException:
        file.unlink(missing_ok=True)
        raise
