"""The journal of a running response: its events, written in strides, read from any replica.

A token costs no write. All that the running responses of an ingress replica have said since the last
stride goes to Redis in one round trip, one entry a response; the same write renews its lease and
brings back whether somebody wants it cancelled. A response that says nothing is renewed now and then.

A finished response needs no journal: its events are made again from what is stored of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
import zlib
from dataclasses import dataclass, field
from typing import Protocol

from serve_app.errors import StateUnavailable
from serve_app.settings import ResponsesSettings
from serve_app.state.conversation_scripts import ConversationScripts
from serve_app.state.keyspace import conversation_of
from serve_app.state.scripts.turns import KEEP
from serve_app.state.sealing import Seal

__all__ = ["JournalEntry", "JournalWriter", "Journalled", "open_entry"]

logger = logging.getLogger("ray.serve")

_RENEWALS = 5  # of a lease while a response says nothing
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One stride of a response.

    Attributes:
        id: the entry's own, in the order of the stream.
        first: sequence number of its first event.
        events: encoded events, one after the other.
    """

    id: str
    first: int
    events: bytes


class Journalled(Protocol):
    """A response whose events are kept."""

    @property
    def tenant(self) -> str:
        """Whose it is."""

    @property
    def response(self) -> str:
        """Its id."""

    def take(self, behind: int) -> list[bytes]:
        """Return the events behind the first so many."""

    def end(self, reason: str) -> None:
        """End early: `cancel`, `interrupt`, or `lost` when it was taken away."""


@dataclass(slots=True)
class _Kept:
    run: Journalled
    events: bool
    written: int = 0
    renewed: float = field(default_factory=time.monotonic)


class JournalWriter:
    """Keeps the leases and journals of all responses that one ingress replica produces.

    Args:
        scripts: how conversations are reached.
        settings: how often, how long, how much.
        owner: names the replica.
    """

    def __init__(
        self, scripts: ConversationScripts, settings: ResponsesSettings, owner: str
    ) -> None:
        self._scripts = scripts
        self._settings = settings
        self._owner = owner
        self._kept: dict[str, _Kept] = {}
        self._task: asyncio.Task[None] | None = None
        self.writes = 0

    def keep(self, run: Journalled, *, events: bool) -> None:
        """Renew a response's lease from now on, and write its events if they are wanted."""
        self._kept[run.response] = _Kept(run, events)
        if self._task is None or self._task.done():
            # Not in the context of a request, with which Serve would cancel it.
            self._task = asyncio.get_running_loop().create_task(
                self._write_on(), context=contextvars.Context()
            )

    def forget(self, response: str) -> None:
        """Write nothing more of a response."""
        self._kept.pop(response, None)

    async def _write_on(self) -> None:
        while self._kept:
            await asyncio.sleep(self._settings.journal_interval_s)
            try:
                await self._write()
            except StateUnavailable:
                # The pool has logged it. What wasn't written goes with the next stride.
                continue
            except Exception:
                logger.exception("Journals could not be written.")

    async def _write(self) -> None:
        now = time.monotonic()
        strides: list[tuple[_Kept, int]] = []
        commands = []
        for kept in self._kept.values():
            events = kept.run.take(kept.written) if kept.events else []
            if not events and now - kept.renewed < self._settings.lease_s / _RENEWALS:
                continue
            strides.append((kept, len(events)))
            commands.append(self._command(kept, events))
        if not commands:
            return
        async with (
            self._scripts.redis.client("journal") as client,
            client.pipeline(transaction=False) as pipe,
        ):
            for command in commands:
                pipe.execute_command(*command)
            answers = await pipe.execute()
        self.writes += 1
        for (kept, count), answer in zip(strides, answers, strict=True):
            kept.written += count
            kept.renewed = now
            if answer != b"go":
                kept.run.end(answer.decode())

    def _command(self, kept: _Kept, events: list[bytes]) -> tuple[object, ...]:
        run, settings = kept.run, self._settings
        conversation = conversation_of(run.response)
        keys = self._scripts.keys(run.tenant, conversation)
        place = run.tenant, conversation, f"journal {run.response}"
        sealed = (
            self._scripts.seal.seal(zlib.compress(b"".join(events), _LEVEL), *place)
            if events
            else b""
        )
        return (
            "EVAL",
            KEEP,
            2,
            keys.runs,
            keys.journal(run.response),
            self._scripts.ttl_s,
            run.response,
            self._owner,
            round(settings.lease_s * 1000),
            settings.journal_ttl_s,
            settings.journal_entries,
            kept.written if events else "",
            sealed,
        )


def open_entry(
    seal: Seal, place: tuple[str, str, str], entry: bytes, fields: dict[bytes, bytes]
) -> JournalEntry:
    """Return an entry as it was written.

    Args:
        seal: opens it.
        place: tenant, conversation and response.
        entry: the entry's id.
        fields: number of the first event → events.

    Raises:
        StateUnavailable: it is sealed with another key, or was changed.
    """
    tenant, conversation, response = place
    ((first, sealed),) = fields.items()
    plain = seal.open(sealed, tenant, conversation, f"journal {response}")
    return JournalEntry(entry.decode(), int(first), zlib.decompress(plain))
