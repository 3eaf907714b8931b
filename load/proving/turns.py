"""What clients know: their conversations, what they have sent, and what they were told of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from load.in_process.service import MODEL
from load.proving.telling import Telling

__all__ = ["ENDED", "Conversation", "Note", "Outcome", "Tenant", "Turn"]

ENDED = frozenset({"completed", "incomplete", "cancelled", "failed"})

Outcome = Literal["unknown", "stored", "cancelled", "failed", "refused"]
"""What a client knows of a turn: nothing for sure, or what it was told last."""


@dataclass(slots=True, eq=False)
class Tenant:
    """Somebody with a key and data of their own."""

    name: str
    key: str

    def marked(self, number: int) -> str:
        """Return a text that only this tenant writes, and only once."""
        return f"[{self.name}:{number}] go on"


@dataclass(slots=True, eq=False)
class Conversation:
    """A conversation, made by a request that was answered.

    Attributes:
        tenant: whose it is.
        id: its id.
        turns: all that were sent to it.
        notes: items that were appended without a turn.
        delete_asked: whether anybody has sent a request to delete it.
        deleted_at: when that was answered with yes.
    """

    tenant: Tenant
    id: str
    turns: list[Turn] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    delete_asked: bool = False
    deleted_at: float | None = None

    @property
    def name(self) -> str:
        """What notes call it."""
        return self.id

    @property
    def branches(self) -> bool:
        """Whether any turn was to take another one's place."""
        return any(turn.replaces is not None for turn in self.turns)


@dataclass(slots=True, eq=False)
class Note:
    """An item that a client appends by itself."""

    conversation: Conversation
    text: str
    key: str
    sent_at: float = 0.0
    told_at: float | None = None
    answer: bytes | None = None


