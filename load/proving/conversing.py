"""What clients do with conversations beside talking in them."""

from __future__ import annotations

import time
from typing import Any

import orjson

from load.in_process.exchange import ConnectionLost
from load.proving.requests import AGAIN, Requests, code_of
from load.proving.turns import Conversation, Note, Tenant

__all__ = ["Conversing"]

_PAGE = 100


class Conversing(Requests):
    """Makes conversations, appends to them, reads and deletes them.

    Attributes:
        conversations: that were made.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.conversations: list[Conversation] = []

    async def new_conversation(self, tenant: Tenant, *, keyed: bool) -> str:
        """Make a conversation; with a key, until there is one."""
        number = self.number()
        headers = {"idempotency-key": f"conversation-{number}"} if keyed else {}
        made: set[str] = set()
        for _ in range(2 if keyed else 1):
            try:
                status, body, _ = await self.ask_until_answered(
                    tenant, "POST", "/v1/conversations", headers, orjson.dumps({}), repeatable=keyed
                )
            except ConnectionLost:
                return "cut"
            if status != 200:
                self.foreseen(code_of(body) in AGAIN, "new conversation", status, body)
                return code_of(body)
            made.add(orjson.loads(body)["id"])
        self.history.check(
            "none is there twice under one key", len(made) == 1, f"one key made {sorted(made)}"
        )
        self.conversations.append(Conversation(tenant, made.pop()))
        return "made"

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
            status, body, _ = await self.ask_until_answered(
                tenant,
                "POST",
                path,
                {"idempotency-key": note.key},
                orjson.dumps(said),
                repeatable=True,
            )
            if status != 200:
                expected = (status == 404 and conversation.delete_asked) or code_of(body) in (
                    AGAIN | {"idempotency_in_flight"}
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
                self.foreseen(gone or code_of(body) in AGAIN, path, status, body)
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
            (status == 200 and not late) or status == 404 or code_of(body) in AGAIN,
            f"DELETE {path}",
            status,
            body,
        )
        if status in {200, 404}:
            conversation.deleted_at = conversation.deleted_at or time.monotonic()
            return "deleted" if status == 200 else "404"
        return code_of(body)
