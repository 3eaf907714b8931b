"""Turns that are stored: what of a trace is Redis', and that nothing stored is in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ingress_harness import MODEL, Service, service, simulated, wait_until
from recorded_spans import Spans, recorded_spans

from serve_app.state.server import RedisServer


@pytest.fixture
def running(
    bundled_tokenizer: Path, tmp_path: Path, shared_redis: RedisServer
) -> Iterator[Service]:
    url = shared_redis.url()
    assert url is not None
    with service(bundled_tokenizer, tmp_path, redis_url=url, backends=[simulated()]) as made:
        yield made


@pytest.fixture
def spans() -> Iterator[Spans]:
    with recorded_spans() as spans:
        yield spans


def test_a_stored_turn_has_its_round_trips_to_redis_in_its_trace(
    running: Service, spans: Spans
) -> None:
    with running.openai() as client:
        conversation = client.conversations.create().id
        response = client.responses.create(
            model=MODEL,
            input="My secret wish is to see whales.",
            conversation=conversation,
            max_output_tokens=4,
        )
    wait_until(lambda: spans.named("POST /v1/responses"), "the end of the request")
    tree = spans.tree()
    assert tree["redis begin_turn"] == "dialogue.plan"
    assert tree["redis commit_turn"] == "dialogue.commit"
    assert tree["dialogue.plan"] == tree["dialogue.commit"] == "POST /v1/responses"
    told = dict(spans.one("redis commit_turn").attributes or {})
    assert told == {
        "db.system.name": "redis",
        "db.operation.name": "EVAL",
        "db.stored_procedure.name": "commit_turn",
    }
    told = dict(spans.one(f"chat {MODEL}").attributes or {})
    assert told["gen_ai.conversation.id"] == conversation
    assert told["gen_ai.response.id"] == response.id
    everything = "".join(one.to_json() for one in spans.all())
    assert "secret wish" not in everything
    assert response.output_text not in everything
