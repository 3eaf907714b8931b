"""The cache of encoded pieces stays within its bounds."""

from __future__ import annotations

from serve_app.tokenization.token_cache import TokenCache


class Encoder:
    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []

    def __call__(self, text: str, first: bool) -> tuple[int, ...]:
        self.calls.append((text, first))
        return tuple(map(ord, text))


def test_a_text_is_encoded_once() -> None:
    cache, encode = TokenCache(4), Encoder()
    for _ in range(3):
        assert cache.get("ab", first=False, encode=encode) == (97, 98)
    assert encode.calls == [("ab", False)]


def test_the_beginning_of_a_chat_is_kept_apart() -> None:
    cache, encode = TokenCache(4), Encoder()
    cache.get("ab", first=False, encode=encode)
    cache.get("ab", first=True, encode=encode)
    assert encode.calls == [("ab", False), ("ab", True)]


def test_the_least_recently_used_text_leaves_first() -> None:
    cache, encode = TokenCache(2), Encoder()
    for text in ("a", "b", "a", "c", "a", "b"):
        cache.get(text, first=False, encode=encode)
    assert [text for text, _ in encode.calls] == ["a", "b", "c", "b"]


def test_huge_texts_cannot_fill_the_memory() -> None:
    cache, encode = TokenCache(4), Encoder()
    cache.get("x" * 10_000, first=False, encode=encode)
    assert len(cache) == 0
    for sign in "abcdef":
        cache.get(sign * 1000, first=False, encode=encode)
    assert len(cache) == 2


def test_no_entries_keep_nothing() -> None:
    cache, encode = TokenCache(0), Encoder()
    cache.get("", first=False, encode=encode)
    cache.get("", first=False, encode=encode)
    assert len(encode.calls) == 2
