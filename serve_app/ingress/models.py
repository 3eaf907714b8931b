"""The models that an ingress replica serves: what it needs of each, and which one a request means."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.errors import ConfigError, ModelNotFound, QueueFull
from serve_app.ingress.detokenizer import TokenTable
from serve_app.ingress.generator_client import GeneratorClient
from serve_app.messages.tokenization import ChatEncoding, Message, TextEncoding, TokenizerInfo

__all__ = ["GeneratorStatsPort", "ModelService", "Models", "TokenizerPort"]


class TokenizerPort(Protocol):
    """The Tokenizer deployment as the ingress calls it."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Awaitable[tuple[int, ...]]:
        """Encode a text."""

    def encode_text(self, text: str) -> Awaitable[TextEncoding]:
        """Encode a prompt, and say how long that took."""

    def decode(self, tokens: tuple[int, ...]) -> Awaitable[str]:
        """Decode tokens."""

    def encode_chat(
        self, messages: tuple[Message, ...], *, add_generation_prompt: bool = True
    ) -> Awaitable[ChatEncoding]:
        """Render and encode a conversation."""


class GeneratorStatsPort(Protocol):
    """What the ingress asks a generator about itself."""

    def stats(self) -> Awaitable[dict[str, float]]:
        """Return one replica's numbers."""


@dataclass(frozen=True, slots=True)
class ModelService:
    """One model.

    Attributes:
        key: its key among the settings' models, by which Dialogue knows it.
        info: its name, vocabulary and context.
        table: its tokens, for turning them into text.
        tokenizer: encodes and decodes.
        generators: opens streams.
        generator_stats: asks generators about themselves.
        pools: names of its generators' deployments.
    """

    key: str
    info: TokenizerInfo
    table: TokenTable
    tokenizer: TokenizerPort
    generators: GeneratorClient
    generator_stats: GeneratorStatsPort
    pools: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.info.model


class Models:
    """All models, the first of them for whoever names none.

    Args:
        models: at least one.

    Raises:
        ConfigError: two have the same name.
    """

    def __init__(self, models: Sequence[ModelService]) -> None:
        self._by_name = {model.name: model for model in models}
        self._by_key = {model.key: model for model in models}
        if len(self._by_name) < len(models):
            names = ", ".join(model.name for model in models)
            msg = f"Two models have one name ({names}): set model.name, or a name in models.also."
            raise ConfigError(msg)
        self.first = models[0]

    def __iter__(self) -> Iterator[ModelService]:
        """Iterate over them, the first one first."""
        return iter(self._by_name.values())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._by_name)

    def named(self, name: str | None) -> ModelService:
        """Return the model that a request names, the first one where it names none.

        Raises:
            ModelNotFound: naming those that are served.
        """
        if name is None:
            return self.first
        if (model := self._by_name.get(name)) is None:
            known = " or ".join(repr(known) for known in self._by_name)
            message = f"No model {name[:100]!r} is served here; use {known}."
            raise ModelNotFound(message, param="model")
        return model

    def remembered(self, name: str | None) -> ModelService:
        """Return the model that a conversation remembers, the first one where it isn't served any more."""
        return self._by_name.get(name or "", self.first)

    def of(self, key: str) -> ModelService:
        """Return the model of a key; there is one."""
        return self._by_key[key]

    def check_room(self) -> None:
        """Refuse early what would be refused whichever model it is for.

        Raises:
            QueueFull: every model's queues are full.
        """
        for model in self:
            try:
                model.generators.check_room()
            except QueueFull as full:
                refusal = full
            else:
                return
        raise refusal

    def check(self) -> None:
        """Raise when nobody watches over some model's generators any more."""
        for model in self:
            model.generators.check()
