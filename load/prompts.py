"""Prompts of an exact number of tokens, in groups that share their beginning.

Whole words that are one token each make lengths exact: a word more is a token more, whatever stands
before it, since tokenizers of today's models cut texts at spaces before they cut words. Which words
these are, and what the chat template adds, is asked of whoever serves the model; every prompt that is
handed out has been counted there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import orjson

from load.http_client import HttpClient, RequestFailed
from load.workload import story_words
from serve_app.errors import ConfigError
from serve_app.messages.tokenization import Message

__all__ = ["CountTokens", "PromptShape", "SyntheticPrompts", "count_with"]

CountTokens = Callable[[Sequence[Message]], Awaitable[int]]
"""Returns the tokens of a conversation as it is put to the model, chat template and all."""

_CANDIDATES = 256
# Fewer would make prompts that look alike after a few words.
_LEAST_WORDS = 32
_TRIES = 8


@dataclass(frozen=True, slots=True)
class PromptShape:
    """What prompts are like.

    Attributes:
        tokens: tokens of a prompt, the chat template's included.
        shared: of these, about how many at the beginning a group has in common; the exact number is
            the template's opening and this many words.
        groups: how many beginnings there are.
    """

    tokens: int
    shared: int = 0
    groups: int = 1


class SyntheticPrompts:
    """Prompts of one shape; the same seed gives the same words.

    Args:
        shape: what they are like.
        words: words of one token each.
        overhead: tokens that the chat template adds to a system and a user message.
        count: counts tokens.
        seed: chooses the words.
    """

    def __init__(
        self,
        shape: PromptShape,
        words: Sequence[str],
        overhead: int,
        count: CountTokens,
        *,
        seed: int,
    ) -> None:
        self._shape = shape
        self._words = words
        self._count = count
        self._seed = seed
        shared = max(shape.shared, 1)
        self._own = shape.tokens - overhead - shared
        if self._own < 1:
            least = overhead + shared + 1
            msg = (
                f"A prompt of {shape.tokens} tokens has no room for the chat template ({overhead}) and "
                f"{shared} shared; ask for {least} or more."
            )
            raise ConfigError(msg)
        self._beginnings = [
            self._text(f"{seed}/group/{group}", shared) for group in range(shape.groups)
        ]

    @classmethod
    async def fit(cls, shape: PromptShape, count: CountTokens, *, seed: int) -> SyntheticPrompts:
        """Find the words and the template's tokens for a model.

        Raises:
            ConfigError: the model's tokenizer has too few words of one token, or the prompts are too
                short for the chat template.
        """
        words = await _single_tokens(count)
        opening = (Message("system", words[0]), Message("user", words[0]))
        return cls(shape, words, await count(opening) - 2, count, seed=seed)

    async def prompt(self, number: int) -> tuple[Message, ...]:
        """Return one prompt of exactly the tokens asked for.

        Args:
            number: tells it from the others; numbers that differ by `groups` share their beginning.

        Raises:
            ConfigError: the tokenizer joins words in a way that no choice of words gets round.
        """
        beginning = self._beginnings[number % len(self._beginnings)]
        found = 0
        for attempt in range(_TRIES):
            own = self._text(f"{self._seed}/{number}/{attempt}", self._own)
            messages = (Message("system", beginning), Message("user", own))
            found = await self._count(messages)
            if found == self._shape.tokens:
                return messages
        msg = (
            f"Prompts come out at {found} tokens instead of {self._shape.tokens}: this model's "
            "tokenizer joins words; use load.bench, whose prompts have about the length asked for."
        )
        raise ConfigError(msg)

    def _text(self, seed: str, length: int) -> str:
        chooser = random.Random(seed)
        return " ".join(chooser.choice(self._words) for _ in range(length))


def count_with(client: HttpClient, model: str) -> CountTokens:
    """Return a count by the `/tokenize` of whoever serves the model; the address is without version."""

    async def count(messages: Sequence[Message]) -> int:
        body = {
            "model": model,
            "messages": [{"role": one.role, "content": one.content} for one in messages],
        }
        response = await client.request("POST", "/tokenize", orjson.dumps(body))
        try:
            return int(orjson.loads(response.body)["count"])
        except (ValueError, KeyError, TypeError) as error:
            msg = (
                f"The server counts no tokens (HTTP {response.status} from /tokenize); exact prompts "
                "need one that does."
            )
            raise RequestFailed("no /tokenize", msg) from error

    return count


async def _single_tokens(count: CountTokens) -> list[str]:
    """Return frequent words that are one token each, at a message's beginning and within it."""
    frequent = Counter(word for word in story_words() if word.isalpha() and word.islower())
    candidates = [word for word, _ in frequent.most_common(_CANDIDATES)]
    anchor = candidates[0]
    base = await count((Message("user", anchor),))

    async def single(words: list[str]) -> list[str]:
        inside = await count((Message("user", " ".join([anchor, *words])),)) - base
        if inside == len(words):
            return words
        if len(words) == 1:
            return []
        half = len(words) // 2
        return [*await single(words[:half]), *await single(words[half:])]

    words = await single(candidates)
    # What begins a message has no space before it, which makes another token of it, or several.
    found = [word for word in words if await count((Message("user", word),)) == base]
    if len(found) < _LEAST_WORDS:
        msg = (
            f"This model's tokenizer has only {len(found)} of {len(candidates)} frequent English words "
            "as one token; exact prompts can't be made of them, use load.bench."
        )
        raise ConfigError(msg)
    return found
