"""What an ingress replica keeps in Redis, and finds there."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.settings import Settings
from serve_app.state.accounts import AccountStore
from serve_app.state.connection import RedisPool
from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.conversations import ConversationStore
from serve_app.state.idempotency import IdempotencyStore
from serve_app.state.journal import JournalWriter
from serve_app.state.profiles import ProfileStore
from serve_app.state.responses import ResponseStore
from serve_app.state.sealing import Seal

__all__ = ["Stores"]

# Whoever carries out a request with an Idempotency-Key and is not heard of for so long is dead. Redis
# is given up after `redis.timeout_s`, so a renewal is late by as much and no more.
_LEASE_S = 5.0


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores of one ingress replica, over one pool of connections.

    Attributes:
        conversations: what conversations are, and what was said in them.
        responses: responses in progress and ended.
        journal: what this replica's responses say, while they are made.
        idempotency: what was answered under idempotency keys.
        profiles: what users have said of themselves.
        accounts: where the time of recent requests went.
    """

    conversations: ConversationStore
    responses: ResponseStore
    journal: JournalWriter
    idempotency: IdempotencyStore
    profiles: ProfileStore
    accounts: AccountStore

    @classmethod
    def over(cls, redis: RedisPool, settings: Settings, seal: Seal, *, owner: str) -> Stores:
        """Put the stores over a pool; `owner` names this replica."""
        prefix = settings.redis.key_prefix
        dialogue = settings.dialogue
        scripts = ConversationScripts(
            redis,
            key_prefix=prefix,
            ttl_s=dialogue.conversation_ttl_s,
            max_items=dialogue.max_items,
            seal=seal,
        )
        return cls(
            conversations=ConversationStore(
                redis,
                key_prefix=prefix,
                ttl_s=dialogue.conversation_ttl_s,
                max_items=dialogue.max_items,
                seal=seal,
            ),
            responses=ResponseStore(scripts, settings.responses),
            journal=JournalWriter(scripts, settings.responses, owner),
            idempotency=IdempotencyStore(
                redis,
                key_prefix=prefix,
                settings=settings.responses,
                seal=seal,
                lease_s=_LEASE_S,
            ),
            profiles=ProfileStore(
                redis,
                key_prefix=prefix,
                ttl_s=dialogue.profile_ttl_s,
                max_facts=dialogue.profile_facts,
                seal=seal,
            ),
            accounts=AccountStore(
                redis,
                key_prefix=prefix,
                ttl_s=settings.accounts.ttl_s,
                most=settings.accounts.kept,
            ),
        )
