"""Conversations over HTTP with the official client, kept in a real Redis."""

from __future__ import annotations

import asyncio
import os
import signal
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

from serve_app.settings import DialogueSettings
from serve_app.state.server import RedisServer

RESPONSES = "/v1/responses"
PERSONA = DialogueSettings().persona


@pytest.fixture
def running(
    bundled_tokenizer: Path, tmp_path: Path, shared_redis: RedisServer
) -> Iterator[Service]:
    url = shared_redis.url()
    assert url is not None
    with service(
        bundled_tokenizer,
        tmp_path,
        redis_url=url,
        backends=[simulated(step_s=0.01)] * 2,
        # A reply ends with its generator.
        settings=settings_with(ingress={"max_moves": 0}),
    ) as made:
        yield made


@pytest.fixture
def client(running: Service) -> Iterator[openai.OpenAI]:
    with running.openai() as made:
        yield made


def say(client: openai.OpenAI, conversation: str, text: str, **given: Any) -> Any:
    options = {"max_output_tokens": 12, "temperature": 0} | given
    return client.responses.create(model=MODEL, conversation=conversation, input=text, **options)


def contents(client: openai.OpenAI, conversation: str) -> list[str]:
    items = client.conversations.items.list(conversation, order="asc")
    return [item.content[0].text for item in items]  # type: ignore[union-attr]


def newest_prompt(running: Service) -> str:
    return running.tokenizer.real.decode(running.generators.requests[-1].prompt)


