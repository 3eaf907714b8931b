"""Streaming requests that are read in the background, and how each of them ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

DONE = "done"
CLOSED = "closed"
SILENT = "silent"


class Stream:
    """One streaming request; the `async with` block around it ends its reading.

    Attributes:
        texts: pieces of text that have arrived.
        end: None while it runs; then DONE; the code of an error, be it an event or a refusal;
            CLOSED when the connection broke, which any client notices; SILENT when the response
            ended properly without a last event, which none would.
        response: the response once its headers have arrived.
    """

    def __init__(self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> None:
        self.texts: list[str] = []
        self.end: str | None = None
        self.response: httpx.Response | None = None
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._read(client, path, dict(body, stream=True)))

    @property
    def text(self) -> str:
        """All text that has arrived."""
        return "".join(self.texts)

    async def runs(self, pieces: int = 3, within_s: float = 60.0) -> None:
        """Wait until so many pieces of text have arrived."""
        await self._wait(lambda: len(self.texts) >= pieces or self.end is not None, within_s)
        assert self.end is None, self.end

    async def ends(self, within_s: float) -> str:
        """Wait for the end and return it; the test fails if it doesn't come in time."""
        await self._wait(lambda: self.end is not None, within_s)
        assert self.end is not None
        return self.end

    async def leave(self) -> None:
        """Close the connection, as a client does that goes away."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _wait(self, condition: Any, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"nothing in {within_s} s; {len(self.texts)} pieces") from None

    async def _read(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
        try:
            async with client.stream("POST", path, json=body) as response:
                self.response = response
                end = await self._read_events(response)
        except httpx.TransportError:
            end = CLOSED
        await self._tell(end=end)

    async def _read_events(self, response: httpx.Response) -> str:
        if response.status_code != httpx.codes.OK:
            return _code(await response.aread(), response.status_code)
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return DONE
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            match event:
                case {"error": {"code": code}}:
                    return str(code)
                case {"type": "response.failed", "response": {"error": {"type": code}}}:
                    return str(code)
                case {"type": "response.output_text.delta", "delta": text}:
                    await self._tell(text)
                case {"type": "response.completed" | "response.incomplete"}:
                    return DONE
                case {"choices": [{"delta": {"content": str(text)}}]} if text:
                    await self._tell(text)
        return SILENT

    async def _tell(self, text: str = "", *, end: str | None = None) -> None:
        async with self._changed:
            if text:
                self.texts.append(text)
            self.end = end
            self._changed.notify_all()


@asynccontextmanager
async def talking(url: str) -> AsyncIterator[Talk]:
    """Open streams at a server; what still runs at the end of the block is left."""
    # No time limit of the client's own: the tests have theirs.
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, timeout=httpx.Timeout(None), limits=limits
    ) as client:
        talk = Talk(client)
        try:
            yield talk
        finally:
            for stream in talk.streams:
                await stream.leave()


class Talk:
    """Requests to one server."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.streams: list[Stream] = []

    async def model(self) -> str:
        """Return the name of the served model."""
        models: dict[str, Any] = (await self.client.get("/v1/models")).json()
        return str(models["data"][0]["id"])

    def chat(self, model: str, said: str, tokens: int, **sampling: float) -> Stream:
        """Begin a chat completion of exactly so many tokens."""
        body = sampling | {
            "model": model,
            "messages": [{"role": "user", "content": said}],
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        return self._begin("/v1/chat/completions", body)

    def turn(self, model: str, conversation: str, said: str, tokens: int) -> Stream:
        """Begin a turn of a stored conversation of exactly so many tokens."""
        body = {
            "model": model,
            "conversation": conversation,
            "store": False,
            "input": said,
            "max_output_tokens": tokens,
            "ignore_eos": True,
        }
        return self._begin("/v1/responses", body)

    def _begin(self, path: str, body: Mapping[str, Any]) -> Stream:
        stream = Stream(self.client, path, body)
        self.streams.append(stream)
        return stream


def _code(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"http {status}"
