"""Conversations in Redis: one round trip to load a turn's history, one to commit the turn.

Four keys make a conversation (see `keyspace`): its meta data, the order of its items, the items,
and the responses already committed. All four live and expire together; whoever touches the
conversation puts its end off. Values are JSON with a schema version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from redis.asyncio.client import Pipeline

from serve_app.errors import CommitUnknown, ConversationNotFound, InvalidRequest, StateUnavailable
from serve_app.state.connection import AnswerLost, RedisPool
from serve_app.state.keyspace import Keyspace, new_conversation_id, not_found
from serve_app.state.records import (
    StoredConversation,
    StoredItem,
    decode_conversation,
    decode_item,
    encode_conversation,
    encode_item,
)

__all__ = ["ConversationStore"]

# A commit whose answer was lost is sent again for this long: less than a caller waits for it.
_SETTLE_S = 8.0
_SETTLE_PAUSE_S = 0.2

# KEYS: meta, order, items, responses. ARGV: ttl, most items, response, then id, item, id, item, …
# Everything is checked before the first write, so that a refused turn leaves no trace.
_COMMIT = """
local meta = redis.call('GET', KEYS[1])
if not meta then return 'missing' end
if redis.call('ZSCORE', KEYS[4], ARGV[3]) then return 'repeated' end
for i = 4, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 1 then return 'clash' end
end
local sequence = tonumber(redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or 0)
for i = 4, #ARGV, 2 do
  sequence = sequence + 1
  redis.call('ZADD', KEYS[2], sequence, ARGV[i])
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call('ZADD', KEYS[4], sequence, ARGV[3])
local excess = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[2])
if excess > 0 then
  local pinned = cjson.decode(meta)['pinned']
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], pinned, pinned + excess - 1)) do
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
  end
  local oldest = redis.call('ZRANGE', KEYS[2], pinned, pinned, 'WITHSCORES')[2]
  if oldest then redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. oldest) end
end
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ARGV[1]) end
return 'stored'
"""

# KEYS: meta, order, items, responses. ARGV: ttl, after or '', limit, 'asc' or 'desc'.
# Returns whether more follow, then id, item, id, item, …
_PAGE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {'missing'} end
local first = 0
local falling = ARGV[4] == 'desc'
if ARGV[2] ~= '' then
  local rank = redis.call(falling and 'ZREVRANK' or 'ZRANK', KEYS[2], ARGV[2])
  if not rank then return {'unknown'} end
  first = rank + 1
end
local limit = tonumber(ARGV[3])
local ids = redis.call(falling and 'ZREVRANGE' or 'ZRANGE', KEYS[2], first, first + limit)
local page = {#ids > limit and 'more' or 'end'}
for i = 1, math.min(#ids, limit) do
  page[#page + 1] = ids[i]
  page[#page + 1] = redis.call('HGET', KEYS[3], ids[i])
end
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ARGV[1]) end
return page
"""


