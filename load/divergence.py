"""How far one model's predictions are from another's, on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Divergence"]

# Rows of logits worked off at once, so that they stay in a core's cache.
_ROWS = 8


@dataclass(frozen=True, slots=True)
class Divergence:
    """Sums over positions; add them up, then read the properties.

    Attributes:
        positions: how many were compared.
        agreed: those at which both find the same token likeliest.
        kl_nats: Kullback-Leibler divergence from the exact model to the other one, added up.
        predicted: positions behind which the text goes on, so that its next token can be looked up.
        exact_nats: surprise of the exact model at these tokens, added up.
        other_nats: the other model's.
    """

    positions: int = 0
    agreed: int = 0
    kl_nats: float = 0.0
    predicted: int = 0
    exact_nats: float = 0.0
    other_nats: float = 0.0

    @classmethod
    def of(
        cls, exact: NDArray[np.float32], other: NDArray[np.float32], tokens: Sequence[int]
    ) -> Self:
        """Compare two models on one window.

        Args:
            exact: logits of the model that the other one is held against, [n, vocab].
            other: logits of the other one, [n, vocab].
            tokens: the window, [n]; row i of the logits is about token i + 1.
        """
        following = np.array(tokens[1:], np.int64)
        kl_nats = exact_nats = other_nats = 0.0
        for start in range(0, len(tokens), _ROWS):
            rows = slice(start, start + _ROWS)
            log_p, log_q = _log_softmax(exact[rows]), _log_softmax(other[rows])
            kl_nats += float((np.exp(log_p) * (log_p - log_q)).sum())
            targets = following[rows]
            places = np.arange(len(targets))
            exact_nats -= float(log_p[places, targets].sum())
            other_nats -= float(log_q[places, targets].sum())
        return cls(
            positions=len(tokens),
            agreed=int((exact.argmax(axis=1) == other.argmax(axis=1)).sum()),
            kl_nats=kl_nats,
            predicted=len(following),
            exact_nats=exact_nats,
            other_nats=other_nats,
        )

    def __add__(self, more: Divergence) -> Divergence:
        return Divergence(
            self.positions + more.positions,
            self.agreed + more.agreed,
            self.kl_nats + more.kl_nats,
            self.predicted + more.predicted,
            self.exact_nats + more.exact_nats,
            self.other_nats + more.other_nats,
        )

    @property
    def kl_per_token(self) -> float:
        """Mean divergence of the next token's distribution, in nats."""
        return self.kl_nats / self.positions

    @property
    def agreement(self) -> float:
        """Share of positions at which both find the same token likeliest."""
        return self.agreed / self.positions

    @property
    def exact_perplexity(self) -> float:
        """Perplexity of the exact model on the text."""
        return math.exp(self.exact_nats / self.predicted)

    @property
    def perplexity(self) -> float:
        """Perplexity of the other model on the text."""
        return math.exp(self.other_nats / self.predicted)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    # The differences are of the size of float32's roundings, so nothing is summed in it.
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
