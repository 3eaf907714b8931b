"""Clients: each operation sends requests, follows what comes of them, and checks it at once."""

from __future__ import annotations

import time
from typing import Any

import orjson

from load.in_process.exchange import ConnectionLost
from load.in_process.service import MODEL
from load.proving.conversing import Conversing
from load.proving.reading import Reading
from load.proving.requests import AGAIN, code_of
from load.proving.turns import Outcome, Tenant, Turn

__all__ = ["Clients"]


class Clients(Conversing, Reading):
    """All that clients can do.

    Attributes:
        turns: that were sent.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.turns: list[Turn] = []

    async def send(self, turn: Turn, *, leave_after: int | None = None, by_id: bool = False) -> str:
        """Send a turn, and follow it to its end.

        Args:
            turn: what to send.
            leave_after: cut the connection behind so many events, and read on by another one.
            by_id: read on by Last-Event-ID and not by `starting_after`.
        """
        turn.sent_at = turn.sent_at or time.monotonic()
        place = turn.conversation
        late = place is not None and place.deleted_at is not None
        settled = turn.settled and not turn.may_be_gone
        other = turn.follows or turn.replaces
        before = None if other is None else _known_of(other, turn)
        turn.sends += 1
        turn.in_flight += 1
        try:
            headers = {} if turn.key is None else {"idempotency-key": turn.key}
            try:
                exchange = await self.begin(
                    turn.tenant, "POST", "/v1/responses", body=turn.body(), headers=headers
                )
            except ConnectionLost:
                turn.cut()
                return "cut"
            if exchange.status == 200:
                self.history.check(
                    "what is deleted stays away", not late, f"{turn.name} was taken by {place}"
                )
                return await self.follow(turn, exchange, leave_after, by_id=by_id)
            try:
                body = await exchange.whole()
            except ConnectionLost:
                turn.cut()
                return "cut"
            code = code_of(body)
            kept = code in AGAIN or self._may_refuse(turn, code, settled=settled, before=before)
            self.foreseen(kept, turn.name, exchange.status, body)
            turn.refused(code)
            return code
        finally:
            turn.in_flight -= 1

    def _may_refuse(
        self, turn: Turn, code: str, *, settled: bool, before: tuple[Outcome, bool] | None
    ) -> bool:
        """Say whether a turn may be answered with an error.

        Args:
            turn: what was sent.
            code: the error's.
            settled: whether it had ended, and nobody had it forgotten, when it was sent.
            before: how what it continues or replaces had ended then, and whether that need not have
                been there; None where it does neither.
        """
        other = turn.follows or turn.replaces
        now = None if other is None else _known_of(other, turn)
        known = [one for one in (before, now) if one is not None]
        match code:
            case "idempotency_in_flight":
                # What made it may still be at that when its end is known from elsewhere.
                return turn.key is not None
            case "idempotency_key_reused":
                # The key went with the conversation, and something else came under it.
                return turn.may_be_gone and turn.contested
            case "conversation_not_found":
                return turn.may_be_gone
            case "conversation_busy":
                return not settled and turn.conversation is not None
            case "response_cancelled":
                return not settled and (turn.cancel_asked or turn.interruptible)
            case "response_unfinished":
                return not settled and any(outcome != "stored" for outcome, _ in known)
            case "response_not_found":
                absent = any(nowhere for _, nowhere in known)
                return turn.may_be_gone or (not settled and absent)
        return False

    async def other_body(self, turn: Turn) -> str:
        """Send something else under a turn's key."""
        settled = turn.settled
        turn.contested = True
        try:
            status, body, _ = await self.ask(
                turn.tenant,
                "POST",
                "/v1/responses",
                body=turn.body(f"{turn.says} instead"),
                headers={"idempotency-key": turn.key or ""},
            )
        except ConnectionLost:
            return "cut"
        if settled:
            self.history.check(
                "none is there twice under one key",
                status == 422
                or code_of(body) in AGAIN
                # A conversation takes the keys that led to it with it.
                or (turn.may_be_gone and status in {404, 409}),
                f"{turn.name}: another body was answered {status} {body[:300]!r}",
            )
        return str(status)

    async def cancel(self, turn: Turn) -> str:
        """Cancel a response."""
        if turn.response is None:
            return "unknown"
        turn.cancel_asked = True
        path = f"/v1/responses/{turn.response}/cancel"
        nowhere = turn.may_be_nowhere
        try:
            status, body, _ = await self.ask(turn.tenant, "POST", path)
        except ConnectionLost:
            return "cut"
        if status == 200:
            return self.told(turn, orjson.loads(body))
        gone = status == 404 and (nowhere or turn.may_be_nowhere)
        self.foreseen(gone or code_of(body) in AGAIN, f"POST {path}", status, body)
        return code_of(body)

    async def delete_response(self, turn: Turn) -> str:
        """Delete a response; what it said in a conversation stays there."""
        if turn.response is None:
            return "unknown"
        turn.delete_asked = True
        path = f"/v1/responses/{turn.response}"
        try:
            status, body, _ = await self.ask(turn.tenant, "DELETE", path)
        except ConnectionLost:
            return "cut"
        self.foreseen(
            status in {200, 404} or code_of(body) in AGAIN, f"DELETE {path}", status, body
        )
        if status == 200:
            turn.deleted_at = time.monotonic()
            return "deleted"
        return code_of(body)

    async def trespass(self, tenant: Tenant, turn: Turn, way: int) -> str:
        """Try to get at another tenant's data, by one of the ways there are."""
        response = turn.response or "resp_" + "0" * 56
        place = turn.conversation.id if turn.conversation is not None else "conv_" + "0" * 32
        said = {"model": MODEL, "input": "And?", "max_output_tokens": 1}
        ways: list[tuple[str, str, dict[str, Any] | None]] = [
            ("GET", f"/v1/responses/{response}", None),
            ("GET", f"/v1/responses/{response}?stream=true", None),
            ("GET", f"/v1/responses/{response}/input_items", None),
            ("POST", f"/v1/responses/{response}/cancel", None),
            ("DELETE", f"/v1/responses/{response}", None),
            ("POST", f"/v1/responses/{response}/feedback", {"rating": "up"}),
            ("POST", "/v1/responses", {**said, "previous_response_id": response}),
            ("POST", "/v1/responses", {**said, "replaces": response}),
            ("POST", "/v1/responses", {**said, "conversation": place}),
            ("GET", f"/v1/conversations/{place}", None),
            ("GET", f"/v1/conversations/{place}/items", None),
            ("POST", f"/v1/conversations/{place}", {"metadata": {"a": "b"}}),
            ("DELETE", f"/v1/conversations/{place}", None),
        ]
        method, path, body = ways[way % len(ways)]
        try:
            exchange = await self.begin(
                tenant, method, path, body=b"" if body is None else orjson.dumps(body)
            )
            answer = await exchange.whole()
        except ConnectionLost:
            return "cut"
        refused = exchange.status == 404 or (
            # A stream tells what it finds out behind its status.
            b'"code":"response_not_found"' in answer and b'"type":"error"' in answer
        )
        self.history.check(
            "no tenant reads another's data",
            refused or code_of(answer) in AGAIN or b"state_unavailable" in answer,
            f"{tenant.name} got {exchange.status} {answer[:300]!r} for {method} {path}",
        )
        self.sees_only_its_own(tenant, answer, f"{method} {path}")
        return str(exchange.status)


def _known_of(other: Turn, turn: Turn) -> tuple[Outcome, bool]:
    """Return how what a turn continues or replaces has ended, and whether that need not be there."""
    return other.outcome_of(turn.other), other.may_be_nowhere
