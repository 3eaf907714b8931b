"""Accounts of requests in a real Redis: found by both names, by their tenant only, and not for long."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app.settings import RedisSettings
from serve_app.state import accounts as module
from serve_app.state.accounts import AccountStore, KeptAccount
from serve_app.state.connection import RedisPool
from serve_app.state.server import RedisServer


@pytest.fixture
async def pool(shared_redis: RedisServer) -> AsyncIterator[RedisPool]:
    url = shared_redis.url()
    assert url is not None
    made = RedisPool(url, RedisSettings())
    yield made
    await made.close()


def store(pool: RedisPool, prefix: str, *, most: int = 10, ttl_s: int = 100) -> AccountStore:
    return AccountStore(pool, key_prefix=prefix, ttl_s=ttl_s, most=most)


def account(number: int) -> KeptAccount:
    return KeptAccount((f"chatcmpl-{number}", f"x-{number}"), b'{"number":%d}' % number)


async def test_an_account_is_found_by_either_of_its_names_and_by_its_tenant_only(
    pool: RedisPool,
) -> None:
    kept = store(pool, "names")
    await kept.keep("acme", [account(1), KeptAccount(("x-2",), b"{}")])
    for name in ("chatcmpl-1", "x-1"):
        assert await kept.find("acme", name) == b'{"number":1}'
        assert await kept.find("rival", name) is None
    assert await kept.find("acme", "x-2") == b"{}"
    for other in ("", "chatcmpl-2", "@chatcmpl-1"):
        assert await kept.find("acme", other) is None


async def test_of_a_tenant_only_the_newest_are_kept(
    pool: RedisPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(pool, "most", most=3)
    began = time.time()
    for number in range(250):
        monkeypatch.setattr(module.time, "time", lambda number=number: began + number / 1000)
        await kept.keep("acme", [account(number)])
    await kept.keep("rival", [account(7)])
    found = [n for n in range(250) if await kept.find("acme", f"chatcmpl-{n}")]
    assert found == [247, 248, 249]
    assert await kept.find("rival", "x-7") is not None
    async with pool.client("ping") as client:
        names: Any = [key async for key in client.scan_iter("most:{acme:*")]
        assert sorted(names) == [b"most:{acme:accounts}:accounts", b"most:{acme:accounts}:order"]
        assert await client.hlen("most:{acme:accounts}:accounts") == 6
        assert await client.zcard("most:{acme:accounts}:order") == 6


async def test_more_than_are_kept_may_come_at_once(pool: RedisPool) -> None:
    kept = store(pool, "burst", most=5)
    await kept.keep("acme", [account(number) for number in range(1024)])
    async with pool.client("ping") as client:
        assert await client.hlen("burst:{acme:accounts}:accounts") == 10


async def test_an_account_is_forgotten_when_its_time_is_over(
    pool: RedisPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(pool, "time", ttl_s=60)
    await kept.keep("acme", [account(1)])
    async with pool.client("ping") as client:
        assert 0 < await client.ttl("time:{acme:accounts}:accounts") <= 60
        assert 0 < await client.ttl("time:{acme:accounts}:order") <= 60
    later = time.time() + 61
    monkeypatch.setattr(module.time, "time", lambda: later)
    # A newer one keeps the key, and not what is in it.
    await kept.keep("acme", [account(2)])
    assert await kept.find("acme", "chatcmpl-1") is None
    assert await kept.find("acme", "x-1") is None
    assert await kept.find("acme", "chatcmpl-2") is not None
