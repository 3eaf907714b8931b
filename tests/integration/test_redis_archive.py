"""What is kept of people is found, exported and erased, all of it, and sealed anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import ConversationNotFound, StateUnavailable
from serve_app.settings import RedisSettings, ResponsesSettings
from serve_app.state.archive import Archive, Scope
from serve_app.state.connection import RedisPool
from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.conversations import ConversationStore
from serve_app.state.idempotency import IdempotencyStore
from serve_app.state.keyspace import new_response_id, user_session
from serve_app.state.profiles import NewFact, ProfileStore
from serve_app.state.records import StoredItem
from serve_app.state.responses import ResponseStore
from serve_app.state.sealing import KeyFile, Seal
from serve_app.state.server import RedisServer

ANN = Scope("acme", user="ann")


@dataclass
class Place:
    pool: RedisPool
    file: KeyFile

    def parts(self, **given: Any) -> tuple[ConversationStore, ResponseStore, Archive]:
        seal = Seal(self.file.read()) if given.get("sealed", True) else Seal()
        options: dict[str, Any] = {"key_prefix": "kept", "ttl_s": 100, "max_items": 100}
        scripts = ConversationScripts(self.pool, seal=seal, **options)
        return (
            ConversationStore(self.pool, seal=seal, **options),
            ResponseStore(scripts, ResponsesSettings()),
            Archive(self.pool, key_prefix="kept", seal=seal),
        )

    def profiles(self, **given: Any) -> ProfileStore:
        seal = Seal(self.file.read()) if given.get("sealed", True) else Seal()
        return ProfileStore(self.pool, key_prefix="kept", ttl_s=100, max_facts=9, seal=seal)

    async def keys(self) -> list[bytes]:
        async with self.pool.client("conversation") as client:
            return [key async for key in client.scan_iter("kept:*")]

    async def values(self) -> bytes:
        async with self.pool.client("conversation") as client:
            found = []
            for key in await self.keys():
                if await client.type(key) == b"hash":
                    found += list((await client.hgetall(key)).values())
        return b"\0".join(found)


@pytest.fixture
async def place(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[Place]:
    url = own_redis.url()
    assert url is not None
    file = KeyFile(tmp_path / "encryption.json")
    file.ensure()
    pool = RedisPool(url, RedisSettings())
    yield Place(pool, file)
    await pool.close()


async def talk(place: Place, user: str, said: str, **given: Any) -> tuple[str, str]:
    """Keep all that there can be of a rated turn; return its conversation's id and the response's."""
    store, responses, _ = place.parts(**given)
    made = await store.create("acme", metadata={"said": said}, user=user)
    response = new_response_id(made.id)
    items = [
        StoredItem(f"msg_{response}_in", "user", said, response=response),
        StoredItem(f"msg_{response}_out", "assistant", f"{said}!", response=response),
    ]
    await store.turns.commit(
        "acme",
        made.id,
        response=response,
        items=items,
        record={"response": {"id": response}},
        state={"heard": said},
    )
    assert await store.summaries.keep("acme", made.id, items[1].id, f"On {said}.", forgotten=0)
    fact = NewFact("likes", f"Likes {said}.")
    await place.profiles(**given).learn("acme", user, [fact], response=response)
    await responses.give_feedback("acme", response, {"rating": "up", "comment": f"good {said}"})
    return made.id, response


async def test_nothing_that_anybody_said_lies_there_in_the_clear(place: Place) -> None:
    await talk(place, "ann", "secret")
    assert b"secret" not in await place.values()
    assert b"ann" not in b"".join(await place.keys()) + await place.values()


async def test_everything_of_a_user_is_erased_and_nobody_elses(place: Place) -> None:
    anns, _ = await talk(place, "ann", "one")
    bobs, _ = await talk(place, "bob", "two")
    store, _, archive = place.parts()
    claims = IdempotencyStore(
        place.pool,
        key_prefix="kept",
        settings=ResponsesSettings(),
        seal=Seal(place.file.read()),
        lease_s=9,
    )
    claim = await claims.claim("acme", "key", fingerprint="f", subject=anns)
    await claims.answered(
        "acme", claim, status=200, content_type="a", body=b"one", conversation=anns
    )
    found, profile = await archive.find(ANN)
    assert (found.session, found.items, found.responses, found.feedback) == (anns, 2, 1, 1)
    assert (profile.session, profile.facts) == (user_session("acme", "ann"), 1)
    assert 0 < profile.expires_s <= 100
    erased = await archive.erase(ANN)
    assert [kept.session for kept in erased] == [anns, profile.session]
    assert await archive.find(ANN) == []
    left = (bobs.encode(), user_session("acme", "bob").encode())
    assert all(any(name in key for name in left) for key in await place.keys())
    assert await place.profiles().get("acme", "ann") == ()
    assert len(await place.profiles().get("acme", "bob")) == 1
    with pytest.raises(ConversationNotFound):
        await store.get("acme", anns)
    assert (await store.get("acme", bobs)).user == "bob"
    assert await archive.find(Scope("rival")) == []


async def test_an_export_holds_all_that_was_said(place: Place) -> None:
    conversation, response = await talk(place, "ann", "one")
    _, _, archive = place.parts()
    lines = [line async for line in archive.export(ANN)]
    assert [line["type"] for line in lines] == [
        "conversation",
        "item",
        "item",
        "state",
        "summary",
        "response",
        "feedback",
        "fact",
    ]
    assert lines[0]["metadata"] == {"said": "one"}
    assert [(line["content"], line["current"]) for line in lines[1:3]] == [
        ("one", True),
        ("one!", True),
    ]
    assert (lines[3]["value"], lines[4]["text"]) == ({"heard": "one"}, "On one.")
    assert (lines[3]["after"], lines[4]["until"]) == (lines[2]["id"], lines[2]["id"])
    assert (lines[7]["text"], lines[7]["response"]) == ("Likes one.", response)
    assert {line.get("conversation", conversation) for line in lines} == {conversation}
    rated = [line async for line in archive.rated_turns(Scope("acme"))]
    assert rated == [
        {
            "messages": [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "one!"},
            ],
            "rating": "up",
            "comment": "good one",
            "response_id": response,
        }
    ]


async def test_what_is_there_is_sealed_with_a_new_key_and_the_old_one_forgotten(
    place: Place,
) -> None:
    before, _ = await talk(place, "ann", "one")
    plain, _ = await talk(place, "bob", "two", sealed=False)
    with pytest.raises(StateUnavailable, match="parley data reseal"):
        await place.parts()[0].get("acme", plain)
    place.file.rotate()
    changed, left = await place.parts()[2].reseal()
    assert (changed, left) == (16, {})
    place.file.retire()
    store, _, archive = place.parts()
    for conversation in (before, plain):
        assert len((await store.load("acme", conversation))[1]) == 2
    for user in ("ann", "bob"):
        assert len(await place.profiles().get("acme", user)) == 1
    assert len([line async for line in archive.export(Scope("acme"))]) == 16
    assert await archive.reseal() == (0, {})
