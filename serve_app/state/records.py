"""What is written to Redis: JSON with a schema version, sealed for the place where it lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from serve_app.errors import InvalidRequest, StateUnavailable
from serve_app.state.sealing import Seal

__all__ = [
    "Record",
    "StoredConversation",
    "StoredItem",
    "decode_conversation",
    "decode_item",
    "encode_conversation",
    "encode_item",
    "seal_record",
    "unseal_record",
]

Record = dict[str, Any]

_VERSION = 2


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation without its items.

    Attributes:
        id: `conv_…`.
        created_at: Unix seconds.
        metadata: the client's own key-value pairs.
        user: whose it is among the tenant's users, or None.
        ttl_s: its own time to live in seconds, or None.
        persona: name of the persona that it was begun with, or None.
    """

    id: str
    created_at: int
    metadata: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    ttl_s: int | None = None
    persona: str | None = None


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One message of a conversation.

    Attributes:
        id: `msg_…`.
        role: "system", "user" or "assistant".
        content: plain text.
        status: "completed" or "incomplete".
        response: the response that it belongs to, or None.
        created_at: Unix seconds.
    """

    id: str
    role: str
    content: str
    status: str = "completed"
    response: str | None = None
    created_at: int = 0


def encode_conversation(seal: Seal, tenant: str, conversation: StoredConversation) -> bytes:
    """Return what is stored of a conversation."""
    values = {
        "created_at": conversation.created_at,
        "metadata": conversation.metadata,
        "user": conversation.user,
        "ttl_s": conversation.ttl_s,
        "persona": conversation.persona,
    }
    return seal_record(seal, values, tenant, conversation.id, "body")


def decode_conversation(
    seal: Seal, tenant: str, conversation: str, stored: bytes
) -> StoredConversation:
    """Read back what `encode_conversation` wrote.

    Raises:
        StateUnavailable: it was written by another Parley, or is damaged.
    """
    values = unseal_record(seal, stored, tenant, conversation, "body")
    return StoredConversation(
        id=conversation,
        created_at=values["created_at"],
        metadata=values["metadata"],
        user=values["user"],
        ttl_s=values["ttl_s"],
        persona=values.get("persona"),
    )


def encode_item(seal: Seal, tenant: str, conversation: str, item: StoredItem) -> bytes:
    """Return what is stored of an item; its id is its key."""
    values = {
        "role": item.role,
        "content": item.content,
        "status": item.status,
        "response": item.response,
        "created_at": item.created_at,
    }
    return seal_record(seal, values, tenant, conversation, item.id)


def decode_item(
    seal: Seal, tenant: str, conversation: str, item: bytes, stored: bytes
) -> StoredItem:
    """Read back what `encode_item` wrote.

    Raises:
        StateUnavailable: it was written by another Parley, or is damaged.
    """
    name = item.decode()
    values = unseal_record(seal, stored, tenant, conversation, name)
    return StoredItem(
        id=name,
        role=values["role"],
        content=values["content"],
        status=values["status"],
        response=values["response"],
        created_at=values["created_at"],
    )


def seal_record(seal: Seal, values: Record, *place: str) -> bytes:
    """Return values as they are stored in a place: tenant, session, and what it is.

    Raises:
        InvalidRequest: a text in them is no Unicode.
    """
    try:
        plain = orjson.dumps({"v": _VERSION, **values})
    except TypeError:
        # Half of a surrogate pair: JSON can spell it, UTF-8 can't.
        msg = "The text holds a lone surrogate, which is no character; send valid Unicode."
        raise InvalidRequest(msg) from None
    return seal.seal(plain, *place)


def unseal_record(seal: Seal, stored: bytes, *place: str) -> Record:
    """Read back what `seal_record` wrote for this place.

    Raises:
        StateUnavailable: it was written by another Parley, is sealed with another key, or is damaged.
    """
    what = place[-1] if place[-1] != "body" else place[-2]
    plain = seal.open(stored, *place)
    try:
        values = orjson.loads(plain)
        version = values["v"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        msg = f"What Redis holds of {what} is damaged; restore it from a backup or delete it."
        raise StateUnavailable(msg) from None
    if version != _VERSION:
        msg = (
            f"{what} was stored in schema version {version}, this Parley reads {_VERSION}; "
            "update it to the version that wrote it."
        )
        raise StateUnavailable(msg)
    return dict(values)
