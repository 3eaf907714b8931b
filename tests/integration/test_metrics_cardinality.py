"""However many routes, models, tenants and mistakes clients make up, series stay few."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias, get_args

import httpx
import pytest
from fastapi.routing import APIRoute
from ingress_harness import MODEL, Service, service, settings_with, simulated
from prometheus_client.parser import text_string_to_metric_families

from serve_app.dialogue.manager import count_from_zero as count_dialogue_from_zero
from serve_app.dialogue.personas.schema import Action
from serve_app.ingress.gate import NO_ROUTE
from serve_app.state.connection import OPERATIONS
from serve_app.state.server import RedisServer
from serve_app.telemetry.account import STAGES
from serve_app.telemetry.metrics import FINISHED_REASONS
from serve_app.telemetry.outcomes import CODES, OTHER, REJECTIONS, count_from_zero

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MOST_SERIES = 1200
"""Of a node that serves one model."""

LABELS = {
    "code": CODES | {OTHER},
    "reason": REJECTIONS,
    "model_name": {MODEL},
    "finished_reason": set(FINISHED_REASONS),
    "operation": set(OPERATIONS),
    "action": set(get_args(Action)),
    "outcome": {"generated", "fixed_words", "kept", "failed"},
    "kind": {"summary", "facts"},
    "cause": {"lost", "handed_back"},
    "stage": set(STAGES),
    "part": {"transfer", "compute"},
    "deployment": {"Ingress", "Dialogue", "Tokenizer", "Generator"},
}


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
        backends=[simulated()],
        settings=settings_with(ingress={"max_body_bytes": 20_000}),
    ) as made:
        count_from_zero(MODEL)
        count_dialogue_from_zero()
        yield made


Series: TypeAlias = tuple[str, frozenset[tuple[str, str]]]


class Stranger:
    """A client that makes everything up: each one other things than the one before."""

    def __init__(self, running: Service, seed: int) -> None:
        self._dice = random.Random(seed)
        self._running = running
        self.words: list[str] = []
        name = self._word()
        self._key = running.keys.create(name, name)

    def _word(self) -> str:
        self.words.append("z" + "".join(self._dice.choices("abcdefghjkmnpqrstuvw", k=11)))
        return self.words[-1]

    def hammer(self, routes: list[APIRoute]) -> None:
        with self._running.http(authorization=f"Bearer {self._key}") as http:
            for route in routes:
                for method in (*sorted(route.methods), "PATCH"):
                    path = re.sub(r"\{[^}]+\}", lambda _: self._word(), route.path)
                    http.request(method, path, json={"model": self._word()})
            for _ in range(20):
                http.get(f"/{self._word()}/{self._word()}")
                http.request(self._dice.choice(("GET", "DELETE", "PUT")), f"/v1/{self._word()}")
            self._mistakes(http)
            self._talk(http)
        for key in (self._word(), f"parley-{self._word()}-{self._word()}"):
            with self._running.http(authorization=f"Bearer {key}") as http:
                http.post(CHAT, json={})
        with self._running.http() as http:
            http.post(CHAT, json={})

    def _mistakes(self, http: httpx.Client) -> None:
        asked = [{"role": "user", "content": self._word()}]
        good: dict[str, Any] = {"model": MODEL, "messages": asked, "max_tokens": 2}
        for wrong in (
            {"model": self._word()},
            {"temperature": self._word()},
            {"temperature": 99},
            {self._word(): 1},
            {"max_tokens": 10**6},
            {"messages": [{"role": self._word(), "content": ""}]},
            {"timeout": 1e-6},
        ):
            http.post(CHAT, json=good | wrong)
        for content in (b"{", b"[]", b"[" * 99, b'{"a": 1, "a": 2}', b"x" * 30_000, b""):
            http.post(CHAT, content=content)

    def _talk(self, http: httpx.Client) -> None:
        asked = [{"role": "user", "content": self._word()}]
        chat: dict[str, Any] = {"model": MODEL, "messages": asked, "max_tokens": 4}
        for stream in (False, True):
            named = {"stream": stream, "user": self._word()}
            assert http.post(CHAT, json=chat | named).status_code == 200
        # There is no time for it.
        http.post(CHAT, json=chat | {"stream": True, "max_tokens": 400, "timeout": 1e-6})
        conversation = http.post("/v1/conversations", json={"metadata": {"a": self._word()}})
        turn = {
            "model": MODEL,
            "conversation": conversation.json()["id"],
            "input": self._word(),
            "max_output_tokens": 4,
            "user": self._word(),
            "persona": self._word(),
        }
        assert http.post(RESPONSES, json=turn).status_code == 404
        del turn["persona"]
        headers = {"Idempotency-Key": self._word()}
        assert http.post(RESPONSES, json=turn, headers=headers).status_code == 200
        assert http.post(RESPONSES, json=turn | {"persona": "tutor"}).status_code == 200


def routes_of(router: Any) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from routes_of(route.original_router)


def series(http: httpx.Client) -> set[Series]:
    answer = http.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_series_stay_few_whatever_clients_make_up(running: Service) -> None:
    application: Any = running.like_serve._app
    routes = list(routes_of(application))
    assert len(routes) > 20
    known = LABELS | {"route": {NO_ROUTE, *(route.path for route in routes)}}

    def foreseen(one: Series) -> bool:
        return all(
            name in ("le", "status") or value in known.get(name, ()) for name, value in one[1]
        )

    first = Stranger(running, seed=1)
    key = running.keys.create("prometheus", "operator")
    with running.http(authorization=f"Bearer {key}") as http:
        before = series(http)  # other tests' in the same process
        first.hammer(routes)
        series(http)  # which is a request itself, and counted once it is over
        seen = series(http)
        others = [Stranger(running, seed=seed) for seed in (2, 3)]
        for stranger in others:
            stranger.hammer(routes)
        found = series(http)
    assert found == seen
    assert {one for one in found - before if not foreseen(one)} == set()
    assert 300 < sum(map(foreseen, found)) < MOST_SERIES

    values = {value for _, labels in found for name, value in labels}
    words = {word for stranger in (first, *others) for word in stranger.words}
    assert words.isdisjoint(values)
    statuses = {value for _, labels in found for name, value in labels if name == "status"}
    assert {"200", "400", "401", "404", "405"} <= statuses
    assert len(statuses) < 20
