"""Conversations in a real Redis: whole turns, once, in order, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from serve_app.errors import (
    CommitUnknown,
    ConversationBusy,
    ConversationNotFound,
    InvalidRequest,
    ResponseLost,
    StateUnavailable,
)
from serve_app.settings import RedisSettings
from serve_app.state.connection import RedisPool
from serve_app.state.conversations import ConversationStore
from serve_app.state.keyspace import new_response_id
from serve_app.state.records import StoredItem
from serve_app.state.server import RedisServer
from serve_app.state.turns import TurnBegin

UNKNOWN = "conv_" + "0" * 32


def open_store(
    server: RedisServer, *, max_items: int = 1000, ttl_s: int = 100, settle_s: float = 8.0
) -> tuple[ConversationStore, RedisPool]:
    url = server.url()
    assert url is not None
    pool = RedisPool(url, RedisSettings())
    store = ConversationStore(
        pool, key_prefix="test", ttl_s=ttl_s, max_items=max_items, settle_s=settle_s
    )
    return store, pool


@pytest.fixture
async def store(shared_redis: RedisServer) -> AsyncIterator[ConversationStore]:
    store, pool = open_store(shared_redis)
    yield store
    await pool.close()


@pytest.fixture
async def pool(shared_redis: RedisServer) -> AsyncIterator[RedisPool]:
    """A way past the store, to see what it has written."""
    _, pool = open_store(shared_redis)
    yield pool
    await pool.close()


def turn(name: str) -> list[StoredItem]:
    return [
        StoredItem(f"msg_{name}_in", "user", f"ask {name}", response=f"resp_{name}", created_at=1),
        StoredItem(f"msg_{name}_out", "assistant", f"tell {name}", "incomplete", f"resp_{name}", 2),
    ]


async def contents(store: ConversationStore, conversation: str, tenant: str = "acme") -> list[str]:
    _, items = await store.load(tenant, conversation)
    return [item.content for item in items]


@asynccontextmanager
async def counting_proxy(server: RedisServer) -> AsyncIterator[tuple[SecretStr, list[str]]]:
    """Lead to Redis through a proxy that notes each change from asking to answering."""
    url = server.url()
    assert url is not None
    credentials, address = url.get_secret_value().split("@")
    port = int(address.split(":")[1].split("/")[0])
    noted: list[str] = []

    async def pass_on(
        name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            if not noted or noted[-1] != name:
                noted.append(name)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_redis = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on("ask", reader, to_redis), pass_on("answer", upstream, writer))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    own_port = proxy.sockets[0].getsockname()[1]
    yield SecretStr(f"{credentials}@127.0.0.1:{own_port}/0"), noted
    proxy.close()


async def test_what_is_stored_comes_back(store: ConversationStore) -> None:
    system = StoredItem("msg_s", "system", "Sei höflich 🙂", created_at=7)
    made = await store.create("acme", metadata={"topic": "Bäcker"}, items=[system])
    assert await store.turns.commit("acme", made.id, response="resp_1", items=turn("1"))
    assert await store.get("acme", made.id) == made
    assert await store.load("acme", made.id) == (made, (system, *turn("1")))
    assert made.metadata == {"topic": "Bäcker"}
    assert made.created_at > 1_700_000_000


async def test_turns_stay_in_the_order_of_their_commits(store: ConversationStore) -> None:
    made = await store.create("acme", metadata={})
    for number in range(15):
        await store.turns.commit("acme", made.id, response=f"r{number}", items=turn(str(number)))
    expected = [f"{verb} {number}" for number in range(15) for verb in ("ask", "tell")]
    assert await contents(store, made.id) == expected


async def test_a_turn_is_committed_once(store: ConversationStore) -> None:
    made = await store.create("acme", metadata={})
    assert await store.turns.commit("acme", made.id, response="r", items=turn("1")) is True
    assert await store.turns.commit("acme", made.id, response="r", items=turn("1")) is False
    assert await store.turns.commit("acme", made.id, response="r", items=turn("2")) is False
    assert await contents(store, made.id) == ["ask 1", "tell 1"]


async def test_many_at_once_commit_each_turn_once_and_whole(shared_redis: RedisServer) -> None:
    stores = [open_store(shared_redis) for _ in range(3)]
    made = await stores[0][0].create("acme", metadata={})
    commits = [
        store.turns.commit("acme", made.id, response=f"r{number}", items=turn(str(number)))
        for number in range(40)
        for store, _ in stores
    ]
    outcomes = await asyncio.gather(*commits)
    assert sum(outcomes) == 40
    said = await contents(stores[0][0], made.id)
    assert len(said) == 80
    for asked, told in zip(said[::2], said[1::2], strict=True):
        assert (asked.split()[0], told) == ("ask", f"tell {asked.split()[1]}")
    for _, pool in stores:
        await pool.close()


async def test_a_turn_that_is_refused_leaves_no_trace(store: ConversationStore) -> None:
    made = await store.create("acme", metadata={})
    await store.turns.commit("acme", made.id, response="r1", items=turn("1"))
    fresh = StoredItem("msg_fresh", "user", "fresh")
    with pytest.raises(InvalidRequest, match="already"):
        await store.turns.commit("acme", made.id, response="r2", items=[fresh, turn("1")[0]])
    with pytest.raises(InvalidRequest, match="twice"):
        await store.turns.commit("acme", made.id, response="r2", items=[fresh, fresh])
    with pytest.raises(InvalidRequest, match="surrogate"):
        await store.turns.commit(
            "acme", made.id, response="r2", items=[fresh, StoredItem("m", "user", "\ud800")]
        )
    assert await contents(store, made.id) == ["ask 1", "tell 1"]
    assert await store.turns.commit("acme", made.id, response="r2", items=[fresh])


async def test_a_killed_redis_has_each_acknowledged_turn_whole(own_redis: RedisServer) -> None:
    store, pool = open_store(own_redis, settle_s=0.0)
    made = await store.create("acme", metadata={})
    acknowledged = 0

    async def commit_on() -> None:
        nonlocal acknowledged
        while True:
            name = str(acknowledged)
            await store.turns.commit("acme", made.id, response=f"r{name}", items=turn(name))
            acknowledged += 1
            if acknowledged == 100:
                half_way.set()

    half_way = asyncio.Event()
    committing = asyncio.create_task(commit_on())
    await half_way.wait()
    pid = own_redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises((StateUnavailable, CommitUnknown)):
        await committing
    own_redis.start()
    said = await contents(store, made.id)
    # The one in flight may have arrived; half of it may not.
    assert len(said) in {2 * acknowledged, 2 * acknowledged + 2}
    assert said == [f"{verb} {n}" for n in range(len(said) // 2) for verb in ("ask", "tell")]
    # It can be committed again without knowing whether it arrived.
    name = str(acknowledged)
    await store.turns.commit("acme", made.id, response=f"r{name}", items=turn(name))
    assert len(await contents(store, made.id)) == 2 * acknowledged + 2
    await pool.close()


async def test_a_turn_costs_one_round_trip_to_load_and_one_to_commit(
    shared_redis: RedisServer,
) -> None:
    async with counting_proxy(shared_redis) as (url, noted):
        pool = RedisPool(url, RedisSettings())
        store = ConversationStore(pool, key_prefix="test", ttl_s=100, max_items=100)
        made = await store.create("acme", metadata={})
        noted.clear()
        await store.load("acme", made.id)
        assert noted == ["ask", "answer"]
        noted.clear()
        await store.turns.commit("acme", made.id, response="r1", items=turn("1"))
        assert noted == ["ask", "answer"]
        await pool.close()


async def test_no_tenant_reaches_anothers_conversation(store: ConversationStore) -> None:
    made = await store.create("acme", metadata={})
    await store.turns.commit("acme", made.id, response="r", items=turn("1"))
    for attempt in (
        store.get("rival", made.id),
        store.load("rival", made.id),
        store.items("rival", made.id),
        store.turns.commit("rival", made.id, response="r2", items=turn("2")),
        store.delete("rival", made.id),
    ):
        with pytest.raises(ConversationNotFound):
            await attempt
    assert await contents(store, made.id) == ["ask 1", "tell 1"]


@pytest.mark.parametrize(
    "name", [UNKNOWN, "", "conv_", "conv_x}:y{0000000", "*", "conv_" + "a" * 65]
)
async def test_ids_that_name_nothing_are_not_found(store: ConversationStore, name: str) -> None:
    for attempt in (
        store.get("acme", name),
        store.load("acme", name),
        store.items("acme", name),
        store.turns.commit("acme", name, response="r", items=turn("1")),
        store.delete("acme", name),
    ):
        with pytest.raises(ConversationNotFound):
            await attempt


async def test_a_deleted_conversation_leaves_nothing(
    store: ConversationStore, pool: RedisPool
) -> None:
    made = await store.create("acme", metadata={"a": "b"}, items=turn("0"))
    await store.turns.commit("acme", made.id, response="r", items=turn("1"))
    await store.delete("acme", made.id)
    async with pool.client("conversation") as client:
        assert await client.keys(f"*{made.id}*") == []
    with pytest.raises(ConversationNotFound):
        await store.delete("acme", made.id)
    with pytest.raises(ConversationNotFound):
        await store.turns.commit("acme", made.id, response="r2", items=turn("2"))


async def test_whoever_touches_a_conversation_puts_its_end_off(
    store: ConversationStore, pool: RedisPool
) -> None:
    made = await store.create("acme", metadata={}, items=turn("0"))
    await store.turns.commit("acme", made.id, response="r", items=turn("1"))

    async def touched_by(touch: object) -> None:
        async with pool.client("conversation") as client:
            keys = await client.keys(f"*{made.id}*")
            parts = {key.decode().rsplit(":", 1)[1] for key in keys}
            assert parts >= {"meta", "order", "every", "items", "parents", "turns", "ended"}
            for key in keys:
                await client.expire(key, 10)
        await touch  # type: ignore[misc]
        async with pool.client("conversation") as client:
            assert {await client.ttl(key) for key in keys} <= {99, 100}

    await touched_by(store.load("acme", made.id))
    await touched_by(store.get("acme", made.id))
    await touched_by(store.items("acme", made.id))
    await touched_by(store.turns.commit("acme", made.id, response="r2", items=turn("2")))


async def test_a_conversation_without_turns_expires_too(
    store: ConversationStore, pool: RedisPool
) -> None:
    made = await store.create("acme", metadata={})
    async with pool.client("conversation") as client:
        assert [await client.ttl(key) for key in await client.keys(f"*{made.id}*")] == [100]


async def test_the_oldest_items_are_cut_but_not_what_the_system_said_first(
    shared_redis: RedisServer,
) -> None:
    store, pool = open_store(shared_redis, max_items=5)
    system = StoredItem("msg_s", "system", "be kind")
    made = await store.create("acme", metadata={}, items=[system])
    for number in range(4):
        await store.turns.commit("acme", made.id, response=f"r{number}", items=turn(str(number)))
    assert await contents(store, made.id) == ["be kind", "ask 2", "tell 2", "ask 3", "tell 3"]
    # What is remembered of old commits is bounded as well; the recent ones are.
    assert await store.turns.commit("acme", made.id, response="r3", items=turn("3")) is False
    async with pool.client("conversation") as client:
        (ended,) = await client.keys(f"*{made.id}*:ended")
        assert await client.zrange(ended, 0, -1) == [b"r2", b"r3"]
    with pytest.raises(InvalidRequest, match="at most 5 items; 6"):
        await store.create(
            "acme", metadata={}, items=[StoredItem(str(i), "user", "") for i in range(6)]
        )
    await pool.close()


async def pages(
    store: ConversationStore, conversation: str, *, limit: int, order: str
) -> list[list[str]]:
    seen: list[list[str]] = []
    after: str | None = None
    while True:
        items, more = await store.items("acme", conversation, after=after, limit=limit, order=order)
        seen.append([item.content for item in items])
        if not more:
            return seen
        after = items[-1].id


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 100])
async def test_pages_hold_each_item_once(store: ConversationStore, limit: int, order: str) -> None:
    made = await store.create("acme", metadata={})
    for number in range(3):
        await store.turns.commit("acme", made.id, response=f"r{number}", items=turn(str(number)))
    expected: Sequence[str] = await contents(store, made.id)
    if order == "desc":
        expected = expected[::-1]
    seen = await pages(store, made.id, limit=limit, order=order)
    assert [content for page in seen for content in page] == expected
    assert all(len(page) == limit for page in seen[:-1])
    assert seen[-1]


async def test_an_empty_conversation_has_an_empty_page(store: ConversationStore) -> None:
    made = await store.create("acme", metadata={})
    assert await store.items("acme", made.id) == ((), False)


async def test_paging_on_from_an_unknown_item_is_refused(store: ConversationStore) -> None:
    made = await store.create("acme", metadata={}, items=turn("1"))
    with pytest.raises(InvalidRequest, match="'msg_x'"):
        await store.items("acme", made.id, after="msg_x")


async def test_one_cluster_slot_holds_a_conversation(
    store: ConversationStore, pool: RedisPool
) -> None:
    made = await store.create("acme", metadata={}, items=turn("0"))
    await store.turns.commit("acme", made.id, response="r", items=turn("1"))
    async with pool.client("conversation") as client:
        keys = [key.decode() for key in await client.keys(f"*{made.id}*")]
    assert {key[key.index("{") : key.index("}") + 1] for key in keys} == {f"{{acme:{made.id}}}"}


async def test_what_is_stored_is_json_with_a_version(
    store: ConversationStore, pool: RedisPool
) -> None:
    made = await store.create("acme", metadata={}, items=turn("0"))
    async with pool.client("conversation") as client:
        (items,) = await client.keys(f"*{made.id}*:items")
        (meta,) = await client.keys(f"*{made.id}*:meta")
        values = [*(await client.hvals(items)), await client.hget(meta, "body")]
    assert all(orjson.loads(value)["v"] == 2 for value in values)


@pytest.mark.parametrize(
    ("written", "complaint"),
    [(b'{"v":3}', "schema version 3"), (b"\x80\x04K\x01.", "damaged"), (b"[]", "damaged")],
)
async def test_what_another_version_or_nobody_wrote_is_not_guessed_at(
    store: ConversationStore, pool: RedisPool, written: bytes, complaint: str
) -> None:
    made = await store.create("acme", metadata={}, items=turn("0"))
    async with pool.client("conversation") as client:
        (items,) = await client.keys(f"*{made.id}*:items")
        await client.hset(items, "msg_0_in", written)
    with pytest.raises(StateUnavailable, match=complaint):
        await store.load("acme", made.id)


async def test_a_full_redis_refuses_a_turn_whole(own_redis: RedisServer) -> None:
    store, pool = open_store(own_redis)
    made = await store.create("acme", metadata={}, items=turn("0"))
    async with pool.client("conversation") as client:
        await client.config_set("maxmemory", "1")
    with pytest.raises(StateUnavailable, match="out of memory") as caught:
        await store.turns.commit("acme", made.id, response="r", items=turn("1"))
    assert "ask 1" not in str(caught.value)
    async with pool.client("conversation") as client:
        await client.config_set("maxmemory", "0")
    assert await contents(store, made.id) == ["ask 0", "tell 0"]
    assert await store.turns.commit("acme", made.id, response="r", items=turn("1"))
    await pool.close()


async def test_a_turn_begins_with_one_round_trip_and_ends_with_one(
    shared_redis: RedisServer,
) -> None:
    async with counting_proxy(shared_redis) as (url, noted):
        pool = RedisPool(url, RedisSettings())
        store = ConversationStore(pool, key_prefix="test", ttl_s=100, max_items=100)
        made = await store.create("acme", metadata={})
        response = new_response_id(made.id)
        noted.clear()
        begun = await store.turns.begin("acme", made.id, turn_begin(response, draft={"a": 1}))
        assert noted == ["ask", "answer"]
        noted.clear()
        assert await store.turns.commit(
            "acme",
            made.id,
            response=response,
            items=turn("1"),
            owner="me",
            base=begun.base,
            record={"a": 2},
        )
        assert noted == ["ask", "answer"]
        await pool.close()


def turn_begin(response: str, **given: Any) -> TurnBegin:
    options: dict[str, Any] = {"owner": "me", "lease_s": 60.0, "on_busy": "enqueue"} | given
    return TurnBegin(response, **options)


async def test_turns_wait_in_the_order_in_which_they_came(store: ConversationStore) -> None:
    made = await store.create("acme", metadata={})
    names = [new_response_id(made.id) for _ in range(3)]
    waits = [
        (await store.turns.begin("acme", made.id, turn_begin(name, owner=name))).waits
        for name in names
    ]
    assert waits == [0, 1, 2]
    with pytest.raises(ConversationBusy):
        await store.turns.begin(
            "acme", made.id, turn_begin(new_response_id(made.id), on_busy="reject")
        )
    with pytest.raises(ConversationBusy, match="max_queued_turns"):
        await store.turns.begin("acme", made.id, turn_begin(new_response_id(made.id), max_queued=3))
    for number, name in enumerate(names):
        assert not (await store.turns.begin("acme", made.id, turn_begin(name, owner=name))).waits
        await store.turns.commit(
            "acme", made.id, response=name, items=turn(str(number)), owner=name
        )
    said = await contents(store, made.id)
    assert said == [f"{verb} {n}" for n in range(3) for verb in ("ask", "tell")]


async def test_a_turn_whose_lease_ran_out_holds_nobody_up_and_stores_nothing(
    store: ConversationStore,
) -> None:
    made = await store.create("acme", metadata={})
    dead, alive = new_response_id(made.id), new_response_id(made.id)
    await store.turns.begin("acme", made.id, turn_begin(dead, owner="dead", lease_s=0.0))
    assert not (await store.turns.begin("acme", made.id, turn_begin(alive))).waits
    with pytest.raises(ResponseLost):
        await store.turns.commit("acme", made.id, response=dead, items=turn("0"), owner="dead")
    assert await contents(store, made.id) == []


async def test_old_items_leave_a_branch_as_they_leave_the_line(shared_redis: RedisServer) -> None:
    store, pool = open_store(shared_redis, max_items=5)
    system = StoredItem("msg_s", "system", "be kind")
    made = await store.create("acme", metadata={}, items=[system])
    names = [new_response_id(made.id) for _ in range(4)]
    for number, name in enumerate(names[:3]):
        begun = await store.turns.begin("acme", made.id, turn_begin(name))
        await store.turns.commit(
            "acme", made.id, response=name, items=turn(str(number)), owner="me", base=begun.base
        )
    begun = await store.turns.begin("acme", made.id, turn_begin(names[3], replaces=names[2]))
    assert [item.content for item in begun.history] == ["be kind", "ask 1", "tell 1"]
    assert [item.content for item in begun.asked] == ["ask 2"] or not begun.asked
    await store.turns.commit(
        "acme", made.id, response=names[3], items=turn("3"), owner="me", base=begun.base
    )
    assert await contents(store, made.id) == ["be kind", "ask 3", "tell 3"]
    await pool.close()


async def test_a_conversations_own_time_to_live_slides(
    store: ConversationStore, pool: RedisPool
) -> None:
    made = await store.create("acme", metadata={}, items=turn("0"), ttl_s=50)
    assert (await store.get("acme", made.id)).ttl_s == 50
    await store.update("acme", made.id, ttl_s=70)
    async with pool.client("conversation") as client:
        keys = await client.keys(f"*{made.id}*")
        for key in keys:
            await client.expire(key, 10)
        await store.load("acme", made.id)
        assert {await client.ttl(key) for key in keys} <= {69, 70}
