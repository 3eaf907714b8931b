"""Guessing how sequences go on from what they hold already, where a guess is worth its row."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Drafter", "Lookup"]

# Newest tokens that must have stood together before for the token behind them to be a guess.
_LEAST_MATCH = 2
# Longer matches than this are not told apart.
_MOST_MATCH = 16
# Places looked at for the longest match, from the newest back.
_PLACES = 8
# How much of the past the chances keep with every guess that is seen to be right or wrong.
_MEMORY = 0.98
# A guess that is right less often than this isn't worth the trouble, whatever a row costs.
_LEAST_CHANCE = 0.1


class Lookup:
    """Where in its own tokens a sequence seems to repeat itself.

    The match is followed for as long as it holds, and looked for anew when it breaks. Source: prompt
    lookup decoding (Saxena 2023).

    Attributes:
        matched: newest tokens that stand before the guess as well; 0 where there is no guess.
    """

    __slots__ = ("_at", "matched")

    def __init__(self) -> None:
        self.matched = 0
        self._at = 0

    def follow(self, tokens: NDArray[np.int64]) -> bool | None:
        """Take in the newest token.

        Args:
            tokens: all of the sequence's, [length]; the last one is new.

        Returns:
            Whether it had been guessed; None if nothing had.
        """
        guessed = None
        if self.matched:
            guessed = bool(tokens[self._at] == tokens[-1])
            if guessed:
                self._at += 1
                self.matched = min(self.matched + 1, _MOST_MATCH)
                return guessed
        self._search(tokens)
        return guessed

    def guess(self, tokens: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Return the next `count` tokens; what is repeated may reach into the guess itself.

        Args:
            tokens: as `follow` saw them last.
            count: how many.
        """
        return np.resize(tokens[self._at :][:count], count)

    def _search(self, tokens: NDArray[np.int64]) -> None:
        self.matched = 0
        if len(tokens) <= _LEAST_MATCH:
            return
        # The guess must lie before the end, so the newest pair itself is left out.
        pairs = (tokens[1:-1] == tokens[-1]) & (tokens[:-2] == tokens[-2])
        for place in np.flatnonzero(pairs)[: -_PLACES - 1 : -1].tolist():
            matched = _common_end(tokens[: place + 2], tokens)
            if matched > self.matched:
                self.matched, self._at = matched, place + 2


class Drafter:
    """Decides whose next tokens to guess, and how many.

    Whether a guess is right shows in the next token anyway, drafted or not, so how often guesses
    behind a match of each length are right is known for nothing.

    Args:
        most: tokens guessed for one sequence in a step, at most; 0 guesses nothing.
        most_rows: tokens guessed in a step altogether, at most.
    """

    def __init__(self, *, most: int, most_rows: int) -> None:
        self._most = min(most, most_rows)
        self._most_rows = most_rows
        self._right = np.zeros(_MOST_MATCH + 1)
        self._seen = np.zeros(_MOST_MATCH + 1)

    @property
    def idle(self) -> bool:
        """Whether nothing is ever guessed."""
        return self._most == 0

    def follow(self, lookup: Lookup, tokens: NDArray[np.int64]) -> None:
        """Take in the newest token of a sequence, and learn from what had been guessed for it."""
        matched = lookup.matched
        guessed = lookup.follow(tokens)
        if guessed is not None:
            self._right[matched] = _MEMORY * self._right[matched] + guessed
            self._seen[matched] = _MEMORY * self._seen[matched] + 1.0

    def chance(self, matched: int) -> float:
        """Return how likely the guess behind so many matched tokens is right; 0 until it was once."""
        return float(self._right[matched] / (self._seen[matched] + 1.0))

    def counts(self, matches: Iterable[tuple[int, int]], *, least_chance: float) -> list[int]:
        """Say how many tokens to guess for whom.

        Args:
            matches: of each sequence the tokens matched, 0 for none, and the guesses it has room for.
            least_chance: chance from which on a guess is worth a row.
        """
        least = max(least_chance, _LEAST_CHANCE)
        counts: list[int] = []
        likely: list[tuple[float, int]] = []
        for number, (matched, room) in enumerate(matches):
            counts.append(0)
            chance = 1.0
            for ahead in range(min(room, self._most) if matched else 0):
                chance *= self.chance(min(matched + ahead, _MOST_MATCH))
                if chance < least:
                    break
                likely.append((chance, number))
        # A sequence's chances fall, so what is kept of them is always their beginning.
        for _, number in heapq.nlargest(self._most_rows, likely):
            counts[number] += 1
        return counts


def _common_end(some: NDArray[np.int64], others: NDArray[np.int64]) -> int:
    """Return how many tokens two sequences end in together, up to the most that is told apart."""
    size = min(len(some), len(others), _MOST_MATCH)
    different = np.flatnonzero(some[-size:] != others[-size:])
    return size - 1 - int(different[-1]) if different.size else size
