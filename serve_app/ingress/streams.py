"""One stream of tokens as the ingress sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from serve_app.errors import ParleyError
from serve_app.messages.generation import Finished, TokenLogprobs

__all__ = ["Arrived", "TokenStream"]


@dataclass(slots=True)
class Arrived:
    """Everything that came since the last look, in order.

    Attributes:
        tokens: token ids.
        logprobs: aligned with `tokens`; None where the stream didn't ask for them.
        finished: set when the stream has ended and `tokens` are its last.
    """

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]
    finished: Finished | None


class TokenStream:
    """Tokens pushed by the frames' reader, pulled by the request's own task."""

    __slots__ = (
        "_error",
        "_finished",
        "_logprobs",
        "_tokens",
        "_waiter",
        "number",
        "replica",
        "request_id",
    )

    def __init__(self, request_id: str) -> None:
        self.number = 0  # given anew with each try to submit
        self.request_id = request_id
        self.replica: str | None = None
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs | None] = []
        self._finished: Finished | None = None
        self._error: ParleyError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finished or self._error is not None

    @property
    def finished(self) -> bool:
        """Whether the generator itself has ended it, and so no longer spends anything on it."""
        return self._finished is not None

    def push(self, token: int, logprobs: TokenLogprobs | None) -> None:
        """Add a token."""
        self._tokens.append(token)
        self._logprobs.append(logprobs)
        self._wake()

    def finish(self, finished: Finished) -> None:
        """Mark the end; tokens pushed before are still handed out."""
        self._finished = finished
        self._wake()

    def fail(self, error: ParleyError) -> None:
        """End the stream with an error, unless it has ended already."""
        if not self.ended:
            self._error = error
            self._wake()

    async def receive(self) -> Arrived:
        """Wait for something to arrive and return all of it.

        Raises:
            ParleyError: why the stream broke, once the tokens before it have been handed out.
        """
        while not self._tokens and not self.ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None and not self._tokens:
            raise self._error
        arrived = Arrived(self._tokens, self._logprobs, self._finished)
        self._tokens, self._logprobs = [], []
        return arrived

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
