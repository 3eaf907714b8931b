"""How routers learn which generator had a conversation last."""

from __future__ import annotations

import hashlib

import pytest

from serve_app.routing import homes
from serve_app.routing.homes import Homes, LatestKeys


def latest(*keys: str) -> bytes:
    kept = LatestKeys()
    for key in keys:
        kept.add(key)
    return kept.told()


def test_a_replica_that_had_a_key_is_found_and_no_other() -> None:
    told = {"a": latest("k", "l"), "b": latest("m"), "c": b""}
    assert [Homes().find(key, told.items()) for key in "klmn"] == ["a", "a", "b", None]
    assert Homes().find("k", []) is None


def test_of_several_it_is_the_one_that_had_fewest_others_since() -> None:
    for told in (
        [("a", latest("k", "x", "y")), ("b", latest("x", "k", "y"))],
        [("a", latest("k", "y")), ("b", latest("k", "x", "k"))],
        [("a", latest("x")), ("a", latest("k", "y")), ("b", latest("k"))],
    ):
        assert Homes().find("k", told) == "b"


def test_what_was_sent_from_here_counts_until_the_others_must_have_been_told_of_it() -> None:
    now = 100.0
    known = Homes(lambda: now)
    known.remember("k", "here")
    elsewhere = [("elsewhere", latest("k"))]
    now += 2
    assert known.find("k", elsewhere) == "here"
    now += 2
    assert known.find("k", elsewhere) == "elsewhere"
    assert known.find("k", [("elsewhere", latest("l"))]) == "here"
    assert (known.sent("k"), known.sent("l")) == ("here", None)


def test_the_oldest_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "_MOST_TOLD", 3)
    told = latest(*"abacd")
    assert len(told) == 3 * 8
    assert [Homes().find(key, [("it", told)]) for key in "abcd"] == ["it", None, "it", "it"]
    monkeypatch.setattr(homes, "_MOST_HOMES", 3)
    known = Homes()
    for key in "abacd":
        known.remember(key, "it")
    assert [known.find(key, []) for key in "abcd"] == ["it", None, "it", "it"]


def test_the_end_of_one_key_and_the_beginning_of_the_next_are_no_key() -> None:
    name = hashlib.blake2b(b"k", digest_size=8).digest()
    across = b"...." + name + b"...."
    assert Homes().find("k", [("a", across)]) is None
    assert Homes().find("k", [("a", across + name)]) == "a"
