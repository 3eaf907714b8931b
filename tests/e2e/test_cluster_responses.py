"""Stored responses and conversations of a real cluster, through the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from cluster_home import ClusterHome, wait_for

QUESTION = "Tell me everything about whales."
ENDS = {"response.completed", "response.incomplete", "response.failed"}


@pytest.fixture
def client(cluster: ClusterHome) -> Iterator[openai.OpenAI]:
    with cluster.client() as client:
        yield client


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def told(events: Any) -> list[dict[str, Any]]:
    return [event.to_dict() for event in events]


def test_a_stream_is_read_on_where_a_broken_connection_left_it(
    client: openai.OpenAI, model: str
) -> None:
    stream = client.responses.create(
        model=model,
        input=QUESTION,
        stream=True,
        max_output_tokens=150,
        extra_body={"ignore_eos": True},
    )
    seen = told(next(stream) for _ in range(10))
    stream.close()
    response = seen[0]["response"]["id"]
    rest = told(client.responses.retrieve(response, stream=True, starting_after=9))
    whole = seen + rest
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert [event["type"] for event in whole if event["type"] in ENDS] == ["response.incomplete"]
    assert told(client.responses.retrieve(response, stream=True)) == whole
    kept = client.responses.retrieve(response)
    assert kept.usage is not None
    assert kept.usage.output_tokens == 150
    deltas = [e["delta"] for e in whole if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == kept.output_text


def test_a_background_response_is_cancelled(client: openai.OpenAI, model: str) -> None:
    made = client.responses.create(
        model=model,
        input=QUESTION,
        background=True,
        max_output_tokens=1500,
        extra_body={"ignore_eos": True},
    )
    assert made.status == "queued"
    assert client.responses.cancel(made.id).status == "cancelled"
    assert client.responses.retrieve(made.id).status == "cancelled"


def test_chains_branches_and_waiting_turns(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "max_output_tokens": 8}
    conversation = client.conversations.create().id
    first = client.responses.create(input="One", conversation=conversation, **options)
    waiting = [
        client.responses.create(
            input=f"Wait {number}", conversation=conversation, background=True, **options
        ).id
        for number in range(2)
    ]
    wait_for(
        lambda: all(client.responses.retrieve(name).status != "queued" for name in waiting), 60
    )
    wait_for(lambda: len(client.conversations.items.list(conversation).data) == 6, 60)
    client.responses.create(input="Uno", extra_body={"replaces": first.id}, **options)
    items = client.conversations.items.list(conversation, order="asc").data
    assert items[0].to_dict()["content"][0]["text"] == "Uno"
    assert len(items) == 2
    assert client.responses.retrieve(first.id).output_text == first.output_text


def test_a_turn_is_stored_once_under_its_idempotency_key(client: openai.OpenAI, model: str) -> None:
    conversation = client.conversations.create().id
    answers = [
        client.responses.create(
            model=model,
            input="Hi",
            conversation=conversation,
            max_output_tokens=8,
            extra_headers={"Idempotency-Key": "e2e"},
        )
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(client.conversations.items.list(conversation).data) == 2


def test_what_a_user_said_is_exported_and_erased(
    client: openai.OpenAI, cluster: ClusterHome, model: str
) -> None:
    response = client.responses.create(
        model=model, input="My secret is blue.", user="ann", max_output_tokens=8
    )
    client.post(f"/responses/{response.id}/feedback", cast_to=object, body={"rating": "up"})
    assert oct((cluster.path / "encryption.json").stat().st_mode & 0o777) == "0o600"
    exported = cluster.run("data", "export", "--user", "ann")
    assert exported.returncode == 0, exported.stderr
    lines = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [line["type"] for line in lines] == [
        "conversation",
        "item",
        "item",
        "response",
        "feedback",
    ]
    rated = cluster.run("data", "export", "--user", "ann", "--rated").stdout
    assert json.loads(rated)["messages"][0]["content"] == "My secret is blue."
    assert cluster.run("data", "erase", "--user", "ann", "--yes").returncode == 0
    assert "Nothing is kept" in cluster.run("data", "find", "--user", "ann").stdout
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
