"""Turns of conversations: begun with one round trip to Redis, committed with another.

A turn of a conversation that clients know waits until those before it are over. Its ingress replica
holds a lease on it, which is renewed with each write to its journal; a turn whose lease has run out
holds nobody up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serve_app.errors import (
    CommitUnknown,
    ConversationBusy,
    IdempotencyConflict,
    InvalidRequest,
    ResponseCancelled,
    ResponseLost,
    ResponseNotFound,
    ResponseUnfinished,
    StateUnavailable,
)
from serve_app.state.connection import BRIDGED_S, AnswerLost
from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.keyspace import response_not_found, user_digest, user_session
from serve_app.state.knowledge import open_state, open_summary, seal_state
from serve_app.state.profiles import Fact, decode_facts
from serve_app.state.records import (
    Record,
    StoredConversation,
    StoredItem,
    decode_conversation,
    decode_item,
    encode_conversation,
    encode_item,
    seal_record,
)
from serve_app.state.redis_spans import redis_span
from serve_app.state.scripts.turns import BEGIN, COMMIT

__all__ = [
    "SETTLE_S",
    "BegunTurn",
    "BusyMode",
    "TurnBegin",
    "TurnStore",
    "check_distinct",
    "leading_system",
]

SETTLE_S = 8.0
"""A commit whose answer was lost is sent again for this long: less than a caller waits for it."""

_SETTLE_PAUSE_S = 0.2

BusyMode = Literal["", "enqueue", "reject", "interrupt"]
"""What a turn does while another one runs; "" runs beside it, where there is no conversation."""


@dataclass(frozen=True, slots=True)
class TurnBegin:
    """A turn that is about to run.

    Attributes:
        response: id of the response; beginning it again looks where it stands.
        owner: whoever produces it; others can't commit it.
        lease_s: how long it holds without being renewed.
        on_busy: what it does while another turn of the conversation runs.
        max_queued: most turns that run or wait.
        follows: id of the response that it continues; None continues at the head.
        replaces: id of the response in whose place it is put.
        draft: the response in progress, to be kept; None keeps no response.
        user: whose turn it is among the tenant's users.
        claim: key of the idempotency record that led here.
        new: begin something of its own, which is no conversation that clients know.
        chosen: whether the request itself says what to do while another turn runs; where it doesn't,
            the conversation's persona goes above `on_busy`.
        persona: name of the persona that what is begun is with.
        model: name of the model, where the request gives one: the conversation remembers it.
        again: it was begun before, and waited.
    """

    response: str
    owner: str
    lease_s: float
    on_busy: BusyMode = ""
    max_queued: int = 16
    follows: str | None = None
    replaces: str | None = None
    draft: dict[str, Any] | None = None
    user: str | None = None
    claim: str | None = None
    new: bool = False
    chosen: bool = True
    persona: str | None = None
    model: str | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class BegunTurn:
    """Where a turn stands.

    Attributes:
        waits: how many turns go before it; 0 means that it runs, and only then the rest counts.
        hidden: whether what it belongs to is no conversation that clients know.
        base: id of the item behind which it goes, "" at the beginning.
        history: what was said before it.
        asked: where it replaces another one, what that one was asked.
        repeated: it was committed already.
        persona: name of the persona that the conversation was begun with.
        state: what was known of it before the turn, or None.
        summary: of the line up to `summary_at`, or None.
        summary_at: id of an item of `history`, or None.
        facts: profile of the turn's user.
    """

    waits: int = 0
    hidden: bool = False
    base: str = ""
    history: tuple[StoredItem, ...] = ()
    asked: tuple[StoredItem, ...] = ()
    repeated: bool = False
    persona: str | None = None
    state: Record | None = None
    summary: str | None = None
    summary_at: str | None = None
    facts: tuple[Fact, ...] = ()


class TurnStore:
    """Begins and commits turns.

    Args:
        scripts: how conversations are reached.
        settle_s: seconds in which a commit whose answer was lost is asked for again.

    Every method raises StateUnavailable when Redis can't be reached.
    """

    def __init__(self, scripts: ConversationScripts, *, settle_s: float = SETTLE_S) -> None:
        self._scripts = scripts
        self._seal = scripts.seal
        self._settle_s = settle_s

    async def begin(self, tenant: str, conversation: str, turn: TurnBegin) -> BegunTurn:
        """Take a turn's place in its conversation and load what was said before it.

        Raises:
            ConversationNotFound: the tenant, or its user, has no such conversation.
            ConversationBusy: another turn runs, and this one doesn't wait, or too many do.
            IdempotencyConflict: another replica is making the same response.
            ResponseCancelled: it was cancelled, or interrupted, while it waited.
            ResponseLost: it has ended while it waited, or was taken from its owner.
            ResponseNotFound: what it continues or replaces isn't there, or it was committed itself and
                then deleted.
            ResponseUnfinished: what it continues or replaces was not completed.
        """
        other = turn.follows or turn.replaces or ""
        kind = (
            "new"
            if turn.new
            else "previous"
            if turn.follows
            else "replaces"
            if turn.replaces
            else "head"
        )
        draft = (
            seal_record(self._seal, turn.draft, tenant, conversation, turn.response)
            if turn.draft is not None
            else b""
        )
        body = (
            encode_conversation(
                self._seal,
                tenant,
                StoredConversation(
                    conversation, int(time.time()), user=turn.user, persona=turn.persona
                ),
            )
            if turn.new
            else b""
        )
        with redis_span("begin_turn"):
            (state, *rest), profile = await self._scripts.run_beside_profile(
                turn.user,
                BEGIN,
                tenant,
                conversation,
                turn.response,
                turn.owner,
                round(turn.lease_s * 1000),
                turn.on_busy,
                turn.max_queued,
                kind,
                other,
                draft,
                user_digest(tenant, turn.user),
                turn.claim or "",
                body,
                "1" if turn.chosen else "",
                turn.model or "",
                "1" if turn.again else "",
            )
        match state:
            case b"waits":
                return BegunTurn(waits=int(rest[0]))
            case b"repeated":
                return BegunTurn(repeated=True)
            case b"flies":
                msg = f"{turn.response} is being made already; read it, or try again when it ended."
                raise IdempotencyConflict(msg, retry_after=1.0)
            case b"busy":
                raise _busy(rest[0].decode())
            case b"full":
                msg = (
                    f"{turn.max_queued} turns of this conversation run or wait already (setting "
                    "responses.max_queued_turns); try again when some are over."
                )
                raise ConversationBusy(msg, param="conversation", retry_after=1.0)
            case b"cancelled":
                raise cancelled(rest[0].decode())
            case b"lost":
                raise lost()
            case b"gone":
                raise ResponseNotFound(response_not_found(turn.response), param="Idempotency-Key")
            case b"unknown":
                raise ResponseNotFound(response_not_found(other), param=_param(turn))
            case b"unfinished":
                msg = f"{other} was not completed: wait for its end, or continue another response."
                raise ResponseUnfinished(msg, param=_param(turn))
        hidden, base, count, stored, known, known_at, summary, summary_at, *pairs = rest
        view = decode_conversation(self._seal, tenant, conversation, stored)
        items = [
            decode_item(self._seal, tenant, conversation, pairs[i], pairs[i + 1])
            for i in range(0, len(pairs), 2)
        ]
        # Items may have left between the line's beginning and what is read of it.
        length = min(int(count), len(items))
        asked = tuple(item for item in items[length:] if item.response == other)
        return BegunTurn(
            hidden=hidden == b"1",
            base=base.decode(),
            history=tuple(items[:length]),
            asked=asked,
            persona=view.persona,
            state=open_state(self._seal, known, tenant, conversation, known_at),
            summary=open_summary(self._seal, summary, tenant, conversation, summary_at),
            summary_at=summary_at.decode() or None,
            facts=decode_facts(self._seal, tenant, user_session(tenant, turn.user or ""), profile),
        )

    async def commit(
        self,
        tenant: str,
        conversation: str,
        *,
        response: str,
        items: Sequence[StoredItem],
        owner: str = "",
        base: str | None = None,
        record: dict[str, Any] | None = None,
        state: Record | None = None,
    ) -> bool:
        """Put a finished turn behind an item: once, whole or not at all, in one round trip.

        The turn's last item is the conversation's head then. Every error but CommitUnknown means
        that it is not stored and will not be.

        Args:
            tenant: whose conversation it is.
            conversation: its id.
            response: the response's id; a second commit under it changes nothing.
            items: input items first, then the reply.
            owner: who began the turn; "" where nobody did.
            base: id of the item before it; None takes the head.
            record: the response as it ended, to be kept.
            state: what is known of the conversation behind the turn.

        Returns:
            False when the turn was there already.

        Raises:
            ConversationNotFound: the tenant has no such conversation.
            InvalidRequest: an item appears twice or is in the conversation already.
            ResponseLost: the turn was taken from its owner.
            CommitUnknown: Redis was sent the turn and has not answered since.
        """
        check_distinct(items)
        pairs = [
            part
            for item in items
            for part in (item.id, encode_item(self._seal, tenant, conversation, item))
        ]
        sealed = (
            b""
            if record is None
            else seal_record(self._seal, record, tenant, conversation, response)
        )
        command = self._scripts.command(
            COMMIT,
            tenant,
            conversation,
            self._scripts.max_items,
            response,
            owner,
            "=head" if base is None else base,
            sealed,
            b""
            if state is None or not items
            else seal_state(self._seal, state, tenant, conversation, items[-1].id),
            leading_system(items),
            *pairs,
        )
        with redis_span("commit_turn"):
            outcome = await self._answer_to_commit(*command)
        self._scripts.require_found(outcome, conversation)
        match outcome:
            case b"clash":
                msg = f"An item of {response} is in the conversation already; give it a fresh id."
                raise InvalidRequest(msg, param="items")
            case b"lost":
                raise lost()
        return bool(outcome == b"stored")

    async def _answer_to_commit(self, *command: Any) -> Any:
        """Send the commit, and send it again while it is unknown whether Redis carried it out.

        Asking whether the turn is there would not do: the commit may lie unread in a socket.
        """
        began = time.monotonic()
        unanswered = False
        while True:
            try:
                return await self._scripts.redis.ask_once("commit", *command)
            except AnswerLost:
                unanswered = True
            except StateUnavailable:
                # It says nothing about a commit that was sent before. And a Redis that has just been
                # started refuses everything until it has read its file.
                if not unanswered and time.monotonic() >= began + BRIDGED_S:
                    raise
            if unanswered and time.monotonic() >= began + self._settle_s:
                msg = (
                    "Redis did not confirm that this turn is stored: it may have been stored. "
                    "Read the conversation's items before sending it again."
                )
                raise CommitUnknown(msg, param="conversation")
            await asyncio.sleep(_SETTLE_PAUSE_S)


def check_distinct(items: Sequence[StoredItem]) -> None:
    """Refuse items of which two have the same id.

    Raises:
        InvalidRequest: two have.
    """
    if len({item.id for item in items}) != len(items):
        msg = "An item id appears twice; each item needs its own."
        raise InvalidRequest(msg, param="items")


def leading_system(items: Sequence[StoredItem]) -> int:
    """Return how many system messages items begin with."""
    for place, item in enumerate(items):
        if item.role != "system":
            return place
    return len(items)


def cancelled(reason: str) -> ResponseCancelled:
    """Return the error of a response that somebody ended; `reason` is `cancel` or `interrupt`."""
    msg = (
        "The next turn of the conversation has interrupted this response; send its input again if "
        "it still matters."
        if reason == "interrupt"
        else "The response was cancelled; send the request again if it still matters."
    )
    return ResponseCancelled(msg)


def lost() -> ResponseLost:
    """Return the error of a response that its owner may no longer finish."""
    msg = "The response was deleted or taken for lost while it was being made; send it again."
    return ResponseLost(msg)


def _busy(response: str) -> ConversationBusy:
    msg = (
        f"{response} of this conversation is still being made: wait for its end, or send this turn "
        'with "on_busy" set to enqueue or interrupt.'
    )
    return ConversationBusy(msg, param="conversation")


def _param(turn: TurnBegin) -> str:
    return "previous_response_id" if turn.follows else "replaces"
