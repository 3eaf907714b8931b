"""A turn from both ends: what the model is asked before it, what is stored after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Protocol

from serve_app.dialogue.planner import Budget, fit, leading, plan
from serve_app.messages.dialogue import CommitTurn, Item, PlanTurn, TurnPlan
from serve_app.messages.tokenization import ChatEncoding, Message
from serve_app.settings import DialogueSettings
from serve_app.state.conversations import ConversationStore
from serve_app.state.records import StoredItem
from serve_app.state.turns import BegunTurn

__all__ = ["DialogueManager", "TokenizerPort"]

# A stride longer than this share of a small context would cost more history than it saves work.
_LARGEST_STRIDE = 8


class TokenizerPort(Protocol):
    """The tokenizer, wherever it runs."""

    async def encode_chat(self, messages: tuple[Message, ...]) -> ChatEncoding:
        """Render and encode a conversation up to where the assistant's reply starts."""
        ...


class DialogueManager:
    """Plans and commits turns.

    Whatever touches a stored conversation raises StateUnavailable when Redis can't be reached and
    ConversationNotFound when the tenant has no such conversation; stateless turns need no Redis.

    Args:
        store: where conversations are kept.
        tokenizer: encodes them.
        settings: persona and budgets.
        context_length: most tokens of a prompt and its reply.
    """

    def __init__(
        self,
        store: ConversationStore,
        tokenizer: TokenizerPort,
        settings: DialogueSettings,
        *,
        context_length: int,
    ) -> None:
        self._store = store
        self._tokenizer = tokenizer
        self._settings = settings
        self._context_length = context_length

    async def plan(self, turn: PlanTurn) -> TurnPlan:
        """Return the prompt of a turn, within the context.

        Raises:
            ContextLengthExceeded: what must be in the prompt doesn't fit.
            InvalidRequest: the model's chat template doesn't take these messages.
        """
        begun = await self._begin(turn)
        if begun.waits or begun.repeated:
            return TurnPlan(waits=begun.waits, repeated=begun.repeated)
        history = begun.history
        asked = tuple(Message(item.role, item.content) for item in begun.asked)
        if not turn.messages:
            turn = replace(turn, messages=asked)
        messages = self._conversation(history, turn)
        affinity = turn.conversation or _common_beginning(messages)
        budget = Budget(
            context=self._context_length,
            reply=self._settings.reply_tokens,
            max_tokens=turn.max_tokens,
            stride=min(self._settings.truncate_stride, self._context_length // _LARGEST_STRIDE),
            truncate=turn.truncate,
        )

        pinned = leading(messages)
        planned = fit(messages, budget, pinned=pinned)
        left_out = planned.turns_left_out
        while True:
            encoding = await self._tokenizer.encode_chat(planned.messages)
            planned = plan(planned.messages, encoding, budget, pinned=pinned)
            if planned.turns_left_out == 0:
                return TurnPlan(
                    prompt=encoding.tokens,
                    max_tokens=planned.max_tokens,
                    turns_left_out=left_out,
                    affinity=affinity,
                    hidden=begun.hidden,
                    base=begun.base if turn.begin is not None else None,
                    asked=asked,
                )
            left_out += planned.turns_left_out

    async def commit(self, turn: CommitTurn) -> None:
        """Store a finished turn: once, whole or not at all.

        Raises:
            InvalidRequest: one of its items is in the conversation already.
            CommitUnknown: it may have been stored, or not.
        """
        await self._store.turns.commit(
            turn.tenant,
            turn.conversation,
            response=turn.response,
            items=[_stored(item) for item in turn.items],
            owner=turn.owner,
            base=turn.base,
            record=turn.record,
        )

    async def _begin(self, turn: PlanTurn) -> BegunTurn:
        """Load what was said before a turn, and take the turn's place behind it."""
        if turn.conversation is None:
            return BegunTurn()
        if turn.begin is not None:
            return await self._store.turns.begin(turn.tenant, turn.conversation, turn.begin)
        _, history = await self._store.load(turn.tenant, turn.conversation)
        return BegunTurn(history=history)

    def _conversation(self, history: Sequence[StoredItem], turn: PlanTurn) -> tuple[Message, ...]:
        """Return all messages, the system's first: instructions, else its own, else the persona."""
        messages = (*(Message(item.role, item.content) for item in history), *turn.messages)
        begins_with_system = bool(messages) and messages[0].role == "system"
        if turn.instructions and begins_with_system:
            # Many templates take one system message, and only at the beginning.
            both = f"{turn.instructions}\n\n{messages[0].content}"
            return (Message("system", both), *messages[1:])
        front = turn.instructions or ("" if begins_with_system else self._settings.persona)
        return (Message("system", front), *messages) if front else messages


def _common_beginning(messages: Sequence[Message]) -> str:
    """Name what all requests of one stateless conversation begin with."""
    digest = blake2b(digest_size=16)
    for role in ("system", "user"):
        first = next((message.content for message in messages if message.role == role), "")
        digest.update(first.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _stored(item: Item) -> StoredItem:
    return StoredItem(item.id, item.role, item.content, item.status, item.response, item.created_at)
