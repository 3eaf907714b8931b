"""One cluster's API, through the official client: objects as plain data, refusals as sentences."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import urllib3
import urllib3.exceptions
from kubernetes import client, config, stream
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from websocket import WebSocketException

from serve_app.errors import ConfigError, OperationError
from serve_app.operations.kinds import PODS, Kind, Object
from serve_app.operations.refusals import refusal, unreachable

__all__ = ["ClusterApi"]

MERGE_PATCH = "application/merge-patch+json"

_PAGE = 500
_STREAM_SLACK_S = 10.0
# All that the client keeps of an answer that doesn't let it open a WebSocket.
_HANDSHAKE = re.compile(r"Handshake status (\d{3})")
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}


class ClusterApi:
    """Talks to the API server that a kubeconfig names.

    Objects are dictionaries, spelt as in manifests, so that a server newer than the client, or a custom
    resource, is read like any other.

    Args:
        namespace: where Parley runs; None takes the context's.
        context: a context of the kubeconfig; None takes the current one, or the pod's own account.
        request_timeout_s: how long one request may take.

    Raises:
        ConfigError: there is no such kubeconfig or context.
    """

    def __init__(
        self,
        namespace: str | None = None,
        context: str | None = None,
        request_timeout_s: float = 10.0,
    ) -> None:
        self._configuration = client.Configuration()
        self._timeout_s = request_timeout_s
        own = self._load(context)
        # A connection that the server has closed meanwhile is worth one more try, and nothing else.
        self._configuration.retries = urllib3.Retry(
            connect=0, read=1, redirect=0, status=0, respect_retry_after_header=False
        )
        self._client = client.ApiClient(self._configuration)
        self.namespace = namespace or own

    def __enter__(self) -> ClusterApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._configuration.host)

    def server_version(self) -> Object:
        """Return what the API server says of its version."""
        return cast("Object", self._json("GET", "/version"))

    def get(self, kind: Kind, name: str) -> Object:
        """Return one object.

        Raises:
            OperationError: the server refuses or can't be reached; here as in every method below.
        """
        path = kind.path(self.namespace, name)
        return cast("Object", self._json("GET", path, what=(kind, name)))

    def find(self, kind: Kind, *, labels: str = "", fields: str = "") -> list[Object]:
        """Return the objects of a kind in the namespace, page by page.

        Args:
            kind: which.
            labels: a label selector.
            fields: a field selector.
        """
        query = {"limit": str(_PAGE)}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        found: list[Object] = []
        while True:
            path = kind.path(self.namespace)
            page = self._json("GET", path, query=query, what=(kind, ""), verb="list")
            found += page["items"]
            if not (rest := page["metadata"].get("continue")):
                return found
            query["continue"] = rest

    def create(self, kind: Kind, body: Object, *, name: str = "", subresource: str = "") -> Object:
        """Create an object, or a part of one such as a pod's eviction."""
        path = kind.path(self.namespace, name, subresource)
        what = (kind, name or body["metadata"]["name"])
        return cast("Object", self._json("POST", path, body=body, what=what, part=subresource))

    def patch(self, kind: Kind, name: str, body: Object) -> Object:
        """Merge a patch into an object (RFC 7386).

        A `metadata.resourceVersion` in it makes the server refuse if anybody has changed the object since.
        """
        path = kind.path(self.namespace, name)
        return cast("Object", self._json("PATCH", path, body=body, what=(kind, name)))

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object."""
        self._json("DELETE", kind.path(self.namespace, name), what=(kind, name))

    def wait_for_change(self, kind: Kind, name: str, version: str, seconds: float) -> None:
        """Watch one object, and return when it changes or the time is over.

        Args:
            kind: its kind.
            name: its name.
            version: the resourceVersion that was seen.
            seconds: how long to wait at most.
        """
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(seconds))),
        }
        deadline = time.monotonic() + seconds
        path = kind.path(self.namespace)
        for _event in self._lines(path, query, (kind, name), "watch", seconds):
            return  # a change, or the news that the version is too old to be watched from
        time.sleep(max(0.0, min(1.0, deadline - time.monotonic())))

    def pod_log(
        self, pod: str, container: str, *, lines: int, previous: bool = False
    ) -> Iterator[str]:
        """Yield the last lines that a container has printed.

        Args:
            pod: the pod.
            container: the container.
            lines: how many, at most.
            previous: of the container's run before this one.
        """
        query = {"container": container, "tailLines": str(lines), "timestamps": "true"}
        if previous:
            query["previous"] = "true"
        path = PODS.path(self.namespace, pod, "log")
        yield from self._lines(path, query, (PODS, pod), "get", 60.0, part="log")

    def run_in_pod(
        self, pod: str, container: str, command: list[str], *, seconds: float
    ) -> Iterator[str]:
        """Run a command in a container and yield the lines that it prints.

        Args:
            pod: the pod.
            container: the container.
            command: program and arguments.
            seconds: how long to listen at most.

        Raises:
            OperationError: it could not be started, or printed nothing but a complaint.
        """
        # The client puts a method of its own into the ApiClient for a while: one each, as several run.
        own = client.ApiClient(self._configuration)
        try:
            socket = stream.stream(
                client.CoreV1Api(own).connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                container=container,
                command=command,
                stdout=True,
                stderr=True,
                stdin=False,
                tty=False,
                binary=True,
                _preload_content=False,
            )
        except ApiException as error:
            shaken = _HANDSHAKE.match(str(error.reason))
            if shaken is None:
                raise unreachable(self.server, error) from None
            error.status = int(shaken[1])
            raise refusal(error, "create", PODS, pod, self.namespace, "exec") from None
        finally:
            own.close()
        try:
            yield from _printed(socket, pod, seconds)
        except (WebSocketException, OSError) as error:
            msg = f"The pod {pod} broke off while it was read: {error}. Is it still there?"
            raise OperationError(msg) from None
        finally:
            socket.close()

    def _load(self, context: str | None) -> str:
        try:
            contexts, current = config.list_kube_config_contexts()
            named = {one["name"]: one for one in contexts}
            if context is not None and context not in named:
                msg = f"The kubeconfig has no context {context}; it has {', '.join(named)}."
                raise ConfigError(msg)
            chosen = named[context] if context else current
            config.load_kube_config(
                context=context, client_configuration=self._configuration, persist_config=False
            )
            return str(chosen["context"].get("namespace") or "parley")
        except ConfigException as error:
            if context is None and _in_a_pod(self._configuration):
                return "parley"
            msg = (
                f"There is no cluster to talk to: {error} Set KUBECONFIG to a kubeconfig, or "
                "name one of its contexts with --context; `kubectl config get-contexts` lists them."
            )
            raise ConfigError(msg) from None

    def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        what: tuple[Kind, str] | None = None,
        verb: str = "",
        part: str = "",
    ) -> Any:
        verb = verb or _VERBS[method]
        response = self._open(method, path, query, body, self._timeout_s)
        try:
            content = response.read()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self.server, error) from None
        if not 200 <= response.status <= 299:
            raise self._refused(response, verb, what, part)
        return json.loads(content)

    def _lines(
        self,
        path: str,
        query: Mapping[str, str],
        what: tuple[Kind, str],
        verb: str,
        seconds: float,
        *,
        part: str = "",
    ) -> Iterator[str]:
        """Yield the lines of an answer as they come."""
        response = self._open("GET", path, query, None, seconds + _STREAM_SLACK_S)
        if not 200 <= response.status <= 299:
            response.read()
            raise self._refused(response, verb, what, part)
        rest = b""
        try:
            for piece in response.response.stream(65536, decode_content=True):
                *whole, rest = (rest + piece).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in whole)
            if rest:
                yield rest.decode("utf-8", "replace")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self.server, error) from None
        finally:
            # What is left of it is of no use, so neither is the connection.
            response.response.close()
            response.response.release_conn()

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Object | None,
        seconds: float,
    ) -> Any:
        headers = {"Accept": "application/json, */*"}
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH if method == "PATCH" else "application/json"
        request = self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            return self._client.call_api(*request, _request_timeout=(self._timeout_s, seconds))
        except ApiException as error:
            raise unreachable(self.server, error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self.server, error) from None

    def _refused(
        self, response: Any, verb: str, what: tuple[Kind, str] | None, part: str
    ) -> OperationError:
        kind, name = what or (Kind("", "v1", "version", namespaced=False), "")
        error = ApiException(http_resp=response)
        return refusal(error, verb, kind, name, self.namespace, part)


def _in_a_pod(configuration: client.Configuration) -> bool:
    try:
        config.load_incluster_config(client_configuration=configuration)
    except ConfigException:
        return False
    return True


def _printed(socket: Any, pod: str, seconds: float) -> Iterator[str]:
    """Yield the lines of standard output; complain of what is on standard error if that is all."""
    deadline = time.monotonic() + seconds
    rest, complaint, anything = b"", b"", False
    take: Callable[[int], bytes] = socket.read_channel
    while True:
        left = deadline - time.monotonic()
        socket.update(timeout=max(0.0, min(left, 1.0)))
        *lines, rest = (rest + take(1)).split(b"\n")
        complaint += take(2)
        for line in lines:
            anything = True
            yield line.decode("utf-8", "replace")
        if not socket.is_open() or left <= 0:
            break
    if rest:
        anything = True
        yield rest.decode("utf-8", "replace")
    if anything:
        return
    ended = json.loads(take(3) or b"{}")
    said = complaint.decode("utf-8", "replace").strip().splitlines()[-1:]
    # A program that finds nothing fails as well, and has nothing to say of it.
    if ended.get("status") == "Failure" and ended.get("reason") != "NonZeroExitCode":
        said = said or [ended.get("message", "no reason given")]
    if ended.get("status") == "Failure" and said:
        msg = f"A command in the pod {pod} failed: {said[0]}"
        raise OperationError(msg if msg.endswith(".") else f"{msg}.")
