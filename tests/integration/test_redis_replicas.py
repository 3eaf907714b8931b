"""A Redis with a failover: what it can't replicate it refuses, and what was confirmed survives its primary."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import redis
from ingress_harness import MODEL, PATIENCE_S, service, settings_with, wait_until
from pydantic import SecretStr
from redis.exceptions import ResponseError

from serve_app.errors import CommitUnknown, StateUnavailable
from serve_app.settings import RedisSettings
from serve_app.state.connection import RedisPool, _explain
from serve_app.state.conversations import ConversationStore
from serve_app.state.records import StoredItem
from serve_app.state.server import RedisServer

TURN = [
    StoredItem("msg_in", "user", "ask", response="resp_1"),
    StoredItem("msg_out", "assistant", "tell", response="resp_1"),
]


def url_of(server: RedisServer) -> SecretStr:
    url = server.url()
    assert url is not None
    return url


def admin(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(url_of(server).get_secret_value())


def rewriting(persistence: dict[str, Any]) -> bool:
    return bool(persistence["aof_rewrite_in_progress"] or persistence["aof_rewrite_scheduled"])


@pytest.fixture
def replica(own_redis: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that follows `own_redis` and has all of it."""
    server = RedisServer(tmp_path / "replica")
    server.start()
    primary = urlsplit(url_of(own_redis).get_secret_value())
    with admin(server) as client:
        client.config_set("masterauth", str(primary.password))
        client.replicaof(str(primary.hostname), str(primary.port))
        wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        # Until it has written all of it down, it can't be stopped.
        wait_until(lambda: not rewriting(client.info("persistence")))
    yield server
    server.stop()


@contextmanager
def halted(server: RedisServer) -> Iterator[None]:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def opened(
    server: RedisServer, *, replicas: int, settle_s: float = PATIENCE_S
) -> AsyncIterator[ConversationStore]:
    pool = RedisPool(url_of(server), RedisSettings(replicas=replicas, timeout_s=1.0))
    yield ConversationStore(pool, key_prefix="test", ttl_s=100, max_items=100, settle_s=settle_s)
    await pool.close()


async def commit(store: ConversationStore, conversation: str) -> bool:
    return await store.turns.commit("acme", conversation, response="resp_1", items=TURN)


async def contents(store: ConversationStore, conversation: str) -> list[str]:
    _, items = await store.load("acme", conversation)
    return [item.content for item in items]


async def test_a_primary_without_replicas_takes_nothing_that_it_must_not_lose(
    own_redis: RedisServer,
) -> None:
    with admin(own_redis) as client:
        client.config_set("min-replicas-to-write", 1)
    pool = RedisPool(url_of(own_redis), RedisSettings())
    with pytest.raises(StateUnavailable, match="too few replicas") as refused:
        async with pool.client("ping") as client_of_pool:
            await client_of_pool.set("parley:x", "1")
    assert refused.value.status == 503
    assert refused.value.retry_after
    await pool.ping()
    await pool.close()


def test_a_script_that_redis_7_refuses_is_explained_in_the_same_way() -> None:
    # Redis 6.2, which runs here, refuses commands of its own and lets scripts write.
    said = "NOREPLICAS Not enough good replicas to write. script: 4e5b, on @user_script:12."
    reason, remedy = _explain(ResponseError(said))
    assert "too few replicas" in reason
    assert "try again" in remedy


def test_a_client_is_told_when_to_come_back_and_stateless_requests_go_on(
    bundled_tokenizer: Path, tmp_path: Path, own_redis: RedisServer
) -> None:
    with admin(own_redis) as client:
        client.config_set("min-replicas-to-write", 1)
    with (
        service(bundled_tokenizer, tmp_path, redis_url=url_of(own_redis)) as running,
        running.openai() as asking,
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            asking.conversations.create(metadata={"topic": "bread"})
        assert refused.value.status_code == 503
        assert refused.value.code == "state_unavailable"
        assert float(refused.value.response.headers["retry-after"]) > 0
        assert "too few replicas" in refused.value.message
        reply = asking.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=4
        )
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 4


async def test_a_confirmed_turn_survives_its_primary(
    own_redis: RedisServer, replica: RedisServer
) -> None:
    async with opened(own_redis, replicas=1) as store:
        made = await store.create("acme", metadata={})
        assert await commit(store, made.id) is True
    own_redis.stop()
    with admin(replica) as client:
        client.replicaof("NO", "ONE")
    async with opened(replica, replicas=0) as store:
        assert await contents(store, made.id) == ["ask", "tell"]


async def test_a_turn_that_no_replica_has_is_not_confirmed(
    own_redis: RedisServer, replica: RedisServer
) -> None:
    async with opened(own_redis, replicas=1, settle_s=0.0) as store:
        made = await store.create("acme", metadata={})
        with halted(replica), pytest.raises(CommitUnknown, match="may have been stored"):
            await commit(store, made.id)
        # Sent again, it is there already, and confirmed once the replica has it too.
        assert await commit(store, made.id) is False
    with admin(replica) as client:
        client.replicaof("NO", "ONE")
    async with opened(replica, replicas=0) as store:
        assert await contents(store, made.id) == ["ask", "tell"]


async def test_a_replica_that_comes_back_in_time_has_the_turn_confirmed(
    own_redis: RedisServer, replica: RedisServer
) -> None:
    async with opened(own_redis, replicas=1) as store:
        made = await store.create("acme", metadata={})
        pid = replica.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        tries = 0
        ask_once = store.turns._scripts.redis.ask_once

        async def counted(*command: object) -> object:
            nonlocal tries
            tries += 1
            if tries == 2:
                os.kill(pid, signal.SIGCONT)
            return await ask_once(*command)

        store.turns._scripts.redis.ask_once = counted  # type: ignore[method-assign]
        try:
            await commit(store, made.id)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert tries >= 2
        assert await contents(store, made.id) == ["ask", "tell"]


async def test_a_user_that_may_not_wait_confirms_nothing(own_redis: RedisServer) -> None:
    with admin(own_redis) as client:
        client.acl_setuser(
            "asks", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-wait"]
        )
    address = url_of(own_redis).get_secret_value().split("@")[1]
    pool = RedisPool(SecretStr(f"redis://asks:any@{address}"), RedisSettings(replicas=1))
    store = ConversationStore(pool, key_prefix="test", ttl_s=100, max_items=100, settle_s=0.0)
    made = await store.create("acme", metadata={})
    with pytest.raises(CommitUnknown):
        await commit(store, made.id)
    await pool.close()


def test_settings_take_how_many_replicas_must_have_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_with().redis.replicas == 0
    monkeypatch.setenv("PARLEY_REDIS_REPLICAS", "1")
    assert settings_with().redis.replicas == 1
