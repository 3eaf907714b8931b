"""Batch sizes that decode steps are run at: a captured graph has one, so each batch takes the next."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["batch_buckets", "bucket_of"]

_STEP = 8


def batch_buckets(slots: int) -> tuple[int, ...]:
    """Return ascending sizes: 1, 2, 4, then multiples of 8, and at last all slots.

    A row that nobody is in costs little, since a step's time is that of reading the weights; a graph
    costs some memory and time when the engine starts.
    """
    sizes = {size for size in (1, 2, 4, *range(_STEP, slots, _STEP)) if size < slots}
    return (*sorted(sizes), slots)


def bucket_of(buckets: Sequence[int], batch: int) -> int:
    """Return the smallest bucket that holds a batch."""
    return next(size for size in buckets if size >= batch)
