"""Stored responses as any ingress replica can tell of them: from the journal, then from the record."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from serve_app.api.response_object import ENDED, ResponseObject
from serve_app.api.response_stream import ResponseStreamEncoder
from serve_app.api.sse import split
from serve_app.errors import ParleyError, ResponseLost, StateUnavailable
from serve_app.settings import ResponsesSettings
from serve_app.state.records import Record
from serve_app.state.responses import ResponseStore

__all__ = ["Follower"]

_CANCEL_S = 10.0
_AWAY_S = 60.0
_IN_PROGRESS = b'"type":"response.in_progress"'


@dataclass(frozen=True, slots=True)
class Follower:
    """Tells of responses that somebody else makes, or has made.

    Attributes:
        store: where they are kept.
        settings: how often journals are written.
        owner: names this replica, where it ends what a dead one has left.
    """

    store: ResponseStore
    settings: ResponsesSettings
    owner: str

    async def record(self, tenant: str, response: str) -> Record:
        """Return what is stored of a response; one whose replica has died is ended first.

        Raises:
            ResponseNotFound: the tenant has no such response.
        """
        record = await self.store.get(tenant, response)
        if record["response"]["status"] in ENDED:
            return record
        progress = await self.store.progress(tenant, response, behind="0")
        if progress.runs and progress.lease_left:
            begun = any(_IN_PROGRESS in entry.events for entry in progress.entries)
            if begun:
                record["response"]["status"] = "in_progress"
            return record
        return await self._end(tenant, response)

    async def events(self, tenant: str, response: str, behind: int = 0) -> AsyncIterator[bytes]:
        """Yield the events behind the first so many, the last one included, as they come.

        Raises:
            ResponseNotFound: the tenant has no such response, or has deleted it.
            StateUnavailable: Redis stays away.
        """
        entry = "0"
        away_since: float | None = None
        while True:
            try:
                progress = await self.store.progress(tenant, response, behind=entry)
                away_since = None
            except StateUnavailable:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > _AWAY_S:
                    raise
                await asyncio.sleep(1.0)
                continue
            for written in progress.entries:
                if written.first > behind:
                    break  # older entries have left; the record will tell
                events = split(written.events)
                fresh = events[behind - written.first :]
                entry = written.id
                if fresh:
                    behind += len(fresh)
                    yield b"".join(fresh)
            if not progress.runs or not progress.lease_left:
                break
            await asyncio.sleep(self.settings.journal_interval_s)
        record = await self.record(tenant, response)
        while record["response"]["status"] not in ENDED:  # its replica was only slow
            await asyncio.sleep(self.settings.journal_interval_s)
            record = await self.record(tenant, response)
        rest = _left(record, behind)
        if rest:
            yield b"".join(rest)

    async def cancel(self, tenant: str, response: str) -> dict[str, Any]:
        """End a response and return it as it ended; one that had ended stays as it is.

        Raises:
            ResponseNotFound: the tenant has no such response.
        """
        asked, record = await self.store.cancel(tenant, response)
        give_up = time.monotonic() + _CANCEL_S
        while asked and record["response"]["status"] not in ENDED:
            await asyncio.sleep(self.settings.journal_interval_s / 2)
            record = await self.record(tenant, response)
            if time.monotonic() > give_up:
                break
        return dict(record["response"])

    async def _end(self, tenant: str, response: str) -> Record:
        """End a response whose replica has died, with what its journal has of it."""
        progress = await self.store.progress(tenant, response, behind="0")
        state, record = await self.store.seize(tenant, response, self.owner)
        if state != "seized":
            return record
        error = ResponseLost("The replica that was making this response died; send it again.")
        ended = _salvaged(record, [entry.events for entry in progress.entries], error)
        if await self.store.conclude(tenant, response, self.owner, ended):
            return ended
        return await self.store.get(tenant, response)


def _left(record: Record, behind: int) -> list[bytes]:
    """Return the events of an ended response behind the first so many.

    Whoever read from a replica that died may have heard more than its journal did. The response is
    shorter then than what they have seen of it, and they are told its end all the same.
    """
    events = ResponseStreamEncoder.replay(record)
    ahead = record["response"]["status"] == "failed" or behind > len(events)
    return events[behind:] or (events[-1:] if ahead else [])


def _salvaged(record: Record, journal: list[bytes], error: ParleyError) -> Record:
    """Return a draft as a failed response that says all that was read of it."""
    text: list[str] = []
    cuts: list[tuple[int, int]] = []
    logprobs: list[Any] = []
    began = False
    response = record["response"]
    heard = 0
    for event in (event for entry in journal for event in split(entry)):
        body = json.loads(event[event.index(b"data: ") + 6 :])
        if body["sequence_number"] < heard:
            continue  # written twice, since Redis did not answer the first time
        heard = body["sequence_number"] + 1
        match body["type"]:
            case "response.in_progress":
                began, response = True, body["response"]
            case "response.output_text.delta":
                text.append(body["delta"])
                logprobs += body["logprobs"]
                cuts.append((len(body["delta"]), len(body["logprobs"])))
    failed = ResponseObject.of(response, record["item"]).failed(error, "".join(text))
    if failed["output"]:
        failed["output"][0]["content"][0]["logprobs"] = logprobs
    return {**record, "response": failed, "began": began, "cuts": cuts}
