"""Idempotency keys: the first request under one is carried out, the others are told how it ended.

Of a response the record holds its id and no text; what another request was answered lies sealed.
Whoever carries a request out holds a lease on its key and renews it. A lease that nobody renews runs
out, and the next request under the key makes the same thing.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from serve_app.errors import IdempotencyConflict, IdempotencyMismatch, StateUnavailable
from serve_app.settings import ResponsesSettings
from serve_app.state.connection import RedisPool
from serve_app.state.keyspace import Keyspace
from serve_app.state.records import seal_record, unseal_record
from serve_app.state.sealing import Seal

__all__ = ["Claim", "IdempotencyStore", "in_flight"]

_RENEWALS = 3  # of a lease before it would run out

# KEYS: claim. ARGV: fingerprint, subject, token, lease in ms, ttl.
# The token tells a claim that is sent twice, because its answer was lost, from somebody else's.
_CLAIM = """
local held = redis.call('HMGET', KEYS[1], 'fingerprint', 'subject', 'answer', 'token', 'until')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if held[1] then
  if held[1] ~= ARGV[1] then return {'mismatch'} end
  if held[3] then return {'answered', held[2], held[3]} end
  if tonumber(held[5]) > now and held[4] ~= ARGV[3] then return {'flies', held[2]} end
else
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'subject', ARGV[2])
  held[2] = ARGV[2]
