"""The profiles API: read, correct and erase what is known of a user."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from serve_app.api.body import parse_body
from serve_app.api.profiles import ProfileRequest, checked_user, deleted_profile, profile_object
from serve_app.ingress.gate import tenant_of
from serve_app.ingress.json_response import JsonResponse
from serve_app.ingress.services import Services

__all__ = ["profile_routes"]


def profile_routes(services: Services) -> APIRouter:
    """Return the profiles API."""
    router = APIRouter(prefix="/v1/profiles")
    store = services.stores.profiles
    depth = services.settings.ingress.max_json_depth

    @router.get("/{user}")
    async def get_profile(request: Request, user: str) -> Response:
        facts = await store.get(tenant_of(request.scope), checked_user(user))
        return JsonResponse(profile_object(user, facts))

    @router.put("/{user}")
    async def put_profile(request: Request, user: str) -> Response:
        body = parse_body(await request.body(), ProfileRequest, max_depth=depth)
        texts = body.texts(most=store.max_facts)
        facts = await store.put(tenant_of(request.scope), checked_user(user), texts)
        return JsonResponse(profile_object(user, facts))

    @router.delete("/{user}")
    async def delete_profile(request: Request, user: str) -> Response:
        await store.delete(tenant_of(request.scope), checked_user(user))
        return JsonResponse(deleted_profile(user))

    return router
