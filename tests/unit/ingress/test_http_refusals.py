"""What is refused, with which status and code, and that it costs no generator anything."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ingress_harness import (
    MODEL,
    Service,
    service,
    settings_with,
    simulated,
    wait_until,
)

from serve_app.messages.dialogue import PlanTurn, TurnPlan
from serve_app.settings import drain_flag, parley_home

CHAT = "/v1/chat/completions"
ASK: list[Any] = [{"role": "user", "content": "Hello"}]
LIMIT = 20_000


@pytest.fixture(scope="module")
def running(bundled_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = settings_with(ingress={"max_body_bytes": LIMIT, "max_messages": 20})
    with service(bundled_tokenizer, tmp_path_factory.mktemp("home"), settings=settings) as made:
        yield made


@pytest.fixture(scope="module")
def http(running: Service) -> Iterator[httpx.Client]:
    with running.http() as client:
        yield client


def body(**given: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": ASK, "max_tokens": 4} | given


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"temprature": 1}, 400, "unsupported_parameter", "temprature"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "unsupported_parameter", None),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": "Hello"}, 400, "invalid_type", "messages"),
        ({"messages": ASK * 21}, 400, "invalid_request", "messages"),
        ({"n": 9}, 400, "invalid_request", "n"),
        ({"temperature": "hot"}, 400, "invalid_type", "temperature"),
        ({"temperature": 9}, 400, "invalid_value", "temperature"),
        ({"max_tokens": True}, 400, "invalid_type", "max_tokens"),
        ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"stop": [""]}, 400, "invalid_value", None),
        ({"logit_bias": {"99999": 1}}, 400, "invalid_value", "logit_bias"),
        ({"stop_token_ids": [99999]}, 400, "invalid_value", "stop_token_ids"),
        ({"model": "gpt-9"}, 404, "model_not_found", "model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_parameter_is_refused_by_name(
    http: httpx.Client,
    running: Service,
    changes: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
    *,
    stream: bool,
) -> None:
    before = len(running.generators.requests)
    answer = http.post(CHAT, json=body(stream=stream, **changes))
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    if param is not None:
        assert error["param"] == param
    assert len(running.generators.requests) == before


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/tokenize"])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b'{"model": ', "invalid_json"),
        (b"[1, 2]", "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"a": 1, "a": 2}', "invalid_json"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "body_too_deep"),
    ],
)
def test_a_malformed_or_deep_body_is_refused(
    http: httpx.Client, path: str, content: bytes, code: str
) -> None:
    answer = http.post(path, content=content)
    assert (answer.status_code, error_of(answer)["code"]) == (400, code)


@pytest.mark.parametrize("excess", [1, 100 * LIMIT])
def test_a_declared_body_over_the_limit_is_refused(http: httpx.Client, excess: int) -> None:
    answer = http.post(CHAT, content=b"x" * (LIMIT + excess))
    assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")


def test_a_chunked_body_over_the_limit_is_refused(http: httpx.Client) -> None:
    answer = http.post(CHAT, content=(b"x" * 1000 for _ in range(100)))
    assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")


def test_a_body_of_just_the_limit_is_read(http: httpx.Client) -> None:
    empty = json.dumps(body(user="")).encode()
    content = json.dumps(body(user="x" * (LIMIT - len(empty)))).encode()
    assert len(content) == LIMIT
    answer = http.post(CHAT, content=content)
    assert error_of(answer)["param"] == "user"  # too long a name, but all of it arrived


def test_a_body_that_does_not_arrive_in_time_is_refused(
    bundled_tokenizer: Path, tmp_path: Path
) -> None:
    settings = settings_with(ingress={"read_timeout_s": 0.5})
    with service(bundled_tokenizer, tmp_path, settings=settings) as running:
        host, port = running.url.removeprefix("http://").split(":")
        # Less than the time that would apply without the setting.
        with socket.create_connection((host, int(port)), timeout=8) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n"
            started = time.monotonic()
            connection.sendall(head.encode() + b'{"model"')
            answer = b""
            while received := connection.recv(65536):  # until the server closes
                answer += received
            waited = time.monotonic() - started
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    assert waited > 0.3


def test_unknown_paths_and_methods_have_an_envelope_too(http: httpx.Client) -> None:
    answer = http.get("/v1/nothing")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_path")
    answer = http.put(CHAT)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")


def test_headers_that_would_change_serves_behaviour_do_not_get_past_the_edge(
    running: Service,
) -> None:
    headers = {
        "X-Request-Timeout-Seconds": "0",
        "x-request-disconnect-disabled": "?1",
        "X_Session_Id": "a",
        "x-session-id": "b",
        "serve_multiplexed_model_id": "c",
        "Serve-Multiplexed-Model-Id": "d",
        "x-request-id": "e",
        "traceparent": "f",
        "X-Kept": "g",
    }
    with running.http(**headers) as client:
        assert client.get("/health").status_code == 200
    names = {name for name, _ in running.like_serve.seen[-1]["headers"]}
    assert b"x-kept" in names
    assert not [
        name for name in names if name.startswith((b"x-req", b"x_", b"x-s", b"serve", b"tr"))
    ]


def test_more_requests_than_places_are_told_when_to_come_back(
    bundled_tokenizer: Path, tmp_path: Path
) -> None:
    settings = settings_with(ingress={"max_concurrent": 2})
    with (
        service(
            bundled_tokenizer, tmp_path, settings=settings, backends=[simulated(step_s=0.01)]
        ) as running,
        running.http() as http,
    ):
        long = body(max_tokens=400, stream=True)
        with http.stream("POST", CHAT, json=long), http.stream("POST", CHAT, json=long):
            refused = http.post(CHAT, json=body())
            assert http.get("/health").status_code == 200  # probes still get through
        assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        running.wait_until_idle()
        wait_until(lambda: http.post(CHAT, json=body()).status_code == 200, "a free place")


def with_two_places(
    tokenizer: Path, home: Path, *, step_s: float
) -> AbstractContextManager[Service]:
    """Return a service whose generator takes one stream and lets one wait."""
    settings = settings_with(generator={"slots": 1, "max_queued": 1})
    return service(tokenizer, home, settings=settings, backends=[simulated(step_s=step_s)])


def spoken(answer: httpx.Response) -> Iterator[str]:
    """Yield a chat's pieces of text; httpx closes a response when nobody holds its iterator any more."""
    for line in answer.iter_lines():
        if line.startswith("data: {"):
            text = json.loads(line[6:])["choices"][0]["delta"].get("content")
            if text:
                yield text


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
def test_what_no_generator_has_room_for_is_refused_before_anything_is_done_for_it(
    bundled_tokenizer: Path, tmp_path: Path, path: str
) -> None:
    with (
        with_two_places(bundled_tokenizer, tmp_path, step_s=0.1) as running,
        running.http() as http,
    ):
        key = running.keys.create("laptop", "acme")
        http.headers["authorization"] = f"Bearer {key}"
        long = body(max_tokens=400, stream=True)
        with http.stream("POST", CHAT, json=long) as first:
            words = spoken(first)
            next(words)  # by then the generator has told how full it is
            with http.stream("POST", CHAT, json=long):
                wait_until(lambda: running.streams == 2)
                seen, asked = len(running.like_serve.seen), len(running.generators.requests)
                for content in (json.dumps(body()), "{", ""):
                    refused = http.post(path, content=content)
                    assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
                    assert int(refused.headers["retry-after"]) >= 1
                    assert refused.headers["x-request-id"]
                assert len(running.like_serve.seen) == seen
                assert len(running.generators.requests) == asked
                # Who has no key is told so, and what needs no generator is answered.
                stranger = http.post(path, json=body(), headers={"authorization": "Bearer no"})
                assert stranger.status_code == 401
                assert http.get("/v1/models").status_code == 200
                counted = http.get("/metrics").text
                assert f'parley_requests_total{{route="{path}",status="503"}}' in counted
        running.wait_until_idle()
        wait_until(lambda: http.post(CHAT, json=body()).status_code == 200, "a free place")


