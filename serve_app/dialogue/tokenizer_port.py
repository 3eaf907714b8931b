"""The tokenizer as the dialogue uses it, and counts that it need not be asked for twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from serve_app.messages.tokenization import ChatEncoding, Message

__all__ = ["TokenCounts", "TokenizerPort"]

_KEPT = 4096


class TokenizerPort(Protocol):
    """The tokenizer, wherever it runs."""

    async def encode_chat(self, messages: tuple[Message, ...]) -> ChatEncoding:
        """Render and encode a conversation up to where the assistant's reply starts."""
        ...

    async def count(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        """Return how many tokens each text has."""
        ...


class TokenCounts:
    """Counts tokens of texts that come again with every turn: personas, facts, summaries.

    Args:
        tokenizer: counts what isn't known yet.
    """

    def __init__(self, tokenizer: TokenizerPort) -> None:
        self._tokenizer = tokenizer
        self._known: OrderedDict[str, int] = OrderedDict()

    async def of(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has."""
        new = tuple(dict.fromkeys(text for text in texts if text not in self._known))
        counted = dict(zip(new, await self._tokenizer.count(new), strict=True)) if new else {}
        counts = [self._known.get(text) or counted.get(text, 0) for text in texts]
        self._known |= counted
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return counts
