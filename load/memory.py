"""The memory of a cluster, by kind of process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import psutil

from load.processor_time import kind_of
from serve_app.cluster.processes import memory_bytes

__all__ = ["Memory"]


class Memory:
    """What some processes take, and what they took when it was most.

    Args:
        processes: returns those that live.

    Attributes:
        highest: bytes by kind of process, the most first, at the look that saw most altogether.
    """

    def __init__(self, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        self._processes = processes
        self.highest: dict[str, int] = {}

    def look(self) -> dict[str, int]:
        """Return the bytes by kind of process, the most first; a shared page counts once."""
        taken: Counter[str] = Counter()
        for process in self._processes():
            try:
                kind = kind_of(process.cmdline())
            except psutil.NoSuchProcess:
                continue  # it has ended in between
            taken[kind] += memory_bytes(process)
        found = dict(taken.most_common())
        if sum(found.values()) > sum(self.highest.values()):
            self.highest = found
        return found
