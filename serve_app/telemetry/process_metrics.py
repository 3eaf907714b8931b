"""Prometheus metrics that any process of a node can report for all of them.

Every replica is a process of its own; prometheus-client's multiprocess mode keeps each one's
samples in memory-mapped files of one folder, so that a scrape of any ingress sees the whole node.
The folder has to be named before prometheus-client is imported first, hence this module: import
`prometheus_client` only through it.
"""

from __future__ import annotations

import os
from pathlib import Path

from serve_app.settings import parley_home

__all__ = ["exposition", "metrics_folder", "retire_dead_processes"]


def metrics_folder() -> Path:
    """Return the folder of this node's samples, made if it isn't there."""
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR") or parley_home() / "run" / "metrics")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_folder())

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402


def retire_dead_processes(folder: Path | None = None) -> None:
    """Drop the gauges of processes that are gone; their counters go on counting."""
    folder = folder or metrics_folder()
    pids = {file.stem.rsplit("_", 1)[-1] for file in folder.glob("gauge_live*.db")}
    for pid in pids:
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]


def exposition(folder: Path | None = None) -> bytes:
    """Return a node's samples in Prometheus' text format.

    Args:
        folder: where the node's processes write them; None takes this process's own folder.
    """
    folder = folder or metrics_folder()
    retire_dead_processes(folder)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
