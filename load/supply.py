"""How many conversations are held, by how many clients, and until when: a closed loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from load.workload import Conversation, Workload

__all__ = ["Plan", "Supply"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        concurrency: the levels: how many clients hold a conversation at once.
        rounds: conversations per client, where neither of the others sets a limit.
        conversations: conversations at each level.
        duration_s: seconds after which no conversation is begun; those in progress end.
    """

    concurrency: tuple[int, ...]
    rounds: int = 2
    conversations: int | None = None
    duration_s: float | None = None

    def levels(self, workload: Workload) -> Iterator[tuple[int, Supply, Supply]]:
        """Yield (concurrency, warm-up, what is measured) for each level.

        The warm-up is one question per client. No two conversations are alike in any of them, or
        the later one's prompts would come out of a cache.
        """
        numbers = itertools.count()
        for concurrency in self.concurrency:
            warm_up = Supply(workload, numbers, conversations=concurrency, turns=1)
            yield concurrency, warm_up, self._measured(workload, numbers, concurrency)

    def _measured(self, workload: Workload, numbers: Iterator[int], concurrency: int) -> Supply:
        conversations = self.conversations
        if conversations is None and self.duration_s is None:
            conversations = self.rounds * concurrency
        return Supply(workload, numbers, conversations=conversations, duration_s=self.duration_s)


class Supply:
    """Hands out conversations to whoever holds them, until there were enough.

    Args:
        workload: what they are made of.
        numbers: gives each its number.
        conversations: how many there are; None sets no limit.
        duration_s: seconds after the first one in which more are begun; None sets no limit.
        turns: questions in each, if not as many as the workload says.
        clock: tells the time, in seconds.

    Attributes:
        handed_out: how many have been begun.
    """

    def __init__(
        self,
        workload: Workload,
        numbers: Iterator[int],
        *,
        conversations: int | None = None,
        duration_s: float | None = None,
        turns: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.handed_out = 0
        self._workload = workload
        self._numbers = numbers
        self._conversations = conversations
        self._duration_s = duration_s
        self._turns = turns
        self._clock = clock
        self._began = 0.0

    def next(self) -> Conversation | None:
        """Return a conversation to hold, or None if there were enough."""
        if self.handed_out == self._conversations:
            return None
        if not self.handed_out:
            self._began = self._clock()
        elif self._duration_s is not None and self._clock() - self._began >= self._duration_s:
            return None
        self.handed_out += 1
        return self._workload.conversation(next(self._numbers), turns=self._turns)
