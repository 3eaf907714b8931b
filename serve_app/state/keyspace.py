"""How the keys of Redis are named: prefix, then tenant and session as hash tag, then the part.

    parley:{acme:conv_5f…}:items

A Redis Cluster places a key by what stands between the braces, so one slot holds everything of one
conversation and a script may touch all of it. A response's id holds its conversation's, so that it
is found without an index.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, fields

from serve_app.errors import ConfigError, ConversationNotFound, ResponseNotFound

__all__ = [
    "ConversationKeys",
    "Keyspace",
    "check_tenant",
    "conversation_of",
    "new_conversation_id",
    "new_response_id",
    "not_found",
    "response_not_found",
    "user_digest",
    "user_session",
]

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CONVERSATION = re.compile(r"conv_[A-Za-z0-9]{8,64}")
_RESPONSE_BYTES = 12
_RESPONSE = re.compile(rf"resp_([A-Za-z0-9]{{8,64}})[0-9a-f]{{{2 * _RESPONSE_BYTES}}}")


def new_conversation_id() -> str:
    """Return a fresh `conv_…` id of 128 random bits: nobody guesses somebody else's."""
    return f"conv_{secrets.token_hex(16)}"


def new_response_id(conversation: str | None = None) -> str:
    """Return a fresh `resp_…` id.

    Args:
        conversation: what it belongs to; None begins something of its own.
    """
    root = (conversation or new_conversation_id()).removeprefix("conv_")
    return f"resp_{root}{secrets.token_hex(_RESPONSE_BYTES)}"


def conversation_of(response: str) -> str:
    """Return the id of the conversation that a response belongs to, public or not.

    Raises:
        ResponseNotFound: no response of anybody's has such an id.
    """
    found = _RESPONSE.fullmatch(response)
    if found is None:
        raise ResponseNotFound(response_not_found(response), param="response_id")
    return f"conv_{found[1]}"


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


def user_digest(tenant: str, user: str | None) -> str:
    """Return what stands for a tenant's user in keys and fields; "" for nobody in particular."""
    if not user:
        return ""
    named = f"{tenant}\0{user}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(named).hexdigest()[:32]


def user_session(tenant: str, user: str) -> str:
    """Return what stands in keys where a conversation's id does, for what belongs to a user."""
    return f"user_{user_digest(tenant, user)}"


@dataclass(frozen=True, slots=True)
class ConversationKeys:
    """The keys of one conversation, in the order in which the scripts take them.

    Items form a tree: each hangs on the one that was said before it. The line from the root to the
    head is the conversation as it stands; other lines are what was answered again or replaced.

    Attributes:
        meta: hash: `body` (what clients see), `ttl`, `pinned`, `hidden`, `user`, and counters.
        order: sorted set, item id → sequence number, of the line that ends in the head.
        every: sorted set, item id → sequence number, of all lines.
        items: hash, item id → item.
        parents: hash, item id → id of the item before it, "" at the root.
        turns: hash, `ID:base` and `ID:last` → the items before and at the end of a response's turn;
            `ID:said` or `ID:unsaid` is there where the response was deleted, behind its end or before.
        ended: sorted set, response id → sequence number of its last item.
        responses: hash, response id → the response, in progress or finished.
        queue: sorted set, response id → ticket, of turns that run or wait.
        runs: hash, `ID:owner`, `ID:lease` and `ID:cancel` of responses in progress.
        feedback: hash, response id → what was said about it.
        claims: set of the keys of idempotency records that led here.
        known: hash, `ID:state` and `ID:summary` → what is known of the line that ends in an item.
    """

    meta: str
    order: str
    every: str
    items: str
    parents: str
    turns: str
    ended: str
    responses: str
    queue: str
    runs: str
    feedback: str
    claims: str
    known: str

    def all(self) -> tuple[str, ...]:
        """Return every key."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def journal(self, response: str) -> str:
        """Name the stream of a response's events."""
        return f"{self.root}:journal:{response}"

    @property
    def root(self) -> str:
        """What all of them begin with."""
        return self.meta.removesuffix(":meta")


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
        root = self._root(tenant, conversation)
        parts = (field.name for field in fields(ConversationKeys))
        return ConversationKeys(*(f"{root}:{part}" for part in parts))

    def claim(self, tenant: str, idempotency_key: str) -> str:
        """Name the record of a tenant's idempotency key."""
        digest = hashlib.sha256(idempotency_key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return f"{self._root(tenant, f'idem_{digest}')}:claim"

    def profile(self, tenant: str, user: str) -> str:
        """Name the profile of a tenant's user."""
        return self.profile_of(tenant, user_session(tenant, user))

    def profile_of(self, tenant: str, session: str) -> str:
        """Name the profile of the user whose `user_session` is given."""
        return f"{self._root(tenant, session)}:profile"

    def accounts(self, tenant: str) -> tuple[str, str]:
        """Name the hash of a tenant's accounts of requests, and the sorted set that says their order."""
        root = self._root(tenant, "accounts")
        return f"{root}:accounts", f"{root}:order"

    def pattern(self, tenant: str | None = None, session: str = "*", part: str = "*") -> str:
        """Return a pattern for SCAN: all keys of a tenant, or of all tenants."""
        return f"{self._prefix}:{{{tenant or '*'}:{session}}}:{part}"

    def parse(self, key: bytes) -> tuple[str, str, str]:
        """Return (tenant, session, part) of a key under this prefix."""
        inside, _, part = key.decode().removeprefix(f"{self._prefix}:{{").partition("}:")
        tenant, _, session = inside.partition(":")
        return tenant, session, part

    def _root(self, tenant: str, session: str) -> str:
        return f"{self._prefix}:{{{check_tenant(tenant)}:{session}}}"


def not_found(conversation: str) -> str:
    """Return the sentence for an id that is unknown, forgotten, or another tenant's."""
    return (
        f"There is no conversation {conversation[:80]!r}: it was deleted, has expired, or never "
        "was. Create one with POST /v1/conversations."
    )


def response_not_found(response: str) -> str:
    """Return the sentence for a response that is unknown, forgotten, or another tenant's."""
    return (
        f"There is no response {response[:100]!r}: it was deleted, has expired, was not stored, or "
        "never was. Create one with POST /v1/responses."
    )