class ConversationStore:
    """Keeps conversations, each the property of one tenant.

    Args:
        redis: where to.
        key_prefix: first part of every key.
        ttl_s: a conversation nobody touches for this many seconds is forgotten.
        max_items: most items kept of one conversation; the oldest leave first, except for the
            system messages that it began with.
        settle_s: seconds in which a commit whose answer was lost is asked for again.

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
        settle_s: float = _SETTLE_S,
    ) -> None:
        self._redis = redis
        self._keys = Keyspace(key_prefix)
        self._ttl_s = ttl_s
        self._max_items = max_items
        self._settle_s = settle_s

    async def ping(self) -> None:
        """Prove that Redis answers."""
        await self._redis.ping()

    async def create(
        self, tenant: str, *, metadata: Mapping[str, str], items: Sequence[StoredItem] = ()
    ) -> StoredConversation:
        """Start a conversation, with items in it if there are any.

        Raises:
            InvalidRequest: an item appears twice, or there are more than may be kept.
        """
        _check_distinct(items)
        if len(items) > self._max_items:
            msg = f"A conversation holds at most {self._max_items} items; {len(items)} were given."
            raise InvalidRequest(msg, param="items")
        view = StoredConversation(
            id=new_conversation_id(), created_at=int(time.time()), metadata=dict(metadata)
        )
        keys = self._keys.conversation(tenant, view.id)
        async with self._redis.client() as client, client.pipeline(transaction=True) as pipe:
            pipe.set(keys.meta, encode_conversation(view, pinned=_leading_system(items)))
            if items:
                pipe.zadd(keys.order, {item.id: place for place, item in enumerate(items, 1)})
                pipe.hset(keys.items, mapping={item.id: encode_item(item) for item in items})
            self._touch(pipe, keys.all())
            await pipe.execute()
        return view

    async def get(self, tenant: str, conversation: str) -> StoredConversation:
        """Return a conversation without its items."""
        keys = self._keys.conversation(tenant, conversation)
        async with self._redis.client() as client, client.pipeline(transaction=True) as pipe:
            pipe.get(keys.meta)
            self._touch(pipe, keys.all())
            meta = (await pipe.execute())[0]
        return _found(conversation, meta)

    async def delete(self, tenant: str, conversation: str) -> None:
        """Forget a conversation and everything in it."""
        keys = self._keys.conversation(tenant, conversation)
        async with self._redis.client() as client:
            if not await client.delete(*keys.all()):
                raise ConversationNotFound(not_found(conversation), param="conversation")

    async def load(
        self, tenant: str, conversation: str
    ) -> tuple[StoredConversation, tuple[StoredItem, ...]]:
        """Return a conversation and all its items, oldest first, in one round trip."""
        keys = self._keys.conversation(tenant, conversation)
        async with self._redis.client() as client, client.pipeline(transaction=True) as pipe:
            pipe.get(keys.meta)
            pipe.zrange(keys.order, 0, -1)
            pipe.hgetall(keys.items)
            self._touch(pipe, keys.all())
            meta, order, items = (await pipe.execute())[:3]
        view = _found(conversation, meta)
        return view, tuple(decode_item(item, items[item]) for item in order)

    async def commit(
        self, tenant: str, conversation: str, *, response: str, items: Sequence[StoredItem]
    ) -> bool:
        """Append a finished turn: once, whole or not at all, in one round trip.

        Every error but CommitUnknown means that it is not stored and will not be.

        Args:
            tenant: whose conversation it is.
            conversation: its id.
            response: the response's id; a second commit under it changes nothing.
            items: input items first, then the reply.

        Returns:
            False when the turn was there already.

        Raises:
            InvalidRequest: an item appears twice or is in the conversation already.
            CommitUnknown: Redis was sent the turn and has not answered since.
        """
        _check_distinct(items)
        keys = self._keys.conversation(tenant, conversation)
        pairs = [part for item in items for part in (item.id, encode_item(item))]
        outcome = await self._answer_to_commit(
            len(keys.all()), *keys.all(), self._ttl_s, self._max_items, response, *pairs
        )
        match outcome:
            case b"missing":
                raise ConversationNotFound(not_found(conversation), param="conversation")
            case b"clash":
                msg = f"An item of {response} is in the conversation already; give it a fresh id."
                raise InvalidRequest(msg, param="items")
        return bool(outcome == b"stored")

    async def _answer_to_commit(self, *args: Any) -> Any:
        """Send the commit, and send it again while it is unknown whether Redis carried it out.

        Asking whether the turn is there would not do: the commit may lie unread in a socket.
        """
        give_up = time.monotonic() + self._settle_s
        lost = False
        while True:
            try:
                return await self._redis.ask_once("EVAL", _COMMIT, *args)
            except AnswerLost:
                lost = True
            except StateUnavailable:
                if not lost:  # else it says nothing about the commit that was sent before
                    raise
            if time.monotonic() >= give_up:
                msg = (
                    "Redis did not answer when this turn was to be stored: it may have been stored. "
                    "Read the conversation's items before sending it again."
                )
                raise CommitUnknown(msg, param="conversation")
            await asyncio.sleep(_SETTLE_PAUSE_S)

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
        keys = self._keys.conversation(tenant, conversation)
        async with self._redis.client() as client:
            state, *pairs = cast(
                "list[bytes]",
                await client.register_script(_PAGE)(
                    keys=keys.all(), args=[self._ttl_s, after or "", limit, order]
                ),
            )
        match state:
            case b"missing":
                raise ConversationNotFound(not_found(conversation), param="conversation")
            case b"unknown":
                msg = f"There is no item {after!r} in the conversation; page on from one it has."
                raise InvalidRequest(msg, param="after")
        page = tuple(decode_item(pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2))
        return page, state == b"more"

    def _touch(self, pipe: Pipeline, keys: Sequence[str]) -> None:
        for key in keys:
            pipe.expire(key, self._ttl_s)


def _found(conversation: str, meta: Any) -> StoredConversation:
    if meta is None:
        raise ConversationNotFound(not_found(conversation), param="conversation")
    return decode_conversation(conversation, meta)


def _check_distinct(items: Sequence[StoredItem]) -> None:
    if len({item.id for item in items}) != len(items):
        msg = "An item id appears twice; each item needs its own."
        raise InvalidRequest(msg, param="items")


def _leading_system(items: Sequence[StoredItem]) -> int:
    for place, item in enumerate(items):
        if item.role != "system":
            return place
    return len(items)
