"""The streams that this process has sent to generators, by the replicas that they went to, and others' there.

What replicas publish is a second old, and what a caller counts when it calls is old as soon as others
have called: of a burst, each would be sent to whatever was idle before it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

__all__ = ["OwnStreams", "own_streams"]

# A generator says several times a second how full it is, to those for whom it computes anything.
_HEARD_FOR_S = 0.5


class OwnStreams:
    """Counts streams from the moment that they are routed. Any thread may call it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Of each replica, how many others have there, and when it said so.
        self._heard: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._replicas: dict[str, str | None] = {}
        self._counts: Counter[str] = Counter()

    def begin(self, stream: str) -> None:
        """Have a stream count where it is routed to, until it ends."""
        with self._lock:
            self._replicas.setdefault(stream, None)

    def route(self, stream: str, replica: str) -> None:
        """Count a stream at a replica, and no longer at another; one that hasn't begun, or has ended, nowhere.

        Args:
            stream: id of its request.
            replica: the replica's unique id.
        """
        with self._lock:
            if stream in self._replicas:
                self._leave(stream)
                self._replicas[stream] = replica
                self._counts[replica] += 1

    def end(self, stream: str) -> None:
        """Count a stream no longer; one that isn't counted is no error."""
        with self._lock:
            self._leave(stream)
            self._replicas.pop(stream, None)

    def counts(self, *, but: str | None = None) -> dict[str, int]:
        """Return the streams of each replica that has any.

        Args:
            but: a stream that doesn't count.
        """
        with self._lock:
            counts = dict(self._counts)
            if but is not None and (replica := self._replicas.get(but)) is not None:
                counts[replica] -= 1
            return counts

    def hear(self, replica: str, others: int) -> None:
        """Take note of how many streams of other processes a replica says that it has."""
        with self._lock:
            self._heard[replica] = others, self._clock()

    def others(self) -> dict[str, int]:
        """Return the streams of other processes, of each replica that has said just now how many it has."""
        since = self._clock() - _HEARD_FOR_S
        with self._lock:
            self._heard = {name: heard for name, heard in self._heard.items() if heard[1] > since}
            return {name: others for name, (others, _) in self._heard.items()}

    def _leave(self, stream: str) -> None:
        replica = self._replicas.get(stream)
        if replica is not None:
            self._counts[replica] -= 1
            if not self._counts[replica]:
                del self._counts[replica]


_of_this_process = OwnStreams()


def own_streams() -> OwnStreams:
    """Return this process's: an ingress opens its streams and routes them on different threads.

    Serve copies a router's class with the objects that it names, but not the functions of other modules.
    """
    return _of_this_process
