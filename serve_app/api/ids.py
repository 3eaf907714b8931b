"""Names of the things that clients see: 192 random bits behind a prefix that says what it is."""

from __future__ import annotations

import re
import secrets

from serve_app.errors import ConversationNotFound

__all__ = [
    "chat_completion_id",
    "checked_conversation_id",
    "completion_id",
    "message_id",
]

_RANDOM_BYTES = 24  # 32 characters of base64
_CONVERSATION = re.compile(r"conv_[A-Za-z0-9_-]{1,64}")


def chat_completion_id() -> str:
    """Return a new `chatcmpl-…`."""
    return f"chatcmpl-{secrets.token_urlsafe(_RANDOM_BYTES)}"


def completion_id() -> str:
    """Return a new `cmpl-…`."""
    return f"cmpl-{secrets.token_urlsafe(_RANDOM_BYTES)}"


def message_id() -> str:
    """Return a new `msg_…`."""
    return f"msg_{secrets.token_urlsafe(_RANDOM_BYTES)}"


def checked_conversation_id(text: str) -> str:
    """Return `text` if it can be a conversation's id at all.

    Whatever else a client sends never becomes part of a storage key.

    Raises:
        ConversationNotFound: if it can't.
    """
    if not _CONVERSATION.fullmatch(text):
        msg = "No such conversation. Ids look like conv_…, as POST /v1/conversations returns them."
        raise ConversationNotFound(msg, param="conversation")
    return text
