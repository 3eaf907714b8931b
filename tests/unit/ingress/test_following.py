"""What is left to tell of a response that has ended."""

from __future__ import annotations

import pytest

from serve_app.api.response_stream import ResponseStreamEncoder
from serve_app.ingress.following import _left

EVENTS = [b"created", b"delta", b"the end"]


@pytest.fixture(autouse=True)
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseStreamEncoder, "replay", lambda _: list(EVENTS))


@pytest.mark.parametrize("status", ["completed", "failed"])
@pytest.mark.parametrize("behind", [0, 1, 2])
def test_a_reader_is_told_what_comes_behind_what_they_have(status: str, behind: int) -> None:
    assert _left({"response": {"status": status}}, behind) == EVENTS[behind:]


def test_a_reader_who_heard_more_than_a_dead_replica_has_kept_is_told_the_end() -> None:
    assert _left({"response": {"status": "failed"}}, 7) == [b"the end"]


def test_a_reader_who_has_all_of_a_whole_response_is_told_nothing() -> None:
    assert _left({"response": {"status": "completed"}}, 3) == []


def test_a_reader_who_heard_more_of_a_try_that_failed_is_told_the_end_of_the_next() -> None:
    assert _left({"response": {"status": "completed"}}, 4) == [b"the end"]
