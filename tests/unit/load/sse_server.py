"""A small HTTP server whose answers a test writes itself, byte by byte if it likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


# Sent as it is; None closes the connection; anything else is called and waited for.
Piece = bytes | None | Callable[[], Awaitable[object]]
Answer = Callable[[Request], Sequence[Piece]]


@dataclass
class SseServer:
    port: int
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[SseServer]:
    """Run a server that answers each request with what `answer` returns for it."""
    server = SseServer(0)
    writers: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        server.connections += 1
        try:
            while (request := await _read(reader)) is not None:
                server.requests.append(request)
                for piece in answer(request):
                    if piece is None:
                        return
                    if not isinstance(piece, bytes):
                        await piece()
                        continue
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)  # let the client read what there is
        except ConnectionError:
            pass  # the client has left, as a test wants it to
        finally:
            writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in writers:
            writer.close()
        await listener.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {
        name.lower(): value for name, value in (line.split(": ", maxsplit=1) for line in lines)
    }
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, json.loads(body) if body else None)


def chunk(data: bytes) -> bytes:
    """Return a piece of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def word(text: str) -> bytes:
    """Return a chat's event with some text."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def usage(prompt: int, cached: int, completion: int) -> bytes:
    """Return a chat's event with the usage."""
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return event({"choices": [], "usage": counts})


def chat(words: Sequence[str], *, cached: int = 4) -> list[bytes]:
    """Return a whole reply: a role, words, a reason, the usage, the end."""
    events = [
        event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
        *map(word, words),
        event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}),
        usage(10, cached, len(words)),
        b"data: [DONE]\n\n",
    ]
    return [HEAD, *map(chunk, events), END]


def refusal(status: int, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} Refused\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content
