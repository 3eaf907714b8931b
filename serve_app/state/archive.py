"""All that is kept of a tenant, a user or a conversation: found, exported, erased, sealed anew.

Nothing here looks things up in an index: every key is looked at, so what is found is all there is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from serve_app.errors import StateUnavailable
from serve_app.state.connection import RedisPool
from serve_app.state.keyspace import ConversationKeys, Keyspace, user_digest, user_session
from serve_app.state.knowledge import open_state, open_summary
from serve_app.state.profiles import decode_facts
from serve_app.state.records import (
    Record,
    StoredItem,
    decode_conversation,
    decode_item,
    unseal_record,
)
from serve_app.state.sealing import Seal, is_sealed, key_of

__all__ = ["Archive", "Kept", "Scope"]

_SCAN = 500

# Which hashes hold sealed values, and as what a field's value was sealed.
_SEALED_AS: dict[str, Callable[[str], str | None]] = {
    "meta": lambda name: "body" if name == "body" else None,
    "items": lambda name: name,
    "responses": lambda name: name,
    "feedback": lambda name: f"feedback {name}",
    "known": lambda name: name,
    "profile": lambda name: name,
}


@dataclass(frozen=True, slots=True)
class Scope:
    """What is meant.

    Attributes:
        tenant: whose data.
        user: one of the tenant's users; None means everybody.
        conversation: one conversation; None means all of them.
    """

    tenant: str
    user: str | None = None
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one conversation, or of a user besides.

    Attributes:
        session: its id; of what belongs to a user and no conversation, a digest of the user's name.
        keys: names of its keys.
        items: how many messages.
        responses: how many responses.
        feedback: how many of those somebody has said something about.
        facts: how many sentences of a user's profile.
        user: whose it is among the tenant's users, or None.
        expires_s: seconds until it is forgotten if nobody touches it.
    """

    session: str
    keys: tuple[bytes, ...]
    items: int = 0
    responses: int = 0
    feedback: int = 0
    facts: int = 0
    user: str | None = None
    expires_s: int = 0


@dataclass(slots=True)
class _Loaded:
    keys: ConversationKeys
    body: bytes
    hidden: bool
    model: str | None
    items: dict[str, StoredItem] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    line: frozenset[str] = frozenset()
    turns: dict[str, str] = field(default_factory=dict)
    responses: dict[str, Record] = field(default_factory=dict)
    feedback: dict[str, Record] = field(default_factory=dict)
    states: dict[str, Record] = field(default_factory=dict)
    summaries: dict[str, str] = field(default_factory=dict)

    def said_until(self, item: str) -> list[StoredItem]:
        """Return the items from the root to one, oldest first."""
        back = []
        while item in self.items:
            back.append(self.items[item])
            item = self.parents.get(item, "")
        return back[::-1]