end
redis.call('HSET', KEYS[1], 'token', ARGV[3], 'until', now + ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
return {'claimed', held[2]}
"""

# KEYS: claim. ARGV: token, answer or '', ttl. Without an answer the key is free again.
_SETTLE = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 'lost' end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) return 'freed' end
redis.call('HSET', KEYS[1], 'answer', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 'kept'
"""


# KEYS: claim. ARGV: subject that failed, subject to come after it. Returns the subject that counts.
_SUCCEED = """
local subject = redis.call('HGET', KEYS[1], 'subject')
if subject ~= ARGV[1] then return subject or '' end
redis.call('HSET', KEYS[1], 'subject', ARGV[2])
return ARGV[2]
"""

# KEYS: claim. ARGV: token, lease in ms from now on.
_LEASE = """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 'lost' end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'until', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2])
return 'kept'
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known under an idempotency key.

    Attributes:
        key: of the record in Redis.
        subject: id of what the first request makes; whoever carries it out again makes the same.
        token: names whoever carries the request out; "" where it was answered already.
        answer: status, content type and body that the first request was answered, or None.
    """

    key: str
    subject: str
    token: str
    answer: tuple[int, str, bytes] | None = None


def in_flight(response: str | None = None) -> IdempotencyConflict:
    """Return the error of a request whose first one is under way, making a response or not."""
    where = f"; GET /v1/responses/{response} shows how far it is" if response else ""
    msg = (
        "The first request under this Idempotency-Key is still being answered: wait, and send it "
        f"again{where}."
    )
    return IdempotencyConflict(msg, retry_after=1.0)


class IdempotencyStore:
    """Keeps one record per tenant and idempotency key.

    Args:
        redis: where to.
        key_prefix: first part of every key.
        settings: how long a key stands.
        seal: encrypts answers.
        lease_s: time after which whoever carries a request out, and is not heard of, is taken for dead.
    """

    def __init__(
        self,
        redis: RedisPool,
        *,
        key_prefix: str,
        settings: ResponsesSettings,
        seal: Seal,
        lease_s: float,
    ) -> None:
        self._redis = redis
        self._keyspace = Keyspace(key_prefix)
        self._ttl_s = settings.idempotency_ttl_s
        self._seal = seal
        self._lease_s = lease_s

    async def claim(
        self,
        tenant: str,
        idempotency_key: str,
        *,
        fingerprint: str,
        subject: str,
        exclusive: bool = True,
    ) -> Claim:
        """Take a key, or learn how its first request ended.

        Args:
            tenant: whose key it is.
            idempotency_key: as the client sent it.
            fingerprint: of the request: method, path and body.
            subject: id of what the request will make, if it is the first.
            exclusive: refuse while the first is under way; False leaves that to the caller, who finds
                the subject and how far it is.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            IdempotencyConflict: the first request is still being answered.
            StateUnavailable: Redis can't be reached.
        """
        key = self._keyspace.claim(tenant, idempotency_key)
        token = secrets.token_hex(8)
        state, *rest = await self._eval(
            _CLAIM,
            key,
            fingerprint,
            subject,
            token,
            round(self._lease_s * 1000) if exclusive else 0,
            self._ttl_s,
        )
        match state:
            case b"mismatch":
                msg = (
                    "This Idempotency-Key was used for another request: take a new key for each "
                    "request, and the same only to repeat it."
                )
                raise IdempotencyMismatch(msg)
            case b"flies":
                raise in_flight()
            case b"answered":
                values = unseal_record(self._seal, rest[1], tenant, key, "answer")
                body = base64.b64decode(values["body"])
                answer = values["status"], values["type"], body
                return Claim(key, rest[0].decode(), "", answer)
        return Claim(key, rest[0].decode(), token)

    async def succeed(self, claim: Claim, subject: str) -> Claim:
        """Have a key stand for something new, since what it stood for has failed and stays as it is.

        Args:
            claim: of the key, with what has failed.
            subject: id of what comes after it.

        Returns:
            The claim with its new subject.

        Raises:
            IdempotencyConflict: somebody else has done so, or the key was forgotten.
            StateUnavailable: Redis can't be reached.
        """
        counts = (await self._eval(_SUCCEED, claim.key, claim.subject, subject)).decode()
        if counts != subject:
            raise in_flight(counts or None)
        return replace(claim, subject=subject)

    async def answered(
        self,
        tenant: str,
        claim: Claim,
        *,
        status: int,
        content_type: str,
        body: bytes,
        conversation: str,
    ) -> None:
        """Keep what the request was answered, for as long as the conversation that it is about.

        Args:
            tenant: whose request it was.
            claim: what the request was carried out under.
            status: HTTP status.
            content_type: of the body.
            body: the whole of it.
            conversation: id of the conversation with which the answer is forgotten.

        Raises:
            StateUnavailable: Redis can't be reached.
        """
        values = {
            "status": status,
            "type": content_type,
            "body": base64.b64encode(body).decode(),
            "at": int(time.time()),
        }
        sealed = seal_record(self._seal, values, tenant, claim.key, "answer")
        claims = self._keyspace.conversation(tenant, conversation).claims
        async with (
            self._redis.client("idempotency") as client,
            client.pipeline(transaction=False) as pipe,
        ):
            pipe.execute_command("EVAL", _SETTLE, 1, claim.key, claim.token, sealed, self._ttl_s)
            pipe.sadd(claims, claim.key)
            pipe.expire(claims, self._ttl_s)
            await pipe.execute()

    @asynccontextmanager
    async def held(self, claim: Claim) -> AsyncIterator[None]:
        """Hold a key for as long as the context lasts."""
        renewing = asyncio.create_task(self._renew(claim))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, claim: Claim) -> None:
        state = b"kept"
        while state == b"kept":
            await asyncio.sleep(self._lease_s / _RENEWALS)
            with suppress(StateUnavailable):  # Redis may be back before the lease has run out
                state = await self._eval(
                    _LEASE, claim.key, claim.token, round(self._lease_s * 1000)
                )

    async def release(self, claim: Claim) -> None:
        """Let the next request under the key make the same: what came of this one is unknown.

        Raises:
            StateUnavailable: Redis can't be reached; the lease runs out by itself.
        """
        await self._eval(_LEASE, claim.key, claim.token, 0)

    async def free(self, claim: Claim) -> None:
        """Forget a request that has changed nothing.

        Raises:
            StateUnavailable: Redis can't be reached.
        """
        await self._eval(_SETTLE, claim.key, claim.token, "", self._ttl_s)

    async def _eval(self, script: str, key: str, *args: Any) -> Any:
        async with self._redis.client("idempotency") as client:
            return await client.execute_command("EVAL", script, 1, key, *args)  # type: ignore[no-untyped-call]
