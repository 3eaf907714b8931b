"""An API server that is made up: real HTTP and WebSockets, Kubernetes' schemas, RBAC, and no cluster.

It refuses what a real one would: unknown paths and parameters, bodies that Kubernetes' OpenAPI schemas
don't take, stale versions (409), missing verbs (403), evictions that a budget forbids (429). Commands that
are to run in a pod run here, in a folder that stands for the pod's disk.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from object_store import CUSTOM, RESOURCES, Forbidden, Object, ObjectStore, Refused, Resource

__all__ = ["TOKEN", "ApiServer"]

TOKEN = "operator-token"
"""The bearer token of whoever operates the service."""

_PATH = re.compile(
    r"^(?:/api/(?P<core>v1)|/apis/(?P<group>[\w.-]+)/(?P<version>v\w+))"
    r"(?:/namespaces/(?P<namespace>[\w-]+))?/(?P<plural>[a-z]+)(?:/(?P<name>[\w.-]+)(?:/(?P<part>[a-z]+))?)?$"
)
_PARAMETERS = {
    "list": {"limit", "continue", "labelSelector", "fieldSelector"},
    "watch": {"watch", "fieldSelector", "labelSelector", "resourceVersion", "timeoutSeconds"},
    "get": {"container", "tailLines", "timestamps", "previous"},
    "create": {"command", "container", "stdin", "stdout", "stderr", "tty"},
    "patch": set(),
    "delete": set(),
}
_PARTS = {("pods", "log"), ("pods", "exec"), ("pods", "eviction")}
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class ApiServer(ThreadingHTTPServer):
    """The server; `users` says by token who may do what.

    Attributes:
        store: its objects.
        users: rules of RBAC by bearer token.
        requests: (verb, resource, name) of everything that was asked for.
        disks: by pod, the folder that is its `/tmp/ray` and, in `bin`, its programs.
        outputs: by (pod, container, previous), what it printed.
        on_patch: called with a RayService after its spec has changed.
        on_eviction: called with a pod that is to end.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = ObjectStore()
        self.users: dict[str, list[dict[str, list[str]]]] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.disks: dict[str, Path] = {}
        self.outputs: dict[tuple[str, str, bool], str] = {}
        self.on_patch: Callable[[Object], None] = lambda _: None
        self.on_eviction: Callable[[Object], None] = self.end_pod
        self.page = 500

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def end_pod(self, pod: Object) -> None:
        self.store.delete(RESOURCES["", "pods"], "parley", pod["metadata"]["name"])

    def handle_error(self, *_: object) -> None:
        """A client that leaves in the middle is no fault."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ApiServer

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PATCH(self) -> None:
        self._answer(self._patch)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, act: Callable[[], Object | None]) -> None:
        length = int(self.headers.get("content-length", 0))
        self._body = json.loads(self.rfile.read(length)) if length else None
        split = urlsplit(self.path)
        self._query = parse_qs(split.query, keep_blank_values=True)
        try:
            self._user = self._authenticated()
            if split.path == "/version":
                self._send(200, {"major": "1", "minor": "37", "gitVersion": "v1.37.0"})
                return
            self._target(split.path)
            if (answer := act()) is not None:
                self._send(201 if self.command == "POST" else 200, answer)
        except Refused as refused:
            self._send(refused.code, refused.status)

    def _authenticated(self) -> str:
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.server.users:
            raise Refused(401, "Unauthorized", "Unauthorized")
        return token

    def _target(self, path: str) -> None:
        found = _PATH.match(path)
        resource = RESOURCES.get((found["group"] or "", found["plural"])) if found else None
        if (
            found is None
            or resource is None
            or resource.version != (found["core"] or found["version"])
        ):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if bool(found["namespace"]) != resource.namespaced:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        self._resource: Resource = resource
        self._namespace, self._name = found["namespace"] or "", found["name"] or ""
        self._part = found["part"] or ""
        if self._part and (resource.plural, self._part) not in _PARTS:
            raise Refused(404, "NotFound", "the server could not find the requested resource")

    def _may(self, verb: str) -> None:
        """Refuse what the user has no rule for, and parameters that the verb doesn't take."""
        plural = f"{self._resource.plural}/{self._part}" if self._part else self._resource.plural
        self.server.requests.append((verb, plural, self._name))
        if unknown := set(self._query) - _PARAMETERS[verb]:
            raise Refused(400, "BadRequest", f"unknown parameters: {sorted(unknown)}")
        if not any(
            self._resource.group in rule["apiGroups"]
            and plural in rule["resources"]
            and verb in rule["verbs"]
            for rule in self.server.users[self._user]
        ):
            raise Forbidden(self._user, verb, plural, self._resource.group, self._namespace)

    def _one(self, name: str) -> str:
        return self._query.get(name, [""])[0]

    def _get(self) -> Object | None:
        store, where = self.server.store, (self._resource, self._namespace)
        if self._part == "exec":
            return self._exec()
        if self._part == "log":
            return self._log()
        if self._name:
            self._may("get")
            return store.get(*where, self._name)
        if self._one("watch") == "true":
            return self._watch()
        self._may("list")
        found = store.find(*where, self._one("labelSelector"), self._one("fieldSelector"))
        start = int(self._one("continue") or 0)
        end = start + min(int(self._one("limit") or self.server.page), self.server.page)
        rest = {"continue": str(end)} if end < len(found) else {}
        items = [
            # Items of a list don't repeat what kind they are.
            {key: value for key, value in one.items() if key not in ("apiVersion", "kind")}
            if self._resource.kind not in CUSTOM
            else one
            for one in found[start:end]
        ]
        return {
            "apiVersion": self._resource.api_version,
            "kind": f"{self._resource.kind}List",
            "metadata": {"resourceVersion": "1", **rest},
            "items": items,
        }

    def _post(self) -> Object:
        self._may("create")
        if self.headers.get("content-type") != "application/json" or not isinstance(
            self._body, dict
        ):
            raise Refused(415, "UnsupportedMediaType", "the body must be JSON")
        if self._part == "eviction":
            return self._evict(self._body)
        return self.server.store.create(self._resource, self._namespace, self._body)

    def _patch(self) -> Object:
        self._may("patch")
        if self.headers.get("content-type") != "application/merge-patch+json":
            raise Refused(415, "UnsupportedMediaType", "custom resources take merge patches")
        where = (self._resource, self._namespace, self._name)
        before = self.server.store.get(*where)
        after = self.server.store.patch(*where, self._body)
        if self._resource.kind == "RayService" and after["spec"] != before["spec"]:
            self.server.on_patch(after)
        return after

    def _delete(self) -> Object:
        self._may("delete")
        return self.server.store.delete(self._resource, self._namespace, self._name)

    def _evict(self, body: Object) -> Object:
        from schemas import schema_faults

        if faults := schema_faults(body):
            raise Refused(422, "Invalid", "; ".join(faults))
        store = self.server.store
        pod = store.get(self._resource, self._namespace, self._name)
        wanted = body.get("deleteOptions", {}).get("preconditions", {}).get("uid")
        if wanted not in (None, pod["metadata"]["uid"]):
            raise Refused(409, "Conflict", "the UID in the precondition does not match")
        for budget in store.find(RESOURCES["policy", "poddisruptionbudgets"], "parley", "", ""):
            chosen = ",".join(
                f"{k}={v}" for k, v in budget["spec"]["selector"]["matchLabels"].items()
            )
            pods = store.find(self._resource, self._namespace, chosen, "")
            names = {one["metadata"]["name"] for one in pods}
            healthy = sum(map(_is_healthy, pods))
            least = budget["spec"].get(
                "minAvailable", len(pods) - budget["spec"].get("maxUnavailable", 0)
            )
            if self._name in names and healthy - 1 < least:
                cause = (
                    f"The disruption budget {budget['metadata']['name']} needs {least} healthy pods "
                    f"and has {healthy} currently"
                )
                raise Refused(
                    429,
                    "TooManyRequests",
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    causes=[{"reason": "DisruptionBudget", "message": cause}],
                )
        self.server.on_eviction(pod)
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "code": 201,
        }

    def _watch(self) -> None:
        self._may("watch")
        self._begin_chunks()
        name = self._one("fieldSelector").removeprefix("metadata.name=")
        changes = self.server.store.changes(
            self._resource,
            int(self._one("resourceVersion")),
            lambda one: not name or one["metadata"]["name"] == name,
            float(self._one("timeoutSeconds")),
        )
        for event, one in changes:
            self._chunk(json.dumps({"type": event, "object": one}) + "\n")
        self._chunk("")

    def _log(self) -> None:
        self._may("get")
        previous = self._one("previous") == "true"
        text = self.server.outputs.get((self._name, self._one("container"), previous), "")
        self._begin_chunks()
        if lines := text.splitlines(keepends=True)[-int(self._one("tailLines")) :]:
            self._chunk("".join(lines))
        self._chunk("")

    def _exec(self) -> None:
        self._may("create")
        self.server.store.get(self._resource, self._namespace, self._name)
        key = self.headers["sec-websocket-key"].encode() + _GUID
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "Upgrade")
        self.send_header("sec-websocket-accept", base64.b64encode(_sha1(key)).decode())
        self.send_header("sec-websocket-protocol", "v4.channel.k8s.io")
        self.end_headers()
        self.close_connection = True
        disk = self.server.disks[self._name]
        command = [part.replace("/tmp/ray", str(disk)) for part in self._query["command"]]  # noqa: S108
        if shutil.which(command[0], path=f"{disk / 'bin'}:/usr/bin:/bin") is None:
            said = f'exec: "{command[0]}": executable file not found in $PATH'
            failure = {
                "metadata": {},
                "status": "Failure",
                "message": said,
                "reason": "InternalError",
            }
            self._frame(b"\x03" + json.dumps(failure).encode())
            self._frame(b"", opcode=8)
            return
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=disk,
            env={"PATH": f"{disk / 'bin'}:/usr/bin:/bin"},
            start_new_session=True,
        )
        # A client that leaves ends nothing in a pod; here, no test is to leave anything behind.
        threading.Thread(target=self._end_with_client, args=(process,), daemon=True).start()
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            while piece := os.read(process.stdout.fileno(), 7):  # a frame may end anywhere
                self._frame(b"\x01" + piece)
            if complaint := process.stderr.read():
                self._frame(b"\x02" + complaint)
            code = process.wait()
            self._frame(b"\x03" + json.dumps(_exit_status(code)).encode())
            self._frame(b"", opcode=8)
        except OSError:
            pass
        finally:
            _end(process)
            process.stdout.close()
            process.stderr.close()

    def _end_with_client(self, process: subprocess.Popen[bytes]) -> None:
        with suppress(OSError, ValueError):  # closed from there, or from here
            while self.connection.recv(1024):
                pass
        _end(process)

    def _frame(self, payload: bytes, opcode: int = 2) -> None:
        length = len(payload)
        size = bytes([length]) if length < 126 else b"\x7e" + struct.pack(">H", length)
        self.wfile.write(bytes([0x80 | opcode]) + size + payload)
        self.wfile.flush()

    def _begin_chunks(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _chunk(self, text: str) -> None:
        content = text.encode()
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def _send(self, code: int, answer: Object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _is_healthy(pod: Object) -> bool:
    conditions: list[dict[str, Any]] = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _exit_status(code: int) -> Object:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def _sha1(content: bytes) -> bytes:
    return hashlib.sha1(content).digest()  # noqa: S324 - RFC 6455 says so
