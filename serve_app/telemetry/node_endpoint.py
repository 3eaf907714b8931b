"""One `/metrics` for each node, whichever of its replicas live.

The Ingress has one too, but a proxy sends requests to the Ingress replicas of every node, and a node of
generators alone has none: what a scrape of one address brings would be now this node's, now that one's.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6, socket
from typing import Any

from serve_app.telemetry.process_metrics import exposition

__all__ = ["CONTENT_TYPE", "NodeEndpoint"]

logger = logging.getLogger("ray.serve")

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
_PATIENCE_S = 10.0
_MOST_AT_ONCE = 8
_BIND_AGAIN_S = 5.0
_LOG_EVERY_S = 60.0


class NodeEndpoint:
    """Answers for the node while this process is the one that does; another one does when it ends.

    Args:
        host: address to listen on.
        port: where.
        allowed: whether a request with this `authorization` header ("" where it has none) may see them.
        folder: the node's samples.
    """

    def __init__(
        self, host: str, port: int, *, allowed: Callable[[str], bool], folder: Path
    ) -> None:
        self._address = (host, port)
        self._allowed = allowed
        self._folder = folder

    def start(self) -> None:
        """Answer as soon as no other process of the node does, from a thread of its own."""
        threading.Thread(target=self.serve, name="node-metrics", daemon=True).start()

    def serve(self) -> None:
        """Wait until no other process of the node answers, then answer until this one ends."""
        # The system takes a lock from a process that dies, however it dies, and gives it to the next.
        with (self._folder / "endpoint.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self._bound() as server:
                server.serve_forever()

    def _bound(self) -> _Server:
        logged = -_LOG_EVERY_S
        while True:
            try:
                return _Server(self._address, _handler(self._allowed, self._folder))
            except OSError as error:
                if time.monotonic() - logged >= _LOG_EVERY_S:
                    logged = time.monotonic()
                    host, port = self._address
                    logger.warning(
                        "This node's metrics can't be had at %s:%d (%s); set metrics.port to a port "
                        "that nothing else listens on.",
                        host,
                        port,
                        error.strerror or error,
                    )
                time.sleep(_BIND_AGAIN_S)


class _Server(ThreadingHTTPServer):
    """Takes a few requests at a time, and closes the connections of more."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = AF_INET6
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(address, handler)

    def process_request(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """Handle a request in a thread, if there is room."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(
        self, request: socket | tuple[bytes, socket], client_address: Any
    ) -> None:
        """Handle a request, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()


def _handler(allowed: Callable[[str], bool], folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND, "There is only /metrics here.")
            elif not allowed(self.headers.get("authorization", "")):
                self.send_error(HTTPStatus.UNAUTHORIZED, "Send an API key as a bearer token.")
            else:
                body = exposition(folder)
                self.send_response(HTTPStatus.OK)
                self.send_header("content-type", CONTENT_TYPE)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing: a line a scrape would be all that the log holds."""

    return Handler
