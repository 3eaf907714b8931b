"""Which tokens stay in the draw: min_p, top_k and top_p, exact without sorting the vocabulary.

Each of the three keeps the tokens above some cutoff, so that finding the cutoff is all there is to
do. Tokens exactly as likely as the last one that stays are kept too: which of several equals comes
first is nobody's business, and the kept set doesn't depend on their order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from serve_app.messages.generation import SamplingParams

__all__ = ["kth_largest", "nucleus_cutoff", "truncate"]

_GROUPS = 64
_BUCKETS = 1024
_BUCKETS_PER_UNIT = 16.0


def truncate(
    scaled: NDArray[np.float32], params: SamplingParams
) -> tuple[NDArray[np.intp] | None, NDArray[np.float32]]:
    """Apply min_p, then top_k, then top_p, each to what the one before has left.

    Args:
        scaled: logits over the temperature, less their maximum, [vocab].
        params: what to apply.

    Returns:
        The kept tokens, ascending, or None for all of them; and their weights, which are
        probabilities up to a common factor, the likeliest having 1.
    """
    floor = math.log(params.min_p) if params.min_p > 0 else -math.inf
    if 0 < params.top_k < scaled.size:
        floor = max(floor, kth_largest(scaled, params.top_k))
    kept = None if floor == -math.inf else np.flatnonzero(scaled >= floor)
    values = scaled if kept is None else scaled[kept]
    weights = np.exp(values)
    if params.top_p < 1.0:
        nucleus = np.flatnonzero(values >= nucleus_cutoff(values, weights, params.top_p))
        kept = nucleus if kept is None else kept[nucleus]
        weights = weights[nucleus]
    return kept, weights


def kth_largest(values: NDArray[np.float32], k: int) -> float:
    """Return the k-th largest value, k from 1 to the size."""
    group_count = values.size // _GROUPS
    if k <= group_count // 2:
        # The k-th largest of the groups' maxima can't be above the k-th largest of all, so
        # everything below it is out: a few cheap passes instead of a selection over everything.
        # A group is a stride through the row, which makes its maximum a vector operation.
        groups = values[: group_count * _GROUPS].reshape(_GROUPS, group_count)
        bound = _select(groups.max(axis=0), k)
        values = values[np.flatnonzero(values >= bound)]
    return float(_select(values, k))


def _select(values: NDArray[np.float32], k: int) -> np.float32:
    place = values.size - k
    chosen: np.float32 = np.partition(values, place)[place]
    return chosen


def nucleus_cutoff(
    values: NDArray[np.float32], weights: NDArray[np.float32], top_p: float
) -> float:
    """Return the lowest value in the smallest set of likeliest tokens with a mass of top_p.

    Source: Holtzman et al. 2020. Finding it takes a histogram of the mass over the values and a
    sort of the one bucket in which the sum passes top_p.

    Args:
        values: log weights up to a constant, the largest 0.
        weights: exp(values).
        top_p: in (0, 1).
    """
    total = float(weights.sum())
    target = top_p * total
    # Tokens below this weight can't add up to the mass that stays outside of the nucleus: they are
    # outside. (Slightly less than the exact bound, for the rounding of `total`.)
    candidates = np.flatnonzero(weights >= 0.99 * (total - target) / weights.size)
    values = values[candidates]
    weights = weights[candidates]
    buckets = np.minimum(values * -_BUCKETS_PER_UNIT, _BUCKETS - 1).astype(np.intp)
    masses = np.bincount(buckets, weights)
    sums = masses.cumsum()
    bucket = int(sums.searchsorted(target))
    if bucket == sums.size:  # only by rounding, with top_p next to 1
        return -math.inf
    inside = np.sort(values[np.flatnonzero(buckets == bucket)])[::-1]
    running = np.exp(inside, dtype=np.float64).cumsum()
    running += sums[bucket] - masses[bucket]
    return float(inside[min(int(running.searchsorted(target)), inside.size - 1)])
