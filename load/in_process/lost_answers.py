"""Answers of Redis that never arrive: it has carried out what it was sent, and whoever asked can't know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis.exceptions
from redis.asyncio.connection import AbstractConnection

from load.in_process.life import Life
from serve_app.state.connection import Operation

__all__ = ["LostAnswers", "losing"]

Strike = Callable[[Life], None]

# How a command begins that runs a script, behind the number of its parts.
_SCRIPT = b"\r\n$4\r\nEVAL\r\n"
_BEGINNING = 24


class LostAnswers:
    """Whose answer will be lost, and what dies with it."""

    def __init__(self) -> None:
        self._doomed: dict[Operation, Strike] = {}

    def doom(self, operation: Operation, strike: Strike) -> None:
        """Lose the answer to the next script that is run for something.

        Args:
            operation: what it is run for.
            strike: called when Redis has run it, with the life of whoever waits for the answer.
        """
        self._doomed[operation] = strike

    def reach(self, operation: Operation | None, life: Life) -> bool:
        """Say whether an answer that has come is lost, and let happen what is to happen then."""
        strike = None if operation is None else self._doomed.pop(operation, None)
        if strike is not None:
            strike(life)
        return strike is not None


def losing(
    connection: type[AbstractConnection], lost: Callable[[], bool]
) -> type[AbstractConnection]:
    """Return a class of connections that break when the answer to a script has come and is lost."""

    class Connection(connection):  # type: ignore[misc, valid-type]
        _runs_script = False

        async def send_packed_command(self, command: Any, *args: Any, **kwargs: Any) -> None:
            sent = command if isinstance(command, bytes) else b"".join(command)
            self._runs_script = _SCRIPT in sent[:_BEGINNING]
            await super().send_packed_command(command, *args, **kwargs)

        async def read_response(self, *args: Any, **kwargs: Any) -> Any:
            answer = await super().read_response(*args, **kwargs)
            if self._runs_script and lost():
                await self.disconnect(nowait=True)
                msg = "The connection broke behind the command."
                raise redis.exceptions.ConnectionError(msg)
            return answer

    return Connection
