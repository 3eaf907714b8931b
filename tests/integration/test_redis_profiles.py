"""Profiles, and what is known of conversations, in a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from serve_app.settings import RedisSettings
from serve_app.state.connection import RedisPool
from serve_app.state.conversations import ConversationStore
from serve_app.state.profiles import NewFact, ProfileStore
from serve_app.state.records import StoredItem
from serve_app.state.sealing import KeyFile, Seal
from serve_app.state.server import RedisServer
from serve_app.state.turns import TurnBegin


@pytest.fixture
async def pool(shared_redis: RedisServer) -> AsyncIterator[RedisPool]:
    url = shared_redis.url()
    assert url is not None
    made = RedisPool(url, RedisSettings())
    yield made
    await made.close()


@pytest.fixture
def seal(tmp_path_factory: pytest.TempPathFactory) -> Seal:
    file = KeyFile(tmp_path_factory.mktemp("keys") / "encryption.json")
    file.ensure()
    return Seal(file.read())


def profiles(pool: RedisPool, seal: Seal, *, most: int = 3) -> ProfileStore:
    return ProfileStore(pool, key_prefix="facts", ttl_s=100, max_facts=most, seal=seal)


async def test_a_fact_replaces_the_one_about_the_same_and_the_oldest_leave(
    pool: RedisPool, seal: Seal
) -> None:
    store = profiles(pool, seal)
    for subject, text in (("name", "Ann"), ("home", "Rome"), ("name", "Bo"), ("", "x"), ("", "y")):
        await store.learn("acme", "u1", [NewFact(subject, text)], response="resp_1")
    assert [fact.text for fact in await store.get("acme", "u1")] == ["Bo", "x", "y"]


async def test_what_is_kept_is_sealed_and_lies_under_no_plain_name(
    pool: RedisPool, seal: Seal
) -> None:
    await profiles(pool, seal).learn(
        "acme", "ann@example.org", [NewFact("taste:llamas", "Likes llamas.")], response="resp_1"
    )
    async with pool.client("conversation") as client:
        (key,) = [key async for key in client.scan_iter("facts:{acme:user_*}:profile") if b"u1" not in key][-1:]  # fmt: skip
        stored = await client.hgetall(key)
    everything = key + b"".join(b"%b%b" % pair for pair in stored.items())
    assert b"ann" not in everything
    assert b"llamas" not in everything


async def test_a_summary_belongs_to_the_line_it_is_of(pool: RedisPool, seal: Seal) -> None:
    store = ConversationStore(pool, key_prefix="lines", ttl_s=100, max_items=100, seal=seal)
    first = [StoredItem(f"msg_{n}", "user", f"say {n}") for n in range(4)]
    made = await store.create("acme", metadata={}, items=first, persona="pizza")
    line = await store.summaries.line("acme", made.id, "msg_1")
    assert line is not None
    assert [item.id for item in line.items] == ["msg_0", "msg_1"]
    assert (line.persona, line.summary, line.covered) == ("pizza", None, 0)
    keep = store.summaries.keep
    assert await keep("acme", made.id, "msg_1", "Said.", forgotten=line.forgotten)
    later = await store.summaries.line("acme", made.id, "msg_3")
    assert later is not None
    assert (later.summary, later.covered) == ("Said.", 2)
    earlier = await store.summaries.line("acme", made.id, "msg_0")
    assert earlier is not None
    assert earlier.summary is None
    await store.delete_item("acme", made.id, "msg_3")
    assert not await keep("acme", made.id, "msg_2", "Old.", forgotten=line.forgotten)
    gone = await store.summaries.line("acme", made.id, "msg_2")
    assert gone is not None
    assert gone.summary is None
    assert await store.summaries.line("acme", made.id, "msg_3") is None


async def test_a_state_comes_with_the_history_it_belongs_to(pool: RedisPool, seal: Seal) -> None:
    store = ConversationStore(pool, key_prefix="states", ttl_s=100, max_items=100, seal=seal)
    made = await store.create("acme", metadata={})
    for number in range(2):
        items = [StoredItem(f"msg_{number}", "user", "x")]
        await store.turns.commit(
            "acme", made.id, response=f"resp_{number}", items=items, state={"turns": number}
        )
    turn = TurnBegin(response="resp_9", owner="me", lease_s=5)
    begun = await store.turns.begin("acme", made.id, turn)
    assert begun.state == {"turns": 1}
    again = TurnBegin(response="resp_8", owner="me", lease_s=5, replaces="resp_1")
    assert (await store.turns.begin("acme", made.id, again)).state == {"turns": 0}
    await store.add_items("acme", made.id, [StoredItem("msg_9", "user", "y")])
    assert (await store.turns.begin("acme", made.id, turn)).state == {"turns": 1}
