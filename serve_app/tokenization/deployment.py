"""The Tokenizer deployment: a shell around `ChatTokenizer`."""

from __future__ import annotations

from collections.abc import Sequence

from ray import serve

from serve_app.messages.tokenization import ChatEncoding, Message, TextEncoding, TokenizerInfo
from serve_app.routing.listening import listen_on_node_address
from serve_app.routing.serving import served_model, tokenizer_info
from serve_app.settings import Settings
from serve_app.tokenization.tokenizer import ChatTokenizer

__all__ = ["Tokenizer"]


@serve.deployment(name="Tokenizer")
class Tokenizer:
    """Text to tokens and back."""

    def __init__(self, settings: Settings) -> None:
        listen_on_node_address()
        model = served_model(settings)
        self._tokenizer = ChatTokenizer(
            model.path,
            tokenizer_info(model, settings),
            cache_entries=settings.tokenizer.cache_entries,
        )

    async def info(self) -> TokenizerInfo:
        """See `ChatTokenizer.info`."""
        return self._tokenizer.info()

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """See `ChatTokenizer.encode`."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def encode_text(self, text: str) -> TextEncoding:
        """See `ChatTokenizer.encode_text`."""
        return self._tokenizer.encode_text(text)

    async def decode(self, tokens: Sequence[int]) -> str:
        """See `ChatTokenizer.decode`."""
        return self._tokenizer.decode(tokens)

    async def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        """See `ChatTokenizer.count`."""
        return self._tokenizer.count(texts)

    async def encode_chat(
        self, messages: tuple[Message, ...], *, add_generation_prompt: bool = True
    ) -> ChatEncoding:
        """See `ChatTokenizer.encode_chat`."""
        return self._tokenizer.encode_chat(messages, add_generation_prompt=add_generation_prompt)

    async def check_health(self) -> None:
        """Encode and decode something; raise where it doesn't come back."""
        probe = "Are you well?"
        tokens = self._tokenizer.encode(probe, add_special_tokens=False)
        if self._tokenizer.decode(tokens).strip() != probe:
            message = "the tokenizer no longer gives back what it is given"
            raise RuntimeError(message)
