"""Clients that leave and generators that die: nothing hangs, nothing leaks, nothing ends in silence."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from ingress_harness import (
    MODEL,
    PATIENCE_S,
    VOCAB,
    Service,
    service,
    settings_with,
    simulated,
    wait_until,
)

from serve_app.generation import channels
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.ingress import replies
from serve_app.messages.dialogue import PlanTurn, TurnPlan
from serve_app.messages.tokenization import TextEncoding

CHAT = "/v1/chat/completions"
LONG = 250
# A reply of LONG tokens takes seconds: nobody who leaves or dies is too late.
STEP_S = 0.02
# For replies that are read to their end.
SHORT_STEP_S = 0.01
# What a client does that doesn't wait for its reply.
IMPATIENT = httpx.Timeout(PATIENCE_S, read=0.5)

# Streams end with their generator.
NO_MOVES = {"max_moves": 0}

Serve = Callable[..., Service]


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close idle channels soon."""
    monkeypatch.setattr(channels, "LINGER_S", 0.2)


@pytest.fixture
def serve(bundled_tokenizer: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts one service whose replies take seconds."""
    running = []

    def start(replicas: int = 1, step_s: float = STEP_S, **given: Any) -> Service:
        options: dict[str, Any] = {"backends": [simulated(step_s=step_s)] * replicas} | given
        context = service(bundled_tokenizer, tmp_path, **options)
        running.append(context)
        return context.__enter__()

    yield start
    for context in running:
        context.__exit__(None, None, None)


def body(text: str = "Hello", **given: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": asked, "max_tokens": LONG, "temperature": 0} | given


def start_streaming(http: httpx.Client, **given: Any) -> tuple[httpx.Response, Iterator[str]]:
    """Open a stream and read until its first text has come."""
    request = http.build_request("POST", CHAT, json=body(stream=True, **given))
    answer = http.send(request, stream=True)
    lines = (line for line in answer.iter_lines() if line)
    next(lines)
    next(lines)
    return answer, lines


def events_of(lines: Iterator[str]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in lines if "[DONE]" not in line]


@pytest.mark.parametrize("n", [1, 3])
def test_leaving_in_the_middle_frees_the_slot(serve: Serve, n: int) -> None:
    running = serve()
    with running.http() as http:
        http.post(CHAT, json=body(max_tokens=1))
        running.wait_until_idle()
        wait_until(lambda: not running.replicas[0].channels.subscribers, "the channel's end")
        tasks = running.tasks
        answer, _ = start_streaming(http, n=n)
        assert running.streams == n
        answer.close()
        running.wait_until_idle()
        assert running.generated < n * LONG / 2
    wait_until(lambda: running.tasks <= tasks, "the end of all tasks")


def test_leaving_a_request_that_does_not_stream_frees_the_slot(serve: Serve) -> None:
    running = serve()
    with running.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=body(), timeout=IMPATIENT)
    running.wait_until_idle()
    assert running.generated < LONG / 2


def test_leaving_before_admission_leaves_no_stream_behind(serve: Serve) -> None:
    running = serve()
    replica = running.replicas[0]
    running.call(replica.admitting.clear)
    with running.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=body(), timeout=IMPATIENT)
    wait_until(lambda: running.like_serve.cancelled, "the end of the request")
    assert running.streams == 0
    running.call(replica.admitting.set)
    wait_until(lambda: replica.cancellations, "the cancellation")
    running.wait_until_idle()
    assert running.generated < LONG / 2


def test_leaving_before_the_first_token_frees_the_slot(serve: Serve) -> None:
    running = serve(backends=[simulated(prefill_token_s=0.01)])
    with running.http() as http:
        request = http.build_request("POST", CHAT, json=body("word " * 400, stream=True))
        answer = http.send(request, stream=True)
        wait_until(lambda: running.streams == 1)
        answer.close()
        running.wait_until_idle()
    assert running.generated == 0


def test_leaving_the_queue_leaves_no_stream_behind(serve: Serve) -> None:
    running = serve(step_s=SHORT_STEP_S, settings=settings_with(generator={"slots": 1}))
    with running.http() as http:
        first, lines = start_streaming(http)
        request = http.build_request("POST", CHAT, json=body("Me too", stream=True))
        second = http.send(request, stream=True)
        wait_until(lambda: running.streams == 2)
        second.close()
        wait_until(lambda: running.streams == 1)
        assert events_of(lines)[-1]["choices"][0]["finish_reason"] == "length"
        first.close()


def test_one_clients_leaving_does_not_disturb_the_others(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve(step_s=SHORT_STEP_S)
    with running.http() as http:
        alone = http.post(CHAT, json=body("Other", max_tokens=100)).json()
        wait_until(lambda: not running.replicas[0].calls, "the end of the channel")
        # The first one's call carries the frames of all, and must still be there to be counted.
        monkeypatch.setattr(channels, "LINGER_S", PATIENCE_S)
        first, _ = start_streaming(http, text="First")
        other, lines = start_streaming(http, text="Other", max_tokens=100)
        first.close()
        events = events_of(lines)
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert len(running.replicas[0].calls) == 1
        other.close()
    # The stream's first text was read before.
    assert alone["choices"][0]["message"]["content"].endswith(text)
    assert len(events) > 50


def test_a_reply_that_was_read_to_its_end_is_not_cancelled(serve: Serve) -> None:
    running = serve()
    with running.http() as http:
        for stream in (False, True):
            assert http.post(CHAT, json=body(max_tokens=3, stream=stream)).status_code == 200
    running.wait_until_idle()
    assert running.replicas[0].cancellations == []


def test_a_dead_generator_ends_its_streams_with_an_error_event(serve: Serve) -> None:
    running = serve(replicas=2, step_s=SHORT_STEP_S, settings=settings_with(ingress=NO_MOVES))
    with running.http() as http:
        streams = [start_streaming(http, text=f"Topic {number}") for number in range(6)]
        placed = running.generators.placed
        assert set(placed) == {"replica-0", "replica-1"}
        running.call(running.replicas[0].die)
        for name, (answer, lines) in zip(placed, streams, strict=True):
            last = events_of(lines)[-1]
            if name == "replica-0":
                assert last["error"]["code"] == "generator_lost"
                assert last["error"]["message"]
            else:
                assert last["choices"][0]["finish_reason"] == "length"
            answer.close()
        # The next ones go where somebody lives.
        assert http.post(CHAT, json=body("Topic 0", max_tokens=2)).status_code == 200
    running.wait_until_idle()


def test_the_official_client_sees_a_lost_generator_as_an_error(serve: Serve) -> None:
    running = serve(settings=settings_with(ingress=NO_MOVES))
    with running.openai() as client:
        chunks = client.chat.completions.create(**body(stream=True))
        next(chunks)
        running.call(running.replicas[0].die)
        with pytest.raises(openai.APIError) as caught:
            list(chunks)
        assert caught.value.code == "generator_lost"  # type: ignore[comparison-overlap]
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(**body())
        assert (refused.value.status_code, refused.value.code) == (503, "generator_lost")


def test_a_lost_generator_fails_a_response_by_its_last_event(serve: Serve) -> None:
    running = serve(settings=settings_with(ingress=NO_MOVES))
    with running.openai() as client:
        events = []
        stream = client.responses.create(
            model=MODEL, input="Hello", max_output_tokens=LONG, stream=True
        )
        for event in stream:
            events.append(event)
            if len(events) == 8:
                running.call(running.replicas[0].die)
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.type == "generator_lost"  # type: ignore[attr-defined]
    assert last.sequence_number == len(events) - 1


def test_a_silent_generator_is_given_up(serve: Serve) -> None:
    running = serve(settings=settings_with(ingress=NO_MOVES | {"generator_silence_s": 1.5}))
    with running.http() as http:
        answer, lines = start_streaming(http)
        running.replicas[0].silent = True
        assert events_of(lines)[-1]["error"]["code"] == "generator_lost"
        answer.close()
        # Should it be alive after all, it doesn't go on for nobody.
        running.wait_until_idle()
        wait_until(lambda: not running.replicas[0].channels.subscribers)
        running.replicas[0].silent = False
        assert http.post(CHAT, json=body(max_tokens=2)).status_code == 200


def test_a_heartbeat_keeps_a_slow_generator_from_being_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "HEARTBEAT_S", 0.2)
    running = serve(
        backends=[simulated(prefill_token_s=0.02)],
        settings=settings_with(ingress={"generator_silence_s": 1.5}),
    )
    with running.http() as http:  # a prompt of two seconds
        assert http.post(CHAT, json=body("word " * 70, max_tokens=1)).status_code == 200


def test_a_failing_step_ends_its_streams_with_an_error_event(serve: Serve) -> None:
    class Failing(SimulatedBackend):
        def step(self, prompts: Any, tokens: Any, lengths: Any, drafts: Any = ()) -> Any:
            if lengths.max(initial=0) > 100:
                message = "the secret sauce"
                raise RuntimeError(message)
            return super().step(prompts, tokens, lengths, drafts)

    running = serve(backends=[lambda: Failing(vocab_size=VOCAB, avoid=(2,))])
    with running.http() as http:
        answer = http.post(CHAT, json=body(stream=True))
        (*_, last) = events_of(iter([line for line in answer.text.splitlines() if line]))
        assert last["error"]["code"] == "engine_error"
        assert "secret" not in answer.text
        whole = http.post(CHAT, json=body())
        assert (whole.status_code, whole.json()["error"]["code"]) == (500, "engine_error")


def test_a_request_that_runs_out_of_time_says_so(serve: Serve) -> None:
    running = serve()
    with running.http() as http:
        answer = http.post(CHAT, json=body(stream=True, timeout=0.5))
        (*_, last) = events_of(iter([line for line in answer.text.splitlines() if line]))
        assert last["error"]["code"] == "deadline_exceeded"
        whole = http.post(CHAT, json=body(timeout=0.5))
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_exceeded")
    running.wait_until_idle()


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/completions"])
def test_time_spent_before_generation_counts(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    running = serve()
    late_s = 0.0
    monkeypatch.setattr(
        replies, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + late_s)
    )
    plan, encode = running.dialogue.plan, running.tokenizer.encode_text

    async def plan_late(turn: PlanTurn) -> TurnPlan:
        nonlocal late_s
        late_s += 20
        return await plan(turn)

    async def encode_late(text: str) -> TextEncoding:
        nonlocal late_s
        late_s += 20
        return await encode(text)

    monkeypatch.setattr(running.dialogue, "plan", plan_late)
    monkeypatch.setattr(running.tokenizer, "encode_text", encode_late)
    asks = {
        CHAT: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
        "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    }
    with running.http() as http:
        answer = http.post(path, json={"model": MODEL, "timeout": 60, **asks[path]})
        assert answer.status_code == 200
        (request,) = running.generators.requests
        assert 0 < request.timeout_s <= 40
        answer = http.post(path, json={"model": MODEL, "timeout": 15, **asks[path]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert len(running.generators.requests) == 1


def test_a_plan_that_never_comes_ends_with_the_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve()

    async def never(turn: PlanTurn) -> TurnPlan:
        await asyncio.Event().wait()
        raise AssertionError(turn)

    monkeypatch.setattr(running.dialogue, "plan", never)
    with running.http() as http:
        answer = http.post(CHAT, json=body(stream=True, timeout=0.2))
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_a_generator_that_takes_nothing_costs_no_more_than_the_time(serve: Serve) -> None:
    running = serve()
    running.client._admission_s = 10 * PATIENCE_S
    running.call(running.replicas[0].admitting.clear)
    with running.http() as http:
        answer = http.post(CHAT, json=body(timeout=0.5))
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    running.call(running.replicas[0].admitting.set)
    running.wait_until_idle()


def test_a_generator_that_takes_nothing_is_an_overload(serve: Serve) -> None:
    running = serve()
    running.client._admission_s = 0.2
    running.call(running.replicas[0].admitting.clear)
    with running.http() as http:
        answer = http.post(CHAT, json=body(stream=True), timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    # What nobody waits for any more is taken back.
    wait_until(lambda: not running.replicas[0].calls, "the end of the call")
    running.wait_until_idle()
