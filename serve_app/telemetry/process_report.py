"""What a replica takes of its machine, as metrics."""

from __future__ import annotations

import threading

import psutil

from serve_app.telemetry import metrics

__all__ = ["ProcessReport"]

EVERY_S = 5.0


class ProcessReport:
    """Writes what this process takes, from a thread of its own.

    Args:
        deployment: whose replica it is.
    """

    def __init__(self, deployment: str) -> None:
        self._process = psutil.Process()
        self._memory = metrics.RESIDENT_MEMORY.labels(deployment)
        self._files = metrics.OPEN_FILES.labels(deployment)
        self._cpu = metrics.CPU_SECONDS.labels(deployment)
        self._cpu_seen = 0.0
        metrics.REPLICAS.labels(deployment).set(1)
        metrics.REPLICA_STARTS.labels(deployment).inc()

    def start(self) -> None:
        """Write now, and from now on as long as the process lives."""
        self.write()
        threading.Thread(target=self._write_on, name="process-report", daemon=True).start()

    def write(self) -> None:
        """Write what the process takes now."""
        with self._process.oneshot():
            self._memory.set(self._process.memory_info().rss)
            times = self._process.cpu_times()
        self._files.set(self._process.num_fds())
        used = times.user + times.system
        self._cpu.inc(used - self._cpu_seen)
        self._cpu_seen = used

    def _write_on(self) -> None:
        never = threading.Event()
        while not never.wait(EVERY_S):
            self.write()
