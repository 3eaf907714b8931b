"""A histogram's observations of one stream, kept aside until its end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Histogram

__all__ = ["Tally"]


class Tally:
    """Counts values by bucket, and adds them to a histogram all at once.

    Observing each would write to a file twice per token of every stream, which takes longer than all
    else that is done for a token.

    Args:
        bounds: the histogram's buckets, without the infinite one.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self, histogram: Histogram) -> None:
        """Add to a histogram what has been counted, and begin anew."""
        # prometheus-client has no way to observe a value several times; a test compares the two.
        for bucket, count in zip(histogram._buckets, self._counts, strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)
        histogram._sum.inc(self._sum)  # noqa: SLF001
        self._counts = [0] * len(self._counts)
        self._sum = 0.0
