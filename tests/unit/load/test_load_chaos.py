"""`python -m load.chaos`: what its clients count, and when a row of its table is as hoped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
import typer
from sse_server import Request, chat, refusal, serving

from load import chaos, chaos_clients
from load.chaos import Episode
from load.chaos_clients import Kept, Seen, Talker
from load.http_client import Address
from load.measurements import Reply, TokenCounts
from load.workload import Workload
from serve_app.telemetry import metrics

WORDS = ["one ", "two ", "three ", "four"]
WORKLOAD = Workload(turns=2, output_tokens=4, seed=1)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_clients, "_PAUSE_S", 0.01)


def whole(*times: float, tokens: int = 4) -> Reply:
    reply = Reply(sent_at=times[0] - 1.0, tokens=TokenCounts(completion=tokens))
    for at in times:
        reply.arrived(at)
    return reply


def test_pauses_are_between_texts_of_one_reply_or_two() -> None:
    seen = Seen()
    seen.add(whole(10.0, 10.5, 11.0), expected=4)
    seen.add(whole(16.0, 16.25), expected=4)
    assert seen.texts == [10.0, 10.5, 11.0, 16.0, 16.25]
    assert seen.longest_pause(10.1, 20.0) == 5.0
    assert seen.longest_pause(16.1, 20.0) == 0.25
    # Nothing came any more.
    assert seen.longest_pause(16.5, 20.0) == 3.5
    assert seen.whole == [9.0, 15.0]


def test_a_reply_that_misses_tokens_is_an_error() -> None:
    seen = Seen()
    seen.add(whole(10.0, tokens=3), expected=4)
    assert [kind for _, kind in seen.errors] == ["wrong length"]
    assert seen.whole == []


def usual(victim: str, **given: Any) -> Episode:
    fields: dict[str, Any] = {
        "victim": victim,
        "killed": 1,
        "seconds": 20.0,
        "stateless": {},
        "stored": {},
        "moved": 0,
        "pause_s": 2.0,
        "whole_after_s": 5.0,
    }
    return Episode(**(fields | given))


@pytest.mark.parametrize("victim", ["nobody", *chaos.VICTIMS])
def test_nothing_seen_is_as_hoped_and_a_victim_that_stays_away_is_not(victim: str) -> None:
    assert usual(victim).as_hoped
    assert not usual(victim, whole_after_s=None).as_hoped


@pytest.mark.parametrize(
    ("victim", "seen", "hoped"),
    [
        ("Generator", {"stored": {"generator_lost": 1}}, False),
        ("Tokenizer", {"stateless": {"503 overloaded": 1}}, False),
        ("Ingress", {"stateless": {"cut": 9}, "stored": {"503 overloaded": 1}}, True),
        ("haproxy", {"stateless": {"connect": 9, "cut": 1}}, True),
        ("haproxy", {"stateless": {"generator_lost": 1}}, False),
        ("redis-server", {"stored": {"503 state_unavailable": 3}}, True),
        ("redis-server", {"stateless": {"cut": 1}}, False),
    ],
)
def test_what_clients_may_see(victim: str, seen: dict[str, Any], *, hoped: bool) -> None:
    assert usual(victim, **seen).as_hoped is hoped


def test_victims_are_named_as_processes_are() -> None:
    assert chaos._kinds("Generator, haproxy") == ["Generator", "haproxy"]
    with pytest.raises(typer.BadParameter, match="names no processes"):
        chaos._kinds("Generator,everybody")


def test_moves_are_counted_under_the_name_that_is_scraped() -> None:
    metrics.MOVES.labels("lost")
    names = {sample.name for family in metrics.MOVES.collect() for sample in family.samples}
    assert chaos._MOVES in names


async def talked(talker: Talker, until: Any) -> None:
    talking = asyncio.create_task(talker.talk())
    try:
        deadline = time.monotonic() + 10
        while not until() and not talking.done():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert not talking.done()
    finally:
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


async def test_a_question_that_fails_is_put_again_and_counted() -> None:
    asked: list[Any] = []

    def answer(got: Request) -> Sequence[bytes]:
        asked.append(got.body["messages"])
        if len(asked) in {2, 3}:
            return [refusal(503, {"error": {"code": "overloaded"}})]
        return chat(WORDS)

    async with serving(answer) as server:
        talker = Talker(Address.of(server.url), "m", WORKLOAD, number=0, stored=False)
        await talked(talker, lambda: len(talker.seen.whole) >= 3)
    assert [kind for _, kind in talker.seen.errors] == ["503 overloaded"] * 2
    assert asked[1] == asked[2] == asked[3]
    assert len(asked[4]) < len(asked[3])  # the next conversation


class Store:
    """A server of stored conversations, which stores one turn twice and forgets another."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.turns = 0

    def answer(self, got: Request) -> Sequence[bytes]:
        if got.path.endswith("/conversations"):
            return [refusal(200, {"id": "conv_1"})]
        if got.method == "GET":
            data = [{"content": [{"text": text}]} for text in self.items]
            return [refusal(200, {"data": data})]
        self.turns += 1
        reply = [f"{word}{self.turns} " for word in WORDS]
        said = [got.body["input"], "".join(reply)]
        self.items += {2: [], 3: said * 2}.get(self.turns, said)
        return streamed(reply)


def streamed(words: Sequence[str]) -> Sequence[bytes]:
    usage = {"input_tokens": 9, "output_tokens": len(words)}
    events: list[Any] = [{"type": "response.output_text.delta", "delta": word} for word in words]
    events.append({"type": "response.completed", "response": {"usage": usage}})
    body = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n"
    return [head.encode() + body]


async def test_what_is_stored_is_compared_with_what_was_told() -> None:
    store = Store()
    async with serving(store.answer) as server:
        talker = Talker(Address.of(server.url), "m", WORKLOAD, number=0, stored=True)
        await talked(talker, lambda: len(talker.seen.whole) >= 4)
        kept = await talker.kept()
    told = len(talker.seen.whole)
    assert kept == Kept(turns=told, lost=1, twice=1)
