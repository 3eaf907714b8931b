"""Profiles: what a tenant's user has said of themselves, kept over conversations.

A profile is a hash of its own, fact by fact, under the tenant and a digest of the user's name.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.state.connection import RedisPool
from serve_app.state.keyspace import Keyspace, user_session
from serve_app.state.records import seal_record, unseal_record
from serve_app.state.sealing import Seal

__all__ = ["Fact", "NewFact", "ProfileStore", "decode_facts"]


@dataclass(frozen=True, slots=True)
class NewFact:
    """A fact to keep.

    Attributes:
        subject: what it is about, such as `name`; a later fact about the same replaces it. "" is about
            nothing in particular and replaces nothing.
        text: a sentence about the user.
    """

    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact that is kept.

    Attributes:
        id: `fact_…`.
        subject: what it is about, as in `NewFact`.
        text: a sentence about the user.
        source: "said" in a conversation, or "written" through the API.
        response: id of the response whose turn said it, or None.
        created_at: Unix seconds.
    """

    id: str
    subject: str
    text: str
    source: str
    response: str | None
    created_at: int


# KEYS: profile. ARGV: ttl, most facts. An id sorts by the time it was made: the oldest leave.
_TRIM = """
local ids = redis.call('HKEYS', KEYS[1])
table.sort(ids)
for i = 1, #ids - tonumber(ARGV[2]) do redis.call('HDEL', KEYS[1], ids[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return #ids
"""


class ProfileStore:
    """Keeps profiles.

    Every method raises StateUnavailable when Redis can't be reached.

    Args:
        redis: where to.
        key_prefix: first part of every key.
        ttl_s: a profile to which nothing was added for this many seconds is forgotten.
        max_facts: most facts of one; the oldest leave.
        seal: encrypts what is kept.
    """

    def __init__(
        self,
        redis: RedisPool,
        *,
        key_prefix: str,
        ttl_s: int,
        max_facts: int,
        seal: Seal | None = None,
    ) -> None:
        self._redis = redis
        self._keys = Keyspace(key_prefix)
        self._ttl_s = ttl_s
        self.max_facts = max_facts
        self._seal = seal or Seal()

    async def get(self, tenant: str, user: str) -> tuple[Fact, ...]:
        """Return what is known of a user, oldest first; nothing, of one who was never seen."""
        async with self._redis.client("profile") as client:
            stored: Any = await client.hgetall(self._keys.profile(tenant, user))
        return decode_facts(self._seal, tenant, user_session(tenant, user), stored)

    async def learn(
        self, tenant: str, user: str, facts: Sequence[NewFact], *, response: str
    ) -> None:
        """Add what a turn has said; a fact about the same subject is replaced."""
        subjects = {fact.subject for fact in facts if fact.subject}
        known = await self.get(tenant, user)
        gone = [fact.id for fact in known if fact.subject in subjects]
        await self._change(tenant, user, gone, facts, "said", response)

    async def put(self, tenant: str, user: str, texts: Sequence[str]) -> tuple[Fact, ...]:
        """Replace all that is known of a user; a sentence that was known stays the fact it was."""
        known = await self.get(tenant, user)
        before = {fact.text for fact in known}
        gone = [fact.id for fact in known if fact.text not in texts]
        new = [NewFact("", text) for text in dict.fromkeys(texts) if text not in before]
        await self._change(tenant, user, gone, new, "written", None)
        return await self.get(tenant, user)

    async def delete(self, tenant: str, user: str) -> None:
        """Forget all that is known of a user."""
        async with self._redis.client("profile") as client:
            await client.delete(self._keys.profile(tenant, user))

    async def _change(
        self,
        tenant: str,
        user: str,
        gone: Sequence[str],
        new: Sequence[NewFact],
        source: str,
        response: str | None,
    ) -> None:
        session = user_session(tenant, user)
        made: dict[Any, Any] = {}
        for place, fact in enumerate(new):
            field = f"fact_{time.time_ns():016x}{place:02x}{secrets.token_hex(4)}"
            values = {
                "subject": fact.subject,
                "text": fact.text,
                "source": source,
                "response": response,
                "created_at": int(time.time()),
            }
            made[field] = seal_record(self._seal, values, tenant, session, field)
        key = self._keys.profile(tenant, user)
        async with (
            self._redis.client("profile") as client,
            client.pipeline(transaction=True) as pipe,
        ):
            if gone:
                pipe.hdel(key, *gone)
            if made:
                pipe.hset(key, mapping=made)
            pipe.eval(_TRIM, 1, key, str(self._ttl_s), str(self.max_facts))
            await pipe.execute()


def decode_facts(
    seal: Seal, tenant: str, session: str, stored: Mapping[bytes, bytes]
) -> tuple[Fact, ...]:
    """Read a profile as it is stored, oldest fact first.

    Args:
        seal: opens it.
        tenant: whose user it is of.
        session: the user's `user_session`.
        stored: its facts, by id.

    Raises:
        StateUnavailable: a fact is damaged, or its key is not here.
    """
    facts = []
    for field in sorted(stored):
        name = field.decode()
        values = unseal_record(seal, stored[field], tenant, session, name)
        facts.append(
            Fact(
                id=name,
                subject=values["subject"],
                text=values["text"],
                source=values["source"],
                response=values["response"],
                created_at=values["created_at"],
            )
        )
    return tuple(facts)
