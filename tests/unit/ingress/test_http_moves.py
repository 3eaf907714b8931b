"""What a client reads whose generator dies under its reply: what it would have read, after a pause."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from ingress_harness import (
    EOS,
    MODEL,
    PATIENCE_S,
    VOCAB,
    Replica,
    Service,
    service,
    settings_with,
    wait_until,
)

from serve_app.generation import channels
from serve_app.generation.backends.simulated import SimulatedBackend
from serve_app.ingress import generator_client

CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TOKENS, CUT = 60, 20
SAID: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me a long story."}]}
SEEDED = {"temperature": 1.0, "seed": 7, "top_p": 0.9, "frequency_penalty": 0.3}

ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, SAID | SEEDED | {"max_tokens": TOKENS}),
    "greedy": (CHAT, SAID | {"temperature": 0, "max_tokens": TOKENS, "min_tokens": TOKENS}),
    "choices": (
        CHAT,
        SAID | SEEDED | {"max_tokens": TOKENS, "n": 2, "logprobs": True, "top_logprobs": 2},
    ),
    "completion": (COMPLETION, {"prompt": "Once", "max_tokens": TOKENS, "logprobs": 1} | SEEDED),
    "response": (
        RESPONSE,
        {"input": "Tell me a story.", "max_output_tokens": TOKENS, "temperature": 1.0, "seed": 3},
    ),
}
VOLATILE = {"id", "item_id", "created", "created_at", "completed_at"}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "LINGER_S", 0.2)
    monkeypatch.setattr(generator_client, "_LONGEST_PAUSE_S", 0.1)


Serve = Callable[..., Service]


class Pausing(SimulatedBackend):
    """Stops when it is told to, in the middle of a reply, until it may go on.

    Attributes:
        steps_left: steps before the pause; None for no pause.
        paused: set while it waits, or has.
        go_on: ends the pause.
    """

    def __init__(self) -> None:
        super().__init__(vocab_size=VOCAB, avoid=(EOS,))
        self.pause_after(None)

    def pause_after(self, steps: int | None) -> None:
        self.steps_left = steps
        self.paused, self.go_on = threading.Event(), threading.Event()

    def step(self, prompts: Any, tokens: Any, lengths: Any, drafts: Any = ()) -> Any:
        if len(tokens) and self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left <= 0:
                self.steps_left = None
                self.paused.set()
                assert self.go_on.wait(PATIENCE_S)
        return super().step(prompts, tokens, lengths, drafts)


@pytest.fixture
def serve(bundled_tokenizer: Path, tmp_path: Path) -> Iterator[Serve]:
    """Starts a service."""
    running = []

    def start(replicas: int = 2, **ingress: Any) -> Service:
        context = service(
            bundled_tokenizer,
            tmp_path,
            backends=[Pausing] * replicas,
            settings=settings_with(ingress=ingress),
        )
        running.append(context)
        return context.__enter__()

    yield start
    for context in running:
        context.__exit__(None, None, None)


def told(running: Service, path: str, body: dict[str, Any], *, stream: bool) -> Any:
    """Return all that a client is told, but for what is another thing each time."""
    extra: dict[str, Any] = {"model": MODEL, "stream": stream}
    if stream and path != RESPONSE:
        extra["stream_options"] = {"include_usage": True}
    with running.http() as http:
        answer = http.post(path, json=body | extra)
    assert answer.status_code == httpx.codes.OK, answer.text
    if not stream:
        return settled(answer.json())
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    events = [settled(json.loads(line.removeprefix("data: "))) for line in lines]
    # Choices take turns as they come.
    return sorted(events, key=lambda event: [one["index"] for one in event.get("choices") or []])


def settled(value: Any) -> Any:
    match value:
        case {**fields}:
            return {name: settled(it) for name, it in fields.items() if name not in VOLATILE}
        case [*items]:
            return [settled(it) for it in items]
    return value


def holder(running: Service) -> Replica:
    name = running.generators.placed[-1]
    return next(replica for replica in running.replicas if replica.name == name)


def after(running: Service, strike: Callable[[Replica], None], ask: Any) -> Any:
    """Ask, strike the generator in the middle of its answer, and return what came."""
    backends = [cast("Pausing", replica.engine._core._backend) for replica in running.replicas]
    for backend in backends:
        backend.pause_after(CUT)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        wait_until(lambda: any(backend.paused.is_set() for backend in backends), "the pause")
        for backend in backends:
            backend.steps_left = None
        # What came before has arrived by now, or does at once: it stood in an earlier frame.
        wait_until(lambda: arrived(running) >= CUT / 2, "the first tokens")
        strike(holder(running))
        for backend in backends:
            backend.go_on.set()
        return asking.result()


def arrived(running: Service) -> int:
    """Tokens of each reply that the ingress has, at least."""
    return min(
        (len(stream._tokens) for stream in list(running.client._streams.values())), default=0
    )


@pytest.mark.parametrize(
    ("kind", "stream"), [*((kind, True) for kind in ASKED), ("choices", False), ("response", False)]
)
def test_a_reply_outlives_its_generator(serve: Serve, kind: str, *, stream: bool) -> None:
    running = serve()
    path, body = ASKED[kind]

    def ask() -> Any:
        return told(running, path, body, stream=stream)

    def kill(replica: Replica) -> None:
        running.call(replica.die)

    ask()  # so that all later ones find as much in the cache
    undisturbed = ask()
    asked = len(running.generators.requests)
    assert after(running, kill, ask) == undisturbed
    choices = body.get("n", 1)
    moved = running.generators.requests[asked + choices :]
    assert len(moved) == choices
    assert all(CUT / 2 <= len(request.output) < TOKENS for request in moved)
    assert {request.moves for request in moved} == {1}
    running.wait_until_idle()


def test_a_stop_string_ends_a_reply_across_its_two_generators(serve: Serve) -> None:
    running = serve()
    body = SAID | {"temperature": 0, "max_tokens": TOKENS, "stream": False}
    text = told(running, CHAT, body, stream=False)["choices"][0]["message"]["content"]
    stop = text[-40:-30]
    body["stop"] = [stop]
    told(running, CHAT, body, stream=False)
    undisturbed = told(running, CHAT, body, stream=False)
    assert text.startswith(undisturbed["choices"][0]["message"]["content"])
    reply = after(
        running,
        lambda replica: running.call(replica.die),
        lambda: told(running, CHAT, body, stream=False),
    )
    assert reply == undisturbed
    assert reply["choices"][0]["finish_reason"] == "stop"
    running.wait_until_idle()


def test_a_reply_waits_for_its_only_generator_to_be_back(serve: Serve) -> None:
    running = serve(replicas=1)
    path, body = ASKED["chat"]

    def ask() -> Any:
        return told(running, path, body, stream=True)

    ask()
    undisturbed = ask()

    def restart(replica: Replica) -> None:
        def come_back() -> None:
            replica.alive = True

        running.call(replica.die)
        running.call(lambda: running.loop.call_later(0.3, come_back))

    assert after(running, restart, ask) == undisturbed


def test_a_generator_that_stops_hands_its_replies_over(serve: Serve) -> None:
    running = serve()
    path, body = ASKED["chat"]

    def ask() -> Any:
        return told(running, path, body, stream=True)

    ask()
    undisturbed = ask()
    assert after(running, lambda replica: replica.engine.drain(0.0), ask) == undisturbed
    # The next ones go where they are taken.
    assert ask()
    running.wait_until_idle()


def test_a_silent_generator_is_left(serve: Serve) -> None:
    running = serve(generator_silence_s=1.5)
    path, body = ASKED["chat"]

    def ask() -> Any:
        return told(running, path, body, stream=True)

    def silence(replica: Replica) -> None:
        replica.silent = True

    ask()
    undisturbed = ask()
    assert after(running, silence, ask) == undisturbed
    # It is alive after all, and doesn't go on for nobody.
    running.wait_until_idle()


def test_a_reply_that_nobody_can_go_on_with_ends_with_an_error_in_its_time(serve: Serve) -> None:
    running = serve(replicas=1)
    path, body = ASKED["chat"]
    events = after(
        running,
        lambda replica: running.call(replica.die),
        lambda: told(running, path, body | {"timeout": 1.5}, stream=True),
    )
    (error,) = (event["error"] for event in events if "error" in event)
    assert error["code"] == "generator_lost"
    running.wait_until_idle()


def test_the_account_of_a_reply_that_moved_says_so_and_sums_up(serve: Serve) -> None:
    running = serve()
    body = SAID | {"max_tokens": TOKENS, "model": MODEL}

    def ask() -> dict[str, Any]:
        with running.http() as http:
            reply = http.post(CHAT, json=body).json()
            return dict(http.get(f"/v1/requests/{reply['id']}/account").json())

    account = after(running, lambda replica: running.call(replica.die), ask)
    parts = {stage.pop("stage"): stage for stage in account["stages"]}
    assert account["moves"] == 1
    assert min(min(stage.values()) for stage in parts.values()) >= 0
    assert parts["move"]["compute_ms"] > 0
    whole = sum(sum(stage.values()) for stage in parts.values())
    assert whole == pytest.approx(account["total_ms"], rel=0.05)
