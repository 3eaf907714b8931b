"""Personas of a real cluster, as they ship, through the official client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from cluster_home import REQUEST_S, ClusterHome, wait_for

LIBRARIAN = """
name: librarian
title: Librarian
system_prompt: You talk about books.
greeting: Hello! Which book is it?
intents:
  hours:
    examples: ["When do you open?", "Are you open on Sundays?", "When do you close?", "What are your hours?"]
  lend:
    examples: ["May I borrow a book?", "I want to take this one home", "Can I keep it longer?", "Lend me an atlas"]
templates: {hours: "We open at nine."}
policy:
  - {name: hours, when: {intents: [hours], min_confidence: 0.5}, action: answer, template: hours}
memory: {window_turns: 2, summary: true}
limits: {max_reply_tokens: 8}
"""


@pytest.fixture
def client(cluster: ClusterHome) -> Iterator[openai.OpenAI]:
    with cluster.client() as client:
        yield client


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def begun(client: openai.OpenAI, persona: str) -> str:
    return client.conversations.create(extra_body={"persona": persona}).id


def _is_known(client: openai.OpenAI, persona: str) -> bool:
    try:
        begun(client, persona)
    except openai.NotFoundError:
        return False
    return True


def test_a_persona_that_ships_asks_for_what_is_missing_and_hands_over(
    client: openai.OpenAI, model: str
) -> None:
    conversation = begun(client, "customer_service")

    def say(text: str) -> Any:
        return client.responses.create(
            model=model, input=text, conversation=conversation, max_output_tokens=16
        )

    asked = say("Where is my parcel?")
    assert asked.output_text == "What is your order number? It looks like AB-123456."
    assert asked.usage.output_tokens == 0
    assert asked.parley["rule"] == "order_number_first"
    given = say("It is AB-123456")
    assert given.parley["slots"] == {"order_number": "AB-123456"}
    handed = say("I want to speak to a human agent")
    assert handed.parley["action"] == "hand_over"
    assert handed.parley["intent"]["name"] == "human"
    assert "colleague" in handed.output_text


def test_the_model_answers_as_the_persona_where_no_words_are_fixed(
    client: openai.OpenAI, model: str
) -> None:
    stream = client.responses.create(
        model=model,
        input="I watched a great film last night",
        conversation=begun(client, "companion"),
        temperature=0,
        max_output_tokens=40,
        stream=True,
    )
    last = list(stream)[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    assert last.response.parley["persona"] == "companion"  # type: ignore[attr-defined]
    assert last.response.parley["answered_by"] == "model"  # type: ignore[attr-defined]
    assert last.response.usage is not None
    assert last.response.usage.output_tokens > 0


def test_what_a_user_says_is_remembered_in_the_next_conversation(
    cluster: ClusterHome, client: openai.OpenAI, model: str
) -> None:
    user = "e2e-ann"

    def say(text: str) -> Any:
        return client.responses.create(
            model=model,
            input=text,
            conversation=begun(client, "companion"),
            user=user,
            max_output_tokens=8,
        )

    with httpx.Client(base_url=cluster.url, timeout=REQUEST_S) as http:
        say("My name is Ann and I bought a new bike.")

        def facts() -> list[str]:
            return [fact["text"] for fact in http.get(f"/v1/profiles/{user}").json()["facts"]]

        wait_for(lambda: bool(facts()), REQUEST_S)
        assert facts() == ["The user's name is Ann."]
        assert say("I watched a great film last night").parley["remembered"]["facts"] == 1
        http.delete(f"/v1/profiles/{user}")
        assert facts() == []
        assert say("I cooked pasta for dinner").parley["remembered"]["facts"] == 0


def test_a_persona_is_added_and_changed_while_the_service_runs(
    cluster: ClusterHome, client: openai.OpenAI, model: str
) -> None:
    file = cluster.personas / "librarian.yaml"

    def hours(conversation: str) -> str:
        return client.responses.create(
            model=model, input="When do you open?", conversation=conversation
        ).output_text

    assert not _is_known(client, "librarian")
    file.write_text(LIBRARIAN)
    try:
        wait_for(lambda: _is_known(client, "librarian"), REQUEST_S)
        conversation = begun(client, "librarian")
        assert hours(conversation) == "We open at nine."
        file.write_text(LIBRARIAN.replace("nine", "ten"))
        wait_for(lambda: hours(conversation) == "We open at ten.", REQUEST_S)
    finally:
        file.unlink()


def test_turns_that_leave_the_window_come_back_as_the_models_own_summary(
    cluster: ClusterHome, client: openai.OpenAI, model: str
) -> None:
    file = cluster.personas / "librarian.yaml"
    file.write_text(LIBRARIAN)
    try:
        wait_for(lambda: _is_known(client, "librarian"), REQUEST_S)
        conversation = begun(client, "librarian")

        def remembered() -> dict[str, Any]:
            reply: Any = client.responses.create(
                model=model, input="I read a thick novel.", conversation=conversation
            )
            assert reply.parley["answered_by"] == "model"
            return dict(reply.parley["remembered"])

        first = remembered()
        assert not first["summary"]
        wait_for(lambda: bool(remembered()["summary"]), REQUEST_S)
    finally:
        file.unlink()
