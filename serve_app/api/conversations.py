"""The conversations API: requests, the conversation object, and pages of items."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from serve_app.api.body import WireModel, at_most, validated
from serve_app.api.items import InputItem, item_object
from serve_app.api.sampling import Metadata
from serve_app.errors import InvalidRequest
from serve_app.messages.dialogue import ConversationView, ItemsPage
from serve_app.messages.tokenization import Message

__all__ = [
    "ConversationRequest",
    "ItemsQuery",
    "conversation_object",
    "deleted_conversation",
    "items_page",
]

MAX_FIRST_ITEMS = 20  # OpenAI's


class ConversationRequest(WireModel):
    """Body of POST /v1/conversations; an empty body is an empty object."""

    items: Annotated[list[InputItem], at_most(MAX_FIRST_ITEMS)] = Field(default_factory=list)
    metadata: Metadata = Field(default_factory=dict)

    def to_messages(self) -> tuple[Message, ...]:
        """Return the first items as messages."""
        return tuple(item.to_message() for item in self.items)


class ItemsQuery(WireModel):
    """Query of GET /v1/conversations/{id}/items."""

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(None, max_length=128)

    @classmethod
    def parse(cls, pairs: Iterable[tuple[str, str]]) -> ItemsQuery:
        """Parse the query string's pairs.

        Raises:
            UnsupportedParameter: naming a parameter that is unknown.
            InvalidRequest: naming one that is wrong or comes twice.
        """
        given: dict[str, str | int] = {}
        for name, text in pairs:
            if name in given:
                msg = f"'{name}' stands twice in the query: send it once."
                raise InvalidRequest(msg, param=name, code="invalid_value")
            is_number = len(text) <= 9 and text.isascii() and text.isdigit()
            given[name] = int(text) if name == "limit" and is_number else text
        return validated(given, cls)


def conversation_object(conversation: ConversationView) -> dict[str, Any]:
    """Return a conversation as a client sees it."""
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_at,
        "metadata": conversation.metadata,
    }


def deleted_conversation(conversation: str) -> dict[str, Any]:
    """Return what DELETE answers; `conversation` is the id."""
    return {"id": conversation, "object": "conversation.deleted", "deleted": True}


def items_page(page: ItemsPage) -> dict[str, Any]:
    """Return a page of items; the ids of an empty one's first and last item are empty."""
    ids = [item.id for item in page.items] or [""]
    return {
        "object": "list",
        "data": [item_object(item) for item in page.items],
        "first_id": ids[0],
        "last_id": ids[-1],
        "has_more": page.has_more,
    }
