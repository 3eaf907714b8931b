"""The API of a real cluster with the real model, through the official client."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from cluster_home import REQUEST_S, ClusterHome

# The model's answer is the same on every CPU, however its kernels round.
QUESTION = "Complete this sentence: The capital of France is"
LONG = (
    "I am going to tell you about my village by the sea. It has a small harbour with nine boats, "
    "a bakery that opens at five in the morning, a school with two rooms, and a lighthouse that "
    "my grandfather kept for forty years. Which of these would you like to see first?"
)
BLOCK = 32  # generator.prefix_block: what is cached is a whole number of these


@pytest.fixture
def client(cluster: ClusterHome) -> Iterator[openai.OpenAI]:
    with cluster.client() as client:
        yield client


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_a_chat_completion_makes_sense(client: openai.OpenAI, model: str) -> None:
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=32,
    )
    assert completion.choices[0].finish_reason == "stop"
    assert "Paris" in (completion.choices[0].message.content or "")
    assert completion.usage is not None
    assert 0 < completion.usage.completion_tokens < 32


def test_a_streamed_chat_completion_is_the_same_piece_by_piece(
    client: openai.OpenAI, model: str
) -> None:
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=32,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    said = [piece for piece in pieces if piece]
    assert "Paris" in "".join(said)
    usage = chunks[-1].usage
    assert usage is not None
    # Every token that has text comes in a chunk of its own.
    assert len(said) == usage.completion_tokens


def test_the_account_of_a_streamed_chat_sums_up_to_what_its_client_waited(
    cluster: ClusterHome, model: str
) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me about the sea."}],
        "max_tokens": 64,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_timing": True},
    }
    with httpx.Client(base_url=cluster.url, timeout=REQUEST_S) as http:
        http.get("/health")  # the connection
        began = time.perf_counter()
        answer = http.post("/v1/chat/completions", json=body)
        took_ms = 1000 * (time.perf_counter() - began)
        *_, last, done = [line for line in answer.text.splitlines() if line]
        assert done == "data: [DONE]"
        told = json.loads(last.removeprefix("data: "))["parley"]["timing"]
        explained = cluster.run("explain", answer.headers["x-request-id"], "--json")
        assert explained.returncode == 0, explained.stderr
        kept = json.loads(explained.stdout)
        by_reply = http.get(f"/v1/requests/{kept['id']}/account")
    assert by_reply.json() == kept
    for account in (told, kept):
        stages = {
            one["stage"]: (one["transfer_ms"], one["compute_ms"]) for one in account["stages"]
        }
        parts_ms = sum(map(sum, stages.values()))
        assert parts_ms == pytest.approx(account["total_ms"], rel=0.05)
        # The rest is the connection's and HAProxy's.
        assert took_ms / 2 < account["total_ms"] <= took_ms
        assert min(map(min, stages.values())) >= 0
        # Calls between processes take time on their way, and what they ask for takes time there.
        for name in ("plan", "tokenize"):
            assert min(stages[name]) > 0
        assert stages["submit"][0] > 0
        assert stages["decode"][1] > stages["prefill"][1] > 0


def test_a_seeded_completion_can_be_had_again(client: openai.OpenAI, model: str) -> None:
    first, second = (
        client.completions.create(
            model=model,
            prompt="Once upon a time",
            max_tokens=24,
            temperature=1,
            seed=7,
            extra_body={"ignore_eos": True},
        )
        for _ in range(2)
    )
    assert first.choices[0].text == second.choices[0].text
    assert first.usage is not None
    assert first.usage.completion_tokens == 24


def test_the_second_turn_finds_the_first_in_the_cache(client: openai.OpenAI, model: str) -> None:
    conversation = client.conversations.create().id
    first, second = (
        client.responses.create(
            model=model, conversation=conversation, input=said, max_output_tokens=24
        )
        for said in (LONG, "Why?")
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert (
        second.usage.input_tokens_details.cached_tokens
        >= first.usage.input_tokens // BLOCK * BLOCK
        > BLOCK
    )
    items = client.conversations.items.list(conversation, order="asc").data
    assert [item.role for item in items if item.type == "message"] == ["user", "assistant"] * 2


def test_a_streamed_response_is_stored_whole(client: openai.OpenAI, model: str) -> None:
    conversation = client.conversations.create(metadata={"topic": "France"}).id
    text = ""
    with client.responses.create(
        model=model,
        conversation=conversation,
        input=QUESTION,
        temperature=0,
        max_output_tokens=32,
        stream=True,
    ) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                text += event.delta
    assert event.type == "response.completed"
    assert event.response.output_text == text
    assert "Paris" in text
    answer = client.conversations.items.list(conversation, limit=1).data[0]
    assert answer.type == "message"
    assert answer.content[0].to_dict()["text"] == text
    assert client.conversations.retrieve(conversation).metadata == {"topic": "France"}
    assert client.conversations.delete(conversation).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(conversation)


def test_models_are_listed_and_others_refused(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-9")
    assert refused.value.code == "model_not_found"


def test_text_becomes_tokens_and_text_again(cluster: ClusterHome, model: str) -> None:
    text = "Grüße aus 東京 🦊"
    with httpx.Client(base_url=cluster.url, timeout=REQUEST_S) as http:
        tokenized = http.post("/tokenize", json={"model": model, "prompt": text}).json()
        assert tokenized["count"] == len(tokenized["tokens"]) > 0
        back = http.post("/detokenize", json={"model": model, "tokens": tokenized["tokens"]})
    assert back.json()["prompt"] == text


def test_metrics_count_what_was_served(cluster: ClusterHome, client: openai.OpenAI) -> None:
    assert client.models.list().data
    samples = httpx.get(f"{cluster.url}/metrics", timeout=REQUEST_S).text
    for name in (
        "parley_requests_total",
        "parley_time_to_first_token_seconds_count",
        "parley_generation_tokens_total",
        "parley_slots",
    ):
        values = [float(line.split()[-1]) for line in samples.splitlines() if line.startswith(name)]
        assert sum(values) > 0, name


def test_no_process_that_serves_has_loaded_torch(
    cluster: ClusterHome, client: openai.OpenAI, model: str
) -> None:
    assert client.completions.create(model=model, prompt="Once", max_tokens=4).choices[0].text
    loaded = {
        Path(mapped.path).name
        for process in cluster.processes("ray::ServeReplica:")
        for mapped in process.memory_maps()
    }
    assert any("onnxruntime" in name for name in loaded)
    assert [name for name in loaded if "torch" in name] == []


def test_a_connection_that_sends_half_a_request_line_is_closed(cluster: ClusterHome) -> None:
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=60) as slow:
        slow.sendall(b"POST /v1/chat/compl")
        answer = b"".join(iter(lambda: slow.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_headers_that_serve_obeys_change_nothing(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me about the sea."}],
        max_tokens=24,
        extra_body={"ignore_eos": True},
        extra_headers={
            "x-request-timeout-seconds": "0.001",
            "x_request_timeout_seconds": "0.001",
            "x-session-id": "another",
            "serve-multiplexed-model-id": "another",
            "x-request-id": "another",
        },
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 24
