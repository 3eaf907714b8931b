"""The outermost layer of an ingress replica, in front of Serve's own handling of a request.

Serve obeys some headers that a client can send, and reads a body ahead without a limit. This ASGI
middleware runs before that: it drops those headers, reads the whole body itself, within limits of size
and time, and refuses what there is no room for. Serve loads it through `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress

import orjson
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import envelope, no_replica
from serve_app.errors import BodyTooLarge, ParleyError, RequestTimeout
from serve_app.ingress.early_refusal import EarlyRefusal
from serve_app.ingress.gate import NO_ROUTE, answer_with_error
from serve_app.ingress.request_account import mark_arrival
from serve_app.settings import IngressSettings
from serve_app.telemetry import metrics
from serve_app.telemetry.outcomes import count_error
from serve_app.telemetry.trace_context import TRACE_HEADER, TraceParent

__all__ = [
    "SERVE_HEADERS",
    "EdgeMiddleware",
    "NoReplicaMiddleware",
    "middlewares",
    "use_limits",
]

SERVE_HEADERS = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-session-id",
        b"serve-multiplexed-model-id",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
        TRACE_HEADER,
    }
)
"""Headers by which a client could change how Serve treats its request, or what logs call it.

Serve takes `-` and `_` in names for the same, and so does what looks for these.
"""

DRAINED_BODIES = 64
"""Of a body over the limit, as many times the limit are read and thrown away."""

_limits: IngressSettings | None = None
_early: EarlyRefusal | None = None


def use_limits(limits: IngressSettings, early: EarlyRefusal | None = None) -> None:
    """Set what holds in this process; Serve gives the middleware no arguments of ours.

    Args:
        limits: of bodies.
        early: refuses what there is no room for.
    """
    global _limits, _early
    _limits, _early = limits, early


def middlewares() -> list[Middleware]:
    """Return what Serve wraps around its own handling of requests.

    An ingress replica has set its limits by then. Where nobody has, this is Serve's own proxy, to
    which requests go while no ingress replica is up.
    """
    if _limits is not None:
        return [Middleware(EdgeMiddleware, limits=_limits, early=_early)]
    return [Middleware(EdgeMiddleware, limits=IngressSettings()), Middleware(NoReplicaMiddleware)]


class EdgeMiddleware:
    """Drops Serve's headers, reads bodies within limits, and refuses what there is no room for.

    Args:
        app: what is behind it.
        limits: of bodies.
        early: refuses; None lets everything in.
    """

    def __init__(
        self, app: ASGIApp, limits: IngressSettings, early: EarlyRefusal | None = None
    ) -> None:
        self._app = app
        self._limits = limits
        self._early = early

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event as ASGI defines it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["headers"] = _allowed(scope["headers"])
        began_s = time.perf_counter()
        try:
            body = await self._read_body(scope, receive)
        except ParleyError as error:
            count_error(error)
            await self._refuse(error, receive, send)
            return
        if body is None:
            return
        if self._early is not None and await self._early.refuses(scope, send):
            return
        mark_arrival(scope, began_s)
        await self._app(scope, _Replay(body, receive), send)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body, or None when the client left before it was sent."""
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limits.max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.read_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._limits.max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            message_text = (
                f"The body did not arrive within {self._limits.read_timeout_s:g} s; "
                "send it in one go."
            )
            raise RequestTimeout(message_text) from None

    async def _refuse(self, error: ParleyError, receive: Receive, send: Send) -> None:
        body = orjson.dumps(envelope(error))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            # What is left of the body would be taken for the next request.
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if isinstance(error, BodyTooLarge):
            await self._drain(receive)
        await send({"type": "http.response.body", "body": b""})

    async def _drain(self, receive: Receive) -> None:
        """Throw away some of what still comes.

        A connection that is closed with data unread is reset, and a client that is still sending
        may then lose the answer that says why.
        """
        left = DRAINED_BODIES * self._limits.max_body_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.read_timeout_s):
                while left > 0:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
                    left -= len(message.get("body", b""))

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"The body is larger than {self._limits.max_body_bytes} bytes "
            "(setting ingress.max_body_bytes); send less."
        )


class NoReplicaMiddleware:
    """Answers in Parley's form when Serve's own proxy knows no application to turn to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event as ASGI defines it."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        replaced = False

        async def replacing_send(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] == 404:
                # Parley's own answers are JSON, whatever their status.
                replaced = not _is_json(message)
            if not replaced:
                await send(message)

        await self._app(scope, receive, replacing_send)
        if replaced:
            error = no_replica()
            count_error(error)
            metrics.REQUESTS.labels(NO_ROUTE, error.status).inc()
            await answer_with_error(error, send)


def _allowed(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that go on."""
    allowed: list[tuple[bytes, bytes]] = []
    parents: list[bytes] = []
    for name, value in headers:
        plain = name.lower().replace(b"_", b"-")
        if plain == b"traceparent":
            parents.append(value)
        elif plain not in SERVE_HEADERS:
            allowed.append((name, value))
    # Of several nobody knows which one counts.
    if len(parents) == 1 and (parent := TraceParent.parse(parents[0].decode("latin-1"))):
        allowed.append((TRACE_HEADER, str(parent).encode()))
    return allowed


def _is_json(message: Message) -> bool:
    return (b"content-type", b"application/json") in message.get("headers", ())


class _Replay:
    """An ASGI `receive` that gives the body that was read already, then what the client does."""

    __slots__ = ("_body", "_receive")

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._receive()