class Archive:
    """Looks at everything under one prefix.

    Every method raises StateUnavailable when Redis can't be reached.

    Args:
        redis: where it is kept.
        key_prefix: first part of every key.
        seal: opens it.
    """

    def __init__(self, redis: RedisPool, *, key_prefix: str, seal: Seal) -> None:
        self._redis = redis
        self._keyspace = Keyspace(key_prefix)
        self._seal = seal

    async def find(self, scope: Scope) -> list[Kept]:
        """Return what is kept, by conversation; what else is kept of the user comes last."""
        found = []
        sessions = await self._sessions(scope)
        digest = user_digest(scope.tenant, scope.user)
        for session, keys in sorted(sessions.items()):
            if session.startswith("conv_"):
                kept, whose = await self._facts(scope.tenant, session, keys)
                if digest in {"", whose}:
                    found.append(kept)
        own = user_session(scope.tenant, scope.user or "")
        besides = [
            await self._profile(scope, session, keys)
            for session, keys in sorted(sessions.items())
            if session.startswith("user_")
            and scope.conversation is None
            and (scope.user is None or session == own)
        ]
        return found + besides

    async def export(self, scope: Scope) -> AsyncIterator[Record]:
        """Yield what is kept as plain objects: each conversation, then what belongs to it.

        What is known of users, fact by fact, comes last.
        """
        for kept in await self.find(scope):
            if not kept.session.startswith("conv_"):
                for fact in await self._known_of(scope.tenant, kept.session):
                    yield fact
                continue
            loaded = await self._load(scope.tenant, kept.session)
            if loaded is None:
                continue
            view = decode_conversation(self._seal, scope.tenant, kept.session, loaded.body)
            yield {
                "type": "conversation",
                "tenant": scope.tenant,
                **asdict(view),
                "model": loaded.model,
                "known": not loaded.hidden,
            }
            of = {"conversation": kept.session}
            for item in loaded.items.values():
                parent = loaded.parents.get(item.id) or None
                current = item.id in loaded.line
                yield {"type": "item", **of, **asdict(item), "after": parent, "current": current}
            for at, state in loaded.states.items():
                yield {"type": "state", **of, "after": at, "value": state}
            for at, text in loaded.summaries.items():
                yield {"type": "summary", **of, "until": at, "text": text}
            for record in loaded.responses.values():
                yield {"type": "response", **of, "value": record["response"]}
            for said in loaded.feedback.values():
                yield {"type": "feedback", **of, **_without_version(said)}

    async def rated_turns(self, scope: Scope) -> AsyncIterator[Record]:
        """Yield every turn about which somebody has said something, as fine-tuning takes it.

        Each has `messages`, the last of which is the reply, and `rating`, `comment`, `response_id`.
        """
        for kept in await self.find(scope):
            if not kept.feedback:
                continue
            loaded = await self._load(scope.tenant, kept.session)
            if loaded is None:
                continue
            for response, said in loaded.feedback.items():
                items = loaded.said_until(loaded.turns.get(f"{response}:last", ""))
                if items:
                    yield {
                        "messages": [{"role": i.role, "content": i.content} for i in items],
                        "rating": said["rating"],
                        "comment": said["comment"],
                        "response_id": response,
                    }

    async def erase(self, scope: Scope) -> list[Kept]:
        """Forget all that is kept, look again, and return what there was.

        Raises:
            StateUnavailable: something came back while it was erased.
        """
        erased = await self.find(scope)
        for kept in erased:
            claims: Any = ()
            if kept.session.startswith("conv_"):
                key = self._keyspace.conversation(scope.tenant, kept.session).claims
                async with self._redis.client("archive") as client:
                    claims = await client.smembers(key)
            async with self._redis.client("archive") as client:
                await client.delete(*kept.keys, *claims)
        left = await self.find(scope)
        if left:
            names = ", ".join(kept.session for kept in left)
            msg = (
                f"Written again while it was erased: {names}. Stop its user's requests, and repeat."
            )
            raise StateUnavailable(msg)
        return erased

    async def reseal(self) -> tuple[int, dict[str, int]]:
        """Seal everything with the newest key that is sealed with another, or not at all.

        Returns:
            How many values were sealed anew, and by key id how many are left that need an older key:
            journals and answers, which are forgotten by themselves.
        """
        plain = Seal.opening_plain(self._seal)
        changed = 0
        left: dict[str, int] = {}
        async for key in self._scan(self._keyspace.pattern()):
            tenant, session, part = self._keyspace.parse(key)
            async with self._redis.client("archive") as client:
                kind = await client.type(key)
                values: Any = await client.hgetall(key) if kind == b"hash" else {}
            for name, value in values.items():
                if not self._needs_sealing(part, name, value):
                    continue
                known = _SEALED_AS.get(part)
                sealed_as = known(name.decode()) if known is not None else None
                if sealed_as is None:
                    old = key_of(value) if is_sealed(value) else ""
                    left[old] = left.get(old, 0) + 1
                    continue
                place = tenant, session, sealed_as
                fresh = self._seal.seal(plain.open(value, *place), *place)
                async with self._redis.client("archive") as client:
                    answer = await client.eval(_SWAP, 1, key, name, value, fresh)
                changed += answer == 1
        return changed, left

    def _needs_sealing(self, part: str, name: bytes, value: bytes) -> bool:
        if is_sealed(value):
            return key_of(value) != self._seal.newest
        known = _SEALED_AS.get(part)
        return known is not None and known(name.decode()) is not None and bool(self._seal.newest)

    async def _sessions(self, scope: Scope) -> dict[str, tuple[bytes, ...]]:
        sessions: dict[str, list[bytes]] = {}
        pattern = self._keyspace.pattern(scope.tenant, scope.conversation or "*")
        async for key in self._scan(pattern):
            tenant, session, _ = self._keyspace.parse(key)
            if tenant == scope.tenant:
                sessions.setdefault(session, []).append(key)
        return {session: tuple(sorted(keys)) for session, keys in sessions.items()}

    async def _scan(self, pattern: str) -> AsyncIterator[bytes]:
        cursor = 0
        keys: Any
        seen: set[bytes] = set()
        while True:
            async with self._redis.client("archive") as client:
                cursor, keys = await client.scan(cursor, match=pattern, count=_SCAN)
            for key in keys:
                if key not in seen:
                    seen.add(key)
                    yield key
            if cursor == 0:
                return

    async def _facts(self, tenant: str, session: str, keys: tuple[bytes, ...]) -> tuple[Kept, str]:
        """Return what is kept of a conversation, and the digest of its user."""
        names = self._keyspace.conversation(tenant, session)
        async with (
            self._redis.client("archive") as client,
            client.pipeline(transaction=True) as pipe,
        ):
            pipe.hmget(names.meta, "body", "user")
            pipe.zcard(names.every)
            pipe.hlen(names.responses)
            pipe.hlen(names.feedback)
            pipe.ttl(names.meta)
            (body, whose), items, responses, feedback, ttl = await pipe.execute()
        user = None
        if body is not None:
            # What can't be opened can be erased all the same.
            with suppress(StateUnavailable):
                user = decode_conversation(self._seal, tenant, session, body).user
        kept = Kept(session, keys, items, responses, feedback=feedback, user=user, expires_s=ttl)
        return kept, (whose or b"").decode()

    async def _profile(self, scope: Scope, session: str, keys: tuple[bytes, ...]) -> Kept:
        """Return what is kept of a user's profile; the user's name is not, only its digest."""
        key = self._keyspace.profile_of(scope.tenant, session)
        async with (
            self._redis.client("archive") as client,
            client.pipeline(transaction=True) as pipe,
        ):
            pipe.hlen(key)
            pipe.ttl(key)
            facts, ttl = await pipe.execute()
        return Kept(session, keys, facts=facts, user=scope.user, expires_s=ttl)

    async def _known_of(self, tenant: str, session: str) -> list[Record]:
        async with self._redis.client("archive") as client:
            stored: Any = await client.hgetall(self._keyspace.profile_of(tenant, session))
        facts = decode_facts(self._seal, tenant, session, stored)
        return [
            {"type": "fact", "tenant": tenant, "profile": session, **asdict(fact)} for fact in facts
        ]

    async def _load(self, tenant: str, session: str) -> _Loaded | None:
        keys = self._keyspace.conversation(tenant, session)
        async with (
            self._redis.client("archive") as client,
            client.pipeline(transaction=True) as pipe,
        ):
            pipe.hmget(keys.meta, "body", "hidden", "model")
            pipe.zrange(keys.every, 0, -1)
            pipe.zrange(keys.order, 0, -1)
            for name in (
                keys.items,
                keys.parents,
                keys.turns,
                keys.responses,
                keys.feedback,
                keys.known,
            ):
                pipe.hgetall(name)
            (
                (body, hidden, model),
                every,
                line,
                items,
                parents,
                turns,
                responses,
                feedback,
                known,
            ) = await pipe.execute()
        if body is None:
            return None
        seal = self._seal
        states: dict[str, Record] = {}
        summaries: dict[str, str] = {}
        for name, value in known.items():
            item, _, kind = name.rpartition(b":")
            if kind == b"state" and (state := open_state(seal, value, tenant, session, item)):
                states[item.decode()] = state
            if kind == b"summary" and (text := open_summary(seal, value, tenant, session, item)):
                summaries[item.decode()] = text
        return _Loaded(
            keys=keys,
            body=body,
            hidden=hidden == b"1",
            model=None if model is None else model.decode(),
            items={
                name.decode(): decode_item(seal, tenant, session, name, items[name])
                for name in every
            },
            parents=_texts(parents),
            line=frozenset(name.decode() for name in line),
            turns=_texts(turns),
            responses={
                name.decode(): unseal_record(seal, value, tenant, session, name.decode())
                for name, value in responses.items()
            },
            feedback={
                name.decode(): unseal_record(
                    seal, value, tenant, session, f"feedback {name.decode()}"
                )
                for name, value in feedback.items()
            },
            states=states,
            summaries=summaries,
        )


# KEYS: hash. ARGV: field, value that was read, value to put in its place.
_SWAP = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


def _texts(values: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in values.items()}


def _without_version(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "v"}
