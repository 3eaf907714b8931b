"""How the keys of Redis are named: prefix, then tenant and conversation as hash tag, then the part.

    parley:{acme:conv_5f…}:items

A Redis Cluster places a key by what stands between the braces, so one slot holds everything of one
conversation and a script may touch all of it.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from serve_app.errors import ConfigError, ConversationNotFound

__all__ = ["ConversationKeys", "Keyspace", "check_tenant", "new_conversation_id", "not_found"]

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CONVERSATION = re.compile(r"conv_[A-Za-z0-9]{8,64}")


def new_conversation_id() -> str:
    """Return a fresh `conv_…` id of 128 random bits: nobody guesses somebody else's."""
    return f"conv_{secrets.token_hex(16)}"


def check_tenant(tenant: str) -> str:
    """Return the tenant's name if it can be part of a key.

    Raises:
        ConfigError: it has signs that would let one tenant's keys collide with another's.
    """
    if not _TENANT.fullmatch(tenant):
        msg = (
            f"{tenant!r} can't name a tenant: use 1 to 64 letters, digits, dots, dashes or "
            "underscores, a letter or digit first."
        )
        raise ConfigError(msg)
    return tenant


@dataclass(frozen=True, slots=True)
class ConversationKeys:
    """The keys of one conversation.

    Attributes:
        meta: string, what is known about the conversation itself.
        order: sorted set, item id → sequence number.
        items: hash, item id → item.
        responses: sorted set, id of each committed response → sequence number of its last item.
    """

    meta: str
    order: str
    items: str
    responses: str

    def all(self) -> tuple[str, str, str, str]:
        """Return every key, in the order in which the scripts take them."""
        return self.meta, self.order, self.items, self.responses


class Keyspace:
    """Names keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def conversation(self, tenant: str, conversation: str) -> ConversationKeys:
        """Name the keys of a tenant's conversation.

        Raises:
            ConversationNotFound: no conversation of anybody's has such an id.
        """
        if not _CONVERSATION.fullmatch(conversation):
            raise ConversationNotFound(not_found(conversation), param="conversation")
        root = f"{self._prefix}:{{{check_tenant(tenant)}:{conversation}}}"
        return ConversationKeys(
            meta=f"{root}:meta",
            order=f"{root}:order",
            items=f"{root}:items",
            responses=f"{root}:responses",
        )


def not_found(conversation: str) -> str:
    """Return the sentence for an id that is unknown, forgotten, or another tenant's."""
    return (
        f"There is no conversation {conversation[:80]!r}: it was deleted, has expired, or never "
        "was. Create one with POST /v1/conversations."
    )
