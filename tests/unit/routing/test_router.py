"""Which generator replica gets a stream."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.generation.deployment import Generator
from serve_app.messages.generation import GenerateRequest, SamplingParams
from serve_app.routing import router as routing
from serve_app.routing.homes import LatestKeys
from serve_app.routing.own_streams import OwnStreams
from serve_app.routing.pool_choice import LOST_LOAD
from serve_app.routing.router import GeneratorRouter, rank_replicas

REPLICAS = ["a", "b", "c", "d"]
KEYS = [f"conversation-{number}" for number in range(400)]


def first(replicas: list[str], key: str, load: dict[str, float] | None = None) -> str:
    return rank_replicas(replicas, key, load or {})[0]


def test_every_replica_is_ranked_once() -> None:
    for key in (None, *KEYS[:20]):
        assert sorted(rank_replicas(REPLICAS, key, {"b": 3, "gone": 9})) == REPLICAS
    assert rank_replicas([], "key", {}) == []


def test_a_conversation_keeps_its_replica_in_whatever_order_replicas_are_listed() -> None:
    for key in KEYS:
        assert first(REPLICAS, key) == first(REPLICAS[::-1], key)


def test_conversations_are_spread_over_all_replicas() -> None:
    count = Counter(first(REPLICAS, key) for key in KEYS)
    assert min(count[replica] for replica in REPLICAS) > len(KEYS) / len(REPLICAS) / 2


def test_a_replica_that_leaves_moves_only_its_own_conversations() -> None:
    left = REPLICAS[:-1]
    for key in KEYS:
        if (before := first(REPLICAS, key)) in left:
            assert first(left, key) == before


def test_a_new_conversation_goes_where_there_is_least_to_do() -> None:
    load = {"a": 3.0, "b": 3.0, "c": 2.0, "d": 3.0}
    assert {first(REPLICAS, key, load) for key in KEYS} == {"c"}
    assert {first(REPLICAS, key, load | {"a": 2.0}) for key in KEYS} == {"a", "c"}


def test_a_home_may_be_busier_than_the_mean_but_not_by_much() -> None:
    busy = {"a": 8.0, "b": 17.0, "c": 8.0, "d": 7.0}
    # A mean of 10 allows 1.5 * 10 + 2 streams.
    assert rank_replicas(REPLICAS, "key", busy)[0] == "d"
    assert rank_replicas(REPLICAS, "key", busy, "b")[0] == "b"
    assert rank_replicas(REPLICAS, "key", busy | {"b": 18.0, "d": 6.0}, "b")[0] == "d"


def test_replicas_to_be_avoided_are_no_reason_to_load_another_one_more() -> None:
    load = dict.fromkeys("cd", float(LOST_LOAD)) | {"a": 30.0, "b": 0.0}
    assert rank_replicas(REPLICAS, "key", load, "a")[0] == "b"
    assert rank_replicas(REPLICAS, "key", dict.fromkeys("acd", float(LOST_LOAD)) | {"b": 5.0}) == [
        "b",
        *rank_replicas(["a", "c", "d"], "key", {}),
    ]


def test_a_replica_with_fewer_slots_gets_fewer_streams() -> None:
    slots = {"a": 64.0, "b": 64.0, "c": 64.0, "d": 16.0}  # d shares its GPU
    load = {"a": 12.0, "b": 13.0, "c": 14.0, "d": 4.0}
    assert rank_replicas(REPLICAS, None, load, slots=slots) == ["a", "b", "c", "d"]
    # As a home it may be taken by 1.5 times what all are, and two streams.
    assert rank_replicas(REPLICAS, "key", load | {"d": 7.0}, "d", slots=slots)[0] == "d"
    assert rank_replicas(REPLICAS, "key", load | {"d": 8.0}, "d", slots=slots)[0] == "a"


def test_a_home_without_a_free_slot_is_left_only_while_another_has_one() -> None:
    slots = dict.fromkeys(REPLICAS, 8.0)
    load = dict.fromkeys(REPLICAS, 7.0)
    assert rank_replicas(REPLICAS, "key", load | {"b": 8.0}, "b", slots=slots)[0] != "b"
    full = dict.fromkeys(REPLICAS, 8.0)
    assert rank_replicas(REPLICAS, "key", full | {"b": 9.0}, "b", slots=slots)[0] == "b"


def test_slots_count_once_every_replica_has_published_its_own() -> None:
    load = {"a": 2.0, "b": 1.0, "c": 3.0, "d": 4.0}
    slots = {"a": 64.0, "b": 2.0, "c": 64.0}
    assert rank_replicas(REPLICAS, None, load, slots=slots) == ["b", "a", "c", "d"]


@pytest.mark.parametrize("home", [None, "a", "gone"])
@pytest.mark.parametrize("key", [None, KEYS[0]])
def test_what_is_not_preferred_goes_by_load(key: str | None, home: str | None) -> None:
    load = {"a": 3.0, "b": 1.0, "c": 2.0}  # none is known of d
    ranked = rank_replicas(REPLICAS, key, load, home)
    assert ranked == ([*"adbc"] if key and home == "a" else [*"dbca"])


def new_router() -> GeneratorRouter:
    router = GeneratorRouter.__new__(GeneratorRouter)  # it needs nothing of Serve's to choose
    router.initialize_state()
    return router


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> OwnStreams:
    """The streams of this process, of which there are none yet."""
    streams = OwnStreams()
    monkeypatch.setattr(routing, "own_streams", lambda: streams)
    return streams


def chosen(
    call: dict[str, Any] | None,
    router: GeneratorRouter | None = None,
    stream: str | None = None,
    latest: dict[str, bytes] = {},  # noqa: B006  (never changed)
    passed_over: int = 0,
    **published: float,
) -> list[str]:
    """Return the names of the replicas that the router offers, best first; one of them takes the call."""
    candidates: list[Any] = [
        SimpleNamespace(
            replica_id=SimpleNamespace(unique_id=name),
            routing_stats=({} if published.get(name) is None else {"streams": published[name]})
            | ({"latest": latest[name]} if name in latest else {}),
        )
        for name in REPLICAS
    ]
    sampling = SamplingParams(max_tokens=1, seed=0)
    args = () if stream is None else (GenerateRequest(stream, "", 0, (1,), sampling),)
    pending: Any = None if call is None else SimpleNamespace(args=args, kwargs=call)
    router = router or new_router()
    ranks = asyncio.run(router.choose_replicas(candidates, pending))
    assert all(len(rank) == 1 for rank in ranks)
    if pending is not None:
        took: Any = ranks[min(passed_over, len(ranks) - 1)][0].replica_id
        router.on_request_routed(pending, took, None)  # type: ignore[arg-type]
    return [rank[0].replica_id.unique_id for rank in ranks]


def test_a_pinned_call_goes_to_its_replica_alone() -> None:
    assert chosen({"replica": "c", "affinity": KEYS[0]}, c=1000.0) == ["c"]


def test_a_call_pinned_to_a_replica_that_is_gone_goes_to_any() -> None:
    assert sorted(chosen({"replica": "gone"})) == REPLICAS


def test_load_is_the_greater_of_what_the_caller_counts_and_what_replicas_publish() -> None:
    assert chosen({"load": {"a": 5, "b": 1}, "affinity": None}, b=4.0, c=3.0, d=9.0) == [*"cbad"]


def test_a_call_without_routing_goes_by_what_replicas_publish() -> None:
    for call in (None, {}, {"load": None}):
        assert chosen(call, a=4.0, b=3.0, c=2.0, d=1.0) == [*"dcba"]


def test_a_conversation_that_had_to_go_elsewhere_stays_there() -> None:
    router, call = new_router(), {"affinity": KEYS[0]}
    preferred = chosen(call, router)[0]
    busy = {preferred: 50.0}
    elsewhere = chosen(call, router, **busy)[0]
    assert elsewhere != preferred
    assert chosen(call, router)[0] == elsewhere
    # Until that one is too busy as well, or gone.
    assert chosen(call, router, **{elsewhere: 50.0})[0] != elsewhere


def test_a_conversation_stays_with_the_replica_that_took_it_though_another_was_preferred() -> None:
    router, call = new_router(), {"affinity": KEYS[0]}
    preferred, took, *_ = chosen(call, router, passed_over=1)
    assert chosen(call, router, **{preferred: 0.0, took: 1.0})[0] == took


def test_a_conversation_that_another_ingress_sent_somewhere_is_found_there() -> None:
    there = LatestKeys()
    there.add(KEYS[0])
    told = {"b": there.told()}
    assert chosen({"affinity": KEYS[0]}, latest=told, b=2.0)[0] == "b"
    assert chosen({"affinity": KEYS[1]}, latest=told, b=2.0)[0] != "b"
    # What was sent from here a moment ago may not have been told yet.
    router = new_router()
    here = chosen({"affinity": KEYS[0]}, router, b=1.0)[0]
    assert here != "b"
    assert chosen({"affinity": KEYS[0]}, router, latest=told)[0] == here


def burst(own: OwnStreams, size: int, affinity: str | None, **published: float) -> Counter[str]:
    """Route streams of callers who all counted before any of them was routed."""
    router, taken = new_router(), Counter[str]()
    for number in range(size):
        own.begin(f"stream-{number}")
        call = {"load": {}, "affinity": affinity}
        taken[chosen(call, router, f"stream-{number}", **published)[0]] += 1
    return taken


def test_a_burst_is_spread_over_replicas_that_have_published_nothing_new(own: OwnStreams) -> None:
    assert burst(own, 40, None) == dict.fromkeys(REPLICAS, 10)


def test_a_burst_goes_first_to_those_that_have_least_to_do(own: OwnStreams) -> None:
    assert burst(own, 12, None, a=8.0, b=8.0) == {"c": 6, "d": 6}


def test_a_burst_of_one_persona_stays_together_only_within_the_bound(own: OwnStreams) -> None:
    taken = burst(own, 40, KEYS[0])
    assert sum(taken.values()) == 40
    # 1.5 times the mean of 10, and two, before the one that may still come.
    assert max(taken.values()) <= 18
    assert len(taken) == len(REPLICAS)


def test_what_a_replica_says_of_others_is_younger_than_what_it_publishes(own: OwnStreams) -> None:
    own.begin("s")
    own.route("s", "a")
    for replica, others in {"a": 1, "b": 1, "c": 5}.items():
        own.hear(replica, others)
    call = {"load": {}, "affinity": None}
    # b has 1, a 2, d what it publishes, c 5.
    assert chosen(call, a=9.0, b=9.0, c=0.0, d=3.0) == [*"badc"]
    # But one that stops takes nothing, whatever it had just now.
    assert chosen(call, a=9.0, b=float(LOST_LOAD), c=0.0, d=3.0) == [*"adcb"]
    assert chosen({"load": {"b": LOST_LOAD}, "affinity": None}, c=0.0, d=3.0) == [*"adcb"]


def test_what_a_replica_has_said_of_others_is_soon_forgotten() -> None:
    now = 100.0
    streams = OwnStreams(lambda: now)
    streams.hear("a", 3)
    now += 0.3
    streams.hear("b", 4)
    assert streams.others() == {"a": 3, "b": 4}
    now += 0.3
    assert streams.others() == {"b": 4}


def test_a_stream_that_is_routed_again_counts_once(own: OwnStreams) -> None:
    router = new_router()
    own.begin("s")
    first_choice = chosen({"affinity": None}, router, "s")[0]
    # Serve asks again where a replica has refused; the stream itself is no load.
    assert chosen({"affinity": None}, router, "s")[0] == first_choice
    assert own.counts() == {first_choice: 1}
    own.route("s", "b")  # the one that took it
    assert own.counts() == {"b": 1}
    own.end("s")
    own.route("s", "c")  # too late: nobody would end it
    assert own.counts() == {}


_ELSEWHERE = """
import sys
from ray import cloudpickle
from serve_app.routing.own_streams import own_streams

copied = cloudpickle.loads(sys.stdin.buffer.read())
assert "serve_app.routing.router" not in sys.modules
known = copied.choose_replicas.__globals__["own_streams"]()
print(known is own_streams())
"""


def test_the_copy_of_the_router_that_serve_makes_counts_what_its_process_counts() -> None:
    config = Generator._deployment_config.request_router_config  # type: ignore[attr-defined]
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE],
        input=config.get_serialized_request_router_cls(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"True\n"
