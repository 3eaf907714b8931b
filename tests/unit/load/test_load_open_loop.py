"""Requests that arrive whether or not the server keeps up, with prompts of an exact length."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sse_server import END, HEAD, Piece, Request, chunk, event, refusal, serving, usage, word

from load.arrivals import Arrival, OpenLevel, poisson, send_all
from load.chats import Target
from load.http_client import Address
from load.measurements import Reply, TokenCounts
from load.open_loop import measure_rate, prompts_for
from load.prompts import PromptShape, SyntheticPrompts
from serve_app.errors import ConfigError
from serve_app.messages.tokenization import Message, TokenizerInfo
from serve_app.tokenization.tokenizer import ChatTokenizer

PROMPT = (Message("user", "Hello"),)
SHAPE = PromptShape(tokens=160, shared=96, groups=4)


async def count_with_model(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> int:
    return len(tokenizer.encode_chat(tuple(messages)).tokens)


@pytest.fixture(scope="module")
def tokenizer(bundled_tokenizer: Path) -> ChatTokenizer:
    info = TokenizerInfo("m", 49152, 8192, (2,), 0)
    return ChatTokenizer(bundled_tokenizer, info)


@pytest.fixture(scope="module")
def fitted(tokenizer: ChatTokenizer) -> SyntheticPrompts:
    count = partial(count_with_model, tokenizer)
    return asyncio.run(SyntheticPrompts.fit(SHAPE, count, seed=5))


async def test_every_prompt_has_exactly_its_tokens_and_groups_share_a_beginning(
    fitted: SyntheticPrompts, tokenizer: ChatTokenizer
) -> None:
    prompts = [await fitted.prompt(number) for number in range(8)]
    encoded = [tokenizer.encode_chat(prompt).tokens for prompt in prompts]
    assert {len(tokens) for tokens in encoded} == {SHAPE.tokens}
    for one, other in itertools.combinations(range(8), 2):
        alike = _alike(encoded[one], encoded[other])
        if one % SHAPE.groups == other % SHAPE.groups:
            assert SHAPE.shared <= alike < SHAPE.tokens - 8
        else:
            assert alike < SHAPE.shared / 2


async def test_a_prompt_too_short_for_the_template_says_how_long_it_must_be(
    tokenizer: ChatTokenizer,
) -> None:
    count = partial(count_with_model, tokenizer)
    with pytest.raises(ConfigError, match=r"ask for [0-9]+ or more"):
        await SyntheticPrompts.fit(PromptShape(tokens=10), count, seed=0)


async def test_a_tokenizer_without_words_is_refused() -> None:
    async def letters(messages: Sequence[Message]) -> int:
        return sum(len(message.content) for message in messages)

    with pytest.raises(ConfigError, match=r"use load\.bench"):
        await SyntheticPrompts.fit(SHAPE, letters, seed=0)


def test_arrivals_are_a_poisson_process() -> None:
    times = poisson(50.0, 200.0, seed=1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert variance == pytest.approx(mean**2, rel=0.1)  # as of an exponential distribution
    assert times == sorted(times)
    assert times == poisson(50.0, 200.0, seed=1) != poisson(50.0, 200.0, seed=2)


async def test_a_server_that_stalls_is_charged_for_everybody_who_was_due() -> None:
    """Ten are due within a tenth of a second, and the server lets one through at a time."""
    turn = asyncio.Lock()

    async def stall() -> None:
        async with turn:
            await asyncio.sleep(0.03)

    reply = [
        stall,
        HEAD,
        chunk(word("late")),
        chunk(usage(5, 0, 1)),
        chunk(b"data: [DONE]\n\n"),
        END,
    ]
    async with serving(lambda _: reply) as server:
        target = Target(Address.of(server.url), "some-model")
        times = [number / 100 for number in range(10)]
        began, arrivals = await send_all(target, [PROMPT] * 10, times, output_tokens=1)
    assert server.connections > 3  # nobody waits for another one's answer
    level = OpenLevel.of(arrivals, rate=100.0, seconds=0.1, began=began)
    assert level.replies == 10
    assert level.late_ms is not None
    assert level.late_ms.p50 < 30
    assert level.ttft_ms is not None
    assert level.ttft_ms.p99 > 180  # the last one was due after 90 ms and answered after 300


def arrival(due: float, *, first: float, end: float, tokens: int, late: float = 0.0) -> Arrival:
    reply = Reply(sent_at=due)
    reply.arrived(first)
    reply.tokens = TokenCounts(prompt=160, completion=tokens)
    return Arrival(due, reply, sent_at=due + late, ended_at=end, status=200)


def test_goodput_counts_what_came_whole_in_time_and_while_requests_arrived() -> None:
    failed = arrival(3.0, first=3.1, end=4.0, tokens=100)
    failed.reply.error = "cut"
    refused = Arrival(4.0, Reply(sent_at=4.0, error="503 overloaded"), 4.0, 4.02, status=503)
    arrivals = [
        arrival(0.1, first=0.2, end=0.9, tokens=100),  # while the server was filling
        arrival(2.0, first=2.5, end=4.0, tokens=60),
        arrival(3.0, first=5.5, end=7.0, tokens=90),  # too late
        arrival(7.0, first=7.2, end=9.0, tokens=100),  # after requests had ceased to arrive
        failed,
        refused,
        replace(refused, retry_after_s=1.0),
    ]
    level = OpenLevel.of(arrivals, rate=1.0, seconds=8.0, began=0.0, prompt_tokens=161, ttft_s=1.0)
    assert level.goodput == pytest.approx(60 / 6)
    assert level.in_time == pytest.approx(3 / 7)
    assert (level.requests, level.replies, level.refusals, level.unsaid) == (7, 4, 2, 1)
    assert level.errors == {"cut": 1}
    assert level.other_length == 4
    assert level.refusal_ms is not None
    assert level.refusal_ms.p99 == pytest.approx(20.0)


async def test_a_rate_is_measured_with_the_prompts_that_the_server_counts(
    tokenizer: ChatTokenizer,
) -> None:
    def answer(request: Request) -> Sequence[Piece]:
        messages = tuple(Message(**message) for message in request.body["messages"])
        tokens = len(tokenizer.encode_chat(messages).tokens)
        if request.path == "/tokenize":
            return [refusal(200, {"count": tokens})]
        events = [word("Yes."), usage(tokens, 0, 1), b"data: [DONE]\n\n"]
        if len(server.requests) % 3 == 0:
            error = event({"error": {"code": "overloaded"}})[6:-2]
            head = b"HTTP/1.1 503 No\r\nretry-after: 2\r\ncontent-length: %d\r\n\r\n" % len(error)
            return [head + error]
        return [HEAD, *map(chunk, events), END]

    async with serving(answer) as server:
        target = Target(Address.of(server.url), "some-model")
        async with prompts_for(target, replace(SHAPE, groups=2), seed=3) as prompts:
            level = await measure_rate(
                target, prompts, rate=40.0, seconds=1.0, output_tokens=1, ttft_s=1.0, seed=3
            )
    assert level.replies > 10
    assert level.refusals > 5
    assert level.replies + level.refusals == level.requests
    assert (level.errors, level.unsaid, level.other_length) == ({}, 0, 0)
    asked = [request for request in server.requests if request.path == "/v1/chat/completions"]
    assert len({request.body["messages"][1]["content"] for request in asked}) == len(asked)
    assert len({request.body["messages"][0]["content"] for request in asked}) == 2


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one)
    )
