"""Turns with personas over HTTP: decided, explained, remembered, in a real Redis."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from ingress_harness import (
    MODEL,
    PATIENCE_S,
    Service,
    service,
    settings_with,
    simulated,
    wait_until,
)

from serve_app.errors import StateUnavailable
from serve_app.state.server import RedisServer

PIZZA = """
name: pizza
title: Pizza shop
system_prompt: You take orders for a pizza shop.
greeting: Hello! What may it be?
intents:
  order:
    needs: [size]
    examples: ["One pizza please", "I want a Margherita", "Can I order a Funghi?", "I'd like to order a pizza"]
  hours:
    examples: ["When do you open?", "Are you open on Sundays?", "When do you close?", "What are your hours?"]
slots:
  size: {entity: choice, choices: {large: [big], small: [little]}, ask: "Small or large?"}
templates: {ordered: "A {size} one is on its way."}
policy:
  - {name: ask_size, when: {slots_missing: true}, action: ask}
  - {name: confirm, when: {intents: [order], filled: [size]}, action: answer, template: ordered}
sampling: {temperature: 0.7, presence_penalty: 0.5}
memory: {window_turns: 4, profile: true, ttl_s: 777}
limits: {max_reply_tokens: 9, concurrent_turns: reject}
shaping: {preferences: true}
"""


@pytest.fixture(scope="module")
def personas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("personas")
    (folder / "pizza.yaml").write_text(PIZZA)
    return folder


@pytest.fixture(scope="module")
def running(
    bundled_tokenizer: Path,
    tmp_path_factory: pytest.TempPathFactory,
    shared_redis: RedisServer,
    personas: Path,
) -> Iterator[Service]:
    url = shared_redis.url()
    assert url is not None
    settings = settings_with(dialogue={"personas": personas}, sampling={"temperature": 0.1})
    with service(
        bundled_tokenizer,
        tmp_path_factory.mktemp("persona-turns"),
        settings=settings,
        redis_url=url,
        backends=[simulated(step_s=0.001)],
    ) as made:
        yield made


@pytest.fixture
def client(running: Service) -> Iterator[openai.OpenAI]:
    with running.openai() as made:
        yield made


def say(client: openai.OpenAI, text: str, **given: Any) -> Any:
    return client.responses.create(model=MODEL, input=text, **given)


def begun(client: openai.OpenAI, **given: Any) -> str:
    return client.conversations.create(extra_body={"persona": "pizza", **given}).id


def newest_prompt(running: Service) -> str:
    """Return the newest turn's prompt; a summary may have been asked for behind it."""
    turns = [r for r in running.generators.requests if not r.request_id.startswith("summary_")]
    return running.tokenizer.real.decode(turns[-1].prompt)


def test_a_conversation_with_a_persona_begins_with_its_greeting_and_time_to_live(
    client: openai.OpenAI,
) -> None:
    made = client.conversations.create(extra_body={"persona": "pizza"})
    assert made.parley == {"user": None, "ttl": 777, "persona": "pizza"}  # type: ignore[attr-defined]
    (greeting,) = client.conversations.items.list(made.id)
    assert (greeting.role, greeting.content[0].text) == ("assistant", "Hello! What may it be?")  # type: ignore[union-attr]
    assert client.conversations.retrieve(made.id).parley["persona"] == "pizza"  # type: ignore[attr-defined]


def test_fixed_words_cost_no_tokens_and_are_explained(
    client: openai.OpenAI, running: Service
) -> None:
    conversation = begun(client)
    before = running.generated
    asked = say(client, "I'd like to order a pizza", conversation=conversation)
    assert asked.output_text == "Small or large?"
    assert (asked.usage.input_tokens, asked.usage.output_tokens) == (0, 0)
    told = asked.parley
    assert (told["persona"], told["action"], told["rule"]) == ("pizza", "ask", "ask_size")
    assert told["intent"]["name"] == "order"
    assert told["intent"]["confidence"] > 0.4
    assert told["answered_by"] == "template"
    assert "missing" in told["reason"]
    # The state was stored with the turn: the answer fills the slot that was asked for.
    done = say(client, "A big one", conversation=conversation)
    assert done.output_text == "A large one is on its way."
    assert done.parley["slots"] == {"size": "large"}
    assert done.parley["entities"][0] | {"confidence": 0} == {
        "kind": "choice", "text": "big", "value": "large", "confidence": 0, "slot": "size",
    }  # fmt: skip
    assert running.generated == before


def test_fixed_words_stream_with_the_same_types_of_events(client: openai.OpenAI) -> None:
    def types(text: str) -> list[str]:
        stream = say(client, text, conversation=begun(client), stream=True)
        every = [event.type for event in stream]
        return [kind for place, kind in enumerate(every) if every[place - 1 : place] != [kind]]

    fixed, written = types("One pizza please"), types("What are your hours?")
    assert fixed[:-1] == written[:-1]
    assert fixed[-1] == "response.completed"


