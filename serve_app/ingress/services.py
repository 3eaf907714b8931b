"""Everything that the routes work with."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from serve_app.api.sampling import SamplingDefaults
from serve_app.errors import ModelNotFound
from serve_app.ingress.accounts import Accounts
from serve_app.ingress.detokenizer import TokenTable
from serve_app.ingress.generator_client import GeneratorClient
from serve_app.ingress.remembering import Remembering
from serve_app.ingress.replies import Generation
from serve_app.ingress.stores import Stores
from serve_app.messages.dialogue import CommitTurn, PersonaView, PlanTurn, SummaryPlan, TurnPlan
from serve_app.messages.tokenization import ChatEncoding, Message, TextEncoding, TokenizerInfo
from serve_app.settings import Settings
from serve_app.state.keys import KeyRing
from serve_app.telemetry.account import Spent

__all__ = ["DialoguePort", "GeneratorStatsPort", "Services", "TokenizerPort", "random_seed"]


class DialoguePort(Protocol):
    """The Dialogue deployment as the ingress calls it."""

    def plan(self, turn: PlanTurn) -> Awaitable[TurnPlan]:
        """Plan a turn's prompt."""

    def commit(self, turn: CommitTurn) -> Awaitable[Spent | None]:
        """Store a finished turn."""

    def persona(self, name: str | None) -> Awaitable[PersonaView]:
        """Return what is to be known of a persona where a conversation with it begins."""

    def plan_summary(
        self, tenant: str, conversation: str, item: str
    ) -> Awaitable[SummaryPlan | None]:
        """Return what to ask the model for, so that all up to an item is summarised."""

    def state_reachable(self) -> Awaitable[bool]:
        """Whether Redis answers."""


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
class Services:
    """What one ingress replica has at hand.

    Attributes:
        settings: the whole tree.
        model: the model that is served.
        table: its tokens, for turning them into text.
        generators: opens streams.
        generator_stats: asks generators about themselves.
        dialogue: plans and commits turns.
        tokenizer: encodes and decodes.
        keys: API keys.
        stores: what is kept of conversations and responses.
        remembering: summaries and profiles, beside everything else.
        accounts: where the time of requests went.
    """

    settings: Settings
    model: TokenizerInfo
    table: TokenTable
    generators: GeneratorClient
    generator_stats: GeneratorStatsPort
    dialogue: DialoguePort
    tokenizer: TokenizerPort
    keys: KeyRing
    stores: Stores
    remembering: Remembering
    accounts: Accounts

    def check_model(self, name: str | None) -> None:
        """Refuse a model that isn't served.

        Raises:
            ModelNotFound: naming the one that is.
        """
        if name is not None and name != self.model.model:
            message = f"No model {name[:100]!r} is served here; use {self.model.model!r}."
            raise ModelNotFound(message, param="model")

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """What applies where a request says nothing."""
        return SamplingDefaults(**self.settings.sampling.model_dump())

    def generation(self) -> Generation:
        """Start the clock of a request that will generate.

        Raises:
            QueueFull: it would be refused anyway.
        """
        self.generators.check_room()
        limit_s = self.settings.ingress.request_timeout_s
        return Generation(self.generators, self.table, limit_s=limit_s, model=self.model.model)


def random_seed() -> int:
    """Return a seed for a request that brings none."""
    return secrets.randbits(63)
