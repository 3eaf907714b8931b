"""What overload and soak promise, and how it is judged."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from openai_server import answer
from sse_server import Request, refusal, serving

from load import overload, scaling, soak
from load.arrivals import OpenLevel
from load.chats import Target
from load.http_client import Address, RequestFailed
from load.measurements import Percentiles
from load.own_cluster import OwnCluster
from load.resources import Resources, Sample
from load.scaling import Phase
from load.soak import Soaked, hold_conversations
from load.verdicts import flat
from load.workload import Workload
from serve_app.api.body import parse_body
from serve_app.api.responses import ResponseRequest
from serve_app.errors import ConfigError
from serve_app.state.server import RedisServer

GOOD = OpenLevel(
    rate=1.0,
    seconds=10.0,
    requests=100,
    replies=80,
    refusals=20,
    errors={},
    goodput=95.0,
    in_time=0.8,
    ttft_ms=None,
    sent_ttft_ms=None,
    e2e_ms=None,
    refusal_ms=Percentiles(10.0, 30.0, 50.0),
    unsaid=0,
    late_ms=Percentiles(0.1, 0.5, 1.0),
    other_length=0,
)
MB = 1 << 20


def test_growth_beyond_what_is_allowed_is_not_flat() -> None:
    filling = [float(value) for value in range(0, 1000, 10)]
    judged = flat("x", filling + [1000.0] * 100, share=0.05, least=1.0, unit="MB")
    assert judged.held  # it fills in the first half, and stays
    growing = [1000.0 + value for value in range(200)]
    assert not flat("x", growing, share=0.04, least=1.0, unit="MB").held
    assert flat("x", growing, share=0.0, least=100.0, unit="MB").held
    assert not flat("x", [1.0], share=1.0, least=1.0, unit="MB").held


def test_what_is_promised_of_overload_holds() -> None:
    levels = [replace(GOOD, goodput=100.0, refusals=0), GOOD]
    assert all(one.held for one in overload.judge(levels, [100.0 * MB, 120.0 * MB]))


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"goodput": 85.0}, "goodput"),
        ({"refusal_ms": Percentiles(10.0, 30.0, 150.0)}, "refusals take"),
        ({"refusal_ms": None}, "refusals take"),
        ({"unsaid": 1}, "when to come back"),
        ({"errors": {"cut": 1}}, "nothing fails"),
        ({"late_ms": Percentiles(0.1, 5.0, 60.0)}, "this client"),
        ({"late_ms": None}, "this client"),
        ({"other_length": 1}, "tokens asked for"),
    ],
)
def test_each_promise_of_overload_can_break(change: dict[str, object], promise: str) -> None:
    levels = [replace(GOOD, goodput=100.0), replace(GOOD, **change)]  # type: ignore[arg-type]
    broken = [one for one in overload.judge(levels, [1.0, 1.0]) if not one.held]
    assert [promise in one.promise for one in broken] == [True]


def test_memory_that_grows_under_overload_breaks_a_promise() -> None:
    broken = [one for one in overload.judge([GOOD, GOOD], [1e9, 1.1e9]) if not one.held]
    assert [one.promise for one in broken] == ["memory stays flat"]


def samples(*, memory: int = 0, descriptors: int = 0, keys: int = 0) -> list[Sample]:
    """Return samples of something that grows by so much from one to the next."""
    return [
        Sample(
            float(number),
            {"Ingress": 500 * MB + number * memory},
            {"Ingress": 200 + number * descriptors},
            100 + number * keys,
        )
        for number in range(40)
    ]


def test_a_soak_that_holds_on_to_nothing_passes() -> None:
    assert all(one.held for one in soak.judge(samples(), Soaked(replies=10)))


@pytest.mark.parametrize(
    ("grows", "promise"),
    [
        ("memory", "memory stays"),
        ("descriptors", "file descriptors stay"),
        ("keys", "keys in Redis stay"),
    ],
)
def test_a_soak_finds_what_grows(grows: str, promise: str) -> None:
    step = 8 * MB if grows == "memory" else 4
    judged = soak.judge(samples(**{grows: step}), Soaked(replies=10))
    assert [one.promise for one in judged if not one.held] == [f"{promise} flat"]


def test_a_soak_whose_replies_fail_does_not_pass() -> None:
    failed = Soaked(replies=10, errors={"cut": 1})
    assert [one.promise for one in soak.judge(samples(), failed) if not one.held] == [
        "no reply fails"
    ]


UP = Phase("8 streams", 2, took_s=20.0, replies=30, errors={}, ttft_ms=None)
DOWN = Phase("one stream", 1, took_s=40.0, replies=9, errors={}, ttft_ms=None)


def test_a_cluster_that_scales_up_and_down_without_losing_a_reply_passes() -> None:
    assert all(one.held for one in scaling.judge([UP, DOWN]))


@pytest.mark.parametrize(
    ("change", "promise"),
    [({"took_s": None}, "with one stream there are 1"), ({"errors": {"cut": 1}}, "no reply fails")],
)
def test_replicas_that_never_come_and_replies_that_break_off_are_found(
    change: dict[str, object], promise: str
) -> None:
    judged = scaling.judge([UP, replace(DOWN, **change)])  # type: ignore[arg-type]
    assert [one.promise for one in judged if not one.held] == [promise]


WORKLOAD = Workload(turns=2, prompt_tokens=10, output_tokens=6)


async def test_every_conversation_that_is_created_is_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soak, "_LEAVES_AFTER_S", 0.01)
    async with serving(answer) as server:
        target = Target(Address.of(server.url), "some-model")
        soaked = await hold_conversations(target, WORKLOAD, 5, time.perf_counter() + 0.5)
    asked = Counter((request.method, request.path) for request in server.requests)
    assert soaked.errors == {}
    assert soaked.conversations == asked["POST", "/v1/conversations"] > 5
    assert asked["DELETE", "/v1/conversations/conv_1"] == soaked.conversations
    assert soaked.left > 0
    for request in server.requests:
        if request.path == "/v1/responses":
            parse_body(json.dumps(request.body).encode(), ResponseRequest, max_depth=32)
    assert soaked.replies + soaked.left == asked["POST", "/v1/responses"]


async def test_a_refusal_is_counted_and_the_talk_goes_on() -> None:
    asked = itertools.count()

    def refuse(request: Request) -> object:
        if request.path == "/v1/responses" and next(asked) >= WORKLOAD.turns:
            return [refusal(503, {"error": {"code": "overloaded"}})]
        return answer(request)

    async with serving(refuse) as server:  # type: ignore[arg-type]
        target = Target(Address.of(server.url), "some-model")
        soaked = await hold_conversations(target, WORKLOAD, 1, time.perf_counter() + 0.5)
    assert soaked.errors["503 overloaded"] > 1
    assert soaked.replies == WORKLOAD.turns


async def test_a_server_that_holds_no_conversation_is_not_soaked() -> None:
    async with serving(lambda _: [refusal(400, {"error": {"code": "no"}})]) as server:
        target = Target(Address.of(server.url), "some-model")
        with pytest.raises(RequestFailed, match="400 no"):
            await hold_conversations(target, WORKLOAD, 1, time.perf_counter() + 60)


def test_a_sample_counts_memory_descriptors_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OwnCluster, "processes", lambda _: [psutil.Process(os.getpid())])
    cluster = OwnCluster("http://127.0.0.1:1/v1", "run", os.getpid(), tmp_path)
    with pytest.raises(ConfigError, match="PARLEY_REDIS_URL"):
        Resources(cluster)
    server = RedisServer(tmp_path)
    server.start()
    try:
        resources = Resources(cluster)
        first = resources.look()
        with (tmp_path / "file").open("w"):
            second = resources.look()
    finally:
        server.stop()
    assert sum(first.memory.values()) > 10 * MB
    assert sum(second.descriptors.values()) > sum(first.descriptors.values())
    assert first.keys == 0
    assert resources.samples == [first, second]
