"""Ingress → Dialogue: plan a turn, commit a turn, and the conversations themselves."""

from __future__ import annotations

from dataclasses import dataclass, field

from serve_app.messages.tokenization import Message

__all__ = ["CommitTurn", "ConversationView", "Item", "ItemsPage", "PlanTurn", "TurnPlan"]


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
    """

    tenant: str
    messages: tuple[Message, ...]
    conversation: str | None = None
    instructions: str | None = None
    max_tokens: int | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """The prompt for the generator.

    Attributes:
        prompt: token ids.
        max_tokens: most new tokens, already cut to what the context leaves.
        turns_left_out: how many of the oldest turns the prompt does without.
        affinity: key under which the generator router finds this conversation's cached prefix.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    turns_left_out: int
    affinity: str


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
    """

    tenant: str
    conversation: str
    response: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class ConversationView:
    """A stored conversation without its items.

    Attributes:
        id: `conv_…`.
        created_at: Unix seconds.
        metadata: the client's own key-value pairs.
    """

    id: str
    created_at: int
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ItemsPage:
    """A page of a conversation's items.

    Attributes:
        items: in the order asked for.
        has_more: whether more items follow.
    """

    items: tuple[Item, ...]
    has_more: bool
