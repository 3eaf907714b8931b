"""Stored responses over HTTP with the official client: read, resumed, cancelled, branched, erased."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from ingress_harness import MODEL, Service, service, simulated, wait_until

from serve_app.state.server import RedisServer

ENDS = {"response.completed", "response.incomplete", "response.failed"}


@pytest.fixture(scope="module")
def redis_url(shared_redis: RedisServer) -> Any:
    url = shared_redis.url()
    assert url is not None
    return url


@pytest.fixture(scope="module")
def running(
    bundled_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory, redis_url: Any
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("first")
    with service(
        bundled_tokenizer, folder, redis_url=redis_url, backends=[simulated(step_s=0.01)]
    ) as made:
        made.folder = folder
        yield made


@pytest.fixture(scope="module")
def other(bundled_tokenizer: Path, running: Service, redis_url: Any) -> Iterator[Service]:
    """Another ingress replica: its own memory, the same Redis and keys."""
    with service(bundled_tokenizer, running.folder, redis_url=redis_url) as made:
        yield made


@pytest.fixture
def client(running: Service) -> Iterator[openai.OpenAI]:
    with running.openai() as made:
        yield made


@pytest.fixture
def elsewhere(other: Service) -> Iterator[openai.OpenAI]:
    with other.openai() as made:
        yield made


def ask(client: openai.OpenAI, text: str = "Hello", **given: Any) -> Any:
    options: dict[str, Any] = {"max_output_tokens": 12, "temperature": 0} | given
    return client.responses.create(model=MODEL, input=text, **options)


def is_known(client: openai.OpenAI, response: str) -> bool:
    try:
        client.responses.retrieve(response)
    except openai.NotFoundError:
        return False
    return True


def plain(event: Any) -> dict[str, Any]:
    return dict(event.to_dict())


def listed(client: openai.OpenAI, conversation: str) -> list[str]:
    items = client.conversations.items.list(conversation, order="asc")
    return [item.content[0].text for item in items]  # type: ignore[union-attr]


def prompt_of(running: Service) -> str:
    return running.tokenizer.real.decode(running.generators.requests[-1].prompt)


def test_a_response_is_stored_unless_the_request_says_no(client: openai.OpenAI) -> None:
    kept = ask(client)
    assert (kept.store, kept.background, kept.conversation) == (True, False, None)
    assert client.responses.retrieve(kept.id) == kept
    loose = ask(client, store=False)
    assert loose.store is False
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.retrieve(loose.id)
    assert caught.value.code == "response_not_found"


def test_a_response_continues_another_and_two_may_continue_the_same(
    client: openai.OpenAI, running: Service
) -> None:
    first = ask(client, "My name is Ada.")
    left = ask(client, "What is my name?", previous_response_id=first.id)
    assert left.previous_response_id == first.id
    assert first.output_text in prompt_of(running)
    right = ask(client, "Forget it.", previous_response_id=first.id)
    assert "My name is Ada." in prompt_of(running)
    assert "What is my name?" not in prompt_of(running)
    ask(client, "And now?", previous_response_id=right.id)
    assert "Forget it." in prompt_of(running)
    assert "What is my name?" not in prompt_of(running)


def test_every_event_of_a_stream_can_be_had_again(
    client: openai.OpenAI, elsewhere: openai.OpenAI
) -> None:
    events = [plain(event) for event in ask(client, stream=True, max_output_tokens=40)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[0]["response"]["id"]
    for reader in (client, elsewhere):
        for behind in (None, 0, 7, len(events) - 2, len(events) - 1):
            extra: dict[str, Any] = {} if behind is None else {"starting_after": behind}
            again = [plain(e) for e in reader.responses.retrieve(response, stream=True, **extra)]
            assert again == events[0 if behind is None else behind + 1 :]


def test_a_stream_with_log_probabilities_can_be_had_again(client: openai.OpenAI) -> None:
    events = [
        plain(event)
        for event in ask(
            client, stream=True, top_logprobs=2, include=["message.output_text.logprobs"]
        )
    ]
    response = events[0]["response"]["id"]
    assert [plain(e) for e in client.responses.retrieve(response, stream=True)] == events


def test_a_stored_response_outlives_its_reader_and_is_read_on_from_anywhere(
    client: openai.OpenAI, elsewhere: openai.OpenAI, running: Service
) -> None:
    stream = ask(client, stream=True, max_output_tokens=120)
    seen = [plain(next(stream)) for _ in range(8)]
    stream.close()
    response = seen[0]["response"]["id"]
    assert running.streams == 1
    assert elsewhere.responses.retrieve(response).status == "in_progress"
    rest = {}
    for name, reader in (("here", client), ("elsewhere", elsewhere)):
        rest[name] = [
            plain(e) for e in reader.responses.retrieve(response, stream=True, starting_after=7)
        ]
    assert rest["here"] == rest["elsewhere"]
    whole = seen + rest["here"]
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert [event["type"] in ENDS for event in whole] == [False] * (len(whole) - 1) + [True]
    said = "".join(e["delta"] for e in whole if e["type"] == "response.output_text.delta")
    assert said == client.responses.retrieve(response).output_text
    assert [plain(e) for e in elsewhere.responses.retrieve(response, stream=True)] == whole


def test_a_browser_reads_on_behind_the_last_event_it_has_seen(
    client: openai.OpenAI, running: Service
) -> None:
    response = ask(client).id
    with running.http() as http:
        path = f"/v1/responses/{response}?stream=true"
        whole = http.get(path).text
        ids = [line.removeprefix("id: ") for line in whole.splitlines() if line.startswith("id: ")]
        rest = http.get(path, headers={"last-event-id": ids[4]}).text
    assert ids == [str(number) for number in range(len(ids))]
    assert rest == whole[whole.index("id: 5\n") :]


def test_an_unstored_response_ends_with_its_reader(client: openai.OpenAI, running: Service) -> None:
    stream = ask(client, stream=True, max_output_tokens=400, store=False)
    next(stream)
    assert running.streams == 1
    stream.close()
    running.wait_until_idle()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_response_is_cancelled_from_any_replica(
    client: openai.OpenAI, elsewhere: openai.OpenAI, running: Service, where: str
) -> None:
    stream = ask(client, stream=True, max_output_tokens=450)
    events = [plain(next(stream)) for _ in range(8)]
    response = events[0]["response"]["id"]
    canceller = client if where == "here" else elsewhere
    ended = canceller.responses.cancel(response)
    assert ended.status == "cancelled"
    events += [plain(event) for event in stream]
    assert events[-1]["response"]["status"] == "cancelled"
    assert [event["type"] for event in events if event["type"] in ENDS] == ["response.incomplete"]
    running.wait_until_idle()
    assert plain(elsewhere.responses.retrieve(response)) == events[-1]["response"]
    assert [plain(e) for e in elsewhere.responses.retrieve(response, stream=True)] == events
    assert client.responses.cancel(response).status == "cancelled"
    with pytest.raises(openai.ConflictError) as caught:
        ask(client, previous_response_id=response)
    assert caught.value.code == "response_unfinished"


def test_a_background_response_is_queued_made_and_kept(
    client: openai.OpenAI, elsewhere: openai.OpenAI
) -> None:
    made = ask(client, background=True, max_output_tokens=30)
    assert (made.status, made.background, made.output) == ("queued", True, [])
    wait_until(lambda: elsewhere.responses.retrieve(made.id).status == "incomplete")
    events = [plain(event) for event in client.responses.retrieve(made.id, stream=True)]
    assert [event["type"] for event in events[:4]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
    ]
    streamed = [plain(event) for event in ask(client, background=True, stream=True)]
    assert [e["type"] for e in streamed[:3]] == [e["type"] for e in events[:3]]
    response = streamed[0]["response"]["id"]
    assert [plain(e) for e in elsewhere.responses.retrieve(response, stream=True)] == streamed
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, background=True, store=False)
    assert caught.value.param == "store"


def test_a_deleted_response_is_gone_and_what_builds_on_it_stays(
    client: openai.OpenAI, running: Service
) -> None:
    first = ask(client, "My name is Ada.")
    second = ask(client, "What is it?", previous_response_id=first.id)
    client.responses.delete(first.id)
    for gone in (
        lambda: client.responses.retrieve(first.id),
        lambda: client.responses.retrieve(first.id, stream=True),
        lambda: client.responses.cancel(first.id),
        lambda: client.responses.delete(first.id),
        lambda: client.responses.input_items.list(first.id),
        lambda: ask(client, previous_response_id=first.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            gone()
        assert caught.value.code == "response_not_found"
    ask(client, "And?", previous_response_id=second.id)
    assert "My name is Ada." in prompt_of(running)


def test_a_response_that_is_deleted_while_it_is_made_ends(
    client: openai.OpenAI, elsewhere: openai.OpenAI, running: Service
) -> None:
    stream = ask(client, stream=True, max_output_tokens=450)
    response = next(stream).response.id
    elsewhere.responses.delete(response)
    assert list(stream)[-1].response.error.type == "response_lost"
    running.wait_until_idle()
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response)


def test_input_items_are_all_that_a_response_was_made_from(client: openai.OpenAI) -> None:
    first = ask(client, "One")
    second = ask(client, "Two", previous_response_id=first.id)
    items = client.responses.input_items.list(second.id, order="asc").data
    assert [item.content[0].text for item in items] == ["One", first.output_text, "Two"]
    newest = client.responses.input_items.list(second.id, limit=2)
    assert [item.content[0].text for item in newest.data] == ["Two", first.output_text]
    assert newest.has_more
    rest = client.responses.input_items.list(second.id, after=newest.last_id)
    assert [item.content[0].text for item in rest.data] == ["One"]


def test_items_of_a_conversation_are_made_read_and_deleted(client: openai.OpenAI) -> None:
    conversation = client.conversations.create(metadata={"a": "b"}).id
    made = client.conversations.items.create(
        conversation,
        items=[
            {"type": "message", "role": "system", "content": "Be kind."},
            {"type": "message", "role": "user", "content": "Hello"},
        ],
    )
    assert listed(client, conversation) == ["Be kind.", "Hello"]
    one = client.conversations.items.retrieve(made.data[1].id, conversation_id=conversation)
    assert one.content[0].text == "Hello"  # type: ignore[union-attr]
    reply = ask(client, "And?", conversation=conversation)
    assert listed(client, conversation) == ["Be kind.", "Hello", "And?", reply.output_text]
    left = client.conversations.items.delete(made.data[1].id, conversation_id=conversation)
    assert left.id == conversation
    assert listed(client, conversation) == ["Be kind.", "And?", reply.output_text]
    with pytest.raises(openai.NotFoundError) as caught:
        client.conversations.items.retrieve(made.data[1].id, conversation_id=conversation)
    assert caught.value.code == "item_not_found"
    changed = client.conversations.update(conversation, metadata={"c": "d"})
    assert client.conversations.retrieve(conversation) == changed
    assert changed.metadata == {"c": "d"}


def test_a_turn_is_answered_again_or_replaced_and_the_old_one_stays(
    client: openai.OpenAI, running: Service
) -> None:
    conversation = client.conversations.create().id
    first = ask(client, "One", conversation=conversation)
    second = ask(client, "Two", conversation=conversation)
    again = client.responses.create(
        model=MODEL, max_output_tokens=9, extra_body={"replaces": second.id}
    )
    assert "Two" in prompt_of(running)
    assert again.conversation is not None
    assert again.conversation.id == conversation
    line = ["One", first.output_text, "Two", again.output_text]
    assert listed(client, conversation) == line
    edited = ask(client, "Uno", extra_body={"replaces": first.id})
    assert "One" not in prompt_of(running)
    assert listed(client, conversation) == ["Uno", edited.output_text]
    third = ask(client, "Three", conversation=conversation)
    assert listed(client, conversation)[:3] == ["Uno", edited.output_text, "Three"]
    # All that was said before stays readable, and can be gone back to.
    assert client.responses.retrieve(second.id) == second
    items = client.responses.input_items.list(second.id, order="asc").data
    assert [item.content[0].text for item in items] == ["One", first.output_text, "Two"]
    client.conversations.update(conversation, metadata=None, extra_body={"head": again.id})
    assert listed(client, conversation) == line
    back = ask(client, "Four", previous_response_id=third.id)
    assert back.conversation is not None
    assert listed(client, conversation)[-2:] == ["Four", back.output_text]


def test_turns_of_a_conversation_wait_for_each_other(
    client: openai.OpenAI, elsewhere: openai.OpenAI, running: Service
) -> None:
    conversation = client.conversations.create().id
    slow = ask(client, "First", conversation=conversation, stream=True, max_output_tokens=60)
    next(slow)
    waiting = ask(elsewhere, "Second", conversation=conversation, background=True)
    assert waiting.status == "queued"
    with pytest.raises(openai.ConflictError) as caught:
        ask(client, "Third", conversation=conversation, extra_body={"on_busy": "reject"})
    assert caught.value.code == "conversation_busy"
    list(slow)
    wait_until(lambda: client.responses.retrieve(waiting.id).status == "incomplete")
    assert [listed(client, conversation)[i] for i in (0, 2)] == ["First", "Second"]


def test_a_turn_interrupts_the_one_before_and_knows_what_that_has_said(
    client: openai.OpenAI, elsewhere: openai.OpenAI, other: Service
) -> None:
    conversation = client.conversations.create().id
    slow = ask(client, "Tell me all", conversation=conversation, stream=True, max_output_tokens=400)
    said = ""
    while len(said) < 20:
        event = next(slow)
        said += getattr(event, "delta", "")
    reply = ask(elsewhere, "Stop", conversation=conversation, extra_body={"on_busy": "interrupt"})
    events = list(slow)
    assert events[-1].response.status == "cancelled"
    whole = events[-1].response.output_text
    assert whole.startswith(said)
    assert listed(client, conversation) == ["Tell me all", whole, "Stop", reply.output_text]
    assert whole in prompt_of(other)


def test_a_response_is_made_once_under_an_idempotency_key(
    client: openai.OpenAI, elsewhere: openai.OpenAI
) -> None:
    conversation = client.conversations.create().id
    key = {"Idempotency-Key": "one-turn"}
    first = ask(client, "Hi", conversation=conversation, extra_headers=key, temperature=1)
    again = ask(elsewhere, "Hi", conversation=conversation, extra_headers=key, temperature=1)
    assert again == first
    assert len(listed(client, conversation)) == 2
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(client, "Ho", conversation=conversation, extra_headers=key, temperature=1)
    assert caught.value.code == "idempotency_key_reused"

    key = {"Idempotency-Key": "a-stream"}
    stream = ask(client, stream=True, max_output_tokens=60, extra_headers=key)
    events = [plain(next(stream)) for _ in range(6)]
    for reader in (client, elsewhere):
        with pytest.raises(openai.ConflictError) as caught_early:
            ask(reader, stream=True, max_output_tokens=60, extra_headers=key)
        assert caught_early.value.code == "idempotency_in_flight"
    events += [plain(event) for event in stream]
    replayed = ask(elsewhere, stream=True, max_output_tokens=60, extra_headers=key)
    assert [plain(event) for event in replayed] == events


def test_the_stream_of_a_turn_that_ends_without_a_word_says_so(
    client: openai.OpenAI, elsewhere: openai.OpenAI, running: Service
) -> None:
    conversation = client.conversations.create().id
    slow = ask(client, "First", conversation=conversation, stream=True, max_output_tokens=450)
    first = next(slow).response.id
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(ask, client, "Second", conversation=conversation, stream=True)
        wait_until(lambda: len(running.runs._running) == 2, "the second turn")
        (response,) = running.runs._running.keys() - {first}
        wait_until(lambda: is_known(client, response), "the second turn's beginning")
        streams = [
            reader.responses.retrieve(response, stream=True) for reader in (client, elsewhere)
        ]
        with pytest.raises(openai.NotFoundError):
            client.responses.cancel(response)  # it leaves nothing
        for stream in streams:
            assert [(event.type, event.code) for event in stream] == [
                ("error", "response_not_found")
            ]
        with pytest.raises(openai.ConflictError) as caught:
            waiting.result()
    assert caught.value.code == "response_cancelled"
    client.responses.cancel(first)
    running.wait_until_idle()


def test_everything_that_changes_state_happens_once_under_an_idempotency_key(
    client: openai.OpenAI, running: Service
) -> None:
    response = ask(client).id
    with running.http() as http:

        def send(path: str, body: dict[str, Any], key: str) -> httpx.Response:
            return http.post(path, json=body, headers={"idempotency-key": key})

        made = send("/v1/conversations", {"metadata": {"n": "1"}}, "k1")
        assert send("/v1/conversations", {"metadata": {"n": "1"}}, "k1").json() == made.json()
        assert send("/v1/conversations", {}, "k1").status_code == 422
        path = f"/v1/conversations/{made.json()['id']}"
        items = {"items": [{"role": "user", "content": "Hello"}]}
        first = send(f"{path}/items", items, "k2")
        again = send(f"{path}/items", items, "k2")
        assert (again.json(), again.headers["idempotency-replayed"]) == (first.json(), "true")
        assert len(http.get(f"{path}/items").json()["data"]) == 1
        for number, (target, body) in enumerate(
            [
                (path, {"metadata": {"n": "2"}}),
                (f"/v1/responses/{response}/feedback", {"rating": "up"}),
                (f"/v1/responses/{response}/cancel", {"x": 1}),
            ]
        ):
            told = send(target, body, f"k3-{number}")
            assert told.status_code == 200
            assert send(target, body, f"k3-{number}").json() == told.json()
            assert send(target, {"other": 1}, f"k3-{number}").status_code in {400, 422}
        # What is refused can be sent again, corrected, under another key or the same.
        assert send("/v1/conversations", {"wrong": 1}, "k4").status_code == 400


def test_the_account_of_a_response_is_found_at_another_replica_and_by_its_tenant_only(
    running: Service, other: Service
) -> None:
    keys = {name: running.keys.create(name, name) for name in ("acme", "bolt")}
    headers = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
    try:
        with running.openai(api_key=keys["acme"]) as acme:
            stored = ask(acme, max_output_tokens=24)
            background = ask(acme, max_output_tokens=24, background=True)
        for response in (stored, background):
            path = f"/v1/requests/{response.id}/account"
            with other.http(**headers["acme"]) as http:
                wait_until(lambda path=path, http=http: http.get(path).is_success, "the account")
                account = http.get(path).json()
            times = {
                one["stage"]: (one["transfer_ms"], one["compute_ms"]) for one in account["stages"]
            }
            assert sum(map(sum, times.values())) == pytest.approx(account["total_ms"], rel=0.05)
            # Redis was asked for the conversation before the turn, and stored it behind it.
            assert times["load"][0] > 0
            assert times["store"][0] > 0
            assert account["error"] is None
            for service in (running, other):
                with service.http(**headers["bolt"]) as http:
                    refused = http.get(path)
                assert refused.status_code == 404
                assert refused.json()["error"]["code"] == "account_not_found"
    finally:
        running.keys.revoke("acme")
        running.keys.revoke("bolt")
        running.keys._ever_held_keys = False
        other.keys._ever_held_keys = False


def test_no_tenant_and_no_user_reaches_anothers_responses(running: Service) -> None:
    keys = {name: running.keys.create(name, name) for name in ("acme", "bolt")}
    try:
        with (
            running.openai(api_key=keys["acme"]) as acme,
            running.openai(api_key=keys["bolt"]) as bolt,
        ):
            own = ask(acme, "A secret", user="ann")
            made = acme.conversations.create(extra_body={"user": "ann"}).id
            unknown = own.id[:-24] + "0" * 24
            for reach in (
                lambda name: bolt.responses.retrieve(name),
                lambda name: bolt.responses.retrieve(name, stream=True),
                lambda name: bolt.responses.cancel(name),
                lambda name: bolt.responses.delete(name),
                lambda name: bolt.responses.input_items.list(name),
                lambda name: ask(bolt, previous_response_id=name),
            ):
                bodies = []
                for name in (own.id, unknown):
                    with pytest.raises(openai.NotFoundError) as caught:
                        reach(name)
                    bodies.append(caught.value.response.text.replace(name, "ID"))
                assert bodies[0] == bodies[1]
            with pytest.raises(openai.NotFoundError):
                ask(acme, conversation=made, user="bob")
            assert ask(acme, conversation=made, user="ann").conversation is not None
            # What a response begins is no conversation.
            hidden = "conv_" + own.id.removeprefix("resp_")[:-24]
            with pytest.raises(openai.NotFoundError):
                acme.conversations.retrieve(hidden)
            with pytest.raises(openai.NotFoundError):
                ask(acme, conversation=hidden)
    finally:
        running.keys.revoke("acme")
        running.keys.revoke("bolt")
        running.keys._ever_held_keys = False
