"""Clients that go on talking whatever happens to the service, and what each of them saw."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from load.chats import exchange
from load.dialects import ChatStream, ResponseStream
from load.http_client import Address, HttpClient, RequestFailed
from load.measurements import Reply
from load.workload import Workload

__all__ = ["Kept", "Seen", "Talker"]

# Before a question that failed is put again: what the service's own `retry-after` says at least.
_PAUSE_S = 1.0
_REPLY_S = 120.0
_LOOKUP_S = 30.0
_PAGE = 100


@dataclass(slots=True)
class Seen:
    """What one client has seen. Times are `time.perf_counter` seconds.

    Attributes:
        texts: when text arrived, in order.
        errors: when something went wrong, and what, in a word or two.
        whole: when questions were sent that were answered in full.
    """

    texts: list[float] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def add(self, reply: Reply, *, expected: int) -> None:
        """Take in a reply, be it whole or not.

        Args:
            reply: what came.
            expected: tokens that a whole one has.
        """
        if reply.first_at is not None:
            self.texts.extend(itertools.accumulate(reply.gaps, initial=reply.first_at))
        if reply.error is None and reply.tokens and reply.tokens.completion != expected:
            reply.error = "wrong length"
        if reply.error is None:
            self.whole.append(reply.sent_at)
        else:
            self.errors.append((time.perf_counter(), reply.error))

    def longest_pause(self, since: float, until: float) -> float:
        """Return the longest time without new text, in seconds, of those that end in a span of time."""
        times = [at for at in self.texts if at <= until]
        first = next((place for place, at in enumerate(times) if at > since), None)
        if first is None:
            return until - since
        times = times[max(first - 1, 0) :]
        return max((late - early for early, late in itertools.pairwise(times)), default=0.0)


@dataclass(frozen=True, slots=True)
class Kept:
    """How the stored conversations compare with what their clients were told.

    Attributes:
        turns: turns that were reported as completed.
        lost: of them, those whose question and answer are not in their conversation as they were told.
        twice: of them, those that are in it more than once.
    """

    turns: int
    lost: int
    twice: int


class Talker:
    """One client: a question after the other, each put again until it is answered.

    Args:
        address: the service's.
        model: who is asked.
        workload: what is said, and how long replies are.
        number: tells it from the others.
        stored: talks in conversations that the service stores; else it sends the history along.

    Attributes:
        stored: as given.
        seen: what it has seen.
    """

    def __init__(
        self, address: Address, model: str, workload: Workload, *, number: int, stored: bool
    ) -> None:
        self.stored = stored
        self.seen = Seen()
        self._client = HttpClient(address, {})
        self._model = model
        self._workload = workload
        self._number = number
        # Of each stored conversation the turns that were reported as completed.
        self._told: dict[str, list[tuple[str, str]]] = {}

    async def talk(self) -> None:
        """Talk until cancelled."""
        try:
            for round_ in itertools.count():
                number = round_ * 10_000 + self._number
                await (self._stored_conversation if self.stored else self._conversation)(number)
        finally:
            self._client.close()

    async def kept(self) -> Kept:
        """Compare what is stored with what was told.

        Raises:
            RequestFailed: the items can't be read.
        """
        turns = lost = twice = 0
        try:
            for conversation, told in self._told.items():
                stored = await self._items(conversation)
                times = Counter(zip(stored[::2], stored[1::2], strict=False))
                turns += len(told)
                lost += sum(not times[turn] for turn in told)
                twice += sum(times[turn] > 1 for turn in told)
        finally:
            self._client.close()
        return Kept(turns, lost, twice)

    async def _conversation(self, number: int) -> None:
        conversation = self._workload.conversation(number)
        while not conversation.over:
            body = ChatStream.body(self._model, conversation.ask(), self._workload)
            for _ in itertools.count():
                text = await self._answer(ChatStream, body)
                if text is not None:
                    conversation.hear(text, None)
                    break
                await asyncio.sleep(_PAUSE_S)

    async def _stored_conversation(self, number: int) -> None:
        conversation = await self._new_conversation()
        for turn, question in enumerate(self._workload.conversation(number).questions):
            for attempt in itertools.count():
                # Different each time: one that failed may have been stored nevertheless.
                said = f"{turn}.{attempt}: {question}"
                text = await self._answer(ResponseStream, self._turn(conversation, said))
                if text is not None:
                    self._told.setdefault(conversation, []).append((said, text))
                    break
                await asyncio.sleep(_PAUSE_S)

    def _turn(self, conversation: str, said: str) -> dict[str, Any]:
        return {
            "model": self._model,
            "conversation": conversation,
            "input": said,
            "max_output_tokens": self._workload.output_tokens,
            "temperature": self._workload.temperature,
            "ignore_eos": self._workload.ignore_eos,
            "stream": True,
        }

    async def _answer(
        self, dialect: type[ChatStream] | type[ResponseStream], body: dict[str, Any]
    ) -> str | None:
        """Put a question, once; None where its answer didn't come whole."""
        stream = await exchange(self._client, dialect, body, timeout_s=_REPLY_S)
        self.seen.add(stream.reply, expected=self._workload.output_tokens)
        return stream.text if stream.reply.error is None else None

    async def _new_conversation(self) -> str:
        while True:
            try:
                async with asyncio.timeout(_LOOKUP_S):
                    response = await self._client.request("POST", "/conversations", b"{}")
                if response.status == 200:
                    return str(orjson.loads(response.body)["id"])
                kind = f"{response.status}"
            except TimeoutError:
                kind = "timeout"
            except RequestFailed as failure:
                kind = failure.kind
            self.seen.errors.append((time.perf_counter(), kind))
            await asyncio.sleep(_PAUSE_S)

    async def _items(self, conversation: str) -> Sequence[str]:
        path = f"/conversations/{conversation}/items?order=asc&limit={_PAGE}"
        async with asyncio.timeout(_LOOKUP_S):
            response = await self._client.request("GET", path)
        if response.status != 200:
            msg = f"The items of {conversation} can't be read: HTTP {response.status}."
            raise RequestFailed(str(response.status), msg)
        return [_text(item) for item in orjson.loads(response.body)["data"]]


def _text(item: dict[str, Any]) -> str:
    parts: Iterable[dict[str, Any]] = item["content"]
    return "".join(part["text"] for part in parts)
