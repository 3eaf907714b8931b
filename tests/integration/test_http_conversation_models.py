"""Conversations remember the model that was named in them last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ingress_harness import MODEL, Service, service

from serve_app.state.server import RedisServer

OTHER = "other"


@pytest.fixture(scope="module")
def running(
    bundled_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> Iterator[Service]:
    url = shared_redis.url()
    assert url is not None
    folder = tmp_path_factory.mktemp("keys")
    with service(bundled_tokenizer, folder, redis_url=url, further={OTHER: 512}) as made:
        yield made


@pytest.fixture
def http(running: Service) -> Iterator[httpx.Client]:
    with running.http() as client:
        yield client


def respond(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post("/v1/responses", json={"input": "Hello.", "max_output_tokens": 2} | body)
    assert answer.status_code == httpx.codes.OK, answer.text
    found: dict[str, Any] = answer.json()
    return found


def conversation(http: httpx.Client, **body: Any) -> str:
    answer = http.post("/v1/conversations", json=body)
    assert answer.status_code == httpx.codes.OK, answer.text
    return str(answer.json()["id"])


def test_a_turn_without_a_model_goes_on_with_the_one_that_was_named_last(
    http: httpx.Client, running: Service
) -> None:
    place = conversation(http)
    assert respond(http, conversation=place)["model"] == MODEL
    assert respond(http, conversation=place, model=OTHER)["model"] == OTHER
    before = len(running.further[OTHER].requests)
    assert respond(http, conversation=place)["model"] == OTHER
    assert len(running.further[OTHER].requests) == before + 1
    assert respond(http, conversation=place, model=MODEL)["model"] == MODEL
    assert respond(http, conversation=place)["model"] == MODEL


def test_a_conversation_may_begin_with_a_model(http: httpx.Client) -> None:
    assert respond(http, conversation=conversation(http, model=OTHER))["model"] == OTHER
    refused = http.post("/v1/conversations", json={"model": "none"})
    assert refused.status_code == httpx.codes.NOT_FOUND


def test_a_chain_of_responses_remembers_its_model_too(http: httpx.Client) -> None:
    first = respond(http, model=OTHER, store=True)
    second = respond(http, previous_response_id=first["id"])
    assert second["model"] == OTHER
    assert respond(http, previous_response_id=second["id"])["model"] == OTHER


def test_a_stored_response_says_which_model_made_it(http: httpx.Client) -> None:
    made = respond(http, model=OTHER, store=True)
    assert http.get(f"/v1/responses/{made['id']}").json()["model"] == OTHER


def test_a_conversation_whose_model_is_gone_goes_on_with_the_first(
    bundled_tokenizer: Path, tmp_path: Path, running: Service, shared_redis: RedisServer
) -> None:
    with running.http() as http:
        place = conversation(http, model=OTHER)
    url = shared_redis.url()
    assert url is not None
    folder = running._folder  # the same encryption keys
    with (
        service(bundled_tokenizer, folder, redis_url=url, further={"third": 512}) as later,
        later.http() as http,
    ):
        assert respond(http, conversation=place)["model"] == MODEL
