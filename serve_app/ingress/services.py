"""Everything that the routes work with."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from serve_app.api.sampling import SamplingDefaults
from serve_app.ingress.accounts import Accounts
from serve_app.ingress.models import Models
from serve_app.ingress.remembering import Remembering
from serve_app.ingress.replies import Generation
from serve_app.ingress.stores import Stores
from serve_app.messages.dialogue import CommitTurn, PersonaView, PlanTurn, SummaryPlan, TurnPlan
from serve_app.settings import Settings
from serve_app.state.keys import KeyRing
from serve_app.telemetry.account import Spent

__all__ = ["DialoguePort", "Services", "random_seed"]


class DialoguePort(Protocol):
    """The Dialogue deployment as the ingress calls it."""

    def plan(self, turn: PlanTurn) -> Awaitable[TurnPlan]:
        """Plan a turn's prompt."""

    def commit(self, turn: CommitTurn) -> Awaitable[Spent | None]:
        """Store a finished turn."""

    def persona(self, name: str | None) -> Awaitable[PersonaView]:
        """Return what is to be known of a persona where a conversation with it begins."""

    def plan_summary(
        self, tenant: str, conversation: str, item: str, model: str
    ) -> Awaitable[SummaryPlan | None]:
        """Return what to ask the model for, so that all up to an item is summarised."""

    def state_reachable(self) -> Awaitable[bool]:
        """Whether Redis answers."""


@dataclass(frozen=True, slots=True)
class Services:
    """What one ingress replica has at hand.

    Attributes:
        settings: the whole tree.
        models: those that are served.
        owner: names this replica among those that make responses.
        dialogue: plans and commits turns.
        keys: API keys.
        stores: what is kept of conversations and responses.
        remembering: summaries and profiles, beside everything else.
        accounts: where the time of requests went.
    """

    settings: Settings
    models: Models
    owner: str
    dialogue: DialoguePort
    keys: KeyRing
    stores: Stores
    remembering: Remembering
    accounts: Accounts

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """What applies where a request says nothing."""
        return SamplingDefaults(**self.settings.sampling.model_dump())

    def generation(self) -> Generation:
        """Start the clock of a request that will generate.

        Raises:
            QueueFull: it would be refused anyway.
        """
        self.models.check_room()
        return Generation(limit_s=self.settings.ingress.request_timeout_s)


def random_seed() -> int:
    """Return a seed for a request that brings none."""
    return secrets.randbits(63)
