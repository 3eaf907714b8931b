"""The conversations API: requests, the conversation object, and pages of items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from serve_app.api.body import WireModel, at_most, fault, validated
from serve_app.api.items import InputItem, item_object
from serve_app.api.response_queries import single_values
from serve_app.api.sampling import Metadata, ModelName, PersonaName
from serve_app.messages.dialogue import Item
from serve_app.messages.tokenization import Message

__all__ = [
    "ConversationRequest",
    "ConversationUpdate",
    "ItemsQuery",
    "ItemsRequest",
    "conversation_object",
    "deleted_conversation",
    "items_page",
]

MAX_ITEMS_AT_ONCE = 20  # OpenAI's
MAX_TTL_S = 400 * 86400

Ttl = Annotated[int, Field(ge=1, le=MAX_TTL_S)]


class ConversationRequest(WireModel):
    """Body of POST /v1/conversations; an empty body is an empty object."""

    items: Annotated[list[InputItem], at_most(MAX_ITEMS_AT_ONCE)] = Field(default_factory=list)
    metadata: Metadata = Field(default_factory=dict)
    user: str | None = Field(None, max_length=512)
    ttl: Ttl | None = None
    persona: PersonaName | None = None
    model: ModelName | None = None

    def to_messages(self) -> tuple[Message, ...]:
        """Return the first items as messages."""
        return tuple(item.to_message() for item in self.items)


class ConversationUpdate(WireModel):
    """Body of POST /v1/conversations/{id}; what is left out stays as it is."""

    metadata: Metadata | None = None
    ttl: Ttl | None = None
    head: str | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def _changes_something(self) -> ConversationUpdate:
        if not self.model_fields_set:
            predicate = "is required, or 'ttl' or 'head'"
            raise fault("missing_required_parameter", predicate, "metadata")
        return self


class ItemsRequest(WireModel):
    """Body of POST /v1/conversations/{id}/items."""

    items: Annotated[list[InputItem], at_most(MAX_ITEMS_AT_ONCE)] = Field(min_length=1)

    def to_messages(self) -> tuple[Message, ...]:
        """Return the items as messages."""
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
        for name, text in single_values(pairs):
            is_number = len(text) <= 9 and text.isascii() and text.isdigit()
            given[name] = int(text) if name == "limit" and is_number else text
        return validated(given, cls)


def conversation_object(
    conversation: str,
    *,
    created: int,
    metadata: Mapping[str, str],
    user: str | None = None,
    ttl: int | None = None,
    persona: str | None = None,
) -> dict[str, Any]:
    """Return a conversation as a client sees it.

    Args:
        conversation: its id.
        created: Unix seconds.
        metadata: the client's own key-value pairs.
        user: whose it is among the tenant's users.
        ttl: its own time to live in seconds.
        persona: name of the persona that answers in it.
    """
    return {
        "id": conversation,
        "object": "conversation",
        "created_at": created,
        "metadata": dict(metadata),
        "parley": {"user": user, "ttl": ttl, "persona": persona},
    }


def deleted_conversation(conversation: str) -> dict[str, Any]:
    """Return what DELETE answers; `conversation` is the id."""
    return {"id": conversation, "object": "conversation.deleted", "deleted": True}


def items_page(items: Sequence[Item], *, has_more: bool) -> dict[str, Any]:
    """Return a page of items; the ids of an empty one's first and last item are empty."""
    ids = [item.id for item in items] or [""]
    return {
        "object": "list",
        "data": [item_object(item) for item in items],
        "first_id": ids[0],
        "last_id": ids[-1],
        "has_more": has_more,
    }
