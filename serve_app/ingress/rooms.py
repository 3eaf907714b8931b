"""Whether generators would take another stream: known here, so that nobody has to ask them in vain."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.errors import QueueFull
from serve_app.messages.generation import Room

__all__ = ["FULL_FOR_S", "Rooms"]

FULL_FOR_S = 0.25
"""So long after a full queue nobody else is sent to generators of which nothing better is known: a
refusal by the generator costs what an admission does, and under overload these would take the time of
those who are answered. A full queue holds more than a generator answers meanwhile."""

FRESH_S = 2.0
"""A replica that computes anything for this ingress says how full it is more often than this."""


@dataclass(frozen=True, slots=True)
class _Report:
    room: Room
    at: float


class Rooms:
    """The room that the replicas of one model have, as far as one ingress replica knows.

    They report what others have there; what this ingress has, and what it has promised to requests that
    are on their way, it counts itself. So with one ingress replica this is exact, and a request that is
    let in has its place; with several, one may take what another one has promised, and the generator
    refuses it.

    Args:
        load: returns how many streams a replica has of this ingress.
        replicas: unique ids of those that are up; None where nobody here knows.
    """

    def __init__(
        self,
        load: Callable[[str], int],
        replicas: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self._load = load
        self._replicas = replicas
        self._reports: dict[str, _Report] = {}
        self._promised = 0
        # What the last full queue said, and the seconds after which it said to come back.
        self._refusal: tuple[str, float | None] = ("", None)
        self._full_until = 0.0

    def report(self, replica: str, room: Room) -> None:
        """Take note of what a replica says."""
        self._reports[replica] = _Report(room, time.monotonic())

    def forget(self, replica: str) -> None:
        """Take note that a replica is lost, or stops: what it said doesn't hold any more."""
        self._reports.pop(replica, None)

    def refused(self, refusal: QueueFull) -> None:
        """Take note that a generator had no room."""
        self._refusal = refusal.message, refusal.retry_after
        self._full_until = time.monotonic() + FULL_FOR_S

    def check(self, count: int = 1) -> None:
        """Make sure that nobody knows better than to ask for so many places.

        Raises:
            QueueFull: they are taken, or promised, or nothing is known but that a queue was full a moment
                ago.
        """
        free, fresh = self._free()
        if free is not None and free - self._promised < count:
            raise self._full()
        if not fresh and time.monotonic() < self._full_until:
            message, retry_after = self._refusal
            raise QueueFull(message, retry_after=retry_after)

    @contextmanager
    def promise(self, count: int = 1) -> Iterator[None]:
        """Keep places for a request, until its streams have them and are counted as such.

        Raises:
            QueueFull: see `check`.
        """
        self.check(count)
        self._promised += count
        try:
            yield
        finally:
            self._promised -= count

    def full(self) -> list[str]:
        """Return the replicas that would take nothing, where another one would."""
        known = self._known()
        full = [replica for replica, report in known.items() if not self._places(replica, report)]
        return [] if len(full) == len(known) else full

    def _known(self) -> dict[str, _Report | None]:
        """Return all replicas that are up, with what they said last."""
        if self._replicas is None:
            return {}
        up = self._replicas()
        if len(self._reports) > len(up):
            self._reports = {name: said for name, said in self._reports.items() if name in up}
        return {name: self._reports.get(name) for name in up}

    def _free(self) -> tuple[int | None, bool]:
        """Return the free places of all replicas, if they are known, and whether that is of just now.

        Where it isn't, nobody else is taken to be there: a replica that has nothing from here says nothing.
        """
        known = self._known()
        if not known:
            return None, False
        free, latest = 0, time.monotonic() - FRESH_S
        for replica, report in known.items():
            if report is None:
                return None, False
            free += self._places(replica, report)
        return free, all(report is not None and report.at > latest for report in known.values())

    def _places(self, replica: str, report: _Report | None) -> int:
        if report is None:
            return 1
        others = report.room.others if report.at > time.monotonic() - FRESH_S else 0
        return max(report.room.places - others - self._load(replica), 0)

    def _full(self) -> QueueFull:
        said = [report.room.drain_s for report in self._known().values() if report is not None]
        drain_s = min(said, default=1.0)
        seconds = max(1, math.ceil(drain_s))
        return QueueFull(
            "All places at the generators (settings generator.slots and generator.max_queued) are "
            f"taken; try again in {seconds} s.",
            retry_after=seconds,
        )
