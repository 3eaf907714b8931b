"""What readers of one response are told: events as they come, from any of them on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

__all__ = ["EventLog"]


class EventLog:
    """The events of one response, in order, for as many readers as there are.

    Attributes:
        events: encoded, all that there are by now.
        over: whether no more will come.
    """

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.over = False
        self._waiters: set[asyncio.Future[None]] = set()

    def publish(self, events: list[bytes]) -> None:
        """Add events."""
        self.events += events
        self._wake()

    def replay(self, events: list[bytes]) -> None:
        """Have all events at once: those that there are already are the first of them."""
        self.events = events
        self._wake()

    def close(self) -> None:
        """Let no more come."""
        self.over = True
        self._wake()

    async def read(self, behind: int = 0) -> AsyncIterator[bytes]:
        """Yield the events behind the first so many, as they come, several as one piece."""
        position = behind
        while True:
            if position < len(self.events):
                piece = b"".join(self.events[position:])
                position = len(self.events)
                yield piece
            elif self.over:
                if 0 < len(self.events) < behind:  # whoever asks for more is told the end
                    yield self.events[-1]
                return
            else:
                await self._change()

    async def closed(self) -> None:
        """Wait until no more will come."""
        while not self.over:
            await self._change()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)