def test_a_request_that_is_let_in_has_its_place_while_it_is_planned(
    bundled_tokenizer: Path, tmp_path: Path
) -> None:
    with (
        with_two_places(bundled_tokenizer, tmp_path, step_s=0.1) as running,
        running.http() as http,
        ThreadPoolExecutor() as pool,
    ):
        planning, go_on = threading.Event(), threading.Event()
        with http.stream("POST", CHAT, json=body(max_tokens=400, stream=True)) as first:
            words = spoken(first)
            next(words)
            plan = running.dialogue.plan

            async def held(turn: PlanTurn) -> TurnPlan:
                planning.set()
                await asyncio.to_thread(go_on.wait, 30)
                return await plan(turn)

            running.dialogue.plan = held  # type: ignore[method-assign]
            on_its_way = pool.submit(http.post, CHAT, json=body())
            assert planning.wait(30)
            refused = http.post(CHAT, json=body())
            assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
            go_on.set()
        assert on_its_way.result(30).status_code == 200


def test_a_full_engine_queue_is_told_before_the_first_byte(
    bundled_tokenizer: Path, tmp_path: Path
) -> None:
    with (
        with_two_places(bundled_tokenizer, tmp_path, step_s=0.01) as running,
        running.http() as http,
    ):
        long = body(max_tokens=400, stream=True)
        with http.stream("POST", CHAT, json=long), http.stream("POST", CHAT, json=long):
            wait_until(lambda: running.streams == 2)
            for stream in (False, True):
                refused = http.post(CHAT, json=body(stream=stream))
                assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
                assert int(refused.headers["retry-after"]) >= 1
            # One of two choices finds no place: none runs.
            refused = http.post(CHAT, json=body(n=2))
            assert refused.status_code == 503
            assert running.streams == 2
        running.wait_until_idle()


