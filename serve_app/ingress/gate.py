"""What every request passes first: who is it, is there room, and how did it end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import as_parley_error, envelope, error_headers
from serve_app.errors import ClientGone, Overloaded, ParleyError, Unauthorized
from serve_app.ingress.accounts import Accounts
from serve_app.ingress.request_account import RequestAccount
from serve_app.settings import Settings, drain_flag, parley_home
from serve_app.state.keys import KeyRing
from serve_app.telemetry import ledger, metrics

__all__ = ["DEFAULT_TENANT", "OPEN_PATHS", "Gate", "answer_with_error", "tenant_of"]

logger = logging.getLogger("ray.serve")

DEFAULT_TENANT = "default"
OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that need no key: probes have none."""


def tenant_of(scope: Scope) -> str:
    """Return whose request it is."""
    tenant: str = scope["state"]["tenant"]
    return tenant


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
        status = 499  # what is counted when the client leaves before the response starts
        started = False

        async def counting_send(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
            await send(message)

        metrics.REQUESTS_IN_PROGRESS.inc()
        account = RequestAccount.of(scope, self._accounts.take)
        kept = ledger.use(account)
        try:
            await self._pass(scope, receive, counting_send, account)
        except asyncio.CancelledError:
            # That is how Serve ends a request whose client has left.
            metrics.ERRORS.labels(ClientGone.code).inc()
            account.error = ClientGone.code
            raise
        except Exception as error:
            told = as_parley_error(error)
            metrics.ERRORS.labels(told.code).inc()
            account.error = told.code
            if type(told) is ParleyError:  # nothing that anybody foresaw
                logger.exception("A request failed.")
            if started:
                raise
            await answer_with_error(told, counting_send)
        finally:
            metrics.REQUESTS_IN_PROGRESS.dec()
            metrics.REQUESTS.labels(_route(scope), status).inc()
            ledger.reset(kept)
            account.release()

    async def _pass(
        self, scope: Scope, receive: Receive, send: Send, account: RequestAccount
    ) -> None:
        account.tenant = scope.setdefault("state", {})["tenant"] = self._tenant(scope)
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._drain_flag.exists():
            message = "This service is shutting down; try again when it is back."
            raise Overloaded(message, retry_after=5.0)
        limit = self._settings.ingress.max_concurrent
        if self._running >= limit:
            message = (
                f"All {limit} places of this ingress (setting ingress.max_concurrent) are taken; "
                "try again shortly."
            )
            raise Overloaded(message, retry_after=1.0)
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1

    def _tenant(self, scope: Scope) -> str:
        if not self._keys.demands_key or scope["path"] in OPEN_PATHS:
            return DEFAULT_TENANT
        header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer" or not key:
            message = "Send an API key as `Authorization: Bearer …`; `parley key create` makes one."
            raise Unauthorized(message, code="missing_api_key")
        return self._keys.authenticate(key.strip()).tenant


async def answer_with_error(error: ParleyError, send: Send) -> None:
    """Send a whole error response."""
    body = orjson.dumps(envelope(error))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error_headers(error),
    }
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _route(scope: Scope) -> str:
    """Return the route's pattern, so that labels stay few whatever paths clients try."""
    route: Any = scope.get("route")
    return getattr(route, "path", "none")
