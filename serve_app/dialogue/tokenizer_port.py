"""The tokenizer as the dialogue uses it, and counts that it need not be asked for twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from serve_app.messages.tokenization import ChatEncoding, Message
from serve_app.telemetry import ledger
from serve_app.telemetry.account import Spent

__all__ = ["AccountedTokenizer", "TokenCounts", "TokenizerPort"]

_KEPT = 4096


class TokenizerPort(Protocol):
    """The tokenizer, wherever it runs."""

    async def encode_chat(self, messages: tuple[Message, ...]) -> ChatEncoding:
        """Render and encode a conversation up to where the assistant's reply starts."""
        ...

    async def count(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        """Return how many tokens each text has."""
        ...


class AccountedTokenizer:
    """A tokenizer whose calls are a stage of whoever makes them.

    Args:
        tokenizer: answers them.
    """

    def __init__(self, tokenizer: TokenizerPort) -> None:
        self._tokenizer = tokenizer

    async def encode_chat(self, messages: tuple[Message, ...]) -> ChatEncoding:
        """See `TokenizerPort.encode_chat`."""
        with ledger.hop("tokenize") as hop:
            encoding = await self._tokenizer.encode_chat(messages)
            # A replica of the version before says nothing of it.
            hop.answered(Spent(getattr(encoding, "encode_s", 0.0)))
        return encoding

    async def count(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        """See `TokenizerPort.count`; how long counting took there is not told."""
        with ledger.hop("tokenize"):
            return await self._tokenizer.count(texts)


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
