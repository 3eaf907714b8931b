"""Stored responses in Redis: read, cancelled, ended, deleted, and what people say about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve_app.errors import ResponseNotFound
from serve_app.settings import ResponsesSettings
from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.journal import JournalEntry, open_entry
from serve_app.state.keyspace import conversation_of, response_not_found
from serve_app.state.records import Record, StoredItem, decode_item, seal_record, unseal_record
from serve_app.state.scripts.responses import DELETE_RESPONSE, FEEDBACK, INPUT_LINE
from serve_app.state.scripts.turns import ABANDON, CANCEL, CONCLUDE, SEIZE

__all__ = ["Progress", "ResponseStore"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a response has come.

    Attributes:
        runs: whether somebody still produces it.
        lease_left: whether that somebody was heard of lately.
        entries: of its journal, those behind the one asked for.
    """

    runs: bool
    lease_left: bool
    entries: tuple[JournalEntry, ...]


class ResponseStore:
    """Keeps responses, each the property of one tenant.

    Every method raises StateUnavailable when Redis can't be reached, and ResponseNotFound when the
    tenant has no such response.

    Args:
        scripts: how conversations are reached.
        settings: how long a replica may be silent.
    """

    def __init__(self, scripts: ConversationScripts, settings: ResponsesSettings) -> None:
        self._scripts = scripts
        self._seal = scripts.seal
        self._lease_ms = round(settings.lease_s * 1000)

    async def get(self, tenant: str, response: str) -> Record:
        """Return what was stored of a response last: its draft, or how it ended."""
        keys = self._scripts.keys(tenant, conversation_of(response))
        async with self._scripts.redis.client("response") as client:
            stored = await client.hmget(keys.responses, [response])
        return self._record(tenant, response, stored[0])

    async def input_line(self, tenant: str, response: str) -> tuple[Record, tuple[StoredItem, ...]]:
        """Return a response, and all that was said before its turn, oldest first."""
        answer = await self._run(INPUT_LINE, tenant, response)
        _, stored, *pairs = answer
        conversation = conversation_of(response)
        items = tuple(
            decode_item(self._seal, tenant, conversation, pairs[i], pairs[i + 1])
            for i in range(0, len(pairs), 2)
        )
        return self._record(tenant, response, stored), items

    async def progress(self, tenant: str, response: str, *, behind: str) -> Progress:
        """Return how far a response has come, in one round trip.

        Args:
            tenant: whose response it is.
            response: its id.
            behind: id of the journal's entry that was read last, "0" for none.
        """
        conversation = conversation_of(response)
        keys = self._scripts.keys(tenant, conversation)
        async with (
            self._scripts.redis.client("response") as client,
            client.pipeline(transaction=True) as pipe,
        ):
            pipe.xrange(keys.journal(response), min=f"({behind}")
            pipe.hmget(keys.runs, f"{response}:owner", f"{response}:lease")
            pipe.time()
            entries, (owner, lease), (seconds, _) = await pipe.execute()
        return Progress(
            runs=owner is not None,
            lease_left=lease is not None and float(lease) > seconds * 1000,
            entries=tuple(
                open_entry(self._seal, (tenant, conversation, response), *entry)
                for entry in entries
            ),
        )

    async def cancel(self, tenant: str, response: str) -> tuple[bool, Record]:
        """Ask whoever produces a response to end it.

        Returns:
            Whether somebody produces it, and the response as it is stored.
        """
        state, stored = await self._run(CANCEL, tenant, response)
        return state == b"asked", self._record(tenant, response, stored)

    async def seize(self, tenant: str, response: str, owner: str) -> tuple[str, Record]:
        """Take over a response whose owner has died.

        Returns:
            `seized`, `alive` (the owner was heard of lately), or `ended`; and the response.
        """
        state, stored = await self._run(SEIZE, tenant, response, owner, self._lease_ms)
        return state.decode(), self._record(tenant, response, stored)

    async def conclude(self, tenant: str, response: str, owner: str, record: Record) -> bool:
        """Store how a response ended that leaves nothing in its conversation.

        Returns:
            False when it was taken from its owner.
        """
        sealed = seal_record(self._seal, record, tenant, conversation_of(response), response)
        outcome = await self._run(CONCLUDE, tenant, response, owner, sealed)
        return bool(outcome == b"stored")

    async def abandon(self, tenant: str, response: str, owner: str) -> None:
        """Undo the beginning of a turn that nobody was told of."""
        await self._run(ABANDON, tenant, response, owner)

    async def delete(self, tenant: str, response: str) -> None:
        """Forget a response; one that is still being made ends."""
        await self._run(DELETE_RESPONSE, tenant, response)

    async def give_feedback(self, tenant: str, response: str, said: Record) -> None:
        """Keep what somebody says about a response, in place of what was said before."""
        conversation = conversation_of(response)
        sealed = seal_record(self._seal, said, tenant, conversation, f"feedback {response}")
        await self._run(FEEDBACK, tenant, response, sealed)

    async def _run(self, script: str, tenant: str, response: str, *args: Any) -> Any:
        conversation = conversation_of(response)
        async with self._scripts.redis.client("response") as client:
            answer = await client.execute_command(  # type: ignore[no-untyped-call]
                *self._scripts.command(script, tenant, conversation, response, *args)
            )
        state = answer[0] if isinstance(answer, list) else answer
        if state == b"unknown":
            raise ResponseNotFound(response_not_found(response), param="response_id")
        return answer

    def _record(self, tenant: str, response: str, stored: Any) -> Record:
        if stored is None:
            raise ResponseNotFound(response_not_found(response), param="response_id")
        return unseal_record(self._seal, stored, tenant, conversation_of(response), response)
