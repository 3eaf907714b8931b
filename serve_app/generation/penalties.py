"""What a sequence has said already, and how that lowers the logits of saying it again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve_app.messages.generation import SamplingParams

__all__ = ["Penalties"]


class Penalties:
    """Repetition, frequency and presence penalties of one sequence.

    Kept as two short arrays over the tokens that were seen, so that a step touches those tokens
    and not the vocabulary.

    The repetition penalty counts prompt and output, the other two only the output. Source: Keskar
    et al. 2019 (CTRL) for the first, OpenAI's API for the others; order and signs as in vLLM.
    """

    __slots__ = ("_counts", "_frequency", "_place", "_presence", "_repetition", "_tokens")

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]
    ) -> None:
        self._repetition = params.repetition_penalty
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        # The prompt's tokens matter to the repetition penalty alone.
        seen = dict.fromkeys(prompt, 0) if self._repetition != 1.0 else {}
        for token in output:
            seen[token] = seen.get(token, 0) + 1
        self._place = {token: place for place, token in enumerate(seen)}
        room = max(64, 2 * len(seen))
        self._tokens = np.zeros(room, np.int64)
        self._counts = np.zeros(room, np.float32)
        self._tokens[: len(seen)] = list(seen)
        self._counts[: len(seen)] = list(seen.values())

    @staticmethod
    def wanted(params: SamplingParams) -> bool:
        """Tell whether any of the three penalties does something."""
        return (
            params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0
        )

    @property
    def spoken(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens that were seen, and how often each is in the output."""
        return self._tokens[: len(self._place)], self._counts[: len(self._place)]

    def add(self, token: int) -> None:
        """Count one more token of the output."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.zeros_like(self._tokens)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._tokens[place] = token
        self._counts[place] += 1.0

    def apply(self, row: NDArray[np.float32]) -> None:
        """Lower the seen tokens' logits in place; one that overflows becomes infinite.

        Args:
            row: one sequence's logits, [vocab].
        """
        tokens = self._tokens[: len(self._place)]
        counts = self._counts[: len(self._place)]
        logits = row[tokens]
        if self._repetition != 1.0:
            with np.errstate(over="ignore"):  # `sample` finds what becomes infinite
                logits = np.where(logits > 0, logits / self._repetition, logits * self._repetition)
        if self._frequency != 0.0:
            logits -= self._frequency * counts
        if self._presence != 0.0:
            logits -= self._presence * (counts > 0)
        row[tokens] = logits
