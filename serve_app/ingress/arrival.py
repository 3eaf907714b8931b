"""A request as traces and logs see it: what it is called when it comes, and how it ended."""

from __future__ import annotations

import re
import secrets

from starlette.types import Scope

from serve_app.telemetry import tracing
from serve_app.telemetry.origin import Origin, current
from serve_app.telemetry.trace_context import TRACE_HEADER, TraceParent

__all__ = ["origin_of_request", "root_span", "tell_end"]

_UNTRACED = frozenset({"/health", "/ready", "/metrics"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def origin_of_request(scope: Scope) -> Origin:
    """Return what is known of a request when it comes."""
    headers = dict(scope["headers"])
    request = headers.get(b"x-request-id", b"").decode(
        "latin-1"
    )  # Serve's own: clients' are dropped
    if not _REQUEST_ID.fullmatch(request):
        request = f"req_{secrets.token_hex(16)}"
    header = headers.get(TRACE_HEADER)
    parent = None if header is None else TraceParent.parse(header.decode("latin-1"))
    return Origin(
        request=request,
        http_request=request,
        traceparent=None if parent is None else str(parent),
    )


def root_span(scope: Scope) -> tracing.Span:
    """Begin the span of a request, unless it only asks how the service is."""
    if not tracing.tracing() or scope["path"] in _UNTRACED:
        return tracing.NO_SPAN
    return tracing.root(scope["method"], {"http.request.method": scope["method"]})


def tell_end(span: tracing.Span, method: str, route: str, status: int, code: str) -> None:
    """Say how a request ended. Never its path: that may have a user's name in it."""
    span.rename(f"{method} {route}")
    origin = current() or Origin()
    told: dict[str, tracing.Value | None] = {
        "http.route": route,
        "http.response.status_code": status,
        "parley.request.id": origin.request,
        "parley.http_request.id": origin.http_request,
        "parley.tenant": origin.tenant,
        "gen_ai.conversation.id": origin.conversation,
    }
    span.set({name: value for name, value in told.items() if value is not None})
    # A client's own mistake is no failure of the server's, as the conventions for HTTP have it.
    if status >= 499:
        span.fail(code or str(status))
