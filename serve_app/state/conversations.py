"""Conversations in Redis: what they are, and what was said in them, one round trip a call.

What makes a conversation, and how its items hang together, is described in `keyspace`. All of it
lives and expires together; whoever touches the conversation puts its end off.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from serve_app.errors import ConversationNotFound, InvalidRequest, ItemNotFound, ResponseNotFound
from serve_app.state.connection import RedisPool
from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.keyspace import (
    new_conversation_id,
    not_found,
    response_not_found,
    user_digest,
)
from serve_app.state.records import (
    StoredConversation,
    StoredItem,
    decode_conversation,
    decode_item,
    encode_conversation,
    encode_item,
)
from serve_app.state.redis_spans import redis_span
from serve_app.state.scripts.conversations import (
    APPEND_ITEMS,
    DELETE_CONVERSATION,
    DELETE_ITEM,
    LOAD,
    PAGE,
    UPDATE,
)
from serve_app.state.sealing import Seal
from serve_app.state.summaries import SummaryStore
from serve_app.state.turns import SETTLE_S, TurnStore, check_distinct, leading_system

__all__ = ["ConversationStore"]


class ConversationStore:
    """Keeps conversations, each the property of one tenant.

    Args:
        redis: where to.
        key_prefix: first part of every key.
        ttl_s: a conversation nobody touches for this many seconds is forgotten, unless it has a time
            to live of its own.
        max_items: most items kept of one conversation; the oldest leave first, except for the
            system messages that it began with.
        seal: encrypts what is kept.
        settle_s: seconds in which a commit whose answer was lost is asked for again.

    Attributes:
        turns: begins and commits turns.
        summaries: what is remembered of turns that left the prompt.

    Every method raises StateUnavailable when Redis can't be reached, and all but `create` raise
    ConversationNotFound when the tenant has no such conversation.
    """

    def __init__(
        self,
        redis: RedisPool,
        *,
        key_prefix: str,
        ttl_s: int,
        max_items: int,
        seal: Seal | None = None,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._scripts = ConversationScripts(
            redis, key_prefix=key_prefix, ttl_s=ttl_s, max_items=max_items, seal=seal
        )
        self._seal = self._scripts.seal
        self.turns = TurnStore(self._scripts, settle_s=settle_s)
        self.summaries = SummaryStore(self._scripts)

    async def ping(self) -> None:
        """Prove that Redis answers."""
        await self._scripts.redis.ping()

    async def create(
        self,
        tenant: str,
        *,
        metadata: Mapping[str, str],
        items: Sequence[StoredItem] = (),
        user: str | None = None,
        ttl_s: int | None = None,
        conversation: str | None = None,
        persona: str | None = None,
        on_busy: str | None = None,
        model: str | None = None,
    ) -> StoredConversation:
        """Start a conversation, with items in it if there are any.

        Args:
            tenant: whose it will be.
            metadata: the client's own key-value pairs.
            items: what it begins with.
            user: whose it is among the tenant's users.
            ttl_s: its own time to live in seconds.
            conversation: its id, which must be new; None makes one.
            persona: name of the persona that answers in it.
            on_busy: what its turns do while another one runs, where they don't say.
            model: name of the model that answers where a turn names none.

        Raises:
            InvalidRequest: an item appears twice, or there are more than may be kept.
        """
        check_distinct(items)
        most = self._scripts.max_items
        if len(items) > most:
            msg = f"A conversation holds at most {most} items; {len(items)} were given."
            raise InvalidRequest(msg, param="items")
        view = StoredConversation(
            id=conversation or new_conversation_id(),
            created_at=int(time.time()),
            metadata=dict(metadata),
            user=user,
            ttl_s=ttl_s,
            persona=persona,
        )
        keys = self._scripts.keys(tenant, view.id)
        facts: dict[Any, Any] = {
            "body": encode_conversation(self._seal, tenant, view),
            "pinned": leading_system(items),
            "sequence": len(items),
            "user": user_digest(tenant, user),
        }
        if ttl_s is not None:
            facts["ttl"] = ttl_s
        if on_busy is not None:
            facts["on_busy"] = on_busy
        if model is not None:
            facts["model"] = model
        places = {item.id: place for place, item in enumerate(items, 1)}
        before = ("", *(item.id for item in items[:-1]))
        async with (
            self._scripts.redis.client("conversation") as client,
            client.pipeline(transaction=True) as pipe,
        ):
            pipe.hset(keys.meta, mapping=facts)
            if items:
                pipe.zadd(keys.order, places)
                pipe.zadd(keys.every, places)
                pipe.hset(
                    keys.items,
                    mapping={
                        item.id: encode_item(self._seal, tenant, view.id, item) for item in items
                    },
                )
                pipe.hset(keys.parents, mapping=dict(zip(places, before, strict=True)))
            for key in keys.all():
                pipe.expire(key, ttl_s or self._scripts.ttl_s)
            await pipe.execute()
        return view

    async def get(self, tenant: str, conversation: str) -> StoredConversation:
        """Return a conversation without its items."""
        keys = self._scripts.keys(tenant, conversation)
        async with (
            self._scripts.redis.client("conversation") as client,
            client.pipeline(transaction=True) as pipe,
        ):
            pipe.hmget(keys.meta, "body", "hidden")
            pipe.execute_command(*self._scripts.command(PAGE, tenant, conversation, "", 0, "asc"))
            (body, hidden), _ = await pipe.execute()
        if body is None or hidden:
            raise ConversationNotFound(not_found(conversation), param="conversation")
        return decode_conversation(self._seal, tenant, conversation, body)

    async def model(self, tenant: str, conversation: str) -> str | None:
        """Return the name of the model that a conversation, or what is none, remembers."""
        async with self._scripts.redis.client("conversation") as client:
            name: Any = await client.hget(self._scripts.keys(tenant, conversation).meta, "model")
        return None if name is None else name.decode()

    async def update(
        self,
        tenant: str,
        conversation: str,
        *,
        metadata: Mapping[str, str] | None = None,
        ttl_s: int | None = None,
        head: str | None = None,
    ) -> StoredConversation:
        """Change what is given of a conversation, and leave the rest.

        Args:
            tenant: whose conversation it is.
            conversation: its id.
            metadata: replaces the old one.
            ttl_s: its own time to live in seconds.
            head: id of the response behind which the next turn goes.

        Raises:
            ResponseNotFound: `head` is no finished response of the conversation.
        """
        before = await self.get(tenant, conversation)
        after = StoredConversation(
            id=before.id,
            created_at=before.created_at,
            metadata=before.metadata if metadata is None else dict(metadata),
            user=before.user,
            ttl_s=before.ttl_s if ttl_s is None else ttl_s,
            persona=before.persona,
        )
        body = encode_conversation(self._seal, tenant, after)
        outcome = await self._scripts.run(
            UPDATE, tenant, conversation, body, ttl_s or "", head or ""
        )
        if outcome == b"unknown":
            raise ResponseNotFound(response_not_found(head or ""), param="head")
        return after

    async def delete(self, tenant: str, conversation: str) -> None:
        """Forget a conversation and everything in it."""
        _, *claims = await self._scripts.run(DELETE_CONVERSATION, tenant, conversation)
        if claims:
            async with self._scripts.redis.client("conversation") as client:
                await client.delete(*claims)

    async def load(
        self, tenant: str, conversation: str
    ) -> tuple[StoredConversation, tuple[StoredItem, ...]]:
        """Return a conversation and all its items, oldest first, in one round trip."""
        with redis_span("load_conversation"):
            _, body, *pairs = await self._scripts.run(LOAD, tenant, conversation)
        view = decode_conversation(self._seal, tenant, conversation, body)
        return view, self._items(tenant, conversation, pairs)

    async def items(
        self,
        tenant: str,
        conversation: str,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> tuple[tuple[StoredItem, ...], bool]:
        """Return a page of items, and whether more follow.

        Args:
            tenant: whose conversation it is.
            conversation: its id.
            after: id of the item before the page; None starts at the beginning.
            limit: most items of the page, at least 1.
            order: oldest first ("asc") or newest first.

        Raises:
            InvalidRequest: there is no item `after`.
        """
        state, *pairs = await self._scripts.run(
            PAGE, tenant, conversation, after or "", limit, order
        )
        if state == b"unknown":
            msg = f"There is no item {after!r} in the conversation; page on from one it has."
            raise InvalidRequest(msg, param="after")
        return self._items(tenant, conversation, pairs), state == b"more"

    async def add_items(self, tenant: str, conversation: str, items: Sequence[StoredItem]) -> None:
        """Append items behind the head, all or none; if some are there already, none.

        Ids are random: items that are there were appended by an earlier try of the same call.

        Raises:
            InvalidRequest: an item appears twice.
        """
        check_distinct(items)
        pairs = self._pairs(tenant, conversation, items)
        await self._scripts.run(
            APPEND_ITEMS,
            tenant,
            conversation,
            self._scripts.max_items,
            leading_system(items),
            *pairs,
        )

    async def item(self, tenant: str, conversation: str, item: str) -> StoredItem:
        """Return one item, of whichever line.

        Raises:
            ItemNotFound: the conversation has no such item.
        """
        keys = self._scripts.keys(tenant, conversation)
        async with (
            self._scripts.redis.client("conversation") as client,
            client.pipeline(transaction=True) as pipe,
        ):
            pipe.hmget(keys.meta, "body", "hidden")
            pipe.hget(keys.items, item)
            (body, hidden), stored = await pipe.execute()
        if body is None or hidden:
            raise ConversationNotFound(not_found(conversation), param="conversation")
        if stored is None:
            raise ItemNotFound(_no_item(item), param="item_id")
        return decode_item(self._seal, tenant, conversation, item.encode(), stored)

    async def delete_item(self, tenant: str, conversation: str, item: str) -> StoredConversation:
        """Forget one item and return its conversation.

        Raises:
            ItemNotFound: the conversation has no such item.
        """
        outcome = await self._scripts.run(DELETE_ITEM, tenant, conversation, item)
        if outcome == b"unknown":
            raise ItemNotFound(_no_item(item), param="item_id")
        return await self.get(tenant, conversation)

    def _items(
        self, tenant: str, conversation: str, pairs: Sequence[bytes]
    ) -> tuple[StoredItem, ...]:
        return tuple(
            decode_item(self._seal, tenant, conversation, pairs[i], pairs[i + 1])
            for i in range(0, len(pairs), 2)
        )

    def _pairs(
        self, tenant: str, conversation: str, items: Sequence[StoredItem]
    ) -> list[str | bytes]:
        return [
            part
            for item in items
            for part in (item.id, encode_item(self._seal, tenant, conversation, item))
        ]


def _no_item(item: str) -> str:
    return (
        f"There is no item {item[:80]!r} in the conversation: it was deleted, has left, or never "
        "was. GET …/items lists those that there are."
    )
