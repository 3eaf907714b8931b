"""GET /v1/requests/{id}/account: where the time of a request went."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve_app.ingress.gate import tenant_of
from serve_app.ingress.json_response import JsonResponse
from serve_app.ingress.services import Services

__all__ = ["account_routes"]


def account_routes(services: Services) -> APIRouter:
    """Return the API of accounts."""
    router = APIRouter()

    @router.get("/v1/requests/{request_id}/account")
    async def get_account(request: Request, request_id: str) -> Response:
        return JsonResponse(await services.accounts.find(tenant_of(request.scope), request_id))

    return router
