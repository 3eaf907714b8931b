"""A response made of server-sent events, written straight to ASGI."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.api.errors import as_parley_error
from serve_app.api.sse import HEADERS
from serve_app.errors import ParleyError
from serve_app.ingress.request_account import current_account
from serve_app.telemetry.outcomes import count_error

__all__ = ["EventStream"]

logger = logging.getLogger("ray.serve")


class EventStream(Response):
    """Sends events as they come; a broken stream ends with an error event, never in silence."""

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        broken: Callable[[ParleyError], bytes],
        close: Callable[[], None],
    ) -> None:
        """Make a response.

        Args:
            events: whole events, encoded; what comes as one piece is written at once.
            broken: encodes the event that tells of an error.
            close: called when nothing more will be sent, also when the client has left.
        """
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._broken = broken
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the response as ASGI defines it."""
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            try:
                async with aclosing(self._events) as events:  # type: ignore[type-var]
                    async for event in events:
                        await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:
                told = as_parley_error(error)
                if type(told) is ParleyError:  # nothing that anybody foresaw
                    logger.exception("A stream broke.")
                count_error(told)
                current_account().error = told.code
                event = self._broken(told)
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()
