"""The Tokenizer deployment: a shell around `ChatTokenizer`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ray import serve

from serve_app.messages.tokenization import ChatEncoding, Message, TextEncoding, TokenizerInfo
from serve_app.routing.listening import listen_on_node_address
from serve_app.routing.observing import observe_replica
from serve_app.routing.serving import served_model, tokenizer_info
from serve_app.settings import Settings
from serve_app.telemetry import tracing
from serve_app.telemetry.origin import Origin, within
from serve_app.tokenization.tokenizer import ChatTokenizer

__all__ = ["Tokenizer"]

logger = logging.getLogger(__name__)


@serve.deployment(name="Tokenizer")
class Tokenizer:
    """Text to tokens and back."""

    def __init__(self, settings: Settings) -> None:
        listen_on_node_address()
        observe_replica("Tokenizer", settings)
        model = served_model(settings)
        self._tokenizer = ChatTokenizer(
            model.path,
            tokenizer_info(model, settings),
            cache_entries=settings.tokenizer.cache_entries,
        )

    async def info(self) -> TokenizerInfo:
        """See `ChatTokenizer.info`."""
        return self._tokenizer.info()

    async def encode(
        self, text: str, *, add_special_tokens: bool = True, origin: Origin | None = None
    ) -> tuple[int, ...]:
        """See `ChatTokenizer.encode`."""
        with within(origin), tracing.span("tokenizer.encode", "server") as span:
            tokens = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            _tell(span, len(tokens))
            return tokens

    async def encode_text(self, text: str, *, origin: Origin | None = None) -> TextEncoding:
        """See `ChatTokenizer.encode_text`."""
        with within(origin), tracing.span("tokenizer.encode", "server") as span:
            encoding = self._tokenizer.encode_text(text)
            _tell(span, len(encoding.tokens))
            return encoding

    async def decode(self, tokens: Sequence[int], *, origin: Origin | None = None) -> str:
        """See `ChatTokenizer.decode`."""
        with within(origin), tracing.span("tokenizer.decode", "server") as span:
            _tell(span, len(tokens))
            return self._tokenizer.decode(tokens)

    async def count(self, texts: Sequence[str], *, origin: Origin | None = None) -> tuple[int, ...]:
        """See `ChatTokenizer.count`."""
        with within(origin), tracing.span("tokenizer.count", "server") as span:
            counts = self._tokenizer.count(texts)
            _tell(span, sum(counts))
            return counts

    async def encode_chat(
        self,
        messages: tuple[Message, ...],
        *,
        add_generation_prompt: bool = True,
        origin: Origin | None = None,
    ) -> ChatEncoding:
        """See `ChatTokenizer.encode_chat`."""
        with within(origin), tracing.span("tokenizer.encode_chat", "server") as span:
            encoding = self._tokenizer.encode_chat(
                messages, add_generation_prompt=add_generation_prompt
            )
            _tell(span, len(encoding.tokens))
            return encoding

    async def check_health(self) -> None:
        """Encode and decode something; raise where it doesn't come back."""
        probe = "Are you well?"
        tokens = self._tokenizer.encode(probe, add_special_tokens=False)
        if self._tokenizer.decode(tokens).strip() != probe:
            message = "the tokenizer no longer gives back what it is given"
            raise RuntimeError(message)


def _tell(span: tracing.Span, tokens: int) -> None:
    """Say of a call how many tokens it was about; in the log too, where that is asked for."""
    logger.debug("Text and %d tokens turned into each other.", tokens)
    if span.recording:
        span.set({"parley.tokens": tokens})
