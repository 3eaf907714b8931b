"""Encoded pieces of text, kept for the next turn, which repeats all of this one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["TokenCache"]

_CHARACTERS_PER_ENTRY = 512


class TokenCache:
    """The most recently used texts with their tokens; safe to use from several threads.

    Args:
        entries: most texts kept; together at most 512 characters for each, so that a few huge
            messages can't fill the memory. 0 keeps nothing.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._most_characters = entries * _CHARACTERS_PER_ENTRY
        self._characters = 0
        self._kept: OrderedDict[tuple[str, bool], tuple[int, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(
        self, text: str, *, first: bool, encode: Callable[[str, bool], tuple[int, ...]]
    ) -> tuple[int, ...]:
        """Return the tokens of a text, encoding it if it is not kept.

        Args:
            text: what to encode.
            first: whether it stands at the very beginning, where some tokenizers differ.
            encode: called with both where the tokens are not kept.
        """
        key = (text, first)
        with self._lock:
            if (tokens := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return tokens
        tokens = encode(text, first)
        with self._lock:
            self._put(key, tokens)
        return tokens

    def _put(self, key: tuple[str, bool], tokens: tuple[int, ...]) -> None:
        if key in self._kept or len(key[0]) > self._most_characters:
            return
        self._kept[key] = tokens
        self._characters += len(key[0])
        while len(self._kept) > self._entries or self._characters > self._most_characters:
            (text, _), _ = self._kept.popitem(last=False)
            self._characters -= len(text)
