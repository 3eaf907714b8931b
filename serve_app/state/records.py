"""What is written to Redis: conversations and items as JSON, each with its schema version."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from serve_app.errors import InvalidRequest, StateUnavailable

__all__ = [
    "StoredConversation",
    "StoredItem",
    "decode_conversation",
    "decode_item",
    "encode_conversation",
    "encode_item",
]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """A conversation without its items.

    Attributes:
        id: `conv_…`.
        created_at: Unix seconds.
        metadata: the client's own key-value pairs.
    """

    id: str
    created_at: int
    metadata: dict[str, str] = field(default_factory=dict)


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


def encode_conversation(conversation: StoredConversation, *, pinned: int) -> bytes:
    """Return what is stored; the first `pinned` items are never cut."""
    return _dumps(
        {
            "v": _VERSION,
            "created_at": conversation.created_at,
            "metadata": conversation.metadata,
            "pinned": pinned,
        }
    )


def decode_conversation(conversation: str, stored: bytes) -> StoredConversation:
    """Read back what `encode_conversation` wrote.

    Raises:
        StateUnavailable: it was written by a newer Parley, or is damaged.
    """
    values = _loads(stored, what=conversation)
    return StoredConversation(
        id=conversation, created_at=values["created_at"], metadata=values["metadata"]
    )


def encode_item(item: StoredItem) -> bytes:
    """Return what is stored; the id is the item's key."""
    return _dumps(
        {
            "v": _VERSION,
            "role": item.role,
            "content": item.content,
            "status": item.status,
            "response": item.response,
            "created_at": item.created_at,
        }
    )


def decode_item(item: bytes, stored: bytes) -> StoredItem:
    """Read back what `encode_item` wrote.

    Raises:
        StateUnavailable: it was written by a newer Parley, or is damaged.
    """
    name = item.decode()
    values = _loads(stored, what=name)
    return StoredItem(
        id=name,
        role=values["role"],
        content=values["content"],
        status=values["status"],
        response=values["response"],
        created_at=values["created_at"],
    )


def _dumps(values: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(values)
    except TypeError:
        # Half of a surrogate pair: JSON can spell it, UTF-8 can't.
        msg = "The text holds a lone surrogate, which is no character; send valid Unicode."
        raise InvalidRequest(msg) from None


def _loads(stored: bytes, *, what: str) -> dict[str, Any]:
    try:
        values = orjson.loads(stored)
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
