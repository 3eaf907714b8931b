"""Clients: each operation sends requests, follows what comes of them, and checks it at once."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from typing import Any

import orjson

from load.in_process.exchange import ConnectionLost, Exchange
from load.in_process.service import InProcessService
from load.proving.history import History
from load.proving.telling import Telling
from load.proving.turns import ENDED, Conversation, Note, Tenant, Turn

__all__ = ["Clients"]

PATIENCE_S = 30.0
"""Whatever a client waits for comes within this time, however much dies meanwhile."""

_PAUSE_S = 0.05
_MARK = re.compile(rb"\[(\w+):\d+\]")
# Of something that died, is away, or is full: try again.
_AGAIN = frozenset(
    {"state_unavailable", "overloaded", "generator_lost", "response_lost", "commit_unknown"}
)
_PAGE = 100


class Clients:
    """What clients can do.

    Args:
        service: what they talk to.
        history: takes note.

    Attributes:
        tenants: who there is.
        conversations: that were made.
        turns: that were sent.
    """

    def __init__(self, service: InProcessService, history: History, tenants: list[Tenant]) -> None:
        self.service = service
        self.history = history
        self.tenants = tenants
        self.conversations: list[Conversation] = []
        self.turns: list[Turn] = []
        self._numbers = 0
        self._through = 0

    def number(self) -> int:
        """Return a number that nothing has yet."""
        self._numbers += 1
        return self._numbers

    async def ask(
        self,
        tenant: Tenant,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request through the next ingress replica and return status, body and headers.

        Raises:
            ConnectionLost: there is no answer.
        """
        exchange = await self.begin(tenant, method, path, body=body, headers=headers)
        whole = await exchange.whole()
        self.sees_only_its_own(tenant, whole, f"{method} {path}")
        return exchange.status, whole, exchange.headers

    async def begin(
        self,
        tenant: Tenant,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Exchange:
        """Send a request and wait for the answer's beginning.

        Raises:
            ConnectionLost: there is none.
        """
        self._through += 1
        sent = {
            "authorization": f"Bearer {tenant.key}",
            "content-type": "application/json",
            **(headers or {}),
        }
        exchange = self.service.request(
            method, path, headers=sent, body=body, through=self._through
        )
        await exchange.begun()
        return exchange

    def sees_only_its_own(self, tenant: Tenant, body: bytes, where: str) -> None:
        """Check that nothing in an answer was written by another tenant."""
        others = {mark for mark in _MARK.findall(body) if mark.decode() != tenant.name}
        self.history.check(
            "no tenant reads another's data", not others, f"{where}: {tenant.name} reads {others}"
        )

    def foreseen(self, kept: object, what: str, status: int, body: bytes) -> None:
        """Check that an answer is one of those that the situation allows."""
        self.history.check(
            "every request gets a foreseen answer", kept, f"{what}: {status} {body[:500]!r}"
        )

    # Conversations.

    async def new_conversation(self, tenant: Tenant, *, keyed: bool) -> str:
        """Make a conversation; with a key, until there is one."""
        number = self.number()
        headers = {"idempotency-key": f"conversation-{number}"} if keyed else {}
        made: set[str] = set()
        for _ in range(2 if keyed else 1):
            try:
                status, body, _ = await self._asked_until_answered(
                    tenant, "POST", "/v1/conversations", headers, orjson.dumps({}), keyed=keyed
                )
            except ConnectionLost:
                return "cut"
            if status != 200:
                self.foreseen(code_of(body) in _AGAIN, "new conversation", status, body)
                return code_of(body)
            made.add(orjson.loads(body)["id"])
        self.history.check(
            "none is there twice under one key", len(made) == 1, f"one key made {sorted(made)}"
        )
        self.conversations.append(Conversation(tenant, made.pop()))
        return "made"

    async def _asked_until_answered(
        self,
        tenant: Tenant,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        keyed: bool,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request, and with a key send it again while nobody knows what came of it."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                status, answer, got = await self.ask(
                    tenant, method, path, headers=headers, body=body
                )
            except ConnectionLost:
                if not keyed:
                    raise
            else:
                in_flight = status == 409 and code_of(answer) == "idempotency_in_flight"
                if not keyed or not (in_flight or code_of(answer) in _AGAIN):
                    return status, answer, got
            if time.monotonic() > give_up:
                return status, answer, got
            await asyncio.sleep(_PAUSE_S)

    async def append(self, conversation: Conversation) -> str:
        """Append an item without a turn, under a key, twice."""
        tenant = conversation.tenant
        number = self.number()
        note = Note(conversation, tenant.marked(number), f"note-{number}")
        conversation.notes.append(note)
        late = conversation.deleted_at is not None
        note.sent_at = time.monotonic()
        said = {"items": [{"type": "message", "role": "user", "content": note.text}]}
        path = f"/v1/conversations/{conversation.id}/items"
        for _ in range(2):
            status, body, _ = await self._asked_until_answered(
                tenant, "POST", path, {"idempotency-key": note.key}, orjson.dumps(said), keyed=True
            )
            if status != 200:
                expected = (status == 404 and conversation.delete_asked) or code_of(body) in (
                    _AGAIN | {"idempotency_in_flight"}
                )
                self.foreseen(expected, f"append to {conversation.id}", status, body)
                return code_of(body)
            self.history.check(
                "what is deleted stays away", not late, f"{conversation.id} took an item"
            )
            if note.answer is not None:
                self.history.check(
                    "none is there twice under one key",
                    body == note.answer or conversation.delete_asked,
                    f"{note.key} was answered {note.answer!r}, then {body!r}",
                )
            note.answer, note.told_at = body, note.told_at or time.monotonic()
        return "stored"

    async def list_items(self, conversation: Conversation) -> str:
        """Read a conversation's line, page by page; what was acknowledged before is on it."""
        asked_at = time.monotonic()
        late = conversation.deleted_at is not None
        texts: list[str] = []
        after = ""
        while True:
            path = f"/v1/conversations/{conversation.id}/items?order=asc&limit={_PAGE}{after}"
            try:
                status, body, _ = await self.ask(conversation.tenant, "GET", path)
            except ConnectionLost:
                return "cut"
            if status != 200:
                gone = status == 404 and (conversation.delete_asked or conversation.branches)
                self.foreseen(gone or code_of(body) in _AGAIN, path, status, body)
                return code_of(body)
            page = orjson.loads(body)
            texts += [item["content"][0]["text"] for item in page["data"]]
            if not page["has_more"]:
                break
            after = f"&after={page['last_id']}"
        self.history.check("what is deleted stays away", not late, f"{conversation.id} is listed")
        if not conversation.branches:
            for turn in conversation.turns:
                if turn.outcome == "stored" and (turn.told_at or asked_at) < asked_at:
                    self.history.check(
                        "no acknowledged turn is lost",
                        texts.count(turn.text) == 1,
                        f"{turn.name} is on the line {texts.count(turn.text)} times",
                    )
        return "read"

    async def delete_conversation(self, conversation: Conversation) -> str:
        """Delete a conversation."""
        conversation.delete_asked = True
        path = f"/v1/conversations/{conversation.id}"
        late = conversation.deleted_at is not None
        try:
            status, body, _ = await self.ask(conversation.tenant, "DELETE", path)
        except ConnectionLost:
            return "cut"
        self.foreseen(
            (status == 200 and not late) or status == 404 or code_of(body) in _AGAIN,
            f"DELETE {path}",
            status,
            body,
        )
        if status in {200, 404}:
            conversation.deleted_at = conversation.deleted_at or time.monotonic()
            return "deleted" if status == 200 else "404"
        return code_of(body)

    # Turns.

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
                return await self._follow(turn, exchange, leave_after, by_id=by_id)
            body = await exchange.whole()
            code = code_of(body)
            self.foreseen(
                code in _AGAIN
                or (not settled and self._may_refuse(turn, code))
                or (turn.may_be_gone and exchange.status in {404, 409}),
                turn.name,
                exchange.status,
                body,
            )
            turn.refused(code)
            return code
        finally:
            turn.in_flight -= 1

    def _may_refuse(self, turn: Turn, code: str) -> bool:
        """Say whether a turn that has not ended yet may be answered with an error."""
        other = turn.follows or turn.replaces
        match code:
            case "conversation_busy":
                return turn.conversation is not None
            case "response_cancelled":
                return turn.cancel_asked or turn.interruptible
            case "idempotency_in_flight":
                return turn.key is not None
            case "response_unfinished":
                return other is not None and other.outcome != "stored"
            case "response_not_found":
                return other is not None and other.may_be_gone
        return False

    async def _follow(
        self, turn: Turn, exchange: Exchange, leave_after: int | None, *, by_id: bool
    ) -> str:
        if not turn.stream:
            try:
                body = await exchange.whole()
            except ConnectionLost:
                turn.cut()
                return "cut"
            self.sees_only_its_own(turn.tenant, body, turn.name)
            return self.told(turn, orjson.loads(body))
        telling = Telling(self.history, turn.name)
        with contextlib.suppress(ConnectionLost):
            await self._read(turn.tenant, exchange, telling, leave_after)
        if telling.response is None:
            turn.cut()
            return "cut"
        turn.response = turn.response or telling.response
        return await self._read_on(turn, telling, by_id=by_id)

    async def _read(
        self, tenant: Tenant, exchange: Exchange, telling: Telling, leave_after: int | None = None
    ) -> None:
        telling.connect()
        async for piece in exchange.pieces():
            self.sees_only_its_own(tenant, piece, "a stream")
            telling.take(piece)
            if leave_after is not None and len(telling.events) >= leave_after:
                exchange.leave()
                return
        telling.closed()

    async def _read_on(self, turn: Turn, telling: Telling, *, by_id: bool) -> str:
        """Read a response's stream to its end, by as many connections as it takes."""
        give_up = time.monotonic() + PATIENCE_S
        connections = 1
        while telling.last is None:
            if time.monotonic() > give_up:
                self.history.check(
                    "every stream has one last event", kept=False, what=f"{turn.name} has no end"
                )
                return "no end"
            if (refusal := await self._reconnect(turn, telling, by_id=by_id)) is not None:
                return refusal
            connections += 1
        turn.tellings.append(telling)
        end = telling.end
        if end is None:
            raise AssertionError
        outcome = self.told(turn, end)
        return f"{outcome}, resumed" if connections > 1 else outcome

    async def _reconnect(self, turn: Turn, telling: Telling, *, by_id: bool) -> str | None:
        """Read on for one connection; return why there can be no other."""
        path = f"/v1/responses/{turn.response}?stream=true"
        headers = {}
        if telling.next_number:
            behind = str(telling.next_number - 1)
            if by_id:
                headers = {"last-event-id": behind}
            else:
                path += f"&starting_after={behind}"
        try:
            exchange = await self.begin(turn.tenant, "GET", path, headers=headers)
            if exchange.status == 200:
                await self._read(turn.tenant, exchange, telling)
                if telling.error is None:
                    return None
                code, body = telling.error, b""
            else:
                body = await exchange.whole()
                code = code_of(body)
        except ConnectionLost:
            await asyncio.sleep(_PAUSE_S)
            return None
        if code == "response_not_found":
            again = turn.sends > 1 and not turn.settled  # another try may have left nothing
            self.history.check(
                "no acknowledged turn is lost",
                turn.may_be_gone or turn.outcome == "refused" or again,
                f"{turn.name} is not found any more",
            )
            return code
        self.foreseen(code in _AGAIN, path, exchange.status, body)
        await asyncio.sleep(_PAUSE_S)
        return None

    def told(self, turn: Turn, response: dict[str, Any]) -> str:
        """Take note of a response that a client got."""
        turn.response = turn.response or response["id"]
        self.history.check(
            "none is there twice under one key",
            turn.response == response["id"] or not turn.settled,
            f"{turn.name} is {response['id']} too",
        )
        if response["status"] not in ENDED:
            if not turn.settled:
                turn.outcome, turn.final = "unknown", None
            return str(response["status"])
        if turn.may_be_gone and turn.settled:
            return "stored, and asked to be deleted"
        different = turn.told(response)
        self.history.check("no acknowledged turn is lost", different is None, str(different))
        return turn.outcome

    async def resume(self, turn: Turn, *, behind: int, by_id: bool) -> str:
        """Read a response's stream again, from some event on."""
        if turn.response is None:
            return "unknown"
        telling = Telling(self.history, turn.name)
        known = next(
            (one for one in turn.tellings if turn.sends == 1 or one.end == turn.final), None
        )
        if known is not None:
            # What comes is the rest of a stream whose beginning was heard before.
            behind %= known.next_number + 1
            telling.events = {n: known.events[n] for n in range(behind) if n in known.events}
        return await self._read_on(turn, telling, by_id=by_id)

    async def follow_whole(self, turn: Turn, telling: Telling) -> bool:
        """Read all events of a response; return whether they came to their end."""
        give_up = time.monotonic() + PATIENCE_S
        while telling.last is None and time.monotonic() < give_up:
            if await self._reconnect(turn, telling, by_id=False) is not None:
                return False
        return telling.last is not None

    async def read(self, turn: Turn) -> str:
        """Read a response."""
        if turn.response is None:
            return "unknown"
        late = turn.gone_since is not None
        settled = turn.settled
        path = f"/v1/responses/{turn.response}"
        try:
            status, body, _ = await self.ask(turn.tenant, "GET", path)
        except ConnectionLost:
            return "cut"
        if status == 200:
            response = orjson.loads(body)
            self.history.check("what is deleted stays away", not late, f"{turn.name} can be read")
            return self.told(turn, response)
        gone = status == 404 and (
            turn.may_be_gone or (turn.outcome == "refused") or (turn.sends > 1 and not settled)
        )
        self.foreseen(gone or code_of(body) in _AGAIN, f"GET {path}", status, body)
        return code_of(body)

    async def other_body(self, turn: Turn) -> str:
        """Send something else under a turn's key."""
        settled = turn.settled and not turn.may_be_gone
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
                status == 422 or code_of(body) in _AGAIN,
                f"{turn.name}: another body was answered {status} {body[:300]!r}",
            )
        return str(status)

    async def cancel(self, turn: Turn) -> str:
        """Cancel a response."""
        if turn.response is None:
            return "unknown"
        turn.cancel_asked = True
        path = f"/v1/responses/{turn.response}/cancel"
        settled = turn.settled
        try:
            status, body, _ = await self.ask(turn.tenant, "POST", path)
        except ConnectionLost:
            return "cut"
        if status == 200:
            return self.told(turn, orjson.loads(body))
        gone = status == 404 and (
            turn.may_be_gone or turn.outcome == "refused" or (turn.sends > 1 and not settled)
        )
        self.foreseen(gone or code_of(body) in _AGAIN, f"POST {path}", status, body)
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
            status in {200, 404} or code_of(body) in _AGAIN, f"DELETE {path}", status, body
        )
        if status == 200:
            turn.deleted_at = time.monotonic()
            return "deleted"
        return code_of(body)

    async def trespass(self, tenant: Tenant, turn: Turn, way: int) -> str:
        """Try to get at another tenant's data, by one of the ways there are."""
        response = turn.response or "resp_" + "0" * 56
        place = turn.conversation.id if turn.conversation is not None else "conv_" + "0" * 32
        said = {"model": "SmolLM2-135M-Instruct", "input": "And?", "max_output_tokens": 1}
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
            refused or code_of(answer) in _AGAIN or b"state_unavailable" in answer,
            f"{tenant.name} got {exchange.status} {answer[:300]!r} for {method} {path}",
        )
        self.sees_only_its_own(tenant, answer, f"{method} {path}")
        return str(exchange.status)


def code_of(body: bytes) -> str:
    """Return an error's code, or what there is in place of one."""
    try:
        return str(orjson.loads(body)["error"]["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "no error"
