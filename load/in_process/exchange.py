"""One HTTP request to an ingress replica, without a socket: what comes back, and what may cut it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from load.in_process.calls import calls_of_request
from load.in_process.life import Life

__all__ = ["ConnectionLost", "Exchange"]


class ConnectionLost(Exception):
    """The replica died, and the connection with it."""


class Exchange:
    """A request under way.

    As Serve does, a request whose client leaves before it was answered is cancelled, together with the
    calls made on its behalf.

    Args:
        life: the replica's.
        application: the replica's.
        method: of the request.
        path: with the query behind it.
        headers: in lower case.
        body: the whole of it.

    Attributes:
        status: once `begun` has returned.
        headers: likewise.
    """

    def __init__(
        self,
        life: Life,
        application: ASGIApp,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> None:
        life.check()
        self.status = 0
        self.headers: dict[str, str] = {}
        self._life = life
        self._application = application
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._left = asyncio.Event()
        self._answered = False
        self._body: bytes | None = body
        path, _, query = path.partition("?")
        self._scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.encode(), value.encode())
                for name, value in {**headers, "content-length": str(len(body))}.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        life.at_end(self._broken)
        self._serving = life.spawn(self._serve())

    async def begun(self) -> None:
        """Wait for the answer's status and headers.

        Raises:
            ConnectionLost: they never come.
        """
        message = await self._next()
        self.status = message["status"]
        self.headers = {name.decode(): value.decode() for name, value in message["headers"]}

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes.

        Raises:
            ConnectionLost: it breaks off.
        """
        while True:
            message = await self._next()
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return

    async def whole(self) -> bytes:
        """Return the whole body.

        Raises:
            ConnectionLost: it breaks off.
        """
        return b"".join([piece async for piece in self.pieces()])

    def leave(self) -> None:
        """Cut the connection."""
        self._left.set()

    async def _next(self) -> Message:
        message = await self._messages.get()
        if message is None:
            self._messages.put_nowait(None)
            raise ConnectionLost
        return message

    def _broken(self) -> None:
        self._messages.put_nowait(None)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._life.check()
        await asyncio.sleep(0)  # as a socket would, let others go on
        self._messages.put_nowait(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered = True

    async def _serve(self) -> None:
        calls: list[asyncio.Task[None]] = []
        calls_of_request.set(calls)
        work: Any = self._application(self._scope, self._receive, self._send)
        request: asyncio.Task[None] = asyncio.create_task(work)
        leaving = asyncio.create_task(self._left.wait())
        try:
            await asyncio.wait({request, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not request.done() and not self._answered:
                request.cancel()
                for call in calls:
                    call.cancel()
            with suppress(asyncio.CancelledError):
                await request
        finally:
            leaving.cancel()
            self._life.no_longer(self._broken)
            if not self._answered:
                self._messages.put_nowait(None)
