"""How routers learn which generator had a conversation last."""

from __future__ import annotations

import hashlib

import pytest

from serve_app.routing import homes
from serve_app.routing.homes import LatestKeys, find_home


def latest(*keys: str) -> bytes:
    kept = LatestKeys()
    for key in keys:
        kept.add(key)
    return kept.told()


def test_a_replica_that_had_a_key_is_found_and_no_other() -> None:
    told = {"a": latest("k", "l"), "b": latest("m"), "c": b""}
    assert [find_home(key, told) for key in "klmn"] == ["a", "a", "b", None]
    assert find_home("k", {}) is None


def test_of_several_it_is_the_one_that_had_the_key_most_recently() -> None:
    assert find_home("k", {"a": latest("k", "x", "y"), "b": latest("x", "k", "y")}) == "b"
    assert find_home("k", {"a": latest("k", "x", "k"), "b": latest("k", "y")}) == "a"
    assert find_home("k", {"b": latest("k"), "a": latest("k")}) == "a"


def test_the_oldest_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "_MOST", 3)
    kept = LatestKeys()
    for key in "abacd":
        kept.add(key)
    assert len(kept.told()) == 3 * 8
    assert [find_home(key, {"it": kept.told()}) for key in "abcd"] == ["it", None, "it", "it"]


def test_the_end_of_one_key_and_the_beginning_of_the_next_are_no_key() -> None:
    name = hashlib.blake2b(b"k", digest_size=8).digest()
    across = b"...." + name + b"...."
    assert find_home("k", {"a": across}) is None
    assert find_home("k", {"a": across + name}) == "a"
