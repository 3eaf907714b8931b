"""Which pool of a model gets a stream."""

from __future__ import annotations

from collections import Counter

import pytest

from serve_app.routing.pool_choice import LOST_LOAD, SeenReplica, rank_pools

KEYS = [f"conversation-{number}" for number in range(400)]
IDLE = {"gpu": {"g": SeenReplica(0, 30)}, "cpu": {"c": SeenReplica(0, 10)}}


def seen(gpu: float, cpu: float) -> dict[str, dict[str, SeenReplica]]:
    return {"gpu": {"g": SeenReplica(gpu, 30)}, "cpu": {"c": SeenReplica(cpu, 10)}}


def test_conversations_are_spread_by_slots_and_every_ingress_finds_the_same_pool() -> None:
    first = [rank_pools(IDLE, key, {})[0] for key in KEYS]
    assert first == [rank_pools(dict(reversed(IDLE.items())), key, {})[0] for key in KEYS]
    assert 0.65 < Counter(first)["gpu"] / len(KEYS) < 0.85


def test_a_conversation_stays_with_the_pool_that_has_its_prefix() -> None:
    for key in KEYS[:20]:
        for home in IDLE:
            assert rank_pools(IDLE, key, {}, home=home)[0] == home


def test_a_home_without_a_free_slot_is_left() -> None:
    assert rank_pools(seen(29, 9), "k", {}, home="cpu")[0] == "cpu"
    assert rank_pools(seen(29, 10), "k", {}, home="cpu")[0] == "gpu"


def test_a_home_that_is_much_busier_than_the_others_is_left() -> None:
    # Its share of the mean allows 1.5 times as much, and two streams.
    assert rank_pools(seen(0, 3), "k", {}, home="cpu")[0] == "cpu"
    assert rank_pools(seen(0, 4), "k", {}, home="cpu")[0] == "gpu"
    assert rank_pools(seen(8, 4), "k", {}, home="cpu")[0] == "cpu"


def test_a_new_conversation_goes_where_the_largest_share_of_slots_is_free() -> None:
    for key in KEYS[:20]:
        assert rank_pools(seen(3, 2), key, {}) == ["gpu", "cpu"]
        assert rank_pools(seen(4, 1), key, {}) == ["cpu", "gpu"]


def test_what_has_no_key_goes_where_the_largest_share_of_slots_is_free() -> None:
    assert rank_pools(seen(0, 0), None, {}) == ["gpu", "cpu"]
    more = {"gpu": {"g": SeenReplica(0, 30)}, "cpu": {"c": SeenReplica(0, 40)}}
    assert rank_pools(more, None, {}) == ["cpu", "gpu"]
    assert rank_pools(seen(3, 0), None, {}) == ["cpu", "gpu"]
    assert rank_pools(seen(3, 2), None, {}) == ["gpu", "cpu"]
    # The caller's own count is fresher than what replicas publish.
    assert rank_pools(seen(3, 0), None, {"c": 5}) == ["gpu", "cpu"]


@pytest.mark.parametrize("key", [None, "k"])
def test_a_pool_without_a_replica_takes_nothing(key: str | None) -> None:
    assert rank_pools(IDLE | {"cpu": {}}, key, {}, home="cpu") == ["gpu"]
    assert rank_pools({"gpu": {}, "cpu": {}}, key, {}) == []


def test_a_replica_that_was_lost_a_moment_ago_counts_as_none() -> None:
    assert rank_pools(IDLE, "k", {"c": LOST_LOAD}, home="cpu") == ["gpu"]
    two = IDLE | {"cpu": {"c": SeenReplica(0, 10), "d": SeenReplica(0, 10)}}
    assert rank_pools(two, "k", {"c": LOST_LOAD}, home="cpu")[0] == "cpu"


def test_a_replica_that_stops_is_no_load_of_those_beside_it() -> None:
    two = {"c": SeenReplica(1, 10), "d": SeenReplica(LOST_LOAD, 10)}
    assert rank_pools(IDLE | {"cpu": two}, "k", {}, home="cpu")[0] == "cpu"
    assert rank_pools(seen(29, 0) | {"cpu": two}, None, {}) == ["cpu", "gpu"]
    assert rank_pools(seen(29, 0) | {"cpu": {"d": two["d"]}}, None, {}) == ["gpu"]


def test_a_stream_that_has_begun_goes_on_with_its_own_kind_first() -> None:
    pools = seen(0, 0) | {"gpu2": {"h": SeenReplica(29, 30)}}
    for key in KEYS[:20]:
        ranked = rank_pools(pools, key, {"g": LOST_LOAD}, home="gpu", alike=["gpu", "gpu2"])
        assert ranked == ["gpu2", "cpu"]
    # Its own pool, however busy that is.
    assert rank_pools(seen(30, 0), "k", {}, home="gpu", alike=["gpu"])[0] == "gpu"


def test_a_replica_that_has_published_nothing_yet_is_taken_for_a_small_one() -> None:
    assert rank_pools({"a": {"x": SeenReplica()}, "b": {}}, None, {}) == ["a"]
