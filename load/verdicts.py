"""What a run had to hold, what it did, and whether that is enough."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

__all__ = ["Verdict", "flat", "verdict_table"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One promise.

    Attributes:
        promise: what was promised.
        measured: what came of it, in words.
        held: whether it was kept.
    """

    promise: str
    measured: str
    held: bool


def flat(
    promise: str,
    samples: Sequence[float],
    *,
    share: float,
    least: float,
    unit: str,
    scale: float = 1,
) -> Verdict:
    """Judge whether something stays as it is.

    The first half of the samples fills caches and is not compared. What follows is compared by the
    medians of its first and its second half, so that neither a peak nor the moment of the last sample
    decides.

    Args:
        promise: what is said of it, such as "memory stays flat".
        samples: in order, at equal distances.
        share: of the earlier median, how much more is still flat.
        least: what is flat in any case, however small the earlier median is.
        unit: of what is shown.
        scale: what a sample is divided by to be shown.
    """
    half = len(samples) // 2
    later = samples[half:]
    if len(later) < 2:
        return Verdict(promise, f"{len(samples)} samples are too few", held=False)
    middle = len(later) // 2
    before, after = statistics.median(later[:middle]), statistics.median(later[middle:])
    allowed = max(share * before, least)
    measured = (
        f"{before / scale:,.0f} → {after / scale:,.0f} {unit}, "
        f"up to {allowed / scale:,.0f} more allowed"
    )
    return Verdict(promise, measured, held=after - before <= allowed)


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Return a table with a row per promise."""
    table = Table("promise", title="verdicts", title_justify="left")
    table.add_column("measured")
    table.add_column("verdict", justify="right")
    for verdict in verdicts:
        table.add_row(verdict.promise, verdict.measured, "held" if verdict.held else "BROKEN")
    return table
