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
    by_id = client.responses.retrieve(response, stream=True, extra_headers={"Last-Event-ID": "9"})
    assert told(by_id) == rest
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

    def ask(text: str) -> Any:
        return client.responses.create(
            model=model,
            input=text,
            conversation=conversation,
            max_output_tokens=8,
            extra_headers={"Idempotency-Key": "e2e"},
        )

    assert ask("Hi") == ask("Hi")
    assert len(client.conversations.items.list(conversation).data) == 2
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask("Ho")
    assert caught.value.code == "idempotency_key_reused"


def test_a_second_message_is_rejected_or_interrupts_the_first(
    client: openai.OpenAI, model: str
) -> None:
    conversation = client.conversations.create().id
    stream = client.responses.create(
        model=model,
        input=QUESTION,
        conversation=conversation,
        stream=True,
        max_output_tokens=1500,
        extra_body={"ignore_eos": True},
    )
    seen: list[Any] = []
    while not seen or seen[-1].type != "response.output_text.delta":
        seen.append(next(stream))

    def say(on_busy: str) -> Any:
        return client.responses.create(
            model=model,
            input="Stop",
            conversation=conversation,
            max_output_tokens=8,
            extra_body={"on_busy": on_busy},
        )

    with pytest.raises(openai.ConflictError) as caught:
        say("reject")
    assert caught.value.code == "conversation_busy"
    reply = say("interrupt")
    last = list(stream)[-1]
    assert last.response.status == "cancelled"
    items = client.conversations.items.list(conversation, order="asc").data
    assert [item.to_dict()["content"][0]["text"] for item in items] == [
        QUESTION,
        last.response.output_text,
        "Stop",
        reply.output_text,
    ]


def test_items_and_metadata_of_a_conversation(client: openai.OpenAI) -> None:
    made = client.conversations.create(metadata={"topic": "boats"}, extra_body={"ttl": 600})
    conversation = made.id
    assert made.to_dict()["parley"]["ttl"] == 600
    assert client.conversations.update(conversation, metadata={"topic": "cars"}).metadata == {
        "topic": "cars"
    }
    assert client.conversations.retrieve(conversation).metadata == {"topic": "cars"}
    added = client.conversations.items.create(
        conversation,
        items=[{"type": "message", "role": "user", "content": text} for text in ("One", "Two")],
    )
    first = added.data[0].id
    assert client.conversations.items.retrieve(first, conversation_id=conversation) == added.data[0]
    client.conversations.items.delete(first, conversation_id=conversation)
    left = client.conversations.items.list(conversation).data
    assert [item.id for item in left] == [added.data[1].id]
    client.conversations.delete(conversation)
    with pytest.raises(openai.NotFoundError) as caught:
        client.conversations.retrieve(conversation)
    assert caught.value.code == "conversation_not_found"


def test_what_a_response_was_made_from_is_listed_until_it_is_deleted(
    client: openai.OpenAI, model: str
) -> None:
    options: dict[str, Any] = {"model": model, "max_output_tokens": 8}
    first = client.responses.create(input="One", **options)
    second = client.responses.create(input="Two", previous_response_id=first.id, **options)
    items = client.responses.input_items.list(second.id, order="asc").data
    assert [item.content[0].text for item in items] == ["One", first.output_text, "Two"]
    client.responses.delete(second.id)
    for gone in (client.responses.retrieve, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            gone(second.id)
    assert client.responses.retrieve(first.id) == first


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
