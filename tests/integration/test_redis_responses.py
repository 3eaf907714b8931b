"""Journals, leases and idempotency keys in a real Redis, without anything around them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from serve_app.api.body import parse_body
from serve_app.api.reply import Extras
from serve_app.api.response_object import ResponseObject
from serve_app.api.response_stream import ResponseStreamEncoder
from serve_app.api.responses import ResponseRequest
from serve_app.errors import IdempotencyConflict, IdempotencyMismatch, ResponseNotFound
from serve_app.ingress.following import Follower
from serve_app.settings import RedisSettings, ResponsesSettings
from serve_app.state.connection import RedisPool
from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.idempotency import Claim, IdempotencyStore
from serve_app.state.journal import JournalWriter
from serve_app.state.keyspace import conversation_of, new_response_id
from serve_app.state.responses import ResponseStore
from serve_app.state.sealing import Seal
from serve_app.state.server import RedisServer
from serve_app.state.turns import TurnBegin, TurnStore

INTERVAL_S = 0.02


@pytest.fixture
async def scripts(shared_redis: RedisServer) -> AsyncIterator[ConversationScripts]:
    url = shared_redis.url()
    assert url is not None
    pool = RedisPool(url, RedisSettings())
    yield ConversationScripts(pool, key_prefix="runs", ttl_s=100, max_items=100)
    await pool.close()


@dataclass
class Run:
    """A response that says what it is told to."""

    tenant: str = "acme"
    response: str = field(default_factory=new_response_id)
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        body = orjson.dumps({"model": "m", "input": "Hi"})
        request = parse_body(body, ResponseRequest, max_depth=9)
        self.object = ResponseObject.new(
            request, response=self.response, item="msg_1", model="m", created=7, stored=True
        )
        self.object.add(Extras(), None)
        self.encoder = ResponseStreamEncoder(self.object)
        self.events = self.encoder.start()

    def take(self, behind: int) -> list[bytes]:
        return self.events[behind:]

    def end(self, reason: str) -> None:
        self.ended.append(reason)

    async def begin(self, scripts: ConversationScripts, *, lease_s: float = 60.0) -> None:
        draft = {
            "response": self.object.in_progress(),
            "item": "msg_1",
            "input": [],
            "began": False,
            "cuts": [],
        }
        begin = TurnBegin(self.response, owner="me", lease_s=lease_s, draft=draft, new=True)
        await TurnStore(scripts).begin(self.tenant, conversation_of(self.response), begin)


def settings(**given: Any) -> ResponsesSettings:
    return ResponsesSettings(**({"journal_interval_s": INTERVAL_S} | given))


def follower(scripts: ConversationScripts) -> Follower:
    return Follower(ResponseStore(scripts, settings()), settings(), "other")


async def until(condition: Any) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        await asyncio.sleep(INTERVAL_S / 2)


async def test_many_responses_and_many_tokens_are_one_write(scripts: ConversationScripts) -> None:
    runs = [Run() for _ in range(8)]
    writer = JournalWriter(scripts, settings(journal_interval_s=0.2), "me")
    for run in runs:
        await run.begin(scripts)
        writer.keep(run, events=True)
        run.events += [run.encoder.delta(f"word{n}") for n in range(50)]
    await until(lambda: writer.writes)
    assert writer.writes == 1
    store = ResponseStore(scripts, settings())
    for run in runs:
        progress = await store.progress("acme", run.response, behind="0")
        assert [entry.first for entry in progress.entries] == [0]
        assert progress.entries[0].events == b"".join(run.events)
        writer.forget(run.response)


async def test_a_journal_expires_and_is_bounded(scripts: ConversationScripts) -> None:
    run = Run()
    await run.begin(scripts)
    writer = JournalWriter(scripts, settings(journal_entries=200, journal_ttl_s=50), "me")
    writer.keep(run, events=True)
    await until(lambda: writer.writes)
    journal = scripts.keys("acme", conversation_of(run.response)).journal(run.response)
    async with scripts.redis.client("conversation") as client:
        assert 48 <= await client.ttl(journal) <= 50
    writer.forget(run.response)


async def test_whoever_makes_a_response_is_told_to_end_it(scripts: ConversationScripts) -> None:
    cancelled, deleted = Run(), Run()
    writer = JournalWriter(scripts, settings(lease_s=0.2), "me")
    store = ResponseStore(scripts, settings())
    for run in (cancelled, deleted):
        await run.begin(scripts)
        writer.keep(run, events=True)
    asked, record = await store.cancel("acme", cancelled.response)
    assert (asked, record["response"]["status"]) == (True, "in_progress")
    await store.delete("acme", deleted.response)
    await until(lambda: cancelled.ended and deleted.ended)
    assert (cancelled.ended[0], deleted.ended[0]) == ("cancel", "lost")
    for run in (cancelled, deleted):
        writer.forget(run.response)


async def test_a_response_whose_replica_died_fails_with_what_was_read_of_it(
    scripts: ConversationScripts,
) -> None:
    run = Run()
    await run.begin(scripts)
    writer = JournalWriter(scripts, settings(lease_s=0.3), "me")
    writer.keep(run, events=True)
    run.events += [run.encoder.delta(text) for text in ("Once", " upon", " a")]
    await until(lambda: writer.writes)
    writer.forget(run.response)  # it is dead: nothing is renewed any more
    streams = [
        [event async for event in follower(scripts).events("acme", run.response)] for _ in range(2)
    ]
    first, again = (b"".join(stream) for stream in streams)
    assert first == again
    assert first.startswith(b"".join(run.events))
    assert first.count(b"event: response.failed") == 1
    record = await follower(scripts).record("acme", run.response)
    assert record["response"]["error"]["type"] == "response_lost"
    assert record["response"]["output"][0]["content"][0]["text"] == "Once upon a"
    assert not await ResponseStore(scripts, settings()).conclude(
        "acme", run.response, "me", {"response": {}}
    )


async def test_what_nobody_was_told_of_leaves_nothing(scripts: ConversationScripts) -> None:
    run = Run()
    await run.begin(scripts)
    store = ResponseStore(scripts, settings())
    await store.abandon("acme", run.response, "me")
    with pytest.raises(ResponseNotFound):
        await store.get("acme", run.response)
    async with scripts.redis.client("conversation") as client:
        root = scripts.keys("acme", conversation_of(run.response)).root
        assert await client.keys(f"{root}*") == []


async def test_an_idempotency_key_stands_for_one_request(scripts: ConversationScripts) -> None:
    store = IdempotencyStore(
        scripts.redis,
        key_prefix="runs",
        settings=settings(),
        seal=Seal(),
        lease_s=0.2,
    )

    def claim(fingerprint: str = "f", subject: str = "s", tenant: str = "acme") -> Any:
        return store.claim(tenant, "key", fingerprint=fingerprint, subject=subject)

    conversation = conversation_of(new_response_id())
    first = await claim()
    with pytest.raises(IdempotencyConflict):
        await claim()
    with pytest.raises(IdempotencyMismatch):
        await claim("g")
    assert (await claim("g", tenant="other")).subject == "s"
    await asyncio.sleep(0.25)
    # Whoever carried it out is gone: the next one makes the same thing.
    second = await claim(subject="another")
    assert second.subject == "s"
    kept = {"status": 200, "content_type": "text/plain", "conversation": conversation}
    await store.answered("acme", first, body=b"late", **kept)
    await store.answered("acme", second, body=b"done", **kept)
    assert (await claim()).answer == (200, "text/plain", b"done")
    with pytest.raises(IdempotencyMismatch):
        await claim("g")


@dataclass
class Keyed:
    """Claims on one key, as several replicas make them."""

    store: IdempotencyStore
    key: str

    async def claim(self, subject: str = "new") -> Claim:
        return await self.store.claim("acme", self.key, fingerprint="f", subject=subject)

    async def taken(self) -> bool:
        try:
            await self.claim()
        except IdempotencyConflict:
            return True
        return False


def keyed(scripts: ConversationScripts, *, lease_s: float) -> Keyed:
    given = {"settings": settings(), "seal": Seal(), "lease_s": lease_s}
    return Keyed(IdempotencyStore(scripts.redis, key_prefix="runs", **given), new_response_id())


async def test_a_key_is_held_for_as_long_as_its_request_takes(
    scripts: ConversationScripts,
) -> None:
    asked = keyed(scripts, lease_s=0.15)
    claim = await asked.claim("first")
    async with asked.store.held(claim):
        give_up = time.monotonic() + 0.5
        while time.monotonic() < give_up:  # several times its lease
            assert await asked.taken()
            await asyncio.sleep(INTERVAL_S)
    # Nobody renews the lease any more, as if its replica had been killed.
    give_up = time.monotonic() + 10
    while await asked.taken():
        assert time.monotonic() < give_up
        await asyncio.sleep(INTERVAL_S)


async def test_a_key_whose_outcome_is_unknown_is_free_at_once_for_the_same_request(
    scripts: ConversationScripts,
) -> None:
    asked = keyed(scripts, lease_s=60)
    await asked.store.release(await asked.claim("first"))
    second = await asked.claim("second")
    assert second.subject == "first"
    with pytest.raises(IdempotencyConflict):
        await asked.claim()
    # What was refused has made nothing: the next one begins anew.
    await asked.store.free(second)
    assert (await asked.claim("third")).subject == "third"


async def test_a_claim_that_is_sent_twice_because_its_answer_was_lost_is_no_conflict(
    scripts: ConversationScripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = keyed(scripts, lease_s=60)
    monkeypatch.setattr(secrets, "token_hex", lambda _: "the same")
    first = await asked.claim("first")
    assert await asked.claim("first") == first
    monkeypatch.undo()
    with pytest.raises(IdempotencyConflict):
        await asked.claim("first")