def test_a_stored_reply_of_fixed_words_can_be_read_again(client: openai.OpenAI) -> None:
    asked = say(client, "One pizza please", extra_body={"persona": "pizza"})
    assert client.responses.retrieve(asked.id) == asked
    again = list(client.responses.retrieve(asked.id, stream=True))
    assert again[-1].response.output_text == "Small or large?"  # type: ignore[union-attr]
    # What it continues keeps persona and state.
    done = say(client, "little", previous_response_id=asked.id)
    assert done.output_text == "A small one is on its way."
    # A branch from the same place has the state of that place.
    other = say(client, "big", previous_response_id=asked.id)
    assert other.output_text == "A large one is on its way."


def test_the_personas_sampling_and_limits_hold_where_the_request_says_nothing(
    client: openai.OpenAI, running: Service
) -> None:
    conversation = begun(client)
    plain = say(client, "What are your hours?", conversation=conversation)
    sampling = running.generators.requests[-1].sampling
    assert (sampling.temperature, sampling.presence_penalty, sampling.max_tokens) == (0.7, 0.5, 9)
    assert plain.temperature == 0.7
    say(
        client, "When do you close?", conversation=conversation, temperature=0.0,
        max_output_tokens=3, extra_body={"presence_penalty": 0.0},
    )  # fmt: skip
    sampling = running.generators.requests[-1].sampling
    assert (sampling.temperature, sampling.presence_penalty, sampling.max_tokens) == (0.0, 0.0, 3)


def test_without_a_persona_nothing_is_added(client: openai.OpenAI, running: Service) -> None:
    plain = say(client, "I'd like to order a pizza", max_output_tokens=4)
    assert plain.parley == {"turns_left_out": 0}
    assert "pizza shop" not in newest_prompt(running)