def test_what_nobody_foresaw_is_an_internal_error_without_details(
    bundled_tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        message = "the secret sauce"
        raise ValueError(message)

    with service(bundled_tokenizer, tmp_path) as running, running.http() as http:
        running.dialogue.before_plan = fail  # type: ignore[method-assign]
        answer = http.post(CHAT, json=body(stream=True))
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "the secret sauce" in caplog.text  # it is in the log


def test_without_keys_loopback_is_open_and_with_keys_it_is_not(
    bundled_tokenizer: Path, tmp_path: Path
) -> None:
    with service(bundled_tokenizer, tmp_path) as running, running.http() as http:
        assert http.get("/v1/models").status_code == 200
        key = running.keys.create("laptop", "acme")

        def status(path: str, authorization: str | None) -> tuple[int, str | None]:
            headers = {} if authorization is None else {"Authorization": authorization}
            answer = http.get(path, headers=headers)
            failed = answer.status_code != 200
            return answer.status_code, error_of(answer)["code"] if failed else None

        assert status("/v1/models", None) == (401, "missing_api_key")
        assert status("/v1/models", "Basic abc") == (401, "missing_api_key")
        assert status("/v1/models", f"Bearer {key}x") == (401, "invalid_api_key")
        assert status("/v1/models", f"Bearer {key}") == (200, None)
        assert status("/v1/models", f"bearer {key}") == (200, None)
        for path in ("/metrics", "/version", "/nothing"):
            assert status(path, None) == (401, "missing_api_key")
        for path in ("/health", "/ready"):
            assert status(path, None) == (200, None)
        refused = http.post(CHAT, json=body())
        assert refused.headers["www-authenticate"] == "Bearer"
        running.keys.revoke("laptop")
        assert status("/v1/models", f"Bearer {key}") == (401, "invalid_api_key")


def test_a_service_that_shuts_down_takes_no_more_work(
    bundled_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    flag = drain_flag(parley_home())
    flag.parent.mkdir(parents=True)
    with service(bundled_tokenizer, tmp_path / "service") as made, made.http() as http:
        flag.touch()
        refused = http.post(CHAT, json=body())
        assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
        assert http.get("/health").status_code == 200
        flag.unlink()
        assert http.post(CHAT, json=body()).status_code == 200
