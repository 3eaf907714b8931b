"""Accounts of recent requests, by tenant: numbers and ids, kept for minutes, so many at most."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.state.connection import RedisPool
from serve_app.state.keyspace import Keyspace

__all__ = ["AccountStore", "KeptAccount"]

# KEYS: accounts (hash), order (sorted set). ARGV: ttl, most, then name, account, time of each.
_KEEP = """
for i = 3, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], ARGV[i + 2], ARGV[i])
end
local most = tonumber(ARGV[2])
local gone = redis.call('ZRANGE', KEYS[2], 0, -(most + 1))
for i = 1, #gone, 100 do
  redis.call('HDEL', KEYS[1], unpack(gone, i, math.min(i + 99, #gone)))
end
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -(most + 1))
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return #gone
"""

# KEYS: accounts, order. ARGV: name. A value that begins with '@' is the name that leads to the account.
_FIND = """
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found and string.sub(found, 1, 1) == '@' then found = redis.call('HGET', KEYS[1], string.sub(found, 2)) end
if not found then return false end
return {found, redis.call('ZSCORE', KEYS[2], ARGV[1])}
"""

_NAMES = 2  # an account is found by the id of its reply, and by that of its HTTP request


@dataclass(frozen=True, slots=True)
class KeptAccount:
    """An account as it is kept.

    Attributes:
        names: what it is found by, one or two; the first is its own.
        body: JSON.
    """

    names: tuple[str, ...]
    body: bytes


class AccountStore:
    """Keeps the newest accounts of each tenant.

    Both methods raise StateUnavailable when Redis can't be reached.

    Args:
        redis: where to.
        key_prefix: first part of every key.
        ttl_s: seconds for which an account is kept.
        most: accounts of one tenant; the oldest leave.
    """

    def __init__(self, redis: RedisPool, *, key_prefix: str, ttl_s: int, most: int) -> None:
        self._redis = redis
        self._keys = Keyspace(key_prefix)
        self._ttl_s = ttl_s
        self._most = most

    async def keep(self, tenant: str, accounts: Sequence[KeptAccount]) -> None:
        """Add accounts of a tenant, in one round trip."""
        now = time.time()
        entries: list[Any] = []
        for account in accounts:
            first, *others = account.names
            entries += first, account.body, now
            for name in others:
                entries += name, f"@{first}", now
        async with self._redis.client("account") as client:
            await client.eval(
                _KEEP,
                2,
                *self._keys.accounts(tenant),
                str(self._ttl_s),
                str(self._most * _NAMES),
                *entries,
            )

    async def find(self, tenant: str, name: str) -> bytes | None:
        """Return a tenant's account as JSON, or None where there is none of that name."""
        async with self._redis.client("account") as client:
            found: Any = await client.eval(_FIND, 2, *self._keys.accounts(tenant), name)
        # The keys live as long as the newest account; each one for itself no longer than said.
        if found is None or float(found[1]) < time.time() - self._ttl_s:
            return None
        return bytes(found[0])
