"""The conversations API: create, read, list items, delete."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from serve_app.api.body import parse_body
from serve_app.api.conversations import (
    ConversationRequest,
    ItemsQuery,
    conversation_object,
    deleted_conversation,
    items_page,
)
from serve_app.api.ids import checked_conversation_id
from serve_app.api.items import new_items
from serve_app.ingress.gate import tenant_of
from serve_app.ingress.json_response import JsonResponse
from serve_app.ingress.services import Services

__all__ = ["conversation_routes"]


def conversation_routes(services: Services) -> APIRouter:
    """Return the conversations API."""
    router = APIRouter(prefix="/v1/conversations")
    dialogue = services.dialogue
    limits = services.settings.ingress

    @router.post("")
    async def create_conversation(request: Request) -> Response:
        body = parse_body(
            await request.body() or b"{}", ConversationRequest, max_depth=limits.max_json_depth
        )
        view = await dialogue.create(
            tenant_of(request.scope),
            metadata=body.metadata,
            items=new_items(body.to_messages(), created=int(time.time())),
        )
        return JsonResponse(conversation_object(view))

    @router.get("/{conversation}")
    async def get_conversation(request: Request, conversation: str) -> Response:
        view = await dialogue.get(tenant_of(request.scope), checked_conversation_id(conversation))
        return JsonResponse(conversation_object(view))

    @router.delete("/{conversation}")
    async def delete_conversation(request: Request, conversation: str) -> Response:
        await dialogue.delete(tenant_of(request.scope), checked_conversation_id(conversation))
        return JsonResponse(deleted_conversation(conversation))

    @router.get("/{conversation}/items")
    async def list_items(request: Request, conversation: str) -> Response:
        query = ItemsQuery.parse(request.query_params.multi_items())
        page = await dialogue.items(
            tenant_of(request.scope),
            checked_conversation_id(conversation),
            after=query.after,
            limit=query.limit,
            order=query.order,
        )
        return JsonResponse(items_page(page))

    return router
