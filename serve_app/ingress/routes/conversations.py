"""The conversations API: what conversations are, and their items."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from serve_app.api.body import parse_body
from serve_app.api.conversations import (
    ConversationRequest,
    ConversationUpdate,
    ItemsQuery,
    ItemsRequest,
    conversation_object,
    deleted_conversation,
    items_page,
)
from serve_app.api.ids import checked_conversation_id, message_id
from serve_app.api.items import item_object, new_items
from serve_app.errors import InvalidRequest
from serve_app.ingress.gate import tenant_of
from serve_app.ingress.idempotency import carry_out_once
from serve_app.ingress.json_response import JsonResponse
from serve_app.ingress.services import Services
from serve_app.ingress.stored_items import as_items, as_stored
from serve_app.messages.dialogue import NOBODY
from serve_app.messages.tokenization import Message
from serve_app.state.keyspace import conversation_of, new_conversation_id
from serve_app.state.records import StoredConversation

__all__ = ["conversation_routes"]


def conversation_routes(services: Services) -> APIRouter:
    """Return the conversations API."""
    router = APIRouter(prefix="/v1/conversations")
    store = services.stores.conversations
    once = services.stores.idempotency
    depth = services.settings.ingress.max_json_depth

    @router.post("")
    async def create_conversation(request: Request) -> Response:
        body = parse_body(await request.body() or b"{}", ConversationRequest, max_depth=depth)

        services.models.named(body.model)
        with_whom = NOBODY
        if body.persona or services.settings.dialogue.default_persona:
            with_whom = await services.dialogue.persona(body.persona)
        messages = body.to_messages()
        if with_whom.greeting and not messages:
            messages = (Message("assistant", with_whom.greeting),)

        async def create(conversation: str) -> Response:
            made = await store.create(
                tenant_of(request.scope),
                metadata=body.metadata,
                items=as_stored(new_items(messages, created=int(time.time()))),
                user=body.user,
                ttl_s=body.ttl or with_whom.ttl_s,
                conversation=conversation,
                persona=with_whom.name,
                on_busy=with_whom.on_busy,
                model=body.model,
            )
            return JsonResponse(_shown(made))

        return await carry_out_once(once, request, new_conversation_id(), create)

    @router.get("/{conversation}")
    async def get_conversation(request: Request, conversation: str) -> Response:
        found = await store.get(tenant_of(request.scope), checked_conversation_id(conversation))
        return JsonResponse(_shown(found))

    @router.post("/{conversation}")
    async def update_conversation(request: Request, conversation: str) -> Response:
        body = parse_body(await request.body(), ConversationUpdate, max_depth=depth)
        known = checked_conversation_id(conversation)
        if body.head is not None and conversation_of(body.head) != known:
            msg = "'head' is a response of another conversation; name one of this."
            raise InvalidRequest(msg, param="head", code="invalid_value")

        async def update(_: str) -> Response:
            changed = await store.update(
                tenant_of(request.scope),
                known,
                metadata=body.metadata,
                ttl_s=body.ttl,
                head=body.head,
            )
            return JsonResponse(_shown(changed))

        return await carry_out_once(once, request, known, update)

    @router.delete("/{conversation}")
    async def delete_conversation(request: Request, conversation: str) -> Response:
        await store.delete(tenant_of(request.scope), checked_conversation_id(conversation))
        return JsonResponse(deleted_conversation(conversation))

    @router.get("/{conversation}/items")
    async def list_items(request: Request, conversation: str) -> Response:
        query = ItemsQuery.parse(request.query_params.multi_items())
        items, has_more = await store.items(
            tenant_of(request.scope),
            checked_conversation_id(conversation),
            after=query.after,
            limit=query.limit,
            order=query.order,
        )
        return JsonResponse(items_page(as_items(items), has_more=has_more))

    @router.post("/{conversation}/items")
    async def create_items(request: Request, conversation: str) -> Response:
        body = parse_body(await request.body(), ItemsRequest, max_depth=depth)
        known = checked_conversation_id(conversation)

        async def create(first: str) -> Response:
            made = new_items(body.to_messages(), created=int(time.time()))
            # Named after one id, so that another try appends nothing twice.
            items = [replace(item, id=f"{first}{place:02d}") for place, item in enumerate(made)]
            await store.add_items(tenant_of(request.scope), known, as_stored(items))
            return JsonResponse(items_page(items, has_more=False))

        return await carry_out_once(once, request, message_id(), create, conversation=known)

    @router.get("/{conversation}/items/{item}")
    async def get_item(request: Request, conversation: str, item: str) -> Response:
        known = checked_conversation_id(conversation)
        found = await store.item(tenant_of(request.scope), known, item)
        return JsonResponse(item_object(as_items([found])[0]))

    @router.delete("/{conversation}/items/{item}")
    async def delete_item(request: Request, conversation: str, item: str) -> Response:
        known = checked_conversation_id(conversation)
        return JsonResponse(_shown(await store.delete_item(tenant_of(request.scope), known, item)))

    return router


def _shown(conversation: StoredConversation) -> dict[str, Any]:
    return conversation_object(
        conversation.id,
        created=conversation.created_at,
        metadata=conversation.metadata,
        user=conversation.user,
        ttl=conversation.ttl_s,
        persona=conversation.persona,
    )
