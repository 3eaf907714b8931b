from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from sse_server import (
    HEAD,
    Answer,
    Request,
    chat,
    chunk,
    event,
    refusal,
    serving,
    word,
)

from load.chats import Target, first_model, measure
from load.http_client import Address, RequestFailed
from load.measurements import Level, TokenCounts
from load.supply import Plan
from load.workload import Workload

WORKLOAD = Workload(turns=3, system_tokens=20, prompt_tokens=10, output_tokens=4)


async def measured(answer: Answer, plan: Plan, timeout_s: float = 10.0) -> list[Level]:
    async with serving(answer) as server:
        target = Target(Address.of(server.url), "some-model", timeout_s=timeout_s)
        return await measure(target, WORKLOAD, plan)


def after_warm_up(answer: Answer, warm_up: int = 1) -> Answer:
    """Answer the warm-up well, and then as told."""
    requests = itertools.count()
    return lambda request: chat(["fine"]) if next(requests) < warm_up else answer(request)


async def test_every_turn_is_counted_and_the_warm_up_is_not() -> None:
    words = ["a ", "b ", "c ", "d"]
    one, two = await measured(lambda _: chat(words), Plan((1, 4), rounds=2))
    for level, conversations in ((one, 2), (two, 8)):
        turns = 3 * conversations
        assert level.conversations == conversations
        assert level.replies == turns
        assert level.errors == {}
        assert level.arrivals == 4 * turns
        assert level.uncounted == 0
        # Every turn's prompt but the first one's is no longer than what the one before has left.
        later = turns - conversations
        assert level.tokens == TokenCounts(10 * turns, 4 * turns, 4 * turns, 10 * later, 4 * later)
        assert level.tokens_per_s == pytest.approx(4 * turns / level.wall_s)
        assert level.ttft_ms is not None
        assert level.inter_token_ms is not None


async def test_as_many_conversations_are_held_at_once_as_told() -> None:
    everybody = asyncio.Barrier(5)  # nobody is answered before five have asked
    answer = [everybody.wait, *chat(["fine"])]
    (level,) = await measured(lambda _: answer, Plan((5,), rounds=2))
    assert level.replies == 30


async def test_the_client_keeps_the_history() -> None:
    async with serving(lambda _: chat(["An ", "answer."])) as server:
        target = Target(Address.of(server.url), "some-model", api_key="secret")
        await measure(target, WORKLOAD, Plan((1,), rounds=1))
        _, first, second, third = server.requests
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    assert first.headers["authorization"] == "Bearer secret"
    assert first.body["model"] == "some-model"
    assert first.body["max_tokens"] == 4
    assert first.body["stream_options"] == {"include_usage": True}
    turns = [request.body["messages"] for request in (first, second, third)]
    assert [len(messages) for messages in turns] == [2, 4, 6]
    assert turns[2][:4] == turns[1]
    assert turns[1][2] == {"role": "assistant", "content": "An answer."}


OVERLOADED = refusal(503, {"error": {"code": "overloaded", "type": "overloaded_error"}})
LOST = event({"error": {"code": "generator_lost"}})


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ([OVERLOADED], "503 overloaded"),
        ([refusal(500, "oops")], "500"),
        ([HEAD, chunk(word("half")), None], "cut"),
        ([HEAD, chunk(word("no end")), b"0\r\n\r\n"], "cut"),
        ([HEAD, chunk(word("half")), chunk(LOST), b"0\r\n\r\n"], "generator_lost"),
        ([HEAD, chunk(b"data: {\n\n"), b"0\r\n\r\n"], "malformed event"),
        ([None], "cut"),
    ],
)
async def test_a_failure_is_counted_by_its_kind_and_ends_the_conversation(
    answer: Sequence[bytes | None], kind: str
) -> None:
    (level,) = await measured(after_warm_up(lambda _: answer), Plan((1,), rounds=2))
    assert level.errors == {kind: 2}
    assert level.conversations == 2
    assert level.replies == 0
    assert level.tokens == TokenCounts()
    assert level.ttft_ms is None


async def test_a_reply_that_does_not_end_times_out() -> None:
    answer = after_warm_up(lambda _: [HEAD, chunk(word("and "))])
    (level,) = await measured(answer, Plan((1,), rounds=1), timeout_s=1.0)
    assert level.errors == {"timeout": 1}


async def test_one_failure_does_not_spoil_the_others() -> None:
    requests = itertools.count()

    def answer(_: Request) -> Sequence[bytes | None]:
        return [OVERLOADED] if next(requests) == 2 else chat(["fine"])

    (level,) = await measured(answer, Plan((1,), rounds=2))
    assert level.errors == {"503 overloaded": 1}
    assert level.replies == 4  # one before the failure, and the other conversation's three


async def test_a_server_that_answers_nobody_is_not_measured() -> None:
    with pytest.raises(RequestFailed, match="no question of the warm-up: 503 overloaded"):
        await measured(lambda _: [OVERLOADED], Plan((2,)))


async def test_responses_are_asked_for_and_counted() -> None:
    usage = {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 3}}
    events = [
        {"type": "response.output_text.delta", "delta": "Good "},
        {"type": "response.output_text.delta", "delta": "day"},
        {"type": "response.incomplete", "response": {"usage": usage}},
    ]
    reply = [HEAD, *(chunk(event(body)) for body in events), b"0\r\n\r\n"]
    async with serving(lambda _: reply) as server:
        target = Target(Address.of(server.url), "some-model", mode="responses")
        (level,) = await measure(target, WORKLOAD, Plan((1,), rounds=1))
    assert {request.path for request in server.requests} == {"/v1/responses"}
    assert level.replies == 3
    assert level.tokens == TokenCounts(27, 9, 6, held=18, spared=6)
    assert server.requests[-1].body["input"][2]["content"] == "Good day"


async def test_the_first_model_that_a_server_lists_is_found() -> None:
    async with serving(lambda _: [refusal(200, {"data": [{"id": "first"}, {"id": "x"}]})]) as one:
        assert await first_model(Address.of(one.url), None) == "first"
        assert (one.requests[0].method, one.requests[0].path) == ("GET", "/v1/models")


async def test_a_server_without_models_is_named() -> None:
    async with serving(lambda _: [refusal(200, {"data": []})]) as server:
        with pytest.raises(RequestFailed, match="name one with --model"):
            await first_model(Address.of(server.url), None)