def test_a_conversation_can_be_made_read_and_deleted(client: openai.OpenAI) -> None:
    made = client.conversations.create(
        metadata={"topic": "bread"},
        items=[{"role": "system", "content": "You are a baker.", "type": "message"}],
    )
    assert made.id.startswith("conv_")
    read = client.conversations.retrieve(made.id)
    assert (read.metadata, read.created_at) == ({"topic": "bread"}, made.created_at)
    assert contents(client, made.id) == ["You are a baker."]
    assert client.conversations.delete(made.id).deleted
    for gone in (
        lambda: client.conversations.retrieve(made.id),
        lambda: contents(client, made.id),
        lambda: client.conversations.delete(made.id),
        lambda: say(client, made.id, "Hello?"),
        lambda: client.conversations.retrieve("../../etc"),
        lambda: client.conversations.retrieve("conv_" + "0" * 32),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            gone()
        assert caught.value.code in {"conversation_not_found", "unknown_path"}


@pytest.mark.parametrize("stream", [False, True])
def test_the_model_sees_the_turns_before(
    client: openai.OpenAI, running: Service, *, stream: bool
) -> None:
    conversation = client.conversations.create().id
    texts = []
    for question in ("My name is Ada.", "What is my name?"):
        answer = say(client, conversation, question, stream=stream)
        if stream:
            events = list(answer)
            answer = events[-1].response
            deltas = [event.delta for event in events if event.type.endswith("text.delta")]
            assert "".join(deltas) == answer.output_text
        texts.append(answer.output_text)
    assert answer.conversation.id == conversation
    prompt = newest_prompt(running)
    assert "My name is Ada." in prompt
    assert texts[0] in prompt
    assert contents(client, conversation) == [
        "My name is Ada.",
        texts[0],
        "What is my name?",
        texts[1],
    ]
    # The second turn does not compute the first one again, on whichever replica that was.
    cached = answer.usage.input_tokens_details.cached_tokens
    first, second = running.generators.requests[-2:]
    assert len(first.prompt) - 8 < cached < len(second.prompt)


def test_instructions_are_for_one_turn(client: openai.OpenAI, running: Service) -> None:
    conversation = client.conversations.create().id
    say(client, conversation, "Hi", instructions="Answer in rhymes.")
    assert "Answer in rhymes." in newest_prompt(running)
    say(client, conversation, "Hi")
    assert "rhymes" not in newest_prompt(running)
    assert PERSONA in newest_prompt(running)


def test_a_long_conversation_goes_on_without_its_oldest_turns(
    client: openai.OpenAI, running: Service
) -> None:
    conversation = client.conversations.create().id
    for number in range(14):
        reply = say(client, conversation, f"Question {number}: " + "word " * 40)
        assert reply.status == "incomplete"  # at its token limit: it never fails
    left_out = reply.parley["turns_left_out"]
    prompt = newest_prompt(running)
    assert 0 < left_out < 13
    assert PERSONA in prompt
    assert f"Question {left_out - 1}:" not in prompt
    assert f"Question {left_out}:" in prompt
    assert len(contents(client, conversation)) == 28  # nothing is forgotten


def test_a_client_that_leaves_an_unstored_turn_leaves_nothing_of_it(
    client: openai.OpenAI, running: Service
) -> None:
    conversation = client.conversations.create().id
    say(client, conversation, "Stays")
    before = contents(client, conversation)
    body = {
        "model": MODEL,
        "conversation": conversation,
        "input": "Goes",
        "max_output_tokens": 400,
        "store": False,
    }
    with running.http() as http:
        with http.stream("POST", RESPONSES, json={**body, "stream": True}) as answer:
            lines = answer.iter_lines()
            while "output_text.delta" not in next(lines):
                pass
        running.wait_until_idle()
        with pytest.raises(httpx.ReadTimeout):
            http.post(RESPONSES, json=body, timeout=httpx.Timeout(PATIENCE_S, read=0.5))
        running.wait_until_idle()
    assert contents(client, conversation) == before
    assert running.generated < 600
    say(client, conversation, "Next")
    assert "Goes" not in newest_prompt(running)


def test_a_turn_that_breaks_off_is_not_stored(client: openai.OpenAI, running: Service) -> None:
    conversation = client.conversations.create().id
    events = say(client, conversation, "Doomed", max_output_tokens=400, stream=True)
    next(events)
    for replica in running.replicas:
        running.call(replica.die)
    assert list(events)[-1].type == "response.failed"
    assert contents(client, conversation) == []


def test_a_turn_is_stored_before_its_end_is_told(client: openai.OpenAI) -> None:
    conversation = client.conversations.create().id
    for event in say(client, conversation, "Hi", stream=True):
        if event.type == "response.incomplete":
            told = event.response
            assert contents(client, conversation) == ["Hi", told.output_text]
    (question, answer) = client.conversations.items.list(conversation, order="asc").data
    assert answer.id == told.output[0].id
    assert answer.status == "incomplete"  # type: ignore[union-attr]
    assert question.id != answer.id


def test_items_come_in_pages_from_either_end(client: openai.OpenAI) -> None:
    conversation = client.conversations.create().id
    for number in range(3):
        say(client, conversation, f"Question {number}")
    everything = contents(client, conversation)
    page = client.conversations.items.list(conversation, limit=4)
    assert page.has_more
    newest = [item.content[0].text for item in page.data]  # type: ignore[union-attr]
    assert newest == everything[::-1][:4]
    with pytest.raises(openai.BadRequestError) as caught:
        client.conversations.items.list(conversation, limit=1000)
    assert caught.value.param == "limit"


def test_a_tenant_does_not_see_anothers_conversations(
    client: openai.OpenAI, running: Service
) -> None:
    keys = {name: running.keys.create(name, name) for name in ("acme", "bolt")}
    with (
        running.openai(api_key=keys["acme"]) as acme,
        running.openai(api_key=keys["bolt"]) as bolt,
    ):
        conversation = acme.conversations.create().id
        say(acme, conversation, "A secret")
        for forbidden in (
            lambda: bolt.conversations.retrieve(conversation),
            lambda: contents(bolt, conversation),
            lambda: say(bolt, conversation, "Tell me"),
            lambda: bolt.conversations.delete(conversation),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                forbidden()
            assert caught.value.code == "conversation_not_found"
        with pytest.raises(openai.AuthenticationError):
            client.conversations.retrieve(conversation)
        assert contents(acme, conversation)[0] == "A secret"


def test_a_turn_that_a_halted_redis_took_late_is_completed_and_stored_once(
    bundled_tokenizer: Path, tmp_path: Path, own_redis: RedisServer
) -> None:
    url, pid = own_redis.url(), own_redis.pid
    assert url is not None
    assert pid is not None
    settings = settings_with(redis={"timeout_s": 0.3})
    with (
        service(bundled_tokenizer, tmp_path, settings=settings, redis_url=url) as running,
        running.openai() as client,
    ):
        conversation = client.conversations.create().id
        tries = 0
        ask_once = running.dialogue.pool.ask_once

        async def counted(*command: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries == 1:
                os.kill(pid, signal.SIGSTOP)
            elif tries == 2:
                os.kill(pid, signal.SIGCONT)
            return await ask_once(*command)

        running.dialogue.pool.ask_once = counted  # type: ignore[method-assign]
        try:
            reply = say(client, conversation, "Hi")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert tries >= 2
        assert contents(client, conversation) == ["Hi", reply.output_text]


def test_without_redis_only_what_needs_it_is_refused(
    bundled_tokenizer: Path, tmp_path: Path, own_redis: RedisServer
) -> None:
    url = own_redis.url()
    assert url is not None
    settings = settings_with(redis={"timeout_s": 1.0})
    backends = [simulated(step_s=0.005)]
    with (
        service(
            bundled_tokenizer, tmp_path, settings=settings, redis_url=url, backends=backends
        ) as running,
        running.openai() as client,
        running.http() as http,
    ):
        assert http.get("/ready").json()["status"] == "ready"
        conversation = client.conversations.create().id
        say(client, conversation, "Stays")
        stream = say(client, conversation, "Too late", max_output_tokens=100, stream=True)
        next(stream)
        own_redis.stop()
        # The turn under way can't be stored, and says so in place of its end.
        last = list(stream)[-1]
        assert (last.type, last.response.error.type) == ("response.failed", "state_unavailable")

        assert http.get("/ready").json()["status"] == "degraded"
        messages: list[Any] = [{"role": "user", "content": "Hi"}]
        chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3)
        assert chat.choices[0].message.content
        stateless = client.responses.create(model=MODEL, input="Hi", max_output_tokens=3)
        assert stateless.output_text
        for stateful in (
            lambda: say(client, conversation, "Hi"),
            lambda: say(client, conversation, "Hi", stream=True),
            lambda: client.conversations.create(),
            lambda: client.conversations.retrieve(conversation),
            lambda: client.conversations.delete(conversation),
            lambda: contents(client, conversation),
        ):
            with pytest.raises(openai.InternalServerError) as caught:
                stateful()
            assert (caught.value.status_code, caught.value.code) == (503, "state_unavailable")
            assert int(caught.value.response.headers["retry-after"]) >= 1

        own_redis.start()
        wait_until(lambda: http.get("/ready").json()["status"] == "ready", "Redis' return")
        say(client, conversation, "Back")
        assert contents(client, conversation)[0] == "Stays"
        assert "Too late" not in contents(client, conversation)
        running.wait_until_idle()


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_what_an_outage_broke_off_is_carried_out_once_when_it_is_sent_again(
    bundled_tokenizer: Path, tmp_path: Path, own_redis: RedisServer, done: bool
) -> None:
    url = own_redis.url()
    assert url is not None
    with (
        service(bundled_tokenizer, tmp_path, redis_url=url) as running,
        running.openai() as client,
        running.http() as http,
    ):
        conversation = client.conversations.create().id
        store = running.stores.conversations
        add_items = store.add_items

        async def broken_off(*given: Any) -> None:
            if done:
                await add_items(*given)
            await asyncio.to_thread(own_redis.stop)
            if not done:
                await add_items(*given)

        def send() -> httpx.Response:
            items = {"items": [{"role": "user", "content": "Hello"}]}
            path, headers = f"/v1/conversations/{conversation}/items", {"idempotency-key": "one"}
            return http.post(path, json=items, headers=headers)

        store.add_items = broken_off  # type: ignore[method-assign, assignment]
        refused = send()
        assert refused.status_code == 503
        store.add_items = add_items  # type: ignore[method-assign]
        own_redis.start()
        again_by = time.monotonic() + 15
        while (answer := send()).status_code != 200:
            assert answer.json()["error"]["code"] == "idempotency_in_flight"
            assert time.monotonic() < again_by
            time.sleep(float(answer.headers["retry-after"]))
        assert contents(client, conversation) == ["Hello"]
        assert send().headers["idempotency-replayed"] == "true"
