"""Telling a replica that Serve is about to stop it, while it still has calls to answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.serve._private import replica as serve_replica

__all__ = ["when_draining"]


def when_draining(call: Callable[[], None]) -> None:
    """Have `call` called once Serve begins to stop this replica.

    Serve runs `__del__` only when no call is open any more, and kills the replica if that takes too
    long; it has nothing for the moment before. Call this from a replica's constructor.

    Args:
        call: must not block.
    """
    begin = serve_replica.Replica.perform_graceful_shutdown

    async def tell_first(self: Any) -> None:
        call()
        await begin(self)

    serve_replica.Replica.perform_graceful_shutdown = tell_first
