"""The state machine: Hypothesis draws what clients do and what dies; all of it happens at once.

A rule begins an operation as soon as a client is free for it, and does not wait for its end. What a
machine was told to do can be had again by its seed; when what happens is for the processor to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from load.in_process.calls import Moment
from load.in_process.service import KINDS, Kind
from load.proving.history import History
from load.proving.run import Run, Setup
from load.proving.turns import Conversation, Tenant, Turn
from serve_app.state.connection import Operation

__all__ = ["Machine"]

_WRITES: tuple[Operation, ...] = (
    "begin",
    "commit",
    "conversation",
    "idempotency",
    "journal",
    "response",
)
_LEFT = 2  # conversations that nobody deletes, so that there is always one to talk in

_pick = st.integers(0, 31)
_tokens = st.sampled_from([1, 6, 16, 40])
_busy = st.sampled_from([None, "enqueue", "reject", "interrupt"])
_way = st.sampled_from(["plain", "stream", "background", "background stream"])


class Machine(RuleBasedStateMachine):
    """One run by drawn steps.

    Attributes:
        setup: set it in a subclass.
        total: counts of all runs, likewise.
        runs: how many there were, likewise.
    """

    setup: ClassVar[Setup]
    total: ClassVar[History]
    runs: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.run = Run(self.setup)
        self._clients = self.run.clients

    # What clients do.

    @rule(tenant=_pick, keyed=st.booleans())
    def new_conversation(self, tenant: int, keyed: bool) -> None:
        """Make a conversation."""
        whose = self._tenant(tenant)
        self.run.do("new conversation", whose, self._clients.new_conversation(whose, keyed=keyed))

    @rule(place=_pick, way=_way, tokens=_tokens, busy=_busy, keyed=st.booleans())
    def say(self, place: int, way: str, tokens: int, busy: str | None, keyed: bool) -> None:
        """Send a turn to a conversation."""
        turn = self._turn(way, tokens, keyed=keyed, conversation=self._place(place), busy=busy)
        self.run.do(f"say, {way}", turn, self._clients.send(turn))

    @rule(place=_pick, tokens=_tokens, after=st.integers(1, 20), by_id=st.booleans(), busy=_busy)
    def leave_and_resume(
        self,
        place: int,
        tokens: int,
        after: int,
        by_id: bool,
        busy: str | None,
    ) -> None:
        """Cut a stream's connection behind some events, and read on elsewhere."""
        turn = self._turn("stream", tokens, keyed=True, conversation=self._place(place), busy=busy)
        self.run.do(
            "leave and resume", turn, self._clients.send(turn, leave_after=after, by_id=by_id)
        )

    @rule(place=_pick, tokens=_tokens, busy=_busy)
    def two_at_once(self, place: int, tokens: int, busy: str | None) -> None:
        """Send two turns to one conversation."""
        where = self._place(place)
        for _ in range(2):
            turn = self._turn("stream", tokens, keyed=True, conversation=where, busy=busy)
            self.run.do(f"two at once, {busy or 'default'}", turn, self._clients.send(turn))

    @rule(place=_pick, way=_way, tokens=_tokens)
    def same_key_at_once(self, place: int, way: str, tokens: int) -> None:
        """Send one turn twice."""
        turn = self._turn(way, tokens, keyed=True, conversation=self._place(place))
        for _ in range(2):
            self.run.do("same key at once", turn, self._clients.send(turn))

    @rule(which=_pick)
    def repeat(self, which: int) -> None:
        """Send a turn again under its key."""
        if (turn := self._known(which, lambda turn: turn.key is not None)) is not None:
            self.run.do("repeat under the key", turn, self._clients.send(turn))

    @rule(which=_pick)
    def other_body(self, which: int) -> None:
        """Only of turns that have ended: else this might come first, and be the one that counts."""
        turn = self._known(which, lambda turn: turn.key is not None and turn.settled and turn.text)
        if turn is not None:
            self.run.do("another body under the key", turn, self._clients.other_body(turn))

    @rule(tenant=_pick, way=_way, tokens=_tokens, keyed=st.booleans())
    def say_alone(self, tenant: int, way: str, tokens: int, keyed: bool) -> None:
        """Send a turn that belongs to no conversation."""
        turn = self._turn(way, tokens, keyed=keyed, tenant=self._tenant(tenant))
        self.run.do("say without a conversation", turn, self._clients.send(turn))

    @rule(which=_pick, way=_way, tokens=_tokens, keyed=st.booleans())
    def go_on(self, which: int, way: str, tokens: int, keyed: bool) -> None:
        """Continue a response that belongs to no conversation."""
        before = self._known(which, lambda turn: turn.conversation is None and turn.response)
        if before is not None:
            turn = self._turn(way, tokens, keyed=keyed, tenant=before.tenant, follows=before)
            self.run.do("continue a response", turn, self._clients.send(turn))

    @rule(which=_pick, way=_way, tokens=_tokens, edit=st.booleans(), busy=_busy)
    def replace(self, which: int, way: str, tokens: int, edit: bool, busy: str | None) -> None:
        """In some conversations only, so that others stay without branches."""
        old = self._known(which, lambda turn: self._may_branch(turn) and turn.outcome == "stored")
        if old is not None:
            turn = self._turn(
                way,
                tokens,
                keyed=True,
                tenant=old.tenant,
                conversation=old.conversation,
                replaces=old,
                busy=busy,
                says=edit,
            )
            self.run.do("edit" if edit else "regenerate", turn, self._clients.send(turn))

    @rule(place=_pick)
    def append(self, place: int) -> None:
        """Append an item to a conversation."""
        self.run.do("append an item", self._place(place), self._clients.append(self._place(place)))

    @rule(which=_pick, behind=st.integers(0, 40), by_id=st.booleans())
    def resume(self, which: int, behind: int, by_id: bool) -> None:
        """Read a response's stream again, from some event on."""
        if (turn := self._known(which, lambda turn: turn.response)) is not None:
            self.run.do(
                "read a stream again", turn, self._clients.resume(turn, behind=behind, by_id=by_id)
            )

    @rule(which=_pick)
    def read(self, which: int) -> None:
        """Read a response."""
        if (turn := self._known(which, lambda turn: turn.response)) is not None:
            self.run.do("read a response", turn, self._clients.read(turn))

    @rule(place=_pick)
    def list_items(self, place: int) -> None:
        """List a conversation's items."""
        self.run.do("list items", self._place(place), self._clients.list_items(self._place(place)))

    @rule(which=_pick)
    def cancel(self, which: int) -> None:
        """Cancel a response."""
        if (turn := self._known(which, lambda turn: turn.response)) is not None:
            self.run.do("cancel", turn, self._clients.cancel(turn))

    @rule(which=_pick)
    def delete_response(self, which: int) -> None:
        """Delete a response."""
        if (turn := self._known(which, lambda turn: turn.response)) is not None:
            self.run.do("delete a response", turn, self._clients.delete_response(turn))

    @rule(place=_pick)
    def delete_conversation(self, place: int) -> None:
        """While others are left."""
        if sum(not one.delete_asked for one in self._clients.conversations) <= _LEFT:
            return
        self.run.do(
            "delete a conversation",
            self._place(place),
            self._clients.delete_conversation(self._place(place)),
        )

    @rule(which=_pick, way=_pick)
    def trespass(self, which: int, way: int) -> None:
        """Try to get at another tenant's data."""
        if (turn := self._known(which, lambda turn: turn.response)) is not None:
            other = next(one for one in self._clients.tenants if one is not turn.tenant)
            self.run.do("reach for another's data", turn, self._clients.trespass(other, turn, way))

    # What dies.

    @precondition(lambda self: self.setup.kills)
    @rule(kind=st.sampled_from(KINDS), which=_pick, back_after_s=st.sampled_from([0.0, 0.1, 0.4]))
    def kill(self, kind: Kind, which: int, back_after_s: float) -> None:
        """Kill a replica."""
        self.run.kill(kind, which, back_after_s)

    @precondition(lambda self: self.setup.kills)
    @rule(
        victim=st.sampled_from(["caller", "replica", "Redis"]),
        moment=st.sampled_from(
            [("plan", "before"), ("plan", "after"), ("commit", "before"), ("commit", "after")]
        ),
    )
    def kill_at(self, victim: str, moment: Moment) -> None:
        """Kill when the next turn is begun or committed, right before or behind it."""
        self.run.kill_at(victim, moment)

    @precondition(lambda self: self.setup.kills)
    @rule(
        victim=st.sampled_from(["connection", "replica", "Redis"]),
        operation=st.sampled_from(_WRITES),
    )
    def lose_answer(self, victim: str, operation: Operation) -> None:
        """Lose Redis' answer to the next script of a kind, which it has carried out."""
        self.run.lose_answer(victim, operation)

    @precondition(lambda self: self.setup.kills)
    @rule(back_after_s=st.sampled_from([0.0, 0.2, 1.3]))
    def kill_redis(self, back_after_s: float) -> None:
        """Kill Redis."""
        self.run.kill_redis(back_after_s)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.05]))
    def wait(self, seconds: float) -> None:
        """Let things go on for a while."""
        self.run.wait_for(asyncio.sleep(seconds))

    def teardown(self) -> None:
        """Come to the verdict, and end everything.

        Raises:
            Broken: a promise was broken.
        """
        cls = type(self)
        cls.runs += 1
        try:
            self.judge()
        finally:
            self.run.close()
            self.total.add(self.run.history)

    def judge(self) -> None:
        """Come to the verdict.

        Raises:
            Broken: a promise was broken.
        """
        self.run.judge()

    def _tenant(self, pick: int) -> Tenant:
        tenants = self._clients.tenants
        return tenants[pick % len(tenants)]

    def _place(self, pick: int) -> Conversation:
        """Return one of the latest conversations."""
        places = self._clients.conversations
        return places[-1 - pick % min(len(places), 6)]

    def _may_branch(self, turn: Turn) -> bool:
        place = turn.conversation
        return place is not None and self._clients.conversations.index(place) % 2 == 1

    def _known(self, pick: int, wanted: Callable[[Turn], object]) -> Turn | None:
        """Return one of the latest turns of a kind."""
        found = [turn for turn in self._clients.turns[-80:] if wanted(turn)]
        return found[-1 - pick % min(len(found), 32)] if found else None

    def _turn(
        self,
        way: str,
        tokens: int,
        *,
        keyed: bool,
        tenant: Tenant | None = None,
        conversation: Conversation | None = None,
        follows: Turn | None = None,
        replaces: Turn | None = None,
        busy: str | None = None,
        says: bool = True,
    ) -> Turn:
        whose = tenant or (conversation.tenant if conversation is not None else None)
        if whose is None:
            raise AssertionError
        number = self._clients.number()
        turn = Turn(
            number=number,
            tenant=whose,
            text=whose.marked(number) if says else "",
            tokens=tokens,
            conversation=conversation,
            follows=follows,
            replaces=replaces,
            key=f"turn-{number}" if keyed else None,
            stream="stream" in way,
            background="background" in way,
            on_busy=busy,
        )
        self._clients.turns.append(turn)
        if conversation is not None:
            conversation.turns.append(turn)
        return turn
