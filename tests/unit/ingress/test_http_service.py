"""What the service says of itself: health, readiness, version and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ingress_harness import MODEL, Service, service, simulated, wait_until
from prometheus_client.parser import text_string_to_metric_families

from serve_app import __version__
from serve_app.errors import Overloaded
from serve_app.ingress.routes import service as service_route
from serve_app.telemetry.outcomes import REJECTIONS

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def running(bundled_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(
        bundled_tokenizer, tmp_path_factory.mktemp("home"), backends=[simulated(step_s=0.01)]
    ) as made:
        yield made


@pytest.fixture(scope="module")
def http(running: Service) -> Iterator[httpx.Client]:
    with running.http() as client:
        yield client


def samples(http: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


class Change:
    """Differences between two scrapes."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._before = samples(http)

    def of(self, name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return samples(self._http).get(key, 0.0) - self._before.get(key, 0.0)


def body(**given: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": "Hello"}]
    return {"model": MODEL, "messages": asked, "max_tokens": 12} | given


def test_alive_and_version(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/version").json() == {"version": __version__}


def test_ready_without_redis_is_degraded(http: httpx.Client) -> None:
    answer = http.get("/ready")
    assert answer.status_code == 200
    said = answer.json()
    assert (said["status"], said["redis"], said["model"]) == ("degraded", "down", MODEL)
    assert said["generator"]["slots"] == 4


def test_not_ready_without_a_generator(
    http: httpx.Client, running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stats() -> dict[str, float]:
        message = "The service is busy or restarting; try again shortly."
        raise Overloaded(message, retry_after=1.0)

    monkeypatch.setattr(running.generators, "stats", stats)
    answer = http.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
    assert answer.headers["retry-after"] == "1"
    assert http.get("/health").status_code == 200


def test_readiness_is_told_before_a_part_has_been_waited_for(
    http: httpx.Client, running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stats() -> dict[str, float]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(running.generators, "stats", stats)
    monkeypatch.setattr(service_route, "_READY_S", 0.1)
    answer = http.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
    assert "restarting" in answer.json()["reason"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_is_counted_in_full(http: httpx.Client, running: Service, *, stream: bool) -> None:
    change = Change(http)
    http.post(CHAT, json=body(stream=stream))
    prompt = len(running.generators.requests[-1].prompt)
    assert change.of("parley_requests_total", route=CHAT, status="200") == 1
    labels = {"model_name": MODEL}
    assert change.of("parley_prompt_tokens_total", **labels) == prompt
    assert change.of("parley_generation_tokens_total", **labels) == 12
    assert change.of("parley_prompt_tokens_cached_total", **labels) <= prompt
    assert change.of("parley_request_success_total", finished_reason="length", **labels) == 1
    for histogram in (
        "parley_time_to_first_token_seconds",
        "parley_request_time_per_output_token_seconds",
        "parley_e2e_request_latency_seconds",
        "parley_request_queue_time_seconds",
        "parley_request_prompt_tokens",
        "parley_request_generation_tokens",
        "parley_request_max_num_generation_tokens",
    ):
        assert change.of(f"{histogram}_count", **labels) == 1, histogram
    # Tokens that come together have no time between them.
    assert 1 <= change.of("parley_inter_token_latency_seconds_count", **labels) <= 11
    between = change.of("parley_inter_token_latency_seconds_sum", **labels)
    mean = change.of("parley_request_time_per_output_token_seconds_sum", **labels)
    assert between == pytest.approx(11 * mean)
    assert mean > 0.001
    first = change.of("parley_time_to_first_token_seconds_sum", **labels)
    whole = change.of("parley_e2e_request_latency_seconds_sum", **labels)
    assert whole > first + between > between


def test_the_longest_of_several_replies_is_measured(http: httpx.Client) -> None:
    change = Change(http)
    http.post(CHAT, json=body(n=3))
    labels = {"model_name": MODEL}
    assert change.of("parley_request_generation_tokens_sum", **labels) == 36
    assert change.of("parley_request_max_num_generation_tokens_sum", **labels) == 12
    assert change.of("parley_e2e_request_latency_seconds_count", **labels) == 1


def test_a_refusal_is_counted_by_its_reason(http: httpx.Client, running: Service) -> None:
    change = Change(http)
    http.post(CHAT, content=b"x" * 2_000_000)
    assert change.of("parley_requests_rejected_total", reason="body_too_large") == 1
    # A mistake is none: it was looked at.
    http.post(CHAT, json=body(temperature="hot"))
    http.get("/made/up")
    for reason in REJECTIONS - {"body_too_large"}:
        assert change.of("parley_requests_rejected_total", reason=reason) == 0
    assert change.of("parley_errors_total", code="unknown_path") == 1


def test_errors_are_counted_by_code(http: httpx.Client) -> None:
    change = Change(http)
    http.post(CHAT, json=body(temperature="hot"))
    http.post(CHAT, content=b"x" * 2_000_000)
    assert change.of("parley_errors_total", code="invalid_type") == 1
    assert change.of("parley_errors_total", code="body_too_large") == 1
    assert change.of("parley_requests_total", route=CHAT, status="400") == 1


def test_a_broken_stream_counts_as_an_error(http: httpx.Client) -> None:
    change = Change(http)
    http.post(CHAT, json=body(stream=True, timeout=0.001, max_tokens=400))
    assert change.of("parley_errors_total", code="deadline_exceeded") == 1


def test_a_client_that_left_counts_as_gone(http: httpx.Client, running: Service) -> None:
    change = Change(http)
    with http.stream("POST", CHAT, json=body(stream=True, max_tokens=400)) as answer:
        lines = answer.iter_lines()  # dropped, it would close the connection
        next(lines)
        assert change.of("parley_requests_in_progress") == 1
    running.wait_until_idle()
    wait_until(lambda: change.of("parley_errors_total", code="client_gone") == 1)
    # A reply that was read to its end doesn't.
    http.post(CHAT, json=body(stream=True))
    assert change.of("parley_errors_total", code="client_gone") == 1
    assert change.of("parley_requests_in_progress") == 0


def test_labels_do_not_grow_with_what_clients_make_up(http: httpx.Client) -> None:
    change = Change(http)
    for number in range(3):
        http.get(f"/made/up/{number}")
        http.get(f"/v1/models/made-up-{number}")
    assert change.of("parley_requests_total", route="none", status="404") == 3
    assert change.of("parley_requests_total", route="/v1/models/{name:path}", status="404") == 3