def test_a_persona_that_is_not_there_is_refused_and_leaves_nothing(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.conversations.create(extra_body={"persona": "nobody"})
    assert refused.value.code == "persona_not_found"
    assert refused.value.body["param"] == "persona"  # type: ignore[index]
    conversation = begun(client)
    with pytest.raises(openai.NotFoundError):
        say(client, "Hi", conversation=conversation, extra_body={"persona": "nobody"})
    assert len(list(client.conversations.items.list(conversation))) == 1
    assert say(client, "One pizza please", conversation=conversation).output_text


def test_a_change_of_the_file_counts_in_a_running_conversation(
    client: openai.OpenAI, personas: Path
) -> None:
    conversation = begun(client)
    file = personas / "pizza.yaml"
    try:
        file.write_text(PIZZA.replace("Small or large?", "Which size?"))
        os.utime(file, (time.time() + 5, time.time() + 5))

        def changed() -> bool:
            again = say(client, "I'd like to order a pizza", conversation=begun(client))
            return bool(again.output_text == "Which size?")

        wait_until(changed, "the new file")
        asked = say(client, "I'd like to order a pizza", conversation=conversation)
        assert asked.output_text == "Which size?"
    finally:
        file.write_text(PIZZA)


def test_what_left_the_window_is_summarised_behind_the_turn_and_comes_back(
    client: openai.OpenAI, running: Service
) -> None:
    conversation = begun(client)
    for number in range(5):
        say(client, f"What are your hours {number}?", conversation=conversation)
    wait_until(lambda: not running.remembering.busy, "the summary")
    (asked,) = [r for r in running.generators.requests if r.request_id.startswith("summary_")]
    assert asked.priority > 100
    text = running.tokenizer.real.decode(asked.prompt)
    assert "User: What are your hours 0?" in text
    assert "User: What are your hours 4?" not in text
    last = say(client, "When do you open?", conversation=conversation)
    assert last.parley["turns_left_out"] > 0
    assert last.parley["remembered"]["summary"] is True
    assert "Earlier in this conversation:" in newest_prompt(running)
    wait_until(lambda: not running.remembering.busy, "the next summary")
    # Deleting an item forgets what may have come of it.
    item = next(iter(client.conversations.items.list(conversation, order="asc")))
    client.conversations.items.delete(item.id, conversation_id=conversation)
    after = say(client, "When do you open?", conversation=conversation)
    assert after.parley["remembered"]["summary"] is False


def test_a_summary_that_fails_harms_no_turn_and_is_made_another_time(
    client: openai.OpenAI, running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = begun(client)
    asked: list[str] = []
    plan_summary = running.dialogue.plan_summary

    async def failing(tenant: str, name: str, item: str, model: str) -> Any:
        asked.append(item)
        raise StateUnavailable("Redis is away for a moment")

    monkeypatch.setattr(running.dialogue, "plan_summary", failing)
    for number in range(6):
        said = say(client, f"What are your hours {number}?", conversation=conversation)
        assert said.status == "incomplete"  # written to its token limit
        wait_until(lambda: not running.remembering.busy, "the failure")
    assert len(asked) >= 2
    assert said.parley["remembered"]["summary"] is False
    assert len(list(client.conversations.items.list(conversation))) == 13
    monkeypatch.setattr(running.dialogue, "plan_summary", plan_summary)
    say(client, "When do you close?", conversation=conversation)
    wait_until(lambda: not running.remembering.busy, "the summary")
    last = say(client, "When do you open?", conversation=conversation)
    assert last.parley["remembered"]["summary"] is True


def test_a_user_s_facts_are_kept_over_conversations_read_corrected_and_erased(
    client: openai.OpenAI, running: Service
) -> None:
    with running.http() as http:
        say(client, "My name is Ann. When do you open?", conversation=begun(client), user="ann")
        wait_until(lambda: facts(http, "ann"), "the fact")
        (fact,) = http.get("/v1/profiles/ann").json()["facts"]
        assert (fact["text"], fact["source"]) == ("The user's name is Ann.", "said")
        told = say(
            client, "When do you close?", conversation=begun(client),
            extra_body={"safety_identifier": "ann"},
        )  # fmt: skip
        assert told.parley["remembered"]["facts"] == 1
        assert "The user's name is Ann." in newest_prompt(running)

        body = {"facts": [fact, {"text": "Ann is left-handed."}]}
        put = http.put("/v1/profiles/ann", json=body).json()
        assert [each["source"] for each in put["facts"]] == ["said", "written"]
        assert put["facts"][0]["id"] == fact["id"]
        assert http.put("/v1/profiles/ann", json={"facts": [{"text": "Hm."}]}).json() == (
            http.get("/v1/profiles/ann").json()
        )
        assert facts(http, "ann") == ["Hm."]
        assert facts(http, "bob") == []
        assert http.delete("/v1/profiles/ann").json()["deleted"] is True
        assert facts(http, "ann") == []
        refused = http.put("/v1/profiles/ann", json={"facts": [{"text": "x"}] * 65})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "facts")


def test_a_profile_belongs_to_one_tenant(
    bundled_tokenizer: Path, tmp_path: Path, shared_redis: RedisServer
) -> None:
    url = shared_redis.url()
    assert url is not None
    with service(bundled_tokenizer, tmp_path, redis_url=url) as made:
        keys = [made.keys.create(tenant, tenant) for tenant in ("acme", "rival")]
        mine, theirs = (made.http(authorization=f"Bearer {key}") for key in keys)
        with mine, theirs:
            mine.put("/v1/profiles/ann", json={"facts": [{"text": "A secret."}]})
            assert facts(mine, "ann") == ["A secret."]
            assert facts(theirs, "ann") == []
            theirs.delete("/v1/profiles/ann")
            assert facts(mine, "ann") == ["A secret."]


def test_the_personas_way_with_two_turns_at_once_holds_unless_the_request_says(
    client: openai.OpenAI,
) -> None:
    conversation = begun(client)
    long: dict[str, Any] = {"max_output_tokens": 200, "conversation": conversation}
    with say(client, "What are your hours?", stream=True, **long) as first:
        next(iter(first))
        with pytest.raises(openai.ConflictError):
            say(client, "One pizza please", conversation=conversation)
        waited = say(
            client, "One pizza please", conversation=conversation,
            extra_body={"on_busy": "enqueue"},
        )  # fmt: skip
    assert waited.output_text == "Small or large?"


def test_the_system_message_of_a_conversation_begun_empty_outlives_every_cut(
    bundled_tokenizer: Path, tmp_path: Path, shared_redis: RedisServer
) -> None:
    url = shared_redis.url()
    assert url is not None
    settings = settings_with(dialogue={"max_items": 6})
    with (
        service(bundled_tokenizer, tmp_path, settings=settings, redis_url=url) as made,
        made.openai(timeout=PATIENCE_S) as client,
    ):
        conversation = client.conversations.create().id
        first: Any = [
            {"role": "system", "content": "You are a sailor."},
            {"role": "user", "content": "Hi"},
        ]
        client.responses.create(
            model=MODEL, input=first, conversation=conversation, max_output_tokens=2
        )
        for number in range(5):
            say(client, f"turn {number}", conversation=conversation, max_output_tokens=2)
        items = list(client.conversations.items.list(conversation, order="asc"))
        assert len(items) == 6
        assert items[0].content[0].text == "You are a sailor."  # type: ignore[union-attr]
        assert "You are a sailor." in newest_prompt(made)


def facts(http: httpx.Client, user: str) -> list[str]:
    return [fact["text"] for fact in http.get(f"/v1/profiles/{user}").json()["facts"]]
