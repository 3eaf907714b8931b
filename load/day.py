"""A day's requests: how many arrive when, and what they are."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from load.simulated_replica import Request

__all__ = ["Day"]

# Hours of a day, whatever the length of the one that is replayed.
_HOURS = 24.0
_NIGHT = (0.0, 5.0)
_DOCUMENTS = (9.0, 12.0)
_RUSH = (18.0, 18.5)
_RUSH_FACTOR = 1.8


@dataclass(frozen=True, slots=True)
class Day:
    """A day with a night in which nobody asks, a morning of long documents, and a rush at six.

    Attributes:
        seconds: of the day; less than 86,400 is a day that passes faster.
        peak_rate: requests per second where the day's curve is highest, without the rush.
        chat: tokens of a chat's question that have to be computed, and of its reply.
        document: the same of a question about a document.
        document_share: share of the morning's requests that bring a document.
        seed: chooses who arrives when; the same one gives the same day.
    """

    seconds: float = 86_400.0
    peak_rate: float = 6.0
    chat: tuple[int, int] = (120, 100)
    document: tuple[int, int] = (3000, 160)
    document_share: float = 0.3
    seed: int = 0

    def rate(self, hour: float) -> float:
        """Return the requests per second at an hour of the day."""
        if _NIGHT[0] <= hour < _NIGHT[1]:
            return 0.0
        awake = (hour - _NIGHT[1]) / (_HOURS - _NIGHT[1])
        rate = self.peak_rate * math.sin(math.pi * awake) ** 2
        return rate * _RUSH_FACTOR if _RUSH[0] <= hour < _RUSH[1] else rate

    def requests(self) -> list[Request]:
        """Return the day's requests, by when they arrive: a Poisson process whose rate changes.

        Candidates arrive at the highest rate there is, and each is taken with the chance that the rate
        of its moment has of that. Source: Lewis and Shedler 1979.
        """
        chooser = random.Random(self.seed)
        highest = self.peak_rate * _RUSH_FACTOR
        requests = []
        now = chooser.expovariate(highest)
        while now < self.seconds:
            hour = now / self.seconds * _HOURS
            if chooser.random() < self.rate(hour) / highest:
                requests.append(self._request(now, hour, chooser))
            now += chooser.expovariate(highest)
        return requests

    def _request(self, now: float, hour: float, chooser: random.Random) -> Request:
        morning = _DOCUMENTS[0] <= hour < _DOCUMENTS[1]
        long = morning and chooser.random() < self.document_share
        prompt, output = self.document if long else self.chat
        return Request(now, _around(prompt, chooser), _around(output, chooser))


def _around(mean: int, chooser: random.Random) -> int:
    return max(1, round(mean * chooser.uniform(0.5, 1.5)))