@dataclass(slots=True, eq=False)
class Turn:
    """One thing that a client wants said, however often it has to send it.

    Attributes:
        number: names it in notes.
        tenant: whose it is.
        text: what it says, which no other turn says; "" where it repeats what `replaces` says.
        tokens: most tokens of the reply.
        conversation: which it belongs to, or None.
        follows: the turn that it continues, where it belongs to no conversation.
        replaces: the turn in whose place it is put.
        key: its Idempotency-Key, or None.
        stream: whether it is streamed.
        background: whether it runs in the background.
        on_busy: what it does while another turn runs.
        sends: how often it was sent.
        sent_at: when first.
        tries: ids of its responses as they became known, and how each ended. Under a key there is a
            next one only where the one before it has failed.
        outcome: what is known of it.
        under_way: whether a client was told last that it is being made.
        final: the response as it ended, once a client was told.
        told_at: when.
        tellings: what streams have told of it.
        cancel_asked: whether anybody has sent a request to cancel it.
        delete_asked: whether anybody has sent a request to delete its response.
        deleted_at: when that was answered with yes.
        contested: whether anybody has sent something else under its key.
        in_flight: requests that carry it.
        loose_ends: requests of which nobody knows what became.
    """

    number: int
    tenant: Tenant
    text: str
    tokens: int
    conversation: Conversation | None = None
    follows: Turn | None = None
    replaces: Turn | None = None
    key: str | None = None
    stream: bool = False
    background: bool = False
    on_busy: str | None = None
    sends: int = 0
    sent_at: float = 0.0
    tries: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    outcome: Outcome = "unknown"
    under_way: bool = False
    final: dict[str, Any] | None = None
    told_at: float | None = None
    tellings: list[Telling] = field(default_factory=list)
    cancel_asked: bool = False
    delete_asked: bool = False
    deleted_at: float | None = None
    contested: bool = False
    in_flight: int = 0
    loose_ends: int = 0
    _other: str | None = None

    @property
    def response(self) -> str | None:
        """Id of its response, once known: of the one that stands, else of the latest that may."""
        standing = [one for one, end in self.tries.items() if end and end["status"] != "failed"]
        open_ones = [one for one, end in self.tries.items() if not end]
        return ([None, *self.tries, *open_ones, *standing])[-1]

    @property
    def name(self) -> str:
        """What notes call it."""
        return f"turn {self.number} ({self.response or 'unnamed'})"

    @property
    def settled(self) -> bool:
        """Whether it has ended once and for all."""
        return self.outcome in {"stored", "cancelled"}

    @property
    def may_be_gone(self) -> bool:
        """Whether anybody has asked for it to be forgotten."""
        return self.delete_asked or (
            self.conversation is not None and self.conversation.delete_asked
        )

    @property
    def may_be_nowhere(self) -> bool:
        """Whether its response need not be there: it was forgotten, or is kept nowhere."""
        return self.may_be_gone or self.outcome == "refused"

    @property
    def gone_since(self) -> float | None:
        """When it was deleted, if that was behind its end; one that is being made is told to end first."""
        place = self.conversation
        times = (self.deleted_at, None if place is None else place.deleted_at)
        gone = min((at for at in times if at is not None), default=None)
        ended = self.settled and self.told_at is not None and self.in_flight == 0
        return gone if gone is not None and ended and (self.told_at or 0.0) < gone else None

    @property
    def says(self) -> str:
        """What its input says."""
        return self.text or (self.replaces.says if self.replaces is not None else "")

    @property
    def surely_absent(self) -> bool:
        """Whether every request that carried it was answered with an error, so that it is not stored."""
        certain = not (self.loose_ends or self.in_flight)
        return certain and self.sends > 0 and self.outcome in {"failed", "refused"}

    @property
    def interruptible(self) -> bool:
        """Whether another turn may have ended it."""
        place = self.conversation
        return place is not None and any(turn.on_busy == "interrupt" for turn in place.turns)

    def body(self, text: str | None = None) -> bytes:
        """Return the request.

        Args:
            text: what it says instead.
        """
        said = self.text if text is None else text
        fields: dict[str, Any] = {
            "model": MODEL,
            "temperature": 0,
            "max_output_tokens": self.tokens,
            "stream": self.stream,
        }
        if said:
            fields["input"] = said
        if self.background:
            fields["background"] = True
        if self.on_busy is not None:
            fields["on_busy"] = self.on_busy
        if self.replaces is not None:
            fields["replaces"] = self.other
        elif self.conversation is not None:
            fields["conversation"] = self.conversation.id
        elif self.follows is not None:
            fields["previous_response_id"] = self.other
        return orjson.dumps(fields)

    @property
    def other(self) -> str | None:
        """Id of the response that it continues or replaces, the same whenever it is sent."""
        other = self.follows or self.replaces
        if self._other is None and other is not None:
            self._other = other.response
        return self._other

    def outcome_of(self, response: str | None) -> Outcome:
        """Return what is known of one of its responses."""
        return self.outcome if response == self.response else "failed"

    def named(self, response: str) -> None:
        """Take note of the id of its response."""
        self.tries.setdefault(response, None)

    def told(self, final: dict[str, Any]) -> str | None:
        """Take note of how its response ended.

        Returns:
            How that differs from what was told before, or None.
        """
        before = self.tries.get(final["id"])
        self.tries[final["id"]] = final
        if before is not None and before["status"] == "failed" != final["status"]:
            if before["error"]["type"] != "commit_unknown":
                return f"{final['id']} ended as {before}, and then as {final}"
        elif final["id"] != self.response:
            return None  # it has failed, and was made again
        self.under_way = False
        if not final["store"]:
            self.outcome, self.final = "refused", final  # answered, and kept nowhere
            return None
        if self.settled and final != self.final:
            return f"{self.name} ended as {self.final}, and then as {final}"
        if (
            self.surely_absent
            and self.sends == 1
            and final["status"] in {"completed", "incomplete"}
        ):
            return f"{self.name} was reported as {self.outcome}, and then as {final['status']}"
        if self.told_at is None or not self.settled:
            self.told_at = time.monotonic()
        self.final = final
        match final["status"]:
            case "completed" | "incomplete":
                self.outcome = "stored"
            case "cancelled":
                self.outcome = "cancelled"
            case _:
                self.outcome = "failed"
                if final["error"]["type"] == "commit_unknown":
                    self.cut()
        return None

    def refused(self, code: str) -> None:
        """Take note that a request which carried it got an error in place of an answer."""
        if code == "commit_unknown":
            self.cut()
        elif code != "idempotency_in_flight" and not (self.settled or self.under_way):
            self.outcome = "refused"

    def cut(self) -> None:
        """Take note that a request which carried it got no answer."""
        self.loose_ends += 1
        if not self.settled:
            self.outcome = "unknown"
