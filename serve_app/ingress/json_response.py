"""A response in JSON."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from serve_app.api.account import SERVER_TIMING, server_timing
from serve_app.ingress.request_account import RequestAccount

__all__ = ["JsonResponse", "accounted"]


class JsonResponse(Response):
    """Encodes plain dictionaries as they are."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return orjson.dumps(content)


def accounted(content: Any, account: RequestAccount) -> JsonResponse:
    """Return a reply that says in a header where its time went, but for its own way to the client."""
    with account.stage("assemble"):
        response = JsonResponse(content)
    response.headers[SERVER_TIMING] = server_timing(account.snapshot())
    return response
