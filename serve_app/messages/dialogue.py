"""Ingress → Dialogue: plan a turn, commit a turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from serve_app.messages.tokenization import Message
from serve_app.state.profiles import NewFact
from serve_app.state.turns import TurnBegin
from serve_app.telemetry.account import Spent
from serve_app.telemetry.origin import Origin

__all__ = ["NOBODY", "CommitTurn", "Item", "PersonaView", "PlanTurn", "SummaryPlan", "TurnPlan"]


@dataclass(frozen=True, slots=True)
class PlanTurn:
    """What the model should answer.

    Attributes:
        tenant: whose conversation it is.
        messages: the new messages; for a stateless request the whole conversation.
        conversation: id of the stored conversation that goes before them, or None.
        instructions: a system message for this turn only, in front of everything.
        max_tokens: most new tokens asked for; None leaves it to the context that is left.
        truncate: drop the oldest turns where the prompt doesn't fit; False refuses instead.
        begin: how the turn takes its place among others, where it is to be stored.
        persona: name of the persona that answers this turn; None takes the conversation's, else the
            settings'.
        takes_persona: whether a persona answers at all; chat completions have none.
        model: key of the model that is to answer; "" is the first.
        origin: what it is done for, in logs and traces.
    """

    tenant: str
    messages: tuple[Message, ...]
    conversation: str | None = None
    instructions: str | None = None
    max_tokens: int | None = None
    truncate: bool = True
    begin: TurnBegin | None = None
    persona: str | None = None
    takes_persona: bool = False
    model: str = ""
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """The prompt for the generator.

    Attributes:
        prompt: token ids.
        max_tokens: most new tokens, already cut to what the context leaves.
        turns_left_out: how many of the oldest turns the prompt does without.
        affinity: key under which the generator router finds this conversation's cached prefix.
        waits: how many turns go before this one; nothing is planned while there are any.
        repeated: the turn was committed already; nothing is planned.
        hidden: whether the turn belongs to no conversation that clients know.
        base: id of the item behind which the turn goes, None where it isn't stored.
        asked: what the model is asked, where the request left that to the turn which it replaces.
        reply: the reply, where a rule has fixed words for it; nothing is to be generated then.
        sampling: the persona's sampling, by the names of `SamplingParams`, where a request says nothing.
        explained: what was understood and decided, for whoever reads the reply; None without a persona.
        state: what is known of the conversation behind the turn; goes into `CommitTurn`.
        facts: what the user has said of themselves, to be kept once the turn is stored.
        unsummarised: id of the last item that left the prompt and is in no summary; None if none is.
        spent: the time that planning took.
    """

    prompt: tuple[int, ...] = ()
    max_tokens: int = 0
    turns_left_out: int = 0
    affinity: str = ""
    waits: int = 0
    repeated: bool = False
    hidden: bool = True
    base: str | None = None
    asked: tuple[Message, ...] = ()
    reply: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    explained: dict[str, Any] | None = None
    state: dict[str, Any] | None = None
    facts: tuple[NewFact, ...] = ()
    unsummarised: str | None = None
    spent: Spent | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Item:
    """One stored message of a conversation.

    Attributes:
        id: `msg_…`.
        role: "system", "user" or "assistant".
        content: plain text.
        status: "completed" or "incomplete" (cut by its token limit).
        response: the response that this item is the answer of, or belongs to the input of.
        created_at: Unix seconds.
    """

    id: str
    role: str
    content: str
    status: str = "completed"
    response: str | None = None
    created_at: int = 0


@dataclass(frozen=True, slots=True)
class CommitTurn:
    """A finished turn: its input and its reply, stored together once or not at all.

    Attributes:
        tenant: whose conversation it is.
        conversation: its id.
        response: the response's id; a second commit under the same id changes nothing.
        items: input items first, then the reply.
        owner: who began the turn; "" where nobody did.
        base: id of the item behind which it goes; None takes the conversation's head.
        record: the response as it ended, to be kept with the turn; None keeps none.
        state: what is known of the conversation behind the turn, as it was planned.
        origin: what it is done for, in logs and traces.
    """

    tenant: str
    conversation: str
    response: str
    items: tuple[Item, ...]
    owner: str = ""
    base: str | None = None
    record: dict[str, Any] | None = None
    state: dict[str, Any] | None = None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class PersonaView:
    """What is to be known of a persona where a conversation with it begins.

    Attributes:
        name: the persona's, or None where nobody but the model itself answers.
        greeting: what is said first, or None.
        on_busy: what a turn does while another one runs, or None.
        ttl_s: seconds after which a conversation is forgotten when nobody touches it, or None.
    """

    name: str | None = None
    greeting: str | None = None
    on_busy: str | None = None
    ttl_s: int | None = None


NOBODY = PersonaView()
"""Where there is no persona."""


@dataclass(frozen=True, slots=True)
class SummaryPlan:
    """The prompt for a summary of what left a conversation's prompt.

    Attributes:
        prompt: token ids.
        max_tokens: most new tokens.
        forgotten: how often items of the conversation were deleted before.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    forgotten: int
