"""Steps of a backend that samples: begun before the tokens of the one before are known here."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Rows

import numpy as np

from serve_app.generation.backends.base import Choice, Piece, SamplingBackend
from serve_app.generation.sampling import Sampled, sample
from serve_app.generation.sequence import Sequence
from serve_app.messages.generation import TokenLogprobs

__all__ = ["StepsInFlight"]


class StepsInFlight:
    """Begins steps and brings their tokens back, in order.

    While a sequence's token is in flight, its `computed` is ahead of what it knows: the token before is
    being computed, and so may one be that follows an end which nobody has seen yet. Such a token is
    dropped when it comes. What it leaves in the slot is written over, or never read.

    Args:
        backend: computes and samples.
    """

    def __init__(self, backend: SamplingBackend) -> None:
        self._backend = backend
        self._rows: deque[list[Sequence]] = deque()
        self._most = 0

    @property
    def due(self) -> bool:
        """Whether the oldest step must be ended before another one may begin."""
        return len(self._rows) > self._most

    @staticmethod
    def fills(sequence: Sequence) -> bool:
        """Tell whether a decoding sequence is full once it knows all its tokens."""
        return sequence.length + _ahead(sequence) >= sequence.reserved

    def begin(self, prompts: Rows[Piece], sequences: list[Sequence]) -> None:
        """Begin a step; see `SamplingBackend.enqueue`.

        Args:
            prompts: pieces of prompts.
            sequences: those that decode; each one's place in the list is its slot.
        """
        self._backend.enqueue(
            prompts,
            [
                Choice(sequence.sampler, _ahead(sequence), sequence.newest, sequence.computed)
                for sequence in sequences
            ],
        )
        for sequence in sequences:
            sequence.computed += 1
        self._rows.append(sequences)
        # What the host samples itself must be known before the next step can begin.
        overlaps = all(self._backend.samples(sequence.sampler) for sequence in sequences)
        self._most = self._backend.depth - 1 if overlaps else 0

    def settle(self) -> None:
        """Have every step be due."""
        self._most = 0

    def end(self) -> tuple[list[Sequence], Sampled]:
        """Wait for the oldest step; return the sequences that still run, and a token of each."""
        chosen = self._backend.collect()
        sequences = self._rows.popleft()
        tokens = chosen.tokens
        logprobs: list[TokenLogprobs | None] = [None] * len(sequences)
        broken, overflowed = set(chosen.broken), set(chosen.overflowed)
        running = [row for row, sequence in enumerate(sequences) if sequence.running]
        ours = [place for place, row in enumerate(chosen.unsampled) if sequences[row].running]
        if ours:
            rows = [chosen.unsampled[place] for place in ours]
            sampled = sample(chosen.logits[ours], [sequences[row].sampler for row in rows])
            tokens[rows] = sampled.tokens
            broken.update(rows[place] for place in sampled.broken)
            overflowed.update(rows[place] for place in sampled.overflowed)
            for row, entry in zip(rows, sampled.logprobs, strict=True):
                logprobs[row] = entry
        for row in {*running} - {*chosen.unsampled} - broken - overflowed:
            sequences[row].sampler.advance(int(tokens[row]))
        return [sequences[row] for row in running], Sampled(
            tokens=tokens[np.array(running, np.intp)],
            logprobs=[logprobs[row] for row in running],
            broken=frozenset(place for place, row in enumerate(running) if row in broken),
            overflowed=frozenset(place for place, row in enumerate(running) if row in overflowed),
        )


def _ahead(sequence: Sequence) -> int:
    """Return how many tokens of a decoding sequence are in flight."""
    return sequence.computed + 1 - sequence.length
