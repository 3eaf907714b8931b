"""The picture of a comparison: output and time to the first token, by concurrency."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from load.measurements import Level

__all__ = ["save_plot"]

_PANELS: dict[str, Callable[[Level], float]] = {
    "output tok/s": lambda level: level.tokens_per_s,
    "TTFT p95, ms": lambda level: level.ttft_ms.p95 if level.ttft_ms else float("nan"),
}


def save_plot(
    path: Path,
    measured: Mapping[str, Mapping[str, Sequence[Sequence[Level]]]],
    concurrency: Sequence[int],
) -> None:
    """Draw medians as lines and all that was measured as points.

    Args:
        path: where the picture goes; its ending says which kind.
        measured: by workload, then by server: for each time, a level for each concurrency.
        concurrency: of the levels.
    """
    figure = Figure(figsize=(5 * len(_PANELS), 4 * len(measured)), layout="constrained")
    axes = figure.subplots(len(measured), len(_PANELS), squeeze=False)
    places = range(len(concurrency))
    for row, (workload, servers) in zip(axes, measured.items(), strict=True):
        for panel, (name, read) in zip(row, _PANELS.items(), strict=True):
            for server, runs in servers.items():
                values = [[read(level) for level in run] for run in runs]
                medians = [statistics.median(level) for level in zip(*values, strict=True)]
                (line,) = panel.plot(places, medians, label=server)
                for run in values:
                    panel.plot(places, run, "o", color=line.get_color(), markersize=4, alpha=0.6)
            panel.set_title(f"{workload}: {name}")
            panel.set_xticks(places, [str(streams) for streams in concurrency])
            panel.set_xlabel("streams at once")
            panel.set_ylim(bottom=0)
            panel.legend()
    figure.savefig(path, dpi=120)
