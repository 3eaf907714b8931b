"""A commit whose answer is lost: the turn is stored once, or nobody is told that it was not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from serve_app.errors import CommitUnknown, ConversationNotFound, StateUnavailable
from serve_app.settings import RedisSettings
from serve_app.state.connection import RedisPool
from serve_app.state.conversations import ConversationStore
from serve_app.state.records import StoredItem
from serve_app.state.server import RedisServer

PATIENCE_S = 60.0
TURN = [
    StoredItem("msg_in", "user", "ask", response="resp_1"),
    StoredItem("msg_out", "assistant", "tell", response="resp_1"),
]


class CountingPool(RedisPool):
    """Notes how often a commit was sent and lost."""

    def __init__(self, url: SecretStr | None) -> None:
        assert url is not None
        super().__init__(url, RedisSettings(timeout_s=1.0))
        self.tries = 0
        self.second_try = asyncio.Event()

    async def ask_once(self, *command: Any) -> Any:
        self.tries += 1
        if self.tries == 2:
            self.second_try.set()
        return await super().ask_once(*command)


@asynccontextmanager
async def opened(
    url: SecretStr | None, *, settle_s: float = PATIENCE_S
) -> AsyncIterator[tuple[ConversationStore, CountingPool]]:
    pool = CountingPool(url)
    yield (
        ConversationStore(pool, key_prefix="test", ttl_s=100, max_items=100, settle_s=settle_s),
        pool,
    )
    await pool.close()


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    """Let a Redis take what it is sent and not look at it."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def contents(store: ConversationStore, conversation: str) -> list[str]:
    _, items = await store.load("acme", conversation)
    return [item.content for item in items]


async def commit(store: ConversationStore, conversation: str) -> bool:
    return await store.turns.commit("acme", conversation, response="resp_1", items=TURN)


async def test_a_turn_that_a_stopped_redis_was_sent_twice_is_stored_once(
    own_redis: RedisServer,
) -> None:
    async with opened(own_redis.url()) as (store, pool):
        made = await store.create("acme", metadata={})
        with stopped(own_redis):
            committing = asyncio.create_task(commit(store, made.id))
            await asyncio.wait_for(pool.second_try.wait(), PATIENCE_S)
        await committing
        assert await contents(store, made.id) == ["ask", "tell"]


async def test_a_turn_is_not_called_lost_while_redis_may_still_store_it(
    own_redis: RedisServer,
) -> None:
    async with opened(own_redis.url(), settle_s=0.0) as (store, _):
        made = await store.create("acme", metadata={})
        with stopped(own_redis), pytest.raises(CommitUnknown, match="may have been stored"):
            await commit(store, made.id)
        end = time.monotonic() + PATIENCE_S
        while await contents(store, made.id) == []:  # the commit lies unread in a socket
            assert time.monotonic() < end
        assert await commit(store, made.id) is False
        assert await contents(store, made.id) == ["ask", "tell"]


async def test_a_turn_that_could_not_be_sent_is_refused_soon(own_redis: RedisServer) -> None:
    async with opened(own_redis.url()) as (store, _):
        made = await store.create("acme", metadata={})
        await asyncio.to_thread(own_redis.stop)
        began = time.monotonic()
        with pytest.raises(StateUnavailable):
            await commit(store, made.id)
        assert time.monotonic() - began < PATIENCE_S / 2  # it does not wait for an answer
        own_redis.start()
        assert await contents(store, made.id) == []


async def test_a_turn_is_stored_by_a_redis_that_was_reading_its_file(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(own_redis.url()) as (store, pool):
        made = await store.create("acme", metadata={})
        ask_once = pool.ask_once

        async def loading(*command: Any) -> Any:
            if pool.tries < 2:
                pool.tries += 1
                msg = "Redis is still loading its data: try again in a moment."
                raise StateUnavailable(msg)
            return await ask_once(*command)

        monkeypatch.setattr(pool, "ask_once", loading)
        assert await commit(store, made.id)
        assert await contents(store, made.id) == ["ask", "tell"]


async def test_a_turn_for_a_conversation_that_went_meanwhile_is_refused(
    own_redis: RedisServer,
) -> None:
    async with opened(own_redis.url()) as (store, _):
        made = await store.create("acme", metadata={})
        await store.delete("acme", made.id)
        with pytest.raises(ConversationNotFound):
            await commit(store, made.id)


class LosingProxy:
    """Leads to Redis, and loses the answer to the first commit together with its connection.

    Attributes:
        stays: whether it takes connections after that.
    """

    def __init__(self, server: RedisServer, *, stays: bool) -> None:
        url = server.url()
        assert url is not None
        self._credentials, address = url.get_secret_value().split("@")
        self._port = int(address.split(":")[1].split("/")[0])
        self._lost = False
        self.stays = stays

    async def __aenter__(self) -> SecretStr:
        self._proxy = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._proxy.sockets[0].getsockname()[1]
        return SecretStr(f"{self._credentials}@127.0.0.1:{port}/0")

    async def __aexit__(self, *_: object) -> None:
        self._proxy.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, to_redis = await asyncio.open_connection("127.0.0.1", self._port)
        while asked := await reader.read(65536):
            to_redis.write(asked)
            answer = await answers.read(65536)
            if b"EVAL" in asked and not self._lost:
                self._lost = True
                if not self.stays:
                    self._proxy.close()
                break
            writer.write(answer)
        writer.close()
        to_redis.close()


async def test_a_stored_turn_whose_answer_was_lost_is_no_failure(shared_redis: RedisServer) -> None:
    async with (
        LosingProxy(shared_redis, stays=True) as url,
        opened(url) as (store, pool),
    ):
        made = await store.create("acme", metadata={})
        await commit(store, made.id)
        assert pool.tries == 2
        assert await contents(store, made.id) == ["ask", "tell"]


async def test_a_redis_that_goes_after_it_stored_a_turn_leaves_it_unknown(
    shared_redis: RedisServer,
) -> None:
    async with (
        LosingProxy(shared_redis, stays=False) as url,
        opened(url, settle_s=0.5) as (store, pool),
    ):
        made = await store.create("acme", metadata={})
        with pytest.raises(CommitUnknown):  # though the last try was plainly refused
            await commit(store, made.id)
        assert pool.tries > 1
    async with opened(shared_redis.url()) as (store, _):
        assert await contents(store, made.id) == ["ask", "tell"]
