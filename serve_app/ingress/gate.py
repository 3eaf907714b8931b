"""What every request passes first: who is it, is there room, and how did it end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import as_parley_error, envelope, error_headers
from serve_app.errors import ClientGone, IngressFull, ParleyError, ShuttingDown, Unauthorized
from serve_app.ingress.accounts import Accounts
from serve_app.ingress.arrival import origin_of_request, root_span, tell_end
from serve_app.ingress.request_account import RequestAccount
from serve_app.settings import Settings, drain_flag, parley_home
from serve_app.state.keys import KeyRing
from serve_app.telemetry import ledger, metrics, tracing
from serve_app.telemetry.origin import named, within
from serve_app.telemetry.outcomes import count_error

__all__ = [
    "DEFAULT_TENANT",
    "NO_ROUTE",
    "OPEN_PATHS",
    "Gate",
    "answer_with_error",
    "tenant_of",
    "tenant_of_key",
]

logger = logging.getLogger("ray.serve")

DEFAULT_TENANT = "default"
OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that need no key: probes have none."""
NO_ROUTE = "none"
"""The route of requests that have none, where they are counted."""


def tenant_of(scope: Scope) -> str:
    """Return whose request it is."""
    tenant: str = scope["state"]["tenant"]
    return tenant


def tenant_of_key(keys: KeyRing, scope: Scope) -> str:
    """Return the tenant of the key that a request has.

    Args:
        keys: the keys.
        scope: the request.

    Raises:
        Unauthorized: it takes a key, and the request has none, or one that is not known.
    """
    if not keys.demands_key or scope["path"] in OPEN_PATHS:
        return DEFAULT_TENANT
    header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer" or not key:
        message = "Send an API key as `Authorization: Bearer …`; `parley key create` makes one."
        raise Unauthorized(message, code="missing_api_key")
    return keys.authenticate(key.strip()).tenant


class Gate:
    """ASGI middleware around all routes: keys, a bound on what runs at once, counts, errors, accounts."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: KeyRing, accounts: Accounts) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._accounts = accounts
        self._drain_flag = drain_flag(parley_home())
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event as ASGI defines it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with within(origin_of_request(scope)), root_span(scope) as span:
            await self._count(scope, receive, send, span)

    async def _count(self, scope: Scope, receive: Receive, send: Send, span: tracing.Span) -> None:
        began = time.monotonic()
        status = 499  # what is counted when the client leaves before the response starts
        started = False

        async def counting_send(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        failed = ""
        metrics.REQUESTS_IN_PROGRESS.inc()
        account = RequestAccount.of(scope, self._accounts.take)
        kept = ledger.use(account)
        try:
            await self._pass(scope, receive, counting_send, account)
        except asyncio.CancelledError:
            # That is how Serve ends a request whose client has left.
            failed = account.error = ClientGone.code
            count_error(ClientGone("The client left before the reply was done."))
            raise
        except Exception as error:
            told = as_parley_error(error)
            failed = account.error = told.code
            count_error(told)
            if type(told) is ParleyError:  # nothing that anybody foresaw
                logger.exception("A request failed.")
            if started:
                raise
            await answer_with_error(told, counting_send)
        finally:
            metrics.REQUESTS_IN_PROGRESS.dec()
            route = _route(scope)
            metrics.REQUESTS.labels(route, status).inc()
            ledger.reset(kept)
            account.release()
            took = time.monotonic() - began
            logger.debug(
                "%s %s: %d%s in %.3f s",
                scope["method"],
                route,
                status,
                failed and f" {failed}",
                took,
            )
            if span.recording:
                tell_end(span, scope["method"], route, status, failed)

    async def _pass(
        self, scope: Scope, receive: Receive, send: Send, account: RequestAccount
    ) -> None:
        tenant = scope.setdefault("state", {})["tenant"] = tenant_of_key(self._keys, scope)
        account.tenant = tenant
        named(tenant=tenant)
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._drain_flag.exists():
            message = "This service is shutting down; try again when it is back."
            raise ShuttingDown(message, retry_after=5.0)
        limit = self._settings.ingress.max_concurrent
        if self._running >= limit:
            message = (
                f"All {limit} places of this ingress (setting ingress.max_concurrent) are taken; "
                "try again shortly."
            )
            raise IngressFull(message, retry_after=1.0)
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1


async def answer_with_error(
    error: ParleyError, send: Send, further: Mapping[str, str] | None = None
) -> None:
    """Send a whole error response.

    Args:
        error: what is wrong.
        send: where to.
        further: headers, besides those that it has anyway.
    """
    body = orjson.dumps(envelope(error))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error_headers(error),
        **(further or {}),
    }
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    """Return the route's pattern, so that labels stay few whatever paths clients try."""
    route: Any = scope.get("route")
    return getattr(route, "path", NO_ROUTE)
