"""Where a request's time went, as clients read it: in a header, in the last event, and afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ingress_harness import MODEL, Service, service, simulated

from serve_app.telemetry.account import STAGES

ASK: list[Any] = [{"role": "user", "content": "Tell me about the sea."}]


@pytest.fixture(scope="module")
def running(bundled_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(
        bundled_tokenizer, tmp_path_factory.mktemp("home"), backends=[simulated(step_s=0.01)]
    ) as made:
        yield made


@pytest.fixture(scope="module")
def http(running: Service) -> Iterator[httpx.Client]:
    with running.http() as made:
        yield made


def chat(**given: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": ASK, "max_tokens": 24, "ignore_eos": True} | given


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def stages(account: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {
        stage["stage"]: (stage["transfer_ms"], stage["compute_ms"]) for stage in account["stages"]
    }


def assert_sums_up(account: dict[str, Any]) -> None:
    """The parts come to the whole, within 5 %."""
    parts = sum(map(sum, stages(account).values()))
    assert parts == pytest.approx(account["total_ms"], rel=0.05)
    assert account["unaccounted_ms"] == pytest.approx(account["total_ms"] - parts, abs=0.05)
    assert min(map(min, stages(account).values())) >= 0
    assert list(stages(account)) == [name for name in STAGES if name in stages(account)]


def account_of(http: httpx.Client, request: str) -> dict[str, Any]:
    answer = http.get(f"/v1/requests/{request}/account")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def timings(response: httpx.Response) -> dict[str, dict[str, float]]:
    """Read a header Server-Timing."""
    entries = [entry.split(";") for entry in response.headers["server-timing"].split(", ")]
    return {
        name: {key: float(value) for key, value in (part.split("=") for part in parts)}
        for name, *parts in entries
    }


def test_a_streamed_chat_tells_its_account_in_its_last_event(http: httpx.Client) -> None:
    began = time.perf_counter()
    body = chat(stream=True, stream_options={"include_timing": True, "include_usage": True})
    response = http.post("/v1/chat/completions", json=body)
    took_ms = 1000 * (time.perf_counter() - began)
    assert response.text.endswith("data: [DONE]\n\n")
    *_, usage, last = events(response)
    assert usage["usage"]["completion_tokens"] == 24
    assert (last["choices"], last["usage"]) == ([], None)
    account = last["parley"]["timing"]
    assert_sums_up(account)
    assert took_ms / 2 < account["total_ms"] <= took_ms
    # So long its steps take at least.
    assert 22 * 10 < stages(account)["decode"][1] < account["total_ms"]
    assert 0 < account["first_token_ms"] < account["total_ms"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat()),
        (
            "/v1/completions",
            {"model": MODEL, "prompt": "The sea", "max_tokens": 24, "ignore_eos": True},
        ),
        (
            "/v1/responses",
            {"model": MODEL, "input": "Hi", "max_output_tokens": 24, "ignore_eos": True},
        ),
    ],
)
def test_a_reply_that_is_not_streamed_tells_it_in_a_header(
    http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    response = http.post(path, json=body)
    assert response.status_code == 200
    told = timings(response)
    *parts, _, total = told
    assert total == "total"
    assert sum(told[name]["dur"] for name in parts) == pytest.approx(told["total"]["dur"], rel=0.05)
    for name in parts:
        parts_ms = told[name]["transfer"] + told[name]["compute"]
        assert parts_ms == pytest.approx(told[name]["dur"], abs=0.01)
    assert {"receive", "validate", "tokenize", "submit", "queue", "prefill", "decode"} <= set(parts)
    # Afterwards there is a little more to tell: the way of the answer itself.
    account = account_of(http, response.json()["id"])
    assert_sums_up(account)
    assert account["total_ms"] >= told["total"]["dur"]
    assert account["api"] == path.removeprefix("/v1/").replace("/", ".")
    assert account["completion_tokens"] == 24
    assert account["error"] is None


def test_a_streamed_response_tells_it_in_its_last_event_if_it_is_asked(
    http: httpx.Client,
) -> None:
    body = {"model": MODEL, "input": "Hi", "max_output_tokens": 8, "stream": True}
    *_, last = events(http.post("/v1/responses", json=body))
    assert "timing" not in last["response"]["parley"]
    body["stream_options"] = {"include_timing": True}
    *_, last = events(http.post("/v1/responses", json=body))
    account = last["response"]["parley"]["timing"]
    assert account["id"] == last["response"]["id"]
    assert_sums_up(account)
    del body["stream"]
    refused = http.post("/v1/responses", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "stream_options.include_timing"


def test_several_choices_are_accounted_by_the_one_that_ended_last(http: httpx.Client) -> None:
    account = account_of(http, http.post("/v1/chat/completions", json=chat(n=3)).json()["id"])
    assert_sums_up(account)
    assert (account["choices"], account["completion_tokens"]) == (3, 72)


def test_a_reply_that_a_stop_string_ends_sums_up(http: httpx.Client) -> None:
    whole = http.post("/v1/chat/completions", json=chat(temperature=0)).json()
    text = whole["choices"][0]["message"]["content"]
    body = chat(temperature=0, max_tokens=300, stop=text[len(text) // 2 :][:6])
    reply = http.post("/v1/chat/completions", json=body).json()
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert_sums_up(account_of(http, reply["id"]))


def test_a_request_that_failed_is_found_by_its_x_request_id(http: httpx.Client) -> None:
    body = chat(timeout=0.1, max_tokens=300)
    failed = http.post("/v1/chat/completions", json=body)
    assert failed.status_code == 504
    account = account_of(http, failed.headers["x-request-id"])
    assert account["error"] == "deadline_exceeded"
    assert account["total_ms"] >= 100
    assert stages(account)["decode"][1] > 50


def test_nothing_is_kept_of_what_generates_nothing(http: httpx.Client) -> None:
    answers = (
        http.post("/tokenize", json={"model": MODEL, "prompt": "x"}),
        http.post("/v1/chat/completions", json={}),
    )
    for answer in answers:
        # Redis is away here, so nobody knows whether another replica has it.
        asked = http.get(f"/v1/requests/{answer.headers['x-request-id']}/account")
        assert asked.json()["error"]["code"] == "state_unavailable"
